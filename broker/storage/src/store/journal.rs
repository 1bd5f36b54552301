//! The journal as the group writer uses it: one file after the other, each reused as often as possible.
//!
//! Owns which file is written, which ones a manifest slot still needs and which are free. Driven by the
//! group writer; checkpoints free files. A group never crosses files.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::format::names;
use crate::recovered::{FreeFile, JournalFile, RecoveredJournal};

struct Current {
    file: JournalFile,
    handle: Arc<dyn DiskFile>,
    position: u64,
    /// It holds groups that no sync has covered.
    unsynced: bool,
}

/// Where the next group begins: what a checkpoint remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JournalPosition {
    pub(crate) generation: u64,
    pub(crate) position: u64,
    /// crc of the last group's header sector.
    pub(crate) last_crc: u32,
}

/// See the module.
pub(crate) struct Journal {
    current: Option<Current>,
    /// Older files that a manifest slot needs, by rising generation. Bounded by the checkpoints.
    live: VecDeque<JournalFile>,
    free: Vec<FreeFile>,
    next_file: u32,
    next_generation: u64,
    last_crc: u32,
    bytes_min: u64,
    bytes_max: u64,
    /// A name was created and its directory not synced since.
    pub(crate) names_unsynced: bool,
}

impl Journal {
    /// Goes on where recovery stopped.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn open(
        disk: &dyn Disk,
        recovered: &RecoveredJournal,
        bytes_min: u64,
        bytes_max: u64,
    ) -> io::Result<Self> {
        let current = match recovered.current {
            None => None,
            Some((file, position)) => {
                let handle = disk.open(&names::journal(file.file), OpenMode::ReadWrite)?;
                Some(Current { file, handle, position, unsynced: false })
            }
        };
        let mut live = recovered.live.clone();
        live.sort_by_key(|file| file.generation);
        Ok(Self {
            current,
            live: live.into(),
            free: recovered.free.clone(),
            next_file: recovered.next_file,
            next_generation: recovered.next_generation,
            last_crc: recovered.last_crc,
            bytes_min,
            bytes_max,
            names_unsynced: false,
        })
    }

    pub(crate) fn position(&self) -> JournalPosition {
        let last_crc = self.last_crc;
        match &self.current {
            Some(current) => JournalPosition {
                generation: current.file.generation,
                position: current.position,
                last_crc,
            },
            None => JournalPosition { generation: self.next_generation, position: 0, last_crc },
        }
    }

    /// Whether a group of `bytes` fits without another file.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.current.as_ref().is_some_and(|current| current.position + bytes <= current.file.len)
    }

    /// Length that a new file should have: twice the longest there is, within `max`.
    pub(crate) fn new_file_len(&self, need: u64, max: u64) -> u64 {
        let current = self.current.as_ref().map_or(0, |current| current.file.len);
        let free = self.free.iter().map(|file| file.len).max().unwrap_or(0);
        let longest =
            self.live.iter().map(|file| file.len).max().unwrap_or(0).max(current).max(free);
        let len = if longest == 0 { self.bytes_min } else { (longest * 2).min(self.bytes_max) };
        let max = (max - max % 4096).max(self.bytes_min);
        len.min(max).max(need.next_multiple_of(4096))
    }

    /// A free file of at least `need` bytes: the longest, so that short ones fade out.
    fn take_free(&mut self, need: u64) -> Option<FreeFile> {
        let longest = self.free.iter().enumerate().max_by_key(|(_, file)| file.len)?;
        if longest.1.len < need {
            return None;
        }
        let at = longest.0;
        Some(self.free.swap_remove(at))
    }

    /// Goes on in another file that holds a group of `need` bytes: a free one, else one that is made
    /// now with `new_len` bytes (none = make none).
    ///
    /// # Errors
    /// `StorageFull` when there is no file; nothing has changed then. Anything else is the device's.
    pub(crate) fn switch(
        &mut self,
        disk: &dyn Disk,
        need: u64,
        new_len: Option<u64>,
    ) -> io::Result<Switched> {
        let (file, created) = match (self.take_free(need), new_len) {
            (Some(file), _) => (file, 0),
            (None, None) => return Err(io::ErrorKind::StorageFull.into()),
            (None, Some(len)) => (self.create(disk, len)?, len),
        };
        let handle = disk.open(&names::journal(file.file), OpenMode::ReadWrite)?;
        let generation = self.next_generation;
        self.next_generation += 1;
        let file = JournalFile { file: file.file, generation, len: file.len };
        let current = Current { file, handle, position: 0, unsynced: false };
        if let Some(old) = self.current.replace(current) {
            // Later groups sync the new file only, and vouch for everything before them.
            if old.unsynced {
                old.handle.sync()?;
            }
            self.live.push_back(old.file);
        }
        Ok(Switched { created })
    }

    fn create(&mut self, disk: &dyn Disk, len: u64) -> io::Result<FreeFile> {
        let file = self.next_file;
        self.next_file += 1;
        create_file(disk, file, len)?;
        self.names_unsynced = true;
        Ok(FreeFile { file, len })
    }

    /// Whether anything was ever written to a journal here.
    pub(crate) fn is_used(&self) -> bool {
        self.current.is_some()
    }

    /// Number for a file that is made outside, see [`Self::add_spare`].
    pub(crate) fn number_for_spare(&mut self) -> Option<u32> {
        if !self.free.is_empty() {
            return None;
        }
        let file = self.next_file;
        self.next_file += 1;
        Some(file)
    }

    /// Takes over a file made outside, whose name is durable.
    pub(crate) fn add_spare(&mut self, file: FreeFile) {
        self.free.push(file);
    }

    /// Where the next group goes.
    ///
    /// # Panics
    /// Before the first [`Self::switch`].
    pub(crate) fn place(&self) -> JournalPosition {
        assert!(self.current.is_some(), "a journal file was chosen");
        self.position()
    }

    /// crc that the next group links to.
    pub(crate) fn last_crc(&self) -> u32 {
        self.last_crc
    }

    /// Writes a whole group.
    ///
    /// # Errors
    /// The device's: terminal.
    ///
    /// # Panics
    /// When the group does not fit: the caller asked [`Self::fits`] before.
    pub(crate) fn write(&mut self, bufs: &[IoSlice<'_>], crc: u32) -> io::Result<u64> {
        let current = self.current.as_mut().expect("a journal file was chosen");
        let bytes: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        assert!(current.position + bytes <= current.file.len, "the group fits the journal file");
        current.handle.write_at(current.position, bufs)?;
        current.position += bytes;
        current.unsynced = true;
        self.last_crc = crc;
        Ok(bytes)
    }

    /// Syncs the current file if it needs it; tells whether it did.
    ///
    /// # Errors
    /// The device's: terminal.
    pub(crate) fn sync(&mut self) -> io::Result<bool> {
        match &mut self.current {
            Some(current) if current.unsynced => {
                current.handle.sync()?;
                current.unsynced = false;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Frees the files that no manifest slot needs: those older than `oldest`.
    pub(crate) fn release(&mut self, oldest: u64) -> usize {
        let mut count = 0;
        while self.live.front().is_some_and(|file| file.generation < oldest) {
            let Some(file) = self.live.pop_front() else { break };
            self.free.push(FreeFile { file: file.file, len: file.len });
            count += 1;
        }
        count
    }

    /// Takes out free files beyond `keep` of them, the shortest first; the caller removes them.
    pub(crate) fn surplus(&mut self, keep: usize) -> Vec<FreeFile> {
        self.free.sort_by_key(|file| std::cmp::Reverse(file.len));
        self.free.split_off(keep.min(self.free.len()))
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        let current = self.current.as_ref().map_or(0, |current| current.file.len);
        let live: u64 = self.live.iter().map(|file| file.len).sum();
        current + live + self.free.iter().map(|file| file.len).sum::<u64>()
    }
}

/// What [`Journal::switch`] did.
pub(crate) struct Switched {
    /// Length of the file that was made; 0 when a free one was taken.
    pub(crate) created: u64,
}

/// Makes a journal file; on failure nothing is left of it.
///
/// # Errors
/// `StorageFull`, or the device's.
pub(crate) fn create_file(disk: &dyn Disk, file: u32, len: u64) -> io::Result<Arc<dyn DiskFile>> {
    let path = names::journal(file);
    let handle = disk.open(&path, OpenMode::Create)?;
    if let Err(error) = handle.allocate(len) {
        drop(handle);
        disk.remove(&path)?;
        return Err(error);
    }
    Ok(handle)
}
