//! Checked little-endian reading and writing for the formats of this crate.

use postrider_protocol::types::Durability;

use super::{FormatError, SECTOR};

/// Every number that the store counts up (groups, generations, indexes, offsets, positions) is below.
/// A server that appended a million messages every millisecond would need a century to get here, so
/// a larger one is no number of this store, and what recovery adds to one cannot overflow.
pub const NUMBERS_END: u64 = 1 << 62;

/// The same for the numbers in the names of files.
pub const FILES_END: u32 = 1 << 31;

/// Reads fields from a slice, front to back; never past its end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the front of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes the next `count` bytes.
    ///
    /// # Errors
    /// `Short` when fewer are left.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(FormatError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes the next `N` bytes as an array.
    ///
    /// # Errors
    /// `Short` when fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(FormatError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes a u8.
    ///
    /// # Errors
    /// `Short` when nothing is left.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a u16.
    ///
    /// # Errors
    /// `Short` when fewer than 2 bytes are left.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes a u32.
    ///
    /// # Errors
    /// `Short` when fewer than 4 bytes are left.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a u32 that counts or measures something in memory.
    ///
    /// # Errors
    /// `Short` when fewer than 4 bytes are left.
    pub fn size(&mut self) -> Result<usize, FormatError> {
        usize::try_from(self.u32()?).or(Err(FormatError::Short))
    }

    /// Takes a u64.
    ///
    /// # Errors
    /// `Short` when fewer than 8 bytes are left.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a u64 that the store counts up.
    ///
    /// # Errors
    /// `Short` when fewer than 8 bytes are left; `Field` when it is not below [`NUMBERS_END`].
    pub fn number(&mut self) -> Result<u64, FormatError> {
        let number = self.u64()?;
        if number < NUMBERS_END { Ok(number) } else { Err(FormatError::Field("number too large")) }
    }

    /// Takes the number of a file.
    ///
    /// # Errors
    /// `Short` when fewer than 4 bytes are left; `Field` when it is not below [`FILES_END`].
    pub fn file(&mut self) -> Result<u32, FormatError> {
        let file = self.u32()?;
        if file < FILES_END { Ok(file) } else { Err(FormatError::Field("file number too large")) }
    }
}

/// Appends fields to a vector.
pub trait Put {
    /// Appends a u8.
    fn put_u8(&mut self, value: u8);
    /// Appends a u16.
    fn put_u16(&mut self, value: u16);
    /// Appends a u32.
    fn put_u32(&mut self, value: u32);
    /// Appends a u64.
    fn put_u64(&mut self, value: u64);
    /// Appends bytes as they are.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// Appends `count` zero bytes.
    fn put_zeros(&mut self, count: usize);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
    fn put_zeros(&mut self, count: usize) {
        self.resize(self.len() + count, 0);
    }
}

/// Makes a sector: magic, crc over bytes 8.., then the fields, then zeros.
///
/// # Panics
/// If the fields do not fit: a bug of this crate.
#[must_use]
pub fn seal_sector(magic: [u8; 4], fields: &[u8]) -> [u8; SECTOR] {
    assert!(fields.len() <= SECTOR - 8, "sector fields too long: {}", fields.len());
    let mut sector = [0; SECTOR];
    sector[..4].copy_from_slice(&magic);
    sector[8..8 + fields.len()].copy_from_slice(fields);
    let crc = crc32fast::hash(&sector[8..]);
    sector[4..8].copy_from_slice(&crc.to_le_bytes());
    sector
}

/// Checks a sector's magic and crc and returns its crc and a reader over its fields.
///
/// # Errors
/// `Short`, `Magic` or `Crc`.
pub fn open_sector(magic: [u8; 4], bytes: &[u8]) -> Result<(u32, Reader<'_>), FormatError> {
    let sector = bytes.get(..SECTOR).ok_or(FormatError::Short)?;
    let mut reader = Reader::new(sector);
    if reader.array::<4>()? != magic {
        return Err(FormatError::Magic);
    }
    let crc = reader.u32()?;
    if crc32fast::hash(&sector[8..]) != crc {
        return Err(FormatError::Crc);
    }
    Ok((crc, reader))
}

/// Number of a durability class on the disk.
pub(super) fn class_code(class: Durability) -> u8 {
    match class {
        Durability::Fsync => 0,
        Durability::Replicated => 1,
        Durability::Memory => 2,
    }
}

/// The class of a number on the disk.
pub(super) fn class_of(code: u8) -> Result<Durability, FormatError> {
    match code {
        0 => Ok(Durability::Fsync),
        1 => Ok(Durability::Replicated),
        2 => Ok(Durability::Memory),
        _ => Err(FormatError::Field("durability class")),
    }
}
