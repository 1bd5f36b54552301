//! Owns scenarios of order: of keys, and of consumers.

use postrider_core::limits::SESSION_GRACE_MS;
use postrider_protocol::message::QueuePolicy;

use crate::stage::{Stage, policy};

/// Six messages: 0, 2 and 4 have one key, 1 and 5 another, 3 has none.
fn keyed() -> Stage {
    let mut stage = Stage::new(QueuePolicy { key_order: true, ..policy() });
    stage.key_of = |offset| [7, 8, 7, 0, 7, 8][usize::try_from(offset).unwrap()];
    stage.publish(6);
    stage.attach(1);
    stage.attach(2);
    stage
}

// C2
#[test]
fn a_message_blocks_the_later_ones_of_its_key_and_no_others() {
    let mut stage = keyed();
    assert_eq!(stage.out(1, 9), [0, 1, 3]);
    assert_eq!(stage.out(2, 9), []);
    assert_eq!(stage.ack(1, 1, 1), None);
    assert_eq!(stage.out(2, 9), [5], "the key of 1 is free, that of 0 is not");
    assert_eq!(stage.ack(1, 0, 1), None);
    assert_eq!(stage.out(2, 9), [2]);
    assert_eq!(stage.ack(2, 2, 1), None);
    assert_eq!(stage.out(1, 9), [4]);
}

// C2, B8
#[test]
fn a_message_that_failed_blocks_its_key_until_it_is_settled() {
    let mut stage = keyed();
    let got = stage.lease(1, 9);
    stage.nack(1, got[0], Some(1_000));
    assert_eq!(stage.ack(1, 1, 1), None);
    assert_eq!(stage.out(2, 9), [5], "2 waits for 0, which waits for its time");
    stage.wait(1_000);
    assert_eq!(stage.lease(2, 9), [(0, 2, 1)]);
    assert_eq!(stage.ack(2, 0, 2), None);
    assert_eq!(stage.out(2, 9), [2]);
}

// C2
#[test]
fn keys_stay_in_order_under_the_next_leader() {
    let mut stage = keyed();
    let got = stage.lease(1, 9);
    stage.nack(1, got[0], Some(1_000));
    assert_eq!(stage.ack(1, 1, 1), None);
    stage.change_leader();
    stage.attach(1);
    assert_eq!(stage.out(1, 9), [3, 5]);
    stage.wait(1_000);
    assert_eq!(stage.lease(1, 9), [(0, 1, 1)]);
}

// C2
#[test]
fn a_lease_that_ended_is_not_found_again_before_an_earlier_one_of_its_key() {
    let mut stage = Stage::new(policy());
    stage.key_of = |_| 7;
    stage.publish(2);
    stage.attach(1);
    stage.attach(2);
    let got = stage.lease(1, 9);
    assert_eq!(got.len(), 2, "there is no order yet");
    stage.set_policy(QueuePolicy { key_order: true, ..policy() });
    stage.nack(1, got[0], Some(600_000));
    assert_eq!(stage.out(2, 9), [], "1 is out, and 0 waits for its time");
    stage.wait(u64::from(policy().lease_ms) + 1);
    assert_eq!(stage.take_lost(1), [1]);
    stage.wait(60_000);
    let found = stage.attach_holding(1, &[(1, 1)]);
    assert_eq!(found, [], "its lease has ended, and it is not its turn");
}

// C2
#[test]
fn a_key_waits_for_what_went_out_before_there_was_order() {
    let mut stage = Stage::new(policy());
    stage.key_of = |_| 7;
    stage.publish(3);
    stage.attach(1);
    stage.attach(2);
    let got = stage.lease(1, 9);
    assert_eq!(got.len(), 3);
    stage.set_policy(QueuePolicy { key_order: true, ..policy() });
    stage.nack(1, got[0], Some(0));
    assert_eq!(stage.out(2, 9), [], "1 and 2 are out");
    assert_eq!(stage.ack(1, 1, 1), None);
    assert_eq!(stage.out(2, 9), []);
    assert_eq!(stage.ack(1, 2, 1), None);
    assert_eq!(stage.out(2, 9), [0]);
}

fn single() -> Stage {
    let mut stage = Stage::new(QueuePolicy { single_active: true, ..policy() });
    stage.publish(6);
    stage.attach(2);
    assert_eq!(stage.out(2, 2), [0, 1]);
    stage.attach(1);
    stage.attach(3);
    assert_eq!(stage.out(1, 9), [], "who is active stays active, also when a lower key comes");
    assert_eq!(stage.out(3, 9), []);
    stage.effects.clear();
    stage
}

// C3
#[test]
fn a_single_active_consumer_that_leaves_is_followed_by_the_lowest_of_the_others() {
    let mut stage = single();
    stage.leave(2, true);
    assert_eq!(stage.take_ready(), Some(Some(1)), "exactly the next one is woken");
    assert_eq!(stage.out(3, 9), []);
    assert_eq!(stage.out(1, 9).len(), 6);
}

// C3
#[test]
fn a_single_active_consumer_that_is_lost_is_followed_when_its_grace_ends() {
    let mut stage = single();
    stage.leave(2, false);
    stage.wait(SESSION_GRACE_MS - 1);
    assert_eq!(stage.out(1, 9), [], "it may come back");
    stage.wait(1);
    assert_eq!(stage.take_ready(), Some(Some(1)));
    assert_eq!(stage.out(3, 9), []);
    assert_eq!(stage.out(1, 9).len(), 5, "all but the one that failed with the lost session");
    stage.attach(2);
    assert_eq!(stage.out(2, 9), [], "its turn is over");
}

// C3, L3: nobody asks in between, so the wake must not be spent on who is away.
#[test]
fn who_waits_is_woken_when_the_single_active_consumer_is_lost() {
    let mut stage = single();
    stage.leave(2, false);
    assert_eq!(stage.take_ready(), None, "who is away cannot be woken");
    stage.wait(SESSION_GRACE_MS);
    assert_eq!(stage.take_ready(), Some(Some(1)));
}

// C3, L3
#[test]
fn a_single_active_consumer_that_comes_back_within_its_grace_is_woken() {
    let mut stage = single();
    stage.leave(2, false);
    assert_eq!(stage.attach_holding(2, &[(0, 1), (1, 1)]), [(0, 1, 0), (1, 1, 0)]);
    assert_eq!(stage.take_ready(), Some(Some(2)));
    assert_eq!(stage.out(2, 9).len(), 4);
}
