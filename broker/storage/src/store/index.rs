//! The index of one segment: where entries begin, and what lies between runs of messages.
//!
//! Owns sparse marks (an entry's position at least every 16 KiB, and at the first message after each
//! hole) and holes (bytes that no reader gets: state entries, frame sectors, padding, markers), and of a
//! sparse segment what is kept no longer. Filled as
//! entries are written, or by walking a segment, or from its footer; all three give the same.
//!
//! ```text
//! | data data data | state | data | pad, frame header | data ... data | pad, trailer | data
//! ^mark     ^mark  [ hole ]^mark  [      hole       ]^mark    ^mark   [    hole     ]^mark
//! ```
//! Hence a run of messages between two holes is contiguous, begins with a mark, and can be cut at any
//! mark inside it without looking at a header.

use std::ops::Range;

use postrider_protocol::entry::{ENTRY_ALIGN_BYTES, EntryHeader, EntryKind};
use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use crate::format::segment::{ENTRIES_START, Hole, IndexMark};
use crate::format::vacancy::{MARKER_BYTES, Vacancy, VacancyMarker};

/// Distance of marks in bytes: how far a reader walks headers at most, but for one larger entry.
pub(crate) const MARK_BYTES: u64 = 16 << 10;

/// More holes than this call for the next segment: bounds the index to about 1.5 MiB.
pub(crate) const HOLES_MAX: usize = 32_768;

/// One entry as the index sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryPlace {
    pub(crate) index: EntryIndex,
    pub(crate) offset: Offset,
    pub(crate) end_offset: Offset,
    pub(crate) time: TimestampMs,
    pub(crate) leader_epoch: u32,
    /// Whether readers get it.
    pub(crate) data: bool,
    pub(crate) position: u64,
    pub(crate) len: u64,
}

impl EntryPlace {
    pub(crate) fn of(header: &EntryHeader, position: u64) -> Self {
        Self {
            index: header.index,
            offset: header.base_offset,
            end_offset: header.end_offset(),
            time: header.append_time,
            leader_epoch: header.leader_epoch.0,
            data: header.kind == EntryKind::Data,
            position,
            len: u64::from(header.total_len),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.position + self.len
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct SegmentIndex {
    /// Entries below are not indexed yet.
    pub(crate) from: u64,
    pub(crate) marks: Vec<IndexMark>,
    pub(crate) holes: Vec<Hole>,
    /// What a sparse segment holds no longer, rising.
    pub(crate) vacancies: Vec<Vacancy>,
    /// The next message gets a mark wherever it is.
    mark_next: bool,
    /// Lowest and highest leader epoch among the indexed entries.
    pub(crate) epochs: (u32, u32),
}

impl SegmentIndex {
    /// An index that knows nothing below `from` and is filled from there.
    pub(crate) fn new(from: u64) -> Self {
        Self {
            from,
            marks: Vec::new(),
            holes: Vec::new(),
            vacancies: Vec::new(),
            mark_next: true,
            epochs: (u32::MAX, 0),
        }
    }

    /// Whether the index covers the segment from its first entry.
    pub(crate) fn is_whole(&self) -> bool {
        self.from <= ENTRIES_START
    }

    /// Takes up the next entry.
    pub(crate) fn add(&mut self, entry: &EntryPlace) {
        self.epochs.0 = self.epochs.0.min(entry.leader_epoch);
        self.epochs.1 = self.epochs.1.max(entry.leader_epoch);
        let far = self.marks.last().is_none_or(|mark| entry.position - mark.position >= MARK_BYTES);
        if far || (entry.data && self.mark_next) {
            self.marks.push(IndexMark {
                index: entry.index,
                offset: entry.offset,
                time: entry.time,
                position: entry.position,
            });
        }
        if entry.data {
            self.mark_next = false;
        } else {
            self.add_gap(entry.position, entry.end());
        }
    }

    /// Takes up bytes that are no messages.
    pub(crate) fn add_gap(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.mark_next = true;
        match self.holes.last_mut() {
            Some(hole) if hole.end == start => hole.end = end,
            _ => self.holes.push(Hole { start, end }),
        }
    }

    /// Puts the index of the part before in front; it ends where this one begins.
    pub(crate) fn prepend(&mut self, mut before: Self) {
        before.marks.append(&mut self.marks);
        self.marks = before.marks;
        let joined = matches!((before.holes.last(), self.holes.first()), (Some(a), Some(b)) if a.end == b.start);
        if joined && let Some(last) = before.holes.pop() {
            self.holes[0].start = last.start;
        }
        before.holes.append(&mut self.holes);
        self.holes = before.holes;
        before.vacancies.append(&mut self.vacancies);
        self.vacancies = before.vacancies;
        self.from = before.from;
        self.epochs.0 = self.epochs.0.min(before.epochs.0);
        self.epochs.1 = self.epochs.1.max(before.epochs.1);
    }

    /// The vacancy with this message, if it lies in one.
    pub(crate) fn vacancy_at(&self, offset: Offset) -> Option<&Vacancy> {
        let after = self.vacancies.partition_point(|vacancy| vacancy.end_offset <= offset);
        self.vacancies.get(after).filter(|vacancy| vacancy.holds_offset(offset))
    }

    /// The next vacancy of messages above `offset`.
    pub(crate) fn vacancy_after(&self, offset: Offset) -> Option<&Vacancy> {
        let after = self.vacancies.partition_point(|vacancy| vacancy.from_offset <= offset);
        let holds_messages = |vacancy: &&Vacancy| vacancy.from_offset < vacancy.end_offset;
        self.vacancies.get(after..)?.iter().find(holds_messages)
    }

    /// The last mark whose offset is not above `offset`.
    pub(crate) fn mark_at_offset(&self, offset: Offset) -> Option<usize> {
        self.marks.partition_point(|mark| mark.offset <= offset).checked_sub(1)
    }

    /// The last mark whose index is not above `index`.
    pub(crate) fn mark_at_index(&self, index: EntryIndex) -> Option<usize> {
        self.marks.partition_point(|mark| mark.index <= index).checked_sub(1)
    }

    /// The last mark whose position is not above `position`.
    pub(crate) fn mark_at_position(&self, position: u64) -> Option<usize> {
        self.marks.partition_point(|mark| mark.position <= position).checked_sub(1)
    }

    /// The last mark with an append time below `time`.
    pub(crate) fn mark_before_time(&self, time: TimestampMs) -> Option<usize> {
        self.marks.partition_point(|mark| mark.time < time).checked_sub(1)
    }

    /// The first hole that begins at or behind `position`.
    pub(crate) fn hole_from(&self, position: u64) -> usize {
        self.holes.partition_point(|hole| hole.start < position)
    }
}

/// What a walk finds at a position.
pub(crate) enum Found {
    /// An entry.
    Entry(EntryPlace),
    /// The marker of entries that are kept no longer, and its end.
    Vacancy(VacancyMarker, u64),
    /// Bytes that are no entry, up to this position.
    Gap(u64),
}

/// Looks for one of the entries `expected` at `position` of `bytes` (which begin at `start` in the file).
/// What is no entry (frame sectors, padding, damage) is stepped over by 8 bytes, the alignment of entries:
/// behind a damaged header the next entry may begin anywhere. So is an entry behind those that are
/// expected: a log that was cut inside a segment goes on in the next one, and what was cut is still there.
/// Markers are looked for in a sparse segment alone, by its salt.
pub(crate) fn find_entry(
    bytes: &[u8],
    start: u64,
    position: u64,
    expected: Range<EntryIndex>,
    sparse: Option<u64>,
) -> Found {
    let at = usize::try_from(position - start).unwrap_or(usize::MAX);
    let rest = bytes.get(at..).unwrap_or_default();
    if let Ok(header) = EntryHeader::decode(rest)
        && expected.contains(&header.index)
    {
        return Found::Entry(EntryPlace::of(&header, position));
    }
    if let Some(salt) = sparse
        && let Ok(marker) = VacancyMarker::decode(rest)
        && marker.salt == salt
        && expected.contains(&marker.vacancy.from_index)
    {
        return Found::Vacancy(marker, position + MARKER_BYTES as u64);
    }
    Found::Gap(position + ENTRY_ALIGN_BYTES as u64)
}

/// Indexes the entries `expected` in `bytes`, which begin at `start` in the file.
pub(crate) fn walk(
    bytes: &[u8],
    start: u64,
    expected: Range<EntryIndex>,
    sparse: Option<u64>,
) -> SegmentIndex {
    let mut index = SegmentIndex::new(start);
    let end = start + bytes.len() as u64;
    let mut position = start;
    let Range { start: mut expected, end: expected_end } = expected;
    while position < end {
        match find_entry(bytes, start, position, expected..expected_end, sparse) {
            Found::Entry(entry) => {
                index.add(&entry);
                position = entry.end();
                expected = EntryIndex(entry.index.0 + 1);
            }
            Found::Vacancy(marker, after) => {
                index.add_gap(position, after);
                index.vacancies.push(marker.vacancy);
                position = after;
                expected = marker.vacancy.end_index;
            }
            Found::Gap(next) => {
                index.add_gap(position, next.min(end));
                position = next;
            }
        }
    }
    index
}
