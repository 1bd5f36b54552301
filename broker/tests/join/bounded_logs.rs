//! Log topics of bounded length and age, through the join: what streams get, and what they are told of the rest.

use postrider_broker::join::{Broker, BrokerOptions};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::bounds::publish_one;
use crate::consuming::{later, offsets, pass};
use crate::peer::{Peer, publish, subscribe, topic_config};
use crate::worker::{Worker, consume, publish_range};
use crate::{open_sim, open_with};

const TTL_MS: u64 = 10_000;

const NONE: TopicBounds = TopicBounds {
    message_ttl_ms: None,
    expired: Expired::Drop,
    max_messages: None,
    max_bytes: None,
    overflow: Overflow::Reject,
    dedup_window_ms: None,
};

fn newest(max: u64) -> TopicBounds {
    TopicBounds { max_messages: Some(max), overflow: Overflow::DropOldest, ..NONE }
}

fn create(broker: &Broker, bounds: TopicBounds) -> Peer {
    let mut peer = Peer::new(broker);
    let config = TopicConfig { bounds, ..topic_config(1) };
    let request = CreateTopic { name: "log".to_string(), config, if_not_exists: false };
    let _created: CreateTopicReply = peer.ask(&request).unwrap();
    peer
}

fn alter(peer: &mut Peer, bounds: BoundsChange) {
    let request = AlterTopic {
        name: "log".to_string(),
        partitions: None,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds,
    };
    let _altered: AlterTopicReply = peer.ask(&request).unwrap();
}

fn gaps(peer: &mut Peer) -> Vec<(u64, u64, GapReason)> {
    peer.take::<Gap>().into_iter().map(|gap| (gap.from.0, gap.to.0, gap.reason)).collect()
}

fn delivered(peer: &mut Peer) -> Vec<u64> {
    peer.pump();
    peer.delivered().into_iter().map(|(offset, _text)| offset).collect()
}

fn more_credit(peer: &Peer, handle: u32) {
    let handle = SubscriptionHandle(handle);
    peer.send_event(&Credit { handle, messages: 1_000, bytes: 1 << 20 });
}

#[test]
fn a_stream_is_told_of_messages_that_are_older_than_their_time_to_live() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, TopicBounds { message_ttl_ms: Some(TTL_MS), ..NONE });
    publish_range(&mut peer, "log", 0..10, 3);
    // One that takes nothing yet, and one that has taken all.
    let mut slow = Peer::new(&broker);
    let no_credit = Subscribe {
        credit_messages: 0,
        credit_bytes: 0,
        ..subscribe(1, "log", Some("slow"), Start::Earliest)
    };
    let _attached: SubscribeReply = slow.ask(&no_credit).unwrap();
    let mut quick = Peer::new(&broker);
    let _attached = quick.subscribe(1, "log", None);
    assert_eq!(delivered(&mut quick), (0..10).collect::<Vec<u64>>());
    peer.now = later(TTL_MS / 2);
    publish_range(&mut peer, "log", 10..12, 2);

    for reader in [&mut slow, &mut quick] {
        reader.now = later(TTL_MS);
    }
    more_credit(&slow, 1);
    assert_eq!(
        (delivered(&mut slow), gaps(&mut slow)),
        (vec![10, 11], vec![(0, 10, GapReason::Expired)])
    );
    assert_eq!((delivered(&mut quick), gaps(&mut quick)), (vec![10, 11], vec![]));
    let mut late = Peer::new(&broker);
    late.now = later(2 * TTL_MS);
    let _attached = late.subscribe(1, "log", None);
    assert_eq!(
        (delivered(&mut late), gaps(&mut late)),
        (vec![], vec![(0, 12, GapReason::Expired)])
    );
    alter(&mut peer, BoundsChange { message_ttl_ms: Some(None), ..BoundsChange::default() });
    let mut again = Peer::new(&broker);
    let _attached = again.subscribe(1, "log", None);
    assert_eq!(delivered(&mut again), (0..12).collect::<Vec<u64>>(), "they are still kept");
}

#[test]
fn a_queue_on_a_log_topic_gets_nothing_that_is_too_old_or_too_many() {
    for (bounds, expected) in
        [(TopicBounds { message_ttl_ms: Some(TTL_MS), ..NONE }, (10, 0)), (newest(2), (0, 10))]
    {
        let disk = SimDisk::new(1);
        let broker = open_sim(&disk);
        let mut peer = create(&broker, bounds);
        let request = CreateSubscription {
            topic: "log".to_string(),
            name: "work".to_string(),
            start: Start::Earliest,
            queue: Some(QueuePolicy::default()),
            if_not_exists: false,
        };
        let _created: CreateSubscriptionReply = peer.ask(&request).unwrap();
        publish_range(&mut peer, "log", 0..10, 1);
        peer.now = later(TTL_MS / 2);
        publish_range(&mut peer, "log", 10..12, 1);
        pass(&broker, TTL_MS, TTL_MS + 100);
        let work = Some("work".to_string());
        let request = Consume { subscription: work.clone(), ..consume("log", 1) };
        let mut worker = Worker::with(&broker, &request);
        worker.peer.now = later(TTL_MS + 100);
        assert_eq!(offsets(&worker.leases()), [10, 11]);
        let question = DescribeQueue { topic: "log".to_string(), subscription: work };
        let reply: DescribeQueueReply = peer.ask(&question).unwrap();
        let numbers = reply.partitions[0];
        assert_eq!((numbers.expired, numbers.evicted), expected);
    }
}

#[test]
fn the_newest_messages_are_delivered_where_older_ones_make_room() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, newest(5));
    let mut slow = Peer::new(&broker);
    let little =
        Subscribe { credit_messages: 1, ..subscribe(1, "log", Some("slow"), Start::Earliest) };
    let _attached: SubscribeReply = slow.ask(&little).unwrap();
    publish_range(&mut peer, "log", 0..3, 1);
    assert_eq!(delivered(&mut slow), [0]);
    publish_range(&mut peer, "log", 3..12, 3);
    more_credit(&slow, 1);
    let expected: Vec<u64> = (7..12).collect();
    assert_eq!(delivered(&mut slow), expected, "from the middle of a batch");
    assert_eq!(gaps(&mut slow), [(1, 7, GapReason::Overflow)]);

    drop((peer, slow));
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    let mut reader = Peer::new(&broker);
    let _attached = reader.subscribe(2, "log", None);
    assert_eq!(delivered(&mut reader), expected);
    assert_eq!(gaps(&mut reader), [], "the log begins there");
    let _attached: SubscribeReply =
        reader.ask(&subscribe(3, "log", None, Start::Offset(Offset(0)))).unwrap();
    assert_eq!(delivered(&mut reader), expected);
    assert_eq!(gaps(&mut reader), [(0, 7, GapReason::Overflow)]);
    alter(&mut reader, BoundsChange { max_messages: Some(Some(100)), ..BoundsChange::default() });
    let _attached = reader.subscribe(4, "log", None);
    assert_eq!(delivered(&mut reader), expected, "what was passed does not come back");
}

#[test]
fn a_full_log_rejects_publishes_until_retention_makes_room() {
    let mut options = BrokerOptions::default();
    options.store.segment_bytes_max = 64 << 10;
    let interval = options.retention_check_interval;
    let broker = open_with(std::sync::Arc::new(SimDisk::new(1)), options);
    let mut peer = create(&broker, TopicBounds { max_messages: Some(9), ..NONE });
    let metadata: MetadataReply = peer.ask(&Metadata { topics: vec!["log".to_string()] }).unwrap();
    let epoch = metadata.topics[0].partitions[0].leader_epoch;
    let text = "x".repeat(30 << 10);
    for number in 0..9 {
        peer.send_event(&publish(metadata.topics[0].id, epoch, ProducerId::NONE, number, &[&text]));
        peer.settle();
    }
    assert_eq!(peer.confirms().len(), 1, "all, in one run: none was rejected");
    assert_eq!(publish_one(&mut peer, "log"), Some(ErrorCode::TopicFull));
    let request = AlterTopic {
        name: "log".to_string(),
        partitions: None,
        retention_ms: None,
        retention_bytes: Some(Some(64 << 10)),
        message_bytes_max: None,
        bounds: BoundsChange::default(),
    };
    let _altered: AlterTopicReply = peer.ask(&request).unwrap();
    for _ in 0..40 {
        peer.now.monotonic += interval / 4;
        broker.tick(peer.now);
        broker.store().maintain(peer.now.wall);
        while broker.store().step() {}
    }
    assert_eq!(publish_one(&mut peer, "log"), None);
}

#[test]
fn segments_that_newer_messages_have_passed_leave_the_disk() {
    let mut options = BrokerOptions::default();
    options.store.segment_bytes_max = 64 << 10;
    let interval = options.retention_check_interval;
    let broker = open_with(std::sync::Arc::new(SimDisk::new(1)), options);
    let mut peer = create(&broker, newest(4));
    let metadata: MetadataReply = peer.ask(&Metadata { topics: vec!["log".to_string()] }).unwrap();
    let epoch = metadata.topics[0].partitions[0].leader_epoch;
    let text = "x".repeat(30 << 10);
    for number in 0..100 {
        peer.send_event(&publish(metadata.topics[0].id, epoch, ProducerId::NONE, number, &[&text]));
        peer.settle();
        peer.now.monotonic += interval / 4;
        broker.tick(peer.now);
        broker.store().maintain(peer.now.wall);
    }
    let stats = broker.store().stats();
    assert!(stats.segment_files_recycled > 20, "{stats:?}");
    let mut reader = Peer::new(&broker);
    let _attached = reader.subscribe(1, "log", None);
    assert_eq!(delivered(&mut reader), [96, 97, 98, 99]);
}

#[test]
fn a_full_log_rejects_delayed_messages_too() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = create(&broker, TopicBounds { max_messages: Some(2), ..NONE });
    publish_range(&mut peer, "log", 0..2, 1);
    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);
    // The first publish of a leadership is a delayed one.
    let broker = open_sim(&disk.reopen());
    let mut peer = Peer::new(&broker);
    let metadata: MetadataReply = peer.ask(&Metadata { topics: vec!["log".to_string()] }).unwrap();
    let (id, epoch) = (metadata.topics[0].id, metadata.topics[0].partitions[0].leader_epoch);
    let publish = publish(id, epoch, ProducerId::NONE, 0, &["later"]);
    peer.send_event(&PublishDelayed { deliver_at: later(TTL_MS).wall, publish });
    peer.settle();
    let outcome = peer.confirms().pop().unwrap().outcome;
    assert!(
        matches!(&outcome, Outcome::Rejected { error } if error.code == ErrorCode::TopicFull),
        "{outcome:?}"
    );
}
