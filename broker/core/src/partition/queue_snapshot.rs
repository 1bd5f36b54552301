//! Owns the bytes of a queue subscription's state in a snapshot. Never the snapshot around them.
//! Driven by `snapshot`.
//!
//! ```text
//! u64 sub_epoch | u64 start | u64 floor | u32 count | count x (v gap | v len)      gaps from the floor
//! u64 acked | u64 dead | u64 expired | u64 evicted | u64 reopened
//! u32 count | count x (u64 offset | u32 failures | u64 due | u8 cause | u64 first | u64 last
//!                      | string reason)
//! u32 count | count x (a letter as in a DeadIntent entry)
//! u32 count | count x (16 topic | u32 partition | u64 next sequence)
//! ```
//! The names of consumers that had what failed stand in a section, left out while none is known: of each queue, in
//! the order of their ids,
//! ```text
//! u32 failures | failures x string | u32 letters | letters x string
//! ```
//! What left a queue otherwise than by an ack stands in a section, left out while there is none:
//! ```text
//! u32 count | count x (16 subscription | u32 runs | runs x (u64 start | u64 end))
//! ```

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::types::{Offset, Sequence, SubscriptionId};

use super::queue_commands::{put_consumers, put_runs, take_consumers, take_reason, take_runs};
use super::snapshot::take_map;
use crate::queue::{
    ConsumerName, DeadLetter, DeadTarget, Failure, Gone, OffsetRange, QueueState, SettledSet,
    Totals,
};

impl Wire for QueueState {
    const BYTES_MIN: usize = 3 * 8 + 4 + 5 * 8 + 3 * 4;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.sub_epoch);
        out.put(&self.start);
        let floor = self.settled.floor();
        out.put(&floor);
        put_runs(out, self.settled.run_count(), self.settled.runs(), floor.0);
        out.put(&self.totals);
        out.put(&self.reopened);
        out.count(self.failures.len());
        for (offset, failure) in &self.failures {
            out.put(offset);
            out.put(failure);
        }
        out.count(self.dead.len());
        for letter in self.dead.values() {
            out.put(letter);
        }
        out.count(self.next_dead.len());
        for (target, next) in &self.next_dead {
            out.put(target);
            out.put(next);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let sub_epoch = input.take()?;
        let start = input.take()?;
        let floor: u64 = input.take()?;
        let runs = take_runs(input, floor)?;
        let settled = SettledSet::from_parts(floor, runs)
            .ok_or(DecodeError::Invalid("settled runs of a queue"))?;
        let totals = input.take()?;
        let reopened = input.take()?;
        let failures = take_map::<Offset, Failure>(input)?;
        let letters: Vec<DeadLetter> = input.take()?;
        let next_dead = take_map::<DeadTarget, Sequence>(input)?;
        let dead = by_name(letters)?;
        // Stands in a section of its own.
        let gone = Gone::default();
        Ok(Self { sub_epoch, start, settled, failures, dead, next_dead, totals, reopened, gone })
    }
}

/// The tag of the section with names of consumers.
pub(super) const CONSUMERS_SECTION: u8 = 3;

/// Who had what failed; none if nothing is known of it.
pub(super) fn encode_consumers(queues: &BTreeMap<SubscriptionId, QueueState>) -> Option<Bytes> {
    let known = |queue: &QueueState| {
        queue.failures.values().any(|failure| !failure.consumer.is_empty())
            || queue.dead.values().any(|letter| !letter.consumer.is_empty())
    };
    if !queues.values().any(known) {
        return None;
    }
    let mut bytes = BytesMut::new();
    let mut out = Writer::new(&mut bytes);
    for queue in queues.values() {
        put_consumers(&mut out, queue.failures.values().map(|failure| &failure.consumer));
        put_consumers(&mut out, queue.dead.values().map(|letter| &letter.consumer));
    }
    Some(bytes.freeze())
}

pub(super) fn decode_consumers(
    section: &[u8],
    queues: &mut BTreeMap<SubscriptionId, QueueState>,
) -> Result<(), DecodeError> {
    let mut input = Reader::new(section);
    for queue in queues.values_mut() {
        let failures = queue.failures.values_mut();
        take_consumers(&mut input, failures.map(|failure| &mut failure.consumer))?;
        let letters = queue.dead.values_mut();
        take_consumers(&mut input, letters.map(|letter| &mut letter.consumer))?;
    }
    input.finish()
}

/// The section's tag in a snapshot.
pub(super) const GONE_SECTION: u8 = 4;

/// What left queues otherwise than by an ack; none if nothing did.
pub(super) fn encode_gone(queues: &BTreeMap<SubscriptionId, QueueState>) -> Option<Bytes> {
    let with_some: Vec<(&SubscriptionId, &Gone)> = queues
        .iter()
        .map(|(id, queue)| (id, queue.gone()))
        .filter(|(_, gone)| gone.runs().len() > 0)
        .collect();
    if with_some.is_empty() {
        return None;
    }
    let mut bytes = BytesMut::new();
    let mut out = Writer::new(&mut bytes);
    out.count(with_some.len());
    for (id, gone) in with_some {
        out.put(id);
        out.count(gone.runs().len());
        for run in gone.runs() {
            out.put(&run.start);
            out.put(&run.end);
        }
    }
    Some(bytes.freeze())
}

pub(super) fn decode_gone(
    section: &[u8],
    queues: &mut BTreeMap<SubscriptionId, QueueState>,
) -> Result<(), DecodeError> {
    let mut input = Reader::new(section);
    let count: u32 = input.take()?;
    let mut last = None;
    for _ in 0..count {
        let id: SubscriptionId = input.take()?;
        if last.replace(id).is_some_and(|last| last >= id) {
            return Err(DecodeError::Invalid("order of queues"));
        }
        let runs: Vec<(Offset, Offset)> = input.take()?;
        let runs = runs.into_iter().map(|(start, end)| OffsetRange { start, end }).collect();
        let gone = Gone::from_runs(runs).ok_or(DecodeError::Invalid("runs of a queue"))?;
        let queue = queues.get_mut(&id).ok_or(DecodeError::Invalid("queue of a section"))?;
        queue.gone = gone;
    }
    input.finish()
}

/// Letters in the order of their names.
fn by_name(letters: Vec<DeadLetter>) -> Result<BTreeMap<(u64, Offset), DeadLetter>, DecodeError> {
    let mut dead = BTreeMap::new();
    for letter in letters {
        let name = (letter.sub_epoch, letter.offset);
        if dead.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(DecodeError::Invalid("order of dead letters"));
        }
        dead.insert(name, letter);
    }
    Ok(dead)
}

impl Wire for Failure {
    const BYTES_MIN: usize = 4 + 8 + 1 + 8 + 8 + 2;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.failures);
        out.put(&self.due);
        out.put(&self.cause);
        out.put(&self.first);
        out.put(&self.last);
        out.put(&self.reason);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            failures: input.take()?,
            due: input.take()?,
            cause: input.take()?,
            first: input.take()?,
            last: input.take()?,
            reason: take_reason(input)?,
            // Stands in a section of its own.
            consumer: ConsumerName::default(),
        })
    }
}

impl Wire for Totals {
    const BYTES_MIN: usize = 32;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.acked);
        out.put(&self.dead);
        out.put(&self.expired);
        out.put(&self.evicted);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            acked: input.take()?,
            dead: input.take()?,
            expired: input.take()?,
            evicted: input.take()?,
        })
    }
}
