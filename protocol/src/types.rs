//! Owns the newtypes that every layer shares. Never encodes anything. Driven by all other modules.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}(", stringify!($name))?;
                write_uuid(f, &self.0)?;
                write!(f, ")")
            }
        }
    };
}

fn write_uuid(f: &mut fmt::Formatter<'_>, id: &[u8; 16]) -> fmt::Result {
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            write!(f, "-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

number!(
    /// A message's number in its partition, from 0, gapless when written.
    Offset, u64
);
number!(
    /// An entry's number in its partition log. Clients never see it.
    EntryIndex, u64
);
number!(
    /// The number of the leadership that wrote an entry; only rises.
    LeaderEpoch, u32
);
number!(
    /// A partition's number within its topic, from 0.
    PartitionId, u32
);
number!(
    /// A broker's number in its cluster.
    NodeId, u32
);
number!(
    /// Rises when a producer session is fenced.
    ProducerEpoch, u16
);
number!(
    /// A registration of a broker, by which an older run of it is told apart; only rises. 0: none.
    Incarnation, u64
);
number!(
    /// A message's number in a producer session on one partition, from 0.
    Sequence, u64
);
number!(
    /// Pairs a reply with its request on one connection.
    CorrelationId, u64
);
number!(
    /// Unix time in milliseconds.
    TimestampMs, u64
);
number!(
    /// A subscription's number on one connection, chosen by the client.
    SubscriptionHandle, u32
);

/// A producer session's id, granted by the broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProducerId(pub i64);

impl ProducerId {
    /// No session: the sequence is only a tag that comes back in the confirm.
    pub const NONE: Self = Self(-1);

    /// A session of the broker's own, named by a hash of what it is for. Its id lies below
    /// [`ProducerId::NONE`]: no client is ever granted one.
    #[must_use]
    pub fn internal(hash: u64) -> Self {
        let distance = i64::try_from(hash >> 2).unwrap_or(i64::MAX >> 1);
        Self((-2_i64).saturating_sub(distance))
    }

    /// Whether it is a session of the broker's own.
    #[must_use]
    pub fn is_internal(self) -> bool {
        self < Self::NONE
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

id16!(
    /// A topic's UUID; a topic that is deleted and created again has another one.
    TopicId
);
id16!(
    /// A durable subscription's UUID.
    SubscriptionId
);
id16!(
    /// A consumer's number, random and chosen by its client; the same after a reconnect.
    MemberId
);
id16!(
    /// The UUID of a cluster.
    ClusterId
);
id16!(
    /// The UUID of a data directory.
    StorageId
);

impl TopicId {
    /// The metadata log (partition 0 of the nil UUID).
    pub const METADATA: Self = Self([0; 16]);
}

impl SubscriptionId {
    /// What an ephemeral subscription has.
    pub const NONE: Self = Self([0; 16]);
}

/// What an acknowledged message of a topic has reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Durability {
    /// On disk, by a sync that succeeded.
    #[default]
    Fsync = 0,
    /// In the memory of every in-sync replica; on one broker it acknowledges as `memory`.
    Replicated = 1,
    /// In the memory of the broker.
    Memory = 2,
}

impl Durability {
    /// The class with this number on the wire, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Fsync),
            1 => Some(Self::Replicated),
            2 => Some(Self::Memory),
            _ => None,
        }
    }

    /// The word used in the command line and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Replicated => "replicated",
            Self::Memory => "memory",
        }
    }
}

/// What a topic's messages are kept for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum TopicKind {
    /// Kept by time and size, read by everyone.
    #[default]
    Log = 0,
    /// Kept until acknowledged.
    Queue = 1,
}

impl TopicKind {
    /// The kind with this number on the wire, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Log),
            1 => Some(Self::Queue),
            _ => None,
        }
    }
}

/// A batch's compression, by Kafka's codec numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Compression {
    /// Records as they are.
    #[default]
    None = 0,
    /// LZ4 frame format.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}
