//! Tests of the protocol crate, in one program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batch;
mod bounds;
mod delay_samples;
mod document;
mod entry;
mod frame;
mod golden;
mod group_samples;
mod partition;
mod peer_samples;
mod properties;
mod queue;
mod queue_samples;
mod rebuild;
mod samples;
