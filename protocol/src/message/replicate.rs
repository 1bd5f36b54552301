//! Owns `ReplicaEntries` with its fixed head. Never looks into entries (`entry` does).
//!
//! ```text
//!  0 16 bytes topic                16 u32 partition            20 u32 leader_epoch
//! 24 u64 stream
//! 32 u64 high watermark: index     40 u64 its offset
//! 48 u64 log start: index
//! 56 entries, as stored, back to back; maybe none
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{LogPosition, Message, TopicPartition};
use crate::{
    api::Api,
    codec::DecodeError,
    frame::{FRAME_HEADER_BYTES, FrameHeader},
    types::{CorrelationId, EntryIndex, LeaderEpoch, Offset, PartitionId, TopicId},
};

/// The size of what precedes the entries in a `ReplicaEntries`.
pub const REPLICA_HEAD_BYTES: usize = 56;

/// What a leader says about the entries that it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaHead {
    /// The partition.
    pub of: TopicPartition,
    /// The leadership that sends them.
    pub leader_epoch: LeaderEpoch,
    /// The stream's number.
    pub stream: u64,
    /// The leader's high watermark.
    pub high_watermark: LogPosition,
    /// The leader's first entry.
    pub log_start: EntryIndex,
}

impl ReplicaHead {
    /// Frame header and head in one, so that a frame is this and `entries_len` bytes of entries,
    /// uncopied.
    ///
    /// # Panics
    /// If the entries have 4 GiB or more, which no limit allows.
    #[must_use]
    pub fn encode_framed(
        &self,
        entries_len: usize,
    ) -> [u8; FRAME_HEADER_BYTES + REPLICA_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES + REPLICA_HEAD_BYTES];
        let mut out = bytes.as_mut_slice();
        let body_len = entries_len.saturating_add(REPLICA_HEAD_BYTES);
        let header = FrameHeader {
            body_len: u32::try_from(body_len).expect("a read is below 4 GiB: its limit is a u32"),
            api: Api::ReplicaEntries as u16,
            version: ReplicaEntries::VERSION,
            flags: 0,
            correlation: CorrelationId(0),
        };
        out.put_slice(&header.encode());
        self.write(&mut out);
        bytes
    }

    fn write(&self, out: &mut impl BufMut) {
        out.put_slice(&self.of.topic.0);
        out.put_u32_le(self.of.partition.0);
        out.put_u32_le(self.leader_epoch.0);
        out.put_u64_le(self.stream);
        out.put_u64_le(self.high_watermark.index.0);
        out.put_u64_le(self.high_watermark.offset.0);
        out.put_u64_le(self.log_start.0);
    }

    fn read(mut input: &[u8]) -> Result<Self, DecodeError> {
        let topic: [u8; 16] = *input.first_chunk().ok_or(DecodeError::Short)?;
        input.advance(topic.len());
        Ok(Self {
            of: TopicPartition {
                topic: TopicId(topic),
                partition: PartitionId(input.get_u32_le()),
            },
            leader_epoch: LeaderEpoch(input.get_u32_le()),
            stream: input.get_u64_le(),
            high_watermark: LogPosition {
                index: EntryIndex(input.get_u64_le()),
                offset: Offset(input.get_u64_le()),
            },
            log_start: EntryIndex(input.get_u64_le()),
        })
    }
}

/// Entries of a partition, from its leader to a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaEntries {
    /// What is said about the entries.
    pub head: ReplicaHead,
    /// Whole entries of any kind, as stored; see [`crate::entry::EntryIter`]. None: only the head is news.
    pub entries: Bytes,
}

impl Message for ReplicaEntries {
    const API: Api = Api::ReplicaEntries;

    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.entries.len().saturating_add(REPLICA_HEAD_BYTES));
        self.head.write(out);
        out.put_slice(&self.entries);
    }

    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let fixed: &[u8; REPLICA_HEAD_BYTES] = body.first_chunk().ok_or(DecodeError::Short)?;
        let head = ReplicaHead::read(fixed)?;
        body.advance(REPLICA_HEAD_BYTES);
        Ok(Self { head, entries: body })
    }
}
