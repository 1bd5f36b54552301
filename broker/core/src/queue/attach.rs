//! Owns how a consumer attaches to a queue, and which leases it finds again. Never knows a connection.
//! Driven by [`crate::partition`].

use std::collections::BTreeMap;

use postrider_protocol::message::{AckRun, LeaseRun, SETTLE_MESSAGES_MAX};

use super::dispatch::{Committed, Dispatcher, push_run};
use super::held::{Held, HeldState, NOBODY};
use super::settled::OffsetRange;

/// What a consumer says it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Holds<'a> {
    /// Nothing that could be in force.
    Nothing,
    /// Leases of this leadership.
    Ours(&'a [AckRun]),
    /// Leases of a leadership before, in the same epoch.
    Earlier(&'a [AckRun]),
}

impl Dispatcher {
    /// Attaches a consumer; tells what of the leases it holds is in force. What was leased to it and it
    /// does not hold never arrived, and goes out again.
    pub(crate) fn attach(
        &mut self,
        now_ms: u64,
        committed: Option<Committed<'_>>,
        (key, name): (u64, &str),
        holds: Holds<'_>,
    ) -> Vec<LeaseRun> {
        self.members.attach(key, name, now_ms);
        let mut found = Found::new();
        if let (Holds::Ours(runs), Some(_)) = (holds, committed) {
            self.keep(now_ms, key, runs, &mut found);
        }
        let missing: Vec<u64> = self
            .leases_of(key)
            .into_iter()
            .map(|(offset, _)| offset)
            .filter(|offset| !found.contains_key(offset))
            .collect();
        for offset in missing {
            self.members.released(key);
            self.breaker.released(offset);
            self.release(offset);
        }
        if let (Holds::Earlier(runs), Some(committed)) = (holds, committed) {
            self.bind(now_ms, committed, key, runs, &mut found);
        }
        let mut held = Vec::new();
        for (offset, (attempt, failures)) in found {
            push_run(&mut held, offset, 1, attempt, failures);
        }
        held
    }

    /// Leases of this leadership: those in force, and those that ended and went to nobody else.
    fn keep(&mut self, now_ms: u64, key: u64, runs: &[AckRun], found: &mut Found) {
        for run in runs {
            let end = run.first.0.saturating_add(u64::from(run.count));
            let named: Vec<(u64, Held)> = self
                .held
                .range(run.first.0..end)
                .filter(|(_, held)| !held.acking && held.is_of(key, run.attempt))
                .map(|(offset, held)| (*offset, *held))
                .collect();
            for (offset, held) in named {
                match held.state {
                    HeldState::Leased => {}
                    // Somebody else gets messages now.
                    HeldState::Waiting if self.policy.single_active && !self.members.claim(key) => {
                        continue;
                    }
                    // An earlier one of its key has to go out first.
                    HeldState::Waiting if !self.is_next_of_key(offset) => continue,
                    HeldState::Waiting => {
                        self.unindex(offset, &held);
                        self.lease_again(now_ms, key, offset, held);
                    }
                    HeldState::Returning
                    | HeldState::GivenBack
                    | HeldState::Doomed
                    | HeldState::Dying
                    | HeldState::Dead => continue,
                }
                found.insert(offset, (held.attempt, u32::from(held.failures)));
            }
        }
    }

    fn lease_again(&mut self, now_ms: u64, key: u64, offset: u64, held: Held) {
        let (time, member, state) = (now_ms, key, HeldState::Leased);
        if offset >= self.ahead_end {
            self.out_end = self.out_end.max(offset + 1);
        }
        self.held.insert(offset, Held { time, member, state, ..held });
        self.members.leased_again(key);
        let deadline = now_ms.saturating_add(u64::from(self.policy.lease_ms));
        self.deadline_bound = self.deadline_bound.min(deadline);
    }

    /// Leases of an earlier leadership, of messages that are unsettled and were not handed out since.
    fn bind(
        &mut self,
        now_ms: u64,
        committed: Committed<'_>,
        key: u64,
        runs: &[AckRun],
        found: &mut Found,
    ) {
        if self.policy.single_active && !self.members.claim(key) {
            return;
        }
        let mut left = SETTLE_MESSAGES_MAX;
        for run in runs {
            let end = run.first.0.saturating_add(u64::from(run.count)).min(committed.end);
            let named = OffsetRange::new(run.first.0, end);
            for part in committed.queue.settled().missing_in(named) {
                for offset in part.start.0..part.end.0 {
                    if left == 0 {
                        return;
                    }
                    left -= 1;
                    if let Some(held) = self.unclaimed(offset) {
                        let attempt = held.attempt.saturating_add(1);
                        let dispatch =
                            self.members.get(key).map_or(0, |member| member.next_dispatch);
                        self.lease_again(now_ms, key, offset, Held { attempt, dispatch, ..held });
                        found.insert(offset, (attempt, u32::from(held.failures)));
                    }
                }
            }
        }
    }

    /// Whether a message may be given back to whom it was leased to. With key order none that was not read, once
    /// others went out: one of these may be of its key.
    fn is_next_of_key(&self, offset: u64) -> bool {
        let was_read = offset < self.ahead_end;
        !self.policy.key_order
            || if was_read { self.keys.blocker(offset).is_none() } else { !self.handed_out }
    }

    /// Takes an unsettled message that nobody was given in this leadership out of its place.
    fn unclaimed(&mut self, offset: u64) -> Option<Held> {
        if !self.is_next_of_key(offset) {
            return None;
        }
        if let Some(held) = self.held.get(&offset).copied() {
            let free = held.state == HeldState::Waiting && !held.acking && held.attempt == 0;
            if free {
                self.unindex(offset, &held);
            }
            return free.then_some(held);
        }
        let weight = if offset >= self.ahead_end {
            0
        } else {
            self.ahead.remove(offset, offset + 1).first()?.weight
        };
        Some(Held {
            time: 0,
            dispatch: 0,
            member: NOBODY,
            weight,
            attempt: 0,
            failures: 0,
            state: HeldState::Waiting,
            acking: false,
            doomed: false,
            killed: false,
        })
    }
}

/// Attempt and failures of each message.
type Found = BTreeMap<u64, (u32, u32)>;
