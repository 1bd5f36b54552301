//! Owns what happens to a queue as time goes on: leases end, consumers that went away are given up,
//! delays are over, the breaker probes. Never reads a clock. Driven by the partition's tick.
//!
//! Leases have no timers of their own: all are looked at when the earliest could have ended, so that a
//! renewal moves one number per consumer. Bound of a look: `unsettled_max`.

use postrider_protocol::message::{AckRun, Expired};
use postrider_protocol::types::Offset;

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, NOBODY};
use super::ms;
use super::rebuild::push_ack_run;
use super::settle::Verdict;
use super::settled::OffsetRange;
use super::state::{DeadCause, ReturnCause};
use crate::limits::{SESSION_GRACE_MS, VERDICTS_PER_TICK_MAX};
use crate::now::Now;

/// How often a target is asked for while messages wait for it.
const ASK_TARGET_MS: u64 = 25;

/// What a tick found.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) verdicts: Vec<Verdict>,
    /// Leases that ended, by consumer.
    pub(crate) lost: Vec<(u64, Vec<AckRun>)>,
    /// Messages wait for their dead letter topic to be known.
    pub(crate) wants_target: bool,
    /// Messages that leave because they are too old.
    pub(crate) expired: Vec<OffsetRange>,
    /// Messages that leave because they are too many.
    pub(crate) evicted: Vec<OffsetRange>,
}

impl Dispatcher {
    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Now, committed: Committed<'_>) -> Due {
        self.begin(now, committed);
        let mut due = Due::default();
        let now_ms = ms(now.monotonic);
        self.breaker.tick(now_ms);
        self.end_delays();
        self.end_sessions(now_ms, &mut due);
        self.end_leases(now_ms, &mut due);
        self.doom(committed, &mut due);
        self.sweep(committed, &mut due);
        self.overflow(committed, &mut due);
        self.target_wanted = due.wants_target;
        due
    }

    fn end_delays(&mut self) {
        while let Some((_, offset)) =
            self.delayed.first().copied().filter(|(due, _)| *due <= self.wall_ms)
        {
            self.delayed.pop_first();
            self.index(offset);
        }
    }

    /// Consumers whose grace is over: what they had begun with failed, the rest is handed out again.
    fn end_sessions(&mut self, now_ms: u64, due: &mut Due) {
        for key in self.members.lost(now_ms) {
            if due.verdicts.len() >= VERDICTS_PER_TICK_MAX {
                return;
            }
            let leases = self.leases_of(key);
            let started = self.members.get(key).map_or(0, |member| member.started);
            let oldest = leases.iter().map(|(_, held)| held.dispatch).min();
            let any_started = oldest.is_some_and(|oldest| oldest < started);
            for (offset, held) in leases {
                let blamed = match any_started {
                    true => held.dispatch < started,
                    false => Some(held.dispatch) == oldest,
                };
                if blamed {
                    let cause = ReturnCause::SessionLost;
                    due.verdicts.extend(self.blame(now_ms, offset, cause, None, ""));
                } else {
                    self.breaker.released(offset);
                    self.release(offset);
                }
            }
            self.remove_member(key);
        }
    }

    /// A consumer is there no more. If the store refuses an entry about a message of its, the message is
    /// nobody's.
    fn remove_member(&mut self, key: u64) {
        self.members.remove(key);
        self.held
            .values_mut()
            .filter(|held| held.member == key)
            .for_each(|held| held.member = NOBODY);
    }

    pub(super) fn leases_of(&self, key: u64) -> Vec<(u64, Held)> {
        if self.members.get(key).is_none_or(|member| member.leased == 0) {
            return Vec::new();
        }
        self.held
            .iter()
            .filter(|(_, held)| held.is_leased() && held.member == key)
            .map(|(offset, held)| (*offset, *held))
            .collect()
    }

    pub(super) fn deadline(&self, held: &Held) -> u64 {
        let renewed = self.members.get(held.member).map_or(0, |member| member.renewed);
        let lease_ms = u64::from(self.policy.lease_ms);
        let longest = self.policy.lease_max_ms.max(lease_ms);
        let from = held.time.max(renewed);
        from.saturating_add(lease_ms).min(held.time.saturating_add(longest))
    }

    fn end_leases(&mut self, now_ms: u64, due: &mut Due) {
        if self.deadline_bound > now_ms {
            return;
        }
        let mut bound = u64::MAX;
        let mut over = Vec::new();
        for (offset, held) in self.held.iter().filter(|(_, held)| held.is_leased()) {
            let deadline = self.deadline(held);
            if deadline <= now_ms && over.len() < VERDICTS_PER_TICK_MAX {
                over.push((*offset, held.member, held.attempt));
            } else {
                bound = bound.min(deadline);
            }
        }
        self.deadline_bound = bound;
        for (offset, member, attempt) in over {
            let cause = ReturnCause::LeaseExpired;
            due.verdicts.extend(self.blame(now_ms, offset, cause, None, ""));
            if member == NOBODY {
                continue;
            }
            let lost = due.lost.iter_mut().find(|(key, _)| *key == member);
            match lost {
                Some((_, runs)) => push_ack_run(runs, offset, attempt),
                None => {
                    let mut runs = Vec::new();
                    push_ack_run(&mut runs, offset, attempt);
                    due.lost.push((member, runs));
                }
            }
        }
    }

    /// Messages that failed too often while the dead letter topic was not known.
    fn doom(&mut self, committed: Committed<'_>, due: &mut Due) {
        let Some(target) = self.target else {
            due.wants_target |= !self.doomed.is_empty();
            return;
        };
        while due.verdicts.len() < VERDICTS_PER_TICK_MAX
            && let Some(offset) = self.doomed.pop_first()
        {
            let known = committed.queue.failures().get(&Offset(offset));
            let rejected = known.is_some_and(|failure| failure.cause == ReturnCause::Rejected);
            let cause = if rejected { DeadCause::Rejected } else { DeadCause::MaxFailures };
            due.verdicts.push(self.kill(committed, offset, cause, target));
        }
    }

    /// Whether messages wait for the dead letter topic to be known.
    pub(crate) fn wants_target(&self) -> bool {
        self.target.is_none() && self.target_wanted
    }

    /// When the next thing is due, in monotonic ms; maybe nothing is then.
    pub(crate) fn next_wake(&self, clock: Now) -> Option<u64> {
        let clock_ms = ms(clock.monotonic);
        let delay = self
            .delayed
            .first()
            .map(|(due, _)| clock_ms.saturating_add(due.saturating_sub(self.wall_ms)));
        let deadline = (self.deadline_bound < u64::MAX).then_some(self.deadline_bound);
        let now = (!self.holes.is_empty()).then_some(0);
        // Without a target it is asked for, again and again.
        let ask = match self.target {
            Some(_) => 0,
            None => clock_ms.saturating_add(ASK_TARGET_MS),
        };
        let dooms = (!self.doomed.is_empty()).then_some(ask);
        let drops = self.bounds.expired == Expired::Drop;
        let overdue = self.has_overdue().then_some(if drops { 0 } else { ask });
        [delay, deadline, self.members.next_loss(), self.breaker.opens_until(), now, dooms, overdue]
            .into_iter()
            .flatten()
            .min()
    }

    /// A consumer is away, and may come back.
    pub(crate) fn lose(&mut self, now_ms: u64, key: u64) {
        if let Some(member) = self.members.get_mut(key) {
            member.lost_at = Some(now_ms.saturating_add(SESSION_GRACE_MS));
        }
    }

    /// A consumer has gone, and gave everything back.
    pub(crate) fn close(&mut self, key: u64) {
        for (offset, _) in self.leases_of(key) {
            self.breaker.released(offset);
            self.release(offset);
        }
        self.remove_member(key);
    }

    /// Extends all leases of a consumer; tells whether it is attached.
    pub(crate) fn renew(&mut self, now_ms: u64, key: u64, started: u64) -> bool {
        if !self.members.is_connected(key) {
            return false;
        }
        if let Some(member) = self.members.get_mut(key) {
            member.renewed = member.renewed.max(now_ms);
        }
        self.note_started(key, started);
        true
    }
}
