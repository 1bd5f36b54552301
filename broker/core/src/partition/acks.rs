//! Owns the acknowledgements that wait: while one `Settle` entry is in flight, all that arrive become
//! the next one. Never judges them. Driven by the partition's leader.
//!
//! So acknowledgements cost at most one entry per round of the disk, however many subscribers send them.
//! Bound: one position per subscription; one route per request, which the join limits per connection.

use std::collections::BTreeMap;

use postrider_protocol::types::{Offset, SubscriptionId};

use super::command::{Settled, StateCommand};
use super::effect::{AckReply, Reply};
use super::state::Change;

#[derive(Debug)]
struct Waiting {
    owner_epoch: u64,
    up_to: Offset,
}

/// Acknowledgements that are not appended yet.
#[derive(Debug)]
pub(super) struct AckQueue<R> {
    waiting: BTreeMap<SubscriptionId, Waiting>,
    replies: Vec<AckReply<R>>,
    settles_in_flight: usize,
}

impl<R> Default for AckQueue<R> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), replies: Vec::new(), settles_in_flight: 0 }
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
        self.replies.push(AckReply { route, subscription });
    }

    /// The entry that holds all that waits.
    pub(super) fn take(&mut self) -> Option<(Change, Reply<R>)> {
        if self.waiting.is_empty() {
            return None;
        }
        let settled = std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|(subscription, Waiting { owner_epoch, up_to })| Settled {
                subscription,
                owner_epoch,
                up_to,
            })
            .collect();
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
        std::mem::take(&mut self.replies).into_iter().map(|reply| reply.route)
    }
}
