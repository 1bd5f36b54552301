//! Owns what is asked about durable subscriptions and offsets without being attached.

use super::{Start, message, wire_struct};
use crate::types::{Offset, PartitionId, SubscriptionId, TimestampMs};

message! { ListSubscriptions:
    /// Asks for a topic's durable subscriptions.
    pub struct ListSubscriptions {
        /// The topic.
        pub topic: String,
    }
}

message! { ListSubscriptions:
    /// A topic's durable subscriptions.
    pub struct ListSubscriptionsReply {
        /// By name.
        pub subscriptions: Vec<SubscriptionDescription>,
    }
}

wire_struct! {
    /// All about a durable subscription.
    pub struct SubscriptionDescription {
        /// Its name.
        pub name: String,
        /// Its UUID.
        pub id: SubscriptionId,
        /// A connection is attached to it.
        pub attached: bool,
        /// Where it stands on each partition.
        pub partitions: Vec<SubscriptionPosition>,
    }
}

message! { ListPatterns:
    /// Asks for the subscriptions by pattern.
    pub struct ListPatterns {}
}

message! { ListPatterns:
    /// The subscriptions by pattern, at most 64.
    pub struct ListPatternsReply {
        /// By pattern and name.
        pub patterns: Vec<PatternDescription>,
    }
}

wire_struct! {
    /// A subscription in all topics of a pattern.
    pub struct PatternDescription {
        /// Which topics.
        pub pattern: String,
        /// The subscription's name in each of them.
        pub name: String,
        /// The pattern's UUID.
        pub id: SubscriptionId,
        /// Topics that have a subscription because of it now.
        pub topics: u32,
    }
}

wire_struct! {
    /// Where a durable subscription stands on a partition.
    #[derive(Copy)]
    pub struct SubscriptionPosition {
        /// The partition.
        pub partition: PartitionId,
        /// Everything below is processed.
        pub acked: Offset,
        /// Messages between `acked` and the high watermark.
        pub lag: u64,
    }
}

message! { DeleteSubscription:
    /// Deletes a durable subscription.
    pub struct DeleteSubscription {
        /// Its topic, or the pattern of all its topics.
        pub topic: String,
        /// Its name.
        pub name: String,
    }
}

message! { DeleteSubscription:
    /// It is deleted.
    pub struct DeleteSubscriptionReply {}
}

message! { ListOffsets:
    /// Asks for the offset at a place or a time.
    pub struct ListOffsets {
        /// The topic.
        pub topic: String,
        /// The partition.
        pub partition: PartitionId,
        /// The place or the time.
        pub at: Start,
    }
}

message! { ListOffsets:
    /// The offset there.
    pub struct ListOffsetsReply {
        /// The first offset at or after it.
        pub offset: Offset,
        /// The append time of that message; 0 if there is none yet.
        pub time: TimestampMs,
    }
}
