//! Replay: from groups and frames to the state of every log.
//!
//! Owns D and what follows from it (rules 11-13): what is proven stays where it is, what is damaged
//! below D is reported and kept, what stands above D moves, and the rest is cut. Pure: reads no files,
//! changes nothing on the disk. `conclude` carries the outcome out.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use postrider_protocol::types::Offset;

use super::LOST_TAIL;
use super::journal::{Group, JournalScan};
use super::log_state::{FramePlace, LogState, Source, Survivor, Thinned};
use super::segments::{Content, Frame, POSITION_MAX, SegmentId, SegmentScan, Span};
use crate::LogKey;
use crate::error::OpenError;
use crate::format::journal::{Damage, Inline, Record, Roll};
use crate::format::manifest::Manifest;
use crate::format::{FormatError, names};

/// A Drop above D.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dropped {
    pub(crate) key: LogKey,
    pub(crate) incarnation: u64,
    /// 0 when the log is gone.
    pub(crate) new_incarnation: u64,
}

/// What stands.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) logs: BTreeMap<LogKey, LogState>,
    /// Drops above D: the Recovery group repeats them.
    pub(crate) drops: Vec<Dropped>,
    /// D.
    pub(crate) durable: u64,
    pub(crate) doubtful: bool,
    /// Journal groups or gaps that were proven and cannot be read.
    pub(crate) lost_groups: u64,
    pub(crate) torn: u64,
    pub(crate) groups: u64,
    pub(crate) entries: u64,
    /// crc of the last proven journal group.
    pub(crate) last_crc: u32,
    pub(crate) group_max: u64,
    pub(crate) salt_max: u64,
    pub(crate) incarnation_max: u64,
    pub(crate) file_max: Option<u32>,
}

/// Replays everything above the checkpoint.
///
/// # Errors
/// `Format` when a whole group holds what this program does not know.
pub(crate) fn replay(
    manifest: &Manifest,
    journal: &JournalScan,
    segments: &SegmentScan,
) -> Result<Outcome, OpenError> {
    let mut replay = Replay::new(manifest, journal, segments);
    let mut frames = segments.frames.clone();
    for group in &journal.groups {
        let mut before = frames;
        frames = before.split_off(&group.number);
        for (number, found) in before {
            replay.apply(number, Vec::new(), found);
        }
        replay.judge(group);
        let events = replay.records(group)?;
        let found = frames.remove(&group.number).unwrap_or_default();
        replay.apply(group.number, events.entries, found);
        for (key, incarnation, damage) in events.damages {
            if let Some(log) = replay.log(key, incarnation) {
                log.damage(damage);
                log.newly_damaged = true;
            }
        }
    }
    for (number, found) in frames {
        replay.apply(number, Vec::new(), found);
    }
    replay.finish(segments);
    Ok(replay.outcome)
}

/// Journaled entries, decoded.
struct InlineRun {
    segment: SegmentId,
    position: u64,
    span: Span,
    bytes: Bytes,
}

/// Entries of one log in one group.
enum Event {
    Inline(InlineRun),
    Frame(Frame),
}

impl Event {
    fn segment(&self) -> SegmentId {
        match self {
            Self::Inline(run) => run.segment,
            Self::Frame(frame) => frame.segment,
        }
    }

    fn first_index(&self) -> u64 {
        match self {
            Self::Inline(run) => run.span.first_index.0,
            Self::Frame(frame) => frame.first_index.0,
        }
    }
}

/// What a group holds besides records that act at once.
#[derive(Default)]
struct Events {
    entries: Vec<InlineRun>,
    damages: Vec<(LogKey, u64, Damage)>,
}

struct Replay<'a> {
    outcome: Outcome,
    /// What segment files say about themselves: the place of entries whose Roll is lost.
    newer: &'a HashMap<SegmentId, crate::format::segment::SegmentHeader>,
    /// Incarnations that are void, per log: this one and all below.
    void: HashMap<LogKey, u64>,
    /// Live user of a segment file: log and salt.
    owners: HashMap<u32, (LogKey, u64)>,
    /// Something proven is lost before this group; 0 when nothing is.
    lost_before: u64,
}

impl<'a> Replay<'a> {
    fn new(manifest: &Manifest, journal: &JournalScan, segments: &'a SegmentScan) -> Self {
        let durable = manifest.durable_group.max(journal.durable_max).max(segments.durable_max);
        let mut owners = HashMap::new();
        let mut logs = BTreeMap::new();
        let mut file_max = segments.files.keys().next_back().copied();
        for log in &manifest.logs {
            for segment in &log.segments {
                owners.insert(segment.file, (log.key, segment.salt));
                file_max = file_max.max(Some(segment.file));
            }
            logs.insert(log.key, LogState::from_manifest(log));
        }
        let numbers = [manifest.checkpoint_group, durable, journal.group_max, segments.group_max];
        let outcome = Outcome {
            logs,
            drops: Vec::new(),
            durable,
            doubtful: manifest.doubtful,
            lost_groups: 0,
            torn: 0,
            groups: 0,
            entries: 0,
            last_crc: manifest.last_journal_crc,
            group_max: numbers.into_iter().max().unwrap_or(0),
            salt_max: segments.salt_max.max(manifest.next_salt.saturating_sub(1)),
            incarnation_max: segments
                .incarnation_max
                .max(manifest.next_incarnation.saturating_sub(1)),
            file_max,
        };
        let mut replay =
            Self { outcome, newer: &segments.newer, void: HashMap::new(), owners, lost_before: 0 };
        for missing in &journal.missing {
            if missing.before <= durable {
                replay.lose(missing.before);
            } else {
                replay.outcome.torn += 1;
            }
        }
        replay
    }

    /// Something proven before this group cannot be read.
    fn lose(&mut self, before: u64) {
        self.outcome.lost_groups += 1;
        self.lost_before = self.lost_before.max(before);
    }

    /// Damaged below D, or torn above it.
    fn judge(&mut self, group: &Group) {
        let proven = group.number <= self.outcome.durable;
        if proven && let Some(crc) = group.crc {
            self.outcome.last_crc = crc;
        }
        if group.is_whole() {
            self.outcome.groups += 1;
        } else if proven {
            self.lose(group.number);
        } else {
            self.outcome.torn += 1;
            // A torn Recovery group was never served, and what it repeats stands without it.
            self.outcome.doubtful |= !group.unsynced && !group.recovery;
        }
    }

    /// Carries out what acts at once and returns the rest.
    fn records(&mut self, group: &Group) -> Result<Events, OpenError> {
        let mut events = Events::default();
        let proven = group.number <= self.outcome.durable;
        for record in group.records()? {
            match record {
                Record::Inline(inline) => events.entries.push(inline_run(group, &inline)?),
                Record::Damage { key, incarnation, damage } => {
                    events.damages.push((key, incarnation, damage));
                }
                Record::Recovery { doubtful } => self.outcome.doubtful |= doubtful,
                Record::Mark => {}
                Record::Roll(roll) => self.roll(&roll, proven),
                Record::Drop { key, incarnation, new_incarnation } => {
                    self.drop_log(Dropped { key, incarnation, new_incarnation }, proven);
                }
                Record::Truncate { key, incarnation, end_index, end_offset, chain_crc } => {
                    let end = (end_index, end_offset);
                    let Some(log) = self.log(key, incarnation) else { continue };
                    if proven && log.above.is_none() {
                        log.truncate(end, chain_crc);
                    } else {
                        log.truncate_above(end, chain_crc);
                    }
                }
                Record::Trim { key, incarnation, start_index, start_offset, release_index } => {
                    let start = (start_index, start_offset);
                    let Some(log) = self.log(key, incarnation) else { continue };
                    log.trim(start, release_index);
                    if !proven {
                        log.trim_above = Some((start, release_index));
                    }
                }
                Record::Vacate { key, incarnation, seq, vacancy } => {
                    self.thin(key, incarnation, (seq, Thinned::Vacate(vacancy)), proven);
                }
                Record::Replace { key, incarnation, seq, place } => {
                    self.outcome.salt_max = self.outcome.salt_max.max(place.salt);
                    self.outcome.file_max = self.outcome.file_max.max(Some(place.file));
                    let user = (key, place.salt);
                    self.thin(key, incarnation, (seq, Thinned::Replace(place)), proven);
                    self.take_over(place.file, user);
                }
                Record::Reserve { key, incarnation, class, end_index, end_offset } => {
                    let Some(log) = self.log(key, incarnation) else { continue };
                    log.class = class;
                    log.class_known = true;
                    log.reserve_group = group.number;
                    let reserved = log.reserved;
                    log.reserved = (reserved.0.max(end_index), reserved.1.max(end_offset));
                    log.reserve_above |= !proven;
                }
            }
        }
        Ok(events)
    }

    /// The live log of an incarnation; none when that incarnation is void. A log that nobody announced
    /// exists all the same: its announcement is lost.
    fn log(&mut self, key: LogKey, incarnation: u64) -> Option<&mut LogState> {
        self.outcome.incarnation_max = self.outcome.incarnation_max.max(incarnation);
        if self.void.get(&key).is_some_and(|void| incarnation <= *void) {
            return None;
        }
        let logs = &mut self.outcome.logs;
        let log = logs.entry(key).or_insert_with(|| LogState::new(key, incarnation));
        if log.incarnation < incarnation {
            self.void.insert(key, log.incarnation);
            *log = LogState::new(key, incarnation);
        }
        (log.incarnation == incarnation).then_some(log)
    }

    fn roll(&mut self, roll: &Roll, proven: bool) {
        self.outcome.salt_max = self.outcome.salt_max.max(roll.salt);
        self.outcome.file_max = self.outcome.file_max.max(Some(roll.file));
        let Some(log) = self.log(roll.key, roll.incarnation) else { return };
        if !proven || log.above.is_some() {
            log.touch();
            log.last_seq = log.last_seq.max(roll.seq);
            return;
        }
        log.roll(roll);
        self.take_over(roll.file, (roll.key, roll.salt));
    }

    fn thin(
        &mut self,
        key: LogKey,
        incarnation: u64,
        (seq, thinned): (u64, Thinned),
        proven: bool,
    ) {
        let Some(log) = self.log(key, incarnation) else { return };
        log.thin(seq, thinned);
        if !proven {
            log.thinned_above.push((seq, thinned));
        }
    }

    /// A segment file has a new user.
    fn take_over(&mut self, file: u32, user: (LogKey, u64)) {
        if let Some((key, salt)) = self.owners.insert(file, user)
            && salt != user.1
            && let Some(other) = self.outcome.logs.get_mut(&key)
        {
            // Released before, or the release is lost.
            other.lose_segment(salt);
        }
    }

    fn drop_log(&mut self, dropped: Dropped, proven: bool) {
        let Dropped { key, incarnation, new_incarnation } = dropped;
        self.outcome.incarnation_max = self.outcome.incarnation_max.max(new_incarnation);
        if self.log(key, incarnation).is_none() {
            return;
        }
        let class = self.outcome.logs.remove(&key).map(|log| log.class);
        self.void.insert(key, incarnation);
        if new_incarnation > incarnation {
            let mut log = LogState::new(key, new_incarnation);
            log.class = class.unwrap_or_default();
            self.outcome.logs.insert(key, log);
        }
        if !proven {
            self.outcome.drops.push(dropped);
        }
    }

    /// Entries of one group, per log in the order of their indexes.
    fn apply(&mut self, number: u64, inlines: Vec<InlineRun>, frames: Vec<Frame>) {
        let mut events: BTreeMap<LogKey, Vec<Event>> = BTreeMap::new();
        let all = inlines.into_iter().map(Event::Inline);
        for event in all.chain(frames.into_iter().map(Event::Frame)) {
            events.entry(event.segment().key).or_default().push(event);
        }
        for (key, mut events) in events {
            events.sort_by_key(Event::first_index);
            for event in events {
                let SegmentId { incarnation, .. } = event.segment();
                if self.log(key, incarnation).is_none() {
                    continue;
                }
                match event {
                    Event::Inline(run) => self.inline(number, run),
                    Event::Frame(frame) if frame.volatile => self.volatile_frame(number, &frame),
                    Event::Frame(frame) => self.frame(number, frame),
                }
            }
        }
    }

    fn inline(&mut self, number: u64, run: InlineRun) {
        let proven = number <= self.outcome.durable;
        self.outcome.entries += run.span.end_index.0 - run.span.first_index.0;
        self.adopt(run.segment, proven);
        let rotten = self.lost_before > 0;
        let Some(log) = self.log(run.segment.key, run.segment.incarnation) else { return };
        if proven && log.above.is_none() {
            if !make_room(log, &run.span, rotten) {
                return;
            }
            let (seq, bytes) = (run.segment.seq, &run.bytes);
            if log.inline(number, seq, run.position, &run.span, bytes) {
                return;
            }
            if !log.continues(&run.span) {
                log.lost_upto = log.lost_upto.max(run.span.end_index);
                return;
            }
        }
        let survivor = Survivor { span: run.span, source: Source::Memory(run.bytes) };
        self.survive(run.segment, number, survivor);
    }

    fn frame(&mut self, number: u64, frame: Frame) {
        let proven = number <= self.outcome.durable;
        self.outcome.groups += 1;
        self.outcome.entries += frame.end_index.0 - frame.first_index.0;
        self.adopt(frame.segment, proven);
        let rotten = self.lost_before > 0;
        let segment = frame.segment;
        let Some(log) = self.log(segment.key, segment.incarnation) else { return };
        // A frame that is not volatile is of a class that syncs, which reserves nothing.
        log.class_known = true;
        if proven && log.above.is_none() {
            let room = match &frame.content {
                Content::Whole { span, .. } => make_room(log, span, rotten),
                Content::Damaged(_) => true,
            };
            // Not live: its Roll is lost and its first sector too.
            if room && !log.frame(&frame) {
                log.lost_upto = log.lost_upto.max(frame.end_index);
            }
            return;
        }
        match &frame.content {
            Content::Whole { span, bytes } => {
                let span = *span;
                let source = bytes
                    .clone()
                    .map_or_else(|| Source::Frame(FramePlace::of(&frame, &span)), Source::Memory);
                self.survive(segment, number, Survivor { span, source });
            }
            Content::Damaged(_) => {
                log.touch().cut = true;
                self.outcome.torn += 1;
                self.outcome.doubtful = true;
            }
        }
    }

    /// A frame that no sync ever proves: it counts if it is whole and continues its log.
    fn volatile_frame(&mut self, number: u64, frame: &Frame) {
        self.adopt(frame.segment, number <= self.outcome.durable);
        let segment = frame.segment;
        let Some(log) = self.log(segment.key, segment.incarnation) else { return };
        match &frame.content {
            Content::Whole { span, .. } if log.continues(span) => {
                if !log.frame_in_place(frame, span) {
                    let source = Source::Frame(FramePlace::of(frame, span));
                    log.survive(number, Survivor { span: *span, source });
                }
                self.outcome.groups += 1;
                self.outcome.entries += frame.end_index.0 - frame.first_index.0;
            }
            _ => log.spoiled = Some(segment.seq),
        }
    }

    fn survive(&mut self, segment: SegmentId, number: u64, survivor: Survivor) {
        let Some(log) = self.log(segment.key, segment.incarnation) else { return };
        let volatile = log.is_volatile();
        let cut_before = log.above.as_ref().is_some_and(|above| above.cut);
        if !log.survive(number, survivor) && !cut_before {
            self.outcome.torn += 1;
            self.outcome.doubtful |= !volatile;
        }
    }

    /// Gives proven entries of an unknown segment the place that the segment file claims.
    fn adopt(&mut self, segment: SegmentId, proven: bool) {
        if !proven {
            return;
        }
        let Some(header) = self.newer.get(&segment).copied() else { return };
        let Some(log) = self.log(segment.key, segment.incarnation) else { return };
        let known = log.segments.iter().any(|known| known.at.seq >= segment.seq);
        if known || log.above.is_some() {
            return;
        }
        let roll = Roll {
            key: header.key,
            incarnation: header.incarnation,
            seq: header.seq,
            file: header.file,
            salt: header.salt,
            base_index: header.base_index,
            base_offset: header.base_offset,
            chain_crc: header.chain_crc,
        };
        self.roll(&roll, true);
    }

    fn finish(&mut self, segments: &SegmentScan) {
        if self.lost_before > 0 {
            self.adopt_orphans();
        }
        for log in self.outcome.logs.values_mut() {
            lose_missing(log, segments);
            let unknown = log.last_group < self.lost_before
                || log.lost_upto > log.end.0
                || log.may_lack_reservation(self.lost_before);
            if unknown {
                let index = log.end.0.max(log.lost_upto).0;
                let to = (index.saturating_add(LOST_TAIL), log.end.1.0.saturating_add(LOST_TAIL));
                log.jump((postrider_protocol::types::EntryIndex(to.0), Offset(to.1)));
            }
            if log.is_volatile() {
                log.jump(log.reserved);
            }
            let last = log.segments.last().map(|segment| segment.at.seq);
            if log.spoiled.is_some() && log.spoiled == last && log.above.is_none() {
                log.touch();
            }
        }
    }

    /// With part of the journal lost, a segment that is newer than the manifest may be all that is left
    /// of a log's announcement.
    fn adopt_orphans(&mut self) {
        let mut orphans: Vec<SegmentId> = self.newer.keys().copied().collect();
        orphans.sort_unstable();
        for segment in orphans {
            let known = self.outcome.logs.get(&segment.key);
            if known.is_none_or(|log| log.incarnation < segment.incarnation) {
                self.adopt(segment, true);
            }
        }
    }
}

/// Whether a proven run may be applied. A run below the end was seen before, or the truncation before
/// it is lost.
fn make_room(log: &mut LogState, span: &Span, rotten: bool) -> bool {
    if span.first_index >= log.end.0 {
        return true;
    }
    if !rotten || span.end_index <= log.end.0 {
        return false;
    }
    log.truncate((span.first_index, span.base_offset), span.first_prev);
    true
}

/// Live segments whose file is missing, too short or used by another log.
pub(crate) fn lose_missing(log: &mut LogState, segments: &SegmentScan) {
    let lost = |segment: &&super::log_state::Segment| {
        let at = &segment.at;
        match segments.files.get(&at.file) {
            _ if segment.rolled => false,
            None => true,
            Some(file) => {
                let reused = file.header.is_some_and(|header| header.salt > at.salt);
                reused || file.len < at.end_position
            }
        }
    };
    let salts: Vec<u64> = log.segments.iter().filter(lost).map(|lost| lost.at.salt).collect();
    for salt in salts {
        log.lose_segment(salt);
    }
}

fn inline_run(group: &Group, inline: &Inline<'_>) -> Result<InlineRun, OpenError> {
    let damaged = || OpenError::Format {
        path: names::journal(group.file),
        source: FormatError::Field("entries of a journal record"),
    };
    let span = Span::read(inline.entries).ok_or_else(damaged)?;
    let count = span.end_index.0 - span.first_index.0;
    let placed = inline.position <= POSITION_MAX;
    if !placed || span.first_index != inline.first_index || count != u64::from(inline.count) {
        return Err(damaged());
    }
    let bytes = group.body().map(|body| body.slice_ref(inline.entries)).unwrap_or_default();
    let Inline { key, incarnation, seq, position, .. } = *inline;
    Ok(InlineRun { segment: SegmentId { key, incarnation, seq }, position, span, bytes })
}
