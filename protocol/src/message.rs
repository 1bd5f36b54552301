//! Owns every message: its fields and, by the order of the fields, its body. Never frames one (`frame`
//! does) and never acts on one. Driven by the client and by the broker.
//!
//! A body is the message's fields in order, encoded as `codec` says. `Publish`, `Confirm`, `Deliver`, `Lease`
//! and `ReplicaEntries` have fixed layouts of their own, since they carry the traffic.

use bytes::{Bytes, BytesMut};

use crate::{api::Api, codec::DecodeError};

mod atomic;
mod bounds;
mod confirm;
mod delay;
mod deliver;
mod group;
mod hello;
mod lease;
mod metadata;
mod peer;
mod publish;
mod queue;
mod replica;
mod replicate;
mod run;
mod subscribe;
mod subscription;
mod topic;

pub use atomic::{PUBLISH_ATOMIC_HEAD_BYTES, PublishAtomic};
pub use bounds::{
    BoundsChange, DEDUP_WINDOW_MS_DEFAULT, DEDUP_WINDOW_MS_MAX, DEDUP_WINDOW_MS_MIN, Expired,
    Overflow, TopicBounds,
};
pub use confirm::{CONFIRM_RUN_BYTES, Confirm, ConfirmRun, Outcome};
pub use delay::{
    CANCEL_DELAYED_MAX, CancelDelayed, CancelDelayedReply, CancelVerdict, DelayId,
    DelayedPartition, DescribeDelayed, DescribeDelayedReply, PUBLISH_DELAYED_HEAD_BYTES,
    PublishDelayed,
};
pub use deliver::{DELIVER_HEAD_BYTES, Deliver, DeliverHead};
pub use group::{
    DescribeGroup, DescribeGroupReply, GroupAssigned, GroupFenced, GroupHeartbeat, GroupMember,
    GroupPartition, GroupReleased, GroupReleasedReply, GroupRevoked, JoinGroup, JoinGroupReply,
    LeaveGroup, LeaveGroupReply,
};
pub use hello::{FEATURE_LZ4, FEATURE_ZSTD, Hello, HelloReply, Limits, Ping, PingReply};
pub use lease::{LEASE_HEAD_BYTES, LEASE_RUN_BYTES, Lease, LeaseHead};
pub use metadata::{BrokerAddress, Metadata, MetadataReply, PartitionMetadata, TopicMetadata};
pub use peer::{
    Heartbeat, HeartbeatReply, JoinCluster, JoinClusterReply, JoinOutcome, Joined, PeerHello,
    PeerHelloReply, PeerIdentity, Propose, ProposeReply, RaftCall, RaftCallReply, RaftKind,
};
pub use publish::{
    AckLevel, OpenProducer, OpenProducerReply, PUBLISH_HEAD_BYTES, Publish, PublishHead,
};
pub use queue::{
    Ack, AckReply, AlterQueue, AlterQueueReply, Breaker, Consume, ConsumeReply, ConsumedPartition,
    CreateQueue, CreateQueueReply, CreateSubscription, CreateSubscriptionReply, DescribeQueue,
    DescribeQueueReply, HeldLeases, LeaseLost, PurgeQueue, PurgeQueueReply, QueueConsumer,
    QueuePartition, QueuePolicy, RedriveLetters, RedriveLettersReply, ReleaseMessage,
    ReleaseMessageReply, Renew, Return, ReturnAction, ReturnReply, SETTLE_MESSAGES_MAX,
    SettleProblem, WhyMessage, WhyMessageReply,
};
pub use replica::{
    AlterIsr, AlterIsrReply, FetchSnapshot, FetchSnapshotReply, IsrChange, IsrMember, IsrVerdict,
    LogPosition, OpenReplica, OpenReplicaReply, ProbeEnd, ProbeEndReply, ReplicaAck,
    ReplicaDiverged, ReplicaEnd, ReplicaOpened, ReplicaProgress, ReplicaReset, ReplicaStart,
    Resign, ResignReply, TopicPartition,
};
pub use replicate::{REPLICA_HEAD_BYTES, ReplicaEntries, ReplicaHead};
pub use run::{AckRun, LeaseRun, RUNS_MAX, SettleException};
pub use subscribe::{
    AckUpTo, AckUpToReply, Credit, Gap, GapReason, Seek, SeekReply, Seeked, Start, Subscribe,
    SubscribeReply, SubscribedPartition, SubscriptionClosed, Unsubscribe, UnsubscribeReply,
};
pub use subscription::{
    DeleteSubscription, DeleteSubscriptionReply, ListOffsets, ListOffsetsReply, ListPatterns,
    ListPatternsReply, ListSubscriptions, ListSubscriptionsReply, PatternDescription,
    SubscriptionDescription, SubscriptionPosition,
};
pub use topic::{
    AlterTopic, AlterTopicReply, CreateTopic, CreateTopicReply, DeleteTopic, DeleteTopicReply,
    DescribeTopic, DescribeTopicReply, PartitionDescription, TopicConfig,
};

/// What a frame's body may be.
pub trait Message: Sized {
    /// The api in the header of its frames. A reply has its request's.
    const API: Api;
    /// The version in the header of its frames.
    const VERSION: u8 = 1;

    /// Appends the body.
    fn encode(&self, out: &mut BytesMut);

    /// The message in this body.
    ///
    /// # Errors
    /// The body is not exactly one canonical message: the caller answers `MalformedFrame` and closes
    /// the connection.
    fn decode(body: Bytes) -> Result<Self, DecodeError>;
}

/// A struct whose encoding is its fields in order.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::codec::Wire for $name {
            const BYTES_MIN: usize =
                0usize$(.saturating_add(<$type as $crate::codec::Wire>::BYTES_MIN))*;

            #[allow(unused_variables, reason = "a message may have no fields")]
            fn put(&self, out: &mut $crate::codec::Writer<'_>) {
                $(out.put(&self.$field);)*
            }

            #[allow(unused_variables, reason = "a message may have no fields")]
            fn take(
                input: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::DecodeError> {
                Ok(Self { $($field: input.take()?,)* })
            }
        }
    };
}
use wire_struct;

/// Such a struct that is a message.
macro_rules! message {
    (
        $api:ident:
        $(#[$meta:meta])*
        pub struct $name:ident { $($fields:tt)* }
    ) => {
        $crate::message::wire_struct! {
            $(#[$meta])*
            pub struct $name { $($fields)* }
        }

        impl $crate::message::Message for $name {
            const API: $crate::api::Api = $crate::api::Api::$api;

            fn encode(&self, out: &mut bytes::BytesMut) {
                $crate::codec::Writer::new(out).put(self);
            }

            fn decode(body: bytes::Bytes) -> Result<Self, $crate::codec::DecodeError> {
                let mut input = $crate::codec::Reader::new(&body);
                let message = input.take()?;
                input.finish()?;
                Ok(message)
            }
        }
    };
}
use message;
