//! Owns what client and broker agree on at `Hello`. Never sends. Driven by the join.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{Hello, HelloReply, Limits};
use postrider_protocol::types::{ClusterId, NodeId, TimestampMs};

/// The smallest `frame_bytes_max` with which a client can be served: a frame must hold an error reply
/// and a short metadata reply.
pub const CLIENT_FRAME_BYTES_MIN: u32 = 4_096;

/// What the broker is and can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerFacts {
    /// The lowest protocol version that it speaks.
    pub version_min: u16,
    /// The highest.
    pub version_max: u16,
    /// Its optional features, by bit.
    pub features: u64,
    /// What one connection may do.
    pub limits: Limits,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its number there.
    pub node: NodeId,
    /// Its version, for people.
    pub server_version: String,
    /// Its wall time.
    pub time: TimestampMs,
}

/// The highest common version, the common features, and the broker's limits. A broker frame is never
/// larger than what the client takes; a batch that is larger ends that client's subscription.
///
/// # Errors
/// `UnsupportedVersion`, `WrongCluster`, `BadRequest`: the connection ends after the reply.
pub fn negotiate(hello: &Hello, server: &ServerFacts) -> Result<HelloReply, ErrorBody> {
    let version = server.version_max.min(hello.version_max);
    if hello.version_min > hello.version_max {
        let text = "the client's lowest protocol version is above its highest";
        return Err(ErrorBody::new(ErrorCode::BadRequest, text));
    }
    if version < server.version_min.max(hello.version_min) {
        return Err(ErrorBody::new(
            ErrorCode::UnsupportedVersion,
            format!(
                "the client speaks protocol versions {} to {}, the broker {} to {}; update the older",
                hello.version_min, hello.version_max, server.version_min, server.version_max
            ),
        ));
    }
    if hello.cluster_id != ClusterId::default() && hello.cluster_id != server.cluster {
        return Err(ErrorBody::new(
            ErrorCode::WrongCluster,
            format!(
                "the client expects cluster {}, this broker belongs to {}; check the address",
                hello.cluster_id, server.cluster
            ),
        ));
    }
    if hello.frame_bytes_max < CLIENT_FRAME_BYTES_MIN {
        let text = format!("frame_bytes_max must be at least {CLIENT_FRAME_BYTES_MIN}");
        return Err(ErrorBody::new(ErrorCode::BadRequest, text));
    }
    Ok(HelloReply {
        version,
        features: hello.features & server.features,
        limits: server.limits,
        cluster_id: server.cluster,
        node_id: server.node,
        server_version: server.server_version.clone(),
        server_time: server.time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            version_min: 2,
            version_max: 4,
            features: 0b110,
            limits: Limits::default(),
            cluster: ClusterId([1; 16]),
            node: NodeId(1),
            server_version: "0.1.0".to_string(),
            time: TimestampMs(9),
        }
    }

    fn hello(version_min: u16, version_max: u16) -> Hello {
        Hello {
            version_min,
            version_max,
            features: 0b011,
            frame_bytes_max: 1 << 20,
            client_name: "test".to_string(),
            client_id: [0; 16],
            cluster_id: ClusterId::default(),
        }
    }

    #[test]
    fn the_highest_common_version_and_the_common_features_are_chosen() {
        for (min, max, version) in [(1, 9, 4), (1, 3, 3), (4, 9, 4), (1, 2, 2)] {
            let reply = negotiate(&hello(min, max), &facts()).unwrap();
            assert_eq!((reply.version, reply.features), (version, 0b010));
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let code = |hello: &Hello| negotiate(hello, &facts()).unwrap_err().code;
        assert_eq!(code(&hello(1, 1)), ErrorCode::UnsupportedVersion);
        assert_eq!(code(&hello(5, 9)), ErrorCode::UnsupportedVersion);
        assert_eq!(code(&hello(4, 3)), ErrorCode::BadRequest);
        let other = Hello { cluster_id: ClusterId([2; 16]), ..hello(1, 9) };
        assert_eq!(code(&other), ErrorCode::WrongCluster);
        let small = Hello { frame_bytes_max: 100, ..hello(1, 9) };
        assert_eq!(code(&small), ErrorCode::BadRequest);
        let same = Hello { cluster_id: ClusterId([1; 16]), ..hello(1, 9) };
        assert!(negotiate(&same, &facts()).is_ok());
    }
}
