//! Owns the bytes of a partition's state in a snapshot. Never writes them anywhere. Driven by the join,
//! which hands them to storage and gets them back after a restart.
//!
//! Little-endian; `v` is a canonical varint of 7 bits per byte; all bytes are consumed.
//!
//! ```text
//! u8 version 3 | u64 end index | u64 end offset | u64 append_time | u16 apply_version
//! u32 count | count x (u32 leader_epoch | u64 start index | u64 start offset)
//! i64 expired_max
//! u32 count | count x (i64 producer | u16 epoch | u64 next_sequence | u64 last_active
//!                      | u32 runs | runs x (v sequence gap | v offset gap | v time step | v count))
//! u32 count | count x (16 subscription | u8 mode (0 stream, 1 queue) | u64 acked | u64 epoch)
//! then, for each subscription of mode 1, in the same order: its queue, as `queue_snapshot` says
//! u8 count | count x (u8 tag | u32 len | len bytes: the section), tags rising
//! ```
//! Gaps are measured from the end of the run before; the first one from zero. What a feature adds to the
//! state is a section of its own, left out while it is empty, so that features need not know each other's
//! versions; a tag that is not known here means a later version of the broker. Version 2 had no sections,
//! version 1 no mode 1 either; such snapshots still decode.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::types::{Offset, ProducerId, Sequence, SubscriptionId, TimestampMs};

use super::command::SubscriptionMode;
use super::delay_snapshot::{self, DELAY_SECTION};
use super::producers::{ProducerSession, Producers, Run, RunPlace};
use super::queue_snapshot::{self, CONSUMERS_SECTION, GONE_SECTION};
use super::state::{APPLY_VERSION, EpochRange, PartitionState};
use super::subscriptions::{SubscriptionState, Subscriptions};
use crate::cursors::Position;
use crate::dedup::{DedupDecodeError, DedupIndex, Generation};
use crate::delay::DelayLane;
use crate::limits::{EPOCHS_MAX, SESSION_RUNS_MAX};
use crate::queue::QueueState;

const SNAPSHOT_VERSION: u8 = 3;
/// The idempotency keys, as `dedup/snapshot.rs` says.
const DEDUP_SECTION: u8 = 5;
/// Without sections.
const SNAPSHOT_VERSION_PLAIN: u8 = 2;
/// Without queues.
const SNAPSHOT_VERSION_STREAMS: u8 = 1;

impl PartitionState {
    /// The state's bytes. The snapshot covers everything below [`PartitionState::end`].
    #[must_use]
    pub fn encode_snapshot(&self) -> Bytes {
        self.draft_snapshot().encode()
    }

    /// The same, so far as it has to be done before the state changes again.
    #[must_use]
    pub fn draft_snapshot(&self) -> SnapshotDraft {
        let mut bytes = BytesMut::new();
        let mut out = Writer::new(&mut bytes);
        out.put(&SNAPSHOT_VERSION);
        out.put(&self.end);
        out.put(&self.append_time);
        out.put(&self.apply_version);
        out.put(&self.epochs);
        out.put(&self.producers.expired_max);
        out.count(self.producers.sessions.len());
        for (producer, session) in &self.producers.sessions {
            out.put(producer);
            out.put(session);
        }
        out.count(self.subscriptions.by_id.len());
        for (id, state) in &self.subscriptions.by_id {
            out.put(id);
            out.put(state);
        }
        for queue in self.queues.values() {
            out.put(queue);
        }
        let delays = delay_snapshot::encode(&self.delays, &self.producers);
        let gone = queue_snapshot::encode_gone(&self.queues);
        let consumers = queue_snapshot::encode_consumers(&self.queues);
        let sections =
            [(DELAY_SECTION, delays), (CONSUMERS_SECTION, consumers), (GONE_SECTION, gone)];
        let sections: Vec<(u8, Bytes)> =
            sections.into_iter().filter_map(|(tag, bytes)| Some((tag, bytes?))).collect();
        let dedup = Some(self.dedup.clone()).filter(|dedup| !dedup.is_empty());
        SnapshotDraft { bytes, sections, dedup }
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// The bytes are not one canonical snapshot, or belong to a later version of the broker. The
    /// caller falls back to an older snapshot and more entries.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut input = Reader::new(bytes);
        let version: u8 = input.take()?;
        if !(SNAPSHOT_VERSION_STREAMS..=SNAPSHOT_VERSION).contains(&version) {
            return Err(SnapshotError::Version(version));
        }
        let end: Position = input.take()?;
        let append_time = input.take()?;
        let apply_version = input.take()?;
        if apply_version > APPLY_VERSION {
            return Err(SnapshotError::ApplyVersion(apply_version));
        }
        let epochs: Vec<EpochRange> = input.take()?;
        if epochs.len() > EPOCHS_MAX {
            return Err(DecodeError::Invalid("epoch count").into());
        }
        let mut producers = take_producers(&mut input)?;
        let by_id = take_map::<SubscriptionId, SubscriptionState>(&mut input)?;
        let mut queues = BTreeMap::new();
        for (id, _) in by_id.iter().filter(|(_, state)| state.mode == SubscriptionMode::Queue) {
            if version == SNAPSHOT_VERSION_STREAMS {
                return Err(DecodeError::Invalid("subscription mode").into());
            }
            let queue: QueueState = input.take()?;
            if !queue.is_conserved(end.offset) {
                return Err(DecodeError::Invalid("totals of a queue").into());
            }
            queues.insert(*id, queue);
        }
        let mut sections = if version > SNAPSHOT_VERSION_PLAIN {
            take_sections(&mut input)?
        } else {
            BTreeMap::new()
        };
        input.finish()?;
        let delays = match sections.remove(&DELAY_SECTION) {
            Some(section) => delay_snapshot::decode(section, end.index, &mut producers)?,
            None => DelayLane::default(),
        };
        if let Some(section) = sections.remove(&CONSUMERS_SECTION) {
            queue_snapshot::decode_consumers(section, &mut queues)?;
        }
        if let Some(section) = sections.remove(&GONE_SECTION) {
            queue_snapshot::decode_gone(section, &mut queues)?;
        }
        let dedup = match sections.remove(&DEDUP_SECTION) {
            Some(section) => take_dedup(section, append_time)?,
            None => DedupIndex::default(),
        };
        check_runs(&producers)?;
        if let Some(tag) = sections.keys().next() {
            return Err(SnapshotError::Section(*tag));
        }
        let subscriptions = Subscriptions { by_id };
        Ok(Self {
            end,
            append_time,
            apply_version,
            epochs,
            producers,
            subscriptions,
            queues,
            delays,
            dedup,
        })
    }
}

/// No key was appended after everything that the snapshot covers.
fn take_dedup(section: &[u8], append_time: TimestampMs) -> Result<DedupIndex, SnapshotError> {
    let dedup = DedupIndex::decode(section)?;
    let last = dedup.generations().filter_map(Generation::times).map(|(_first, last)| last).max();
    match last.is_none_or(|last| last <= append_time) {
        true => Ok(dedup),
        false => Err(DecodeError::Invalid("time of an idempotency key").into()),
    }
}

/// A snapshot of which the large part is still to be written: many idempotency keys take a while, and the partition
/// need not wait for it.
#[derive(Debug)]
pub struct SnapshotDraft {
    bytes: BytesMut,
    sections: Vec<(u8, Bytes)>,
    dedup: Option<DedupIndex>,
}

impl SnapshotDraft {
    /// The bytes.
    ///
    /// # Panics
    /// The keys take 4 GiB or more: the bound of their memory is below that, and they take less here.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let Self { mut bytes, sections, dedup } = self;
        put_sections(&mut Writer::new(&mut bytes), &sections, usize::from(dedup.is_some()));
        if let Some(dedup) = dedup {
            bytes.put_u8(DEDUP_SECTION);
            let at = bytes.len();
            bytes.put_u32_le(0);
            dedup.encode(&mut bytes);
            let len = u32::try_from(bytes.len() - at - 4).expect("keys take less than 4 GiB");
            bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        bytes.freeze()
    }
}

/// A session goes on behind the last of its runs.
fn check_runs(producers: &Producers) -> Result<(), DecodeError> {
    let fits = |session: &ProducerSession| {
        session.runs.back().is_none_or(|run| run.end_sequence() == session.next_sequence)
    };
    match producers.sessions.values().all(fits) {
        true => Ok(()),
        false => Err(DecodeError::Invalid("next sequence")),
    }
}

/// Sections by rising tag. So many more follow.
fn put_sections(out: &mut Writer<'_>, sections: &[(u8, Bytes)], more: usize) {
    assert!(sections.is_sorted_by(|a, b| a.0 < b.0), "sections stand in the order of their tags");
    out.put(&u8::try_from(sections.len() + more).expect("a tag is a byte, each stands once"));
    for (tag, bytes) in sections {
        out.put(tag);
        out.put(&u32::try_from(bytes.len()).expect("a snapshot is far below 4 GiB"));
        out.bytes(bytes);
    }
}

fn take_sections<'a>(input: &mut Reader<'a>) -> Result<BTreeMap<u8, &'a [u8]>, DecodeError> {
    let count: u8 = input.take()?;
    let mut sections = BTreeMap::new();
    for _ in 0..count {
        let tag: u8 = input.take()?;
        if sections.last_key_value().is_some_and(|(last, _)| *last >= tag) {
            return Err(DecodeError::Invalid("order of sections"));
        }
        let len: u32 = input.take()?;
        let len = usize::try_from(len).map_err(|_above_usize| DecodeError::Invalid("section"))?;
        sections.insert(tag, input.bytes(len)?);
    }
    Ok(sections)
}

fn take_producers(input: &mut Reader<'_>) -> Result<Producers, DecodeError> {
    let expired_max = input.take()?;
    let sessions = take_map::<ProducerId, ProducerSession>(input)?;
    Ok(Producers { sessions, expired_max })
}

/// A map whose keys rise.
pub(super) fn take_map<K: Wire + Ord, V: Wire>(
    input: &mut Reader<'_>,
) -> Result<BTreeMap<K, V>, DecodeError> {
    let count = input.count(K::BYTES_MIN + V::BYTES_MIN)?;
    let mut map = BTreeMap::new();
    for _ in 0..count {
        let key: K = input.take()?;
        if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(DecodeError::Invalid("order of ids"));
        }
        let value = input.take()?;
        map.insert(key, value);
    }
    Ok(map)
}

impl Wire for Position {
    const BYTES_MIN: usize = 16;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.index);
        out.put(&self.offset);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { index: input.take()?, offset: input.take()? })
    }
}

impl Wire for EpochRange {
    const BYTES_MIN: usize = 20;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.epoch);
        out.put(&self.start);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: input.take()?, start: input.take()? })
    }
}

impl Wire for SubscriptionState {
    const BYTES_MIN: usize = 17;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.mode);
        out.put(&self.acked);
        out.put(&self.owner_epoch);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mode = input.take()?;
        Ok(Self { acked: input.take()?, owner_epoch: input.take()?, mode })
    }
}

impl Wire for ProducerSession {
    const BYTES_MIN: usize = 2 + 8 + 8 + 4;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.epoch);
        out.put(&self.next_sequence);
        out.put(&self.last_active);
        // Delayed ones stand in their section.
        let offset_of = |run: &Run| match run.place {
            RunPlace::Offsets(offset) => Some(offset.0),
            RunPlace::Delayed(_) => None,
        };
        let with_offsets = || self.runs.iter().filter_map(|run| Some((run, offset_of(run)?)));
        out.count(with_offsets().count());
        let (mut sequence, mut end_offset, mut time) = (0, 0, 0);
        for (run, offset) in with_offsets() {
            put_varint(out, run.base_sequence.0 - sequence);
            put_varint(out, offset - end_offset);
            put_varint(out, run.append_time.0 - time);
            put_varint(out, u64::from(run.count));
            end_offset = offset + u64::from(run.count);
            (sequence, time) = (run.end_sequence().0, run.append_time.0);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let epoch = input.take()?;
        let next_sequence = input.take()?;
        let last_active = input.take()?;
        let runs = take_runs(input)?;
        Ok(Self { epoch, next_sequence, last_active, runs })
    }
}

fn take_runs(input: &mut Reader<'_>) -> Result<VecDeque<Run>, DecodeError> {
    let invalid = DecodeError::Invalid("run");
    let count = input.count(4)?;
    if count > SESSION_RUNS_MAX {
        return Err(invalid);
    }
    let mut runs = VecDeque::with_capacity(count);
    let (mut sequence, mut offset, mut time) = (0_u64, 0_u64, 0_u64);
    for _ in 0..count {
        sequence = sequence.checked_add(take_varint(input)?).ok_or(invalid)?;
        offset = offset.checked_add(take_varint(input)?).ok_or(invalid)?;
        time = time.checked_add(take_varint(input)?).ok_or(invalid)?;
        let count = u32::try_from(take_varint(input)?).map_err(|_above_u32| invalid)?;
        if count == 0 {
            return Err(invalid);
        }
        runs.push_back(Run {
            base_sequence: Sequence(sequence),
            place: RunPlace::Offsets(Offset(offset)),
            append_time: TimestampMs(time),
            count,
        });
        sequence = sequence.checked_add(u64::from(count)).ok_or(invalid)?;
        offset = offset.checked_add(u64::from(count)).ok_or(invalid)?;
    }
    Ok(runs)
}

pub(super) fn put_varint(out: &mut Writer<'_>, mut value: u64) {
    while value >= 0x80 {
        out.put(&(u8::try_from(value & 0x7f).expect("7 bits fit") | 0x80));
        value >>= 7;
    }
    out.put(&u8::try_from(value).expect("7 bits fit"));
}

pub(super) fn take_varint(input: &mut Reader<'_>) -> Result<u64, DecodeError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte: u8 = input.take()?;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
            return Err(DecodeError::Invalid("varint"));
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Invalid("varint"))
}

/// Why bytes are not a snapshot that this build can use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The snapshot belongs to a later version of the broker.
    #[error("the snapshot has version {0}, which is not known here")]
    Version(u8),
    /// Its entries were applied by rules of a later version of the broker.
    #[error("the snapshot has apply version {0}, which is not known here")]
    ApplyVersion(u16),
    /// It holds a part that belongs to a later version of the broker.
    #[error("the snapshot has a section {0}, which is not known here")]
    Section(u8),
    /// The idempotency keys in it are no such, or of a later version.
    #[error(transparent)]
    Dedup(#[from] DedupDecodeError),
    /// The bytes are not canonical.
    #[error("the snapshot is malformed: {0}")]
    Malformed(#[from] DecodeError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_canonical() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = BytesMut::new();
            put_varint(&mut Writer::new(&mut bytes), value);
            assert_eq!(take_varint(&mut Reader::new(&bytes)), Ok(value));
        }
        for refused in [&[0x80, 0][..], &[0x80], &[0xff; 10], &[0xff; 11]] {
            assert!(take_varint(&mut Reader::new(refused)).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_snapshot_of_another_version_is_refused() {
        let mut bytes = PartitionState::default().encode_snapshot().to_vec();
        assert_eq!(PartitionState::decode_snapshot(&bytes), Ok(PartitionState::default()));
        bytes[0] = 9;
        assert_eq!(PartitionState::decode_snapshot(&bytes), Err(SnapshotError::Version(9)));
    }

    #[test]
    fn a_snapshot_without_sections_still_decodes() {
        let mut bytes = PartitionState::default().encode_snapshot().to_vec();
        assert_eq!(bytes.pop(), Some(0), "an empty state has no section");
        bytes[0] = SNAPSHOT_VERSION_PLAIN;
        assert_eq!(PartitionState::decode_snapshot(&bytes), Ok(PartitionState::default()));
    }

    #[test]
    fn a_section_of_a_later_version_is_refused() {
        let mut bytes = BytesMut::from(&PartitionState::default().encode_snapshot()[..]);
        bytes.truncate(bytes.len() - 1);
        put_sections(&mut Writer::new(&mut bytes), &[(200, Bytes::from_static(b"later"))], 0);
        assert_eq!(PartitionState::decode_snapshot(&bytes), Err(SnapshotError::Section(200)));
    }

    #[test]
    fn sections_stand_once_in_the_order_of_their_tags() {
        let mut bytes = BytesMut::new();
        let sections = [(3, Bytes::from_static(b"c")), (7, Bytes::new())];
        put_sections(&mut Writer::new(&mut bytes), &sections, 0);
        let taken = take_sections(&mut Reader::new(&bytes)).expect("decodes");
        assert_eq!(taken, BTreeMap::from([(3, &b"c"[..]), (7, &b""[..])]));
        for refused in [&[1_u8, 3][..], &[2, 3, 0, 0, 0, 0, 3, 0, 0, 0, 0], &[1, 3, 2, 0, 0, 0, 9]]
        {
            assert!(take_sections(&mut Reader::new(refused)).is_err(), "{refused:?}");
        }
    }
}
