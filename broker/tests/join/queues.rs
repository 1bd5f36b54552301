//! Queues through the join: administration.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_broker::join::{Broker, QUEUES_APART_MAX, QueueDepth};
use postrider_core::metadata::QUEUE_SUBSCRIPTION;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::consuming::pass;
use crate::open_sim;
use crate::peer::{Peer, subscribe};
use crate::worker::{Worker, consume, fill, policy, publish_range};

pub(crate) fn create_queue(name: &str, policy: QueuePolicy) -> CreateQueue {
    CreateQueue {
        name: name.to_string(),
        partitions: 1,
        durability: Durability::Fsync,
        message_bytes_max: None,
        bounds: TopicBounds::default(),
        policy,
        if_not_exists: false,
    }
}

fn create_subscription(topic: &str, name: &str, queue: Option<QueuePolicy>) -> CreateSubscription {
    CreateSubscription {
        topic: topic.to_string(),
        name: name.to_string(),
        start: Start::Earliest,
        queue,
        if_not_exists: false,
    }
}

pub(crate) fn refusal<Q: Message, A: Message + std::fmt::Debug>(
    peer: &mut Peer,
    request: &Q,
) -> ErrorCode {
    peer.ask::<Q, A>(request).unwrap_err().code
}

#[test]
fn queues_and_their_subscriptions_survive_power_loss() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    let jobs = create_queue("jobs", QueuePolicy::default());
    let created: CreateQueueReply = peer.ask(&jobs).unwrap();
    assert!(created.created);
    assert_eq!(refusal::<_, CreateQueueReply>(&mut peer, &jobs), ErrorCode::TopicExists);
    let again = CreateQueue { if_not_exists: true, ..jobs };
    let found: CreateQueueReply = peer.ask(&again).unwrap();
    assert_eq!((found.id, found.created), (created.id, false));
    peer.create_topic("orders", 1);
    let billing = create_subscription("orders", "billing", Some(QueuePolicy::default()));
    let _billing: CreateSubscriptionReply = peer.ask(&billing).unwrap();
    let twice = refusal::<_, CreateSubscriptionReply>(&mut peer, &billing);
    assert_eq!(twice, ErrorCode::SubscriptionExists);
    let paused = QueuePolicy { paused: true, ..QueuePolicy::default() };
    let alter = AlterQueue { topic: "jobs".to_string(), subscription: None, policy: paused };
    let _altered: AlterQueueReply = peer.ask(&alter).unwrap();

    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    let mut peer = Peer::new(&broker);
    let topic: DescribeTopicReply = peer.ask(&DescribeTopic { name: "jobs".to_string() }).unwrap();
    assert_eq!((topic.id, topic.config.kind), (created.id, TopicKind::Queue));
    assert_eq!(topic.subscriptions[0].name, QUEUE_SUBSCRIPTION);
    let same = CreateSubscription { if_not_exists: true, ..billing.clone() };
    let found: CreateSubscriptionReply = peer.ask(&same).unwrap();
    assert!(!found.created);
    let stream = CreateSubscription { queue: None, if_not_exists: true, ..billing };
    let other_mode = refusal::<_, CreateSubscriptionReply>(&mut peer, &stream);
    assert_eq!(other_mode, ErrorCode::SubscriptionExists);
}

#[test]
fn a_stream_on_a_queue_is_refused_with_the_way_out_and_browsing_is_not() {
    let broker = open_sim(&SimDisk::new(1));
    let mut peer = Peer::new(&broker);
    let _jobs: CreateQueueReply = peer.ask(&create_queue("jobs", QueuePolicy::default())).unwrap();
    let mut named = |name: &str| {
        let request = subscribe(1, "jobs", Some(name), Start::Earliest);
        peer.ask::<_, SubscribeReply>(&request).unwrap_err()
    };
    let other = named("audit");
    assert_eq!(other.code, ErrorCode::WrongTopicKind);
    assert!(other.message.contains("postrider subscription create jobs NAME --queue"), "{other}");
    assert_eq!(named(QUEUE_SUBSCRIPTION).code, ErrorCode::WrongSubscriptionMode);
    let _browsing = peer.subscribe(2, "jobs", None);
}

#[test]
fn a_queue_is_created_by_its_own_request_and_within_its_ranges() {
    let broker = open_sim(&SimDisk::new(1));
    let mut peer = Peer::new(&broker);
    let config = TopicConfig {
        partitions: 1,
        kind: TopicKind::Queue,
        durability: Durability::Fsync,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: TopicBounds::default(),
    };
    let topic = CreateTopic { name: "jobs".to_string(), config, if_not_exists: false };
    let refused = peer.ask::<_, CreateTopicReply>(&topic).unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongTopicKind);
    assert!(refused.message.contains("postrider queue create jobs"), "{refused}");
    let bad = create_queue("jobs", QueuePolicy { lease_ms: 1, ..QueuePolicy::default() });
    assert_eq!(refusal::<_, CreateQueueReply>(&mut peer, &bad), ErrorCode::InvalidConfig);
    let long = create_queue(&"x".repeat(200), QueuePolicy::default());
    assert_eq!(refusal::<_, CreateQueueReply>(&mut peer, &long), ErrorCode::InvalidTopicName);
    let nowhere = AlterQueue {
        topic: "jobs".to_string(),
        subscription: None,
        policy: QueuePolicy::default(),
    };
    assert_eq!(refusal::<_, AlterQueueReply>(&mut peer, &nowhere), ErrorCode::UnknownTopic);
}

// B5
#[test]
fn what_one_subscription_settles_is_unsettled_for_the_others() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    peer.create_topic("orders", 1);
    for name in ["billing", "audit"] {
        let create = CreateSubscription {
            topic: "orders".to_string(),
            name: name.to_string(),
            start: Start::Earliest,
            queue: Some(QueuePolicy::default()),
            if_not_exists: false,
        };
        let _created: CreateSubscriptionReply = peer.ask(&create).unwrap();
    }
    let _stream = peer.subscribe(1, "orders", Some("search"));
    publish_range(&mut peer, "orders", 0..20, 5);
    let worker = |name: &str, member| {
        let subscription = Some(name.to_string());
        Worker::with(&broker, &Consume { subscription, ..consume("orders", member) })
    };
    let mut billing = worker("billing", 1);
    let leased = billing.leases();
    assert_eq!(leased.len(), 20);
    let _acked = billing.ack(&leased).unwrap();
    let purge =
        PurgeQueue { topic: "orders".to_string(), subscription: Some("billing".to_string()) };
    let _purged: PurgeQueueReply = peer.ask(&purge).unwrap();
    assert_eq!(worker("audit", 2).leases().len(), 20);
    assert_eq!(peer.delivered().len(), 20);
}

#[test]
fn metrics_tell_how_deep_a_queue_is_also_when_nobody_used_it_since_the_start() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let _producer = fill(&broker, "jobs", 100, 10);
    let mut peer = Peer::new(&broker);
    let _idle: CreateQueueReply = peer.ask(&create_queue("idle", policy())).unwrap();
    let mut worker = Worker::with(&broker, &Consume { credit_messages: 30, ..consume("jobs", 1) });
    let leased = worker.leases();
    let _acked = worker.ack(&leased[..10]).unwrap();
    pass(&broker, 0, 500);
    let found = depths(&broker);
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["idle", "jobs"]);
    let jobs = found["jobs"];
    assert_eq!((jobs.ready, jobs.leased, found["idle"]), (70, 20, QueueDepth::default()));
    assert_eq!(jobs.oldest_ready, Duration::from_millis(500));
    drop((worker, peer));
    disk.crash(CrashKind::Power);
    drop(broker);

    let broker = open_sim(&disk.reopen());
    pass(&broker, 600, 1_000);
    let jobs = depths(&broker)["jobs"];
    assert_eq!((jobs.ready, jobs.leased), (90, 0), "its state was folded by nobody else");
    assert_eq!(jobs.oldest_ready, Duration::from_millis(1_000));
}

fn depths(broker: &Broker) -> BTreeMap<String, QueueDepth> {
    let depths = broker.metrics().queue_depths;
    assert_eq!(depths.others, QueueDepth::default());
    depths.queues.into_iter().map(|(topic, _name, depth)| (topic, depth)).collect()
}

#[test]
fn queues_beyond_the_bound_of_metrics_are_one_sum() {
    let broker = open_sim(&SimDisk::new(1));
    let mut peer = Peer::new(&broker);
    for number in 0..QUEUES_APART_MAX {
        let name = format!("queue-{number:04}");
        let _created: CreateQueueReply = peer.ask(&create_queue(&name, policy())).unwrap();
    }
    let _zeta = fill(&broker, "zeta", 7, 7);
    pass(&broker, 0, 500);
    let found = broker.metrics().queue_depths;
    assert_eq!(found.queues.len(), QUEUES_APART_MAX);
    assert_eq!(found.others.ready, 7, "it comes last by name");
}
