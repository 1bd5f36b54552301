//! Real files of one data directory on Linux.
//!
//! Owns how each promise of [`Disk`] is kept by the kernel. Never retries a failed sync and never
//! shortens a file. Driven by the store's I/O and maintenance threads.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::IoSlice;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

use crate::disk::{Disk, DiskFile, DiskMap, OpenMode};
use crate::map::OsMap;

/// Name of the file whose `flock` keeps a second server out.
pub const LOCK_FILE: &str = "LOCK";

/// Most buffers that the kernel takes in one `pwritev`.
const IOV_MAX: usize = 1024;

/// The real data directory.
#[derive(Debug)]
pub struct OsDisk {
    root: PathBuf,
    root_handle: File,
}

impl OsDisk {
    /// Opens the data directory, creating it and its missing parents.
    ///
    /// # Errors
    /// The path cannot be created or is no directory; the caller reports the path and stops.
    pub fn create(root: &Path) -> io::Result<Self> {
        if !root.is_dir() {
            std::fs::create_dir_all(root)?;
            // The new name must survive a power loss; the parent of a relative `x` is `.`.
            let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        }
        Self::existing(root)
    }

    /// Opens a data directory that exists; creates nothing.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory` or the device's error; the caller reports the path and stops.
    pub fn existing(root: &Path) -> io::Result<Self> {
        let root_handle = File::open(root)?;
        if !root_handle.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { root: root.to_path_buf(), root_handle })
    }

    /// The directory as it was named.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The full path, refused when it would leave the data directory.
    fn resolve(&self, path: &str) -> io::Result<PathBuf> {
        let path = Path::new(path);
        if path.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.root.join(path))
    }
}

impl Disk for OsDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::Create => {
                options.write(true).create_new(true);
            }
        }
        let file = options.open(self.resolve(path)?)?;
        Ok(Arc::new(OsFile { file, maps: Mutex::new(Vec::new()) }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.resolve(path)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.resolve(from)?, self.resolve(to)?)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in std::fs::read_dir(self.resolve(dir)?)? {
            // Names that are not UTF-8 are none of the store's; showing them lossily suffices to
            // report them as foreign.
            names.push(item?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        match std::fs::create_dir(self.resolve(dir)?) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.resolve(dir)?)?.sync_all()
    }

    fn sync_all_files(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root_handle)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.root_handle)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.root.join(LOCK_FILE))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }
}

/// One real file, with the mappings that `drop_cache` must reach.
struct OsFile {
    file: File,
    /// Pages that a mapping holds survive a cache hint, so the hint goes to both. Bounded by the
    /// maps alive, which the store bounds.
    maps: Mutex<Vec<Weak<OsMap>>>,
}

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes)?)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let first = &bufs[..bufs.len().min(IOV_MAX)];
        let written = write_some(&self.file, offset, first)?;
        if written == total {
            return Ok(());
        }
        self.write_rest(offset, bufs, written)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn map(&self) -> io::Result<Arc<dyn DiskMap>> {
        if self.is_empty()? {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = Arc::new(OsMap::new(&self.file)?);
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|map| map.strong_count() > 0);
        maps.push(Arc::downgrade(&map));
        Ok(map)
    }

    fn drop_cache(&self, range: Range<u64>) {
        let Some(bytes) = NonZeroU64::new(range.end.saturating_sub(range.start)) else { return };
        let maps: Vec<Arc<OsMap>> = {
            let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
            maps.iter().filter_map(Weak::upgrade).collect()
        };
        let start = usize::try_from(range.start).unwrap_or(usize::MAX);
        let end = usize::try_from(range.end).unwrap_or(usize::MAX);
        for map in maps {
            map.drop_pages(start..end);
        }
        let hint = rustix::fs::fadvise(&self.file, range.start, Some(bytes), Advice::DontNeed);
        if let Err(error) = hint {
            tracing::debug!(%error, "dropping cached pages was refused");
        }
    }
}

impl OsFile {
    /// Goes on behind a write that was cut short or had more buffers than one call takes.
    fn write_rest(&self, offset: u64, bufs: &[IoSlice<'_>], written: usize) -> io::Result<()> {
        let mut offset = offset + written as u64;
        let mut copy = bufs.to_vec();
        let mut rest = copy.as_mut_slice();
        IoSlice::advance_slices(&mut rest, written);
        while !rest.is_empty() {
            let written = write_some(&self.file, offset, &rest[..rest.len().min(IOV_MAX)])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }
}

/// One `pwritev`, repeated only when a signal interrupted it before it wrote.
fn write_some(file: &File, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        match rustix::io::pwritev(file, bufs, offset) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::read_exact_at;

    fn disk() -> (tempfile::TempDir, OsDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = OsDisk::create(dir.path()).unwrap();
        (dir, disk)
    }

    #[test]
    fn write_takes_more_buffers_than_one_call() {
        let (_dir, disk) = disk();
        let file = disk.open("a", OpenMode::Create).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000_u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let bufs: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        file.write_at(7, &bufs).unwrap();
        let mut back = vec![0; 12000];
        read_exact_at(&*file, 7, &mut back).unwrap();
        assert_eq!(back, parts.concat());
    }

    #[test]
    fn map_sees_later_writes_and_slices_outlive_the_file() {
        let (_dir, disk) = disk();
        let file = disk.open("a", OpenMode::Create).unwrap();
        file.allocate(64 * 1024).unwrap();
        let map = file.map().unwrap();
        file.write_at(5000, &[IoSlice::new(b"hello")]).unwrap();
        map.load(0..64 * 1024).unwrap();
        assert!(map.resident(4096..8192));
        let slice = Arc::clone(&map).slice(5000..5005);
        drop((map, file));
        disk.remove("a").unwrap();
        assert_eq!(&slice[..], b"hello");
    }

    #[test]
    fn dropped_pages_read_the_same_bytes_again() {
        let (_dir, disk) = disk();
        let file = disk.open("a", OpenMode::Create).unwrap();
        file.write_at(0, &[IoSlice::new(&[7; 16384])]).unwrap();
        file.sync().unwrap();
        let map = file.map().unwrap();
        let slice = Arc::clone(&map).slice(0..16384);
        file.drop_cache(0..16384);
        assert!(slice.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn lock_keeps_a_second_server_out_until_released() {
        let (dir, disk) = disk();
        let lock = disk.lock().unwrap();
        let other = OsDisk::existing(dir.path()).unwrap();
        assert_eq!(other.lock().err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        assert!(other.lock().is_ok());
    }

    #[test]
    fn paths_cannot_leave_the_directory() {
        let (_dir, disk) = disk();
        for path in ["../x", "/etc/passwd", "a/../../x"] {
            let error = disk.open(path, OpenMode::Read).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    #[test]
    fn allocate_grows_and_never_shrinks() {
        let (_dir, disk) = disk();
        let file = disk.open("a", OpenMode::Create).unwrap();
        file.allocate(8192).unwrap();
        file.allocate(4096).unwrap();
        assert_eq!(file.len().unwrap(), 8192);
    }
}
