//! Owns `Deliver` with its fixed head. Never looks into entries (`entry` does).
//!
//! ```text
//!  0 u32 handle                     4 u32 partition
//!  8 u64 owner_epoch
//! 16 u64 next: the first wanted offset; the first entry may begin below it
//! 24 u64 high watermark
//! 32 u64 dispatch_index
//! 40 entries, as stored; Data only
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Message;
use crate::{
    api::Api,
    codec::DecodeError,
    frame::{FRAME_HEADER_BYTES, FrameHeader},
    types::{CorrelationId, Offset, PartitionId, SubscriptionHandle},
};

/// The size of what precedes the entries in a `Deliver`.
pub const DELIVER_HEAD_BYTES: usize = 40;

/// What a delivery says about its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliverHead {
    /// The subscription.
    pub handle: SubscriptionHandle,
    /// The partition.
    pub partition: PartitionId,
    /// The attachment that it belongs to.
    pub owner_epoch: u64,
    /// The first wanted offset: messages below it in the first entry are skipped.
    pub next: Offset,
    /// One past the last offset that may be delivered at this moment.
    pub high_watermark: Offset,
    /// Counts the deliveries of this attachment on this partition, from 0.
    pub dispatch_index: u64,
}

impl DeliverHead {
    /// The first bytes of the body; the entries follow them.
    #[must_use]
    pub fn encode(&self) -> [u8; DELIVER_HEAD_BYTES] {
        let mut bytes = [0; DELIVER_HEAD_BYTES];
        self.write(&mut bytes.as_mut_slice());
        bytes
    }

    /// Frame header and head in one, so that a frame is this and `entries_len` bytes of entries,
    /// uncopied.
    ///
    /// # Panics
    /// If the entries have 4 GiB or more, which no limit allows.
    #[must_use]
    pub fn encode_framed(
        &self,
        entries_len: usize,
    ) -> [u8; FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES];
        let mut out = bytes.as_mut_slice();
        let body_len = entries_len.saturating_add(DELIVER_HEAD_BYTES);
        let header = FrameHeader {
            body_len: u32::try_from(body_len).expect("a read is below 4 GiB: its limit is a u32"),
            api: Api::Deliver as u16,
            version: Deliver::VERSION,
            flags: 0,
            correlation: CorrelationId(0),
        };
        out.put_slice(&header.encode());
        self.write(&mut out);
        bytes
    }

    fn write(&self, out: &mut impl BufMut) {
        out.put_u32_le(self.handle.0);
        out.put_u32_le(self.partition.0);
        out.put_u64_le(self.owner_epoch);
        out.put_u64_le(self.next.0);
        out.put_u64_le(self.high_watermark.0);
        out.put_u64_le(self.dispatch_index);
    }
}

/// Entries of a subscribed partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deliver {
    /// What is said about the entries.
    pub head: DeliverHead,
    /// Whole entries, as stored; see [`crate::entry::EntryIter`].
    pub entries: Bytes,
}

impl Message for Deliver {
    const API: Api = Api::Deliver;

    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.entries.len().saturating_add(DELIVER_HEAD_BYTES));
        out.put_slice(&self.head.encode());
        out.put_slice(&self.entries);
    }

    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let fixed: &[u8; DELIVER_HEAD_BYTES] = body.first_chunk().ok_or(DecodeError::Short)?;
        let mut input = fixed.as_slice();
        let head = DeliverHead {
            handle: SubscriptionHandle(input.get_u32_le()),
            partition: PartitionId(input.get_u32_le()),
            owner_epoch: input.get_u64_le(),
            next: Offset(input.get_u64_le()),
            high_watermark: Offset(input.get_u64_le()),
            dispatch_index: input.get_u64_le(),
        };
        body.advance(DELIVER_HEAD_BYTES);
        Ok(Self { head, entries: body })
    }
}
