//! Owns the broker's clocks. The only place of the shell that turns them into [`Now`].
//!
//! Driven by connections and by the tick; decisions never read a clock themselves.

use std::time::{Duration, Instant, SystemTime};

use postrider_core::Now;
use postrider_protocol::types::TimestampMs;

/// Monotonic time since the server started, and wall time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: self.start.elapsed(), wall: wall() }
    }
}

/// Unix time; 0 before 1970.
pub(crate) fn wall() -> TimestampMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    TimestampMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
