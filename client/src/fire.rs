//! Owns publishing without acks: [`FireAndForget`]. Decides nothing (the engine does).

use std::{fmt, sync::Arc};

use crate::{
    admin::Admin,
    error::{FlushError, SendError, TrySendError},
    payload::Encode,
    producer::Producer,
    record::Record,
};

/// Publishes to one topic and asks for no answer: `ack=none`.
///
/// What it promises: each message is written to the broker's connection once, in order, and is never stored twice.
/// What it does not: a message that the broker refuses (full disk, too much queued, too large), or that was on its
/// way when a connection or a broker was lost, is lost, and nobody is told. Messages that wait here while there is no
/// connection are sent when there is one again. For metrics and traces, not for orders.
///
/// It is bounded all the same: a broker that does not keep up stops reading, and then `send` waits for room in
/// `max_in_flight_bytes`. Cheap to clone. Made by [`ProducerBuilder::fire_and_forget`].
///
/// [`ProducerBuilder::fire_and_forget`]: crate::ProducerBuilder::fire_and_forget
pub struct FireAndForget<C> {
    producer: Producer<C>,
}

impl<C> Clone for FireAndForget<C> {
    fn clone(&self) -> Self {
        Self { producer: self.producer.clone() }
    }
}

impl<C> fmt::Debug for FireAndForget<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FireAndForget")
            .field("topic", &self.producer.topic())
            .finish_non_exhaustive()
    }
}

impl<C> FireAndForget<C> {
    pub(crate) fn new(producer: Producer<C>) -> Self {
        Self { producer }
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.producer.topic()
    }

    /// Takes a message to be sent. Waits only while `max_in_flight_bytes` wait to be written.
    ///
    /// # Errors
    /// The message can never be published: see [`SendError`]. What becomes of it later is not told.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, nothing is published.
    pub async fn send<V>(&self, record: Record<V>) -> Result<(), SendError>
    where
        C: Encode<V>,
    {
        self.producer.enqueue(record).await.map(drop)
    }

    /// Takes a message to be sent, or gives the record back.
    ///
    /// # Errors
    /// `Full`: there is no room now. `Failed`: it can never be published.
    #[expect(clippy::result_large_err, reason = "the record comes back, whatever its size")]
    pub fn try_send<V>(&self, record: Record<V>) -> Result<(), TrySendError<Record<V>>>
    where
        C: Encode<V>,
    {
        self.producer.try_enqueue(record).map(drop)
    }

    /// How many messages the broker said it did not take, as far as it came to that.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.producer.refused()
    }

    /// Waits until the broker has read all that was sent before. So it is not lost with this process; it may be
    /// with a connection that was lost meanwhile, and the broker may have refused it.
    ///
    /// # Errors
    /// The client was closed, a message waited here for longer than `delivery_timeout`, or no broker answered in
    /// time.
    ///
    /// # Cancel safety
    /// Dropped, the messages are still sent.
    pub async fn flush(&self) -> Result<(), FlushError> {
        self.producer.flush().await?;
        // Requests leave in order: when this one is answered, what was written before has been read.
        Admin::new(Arc::clone(self.producer.handle()))
            .ping()
            .await
            .map(drop)
            .map_err(FlushError::NotRead)
    }

    /// Flushes and drops this handle. Other clones stay usable.
    ///
    /// # Errors
    /// As [`FireAndForget::flush`].
    ///
    /// # Cancel safety
    /// As [`FireAndForget::flush`].
    pub async fn close(self) -> Result<(), FlushError> {
        self.flush().await
    }
}
