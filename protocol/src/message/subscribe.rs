//! Owns what an attached subscriber and the broker say to each other, but for `Deliver`.

use super::{message, wire_struct};
use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    error::ErrorBody,
    types::{Offset, PartitionId, SubscriptionHandle, SubscriptionId, TimestampMs, TopicId},
};

/// A place in a topic: a byte 0 earliest, 1 latest, 2 and an offset, 3 and a time, 4 and a list of
/// partitions with offsets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// The first kept message.
    Earliest,
    /// The next message to be published.
    Latest,
    /// This offset, on every partition.
    Offset(Offset),
    /// The first message appended at or after this time.
    Timestamp(TimestampMs),
    /// An offset for each partition named; the others as `Earliest`.
    PerPartition(Vec<(PartitionId, Offset)>),
}

impl Wire for Start {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        match self {
            Self::Earliest => out.put(&0u8),
            Self::Latest => out.put(&1u8),
            Self::Offset(offset) => {
                out.put(&2u8);
                out.put(offset);
            }
            Self::Timestamp(time) => {
                out.put(&3u8);
                out.put(time);
            }
            Self::PerPartition(offsets) => {
                out.put(&4u8);
                out.put(offsets);
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::Earliest),
            1 => Ok(Self::Latest),
            2 => Ok(Self::Offset(input.take()?)),
            3 => Ok(Self::Timestamp(input.take()?)),
            4 => Ok(Self::PerPartition(input.take()?)),
            _ => Err(DecodeError::Invalid("start")),
        }
    }
}

message! { Subscribe:
    /// Attaches to a topic.
    pub struct Subscribe {
        /// Names the subscription on this connection; chosen by the client, not in use.
        pub handle: SubscriptionHandle,
        /// The topic.
        pub topic: String,
        /// The partitions; none = all.
        pub partitions: Vec<PartitionId>,
        /// The durable subscription; none = ephemeral.
        pub name: Option<String>,
        /// Where to begin. A durable subscription that exists continues where it was acked.
        pub start: Start,
        /// How many messages the broker may send.
        pub credit_messages: u32,
        /// How many bytes the broker may send.
        pub credit_bytes: u32,
    }
}

message! { Subscribe:
    /// The subscriber is attached.
    pub struct SubscribeReply {
        /// The topic.
        pub topic: TopicId,
        /// The durable subscription; zero if ephemeral.
        pub subscription: SubscriptionId,
        /// The partitions.
        pub partitions: Vec<SubscribedPartition>,
    }
}

wire_struct! {
    /// Where a subscriber begins on a partition.
    #[derive(Copy)]
    pub struct SubscribedPartition {
        /// The partition.
        pub partition: PartitionId,
        /// Rises with every attachment; to be sent with acks.
        pub owner_epoch: u64,
        /// The first offset that will be delivered.
        pub next: Offset,
        /// The first kept offset.
        pub log_start: Offset,
        /// One past the last offset that may be delivered.
        pub high_watermark: Offset,
    }
}

message! { Credit:
    /// Adds to what the broker may send.
    pub struct Credit {
        /// The subscription.
        pub handle: SubscriptionHandle,
        /// More messages.
        pub messages: u32,
        /// More bytes.
        pub bytes: u32,
    }
}

message! { AckUpTo:
    /// Everything below an offset is processed.
    pub struct AckUpTo {
        /// The subscription; a durable one.
        pub handle: SubscriptionHandle,
        /// The partition.
        pub partition: PartitionId,
        /// From `SubscribeReply`, or the last `Seeked`.
        pub owner_epoch: u64,
        /// One past the last processed offset.
        pub up_to: Offset,
    }
}

message! { AckUpTo:
    /// The ack has the durability of the topic.
    pub struct AckUpToReply {}
}

message! { Seek:
    /// Moves a durable subscription.
    pub struct Seek {
        /// Its topic.
        pub topic: String,
        /// Its name.
        pub name: String,
        /// Where to.
        pub to: Start,
    }
}

message! { Seek:
    /// It is moved.
    pub struct SeekReply {
        /// Where it stands on each partition now.
        pub partitions: Vec<(PartitionId, Offset)>,
    }
}

message! { Seeked:
    /// The subscription was moved; what was delivered before is void.
    pub struct Seeked {
        /// The subscription.
        pub handle: SubscriptionHandle,
        /// The partition.
        pub partition: PartitionId,
        /// The new owner epoch.
        pub owner_epoch: u64,
        /// The next offset that will be delivered.
        pub next: Offset,
    }
}

message! { Unsubscribe:
    /// Detaches. A durable subscription stays.
    pub struct Unsubscribe {
        /// The subscription.
        pub handle: SubscriptionHandle,
    }
}

message! { Unsubscribe:
    /// Nothing more will be delivered to it; the handle is free.
    pub struct UnsubscribeReply {}
}

/// Why offsets are not delivered: one byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum GapReason {
    /// They are older than the topic keeps.
    Retention = 1,
    /// They are damaged on disk.
    Damage = 2,
    /// They were lost in a crash (durability classes other than `fsync`).
    Lost = 3,
    /// They are older than the topic's TTL.
    Expired = 4,
    /// The topic holds as many messages as it may, and newer ones took their place.
    Overflow = 5,
}

impl GapReason {
    /// The reason with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Retention),
            2 => Some(Self::Damage),
            3 => Some(Self::Lost),
            4 => Some(Self::Expired),
            5 => Some(Self::Overflow),
            _ => None,
        }
    }
}

impl Wire for GapReason {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        (*self as u8).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_u8(input.take()?).ok_or(DecodeError::Invalid("gap reason"))
    }
}

message! { Gap:
    /// Offsets that the subscriber wanted and cannot have. Delivery goes on at `to`.
    pub struct Gap {
        /// The subscription.
        pub handle: SubscriptionHandle,
        /// The partition.
        pub partition: PartitionId,
        /// The first missing offset.
        pub from: Offset,
        /// One past the last missing offset.
        pub to: Offset,
        /// Why.
        pub reason: GapReason,
    }
}

message! { SubscriptionClosed:
    /// The broker ended the subscription; the handle is free.
    pub struct SubscriptionClosed {
        /// The subscription.
        pub handle: SubscriptionHandle,
        /// Why.
        pub error: ErrorBody,
    }
}
