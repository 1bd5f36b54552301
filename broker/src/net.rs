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
pub(crate) use input::{BufferPool, Input};
pub(crate) use listener::{KeepAlive, accept, bind};
pub(crate) use signal::{Registry, Signal};

use crate::clock::Clock;
use crate::join::Broker;
use crate::peer::{PeerOptions, PeerServer};

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<NetCounters>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) timeouts: Timeouts,
    pub(crate) read_bytes_max: usize,
    pub(crate) frame_bytes_max: u32,
    /// What serves connections of other brokers; none: they are refused.
    pub(crate) peers: Option<Peers>,
}

/// What serves connections of other brokers, and its bounds.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) server: Arc<dyn PeerServer>,
    pub(crate) options: PeerOptions,
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
