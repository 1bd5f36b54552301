//! Owns how far the messages of a partition's queues are too old, and when that is to be looked up. Never reads
//! the log: the join does, without any lock, and tells. Driven by the join's tick.
//!
//! ```text
//!   [lock] expiry_due ─▶ find the first offset that is not too old, and its time ─▶ [lock] expire
//! ```
//! Until the first answer of a leadership nothing is handed out. After it a message may go out for as long after
//! its time as a tick takes.

use postrider_protocol::types::{Offset, TimestampMs};

use super::effect::{Effect, PendingAppend};
use super::leader::Partition;
use super::queues::committed;
use crate::limits::EXPIRY_PAUSE_MS;
use crate::now::Now;

/// What is to be looked up: see [`Partition::expire`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpiryAsk {
    /// What lies below is settled.
    pub from: Offset,
    /// What was appended by then is too old.
    pub until: TimestampMs,
}

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aged {
    /// The first offset that was appended after [`ExpiryAsk::until`]; the high watermark if there is none.
    pub before: Offset,
    /// When the first message from there on, and from [`ExpiryAsk::from`] on, was appended.
    pub next: Option<TimestampMs>,
}

#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// It was looked up in this leadership.
    known: bool,
    pub(super) before: Offset,
    /// When it is to be looked up again, in wall ms.
    next_ms: u64,
}

impl<R: Clone> Partition<R> {
    /// What is to be looked up now, if anything is.
    #[must_use]
    pub fn expiry_due(&self, now: Now) -> Option<ExpiryAsk> {
        let ttl_ms = self.bounds.message_ttl_ms?;
        let from = self.state.queues().map(|(_id, queue)| queue.floor()).min()?;
        let waits = from < self.state.end().offset && self.expiry.next_ms <= now.wall.0;
        waits.then(|| ExpiryAsk { from, until: TimestampMs(now.wall.0.saturating_sub(ttl_ms)) })
    }

    /// Takes what was found. An answer to a question of a shorter time to live says nothing: it was raised while the
    /// log was read, and is asked for again.
    pub fn expire(
        &mut self,
        now: Now,
        ask: ExpiryAsk,
        aged: Aged,
        effects: &mut Vec<Effect<R>>,
    ) -> Option<PendingAppend<R>> {
        self.clock = now;
        let ttl_ms = self.bounds.message_ttl_ms?;
        if ask.until.0 > now.wall.0.saturating_sub(ttl_ms) {
            return None;
        }
        let next_ms = match aged.next {
            Some(next) => next.0.saturating_add(ttl_ms),
            // What is appended and not committed may be of any age.
            None if self.tail_end.offset > self.high_watermark().offset => 0,
            None => now.wall.0.saturating_add(ttl_ms),
        };
        self.expiry.next_ms = next_ms.max(now.wall.0.saturating_add(EXPIRY_PAUSE_MS));
        self.expiry.known = true;
        let before = aged.before.min(self.high_watermark().offset).max(self.expiry.before);
        self.expiry.before = before;
        for (id, queue) in &mut self.queues {
            queue.set_overdue(committed(&self.state, &self.tail_subscriptions, *id), before.0);
        }
        self.tick_queues(now, effects)
    }

    /// Nothing was found yet that would tell which messages may go out.
    pub(super) fn waits_for_expiry(&self) -> bool {
        self.bounds.message_ttl_ms.is_some() && !self.expiry.known
    }

    /// When [`Partition::expiry_due`] is to be asked, in monotonic ms.
    pub(super) fn expiry_wake(&self) -> Option<u64> {
        self.bounds.message_ttl_ms?;
        let end = self.state.end().offset;
        let waits = self.state.queues().any(|(_id, queue)| queue.floor() < end);
        let wait_ms = self.expiry.next_ms.saturating_sub(self.clock.wall.0);
        waits.then(|| crate::queue::ms(self.clock.monotonic).saturating_add(wait_ms))
    }
}
