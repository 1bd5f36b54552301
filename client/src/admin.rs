//! Owns the public administration calls. Decides nothing.

use std::{sync::Arc, time::Duration};

use postrider_protocol::{
    message::{
        AlterTopic, AlterTopicReply, CreateTopic, CreateTopicReply, DeleteSubscription,
        DeleteSubscriptionReply, DeleteTopic, DeleteTopicReply, DescribeGroup, DescribeGroupReply,
        DescribeTopic, DescribeTopicReply, ListOffsets, ListOffsetsReply, ListPatterns,
        ListPatternsReply, ListSubscriptions, ListSubscriptionsReply, Message, Metadata,
        MetadataReply, PatternDescription, Ping, PingReply, Seek, SeekReply, Start,
        SubscriptionDescription, TopicBounds, TopicConfig,
    },
    types::{Durability, Offset, PartitionId, TimestampMs, TopicKind},
};

use crate::{
    client::Handle,
    core::{
        completion::promise,
        link::{Repeat, RequestFailure},
    },
    error::AdminError,
};

/// Topics, subscriptions, offsets. From [`Client::admin`](crate::Client::admin).
///
/// Every call waits through reconnects for at most the client's `request_timeout`. After a lost connection a request
/// is sent again only where doing it twice is doing it once; of any other the lost answer is [`AdminError::Unknown`].
///
/// # Cancel safety
/// A request is made when its future is first polled, and goes its way from then on, whether somebody waits for the
/// answer or not. So a call that only reads may be dropped at any time, and one that changes something may have
/// changed it after it was dropped: each method says which it is.
#[derive(Clone, Debug)]
pub struct Admin {
    handle: Arc<Handle>,
}

/// A topic to create.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "hand it to Admin::create_topic"]
pub struct NewTopic {
    name: String,
    config: TopicConfig,
    if_not_exists: bool,
}

impl NewTopic {
    /// A log topic of one partition, durability `fsync`, kept for ever.
    pub fn new(name: impl Into<String>) -> Self {
        let config = TopicConfig {
            partitions: 1,
            kind: TopicKind::Log,
            durability: Durability::Fsync,
            retention_ms: None,
            retention_bytes: None,
            message_bytes_max: None,
            bounds: TopicBounds::default(),
        };
        Self { name: name.into(), config, if_not_exists: false }
    }

    /// Sets the whole configuration.
    pub fn config(mut self, config: TopicConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the number of partitions.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.config.partitions = partitions;
        self
    }

    /// Sets what an acknowledged message has reached.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = durability;
        self
    }

    /// Keeps messages for this long.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.config.retention_ms = Some(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Keeps this many bytes per partition.
    pub fn retention_bytes(mut self, bytes: u64) -> Self {
        self.config.retention_bytes = Some(bytes);
        self
    }

    /// Sets the largest message.
    pub fn message_bytes_max(mut self, bytes: u32) -> Self {
        self.config.message_bytes_max = Some(bytes);
        self
    }

    /// Sets how old and how many messages may be.
    pub fn bounds(mut self, bounds: TopicBounds) -> Self {
        self.config.bounds = bounds;
        self
    }

    /// Finds it no error that the topic exists.
    pub fn if_not_exists(mut self) -> Self {
        self.if_not_exists = true;
        self
    }
}

impl Admin {
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self { handle }
    }

    /// Creates a topic. The reply says whether it was created now.
    ///
    /// # Errors
    /// The name is taken or breaks the rules, the configuration is out of range, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the topic may be created all the same, also after the future was dropped.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<CreateTopicReply, AdminError> {
        let NewTopic { name, config, if_not_exists } = topic;
        let repeat = if if_not_exists { Repeat::Safe } else { Repeat::Never };
        self.ask(&CreateTopic { name, config, if_not_exists }, repeat).await
    }

    /// Changes a topic: more partitions, other limits. `None` leaves a setting as it is.
    ///
    /// # Errors
    /// There is no such topic, a value is out of range, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the topic may be changed all the same, also after the future was dropped; and
    /// again after a lost connection, until the `request_timeout` ends.
    pub async fn alter_topic(&self, change: AlterTopic) -> Result<(), AdminError> {
        self.ask::<_, AlterTopicReply>(&change, Repeat::Safe).await.map(|_done| ())
    }

    /// Deletes a topic and all its messages.
    ///
    /// # Errors
    /// There is no such topic, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the topic may be deleted all the same, also after the future was dropped.
    pub async fn delete_topic(&self, name: impl Into<String>) -> Result<(), AdminError> {
        let request = DeleteTopic { name: name.into() };
        self.ask::<_, DeleteTopicReply>(&request, Repeat::Never).await.map(|_done| ())
    }

    /// A topic's configuration, partitions and subscriptions.
    ///
    /// # Errors
    /// There is no such topic, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn describe_topic(
        &self,
        name: impl Into<String>,
    ) -> Result<DescribeTopicReply, AdminError> {
        self.ask(&DescribeTopic { name: name.into() }, Repeat::Safe).await
    }

    /// Who is in the consumer group of a durable subscription, and who reads what.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn describe_group(
        &self,
        topic: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<DescribeGroupReply, AdminError> {
        let request = DescribeGroup { topic: topic.into(), name: name.into() };
        self.ask(&request, Repeat::Safe).await
    }

    /// All topics and brokers.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn list_topics(&self) -> Result<MetadataReply, AdminError> {
        self.metadata(Vec::new()).await
    }

    /// These topics (empty: all) and the brokers. A topic that does not exist is listed with its error.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn metadata(&self, topics: Vec<String>) -> Result<MetadataReply, AdminError> {
        self.ask(&Metadata { topics }, Repeat::Safe).await
    }

    /// A topic's durable subscriptions.
    ///
    /// # Errors
    /// There is no such topic, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn list_subscriptions(
        &self,
        topic: impl Into<String>,
    ) -> Result<Vec<SubscriptionDescription>, AdminError> {
        let request = ListSubscriptions { topic: topic.into() };
        let reply: ListSubscriptionsReply = self.ask(&request, Repeat::Safe).await?;
        Ok(reply.subscriptions)
    }

    /// The subscriptions by pattern.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn list_patterns(&self) -> Result<Vec<PatternDescription>, AdminError> {
        let reply: ListPatternsReply = self.ask(&ListPatterns {}, Repeat::Safe).await?;
        Ok(reply.patterns)
    }

    /// Deletes a durable subscription with its position.
    ///
    /// # Errors
    /// There is no such subscription, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the subscription may be deleted all the same, also after the future was dropped.
    pub async fn delete_subscription(
        &self,
        topic: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<(), AdminError> {
        let request = DeleteSubscription { topic: topic.into(), name: name.into() };
        self.ask::<_, DeleteSubscriptionReply>(&request, Repeat::Never).await.map(|_done| ())
    }

    /// Moves a durable subscription; its consumer, if one is attached, is told in its stream.
    ///
    /// # Errors
    /// There is no such subscription or partition, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the subscription may be moved all the same, also after the future was dropped.
    pub async fn seek(
        &self,
        topic: impl Into<String>,
        name: impl Into<String>,
        to: Start,
    ) -> Result<Vec<(PartitionId, Offset)>, AdminError> {
        let request = Seek { topic: topic.into(), name: name.into(), to };
        let reply: SeekReply = self.ask(&request, Repeat::Never).await?;
        Ok(reply.partitions)
    }

    /// The offset at a place or a time, and the time of the message there.
    ///
    /// # Errors
    /// There is no such topic or partition, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn list_offsets(
        &self,
        topic: impl Into<String>,
        partition: u32,
        at: Start,
    ) -> Result<(Offset, TimestampMs), AdminError> {
        let partition = PartitionId(partition);
        let request = ListOffsets { topic: topic.into(), partition, at };
        let reply: ListOffsetsReply = self.ask(&request, Repeat::Safe).await?;
        Ok((reply.offset, reply.time))
    }

    /// Asks for a sign of life. Answers how long it took.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn ping(&self) -> Result<Duration, AdminError> {
        let asked = self.handle.shared.now();
        let _reply: PingReply = self.ask(&Ping {}, Repeat::Safe).await?;
        Ok(self.handle.shared.now().saturating_sub(asked))
    }

    pub(crate) async fn ask<M: Message, R: Message>(
        &self,
        message: &M,
        repeat: Repeat,
    ) -> Result<R, AdminError> {
        let shared = &self.handle.shared;
        let (promise, answer) = promise();
        let deadline = shared.now() + self.handle.request_timeout;
        shared.with(|engine| engine.ask(message, repeat, deadline, promise));
        let answer = answer.await.unwrap_or(Err(RequestFailure::Closed));
        let body = answer.map_err(AdminError::from_failure)?;
        R::decode(body).map_err(AdminError::Malformed)
    }
}
