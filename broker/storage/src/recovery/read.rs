//! Chunked reading of files by sector.
//!
//! Owns one reused buffer per file. Never interprets bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::io_error;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::OpenError;
use crate::format::SECTOR_U64;
use crate::options::StoreOptions;

/// Bytes read at a time when a file is walked.
const CHUNK: usize = 1 << 20;

/// A file that is read front to back, in chunks; jumping is allowed.
pub(crate) struct Window {
    file: Arc<dyn DiskFile>,
    path: String,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
    read_bytes: u64,
}

impl Window {
    /// Opens a file for reading; none when it does not exist.
    pub(crate) fn open(disk: &dyn Disk, path: &str) -> Result<Option<Self>, OpenError> {
        let file = match disk.open(path, OpenMode::Read) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error(format!("opening {path}")))?,
        };
        let len = file.len().map_err(io_error(format!("measuring {path}")))?;
        let path = path.to_string();
        Ok(Some(Self { file, path, len, start: 0, buffer: Vec::new(), read_bytes: 0 }))
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// `count` bytes from `position`; none beyond the end of the file.
    pub(crate) fn get(&mut self, position: u64, count: usize) -> Result<Option<&[u8]>, OpenError> {
        if position.checked_add(count as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let held = self.start + self.buffer.len() as u64;
        if position < self.start || position + count as u64 > held {
            self.fill(position, count.max(CHUNK))?;
        }
        let at = usize::try_from(position - self.start).unwrap_or(usize::MAX);
        Ok(self.buffer.get(at..at.saturating_add(count)))
    }

    /// Only the first `count` bytes of the file, without reading ahead.
    pub(crate) fn head(&mut self, count: usize) -> Result<Option<&[u8]>, OpenError> {
        if self.len < count as u64 {
            return Ok(None);
        }
        self.fill(0, count)?;
        Ok(self.buffer.get(..count))
    }

    /// A range as memory of its own; none beyond the end of the file.
    pub(crate) fn bytes(&mut self, position: u64, count: u64) -> Result<Option<Bytes>, OpenError> {
        if position.checked_add(count).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let Ok(count) = usize::try_from(count) else { return Ok(None) };
        let mut out = vec![0; count];
        let path = &self.path;
        let read = self.file.read_at(position, &mut out);
        let read = read.map_err(io_error(format!("reading {path}")))?;
        self.read_bytes += read as u64;
        // The file was shortened under us: what is missing is no evidence.
        Ok((read == count).then(|| Bytes::from(out)))
    }

    fn fill(&mut self, position: u64, count: usize) -> Result<(), OpenError> {
        let left = usize::try_from(self.len - position).unwrap_or(usize::MAX);
        self.buffer.resize(count.min(left), 0);
        let path = &self.path;
        let read = self.file.read_at(position, &mut self.buffer);
        let read = read.map_err(io_error(format!("reading {path}")))?;
        self.read_bytes += read as u64;
        self.buffer.truncate(read);
        self.start = position;
        Ok(())
    }
}

/// How far behind the last thing found in a segment a lost frame's trailer is looked for.
pub(crate) fn scan_window(options: &StoreOptions) -> u64 {
    // A group is one frame at most, plus the entry that filled it, plus its two sectors.
    2 * options.group_bytes_max as u64 + 8 * SECTOR_U64
}
