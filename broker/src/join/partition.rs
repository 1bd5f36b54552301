//! Owns one partition on this broker: its log, its leadership behind a short lock, the high watermark
//! that readers look at, and the subscribers that wait for it. Never decides (core does) and never sends.
//! Driven by sessions, by the I/O thread (`notify`) and by housekeeping.
//!
//! The lock is held for decisions, for queueing an entry and for putting confirms into outboxes, so that
//! confirms of one producer leave in order; sessions are woken after it is released. Lock order: session
//! -> partition -> outbox.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::metadata::Subscription;
use postrider_core::partition::PartitionState;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{QueuePolicy, TopicBounds};
use postrider_protocol::types::{Durability, EntryIndex, Offset, PartitionId, SubscriptionId};
use postrider_storage::{Log, LogKey, LogWatcher, OpenedLog};

use crate::join::combining::CombiningLock;
use crate::join::depths::Sample;
use crate::join::fold;
use crate::join::hub::{Hub, lock};
use crate::join::leader::Leader;
use crate::join::outbox::{Outbox, WakeList};
use crate::join::session::SessionTask;

/// Entries behind the last snapshot that make one at a clean end worth its bytes.
const CLOSE_SNAPSHOT_ENTRIES: u64 = 1_024;

/// What a topic's partitions share.
pub(crate) struct TopicRules {
    /// The durable subscriptions. Bound: core's limit per topic.
    pub(crate) subscriptions: Mutex<BTreeMap<SubscriptionId, Subscription>>,
    /// How many messages there may be.
    pub(crate) bounds: Mutex<TopicBounds>,
    /// Rises after each change of these; whoever leads a partition next looks at them again.
    pub(crate) subscriptions_version: AtomicU64,
    /// The largest message.
    pub(crate) message_bytes_max: AtomicU32,
    /// A log topic's messages are delivered for so long; 0 = whatever their age.
    pub(crate) ttl_ms: AtomicU64,
    /// So many of a log topic's newest messages are delivered; 0 = all.
    pub(crate) newest: AtomicU64,
    /// Messages that are kept count for the topic's bounds, not unsettled ones.
    pub(crate) counts_kept: bool,
}

/// See the module.
pub(crate) struct PartitionHandle {
    pub(crate) key: LogKey,
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    durability: Durability,
    rules: Arc<TopicRules>,
    /// One past the last offset that may be delivered. Only rises; stored under the lock.
    high_watermark: AtomicU64,
    /// Newer messages have taken the place of those below. Only rises.
    passed: AtomicU64,
    deleted: AtomicBool,
    /// Delayed messages that wait, as far as the state is folded. Stored under the lock.
    scheduled: AtomicU64,
    /// Idempotency keys and their bytes, as far as the state is folded. Stored under the lock.
    remembered: (AtomicU64, AtomicU64),
    /// The depth of its queues when the tick last looked. A leaf lock. Bound: the topic's subscriptions.
    samples: Mutex<Vec<Sample>>,
    /// Wants a snapshot and stands in the list.
    pub(crate) snapshot_due: AtomicBool,
    leadership: CombiningLock<Leadership>,
    /// Bound: one per cursor of every session.
    waiters: Mutex<Vec<Waiter>>,
    myself: Weak<Self>,
}

enum Leadership {
    /// Nobody asked for the state yet: it is folded at the first request that needs it.
    Dormant(Option<(EntryIndex, Bytes)>),
    Leading(Box<Leader>),
    /// The state could not be folded, or the topic is deleted.
    Closed(ErrorBody),
}

/// A cursor that has seen everything below the high watermark.
struct Waiter {
    outbox: Arc<Outbox>,
    cursor: u64,
}

/// What the lock's holder works with.
pub(crate) struct Turn<'a> {
    pub(crate) now: Now,
    pub(crate) wakes: &'a mut WakeList,
}

impl PartitionHandle {
    pub(crate) fn new(
        opened: OpenedLog,
        durability: Durability,
        rules: Arc<TopicRules>,
        hub: Arc<Hub>,
    ) -> Arc<Self> {
        let OpenedLog { log, snapshot, damages: _ } = opened;
        let handle = Arc::new_cyclic(|myself| Self {
            key: log.key(),
            // Recovery keeps only what is durable, so all of it lies below the high watermark.
            high_watermark: AtomicU64::new(log.ready_end().1.0),
            passed: AtomicU64::new(0),
            log,
            durability,
            rules,
            deleted: AtomicBool::new(false),
            scheduled: AtomicU64::new(0),
            remembered: (AtomicU64::new(0), AtomicU64::new(0)),
            samples: Mutex::default(),
            snapshot_due: AtomicBool::new(false),
            leadership: CombiningLock::new(Leadership::Dormant(snapshot)),
            waiters: Mutex::default(),
            myself: myself.clone(),
            hub: Arc::clone(&hub),
        });
        handle.log.watch(Arc::new(Watcher(handle.myself.clone())));
        hub.add_partition(&handle);
        handle
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.key.partition
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    pub(crate) fn message_bytes_max(&self) -> u32 {
        self.rules.message_bytes_max.load(Ordering::Relaxed)
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        self.myself.clone()
    }

    /// Whether the order of keys matters to a queue.
    pub(crate) fn is_keyed(&self, subscription: SubscriptionId) -> bool {
        let subscriptions = lock(&self.rules.subscriptions);
        let policy = subscriptions.get(&subscription).and_then(|known| known.queue.as_ref());
        policy.is_some_and(|policy| policy.key_order)
    }

    /// Name and policy of a queue.
    pub(crate) fn queue_policy(
        &self,
        subscription: SubscriptionId,
    ) -> Option<(String, QueuePolicy)> {
        let subscriptions = lock(&self.rules.subscriptions);
        let known = subscriptions.get(&subscription)?;
        Some((known.name.clone(), known.queue.clone()?))
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark.load(Ordering::Acquire))
    }

    /// The first offset that may be delivered.
    pub(crate) fn log_start(&self) -> Offset {
        self.log.log_start().1.max(self.passed())
    }

    /// Newer messages have taken the place of those below, in a log topic of bounded length.
    pub(crate) fn passed(&self) -> Offset {
        let newest = self.rules.newest.load(Ordering::Relaxed);
        if newest == 0 {
            return Offset(self.passed.load(Ordering::Relaxed));
        }
        let passed = self.high_watermark().0.saturating_sub(newest);
        Offset(self.passed.fetch_max(passed, Ordering::Relaxed).max(passed))
    }

    /// How long a log topic's messages are delivered.
    pub(crate) fn ttl_ms(&self) -> Option<u64> {
        Some(self.rules.ttl_ms.load(Ordering::Relaxed)).filter(|ttl_ms| *ttl_ms > 0)
    }

    /// Whether messages that are kept count for the topic's bounds.
    pub(crate) fn counts_kept(&self) -> bool {
        self.rules.counts_kept
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Idempotency keys and their bytes.
    pub(crate) fn remembered(&self) -> (u64, u64) {
        let (keys, bytes) = &self.remembered;
        (keys.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn set_remembered(&self, keys: u64, bytes: u64) {
        self.remembered.0.store(keys, Ordering::Relaxed);
        self.remembered.1.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn scheduled(&self) -> u64 {
        self.scheduled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_scheduled(&self, messages: u64) {
        self.scheduled.store(messages, Ordering::Relaxed);
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        lock(&self.samples).clone()
    }

    pub(crate) fn set_samples(&self, samples: Vec<Sample>) {
        *lock(&self.samples) = samples;
    }

    /// The log and its snapshot, if the state was not needed so far.
    pub(crate) fn unread(&self) -> Option<(Log, Option<(EntryIndex, Bytes)>)> {
        let mut wakes = WakeList::default();
        let mut turn = Turn { now: self.hub.now(), wakes: &mut wakes };
        let snapshot = self.leadership.with(
            &mut turn,
            |leadership, _turn| match leadership {
                Leadership::Dormant(snapshot) => Some(snapshot.clone()),
                Leadership::Leading(_) | Leadership::Closed(_) => None,
            },
            |leadership, turn| self.advance(leadership, turn),
        );
        wakes.wake();
        snapshot.map(|snapshot| (self.log.clone(), snapshot))
    }

    /// Answers what waits and refuses what comes, since the topic is gone. Never blocks.
    pub(crate) fn delete(&self) {
        self.deleted.store(true, Ordering::Release);
        let mut wakes = WakeList::default();
        self.notify_with(&mut wakes);
        self.wake_waiters(&mut wakes);
        wakes.wake();
    }

    /// Runs `work` on the leader, under the lock; folds the state first if that was not done. Sessions
    /// that have something to send afterwards are woken once the lock is released.
    ///
    /// # Errors
    /// The topic is deleted, or its state cannot be folded.
    pub(crate) fn lead<R>(
        &self,
        now: Now,
        work: impl FnOnce(&mut Leader, &mut Turn<'_>) -> R,
    ) -> Result<R, ErrorBody> {
        let mut wakes = WakeList::default();
        let mut turn = Turn { now, wakes: &mut wakes };
        let result = self.leadership.with(
            &mut turn,
            |leadership, turn| {
                let leader = self.leader(leadership, turn)?;
                let result = work(leader, turn);
                leader.carry_out(self, turn);
                Ok(result)
            },
            |leadership, turn| self.advance(leadership, turn),
        );
        wakes.wake();
        result
    }

    /// As [`Self::lead`], unless the state was not needed so far.
    pub(crate) fn lead_if_folded<R>(
        &self,
        now: Now,
        work: impl FnOnce(&mut Leader, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        let mut wakes = WakeList::default();
        let mut turn = Turn { now, wakes: &mut wakes };
        let result = self.leadership.with(
            &mut turn,
            |leadership, turn| {
                let Leadership::Leading(leader) = leadership else { return None };
                self.follow_subscriptions(leader, turn);
                let result = work(leader, turn);
                leader.carry_out(self, turn);
                Some(result)
            },
            |leadership, turn| self.advance(leadership, turn),
        );
        wakes.wake();
        result
    }

    fn leader<'a>(
        &self,
        leadership: &'a mut Leadership,
        turn: &mut Turn<'_>,
    ) -> Result<&'a mut Leader, ErrorBody> {
        if self.is_deleted() {
            self.advance(leadership, turn);
        }
        if let Leadership::Dormant(snapshot) = leadership {
            *leadership = match self.fold(snapshot.take()) {
                Ok(state) => Leadership::Leading(Box::new(self.begin(state, turn))),
                Err(error) => Leadership::Closed(error),
            };
        }
        match leadership {
            Leadership::Leading(leader) => {
                self.follow_subscriptions(leader, turn);
                Ok(leader)
            }
            Leadership::Closed(error) => Err(error.clone()),
            Leadership::Dormant(_) => unreachable!("it was just folded"),
        }
    }

    fn fold(&self, snapshot: Option<(EntryIndex, Bytes)>) -> Result<PartitionState, ErrorBody> {
        let folded = fold::partition_state(&self.log, snapshot).map_err(|error| {
            tracing::error!(partition = ?self.key, %error, "the partition's state is unreadable");
            let text =
                format!("the partition's state is unreadable ({error}); see the broker's log");
            ErrorBody::new(ErrorCode::Internal, text)
        })?;
        self.hub.counters.partitions_folded.add(1);
        self.hub.counters.entries_folded.add(folded.entries);
        Ok(folded.state)
    }

    /// A leadership that agrees with the topic's durable subscriptions: what was created while the
    /// broker went down is made up for, what was deleted is removed.
    fn begin(&self, state: PartitionState, turn: &mut Turn<'_>) -> Leader {
        let mut leader = Leader::new(self, state);
        self.reconcile(&mut leader, turn);
        leader.begin_delays(self);
        leader.carry_out(self, turn);
        leader
    }

    /// Has the leader agree with the topic's subscriptions, if these were changed, or some are not there yet:
    /// a full disk refuses them, and nobody else asks again. Not at each request: that would be an attempt and a
    /// line in the log per publish for as long as the disk is full.
    fn follow_subscriptions(&self, leader: &mut Leader, turn: &mut Turn<'_>) {
        let version = self.rules.subscriptions_version.load(Ordering::Acquire);
        if leader.subscriptions_version != version || leader.may_try_subscriptions(turn.now) {
            self.reconcile(leader, turn);
        }
    }

    fn reconcile(&self, leader: &mut Leader, turn: &mut Turn<'_>) {
        // Read first: what is changed from here on is looked at again.
        leader.subscriptions_version = self.rules.subscriptions_version.load(Ordering::Acquire);
        let wanted = lock(&self.rules.subscriptions).clone();
        leader.set_bounds(*lock(&self.rules.bounds));
        leader.reconcile(self, &wanted, turn);
    }

    /// The log has something new, or the store failed, or the topic is gone. Never blocks.
    pub(crate) fn notify(&self) {
        let mut round = self.hub.round();
        self.notify_with(&mut round);
    }

    fn notify_with(&self, wakes: &mut WakeList) {
        let mut turn = Turn { now: self.hub.now(), wakes };
        self.leadership.notify(&mut turn, |leadership, turn| self.advance(leadership, turn));
    }

    /// Commits what became ready, under the lock.
    fn advance(&self, leadership: &mut Leadership, turn: &mut Turn<'_>) {
        if let Leadership::Leading(leader) = leadership {
            if self.hub.has_failed() {
                leader.fail();
            } else {
                let ready = Position::from(self.log.ready_end());
                leader.advance(self, ready, turn);
                self.publish_high_watermark(leader.high_watermark(), turn);
            }
            leader.carry_out(self, turn);
        }
        if self.is_deleted() && !matches!(leadership, Leadership::Closed(_)) {
            if let Leadership::Leading(leader) = leadership {
                leader.close(self, turn);
            }
            let error = ErrorBody::new(ErrorCode::UnknownTopic, "the topic was deleted");
            *leadership = Leadership::Closed(error);
        }
    }

    fn publish_high_watermark(&self, high_watermark: Offset, turn: &mut Turn<'_>) {
        let before = self.high_watermark.load(Ordering::Relaxed);
        assert!(before <= high_watermark.0, "the high watermark went back from {before}");
        if before < high_watermark.0 {
            self.high_watermark.store(high_watermark.0, Ordering::Release);
            self.wake_waiters(turn.wakes);
        }
    }

    fn wake_waiters(&self, wakes: &mut WakeList) {
        let waiters = std::mem::take(&mut *lock(&self.waiters));
        for waiter in waiters {
            waiter.outbox.push_task(SessionTask::Ready(waiter.cursor));
            wakes.mark(&waiter.outbox);
        }
    }

    /// Has the session told when there is something at `next` or above; `false` if there is already.
    ///
    /// The high watermark is read after the waiter stands in the list, and moved before the list is
    /// emptied; the list's lock orders the two, so that one of both sides sees the other.
    pub(crate) fn wait(&self, outbox: &Arc<Outbox>, cursor: u64, next: Offset) -> bool {
        let mut waiters = lock(&self.waiters);
        if self.high_watermark() > next || self.is_deleted() {
            return false;
        }
        waiters.push(Waiter { outbox: Arc::clone(outbox), cursor });
        true
    }

    /// Removes the waiters of a session that is gone.
    pub(crate) fn forget(&self, outbox: &Arc<Outbox>, cursor: u64) {
        let mut waiters = lock(&self.waiters);
        waiters.retain(|waiter| waiter.cursor != cursor || !Arc::ptr_eq(&waiter.outbox, outbox));
    }

    /// Whether a clean end should leave a snapshot behind, so that the next start folds little.
    pub(crate) fn snapshot_is_worth_it(&self) -> bool {
        let tail = self.log.ready_end().0.0 - self.log.snapshot_index().unwrap_or_default().0;
        tail >= CLOSE_SNAPSHOT_ENTRIES
    }

    pub(crate) fn want_snapshot(&self) {
        if !self.snapshot_due.swap(true, Ordering::Relaxed) {
            self.hub.want_snapshot(self.myself.clone());
        }
    }
}

/// Passes the store's call on, without keeping the partition alive.
struct Watcher(Weak<PartitionHandle>);

impl LogWatcher for Watcher {
    fn advanced(&self) {
        if let Some(partition) = self.0.upgrade() {
            partition.notify();
        }
    }
}
