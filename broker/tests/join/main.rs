//! The join end to end, in one process and without threads: frames in, frames out, on a simulated and on
//! a real disk.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a test that goes wrong must fail"
)]

mod bounded_logs;
mod bounds;
mod consuming;
mod delays;
mod groups;
mod patterns;
mod peer;
mod queues;
mod redrive;
mod sparse;
mod worker;

use std::sync::Arc;

use bytes::Bytes;
use peer::{Peer, publish, start, subscribe, topic_config};
use postrider_broker::join::{Broker, BrokerOptions};
use postrider_protocol::batch::BatchBuilder;
use postrider_protocol::error::{ErrorCode, Retry};
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::disk_sim::CrashKind;
use postrider_storage::{Disk, OsDisk, SimDisk, StoreOptions};

fn open(disk: Arc<dyn Disk>) -> Broker {
    open_with(disk, BrokerOptions::default())
}

fn open_with(disk: Arc<dyn Disk>, options: BrokerOptions) -> Broker {
    let mut seed = 7;
    let mut random = move || {
        seed += 1;
        seed
    };
    Broker::open(disk, options, start(), &mut random).unwrap()
}

fn open_sim(disk: &SimDisk) -> Broker {
    open(Arc::new(disk.clone()))
}

fn offsets(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Committed { base_offset, .. } => base_offset.0,
        other => panic!("not committed: {other:?}"),
    }
}

/// Publishes and reads through two sessions; tells the producer and the topic.
fn publish_and_read(broker: &Broker) -> (ProducerId, TopicId) {
    let (mut writer, mut reader) = (Peer::new(broker), Peer::new(broker));
    let topic = writer.create_topic("orders", 1);
    let epoch = writer.leader_epoch("orders");
    let producer = writer.open_producer();
    let attached = reader.subscribe(1, "orders", Some("billing"));
    assert_eq!(attached.partitions[0].next, Offset(0));

    writer.send_event(&publish(topic, epoch, producer, 0, &["a", "b"]));
    writer.send_event(&publish(topic, epoch, producer, 2, &["c"]));
    assert!(writer.confirms().is_empty(), "nothing is confirmed before it is durable");
    assert!(reader.delivered().is_empty(), "nothing is delivered before it is durable");
    assert!(writer.session.publish_in_flight_bytes() > 0);

    let rings = writer.bell.rings();
    writer.settle();
    assert_eq!(writer.bell.rings(), rings + 1, "one wake per round");
    let runs = writer.confirms();
    assert_eq!(runs.len(), 1, "contiguous confirms are one run: {runs:?}");
    assert_eq!((offsets(&runs[0].outcome), runs[0].count), (0, 3));
    assert_eq!(writer.session.publish_in_flight_bytes(), 0);

    let texts = |text: &str| text.to_string();
    let all = vec![(0, texts("a")), (1, texts("b")), (2, texts("c"))];
    assert_eq!(reader.delivered(), all);
    let ack = AckUpTo {
        handle: SubscriptionHandle(1),
        partition: PartitionId(0),
        owner_epoch: attached.partitions[0].owner_epoch,
        up_to: Offset(2),
    };
    let _acked: AckUpToReply = reader.ask(&ack).unwrap();
    (producer, topic)
}

/// After a restart: what was confirmed is there, what was acked is not delivered again, the session of
/// the producer goes on.
fn go_on(broker: &Broker, producer: ProducerId, topic: TopicId) {
    let (mut writer, mut reader) = (Peer::new(broker), Peer::new(broker));
    let attached = reader.subscribe(7, "orders", Some("billing"));
    assert_eq!(attached.partitions[0].next, Offset(2));
    assert_eq!(reader.delivered(), vec![(2, "c".to_string())]);

    let resume = OpenProducer { name: String::new(), resume: Some((producer, ProducerEpoch(0))) };
    let _resumed: OpenProducerReply = writer.ask(&resume).unwrap();
    let epoch = writer.leader_epoch("orders");
    writer.send_event(&publish(topic, epoch, producer, 2, &["c"]));
    writer.send_event(&publish(topic, epoch, producer, 3, &["d"]));
    writer.settle();
    let runs = writer.confirms();
    assert!(
        matches!(runs[0].outcome, Outcome::Duplicate { base_offset: Offset(2), .. }),
        "{runs:?}"
    );
    assert_eq!(offsets(&runs[1].outcome), 3);
    assert_eq!(reader.delivered(), vec![(3, "d".to_string())]);

    let mut other = Peer::new(broker);
    let _ephemeral = other.subscribe(1, "orders", None);
    let texts: Vec<String> = other.delivered().into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["a", "b", "c", "d"]);
    assert_ne!(other.open_producer(), producer, "ids are never given out twice");
}

#[test]
fn messages_survive_power_loss() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let (producer, topic) = publish_and_read(&broker);
    let identity = broker.identity();
    disk.crash(CrashKind::Power);
    drop(broker);
    let disk = disk.reopen();
    let broker = open_sim(&disk);
    assert_eq!(broker.identity().cluster, identity.cluster);
    assert_eq!(broker.identity().storage, identity.storage);
    assert_eq!(broker.identity().incarnation, identity.incarnation + 1);
    go_on(&broker, producer, topic);
}

#[test]
fn a_start_makes_room_in_a_journal_that_the_process_before_had_filled() {
    let store = StoreOptions {
        journal_bytes_min: 4 << 10,
        journal_bytes_max: 8 << 10,
        checkpoint_journal_bytes: 4 << 10,
        ..StoreOptions::default()
    };
    let open = |disk: &SimDisk| {
        let options = BrokerOptions { store: store.clone(), ..BrokerOptions::default() };
        open_with(Arc::new(disk.clone()), options)
    };
    let disk = SimDisk::new(1);
    let broker = open(&disk);
    let mut writer = Peer::new(&broker);
    let topic = writer.create_topic("orders", 1);
    let epoch = writer.leader_epoch("orders");
    let producer = writer.open_producer();
    // What recovery writes of it fills a new file of the journal, and leaves no room in it.
    let text = "x".repeat(3_500);
    let mut sent = 0;
    // Nobody makes checkpoints, until nothing is written any more.
    while broker.store().stats().stalls == 0 {
        writer.send_event(&publish(topic, epoch, producer, sent, &[&text]));
        broker.store().step();
        sent += 1;
    }
    let confirmed: u32 = writer.confirms().iter().map(|run| run.count).sum();
    assert_eq!(u64::from(confirmed), sent - 1);
    drop((writer, broker));
    disk.crash(CrashKind::Process);
    let mut reader = Peer::new(&open(&disk.reopen()));
    let attached = reader.subscribe(1, "orders", None);
    assert!(attached.partitions[0].high_watermark.0 >= sent - 1);
}

#[test]
fn messages_survive_a_clean_restart_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let disk = || Arc::new(OsDisk::create(dir.path()).unwrap());
    let broker = open(disk());
    let (producer, topic) = publish_and_read(&broker);
    broker.close().unwrap();
    drop(broker);
    let broker = open(disk());
    go_on(&broker, producer, topic);
}

#[test]
fn a_second_consumer_takes_the_subscription_over() {
    let broker = open_sim(&SimDisk::new(1));
    let (mut one, mut two) = (Peer::new(&broker), Peer::new(&broker));
    one.create_topic("orders", 2);
    let first = one.subscribe(1, "orders", Some("billing"));
    let second = two.subscribe(9, "orders", Some("billing"));
    assert!(second.partitions[0].owner_epoch > first.partitions[0].owner_epoch);
    let closed = one.take::<SubscriptionClosed>();
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].error.code, ErrorCode::SubscriptionTaken);
    let ack = AckUpTo {
        handle: SubscriptionHandle(1),
        partition: PartitionId(0),
        owner_epoch: first.partitions[0].owner_epoch,
        up_to: Offset(0),
    };
    let refused = one.ask::<_, AckUpToReply>(&ack).unwrap_err();
    assert_eq!(refused.code, ErrorCode::UnknownSubscription);
}

#[test]
fn credit_bounds_what_is_delivered() {
    let broker = open_sim(&SimDisk::new(1));
    let mut peer = Peer::new(&broker);
    let topic = peer.create_topic("orders", 1);
    let epoch = peer.leader_epoch("orders");
    for tag in 0..10 {
        peer.send_event(&publish(topic, epoch, ProducerId::NONE, tag, &["x"]));
    }
    peer.settle();
    let request =
        Subscribe { credit_messages: 3, ..subscribe(1, "orders", None, Start::Offset(Offset(4))) };
    let _reply: SubscribeReply = peer.ask(&request).unwrap();
    let offsets = |delivered: Vec<(u64, String)>| -> Vec<u64> {
        delivered.into_iter().map(|(offset, _)| offset).collect()
    };
    assert_eq!(offsets(peer.delivered()), [4, 5, 6]);
    peer.send_event(&Credit { handle: SubscriptionHandle(1), messages: 2, bytes: 0 });
    assert_eq!(offsets(peer.delivered()), [7, 8]);
    peer.send_event(&Credit { handle: SubscriptionHandle(1), messages: 9, bytes: 0 });
    assert_eq!(offsets(peer.delivered()), [9]);
}

// F5
#[test]
fn a_subscriber_that_takes_nothing_holds_up_no_other() {
    let broker = open_sim(&SimDisk::new(1));
    let (mut writer, mut slow, mut quick) =
        (Peer::new(&broker), Peer::new(&broker), Peer::new(&broker));
    let topic = writer.create_topic("orders", 1);
    let epoch = writer.leader_epoch("orders");
    let few = Subscribe { credit_messages: 1, ..subscribe(1, "orders", None, Start::Earliest) };
    let _slow: SubscribeReply = slow.ask(&few).unwrap();
    let _quick = quick.subscribe(1, "orders", None);
    for tag in 0..100 {
        writer.send_event(&publish(topic, epoch, ProducerId::NONE, tag, &["x"]));
        writer.settle();
        assert_eq!(quick.delivered().len(), 1, "message {tag} comes when it is durable");
    }
    assert_eq!(slow.delivered().len(), 1);
    slow.send_event(&Credit { handle: SubscriptionHandle(1), messages: 200, bytes: 0 });
    assert_eq!(slow.delivered().len(), 99, "and the slow one has missed nothing");
}

#[test]
fn a_publish_that_a_full_disk_refuses_is_in_flight_no_more() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    let topic = peer.create_topic("orders", 1);
    let epoch = peer.leader_epoch("orders");
    disk.set_quota(0);
    broker.store().maintain(TimestampMs(1));
    assert!(broker.store().is_full());
    let mut refusals = 0;
    for tag in 0..3 {
        peer.send_event(&publish(topic, epoch, ProducerId::NONE, tag, &["x"]));
        peer.settle();
        refusals += peer.confirms().len();
        assert_eq!(peer.session.publish_in_flight_bytes(), 0, "charged and taken back");
        assert!(peer.session.may_receive());
    }
    assert_eq!(refusals, 3);
    disk.set_quota(u64::MAX);
    broker.store().maintain(TimestampMs(2));
    peer.send_event(&publish(topic, epoch, ProducerId::NONE, 3, &["x"]));
    peer.settle();
    assert_eq!(offsets(&peer.confirms()[0].outcome), 0);
}

fn refused_with(peer: &mut Peer) -> ErrorCode {
    peer.settle();
    match &peer.confirms()[0].outcome {
        Outcome::Rejected { error } => error.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_limit_on_messages_counts_headers() {
    let limits = Limits { message_bytes_max: 1_000, ..Limits::default() };
    let options = BrokerOptions { limits, ..BrokerOptions::default() };
    let broker = open_with(Arc::new(SimDisk::new(1)), options);
    let mut peer = Peer::new(&broker);
    let topic = peer.create_topic("orders", 1);
    let epoch = peer.leader_epoch("orders");
    let mut builder = BatchBuilder::new(Compression::None, 4_096);
    let headers = [(Bytes::from_static(b"note"), Some(Bytes::from(vec![7; 2_000])))];
    builder.push(None, Some(b"small"), &headers, TimestampMs(5)).unwrap();
    let mut large = publish(topic, epoch, ProducerId::NONE, 0, &["x"]);
    large.batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
    peer.send_event(&large);
    assert_eq!(refused_with(&mut peer), ErrorCode::BatchTooLarge);
}

#[test]
fn a_batch_that_no_segment_holds_is_refused_for_good() {
    let mut options = BrokerOptions::default();
    options.store.segment_bytes_max = 64 << 10;
    let broker = open_with(Arc::new(SimDisk::new(1)), options);
    let mut peer = Peer::new(&broker);
    let topic = peer.create_topic("orders", 1);
    let epoch = peer.leader_epoch("orders");
    let text = "x".repeat(100 << 10);
    peer.send_event(&publish(topic, epoch, ProducerId::NONE, 0, &[&text]));
    let code = refused_with(&mut peer);
    assert_eq!((code, code.retry()), (ErrorCode::BatchTooLarge, Retry::Never));
}

#[test]
fn retention_keeps_up_with_what_is_written_between_two_checks() {
    let mut options = BrokerOptions::default();
    options.store.segment_bytes_max = 64 << 10;
    options.store.recycle_bytes_max = 256 << 10;
    let interval = options.retention_check_interval;
    let broker = open_with(Arc::new(SimDisk::new(1)), options);
    let mut peer = Peer::new(&broker);
    let config = TopicConfig { retention_bytes: Some(64 << 10), ..topic_config(1) };
    let request = CreateTopic { name: "orders".to_string(), config, if_not_exists: false };
    let CreateTopicReply { id: topic, .. } = peer.ask(&request).unwrap();
    let epoch = peer.leader_epoch("orders");
    let text = "x".repeat(30 << 10);
    let begun = peer.now.monotonic;
    for tag in 0..120 {
        peer.send_event(&publish(topic, epoch, ProducerId::NONE, tag, &[&text]));
        peer.settle();
        peer.now.monotonic += interval / 200;
        broker.tick(peer.now);
        broker.store().maintain(peer.now.wall);
    }
    assert!(peer.now.monotonic < begun + interval, "only the first check was due by time");
    let stats = broker.store().stats();
    assert_eq!(stats.segment_files_removed, 0, "{stats:?}");
    assert!(stats.segment_files_recycled > 3 * stats.segment_files_new, "{stats:?}");
}
