//! Owns the bytes of generations and of the whole index in a snapshot. Never writes them anywhere. Driven by
//! whoever keeps snapshots of a partition.
//!
//! Little-endian, but for fingerprints; all bytes are consumed; each index has exactly one encoding.
//!
//! ```text
//! generation: u8 version 1 | u64 id | u8 sealed | u64 first append time
//!             | u32 next number | u32 runs | runs x run | u64 keys | keys x key | u32 crc of all before
//! run:        u32 first number | u32 ms after the first append
//!             | u8 kind (0: u64 offset; 1: u64 entry index, u32 position)
//! key:        12 fingerprint | u32 number                                      hashes rise
//! index:      u8 version 1 | u32 count | count x (u64 len | len bytes: generation) | u32 crc of all before
//! ```
//! Generations stand by rising id; the last one is the open one, which may hold no keys. What is allocated for
//! claimed counts is bounded by the bytes that are there, times four.

use bytes::{BufMut, Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Writer};
use postrider_protocol::types::TimestampMs;

use super::generation::Generation;
use super::page::{NUMBER_NONE, Slot, index};
use super::runs::{Run, Runs};
use super::table::Table;
use super::{DedupIndex, Place};

const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;
const RUN_BYTES_MIN: usize = 17;
/// Generation with its length, without runs and keys.
const GENERATION_BYTES_MIN: usize = 8 + 34 + CRC_BYTES;

/// Why bytes are not a generation or an index. Who reads falls back to the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DedupDecodeError {
    /// A later version of the broker wrote them.
    #[error("the keys have version {0}, which is not known here")]
    Version(u8),
    /// They were damaged, or are a part.
    #[error("the crc of the keys does not match")]
    Crc,
    /// They are no canonical encoding.
    #[error("the keys: {0}")]
    Malformed(#[from] DecodeError),
}

fn invalid(what: &'static str) -> DedupDecodeError {
    DedupDecodeError::Malformed(DecodeError::Invalid(what))
}

impl Generation {
    /// The generation's bytes. Those of a sealed one never change.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_bytes_max());
        self.encode_into(&mut out);
        out.freeze()
    }

    fn encoded_bytes_max(&self) -> usize {
        GENERATION_BYTES_MIN + self.runs().len() * 21 + index(self.len()) * Slot::BYTES
    }

    fn encode_into(&self, bytes: &mut BytesMut) {
        let begin = bytes.len();
        let mut out = Writer::new(bytes);
        out.put(&VERSION);
        out.put(&self.id());
        out.put(&self.sealed());
        out.put(&self.times().map_or(TimestampMs(0), |(first, _)| first));
        out.put(&self.runs().next());
        out.count(self.runs().len());
        for run in self.runs().iter() {
            put_run(&mut out, run);
        }
        out.put(&self.len());
        for slot in self.sorted() {
            out.bytes(&slot.to_bytes());
        }
        put_crc(bytes, begin);
    }

    /// The generation that was encoded.
    ///
    /// # Errors
    /// The bytes are not one canonical generation, or belong to a later version of the broker.
    pub fn decode(bytes: &[u8]) -> Result<Self, DedupDecodeError> {
        let mut input = checked(bytes)?;
        let id = input.take()?;
        let sealed = input.take()?;
        let base: TimestampMs = input.take()?;
        let next = input.take()?;
        let runs = take_runs(&mut input, base, next)?;
        let count: u64 = input.take()?;
        if (count == 0) != (next == 0) || (count == 0 && (sealed || base != TimestampMs(0))) {
            return Err(invalid("key count"));
        }
        let table = take_keys(&mut input, count, next)?;
        input.finish()?;
        Ok(Self::from_parts(id, sealed, runs, table))
    }
}

fn put_run(out: &mut Writer<'_>, run: &Run) {
    out.put(&run.first);
    out.put(&run.after_ms);
    match run.place {
        Place::Offset(offset) => {
            out.put(&0_u8);
            out.put(&offset);
        }
        Place::Delayed { index, position } => {
            out.put(&1_u8);
            out.put(&index);
            out.put(&position);
        }
    }
}

fn take_run(input: &mut Reader<'_>) -> Result<Run, DedupDecodeError> {
    let (first, after_ms) = input.take()?;
    let place = match input.take::<u8>()? {
        0 => Place::Offset(input.take()?),
        1 => Place::Delayed { index: input.take()?, position: input.take()? },
        _ => return Err(invalid("kind of a run")),
    };
    Ok(Run { place, first, after_ms })
}

fn take_runs(
    input: &mut Reader<'_>,
    base: TimestampMs,
    next: u32,
) -> Result<Runs, DedupDecodeError> {
    let count: u32 = input.take()?;
    if (count as usize).saturating_mul(RUN_BYTES_MIN) > input.remaining() {
        return Err(DecodeError::ListTooLong(count).into());
    }
    let mut runs = Runs::starting(base);
    runs.set_next(next);
    let mut last: Option<Run> = None;
    for _ in 0..count {
        let run = take_run(input)?;
        let in_order = match last {
            None => run.first == 0 && run.after_ms == 0,
            Some(last) => {
                last.first < run.first && last.after_ms <= run.after_ms && fits(last, run.first)
            }
        };
        if !in_order || base.0.checked_add(u64::from(run.after_ms)).is_none() {
            return Err(invalid("order of runs"));
        }
        runs.push(run);
        last = Some(run);
    }
    let whole = match last {
        None => next == 0,
        Some(last) => last.first < next && fits(last, next),
    };
    whole.then_some(runs).ok_or_else(|| invalid("next number"))
}

/// Whether the places of a run whose numbers end before `end` are numbers.
fn fits(run: Run, end: u32) -> bool {
    let steps = end - 1 - run.first;
    match run.place {
        Place::Offset(first) => first.0.checked_add(u64::from(steps)).is_some(),
        Place::Delayed { position, .. } => position.checked_add(steps).is_some(),
    }
}

fn take_keys(input: &mut Reader<'_>, count: u64, next: u32) -> Result<Table, DedupDecodeError> {
    let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(Slot::BYTES));
    let bytes = input.bytes(bytes.ok_or(DecodeError::Short)?)?;
    let (keys, _) = bytes.as_chunks::<{ Slot::BYTES }>();
    let hash = |key: &[u8; Slot::BYTES]| Slot::from_bytes(*key).fingerprint.hash_bits();
    if !keys.is_sorted_by(|one, other| hash(one) < hash(other)) {
        return Err(invalid("order of keys"));
    }
    let highest = keys.iter().map(|key| Slot::from_bytes(*key).number).max();
    if highest.is_some_and(|highest| highest >= NUMBER_NONE || highest + 1 != next) {
        return Err(invalid("number of a key"));
    }
    Table::from_sorted(keys).ok_or_else(|| invalid("spread of keys"))
}

impl DedupIndex {
    /// Appends the bytes of all generations.
    pub fn encode(&self, out: &mut BytesMut) {
        let begin = out.len();
        out.reserve(self.generations().map(Generation::encoded_bytes_max).sum::<usize>() + 16);
        out.put_u8(VERSION);
        Writer::new(out).count(self.generations().count());
        for generation in self.generations() {
            let len_at = out.len();
            out.put_u64_le(0);
            generation.encode_into(out);
            let len = (out.len() - len_at - 8) as u64;
            out[len_at..len_at + 8].copy_from_slice(&len.to_le_bytes());
        }
        put_crc(out, begin);
    }

    /// The index that was encoded.
    ///
    /// # Errors
    /// The bytes are not one canonical index, or belong to a later version of the broker.
    pub fn decode(bytes: &[u8]) -> Result<Self, DedupDecodeError> {
        let mut input = checked(bytes)?;
        let count = input.count(GENERATION_BYTES_MIN)?;
        let mut generations = Vec::with_capacity(count);
        for _ in 0..count {
            let len: u64 = input.take()?;
            let len = usize::try_from(len).map_err(|_above_usize| DecodeError::Short)?;
            generations.push(Generation::decode(input.bytes(len)?)?);
        }
        input.finish()?;
        Self::from_generations(generations)
    }

    /// The index whose generations were stored one by one.
    ///
    /// # Errors
    /// They are not all the generations of one index.
    pub fn from_generations(generations: Vec<Generation>) -> Result<Self, DedupDecodeError> {
        let in_order = |pair: &[Generation]| {
            let times = pair[0].times().zip(pair[1].times());
            pair[0].id() < pair[1].id()
                && times.is_none_or(|((_, before), (after, _))| before <= after)
        };
        let open_last = generations
            .iter()
            .rev()
            .enumerate()
            .all(|(nth, generation)| generation.sealed() == (nth > 0));
        if generations.is_empty() || !open_last || !generations.windows(2).all(in_order) {
            return Err(invalid("order of generations"));
        }
        Ok(Self::of_generations(generations))
    }
}

fn put_crc(out: &mut BytesMut, begin: usize) {
    let crc = crc32fast::hash(&out[begin..]);
    out.put_u32_le(crc);
}

/// A reader behind the version of bytes that are what was written.
fn checked(bytes: &[u8]) -> Result<Reader<'_>, DedupDecodeError> {
    let (version, _) = bytes.split_first().ok_or(DecodeError::Short)?;
    if *version != VERSION {
        return Err(DedupDecodeError::Version(*version));
    }
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(DecodeError::Short)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(DedupDecodeError::Crc);
    }
    Ok(Reader::new(body.get(1..).ok_or(DecodeError::Short)?))
}
