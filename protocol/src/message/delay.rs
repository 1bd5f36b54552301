//! Owns what is said about delayed messages: `PublishDelayed`, `CancelDelayed`, `DescribeDelayed`. Never looks
//! into a batch.
//!
//! ```text
//! PublishDelayed: 0 u64 deliver_at, ms      8 a whole Publish: its head of 64 bytes, then the batch
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Message, PUBLISH_HEAD_BYTES, Publish, PublishHead, message, wire_struct};
use crate::{
    api::Api,
    batch::Batch,
    codec::{DecodeError, Reader, Wire, Writer},
    frame::{FRAME_HEADER_BYTES, FrameHeader},
    types::{CorrelationId, EntryIndex, PartitionId, TimestampMs},
};

/// The size of what precedes the batch in a `PublishDelayed`.
pub const PUBLISH_DELAYED_HEAD_BYTES: usize = 8 + PUBLISH_HEAD_BYTES;

/// Messages that one `CancelDelayed` may name.
pub const CANCEL_DELAYED_MAX: usize = 4_096;

wire_struct! {
    /// Names a delayed message in its partition.
    #[derive(Copy, PartialOrd, Ord, Hash)]
    pub struct DelayId {
        /// The entry that it was published in.
        pub index: EntryIndex,
        /// Its place in that entry, from 0.
        pub position: u32,
    }
}

/// A batch to store now and to deliver later. Answered by `Confirm`, as its ack level says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishDelayed {
    /// No message of the batch is delivered before this time of the broker.
    pub deliver_at: TimestampMs,
    /// The rest is as of every publish.
    pub publish: Publish,
}

impl PublishDelayed {
    /// Frame header and all that precedes the batch in one, so that a frame is this and the batch's body,
    /// uncopied.
    ///
    /// # Panics
    /// If the batch has 4 GiB or more, which no builder makes.
    #[must_use]
    pub fn encode_framed(
        deliver_at: TimestampMs,
        head: &PublishHead,
        batch: &Batch,
    ) -> [u8; FRAME_HEADER_BYTES + PUBLISH_DELAYED_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES + PUBLISH_DELAYED_HEAD_BYTES];
        let mut out = bytes.as_mut_slice();
        let body_len = batch.body.len().saturating_add(PUBLISH_DELAYED_HEAD_BYTES);
        let header = FrameHeader {
            body_len: u32::try_from(body_len).expect("a builder refuses batches above 1 GiB"),
            api: Api::PublishDelayed as u16,
            version: Self::VERSION,
            flags: 0,
            correlation: CorrelationId(0),
        };
        out.put_slice(&header.encode());
        out.put_u64_le(deliver_at.0);
        out.put_slice(&head.encode(batch));
        bytes
    }
}

impl Message for PublishDelayed {
    const API: Api = Api::PublishDelayed;

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.deliver_at.0);
        self.publish.encode(out);
    }

    /// Does not validate the batch: a bad batch fails its publish, not the connection.
    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        if body.len() < 8 {
            return Err(DecodeError::Short);
        }
        let deliver_at = TimestampMs(body.get_u64_le());
        Ok(Self { deliver_at, publish: Publish::decode(body)? })
    }
}

message! { CancelDelayed:
    /// Takes back delayed messages of one partition, as far as they were not released.
    pub struct CancelDelayed {
        /// The topic.
        pub topic: String,
        /// The partition.
        pub partition: PartitionId,
        /// Which; at most [`CANCEL_DELAYED_MAX`].
        pub ids: Vec<DelayId>,
    }
}

message! { CancelDelayed:
    /// What became of each, durably.
    pub struct CancelDelayedReply {
        /// In the order of the request.
        pub verdicts: Vec<CancelVerdict>,
    }
}

/// What a cancel found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CancelVerdict {
    /// It will never be delivered: taken back now, or lately by an earlier request.
    Cancelled = 1,
    /// It has an offset: released lately.
    Released = 2,
    /// It does not wait: released or cancelled a while ago, or never published here.
    Unknown = 3,
}

impl Wire for CancelVerdict {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&(*self as u8));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            1 => Ok(Self::Cancelled),
            2 => Ok(Self::Released),
            3 => Ok(Self::Unknown),
            _ => Err(DecodeError::Invalid("verdict of a cancel")),
        }
    }
}

message! { DescribeDelayed:
    /// Asks what waits for its time in a topic.
    pub struct DescribeDelayed {
        /// The topic.
        pub topic: String,
    }
}

message! { DescribeDelayed:
    /// The delayed messages of a topic by numbers.
    pub struct DescribeDelayedReply {
        /// Those partitions that ever had some, by number.
        pub partitions: Vec<DelayedPartition>,
    }
}

wire_struct! {
    /// The delayed messages of a partition by numbers.
    pub struct DelayedPartition {
        /// Which.
        pub partition: PartitionId,
        /// Messages that wait for their time.
        pub scheduled: u64,
        /// The first of these times.
        pub next_due: Option<TimestampMs>,
        /// Messages that got their offset, ever.
        pub released: u64,
        /// Messages that were taken back, ever.
        pub cancelled: u64,
        /// Messages that could not be read when their time came, ever.
        pub lost: u64,
    }
}
