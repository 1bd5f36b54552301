//! Wire frames, messages, record batches, stored entries and error codes of Postrider.
//!
//! Owns every byte layout that leaves a process: what crosses a socket and what a segment keeps of it.
//! Never does I/O, reads a clock, waits, or decides anything. Driven by the client and by the broker,
//! which hand it bytes and take messages, and the other way round.
//!
//! `docs/PROTOCOL.md` states the same layouts for readers in other languages.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod api;
pub mod batch;
pub mod codec;
pub mod compress;
pub mod entry;
pub mod error;
pub mod frame;
pub mod headers;
pub mod message;
pub mod partition;
pub mod pattern;
pub mod rebuild;
pub mod record;
pub mod trailer;
pub mod types;
mod varint;
