//! Owns the public readers: [`Reader`] (ephemeral) and [`Subscriber`] (durable), their builders, acks. Decides
//! nothing (the engine does).

use std::{
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use postrider_protocol::{
    error::{ErrorBody, ErrorCode},
    message::Start,
    types::{Offset, PartitionId, SubscriptionHandle},
};

use crate::{
    admin::Admin,
    client::Handle,
    core::{
        completion::{Pending, promise},
        subscription::{AckFailure, AttachedPartition, Incoming, SubscriptionOptions},
    },
    error::{AckError, AdminError, OpenError, ReadError},
    message::{IntoMessages, Message, MessageBatch, Position, Unpacking},
    payload::Decode,
};

/// Bytes on their way or waiting, by default.
const PREFETCH_BYTES: u32 = 4 << 20;
/// Messages on their way or waiting, by default: the bytes are the bound that matters.
const PREFETCH_MESSAGES: u32 = 1 << 20;

macro_rules! builder_options {
    () => {
        /// Chooses the partitions. Default: all that the topic has now.
        pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
            self.options.partitions = partitions.into_iter().map(PartitionId).collect();
            self
        }

        /// Bounds the bytes on their way or waiting; at least one batch passes whatever its size. Default: 4 MiB.
        pub fn prefetch_bytes(mut self, bytes: u32) -> Self {
            self.options.prefetch_bytes = bytes;
            self
        }

        /// Bounds the messages on their way or waiting. Default: about a million.
        pub fn prefetch_messages(mut self, messages: u32) -> Self {
            self.options.prefetch_messages = messages;
            self
        }
    };
}

/// Makes a [`Reader`].
#[must_use = "call open()"]
pub struct ReaderBuilder<C> {
    handle: Arc<Handle>,
    options: SubscriptionOptions,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for ReaderBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<C> ReaderBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>, topic: String) -> Self {
        let options = options(topic, None, Start::Latest);
        Self { handle, options, codec: PhantomData }
    }

    /// Sets where to start. Default: [`Start::Latest`].
    pub fn from(mut self, start: Start) -> Self {
        self.options.start = start;
        self
    }

    builder_options!();

    /// Opens the reader.
    ///
    /// # Errors
    /// There is no such topic or partition, or no broker answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing open.
    pub async fn open(self) -> Result<Reader<C>, OpenError> {
        Ok(Reader { inner: Inner::open(self.handle, self.options).await? })
    }
}

/// Makes a [`Subscriber`].
#[must_use = "call open()"]
pub struct SubscriberBuilder<C> {
    handle: Arc<Handle>,
    options: SubscriptionOptions,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for SubscriberBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriberBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<C> SubscriberBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>, topic: String, name: String) -> Self {
        let options = options(topic, Some(name), Start::Earliest);
        Self { handle, options, codec: PhantomData }
    }

    /// Sets where the subscription starts if it does not exist yet. Default: [`Start::Earliest`].
    pub fn from(mut self, start: Start) -> Self {
        self.options.start = start;
        self
    }

    builder_options!();

    /// Attaches. The newest consumer wins: an older one is told [`ReadError::Taken`].
    ///
    /// # Errors
    /// There is no such topic or partition, the name breaks the rules, or no broker answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing attached; the subscription may have been created.
    pub async fn open(self) -> Result<Subscriber<C>, OpenError> {
        let topic = self.options.topic.clone();
        let name = self.options.name.clone().unwrap_or_default();
        let inner = Inner::open(self.handle, self.options).await?;
        Ok(Subscriber { inner, topic, name })
    }
}

pub(crate) fn options(topic: String, name: Option<String>, start: Start) -> SubscriptionOptions {
    SubscriptionOptions {
        topic,
        partitions: Vec::new(),
        name,
        start,
        prefetch_messages: PREFETCH_MESSAGES,
        prefetch_bytes: PREFETCH_BYTES,
    }
}

/// An attached subscription; detached when dropped.
pub(crate) struct Attachment {
    pub(crate) handle: Arc<Handle>,
    pub(crate) subscription: SubscriptionHandle,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.handle.shared.with(|engine| engine.unsubscribe(self.subscription));
    }
}

/// What both readers are.
struct Inner<C> {
    attachment: Attachment,
    partitions: Vec<AttachedPartition>,
    unpacking: Option<Unpacking>,
    messages: Option<IntoMessages<C>>,
    ended: bool,
}

impl<C> Inner<C> {
    async fn open(handle: Arc<Handle>, options: SubscriptionOptions) -> Result<Self, OpenError> {
        let faults = [
            (options.prefetch_bytes == 0, "prefetch_bytes"),
            (options.prefetch_messages == 0, "prefetch_messages"),
        ];
        if let Some((_, option)) = faults.into_iter().find(|(fault, _)| *fault) {
            return Err(OpenError::Option { option, range: "at least 1" });
        }
        let (attached, pending) = promise();
        let deadline = handle.shared.now() + handle.request_timeout;
        let subscription =
            handle.shared.with(|engine| engine.subscribe(options, deadline, attached));
        let attachment = Attachment { handle, subscription };
        match pending.await {
            Some(Ok(partitions)) => {
                Ok(Self { attachment, partitions, unpacking: None, messages: None, ended: false })
            }
            Some(Err(error)) => Err(OpenError::from_body(error)),
            None => Err(OpenError::Closed),
        }
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<MessageBatch<C>, ReadError>>> {
        if let Some(rest) = self.messages.take().and_then(IntoMessages::into_rest) {
            return Poll::Ready(Some(Ok(rest)));
        }
        loop {
            if let Some(unpacking) = &mut self.unpacking {
                if let Some(batch) = unpacking.next_batch() {
                    return Poll::Ready(Some(batch));
                }
                self.unpacking = None;
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let coop = ready!(tokio::task::coop::poll_proceed(cx));
            let Attachment { handle, subscription } = &self.attachment;
            let incoming = handle.shared.with(|engine| engine.poll_next(*subscription, cx));
            let incoming = ready!(incoming);
            coop.made_progress();
            match incoming {
                None => self.ended = true,
                Some(Incoming::Run(run)) => self.unpacking = Some(Unpacking::new(run)),
                Some(Incoming::Gap { partition, from, to, reason }) => {
                    return Poll::Ready(Some(Err(ReadError::Gap { partition, from, to, reason })));
                }
                Some(Incoming::Seeked { partition, next }) => {
                    return Poll::Ready(Some(Err(ReadError::Seeked { partition, next })));
                }
                // Only members hear of these.
                Some(Incoming::Assigned(_) | Incoming::Revoked { .. } | Incoming::Lost { .. }) => {}
                Some(Incoming::Ended(error)) => {
                    self.ended = true;
                    return Poll::Ready(end(error).map(Err));
                }
            }
        }
    }

    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message<C::Value>, ReadError>>>
    where
        C: Decode,
    {
        loop {
            if let Some(messages) = &mut self.messages {
                if let Some(message) = messages.next() {
                    return Poll::Ready(Some(message));
                }
                self.messages = None;
            }
            match ready!(self.poll_batch(cx)) {
                None => return Poll::Ready(None),
                Some(Err(why)) => return Poll::Ready(Some(Err(why))),
                Some(Ok(batch)) => self.messages = Some(batch.into_messages()),
            }
        }
    }
}

/// How the end is told; the application's own `close` is no error.
pub(crate) fn end(error: ErrorBody) -> Option<ReadError> {
    match error.code {
        ErrorCode::SubscriptionTaken => Some(ReadError::Taken(error)),
        ErrorCode::ShuttingDown => None,
        _ => Some(ReadError::Ended(error)),
    }
}

macro_rules! reading {
    () => {
        /// The partitions, with where they stood at the open.
        #[must_use]
        pub fn partitions(&self) -> &[AttachedPartition] {
            &self.inner.partitions
        }

        pub(crate) fn poll_batch(
            &mut self,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<MessageBatch<C>, ReadError>>> {
            self.inner.poll_batch(cx)
        }

        /// The next messages as they were delivered: the fast way to read. `None` after the end.
        ///
        /// # Errors
        /// See [`ReadError`]; the stream continues unless the error is fatal.
        ///
        /// # Cancel safety
        /// Dropping the future loses nothing.
        pub async fn next_batch(&mut self) -> Option<Result<MessageBatch<C>, ReadError>> {
            poll_fn(|cx| self.inner.poll_batch(cx)).await
        }

        /// The next message. `None` after the end. The [`Stream`] does the same.
        ///
        /// # Errors
        /// See [`ReadError`]; the stream continues unless the error is fatal.
        ///
        /// # Cancel safety
        /// Dropping the future loses nothing.
        pub async fn next_message(&mut self) -> Option<Result<Message<C::Value>, ReadError>>
        where
            C: Decode,
        {
            poll_fn(|cx| self.inner.poll_message(cx)).await
        }
    };
}

/// Reads a topic; its position lives here. Ends only when the client is closed or the topic is deleted: after a lost
/// connection it continues behind the last message that it received.
pub struct Reader<C> {
    inner: Inner<C>,
}

impl<C> fmt::Debug for Reader<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("partitions", &self.inner.partitions).finish_non_exhaustive()
    }
}

impl<C> Reader<C> {
    reading!();
}

impl<C: Decode> Stream for Reader<C> {
    type Item = Result<Message<C::Value>, ReadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().inner.poll_message(cx)
    }
}

impl<C> Unpin for Inner<C> {}

/// Consumes a durable subscription: what is acknowledged is never delivered again, except after a seek. After a lost
/// connection, delivery begins again behind the last stored ack.
pub struct Subscriber<C> {
    inner: Inner<C>,
    topic: String,
    name: String,
}

impl<C> fmt::Debug for Subscriber<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("topic", &self.topic)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<C> Subscriber<C> {
    reading!();

    /// Whether messages of a partition come here.
    pub(crate) fn reads(&self, partition: PartitionId) -> bool {
        self.inner.partitions.iter().any(|one| one.partition == partition)
    }

    /// Acknowledges a message or batch and everything before it in its partition. It is on its way when this returns;
    /// awaiting the result waits until it is stored. Acks that wait for each other are sent as one.
    ///
    /// # Cancel safety
    /// Dropping the result loses the answer; the ack is sent all the same.
    pub fn ack_up_to(&self, position: impl Into<Position>) -> AckUpTo {
        let Position { partition, owner_epoch, next } = position.into();
        let (promise, pending) = promise();
        let Attachment { handle, subscription } = &self.inner.attachment;
        handle.shared.with(|engine| {
            engine.ack_up_to(*subscription, partition, owner_epoch, next, promise);
        });
        AckUpTo(pending)
    }

    /// Moves the subscription. The stream tells [`ReadError::Seeked`] for each partition and continues there.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Dropped, the seek may have been done all the same.
    pub async fn seek(&self, to: Start) -> Result<Vec<(PartitionId, Offset)>, AdminError> {
        let admin = Admin::new(Arc::clone(&self.inner.attachment.handle));
        admin.seek(self.topic.clone(), self.name.clone(), to).await
    }
}

impl<C: Decode> Stream for Subscriber<C> {
    type Item = Result<Message<C::Value>, ReadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().inner.poll_message(cx)
    }
}

/// Whether an ack is stored, as a future. Need not be awaited.
///
/// # Cancel safety
/// Dropping it loses the answer; the ack is sent all the same.
#[derive(Debug)]
pub struct AckUpTo(pub(crate) Pending<Result<(), AckFailure>>);

impl Future for AckUpTo {
    type Output = Result<(), AckError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.unwrap_or(Err(AckFailure::Ended)).map_err(AckError::from_failure))
    }
}
