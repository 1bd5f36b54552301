//! Owns how long to wait before the next attempt to connect. Never sleeps. Driven by `io`.

use std::{ops::RangeInclusive, time::Duration};

/// Exponential waits with full jitter: the wait before attempt `n` is uniform between 0 and
/// `min(max, first * 2^n)`, so that clients of a restarted broker do not return in step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// Waits that grow from the range's start to its end.
    #[must_use]
    pub fn exponential(range: RangeInclusive<Duration>) -> Self {
        Self { first: *range.start(), max: (*range.end()).max(*range.start()) }
    }

    /// The wait before attempt `attempt` (from 0). `random` is a uniform number.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let ceiling = self.first.saturating_mul(1 << attempt.min(20)).min(self.max);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random % nanos.saturating_add(1).max(1))
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::exponential(Duration::from_millis(50)..=Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_its_maximum_and_starts_anywhere_below() {
        let backoff = Backoff::exponential(Duration::from_millis(50)..=Duration::from_secs(1));
        assert_eq!(backoff.delay(0, 0), Duration::ZERO);
        assert_eq!(backoff.delay(0, 50_000_000), Duration::from_millis(50));
        assert_eq!(backoff.delay(1, 100_000_000), Duration::from_millis(100));
        assert_eq!(backoff.delay(63, 1_000_000_000), Duration::from_secs(1));
    }
}
