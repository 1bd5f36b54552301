//! Segment files without an owner: reuse before new, because the first touch of fresh page cache costs
//! several times more than the write itself.
//!
//! Owns the pool of files that may be written at once, and those that must wait because a reader still
//! holds a slice of their last use. The caller hands a file in only after the record that releases it
//! was synced.

use std::io;
use std::sync::Arc;

use super::hold::Holds;
use super::segment::Segment;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::format::names;
use crate::recovered::FreeFile;
use crate::sync::Mutex;

/// A file that may be larger than wanted by this factor is taken all the same.
const LARGER_MAX: u64 = 4;

/// A file ready for its next use.
pub(crate) struct TakenFile {
    pub(crate) file: u32,
    pub(crate) len: u64,
    pub(crate) handle: Arc<dyn DiskFile>,
    /// Its name is new: the directory must be synced before anything that depends on it.
    pub(crate) new: bool,
}

struct Pinned {
    file: FreeFile,
    holds: Arc<Holds>,
}

struct Pool {
    /// Bounded by `recycle_bytes_max` at every [`SegmentFiles::surplus`].
    free: Vec<FreeFile>,
    /// Bounded by what readers hold.
    pinned: Vec<Pinned>,
    next_file: u32,
}

/// See the module.
pub(crate) struct SegmentFiles {
    pool: Mutex<Pool>,
}

impl SegmentFiles {
    pub(crate) fn new(free: Vec<FreeFile>, next_file: u32) -> Self {
        Self { pool: Mutex::new(Pool { free, pinned: Vec::new(), next_file }) }
    }

    /// Takes a file of at least `want` bytes from the pool, or creates one. A much larger one is taken
    /// only when the disk is full.
    ///
    /// # Errors
    /// `StorageFull` when there is none; nothing has changed then. Anything else is the device's.
    pub(crate) fn take(&self, disk: &dyn Disk, want: u64) -> io::Result<TakenFile> {
        let (fitting, number) = {
            let mut pool = self.pool.lock();
            pool.unpin();
            let fitting = pool.take_free(want, want.saturating_mul(LARGER_MAX));
            if fitting.is_none() {
                pool.next_file += 1;
            }
            (fitting, pool.next_file.wrapping_sub(1))
        };
        if let Some(file) = fitting {
            return open_free(disk, file);
        }
        match create(disk, number, want) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let any = self.pool.lock().take_free(want, u64::MAX);
                any.map_or(Err(error), |file| open_free(disk, file))
            }
            other => other,
        }
    }

    /// Takes over the file of a segment whose release was synced.
    pub(crate) fn release(&self, segment: &Segment) {
        let file = FreeFile { file: segment.facts.file, len: segment.facts.file_len };
        let holds = segment.retire();
        let mut pool = self.pool.lock();
        if holds.any() {
            pool.pinned.push(Pinned { file, holds });
        } else {
            pool.free.push(file);
        }
    }

    /// Takes the files out that the pool should not keep; the caller removes them.
    pub(crate) fn surplus(&self, bytes_max: u64) -> Vec<FreeFile> {
        let mut pool = self.pool.lock();
        pool.unpin();
        let mut kept = 0_u64;
        let fits = |file: &FreeFile| {
            kept = kept.saturating_add(file.len);
            kept <= bytes_max
        };
        let (free, surplus) = std::mem::take(&mut pool.free).into_iter().partition(fits);
        pool.free = free;
        surplus
    }

    /// Bytes of files that wait for reuse, and of those still held by readers.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let pool = self.pool.lock();
        let free = pool.free.iter().map(|file| file.len).sum();
        (free, pool.pinned.iter().map(|pinned| pinned.file.len).sum())
    }
}

impl Pool {
    /// Moves files that readers have let go of to the free ones.
    fn unpin(&mut self) {
        let (pinned, loose) = std::mem::take(&mut self.pinned)
            .into_iter()
            .partition(|pinned: &Pinned| pinned.holds.any());
        self.pinned = pinned;
        self.free.extend(loose.iter().map(|pinned: &Pinned| pinned.file));
    }

    /// The smallest free file of `min..=max` bytes.
    fn take_free(&mut self, min: u64, max: u64) -> Option<FreeFile> {
        let fitting = |(_, file): &(usize, &FreeFile)| (min..=max).contains(&file.len);
        let at = self.free.iter().enumerate().filter(fitting).min_by_key(|(_, file)| file.len)?.0;
        Some(self.free.swap_remove(at))
    }
}

fn open_free(disk: &dyn Disk, file: FreeFile) -> io::Result<TakenFile> {
    let handle = disk.open(&names::segment(file.file), OpenMode::ReadWrite)?;
    Ok(TakenFile { file: file.file, len: file.len, handle, new: false })
}

fn create(disk: &dyn Disk, file: u32, len: u64) -> io::Result<TakenFile> {
    let path = names::segment(file);
    let handle = disk.open(&path, OpenMode::Create)?;
    if let Err(error) = handle.allocate(len) {
        drop(handle);
        disk.remove(&path)?;
        return Err(error);
    }
    Ok(TakenFile { file, len, handle, new: true })
}
