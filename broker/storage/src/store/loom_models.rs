//! Models of every hand-over between the store's threads, run by loom: all interleavings and all
//! allowed memory orders, of the production types, up to a number of preemptions.
//!
//! Where the store is whole, its disk is [`disk::ModelDisk`], which tells loom about every access to a
//! file's bytes: a read that is not ordered after its write, or a rewrite not ordered after the last
//! read, fails the model.

mod disk;
mod hand_over;
mod whole;

use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::types::{LeaderEpoch, PartitionId, TimestampMs, TopicId};

use super::*;
use crate::recovered::RecoveredState;

/// Explores `model`. The bound on preemptions comes from the environment, else it is 3.
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = 20_000;
    builder.check(model);
}

fn key(partition: u32) -> LogKey {
    LogKey { topic: TopicId([7; 16]), partition: PartitionId(partition) }
}

/// A store on an empty model disk, without recovery.
fn store(disk: &disk::ModelDisk) -> Store {
    let options = StoreOptions {
        segment_bytes_min: 16 << 10,
        segment_bytes_max: 16 << 10,
        journal_bytes_min: 16 << 10,
        journal_bytes_max: 16 << 10,
        direct_write_bytes: 4 << 10,
        ..StoreOptions::default()
    };
    let mut state =
        RecoveredState { next_incarnation: 1, next_salt: 1, ..RecoveredState::default() };
    state.journal.next_group = 1;
    state.journal.next_generation = 1;
    Store::start(Arc::new(disk.clone()), options, &state, Box::new(())).unwrap().0
}

fn message(len: usize) -> NewEntry {
    let body = Bytes::from(vec![7; len]);
    NewEntry {
        kind: EntryKind::Data,
        flags: 0,
        leader_epoch: LeaderEpoch(1),
        append_time: TimestampMs(1),
        record_count: 1,
        seq_count: 1,
        body_crc: crc32fast::hash(&body),
        body,
        trailer: Bytes::new(),
    }
}
