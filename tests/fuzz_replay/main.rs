//! Replays the fuzz corpora and seeded mutations of them: what the fuzzer once found stays found, and
//! every build is fuzzed a little.
//!
//! `POSTRIDER_FUZZ_MUTATIONS` sets how many mutations each target gets, `UPDATE_CORPUS=1` writes the
//! directories in `fuzz/corpus/recovery` anew. A failing input is written to the temporary directory,
//! and its name is in the panic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId,
};
use postrider_storage::disk_sim::CrashKind;
use postrider_storage::{Disk, Log, LogKey, NewEntry, SimDisk, Store, recover};
use postrider_tests::fuzz::mutate::{Random, mutate};
use postrider_tests::fuzz::{TARGETS, Target, crc32, pack_directory, small_options};

/// Mutations per target unless the environment says otherwise.
const MUTATIONS: usize = 20_000;

fn mutations() -> usize {
    std::env::var("POSTRIDER_FUZZ_MUTATIONS")
        .map_or(MUTATIONS, |count| count.parse().expect("POSTRIDER_FUZZ_MUTATIONS is a count"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The inputs of a target, in the order of their names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = root().join("fuzz/corpus").join(target);
    let files =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} holds nothing", folder.display());
    inputs
}

/// Directories that a server might have left, as inputs of the recovery target.
fn seed_directories() {
    let disk = SimDisk::new(1);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    recover(&shared, &small_options()).unwrap();
    write_seed("fresh", &disk);
    for (name, class) in [("fsync", Durability::Fsync), ("memory", Durability::Memory)] {
        let disk = SimDisk::new(1);
        let store = busy_store(&disk, class);
        write_seed(&format!("{name}-killed"), &disk);
        store.maintain(TimestampMs(1_000_000));
        while store.step() {}
        write_seed(&format!("{name}-checkpointed"), &disk);
        store.close().unwrap();
        write_seed(&format!("{name}-closed"), &disk);
        let disk = SimDisk::new(1);
        let store = busy_store(&disk, class);
        disk.crash(CrashKind::Power);
        let disk = disk.reopen();
        drop(store);
        write_seed(&format!("{name}-power-lost"), &disk);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        recover(&shared, &small_options()).unwrap();
        write_seed(&format!("{name}-recovered"), &disk);
    }
}

/// A store with a checkpoint, a snapshot, a trimmed log, a dropped one, and groups of both ways of
/// writing above the checkpoint.
fn busy_store(disk: &SimDisk, class: Durability) -> Store {
    let opened = Store::open(Arc::new(disk.clone()), small_options()).unwrap();
    let store = opened.store;
    let key = |partition| LogKey { topic: TopicId([7; 16]), partition: PartitionId(partition) };
    let (kept, dropped) =
        (store.create_log(key(1), class).unwrap(), store.create_log(key(2), class).unwrap());
    let append = |log: &Log, len: usize| {
        log.append(entry(len)).unwrap();
        while store.step() {}
    };
    (0..4).for_each(|_| append(&kept, 700));
    append(&dropped, 100);
    kept.write_snapshot(EntryIndex(2), Bytes::from_static(b"a state"));
    store.checkpoint();
    while store.maintain(TimestampMs(10_000)) || store.step() {}
    kept.trim((EntryIndex(1), Offset(1)));
    append(&kept, 40);
    append(&kept, 2_500);
    store.drop_log(key(2));
    append(&kept, 90);
    store
}

fn entry(len: usize) -> NewEntry {
    let body = Bytes::from(vec![5; len]);
    NewEntry {
        kind: EntryKind::Data,
        flags: 0,
        leader_epoch: LeaderEpoch(1),
        append_time: TimestampMs(1),
        record_count: 1,
        seq_count: 1,
        body_crc: crc32(&body),
        body,
        trailer: Bytes::new(),
    }
}

fn write_seed(name: &str, disk: &SimDisk) {
    let input = pack_directory(&disk.files());
    std::fs::write(root().join("fuzz/corpus/recovery").join(name), input).unwrap();
}

/// Runs the target; keeps the input if it fails.
fn run(name: &str, target: Target, input: &[u8], from: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let path = std::env::temp_dir().join(format!("fuzz-{name}-{:08x}", crc32(input)));
        std::fs::write(&path, input).unwrap();
        panic!("{name} fails on {from}; the input is {}", path.display());
    }
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let inputs = corpus(name);
    for (file, input) in &inputs {
        run(name, *target, input, file);
    }
    let mut random = Random::new(u64::from(crc32(name.as_bytes())));
    for number in 0..mutations() {
        let (file, input) = &inputs[random.below(inputs.len())];
        let other = &inputs[random.below(inputs.len())].1;
        let mut mutated = input.clone();
        mutate(&mut mutated, other, &mut random);
        run(name, *target, &mutated, &format!("mutation {number}, of {file}"));
    }
}

#[test]
fn frames_hold() {
    replay("frame");
}

#[test]
fn messages_hold() {
    replay("message");
}

#[test]
fn batches_hold() {
    replay("batch");
}

#[test]
fn entries_hold() {
    replay("entry");
}

#[test]
fn recoveries_hold() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        seed_directories();
    }
    replay("recovery");
}

#[test]
fn the_same_seed_gives_the_same_mutations() {
    let mutations = || {
        let mut random = Random::new(7);
        let mut input = b"the same input".to_vec();
        (0..100).for_each(|_| mutate(&mut input, b"another", &mut random));
        input
    };
    assert_eq!(mutations(), mutations());
}
