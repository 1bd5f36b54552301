//! The handshake between brokers: who is admitted, and what is refused before it.

use postrider_broker::peer::{Evidence, PeerLocal, PeerOptions};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::Frame;
use postrider_protocol::message::{PeerHello, PeerHelloReply, Ping, PingReply, Propose, Resign};
use postrider_protocol::types::{ClusterId, Incarnation, NodeId, StorageId};

use crate::support::{Dialler, Heard, Peer, Raw, THERE, at, local, peer_hello};

fn code(frame: &Frame) -> ErrorCode {
    assert!(frame.header.is_error(), "{frame:?}");
    ErrorBody::decode(&frame.body).unwrap().code
}

#[test]
fn each_wrong_identity_has_its_own_error() {
    let ours = PeerLocal { cluster_id: ClusterId([1; 16]), ..local(THERE, 3) };
    let right = PeerHello { cluster_id: ClusterId([1; 16]), ..peer_hello(2) };
    let refused = |hello: &PeerHello, known| ours.admit(hello, known).map_err(|error| error.code);
    let newest = Some(Incarnation(2));
    assert_eq!(refused(&right, newest), Ok(()));
    assert_eq!(refused(&PeerHello { to_node: None, ..right }, newest), Ok(()));
    let joining = PeerHello { cluster_id: ClusterId::default(), ..right };
    assert_eq!(refused(&joining, None), Ok(()));
    let cluster = PeerHello { cluster_id: ClusterId([2; 16]), ..right };
    assert_eq!(refused(&cluster, newest), Err(ErrorCode::WrongCluster));
    let node = PeerHello { to_node: Some(NodeId(2)), ..right };
    assert_eq!(refused(&node, newest), Err(ErrorCode::WrongNode));
    let storage = PeerHello { to_storage_id: StorageId([2; 16]), ..right };
    assert_eq!(refused(&storage, newest), Err(ErrorCode::WrongNode));
    assert_eq!(refused(&right, Some(Incarnation(3))), Err(ErrorCode::FencedIncarnation));
}

#[tokio::test]
async fn a_connection_becomes_one_between_brokers_by_peer_hello_alone() {
    let peer = Peer::start(Some(2), 1, PeerOptions::default()).await;
    let mut raw = Raw::connect(peer.address).await;
    let command = Propose { command: "x".into() };
    assert_eq!(code(&raw.ask(&command).await), ErrorCode::NotNegotiated);
    let late = raw.ask(&peer_hello(2)).await;
    assert_eq!(code(&late), ErrorCode::Unsupported, "not the first request");

    let mut raw = Raw::connect(peer.address).await;
    let reply: PeerHelloReply = raw.ask(&peer_hello(2)).await.message().unwrap();
    assert_eq!(reply.identity, local(THERE, 3).identity);
    let _pong: PingReply = raw.ask(&Ping {}).await.message().unwrap();
    let echoed = raw.ask(&command).await;
    assert!(!echoed.header.is_error());

    for (hello, expected) in [
        (peer_hello(1), ErrorCode::FencedIncarnation),
        (PeerHello { to_node: Some(NodeId(9)), ..peer_hello(2) }, ErrorCode::WrongNode),
    ] {
        let mut raw = Raw::connect(peer.address).await;
        assert_eq!(code(&raw.ask(&hello).await), expected);
    }
    peer.end().await;
}

#[tokio::test]
async fn a_link_tells_why_its_handshake_was_refused() {
    let peer = Peer::start(Some(2), 1, PeerOptions::default()).await;
    let mut old = Dialler::new(1, PeerOptions::default());
    old.links.set_peer(THERE, at(peer.address));
    let fenced = Evidence::Refused(ErrorCode::FencedIncarnation);
    assert_eq!(old.next().await, Heard::Disconnected(fenced));

    let mut lost = Dialler::new(2, PeerOptions::default());
    lost.links.set_peer(NodeId(4), at(peer.address));
    let wrong = Evidence::Refused(ErrorCode::WrongNode);
    assert_eq!(lost.next().await, Heard::Disconnected(wrong));

    let mut early = Dialler::new(2, PeerOptions::default());
    let mut address = at(peer.address);
    address.incarnation = Incarnation(4);
    early.links.set_peer(THERE, address);
    assert_eq!(early.next().await, Heard::Disconnected(fenced), "an older run of it answers");

    let refused = early
        .links
        .call::<_, postrider_protocol::message::ResignReply>(
            THERE,
            &Resign { partitions: Vec::new() },
            crate::support::LONG,
        )
        .await;
    assert_eq!(refused, Err(postrider_broker::peer::PeerError::NotConnected(THERE)));
    peer.end().await;
}
