//! Checkpoints, snapshots, trims, reuse.

use super::*;
use crate::OsDisk;
use crate::disk::OpenMode;
use crate::format::manifest::Manifest;
use crate::format::segment::SegmentFooter;

fn settle(store: &Store) {
    while store.step() {}
}

fn checkpoint(store: &Store, now: u64) {
    settle(store);
    store.checkpoint();
    store.maintain(TimestampMs(now));
    settle(store);
}

fn manifest(disk: &dyn Disk) -> Manifest {
    let slots = (0..names::MANIFEST_SLOTS).filter_map(|slot| {
        let file = disk.open(&names::manifest(slot), OpenMode::Read).ok()?;
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(0, &mut bytes).unwrap();
        Manifest::decode(&bytes).ok()
    });
    slots.max_by_key(|manifest| manifest.number).unwrap()
}

fn append(store: &Store, log: &Log, entries: u64, len: usize) {
    for n in 0..entries {
        log.append(data(n, len, 1, 1)).unwrap();
        settle(store);
    }
}

#[test]
fn checkpoint_makes_everything_durable_and_says_where_the_journal_goes_on() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let memory = store.create_log(key(1), Durability::Memory).unwrap();
    append(&store, &memory, 30, 300);
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    append(&store, &log, 30, 3_000);
    checkpoint(&store, 0);
    assert!(disk.is_durable());
    assert_eq!(memory.durable_end(), memory.log_end());
    let manifest = manifest(&disk);
    assert_eq!(manifest.logs.len(), 2);
    assert_eq!(manifest.logs[0].end, log.log_end());
    assert_eq!(manifest.logs[1].class, Durability::Memory);
    let segments = &manifest.logs[0].segments;
    assert!(segments.len() > 1);
    assert!(segments.iter().rev().skip(1).all(|segment| segment.sealed));
    assert!(!segments.last().unwrap().sealed);
    assert_eq!(segments.last().unwrap().end_index, log.log_end().0);
    assert!(!manifest.clean);
}

#[test]
fn journal_stays_small_under_checkpoints_and_its_files_are_reused() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    for round in 0..40 {
        append(&store, &log, 10, 2_000);
        checkpoint(&store, round);
    }
    let journals = disk.list(names::JOURNAL).unwrap();
    assert!(store.stats().journal_bytes > 800_000);
    assert!(journals.len() <= 6, "{journals:?}");
}

#[test]
fn maintenance_checkpoints_by_bytes_and_by_time_only_when_something_was_written() {
    let options = StoreOptions { checkpoint_journal_bytes: 10_000, ..small_options() };
    let store = start(Arc::new(SimDisk::new(1)), options);
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    store.maintain(TimestampMs(0));
    store.maintain(TimestampMs(100_000));
    assert_eq!(store.stats().checkpoints, 0);
    append(&store, &log, 1, 100);
    store.maintain(TimestampMs(100_001));
    assert_eq!(store.stats().checkpoints, 1);
    append(&store, &log, 1, 100);
    store.maintain(TimestampMs(100_002));
    assert_eq!(store.stats().checkpoints, 1);
    append(&store, &log, 10, 2_000);
    store.maintain(TimestampMs(100_003));
    assert_eq!(store.stats().checkpoints, 2);
}

#[test]
fn sealed_segments_get_footers_that_agree_with_the_entries() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    for n in 0..60 {
        log.append(data(n, 2_500, 2, n)).unwrap();
        log.append(state(n, 50, n)).unwrap();
        settle(&store);
    }
    checkpoint(&store, 0);
    let segments: Vec<Arc<segment::Segment>> =
        log.inner.body.lock().segments.iter().cloned().collect();
    let sealed: Vec<_> = segments.iter().filter(|segment| segment.end().sealed).collect();
    assert!(sealed.len() >= 2);
    for segment in sealed {
        let map = segment.map(&store.inner.shared.files).ok().unwrap();
        let live = segment.state.lock().index.clone();
        let end = segment.end();
        let bytes = map.window(crate::format::segment::ENTRIES_START..end.position);
        let walked = index::walk(
            &bytes,
            crate::format::segment::ENTRIES_START,
            segment.facts.base.0..end.end.0,
            None,
        );
        assert_eq!((&walked.marks, &walked.holes), (&live.marks, &live.holes));
        let at = crate::format::sector_ceil(end.position);
        let footer = map.window(at..segment.facts.file_len);
        let footer = SegmentFooter::decode(&footer).unwrap();
        assert_eq!((&footer.marks, &footer.holes), (&live.marks, &live.holes));
        assert_eq!(footer.end_index, end.end.0);
    }
}

#[test]
fn snapshot_counts_once_a_manifest_names_it_and_two_are_kept() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    for n in 1..=4 {
        append(&store, &log, 1, 100);
        assert!(log.write_snapshot(EntryIndex(n), Bytes::from(vec![7; 1000])));
        assert_eq!(log.snapshot_index(), (n > 1).then(|| EntryIndex(n - 1)));
        store.maintain(TimestampMs(0));
        assert_eq!(log.snapshot_index(), Some(EntryIndex(n)));
    }
    let kept: Vec<_> = manifest(&disk).logs[0].snapshots.iter().map(|at| at.index.0).collect();
    assert_eq!(kept, [3, 4]);
    for n in 0..3 {
        checkpoint(&store, n);
    }
    assert_eq!(disk.list(names::SNAPSHOTS).unwrap().len(), 2);
}

#[test]
fn a_snapshot_above_the_bound_is_taken_while_no_other_waits() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk), small_options());
    let one = store.create_log(key(0), Durability::Fsync).unwrap();
    let other = store.create_log(key(1), Durability::Fsync).unwrap();
    append(&store, &one, 1, 100);
    append(&store, &other, 1, 100);
    let large = small_options().snapshot_queue_bytes_max + 1;
    assert!(one.write_snapshot(EntryIndex(1), Bytes::from(vec![0; large])));
    assert!(!other.write_snapshot(EntryIndex(1), Bytes::from(vec![0; 10])));
    assert!(one.write_snapshot(EntryIndex(1), Bytes::from(vec![1; large])), "in place of its own");
    store.maintain(TimestampMs(0));
    assert_eq!(one.snapshot_index(), Some(EntryIndex(1)));
    assert!(other.write_snapshot(EntryIndex(1), Bytes::from(vec![0; 10])));
    assert!(!one.write_snapshot(EntryIndex(1), Bytes::from(vec![0; large])));
}

#[test]
fn trim_hides_at_once_and_frees_files_only_below_what_every_slot_can_do_without() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    append(&store, &log, 60, 3_000);
    let segments = log.segments();
    assert!(segments.len() >= 4);
    let third = segments[2].base;
    log.trim(third);
    settle(&store);
    assert_eq!(log.log_start(), third);
    let below = log.read(Offset(0), Offset(60), 100);
    assert!(matches!(below, Err(crate::ReadError::BelowStart { log_start }) if log_start == third));
    for n in 0..4 {
        checkpoint(&store, n);
    }
    assert_eq!(log.segments().len(), segments.len(), "released without a snapshot");
    for index in [third.0, EntryIndex(third.0.0 + 1)] {
        assert!(log.write_snapshot(index, Bytes::from_static(b"state")));
        store.maintain(TimestampMs(10));
    }
    assert_eq!(log.segments().len(), segments.len(), "released although older slots need it");
    for n in 0..4 {
        checkpoint(&store, n);
    }
    assert_eq!(log.segments()[0].base, third);
    assert!(store.stats().recyclable_bytes > 0);
    assert_eq!(read_all(&log, 10_000).len() as u64, 60 - third.1.0);
    assert_eq!(manifest(&disk).logs[0].start, third);
}

#[test]
fn file_is_not_reused_while_a_reader_holds_a_slice_of_it() {
    check_held_slice(|_log| {});
}

#[test]
fn file_is_not_reused_while_a_slice_of_a_mapping_that_was_closed_is_out() {
    check_held_slice(|log| log.inner.body.lock().segments[0].unmap());
}

fn check_held_slice(between: fn(&Log)) {
    let dir = tempfile::tempdir().unwrap();
    let store = start(Arc::new(OsDisk::create(dir.path()).unwrap()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    append(&store, &log, 3, 1_000);
    let run = log.read(Offset(0), Offset(3), 100_000).unwrap();
    let before = run.slices[0].to_vec();
    between(&log);
    store.drop_log(key(0));
    settle(&store);
    assert!(store.stats().pinned_bytes > 0);
    let other = store.create_log(key(1), Durability::Fsync).unwrap();
    append(&store, &other, 3, 1_000);
    assert_eq!(run.slices[0], before);
    drop(run);
    let files = store.stats().segment_files_new;
    let third = store.create_log(key(2), Durability::Fsync).unwrap();
    append(&store, &third, 3, 1_000);
    assert_eq!(store.stats().pinned_bytes, 0);
    assert_eq!(store.stats().segment_files_new, files);
    assert_eq!(store.stats().segment_files_recycled, 1);
}

#[test]
fn full_disk_recovers_by_itself_when_space_returns() {
    let disk = SimDisk::new(1);
    disk.set_quota(1 << 20);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let mut accepted = 0;
    while log.append(data(accepted, 3_000, 1, 1)).is_ok() {
        accepted += 1;
        settle(&store);
        store.maintain(TimestampMs(accepted));
    }
    assert!(store.is_full());
    // State goes on far longer than the journal is large: checkpoints turn it over.
    for n in 0..150 {
        log.append(state(n, 1_000, 1)).unwrap();
        settle(&store);
        if n % 10 == 0 {
            store.maintain(TimestampMs(100_000 + n * 10_000));
            settle(&store);
        }
    }
    assert!(store.failed().is_none());
    disk.set_quota(8 << 20);
    store.maintain(TimestampMs(2_000_000));
    assert!(!store.is_full());
    log.append(data(accepted, 3_000, 1, 1)).unwrap();
    settle(&store);
    assert_eq!(read_all(&log, 100_000).len() as u64, accepted + 1);
}

#[test]
fn failed_checkpoint_sync_ends_the_store() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    append(&store, &log, 3, 3_000);
    let plan = crate::disk_sim::FaultPlan { fail_sync_at: Some(0), ..Default::default() };
    disk.set_plan(plan);
    store.checkpoint();
    assert!(!store.maintain(TimestampMs(0)));
    assert_eq!(log.append(data(3, 10, 1, 1)), Err(AppendError::Poisoned));
}

#[test]
fn close_writes_what_was_accepted_and_a_clean_manifest() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    append(&store, &log, 3, 3_000);
    log.append(data(3, 10, 1, 1)).unwrap();
    store.close().unwrap();
    assert_eq!(log.ready_end().0, EntryIndex(4));
    assert_eq!(log.append(data(3, 10, 1, 1)), Err(AppendError::Closed));
    assert_eq!(store.create_log(key(1), Durability::Fsync).err(), Some(AppendError::Closed));
    assert!(disk.is_durable());
    let manifest = manifest(&disk);
    assert!(manifest.clean);
    assert_eq!(manifest.logs[0].end.0, EntryIndex(4));
    let operations = disk.operations();
    assert!(!store.step() && !store.maintain(TimestampMs(1 << 40)));
    assert_eq!(disk.operations(), operations);
}

struct Tell(std::sync::mpsc::Sender<()>);

impl LogWatcher for Tell {
    fn advanced(&self) {
        self.0.send(()).unwrap();
    }
}

#[test]
fn threads_write_what_is_appended_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(Arc::new(OsDisk::create(dir.path()).unwrap()), small_options());
    let threads = store.spawn(|| TimestampMs(5));
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let (told, ready) = std::sync::mpsc::channel();
    log.watch(Arc::new(Tell(told)));
    for n in 0..100 {
        let appended = log.append(data(n, 1_000, 1, 1)).unwrap();
        while log.ready_end().0 <= appended.index {
            ready.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        }
    }
    threads.stop();
    store.close().unwrap();
    assert_eq!(read_all(&log, 10_000).len(), 100);
    assert!(store.stats().group_time.sum_ns > 0);
}
