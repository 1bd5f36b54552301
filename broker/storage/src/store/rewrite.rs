//! Writing a segment again with the part of its entries that is live.
//!
//! Owns the choice of the entries, the copy, and the new file until it is synced. Never touches the old file,
//! never publishes: the group writer does, by a record. Driven by maintenance, a bounded part at a time; takes
//! no lock of a log or partition while it copies.
//!
//! Each entry that is copied is checked first: damage stays where it is and is never made to look like a
//! vacancy.

use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use postrider_protocol::entry::{EntryHeader, EntryView};
use postrider_protocol::types::{EntryIndex, Offset};

use super::cursor::End;
use super::hold::Hold;
use super::index::{EntryPlace, Found, HOLES_MAX, find_entry};
use super::log::{LogInner, usize_of};
use super::segment::{MapError, Segment, SegmentEnd, SegmentFacts};
use super::shared::{Order, Shared};
use super::space::Claim;
use super::thin::{Asked, Keep, Thin};
use crate::format::names;
use crate::format::segment::{ENTRIES_START, IndexMark};
use crate::format::vacancy::{MARKER_BYTES, Vacancy, VacancyMarker};
use crate::sync::Ordering;

/// A segment is written again when less than so much of its bytes is kept.
const LIVE_PERCENT: u64 = 30;

/// Bytes brought into memory and written at a time, but for one larger entry.
const CHUNK_BYTES: u64 = 1 << 20;

/// Entries of the old segment, back to back, that stay.
#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    from: End,
    end: End,
    /// Header crc of the entry before.
    prev_crc: u32,
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// There is more to copy.
    More,
    /// All is in the new file, which is not synced.
    Copied,
    /// Part of the segment is damaged: it stays as it is.
    Damaged,
    /// The log is gone.
    Gone,
}

/// See the module.
pub(crate) struct Rewrite {
    log: Arc<LogInner>,
    old: Arc<Segment>,
    new: Arc<Segment>,
    map: Hold,
    pieces: Vec<Piece>,
    /// The next piece, and what of it is copied.
    next: usize,
    copied: u64,
    /// Where the new file is written next.
    position: u64,
    buffer: Vec<u8>,
    /// Behind the last entry that is copied.
    last: End,
    new_name: bool,
}

impl Rewrite {
    /// Chooses what stays and makes a file for it; none when it is not worth it, cannot be done, or nothing is
    /// left to be done.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn begin(asked: Asked, shared: &Shared) -> io::Result<Option<Self>> {
        let Asked { log, old, keep } = asked;
        let map = match old.map(&shared.files) {
            Ok(map) => map,
            Err(MapError::Retired) => return Ok(None),
            Err(MapError::Io(error)) => return Err(error),
        };
        old.load_index(&map);
        let pieces = Choice::new(&old, &map).pieces(&keep)?;
        let end = old.end();
        let new_end = pieces.as_ref().map(|pieces| new_end(pieces, (old.facts.base, end.end)));
        let used = end.position - ENTRIES_START;
        let worth = |new_end: &u64| {
            (new_end - ENTRIES_START) * 100 < used * LIVE_PERCENT
                && file_len(*new_end) * 2 <= old.facts.file_len
        };
        let (Some(pieces), Some(position)) = (pieces, new_end.filter(worth)) else {
            old.declined.store(keep.count(), Ordering::Relaxed);
            old.thinning.store(false, Ordering::Relaxed);
            return Ok(None);
        };
        if pieces.is_empty() {
            shared.queue.order(Order::Thin(Thin { log, old, new: None }));
            return Ok(None);
        }
        let Some((new, new_name)) = make(shared, &old, SegmentEnd { position, ..end })? else {
            old.thinning.store(false, Ordering::Relaxed);
            return Ok(None);
        };
        let mut buffer = Vec::with_capacity(usize_of(CHUNK_BYTES));
        buffer.extend_from_slice(&new.facts.header(log.key, log.incarnation).encode());
        buffer.resize(usize_of(ENTRIES_START), 0);
        let (position, last) = (0, old.facts.base);
        let (next, copied) = (0, 0);
        Ok(Some(Self {
            log,
            old,
            new,
            map,
            pieces,
            next,
            copied,
            position,
            buffer,
            last,
            new_name,
        }))
    }

    /// Copies about `bytes_max`.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn step(&mut self, bytes_max: u64, shared: &Shared) -> io::Result<Progress> {
        if self.log.tail.lock().gone.is_some() {
            return Ok(Progress::Gone);
        }
        let stop = self.position + self.buffer.len() as u64 + bytes_max;
        while let Some(piece) = self.pieces.get(self.next) {
            if self.position + self.buffer.len() as u64 >= stop {
                return Ok(Progress::More);
            }
            if self.copied == 0 && piece.from.0 > self.last.0 {
                let vacancy = Vacancy::new(self.last, piece.from);
                let (salt, chain_crc) = (self.new.facts.salt, piece.prev_crc);
                let marker = VacancyMarker { salt, vacancy, chain_crc };
                self.buffer.extend_from_slice(&marker.encode());
            }
            let start = piece.range.start + self.copied;
            let chunk = start..piece.range.end.min(start + CHUNK_BYTES);
            let (end, whole) = (piece.end, piece.range.end);
            let Some(taken) = self.take(chunk, whole)? else { return Ok(Progress::Damaged) };
            self.copied += taken;
            if start + taken == whole {
                (self.next, self.copied, self.last) = (self.next + 1, 0, end);
            }
            self.flush(shared, CHUNK_BYTES)?;
        }
        let end = self.old.end().end;
        if self.last.0 < end.0 {
            let chain_crc = self.chain_behind(end);
            let vacancy = Vacancy::new(self.last, end);
            let marker = VacancyMarker { salt: self.new.facts.salt, vacancy, chain_crc };
            self.buffer.extend_from_slice(&marker.encode());
            self.last = end;
        }
        self.flush(shared, 1)?;
        assert!(self.position == self.new.end().position, "the copy is as long as was planned");
        Ok(Progress::Copied)
    }

    /// Copies the entries that begin in a chunk; none when one is damaged.
    fn take(&mut self, chunk: Range<u64>, whole: u64) -> io::Result<Option<u64>> {
        self.map.load(usize_of(chunk.start)..usize_of(chunk.end))?;
        let mut position = chunk.start;
        while position < chunk.end {
            let head = self.map.window(position..whole);
            let Ok(header) = EntryHeader::decode(&head) else { return Ok(None) };
            let end = position + u64::from(header.total_len);
            if end > whole {
                return Ok(None);
            }
            if end > chunk.end {
                self.map.load(usize_of(position)..usize_of(end))?;
            }
            let bytes = self.map.window(position..end);
            let sound = EntryView::split(&bytes).and_then(|(entry, _)| entry.check_body());
            if sound.is_err() {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&bytes);
            position = end;
        }
        Ok(Some(position - chunk.start))
    }

    fn flush(&mut self, shared: &Shared, bytes_min: u64) -> io::Result<()> {
        let len = self.buffer.len() as u64;
        if len < bytes_min {
            return Ok(());
        }
        let file = self.new.handle(&shared.files)?;
        file.write_at(self.position, &[IoSlice::new(&self.buffer)])?;
        self.position += len;
        self.buffer.clear();
        shared.counters.rewritten_bytes.add(len);
        Ok(())
    }

    /// Header crc of the segment's last entry, if the next segment follows it.
    fn chain_behind(&self, end: End) -> u32 {
        let body = self.log.body.lock();
        let next = body.segments.iter().find(|segment| segment.facts.base.0 == end.0);
        next.map_or(0, |next| next.facts.base_chain_crc)
    }

    /// Syncs what was copied, with its name, and orders that it takes the old one's place.
    ///
    /// # Errors
    /// The device's: terminal.
    pub(crate) fn finish(self, shared: &Shared) -> io::Result<()> {
        let Self { log, old, new, new_name, .. } = self;
        new.handle(&shared.files)?.sync()?;
        if new_name {
            shared.files.disk.sync_dir(names::SEGMENTS)?;
        }
        shared.queue.order(Order::Thin(Thin { log, old, new: Some(new) }));
        Ok(())
    }

    /// Gives back what was made; the segment is not tried again.
    pub(crate) fn give_up(self, shared: &Shared, why: Progress) {
        let Self { old, new, .. } = self;
        if why == Progress::Damaged {
            tracing::warn!(file = old.facts.file, "a segment is not rewritten: part is damaged");
        }
        old.declined.store(0, Ordering::Relaxed);
        old.thinning.store(false, Ordering::Relaxed);
        shared.pool.release(&new);
    }
}

/// Where the new segment ends.
fn new_end(pieces: &[Piece], (base, end): (End, End)) -> u64 {
    let mut position = ENTRIES_START;
    let mut last = base;
    for piece in pieces {
        if piece.from.0 > last.0 {
            position += MARKER_BYTES as u64;
        }
        position += piece.range.end - piece.range.start;
        last = piece.end;
    }
    if last.0 < end.0 { position + MARKER_BYTES as u64 } else { position }
}

fn file_len(end: u64) -> u64 {
    end.next_multiple_of(4096)
}

/// Takes a file for the new segment; none without space. Tells whether its name is new.
fn make(
    shared: &Shared,
    old: &Segment,
    end: SegmentEnd,
) -> io::Result<Option<(Arc<Segment>, bool)>> {
    let len = file_len(end.position);
    let Some(promised) = shared.space.promise(len, len, Claim::State) else { return Ok(None) };
    let file = match shared.pool.take(&*shared.files.disk, len) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            shared.space.settle(promised, 0);
            return Ok(None);
        }
        other => other?,
    };
    shared.space.settle(promised, if file.new { file.len } else { 0 });
    let facts = SegmentFacts {
        file: file.file,
        file_len: file.len,
        salt: shared.next_salt.fetch_add(1, Ordering::Relaxed),
        sparse: true,
        ..old.facts
    };
    let counted = if file.new {
        &shared.counters.segment_files_new
    } else {
        &shared.counters.segment_files_recycled
    };
    counted.add(1);
    let new = Arc::new(Segment::sparse(facts, end, file.handle));
    new.note_handle(&shared.files);
    Ok(Some((new, file.new)))
}

/// The search for entries that stay.
struct Choice<'a> {
    map: &'a Hold,
    marks: Vec<IndexMark>,
    end: u64,
    end_index: EntryIndex,
    sparse: Option<u64>,
    pieces: Vec<Piece>,
    /// Entries below were looked at.
    position: u64,
}

impl<'a> Choice<'a> {
    fn new(old: &Segment, map: &'a Hold) -> Self {
        let state = old.state.lock();
        let (marks, end) = (state.index.marks.clone(), state.end.position);
        let end_index = state.end.end.0;
        let (sparse, position) = (old.facts.marker_salt(), ENTRIES_START);
        Self { map, marks, end, end_index, sparse, pieces: Vec::new(), position }
    }

    /// The entries that stay; none when there are too many pieces, or something is damaged.
    fn pieces(mut self, keep: &Keep) -> io::Result<Option<Vec<Piece>>> {
        let mark_at = |marks: &[IndexMark], before: &dyn Fn(&IndexMark) -> bool| {
            let at = marks.partition_point(before).saturating_sub(1);
            marks.get(at).copied()
        };
        let mut stretches = Vec::with_capacity(keep.messages.len() + keep.entries.len());
        for range in &keep.messages {
            let mark = mark_at(&self.marks, &|mark| mark.offset <= range.start);
            stretches.extend(mark.map(|mark| (mark, Upto::Message(range.end))));
        }
        for range in &keep.entries {
            let mark = mark_at(&self.marks, &|mark| mark.index <= range.start);
            stretches.extend(mark.map(|mark| (mark, Upto::Entry(range.end))));
        }
        stretches.sort_by_key(|(mark, _)| mark.position);
        for (mark, upto) in stretches {
            if !self.look(mark, upto, keep)? {
                return Ok(None);
            }
        }
        Ok(Some(self.pieces))
    }

    /// Looks at the entries from a mark on; false when it cannot go on.
    fn look(&mut self, mark: IndexMark, upto: Upto, keep: &Keep) -> io::Result<bool> {
        let mut expected = mark.index;
        let mut position = mark.position;
        let after = self.marks.partition_point(|other| other.position <= position);
        // What comes next in any case; more is loaded by the fault of one page at a time.
        let near = self.marks.get(after).map_or(self.end, |next| next.position);
        self.map.load(usize_of(position)..usize_of(near))?;
        let bytes = self.map.window(0..self.end);
        while position < self.end {
            match find_entry(&bytes, 0, position, expected..self.end_index, self.sparse) {
                Found::Gap(next) => position = next,
                Found::Vacancy(marker, next) => {
                    if marker.vacancy.from_index != expected {
                        return Ok(false);
                    }
                    expected = marker.vacancy.end_index;
                    position = next;
                }
                Found::Entry(place) => {
                    if place.index != expected {
                        return Ok(false);
                    }
                    if upto.is_before(&place) {
                        break;
                    }
                    expected = EntryIndex(place.index.0 + 1);
                    position = place.end();
                    if place.position >= self.position && is_kept(keep, &place) {
                        self.add(&place, &bytes);
                        if self.pieces.len() > HOLES_MAX {
                            return Ok(false);
                        }
                    }
                }
            }
            self.position = self.position.max(position);
        }
        Ok(true)
    }

    fn add(&mut self, place: &EntryPlace, bytes: &[u8]) {
        let end = (EntryIndex(place.index.0 + 1), place.end_offset);
        if let Some(last) = self.pieces.last_mut()
            && last.range.end == place.position
            && last.end.0 == place.index
        {
            last.range.end = place.end();
            last.end = end;
            return;
        }
        let header = EntryHeader::decode(&bytes[usize_of(place.position)..]);
        let prev_crc = header.map_or(0, |header| header.prev_header_crc);
        let from = (place.index, place.offset);
        self.pieces.push(Piece { range: place.position..place.end(), from, end, prev_crc });
    }
}

/// How far a stretch goes.
#[derive(Clone, Copy)]
enum Upto {
    Message(Offset),
    Entry(EntryIndex),
}

impl Upto {
    fn is_before(self, place: &EntryPlace) -> bool {
        match self {
            Self::Message(end) => end <= place.offset,
            Self::Entry(end) => end <= place.index,
        }
    }
}

fn is_kept(keep: &Keep, place: &EntryPlace) -> bool {
    let messages = &keep.messages;
    let at = messages.partition_point(|range| range.end <= place.offset);
    let live = place.data && messages.get(at).is_some_and(|range| range.start < place.end_offset);
    let at = keep.entries.partition_point(|range| range.end <= place.index);
    live || keep.entries.get(at).is_some_and(|range| range.contains(&place.index))
}
