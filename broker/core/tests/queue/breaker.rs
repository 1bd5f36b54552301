//! Owns scenarios of the circuit breaker.

use postrider_protocol::message::{Breaker, QueuePolicy, ReturnAction};

use crate::stage::{Got, Stage, policy};

/// Opens when two of four outcomes are failures.
fn stage() -> Stage {
    let breaker = Some(Breaker { failure_percent: 50, window: 4, pause_ms: 300 });
    let mut stage = Stage::new(QueuePolicy { breaker, ..policy() });
    stage.publish(12);
    stage.attach(1);
    stage.attach(2);
    stage
}

fn succeed(stage: &mut Stage, (offset, attempt, _): Got) {
    assert_eq!(stage.ack(1, offset, attempt), None);
}

/// Two successes and two failures that are due much later.
fn open(stage: &mut Stage) {
    for at in 0..4 {
        let got = stage.lease(1, 1)[0];
        match at {
            0 | 1 => succeed(stage, got),
            _ => stage.nack(1, got, Some(60_000)),
        }
    }
}

#[test]
fn the_breaker_stays_closed_below_its_ratio() {
    let mut stage = stage();
    for at in 0..8 {
        let got = stage.lease(1, 1)[0];
        match at % 4 {
            0 => stage.nack(1, got, Some(60_000)),
            _ => succeed(&mut stage, got),
        }
        assert!(!stage.breaker_is_open());
    }
    assert_eq!(stage.out(1, 9).len(), 4);
}

#[test]
fn the_breaker_stays_closed_until_its_window_is_full() {
    let mut stage = stage();
    for _ in 0..3 {
        let got = stage.lease(1, 1)[0];
        stage.nack(1, got, Some(60_000));
        assert!(!stage.breaker_is_open());
    }
    let got = stage.lease(1, 1)[0];
    stage.nack(1, got, Some(60_000));
    assert!(stage.breaker_is_open());
}

#[test]
fn the_breaker_opens_at_its_ratio_and_hands_nothing_out_while_it_pauses() {
    let mut stage = stage();
    open(&mut stage);
    assert!(stage.breaker_is_open());
    assert_eq!(stage.out(1, 9), []);
    stage.effects.clear();
    stage.wait(299);
    assert_eq!((stage.out(1, 9), stage.take_ready()), (vec![], None));
    stage.wait(1);
    assert_eq!(stage.take_ready(), Some(None), "the pause is over: somebody may probe");
}

#[test]
fn the_breaker_probes_with_single_messages_and_closes_by_a_success() {
    let mut stage = stage();
    open(&mut stage);
    stage.wait(300);
    let probe = stage.lease(1, 9);
    assert_eq!(probe, [(4, 1, 0)], "one message, whatever the credit");
    assert_eq!((stage.out(1, 9), stage.out(2, 9)), (vec![], vec![]), "and one at a time");
    stage.nack(1, probe[0], Some(60_000));
    stage.wait(299);
    assert_eq!(stage.out(1, 9), [], "it failed: another pause");
    stage.wait(1);
    let probe = stage.lease(1, 9);
    assert_eq!(probe, [(5, 1, 0)]);
    succeed(&mut stage, probe[0]);
    assert!(!stage.breaker_is_open());
    assert_eq!(stage.out(2, 9), [6, 7, 8, 9, 10, 11]);
}

// L3
#[test]
fn a_probe_that_comes_back_without_an_outcome_is_followed_by_another() {
    let mut stage = stage();
    open(&mut stage);
    stage.wait(300);
    assert_eq!(stage.out(1, 9), [4]);
    assert_eq!(stage.out(2, 9), []);
    assert_eq!(stage.give_return(1, 4, 1, ReturnAction::Release), None);
    assert_eq!(stage.take_ready(), Some(None));
    assert_eq!(stage.lease(2, 9), [(4, 2, 0)]);
    stage.leave(2, true);
    assert_eq!(stage.out(1, 9).len(), 1, "a retry or a new one, and alone");
}
