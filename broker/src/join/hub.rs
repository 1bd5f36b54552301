//! Owns what every part of one broker shares: identity, counters, bounds, and the list of sessions that
//! the I/O thread wakes at the end of a round. Never locks a partition. Driven by all other files here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use postrider_core::Now;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::types::{
    ClusterId, LeaderEpoch, NodeId, ProducerId, StorageId, TimestampMs,
};
use postrider_storage::{StoreError, StoreObserver};

use crate::join::catalog::Catalog;
use crate::join::counters::Counters;
use crate::join::dead_letters::DeadLetters;
use crate::join::groups::Groups;
use crate::join::options::BrokerOptions;
use crate::join::outbox::{Budget, WakeList};
use crate::join::partition::PartitionHandle;
use crate::join::queue_wakes::QueueWakes;
use crate::join::redrive::Redrives;
use crate::join::topic::TopicHandle;

/// Who this broker is, fixed at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data directory.
    pub storage: StorageId,
    /// The broker.
    pub node: NodeId,
    /// Rises with every start on this directory; the epoch of all leaderships of this run.
    pub incarnation: u64,
    /// The incarnation as leaderships carry it.
    pub leader_epoch: LeaderEpoch,
}

/// See the module.
pub(crate) struct Hub {
    pub(crate) options: BrokerOptions,
    pub(crate) identity: Identity,
    pub(crate) counters: Counters,
    pub(crate) groups: Groups,
    pub(crate) budget: Arc<Budget>,
    /// Wall time and monotonic time of the newest event, for what the I/O thread appends.
    wall_ms: AtomicU64,
    monotonic_ns: AtomicU64,
    /// One past the last producer id that is granted in the cluster.
    producer_ids_end: AtomicI64,
    failed: AtomicBool,
    draining: AtomicBool,
    /// Sessions that are open.
    sessions: AtomicU32,
    next_session: AtomicU64,
    /// Bound: the sessions.
    round: Mutex<WakeList>,
    /// Partitions that were opened. Bound: `partitions_max`, with those of deleted topics until the list
    /// grows.
    partitions: Mutex<Vec<Weak<PartitionHandle>>>,
    /// Partitions that want a snapshot, each once.
    snapshots_due: Mutex<VecDeque<Weak<PartitionHandle>>>,
    pub(crate) dead_letters: DeadLetters,
    /// Dead letters that are sent back.
    pub(crate) redrives: Redrives,
    /// When which partition has something to do in its queues.
    pub(crate) queue_wakes: QueueWakes,
    /// Topics whose subscriptions were changed since the last tick. Bound: the changes that one tick's
    /// time allows.
    changed_topics: Mutex<Vec<Weak<TopicHandle>>>,
}

/// Takes a lock whose holders leave nothing half done, or end the process.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(options: BrokerOptions, identity: Identity, now: Now) -> Self {
        let hub = Self {
            budget: Arc::new(Budget::new(options.publish_bytes_max)),
            options,
            identity,
            counters: Counters::default(),
            groups: Groups::new(identity.incarnation),
            wall_ms: AtomicU64::new(0),
            monotonic_ns: AtomicU64::new(0),
            producer_ids_end: AtomicI64::new(0),
            failed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            sessions: AtomicU32::new(0),
            next_session: AtomicU64::new(1),
            round: Mutex::default(),
            partitions: Mutex::default(),
            snapshots_due: Mutex::default(),
            dead_letters: DeadLetters::default(),
            redrives: Redrives::default(),
            queue_wakes: QueueWakes::default(),
            changed_topics: Mutex::default(),
        };
        hub.set_now(now);
        hub
    }

    pub(crate) fn set_now(&self, now: Now) {
        let ns = u64::try_from(now.monotonic.as_nanos()).unwrap_or(u64::MAX);
        self.wall_ms.store(now.wall.0, Ordering::Relaxed);
        self.monotonic_ns.store(ns, Ordering::Relaxed);
    }

    /// The time of the newest event.
    pub(crate) fn now(&self) -> Now {
        Now {
            monotonic: Duration::from_nanos(self.monotonic_ns.load(Ordering::Relaxed)),
            wall: TimestampMs(self.wall_ms.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn producer_ids_end(&self) -> ProducerId {
        ProducerId(self.producer_ids_end.load(Ordering::Acquire))
    }

    pub(crate) fn set_producer_ids_end(&self, end: ProducerId) {
        self.producer_ids_end.store(end.0, Ordering::Release);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Counts a session in and gives it a number; `None` at the bound.
    pub(crate) fn begin_session(&self) -> Option<u64> {
        let before = self.sessions.fetch_add(1, Ordering::Relaxed);
        if before >= self.options.connections_max {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            self.counters.sessions_refused.add(1);
            return None;
        }
        self.counters.sessions_opened.add(1);
        Some(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn end_session(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// The error with its count.
    pub(crate) fn refuse(&self, error: ErrorBody) -> ErrorBody {
        self.counters.errors.add(error.code);
        error
    }

    pub(crate) fn error(&self, code: ErrorCode, message: impl Into<String>) -> ErrorBody {
        self.refuse(ErrorBody::new(code, message))
    }

    /// The sessions of the running round; only the I/O thread's callbacks may use it.
    pub(crate) fn round(&self) -> MutexGuard<'_, WakeList> {
        lock(&self.round)
    }

    pub(crate) fn add_partition(&self, partition: &Arc<PartitionHandle>) {
        let mut partitions = lock(&self.partitions);
        if partitions.len() == partitions.capacity() {
            partitions.retain(|known| known.strong_count() > 0);
        }
        partitions.push(Arc::downgrade(partition));
    }

    /// The partitions that were opened.
    pub(crate) fn partitions(&self) -> Vec<Arc<PartitionHandle>> {
        lock(&self.partitions).iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn want_snapshot(&self, partition: Weak<PartitionHandle>) {
        lock(&self.snapshots_due).push_back(partition);
    }

    /// The next tick has the partitions of a topic look at its subscriptions.
    pub(crate) fn want_look(&self, topic: &Arc<TopicHandle>) {
        lock(&self.changed_topics).push(Arc::downgrade(topic));
    }

    /// Topics whose subscriptions were changed since the last call.
    pub(crate) fn changed_topics(&self) -> Vec<Arc<TopicHandle>> {
        let changed = std::mem::take(&mut *lock(&self.changed_topics));
        changed.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn next_snapshot(&self) -> Option<Arc<PartitionHandle>> {
        let mut due = lock(&self.snapshots_due);
        while let Some(partition) = due.pop_front() {
            if let Some(partition) = partition.upgrade() {
                return Some(partition);
            }
        }
        None
    }
}

/// What the store tells the broker.
pub(crate) struct Observer {
    hub: Arc<Hub>,
    catalog: Weak<Catalog>,
}

impl Observer {
    pub(crate) fn new(hub: Arc<Hub>, catalog: Weak<Catalog>) -> Self {
        Self { hub, catalog }
    }
}

impl StoreObserver for Observer {
    fn round_done(&self) {
        self.hub.round().wake();
    }

    fn failed(&self, _error: &StoreError) {
        self.hub.failed.store(true, Ordering::Release);
        for partition in self.hub.partitions() {
            partition.notify();
        }
        if let Some(catalog) = self.catalog.upgrade() {
            catalog.notify();
        }
        self.hub.round().wake();
    }
}
