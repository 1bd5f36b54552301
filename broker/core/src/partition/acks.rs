//! Owns the acknowledgements that wait: while one `Settle` entry is in flight, all that arrive become
//! the next one. Never judges them. Driven by the partition's leader.
//!
//! So acknowledgements cost at most one entry per round of the disk, however many subscribers send them.
//! Bound: one position per stream subscription, the leased messages of each queue; one route per request,
//! which the join limits per connection.

use std::collections::BTreeMap;

use postrider_protocol::types::{Offset, SubscriptionId};

use super::command::{Settled, Settlement, StateCommand};
use super::effect::{AckReply, Reply};
use super::queue_commands::SettledRuns;
use super::state::Change;
use crate::queue::{OffsetRange, SettleHow, merge};

#[derive(Debug)]
struct Waiting {
    owner_epoch: u64,
    up_to: Offset,
}

#[derive(Debug)]
struct WaitingRuns {
    sub_epoch: u64,
    ranges: Vec<OffsetRange>,
}

/// Acknowledgements that are not appended yet.
#[derive(Debug)]
pub(super) struct AckQueue<R> {
    waiting: BTreeMap<SubscriptionId, Waiting>,
    runs: BTreeMap<(SubscriptionId, SettleHow), WaitingRuns>,
    replies: Vec<AckReply<R>>,
    settles_in_flight: usize,
}

impl<R> Default for AckQueue<R> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            runs: BTreeMap::new(),
            replies: Vec::new(),
            settles_in_flight: 0,
        }
    }
}

impl<R> AckQueue<R> {
    /// Queues an acknowledgement that was found valid.
    pub(super) fn push(&mut self, settled: Settled, route: R) {
        let Settled { subscription, owner_epoch, up_to } = settled;
        let waiting = self.waiting.entry(subscription).or_insert(Waiting { owner_epoch, up_to });
        assert!(
            waiting.owner_epoch == owner_epoch,
            "what an older owner acknowledged is appended before its successor"
        );
        waiting.up_to = waiting.up_to.max(up_to);
        self.replies.push(AckReply { route, subscription, exceptions: None });
    }

    /// Queues messages of a queue that are to be settled.
    pub(super) fn push_runs(
        &mut self,
        subscription: SubscriptionId,
        sub_epoch: u64,
        how: SettleHow,
        ranges: Vec<OffsetRange>,
    ) {
        if ranges.is_empty() {
            return;
        }
        match self.runs.get_mut(&(subscription, how)) {
            Some(waiting) => {
                assert!(
                    waiting.sub_epoch == sub_epoch,
                    "what was acknowledged in an epoch is appended before its end"
                );
                waiting.ranges.extend(ranges);
            }
            None => {
                self.runs.insert((subscription, how), WaitingRuns { sub_epoch, ranges });
            }
        }
    }

    /// Has the next entry answer a request of a queue's consumer.
    pub(super) fn push_reply(&mut self, reply: AckReply<R>) {
        self.replies.push(reply);
    }

    /// Whether anything waits.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.runs.is_empty()
    }

    /// The entry that holds all that waits.
    pub(super) fn take(&mut self) -> Option<(Change, Reply<R>)> {
        if !self.has_waiting() {
            return None;
        }
        let streams =
            std::mem::take(&mut self.waiting).into_iter().map(|(subscription, waiting)| {
                let Waiting { owner_epoch, up_to } = waiting;
                Settlement::UpTo(Settled { subscription, owner_epoch, up_to })
            });
        let queues =
            std::mem::take(&mut self.runs).into_iter().map(|((subscription, how), waiting)| {
                let WaitingRuns { sub_epoch, ranges: mut runs } = waiting;
                merge(&mut runs);
                Settlement::Runs(SettledRuns { subscription, sub_epoch, how, runs })
            });
        let settled = streams.chain(queues).collect();
        let replies = std::mem::take(&mut self.replies);
        Some((Change::State(StateCommand::Settle(settled)), Reply::Acks(replies)))
    }

    /// Whether a `Settle` entry is in flight.
    pub(super) fn in_flight(&self) -> bool {
        self.settles_in_flight > 0
    }

    pub(super) fn in_flight_count(&self) -> usize {
        self.settles_in_flight
    }

    pub(super) fn appended(&mut self) {
        self.settles_in_flight += 1;
    }

    pub(super) fn committed(&mut self) {
        self.settles_in_flight -= 1;
    }

    /// Whom nobody will answer any more.
    pub(super) fn drain_routes(&mut self) -> impl Iterator<Item = R> {
        self.waiting.clear();
        self.runs.clear();
        std::mem::take(&mut self.replies).into_iter().map(|reply| reply.route)
    }
}
