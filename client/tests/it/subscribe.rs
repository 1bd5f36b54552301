//! The engine's reading: positions, credit, resuming, acks, seeks; and requests.

use std::task::Poll;
use std::time::Duration;

use postrider::core::{
    completion::promise,
    link::{LinkFault, Repeat, RequestFailure},
    producer::ProducerOptions,
    subscription::{AckFailure, Incoming},
};
use postrider_protocol::{
    error::ErrorCode,
    message::{DeleteTopic, Ping, Start},
    types::{Offset, PartitionId},
};

use crate::world::{World, poll_now};

const WINDOW: (u32, u32) = (1000, 1 << 20);
const P0: PartitionId = PartitionId(0);

/// A world whose partition 0 has this many batches of this many messages.
fn filled(batches: u32, messages: u32) -> World {
    let mut world = World::new(1);
    let key = world.producer(ProducerOptions::default());
    for _ in 0..batches {
        for _ in 0..messages {
            world.enqueue(key, "value");
        }
        world.pump();
    }
    assert_eq!(world.peer.partitions[0].entries.len() as u32, batches);
    world
}

#[test]
fn a_reader_gets_everything_in_order_and_continues_after_a_lost_connection() {
    let mut world = filled(6, 10);
    let (handle, attached) = world.subscribe(None, Start::Offset(Offset(5)), WINDOW);
    let attached = attached.try_take().unwrap().unwrap();
    assert_eq!((attached[0].next, attached[0].high_watermark), (Offset(5), Offset(60)));
    assert_eq!(world.next_run(handle), (5, 10));
    world.disconnect(false);
    assert_eq!(world.next_run(handle), (10, 20), "what was received is not lost");
    world.connect();
    for first in [20, 30, 40, 50] {
        assert_eq!(world.next_run(handle), (first, first + 10));
    }
    assert!(world.next(handle).is_none(), "the stream waits for more");
}

#[test]
fn what_a_lost_connection_took_is_asked_for_again() {
    let mut world = filled(4, 10);
    let (handle, _attached) = world.subscribe(None, Start::Earliest, (15, 1 << 20));
    assert_eq!(world.next_run(handle), (0, 10));
    assert_eq!(world.next_run(handle), (10, 20));
    // The credit for more is still in the engine.
    world.disconnect(false);
    world.connect();
    assert_eq!(world.next_run(handle), (20, 30));
    world.pump();
    assert_eq!(world.next_run(handle), (30, 40));
}

#[test]
fn credit_bounds_what_waits_and_comes_back_as_it_is_taken() {
    let mut world = filled(100, 10);
    let (handle, _attached) = world.subscribe(None, Start::Earliest, (100, 1 << 20));
    assert_eq!(world.peer.credit_left()[0].0, 0);
    for n in 0..100 {
        assert_eq!(world.next_run(handle), (n * 10, n * 10 + 10));
        world.pump();
        let (messages, _) = world.peer.credit_left()[0];
        assert!((-9..=100).contains(&messages), "{messages}");
    }
    world.pump();
    let (messages, bytes) = world.peer.credit_left()[0];
    assert!(messages > 100 - 100 / 4 && messages <= 100, "{messages}");
    assert!(bytes > 0 && bytes <= 1 << 20);
}

#[test]
fn a_batch_larger_than_the_window_passes() {
    let mut world = filled(3, 50);
    let (handle, _attached) = world.subscribe(None, Start::Earliest, (1, 1));
    for n in 0..3 {
        assert_eq!(world.next_run(handle), (n * 50, n * 50 + 50));
        world.pump();
    }
}

#[test]
fn a_gap_is_told_in_its_place() {
    let mut world = filled(4, 10);
    world.peer.partitions[0].start = 20;
    let (handle, _attached) = world.subscribe(None, Start::Offset(Offset(5)), WINDOW);
    match world.next(handle) {
        Some(Some(Incoming::Gap { from, to, .. })) => {
            assert_eq!((from, to), (Offset(5), Offset(20)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.next_run(handle), (20, 30));
}

#[test]
fn a_delivery_out_of_order_ends_the_connection() {
    let mut world = filled(4, 10);
    let (_handle, _attached) = world.subscribe(None, Start::Latest, WINDOW);
    let entry = world.peer.partitions[0].entries[1].clone();
    let head = postrider_protocol::message::DeliverHead {
        handle: postrider_protocol::types::SubscriptionHandle(1),
        partition: P0,
        owner_epoch: 0,
        next: Offset(10),
        high_watermark: Offset(40),
        dispatch_index: 0,
    };
    let deliver = postrider_protocol::message::Deliver { head, entries: entry.2 };
    world.peer.out.push_back(postrider_protocol::frame::event(&deliver));
    let mut input = bytes::BytesMut::new();
    input.extend_from_slice(&world.peer.out.pop_front().unwrap());
    let fault = world.engine.receive(world.now, &mut input).unwrap_err();
    assert!(matches!(fault, LinkFault::Delivery(_)), "{fault:?}");
}

#[test]
fn an_unknown_topic_is_refused_to_the_opener_only_once() {
    let mut world = filled(1, 1);
    let (handle, attached) = world.subscribe(None, Start::Latest, WINDOW);
    assert!(attached.try_take().unwrap().is_ok());
    world.peer.close_subscriptions(ErrorCode::UnknownTopic);
    world.pump();
    assert!(matches!(world.next(handle), Some(Some(Incoming::Ended(_)))));
    assert!(matches!(world.next(handle), Some(None)), "and then the stream is over");
}

#[test]
fn a_subscription_closed_for_now_is_attached_again_by_itself() {
    let mut world = filled(2, 10);
    let (handle, _attached) = world.subscribe(None, Start::Earliest, WINDOW);
    assert_eq!(world.next_run(handle), (0, 10));
    world.peer.close_subscriptions(ErrorCode::Overloaded);
    world.pump();
    assert!(!world.peer.is_attached());
    world.pass(Duration::from_millis(150));
    assert!(world.peer.is_attached());
    assert_eq!(world.next_run(handle), (10, 20));
    assert!(world.next(handle).is_none(), "nothing comes twice");
}

#[test]
fn acks_are_sent_one_at_a_time_and_the_highest_stands_for_all() {
    let mut world = filled(5, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    world.peer.hold_acks = true;
    let mut waits = Vec::new();
    for up_to in [3, 10, 20, 15] {
        let (promise, pending) = promise();
        world.engine.ack_up_to(handle, P0, 1, Offset(up_to), promise);
        world.pump();
        waits.push(pending);
    }
    assert_eq!(world.peer.acks.len(), 1);
    world.peer.release_acks();
    world.pump();
    let up_to: Vec<_> = world.peer.acks.iter().map(|ack| ack.up_to.0).collect();
    assert_eq!(up_to, [3, 20]);
    for wait in &mut waits {
        assert!(matches!(poll_now(wait), Poll::Ready(Some(Ok(())))));
    }
}

#[test]
fn a_durable_subscription_begins_behind_the_ack_after_a_lost_connection() {
    let mut world = filled(3, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    assert_eq!(world.next_run(handle), (0, 10));
    assert_eq!(world.next_run(handle), (10, 20));
    let (promise, mut stored) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(10), promise);
    world.pump();
    assert!(matches!(poll_now(&mut stored), Poll::Ready(Some(Ok(())))));
    world.disconnect(false);
    world.connect();
    assert_eq!(world.next_run(handle), (10, 20), "delivered again: it was not acknowledged");
}

#[test]
fn an_ack_survives_a_lost_connection_if_no_other_owner_came_between() {
    let mut world = filled(3, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    world.peer.hold_acks = true;
    let (first, mut on_the_wire) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(10), first);
    world.pump();
    world.disconnect(false);
    let (second, mut made_offline) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(12), second);
    world.peer.hold_acks = false;
    world.connect();
    assert!(matches!(poll_now(&mut on_the_wire), Poll::Ready(Some(Ok(())))));
    assert!(matches!(poll_now(&mut made_offline), Poll::Ready(Some(Ok(())))));
    assert_eq!(world.peer.durable[&("s".into(), P0)].acked, 12);
}

#[test]
fn a_confirmed_ack_is_never_delivered_again_even_if_it_was_on_its_way_at_a_reconnect() {
    let mut world = filled(2, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    assert_eq!(world.next_run(handle), (0, 10));
    assert_eq!(world.next_run(handle), (10, 20));
    world.peer.hold_acks = true;
    let (promise, mut stored) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(15), promise);
    world.pump();
    world.disconnect(false);
    world.peer.hold_acks = false;
    // The attach delivers from 0 before the broker has the ack, which is repeated behind it.
    world.connect();
    assert!(matches!(poll_now(&mut stored), Poll::Ready(Some(Ok(())))));
    assert_eq!(world.next_run(handle), (15, 20), "what lies below is acknowledged");
    assert!(world.next(handle).is_none());
}

#[test]
fn an_ack_from_before_another_owner_is_stale() {
    let mut world = filled(3, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    world.disconnect(false);
    world.peer.durable.get_mut(&("s".into(), P0)).unwrap().owner_epoch += 1;
    let (promise, mut stale) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(12), promise);
    world.connect();
    assert!(matches!(poll_now(&mut stale), Poll::Ready(Some(Err(AckFailure::Stale)))));
    assert_eq!(world.peer.durable[&("s".into(), P0)].acked, 0);
}

#[test]
fn a_seek_replaces_what_waits_and_makes_older_acks_stale() {
    let mut world = filled(6, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    assert_eq!(world.next_run(handle), (0, 10));
    let seek = postrider_protocol::message::Seek {
        topic: "t".into(),
        name: "s".into(),
        to: Start::Offset(Offset(40)),
    };
    let (answer, mut sought) = promise();
    world.engine.ask(&seek, Repeat::Never, world.now + Duration::from_secs(1), answer);
    world.pump();
    assert!(matches!(poll_now(&mut sought), Poll::Ready(Some(Ok(_)))));
    assert!(matches!(world.next(handle), Some(Some(Incoming::Seeked { next: Offset(40), .. }))));
    assert_eq!(world.next_run(handle), (40, 50));
    let (old, mut stale) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(10), old);
    assert!(matches!(poll_now(&mut stale), Poll::Ready(Some(Err(AckFailure::Stale)))));
    let (new, mut stored) = promise();
    world.engine.ack_up_to(handle, P0, 2, Offset(50), new);
    world.pump();
    assert!(matches!(poll_now(&mut stored), Poll::Ready(Some(Ok(())))));
    world.next_run(handle);
    world.pump();
    let (messages, _) = world.peer.credit_left()[0];
    assert!(messages <= i64::from(WINDOW.0), "credit of what the seek dropped came back once");
}

#[test]
fn a_consumer_that_is_taken_over_learns_it_and_its_acks_end() {
    let mut world = filled(1, 10);
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    world.next_run(handle);
    world.peer.hold_acks = true;
    let (promise, mut ack) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(10), promise);
    world.pump();
    world.peer.close_subscriptions(ErrorCode::SubscriptionTaken);
    world.pump();
    assert!(matches!(poll_now(&mut ack), Poll::Ready(Some(Err(AckFailure::Ended)))));
    match world.next(handle) {
        Some(Some(Incoming::Ended(error))) => assert_eq!(error.code, ErrorCode::SubscriptionTaken),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dropped_reader_detaches() {
    let mut world = filled(1, 10);
    let (handle, _attached) = world.subscribe(None, Start::Earliest, WINDOW);
    world.engine.unsubscribe(handle);
    world.pump();
    assert!(!world.peer.is_attached());
    assert!(matches!(world.next(handle), Some(None)));
}

#[test]
fn a_request_in_flight_at_a_lost_connection_is_repeated_only_if_that_is_safe() {
    let mut world = World::new(1);
    world.peer.silent = true;
    let deadline = world.now + Duration::from_secs(10);
    let (safe, mut repeated) = promise();
    world.engine.ask(&Ping {}, Repeat::Safe, deadline, safe);
    let (unsafe_, mut unknown) = promise();
    let delete = DeleteTopic { name: "t".into() };
    world.engine.ask(&delete, Repeat::Never, deadline, unsafe_);
    world.pump();
    world.disconnect(false);
    assert!(matches!(poll_now(&mut unknown), Poll::Ready(Some(Err(RequestFailure::Unknown)))));
    assert!(poll_now(&mut repeated).is_pending());
    world.peer.silent = false;
    world.connect();
    assert!(matches!(poll_now(&mut repeated), Poll::Ready(Some(Ok(_)))));
}

#[test]
fn a_request_ends_at_its_deadline_and_a_late_reply_is_ignored() {
    let mut world = World::new(1);
    world.disconnect(false);
    let (never, mut not_sent) = promise();
    world.engine.ask(&Ping {}, Repeat::Safe, world.now + Duration::from_secs(1), never);
    world.pass(Duration::from_millis(1200));
    assert!(matches!(poll_now(&mut not_sent), Poll::Ready(Some(Err(RequestFailure::NotSent)))));
    world.connect();
    world.peer.hold_acks = true;
    let (handle, _attached) = world.subscribe(Some("s"), Start::Earliest, WINDOW);
    let (promise, mut ack) = promise();
    world.engine.ack_up_to(handle, P0, 1, Offset(1), promise);
    world.pump();
    assert!(poll_now(&mut ack).is_pending());
    world.peer.release_acks();
    world.pump();
    assert!(matches!(poll_now(&mut ack), Poll::Ready(Some(Ok(())))));
}
