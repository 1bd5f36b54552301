//! Owns the public administration of queues and of subscriptions. Decides nothing.

use postrider_protocol::{
    message::{
        AlterQueue, AlterQueueReply, CreateQueue, CreateQueueReply, CreateSubscription,
        CreateSubscriptionReply, DescribeQueue, DescribeQueueReply, PurgeQueue, PurgeQueueReply,
        QueuePolicy, RedriveLetters, RedriveLettersReply, ReleaseMessage, ReleaseMessageReply,
        Start, TopicBounds, WhyMessage, WhyMessageReply,
    },
    types::{Durability, Offset, PartitionId},
};

use crate::{admin::Admin, core::link::Repeat, error::AdminError};

/// Names a queue-mode subscription: a queue's own (`"jobs".into()`), or one of a topic
/// (`("events", "billing").into()`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct QueueName {
    /// The topic.
    pub topic: String,
    /// The subscription; none = the queue's own.
    pub subscription: Option<String>,
}

impl From<&str> for QueueName {
    fn from(topic: &str) -> Self {
        Self { topic: topic.to_owned(), subscription: None }
    }
}

impl From<String> for QueueName {
    fn from(topic: String) -> Self {
        Self { topic, subscription: None }
    }
}

impl<T: Into<String>, S: Into<String>> From<(T, S)> for QueueName {
    fn from((topic, subscription): (T, S)) -> Self {
        Self { topic: topic.into(), subscription: Some(subscription.into()) }
    }
}

/// A queue to create.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "hand it to Admin::create_queue"]
pub struct NewQueue {
    name: String,
    partitions: u32,
    durability: Durability,
    message_bytes_max: Option<u32>,
    bounds: TopicBounds,
    policy: QueuePolicy,
    if_not_exists: bool,
}

impl NewQueue {
    /// A queue of one partition, durability `fsync`, with the default policy.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            partitions: 1,
            durability: Durability::Fsync,
            message_bytes_max: None,
            bounds: TopicBounds::default(),
            policy: QueuePolicy::default(),
            if_not_exists: false,
        }
    }

    /// Sets the number of partitions.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// Sets what an acknowledged message, and an acknowledged ack, has reached.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the largest message.
    pub fn message_bytes_max(mut self, bytes: u32) -> Self {
        self.message_bytes_max = Some(bytes);
        self
    }

    /// Sets how old and how many unsettled messages may be.
    pub fn bounds(mut self, bounds: TopicBounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Sets how messages are handed out, and what happens when they fail.
    pub fn policy(mut self, policy: QueuePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Finds it no error that the queue exists.
    pub fn if_not_exists(mut self) -> Self {
        self.if_not_exists = true;
        self
    }
}

/// A durable subscription to create.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "hand it to Admin::create_subscription"]
pub struct NewSubscription {
    topic: String,
    name: String,
    start: Start,
    queue: Option<QueuePolicy>,
    if_not_exists: bool,
}

impl NewSubscription {
    /// A stream-mode subscription that begins with the oldest message.
    pub fn new(topic: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            name: name.into(),
            start: Start::Earliest,
            queue: None,
            if_not_exists: false,
        }
    }

    /// Makes it a queue-mode subscription: its consumers share the messages.
    pub fn queue(mut self, policy: QueuePolicy) -> Self {
        self.queue = Some(policy);
        self
    }

    /// Sets where it begins.
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Finds it no error that there is one of this name and mode.
    pub fn if_not_exists(mut self) -> Self {
        self.if_not_exists = true;
        self
    }
}

fn repeat(if_not_exists: bool) -> Repeat {
    if if_not_exists { Repeat::Safe } else { Repeat::Never }
}

/// Which dead letters are sent back.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "hand it to Admin::redrive"]
pub struct Redrive {
    letters: String,
    reason: Option<String>,
    source: Option<String>,
    source_subscription: Option<String>,
    target: Option<String>,
    dry_run: bool,
}

impl Redrive {
    /// All letters of a dead letter topic, each to the topic that it comes from.
    pub fn new(letters: impl Into<String>) -> Self {
        Self {
            letters: letters.into(),
            reason: None,
            source: None,
            source_subscription: None,
            target: None,
            dry_run: false,
        }
    }

    /// Only those that died for this reason: `max_failures`, `rejected`, `expired` or `overflow`.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Only those of this topic.
    pub fn source(mut self, topic: impl Into<String>) -> Self {
        self.source = Some(topic.into());
        self
    }

    /// Only those of this subscription.
    pub fn source_subscription(mut self, name: impl Into<String>) -> Self {
        self.source_subscription = Some(name.into());
        self
    }

    /// Sends them to this topic instead.
    pub fn target(mut self, topic: impl Into<String>) -> Self {
        self.target = Some(topic.into());
        self
    }

    /// Only counts.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// The queue-mode subscription of a dead letter topic that remembers what was sent back.
pub const REDRIVE_SUBSCRIPTION: &str = "redrive";

impl Admin {
    /// Creates a queue. The reply says whether it was created now.
    ///
    /// # Errors
    /// The name is taken or breaks the rules, the policy is out of range, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the queue may be created all the same, also after the future was dropped.
    pub async fn create_queue(&self, queue: NewQueue) -> Result<CreateQueueReply, AdminError> {
        let NewQueue {
            name,
            partitions,
            durability,
            message_bytes_max,
            bounds,
            policy,
            if_not_exists,
        } = queue;
        let request = CreateQueue {
            name,
            partitions,
            durability,
            message_bytes_max,
            bounds,
            policy,
            if_not_exists,
        };
        self.ask(&request, repeat(if_not_exists)).await
    }

    /// Creates a durable subscription without attaching to it.
    ///
    /// # Errors
    /// There is no such topic, the name is taken, the policy is out of range, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the subscription may be created all the same, also after the future was dropped.
    pub async fn create_subscription(
        &self,
        subscription: NewSubscription,
    ) -> Result<CreateSubscriptionReply, AdminError> {
        let NewSubscription { topic, name, start, queue, if_not_exists } = subscription;
        let request = CreateSubscription { topic, name, start, queue, if_not_exists };
        self.ask(&request, repeat(if_not_exists)).await
    }

    /// Gives a queue-mode subscription another policy, as a whole.
    ///
    /// # Errors
    /// There is no such subscription, the policy is out of range, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the queue may be changed all the same, also after the future was dropped; and
    /// again after a lost connection, until the `request_timeout` ends.
    pub async fn alter_queue(
        &self,
        queue: impl Into<QueueName>,
        policy: QueuePolicy,
    ) -> Result<(), AdminError> {
        let QueueName { topic, subscription } = queue.into();
        let request = AlterQueue { topic, subscription, policy };
        self.ask::<_, AlterQueueReply>(&request, Repeat::Safe).await.map(|_done| ())
    }

    /// All about a queue-mode subscription: policy, partitions, consumers.
    ///
    /// # Errors
    /// There is no such subscription, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn describe_queue(
        &self,
        queue: impl Into<QueueName>,
    ) -> Result<DescribeQueueReply, AdminError> {
        let QueueName { topic, subscription } = queue.into();
        self.ask(&DescribeQueue { topic, subscription }, Repeat::Safe).await
    }

    /// Removes every message that is not settled. Answers how many there were.
    ///
    /// # Errors
    /// There is no such subscription, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the queue may be purged all the same, also after the future was dropped.
    pub async fn purge_queue(&self, queue: impl Into<QueueName>) -> Result<u64, AdminError> {
        let QueueName { topic, subscription } = queue.into();
        let request = PurgeQueue { topic, subscription };
        let reply: PurgeQueueReply = self.ask(&request, Repeat::Never).await?;
        Ok(reply.purged)
    }

    /// Creates what [`Admin::redrive`] needs: a paused queue-mode subscription of the dead letter topic. Once for all.
    ///
    /// # Errors
    /// There is no such topic, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the subscription may be created all the same, also after the future was dropped.
    pub async fn prepare_redrive(&self, letters: &str) -> Result<(), AdminError> {
        let policy = QueuePolicy { paused: true, ..QueuePolicy::default() };
        let subscription = NewSubscription::new(letters, REDRIVE_SUBSCRIPTION).queue(policy);
        self.create_subscription(subscription.if_not_exists()).await.map(|_created| ())
    }

    /// Sends dead letters of one partition back, from an offset on, at most `letters_max` (1 to 1,000) of them: one
    /// step of many. Each letter is sent once, however often it is asked for: whoever is cut off asks again. The
    /// letters stay in their topic.
    ///
    /// # Errors
    /// There is no such topic or partition, it is not [prepared](Admin::prepare_redrive), or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, letters may be sent all the same, also after the future was dropped.
    pub async fn redrive(
        &self,
        redrive: &Redrive,
        partition: u32,
        from: u64,
        letters_max: u32,
    ) -> Result<RedriveLettersReply, AdminError> {
        let Redrive { letters, reason, source, source_subscription, target, dry_run } =
            redrive.clone();
        let request = RedriveLetters {
            topic: letters,
            subscription: REDRIVE_SUBSCRIPTION.to_owned(),
            partition: PartitionId(partition),
            from: Offset(from),
            letters_max,
            reason,
            source,
            source_subscription,
            target,
            dry_run,
        };
        self.ask(&request, Repeat::Safe).await
    }

    /// Has one message handed out now, though a consumer has it or it waits for a time. It counts as no failure;
    /// whoever has it loses it.
    ///
    /// # Errors
    /// There is no such subscription or partition, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, the message may be released all the same, also after the future was dropped.
    pub async fn release_message(
        &self,
        queue: impl Into<QueueName>,
        partition: u32,
        offset: u64,
    ) -> Result<ReleaseMessageReply, AdminError> {
        let QueueName { topic, subscription } = queue.into();
        let (partition, offset) = (PartitionId(partition), Offset(offset));
        let request = ReleaseMessage { topic, subscription, partition, offset };
        self.ask(&request, Repeat::Never).await
    }

    /// What keeps one message.
    ///
    /// # Errors
    /// There is no such subscription or partition, or see [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future loses the answer and nothing else.
    pub async fn why_message(
        &self,
        queue: impl Into<QueueName>,
        partition: u32,
        offset: u64,
    ) -> Result<WhyMessageReply, AdminError> {
        let QueueName { topic, subscription } = queue.into();
        let (partition, offset) = (PartitionId(partition), Offset(offset));
        self.ask(&WhyMessage { topic, subscription, partition, offset }, Repeat::Safe).await
    }
}
