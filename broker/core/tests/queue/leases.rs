//! Owns scenarios of leases: who is blamed when a consumer is lost, how long a lease lasts, which acks
//! count.

use postrider_core::limits::SESSION_GRACE_MS;
use postrider_core::queue::{LeaseCredit, ReturnCause};
use postrider_protocol::message::{QueuePolicy, ReturnAction, SettleProblem};

use crate::stage::{Stage, policy};

/// A queue with so many messages, all leased to consumer 1.
fn leased(policy: QueuePolicy, count: u32) -> Stage {
    let mut stage = Stage::new(policy);
    stage.publish(count);
    stage.attach(1);
    assert_eq!(stage.out(1, count).len(), usize::try_from(count).unwrap());
    stage
}

/// The consumer goes without a word, and its grace ends.
fn lose(stage: &mut Stage, member: u64) {
    stage.leave(member, false);
    stage.wait(SESSION_GRACE_MS);
}

// B7, L3
#[test]
fn a_lost_session_is_blamed_for_the_messages_that_it_has_begun_with() {
    let mut stage = leased(policy(), 6);
    stage.attach(2);
    stage.renew(1, 3);
    assert_eq!(stage.ack(1, 0, 1), None);
    lose(&mut stage, 1);
    assert_eq!(stage.failed(), [(1, 1), (2, 1)], "what is acked or not begun with is innocent");
    assert_eq!(stage.failure(1).unwrap().cause, ReturnCause::SessionLost);
    assert_eq!(stage.lease(2, 9), [(3, 2, 0), (4, 2, 0), (5, 2, 0)], "these go out at once");
    stage.wait(1_200);
    assert_eq!(stage.lease(2, 9), [(1, 2, 1), (2, 2, 1)], "and the others after their back-off");
}

// B7
#[test]
fn a_lost_session_that_is_not_known_to_have_begun_is_blamed_for_its_oldest_lease() {
    let mut stage = leased(policy(), 3);
    stage.attach(2);
    assert_eq!(stage.give_return(1, 0, 1, ReturnAction::Release), None);
    assert_eq!(stage.out(1, 9), [0], "its lease is the newest now");
    lose(&mut stage, 1);
    assert_eq!(stage.failed(), [(1, 1)]);
    assert_eq!(stage.lease(2, 9), [(0, 3, 0), (2, 2, 0)]);
}

// L3: with leases of a minute, nothing but the loss of the session gives these back.
#[test]
fn leases_of_a_lost_session_are_given_back_when_its_grace_ends_and_not_before() {
    let mut stage = leased(policy(), 3);
    stage.attach(2);
    stage.leave(1, false);
    assert_eq!(stage.out(2, 9), []);
    stage.wait(SESSION_GRACE_MS - 1);
    assert_eq!(stage.out(2, 9), []);
    stage.wait(1);
    assert_eq!(stage.take_ready(), Some(None), "whoever waits is woken");
    assert_eq!(stage.out(2, 9), [1, 2]);
}

// B9
#[test]
fn a_consumer_that_comes_back_within_its_grace_keeps_its_leases_and_is_not_blamed() {
    let mut stage = leased(policy(), 3);
    stage.attach(2);
    stage.leave(1, false);
    stage.wait(SESSION_GRACE_MS - 1);
    assert_eq!(stage.attach_holding(1, &[(0, 1), (2, 1)]), [(0, 1, 0), (2, 1, 0)]);
    stage.wait(SESSION_GRACE_MS);
    assert_eq!(stage.failed(), []);
    assert_eq!(stage.lease(2, 9), [(1, 2, 0)], "what never arrived goes out again");
    assert_eq!(stage.ack(1, 0, 1), None);
    assert!(stage.is_settled(0));
}

// L3
#[test]
fn a_consumer_that_leaves_gives_everything_back_at_once_without_failure() {
    let mut stage = leased(policy(), 3);
    stage.attach(2);
    stage.renew(1, 3);
    stage.leave(1, true);
    assert_eq!(stage.lease(2, 9), [(0, 2, 0), (1, 2, 0), (2, 2, 0)]);
    assert_eq!(stage.failed(), []);
}

// B9
#[test]
fn renewal_keeps_leases_until_their_longest_time_and_not_beyond() {
    let mut stage = leased(QueuePolicy { lease_ms: 1_000, lease_max_ms: 3_000, ..policy() }, 2);
    stage.attach(2);
    for _ in 0..3 {
        stage.wait(900);
        stage.renew(1, 0);
        assert_eq!(stage.out(2, 9), []);
    }
    stage.wait(299);
    assert_eq!(stage.failed(), [], "2,999 ms: the lease was renewed");
    stage.wait(1);
    assert_eq!(stage.failed(), [(0, 1), (1, 1)], "3,000 ms: it is over, renewed or not");
    assert_eq!(stage.take_lost(1), [0, 1]);
    assert_eq!(stage.failure(0).unwrap().cause, ReturnCause::LeaseExpired);
}

// B9
#[test]
fn a_lease_that_is_not_renewed_ends_after_its_time() {
    let mut stage = leased(QueuePolicy { lease_ms: 1_000, lease_max_ms: 9_000, ..policy() }, 1);
    stage.wait(500);
    stage.renew(1, 0);
    stage.wait(999);
    assert_eq!((stage.failed(), stage.take_lost(1)), (vec![], vec![]));
    stage.wait(1);
    assert_eq!((stage.failed(), stage.take_lost(1)), (vec![(0, 1)], vec![0]));
}

// B3, B10
#[test]
fn an_expired_message_may_be_acked_until_it_is_handed_out_again() {
    let mut stage = leased(QueuePolicy { lease_ms: 1_000, ..policy() }, 1);
    stage.attach(2);
    stage.wait(1_000);
    assert_eq!(stage.take_lost(1), [0]);
    stage.wait(1_200);
    assert_eq!(stage.ack(1, 0, 1), None, "it was due, and went to nobody");
    assert!(stage.is_settled(0));
    assert_eq!(stage.out(2, 9), [], "and never goes out again");
    assert_eq!(stage.ack(1, 0, 1), Some(SettleProblem::AlreadyAcked));
}

// B10
#[test]
fn an_expired_message_that_was_handed_out_again_is_acked_by_its_newest_lease_only() {
    let mut stage = leased(QueuePolicy { lease_ms: 1_000, ..policy() }, 2);
    stage.wait(2_200);
    stage.attach(2);
    assert_eq!(stage.failed(), [(0, 1), (1, 1)]);
    stage.wait(1_200);
    assert_eq!(stage.lease(1, 1), [(0, 2, 1)], "to the same consumer");
    assert_eq!(stage.lease(2, 1), [(1, 2, 1)], "to another one");
    assert_eq!(stage.ack(1, 0, 1), Some(SettleProblem::LeaseLost));
    assert_eq!(stage.ack(1, 1, 1), Some(SettleProblem::LeaseLost));
    assert_eq!(stage.ack(1, 1, 2), Some(SettleProblem::LeaseLost), "not its lease");
    assert!(!stage.is_settled(0) && !stage.is_settled(1));
    assert_eq!((stage.ack(1, 0, 2), stage.ack(2, 1, 2)), (None, None));
    assert!(stage.is_settled(0) && stage.is_settled(1));
}

// B10
#[test]
fn a_message_that_was_given_back_is_acked_by_nobody() {
    let mut stage = leased(policy(), 2);
    stage.nack(1, (0, 1, 0), Some(0));
    assert_eq!(stage.ack(1, 0, 1), Some(SettleProblem::LeaseLost));
    assert_eq!(stage.give_return(1, 1, 1, ReturnAction::Release), None);
    assert_eq!(stage.ack(1, 1, 1), Some(SettleProblem::LeaseLost));
}

// B11
#[test]
fn leases_never_pass_the_credit_but_for_one_message() {
    let mut stage = Stage::new(policy());
    stage.publish(10);
    stage.attach(1);
    // The batch is 40 bytes, so each of its messages weighs 4.
    for (messages, bytes, expected) in [(3, 1 << 20, 3), (9, 8, 2), (9, 3, 1), (1, 1 << 20, 1)] {
        let credit = LeaseCredit { messages, bytes };
        assert_eq!(stage.lease_credit(1, credit).len(), expected, "{messages} in {bytes}");
    }
}
