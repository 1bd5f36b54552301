//! Delayed messages through the join: publishing, release, cancel, crashes, retention.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::join::{Broker, BrokerOptions};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::peer::{Peer, publish, start};
use crate::worker::{Worker, consume};
use crate::{open_sim, open_with};

const DELAY_MS: u64 = 10_000;

/// `ms` after the start of the tests.
fn at(ms: u64) -> TimestampMs {
    TimestampMs(start().wall.0 + ms)
}

/// The tick comes at that time, and what it appends is written.
fn tick(broker: &Broker, ms: u64) {
    tick_unwritten(broker, ms);
    while broker.store().step() {}
}

fn tick_unwritten(broker: &Broker, ms: u64) {
    let mut now = start();
    now.monotonic += Duration::from_millis(ms);
    now.wall = at(ms);
    broker.tick(now);
}

/// A producer on a topic of one partition.
struct Shop {
    peer: Peer,
    topic: TopicId,
    producer: ProducerId,
}

impl Shop {
    fn open(broker: &Broker) -> Self {
        let mut peer = Peer::new(broker);
        let topic = peer.create_topic("orders", 1);
        let producer = peer.open_producer();
        Self { peer, topic, producer }
    }

    /// The same producer on another connection.
    fn resume(&mut self, broker: &Broker) {
        self.peer = Peer::new(broker);
        let resume = Some((self.producer, ProducerEpoch(0)));
        let request = OpenProducer { name: String::new(), resume };
        let _resumed: OpenProducerReply = self.peer.ask(&request).unwrap();
    }

    fn delayed(&mut self, due: TimestampMs, sequence: u64, texts: &[&str]) -> Outcome {
        let epoch = self.peer.leader_epoch("orders");
        let publish = publish(self.topic, epoch, self.producer, sequence, texts);
        self.peer.send_event(&PublishDelayed { deliver_at: due, publish });
        self.outcome()
    }

    fn plain(&mut self, sequence: u64, texts: &[&str]) -> Outcome {
        let epoch = self.peer.leader_epoch("orders");
        self.peer.send_event(&publish(self.topic, epoch, self.producer, sequence, texts));
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        self.peer.settle();
        let mut runs = self.peer.confirms();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0).outcome
    }

    fn cancel(&mut self, ids: &[DelayId]) -> Vec<CancelVerdict> {
        let (topic, partition) = ("orders".to_string(), PartitionId(0));
        let request = CancelDelayed { topic, partition, ids: ids.to_vec() };
        let reply: CancelDelayedReply = self.peer.ask(&request).unwrap();
        reply.verdicts
    }

    fn numbers(&mut self) -> DelayedPartition {
        let request = DescribeDelayed { topic: "orders".to_string() };
        let reply: DescribeDelayedReply = self.peer.ask(&request).unwrap();
        assert_eq!(reply.partitions.len(), 1);
        reply.partitions[0].clone()
    }
}

fn id_of(outcome: &Outcome) -> DelayId {
    match outcome {
        Outcome::Delayed { id, .. } | Outcome::DelayedDuplicate { id, .. } => *id,
        other => panic!("not delayed: {other:?}"),
    }
}

fn texts(peer: &mut Peer) -> Vec<String> {
    peer.delivered().into_iter().map(|(_offset, text)| text).collect()
}

/// What a reader that begins at the first offset gets.
fn all(broker: &Broker) -> Vec<(u64, String)> {
    let mut reader = Peer::new(broker);
    reader.subscribe(1, "orders", None);
    reader.delivered()
}

fn at_offsets(expected: &[&str]) -> Vec<(u64, String)> {
    (0..).zip(expected.iter().map(|text| (*text).to_string())).collect()
}

#[test]
fn delayed_messages_get_offsets_in_the_order_of_their_times() {
    let broker = open_sim(&SimDisk::new(1));
    let mut shop = Shop::open(&broker);
    let mut reader = Peer::new(&broker);
    reader.subscribe(1, "orders", Some("billing"));
    let later = shop.delayed(at(DELAY_MS + 50), 0, &["later"]);
    let sooner = shop.delayed(at(DELAY_MS), 1, &["sooner a", "sooner b"]);
    assert!(id_of(&later) < id_of(&sooner));
    assert!(matches!(shop.plain(3, &["now"]), Outcome::Committed { base_offset: Offset(0), .. }));
    assert_eq!(reader.delivered(), at_offsets(&["now"]));
    let numbers = shop.numbers();
    assert_eq!((numbers.scheduled, numbers.next_due), (3, Some(at(DELAY_MS))));

    tick(&broker, DELAY_MS - 1);
    assert!(reader.delivered().is_empty(), "not before its time");
    tick(&broker, DELAY_MS);
    assert_eq!(texts(&mut reader), ["sooner a", "sooner b"]);
    tick(&broker, DELAY_MS + 75);
    assert_eq!(texts(&mut reader), ["later"]);
    tick(&broker, DELAY_MS + 10_000);
    assert!(reader.delivered().is_empty(), "once");
    assert_eq!(all(&broker), at_offsets(&["now", "sooner a", "sooner b", "later"]));
    let numbers = shop.numbers();
    assert_eq!((numbers.scheduled, numbers.released, numbers.next_due), (0, 3, None));
    let metrics = broker.metrics();
    assert_eq!((metrics.delays_pending, metrics.delays_released), (0, 3));
    assert_eq!(metrics.delay_lateness.buckets[..3], [2, 0, 1], "0 ms twice, then 25 ms");
}

#[test]
fn a_queue_leases_a_delayed_message_when_its_time_has_come() {
    let broker = open_sim(&SimDisk::new(1));
    let mut shop = Shop::open(&broker);
    let create = CreateSubscription {
        topic: "orders".to_string(),
        name: "work".to_string(),
        start: Start::Earliest,
        queue: Some(QueuePolicy::default()),
        if_not_exists: false,
    };
    let _created: CreateSubscriptionReply = shop.peer.ask(&create).unwrap();
    let request = Consume { subscription: Some("work".to_string()), ..consume("orders", 1) };
    let mut worker = Worker::with(&broker, &request);
    shop.delayed(at(DELAY_MS), 0, &["job"]);
    tick(&broker, DELAY_MS - 1);
    assert!(worker.leases().is_empty(), "not before its time");
    tick(&broker, DELAY_MS);
    let leases = worker.leases();
    assert_eq!((leases.len(), leases[0].offset, leases[0].text.as_str()), (1, 0, "job"));
}

#[test]
fn a_release_that_a_crash_took_away_is_made_again_and_once() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut shop = Shop::open(&broker);
    let id = id_of(&shop.delayed(at(DELAY_MS), 0, &["a", "b"]));
    tick_unwritten(&broker, DELAY_MS);
    assert!(all(&broker).is_empty(), "appended, and not written");
    drop(shop);
    disk.crash(CrashKind::Power);
    drop(broker);
    let disk = disk.reopen();

    let broker = open_sim(&disk);
    tick(&broker, DELAY_MS + 25);
    tick(&broker, DELAY_MS + 50);
    assert_eq!(broker.metrics().delays_released, 2, "without a client that asks for it");
    assert_eq!(all(&broker), at_offsets(&["a", "b"]));
    disk.crash(CrashKind::Power);
    drop(broker);

    let broker = open_sim(&disk.reopen());
    (0..10).for_each(|n| tick(&broker, DELAY_MS + 100 + 25 * n));
    assert_eq!(all(&broker), at_offsets(&["a", "b"]), "what is committed stays released");
    let mut peer = Peer::new(&broker);
    let (topic, partition) = ("orders".to_string(), PartitionId(0));
    let request = CancelDelayed { topic, partition, ids: vec![id] };
    let reply: CancelDelayedReply = peer.ask(&request).unwrap();
    assert_eq!(reply.verdicts, [CancelVerdict::Released], "remembered over restarts");
}

#[test]
fn a_retry_before_and_after_the_release_is_one_message() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut shop = Shop::open(&broker);
    let first = shop.delayed(at(DELAY_MS), 0, &["a", "b"]);
    assert!(matches!(first, Outcome::Delayed { .. }));
    let is_again = |outcome: &Outcome| {
        matches!(outcome, Outcome::DelayedDuplicate { .. }) && id_of(outcome) == id_of(&first)
    };
    assert!(is_again(&shop.delayed(at(DELAY_MS), 0, &["a", "b"])));
    tick(&broker, DELAY_MS);
    assert!(is_again(&shop.delayed(at(DELAY_MS), 0, &["a", "b"])), "released meanwhile");
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    shop.resume(&broker);
    assert!(is_again(&shop.delayed(at(DELAY_MS), 0, &["a", "b"])), "after a restart too");
    tick(&broker, 2 * DELAY_MS);
    tick(&broker, 3 * DELAY_MS);
    assert_eq!(all(&broker), at_offsets(&["a", "b"]));
}

#[test]
fn what_is_cancelled_is_never_delivered_and_the_answer_says_so_again() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut shop = Shop::open(&broker);
    let part = id_of(&shop.delayed(at(DELAY_MS), 0, &["a", "b", "c"]));
    let whole = id_of(&shop.delayed(at(DELAY_MS), 3, &["d"]));
    let b = DelayId { position: 1, ..part };
    let unknown = DelayId { index: EntryIndex(1 << 40), position: 0 };
    let beyond = DelayId { position: 3, ..part };
    use CancelVerdict::{Cancelled, Released, Unknown};
    assert_eq!(shop.cancel(&[b, unknown, whole, beyond]), [Cancelled, Unknown, Cancelled, Unknown]);
    assert_eq!(shop.cancel(&[whole, b]), [Cancelled, Cancelled], "a repeat gets the same answer");
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    shop.resume(&broker);
    tick(&broker, DELAY_MS);
    tick(&broker, DELAY_MS + 25);
    assert_eq!(all(&broker), at_offsets(&["a", "c"]));
    assert_eq!(shop.cancel(&[part, b, whole]), [Released, Cancelled, Cancelled]);
    let numbers = shop.numbers();
    assert_eq!((numbers.scheduled, numbers.released, numbers.cancelled), (0, 2, 2));
}

#[test]
fn a_cancel_behind_a_release_that_is_not_written_comes_too_late() {
    let broker = open_sim(&SimDisk::new(1));
    let mut shop = Shop::open(&broker);
    let id = id_of(&shop.delayed(at(DELAY_MS), 0, &["a"]));
    tick_unwritten(&broker, DELAY_MS);
    assert_eq!(shop.cancel(&[id]), [CancelVerdict::Released], "the order of the log decides");
    assert_eq!(all(&broker), at_offsets(&["a"]));
}

#[test]
fn retention_keeps_what_a_delayed_message_is_read_from() {
    let mut options = BrokerOptions::default();
    options.store.segment_bytes_max = 64 << 10;
    options.snapshot_after_entries = 8;
    let disk = SimDisk::new(1);
    let broker = open_with(Arc::new(disk), options);
    let mut shop = Shop::open(&broker);
    let change = AlterTopic {
        name: "orders".to_string(),
        retention_ms: None,
        retention_bytes: Some(Some(64 << 10)),
        message_bytes_max: None,
        partitions: None,
        bounds: BoundsChange::default(),
    };
    let _altered: AlterTopicReply = shop.peer.ask(&change).unwrap();
    shop.delayed(at(3_600_000), 0, &["kept"]);
    let fill = |shop: &mut Shop, begun_ms: u64, from: u64| {
        let text = "x".repeat(30 << 10);
        for nth in 0..40 {
            shop.plain(from + nth, &[&text]);
            let ms = begun_ms + 1_000 * nth;
            tick(&broker, ms);
            broker.store().maintain(at(ms));
        }
    };
    fill(&mut shop, 1_000, 1);
    let log_start = |shop: &mut Shop| {
        let request = DescribeTopic { name: "orders".to_string() };
        let reply: DescribeTopicReply = shop.peer.ask(&request).unwrap();
        reply.partitions[0].log_start
    };
    assert_eq!(log_start(&mut shop), Offset(0), "nothing is removed while it waits");
    tick(&broker, 3_600_000);
    assert_eq!(shop.numbers().released, 1, "read from the oldest segment");
    fill(&mut shop, 3_700_000, 41);
    assert!(log_start(&mut shop) > Offset(0), "retention goes on once it is released");
}

#[test]
fn a_full_disk_refuses_delayed_messages_and_releases_wait_for_room() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut shop = Shop::open(&broker);
    shop.delayed(at(DELAY_MS), 0, &["a"]);
    disk.set_quota(0);
    broker.store().maintain(at(1));
    assert!(broker.store().is_full());
    match shop.delayed(at(DELAY_MS), 1, &["b"]) {
        Outcome::Rejected { error } => assert_eq!(error.code, ErrorCode::DiskFull),
        other => panic!("not refused: {other:?}"),
    }
    tick(&broker, DELAY_MS);
    assert_eq!(shop.numbers().scheduled, 1, "it waits");
    disk.set_quota(u64::MAX);
    broker.store().maintain(at(DELAY_MS + 1));
    tick(&broker, DELAY_MS + 200);
    assert_eq!(all(&broker), at_offsets(&["a"]));
}

#[test]
fn a_batch_that_is_not_what_its_counts_say_costs_only_itself() {
    let broker = open_sim(&SimDisk::new(1));
    let mut shop = Shop::open(&broker);
    let epoch = shop.peer.leader_epoch("orders");
    let mut publish = publish(shop.topic, epoch, shop.producer, 0, &["a", "b"]);
    // The second record says that it is the first: 40 field bytes, a record whose length is its first byte, then
    // length, attributes, time delta, offset delta.
    let mut body = publish.batch.body.to_vec();
    let first = usize::from(body[40] / 2) + 1;
    assert_eq!(body[40 + first + 3], 2, "1 in zigzag");
    body[40 + first + 3] = 0;
    publish.batch.crc = crc32fast::hash(&body);
    publish.batch.body = body.into();
    shop.peer.send_event(&PublishDelayed { deliver_at: at(DELAY_MS), publish });
    let id = match shop.outcome() {
        Outcome::Rejected { .. } => return,
        stored => id_of(&stored),
    };
    assert_eq!(shop.cancel(&[DelayId { position: 1, ..id }]), [CancelVerdict::Cancelled]);
    shop.delayed(at(DELAY_MS), 2, &["c"]);
    tick(&broker, DELAY_MS);
    tick(&broker, DELAY_MS + 25);
    let numbers = shop.numbers();
    assert_eq!((numbers.released, numbers.cancelled, numbers.lost), (1, 1, 1));
    assert_eq!(all(&broker), at_offsets(&["c"]));
}
