//! Owns the join's counters and the plain numbers that are made from them. Never renders them: the shell
//! does. Driven by sessions, partitions and the catalog.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postrider_protocol::error::ErrorCode;
use postrider_storage::StoreStats;

use crate::join::depths::QueueDepths;

/// A number that only rises.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One per error code, in the order of [`ErrorCode::ALL`].
pub(crate) struct ErrorCounters(Vec<Counter>);

impl Default for ErrorCounters {
    fn default() -> Self {
        Self(ErrorCode::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl ErrorCounters {
    pub(crate) fn add(&self, code: ErrorCode) {
        let at = ErrorCode::ALL.iter().position(|known| *known == code);
        if let Some(counter) = at.and_then(|at| self.0.get(at)) {
            counter.add(1);
        }
    }

    fn totals(&self) -> Vec<(ErrorCode, u64)> {
        ErrorCode::ALL.iter().copied().zip(self.0.iter().map(Counter::total)).collect()
    }
}

/// Bounds of the buckets in which lateness is counted, in milliseconds, inclusive. The last bucket has none.
pub const LATENESS_BOUNDS_MS: [u64; 9] = [5, 10, 25, 50, 100, 250, 1_000, 10_000, 60_000];

/// How late things happened.
#[derive(Default)]
pub(crate) struct Lateness {
    buckets: [Counter; LATENESS_BOUNDS_MS.len() + 1],
    sum_ms: Counter,
}

impl Lateness {
    pub(crate) fn add(&self, late: Duration, count: u64) {
        let ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        let at = LATENESS_BOUNDS_MS.partition_point(|bound| *bound < ms);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.add(count);
        }
        self.sum_ms.add(ms.saturating_mul(count));
    }

    fn totals(&self) -> LatenessTotals {
        LatenessTotals {
            buckets: self.buckets.iter().map(Counter::total).collect(),
            sum_ms: self.sum_ms.total(),
        }
    }
}

/// How late things happened, since the start.
#[derive(Clone, Debug)]
pub struct LatenessTotals {
    /// One more than [`LATENESS_BOUNDS_MS`]; how many in each.
    pub buckets: Vec<u64>,
    /// All together.
    pub sum_ms: u64,
}

/// Everything that the join counts.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) sessions_opened: Counter,
    pub(crate) sessions_refused: Counter,
    pub(crate) requests: Counter,
    pub(crate) publish_batches: Counter,
    pub(crate) publish_messages: Counter,
    pub(crate) publish_bytes: Counter,
    pub(crate) committed_messages: Counter,
    pub(crate) duplicate_messages: Counter,
    pub(crate) rejected_messages: Counter,
    pub(crate) keyed_messages: Counter,
    pub(crate) unknown_messages: Counter,
    pub(crate) delivered_messages: Counter,
    pub(crate) delivered_bytes: Counter,
    pub(crate) delivered_runs: Counter,
    pub(crate) cold_runs: Counter,
    pub(crate) gaps: Counter,
    pub(crate) acks: Counter,
    pub(crate) queue_leased: Counter,
    pub(crate) queue_acked: Counter,
    pub(crate) queue_returned: Counter,
    pub(crate) queue_leases_lost: Counter,
    pub(crate) queue_dead_lettered: Counter,
    pub(crate) queue_expired: Counter,
    pub(crate) queue_evicted: Counter,
    pub(crate) delays_scheduled: Counter,
    pub(crate) delays_released: Counter,
    pub(crate) delays_cancelled: Counter,
    pub(crate) delays_lost: Counter,
    pub(crate) delay_lateness: Lateness,
    pub(crate) snapshots: Counter,
    pub(crate) snapshot_bytes: Counter,
    pub(crate) trims: Counter,
    pub(crate) partitions_folded: Counter,
    pub(crate) entries_folded: Counter,
    pub(crate) unowned_partitions: Counter,
    pub(crate) errors: ErrorCounters,
}

/// The join's numbers at one moment. Totals since the start unless said otherwise.
#[derive(Clone, Debug)]
pub struct BrokerMetrics {
    /// Sessions that are open now.
    pub sessions: u64,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Connections refused because there were too many.
    pub sessions_refused: u64,
    /// Requests other than publishes.
    pub requests: u64,
    /// Batches received.
    pub publish_batches: u64,
    /// Messages in them.
    pub publish_messages: u64,
    /// Bytes of the batches.
    pub publish_bytes: u64,
    /// Messages stored and confirmed.
    pub committed_messages: u64,
    /// Messages confirmed as stored before.
    pub duplicate_messages: u64,
    /// Messages definitely not stored.
    pub rejected_messages: u64,
    /// Messages whose fate the broker could not tell.
    pub unknown_messages: u64,
    /// Publish bytes in flight now, over all sessions.
    pub publish_in_flight_bytes: u64,
    /// Messages sent to subscribers.
    pub delivered_messages: u64,
    /// Bytes of entries sent to subscribers.
    pub delivered_bytes: u64,
    /// Deliver frames.
    pub delivered_runs: u64,
    /// Deliveries that had to be loaded from disk first.
    pub cold_runs: u64,
    /// Gaps told to subscribers.
    pub gaps: u64,
    /// Acknowledgements stored.
    pub acks: u64,
    /// Messages leased to consumers.
    pub queue_leased: u64,
    /// Messages that consumers acknowledged.
    pub queue_acked: u64,
    /// Messages that consumers gave back.
    pub queue_returned: u64,
    /// Leases that ended without their consumers.
    pub queue_leases_lost: u64,
    /// Messages moved to dead letter topics.
    pub queue_dead_lettered: u64,
    /// Messages that left queues because they were too old.
    pub queue_expired: u64,
    /// Messages that left queues unprocessed in another way.
    pub queue_evicted: u64,
    /// What is in the queues now, or was a second ago.
    pub queue_depths: QueueDepths,
    /// Delayed messages that wait now.
    pub delays_pending: u64,
    /// Idempotency keys that are remembered.
    pub dedup_keys: u64,
    /// Bytes of memory that they take.
    pub dedup_bytes: u64,
    /// Messages that came with an idempotency key.
    pub keyed_messages: u64,
    /// Messages published with a delay.
    pub delays_scheduled: u64,
    /// Delayed messages that got their offsets.
    pub delays_released: u64,
    /// Delayed messages that were taken back.
    pub delays_cancelled: u64,
    /// Delayed messages that could not be read when they were due.
    pub delays_lost: u64,
    /// How long after their time delayed messages were released.
    pub delay_lateness: LatenessTotals,
    /// Topics now.
    pub topics: u64,
    /// Partitions of all topics now.
    pub partitions: u64,
    /// Durable subscriptions now.
    pub subscriptions: u64,
    /// Members of consumer groups now.
    pub group_members: u64,
    /// Partitions of consumer groups that no member reads now.
    pub group_partitions_unowned: u64,
    /// Times that such a partition had no owner for longer than the bound.
    pub group_unowned_reports: u64,
    /// Partitions whose state was folded from their log.
    pub partitions_folded: u64,
    /// Entries read for that.
    pub entries_folded: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Their bytes.
    pub snapshot_bytes: u64,
    /// Times that retention moved a log's start.
    pub trims: u64,
    /// Times that each error was given to a client.
    pub errors: Vec<(ErrorCode, u64)>,
    /// The store's numbers.
    pub store: StoreStats,
    /// Data is refused because the disk is full.
    pub disk_full: bool,
}

/// Numbers that are not counters, read by the broker.
pub(crate) struct Gauges {
    pub(crate) sessions: u64,
    pub(crate) publish_in_flight_bytes: u64,
    pub(crate) delays_pending: u64,
    pub(crate) dedup_keys: u64,
    pub(crate) dedup_bytes: u64,
    pub(crate) topics: u64,
    pub(crate) partitions: u64,
    pub(crate) subscriptions: u64,
    pub(crate) group_members: u64,
    pub(crate) group_partitions_unowned: u64,
    pub(crate) queue_depths: QueueDepths,
    pub(crate) disk_full: bool,
}

impl Counters {
    pub(crate) fn metrics(&self, gauges: Gauges, store: StoreStats) -> BrokerMetrics {
        BrokerMetrics {
            sessions: gauges.sessions,
            sessions_opened: self.sessions_opened.total(),
            sessions_refused: self.sessions_refused.total(),
            requests: self.requests.total(),
            publish_batches: self.publish_batches.total(),
            publish_messages: self.publish_messages.total(),
            publish_bytes: self.publish_bytes.total(),
            committed_messages: self.committed_messages.total(),
            duplicate_messages: self.duplicate_messages.total(),
            rejected_messages: self.rejected_messages.total(),
            keyed_messages: self.keyed_messages.total(),
            unknown_messages: self.unknown_messages.total(),
            publish_in_flight_bytes: gauges.publish_in_flight_bytes,
            delivered_messages: self.delivered_messages.total(),
            delivered_bytes: self.delivered_bytes.total(),
            delivered_runs: self.delivered_runs.total(),
            cold_runs: self.cold_runs.total(),
            gaps: self.gaps.total(),
            acks: self.acks.total(),
            queue_leased: self.queue_leased.total(),
            queue_acked: self.queue_acked.total(),
            queue_returned: self.queue_returned.total(),
            queue_leases_lost: self.queue_leases_lost.total(),
            queue_dead_lettered: self.queue_dead_lettered.total(),
            queue_expired: self.queue_expired.total(),
            queue_evicted: self.queue_evicted.total(),
            queue_depths: gauges.queue_depths,
            delays_pending: gauges.delays_pending,
            dedup_keys: gauges.dedup_keys,
            dedup_bytes: gauges.dedup_bytes,
            delays_scheduled: self.delays_scheduled.total(),
            delays_released: self.delays_released.total(),
            delays_cancelled: self.delays_cancelled.total(),
            delays_lost: self.delays_lost.total(),
            delay_lateness: self.delay_lateness.totals(),
            topics: gauges.topics,
            partitions: gauges.partitions,
            subscriptions: gauges.subscriptions,
            group_members: gauges.group_members,
            group_partitions_unowned: gauges.group_partitions_unowned,
            group_unowned_reports: self.unowned_partitions.total(),
            partitions_folded: self.partitions_folded.total(),
            entries_folded: self.entries_folded.total(),
            snapshots: self.snapshots.total(),
            snapshot_bytes: self.snapshot_bytes.total(),
            trims: self.trims.total(),
            errors: self.errors.totals(),
            store,
            disk_full: gauges.disk_full,
        }
    }
}
