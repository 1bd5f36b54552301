//! What `check` found, as data and as text.
//!
//! Owns the wording. Never reads anything.

use std::fmt;

use postrider_protocol::types::{Durability, EntryIndex, Offset, TimestampMs};

use crate::LogKey;
use crate::format::FormatError;
use crate::format::journal::Damage;
use crate::format::vacancy::Vacancy;

/// Everything that `check` found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Why a server would refuse the directory; none when it would start.
    pub refused: Option<String>,
    /// Nothing was ever stored here.
    pub empty: bool,
    /// The manifest slots.
    pub slots: Vec<SlotReport>,
    /// The journal.
    pub journal: JournalReport,
    /// What a server would do at its next start.
    pub plan: Plan,
    /// The logs.
    pub logs: Vec<LogReport>,
    /// What is damaged: each in one file, at one place.
    pub problems: Vec<Problem>,
    /// Segment files that belong to nobody and wait for reuse.
    pub free_segments: usize,
    /// Bytes read.
    pub bytes_read: u64,
}

/// A manifest slot.
#[derive(Clone, Debug)]
pub struct SlotReport {
    /// Its number.
    pub slot: usize,
    /// What it holds.
    pub state: SlotState,
}

/// What a manifest slot holds.
#[derive(Clone, Debug)]
pub enum SlotState {
    /// There is no such file.
    Absent,
    /// Torn, damaged or empty.
    Broken(FormatError),
    /// A manifest.
    Valid {
        /// Its number.
        number: u64,
        /// The last group that it covers.
        checkpoint_group: u64,
        /// Written by a stop in order.
        clean: bool,
    },
}

/// The journal behind the checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct JournalReport {
    /// Files, free ones included.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Groups that count.
    pub groups: usize,
    /// Groups of them that cannot be read, torn or damaged.
    pub unreadable: usize,
    /// Places where the chain of groups breaks.
    pub gaps: usize,
}

/// What recovery would do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Nothing: the last stop was in order.
    pub clean: bool,
    /// Groups and frames to replay.
    pub groups: u64,
    /// Entries in them.
    pub entries: u64,
    /// Torn writes to cut: they were not acknowledged, unless `doubtful`.
    pub torn: u64,
    /// Journal groups that were proven and cannot be read.
    pub lost_groups: u64,
    /// A cut group may have been acknowledged.
    pub doubtful: bool,
    /// The last group proven durable.
    pub durable_group: u64,
}

/// A log.
#[derive(Clone, Debug)]
pub struct LogReport {
    /// Topic and partition.
    pub key: LogKey,
    /// Its class.
    pub class: Durability,
    /// First kept entry and its offset.
    pub start: (EntryIndex, Offset),
    /// One past the last entry, and the next offset.
    pub end: (EntryIndex, Offset),
    /// Ranges that are lost and reported as such.
    pub damages: Vec<Damage>,
    /// Ranges between segments that are kept no longer.
    pub vacancies: Vec<Vacancy>,
    /// Segments below the checkpoint, whose every entry was checked.
    pub segments: Vec<SegmentReport>,
    /// Kept snapshots.
    pub snapshots: usize,
}

/// A segment below the checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct SegmentReport {
    /// Number in the file's name.
    pub file: u32,
    /// First entry.
    pub base_index: EntryIndex,
    /// One past the last entry that the manifest names.
    pub end_index: EntryIndex,
    /// Entries whose header, chain and body are right.
    pub entries: u64,
    /// Append time of the last one.
    pub last_time: TimestampMs,
    /// It has a footer; without one the same is found by walking.
    pub footer: bool,
}

/// Something that is not as it was written.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The file.
    pub path: String,
    /// The place in it.
    pub position: u64,
    /// What is wrong there.
    pub what: String,
}

impl CheckReport {
    /// Whether everything that was ever proven stored can be read.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.refused.is_none()
            && self.problems.is_empty()
            && self.plan.lost_groups == 0
            && self.logs.iter().all(|log| log.damages.is_empty())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.path, self.position, self.what)
    }
}

impl fmt::Display for SlotReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "manifest.{}: ", self.slot)?;
        match &self.state {
            SlotState::Absent => write!(f, "absent"),
            SlotState::Broken(error) => write!(f, "unusable ({error})"),
            SlotState::Valid { number, checkpoint_group, clean } => {
                let stop = if *clean { ", clean stop" } else { "" };
                write!(f, "number {number}, covers groups up to {checkpoint_group}{stop}")
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.clean {
            return write!(f, "next start: nothing to replay");
        }
        write!(
            f,
            "next start: replays {} groups with {} entries, cuts {} torn writes",
            self.groups, self.entries, self.torn
        )?;
        if self.lost_groups > 0 {
            write!(f, ", reports {} lost journal groups", self.lost_groups)?;
        }
        if self.doubtful {
            write!(f, "; doubtful: a cut write may have been acknowledged")?;
        }
        Ok(())
    }
}

impl fmt::Display for LogReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogKey { topic, partition } = self.key;
        write!(
            f,
            "log {topic}/{partition} ({}): offsets {}..{}, entries {}..{}, {} segments, {} snapshots",
            self.class.name(),
            self.start.1,
            self.end.1,
            self.start.0,
            self.end.0,
            self.segments.len(),
            self.snapshots,
        )?;
        for damage in &self.damages {
            write!(
                f,
                "\n  lost: offsets {}..{} (entries {}..{})",
                damage.from_offset, damage.end_offset, damage.from_index, damage.end_index
            )?;
        }
        for vacancy in &self.vacancies {
            write!(
                f,
                "\n  settled and kept no longer: offsets {}..{} (entries {}..{})",
                vacancy.from_offset, vacancy.end_offset, vacancy.from_index, vacancy.end_index
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in &self.slots {
            writeln!(f, "{slot}")?;
        }
        if let Some(refused) = &self.refused {
            return writeln!(f, "a server would refuse this directory: {refused}");
        }
        if self.empty {
            return writeln!(f, "the directory is empty");
        }
        let journal = &self.journal;
        writeln!(
            f,
            "journal: {} files, {} bytes, {} groups behind the checkpoint, {} unreadable, {} gaps",
            journal.files, journal.bytes, journal.groups, journal.unreadable, journal.gaps
        )?;
        writeln!(f, "{}", self.plan)?;
        for log in &self.logs {
            writeln!(f, "{log}")?;
        }
        for problem in &self.problems {
            writeln!(f, "damaged: {problem}")?;
        }
        writeln!(f, "{} bytes read, {} free segment files", self.bytes_read, self.free_segments)?;
        let verdict = if self.is_sound() { "sound" } else { "NOT SOUND" };
        writeln!(f, "{verdict}")
    }
}
