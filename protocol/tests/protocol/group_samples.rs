//! One message of every kind that consumer groups have, with fixed values: a part of `samples`.

use postrider_protocol::{
    error::{ErrorBody, ErrorCode},
    message::{
        DescribeGroup, DescribeGroupReply, GroupAssigned, GroupFenced, GroupHeartbeat, GroupMember,
        GroupPartition, GroupReleased, GroupReleasedReply, GroupRevoked, JoinGroup, JoinGroupReply,
        LeaveGroup, LeaveGroupReply, Start, SubscribedPartition,
    },
    types::{Offset, PartitionId, SubscriptionHandle},
};

use crate::samples::{Sample, answered, asked, subscription_id, text, told, topic_id};

const HANDLE: SubscriptionHandle = SubscriptionHandle(8);
const PARTITION: PartitionId = PartitionId(2);
const OWNER_EPOCH: u64 = 5;

/// What members and the broker say.
pub(crate) fn grouping() -> Vec<Sample> {
    let (topic, name) = (text("orders"), text("billing"));
    let partition = SubscribedPartition {
        partition: PARTITION,
        owner_epoch: OWNER_EPOCH,
        next: Offset(100),
        log_start: Offset(40),
        high_watermark: Offset(120),
    };
    let join = JoinGroup {
        handle: HANDLE,
        topic: topic.clone(),
        name: name.clone(),
        start: Start::Earliest,
        resumes: Some(0x2_0000_0007),
        instance: Some(text("worker-1")),
        session_timeout_ms: 30_000,
        credit_messages: 1_000,
        credit_bytes: 1 << 20,
    };
    let joined = JoinGroupReply {
        topic: topic_id(),
        subscription: subscription_id(),
        member: 0x2_0000_0008,
        session_timeout_ms: 30_000,
    };
    let revoked = GroupRevoked {
        handle: HANDLE,
        partition: PARTITION,
        owner_epoch: OWNER_EPOCH,
        drain_ms: 30_000,
    };
    let released = GroupReleased { handle: HANDLE, partition: PARTITION, owner_epoch: OWNER_EPOCH };
    let fenced = GroupFenced {
        handle: HANDLE,
        error: ErrorBody::new(ErrorCode::SubscriptionTaken, "another process has the instance id"),
    };
    vec![
        asked("join-group", &join),
        answered("join-group-reply", &joined),
        told("group-assigned", &GroupAssigned { handle: HANDLE, partition }),
        told("group-revoked", &revoked),
        asked("group-released", &released),
        answered("group-released-reply", &GroupReleasedReply {}),
        told("group-heartbeat", &GroupHeartbeat { handle: HANDLE }),
        asked("leave-group", &LeaveGroup { handle: HANDLE, keep_place: true }),
        answered("leave-group-reply", &LeaveGroupReply {}),
        told("group-fenced", &fenced),
        asked("describe-group", &DescribeGroup { topic, name }),
        answered("describe-group-reply", &described()),
    ]
}

fn described() -> DescribeGroupReply {
    let member = |member, instance, connected| GroupMember {
        member,
        instance,
        connected,
        session_timeout_ms: 30_000,
    };
    let partition = |partition, holder, target, unowned_ms| GroupPartition {
        partition: PartitionId(partition),
        holder,
        target,
        unowned_ms,
        acked: Offset(100),
        lag: 20,
    };
    DescribeGroupReply {
        subscription: subscription_id(),
        members: vec![member(7, Some(text("worker-1")), true), member(8, None, false)],
        partitions: vec![
            partition(0, Some(7), Some(7), None),
            partition(1, None, Some(8), Some(1_500)),
        ],
    }
}
