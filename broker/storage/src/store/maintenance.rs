//! Checkpoints and everything else that need not happen on the I/O thread.
//!
//! Owns the manifest slots, the packs, the page cache window and the rewrite that is under way. Takes the writer's lock only to copy
//! what a checkpoint must know and to hand back what it freed, so that groups go on while it syncs.
//!
//! A checkpoint (rules 7 and 8): copy the state between two groups; write footers of sealed segments;
//! sync the dirty segments and their directory; write the manifest to the next slot; sync it. Only then is
//! anything freed: journal files older than every slot needs, packs that no slot names, segments below
//! what the snapshots of every slot need.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::io::IoSlice;
use std::sync::{Arc, Weak};

use postrider_protocol::types::{Durability, EntryIndex, TimestampMs};

use super::cursor::End;
use super::journal::create_file;
use super::log::LogInner;
use super::rewrite::{Progress, Rewrite};
use super::segment::Segment;
use super::shared::{Order, Shared};
use super::snapshots::{KEPT, write_pack};
use super::space::Claim;
use super::writer::Capture;
use super::{Logs, StoreInner};
use crate::disk::OpenMode;
use crate::format::manifest::{Manifest, ManifestLog};
use crate::format::names;
use crate::format::names::MANIFEST_SLOTS;
use crate::recovered::{FreeFile, RecoveredState};
use crate::sync::Ordering;

/// Free journal files kept for the next switches; more are removed when the disk is short.
const SPARE_JOURNAL_FILES: usize = 2;

/// Bytes copied in one step of a rewrite, and steps in one run of maintenance.
const REWRITE_BYTES_PER_STEP: u64 = 8 << 20;
const REWRITES_PER_RUN: usize = 4;

/// See the module.
pub(crate) struct Maintenance {
    manifest_number: u64,
    /// Oldest journal generation that each slot needs.
    slot_generations: [Option<u64>; MANIFEST_SLOTS],
    /// Packs that each slot names.
    slot_packs: [Vec<u32>; MANIFEST_SLOTS],
    /// Packs that exist.
    packs: BTreeSet<u32>,
    next_pack: u32,
    doubtful: bool,
    /// Last group that a manifest covers.
    checkpoint_group: u64,
    checkpointed: Option<TimestampMs>,
    /// Sealed and synced segments, oldest first, whose pages are still in the cache.
    hot: VecDeque<(Weak<Segment>, u64)>,
    hot_bytes: u64,
    /// The segment that is being written again.
    rewriting: Option<Rewrite>,
    closed: bool,
}

/// What a manifest says about a log, and the log.
struct Covered {
    log: Arc<LogInner>,
    entry: ManifestLog,
    floor: EntryIndex,
}

impl Maintenance {
    pub(crate) fn new(state: &RecoveredState) -> Self {
        let packs = state.slot_packs.iter().flatten().copied().collect();
        Self {
            manifest_number: state.manifest_number,
            slot_generations: state.slot_generations,
            slot_packs: state.slot_packs.clone(),
            packs,
            next_pack: state.next_pack,
            doubtful: state.doubtful,
            checkpoint_group: state.checkpoint_group,
            checkpointed: None,
            hot: VecDeque::new(),
            hot_bytes: 0,
            rewriting: None,
            closed: false,
        }
    }

    /// Does whatever is due.
    pub(crate) fn run(&mut self, store: &StoreInner, now: TimestampMs) -> bool {
        let shared = &store.shared;
        if shared.poison.is_set() || self.closed {
            return false;
        }
        match self.try_run(store, now) {
            Ok(done) => done,
            Err((doing, error)) => {
                shared.fail(doing, &error);
                false
            }
        }
    }

    fn try_run(&mut self, store: &StoreInner, now: TimestampMs) -> Result<bool, Failure> {
        let shared = &store.shared;
        let free = shared.files.disk.free_bytes().map_err(doing("measuring free space"))?;
        shared.space.measure(free);
        let mut done = false;
        if !shared.snapshots.is_empty() {
            done = self.write_snapshots(shared)?;
        }
        if self.is_checkpoint_due(store, now) {
            done |= self.checkpoint(store, now, Stop::No)?;
        }
        if store.writer.lock().stalled().0 {
            // The journal is stuck until every slot has moved on.
            for _ in 1..MANIFEST_SLOTS {
                done |= self.checkpoint(store, now, Stop::No)?;
            }
        }
        done |= self.rewrite(shared).map_err(doing("writing a segment again"))?;
        self.cool(shared)?;
        done |= self.remove_surplus(store)?;
        self.make_spare_journal(store)?;
        if store.writer.lock().stalled().1 {
            shared.retry_stalled();
        }
        Ok(done)
    }

    /// The last checkpoint: nothing follows in the journal.
    pub(crate) fn close(&mut self, store: &StoreInner) {
        let shared = &store.shared;
        if shared.poison.is_set() || self.closed {
            return;
        }
        let now = self.checkpointed.unwrap_or(TimestampMs(0));
        // No group may follow the manifest that says so.
        shared.finished.store(true, Ordering::Release);
        let result = self.write_snapshots(shared);
        let result = result.and_then(|_| self.checkpoint(store, now, Stop::Clean));
        if let Err((doing, error)) = result {
            shared.fail(doing, &error);
        }
        self.closed = true;
    }

    /// Writes segments again, about so much of them that a checkpoint need not wait long.
    fn rewrite(&mut self, shared: &Shared) -> io::Result<bool> {
        let mut done = false;
        for _ in 0..REWRITES_PER_RUN {
            let mut rewrite = match self.rewriting.take() {
                Some(rewrite) => rewrite,
                None => {
                    let Some(asked) = shared.rewrites.take() else { break };
                    done = true;
                    let Some(rewrite) = Rewrite::begin(asked, shared)? else { continue };
                    rewrite
                }
            };
            done = true;
            match rewrite.step(REWRITE_BYTES_PER_STEP, shared)? {
                Progress::More => {
                    self.rewriting = Some(rewrite);
                    break;
                }
                Progress::Copied => rewrite.finish(shared)?,
                why @ (Progress::Damaged | Progress::Gone) => rewrite.give_up(shared, why),
            }
        }
        if self.rewriting.is_some() || !shared.rewrites.is_empty() {
            shared.maintenance_bell.ring();
        }
        Ok(done)
    }

    fn write_snapshots(&mut self, shared: &Shared) -> Result<bool, Failure> {
        let number = self.next_pack;
        self.next_pack += 1;
        let written = write_pack(shared, number).map_err(doing("writing snapshots"))?;
        if written {
            self.packs.insert(number);
            shared.checkpoint_wanted.store(true, Ordering::Relaxed);
        }
        Ok(written)
    }

    fn is_checkpoint_due(&mut self, store: &StoreInner, now: TimestampMs) -> bool {
        let shared = &store.shared;
        if shared.checkpoint_wanted.swap(false, Ordering::Relaxed) {
            return true;
        }
        let writer = store.writer.lock();
        let (written, journal) = writer.written();
        let (journal_stalled, _) = writer.stalled();
        drop(writer);
        let options = &shared.options;
        let since = *self.checkpointed.get_or_insert(now);
        let late = now.0.saturating_sub(since.0) >= options.checkpoint_interval_ms;
        journal_stalled
            || written >= options.checkpoint_bytes
            || journal >= options.checkpoint_journal_bytes
            || (late && written + journal > 0)
    }

    /// Tells whether a manifest was written; without space for it nothing changes.
    fn checkpoint(
        &mut self,
        store: &StoreInner,
        now: TimestampMs,
        stop: Stop,
    ) -> Result<bool, Failure> {
        let shared = &store.shared;
        let Some((capture, covered)) = Self::capture(store) else {
            // A drop must be in the journal before a manifest leaves its log out.
            shared.checkpoint_wanted.store(true, Ordering::Relaxed);
            shared.queue.kick();
            return Ok(false);
        };
        sync_segments(shared, &capture)?;
        let manifest = self.manifest(shared, &capture, &covered, stop);
        let slot = slot_of(manifest.number);
        if !write_manifest(shared, slot, &manifest)? {
            shared.checkpoint_wanted.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        self.manifest_number = manifest.number;
        self.checkpoint_group = capture.group;
        self.checkpointed = Some(now);
        shared.counters.checkpoints.add(1);
        self.slot_generations[slot] = Some(manifest.oldest_generation);
        self.slot_packs[slot] = packs_of(&covered);
        for segment in capture.sealed {
            self.hot_bytes += segment.facts.file_len;
            self.hot.push_back((Arc::downgrade(&segment), segment.facts.file_len));
        }
        self.free(store, slot, &covered);
        self.remove_packs(store)?;
        Ok(true)
    }

    /// Copies what a manifest must say, between two groups. None while a drop is not in the journal.
    fn capture(store: &StoreInner) -> Option<(Capture, Vec<Covered>)> {
        let mut writer = store.writer.lock();
        let mut logs = store.logs.lock();
        // A journal that is stuck takes no drop; then the manifest itself is the release.
        logs.doomed.retain(|log| !log.body.lock().segments.is_empty());
        if !logs.doomed.is_empty() && !writer.stalled().0 {
            return None;
        }
        let covered = logs.live.values().filter_map(cover).collect();
        drop(logs);
        Some((writer.capture(), covered))
    }

    fn manifest(
        &self,
        shared: &Shared,
        capture: &Capture,
        covered: &[Covered],
        stop: Stop,
    ) -> Manifest {
        Manifest {
            number: self.manifest_number + 1,
            clean: stop == Stop::Clean,
            doubtful: self.doubtful,
            checkpoint_group: capture.group,
            durable_group: capture.durable_group.max(capture.group),
            oldest_generation: capture.journal.generation,
            journal_position: capture.journal.position,
            last_journal_crc: capture.journal.last_crc,
            next_incarnation: shared.next_incarnation.load(Ordering::Relaxed),
            next_salt: shared.next_salt.load(Ordering::Relaxed),
            logs: covered.iter().map(|covered| covered.entry.clone()).collect(),
        }
    }

    /// Frees what only older manifests needed.
    fn free(&self, store: &StoreInner, slot: usize, covered: &[Covered]) {
        let shared = &store.shared;
        let oldest = self.slot_generations.iter().flatten().min().copied().unwrap_or(0);
        let mut writer = store.writer.lock();
        writer.journal().release(oldest);
        for Covered { log, entry, floor } in covered {
            let mut body = log.body.lock();
            body.floors[slot] = *floor;
            for snapshot in &mut body.snapshots {
                snapshot.durable |= entry.snapshots.contains(&snapshot.at);
            }
            let start = log.start.load().0;
            let release = body.floors.iter().copied().fold(start, EntryIndex::min);
            let releasable = body.segments.len() > 1 && body.segments[0].end().end.0 <= release;
            if releasable && !body.trim_queued {
                body.trim_queued = true;
                shared.queue.order(Order::Trim(Arc::clone(log)));
            }
            drop(body);
            // The writer's lock is held: nobody else moves the cursor now.
            if log.class() != Durability::Fsync && log.durable.load() < entry.end {
                log.durable.store(entry.end);
            }
        }
    }

    fn remove_packs(&mut self, store: &StoreInner) -> Result<(), Failure> {
        let named: BTreeSet<u32> = self.slot_packs.iter().flatten().copied().collect();
        let logs = store.logs.lock();
        let kept: BTreeSet<u32> = all_packs(&logs).union(&named).copied().collect();
        drop(logs);
        let (packs, gone) = self.packs.iter().partition(|pack| kept.contains(pack));
        self.packs = packs;
        let gone: BTreeSet<u32> = gone;
        for pack in gone {
            let removed = store.shared.files.disk.remove(&names::pack(pack));
            removed.map_err(doing("removing snapshots"))?;
        }
        Ok(())
    }

    /// Drops the pages of segments behind the hot window from the cache.
    fn cool(&mut self, shared: &Shared) -> Result<(), Failure> {
        while self.hot_bytes > shared.options.hot_window_bytes {
            let Some((segment, bytes)) = self.hot.pop_front() else { break };
            self.hot_bytes -= bytes;
            let Some(segment) = segment.upgrade() else { continue };
            if !segment.is_retired() {
                segment.cool(&shared.files).map_err(doing("opening a segment"))?;
            }
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "one of the maintenance jobs")]
    fn remove_surplus(&self, store: &StoreInner) -> Result<bool, Failure> {
        let shared = &store.shared;
        let disk = &*shared.files.disk;
        let short = shared.space.is_full();
        let keep = if short { 0 } else { shared.options.recycle_bytes_max };
        let segments = shared.pool.surplus(keep);
        for file in &segments {
            disk.remove(&names::segment(file.file)).map_err(doing("removing a segment file"))?;
        }
        shared.counters.segment_files_removed.add(segments.len() as u64);
        let journals = if short {
            store.writer.lock().journal().surplus(SPARE_JOURNAL_FILES)
        } else {
            Vec::new()
        };
        for file in &journals {
            disk.remove(&names::journal(file.file)).map_err(doing("removing a journal file"))?;
        }
        Ok(!segments.is_empty() || !journals.is_empty())
    }

    /// Has a journal file ready before the writer needs one: the headroom of a disk that fills up, and
    /// one wait less on the I/O thread.
    #[expect(clippy::unused_self, reason = "one of the maintenance jobs")]
    fn make_spare_journal(&self, store: &StoreInner) -> Result<(), Failure> {
        let shared = &store.shared;
        let disk = &*shared.files.disk;
        let (number, want) = {
            let mut writer = store.writer.lock();
            if !writer.journal().is_used() {
                return Ok(());
            }
            let Some(number) = writer.journal().number_for_spare() else { return Ok(()) };
            (number, writer.journal().new_file_len(0, shared.space.journal_file_max()))
        };
        let need = shared.options.journal_bytes_min.min(want);
        let Some(len) = shared.space.promise(want, need, Claim::State) else { return Ok(()) };
        match create_file(disk, number, len) {
            Ok(file) => file.sync().map_err(doing("syncing a journal file"))?,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                shared.space.settle(len, 0);
                return Ok(());
            }
            Err(error) => return Err(("making a journal file", error)),
        }
        shared.space.settle(len, len);
        disk.sync_dir(names::JOURNAL).map_err(doing("syncing the journal directory"))?;
        store.writer.lock().journal().add_spare(FreeFile { file: number, len });
        Ok(())
    }
}

/// Whether the manifest says that nothing follows it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Clean,
}

type Failure = (&'static str, io::Error);

fn doing(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| (what, error)
}

fn slot_of(number: u64) -> usize {
    usize::try_from(number % MANIFEST_SLOTS as u64).expect("a slot's number is small")
}

/// What a manifest says about a log; none when it never had anything.
fn cover(log: &Arc<LogInner>) -> Option<Covered> {
    let body = log.body.lock();
    let zero = End::default();
    if body.last_seq == 0 && body.written == zero && body.reserved == zero {
        return None;
    }
    let segments: Vec<_> = body.segments.iter().map(|segment| segment.manifest()).collect();
    let first = segments.first().map_or(body.written.0, |first| first.base_index);
    // Nothing is released on the word of a single snapshot: it may turn out to be damaged.
    let floor = if body.snapshots.len() >= KEPT { body.snapshots[0].at.index } else { first };
    let entry = ManifestLog {
        key: log.key,
        incarnation: log.incarnation,
        class: log.class(),
        start: log.start.load(),
        end: body.written,
        reserved: body.reserved,
        chain_crc: body.written_crc,
        last_time: segments.last().map_or(TimestampMs(0), |last| last.last_time),
        last_seq: body.last_seq,
        segments,
        snapshots: body.snapshots.iter().map(|snapshot| snapshot.at).collect(),
        damages: body.damages.clone(),
        vacancies: body.vacancies.clone(),
    };
    drop(body);
    Some(Covered { log: Arc::clone(log), entry, floor })
}

fn packs_of(covered: &[Covered]) -> Vec<u32> {
    let snapshots = covered.iter().flat_map(|covered| &covered.entry.snapshots);
    let packs: BTreeSet<u32> = snapshots.map(|snapshot| snapshot.pack).collect();
    packs.into_iter().collect()
}

fn all_packs(logs: &Logs) -> BTreeSet<u32> {
    let mut packs = BTreeSet::new();
    for log in logs.live.values() {
        packs.extend(log.body.lock().snapshots.iter().map(|snapshot| snapshot.at.pack));
    }
    packs
}

/// Writes the footers of sealed segments and syncs every dirty segment.
fn sync_segments(shared: &Shared, capture: &Capture) -> Result<(), Failure> {
    let mut dirty: Vec<&Arc<Segment>> = capture.dirty.iter().collect();
    for segment in &capture.sealed {
        if write_footer(shared, segment)? && !dirty.iter().any(|other| Arc::ptr_eq(other, segment))
        {
            dirty.push(segment);
        }
    }
    dirty.retain(|segment| !segment.is_retired());
    let disk = &*shared.files.disk;
    if dirty.len() > shared.options.sync_each_max {
        disk.sync_all_files().map_err(doing("syncing the file system"))?;
    } else {
        for segment in dirty {
            let failure = doing("syncing a segment");
            segment.handle(&shared.files).map_err(&failure)?.sync().map_err(&failure)?;
        }
    }
    if capture.segment_names_unsynced {
        disk.sync_dir(names::SEGMENTS).map_err(doing("syncing the segment directory"))?;
    }
    Ok(())
}

fn write_footer(shared: &Shared, segment: &Arc<Segment>) -> Result<bool, Failure> {
    // A segment that was open when the store started is indexed now, while it is known to be whole.
    let Ok(map) = segment.map(&shared.files) else { return Ok(false) };
    segment.load_index(&map);
    let Some((at, footer)) = segment.make_footer() else { return Ok(false) };
    let written = segment.write_if_owned(&shared.files, at, &footer);
    written.map_err(doing("writing a segment's footer"))
}

/// Writes and syncs a manifest slot; false when there is no space for it.
fn write_manifest(shared: &Shared, slot: usize, manifest: &Manifest) -> Result<bool, Failure> {
    let failure = doing("writing the manifest");
    let disk = &*shared.files.disk;
    let path = names::manifest(slot);
    let bytes = manifest.encode();
    let (file, created) = match disk.open(&path, OpenMode::ReadWrite) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match disk.open(&path, OpenMode::Create) {
                Ok(file) => (file, true),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(false),
                Err(error) => return Err(failure(error)),
            }
        }
        Err(error) => return Err(failure(error)),
    };
    match file.allocate((bytes.len() as u64).next_multiple_of(4096)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!("no space for a manifest");
            return Ok(false);
        }
        Err(error) => return Err(failure(error)),
    }
    file.write_at(0, &[IoSlice::new(&bytes)]).map_err(&failure)?;
    file.sync().map_err(&failure)?;
    if created {
        disk.sync_dir("").map_err(&failure)?;
    }
    Ok(true)
}
