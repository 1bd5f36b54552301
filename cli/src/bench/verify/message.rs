//! Owns the payload of a verification message: who sent it, its number, bytes that depend on both, and a
//! checksum over all of it. Pure.
//!
//! ```text
//!  0 "PRV1" | 4 u32 crc32 of the bytes from 8 on | 8 u64 run | 16 u32 producer | 20 u32 partition
//! 24 u64 sequence | 32 u32 length of the payload | 36 u32 zero | 40 filler
//! ```
//! Little-endian. Every changed byte is found: the first eight by comparison, the others by the checksum.

use bytes::{BufMut, Bytes, BytesMut};

use super::Stream;
use crate::bench::payload::Random;

/// The smallest payload.
pub(crate) const HEADER_BYTES: usize = 40;

const MAGIC: &[u8; 4] = b"PRV1";

/// What a payload says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) run: u64,
    pub(crate) stream: Stream,
    pub(crate) sequence: u64,
}

/// A payload that no verification message has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// It does not begin as one: another program's message, or its first bytes changed.
    Foreign,
    /// Its length differs from what it says.
    Length,
    /// Its checksum differs.
    Checksum,
}

/// Builds the payload of `bytes` bytes, or of the smallest size.
pub(crate) fn encode(identity: Identity, bytes: usize) -> Bytes {
    let Identity { run, stream, sequence } = identity;
    let length = bytes.max(HEADER_BYTES);
    let mut payload = BytesMut::with_capacity(length);
    payload.put_slice(MAGIC);
    payload.put_u32_le(0);
    payload.put_u64_le(run);
    payload.put_u32_le(stream.producer);
    payload.put_u32_le(stream.partition);
    payload.put_u64_le(sequence);
    payload.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    payload.put_u32_le(0);
    payload.put_bytes(0, length - HEADER_BYTES);
    let seed =
        run ^ u64::from(stream.producer) << 48 ^ u64::from(stream.partition) << 32 ^ sequence;
    Random::new(seed).fill(&mut payload[HEADER_BYTES..]);
    let crc = crc32fast::hash(&payload[8..]);
    payload[4..8].copy_from_slice(&crc.to_le_bytes());
    payload.freeze()
}

/// Reads a payload back.
pub(crate) fn decode(payload: &[u8]) -> Result<Identity, Broken> {
    let Some((header, _)) = payload.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Broken::Foreign);
    };
    if !header.starts_with(MAGIC) {
        return Err(Broken::Foreign);
    }
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if u32_at(32) as usize != payload.len() {
        return Err(Broken::Length);
    }
    if u32_at(4) != crc32fast::hash(&payload[8..]) {
        return Err(Broken::Checksum);
    }
    let stream = Stream { producer: u32_at(16), partition: u32_at(20) };
    Ok(Identity { run: u64_at(8), stream, sequence: u64_at(24) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { run: 0xfeed_beef, stream: Stream { producer: 3, partition: 1 }, sequence: 77 }
    }

    #[test]
    fn payloads_come_back() {
        for bytes in [0, 40, 41, 47, 1_024] {
            let payload = encode(identity(), bytes);
            assert_eq!(payload.len(), bytes.max(HEADER_BYTES));
            assert_eq!(decode(&payload), Ok(identity()));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let payload = encode(identity(), 100);
        for bit in 0..payload.len() * 8 {
            let mut changed = payload.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
        for length in 0..payload.len() {
            assert!(decode(&payload[..length]).is_err(), "cut at {length}");
        }
    }
}
