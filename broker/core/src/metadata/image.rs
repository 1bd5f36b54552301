//! Owns the image of the metadata: the fold of all commands. Never reads a clock or a setting. Driven by
//! the join, command by command.
//!
//! `check` refuses what a client may not ask for; `apply` refuses only what no correct cluster can have
//! appended, because limits may change between versions while old logs stay.
//!
//! The chain hash covers every applied command and its index: two brokers whose chains differ at one
//! index have applied different histories, and the one that finds out stops.

use std::collections::BTreeMap;

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{QueuePolicy, Start, TopicConfig};
use postrider_protocol::types::{
    ClusterId, EntryIndex, NodeId, Offset, PartitionId, ProducerId, StorageId, SubscriptionId,
    TimestampMs, TopicId, TopicKind,
};

use super::command::{Command, TopicChange};
use super::patterns::Pattern;
use super::rules::{
    QUEUE_SUBSCRIPTION, validate_config, validate_name, validate_policy, validate_subscription_name,
};
use crate::limits::{SUBSCRIPTIONS_PER_TOPIC_MAX, TOPICS_MAX};

/// A broker of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broker {
    /// Its data directory.
    pub storage: StorageId,
    /// Its newest start.
    pub incarnation: u64,
    /// Where clients reach it.
    pub host: String,
    /// Where clients reach it.
    pub port: u16,
}

/// A durable subscription of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscription {
    /// Its identity.
    pub id: SubscriptionId,
    /// Its name, unique in the topic.
    pub name: String,
    /// Where it began on the partitions that existed then.
    pub start: Start,
    /// How many those were; later ones begin at offset 0.
    pub partitions_at_start: u32,
    /// How it hands out messages, in queue mode; `None` in stream mode.
    pub queue: Option<QueuePolicy>,
}

impl Subscription {
    /// Where it begins on `partition`. The caller resolves `Earliest` and `Timestamp` against the log.
    #[must_use]
    pub fn start_on(&self, partition: PartitionId) -> Start {
        if partition.0 >= self.partitions_at_start {
            return Start::Offset(Offset(0));
        }
        match &self.start {
            Start::PerPartition(offsets) => offsets
                .iter()
                .find(|(named, _)| *named == partition)
                .map_or(Start::Earliest, |(_, offset)| Start::Offset(*offset)),
            Start::Earliest | Start::Latest | Start::Offset(_) | Start::Timestamp(_) => {
                self.start.clone()
            }
        }
    }
}

/// A topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Its settings.
    pub config: TopicConfig,
    /// When it was created.
    pub created: TimestampMs,
    /// Its durable subscriptions, by id.
    pub subscriptions: BTreeMap<SubscriptionId, Subscription>,
}

impl Topic {
    /// The durable subscription with this name.
    #[must_use]
    pub fn subscription(&self, name: &str) -> Option<&Subscription> {
        self.subscriptions.values().find(|subscription| subscription.name == name)
    }
}

/// What a command changed; tells the join what to open, close or create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// The cluster exists.
    ClusterInitialised,
    /// A broker has started.
    BrokerRegistered(NodeId),
    /// A topic exists.
    TopicCreated(TopicId),
    /// A topic has other settings, and the partitions from `old_partitions` on are new.
    TopicAltered {
        /// Which.
        id: TopicId,
        /// Its partitions before.
        old_partitions: u32,
    },
    /// A topic is gone.
    TopicDeleted(Topic),
    /// Ids may be handed out.
    ProducerIdsGranted {
        /// By whom.
        node: NodeId,
        /// From here on.
        first: ProducerId,
        /// How many.
        count: u32,
    },
    /// A durable subscription exists.
    SubscriptionCreated {
        /// Of which topic.
        topic: TopicId,
        /// Which.
        id: SubscriptionId,
    },
    /// A durable subscription is gone.
    SubscriptionDeleted {
        /// Of which topic.
        topic: TopicId,
        /// Which.
        id: SubscriptionId,
    },
    /// These subscriptions exist because of a pattern.
    PatternCreated(Vec<(TopicId, SubscriptionId)>),
    /// These subscriptions are gone with their pattern.
    PatternDeleted(Vec<(TopicId, SubscriptionId)>),
    /// There is another feature level.
    FeatureLevelSet,
    /// A queue-mode subscription has another policy.
    QueueAltered {
        /// Of which topic.
        topic: TopicId,
        /// Which.
        id: SubscriptionId,
    },
}

/// The fold of all metadata commands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    pub(super) end: EntryIndex,
    pub(super) chain: u64,
    pub(super) cluster: ClusterId,
    pub(super) brokers: BTreeMap<NodeId, Broker>,
    pub(super) topics: BTreeMap<TopicId, Topic>,
    pub(super) by_name: BTreeMap<String, TopicId>,
    pub(super) patterns: BTreeMap<SubscriptionId, Pattern>,
    pub(super) partitions: u64,
    pub(super) producer_ids_end: i64,
    pub(super) feature_level: u32,
}

impl Image {
    /// One past the index of the last applied command.
    #[must_use]
    pub fn end(&self) -> EntryIndex {
        self.end
    }

    /// The hash of the history.
    #[must_use]
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// The cluster's identity, if it has begun.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        (self.cluster != ClusterId::default()).then_some(self.cluster)
    }

    /// The brokers, by number.
    #[must_use]
    pub fn brokers(&self) -> &BTreeMap<NodeId, Broker> {
        &self.brokers
    }

    /// The topics, by id.
    #[must_use]
    pub fn topics(&self) -> &BTreeMap<TopicId, Topic> {
        &self.topics
    }

    /// The topics, by name.
    pub fn topics_by_name(&self) -> impl Iterator<Item = &Topic> {
        self.by_name.values().filter_map(|id| self.topics.get(id))
    }

    /// The topic with this id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// The topic with this name.
    #[must_use]
    pub fn topic_named(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.by_name.get(name)?)
    }

    /// Partitions of all topics.
    #[must_use]
    pub fn partitions(&self) -> u64 {
        self.partitions
    }

    /// One past the last producer id granted: no session has this id or a higher one.
    #[must_use]
    pub fn producer_ids_end(&self) -> ProducerId {
        ProducerId(self.producer_ids_end)
    }

    /// What may be written.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// Judges a command before it is appended.
    ///
    /// # Errors
    /// What the client is told; nothing may be appended.
    pub fn check(&self, command: &Command) -> Result<(), ErrorBody> {
        self.check_rules(command)?;
        self.check_history(command)
    }

    /// What a client may not ask for.
    fn check_rules(&self, command: &Command) -> Result<(), ErrorBody> {
        match command {
            Command::CreateTopic { name, config, .. } => {
                if config.kind == TopicKind::Queue {
                    let text = format!("create a queue with: postrider queue create {name}");
                    return Err(ErrorBody::new(ErrorCode::WrongTopicKind, text));
                }
                self.check_topic(name, config)?;
            }
            Command::CreateQueue { name, config, policy, .. } => {
                self.check_topic(name, config)?;
                validate_policy(name, policy)?;
                self.check_circle(name, policy)?;
            }
            Command::AlterTopic { id, change } => {
                if let Some(topic) = self.topics.get(id) {
                    validate_config(&changed(&topic.config, change))?;
                }
            }
            Command::CreateSubscription { topic, name, .. } => {
                self.check_subscription(*topic, name)?;
                if let Some(topic) = self.topics.get(topic)
                    && topic.config.kind == TopicKind::Queue
                {
                    return Err(no_stream_on_queue(&topic.name));
                }
            }
            Command::CreateQueueSubscription { topic, name, policy, .. } => {
                self.check_subscription(*topic, name)?;
                self.check_policy(*topic, policy)?;
            }
            Command::AlterQueue { topic, policy, .. } => self.check_policy(*topic, policy)?,
            Command::DeleteSubscription { topic, id } => {
                if let Some(topic) = self.topics.get(topic)
                    && topic.config.kind == TopicKind::Queue
                    && topic.subscription(QUEUE_SUBSCRIPTION).is_some_and(|own| own.id == *id)
                {
                    let text = format!(
                        "the subscription {QUEUE_SUBSCRIPTION} is the queue's own; delete the queue \
                         with: postrider queue rm {}",
                        topic.name
                    );
                    return Err(ErrorBody::new(ErrorCode::BadRequest, text));
                }
            }
            Command::CreatePattern { pattern, name, .. } => self.check_pattern(pattern, name)?,
            Command::InitCluster { .. }
            | Command::RegisterBroker { .. }
            | Command::DeleteTopic { .. }
            | Command::GrantProducerIds { .. }
            | Command::DeletePattern { .. }
            | Command::SetFeatureLevel { .. } => {}
        }
        Ok(())
    }

    fn check_topic(&self, name: &str, config: &TopicConfig) -> Result<(), ErrorBody> {
        validate_name(name)?;
        validate_config(config)?;
        if self.topics.len() >= TOPICS_MAX {
            let text = format!("there are {TOPICS_MAX} topics, as many as allowed");
            return Err(ErrorBody::new(ErrorCode::LimitExceeded, text));
        }
        Ok(())
    }

    fn check_subscription(&self, topic: TopicId, name: &str) -> Result<(), ErrorBody> {
        validate_subscription_name(name)?;
        let count = self.topics.get(&topic).map_or(0, |topic| topic.subscriptions.len());
        if count >= SUBSCRIPTIONS_PER_TOPIC_MAX {
            let text = format!("the topic has {count} subscriptions, as many as allowed");
            return Err(ErrorBody::new(ErrorCode::SubscriptionLimit, text));
        }
        Ok(())
    }

    fn check_policy(&self, topic: TopicId, policy: &QueuePolicy) -> Result<(), ErrorBody> {
        let Some(topic) = self.topics.get(&topic) else { return Ok(()) };
        validate_policy(&topic.name, policy)?;
        self.check_circle(&topic.name, policy)
    }

    /// What contradicts the commands before.
    fn check_history(&self, command: &Command) -> Result<(), ErrorBody> {
        let refuse = |code, text: String| Err(ErrorBody::new(code, text));
        match command {
            Command::InitCluster { cluster } => {
                if self.cluster().is_some() || *cluster == ClusterId::default() {
                    return refuse(ErrorCode::WrongCluster, "the cluster has begun".to_string());
                }
            }
            Command::RegisterBroker { node, incarnation, .. } => {
                let newest = self.brokers.get(node).map_or(0, |broker| broker.incarnation);
                if *incarnation <= newest || u32::try_from(*incarnation).is_err() {
                    let text =
                        format!("broker {node} has incarnation {newest}, not below {incarnation}");
                    return refuse(ErrorCode::BadRequest, text);
                }
            }
            Command::CreateTopic { id, name, .. } | Command::CreateQueue { id, name, .. } => {
                if self.by_name.contains_key(name) || self.topics.contains_key(id) {
                    return refuse(ErrorCode::TopicExists, format!("the topic {name} exists"));
                }
            }
            Command::AlterTopic { id, change } => {
                let topic = self.known(*id)?;
                let old = topic.config.partitions;
                if change.partitions.is_some_and(|new| new < old) {
                    let text = format!("the topic has {old} partitions; they can only be added");
                    return refuse(ErrorCode::InvalidConfig, text);
                }
            }
            Command::DeleteTopic { id } => {
                self.known(*id)?;
            }
            Command::GrantProducerIds { first, count, .. } => {
                let end = first.0.checked_add(i64::from(*count));
                if first.0 != self.producer_ids_end || end.is_none() || *count == 0 {
                    let text =
                        format!("producer ids are granted from {} on", self.producer_ids_end);
                    return refuse(ErrorCode::BadRequest, text);
                }
            }
            Command::CreateSubscription { topic, id, name, .. }
            | Command::CreateQueueSubscription { topic, id, name, .. } => {
                let topic = self.known(*topic)?;
                if topic.subscription(name).is_some() || topic.subscriptions.contains_key(id) {
                    let text = format!("the topic has a subscription {name}");
                    return refuse(ErrorCode::SubscriptionExists, text);
                }
            }
            Command::AlterQueue { topic, id, .. } => {
                match self.known(*topic)?.subscriptions.get(id) {
                    None => {
                        let text = format!("there is no subscription {id}");
                        return refuse(ErrorCode::UnknownSubscription, text);
                    }
                    Some(Subscription { queue: None, name, .. }) => {
                        let text =
                            format!("the subscription {name} is of stream mode; it has no policy");
                        return refuse(ErrorCode::WrongSubscriptionMode, text);
                    }
                    Some(Subscription { queue: Some(_), .. }) => {}
                }
            }
            Command::DeleteSubscription { topic, id } => {
                if !self.known(*topic)?.subscriptions.contains_key(id) {
                    let text = format!("there is no subscription {id}");
                    return refuse(ErrorCode::UnknownSubscription, text);
                }
            }
            Command::CreatePattern { id, pattern, name, .. } => {
                if self.pattern_named(pattern, name).is_some() || self.patterns.contains_key(id) {
                    let text = format!("there is a subscription {name} of {pattern}");
                    return refuse(ErrorCode::SubscriptionExists, text);
                }
            }
            Command::DeletePattern { id } => {
                if !self.patterns.contains_key(id) {
                    let text = format!("there is no subscription {id} by pattern");
                    return refuse(ErrorCode::UnknownSubscription, text);
                }
            }
            Command::SetFeatureLevel { level } => {
                if *level <= self.feature_level {
                    let text = format!("the feature level is {}", self.feature_level);
                    return refuse(ErrorCode::BadRequest, text);
                }
            }
        }
        Ok(())
    }

    fn known(&self, id: TopicId) -> Result<&Topic, ErrorBody> {
        self.topics.get(&id).ok_or_else(|| {
            ErrorBody::new(ErrorCode::UnknownTopic, format!("there is no topic with id {id}"))
        })
    }

    /// Applies the command of the entry at `index`. After an error the image is as before.
    ///
    /// # Errors
    /// The command contradicts those before it, or its entry is not above theirs: the log is not the
    /// one that this image belongs to, and the broker must stop.
    pub fn apply(&mut self, index: EntryIndex, command: &Command) -> Result<Applied, ImageError> {
        if index < self.end {
            return Err(ImageError::Index { end: self.end, found: index });
        }
        self.check_history(command).map_err(ImageError::Contradiction)?;
        let applied = self.apply_checked(command);
        self.chain = chain_hash(self.chain, index, &command.encode());
        self.end = EntryIndex(index.0 + 1);
        Ok(applied)
    }

    fn apply_checked(&mut self, command: &Command) -> Applied {
        match command.clone() {
            Command::InitCluster { cluster } => {
                self.cluster = cluster;
                Applied::ClusterInitialised
            }
            Command::RegisterBroker { node, storage, incarnation, host, port } => {
                self.brokers.insert(node, Broker { storage, incarnation, host, port });
                Applied::BrokerRegistered(node)
            }
            Command::CreateTopic { id, name, config, created } => {
                let subscriptions = BTreeMap::new();
                self.insert_topic(Topic { id, name, config, created, subscriptions })
            }
            Command::CreateQueue { id, name, config, created, subscription, policy } => {
                let own = Subscription {
                    id: subscription,
                    name: QUEUE_SUBSCRIPTION.to_string(),
                    start: Start::Offset(Offset(0)),
                    partitions_at_start: config.partitions,
                    queue: Some(policy),
                };
                let subscriptions = BTreeMap::from([(subscription, own)]);
                self.insert_topic(Topic { id, name, config, created, subscriptions })
            }
            Command::AlterTopic { id, change } => self.alter_topic(id, &change),
            Command::DeleteTopic { id } => {
                let topic = self.topics.remove(&id).expect("checked");
                self.partitions -= u64::from(topic.config.partitions);
                self.by_name.remove(&topic.name);
                Applied::TopicDeleted(topic)
            }
            Command::GrantProducerIds { node, first, count } => {
                self.producer_ids_end = first.0 + i64::from(count);
                Applied::ProducerIdsGranted { node, first, count }
            }
            Command::CreateSubscription { topic, id, name, start } => {
                self.insert_subscription(topic, (id, name), start, None)
            }
            Command::CreateQueueSubscription { topic, id, name, start, policy } => {
                self.insert_subscription(topic, (id, name), start, Some(policy))
            }
            Command::AlterQueue { topic, id, policy } => {
                let held = self.topics.get_mut(&topic).expect("checked");
                held.subscriptions.get_mut(&id).expect("checked").queue = Some(policy);
                Applied::QueueAltered { topic, id }
            }
            Command::DeleteSubscription { topic, id } => {
                let held = self.topics.get_mut(&topic).expect("checked");
                held.subscriptions.remove(&id);
                Applied::SubscriptionDeleted { topic, id }
            }
            Command::CreatePattern { id, pattern, name, start } => {
                let pattern = Pattern { id, pattern, name };
                Applied::PatternCreated(self.insert_pattern(pattern, &start))
            }
            Command::DeletePattern { id } => {
                let pattern = self.patterns.get(&id).expect("checked").clone();
                Applied::PatternDeleted(self.remove_pattern(&pattern))
            }
            Command::SetFeatureLevel { level } => {
                self.feature_level = level;
                Applied::FeatureLevelSet
            }
        }
    }

    fn insert_topic(&mut self, mut topic: Topic) -> Applied {
        let id = topic.id;
        self.follow_patterns(&mut topic);
        self.partitions += u64::from(topic.config.partitions);
        self.by_name.insert(topic.name.clone(), id);
        self.topics.insert(id, topic);
        Applied::TopicCreated(id)
    }

    fn insert_subscription(
        &mut self,
        topic: TopicId,
        (id, name): (SubscriptionId, String),
        start: Start,
        queue: Option<QueuePolicy>,
    ) -> Applied {
        let held = self.topics.get_mut(&topic).expect("checked");
        let partitions_at_start = held.config.partitions;
        let subscription = Subscription { id, name, start, partitions_at_start, queue };
        held.subscriptions.insert(id, subscription);
        Applied::SubscriptionCreated { topic, id }
    }

    fn alter_topic(&mut self, id: TopicId, change: &TopicChange) -> Applied {
        let topic = self.topics.get_mut(&id).expect("checked");
        let old_partitions = topic.config.partitions;
        topic.config = changed(&topic.config, change);
        self.partitions += u64::from(topic.config.partitions - old_partitions);
        Applied::TopicAltered { id, old_partitions }
    }
}

fn changed(config: &TopicConfig, change: &TopicChange) -> TopicConfig {
    TopicConfig {
        partitions: change.partitions.unwrap_or(config.partitions),
        retention_ms: change.retention_ms.unwrap_or(config.retention_ms),
        retention_bytes: change.retention_bytes.unwrap_or(config.retention_bytes),
        message_bytes_max: change.message_bytes_max.unwrap_or(config.message_bytes_max),
        kind: config.kind,
        durability: config.durability,
        bounds: config.bounds.changed(&change.bounds),
    }
}

/// FNV-1a over the hash before, the index and the command. It has to tell histories apart that differ
/// by a bug, not by an attacker.
fn chain_hash(before: u64, index: EntryIndex, command: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let (before, index) = (before.to_le_bytes(), index.0.to_le_bytes());
    before
        .iter()
        .chain(&index)
        .chain(command)
        .fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Refuses a stream on a queue: what the queue's own subscriptions have settled is removed, whatever a
/// stream has read of it.
fn no_stream_on_queue(topic: &str) -> ErrorBody {
    let text = format!(
        "{topic} is a queue: a named subscription on it is of queue mode. Consume it, or create \
         another with: postrider subscription create {topic} NAME --queue. To look without taking, \
         use: postrider queue peek {topic}"
    );
    ErrorBody::new(ErrorCode::WrongTopicKind, text)
}

/// Why a command cannot be applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// Its entry is not above the last applied one.
    #[error("the metadata command at {found} was to be applied at {end} or above")]
    Index {
        /// One past the last applied one.
        end: EntryIndex,
        /// This one.
        found: EntryIndex,
    },
    /// It contradicts the commands before it.
    #[error("a metadata command contradicts those before it: {0}")]
    Contradiction(ErrorBody),
}
