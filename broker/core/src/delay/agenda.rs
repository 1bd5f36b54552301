//! Owns the order in which a leader releases delayed messages, and what of that is under way. Never part of
//! the folded state: it is made from the lane when a leadership begins. Driven by the partition's leader.
//!
//! Entries that wait stand in a heap, 16 bytes each, by the time that they are due and then by index. Of what
//! was cancelled meanwhile the heap is not told; the lane is asked when its turn comes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use postrider_protocol::types::{EntryIndex, TimestampMs};

use super::lane::DelayLane;
use crate::limits::RELEASES_IN_FLIGHT_MAX;
use crate::now::Now;

/// How long releases wait after the store has refused one.
const PAUSE: Duration = Duration::from_millis(100);

/// A wait is cut into pieces of this, so that a wall clock that was set forward is noticed.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// An empty heap may keep room for so many.
const ROOM_MIN: usize = 4_096;

/// An entry whose time has come: to be read, and given to `Partition::release`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Due {
    /// The entry.
    pub index: EntryIndex,
    /// When it was due.
    pub due: TimestampMs,
    /// Messages in it.
    pub count: u32,
    /// Places of messages that are cancelled, in order.
    pub cancelled: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Loading,
    Appended,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Agenda {
    /// Bound: the lane's entries, with those that were cancelled and are not due yet.
    waiting: BinaryHeap<Reverse<(TimestampMs, EntryIndex)>>,
    /// Bound: `RELEASES_IN_FLIGHT_MAX`.
    under_way: BTreeMap<EntryIndex, (TimestampMs, Stage)>,
    /// How many cancels of an entry are appended and not committed. Bound: the messages that they name.
    cancelling: BTreeMap<EntryIndex, u32>,
    /// Messages of Delayed entries that are appended and not committed.
    appended_messages: u64,
    paused_until: Duration,
}

impl Agenda {
    /// What a lane holds.
    #[must_use]
    pub fn new(lane: &DelayLane) -> Self {
        let waiting: Vec<_> =
            lane.pending().map(|pending| Reverse((pending.due, pending.index))).collect();
        Self { waiting: BinaryHeap::from(waiting), ..Self::default() }
    }

    /// Messages of Delayed entries that are appended and not committed.
    pub(crate) fn appended_messages(&self) -> u64 {
        self.appended_messages
    }

    pub(crate) fn schedule_appended(&mut self, count: u32) {
        self.appended_messages += u64::from(count);
    }

    pub(crate) fn schedule_committed(&mut self, index: EntryIndex, due: TimestampMs, count: u32) {
        self.appended_messages -= u64::from(count);
        self.waiting.push(Reverse((due, index)));
    }

    pub(crate) fn cancel_appended(&mut self, index: EntryIndex) {
        *self.cancelling.entry(index).or_default() += 1;
    }

    pub(crate) fn cancel_committed(&mut self, index: EntryIndex) {
        let left = self.cancelling.get_mut(&index).expect("a cancel is appended, then committed");
        *left -= 1;
        if *left == 0 {
            self.cancelling.remove(&index);
        }
    }

    /// Takes what is due, as far as it fits into what may be under way. Nothing is due before its time by
    /// this clock, whatever the log's time says: a clock that was set back makes late, never early.
    pub(crate) fn take_due(&mut self, lane: &DelayLane, now: Now) -> Vec<Due> {
        let mut taken = Vec::new();
        let mut not_yet = Vec::new();
        if now.monotonic < self.paused_until {
            return taken;
        }
        while self.under_way.len() < RELEASES_IN_FLIGHT_MAX
            && let Some(Reverse((due, index))) = self.waiting.peek().copied()
            && due <= now.wall
        {
            self.waiting.pop();
            let Some(pending) = lane.get(index) else { continue };
            if self.cancelling.contains_key(&index) {
                not_yet.push(Reverse((due, index)));
                continue;
            }
            self.under_way.insert(index, (due, Stage::Loading));
            let cancelled = lane.cancelled_of(index).to_vec();
            taken.push(Due { index, due, count: pending.count, cancelled });
        }
        self.waiting.extend(not_yet);
        if self.waiting.capacity() > ROOM_MIN && self.waiting.len() < self.waiting.capacity() / 4 {
            self.waiting.shrink_to(self.waiting.len() * 2);
        }
        taken
    }

    /// Whether an entry that was taken may be released as it was read. If not, it waits again.
    pub(crate) fn may_release(&mut self, lane: &DelayLane, due: &Due) -> bool {
        let Some((_, Stage::Loading)) = self.under_way.get(&due.index) else { return false };
        let same = lane.get(due.index).is_some()
            && !self.cancelling.contains_key(&due.index)
            && lane.cancelled_of(due.index) == due.cancelled;
        if !same {
            self.wait_again(due.index);
        }
        same
    }

    pub(crate) fn release_appended(&mut self, index: EntryIndex) {
        let (_, stage) = self.under_way.get_mut(&index).expect("it was taken");
        *stage = Stage::Appended;
    }

    /// Tells when it was due.
    pub(crate) fn release_committed(&mut self, index: EntryIndex) -> Option<TimestampMs> {
        self.under_way.remove(&index).map(|(due, _)| due)
    }

    /// What was taken was not released; it is tried again.
    pub(crate) fn wait_again(&mut self, index: EntryIndex) {
        if let Some((due, _)) = self.under_way.remove(&index) {
            self.waiting.push(Reverse((due, index)));
        }
    }

    /// The store takes nothing at this moment.
    pub(crate) fn pause(&mut self, now: Now) {
        self.paused_until = now.monotonic + PAUSE;
    }

    /// When there is something to take, by the monotonic clock, or to look again.
    pub(crate) fn next_wake(&self, now: Now) -> Option<Duration> {
        if self.under_way.len() >= RELEASES_IN_FLIGHT_MAX {
            return None;
        }
        let Reverse((due, _)) = self.waiting.peek()?;
        let wait = Duration::from_millis(due.0.saturating_sub(now.wall.0)).min(WAIT_MAX);
        Some((now.monotonic + wait).max(self.paused_until))
    }

    /// The first time that anything is due.
    pub(crate) fn next_due(&self) -> Option<TimestampMs> {
        let under_way = self.under_way.values().map(|(due, _)| *due).min();
        let waiting = self.waiting.peek().map(|Reverse((due, _))| *due);
        [under_way, waiting].into_iter().flatten().min()
    }

    /// Asserts what ties this to the lane.
    pub(crate) fn check(&self, lane: &DelayLane) {
        let waiting = self.waiting.iter().filter(|Reverse((_, index))| lane.get(*index).is_some());
        let known = waiting.count()
            + self.under_way.keys().filter(|index| lane.get(**index).is_some()).count();
        assert!(
            known == lane.len(),
            "{known} entries wait or are under way, {} are pending",
            lane.len()
        );
    }
}
