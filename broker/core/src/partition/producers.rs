//! Owns the producer sessions of one partition: epoch, next sequence, and a ring of recent runs that
//! answers retries with the first outcome. Never knows a connection or what is not committed. Driven by
//! the fold; read by the leader.
//!
//! An entry stores the low 31 bits of its first sequence, in the Kafka field. The session's next
//! sequence tells the rest: leaders append only at or above it, and less than 2^31 above.

use std::collections::{BTreeMap, VecDeque};

use postrider_protocol::types::{
    EntryIndex, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs,
};

use crate::limits::SESSION_RUNS_MAX;

/// The bits of a sequence that an entry stores.
const SEQUENCE_LOW_MASK: u64 = (1 << 31) - 1;

/// What a batch says about its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataChange {
    /// The session, or [`ProducerId::NONE`].
    pub producer: ProducerId,
    /// The session's epoch.
    pub epoch: ProducerEpoch,
    /// The low 31 bits of the first sequence.
    pub sequence_low: u32,
    /// Sequences covered.
    pub seq_count: u32,
    /// Messages, hence offsets, covered.
    pub record_count: u32,
}

/// The bits of `sequence` that an entry stores.
#[must_use]
pub(crate) fn sequence_low(sequence: Sequence) -> u32 {
    u32::try_from(sequence.0 & SEQUENCE_LOW_MASK).expect("31 bits fit")
}

/// The first sequence at or above `next` with these low 31 bits.
#[must_use]
pub(crate) fn unwrap_sequence(next: Sequence, low: u32) -> Sequence {
    let ahead = u64::from(low).wrapping_sub(next.0) & SEQUENCE_LOW_MASK;
    Sequence(next.0.saturating_add(ahead))
}

/// Where sequences in a row landed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunPlace {
    /// At offsets in a row, from this one on.
    Offsets(Offset),
    /// In this Delayed entry, which they are all of; they have no offsets yet, or got some later.
    Delayed(EntryIndex),
}

/// Sequences in a row that landed in a row, at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first sequence.
    pub base_sequence: Sequence,
    /// Where it is.
    pub place: RunPlace,
    /// When they were appended.
    pub append_time: TimestampMs,
    /// How many.
    pub count: u32,
}

impl Run {
    /// One past the last sequence.
    #[must_use]
    pub fn end_sequence(&self) -> Sequence {
        Sequence(self.base_sequence.0 + u64::from(self.count))
    }

    fn extends(&self, earlier: &Self) -> Option<u32> {
        let (RunPlace::Offsets(before), RunPlace::Offsets(offset)) = (earlier.place, self.place)
        else {
            return None;
        };
        let adjacent = earlier.end_sequence() == self.base_sequence
            && before.0 + u64::from(earlier.count) == offset.0
            && earlier.append_time == self.append_time;
        adjacent.then(|| earlier.count.checked_add(self.count)).flatten()
    }
}

/// One producer's session on this partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerSession {
    pub(super) epoch: ProducerEpoch,
    pub(super) next_sequence: Sequence,
    pub(super) last_active: TimestampMs,
    pub(super) runs: VecDeque<Run>,
}

impl ProducerSession {
    pub(super) fn new(epoch: ProducerEpoch, now: TimestampMs) -> Self {
        Self { epoch, next_sequence: Sequence(0), last_active: now, runs: VecDeque::new() }
    }

    /// The newest epoch seen.
    #[must_use]
    pub fn epoch(&self) -> ProducerEpoch {
        self.epoch
    }

    /// One past the last stored sequence of the epoch.
    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    /// The append time of its newest entry.
    #[must_use]
    pub fn last_active(&self) -> TimestampMs {
        self.last_active
    }

    /// The remembered runs, oldest first. What lies between two of them was never stored.
    #[must_use]
    pub fn runs(&self) -> &VecDeque<Run> {
        &self.runs
    }

    /// The run that holds `sequence`, else the first one above it.
    #[must_use]
    pub(super) fn run_at_or_above(&self, sequence: Sequence) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.end_sequence() <= sequence);
        self.runs.get(at)
    }

    /// Whether sequences just below `run` may have been stored and dropped from the ring.
    #[must_use]
    pub(super) fn may_have_forgotten(&self, run: &Run) -> bool {
        self.runs.len() == SESSION_RUNS_MAX && self.runs.front() == Some(run)
    }

    fn start_epoch(&mut self, epoch: ProducerEpoch) {
        self.epoch = epoch;
        self.next_sequence = Sequence(0);
        self.runs.clear();
    }

    fn push(&mut self, run: Run) {
        self.next_sequence = run.end_sequence();
        self.last_active = run.append_time;
        if let Some(last) = self.runs.back_mut()
            && let Some(count) = run.extends(last)
        {
            last.count = count;
            return;
        }
        if self.runs.len() == SESSION_RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
    }
}

/// The sessions of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Producers {
    pub(super) sessions: BTreeMap<ProducerId, ProducerSession>,
    /// The greatest id ever forgotten here, else [`ProducerId::NONE`]. An unknown id above it never had
    /// a session on this partition.
    pub(super) expired_max: ProducerId,
}

impl Default for Producers {
    fn default() -> Self {
        Self { sessions: BTreeMap::new(), expired_max: ProducerId::NONE }
    }
}

impl Producers {
    /// The session of `producer`.
    #[must_use]
    pub fn session(&self, producer: ProducerId) -> Option<&ProducerSession> {
        self.sessions.get(&producer)
    }

    /// All sessions, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &ProducerSession)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The greatest id ever forgotten here, [`ProducerId::NONE`] if none was.
    #[must_use]
    pub fn expired_max(&self) -> ProducerId {
        self.expired_max
    }

    /// Counts a stored batch. One of an epoch that is fenced changes nothing: no leader appends such.
    pub(super) fn apply_data(&mut self, data: &DataChange, offset: Offset, time: TimestampMs) {
        self.apply_at(data, RunPlace::Offsets(offset), time);
    }

    /// The same of a delayed batch.
    pub(super) fn apply_delayed(
        &mut self,
        data: &DataChange,
        index: EntryIndex,
        time: TimestampMs,
    ) {
        self.apply_at(data, RunPlace::Delayed(index), time);
    }

    fn apply_at(&mut self, data: &DataChange, place: RunPlace, time: TimestampMs) {
        if data.producer == ProducerId::NONE {
            return;
        }
        let session = self
            .sessions
            .entry(data.producer)
            .or_insert_with(|| ProducerSession::new(data.epoch, time));
        if data.epoch < session.epoch {
            return;
        }
        if data.epoch > session.epoch {
            session.start_epoch(data.epoch);
        }
        session.push(Run {
            base_sequence: unwrap_sequence(session.next_sequence, data.sequence_low),
            place,
            append_time: time,
            count: data.seq_count,
        });
    }

    pub(super) fn fence(&mut self, producer: ProducerId, epoch: ProducerEpoch, time: TimestampMs) {
        let session =
            self.sessions.entry(producer).or_insert_with(|| ProducerSession::new(epoch, time));
        session.last_active = time;
        if epoch > session.epoch {
            session.start_epoch(epoch);
        }
    }

    pub(super) fn expire(&mut self, producers: &[ProducerId]) {
        for producer in producers {
            self.sessions.remove(producer);
            self.expired_max = self.expired_max.max(*producer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(epoch: u16, sequence: u64, count: u32) -> DataChange {
        DataChange {
            producer: ProducerId(1),
            epoch: ProducerEpoch(epoch),
            sequence_low: sequence_low(Sequence(sequence)),
            seq_count: count,
            record_count: count,
        }
    }

    #[test]
    fn sequences_unwrap_relative_to_the_session() {
        let wrap = 1 << 31;
        for (next, sequence) in [
            (0, 0),
            (0, wrap - 1),
            (5, 5),
            (wrap - 1, wrap - 1),
            (wrap - 1, wrap),
            (wrap, 2 * wrap - 1),
            (7 * wrap + 3, 8 * wrap + 2),
            (u64::from(u32::MAX), u64::from(u32::MAX) + 1),
        ] {
            let low = sequence_low(Sequence(sequence));
            assert_eq!(unwrap_sequence(Sequence(next), low), Sequence(sequence), "{next}");
        }
    }

    #[test]
    fn batches_of_one_moment_share_a_run() {
        let mut producers = Producers::default();
        producers.apply_data(&data(0, 0, 3), Offset(10), TimestampMs(1));
        producers.apply_data(&data(0, 3, 2), Offset(13), TimestampMs(1));
        producers.apply_data(&data(0, 5, 1), Offset(15), TimestampMs(2));
        producers.apply_data(&data(0, 6, 1), Offset(20), TimestampMs(2));
        let session = producers.session(ProducerId(1)).unwrap();
        assert_eq!(session.runs().iter().map(|run| run.count).collect::<Vec<_>>(), [5, 1, 1]);
        assert_eq!(session.next_sequence(), Sequence(7));
    }

    #[test]
    fn the_ring_forgets_the_oldest_run() {
        let mut producers = Producers::default();
        let more = SESSION_RUNS_MAX as u64 + 10;
        for sequence in 0..more {
            producers.apply_data(&data(0, sequence, 1), Offset(sequence), TimestampMs(sequence));
        }
        let session = producers.session(ProducerId(1)).unwrap();
        assert_eq!(session.runs().len(), SESSION_RUNS_MAX);
        assert_eq!(session.run_at_or_above(Sequence(3)).unwrap().base_sequence, Sequence(10));
        assert_eq!(session.next_sequence(), Sequence(more));
    }

    #[test]
    fn a_higher_epoch_begins_at_sequence_zero_and_a_lower_one_is_ignored() {
        let mut producers = Producers::default();
        producers.apply_data(&data(0, 0, 3), Offset(0), TimestampMs(1));
        producers.apply_data(&data(2, 0, 1), Offset(3), TimestampMs(2));
        producers.apply_data(&data(1, 0, 9), Offset(4), TimestampMs(3));
        let session = producers.session(ProducerId(1)).unwrap();
        assert_eq!((session.epoch(), session.next_sequence()), (ProducerEpoch(2), Sequence(1)));
        assert_eq!(session.runs().len(), 1);
    }

    #[test]
    fn expiry_remembers_the_greatest_forgotten_id() {
        let mut producers = Producers::default();
        producers.fence(ProducerId(4), ProducerEpoch(1), TimestampMs(0));
        producers.expire(&[ProducerId(4), ProducerId(2)]);
        assert!(producers.is_empty());
        assert_eq!(producers.expired_max(), ProducerId(4));
    }
}
