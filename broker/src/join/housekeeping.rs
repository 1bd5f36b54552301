//! Owns what a broker does now and then: retention, snapshots, the expiry of idle producer sessions, the time of
//! consumer groups, samples of the depth of queues. Never
//! waits and never does all at once: every tick does a bounded part. Driven by `Broker::tick`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::partition::SnapshotDraft;
use postrider_core::retention::{
    RetentionLimits, SegmentFacts, expired, is_expired_open, is_settled_open, settled,
};
use postrider_core::thinning::{Kept, Thinning, thinned};
use postrider_protocol::message::TopicConfig;
use postrider_protocol::types::{EntryIndex, Offset, PartitionId, TopicKind};
use postrider_storage::{Keep, SegmentInfo};

use crate::join::catalog::Catalog;
use crate::join::delays::{self, Finder};
use crate::join::depths::Sampler;
use crate::join::expiry;
use crate::join::hub::Hub;
use crate::join::partition::PartitionHandle;
use crate::join::topic::{TopicHandle, newest};

/// Partitions looked at per tick.
const PARTITIONS_PER_TICK: u32 = 512;

/// Partitions whose queues are looked at per tick; the others follow in the next.
const QUEUES_PER_TICK: usize = 1_024;

/// A retention pass begins after this part of `recycle_bytes_max` was written, whatever the interval says:
/// what a pass releases, and what is released late because it waits for a snapshot, then fits the pool.
/// Files beyond it are removed and made again, which costs several times a rewrite.
const PASSES_PER_POOL: u64 = 4;

/// See the module.
pub(crate) struct Housekeeping {
    last: Option<Now>,
    pass_due: Duration,
    /// Bytes that were written to segments when the last pass began.
    pass_bytes: u64,
    /// What is left of the present pass. Bound: the topics.
    pass: VecDeque<(Arc<TopicHandle>, u32)>,
    /// Snapshot bytes that may be written now; below zero after a large one.
    snapshot_bytes: i64,
    finder: Finder,
    sampler: Sampler,
}

impl Housekeeping {
    pub(crate) fn new() -> Self {
        Self {
            last: None,
            pass_due: Duration::ZERO,
            pass_bytes: 0,
            pass: VecDeque::new(),
            snapshot_bytes: 0,
            finder: Finder::default(),
            sampler: Sampler::default(),
        }
    }

    /// `written_bytes` is what was written to segments since the start.
    pub(crate) fn tick(&mut self, hub: &Hub, catalog: &Catalog, written_bytes: u64, now: Now) {
        tick_queues(hub, now);
        hub.redrives.tick(catalog, now);
        hub.dead_letters.tick(catalog, now);
        let before = self.last.replace(now);
        let passed =
            before.map_or(Duration::ZERO, |before| now.monotonic.saturating_sub(before.monotonic));
        for topic in hub.changed_topics() {
            topic.follow_subscriptions(now);
        }
        self.write_snapshots(hub, now, passed);
        catalog.check_snapshot();
        hub.groups.tick(now);
        if !self.finder.is_done() {
            self.finder.tick(catalog, now);
            return;
        }
        self.sampler.tick(catalog, now);
        if self.pass.is_empty() && self.is_pass_due(hub, written_bytes, now) {
            self.pass_due = now.monotonic + hub.options.retention_check_interval;
            self.pass_bytes = written_bytes;
            self.pass = catalog.topics().into_iter().map(|topic| (topic, 0)).collect();
        }
        self.continue_pass(hub, now);
    }

    fn is_pass_due(&self, hub: &Hub, written_bytes: u64, now: Now) -> bool {
        let store = &hub.options.store;
        // Less than a segment lets nothing go.
        let much = (store.recycle_bytes_max / PASSES_PER_POOL).max(store.segment_bytes_max);
        now.monotonic >= self.pass_due || written_bytes - self.pass_bytes >= much
    }

    fn continue_pass(&mut self, hub: &Hub, now: Now) {
        let mut left = PARTITIONS_PER_TICK;
        while left > 0
            && let Some((topic, next)) = self.pass.front_mut()
        {
            let config = topic.config();
            if *next >= config.partitions || topic.is_deleted() {
                self.pass.pop_front();
                continue;
            }
            let id = PartitionId(*next);
            *next += 1;
            left -= 1;
            visit(hub, topic, id, &config, now);
        }
    }

    /// Writes due snapshots as far as the budget goes: it fills with time, up to one second's worth.
    fn write_snapshots(&mut self, hub: &Hub, now: Now, passed: Duration) {
        let rate = i64::try_from(hub.options.snapshot_bytes_per_second).unwrap_or(i64::MAX);
        let ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let earned = rate.saturating_mul(ms) / 1_000;
        self.snapshot_bytes = self.snapshot_bytes.saturating_add(earned).min(rate);
        while self.snapshot_bytes > 0
            && let Some(partition) = hub.next_snapshot()
        {
            let written = write_snapshot(hub, &partition, now);
            let written = i64::try_from(written).unwrap_or(i64::MAX);
            self.snapshot_bytes = self.snapshot_bytes.saturating_sub(written);
        }
    }
}

/// Has the partitions whose queues or delayed messages are due do what time has brought.
fn tick_queues(hub: &Hub, now: Now) {
    for partition in hub.queue_wakes.take_due(now.monotonic, QUEUES_PER_TICK) {
        let due = partition.lead_if_folded(now, |leader, turn| {
            let due = leader.due_releases(turn);
            leader.tick_queues(&partition, turn);
            (due, leader.expiry_due(turn))
        });
        let (releases, expiry) = due.unwrap_or_default();
        delays::release(&partition, releases, now);
        let found = expiry.and_then(|ask| Some((ask, expiry::look_up(&partition, ask)?)));
        if let Some(found) = found {
            partition.lead_if_folded(now, |leader, turn| leader.expire(&partition, found, turn));
        }
    }
}

/// Writes a snapshot of a partition whose state is in memory; tells its size.
pub(crate) fn write_snapshot(hub: &Hub, partition: &PartitionHandle, now: Now) -> u64 {
    partition.snapshot_due.store(false, Ordering::Relaxed);
    let draft = partition.lead_if_folded(now, |leader, _turn| leader.draft_snapshot(false));
    let written = hand_over(partition, draft.flatten(), now);
    if written > 0 {
        hub.counters.snapshots.add(1);
        hub.counters.snapshot_bytes.add(written);
    }
    written
}

/// Encodes a state without the partition's lock, since many idempotency keys take a while, and hands it to the store. Tells
/// its size, 0 if there is nothing new or the store has no room for it.
fn hand_over(
    partition: &PartitionHandle,
    draft: Option<(EntryIndex, SnapshotDraft)>,
    now: Now,
) -> u64 {
    let Some((end, draft)) = draft else { return 0 };
    let bytes = draft.encode();
    let written =
        partition.lead_if_folded(now, |leader, _turn| leader.write_snapshot(partition, end, bytes));
    written.unwrap_or(0)
}

fn visit(hub: &Hub, topic: &TopicHandle, id: PartitionId, config: &TopicConfig, now: Now) {
    if let Some(partition) = topic.opened(id) {
        let kept = partition.lead_if_folded(now, |leader, turn| {
            leader.expire_sessions(&partition, turn);
            (config.kind == TopicKind::Queue).then(|| leader.kept()).flatten()
        });
        if let Some(kept) = kept.flatten() {
            let rule = |facts: &[SegmentFacts], end| settled(facts, &kept, end);
            retain(hub, &partition, rule, now);
            thin(&partition, &kept, now);
            let bytes_min = hub.options.store.segment_bytes_min;
            if is_settled_open(&facts(&partition), &kept, bytes_min, now.wall) {
                close_segment(&partition, now);
                return;
            }
        }
    }
    let mut limits = RetentionLimits {
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        passed: None,
    };
    let is_bounded = newest(config) > 0;
    if (limits == RetentionLimits::default() && !is_bounded) || !topic.is_used(id) {
        return;
    }
    if let Ok(partition) = topic.partition(id) {
        limits.passed = is_bounded.then(|| partition.passed());
        let rule = |facts: &[SegmentFacts], end| expired(facts, limits, end, now.wall);
        retain(hub, &partition, rule, now);
        if is_expired_open(&facts(&partition), limits, now.wall) {
            close_segment(&partition, now);
        }
    }
}

/// Closes the segment that is written; the next pass finds it among those that may go.
fn close_segment(partition: &PartitionHandle, now: Now) {
    let closed = partition.lead(now, |leader, turn| leader.close_segment(partition, turn));
    if let Err(error) = closed {
        tracing::warn!(partition = ?partition.key, %error, "a segment cannot be closed");
    }
}

/// Moves the start of a log that keeps more than it should. What goes lies below a durable snapshot, for
/// the state of the partition is folded from what is left; where there is none yet, one is written first
/// and the start moves in the next pass.
fn retain(
    hub: &Hub,
    partition: &PartitionHandle,
    rule: impl Fn(&[SegmentFacts], Position) -> Option<(EntryIndex, Offset)>,
    now: Now,
) {
    let log = &partition.log;
    let facts = facts(partition);
    let ready = Position::from(log.ready_end());
    let Some(wanted) = rule(&facts, ready) else { return };
    let snapshot = log.snapshot_index().unwrap_or_default();
    // Payloads of delayed messages are read when these are due.
    let delayed = partition.lead_if_folded(now, |leader, _turn| leader.delay_floor()).flatten();
    let kept = delayed.map_or(snapshot, |floor| floor.min(snapshot));
    let removable = Position { index: ready.index.min(kept), offset: ready.offset };
    if let Some(start) = rule(&facts, removable) {
        log.trim(start);
        hub.counters.trims.add(1);
    }
    if wanted.0 > snapshot && kept == snapshot {
        let draft = partition.lead(now, |leader, _turn| leader.draft_snapshot(false));
        match draft {
            Ok(draft) => _ = hand_over(partition, draft, now),
            Err(error) => {
                tracing::warn!(partition = ?partition.key, %error, "retention waits for a snapshot");
            }
        }
    }
}

/// The segments that are not wholly before the start of the log.
fn facts(partition: &PartitionHandle) -> Vec<SegmentFacts> {
    let log = &partition.log;
    let start = log.log_start().0;
    log.segments().into_iter().filter(|segment| segment.end.0 > start).map(facts_of).collect()
}

fn facts_of(segment: SegmentInfo) -> SegmentFacts {
    SegmentFacts {
        base: segment.base.into(),
        end: segment.end.into(),
        bytes: segment.bytes,
        last_time: segment.last_time,
        sealed: segment.sealed,
    }
}

/// Gives segments of a queue up in whole or in part, although older ones stay. What goes lies below the older of
/// two snapshots in each manifest; where that is too far back, one step is taken to move it.
fn thin(partition: &PartitionHandle, kept: &Kept, now: Now) {
    let log = &partition.log;
    let segments = log.segments();
    let facts: Vec<SegmentFacts> = segments.iter().copied().map(facts_of).collect();
    let (ready, unneeded) = (log.ready_end().0, log.unneeded_below());
    let mut blocked = None;
    for (at, what) in thinned(&facts, kept, ready) {
        let Some(segment) = segments.get(at) else { continue };
        if segment.end.0 > unneeded {
            blocked = Some(segment.end.0);
            continue;
        }
        // Refused is what is under way already, or was not worth it: the next pass asks again.
        let _asked = match what {
            Thinning::Vacate => log.vacate(segment.seq),
            Thinning::Rewrite(part) => log.rewrite(segment.seq, keep_of(part)),
        };
    }
    // What the start of the log has passed waits for the same.
    let (start, last) = (log.log_start().0, segments.len().saturating_sub(1));
    let passed = segments.iter().take(last).filter(|segment| segment.end.0 <= start);
    let wanted = passed.map(|segment| segment.end.0).chain(blocked).max();
    if let Some(wanted) = wanted.filter(|wanted| *wanted > unneeded) {
        move_snapshots(partition, wanted, now);
    }
}

/// One step towards two snapshots of all that lies below `wanted` in each manifest: one snapshot, or the second
/// one, or a checkpoint.
fn move_snapshots(partition: &PartitionHandle, wanted: EntryIndex, now: Now) {
    let log = &partition.log;
    if log.snapshot_floor().is_some_and(|floor| floor >= wanted) {
        log.want_checkpoint();
        return;
    }
    match partition.lead(now, |leader, _turn| leader.draft_snapshot(true)) {
        Ok(draft) => _ = hand_over(partition, draft, now),
        Err(error) => {
            tracing::warn!(partition = ?partition.key, %error, "a queue's disk space waits for a snapshot");
        }
    }
}

fn keep_of(part: Kept) -> Keep {
    let messages = part.messages.into_iter().map(|range| range.start..range.end).collect();
    Keep { messages, entries: part.entries }
}
