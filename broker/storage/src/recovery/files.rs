//! The files that recovery makes, on a disk that may be full.
//!
//! Owns the lengths of segment files as they become, and taking back what an attempt without space has
//! made. Writes no contents. Driven by `conclude`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use super::io_error;
use super::segments::SegmentFile;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::OpenError;
use crate::format::names;

/// The segment files, with their lengths as they become.
pub(crate) struct Files<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) found: &'a BTreeMap<u32, SegmentFile>,
    pub(crate) lens: BTreeMap<u32, u64>,
    /// Made by this recovery.
    pub(crate) new: Vec<u32>,
}

impl<'a> Files<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, found: &'a BTreeMap<u32, SegmentFile>) -> Self {
        let lens = found.iter().map(|(file, found)| (*file, found.len)).collect();
        Self { disk, found, lens, new: Vec::new() }
    }

    pub(crate) fn last(&self) -> Option<u32> {
        self.lens.keys().next_back().copied()
    }

    /// Makes a segment file at least so long.
    pub(crate) fn make(&mut self, file: u32, len: FileLen) -> Result<(), OpenError> {
        let path = names::segment(file);
        let doing = io_error(format!("making {path}"));
        let made = match self.lens.get(&file).copied() {
            Some(known) if known >= len.want => return Ok(()),
            Some(known) => {
                let len = FileLen { need: len.need.max(known), ..len };
                let opened = self.disk.open(&path, OpenMode::ReadWrite);
                opened.and_then(|handle| len.allocate(&*handle))
            }
            None => {
                let made = create(self.disk, &path, len).map(|(_, len)| len);
                self.new.extend(made.is_ok().then_some(file));
                made
            }
        };
        self.lens.insert(file, made.map_err(doing)?);
        Ok(())
    }

    /// Opens a segment file that is there or was made.
    pub(crate) fn open(&self, file: u32) -> Result<Arc<dyn DiskFile>, OpenError> {
        let path = names::segment(file);
        let opened = self.disk.open(&path, OpenMode::ReadWrite);
        opened.map_err(io_error(format!("opening {path} for writing")))
    }

    /// Takes back what was made.
    pub(crate) fn remove_new(&mut self) -> Result<(), OpenError> {
        for file in self.new.drain(..) {
            let path = names::segment(file);
            self.disk.remove(&path).map_err(io_error(format!("removing {path}")))?;
            self.lens.remove(&file);
        }
        Ok(())
    }
}

/// Whether space is what is missing.
pub(crate) fn is_full(error: &OpenError) -> bool {
    matches!(error, OpenError::Io { source, .. } if source.kind() == ErrorKind::StorageFull)
}

/// How long a file should be, and which length suffices when the disk is short of space.
#[derive(Clone, Copy)]
pub(crate) struct FileLen {
    pub(crate) want: u64,
    pub(crate) need: u64,
}

impl FileLen {
    /// Makes a file at least so long, and returns its length.
    pub(crate) fn allocate(self, file: &dyn DiskFile) -> std::io::Result<u64> {
        match file.allocate(self.want) {
            Ok(()) => Ok(self.want),
            Err(error) if error.kind() == ErrorKind::StorageFull && self.need < self.want => {
                file.allocate(self.need).map(|()| self.need)
            }
            Err(error) => Err(error),
        }
    }
}

/// Makes a file. Without space for it nothing is left behind, or each attempt on a full disk would add one.
pub(crate) fn create(
    disk: &dyn Disk,
    path: &str,
    len: FileLen,
) -> std::io::Result<(Arc<dyn DiskFile>, u64)> {
    let file = disk.open(path, OpenMode::Create)?;
    match len.allocate(&*file) {
        Ok(len) => Ok((file, len)),
        Err(error) => {
            drop(file);
            disk.remove(path)?;
            Err(error)
        }
    }
}
