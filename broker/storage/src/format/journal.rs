//! Journal files: groups and the records in them.
//!
//! ```text
//! group = header sector | records, zeros up to a sector | trailer sector
//! ```
//!
//! A journal file holds groups back to back from position 0. Switching to the next file raises the
//! generation by one. The bytes after the last group belong to an earlier use of the file: an older
//! generation and older group numbers. The trailer is evidence only; a whole body stands without it.

use postrider_protocol::types::{Durability, EntryIndex, Offset, PartitionId, TopicId};

use super::codec::{FILES_END, Put, Reader, class_code, class_of, open_sector, seal_sector};
use super::vacancy::Vacancy;
use super::{FormatError, SECTOR, SECTOR_U64, sector_ceil};
use crate::LogKey;

const GROUP_HEADER_MAGIC: [u8; 4] = *b"PRJH";
const GROUP_TRAILER_MAGIC: [u8; 4] = *b"PRJT";

/// First sector of a group.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRJH` |
/// | 4 | 4 | crc32 of 8..512; the "crc of the group" |
/// | 8 | 8 | generation of the journal file |
/// | 16 | 8 | g: number of the group |
/// | 24 | 8 | d: last group whose syncs all succeeded |
/// | 32 | 8 | position of this sector in the file |
/// | 40 | 4 | count of records |
/// | 44 | 4 | body length: bytes of the records, without padding |
/// | 48 | 4 | body crc: crc32 of the records |
/// | 52 | 4 | crc of the previous group, 0 for the first of a data directory |
/// | 56 | 4 | flags: bit 0 written without a sync, bit 1 recovery group |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    /// Generation of the journal file.
    pub generation: u64,
    /// Number of the group.
    pub group: u64,
    /// Last group whose syncs all succeeded.
    pub durable_group: u64,
    /// Position of this sector in the file.
    pub position: u64,
    /// How many records.
    pub count: u32,
    /// Bytes of the records, without padding.
    pub body_len: u32,
    /// crc32 of the records.
    pub body_crc: u32,
    /// crc of the previous journal group's header sector.
    pub prev_crc: u32,
    /// The group held only entries of classes that demand no sync, and was not synced by itself.
    pub unsynced: bool,
    /// Written by recovery: supersedes groups above its `durable_group` in older generations.
    pub recovery: bool,
}

impl GroupHeader {
    /// Encodes into its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut fields = Vec::with_capacity(64);
        fields.put_u64(self.generation);
        fields.put_u64(self.group);
        fields.put_u64(self.durable_group);
        fields.put_u64(self.position);
        fields.put_u32(self.count);
        fields.put_u32(self.body_len);
        fields.put_u32(self.body_crc);
        fields.put_u32(self.prev_crc);
        fields.put_u32(u32::from(self.unsynced) | u32::from(self.recovery) << 1);
        seal_sector(GROUP_HEADER_MAGIC, &fields)
    }

    /// Decodes a sector and returns the header with its own crc (what the next group links to).
    ///
    /// # Errors
    /// `Magic` or `Crc`: no group header here, or a damaged one.
    pub fn decode(sector: &[u8]) -> Result<(Self, u32), FormatError> {
        let (crc, mut reader) = open_sector(GROUP_HEADER_MAGIC, sector)?;
        let generation = reader.number()?;
        let group = reader.number()?;
        let durable_group = reader.number()?;
        let position = reader.number()?;
        let count = reader.u32()?;
        let body_len = reader.u32()?;
        let body_crc = reader.u32()?;
        let prev_crc = reader.u32()?;
        let flags = reader.u32()?;
        let header = Self {
            generation,
            group,
            durable_group,
            position,
            count,
            body_len,
            body_crc,
            prev_crc,
            unsynced: flags & 1 != 0,
            recovery: flags & 2 != 0,
        };
        Ok((header, crc))
    }

    /// crc of an encoded header sector: what the next group links to.
    ///
    /// # Panics
    /// Never: a sector is longer than its crc field.
    #[must_use]
    pub fn crc_of(sector: &[u8; SECTOR]) -> u32 {
        u32::from_le_bytes([sector[4], sector[5], sector[6], sector[7]])
    }

    /// Where the records begin.
    #[must_use]
    pub fn body_start(&self) -> u64 {
        self.position + SECTOR_U64
    }

    /// Where the trailer sector is.
    #[must_use]
    pub fn trailer_position(&self) -> u64 {
        sector_ceil(self.body_start() + u64::from(self.body_len))
    }

    /// First position after the group.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.trailer_position() + SECTOR_U64
    }

    /// The trailer that belongs to this header.
    #[must_use]
    pub fn trailer(&self) -> GroupTrailer {
        GroupTrailer {
            generation: self.generation,
            group: self.group,
            durable_group: self.durable_group,
            position: self.position,
            body_len: self.body_len,
            body_crc: self.body_crc,
            unsynced: self.unsynced,
            recovery: self.recovery,
        }
    }

    /// Bytes in the journal of a group whose records take `body_len` bytes.
    #[must_use]
    pub const fn group_bytes(body_len: u64) -> u64 {
        SECTOR_U64 + sector_ceil(body_len) + SECTOR_U64
    }
}

/// Last sector of a group: evidence that it existed when its header is lost.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRJT` |
/// | 4 | 4 | crc32 of 8..512 |
/// | 8 | 8 | generation |
/// | 16 | 8 | g |
/// | 24 | 8 | d |
/// | 32 | 8 | position of the group's header sector |
/// | 40 | 4 | body length |
/// | 44 | 4 | body crc |
/// | 48 | 4 | flags as in the header |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupTrailer {
    /// Generation of the journal file.
    pub generation: u64,
    /// Number of the group.
    pub group: u64,
    /// Last group whose syncs all succeeded.
    pub durable_group: u64,
    /// Position of the group's header sector.
    pub position: u64,
    /// Bytes of the records.
    pub body_len: u32,
    /// crc32 of the records.
    pub body_crc: u32,
    /// As in the header.
    pub unsynced: bool,
    /// As in the header.
    pub recovery: bool,
}

impl GroupTrailer {
    /// Encodes into its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut fields = Vec::with_capacity(64);
        fields.put_u64(self.generation);
        fields.put_u64(self.group);
        fields.put_u64(self.durable_group);
        fields.put_u64(self.position);
        fields.put_u32(self.body_len);
        fields.put_u32(self.body_crc);
        fields.put_u32(u32::from(self.unsynced) | u32::from(self.recovery) << 1);
        seal_sector(GROUP_TRAILER_MAGIC, &fields)
    }

    /// Decodes a sector.
    ///
    /// # Errors
    /// `Magic` or `Crc`: no group trailer here, or a damaged one.
    pub fn decode(sector: &[u8]) -> Result<Self, FormatError> {
        let (_, mut reader) = open_sector(GROUP_TRAILER_MAGIC, sector)?;
        let generation = reader.number()?;
        let group = reader.number()?;
        let durable_group = reader.number()?;
        let position = reader.number()?;
        let body_len = reader.u32()?;
        let body_crc = reader.u32()?;
        let flags = reader.u32()?;
        Ok(Self {
            generation,
            group,
            durable_group,
            position,
            body_len,
            body_crc,
            unsynced: flags & 1 != 0,
            recovery: flags & 2 != 0,
        })
    }
}

/// A record of a group. Every record begins with {u8 kind, u8 zero, u16 zero, u32 length of the whole
/// record}, is 8-aligned, and (but for `Mark` and `Recovery`) names its log at fixed places:
///
/// | kind | name | fields after the first 8 bytes |
/// |---|---|---|
/// | 1 | Inline | topic \[16\], partition u32, count u32, incarnation u64, seq u64, position u64, first index u64, entries |
/// | 2 | Roll | topic, partition, chain crc u32, incarnation, seq u64, file u32, zero u32, salt u64, base index u64, base offset u64 |
/// | 3 | Truncate | topic, partition, chain crc u32, incarnation, end index u64, end offset u64 |
/// | 4 | Drop | topic, partition, zero u32, incarnation, new incarnation u64 (0 = gone) |
/// | 5 | Mark | none |
/// | 6 | Recovery | doubtful u64 (0 or 1) |
/// | 7 | Trim | topic, partition, zero u32, incarnation, log start index u64, log start offset u64, release index u64 |
/// | 8 | Damage | topic, partition, zero u32, incarnation, from index, end index, from offset, end offset (u64 each) |
/// | 9 | Reserve | topic, partition, class u32, incarnation, end index u64, end offset u64 |
/// | 10 | Vacate | topic, partition, zero u32, incarnation, seq u64, from index, end index, from offset, end offset (u64 each) |
/// | 11 | Replace | topic, partition, file u32, incarnation, seq u64, salt u64, end position u64 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// A run of consecutive entries of one log and where they belong in its segment.
    Inline(Inline<'a>),
    /// A log goes on in a new segment.
    Roll(Roll),
    /// The log ends at `end_index`; what was written behind it is void. Closes the segment.
    Truncate {
        /// Topic and partition.
        key: LogKey,
        /// Incarnation of the log.
        incarnation: u64,
        /// New end of the log.
        end_index: EntryIndex,
        /// Offset of the next message.
        end_offset: Offset,
        /// Header crc of the last entry that stays; 0 when none.
        chain_crc: u32,
    },
    /// The incarnation is void with all its segments.
    Drop {
        /// Topic and partition.
        key: LogKey,
        /// The incarnation that ends.
        incarnation: u64,
        /// The incarnation that follows; 0 when the log is gone.
        new_incarnation: u64,
    },
    /// Nothing happened: carries `durable_group` to the disk when the store goes idle.
    Mark,
    /// Head of a recovery group.
    Recovery {
        /// An unproven tail was cut, and nobody has repaired it since.
        doubtful: bool,
    },
    /// Retention moved the start of a log. Segments wholly below `release_index` are released; those
    /// between it and the start stay, because a kept snapshot needs their entries.
    Trim {
        /// Topic and partition.
        key: LogKey,
        /// Incarnation of the log.
        incarnation: u64,
        /// First entry that readers may ask for.
        start_index: EntryIndex,
        /// Its offset.
        start_offset: Offset,
        /// Not above `start_index`.
        release_index: EntryIndex,
    },
    /// A range that was acknowledged and cannot be read: stays reported until it is repaired or trimmed.
    Damage {
        /// Topic and partition.
        key: LogKey,
        /// Incarnation of the log.
        incarnation: u64,
        /// What is lost.
        damage: Damage,
    },
    /// A log of a class that demands no sync may have used every number below this end. After a stop
    /// that was not clean the numbers from the recovered end up to it are lost, never used again.
    Reserve {
        /// Topic and partition.
        key: LogKey,
        /// Incarnation of the log.
        incarnation: u64,
        /// Class of the log.
        class: Durability,
        /// One past the last index that may have been used.
        end_index: EntryIndex,
        /// One past the last offset that may have been used.
        end_offset: Offset,
    },
    /// A segment is kept no longer although older ones are: all its messages are settled, and no snapshot
    /// of any slot needs its entries.
    Vacate {
        /// Topic and partition.
        key: LogKey,
        /// Incarnation of the log.
        incarnation: u64,
        /// Which segment of the log.
        seq: u64,
        /// All that it covered.
        vacancy: Vacancy,
    },
    /// A segment is in another file now, with a part of its entries: see [`super::vacancy`]. That file was
    /// written and synced before.
    Replace {
        /// Topic and partition.
        key: LogKey,
        /// Incarnation of the log.
        incarnation: u64,
        /// Which segment of the log.
        seq: u64,
        /// Where it is.
        place: SparsePlace,
    },
}

/// Where a sparse segment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SparsePlace {
    /// Segment file.
    pub file: u32,
    /// Salt of this use of the file.
    pub salt: u64,
    /// One past its last byte.
    pub end_position: u64,
}

/// A range of a log that was acknowledged and cannot be read. Half-open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// First lost entry.
    pub from_index: EntryIndex,
    /// One past the last lost entry.
    pub end_index: EntryIndex,
    /// First lost message.
    pub from_offset: Offset,
    /// One past the last lost message.
    pub end_offset: Offset,
}

/// See [`Record::Inline`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inline<'a> {
    /// Topic and partition.
    pub key: LogKey,
    /// Incarnation of the log.
    pub incarnation: u64,
    /// Which segment of the log.
    pub seq: u64,
    /// Position of the first entry in the segment file.
    pub position: u64,
    /// Index of the first entry.
    pub first_index: EntryIndex,
    /// How many entries.
    pub count: u32,
    /// The entries, verbatim and contiguous, 8-aligned.
    pub entries: &'a [u8],
}

/// See [`Record::Roll`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Roll {
    /// Topic and partition.
    pub key: LogKey,
    /// Incarnation of the log.
    pub incarnation: u64,
    /// Number of the new segment in its log, from 1.
    pub seq: u64,
    /// Segment file.
    pub file: u32,
    /// Salt of this use of the file.
    pub salt: u64,
    /// Index of the first entry.
    pub base_index: EntryIndex,
    /// Offset of the first message.
    pub base_offset: Offset,
    /// Header crc of the entry before; 0 when none.
    pub chain_crc: u32,
}

/// Bytes of an Inline record before its entries.
pub const INLINE_HEADER_BYTES: usize = 64;

const INLINE: u8 = 1;
const ROLL: u8 = 2;
const TRUNCATE: u8 = 3;
const DROP: u8 = 4;
const MARK: u8 = 5;
const RECOVERY: u8 = 6;
const TRIM: u8 = 7;
const DAMAGE: u8 = 8;
const RESERVE: u8 = 9;
const VACATE: u8 = 10;
const REPLACE: u8 = 11;

fn put_record(out: &mut Vec<u8>, kind: u8, length: u32) {
    out.put_u8(kind);
    out.put_zeros(3);
    out.put_u32(length);
}

fn put_log(out: &mut Vec<u8>, key: LogKey, word: u32, incarnation: u64) {
    out.put_bytes(&key.topic.0);
    out.put_u32(key.partition.0);
    out.put_u32(word);
    out.put_u64(incarnation);
}

/// Encodes the head of an Inline record whose `entries_len` bytes of entries follow elsewhere, so that
/// they need not be copied. `inline.entries` is not looked at.
///
/// # Panics
/// If the entries are not 8-aligned in length or longer than a record can be: a bug of this crate.
pub fn put_inline_header(out: &mut Vec<u8>, inline: &Inline<'_>, entries_len: usize) {
    assert!(entries_len.is_multiple_of(8), "entries are 8-aligned: {entries_len}");
    let length = u32::try_from(INLINE_HEADER_BYTES + entries_len).expect("record below 4 GiB");
    put_record(out, INLINE, length);
    put_log(out, inline.key, inline.count, inline.incarnation);
    out.put_u64(inline.seq);
    out.put_u64(inline.position);
    out.put_u64(inline.first_index.0);
}

impl<'a> Record<'a> {
    /// Appends the encoded record.
    ///
    /// # Panics
    /// If entries are not 8-aligned or too long: a bug of this crate.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        match self {
            Self::Inline(inline) => {
                put_inline_header(out, inline, inline.entries.len());
                out.put_bytes(inline.entries);
            }
            Self::Roll(roll) => {
                put_record(out, ROLL, 80);
                put_log(out, roll.key, roll.chain_crc, roll.incarnation);
                out.put_u64(roll.seq);
                out.put_u32(roll.file);
                out.put_u32(0);
                out.put_u64(roll.salt);
                out.put_u64(roll.base_index.0);
                out.put_u64(roll.base_offset.0);
            }
            Self::Truncate { key, incarnation, end_index, end_offset, chain_crc } => {
                put_record(out, TRUNCATE, 56);
                put_log(out, *key, *chain_crc, *incarnation);
                out.put_u64(end_index.0);
                out.put_u64(end_offset.0);
            }
            Self::Drop { key, incarnation, new_incarnation } => {
                put_record(out, DROP, 48);
                put_log(out, *key, 0, *incarnation);
                out.put_u64(*new_incarnation);
            }
            Self::Mark => put_record(out, MARK, 8),
            Self::Recovery { doubtful } => {
                put_record(out, RECOVERY, 16);
                out.put_u64(u64::from(*doubtful));
            }
            Self::Trim { key, incarnation, start_index, start_offset, release_index } => {
                put_record(out, TRIM, 64);
                put_log(out, *key, 0, *incarnation);
                out.put_u64(start_index.0);
                out.put_u64(start_offset.0);
                out.put_u64(release_index.0);
            }
            Self::Damage { key, incarnation, damage } => {
                put_record(out, DAMAGE, 72);
                put_log(out, *key, 0, *incarnation);
                out.put_u64(damage.from_index.0);
                out.put_u64(damage.end_index.0);
                out.put_u64(damage.from_offset.0);
                out.put_u64(damage.end_offset.0);
            }
            Self::Reserve { key, incarnation, class, end_index, end_offset } => {
                put_record(out, RESERVE, 56);
                put_log(out, *key, u32::from(class_code(*class)), *incarnation);
                out.put_u64(end_index.0);
                out.put_u64(end_offset.0);
            }
            Self::Vacate { key, incarnation, seq, vacancy } => {
                put_record(out, VACATE, 80);
                put_log(out, *key, 0, *incarnation);
                out.put_u64(*seq);
                vacancy.put(out);
            }
            Self::Replace { key, incarnation, seq, place } => {
                put_record(out, REPLACE, 64);
                put_log(out, *key, place.file, *incarnation);
                out.put_u64(*seq);
                out.put_u64(place.salt);
                out.put_u64(place.end_position);
            }
        }
        assert!((out.len() - begin).is_multiple_of(8), "record is 8-aligned");
    }

    /// Takes the record at the front of `reader`.
    ///
    /// # Errors
    /// `Short` or `Field` when the bytes are no record. Under a body crc that fits, that is a newer
    /// program's record or a bug, not a torn write.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, FormatError> {
        let mut head = *reader;
        let kind = head.u8()?;
        head.bytes(3)?;
        let length = head.size()?;
        if length < 8 || !length.is_multiple_of(8) {
            return Err(FormatError::Field("record length"));
        }
        let mut fields = Reader::new(&reader.bytes(length)?[8..]);
        let record = Self::decode_fields(kind, &mut fields)?;
        if !fields.is_empty() {
            return Err(FormatError::Field("record length"));
        }
        Ok(record)
    }

    fn decode_fields(kind: u8, fields: &mut Reader<'a>) -> Result<Self, FormatError> {
        match kind {
            MARK => return Ok(Self::Mark),
            RECOVERY => return Ok(Self::Recovery { doubtful: fields.u64()? != 0 }),
            _ => {}
        }
        let topic = TopicId(fields.array()?);
        let key = LogKey { topic, partition: PartitionId(fields.u32()?) };
        let word = fields.u32()?;
        let incarnation = fields.number()?;
        Ok(match kind {
            INLINE => Self::Inline(Inline {
                key,
                incarnation,
                seq: fields.number()?,
                position: fields.number()?,
                first_index: EntryIndex(fields.number()?),
                count: word,
                entries: fields.bytes(fields.len())?,
            }),
            ROLL => Self::Roll(Roll {
                key,
                incarnation,
                chain_crc: word,
                seq: fields.number()?,
                file: {
                    let file = fields.file()?;
                    fields.u32()?;
                    file
                },
                salt: fields.number()?,
                base_index: EntryIndex(fields.number()?),
                base_offset: Offset(fields.number()?),
            }),
            TRUNCATE => Self::Truncate {
                key,
                incarnation,
                chain_crc: word,
                end_index: EntryIndex(fields.number()?),
                end_offset: Offset(fields.number()?),
            },
            DROP => Self::Drop { key, incarnation, new_incarnation: fields.number()? },
            TRIM => Self::Trim {
                key,
                incarnation,
                start_index: EntryIndex(fields.number()?),
                start_offset: Offset(fields.number()?),
                release_index: EntryIndex(fields.number()?),
            },
            DAMAGE => Self::Damage {
                key,
                incarnation,
                damage: Damage {
                    from_index: EntryIndex(fields.number()?),
                    end_index: EntryIndex(fields.number()?),
                    from_offset: Offset(fields.number()?),
                    end_offset: Offset(fields.number()?),
                },
            },
            RESERVE => Self::Reserve {
                key,
                incarnation,
                class: class_of(u8::try_from(word).unwrap_or(u8::MAX))?,
                end_index: EntryIndex(fields.number()?),
                end_offset: Offset(fields.number()?),
            },
            VACATE => Self::Vacate {
                key,
                incarnation,
                seq: fields.number()?,
                vacancy: Vacancy::take(fields)?,
            },
            REPLACE => {
                if word >= FILES_END {
                    return Err(FormatError::Field("file number too large"));
                }
                let seq = fields.number()?;
                let (salt, end_position) = (fields.number()?, fields.number()?);
                let place = SparsePlace { file: word, salt, end_position };
                Self::Replace { key, incarnation, seq, place }
            }
            _ => return Err(FormatError::Field("record kind")),
        })
    }
}

/// Decodes all records of a group's body (exactly `body_len` bytes, crc checked by the caller).
///
/// # Errors
/// As [`Record::decode`], or `Field` when the count differs.
pub fn decode_records(body: &[u8], count: u32) -> Result<Vec<Record<'_>>, FormatError> {
    let mut reader = Reader::new(body);
    let mut records = Vec::new();
    while !reader.is_empty() {
        records.push(Record::decode(&mut reader)?);
    }
    if u32::try_from(records.len()) != Ok(count) {
        return Err(FormatError::Field("record count"));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LogKey {
        LogKey { topic: TopicId([3; 16]), partition: PartitionId(4) }
    }

    #[test]
    fn every_record_round_trips() {
        let entries = [5_u8; 24];
        let records = [
            Record::Recovery { doubtful: true },
            Record::Inline(Inline {
                key: key(),
                incarnation: 1,
                seq: 2,
                position: 4096,
                first_index: EntryIndex(9),
                count: 2,
                entries: &entries,
            }),
            Record::Roll(Roll {
                key: key(),
                incarnation: 1,
                seq: 2,
                file: 3,
                salt: 4,
                base_index: EntryIndex(5),
                base_offset: Offset(6),
                chain_crc: 7,
            }),
            Record::Truncate {
                key: key(),
                incarnation: 1,
                end_index: EntryIndex(2),
                end_offset: Offset(3),
                chain_crc: 4,
            },
            Record::Drop { key: key(), incarnation: 1, new_incarnation: 2 },
            Record::Mark,
            Record::Trim {
                key: key(),
                incarnation: 1,
                start_index: EntryIndex(2),
                start_offset: Offset(3),
                release_index: EntryIndex(1),
            },
            Record::Reserve {
                key: key(),
                incarnation: 1,
                class: Durability::Memory,
                end_index: EntryIndex(2),
                end_offset: Offset(3),
            },
            Record::Vacate {
                key: key(),
                incarnation: 1,
                seq: 4,
                vacancy: Vacancy::new((EntryIndex(1), Offset(2)), (EntryIndex(3), Offset(4))),
            },
            Record::Replace {
                key: key(),
                incarnation: 1,
                seq: 4,
                place: SparsePlace { file: 5, salt: 6, end_position: 7 },
            },
            Record::Damage {
                key: key(),
                incarnation: 1,
                damage: Damage {
                    from_index: EntryIndex(1),
                    end_index: EntryIndex(2),
                    from_offset: Offset(3),
                    end_offset: Offset(4),
                },
            },
        ];
        let mut body = Vec::new();
        for record in &records {
            record.encode(&mut body);
        }
        let decoded = decode_records(&body, 11).unwrap();
        assert_eq!(decoded, records);
        assert!(decode_records(&body, 10).is_err());
        for cut in 1..body.len() {
            assert!(decode_records(&body[..cut], 11).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn group_sectors_round_trip_and_reject_every_flipped_byte() {
        let header = GroupHeader {
            generation: 1,
            group: 2,
            durable_group: 1,
            position: 512,
            count: 3,
            body_len: 513,
            body_crc: 5,
            prev_crc: 6,
            unsynced: true,
            recovery: false,
        };
        let sector = header.encode();
        assert_eq!(GroupHeader::decode(&sector), Ok((header, GroupHeader::crc_of(&sector))));
        let trailer = header.trailer();
        assert_eq!(GroupTrailer::decode(&trailer.encode()), Ok(trailer));
        for at in 0..SECTOR {
            let mut bad = sector;
            bad[at] ^= 1;
            assert!(GroupHeader::decode(&bad).is_err(), "byte {at}");
        }
        assert_eq!(header.end() - header.position, GroupHeader::group_bytes(513));
        assert_eq!(header.trailer_position(), 512 + 512 + 1024);
    }
}
