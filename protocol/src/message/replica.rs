//! Owns what replicas of a partition say to each other and to the controller. Never looks into entries
//! (`entry` does) and never decides what is to be cut.

use bytes::Bytes;

use super::{message, wire_struct};
use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    types::{EntryIndex, Incarnation, LeaderEpoch, NodeId, Offset, PartitionId, TopicId},
};

wire_struct! {
    /// A partition of a topic.
    #[derive(Copy, PartialOrd, Ord, Hash)]
    pub struct TopicPartition {
        /// The topic.
        pub topic: TopicId,
        /// The partition.
        pub partition: PartitionId,
    }
}

wire_struct! {
    /// A place in a partition's log.
    #[derive(Copy, PartialOrd, Ord, Default)]
    pub struct LogPosition {
        /// The entry there.
        pub index: EntryIndex,
        /// The next message from there.
        pub offset: Offset,
    }
}

message! { OpenReplica:
    /// A follower opens a stream of a partition's entries at its leader.
    pub struct OpenReplica {
        /// The topic.
        pub topic: TopicId,
        /// The partition.
        pub partition: PartitionId,
        /// The leadership that the follower knows.
        pub leader_epoch: LeaderEpoch,
        /// The follower's registration.
        pub incarnation: Incarnation,
        /// The stream's number, chosen by the follower; in every later message of the stream.
        pub stream: u64,
        /// Where the follower's log ends.
        pub log_end: LogPosition,
        /// The epoch of its last entry; 0 if there is none.
        pub last_epoch: LeaderEpoch,
        /// Up to where its log is durable.
        pub durable_end: EntryIndex,
        /// Bytes of entries that the follower is willing to receive.
        pub credit: u64,
    }
}

message! { OpenReplica:
    /// What the leader says to it.
    pub struct OpenReplicaReply {
        /// How the follower goes on.
        pub start: ReplicaStart,
    }
}

wire_struct! {
    /// The follower's log is a prefix of the leader's.
    #[derive(Copy)]
    pub struct ReplicaOpened {
        /// The leader's high watermark.
        pub high_watermark: LogPosition,
        /// The leader's first entry.
        pub log_start: EntryIndex,
        /// The first entry that will be sent.
        pub from: EntryIndex,
    }
}

wire_struct! {
    /// The follower's log is another one from here on.
    #[derive(Copy)]
    pub struct ReplicaDiverged {
        /// The leader's last epoch that is not above the follower's.
        pub epoch: LeaderEpoch,
        /// Where that epoch ends at the leader: cut to the lower of this and the own end of that epoch.
        pub end: EntryIndex,
    }
}

wire_struct! {
    /// The leader no longer has what the follower lacks: begin with this snapshot.
    #[derive(Copy)]
    pub struct ReplicaReset {
        /// Where the snapshot lies in the log.
        pub snapshot: LogPosition,
        /// The chain value before the entry at that place.
        pub chain_crc: u32,
        /// The snapshot's size.
        pub snapshot_bytes: u64,
    }
}

/// How a follower goes on: a byte 0 and `ReplicaOpened`, 1 and `ReplicaDiverged`, 2 and `ReplicaReset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaStart {
    /// Entries follow.
    Opened(ReplicaOpened),
    /// Cut, then open again.
    Diverged(ReplicaDiverged),
    /// Fetch the snapshot, then open again.
    NeedReset(ReplicaReset),
}

impl Wire for ReplicaStart {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        match self {
            Self::Opened(opened) => {
                out.put(&0u8);
                out.put(opened);
            }
            Self::Diverged(diverged) => {
                out.put(&1u8);
                out.put(diverged);
            }
            Self::NeedReset(reset) => {
                out.put(&2u8);
                out.put(reset);
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::Opened(input.take()?)),
            1 => Ok(Self::Diverged(input.take()?)),
            2 => Ok(Self::NeedReset(input.take()?)),
            _ => Err(DecodeError::Invalid("replica start")),
        }
    }
}

wire_struct! {
    /// How far a follower is with one partition.
    #[derive(Copy)]
    pub struct ReplicaProgress {
        /// The topic.
        pub topic: TopicId,
        /// The partition.
        pub partition: PartitionId,
        /// The leadership that it follows.
        pub leader_epoch: LeaderEpoch,
        /// The stream's number.
        pub stream: u64,
        /// Up to where its log is durable.
        pub durable_end: EntryIndex,
        /// Up to where it is applied.
        pub applied_end: EntryIndex,
        /// Further bytes of entries that it is willing to receive.
        pub credit: u64,
    }
}

message! { ReplicaAck:
    /// How far a follower is, for all its partitions with something new.
    pub struct ReplicaAck {
        /// One item for each.
        pub partitions: Vec<ReplicaProgress>,
    }
}

wire_struct! {
    /// A member of an in-sync set.
    #[derive(Copy)]
    pub struct IsrMember {
        /// The broker.
        pub node: NodeId,
        /// The registration that the leader knows.
        pub incarnation: Incarnation,
    }
}

wire_struct! {
    /// The in-sync set that a leader proposes.
    pub struct IsrChange {
        /// The topic.
        pub topic: TopicId,
        /// The partition.
        pub partition: PartitionId,
        /// The leadership.
        pub leader_epoch: LeaderEpoch,
        /// The partition's epoch that the leader knows.
        pub partition_epoch: u32,
        /// The leader's registration.
        pub incarnation: Incarnation,
        /// The proposed set.
        pub new_isr: Vec<IsrMember>,
    }
}

message! { AlterIsr:
    /// Leaders propose in-sync sets to the controller.
    pub struct AlterIsr {
        /// One for each partition.
        pub changes: Vec<IsrChange>,
    }
}

wire_struct! {
    /// What the controller says to one proposal.
    pub struct IsrVerdict {
        /// The proposed set is in force.
        pub accepted: bool,
        /// The partition's epoch now.
        pub partition_epoch: u32,
        /// The set that is in force.
        pub isr: Vec<NodeId>,
        /// From this place of the metadata on that is so.
        pub metadata_index: EntryIndex,
    }
}

message! { AlterIsr:
    /// What the controller says, in the order of the request.
    pub struct AlterIsrReply {
        /// One for each change.
        pub verdicts: Vec<IsrVerdict>,
    }
}

message! { ProbeEnd:
    /// The controller asks a candidate how far its logs go.
    pub struct ProbeEnd {
        /// The partitions.
        pub partitions: Vec<TopicPartition>,
    }
}

wire_struct! {
    /// How far a replica's log goes.
    #[derive(Copy)]
    pub struct ReplicaEnd {
        /// The epoch of the last entry; 0 if there is none.
        pub last_epoch: LeaderEpoch,
        /// Up to where it is durable.
        pub durable_end: EntryIndex,
        /// Recovery cut what may have been acknowledged.
        pub doubtful: bool,
    }
}

message! { ProbeEnd:
    /// How far they go, in the order of the request.
    pub struct ProbeEndReply {
        /// One for each partition.
        pub ends: Vec<ReplicaEnd>,
    }
}

message! { FetchSnapshot:
    /// A follower asks for a part of a snapshot.
    pub struct FetchSnapshot {
        /// The topic.
        pub topic: TopicId,
        /// The partition.
        pub partition: PartitionId,
        /// Where the snapshot lies in the log.
        pub snapshot: EntryIndex,
        /// The first wanted byte.
        pub at: u64,
        /// The most bytes in the reply.
        pub bytes_max: u32,
    }
}

message! { FetchSnapshot:
    /// A part of it; empty at its end.
    pub struct FetchSnapshotReply {
        /// The snapshot's size.
        pub total: u64,
        /// The bytes.
        pub bytes: Bytes,
    }
}

message! { Resign:
    /// A leader asks the controller to let others lead.
    pub struct Resign {
        /// The partitions.
        pub partitions: Vec<TopicPartition>,
    }
}

message! { Resign:
    /// It will.
    pub struct ResignReply {}
}
