//! Dead letters that are sent back, and messages that are released by hand, through the join.

use std::collections::BTreeMap;

use postrider_broker::join::Broker;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::consuming::{dead_letters, describe, later, offsets, pass};
use crate::open_sim;
use crate::peer::Peer;
use crate::queues::refusal;
use crate::worker::{Worker, consume, fill, publish_range};

fn prepare(peer: &mut Peer) {
    let create = CreateSubscription {
        topic: "jobs.dead".to_string(),
        name: "redrive".to_string(),
        start: Start::Earliest,
        queue: Some(QueuePolicy { paused: true, ..QueuePolicy::default() }),
        if_not_exists: true,
    };
    let _created: CreateSubscriptionReply = peer.ask(&create).unwrap();
}

fn all() -> RedriveLetters {
    RedriveLetters {
        topic: "jobs.dead".to_string(),
        subscription: "redrive".to_string(),
        partition: PartitionId(0),
        from: Offset(0),
        letters_max: 1_000,
        reason: None,
        source: None,
        source_subscription: None,
        target: None,
        dry_run: false,
    }
}

/// Asks; the tick comes at this time.
fn ask(broker: &Broker, peer: &mut Peer, request: &RedriveLetters, ms: u64) -> RedriveLettersReply {
    let sent = peer.send(request);
    pass(broker, ms, ms + 50);
    peer.reply(sent).unwrap().unwrap()
}

/// Rejects all messages of the queue, and waits until they are in the dead letter topic.
fn reject_all(broker: &Broker, reason: &str) {
    let mut worker = Worker::new(broker, "jobs", 1);
    let leased = worker.leases();
    let reject = ReturnAction::Reject { reason: reason.to_string() };
    worker.give_back(&leased, reject).unwrap();
    pass(broker, 25, 1_500);
}

/// How often each message of the queue is there, by its text.
fn ready(broker: &Broker) -> BTreeMap<String, usize> {
    let mut worker = Worker::new(broker, "jobs", 9);
    let mut found = BTreeMap::new();
    for one in worker.leases() {
        *found.entry(one.text).or_default() += 1;
    }
    found
}

fn each_once(numbers: std::ops::Range<u64>) -> BTreeMap<String, usize> {
    numbers.map(|number| (number.to_string(), 1)).collect()
}

#[test]
fn dead_letters_go_back_to_their_queue_once_through_power_loss_at_any_step() {
    for steps in [0, 1, 2, 3, 4, 5, 6, 8, 12, 40] {
        let disk = SimDisk::new(steps);
        let broker = open_sim(&disk);
        let mut peer = fill(&broker, "jobs", 40, 5);
        reject_all(&broker, "broken");
        prepare(&mut peer);
        peer.send(&all());
        for step in 0..steps {
            broker.tick(later(2_000 + 25 * step));
            let _one = broker.store().step();
        }
        drop(peer);
        disk.crash(CrashKind::Power);
        drop(broker);

        let broker = open_sim(&disk.reopen());
        let mut peer = Peer::new(&broker);
        pass(&broker, 4_000, 4_200);
        // Whoever does not know what became of it asks again.
        let again = ask(&broker, &mut peer, &all(), 4_225);
        assert_eq!(again.sent + again.sent_before, 40, "{again:?} ({steps})");
        assert_eq!((again.next, again.end), (Offset(40), Offset(40)));
        pass(&broker, 4_300, 6_000);
        let third = ask(&broker, &mut peer, &all(), 6_025);
        assert_eq!((third.sent, third.sent_before, third.on_their_way), (0, 40, 0));
        assert_eq!(ready(&broker), each_once(0..40), "each once ({steps})");
        assert_eq!(dead_letters(&broker).len(), 40, "the letters stay where they are");
        assert_eq!(describe(&mut peer).partitions[0].dead_lettered, 40);
    }
}

#[test]
fn only_the_letters_that_are_meant_go_back() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = fill(&broker, "jobs", 10, 5);
    reject_all(&broker, "broken");
    prepare(&mut peer);
    let dry = RedriveLetters { dry_run: true, ..all() };
    let counted = ask(&broker, &mut peer, &dry, 2_000);
    assert_eq!((counted.sent, counted.on_their_way), (10, 0), "{counted:?}");
    let expired = RedriveLetters { reason: Some("expired".to_string()), ..all() };
    let none = ask(&broker, &mut peer, &expired, 2_100);
    assert_eq!((none.sent, none.passed, none.next), (0, 10, Offset(10)));
    let other = RedriveLetters { source: Some("mail".to_string()), ..all() };
    assert_eq!(ask(&broker, &mut peer, &other, 2_200).passed, 10);
    let other = RedriveLetters { source_subscription: Some("audit".to_string()), ..all() };
    assert_eq!(ask(&broker, &mut peer, &other, 2_300).passed, 10);
    assert!(ready(&broker).is_empty(), "nothing was sent so far");

    let three = RedriveLetters {
        letters_max: 3,
        reason: Some("rejected".to_string()),
        source: Some("jobs".to_string()),
        source_subscription: Some("default".to_string()),
        ..all()
    };
    let first = ask(&broker, &mut peer, &three, 2_400);
    assert_eq!((first.sent, first.next, first.end), (3, Offset(3), Offset(10)));
    pass(&broker, 2_500, 3_500);
    assert_eq!(ready(&broker), each_once(0..3));
    let elsewhere = RedriveLetters { target: Some("archive".to_string()), ..all() };
    let unknown = refusal::<_, RedriveLettersReply>(&mut peer, &elsewhere);
    assert_eq!(unknown, ErrorCode::UnknownTopic);
    peer.create_topic("archive", 1);
    let rest = ask(&broker, &mut peer, &elsewhere, 3_600);
    assert_eq!((rest.sent, rest.sent_before), (7, 3));
    pass(&broker, 3_700, 4_700);
    let archive: DescribeTopicReply =
        peer.ask(&DescribeTopic { name: "archive".to_string() }).unwrap();
    assert_eq!(archive.partitions[0].high_watermark, Offset(7));
}

#[test]
fn a_message_that_went_back_and_dies_again_says_how_often() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = fill(&broker, "jobs", 1, 1);
    reject_all(&broker, "first");
    prepare(&mut peer);
    assert_eq!(ask(&broker, &mut peer, &all(), 2_000).sent, 1);
    pass(&broker, 2_100, 3_000);
    reject_all(&broker, "second");
    pass(&broker, 3_100, 4_000);
    let letters = dead_letters(&broker);
    let said: Vec<(&str, &str)> = letters
        .iter()
        .map(|(_, headers)| (headers["dl.hops"].as_str(), headers["dl.last_error"].as_str()))
        .collect();
    assert_eq!(said, [("1", "first"), ("2", "second")]);
    let none = DescribeTopic { name: "jobs.dead.dead".to_string() };
    let unknown = refusal::<_, DescribeTopicReply>(&mut peer, &none);
    assert_eq!(unknown, ErrorCode::UnknownTopic, "nothing died of the letters");
}

#[test]
fn a_lease_is_ended_by_hand_without_a_failure() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = fill(&broker, "jobs", 3, 3);
    let mut stuck = Worker::with(&broker, &Consume { credit_messages: 3, ..consume("jobs", 1) });
    let held = stuck.leases();
    assert_eq!(offsets(&held), [0, 1, 2]);
    let mut other = Worker::new(&broker, "jobs", 2);
    assert!(other.leases().is_empty());
    let release = ReleaseMessage {
        topic: "jobs".to_string(),
        subscription: None,
        partition: PartitionId(0),
        offset: Offset(1),
    };
    let released: ReleaseMessageReply = peer.ask(&release).unwrap();
    assert_eq!((released.released, released.state.as_str()), (true, "leased"));
    stuck.peer.pump();
    assert_eq!(stuck.peer.take::<LeaseLost>().len(), 1, "its consumer is told");
    let got = other.leases();
    assert_eq!((offsets(&got), got[0].failures, got[0].attempt), (vec![1], 0, 2));
    let late = stuck.ack(&held[1..2]).unwrap();
    assert_eq!(late.exceptions[0].problem, SettleProblem::LeaseLost);
    let nack = ReturnAction::Nack { delay_ms: Some(600_000), reason: "later".to_string() };
    other.give_back(&got, nack).unwrap();
    let released: ReleaseMessageReply = peer.ask(&release).unwrap();
    assert_eq!((released.released, released.state.as_str()), (true, "delayed"));
    assert_eq!(offsets(&other.leases()), [1], "without waiting for ten minutes");
    let none = ReleaseMessage { offset: Offset(7), ..release };
    let released: ReleaseMessageReply = peer.ask(&none).unwrap();
    assert_eq!((released.released, released.state.as_str()), (false, "future"));
}

#[test]
fn dead_letters_go_to_the_topic_of_that_name_also_after_it_was_made_anew() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut peer = fill(&broker, "jobs", 1, 1);
    reject_all(&broker, "first");
    assert_eq!(dead_letters(&broker).len(), 1);
    let delete = DeleteTopic { name: "jobs.dead".to_string() };
    let _deleted: DeleteTopicReply = peer.ask(&delete).unwrap();
    // The first one after it was on its way to what is gone.
    for number in 1..4 {
        publish_range(&mut peer, "jobs", number..number + 1, 1);
        reject_all(&broker, "again");
    }
    let letters = dead_letters(&broker);
    let values: Vec<&str> = letters.iter().map(|(value, _)| value.as_str()).collect();
    assert_eq!(values, ["2", "3"]);
}
