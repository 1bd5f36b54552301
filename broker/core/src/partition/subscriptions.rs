//! Owns the durable subscriptions of one partition: mode, position and epoch. Never knows who is attached
//! or what was delivered. Driven by the fold, and by the leader for the tail that is not committed yet.
//!
//! A stream subscription's settled set is a prefix, so `acked` is all of it. What a queue has settled is
//! in its [`crate::queue::QueueState`], beside this and not in it, so that the leader's tail stays small.

use std::collections::BTreeMap;

use postrider_protocol::types::{Offset, SubscriptionId};

use super::command::{Settled, Settlement, StateCommand, SubscriptionMode};

/// One durable subscription on this partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SubscriptionState {
    /// Everything below is acknowledged. Only `Seek` lowers it. Of a queue: where it began, or was
    /// moved to last; its floor is in its [`crate::queue::QueueState`].
    pub acked: Offset,
    /// Rises with every owner and every seek; 0 before the first owner. Of a queue: its epoch.
    pub owner_epoch: u64,
    /// Stream or queue.
    pub mode: SubscriptionMode,
}

/// The durable subscriptions of one partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subscriptions {
    pub(super) by_id: BTreeMap<SubscriptionId, SubscriptionState>,
}

impl Subscriptions {
    /// The state of one.
    #[must_use]
    pub fn get(&self, subscription: SubscriptionId) -> Option<SubscriptionState> {
        self.by_id.get(&subscription).copied()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (SubscriptionId, SubscriptionState)> {
        self.by_id.iter().map(|(id, state)| (*id, *state))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Applies a command that stands at offset `at` of the log. What names a subscription that is not
    /// there, or an owner before the current one, changes nothing; commands about other things neither.
    pub(super) fn apply(&mut self, command: &StateCommand, at: Offset) {
        match command {
            StateCommand::Settle(settled) => {
                for settlement in settled {
                    if let Settlement::UpTo(one) = settlement {
                        self.settle(one);
                    }
                }
            }
            StateCommand::Seek { subscription, owner_epoch, to } => {
                if let Some(state) = self.by_id.get_mut(subscription) {
                    state.acked = *to;
                    state.owner_epoch = *owner_epoch;
                }
            }
            StateCommand::Subscribe { subscription, start, mode } => {
                let acked = start.resolve(at);
                self.by_id.entry(*subscription).or_insert(SubscriptionState {
                    acked,
                    owner_epoch: 0,
                    mode: *mode,
                });
            }
            StateCommand::SetOwner { subscription, owner_epoch } => {
                if let Some(state) = self.by_id.get_mut(subscription) {
                    state.owner_epoch = *owner_epoch;
                }
            }
            StateCommand::Unsubscribe { subscription } => {
                self.by_id.remove(subscription);
            }
            StateCommand::Return(_)
            | StateCommand::DeadIntent(_)
            | StateCommand::DeadDone(_)
            | StateCommand::ProducerFence { .. }
            | StateCommand::ProducerExpire(_)
            | StateCommand::DelayCancel { .. }
            | StateCommand::EpochStart { .. } => {}
        }
    }

    fn settle(&mut self, settled: &Settled) {
        if let Some(state) = self.by_id.get_mut(&settled.subscription)
            && state.owner_epoch == settled.owner_epoch
            && state.mode == SubscriptionMode::Stream
        {
            state.acked = state.acked.max(settled.up_to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::SubscribeStart;
    use super::*;

    const S: SubscriptionId = SubscriptionId([1; 16]);

    fn settle(owner_epoch: u64, up_to: u64) -> StateCommand {
        let settled = Settled { subscription: S, owner_epoch, up_to: Offset(up_to) };
        StateCommand::Settle(vec![Settlement::UpTo(settled)])
    }

    fn subscribe(start: SubscribeStart) -> StateCommand {
        StateCommand::Subscribe { subscription: S, start, mode: SubscriptionMode::Stream }
    }

    #[test]
    fn latest_is_the_position_of_the_subscribe_entry() {
        let mut subscriptions = Subscriptions::default();
        let latest = subscribe(SubscribeStart::Latest);
        subscriptions.apply(&latest, Offset(5));
        subscriptions.apply(&latest, Offset(9));
        assert_eq!(subscriptions.get(S).unwrap().acked, Offset(5));
    }

    #[test]
    fn acks_only_rise_and_only_a_seek_lowers_them() {
        let mut subscriptions = Subscriptions::default();
        let start = SubscribeStart::Offset(Offset(0));
        subscriptions.apply(&subscribe(start), Offset(0));
        subscriptions.apply(&StateCommand::SetOwner { subscription: S, owner_epoch: 1 }, Offset(0));
        subscriptions.apply(&settle(1, 7), Offset(9));
        subscriptions.apply(&settle(1, 3), Offset(9));
        assert_eq!(subscriptions.get(S).unwrap().acked, Offset(7));
        let seek = StateCommand::Seek { subscription: S, owner_epoch: 2, to: Offset(1) };
        subscriptions.apply(&seek, Offset(9));
        subscriptions.apply(&settle(1, 8), Offset(9));
        let mode = SubscriptionMode::Stream;
        let state = SubscriptionState { acked: Offset(1), owner_epoch: 2, mode };
        assert_eq!(subscriptions.get(S), Some(state), "an older owner's ack changes nothing");
    }

    #[test]
    fn commands_for_unknown_subscriptions_change_nothing() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.apply(&settle(0, 7), Offset(9));
        subscriptions.apply(&StateCommand::SetOwner { subscription: S, owner_epoch: 1 }, Offset(0));
        assert!(subscriptions.is_empty());
    }
}
