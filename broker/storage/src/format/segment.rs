//! Segment files: the header sector, frames of direct writes, the footer of a sealed segment.
//!
//! ```text
//! 0     header sector            which log and which use of the file this is
//! 512   unused up to 4096
//! 4096  entries and frames       entries 8-aligned and contiguous; a frame starts at a sector
//! end   footer, sector-aligned   only in a sealed segment; an index that may be missing
//! ```
//!
//! A frame is how a large group is written once: header sector, entries, zeros up to a sector,
//! trailer sector. Zeros fill the gap between the bytes before a frame and its header.
//! Entries outside frames are in the journal too until a checkpoint covers them.

use postrider_protocol::types::{EntryIndex, Offset, PartitionId, TimestampMs, TopicId};

use super::codec::{Put, Reader, open_sector, seal_sector};
use super::{FormatError, SECTOR};
use crate::LogKey;

/// Where entries begin in a segment file.
pub const ENTRIES_START: u64 = 4096;

const HEADER_MAGIC: [u8; 4] = *b"PRSG";
const FRAME_HEADER_MAGIC: [u8; 4] = *b"PRFH";
const FRAME_TRAILER_MAGIC: [u8; 4] = *b"PRFT";
const FOOTER_MAGIC: [u8; 4] = *b"PRSF";
const VERSION: u16 = 1;
const SPARSE_VERSION: u16 = 2;

/// First sector of a segment file: whose it is in this use.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRSG` |
/// | 4 | 4 | crc32 of 8..512 |
/// | 8 | 2 | version: 1, or 2 for a sparse segment (see [`super::vacancy`]) |
/// | 10 | 6 | zero |
/// | 16 | 4 | file id |
/// | 20 | 4 | chain crc: header crc of the entry before the base, 0 at index 0 |
/// | 24 | 16 | topic id |
/// | 40 | 4 | partition |
/// | 44 | 4 | zero |
/// | 48 | 8 | incarnation of the log |
/// | 56 | 8 | seq: number of this segment in its log and incarnation, from 1 |
/// | 64 | 8 | salt: differs for every use of the file |
/// | 72 | 8 | base index |
/// | 80 | 8 | base offset |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Number in the file's name.
    pub file: u32,
    /// Header crc of the entry before the first one here; 0 at index 0.
    pub chain_crc: u32,
    /// Topic and partition.
    pub key: LogKey,
    /// Incarnation of the log.
    pub incarnation: u64,
    /// Number of this segment in its log, from 1.
    pub seq: u64,
    /// Differs for every use of the file, so that bytes of an earlier use are never believed.
    pub salt: u64,
    /// Index of the first entry.
    pub base_index: EntryIndex,
    /// Offset of the first message.
    pub base_offset: Offset,
    /// It holds a part of its entries and markers in place of the others.
    pub sparse: bool,
}

impl SegmentHeader {
    /// Encodes into its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut fields = Vec::with_capacity(80);
        fields.put_u16(if self.sparse { SPARSE_VERSION } else { VERSION });
        fields.put_zeros(6);
        fields.put_u32(self.file);
        fields.put_u32(self.chain_crc);
        fields.put_bytes(&self.key.topic.0);
        fields.put_u32(self.key.partition.0);
        fields.put_u32(0);
        fields.put_u64(self.incarnation);
        fields.put_u64(self.seq);
        fields.put_u64(self.salt);
        fields.put_u64(self.base_index.0);
        fields.put_u64(self.base_offset.0);
        seal_sector(HEADER_MAGIC, &fields)
    }

    /// Decodes the first sector of a file.
    ///
    /// # Errors
    /// `Magic` or `Crc`: never written, torn or damaged; `Version`: written by a newer program.
    pub fn decode(sector: &[u8]) -> Result<Self, FormatError> {
        let (_, mut reader) = open_sector(HEADER_MAGIC, sector)?;
        let version = reader.u16()?;
        let sparse = match version {
            VERSION => false,
            SPARSE_VERSION => true,
            _ => return Err(FormatError::Version(version)),
        };
        reader.bytes(6)?;
        let file = reader.u32()?;
        let chain_crc = reader.u32()?;
        let topic = TopicId(reader.array()?);
        let partition = PartitionId(reader.u32()?);
        reader.u32()?;
        Ok(Self {
            file,
            chain_crc,
            key: LogKey { topic, partition },
            incarnation: reader.number()?,
            seq: reader.number()?,
            salt: reader.number()?,
            base_index: EntryIndex(reader.number()?),
            base_offset: Offset(reader.number()?),
            sparse,
        })
    }
}

/// Sector before the entries of a direct write.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRFH` |
/// | 4 | 4 | crc32 of 8..512 |
/// | 8 | 8 | salt of the segment |
/// | 16 | 8 | g: number of the group |
/// | 24 | 8 | d: last group whose syncs all succeeded |
/// | 32 | 8 | position of this sector in the file |
/// | 40 | 8 | first index |
/// | 48 | 8 | base offset of the first entry |
/// | 56 | 4 | count of entries |
/// | 60 | 4 | body length: bytes of the entries, without the padding after them |
/// | 64 | 4 | first prev: `prev_header_crc` of the first entry |
/// | 68 | 4 | last crc: header crc of the last entry |
/// | 72 | 4 | body crc: crc32 of the entries |
/// | 76 | 4 | flags: bit 0 volatile |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Salt of the segment.
    pub salt: u64,
    /// Number of the group.
    pub group: u64,
    /// Last group whose syncs all succeeded.
    pub durable_group: u64,
    /// Position of this sector in the file.
    pub position: u64,
    /// Index of the first entry.
    pub first_index: EntryIndex,
    /// Base offset of the first entry.
    pub base_offset: Offset,
    /// How many entries.
    pub count: u32,
    /// Bytes of the entries, without the padding after them.
    pub body_len: u32,
    /// `prev_header_crc` of the first entry.
    pub first_prev: u32,
    /// Header crc of the last entry.
    pub last_crc: u32,
    /// crc32 of the entries.
    pub body_crc: u32,
    /// Written by a durability class that demands no sync: its loss is no corruption.
    pub volatile: bool,
}

impl FrameHeader {
    /// Encodes into its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut fields = Vec::with_capacity(80);
        fields.put_u64(self.salt);
        fields.put_u64(self.group);
        fields.put_u64(self.durable_group);
        fields.put_u64(self.position);
        fields.put_u64(self.first_index.0);
        fields.put_u64(self.base_offset.0);
        fields.put_u32(self.count);
        fields.put_u32(self.body_len);
        fields.put_u32(self.first_prev);
        fields.put_u32(self.last_crc);
        fields.put_u32(self.body_crc);
        fields.put_u32(u32::from(self.volatile));
        seal_sector(FRAME_HEADER_MAGIC, &fields)
    }

    /// Decodes a sector; the caller compares salt, position and index with what it expects.
    ///
    /// # Errors
    /// `Magic` or `Crc`: no frame header here, or a damaged one.
    pub fn decode(sector: &[u8]) -> Result<Self, FormatError> {
        let (_, mut reader) = open_sector(FRAME_HEADER_MAGIC, sector)?;
        let header = Self {
            salt: reader.number()?,
            group: reader.number()?,
            durable_group: reader.number()?,
            position: reader.number()?,
            first_index: EntryIndex(reader.number()?),
            base_offset: Offset(reader.number()?),
            count: reader.u32()?,
            body_len: reader.u32()?,
            first_prev: reader.u32()?,
            last_crc: reader.u32()?,
            body_crc: reader.u32()?,
            volatile: reader.u32()? & 1 != 0,
        };
        if header.count == 0 || header.body_len == 0 {
            return Err(FormatError::Field("empty frame"));
        }
        Ok(header)
    }

    /// Where the entries begin.
    #[must_use]
    pub fn body_start(&self) -> u64 {
        self.position + super::SECTOR_U64
    }

    /// Where the trailer sector is.
    #[must_use]
    pub fn trailer_position(&self) -> u64 {
        super::sector_ceil(self.body_start() + u64::from(self.body_len))
    }

    /// First position after the frame.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.trailer_position() + super::SECTOR_U64
    }

    /// The trailer that belongs to this header.
    #[must_use]
    pub fn trailer(&self) -> FrameTrailer {
        FrameTrailer {
            salt: self.salt,
            group: self.group,
            durable_group: self.durable_group,
            position: self.position,
            first_index: self.first_index,
            end_index: EntryIndex(self.first_index.0 + u64::from(self.count)),
            body_len: self.body_len,
            body_crc: self.body_crc,
            volatile: self.volatile,
        }
    }
}

/// Sector after the entries of a direct write: evidence that the frame existed when its header is lost.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRFT` |
/// | 4 | 4 | crc32 of 8..512 |
/// | 8 | 8 | salt of the segment |
/// | 16 | 8 | g |
/// | 24 | 8 | d |
/// | 32 | 8 | position of the frame's header sector |
/// | 40 | 8 | first index |
/// | 48 | 8 | end index (exclusive) |
/// | 56 | 4 | body length |
/// | 60 | 4 | body crc |
/// | 64 | 4 | flags: bit 0 volatile |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameTrailer {
    /// Salt of the segment.
    pub salt: u64,
    /// Number of the group.
    pub group: u64,
    /// Last group whose syncs all succeeded.
    pub durable_group: u64,
    /// Position of the frame's header sector.
    pub position: u64,
    /// Index of the first entry.
    pub first_index: EntryIndex,
    /// One past the index of the last entry.
    pub end_index: EntryIndex,
    /// Bytes of the entries.
    pub body_len: u32,
    /// crc32 of the entries.
    pub body_crc: u32,
    /// As in the header.
    pub volatile: bool,
}

impl FrameTrailer {
    /// Encodes into its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut fields = Vec::with_capacity(80);
        fields.put_u64(self.salt);
        fields.put_u64(self.group);
        fields.put_u64(self.durable_group);
        fields.put_u64(self.position);
        fields.put_u64(self.first_index.0);
        fields.put_u64(self.end_index.0);
        fields.put_u32(self.body_len);
        fields.put_u32(self.body_crc);
        fields.put_u32(u32::from(self.volatile));
        seal_sector(FRAME_TRAILER_MAGIC, &fields)
    }

    /// Decodes a sector.
    ///
    /// # Errors
    /// `Magic` or `Crc`: no frame trailer here, or a damaged one.
    pub fn decode(sector: &[u8]) -> Result<Self, FormatError> {
        let (_, mut reader) = open_sector(FRAME_TRAILER_MAGIC, sector)?;
        Ok(Self {
            salt: reader.number()?,
            group: reader.number()?,
            durable_group: reader.number()?,
            position: reader.number()?,
            first_index: EntryIndex(reader.number()?),
            end_index: EntryIndex(reader.number()?),
            body_len: reader.u32()?,
            body_crc: reader.u32()?,
            volatile: reader.u32()? & 1 != 0,
        })
    }
}

/// One mark of the sparse index: the entry that begins at `position`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexMark {
    /// Index of the entry.
    pub index: EntryIndex,
    /// Its base offset.
    pub offset: Offset,
    /// Its append time.
    pub time: TimestampMs,
    /// Its position in the file.
    pub position: u64,
}

/// Bytes between entries that are no entries: padding, frame trailers, frame headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// First position that is no entry.
    pub start: u64,
    /// First position of the next entry.
    pub end: u64,
}

/// What a sealed segment says about itself after its last byte. Never authoritative: when it is
/// missing or damaged the same is found by walking the entries.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRSF` |
/// | 4 | 4 | crc32 of 8..length |
/// | 8 | 4 | length of the whole footer |
/// | 12 | 4 | count of marks |
/// | 16 | 8 | salt of the segment |
/// | 24 | 8 | end index |
/// | 32 | 8 | end offset |
/// | 40 | 8 | end position of the entries |
/// | 48 | 8 | last append time |
/// | 56 | 4 | lowest leader epoch |
/// | 60 | 4 | highest leader epoch |
/// | 64 | 4 | count of holes |
/// | 68 | 4 | zero |
/// | 72 | 32 each | marks: index, offset, time, position |
/// | .. | 16 each | holes: start, end |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentFooter {
    /// Salt of the segment.
    pub salt: u64,
    /// One past the last entry.
    pub end_index: EntryIndex,
    /// One past the last message.
    pub end_offset: Offset,
    /// One past the last byte of the last entry (or of the frame around it).
    pub end_position: u64,
    /// Append time of the last entry.
    pub last_time: TimestampMs,
    /// Lowest and highest leader epoch of the entries.
    pub epochs: (u32, u32),
    /// Sparse index, rising.
    pub marks: Vec<IndexMark>,
    /// Bytes that are no entries, rising.
    pub holes: Vec<Hole>,
}

const FOOTER_FIXED: usize = 72;
const MARK_BYTES: usize = 32;
const HOLE_BYTES: usize = 16;

impl SegmentFooter {
    /// Bytes of the encoded footer.
    #[must_use]
    pub fn encoded_len(marks: usize, holes: usize) -> usize {
        FOOTER_FIXED + marks * MARK_BYTES + holes * HOLE_BYTES
    }

    /// Encodes the footer.
    ///
    /// # Panics
    /// If it had more than `u32::MAX` marks: a bug of this crate.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = Self::encoded_len(self.marks.len(), self.holes.len());
        let mut out = Vec::with_capacity(len);
        out.put_bytes(&FOOTER_MAGIC);
        out.put_u32(0);
        out.put_u32(u32::try_from(len).expect("footer below 4 GiB"));
        out.put_u32(u32::try_from(self.marks.len()).expect("marks fit u32"));
        out.put_u64(self.salt);
        out.put_u64(self.end_index.0);
        out.put_u64(self.end_offset.0);
        out.put_u64(self.end_position);
        out.put_u64(self.last_time.0);
        out.put_u32(self.epochs.0);
        out.put_u32(self.epochs.1);
        out.put_u32(u32::try_from(self.holes.len()).expect("holes fit u32"));
        out.put_u32(0);
        for mark in &self.marks {
            out.put_u64(mark.index.0);
            out.put_u64(mark.offset.0);
            out.put_u64(mark.time.0);
            out.put_u64(mark.position);
        }
        for hole in &self.holes {
            out.put_u64(hole.start);
            out.put_u64(hole.end);
        }
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes a footer from the front of `bytes` (longer input is fine).
    ///
    /// # Errors
    /// `Short`, `Magic` or `Crc`: no footer here; walk the entries instead.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != FOOTER_MAGIC {
            return Err(FormatError::Magic);
        }
        let crc = reader.u32()?;
        let len = reader.size()?;
        let checked = bytes.get(8..len).ok_or(FormatError::Short)?;
        if crc32fast::hash(checked) != crc {
            return Err(FormatError::Crc);
        }
        let marks_len = reader.size()?;
        let salt = reader.number()?;
        let end_index = EntryIndex(reader.number()?);
        let end_offset = Offset(reader.number()?);
        let end_position = reader.number()?;
        let last_time = TimestampMs(reader.u64()?);
        let epochs = (reader.u32()?, reader.u32()?);
        let holes_len = reader.size()?;
        reader.u32()?;
        let expected = marks_len
            .checked_mul(MARK_BYTES)
            .and_then(|marks| holes_len.checked_mul(HOLE_BYTES)?.checked_add(marks))
            .and_then(|lists| lists.checked_add(FOOTER_FIXED));
        if expected != Some(len) {
            return Err(FormatError::Field("footer counts"));
        }
        let mut marks = Vec::with_capacity(marks_len);
        for _ in 0..marks_len {
            marks.push(IndexMark {
                index: EntryIndex(reader.number()?),
                offset: Offset(reader.number()?),
                time: TimestampMs(reader.u64()?),
                position: reader.number()?,
            });
        }
        let mut holes = Vec::with_capacity(holes_len);
        for _ in 0..holes_len {
            holes.push(Hole { start: reader.number()?, end: reader.number()? });
        }
        Ok(Self { salt, end_index, end_offset, end_position, last_time, epochs, marks, holes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> FrameHeader {
        FrameHeader {
            salt: 7,
            group: 8,
            durable_group: 6,
            position: 4096,
            first_index: EntryIndex(10),
            base_offset: Offset(100),
            count: 3,
            body_len: 1000,
            first_prev: 1,
            last_crc: 2,
            body_crc: 3,
            volatile: false,
        }
    }

    #[test]
    fn segment_header_round_trips_and_rejects_every_flipped_byte() {
        let header = SegmentHeader {
            file: 3,
            chain_crc: 4,
            key: LogKey { topic: TopicId([9; 16]), partition: PartitionId(2) },
            incarnation: 5,
            seq: 6,
            salt: 7,
            base_index: EntryIndex(8),
            base_offset: Offset(9),
            sparse: false,
        };
        let sparse = SegmentHeader { sparse: true, ..header };
        assert_eq!(SegmentHeader::decode(&sparse.encode()), Ok(sparse));
        let sector = header.encode();
        assert_eq!(SegmentHeader::decode(&sector), Ok(header));
        for at in 0..SECTOR {
            let mut bad = sector;
            bad[at] ^= 0x10;
            assert!(SegmentHeader::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn frame_header_and_trailer_round_trip() {
        let header = frame();
        assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        let trailer = header.trailer();
        assert_eq!(FrameTrailer::decode(&trailer.encode()), Ok(trailer));
        assert_eq!(FrameTrailer::decode(&header.encode()), Err(FormatError::Magic));
        assert_eq!(header.body_start(), 4608);
        assert_eq!(header.trailer_position(), 5632);
        assert_eq!(header.end(), 6144);
        assert_eq!(trailer.end_index, EntryIndex(13));
        let volatile = FrameHeader { volatile: true, ..header };
        assert_eq!(FrameHeader::decode(&volatile.encode()), Ok(volatile));
    }

    #[test]
    fn footer_round_trips_and_rejects_damage() {
        let footer = SegmentFooter {
            salt: 1,
            end_index: EntryIndex(5),
            end_offset: Offset(50),
            end_position: 9000,
            last_time: TimestampMs(77),
            epochs: (1, 2),
            marks: vec![IndexMark {
                index: EntryIndex(1),
                offset: Offset(10),
                time: TimestampMs(70),
                position: 4096,
            }],
            holes: vec![Hole { start: 5000, end: 5632 }],
        };
        let mut bytes = footer.encode();
        bytes.extend_from_slice(&[1, 2, 3]);
        assert_eq!(SegmentFooter::decode(&bytes), Ok(footer));
        for at in 0..bytes.len() - 3 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(SegmentFooter::decode(&bad).is_err(), "byte {at}");
        }
        assert_eq!(SegmentFooter::decode(&bytes[..20]), Err(FormatError::Short));
    }
}
