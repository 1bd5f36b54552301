//! Owns the frame header and the incremental [`FrameDecoder`]. Never reads a socket, never looks into
//! a body. Driven by whoever owns the read buffer of a connection.
//!
//! ```text
//!  0 u32 body length, without this header
//!  4 u16 api
//!  6 u8  version of the api's body
//!  7 u8  flags: bit 0 reply, bit 1 error (only with reply: the body is an ErrorBody); others 0
//!  8 u64 correlation id: the request's in a reply; 0 in events and one-way messages
//! 16 body
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    api::Api, codec::DecodeError, error::ErrorBody, message::Message, types::CorrelationId,
};

/// The size of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The largest body that either side accepts before `Hello` has settled the limit.
pub const HELLO_BODY_BYTES_MAX: u32 = 4096;
/// The frame answers a request.
pub const FLAG_REPLY: u8 = 1;
/// The reply is an [`ErrorBody`].
pub const FLAG_ERROR: u8 = 2;

/// What precedes every body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Bytes that follow the header.
    pub body_len: u32,
    /// The api number, known or not.
    pub api: u16,
    /// The version of the body.
    pub version: u8,
    /// [`FLAG_REPLY`], [`FLAG_ERROR`].
    pub flags: u8,
    /// Pairs a reply with its request.
    pub correlation: CorrelationId,
}

impl FrameHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut out = bytes.as_mut_slice();
        out.put_u32_le(self.body_len);
        out.put_u16_le(self.api);
        out.put_u8(self.version);
        out.put_u8(self.flags);
        out.put_u64_le(self.correlation.0);
        bytes
    }

    /// The header in these bytes; any bytes are one.
    #[must_use]
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Self {
        let mut input = bytes.as_slice();
        Self {
            body_len: input.get_u32_le(),
            api: input.get_u16_le(),
            version: input.get_u8(),
            flags: input.get_u8(),
            correlation: CorrelationId(input.get_u64_le()),
        }
    }

    /// The frame answers a request.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// The frame is a reply whose body is an [`ErrorBody`].
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.flags & FLAG_ERROR != 0
    }

    fn check(&self, body_bytes_max: u32) -> Result<(), FrameError> {
        if self.body_len > body_bytes_max {
            return Err(FrameError::TooLarge { body_len: self.body_len, max: body_bytes_max });
        }
        if !matches!(self.flags, 0 | FLAG_REPLY | 0b11) {
            return Err(FrameError::Flags(self.flags));
        }
        Ok(())
    }
}

/// A whole frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its body, a slice of the read buffer.
    pub body: Bytes,
}

impl Frame {
    /// The message in the frame.
    ///
    /// # Errors
    /// The frame is of another api or version than `M`, or its body is not a canonical `M`. The caller
    /// answers `MalformedFrame` and closes the connection.
    pub fn message<M: Message>(self) -> Result<M, DecodeError> {
        let FrameHeader { api, version, .. } = self.header;
        if api != M::API as u16 || version != M::VERSION {
            return Err(DecodeError::OtherMessage { api, version });
        }
        M::decode(self.body)
    }
}

/// Why a connection's bytes are no frames. Nothing after it can be trusted: the connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The body would be larger than the limit.
    #[error("a frame announces a body of {body_len} bytes, the limit is {max}")]
    TooLarge {
        /// The announced length.
        body_len: u32,
        /// The limit.
        max: u32,
    },
    /// Undefined flags, or an error that is no reply.
    #[error("a frame has the undefined flags {0:#04x}")]
    Flags(u8),
}

/// Takes frames off the front of a read buffer.
///
/// The buffer never needs more than one header and `body_bytes_max` bytes for the frame at its front.
#[derive(Clone, Debug)]
pub struct FrameDecoder {
    body_bytes_max: u32,
}

impl FrameDecoder {
    /// A decoder that refuses bodies above `body_bytes_max`.
    #[must_use]
    pub fn new(body_bytes_max: u32) -> Self {
        Self { body_bytes_max }
    }

    /// Changes the limit, once `Hello` has settled it.
    pub fn set_max(&mut self, body_bytes_max: u32) {
        self.body_bytes_max = body_bytes_max;
    }

    /// The frame at the front of the buffer, once all its bytes are there. Its body shares the
    /// buffer's memory.
    ///
    /// # Errors
    /// The header is one that no peer may send; found as soon as the header is there. The caller ends the
    /// connection.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(header) = buffer.first_chunk() else { return Ok(None) };
        let header = FrameHeader::decode(header);
        header.check(self.body_bytes_max)?;
        let frame_len = frame_len(&header);
        if buffer.len() < frame_len {
            return Ok(None);
        }
        let mut body = buffer.split_to(frame_len).freeze();
        body.advance(FRAME_HEADER_BYTES);
        Ok(Some(Frame { header, body }))
    }

    /// How many bytes the frame at the front of the buffer still lacks (its header's, while that is
    /// incomplete); at most one header and the largest body. 0 when it is complete.
    #[must_use]
    pub fn missing(&self, buffer: &BytesMut) -> usize {
        let wanted = match buffer.first_chunk() {
            None => FRAME_HEADER_BYTES,
            Some(header) => {
                let mut header = FrameHeader::decode(header);
                header.body_len = header.body_len.min(self.body_bytes_max);
                frame_len(&header)
            }
        };
        wanted.saturating_sub(buffer.len())
    }
}

fn frame_len(header: &FrameHeader) -> usize {
    usize::try_from(header.body_len).unwrap_or(usize::MAX).saturating_add(FRAME_HEADER_BYTES)
}

/// A whole frame of a message, header and body in one buffer.
///
/// # Panics
/// If the body has 4 GiB or more, which no limit allows.
#[must_use]
pub fn frame<M: Message>(message: &M, correlation: CorrelationId, flags: u8) -> Bytes {
    framed(M::API as u16, M::VERSION, correlation, flags, |out| message.encode(out))
}

/// A request, or (with correlation id 0) a one-way message or an event.
#[must_use]
pub fn request<M: Message>(message: &M, correlation: CorrelationId) -> Bytes {
    frame(message, correlation, 0)
}

/// An event or a one-way message.
#[must_use]
pub fn event<M: Message>(message: &M) -> Bytes {
    frame(message, CorrelationId(0), 0)
}

/// The reply to the request `correlation`.
#[must_use]
pub fn reply<M: Message>(message: &M, correlation: CorrelationId) -> Bytes {
    frame(message, correlation, FLAG_REPLY)
}

/// The refusal of the request `correlation` of `api`; the api is echoed even when it is unknown.
#[must_use]
pub fn error_reply(api: u16, correlation: CorrelationId, error: &ErrorBody) -> Bytes {
    framed(api, 1, correlation, FLAG_REPLY | FLAG_ERROR, |out| error.encode(out))
}

/// The refusal of a connection that has no request to answer: an error reply to `Hello` number 0.
#[must_use]
pub fn connection_error(error: &ErrorBody) -> Bytes {
    error_reply(Api::Hello as u16, CorrelationId(0), error)
}

fn framed(
    api: u16,
    version: u8,
    correlation: CorrelationId,
    flags: u8,
    encode: impl FnOnce(&mut BytesMut),
) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    out.put_bytes(0, FRAME_HEADER_BYTES);
    encode(&mut out);
    let body_len = out.len().saturating_sub(FRAME_HEADER_BYTES);
    let body_len = u32::try_from(body_len).expect("a body is below 4 GiB: every limit is a u32");
    let header = FrameHeader { body_len, api, version, flags, correlation };
    if let Some(place) = out.first_chunk_mut() {
        *place = header.encode();
    }
    out.freeze()
}
