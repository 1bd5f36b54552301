//! One message of every kind that brokers send each other.

use bytes::Bytes;
use postrider_protocol::{
    message::{
        AlterIsr, AlterIsrReply, BrokerAddress, FetchSnapshot, FetchSnapshotReply, Heartbeat,
        HeartbeatReply, IsrChange, IsrMember, IsrVerdict, JoinCluster, JoinClusterReply,
        JoinOutcome, Joined, LogPosition, OpenReplica, OpenReplicaReply, PeerHello, PeerHelloReply,
        PeerIdentity, ProbeEnd, ProbeEndReply, Propose, ProposeReply, RaftCall, RaftCallReply,
        RaftKind, ReplicaAck, ReplicaDiverged, ReplicaEnd, ReplicaEntries, ReplicaHead,
        ReplicaOpened, ReplicaProgress, ReplicaReset, ReplicaStart, Resign, ResignReply,
        TopicPartition,
    },
    types::{
        ClusterId, EntryIndex, Incarnation, LeaderEpoch, NodeId, Offset, PartitionId, StorageId,
    },
};

use crate::samples::{Sample, answered, asked, deliver, text, told, topic_id};

fn identity(node: u32) -> PeerIdentity {
    PeerIdentity {
        node: NodeId(node),
        storage_id: StorageId(*b"storage-01234567"),
        incarnation: Incarnation(17),
    }
}

fn of() -> TopicPartition {
    TopicPartition { topic: topic_id(), partition: PartitionId(3) }
}

fn place(index: u64, offset: u64) -> LogPosition {
    LogPosition { index: EntryIndex(index), offset: Offset(offset) }
}

fn controller() -> BrokerAddress {
    BrokerAddress { node: NodeId(1), host: text("one.example"), port: 7420 }
}

/// Between brokers, about the cluster.
pub(crate) fn peering() -> Vec<Sample> {
    let cluster_id = ClusterId(*b"cluster-01234567");
    let hello = PeerHello {
        cluster_id,
        from: identity(2),
        to_node: Some(NodeId(1)),
        to_storage_id: StorageId::default(),
    };
    let heartbeat = Heartbeat {
        incarnation: Incarnation(17),
        metadata_index: EntryIndex(40),
        chain: 0x0123_4567_89ab_cdef,
        disk_ok: true,
        sync_p99_ms: 4,
        unreachable: vec![NodeId(3)],
    };
    let beat = HeartbeatReply {
        term: 5,
        controller: NodeId(1),
        fenced: false,
        metadata_index: EntryIndex(41),
    };
    let join = JoinCluster {
        node: NodeId(2),
        storage_id: identity(2).storage_id,
        previous_incarnation: Incarnation(9),
        host: text("two.example"),
        port: 7420,
        rack: Some(text("b")),
        clean: true,
        lost: vec![of()],
    };
    let joined = Joined {
        cluster_id,
        incarnation: Incarnation(17),
        metadata_index: EntryIndex(17),
        voters: vec![controller()],
    };
    let outcome = |outcome| JoinClusterReply { outcome };
    let body = Bytes::from_static(b"raft");
    vec![
        asked("peer-hello", &hello),
        answered(
            "peer-hello-reply",
            &PeerHelloReply { identity: identity(1), metadata_index: EntryIndex(40) },
        ),
        asked("raft-call", &RaftCall { kind: RaftKind::Vote, body: body.clone() }),
        answered("raft-call-reply", &RaftCallReply { body }),
        asked("heartbeat", &heartbeat),
        answered("heartbeat-reply", &beat),
        asked("join-cluster", &join),
        answered("join-cluster-reply", &outcome(JoinOutcome::Joined(joined))),
        answered("join-cluster-ask-there", &outcome(JoinOutcome::AskThere(controller()))),
        asked("propose", &Propose { command: Bytes::from_static(b"command") }),
        answered("propose-reply", &ProposeReply { result: Bytes::from_static(b"result") }),
    ]
}

/// Between brokers, about one partition.
pub(crate) fn replicating() -> Vec<Sample> {
    let TopicPartition { topic, partition } = of();
    let leader_epoch = LeaderEpoch(6);
    let open = OpenReplica {
        topic,
        partition,
        leader_epoch,
        incarnation: Incarnation(17),
        stream: 2,
        log_end: place(100, 900),
        last_epoch: LeaderEpoch(5),
        durable_end: EntryIndex(98),
        credit: 1 << 20,
    };
    let start = |start| OpenReplicaReply { start };
    let opened = ReplicaOpened {
        high_watermark: place(95, 870),
        log_start: EntryIndex(10),
        from: EntryIndex(100),
    };
    let diverged = ReplicaDiverged { epoch: LeaderEpoch(4), end: EntryIndex(80) };
    let reset =
        ReplicaReset { snapshot: place(200, 1900), chain_crc: 0xdead_beef, snapshot_bytes: 4096 };
    let head = ReplicaHead {
        of: of(),
        leader_epoch,
        stream: 2,
        high_watermark: place(95, 870),
        log_start: EntryIndex(10),
    };
    let progress = ReplicaProgress {
        topic,
        partition,
        leader_epoch,
        stream: 2,
        durable_end: EntryIndex(101),
        applied_end: EntryIndex(95),
        credit: 4096,
    };
    let change = IsrChange {
        topic,
        partition,
        leader_epoch,
        partition_epoch: 12,
        incarnation: Incarnation(16),
        new_isr: vec![IsrMember { node: NodeId(2), incarnation: Incarnation(17) }],
    };
    let verdict = IsrVerdict {
        accepted: true,
        partition_epoch: 13,
        isr: vec![NodeId(1), NodeId(2)],
        metadata_index: EntryIndex(44),
    };
    let end =
        ReplicaEnd { last_epoch: leader_epoch, durable_end: EntryIndex(101), doubtful: false };
    let fetch =
        FetchSnapshot { topic, partition, snapshot: EntryIndex(200), at: 4096, bytes_max: 1 << 20 };
    let part = FetchSnapshotReply { total: 4104, bytes: Bytes::from_static(b"snapshot") };
    vec![
        asked("open-replica", &open),
        answered("open-replica-reply", &start(ReplicaStart::Opened(opened))),
        answered("open-replica-diverged", &start(ReplicaStart::Diverged(diverged))),
        answered("open-replica-reset", &start(ReplicaStart::NeedReset(reset))),
        told("replica-entries", &ReplicaEntries { head, entries: deliver().entries }),
        told("replica-ack", &ReplicaAck { partitions: vec![progress] }),
        asked("alter-isr", &AlterIsr { changes: vec![change] }),
        answered("alter-isr-reply", &AlterIsrReply { verdicts: vec![verdict] }),
        asked("probe-end", &ProbeEnd { partitions: vec![of()] }),
        answered("probe-end-reply", &ProbeEndReply { ends: vec![end] }),
        asked("fetch-snapshot", &fetch),
        answered("fetch-snapshot-reply", &part),
        asked("resign", &Resign { partitions: vec![of()] }),
        answered("resign-reply", &ResignReply {}),
    ]
}
