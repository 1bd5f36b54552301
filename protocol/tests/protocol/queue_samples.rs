//! One message of every kind that queues have, with fixed values: a part of `samples`.

use postrider_protocol::{
    batch::DecodeLimits,
    entry::EntryView,
    message::{
        Ack, AckReply, AckRun, AlterQueue, AlterQueueReply, Breaker, Consume, ConsumeReply,
        ConsumedPartition, CreateQueue, CreateQueueReply, CreateSubscription,
        CreateSubscriptionReply, DescribeQueue, DescribeQueueReply, HeldLeases, Lease, LeaseHead,
        LeaseLost, LeaseRun, PurgeQueue, PurgeQueueReply, QueueConsumer, QueuePartition,
        QueuePolicy, RedriveLetters, RedriveLettersReply, ReleaseMessage, ReleaseMessageReply,
        Renew, Return, ReturnAction, ReturnReply, SettleException, SettleProblem, Start,
        TopicBounds, WhyMessage, WhyMessageReply,
    },
    rebuild::rebuild,
    types::{
        Compression, Durability, EntryIndex, LeaderEpoch, MemberId, Offset, PartitionId,
        SubscriptionHandle, TimestampMs,
    },
};

use crate::samples::{
    Sample, TIME, answered, asked, batch, entry, publish, records, subscription_id, text, told,
    topic_id,
};

const HANDLE: SubscriptionHandle = SubscriptionHandle(6);
const PARTITION: PartitionId = PartitionId(1);
const LEADER_EPOCH: LeaderEpoch = LeaderEpoch(3);
const SUB_EPOCH: u64 = 2;

fn member() -> MemberId {
    MemberId(*b"member-012345678")
}

fn ack_run(first: u64, count: u32, attempt: u32) -> AckRun {
    AckRun { first: Offset(first), count, attempt }
}

fn lease_run(first: u64, count: u32, attempt: u32, failures: u32) -> LeaseRun {
    LeaseRun { first: Offset(first), count, attempt, failures }
}

fn policy() -> QueuePolicy {
    QueuePolicy {
        key_order: true,
        dead_letter: Some(text("orders.dead")),
        breaker: Some(Breaker { failure_percent: 80, window: 100, pause_ms: 30_000 }),
        ..QueuePolicy::default()
    }
}

fn exceptions() -> Vec<SettleException> {
    [
        (148, 2, SettleProblem::AlreadyAcked),
        (150, 1, SettleProblem::LeaseLost),
        (160, 3, SettleProblem::Gone),
    ]
    .into_iter()
    .map(|(first, count, problem)| SettleException { first: Offset(first), count, problem })
    .collect()
}

/// A whole entry of which all is leased, and one rebuilt with a part of its records.
pub(crate) fn lease() -> Lease {
    let mut entries = entry(90, 148, &batch(Compression::None, &records()), b"");
    let stored = entry(91, 150, &publish(Compression::Lz4).batch, b"trailer");
    let (stored, _rest) = EntryView::split(&stored).unwrap();
    let leased = |offset: Offset| offset != Offset(151);
    entries.extend(rebuild(&stored, leased, DecodeLimits::default()).unwrap());
    let head = LeaseHead {
        handle: HANDLE,
        partition: PARTITION,
        sub_epoch: SUB_EPOCH,
        leader_epoch: LEADER_EPOCH,
        dispatch_number: 40,
        dispatch_index: EntryIndex(95),
        runs: vec![lease_run(148, 2, 1, 0), lease_run(150, 1, 3, 2), lease_run(152, 1, 1, 0)],
    };
    Lease { head, entries: entries.into() }
}

fn consume() -> Consume {
    Consume {
        handle: HANDLE,
        topic: text("orders"),
        subscription: Some(text("billing")),
        partitions: vec![PARTITION],
        member: member(),
        consumer_name: text("worker-3"),
        credit_messages: 256,
        credit_bytes: 4 << 20,
        held: vec![HeldLeases {
            partition: PARTITION,
            sub_epoch: SUB_EPOCH,
            leader_epoch: LeaderEpoch(2),
            runs: vec![ack_run(120, 4, 1), ack_run(130, 1, 2)],
        }],
    }
}

fn consume_reply() -> ConsumeReply {
    ConsumeReply {
        topic: topic_id(),
        subscription: subscription_id(),
        policy: policy(),
        partitions: vec![ConsumedPartition {
            partition: PARTITION,
            sub_epoch: SUB_EPOCH,
            leader_epoch: LEADER_EPOCH,
            held: vec![lease_run(120, 4, 1, 0)],
        }],
    }
}

fn give_back(action: ReturnAction) -> Return {
    Return {
        handle: HANDLE,
        partition: PARTITION,
        sub_epoch: SUB_EPOCH,
        leader_epoch: LEADER_EPOCH,
        started: 43,
        runs: vec![ack_run(150, 1, 3)],
        action,
    }
}

pub(crate) fn consuming() -> Vec<Sample> {
    let ack = Ack {
        handle: HANDLE,
        partition: PARTITION,
        sub_epoch: SUB_EPOCH,
        leader_epoch: LEADER_EPOCH,
        started: 42,
        runs: vec![ack_run(148, 2, 1), ack_run(150, 1, 3)],
    };
    let nack =
        ReturnAction::Nack { delay_ms: Some(5_000), reason: text("the card service is away") };
    vec![
        asked("consume", &consume()),
        answered("consume-reply", &consume_reply()),
        told("lease", &lease()),
        asked("ack", &ack),
        answered("ack-reply", &AckReply { commit_index: EntryIndex(96), exceptions: exceptions() }),
        asked("return-release", &give_back(ReturnAction::Release)),
        asked("return-nack", &give_back(nack)),
        asked(
            "return-reject",
            &give_back(ReturnAction::Reject { reason: text("no such customer") }),
        ),
        answered("return-reply", &ReturnReply { commit_index: EntryIndex(97), exceptions: vec![] }),
        told("renew", &Renew { handle: HANDLE, started: vec![(PARTITION, 44)] }),
        told(
            "lease-lost",
            &LeaseLost {
                handle: HANDLE,
                partition: PARTITION,
                sub_epoch: SUB_EPOCH,
                runs: vec![ack_run(148, 2, 1), ack_run(150, 1, 3)],
            },
        ),
    ]
}

fn describe_queue_reply() -> DescribeQueueReply {
    DescribeQueueReply {
        topic: topic_id(),
        subscription: subscription_id(),
        name: text("billing"),
        policy: policy(),
        partitions: vec![QueuePartition {
            partition: PARTITION,
            sub_epoch: SUB_EPOCH,
            floor: Offset(120),
            ready: 1,
            leased: 2,
            delayed: 3,
            blocked: 4,
            dead_lettering: 5,
            acked: 100,
            dead_lettered: 6,
            expired: 7,
            evicted: 8,
            oldest_ready_ms: 9_000,
            breaker_open: true,
        }],
        consumers: vec![QueueConsumer {
            name: text("worker-3"),
            member: member(),
            connected: true,
            leased: 2,
            oldest_lease_ms: 1_500,
        }],
    }
}

fn why_message_reply() -> WhyMessageReply {
    WhyMessageReply {
        state: text("leased"),
        text: text("worker-3 has held it for 2 s; its lease ends in 28 s unless it renews"),
        holder: Some(text("worker-3")),
        since: TIME,
        until: TimestampMs(TIME.0 + 30_000),
        attempts: 3,
        failures: 2,
        last_reason: text("the card service is away"),
    }
}

pub(crate) fn managing() -> Vec<Sample> {
    let (topic, subscription) = (text("orders"), Some(text("billing")));
    let create = CreateQueue {
        name: text("jobs"),
        partitions: 4,
        durability: Durability::Fsync,
        message_bytes_max: Some(1 << 20),
        bounds: TopicBounds { max_messages: Some(9), ..TopicBounds::default() },
        policy: QueuePolicy::default(),
        if_not_exists: true,
    };
    let create_subscription = CreateSubscription {
        topic: topic.clone(),
        name: text("billing"),
        start: Start::Latest,
        queue: Some(policy()),
        if_not_exists: false,
    };
    vec![
        asked("create-queue", &create),
        answered("create-queue-reply", &CreateQueueReply { id: topic_id(), created: true }),
        asked("create-subscription", &create_subscription),
        answered(
            "create-subscription-reply",
            &CreateSubscriptionReply { id: subscription_id(), created: true },
        ),
        asked(
            "alter-queue",
            &AlterQueue {
                topic: topic.clone(),
                subscription: subscription.clone(),
                policy: policy(),
            },
        ),
        answered("alter-queue-reply", &AlterQueueReply {}),
        asked("describe-queue", &DescribeQueue { topic: topic.clone(), subscription: None }),
        answered("describe-queue-reply", &describe_queue_reply()),
        asked(
            "why-message",
            &WhyMessage {
                topic: topic.clone(),
                subscription: subscription.clone(),
                partition: PARTITION,
                offset: Offset(150),
            },
        ),
        answered("why-message-reply", &why_message_reply()),
        asked("purge-queue", &PurgeQueue { topic, subscription }),
        answered("purge-queue-reply", &PurgeQueueReply { purged: 12 }),
        asked(
            "redrive-letters",
            &RedriveLetters {
                topic: "jobs.dead".to_owned(),
                subscription: "redrive".to_owned(),
                partition: PARTITION,
                from: Offset(150),
                letters_max: 500,
                reason: Some("expired".to_owned()),
                source: Some("jobs".to_owned()),
                source_subscription: None,
                target: None,
                dry_run: false,
            },
        ),
        answered(
            "redrive-letters-reply",
            &RedriveLettersReply {
                next: Offset(700),
                end: Offset(900),
                sent: 500,
                sent_before: 20,
                passed: 25,
                homeless: 5,
                on_their_way: 600,
            },
        ),
        asked(
            "release-message",
            &ReleaseMessage {
                topic: "jobs".to_owned(),
                subscription: None,
                partition: PARTITION,
                offset: Offset(150),
            },
        ),
        answered(
            "release-message-reply",
            &ReleaseMessageReply { released: true, state: "leased".to_owned() },
        ),
    ]
}
