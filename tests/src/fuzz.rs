//! What the fuzzer runs: plain functions over bytes that panic when a decoder breaks its promises.
//!
//! Owns the properties, not the search: `fuzz/` drives these with libFuzzer, the test `fuzz_replay` with
//! the kept corpora and seeded mutations of them. Never does I/O.

// Paths, because the fuzzer's package has this file as its root.
#[path = "fuzz/mutate.rs"]
pub mod mutate;
#[path = "fuzz/recovery.rs"]
mod recovery;

use bytes::{Bytes, BytesMut};
use postrider_protocol::api::Api;
use postrider_protocol::batch::{
    BATCH_FIELD_BYTES, Batch, BatchBuilder, BatchError, DecodeLimits, RecordBlock,
};
use postrider_protocol::entry::{
    ENTRY_HEADER_BYTES, EntryHeader, EntryIter, EntryView, EntryViews, split_entry,
};
use postrider_protocol::error::ErrorBody;
use postrider_protocol::frame::{FLAG_ERROR, FLAG_REPLY, Frame, FrameDecoder, FrameError};
use postrider_protocol::message::{
    Ack, AckReply, AckUpTo, AckUpToReply, AlterIsr, AlterIsrReply, AlterQueue, AlterQueueReply,
    AlterTopic, AlterTopicReply, CancelDelayed, CancelDelayedReply, Confirm, Consume, ConsumeReply,
    CreateQueue, CreateQueueReply, CreateSubscription, CreateSubscriptionReply, CreateTopic,
    CreateTopicReply, Credit, DeleteSubscription, DeleteSubscriptionReply, DeleteTopic,
    DeleteTopicReply, Deliver, DescribeDelayed, DescribeDelayedReply, DescribeGroup,
    DescribeGroupReply, DescribeQueue, DescribeQueueReply, DescribeTopic, DescribeTopicReply,
    FetchSnapshot, FetchSnapshotReply, Gap, GroupAssigned, GroupFenced, GroupHeartbeat,
    GroupReleased, GroupReleasedReply, GroupRevoked, Heartbeat, HeartbeatReply, Hello, HelloReply,
    JoinCluster, JoinClusterReply, JoinGroup, JoinGroupReply, Lease, LeaseLost, LeaveGroup,
    LeaveGroupReply, Limits, ListOffsets, ListOffsetsReply, ListPatterns, ListPatternsReply,
    ListSubscriptions, ListSubscriptionsReply, Message, Metadata, MetadataReply, OpenProducer,
    OpenProducerReply, OpenReplica, OpenReplicaReply, PeerHello, PeerHelloReply, Ping, PingReply,
    ProbeEnd, ProbeEndReply, Propose, ProposeReply, Publish, PublishAtomic, PublishDelayed,
    PurgeQueue, PurgeQueueReply, RaftCall, RaftCallReply, RedriveLetters, RedriveLettersReply,
    ReleaseMessage, ReleaseMessageReply, Renew, ReplicaAck, ReplicaEntries, Resign, ResignReply,
    Return, ReturnReply, Seek, SeekReply, Seeked, Subscribe, SubscribeReply, SubscriptionClosed,
    Unsubscribe, UnsubscribeReply, WhyMessage, WhyMessageReply,
};
use postrider_protocol::rebuild::{EntryRecords, rebuild};
use postrider_protocol::record::Record;
use postrider_protocol::types::{Compression, Offset, Sequence};

pub use recovery::{pack_directory, recovery, small_options};

/// What the fuzzer calls with its input; panics when a promise is broken.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    ("message", message),
    ("batch", batch),
    ("entry", entry),
    ("recovery", recovery),
];

/// The largest body in the frame target.
const BODY_BYTES_MAX: u32 = 4096;
const RECORDS_BYTES_MAX: usize = 1 << 20;

/// A byte that says in what pieces the rest arrives, and the stream. However it arrives, the same frames
/// come out, or the same error; and what is in them is refused or exactly one message.
///
/// # Panics
///
/// If the pieces change what is read, or a message has two encodings.
pub fn frame(input: &[u8]) {
    let Some((&piece_len, stream)) = input.split_first() else { return };
    let (whole, end) = frames_of(stream, stream.len().max(1));
    let (pieces, pieces_end) = frames_of(stream, usize::from(piece_len).max(1));
    assert_eq!(end, pieces_end, "the pieces do not matter");
    assert_eq!(whole, pieces, "the pieces do not matter");
    for frame in whole {
        recode_frame(&frame);
    }
}

fn frames_of(stream: &[u8], piece_len: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = FrameDecoder::new(BODY_BYTES_MAX);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in stream.chunks(piece_len) {
        buffer.extend_from_slice(piece);
        loop {
            let missing = decoder.missing(&buffer);
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    assert_eq!(missing, 0);
                    assert_eq!(frame.body.len(), frame.header.body_len as usize);
                    frames.push(frame);
                }
                Ok(None) => {
                    assert!((1..=16 + BODY_BYTES_MAX as usize).contains(&missing));
                    break;
                }
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// The first two bytes are the api, the third the flags; the rest is a body, which is refused or exactly
/// one message.
///
/// # Panics
///
/// If a message has two encodings, or what it carries breaks the promises of [`batch`] or [`entry`].
pub fn message(input: &[u8]) {
    let Some((&[low, high, flags], body)) = input.split_first_chunk() else { return };
    recode(u16::from_le_bytes([low, high]), flags, Bytes::copy_from_slice(body));
}

fn recode_frame(frame: &Frame) {
    recode(frame.header.api, frame.header.flags, frame.body.clone());
}

fn recode(api: u16, flags: u8, body: Bytes) {
    let Some(api) = Api::from_u16(api) else { return };
    if flags & FLAG_ERROR != 0 {
        if let Ok(error) = ErrorBody::decode(&body) {
            let mut again = BytesMut::new();
            error.encode(&mut again);
            assert_eq!(again, body, "an error has one encoding");
        }
        return;
    }
    let recode = if flags & FLAG_REPLY == 0 { asked(api) } else { answered(api) };
    recode(body);
}

fn asked(api: Api) -> fn(Bytes) {
    match api {
        Api::Hello => exact::<Hello>,
        Api::Ping => exact::<Ping>,
        Api::Metadata => exact::<Metadata>,
        Api::CreateTopic => exact::<CreateTopic>,
        Api::AlterTopic => exact::<AlterTopic>,
        Api::DeleteTopic => exact::<DeleteTopic>,
        Api::DescribeTopic => exact::<DescribeTopic>,
        Api::OpenProducer => exact::<OpenProducer>,
        Api::Publish => publish,
        Api::Confirm => exact::<Confirm>,
        Api::PublishDelayed => publish_delayed,
        Api::PublishAtomic => publish_atomic,
        Api::CancelDelayed => exact::<CancelDelayed>,
        Api::DescribeDelayed => exact::<DescribeDelayed>,
        Api::Subscribe => exact::<Subscribe>,
        Api::Deliver => deliver,
        Api::Credit => exact::<Credit>,
        Api::AckUpTo => exact::<AckUpTo>,
        Api::Seek => exact::<Seek>,
        Api::Unsubscribe => exact::<Unsubscribe>,
        Api::Gap => exact::<Gap>,
        Api::SubscriptionClosed => exact::<SubscriptionClosed>,
        Api::Seeked => exact::<Seeked>,
        Api::ListSubscriptions => exact::<ListSubscriptions>,
        Api::ListPatterns => exact::<ListPatterns>,
        Api::DeleteSubscription => exact::<DeleteSubscription>,
        Api::ListOffsets => exact::<ListOffsets>,
        Api::Consume => exact::<Consume>,
        Api::Lease => lease,
        Api::Ack => exact::<Ack>,
        Api::Return => exact::<Return>,
        Api::Renew => exact::<Renew>,
        Api::LeaseLost => exact::<LeaseLost>,
        Api::CreateQueue => exact::<CreateQueue>,
        Api::CreateSubscription => exact::<CreateSubscription>,
        Api::AlterQueue => exact::<AlterQueue>,
        Api::DescribeQueue => exact::<DescribeQueue>,
        Api::WhyMessage => exact::<WhyMessage>,
        Api::PurgeQueue => exact::<PurgeQueue>,
        Api::RedriveLetters => exact::<RedriveLetters>,
        Api::ReleaseMessage => exact::<ReleaseMessage>,
        Api::JoinGroup => exact::<JoinGroup>,
        Api::GroupAssigned => exact::<GroupAssigned>,
        Api::GroupRevoked => exact::<GroupRevoked>,
        Api::GroupReleased => exact::<GroupReleased>,
        Api::GroupHeartbeat => exact::<GroupHeartbeat>,
        Api::LeaveGroup => exact::<LeaveGroup>,
        Api::GroupFenced => exact::<GroupFenced>,
        Api::DescribeGroup => exact::<DescribeGroup>,
        Api::PeerHello => exact::<PeerHello>,
        Api::RaftCall => exact::<RaftCall>,
        Api::Heartbeat => exact::<Heartbeat>,
        Api::OpenReplica => exact::<OpenReplica>,
        Api::ReplicaEntries => replica_entries,
        Api::ReplicaAck => exact::<ReplicaAck>,
        Api::AlterIsr => exact::<AlterIsr>,
        Api::ProbeEnd => exact::<ProbeEnd>,
        Api::JoinCluster => exact::<JoinCluster>,
        Api::Propose => exact::<Propose>,
        Api::FetchSnapshot => exact::<FetchSnapshot>,
        Api::Resign => exact::<Resign>,
    }
}

fn answered(api: Api) -> fn(Bytes) {
    match api {
        Api::Hello => exact::<HelloReply>,
        Api::Ping => exact::<PingReply>,
        Api::Metadata => exact::<MetadataReply>,
        Api::CreateTopic => exact::<CreateTopicReply>,
        Api::AlterTopic => exact::<AlterTopicReply>,
        Api::DeleteTopic => exact::<DeleteTopicReply>,
        Api::DescribeTopic => exact::<DescribeTopicReply>,
        Api::OpenProducer => exact::<OpenProducerReply>,
        Api::CancelDelayed => exact::<CancelDelayedReply>,
        Api::DescribeDelayed => exact::<DescribeDelayedReply>,
        Api::Subscribe => exact::<SubscribeReply>,
        Api::AckUpTo => exact::<AckUpToReply>,
        Api::Seek => exact::<SeekReply>,
        Api::Unsubscribe => exact::<UnsubscribeReply>,
        Api::ListSubscriptions => exact::<ListSubscriptionsReply>,
        Api::ListPatterns => exact::<ListPatternsReply>,
        Api::DeleteSubscription => exact::<DeleteSubscriptionReply>,
        Api::ListOffsets => exact::<ListOffsetsReply>,
        Api::Consume => exact::<ConsumeReply>,
        Api::Ack => exact::<AckReply>,
        Api::Return => exact::<ReturnReply>,
        Api::CreateQueue => exact::<CreateQueueReply>,
        Api::CreateSubscription => exact::<CreateSubscriptionReply>,
        Api::AlterQueue => exact::<AlterQueueReply>,
        Api::DescribeQueue => exact::<DescribeQueueReply>,
        Api::WhyMessage => exact::<WhyMessageReply>,
        Api::PurgeQueue => exact::<PurgeQueueReply>,
        Api::RedriveLetters => exact::<RedriveLettersReply>,
        Api::ReleaseMessage => exact::<ReleaseMessageReply>,
        Api::JoinGroup => exact::<JoinGroupReply>,
        Api::GroupReleased => exact::<GroupReleasedReply>,
        Api::LeaveGroup => exact::<LeaveGroupReply>,
        Api::DescribeGroup => exact::<DescribeGroupReply>,
        Api::PeerHello => exact::<PeerHelloReply>,
        Api::RaftCall => exact::<RaftCallReply>,
        Api::Heartbeat => exact::<HeartbeatReply>,
        Api::OpenReplica => exact::<OpenReplicaReply>,
        Api::AlterIsr => exact::<AlterIsrReply>,
        Api::ProbeEnd => exact::<ProbeEndReply>,
        Api::JoinCluster => exact::<JoinClusterReply>,
        Api::Propose => exact::<ProposeReply>,
        Api::FetchSnapshot => exact::<FetchSnapshotReply>,
        Api::Resign => exact::<ResignReply>,
        Api::Publish
        | Api::PublishDelayed
        | Api::PublishAtomic
        | Api::Confirm
        | Api::Deliver
        | Api::Credit
        | Api::Gap
        | Api::SubscriptionClosed
        | Api::Seeked
        | Api::Lease
        | Api::Renew
        | Api::LeaseLost
        | Api::GroupAssigned
        | Api::GroupRevoked
        | Api::GroupHeartbeat
        | Api::GroupFenced
        | Api::ReplicaEntries
        | Api::ReplicaAck => |_no_reply| (),
    }
}

/// What decodes has this one encoding.
fn exact<M: Message>(body: Bytes) {
    if let Ok(message) = M::decode(body.clone()) {
        let mut again = BytesMut::new();
        message.encode(&mut again);
        assert_eq!(again, body, "a message has one encoding");
    }
}

fn publish(body: Bytes) {
    exact::<Publish>(body.clone());
    if let Ok(publish) = Publish::decode(body) {
        check_batch(&publish.batch);
    }
}

fn publish_delayed(body: Bytes) {
    exact::<PublishDelayed>(body.clone());
    if let Ok(delayed) = PublishDelayed::decode(body) {
        check_batch(&delayed.publish.batch);
    }
}

fn publish_atomic(body: Bytes) {
    exact::<PublishAtomic>(body.clone());
    if let Ok(atomic) = PublishAtomic::decode(body) {
        check_batch(&atomic.publish.batch);
    }
}

fn deliver(body: Bytes) {
    exact::<Deliver>(body.clone());
    if let Ok(deliver) = Deliver::decode(body) {
        check_entries(&deliver.entries);
    }
}

fn replica_entries(body: Bytes) {
    exact::<ReplicaEntries>(body.clone());
    if let Ok(message) = ReplicaEntries::decode(body) {
        check_entries(&message.entries);
    }
}

fn lease(body: Bytes) {
    exact::<Lease>(body.clone());
    if let Ok(lease) = Lease::decode(body) {
        check_entries(&lease.entries);
    }
}

/// A batch's body; its crc is made to fit, and its count is that of its fields.
///
/// # Panics
///
/// If the two ways to read a batch differ, or what was read cannot be built again.
pub fn batch(input: &[u8]) {
    let count = input
        .get(36..40)
        .map_or(0, |count| u32::from_be_bytes(count.try_into().expect("four bytes were taken")));
    let body = Bytes::copy_from_slice(input);
    check_batch(&Batch { crc: crc32(&body), body, record_count: count });
}

fn check_batch(batch: &Batch) {
    assert_eq!(batch.check_crc(), crc32(&batch.body) == batch.crc, "the crc is the IEEE one");
    let valid = batch.validate(&Limits::default());
    let _sizes = batch.check_message_sizes(64);
    let limits = DecodeLimits { records_bytes_max: RECORDS_BYTES_MAX };
    let Ok(block) = batch.block(limits) else { return };
    let views = walk(&block);
    let shared: Result<Vec<_>, _> = block.clone().into_records().collect();
    let shared =
        shared.map(|records| records.into_iter().map(|one| one.record).collect::<Vec<_>>());
    assert_eq!(views, shared, "both forms read the same");
    if let (Ok(fields), Ok(records)) = (valid, shared) {
        assert_eq!(
            records.len(),
            fields.record_count as usize,
            "a valid batch has all its records"
        );
        if fields.compression == Compression::None {
            let lengths = lengths_fill(&batch.body[BATCH_FIELD_BYTES..], fields.record_count);
            assert!(lengths, "no byte is left over");
        }
        check_rebuilt(&block, &records);
    }
}

/// Whether that many records, by their lengths alone, are all the bytes.
fn lengths_fill(mut rest: &[u8], count: u32) -> bool {
    for _ in 0..count {
        let Some(end) = rest.iter().position(|byte| *byte < 0x80) else { return false };
        let (varint, after) = rest.split_at(end + 1);
        let bits = varint.iter().rev().fold(0, |bits, byte| bits << 7 | usize::from(byte & 0x7f));
        let Some(next) = after.get(bits / 2..) else { return false };
        rest = next;
    }
    rest.is_empty()
}

fn walk(block: &RecordBlock) -> Result<Vec<Record>, BatchError> {
    block
        .views()
        .map(|view| {
            let view = view?;
            let headers: Result<Vec<_>, _> = view
                .headers()?
                .map(|header| {
                    header.map(|(name, value)| {
                        (Bytes::copy_from_slice(name.as_bytes()), value.map(Bytes::copy_from_slice))
                    })
                })
                .collect();
            Ok(Record {
                key: view.key.map(Bytes::copy_from_slice),
                value: view.value.map(Bytes::copy_from_slice),
                headers: headers?,
                timestamp: view.timestamp,
            })
        })
        .collect()
}

/// Records that were read can be sent again and come back the same.
fn check_rebuilt(block: &RecordBlock, records: &[Record]) {
    let fields = block.fields();
    let mut builder = BatchBuilder::new(Compression::None, 0);
    for record in records {
        builder.push_record(record).expect("what was read can be built");
    }
    let sequence = Sequence(u64::from(fields.base_sequence));
    let rebuilt = builder.finish(fields.producer, fields.epoch, sequence);
    assert!(rebuilt.check_crc());
    let limits = DecodeLimits { records_bytes_max: RECORDS_BYTES_MAX };
    let again: Result<Vec<_>, _> = rebuilt.records(limits).expect("just built").collect();
    let again: Vec<_> = again.expect("just built").into_iter().map(|one| one.record).collect();
    assert_eq!(again, records);
}

/// A byte whose lowest bit says whether header crcs are made to fit, and entries.
///
/// # Panics
///
/// If the two ways to read entries differ, or damage goes unnoticed.
pub fn entry(input: &[u8]) {
    let Some((&mode, entries)) = input.split_first() else { return };
    let mut entries = entries.to_vec();
    if mode & 1 == 1 {
        mend_headers(&mut entries);
    }
    check_entries(&Bytes::from(entries));
}

/// Makes the crc of each header fit, as far as lengths lead from one to the next.
fn mend_headers(entries: &mut [u8]) {
    let mut at = 0;
    while let Some(header) =
        entries.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<ENTRY_HEADER_BYTES>())
    {
        let crc = EntryHeader::crc_of(header);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        at = at.saturating_add((len as usize).max(8));
    }
}

fn check_entries(entries: &Bytes) {
    let views: Vec<_> = EntryViews::new(entries).collect();
    let shared: Vec<_> = EntryIter::new(entries.clone()).collect();
    assert_eq!(views.len(), shared.len(), "both forms read the same");
    let mut rest = entries.clone();
    for (view, shared) in views.iter().zip(&shared) {
        match (view, shared) {
            (Ok(view), Ok(shared)) => {
                assert_eq!(*view, shared.view(), "both forms read the same");
                assert_eq!(split_entry(&mut rest).as_ref(), Ok(shared));
                check_entry(view, shared.body.clone());
            }
            (Err(view), Err(shared)) => assert_eq!(view, shared, "both forms read the same"),
            _ => panic!("both forms read the same: {view:?}, {shared:?}"),
        }
    }
}

fn check_entry(view: &EntryView<'_>, body: Bytes) {
    let header = view.header;
    let encoded = header.encode();
    assert_eq!(EntryHeader::decode(&encoded), Ok(header), "a header has one encoding");
    assert_eq!(encoded[4..8], header.header_crc.to_le_bytes());
    let fits = crc32(view.body) == header.body_crc && crc32(view.trailer) == header.trailer_crc;
    assert_eq!(view.check_body().is_ok(), fits, "damage is found");
    check_batch(&Batch { body, crc: header.body_crc, record_count: header.record_count });
    check_kept(view);
}

/// Every second record of a Data entry, in an entry of its own, is what the whole entry has there.
fn check_kept(view: &EntryView<'_>) {
    let limits = DecodeLimits { records_bytes_max: RECORDS_BYTES_MAX };
    let even = |offset: Offset| offset.0.is_multiple_of(2);
    let Ok(kept) = rebuild(view, even, limits) else { return };
    let (part, rest) = EntryView::split(&kept).expect("what was rebuilt is an entry");
    assert!(rest.is_empty() && part.check_body().is_ok());
    let keys = |view: &EntryView<'_>| -> Vec<_> {
        let records = EntryRecords::open(view, limits).expect("it was read");
        let keys = records.keys().map(|key| key.expect("it was read"));
        keys.filter(|(offset, _)| even(*offset))
            .map(|(at, key)| (at, key.map(<[u8]>::to_vec)))
            .collect()
    };
    assert_eq!(keys(&part), keys(view), "what is kept stays as it is");
}

/// CRC-32 (IEEE), bit by bit: another implementation than the one under test.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _bit| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
