//! Snapshots on their way to the disk.
//!
//! Owns the queue of states that logs handed in, and the writing of packs: one file for all that wait,
//! written, synced, its name synced, read back. A manifest names it afterwards; only then does a snapshot
//! count. Driven by maintenance.

use std::io;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::types::EntryIndex;

use super::log::{Gone, KeptSnapshot, Log, LogInner};
use super::shared::Shared;
use super::space::Claim;
use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at};
use crate::format::SECTOR;
use crate::format::manifest::SnapshotRef;
use crate::format::names;
use crate::format::snapshot::{BLOB_HEADER_BYTES, BlobHeader, PackHeader};
use crate::sync::Mutex;

/// Snapshots kept of each log: the newest, and one to fall back to.
pub(crate) const KEPT: usize = 2;

struct Waiting {
    log: Arc<LogInner>,
    index: EntryIndex,
    state: Bytes,
}

#[derive(Default)]
struct Queue {
    /// At most one of each log; bounded in bytes.
    waiting: Vec<Waiting>,
    bytes: usize,
}

/// See the module.
pub(crate) struct SnapshotQueue {
    queue: Mutex<Queue>,
    bytes_max: usize,
}

impl SnapshotQueue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { queue: Mutex::default(), bytes_max }
    }

    /// Queues a state in place of an older one of the log; false at the bound. One alone may be above it: else a log whose
    /// state is that large would never have a snapshot again.
    fn push(&self, log: &Arc<LogInner>, index: EntryIndex, state: Bytes) -> bool {
        let mut queue = self.queue.lock();
        let Queue { waiting, bytes } = &mut *queue;
        let old = waiting.iter().position(|other| Arc::ptr_eq(&other.log, log));
        let freed = old.map_or(0, |at| waiting[at].state.len());
        let others = *bytes - freed;
        if others > 0 && others + state.len() > self.bytes_max {
            return false;
        }
        *bytes = others + state.len();
        let new = Waiting { log: Arc::clone(log), index, state };
        match old {
            Some(at) => waiting[at] = new,
            None => waiting.push(new),
        }
        true
    }

    fn take(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.queue.lock()).waiting
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().waiting.is_empty()
    }
}

impl Log {
    /// Hands in the log's state as folded from all entries below `index`. It is written soon, and counts
    /// once [`Log::snapshot_index`] shows it. False when too many bytes wait: try again later.
    ///
    /// # Panics
    /// When the state claims entries that are not ready: a bug of the caller.
    pub fn write_snapshot(&self, index: EntryIndex, state: Bytes) -> bool {
        assert!(index <= self.ready_end().0, "a snapshot covers only entries that are ready");
        self.inner.shared.snapshots.push(&self.inner, index, state)
    }
}

/// Writes everything that waits into pack `number`. Tells whether a pack was written; without space the
/// states are dropped, and the logs go on without newer snapshots.
///
/// # Errors
/// The device's: terminal.
pub(crate) fn write_pack(shared: &Shared, number: u32) -> io::Result<bool> {
    let waiting = shared.snapshots.take();
    if waiting.is_empty() {
        return Ok(false);
    }
    let (heads, refs, len) = lay_out(&waiting, number);
    let disk = &*shared.files.disk;
    let Some(promised) = shared.space.promise(len, len, Claim::State) else {
        tracing::warn!(bytes = len, "no space for snapshots");
        return Ok(false);
    };
    let file = match create(disk, number, len) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            shared.space.settle(promised, 0);
            tracing::warn!(bytes = len, "no space for snapshots");
            return Ok(false);
        }
        other => other?,
    };
    shared.space.settle(promised, len);
    let count = blob_count(&waiting);
    let header = PackHeader { pack: number, count, len }.encode();
    let zeros = [0; 8];
    let mut bufs = vec![IoSlice::new(&header)];
    for (item, head) in waiting.iter().zip(heads.chunks_exact(BLOB_HEADER_BYTES)) {
        bufs.push(IoSlice::new(head));
        bufs.push(IoSlice::new(&item.state));
        bufs.push(IoSlice::new(&zeros[..item.state.len().next_multiple_of(8) - item.state.len()]));
    }
    file.write_at(0, &bufs)?;
    file.sync()?;
    disk.sync_dir(names::SNAPSHOTS)?;
    for at in &refs {
        read_snapshot(&*file, at)?;
    }
    for (item, at) in waiting.iter().zip(refs) {
        keep(&item.log, at);
    }
    shared.counters.snapshots.add(u64::from(count));
    Ok(true)
}

fn lay_out(waiting: &[Waiting], pack: u32) -> (Vec<u8>, Vec<SnapshotRef>, u64) {
    let mut heads = Vec::with_capacity(waiting.len() * BLOB_HEADER_BYTES);
    let mut refs = Vec::with_capacity(waiting.len());
    let mut position = SECTOR as u64;
    for item in waiting {
        let (crc, len) = (crc32fast::hash(&item.state), item.state.len() as u64);
        let (key, incarnation, index) = (item.log.key, item.log.incarnation, item.index);
        BlobHeader { key, crc, incarnation, index, len }.encode(&mut heads);
        position += BLOB_HEADER_BYTES as u64;
        refs.push(SnapshotRef { pack, crc, index, position, len });
        position += len.next_multiple_of(8);
    }
    (heads, refs, position)
}

fn blob_count(waiting: &[Waiting]) -> u32 {
    u32::try_from(waiting.len()).expect("snapshots that wait fit u32")
}

fn create(disk: &dyn Disk, number: u32, len: u64) -> io::Result<Arc<dyn DiskFile>> {
    let path = names::pack(number);
    let file = disk.open(&path, OpenMode::Create)?;
    if let Err(error) = file.allocate(len) {
        drop(file);
        disk.remove(&path)?;
        return Err(error);
    }
    Ok(file)
}

fn keep(log: &LogInner, at: SnapshotRef) {
    if log.tail.lock().gone == Some(Gone::Dropped) {
        return;
    }
    let mut body = log.body.lock();
    // A second one of the same state is as good as any two.
    if body.snapshots.last().is_some_and(|last| last.at.index > at.index) {
        return;
    }
    body.snapshots.push(KeptSnapshot { at, durable: false });
    let surplus = body.snapshots.len().saturating_sub(KEPT);
    body.snapshots.drain(..surplus);
}

/// Reads a snapshot's state.
///
/// # Errors
/// `InvalidData` when its crc does not fit; or the device's.
pub(crate) fn read_snapshot(file: &dyn DiskFile, at: &SnapshotRef) -> io::Result<Bytes> {
    // A reference from a damaged file must not make us allocate what is not there.
    if at.position.saturating_add(at.len) > file.len()? {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let len = usize::try_from(at.len).map_err(|_too_large| io::ErrorKind::InvalidData)?;
    let mut state = vec![0; len];
    read_exact_at(file, at.position, &mut state)?;
    if crc32fast::hash(&state) != at.crc {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(state.into())
}
