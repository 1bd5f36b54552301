//! Snapshot packs: the states of many partitions in one file, written once, named by the manifest.
//!
//! ```text
//! pack = header sector | { blob header (64 bytes) | state | zeros up to 8 }*
//! ```
//!
//! The manifest's reference (position, length, crc) is what counts; the blob headers let a tool walk a
//! pack that no manifest names.

use postrider_protocol::types::{EntryIndex, PartitionId, TopicId};

use super::codec::{Put, Reader, open_sector, seal_sector};
use super::{FormatError, SECTOR};
use crate::LogKey;

const PACK_MAGIC: [u8; 4] = *b"PRSP";
const BLOB_MAGIC: [u8; 4] = *b"PRSB";
const VERSION: u16 = 1;

/// Bytes before each state.
pub const BLOB_HEADER_BYTES: usize = 64;

/// First sector of a pack: magic `PRSP`, crc32 of 8..512, version u16, zero \[6\], pack u32, count of blobs
/// u32, length of the file u64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackHeader {
    /// Number in the file's name.
    pub pack: u32,
    /// How many blobs follow.
    pub count: u32,
    /// Bytes of the whole file.
    pub len: u64,
}

impl PackHeader {
    /// Encodes into its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut fields = Vec::with_capacity(24);
        fields.put_u16(VERSION);
        fields.put_zeros(6);
        fields.put_u32(self.pack);
        fields.put_u32(self.count);
        fields.put_u64(self.len);
        seal_sector(PACK_MAGIC, &fields)
    }

    /// Decodes the first sector of a pack.
    ///
    /// # Errors
    /// `Magic`, `Crc` or `Version`.
    pub fn decode(sector: &[u8]) -> Result<Self, FormatError> {
        let (_, mut reader) = open_sector(PACK_MAGIC, sector)?;
        let version = reader.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        reader.bytes(6)?;
        Ok(Self { pack: reader.u32()?, count: reader.u32()?, len: reader.number()? })
    }
}

/// Before each state in a pack.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRSB` |
/// | 4 | 4 | crc32 of 8..64 |
/// | 8 | 16 | topic id |
/// | 24 | 4 | partition |
/// | 28 | 4 | crc32 of the state |
/// | 32 | 8 | incarnation of the log |
/// | 40 | 8 | index: the state covers all entries below |
/// | 48 | 8 | length of the state |
/// | 56 | 8 | zero |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobHeader {
    /// Topic and partition.
    pub key: LogKey,
    /// crc32 of the state.
    pub crc: u32,
    /// Incarnation of the log.
    pub incarnation: u64,
    /// The state covers all entries below.
    pub index: EntryIndex,
    /// Bytes of the state.
    pub len: u64,
}

impl BlobHeader {
    /// Appends the encoded header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.put_bytes(&BLOB_MAGIC);
        out.put_u32(0);
        out.put_bytes(&self.key.topic.0);
        out.put_u32(self.key.partition.0);
        out.put_u32(self.crc);
        out.put_u64(self.incarnation);
        out.put_u64(self.index.0);
        out.put_u64(self.len);
        out.put_u64(0);
        let crc = crc32fast::hash(&out[begin + 8..]);
        out[begin + 4..begin + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Decodes a blob header from the front of `bytes`.
    ///
    /// # Errors
    /// `Short`, `Magic` or `Crc`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..BLOB_HEADER_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != BLOB_MAGIC {
            return Err(FormatError::Magic);
        }
        if reader.u32()? != crc32fast::hash(&bytes[8..]) {
            return Err(FormatError::Crc);
        }
        let topic = TopicId(reader.array()?);
        let partition = PartitionId(reader.u32()?);
        Ok(Self {
            key: LogKey { topic, partition },
            crc: reader.u32()?,
            incarnation: reader.number()?,
            index: EntryIndex(reader.number()?),
            len: reader.number()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_and_blob_headers_round_trip() {
        let pack = PackHeader { pack: 1, count: 2, len: 3 };
        assert_eq!(PackHeader::decode(&pack.encode()), Ok(pack));
        let blob = BlobHeader {
            key: LogKey { topic: TopicId([1; 16]), partition: PartitionId(2) },
            crc: 3,
            incarnation: 4,
            index: EntryIndex(5),
            len: 6,
        };
        let mut bytes = Vec::new();
        blob.encode(&mut bytes);
        assert_eq!(bytes.len(), BLOB_HEADER_BYTES);
        assert_eq!(BlobHeader::decode(&bytes), Ok(blob));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(BlobHeader::decode(&bad).is_err(), "byte {at}");
        }
    }
}
