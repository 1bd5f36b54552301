//! What recovery hands to the store: the whole state of a data directory after the recovery group was
//! synced, so that the store goes on from it without reading anything again.
//!
//! Produced by `recovery`, consumed by `store`. Holds no files and does no I/O.

use std::time::Duration;

use postrider_protocol::types::{Durability, EntryIndex, Offset, TimestampMs};

use crate::LogKey;
use crate::format::journal::Damage;
use crate::format::manifest::{ManifestSegment, SnapshotRef};
use crate::format::names::MANIFEST_SLOTS;
use crate::format::vacancy::Vacancy;

/// State of a data directory after recovery.
#[derive(Clone, Debug, Default)]
pub struct RecoveredState {
    /// Number of the newest manifest on disk; the next one is one higher.
    pub manifest_number: u64,
    /// Per slot: oldest journal generation that its manifest needs; none when the slot holds nothing valid.
    pub slot_generations: [Option<u64>; MANIFEST_SLOTS],
    /// Packs that each slot's manifest names: a pack is removable when no slot names it.
    pub slot_packs: [Vec<u32>; MANIFEST_SLOTS],
    /// C of the newest manifest.
    pub checkpoint_group: u64,
    /// The journal as the group writer goes on with it.
    pub journal: RecoveredJournal,
    /// Next incarnation to give out: above every one seen.
    pub next_incarnation: u64,
    /// Next salt to give out: above every one seen.
    pub next_salt: u64,
    /// Next number for a new segment file: above every file in the directory.
    pub next_segment_file: u32,
    /// Next number for a new pack: above every file in the directory.
    pub next_pack: u32,
    /// Segment files that belong to nobody and may be reused at once: {file, length}.
    pub free_segments: Vec<FreeFile>,
    /// An unproven tail was cut now or earlier, and nobody has repaired it since.
    pub doubtful: bool,
    /// All live logs.
    pub logs: Vec<RecoveredLog>,
    /// What recovery did.
    pub report: RecoveryReport,
}

/// A file without an owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeFile {
    /// Number in the file's name.
    pub file: u32,
    /// Allocated bytes.
    pub len: u64,
}

/// A journal file in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalFile {
    /// Number in the file's name.
    pub file: u32,
    /// Its generation in this use.
    pub generation: u64,
    /// Allocated bytes.
    pub len: u64,
}

/// The journal after recovery.
#[derive(Clone, Debug, Default)]
pub struct RecoveredJournal {
    /// Number of the next group: above every one seen in any valid sector.
    pub next_group: u64,
    /// Last durable group: the recovery group if one was written, else D.
    pub durable_group: u64,
    /// crc of the last journal group's header sector; 0 when there was none.
    pub last_crc: u32,
    /// Generation for the next file switch: above every one seen.
    pub next_generation: u64,
    /// The file that is being written and the position of the next group; none = begin a file.
    pub current: Option<(JournalFile, u64)>,
    /// Older files that some manifest slot still needs, without `current`.
    pub live: Vec<JournalFile>,
    /// Files that may be reused at once.
    pub free: Vec<FreeFile>,
    /// Next number for a new journal file: above every file in the directory.
    pub next_file: u32,
}

/// A log after recovery.
#[derive(Clone, Debug)]
pub struct RecoveredLog {
    /// Topic and partition.
    pub key: LogKey,
    /// Incarnation.
    pub incarnation: u64,
    /// Class as the last manifest knew it; `Fsync` for a log newer than the manifest.
    pub class: Durability,
    /// First entry that readers may ask for and its offset; the first segments may lie below it.
    pub start: (EntryIndex, Offset),
    /// One past the last entry, and the next offset. After a stop that was not clean, a log with a
    /// reservation ends at the reserved end, and a damage covers the numbers that were skipped.
    pub end: (EntryIndex, Offset),
    /// Highest reservation seen, in the manifest or the journal; zero when none.
    pub reserved: (EntryIndex, Offset),
    /// Header crc of the last entry; 0 when none.
    pub chain_crc: u32,
    /// Append time of the last entry.
    pub last_time: TimestampMs,
    /// Highest segment seq seen for this incarnation; 0 when none.
    pub last_seq: u64,
    /// Live segments, rising; `end_*` as they are now. The last one is open for appends unless sealed.
    pub segments: Vec<RecoveredSegment>,
    /// Kept snapshots, rising by index.
    pub snapshots: Vec<SnapshotRef>,
    /// Lost ranges, rising.
    pub damages: Vec<Damage>,
    /// Ranges between segments that are kept no longer, rising.
    pub vacancies: Vec<Vacancy>,
}

/// A segment after recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveredSegment {
    /// As a manifest would describe it now.
    pub at: ManifestSegment,
    /// Allocated bytes of the file.
    pub file_len: u64,
    /// It has bytes that no checkpoint has synced yet.
    pub dirty: bool,
}

/// What recovery read and found: for the log line and the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Bytes read.
    pub bytes_read: u64,
    /// Groups replayed (journal groups and frames).
    pub groups: u64,
    /// Entries replayed.
    pub entries: u64,
    /// Torn groups that were cut.
    pub torn: u64,
    /// Wall time, filled in by the store's opener; zero when nobody measured.
    pub elapsed: Duration,
    /// The directory was empty and has been set up.
    pub created: bool,
}
