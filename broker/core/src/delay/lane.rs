//! Owns the pending delayed messages as folded: which entries, until when, what of them was cancelled. Never
//! knows what is not committed, nor what time it is. Driven by `PartitionState::apply`.
//!
//! Entries come with rising indexes and leave in any order. So they stand in one packed queue, 24 bytes each;
//! one that has left stays as an empty place until the places before it are empty too, or half of all are:
//! then these are squeezed out. A million entries of one message cost 24 MB here and 16 MB in the agenda.

use std::collections::{BTreeMap, VecDeque};

use postrider_protocol::message::{CancelVerdict, DelayId};
use postrider_protocol::trailer::DelayRun;
use postrider_protocol::types::{EntryIndex, TimestampMs};

use crate::limits::DELAY_ENDED_MAX;

/// Empty places that are not worth squeezing.
const EMPTY_MIN: usize = 1_024;

/// A Delayed entry that has not been released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    /// The entry.
    pub index: EntryIndex,
    /// Not before.
    pub due: TimestampMs,
    /// Messages in it.
    pub count: u32,
    /// Messages of it that are not cancelled: at least one, but in an empty place.
    pub live: u32,
}

/// What delayed messages have come to, in messages since the partition exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DelayTotals {
    /// Published with a delay.
    pub scheduled: u64,
    /// Given offsets.
    pub released: u64,
    /// Taken back.
    pub cancelled: u64,
    /// Not readable when their time had come.
    pub lost: u64,
}

/// Why messages are taken out of the lane without being released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CancelHow {
    /// Somebody asked for it.
    Asked = 0,
    /// Their entry is damaged.
    Lost = 1,
}

/// How a message left the lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EndedHow {
    /// It has an offset.
    Released = 0,
    /// It will never have one.
    Cancelled = 1,
}

/// Messages that left the lane together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Which.
    pub run: DelayRun,
    /// How.
    pub how: EndedHow,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct DelayLane {
    /// By index, with empty places; never one at the front. Bound: `PartitionLimits::delayed_max`, kept by
    /// the leader, and as many empty places.
    places: VecDeque<Pending>,
    empty: usize,
    /// Messages that are pending.
    messages: u64,
    /// Cancelled places of pending entries, in order.
    cancelled: BTreeMap<EntryIndex, Vec<u32>>,
    /// What left last, oldest first. Bound: `DELAY_ENDED_MAX`; the oldest is forgotten.
    ended: VecDeque<Ended>,
    totals: DelayTotals,
}

impl PartialEq for DelayLane {
    fn eq(&self, other: &Self) -> bool {
        self.pending().eq(other.pending())
            && self.cancelled == other.cancelled
            && self.ended == other.ended
            && self.totals == other.totals
    }
}

impl Eq for DelayLane {}

impl DelayLane {
    /// The lane that was taken apart; `None` if its parts contradict each other.
    #[must_use]
    pub fn from_parts(
        pending: VecDeque<Pending>,
        cancelled: BTreeMap<EntryIndex, Vec<u32>>,
        ended: VecDeque<Ended>,
        totals: DelayTotals,
    ) -> Option<Self> {
        let mut lane = Self { places: pending, empty: 0, messages: 0, cancelled, ended, totals };
        for at in 0..lane.places.len() {
            let before = at.checked_sub(1).map(|at| lane.places[at].index);
            let pending = lane.places.get_mut(at)?;
            let cancelled = lane.cancelled.get(&pending.index).map_or(&[][..], Vec::as_slice);
            let fits = cancelled.is_sorted_by(|a, b| a < b)
                && cancelled.last().is_none_or(|last| *last < pending.count);
            pending.live = pending.count.checked_sub(u32::try_from(cancelled.len()).ok()?)?;
            if !fits || pending.live == 0 || before.is_some_and(|before| before >= pending.index) {
                return None;
            }
            lane.messages += u64::from(pending.live);
        }
        let known = |index| lane.find(index).is_some();
        let DelayTotals { scheduled, released, cancelled, lost } = lane.totals;
        let left = released.checked_add(cancelled)?.checked_add(lost)?;
        let whole = lane.cancelled.keys().all(|index| known(*index))
            && lane.cancelled.values().all(|places| !places.is_empty())
            && lane.ended.len() <= DELAY_ENDED_MAX
            && left.checked_add(lane.messages)? == scheduled;
        whole.then_some(lane)
    }

    /// Whether nothing was ever delayed here.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.totals == DelayTotals::default()
    }

    /// Messages that are pending.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Entries that are pending, by index.
    pub fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.places.iter().filter(|place| place.live > 0)
    }

    /// How many entries are pending.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.empty
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first entry that the log must keep for this.
    #[must_use]
    pub fn floor(&self) -> Option<EntryIndex> {
        self.places.front().map(|place| place.index)
    }

    /// See [`DelayTotals`].
    #[must_use]
    pub fn totals(&self) -> DelayTotals {
        self.totals
    }

    /// What left last, oldest first.
    #[must_use]
    pub fn ended(&self) -> &VecDeque<Ended> {
        &self.ended
    }

    /// The cancelled places of pending entries.
    #[must_use]
    pub fn cancelled(&self) -> &BTreeMap<EntryIndex, Vec<u32>> {
        &self.cancelled
    }

    /// The cancelled places of one entry, in order.
    #[must_use]
    pub fn cancelled_of(&self, index: EntryIndex) -> &[u32] {
        self.cancelled.get(&index).map_or(&[], Vec::as_slice)
    }

    /// The entry, if it is pending.
    #[must_use]
    pub fn get(&self, index: EntryIndex) -> Option<&Pending> {
        self.find(index).and_then(|at| self.places.get(at))
    }

    fn find(&self, index: EntryIndex) -> Option<usize> {
        let at = self.places.partition_point(|place| place.index < index);
        self.places.get(at).filter(|place| place.index == index && place.live > 0)?;
        Some(at)
    }

    /// What a cancel of this message comes to.
    #[must_use]
    pub fn verdict(&self, id: DelayId) -> CancelVerdict {
        if let Some(pending) = self.get(id.index) {
            return match id.position < pending.count {
                true => CancelVerdict::Cancelled,
                false => CancelVerdict::Unknown,
            };
        }
        let holds = |run: &DelayRun| {
            run.index == id.index && (run.first..run.first + run.count).contains(&id.position)
        };
        match self.ended.iter().rev().find(|ended| holds(&ended.run)) {
            Some(Ended { how: EndedHow::Released, .. }) => CancelVerdict::Released,
            Some(Ended { how: EndedHow::Cancelled, .. }) => CancelVerdict::Cancelled,
            None => CancelVerdict::Unknown,
        }
    }

    /// Messages are published with a delay, in an entry behind all others.
    pub(crate) fn schedule(&mut self, index: EntryIndex, due: TimestampMs, count: u32) {
        assert!(
            self.places.back().is_none_or(|last| last.index < index),
            "entries come in their order"
        );
        self.totals.scheduled += u64::from(count);
        self.messages += u64::from(count);
        self.places.push_back(Pending { index, due, count, live: count });
    }

    /// A Data entry holds these messages: their entries have left, those of them that are pending.
    pub(crate) fn release(&mut self, runs: &[DelayRun]) {
        for runs in runs.chunk_by(|one, next| one.index == next.index) {
            let Some(pending) = runs.first().and_then(|run| self.remove(run.index)) else {
                continue;
            };
            self.totals.released += u64::from(pending.live);
            for run in runs {
                self.push_ended(Ended { run: *run, how: EndedHow::Released });
            }
        }
    }

    /// Messages leave without being released; those that are not pending are passed over.
    pub(crate) fn cancel(&mut self, how: CancelHow, ids: &[DelayId]) {
        for id in ids {
            let Some(at) = self.find(id.index) else { continue };
            let place = &mut self.places[at];
            let cancelled = self.cancelled.entry(id.index).or_default();
            let known = cancelled.binary_search(&id.position);
            if let Err(to) = known
                && id.position < place.count
            {
                cancelled.insert(to, id.position);
                place.live -= 1;
                self.messages -= 1;
                match how {
                    CancelHow::Asked => self.totals.cancelled += 1,
                    CancelHow::Lost => self.totals.lost += 1,
                }
                let run = DelayRun { index: id.index, first: id.position, count: 1 };
                self.push_ended(Ended { run, how: EndedHow::Cancelled });
            }
            if self.cancelled.get(&id.index).is_some_and(Vec::is_empty) {
                self.cancelled.remove(&id.index);
            }
            if self.places[at].live == 0 {
                self.vacate(id.index);
            }
        }
    }

    fn remove(&mut self, index: EntryIndex) -> Option<Pending> {
        let at = self.find(index)?;
        let place = &mut self.places[at];
        let pending = *place;
        place.live = 0;
        self.messages -= u64::from(pending.live);
        self.vacate(index);
        Some(pending)
    }

    /// An entry's place has become empty.
    fn vacate(&mut self, index: EntryIndex) {
        self.cancelled.remove(&index);
        self.empty += 1;
        while self.places.front().is_some_and(|place| place.live == 0) {
            self.places.pop_front();
            self.empty -= 1;
        }
        if self.empty >= EMPTY_MIN && self.empty * 2 > self.places.len() {
            self.places.retain(|place| place.live > 0);
            self.empty = 0;
            let spare = self.places.capacity() / 4;
            if self.places.len() < spare {
                self.places.shrink_to(self.places.len() * 2);
            }
        }
    }

    fn push_ended(&mut self, ended: Ended) {
        if self.ended.len() == DELAY_ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// Asserts what must hold between any two calls.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn check(&self) {
        let live: u64 = self.pending().map(|pending| u64::from(pending.live)).sum();
        assert!(live == self.messages, "{live} messages are pending, {} counted", self.messages);
        let DelayTotals { scheduled, released, cancelled, lost } = self.totals;
        assert!(
            scheduled == released + cancelled + lost + self.messages,
            "every delayed message is pending, released, cancelled or lost: {self:?}"
        );
        let empty = self.places.iter().filter(|place| place.live == 0).count();
        assert!(empty == self.empty, "empty places are counted");
        assert!(self.places.front().is_none_or(|place| place.live > 0), "the floor is pending");
        for (index, places) in &self.cancelled {
            let pending = self.get(*index).expect("what is cancelled in part is pending");
            assert!(u64::from(pending.live) + places.len() as u64 == u64::from(pending.count));
        }
    }
}
