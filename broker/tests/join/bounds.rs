//! Queues that are full, and messages that are too old, through the join.

use postrider_broker::join::Broker;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::consuming::{dead_letters, describe, later, offsets, pass};
use crate::open_sim;
use crate::peer::{Peer, publish};
use crate::queues::{create_queue, refusal};
use crate::worker::{Worker, publish_range};

const TTL_MS: u64 = 10_000;

fn create(broker: &Broker, bounds: TopicBounds) -> Peer {
    let mut peer = Peer::new(broker);
    let jobs = CreateQueue { bounds, ..create_queue("jobs", QueuePolicy::default()) };
    let _created: CreateQueueReply = peer.ask(&jobs).unwrap();
    peer
}

fn ttl(expired: Expired) -> TopicBounds {
    TopicBounds { message_ttl_ms: Some(TTL_MS), expired, ..TopicBounds::default() }
}

/// A worker that comes at this time.
fn worker_at(broker: &Broker, ms: u64) -> Worker {
    let mut worker = Worker::new(broker, "jobs", 1);
    worker.peer.now = later(ms);
    pass(broker, ms, ms + 50);
    worker
}

#[test]
fn messages_older_than_their_time_to_live_are_not_handed_out_also_after_power_loss() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, ttl(Expired::Drop));
    publish_range(&mut peer, "jobs", 0..1_000, 7);
    peer.now = later(TTL_MS / 2);
    publish_range(&mut peer, "jobs", 1_000..1_010, 10);
    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);

    let broker = open_sim(&disk.reopen());
    let mut worker = worker_at(&broker, TTL_MS + 1);
    let leased = worker.leases();
    assert_eq!(offsets(&leased), (1_000..1_010).collect::<Vec<u64>>());
    assert_eq!(leased[0].text, "1000");
    let _acked = worker.ack(&leased[..1]).unwrap();
    let numbers = describe(&mut worker.peer).partitions[0];
    assert_eq!((numbers.expired, numbers.acked, numbers.leased), (1_000, 1, 9));
    pass(&broker, TTL_MS + 100, 2 * TTL_MS);
    let numbers = describe(&mut worker.peer).partitions[0];
    assert_eq!((numbers.expired, numbers.leased), (1_000, 9), "a lease is not taken away");
}

#[test]
fn a_queue_that_nobody_consumes_gets_rid_of_what_is_too_old() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, ttl(Expired::Drop));
    publish_range(&mut peer, "jobs", 0..10, 1);
    pass(&broker, 25, TTL_MS - 25);
    assert_eq!(describe(&mut peer).partitions[0].ready, 10);
    pass(&broker, TTL_MS, TTL_MS + 100);
    let numbers = describe(&mut peer).partitions[0];
    assert_eq!((numbers.ready, numbers.expired, numbers.floor), (0, 10, Offset(10)));
}

#[test]
fn expired_messages_go_to_the_dead_letter_topic_once_where_the_topic_says_so() {
    for steps in [0, 1, 2, 3, 5, 8, 100] {
        let disk = SimDisk::new(steps);
        let broker = open_sim(&disk);
        let mut peer = create(&broker, ttl(Expired::DeadLetter));
        publish_range(&mut peer, "jobs", 0..40, 3);
        pass(&broker, TTL_MS - 25, TTL_MS);
        for step in 0..steps {
            broker.tick(later(TTL_MS + 25 * step));
            let _one = broker.store().step();
        }
        drop(peer);
        disk.crash(CrashKind::Power);
        drop(broker);
        let broker = open_sim(&disk.reopen());
        let mut worker = worker_at(&broker, TTL_MS + 3_000);
        pass(&broker, TTL_MS + 3_000, TTL_MS + 6_000);
        assert!(worker.leases().is_empty());
        let letters = dead_letters(&broker);
        let mut values: Vec<u64> =
            letters.iter().map(|(value, _)| value.parse().unwrap()).collect();
        values.sort_unstable();
        assert_eq!(values, (0..40).collect::<Vec<u64>>(), "each once ({steps})");
        assert!(letters.iter().all(|(_, headers)| headers["dl.reason"] == "expired"));
        let numbers = describe(&mut worker.peer).partitions[0];
        assert_eq!((numbers.dead_lettered, numbers.floor), (40, Offset(40)));
    }
}

#[test]
fn messages_expire_after_a_start_though_nobody_uses_their_queue() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, ttl(Expired::DeadLetter));
    publish_range(&mut peer, "jobs", 0..5, 2);
    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    pass(&broker, TTL_MS - 100, TTL_MS + 2_000);
    assert_eq!(dead_letters(&broker).len(), 5, "only their dead letter topic is looked at");
}

#[test]
fn a_shorter_time_to_live_counts_for_what_is_there_and_none_lets_it_live() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, TopicBounds::default());
    publish_range(&mut peer, "jobs", 0..5, 1);
    let alter = |ttl_ms| AlterTopic {
        name: "jobs".to_string(),
        partitions: None,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: BoundsChange { message_ttl_ms: Some(ttl_ms), ..BoundsChange::default() },
    };
    let _altered: AlterTopicReply = peer.ask(&alter(Some(60_000))).unwrap();
    let _altered: AlterTopicReply = peer.ask(&alter(None)).unwrap();
    let mut worker = worker_at(&broker, 70_000);
    let leased = worker.leases();
    assert_eq!(leased.len(), 5);
    let _acked = worker.ack(&leased).unwrap();
    publish_range(&mut peer, "jobs", 5..10, 1);
    let _altered: AlterTopicReply = peer.ask(&alter(Some(1_000))).unwrap();
    pass(&broker, 80_000, 80_200);
    assert!(worker.leases().is_empty());
    assert_eq!(describe(&mut peer).partitions[0].expired, 5);
}

#[test]
fn a_lowered_bound_counts_though_nobody_uses_the_queue() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, TopicBounds::default());
    publish_range(&mut peer, "jobs", 0..50, 1);
    let mut peer = Peer::new(&broker);
    let alter = AlterTopic {
        name: "jobs".to_string(),
        partitions: None,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: BoundsChange {
            max_messages: Some(Some(10)),
            overflow: Some(Overflow::DropOldest),
            ..BoundsChange::default()
        },
    };
    let _altered: AlterTopicReply = peer.ask(&alter).unwrap();
    pass(&broker, 25, 500);
    // The bound is lifted before anybody looks.
    let bounds = BoundsChange { max_messages: Some(None), ..BoundsChange::default() };
    let _lifted: AlterTopicReply = peer.ask(&AlterTopic { bounds, ..alter }).unwrap();
    let numbers = describe(&mut peer).partitions[0];
    assert_eq!((numbers.ready, numbers.evicted), (10, 40));
}

#[test]
fn the_oldest_messages_make_room_where_the_topic_says_so() {
    for overflow in [Overflow::DropOldest, Overflow::DeadLetter] {
        let disk = SimDisk::new(1);
        let broker = open_sim(&disk);
        let bounds = TopicBounds { max_messages: Some(10), overflow, ..TopicBounds::default() };
        let mut peer = create(&broker, bounds);
        publish_range(&mut peer, "jobs", 0..100, 3);
        pass(&broker, 25, 2_000);
        let mut worker = worker_at(&broker, 2_025);
        assert_eq!(offsets(&worker.leases()), (90..100).collect::<Vec<u64>>());
        let numbers = describe(&mut peer).partitions[0];
        let letters = dead_letters(&broker);
        if overflow == Overflow::DropOldest {
            assert_eq!((numbers.evicted, letters.len()), (90, 0));
        } else {
            assert_eq!((numbers.dead_lettered, letters.len()), (90, 90));
            assert!(letters.iter().all(|(_, headers)| headers["dl.reason"] == "overflow"));
        }
    }
}

#[test]
fn a_full_queue_rejects_publishes_and_its_bound_survives_power_loss() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    let bounds = TopicBounds { max_messages: Some(3), ..TopicBounds::default() };
    let jobs = CreateQueue { bounds, ..create_queue("jobs", QueuePolicy::default()) };
    let _created: CreateQueueReply = peer.ask(&jobs).unwrap();
    publish_range(&mut peer, "jobs", 0..3, 1);
    assert_eq!(publish_one(&mut peer, "jobs"), Some(ErrorCode::TopicFull));

    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    let mut peer = Peer::new(&broker);
    assert_eq!(publish_one(&mut peer, "jobs"), Some(ErrorCode::TopicFull));
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    assert_eq!(leased.len(), 3);
    let _acked = worker.ack(&leased[..1]).unwrap();
    assert_eq!(publish_one(&mut peer, "jobs"), None, "one was settled");
    assert_eq!(publish_one(&mut peer, "jobs"), Some(ErrorCode::TopicFull));
    let raised = AlterTopic {
        name: "jobs".to_string(),
        partitions: None,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: BoundsChange { max_messages: Some(Some(4)), ..BoundsChange::default() },
    };
    let _altered: AlterTopicReply = peer.ask(&raised).unwrap();
    assert_eq!(publish_one(&mut peer, "jobs"), None, "the partition in use follows");
    assert_eq!(publish_one(&mut peer, "jobs"), Some(ErrorCode::TopicFull));
    let unkept = BoundsChange { max_bytes: Some(Some(1)), ..BoundsChange::default() };
    let refused =
        refusal::<_, AlterTopicReply>(&mut peer, &AlterTopic { bounds: unkept, ..raised });
    assert_eq!(refused, ErrorCode::Unsupported);
}

/// Publishes one message without a session; tells why it was rejected, if it was.
pub(crate) fn publish_one(peer: &mut Peer, topic: &str) -> Option<ErrorCode> {
    let metadata: MetadataReply = peer.ask(&Metadata { topics: vec![topic.to_string()] }).unwrap();
    let id = metadata.topics[0].id;
    let epoch = metadata.topics[0].partitions[0].leader_epoch;
    peer.send_event(&publish(id, epoch, ProducerId::NONE, 0, &["one"]));
    peer.settle();
    match peer.confirms().pop().unwrap().outcome {
        Outcome::Committed { .. } => None,
        Outcome::Rejected { error } => Some(error.code),
        other => panic!("neither done nor rejected: {other:?}"),
    }
}
