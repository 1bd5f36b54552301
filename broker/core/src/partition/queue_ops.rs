//! Owns what is to be written about failed and dead messages of queues and is not appended yet: while one
//! batch of such entries is in flight, all that arrives becomes the next one. Never judges a message.
//! Driven by the partition's leader.
//!
//! Bound: one item per message that a dispatcher holds; one route per request, which the join limits.

use std::collections::VecDeque;

use postrider_protocol::types::{Offset, Sequence, SubscriptionId};

use super::command::StateCommand;
use super::effect::{AckReply, Reply};
use super::queue_commands::{DeadDone, DeadIntent, Returned};
use super::state::Change;
use crate::limits::VERDICTS_PER_TICK_MAX;
use crate::queue::DeadTarget;

#[derive(Debug)]
pub(super) enum QueueOp<R> {
    Fail(Returned),
    /// Its sequence is given when it is written.
    Die(DeadIntent),
    Done {
        subscription: SubscriptionId,
        sub_epoch: u64,
        offset: Offset,
    },
    /// Answers for the items before it.
    Reply(AckReply<R>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct QueueOps<R> {
    waiting: VecDeque<QueueOp<R>>,
    in_flight: usize,
}

impl<R> Default for QueueOps<R> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), in_flight: 0 }
    }
}

impl<R> QueueOps<R> {
    pub(super) fn push(&mut self, op: QueueOp<R>) {
        self.waiting.push_back(op);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn in_flight(&self) -> bool {
        self.in_flight > 0
    }

    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight
    }

    pub(super) fn appended(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn committed(&mut self) {
        self.in_flight -= 1;
    }

    /// The entries that hold what waits, or a bounded part of it; the last one answers for all.
    /// `sequence` numbers the dead letters.
    pub(super) fn take(
        &mut self,
        mut sequence: impl FnMut(SubscriptionId, DeadTarget) -> Sequence,
    ) -> Vec<(Change, Reply<R>)> {
        let (mut returned, mut intents, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        let mut done: Vec<DeadDone> = Vec::new();
        let mut left = VERDICTS_PER_TICK_MAX;
        while let Some(op) = self.waiting.pop_front() {
            match op {
                QueueOp::Reply(reply) => {
                    replies.push(reply);
                    continue;
                }
                op if left == 0 => {
                    self.waiting.push_front(op);
                    break;
                }
                QueueOp::Fail(one) => returned.push(one),
                QueueOp::Die(mut intent) => {
                    intent.letter.sequence = sequence(intent.subscription, intent.letter.target);
                    intents.push(intent);
                }
                QueueOp::Done { subscription, sub_epoch, offset } => {
                    push_done(&mut done, subscription, sub_epoch, offset);
                }
            }
            left -= 1;
        }
        let mut changes = Vec::new();
        if !returned.is_empty() {
            changes.push((Change::State(StateCommand::Return(returned)), Reply::Nobody));
        }
        if !intents.is_empty() {
            changes.push((Change::State(StateCommand::DeadIntent(intents)), Reply::Nobody));
        }
        if !done.is_empty() {
            changes.push((Change::State(StateCommand::DeadDone(done)), Reply::Nobody));
        }
        if let Some((_, reply)) = changes.last_mut()
            && !replies.is_empty()
        {
            *reply = Reply::Acks(replies);
        }
        changes
    }

    /// Whom nobody will answer any more.
    pub(super) fn drain_routes(&mut self) -> Vec<R> {
        let waiting = std::mem::take(&mut self.waiting);
        let route = |op| match op {
            QueueOp::Reply(reply) => Some(reply.route),
            QueueOp::Fail(_) | QueueOp::Die(_) | QueueOp::Done { .. } => None,
        };
        waiting.into_iter().filter_map(route).collect()
    }
}

fn push_done(
    done: &mut Vec<DeadDone>,
    subscription: SubscriptionId,
    sub_epoch: u64,
    offset: Offset,
) {
    match done.last_mut() {
        Some(last) if last.subscription == subscription && last.sub_epoch == sub_epoch => {
            last.offsets.push(offset);
        }
        Some(_) | None => {
            done.push(DeadDone { subscription, sub_epoch, offsets: vec![offset] });
        }
    }
}
