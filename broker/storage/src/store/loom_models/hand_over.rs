//! The small parts that threads meet in, one by one.

use std::io::IoSlice;
use std::sync::Arc;

use loom::thread;
use postrider_protocol::types::{EntryIndex, Offset};

use super::disk::ModelDisk;
use super::explore;
use crate::format::segment::ENTRIES_START;
use crate::store::cursor::{Cursor, End};
use crate::store::files::SegmentFiles;
use crate::store::index::EntryPlace;
use crate::store::queue::{Bell, Wakeup, WorkQueue};
use crate::store::segment::{Files, MapError, Segment, SegmentFacts};
use crate::sync::{AtomicU64, Ordering};

fn end(n: u64) -> End {
    (EntryIndex(n), Offset(10 * n))
}

#[test]
fn cursor_is_read_whole_and_never_goes_back() {
    explore(|| {
        let cursor = Arc::new(Cursor::new(end(0)));
        let writer = {
            let cursor = Arc::clone(&cursor);
            thread::spawn(move || {
                cursor.store(end(1));
                cursor.store(end(2));
            })
        };
        let (first, second) = (cursor.load(), cursor.load());
        for seen in [first, second] {
            assert_eq!(seen.1.0, 10 * seen.0.0, "halves of two ends");
        }
        assert!(first <= second);
        writer.join().unwrap();
        assert_eq!(cursor.load(), end(2));
    });
}

#[test]
fn cursor_publishes_what_was_written_before() {
    explore(|| {
        let cursor = Arc::new(Cursor::new(end(0)));
        let written = Arc::new(AtomicU64::new(0));
        let writer = {
            let (cursor, written) = (Arc::clone(&cursor), Arc::clone(&written));
            thread::spawn(move || {
                written.store(1, Ordering::Relaxed);
                cursor.store(end(1));
            })
        };
        if cursor.load() == end(1) {
            assert_eq!(written.load(Ordering::Relaxed), 1);
        }
        writer.join().unwrap();
    });
}

#[test]
fn no_wake_up_of_the_work_queue_is_lost() {
    explore(|| {
        let queue = Arc::new(WorkQueue::<u32, u32>::new(1 << 20));
        let push = |item: u32| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(item))
        };
        let (first, second) = (push(1), push(2));
        let mut taken = Vec::new();
        // A wake-up that is lost leaves this thread asleep, which loom reports as a deadlock.
        while taken.len() < 2 {
            assert_eq!(queue.wait(None), Wakeup::Work);
            taken.extend(queue.take().0);
        }
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn order_kick_and_stop_each_wake_the_sleeping_thread() {
    let rings: [fn(&WorkQueue<u32, u32>); 3] =
        [|queue| queue.order(1), WorkQueue::kick, WorkQueue::stop];
    for ring in rings {
        explore(move || {
            let queue = Arc::new(WorkQueue::<u32, u32>::new(1 << 20));
            let ringer = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || ring(&queue))
            };
            queue.wait(None);
            ringer.join().unwrap();
        });
    }
}

#[test]
fn bell_that_rings_before_or_beside_the_wait_is_heard() {
    explore(|| {
        let bell = Arc::new(Bell::default());
        let ringer = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || bell.ring())
        };
        assert_eq!(bell.wait(std::time::Duration::MAX), Wakeup::Work);
        ringer.join().unwrap();
    });
}

/// A segment with one entry in it, and its file.
fn written_segment(files: &Files, pool: &SegmentFiles) -> Arc<Segment> {
    let taken = pool.take(&*files.disk, 16 << 10).unwrap();
    taken.handle.write_at(0, &[IoSlice::new(&[1; 8192])]).unwrap();
    let facts = SegmentFacts {
        file: taken.file,
        file_len: taken.len,
        seq: 1,
        salt: 1,
        sparse: false,
        base: end(0),
        base_chain_crc: 0,
    };
    let segment = Arc::new(Segment::fresh(facts, taken.handle));
    segment.extend(&[place()], place().end());
    segment
}

fn place() -> EntryPlace {
    EntryPlace {
        index: EntryIndex(0),
        offset: Offset(0),
        end_offset: Offset(1),
        time: postrider_protocol::types::TimestampMs(0),
        leader_epoch: 1,
        data: true,
        position: ENTRIES_START,
        len: 512,
    }
}

/// One thread releases a segment and writes its file for another use, while a reader takes a slice,
/// perhaps loses the mapping in between, and reads the slice at leisure.
fn rewrite_beside_a_reader(between: fn(&Segment)) {
    explore(move || {
        let disk = ModelDisk::default();
        let files = Arc::new(Files::new(Arc::new(disk.clone()), 8, 8));
        let pool = Arc::new(SegmentFiles::new(Vec::new(), 0));
        let segment = written_segment(&files, &pool);
        let file = disk.file("segments/00000000");
        let reader = {
            let (segment, files) = (Arc::clone(&segment), Arc::clone(&files));
            thread::spawn(move || {
                let range = ENTRIES_START..ENTRIES_START + 512;
                match segment.map(&files) {
                    Ok(hold) => {
                        let slice = hold.slice(range.clone());
                        drop(hold);
                        between(&segment);
                        file.touch(&range);
                        drop(slice);
                    }
                    Err(MapError::Retired) => {}
                    Err(MapError::Io(error)) => panic!("{error}"),
                }
            })
        };
        pool.release(&segment);
        let taken = pool.take(&*files.disk, 16 << 10).unwrap();
        // The same file when nobody reads it any more, else a new one.
        taken.handle.write_at(0, &[IoSlice::new(&[2; 8192])]).unwrap();
        reader.join().unwrap();
        // The slice is gone in any case: now the old file comes back.
        if taken.file != segment.facts.file {
            let again = pool.take(&*files.disk, 16 << 10).unwrap();
            assert_eq!(again.file, segment.facts.file);
            again.handle.write_at(0, &[IoSlice::new(&[3; 8192])]).unwrap();
        }
    });
}

#[test]
fn file_is_not_written_again_while_a_slice_is_held() {
    rewrite_beside_a_reader(|_segment| {});
}

#[test]
fn file_is_not_written_again_while_a_slice_of_a_closed_mapping_is_held() {
    rewrite_beside_a_reader(Segment::unmap);
}
