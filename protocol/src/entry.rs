//! Owns the stored entry: what segments hold and `Deliver` carries. Never looks into a body, never
//! assigns an index or an offset. Driven by the storage layer, which writes and recovers entries, and
//! by the client, which takes them apart.
//!
//! ```text
//!  0 [4] magic "PRE1": the last byte is the format version
//!  4 u32 header_crc: crc32 (IEEE) of bytes 8..80
//!  8 u32 total_len: the whole entry, a multiple of 8      12 u32 body_len
//! 16 u32 body_crc: crc32 of the body                      20 u32 trailer_len
//! 24 u64 index                                            32 u64 base_offset
//! 40 u32 leader_epoch            44 u32 prev_header_crc: header_crc of the entry before, 0 at index 0
//! 48 u64 append_time, ms
//! 56 u16 kind                    58 u16 flags
//! 60 u32 record_count            64 u32 seq_count         68 u32 key_id: 0, reserved for encryption
//! 72 u32 trailer_crc: crc32 of the trailer, 0 without one 76 u32 cached CRC-32C: 0, reserved
//! 80 body | trailer | zeros to a multiple of 8
//! ```
//! Little-endian. The low byte of the flags is critical: who does not know a bit refuses the entry.

use bytes::{Buf, BufMut, Bytes};

use crate::types::{EntryIndex, LeaderEpoch, Offset, TimestampMs};

/// The size of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 80;
/// Every entry's length is a multiple of this.
pub const ENTRY_ALIGN_BYTES: usize = 8;
/// The first bytes of every entry.
pub const ENTRY_MAGIC: [u8; 4] = *b"PRE1";

/// The entry deletes its key when a topic is compacted.
pub const FLAG_TOMBSTONE: u16 = 1;
/// The body is encrypted with `key_id`.
pub const FLAG_ENCRYPTED: u16 = 1 << 1;
/// The leader or a rewrite built the body again; its producer's crc was checked before.
pub const FLAG_REBUILT: u16 = 1 << 2;

const CRITICAL_FLAGS: u16 = 0x00ff;
const KNOWN_FLAGS: u16 = FLAG_TOMBSTONE | FLAG_ENCRYPTED | FLAG_REBUILT;

macro_rules! entry_kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What an entry is. Only `Data` reaches clients.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum EntryKind {
            $($(#[$doc])* $name = $code,)*
        }

        impl EntryKind {
            /// Every kind, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind with this number, if this build knows it.
            #[must_use]
            pub fn from_u16(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

entry_kinds! {
    /// A batch.
    Data = 1,
    /// A batch whose messages have no offsets yet.
    Delayed = 2,
    /// Messages of a queue subscription are settled.
    Settle = 3,
    /// Messages of a queue subscription are given back.
    Return = 4,
    /// A message is about to move to a dead letter topic.
    DeadIntent = 5,
    /// It has moved.
    DeadDone = 6,
    /// A subscription's position is moved.
    Seek = 7,
    /// A durable subscription begins.
    Subscribe = 8,
    /// A stream subscription has a new owner.
    SetOwner = 9,
    /// Older epochs of a producer session are refused.
    ProducerFence = 10,
    /// Leader time has passed.
    TimeMark = 11,
    /// A leadership begins.
    EpochStart = 12,
    /// A hash of the folded state, for comparison.
    StateHash = 13,
    /// A durable subscription ends.
    Unsubscribe = 14,
    /// A metadata command.
    Metadata = 15,
    /// A producer session is forgotten.
    ProducerExpire = 16,
    /// Delayed messages are taken back.
    DelayCancel = 17,
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    /// The bytes end inside the entry.
    #[error("the bytes end inside an entry")]
    Short,
    /// No entry begins here.
    #[error("no entry begins here")]
    Magic,
    /// An entry of another format version begins here.
    #[error("the entry has format version {:?}, which is not known here", char::from(*.0))]
    Version(u8),
    /// The header is damaged.
    #[error("an entry header does not match its crc")]
    HeaderCrc,
    /// The lengths contradict each other.
    #[error("the lengths in an entry header contradict each other")]
    Length,
    /// A kind that is not known here.
    #[error("the entry kind {0} is not known here")]
    Kind(u16),
    /// A critical flag that is not known here.
    #[error("the entry has unknown critical flags {0:#06x}")]
    Flags(u16),
    /// Counts or reserved fields have values that the kind cannot have.
    #[error("a field of an entry header has a value that is not defined")]
    Field,
    /// The body is damaged.
    #[error("an entry body does not match its crc")]
    BodyCrc,
    /// The trailer is damaged.
    #[error("an entry trailer does not match its crc")]
    TrailerCrc,
    /// The bytes after the trailer are not zeros.
    #[error("the padding of an entry is not zero")]
    Padding,
}

/// The length of an entry with these parts; `usize::MAX` if there is no such length.
#[must_use]
pub const fn entry_len(body_len: usize, trailer_len: usize) -> usize {
    let parts = ENTRY_HEADER_BYTES.saturating_add(body_len).saturating_add(trailer_len);
    match parts.checked_next_multiple_of(ENTRY_ALIGN_BYTES) {
        Some(len) => len,
        None => usize::MAX,
    }
}

/// An entry's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// crc of the bytes 8..80. `decode` fills it; `encode` ignores it and writes the right one.
    pub header_crc: u32,
    /// The whole entry in bytes.
    pub total_len: u32,
    /// The body in bytes.
    pub body_len: u32,
    /// crc of the body.
    pub body_crc: u32,
    /// The trailer in bytes.
    pub trailer_len: u32,
    /// The entry's number in its partition log.
    pub index: EntryIndex,
    /// The offset of the first message; for other kinds, of the next message.
    pub base_offset: Offset,
    /// The leadership that wrote it.
    pub leader_epoch: LeaderEpoch,
    /// The crc of the header before, 0 at index 0.
    pub prev_header_crc: u32,
    /// The broker's wall time, monotone within a partition.
    pub append_time: TimestampMs,
    /// What it is.
    pub kind: EntryKind,
    /// [`FLAG_TOMBSTONE`] and its siblings.
    pub flags: u16,
    /// `Data`: how many offsets it covers. `Delayed`: how many messages it holds. Otherwise 0.
    pub record_count: u32,
    /// How many sequences of its producer session it covers.
    pub seq_count: u32,
    /// Reserved for encryption.
    pub key_id: u32,
    /// crc of the trailer, 0 without one.
    pub trailer_crc: u32,
    /// Reserved: a cached CRC-32C of the body.
    pub cached_crc32c: u32,
}

impl EntryHeader {
    /// The header's bytes, with the crc that fits them.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_HEADER_BYTES] {
        let mut bytes = [0; ENTRY_HEADER_BYTES];
        let mut out = bytes.as_mut_slice();
        out.put_slice(&ENTRY_MAGIC);
        out.put_u32_le(0);
        out.put_u32_le(self.total_len);
        out.put_u32_le(self.body_len);
        out.put_u32_le(self.body_crc);
        out.put_u32_le(self.trailer_len);
        out.put_u64_le(self.index.0);
        out.put_u64_le(self.base_offset.0);
        out.put_u32_le(self.leader_epoch.0);
        out.put_u32_le(self.prev_header_crc);
        out.put_u64_le(self.append_time.0);
        out.put_u16_le(self.kind as u16);
        out.put_u16_le(self.flags);
        out.put_u32_le(self.record_count);
        out.put_u32_le(self.seq_count);
        out.put_u32_le(self.key_id);
        out.put_u32_le(self.trailer_crc);
        out.put_u32_le(self.cached_crc32c);
        let crc = Self::crc_of(&bytes);
        if let Some(place) = bytes.get_mut(4..8) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// The crc that a header with these bytes must carry.
    #[must_use]
    pub fn crc_of(bytes: &[u8; ENTRY_HEADER_BYTES]) -> u32 {
        let (_magic_and_crc, covered) = bytes.split_at(8);
        crc32fast::hash(covered)
    }

    /// The header at the front of `bytes`. Says nothing about the body.
    ///
    /// # Errors
    /// There are fewer than 80 bytes, no entry begins here, it is damaged, or it is of a kind or
    /// carries a critical flag that this build must refuse.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let bytes: &[u8; ENTRY_HEADER_BYTES] = bytes.first_chunk().ok_or(EntryError::Short)?;
        let [magic @ .., version] = ENTRY_MAGIC;
        let [m0, m1, m2, v, c0, c1, c2, c3, ..] = *bytes;
        if [m0, m1, m2] != magic {
            return Err(EntryError::Magic);
        }
        let header_crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if v != version {
            return Err(EntryError::Version(v));
        }
        if Self::crc_of(bytes) != header_crc {
            return Err(EntryError::HeaderCrc);
        }
        let header = Self::fields(bytes, header_crc)?;
        header.check()?;
        Ok(header)
    }

    fn fields(bytes: &[u8; ENTRY_HEADER_BYTES], header_crc: u32) -> Result<Self, EntryError> {
        let (_magic_and_crc, mut input) = bytes.split_at(8);
        Ok(Self {
            header_crc,
            total_len: input.get_u32_le(),
            body_len: input.get_u32_le(),
            body_crc: input.get_u32_le(),
            trailer_len: input.get_u32_le(),
            index: EntryIndex(input.get_u64_le()),
            base_offset: Offset(input.get_u64_le()),
            leader_epoch: LeaderEpoch(input.get_u32_le()),
            prev_header_crc: input.get_u32_le(),
            append_time: TimestampMs(input.get_u64_le()),
            kind: {
                let kind = input.get_u16_le();
                EntryKind::from_u16(kind).ok_or(EntryError::Kind(kind))?
            },
            flags: input.get_u16_le(),
            record_count: input.get_u32_le(),
            seq_count: input.get_u32_le(),
            key_id: input.get_u32_le(),
            trailer_crc: input.get_u32_le(),
            cached_crc32c: input.get_u32_le(),
        })
    }

    fn check(&self) -> Result<(), EntryError> {
        let unknown = self.flags & CRITICAL_FLAGS & !KNOWN_FLAGS;
        if unknown != 0 {
            return Err(EntryError::Flags(unknown));
        }
        if to_usize(self.total_len)
            != entry_len(to_usize(self.body_len), to_usize(self.trailer_len))
        {
            return Err(EntryError::Length);
        }
        let counts_fit = match self.kind {
            EntryKind::Data => self.record_count > 0,
            EntryKind::Delayed => true,
            _ => self.record_count == 0,
        };
        let numbers_fit = self.index.0 < u64::MAX
            && self.base_offset.0.checked_add(u64::from(self.record_count)).is_some();
        let trailer_fits = self.trailer_len > 0 || self.trailer_crc == 0;
        if counts_fit && numbers_fit && trailer_fits { Ok(()) } else { Err(EntryError::Field) }
    }

    /// The offset after its last message.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        match self.kind {
            EntryKind::Data => {
                Offset(self.base_offset.0.saturating_add(u64::from(self.record_count)))
            }
            _ => self.base_offset,
        }
    }

    /// The index of the entry after it.
    #[must_use]
    pub fn next_index(&self) -> EntryIndex {
        EntryIndex(self.index.0.saturating_add(1))
    }
}

/// A whole entry, borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryView<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// Its body.
    pub body: &'a [u8],
    /// Its trailer.
    pub trailer: &'a [u8],
}

impl<'a> EntryView<'a> {
    /// The entry at the front of `bytes`, and what follows it. The header's crc is checked, the
    /// others are not.
    ///
    /// # Errors
    /// No whole, undamaged, known entry begins here.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), EntryError> {
        let header = EntryHeader::decode(bytes)?;
        let (entry, after) =
            bytes.split_at_checked(to_usize(header.total_len)).ok_or(EntryError::Short)?;
        let (_header, parts) =
            entry.split_at_checked(ENTRY_HEADER_BYTES).ok_or(EntryError::Length)?;
        let (body, parts) =
            parts.split_at_checked(to_usize(header.body_len)).ok_or(EntryError::Length)?;
        let (trailer, padding) =
            parts.split_at_checked(to_usize(header.trailer_len)).ok_or(EntryError::Length)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(EntryError::Padding);
        }
        Ok((Self { header, body, trailer }, after))
    }

    /// Compares body and trailer with their crcs.
    ///
    /// # Errors
    /// [`EntryError::BodyCrc`], [`EntryError::TrailerCrc`].
    pub fn check_body(&self) -> Result<(), EntryError> {
        if crc32fast::hash(self.body) != self.header.body_crc {
            return Err(EntryError::BodyCrc);
        }
        if crc32fast::hash(self.trailer) != self.header.trailer_crc {
            return Err(EntryError::TrailerCrc);
        }
        Ok(())
    }
}

/// The entries in `bytes`, borrowed. Ends after the first error.
#[derive(Clone, Debug)]
pub struct EntryViews<'a> {
    rest: &'a [u8],
}

impl<'a> EntryViews<'a> {
    /// The entries that follow each other in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for EntryViews<'a> {
    type Item = Result<EntryView<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let split = EntryView::split(self.rest);
        self.rest = split.as_ref().map_or(&[], |(_entry, after)| after);
        Some(split.map(|(entry, _after)| entry))
    }
}

/// A whole entry whose parts share the memory that they came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its header.
    pub header: EntryHeader,
    /// Its body.
    pub body: Bytes,
    /// Its trailer.
    pub trailer: Bytes,
}

impl Entry {
    /// The same entry, borrowed.
    #[must_use]
    pub fn view(&self) -> EntryView<'_> {
        EntryView { header: self.header, body: &self.body, trailer: &self.trailer }
    }

    /// Compares body and trailer with their crcs.
    ///
    /// # Errors
    /// [`EntryError::BodyCrc`], [`EntryError::TrailerCrc`].
    pub fn check_body(&self) -> Result<(), EntryError> {
        self.view().check_body()
    }
}

/// Takes one entry off the front of `bytes` without a copy, and checks its header; the caller checks
/// the body with [`Entry::check_body`] if nobody has.
///
/// # Errors
/// No whole, undamaged, known entry begins here; `bytes` is then as before.
pub fn split_entry(bytes: &mut Bytes) -> Result<Entry, EntryError> {
    let (view, _after) = EntryView::split(bytes)?;
    let entry = Entry {
        header: view.header,
        body: bytes.slice_ref(view.body),
        trailer: bytes.slice_ref(view.trailer),
    };
    bytes.advance(to_usize(entry.header.total_len));
    Ok(entry)
}

/// The entries in shared bytes. Ends after the first error.
#[derive(Clone, Debug)]
pub struct EntryIter {
    rest: Bytes,
}

impl EntryIter {
    /// The entries that follow each other in `bytes`.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }
}

impl Iterator for EntryIter {
    type Item = Result<Entry, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = split_entry(&mut self.rest);
        if entry.is_err() {
            self.rest.clear();
        }
        Some(entry)
    }
}

fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
