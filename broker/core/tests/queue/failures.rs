//! Owns scenarios of messages that fail: when they go out again, in which company, and how they die.

use postrider_core::queue::Totals;
use postrider_protocol::message::QueuePolicy;

use crate::stage::{QUEUE, Stage, policy};

// L2: retries cannot keep new messages out, nor new ones retries.
#[test]
fn at_most_one_retry_goes_out_for_one_new_message() {
    let mut stage = Stage::new(policy());
    stage.publish(20);
    stage.attach(1);
    for got in stage.lease(1, 10) {
        stage.nack(1, got, Some(0));
    }
    let mut lead = 0_i32;
    for messages in [1, 1, 1, 4, 2, 5] {
        for (_, attempt, _) in stage.lease(1, messages) {
            lead += if attempt > 1 { 1 } else { -1 };
        }
        assert!((-1..=1).contains(&lead), "retries are {lead} ahead");
    }
    assert_eq!(stage.failed().len(), 10);
}

// L2
#[test]
fn retries_go_out_without_new_messages_in_the_order_of_offsets() {
    let mut stage = Stage::new(policy());
    stage.publish(4);
    stage.attach(1);
    let got = stage.lease(1, 4);
    for at in [2, 0, 3, 1] {
        stage.nack(1, got[at], Some(0));
    }
    assert_eq!(stage.lease(1, 9), [(0, 2, 1), (1, 2, 1), (2, 2, 1), (3, 2, 1)]);
}

// B7
#[test]
fn a_message_half_the_way_to_its_death_is_leased_alone() {
    let mut stage = Stage::new(QueuePolicy { max_failures: 5, ..policy() });
    stage.publish(8);
    stage.attach(1);
    let got = stage.lease(1, 1);
    stage.nack(1, got[0], Some(0));
    for failures in [1, 2] {
        let got = stage.lease(1, 2);
        assert_eq!(got.len(), 2, "{failures} of 5: with others");
        let retry = *got.iter().find(|(offset, ..)| *offset == 0).unwrap();
        assert_eq!(retry.2, failures);
        stage.nack(1, retry, Some(0));
    }
    let mut alone = 0;
    loop {
        let got = stage.lease(1, 2);
        let suspect = got.iter().any(|(offset, ..)| *offset == 0);
        assert!(!suspect || got == [(0, 4, 3)], "3 of 5: alone, not {got:?}");
        alone += u32::from(suspect);
        if got.is_empty() {
            break;
        }
    }
    assert_eq!(alone, 1);
}

// B8
#[test]
fn a_failed_message_waits_for_its_back_off_which_doubles_up_to_a_bound() {
    let mut stage = Stage::new(QueuePolicy { backoff_max_ms: 3_000, ..policy() });
    stage.publish(1);
    stage.attach(1);
    let mut got = stage.lease(1, 9);
    for (failures, wait_ms) in [(1, 1_000), (2, 2_000), (3, 3_000), (4, 3_000)] {
        stage.nack(1, got[0], None);
        let due = stage.failure(0).unwrap().due.0 - stage.now.wall.0;
        assert!((wait_ms * 8 / 10..=wait_ms * 12 / 10).contains(&due), "{due} for {wait_ms}");
        assert_eq!(stage.out(1, 9), []);
        stage.effects.clear();
        stage.wait(due - 1);
        assert_eq!((stage.out(1, 9), stage.take_ready()), (vec![], None));
        stage.wait(1);
        assert_eq!(stage.take_ready(), Some(None), "who waits is woken when it is due");
        got = stage.lease(1, 9);
        assert_eq!(got, [(0, failures + 1, failures)]);
    }
}

// B8
#[test]
fn a_failed_message_waits_as_long_as_its_consumer_says_also_under_the_next_leader() {
    let mut stage = Stage::new(policy());
    stage.publish(2);
    stage.attach(1);
    let got = stage.lease(1, 1);
    stage.nack(1, got[0], Some(5_000));
    stage.wait(2_000);
    stage.change_leader();
    stage.attach(1);
    assert_eq!(stage.lease(1, 9), [(1, 1, 0)], "what did not fail does not wait");
    stage.wait(2_999);
    assert_eq!(stage.out(1, 9), []);
    stage.wait(1);
    assert_eq!(stage.lease(1, 9), [(0, 1, 1)], "its failures are known, its hand-outs are not");
}

#[test]
fn a_letter_says_who_had_its_message_last_though_it_waited_for_its_topic_under_another_leader() {
    let mut stage = Stage::new(QueuePolicy { max_failures: 2, ..policy() });
    stage.partition.set_dead_letter_target(QUEUE, None);
    stage.publish(1);
    for member in [3, 4] {
        stage.attach(member);
        let got = stage.lease(member, 1);
        stage.nack(member, got[0], Some(0));
    }
    assert!(stage.partition.dead_intents(QUEUE).next().is_none(), "there is no topic yet");
    stage.change_leader();
    stage.attach(5);
    stage.wait(25);
    let letters: Vec<_> = stage.partition.dead_intents(QUEUE).collect();
    assert_eq!(letters.len(), 1, "the next leader knows the topic");
    assert_eq!(letters[0].consumer.as_str(), "consumer 4");
}

/// A queue whose only message is dead.
fn dead() -> Stage {
    let mut stage = Stage::new(QueuePolicy { max_failures: 2, ..policy() });
    stage.publish(1);
    stage.attach(1);
    for _ in 0..2 {
        let got = stage.lease(1, 9);
        stage.nack(1, got[0], Some(0));
    }
    stage
}

// B7
#[test]
fn a_message_that_failed_too_often_dies_and_is_handed_out_no_more() {
    let mut stage = dead();
    stage.wait(60_000);
    assert_eq!(stage.out(1, 9), []);
    let letters: Vec<_> = stage.partition.dead_intents(QUEUE).cloned().collect();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].failures, letters[0].reason.as_str()), (2, "no"));
    assert_eq!(letters[0].consumer.as_str(), "consumer 1");
    assert!(!stage.is_settled(0), "it is settled when its letter is published");
    stage.change_leader();
    stage.attach(1);
    assert_eq!(stage.out(1, 9), []);
    assert!(stage.partition.dead_intents(QUEUE).eq(&letters), "the letter outlives the leader");
}

// L4: the outbox says once that a letter is published; the broker does not forget it on a full disk.
#[test]
fn a_letter_whose_publication_the_disk_refused_to_record_is_recorded_when_it_can_be() {
    let mut stage = dead();
    let letter = stage.partition.dead_intents(QUEUE).next().unwrap().clone();
    let (epoch, offsets) = (letter.sub_epoch, [letter.offset]);
    stage.refuses = true;
    let (now, effects) = (stage.now, &mut stage.effects);
    let decision = stage.partition.dead_done(now, QUEUE, epoch, &offsets, effects);
    stage.follow(decision);
    stage.wait(25);
    assert!(!stage.is_settled(0));
    stage.refuses = false;
    stage.wait(25);
    assert!(stage.is_settled(0), "without another word of the outbox");
    assert_eq!(stage.queue().totals(), Totals { dead: 1, ..Totals::default() });
    assert!(stage.partition.dead_intents(QUEUE).next().is_none());
}
