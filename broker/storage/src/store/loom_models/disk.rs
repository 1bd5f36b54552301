//! A disk of plain memory that tells loom who touches which bytes.
//!
//! Its own locks are invisible to loom: they order nothing in the model, so that only the store's own
//! synchronisation counts. No lock is held while a hook runs.

use std::collections::BTreeMap;
use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use loom::cell::UnsafeCell;

use crate::disk::{Disk, DiskFile, DiskMap, OpenMode};

/// Called with the path of the file before a sync succeeds.
type SyncHook = Box<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

#[derive(Default)]
struct World {
    files: BTreeMap<String, Arc<File>>,
    hook: Option<Arc<SyncHook>>,
}

/// See the module.
#[derive(Clone, Default)]
pub(super) struct ModelDisk {
    world: Arc<Mutex<World>>,
}

/// Bytes of one write, and loom's record of who touched them.
struct Extent {
    range: Range<u64>,
    touched: UnsafeCell<()>,
}

struct Contents {
    bytes: Vec<u8>,
    extents: Vec<Extent>,
}

pub(super) struct File {
    path: String,
    contents: Mutex<Contents>,
    disk: ModelDisk,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(position: u64) -> usize {
    usize::try_from(position).expect("files of models are small")
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl ModelDisk {
    /// Sets what happens at syncs.
    pub(super) fn on_sync(&self, hook: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) {
        lock(&self.world).hook = Some(Arc::new(Box::new(hook)));
    }

    fn sync(&self, path: &str) -> io::Result<()> {
        let hook = lock(&self.world).hook.clone();
        hook.map_or(Ok(()), |hook| hook(path))
    }

    /// The only file whose name begins so.
    pub(super) fn file(&self, begin: &str) -> Arc<File> {
        let world = lock(&self.world);
        let mut found = world.files.iter().filter(|(path, _)| path.starts_with(begin));
        let file = Arc::clone(found.next().expect("there is a file").1);
        assert!(found.next().is_none(), "more than one file begins with {begin}");
        file
    }
}

impl File {
    /// Reads what was mapped before, as a holder of a slice does.
    pub(super) fn touch(&self, range: &Range<u64>) {
        for extent in &lock(&self.contents).extents {
            if overlap(&extent.range, range) {
                extent.touched.with(|_| ());
            }
        }
    }
}

impl Disk for ModelDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = lock(&self.world);
        let file = match (world.files.get(path), mode) {
            (Some(_), OpenMode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(file), _) => Arc::clone(file),
            (None, OpenMode::Create) => {
                let contents = Mutex::new(Contents { bytes: Vec::new(), extents: Vec::new() });
                let (path, disk) = (path.to_string(), self.clone());
                Arc::new(File { path, contents, disk })
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        world.files.insert(path.to_string(), Arc::clone(&file));
        Ok(Arc::new(Handle(file)))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        lock(&self.world).files.remove(path);
        Ok(())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self, _dir: &str) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_all_files(&self) -> io::Result<()> {
        self.sync("")
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 30)
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        Ok(Box::new(()))
    }
}

struct Handle(Arc<File>);

impl DiskFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0.contents).bytes.len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut contents = lock(&self.0.contents);
        let len = size(bytes).max(contents.bytes.len());
        contents.bytes.resize(len, 0);
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let range = offset..offset + bytes.len() as u64;
        let mut contents = lock(&self.0.contents);
        for extent in &contents.extents {
            if overlap(&extent.range, &range) {
                extent.touched.with_mut(|_| ());
            }
        }
        contents
            .extents
            .retain(|extent| extent.range.start < range.start || extent.range.end > range.end);
        let touched = UnsafeCell::new(());
        contents.extents.push(Extent { range: range.clone(), touched });
        if contents.bytes.len() < size(range.end) {
            contents.bytes.resize(size(range.end), 0);
        }
        contents.bytes[size(range.start)..size(range.end)].copy_from_slice(&bytes);
        Ok(())
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.disk.sync(&self.0.path)
    }

    fn map(&self) -> io::Result<Arc<dyn DiskMap>> {
        Ok(Arc::new(Map { file: Arc::clone(&self.0), len: size(self.len()?) }))
    }

    fn drop_cache(&self, _range: Range<u64>) {}
}

/// A slice is a copy, and counts as a read of its bytes.
struct Map {
    file: Arc<File>,
    len: usize,
}

impl DiskMap for Map {
    fn len(&self) -> usize {
        self.len
    }

    fn slice(self: Arc<Self>, range: Range<usize>) -> Bytes {
        self.file.touch(&(range.start as u64..range.end as u64));
        Bytes::copy_from_slice(&lock(&self.file.contents).bytes[range])
    }

    fn load(&self, _range: Range<usize>) -> io::Result<()> {
        Ok(())
    }

    fn resident(&self, _range: Range<usize>) -> bool {
        true
    }
}
