//! Owns the leadership's part in queues: consumers come and go, leases, acks, returns, and the effects that
//! follow. Never decides who gets a message (core does), never reads a log. Driven by `PartitionHandle`, like
//! the rest of the leader.

use std::sync::Arc;

use postrider_core::metadata::Subscription;
use postrider_core::partition::{
    Aged, ConnectionId, Decision, Effect, ExpiryAsk, PartitionState, PublishRequest,
};
use postrider_core::queue::{
    AckRequest, Ahead, DeadLetter, DeadTarget, LeaseCredit, LeaseStep, MemberKey, QueueMember,
    QueueStats, Redrivable, ReturnRequest, Why,
};
use postrider_core::thinning::Kept;
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame;
use postrider_protocol::message::{
    AckReply, AckRun, ConfirmRun, ConsumedPartition, HeldLeases, LeaseLost, LeaseRun, Outcome,
    ReturnReply, SettleException,
};
use postrider_protocol::types::{
    CorrelationId, EntryIndex, MemberId, Offset, PartitionId, SubscriptionId, TopicId,
};

use super::{Leader, Route};
use crate::join::dead_letters::QueueKey;
use crate::join::letter::Letter;
use crate::join::members::Attachment;
use crate::join::operation::Operation;
use crate::join::outbox::Outbox;
use crate::join::partition::{PartitionHandle, Turn};
use crate::join::redrive::Answer;
use crate::join::session::SessionTask;

/// What a consumer read ahead for core.
pub(crate) struct Fed {
    pub(crate) from: Offset,
    pub(crate) ahead: Vec<Ahead>,
    pub(crate) next: Offset,
}

/// Which request settles messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SettleKind {
    Ack,
    Return,
}

impl SettleKind {
    pub(super) fn api(self) -> Api {
        match self {
            Self::Ack => Api::Ack,
            Self::Return => Api::Return,
        }
    }
}

/// Who waits for messages to be settled.
#[derive(Clone)]
pub(crate) struct Settling {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) correlation: CorrelationId,
    pub(crate) kind: SettleKind,
    /// Messages that the request names.
    pub(crate) messages: u64,
}

/// A consumer that wants to be attached.
pub(crate) struct NewMember<'a> {
    pub(crate) subscription: SubscriptionId,
    pub(crate) id: MemberId,
    pub(crate) name: &'a str,
    pub(crate) attachment: Attachment,
    /// What it holds from before.
    pub(crate) held: Option<&'a HeldLeases>,
}

/// Messages that left all queues of a partition: expired, evicted.
pub(super) fn left_totals(state: &PartitionState) -> (u64, u64) {
    let totals = state.queues().map(|(_id, queue)| queue.totals());
    totals.fold((0, 0), |(expired, evicted), one| (expired + one.expired, evicted + one.evicted))
}

impl Leader {
    /// Tells core the policies of the topic's queues. Whoever waits asks again: a queue may go on. Where
    /// dead letters go is looked up anew.
    pub(super) fn set_policies<'a>(
        &mut self,
        partition: &PartitionHandle,
        subscriptions: impl Iterator<Item = &'a Subscription>,
        turn: &mut Turn<'_>,
    ) {
        for subscription in subscriptions {
            if let Some(policy) = &subscription.queue {
                self.core.set_queue_policy(subscription.id, policy.clone());
                self.core.set_dead_letter_target(subscription.id, None);
                self.core.begin_queue(turn.now, subscription.id);
                if self.core.dead_intents(subscription.id).next().is_some() {
                    partition.hub.dead_letters.want(partition, subscription.id);
                }
                self.members.wake_all(subscription.id, turn.wakes);
            }
        }
        self.watch_queues(partition);
    }

    /// Attaches a consumer.
    ///
    /// # Errors
    /// There is no such queue here, or the disk has failed.
    pub(crate) fn consume(
        &mut self,
        partition: &PartitionHandle,
        new: NewMember<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<(MemberKey, ConsumedPartition), ErrorBody> {
        let NewMember { subscription, id, name, attachment, held } = new;
        let (outbox, cursor) = (Arc::clone(&attachment.outbox), attachment.cursor);
        let now = turn.now.monotonic;
        let (member, before) = self.members.attach((subscription, id), name, attachment, now);
        if let Some(before) = before {
            let text = "the same consumer attached again, on another connection or handle";
            before.close(&partition.hub.error(ErrorCode::SubscriptionTaken, text), turn);
        }
        let runs = held.map_or(&[][..], |held| &held.runs);
        let epochs = held.map(|held| (held.sub_epoch, held.leader_epoch));
        let consumed = self.core.consume(
            turn.now,
            subscription,
            (member, name),
            runs,
            epochs,
            &mut self.effects,
        );
        self.watch_queues(partition);
        match consumed {
            Ok(consumed) => {
                let place = ConsumedPartition {
                    partition: partition.partition(),
                    sub_epoch: consumed.sub_epoch,
                    leader_epoch: partition.hub.identity.leader_epoch,
                    held: consumed.held,
                };
                Ok((member, place))
            }
            Err(error) => {
                self.members.detach(member, &outbox, cursor, now);
                Err(error)
            }
        }
    }

    /// A consumer has gone; `clean` if it gave back what it held.
    pub(crate) fn leave(
        &mut self,
        partition: &PartitionHandle,
        (subscription, member): (SubscriptionId, MemberKey),
        (outbox, cursor): (&Arc<Outbox>, u64),
        clean: Clean,
        turn: &mut Turn<'_>,
    ) {
        if !self.members.detach(member, outbox, cursor, turn.now.monotonic) {
            return;
        }
        let clean = clean == Clean::Yes;
        let pending = self.core.leave(turn.now, subscription, member, clean, &mut self.effects);
        if let Some(pending) = pending {
            self.append(partition, pending);
        }
        // It may have been woken for something that it leaves to others.
        self.members.wake(subscription, turn.now.monotonic, turn.wakes);
        self.watch_queues(partition);
    }

    /// Leases messages to a consumer; one that finds nothing waits in the line.
    pub(crate) fn lease(
        &mut self,
        partition: &PartitionHandle,
        (subscription, member): (SubscriptionId, MemberKey),
        credit: LeaseCredit,
        fed: Option<Fed>,
        turn: &mut Turn<'_>,
    ) -> LeaseStep {
        self.members.asks(subscription);
        if let Some(Fed { from, ahead, next }) = fed {
            self.core.feed(subscription, from, &ahead, next);
        }
        let step = self.core.lease(turn.now, subscription, member, credit);
        match &step {
            LeaseStep::Leased { more: true, .. } | LeaseStep::NoCredit => {
                self.members.wake(subscription, turn.now.monotonic, turn.wakes);
            }
            LeaseStep::Idle => self.members.wait(member),
            LeaseStep::Leased { more: false, .. }
            | LeaseStep::LookAhead { .. }
            | LeaseStep::Refused(_) => {}
        }
        self.watch_queues(partition);
        step
    }

    /// What was leased could not be sent.
    pub(crate) fn give_back(
        &mut self,
        partition: &PartitionHandle,
        (subscription, member): (SubscriptionId, MemberKey),
        runs: &[LeaseRun],
        turn: &Turn<'_>,
    ) {
        self.core.give_back(turn.now, subscription, member, runs, &mut self.effects);
        self.watch_queues(partition);
    }

    /// Messages of a range are gone from the log.
    pub(crate) fn evict(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        (from, to): (Offset, Offset),
        turn: &Turn<'_>,
    ) {
        let decision = self.core.evict(turn.now, subscription, from, to, &mut self.effects);
        self.follow(partition, decision);
    }

    pub(crate) fn ack(
        &mut self,
        partition: &PartitionHandle,
        request: AckRequest,
        settling: Settling,
        turn: &Turn<'_>,
    ) {
        let route = Route::Settle(settling);
        let decision = self.core.ack(turn.now, request, route, &mut self.effects);
        self.follow(partition, decision);
        self.watch_queues(partition);
    }

    pub(crate) fn give_return(
        &mut self,
        partition: &PartitionHandle,
        request: ReturnRequest,
        settling: Settling,
        turn: &Turn<'_>,
    ) {
        let route = Route::Settle(settling);
        let decision = self.core.give_return(turn.now, request, route, &mut self.effects);
        self.follow(partition, decision);
        self.watch_queues(partition);
    }

    pub(crate) fn renew(
        &mut self,
        (subscription, member): (SubscriptionId, MemberKey),
        started: u64,
        turn: &Turn<'_>,
    ) {
        // Whoever is not attached any more was told so; its leases end by themselves.
        let _gone = self.core.renew(turn.now, subscription, member, started);
    }

    /// Settles everything that is not settled.
    pub(crate) fn purge(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        operation: &Arc<Operation>,
        turn: &Turn<'_>,
    ) {
        let route = Route::Step(Arc::clone(operation));
        let decision = self.core.purge(turn.now, subscription, route, &mut self.effects);
        self.follow(partition, decision);
    }

    /// Does what time has brought.
    pub(crate) fn tick_queues(&mut self, partition: &PartitionHandle, turn: &mut Turn<'_>) {
        self.queue_wake = None;
        self.members.tick(turn.now.monotonic, turn.wakes);
        if let Some(pending) = self.core.tick_queues(turn.now, &mut self.effects) {
            self.append(partition, pending);
        }
        self.watch_queues(partition);
    }

    /// Which of these letters may be sent back now.
    ///
    /// # Errors
    /// There is no such queue here.
    pub(crate) fn redrivable(
        &mut self,
        subscription: SubscriptionId,
        letters: &[(Offset, DeadTarget)],
        turn: &Turn<'_>,
    ) -> Result<Redrivable, ErrorBody> {
        self.core.redrivable(turn.now, subscription, letters)
    }

    /// Sends letters back.
    pub(crate) fn redrive(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        letters: &[(Offset, DeadTarget)],
        answer: Answer,
        turn: &Turn<'_>,
    ) {
        let route = Route::Redrive(Arc::new(answer));
        let decision = self.core.redrive(turn.now, subscription, letters, route, &mut self.effects);
        self.follow(partition, decision);
        self.watch_queues(partition);
    }

    /// Has a message handed out now; tells what it was, and whether that changed anything.
    ///
    /// # Errors
    /// There is no such queue here.
    pub(crate) fn release_message(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        offset: Offset,
        turn: &Turn<'_>,
    ) -> Result<(&'static str, bool), ErrorBody> {
        let before = self.core.why(subscription, offset, turn.now)?;
        let released =
            self.core.release_message(turn.now, subscription, offset, &mut self.effects)?;
        self.watch_queues(partition);
        Ok((before.state, released))
    }

    /// Whether messages of a queue wait for their dead letter topic to be known.
    pub(crate) fn wants_dead_letter_topic(&self, subscription: SubscriptionId) -> bool {
        self.core.wants_dead_letter_target(subscription)
    }

    /// Counts messages that left queues with the newest entries.
    pub(super) fn count_left(&mut self, partition: &PartitionHandle) {
        let totals = left_totals(self.state());
        let before = std::mem::replace(&mut self.left_totals, totals);
        if totals != before {
            // They fall with a subscription that is deleted.
            let counters = &partition.hub.counters;
            counters.queue_expired.add(totals.0.saturating_sub(before.0));
            counters.queue_evicted.add(totals.1.saturating_sub(before.1));
        }
    }

    /// What is to be looked up of the age of messages.
    pub(crate) fn expiry_due(&self, turn: &Turn<'_>) -> Option<ExpiryAsk> {
        self.core.expiry_due(turn.now)
    }

    /// Takes what was found.
    pub(crate) fn expire(
        &mut self,
        partition: &PartitionHandle,
        (ask, aged): (ExpiryAsk, Aged),
        turn: &Turn<'_>,
    ) {
        if let Some(pending) = self.core.expire(turn.now, ask, aged, &mut self.effects) {
            self.append(partition, pending);
        }
        self.watch_queues(partition);
    }

    /// Tells where dead letters go; none if there is no such topic now. Tells which there are, in their order, at most `max`.
    pub(crate) fn dead_letters(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        target: Option<(TopicId, PartitionId)>,
        max: usize,
        _turn: &Turn<'_>,
    ) -> Vec<DeadLetter> {
        self.core.set_dead_letter_target(subscription, target);
        self.watch_queues(partition);
        self.core.dead_intents(subscription).take(max).cloned().collect()
    }

    /// Publishes a dead letter here; `false` if it is not taken. What becomes of it is told by its confirm.
    pub(crate) fn publish_letter(
        &mut self,
        partition: &PartitionHandle,
        queue: QueueKey,
        letter: &Letter,
        turn: &Turn<'_>,
    ) -> bool {
        let Letter { publish, target } = letter;
        let request = PublishRequest {
            head: &publish.head,
            batch: &publish.batch,
            keys: &[],
            connection: ConnectionId(0),
            producer_ids_end: partition.hub.producer_ids_end(),
            route: Route::Letter(queue, *target),
        };
        match self.core.publish_internal(turn.now, request, &mut self.effects) {
            Decision::Append(pending) => self.append(partition, pending),
            Decision::Waits => true,
            Decision::Done => matches!(
                self.effects.last(),
                Some(Effect::Confirm {
                    run: ConfirmRun { outcome: Outcome::Duplicate { .. }, .. },
                    ..
                })
            ),
        }
    }

    /// Letters are stored in their topic.
    pub(crate) fn dead_done(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        sub_epoch: u64,
        offsets: &[Offset],
        turn: &Turn<'_>,
    ) {
        let decision =
            self.core.dead_done(turn.now, subscription, sub_epoch, offsets, &mut self.effects);
        self.follow(partition, decision);
        self.watch_queues(partition);
    }

    /// Has the tick come back when something is due, if it would come later or not at all.
    pub(super) fn watch_queues(&mut self, partition: &PartitionHandle) {
        let release = self.core.next_release(partition.hub.now());
        let wakes = [self.core.next_queue_wake(), self.members.next_wake(), release];
        let Some(wake) = wakes.into_iter().flatten().min() else { return };
        if self.queue_wake.is_none_or(|known| wake < known) {
            partition.hub.queue_wakes.set(partition, self.queue_wake, wake);
            self.queue_wake = Some(wake);
        }
    }

    /// The numbers of a queue alone.
    pub(crate) fn queue_numbers(
        &self,
        subscription: SubscriptionId,
        now: postrider_core::Now,
    ) -> Option<QueueStats> {
        self.core.queue_stats(subscription, now)
    }

    /// Numbers and consumers, for people.
    pub(crate) fn queue_stats(
        &self,
        subscription: SubscriptionId,
        turn: &Turn<'_>,
    ) -> Option<(QueueStats, Vec<QueueMember>)> {
        let stats = self.core.queue_stats(subscription, turn.now)?;
        Some((stats, self.core.queue_members(subscription, turn.now)))
    }

    /// Name and id of a consumer.
    pub(crate) fn member(&self, key: MemberKey) -> Option<(String, MemberId)> {
        self.members.get(key).map(|member| (member.name.clone(), member.id))
    }

    pub(crate) fn why(
        &self,
        subscription: SubscriptionId,
        offset: Offset,
        turn: &Turn<'_>,
    ) -> Result<Why, ErrorBody> {
        self.core.why(subscription, offset, turn.now)
    }

    /// What of the log is needed for queues.
    pub(crate) fn kept(&self) -> Option<Kept> {
        self.core.kept()
    }

    pub(super) fn settled(
        partition: &PartitionHandle,
        settling: &Settling,
        commit_index: EntryIndex,
        exceptions: Vec<SettleException>,
        turn: &mut Turn<'_>,
    ) {
        let Settling { outbox, correlation, kind, messages } = settling;
        let excepted: u64 = exceptions.iter().map(|exception| u64::from(exception.count)).sum();
        let settled = messages.saturating_sub(excepted);
        let counters = &partition.hub.counters;
        let reply = match kind {
            SettleKind::Ack => {
                counters.queue_acked.add(settled);
                frame::reply(&AckReply { commit_index, exceptions }, *correlation)
            }
            SettleKind::Return => {
                counters.queue_returned.add(settled);
                frame::reply(&ReturnReply { commit_index, exceptions }, *correlation)
            }
        };
        outbox.push_reply(reply);
        turn.wakes.mark(outbox);
    }

    pub(super) fn queue_ready(
        &mut self,
        subscription: SubscriptionId,
        member: Option<MemberKey>,
        turn: &mut Turn<'_>,
    ) {
        match member {
            Some(member) => self.members.wake_one(member, turn.wakes),
            None => self.members.wake(subscription, turn.now.monotonic, turn.wakes),
        }
    }

    pub(super) fn leases_lost(
        &self,
        partition: &PartitionHandle,
        member: MemberKey,
        sub_epoch: u64,
        runs: Vec<AckRun>,
        turn: &mut Turn<'_>,
    ) {
        let count = runs.iter().map(|run| u64::from(run.count)).sum();
        partition.hub.counters.queue_leases_lost.add(count);
        let attachment = self.members.get(member).and_then(|member| member.attachment.as_ref());
        if let Some(Attachment { outbox, handle, .. }) = attachment {
            let (handle, partition) = (*handle, partition.partition());
            outbox.push_event(frame::event(&LeaseLost { handle, partition, sub_epoch, runs }));
            turn.wakes.mark(outbox);
        }
    }

    /// The subscription is gone: whoever consumes it is told.
    pub(super) fn end_queue(
        &mut self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        turn: &mut Turn<'_>,
    ) {
        for attachment in self.members.remove(subscription) {
            let text = "the subscription was deleted";
            attachment.close(&partition.hub.error(ErrorCode::UnknownSubscription, text), turn);
        }
    }
}

/// How a consumer leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clean {
    /// It said so: what it holds is handed out again at once.
    Yes,
    /// Its connection is gone: it may come back to what it holds.
    No,
}

impl Attachment {
    /// Tells the consumer's session that it has ended.
    pub(super) fn close(&self, error: &ErrorBody, turn: &mut Turn<'_>) {
        let (reader, error) = (self.consumer, error.clone());
        self.outbox.push_task(SessionTask::Closed { reader, error });
        turn.wakes.mark(&self.outbox);
    }
}
