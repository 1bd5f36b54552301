//! A simulated disk: seeded, in memory, and as hostile as a real one may be.
//!
//! Owns files with two images each (what reads see, what a power loss leaves), directories whose
//! changes wait for a sync, and faults planned by operation number. Never uses a clock, a thread or
//! the real file system; a seed and the same calls replay bit for bit. Driven by tests, the
//! simulator and the fuzz target of recovery.
//!
//! - A process crash keeps the page cache; pages that passed through a failed sync may revert.
//! - A power loss leaves, per unsynced 512-byte sector, any version since the last sync, in any
//!   order across files; unsynced names and lengths may be missing. Sectors are atomic.
//! - A sync that fails loses data, marks the pages clean and keeps showing the new bytes.
//! - From the operation at which the crash was planned, every call fails until [`SimDisk::reopen`].

mod image;
mod random;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::image::{Image, SECTOR};
pub use self::random::SimRandom;
use crate::disk::{Disk, DiskFile, DiskMap, OpenMode};

/// What ends a life of the simulated machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashKind {
    /// The process is killed; the page cache stays.
    Process,
    /// The machine loses power; whatever was not synced is in doubt.
    Power,
}

/// Faults planned ahead, by the number that an operation will have (the first is 1).
#[derive(Clone, Copy, Default, Debug)]
pub struct FaultPlan {
    /// This operation happens in part or not at all, fails, and so does every later one.
    pub crash_at: Option<u64>,
    /// The first sync with this number or a later one fails.
    pub fail_sync_at: Option<u64>,
    /// The first write with this number or a later one fails, half written.
    pub fail_write_at: Option<u64>,
}

/// One line of the operation log: every call that changes the disk, in order.
#[derive(Clone, Debug)]
pub struct SimOp {
    /// Number of the operation since the disk was made; the first is 1.
    pub number: u64,
    /// What was called.
    pub name: &'static str,
    /// File or directory.
    pub path: Arc<str>,
    /// Byte range of a write, or `0..length` of an allocation.
    pub range: Range<u64>,
}

impl fmt::Display for SimOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5} {:<9} {}", self.number, self.name, self.path)?;
        if self.range.end > 0 {
            write!(f, " {}..{}", self.range.start, self.range.end)?;
        }
        Ok(())
    }
}

type Inode = u64;

/// A change of directory entries that no sync has made durable yet. A power loss keeps any subset.
#[derive(Clone, Debug)]
enum NameChange {
    Add { path: String, target: Node },
    Remove { path: String, inode: Inode },
    Rename { from: String, to: String, inode: Inode },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    File(Inode),
    Dir,
}

#[derive(Clone, Debug)]
struct World {
    files: BTreeMap<Inode, Image>,
    names: BTreeMap<String, Node>,
    durable_names: BTreeMap<String, Node>,
    name_changes: Vec<NameChange>,
    next_inode: Inode,
    random: SimRandom,
    plan: FaultPlan,
    operations: u64,
    log: Vec<SimOp>,
    read_bytes: u64,
    quota_bytes: u64,
    /// Handles of an earlier life fail, so that what a dropped store still does changes nothing.
    life: u64,
    crashed: bool,
    locked: Option<Arc<AtomicBool>>,
}

/// The simulated disk. Clones and [`SimDisk::reopen`] share the contents.
#[derive(Clone, Debug)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    life: u64,
}

/// Operation log lines kept; a longer run forgets the oldest half.
const LOG_MAX: usize = 100_000;

impl SimDisk {
    /// An empty disk whose losses depend on the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let world = World {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            next_inode: 1,
            random: SimRandom::new(seed),
            plan: FaultPlan::default(),
            operations: 0,
            log: Vec::new(),
            read_bytes: 0,
            quota_bytes: 1 << 40,
            life: 0,
            crashed: false,
            locked: None,
        };
        Self { world: Arc::new(Mutex::new(world)), life: 0 }
    }

    /// A disk with the same contents and pending losses, independent from here on.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let mut world = self.world().clone();
        world.random = SimRandom::new(seed);
        world.locked = None;
        Self { life: world.life, world: Arc::new(Mutex::new(world)) }
    }

    /// Replaces the planned faults.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.world().plan = plan;
    }

    /// Ends the life of everything opened so far and applies the losses of the crash.
    pub fn crash(&self, kind: CrashKind) {
        self.world().crash(kind);
    }

    /// Starts the next life: a handle whose calls work again, without planned faults.
    #[must_use]
    pub fn reopen(&self) -> Self {
        let mut world = self.world();
        world.life += 1;
        world.crashed = false;
        world.locked = None;
        world.plan = FaultPlan::default();
        Self { life: world.life, world: Arc::clone(&self.world) }
    }

    /// Whether the planned crash has happened.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.world().crashed
    }

    /// Operations that changed the disk so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// The operations in order, for a report.
    #[must_use]
    pub fn operation_log(&self) -> Vec<SimOp> {
        self.world().log.clone()
    }

    /// Bytes read so far, through files and maps.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.world().read_bytes
    }

    /// Limits the sum of all file lengths; a smaller limit than what is used only stops growth.
    pub fn set_quota(&self, bytes: u64) {
        self.world().quota_bytes = bytes;
    }

    /// Flips bits of one stored byte, on the disk and in the cache. Nothing happens beyond the end.
    ///
    /// # Panics
    /// When the file does not exist: the test is wrong.
    pub fn flip(&self, path: &str, offset: u64, mask: u8) {
        let mut world = self.world();
        let Some(Node::File(inode)) = world.names.get(path).copied() else {
            panic!("no file {path} to damage");
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        world.image(inode).flip(offset, mask);
    }

    /// Every file with its present contents, sorted by path.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Bytes)> {
        let world = self.world();
        let file_of = |(path, node): (&String, &Node)| match node {
            Node::File(inode) => {
                let image = world.files.get(inode)?;
                Some((path.clone(), Bytes::copy_from_slice(image.bytes())))
            }
            Node::Dir => None,
        };
        world.names.iter().filter_map(file_of).collect()
    }

    /// Puts a durable file in place, with the directories on its path: for tests and fuzzing.
    pub fn install(&self, path: &str, bytes: &[u8]) {
        let mut world = self.world();
        let mut at = 0;
        while let Some(next) = path[at..].find('/') {
            let dir = path[..at + next].to_string();
            world.names.insert(dir.clone(), Node::Dir);
            world.durable_names.insert(dir, Node::Dir);
            at += next + 1;
        }
        let inode = world.new_inode();
        let image = world.image(inode);
        image.write(0, bytes);
        image.sync();
        world.names.insert(path.to_string(), Node::File(inode));
        world.durable_names.insert(path.to_string(), Node::File(inode));
    }

    /// Whether nothing would be lost if the power failed now.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        let world = self.world();
        let linked = |node: &Node| match node {
            Node::File(inode) => world.files.get(inode).is_some_and(Image::is_durable),
            Node::Dir => true,
        };
        world.name_changes.is_empty() && world.names.values().all(linked)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world, for a call of this handle's life.
    fn alive(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.world();
        if world.crashed || world.life != self.life {
            return Err(crash_error());
        }
        Ok(world)
    }
}

fn crash_error() -> io::Error {
    io::Error::other("simulated crash")
}

fn full_error() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// The directory that holds a name; the root is `""`.
fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |at| &path[..at])
}

/// What the plan says about one operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    Fails,
    Crashes,
}

impl World {
    fn new_inode(&mut self) -> Inode {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.files.insert(inode, Image::default());
        inode
    }

    fn image(&mut self, inode: Inode) -> &mut Image {
        self.files.entry(inode).or_default()
    }

    /// Counts and logs one operation and looks its fate up.
    fn begin(&mut self, name: &'static str, path: &str, range: Range<u64>) -> Fate {
        self.operations += 1;
        let number = self.operations;
        if self.log.len() == LOG_MAX {
            self.log.drain(..LOG_MAX / 2);
        }
        self.log.push(SimOp { number, name, path: Arc::from(path), range });
        if self.plan.crash_at == Some(number) {
            self.crashed = true;
            return Fate::Crashes;
        }
        let planned = match name {
            "sync" | "sync_dir" | "sync_all" => &mut self.plan.fail_sync_at,
            "write" => &mut self.plan.fail_write_at,
            _ => return Fate::Works,
        };
        if planned.is_some_and(|at| number >= at) {
            *planned = None;
            return Fate::Fails;
        }
        Fate::Works
    }

    /// Begins an operation that either happens whole or not at all.
    fn begin_whole(&mut self, name: &'static str, path: &str) -> (bool, io::Result<()>) {
        match self.begin(name, path, 0..0) {
            Fate::Works => (true, Ok(())),
            Fate::Fails => (false, Err(io::Error::other("simulated device error"))),
            Fate::Crashes => (self.random.one_in(2), Err(crash_error())),
        }
    }

    fn change_names(&mut self, change: NameChange) {
        apply_names(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn used_bytes(&self) -> u64 {
        let linked = self.names.values().filter_map(|node| match node {
            Node::File(inode) => self.files.get(inode),
            Node::Dir => None,
        });
        linked.map(|image| image.len() as u64).sum()
    }

    /// Whether a file may grow to `len`.
    fn check_quota(&mut self, inode: Inode, len: u64) -> io::Result<()> {
        let growth = len.saturating_sub(self.image(inode).len() as u64);
        if growth > 0 && self.used_bytes().saturating_add(growth) > self.quota_bytes {
            return Err(full_error());
        }
        Ok(())
    }

    fn commit_names(&mut self, dir: &str) {
        let mut waiting = Vec::new();
        for change in std::mem::take(&mut self.name_changes) {
            if change.touches(dir) {
                apply_names(&mut self.durable_names, &change);
            } else {
                waiting.push(change);
            }
        }
        self.name_changes = waiting;
    }

    fn crash(&mut self, kind: CrashKind) {
        self.crashed = true;
        let random = &mut self.random;
        match kind {
            CrashKind::Process => {
                for image in self.files.values_mut() {
                    image.evict_lost(random);
                }
            }
            CrashKind::Power => {
                for image in self.files.values_mut() {
                    image.lose_power(random);
                }
                for change in std::mem::take(&mut self.name_changes) {
                    if random.one_in(2) {
                        apply_names(&mut self.durable_names, &change);
                    }
                }
                drop_orphans(&mut self.durable_names);
                self.names.clone_from(&self.durable_names);
            }
        }
        let linked: Vec<Node> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        self.files.retain(|inode, _| linked.contains(&Node::File(*inode)));
    }
}

impl NameChange {
    fn touches(&self, dir: &str) -> bool {
        match self {
            Self::Add { path, .. } | Self::Remove { path, .. } => parent(path) == dir,
            Self::Rename { from, to, .. } => parent(from) == dir || parent(to) == dir,
        }
    }
}

/// Applies one change; a change whose premise was lost does what is left of it.
fn apply_names(names: &mut BTreeMap<String, Node>, change: &NameChange) {
    match change {
        NameChange::Add { path, target } => {
            names.insert(path.clone(), *target);
        }
        NameChange::Remove { path, inode } => {
            if names.get(path) == Some(&Node::File(*inode)) {
                names.remove(path);
            }
        }
        NameChange::Rename { from, to, inode } => {
            if names.get(from) == Some(&Node::File(*inode)) {
                names.remove(from);
            }
            names.insert(to.clone(), Node::File(*inode));
        }
    }
}

/// Drops names whose directory was lost.
fn drop_orphans(names: &mut BTreeMap<String, Node>) {
    loop {
        let orphan = |path: &&String| {
            let dir = parent(path);
            !dir.is_empty() && names.get(dir) != Some(&Node::Dir)
        };
        let orphans: Vec<String> = names.keys().filter(orphan).cloned().collect();
        if orphans.is_empty() {
            return;
        }
        for path in orphans {
            names.remove(&path);
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.alive()?;
        let present = world.names.get(path).copied();
        let inode = match (mode, present) {
            (OpenMode::Create, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Create, None) => {
                let dir = parent(path);
                if !dir.is_empty() && world.names.get(dir) != Some(&Node::Dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let (happens, result) = world.begin_whole("create", path);
                let inode = world.new_inode();
                if happens {
                    let target = Node::File(inode);
                    world.change_names(NameChange::Add { path: path.to_string(), target });
                }
                result?;
                inode
            }
            (_, Some(Node::File(inode))) => inode,
            (_, Some(Node::Dir)) => return Err(io::ErrorKind::IsADirectory.into()),
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(world);
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(SimFile { disk: self.clone(), inode, path: Arc::from(path), writable }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut world = self.alive()?;
        let Some(Node::File(inode)) = world.names.get(path).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (happens, result) = world.begin_whole("remove", path);
        if happens {
            world.change_names(NameChange::Remove { path: path.to_string(), inode });
        }
        result
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.alive()?;
        let Some(Node::File(inode)) = world.names.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (happens, result) = world.begin_whole("rename", to);
        if happens {
            let (from, to) = (from.to_string(), to.to_string());
            world.change_names(NameChange::Rename { from, to, inode });
        }
        result
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let world = self.alive()?;
        if !dir.is_empty() && world.names.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let within = |path: &&String| parent(path) == dir;
        let name = |path: &String| path[path.rfind('/').map_or(0, |at| at + 1)..].to_string();
        Ok(world.names.keys().filter(within).map(name).collect())
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut world = self.alive()?;
        match world.names.get(dir) {
            Some(Node::Dir) => return Ok(()),
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        let (happens, result) = world.begin_whole("mkdir", dir);
        if happens {
            world.change_names(NameChange::Add { path: dir.to_string(), target: Node::Dir });
        }
        result
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut world = self.alive()?;
        let (happens, result) = world.begin_whole("sync_dir", dir);
        if happens {
            world.commit_names(dir);
        }
        result
    }

    fn sync_all_files(&self) -> io::Result<()> {
        let mut world = self.alive()?;
        let fate = world.begin("sync_all", "", 0..0);
        let World { files, random, .. } = &mut *world;
        for image in files.values_mut() {
            sync_image(image, fate, random);
        }
        fate_result(fate)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let world = self.alive()?;
        Ok(world.quota_bytes.saturating_sub(world.used_bytes()))
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut world = self.alive()?;
        if world.locked.as_ref().is_some_and(|held| held.load(Ordering::Relaxed)) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let held = Arc::new(AtomicBool::new(true));
        world.locked = Some(Arc::clone(&held));
        Ok(Box::new(SimLock { held }))
    }
}

/// The held lock of a simulated directory.
struct SimLock {
    held: Arc<AtomicBool>,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.held.store(false, Ordering::Relaxed);
    }
}

fn sync_image(image: &mut Image, fate: Fate, random: &mut SimRandom) {
    match fate {
        Fate::Works => image.sync(),
        Fate::Fails => image.fail_sync(random),
        // Killed within the sync: it may have finished, and what it did in part is chosen when
        // the power fails.
        Fate::Crashes if random.one_in(2) => image.sync(),
        Fate::Crashes => {}
    }
}

fn fate_result(fate: Fate) -> io::Result<()> {
    match fate {
        Fate::Works => Ok(()),
        Fate::Fails => Err(io::Error::other("simulated device error")),
        Fate::Crashes => Err(crash_error()),
    }
}

/// An open simulated file.
struct SimFile {
    disk: SimDisk,
    inode: Inode,
    path: Arc<str>,
    writable: bool,
}

impl SimFile {
    fn alive_for_write(&self) -> io::Result<MutexGuard<'_, World>> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.alive()
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.alive()?.image(self.inode).len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.alive_for_write()?;
        world.check_quota(self.inode, bytes)?;
        let fate = world.begin("allocate", &self.path, 0..bytes);
        if fate == Fate::Works || world.random.one_in(2) {
            let len = usize::try_from(bytes).map_err(|_too_large| full_error())?;
            world.image(self.inode).grow(len);
        }
        fate_result(fate)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut world = self.alive_for_write()?;
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let end = offset.saturating_add(bytes.len() as u64);
        world.check_quota(self.inode, end)?;
        let start = usize::try_from(offset).map_err(|_too_large| full_error())?;
        let fate = world.begin("write", &self.path, offset..end);
        let kept = if fate == Fate::Works {
            bytes.len()
        } else {
            // A write that was cut short ends at a sector of the file.
            let sectors = (start + bytes.len()).div_ceil(SECTOR) - start / SECTOR;
            let cut = (start / SECTOR + world.random.index(sectors + 1)) * SECTOR;
            cut.saturating_sub(start).min(bytes.len())
        };
        world.image(self.inode).write(start, &bytes[..kept]);
        fate_result(fate)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut world = self.disk.alive()?;
        let image = world.image(self.inode);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
        let read = buf.len().min(image.len() - start);
        buf[..read].copy_from_slice(&image.bytes()[start..start + read]);
        world.read_bytes += read as u64;
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.alive_for_write()?;
        let fate = world.begin("sync", &self.path, 0..0);
        let World { files, random, .. } = &mut *world;
        if let Some(image) = files.get_mut(&self.inode) {
            sync_image(image, fate, random);
        }
        fate_result(fate)
    }

    fn map(&self) -> io::Result<Arc<dyn DiskMap>> {
        let mut world = self.disk.alive()?;
        let len = world.image(self.inode).len();
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Arc::new(SimMap { disk: self.disk.clone(), inode: self.inode, len }))
    }

    fn drop_cache(&self, _range: Range<u64>) {}
}

/// A mapping of a simulated file: each slice copies what the file holds at that moment, which equals
/// what a real map shows for ranges that are not written again.
struct SimMap {
    disk: SimDisk,
    inode: Inode,
    len: usize,
}

impl DiskMap for SimMap {
    fn len(&self) -> usize {
        self.len
    }

    fn slice(self: Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(range.end <= self.len, "range {range:?} exceeds {}", self.len);
        let mut world = self.disk.world();
        world.read_bytes += range.len() as u64;
        // A file without a name left when its machine crashed: nobody can read it any more.
        match world.files.get(&self.inode).and_then(|image| image.bytes().get(range.clone())) {
            Some(bytes) => Bytes::copy_from_slice(bytes),
            None => Bytes::from(vec![0; range.len()]),
        }
    }

    fn load(&self, range: Range<usize>) -> io::Result<()> {
        drop(self.disk.alive()?);
        if range.end > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    fn resident(&self, _range: Range<usize>) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
