//! Owns how many messages a partition may hold, and what a publish beyond is told. Never removes a message
//! (the dispatchers do, where the topic says so).
//! Driven by `publish`, once per batch, and by the join, which tells what the topic says.
//!
//! A log topic's messages count as long as they are kept: the join tells from which offset on.
//!
//! A queue's messages count until they are settled. The queue subscription with the most unsettled messages
//! decides; without one nothing is unsettled. Delayed messages count from their publish on, so that a release,
//! which nobody can refuse, always has room. What is appended and not committed counts, and an ack counts
//! once it is committed: the bound is never passed by a publish. It errs by refusing: messages whose release is
//! on its way count twice until it is committed.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::TopicBounds;
use postrider_protocol::types::Offset;

use super::expiry::Expiry;
use super::leader::Partition;
use super::queues::committed;
use crate::queue::excess;

impl<R: Clone> Partition<R> {
    /// Takes the topic's bounds. What a lowered one finds is dealt with at the next tick; where the topic
    /// rejects, it stays, and publishes wait until enough is settled.
    pub fn set_bounds(&mut self, bounds: TopicBounds) {
        let before = std::mem::replace(&mut self.bounds, bounds);
        if before == bounds {
            return;
        }
        let aged = before.message_ttl_ms != bounds.message_ttl_ms;
        if aged {
            self.expiry = Expiry::default();
        }
        for (id, queue) in &mut self.queues {
            queue.set_bounds(bounds);
            if aged {
                queue.set_overdue(committed(&self.state, &self.tail_subscriptions, *id), 0);
            }
        }
    }

    /// The messages that count are those from here on, instead of a queue's unsettled ones. To be told before each
    /// publish to a log topic whose bounds reject.
    pub fn count_kept_from(&mut self, start: Offset) {
        self.kept_from = Some(start);
    }

    /// Whether publishes are refused when there are as many messages as the topic allows.
    #[must_use]
    pub fn may_be_full(&self) -> bool {
        self.bounds.max_messages.is_some() && !self.bounds.sheds()
    }

    /// When a queue is to get rid of messages, in monotonic ms. All that are too many may be out: it is looked
    /// again after a pause.
    pub(super) fn bounds_wake(&self) -> Option<u64> {
        if !self.bounds.sheds() {
            return None;
        }
        let end = self.state.end().offset;
        let full = self.state.queues().any(|(_id, queue)| excess(&self.bounds, queue, end) > 0);
        full.then_some(self.full_until_ms)
    }

    /// Whether so many messages more fit.
    ///
    /// # Errors
    /// `TopicFull`; the producer may publish again later.
    pub(super) fn check_room(&self, count: u32) -> Result<(), ErrorBody> {
        let Some(max) = self.bounds.max_messages.filter(|_| self.may_be_full()) else {
            return Ok(());
        };
        let held = self.held_messages();
        if held.saturating_add(u64::from(count)) <= max {
            return Ok(());
        }
        let text = if u64::from(count) > max {
            format!(
                "a batch of {count} messages never fits: the topic allows {max} per partition; send smaller \
                 batches, or raise max_messages"
            )
        } else if self.kept_from.is_some() {
            format!(
                "the partition keeps {held} messages, and the topic allows {max}; publish again when retention \
                 has removed some, or raise max_messages"
            )
        } else {
            format!(
                "the partition holds {held} unsettled messages, and the topic allows {max}; publish again when \
                 some are settled, or raise max_messages"
            )
        };
        Err(ErrorBody::new(ErrorCode::TopicFull, text))
    }

    /// See the module.
    fn held_messages(&self) -> u64 {
        let delayed = self.state.delays().messages() + self.agenda.appended_messages();
        if let Some(start) = self.kept_from {
            return self.tail_end.offset.0.saturating_sub(start.0) + delayed;
        }
        let committed = self.state.end().offset;
        let unsettled = self.state.queues().map(|(_id, queue)| queue.unsettled(committed)).max();
        let in_flight = self.tail_end.offset.0 - committed.0;
        unsettled.map_or(0, |unsettled| unsettled + in_flight) + delayed
    }
}
