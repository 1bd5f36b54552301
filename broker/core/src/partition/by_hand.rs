//! Owns the leader's answers to people who deal with single messages of a queue: dead letters that are sent back,
//! messages that are to go out now. Never reads a message. Driven by the join.
//!
//! A letter goes back as it came: as a dead letter, whose target is the topic that it comes from, through the
//! outbox and so exactly once. The queue-mode subscription of the dead letter topic has it settled then.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::types::{Offset, SubscriptionId};

use super::effect::{AckReply, Decision, Effect};
use super::leader::Partition;
use super::queue_ops::QueueOp;
use super::queues::{committed, no_policy, refuse};
use crate::now::Now;
use crate::queue::{DeadTarget, MemberKey, Redrivable, Released};

impl<R: Clone> Partition<R> {
    /// Which of these letters, in the order of their offsets, may be sent back now.
    ///
    /// # Errors
    /// There is no such queue subscription here, or it is being sought: ask again.
    pub fn redrivable(
        &mut self,
        now: Now,
        id: SubscriptionId,
        letters: &[(Offset, DeadTarget)],
    ) -> Result<Redrivable, ErrorBody> {
        self.clock = now;
        self.tail_queue(id)?;
        let queue = self.queues.get_mut(&id).ok_or_else(no_policy)?;
        let committed =
            committed(&self.state, &self.tail_subscriptions, id).ok_or_else(being_sought)?;
        queue.begin(now, committed);
        Ok(queue.redrivable(committed, letters))
    }

    /// Sends letters back that [`Partition::redrivable`] named in the same turn. Answered when that is committed,
    /// by `Effect::Settled`.
    pub fn redrive(
        &mut self,
        now: Now,
        id: SubscriptionId,
        letters: &[(Offset, DeadTarget)],
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        self.clock = now;
        let Some(queue) = self.queues.get_mut(&id) else {
            return refuse(route, no_policy(), effects);
        };
        let Some(committed) = committed(&self.state, &self.tail_subscriptions, id) else {
            return refuse(route, being_sought(), effects);
        };
        let verdicts = queue.redrive(committed, letters);
        self.pass(id, committed.queue.sub_epoch(), verdicts);
        let exceptions = Some(Vec::new());
        self.ops.push(QueueOp::Reply(AckReply { route, subscription: id, exceptions }));
        self.poll_append(now).map_or(Decision::Waits, Decision::Append)
    }

    /// Has a message handed out now; tells whether that changed anything.
    ///
    /// # Errors
    /// There is no such queue subscription here, or it is being sought: ask again.
    pub fn release_message(
        &mut self,
        now: Now,
        id: SubscriptionId,
        offset: Offset,
        effects: &mut Vec<Effect<R>>,
    ) -> Result<bool, ErrorBody> {
        self.clock = now;
        let sub_epoch = self.tail_queue(id)?;
        let queue = self.queues.get_mut(&id).ok_or_else(no_policy)?;
        let committed =
            committed(&self.state, &self.tail_subscriptions, id).ok_or_else(being_sought)?;
        queue.begin(now, committed);
        let released = queue.release_now(offset.0);
        if let Released::Lease { member, run } = released {
            let (subscription, member, runs) = (id, MemberKey(member), vec![run]);
            effects.push(Effect::LeasesLost { subscription, member, sub_epoch, runs });
        }
        self.wake_queue(id, effects);
        Ok(released != Released::No)
    }
}

fn being_sought() -> ErrorBody {
    let text = "the subscription is being sought or purged; try again";
    ErrorBody::new(ErrorCode::Overloaded, text)
}
