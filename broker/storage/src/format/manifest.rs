//! Manifests: what a checkpoint knows, in three slots written in turn.
//!
//! A slot is one file, written from its start and synced; slot = number % 3. The newest valid one
//! counts. Recovery needs the journal from the oldest generation that *any* slot names, so that a
//! rotten newest slot can be stepped over.
//!
//! | at | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `PRMF` |
//! | 4 | 4 | crc32 of 8..length |
//! | 8 | 4 | length of the whole manifest |
//! | 12 | 2 | version: 2 when some log has a sparse segment or a vacancy, else 1 |
//! | 14 | 2 | flags: bit 0 clean shutdown, bit 1 doubtful |
//! | 16 | 8 | number of the manifest, rises by one |
//! | 24 | 8 | C: last group that it covers |
//! | 32 | 8 | d: last durable group when it was written |
//! | 40 | 8 | oldest journal generation needed with it |
//! | 48 | 8 | position in that generation's file where group C+1 begins |
//! | 56 | 4 | crc of the last journal group |
//! | 60 | 4 | count of logs |
//! | 64 | 8 | next incarnation |
//! | 72 | 8 | next salt |
//! | 80 | .. | logs |
//!
//! A log: topic \[16\], partition u32, chain crc u32, incarnation u64, class u8, zero \[7\], log start index
//! and offset, end index and offset, reserved index and offset, last append time, last seq (u64 each),
//! counts of segments, snapshots, damages and vacancies (u32 each); then segments {file u32, flags u32
//! (bit 0 sealed, bit 1 sparse), seq, salt, base index, base offset, end index, end offset, end position, last append
//! time (u64 each), base chain crc u32, zero u32}; snapshots {pack u32, crc u32, index, position, length
//! (u64 each)}; damages and then vacancies {from index, end index, from offset, end offset}.
//!
//! Version 1 has neither vacancies nor sparse segments, and programs that know it alone refuse version 2.

use postrider_protocol::types::{
    Durability, EntryIndex, Offset, PartitionId, TimestampMs, TopicId,
};

use super::FormatError;
use super::codec::{Put, Reader, class_code, class_of};
use super::journal::Damage;
use super::vacancy::{VACANCY_BYTES, Vacancy};
use crate::LogKey;

const MAGIC: [u8; 4] = *b"PRMF";
/// Without vacancies and sparse segments.
const VERSION: u16 = 1;
const SPARSE_VERSION: u16 = 2;
const FIXED: usize = 80;
/// Fixed bytes before a log's lists.
const LOG_FIXED: usize = 120;
const SEGMENT_BYTES: usize = 80;
const SNAPSHOT_BYTES: usize = 32;
const DAMAGE_BYTES: usize = 32;

/// A checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    /// Rises by one with each manifest.
    pub number: u64,
    /// The store was stopped in order and nothing follows in the journal.
    pub clean: bool,
    /// An unproven tail was cut, and nobody has repaired it since.
    pub doubtful: bool,
    /// Last group that it covers (C).
    pub checkpoint_group: u64,
    /// Last group whose syncs all succeeded when it was written (d >= C).
    pub durable_group: u64,
    /// Oldest journal generation that recovery needs with it.
    pub oldest_generation: u64,
    /// Where group C+1 begins (or will) in that generation's file.
    pub journal_position: u64,
    /// crc of the last journal group's header sector.
    pub last_journal_crc: u32,
    /// Next incarnation to give out.
    pub next_incarnation: u64,
    /// Next salt to give out.
    pub next_salt: u64,
    /// All logs that have a segment, or had one.
    pub logs: Vec<ManifestLog>,
}

/// A log in a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestLog {
    /// Topic and partition.
    pub key: LogKey,
    /// Incarnation.
    pub incarnation: u64,
    /// Durability class.
    pub class: Durability,
    /// First entry that is kept, and its offset.
    pub start: (EntryIndex, Offset),
    /// One past the last entry covered by the checkpoint, and the next offset.
    pub end: (EntryIndex, Offset),
    /// In a class that demands no sync: every number below may have been used (see
    /// [`super::journal::Record::Reserve`]). Zero in class `fsync`.
    pub reserved: (EntryIndex, Offset),
    /// Header crc of the last entry covered; 0 when none.
    pub chain_crc: u32,
    /// Append time of the last entry.
    pub last_time: TimestampMs,
    /// Highest segment seq given out, 0 when none.
    pub last_seq: u64,
    /// Live segments, rising. The first ones may lie below `start`: a kept snapshot needs them.
    pub segments: Vec<ManifestSegment>,
    /// Kept snapshots, rising by index.
    pub snapshots: Vec<SnapshotRef>,
    /// Ranges known to be lost, rising.
    pub damages: Vec<Damage>,
    /// Ranges between segments that are kept no longer, rising.
    pub vacancies: Vec<Vacancy>,
}

/// A segment in a manifest: valid up to `end_position`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestSegment {
    /// Segment file.
    pub file: u32,
    /// Nothing more will be appended to it.
    pub sealed: bool,
    /// It holds a part of its entries.
    pub sparse: bool,
    /// Number of the segment in its log.
    pub seq: u64,
    /// Salt of this use of the file.
    pub salt: u64,
    /// First entry.
    pub base_index: EntryIndex,
    /// First message.
    pub base_offset: Offset,
    /// One past the last entry covered.
    pub end_index: EntryIndex,
    /// One past the last message covered.
    pub end_offset: Offset,
    /// One past the last byte covered.
    pub end_position: u64,
    /// Append time of its last entry covered.
    pub last_time: TimestampMs,
    /// Header crc of the entry before the first; 0 when none.
    pub base_chain_crc: u32,
}

/// Where a snapshot lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotRef {
    /// Pack file.
    pub pack: u32,
    /// crc32 of the state's bytes.
    pub crc: u32,
    /// The state covers all entries below.
    pub index: EntryIndex,
    /// Where the state's bytes begin in the pack.
    pub position: u64,
    /// How many.
    pub len: u64,
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("manifest lists and length fit u32")
}

impl Manifest {
    /// Encodes the manifest.
    ///
    /// # Panics
    /// If it were longer than 4 GiB: the bound on logs forbids it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + self.logs.len() * (LOG_FIXED + SEGMENT_BYTES));
        out.put_bytes(&MAGIC);
        out.put_zeros(8);
        out.put_u16(self.version());
        out.put_u16(u16::from(self.clean) | u16::from(self.doubtful) << 1);
        out.put_u64(self.number);
        out.put_u64(self.checkpoint_group);
        out.put_u64(self.durable_group);
        out.put_u64(self.oldest_generation);
        out.put_u64(self.journal_position);
        out.put_u32(self.last_journal_crc);
        out.put_u32(len32(self.logs.len()));
        out.put_u64(self.next_incarnation);
        out.put_u64(self.next_salt);
        assert!(out.len() == FIXED, "fixed part of the manifest");
        for log in &self.logs {
            log.encode(&mut out);
        }
        let length = len32(out.len());
        out[8..12].copy_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes a manifest from the front of a slot's bytes (longer input is fine).
    ///
    /// # Errors
    /// `Short`, `Magic` or `Crc`: an empty, torn or damaged slot; `Version`: a newer program's;
    /// `Field`: a bug of the writer.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != MAGIC {
            return Err(FormatError::Magic);
        }
        let crc = reader.u32()?;
        let length = reader.size()?;
        let whole = bytes.get(..length).ok_or(FormatError::Short)?;
        if length < FIXED || crc32fast::hash(&whole[8..]) != crc {
            return Err(FormatError::Crc);
        }
        let mut reader = Reader::new(&whole[12..]);
        let version = reader.u16()?;
        if version != VERSION && version != SPARSE_VERSION {
            return Err(FormatError::Version(version));
        }
        let flags = reader.u16()?;
        let number = reader.number()?;
        let checkpoint_group = reader.number()?;
        let durable_group = reader.number()?;
        let oldest_generation = reader.number()?;
        let journal_position = reader.number()?;
        let last_journal_crc = reader.u32()?;
        let count = reader.u32()?;
        let next_incarnation = reader.number()?;
        let next_salt = reader.number()?;
        let mut logs = Vec::with_capacity(reader.len() / LOG_FIXED);
        for _ in 0..count {
            logs.push(ManifestLog::decode(&mut reader)?);
        }
        if !reader.is_empty() {
            return Err(FormatError::Field("manifest length"));
        }
        let manifest = Self {
            number,
            clean: flags & 1 != 0,
            doubtful: flags & 2 != 0,
            checkpoint_group,
            durable_group,
            oldest_generation,
            journal_position,
            last_journal_crc,
            next_incarnation,
            next_salt,
            logs,
        };
        if manifest.version() > version {
            return Err(FormatError::Field("manifest version"));
        }
        Ok(manifest)
    }

    /// The lowest version that can say all of it.
    fn version(&self) -> u16 {
        let sparse = |log: &ManifestLog| {
            !log.vacancies.is_empty() || log.segments.iter().any(|segment| segment.sparse)
        };
        if self.logs.iter().any(sparse) { SPARSE_VERSION } else { VERSION }
    }
}

/// Takes `count` items of `size` bytes each, refusing counts that the remaining bytes cannot hold.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    count: u32,
    size: usize,
    item: impl Fn(&mut Reader<'a>) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let count = usize::try_from(count).or(Err(FormatError::Short))?;
    let bytes = count.checked_mul(size).ok_or(FormatError::Short)?;
    let mut items = Reader::new(reader.bytes(bytes)?);
    (0..count).map(|_| item(&mut items)).collect()
}

impl ManifestLog {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_bytes(&self.key.topic.0);
        out.put_u32(self.key.partition.0);
        out.put_u32(self.chain_crc);
        out.put_u64(self.incarnation);
        out.put_u8(class_code(self.class));
        out.put_zeros(7);
        out.put_u64(self.start.0.0);
        out.put_u64(self.start.1.0);
        out.put_u64(self.end.0.0);
        out.put_u64(self.end.1.0);
        out.put_u64(self.reserved.0.0);
        out.put_u64(self.reserved.1.0);
        out.put_u64(self.last_time.0);
        out.put_u64(self.last_seq);
        out.put_u32(len32(self.segments.len()));
        out.put_u32(len32(self.snapshots.len()));
        out.put_u32(len32(self.damages.len()));
        out.put_u32(len32(self.vacancies.len()));
        for segment in &self.segments {
            segment.encode(out);
        }
        for snapshot in &self.snapshots {
            out.put_u32(snapshot.pack);
            out.put_u32(snapshot.crc);
            out.put_u64(snapshot.index.0);
            out.put_u64(snapshot.position);
            out.put_u64(snapshot.len);
        }
        for damage in &self.damages {
            out.put_u64(damage.from_index.0);
            out.put_u64(damage.end_index.0);
            out.put_u64(damage.from_offset.0);
            out.put_u64(damage.end_offset.0);
        }
        for vacancy in &self.vacancies {
            vacancy.put(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let topic = TopicId(reader.array()?);
        let key = LogKey { topic, partition: PartitionId(reader.u32()?) };
        let chain_crc = reader.u32()?;
        let incarnation = reader.number()?;
        let class = class_of(reader.u8()?)?;
        reader.bytes(7)?;
        let start = (EntryIndex(reader.number()?), Offset(reader.number()?));
        let end = (EntryIndex(reader.number()?), Offset(reader.number()?));
        let reserved = (EntryIndex(reader.number()?), Offset(reader.number()?));
        let last_time = TimestampMs(reader.u64()?);
        let last_seq = reader.number()?;
        let segments = reader.u32()?;
        let snapshots = reader.u32()?;
        let damages = reader.u32()?;
        let vacancies = reader.u32()?;
        Ok(Self {
            key,
            incarnation,
            class,
            start,
            end,
            reserved,
            chain_crc,
            last_time,
            last_seq,
            segments: list(reader, segments, SEGMENT_BYTES, ManifestSegment::decode)?,
            snapshots: list(reader, snapshots, SNAPSHOT_BYTES, |item| {
                Ok(SnapshotRef {
                    pack: item.file()?,
                    crc: item.u32()?,
                    index: EntryIndex(item.number()?),
                    position: item.number()?,
                    len: item.number()?,
                })
            })?,
            damages: list(reader, damages, DAMAGE_BYTES, |item| {
                Ok(Damage {
                    from_index: EntryIndex(item.number()?),
                    end_index: EntryIndex(item.number()?),
                    from_offset: Offset(item.number()?),
                    end_offset: Offset(item.number()?),
                })
            })?,
            vacancies: list(reader, vacancies, VACANCY_BYTES, Vacancy::take)?,
        })
    }
}

impl ManifestSegment {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.file);
        out.put_u32(u32::from(self.sealed) | u32::from(self.sparse) << 1);
        out.put_u64(self.seq);
        out.put_u64(self.salt);
        out.put_u64(self.base_index.0);
        out.put_u64(self.base_offset.0);
        out.put_u64(self.end_index.0);
        out.put_u64(self.end_offset.0);
        out.put_u64(self.end_position);
        out.put_u64(self.last_time.0);
        out.put_u32(self.base_chain_crc);
        out.put_u32(0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let file = reader.file()?;
        let flags = reader.u32()?;
        let segment = Self {
            file,
            sealed: flags & 1 != 0,
            sparse: flags & 2 != 0,
            seq: reader.number()?,
            salt: reader.number()?,
            base_index: EntryIndex(reader.number()?),
            base_offset: Offset(reader.number()?),
            end_index: EntryIndex(reader.number()?),
            end_offset: Offset(reader.number()?),
            end_position: reader.number()?,
            last_time: TimestampMs(reader.u64()?),
            base_chain_crc: reader.u32()?,
        };
        reader.u32()?;
        Ok(segment)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::NUMBERS_END;
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            number: 4,
            clean: true,
            doubtful: false,
            checkpoint_group: 10,
            durable_group: 11,
            oldest_generation: 2,
            journal_position: 512,
            last_journal_crc: 99,
            next_incarnation: 7,
            next_salt: 8,
            logs: vec![ManifestLog {
                key: LogKey { topic: TopicId([1; 16]), partition: PartitionId(2) },
                incarnation: 3,
                class: Durability::Memory,
                start: (EntryIndex(1), Offset(2)),
                end: (EntryIndex(3), Offset(4)),
                reserved: (EntryIndex(30), Offset(40)),
                chain_crc: 5,
                last_time: TimestampMs(6),
                last_seq: 2,
                segments: vec![ManifestSegment {
                    file: 1,
                    sealed: true,
                    sparse: false,
                    seq: 2,
                    salt: 3,
                    base_index: EntryIndex(4),
                    base_offset: Offset(5),
                    end_index: EntryIndex(6),
                    end_offset: Offset(7),
                    end_position: 8,
                    last_time: TimestampMs(9),
                    base_chain_crc: 10,
                }],
                snapshots: vec![SnapshotRef {
                    pack: 1,
                    crc: 2,
                    index: EntryIndex(3),
                    position: 4,
                    len: 5,
                }],
                damages: vec![Damage {
                    from_index: EntryIndex(1),
                    end_index: EntryIndex(2),
                    from_offset: Offset(3),
                    end_offset: Offset(4),
                }],
                vacancies: Vec::new(),
            }],
        }
    }

    /// The same with a vacancy and a sparse segment.
    fn sparse_manifest() -> Manifest {
        let mut manifest = manifest();
        let log = &mut manifest.logs[0];
        log.segments[0].sparse = true;
        let end = (EntryIndex(9), Offset(11));
        log.vacancies = vec![Vacancy::new((EntryIndex(6), Offset(7)), end)];
        manifest
    }

    /// As programs before version 2 wrote it.
    const VERSION_1: &[&str] = &[
        "50524d46618a1924580100000100010004000000000000000a000000000000000b000000000000000200000000000000",
        "000200000000000063000000010000000700000000000000080000000000000001010101010101010101010101010101",
        "020000000500000003000000000000000200000000000000010000000000000002000000000000000300000000000000",
        "04000000000000001e000000000000002800000000000000060000000000000002000000000000000100000001000000",
        "010000000000000001000000010000000200000000000000030000000000000004000000000000000500000000000000",
        "06000000000000000700000000000000080000000000000009000000000000000a000000000000000100000002000000",
        "030000000000000004000000000000000500000000000000010000000000000002000000000000000300000000000000",
        "0400000000000000",
    ];

    #[test]
    fn manifest_round_trips() {
        let mut bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        bytes.extend_from_slice(&[9; 100]);
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        assert_eq!(Manifest::decode(&Manifest::default().encode()), Ok(Manifest::default()));
        assert_eq!(Manifest::decode(&sparse_manifest().encode()), Ok(sparse_manifest()));
    }

    #[test]
    fn manifest_of_version_1_is_read_and_still_written_where_it_says_all() {
        let digits = VERSION_1.concat();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        assert_eq!(manifest().encode(), bytes);
        let version = |manifest: &Manifest| manifest.encode()[12];
        assert_eq!(version(&sparse_manifest()), 2);
        let mut vacant = sparse_manifest();
        vacant.logs[0].segments[0].sparse = false;
        assert_eq!(version(&vacant), 2);
    }

    #[test]
    fn sparse_manifest_under_the_old_version_is_refused() {
        let mut bytes = sparse_manifest().encode();
        bytes[12] = 1;
        let crc = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&bytes), Err(FormatError::Field("manifest version")));
    }

    #[test]
    fn manifest_rejects_numbers_that_recovery_could_not_count_on_from() {
        let with = |change: fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            Manifest::decode(&manifest.encode()).map(|_| ())
        };
        let number = Err(FormatError::Field("number too large"));
        assert_eq!(with(|manifest| manifest.next_salt = NUMBERS_END - 1), Ok(()));
        assert_eq!(with(|manifest| manifest.next_salt = NUMBERS_END), number);
        assert_eq!(with(|manifest| manifest.next_incarnation = u64::MAX), number);
        assert_eq!(with(|manifest| manifest.logs[0].end.1 = Offset(u64::MAX)), number);
        let file = Err(FormatError::Field("file number too large"));
        assert_eq!(with(|manifest| manifest.logs[0].segments[0].file = u32::MAX), file);
    }

    #[test]
    fn manifest_rejects_every_flipped_byte_and_every_cut() {
        let bytes = sparse_manifest().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(Manifest::decode(&bad).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut {at}");
        }
    }
}
