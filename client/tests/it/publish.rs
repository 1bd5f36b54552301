//! The engine's publishing: batching, order, repeats, refusals, deadlines.

use std::{task::Waker, time::Duration};

use postrider::core::{
    completion::{BatchOutcome, PublishFailure, promise},
    link::LinkFault,
    producer::{Ended, Enqueue, ProducerOptions},
};
use postrider_protocol::{
    error::{ErrorBody, ErrorCode},
    types::{Compression, ProducerId},
};

use crate::world::{Sent, World};

fn options() -> ProducerOptions {
    ProducerOptions::default()
}

fn failure(sent: &Sent) -> PublishFailure {
    match sent.outcome() {
        Some(BatchOutcome::Failed(failure)) => (*failure).clone(),
        other => panic!("{other:?}"),
    }
}

fn refusal(code: ErrorCode) -> Option<ErrorBody> {
    Some(ErrorBody::new(code, "refused by the test"))
}

#[test]
fn a_message_goes_at_once_and_the_next_ones_share_a_batch_meanwhile() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.hold = true;
    let sent: Vec<_> = (0..4)
        .map(|n| {
            let sent = world.enqueue(key, &format!("m{n}"));
            world.pump();
            sent
        })
        .collect();
    assert_eq!(world.peer.published.len(), 1, "the others wait behind the first");
    world.peer.release();
    world.pump();
    assert_eq!(world.peer.published.len(), 2);
    let offsets: Vec<_> = sent.iter().map(Sent::offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3]);
}

#[test]
fn a_waiting_batch_goes_after_the_linger_although_nothing_was_confirmed() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.hold = true;
    world.enqueue(key, "a");
    world.pump();
    world.enqueue(key, "b");
    world.pump();
    let due = world.engine.deadline(world.now).unwrap();
    assert!(due <= world.now + options().linger, "the driver looks within one linger");
    world.pass(Duration::from_micros(900));
    assert_eq!(world.peer.published.len(), 1);
    world.pass(Duration::from_micros(100));
    assert_eq!(world.peer.published.len(), 2);
}

#[test]
fn only_batches_that_linger_make_the_driver_look_early() {
    let linger = options().linger;
    let mut world = World::new(1);
    let key = world.producer(options());
    for _ in 0..3 {
        world.enqueue(key, "alone");
        world.pump();
        let due = world.engine.deadline(world.now).unwrap();
        assert!(due > world.now + linger, "nobody lingers while each answer is awaited");
    }
    world.peer.hold = true;
    world.enqueue(key, "under way");
    world.pump();
    let asked_for = world.engine.deadline(world.now).unwrap();
    assert!(world.engine.take_attention() && asked_for > world.now + linger);
    world.enqueue(key, "lingers");
    assert!(world.engine.take_attention(), "the driver would look too late by itself");
    assert_eq!(world.engine.deadline(world.now), Some(world.now + linger));
    world.pass(linger);
    assert_eq!(world.peer.published.len(), 5, "it went although nothing was confirmed");
    assert_eq!(world.engine.deadline(world.now), Some(world.now + linger));
    world.enqueue(key, "lingers again");
    assert!(!world.engine.take_attention(), "the driver looks in time by itself");
    world.pass(32 * linger);
    assert!(world.engine.deadline(world.now).unwrap() > world.now + linger, "it is over");
}

#[test]
fn without_linger_a_batch_does_not_wait_for_the_one_before() {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions { linger: Duration::ZERO, ..options() });
    world.peer.hold = true;
    world.enqueue(key, "a");
    world.pump();
    world.engine.take_attention();
    world.enqueue(key, "b");
    assert!(world.engine.take_attention(), "the driver is to look now");
    world.pump();
    assert_eq!(world.peer.published.len(), 2);
}

#[test]
fn a_full_batch_goes_at_once() {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions { batch_bytes: 200, ..options() });
    world.peer.hold = true;
    for _ in 0..10 {
        world.enqueue(key, &"x".repeat(60));
    }
    world.pump();
    let counts: Vec<_> = world.peer.published.iter().map(|p| p.head.seq_count).collect();
    assert_eq!(counts, [2, 2, 2, 2], "the last two wait for more");
}

#[test]
fn the_driver_is_woken_once_for_a_batch_not_for_each_message() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.hold = true;
    world.engine.take_attention();
    let mut woken = 0;
    for n in 0..100 {
        world.enqueue(key, &format!("{n}"));
        woken += u32::from(world.engine.take_attention());
    }
    assert_eq!(woken, 1);
    world.pump();
    for n in 0..100 {
        world.enqueue(key, &format!("{n}"));
        woken += u32::from(world.engine.take_attention());
    }
    assert_eq!(woken, 2, "once more for the batch that lingers");
}

#[test]
fn batches_that_were_unconfirmed_at_a_lost_connection_are_sent_again_the_same() {
    for store_held in [false, true] {
        let mut world = World::new(1);
        let key = world.producer(ProducerOptions { batch_bytes: 100, ..options() });
        world.peer.hold = true;
        let sent: Vec<_> = (0..5).map(|n| world.enqueue(key, &format!("{n}").repeat(80))).collect();
        world.pump();
        let first = world.peer.published.clone();
        assert_eq!(first.len(), 5);
        world.disconnect(store_held);
        assert!(sent.iter().all(|sent| sent.outcome().is_none()));
        world.peer.hold = false;
        world.peer.leader_epoch = 2;
        world.connect();
        let again = &world.peer.published[5..];
        for (before, after) in first.iter().zip(again) {
            assert_eq!(before.batch, after.batch, "the same bytes");
            assert_eq!(before.head.base_sequence, after.head.base_sequence);
            assert_eq!(after.head.leader_epoch.0, 2, "with the new leadership");
        }
        let offsets: Vec<_> = sent.iter().map(Sent::offset).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 4]);
        assert_eq!(world.peer.values(0).len(), 5, "stored once");
        for sent in &sent {
            let Some(BatchOutcome::Stored(stored)) = sent.outcome() else { panic!() };
            assert_eq!(stored.duplicate, store_held);
        }
    }
}

#[test]
fn what_follows_a_refused_batch_is_stored_in_order() {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions { batch_bytes: 100, ..options() });
    world.peer.hold = true;
    let sent: Vec<_> = (0..4).map(|n| world.enqueue(key, &format!("{n}").repeat(80))).collect();
    world.pump();
    world.peer.script = [None, refusal(ErrorCode::CorruptBatch)].into();
    world.peer.release();
    world.pump();
    assert!(
        matches!(failure(&sent[1]), PublishFailure::Rejected(e) if e.code == ErrorCode::CorruptBatch)
    );
    assert_eq!([0, 2, 3].map(|n| sent[n].offset()), [0, 1, 2]);
    let last = world.peer.published.last().unwrap();
    assert_eq!(last.head.base_sequence.0, 3, "sequences are not used again");
    assert!(world.peer.published.len() <= 6, "two were sent again, once");
}

#[test]
fn a_refusal_for_now_is_retried_after_its_wait_and_keeps_the_order() {
    for code in [ErrorCode::Throttled, ErrorCode::Overloaded, ErrorCode::NotLeader] {
        let mut world = World::new(1);
        let key = world.producer(ProducerOptions { batch_bytes: 100, ..options() });
        world.peer.hold = true;
        let sent: Vec<_> = (0..4).map(|n| world.enqueue(key, &format!("{n}").repeat(80))).collect();
        world.pump();
        world.peer.script = [None, refusal(code).map(|e| e.with_retry_after_ms(50))].into();
        world.peer.release();
        world.pump();
        assert_eq!(world.peer.published.len(), 4, "{code:?}: nothing is sent during the wait");
        assert!(sent[1].outcome().is_none());
        for _ in 0..20 {
            world.pass(Duration::from_millis(10));
        }
        let offsets: Vec<_> = sent.iter().map(Sent::offset).collect();
        assert_eq!(offsets, [0, 1, 2, 3], "{code:?}");
        assert_eq!(world.peer.published.len(), 7, "{code:?}: each was repeated once");
    }
}

#[test]
fn a_full_disk_is_told_at_once_and_publishing_goes_on_when_there_is_space() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.script = [refusal(ErrorCode::DiskFull)].into();
    let full = world.enqueue(key, "a");
    world.pump();
    assert!(matches!(failure(&full), PublishFailure::Rejected(e) if e.code == ErrorCode::DiskFull));
    let after = world.enqueue(key, "b");
    world.pump();
    assert_eq!(after.offset(), 0);
}

#[test]
fn a_stale_leader_epoch_is_refreshed_and_the_batch_stored() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.leader_epoch = 9;
    let sent = world.enqueue(key, "a");
    world.pump();
    for _ in 0..10 {
        world.pass(Duration::from_millis(10));
    }
    assert_eq!(sent.offset(), 0);
}

#[test]
fn delivery_timeout_says_unknown_only_of_what_was_sent() {
    let mut world = World::new(1);
    let timeout = Duration::from_secs(2);
    let key = world.producer(ProducerOptions { delivery_timeout: timeout, ..options() });
    world.peer.hold = true;
    let on_the_wire = world.enqueue(key, "a");
    world.pump();
    world.disconnect(true);
    let never_sent = world.enqueue(key, "b");
    world.pass(Duration::from_millis(1900));
    assert!(on_the_wire.outcome().is_none());
    world.pass(Duration::from_millis(200));
    assert!(
        matches!(failure(&on_the_wire), PublishFailure::Unknown(e) if e.code == ErrorCode::TimedOut)
    );
    assert_eq!(failure(&never_sent), PublishFailure::NotSent);
    world.peer.hold = false;
    world.connect();
    let next = world.enqueue(key, "c");
    world.pump();
    assert_eq!(next.offset(), 1, "the broker had stored the first");
    let head = &world.peer.published.last().unwrap().head;
    assert_eq!(head.base_sequence.0, 2, "the sequences of what timed out are not used again");
    assert_eq!(head.resolved_upto.0, 2);
}

#[test]
fn a_late_confirm_of_what_timed_out_disturbs_nothing() {
    let mut world = World::new(1);
    let timeout = Duration::from_secs(1);
    let key = world.producer(ProducerOptions { delivery_timeout: timeout, ..options() });
    world.peer.hold = true;
    let late = world.enqueue(key, "a");
    world.pump();
    world.pass(Duration::from_millis(1200));
    assert!(matches!(failure(&late), PublishFailure::Unknown(_)));
    world.peer.release();
    world.pump();
    let next = world.enqueue(key, "b");
    world.pump();
    assert_eq!(next.offset(), 1);
}

#[test]
fn a_forgotten_session_is_replaced_and_only_what_was_in_doubt_ends_unknown() {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions { batch_bytes: 100, ..options() });
    world.peer.hold = true;
    let in_doubt = world.enqueue(key, &"a".repeat(80));
    world.pump();
    world.disconnect(false);
    let safe = world.enqueue(key, &"b".repeat(80));
    world.peer.hold = false;
    world.peer.forget_sessions();
    world.connect();
    assert!(
        matches!(failure(&in_doubt), PublishFailure::Unknown(e) if e.code == ErrorCode::UnknownProducer)
    );
    assert_eq!(safe.offset(), 0);
    let head = &world.peer.published.last().unwrap().head;
    assert_eq!((head.producer, head.base_sequence.0), (ProducerId(102), 0));
}

#[test]
fn a_session_forgotten_while_connected_loses_and_doubles_nothing() {
    let mut world = World::new(2);
    let key = world.producer(ProducerOptions { batch_bytes: 100, ..options() });
    let before = world.enqueue_to(key, &"a".repeat(80), Some(0));
    world.pump();
    assert_eq!(before.offset(), 0);
    world.peer.forget_sessions();
    world.peer.hold = true;
    let after: Vec<_> =
        (0..6).map(|n| world.enqueue_to(key, &format!("{n}").repeat(80), Some(n % 2))).collect();
    world.pump();
    world.peer.release();
    world.pump();
    for _ in 0..20 {
        world.pass(Duration::from_millis(10));
    }
    let offsets: Vec<_> = after.iter().map(Sent::offset).collect();
    assert_eq!(offsets, [1, 0, 2, 1, 3, 2]);
    assert_eq!(world.peer.values(0).len() + world.peer.values(1).len(), 7);
}

#[test]
fn a_fenced_producer_ends_and_says_so() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.script = [refusal(ErrorCode::ProducerFenced)].into();
    let sent = world.enqueue(key, "a");
    world.pump();
    assert!(matches!(failure(&sent), PublishFailure::Rejected(_)));
    assert!(matches!(
        world.try_enqueue(key, "b", None),
        Enqueue::Ended(Ended::Refused(error)) if error.code == ErrorCode::ProducerFenced
    ));
}

#[test]
fn the_byte_bound_holds_until_confirms_make_room() {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions { max_in_flight_bytes: 1000, ..options() });
    world.peer.hold = true;
    let mut placed = 0;
    while matches!(world.try_enqueue(key, &"x".repeat(100), None), Enqueue::Placed { .. }) {
        placed += 1;
        world.pump();
    }
    assert_eq!(placed, 1000 / 136);
    let ticket = world.engine.wait_for_room(key, None, Waker::noop());
    world.peer.release();
    world.pump();
    assert!(
        matches!(world.try_enqueue(key, "y", None), Enqueue::Full),
        "nobody passes who waits in line"
    );
    world.engine.leave_line(key, ticket.unwrap());
    assert!(matches!(world.try_enqueue(key, "y", None), Enqueue::Placed { .. }));
}

#[test]
fn the_brokers_bound_of_unconfirmed_bytes_holds_back_more() {
    let mut world = World::new(1);
    world.disconnect(false);
    world.peer.limits.in_flight_bytes_max = 1000;
    world.connect();
    let key = world.producer(ProducerOptions { batch_bytes: 100, ..options() });
    world.peer.hold = true;
    let sent: Vec<_> = (0..50).map(|_| world.enqueue(key, &"x".repeat(80))).collect();
    world.pump();
    let bytes: usize = world.peer.published.iter().map(|p| p.batch.body.len()).sum();
    assert!((1000..1200).contains(&bytes), "{bytes}");
    world.peer.release();
    world.pump();
    assert_eq!(sent[49].offset(), 49);
}

#[test]
fn what_is_too_large_or_names_no_partition_is_refused_before_it_is_sent() {
    let mut world = World::new(2);
    let key = world.producer(options());
    let large = "x".repeat(2 << 20);
    assert!(matches!(world.try_enqueue(key, &large, None), Enqueue::TooLarge { .. }));
    assert!(matches!(world.try_enqueue(key, "a", Some(2)), Enqueue::NoPartition { partitions: 2 }));
}

#[test]
fn flush_waits_for_all_and_reports_the_first_failure() {
    let mut world = World::new(2);
    let key = world.producer(options());
    world.peer.hold = true;
    world.enqueue_to(key, "a", Some(0));
    world.pump();
    world.enqueue_to(key, "b", Some(0));
    world.enqueue_to(key, "c", Some(1));
    let (done, flushed) = promise();
    world.engine.flush(key, done);
    world.pump();
    assert_eq!(world.peer.published.len(), 3, "flush does not linger");
    let later = world.enqueue_to(key, "d", Some(0));
    assert!(flushed.try_take().is_none());
    world.peer.script = [refusal(ErrorCode::CorruptBatch)].into();
    world.peer.release();
    world.pump();
    world.pass(Duration::from_millis(10));
    let failure = flushed.try_take().expect("all have their outcomes").unwrap_err();
    assert!(matches!(&*failure, PublishFailure::Rejected(_)));
    assert_eq!(later.offset(), 1);
    let (done, flushed) = promise();
    world.engine.flush(key, done);
    assert_eq!(flushed.try_take(), Some(Ok(())), "nothing to wait for");
}

#[test]
fn compressed_batches_are_stored_whole_whoever_compresses() {
    for outside in [false, true] {
        let mut world = World::new(1);
        let compression = Compression::Zstd;
        let key = world.producer(ProducerOptions { compression, ..options() });
        let sent: Vec<_> = (0..100).map(|_| world.enqueue(key, &"abc".repeat(50))).collect();
        if outside {
            let (key, lane, job) = world.engine.next_compression(world.now).unwrap();
            assert!(world.engine.next_compression(world.now).is_none());
            world.pump();
            assert!(world.peer.published.is_empty(), "it waits for its bytes");
            world.engine.compressed(key, lane, job.compress());
        }
        world.pump();
        assert_eq!(sent[99].offset(), 99);
        assert_eq!(world.peer.published.len(), 1);
        assert!(world.peer.published[0].batch.body.len() < 2000);
        assert_eq!(world.peer.values(0)[99], "abc".repeat(50));
    }
}

#[test]
fn a_producer_of_an_unknown_topic_is_refused_with_the_next_step() {
    let mut world = World::new(1);
    world.peer.topic_exists = false;
    let (opened, pending) = promise();
    let deadline = world.now + Duration::from_secs(1);
    world.engine.open_producer("t".into(), options(), deadline, opened);
    world.pump();
    let error = pending.try_take().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownTopic);
    assert!(error.message.contains("postrider topic create t"), "{error}");
}

#[test]
fn a_confirm_that_splits_a_batch_ends_the_connection() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.hold = true;
    world.enqueue(key, "a");
    world.enqueue(key, "b");
    world.pump();
    let head = world.peer.published[0].head;
    let run = postrider_protocol::message::ConfirmRun {
        topic: head.topic,
        partition: head.partition,
        producer: head.producer,
        base_sequence: head.base_sequence,
        count: 1,
        outcome: postrider_protocol::message::Outcome::Rejected {
            error: refusal(ErrorCode::BadRequest).unwrap(),
        },
    };
    let confirm = postrider_protocol::message::Confirm { runs: vec![run] };
    world.peer.out.push_back(postrider_protocol::frame::event(&confirm));
    let mut input = bytes::BytesMut::new();
    input.extend_from_slice(&world.peer.out.pop_front().unwrap());
    let fault = world.engine.receive(world.now, &mut input).unwrap_err();
    assert!(matches!(fault, LinkFault::Confirm(_)), "{fault:?}");
}

#[test]
fn closing_counts_what_was_never_sent_and_what_is_unknown() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.hold = true;
    let sent = world.enqueue(key, "a");
    world.pump();
    let unsent = [world.enqueue(key, "b"), world.enqueue(key, "c")];
    let left = world.engine.close();
    assert_eq!((left.unsent, left.unacked), (2, 1));
    assert!(matches!(failure(&sent), PublishFailure::Unknown(_)));
    assert_eq!(failure(&unsent[0]), PublishFailure::Closed);
    assert!(matches!(world.try_enqueue(key, "d", None), Enqueue::Ended(Ended::Closed)));
}

#[test]
fn a_released_producer_leaves_after_its_last_outcome() {
    let mut world = World::new(1);
    let key = world.producer(options());
    world.peer.hold = true;
    let sent = world.enqueue(key, "a");
    world.pump();
    let left = world.engine.release_producer(key);
    assert_eq!((left.unsent, left.unacked), (0, 1));
    world.peer.release();
    world.pump();
    assert_eq!(sent.offset(), 0);
    world.pass(Duration::from_millis(200));
    assert!(world.engine.producer_keys().is_empty());
}

#[test]
fn a_silent_broker_is_found_out() {
    let mut world = World::new(1);
    world.peer.silent = true;
    world.pass(Duration::from_secs(16));
    world.now += Duration::from_secs(16);
    assert!(matches!(world.try_pump(), Err(LinkFault::Silent(_))));
}

#[test]
fn an_idle_connection_gives_a_sign_of_life() {
    let mut world = World::new(1);
    for _ in 0..10 {
        world.pass(Duration::from_secs(16));
    }
    assert!(world.engine.is_ready());
}

fn forgets() -> ProducerOptions {
    ProducerOptions { forgets: true, ..options() }
}

#[test]
fn without_acks_a_batch_ends_when_it_is_sent_and_is_never_sent_again() {
    let mut world = World::new(1);
    let key = world.producer(forgets());
    world.peer.hold = true;
    let first = world.enqueue(key, "a");
    world.pump();
    assert!(matches!(first.outcome(), Some(BatchOutcome::Sent)), "no confirm is waited for");
    let second = world.enqueue(key, "b");
    world.pump();
    assert_eq!(world.peer.published.len(), 2, "nothing waits behind it");
    world.disconnect(false);
    let third = world.enqueue(key, "c");
    assert!(third.outcome().is_none(), "it waits for a connection");
    world.peer.hold = false;
    world.connect();
    world.pump();
    assert!(matches!(second.outcome(), Some(BatchOutcome::Sent)));
    assert!(matches!(third.outcome(), Some(BatchOutcome::Sent)));
    assert_eq!(world.peer.values(0), ["c"], "what was lost with the connection is lost, in order");
}

#[test]
fn without_acks_refusals_are_counted_and_the_next_messages_are_stored() {
    let mut world = World::new(1);
    let key = world.producer(forgets());
    world.peer.script.extend([None, refusal(ErrorCode::DiskFull)]);
    for value in ["a", "b", "c"] {
        world.enqueue(key, value);
        world.pump();
    }
    assert_eq!(world.engine.refused_messages(key), 1);
    assert_eq!(
        world.peer.values(0),
        ["a", "c"],
        "a hole in the sequences is given up, not waited for"
    );
}

#[test]
fn without_acks_a_forgotten_session_and_a_new_leader_are_found_again() {
    for code in [ErrorCode::UnknownProducer, ErrorCode::StaleLeaderEpoch] {
        let mut world = World::new(1);
        let key = world.producer(forgets());
        world.peer.script.push_back(refusal(code));
        world.enqueue(key, "a");
        world.pump();
        world.pass(Duration::from_secs(1));
        world.enqueue(key, "b");
        world.pass(Duration::from_secs(1));
        assert_eq!(world.engine.refused_messages(key), 1, "{code:?}");
        assert_eq!(world.peer.values(0), ["b"], "{code:?}");
    }
}

#[test]
fn without_acks_what_is_not_sent_is_bounded() {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions { max_in_flight_bytes: 200, ..forgets() });
    world.disconnect(false);
    let value = "x".repeat(40);
    let fits =
        |world: &mut World| matches!(world.try_enqueue(key, &value, None), Enqueue::Placed { .. });
    let placed = (0..100).take_while(|_| fits(&mut world)).count();
    assert!((1..=5).contains(&placed), "{placed}");
    world.connect();
    world.pump();
    assert!(fits(&mut world), "what was sent makes room");
}
