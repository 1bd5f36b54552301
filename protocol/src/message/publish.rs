//! Owns `Publish` with its fixed head, and `OpenProducer`. Never looks into a batch (`batch` does).
//!
//! ```text
//!  0 [16] topic id
//! 16 u32 partition                  20 u32 leader_epoch
//! 24 i64 producer id, -1 = none     32 u16 producer epoch
//! 34 u8  ack level                  35 u8  flags: 1 = records have idempotency keys, others 0
//! 36 u32 seq_count                  40 u64 base sequence
//! 48 u64 resolved_upto
//! 56 u32 record count               60 u32 body crc: crc32 (IEEE) of everything from 64 on
//! 64 batch
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Message, message};
use crate::{
    api::Api,
    batch::Batch,
    codec::DecodeError,
    frame::{FRAME_HEADER_BYTES, FrameHeader},
    types::{
        CorrelationId, LeaderEpoch, PartitionId, ProducerEpoch, ProducerId, Sequence, TopicId,
    },
};

/// The size of what precedes the batch in a `Publish`.
pub const PUBLISH_HEAD_BYTES: usize = 64;

const KEYED: u8 = 1;

message! { OpenProducer:
    /// Opens a producer session, or resumes one on this connection.
    pub struct OpenProducer {
        /// For logs; may be empty.
        pub name: String,
        /// The session to resume; none = a new one.
        pub resume: Option<(ProducerId, ProducerEpoch)>,
    }
}

message! { OpenProducer:
    /// The session that this connection now owns.
    pub struct OpenProducerReply {
        /// The session.
        pub producer: ProducerId,
        /// Its epoch, to be sent with every publish.
        pub epoch: ProducerEpoch,
    }
}

/// When a publish is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum AckLevel {
    /// Not when it is stored; only refusals are confirmed.
    None = 0,
    /// When the leader has it, by the topic's durability class.
    Leader = 1,
    /// When every in-sync replica has it, by the topic's durability class.
    #[default]
    Quorum = 2,
}

impl AckLevel {
    /// The level with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            1 => Some(Self::Leader),
            2 => Some(Self::Quorum),
            _ => None,
        }
    }
}

/// What a publish says about its batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublishHead {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The leadership that the client knows.
    pub leader_epoch: LeaderEpoch,
    /// The session; [`ProducerId::NONE`] without one.
    pub producer: ProducerId,
    /// The session's epoch.
    pub epoch: ProducerEpoch,
    /// When to confirm.
    pub ack: AckLevel,
    /// Whether the broker is to look for idempotency keys, headers of the records.
    pub keyed: bool,
    /// How many sequences the batch covers: one per record.
    pub seq_count: u32,
    /// The first of them; without a session, a tag that comes back in the confirm.
    pub base_sequence: Sequence,
    /// No sequence below will be sent (again).
    pub resolved_upto: Sequence,
}

impl PublishHead {
    /// The first bytes of the body; the batch's body follows them.
    #[must_use]
    pub fn encode(&self, batch: &Batch) -> [u8; PUBLISH_HEAD_BYTES] {
        let mut bytes = [0; PUBLISH_HEAD_BYTES];
        self.write(batch, &mut bytes.as_mut_slice());
        bytes
    }

    /// Frame header and head in one, so that a frame is this and the batch's body, uncopied.
    ///
    /// # Panics
    /// If the batch has 4 GiB or more, which no builder makes.
    #[must_use]
    pub fn encode_framed(&self, batch: &Batch) -> [u8; FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES];
        let mut out = bytes.as_mut_slice();
        let body_len = batch.body.len().saturating_add(PUBLISH_HEAD_BYTES);
        let header = FrameHeader {
            body_len: u32::try_from(body_len).expect("a builder refuses batches above 1 GiB"),
            api: Api::Publish as u16,
            version: Publish::VERSION,
            flags: 0,
            correlation: CorrelationId(0),
        };
        out.put_slice(&header.encode());
        self.write(batch, &mut out);
        bytes
    }

    fn write(&self, batch: &Batch, out: &mut impl BufMut) {
        out.put_slice(&self.topic.0);
        out.put_u32_le(self.partition.0);
        out.put_u32_le(self.leader_epoch.0);
        out.put_i64_le(self.producer.0);
        out.put_u16_le(self.epoch.0);
        out.put_u8(self.ack as u8);
        out.put_u8(u8::from(self.keyed) * KEYED);
        out.put_u32_le(self.seq_count);
        out.put_u64_le(self.base_sequence.0);
        out.put_u64_le(self.resolved_upto.0);
        out.put_u32_le(batch.record_count);
        out.put_u32_le(batch.crc);
    }
}

/// A batch to store. Answered by `Confirm`, as its ack level says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// What is said about the batch.
    pub head: PublishHead,
    /// The batch; not yet validated.
    pub batch: Batch,
}

impl Message for Publish {
    const API: Api = Api::Publish;

    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.batch.body.len().saturating_add(PUBLISH_HEAD_BYTES));
        out.put_slice(&self.head.encode(&self.batch));
        out.put_slice(&self.batch.body);
    }

    /// Does not validate the batch: a bad batch fails its publish, not the connection.
    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let fixed: &[u8; PUBLISH_HEAD_BYTES] = body.first_chunk().ok_or(DecodeError::Short)?;
        let mut input = fixed.as_slice();
        let mut topic = TopicId::default();
        input.copy_to_slice(&mut topic.0);
        let partition = PartitionId(input.get_u32_le());
        let leader_epoch = LeaderEpoch(input.get_u32_le());
        let producer = ProducerId(input.get_i64_le());
        let epoch = ProducerEpoch(input.get_u16_le());
        let ack = AckLevel::from_u8(input.get_u8()).ok_or(DecodeError::Invalid("ack level"))?;
        let flags = input.get_u8();
        let head = PublishHead {
            topic,
            partition,
            leader_epoch,
            producer,
            epoch,
            ack,
            keyed: flags & KEYED != 0,
            seq_count: input.get_u32_le(),
            base_sequence: Sequence(input.get_u64_le()),
            resolved_upto: Sequence(input.get_u64_le()),
        };
        let record_count = input.get_u32_le();
        let crc = input.get_u32_le();
        if flags & !KEYED != 0 {
            return Err(DecodeError::Invalid("flags of a publish"));
        }
        if producer < ProducerId::NONE {
            return Err(DecodeError::Invalid("producer id"));
        }
        if head.seq_count == 0 {
            return Err(DecodeError::Invalid("count of sequences"));
        }
        if head.base_sequence.0.checked_add(u64::from(head.seq_count)).is_none() {
            return Err(DecodeError::Invalid("sequence"));
        }
        body.advance(PUBLISH_HEAD_BYTES);
        Ok(Self { head, batch: Batch { body, crc, record_count } })
    }
}
