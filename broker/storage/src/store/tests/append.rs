//! Appending and reading.

use super::*;
use crate::OsDisk;

/// What a log should hold.
#[derive(Default)]
struct Model {
    data: Vec<(EntryIndex, Offset, Bytes)>,
    all: Vec<(EntryIndex, EntryKind, Bytes)>,
    times: Vec<(u64, Offset)>,
}

/// Appends at random to several logs, in groups of random size, and compares every way of reading.
fn random_appends_read_back(disk: Arc<dyn Disk>, seed: u64, rounds: usize) {
    let mut random = SimRandom::new(seed);
    let store = start(disk, small_options());
    let classes = [Durability::Fsync, Durability::Memory, Durability::Fsync];
    let logs: Vec<Log> =
        (0..3).map(|n| store.create_log(key(n), classes[n as usize]).unwrap()).collect();
    let mut models: Vec<Model> = logs.iter().map(|_| Model::default()).collect();
    let mut time = 1000;
    for round in 0..rounds {
        let at = random.index(logs.len());
        time += random.below(3);
        let len = match random.below(4) {
            0 => random.index(20_000),
            1 => random.index(3_000),
            _ => random.index(200),
        };
        let entry = if random.one_in(4) {
            state(round as u64, len, time)
        } else {
            data(round as u64, len, 1 + u32::try_from(random.below(5)).unwrap(), time)
        };
        let (kind, body) = (entry.kind, entry.body.clone());
        let appended = match logs[at].append(entry) {
            Ok(appended) => appended,
            Err(AppendError::QueueFull) => {
                while store.step() {}
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let model = &mut models[at];
        model.all.push((appended.index, kind, body.clone()));
        if kind == EntryKind::Data {
            model.times.push((time, appended.base_offset));
            model.data.push((appended.index, appended.base_offset, body));
        }
        if random.one_in(6) {
            store.step();
        }
    }
    while store.step() {}
    assert_eq!(store.stats().queue_bytes, 0);
    for (log, model) in logs.iter().zip(&models) {
        assert_eq!(log.ready_end(), log.log_end());
        for max_bytes in [1, 500, 5_000, 64 << 10, 1 << 20] {
            assert!(read_all(log, max_bytes) == model.data, "seed {seed}, runs of {max_bytes}");
        }
        check_entries(log, model);
        for probe in 0..20 {
            let time = 1000 + random.below(time - 999);
            let expected = model.times.iter().find(|(at, _)| *at >= time);
            let expected = expected.map_or_else(|| log.ready_end().1, |(_, offset)| *offset);
            assert_eq!(log.offset_at(TimestampMs(time)).unwrap(), expected, "probe {probe}");
        }
        check_partial_reads(log, model, &mut random);
    }
    assert!(logs.iter().any(|log| log.segments().len() > 2), "nothing rolled");
    assert!(store.stats().direct_writes > 0, "nothing was written directly");
}

fn check_entries(log: &Log, model: &Model) {
    let mut next = EntryIndex(0);
    let mut found = Vec::new();
    while next < log.log_end().0 {
        let entries = log.entries(next, log.log_end().0, 10_000).unwrap();
        for entry in entries {
            entry.check_body().unwrap();
            next = entry.header.next_index();
            found.push((entry.header.index, entry.header.kind, entry.body));
        }
    }
    assert!(found == model.all);
}

/// Reads that begin inside an entry and stop at any watermark.
fn check_partial_reads(log: &Log, model: &Model, random: &mut SimRandom) {
    let end = log.ready_end().1.0;
    for _ in 0..200 {
        let from = Offset(random.below(end));
        let until = Offset(from.0 + 1 + random.below(end - from.0));
        let run = log.read(from, until, random.index(100_000)).unwrap();
        let starts = |offset: Offset| model.data.iter().any(|(_, base, _)| *base == offset);
        let holding = model.data.iter().rev().find(|(_, base, _)| *base <= from).unwrap();
        assert_eq!((run.first_index, run.first), (holding.0, holding.1));
        assert!(run.next > from);
        assert!(starts(run.next) || run.next.0 == end);
        // An entry that begins below the watermark comes whole.
        let last = model.data.iter().rev().find(|(_, base, _)| *base < run.next).unwrap();
        assert!(last.1 < until);
    }
}

#[test]
fn everything_appended_reads_back_in_order_on_the_simulated_disk() {
    for seed in 0..12 {
        random_appends_read_back(Arc::new(SimDisk::new(seed)), seed, 400);
    }
}

#[test]
fn everything_appended_reads_back_in_order_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    random_appends_read_back(Arc::new(OsDisk::create(dir.path()).unwrap()), 99, 1200);
}

#[test]
fn nothing_is_ready_before_its_group() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let calls = Arc::new(Calls::default());
    log.watch(calls.clone());
    store.set_observer(calls.clone());
    log.append(data(1, 100, 3, 5)).unwrap();
    assert_eq!(log.log_end(), (EntryIndex(1), Offset(3)));
    assert_eq!(log.ready_end(), (EntryIndex(0), Offset(0)));
    assert!(log.read(Offset(0), Offset(3), 1000).unwrap().slices.is_empty());
    assert!(store.step());
    assert_eq!(log.ready_end(), (EntryIndex(1), Offset(3)));
    assert_eq!(log.durable_end(), (EntryIndex(1), Offset(3)));
    assert_eq!(calls.advanced.load(Ordering::Relaxed), 1);
    assert_eq!(calls.rounds.load(Ordering::Relaxed), 1);
}

#[test]
fn idle_store_vouches_for_its_last_group_once() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    assert!(!store.step());
    log.append(data(1, 100, 1, 5)).unwrap();
    assert!(store.step());
    assert!(store.step(), "no mark");
    assert!(!store.step(), "a second mark");
    assert_eq!(store.stats().marks, 1);
}

#[test]
fn volatile_class_is_ready_without_a_sync_and_durable_after_one() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let memory = store.create_log(key(0), Durability::Memory).unwrap();
    let synced = store.create_log(key(1), Durability::Fsync).unwrap();
    memory.append(data(1, 100, 1, 5)).unwrap();
    assert!(store.step(), "the first group reserves numbers");
    while store.step() {}
    let syncs = store.stats().syncs;
    memory.append(data(2, 100, 1, 5)).unwrap();
    assert!(store.step());
    assert_eq!(store.stats().syncs, syncs);
    assert_eq!(memory.ready_end(), (EntryIndex(2), Offset(2)));
    assert_eq!(memory.durable_end(), (EntryIndex(1), Offset(1)));
    memory.append(data(3, 100, 1, 5)).unwrap();
    synced.append(data(3, 100, 1, 5)).unwrap();
    assert!(store.step());
    assert_eq!(memory.durable_end(), (EntryIndex(3), Offset(3)));
    assert_eq!(read_all(&memory, 1000).len(), 3);
}

#[test]
fn append_time_never_goes_back() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    assert_eq!(log.append(data(1, 10, 1, 100)).unwrap().append_time, TimestampMs(100));
    assert_eq!(log.append(data(1, 10, 1, 50)).unwrap().append_time, TimestampMs(100));
}

#[test]
fn queue_bound_pushes_back_and_recovers() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    let refused = (0..1000).find_map(|n| log.append(data(n, 8_000, 1, 1)).err());
    assert_eq!(refused, Some(AppendError::QueueFull));
    while store.step() {}
    assert!(log.append(data(1, 8_000, 1, 1)).is_ok());
}

#[test]
fn entry_larger_than_a_segment_is_refused() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    assert_eq!(log.append(data(1, 200 << 10, 1, 1)), Err(AppendError::TooLarge));
    assert_eq!(store.stats().queue_bytes, 0);
    log.append(data(1, 100 << 10, 1, 1)).unwrap();
    while store.step() {}
    assert_eq!(read_all(&log, 1000).len(), 1);
}

#[test]
fn dropped_log_refuses_appends_and_gives_its_files_back() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    for n in 0..10 {
        log.append(data(n, 4_000, 1, 1)).unwrap();
        while store.step() {}
    }
    let files = store.stats().segment_files_new;
    log.append(data(1, 4_000, 1, 1)).unwrap();
    store.drop_log(key(0));
    assert_eq!(log.append(data(1, 10, 1, 1)), Err(AppendError::Dropped));
    while store.step() {}
    assert_eq!(store.stats().queue_bytes, 0);
    assert!(store.stats().recyclable_bytes > 0);
    let again = store.create_log(key(0), Durability::Fsync).unwrap();
    assert_eq!(again.log_end(), (EntryIndex(0), Offset(0)));
    again.append(data(5, 4_000, 1, 1)).unwrap();
    while store.step() {}
    assert_eq!(store.stats().segment_files_new, files);
    assert_eq!(read_all(&again, 1000).len(), 1);
}

#[test]
fn large_groups_are_written_once_and_small_ones_through_the_journal() {
    let store = start(Arc::new(SimDisk::new(1)), small_options());
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    log.append(data(1, 100, 1, 1)).unwrap();
    while store.step() {}
    let before = store.stats();
    log.append(data(1, 1_000, 1, 1)).unwrap();
    store.step();
    let small = store.stats();
    assert_eq!(small.direct_writes, before.direct_writes);
    assert!(small.journal_bytes - before.journal_bytes > 1_000);
    // Fits the segment: no roll, hence nothing for the journal.
    for n in 0..4 {
        log.append(data(n, 16 << 10, 1, 1)).unwrap();
        while store.step() {}
    }
    let large = store.stats();
    assert_eq!(large.direct_writes, small.direct_writes + 4);
    assert!(large.journal_bytes - small.journal_bytes < 16 << 10);
}
