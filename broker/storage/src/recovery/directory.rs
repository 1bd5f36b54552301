//! Names in a data directory.
//!
//! Owns the tree of directories and the question whether a directory is empty, ours or foreign. Never
//! looks into files.

use std::io;

use super::io_error;
use crate::disk::Disk;
use crate::disk_os::LOCK_FILE;
use crate::error::OpenError;
use crate::format::names;

/// The directories of a data directory.
const DIRECTORIES: [&str; 3] = [names::SEGMENTS, names::JOURNAL, names::SNAPSHOTS];

/// Names in a directory; a missing directory has none.
pub(crate) fn list(disk: &dyn Disk, dir: &str) -> Result<Vec<String>, OpenError> {
    match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(io_error(format!("listing {dir}"))),
    }
}

/// Numbers of our files in a directory, rising.
pub(crate) fn numbers(disk: &dyn Disk, dir: &str, ending: &str) -> Result<Vec<u32>, OpenError> {
    let names = list(disk, dir)?;
    Ok(names.iter().filter_map(|name| names::number(name, ending)).collect())
}

/// Whether the directory holds anything but the traces of a set-up that was cut short.
pub(crate) fn holds_data(disk: &dyn Disk) -> Result<bool, OpenError> {
    let ours = |name: &str| {
        name == LOCK_FILE
            || name == "lost+found"
            || DIRECTORIES.contains(&name)
            || (0..names::MANIFEST_SLOTS).any(|slot| name == names::manifest(slot))
    };
    if list(disk, "")?.iter().any(|name| !ours(name)) {
        return Ok(true);
    }
    for dir in DIRECTORIES {
        if !list(disk, dir)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates missing directories, and makes every name that was seen durable: one that only the cache
/// shows must not be relied on.
pub(crate) fn prepare(disk: &dyn Disk) -> Result<(), OpenError> {
    for dir in DIRECTORIES {
        disk.create_dir(dir).map_err(io_error(format!("creating {dir}")))?;
    }
    for dir in ["", names::SEGMENTS, names::JOURNAL, names::SNAPSHOTS] {
        disk.sync_dir(dir).map_err(io_error(format!("syncing directory {dir:?}")))?;
    }
    Ok(())
}
