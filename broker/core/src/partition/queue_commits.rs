//! Owns what the dispatchers of queues learn when an entry is committed, or refused by the store. Never
//! decides. Driven by the partition's leader.

use super::command::{Settlement, StateCommand};
use super::effect::{Effect, Reply};
use super::leader::Partition;
use super::queue_commands::{DeadDone, DeadIntent, Returned, SettledRuns};
use super::queue_ops::QueueOp;
use super::state::Change;
use crate::queue::{Dispatcher, MemberKey, SettleHow};
use postrider_protocol::types::SubscriptionId;

impl<R: Clone> Partition<R> {
    /// An entry is committed, and applied to the state.
    pub(super) fn queue_committed(&mut self, command: &StateCommand, effects: &mut Vec<Effect<R>>) {
        match command {
            StateCommand::Settle(settlements) => {
                for settlement in settlements {
                    if let Settlement::Runs(SettledRuns { subscription, sub_epoch, how, runs }) =
                        settlement
                        && let Some(queue) = self.live(*subscription, *sub_epoch)
                    {
                        queue.settled(runs, *how == SettleHow::Acked);
                    }
                }
            }
            StateCommand::Return(returned) => {
                for Returned { subscription, sub_epoch, offset, failures, due, cause, .. } in
                    returned
                {
                    if let Some(queue) = self.live(*subscription, *sub_epoch) {
                        queue.failed(offset.0, *failures, due.0, *cause);
                    }
                }
            }
            StateCommand::DeadIntent(intents) => {
                let mut told = None;
                for DeadIntent { subscription, letter } in intents {
                    if let Some(queue) = self.live(*subscription, letter.sub_epoch) {
                        queue.dead(letter.offset.0);
                    }
                    if told.replace(*subscription) != Some(*subscription) {
                        effects.push(Effect::DeadLetters { subscription: *subscription });
                    }
                }
            }
            StateCommand::DeadDone(done) => {
                for DeadDone { subscription, sub_epoch, offsets } in done {
                    if let Some(queue) = self.live(*subscription, *sub_epoch) {
                        offsets.iter().for_each(|offset| queue.buried(offset.0));
                    }
                }
            }
            StateCommand::Seek { subscription, owner_epoch, .. } => {
                self.queue_restarted(*subscription, *owner_epoch, effects);
            }
            StateCommand::Unsubscribe { subscription } => {
                self.queues.remove(subscription);
                self.dead_tail.retain(|(id, _), _| id != subscription);
            }
            StateCommand::Subscribe { .. }
            | StateCommand::SetOwner { .. }
            | StateCommand::ProducerFence { .. }
            | StateCommand::ProducerExpire(_)
            | StateCommand::DelayCancel { .. }
            | StateCommand::EpochStart { .. } => {}
        }
    }

    /// The dispatcher of a queue, if the epoch is the committed one.
    fn live(&mut self, id: SubscriptionId, sub_epoch: u64) -> Option<&mut Dispatcher> {
        let current = self.state.queue(id).is_some_and(|queue| queue.sub_epoch() == sub_epoch);
        self.queues.get_mut(&id).filter(|_| current)
    }

    fn queue_restarted(
        &mut self,
        subscription: SubscriptionId,
        sub_epoch: u64,
        effects: &mut Vec<Effect<R>>,
    ) {
        if self.state.queue(subscription).is_none() {
            return;
        }
        let Some(queue) = self.queues.get_mut(&subscription) else { return };
        for (member, runs) in queue.restart() {
            let member = MemberKey(member);
            effects.push(Effect::LeasesLost { subscription, member, sub_epoch, runs });
        }
        let has_letters = self
            .state
            .queue(subscription)
            .is_some_and(|queue| queue.dead_letters().next().is_some());
        if has_letters {
            effects.push(Effect::DeadLetters { subscription });
        }
    }

    /// The store took an entry not at all.
    pub(super) fn queue_refused(&mut self, command: &StateCommand) {
        match command {
            StateCommand::Settle(settlements) => {
                for settlement in settlements {
                    if let Settlement::Runs(SettledRuns { subscription, how, runs, .. }) =
                        settlement
                    {
                        self.runs_refused(*subscription, *how, runs);
                    }
                }
            }
            StateCommand::Return(returned) => {
                for Returned { subscription, sub_epoch, offset, .. } in returned {
                    if let Some(queue) = self.live(*subscription, *sub_epoch) {
                        queue.verdict_refused(offset.0);
                    }
                }
            }
            StateCommand::DeadIntent(intents) => {
                for DeadIntent { subscription, letter } in intents {
                    if let Some(queue) = self.live(*subscription, letter.sub_epoch) {
                        queue.verdict_refused(letter.offset.0);
                    }
                }
            }
            StateCommand::DeadDone(done) if !self.failed => {
                // Nobody asks again: the next tick tries once more.
                for DeadDone { subscription, sub_epoch, offsets } in done {
                    let (subscription, sub_epoch) = (*subscription, *sub_epoch);
                    for offset in offsets {
                        let offset = *offset;
                        self.ops.push(QueueOp::Done { subscription, sub_epoch, offset });
                    }
                }
            }
            StateCommand::DeadDone(_)
            | StateCommand::Seek { .. }
            | StateCommand::Subscribe { .. }
            | StateCommand::SetOwner { .. }
            | StateCommand::Unsubscribe { .. }
            | StateCommand::ProducerFence { .. }
            | StateCommand::ProducerExpire(_)
            | StateCommand::DelayCancel { .. }
            | StateCommand::EpochStart { .. } => {}
        }
    }

    /// A bounded part of what is to be written about messages of queues, numbered.
    pub(super) fn take_ops(&mut self) -> Vec<(Change, Reply<R>)> {
        let mut ops = std::mem::take(&mut self.ops);
        let mut next = std::collections::BTreeMap::new();
        let changes = ops.take(|subscription, target| {
            let next = next
                .entry((subscription, target))
                .or_insert_with(|| self.next_dead(subscription, target));
            let sequence = *next;
            next.0 += 1;
            sequence
        });
        self.ops = ops;
        changes
    }

    /// Asserts what must hold of the queues between any two calls.
    pub(super) fn check_queues(&self) {
        for (id, queue) in self.state.queues() {
            queue.check(self.state.end().offset);
            if let Some(live) = self.queues.get(&id)
                && let Some(committed) =
                    super::queues::committed(&self.state, &self.tail_subscriptions, id)
            {
                live.check(committed);
            }
        }
    }
}
