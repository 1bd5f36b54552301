//! Links between brokers over real sockets, in one program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hello;
mod links;
mod support;
