//! Owns a queue's circuit breaker: when most outcomes are failures, nothing goes out for a while, then
//! single messages, until one succeeds. Never knows a message but the probe. Driven by the dispatcher.
//!
//! ```text
//!            failures >= percent of a full window            pause over
//!   Closed ------------------------------------------> Open ------------> Probing
//!      ^                                                ^                   |  |
//!      |                                                +---- it failed ----+  |
//!      +------------------------------ a success ------------------------------+
//! ```

use std::collections::VecDeque;

use postrider_protocol::message::Breaker;

/// Outcomes that are remembered at most, whatever the policy says.
const WINDOW_MAX: usize = 10_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    #[default]
    Closed,
    /// Until then, in monotonic ms.
    Open(u64),
    /// With the message that is out, if one is.
    Probing(Option<u64>),
}

/// How much a breaker lets out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LetsOut {
    All,
    One,
    Nothing,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct BreakerState {
    phase: Phase,
    /// Whether each was a success, oldest first. Bound: the policy's window.
    outcomes: VecDeque<bool>,
    failures: usize,
}

impl BreakerState {
    pub(super) fn lets_out(&self) -> LetsOut {
        match self.phase {
            Phase::Closed => LetsOut::All,
            Phase::Open(_) | Phase::Probing(Some(_)) => LetsOut::Nothing,
            Phase::Probing(None) => LetsOut::One,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase != Phase::Closed
    }

    /// When it begins to probe.
    pub(super) fn opens_until(&self) -> Option<u64> {
        match self.phase {
            Phase::Open(until) => Some(until),
            Phase::Closed | Phase::Probing(_) => None,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Begins to probe when the pause is over; tells whether it does.
    pub(super) fn tick(&mut self, now_ms: u64) -> bool {
        let over = self.opens_until().is_some_and(|until| until <= now_ms);
        if over {
            self.phase = Phase::Probing(None);
        }
        over
    }

    pub(super) fn probe(&mut self, offset: u64) {
        if self.phase == Phase::Probing(None) {
            self.phase = Phase::Probing(Some(offset));
        }
    }

    /// A message is out no more, without an outcome: another one may probe.
    pub(super) fn released(&mut self, offset: u64) {
        if self.phase == Phase::Probing(Some(offset)) {
            self.phase = Phase::Probing(None);
        }
    }

    pub(super) fn succeeded(&mut self, policy: Option<Breaker>, count: u64) {
        let Some(policy) = policy else { return };
        match self.phase {
            Phase::Closed => {
                let window = window(policy);
                let count = usize::try_from(count).map_or(window, |count| count.min(window));
                (0..count).for_each(|_| self.push(window, true));
            }
            Phase::Probing(_) => self.reset(),
            Phase::Open(_) => {}
        }
    }

    pub(super) fn failed(&mut self, policy: Option<Breaker>, offset: u64, now_ms: u64) {
        let Some(policy) = policy else { return };
        let until = now_ms.saturating_add(u64::from(policy.pause_ms));
        match self.phase {
            Phase::Closed => {
                let window = window(policy);
                self.push(window, false);
                let percent = usize::try_from(policy.failure_percent).unwrap_or(100);
                if self.outcomes.len() >= window && self.failures * 100 >= percent * window {
                    self.reset();
                    self.phase = Phase::Open(until);
                }
            }
            Phase::Probing(Some(probe)) if probe == offset => self.phase = Phase::Open(until),
            Phase::Probing(_) | Phase::Open(_) => {}
        }
    }

    fn push(&mut self, window: usize, success: bool) {
        while self.outcomes.len() >= window {
            let oldest = self.outcomes.pop_front();
            self.failures -= usize::from(oldest == Some(false));
        }
        self.outcomes.push_back(success);
        self.failures += usize::from(!success);
    }
}

fn window(policy: Breaker) -> usize {
    usize::try_from(policy.window).unwrap_or(WINDOW_MAX).clamp(1, WINDOW_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Option<Breaker> = Some(Breaker { failure_percent: 50, window: 4, pause_ms: 100 });

    #[test]
    fn it_opens_when_half_fails_and_closes_when_a_probe_succeeds() {
        let mut breaker = BreakerState::default();
        breaker.succeeded(POLICY, 9);
        breaker.failed(POLICY, 1, 0);
        assert_eq!(breaker.lets_out(), LetsOut::All);
        breaker.failed(POLICY, 2, 0);
        assert_eq!(breaker.lets_out(), LetsOut::Nothing);
        assert!(!breaker.tick(99) && breaker.tick(100));
        assert_eq!(breaker.lets_out(), LetsOut::One);
        breaker.probe(3);
        breaker.failed(POLICY, 1, 100);
        assert_eq!(breaker.lets_out(), LetsOut::Nothing, "one probe at a time");
        breaker.released(3);
        breaker.probe(4);
        breaker.failed(POLICY, 4, 100);
        assert_eq!(breaker.opens_until(), Some(200));
        breaker.tick(200);
        breaker.probe(4);
        breaker.succeeded(POLICY, 1);
        assert_eq!(breaker.lets_out(), LetsOut::All);
    }
}
