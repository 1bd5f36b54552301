//! What the running store promises, on the simulated disk and on a real one.

mod append;
mod failure;
mod maintenance;
mod reopen;
mod thin;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use postrider_protocol::entry::{EntryKind, EntryViews};
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId,
};

use super::log::usize_of;
use super::*;
use crate::StoreError;
use crate::disk_sim::{SimDisk, SimRandom};
use crate::format::names;

/// Options small enough that a few entries reach every limit.
pub(super) fn small_options() -> StoreOptions {
    StoreOptions {
        segment_bytes_min: 16 << 10,
        segment_bytes_max: 128 << 10,
        journal_bytes_min: 32 << 10,
        journal_bytes_max: 128 << 10,
        group_bytes_max: 64 << 10,
        queue_bytes_max: 256 << 10,
        direct_write_bytes: 16 << 10,
        direct_files_max: 2,
        reserve_bytes: 128 << 10,
        open_files_max: 3,
        map_max: 3,
        ..StoreOptions::default()
    }
}

pub(super) fn key(partition: u32) -> LogKey {
    LogKey { topic: TopicId([7; 16]), partition: PartitionId(partition) }
}

pub(super) fn start(disk: Arc<dyn Disk>, options: StoreOptions) -> Store {
    Store::open(disk, options).unwrap().store
}

pub(super) fn data(seed: u64, len: usize, records: u32, time: u64) -> NewEntry {
    let byte = |at: usize| u8::try_from((usize_of(seed) + at) % 251).unwrap();
    let body: Bytes = (0..len).map(byte).collect::<Vec<u8>>().into();
    NewEntry {
        kind: EntryKind::Data,
        flags: 0,
        leader_epoch: LeaderEpoch(1),
        append_time: TimestampMs(time),
        record_count: records,
        seq_count: records,
        body_crc: crc32fast::hash(&body),
        body,
        trailer: Bytes::new(),
    }
}

pub(super) fn state(seed: u64, len: usize, time: u64) -> NewEntry {
    NewEntry { kind: EntryKind::Seek, record_count: 0, seq_count: 0, ..data(seed, len, 1, time) }
}

/// Every message of a log, read in runs of about `max_bytes`, as {index, offset, body}.
pub(super) fn read_all(log: &Log, max_bytes: usize) -> Vec<(EntryIndex, Offset, Bytes)> {
    let mut from = log.log_start().1;
    let until = log.ready_end().1;
    let mut found = Vec::new();
    while from < until {
        let run = log.read(from, until, max_bytes).unwrap();
        assert!(run.next > from, "no progress at {from}");
        let mut records = 0;
        for slice in &run.slices {
            for view in EntryViews::new(slice) {
                let view = view.unwrap();
                view.check_body().unwrap();
                assert_eq!(view.header.kind, EntryKind::Data);
                assert!(view.header.end_offset() <= until);
                records += u64::from(view.header.record_count);
                let body = Bytes::copy_from_slice(view.body);
                found.push((view.header.index, view.header.base_offset, body));
            }
        }
        assert_eq!(records, run.records);
        assert_eq!(run.next.0, run.first.0 + run.records);
        from = run.next;
    }
    found
}

/// Counts calls.
#[derive(Default)]
pub(super) struct Calls {
    pub(super) advanced: AtomicU64,
    pub(super) rounds: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl LogWatcher for Calls {
    fn advanced(&self) {
        self.advanced.fetch_add(1, Ordering::Relaxed);
    }
}

impl StoreObserver for Calls {
    fn round_done(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }
    fn failed(&self, _error: &StoreError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}
