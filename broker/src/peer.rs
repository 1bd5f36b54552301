//! Connections between brokers: an outgoing one to every known broker, and the serving of incoming ones.
//!
//! Never knows what a request means and never decides who is alive: it tells evidence. Driven by the
//! replication and the controller, which own the handlers, and by `net`, which hands incoming
//! connections over after `PeerHello`.
//!
//! ```text
//!  PeerLinks ──call, send──► queue ──► pipe ──► socket ──► pipe ──► PeerServer::request, one_way
//!  PeerHandler::event ◄────────────── pipe ◄── socket ◄── pipe ◄── queue ◄── Replier, PeerOutbox
//! ```
//! Each direction has one queue with a bound in bytes and pieces; at the bound a call or a push fails at
//! once, and a reply that finds no room ends the connection.

pub(crate) mod inbound;
mod link;
mod links;
mod pipe;
mod queue;

use std::time::Duration;

use bytes::Bytes;
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::Frame;
use postrider_protocol::message::{PeerHello, PeerIdentity};
use postrider_protocol::types::{ClusterId, EntryIndex, Incarnation, NodeId, StorageId};

pub use inbound::{PeerOutbox, Replier};
pub use links::PeerLinks;
pub use queue::PushError;

/// Who this broker is at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerLocal {
    /// Its cluster; zero while it knows none.
    pub cluster_id: ClusterId,
    /// Number, data directory, registration (0: none yet).
    pub identity: PeerIdentity,
    /// How far it has applied the metadata.
    pub metadata_index: EntryIndex,
}

impl PeerLocal {
    /// Whether a dialler that says `hello` may go on.
    ///
    /// # Errors
    /// `WrongCluster`, `WrongNode`, or `FencedIncarnation` if `known` is newer than the dialler's.
    pub fn admit(&self, hello: &PeerHello, known: Option<Incarnation>) -> Result<(), ErrorBody> {
        let (ours, theirs) = (self.cluster_id, hello.cluster_id);
        if differ(&ours.0, &theirs.0) {
            let text = format!("this broker belongs to cluster {ours}, not {theirs}");
            return Err(ErrorBody::new(ErrorCode::WrongCluster, text));
        }
        let PeerIdentity { node, storage_id, .. } = self.identity;
        let wanted = hello.to_node.unwrap_or(node);
        if wanted != node || differ(&storage_id.0, &hello.to_storage_id.0) {
            let text = format!(
                "this is broker {node} on storage {storage_id}, not {wanted} on {}",
                hello.to_storage_id
            );
            return Err(ErrorBody::new(ErrorCode::WrongNode, text));
        }
        match known {
            Some(newest) if hello.from.incarnation < newest => {
                let PeerIdentity { node, incarnation, .. } = hello.from;
                let text = format!(
                    "broker {node} has registered again as {newest}; {incarnation} is an older run of it"
                );
                Err(ErrorBody::new(ErrorCode::FencedIncarnation, text).with_detail(newest.0))
            }
            _ => Ok(()),
        }
    }
}

/// Two ids that are both known and not the same.
fn differ(a: &[u8; 16], b: &[u8; 16]) -> bool {
    const UNKNOWN: [u8; 16] = [0; 16];
    *a != UNKNOWN && *b != UNKNOWN && a != b
}

/// Where a broker listens, and on which data directory it must run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    /// A name or an address; resolved anew at every dial.
    pub host: String,
    /// The data port.
    pub port: u16,
    /// Its data directory; zero if unknown.
    pub storage_id: StorageId,
    /// Its registration; an older one is refused. 0 if unknown.
    pub incarnation: Incarnation,
}

/// Why a broker cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// An established connection ended and the machine refuses a new one: the process is dead.
    Dead,
    /// Nothing is heard, or a dial or a handshake is not answered in time.
    Silent,
    /// It answers again, but the connection ended.
    Lost,
    /// It cannot be dialled, or was never reached and refuses.
    Unreachable,
    /// It, or this broker, refused the handshake.
    Refused(ErrorCode),
}

/// What an outgoing link tells. Called on the link's task, which reads nothing meanwhile: never block.
pub trait PeerHandler: Send + Sync {
    /// A frame that is no reply: `ReplicaEntries`. Its body is a slice of the read buffer.
    fn event(&self, from: NodeId, frame: Frame);
    /// The broker was reached and is who it should be.
    fn connected(&self, node: NodeId, incarnation: Incarnation);
    /// It cannot be reached. Called once for each connection or start, and again if the evidence changes.
    fn disconnected(&self, node: NodeId, evidence: Evidence);
}

/// What serves the connections of other brokers. Called on the connection's task: never block.
pub trait PeerServer: Send + Sync {
    /// This broker now.
    fn local(&self) -> PeerLocal;
    /// The newest registration of a broker that is known here.
    fn known_incarnation(&self, node: NodeId) -> Option<Incarnation>;
    /// A broker has connected. Pushes to it go through `outbox`.
    fn connected(&self, from: PeerIdentity, outbox: PeerOutbox);
    /// The connection of that outbox has ended.
    fn disconnected(&self, from: PeerIdentity, outbox: &PeerOutbox);
    /// After a push that found no room there is room again.
    fn room(&self, from: PeerIdentity, outbox: &PeerOutbox);
    /// A request. The replier answers now or later, from any thread.
    fn request(&self, from: PeerIdentity, api: Api, body: Bytes, replier: Replier);
    /// A one-way message.
    fn one_way(&self, from: PeerIdentity, api: Api, body: Bytes);
}

/// Why a call has no reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// There is no link to the broker. Not sent.
    #[error("broker {0} is not known here")]
    UnknownNode(NodeId),
    /// The link is down. Not sent.
    #[error("broker {0} is not connected")]
    NotConnected(NodeId),
    /// As many calls or bytes wait as may. Not sent.
    #[error("too much waits for the broker already")]
    Full,
    /// The frame is larger than the broker takes. Not sent.
    #[error("the body has {0} bytes, more than the broker takes")]
    TooLarge(usize),
    /// The address could not be dialled. Not sent.
    #[error("the address cannot be reached: {0}")]
    Unreachable(String),
    /// The broker refused.
    #[error("the broker refused: {}", .0.message)]
    Refused(ErrorBody),
    /// No reply in time; whether it was done is not known.
    #[error("the broker did not reply in time")]
    TimedOut,
    /// The link ended first; whether it was done is not known.
    #[error("the connection to the broker ended before its reply")]
    Disconnected,
    /// The reply is none.
    #[error("the reply of the broker is malformed")]
    Malformed,
}

/// Times and bounds of links in both directions.
#[derive(Clone, Copy, Debug)]
pub struct PeerOptions {
    /// The dialler sends a `Ping` this often.
    pub ping_interval: Duration,
    /// A side that has heard nothing for so long ends the connection.
    pub silence_max: Duration,
    /// Longest time for names, connection and handshake together.
    pub dial_max: Duration,
    /// First and longest pause between dials.
    pub redial_min: Duration,
    /// See `redial_min`.
    pub redial_max: Duration,
    /// Bytes that may wait for the socket, each direction.
    pub queue_bytes_max: usize,
    /// Calls without a reply, each direction; further ones fail or are refused.
    pub calls_max: usize,
    /// The largest body in either direction.
    pub frame_bytes_max: u32,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_millis(200),
            silence_max: Duration::from_millis(800),
            dial_max: Duration::from_millis(500),
            redial_min: Duration::from_millis(10),
            redial_max: Duration::from_millis(500),
            queue_bytes_max: 16 << 20,
            calls_max: 1024,
            frame_bytes_max: 8 << 20,
        }
    }
}
