//! Client connections: accepting them and moving bytes between sockets and sessions.
//!
//! Never decides what a request means: the join does. Driven by the server.

mod connection;
mod counters;
mod input;
mod listener;
mod signal;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use counters::{CloseReason, NetCounters};
pub(crate) use input::BufferPool;
pub(crate) use listener::{KeepAlive, accept, bind};
pub(crate) use signal::Registry;

use crate::clock::Clock;
use crate::join::Broker;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<NetCounters>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pool: BufferPool,
    pub(crate) timeouts: Timeouts,
    pub(crate) read_bytes_max: usize,
    pub(crate) frame_bytes_max: u32,
}

/// How long a connection waits for its client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) handshake: Duration,
    pub(crate) frame: Duration,
    pub(crate) write: Duration,
    /// Zero: no limit.
    pub(crate) idle: Duration,
}
