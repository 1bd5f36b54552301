//! Owns how values become bytes: the checked [`Reader`], the [`Writer`], and [`Wire`] for every type
//! that a message may hold. Never knows a message. Driven by `message` and by whoever else stores
//! values in this encoding.
//!
//! Everything is little-endian. A string is a `u16` length and UTF-8 bytes; a list a `u32` count and
//! its items; bytes a `u32` length and the bytes; an option a byte 0, or 1 and the value; a truth value a
//! byte 0 or 1. Each value has exactly one encoding, so what decodes encodes to the same bytes again.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{
    ClusterId, CorrelationId, Durability, EntryIndex, Incarnation, LeaderEpoch, MemberId, NodeId,
    Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, StorageId, SubscriptionHandle,
    SubscriptionId, TimestampMs, TopicId, TopicKind,
};

/// The longest string in bytes. Longer ones are refused by every decoder.
pub const STRING_BYTES_MAX: usize = 1024;
/// The most items that a list may have, whatever its frame's size.
pub const LIST_ITEMS_MAX: u32 = 1 << 20;

/// The most bytes that one value of type `Bytes` may have, whatever its frame's size.
pub const BLOB_BYTES_MAX: usize = 64 << 20;

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a value.
    #[error("the body ends inside a value")]
    Short,
    /// Bytes follow the last value.
    #[error("{0} bytes follow the last value")]
    Trailing(usize),
    /// A value that the field cannot have.
    #[error("the field {0} has a value that is not defined")]
    Invalid(&'static str),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    Utf8,
    /// A string is longer than [`STRING_BYTES_MAX`].
    #[error("a string has {0} bytes, more than {STRING_BYTES_MAX}")]
    StringTooLong(usize),
    /// A list claims more items than its bytes, or the bound of its type, allow.
    #[error("a list claims {0} items, more than its bytes can hold or than are allowed")]
    ListTooLong(u32),
    /// The frame is of another api or version than the one asked for.
    #[error("the frame has api {api} version {version}, which is not the expected message")]
    OtherMessage {
        /// The frame's api number.
        api: u16,
        /// The frame's version.
        version: u8,
    },
}

/// Takes values off the front of bytes and never reads past their end.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next value.
    ///
    /// # Errors
    /// The bytes are too few, or not a canonical value of the type.
    pub fn take<T: Wire>(&mut self) -> Result<T, DecodeError> {
        T::take(self)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(array)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next `len` bytes as text.
    ///
    /// # Errors
    /// The bytes are too few, too many for a string, or not UTF-8.
    pub fn text(&mut self, len: usize) -> Result<&'a str, DecodeError> {
        if len > STRING_BYTES_MAX {
            return Err(DecodeError::StringTooLong(len));
        }
        std::str::from_utf8(self.bytes(len)?).map_err(|_not_utf8| DecodeError::Utf8)
    }

    /// A list's item count, at most [`LIST_ITEMS_MAX`], which the bytes that are left can hold.
    ///
    /// # Errors
    /// [`DecodeError::ListTooLong`] if `count * item_bytes_min` bytes are not there.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        self.count_within(item_bytes_min, LIST_ITEMS_MAX)
    }

    fn count_within(
        &mut self,
        item_bytes_min: usize,
        items_max: u32,
    ) -> Result<usize, DecodeError> {
        let count: u32 = self.take()?;
        let fits = usize::try_from(count)
            .ok()
            .filter(|count| count.saturating_mul(item_bytes_min.max(1)) <= self.rest.len());
        match fits {
            Some(fits) if count <= items_max => Ok(fits),
            _ => Err(DecodeError::ListTooLong(count)),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] if bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// Appends values to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
}

impl<'a> Writer<'a> {
    /// A writer at the end of `out`.
    #[must_use]
    pub fn new(out: &'a mut BytesMut) -> Self {
        Self { out }
    }

    /// Appends a value.
    pub fn put<T: Wire>(&mut self, value: &T) {
        value.put(self);
    }

    /// Appends bytes without a length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    /// Appends a string. One that no length field can state is cut to 65,535 bytes, which every
    /// decoder refuses: a string is never silently another one.
    pub fn text(&mut self, text: &str) {
        let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.out.put_u16_le(len);
        self.out.put_slice(text.as_bytes().get(..usize::from(len)).unwrap_or_default());
    }

    /// Appends a list's count. One above `u32::MAX` is written as that, which every decoder refuses.
    pub fn count(&mut self, count: usize) {
        self.out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// A value with exactly one encoding.
pub trait Wire: Sized {
    /// The fewest bytes that a value takes; bounds what a list's count may claim.
    const BYTES_MIN: usize;
    /// The most such values that one list may hold.
    const LIST_MAX: u32 = LIST_ITEMS_MAX;

    /// Appends the value.
    fn put(&self, out: &mut Writer<'_>);

    /// Takes the value off the front.
    ///
    /// # Errors
    /// The bytes are too few, or not a canonical value of the type.
    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// Whether `self` may stand in a list right after `before`. A type whose lists are ordered says so here.
    fn may_follow(&self, _before: &Self) -> bool {
        true
    }
}

macro_rules! wire_numbers {
    ($($number:ty),*) => {
        $(impl Wire for $number {
            const BYTES_MIN: usize = size_of::<$number>();

            fn put(&self, out: &mut Writer<'_>) {
                out.bytes(&self.to_le_bytes());
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self::from_le_bytes(*input.array()?))
            }
        })*
    };
}

macro_rules! wire_newtypes {
    ($($newtype:ident($inner:ty)),* $(,)?) => {
        $(impl Wire for $newtype {
            const BYTES_MIN: usize = size_of::<$inner>();

            fn put(&self, out: &mut Writer<'_>) {
                self.0.put(out);
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(input.take()?))
            }
        })*
    };
}

wire_numbers!(u8, u16, u32, u64, i64);

wire_newtypes!(
    ClusterId([u8; 16]),
    CorrelationId(u64),
    EntryIndex(u64),
    Incarnation(u64),
    LeaderEpoch(u32),
    MemberId([u8; 16]),
    NodeId(u32),
    Offset(u64),
    PartitionId(u32),
    ProducerEpoch(u16),
    ProducerId(i64),
    Sequence(u64),
    StorageId([u8; 16]),
    SubscriptionHandle(u32),
    SubscriptionId([u8; 16]),
    TimestampMs(u64),
    TopicId([u8; 16]),
);

impl Wire for [u8; 16] {
    const BYTES_MIN: usize = 16;

    fn put(&self, out: &mut Writer<'_>) {
        out.bytes(self);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(*input.array()?)
    }
}

impl Wire for bool {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        u8::from(*self).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("truth value")),
        }
    }
}

impl Wire for Durability {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        (*self as u8).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_u8(input.take()?).ok_or(DecodeError::Invalid("durability"))
    }
}

impl Wire for TopicKind {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        (*self as u8).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_u8(input.take()?).ok_or(DecodeError::Invalid("topic kind"))
    }
}

impl Wire for String {
    const BYTES_MIN: usize = 2;

    fn put(&self, out: &mut Writer<'_>) {
        out.text(self);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len: u16 = input.take()?;
        Ok(input.text(usize::from(len))?.to_owned())
    }
}

/// Bytes whose meaning is another layer's. Taking them copies them.
impl Wire for Bytes {
    const BYTES_MIN: usize = 4;

    fn put(&self, out: &mut Writer<'_>) {
        out.count(self.len());
        out.bytes(self);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len: u32 = input.take()?;
        match usize::try_from(len) {
            Ok(fits) if fits <= BLOB_BYTES_MAX => Ok(Self::copy_from_slice(input.bytes(fits)?)),
            _ => Err(DecodeError::ListTooLong(len)),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if input.take::<bool>()? { Some(input.take()?) } else { None })
    }
}

impl<T: Wire> Wire for Vec<T> {
    const BYTES_MIN: usize = 4;

    fn put(&self, out: &mut Writer<'_>) {
        out.count(self.len());
        for item in self {
            item.put(out);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = input.count_within(T::BYTES_MIN, T::LIST_MAX)?;
        let mut items = Self::with_capacity(count);
        for _ in 0..count {
            let item: T = input.take()?;
            if items.last().is_some_and(|before| !item.may_follow(before)) {
                return Err(DecodeError::Invalid("order of a list"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    const BYTES_MIN: usize = A::BYTES_MIN.saturating_add(B::BYTES_MIN);

    fn put(&self, out: &mut Writer<'_>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((input.take()?, input.take()?))
    }
}
