//! Owns topic administration: create, alter, delete, describe.

use super::{BoundsChange, SubscriptionDescription, TopicBounds, message, wire_struct};
use crate::types::{
    Durability, LeaderEpoch, NodeId, Offset, PartitionId, TimestampMs, TopicId, TopicKind,
};

wire_struct! {
    /// What a topic is.
    pub struct TopicConfig {
        /// How many partitions, at least 1.
        pub partitions: u32,
        /// Its kind; never changes.
        pub kind: TopicKind,
        /// Its durability class; never changes.
        pub durability: Durability,
        /// How long messages are kept; none = for ever.
        pub retention_ms: Option<u64>,
        /// How much each partition keeps; none = everything.
        pub retention_bytes: Option<u64>,
        /// The largest message; none = the broker's limit.
        pub message_bytes_max: Option<u32>,
        /// How old and how many messages may be.
        pub bounds: TopicBounds,
    }
}

message! { CreateTopic:
    /// Creates a topic.
    pub struct CreateTopic {
        /// Its name.
        pub name: String,
        /// What it is.
        pub config: TopicConfig,
        /// Succeed, and change nothing, if the name is taken.
        pub if_not_exists: bool,
    }
}

message! { CreateTopic:
    /// The topic exists.
    pub struct CreateTopicReply {
        /// Its UUID.
        pub id: TopicId,
        /// It did not exist before.
        pub created: bool,
    }
}

message! { AlterTopic:
    /// Changes a topic. None = leave as it is; some none = no bound.
    pub struct AlterTopic {
        /// The topic.
        pub name: String,
        /// The new number of partitions, not below the old one.
        pub partitions: Option<u32>,
        /// How long messages are kept.
        pub retention_ms: Option<Option<u64>>,
        /// How much each partition keeps.
        pub retention_bytes: Option<Option<u64>>,
        /// The largest message.
        pub message_bytes_max: Option<Option<u32>>,
        /// How old and how many messages may be.
        pub bounds: BoundsChange,
    }
}

message! { AlterTopic:
    /// It is changed.
    pub struct AlterTopicReply {}
}

message! { DeleteTopic:
    /// Deletes a topic with all its data.
    pub struct DeleteTopic {
        /// The topic.
        pub name: String,
    }
}

message! { DeleteTopic:
    /// It is deleted.
    pub struct DeleteTopicReply {}
}

message! { DescribeTopic:
    /// Asks for all about a topic.
    pub struct DescribeTopic {
        /// The topic.
        pub name: String,
    }
}

message! { DescribeTopic:
    /// All about a topic.
    pub struct DescribeTopicReply {
        /// Its name.
        pub name: String,
        /// Its UUID.
        pub id: TopicId,
        /// What it is.
        pub config: TopicConfig,
        /// When it was created.
        pub created: TimestampMs,
        /// Its partitions, from 0.
        pub partitions: Vec<PartitionDescription>,
        /// Its durable subscriptions.
        pub subscriptions: Vec<SubscriptionDescription>,
    }
}

wire_struct! {
    /// All about a partition.
    #[derive(Copy)]
    pub struct PartitionDescription {
        /// The partition.
        pub partition: PartitionId,
        /// Its leader.
        pub leader: NodeId,
        /// The leader's epoch.
        pub leader_epoch: LeaderEpoch,
        /// The first kept offset.
        pub log_start: Offset,
        /// One past the last offset that may be delivered.
        pub high_watermark: Offset,
        /// One past the last offset.
        pub log_end: Offset,
        /// What the log takes on disk.
        pub bytes: u64,
        /// In how many segments.
        pub segments: u32,
        /// Append time of the first kept entry; 0 if there is none.
        pub first_time: TimestampMs,
        /// Append time of the last one; 0 if there is none.
        pub last_time: TimestampMs,
    }
}
