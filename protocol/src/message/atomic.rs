//! Owns `PublishAtomic`: a batch that is stored as a whole or not at all, maybe at one offset only. Never looks into
//! the batch.
//!
//! ```text
//! PublishAtomic: 0 u64 offset of its first message, 2^64-1 = any      8 a whole Publish: its head of 64 bytes, the batch
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Message, PUBLISH_HEAD_BYTES, Publish, PublishHead};
use crate::{
    api::Api,
    batch::Batch,
    codec::DecodeError,
    frame::{FRAME_HEADER_BYTES, FrameHeader},
    types::{CorrelationId, Offset},
};

/// The size of what precedes the batch in a `PublishAtomic`.
pub const PUBLISH_ATOMIC_HEAD_BYTES: usize = 8 + PUBLISH_HEAD_BYTES;

const ANYWHERE: u64 = u64::MAX;

/// A batch to store as a whole or not at all. Answered by `Confirm`, as its ack level says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishAtomic {
    /// The offset that its first message must get; none = any.
    pub at: Option<Offset>,
    /// The rest is as of every publish.
    pub publish: Publish,
}

impl PublishAtomic {
    /// Frame header and all that precedes the batch in one, so that a frame is this and the batch's body,
    /// uncopied.
    ///
    /// # Panics
    /// If the batch has 4 GiB or more, which no builder makes.
    #[must_use]
    pub fn encode_framed(
        at: Option<Offset>,
        head: &PublishHead,
        batch: &Batch,
    ) -> [u8; FRAME_HEADER_BYTES + PUBLISH_ATOMIC_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES + PUBLISH_ATOMIC_HEAD_BYTES];
        let mut out = bytes.as_mut_slice();
        let body_len = batch.body.len().saturating_add(PUBLISH_ATOMIC_HEAD_BYTES);
        let header = FrameHeader {
            body_len: u32::try_from(body_len).expect("a builder refuses batches above 1 GiB"),
            api: Api::PublishAtomic as u16,
            version: Self::VERSION,
            flags: 0,
            correlation: CorrelationId(0),
        };
        out.put_slice(&header.encode());
        out.put_u64_le(at.map_or(ANYWHERE, |at| at.0));
        out.put_slice(&head.encode(batch));
        bytes
    }
}

impl Message for PublishAtomic {
    const API: Api = Api::PublishAtomic;

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.at.map_or(ANYWHERE, |at| at.0));
        self.publish.encode(out);
    }

    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let at = body.try_get_u64_le().map_err(|_short| DecodeError::Short)?;
        let publish = Publish::decode(body)?;
        Ok(Self { at: (at != ANYWHERE).then_some(Offset(at)), publish })
    }
}
