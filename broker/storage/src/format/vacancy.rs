//! Vacancies: ranges of a log that are kept no longer although older entries stay, since every message in
//! them is settled.
//!
//! A range between segments stands in the journal (`Vacate`) and then in the manifest. A range inside a
//! *sparse* segment stands in its file, as a marker where its entries were: so a walk finds each index either
//! in an entry or in a marker, and what is in neither is damage. A sparse segment is written whole and
//! synced before anything names it, and never written again:
//!
//! ```text
//! header sector, version 2 | unused up to 4096 | entries and markers, contiguous
//! ```

use postrider_protocol::types::{EntryIndex, Offset};

use super::FormatError;
use super::codec::{Put, Reader};

/// A range of a log without entries and messages, which is no damage. Half-open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vacancy {
    /// First entry that is kept no longer.
    pub from_index: EntryIndex,
    /// One past the last one.
    pub end_index: EntryIndex,
    /// First message that is kept no longer.
    pub from_offset: Offset,
    /// One past the last one; the same if the entries held no message.
    pub end_offset: Offset,
}

/// Bytes of an encoded [`Vacancy`].
pub(super) const VACANCY_BYTES: usize = 32;

impl Vacancy {
    /// From two ends.
    #[must_use]
    pub fn new(from: (EntryIndex, Offset), end: (EntryIndex, Offset)) -> Self {
        let ((from_index, from_offset), (end_index, end_offset)) = (from, end);
        Self { from_index, end_index, from_offset, end_offset }
    }

    /// Whether an entry would lie in it.
    #[must_use]
    pub fn holds_index(&self, index: EntryIndex) -> bool {
        (self.from_index..self.end_index).contains(&index)
    }

    /// Whether a message would lie in it.
    #[must_use]
    pub fn holds_offset(&self, offset: Offset) -> bool {
        (self.from_offset..self.end_offset).contains(&offset)
    }

    /// Adds a vacancy to a rising list, merged with those that it touches.
    pub(crate) fn add(list: &mut Vec<Self>, mut new: Self) {
        list.retain(|other| {
            let apart = other.end_index < new.from_index || new.end_index < other.from_index;
            if !apart {
                new.from_index = new.from_index.min(other.from_index);
                new.from_offset = new.from_offset.min(other.from_offset);
                new.end_index = new.end_index.max(other.end_index);
                new.end_offset = new.end_offset.max(other.end_offset);
            }
            apart
        });
        let at = list.partition_point(|other| other.from_index < new.from_index);
        list.insert(at, new);
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.from_index.0);
        out.put_u64(self.end_index.0);
        out.put_u64(self.from_offset.0);
        out.put_u64(self.end_offset.0);
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let vacancy = Self {
            from_index: EntryIndex(reader.number()?),
            end_index: EntryIndex(reader.number()?),
            from_offset: Offset(reader.number()?),
            end_offset: Offset(reader.number()?),
        };
        let rises = vacancy.from_index < vacancy.end_index;
        if !rises || vacancy.from_offset > vacancy.end_offset {
            return Err(FormatError::Field("vacancy"));
        }
        Ok(vacancy)
    }
}

const MAGIC: [u8; 4] = *b"PRSV";

/// Bytes of an encoded [`VacancyMarker`]: entries behind it stay 8-aligned.
pub const MARKER_BYTES: usize = 64;

/// What stands in a sparse segment where entries were.
///
/// | at | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `PRSV` |
/// | 4 | 4 | crc32 of 8..64 |
/// | 8 | 8 | salt of the segment |
/// | 16 | 32 | from index, end index, from offset, end offset |
/// | 48 | 4 | chain crc: header crc of the last entry that was here; 0 when it is not known |
/// | 52 | 12 | zero |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VacancyMarker {
    /// Salt of the segment.
    pub salt: u64,
    /// What is kept no longer.
    pub vacancy: Vacancy,
    /// Header crc of the last entry that was here, to which the next one links; 0 when it is not known.
    pub chain_crc: u32,
}

impl VacancyMarker {
    /// Encodes the marker.
    #[must_use]
    pub fn encode(&self) -> [u8; MARKER_BYTES] {
        let mut out = Vec::with_capacity(MARKER_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u32(0);
        out.put_u64(self.salt);
        self.vacancy.put(&mut out);
        out.put_u32(self.chain_crc);
        out.put_zeros(12);
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        let mut marker = [0; MARKER_BYTES];
        marker.copy_from_slice(&out);
        marker
    }

    /// Decodes a marker from the front of `bytes` (longer input is fine).
    ///
    /// # Errors
    /// `Short`, `Magic` or `Crc`: no marker here, or a damaged one; `Field`: a bug of the writer.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..MARKER_BYTES).ok_or(FormatError::Short)?;
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != MAGIC {
            return Err(FormatError::Magic);
        }
        let crc = reader.u32()?;
        if crc32fast::hash(&bytes[8..]) != crc {
            return Err(FormatError::Crc);
        }
        let salt = reader.number()?;
        let vacancy = Vacancy::take(&mut reader)?;
        Ok(Self { salt, vacancy, chain_crc: reader.u32()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vacancy(from: u64, end: u64) -> Vacancy {
        Vacancy::new((EntryIndex(from), Offset(from * 10)), (EntryIndex(end), Offset(end * 10)))
    }

    #[test]
    fn marker_round_trips_and_rejects_every_flipped_byte() {
        let marker = VacancyMarker { salt: 7, vacancy: vacancy(3, 9), chain_crc: 11 };
        let bytes = marker.encode();
        assert_eq!(VacancyMarker::decode(&bytes), Ok(marker));
        for at in 0..MARKER_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x20;
            assert!(VacancyMarker::decode(&bad).is_err(), "byte {at}");
        }
        assert_eq!(VacancyMarker::decode(&bytes[..63]), Err(FormatError::Short));
    }

    #[test]
    fn neighbouring_vacancies_become_one() {
        let mut list = Vec::new();
        for (from, end) in [(10, 20), (40, 50), (20, 30), (0, 5), (30, 40)] {
            Vacancy::add(&mut list, vacancy(from, end));
        }
        assert_eq!(list, [vacancy(0, 5), vacancy(10, 50)]);
    }
}
