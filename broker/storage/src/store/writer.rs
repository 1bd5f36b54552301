//! The group writer: takes what is queued, writes it, syncs it, reports it.
//!
//! Owns the journal, the numbers of groups and the list of segments that a checkpoint must sync. One
//! caller at a time (the I/O thread, or the simulator). Never waits for anything but the disk.
//!
//! ```text
//! take -> make room -> lay out -> write journal, segments -> [ready: classes without sync]
//!      -> sync journal, direct segments, directories -> ready, durable -> watchers -> observer
//! ```
//! Nothing is written before room for all of it is found. From the first write on, an error ends the
//! store (rule 5): what was accepted is then never reported as ready.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::mem;
use std::sync::Arc;

use super::group::{Group, GroupLog, Part, Release, choose_paths, collect, give_back};
use super::index::HOLES_MAX;
use super::journal::{Journal, JournalPosition};
use super::log::{LogInner, usize_of};
use super::segment::Segment;
use super::shared::{Order, Shared};
use super::space::Claim;
use crate::format::journal::{GroupHeader, INLINE_HEADER_BYTES, Record};
use crate::format::{SECTOR, names, sector_ceil};
use crate::recovered::RecoveredState;
use crate::sync::Ordering;
use postrider_protocol::types::EntryIndex;

/// The journal takes no new file beyond so many checkpoints' worth: a slow checkpoint then slows
/// appends instead of filling the disk.
const JOURNAL_CHECKPOINTS_MAX: u64 = 8;

/// See the module.
pub(crate) struct Writer {
    journal: Journal,
    next_group: u64,
    /// Last group whose syncs all succeeded.
    durable_group: u64,
    /// The highest `d` that a synced group carries.
    vouched_group: u64,
    /// The last synced group that holds something.
    last_group: u64,
    /// Segments with bytes that no sync covers. Bounded by the number of logs and their rolls.
    dirty: Vec<Arc<Segment>>,
    /// Segments that were sealed since the last checkpoint.
    sealed: Vec<Arc<Segment>>,
    segment_names_unsynced: bool,
    /// Orders that wait for room in the journal.
    orders: Vec<Order>,
    /// Logs whose entries wait for space, in the order in which they were accepted.
    stalled: VecDeque<Arc<LogInner>>,
    /// The journal had no room.
    journal_stalled: bool,
    written_bytes: u64,
    journal_bytes: u64,
    group: Group,
}

/// What a checkpoint must know, taken between two groups.
pub(crate) struct Capture {
    pub(crate) group: u64,
    pub(crate) durable_group: u64,
    pub(crate) journal: JournalPosition,
    pub(crate) dirty: Vec<Arc<Segment>>,
    /// They get their footers.
    pub(crate) sealed: Vec<Arc<Segment>>,
    pub(crate) segment_names_unsynced: bool,
}

/// How a step went on.
enum Room {
    Ready,
    None,
}

impl Writer {
    /// Goes on where recovery stopped.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn open(state: &RecoveredState, shared: &Shared) -> io::Result<Self> {
        let options = &shared.options;
        let journal = Journal::open(
            &*shared.files.disk,
            &state.journal,
            options.journal_bytes_min,
            options.journal_bytes_max,
        )?;
        Ok(Self {
            journal,
            next_group: state.journal.next_group,
            durable_group: state.journal.durable_group,
            // A group of recovery's own is synced, but nothing says so yet.
            vouched_group: state.checkpoint_group.min(state.journal.durable_group),
            last_group: state.journal.durable_group,
            dirty: Vec::new(),
            sealed: Vec::new(),
            segment_names_unsynced: false,
            orders: Vec::new(),
            stalled: VecDeque::new(),
            journal_stalled: false,
            written_bytes: 0,
            journal_bytes: 0,
            group: Group::default(),
        })
    }

    /// Writes one group, or a commit mark when nothing waits. Tells whether something was done.
    pub(crate) fn step(&mut self, shared: &Shared) -> bool {
        if shared.poison.is_set() || shared.finished.load(Ordering::Acquire) {
            return false;
        }
        let started = shared.counters.now();
        let (mut logs, orders) = shared.queue.take();
        self.orders.extend(orders);
        if shared.retry.swap(false, Ordering::Relaxed) {
            self.journal_stalled = false;
            for log in mem::take(&mut self.stalled).into_iter().rev() {
                logs.push_front(log);
            }
        }
        if logs.is_empty() && (self.orders.is_empty() || self.journal_stalled) {
            return self.mark_if_due(shared);
        }
        let done = self.group(shared, logs);
        if done {
            shared.counters.group_time.add(shared.counters.now() - started);
        }
        done
    }

    fn group(&mut self, shared: &Shared, logs: VecDeque<Arc<LogInner>>) -> bool {
        let (mut taken, rest) = collect(logs, shared.options.group_bytes_max as u64);
        let records = choose_paths(&mut taken, self.orders.len(), shared);
        match self.make_room(shared, records) {
            Ok(Room::Ready) => {}
            Ok(Room::None) => {
                shared.counters.stalls.add(1);
                self.journal_stalled = true;
                shared.maintenance_bell.ring();
                // The journal is what lacks room: the rest would fare no better.
                let rest = without(rest, taken.iter().map(|part| &part.log));
                for part in taken {
                    give_back(&part.log, part.entries);
                    self.stalled.push_back(part.log);
                }
                self.stalled.extend(rest);
                return false;
            }
            Err(error) => {
                shared.fail("making a journal file", &error);
                return false;
            }
        }
        let mut group = mem::take(&mut self.group);
        group.reset(self.next_group, self.durable_group);
        let result = self.lay_out(shared, taken, &mut group);
        shared.queue.put_back(without(rest, group.stalled.iter()).into_iter());
        let result = result.and_then(|()| self.commit(shared, &group));
        self.stalled.extend(group.stalled.drain(..));
        self.group = group;
        if let Err(failure) = result {
            shared.fail(failure.doing, &failure.error);
            return false;
        }
        true
    }

    /// Makes sure that a group with `records` bytes of records fits the journal.
    fn make_room(&mut self, shared: &Shared, records: u64) -> io::Result<Room> {
        let need = GroupHeader::group_bytes(records);
        if records == 0 || self.journal.fits(need) {
            return Ok(Room::Ready);
        }
        let disk = &*shared.files.disk;
        let bound = shared.options.checkpoint_journal_bytes.saturating_mul(JOURNAL_CHECKPOINTS_MAX);
        let want = self.journal.new_file_len(need, shared.space.journal_file_max());
        let promised = if self.journal.bytes() <= bound.max(want) {
            shared.space.promise(want, need.next_multiple_of(4096), Claim::State)
        } else {
            None
        };
        let switched = self.journal.switch(disk, need, promised);
        let created = switched.as_ref().map_or(0, |switched| switched.created);
        shared.space.settle(promised.unwrap_or(0), created);
        match switched {
            Ok(_) => Ok(Room::Ready),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(Room::None),
            Err(error) => Err(error),
        }
    }

    fn lay_out(
        &mut self,
        shared: &Shared,
        taken: Vec<super::group::Taken>,
        group: &mut Group,
    ) -> Result<(), Failure> {
        for order in mem::take(&mut self.orders) {
            group.order(order);
        }
        for part in taken {
            group.add(part, shared).map_err(Failure::of("making a segment file"))?;
        }
        Ok(())
    }

    /// Writes and syncs a group that is laid out, and reports it.
    fn commit(&mut self, shared: &Shared, group: &Group) -> Result<(), Failure> {
        self.segment_names_unsynced |= group.new_names;
        let journaled = self.write_journal(shared, group)?;
        self.write_segments(shared, group)?;
        self.note_written(shared, group);
        if journaled || !group.parts.is_empty() {
            self.next_group += 1;
            shared.counters.groups.add(1);
        }
        self.report_early(shared, group);
        if group.must_sync {
            self.sync(shared, group)?;
            if shared.poison.is_set() {
                // A sync of maintenance failed meanwhile: that this one succeeded proves nothing.
                return Ok(());
            }
            self.durable_group = group.number;
            self.vouched_group = group.durable;
            self.last_group = group.number;
        } else if !group.parts.is_empty() {
            shared.counters.unsynced_groups.add(1);
        }
        self.report(shared, group);
        let options = &shared.options;
        if self.written_bytes >= options.checkpoint_bytes
            || self.journal_bytes >= options.checkpoint_journal_bytes
        {
            shared.maintenance_bell.ring();
        }
        Ok(())
    }

    /// Writes the journal's part, if there is one.
    fn write_journal(&mut self, shared: &Shared, group: &Group) -> Result<bool, Failure> {
        let inline: Vec<&Part> = group.parts.iter().filter(|part| !part.direct).collect();
        if inline.is_empty() && group.record_count == 0 {
            return Ok(false);
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&group.records);
        let mut body_len = group.records.len() as u64;
        let heads = group.inline_heads.chunks_exact(INLINE_HEADER_BYTES);
        for (part, head) in inline.iter().zip(heads.clone()) {
            hasher.update(head);
            group.stage.hash(part.entries.clone(), &mut hasher);
            body_len += head.len() as u64 + part.bytes;
        }
        let sizes = (group.record_count as usize + inline.len(), body_len);
        let header = self.header(group, sizes, hasher.finalize());
        let (first, last) = (header.encode(), header.trailer().encode());
        let zeros = [0; SECTOR];
        let padding = usize_of(sector_ceil(body_len) - body_len);
        let mut bufs = Vec::with_capacity(4 + 4 * inline.len());
        bufs.push(IoSlice::new(&first));
        if !group.records.is_empty() {
            bufs.push(IoSlice::new(&group.records));
        }
        for (part, head) in inline.iter().zip(heads) {
            bufs.push(IoSlice::new(head));
            group.stage.slices(part.entries.clone(), &mut bufs);
        }
        if padding > 0 {
            bufs.push(IoSlice::new(&zeros[..padding]));
        }
        bufs.push(IoSlice::new(&last));
        let written = self
            .journal
            .write(&bufs, GroupHeader::crc_of(&first))
            .map_err(Failure::of("writing the journal"))?;
        self.journal_bytes += written;
        shared.counters.journal_bytes.add(written);
        Ok(true)
    }

    fn header(&self, group: &Group, (count, body_len): (usize, u64), body_crc: u32) -> GroupHeader {
        let place = self.journal.place();
        GroupHeader {
            generation: place.generation,
            group: group.number,
            durable_group: group.durable,
            position: place.position,
            count: u32::try_from(count).expect("a group's records fit u32"),
            body_len: u32::try_from(body_len).expect("a group's records are below 4 GiB"),
            body_crc,
            prev_crc: self.journal.last_crc(),
            unsynced: !group.must_sync,
            recovery: false,
        }
    }

    fn write_segments(&mut self, shared: &Shared, group: &Group) -> Result<(), Failure> {
        let failure = Failure::of("writing a segment");
        let mut bufs = Vec::new();
        for part in &group.parts {
            bufs.clear();
            group.stage.slices(part.written.clone(), &mut bufs);
            let handle = part.segment.handle(&shared.files).map_err(failure)?;
            handle.write_at(part.write_at, &bufs).map_err(failure)?;
            let synced_by_group = part.direct && !part.volatile;
            if !synced_by_group {
                self.add_dirty(Arc::clone(&part.segment));
            }
            let written = part.end_position - part.write_at;
            self.written_bytes += written;
            shared.counters.segment_bytes.add(written);
            shared.counters.direct_writes.add(u64::from(part.direct));
        }
        Ok(())
    }

    /// Makes what was written findable, and tells the logs how full their segments are.
    fn note_written(&mut self, shared: &Shared, group: &Group) {
        for part in &group.parts {
            let places = &group.places[part.places.clone()];
            let holes = part.segment.extend(places, part.end_position);
            let log = &group.logs[part.log].log;
            let mut body = log.body.lock();
            if part.fresh {
                if let Some(old) = body.segments.back() {
                    old.seal();
                    self.sealed.push(Arc::clone(old));
                }
                body.last_seq = part.segment.facts.seq;
                body.segments.push_back(Arc::clone(&part.segment));
            }
            if let Some(last) = places.last() {
                body.written = (EntryIndex(last.index.0 + 1), last.end_offset);
                body.written_crc = part.last_crc;
            }
            drop(body);
            let facts = &part.segment.facts;
            let mut tail = log.tail.lock();
            let count = places.len() as u64;
            tail.plan.written(facts.seq, facts.file_len, part.end_position, part.bytes, count);
            if holes > HOLES_MAX {
                tail.plan.roll();
            }
            drop(tail);
            shared.counters.entries.add(count);
            shared.counters.entry_bytes.add(part.bytes);
        }
    }

    /// Classes that demand no sync are ready once they are written.
    #[expect(clippy::unused_self, reason = "part of the writer's sequence")]
    fn report_early(&self, shared: &Shared, group: &Group) {
        let early = || group.logs.iter().filter(|log| log.early);
        for log in early() {
            log.log.ready.store(log.end);
        }
        for log in early() {
            log.log.tell_watcher();
        }
        if group.must_sync && early().next().is_some() {
            tell_observer(shared);
        }
    }

    /// Syncs everything that the group's acknowledgements rest on: the journal (with every unsynced
    /// group before), the segments written directly, the directories of new files.
    fn sync(&mut self, shared: &Shared, group: &Group) -> Result<(), Failure> {
        let started = shared.counters.now();
        let mut syncs = u64::from(self.journal.sync().map_err(Failure::of("syncing the journal"))?);
        for part in group.parts.iter().filter(|part| part.direct && !part.volatile) {
            let failure = Failure::of("syncing a segment");
            part.segment.handle(&shared.files).map_err(failure)?.sync().map_err(failure)?;
            syncs += 1;
        }
        let disk = &*shared.files.disk;
        if mem::take(&mut self.journal.names_unsynced) {
            disk.sync_dir(names::JOURNAL).map_err(Failure::of("syncing the journal directory"))?;
        }
        if mem::take(&mut self.segment_names_unsynced) {
            disk.sync_dir(names::SEGMENTS).map_err(Failure::of("syncing the segment directory"))?;
        }
        shared.counters.syncs.add(syncs);
        shared.counters.sync_time.add(shared.counters.now() - started);
        Ok(())
    }

    fn report(&mut self, shared: &Shared, group: &Group) {
        for log in &group.logs {
            if log.volatile && log.direct {
                log.log.framed.store(log.end.0.0, Ordering::Relaxed);
            }
            // Behind a frame that only a checkpoint syncs, a synced journal proves nothing.
            let framed = log.log.framed.load(Ordering::Relaxed);
            if !log.volatile || (group.must_sync && log.log.durable.load().0.0 >= framed) {
                log.log.durable.store(log.end);
            }
            if !log.early {
                log.log.ready.store(log.end);
            }
        }
        shared.queue.discharge(usize_of(group.charged));
        for release in &group.releases {
            self.release(shared, release);
        }
        for GroupLog { log, early, .. } in &group.logs {
            if !early {
                log.tell_watcher();
            }
        }
        tell_observer(shared);
    }

    /// Hands the files over that a record of the synced group released (rule 8).
    fn release(&mut self, shared: &Shared, release: &Release) {
        let released = match release {
            Release::Front { log, last_seq, .. } => log.body.lock().release_front(*last_seq),
            Release::Thinned(thin) => thin.take_effect(),
        };
        for segment in &released {
            shared.pool.release(segment);
        }
        if matches!(release, Release::Front { dropped: true, .. }) {
            self.dirty.retain(|segment| !released.iter().any(|gone| Arc::ptr_eq(gone, segment)));
        }
        if !released.is_empty() && !self.stalled.is_empty() {
            shared.retry_stalled();
        }
    }

    /// After the last group of a busy time nothing on the disk says that it was synced: a mark does.
    fn mark_if_due(&mut self, shared: &Shared) -> bool {
        if !self.is_mark_due() {
            return false;
        }
        let room = self.make_room(shared, 8);
        match room {
            Ok(Room::Ready) => {}
            Ok(Room::None) => return false,
            Err(error) => {
                shared.fail("making a journal file", &error);
                return false;
            }
        }
        let mut group = mem::take(&mut self.group);
        group.reset(self.next_group, self.durable_group);
        group.record(&Record::Mark);
        group.must_sync = true;
        let result = self.write_journal(shared, &group).and_then(|_| self.sync(shared, &group));
        let number = group.number;
        self.vouched_group = group.durable;
        self.group = group;
        if let Err(failure) = result {
            shared.fail(failure.doing, &failure.error);
            return false;
        }
        self.next_group = number + 1;
        self.durable_group = number;
        shared.counters.marks.add(1);
        true
    }

    pub(crate) fn is_mark_due(&self) -> bool {
        self.vouched_group < self.last_group
    }

    /// Bytes written since the last capture: all, and those in the journal.
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.written_bytes, self.journal_bytes)
    }

    /// Whether something waits for space: in the journal, or anywhere.
    pub(crate) fn stalled(&self) -> (bool, bool) {
        (self.journal_stalled, self.journal_stalled || !self.stalled.is_empty())
    }

    pub(crate) fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Notes a segment with bytes that only a checkpoint syncs.
    pub(crate) fn add_dirty(&mut self, segment: Arc<Segment>) {
        if !segment.dirty.swap(true, Ordering::Relaxed) {
            self.dirty.push(segment);
        }
    }

    /// Takes over what a checkpoint must sync. What is written from here on is the next one's.
    pub(crate) fn capture(&mut self) -> Capture {
        self.written_bytes = 0;
        self.journal_bytes = 0;
        let dirty = mem::take(&mut self.dirty);
        let dirty: Vec<_> =
            dirty.into_iter().filter(|seg| seg.dirty.swap(false, Ordering::Relaxed)).collect();
        Capture {
            group: self.next_group - 1,
            durable_group: self.durable_group,
            journal: self.journal.position(),
            dirty,
            sealed: mem::take(&mut self.sealed),
            segment_names_unsynced: mem::take(&mut self.segment_names_unsynced),
        }
    }
}

/// Logs that have more than a group takes, without those that stalled: a log waits in one list only, or a
/// group would get it twice, and a full disk would be asked without end.
fn without<'a>(
    rest: VecDeque<Arc<LogInner>>,
    stalled: impl Iterator<Item = &'a Arc<LogInner>> + Clone,
) -> VecDeque<Arc<LogInner>> {
    let mut rest = rest;
    rest.retain(|log| !stalled.clone().any(|other| Arc::ptr_eq(log, other)));
    rest
}

fn tell_observer(shared: &Shared) {
    let observer = shared.observer.lock().clone();
    if let Some(observer) = observer {
        observer.round_done();
    }
}

/// A device's error and what was being done.
struct Failure {
    doing: &'static str,
    error: io::Error,
}

impl Failure {
    fn of(doing: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |error| Self { doing, error }
    }
}
