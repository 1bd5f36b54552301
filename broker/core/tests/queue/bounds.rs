//! Owns scenarios of the number of messages that a queue may hold (F4: nothing unsettled makes room).

use postrider_core::cursors::Position;
use postrider_core::partition::{ConnectionId, Decision, Effect, PublishRequest};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{Outcome, PublishHead, TopicBounds};
use postrider_protocol::types::{Offset, ProducerId};

use crate::stage::{Stage, batch, policy};

const MOST: TopicBounds = TopicBounds { max_messages: Some(3), ..NONE };
const NONE: TopicBounds = TopicBounds {
    message_ttl_ms: None,
    expired: postrider_protocol::message::Expired::Drop,
    max_messages: None,
    max_bytes: None,
    overflow: postrider_protocol::message::Overflow::Reject,
    dedup_window_ms: None,
};

fn bounded() -> Stage {
    let mut stage = Stage::new(policy());
    stage.set_bounds(MOST);
    stage
}

/// Publishes so many messages without a session; tells the offset of the first, or why not.
fn publish(stage: &mut Stage, count: u32) -> Result<u64, ErrorCode> {
    let head = PublishHead { seq_count: count, ..stage.head(ProducerId::NONE, 0) };
    answer(stage.publish_head(&head, false))
}

fn answer(outcome: Outcome) -> Result<u64, ErrorCode> {
    match outcome {
        Outcome::Committed { base_offset, .. } | Outcome::Duplicate { base_offset, .. } => {
            Ok(base_offset.0)
        }
        Outcome::Rejected { error } => Err(error.code),
        other => panic!("neither done nor rejected: {other:?}"),
    }
}

#[test]
fn a_full_queue_rejects_publishes_until_a_message_is_settled() {
    let mut stage = bounded();
    stage.attach(1);
    assert_eq!(publish(&mut stage, 2), Ok(0));
    assert_eq!(publish(&mut stage, 2), Err(ErrorCode::TopicFull), "a batch goes in whole or not");
    assert_eq!(publish(&mut stage, 1), Ok(2));
    assert_eq!(publish(&mut stage, 1), Err(ErrorCode::TopicFull));
    let got = stage.lease(1, 9);
    assert_eq!(got.len(), 3, "what is there is delivered");
    assert_eq!(publish(&mut stage, 1), Err(ErrorCode::TopicFull), "leased is not settled");
    // The one in the middle: what counts is the number, not the distance to the oldest.
    assert_eq!(stage.ack(1, 1, got[1].1), None);
    assert_eq!(publish(&mut stage, 1), Ok(3));
    assert_eq!(publish(&mut stage, 1), Err(ErrorCode::TopicFull));
    assert!(!stage.is_settled(0), "nothing unsettled made room");
    assert!(stage.queue().is_conserved(Offset(4)));
}

#[test]
fn what_is_in_flight_counts() {
    let mut stage = bounded();
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        let head = stage.head(ProducerId::NONE, 0);
        let batch = batch(&head);
        let request = PublishRequest {
            head: &head,
            batch: &batch,
            keys: &[],
            connection: ConnectionId(0),
            producer_ids_end: ProducerId(100),
            route: 1_000,
        };
        match stage.partition.publish(stage.now, request, &mut stage.effects) {
            Decision::Append(pending) => {
                stage.append(pending);
                outcomes.push(true);
            }
            _ => outcomes.push(false),
        }
    }
    assert_eq!(outcomes, [true, true, true, false], "though none of them is committed");
    assert_eq!(stage.partition.high_watermark().offset, Position::default().offset);
    let full = |effect: &Effect<u64>| match effect {
        Effect::Confirm { run, .. } => Some(answer(run.outcome.clone())),
        _ => None,
    };
    assert_eq!(stage.take_effect(full), Some(Err(ErrorCode::TopicFull)));
}

#[test]
fn a_retry_of_what_is_stored_is_answered_by_a_full_queue() {
    let mut stage = bounded();
    let first = stage.head(ProducerId(5), 0);
    assert_eq!(answer(stage.publish_head(&first, false)), Ok(0));
    assert_eq!(publish(&mut stage, 2), Ok(1));
    assert_eq!(answer(stage.publish_head(&first, false)), Ok(0), "it takes no room again");
    let next = stage.head(ProducerId(5), 1);
    assert_eq!(answer(stage.publish_head(&next, false)), Err(ErrorCode::TopicFull));
    stage.set_bounds(NONE);
    assert_eq!(answer(stage.publish_head(&next, false)), Ok(3), "the session goes on where it was");
}

#[test]
fn a_dead_letter_has_room_in_a_full_queue() {
    let mut stage = bounded();
    assert_eq!(publish(&mut stage, 3), Ok(0));
    let head = stage.head(ProducerId::internal(1), 0);
    assert_eq!(answer(stage.publish_head(&head, true)), Ok(3));
}

#[test]
fn a_lowered_bound_removes_nothing_and_outlives_the_leader_by_the_join() {
    let mut stage = Stage::new(policy());
    assert_eq!(publish(&mut stage, 5), Ok(0));
    stage.set_bounds(MOST);
    stage.attach(1);
    for (offset, attempt, _) in stage.lease(1, 3) {
        assert_eq!(publish(&mut stage, 1), Err(ErrorCode::TopicFull));
        assert_eq!(stage.ack(1, offset, attempt), None);
    }
    assert_eq!(publish(&mut stage, 1), Ok(5));
    stage.change_leader();
    assert_eq!(publish(&mut stage, 1), Err(ErrorCode::TopicFull), "counted from the fold");
}
