//! Owns the public consumer of a queue-mode subscription: [`Consumer`], its builder, draining, and the loop
//! `work`. Decides nothing (the engine does).

use std::{
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use postrider_protocol::{
    error::ErrorCode,
    message::{QueuePolicy, SETTLE_MESSAGES_MAX},
    types::{MemberId, PartitionId},
};
use tokio::task::JoinSet;

use crate::{
    client::Handle,
    core::{
        completion::promise,
        consumer::{Attached, ConsumerOptions, Handed},
    },
    delivery::{AckHandle, Attachment, Delivery, Lot, OnDrop},
    error::{ConsumeError, OpenError},
    message::Message,
    payload::Decode,
    unpack::{Unpacked, Unpacking},
};

/// Messages that a consumer may hold, by default.
const PREFETCH_MESSAGES: u32 = 256;
/// Bytes that a consumer may hold, by default.
const PREFETCH_BYTES: u32 = 4 << 20;

/// Makes a [`Consumer`].
#[must_use = "call subscribe()"]
pub struct ConsumerBuilder<C> {
    handle: Arc<Handle>,
    options: ConsumerOptions,
    on_drop: OnDrop,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for ConsumerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<C> ConsumerBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>, topic: String) -> Self {
        let options = ConsumerOptions {
            topic,
            subscription: None,
            partitions: Vec::new(),
            member: MemberId([0; 16]),
            name: String::new(),
            prefetch_messages: PREFETCH_MESSAGES,
            prefetch_bytes: PREFETCH_BYTES,
        };
        Self { handle, options, on_drop: OnDrop::default(), codec: PhantomData }
    }

    /// Chooses the subscription. Default: the queue's own.
    pub fn subscription(mut self, name: impl Into<String>) -> Self {
        self.options.subscription = Some(name.into());
        self
    }

    /// Chooses the partitions. Default: all that the topic has now.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.options.partitions = partitions.into_iter().map(PartitionId).collect();
        self
    }

    /// Bounds the messages that are leased to this consumer and not settled; at most 65,536. Default: 256. With work that takes
    /// long, choose little more than what is worked on at once: the rest waits here although others could do it.
    pub fn prefetch(mut self, messages: u32) -> Self {
        self.options.prefetch_messages = messages;
        self
    }

    /// Bounds their bytes; at least one message passes whatever its size. Default: 4 MiB.
    pub fn prefetch_bytes(mut self, bytes: u32) -> Self {
        self.options.prefetch_bytes = bytes;
        self
    }

    /// Sets the name that the broker shows. Default: none.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Sets what becomes of a delivery that is dropped without an outcome. Default: [`OnDrop::Release`].
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.on_drop = on_drop;
        self
    }

    /// Attaches.
    ///
    /// # Errors
    /// There is no such queue, subscription or partition, the subscription is of stream mode, an option is out of
    /// its range, or no broker answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing attached.
    pub async fn subscribe(self) -> Result<Consumer<C>, OpenError> {
        let Self { handle, mut options, on_drop, .. } = self;
        if options.prefetch_bytes == 0 {
            return Err(OpenError::Option { option: "prefetch_bytes", range: "at least 1" });
        }
        // With this bound, what is settled at once never passes the protocol's limit for a request.
        if !(1..=SETTLE_MESSAGES_MAX).contains(&u64::from(options.prefetch_messages)) {
            return Err(OpenError::Option { option: "prefetch", range: "1 to 65536" });
        }
        getrandom::fill(&mut options.member.0)
            .map_err(|why| OpenError::NoRandomness(why.to_string()))?;
        let (attached, pending) = promise();
        let deadline = handle.shared.now() + handle.request_timeout;
        let consumer = handle.shared.with(|engine| engine.consume(options, deadline, attached));
        let attachment = Arc::new(Attachment { handle, consumer });
        match pending.await {
            Some(Ok(attached)) => Ok(Consumer {
                attachment,
                attached,
                on_drop,
                unpacking: None,
                ended: false,
                codec: PhantomData,
            }),
            Some(Err(error)) => Err(OpenError::from_body(error)),
            None => Err(OpenError::Closed),
        }
    }
}

/// Consumes a queue: a stream of [`Delivery`]. Many consumers share a queue; each message is leased to one of them
/// until it is settled.
///
/// Network trouble never ends it: after a lost connection it attaches again under the same identity and keeps its
/// leases; outcomes that had no answer are sent again. Leases are renewed by themselves, also of messages that wait
/// here. A lease that was lost all the same (the broker was away for longer than it lasts, a seek, a purge) shows in
/// [`Delivery::is_lost`] and in the answer to the outcome; what still waited here is dropped silently, for somebody
/// else has it.
///
/// Dropped, it gives back what waits here. Deliveries that were taken out of it stay leased, and can be settled.
pub struct Consumer<C> {
    attachment: Arc<Attachment>,
    attached: Attached,
    on_drop: OnDrop,
    unpacking: Option<(Arc<Lot>, Unpacking)>,
    ended: bool,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for Consumer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("attached", &self.attached).finish_non_exhaustive()
    }
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drained {
    /// Deliveries without an outcome, and outcomes without an answer.
    pub unsettled: u64,
}

impl Drained {
    /// Whether everything is settled.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unsettled == 0
    }
}

impl<C> Consumer<C> {
    /// The subscription's policy, as it was when the consumer attached.
    #[must_use]
    pub fn policy(&self) -> &QueuePolicy {
        &self.attached.policy
    }

    /// The partitions that messages come from.
    #[must_use]
    pub fn partitions(&self) -> &[PartitionId] {
        &self.attached.partitions
    }

    /// The next delivery. `None` after the end, or after a drain. The [`Stream`] does the same.
    ///
    /// # Errors
    /// See [`ConsumeError`]; the stream continues unless the error is fatal.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next_delivery(&mut self) -> Option<Result<Delivery<C::Value>, ConsumeError>>
    where
        C: Decode,
    {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    pub(crate) fn poll_delivery(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Delivery<C::Value>, ConsumeError>>>
    where
        C: Decode,
    {
        loop {
            if let Some((lot, unpacking)) = &mut self.unpacking {
                match unpacking.next::<C>(lot) {
                    Some(Unpacked::Message(message, run)) => {
                        let (offset, lot) = (message.offset, Arc::clone(lot));
                        let handle = AckHandle::new(lot, offset, run.attempt, run.failures);
                        return Poll::Ready(Some(Ok(Delivery::new(message, handle))));
                    }
                    Some(Unpacked::Unreadable(why)) => return Poll::Ready(Some(Err(why))),
                    None => self.unpacking = None,
                }
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let coop = ready!(tokio::task::coop::poll_proceed(cx));
            let Attachment { handle, consumer } = &*self.attachment;
            let handed = handle.shared.with(|engine| engine.poll_handed(*consumer, cx));
            let handed = ready!(handed);
            coop.made_progress();
            match handed {
                None => self.ended = true,
                Some(Handed::Grant(granted)) => {
                    let lot = Lot {
                        attachment: Arc::clone(&self.attachment),
                        grant: Arc::clone(&granted.grant),
                        on_drop: self.on_drop,
                    };
                    self.unpacking = Some((Arc::new(lot), Unpacking::new(granted)));
                }
                Some(Handed::Ended(error)) => {
                    self.ended = true;
                    if error.code != ErrorCode::ShuttingDown {
                        return Poll::Ready(Some(Err(ConsumeError::Ended(error))));
                    }
                }
            }
        }
    }

    /// Takes no more messages, gives back what waits here, and waits until every delivery that was taken out is
    /// settled and answered, for at most `timeout`. The stream has ended then.
    ///
    /// # Cancel safety
    /// Dropped, the consumer has stopped taking messages all the same; `drain` can be called again.
    pub async fn drain(&mut self, timeout: Duration) -> Drained {
        self.give_rest_back();
        let Attachment { handle, consumer } = &*self.attachment;
        let (done, drained) = promise();
        handle.shared.with(|engine| engine.drain_consumer(*consumer, done));
        // Whether it ended in time shows in what is left.
        let _in_time = tokio::time::timeout(timeout, drained).await;
        Drained { unsettled: handle.shared.with(|engine| engine.unsettled(*consumer)) }
    }

    /// Leaves the queue: takes no more messages, waits for the answers to the outcomes so far, for at most `timeout`.
    /// Deliveries without an outcome go back to the queue and are not counted in the result.
    ///
    /// # Cancel safety
    /// Dropped, the consumer leaves in the background.
    pub async fn close(mut self, timeout: Duration) -> Drained {
        self.give_rest_back();
        let Attachment { handle, consumer } = &*self.attachment;
        let (done, left) = promise();
        handle.shared.with(|engine| engine.leave_consumer(*consumer, done));
        let unsettled = match tokio::time::timeout(timeout, left).await {
            Ok(_left) => 0,
            Err(_elapsed) => handle.shared.with(|engine| engine.unsettled(*consumer)),
        };
        Drained { unsettled }
    }

    /// Handles messages, up to `concurrency` at once, each in a task of its own, until the stream ends or fails.
    /// `Ok` acknowledges; an error gives the message back as [`Failure`] says (any error becomes a retry after the
    /// policy's wait); a panic is a failure of the message. Unreadable messages are logged. (It is not called
    /// `for_each_concurrent`, for that of `StreamExt` would hide it.)
    ///
    /// # Errors
    /// The stream ended with a fatal error.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the tasks: what they work on is given back as a drop does (see [`OnDrop`]).
    /// Messages that were not begun wait in the consumer.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn work<F, Fut>(&mut self, concurrency: usize, work: F) -> Result<(), ConsumeError>
    where
        C: Decode,
        F: FnMut(Message<C::Value>) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.work_until(std::future::pending(), concurrency, work).await
    }

    /// As [`Self::work`], and begins no more once `stop` resolves: what was begun is finished, the rest goes back to
    /// the queue.
    ///
    /// # Errors
    /// The stream ended with a fatal error.
    ///
    /// # Cancel safety
    /// As [`Self::work`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn work_until<F, Fut>(
        &mut self,
        stop: impl Future<Output = ()>,
        concurrency: usize,
        mut work: F,
    ) -> Result<(), ConsumeError>
    where
        C: Decode,
        F: FnMut(Message<C::Value>) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let begin = |delivery: Delivery<C::Value>| {
            let (message, handle) = delivery.split();
            settle(work(message), handle)
        };
        let poll = |cx: &mut Context<'_>| self.poll_delivery(cx);
        let ended = begin_all(&mut tasks, concurrency, stop, poll, begin).await;
        self.stop();
        while tasks.join_next().await.is_some() {}
        ended
    }

    /// Takes no more messages, and gives back what waits here.
    pub(crate) fn stop(&mut self) {
        if !self.ended {
            self.give_rest_back();
            let Attachment { handle, consumer } = &*self.attachment;
            handle.shared.with(|engine| engine.stop_consumer(*consumer));
        }
    }

    /// What was handed out to this consumer and not taken from it.
    fn give_rest_back(&mut self) {
        if let Some((lot, unpacking)) = self.unpacking.take() {
            unpacking.give_back(&lot);
        }
    }
}

/// Begins with what comes, up to `concurrency` at once, each in a task of its own, until `stop` resolves or nothing
/// more comes. Unreadable messages are logged.
pub(crate) async fn begin_all<T, Fut>(
    tasks: &mut JoinSet<()>,
    concurrency: usize,
    stop: impl Future<Output = ()>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<T, ConsumeError>>>,
    mut begin: impl FnMut(T) -> Fut,
) -> Result<(), ConsumeError>
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut stop = pin!(stop);
    loop {
        // A panic has been told by the hook, and counted by the drop of the delivery.
        while tasks.len() >= concurrency.max(1) {
            tasks.join_next().await;
        }
        while tasks.try_join_next().is_some() {}
        let next = poll_fn(|cx| match stop.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => poll(cx),
        });
        match next.await {
            Some(Ok(delivery)) => {
                tasks.spawn(begin(delivery));
            }
            Some(Err(why)) if why.is_fatal() => return Err(why),
            Some(Err(why)) => tracing::warn!(%why, "a message cannot be read"),
            None => return Ok(()),
        }
    }
}

pub(crate) async fn settle(work: impl Future<Output = Result<(), Failure>>, handle: AckHandle) {
    let _answer = match work.await {
        Ok(()) => handle.ack(),
        Err(Failure::Retry { after: None, reason }) => handle.nack(reason),
        Err(Failure::Retry { after: Some(wait), reason }) => handle.retry_after(wait, reason),
        Err(Failure::Reject { reason }) => handle.reject(reason),
        Err(Failure::Release) => handle.release(),
    };
}

impl<C> Drop for Consumer<C> {
    fn drop(&mut self) {
        self.give_rest_back();
        let Attachment { handle, consumer } = &*self.attachment;
        handle.shared.with(|engine| engine.stop_consumer(*consumer));
    }
}

impl<C> Unpin for Consumer<C> {}

impl<C: Decode> Stream for Consumer<C> {
    type Item = Result<Delivery<C::Value>, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_delivery(cx)
    }
}

/// What becomes of a message that [`Consumer::work`]'s work did not process. Any error converts into
/// a retry after the policy's wait, so that `?` works.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// It failed, and is handed out again.
    Retry {
        /// After this wait; `None`: by the policy.
        after: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// It can never succeed.
    Reject {
        /// Why.
        reason: String,
    },
    /// It was not begun.
    Release,
}

impl Failure {
    /// It failed, and is handed out again after the policy's wait.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { after: None, reason: reason.into() }
    }

    /// It failed, and is handed out again after this wait.
    pub fn retry_after(wait: Duration, reason: impl Into<String>) -> Self {
        Self::Retry { after: Some(wait), reason: reason.into() }
    }

    /// It can never succeed: dead-letter it.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject { reason: reason.into() }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error.to_string())
    }
}
