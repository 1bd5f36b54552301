//! What a store finds when it is opened again.

use super::*;
use crate::OsDisk;
use crate::disk_sim::CrashKind;

fn settle(store: &Store) {
    while store.step() {}
}

fn opened(disk: Arc<dyn Disk>) -> (Store, Vec<OpenedLog>) {
    let opened = Store::open(disk, small_options()).unwrap();
    assert!(!opened.doubtful);
    (opened.store, opened.logs)
}

type Read = Vec<(EntryIndex, Offset, Bytes)>;

/// Appends to two logs and returns what they hold.
fn fill(store: &Store, rounds: u64, first: u64) -> [Read; 2] {
    let logs = [0, 1].map(|n| store.create_log(key(n), Durability::Fsync).unwrap());
    for n in first..first + rounds {
        for log in &logs {
            log.append(data(n, 500 + 700 * usize_of(n % 40), 2, n)).unwrap();
            log.append(state(n, 30, n)).unwrap();
            if n % 3 == 0 {
                settle(store);
            }
        }
        if n % 20 == 19 {
            store.maintain(TimestampMs(n * 1000));
        }
    }
    settle(store);
    logs.map(|log| read_all(&log, 10_000))
}

#[test]
fn everything_ready_survives_any_crash_and_appends_go_on() {
    for kind in [None, Some(CrashKind::Process), Some(CrashKind::Power)] {
        for seed in 0..10 {
            let disk = SimDisk::new(seed);
            let mut life = disk.clone();
            for round in 0..4 {
                let (store, logs) = opened(Arc::new(life.clone()));
                assert_eq!(logs.len(), if round == 0 { 0 } else { 2 });
                let before = fill(&store, 25, round * 25);
                match kind {
                    None => store.close().unwrap(),
                    Some(kind) => disk.crash(kind),
                }
                drop((store, logs));
                life = disk.reopen();
                let (store, logs) = opened(Arc::new(life.clone()));
                for (log, before) in logs.iter().zip(&before) {
                    assert!(read_all(&log.log, 10_000) == *before, "{kind:?} {seed} {round}");
                    assert!(log.damages.is_empty());
                    let last = log.log.offset_at(TimestampMs(round * 25 + 24)).unwrap();
                    assert_eq!(last.0 + 2, log.log.ready_end().1.0);
                }
                store.close().unwrap();
                drop((store, logs));
                life = disk.reopen();
            }
        }
    }
}

#[test]
fn real_directory_opens_again_after_close_and_without() {
    let dir = tempfile::tempdir().unwrap();
    for (round, close) in [false, true, false].into_iter().enumerate() {
        let disk = Arc::new(OsDisk::create(dir.path()).unwrap());
        let (store, logs) = opened(disk);
        drop(logs);
        let before = fill(&store, 60, round as u64 * 60);
        if close {
            store.close().unwrap();
        }
        drop(store);
        let (_store, logs) = opened(Arc::new(OsDisk::create(dir.path()).unwrap()));
        for (log, before) in logs.iter().zip(&before) {
            assert!(read_all(&log.log, 10_000) == *before, "round {round}");
        }
    }
}

#[test]
fn second_store_on_a_directory_is_refused() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    let store = start(Arc::clone(&disk), small_options());
    assert!(matches!(Store::open(disk, small_options()).err(), Some(OpenError::InUse)));
    drop(store);
}

#[test]
fn snapshots_come_back_and_a_damaged_one_gives_way_to_the_older() {
    let disk = SimDisk::new(1);
    let (store, _) = opened(Arc::new(disk.clone()));
    let log = store.create_log(key(0), Durability::Fsync).unwrap();
    for n in 1..=2_u8 {
        log.append(data(u64::from(n), 100, 1, 1)).unwrap();
        settle(&store);
        assert!(log.write_snapshot(EntryIndex(u64::from(n)), Bytes::from(vec![n; 2000])));
        store.maintain(TimestampMs(0));
    }
    store.close().unwrap();
    drop((store, log));
    let disk = disk.reopen();
    let (store, logs) = opened(Arc::new(disk.clone()));
    let found = logs[0].snapshot.as_ref().unwrap();
    assert_eq!((found.0, &found.1[..3]), (EntryIndex(2), &[2, 2, 2][..]));
    drop((store, logs));
    disk.flip(&names::pack(1), 1000, 1);
    let (_store, logs) = opened(Arc::new(disk.reopen()));
    let found = logs[0].snapshot.as_ref().unwrap();
    assert_eq!((found.0, &found.1[..3]), (EntryIndex(1), &[1, 1, 1][..]));
    assert_eq!(logs[0].log.snapshot_index(), Some(EntryIndex(1)));
}

#[test]
fn dropped_log_stays_dropped_and_trimmed_entries_stay_trimmed() {
    let disk = SimDisk::new(1);
    let (store, _) = opened(Arc::new(disk.clone()));
    fill(&store, 40, 0);
    let log = store.create_log(key(1), Durability::Fsync).unwrap();
    store.drop_log(key(0));
    let start = log.segments()[1].base;
    log.trim(start);
    settle(&store);
    disk.crash(CrashKind::Power);
    let (_store, logs) = opened(Arc::new(disk.reopen()));
    assert_eq!(logs.len(), 1);
    assert_eq!((logs[0].log.key(), logs[0].log.log_start()), (key(1), start));
}

#[test]
fn offsets_of_a_lost_volatile_tail_are_reported_and_never_used_again() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (store, _) = opened(Arc::new(disk.clone()));
        let log = store.create_log(key(0), Durability::Memory).unwrap();
        for n in 0..40 {
            log.append(data(n, 1_000, 1, 1)).unwrap();
            settle(&store);
        }
        let used = log.log_end();
        disk.crash(CrashKind::Power);
        let (store, logs) = opened(Arc::new(disk.reopen()));
        let log = &logs[0].log;
        let again = log.append(data(9, 100, 1, 1)).unwrap();
        assert!(again.base_offset >= used.1 && again.index >= used.0);
        settle(&store);
        let damage = log.damages()[0];
        assert_eq!(damage.end_offset, again.base_offset);
        let run = log.read(again.base_offset, log.ready_end().1, 1000).unwrap();
        assert_eq!(run.records, 1);
        let lost = log.read(damage.from_offset, log.ready_end().1, 1000);
        assert!(matches!(lost, Err(crate::ReadError::Damaged(found)) if found == damage));
    }
}
