//! Owns what is counted about connections. Never decides anything. Driven by the listener and the
//! connections, once per system call or per event, never per message; read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use postrider_protocol::error::ErrorCode;

/// A number that only rises. Relaxed: it orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CloseReason {
    /// The client closed it between two frames.
    Client,
    /// The client closed it, or the network broke, within a frame.
    Broken,
    /// No complete `Hello` in time.
    HandshakeTimeout,
    /// The rest of a frame did not come in time.
    FrameTimeout,
    /// The client did not take what was ready for it in time.
    SlowReader,
    /// The client sent nothing for too long, not even a `Ping`.
    Silent,
    /// A frame that is none, or a request after which the connection cannot go on.
    Error,
    /// The server ended.
    Shutdown,
}

impl CloseReason {
    pub(crate) const ALL: [Self; 8] = [
        Self::Client,
        Self::Broken,
        Self::HandshakeTimeout,
        Self::FrameTimeout,
        Self::SlowReader,
        Self::Silent,
        Self::Error,
        Self::Shutdown,
    ];

    /// The word in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Broken => "broken",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::FrameTimeout => "frame_timeout",
            Self::SlowReader => "slow_reader",
            Self::Silent => "silent",
            Self::Error => "error",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Counters of all connections since the process started.
#[derive(Debug)]
pub(crate) struct NetCounters {
    pub(crate) accepted: Counter,
    pub(crate) refused: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) frames_received: Counter,
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) read_pauses: Counter,
    pub(crate) admin_requests: Counter,
    closed: [Counter; CloseReason::ALL.len()],
    errors: [Counter; ErrorCode::ALL.len()],
}

impl Default for NetCounters {
    fn default() -> Self {
        Self {
            accepted: Counter::default(),
            refused: Counter::default(),
            accept_errors: Counter::default(),
            bytes_received: Counter::default(),
            bytes_sent: Counter::default(),
            frames_received: Counter::default(),
            reads: Counter::default(),
            writes: Counter::default(),
            read_pauses: Counter::default(),
            admin_requests: Counter::default(),
            closed: std::array::from_fn(|_| Counter::default()),
            errors: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl NetCounters {
    /// An error was given to a client before the join saw the frame.
    pub(crate) fn error(&self, code: ErrorCode) {
        let at = ErrorCode::ALL.iter().position(|other| *other == code);
        at.and_then(|at| self.errors.get(at)).expect("ALL has every code").increment();
    }

    /// How often each code was given.
    pub(crate) fn errors(&self) -> impl Iterator<Item = (ErrorCode, u64)> + '_ {
        ErrorCode::ALL.iter().copied().zip(self.errors.iter().map(Counter::total))
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        self.of(reason).increment();
    }

    pub(crate) fn closed_by(&self, reason: CloseReason) -> u64 {
        self.of(reason).total()
    }

    /// Connections that are open now. Closes are read first, so that the difference is never negative.
    pub(crate) fn open(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(Counter::total).sum();
        self.accepted.total().saturating_sub(closed)
    }

    fn of(&self, reason: CloseReason) -> &Counter {
        let at = CloseReason::ALL.iter().position(|other| *other == reason);
        at.and_then(|at| self.closed.get(at)).expect("ALL has every reason: a test looks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_on_its_own() {
        let counters = NetCounters::default();
        for (at, reason) in CloseReason::ALL.into_iter().enumerate() {
            counters.accepted.add(2);
            for _ in 0..at {
                counters.closed(reason);
            }
        }
        for (at, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(counters.closed_by(reason), at as u64, "{}", reason.name());
        }
        assert_eq!(counters.open(), 0, "more closed than accepted counts as none");
    }
}
