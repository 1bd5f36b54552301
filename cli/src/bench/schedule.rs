//! Owns when each message of an open loop is meant to leave. Pure: no clock. Driven by the producers.
//!
//! Latency is counted from the intended time, so that a stall shows in every message that should have
//! left during it, and not only in the few that did.

use std::time::Duration;

/// The send times of one connection, from the start of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    interval_ns: f64,
    phase_ns: f64,
}

impl Schedule {
    /// A share of `messages_per_s` for worker `worker` of `workers`. The workers take turns.
    pub(crate) fn new(messages_per_s: f64, worker: u32, workers: u32) -> Self {
        let gap_ns = 1e9 / messages_per_s;
        Self { interval_ns: gap_ns * f64::from(workers), phase_ns: gap_ns * f64::from(worker) }
    }

    /// When message `n` (from 0) is meant to leave.
    pub(crate) fn intended(&self, n: u64) -> Duration {
        Duration::from_nanos(crate::units::to_u64(self.phase_ns + n as f64 * self.interval_ns))
    }

    /// How many messages are meant to have left by now.
    pub(crate) fn due(&self, elapsed: Duration) -> u64 {
        let elapsed_ns = elapsed.as_nanos() as f64;
        if elapsed_ns < self.phase_ns {
            return 0;
        }
        crate::units::to_u64((elapsed_ns - self.phase_ns) / self.interval_ns).saturating_add(1)
    }
}

/// Whether a generator kept up: it is saturated if more than one message in a hundred that was due had
/// not left when the run ended.
pub(crate) fn is_saturated(due: u64, sent: u64) -> bool {
    due.saturating_sub(sent) > due / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_rate_and_take_turns() {
        let first = Schedule::new(1_000.0, 0, 2);
        let second = Schedule::new(1_000.0, 1, 2);
        assert_eq!(first.intended(0), Duration::ZERO);
        assert_eq!(second.intended(0), Duration::from_millis(1));
        assert_eq!(first.intended(1), Duration::from_millis(2));
        assert_eq!(second.intended(499), Duration::from_millis(999));
    }

    #[test]
    fn due_counts_what_is_intended_up_to_now() {
        let schedule = Schedule::new(1_000.0, 0, 1);
        assert_eq!(schedule.due(Duration::ZERO), 1);
        assert_eq!(schedule.due(Duration::from_micros(999)), 1);
        assert_eq!(schedule.due(Duration::from_secs(1)), 1_001);
        assert_eq!(Schedule::new(1_000.0, 1, 2).due(Duration::from_micros(999)), 0);
    }

    #[test]
    fn a_long_fast_schedule_does_not_drift() {
        let schedule = Schedule::new(3_000_000.0, 0, 1);
        assert_eq!(schedule.intended(3_000_000 * 3_600), Duration::from_secs(3_600));
    }

    #[test]
    fn saturation_is_one_percent_behind() {
        assert!(!is_saturated(1_000, 990));
        assert!(is_saturated(1_000, 989));
        assert!(!is_saturated(0, 0));
    }
}
