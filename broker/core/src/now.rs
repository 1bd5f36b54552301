//! Owns [`Now`], the only way in which time enters this crate. Never reads a clock. Driven by the shell,
//! which reads two clocks once per event, and by the simulator, which invents them.

use std::time::Duration;

use postrider_protocol::types::TimestampMs;

/// The time of one event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Time since some fixed moment of this process; never goes back. For waits and intervals.
    pub monotonic: Duration,
    /// Wall time. It may jump; what is stored is made monotone by the log that stores it.
    pub wall: TimestampMs,
}
