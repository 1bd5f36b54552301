//! Owns consuming several queues by priority: [`PriorityConsumer`] and its builder. Decides only whose message is
//! next (`core::turns`); each queue is consumed by a [`Consumer`] of its own.
//!
//! The order holds among messages that have come here: the first of each queue waits in `heads`, others in the
//! consumers. A message published now is behind those that were leased before it.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::task::JoinSet;

use crate::{
    client::Handle,
    consumer::{Consumer, ConsumerBuilder, Drained, Failure, begin_all, settle},
    core::turns::Turns,
    delivery::{Delivery, OnDrop},
    error::{ConsumeError, OpenError},
    message::Message,
    payload::Decode,
    queues::QueueName,
};

/// Messages that are leased of each queue, by default: few, for those of light queues wait here for long.
const PREFETCH_MESSAGES: u32 = 16;
/// How often a queue that has messages is passed over at most, by default.
const FLOOR: u32 = 32;
/// More queues than one consumer should wait for.
const QUEUES_MAX: usize = 64;

/// Makes a [`PriorityConsumer`].
#[must_use = "call subscribe()"]
pub struct PriorityConsumerBuilder<C> {
    queues: Vec<(QueueName, u32)>,
    consumer: Box<dyn Fn(QueueName) -> ConsumerBuilder<C> + Send>,
    prefetch: u32,
    prefetch_bytes: Option<u32>,
    name: String,
    on_drop: OnDrop,
    floor: u32,
}

impl<C> fmt::Debug for PriorityConsumerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityConsumerBuilder")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl<C: 'static> PriorityConsumerBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        let consumer = Box::new(move |QueueName { topic, subscription }: QueueName| {
            let consumer = ConsumerBuilder::new(Arc::clone(&handle), topic);
            match subscription {
                Some(subscription) => consumer.subscription(subscription),
                None => consumer,
            }
        });
        Self {
            queues: Vec::new(),
            consumer,
            prefetch: PREFETCH_MESSAGES,
            prefetch_bytes: None,
            name: String::new(),
            on_drop: OnDrop::default(),
            floor: FLOOR,
        }
    }

    /// Adds a queue. While all have messages, each gets turns in the share of its weight, which is at least 1. With
    /// weights far apart (1,000 to 1) the order is strict but for the [floor](Self::floor).
    pub fn queue(mut self, queue: impl Into<QueueName>, weight: u32) -> Self {
        self.queues.push((queue.into(), weight));
        self
    }

    /// A queue that has messages is passed over at most so often, however light it is. At least 1. Default: 32. With
    /// several light queues, each waits its turn among them.
    pub fn floor(mut self, passed_over: u32) -> Self {
        self.floor = passed_over;
        self
    }

    /// Bounds the messages of each queue that are leased to this consumer and not settled. Default: 16. Those of
    /// light queues wait here while heavy ones go first, although other consumers could do them.
    pub fn prefetch(mut self, messages: u32) -> Self {
        self.prefetch = messages;
        self
    }

    /// Bounds their bytes; as [`ConsumerBuilder::prefetch_bytes`].
    pub fn prefetch_bytes(mut self, bytes: u32) -> Self {
        self.prefetch_bytes = Some(bytes);
        self
    }

    /// Sets the name that the broker shows. Default: none.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets what becomes of a delivery that is dropped without an outcome. Default: [`OnDrop::Release`].
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.on_drop = on_drop;
        self
    }

    /// Attaches to all queues.
    ///
    /// # Errors
    /// No queue or more than 64 are named, a weight or the floor is 0, or see [`ConsumerBuilder::subscribe`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing attached.
    pub async fn subscribe(self) -> Result<PriorityConsumer<C>, OpenError>
    where
        C: Decode,
    {
        if !(1..=QUEUES_MAX).contains(&self.queues.len()) {
            return Err(OpenError::Option { option: "queue", range: "1 to 64 queues" });
        }
        if self.queues.iter().any(|(_, weight)| *weight == 0) {
            return Err(OpenError::Option { option: "weight", range: "at least 1" });
        }
        if self.floor == 0 {
            return Err(OpenError::Option { option: "floor", range: "at least 1" });
        }
        let turns = Turns::new(self.queues.iter().map(|(_, weight)| *weight), self.floor);
        let mut sources = Vec::with_capacity(self.queues.len());
        for (queue, _) in self.queues {
            let mut consumer =
                (self.consumer)(queue.clone()).prefetch(self.prefetch).on_drop(self.on_drop);
            if let Some(bytes) = self.prefetch_bytes {
                consumer = consumer.prefetch_bytes(bytes);
            }
            let consumer = consumer.name(self.name.clone()).subscribe().await?;
            sources.push(Source { queue, consumer, head: None, ended: false });
        }
        Ok(PriorityConsumer { sources, turns })
    }
}

/// A queue, and its next message.
struct Source<C: Decode> {
    queue: QueueName,
    consumer: Consumer<C>,
    head: Option<Result<Delivery<C::Value>, ConsumeError>>,
    ended: bool,
}

/// Consumes several queues by priority: a stream of [`Prioritized`]. Each queue is consumed as by a [`Consumer`].
///
/// Priority holds among the messages that have come here: a message that is published now is behind those that were
/// leased before it.
///
/// Dropped, it gives back what waits here. Deliveries that were taken out of it stay leased, and can be settled.
pub struct PriorityConsumer<C: Decode> {
    sources: Vec<Source<C>>,
    turns: Turns,
}

impl<C: Decode> fmt::Debug for PriorityConsumer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources.iter().map(|source| &source.queue)).finish()
    }
}

/// A delivery, and the queue that it is of.
#[derive(Debug)]
pub struct Prioritized<V> {
    /// The queue's place in the order in which the queues were named.
    pub queue: usize,
    /// The delivery.
    pub delivery: Delivery<V>,
}

impl<C: Decode> PriorityConsumer<C> {
    /// The queues, in the order in which they were named.
    pub fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.sources.iter().map(|source| &source.queue)
    }

    /// The next delivery. `None` after the end of all queues, or after a drain. The [`Stream`] does the same.
    ///
    /// # Errors
    /// See [`ConsumeError`]; the stream goes on with the other queues even if the error is fatal for one.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next_delivery(&mut self) -> Option<Result<Prioritized<C::Value>, ConsumeError>> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    fn poll_delivery(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Prioritized<C::Value>, ConsumeError>>> {
        for source in self.sources.iter_mut().filter(|source| !source.ended) {
            // Somebody else has it by now.
            let lost = |delivery: &Delivery<C::Value>| delivery.is_lost();
            if matches!(&source.head, Some(Ok(delivery)) if lost(delivery)) {
                source.head = None;
            }
            if source.head.is_none()
                && let Poll::Ready(next) = source.consumer.poll_delivery(cx)
            {
                source.ended = next.is_none();
                source.head = next;
            }
        }
        let sources = &self.sources;
        let Some(queue) = self.turns.next(|at| sources[at].head.is_some()) else {
            let all = self.sources.iter().all(|source| source.ended);
            return if all { Poll::Ready(None) } else { Poll::Pending };
        };
        let head = self.sources[queue].head.take();
        Poll::Ready(head.map(|head| head.map(|delivery| Prioritized { queue, delivery })))
    }

    /// Handles messages, up to `concurrency` at once, until `stop` resolves or all queues end; as
    /// [`Consumer::work_until`], and `work` is told which queue a message is of.
    ///
    /// # Errors
    /// A queue ended with a fatal error.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the tasks: what they work on is given back as a drop does (see [`OnDrop`]).
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
        F: FnMut(usize, Message<C::Value>) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let begin = |Prioritized { queue, delivery }: Prioritized<C::Value>| {
            let (message, handle) = delivery.split();
            settle(work(queue, message), handle)
        };
        let poll = |cx: &mut Context<'_>| self.poll_delivery(cx);
        let ended = begin_all(&mut tasks, concurrency, stop, poll, begin).await;
        self.release_heads();
        for source in &mut self.sources {
            source.consumer.stop();
        }
        while tasks.join_next().await.is_some() {}
        ended
    }

    /// Takes no more messages, gives back what waits here, and waits until every delivery that was taken out is
    /// settled and answered, for at most `timeout` per queue. The stream has ended then.
    ///
    /// # Cancel safety
    /// Dropped, some of the queues may go on; `drain` can be called again.
    pub async fn drain(&mut self, timeout: Duration) -> Drained {
        self.release_heads();
        let mut drained = Drained { unsettled: 0 };
        for source in &mut self.sources {
            drained.unsettled += source.consumer.drain(timeout).await.unsettled;
            source.ended = true;
        }
        drained
    }

    /// What waits here was not begun: it is no failure, whatever a drop means.
    fn release_heads(&mut self) {
        for source in &mut self.sources {
            if let Some(Ok(delivery)) = source.head.take() {
                // The answer does not matter: who is gone releases too.
                let _answer = delivery.release();
            }
        }
    }
}

impl<C: Decode> Drop for PriorityConsumer<C> {
    fn drop(&mut self) {
        self.release_heads();
    }
}

impl<C: Decode> Unpin for PriorityConsumer<C> {}

impl<C: Decode> Stream for PriorityConsumer<C> {
    type Item = Result<Prioritized<C::Value>, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_delivery(cx)
    }
}
