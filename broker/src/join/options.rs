//! Owns the settings of the join, with their defaults. Never reads a file or an environment: the shell
//! fills them in. Driven by `Broker::open`.

use std::time::Duration;

use postrider_core::group::GroupOptions;
use postrider_core::limits::DEDUP_BYTES_PER_PARTITION_MAX;
use postrider_protocol::message::Limits;
use postrider_protocol::types::NodeId;
use postrider_storage::StoreOptions;

/// Settings of a [`crate::join::Broker`].
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Settings of the log store.
    pub store: StoreOptions,
    /// What one connection may do; told to every client in the handshake.
    pub limits: Limits,
    /// Sessions at a time. At the bound a connection is refused with `LimitExceeded`.
    pub connections_max: u32,
    /// Publish bytes unconfirmed over all sessions. At three quarters of it sessions with publishes in
    /// flight are throttled (not read); at the bound a publish is rejected with `Overloaded`.
    pub publish_bytes_max: usize,
    /// Reply bytes that one session may leave unread. At the bound the session is not read.
    pub reply_bytes_max: usize,
    /// Requests of one session that wait for the disk. At the bound further ones fail with `Overloaded`.
    pub requests_max: u32,
    /// Producer sessions that one connection may hold. At the bound `OpenProducer` fails with
    /// `LimitExceeded`.
    pub producers_max: u32,
    /// Memory of the idempotency keys of one partition. At the bound a publish of new ones fails with
    /// `DedupCapacity`.
    pub dedup_bytes_per_partition: usize,
    /// Topics in the cluster. At the bound `CreateTopic` fails with `LimitExceeded`.
    pub topics_max: u32,
    /// Partitions of all topics. At the bound `CreateTopic` and `AlterTopic` fail with `LimitExceeded`.
    pub partitions_max: u32,
    /// Number of this broker in its cluster; stored at the first start, checked at later ones.
    pub node: NodeId,
    /// Host that clients are told to connect to.
    pub host: String,
    /// Port that clients are told to connect to.
    pub port: u16,
    /// Version of the program, told in the handshake.
    pub server_version: String,
    /// Times of consumer groups.
    pub groups: GroupOptions,
    /// Longest time between two looks at a partition's retention limits; much that is written shortens it.
    pub retention_check_interval: Duration,
    /// Bytes appended to a partition since its last snapshot that call for the next one; bounds what is
    /// folded at the first use after a start.
    pub snapshot_after_bytes: u64,
    /// Entries appended to a partition since its last snapshot that call for the next one.
    pub snapshot_after_entries: u64,
    /// Snapshot bytes written per second over all partitions; what is beyond waits.
    pub snapshot_bytes_per_second: u64,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            store: StoreOptions::default(),
            limits: Limits::default(),
            connections_max: 16_384,
            publish_bytes_max: 64 << 20,
            reply_bytes_max: 8 << 20,
            requests_max: 4_096,
            producers_max: 1_024,
            dedup_bytes_per_partition: DEDUP_BYTES_PER_PARTITION_MAX,
            topics_max: 100_000,
            partitions_max: 200_000,
            node: NodeId(1),
            host: "127.0.0.1".to_string(),
            port: 7420,
            server_version: env!("CARGO_PKG_VERSION").to_string(),
            groups: GroupOptions::default(),
            retention_check_interval: Duration::from_secs(30),
            snapshot_after_bytes: 64 << 20,
            snapshot_after_entries: 16_384,
            snapshot_bytes_per_second: 8 << 20,
        }
    }
}
