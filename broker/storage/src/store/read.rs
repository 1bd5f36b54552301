//! Reading a log: runs of messages as slices of the mapped segments, and single entries for folding.
//!
//! Owns how a position is found: mark, then headers, never more than 16 KiB of them. Copies nothing.
//! Driven by any thread; takes short locks only.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::{Entry, EntryHeader, split_entry};
use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use super::cursor::End;
use super::hold::Hold;
use super::index::{EntryPlace, Found, SegmentIndex, find_entry};
use super::log::{Log, usize_of};
use super::segment::{MapError, Segment, SegmentEnd};
use crate::error::ReadError;
use crate::format::journal::Damage;
use crate::format::segment::ENTRIES_START;
use crate::sync::Ordering;

/// Consecutive messages of one segment.
#[derive(Clone, Default)]
pub struct ReadRun {
    /// Whole data entries, back to back, as they are stored. What lies between them is left out.
    pub slices: Vec<Bytes>,
    /// Index of the first entry.
    pub first_index: EntryIndex,
    /// Offset of its first message, not above the one that was asked for.
    pub first: Offset,
    /// One past the last message.
    pub next: Offset,
    /// Index of the entry after the last one.
    pub next_index: EntryIndex,
    /// Bytes in all slices.
    pub bytes: usize,
    /// Messages in all slices.
    pub records: u64,
    /// Whether all of it is in memory. If not, call [`ReadRun::load`] on a thread that may block before
    /// touching the bytes.
    pub resident: bool,
    mapped: Option<(Hold, Range<usize>)>,
}

impl std::fmt::Debug for ReadRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadRun")
            .field("first_index", &self.first_index)
            .field("first", &self.first)
            .field("next", &self.next)
            .field("bytes", &self.bytes)
            .field("slices", &self.slices.len())
            .field("resident", &self.resident)
            .finish_non_exhaustive()
    }
}

impl ReadRun {
    /// Brings the run into memory. Blocks on the disk.
    ///
    /// # Errors
    /// The device's, where touching the bytes would have killed the process.
    pub fn load(&self) -> io::Result<()> {
        match &self.mapped {
            Some((map, range)) => map.load(range.clone()),
            None => Ok(()),
        }
    }
}

/// Where a run of messages lies in a segment.
struct Span {
    first: EntryPlace,
    /// Positions of the parts between holes.
    parts: Vec<Range<u64>>,
    next_index: EntryIndex,
    next: Offset,
}

impl Span {
    /// Ends where what follows is kept no longer, or is damaged: the next entry is behind that.
    fn before(mut self, loss: Option<End>) -> Self {
        if let Some((index, offset)) = loss {
            self.next_index = self.next_index.min(index);
            self.next = self.next.min(offset);
        }
        self
    }
}

impl Log {
    /// Messages from the entry that holds `from` up to `until` (the high watermark), about `max_bytes`
    /// of them but at least one entry, as slices of a mapped segment. Empty when `from` is not below
    /// `until`. A run ends at the end of a segment, before a vacancy and
    /// before damage: ask again from `next`.
    ///
    /// # Errors
    /// Below the start of the log; in a damaged or a vacant range; or the device's.
    pub fn read(
        &self,
        from: Offset,
        until: Offset,
        max_bytes: usize,
    ) -> Result<ReadRun, ReadError> {
        let until = until.min(self.ready_end().1);
        if from >= until {
            return Ok(ReadRun { first: from, next: from, resident: true, ..ReadRun::default() });
        }
        loop {
            let (segment, damage) = self.find_segment(from)?;
            let map = match segment.map(&self.inner.shared.files) {
                Ok(map) => map,
                // Trimmed meanwhile: the start of the log has moved, so this ends.
                Err(MapError::Retired) => continue,
                Err(MapError::Io(error)) => return Err(ReadError::Io(error.to_string())),
            };
            return read_segment(&segment, &map, from, (until, damage), max_bytes);
        }
    }

    /// The segment with the message, and where the next damage begins.
    fn find_segment(&self, from: Offset) -> Result<(Arc<Segment>, Option<End>), ReadError> {
        let body = self.inner.body.lock();
        let log_start = self.inner.start.load();
        if from < log_start.1 {
            return Err(ReadError::BelowStart { log_start });
        }
        let mut next_damage = None;
        for damage in &body.damages {
            if (damage.from_offset..damage.end_offset).contains(&from) {
                return Err(ReadError::Damaged(*damage));
            }
            if damage.from_offset > from && next_damage.is_none() {
                next_damage = Some((damage.from_index, damage.from_offset));
            }
        }
        if let Some(vacancy) = body.vacancies.iter().find(|vacancy| vacancy.holds_offset(from)) {
            return Err(ReadError::Vacant(*vacancy));
        }
        let after = body.segments.partition_point(|segment| segment.facts.base.1 <= from);
        // Segments that hold state alone begin at the same offset as the next one.
        let holding = body.segments.iter().take(after).rev().find(|segment| segment.contains(from));
        match holding {
            Some(segment) => Ok((Arc::clone(segment), next_damage)),
            None => Err(ReadError::Io(format!("no segment holds offset {from}"))),
        }
    }

    /// Entries of all kinds from index `from` up to `until`, about `max_bytes` of them but at least one.
    /// For folding state when a log is opened; also below the start of the log, as far as segments are
    /// kept.
    ///
    /// # Errors
    /// The entry is not kept any more; it is damaged or in a vacant range; or the device's.
    pub fn entries(
        &self,
        from: EntryIndex,
        until: EntryIndex,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let until = until.min(self.ready_end().0);
        let mut entries = Vec::new();
        let (mut next, mut bytes) = (from, 0);
        while next < until && (entries.is_empty() || bytes < max_bytes) {
            let segment = match self.segment_at_index(next) {
                Ok(segment) => segment,
                Err(_) if !entries.is_empty() => break,
                Err(error) => return Err(error),
            };
            let map = match segment.map(&self.inner.shared.files) {
                Ok(map) => map,
                Err(MapError::Retired) => continue,
                Err(MapError::Io(error)) => return Err(ReadError::Io(error.to_string())),
            };
            segment.load_index(&map);
            let before = next;
            let read = read_entries(&segment, &map, &mut next, until, &mut |entry, len| {
                entries.push(entry);
                bytes += len;
                bytes < max_bytes
            });
            match read {
                // The next call begins with the error.
                Err(_) if !entries.is_empty() => break,
                other => other?,
            }
            if next == before {
                if !entries.is_empty() {
                    break;
                }
                return Err(ReadError::Io(format!("entry {next} cannot be found")));
            }
        }
        Ok(entries)
    }

    fn segment_at_index(&self, index: EntryIndex) -> Result<Arc<Segment>, ReadError> {
        let body = self.inner.body.lock();
        for damage in &body.damages {
            if (damage.from_index..damage.end_index).contains(&index) {
                return Err(ReadError::Damaged(*damage));
            }
        }
        if let Some(vacancy) = body.vacancies.iter().find(|vacancy| vacancy.holds_index(index)) {
            return Err(ReadError::Vacant(*vacancy));
        }
        let after = body.segments.partition_point(|segment| segment.facts.base.0 <= index);
        let found = after.checked_sub(1).and_then(|at| body.segments.get(at));
        match found {
            Some(segment) if index < segment.end().end.0 => Ok(Arc::clone(segment)),
            Some(_) => Err(ReadError::Io(format!("no segment holds entry {index}"))),
            None => Err(ReadError::BelowStart { log_start: self.inner.start.load() }),
        }
    }

    /// The first offset that was appended at `time` or later; the ready end when there is none.
    ///
    /// # Errors
    /// The device's.
    pub fn offset_at(&self, time: TimestampMs) -> Result<Offset, ReadError> {
        let ready = self.ready_end().1;
        let segments: Vec<Arc<Segment>> = self.inner.body.lock().segments.iter().cloned().collect();
        let start = self.log_start().1;
        let after = segments.partition_point(|segment| segment.end().last_time < time);
        for segment in &segments[after..] {
            let map = match segment.map(&self.inner.shared.files) {
                Ok(map) => map,
                Err(MapError::Retired) => continue,
                Err(MapError::Io(error)) => return Err(ReadError::Io(error.to_string())),
            };
            segment.load_index(&map);
            if let Some(offset) = offset_in(segment, &map, time) {
                return Ok(offset.clamp(start, ready.max(start)));
            }
        }
        Ok(ready)
    }
}

fn read_segment(
    segment: &Arc<Segment>,
    map: &Hold,
    from: Offset,
    (until, damage): (Offset, Option<End>),
    max_bytes: usize,
) -> Result<ReadRun, ReadError> {
    if !segment.state.lock().index.is_whole() {
        segment.load_index(map);
    }
    let span = {
        let state = segment.state.lock();
        if let Some(vacancy) = state.index.vacancy_at(from) {
            return Err(ReadError::Vacant(*vacancy));
        }
        let vacancy = state.index.vacancy_after(from);
        let vacancy = vacancy.map(|vacancy| (vacancy.from_index, vacancy.from_offset));
        let stops = [vacancy, damage].into_iter().flatten();
        let until = stops.fold(until, |until, stop| until.min(stop.1));
        let span = find_span(&state.index, &state.end, map, from, until, max_bytes);
        // An entry behind either may lie right behind the last one before it.
        span.map(|span| span.before(vacancy).before(damage))
    };
    let span = span.ok_or_else(|| {
        ReadError::Io(format!("segment file {}: offset {from} not found", segment.facts.file))
    })?;
    let slices: Vec<Bytes> = span.parts.iter().map(|part| map.slice(part.clone())).collect();
    let end = span.parts.last().map_or(span.first.position, |part| part.end);
    let range = usize_of(span.first.position)..usize_of(end);
    // Asking costs a system call; what was written lately is in memory.
    let resident = !segment.cold.load(Ordering::Relaxed) || map.resident(range.clone());
    Ok(ReadRun {
        bytes: slices.iter().map(Bytes::len).sum(),
        slices,
        first_index: span.first.index,
        first: span.first.offset,
        next: span.next,
        next_index: span.next_index,
        records: span.next.0 - span.first.offset.0,
        resident,
        mapped: Some((map.clone(), range)),
    })
}

/// Where a run ends, and what comes there.
#[derive(Clone, Copy)]
struct Stop {
    position: u64,
    index: EntryIndex,
    offset: Offset,
}

fn find_span(
    index: &SegmentIndex,
    end: &SegmentEnd,
    map: &Hold,
    from: Offset,
    until: Offset,
    max_bytes: usize,
) -> Option<Span> {
    let first = find_first(index, end, map, from)?;
    let goal = first.position.saturating_add(max_bytes as u64);
    let stop = find_stop(index, end, map, &first, until, goal)?;
    let mut parts = Vec::new();
    let mut position = first.position;
    for hole in &index.holes[index.hole_from(first.position)..] {
        if hole.start >= stop.position {
            break;
        }
        if position < hole.start {
            parts.push(position..hole.start);
        }
        position = hole.end;
    }
    if position < stop.position {
        parts.push(position..stop.position);
    }
    Some(Span { first, parts, next_index: stop.index, next: stop.offset })
}

/// The data entry that holds `from`.
fn find_first(
    index: &SegmentIndex,
    end: &SegmentEnd,
    map: &Hold,
    from: Offset,
) -> Option<EntryPlace> {
    // The last mark at or below the offset begins the run that holds it, or lies in that run.
    let mark = index.mark_at_offset(from)?;
    let limit = index.marks.get(mark + 1).map_or(end.position, |next| next.position);
    let mut position = index.marks[mark].position;
    let headers = Headers::new(map, position..limit);
    while position < limit {
        let place = headers.at(position)?;
        if place.data && place.end_offset > from {
            return (place.offset <= from).then_some(place);
        }
        position = place.end();
    }
    None
}

/// Where a run that begins with `first` stops: at the message `until`, or close before `goal`, but
/// after `first`.
fn find_stop(
    index: &SegmentIndex,
    end: &SegmentEnd,
    map: &Hold,
    first: &EntryPlace,
    until: Offset,
    goal: u64,
) -> Option<Stop> {
    let last = Stop { position: end.position, index: end.end.0, offset: end.end.1 };
    if until >= end.end.1 && end.position <= goal {
        return Some(last);
    }
    // A mark close before the goal will do, if it is not behind `until`.
    if let Some(at) = index.mark_at_position(goal) {
        let mark = index.marks[at];
        let far = mark.position > first.position
            && mark.position > goal.saturating_sub(goal_slack(first, goal));
        if far && mark.offset <= until && end.position > goal {
            return Some(Stop { position: mark.position, index: mark.index, offset: mark.offset });
        }
    }
    // Else walk, from the last mark that is before both.
    let before_goal = index.mark_at_position(goal);
    let before_until = index.marks.partition_point(|mark| mark.offset < until).checked_sub(1);
    let mark = index.marks[before_goal.min(before_until)?];
    let mut position = mark.position.max(first.position);
    if position == first.position {
        position = first.end();
    }
    walk_to_stop(index, end, map, position, until, goal)
}

/// How far before the goal a run may end without looking for more entries: an eighth.
fn goal_slack(first: &EntryPlace, goal: u64) -> u64 {
    (goal - first.position) / 8
}

/// The first entry boundary from `position` on, where the next data entry would pass `until` or `goal`;
/// none when a header on the way is damaged.
fn walk_to_stop(
    index: &SegmentIndex,
    end: &SegmentEnd,
    map: &Hold,
    position: u64,
    until: Offset,
    goal: u64,
) -> Option<Stop> {
    let mut position = position;
    let mut hole = index.holes.partition_point(|hole| hole.end <= position);
    let headers = Headers::new(map, position..end.position);
    while position < end.position {
        if let Some(next) = index.holes.get(hole)
            && next.start <= position
        {
            position = next.end;
            hole += 1;
            continue;
        }
        let place = headers.at(position)?;
        if place.offset >= until || place.end() > goal {
            return Some(Stop { position, index: place.index, offset: place.offset });
        }
        position = place.end();
    }
    Some(Stop { position: end.position, index: end.end.0, offset: end.end.1 })
}

/// The headers of a stretch that is walked: one window for all of them.
struct Headers {
    start: u64,
    bytes: Bytes,
}

impl Headers {
    fn new(map: &Hold, range: Range<u64>) -> Self {
        Self { start: range.start, bytes: map.window(range) }
    }

    /// The entry at a position; none if its header is damaged.
    fn at(&self, position: u64) -> Option<EntryPlace> {
        let bytes = self.bytes.get(usize_of(position - self.start)..)?;
        EntryHeader::decode(bytes).ok().map(|header| EntryPlace::of(&header, position))
    }
}

/// Hands entries from `next` on to `take`, until it answers false.
fn read_entries(
    segment: &Arc<Segment>,
    map: &Hold,
    next: &mut EntryIndex,
    until: EntryIndex,
    take: &mut dyn FnMut(Entry, usize) -> bool,
) -> Result<(), ReadError> {
    let (mut position, end, segment_end) = {
        let state = segment.state.lock();
        let mark = state.index.mark_at_index(*next).map(|at| state.index.marks[at]);
        (mark.map_or(ENTRIES_START, |mark| mark.position), state.end.position, state.end.end.0)
    };
    let bytes = map.slice(position..end);
    let start = position;
    let mut expected = EntryIndex(0);
    let sparse = segment.facts.marker_salt();
    while position < end && *next < until {
        let place = match find_entry(&bytes, start, position, expected..segment_end, sparse) {
            Found::Entry(place) => place,
            Found::Vacancy(marker, after) => {
                let vacancy = marker.vacancy;
                if vacancy.holds_index(*next) {
                    return Err(ReadError::Vacant(vacancy));
                }
                if vacancy.from_index > *next {
                    return Err(lost(*next, (vacancy.from_index, vacancy.from_offset)));
                }
                expected = vacancy.end_index;
                position = after;
                continue;
            }
            Found::Gap(after) => {
                position = after;
                continue;
            }
        };
        expected = EntryIndex(place.index.0 + 1);
        position = place.end();
        if place.index < *next {
            continue;
        }
        if place.index > *next {
            // What should be here is damaged, and what comes is behind it.
            return Err(lost(*next, (place.index, place.offset)));
        }
        let len = usize_of(place.len);
        let mut rest = bytes.slice(usize_of(place.position - start)..);
        let entry = split_entry(&mut rest)
            .map_err(|error| ReadError::Io(format!("entry {}: {error}", place.index)))?;
        *next = expected;
        if !take(entry, len) {
            return Ok(());
        }
    }
    Ok(())
}

/// What should be between is damaged.
fn lost(from: EntryIndex, (end_index, offset): (EntryIndex, Offset)) -> ReadError {
    let (from_offset, end_offset) = (offset, offset);
    ReadError::Damaged(Damage { from_index: from, end_index, from_offset, end_offset })
}

/// The first message of a segment that was appended at `time` or later.
fn offset_in(segment: &Arc<Segment>, map: &Hold, time: TimestampMs) -> Option<Offset> {
    let state = segment.state.lock();
    let (index, end) = (&state.index, &state.end);
    let mark = index.mark_before_time(time).unwrap_or(0);
    let mut position = index.marks.get(mark)?.position;
    let mut hole = index.holes.partition_point(|hole| hole.end <= position);
    let headers = Headers::new(map, position..end.position);
    while position < end.position {
        if let Some(next) = index.holes.get(hole)
            && next.start <= position
        {
            position = next.end;
            hole += 1;
            continue;
        }
        let place = headers.at(position)?;
        if place.time >= time && place.data {
            return Some(place.offset);
        }
        position = place.end();
    }
    None
}
