//! Owns one record's encoding, Kafka v2's: how a message is appended to a batch's records and how it
//! is read back, borrowed ([`RecordView`]) or shared ([`Record`]). Never sees a batch's fields. Driven
//! by `batch`.
//!
//! ```text
//! varint length of what follows | i8 attributes, 0 | varint timestamp delta | varint offset delta
//! | varint key length, -1 = none | key | varint value length, -1 = none | value
//! | varint header count | per header: varint name length | name | varint value length, -1 = none | value
//! ```
//! Varints are zigzag, in the fewest bytes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{types::TimestampMs, varint};

/// The most headers of one message.
pub const RECORD_HEADERS_MAX: usize = 1024;
/// The largest record, so that lengths never reach what an `i32` can say.
pub const RECORD_BYTES_CEILING: usize = 1 << 30;

/// A header: name, and value if it has one.
pub type Header = (Bytes, Option<Bytes>);

/// A message as it is published and delivered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// What routes it and orders it; none = neither.
    pub key: Option<Bytes>,
    /// The payload; none = the key is deleted.
    pub value: Option<Bytes>,
    /// Names, which are UTF-8, and values, in the publisher's order.
    pub headers: Vec<Header>,
    /// The publisher's time.
    pub timestamp: TimestampMs,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside a record, or a varint is not canonical.
    #[error("the bytes end inside a record")]
    Short,
    /// A record's parts do not fill it exactly.
    #[error("the parts of a record do not fill it")]
    Trailing,
    /// A length or a count is negative, or an attribute is set.
    #[error("a field of a record has a value that is not defined")]
    Field,
    /// Time stamps go below 0 or out of range.
    #[error("the time stamp of a record is out of range")]
    Timestamp,
    /// More than [`RECORD_HEADERS_MAX`].
    #[error("a record has more than {RECORD_HEADERS_MAX} headers")]
    Headers,
    /// A header's name is not UTF-8.
    #[error("the name of a record header is not UTF-8")]
    HeaderName,
}

/// A record, borrowed from its batch. Headers are read when they are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// What routes it and orders it.
    pub key: Option<&'a [u8]>,
    /// The payload.
    pub value: Option<&'a [u8]>,
    /// The publisher's time.
    pub timestamp: TimestampMs,
    /// Its offset less the batch's base offset.
    pub offset_delta: u32,
    headers: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The record at the front of `bytes`, and what follows it. Headers are not looked at.
    #[inline]
    pub(crate) fn split(bytes: &'a [u8], base_ms: i64) -> Result<(Self, &'a [u8]), RecordError> {
        let (record, after) = take_part(bytes)?;
        let record = record.ok_or(RecordError::Field)?;
        let (&attributes, rest) = record.split_first().ok_or(RecordError::Short)?;
        if attributes != 0 {
            return Err(RecordError::Field);
        }
        let (timestamp_delta, rest) = varint::take(rest).ok_or(RecordError::Short)?;
        let (offset_delta, rest) = varint::take(rest).ok_or(RecordError::Short)?;
        let (key, rest) = take_part(rest)?;
        let (value, headers) = take_part(rest)?;
        let timestamp = base_ms
            .checked_add(timestamp_delta)
            .and_then(|ms| u64::try_from(ms).ok())
            .ok_or(RecordError::Timestamp)?;
        let view = Self {
            key,
            value,
            timestamp: TimestampMs(timestamp),
            offset_delta: u32::try_from(offset_delta).map_err(|_range| RecordError::Field)?,
            headers,
        };
        Ok((view, after))
    }

    /// The headers; each is checked as it comes.
    ///
    /// # Errors
    /// There is no canonical count of at most [`RECORD_HEADERS_MAX`], or there are none and bytes follow.
    pub fn headers(&self) -> Result<RecordHeaders<'a>, RecordError> {
        let (count, rest) = varint::take(self.headers).ok_or(RecordError::Short)?;
        let left = usize::try_from(count).map_err(|_negative| RecordError::Field)?;
        match left {
            0 if !rest.is_empty() => Err(RecordError::Trailing),
            0..=RECORD_HEADERS_MAX => Ok(RecordHeaders { left, rest }),
            _ => Err(RecordError::Headers),
        }
    }

    /// The same record with its parts as slices of `block`, which is what it was read from.
    pub(crate) fn share(&self, block: &Bytes) -> Result<Record, RecordError> {
        Ok(Record {
            key: self.key.map(|key| block.slice_ref(key)),
            value: self.value.map(|value| block.slice_ref(value)),
            headers: self.share_headers(block)?,
            timestamp: self.timestamp,
        })
    }

    fn share_headers(&self, block: &Bytes) -> Result<Vec<Header>, RecordError> {
        let headers = self.headers()?;
        let mut shared = Vec::with_capacity(headers.left.min(headers.rest.len()));
        for header in headers {
            let (name, value) = header?;
            shared.push((
                block.slice_ref(name.as_bytes()),
                value.map(|value| block.slice_ref(value)),
            ));
        }
        Ok(shared)
    }
}

/// A record's headers, borrowed. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordHeaders<'a> {
    left: usize,
    rest: &'a [u8],
}

impl<'a> RecordHeaders<'a> {
    fn take(&mut self) -> Result<(&'a str, Option<&'a [u8]>), RecordError> {
        let (name, rest) = take_part(self.rest)?;
        let (value, rest) = take_part(rest)?;
        let name = std::str::from_utf8(name.ok_or(RecordError::Field)?)
            .map_err(|_not_utf8| RecordError::HeaderName)?;
        if self.left == 1 && !rest.is_empty() {
            return Err(RecordError::Trailing);
        }
        self.rest = rest;
        Ok((name, value))
    }
}

impl<'a> Iterator for RecordHeaders<'a> {
    type Item = Result<(&'a str, Option<&'a [u8]>), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        let after = self.left.checked_sub(1)?;
        let header = self.take();
        self.left = if header.is_ok() { after } else { 0 };
        Some(header)
    }
}

/// The size of the record at the front of `bytes` without its length, and what follows it.
pub(crate) fn split_len(bytes: &[u8]) -> Result<(usize, &[u8]), RecordError> {
    let (record, after) = take_part(bytes)?;
    Ok((record.ok_or(RecordError::Field)?.len(), after))
}

/// A varint length and as many bytes; none for -1.
#[inline]
fn take_part(bytes: &[u8]) -> Result<(Option<&[u8]>, &[u8]), RecordError> {
    let (len, rest) = varint::take(bytes).ok_or(RecordError::Short)?;
    match usize::try_from(len) {
        Ok(len) => {
            let (part, rest) = rest.split_at_checked(len).ok_or(RecordError::Short)?;
            Ok((Some(part), rest))
        }
        Err(_) if len == -1 => Ok((None, rest)),
        Err(_) => Err(RecordError::Field),
    }
}

/// A message to be appended, borrowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewRecord<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [Header],
    pub(crate) timestamp_delta: i64,
    pub(crate) offset_delta: u32,
}

impl NewRecord<'_> {
    /// The length that the record states: its bytes without the length itself.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let headers = match self.headers {
            [] => 1,
            headers => headers.iter().fold(signed_len(headers.len()), |sum, (name, value)| {
                sum.saturating_add(part_len(Some(name))).saturating_add(part_len(value.as_deref()))
            }),
        };
        1usize
            .saturating_add(varint::len(self.timestamp_delta))
            .saturating_add(varint::len(i64::from(self.offset_delta)))
            .saturating_add(part_len(self.key))
            .saturating_add(part_len(self.value))
            .saturating_add(headers)
    }

    /// Appends the record, whose length is `len`.
    #[inline]
    pub(crate) fn put(&self, len: usize, out: &mut BytesMut) {
        out.reserve(len.saturating_add(10));
        varint::put(out, signed(len));
        out.put_u8(0);
        varint::put(out, self.timestamp_delta);
        varint::put(out, i64::from(self.offset_delta));
        put_part(self.key, out);
        put_part(self.value, out);
        varint::put(out, signed(self.headers.len()));
        for (name, value) in self.headers {
            put_part(Some(name), out);
            put_part(value.as_deref(), out);
        }
    }
}

#[inline]
fn put_part(part: Option<&[u8]>, out: &mut BytesMut) {
    match part {
        None => varint::put(out, -1),
        Some(part) => {
            varint::put(out, signed(part.len()));
            out.put_slice(part);
        }
    }
}

fn part_len(part: Option<&[u8]>) -> usize {
    part.map_or(1, |part| part.len().saturating_add(signed_len(part.len())))
}

fn signed_len(len: usize) -> usize {
    varint::len(signed(len))
}

fn signed(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}
