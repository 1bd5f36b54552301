//! Segments given up in the middle, and written again in part.

use super::*;
use crate::format::segment::{ENTRIES_START, SegmentHeader};
use crate::{Keep, ReadError, Vacancy};

fn settle(store: &Store) {
    while store.step() {}
}

fn checkpoint(store: &Store) {
    settle(store);
    store.checkpoint();
    store.maintain(TimestampMs(1));
    settle(store);
}

/// A log of so many entries with two messages each, of which no snapshot needs anything.
fn filled(store: &Store, entries: u64) -> Log {
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    for n in 0..entries {
        log.append(data(n, 1_000, 2, n)).unwrap();
        settle(store);
    }
    for state in ["a", "b"] {
        assert!(log.write_snapshot(log.ready_end().0, Bytes::from_static(state.as_bytes())));
        checkpoint(store);
    }
    for _ in 0..names::MANIFEST_SLOTS {
        checkpoint(store);
    }
    assert_eq!(log.unneeded_below(), log.log_end().0);
    log
}

/// The offsets that can be read, and the vacancies between.
fn offsets(log: &Log) -> (Vec<u64>, Vec<Vacancy>) {
    let (mut at, mut found, mut vacant) = (log.log_start().1, Vec::new(), Vec::new());
    while at < log.ready_end().1 {
        match log.read(at, log.ready_end().1, 5_000) {
            Ok(run) => {
                found.extend(run.first.0..run.next.0);
                at = run.next;
            }
            Err(ReadError::Vacant(vacancy)) => {
                vacant.push(vacancy);
                at = vacancy.end_offset;
            }
            Err(error) => panic!("{at}: {error}"),
        }
    }
    (found, vacant)
}

#[test]
fn vacated_segment_gives_its_file_back_and_offsets_stay() {
    let disk = SimDisk::new(1);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = filled(&store, 300);
    let segments = log.segments();
    let gone = segments[2];
    assert!(!log.vacate(segments.last().unwrap().seq), "the last segment stays");
    assert!(log.vacate(gone.seq));
    assert!(!log.vacate(gone.seq), "once is enough");
    assert_eq!(log.segments().len(), segments.len(), "not before the record is synced");
    let before = store.stats().recyclable_bytes;
    settle(&store);
    assert_eq!(log.segments().len(), segments.len() - 1);
    assert_eq!(store.stats().recyclable_bytes, before + gone.bytes);
    let expected = Vacancy::new(gone.base, gone.end);
    let (found, vacant) = offsets(&log);
    assert_eq!(vacant, [expected]);
    let kept = |offset: &u64| !expected.holds_offset(Offset(*offset));
    assert_eq!(found, (0..600).filter(kept).collect::<Vec<_>>());
    let inside = log.entries(gone.base.0, gone.end.0, 1);
    assert!(matches!(inside, Err(ReadError::Vacant(vacancy)) if vacancy == expected));
    // The neighbour goes too: one vacancy, through a stop in order and without.
    assert!(log.vacate(segments[3].seq));
    settle(&store);
    let both = vec![Vacancy::new(gone.base, segments[3].end)];
    assert_eq!(offsets(&log).1, both);
    store.close().unwrap();
    drop((store, log));
    let opened = Store::open(Arc::new(disk.clone()), small_options()).unwrap();
    assert_eq!(offsets(&opened.logs[0].log).1, both);
    assert!(crate::check(&disk).is_sound());
}

#[test]
fn rewritten_segment_holds_what_is_live_and_readers_keep_what_they_have() {
    let disk = SimDisk::new(2);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = filled(&store, 600);
    let segments = log.segments();
    let old = *segments.iter().rev().find(|at| at.sealed && at.bytes == 128 << 10).unwrap();
    let held = log.read(old.base.1, old.end.1, 5_000).unwrap();
    let bytes: Vec<Bytes> = held.slices.iter().map(|slice| Bytes::copy_from_slice(slice)).collect();
    let middle = Offset(old.base.1.0 + 41);
    let keep = Keep {
        messages: vec![middle..Offset(middle.0 + 1)],
        entries: vec![EntryIndex(old.end.0.0 - 2)..EntryIndex(old.end.0.0 - 1)],
    };
    assert!(log.rewrite(old.seq, keep.clone()));
    store.maintain(TimestampMs(2));
    settle(&store);
    let new = *log.segments().iter().find(|segment| segment.seq == old.seq).unwrap();
    assert!(new.sparse && new.bytes <= 8 << 10 && new.base == old.base && new.end == old.end);
    let (found, vacant) = offsets(&log);
    assert_eq!(vacant.len(), 3);
    // Whole entries of two messages.
    let live = |offset: &u64| {
        let first = middle.0 - middle.0 % 2;
        let inside = (old.base.1.0..old.end.1.0).contains(offset);
        let last = old.end.1.0 - 4;
        !inside || (first..first + 2).contains(offset) || (last..last + 2).contains(offset)
    };
    assert_eq!(found, (0..1_200).filter(live).collect::<Vec<_>>());
    assert_eq!(store.stats().pinned_bytes, old.bytes, "a reader holds the old file");
    assert_eq!(held.slices, bytes, "what was read does not change");
    drop(held);
    assert!(!log.rewrite(old.seq, keep) || store.stats().segments_rewritten == 1);
    let (power, copy) = (crate::disk_sim::CrashKind::Power, offsets(&log));
    drop((store, log));
    disk.crash(power);
    let opened = Store::open(Arc::new(disk.reopen()), small_options()).unwrap();
    assert_eq!(offsets(&opened.logs[0].log), copy);
}

#[test]
fn segment_that_is_mostly_live_is_not_written_again() {
    let store = start(Arc::new(SimDisk::new(3)), small_options());
    let log = filled(&store, 600);
    let segments = log.segments();
    let old = *segments.iter().rev().find(|at| at.sealed && at.bytes == 128 << 10).unwrap();
    let part = (old.end.1.0 - old.base.1.0) * 2 / 5;
    let keep = |count| Keep {
        messages: vec![old.base.1..Offset(old.base.1.0 + count)],
        entries: Vec::new(),
    };
    assert!(log.rewrite(old.seq, keep(part)));
    store.maintain(TimestampMs(2));
    settle(&store);
    assert!(!log.rewrite(old.seq, keep(part - 1)), "asked again only when half of it is left");
    assert!(log.rewrite(old.seq, keep(part / 2)));
    store.maintain(TimestampMs(3));
    settle(&store);
    assert_eq!(store.stats().segments_rewritten, 1);
}

#[test]
fn damaged_entry_keeps_its_segment_as_it_is() {
    let disk = SimDisk::new(4);
    let store = start(Arc::new(disk.clone()), small_options());
    let log = filled(&store, 600);
    let segments = log.segments();
    let old = *segments.iter().rev().find(|at| at.sealed && at.bytes == 128 << 10).unwrap();
    store.close().unwrap();
    drop((store, log));
    let files = disk.files().into_iter();
    let of_old = |bytes: &[u8]| SegmentHeader::decode(bytes).map(|header| header.base_index);
    let (path, _) = files
        .filter(|(path, _)| path.ends_with(".seg"))
        .find(|(_, bytes)| of_old(bytes) == Ok(old.base.0))
        .unwrap();
    // In the body of its first entry.
    disk.flip(&path, ENTRIES_START + 100, 1);
    let opened = Store::open(Arc::new(disk), small_options()).unwrap();
    let (store, log) = (opened.store, opened.logs[0].log.clone());
    for state in ["c", "d"] {
        log.append(data(1, 10, 1, 999)).unwrap();
        settle(&store);
        assert!(log.write_snapshot(log.ready_end().0, Bytes::from_static(state.as_bytes())));
        checkpoint(&store);
    }
    for _ in 0..names::MANIFEST_SLOTS {
        checkpoint(&store);
    }
    let keep = Keep { messages: vec![old.base.1..Offset(old.base.1.0 + 4)], entries: Vec::new() };
    assert!(log.rewrite(old.seq, keep.clone()));
    store.maintain(TimestampMs(2));
    settle(&store);
    assert_eq!(store.stats().segments_rewritten, 0);
    assert_eq!(log.segments().len(), segments.len());
    assert!(!log.rewrite(old.seq, keep), "and is not tried again");
}
