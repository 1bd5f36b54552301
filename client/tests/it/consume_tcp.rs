//! The public consumer over TCP against the peer: the stream, drops, panics, draining, the concurrent loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::join_all};
use postrider::{
    Client, ConsumeError, Consumer, Failure, Json, OnDrop, OpenError, Raw, Record, SettleError,
};
use postrider_protocol::types::PartitionId;

use crate::{
    queue_peer::State,
    tcp::{Host, within},
};

async fn filled(messages: usize) -> (Host, Client) {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").batch_bytes(300).build().await.unwrap();
    for n in 0..messages {
        let record = Record::new(format!("{n}")).key("k").header("name", "value");
        drop(producer.enqueue(record).await.unwrap());
    }
    producer.flush().await.unwrap();
    (host, client)
}

/// Waits for what the connection task brings to the peer.
async fn until(host: &Host, what: impl Fn(&mut crate::peer::Peer) -> bool) {
    within(async {
        while !host.with(&what) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_delivery_has_its_message_and_an_ack_that_is_awaited_is_stored() {
    let (host, client) = filled(3).await;
    let mut jobs = client.consumer::<Raw>("t").name("worker").subscribe().await.unwrap();
    assert_eq!(jobs.partitions(), [PartitionId(0)]);
    for n in 0..3 {
        let delivery = within(jobs.next()).await.unwrap().unwrap();
        assert_eq!(delivery.offset().0, n);
        assert_eq!(delivery.value(), n.to_string().as_bytes());
        assert_eq!(delivery.key().unwrap(), "k");
        assert_eq!(delivery.headers().get("name").unwrap(), "value");
        assert_eq!((delivery.attempt(), delivery.failures()), (1, 0));
        assert_eq!(delivery.dispatch_index(), 1);
        let mut answer = delivery.ack().into_future();
        assert_eq!(answer.commit_index(), None);
        within(&mut answer).await.unwrap();
        assert_eq!(answer.commit_index(), Some(1), "where it is stored is told");
        assert_eq!(host.with(|peer| peer.queue.acked()), n as usize + 1);
    }
    assert!(jobs.next().now_or_never().is_none(), "the stream waits for more");
    let started = host.with(|peer| peer.queue.acks.last().unwrap().started);
    assert_eq!(started, 3, "what was begun is told");
}

#[tokio::test]
async fn everything_is_acknowledged_once_over_lost_connections() {
    let (host, client) = filled(2000).await;
    let mut jobs = client.consumer::<Raw>("t").prefetch(64).subscribe().await.unwrap();
    let mut answers = Vec::new();
    for n in 0..2000 {
        if n % 300 == 200 {
            host.cut.notify_one();
        }
        let delivery = within(jobs.next()).await.unwrap().unwrap();
        answers.push(delivery.ack().into_future());
    }
    for answer in within(join_all(answers)).await {
        answer.unwrap();
    }
    assert_eq!(host.with(|peer| peer.queue.acked()), 2000);
    let attempts = host
        .with(|peer| peer.queue.items.values().flatten().filter(|item| item.attempt > 1).count());
    // What was on its way when a connection was cut is handed out again; what had arrived is not.
    assert!(attempts <= 6 * 64, "{attempts}");
}

#[tokio::test]
async fn deliveries_can_be_settled_in_tasks_after_the_consumer_is_dropped() {
    let (host, client) = filled(4).await;
    let mut jobs = client.consumer::<Raw>("t").subscribe().await.unwrap();
    let mut hands = Vec::new();
    for _ in 0..3 {
        hands.push(within(jobs.next()).await.unwrap().unwrap());
    }
    drop(jobs);
    host.with(|peer| peer.queue.paused = true);
    let (message, handle) = hands.remove(0).split();
    assert_eq!(message.value, "0");
    let working = tokio::spawn(async move { handle.ack().await });
    within(working).await.unwrap().unwrap();
    within(hands.remove(0).reject("nonsense").into_future()).await.unwrap();
    assert_eq!(host.with(|peer| peer.queue.leased()), 1, "the one that waited went back");
    drop(hands);
    until(&host, |peer| !peer.queue.is_attached()).await;
    assert_eq!(host.with(|peer| (peer.queue.acked(), peer.queue.leased())), (1, 0));
}

async fn next_failures(jobs: &mut Consumer<Raw>) -> u32 {
    let delivery = within(jobs.next()).await.unwrap().unwrap();
    let failures = delivery.failures();
    delivery.ack();
    failures
}

#[tokio::test]
async fn a_drop_gives_the_message_back_and_a_panic_is_its_failure() {
    let (_host, client) = filled(1).await;
    let mut jobs = client.consumer::<Raw>("t").subscribe().await.unwrap();
    drop(within(jobs.next()).await.unwrap().unwrap());
    let again = within(jobs.next()).await.unwrap().unwrap();
    assert_eq!((again.attempt(), again.failures()), (2, 0));
    let panics = tokio::spawn(async move {
        let _in_hand = again;
        panic!("on purpose");
    });
    assert!(within(panics).await.is_err());
    assert_eq!(next_failures(&mut jobs).await, 1);
}

#[tokio::test]
async fn a_drop_can_be_a_failure() {
    let (host, client) = filled(1).await;
    let jobs = client.consumer::<Raw>("t").on_drop(OnDrop::Nack);
    let mut jobs = jobs.subscribe().await.unwrap();
    drop(within(jobs.next()).await.unwrap().unwrap());
    assert_eq!(next_failures(&mut jobs).await, 1);
    until(&host, |peer| peer.queue.acked() == 1).await;
}

#[tokio::test]
async fn a_payload_of_another_type_is_rejected_and_told() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let raw = client.producer::<Raw>("t").build().await.unwrap();
    raw.send(Record::new("no json")).await.unwrap();
    raw.send(Record::new("[1,2]")).await.unwrap();
    let mut jobs = client.consumer::<Json<Vec<u32>>>("t").subscribe().await.unwrap();
    let error = within(jobs.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ConsumeError::Decode { offset, .. } if offset.0 == 0), "{error}");
    assert!(!error.is_fatal());
    let delivery = within(jobs.next()).await.unwrap().unwrap();
    assert_eq!(delivery.value(), &[1, 2]);
    within(delivery.ack().into_future()).await.unwrap();
    assert_eq!(host.with(|peer| peer.queue.state(0)), State::Dead);
}

#[tokio::test]
async fn a_batch_that_arrives_damaged_is_given_back_and_told() {
    let (host, client) = filled(40).await;
    host.with(|peer| {
        peer.queue.paused = true;
        let (_, _, entry) = &mut peer.partitions[0].entries[0];
        let mut bytes = entry.to_vec();
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        *entry = bytes.into();
        // So that there are two runs in it.
        peer.queue.items.values_mut().next().unwrap()[1].state = State::Acked;
    });
    let first = host.with(|peer| peer.partitions[0].entries[0].1);
    let mut jobs = client.consumer::<Raw>("t").subscribe().await.unwrap();
    host.with(|peer| {
        peer.queue.paused = false;
        peer.deliver();
        peer.queue.paused = true;
    });
    for run in [(0, 1), (2, first)] {
        let error = within(jobs.next()).await.unwrap().unwrap_err();
        match error {
            ConsumeError::Damaged { from, to, .. } => assert_eq!((from.0, to.0), run),
            other => panic!("{other}"),
        }
    }
    for n in first..40 {
        let delivery = within(jobs.next()).await.unwrap().unwrap();
        assert_eq!(delivery.offset().0, n);
        delivery.ack();
    }
    until(&host, |peer| peer.queue.acked() as u64 == 41 - first).await;
    let failures = host
        .with(|peer| peer.queue.items.values().flatten().filter(|item| item.failures == 1).count());
    assert_eq!(failures as u64, first - 1);
}

#[tokio::test]
async fn lost_leases_that_wait_here_are_passed_over() {
    let (host, client) = filled(3).await;
    let mut jobs = client.consumer::<Raw>("t").subscribe().await.unwrap();
    let first = within(jobs.next()).await.unwrap().unwrap();
    host.with(|peer| {
        peer.queue.paused = true;
        let lost = peer.queue.expire(1);
        peer.out.push_back(lost);
        let lost = peer.queue.expire(0);
        peer.out.push_back(lost);
    });
    within(async {
        while !first.is_lost() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let third = within(jobs.next()).await.unwrap().unwrap();
    assert_eq!(third.offset().0, 2);
    let items = |peer: &mut crate::peer::Peer| {
        let item = &mut peer.queue.items.values_mut().next().unwrap()[0];
        item.attempt += 1;
    };
    // Somebody else had it meanwhile.
    host.with(items);
    let answer = within(first.ack().into_future()).await;
    assert_eq!(answer, Err(SettleError::LeaseLost));
    within(third.ack().into_future()).await.unwrap();
}

#[tokio::test]
async fn a_drain_tells_what_is_left_and_the_stream_ends() {
    let (host, client) = filled(5).await;
    let mut jobs = client.consumer::<Raw>("t").subscribe().await.unwrap();
    let delivery = within(jobs.next()).await.unwrap().unwrap();
    host.with(|peer| peer.queue.paused = true);
    let drained = within(jobs.drain(Duration::from_millis(20))).await;
    assert_eq!(drained.unsettled, 1);
    assert!(within(jobs.next()).await.is_none());
    assert_eq!(host.with(|peer| peer.queue.leased()), 1, "what waited went back");
    delivery.ack();
    assert!(within(jobs.drain(Duration::from_secs(10))).await.is_clean());
    assert_eq!(host.with(|peer| peer.queue.acked()), 1);
    assert!(within(jobs.close(Duration::from_secs(10))).await.is_clean());
    assert!(!host.with(|peer| peer.queue.is_attached()));
}

#[tokio::test]
async fn closing_the_client_settles_what_was_given_and_gives_back_the_rest() {
    let (host, client) = filled(5).await;
    let mut jobs = client.consumer::<Raw>("t").subscribe().await.unwrap();
    let (first, second) =
        (within(jobs.next()).await.unwrap().unwrap(), within(jobs.next()).await.unwrap().unwrap());
    let acked = first.ack();
    within(client.close(Duration::from_secs(10))).await;
    within(acked.into_future()).await.unwrap();
    assert_eq!(host.with(|peer| (peer.queue.acked(), peer.queue.leased())), (1, 0));
    assert!(second.is_lost());
    assert_eq!(within(second.ack().into_future()).await, Err(SettleError::Ended));
    assert!(within(jobs.next()).await.is_none());
}

#[tokio::test]
async fn the_concurrent_loop_settles_by_the_result_of_each_piece_of_work() {
    let (host, client) = filled(40).await;
    let mut jobs = client.consumer::<Raw>("t").prefetch(8).subscribe().await.unwrap();
    let (working, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let looping = tokio::spawn({
        let most = Arc::clone(&most);
        async move {
            let work = |message: postrider::Message<bytes::Bytes>| {
                let (working, most) = (Arc::clone(&working), Arc::clone(&most));
                async move {
                    most.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    working.fetch_sub(1, Ordering::SeqCst);
                    match message.offset.0 {
                        3 => Err(Failure::reject("three is too many")),
                        7 => panic!("on purpose"),
                        9 => {
                            let _number: u64 = "x".parse()?;
                            Ok(())
                        }
                        _ => Ok(()),
                    }
                }
            };
            jobs.work(4, work).await
        }
    });
    // The panicking and the failing message come again for ever here: the peer has no limit.
    until(&host, |peer| peer.queue.acked() == 37).await;
    assert_eq!(host.with(|peer| peer.queue.state(3)), State::Dead);
    let failures = host.with(|peer| {
        let items = peer.queue.items.values().next().unwrap();
        (items[7].failures, items[9].failures, items[8].failures)
    });
    assert!(failures.0 > 0 && failures.1 > 0 && failures.2 == 0, "{failures:?}");
    assert!((2..=4).contains(&most.load(Ordering::SeqCst)));
    host.with(|peer| peer.queue.paused = true);
    within(client.close(Duration::from_secs(10))).await;
    within(looping).await.unwrap().unwrap();
}

#[tokio::test]
async fn options_out_of_range_fail_the_subscribe() {
    let (_host, client) = filled(1).await;
    let error = client.consumer::<Raw>("t").prefetch(0).subscribe().await.unwrap_err();
    assert!(matches!(error, OpenError::Option { option: "prefetch", .. }), "{error}");
}
