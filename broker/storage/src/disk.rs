//! The only door from the store to files.
//!
//! Owns the contract that the store may rely on: what a write, a sync and a directory sync promise.
//! Never knows file formats. `disk_os` implements it with real files, `disk_sim` with a simulated
//! disk that tears, loses and misorders whatever was not synced.
//!
//! What may be relied on, and nothing more:
//!
//! | call | promise once it has returned `Ok` |
//! |---|---|
//! | `write_at` | later reads and maps of this process, and of a process started after this one was killed, see the bytes; a power loss may drop any 512-byte sector of them |
//! | `DiskFile::sync` | everything written to this file before, and its length, survives a power loss |
//! | `create`, `rename`, `remove` | visible at once; survives a power loss only after `sync_dir` of the directory |
//! | a sync that failed | nothing: the data may be lost although it still reads back, and a later sync may succeed without it |

use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Smallest unit that a disk writes whole or not at all, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// How [`Disk::open`] treats the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Existing file, reads only.
    Read,
    /// Existing file, reads and writes.
    ReadWrite,
    /// New file, reads and writes; fails with `AlreadyExists` when the name is taken.
    Create,
}

/// A directory tree. Paths are relative to the data directory and separated by `/`; the root is `""`.
pub trait Disk: Send + Sync {
    /// Opens or creates one file.
    ///
    /// # Errors
    /// `NotFound` and `AlreadyExists` as the mode implies; `StorageFull` when a new name does not
    /// fit; anything else is the device's error.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file's name. Handles and maps of it stay usable.
    ///
    /// # Errors
    /// `NotFound`, or the device's error.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Renames a file, replacing what has the new name, in one step.
    ///
    /// # Errors
    /// `NotFound`, or the device's error.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Names in a directory, files and directories alike, sorted.
    ///
    /// # Errors
    /// `NotFound`, or the device's error.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a directory whose parent exists. An existing directory is fine.
    ///
    /// # Errors
    /// `NotFound` without a parent, or the device's error.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// Makes the directory's present names durable.
    ///
    /// # Errors
    /// The device's error. Terminal: the caller writes and acknowledges nothing more.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Syncs every file of the data directory at once.
    ///
    /// # Errors
    /// The device's error. Terminal, like a failed [`DiskFile::sync`].
    fn sync_all_files(&self) -> io::Result<()>;

    /// Bytes that may still be allocated.
    ///
    /// # Errors
    /// The device's error.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Takes the exclusive lock of the data directory; dropping the result releases it.
    ///
    /// # Errors
    /// `WouldBlock` when another server holds it.
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>>;
}

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Present length in bytes.
    ///
    /// # Errors
    /// The device's error.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no byte.
    ///
    /// # Errors
    /// The device's error.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reserves space up to `bytes` and grows the length to it with zeros; never shrinks.
    ///
    /// # Errors
    /// `StorageFull` when it does not fit, or the device's error.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Writes the buffers one behind the other, all of them or an error.
    ///
    /// # Errors
    /// `StorageFull`, or the device's error; an unknown part may have been written.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()>;

    /// Reads until the buffer is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// The device's error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Makes every earlier write to this file, and its length, durable.
    ///
    /// # Errors
    /// The device's error. Terminal: the data counts as lost although it still reads back.
    fn sync(&self) -> io::Result<()>;

    /// Maps the whole present length for reading. Writes made later through `write_at` show.
    ///
    /// # Errors
    /// `InvalidInput` for an empty file, `OutOfMemory` at the limit of mappings, or the device's error.
    fn map(&self) -> io::Result<Arc<dyn DiskMap>>;

    /// Hints that the range will not be read soon.
    fn drop_cache(&self, range: Range<u64>);
}

/// A read-only mapping of one file.
pub trait DiskMap: Send + Sync {
    /// Mapped length in bytes.
    fn len(&self) -> usize;

    /// Whether the mapping covers no byte; never true for a mapping that exists.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a range, without a copy; they keep the mapping alive.
    ///
    /// The caller asks only for ranges that nobody will write again: a slice is a promise that its
    /// bytes do not change.
    ///
    /// # Panics
    /// When the range does not lie within the mapping.
    fn slice(self: Arc<Self>, range: Range<usize>) -> Bytes;

    /// Brings a range into memory, so that reading it will neither block nor fault.
    ///
    /// Blocks on the device: for a bounded pool of threads only.
    ///
    /// # Errors
    /// The device's error, where reading the mapping would have killed the process.
    fn load(&self, range: Range<usize>) -> io::Result<()>;

    /// Whether the whole range is in memory now. A hint: it may be evicted the next moment.
    fn resident(&self, range: Range<usize>) -> bool;
}

/// Reads exactly `buf.len()` bytes.
///
/// # Errors
/// `UnexpectedEof` when the file ends earlier, or the device's error.
pub fn read_exact_at(file: &dyn DiskFile, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let read = file.read_at(offset, buf)?;
    if read < buf.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
