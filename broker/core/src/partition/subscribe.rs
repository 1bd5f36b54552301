//! Owns the leader's answers to requests about durable subscriptions. Never knows who is attached.
//! Driven by the join.
//!
//! A request is judged against the tail: what is appended before it counts, committed or not. It is
//! answered when its own entry commits. A position that is accepted once can only be taken back by a
//! seek, and a seek fences whoever acknowledged before it.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::types::{Offset, SubscriptionId};

use super::command::{Settled, StateCommand, SubscribeStart, SubscriptionMode};
use super::effect::{Decision, Effect, PendingAppend, Reply, StateCommitted, storage_failed};
use super::leader::Partition;
use super::state::Change;
use super::subscriptions::SubscriptionState;
use crate::now::Now;

/// How long whoever is held up by a missing subscription waits before it asks again.
const RETRY_AFTER_MS: u32 = 20;

/// An acknowledgement of everything below an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckUpTo {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The owner that acknowledges.
    pub owner_epoch: u64,
    /// Exclusive.
    pub up_to: Offset,
}

impl<R: Clone> Partition<R> {
    /// Has the partition accept no publish before it holds a `Subscribe` entry for each of these. The
    /// join calls it with the topic's durable subscriptions when it opens the partition and when one is
    /// created, and then calls [`Partition::subscribe`] for each of [`Partition::required`].
    pub fn require_subscriptions(
        &mut self,
        subscriptions: impl IntoIterator<Item = SubscriptionId>,
    ) {
        for subscription in subscriptions {
            let exists = self.tail_subscriptions.get(subscription).is_some();
            if !exists && !self.required.contains(&subscription) {
                self.required.push(subscription);
            }
        }
        self.required.sort_unstable();
    }

    /// Subscriptions whose `Subscribe` entry publishes wait for.
    #[must_use]
    pub fn required(&self) -> &[SubscriptionId] {
        &self.required
    }

    /// Creates a durable subscription on this partition, or finds it.
    pub fn subscribe(
        &mut self,
        now: Now,
        subscription: SubscriptionId,
        start: SubscribeStart,
        mode: SubscriptionMode,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if self.failed {
            return refuse(route, storage_failed(), effects);
        }
        if let Some(state) = self.state.subscriptions().get(subscription)
            && self.tail_subscriptions.get(subscription).is_some()
        {
            let what = StateCommitted::Subscribed { acked: state.acked };
            effects.push(Effect::Committed { route, subscription, what });
            return Decision::Done;
        }
        if let SubscribeStart::Offset(offset) = start
            && offset > self.tail_end().offset
        {
            return refuse(route, self.out_of_range(offset, self.tail_end().offset), effects);
        }
        self.append_state(now, StateCommand::Subscribe { subscription, start, mode }, route)
    }

    /// Gives a subscription a new owner; owners before can acknowledge nothing from here on.
    pub fn set_owner(
        &mut self,
        now: Now,
        subscription: SubscriptionId,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        match self.tail_subscription(subscription) {
            Ok(state) if state.mode == SubscriptionMode::Queue => {
                refuse(route, wrong_mode(), effects)
            }
            Ok(state) => {
                let owner_epoch = state.owner_epoch + 1;
                self.append_state(now, StateCommand::SetOwner { subscription, owner_epoch }, route)
            }
            Err(error) => refuse(route, error, effects),
        }
    }

    /// Moves a subscription to an offset, forwards or back. An attached owner goes on there, with a new
    /// epoch, so that what it acknowledged before the move cannot undo it. Of a queue, all leases end.
    pub fn seek(
        &mut self,
        now: Now,
        subscription: SubscriptionId,
        to: Offset,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let high_watermark = self.high_watermark().offset;
        match self.tail_subscription(subscription) {
            Ok(_) if to > high_watermark => {
                refuse(route, self.out_of_range(to, high_watermark), effects)
            }
            Ok(state) => {
                let owner_epoch = state.owner_epoch + 1;
                self.append_state(now, StateCommand::Seek { subscription, owner_epoch, to }, route)
            }
            Err(error) => refuse(route, error, effects),
        }
    }

    /// Deletes a durable subscription on this partition. One that does not exist is deleted already.
    pub fn unsubscribe(
        &mut self,
        now: Now,
        subscription: SubscriptionId,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if self.failed {
            return refuse(route, storage_failed(), effects);
        }
        self.required.retain(|required| *required != subscription);
        let committed = self.state.subscriptions().get(subscription).is_some();
        if !committed && self.tail_subscriptions.get(subscription).is_none() {
            let what = StateCommitted::Unsubscribed;
            effects.push(Effect::Committed { route, subscription, what });
            return Decision::Done;
        }
        self.append_state(now, StateCommand::Unsubscribe { subscription }, route)
    }

    /// Acknowledges everything below an offset. While an entry with acknowledgements is in flight,
    /// later ones wait and share the next.
    pub fn ack_up_to(
        &mut self,
        now: Now,
        ack: AckUpTo,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let AckUpTo { subscription, owner_epoch, up_to } = ack;
        if let Err(error) = self.check_ack(ack) {
            return refuse(route, error, effects);
        }
        if let Some(state) = self.state.subscriptions().get(subscription)
            && state.owner_epoch == owner_epoch
            && up_to <= state.acked
        {
            let what = StateCommitted::Acked { acked: state.acked };
            effects.push(Effect::Committed { route, subscription, what });
            return Decision::Done;
        }
        self.acks.push(Settled { subscription, owner_epoch, up_to }, route);
        self.poll_append(now).map_or(Decision::Waits, Decision::Append)
    }

    fn check_ack(&self, ack: AckUpTo) -> Result<(), ErrorBody> {
        let state = self.tail_subscription(ack.subscription)?;
        if state.mode == SubscriptionMode::Queue {
            return Err(wrong_mode());
        }
        if state.owner_epoch != ack.owner_epoch {
            return Err(ErrorBody::new(
                ErrorCode::StaleOwnerEpoch,
                format!(
                    "the subscription has owner epoch {}, the ack {}; another consumer took it or it \
                     was moved: subscribe again",
                    state.owner_epoch, ack.owner_epoch
                ),
            ));
        }
        let high_watermark = self.high_watermark().offset;
        if ack.up_to > high_watermark {
            return Err(self.out_of_range(ack.up_to, high_watermark));
        }
        Ok(())
    }

    fn tail_subscription(
        &self,
        subscription: SubscriptionId,
    ) -> Result<SubscriptionState, ErrorBody> {
        if self.failed {
            return Err(storage_failed());
        }
        self.tail_subscriptions.get(subscription).ok_or_else(|| self.lacking(subscription))
    }

    /// Why a subscription is not here: perhaps it is only late, as when the disk was full.
    pub(super) fn lacking(&self, subscription: SubscriptionId) -> ErrorBody {
        if self.required.contains(&subscription) {
            return taking_over();
        }
        ErrorBody::new(
            ErrorCode::UnknownSubscription,
            "there is no such subscription on this partition; it was deleted, or never created",
        )
    }

    /// A state entry behind what waits to be settled: that was accepted before it.
    fn append_state(&mut self, now: Now, command: StateCommand, route: R) -> Decision<R> {
        let mut before: Vec<_> = self.acks.take().into_iter().collect();
        while !self.ops.is_empty() {
            before.extend(self.take_ops());
        }
        let last = (Change::State(command), Reply::State(route));
        let mut pending: PendingAppend<R> = self.pending_append(now, last);
        for entry in before {
            pending.put_before_last(self.drafted(now, entry));
        }
        Decision::Append(pending)
    }

    fn out_of_range(&self, offset: Offset, end: Offset) -> ErrorBody {
        let text = format!("offset {offset} lies behind the end of the partition, {end}");
        ErrorBody::new(ErrorCode::OffsetOutOfRange, text)
    }
}

fn wrong_mode() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::WrongSubscriptionMode,
        "the subscription is of queue mode; consume it instead",
    )
}

fn refuse<R>(route: R, error: ErrorBody, effects: &mut Vec<Effect<R>>) -> Decision<R> {
    effects.push(Effect::Refused { route, error });
    Decision::Done
}

/// Subscriptions of the topic are not on the partition yet.
pub(super) fn taking_over() -> ErrorBody {
    let text = "the partition is still taking over the topic's subscriptions; retry";
    ErrorBody::new(ErrorCode::Throttled, text).with_retry_after_ms(RETRY_AFTER_MS)
}
