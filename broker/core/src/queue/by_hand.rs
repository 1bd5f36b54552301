//! Owns what people do to single messages of a queue: send a dead letter back, have a message go out now. Never
//! reads one. Driven by the partition.

use postrider_protocol::message::AckRun;
use postrider_protocol::types::Offset;

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState, NOBODY};
use super::settle::Verdict;
use super::state::{DeadCause, DeadTarget};

/// What may be sent back of some dead letters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Redrivable {
    /// These.
    pub letters: Vec<(Offset, DeadTarget)>,
    /// So many were sent back before, or are on their way, or leave the queue in another way.
    pub sent_before: u32,
    /// So many more are on their way from this partition.
    pub on_their_way: u64,
    /// As many are on their way as may be: from here on none was judged.
    pub stopped_at: Option<Offset>,
}

/// What became of a message that was to go out now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Released {
    /// Its consumer lost it.
    Lease {
        /// Who.
        member: u64,
        /// The lease.
        run: AckRun,
    },
    /// It waits no more.
    Delay,
    /// It was neither out nor waiting for a time.
    No,
}

impl Dispatcher {
    /// Which of these letters, in order, may be sent back now.
    pub(crate) fn redrivable(
        &self,
        committed: Committed<'_>,
        letters: &[(Offset, DeadTarget)],
    ) -> Redrivable {
        let mut found = Redrivable::default();
        let mut budget = self.kill_budget();
        let on_their_way = committed.queue.dead_letters().count();
        found.on_their_way = u64::try_from(on_their_way).unwrap_or(u64::MAX);
        for (offset, target) in letters {
            let waits = |held: &Held| held.state == HeldState::Waiting && !held.acking;
            let leaves = committed.queue.settled().contains(*offset) || self.is_evicting(offset.0);
            if leaves || !self.held.get(&offset.0).is_none_or(waits) {
                found.sent_before += 1;
            } else if budget == 0 {
                found.stopped_at = Some(*offset);
                break;
            } else {
                budget -= 1;
                found.letters.push((*offset, *target));
            }
        }
        found
    }

    /// Sends letters back that may be.
    pub(crate) fn redrive(
        &mut self,
        committed: Committed<'_>,
        letters: &[(Offset, DeadTarget)],
    ) -> Vec<Verdict> {
        let kill = |(offset, target): &(Offset, DeadTarget)| {
            self.kill(committed, offset.0, DeadCause::Redriven, *target)
        };
        letters.iter().map(kill).collect()
    }

    /// Has a message go out now. Its failures stay what they are.
    pub(crate) fn release_now(&mut self, offset: u64) -> Released {
        let Some(held) = self.held.get(&offset).copied() else { return Released::No };
        if held.is_leased() {
            self.members.released(held.member);
            self.breaker.released(offset);
            self.release(offset);
            if held.member == NOBODY {
                return Released::Delay;
            }
            let run = AckRun { first: Offset(offset), count: 1, attempt: held.attempt };
            return Released::Lease { member: held.member, run };
        }
        if held.state == HeldState::Waiting && held.time > self.wall_ms && !held.acking {
            self.unindex(offset, &held);
            self.release(offset);
            return Released::Delay;
        }
        Released::No
    }
}
