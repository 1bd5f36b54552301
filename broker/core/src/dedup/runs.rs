//! Owns the numbers of a generation's keys, and what a number stands for: where the first copy is, and when it was
//! appended. Never knows a key. Driven by `generation`.
//!
//! Keys get rising numbers of 31 bits. Those of an entry stand side by side, so a run says it for all of them:
//!
//! ```text
//! run (first number, append time, place of that number);  number n of it: place + (n - first), the same time
//! ```
//! A new run begins with another append time, with a delayed entry, and where unkeyed messages leave a gap of more
//! than [`GAP_MAX`]: at most one per millisecond for keys that are published densely, and one per key at worst (24
//! bytes more). Runs lie in chunks, so that no list of millions is ever moved.

use std::sync::Arc;

use postrider_protocol::types::{Offset, TimestampMs};

use super::Place;
use super::page::NUMBER_NONE;

/// Numbers that a gap may use up rather than begin a run. 2^31 numbers are enough for 33 million keys at worst.
const GAP_MAX: u64 = 64;
/// Runs of a chunk: 24 KiB.
const CHUNK_RUNS: usize = 1_024;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) place: Place,
    pub(super) first: u32,
    /// Milliseconds since the generation's first append.
    pub(super) after_ms: u32,
}

/// Neighbouring runs, with the first number beside the list: a search for the chunk reads the list of chunks alone.
#[derive(Clone, Debug)]
struct Chunk {
    first: u32,
    /// Shared with clones of the index until one of both is written to.
    runs: Arc<Vec<Run>>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    chunks: Vec<Chunk>,
    /// Append time of the first run.
    base: TimestampMs,
    /// The next number, at least.
    next: u32,
}

impl Runs {
    /// Of no runs yet, the first one at `base`.
    pub(super) fn starting(base: TimestampMs) -> Self {
        Self { base, ..Self::default() }
    }

    /// Whether `count` more keys get numbers, and their time fits.
    pub(super) fn has_room(&self, count: usize, append_time: TimestampMs) -> bool {
        let numbers = (count as u64).saturating_mul(GAP_MAX + 1);
        u64::from(self.next).saturating_add(numbers) < u64::from(NUMBER_NONE)
            && self.after_ms(append_time).is_some()
    }

    /// Milliseconds since the first append; `None` if they do not fit.
    fn after_ms(&self, append_time: TimestampMs) -> Option<u32> {
        let base = if self.chunks.is_empty() { append_time } else { self.base };
        u32::try_from(append_time.0.checked_sub(base.0)?).ok()
    }

    /// A number for the key at `place`; `None` if there is no room. Times never fall.
    pub(super) fn number(&mut self, place: Place, append_time: TimestampMs) -> Option<u32> {
        let after_ms = self.after_ms(append_time)?;
        let Some(last) = self.last() else {
            self.base = append_time;
            return self.begin(place, after_ms);
        };
        if last.after_ms == after_ms
            && let Some(step) = steps(last.place, place)
            && let Some(number) = u64::from(last.first).checked_add(step)
            && (u64::from(self.next)..=u64::from(self.next) + GAP_MAX).contains(&number)
        {
            return self.take(u32::try_from(number).ok()?);
        }
        self.begin(place, after_ms)
    }

    fn begin(&mut self, place: Place, after_ms: u32) -> Option<u32> {
        let first = self.take(self.next)?;
        self.push(Run { place, first, after_ms });
        Some(first)
    }

    fn take(&mut self, number: u32) -> Option<u32> {
        if number >= NUMBER_NONE {
            return None;
        }
        self.next = number + 1;
        Some(number)
    }

    /// Appends a run; the caller sees to the order.
    pub(super) fn push(&mut self, run: Run) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.runs.len() < CHUNK_RUNS => {
                Arc::make_mut(&mut chunk.runs).push(run)
            }
            Some(_) => {
                let mut runs = Vec::with_capacity(CHUNK_RUNS);
                runs.push(run);
                self.chunks.push(Chunk { first: run.first, runs: Arc::new(runs) });
            }
            None => {
                self.chunks.push(Chunk { first: run.first, runs: Arc::new(vec![run]) });
            }
        }
    }

    /// States that numbers below this one are given.
    pub(super) fn set_next(&mut self, next: u32) {
        self.next = next;
    }

    /// What a number stands for.
    pub(super) fn resolve(&self, number: u32) -> Option<(Place, TimestampMs)> {
        let chunk = self.chunks.partition_point(|chunk| chunk.first <= number);
        let chunk = &self.chunks.get(chunk.checked_sub(1)?)?.runs;
        let run = chunk.partition_point(|run| run.first <= number);
        let run = chunk.get(run.checked_sub(1)?)?;
        let step = number - run.first;
        let place = match run.place {
            Place::Offset(first) => Place::Offset(Offset(first.0 + u64::from(step))),
            Place::Delayed { index, position } => {
                Place::Delayed { index, position: position + step }
            }
        };
        Some((place, TimestampMs(self.base.0 + u64::from(run.after_ms))))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.chunks.iter().flat_map(|chunk| chunk.runs.iter())
    }

    pub(super) fn len(&self) -> usize {
        let full = self.chunks.len().saturating_sub(1) * CHUNK_RUNS;
        full + self.chunks.last().map_or(0, |chunk| chunk.runs.len())
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    fn last(&self) -> Option<Run> {
        self.chunks.last()?.runs.last().copied()
    }

    /// Append times of the first and the last key.
    pub(super) fn times(&self) -> Option<(TimestampMs, TimestampMs)> {
        let last = self.last()?;
        Some((self.base, TimestampMs(self.base.0 + u64::from(last.after_ms))))
    }

    pub(super) fn bytes(&self) -> usize {
        let last = self.chunks.last().map_or(0, |chunk| chunk.runs.capacity());
        let full = self.chunks.len().saturating_sub(1) * CHUNK_RUNS;
        (last + full) * size_of::<Run>() + self.chunks.capacity() * size_of::<Chunk>()
    }

    /// An upper bound of what `count` more keys add to [`Runs::bytes`].
    pub(super) fn growth_bytes(&self, count: usize) -> usize {
        let last =
            self.chunks.last().map_or((0, 0), |chunk| (chunk.runs.len(), chunk.runs.capacity()));
        let (len, capacity) = last;
        let count = count.min(usize::MAX / 64);
        let end = len.saturating_add(count);
        let runs = if end <= capacity {
            0
        } else if end <= CHUNK_RUNS {
            (2 * end).min(CHUNK_RUNS) - capacity
        } else {
            CHUNK_RUNS - capacity + (end - CHUNK_RUNS).next_multiple_of(CHUNK_RUNS)
        };
        // The list of chunks doubles.
        let chunks = self.chunks.capacity() + 4 + 2 * (count / CHUNK_RUNS);
        runs.saturating_mul(size_of::<Run>()).saturating_add(chunks * size_of::<Chunk>())
    }
}

/// How far `place` lies behind the place of a run's first number; `None` if it is not of its kind or lies before.
fn steps(first: Place, place: Place) -> Option<u64> {
    match (first, place) {
        (Place::Offset(first), Place::Offset(offset)) => offset.0.checked_sub(first.0),
        (Place::Delayed { index: of, position: first }, Place::Delayed { index, position })
            if of == index =>
        {
            position.checked_sub(first).map(u64::from)
        }
        _ => None,
    }
}
