//! Owns the way of delayed messages from their first place in the log to their release, and finding the
//! partitions that hold some when the broker starts. Never decides what is due, and reads without any lock:
//! what lies on disk only keeps the tick waiting, not a partition. Driven by the tick.
//!
//! ```text
//!   [lock] due_releases ─▶ read each entry by its index, check it ─▶ [lock] release: append Data entries
//! ```
//! Whole entries are appended as they were read: slices of the map, not copies. One of which messages were
//! cancelled is rebuilt without them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::delay::Due;
use postrider_core::partition::{PartitionState, Payload};
use postrider_core::queue::QueueState;
use postrider_protocol::batch::{Batch, BatchBuilder, DecodeLimits};
use postrider_protocol::entry::{Entry, EntryKind};
use postrider_protocol::types::{
    Compression, EntryIndex, PartitionId, ProducerEpoch, ProducerId, Sequence,
};
use postrider_storage::{Log, ReadError};

use crate::join::catalog::Catalog;
use crate::join::partition::PartitionHandle;
use crate::join::topic::TopicHandle;

/// What is read before it is appended, about.
const CHUNK_BYTES: usize = 4 << 20;

/// Entries that the finder looks at per tick, about.
const ENTRIES_PER_TICK: u64 = 20_000;

/// Partitions that the finder looks at per tick.
const PARTITIONS_PER_TICK: u32 = 256;

/// Entries that the finder reads at a time, in bytes.
const WALK_BYTES: usize = 1 << 20;

/// Releases what a partition has due.
pub(crate) fn release(partition: &PartitionHandle, due: Vec<Due>, now: Now) {
    let (mut read, mut bytes) = (Vec::new(), 0);
    let release = |read| {
        partition.lead_if_folded(now, |leader, turn| leader.release(partition, read, turn));
    };
    for due in due {
        let payload = payload(partition, &due);
        if let Payload::Batch(batch) = &payload {
            bytes += batch.body.len();
        }
        read.push((due, payload));
        if bytes >= CHUNK_BYTES {
            release(std::mem::take(&mut read));
            bytes = 0;
        }
    }
    if !read.is_empty() {
        release(read);
    }
}

fn payload(partition: &PartitionHandle, due: &Due) -> Payload {
    let lost = |problem: &str| {
        let index = due.index;
        tracing::error!(partition = ?partition.key, %index, problem, "delayed messages are lost");
        Payload::Lost
    };
    let end = EntryIndex(due.index.0 + 1);
    let entry = match partition.log.entries(due.index, end, 1) {
        Ok(entries) => entries.into_iter().next(),
        Err(ReadError::Io(error)) => {
            tracing::warn!(partition = ?partition.key, %error, "delayed messages wait for the disk");
            return Payload::Later;
        }
        Err(
            error @ (ReadError::Damaged(_) | ReadError::Vacant(_) | ReadError::BelowStart { .. }),
        ) => {
            return lost(&error.to_string());
        }
    };
    let Some(entry) = entry.filter(|entry| entry.header.kind == EntryKind::Delayed) else {
        return lost("the entry is not there");
    };
    if let Err(error) = entry.check_body() {
        return lost(&error.to_string());
    }
    if due.cancelled.is_empty() {
        return Payload::Batch(Batch::of_entry(&entry));
    }
    match rebuilt(&entry, due) {
        Ok(batch) => Payload::Batch(batch),
        Err(problem) => lost(&problem),
    }
}

/// The batch without its cancelled messages. Nobody has looked into it so far: a publisher may have put other
/// records into it than its counts say.
fn rebuilt(entry: &Entry, due: &Due) -> Result<Batch, String> {
    let limits = DecodeLimits::default();
    let records = Batch::of_entry(entry).records(limits).map_err(|error| error.to_string())?;
    let mut builder = BatchBuilder::new(Compression::None, entry.body.len());
    let mut next = 0;
    for record in records {
        let record = record.map_err(|error| error.to_string())?;
        if record.offset_delta != next {
            return Err("its records are not numbered in order".to_string());
        }
        next += 1;
        if due.cancelled.binary_search(&record.offset_delta).is_err() {
            builder.push_record(&record.record).map_err(|error| error.to_string())?;
        }
    }
    if next != due.count {
        return Err(format!("it holds {next} messages, not {}", due.count));
    }
    Ok(builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0)))
}

/// Looks once, after the start, which partitions hold delayed messages or letters for a dead letter topic, or
/// have bounds to keep, and has those lead: nobody else would before a client comes. Others stay as they are, unread.
#[derive(Default)]
pub(crate) struct Finder {
    /// What is left to look at. Bound: the topics.
    left: Option<VecDeque<(Arc<TopicHandle>, u32)>>,
}

impl Finder {
    /// Whether every partition that holds such leads. Until then nothing may be removed.
    pub(crate) fn is_done(&self) -> bool {
        self.left.as_ref().is_some_and(VecDeque::is_empty)
    }

    /// Looks at a bounded part of what is left.
    pub(crate) fn tick(&mut self, catalog: &Catalog, now: Now) {
        let left = self
            .left
            .get_or_insert_with(|| catalog.topics().into_iter().map(|topic| (topic, 0)).collect());
        let (mut partitions, mut entries) = (0, 0);
        while partitions < PARTITIONS_PER_TICK
            && entries < ENTRIES_PER_TICK
            && let Some((topic, next)) = left.front_mut()
        {
            if *next >= topic.config().partitions || topic.is_deleted() {
                left.pop_front();
                continue;
            }
            let id = PartitionId(*next);
            *next += 1;
            partitions += 1;
            entries += look(topic, id, now);
        }
    }
}

/// Has a partition lead if it may have something to do; tells how many entries were looked at.
fn look(topic: &TopicHandle, id: PartitionId, now: Now) -> u64 {
    let unread = match topic.opened(id) {
        Some(partition) => partition.unread(),
        None => topic.found(id),
    };
    let Some((log, snapshot)) = unread else { return 0 };
    // What is too old, or too many, leaves though nobody asks.
    let bounds = topic.config().bounds;
    let (holds, entries) = if bounds.message_ttl_ms.is_some() || bounds.sheds() {
        (true, 0)
    } else {
        may_hold(&log, snapshot)
    };
    if holds {
        let lead =
            topic.partition(id).and_then(|partition| partition.lead(now, |_leader, _turn| ()));
        if let Err(error) = lead {
            let what = "delayed messages, dead letters or expired messages wait";
            tracing::error!(topic = topic.name, partition = %id, %error, what);
        }
    }
    entries
}

/// Whether a log holds delayed messages or dead letters as far as can be told without folding it: its snapshot
/// has some, or some came since. Bodies are not read.
fn may_hold(log: &Log, snapshot: Option<(EntryIndex, Bytes)>) -> (bool, u64) {
    let state = snapshot.and_then(|(_, bytes)| PartitionState::decode_snapshot(&bytes).ok());
    let state = state.unwrap_or_default();
    // What has failed may be about to die.
    let may_die =
        |queue: &QueueState| queue.dead_letters().next().is_some() || !queue.failures().is_empty();
    if state.queues().any(|(_, queue)| may_die(queue)) || !state.delays().is_empty() {
        return (true, 0);
    }
    let (mut at, mut count) = (state.end().index, 0);
    let (end, _offset) = log.log_end();
    while at < end {
        at = match log.entries(at, end, WALK_BYTES) {
            Ok(entries) => {
                count += entries.len() as u64;
                if entries.iter().any(|entry| is_work(entry.header.kind)) {
                    return (true, count);
                }
                let Some(last) = entries.last() else { return (true, count) };
                last.header.next_index()
            }
            Err(ReadError::BelowStart { log_start }) => log_start.0,
            Err(ReadError::Damaged(damage)) => damage.end_index,
            Err(ReadError::Vacant(vacancy)) => vacancy.end_index,
            Err(ReadError::Io(_)) => return (true, count),
        };
    }
    (false, count)
}

fn is_work(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Delayed | EntryKind::Return | EntryKind::DeadIntent)
}
