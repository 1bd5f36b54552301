//! Owns what a consumer of a queue gets: [`Delivery`], a message with its lease; [`AckHandle`], the lease alone;
//! [`Settled`], the broker's answer. Decides nothing (the engine does).

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use postrider_protocol::{
    message::ReturnAction,
    types::{Offset, PartitionId, SubscriptionHandle, TimestampMs},
};

use crate::{
    client::Handle,
    core::consumer::desk::{Answer, Attention, Grant},
    error::SettleError,
    message::{Headers, Message},
};

/// Reasons are cut to this size: the broker stores no more.
const REASON_BYTES_MAX: usize = 256;

/// What becomes of a delivery that is dropped without an outcome.
///
/// A drop while its thread panics is a failure of the message, whatever is chosen: a message that makes its consumer
/// panic must not come back for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnDrop {
    /// It is handed out again at once, and no failure is counted.
    #[default]
    Release,
    /// It counts as a failure: handed out again after the policy's wait, or dead-lettered.
    Nack,
    /// It stays leased until the consumer is gone or the lease has its greatest age.
    Hold,
}

/// An attached consumer, shared by its deliveries: they can be settled after the consumer is dropped.
pub(crate) struct Attachment {
    pub(crate) handle: Arc<Handle>,
    pub(crate) consumer: SubscriptionHandle,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.handle.shared.with(|engine| engine.release_consumer(self.consumer));
    }
}

/// One hand-out, shared by its deliveries.
pub(crate) struct Lot {
    pub(crate) attachment: Arc<Attachment>,
    pub(crate) grant: Arc<Grant>,
    pub(crate) on_drop: OnDrop,
}

impl Lot {
    pub(crate) fn attend(&self, attention: Attention) {
        if attention == Attention::Needed {
            self.attachment.handle.shared.nudge();
        }
    }
}

/// The lease of one message, to settle it. Dropped without an outcome, the message is given back (see [`OnDrop`]).
#[must_use = "dropping it gives the message back"]
pub struct AckHandle {
    lot: Arc<Lot>,
    offset: Offset,
    attempt: u32,
    failures: u32,
    settled: bool,
}

impl fmt::Debug for AckHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckHandle")
            .field("partition", &self.partition())
            .field("offset", &self.offset)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl AckHandle {
    pub(crate) fn new(lot: Arc<Lot>, offset: Offset, attempt: u32, failures: u32) -> Self {
        Self { lot, offset, attempt, failures, settled: false }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.lot.grant.partition()
    }

    /// The offset.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// Which hand-out this is, from 1; counted since the broker's start.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How often the message has failed before.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the lease is known to have ended: somebody else has the message, or will. Work on it can stop.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lot.grant.is_lost(self.offset)
    }

    /// The message is processed, for good. It is on its way when this returns; await the result to know that it is
    /// stored: then the message never comes again. Acks that wait for each other are sent as one.
    ///
    /// # Cancel safety
    /// Dropping the result loses the answer; the ack is sent all the same. So it is with the other outcomes.
    pub fn ack(mut self) -> Settled {
        self.settled = true;
        let (answer, attention) = self.lot.grant.ack(self.offset, self.attempt);
        self.lot.attend(attention);
        Settled(answer)
    }

    /// It failed: it is handed out again after the wait of the queue's policy, or dead-lettered if it has failed too
    /// often. The reason (at most 256 bytes are kept) is for people.
    pub fn nack(self, reason: impl AsRef<str>) -> Settled {
        self.give_back(ReturnAction::Nack { delay_ms: None, reason: cut(reason.as_ref()) })
    }

    /// It failed: it is handed out again after this wait, or dead-lettered if it has failed too often.
    pub fn retry_after(self, wait: Duration, reason: impl AsRef<str>) -> Settled {
        let delay_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        self.give_back(ReturnAction::Nack { delay_ms, reason: cut(reason.as_ref()) })
    }

    /// It was not processed: it is handed out again at once, and no failure is counted.
    pub fn release(self) -> Settled {
        self.give_back(ReturnAction::Release)
    }

    /// It can never succeed: it is dead-lettered.
    pub fn reject(self, reason: impl AsRef<str>) -> Settled {
        self.give_back(ReturnAction::Reject { reason: cut(reason.as_ref()) })
    }

    fn give_back(mut self, action: ReturnAction) -> Settled {
        self.settled = true;
        Settled(self.send_back(action))
    }

    fn send_back(&self, action: ReturnAction) -> Answer {
        let (answer, attention) = self.lot.grant.give_back(self.offset, 1, self.attempt, action);
        self.lot.attend(attention);
        answer
    }
}

impl Drop for AckHandle {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let action = match self.lot.on_drop {
            _ if std::thread::panicking() => "the consumer panicked",
            OnDrop::Nack => "dropped without an outcome",
            OnDrop::Release => {
                drop(self.send_back(ReturnAction::Release));
                return;
            }
            OnDrop::Hold => {
                self.lot.attend(self.lot.grant.hold(self.offset, self.attempt));
                return;
            }
        };
        drop(self.send_back(ReturnAction::Nack { delay_ms: None, reason: action.to_owned() }));
    }
}

/// Cut at a character's border.
pub(crate) fn cut(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

/// A message with its lease. `Send` and `'static`: it can be settled wherever it is moved to. Its lease is renewed
/// while it lives. Dropped without an outcome, the message is given back (see [`OnDrop`]).
#[derive(Debug)]
#[must_use = "dropping it gives the message back"]
pub struct Delivery<V> {
    message: Message<V>,
    handle: AckHandle,
}

impl<V> Delivery<V> {
    pub(crate) fn new(message: Message<V>, handle: AckHandle) -> Self {
        Self { message, handle }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message<V> {
        &self.message
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &V {
        &self.message.value
    }

    /// What names the message for good within its topic: see [`Message::dedup_id`].
    #[must_use]
    pub fn dedup_id(&self) -> String {
        self.message.dedup_id()
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.message.key.as_ref()
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.message.headers
    }

    /// Its partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.message.partition
    }

    /// Its offset.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.message.offset
    }

    /// The publisher's time.
    #[must_use]
    pub fn timestamp(&self) -> TimestampMs {
        self.message.timestamp
    }

    /// The broker's time of the append.
    #[must_use]
    pub fn append_time(&self) -> TimestampMs {
        self.message.append_time
    }

    /// Which hand-out this is, from 1; counted since the broker's start.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.handle.attempt()
    }

    /// How often the message has failed before.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.handle.failures()
    }

    /// One past the last entry of the partition that the broker had applied when it handed the message out.
    #[must_use]
    pub fn dispatch_index(&self) -> u64 {
        self.handle.lot.grant.dispatch_index.0
    }

    /// Whether the lease is known to have ended (see [`AckHandle::is_lost`]).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.handle.is_lost()
    }

    /// The message, and the lease to settle it.
    pub fn split(self) -> (Message<V>, AckHandle) {
        (self.message, self.handle)
    }

    /// The message is processed, for good (see [`AckHandle::ack`]).
    pub fn ack(self) -> Settled {
        self.handle.ack()
    }

    /// It failed (see [`AckHandle::nack`]).
    pub fn nack(self, reason: impl AsRef<str>) -> Settled {
        self.handle.nack(reason)
    }

    /// It failed, and is to wait this long (see [`AckHandle::retry_after`]).
    pub fn retry_after(self, wait: Duration, reason: impl AsRef<str>) -> Settled {
        self.handle.retry_after(wait, reason)
    }

    /// It was not processed (see [`AckHandle::release`]).
    pub fn release(self) -> Settled {
        self.handle.release()
    }

    /// It can never succeed (see [`AckHandle::reject`]).
    pub fn reject(self, reason: impl AsRef<str>) -> Settled {
        self.handle.reject(reason)
    }
}

/// An outcome on its way to the broker. Need not be awaited; awaiting it gives the broker's answer. (It is no future
/// itself, so that `delivery.ack();` is a statement; [`IntoFuture::into_future`] makes one.)
#[derive(Debug)]
pub struct Settled(Answer);

impl IntoFuture for Settled {
    type Output = Result<(), SettleError>;
    type IntoFuture = SettledFuture;

    fn into_future(self) -> SettledFuture {
        SettledFuture { answer: self.0, place: None }
    }
}

/// The broker's answer to an outcome: with `Ok`, it has the durability of the topic.
///
/// # Cancel safety
/// Dropping it loses the answer; the outcome is sent all the same.
#[derive(Debug)]
pub struct SettledFuture {
    answer: Answer,
    place: Option<u32>,
}

impl SettledFuture {
    /// Once it has resolved to `Ok`: the index behind the entry of the partition that holds the outcome. None if the
    /// broker had nothing to store. A hand-out whose [`Delivery::dispatch_index`] is not below it came after it.
    #[must_use]
    pub fn commit_index(&self) -> Option<u64> {
        self.answer.commit_index().map(|index| index.0)
    }
}

impl Future for SettledFuture {
    type Output = Result<(), SettleError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { answer, place } = self.get_mut();
        let answer = ready!(answer.poll(place, cx));
        Poll::Ready(answer.map_err(SettleError::from_failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = format!("{}ü", "x".repeat(255));
        assert_eq!(cut(&long), "x".repeat(255));
    }
}
