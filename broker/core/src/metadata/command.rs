//! Owns the bytes of metadata commands. Never judges one. Driven by the image and by whoever appends.
//!
//! A body is `u8 version | u8 command | fields in the order of the declaration`, encoded as
//! `protocol::codec` says; all bytes are consumed. A topic's config is `u32 partitions | u8 kind |
//! u8 durability | option u64 retention_ms | option u64 retention_bytes | option u32 message_bytes_max`,
//! in version 2 followed by its settings, and so are the fields of an `AlterTopic`; see `settings`. Version 1
//! is written where there are none: other commands know no other version.
//! A queue's policy is stored as it is sent. Numbers of commands are never reused.

use bytes::{Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Writer};
use postrider_protocol::message::{BoundsChange, QueuePolicy, Start, TopicBounds, TopicConfig};
use postrider_protocol::types::{
    ClusterId, NodeId, ProducerId, StorageId, SubscriptionId, TimestampMs, TopicId,
};

use super::settings::{put_change, put_settings, take_change, take_settings};

const COMMAND_VERSION: u8 = 1;
/// With a topic's settings.
const COMMAND_VERSION_SETTINGS: u8 = 2;

/// What an `AlterTopic` changes; `None` leaves a setting as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TopicChange {
    /// Partitions may only be added.
    pub partitions: Option<u32>,
    /// The inner `None` is "for ever".
    pub retention_ms: Option<Option<u64>>,
    /// Per partition. The inner `None` is "without limit".
    pub retention_bytes: Option<Option<u64>>,
    /// The inner `None` is the broker's limit.
    pub message_bytes_max: Option<Option<u32>>,
    /// How old and how many messages may be.
    pub bounds: BoundsChange,
}

/// A change of the metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// The first command of every cluster.
    InitCluster {
        /// Its identity, for ever.
        cluster: ClusterId,
    },
    /// A broker started.
    RegisterBroker {
        /// Its number.
        node: NodeId,
        /// Its data directory.
        storage: StorageId,
        /// Rises with every start; also the leader epoch of what it leads.
        incarnation: u64,
        /// Where clients reach it.
        host: String,
        /// Where clients reach it.
        port: u16,
    },
    /// A topic begins.
    CreateTopic {
        /// Its identity.
        id: TopicId,
        /// Its name, free until now.
        name: String,
        /// Its settings.
        config: TopicConfig,
        /// When.
        created: TimestampMs,
    },
    /// A topic's settings change.
    AlterTopic {
        /// Which.
        id: TopicId,
        /// What.
        change: TopicChange,
    },
    /// A topic ends, with its messages and subscriptions.
    DeleteTopic {
        /// Which.
        id: TopicId,
    },
    /// A broker may hand out producer ids.
    GrantProducerIds {
        /// Who.
        node: NodeId,
        /// From here on.
        first: ProducerId,
        /// How many.
        count: u32,
    },
    /// A durable subscription begins.
    CreateSubscription {
        /// Of which topic.
        topic: TopicId,
        /// Its identity.
        id: SubscriptionId,
        /// Its name, free in the topic until now.
        name: String,
        /// Where it begins on the partitions that exist; later ones begin at offset 0.
        start: Start,
    },
    /// A durable subscription ends.
    DeleteSubscription {
        /// Of which topic.
        topic: TopicId,
        /// Which.
        id: SubscriptionId,
    },
    /// Entry kinds and commands up to this level may be written from now on.
    SetFeatureLevel {
        /// Above the one before.
        level: u32,
    },
    /// A topic of kind queue begins, with its own subscription from offset 0 on.
    CreateQueue {
        /// The topic's identity.
        id: TopicId,
        /// Its name, free until now.
        name: String,
        /// Its settings, of kind queue.
        config: TopicConfig,
        /// When.
        created: TimestampMs,
        /// The subscription's identity; its name is [`super::QUEUE_SUBSCRIPTION`].
        subscription: SubscriptionId,
        /// How it hands out messages.
        policy: QueuePolicy,
    },
    /// A queue-mode subscription begins.
    CreateQueueSubscription {
        /// Of which topic.
        topic: TopicId,
        /// Its identity.
        id: SubscriptionId,
        /// Its name, free in the topic until now.
        name: String,
        /// Where it begins on the partitions that exist; later ones begin at offset 0.
        start: Start,
        /// How it hands out messages.
        policy: QueuePolicy,
    },
    /// A queue-mode subscription has another policy.
    AlterQueue {
        /// Of which topic.
        topic: TopicId,
        /// Which.
        id: SubscriptionId,
        /// The whole policy.
        policy: QueuePolicy,
    },
    /// All topics of a pattern have a durable subscription in stream mode, those that are created later included.
    CreatePattern {
        /// Its identity.
        id: SubscriptionId,
        /// Which topics.
        pattern: String,
        /// The subscription's name in each of them. A topic that has such a one keeps it.
        name: String,
        /// Where it begins in the topics that exist; in later ones at offset 0.
        start: Start,
    },
    /// A pattern ends, with its subscriptions.
    DeletePattern {
        /// Which.
        id: SubscriptionId,
    },
}

impl Command {
    /// The body of the entry that carries it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let mut out = Writer::new(&mut bytes);
        let version = self.version();
        let has_settings = version == COMMAND_VERSION_SETTINGS;
        out.put(&version);
        out.put(&self.number());
        match self {
            Self::InitCluster { cluster } => out.put(cluster),
            Self::RegisterBroker { node, storage, incarnation, host, port } => {
                out.put(node);
                out.put(storage);
                out.put(incarnation);
                out.put(host);
                out.put(port);
            }
            Self::CreateTopic { id, name, config, created } => {
                out.put(id);
                out.put(name);
                put_config(&mut out, config);
                if has_settings {
                    put_settings(&mut out, &config.bounds);
                }
                out.put(created);
            }
            Self::AlterTopic { id, change } => {
                out.put(id);
                out.put(&change.partitions);
                out.put(&change.retention_ms);
                out.put(&change.retention_bytes);
                out.put(&change.message_bytes_max);
                if has_settings {
                    put_change(&mut out, &change.bounds);
                }
            }
            Self::DeleteTopic { id } => out.put(id),
            Self::GrantProducerIds { node, first, count } => {
                out.put(node);
                out.put(first);
                out.put(count);
            }
            Self::CreateSubscription { topic, id, name, start } => {
                out.put(topic);
                out.put(id);
                out.put(name);
                out.put(start);
            }
            Self::DeleteSubscription { topic, id } => {
                out.put(topic);
                out.put(id);
            }
            Self::SetFeatureLevel { level } => out.put(level),
            Self::CreateQueue { id, name, config, created, subscription, policy } => {
                out.put(id);
                out.put(name);
                put_config(&mut out, config);
                if has_settings {
                    put_settings(&mut out, &config.bounds);
                }
                out.put(created);
                out.put(subscription);
                out.put(policy);
            }
            Self::CreateQueueSubscription { topic, id, name, start, policy } => {
                out.put(topic);
                out.put(id);
                out.put(name);
                out.put(start);
                out.put(policy);
            }
            Self::AlterQueue { topic, id, policy } => {
                out.put(topic);
                out.put(id);
                out.put(policy);
            }
            Self::CreatePattern { id, pattern, name, start } => {
                out.put(id);
                out.put(pattern);
                out.put(name);
                out.put(start);
            }
            Self::DeletePattern { id } => out.put(id),
        }
        bytes.freeze()
    }

    fn version(&self) -> u8 {
        let has_settings = match self {
            Self::CreateTopic { config, .. } | Self::CreateQueue { config, .. } => {
                !config.bounds.is_none()
            }
            Self::AlterTopic { change, .. } => !change.bounds.is_none(),
            Self::InitCluster { .. }
            | Self::RegisterBroker { .. }
            | Self::DeleteTopic { .. }
            | Self::GrantProducerIds { .. }
            | Self::CreateSubscription { .. }
            | Self::DeleteSubscription { .. }
            | Self::SetFeatureLevel { .. }
            | Self::CreateQueueSubscription { .. }
            | Self::AlterQueue { .. }
            | Self::CreatePattern { .. }
            | Self::DeletePattern { .. } => false,
        };
        if has_settings { COMMAND_VERSION_SETTINGS } else { COMMAND_VERSION }
    }

    fn number(&self) -> u8 {
        match self {
            Self::InitCluster { .. } => 1,
            Self::RegisterBroker { .. } => 2,
            Self::CreateTopic { .. } => 3,
            Self::AlterTopic { .. } => 4,
            Self::DeleteTopic { .. } => 5,
            Self::GrantProducerIds { .. } => 6,
            Self::CreateSubscription { .. } => 7,
            Self::DeleteSubscription { .. } => 8,
            Self::SetFeatureLevel { .. } => 9,
            Self::CreateQueue { .. } => 10,
            Self::CreateQueueSubscription { .. } => 11,
            Self::AlterQueue { .. } => 12,
            Self::CreatePattern { .. } => 13,
            Self::DeletePattern { .. } => 14,
        }
    }

    /// The command in an entry's body.
    ///
    /// # Errors
    /// The bytes are not one canonical command of a version that this build knows. The broker must not
    /// go on: it would serve another state than the cluster has.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(body);
        let version = input.take::<u8>()?;
        if !(COMMAND_VERSION..=COMMAND_VERSION_SETTINGS).contains(&version) {
            return Err(DecodeError::Invalid("command version"));
        }
        let has_settings = version == COMMAND_VERSION_SETTINGS;
        let input = &mut input;
        let command = match input.take::<u8>()? {
            1 => Self::InitCluster { cluster: input.take()? },
            2 => Self::RegisterBroker {
                node: input.take()?,
                storage: input.take()?,
                incarnation: input.take()?,
                host: input.take()?,
                port: input.take()?,
            },
            3 => Self::CreateTopic {
                id: input.take()?,
                name: input.take()?,
                config: take_config(input, has_settings)?,
                created: input.take()?,
            },
            4 => Self::AlterTopic {
                id: input.take()?,
                change: TopicChange {
                    partitions: input.take()?,
                    retention_ms: input.take()?,
                    retention_bytes: input.take()?,
                    message_bytes_max: input.take()?,
                    bounds: if has_settings {
                        take_change(input)?
                    } else {
                        BoundsChange::default()
                    },
                },
            },
            5 => Self::DeleteTopic { id: input.take()? },
            6 => Self::GrantProducerIds {
                node: input.take()?,
                first: input.take()?,
                count: input.take()?,
            },
            7 => Self::CreateSubscription {
                topic: input.take()?,
                id: input.take()?,
                name: input.take()?,
                start: input.take()?,
            },
            8 => Self::DeleteSubscription { topic: input.take()?, id: input.take()? },
            9 => Self::SetFeatureLevel { level: input.take()? },
            10 => Self::CreateQueue {
                id: input.take()?,
                name: input.take()?,
                config: take_config(input, has_settings)?,
                created: input.take()?,
                subscription: input.take()?,
                policy: input.take()?,
            },
            11 => Self::CreateQueueSubscription {
                topic: input.take()?,
                id: input.take()?,
                name: input.take()?,
                start: input.take()?,
                policy: input.take()?,
            },
            12 => {
                Self::AlterQueue { topic: input.take()?, id: input.take()?, policy: input.take()? }
            }
            13 => Self::CreatePattern {
                id: input.take()?,
                pattern: input.take()?,
                name: input.take()?,
                start: input.take()?,
            },
            14 => Self::DeletePattern { id: input.take()? },
            _ => return Err(DecodeError::Invalid("command")),
        };
        match input.remaining() {
            0 if command.version() == version => Ok(command),
            0 => Err(DecodeError::Invalid("command version")),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

pub(super) fn put_config(out: &mut Writer<'_>, config: &TopicConfig) {
    out.put(&config.partitions);
    out.put(&config.kind);
    out.put(&config.durability);
    out.put(&config.retention_ms);
    out.put(&config.retention_bytes);
    out.put(&config.message_bytes_max);
}

pub(super) fn take_config(
    input: &mut Reader<'_>,
    has_settings: bool,
) -> Result<TopicConfig, DecodeError> {
    Ok(TopicConfig {
        partitions: input.take()?,
        kind: input.take()?,
        durability: input.take()?,
        retention_ms: input.take()?,
        retention_bytes: input.take()?,
        message_bytes_max: input.take()?,
        bounds: if has_settings { take_settings(input)? } else { TopicBounds::default() },
    })
}

#[cfg(test)]
mod tests {
    use postrider_protocol::message::{Breaker, Overflow};
    use postrider_protocol::types::{Durability, Offset, PartitionId, TopicKind};

    use super::*;

    pub(crate) fn one_of_each() -> Vec<Command> {
        let topic = TopicId([3; 16]);
        let id = SubscriptionId([4; 16]);
        vec![
            Command::InitCluster { cluster: ClusterId([1; 16]) },
            Command::RegisterBroker {
                node: NodeId(1),
                storage: StorageId([2; 16]),
                incarnation: 3,
                host: "localhost".to_string(),
                port: 7420,
            },
            Command::CreateTopic {
                id: topic,
                name: "orders".to_string(),
                config: TopicConfig {
                    partitions: 3,
                    kind: TopicKind::Log,
                    durability: Durability::Memory,
                    retention_ms: Some(1_000),
                    retention_bytes: None,
                    message_bytes_max: Some(7),
                    bounds: TopicBounds::default(),
                },
                created: TimestampMs(5),
            },
            Command::AlterTopic {
                id: topic,
                change: TopicChange {
                    partitions: Some(4),
                    retention_ms: Some(None),
                    ..TopicChange::default()
                },
            },
            Command::AlterTopic {
                id: topic,
                change: TopicChange {
                    bounds: BoundsChange {
                        message_ttl_ms: Some(None),
                        max_bytes: Some(Some(1 << 20)),
                        overflow: Some(Overflow::Reject),
                        ..BoundsChange::default()
                    },
                    ..TopicChange::default()
                },
            },
            Command::DeleteTopic { id: topic },
            Command::GrantProducerIds { node: NodeId(1), first: ProducerId(0), count: 9 },
            Command::CreateSubscription {
                topic,
                id,
                name: "billing".to_string(),
                start: Start::PerPartition(vec![(PartitionId(0), Offset(4))]),
            },
            Command::DeleteSubscription { topic, id },
            Command::SetFeatureLevel { level: 2 },
            Command::CreateQueue {
                id: topic,
                name: "jobs".to_string(),
                config: TopicConfig {
                    partitions: 3,
                    kind: TopicKind::Queue,
                    durability: Durability::Fsync,
                    retention_ms: None,
                    retention_bytes: None,
                    message_bytes_max: None,
                    bounds: TopicBounds {
                        message_ttl_ms: Some(60_000),
                        max_messages: Some(10),
                        overflow: Overflow::DeadLetter,
                        ..TopicBounds::default()
                    },
                },
                created: TimestampMs(5),
                subscription: id,
                policy: QueuePolicy {
                    dead_letter: Some("jobs.dead".to_string()),
                    ..QueuePolicy::default()
                },
            },
            Command::CreateQueueSubscription {
                topic,
                id,
                name: "billing".to_string(),
                start: Start::Latest,
                policy: QueuePolicy {
                    breaker: Some(Breaker { failure_percent: 50, window: 20, pause_ms: 1_000 }),
                    ..QueuePolicy::default()
                },
            },
            Command::AlterQueue {
                topic,
                id,
                policy: QueuePolicy { paused: true, ..QueuePolicy::default() },
            },
            Command::CreatePattern {
                id,
                pattern: "orders.*".to_string(),
                name: "audit".to_string(),
                start: Start::Latest,
            },
            Command::DeletePattern { id },
        ]
    }

    #[test]
    fn every_command_decodes_to_what_was_encoded() {
        for command in one_of_each() {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn a_command_that_is_cut_continued_or_of_a_later_version_is_refused() {
        for command in one_of_each() {
            let body = command.encode();
            for len in 0..body.len() {
                assert!(Command::decode(&body[..len]).is_err());
            }
            assert!(Command::decode(&[&body[..], &[0]].concat()).is_err());
            for version in [0, 1, 2, 3] {
                let other = Command::decode(&[&[version], &body[1..]].concat());
                assert!(body[0] == version || other.is_err(), "{command:?} has one form");
            }
        }
        assert!(Command::decode(&[COMMAND_VERSION, 13]).is_err());
    }

    #[test]
    fn the_bytes_of_a_command_stay_as_they_are() {
        let command =
            Command::GrantProducerIds { node: NodeId(1), first: ProducerId(1_024), count: 1_024 };
        let expected = [1, 6, 1, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0];
        assert_eq!(&command.encode()[..], &expected);
    }
}
