//! The whole client over TCP against the peer: what only sockets, tasks and time can show.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, future::join_all};
use postrider::{
    Backoff, Client, ClientEvent, CloseReport, ConnectError, Json, NewTopic, OpenError, Raw,
    ReadError, Record, SendError, Start, TrySendError,
};
use postrider_protocol::{
    error::{ErrorBody, ErrorCode},
    frame::{FrameDecoder, connection_error},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::peer::Peer;

/// A peer behind a listener. One connection at a time.
pub(crate) struct Host {
    url: String,
    peer: Arc<Mutex<Peer>>,
    /// Cuts the connection.
    pub(crate) cut: Arc<Notify>,
    /// Sends what the test made the peer say.
    poke: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Host {
    pub(crate) async fn start(partitions: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postrider://{}", listener.local_addr().unwrap());
        let peer = Arc::new(Mutex::new(Peer::new(partitions)));
        let (cut, poke) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let serve = {
            let (peer, cut, poke) = (Arc::clone(&peer), Arc::clone(&cut), Arc::clone(&poke));
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::select! {
                        () = talk(stream, &peer, &poke) => {}
                        () = cut.notified() => {}
                    }
                    peer.lock().unwrap().disconnect(true);
                }
            }
        };
        Self { url, peer, cut, poke, task: tokio::spawn(serve) }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::builder(&self.url)
            .reconnect(Backoff::exponential(Duration::from_millis(1)..=Duration::from_millis(5)))
            .connect()
            .await
            .unwrap()
    }

    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut Peer) -> R) -> R {
        let result = call(&mut self.peer.lock().unwrap());
        self.poke.notify_one();
        result
    }
}

async fn talk(mut stream: TcpStream, peer: &Mutex<Peer>, poke: &Notify) {
    let mut decoder = FrameDecoder::new(64 << 20);
    let mut input = BytesMut::new();
    loop {
        let out: Vec<Bytes> = {
            let mut peer = peer.lock().unwrap();
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                peer.receive(frame);
            }
            peer.out.drain(..).collect()
        };
        for chunk in out {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
        tokio::select! {
            read = stream.read_buf(&mut input) => {
                if matches!(read, Ok(0) | Err(_)) {
                    return;
                }
            }
            () = poke.notified() => {}
        }
    }
}

/// Fails a test that hangs.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("the test hangs")
}

#[tokio::test]
async fn send_is_stored_when_it_returns() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").build().await.unwrap();
    let receipt = within(producer.send(Record::new("a").key("k").header("h", "v"))).await.unwrap();
    assert_eq!((receipt.partition.0, receipt.offset.0, receipt.duplicate), (0, 0, false));
    assert_eq!(host.with(|peer| peer.values(0)), ["a"]);
    assert_eq!(client.close(Duration::from_secs(5)).await, CloseReport::default());
}

#[tokio::test]
async fn a_pipeline_over_lost_connections_stores_everything_once_and_in_order() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client
        .producer::<Raw>("t")
        .batch_bytes(1000)
        .max_in_flight_bytes(20_000)
        .build()
        .await
        .unwrap();
    let mut acks = Vec::new();
    for n in 0..3000 {
        if n % 500 == 250 {
            host.cut.notify_one();
        }
        acks.push(within(producer.enqueue(Record::new(format!("m{n}")))).await.unwrap());
    }
    let receipts = within(join_all(acks)).await;
    for (n, receipt) in receipts.into_iter().enumerate() {
        assert_eq!(receipt.unwrap().offset.0, n as u64);
    }
    let expected: Vec<_> = (0..3000).map(|n| format!("m{n}")).collect();
    assert_eq!(host.with(|peer| peer.values(0)), expected);
}

#[tokio::test]
async fn many_senders_share_batches() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").build().await.unwrap();
    let sends = (0..64).map(|n| producer.send(Record::new(format!("{n}"))));
    for receipt in within(join_all(sends)).await {
        receipt.unwrap();
    }
    let frames = host.with(|peer| peer.published.len());
    assert!(frames < 16, "{frames} frames for 64 messages");
}

#[tokio::test]
async fn a_full_producer_gives_the_record_back_and_waits_fairly() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").max_in_flight_bytes(500).build().await.unwrap();
    host.with(|peer| peer.hold = true);
    let value = "x".repeat(400);
    let first = producer.try_enqueue(Record::new(value.clone())).unwrap();
    let Err(TrySendError::Full(record)) = producer.try_enqueue(Record::new(value.clone())) else {
        panic!("the second has no room");
    };
    let mut dropped = Box::pin(producer.enqueue(Record::new(value.clone())));
    let mut second = Box::pin(producer.enqueue(record));
    assert!(dropped.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    drop(dropped);
    // The peer must have it before it can answer.
    while host.with(|peer| peer.published.is_empty()) {
        tokio::task::yield_now().await;
    }
    host.with(Peer::release);
    let second = within(second).await.unwrap();
    assert_eq!(within(first).await.unwrap().offset.0, 0);
    assert_eq!(within(second).await.unwrap().offset.0, 1);
    assert_eq!(
        host.with(|peer| peer.values(0).len()),
        2,
        "what was dropped in line was never published"
    );
}

#[tokio::test]
async fn a_reader_is_a_stream_that_survives_lost_connections() {
    let host = Host::start(2).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").batch_bytes(300).build().await.unwrap();
    let mut reader = client.reader::<Raw>("t").from(Start::Earliest).open().await.unwrap();
    let mut next = [0, 0];
    for round in 0..10 {
        for n in 0..20u32 {
            let record = Record::new(format!("{round}/{n}")).partition(n % 2);
            drop(within(producer.enqueue(record)).await.unwrap());
        }
        within(producer.flush()).await.unwrap();
        if round % 3 == 1 {
            host.cut.notify_one();
        }
        for _ in 0..20 {
            let message = within(reader.next()).await.unwrap().unwrap();
            let partition = message.partition.0 as usize;
            assert_eq!(message.offset.0, next[partition], "nothing twice, nothing skipped");
            next[partition] += 1;
        }
    }
}

#[tokio::test]
async fn batches_and_single_messages_can_be_mixed() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").build().await.unwrap();
    for n in 0..100 {
        let record = Record::new(format!("{n}")).key("k").header("name", "value");
        drop(producer.enqueue(record).await.unwrap());
    }
    producer.flush().await.unwrap();
    let from = Start::Offset(postrider::Offset(5));
    let mut reader = client.reader::<Raw>("t").from(from).open().await.unwrap();
    let first = within(reader.next_message()).await.unwrap().unwrap();
    assert_eq!((first.offset.0, first.value.as_ref()), (5, &b"5"[..]));
    assert_eq!(first.headers.get("name").unwrap(), "value");
    let mut expected = 6;
    while expected < 100 {
        let batch = within(reader.next_batch()).await.unwrap().unwrap();
        assert_eq!(batch.first().0, expected);
        for message in &batch {
            let message = message.unwrap();
            assert_eq!(message.offset.0, expected);
            assert_eq!(message.value, Some(expected.to_string().as_bytes()));
            assert_eq!(message.key, Some(&b"k"[..]));
            assert_eq!(message.headers().next(), Some(("name", Some(&b"value"[..]))));
            expected += 1;
        }
    }
}

#[tokio::test]
async fn a_payload_of_another_type_is_one_error_and_the_stream_goes_on() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let raw = client.producer::<Raw>("t").build().await.unwrap();
    let typed = client.producer::<Json<Vec<u32>>>("t").build().await.unwrap();
    raw.send(Record::new("no json")).await.unwrap();
    typed.send(Record::new(vec![1, 2])).await.unwrap();
    let mut reader =
        client.reader::<Json<Vec<u32>>>("t").from(Start::Earliest).open().await.unwrap();
    let error = within(reader.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Decode { offset, .. } if offset.0 == 0), "{error}");
    assert!(!error.is_fatal());
    assert_eq!(within(reader.next()).await.unwrap().unwrap().value, [1, 2]);
}

#[tokio::test]
async fn a_subscriber_acknowledges_and_learns_that_it_was_taken_over() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").build().await.unwrap();
    for n in 0..3 {
        producer.send(Record::new(format!("{n}"))).await.unwrap();
    }
    let mut jobs = client.subscriber::<Raw>("t", "billing").open().await.unwrap();
    let message = within(jobs.next()).await.unwrap().unwrap();
    within(jobs.ack_up_to(&message)).await.unwrap();
    let acked = host.with(|peer| peer.durable.values().next().unwrap().acked);
    assert_eq!(acked, 1);
    host.with(|peer| peer.close_subscriptions(ErrorCode::SubscriptionTaken));
    let taken = within(async {
        loop {
            match jobs.next().await {
                Some(Ok(_)) => {}
                Some(Err(why)) => return why,
                None => panic!("it must be told"),
            }
        }
    });
    assert!(matches!(taken.await, ReadError::Taken(_)));
    assert!(within(jobs.next()).await.is_none());
}

#[tokio::test]
async fn connect_says_where_it_tried_and_what_happened() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let error = Client::builder(format!("postrider://{address}")).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable(_)) && error.is_retryable());
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let error = Client::builder("postrider://a:b@c").connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Url(_)) && !error.is_retryable());
}

#[tokio::test]
async fn a_refusal_at_the_greeting_is_told_with_the_brokers_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postrider://{}", listener.local_addr().unwrap());
    let refuse = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let error = ErrorBody::new(ErrorCode::LimitExceeded, "10 connections are allowed");
        stream.write_all(&connection_error(&error)).await.unwrap();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    };
    let connect = Client::builder(url).connect();
    let (_, connected) = within(futures_util::future::join(refuse, connect)).await;
    let error = connected.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused(e) if e.code == ErrorCode::LimitExceeded));
}

#[tokio::test]
async fn every_host_is_tried_in_turn() {
    let host = Host::start(1).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = closed.local_addr().unwrap();
    drop(closed);
    let alive = host.url.strip_prefix("postrider://").unwrap();
    let client = Client::builder(format!("postrider://{dead},{alive}")).connect().await.unwrap();
    within(client.admin().ping()).await.unwrap();
}

#[tokio::test]
async fn a_silent_listener_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postrider://{}", listener.local_addr().unwrap());
    let error = within(Client::builder(url).connect_timeout(Duration::from_millis(50)).connect())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("did not greet in time"), "{error}");
}

#[tokio::test]
async fn events_tell_of_the_connection() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let mut events = client.events();
    host.cut.notify_one();
    assert!(matches!(within(events.recv()).await.unwrap(), ClientEvent::Disconnected { .. }));
    assert!(matches!(within(events.recv()).await.unwrap(), ClientEvent::Connected { .. }));
}

#[tokio::test]
async fn an_unknown_topic_fails_the_build() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let error = client.producer::<Raw>("nope").build().await.unwrap_err();
    assert!(matches!(&error, OpenError::Refused(e) if e.code == ErrorCode::UnknownTopic));
    assert!(error.to_string().contains("postrider topic create nope"), "{error}");
}

#[tokio::test]
async fn a_change_that_was_polled_is_made_although_its_future_is_dropped() {
    let host = Host::start(1).await;
    host.with(|peer| peer.topic_exists = false);
    let admin = host.client().await.admin();
    drop(admin.create_topic(NewTopic::new("t")));
    within(admin.ping()).await.unwrap();
    assert!(!host.with(|peer| peer.topic_exists), "nothing is asked before the first poll");
    assert!(admin.create_topic(NewTopic::new("t")).now_or_never().is_none());
    // Requests leave in order: when this one is answered, the one before was received.
    within(admin.ping()).await.unwrap();
    assert!(host.with(|peer| peer.topic_exists));
}

#[tokio::test]
async fn close_reports_what_was_left_and_ends_everything() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let producer = client.producer::<Raw>("t").build().await.unwrap();
    let mut reader = client.reader::<Raw>("t").open().await.unwrap();
    host.with(|peer| peer.hold = true);
    let ack = producer.enqueue(Record::new("a")).await.unwrap();
    let report = within(client.close(Duration::from_millis(50))).await;
    assert_eq!(report, CloseReport { unsent: 0, unacked: 1 });
    assert!(within(ack).await.unwrap_err().is_unknown());
    assert!(within(reader.next()).await.is_none());
    assert!(matches!(producer.send(Record::new("b")).await, Err(SendError::Closed)));
    assert!(within(client.admin().ping()).await.is_err());
}

#[tokio::test]
async fn what_was_enqueued_is_sent_although_every_handle_is_dropped() {
    let host = Host::start(1).await;
    {
        let client = host.client().await;
        let producer = client.producer::<Raw>("t").build().await.unwrap();
        host.with(|peer| peer.hold = true);
        for n in 0..3 {
            drop(producer.enqueue(Record::new(format!("{n}"))).await.unwrap());
        }
    }
    host.with(Peer::release);
    within(async {
        while host.with(|peer| peer.values(0).len()) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn without_acks_a_flush_returns_when_the_broker_has_read_all() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let metrics = client.producer::<Raw>("t").fire_and_forget().await.unwrap();
    for n in 0..1_000 {
        metrics.send(Record::new(format!("{n}"))).await.unwrap();
    }
    within(metrics.flush()).await.unwrap();
    assert_eq!(host.with(|peer| peer.values(0).len()), 1_000);
    assert_eq!(metrics.refused(), 0);
    host.with(|peer| peer.script.push_back(Some(ErrorBody::new(ErrorCode::DiskFull, "full"))));
    metrics.send(Record::new("lost")).await.unwrap();
    within(metrics.flush()).await.unwrap();
    assert_eq!(metrics.refused(), 1);
    within(client.close(Duration::from_secs(1))).await;
    assert!(matches!(metrics.send(Record::new("late")).await, Err(SendError::Closed)));
}
