//! One log while its groups are replayed.
//!
//! Owns what a log is after the groups so far: proven entries in their segments, unproven survivors
//! apart from them. Never reads or writes files. Driven by `replay`; `conclude` carries it out.

use std::ops::Range;

use bytes::Bytes;
use postrider_protocol::entry::EntryView;
use postrider_protocol::types::{Durability, EntryIndex, Offset, TimestampMs};

use super::segments::{Content, Frame, Span};
use crate::LogKey;
use crate::format::journal::{Damage, Record, Roll, SparsePlace};
use crate::format::manifest::{ManifestLog, ManifestSegment, SnapshotRef};
use crate::format::segment::{ENTRIES_START, FrameHeader};
use crate::format::vacancy::Vacancy;

/// One past an entry, and the offset of the next message there.
pub(crate) type End = (EntryIndex, Offset);

/// A live segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) at: ManifestSegment,
    /// Written since the checkpoint.
    pub(crate) dirty: bool,
    /// Opened since the checkpoint: the file, or its first sector, may be missing.
    pub(crate) rolled: bool,
}

/// Journaled entries that belong at a place in a segment file.
#[derive(Clone, Debug)]
pub(crate) struct InlineWrite {
    pub(crate) file: u32,
    pub(crate) position: u64,
    pub(crate) bytes: Bytes,
}

/// A frame that counts although no sync proves it, by the header sector that it was written with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FramePlace {
    pub(crate) file: u32,
    pub(crate) header: FrameHeader,
}

impl FramePlace {
    /// The place of a frame whose entries are whole.
    pub(crate) fn of(frame: &Frame, span: &Span) -> Self {
        let count = span.end_index.0 - span.first_index.0;
        let header = FrameHeader {
            salt: frame.salt,
            group: frame.group,
            durable_group: frame.durable,
            position: frame.position,
            first_index: span.first_index,
            base_offset: span.base_offset,
            count: u32::try_from(count).expect("entries of 80 bytes in a frame fit u32"),
            body_len: frame.body_len,
            first_prev: span.first_prev,
            last_crc: span.last_crc,
            body_crc: frame.body_crc,
            volatile: frame.volatile,
        };
        Self { file: frame.file, header }
    }
}

/// Bytes between entries that nothing vouches for: what should be there (entries, or the zeros before a
/// frame) may be lost, and what is there may be of an earlier use of the file. Zeros keep a walk from
/// taking it for entries.
#[derive(Clone, Debug)]
pub(crate) struct Scrub {
    pub(crate) file: u32,
    pub(crate) range: Range<u64>,
}

/// Where the bytes of a survivor are.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Memory(Bytes),
    Frame(FramePlace),
}

/// A segment that is kept no longer, or in part.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Thinned {
    Vacate(Vacancy),
    Replace(SparsePlace),
}

/// Entries above D that stand: they move to a new segment.
#[derive(Clone, Debug)]
pub(crate) struct Survivor {
    pub(crate) span: Span,
    pub(crate) source: Source,
}

/// What a log is above D.
#[derive(Clone, Debug)]
pub(crate) struct Above {
    /// Where the proven entries end.
    pub(crate) proven_end: End,
    pub(crate) proven_crc: u32,
    pub(crate) survivors: Vec<Survivor>,
    /// Nothing more of this log stands.
    pub(crate) cut: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct LogState {
    pub(crate) key: LogKey,
    pub(crate) incarnation: u64,
    pub(crate) class: Durability,
    pub(crate) start: End,
    pub(crate) end: End,
    pub(crate) reserved: End,
    pub(crate) chain_crc: u32,
    pub(crate) last_time: TimestampMs,
    pub(crate) last_seq: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) snapshots: Vec<SnapshotRef>,
    pub(crate) damages: Vec<Damage>,
    /// Ranges between segments that are kept no longer, rising.
    pub(crate) vacancies: Vec<Vacancy>,
    /// Some damage is newer than the manifest.
    pub(crate) newly_damaged: bool,
    /// Entries below this index existed, even if they cannot be read.
    pub(crate) lost_upto: EntryIndex,
    /// Group of the last entries that linked to what came before.
    pub(crate) last_group: u64,
    /// The last segment takes no more appends.
    pub(crate) closed: bool,
    pub(crate) inlines: Vec<InlineWrite>,
    /// Volatile frames that stay where they are: written again, since no sync covered them.
    pub(crate) rewrites: Vec<FramePlace>,
    pub(crate) scrubs: Vec<Scrub>,
    /// A segment whose next position was used by a volatile write that is lost.
    pub(crate) spoiled: Option<u64>,
    /// A trim above D: start and release index.
    pub(crate) trim_above: Option<(End, EntryIndex)>,
    /// Segments that were thinned above D, in order.
    pub(crate) thinned_above: Vec<(u64, Thinned)>,
    /// A reservation above D.
    pub(crate) reserve_above: bool,
    /// Something that is not lost says which class this is.
    pub(crate) class_known: bool,
    /// Group of the last reservation.
    pub(crate) reserve_group: u64,
    pub(crate) above: Option<Above>,
}

impl LogState {
    pub(crate) fn new(key: LogKey, incarnation: u64) -> Self {
        Self {
            key,
            incarnation,
            class: Durability::Fsync,
            start: End::default(),
            end: End::default(),
            reserved: End::default(),
            chain_crc: 0,
            last_time: TimestampMs(0),
            last_seq: 0,
            segments: Vec::new(),
            snapshots: Vec::new(),
            damages: Vec::new(),
            vacancies: Vec::new(),
            newly_damaged: false,
            lost_upto: EntryIndex(0),
            last_group: 0,
            closed: false,
            inlines: Vec::new(),
            rewrites: Vec::new(),
            scrubs: Vec::new(),
            spoiled: None,
            trim_above: None,
            thinned_above: Vec::new(),
            reserve_above: false,
            class_known: false,
            reserve_group: 0,
            above: None,
        }
    }

    /// The log as the checkpoint left it.
    pub(crate) fn from_manifest(log: &ManifestLog) -> Self {
        let segment = |at: &ManifestSegment| Segment { at: *at, dirty: false, rolled: false };
        Self {
            class: log.class,
            class_known: true,
            start: log.start,
            end: log.end,
            reserved: log.reserved,
            chain_crc: log.chain_crc,
            last_time: log.last_time,
            last_seq: log.last_seq,
            segments: log.segments.iter().map(segment).collect(),
            snapshots: log.snapshots.clone(),
            damages: log.damages.clone(),
            vacancies: log.vacancies.clone(),
            closed: log.segments.last().is_some_and(|last| last.sealed),
            ..Self::new(log.key, log.incarnation)
        }
    }

    /// Whether the class demands no sync.
    pub(crate) fn is_volatile(&self) -> bool {
        self.class != Durability::Fsync
    }

    /// Whether a reservation of this log may be in a group before `lost_before`, which is lost: then
    /// nobody knows which numbers may have been used.
    pub(crate) fn may_lack_reservation(&self, lost_before: u64) -> bool {
        let reserves = self.is_volatile() || !self.class_known;
        reserves && self.reserve_group < lost_before
    }

    /// A new segment that is proven.
    pub(crate) fn roll(&mut self, roll: &Roll) {
        self.last_seq = self.last_seq.max(roll.seq);
        if self.segments.iter().any(|segment| segment.at.seq >= roll.seq) {
            return;
        }
        if self.segments.is_empty() && self.end == End::default() && roll.seq == 1 {
            self.start = (roll.base_index, roll.base_offset);
            self.end = self.start;
            self.chain_crc = roll.chain_crc;
        }
        if let Some(last) = self.segments.last_mut() {
            last.at.sealed = true;
        }
        let at = ManifestSegment {
            file: roll.file,
            sealed: false,
            sparse: false,
            seq: roll.seq,
            salt: roll.salt,
            base_index: roll.base_index,
            base_offset: roll.base_offset,
            end_index: roll.base_index,
            end_offset: roll.base_offset,
            end_position: ENTRIES_START,
            last_time: TimestampMs(0),
            base_chain_crc: roll.chain_crc,
        };
        self.segments.push(Segment { at, dirty: true, rolled: true });
        self.closed = false;
    }

    /// The live segment with this number.
    pub(crate) fn segment(&self, seq: u64) -> Option<&Segment> {
        self.segments.iter().rev().find(|segment| segment.at.seq == seq)
    }

    /// From here on the log is above D.
    pub(crate) fn touch(&mut self) -> &mut Above {
        let (proven_end, proven_crc) = (self.end, self.chain_crc);
        self.above.get_or_insert_with(|| Above {
            proven_end,
            proven_crc,
            survivors: Vec::new(),
            cut: false,
        })
    }

    /// Whether a run continues the log without a gap.
    pub(crate) fn continues(&self, span: &Span) -> bool {
        span.first_index == self.end.0 && span.first_prev == self.chain_crc
    }

    /// Moves the end behind a run. What lies between is lost, and said so.
    fn advance(&mut self, group: u64, span: &Span) {
        if span.first_index > self.end.0 {
            self.add_damage(self.end, (span.first_index, span.base_offset));
        }
        self.end = (span.end_index, span.end_offset);
        self.chain_crc = span.last_crc;
        self.last_time = self.last_time.max(span.last_time);
        self.last_group = group;
    }

    /// A run that begins at `position` of its segment: the file, or none when that segment is not live.
    fn place(
        &mut self,
        group: u64,
        seq: u64,
        span: &Span,
        position: u64,
        end_position: u64,
    ) -> Option<u32> {
        let segment = self.segments.iter_mut().rev().find(|segment| segment.at.seq == seq)?;
        segment.dirty = true;
        if span.first_index > self.end.0 && position > segment.at.end_position {
            let (file, from) = (segment.at.file, segment.at.end_position);
            self.scrubs.push(Scrub { file, range: from..position });
        }
        segment.at.end_index = span.end_index;
        segment.at.end_offset = span.end_offset;
        segment.at.end_position = segment.at.end_position.max(end_position);
        segment.at.last_time = segment.at.last_time.max(span.last_time);
        let file = segment.at.file;
        self.advance(group, span);
        Some(file)
    }

    /// Proven journaled entries; false when they have no segment to go to.
    pub(crate) fn inline(
        &mut self,
        group: u64,
        seq: u64,
        position: u64,
        span: &Span,
        bytes: &Bytes,
    ) -> bool {
        let end = position.saturating_add(bytes.len() as u64);
        let Some(file) = self.place(group, seq, span, position, end) else { return false };
        self.inlines.push(InlineWrite { file, position, bytes: bytes.clone() });
        true
    }

    /// A volatile frame that continues the log in its open segment; false when it does not fit there.
    pub(crate) fn frame_in_place(&mut self, frame: &Frame, span: &Span) -> bool {
        let seq = frame.segment.seq;
        let live = self
            .segments
            .last()
            .filter(|last| last.at.seq == seq && last.at.salt == frame.salt && !last.at.sealed);
        let Some(live) = live.filter(|_| self.above.is_none()) else { return false };
        if frame.position > live.at.end_position {
            // A frame is written with the zeros before it; its header does not prove that they came through.
            let (file, from) = (live.at.file, live.at.end_position);
            self.scrubs.push(Scrub { file, range: from..frame.position });
        }
        self.place(frame.group, seq, span, frame.position, frame.end);
        self.rewrites.push(FramePlace::of(frame, span));
        true
    }

    /// A proven frame, or what is left of it; false when its segment is not live.
    pub(crate) fn frame(&mut self, frame: &Frame) -> bool {
        let seq = frame.segment.seq;
        if self.segment(seq).is_none_or(|segment| segment.at.salt != frame.salt) {
            return false;
        }
        match &frame.content {
            Content::Whole { span, .. } => {
                self.place(frame.group, seq, span, frame.position, frame.end);
            }
            Content::Damaged(spans) => {
                for span in spans {
                    if span.first_index >= self.end.0 {
                        self.place(frame.group, seq, span, frame.position, frame.end);
                    }
                }
                self.lost_upto = self.lost_upto.max(frame.end_index);
                self.newly_damaged = true;
                let last = self.segments.iter_mut().rev().find(|segment| segment.at.seq == seq);
                if let Some(segment) = last {
                    segment.at.end_position = segment.at.end_position.max(frame.end);
                    segment.dirty = true;
                }
            }
        }
        true
    }

    /// Entries above D: they stand if they continue what stands; else the log is cut there.
    pub(crate) fn survive(&mut self, group: u64, survivor: Survivor) -> bool {
        let fits = self.continues(&survivor.span);
        let above = self.touch();
        if above.cut {
            return false;
        }
        if !fits {
            above.cut = true;
            return false;
        }
        let span = survivor.span;
        above.survivors.push(survivor);
        self.advance(group, &span);
        true
    }

    /// Ends the log at `end`, which closes the segment.
    pub(crate) fn truncate(&mut self, end: End, chain_crc: u32) {
        self.closed = true;
        if end.0 > self.end.0 {
            // What should lie before was lost.
            self.add_damage(self.end, end);
        }
        self.segments.retain(|segment| segment.at.base_index < end.0);
        if let Some(last) = self.segments.last_mut() {
            last.at.sealed = true;
            if last.at.end_index > end.0 {
                last.at.end_index = end.0;
                last.at.end_offset = end.1;
            }
        }
        self.damages.retain(|damage| damage.from_index < end.0);
        if let Some(last) = self.damages.last_mut()
            && last.end_index > end.0
        {
            last.end_index = end.0;
            last.end_offset = end.1;
        }
        self.vacancies.retain(|vacancy| vacancy.from_index < end.0);
        self.snapshots.retain(|snapshot| snapshot.index <= end.0);
        self.lost_upto = self.lost_upto.min(end.0);
        self.end = end;
        self.chain_crc = chain_crc;
    }

    /// A truncation above D.
    pub(crate) fn truncate_above(&mut self, end: End, chain_crc: u32) {
        let above = self.touch();
        if end.0 < above.proven_end.0 {
            above.proven_end = end;
            above.proven_crc = chain_crc;
            above.survivors.clear();
            self.truncate(end, chain_crc);
            return;
        }
        if end.0 > self.end.0 {
            return;
        }
        let above = self.touch();
        above.survivors.retain(|survivor| survivor.span.first_index < end.0);
        if let Some(last) = above.survivors.last_mut() {
            shorten(last, end.0);
        }
        self.end = end;
        self.chain_crc = chain_crc;
    }

    /// Moves the start and releases segments wholly below `release`.
    pub(crate) fn trim(&mut self, start: End, release: EntryIndex) {
        if start.0 > self.start.0 {
            self.start = start;
        }
        let last = self.segments.last().map(|segment| segment.at.seq);
        self.segments
            .retain(|segment| segment.at.end_index > release || Some(segment.at.seq) == last);
        self.damages.retain(|damage| damage.end_index > release);
        let start = self.start.0;
        self.vacancies.retain(|vacancy| vacancy.end_index > start);
    }

    /// Gives a segment up, or finds it in another file. What replaces it was durable before this was said, and
    /// nobody needs what is gone; so it stands whether D proves it or not, as a trim does.
    ///
    /// Only segments below every slot's checkpoint are thinned: no group that is replayed writes to them.
    pub(crate) fn thin(&mut self, seq: u64, thinned: Thinned) {
        let Some(at) = self.segments.iter().position(|segment| segment.at.seq == seq) else {
            return;
        };
        match thinned {
            Thinned::Vacate(vacancy) => {
                self.segments.remove(at);
                Vacancy::add(&mut self.vacancies, vacancy);
            }
            Thinned::Replace(SparsePlace { file, salt, end_position }) => {
                let segment = &mut self.segments[at];
                let at = ManifestSegment {
                    file,
                    salt,
                    end_position,
                    sealed: true,
                    sparse: true,
                    ..segment.at
                };
                *segment = Segment { at, dirty: false, rolled: false };
            }
        }
    }

    /// The record that says so.
    pub(crate) fn thinned_record(&self, seq: u64, thinned: Thinned) -> Record<'static> {
        let (key, incarnation) = (self.key, self.incarnation);
        match thinned {
            Thinned::Vacate(vacancy) => Record::Vacate { key, incarnation, seq, vacancy },
            Thinned::Replace(place) => Record::Replace { key, incarnation, seq, place },
        }
    }

    /// A damage that an earlier recovery found; it may move the end.
    pub(crate) fn damage(&mut self, damage: Damage) {
        // Entries that stood before it then and are missing now (no sync covered them) are lost with it.
        let from = (damage.from_index, damage.from_offset).min(self.end);
        let end = (damage.end_index, damage.end_offset);
        self.add_damage(from, end);
        if end.0 > self.end.0 {
            self.end = end;
            self.closed = true;
        }
    }

    /// Ends the log behind numbers that may have been used, so that none is used twice.
    pub(crate) fn jump(&mut self, to: End) {
        let to = (to.0.max(self.end.0), to.1.max(self.end.1));
        if to != self.end {
            self.add_damage(self.end, to);
            self.end = to;
            self.closed = true;
        }
    }

    /// The file of a live segment is gone or was used for something else: its entries are lost.
    pub(crate) fn lose_segment(&mut self, salt: u64) {
        let Some(at) = self.segments.iter().position(|segment| segment.at.salt == salt) else {
            return;
        };
        let lost = self.segments.remove(at).at;
        if lost.end_index > lost.base_index {
            let from = (lost.base_index, lost.base_offset);
            self.add_damage(from, (lost.end_index, lost.end_offset));
        }
        self.inlines.retain(|write| write.file != lost.file);
        self.rewrites.retain(|place| place.file != lost.file);
        self.scrubs.retain(|scrub| scrub.file != lost.file);
    }

    /// Adds a lost range, merged with those it touches.
    fn add_damage(&mut self, from: End, end: End) {
        let mut damage =
            Damage { from_index: from.0, end_index: end.0, from_offset: from.1, end_offset: end.1 };
        if self.damages.contains(&damage) {
            return;
        }
        self.newly_damaged = true;
        self.damages.retain(|other| {
            let apart = other.end_index < damage.from_index || damage.end_index < other.from_index;
            if !apart {
                damage.from_index = damage.from_index.min(other.from_index);
                damage.from_offset = damage.from_offset.min(other.from_offset);
                damage.end_index = damage.end_index.max(other.end_index);
                damage.end_offset = damage.end_offset.max(other.end_offset);
            }
            apart
        });
        let at = self.damages.partition_point(|other| other.from_index < damage.from_index);
        self.damages.insert(at, damage);
    }
}

/// Cuts a survivor's entries at an index.
fn shorten(survivor: &mut Survivor, end: EntryIndex) {
    let Source::Memory(bytes) = &mut survivor.source else { return };
    let mut span: Option<Span> = None;
    let mut rest = &bytes[..];
    while let Ok((entry, after)) = EntryView::split(rest) {
        if entry.header.index >= end {
            break;
        }
        match &mut span {
            None => span = Some(Span::of(&entry.header)),
            Some(span) => {
                span.push(&entry.header);
            }
        }
        rest = after;
    }
    if let Some(span) = span {
        let kept = bytes.len() - rest.len();
        survivor.span = span;
        bytes.truncate(kept);
    }
}
