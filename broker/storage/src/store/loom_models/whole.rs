//! The whole store: its groups beside readers, appenders and maintenance.

use std::io;
use std::sync::Arc;

use loom::thread;
use postrider_protocol::entry::EntryViews;
use postrider_protocol::types::{Durability, Offset, TimestampMs};

use super::disk::ModelDisk;
use super::{explore, key, message, store};
use crate::store::{Log, LogWatcher, Store};
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};

/// Reads everything that is ready from `from` on, and looks at every byte of it.
fn read_ready(log: &Log, mut from: Offset) -> Offset {
    let ready = log.ready_end().1;
    while from < ready {
        let run = log.read(from, ready, 1 << 20).unwrap();
        let mut offset = run.first;
        for slice in &run.slices {
            for view in EntryViews::new(slice) {
                let view = view.unwrap();
                view.check_body().unwrap();
                assert_eq!(view.header.base_offset, offset);
                offset = view.header.end_offset();
            }
        }
        assert_eq!(offset, run.next);
        from = run.next;
    }
    ready
}

/// A group with entries of `len` bytes beside a reader of the log.
fn read_beside_a_group(first_len: usize, len: usize) {
    explore(move || {
        let store = store(&ModelDisk::default());
        let log = store.create_log(key(0), Durability::Fsync).unwrap();
        log.append(message(first_len)).unwrap();
        assert!(store.step());
        log.append(message(len)).unwrap();
        let writer = {
            let store = store.clone();
            thread::spawn(move || assert!(store.step()))
        };
        read_ready(&log, Offset(0));
        writer.join().unwrap();
        assert_eq!(read_ready(&log, Offset(0)), Offset(2));
    });
}

#[test]
fn reader_beside_a_group_in_the_journal_sees_whole_entries() {
    read_beside_a_group(100, 100);
}

#[test]
fn reader_beside_a_group_written_directly_sees_whole_entries() {
    read_beside_a_group(100, 5_000);
}

#[test]
fn reader_beside_a_roll_sees_whole_entries() {
    read_beside_a_group(6_000, 6_000);
}

/// Wakes a thread that waits for a log.
#[derive(Default)]
struct Alarm {
    advanced: Mutex<u32>,
    bell: Condvar,
}

impl LogWatcher for Alarm {
    fn advanced(&self) {
        *self.advanced.lock() += 1;
        self.bell.notify_one();
    }
}

#[test]
fn no_append_is_left_behind_by_the_io_thread() {
    explore(|| {
        let store = store(&ModelDisk::default());
        let log = store.create_log(key(0), Durability::Fsync).unwrap();
        let alarm = Arc::new(Alarm::default());
        log.watch(Arc::clone(&alarm) as Arc<dyn LogWatcher>);
        let io = {
            let store = store.clone();
            thread::spawn(move || store.run_io())
        };
        log.append(message(100)).unwrap();
        log.append(message(100)).unwrap();
        let mut advanced = alarm.advanced.lock();
        while log.ready_end().1 < Offset(2) {
            // An append that nobody takes leaves this thread asleep: a deadlock for loom.
            advanced = alarm.bell.wait(advanced);
        }
        drop(advanced);
        store.inner.shared.queue.stop();
        io.join().unwrap();
    });
}

/// Fails the syncs of files whose path begins so.
fn fail_sync(disk: &ModelDisk, begin: &'static str) {
    disk.on_sync(
        move |path| {
            if path.starts_with(begin) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        },
    );
}

#[test]
fn nothing_of_a_group_whose_sync_fails_is_reported_or_accepted_later() {
    explore(|| {
        let disk = ModelDisk::default();
        let store = store(&disk);
        let log = store.create_log(key(0), Durability::Fsync).unwrap();
        log.append(message(100)).unwrap();
        fail_sync(&disk, "journal/");
        let writer = {
            let store = store.clone();
            thread::spawn(move || while store.step() {})
        };
        let failed = store.failed().is_some();
        let accepted = log.append(message(100)).is_ok();
        assert!(!(failed && accepted), "an append after the failure");
        assert_eq!(log.ready_end().1, Offset(0));
        writer.join().unwrap();
        assert!(!store.step());
        assert_eq!(log.ready_end().1, Offset(0));
        assert_eq!(log.durable_end().1, Offset(0));
        assert!(log.append(message(100)).is_err());
    });
}

#[test]
fn sync_that_succeeds_after_another_failed_confirms_nothing() {
    explore(|| {
        let disk = ModelDisk::default();
        let store = store(&disk);
        let log = store.create_log(key(0), Durability::Fsync).unwrap();
        log.append(message(100)).unwrap();
        assert!(store.step());
        let was_poisoned = Arc::new(AtomicBool::new(false));
        log.append(message(100)).unwrap();
        hook_journal_sync(&disk, &store, &was_poisoned);
        let maintenance = {
            let store = store.clone();
            store.checkpoint();
            thread::spawn(move || store.maintain(TimestampMs(1)))
        };
        store.step();
        let confirmed = log.ready_end().1 == Offset(2);
        assert!(!(confirmed && was_poisoned.load(Ordering::Relaxed)), "confirmed after a failure");
        maintenance.join().unwrap();
        assert!(store.failed().is_some());
    });
}

/// The checkpoint's sync of the segment fails. The group's sync of the journal works, and notes whether
/// the failure was known when it returned.
fn hook_journal_sync(disk: &ModelDisk, store: &Store, was_poisoned: &Arc<AtomicBool>) {
    let (shared, was_poisoned) = (Arc::downgrade(&store.inner.shared), Arc::clone(was_poisoned));
    disk.on_sync(move |path| {
        if path.starts_with("segments/") {
            return Err(io::ErrorKind::Other.into());
        }
        if let Some(shared) = shared.upgrade() {
            was_poisoned.store(shared.poison.is_set(), Ordering::Relaxed);
        }
        Ok(())
    });
}
