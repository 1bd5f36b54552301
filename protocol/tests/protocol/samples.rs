//! One message of every kind, with fixed values: what the golden files hold, and where mutations start.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use postrider_protocol::{
    batch::{Batch, BatchBuilder},
    codec::DecodeError,
    entry::{EntryHeader, EntryKind, entry_len},
    error::{ErrorBody, ErrorCode},
    frame::{FLAG_REPLY, Frame, error_reply, frame},
    message::{
        AckLevel, AckUpTo, AckUpToReply, AlterTopic, AlterTopicReply, BoundsChange, BrokerAddress,
        Confirm, ConfirmRun, CreateTopic, CreateTopicReply, Credit, DelayId, DeleteSubscription,
        DeleteSubscriptionReply, DeleteTopic, DeleteTopicReply, Deliver, DeliverHead,
        DescribeTopic, DescribeTopicReply, Expired, FEATURE_LZ4, FEATURE_ZSTD, Gap, GapReason,
        Hello, HelloReply, Limits, ListOffsets, ListOffsetsReply, ListPatterns, ListPatternsReply,
        ListSubscriptions, ListSubscriptionsReply, Message, Metadata, MetadataReply, OpenProducer,
        OpenProducerReply, Outcome, Overflow, PartitionDescription, PartitionMetadata,
        PatternDescription, Ping, PingReply, Publish, PublishHead, Seek, SeekReply, Seeked, Start,
        Subscribe, SubscribeReply, SubscribedPartition, SubscriptionClosed,
        SubscriptionDescription, SubscriptionPosition, TopicBounds, TopicConfig, TopicMetadata,
        Unsubscribe, UnsubscribeReply,
    },
    record::Record,
    types::{
        ClusterId, Compression, CorrelationId, Durability, EntryIndex, LeaderEpoch, NodeId, Offset,
        PartitionId, ProducerEpoch, ProducerId, Sequence, SubscriptionHandle, SubscriptionId,
        TimestampMs, TopicId, TopicKind,
    },
};

use crate::{delay_samples, group_samples, peer_samples, queue_samples};

/// What became of decoding a body: the message in words, and its bytes when encoded again.
pub(crate) type Recoded = Result<(String, Bytes), DecodeError>;

/// A frame, the message in it in words, and how to decode such a body.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) shown: String,
    pub(crate) frame: Bytes,
    pub(crate) recode: fn(Bytes) -> Recoded,
}

pub(crate) const TIME: TimestampMs = TimestampMs(1_764_000_000_000);

fn recode<M: Message + Debug>(body: Bytes) -> Recoded {
    let message = M::decode(body)?;
    let mut again = BytesMut::new();
    message.encode(&mut again);
    Ok((format!("{message:?}"), again.freeze()))
}

fn recode_error(body: Bytes) -> Recoded {
    let error = ErrorBody::decode(&body)?;
    let mut again = BytesMut::new();
    error.encode(&mut again);
    Ok((format!("{error:?}"), again.freeze()))
}

fn message<M: Message + Debug>(
    name: &'static str,
    correlation: u64,
    flags: u8,
    message: &M,
) -> Sample {
    Sample {
        name,
        shown: format!("{message:?}"),
        frame: frame(message, CorrelationId(correlation), flags),
        recode: recode::<M>,
    }
}

pub(crate) fn asked<M: Message + Debug>(name: &'static str, request: &M) -> Sample {
    message(name, 7, 0, request)
}

pub(crate) fn answered<M: Message + Debug>(name: &'static str, reply: &M) -> Sample {
    message(name, 7, FLAG_REPLY, reply)
}

/// An event or a one-way message.
pub(crate) fn told<M: Message + Debug>(name: &'static str, event: &M) -> Sample {
    message(name, 0, 0, event)
}

pub(crate) fn body_of(sample: &Sample) -> Bytes {
    frame_of(sample).body
}

pub(crate) fn frame_of(sample: &Sample) -> Frame {
    let mut buffer = BytesMut::from(sample.frame.as_ref());
    let mut decoder = postrider_protocol::frame::FrameDecoder::new(u32::MAX);
    decoder.decode(&mut buffer).expect("a sample is a frame").expect("a sample is whole")
}

/// Every message.
pub(crate) fn all() -> Vec<Sample> {
    [
        connection(),
        topics(),
        publishing(),
        delay_samples::delaying(),
        subscribing(),
        subscriptions(),
        queue_samples::consuming(),
        queue_samples::managing(),
        group_samples::grouping(),
        peer_samples::peering(),
        peer_samples::replicating(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(crate) fn topic_id() -> TopicId {
    TopicId(*b"topic-0123456789")
}

pub(crate) fn subscription_id() -> SubscriptionId {
    SubscriptionId(*b"subscription-012")
}

fn cluster_id() -> ClusterId {
    ClusterId(*b"cluster-01234567")
}

pub(crate) fn text(text: &str) -> String {
    text.to_owned()
}

fn connection() -> Vec<Sample> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: FEATURE_LZ4 | FEATURE_ZSTD,
        frame_bytes_max: 8 << 20,
        client_name: text("orders-service"),
        client_id: *b"client-012345678",
        cluster_id: ClusterId([0; 16]),
    };
    let hello_reply = HelloReply {
        version: 1,
        features: FEATURE_LZ4 | FEATURE_ZSTD,
        limits: Limits::default(),
        cluster_id: cluster_id(),
        node_id: NodeId(1),
        server_version: text("0.1.0"),
        server_time: TIME,
    };
    let error = ErrorBody::new(
        ErrorCode::UnknownTopic,
        "there is no topic 'orders'; create it: postrider topic create orders",
    );
    vec![
        asked("hello", &hello),
        answered("hello-reply", &hello_reply),
        asked("ping", &Ping {}),
        answered("ping-reply", &PingReply {}),
        Sample {
            name: "error-reply",
            shown: format!("{error:?}"),
            frame: error_reply(14, CorrelationId(7), &error),
            recode: recode_error,
        },
    ]
}

fn config() -> TopicConfig {
    TopicConfig {
        partitions: 2,
        kind: TopicKind::Log,
        durability: Durability::Fsync,
        retention_ms: Some(604_800_000),
        retention_bytes: None,
        message_bytes_max: Some(1 << 20),
        bounds: TopicBounds {
            message_ttl_ms: Some(86_400_000),
            expired: Expired::Drop,
            max_messages: Some(1_000_000),
            max_bytes: None,
            overflow: Overflow::DropOldest,
            dedup_window_ms: Some(600_000),
        },
    }
}

fn topics() -> Vec<Sample> {
    vec![
        asked("metadata", &Metadata { topics: vec![text("orders"), text("nothing")] }),
        answered("metadata-reply", &metadata_reply()),
        asked(
            "create-topic",
            &CreateTopic { name: text("orders"), config: config(), if_not_exists: true },
        ),
        answered("create-topic-reply", &CreateTopicReply { id: topic_id(), created: true }),
        asked(
            "alter-topic",
            &AlterTopic {
                name: text("orders"),
                partitions: Some(4),
                retention_ms: Some(None),
                retention_bytes: Some(Some(1 << 30)),
                message_bytes_max: None,
                bounds: BoundsChange {
                    message_ttl_ms: Some(None),
                    overflow: Some(Overflow::Reject),
                    ..BoundsChange::default()
                },
            },
        ),
        answered("alter-topic-reply", &AlterTopicReply {}),
        asked("delete-topic", &DeleteTopic { name: text("orders") }),
        answered("delete-topic-reply", &DeleteTopicReply {}),
        asked("describe-topic", &DescribeTopic { name: text("orders") }),
        answered("describe-topic-reply", &describe_topic_reply()),
    ]
}

fn metadata_reply() -> MetadataReply {
    let partition = |partition| PartitionMetadata {
        partition: PartitionId(partition),
        leader: NodeId(1),
        leader_epoch: LeaderEpoch(3),
    };
    MetadataReply {
        cluster_id: cluster_id(),
        brokers: vec![BrokerAddress { node: NodeId(1), host: text("127.0.0.1"), port: 7420 }],
        topics: vec![
            TopicMetadata {
                name: text("orders"),
                error: None,
                id: topic_id(),
                kind: TopicKind::Log,
                durability: Durability::Fsync,
                partitions: vec![partition(0), partition(1)],
            },
            TopicMetadata {
                name: text("nothing"),
                error: Some(ErrorCode::UnknownTopic),
                id: TopicId([0; 16]),
                kind: TopicKind::Log,
                durability: Durability::Fsync,
                partitions: vec![],
            },
        ],
    }
}

fn description() -> SubscriptionDescription {
    SubscriptionDescription {
        name: text("billing"),
        id: subscription_id(),
        attached: true,
        partitions: vec![SubscriptionPosition {
            partition: PartitionId(1),
            acked: Offset(120),
            lag: 30,
        }],
    }
}

fn describe_topic_reply() -> DescribeTopicReply {
    DescribeTopicReply {
        name: text("orders"),
        id: topic_id(),
        config: config(),
        created: TIME,
        partitions: vec![PartitionDescription {
            partition: PartitionId(1),
            leader: NodeId(1),
            leader_epoch: LeaderEpoch(3),
            log_start: Offset(100),
            high_watermark: Offset(150),
            log_end: Offset(151),
            bytes: 4096,
            segments: 2,
            first_time: TIME,
            last_time: TimestampMs(TIME.0 + 1000),
        }],
        subscriptions: vec![description()],
    }
}

/// Two messages: one with key, value and a header, one with none of them and an older time.
pub(crate) fn records() -> Vec<Record> {
    vec![
        Record {
            key: Some(Bytes::from_static(b"customer-7")),
            value: Some(Bytes::from_static(b"{\"order\":1}")),
            headers: vec![
                (Bytes::from_static(b"content-type"), Some("application/json".into())),
                (Bytes::from_static(b"flag"), None),
            ],
            timestamp: TIME,
        },
        Record { key: None, value: None, headers: vec![], timestamp: TimestampMs(TIME.0 - 1) },
    ]
}

pub(crate) fn batch(compression: Compression, records: &[Record]) -> Batch {
    let mut builder = BatchBuilder::new(compression, 0);
    for record in records {
        builder.push_record(record).expect("small");
    }
    builder.finish(ProducerId(7), ProducerEpoch(1), Sequence((1 << 31) + 40))
}

pub(crate) fn publish(compression: Compression) -> Publish {
    let mut records = records();
    if compression != Compression::None {
        let value = Some(Bytes::from("compressible ".repeat(20)));
        records.push(Record { key: None, value, headers: vec![], timestamp: TIME });
    }
    let batch = batch(compression, &records);
    let head = PublishHead {
        topic: topic_id(),
        partition: PartitionId(1),
        leader_epoch: LeaderEpoch(3),
        producer: ProducerId(7),
        epoch: ProducerEpoch(1),
        ack: AckLevel::Quorum,
        keyed: true,
        seq_count: batch.record_count,
        base_sequence: Sequence((1 << 31) + 40),
        resolved_upto: Sequence((1 << 31) + 38),
    };
    Publish { head, batch }
}

fn run(base_sequence: u64, count: u32, outcome: Outcome) -> ConfirmRun {
    ConfirmRun {
        topic: topic_id(),
        partition: PartitionId(1),
        producer: ProducerId(7),
        base_sequence: Sequence(base_sequence),
        count,
        outcome,
    }
}

pub(crate) fn confirm() -> Confirm {
    let (base_offset, append_time, durability) = (Offset(148), TIME, Durability::Fsync);
    let error = ErrorBody::new(ErrorCode::OutOfOrderSequence, "expected sequence 45")
        .with_detail(45)
        .with_retry_after_ms(5);
    Confirm {
        runs: vec![
            run(40, 2, Outcome::Committed { base_offset, append_time, durability }),
            run(
                42,
                1,
                Outcome::Duplicate {
                    base_offset: Offset(100),
                    append_time,
                    durability: Durability::Memory,
                },
            ),
            run(
                43,
                2,
                Outcome::Delayed {
                    id: DelayId { index: EntryIndex(77), position: 0 },
                    append_time,
                    durability,
                },
            ),
            run(
                46,
                1,
                Outcome::DelayedDuplicate {
                    id: DelayId { index: EntryIndex(70), position: 2 },
                    append_time,
                    durability,
                },
            ),
            run(50, 3, Outcome::Rejected { error }),
            run(60, 1, Outcome::Unknown { error: ErrorBody::new(ErrorCode::StorageFailed, "") }),
        ],
    }
}

fn publishing() -> Vec<Sample> {
    vec![
        asked("open-producer", &OpenProducer { name: text("orders-service"), resume: None }),
        asked(
            "open-producer-resume",
            &OpenProducer { name: text(""), resume: Some((ProducerId(7), ProducerEpoch(1))) },
        ),
        answered(
            "open-producer-reply",
            &OpenProducerReply { producer: ProducerId(7), epoch: ProducerEpoch(1) },
        ),
        told("publish", &publish(Compression::None)),
        told("publish-lz4", &publish(Compression::Lz4)),
        told("publish-zstd", &publish(Compression::Zstd)),
        told("confirm", &confirm()),
    ]
}

/// A stored entry of `batch`.
pub(crate) fn entry(index: u64, base_offset: u64, batch: &Batch, trailer: &[u8]) -> Vec<u8> {
    let small = |len: usize| u32::try_from(len).expect("small");
    let header = EntryHeader {
        header_crc: 0,
        total_len: small(entry_len(batch.body.len(), trailer.len())),
        body_len: small(batch.body.len()),
        body_crc: batch.crc,
        trailer_len: small(trailer.len()),
        index: EntryIndex(index),
        base_offset: Offset(base_offset),
        leader_epoch: LeaderEpoch(3),
        prev_header_crc: 0x0102_0304,
        append_time: TIME,
        kind: EntryKind::Data,
        flags: 0,
        record_count: batch.record_count,
        seq_count: batch.record_count,
        key_id: 0,
        trailer_crc: crc32fast::hash(trailer),
        cached_crc32c: 0,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(&batch.body);
    bytes.extend_from_slice(trailer);
    bytes.resize(entry_len(batch.body.len(), trailer.len()), 0);
    bytes
}

pub(crate) fn deliver() -> Deliver {
    let mut entries = entry(90, 148, &batch(Compression::None, &records()), b"");
    entries.extend(entry(91, 150, &publish(Compression::Lz4).batch, b"trailer"));
    let head = DeliverHead {
        handle: SubscriptionHandle(5),
        partition: PartitionId(1),
        owner_epoch: 9,
        next: Offset(149),
        high_watermark: Offset(153),
        dispatch_index: 0,
    };
    Deliver { head, entries: entries.into() }
}

fn subscribing() -> Vec<Sample> {
    let handle = SubscriptionHandle(5);
    let partition = PartitionId(1);
    vec![
        asked(
            "subscribe",
            &Subscribe {
                handle,
                topic: text("orders"),
                partitions: vec![],
                name: Some(text("billing")),
                start: Start::Timestamp(TIME),
                credit_messages: 10_000,
                credit_bytes: 4 << 20,
            },
        ),
        answered(
            "subscribe-reply",
            &SubscribeReply {
                topic: topic_id(),
                subscription: subscription_id(),
                partitions: vec![SubscribedPartition {
                    partition,
                    owner_epoch: 9,
                    next: Offset(149),
                    log_start: Offset(100),
                    high_watermark: Offset(150),
                }],
            },
        ),
        told("deliver", &deliver()),
        told("credit", &Credit { handle, messages: 500, bytes: 65_536 }),
        asked("ack-up-to", &AckUpTo { handle, partition, owner_epoch: 9, up_to: Offset(150) }),
        answered("ack-up-to-reply", &AckUpToReply {}),
        told("seeked", &Seeked { handle, partition, owner_epoch: 10, next: Offset(100) }),
        asked("unsubscribe", &Unsubscribe { handle }),
        answered("unsubscribe-reply", &UnsubscribeReply {}),
        told(
            "gap",
            &Gap {
                handle,
                partition,
                from: Offset(90),
                to: Offset(100),
                reason: GapReason::Retention,
            },
        ),
        told(
            "subscription-closed",
            &SubscriptionClosed {
                handle,
                error: ErrorBody::new(
                    ErrorCode::SubscriptionTaken,
                    "another consumer attached to the subscription 'billing'",
                ),
            },
        ),
    ]
}

fn subscriptions() -> Vec<Sample> {
    let (topic, name) = (text("orders"), text("billing"));
    let offsets = vec![(PartitionId(0), Offset(17)), (PartitionId(1), Offset(149))];
    let seek =
        Seek { topic: topic.clone(), name: name.clone(), to: Start::PerPartition(offsets.clone()) };
    vec![
        asked("seek", &seek),
        answered("seek-reply", &SeekReply { partitions: offsets }),
        asked("list-subscriptions", &ListSubscriptions { topic: topic.clone() }),
        answered(
            "list-subscriptions-reply",
            &ListSubscriptionsReply { subscriptions: vec![description()] },
        ),
        asked("list-patterns", &ListPatterns {}),
        answered(
            "list-patterns-reply",
            &ListPatternsReply {
                patterns: vec![PatternDescription {
                    pattern: text("orders.*"),
                    name: text("audit"),
                    id: subscription_id(),
                    topics: 3,
                }],
            },
        ),
        asked("delete-subscription", &DeleteSubscription { topic: topic.clone(), name }),
        answered("delete-subscription-reply", &DeleteSubscriptionReply {}),
        asked(
            "list-offsets",
            &ListOffsets { topic, partition: PartitionId(1), at: Start::Earliest },
        ),
        answered("list-offsets-reply", &ListOffsetsReply { offset: Offset(100), time: TIME }),
    ]
}
