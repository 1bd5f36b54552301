//! Owns what brokers say to each other about themselves and the cluster: the handshake between brokers,
//! calls of the controller's Raft group, heartbeats, joining. Never names a partition's log (`replica`
//! does) and never judges an identity.

use bytes::Bytes;

use super::{BrokerAddress, TopicPartition, message, wire_struct};
use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    types::{ClusterId, EntryIndex, Incarnation, NodeId, StorageId},
};

wire_struct! {
    /// Who a broker is.
    #[derive(Copy)]
    pub struct PeerIdentity {
        /// Its number.
        pub node: NodeId,
        /// Its data directory.
        pub storage_id: StorageId,
        /// Which of its registrations this is; 0: none yet.
        pub incarnation: Incarnation,
    }
}

message! { PeerHello:
    /// Makes the connection one between brokers. The first request after `Hello`.
    pub struct PeerHello {
        /// The dialler's cluster; zero if it knows none yet.
        pub cluster_id: ClusterId,
        /// The dialler.
        pub from: PeerIdentity,
        /// The broker that the dialler wants to reach; none: whoever listens there.
        pub to_node: Option<NodeId>,
        /// Its data directory; zero if unknown.
        pub to_storage_id: StorageId,
    }
}

message! { PeerHello:
    /// The connection is one between brokers.
    pub struct PeerHelloReply {
        /// The broker that was reached.
        pub identity: PeerIdentity,
        /// How far it has applied the metadata.
        pub metadata_index: EntryIndex,
    }
}

/// Which call of the Raft group: a byte 1 append, 2 vote, 3 install.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RaftKind {
    /// Entries of the metadata log.
    Append = 1,
    /// A candidate asks for a vote.
    Vote = 2,
    /// A part of a snapshot.
    Install = 3,
}

impl Wire for RaftKind {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&(*self as u8));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            1 => Ok(Self::Append),
            2 => Ok(Self::Vote),
            3 => Ok(Self::Install),
            _ => Err(DecodeError::Invalid("raft kind")),
        }
    }
}

message! { RaftCall:
    /// A call of the controller's Raft group.
    pub struct RaftCall {
        /// Which call.
        pub kind: RaftKind,
        /// Its arguments, as the Raft group encodes them.
        pub body: Bytes,
    }
}

message! { RaftCall:
    /// What it returned.
    pub struct RaftCallReply {
        /// The result, as the Raft group encodes it.
        pub body: Bytes,
    }
}

message! { Heartbeat:
    /// A broker lives, and what the controller should know about it.
    pub struct Heartbeat {
        /// The sender's registration.
        pub incarnation: Incarnation,
        /// How far it has applied the metadata.
        pub metadata_index: EntryIndex,
        /// The chain hash of the metadata log up to there.
        pub chain: u64,
        /// No sync has failed.
        pub disk_ok: bool,
        /// The 99th percentile of its recent syncs.
        pub sync_p99_ms: u32,
        /// Brokers whose connection was reset and whose redial was refused.
        pub unreachable: Vec<NodeId>,
    }
}

message! { Heartbeat:
    /// What the controller says to it.
    pub struct HeartbeatReply {
        /// The controller's term.
        pub term: u64,
        /// The controller.
        pub controller: NodeId,
        /// The sender is fenced: it serves nothing until it has registered again.
        pub fenced: bool,
        /// How far the controller has applied the metadata.
        pub metadata_index: EntryIndex,
    }
}

message! { JoinCluster:
    /// A broker registers, at every start.
    pub struct JoinCluster {
        /// Its number.
        pub node: NodeId,
        /// Its data directory.
        pub storage_id: StorageId,
        /// Its last registration; 0: none.
        pub previous_incarnation: Incarnation,
        /// Where it listens: a name or an address.
        pub host: String,
        /// The data port.
        pub port: u16,
        /// Which of the brokers fail together with it.
        pub rack: Option<String>,
        /// Its last run ended in order.
        pub clean: bool,
        /// Partitions that it held and has lost.
        pub lost: Vec<TopicPartition>,
    }
}

wire_struct! {
    /// The registration that a broker got.
    pub struct Joined {
        /// The cluster.
        pub cluster_id: ClusterId,
        /// The registration.
        pub incarnation: Incarnation,
        /// To be applied before the broker serves.
        pub metadata_index: EntryIndex,
        /// The voters of the controller's group.
        pub voters: Vec<BrokerAddress>,
    }
}

/// What became of a registration: a byte 0 and `Joined`, or 1 and the address of the controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinOutcome {
    /// Registered.
    Joined(Joined),
    /// The broker asked is not the controller; this one is.
    AskThere(BrokerAddress),
}

impl Wire for JoinOutcome {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        match self {
            Self::Joined(joined) => {
                out.put(&0u8);
                out.put(joined);
            }
            Self::AskThere(address) => {
                out.put(&1u8);
                out.put(address);
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::Joined(input.take()?)),
            1 => Ok(Self::AskThere(input.take()?)),
            _ => Err(DecodeError::Invalid("join outcome")),
        }
    }
}

message! { JoinCluster:
    /// What became of it.
    pub struct JoinClusterReply {
        /// Registered, or whom to ask.
        pub outcome: JoinOutcome,
    }
}

message! { Propose:
    /// A metadata command for the controller.
    pub struct Propose {
        /// The command, as the metadata log encodes it.
        pub command: Bytes,
    }
}

message! { Propose:
    /// It is in the metadata log.
    pub struct ProposeReply {
        /// What applying it returned.
        pub result: Bytes,
    }
}
