//! Queues through the join: what consumers get, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use postrider_broker::join::{Broker, BrokerOptions};
use postrider_core::Now;
use postrider_protocol::batch::{Batch, BatchBuilder, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::CrashKind;

use crate::peer::{Peer, hello, publish, start, subscribe};
use crate::queues::create_queue;
use crate::worker::{HANDLE, Leased, Worker, consume, fill, publish_range, runs};
use crate::{open_sim, open_with};

pub(crate) fn later(ms: u64) -> Now {
    let start = start();
    Now {
        monotonic: start.monotonic + Duration::from_millis(ms),
        wall: TimestampMs(start.wall.0 + ms),
    }
}

/// Lets so much time pass, in ticks.
pub(crate) fn pass(broker: &Broker, from: u64, to: u64) {
    for ms in (from..=to).step_by(25) {
        broker.tick(later(ms));
        while broker.store().step() {}
    }
}

pub(crate) fn offsets(leased: &[Leased]) -> Vec<u64> {
    leased.iter().map(|one| one.offset).collect()
}

pub(crate) fn describe(peer: &mut Peer) -> DescribeQueueReply {
    peer.ask(&DescribeQueue { topic: "jobs".to_string(), subscription: None }).unwrap()
}

#[test]
fn two_consumers_get_each_message_once_and_acks_are_final_through_power_loss() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut producer = fill(&broker, "jobs", 1_000, 7);
    let mut workers = [1, 2].map(|member| {
        let few = Consume { credit_messages: 90, ..consume("jobs", member) };
        Worker::with(&broker, &few)
    });
    let mut got = BTreeSet::new();
    let mut acked = BTreeSet::new();
    for turn in 0.. {
        let mut idle = true;
        for worker in &mut workers {
            let leased = worker.leases();
            idle &= leased.is_empty();
            assert!(leased.len() <= 90, "credit is a ceiling");
            for one in &leased {
                assert_eq!(one.text, one.offset.to_string());
                assert_eq!((one.attempt, one.failures), (1, 0));
                assert!(got.insert(one.offset), "{} went to two", one.offset);
            }
            // Every seventh message is kept.
            let done: Vec<Leased> =
                leased.iter().filter(|one| one.offset % 7 != 0).cloned().collect();
            if !done.is_empty() {
                let reply = worker.ack(&done).unwrap();
                assert!(reply.exceptions.is_empty() && reply.commit_index > EntryIndex(0));
                acked.extend(offsets(&done));
            }
            let messages = u32::try_from(leased.len()).unwrap();
            let bytes = u32::try_from(std::mem::take(&mut worker.bytes)).unwrap();
            worker.peer.send_event(&Credit { handle: HANDLE, messages, bytes });
        }
        if idle {
            assert!(turn > 2);
            break;
        }
    }
    assert_eq!(got, (0..1_000).collect());
    let queue = describe(&mut producer);
    let numbers = queue.partitions[0];
    assert_eq!(numbers.acked, acked.len() as u64);
    assert_eq!(numbers.leased, 1_000 - acked.len() as u64);
    assert_eq!(queue.consumers.len(), 2);
    assert!(queue.consumers.iter().all(|consumer| consumer.connected && consumer.leased > 0));

    drop((workers, producer));
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    let mut worker = Worker::new(&broker, "jobs", 3);
    let again: BTreeSet<u64> = offsets(&worker.leases()).into_iter().collect();
    let expected: BTreeSet<u64> = (0..1_000).filter(|offset| !acked.contains(offset)).collect();
    assert_eq!(again, expected, "what was acked is not delivered again, the rest is");
}

#[test]
fn consumers_that_wait_are_woken_by_a_publish_one_for_one() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 1, 1);
    let mut one = Worker::new(&broker, "jobs", 1);
    let first = one.leases();
    assert_eq!(offsets(&first), [0]);
    let mut two = Worker::new(&broker, "jobs", 2);
    assert!(two.leases().is_empty() && one.leases().is_empty());
    let (rings_one, rings_two) = (one.peer.bell.rings(), two.peer.bell.rings());
    publish_range(&mut producer, "jobs", 1..2, 1);
    let woken = one.peer.bell.rings() - rings_one + two.peer.bell.rings() - rings_two;
    assert_eq!(woken, 1, "one message, one wake");
    let got = [offsets(&one.leases()), offsets(&two.leases())].concat();
    assert_eq!(got, [1]);
}

#[test]
fn a_released_message_comes_again_at_once_and_a_failed_one_after_its_wait() {
    let broker = open_sim(&SimDisk::new(1));
    let _producer = fill(&broker, "jobs", 3, 3);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    assert_eq!(offsets(&leased), [0, 1, 2]);
    let released = worker.give_back(&leased[..1], ReturnAction::Release).unwrap();
    assert!(released.exceptions.is_empty());
    let again = worker.leases();
    assert_eq!((again[0].offset, again[0].attempt, again[0].failures), (0, 2, 0));
    let nack = ReturnAction::Nack { delay_ms: None, reason: "out of paper".to_string() };
    let failed = worker.give_back(&leased[1..2], nack).unwrap();
    assert!(failed.exceptions.is_empty() && failed.commit_index > EntryIndex(0));
    assert!(worker.leases().is_empty(), "it waits");
    let why = WhyMessage {
        topic: "jobs".to_string(),
        subscription: None,
        partition: PartitionId(0),
        offset: Offset(1),
    };
    let told: WhyMessageReply = worker.peer.ask(&why).unwrap();
    assert_eq!((told.state.as_str(), told.failures), ("delayed", 1));
    assert_eq!(told.last_reason, "out of paper");
    pass(&broker, 25, 75);
    assert!(worker.leases().is_empty(), "it still waits");
    pass(&broker, 100, 150);
    let retried = worker.leases();
    assert_eq!((retried[0].offset, retried[0].attempt, retried[0].failures), (1, 2, 1));
    let late = worker.ack(&leased).unwrap();
    let problems: Vec<_> =
        late.exceptions.iter().map(|lost| (lost.first.0, lost.count, lost.problem)).collect();
    assert_eq!(problems, [(0, 2, SettleProblem::LeaseLost)], "their tokens are old");
    assert!(worker.ack(&again).unwrap().exceptions.is_empty());
}

#[test]
fn a_lease_ends_unless_it_is_renewed() {
    let broker = open_sim(&SimDisk::new(1));
    let _producer = fill(&broker, "jobs", 2, 1);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    assert_eq!(offsets(&leased), [0, 1]);
    pass(&broker, 25, 700);
    worker.peer.now = later(700);
    worker.peer.send_event(&Renew { handle: HANDLE, started: vec![(PartitionId(0), 1)] });
    pass(&broker, 725, 1_600);
    assert!(worker.peer.take::<LeaseLost>().is_empty());
    worker.peer.now = later(1_600);
    pass(&broker, 1_625, 1_725);
    let lost = worker.peer.take::<LeaseLost>();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].runs, runs(&leased));
    pass(&broker, 1_750, 2_000);
    worker.peer.now = later(2_000);
    let again = worker.leases();
    assert_eq!(offsets(&again), [0, 1]);
    assert!(again.iter().all(|one| (one.attempt, one.failures) == (2, 1)));
}

#[test]
fn unsubscribing_gives_all_back_at_once_and_a_lost_connection_after_its_grace() {
    let broker = open_sim(&SimDisk::new(1));
    let _producer = fill(&broker, "jobs", 4, 4);
    let mut one = Worker::new(&broker, "jobs", 1);
    assert_eq!(one.leases().len(), 4);
    let mut two = Worker::new(&broker, "jobs", 2);
    assert!(two.leases().is_empty());
    let _left: UnsubscribeReply = one.peer.ask(&Unsubscribe { handle: HANDLE }).unwrap();
    let leased = two.leases();
    assert_eq!(offsets(&leased), [0, 1, 2, 3]);
    assert!(leased.iter().all(|one| (one.attempt, one.failures) == (2, 0)));

    two.started = leased[1].dispatch + 1;
    let done = two.ack(&leased[..1]).unwrap();
    assert!(done.exceptions.is_empty());
    drop(two);
    let mut three = Worker::new(&broker, "jobs", 3);
    assert!(three.leases().is_empty(), "the lost one may come back");
    // Its own leases are long enough.
    pass(&broker, 25, 900);
    assert!(three.leases().is_empty());
}

#[test]
fn a_consumer_that_comes_back_keeps_what_it_holds() {
    let broker = open_sim(&SimDisk::new(1));
    let _producer = fill(&broker, "jobs", 4, 4);
    let mut one = Worker::new(&broker, "jobs", 1);
    let leased = one.leases();
    let place = one.place.clone();
    drop(one);
    let held = HeldLeases {
        partition: PartitionId(0),
        sub_epoch: place.sub_epoch,
        leader_epoch: place.leader_epoch,
        runs: runs(&leased),
    };
    let back = Consume { held: vec![held], ..consume("jobs", 1) };
    let mut one = Worker::with(&broker, &back);
    let counts: u32 = one.place.held.iter().map(|run| run.count).sum();
    assert_eq!(counts, 4);
    assert!(one.leases().is_empty());
    assert!(one.ack(&leased).unwrap().exceptions.is_empty());
}

#[test]
fn the_same_member_on_a_second_connection_takes_over() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 1, 1);
    let mut one = Worker::new(&broker, "jobs", 1);
    assert_eq!(one.leases().len(), 1);
    let mut two = Worker::new(&broker, "jobs", 1);
    let closed = one.peer.take::<SubscriptionClosed>();
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].error.code, ErrorCode::SubscriptionTaken);
    let again = two.leases();
    assert_eq!(offsets(&again), [0], "it did not say that it holds it");
    drop(one);
    publish_range(&mut producer, "jobs", 1..2, 1);
    assert_eq!(offsets(&two.leases()), [1], "the first one's end is not the second one's");
}

#[test]
fn a_purge_ends_leases_and_counts_what_it_removed() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 10, 3);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    assert!(worker.ack(&leased[..2]).unwrap().exceptions.is_empty());
    let purge = PurgeQueue { topic: "jobs".to_string(), subscription: None };
    let purged: PurgeQueueReply = producer.ask(&purge).unwrap();
    assert_eq!(purged.purged, 8);
    let lost = worker.peer.take::<LeaseLost>();
    assert_eq!(lost.iter().map(|lost| lost.runs.len()).sum::<usize>(), 1);
    let stale = worker.ack(&leased).unwrap_err();
    assert_eq!(stale.code, ErrorCode::StaleSubscriptionEpoch);
    let numbers = describe(&mut producer).partitions[0];
    assert_eq!((numbers.acked, numbers.evicted, numbers.floor), (2, 8, Offset(10)));
    publish_range(&mut producer, "jobs", 10..11, 1);
    assert_eq!(offsets(&worker.leases()), [10]);
}

#[test]
fn a_paused_queue_hands_out_nothing_until_it_is_resumed() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 1, 1);
    let alter = |paused| AlterQueue {
        topic: "jobs".to_string(),
        subscription: None,
        policy: QueuePolicy { paused, ..QueuePolicy::default() },
    };
    let _paused: AlterQueueReply = producer.ask(&alter(true)).unwrap();
    let mut worker = Worker::new(&broker, "jobs", 1);
    assert!(worker.leases().is_empty());
    let _resumed: AlterQueueReply = producer.ask(&alter(false)).unwrap();
    broker.tick(later(25));
    assert_eq!(offsets(&worker.leases()), [0]);
}

#[test]
fn consumers_of_a_deleted_queue_are_told() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 1, 1);
    let mut worker = Worker::new(&broker, "jobs", 1);
    assert_eq!(worker.leases().len(), 1);
    let _deleted: DeleteTopicReply =
        producer.ask(&DeleteTopic { name: "jobs".to_string() }).unwrap();
    let closed = worker.peer.take::<SubscriptionClosed>();
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].error.code, ErrorCode::UnknownTopic);
}

#[test]
fn one_handle_is_for_one_and_a_stream_is_not_consumed() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 1, 1);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let twice = worker.peer.ask::<_, ConsumeReply>(&consume("jobs", 2)).unwrap_err();
    assert_eq!(twice.code, ErrorCode::BadRequest);
    producer.create_topic("orders", 1);
    let _billing = producer.subscribe(9, "orders", Some("billing"));
    let stream = Consume { subscription: Some("billing".to_string()), ..consume("orders", 1) };
    let wrong = producer.ask::<_, ConsumeReply>(&stream).unwrap_err();
    assert_eq!(wrong.code, ErrorCode::WrongSubscriptionMode);
    let none = producer.ask::<_, ConsumeReply>(&consume("orders", 1)).unwrap_err();
    assert_eq!(none.code, ErrorCode::UnknownSubscription);
}

/// What is in the dead letter topic: offset of the source, value, and headers.
pub(crate) fn dead_letters(broker: &Broker) -> Vec<(String, BTreeMap<String, String>)> {
    let mut peer = Peer::new(broker);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let Ok(_reply) =
        peer.ask::<_, SubscribeReply>(&subscribe(5, "jobs.dead", None, Start::Earliest))
    else {
        return Vec::new();
    };
    let mut letters = Vec::new();
    for deliver in peer.take::<Deliver>() {
        for entry in EntryIter::new(deliver.entries) {
            let batch = Batch::of_entry(&entry.unwrap());
            for record in batch.records(DecodeLimits::default()).unwrap() {
                let record = record.unwrap().record;
                let headers = record
                    .headers
                    .iter()
                    .map(|(name, value)| (text(name), text(value.as_ref().unwrap())));
                letters.push((text(&record.value.unwrap()), headers.collect()));
            }
        }
    }
    letters
}

#[test]
fn a_message_that_fails_too_often_or_is_rejected_goes_to_the_dead_letter_topic_once() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut producer = fill(&broker, "jobs", 3, 3);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    let reject = ReturnAction::Reject { reason: "no such customer".to_string() };
    worker.give_back(&leased[2..], reject).unwrap();
    let mut failing = leased[0].clone();
    let mut now = 0;
    for failures in 1..=4 {
        let nack = ReturnAction::Nack { delay_ms: Some(0), reason: format!("failure {failures}") };
        worker.give_back(&[failing.clone()], nack).unwrap();
        pass(&broker, now + 25, now + 100);
        now += 100;
        worker.peer.now = later(now);
        match worker.leases().first() {
            Some(again) => failing = again.clone(),
            None => assert_eq!(failures, 4),
        }
    }
    pass(&broker, now, now + 1_000);
    let letters = dead_letters(&broker);
    let values: BTreeSet<&str> = letters.iter().map(|(value, _)| value.as_str()).collect();
    assert_eq!((letters.len(), values), (2, BTreeSet::from(["0", "2"])));
    let of = |value: &str| &letters.iter().find(|(text, _)| text == value).unwrap().1;
    let expected = [
        ("dl.reason", "max_failures"),
        ("dl.subscription", "default"),
        ("dl.failures", "4"),
        ("dl.attempts", "4"),
        ("dl.last_error", "failure 4"),
        ("dl.last_consumer", "worker-1"),
        ("dl.hops", "1"),
    ];
    for (name, value) in expected {
        assert_eq!(of("0")[name], value, "{name}");
    }
    assert_eq!(of("0")["dl.source"], format!("jobs/0/0/{}", start().wall.0));
    assert_eq!((of("2")["dl.reason"].as_str(), of("2")["dl.failures"].as_str()), ("rejected", "0"));
    let numbers = describe(&mut producer).partitions[0];
    assert_eq!((numbers.dead_lettered, numbers.dead_lettering), (2, 0));

    drop((worker, producer));
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_sim(&disk.reopen());
    let mut worker = Worker::new(&broker, "jobs", 1);
    pass(&broker, 3_000, 3_500);
    worker.peer.now = later(3_500);
    assert_eq!(offsets(&worker.leases()), [1]);
    assert_eq!(dead_letters(&broker).len(), 2, "each once");
}

#[test]
fn a_dead_letter_whose_confirm_was_lost_in_a_crash_is_not_stored_twice() {
    for steps in 0..12 {
        let disk = SimDisk::new(steps);
        let broker = open_sim(&disk);
        let _producer = fill(&broker, "jobs", 40, 5);
        let mut worker = Worker::new(&broker, "jobs", 1);
        let leased = worker.leases();
        let reject = ReturnAction::Reject { reason: "broken".to_string() };
        worker.give_back(&leased, reject).unwrap();
        for step in 0..steps {
            broker.tick(later(25 * step));
            broker.store().step();
        }
        drop(worker);
        disk.crash(CrashKind::Power);
        drop(broker);
        let broker = open_sim(&disk.reopen());
        // Nobody comes: the letters go out by themselves.
        pass(&broker, 25, 2_000);
        let letters = dead_letters(&broker);
        let values: Vec<u64> = letters.iter().map(|(value, _)| value.parse().unwrap()).collect();
        if steps == 0 && values.is_empty() {
            // The rejects were lost with the power.
            continue;
        }
        assert_eq!(values, (0..40).collect::<Vec<u64>>(), "in order, each once ({steps})");
        let mut worker = Worker::new(&broker, "jobs", 1);
        let late = worker.ack(&leased).unwrap();
        assert!(
            late.exceptions.iter().all(|exception| exception.problem == SettleProblem::Gone),
            "nobody acknowledged them: {:?}",
            late.exceptions
        );
        assert!(worker.leases().is_empty(), "all are dead ({steps})");
    }
}

#[test]
fn dead_letters_wait_for_a_full_disk_and_arrive_when_there_is_room() {
    let disk = SimDisk::new(1);
    let broker = open_sim(&disk);
    let mut producer = fill(&broker, "jobs", 2, 1);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    let reject = |reason: &str| ReturnAction::Reject { reason: reason.to_string() };
    worker.give_back(&leased[..1], reject("one")).unwrap();
    pass(&broker, 25, 500);
    assert_eq!(dead_letters(&broker).len(), 1);
    worker.give_back(&leased[1..], reject("two")).unwrap();
    disk.set_quota(0);
    broker.store().maintain(TimestampMs(1));
    pass(&broker, 525, 1_000);
    assert_eq!(dead_letters(&broker).len(), 1);
    disk.set_quota(u64::MAX);
    broker.store().maintain(TimestampMs(2));
    pass(&broker, 1_025, 3_000);
    assert_eq!(dead_letters(&broker).len(), 2);
    assert_eq!(describe(&mut producer).partitions[0].dead_lettered, 2);
}

#[test]
fn a_queue_nobody_has_used_is_described_with_all_its_partitions() {
    let broker = open_sim(&SimDisk::new(1));
    let mut peer = Peer::new(&broker);
    let jobs = CreateQueue { partitions: 3, ..create_queue("jobs", QueuePolicy::default()) };
    let _created: CreateQueueReply = peer.ask(&jobs).unwrap();
    let queue = describe(&mut peer);
    let ids: Vec<u32> = queue.partitions.iter().map(|one| one.partition.0).collect();
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn a_small_part_of_a_batch_is_sent_without_the_rest() {
    let broker = open_sim(&SimDisk::new(1));
    let _producer = fill(&broker, "jobs", 100, 100);
    let few = Consume { credit_messages: 3, ..consume("jobs", 1) };
    let mut worker = Worker::with(&broker, &few);
    let mut got = Vec::new();
    let mut small = 0;
    while got.len() < 100 {
        let leased = worker.leases();
        let count = u32::try_from(leased.len()).unwrap();
        assert!((1..=3).contains(&count));
        small = small.max(worker.bytes);
        let bytes = u32::try_from(std::mem::take(&mut worker.bytes)).unwrap();
        got.extend(offsets(&leased));
        worker.peer.send_event(&Credit { handle: HANDLE, messages: count, bytes });
    }
    assert_eq!(got, (0..100).collect::<Vec<u64>>());
    assert!(small < 300, "three of a hundred messages take {small} bytes");
}

#[test]
fn leases_fit_the_frames_that_a_client_takes() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 0, 1);
    let topic: DescribeTopicReply =
        producer.ask(&DescribeTopic { name: "jobs".to_string() }).unwrap();
    let epoch = producer.leader_epoch("jobs");
    let text = "x".repeat(3_000);
    for tag in 0..20 {
        let texts = [text.as_str(); 4];
        producer.send_event(&publish(topic.id, epoch, ProducerId::NONE, tag * 4, &texts));
    }
    producer.settle();
    let mut peer = Peer::silent(&broker);
    let small = Hello { frame_bytes_max: 16 << 10, ..hello() };
    let _reply: HelloReply = peer.ask(&small).unwrap();
    let _attached: ConsumeReply = peer.ask(&consume("jobs", 1)).unwrap();
    let leases = peer.take::<Lease>();
    let mut count = 0;
    for lease in &leases {
        assert!(lease.head.encoded_len() + lease.entries.len() <= 16 << 10);
        count += lease.head.messages();
    }
    assert_eq!(count, 80);
}

#[test]
fn another_consumer_is_woken_when_the_first_does_not_ask() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 0, 1);
    let mut stuck = Worker::new(&broker, "jobs", 1);
    assert!(stuck.leases().is_empty());
    let mut other = Worker::new(&broker, "jobs", 2);
    assert!(other.leases().is_empty());
    publish_range(&mut producer, "jobs", 0..1, 1);
    let rings = other.peer.bell.rings();
    pass(&broker, 25, 100);
    assert!(other.peer.bell.rings() > rings);
    assert_eq!(offsets(&other.leases()), [0]);
    assert!(stuck.leases().is_empty());
}

#[test]
fn a_queue_keeps_no_segment_that_is_settled() {
    let mut options = BrokerOptions::default();
    options.store.segment_bytes_max = 64 << 10;
    options.retention_check_interval = Duration::from_millis(100);
    let disk = SimDisk::new(1);
    let broker = open_with(Arc::new(disk.clone()), options.clone());
    let mut producer = fill(&broker, "jobs", 4_000, 2);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let leased = worker.leases();
    assert_eq!(leased.len(), 4_000);
    let log_start = |peer: &mut Peer| {
        let topic: DescribeTopicReply =
            peer.ask(&DescribeTopic { name: "jobs".to_string() }).unwrap();
        topic.partitions[0].log_start
    };
    // Message 1,500 stays.
    let settled: Vec<Leased> = leased.iter().filter(|one| one.offset != 1_500).cloned().collect();
    assert!(worker.ack(&settled).unwrap().exceptions.is_empty());
    for ms in (25..600).step_by(25) {
        broker.tick(later(ms));
        while broker.store().step() {}
        broker.store().maintain(later(ms).wall);
    }
    let start = log_start(&mut producer);
    assert!(Offset(0) < start && start <= Offset(1_500), "{start}");
    assert!(worker.ack(&leased[1_500..1_501]).unwrap().exceptions.is_empty());
    for ms in (600..1_200).step_by(25) {
        broker.tick(later(ms));
        while broker.store().step() {}
        broker.store().maintain(later(ms).wall);
    }
    assert!(log_start(&mut producer) > Offset(3_000));

    drop((worker, producer));
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_with(Arc::new(disk.reopen()), options);
    let mut worker = Worker::new(&broker, "jobs", 1);
    assert!(worker.leases().is_empty());
    let numbers = describe(&mut worker.peer).partitions[0];
    assert_eq!((numbers.acked, numbers.ready, numbers.evicted), (4_000, 0, 0));
}

#[test]
fn an_idle_queue_gives_up_the_segment_that_it_wrote() {
    let often = Duration::from_millis(100);
    let options = BrokerOptions { retention_check_interval: often, ..BrokerOptions::default() };
    let disk = SimDisk::new(1);
    let broker = open_with(Arc::new(disk.clone()), options.clone());
    let mut producer = fill(&broker, "jobs", 20_000, 2);
    let mut worker = Worker::new(&broker, "jobs", 1);
    let mut acked = 0;
    while acked < 20_000 {
        let leased = worker.leases();
        acked += leased.len();
        assert!(worker.ack(&leased).unwrap().exceptions.is_empty());
    }
    let partition = |peer: &mut Peer| {
        let request = DescribeTopic { name: "jobs".to_string() };
        let topic: DescribeTopicReply = peer.ask(&request).unwrap();
        topic.partitions[0]
    };
    let maintain = |from: u64, to: u64| {
        for ms in (from..to).step_by(25) {
            broker.tick(later(ms));
            while broker.store().step() {}
            broker.store().maintain(later(ms).wall);
        }
    };
    maintain(25, 1_000);
    let written = partition(&mut producer);
    assert!(written.log_start < Offset(20_000), "it may go on");
    maintain(61_000, 63_000);
    let rested = partition(&mut producer);
    assert_eq!(rested.log_start, Offset(20_000));
    assert_eq!(rested.bytes, options.store.segment_bytes_min, "of {}", written.bytes);
    let closed = broker.store().stats().entries;
    maintain(63_000, 200_000);
    assert_eq!(broker.store().stats().entries, closed, "it is closed once");

    drop((worker, producer));
    disk.crash(CrashKind::Power);
    drop(broker);
    let broker = open_with(Arc::new(disk.reopen()), options);
    let mut producer = fill(&broker, "jobs", 0, 2);
    publish_range(&mut producer, "jobs", 0..1, 1);
    let mut worker = Worker::new(&broker, "jobs", 1);
    assert_eq!(offsets(&worker.leases()), [20_000]);
}

#[test]
fn with_key_order_messages_of_a_key_go_out_one_after_another() {
    let broker = open_sim(&SimDisk::new(1));
    let mut peer = Peer::new(&broker);
    let keyed = create_queue("jobs", QueuePolicy { key_order: true, ..QueuePolicy::default() });
    let created: CreateQueueReply = peer.ask(&keyed).unwrap();
    let epoch = peer.leader_epoch("jobs");
    let mut builder = BatchBuilder::new(Compression::None, 1_024);
    for (key, value) in [("a", "0"), ("b", "1"), ("a", "2"), ("c", "3"), ("b", "4")] {
        builder.push(Some(key.as_bytes()), Some(value.as_bytes()), &[], TimestampMs(5)).unwrap();
    }
    let mut batch = publish(created.id, epoch, ProducerId::NONE, 0, &["x"]);
    batch.batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
    batch.head.seq_count = 5;
    peer.send_event(&batch);
    peer.settle();
    let mut worker = Worker::new(&broker, "jobs", 1);
    let first = worker.leases();
    assert_eq!(offsets(&first), [0, 1, 3]);
    assert!(worker.ack(&first[..1]).unwrap().exceptions.is_empty());
    assert_eq!(offsets(&worker.leases()), [2], "the next of its key");
}

/// A batch may hold anything: the broker checks its crc and its fields. What cannot be taken apart goes out as it is.
#[test]
fn a_batch_of_no_records_costs_itself_and_not_its_consumers() {
    let broker = open_sim(&SimDisk::new(1));
    let mut producer = fill(&broker, "jobs", 0, 1);
    let request = Metadata { topics: vec!["jobs".to_string()] };
    let metadata: MetadataReply = producer.ask(&request).unwrap();
    let (id, epoch) = (metadata.topics[0].id, metadata.topics[0].partitions[0].leader_epoch);
    let mut broken = publish(id, epoch, ProducerId::NONE, 0, &["a", "b", "c", "d"]);
    let mut body = broken.batch.body.to_vec();
    body[40..].fill(0xff);
    broken.batch.crc = crc32fast::hash(&body);
    broken.batch.body = body.into();
    producer.send_event(&broken);
    producer.settle();
    assert_eq!(producer.confirms().iter().map(|run| run.count).sum::<u32>(), 4);
    publish_range(&mut producer, "jobs", 4..5, 1);

    // One message at a time, so that a part of the batch is asked for.
    let mut worker = Worker::with(&broker, &Consume { credit_messages: 1, ..consume("jobs", 1) });
    for offset in 0..4 {
        let leases = worker.peer.take::<Lease>();
        assert_eq!(leases.len(), 1, "offset {offset}");
        let run = leases[0].head.runs[0];
        assert_eq!((run.first, run.count), (Offset(offset), 1));
        let entry = EntryIter::new(leases[0].entries.clone()).next().unwrap().unwrap();
        entry.check_body().unwrap();
        let leased = Leased {
            offset,
            text: String::new(),
            attempt: run.attempt,
            failures: run.failures,
            dispatch: offset,
        };
        assert!(worker.ack(&[leased]).unwrap().exceptions.is_empty());
        worker.peer.send_event(&Credit { handle: HANDLE, messages: 1, bytes: 1 << 20 });
    }
    assert_eq!(offsets(&worker.leases()), [4], "the next batch is not held up");
}
