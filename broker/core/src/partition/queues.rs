//! Owns the leader's answers to consumers of queue subscriptions. Never decides who gets a message (the
//! dispatcher in `queue` does). Driven by the join.
//!
//! A request is judged against the tail: after a seek or a purge is appended, leases before it are void,
//! committed or not, and nothing is handed out until it is committed.

use std::ops::Range;
use std::time::Duration;

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{
    AckRun, LeaseRun, QueuePartition, QueuePolicy, ReturnAction, SETTLE_MESSAGES_MAX,
};
use postrider_protocol::types::{
    EntryIndex, LeaderEpoch, Offset, PartitionId, Sequence, SubscriptionId, TimestampMs, TopicId,
};

use super::command::{StateCommand, SubscriptionMode};
use super::effect::{AckReply, Decision, Effect, PendingAppend, Reply, storage_failed};
use super::leader::Partition;
use super::queue_commands::{DeadIntent, Returned, reason_of};
use super::queue_ops::QueueOp;
use super::state::{Change, PartitionState};
use super::subscriptions::Subscriptions;
use crate::limits::{BOUNDS_PAUSE_MS, RETURN_DELAY_MS_MAX};
use crate::now::Now;
use crate::queue::{
    AckRequest, Ahead, Committed, Consumed, DeadLetter, DeadTarget, Dispatcher, Holds, LeaseCredit,
    LeaseStep, Leased, MemberKey, OffsetRange, QueueMember, QueueStats, ReturnCause, ReturnRequest,
    SettleHow, Speaks, Verdict, Why, merge, ms, stats_of,
};
use crate::thinning::Kept;

/// The committed state of a queue, unless a seek or a purge of it is in flight.
pub(super) fn committed<'a>(
    state: &'a PartitionState,
    tail: &Subscriptions,
    id: SubscriptionId,
) -> Option<Committed<'a>> {
    let queue = state.queue(id)?;
    let current = tail.get(id).is_some_and(|tail| tail.owner_epoch == queue.sub_epoch());
    current.then(|| Committed { queue, end: state.end().offset.0 })
}

impl<R: Clone> Partition<R> {
    /// Tells the policy of a queue subscription: when the partition is opened, and when it is altered.
    /// Without it nothing can be consumed.
    pub fn set_queue_policy(&mut self, id: SubscriptionId, policy: QueuePolicy) {
        match self.queues.get_mut(&id) {
            Some(queue) => {
                let committed = committed(&self.state, &self.tail_subscriptions, id);
                queue.set_policy(policy, committed);
            }
            None => {
                let mut queue = Dispatcher::new(policy, self.bounds);
                queue.set_overdue(None, self.expiry.before.0);
                self.queues.insert(id, queue);
            }
        }
    }

    /// Takes up what failed before this leadership, though no consumer may ever come: it may be about to die. To
    /// be called after the policy was told.
    pub fn begin_queue(&mut self, now: Now, id: SubscriptionId) {
        self.clock = now;
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let Some(committed) = committed(&self.state, &self.tail_subscriptions, id) else { return };
        if !committed.queue.failures().is_empty() {
            queue.begin(now, committed);
        }
    }

    /// Tells where dead letters of a queue subscription go: when the partition is opened if the topic
    /// exists, and after it was created, which `Effect::DeadLetters` asks for. Until then messages that
    /// are to die wait.
    pub fn set_dead_letter_target(
        &mut self,
        id: SubscriptionId,
        target: Option<(TopicId, PartitionId)>,
    ) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.set_target(target);
        }
    }

    /// Whether messages wait for [`Partition::set_dead_letter_target`].
    #[must_use]
    pub fn wants_dead_letter_target(&self, id: SubscriptionId) -> bool {
        self.queues.get(&id).is_some_and(Dispatcher::wants_target)
    }

    /// Attaches a consumer, by its name for people, or one that comes back. `held` is what it holds from
    /// before, of the subscription's epoch and the leadership in `held_epochs`.
    ///
    /// # Errors
    /// There is no such queue subscription here, or the disk has failed.
    pub fn consume(
        &mut self,
        now: Now,
        id: SubscriptionId,
        (member, name): (MemberKey, &str),
        held: &[AckRun],
        held_epochs: Option<(u64, LeaderEpoch)>,
        effects: &mut Vec<Effect<R>>,
    ) -> Result<Consumed, ErrorBody> {
        self.clock = now;
        let sub_epoch = self.tail_queue(id)?;
        let leader_epoch = self.identity.leader_epoch;
        let queue = self.queues.get_mut(&id).ok_or_else(no_policy)?;
        let committed = committed(&self.state, &self.tail_subscriptions, id);
        if let Some(committed) = committed {
            queue.begin(now, committed);
        }
        let holds = match held_epochs {
            Some((epoch, leader)) if epoch == sub_epoch && leader == leader_epoch => {
                Holds::Ours(held)
            }
            Some((epoch, leader)) if epoch == sub_epoch && leader < leader_epoch => {
                Holds::Earlier(held)
            }
            Some(_) | None => Holds::Nothing,
        };
        let held = queue.attach(ms(now.monotonic), committed, (member.0, name), holds);
        self.wake_queue(id, effects);
        Ok(Consumed { sub_epoch, held })
    }

    /// A consumer has gone. `clean`: it gave everything back; else it may come back to its leases within
    /// [`crate::limits::SESSION_GRACE_MS`].
    pub fn leave(
        &mut self,
        now: Now,
        id: SubscriptionId,
        member: MemberKey,
        clean: bool,
        effects: &mut Vec<Effect<R>>,
    ) -> Option<PendingAppend<R>> {
        self.clock = now;
        let queue = self.queues.get_mut(&id)?;
        if clean {
            queue.close(member.0);
        } else {
            queue.lose(ms(now.monotonic), member.0);
        }
        self.wake_queue(id, effects);
        None
    }

    /// Hands out messages.
    pub fn lease(
        &mut self,
        now: Now,
        id: SubscriptionId,
        member: MemberKey,
        credit: LeaseCredit,
    ) -> LeaseStep {
        self.clock = now;
        let sub_epoch = match self.tail_queue(id) {
            Ok(sub_epoch) => sub_epoch,
            Err(error) => return LeaseStep::Refused(error),
        };
        let waits_for_expiry = self.waits_for_expiry();
        let Some(queue) = self.queues.get_mut(&id) else {
            return LeaseStep::Refused(no_policy());
        };
        if !queue.is_attached(member.0) {
            return LeaseStep::Refused(ErrorBody::new(
                ErrorCode::UnknownSubscription,
                "the consumer is not attached; attach again",
            ));
        }
        let committed = committed(&self.state, &self.tail_subscriptions, id);
        let Some(committed) = committed.filter(|_| !waits_for_expiry) else {
            queue.idle = true;
            return LeaseStep::Idle;
        };
        match queue.lease(now, committed, member.0, credit) {
            Leased::Runs { runs, dispatch_number, more } => LeaseStep::Leased {
                runs,
                dispatch_number,
                dispatch_index: self.state.end().index,
                sub_epoch,
                more,
            },
            Leased::LookAhead { from, until } => {
                LeaseStep::LookAhead { from: Offset(from), until: Offset(until) }
            }
            Leased::Idle => LeaseStep::Idle,
            Leased::NoCredit => LeaseStep::NoCredit,
        }
    }

    /// Takes in what was read from `from` to `next`. What lies between and is not among `ahead` cannot be
    /// had any more; a tick evicts it.
    pub fn feed(&mut self, id: SubscriptionId, from: Offset, ahead: &[Ahead], next: Offset) {
        if let Some(queue) = self.queues.get_mut(&id)
            && let Some(committed) = committed(&self.state, &self.tail_subscriptions, id)
        {
            queue.feed(committed, from.0, ahead, next.0);
        }
    }

    /// Takes back what was handed out and not sent, as if it had never been handed out.
    pub fn give_back(
        &mut self,
        now: Now,
        id: SubscriptionId,
        member: MemberKey,
        runs: &[LeaseRun],
        effects: &mut Vec<Effect<R>>,
    ) {
        self.clock = now;
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.give_back(member.0, runs);
            self.wake_queue(id, effects);
        }
    }

    /// Settles the messages of a range that cannot be had any more. What a consumer has stays with it.
    pub fn evict(
        &mut self,
        now: Now,
        id: SubscriptionId,
        from: Offset,
        to: Offset,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        self.clock = now;
        if self.failed {
            return Decision::Done;
        }
        if let Some(queue) = self.queues.get_mut(&id)
            && let Some(committed) = committed(&self.state, &self.tail_subscriptions, id)
        {
            queue.begin(now, committed);
            let ranges = queue.evicting(committed, from.0, to.0);
            let sub_epoch = committed.queue.sub_epoch();
            self.acks.push_runs(id, sub_epoch, SettleHow::Evicted, ranges);
            self.wake_queue(id, effects);
        }
        self.poll_append(now).map_or(Decision::Done, Decision::Append)
    }

    /// Acknowledges messages. While an entry with acknowledgements is in flight, later ones wait and share
    /// the next.
    pub fn ack(
        &mut self,
        now: Now,
        request: AckRequest,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        self.clock = now;
        let AckRequest { id, member, sub_epoch, leader_epoch, started, runs } = request;
        let (queue, committed, speaks) =
            match self.leases_of(id, member, sub_epoch, leader_epoch, started, &runs) {
                Ok((queue, committed, true)) => (queue, committed, Speaks::Ack),
                Ok((queue, committed, false)) => (queue, committed, Speaks::Stale),
                Err(error) => return refuse(route, error, effects),
            };
        let judged = queue.judge(committed, member.0, &runs, speaks);
        if judged.accepted.is_empty() && !judged.repeats {
            let (subscription, exceptions) = (id, judged.exceptions);
            let commit_index = Default::default();
            effects.push(Effect::Settled { route, subscription, commit_index, exceptions });
            return Decision::Done;
        }
        queue.acking(&judged.accepted);
        self.wake_queue(id, effects);
        let reply = AckReply { route, subscription: id, exceptions: Some(judged.exceptions) };
        if judged.accepted.is_empty() && !self.acks.has_waiting() {
            self.join_settle_in_flight(reply);
            return Decision::Waits;
        }
        self.acks.push_runs(id, sub_epoch, SettleHow::Acked, judged.accepted);
        self.acks.push_reply(reply);
        self.poll_append(now).map_or(Decision::Waits, Decision::Append)
    }

    /// Has the newest acknowledgements in flight answer one more.
    fn join_settle_in_flight(&mut self, reply: AckReply<R>) {
        let settle = self.pending.iter_mut().rev().find_map(|pending| match &mut pending.reply {
            Reply::Acks(replies)
                if matches!(pending.entry.change, Change::State(StateCommand::Settle(_))) =>
            {
                Some(replies)
            }
            Reply::Acks(_)
            | Reply::Nobody
            | Reply::Session(_)
            | Reply::Publish(_)
            | Reply::State(_) => None,
        });
        settle.expect("an ack that is accepted is in flight").push(reply);
    }

    /// Gives messages back.
    pub fn give_return(
        &mut self,
        now: Now,
        request: ReturnRequest,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        self.clock = now;
        let ReturnRequest { id, member, sub_epoch, leader_epoch, started, runs, action } = request;
        let (queue, committed, speaks) =
            match self.leases_of(id, member, sub_epoch, leader_epoch, started, &runs) {
                Ok((queue, committed, true)) => (queue, committed, Speaks::Return),
                Ok((queue, committed, false)) => (queue, committed, Speaks::Stale),
                Err(error) => return refuse(route, error, effects),
            };
        queue.see(now);
        let judged = queue.judge(committed, member.0, &runs, speaks);
        let offsets = judged.accepted.iter().flat_map(|range| range.start.0..range.end.0);
        let now_ms = ms(now.monotonic);
        let verdicts: Vec<Verdict> = match &action {
            ReturnAction::Release => {
                offsets.for_each(|offset| queue.give_up(offset));
                Vec::new()
            }
            ReturnAction::Nack { delay_ms, reason } => {
                let (delay, reason) =
                    (delay_ms.map(|delay| delay.min(RETURN_DELAY_MS_MAX)), reason_of(reason));
                let cause = ReturnCause::Nack;
                offsets
                    .filter_map(|offset| queue.blame(now_ms, offset, cause, delay, &reason))
                    .collect()
            }
            ReturnAction::Reject { reason } => {
                let reason = reason_of(reason);
                offsets.filter_map(|offset| queue.reject(now_ms, offset, &reason)).collect()
            }
        };
        self.wake_queue(id, effects);
        let (subscription, exceptions) = (id, judged.exceptions);
        if verdicts.is_empty() {
            let commit_index = Default::default();
            effects.push(Effect::Settled { route, subscription, commit_index, exceptions });
            return Decision::Done;
        }
        self.pass(id, sub_epoch, verdicts);
        self.ops.push(QueueOp::Reply(AckReply {
            route,
            subscription,
            exceptions: Some(exceptions),
        }));
        self.poll_append(now).map_or(Decision::Waits, Decision::Append)
    }

    /// The queue that a request about leases speaks of, and whether it speaks of this leadership.
    fn leases_of(
        &mut self,
        id: SubscriptionId,
        member: MemberKey,
        sub_epoch: u64,
        leader_epoch: LeaderEpoch,
        started: u64,
        runs: &[AckRun],
    ) -> Result<(&mut Dispatcher, Committed<'_>, bool), ErrorBody> {
        let current = self.tail_queue(id)?;
        if sub_epoch != current {
            return Err(ErrorBody::new(
                ErrorCode::StaleSubscriptionEpoch,
                format!(
                    "the subscription has epoch {current}, the request {sub_epoch}; it was sought or \
                     purged since, and its leases are void"
                ),
            ));
        }
        let named: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        if named > SETTLE_MESSAGES_MAX {
            return Err(ErrorBody::new(
                ErrorCode::LimitExceeded,
                format!("the request names {named} messages, more than {SETTLE_MESSAGES_MAX}"),
            ));
        }
        let ours = leader_epoch == self.identity.leader_epoch;
        let queue = self.queues.get_mut(&id).ok_or_else(no_policy)?;
        let committed =
            committed(&self.state, &self.tail_subscriptions, id).ok_or_else(unknown_queue)?;
        if ours {
            queue.note_started(member.0, started);
        }
        Ok((queue, committed, ours))
    }

    /// Puts what is to be written about messages into the next entries.
    pub(super) fn pass(
        &mut self,
        subscription: SubscriptionId,
        sub_epoch: u64,
        verdicts: Vec<Verdict>,
    ) {
        for verdict in verdicts {
            let op = match verdict {
                Verdict::Fail { offset, failures, due_ms, cause, reason, consumer } => {
                    QueueOp::Fail(Returned {
                        subscription,
                        sub_epoch,
                        offset: Offset(offset),
                        failures,
                        due: TimestampMs(due_ms),
                        cause,
                        reason,
                        consumer,
                    })
                }
                Verdict::Die { offset, cause, failures, attempts, target, reason, consumer } => {
                    let offset = Offset(offset);
                    let queue = self.state.queue(subscription);
                    let known = queue.and_then(|queue| queue.failures().get(&offset));
                    let last = self.clock.wall;
                    let first = known.map_or(last, |failure| failure.first);
                    let sequence = Sequence(0);
                    let letter = DeadLetter {
                        sub_epoch,
                        offset,
                        cause,
                        failures,
                        attempts,
                        target,
                        sequence,
                        first,
                        last,
                        reason,
                        consumer,
                    };
                    QueueOp::Die(DeadIntent { subscription, letter })
                }
            };
            self.ops.push(op);
        }
    }

    /// Extends all leases of a consumer.
    ///
    /// # Errors
    /// It is not attached.
    pub fn renew(
        &mut self,
        now: Now,
        id: SubscriptionId,
        member: MemberKey,
        started: u64,
    ) -> Result<(), ErrorBody> {
        self.clock = now;
        self.tail_queue(id)?;
        let queue = self.queues.get_mut(&id).ok_or_else(no_policy)?;
        if queue.renew(ms(now.monotonic), member.0, started) {
            return Ok(());
        }
        let text = "the consumer is not attached; attach again";
        Err(ErrorBody::new(ErrorCode::UnknownSubscription, text))
    }

    /// Does what is due: leases that ended, consumers that are lost, delays that are over, dead letters.
    /// To be called when [`Partition::next_queue_wake`] says so.
    pub fn tick_queues(
        &mut self,
        now: Now,
        effects: &mut Vec<Effect<R>>,
    ) -> Option<PendingAppend<R>> {
        self.clock = now;
        if self.failed {
            return None;
        }
        let ids: Vec<SubscriptionId> = self.queues.keys().copied().collect();
        for id in ids {
            self.tick_queue(now, id, effects);
        }
        self.full_until_ms = ms(now.monotonic).saturating_add(BOUNDS_PAUSE_MS);
        self.poll_append(now)
    }

    fn tick_queue(&mut self, now: Now, id: SubscriptionId, effects: &mut Vec<Effect<R>>) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let Some(committed) = committed(&self.state, &self.tail_subscriptions, id) else { return };
        let sub_epoch = committed.queue.sub_epoch();
        let due = queue.tick(now, committed);
        let holes = std::mem::take(&mut queue.holes);
        for (start, end) in holes {
            let ranges = queue.evicting(committed, start, end);
            self.acks.push_runs(id, sub_epoch, SettleHow::Evicted, ranges);
        }
        self.acks.push_runs(id, sub_epoch, SettleHow::Expired, due.expired);
        self.acks.push_runs(id, sub_epoch, SettleHow::Evicted, due.evicted);
        for (member, runs) in due.lost {
            let (subscription, member) = (id, MemberKey(member));
            effects.push(Effect::LeasesLost { subscription, member, sub_epoch, runs });
        }
        if due.wants_target {
            effects.push(Effect::DeadLetters { subscription: id });
        }
        self.pass(id, sub_epoch, due.verdicts);
        self.wake_queue(id, effects);
    }

    /// When [`Partition::tick_queues`] has something to do, by the monotonic clock; maybe it has nothing
    /// then.
    #[must_use]
    pub fn next_queue_wake(&self) -> Option<Duration> {
        let write = !self.ops.is_empty() && !self.ops.in_flight();
        let wakes = self.queues.values().filter_map(|queue| queue.next_wake(self.clock));
        let wakes = wakes.chain(write.then_some(0)).chain(self.bounds_wake());
        wakes.chain(self.expiry_wake()).min().map(Duration::from_millis)
    }

    /// Wakes a consumer that waits, if there is something for it.
    pub(super) fn wake_queue(&mut self, id: SubscriptionId, effects: &mut Vec<Effect<R>>) {
        if self.waits_for_expiry() {
            return;
        }
        let Some(queue) = self.queues.get_mut(&id).filter(|queue| queue.idle) else { return };
        let Some(committed) = committed(&self.state, &self.tail_subscriptions, id) else { return };
        queue.begin(self.clock, committed);
        if let Some(member) = queue.wake(committed) {
            effects.push(Effect::QueueReady { subscription: id, member: member.map(MemberKey) });
        }
    }

    pub(super) fn wake_queues(&mut self, effects: &mut Vec<Effect<R>>) {
        let idle = self.queues.iter().filter(|(_, queue)| queue.idle);
        let idle: Vec<SubscriptionId> = idle.map(|(id, _)| *id).collect();
        idle.into_iter().for_each(|id| self.wake_queue(id, effects));
    }

    /// Settles everything that is unsettled below the high watermark as evicted, in a new epoch: a seek
    /// to there. What is dying is dead, and its letters are still published.
    pub fn purge(
        &mut self,
        now: Now,
        id: SubscriptionId,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if let Err(error) = self.tail_queue(id) {
            return refuse(route, error, effects);
        }
        self.seek(now, id, self.high_watermark().offset, route, effects)
    }

    /// The letters that are committed and not known to be published, those of one target in the order of
    /// their sequences. The outbox publishes them in that order, one after the other's confirm, each in
    /// the session [`DeadLetter`] describes with `resolved_upto` = its own sequence, and then calls
    /// [`Partition::dead_done`].
    pub fn dead_intents(&self, id: SubscriptionId) -> impl Iterator<Item = &DeadLetter> {
        let letters = self.state.queue(id).into_iter().flat_map(|queue| queue.dead_letters());
        let mut letters: Vec<&DeadLetter> = letters.collect();
        letters.sort_by_key(|letter| (letter.target, letter.sequence));
        letters.into_iter()
    }

    /// Letters of one epoch are published.
    pub fn dead_done(
        &mut self,
        now: Now,
        id: SubscriptionId,
        sub_epoch: u64,
        offsets: &[Offset],
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        self.clock = now;
        if self.failed {
            return Decision::Done;
        }
        for offset in offsets {
            let known =
                self.state.queue(id).is_some_and(|queue| queue.has_letter(sub_epoch, *offset));
            if known {
                let (subscription, offset) = (id, *offset);
                self.ops.push(QueueOp::Done { subscription, sub_epoch, offset });
            }
        }
        self.wake_queue(id, effects);
        self.poll_append(now).map_or(Decision::Done, Decision::Append)
    }

    /// The numbers of a queue on this partition.
    #[must_use]
    pub fn queue_stats(&self, id: SubscriptionId, _now: Now) -> Option<QueueStats> {
        let partition = self.identity.partition;
        let committed_queue = self.state.queue(id)?;
        match (self.queues.get(&id), committed(&self.state, &self.tail_subscriptions, id)) {
            (Some(queue), Some(committed)) => Some(queue.stats(committed, partition)),
            (Some(_) | None, _) => {
                let end = self.high_watermark().offset;
                let numbers: QueuePartition = stats_of(committed_queue, end, partition);
                Some(QueueStats { numbers, oldest_ready: None })
            }
        }
    }

    /// The consumers of a queue on this partition.
    #[must_use]
    pub fn queue_members(&self, id: SubscriptionId, now: Now) -> Vec<QueueMember> {
        self.queues.get(&id).map_or_else(Vec::new, |queue| queue.members(now))
    }

    /// What keeps a message.
    ///
    /// # Errors
    /// There is no such queue subscription here.
    pub fn why(&self, id: SubscriptionId, offset: Offset, now: Now) -> Result<Why, ErrorBody> {
        self.tail_queue(id)?;
        let queue = self.queues.get(&id).ok_or_else(no_policy)?;
        let committed =
            committed(&self.state, &self.tail_subscriptions, id).ok_or_else(unknown_queue)?;
        Ok(queue.why(committed, offset, now))
    }

    /// What of a queue's log is needed: what some queue subscription has not settled, dead messages that wait to
    /// be published, entries of delayed messages that are not released. None without such a subscription: then nobody has settled anything.
    #[must_use]
    pub fn kept(&self) -> Option<Kept> {
        self.state.queues().next()?;
        let end = self.state.end().offset;
        let mut messages = Vec::new();
        for (_id, queue) in self.state.queues() {
            messages.extend(queue.settled().missing_in(OffsetRange { start: queue.floor(), end }));
            let letters = queue.dead_letters().map(|letter| letter.offset.0);
            messages.extend(letters.map(|offset| OffsetRange::new(offset, offset + 1)));
        }
        merge(&mut messages);
        let mut entries: Vec<Range<EntryIndex>> = Vec::new();
        for index in self.state.delays().pending().map(|pending| pending.index) {
            let end = EntryIndex(index.0 + 1);
            match entries.last_mut().filter(|last| last.end == index) {
                Some(last) => last.end = end,
                None => entries.push(index..end),
            }
        }
        Some(Kept { messages, entries })
    }

    /// The epoch that requests are judged by.
    pub(super) fn tail_queue(&self, id: SubscriptionId) -> Result<u64, ErrorBody> {
        if self.failed {
            return Err(storage_failed());
        }
        let state = self.tail_subscriptions.get(id).ok_or_else(|| self.lacking(id))?;
        if state.mode != SubscriptionMode::Queue {
            return Err(ErrorBody::new(
                ErrorCode::WrongSubscriptionMode,
                "the subscription is of stream mode; subscribe to it instead",
            ));
        }
        Ok(state.owner_epoch)
    }

    /// The number of the next dead letter to a target, if everything appended commits.
    pub(super) fn next_dead(&self, subscription: SubscriptionId, target: DeadTarget) -> Sequence {
        let committed = self.state.queue(subscription).map(|queue| queue.next_dead(target));
        let tail = self.dead_tail.get(&(subscription, target)).copied();
        committed.unwrap_or_default().max(tail.unwrap_or_default())
    }

    /// Acks of ranges were refused by the store.
    pub(super) fn runs_refused(
        &mut self,
        id: SubscriptionId,
        how: SettleHow,
        ranges: &[OffsetRange],
    ) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        match committed(&self.state, &self.tail_subscriptions, id) {
            Some(committed) if how != SettleHow::Acked => queue.eviction_refused(committed, ranges),
            Some(_) | None => queue.acks_refused(ranges),
        }
    }
}

pub(super) fn refuse<R>(route: R, error: ErrorBody, effects: &mut Vec<Effect<R>>) -> Decision<R> {
    effects.push(Effect::Refused { route, error });
    Decision::Done
}

pub(super) fn unknown_queue() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::UnknownSubscription,
        "there is no such subscription on this partition; it was deleted, or never created",
    )
}

pub(super) fn no_policy() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::UnknownSubscription,
        "the queue's policy is not known on this partition yet; retry",
    )
}
