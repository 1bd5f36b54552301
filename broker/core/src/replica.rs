//! Owns the rules of replication that need no I/O: which epoch ends where, and who may lead next. Never
//! sees what entries hold, clocks, sockets or disks. Driven by tests; the shell does not use it yet.

pub mod election;
pub mod epochs;
mod types;

pub use types::{Incarnation, PartitionEpoch};
