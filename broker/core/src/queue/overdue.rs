//! Owns what of a queue is too old: it goes out no more, and leaves. Never tells the age of a message: append
//! times never fall, so all that is too old lies below one offset, which the partition is told. Driven by the
//! dispatcher's tick and by the partition.
//!
//! ```text
//!   unread, ahead, waiting, delayed --`before` passes--> overdue --sweep--> evicting         (expired = drop)
//!   leased ------given back, ended-------------------->  late    -------->  dying -> dead    (dead_letter)
//! ```
//! What a consumer has stays with it, and may be acknowledged. What is being written about is looked at again
//! when that is committed.

use std::collections::BTreeSet;

use postrider_protocol::message::Expired;
use postrider_protocol::types::Offset;

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState};
use super::rebuild::EMPTY;
use super::settle::Verdict;
use super::settled::OffsetRange;
use super::state::{DeadCause, DeadTarget};
use super::timers::Due;
use crate::limits::VERDICTS_PER_TICK_MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// Messages below are too old.
    pub(super) before: u64,
    /// Of those below, what is unsettled is held or being evicted.
    pub(super) swept: u64,
    /// Held ones that wait. Bound: what is held.
    pub(super) late: BTreeSet<u64>,
    /// As many are on their way to the dead letter topic as may be.
    pub(super) stalled: bool,
}

impl Dispatcher {
    /// Messages below `before` are too old from here on; others are not, whatever was said before.
    pub(crate) fn set_overdue(&mut self, committed: Option<Committed<'_>>, before: u64) {
        let was = std::mem::replace(&mut self.overdue.before, before);
        if was <= before {
            self.pass_over();
            return;
        }
        let again = self.overdue.late.split_off(&before);
        again.into_iter().for_each(|offset| self.index(offset));
        self.overdue.swept = self.overdue.swept.min(before);
        self.dropping |= self.is_shedding();
        if let Some(committed) = committed.filter(|_| self.begun) {
            self.read_again_from(committed, Offset(before));
        }
    }

    /// Puts what is too old out of reach.
    pub(super) fn pass_over(&mut self) {
        let before = self.overdue.before;
        if !self.begun || before == 0 {
            return;
        }
        let waits = |held: &Held| held.state == HeldState::Waiting && !held.acking;
        let waiting: Vec<(u64, Held)> = self
            .held
            .range(..before)
            .filter(|(_, held)| waits(held))
            .map(|(offset, held)| (*offset, *held))
            .collect();
        for (offset, held) in waiting {
            self.unindex(offset, &held);
            self.index(offset);
        }
        self.ahead.remove(0, before);
        for offset in self.keys.entered(0, before) {
            if self.held.get(&offset).is_none_or(waits) {
                self.unblock(offset);
            }
        }
        for hole in &mut self.holes {
            hole.0 = hole.0.max(before);
        }
        self.holes.retain(|hole| hole.0 < hole.1);
        // The keys of what stays must be read; what is too old is passed over then.
        if !self.must_read_to(before) {
            self.ahead_end = self.ahead_end.max(before);
        }
    }

    /// Whether a message is too old to go out.
    pub(super) fn is_overdue(&self, offset: u64) -> bool {
        offset < self.overdue.before
    }

    /// Has a bounded part of what is too old leave.
    pub(super) fn sweep(&mut self, committed: Committed<'_>, due: &mut Due) {
        if !self.has_overdue() {
            return;
        }
        let before = self.overdue.before;
        if self.bounds.expired == Expired::Drop {
            let late = self.overdue.late.first().copied().unwrap_or(before);
            let from = late.min(self.overdue.swept);
            due.expired = self.shed(committed, from, before);
            self.overdue.swept = before;
        } else if let Some(target) = self.target {
            self.sweep_to_death(committed, target, due);
        } else {
            due.wants_target = true;
        }
    }

    fn sweep_to_death(&mut self, committed: Committed<'_>, target: DeadTarget, due: &mut Due) {
        let mut budget = self.kill_budget();
        while budget > 0
            && let Some(offset) = self.overdue.late.pop_first()
        {
            due.verdicts.push(self.kill(committed, offset, DeadCause::Expired, target));
            budget -= 1;
        }
        let left = OffsetRange::new(self.overdue.swept, self.overdue.before);
        for part in self.open_in(committed, left) {
            for offset in part.start.0..part.end.0 {
                if self.held.contains_key(&offset) {
                    continue;
                }
                if budget == 0 {
                    self.overdue.swept = offset;
                    self.overdue.stalled = true;
                    return;
                }
                due.verdicts.push(self.kill(committed, offset, DeadCause::Expired, target));
                budget -= 1;
            }
        }
        self.overdue.swept = self.overdue.before;
        self.overdue.stalled = !self.overdue.late.is_empty();
    }

    /// How many messages more may be sent to the dead letter topic unprocessed. Those that are on their way are
    /// held in memory, and leave half of the room to others.
    pub(super) fn kill_budget(&self) -> usize {
        let most = usize::try_from((self.policy.unsettled_max / 2).max(1)).unwrap_or(usize::MAX);
        let dying = self.held.values().filter(|held| held.is_dying()).count();
        most.min(VERDICTS_PER_TICK_MAX).saturating_sub(dying)
    }

    /// Sends a message that nobody has to the dead letter topic: says what is to be written.
    pub(super) fn kill(
        &mut self,
        committed: Committed<'_>,
        offset: u64,
        cause: DeadCause,
        target: DeadTarget,
    ) -> Verdict {
        self.ahead.remove(offset, offset + 1);
        match self.held.get(&offset).copied() {
            Some(held) => self.unindex(offset, &held),
            None => self.held.insert(offset, EMPTY),
        }
        let held = self.held.get_mut(&offset).expect("it was just put there");
        held.killed = held.state == HeldState::Waiting;
        held.doomed = !held.killed;
        held.state = HeldState::Dying;
        if held.killed {
            self.killing += 1;
            self.dropping |= offset >= self.overdue.before;
        }
        let known = committed.queue.failures().get(&Offset(offset));
        Verdict::Die {
            offset,
            cause,
            failures: u32::from(held.failures),
            attempts: held.attempt,
            target,
            reason: known.map_or_else(String::new, |failure| failure.reason.clone()),
            consumer: known.map(|failure| failure.consumer.clone()).unwrap_or_default(),
        }
    }

    /// The entry that kills a message is committed, or refused.
    pub(super) fn killed(&mut self) {
        self.killing -= 1;
        self.dropping &= self.is_shedding();
    }

    /// Whether entries that have messages leave unprocessed are not committed.
    pub(super) fn is_shedding(&self) -> bool {
        !self.evicting.is_empty() || self.killing > 0
    }

    /// Whether a tick may have something to do here.
    pub(super) fn has_overdue(&self) -> bool {
        let any = !self.overdue.late.is_empty() || self.overdue.swept < self.overdue.before;
        any && (self.bounds.expired == Expired::Drop || !self.overdue.stalled)
    }

    /// Messages that are too old, below `end`, in no other place.
    pub(super) fn passed_over(&self, committed: Committed<'_>, end: u64) -> u64 {
        let range = OffsetRange::new(self.overdue.swept, self.overdue.before.min(end));
        if range.start >= range.end {
            return 0;
        }
        self.open_in(committed, range).into_iter().map(|part| self.unheld(part)).sum()
    }
}
