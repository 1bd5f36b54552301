//! Owns scenarios of messages that are too old, and of queues that hold too many (B12: each is accounted for).

use postrider_core::limits::BOUNDS_PAUSE_MS;
use postrider_core::queue::{DeadCause, Totals};
use postrider_protocol::message::{Expired, Overflow, QueuePolicy, SettleProblem, TopicBounds};
use postrider_protocol::types::Offset;

use crate::stage::{Stage, policy};

const TTL_MS: u64 = 10_000;

fn ttl(expired: Expired) -> TopicBounds {
    TopicBounds { message_ttl_ms: Some(TTL_MS), expired, ..TopicBounds::default() }
}

fn most(max: u64, overflow: Overflow) -> TopicBounds {
    TopicBounds { max_messages: Some(max), overflow, ..TopicBounds::default() }
}

/// A queue with a consumer, where the age of messages was looked up once.
fn aging(policy: QueuePolicy, expired: Expired) -> Stage {
    let mut stage = Stage::new(policy);
    stage.set_bounds(ttl(expired));
    stage.publish(1);
    stage.wait(0);
    stage.attach(1);
    let got = stage.lease(1, 1);
    assert_eq!(stage.ack(1, got[0].0, got[0].1), None);
    stage
}

fn numbers(stage: &Stage) -> (u64, u64, u64) {
    let Totals { acked: _, dead, expired, evicted } = stage.queue().totals();
    (dead, expired, evicted)
}

#[test]
fn a_message_older_than_its_time_to_live_is_not_handed_out() {
    let mut stage = aging(policy(), Expired::Drop);
    stage.publish(3);
    stage.wait(TTL_MS - 1);
    stage.publish(2);
    stage.wait(1);
    assert_eq!(stage.out(1, 9), [4, 5], "the older three are too old, to the millisecond");
    assert_eq!(numbers(&stage), (0, 3, 0));
    assert!(stage.queue().is_conserved(Offset(6)));
    assert!((1..4).all(|offset| stage.is_settled(offset)), "they keep no disk space");
}

#[test]
fn nothing_is_handed_out_before_it_is_known_what_is_too_old() {
    let mut stage = aging(policy(), Expired::Drop);
    stage.publish(2);
    stage.wait(TTL_MS / 2);
    stage.publish(1);
    stage.now.wall.0 += TTL_MS / 2;
    stage.change_leader();
    stage.attach(1);
    assert_eq!(stage.out(1, 9), [], "the new leader has not looked yet");
    stage.wait(0);
    assert!(stage.take_ready().is_some(), "whoever waits is woken then");
    assert_eq!(stage.out(1, 9), [3]);
}

#[test]
fn what_a_consumer_has_expires_when_it_comes_back() {
    let mut stage = aging(policy(), Expired::Drop);
    stage.publish(4);
    let got = stage.lease(1, 4);
    stage.wait(TTL_MS);
    assert_eq!(numbers(&stage), (0, 0, 0), "a lease is not taken away");
    assert_eq!(stage.ack(1, got[0].0, got[0].1), None, "and may be acknowledged");
    stage.nack(1, got[1], Some(0));
    stage.nack(1, got[2], Some(60_000));
    stage.leave(1, true);
    stage.attach(2);
    assert_eq!(stage.out(2, 9), []);
    stage.wait(1);
    assert_eq!(numbers(&stage), (0, 3, 0), "whatever it was to wait for");
    assert!(stage.queue().is_conserved(Offset(5)));
}

#[test]
fn an_ack_of_what_expired_is_answered_gone() {
    let mut stage = aging(QueuePolicy { lease_ms: 1_000, ..policy() }, Expired::Drop);
    stage.publish(1);
    let got = stage.lease(1, 1);
    stage.wait(1_000);
    stage.wait(TTL_MS);
    assert_eq!(numbers(&stage), (0, 1, 0));
    assert_eq!(stage.ack(1, got[0].0, got[0].1), Some(SettleProblem::Gone));
}

#[test]
fn a_key_goes_on_when_its_first_message_expires() {
    for expired in [Expired::Drop, Expired::DeadLetter] {
        let mut stage = aging(QueuePolicy { key_order: true, ..policy() }, expired);
        stage.key_of = |offset| offset % 2 + 1;
        stage.publish(2);
        let got = stage.lease(1, 1);
        assert_eq!(got[0].0, 1);
        stage.wait(TTL_MS / 2);
        stage.publish(4);
        stage.wait(TTL_MS / 2);
        assert_eq!(stage.out(1, 9), [4], "2, of the same key, is too old");
        let dead = if expired == Expired::Drop { vec![] } else { vec![(2, DeadCause::Expired)] };
        assert_eq!(stage.publish_letters(), dead);
        assert_eq!(stage.out(1, 9), [], "1 is out, and 3 waits for it");
        assert_eq!(stage.ack(1, got[0].0, got[0].1), None);
        assert_eq!(stage.out(1, 9), [3]);
    }
}

#[test]
fn expired_messages_become_dead_letters_where_the_topic_says_so() {
    let mut stage = aging(policy(), Expired::DeadLetter);
    stage.publish(2);
    let got = stage.lease(1, 1);
    stage.publish(2);
    stage.wait(TTL_MS);
    assert_eq!(stage.out(1, 9), []);
    let expired = |offset| (offset, DeadCause::Expired);
    assert_eq!(stage.publish_letters(), [2, 3, 4].map(expired));
    stage.nack(1, got[0], Some(0));
    stage.wait(0);
    assert_eq!(stage.publish_letters(), [expired(1)]);
    assert_eq!(numbers(&stage), (4, 0, 0));
}

#[test]
fn expired_letters_wait_for_those_before_them_in_bounded_memory() {
    let mut stage = aging(QueuePolicy { unsettled_max: 8, ..policy() }, Expired::DeadLetter);
    stage.publish(20);
    stage.wait(TTL_MS);
    let mut all = Vec::new();
    while all.len() < 20 {
        let letters = stage.publish_letters();
        assert!((1..=4).contains(&letters.len()), "half of what may be held: {letters:?}");
        all.extend(letters.into_iter().map(|(offset, _)| offset));
        stage.publish(1);
        let fresh = stage.lease(1, 1);
        assert!(fresh[0].0 > 20, "new ones go out meanwhile");
        assert_eq!(stage.ack(1, fresh[0].0, fresh[0].1), None);
        stage.wait(1);
    }
    assert_eq!(all, (1..=20).collect::<Vec<u64>>(), "each once, in order");
}

#[test]
fn a_refused_entry_of_expired_messages_is_written_later() {
    for expired in [Expired::Drop, Expired::DeadLetter] {
        let mut stage = aging(policy(), expired);
        stage.publish(3);
        stage.refuses = true;
        stage.wait(TTL_MS);
        assert_eq!(stage.out(1, 9), [], "they do not come back");
        stage.wait(100);
        stage.refuses = false;
        stage.wait(100);
        stage.wait(100);
        let letters = stage.publish_letters();
        assert!(letters.iter().all(|(_, cause)| *cause == DeadCause::Expired), "{letters:?}");
        let (dead, dropped, _) = numbers(&stage);
        assert_eq!((dead + dropped, dead > 0), (3, expired == Expired::DeadLetter));
    }
}

#[test]
fn without_a_time_to_live_old_messages_go_out_again() {
    for expired in [Expired::Drop, Expired::DeadLetter] {
        let mut stage = aging(policy(), expired);
        stage.publish(3);
        assert_eq!(stage.out(1, 1), [1]);
        stage.refuses = true;
        stage.wait(TTL_MS);
        assert_eq!(stage.out(1, 9), []);
        stage.refuses = false;
        stage.set_bounds(TopicBounds::default());
        stage.wait(0);
        assert_eq!(stage.out(1, 9), [2, 3], "{expired:?}");
        stage.wait(100_000);
        assert_eq!(stage.out(1, 9), [], "1 waits for its back-off");
        stage.wait(10_000);
        assert_eq!(stage.out(1, 1), [1]);
        assert_eq!(numbers(&stage), (0, 0, 0));
    }
}

#[test]
fn what_was_looked_up_for_a_shorter_time_to_live_expires_nothing() {
    let mut stage = aging(policy(), Expired::Drop);
    stage.publish(3);
    stage.now.wall.0 += TTL_MS;
    let ask = stage.partition.expiry_due(stage.now).unwrap();
    let aged = stage.look_up(ask);
    assert_eq!(aged.before, Offset(4));
    // It is raised while the log is read.
    stage.set_bounds(TopicBounds { message_ttl_ms: Some(2 * TTL_MS), ..ttl(Expired::Drop) });
    assert!(stage.partition.expire(stage.now, ask, aged, &mut stage.effects).is_none());
    assert_eq!(stage.out(1, 9), [], "it is asked for again first");
    stage.wait(0);
    assert_eq!(stage.out(1, 9), [1, 2, 3]);
    assert_eq!(numbers(&stage), (0, 0, 0));
}

#[test]
fn the_oldest_messages_that_nobody_has_make_room_for_new_ones() {
    let mut stage = Stage::new(policy());
    stage.set_bounds(most(3, Overflow::DropOldest));
    stage.publish(3);
    stage.attach(1);
    let got = stage.lease(1, 1);
    stage.publish(2);
    stage.wait(BOUNDS_PAUSE_MS);
    assert_eq!(numbers(&stage), (0, 0, 2));
    assert_eq!(stage.out(1, 9), [3, 4], "1 and 2 made room; 0 was out");
    stage.nack(1, got[0], Some(0));
    assert_eq!(stage.out(1, 9), [0], "it has its place");
    stage.wait(1_000);
    assert_eq!(numbers(&stage), (0, 0, 2), "and three are not too many");
    assert!(stage.queue().is_conserved(Offset(5)));
}

#[test]
fn the_oldest_messages_become_dead_letters_where_the_topic_says_so() {
    let mut stage = Stage::new(policy());
    stage.set_bounds(most(3, Overflow::DeadLetter));
    stage.publish(5);
    stage.attach(1);
    stage.wait(BOUNDS_PAUSE_MS);
    let overflow = |offset| (offset, DeadCause::Overflow);
    assert_eq!(stage.out(1, 9), [2, 3, 4]);
    stage.publish(1);
    stage.wait(BOUNDS_PAUSE_MS);
    assert_eq!(
        stage.publish_letters(),
        [0, 1, 5].map(overflow),
        "5 has no room: all others are out"
    );
    stage.wait(BOUNDS_PAUSE_MS);
    assert_eq!(numbers(&stage), (3, 0, 0));
}

#[test]
fn a_lowered_bound_drops_what_is_beyond() {
    let mut stage = Stage::new(policy());
    stage.publish(10);
    stage.set_bounds(most(4, Overflow::DropOldest));
    stage.wait(BOUNDS_PAUSE_MS);
    stage.attach(1);
    assert_eq!(stage.out(1, 9), [6, 7, 8, 9]);
}
