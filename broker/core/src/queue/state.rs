//! Owns the folded state of one queue subscription on one partition: what is settled, what has failed,
//! what is on its way to a dead letter topic. Never knows a lease, a consumer or a clock. Driven by the
//! fold of the partition; read by the leader's dispatcher.
//!
//! Conservation, asserted with every change. `end` is the offset behind the last applied entry:
//!
//! ```text
//! (end - start) + reopened = acked + dead + expired + evicted + unsettled
//! ```
//! `start` is where the subscription began. A seek settles what is unsettled below its target as
//! evicted, and has the settled messages from its target on (also those before `start`) unsettled again:
//! `reopened` counts these, so that each delivery that a seek allows once more is accounted for once more.

use std::collections::BTreeMap;

use postrider_protocol::types::{Offset, PartitionId, Sequence, TimestampMs, TopicId};

use super::consumer_name::ConsumerName;
use super::gone::Gone;
use super::settled::{OffsetRange, SettledSet};

/// Why a message came back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum ReturnCause {
    /// The consumer said that it failed.
    Nack = 0,
    /// The lease ended.
    LeaseExpired = 1,
    /// The consumer was lost while it had begun with the message.
    SessionLost = 2,
    /// The consumer rejected it, when the dead letter topic was not known yet.
    Rejected = 3,
}

/// Why a message is dead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum DeadCause {
    /// It has failed as often as the policy allows.
    MaxFailures = 0,
    /// A consumer rejected it.
    Rejected = 1,
    /// It was too old.
    Expired = 2,
    /// The queue held more than its topic allows.
    Overflow = 3,
    /// It is a dead letter, and somebody sent it back to its topic.
    Redriven = 4,
}

/// How messages were settled, other than by a dead letter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum SettleHow {
    /// A consumer acknowledged them.
    Acked = 0,
    /// They were too old.
    Expired = 1,
    /// They left the queue unprocessed: a purge, a seek, retention, damage, or newer ones had no room.
    Evicted = 2,
}

/// What is known of an unsettled message that has failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// How often.
    pub failures: u32,
    /// Not to be handed out before this.
    pub due: TimestampMs,
    /// Why it came back last.
    pub cause: ReturnCause,
    /// When it came back first.
    pub first: TimestampMs,
    /// When it came back last.
    pub last: TimestampMs,
    /// What the consumer said last.
    pub reason: String,
    /// Who had it last.
    pub consumer: ConsumerName,
}

/// Where dead letters go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeadTarget {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
}

/// A message that is to be published in a dead letter topic, once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// The subscription's epoch when it was decided; with the offset, the letter's name.
    pub sub_epoch: u64,
    /// The message.
    pub offset: Offset,
    /// Why.
    pub cause: DeadCause,
    /// How often it has failed.
    pub failures: u32,
    /// How often it was handed out since the broker's start.
    pub attempts: u32,
    /// Where to.
    pub target: DeadTarget,
    /// Its number among the letters of this subscription and partition to this target, from 0.
    pub sequence: Sequence,
    /// When it failed first.
    pub first: TimestampMs,
    /// When it failed last.
    pub last: TimestampMs,
    /// What the consumer said last.
    pub reason: String,
    /// Who had it last.
    pub consumer: ConsumerName,
}

/// Messages that left the queue, by how. They count since the subscription began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Acknowledged.
    pub acked: u64,
    /// Published in a dead letter topic.
    pub dead: u64,
    /// Too old.
    pub expired: u64,
    /// Unprocessed.
    pub evicted: u64,
}

/// A queue subscription on one partition, as far as the log tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueState {
    pub(crate) sub_epoch: u64,
    pub(crate) start: Offset,
    pub(crate) settled: SettledSet,
    /// Of unsettled messages only.
    pub(crate) failures: BTreeMap<Offset, Failure>,
    /// By epoch and offset. Letters of earlier epochs are counted as dead and still to be published.
    pub(crate) dead: BTreeMap<(u64, Offset), DeadLetter>,
    pub(crate) next_dead: BTreeMap<DeadTarget, Sequence>,
    pub(crate) totals: Totals,
    pub(crate) reopened: u64,
    pub(crate) gone: Gone,
}

impl QueueState {
    pub(crate) fn new(start: Offset) -> Self {
        Self {
            sub_epoch: 0,
            start,
            settled: SettledSet::new(start),
            failures: BTreeMap::new(),
            dead: BTreeMap::new(),
            next_dead: BTreeMap::new(),
            totals: Totals::default(),
            reopened: 0,
            gone: Gone::default(),
        }
    }

    /// Rises with every seek and purge: leases before it are void.
    #[must_use]
    pub fn sub_epoch(&self) -> u64 {
        self.sub_epoch
    }

    /// Where the subscription began.
    #[must_use]
    pub fn start(&self) -> Offset {
        self.start
    }

    /// Everything below is settled.
    #[must_use]
    pub fn floor(&self) -> Offset {
        self.settled.floor()
    }

    /// What is settled.
    #[must_use]
    pub fn settled(&self) -> &SettledSet {
        &self.settled
    }

    /// What is known of unsettled messages that have failed.
    #[must_use]
    pub fn failures(&self) -> &BTreeMap<Offset, Failure> {
        &self.failures
    }

    /// Letters that are decided and not known to be published, by epoch and offset.
    pub fn dead_letters(&self) -> impl Iterator<Item = &DeadLetter> {
        self.dead.values()
    }

    /// What left the queue.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Messages that seeks made unsettled once more.
    #[must_use]
    pub fn reopened(&self) -> u64 {
        self.reopened
    }

    /// Which messages left otherwise than by an ack, as far as is remembered.
    pub(crate) fn gone(&self) -> &Gone {
        &self.gone
    }

    /// Messages below `end` that are not settled.
    #[must_use]
    pub fn unsettled(&self, end: Offset) -> u64 {
        self.settled.missing_below(end)
    }

    /// The number that the next letter to this target gets.
    #[must_use]
    pub(crate) fn next_dead(&self, target: DeadTarget) -> Sequence {
        self.next_dead.get(&target).copied().unwrap_or_default()
    }

    /// Whether a letter is decided and not known to be published.
    pub(crate) fn has_letter(&self, sub_epoch: u64, offset: Offset) -> bool {
        self.dead.contains_key(&(sub_epoch, offset))
    }

    pub(crate) fn is_dying(&self, offset: Offset) -> bool {
        self.dead.contains_key(&(self.sub_epoch, offset))
    }

    fn is_open(&self, offset: Offset, at: Offset) -> bool {
        offset < at && !self.settled.contains(offset)
    }

    /// Settles ranges; `at` is the offset of the entry that says so.
    pub(crate) fn settle(&mut self, how: SettleHow, ranges: &[OffsetRange], at: Offset) {
        let mut count = 0;
        for range in ranges {
            let range = OffsetRange { start: range.start, end: range.end.min(at) };
            count += self.settled.insert(range);
            if how != SettleHow::Acked {
                self.gone.note(range);
            }
            self.forget_failures(range);
        }
        match how {
            SettleHow::Acked => self.totals.acked += count,
            SettleHow::Expired => self.totals.expired += count,
            SettleHow::Evicted => self.totals.evicted += count,
        }
        self.check_conservation(at);
    }

    fn forget_failures(&mut self, range: OffsetRange) {
        while !self.failures.is_empty()
            && let Some((offset, _)) =
                self.failures.range(range.start..range.end.max(range.start)).next()
        {
            let offset = *offset;
            self.failures.remove(&offset);
        }
    }

    /// Remembers that a message came back. `failure.first` and `failure.last` are when.
    pub(crate) fn fail(&mut self, offset: Offset, failure: Failure, at: Offset) {
        if !self.is_open(offset, at) || self.is_dying(offset) {
            return;
        }
        match self.failures.get_mut(&offset) {
            Some(known) => {
                let (first, failures) = (known.first, known.failures.max(failure.failures));
                *known = Failure { first, failures, ..failure };
            }
            None => {
                self.failures.insert(offset, failure);
            }
        }
    }

    /// Remembers that a message is to be published in a dead letter topic.
    pub(crate) fn die(&mut self, letter: DeadLetter, at: Offset) {
        let next = self.next_dead.entry(letter.target).or_default();
        *next = (*next).max(Sequence(letter.sequence.0.saturating_add(1)));
        if self.is_open(letter.offset, at) {
            self.failures.remove(&letter.offset);
            self.dead.insert((letter.sub_epoch, letter.offset), letter);
        }
    }

    /// Settles what is published in its dead letter topic.
    pub(crate) fn bury(&mut self, sub_epoch: u64, offsets: &[Offset], at: Offset) {
        for offset in offsets {
            let known = self.dead.remove(&(sub_epoch, *offset)).is_some();
            if known && sub_epoch == self.sub_epoch {
                self.gone.note(one(*offset));
                self.totals.dead += self.settled.insert(one(*offset));
            }
        }
        self.check_conservation(at);
    }

    /// Begins a new epoch at `to`. What is dying is dead; its letters are still to be published.
    pub(crate) fn seek(&mut self, sub_epoch: u64, to: Offset, at: Offset) {
        let dying: Vec<Offset> = self
            .dead
            .range((self.sub_epoch, Offset(0))..)
            .map(|((_, offset), _)| *offset)
            .collect();
        for offset in dying {
            self.gone.note(one(offset));
            self.totals.dead += self.settled.insert(one(offset));
        }
        let left = self.settled.missing_in(OffsetRange::new(0, to.0.min(at.0)));
        left.into_iter().for_each(|range| self.gone.note(range));
        self.gone.reopen_from(to);
        let (evicted, reopened) = self.settled.reset(to, at);
        self.totals.evicted += evicted;
        self.reopened += reopened;
        self.failures.clear();
        self.sub_epoch = sub_epoch;
        self.check_conservation(at);
    }

    /// Whether each message below `end` is counted, and once.
    #[must_use]
    pub fn is_conserved(&self, end: Offset) -> bool {
        let Totals { acked, dead, expired, evicted } = self.totals;
        let end = end.max(self.start);
        let left = [acked, dead, expired, evicted, self.unsettled(end)];
        let left = left.into_iter().try_fold(0_u64, u64::checked_add);
        left.is_some() && (end.0 - self.start.0).checked_add(self.reopened) == left
    }

    fn check_conservation(&self, end: Offset) {
        assert!(self.is_conserved(end), "messages of a queue are conserved up to {end}: {self:?}");
    }

    /// Asserts the shape. Costs as much as the state is large.
    pub(crate) fn check(&self, end: Offset) {
        self.settled.check();
        self.check_conservation(end);
        for offset in self.failures.keys() {
            assert!(self.is_open(*offset, end), "{offset}: only unsettled messages have failures");
            assert!(!self.is_dying(*offset), "{offset}: a dead message fails no more");
        }
        for ((epoch, offset), letter) in &self.dead {
            assert!((*epoch, *offset) == (letter.sub_epoch, letter.offset), "letters are in place");
            assert!(letter.sequence < self.next_dead(letter.target), "sequences are counted");
        }
    }
}

fn one(offset: Offset) -> OffsetRange {
    OffsetRange::new(offset.0, offset.0.saturating_add(1))
}
