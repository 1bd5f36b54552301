//! Owns the bytes of delayed messages in a snapshot: a section of its own. Never the snapshot around it.
//! Driven by `snapshot`.
//!
//! ```text
//! u64 scheduled | u64 released | u64 cancelled | u64 lost
//! u32 count | count x (v index gap | v due step | v count)          pending entries; a step is zigzag
//! u32 count | count x (u64 index | u32 count | count x u32 place)   what of them is cancelled
//! u32 count | count x (u64 index | u32 first | u32 count | u8 how)  what left last: 0 released, 1 cancelled
//! u32 count | count x (i64 producer | u32 count                     runs of sessions that were delayed
//!                      | count x (u64 base sequence | u64 index | u64 append_time | u32 count))
//! ```
//! A gap is measured from the index behind the entry before, a step from the time before; first ones from
//! zero. Runs with offsets stand in the snapshot's own list of sessions.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::types::{EntryIndex, ProducerId, Sequence, TimestampMs};

use super::producers::{Producers, Run, RunPlace};
use super::snapshot::{put_varint, take_map, take_varint};
use crate::delay::{DelayLane, DelayTotals, Ended, EndedHow, Pending};
use crate::limits::SESSION_RUNS_MAX;

/// The section's tag in a snapshot.
pub(super) const DELAY_SECTION: u8 = 2;

/// The section; none if nothing was ever delayed.
pub(super) fn encode(lane: &DelayLane, producers: &Producers) -> Option<Bytes> {
    if lane.is_unused() {
        return None;
    }
    let mut bytes = BytesMut::with_capacity(64 + 8 * lane.len());
    let mut out = Writer::new(&mut bytes);
    out.put(&lane.totals());
    out.count(lane.len());
    let (mut index, mut due) = (0, 0_u64);
    for pending in lane.pending() {
        put_varint(&mut out, pending.index.0 - index);
        put_varint(&mut out, zigzag(pending.due.0.wrapping_sub(due).cast_signed()));
        put_varint(&mut out, u64::from(pending.count));
        (index, due) = (pending.index.0 + 1, pending.due.0);
    }
    out.count(lane.cancelled().len());
    for (index, places) in lane.cancelled() {
        out.put(index);
        out.put(places);
    }
    out.count(lane.ended().len());
    lane.ended().iter().for_each(|ended| out.put(ended));
    let sessions: Vec<(ProducerId, Vec<DelayedRun>)> = producers
        .iter()
        .map(|(producer, session)| (producer, session.runs().iter().filter_map(delayed).collect()))
        .filter(|(_, runs): &(_, Vec<DelayedRun>)| !runs.is_empty())
        .collect();
    out.put(&sessions);
    Some(bytes.freeze())
}

/// Puts what a section says into the state around it.
pub(super) fn decode(
    section: &[u8],
    end: EntryIndex,
    producers: &mut Producers,
) -> Result<DelayLane, DecodeError> {
    let mut input = Reader::new(section);
    let totals = input.take()?;
    let pending = take_pending(&mut input)?;
    let cancelled: BTreeMap<EntryIndex, Vec<u32>> = take_map(&mut input)?;
    let ended: Vec<Ended> = input.take()?;
    let sessions: Vec<(ProducerId, Vec<DelayedRun>)> = input.take()?;
    input.finish()?;
    if pending.back().is_some_and(|last| last.index >= end) {
        return Err(DecodeError::Invalid("index of a delayed entry"));
    }
    for (producer, runs) in sessions {
        merge_runs(producers, producer, &runs)?;
    }
    DelayLane::from_parts(pending, cancelled, ended.into(), totals)
        .ok_or(DecodeError::Invalid("delayed messages"))
}

fn take_pending(input: &mut Reader<'_>) -> Result<VecDeque<Pending>, DecodeError> {
    let invalid = DecodeError::Invalid("delayed entry");
    let count = input.count(3)?;
    let mut pending = VecDeque::with_capacity(count);
    let (mut index, mut due) = (0_u64, 0_u64);
    for _ in 0..count {
        index = index.checked_add(take_varint(input)?).ok_or(invalid)?;
        due = due.wrapping_add(unzigzag(take_varint(input)?).cast_unsigned());
        let count = u32::try_from(take_varint(input)?).map_err(|_large| invalid)?;
        let (at, due) = (EntryIndex(index), TimestampMs(due));
        pending.push_back(Pending { index: at, due, count, live: count });
        index = index.checked_add(1).ok_or(invalid)?;
    }
    Ok(pending)
}

/// Sorts delayed runs into the runs of their session.
fn merge_runs(
    producers: &mut Producers,
    producer: ProducerId,
    delayed: &[DelayedRun],
) -> Result<(), DecodeError> {
    let invalid = DecodeError::Invalid("delayed run");
    let session = producers.sessions.get_mut(&producer).ok_or(invalid)?;
    let mut runs: Vec<Run> = session.runs.iter().copied().collect();
    for DelayedRun { base_sequence, index, append_time, count } in delayed.iter().copied() {
        let fits = base_sequence.0.checked_add(u64::from(count)).is_some();
        if !fits || count == 0 {
            return Err(invalid);
        }
        runs.push(Run { base_sequence, place: RunPlace::Delayed(index), append_time, count });
    }
    runs.sort_by_key(|run| run.base_sequence);
    let ordered = runs.windows(2).all(|pair| match pair {
        [before, run] => before.end_sequence() <= run.base_sequence,
        _ => true,
    });
    if !ordered || runs.len() > SESSION_RUNS_MAX {
        return Err(invalid);
    }
    session.runs = runs.into();
    Ok(())
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[derive(Clone, Copy)]
struct DelayedRun {
    base_sequence: Sequence,
    index: EntryIndex,
    append_time: TimestampMs,
    count: u32,
}

fn delayed(run: &Run) -> Option<DelayedRun> {
    let Run { base_sequence, place, append_time, count } = *run;
    let RunPlace::Delayed(index) = place else { return None };
    Some(DelayedRun { base_sequence, index, append_time, count })
}

impl Wire for DelayedRun {
    const BYTES_MIN: usize = 28;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.base_sequence);
        out.put(&self.index);
        out.put(&self.append_time);
        out.put(&self.count);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            base_sequence: input.take()?,
            index: input.take()?,
            append_time: input.take()?,
            count: input.take()?,
        })
    }
}

impl Wire for DelayTotals {
    const BYTES_MIN: usize = 32;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.scheduled);
        out.put(&self.released);
        out.put(&self.cancelled);
        out.put(&self.lost);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            scheduled: input.take()?,
            released: input.take()?,
            cancelled: input.take()?,
            lost: input.take()?,
        })
    }
}

impl Wire for Ended {
    const BYTES_MIN: usize = 17;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.run);
        out.put(&(self.how as u8));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let run = input.take()?;
        let how = match input.take::<u8>()? {
            0 => EndedHow::Released,
            1 => EndedHow::Cancelled,
            _ => return Err(DecodeError::Invalid("end of a delayed message")),
        };
        Ok(Self { run, how })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two entries, one of them cancelled in part and due first; written down by hand.
    const SECTION: &[u8] = &[
        5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // scheduled 5, released 1
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // cancelled 1, lost 0
        2, 0, 0, 0, 3, 0x90, 0x03, 1, 6, 0xc7, 0x01, 3, // 3: due 200, one; 10: due 100, three
        1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // of 10 the one at 1
        1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, // 2 was released
        0, 0, 0, 0, // no session
    ];

    #[test]
    fn the_section_has_the_form_that_is_written_down() {
        let mut producers = Producers::default();
        let lane = decode(SECTION, EntryIndex(11), &mut producers).expect("it is whole");
        lane.check();
        let pending: Vec<_> =
            lane.pending().map(|one| (one.index.0, one.due.0, one.count, one.live)).collect();
        assert_eq!(pending, [(3, 200, 1, 1), (10, 100, 3, 2)]);
        assert_eq!(lane.cancelled_of(EntryIndex(10)), [1]);
        assert_eq!(lane.floor(), Some(EntryIndex(3)));
        assert_eq!(encode(&lane, &producers).as_deref(), Some(SECTION));
    }

    #[test]
    fn a_section_that_contradicts_itself_is_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = SECTION.to_vec();
            change(&mut bytes);
            decode(&bytes, EntryIndex(11), &mut Producers::default()).is_err()
        };
        assert!(!refused(&|_same| ()));
        assert!(refused(&|bytes| bytes[0] = 6), "a message is missing");
        assert!(refused(&|bytes| bytes[60] = 3), "a place that the entry does not have");
        assert!(refused(&|bytes| bytes[48] = 9), "an entry that is not pending");
        assert!(refused(&|bytes| bytes.truncate(80)));
        assert!(refused(&|bytes| bytes.push(0)));
        let late = decode(SECTION, EntryIndex(10), &mut Producers::default());
        assert!(late.is_err(), "an entry behind the snapshot");
    }

    #[test]
    fn steps_go_both_ways() {
        for value in [0, 1, -1, 77, -77, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
