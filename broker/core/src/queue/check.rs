//! Owns the invariants of a dispatcher. Never changes anything. Driven by tests, through the partition.

use postrider_protocol::types::Offset;

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState};
use super::settled::OffsetRange;

impl Dispatcher {
    /// Asserts what must hold between any two calls. Costs as much as the dispatcher is large.
    pub(crate) fn check(&self, committed: Committed<'_>) {
        if !self.begun {
            return;
        }
        self.check_places(committed);
        self.check_indexes(committed);
        self.check_leases();
        self.check_killed();
    }

    /// No message is forgotten: each unsettled one that was read is in exactly one place.
    fn check_places(&self, committed: Committed<'_>) {
        let settled = committed.queue.settled();
        for offset in self.held.keys() {
            assert!(!settled.contains(Offset(*offset)), "{offset}: what is held is unsettled");
            assert!(!self.ahead.contains(*offset), "{offset} is held, or ahead");
        }
        for run in self.ahead.iter() {
            assert!(run.end <= self.ahead_end, "what is ahead was read");
            assert!(!self.is_overdue(run.start), "what is too old goes out no more");
            let missing = settled.missing_in(OffsetRange::new(run.start, run.end));
            assert!(missing == [OffsetRange::new(run.start, run.end)], "and is unsettled");
        }
        let held = self.held.range(..self.ahead_end).count();
        let blocked = self.keys.blocked_ones();
        let blocked =
            blocked.filter(|offset| !self.held.contains_key(offset) && !self.is_evicting(*offset));
        let holes: u64 = self.holes.iter().map(|hole| self.lost_in(committed, *hole)).sum();
        let read = OffsetRange::new(0, self.ahead_end);
        let evicting = self.evicting.iter().map(|part| OffsetRange {
            start: part.start,
            end: part.end.min(read.end).max(part.start),
        });
        let evicting: u64 = evicting.map(|part| self.unheld(part)).sum();
        let passed_over = self.passed_over(committed, self.ahead_end);
        let places =
            [self.ahead.count(), count(held), count(blocked.count()), holes, evicting, passed_over];
        assert!(
            committed.queue.unsettled(Offset(self.ahead_end)) == places.iter().sum::<u64>(),
            "each message that was read has one place: {places:?} up to {} {self:?} {committed:?}",
            self.ahead_end
        );
    }

    /// What was killed is counted until its entry is committed or refused; else nothing would go out any more.
    fn check_killed(&self) {
        let killed = |held: &&Held| held.state == HeldState::Dying && held.killed;
        assert!(self.held.values().filter(killed).count() == self.killing, "{self:?}");
        assert!(!self.dropping || self.is_shedding(), "{self:?}");
    }

    /// Unsettled messages of a hole that are not held.
    fn lost_in(&self, committed: Committed<'_>, hole: (u64, u64)) -> u64 {
        let open = self.open_in(committed, OffsetRange::new(hole.0, hole.1));
        open.into_iter().map(|part| self.unheld(part)).sum()
    }

    pub(super) fn unheld(&self, range: OffsetRange) -> u64 {
        range.count() - count(self.held.range(range.start.0..range.end.0).count())
    }

    fn check_indexes(&self, committed: Committed<'_>) {
        for (offset, held) in self.held.iter() {
            let delayed = self.delayed.contains(&(held.time, *offset));
            let (ready, doomed) = (self.ready.contains(offset), self.doomed.contains(offset));
            let waits = held.state == HeldState::Waiting && !held.acking;
            assert!(waits || !(delayed || ready), "{offset}: only what waits is filed {held:?}");
            assert!(!(delayed && ready), "{offset} is filed once");
            let late = self.overdue.late.contains(offset);
            assert!(late == (waits && self.is_overdue(*offset)), "{offset}: what is late is filed");
            assert!(!(late && (delayed || ready)), "{offset}: what is too old goes out no more");
            let blocked = self.policy.key_order
                && (*offset >= self.ahead_end || self.keys.blocker(*offset).is_some());
            assert!(
                !waits || delayed || ready || blocked || late,
                "{offset} is forgotten: {held:?}"
            );
            assert!(!(ready && blocked), "{offset} is ready before its key is free");
            assert!(
                doomed == (held.state == HeldState::Doomed && !held.acking),
                "{offset}: what is doomed is filed"
            );
            let dead = committed.queue.is_dying(Offset(*offset));
            assert!(dead == (held.state == HeldState::Dead), "{offset}: {held:?}");
        }
        let filed = self.ready.iter().chain(self.doomed.iter());
        let filed = filed.chain(self.delayed.iter().map(|(_, offset)| offset));
        let filed = filed.chain(self.overdue.late.iter());
        for offset in filed {
            assert!(self.held.contains_key(offset), "{offset} is filed and not held");
        }
    }

    /// No lease without somebody who ends it.
    fn check_leases(&self) {
        for (key, member) in self.members.iter() {
            let leased = self.held.values().filter(|held| held.is_leased() && held.member == key);
            assert!(member.leased == count(leased.count()), "{key} has what is counted");
        }
        for held in self.held.values().filter(|held| held.is_leased()) {
            assert!(self.deadline_bound <= self.deadline(held), "each lease ends: {held:?}");
        }
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
