//! Reading the journal: which groups stand, which are damaged, which are missing.
//!
//! Owns the walk over the journal files (rule 10), the chain between groups and which groups a
//! Recovery group has voided (rule 11). Never decides what damage means: that depends on D, which
//! frames in segments know too.

use bytes::Bytes;

use super::directory;
use super::read::Window;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::journal::{GroupHeader, GroupTrailer, Record, decode_records};
use crate::format::manifest::Manifest;
use crate::format::{FormatError, SECTOR, SECTOR_U64, names};

/// What the first sector of a journal file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum First {
    /// A group begins there.
    Group {
        /// Generation of the file.
        generation: u64,
        /// Number of its first group.
        group: u64,
    },
    /// Zeros: no group was ever written, or none whose sync succeeded.
    Blank,
    /// Neither: damaged, or torn over an earlier use.
    Unreadable,
}

/// A journal file before it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SurveyedFile {
    pub(crate) file: u32,
    pub(crate) len: u64,
    pub(crate) first: First,
    /// Generation in its present use; none while nothing valid was seen in it.
    pub(crate) generation: Option<u64>,
}

/// All journal files.
#[derive(Clone, Debug, Default)]
pub(crate) struct JournalSurvey {
    pub(crate) files: Vec<SurveyedFile>,
    pub(crate) bytes_read: u64,
}

impl JournalSurvey {
    /// Whether some group may have been written after the manifest.
    pub(crate) fn reaches_beyond(&self, manifest: &Manifest) -> bool {
        self.files.iter().any(|file| match file.first {
            First::Group { group, .. } => group > manifest.checkpoint_group,
            First::Blank => false,
            First::Unreadable => true,
        })
    }

    /// The highest generation in use.
    pub(crate) fn generation_max(&self) -> u64 {
        self.files.iter().filter_map(|file| file.generation).max().unwrap_or(0)
    }
}

/// Reads the first sector of every journal file.
///
/// # Errors
/// `Io`.
pub(crate) fn survey(disk: &dyn Disk) -> Result<JournalSurvey, OpenError> {
    let mut survey = JournalSurvey::default();
    for file in directory::numbers(disk, names::JOURNAL, "wal")? {
        let Some(mut window) = Window::open(disk, &names::journal(file))? else { continue };
        let len = window.len();
        let first = match window.head(SECTOR)? {
            None => First::Blank,
            Some(sector) => match GroupHeader::decode(sector) {
                Ok((header, _)) if header.position == 0 => {
                    First::Group { generation: header.generation, group: header.group }
                }
                _ if sector.iter().all(|byte| *byte == 0) => First::Blank,
                _ => First::Unreadable,
            },
        };
        let generation = match first {
            First::Group { generation, .. } => Some(generation),
            First::Blank | First::Unreadable => None,
        };
        survey.bytes_read += window.read_bytes();
        survey.files.push(SurveyedFile { file, len, first, generation });
    }
    Ok(survey)
}

/// A group of which at least one sector says something.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) file: u32,
    pub(crate) generation: u64,
    /// g.
    pub(crate) number: u64,
    /// d.
    pub(crate) durable: u64,
    pub(crate) position: u64,
    pub(crate) unsynced: bool,
    pub(crate) recovery: bool,
    /// crc of its header sector; none when that sector is damaged.
    pub(crate) crc: Option<u32>,
    /// What it links to; none when its header sector is damaged.
    pub(crate) prev_crc: Option<u32>,
    /// Count of records; none when its header sector is damaged.
    count: Option<u32>,
    /// The records; none when they are torn or damaged.
    body: Option<Bytes>,
}

impl Group {
    /// Whether its records can be read.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.is_some()
    }

    /// Its records; none when they are torn or damaged.
    ///
    /// # Errors
    /// `Format` when a whole body makes no sense: a newer program wrote it.
    pub(crate) fn records(&self) -> Result<Vec<Record<'_>>, OpenError> {
        let Some(body) = &self.body else { return Ok(Vec::new()) };
        let records = match self.count {
            Some(count) => decode_records(body, count),
            None => decode_uncounted(body),
        };
        records.map_err(|source| OpenError::Format { path: names::journal(self.file), source })
    }

    /// Where in memory the records lie, so that slices of them can be kept without a copy.
    pub(crate) fn body(&self) -> Option<&Bytes> {
        self.body.as_ref()
    }

    fn from_header(file: u32, header: &GroupHeader, crc: u32, body: Option<Bytes>) -> Self {
        Self {
            file,
            generation: header.generation,
            number: header.group,
            durable: header.durable_group,
            position: header.position,
            unsynced: header.unsynced,
            recovery: header.recovery,
            crc: Some(crc),
            prev_crc: Some(header.prev_crc),
            count: Some(header.count),
            body,
        }
    }

    fn from_trailer(file: u32, trailer: &GroupTrailer, body: Option<Bytes>) -> Self {
        Self {
            file,
            generation: trailer.generation,
            number: trailer.group,
            durable: trailer.durable_group,
            position: trailer.position,
            unsynced: trailer.unsynced,
            recovery: trailer.recovery,
            crc: None,
            prev_crc: None,
            count: None,
            body,
        }
    }
}

fn decode_uncounted(body: &[u8]) -> Result<Vec<Record<'_>>, FormatError> {
    let mut reader = crate::format::codec::Reader::new(body);
    let mut records = Vec::new();
    while !reader.is_empty() {
        records.push(Record::decode(&mut reader)?);
    }
    Ok(records)
}

/// Records are missing: something before `before` left no trace, yet the chain says that it existed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Missing {
    /// The first group after the gap.
    pub(crate) before: u64,
}

/// The journal as it was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct JournalScan {
    pub(crate) survey: JournalSurvey,
    /// Groups above the checkpoint that no Recovery group has voided, in the order of the journal.
    pub(crate) groups: Vec<Group>,
    /// Breaks of the chain.
    pub(crate) missing: Vec<Missing>,
    /// Half-open ranges of group numbers that Recovery groups have voided: (d, R) as d + 1..R.
    pub(crate) voided: Vec<std::ops::Range<u64>>,
    /// Highest group number in any valid sector.
    pub(crate) group_max: u64,
    /// Highest d in any valid sector.
    pub(crate) durable_max: u64,
    /// Highest generation in any valid sector.
    pub(crate) generation_max: u64,
    pub(crate) bytes_read: u64,
}

impl JournalScan {
    /// After a clean stop nothing is read.
    pub(crate) fn skipped(survey: JournalSurvey) -> Self {
        let generation_max = survey.generation_max();
        let bytes_read = survey.bytes_read;
        Self { survey, generation_max, bytes_read, ..Self::default() }
    }

    /// Whether a group number lies in a range that a Recovery group has voided.
    pub(crate) fn is_voided(&self, group: u64) -> bool {
        self.voided.iter().any(|range| range.contains(&group))
    }

    /// Whether anything in the journal is damaged, torn or missing.
    pub(crate) fn is_damaged(&self) -> bool {
        !self.missing.is_empty() || self.groups.iter().any(|group| !group.is_whole())
    }
}

/// Reads every live journal file.
///
/// # Errors
/// `Io`.
pub(crate) fn scan(
    disk: &dyn Disk,
    manifest: &Manifest,
    mut survey: JournalSurvey,
) -> Result<JournalScan, OpenError> {
    let mut groups = Vec::new();
    let mut bytes_read = survey.bytes_read;
    for file in &mut survey.files {
        match file.first {
            First::Blank => continue,
            // Written whole in an earlier use and not durably begun in a later one.
            First::Group { generation, .. } if generation < manifest.oldest_generation => continue,
            First::Group { .. } | First::Unreadable => {}
        }
        let Some(mut window) = Window::open(disk, &names::journal(file.file))? else { continue };
        let found = scan_file(&mut window, file, manifest)?;
        bytes_read += window.read_bytes();
        let newest = found.iter().map(|group| group.generation).max();
        file.generation = newest.max(file.generation);
        // What lies behind the groups of the present use belongs to an earlier one.
        let generation = file.generation.unwrap_or(0).max(manifest.oldest_generation);
        groups.extend(found.into_iter().filter(|group| group.generation == generation));
    }
    groups.sort_by_key(|group: &Group| (group.generation, group.position));
    Ok(settle(manifest, survey, groups, bytes_read))
}

/// Walks one file sector by sector, whole groups at a time.
fn scan_file(
    window: &mut Window,
    file: &SurveyedFile,
    manifest: &Manifest,
) -> Result<Vec<Group>, OpenError> {
    let mut groups = Vec::new();
    let mut position = match file.first {
        First::Group { generation, .. } if generation == manifest.oldest_generation => {
            manifest.journal_position / SECTOR_U64 * SECTOR_U64
        }
        _ => 0,
    };
    let mut end_of_last = position;
    while let Some(sector) = window.get(position, SECTOR)? {
        if let Ok((header, crc)) = GroupHeader::decode(sector)
            && header.position == position
            && is_sane(header.group, header.durable_group)
        {
            let body = read_body(window, header.body_start(), header.body_len, header.body_crc)?;
            let trailer = window.get(header.trailer_position(), SECTOR)?;
            let ends = trailer.map(GroupTrailer::decode) == Some(Ok(header.trailer()));
            let whole = body.is_some();
            groups.push(Group::from_header(file.file, &header, crc, body));
            position = if whole || ends { header.end() } else { position + SECTOR_U64 };
            end_of_last = position;
            continue;
        }
        if let Ok(trailer) = GroupTrailer::decode(sector)
            && trailer.position >= end_of_last
            && is_sane(trailer.group, trailer.durable_group)
            && ends_at(&trailer, position)
        {
            // The header before it is damaged; the trailer says the same about the records.
            let start = trailer.position + SECTOR_U64;
            let body = read_body(window, start, trailer.body_len, trailer.body_crc)?;
            groups.push(Group::from_trailer(file.file, &trailer, body));
            end_of_last = position + SECTOR_U64;
        }
        position += SECTOR_U64;
    }
    Ok(groups)
}

/// Whether a group may have such numbers: d is below g, and no count ever comes near the limit.
pub(crate) fn is_sane(group: u64, durable: u64) -> bool {
    durable < group && group < 1 << 62
}

/// Whether a trailer at `position` belongs to a group that begins where it says.
fn ends_at(trailer: &GroupTrailer, position: u64) -> bool {
    let body_start = trailer.position.saturating_add(SECTOR_U64);
    let end = body_start.saturating_add(u64::from(trailer.body_len));
    crate::format::sector_ceil(end) == position
}

fn read_body(
    window: &mut Window,
    start: u64,
    len: u32,
    crc: u32,
) -> Result<Option<Bytes>, OpenError> {
    let body = window.bytes(start, u64::from(len))?;
    Ok(body.filter(|body| crc32fast::hash(body) == crc))
}

/// Drops what is void, then looks for gaps in the chain of the rest.
fn settle(
    manifest: &Manifest,
    survey: JournalSurvey,
    groups: Vec<Group>,
    bytes_read: u64,
) -> JournalScan {
    let mut scan = JournalScan {
        group_max: groups.iter().map(|group| group.number).max().unwrap_or(0),
        durable_max: groups.iter().map(|group| group.durable).max().unwrap_or(0),
        generation_max: survey.generation_max(),
        survey,
        bytes_read,
        ..JournalScan::default()
    };
    // From the newest Recovery group back: one that is void itself voids nothing.
    for group in groups.iter().rev() {
        if group.recovery && group.is_whole() && !scan.is_voided(group.number) {
            scan.voided.push(group.durable + 1..group.number);
        }
    }
    let mut expected = Some(manifest.last_journal_crc);
    for group in groups {
        if group.number <= manifest.checkpoint_group || scan.is_voided(group.number) {
            continue;
        }
        if let (Some(prev), Some(expected)) = (group.prev_crc, expected)
            && prev != expected
        {
            scan.missing.push(Missing { before: group.number });
        }
        expected = group.crc;
        scan.groups.push(group);
    }
    scan
}
