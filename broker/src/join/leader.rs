//! Owns the leadership of a partition as the join drives it: core's decisions, the appends that follow
//! from them, who is attached, and carrying effects into outboxes. Never locks (its caller holds the
//! partition's lock), never wakes, never decides. Driven by `PartitionHandle`.

mod delays;
mod queue;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::delay::DelayTotals;
use postrider_core::metadata::Subscription;
use postrider_core::partition::{
    AckUpTo, Appended, ConnectionId, Decision, Effect, EntryDraft, Keyed, OwnerChange, Partition,
    PartitionIdentity, PartitionLimits, PartitionState, PendingAppend, PublishRequest, Refusal,
    SnapshotDraft, StateCommitted, SubscribeStart, SubscriptionMode,
};
use postrider_core::queue::DeadTarget;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{
    AckUpToReply, CancelDelayedReply, ConfirmRun, Outcome, Publish, PublishAtomic, Start,
    TopicBounds,
};
use postrider_protocol::types::{CorrelationId, EntryIndex, Offset, SubscriptionId};
use postrider_protocol::{api::Api, frame};
use postrider_storage::{AppendError, NewEntry, ReadError};

use crate::join::dead_letters::QueueKey;
use crate::join::groups::{Grant, GroupHandle, Heard};
use crate::join::members::Members;
use crate::join::operation::{Operation, Step};
use crate::join::outbox::Outbox;
use crate::join::partition::{PartitionHandle, Turn};
use crate::join::redrive;
use crate::join::session::SessionTask;

pub(crate) use queue::{Clean, Fed, NewMember, SettleKind, Settling};

/// How long subscriptions wait for another try after the store refused them.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// A state of many bytes is written less often: one entry for so many of them, so that a start folds entries for no
/// longer than it reads the snapshot.
const SNAPSHOT_BYTES_PER_ENTRY: u64 = 256;

/// Where an answer goes.
#[derive(Clone)]
pub(crate) enum Route {
    /// Nobody waits for it.
    Nobody,
    /// The publishes of a session.
    Publish(Arc<Outbox>),
    /// An acknowledgement.
    Ack(Arc<Outbox>, CorrelationId),
    /// This partition's part of an operation on several.
    Step(Arc<Operation>),
    /// An ack or a return of a consumer.
    Settle(Settling),
    /// Dead letters of a queue to a target.
    Letter(QueueKey, DeadTarget),
    /// Somebody who sends dead letters back.
    Redrive(Arc<redrive::Answer>),
    /// A member of a consumer group.
    Group(Arc<Grant>),
    /// A cancel of delayed messages.
    CancelDelayed(Arc<Outbox>, CorrelationId),
}

/// Who is attached to a durable subscription on this partition.
struct Owner {
    outbox: Arc<Outbox>,
    reader: u64,
    owner_epoch: u64,
    /// It reads as a member of this group, which tells it what there is to tell.
    group: Option<Arc<GroupHandle>>,
}

/// See the module.
pub(crate) struct Leader {
    core: Partition<Route>,
    /// Bound: the topic's durable subscriptions.
    owners: BTreeMap<SubscriptionId, Owner>,
    /// Who consumes queues.
    members: Members,
    /// When the tick comes for the queues, if it does.
    queue_wake: Option<Duration>,
    effects: Vec<Effect<Route>>,
    /// What is counted of delayed messages so far.
    delay_totals: DelayTotals,
    /// What is counted so far of messages that left queues: expired, evicted.
    left_totals: (u64, u64),
    /// Where the newest snapshot, written or asked for, ends.
    snapshot_end: EntryIndex,
    /// Its size, and the bytes appended since.
    snapshot_bytes: u64,
    bytes_since: u64,
    /// The version of the topic's subscriptions that this agrees with.
    pub(crate) subscriptions_version: u64,
    /// When it was last tried to create what the topic's subscriptions say, in monotonic time.
    subscriptions_tried: Duration,
}

impl Leader {
    pub(crate) fn new(partition: &PartitionHandle, state: PartitionState) -> Self {
        let hub = &partition.hub;
        let identity = PartitionIdentity {
            topic: partition.key.topic,
            partition: partition.key.partition,
            durability: partition.durability(),
            leader_epoch: hub.identity.leader_epoch,
            node: hub.identity.node,
        };
        let limits = PartitionLimits {
            dedup_bytes_max: hub.options.dedup_bytes_per_partition,
            ..PartitionLimits::default()
        };
        Self {
            delay_totals: state.delays().totals(),
            left_totals: queue::left_totals(&state),
            core: Partition::new(identity, state, limits),
            owners: BTreeMap::new(),
            members: Members::default(),
            queue_wake: None,
            effects: Vec::new(),
            snapshot_end: partition.log.snapshot_index().unwrap_or_default(),
            snapshot_bytes: 0,
            bytes_since: 0,
            subscriptions_version: 0,
            subscriptions_tried: Duration::ZERO,
        }
    }

    pub(crate) fn state(&self) -> &PartitionState {
        self.core.state()
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.core.high_watermark().offset
    }

    /// Whether a live session is attached.
    pub(crate) fn is_attached(&self, subscription: SubscriptionId) -> bool {
        self.owners.get(&subscription).is_some_and(|owner| !owner.outbox.is_closed())
    }

    /// Whether subscriptions of the topic could not be created here so far, and it is time to try again.
    pub(crate) fn may_try_subscriptions(&self, now: Now) -> bool {
        !self.core.required().is_empty() && now.monotonic >= self.subscriptions_tried + RETRY_WAIT
    }

    /// Creates what the topic's subscriptions say and the partition lacks; removes the others.
    pub(crate) fn reconcile(
        &mut self,
        partition: &PartitionHandle,
        wanted: &BTreeMap<SubscriptionId, Subscription>,
        turn: &mut Turn<'_>,
    ) {
        let orphans: Vec<SubscriptionId> = self
            .state()
            .subscriptions()
            .iter()
            .map(|(id, _state)| id)
            .filter(|id| !wanted.contains_key(id))
            .collect();
        for orphan in orphans {
            self.unsubscribe(partition, orphan, turn);
        }
        self.subscriptions_tried = turn.now.monotonic;
        self.core.require_subscriptions(wanted.keys().copied());
        for id in self.core.required().to_vec() {
            if let Some(subscription) = wanted.get(&id) {
                self.create_subscription(partition, subscription, turn);
            }
        }
        self.set_policies(partition, wanted.values(), turn);
    }

    /// Takes the topic's bounds.
    pub(crate) fn set_bounds(&mut self, bounds: TopicBounds) {
        self.core.set_bounds(bounds);
    }

    /// Decides a batch and queues it. The caller has validated it.
    pub(crate) fn publish(
        &mut self,
        partition: &PartitionHandle,
        publish: &Publish,
        keys: &[Keyed],
        outbox: &Arc<Outbox>,
        turn: &Turn<'_>,
    ) {
        let request = self.request(partition, publish, keys, outbox);
        let decision = self.core.publish(turn.now, request, &mut self.effects);
        self.charge_and_follow(partition, decision, publish.batch.body.len(), outbox);
    }

    /// The same of an atomic batch.
    pub(crate) fn publish_atomic(
        &mut self,
        partition: &PartitionHandle,
        atomic: &PublishAtomic,
        keys: &[Keyed],
        outbox: &Arc<Outbox>,
        turn: &Turn<'_>,
    ) {
        let PublishAtomic { at, publish } = atomic;
        let request = self.request(partition, publish, keys, outbox);
        let decision = self.core.publish_atomic(turn.now, request, *at, &mut self.effects);
        self.charge_and_follow(partition, decision, publish.batch.body.len(), outbox);
    }

    /// What core is asked, and told before: how many messages a bounded log topic keeps.
    fn request<'a>(
        &mut self,
        partition: &PartitionHandle,
        publish: &'a Publish,
        keys: &'a [Keyed],
        outbox: &Arc<Outbox>,
    ) -> PublishRequest<'a, Route> {
        if partition.counts_kept() && self.core.may_be_full() {
            self.core.count_kept_from(partition.log_start());
        }
        PublishRequest {
            head: &publish.head,
            batch: &publish.batch,
            keys,
            connection: ConnectionId(outbox.session),
            producer_ids_end: partition.hub.producer_ids_end(),
            route: Route::Publish(Arc::clone(outbox)),
        }
    }

    /// What a publish leads to. Its bytes are charged before the store is asked: the answer takes them back
    /// even if it is a refusal.
    fn charge_and_follow(
        &mut self,
        partition: &PartitionHandle,
        decision: Decision<Route>,
        bytes: usize,
        outbox: &Outbox,
    ) {
        match decision {
            Decision::Append(pending) => {
                outbox.begin_publish(bytes);
                self.append(partition, pending);
            }
            Decision::Waits => outbox.begin_publish(bytes),
            Decision::Done => {}
        }
    }

    /// Tells how many idempotency keys there are.
    pub(crate) fn count_keys(&self, partition: &PartitionHandle) {
        let keys = self.state().dedup();
        if !keys.is_empty() || partition.remembered().0 > 0 {
            partition.set_remembered(keys.len(), keys.memory_bytes() as u64);
        }
    }

    pub(crate) fn ack_up_to(
        &mut self,
        partition: &PartitionHandle,
        ack: AckUpTo,
        outbox: &Arc<Outbox>,
        correlation: CorrelationId,
        turn: &Turn<'_>,
    ) {
        let route = Route::Ack(Arc::clone(outbox), correlation);
        let decision = self.core.ack_up_to(turn.now, ack, route, &mut self.effects);
        self.follow(partition, decision);
    }

    /// Attaches a session to a subscription: the subscription is created if need be, and its owner
    /// changes when that is durable.
    pub(crate) fn attach(
        &mut self,
        partition: &PartitionHandle,
        subscription: &Subscription,
        operation: &Arc<Operation>,
        turn: &Turn<'_>,
    ) {
        self.own(partition, subscription, Route::Step(Arc::clone(operation)), turn);
    }

    /// Gives a subscription, which is created if need be, a new owner epoch.
    pub(crate) fn own(
        &mut self,
        partition: &PartitionHandle,
        subscription: &Subscription,
        route: Route,
        turn: &Turn<'_>,
    ) {
        self.create_subscription(partition, subscription, turn);
        let decision = self.core.set_owner(turn.now, subscription.id, route, &mut self.effects);
        self.follow(partition, decision);
    }

    fn create_subscription(
        &mut self,
        partition: &PartitionHandle,
        subscription: &Subscription,
        turn: &Turn<'_>,
    ) {
        let start = match subscription.start_on(partition.partition()) {
            Start::Latest => SubscribeStart::Latest,
            place => {
                let offset = resolve(partition, &place).unwrap_or_else(|_| partition.log_start());
                SubscribeStart::Offset(offset.min(self.core.tail_end().offset))
            }
        };
        let (id, route) = (subscription.id, Route::Nobody);
        let mode = match subscription.queue {
            None => SubscriptionMode::Stream,
            Some(_) => SubscriptionMode::Queue,
        };
        let decision = self.core.subscribe(turn.now, id, start, mode, route, &mut self.effects);
        self.follow(partition, decision);
    }

    pub(crate) fn seek(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        to: &Start,
        operation: &Arc<Operation>,
        turn: &Turn<'_>,
    ) {
        let route = Route::Step(Arc::clone(operation));
        match resolve(partition, to) {
            Ok(to) => {
                let decision = self.core.seek(turn.now, subscription, to, route, &mut self.effects);
                self.follow(partition, decision);
            }
            Err(error) => self.effects.push(Effect::Refused { route, error }),
        }
    }

    pub(crate) fn unsubscribe(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        turn: &mut Turn<'_>,
    ) {
        self.end_queue(partition, subscription, turn);
        let decision =
            self.core.unsubscribe(turn.now, subscription, Route::Nobody, &mut self.effects);
        self.follow(partition, decision);
    }

    /// The session reads the subscription no more.
    pub(crate) fn detach(
        &mut self,
        subscription: SubscriptionId,
        outbox: &Arc<Outbox>,
        reader: u64,
    ) {
        if self
            .owners
            .get(&subscription)
            .is_some_and(|owner| owner.reader == reader && Arc::ptr_eq(&owner.outbox, outbox))
        {
            self.owners.remove(&subscription);
        }
    }

    /// A member reads the subscription no more, under this epoch or an earlier one.
    pub(crate) fn detach_member(
        &mut self,
        subscription: SubscriptionId,
        outbox: &Arc<Outbox>,
        owner_epoch: u64,
    ) {
        if self.owners.get(&subscription).is_some_and(|owner| {
            owner.owner_epoch <= owner_epoch && Arc::ptr_eq(&owner.outbox, outbox)
        }) {
            self.owners.remove(&subscription);
        }
    }

    pub(crate) fn expire_sessions(&mut self, partition: &PartitionHandle, turn: &Turn<'_>) {
        if let Some(pending) = self.core.expire_sessions(turn.now) {
            self.append(partition, pending);
        }
    }

    /// Closes the segment that is written: what comes next, which says the time alone, begins another one.
    pub(crate) fn close_segment(&mut self, partition: &PartitionHandle, turn: &Turn<'_>) {
        if !partition.log.begin_segment() {
            return;
        }
        if let Some(pending) = self.core.mark_time(turn.now) {
            self.append(partition, pending);
        }
    }

    pub(crate) fn advance(
        &mut self,
        partition: &PartitionHandle,
        ready: Position,
        turn: &Turn<'_>,
    ) {
        self.core.advance(ready, &mut self.effects);
        while let Some(pending) = self.core.poll_append(turn.now) {
            if !self.append(partition, pending) {
                break;
            }
        }
        self.count_delays(partition);
        self.count_keys(partition);
        self.count_left(partition);
        self.watch_queues(partition);
        self.check_snapshot(partition);
    }

    fn follow(&mut self, partition: &PartitionHandle, decision: Decision<Route>) {
        match decision {
            Decision::Append(pending) => {
                self.append(partition, pending);
            }
            Decision::Waits | Decision::Done => {}
        }
    }

    /// Queues entries, in order; answers for what the store refuses. Tells whether it took all.
    fn append(&mut self, partition: &PartitionHandle, mut pending: PendingAppend<Route>) -> bool {
        while let Some(draft) = pending.next_entry() {
            let bytes = draft.body.len() as u64;
            match partition.log.append(new_entry(draft)) {
                Ok(appended) => {
                    self.bytes_since += bytes;
                    let appended = Appended {
                        index: appended.index,
                        base_offset: appended.base_offset,
                        append_time: appended.append_time,
                    };
                    self.core.appended(&mut pending, appended);
                }
                Err(error) => {
                    self.core.append_failed(pending, refusal(error), &mut self.effects);
                    return false;
                }
            }
        }
        true
    }

    fn check_snapshot(&self, partition: &PartitionHandle) {
        let options = &partition.hub.options;
        let entries = self.core.high_watermark().index.0.saturating_sub(self.snapshot_end.0);
        // A large state is written less often, so that snapshots stay a small part of what is written.
        let bytes_max = options.snapshot_after_bytes.max(8 * self.snapshot_bytes);
        let entries_max =
            options.snapshot_after_entries.max(self.snapshot_bytes / SNAPSHOT_BYTES_PER_ENTRY);
        if entries >= entries_max || self.bytes_since >= bytes_max {
            partition.want_snapshot();
        }
    }

    /// The state for a snapshot, to be encoded and handed to the store without the lock. None if there is nothing new,
    /// unless one is wanted `again`: nothing is released on the word of a single one.
    pub(crate) fn draft_snapshot(&self, again: bool) -> Option<(EntryIndex, SnapshotDraft)> {
        let end = self.core.state().end().index;
        (again || end > self.snapshot_end).then(|| (end, self.core.state().draft_snapshot()))
    }

    /// Hands an encoded draft to the store; tells its size, 0 if the store had no room for it. Under the lock, and
    /// never one that is older than the last: what that one made dispensable may be gone.
    pub(crate) fn write_snapshot(
        &mut self,
        partition: &PartitionHandle,
        end: EntryIndex,
        bytes: Bytes,
    ) -> u64 {
        let len = bytes.len() as u64;
        if end < self.snapshot_end || !partition.log.write_snapshot(end, bytes) {
            return 0;
        }
        self.snapshot_end = end;
        self.snapshot_bytes = len;
        self.bytes_since = 0;
        len
    }

    /// The disk failed: answers everything that waits.
    pub(crate) fn fail(&mut self) {
        if !self.core.has_failed() {
            self.core.fail(&mut self.effects);
        }
    }

    /// The topic is gone: answers everything that waits and cuts subscribers off.
    pub(crate) fn close(&mut self, partition: &PartitionHandle, turn: &mut Turn<'_>) {
        let error = ErrorBody::new(ErrorCode::UnknownTopic, "the topic was deleted");
        for owner in std::mem::take(&mut self.owners).into_values() {
            owner.tell(SessionTask::Closed { reader: owner.reader, error: error.clone() }, turn);
        }
        for attachment in self.members.clear() {
            attachment.close(&error, turn);
        }
        // Whether it was stored does not matter any more, and nobody could ever read it.
        self.fail();
        for effect in &mut self.effects {
            match effect {
                Effect::Confirm { run, .. } => {
                    if let Outcome::Unknown { error: unknown } = &mut run.outcome {
                        *unknown = ErrorBody::new(
                            ErrorCode::Internal,
                            "the topic was deleted while this was being stored",
                        );
                    }
                }
                Effect::Refused { error: refused, .. } => *refused = error.clone(),
                Effect::Released { .. }
                | Effect::Committed { .. }
                | Effect::OwnerChanged { .. }
                | Effect::Settled { .. }
                | Effect::QueueReady { .. }
                | Effect::LeasesLost { .. }
                | Effect::DelaysCancelled { .. }
                | Effect::DelaysReleased { .. }
                | Effect::DeadLetters { .. } => {}
            }
        }
        self.carry_out(partition, turn);
    }

    /// Carries the effects so far to those whom they concern.
    pub(crate) fn carry_out(&mut self, partition: &PartitionHandle, turn: &mut Turn<'_>) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Confirm { route, run, bytes } => {
                    count_outcome(partition, &run);
                    if let Route::Letter(queue, target) = route {
                        let now = turn.now.monotonic;
                        let hub = &partition.hub;
                        let stored = hub.dead_letters.confirmed(queue, target, &run, now);
                        hub.counters.queue_dead_lettered.add(stored);
                        continue;
                    }
                    confirm(&route, Some(run), bytes, turn);
                }
                Effect::Released { route, bytes } => confirm(&route, None, bytes, turn),
                Effect::Committed { route, subscription, what } => {
                    self.committed(partition, route, subscription, what, turn);
                }
                Effect::Refused { route, error } => refused(partition, &route, error, turn),
                Effect::OwnerChanged { subscription, change, owner_epoch, next } => {
                    self.owner_changed(partition, subscription, change, (owner_epoch, next), turn);
                }
                Effect::Settled { route, commit_index, exceptions, .. } => match &route {
                    Route::Settle(settling) => {
                        Self::settled(partition, settling, commit_index, exceptions, turn);
                    }
                    Route::Redrive(answer) => answer.give(turn.wakes),
                    Route::Nobody
                    | Route::Publish(_)
                    | Route::Ack(..)
                    | Route::Step(_)
                    | Route::Letter(..)
                    | Route::CancelDelayed(..)
                    | Route::Group(_) => {}
                },
                Effect::QueueReady { subscription, member } => {
                    self.queue_ready(subscription, member, turn);
                    self.watch_queues(partition);
                }
                Effect::LeasesLost { member, sub_epoch, runs, .. } => {
                    self.leases_lost(partition, member, sub_epoch, runs, turn);
                }
                Effect::DelaysCancelled { route, verdicts } => {
                    if let Route::CancelDelayed(outbox, correlation) = route {
                        let reply = CancelDelayedReply { verdicts };
                        outbox.push_reply(frame::reply(&reply, correlation));
                        turn.wakes.mark(&outbox);
                    }
                }
                Effect::DelaysReleased { count, late } => {
                    partition.hub.counters.delay_lateness.add(late, u64::from(count));
                }
                Effect::DeadLetters { subscription } => {
                    partition.hub.dead_letters.want(partition, subscription);
                }
            }
        }
        self.effects = effects;
    }

    fn committed(
        &mut self,
        partition: &PartitionHandle,
        route: Route,
        subscription: SubscriptionId,
        what: StateCommitted,
        turn: &mut Turn<'_>,
    ) {
        match (route, what) {
            (Route::Ack(outbox, correlation), StateCommitted::Acked { .. }) => {
                partition.hub.counters.acks.add(1);
                outbox.push_reply(frame::reply(&AckUpToReply {}, correlation));
                turn.wakes.mark(&outbox);
            }
            (Route::Step(operation), StateCommitted::Owned { owner_epoch, acked }) => {
                let (outbox, reader) = (Arc::clone(&operation.outbox), operation.reader());
                self.owners
                    .insert(subscription, Owner { outbox, reader, owner_epoch, group: None });
                let partition = partition.partition();
                let step = Step { partition, owner_epoch, next: acked, evicted: 0 };
                operation.step(Ok(step), turn.wakes);
            }
            (Route::Group(grant), StateCommitted::Owned { owner_epoch, acked }) => {
                let (outbox, reader) = (Arc::clone(&grant.seat.outbox), grant.seat.reader);
                let partition = partition.partition();
                let heard = Heard::OwnerSet { partition, owner_epoch, next: acked };
                grant.group.hear(heard, &outbox, turn.wakes);
                let group = Some(Arc::clone(&grant.group));
                self.owners.insert(subscription, Owner { outbox, reader, owner_epoch, group });
            }
            (Route::Step(operation), StateCommitted::Sought { owner_epoch, next, evicted }) => {
                let step = Step { partition: partition.partition(), owner_epoch, next, evicted };
                operation.step(Ok(step), turn.wakes);
            }
            (
                Route::Nobody
                | Route::Publish(_)
                | Route::Ack(..)
                | Route::Step(_)
                | Route::Settle(_)
                | Route::Letter(..)
                | Route::Redrive(_)
                | Route::CancelDelayed(..)
                | Route::Group(_),
                _,
            ) => {}
        }
    }

    fn owner_changed(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        change: OwnerChange,
        (owner_epoch, next): (u64, Offset),
        turn: &mut Turn<'_>,
    ) {
        let Some(owner) = self.owners.get_mut(&subscription) else { return };
        if let Some(group) = &owner.group {
            let partition = partition.partition();
            let heard = match change {
                OwnerChange::Sought => {
                    owner.owner_epoch = owner_epoch;
                    Heard::Sought { partition, owner_epoch, next }
                }
                // By the group itself, which then knows better, or by a subscriber outside.
                OwnerChange::Attached => Heard::Taken { partition },
                // The group finds out that its subscription is gone.
                OwnerChange::Deleted => return,
            };
            group.hear(heard, &owner.outbox, turn.wakes);
            if change == OwnerChange::Attached {
                self.owners.remove(&subscription);
            }
            return;
        }
        let reader = owner.reader;
        let task = match change {
            OwnerChange::Sought => {
                owner.owner_epoch = owner_epoch;
                let partition = partition.partition();
                owner.tell(SessionTask::Seeked { reader, partition, owner_epoch, next }, turn);
                return;
            }
            OwnerChange::Attached => partition.hub.error(
                ErrorCode::SubscriptionTaken,
                "another consumer attached to the subscription; a stream subscription has one at a time",
            ),
            OwnerChange::Deleted => {
                partition.hub.error(ErrorCode::UnknownSubscription, "the subscription was deleted")
            }
        };
        owner.tell(SessionTask::Closed { reader, error: task }, turn);
        self.owners.remove(&subscription);
    }
}

impl Owner {
    fn tell(&self, task: SessionTask, turn: &mut Turn<'_>) {
        self.outbox.push_task(task);
        turn.wakes.mark(&self.outbox);
    }
}

fn confirm(route: &Route, run: Option<ConfirmRun>, bytes: usize, turn: &mut Turn<'_>) {
    if let Route::Publish(outbox) = route {
        outbox.push_confirm(run, bytes);
        turn.wakes.mark(outbox);
    }
}

fn refused(partition: &PartitionHandle, route: &Route, error: ErrorBody, turn: &mut Turn<'_>) {
    let error = partition.hub.refuse(error);
    match route {
        Route::Ack(outbox, correlation) => {
            outbox.push_reply(frame::error_reply(Api::AckUpTo as u16, *correlation, &error));
            turn.wakes.mark(outbox);
        }
        Route::CancelDelayed(outbox, correlation) => {
            let reply = frame::error_reply(Api::CancelDelayed as u16, *correlation, &error);
            outbox.push_reply(reply);
            turn.wakes.mark(outbox);
        }
        Route::Redrive(answer) => answer.refuse(&error, turn.wakes),
        Route::Step(operation) => operation.step(Err(error), turn.wakes),
        Route::Settle(settling) => {
            let api = settling.kind.api() as u16;
            let reply = frame::error_reply(api, settling.correlation, &error);
            settling.outbox.push_reply(reply);
            turn.wakes.mark(&settling.outbox);
        }
        Route::Group(grant) => {
            let heard = Heard::Refused { partition: partition.partition() };
            grant.group.hear(heard, &grant.seat.outbox, turn.wakes);
        }
        Route::Nobody => {
            tracing::warn!(partition = ?partition.key, %error, "a state entry was refused");
        }
        Route::Publish(_) | Route::Letter(..) => {}
    }
}

/// A client's publish, for the core.
fn count_outcome(partition: &PartitionHandle, run: &ConfirmRun) {
    let counters = &partition.hub.counters;
    let count = u64::from(run.count);
    match &run.outcome {
        Outcome::Committed { .. } | Outcome::Delayed { .. } => {
            counters.committed_messages.add(count);
        }
        Outcome::Duplicate { .. } | Outcome::DelayedDuplicate { .. } => {
            counters.duplicate_messages.add(count)
        }
        Outcome::Rejected { error } => {
            counters.rejected_messages.add(count);
            counters.errors.add(error.code);
        }
        Outcome::Unknown { error } => {
            counters.unknown_messages.add(count);
            counters.errors.add(error.code);
        }
    }
}

/// The offset at a place of a partition, at most the high watermark unless an offset was named.
pub(crate) fn resolve(partition: &PartitionHandle, place: &Start) -> Result<Offset, ErrorBody> {
    let high_watermark = partition.high_watermark();
    match place {
        Start::Earliest => Ok(partition.log_start()),
        Start::Latest => Ok(high_watermark),
        Start::Offset(offset) => Ok(*offset),
        Start::Timestamp(time) => match partition.log.offset_at(*time) {
            Ok(offset) => Ok(offset.min(high_watermark)),
            Err(ReadError::BelowStart { log_start }) => Ok(log_start.1),
            Err(ReadError::Damaged(damage)) => Ok(damage.from_offset.min(high_watermark)),
            Err(ReadError::Vacant(vacancy)) => Ok(vacancy.end_offset.min(high_watermark)),
            Err(ReadError::Io(error)) => Err(ErrorBody::new(
                ErrorCode::Internal,
                format!("the log could not be read ({error}); see the broker's log"),
            )),
        },
        Start::PerPartition(offsets) => {
            let named = offsets.iter().find(|(id, _)| *id == partition.partition());
            Ok(named.map_or_else(|| partition.log_start(), |(_, offset)| *offset))
        }
    }
}

fn new_entry(draft: EntryDraft) -> NewEntry {
    let EntryDraft {
        kind,
        flags,
        leader_epoch,
        append_time,
        record_count,
        seq_count,
        body,
        body_crc,
        trailer,
    } = draft;
    NewEntry {
        kind,
        flags,
        leader_epoch,
        append_time,
        record_count,
        seq_count,
        body,
        body_crc,
        trailer,
    }
}

pub(crate) fn refusal(error: AppendError) -> Refusal {
    match error {
        AppendError::Full => Refusal::DiskFull,
        AppendError::QueueFull => Refusal::QueueFull,
        AppendError::Dropped => Refusal::Dropped,
        AppendError::Closed => Refusal::Closed,
        AppendError::Poisoned => Refusal::Failed,
        AppendError::TooLarge => Refusal::TooLarge,
    }
}
