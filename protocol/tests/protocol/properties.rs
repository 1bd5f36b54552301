//! Properties: any message survives the wire, any bytes are either refused or exactly one message.

use bytes::{Bytes, BytesMut};
use postrider_protocol::{
    batch::{Batch, BatchBuilder, DecodeLimits},
    entry::EntryViews,
    error::{ErrorBody, ErrorCode},
    frame::FrameDecoder,
    message::{
        AckLevel, AlterTopic, BoundsChange, BrokerAddress, Confirm, ConfirmRun, CreateTopic,
        DelayId, Deliver, DeliverHead, Expired, Gap, GapReason, Hello, HelloReply, Limits,
        ListOffsets, ListPatternsReply, ListSubscriptionsReply, Message, Metadata, MetadataReply,
        OpenProducer, Outcome, Overflow, PartitionMetadata, PatternDescription, Publish,
        PublishHead, SeekReply, Start, Subscribe, SubscribeReply, SubscribedPartition,
        SubscriptionClosed, SubscriptionDescription, SubscriptionPosition, TopicBounds,
        TopicConfig, TopicMetadata,
    },
    record::{Header, Record},
    types::{
        ClusterId, Compression, Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId,
        ProducerEpoch, ProducerId, Sequence, SubscriptionHandle, SubscriptionId, TimestampMs,
        TopicId, TopicKind,
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::samples;

/// A strategy for a struct, by strategies for its fields.
macro_rules! fields {
    ($type:ident { $($field:ident: $strategy:expr),* $(,)? }) => {
        ($($strategy,)*).prop_map(|($($field,)*)| $type { $($field),* })
    };
}
pub(crate) use fields;

/// A strategy for a newtype.
pub(crate) fn id<I, T>(newtype: fn(I) -> T) -> BoxedStrategy<T>
where
    I: Arbitrary + 'static,
    T: std::fmt::Debug + 'static,
{
    any::<I>().prop_map(newtype).boxed()
}

pub(crate) fn text() -> BoxedStrategy<String> {
    any::<String>().boxed()
}

pub(crate) fn durability() -> BoxedStrategy<Durability> {
    select(vec![Durability::Fsync, Durability::Replicated, Durability::Memory]).boxed()
}

fn kind() -> BoxedStrategy<TopicKind> {
    select(vec![TopicKind::Log, TopicKind::Queue]).boxed()
}

fn code() -> BoxedStrategy<ErrorCode> {
    select(ErrorCode::ALL).boxed()
}

fn error() -> BoxedStrategy<ErrorBody> {
    fields!(ErrorBody {
        code: code(),
        retry_after_ms: any::<u32>(),
        detail: any::<u64>(),
        message: text()
    })
    .boxed()
}

fn limits() -> BoxedStrategy<Limits> {
    fields!(Limits {
        frame_bytes_max: any::<u32>(),
        batch_bytes_max: any::<u32>(),
        message_bytes_max: any::<u32>(),
        in_flight_bytes_max: any::<u32>(),
        subscriptions_max: any::<u32>(),
    })
    .boxed()
}

pub(crate) fn start() -> BoxedStrategy<Start> {
    prop_oneof![
        Just(Start::Earliest),
        Just(Start::Latest),
        id(Offset).prop_map(Start::Offset),
        id(TimestampMs).prop_map(Start::Timestamp),
        vec((id(PartitionId), id(Offset)), 0..5).prop_map(Start::PerPartition),
    ]
    .boxed()
}

pub(crate) fn bounds() -> BoxedStrategy<TopicBounds> {
    fields!(TopicBounds {
        message_ttl_ms: any::<Option<u64>>(),
        expired: select(vec![Expired::Drop, Expired::DeadLetter]),
        max_messages: any::<Option<u64>>(),
        max_bytes: any::<Option<u64>>(),
        overflow: select(vec![Overflow::Reject, Overflow::DropOldest, Overflow::DeadLetter]),
        dedup_window_ms: any::<Option<u64>>(),
    })
    .boxed()
}

fn bounds_change() -> BoxedStrategy<BoundsChange> {
    (bounds(), any::<[bool; 6]>())
        .prop_map(|(bounds, changes)| BoundsChange {
            message_ttl_ms: changes[0].then_some(bounds.message_ttl_ms),
            expired: changes[1].then_some(bounds.expired),
            max_messages: changes[2].then_some(bounds.max_messages),
            max_bytes: changes[3].then_some(bounds.max_bytes),
            overflow: changes[4].then_some(bounds.overflow),
            dedup_window_ms: changes[5].then_some(bounds.dedup_window_ms),
        })
        .boxed()
}

fn config() -> BoxedStrategy<TopicConfig> {
    fields!(TopicConfig {
        partitions: any::<u32>(),
        kind: kind(),
        durability: durability(),
        retention_ms: any::<Option<u64>>(),
        retention_bytes: any::<Option<u64>>(),
        message_bytes_max: any::<Option<u32>>(),
        bounds: bounds(),
    })
    .boxed()
}

fn topic_metadata() -> BoxedStrategy<TopicMetadata> {
    let partition = fields!(PartitionMetadata {
        partition: id(PartitionId),
        leader: id(NodeId),
        leader_epoch: id(LeaderEpoch),
    });
    fields!(TopicMetadata {
        name: text(),
        error: option::of(code()),
        id: id(TopicId),
        kind: kind(),
        durability: durability(),
        partitions: vec(partition, 0..5),
    })
    .boxed()
}

fn description() -> BoxedStrategy<SubscriptionDescription> {
    let position = fields!(SubscriptionPosition {
        partition: id(PartitionId),
        acked: id(Offset),
        lag: any::<u64>(),
    });
    fields!(SubscriptionDescription {
        name: text(),
        id: id(SubscriptionId),
        attached: any::<bool>(),
        partitions: vec(position, 0..5),
    })
    .boxed()
}

fn outcome() -> BoxedStrategy<Outcome> {
    let offset = || (0..u64::MAX >> 1).prop_map(Offset);
    prop_oneof![
        (offset(), id(TimestampMs), durability()).prop_map(
            |(base_offset, append_time, durability)| Outcome::Committed {
                base_offset,
                append_time,
                durability
            }
        ),
        (offset(), id(TimestampMs), durability()).prop_map(
            |(base_offset, append_time, durability)| Outcome::Duplicate {
                base_offset,
                append_time,
                durability
            }
        ),
        (id(EntryIndex), id(TimestampMs), durability()).prop_map(
            |(index, append_time, durability)| {
                Outcome::Delayed { id: DelayId { index, position: 0 }, append_time, durability }
            }
        ),
        (id(EntryIndex), id(TimestampMs), durability()).prop_map(
            |(index, append_time, durability)| {
                Outcome::DelayedDuplicate {
                    id: DelayId { index, position: 0 },
                    append_time,
                    durability,
                }
            }
        ),
        error().prop_map(|error| Outcome::Rejected { error }),
        error().prop_map(|error| Outcome::Unknown { error }),
    ]
    .boxed()
}

fn confirm() -> BoxedStrategy<Confirm> {
    let run = fields!(ConfirmRun {
        topic: id(TopicId),
        partition: id(PartitionId),
        producer: (-1..=i64::MAX).prop_map(ProducerId),
        base_sequence: (0..u64::MAX >> 1).prop_map(Sequence),
        count: 1..=u32::MAX,
        outcome: outcome(),
    });
    fields!(Confirm { runs: vec(run, 1..6) }).boxed()
}

fn part() -> BoxedStrategy<Option<Bytes>> {
    option::of(vec(any::<u8>(), 0..200).prop_map(Bytes::from)).boxed()
}

pub(crate) fn record() -> BoxedStrategy<Record> {
    let header = (text().prop_map(Bytes::from), part()).boxed();
    let headers: BoxedStrategy<Vec<Header>> = vec(header, 0..4).boxed();
    let timestamp = (0..=i64::MAX.cast_unsigned()).prop_map(TimestampMs);
    fields!(Record { key: part(), value: part(), headers: headers, timestamp: timestamp }).boxed()
}

pub(crate) fn codec() -> BoxedStrategy<Compression> {
    select(vec![Compression::None, Compression::Lz4, Compression::Zstd]).boxed()
}

fn batch_of(codec: Compression, records: &[Record], sequence: u64) -> Batch {
    let mut builder = BatchBuilder::new(codec, 0);
    for record in records {
        builder.push_record(record).unwrap();
    }
    builder.finish(ProducerId(1), ProducerEpoch(u16::MAX), Sequence(sequence))
}

fn publish() -> BoxedStrategy<Publish> {
    let head = fields!(PublishHead {
        topic: id(TopicId),
        partition: id(PartitionId),
        leader_epoch: id(LeaderEpoch),
        producer: (-1..=i64::MAX).prop_map(ProducerId),
        epoch: id(ProducerEpoch),
        ack: select(vec![AckLevel::None, AckLevel::Leader, AckLevel::Quorum]),
        keyed: any::<bool>(),
        seq_count: 1..=u32::MAX,
        base_sequence: (0..u64::MAX >> 1).prop_map(Sequence),
        resolved_upto: id(Sequence),
    });
    (head, vec(any::<u8>(), 0..100), any::<u32>(), any::<u32>())
        .prop_map(|(head, body, crc, record_count)| Publish {
            head,
            batch: Batch { body: body.into(), crc, record_count },
        })
        .boxed()
}

fn deliver() -> BoxedStrategy<Deliver> {
    let head = fields!(DeliverHead {
        handle: id(SubscriptionHandle),
        partition: id(PartitionId),
        owner_epoch: any::<u64>(),
        next: id(Offset),
        high_watermark: id(Offset),
        dispatch_index: any::<u64>(),
    });
    let entries = vec(any::<u8>(), 0..100).prop_map(Bytes::from);
    fields!(Deliver { head: head, entries: entries }).boxed()
}

pub(crate) fn survives<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let mut body = BytesMut::new();
    message.encode(&mut body);
    assert_eq!(M::decode(body.freeze()).as_ref(), Ok(message));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn connection_messages_survive(
        hello in fields!(Hello {
            version_min: any::<u16>(),
            version_max: any::<u16>(),
            features: any::<u64>(),
            frame_bytes_max: any::<u32>(),
            client_name: text(),
            client_id: any::<[u8; 16]>(),
            cluster_id: id(ClusterId),
        }),
        reply in fields!(HelloReply {
            version: any::<u16>(),
            features: any::<u64>(),
            limits: limits(),
            cluster_id: id(ClusterId),
            node_id: id(NodeId),
            server_version: text(),
            server_time: id(TimestampMs),
        }),
        open in fields!(OpenProducer {
            name: text(),
            resume: option::of((id(ProducerId), id(ProducerEpoch))),
        }),
    ) {
        survives(&hello);
        survives(&reply);
        survives(&open);
    }

    #[test]
    fn topic_messages_survive(
        create in fields!(CreateTopic { name: text(), config: config(), if_not_exists: any::<bool>() }),
        alter in fields!(AlterTopic {
            name: text(),
            partitions: any::<Option<u32>>(),
            retention_ms: any::<Option<Option<u64>>>(),
            retention_bytes: any::<Option<Option<u64>>>(),
            message_bytes_max: any::<Option<Option<u32>>>(),
            bounds: bounds_change(),
        }),
        metadata in fields!(Metadata { topics: vec(text(), 0..5) }),
        reply in fields!(MetadataReply {
            cluster_id: id(ClusterId),
            brokers: vec(
                fields!(BrokerAddress { node: id(NodeId), host: text(), port: any::<u16>() }),
                0..4,
            ),
            topics: vec(topic_metadata(), 0..4),
        }),
    ) {
        survives(&create);
        survives(&alter);
        survives(&metadata);
        survives(&reply);
    }

    #[test]
    fn subscription_messages_survive(
        subscribe in fields!(Subscribe {
            handle: id(SubscriptionHandle),
            topic: text(),
            partitions: vec(id(PartitionId), 0..5),
            name: option::of(text()),
            start: start(),
            credit_messages: any::<u32>(),
            credit_bytes: any::<u32>(),
        }),
        reply in fields!(SubscribeReply {
            topic: id(TopicId),
            subscription: id(SubscriptionId),
            partitions: vec(
                fields!(SubscribedPartition {
                    partition: id(PartitionId),
                    owner_epoch: any::<u64>(),
                    next: id(Offset),
                    log_start: id(Offset),
                    high_watermark: id(Offset),
                }),
                0..4,
            ),
        }),
        gap in fields!(Gap {
            handle: id(SubscriptionHandle),
            partition: id(PartitionId),
            from: id(Offset),
            to: id(Offset),
            reason: select(vec![
                GapReason::Retention,
                GapReason::Damage,
                GapReason::Lost,
                GapReason::Expired,
                GapReason::Overflow,
            ]),
        }),
        closed in fields!(SubscriptionClosed { handle: id(SubscriptionHandle), error: error() }),
        offsets in fields!(ListOffsets { topic: text(), partition: id(PartitionId), at: start() }),
        list in fields!(ListSubscriptionsReply { subscriptions: vec(description(), 0..4) }),
        patterns in fields!(ListPatternsReply {
            patterns: vec(
                fields!(PatternDescription {
                    pattern: text(),
                    name: text(),
                    id: id(SubscriptionId),
                    topics: any::<u32>(),
                }),
                0..4,
            ),
        }),
        sought in fields!(SeekReply { partitions: vec((id(PartitionId), id(Offset)), 0..5) }),
    ) {
        survives(&subscribe);
        survives(&reply);
        survives(&gap);
        survives(&closed);
        survives(&offsets);
        survives(&list);
        survives(&patterns);
        survives(&sought);
    }

    #[test]
    fn traffic_survives(publish in publish(), confirm in confirm(), deliver in deliver()) {
        survives(&publish);
        survives(&confirm);
        survives(&deliver);
    }

    #[test]
    fn records_survive_every_codec(
        records in vec(record(), 1..20),
        codec in codec(),
        sequence in any::<u64>(),
    ) {
        let batch = batch_of(codec, &records, sequence);
        let fields = batch.validate(&Limits::default()).unwrap();
        prop_assert_eq!(u64::from(fields.base_sequence), sequence & 0x7fff_ffff);
        prop_assert_eq!(Some(fields.base_timestamp), records.first().map(|first| first.timestamp));
        prop_assert_eq!(Some(fields.max_timestamp), records.iter().map(|one| one.timestamp).max());
        let read: Result<Vec<_>, _> = batch.records(DecodeLimits::default()).unwrap().collect();
        let read: Vec<_> = read.unwrap().into_iter().map(|one| one.record).collect();
        prop_assert_eq!(read, records);
    }

    #[test]
    fn any_bytes_are_refused_or_exactly_one_message(
        bytes in vec(any::<u8>(), 0..300),
        which in 0..samples::all().len(),
    ) {
        let sample = &samples::all()[which];
        if let Ok((_, again)) = (sample.recode)(bytes.clone().into()) {
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn any_bytes_are_safe_to_read(bytes in vec(any::<u8>(), 0..300), count in any::<u32>()) {
        let mut buffer = BytesMut::from(bytes.as_slice());
        while let Ok(Some(_)) = FrameDecoder::new(200).decode(&mut buffer) {}
        prop_assert!(EntryViews::new(&bytes).count() <= 4);
        let batch = Batch { crc: crc32fast::hash(&bytes), body: bytes.into(), record_count: count };
        let _any = batch.validate(&Limits::default());
        if let Ok(records) = batch.records(DecodeLimits { records_bytes_max: 1 << 16 }) {
            prop_assert!(records.count() <= 300);
        }
    }
}
