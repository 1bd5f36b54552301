//! Owns `Confirm`: what became of published sequences, in runs.
//!
//! A body is runs without a count, at least one, each 72 bytes and its text:
//!
//! ```text
//!  0 [16] topic id
//! 16 u32 partition                      20 u32 count of sequences, at least 1
//! 24 i64 producer id                    32 u64 base sequence
//! 40 u8  outcome: 1 rejected, 2 unknown, 3 duplicate, 4 committed
//! 41 u8  durability (outcomes 3, 4)     42 u16 error code (outcomes 1, 2)
//! 44 u32 retry_after_ms (1, 2)          48 u64 base offset (3, 4); detail (1, 2)
//! 56 u64 append time, ms (3, 4)         64 u16 text length (1, 2)
//! 66 u8  1: of a delayed publish (3, 4), which has no offsets yet: 48 u64 is the index of its entry,
//!        44 u32 the place of the first message in it; together, its delay id
//! 67 [5] 0
//! 72 text
//! ```
//! What an outcome does not have is 0.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{DelayId, Message};
use crate::{
    api::Api,
    codec::{DecodeError, Reader},
    error::{ErrorBody, ErrorClass, ErrorCode, text_of},
    types::{
        Durability, EntryIndex, Offset, PartitionId, ProducerId, Sequence, TimestampMs, TopicId,
    },
};

const DELAYED: u8 = 1;

/// The size of a run without its text.
pub const CONFIRM_RUN_BYTES: usize = 72;

/// What became of published sequences.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Confirm {
    /// Runs of sequences; at least one.
    pub runs: Vec<ConfirmRun>,
}

/// The common outcome of consecutive sequences of one producer on one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfirmRun {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The session; [`ProducerId::NONE`] without one.
    pub producer: ProducerId,
    /// The first sequence; without a session, the tag of the publish.
    pub base_sequence: Sequence,
    /// How many sequences, at least 1.
    pub count: u32,
    /// What became of them.
    pub outcome: Outcome,
}

/// What became of a run of sequences.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Stored, at contiguous offsets.
    Committed {
        /// The offset of the first.
        base_offset: Offset,
        /// The broker's time of the append.
        append_time: TimestampMs,
        /// What the ack stands for.
        durability: Durability,
    },
    /// Stored before, by an earlier send.
    Duplicate {
        /// The offset of the first.
        base_offset: Offset,
        /// The broker's time of that append.
        append_time: TimestampMs,
        /// What the ack stands for.
        durability: Durability,
    },
    /// Stored, to be delivered later: consecutive places of one entry.
    Delayed {
        /// Names the first.
        id: DelayId,
        /// The broker's time of the append.
        append_time: TimestampMs,
        /// What the ack stands for.
        durability: Durability,
    },
    /// Stored before, to be delivered later; maybe it was since.
    DelayedDuplicate {
        /// Names the first.
        id: DelayId,
        /// The broker's time of that append.
        append_time: TimestampMs,
        /// What the ack stands for.
        durability: Durability,
    },
    /// Definitely not stored, and it never will be by this publish.
    Rejected {
        /// Why.
        error: ErrorBody,
    },
    /// Stored or not: the broker cannot say.
    Unknown {
        /// Why.
        error: ErrorBody,
    },
}

impl Outcome {
    /// The outcome's class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Committed { .. } | Self::Delayed { .. } => ErrorClass::Committed,
            Self::Duplicate { .. } | Self::DelayedDuplicate { .. } => ErrorClass::Duplicate,
            Self::Rejected { .. } => ErrorClass::Rejected,
            Self::Unknown { .. } => ErrorClass::Unknown,
        }
    }
}

impl Message for Confirm {
    const API: Api = Api::Confirm;

    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.runs.len().saturating_mul(CONFIRM_RUN_BYTES));
        for run in &self.runs {
            run.encode(out);
        }
    }

    fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(&body);
        let mut runs = Vec::with_capacity(input.remaining() / CONFIRM_RUN_BYTES);
        while input.remaining() > 0 {
            runs.push(ConfirmRun::decode(&mut input)?);
        }
        if runs.is_empty() { Err(DecodeError::Short) } else { Ok(Self { runs }) }
    }
}

impl ConfirmRun {
    /// Appends the run.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.topic.0);
        out.put_u32_le(self.partition.0);
        out.put_u32_le(self.count);
        out.put_i64_le(self.producer.0);
        out.put_u64_le(self.base_sequence.0);
        out.put_u8(self.outcome.class() as u8);
        match &self.outcome {
            Outcome::Committed { base_offset, append_time, durability }
            | Outcome::Duplicate { base_offset, append_time, durability } => {
                out.put_u8(*durability as u8);
                out.put_u16_le(0);
                out.put_u32_le(0);
                out.put_u64_le(base_offset.0);
                out.put_u64_le(append_time.0);
                out.put_u64_le(0);
            }
            Outcome::Delayed { id, append_time, durability }
            | Outcome::DelayedDuplicate { id, append_time, durability } => {
                out.put_u8(*durability as u8);
                out.put_u16_le(0);
                out.put_u32_le(id.position);
                out.put_u64_le(id.index.0);
                out.put_u64_le(append_time.0);
                out.put_u16_le(0);
                out.put_u8(DELAYED);
                out.put_bytes(0, 5);
            }
            Outcome::Rejected { error } | Outcome::Unknown { error } => encode_error(error, out),
        }
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fixed = input.array::<CONFIRM_RUN_BYTES>()?.as_slice();
        let mut topic = TopicId::default();
        fixed.copy_to_slice(&mut topic.0);
        let partition = PartitionId(fixed.get_u32_le());
        let count = fixed.get_u32_le();
        let producer = ProducerId(fixed.get_i64_le());
        let base_sequence = Sequence(fixed.get_u64_le());
        if count == 0 {
            return Err(DecodeError::Invalid("count of sequences"));
        }
        if producer < ProducerId::NONE {
            return Err(DecodeError::Invalid("producer id"));
        }
        if base_sequence.0.checked_add(u64::from(count)).is_none() {
            return Err(DecodeError::Invalid("sequence"));
        }
        let outcome = Parts::read(&mut fixed).outcome(count, input)?;
        Ok(Self { topic, partition, producer, base_sequence, count, outcome })
    }
}

fn encode_error(error: &ErrorBody, out: &mut BytesMut) {
    let text = text_of(&error.message);
    out.put_u8(0);
    out.put_u16_le(error.code as u16);
    out.put_u32_le(error.retry_after_ms);
    out.put_u64_le(error.detail);
    out.put_u64_le(0);
    out.put_u16_le(u16::try_from(text.len()).unwrap_or(0));
    out.put_bytes(0, 6);
    out.put_slice(text.as_bytes());
}

/// The bytes 40..72 of a run, before they are known to fit each other.
struct Parts {
    class: u8,
    durability: u8,
    code: u16,
    /// Of a delayed run: the place of its first message.
    retry_after_ms: u32,
    /// Of a delayed run: the index of its entry.
    offset_or_detail: u64,
    append_time: u64,
    text_len: u16,
    delayed: u8,
    reserved: [u8; 5],
}

impl Parts {
    fn read(fixed: &mut &[u8]) -> Self {
        let mut parts = Self {
            class: fixed.get_u8(),
            durability: fixed.get_u8(),
            code: fixed.get_u16_le(),
            retry_after_ms: fixed.get_u32_le(),
            offset_or_detail: fixed.get_u64_le(),
            append_time: fixed.get_u64_le(),
            text_len: fixed.get_u16_le(),
            delayed: fixed.get_u8(),
            reserved: [0; 5],
        };
        fixed.copy_to_slice(&mut parts.reserved);
        parts
    }

    fn outcome(&self, count: u32, input: &mut Reader<'_>) -> Result<Outcome, DecodeError> {
        if self.reserved != [0; 5] || self.delayed > DELAYED {
            return Err(DecodeError::Invalid("reserved bytes"));
        }
        match ErrorClass::from_u8(self.class) {
            Some(ErrorClass::Committed) if self.delayed == DELAYED => {
                let (id, append_time, durability) = self.delayed(count)?;
                Ok(Outcome::Delayed { id, append_time, durability })
            }
            Some(ErrorClass::Duplicate) if self.delayed == DELAYED => {
                let (id, append_time, durability) = self.delayed(count)?;
                Ok(Outcome::DelayedDuplicate { id, append_time, durability })
            }
            Some(ErrorClass::Committed) => {
                let (base_offset, append_time, durability) = self.stored(count)?;
                Ok(Outcome::Committed { base_offset, append_time, durability })
            }
            Some(ErrorClass::Duplicate) => {
                let (base_offset, append_time, durability) = self.stored(count)?;
                Ok(Outcome::Duplicate { base_offset, append_time, durability })
            }
            Some(ErrorClass::Rejected) => Ok(Outcome::Rejected { error: self.error(input)? }),
            Some(ErrorClass::Unknown) => Ok(Outcome::Unknown { error: self.error(input)? }),
            None => Err(DecodeError::Invalid("outcome")),
        }
    }

    fn stored(&self, count: u32) -> Result<(Offset, TimestampMs, Durability), DecodeError> {
        if (self.code, self.retry_after_ms, self.text_len) != (0, 0, 0) {
            return Err(DecodeError::Invalid("error of a stored run"));
        }
        if self.offset_or_detail.checked_add(u64::from(count)).is_none() {
            return Err(DecodeError::Invalid("offset"));
        }
        let durability =
            Durability::from_u8(self.durability).ok_or(DecodeError::Invalid("durability"))?;
        Ok((Offset(self.offset_or_detail), TimestampMs(self.append_time), durability))
    }

    fn delayed(&self, count: u32) -> Result<(DelayId, TimestampMs, Durability), DecodeError> {
        if (self.code, self.text_len) != (0, 0) {
            return Err(DecodeError::Invalid("error of a stored run"));
        }
        if self.retry_after_ms.checked_add(count).is_none() {
            return Err(DecodeError::Invalid("place of a delayed message"));
        }
        let durability =
            Durability::from_u8(self.durability).ok_or(DecodeError::Invalid("durability"))?;
        let id =
            DelayId { index: EntryIndex(self.offset_or_detail), position: self.retry_after_ms };
        Ok((id, TimestampMs(self.append_time), durability))
    }

    fn error(&self, input: &mut Reader<'_>) -> Result<ErrorBody, DecodeError> {
        if (self.durability, self.append_time, self.delayed) != (0, 0, 0) {
            return Err(DecodeError::Invalid("outcome of a run that is not stored"));
        }
        Ok(ErrorBody {
            code: ErrorCode::from_u16(self.code).ok_or(DecodeError::Invalid("error code"))?,
            retry_after_ms: self.retry_after_ms,
            detail: self.offset_or_detail,
            message: input.text(usize::from(self.text_len))?.to_owned(),
        })
    }
}
