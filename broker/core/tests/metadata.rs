//! The image of the metadata: queues and their subscriptions, and what older brokers have written.
#![allow(clippy::unwrap_used, reason = "a test that goes wrong must fail")]

use bytes::BytesMut;
use postrider_core::metadata::{
    Applied, Command, Image, QUEUE_SUBSCRIPTION, TopicChange, complete_policy,
};
use postrider_protocol::codec::Writer;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{QueuePolicy, Start, TopicBounds, TopicConfig};
use postrider_protocol::types::*;

const TOPIC: TopicId = TopicId([3; 16]);
const OWN: SubscriptionId = SubscriptionId([4; 16]);

fn config(kind: TopicKind) -> TopicConfig {
    TopicConfig {
        partitions: 2,
        kind,
        durability: Durability::Fsync,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: TopicBounds::default(),
    }
}

fn policy() -> QueuePolicy {
    complete_policy("jobs", QueuePolicy::default())
}

fn create_queue() -> Command {
    Command::CreateQueue {
        id: TOPIC,
        name: "jobs".to_string(),
        config: config(TopicKind::Queue),
        created: TimestampMs(5),
        subscription: OWN,
        policy: policy(),
    }
}

fn create_topic() -> Command {
    Command::CreateTopic {
        id: TOPIC,
        name: "orders".to_string(),
        config: config(TopicKind::Log),
        created: TimestampMs(5),
    }
}

fn stream(id: u8, name: &str) -> Command {
    Command::CreateSubscription {
        topic: TOPIC,
        id: SubscriptionId([id; 16]),
        name: name.to_string(),
        start: Start::Latest,
    }
}

fn queue(id: u8, name: &str) -> Command {
    Command::CreateQueueSubscription {
        topic: TOPIC,
        id: SubscriptionId([id; 16]),
        name: name.to_string(),
        start: Start::Latest,
        policy: policy(),
    }
}

fn pattern(id: u8, pattern: &str, name: &str) -> Command {
    Command::CreatePattern {
        id: SubscriptionId([id; 16]),
        pattern: pattern.to_string(),
        name: name.to_string(),
        start: Start::Latest,
    }
}

fn image(commands: &[Command]) -> Image {
    let mut image = Image::default();
    for command in commands {
        apply(&mut image, command);
    }
    image
}

fn apply(image: &mut Image, command: &Command) -> Applied {
    image.check(command).unwrap();
    image.apply(image.end(), command).unwrap()
}

fn refusal(image: &Image, command: &Command) -> ErrorCode {
    image.check(command).unwrap_err().code
}

#[test]
fn a_queue_begins_with_its_own_subscription() {
    let mut image = Image::default();
    assert_eq!(apply(&mut image, &create_queue()), Applied::TopicCreated(TOPIC));
    let topic = image.topic_named("jobs").unwrap();
    assert_eq!((topic.config.kind, image.partitions()), (TopicKind::Queue, 2));
    let own = topic.subscription(QUEUE_SUBSCRIPTION).unwrap();
    assert_eq!((own.id, own.queue.as_ref()), (OWN, Some(&policy())));
    assert_eq!(own.start_on(PartitionId(1)), Start::Offset(Offset(0)));
    assert_eq!(refusal(&image, &create_queue()), ErrorCode::TopicExists);
}

#[test]
fn a_topic_of_kind_queue_is_created_as_a_queue_only() {
    let mut command = create_topic();
    if let Command::CreateTopic { config, .. } = &mut command {
        config.kind = TopicKind::Queue;
    }
    let error = Image::default().check(&command).unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongTopicKind);
    assert!(error.message.contains("postrider queue create orders"), "{error}");
}

#[test]
fn a_queue_takes_queue_subscriptions_and_a_log_takes_both() {
    let jobs = image(&[create_queue()]);
    assert_eq!(refusal(&jobs, &stream(7, "audit")), ErrorCode::WrongTopicKind);
    assert_eq!(jobs.check(&queue(7, "audit")), Ok(()));
    assert_eq!(refusal(&jobs, &queue(7, QUEUE_SUBSCRIPTION)), ErrorCode::SubscriptionExists);
    let orders = image(&[create_topic(), stream(7, "audit"), queue(8, "billing")]);
    let topic = orders.topic(TOPIC).unwrap();
    assert_eq!(topic.subscription("audit").unwrap().queue, None);
    assert_eq!(topic.subscription("billing").unwrap().queue, Some(policy()));
    assert_eq!(refusal(&orders, &queue(9, "audit")), ErrorCode::SubscriptionExists);
}

#[test]
fn a_policy_is_altered_in_queue_mode_only() {
    let mut orders = image(&[create_topic(), stream(7, "audit"), queue(8, "billing")]);
    let alter =
        |id: u8, policy| Command::AlterQueue { topic: TOPIC, id: SubscriptionId([id; 16]), policy };
    let paused = QueuePolicy { paused: true, ..policy() };
    let id = SubscriptionId([8; 16]);
    let altered = apply(&mut orders, &alter(8, paused.clone()));
    assert_eq!(altered, Applied::QueueAltered { topic: TOPIC, id });
    let topic = orders.topic(TOPIC).unwrap();
    assert_eq!(topic.subscription("billing").unwrap().queue, Some(paused.clone()));
    assert_eq!(refusal(&orders, &alter(7, paused.clone())), ErrorCode::WrongSubscriptionMode);
    assert_eq!(refusal(&orders, &alter(9, paused)), ErrorCode::UnknownSubscription);
    let nothing = QueuePolicy { max_failures: 0, ..policy() };
    assert_eq!(refusal(&orders, &alter(8, nothing)), ErrorCode::InvalidConfig);
    let circle = QueuePolicy { dead_letter: Some("orders".to_string()), ..policy() };
    assert_eq!(refusal(&orders, &alter(8, circle)), ErrorCode::InvalidConfig);
}

#[test]
fn the_own_subscription_goes_with_its_queue_only() {
    let jobs = image(&[create_queue(), queue(7, "audit")]);
    let delete = |id| Command::DeleteSubscription { topic: TOPIC, id };
    assert_eq!(refusal(&jobs, &delete(OWN)), ErrorCode::BadRequest);
    assert_eq!(jobs.check(&delete(SubscriptionId([7; 16]))), Ok(()));
    assert_eq!(jobs.check(&Command::DeleteTopic { id: TOPIC }), Ok(()));
}

#[test]
fn a_queue_has_no_retention() {
    let jobs = image(&[create_queue()]);
    let alter = |change| Command::AlterTopic { id: TOPIC, change };
    let keep = TopicChange { retention_ms: Some(Some(5)), ..TopicChange::default() };
    assert_eq!(refusal(&jobs, &alter(keep)), ErrorCode::InvalidConfig);
    let more = TopicChange { partitions: Some(5), ..TopicChange::default() };
    assert_eq!(jobs.check(&alter(more)), Ok(()));
}

fn queue_named(id: u8, name: &str, dead_letter: &str) -> Command {
    Command::CreateQueue {
        id: TopicId([id; 16]),
        name: name.to_string(),
        config: config(TopicKind::Queue),
        created: TimestampMs(5),
        subscription: SubscriptionId([id; 16]),
        policy: QueuePolicy { dead_letter: Some(dead_letter.to_string()), ..policy() },
    }
}

#[test]
fn a_queue_whose_dead_letters_would_come_back_by_themselves_is_refused() {
    let mut image = image(&[queue_named(10, "a", "b"), queue_named(11, "b", "c")]);
    let closing = queue_named(12, "c", "a");
    assert_eq!(refusal(&image, &closing), ErrorCode::InvalidConfig, "a to b to c to a");
    let beside = queue_named(12, "c", "d");
    image.check(&beside).unwrap();
    apply(&mut image, &beside);
    let alter = |dead_letter: &str| Command::AlterQueue {
        topic: TopicId([12; 16]),
        id: SubscriptionId([12; 16]),
        policy: QueuePolicy { dead_letter: Some(dead_letter.to_string()), ..policy() },
    };
    assert_eq!(refusal(&image, &alter("b")), ErrorCode::InvalidConfig);
    image.check(&alter("e")).unwrap();
    let second = Command::CreateQueueSubscription {
        topic: TopicId([12; 16]),
        id: SubscriptionId([13; 16]),
        name: "again".to_string(),
        start: Start::Earliest,
        policy: QueuePolicy { dead_letter: Some("a".to_string()), ..policy() },
    };
    assert_eq!(refusal(&image, &second), ErrorCode::InvalidConfig);
    let two_ways_to_one_end = Command::CreateQueueSubscription {
        topic: TopicId([10; 16]),
        id: SubscriptionId([13; 16]),
        name: "again".to_string(),
        start: Start::Earliest,
        policy: QueuePolicy { dead_letter: Some("c".to_string()), ..policy() },
    };
    image.check(&two_ways_to_one_end).unwrap();
}

#[test]
fn a_circle_that_an_older_broker_allowed_is_applied_and_looked_through_once() {
    let mut image = image(&[queue_named(10, "a", "b")]);
    // Without the check: it was appended before there was one.
    image.apply(image.end(), &queue_named(11, "b", "a")).unwrap();
    image.check(&queue_named(12, "c", "a")).unwrap();
}

fn create_named(id: u8, name: &str) -> Command {
    let Command::CreateTopic { config, created, .. } = create_topic() else { unreachable!() };
    Command::CreateTopic { id: TopicId([id; 16]), name: name.to_string(), config, created }
}

#[test]
fn a_pattern_gives_its_subscription_to_what_is_there_and_to_what_comes() {
    let mut image = image(&[create_named(1, "orders.eu"), create_named(2, "mail"), create_queue()]);
    let id = |topic: u8| SubscriptionId([9 ^ topic; 16]);
    let given = apply(&mut image, &pattern(9, "orders.*", "audit"));
    assert_eq!(given, Applied::PatternCreated(vec![(TopicId([1; 16]), id(1))]));
    let on = |image: &Image, name: &str| {
        image
            .topic_named(name)
            .unwrap()
            .subscription("audit")
            .map(|one| one.start_on(PartitionId(0)))
    };
    assert_eq!(on(&image, "orders.eu"), Some(Start::Latest));
    assert_eq!((on(&image, "mail"), on(&image, "jobs")), (None, None));
    apply(&mut image, &create_named(6, "orders.us"));
    assert_eq!(on(&image, "orders.us"), Some(Start::Offset(Offset(0))), "from its first message");
    assert_eq!(refusal(&image, &pattern(8, "orders.*", "audit")), ErrorCode::SubscriptionExists);

    let delete = Command::DeletePattern { id: SubscriptionId([9; 16]) };
    let taken = apply(&mut image, &delete);
    let both = vec![(TopicId([1; 16]), id(1)), (TopicId([6; 16]), id(6))];
    assert_eq!(taken, Applied::PatternDeleted(both));
    assert_eq!((on(&image, "orders.eu"), on(&image, "orders.us")), (None, None));
    apply(&mut image, &create_named(4, "orders.uk"));
    assert_eq!(on(&image, "orders.uk"), None);
    assert_eq!(refusal(&image, &delete), ErrorCode::UnknownSubscription);
}

#[test]
fn a_pattern_leaves_what_a_topic_has_of_its_name_and_takes_no_queue() {
    let mut image = image(&[create_topic(), stream(7, "audit")]);
    let given = apply(&mut image, &pattern(9, "*", "audit"));
    assert_eq!(given, Applied::PatternCreated(Vec::new()));
    let mut queue = create_queue();
    if let Command::CreateQueue { id, .. } = &mut queue {
        *id = TopicId([5; 16]);
    }
    apply(&mut image, &queue);
    assert!(image.topic_named("jobs").unwrap().subscription("audit").is_none());
    let delete = Command::DeletePattern { id: SubscriptionId([9; 16]) };
    apply(&mut image, &delete);
    assert!(image.topic(TOPIC).unwrap().subscription("audit").is_some(), "it was not its own");
    for wrong in ["orders", "", "or ders*", "a/*"] {
        assert_eq!(refusal(&image, &pattern(9, wrong, "audit")), ErrorCode::InvalidTopicName);
    }
    assert_eq!(refusal(&image, &pattern(9, "*", "a b")), ErrorCode::InvalidSubscriptionName);
}

#[test]
fn a_snapshot_holds_all_and_is_refused_when_cut() {
    let image =
        image(&[create_topic(), stream(7, "audit"), queue(8, "billing"), pattern(9, "o*", "all")]);
    let bytes = image.encode_snapshot();
    assert_eq!(Image::decode_snapshot(&bytes).as_ref(), Ok(&image));
    for len in 0..bytes.len() {
        assert!(Image::decode_snapshot(&bytes[..len]).is_err());
    }
    assert!(Image::decode_snapshot(&[&[5], &bytes[1..]].concat()).is_err());
}

/// What a broker without settings wrote of a queue.
#[test]
fn a_snapshot_of_version_2_is_read() {
    let image = image(&[create_queue()]);
    let bytes = image.encode_snapshot();
    // A topic's settings stand behind its config: one byte, for there are none.
    let name = b"jobs";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    let settings = at + 4 + 1 + 1 + 3;
    assert_eq!(bytes[settings], 0);
    // Nor were there patterns: a count of none at the end.
    let end = bytes.len() - 4;
    let before = [&[2], &bytes[1..settings], &bytes[settings + 1..end]].concat();
    assert_eq!(Image::decode_snapshot(&before), Ok(image));
}

/// What a broker without queues wrote of a cluster with one topic and one stream subscription.
#[test]
fn a_snapshot_of_version_1_is_read() {
    let image = image(&[create_topic(), stream(7, "audit")]);
    let mut bytes = BytesMut::new();
    let mut out = Writer::new(&mut bytes);
    out.put(&1_u8);
    out.put(&image.end());
    out.put(&image.chain());
    out.put(&ClusterId::default());
    out.put(&image.producer_ids_end());
    out.put(&image.feature_level());
    out.count(0);
    out.count(1);
    out.put(&TOPIC);
    out.put(&"orders".to_string());
    out.put(&2_u32);
    out.put(&TopicKind::Log);
    out.put(&Durability::Fsync);
    out.put(&None::<u64>);
    out.put(&None::<u64>);
    out.put(&None::<u32>);
    out.put(&TimestampMs(5));
    out.count(1);
    out.put(&SubscriptionId([7; 16]));
    out.put(&"audit".to_string());
    out.put(&Start::Latest);
    out.put(&2_u32);
    assert_eq!(Image::decode_snapshot(&bytes), Ok(image));
}
