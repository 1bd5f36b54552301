//! Owns the trailer of a stored entry: what its leader adds to a batch, in tagged parts. Never looks at the
//! body. Driven by the broker; clients skip trailers.
//!
//! ```text
//! parts without a count, tags rising: u8 tag | u32 len | len bytes
//!
//! tag 16  deliver_at   u64 ms                                              of a Delayed entry
//! tag 17  released     u32 count | count x (u64 index | u32 first | u32 count)   of a Data entry: the delayed
//!                      messages that it gives offsets to, in the order of its records
//! ```
//! A tag that is not known is skipped.

use bytes::{Bytes, BytesMut};

use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    types::{EntryIndex, TimestampMs},
};

const TAG_DELIVER_AT: u8 = 16;
const TAG_RELEASED: u8 = 17;

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

/// What a trailer says, as far as it is known here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trailer {
    /// Of a Delayed entry: not before.
    pub deliver_at: Option<TimestampMs>,
    /// Of a Data entry: which delayed messages it releases; empty if it was published directly.
    pub released: Vec<DelayRun>,
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
        }
    }

    #[test]
    fn a_trailer_says_what_was_put_into_it() {
        for trailer in [Trailer::default(), both()] {
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
            let cut_at_part = cut == 13;
            let decoded = Trailer::decode(&whole.slice(..cut));
            assert_eq!(decoded.is_ok(), cut_at_part, "{cut}");
        }
        let twice = [whole.clone(), whole].concat();
        assert!(Trailer::decode(&twice).is_err(), "tags rise");
        let empty_run = DelayRun { index: EntryIndex(5), first: 0, count: 0 };
        let trailer = Trailer { deliver_at: None, released: vec![empty_run] };
        assert!(Trailer::decode(&trailer.encode()).is_err(), "a run has a message");
    }
}
