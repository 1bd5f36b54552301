//! A server with a peer side that records, a handler that records, and a bare dialler.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postrider_broker::peer::{
    Evidence, PeerAddress, PeerHandler, PeerLinks, PeerLocal, PeerOptions, PeerOutbox, PeerServer,
    Replier,
};
use postrider_broker::{Config, RunError, Server};
use postrider_protocol::api::Api;
use postrider_protocol::frame::{self, Frame, FrameDecoder};
use postrider_protocol::message::{Hello, Message, PeerHello, PeerIdentity, Propose, ProposeReply};
use postrider_protocol::types::{
    ClusterId, CorrelationId, EntryIndex, Incarnation, NodeId, StorageId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// The other broker, whose links are tested.
pub(crate) const HERE: NodeId = NodeId(7);
/// The broker that is dialled.
pub(crate) const THERE: NodeId = NodeId(1);

pub(crate) fn local(node: NodeId, incarnation: u64) -> PeerLocal {
    let mut storage = [9; 16];
    storage[0] = u8::try_from(node.0).unwrap();
    PeerLocal {
        cluster_id: ClusterId::default(),
        identity: PeerIdentity {
            node,
            storage_id: StorageId(storage),
            incarnation: Incarnation(incarnation),
        },
        metadata_index: EntryIndex(5),
    }
}

/// Answers `Propose` with its command, the first ones last, and `Resign` never.
pub(crate) struct Echo {
    local: PeerLocal,
    known: Option<Incarnation>,
    held: Mutex<Vec<(Replier, Bytes)>>,
    hold: usize,
    outboxes: mpsc::UnboundedSender<PeerOutbox>,
    rooms: mpsc::UnboundedSender<()>,
}

impl PeerServer for Echo {
    fn local(&self) -> PeerLocal {
        self.local
    }

    fn known_incarnation(&self, _node: NodeId) -> Option<Incarnation> {
        self.known
    }

    fn connected(&self, _from: PeerIdentity, outbox: PeerOutbox) {
        let _ended = self.outboxes.send(outbox);
    }

    fn disconnected(&self, _from: PeerIdentity, _outbox: &PeerOutbox) {}

    fn room(&self, _from: PeerIdentity, _outbox: &PeerOutbox) {
        let _ended = self.rooms.send(());
    }

    fn request(&self, _from: PeerIdentity, api: Api, body: Bytes, replier: Replier) {
        let mut held = self.held.lock().unwrap();
        match api {
            Api::Propose => {
                held.push((replier, Propose::decode(body).unwrap().command));
                if held.len() >= self.hold {
                    for (replier, result) in held.drain(..).rev() {
                        replier.reply(&ProposeReply { result });
                    }
                }
            }
            _ => held.push((replier, body)),
        }
    }

    fn one_way(&self, _from: PeerIdentity, _api: Api, _body: Bytes) {}
}

/// A server that serves peers, on a thread of its own runtime's tasks.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) outboxes: mpsc::UnboundedReceiver<PeerOutbox>,
    pub(crate) rooms: mpsc::UnboundedReceiver<()>,
    task: JoinHandle<Result<(), RunError>>,
    stop: Option<oneshot::Sender<()>>,
    _data: tempfile::TempDir,
}

impl Peer {
    pub(crate) async fn start(known: Option<u64>, hold: usize, options: PeerOptions) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let flags = [
            ("server.data_dir", data.path().join("data").display().to_string()),
            ("server.listen", "127.0.0.1:0".to_owned()),
            ("admin.listen", "127.0.0.1:0".to_owned()),
        ];
        config.merge_flags(&flags).unwrap();
        let (outbox_in, outboxes) = mpsc::unbounded_channel();
        let (room_in, rooms) = mpsc::unbounded_channel();
        let echo = Echo {
            local: local(THERE, 3),
            known: known.map(Incarnation),
            held: Mutex::default(),
            hold,
            outboxes: outbox_in,
            rooms: room_in,
        };
        let server =
            Server::start_with_peers(config, Some((Arc::new(echo), options))).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run_until(async {
            let _dropped = stopped.await;
        }));
        Self { address, outboxes, rooms, task, stop: Some(stop), _data: data }
    }

    /// The listener and all connections end, as if the process did.
    pub(crate) async fn end(mut self) {
        drop(self.stop.take());
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap();
    }

    pub(crate) async fn outbox(&mut self) -> PeerOutbox {
        timeout(LONG, self.outboxes.recv()).await.unwrap().unwrap()
    }
}

/// What a handler heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Event(usize),
    Connected(Incarnation),
    Disconnected(Evidence),
}

pub(crate) struct Recorder(mpsc::UnboundedSender<Heard>);

impl PeerHandler for Recorder {
    fn event(&self, _from: NodeId, frame: Frame) {
        let _ended = self.0.send(Heard::Event(frame.body.len()));
    }

    fn connected(&self, _node: NodeId, incarnation: Incarnation) {
        let _ended = self.0.send(Heard::Connected(incarnation));
    }

    fn disconnected(&self, _node: NodeId, evidence: Evidence) {
        let _ended = self.0.send(Heard::Disconnected(evidence));
    }
}

pub(crate) struct Dialler {
    pub(crate) links: PeerLinks,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Dialler {
    pub(crate) fn new(incarnation: u64, options: PeerOptions) -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let recorder = Arc::new(Recorder(sender));
        Self { links: PeerLinks::new(local(HERE, incarnation), recorder, options), heard }
    }

    pub(crate) async fn next(&mut self) -> Heard {
        timeout(LONG, self.heard.recv()).await.unwrap().unwrap()
    }
}

pub(crate) fn at(address: SocketAddr) -> PeerAddress {
    PeerAddress {
        host: address.ip().to_string(),
        port: address.port(),
        storage_id: StorageId::default(),
        incarnation: Incarnation(0),
    }
}

/// A connection without a link.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    input: BytesMut,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut raw =
            Self { stream: TcpStream::connect(address).await.unwrap(), input: BytesMut::new() };
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: 0,
            frame_bytes_max: 8 << 20,
            client_name: "raw".to_owned(),
            client_id: [1; 16],
            cluster_id: ClusterId::default(),
        };
        raw.ask(&hello).await;
        raw
    }

    pub(crate) async fn send<M: Message>(&mut self, request: &M) {
        self.stream.write_all(&frame::request(request, CorrelationId(9))).await.unwrap();
    }

    pub(crate) async fn ask<M: Message>(&mut self, request: &M) -> Frame {
        self.send(request).await;
        self.read().await
    }

    pub(crate) async fn read(&mut self) -> Frame {
        let mut decoder = FrameDecoder::new(u32::MAX);
        loop {
            if let Some(frame) = decoder.decode(&mut self.input).unwrap() {
                return frame;
            }
            let read = timeout(LONG, self.stream.read_buf(&mut self.input)).await.unwrap();
            assert!(read.unwrap() > 0, "the connection ended");
        }
    }
}

pub(crate) fn peer_hello(incarnation: u64) -> PeerHello {
    let local = local(HERE, incarnation);
    PeerHello {
        cluster_id: local.cluster_id,
        from: local.identity,
        to_node: Some(THERE),
        to_storage_id: StorageId::default(),
    }
}
