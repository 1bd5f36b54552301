//! Owns what a member of a consumer group and the broker say to each other. What a member reads, and what it
//! acknowledges, is said as by every other subscriber: `Deliver`, `Credit`, `AckUpTo`, `Gap`, `Seeked`.

use super::{Start, SubscribedPartition, message, wire_struct};
use crate::error::ErrorBody;
use crate::types::{Offset, PartitionId, SubscriptionHandle, SubscriptionId, TopicId};

message! { JoinGroup:
    /// Becomes a member of the group of a durable subscription, which is created if there is none.
    pub struct JoinGroup {
        /// Names the membership on this connection; chosen by the client, not in use.
        pub handle: SubscriptionHandle,
        /// The topic.
        pub topic: String,
        /// The subscription.
        pub name: String,
        /// Where it begins if it is created.
        pub start: Start,
        /// The number that this process had as a member before its connection broke.
        pub resumes: Option<u64>,
        /// A name that stays over restarts of the process.
        pub instance: Option<String>,
        /// How long the broker waits for a heartbeat.
        pub session_timeout_ms: u32,
        /// How many messages the broker may send, over all partitions.
        pub credit_messages: u32,
        /// How many bytes the broker may send, over all partitions.
        pub credit_bytes: u32,
    }
}

message! { JoinGroup:
    /// The client is a member. Its partitions follow, each with a `GroupAssigned`.
    pub struct JoinGroupReply {
        /// The topic.
        pub topic: TopicId,
        /// The subscription.
        pub subscription: SubscriptionId,
        /// The member's number.
        pub member: u64,
        /// What the broker made of the wish.
        pub session_timeout_ms: u32,
    }
}

message! { GroupAssigned:
    /// A partition is the member's from here on.
    pub struct GroupAssigned {
        /// The membership.
        pub handle: SubscriptionHandle,
        /// Which, and where it begins.
        pub partition: SubscribedPartition,
    }
}

message! { GroupRevoked:
    /// A partition is to be given back, or is lost.
    pub struct GroupRevoked {
        /// The membership.
        pub handle: SubscriptionHandle,
        /// Which.
        pub partition: PartitionId,
        /// The epoch of the ownership that ends.
        pub owner_epoch: u64,
        /// How long the member may finish what it has; 0: the partition is lost already.
        pub drain_ms: u32,
    }
}

message! { GroupReleased:
    /// The member has finished with a partition that was revoked; its acks are sent before.
    pub struct GroupReleased {
        /// The membership.
        pub handle: SubscriptionHandle,
        /// Which.
        pub partition: PartitionId,
        /// The last epoch that the member knows.
        pub owner_epoch: u64,
    }
}

message! { GroupReleased:
    /// The partition is not the member's any more.
    pub struct GroupReleasedReply {}
}

message! { GroupHeartbeat:
    /// The member lives.
    pub struct GroupHeartbeat {
        /// The membership.
        pub handle: SubscriptionHandle,
    }
}

message! { LeaveGroup:
    /// Ends the membership; the handle is free.
    pub struct LeaveGroup {
        /// The membership.
        pub handle: SubscriptionHandle,
        /// The process will be back soon: its partitions wait for it as after a broken connection.
        pub keep_place: bool,
    }
}

message! { LeaveGroup:
    /// It is ended.
    pub struct LeaveGroupReply {}
}

message! { GroupFenced:
    /// The membership has ended without the client: `TimedOut` for want of heartbeats, `SubscriptionTaken` if
    /// another process joined with its instance id, `UnknownSubscription` if the subscription was deleted.
    pub struct GroupFenced {
        /// The membership; free from here on.
        pub handle: SubscriptionHandle,
        /// Why.
        pub error: ErrorBody,
    }
}

message! { DescribeGroup:
    /// Asks who is in a group and who reads what.
    pub struct DescribeGroup {
        /// The topic.
        pub topic: String,
        /// The subscription.
        pub name: String,
    }
}

message! { DescribeGroup:
    /// Who is in a group and who reads what.
    pub struct DescribeGroupReply {
        /// The subscription.
        pub subscription: SubscriptionId,
        /// By number.
        pub members: Vec<GroupMember>,
        /// By partition.
        pub partitions: Vec<GroupPartition>,
    }
}

wire_struct! {
    /// A member.
    pub struct GroupMember {
        /// Its number.
        pub member: u64,
        /// Its name over restarts.
        pub instance: Option<String>,
        /// False: its connection broke, and its partitions wait for it.
        pub connected: bool,
        /// Its session timeout.
        pub session_timeout_ms: u32,
    }
}

wire_struct! {
    /// A partition of a group.
    #[derive(Copy)]
    pub struct GroupPartition {
        /// Which.
        pub partition: PartitionId,
        /// The member that reads it, or finishes.
        pub holder: Option<u64>,
        /// The member for which it is meant.
        pub target: Option<u64>,
        /// For how long nobody has read it, while the group had members.
        pub unowned_ms: Option<u64>,
        /// Everything below is processed.
        pub acked: Offset,
        /// Messages between `acked` and the high watermark.
        pub lag: u64,
    }
}
