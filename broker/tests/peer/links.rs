//! Links in use, and what they tell when the other side goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider_broker::peer::{Evidence, PeerError, PeerLocal, PeerOptions, PushError};
use postrider_protocol::frame;
use postrider_protocol::message::{
    HelloReply, Limits, LogPosition, PeerHelloReply, Propose, ProposeReply, ReplicaHead, Resign,
    ResignReply, TopicPartition,
};
use postrider_protocol::types::{
    ClusterId, CorrelationId, EntryIndex, Incarnation, LeaderEpoch, Offset, PartitionId,
    TimestampMs, TopicId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Dialler, Heard, LONG, Peer, Raw, THERE, at, local, peer_hello};

#[tokio::test]
async fn calls_are_pipelined_and_answered_in_any_order() {
    const CALLS: usize = 100;
    // The server answers none before the last has come, and then in reverse.
    let peer = Peer::start(None, CALLS, PeerOptions::default()).await;
    let mut dialler = Dialler::new(2, PeerOptions::default());
    dialler.links.set_peer(THERE, at(peer.address));
    assert_eq!(dialler.next().await, Heard::Connected(Incarnation(3)));
    let links = Arc::new(dialler.links);
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let links = Arc::clone(&links);
            tokio::spawn(async move {
                let command = Bytes::from(number.to_string());
                let reply: ProposeReply =
                    links.call(THERE, &Propose { command: command.clone() }, LONG).await.unwrap();
                assert_eq!(reply.result, command);
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    links.shutdown().await;
    peer.end().await;
}

#[tokio::test]
async fn a_call_beyond_the_bound_fails_at_once_and_an_unanswered_one_in_time() {
    let options = PeerOptions { calls_max: 1, ..PeerOptions::default() };
    let peer = Peer::start(None, 1, options).await;
    let mut dialler = Dialler::new(2, options);
    dialler.links.set_peer(THERE, at(peer.address));
    assert_eq!(dialler.next().await, Heard::Connected(Incarnation(3)));
    let resign = Resign { partitions: Vec::new() };
    let links = Arc::new(dialler.links);
    let first = links.call::<_, ResignReply>(THERE, &resign, Duration::from_millis(300));
    let second = links.call::<_, ResignReply>(THERE, &resign, LONG);
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first, Err(PeerError::TimedOut));
    assert_eq!(second, Err(PeerError::Full));
    // The place of the call is free again here; there it is still unanswered.
    let third = links.call::<_, ResignReply>(THERE, &resign, LONG).await;
    assert!(matches!(third, Err(PeerError::Refused(_))), "{third:?}");
    peer.end().await;
}

#[tokio::test]
async fn entries_for_a_slow_reader_wait_within_the_bound() {
    const BOUND: usize = 4 << 20;
    const ENTRIES: usize = 256 << 10;
    const TOTAL: usize = 100 << 20;
    let options = PeerOptions {
        queue_bytes_max: BOUND,
        silence_max: Duration::from_secs(60),
        ..PeerOptions::default()
    };
    let mut peer = Peer::start(None, 1, options).await;
    let mut raw = Raw::connect(peer.address).await;
    raw.ask(&peer_hello(2)).await;
    let outbox = peer.outbox().await;
    let head = ReplicaHead {
        of: TopicPartition { topic: TopicId([1; 16]), partition: PartitionId(0) },
        leader_epoch: LeaderEpoch(1),
        stream: 1,
        high_watermark: LogPosition { index: EntryIndex(1), offset: Offset(1) },
        log_start: EntryIndex(0),
    };
    let entries = Bytes::from(vec![7; ENTRIES]);
    let push = || {
        let head = Bytes::copy_from_slice(&head.encode_framed(ENTRIES));
        outbox.push([head, entries.clone()])
    };
    let mut pushed = 0;
    let mut read = 0;
    while read < TOTAL {
        // Nobody reads: it fills up, and no more than the bound waits beside what the kernel holds.
        while pushed < TOTAL {
            match push() {
                Ok(()) => pushed += ENTRIES,
                Err(error) => {
                    assert_eq!(error, PushError::Full);
                    assert!(outbox.room() < ENTRIES + 100);
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        // The reader catches up with all that was pushed; half way it is told that there is room.
        while read < pushed {
            read += raw.read().await.body.len() - 56;
        }
        if pushed < TOTAL {
            tokio::time::timeout(LONG, peer.rooms.recv()).await.unwrap().unwrap();
        }
    }
    assert_eq!(read, TOTAL);
    peer.end().await;
}

#[tokio::test]
async fn pushed_entries_reach_the_handler() {
    let mut peer = Peer::start(None, 1, PeerOptions::default()).await;
    let mut dialler = Dialler::new(2, PeerOptions::default());
    dialler.links.set_peer(THERE, at(peer.address));
    assert_eq!(dialler.next().await, Heard::Connected(Incarnation(3)));
    let head = ReplicaHead {
        of: TopicPartition { topic: TopicId([1; 16]), partition: PartitionId(0) },
        leader_epoch: LeaderEpoch(1),
        stream: 1,
        high_watermark: LogPosition::default(),
        log_start: EntryIndex(0),
    };
    let head = Bytes::copy_from_slice(&head.encode_framed(1 << 20));
    peer.outbox().await.push([head, vec![7; 1 << 20].into()]).unwrap();
    assert_eq!(dialler.next().await, Heard::Event(56 + (1 << 20)));
    peer.end().await;
}

#[tokio::test]
async fn a_peer_that_ends_is_dead_at_once_and_one_that_comes_back_elsewhere_is_found() {
    let peer = Peer::start(None, 1, PeerOptions::default()).await;
    let mut dialler = Dialler::new(2, PeerOptions::default());
    dialler.links.set_peer(THERE, at(peer.address));
    assert_eq!(dialler.next().await, Heard::Connected(Incarnation(3)));
    let ended = tokio::spawn(peer.end());
    assert_eq!(dialler.next().await, Heard::Disconnected(Evidence::Dead));
    ended.await.unwrap();

    let again = Peer::start(None, 1, PeerOptions::default()).await;
    dialler.links.set_peer(THERE, at(again.address));
    assert_eq!(dialler.next().await, Heard::Connected(Incarnation(3)));
    let reply: ProposeReply =
        dialler.links.call(THERE, &Propose { command: "x".into() }, LONG).await.unwrap();
    assert_eq!(reply.result, "x");
    let huge = Propose { command: vec![7; 9 << 20].into() };
    let large = dialler.links.call::<_, ProposeReply>(THERE, &huge, LONG).await;
    assert!(matches!(large, Err(PeerError::TooLarge(_))), "{large:?}");
    // Who joins knows an address alone.
    let asked: ProposeReply = dialler
        .links
        .ask(&at(again.address), &Propose { command: "y".into() }, LONG)
        .await
        .unwrap();
    assert_eq!(asked.result, "y");
    dialler.links.shutdown().await;
    again.end().await;
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_answers_is_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = PeerOptions { dial_max: Duration::from_millis(100), ..PeerOptions::default() };
    let mut dialler = Dialler::new(2, options);
    let began = Instant::now();
    dialler.links.set_peer(THERE, at(listener.local_addr().unwrap()));
    assert_eq!(dialler.next().await, Heard::Disconnected(Evidence::Silent));
    assert!(began.elapsed() >= options.dial_max);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_told_and_its_calls_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Answers the handshake and nothing more; the socket stays open.
    let half_open = tokio::spawn(async move {
        let (mut stream, _from) = listener.accept().await.unwrap();
        stream.write_all(&handshake_replies()).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard.len()
    });
    let options = PeerOptions {
        ping_interval: Duration::from_millis(20),
        silence_max: Duration::from_millis(100),
        ..PeerOptions::default()
    };
    let mut dialler = Dialler::new(2, options);
    dialler.links.set_peer(THERE, at(address));
    assert_eq!(dialler.next().await, Heard::Connected(Incarnation(3)));
    let resign = Resign { partitions: Vec::new() };
    let reply = dialler.links.call::<_, ResignReply>(THERE, &resign, LONG).await;
    assert_eq!(reply, Err(PeerError::Disconnected));
    assert_eq!(dialler.next().await, Heard::Disconnected(Evidence::Silent));
    assert!(half_open.await.unwrap() > 0);
}

fn handshake_replies() -> Vec<u8> {
    let hello = HelloReply {
        version: 1,
        features: 0,
        limits: Limits::default(),
        cluster_id: ClusterId::default(),
        node_id: THERE,
        server_version: "silent".to_owned(),
        server_time: TimestampMs(0),
    };
    let PeerLocal { identity, metadata_index, .. } = local(THERE, 3);
    let peer = PeerHelloReply { identity, metadata_index };
    [frame::reply(&hello, CorrelationId(1)), frame::reply(&peer, CorrelationId(2))].concat()
}
