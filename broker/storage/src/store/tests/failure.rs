//! Failing and full disks.

use super::*;
use crate::disk_sim::FaultPlan;

#[test]
fn failed_sync_ends_the_store_and_reports_nothing_as_ready() {
    for direct in [false, true] {
        let disk = SimDisk::new(1);
        let store = start(Arc::new(disk.clone()), small_options());
        let log = store.create_log(key(0), Durability::Fsync).unwrap();
        let calls = Arc::new(Calls::default());
        log.watch(calls.clone());
        store.set_observer(calls.clone());
        log.append(data(1, 100, 1, 1)).unwrap();
        while store.step() {}
        disk.set_plan(FaultPlan { fail_sync_at: Some(0), ..FaultPlan::default() });
        log.append(data(2, if direct { 32 << 10 } else { 100 }, 1, 1)).unwrap();
        assert!(!store.step());
        assert_eq!(log.ready_end(), (EntryIndex(1), Offset(1)));
        assert_eq!(log.durable_end(), (EntryIndex(1), Offset(1)));
        assert_eq!(log.append(data(3, 10, 1, 1)), Err(AppendError::Poisoned));
        assert!(store.failed().is_some());
        assert_eq!(calls.failures.load(Ordering::Relaxed), 1);
        assert_eq!(calls.advanced.load(Ordering::Relaxed), 1);
        // Nothing is written after that, although the disk works again.
        let operations = disk.operations();
        assert!(!store.step());
        assert_eq!(disk.operations(), operations);
        assert_eq!(store.create_log(key(1), Durability::Fsync).err(), Some(AppendError::Poisoned));
        assert_eq!(read_all(&log, 1000).len(), 1);
    }
}

#[test]
fn failed_write_ends_the_store() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Memory).unwrap();
    log.append(data(1, 100, 1, 1)).unwrap();
    while store.step() {}
    disk.set_plan(FaultPlan { fail_write_at: Some(0), ..FaultPlan::default() });
    log.append(data(2, 100, 1, 1)).unwrap();
    assert!(!store.step());
    assert_eq!(log.ready_end(), (EntryIndex(1), Offset(1)));
    assert_eq!(log.append(data(3, 10, 1, 1)), Err(AppendError::Poisoned));
}

#[test]
fn full_disk_refuses_data_keeps_state_going_and_loses_nothing_accepted() {
    let disk = SimDisk::new(1);
    disk.set_quota(1 << 20);
    let store = start(Arc::new(disk), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let mut accepted = 0;
    let refused = loop {
        match log.append(data(accepted, 3_000, 1, 1)) {
            Ok(_) => accepted += 1,
            Err(AppendError::QueueFull) => while store.step() {},
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AppendError::Full);
    assert!(store.is_full());
    while store.step() {}
    assert_eq!(store.failed().map(|error| error.to_string()), None);
    assert_eq!(read_all(&log, 10_000).len() as u64, accepted);
    for n in 0..20 {
        log.append(state(n, 1_000, 1)).unwrap();
        while store.step() {}
    }
    assert_eq!(log.ready_end().0, EntryIndex(accepted + 20));
    assert_eq!(log.append(data(1, 10, 1, 1)), Err(AppendError::Full));
}

#[test]
fn accepted_entries_wait_when_somebody_else_fills_the_disk() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let other = store.create_log(key(1), Durability::Fsync).unwrap();
    other.append(data(0, 100, 1, 1)).unwrap();
    log.append(data(0, 100, 1, 1)).unwrap();
    while store.step() {}
    let used: u64 = disk.files().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    disk.set_quota(used);
    // 12 x 2 KiB exceed the first segment: the rest needs a file that cannot be made any more.
    for n in 1..12 {
        log.append(data(n, 2_000, 1, 1)).unwrap();
    }
    other.append(data(1, 100, 1, 1)).unwrap();
    while store.step() {}
    assert!(store.failed().is_none());
    let ready = log.ready_end();
    assert!(ready.0 > EntryIndex(1) && ready.0 < EntryIndex(12), "{ready:?}");
    assert_eq!(other.ready_end(), (EntryIndex(2), Offset(2)));
    assert_eq!(log.append(data(1, 10, 1, 1)), Err(AppendError::Full));
    disk.set_quota(1 << 30);
    store.inner.shared.retry_stalled();
    while store.step() {}
    assert_eq!(log.ready_end(), (EntryIndex(12), Offset(12)));
    let bodies: Vec<Bytes> = read_all(&log, 1000).into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies[5], data(5, 2_000, 1, 1).body);
}

/// Where a group that asks for a full disk stops, with more waiting than it takes.
fn more_than_a_group_waits(journal: bool) {
    let disk = SimDisk::new(1);
    let options = StoreOptions { group_bytes_max: 8 << 10, ..small_options() };
    let store = start(Arc::new(disk.clone()), options);
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let other = store.create_log(key(1), Durability::Fsync).unwrap();
    log.append(data(0, 100, 1, 1)).unwrap();
    other.append(data(0, 100, 1, 1)).unwrap();
    while store.step() {}
    let mut count = 1;
    if journal {
        // Until the journal's file is all but full: then a group finds no room in the journal.
        while store.inner.writer.lock().journal().fits(8 << 10) {
            log.append(data(count, 1_000, 1, 1)).unwrap();
            while store.step() {}
            count += 1;
        }
    }
    let used: u64 = disk.files().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    disk.set_quota(used);
    for _ in 0..40 {
        log.append(data(count, 2_000, 1, 1)).unwrap();
        count += 1;
    }
    other.append(data(1, 100, 1, 1)).unwrap();
    let mut steps = 0;
    while store.step() {
        steps += 1;
        assert!(steps < 100, "a full disk is asked without end");
    }
    assert!(store.failed().is_none());
    assert!(log.ready_end().0 < EntryIndex(count));
    // Nothing new: the I/O thread sleeps, and a log that waits does so in one place.
    let (ready, _) = store.inner.shared.queue.take();
    assert!(ready.is_empty(), "{} logs wait for a step that finds no space", ready.len());
    disk.set_quota(1 << 30);
    store.inner.shared.space.measure(1 << 30);
    store.inner.shared.retry_stalled();
    while store.step() {}
    assert_eq!(log.ready_end().0, EntryIndex(count));
    assert_eq!(other.ready_end().0, EntryIndex(2));
    let bodies: Vec<Bytes> = read_all(&log, 10_000).into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies.len() as u64, count);
    assert_eq!(bodies.last(), Some(&data(count - 1, 2_000, 1, 1).body));
}

#[test]
fn more_than_a_group_waits_in_one_place_while_no_segment_can_be_made() {
    more_than_a_group_waits(false);
}

#[test]
fn more_than_a_group_waits_in_one_place_while_no_journal_can_be_made() {
    more_than_a_group_waits(true);
}
