//! Owns the handshake and the sign of life. Never negotiates (the core does).

use super::{message, wire_struct};
use crate::types::{ClusterId, NodeId, TimestampMs};

/// Feature bit: lz4 batches.
pub const FEATURE_LZ4: u64 = 1;
/// Feature bit: zstd batches.
pub const FEATURE_ZSTD: u64 = 1 << 1;

message! { Hello:
    /// The client's side of the handshake; the first frame on a connection.
    pub struct Hello {
        /// The lowest protocol version that the client speaks.
        pub version_min: u16,
        /// The highest.
        pub version_max: u16,
        /// [`FEATURE_LZ4`] and its siblings: what the client can take. Unknown bits are ignored.
        pub features: u64,
        /// The largest body that the client accepts.
        pub frame_bytes_max: u32,
        /// For logs.
        pub client_name: String,
        /// Random, the same on all connections of one client instance.
        pub client_id: [u8; 16],
        /// The cluster that the client expects; zero if any.
        pub cluster_id: ClusterId,
    }
}

message! { Hello:
    /// The broker's side of the handshake.
    pub struct HelloReply {
        /// The version that both speak from here on.
        pub version: u16,
        /// The features that both have.
        pub features: u64,
        /// What the broker allows on this connection.
        pub limits: Limits,
        /// The broker's cluster.
        pub cluster_id: ClusterId,
        /// The broker.
        pub node_id: NodeId,
        /// For logs.
        pub server_version: String,
        /// The broker's wall time.
        pub server_time: TimestampMs,
    }
}

wire_struct! {
    /// What a broker allows on one connection.
    #[derive(Copy)]
    pub struct Limits {
        /// The largest body in either direction.
        pub frame_bytes_max: u32,
        /// The largest batch: 40 field bytes and records, as sent.
        pub batch_bytes_max: u32,
        /// The largest message: one encoded record without its length, not compressed.
        pub message_bytes_max: u32,
        /// The most bytes of publishes that may wait for their confirm.
        pub in_flight_bytes_max: u32,
        /// The most subscriptions on the connection.
        pub subscriptions_max: u32,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 8 << 20,
            batch_bytes_max: 4 << 20,
            message_bytes_max: 1 << 20,
            in_flight_bytes_max: 32 << 20,
            subscriptions_max: 1024,
        }
    }
}

message! { Ping:
    /// Is the other side alive?
    pub struct Ping {}
}

message! { Ping:
    /// It is.
    pub struct PingReply {}
}
