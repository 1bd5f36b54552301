//! Owns the codecs of a batch's records. Never allocates more than the limit that it is given (plus a
//! codec's own window, bounded by the same limit). Driven by `batch`.

use std::io::{BufRead, Read};

use crate::types::Compression;

/// Speed before ratio: what a producer must keep up with.
const ZSTD_LEVEL: i32 = 1;
/// The smallest and the largest window that zstd can be told to allow, as powers of two.
const ZSTD_WINDOW_LOG: std::ops::RangeInclusive<u32> = 10..=27;
const LZ4_FRAME_MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();

/// Why records could not be decompressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompressError {
    /// The bytes are not one whole frame of the codec.
    #[error("the records are not one whole {} frame", .0.name())]
    Damaged(Compression),
    /// They would be larger than the limit.
    #[error("the records are larger than {0} bytes when decompressed")]
    TooLarge(usize),
}

impl Compression {
    /// The codec with Kafka's number, if it is supported.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The word used in the command line and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Appends the compressed `records` to `out`. False if the codec failed or saved nothing: `out` then
/// holds something else than a frame, and the records are to be sent as they are.
pub fn compress(compression: Compression, records: &[u8], out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let whole = match compression {
        Compression::None => false,
        Compression::Lz4 => compress_lz4(records, out),
        Compression::Zstd => compress_zstd(records, out),
    };
    whole && out.len().saturating_sub(before) < records.len()
}

fn compress_lz4(records: &[u8], out: &mut Vec<u8>) -> bool {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
    std::io::Write::write_all(&mut encoder, records).is_ok() && encoder.finish().is_ok()
}

fn compress_zstd(records: &[u8], out: &mut Vec<u8>) -> bool {
    match zstd::bulk::compress(records, ZSTD_LEVEL) {
        Ok(frame) => {
            out.extend_from_slice(&frame);
            true
        }
        Err(_) => false,
    }
}

/// The records in a compressed section; for `None` a copy.
///
/// # Errors
/// The section is not exactly one frame of the codec, or would be larger than `bytes_max`.
pub fn decompress(
    compression: Compression,
    section: &[u8],
    bytes_max: usize,
) -> Result<Vec<u8>, CompressError> {
    match compression {
        Compression::None if section.len() > bytes_max => Err(CompressError::TooLarge(bytes_max)),
        Compression::None => Ok(section.to_vec()),
        Compression::Lz4 => decompress_lz4(section, bytes_max),
        Compression::Zstd => decompress_zstd(section, bytes_max),
    }
}

fn decompress_lz4(section: &[u8], bytes_max: usize) -> Result<Vec<u8>, CompressError> {
    let damaged = CompressError::Damaged(Compression::Lz4);
    // The decoder also knows the legacy format, which has no end mark.
    if !section.starts_with(&LZ4_FRAME_MAGIC) {
        return Err(damaged);
    }
    let mut decoder = lz4_flex::frame::FrameDecoder::new(section);
    let records = read_bounded(&mut decoder, section.len(), bytes_max, damaged)?;
    if decoder.into_inner().is_empty() { Ok(records) } else { Err(damaged) }
}

fn decompress_zstd(section: &[u8], bytes_max: usize) -> Result<Vec<u8>, CompressError> {
    let damaged = CompressError::Damaged(Compression::Zstd);
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(section).map_err(|_codec| damaged)?.single_frame();
    let window_log = bytes_max
        .checked_next_power_of_two()
        .map_or(*ZSTD_WINDOW_LOG.end(), usize::ilog2)
        .clamp(*ZSTD_WINDOW_LOG.start(), *ZSTD_WINDOW_LOG.end());
    decoder.window_log_max(window_log).map_err(|_codec| damaged)?;
    let records = read_bounded(&mut decoder, section.len(), bytes_max, damaged)?;
    let rest = decoder.finish().fill_buf().map_or(1, <[u8]>::len);
    if rest == 0 { Ok(records) } else { Err(damaged) }
}

/// Reads to the end, but never more than one byte beyond the limit.
fn read_bounded(
    decoder: &mut impl Read,
    compressed_len: usize,
    bytes_max: usize,
    damaged: CompressError,
) -> Result<Vec<u8>, CompressError> {
    let mut records = Vec::with_capacity(compressed_len.saturating_mul(2).min(bytes_max));
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(limit).read_to_end(&mut records).map_err(|_codec| damaged)?;
    if records.len() > bytes_max { Err(CompressError::TooLarge(bytes_max)) } else { Ok(records) }
}
