//! Queues through the join: the disk follows what is unsettled, not how far it lies apart.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::join::{Broker, BrokerOptions};
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::open_with;
use crate::peer::{Peer, subscribe};
use crate::queues::create_queue;
use crate::worker::{HANDLE, Leased, Worker, consume, publish_range};

/// Messages that pass the one that is stuck; more by `POSTRIDER_MESSAGES`.
const MESSAGES: u64 = 200_000;

/// Segments of the queue and free ones, in bytes and files, however many messages have passed.
const BYTES_MAX: usize = 2 << 20;
const FILES_MAX: usize = 48;

fn options() -> BrokerOptions {
    let mut options = BrokerOptions {
        retention_check_interval: Duration::from_millis(50),
        snapshot_after_entries: 256,
        ..BrokerOptions::default()
    };
    options.store.segment_bytes_min = 16 << 10;
    options.store.segment_bytes_max = 64 << 10;
    options.store.recycle_bytes_max = 256 << 10;
    options.store.checkpoint_bytes = 512 << 10;
    options
}

/// A queue of which a consumer has the first message and keeps it.
struct Stuck {
    broker: Broker,
    disk: SimDisk,
    producer: Peer,
    holder: Worker,
    held: Vec<Leased>,
    worker: Worker,
    published: u64,
}

impl Stuck {
    fn new() -> Self {
        let disk = SimDisk::new(1);
        let broker = open_with(Arc::new(disk.clone()), options());
        let mut producer = Peer::new(&broker);
        let policy = QueuePolicy { lease_ms: 3_600_000, ..QueuePolicy::default() };
        let _created: CreateQueueReply = producer.ask(&create_queue("jobs", policy)).unwrap();
        publish_range(&mut producer, "jobs", 0..1, 1);
        let one = Consume { credit_messages: 1, ..consume("jobs", 1) };
        let mut holder = Worker::with(&broker, &one);
        let held = holder.leases();
        assert_eq!(held.len(), 1);
        let worker = Worker::new(&broker, "jobs", 2);
        Self { broker, disk, producer, holder, held, worker, published: 1 }
    }

    /// So many messages come and are acknowledged.
    fn pass(&mut self, messages: u64) {
        let end = self.published + messages;
        publish_range(&mut self.producer, "jobs", self.published..end, 50);
        let mut acked = 0;
        while acked < messages {
            let leased = self.worker.leases();
            assert!(!leased.is_empty(), "{acked} of {messages} came");
            acked += leased.len() as u64;
            assert!(self.worker.ack(&leased).unwrap().exceptions.is_empty());
            let bytes = u32::try_from(std::mem::take(&mut self.worker.bytes)).unwrap();
            let messages = u32::try_from(leased.len()).unwrap();
            self.worker.peer.send_event(&Credit { handle: HANDLE, messages, bytes });
        }
        self.published = end;
        self.tick();
    }

    fn tick(&mut self) {
        self.producer.now.monotonic += Duration::from_millis(50);
        self.broker.tick(self.producer.now);
        self.broker.store().maintain(self.producer.now.wall);
        while self.broker.store().step() {}
    }

    /// Bytes and files of all segments, free ones included.
    fn on_disk(&self) -> (usize, usize) {
        let files = self.disk.files();
        let segments = files.iter().filter(|(path, _)| path.starts_with("segments/"));
        segments.fold((0, 0), |(bytes, files), (_, file)| (bytes + file.len(), files + 1))
    }
}

fn messages() -> u64 {
    let given = std::env::var("POSTRIDER_MESSAGES").ok();
    given.map_or(MESSAGES, |given| given.parse().expect("POSTRIDER_MESSAGES is a number"))
}

#[test]
fn one_message_never_acknowledged_keeps_itself_on_disk_and_nothing_else() {
    let mut stuck = Stuck::new();
    let mut most = (0, 0);
    for _ in 0..messages() / 2_000 {
        stuck.pass(2_000);
        let (bytes, files) = stuck.on_disk();
        most = (most.0.max(bytes), most.1.max(files));
    }
    assert!(most.0 <= BYTES_MAX && most.1 <= FILES_MAX, "{most:?}");
    let stats = stuck.broker.store().stats();
    assert!(stats.segments_vacated > 10 && stats.segments_rewritten > 0, "{stats:?}");
    println!("at most {} bytes in {} files; {stats:?}", most.0, most.1);

    // Whoever reads the topic itself is told what is gone, and gets the rest in its place.
    let mut reader = Peer::new(&stuck.broker);
    let _reply: SubscribeReply = reader.ask(&subscribe(9, "jobs", None, Start::Earliest)).unwrap();
    let delivered = reader.delivered();
    assert_eq!(delivered[0], (0, "0".to_string()));
    for (offset, text) in &delivered {
        assert_eq!(text, &offset.to_string(), "offsets stay");
    }

    // Power loss: the stuck message comes again, and nothing that was acknowledged.
    let Stuck { broker, disk, published, .. } = stuck;
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_with(Arc::new(disk.reopen()), options());
    let mut worker = Worker::new(&broker, "jobs", 3);
    let leased = worker.leases();
    let got: Vec<(u64, &str)> = leased.iter().map(|one| (one.offset, one.text.as_str())).collect();
    assert_eq!(got, [(0, "0")]);
    assert!(worker.ack(&leased).unwrap().exceptions.is_empty());
    let mut producer = Peer::new(&broker);
    publish_range(&mut producer, "jobs", published..published + 5, 5);
    let next: Vec<u64> = worker.leases().iter().map(|one| one.offset).collect();
    assert_eq!(next, (published..published + 5).collect::<Vec<_>>());
}

#[test]
fn readers_of_a_queue_are_told_of_what_is_kept_no_longer() {
    let mut stuck = Stuck::new();
    for _ in 0..20 {
        stuck.pass(2_000);
    }
    let mut reader = Peer::new(&stuck.broker);
    let much = Subscribe {
        credit_messages: 100_000,
        credit_bytes: 64 << 20,
        ..subscribe(9, "jobs", None, Start::Earliest)
    };
    let _reply: SubscribeReply = reader.ask(&much).unwrap();
    let (mut gone, mut came) = (0, 0);
    loop {
        let delivered = reader.delivered();
        if delivered.is_empty() {
            break;
        }
        came += delivered.len() as u64;
    }
    for gap in reader.take::<Gap>() {
        assert_eq!(gap.reason, GapReason::Retention);
        gone += gap.to.0 - gap.from.0;
    }
    assert!(gone > 10_000, "{gone} are gone");
    assert_eq!(gone + came, stuck.published, "each is delivered or told");
}

#[test]
fn seek_into_what_is_kept_no_longer_evicts_it_and_delivers_the_rest() {
    let mut stuck = Stuck::new();
    for _ in 0..20 {
        stuck.pass(2_000);
    }
    let seek = Seek {
        topic: "jobs".to_string(),
        name: postrider_core::metadata::QUEUE_SUBSCRIPTION.to_string(),
        to: Start::Offset(Offset(0)),
    };
    let _sought: SeekReply = stuck.producer.ask(&seek).unwrap();
    let mut got = Vec::new();
    for _ in 0..100 {
        stuck.tick();
        let leased = stuck.worker.leases();
        got.extend(leased.iter().map(|one| one.offset));
        if !leased.is_empty() {
            assert!(stuck.worker.ack(&leased).unwrap().exceptions.is_empty());
        }
    }
    let again = &stuck.holder.leases();
    got.extend(again.iter().map(|one| one.offset));
    got.sort_unstable();
    got.dedup();
    let request = DescribeQueue { topic: "jobs".to_string(), subscription: None };
    let numbers: DescribeQueueReply = stuck.producer.ask(&request).unwrap();
    let numbers = numbers.partitions[0];
    assert!(numbers.evicted > 10_000, "{numbers:?}");
    assert_eq!(numbers.evicted + got.len() as u64, stuck.published, "{numbers:?}");
    assert_eq!(got.last(), Some(&(stuck.published - 1)));
}

#[test]
fn acknowledging_the_stuck_message_lets_the_rest_go() {
    let mut stuck = Stuck::new();
    for _ in 0..20 {
        stuck.pass(2_000);
    }
    let held = std::mem::take(&mut stuck.held);
    assert!(stuck.holder.ack(&held).unwrap().exceptions.is_empty());
    for _ in 0..5 {
        stuck.pass(200);
    }
    for _ in 0..12 {
        stuck.tick();
    }
    let mut reader = Peer::new(&stuck.broker);
    let attached = reader.subscribe(9, "jobs", None);
    assert!(attached.partitions[0].next > Offset(30_000), "the log begins behind it");
    assert!(stuck.on_disk().0 <= BYTES_MAX);
}
