//! Owns the trailer of a stored entry: what its leader adds to a batch, in tagged parts. Never looks at the
//! body. Driven by the broker; clients skip trailers.
//!
//! ```text
//! parts without a count, tags rising: u8 tag | u32 len | len bytes
//!
//! tag 16  deliver_at   u64 ms                                              of a Delayed entry
//! tag 17  released     u32 count | count x (u64 index | u32 first | u32 count)   of a Data entry: the delayed
//!                      messages that it gives offsets to, in the order of its records
//! tag 18  keys         u64 window, ms | u8 form | u32 count | count x key   of a Data or Delayed entry: the
//!                      fingerprints of its records' idempotency keys, and how long they count from its append on
//!                      form 0: key = 12 bytes, of the records 0, 1, ..
//!                      form 1: key = u32 position of the record | 12 bytes, positions rising
//! ```
//! A tag that is not known is skipped.

use bytes::{Bytes, BytesMut};

use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    types::{EntryIndex, TimestampMs},
};

const TAG_DELIVER_AT: u8 = 16;
const TAG_RELEASED: u8 = 17;
const TAG_KEYS: u8 = 18;

/// The size of an idempotency key's fingerprint.
pub const FINGERPRINT_BYTES: usize = 12;
const FORM_ALL: u8 = 0;
const FORM_SOME: u8 = 1;

/// Messages in a row of one Delayed entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DelayRun {
    /// The entry.
    pub index: EntryIndex,
    /// The place of the first in it.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

/// The idempotency keys of an entry's records.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrailerKeys {
    /// How long they count from the entry's append time on.
    pub window_ms: u64,
    /// Positions of records, rising, and the fingerprints of their keys.
    pub keys: Vec<(u32, [u8; FINGERPRINT_BYTES])>,
}

/// What a trailer says, as far as it is known here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trailer {
    /// Of a Delayed entry: not before.
    pub deliver_at: Option<TimestampMs>,
    /// Of a Data entry: which delayed messages it releases; empty if it was published directly.
    pub released: Vec<DelayRun>,
    /// Which records have idempotency keys; empty if none has.
    pub keys: TrailerKeys,
}

impl Trailer {
    /// Its bytes; none if it says nothing.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        if let Some(due) = &self.deliver_at {
            put_part(TAG_DELIVER_AT, due, &mut bytes);
        }
        if !self.released.is_empty() {
            put_part(TAG_RELEASED, &self.released, &mut bytes);
        }
        if !self.keys.keys.is_empty() {
            put_part(TAG_KEYS, &self.keys, &mut bytes);
        }
        bytes.freeze()
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// They are no parts by rising tags, or a known one is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let mut trailer = Self::default();
        let mut last = None;
        while input.remaining() > 0 {
            let tag: u8 = input.take()?;
            if last.replace(tag).is_some_and(|last| last >= tag) {
                return Err(DecodeError::Invalid("order of a trailer's parts"));
            }
            let len: u32 = input.take()?;
            let len = usize::try_from(len).map_err(|_large| DecodeError::Short)?;
            let mut part = Reader::new(input.bytes(len)?);
            match tag {
                TAG_DELIVER_AT => trailer.deliver_at = Some(part.take()?),
                TAG_RELEASED => trailer.released = part.take()?,
                TAG_KEYS => trailer.keys = part.take()?,
                _later => continue,
            }
            part.finish()?;
        }
        Ok(trailer)
    }
}

fn put_part<T: Wire>(tag: u8, value: &T, out: &mut BytesMut) {
    let mut part = BytesMut::new();
    Writer::new(&mut part).put(value);
    let mut out = Writer::new(out);
    out.put(&tag);
    out.count(part.len());
    out.bytes(&part);
}

impl Wire for TrailerKeys {
    const BYTES_MIN: usize = 13;

    fn put(&self, out: &mut Writer<'_>) {
        let all = self.keys.iter().zip(0..).all(|((position, _key), place)| *position == place);
        out.put(&self.window_ms);
        out.put(&if all { FORM_ALL } else { FORM_SOME });
        out.count(self.keys.len());
        for (position, key) in &self.keys {
            if !all {
                out.put(position);
            }
            out.bytes(key);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (window_ms, form): (u64, u8) = (input.take()?, input.take()?);
        let count: u32 = input.take()?;
        let bytes = match form {
            FORM_ALL => FINGERPRINT_BYTES,
            FORM_SOME => FINGERPRINT_BYTES.saturating_add(4),
            _later => return Err(DecodeError::Invalid("form of idempotency keys")),
        };
        if count == 0 {
            return Err(DecodeError::Invalid("count of idempotency keys"));
        }
        let mut keys = Vec::with_capacity(input.remaining().checked_div(bytes).unwrap_or(0));
        for place in 0..count {
            let position = if form == FORM_ALL { place } else { input.take()? };
            if keys.last().is_some_and(|(last, _key)| *last >= position) {
                return Err(DecodeError::Invalid("order of idempotency keys"));
            }
            keys.push((position, *input.array()?));
        }
        if form == FORM_SOME && keys.iter().zip(0..).all(|((at, _key), place)| *at == place) {
            return Err(DecodeError::Invalid("form of idempotency keys"));
        }
        Ok(Self { window_ms, keys })
    }
}

impl Wire for DelayRun {
    const BYTES_MIN: usize = 16;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.index);
        out.put(&self.first);
        out.put(&self.count);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let run = Self { index: input.take()?, first: input.take()?, count: input.take()? };
        match run.first.checked_add(run.count) {
            Some(_) if run.count > 0 => Ok(run),
            Some(_) | None => Err(DecodeError::Invalid("run of delayed messages")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> Trailer {
        Trailer {
            deliver_at: Some(TimestampMs(77)),
            released: vec![
                DelayRun { index: EntryIndex(5), first: 0, count: 3 },
                DelayRun { index: EntryIndex(9), first: 2, count: 1 },
            ],
            keys: keys([0, 1]),
        }
    }

    fn keys(positions: [u32; 2]) -> TrailerKeys {
        let [first, second] = positions;
        TrailerKeys { window_ms: 60_000, keys: vec![(first, [1; 12]), (second, [2; 12])] }
    }

    #[test]
    fn a_trailer_says_what_was_put_into_it() {
        let some = Trailer { keys: keys([1, 4]), ..Trailer::default() };
        for trailer in [Trailer::default(), both(), some] {
            assert_eq!(Trailer::decode(&trailer.encode()), Ok(trailer));
        }
        assert!(Trailer::default().encode().is_empty());
    }

    #[test]
    fn a_part_of_a_later_version_is_skipped() {
        let mut bytes = BytesMut::from(&[3, 2, 0, 0, 0, 8, 8][..]);
        bytes.extend_from_slice(&both().encode());
        bytes.extend_from_slice(&[99, 0, 0, 0, 0]);
        assert_eq!(Trailer::decode(&bytes), Ok(both()));
    }

    #[test]
    fn what_is_no_trailer_is_refused() {
        let whole = both().encode();
        for cut in 1..whole.len() {
            let cut_at_part = [13, 13 + 41].contains(&cut);
            let decoded = Trailer::decode(&whole.slice(..cut));
            assert_eq!(decoded.is_ok(), cut_at_part, "{cut}");
        }
        let twice = [whole.clone(), whole].concat();
        assert!(Trailer::decode(&twice).is_err(), "tags rise");
        let empty_run = DelayRun { index: EntryIndex(5), first: 0, count: 0 };
        let trailer = Trailer { released: vec![empty_run], ..Trailer::default() };
        assert!(Trailer::decode(&trailer.encode()).is_err(), "a run has a message");
        let falling = Trailer { keys: keys([4, 1]), ..Trailer::default() };
        assert!(Trailer::decode(&falling.encode()).is_err(), "positions rise");
    }
}
