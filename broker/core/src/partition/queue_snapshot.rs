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

use std::collections::BTreeMap;

use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::types::{Offset, Sequence};

use super::queue_commands::{put_runs, take_reason, take_runs};
use super::snapshot::take_map;
use crate::queue::{DeadLetter, DeadTarget, Failure, QueueState, SettledSet, Totals};

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
        Ok(Self { sub_epoch, start, settled, failures, dead, next_dead, totals, reopened })
    }
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
