//! Owns how settings become the options of the join and of the store. Driven by the server's start.

use std::net::SocketAddr;

use postrider_core::group::GroupOptions;
use postrider_protocol::message::Limits;
use postrider_protocol::types::NodeId;
use postrider_storage::StoreOptions;

use super::{ByteSize, Config};
use crate::join::BrokerOptions;

impl Config {
    /// The join's options, for a server that is bound to `local`.
    pub(crate) fn broker_options(&self, local: SocketAddr) -> BrokerOptions {
        let local_host = local.ip().to_string();
        let (host, port) =
            self.server.advertise.split().unwrap_or_else(|| (&local_host, local.port()));
        BrokerOptions {
            store: self.store_options(),
            limits: self.limits(),
            connections_max: self.net.connections_max,
            publish_bytes_max: usize_of(self.limits.publish_bytes_max),
            reply_bytes_max: usize_of(self.limits.reply_bytes_max),
            requests_max: self.limits.requests_max,
            producers_max: self.limits.producers_max,
            dedup_bytes_per_partition: usize_of(self.limits.dedup_bytes_per_partition),
            topics_max: self.limits.topics_max,
            partitions_max: self.limits.partitions_max,
            node: NodeId(self.server.node_id),
            host: host.to_owned(),
            port,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            groups: GroupOptions::default(),
            retention_check_interval: self.retention.check_interval,
            snapshot_after_bytes: self.storage.snapshot_after_bytes.0,
            snapshot_after_entries: u64::from(self.storage.snapshot_after_entries),
            snapshot_bytes_per_second: self.storage.snapshot_bytes_per_second.0,
        }
    }

    fn limits(&self) -> Limits {
        let limits = &self.limits;
        Limits {
            frame_bytes_max: u32_of(limits.frame_bytes_max),
            batch_bytes_max: u32_of(limits.batch_bytes_max),
            message_bytes_max: u32_of(limits.message_bytes_max),
            in_flight_bytes_max: u32_of(limits.publish_in_flight_bytes),
            subscriptions_max: limits.subscriptions_max,
        }
    }

    fn store_options(&self) -> StoreOptions {
        let storage = &self.storage;
        StoreOptions {
            segment_bytes_min: storage.segment_bytes_min.0,
            segment_bytes_max: storage.segment_bytes_max.0,
            journal_bytes_min: storage.journal_bytes_min.0,
            journal_bytes_max: storage.journal_bytes_max.0,
            group_bytes_max: usize_of(storage.group_bytes_max),
            queue_bytes_max: usize_of(storage.queue_bytes_max),
            direct_write_bytes: usize_of(storage.direct_write_bytes),
            hot_window_bytes: storage.hot_window_bytes.0,
            checkpoint_bytes: storage.checkpoint_bytes.0,
            checkpoint_journal_bytes: storage.checkpoint_journal_bytes.0,
            checkpoint_interval_ms: u64::try_from(storage.checkpoint_interval.as_millis())
                .unwrap_or(u64::MAX),
            reserve_bytes: storage.reserve_bytes.0,
            recycle_bytes_max: storage.recycle_bytes_max.0,
            map_max: usize::try_from(storage.map_max).unwrap_or(usize::MAX),
            open_files_max: usize::try_from(storage.open_files_max).unwrap_or(usize::MAX),
            ..StoreOptions::default()
        }
    }
}

fn usize_of(size: ByteSize) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

/// The ranges of the keys keep these below 4 GiB.
fn u32_of(size: ByteSize) -> u32 {
    u32::try_from(size.0).unwrap_or(u32::MAX)
}
