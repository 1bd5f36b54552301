//! Owns how a queue with too many messages gets rid of its oldest ones, where its topic says so. Never refuses
//! a publish (the partition does). Driven by the dispatcher's tick.
//!
//! What a consumer has stays with it: the oldest that nobody has leave.

use postrider_protocol::message::{Overflow, TopicBounds};
use postrider_protocol::types::Offset;

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState};
use super::settled::OffsetRange;
use super::state::{DeadCause, QueueState};
use super::timers::Due;

/// How many unsettled messages below `end` are too many.
pub(crate) fn excess(bounds: &TopicBounds, queue: &QueueState, end: Offset) -> u64 {
    match bounds.max_messages {
        Some(max) if bounds.sheds() => queue.unsettled(end).saturating_sub(max),
        Some(_) | None => 0,
    }
}

impl Dispatcher {
    /// Has a bounded part of what is too many leave.
    pub(super) fn overflow(&mut self, committed: Committed<'_>, due: &mut Due) {
        let excess = excess(&self.bounds, committed.queue, Offset(committed.end));
        let excess = if excess > 0 { excess.saturating_sub(self.leaving(committed)) } else { 0 };
        if excess == 0 {
            return;
        }
        if self.bounds.overflow == Overflow::DropOldest {
            let oldest = self.oldest(committed, excess);
            if let (Some(first), Some(last)) = (oldest.first(), oldest.last()) {
                due.evicted = self.shed(committed, first.start.0, last.end.0);
                self.dropping |= !due.evicted.is_empty();
            }
        } else if let Some(target) = self.target {
            let most = u64::try_from(self.kill_budget()).unwrap_or(u64::MAX);
            let oldest = self.oldest(committed, excess.min(most));
            for offset in oldest.into_iter().flat_map(|part| part.start.0..part.end.0) {
                due.verdicts.push(self.kill(committed, offset, DeadCause::Overflow, target));
            }
        } else {
            due.wants_target = true;
        }
    }

    /// Messages that are on their way out already.
    fn leaving(&self, committed: Committed<'_>) -> u64 {
        let evicting: u64 = self.evicting.iter().map(|part| part.count()).sum();
        let dying = self.held.values().filter(|held| held.is_dying()).count();
        let dying = u64::try_from(dying).unwrap_or(u64::MAX);
        evicting + dying + self.passed_over(committed, committed.end)
    }

    /// The oldest messages that may leave, in order.
    fn oldest(&self, committed: Committed<'_>, mut most: u64) -> Vec<OffsetRange> {
        let mut oldest: Vec<OffsetRange> = Vec::new();
        if most == 0 {
            return oldest;
        }
        let all = OffsetRange::new(self.overdue.before, committed.end);
        for part in self.open_in(committed, all) {
            for free in self.free_in(part) {
                let count = free.count().min(most);
                oldest.push(OffsetRange::new(free.start.0, free.start.0 + count));
                most -= count;
                if most == 0 {
                    return oldest;
                }
            }
        }
        oldest
    }

    /// The parts of a range that no consumer has, and that are not being written about.
    pub(super) fn free_in(&self, part: OffsetRange) -> Vec<OffsetRange> {
        let busy = |held: &Held| held.acking || held.state != HeldState::Waiting;
        let (mut at, mut free) = (part.start.0, Vec::new());
        for (offset, _) in self.held.range(at..part.end.0).filter(|(_, held)| busy(held)) {
            if at < *offset {
                free.push(OffsetRange::new(at, *offset));
            }
            at = *offset + 1;
        }
        if at < part.end.0 {
            free.push(OffsetRange::new(at, part.end.0));
        }
        free
    }

    /// Whether a message below `end` that stays was not read, and its key is not known.
    pub(super) fn must_read_to(&self, end: u64) -> bool {
        let unread = || self.held.range(self.ahead_end..end.max(self.ahead_end)).next().is_some();
        self.policy.key_order && (self.must_read_on() || unread())
    }

    /// Has what may leave of a range leave, as [`Dispatcher::evicting`] does; but the keys of what stays
    /// are still to be read.
    pub(super) fn shed(
        &mut self,
        committed: Committed<'_>,
        start: u64,
        end: u64,
    ) -> Vec<OffsetRange> {
        let unread = self.must_read_to(end).then_some(self.ahead_end);
        let ranges = self.evicting(committed, start, end);
        self.ahead_end = unread.unwrap_or(self.ahead_end);
        ranges
    }
}
