//! Subscriptions by pattern through the join: each topic has its own from its first message, whatever crashes.

use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::open_sim;
use crate::peer::{Peer, publish};
use crate::queues::{create_queue, refusal};

fn pattern(text: &str) -> CreateSubscription {
    CreateSubscription {
        topic: text.to_string(),
        name: "audit".to_string(),
        start: Start::Earliest,
        queue: None,
        if_not_exists: false,
    }
}

fn subscriptions(peer: &mut Peer, topic: &str) -> Vec<(String, u64)> {
    let listed: ListSubscriptionsReply =
        peer.ask(&ListSubscriptions { topic: topic.to_string() }).unwrap();
    let lag = |one: &SubscriptionDescription| one.partitions.iter().map(|at| at.lag).sum();
    listed.subscriptions.iter().map(|one| (one.name.clone(), lag(one))).collect()
}

#[test]
fn a_topic_of_a_pattern_keeps_its_first_message_for_it_through_power_loss() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    peer.create_topic("orders.eu", 1);
    let _created: CreateSubscriptionReply = peer.ask(&pattern("orders.*")).unwrap();
    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);
    let disk = disk.reopen();
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    let topic = peer.create_topic("orders.us", 2);
    let epoch = peer.leader_epoch("orders.us");
    // No tick comes in between, and nobody has asked for the subscription.
    peer.send_event(&publish(topic, epoch, ProducerId::NONE, 0, &["first"]));
    peer.settle();
    assert_eq!(peer.confirms().len(), 1);
    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    let mut peer = Peer::new(&broker);
    assert_eq!(subscriptions(&mut peer, "orders.us"), [("audit".to_string(), 1)]);
    let attached = peer.subscribe(1, "orders.us", Some("audit"));
    assert_eq!(attached.partitions[0].next, Offset(0));
    assert_eq!(peer.delivered(), [(0, "first".to_string())]);
}

#[test]
fn a_pattern_is_deleted_with_its_subscriptions_and_no_others() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    peer.create_topic("orders.eu", 1);
    let _own = peer.subscribe(1, "orders.eu", Some("billing"));
    let _jobs: CreateQueueReply =
        peer.ask(&create_queue("orders.jobs", QueuePolicy::default())).unwrap();
    let _created: CreateSubscriptionReply = peer.ask(&pattern("orders.*")).unwrap();
    let again = refusal::<_, CreateSubscriptionReply>(&mut peer, &pattern("orders.*"));
    assert_eq!(again, ErrorCode::SubscriptionExists);
    let known = CreateSubscription { if_not_exists: true, ..pattern("orders.*") };
    assert!(!peer.ask::<_, CreateSubscriptionReply>(&known).unwrap().created);
    let names = |listed: Vec<(String, u64)>| -> Vec<String> {
        let mut names: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    assert_eq!(names(subscriptions(&mut peer, "orders.eu")), ["audit", "billing"]);
    assert_eq!(names(subscriptions(&mut peer, "orders.jobs")), ["default"]);
    let delete = DeleteSubscription { topic: "orders.*".to_string(), name: "audit".to_string() };
    let _deleted: DeleteSubscriptionReply = peer.ask(&delete).unwrap();
    assert_eq!(names(subscriptions(&mut peer, "orders.eu")), ["billing"]);
    let gone = refusal::<_, DeleteSubscriptionReply>(&mut peer, &delete);
    assert_eq!(gone, ErrorCode::UnknownSubscription);
    let queue = CreateSubscription { queue: Some(QueuePolicy::default()), ..pattern("orders.*") };
    let refused = refusal::<_, CreateSubscriptionReply>(&mut peer, &queue);
    assert_eq!(refused, ErrorCode::Unsupported);
    let offset = CreateSubscription { start: Start::Offset(Offset(3)), ..pattern("orders.*") };
    assert_eq!(refusal::<_, CreateSubscriptionReply>(&mut peer, &offset), ErrorCode::BadRequest);
}

#[test]
fn patterns_are_listed_with_their_topics_until_they_are_deleted() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = Peer::new(&broker);
    let listed = |peer: &mut Peer| -> Vec<(String, String, u32)> {
        let reply: ListPatternsReply = peer.ask(&ListPatterns {}).unwrap();
        reply.patterns.into_iter().map(|one| (one.pattern, one.name, one.topics)).collect()
    };
    assert_eq!(listed(&mut peer), []);
    peer.create_topic("orders.eu", 1);
    let own = CreateSubscription { topic: "orders.eu".to_string(), ..pattern("") };
    let _own: CreateSubscriptionReply = peer.ask(&own).unwrap();
    for text in ["orders.*", "*"] {
        let _created: CreateSubscriptionReply = peer.ask(&pattern(text)).unwrap();
    }
    peer.create_topic("orders.us", 1);
    drop(peer);
    disk.crash(CrashKind::Power);
    drop(broker);

    let broker = open_sim(&disk.reopen());
    let mut peer = Peer::new(&broker);
    // Each topic keeps the one that it had first of that name: orders.eu its own.
    let found = listed(&mut peer);
    let names: Vec<_> = found.iter().map(|one| (one.0.as_str(), one.1.as_str())).collect();
    assert_eq!(names, [("*", "audit"), ("orders.*", "audit")]);
    assert_eq!(found.iter().map(|one| one.2).sum::<u32>(), 1, "orders.us: {found:?}");
    let deleted = DeleteSubscription { topic: "*".to_string(), name: "audit".to_string() };
    let _deleted: DeleteSubscriptionReply = peer.ask(&deleted).unwrap();
    assert_eq!(listed(&mut peer).len(), 1);
}
