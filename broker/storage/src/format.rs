//! Byte layouts of everything in a data directory, with their encoders and decoders.
//!
//! Owns: journal groups and records, segment headers, frames and footers, vacancies, manifests, snapshot
//! packs,
//! and the names of files. Never does I/O. Driven by the group writer, maintenance and recovery.
//! Integers are little-endian. A *sector* is 512 bytes, the unit a disk writes whole or not at all;
//! every structure whose tearing must be noticed sits in a sector of its own, with its own crc.

pub mod codec;
pub mod journal;
pub mod manifest;
pub mod names;
pub mod segment;
pub mod snapshot;
pub mod vacancy;

/// Bytes of a sector: written whole or not at all.
pub const SECTOR: usize = 512;
/// The same as a position.
pub const SECTOR_U64: u64 = 512;

/// Rounds a position up to the next sector boundary.
#[must_use]
pub const fn sector_ceil(position: u64) -> u64 {
    position.div_ceil(SECTOR_U64) * SECTOR_U64
}

/// Why bytes are not the structure that was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure needs.
    #[error("fewer bytes than the structure needs")]
    Short,
    /// Another magic number: something else, or never written.
    #[error("magic number differs")]
    Magic,
    /// The magic fits, the checksum does not: torn or damaged.
    #[error("checksum differs")]
    Crc,
    /// A version that this program does not know.
    #[error("format version {0} is not known")]
    Version(u16),
    /// The checksum fits but a field contradicts another.
    #[error("inconsistent field: {0}")]
    Field(&'static str),
}
