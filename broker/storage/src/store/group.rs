//! One group: what is taken from the logs and how it is laid out, before anything is written.
//!
//! Owns the choice between the two write paths, the segments that begin, the journal's records and the
//! bytes of both. Writes nothing but the allocation of new files. Driven by the writer.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use postrider_protocol::types::{Durability, EntryIndex, Offset};

use super::cursor::End;
use super::index::EntryPlace;
use super::log::{LogInner, QueuedEntry, usize_of};
use super::segment::{Segment, SegmentFacts};
use super::shared::{Order, Shared};
use super::stage::Stage;
use super::thin::Thin;
use crate::format::journal::{
    INLINE_HEADER_BYTES, Inline, Record, Roll, SparsePlace, put_inline_header,
};
use crate::format::segment::{ENTRIES_START, FrameHeader};
use crate::format::{SECTOR, sector_ceil};
use crate::sync::Ordering;

/// How many numbers a log without syncs reserves at a time: one synced record per so many entries or
/// messages, and the largest gap that a crash leaves in its offsets.
const RESERVE_STEP: u64 = 1 << 20;

/// Bytes of a Roll record.
const ROLL_BYTES: u64 = 80;
/// Bytes of the records of one order or reservation at most.
const ORDER_BYTES: u64 = 80;

/// The entries that a group has from one log.
pub(crate) struct Taken {
    pub(crate) log: Arc<LogInner>,
    pub(crate) entries: VecDeque<QueuedEntry>,
    bytes: u64,
    rolls: usize,
    volatile: bool,
    direct: bool,
}

impl Taken {
    /// Files that a direct write of these entries touches.
    fn files(&self) -> usize {
        let first_rolls = self.entries.front().is_some_and(|entry| entry.roll > 0);
        self.rolls + usize::from(!first_rolls)
    }
}

/// Takes entries from the logs, up to `bytes_max` (one entry may exceed it), and returns the logs that
/// have more.
pub(crate) fn collect(
    logs: VecDeque<Arc<LogInner>>,
    bytes_max: u64,
) -> (Vec<Taken>, VecDeque<Arc<LogInner>>) {
    let mut taken = Vec::with_capacity(logs.len());
    let mut rest = VecDeque::new();
    let mut left = bytes_max;
    for log in logs {
        if left == 0 {
            rest.push_back(log);
            continue;
        }
        let (part, more) = take_from(&log, left, taken.is_empty());
        left = left.saturating_sub(part.bytes);
        if !part.entries.is_empty() {
            taken.push(part);
        }
        if more {
            rest.push_back(log);
            left = 0;
        }
    }
    (taken, rest)
}

fn take_from(log: &Arc<LogInner>, bytes_max: u64, at_least_one: bool) -> (Taken, bool) {
    let volatile = log.class() != Durability::Fsync;
    let mut tail = log.tail.lock();
    let (mut bytes, mut rolls, mut count) = (0, 0, 0);
    for entry in &tail.pending {
        if bytes + entry.len > bytes_max && !(at_least_one && count == 0) {
            break;
        }
        bytes += entry.len;
        rolls += usize::from(entry.roll > 0);
        count += 1;
    }
    let rest = tail.pending.split_off(count);
    let entries = std::mem::replace(&mut tail.pending, rest);
    let more = !tail.pending.is_empty();
    tail.queued = more;
    drop(tail);
    let log = Arc::clone(log);
    (Taken { log, entries, bytes, rolls, volatile, direct: false }, more)
}

/// Gives entries back to their log, in front of what came since, and leaves the log marked as queued.
pub(crate) fn give_back(log: &LogInner, entries: VecDeque<QueuedEntry>) {
    let mut tail = log.tail.lock();
    if tail.gone == Some(super::log::Gone::Dropped) {
        for entry in entries {
            log.shared.queue.discharge(usize_of(entry.len));
            log.shared.space.settle(entry.roll, 0);
        }
        return;
    }
    for entry in entries.into_iter().rev() {
        tail.pending.push_front(entry);
    }
    tail.queued = true;
}

/// Chooses who is written directly and returns the bytes that the journal's records take at most.
pub(crate) fn choose_paths(taken: &mut [Taken], orders: usize, shared: &Shared) -> u64 {
    let mut files = 0;
    let mut records = orders as u64 * ORDER_BYTES;
    for part in taken {
        let large = part.bytes >= shared.options.direct_write_bytes as u64;
        let room = part.volatile || files + part.files() <= shared.options.direct_files_max;
        part.direct = large && room;
        if part.direct && !part.volatile {
            files += part.files();
        }
        records += part.rolls as u64 * ROLL_BYTES;
        if part.volatile {
            records += ORDER_BYTES;
        }
        if !part.direct {
            records += part.bytes + part.files() as u64 * INLINE_HEADER_BYTES as u64;
        }
    }
    records
}

/// Entries of one log that go to one segment.
pub(crate) struct Part {
    pub(crate) segment: Arc<Segment>,
    /// Its log, by place in [`Group::logs`].
    pub(crate) log: usize,
    /// The segment begins with this part.
    pub(crate) fresh: bool,
    pub(crate) direct: bool,
    pub(crate) volatile: bool,
    /// Where the write to the segment begins, and its pieces.
    pub(crate) write_at: u64,
    pub(crate) written: Range<usize>,
    /// The pieces of the entries alone.
    pub(crate) entries: Range<usize>,
    pub(crate) places: Range<usize>,
    /// Bytes of the entries.
    pub(crate) bytes: u64,
    /// The segment is filled up to here afterwards.
    pub(crate) end_position: u64,
    /// Header crc of the last entry.
    pub(crate) last_crc: u32,
}

/// A log of the group and where it ends when the group is stored.
pub(crate) struct GroupLog {
    pub(crate) log: Arc<LogInner>,
    pub(crate) end: End,
    pub(crate) volatile: bool,
    /// It may be reported as ready before the group is synced.
    pub(crate) early: bool,
    pub(crate) direct: bool,
}

/// Files that a synced record of the group releases.
pub(crate) enum Release {
    /// Those of the segments up to this number.
    Front { log: Arc<LogInner>, last_seq: u64, dropped: bool },
    /// That of a segment that is kept no longer, or in another file.
    Thinned(Thin),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) number: u64,
    /// Last group whose syncs all succeeded.
    pub(crate) durable: u64,
    pub(crate) stage: Stage,
    pub(crate) parts: Vec<Part>,
    pub(crate) places: Vec<EntryPlace>,
    pub(crate) logs: Vec<GroupLog>,
    /// The records that are no entries, encoded.
    pub(crate) records: Vec<u8>,
    pub(crate) record_count: u32,
    /// Heads of the Inline records, in the order of the parts.
    pub(crate) inline_heads: Vec<u8>,
    pub(crate) releases: Vec<Release>,
    /// Logs whose entries found no space; they got them back.
    pub(crate) stalled: Vec<Arc<LogInner>>,
    /// Something in it must be synced before it counts.
    pub(crate) must_sync: bool,
    /// A segment file with a new name is used.
    pub(crate) new_names: bool,
    /// Bytes charged to the queue.
    pub(crate) charged: u64,
}

impl Group {
    /// Empties the group for its next use, keeping its memory.
    pub(crate) fn reset(&mut self, number: u64, durable: u64) {
        self.number = number;
        self.durable = durable;
        self.stage.clear();
        self.parts.clear();
        self.places.clear();
        self.logs.clear();
        self.records.clear();
        self.record_count = 0;
        self.inline_heads.clear();
        self.releases.clear();
        self.stalled.clear();
        self.must_sync = false;
        self.new_names = false;
        self.charged = 0;
    }

    pub(crate) fn record(&mut self, record: &Record<'_>) {
        record.encode(&mut self.records);
        self.record_count += 1;
    }

    /// Adds the record of a trim or drop. Must come before the entries: recovery replays in order.
    pub(crate) fn order(&mut self, order: Order) {
        match order {
            Order::Trim(log) => self.trim(log),
            Order::Drop(log) => self.drop_log(log),
            Order::Thin(thin) => self.thin(thin),
        }
    }

    fn trim(&mut self, log: Arc<LogInner>) {
        let mut body = log.body.lock();
        body.trim_queued = false;
        if log.tail.lock().gone == Some(super::log::Gone::Dropped) {
            return;
        }
        let (start_index, start_offset) = log.start.load();
        let release_index = body.floors.iter().copied().fold(start_index, EntryIndex::min);
        // The last segment stays whatever the trim says; recovery does the same.
        let candidates = body.segments.len().saturating_sub(1);
        let released = |segment: &&Arc<Segment>| segment.end().end.0 <= release_index;
        let last = body.segments.iter().take(candidates).take_while(released).last();
        let last_seq = last.map_or(0, |segment| segment.facts.seq);
        if last_seq == 0 && body.trimmed >= start_index {
            return;
        }
        body.trimmed = start_index;
        drop(body);
        let (key, incarnation) = (log.key, log.incarnation);
        self.record(&Record::Trim { key, incarnation, start_index, start_offset, release_index });
        self.must_sync = true;
        self.releases.push(Release::Front { log, last_seq, dropped: false });
    }

    fn drop_log(&mut self, log: Arc<LogInner>) {
        let used = log.body.lock().last_seq > 0;
        if used {
            let (key, incarnation) = (log.key, log.incarnation);
            self.record(&Record::Drop { key, incarnation, new_incarnation: 0 });
            self.must_sync = true;
        }
        self.releases.push(Release::Front { log, last_seq: u64::MAX, dropped: true });
    }

    /// Adds the record that a segment is kept no longer, or in part, unless something came between.
    fn thin(&mut self, thin: Thin) {
        let Thin { log, old, new } = &thin;
        let seq = old.facts.seq;
        let gone = log.tail.lock().gone == Some(super::log::Gone::Dropped);
        if gone || !log.body.lock().may_thin(old) {
            thin.forget();
            return;
        }
        let (key, incarnation) = (log.key, log.incarnation);
        let record = match new {
            None => Record::Vacate { key, incarnation, seq, vacancy: old.vacancy() },
            Some(new) => {
                let (file, salt) = (new.facts.file, new.facts.salt);
                let place = SparsePlace { file, salt, end_position: new.end().position };
                Record::Replace { key, incarnation, seq, place }
            }
        };
        self.record(&record);
        self.must_sync = true;
        self.releases.push(Release::Thinned(thin));
    }

    /// Lays out the entries of one log. When no file can be had for some of them, they go back to the
    /// log.
    ///
    /// # Errors
    /// The device's: terminal.
    pub(crate) fn add(&mut self, taken: Taken, shared: &Shared) -> io::Result<()> {
        let Taken { log, mut entries, direct, volatile, .. } = taken;
        let (mut segment, mut last_seq) = {
            let body = log.body.lock();
            (body.segments.back().cloned(), body.last_seq)
        };
        let number = self.logs.len();
        let mut end_position = None;
        let mut end = None;
        while let Some(first) = entries.front() {
            let fresh = first.roll > 0;
            if fresh {
                match self.begin_segment(&log, first, last_seq + 1, shared) {
                    Ok(begun) => segment = Some(begun),
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        shared.space.set_full();
                        give_back(&log, entries);
                        self.stalled.push(Arc::clone(&log));
                        break;
                    }
                    Err(error) => return Err(error),
                }
                last_seq += 1;
                end_position = Some(ENTRIES_START);
            }
            let into = segment.clone().expect("a log's first entry begins a segment");
            let from = end_position.unwrap_or_else(|| into.end().position);
            let count = 1 + entries.iter().skip(1).take_while(|entry| entry.roll == 0).count();
            let rest = entries.split_off(count);
            let run = std::mem::replace(&mut entries, rest);
            end = run.back().map(|entry| (EntryIndex(entry.index.0 + 1), entry.end_offset));
            let shape = Shape { log: number, fresh, direct, volatile, from };
            end_position = Some(self.add_part(&log, into, run, shape));
        }
        if let Some(end) = end {
            self.add_log(log, end, volatile, direct);
        }
        Ok(())
    }

    fn add_log(&mut self, log: Arc<LogInner>, end: End, volatile: bool, direct: bool) {
        let mut early = false;
        if volatile {
            let mut body = log.body.lock();
            let reserved = body.reserved;
            early = end.0 <= reserved.0 && end.1 <= reserved.1;
            let near = |used: u64, bound: u64| used.saturating_add(RESERVE_STEP / 2) > bound;
            if near(end.0.0, reserved.0.0) || near(end.1.0, reserved.1.0) {
                let next = |used: u64| used.saturating_add(RESERVE_STEP);
                body.reserved = (EntryIndex(next(end.0.0)), Offset(next(end.1.0)));
                let (end_index, end_offset) = body.reserved;
                drop(body);
                let (key, incarnation, class) = (log.key, log.incarnation, log.class());
                self.record(&Record::Reserve { key, incarnation, class, end_index, end_offset });
                self.must_sync = true;
            }
        } else {
            self.must_sync = true;
        }
        self.logs.push(GroupLog { log, end, volatile, early, direct });
    }

    /// Takes a file for the segment that begins with `first`.
    fn begin_segment(
        &mut self,
        log: &LogInner,
        first: &QueuedEntry,
        seq: u64,
        shared: &Shared,
    ) -> io::Result<Arc<Segment>> {
        let file = shared.pool.take(&*shared.files.disk, first.roll)?;
        let allocated = if file.new { file.len } else { 0 };
        shared.space.settle(first.roll, allocated);
        if file.new {
            shared.counters.segment_files_new.add(1);
            self.new_names = true;
        } else {
            shared.counters.segment_files_recycled.add(1);
        }
        let facts = SegmentFacts {
            file: file.file,
            file_len: file.len,
            seq,
            salt: shared.next_salt.fetch_add(1, Ordering::Relaxed),
            base: (first.index, first.offset),
            base_chain_crc: first.prev_header_crc,
            sparse: false,
        };
        self.record(&Record::Roll(Roll {
            key: log.key,
            incarnation: log.incarnation,
            seq,
            file: facts.file,
            salt: facts.salt,
            base_index: first.index,
            base_offset: first.offset,
            chain_crc: first.prev_header_crc,
        }));
        let segment = Arc::new(Segment::fresh(facts, file.handle));
        segment.note_handle(&shared.files);
        Ok(segment)
    }

    /// Stages the entries of one log for one segment; returns where the segment ends then.
    fn add_part(
        &mut self,
        log: &LogInner,
        segment: Arc<Segment>,
        mut run: VecDeque<QueuedEntry>,
        shape: Shape,
    ) -> u64 {
        let facts = segment.facts;
        let first = self.stage.cut();
        if shape.fresh {
            self.stage.copy(&facts.header(log.key, log.incarnation).encode());
            self.stage.zeros(ENTRIES_START - SECTOR as u64);
        }
        let frame_at = sector_ceil(shape.from);
        let mut position = shape.from;
        let mut patch = 0;
        if shape.direct {
            self.stage.zeros(frame_at - shape.from);
            patch = self.stage.copy(&[0; SECTOR]);
            position = frame_at + SECTOR as u64;
        }
        let body_start = position;
        let entries_first = self.stage.cut();
        let places_first = self.places.len();
        let head = run.front().expect("a part has entries");
        let (first_index, base_offset, first_prev) =
            (head.index, head.offset, head.prev_header_crc);
        let mut last_crc = 0;
        for entry in &mut run {
            self.places.push(place_of(entry, position));
            position += entry.len;
            last_crc = entry.header_crc;
            self.stage.entry(entry);
        }
        let entries_last = self.stage.cut();
        let bytes = position - body_start;
        self.charged += bytes;
        if shape.direct {
            let mut hasher = crc32fast::Hasher::new();
            self.stage.hash(entries_first..entries_last, &mut hasher);
            let frame = FrameHeader {
                salt: facts.salt,
                group: self.number,
                durable_group: self.durable,
                position: frame_at,
                first_index,
                base_offset,
                count: u32::try_from(run.len()).expect("a group's entries fit u32"),
                body_len: u32::try_from(bytes).expect("a part fits u32"),
                first_prev,
                last_crc,
                body_crc: hasher.finalize(),
                volatile: shape.volatile,
            };
            self.stage.patch(patch, &frame.encode());
            self.stage.zeros(frame.trailer_position() - position);
            self.stage.copy(&frame.trailer().encode());
            position = frame.end();
        } else {
            let inline = Inline {
                key: log.key,
                incarnation: log.incarnation,
                seq: facts.seq,
                position: body_start,
                first_index,
                count: u32::try_from(run.len()).expect("a group's entries fit u32"),
                entries: &[],
            };
            put_inline_header(&mut self.inline_heads, &inline, usize_of(bytes));
        }
        let last = self.stage.cut();
        self.parts.push(Part {
            segment,
            log: shape.log,
            fresh: shape.fresh,
            direct: shape.direct,
            volatile: shape.volatile,
            write_at: if shape.fresh { 0 } else { shape.from },
            written: first..last,
            entries: entries_first..entries_last,
            places: places_first..self.places.len(),
            bytes,
            end_position: position,
            last_crc,
        });
        position
    }
}

/// How a part is written.
#[derive(Clone, Copy)]
struct Shape {
    log: usize,
    fresh: bool,
    direct: bool,
    volatile: bool,
    /// The segment is filled up to here before.
    from: u64,
}

fn place_of(entry: &QueuedEntry, position: u64) -> EntryPlace {
    EntryPlace {
        index: entry.index,
        offset: entry.offset,
        end_offset: entry.end_offset,
        time: entry.time,
        leader_epoch: entry.leader_epoch,
        data: entry.data,
        position,
        len: entry.len,
    }
}
