//! Reading segment files: whose they are, and the frames behind the checkpoint.
//!
//! Owns the enumeration of segment files and the search for frames (rule 10). Bytes outside frames are
//! never looked at past the checkpoint (rule 12). Never decides which frames stand.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use postrider_protocol::entry::{EntryHeader, EntryView};
use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use super::directory;
use super::journal::{JournalScan, is_sane};
use super::read::{Window, scan_window};
use crate::LogKey;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::journal::{Record, Roll};
use crate::format::manifest::Manifest;
use crate::format::segment::{ENTRIES_START, FrameHeader, FrameTrailer, SegmentHeader};
use crate::format::{SECTOR, SECTOR_U64, names, sector_ceil};
use crate::options::StoreOptions;

/// Beyond every position in any file: larger ones are no positions.
pub(crate) const POSITION_MAX: u64 = 1 << 48;

/// Names a segment of a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SegmentId {
    pub(crate) key: LogKey,
    pub(crate) incarnation: u64,
    pub(crate) seq: u64,
}

/// A segment file and what its first sector says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFile {
    pub(crate) file: u32,
    pub(crate) len: u64,
    pub(crate) header: Option<SegmentHeader>,
}

/// All segment files.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentSurvey {
    pub(crate) files: BTreeMap<u32, SegmentFile>,
    pub(crate) bytes_read: u64,
}

/// Reads the first sector of every segment file.
///
/// # Errors
/// `Io`.
pub(crate) fn survey(disk: &dyn Disk) -> Result<SegmentSurvey, OpenError> {
    let mut survey = SegmentSurvey::default();
    for file in directory::numbers(disk, names::SEGMENTS, "seg")? {
        let Some(mut window) = Window::open(disk, &names::segment(file))? else { continue };
        let header = window.head(SECTOR)?.and_then(|sector| SegmentHeader::decode(sector).ok());
        survey.bytes_read += window.read_bytes();
        survey.files.insert(file, SegmentFile { file, len: window.len(), header });
    }
    Ok(survey)
}

/// A run of consecutive entries, by what its headers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) first_index: EntryIndex,
    pub(crate) base_offset: Offset,
    /// `prev_header_crc` of the first entry.
    pub(crate) first_prev: u32,
    pub(crate) end_index: EntryIndex,
    pub(crate) end_offset: Offset,
    /// Header crc of the last entry.
    pub(crate) last_crc: u32,
    pub(crate) last_time: TimestampMs,
}

impl Span {
    pub(crate) fn of(header: &EntryHeader) -> Self {
        Self {
            first_index: header.index,
            base_offset: header.base_offset,
            first_prev: header.prev_header_crc,
            end_index: header.next_index(),
            end_offset: header.end_offset(),
            last_crc: header.header_crc,
            last_time: header.append_time,
        }
    }

    /// Adds the entry that follows; false when it does not.
    pub(crate) fn push(&mut self, header: &EntryHeader) -> bool {
        if header.index != self.end_index
            || header.base_offset != self.end_offset
            || header.prev_header_crc != self.last_crc
        {
            return false;
        }
        self.end_index = header.next_index();
        self.end_offset = header.end_offset();
        self.last_crc = header.header_crc;
        self.last_time = header.append_time;
        true
    }

    /// The span of entries that fill `bytes` exactly; none when they do not.
    pub(crate) fn read(mut bytes: &[u8]) -> Option<Self> {
        let mut span: Option<Self> = None;
        while !bytes.is_empty() {
            let (entry, rest) = EntryView::split(bytes).ok()?;
            match &mut span {
                None => span = Some(Self::of(&entry.header)),
                Some(span) => {
                    if !span.push(&entry.header) {
                        return None;
                    }
                }
            }
            bytes = rest;
        }
        span
    }
}

/// What is left of the entries of a frame.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// All of them. The bytes are kept only while they may be above D.
    Whole { span: Span, bytes: Option<Bytes> },
    /// The undamaged ones, in runs.
    Damaged(Vec<Span>),
}

/// A direct write found in a segment.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) segment: SegmentId,
    pub(crate) file: u32,
    pub(crate) salt: u64,
    /// g.
    pub(crate) group: u64,
    /// d.
    pub(crate) durable: u64,
    /// Of the header sector.
    pub(crate) position: u64,
    /// First position behind the frame.
    pub(crate) end: u64,
    pub(crate) body_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) first_index: EntryIndex,
    pub(crate) end_index: EntryIndex,
    pub(crate) volatile: bool,
    pub(crate) content: Content,
}

impl Frame {
    fn holds_bytes(&self) -> bool {
        matches!(self.content, Content::Whole { bytes: Some(_), .. })
    }
}

/// All segment files and frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentScan {
    pub(crate) files: BTreeMap<u32, SegmentFile>,
    /// Segments by what the files say about themselves, newer than the manifest.
    pub(crate) newer: HashMap<SegmentId, SegmentHeader>,
    /// Frames above the checkpoint that no Recovery group has voided, by group; within a group by
    /// position.
    pub(crate) frames: BTreeMap<u64, Vec<Frame>>,
    /// Highest group number in any frame.
    pub(crate) group_max: u64,
    /// Highest d in any frame.
    pub(crate) durable_max: u64,
    /// Highest salt and incarnation in any file's header.
    pub(crate) salt_max: u64,
    pub(crate) incarnation_max: u64,
    pub(crate) bytes_read: u64,
}

impl SegmentScan {
    /// After a clean stop no frame is looked for.
    pub(crate) fn skipped(survey: SegmentSurvey) -> Self {
        let headers = || survey.files.values().filter_map(|file| file.header.as_ref());
        Self {
            salt_max: headers().map(|header| header.salt).max().unwrap_or(0),
            incarnation_max: headers().map(|header| header.incarnation).max().unwrap_or(0),
            bytes_read: survey.bytes_read,
            files: survey.files,
            ..Self::default()
        }
    }
}

/// A file to be searched for frames.
struct Target {
    segment: SegmentId,
    file: u32,
    salt: u64,
    /// Where the checkpoint ends in it.
    start: u64,
}

/// Searches every segment that may have been written after the checkpoint.
///
/// # Errors
/// `Io`; `Format` when the journal holds records of a newer program.
pub(crate) fn scan(
    disk: &dyn Disk,
    options: &StoreOptions,
    manifest: &Manifest,
    journal: &JournalScan,
    survey: SegmentSurvey,
) -> Result<SegmentScan, OpenError> {
    let mut scan = SegmentScan::skipped(survey);
    let (rolls, inlines) = journaled(journal)?;
    let mut targets: BTreeMap<u32, Target> = BTreeMap::new();
    for log in &manifest.logs {
        for segment in log.segments.iter().filter(|segment| !segment.sealed) {
            let id = SegmentId { key: log.key, incarnation: log.incarnation, seq: segment.seq };
            let start = segment.end_position.min(POSITION_MAX);
            let target = Target { segment: id, file: segment.file, salt: segment.salt, start };
            targets.insert(segment.file, target);
        }
    }
    for roll in rolls {
        let id = SegmentId { key: roll.key, incarnation: roll.incarnation, seq: roll.seq };
        add_newer(&mut targets, id, roll.file, roll.salt);
    }
    for file in scan.files.values() {
        let Some(header) = file.header.filter(|header| header.file == file.file) else { continue };
        // A sparse segment has no frames, and counts only where the journal names it.
        if header.salt >= manifest.next_salt && !header.sparse {
            let SegmentHeader { key, incarnation, seq, .. } = header;
            let id = SegmentId { key, incarnation, seq };
            scan.newer.insert(id, header);
            add_newer(&mut targets, id, file.file, header.salt);
        }
    }
    let thorough = journal.is_damaged();
    let mut durable = journal.durable_max.max(manifest.durable_group);
    let mut kept: Vec<u64> = Vec::new();
    for target in targets.values() {
        let Some(mut window) = Window::open(disk, &names::segment(target.file))? else { continue };
        let none = Vec::new();
        let inlines = inlines.get(&target.segment).unwrap_or(&none);
        let reach = if thorough { u64::MAX } else { scan_window(options) };
        let found = scan_file(&mut window, target, inlines, reach, durable)?;
        scan.bytes_read += window.read_bytes();
        for frame in found {
            scan.group_max = scan.group_max.max(frame.group);
            scan.durable_max = scan.durable_max.max(frame.durable);
            let void = journal.is_voided(frame.group) && !frame.volatile;
            if frame.group > manifest.checkpoint_group && !void {
                if frame.holds_bytes() {
                    kept.push(frame.group);
                }
                scan.frames.entry(frame.group).or_default().push(frame);
            }
        }
        durable = durable.max(scan.durable_max);
        kept.retain(|group| {
            let proven = *group <= durable;
            if proven && let Some(frames) = scan.frames.get_mut(group) {
                release(frames, durable);
            }
            !proven
        });
    }
    Ok(scan)
}

/// The newest use of a file counts: its salt is the highest.
fn add_newer(targets: &mut BTreeMap<u32, Target>, segment: SegmentId, file: u32, salt: u64) {
    if targets.get(&file).is_none_or(|target| target.salt < salt) {
        targets.insert(file, Target { segment, file, salt, start: ENTRIES_START });
    }
}

type Ranges = Vec<Range<u64>>;

/// Rolls in the journal, and where its Inlines lie in the segments: merged, rising.
fn journaled(journal: &JournalScan) -> Result<(Vec<Roll>, HashMap<SegmentId, Ranges>), OpenError> {
    let mut rolls = Vec::new();
    let mut inlines: HashMap<SegmentId, Ranges> = HashMap::new();
    for group in &journal.groups {
        for record in group.records()? {
            match record {
                Record::Roll(roll) => rolls.push(roll),
                Record::Inline(inline) if inline.position <= POSITION_MAX => {
                    let (key, incarnation, seq) = (inline.key, inline.incarnation, inline.seq);
                    let end = inline.position.saturating_add(inline.entries.len() as u64);
                    let id = SegmentId { key, incarnation, seq };
                    inlines.entry(id).or_default().push(inline.position..end);
                }
                _ => {}
            }
        }
    }
    for ranges in inlines.values_mut() {
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
    }
    Ok((rolls, inlines))
}

/// Walks one segment from the checkpoint on, sector by sector: over journaled entries, by whole frames,
/// and no further than `reach` behind the last thing found.
fn scan_file(
    window: &mut Window,
    target: &Target,
    inlines: &[Range<u64>],
    reach: u64,
    mut durable: u64,
) -> Result<Vec<Frame>, OpenError> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut position = sector_ceil(target.start.max(ENTRIES_START));
    let mut end_of_last = target.start;
    let next_inline = |position: u64| inlines.iter().find(|range| range.end > position).cloned();
    loop {
        if let Some(range) = next_inline(position)
            && range.start <= position
        {
            end_of_last = range.end;
            position = sector_ceil(range.end);
            continue;
        }
        let Some(sector) = window.get(position, SECTOR)? else { break };
        // A sector that was never written belongs to no frame whose sync succeeded.
        let blank = reach != u64::MAX && sector.iter().all(|byte| *byte == 0);
        if blank || position.saturating_sub(end_of_last) > reach {
            let Some(range) = next_inline(position) else { break };
            end_of_last = range.end;
            position = sector_ceil(range.end);
            continue;
        }
        if let Some(header) = frame_at(sector, target, position) {
            let frame = read_frame(window, target, &header)?;
            let trailer = window.get(header.trailer_position(), SECTOR)?;
            let ends = trailer.map(FrameTrailer::decode) == Some(Ok(header.trailer()));
            let whole = matches!(frame.content, Content::Whole { .. });
            position = if whole || ends { header.end() } else { position + SECTOR_U64 };
            end_of_last = position;
            durable = durable.max(frame.durable);
            frames.push(frame);
            release(&mut frames, durable);
            continue;
        }
        if let Some(trailer) = trailer_at(sector, target, position, end_of_last) {
            let frame = read_trailed(window, target, &trailer, position + SECTOR_U64)?;
            end_of_last = position + SECTOR_U64;
            durable = durable.max(frame.durable);
            frames.push(frame);
            release(&mut frames, durable);
        }
        position += SECTOR_U64;
    }
    Ok(frames)
}

/// Most frames that the newest evidence of D can prove at a time: those of one group.
const RELEASE_MAX: usize = 64;

/// Forgets the bytes of frames that are proven: they stay where they are.
fn release(frames: &mut [Frame], durable: u64) {
    for frame in frames.iter_mut().rev().take(RELEASE_MAX) {
        if (frame.group <= durable || frame.volatile)
            && let Content::Whole { bytes, .. } = &mut frame.content
        {
            *bytes = None;
        }
    }
}

fn frame_at(sector: &[u8], target: &Target, position: u64) -> Option<FrameHeader> {
    let header = FrameHeader::decode(sector).ok()?;
    let fits = header.salt == target.salt
        && header.position == position
        && is_sane(header.group, header.durable_group)
        && header.first_index.0.checked_add(u64::from(header.count)).is_some();
    fits.then_some(header)
}

/// A trailer whose header sector is damaged: had it been readable, the walk would have passed here.
fn trailer_at(
    sector: &[u8],
    target: &Target,
    position: u64,
    end_of_last: u64,
) -> Option<FrameTrailer> {
    let trailer = FrameTrailer::decode(sector).ok()?;
    let body_start = trailer.position.saturating_add(SECTOR_U64);
    let fits = trailer.salt == target.salt
        && trailer.position >= end_of_last
        && is_sane(trailer.group, trailer.durable_group)
        && trailer.first_index < trailer.end_index
        && sector_ceil(body_start.saturating_add(u64::from(trailer.body_len))) == position;
    fits.then_some(trailer)
}

fn read_frame(
    window: &mut Window,
    target: &Target,
    header: &FrameHeader,
) -> Result<Frame, OpenError> {
    let bytes = window.bytes(header.body_start(), u64::from(header.body_len))?;
    let whole = bytes.as_ref().filter(|bytes| crc32fast::hash(bytes) == header.body_crc);
    let span = whole.and_then(|bytes| Span::read(bytes)).filter(|span| {
        span.first_index == header.first_index
            && span.base_offset == header.base_offset
            && span.first_prev == header.first_prev
            && span.last_crc == header.last_crc
            && span.end_index.0 - span.first_index.0 == u64::from(header.count)
    });
    let trailer = header.trailer();
    let content = match span {
        Some(span) => Content::Whole { span, bytes },
        None => Content::Damaged(undamaged(&bytes.unwrap_or_default(), &trailer)),
    };
    Ok(frame(target, &trailer, header.end(), content))
}

/// A frame of which only the trailer is left; the entries are as good as their crc.
fn read_trailed(
    window: &mut Window,
    target: &Target,
    trailer: &FrameTrailer,
    end: u64,
) -> Result<Frame, OpenError> {
    let bytes = window.bytes(trailer.position + SECTOR_U64, u64::from(trailer.body_len))?;
    let whole = bytes.as_ref().filter(|bytes| crc32fast::hash(bytes) == trailer.body_crc);
    let span = whole.and_then(|bytes| Span::read(bytes)).filter(|span| {
        span.first_index == trailer.first_index && span.end_index == trailer.end_index
    });
    let content = match span {
        Some(span) => Content::Whole { span, bytes },
        None => Content::Damaged(undamaged(&bytes.unwrap_or_default(), trailer)),
    };
    Ok(frame(target, trailer, end, content))
}

fn frame(target: &Target, trailer: &FrameTrailer, end: u64, content: Content) -> Frame {
    Frame {
        segment: target.segment,
        file: target.file,
        salt: target.salt,
        group: trailer.group,
        durable: trailer.durable_group,
        position: trailer.position,
        end,
        body_len: trailer.body_len,
        body_crc: trailer.body_crc,
        first_index: trailer.first_index,
        end_index: trailer.end_index,
        volatile: trailer.volatile,
        content,
    }
}

/// Runs of entries within a damaged frame that prove themselves by their own crcs. An entry whose body
/// is damaged is stepped over; behind a damaged header the next one is found by its index.
fn undamaged(bytes: &[u8], trailer: &FrameTrailer) -> Vec<Span> {
    let range = trailer.first_index..trailer.end_index;
    let mut spans: Vec<Span> = Vec::new();
    let mut at = 0;
    let mut next = range.start;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Ok((entry, after)) = EntryView::split(rest) else {
            at += 8;
            continue;
        };
        if entry.header.index < next || !range.contains(&entry.header.index) {
            at += 8;
            continue;
        }
        if entry.check_body().is_ok() {
            let follows = spans.last_mut().is_some_and(|span| span.push(&entry.header));
            if !follows {
                spans.push(Span::of(&entry.header));
            }
        }
        next = entry.header.next_index();
        at = bytes.len() - after.len();
    }
    spans
}
