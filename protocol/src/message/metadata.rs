//! Owns what a client must know to route: brokers, topics, partitions, leaders.

use super::{message, wire_struct};
use crate::{
    error::ErrorCode,
    types::{ClusterId, Durability, LeaderEpoch, NodeId, PartitionId, TopicId, TopicKind},
};

message! { Metadata:
    /// Asks for topics and their leaders.
    pub struct Metadata {
        /// The topics; none = all.
        pub topics: Vec<String>,
    }
}

message! { Metadata:
    /// Brokers, and the topics that were asked for, in the order of the request.
    pub struct MetadataReply {
        /// The cluster.
        pub cluster_id: ClusterId,
        /// Its brokers.
        pub brokers: Vec<BrokerAddress>,
        /// The topics.
        pub topics: Vec<TopicMetadata>,
    }
}

wire_struct! {
    /// Where a broker listens.
    pub struct BrokerAddress {
        /// The broker.
        pub node: NodeId,
        /// A name or an address.
        pub host: String,
        /// The data port.
        pub port: u16,
    }
}

wire_struct! {
    /// A topic, or why it is not known.
    pub struct TopicMetadata {
        /// Its name.
        pub name: String,
        /// Why there is none; the other fields are then zero.
        pub error: Option<ErrorCode>,
        /// Its UUID.
        pub id: TopicId,
        /// Its kind.
        pub kind: TopicKind,
        /// Its durability class.
        pub durability: Durability,
        /// Its partitions, from 0.
        pub partitions: Vec<PartitionMetadata>,
    }
}

wire_struct! {
    /// Who leads a partition.
    #[derive(Copy)]
    pub struct PartitionMetadata {
        /// The partition.
        pub partition: PartitionId,
        /// Its leader.
        pub leader: NodeId,
        /// The leader's epoch, to be sent with every data request.
        pub leader_epoch: LeaderEpoch,
    }
}
