//! Owns the public producer: its builder, its calls, acks. Decides nothing (the engine does).

use std::{
    borrow::Cow,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use postrider_protocol::types::{Compression, Offset};

use crate::{
    client::Handle,
    core::{
        Engine, ProducerKey,
        completion::{BatchCompletion, BatchOutcome, Place, promise},
        lane::{MessageParts, Whole},
        producer::{Enqueue, ProducerOptions, TopicFacts},
        room::Ticket,
    },
    delayed::DelayId,
    error::{FlushError, OpenError, SendError, TrySendError},
    fire::FireAndForget,
    payload::Encode,
    record::{Receipt, Record},
};

/// Makes a [`Producer`].
#[must_use = "call build()"]
pub struct ProducerBuilder<C> {
    handle: Arc<Handle>,
    topic: String,
    options: ProducerOptions,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for ProducerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerBuilder")
            .field("topic", &self.topic)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<C> ProducerBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>, topic: String) -> Self {
        Self { handle, topic, options: ProducerOptions::default(), codec: PhantomData }
    }

    /// Sets the longest wait of a message for its batch to fill. A message is sent at once when nothing of its
    /// partition is unconfirmed; only while something is, it waits: for a full batch, for the confirm, or for
    /// this time. Default: 1 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.options.linger = linger;
        self
    }

    /// Sets the size at which a batch is sent without further waiting, before compression. Default: 128 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.options.batch_bytes = bytes;
        self
    }

    /// Sets the bound of bytes that are enqueued and not confirmed. At the bound, `enqueue` and `send` wait and
    /// `try_enqueue` gives the record back. Default: 32 MiB.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.options.max_in_flight_bytes = bytes;
        self
    }

    /// Sets the most unconfirmed batches per partition, 1 to 1,024. Default: 256.
    pub fn max_in_flight_batches(mut self, batches: usize) -> Self {
        self.options.max_in_flight_batches = batches;
        self
    }

    /// Sets how batches are compressed. Default: not.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.options.compression = compression;
        self
    }

    /// Sets how long a message is retried, across reconnects, before it ends as unknown or not sent. Retries
    /// never store it twice. Default: 120 s.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.options.delivery_timeout = timeout;
        self
    }

    /// Opens the producer: a session with the broker.
    ///
    /// # Errors
    /// An option is out of range, the topic does not exist, or no broker answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future opens nothing that lasts.
    pub async fn build(self) -> Result<Producer<C>, OpenError> {
        self.check()?;
        let shared = Arc::clone(&self.handle.shared);
        let (opened, pending) = promise();
        let deadline = shared.now() + self.handle.request_timeout;
        let topic = self.topic.clone();
        let key = shared.with(|engine| engine.open_producer(topic, self.options, deadline, opened));
        let open = Arc::new(Open { handle: self.handle, key, topic: self.topic });
        match pending.await {
            Some(Ok(facts)) => Ok(Producer { open, facts, codec: PhantomData }),
            Some(Err(error)) => Err(OpenError::from_body(error)),
            None => Err(OpenError::Closed),
        }
    }

    /// Opens a producer that asks for no acks: see [`FireAndForget`].
    ///
    /// # Errors
    /// As [`ProducerBuilder::build`].
    ///
    /// # Cancel safety
    /// As [`ProducerBuilder::build`].
    pub async fn fire_and_forget(mut self) -> Result<FireAndForget<C>, OpenError> {
        self.options.forgets = true;
        Ok(FireAndForget::new(self.build().await?))
    }

    fn check(&self) -> Result<(), OpenError> {
        let options = &self.options;
        let fault = if !(1..=1024).contains(&options.max_in_flight_batches) {
            Some(("max_in_flight_batches", "from 1 to 1024"))
        } else if options.batch_bytes == 0 {
            Some(("batch_bytes", "at least 1"))
        } else if options.max_in_flight_bytes == 0 {
            Some(("max_in_flight_bytes", "at least 1"))
        } else if options.delivery_timeout.is_zero() {
            Some(("delivery_timeout", "longer than 0"))
        } else {
            None
        };
        fault.map_or(Ok(()), |(option, range)| Err(OpenError::Option { option, range }))
    }
}

/// Publishes to one topic. Cheap to clone; clones share batches, order and the byte bound.
///
/// Messages of one producer to one partition are stored in the order in which they were enqueued.
pub struct Producer<C> {
    open: Arc<Open>,
    facts: TopicFacts,
    codec: PhantomData<fn() -> C>,
}

impl<C> Clone for Producer<C> {
    fn clone(&self) -> Self {
        Self { open: Arc::clone(&self.open), facts: self.facts.clone(), codec: PhantomData }
    }
}

impl<C> fmt::Debug for Producer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.open.topic).finish_non_exhaustive()
    }
}

/// The producer in the engine; released when the last clone is gone.
struct Open {
    handle: Arc<Handle>,
    key: ProducerKey,
    topic: String,
}

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.handle.shared.with(|engine| engine.release_producer(self.key));
        if left.unsent + left.unacked > 0 {
            tracing::warn!(
                topic = self.topic,
                left.unsent,
                left.unacked,
                "a producer was dropped before flush: the client goes on in the background"
            );
        }
    }
}

impl<C> Producer<C> {
    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.open.topic
    }

    /// How many partitions the topic had when the producer was built.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.facts.partitions
    }

    /// Publishes one message and waits until it is stored as its topic's durability demands.
    ///
    /// # Errors
    /// See [`SendError`]: all variants but `Unknown` mean that it is not stored.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room, nothing is published. Dropped later, the message is still published, and
    /// its outcome is lost.
    pub async fn send<V>(&self, record: Record<V>) -> Result<Receipt, SendError>
    where
        C: Encode<V>,
    {
        self.enqueue(record).await?.await
    }

    /// Adds a message to its batch, waiting while `max_in_flight_bytes` is reached. The [`Ack`] tells later what
    /// became of it; dropping the ack does not take the message back.
    ///
    /// # Errors
    /// The message can never be published: see [`SendError`].
    ///
    /// # Cancel safety
    /// Dropped before it is ready, nothing is published.
    pub async fn enqueue<V>(&self, record: Record<V>) -> Result<Ack, SendError>
    where
        C: Encode<V>,
    {
        // A loop of enqueues that never waits must still let the connection's task run.
        tokio::task::coop::consume_budget().await;
        let value = encode::<C, V>(&record)?;
        let parts = parts(&record, value.as_deref());
        match self.place(&parts, None) {
            Enqueue::Full => {}
            placed => return ack_of(placed),
        }
        let clock = || self.open.handle.shared.clock();
        let key = self.open.key;
        ack_of(
            self.place_in_line(|engine, ticket| engine.enqueue(key, clock, &parts, ticket)).await,
        )
    }

    /// Waits in line while there is no room.
    async fn place_in_line(
        &self,
        mut place: impl FnMut(&mut Engine, Option<Ticket>) -> Enqueue,
    ) -> Enqueue {
        let mut line = Line { open: &self.open, ticket: None };
        let placed = poll_fn(|cx| {
            self.open.handle.shared.with(|engine| {
                let placed = place(engine, line.ticket);
                if matches!(placed, Enqueue::Full) {
                    line.ticket = engine.wait_for_room(self.open.key, line.ticket, cx.waker());
                    return Poll::Pending;
                }
                Poll::Ready(placed)
            })
        })
        .await;
        if matches!(placed, Enqueue::Placed { .. }) {
            // Its place in the line was taken over by the engine.
            line.ticket = None;
        }
        placed
    }

    /// Publishes messages as one batch of one partition: all are stored, at offsets that follow each other, or none is.
    /// They go to the partition of the first record that names one or has a key; others that do must agree. The batch
    /// is sent as it is, must be below the broker's `batch_bytes_max`, and cannot be delayed.
    ///
    /// With `at`, only if its first message gets that offset: of several producers that decide on the same state of the
    /// log one is stored, and the others are told `OffsetConflict` with the offset that comes next in `detail`. The first
    /// offset of an empty partition is 0.
    ///
    /// Returns the receipt of the first message.
    ///
    /// # Errors
    /// See [`SendError`]. `OffsetConflict`, and with idempotency keys `AtomicConflict` (some are stored already, and
    /// others are not), are `Rejected`: nothing is stored.
    ///
    /// # Cancel safety
    /// As [`Producer::send`].
    pub async fn send_atomic<V>(
        &self,
        records: &[Record<V>],
        at: Option<Offset>,
    ) -> Result<Receipt, SendError>
    where
        C: Encode<V>,
    {
        let values: Vec<_> = records.iter().map(encode::<C, V>).collect::<Result<_, _>>()?;
        if records.iter().any(|record| record.deliver_at.is_some()) {
            return Err(SendError::DelayedAtomic);
        }
        let parts: Vec<MessageParts<'_>> = std::iter::zip(records, &values)
            .map(|(record, value)| parts(record, value.as_deref()))
            .collect();
        let clock = || self.open.handle.shared.clock();
        let (key, whole) = (self.open.key, Whole { at });
        let place =
            |engine: &mut Engine, ticket| engine.enqueue_whole(key, clock, &parts, whole, ticket);
        ack_of(self.place_in_line(place).await)?.await
    }

    /// Adds a message to its batch, or gives the record back.
    ///
    /// # Errors
    /// `Full`: there is no room now. `Failed`: it can never be published.
    #[expect(clippy::result_large_err, reason = "the record comes back, whatever its size")]
    pub fn try_enqueue<V>(&self, record: Record<V>) -> Result<Ack, TrySendError<Record<V>>>
    where
        C: Encode<V>,
    {
        let placed = match encode::<C, V>(&record) {
            Ok(value) => self.place(&parts(&record, value.as_deref()), None),
            Err(why) => return Err(TrySendError::Failed(record, why)),
        };
        match ack_of_or_full(placed) {
            Ok(Some(ack)) => Ok(ack),
            Ok(None) => Err(TrySendError::Full(record)),
            Err(why) => Err(TrySendError::Failed(record, why)),
        }
    }

    /// Messages that the broker said it did not take, of a producer without acks.
    pub(crate) fn refused(&self) -> u64 {
        self.open.handle.shared.with(|engine| engine.refused_messages(self.open.key))
    }

    /// The connection that it shares.
    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.open.handle
    }

    fn place(&self, parts: &MessageParts<'_>, ticket: Option<Ticket>) -> Enqueue {
        let shared = &self.open.handle.shared;
        shared.with(|engine| engine.enqueue(self.open.key, || shared.clock(), parts, ticket))
    }

    /// Sends what is enqueued without waiting for full batches, and waits until all of it has its outcome.
    ///
    /// # Errors
    /// Some message was not stored, or it is not known; each message's ack tells its own.
    ///
    /// # Cancel safety
    /// Dropped, the messages are still sent without further waiting.
    pub async fn flush(&self) -> Result<(), FlushError> {
        let (done, flushed) = promise();
        self.open.handle.shared.with(|engine| engine.flush(self.open.key, done));
        match flushed.await {
            Some(outcome) => outcome.map_err(FlushError::Failed),
            None => Err(FlushError::Closed),
        }
    }

    /// Flushes and drops this handle. Other clones stay usable.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    ///
    /// # Cancel safety
    /// As [`Producer::flush`].
    pub async fn close(self) -> Result<(), FlushError> {
        self.flush().await
    }
}

fn encode<C: Encode<V>, V>(record: &Record<V>) -> Result<Option<Cow<'_, [u8]>>, SendError> {
    Ok(record.value.as_ref().map(|value| C::encode(value)).transpose()?)
}

fn parts<'a, V>(record: &'a Record<V>, value: Option<&'a [u8]>) -> MessageParts<'a> {
    MessageParts {
        partition: record.partition,
        key: record.key.as_deref(),
        value,
        headers: &record.headers,
        timestamp: record.timestamp,
        deliver_at: record.deliver_at,
        idempotency_key: record.idempotency_header.and_then(|at| record.headers[at].1.as_deref()),
    }
}

fn ack_of_or_full(placed: Enqueue) -> Result<Option<Ack>, SendError> {
    match placed {
        Enqueue::Placed { completion, place } => Ok(Some(Ack { completion, place, waker: None })),
        Enqueue::Full => Ok(None),
        Enqueue::TooLarge { bytes, max } => Err(SendError::TooLarge { bytes, max }),
        Enqueue::TooManyHeaders => Err(SendError::TooManyHeaders),
        Enqueue::Empty => Err(SendError::Empty),
        Enqueue::Scattered => Err(SendError::Scattered),
        Enqueue::BadIdempotencyKey { bytes } => Err(SendError::BadIdempotencyKey { bytes }),
        Enqueue::NoPartition { partitions } => Err(SendError::NoPartition { partitions }),
        Enqueue::Ended(ended) => Err(SendError::from_ended(ended)),
    }
}

fn ack_of(placed: Enqueue) -> Result<Ack, SendError> {
    Ok(ack_of_or_full(placed)?.expect("the caller handled a full producer"))
}

/// A place in the line for room; given up when the waiting future is dropped.
struct Line<'a> {
    open: &'a Open,
    ticket: Option<Ticket>,
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.open.handle.shared.with(|engine| engine.leave_line(self.open.key, ticket));
        }
    }
}

/// The outcome of an enqueued message, as a future.
///
/// Clones tell the same.
///
/// # Cancel safety
/// Dropping it loses the outcome; the message is published all the same.
#[derive(Debug)]
#[must_use = "await it, or let the producer's flush wait for the message"]
pub struct Ack {
    completion: Arc<BatchCompletion>,
    /// The message's place in its batch.
    place: u32,
    /// The place of this future's waker among the batch's.
    waker: Option<u32>,
}

impl Clone for Ack {
    fn clone(&self) -> Self {
        // A clone has a waker of its own.
        Self { completion: Arc::clone(&self.completion), place: self.place, waker: None }
    }
}

impl Ack {
    /// Whether two messages are in one batch: then they have their outcomes at the same moment, and, without
    /// idempotency keys, the same outcome, so that one ack tells for both. With keys see [`Ack::outcome_ahead`].
    #[must_use]
    pub fn same_batch(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.completion, &other.completion)
    }

    /// The outcome, if it is known already, of the message that lies `ahead` messages behind this one in the same
    /// batch: so one ack per batch is enough to follow all of its messages.
    #[must_use]
    pub fn outcome_ahead(&self, ahead: u32) -> Option<Result<Receipt, SendError>> {
        let place = self.place.saturating_add(ahead);
        self.completion.outcome().map(|outcome| receipt(&outcome, place))
    }

    /// The outcome, if it is known already.
    #[must_use]
    pub fn try_outcome(&self) -> Option<Result<Receipt, SendError>> {
        self.completion.outcome().map(|outcome| receipt(&outcome, self.place))
    }
}

impl Future for Ack {
    type Output = Result<Receipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.completion.poll(&mut this.waker, cx).map(|outcome| receipt(&outcome, this.place))
    }
}

fn receipt(outcome: &BatchOutcome, place: u32) -> Result<Receipt, SendError> {
    let (outcome, place) = outcome.of(place);
    match outcome {
        BatchOutcome::Stored(stored) => {
            let partition = stored.partition;
            let (offset, delay_id) = match stored.place {
                Place::Offsets(base) => (Offset(base.0 + u64::from(place)), None),
                Place::Delayed(first) => {
                    let position = first.position.saturating_add(place);
                    let id = DelayId { partition, index: first.index, position };
                    (Receipt::NO_OFFSET, Some(id))
                }
            };
            Ok(Receipt {
                partition,
                offset,
                delay_id,
                append_time: stored.append_time,
                durability: stored.durability,
                duplicate: stored.duplicate,
            })
        }
        BatchOutcome::Failed(failure) => Err(SendError::from_failure(failure)),
        BatchOutcome::Parts(_) => unreachable!("parts have no parts"),
        BatchOutcome::Sent => unreachable!("who forgets what it sends gives out no acks"),
    }
}
