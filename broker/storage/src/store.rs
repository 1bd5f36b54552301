//! The running store: logs, group commit, checkpoints.
//!
//! Owns the handles that the join uses and the two threads of production. Decides nothing about
//! messages. `recovery` gives it its state; from then on it writes the data directory alone.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | any | `append`, `read`, `trim` | short locks |
//! | I/O | [`Store::step`]: groups, watchers | the disk, the bell |
//! | maintenance | [`Store::maintain`]: checkpoints, footers, snapshots, sparse rewrites, file removal | the disk, its interval |
//!
//! Locks, outermost first: maintenance, writer, log map, a log's body, a log's tail, a segment's state,
//! pool, space, work queue. Watchers and the observer are called with the writer's lock held alone.

mod cursor;
mod files;
mod group;
mod hold;
mod index;
mod journal;
mod log;
mod maintenance;
mod open;
mod plan;
mod poison;
mod queue;
mod read;
mod rewrite;
mod ring;
mod segment;
mod shared;
mod snapshots;
mod space;
mod stage;
mod stats;
mod thin;
mod threads;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use postrider_protocol::types::{Durability, TimestampMs};

use self::files::SegmentFiles;
pub use self::log::{Appended, Log, LogWatcher, NewEntry, SegmentInfo};
use self::log::{Gone, LogInner};
use self::maintenance::Maintenance;
pub use self::open::{Opened, OpenedLog};
use self::plan::PlanLimits;
use self::poison::Poison;
use self::queue::{Bell, WorkQueue};
pub use self::read::ReadRun;
use self::segment::Files;
use self::shared::{Order, Shared};
use self::snapshots::SnapshotQueue;
use self::space::Space;
use self::stats::Counters;
pub use self::stats::{HISTOGRAM_BUCKETS, Histogram, StoreStats};
pub use self::thin::Keep;
use self::thin::ThinQueue;
pub use self::threads::StoreThreads;
use self::writer::Writer;
use crate::LogKey;
use crate::disk::Disk;
use crate::error::{AppendError, OpenError, StoreError};
use crate::options::StoreOptions;
use crate::recovered::RecoveredState;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// Is told about the store as a whole. Called on the I/O thread: it must not block.
pub trait StoreObserver: Send + Sync {
    /// A group is through and all its watchers were told.
    fn round_done(&self);
    /// The disk failed: nothing more is stored or reported as stored.
    fn failed(&self, error: &StoreError);
}

struct Logs {
    live: BTreeMap<LogKey, Arc<LogInner>>,
    /// Dropped, and the journal does not say so yet. Bounded by the drops of one group.
    doomed: Vec<Arc<LogInner>>,
}

struct StoreInner {
    shared: Arc<Shared>,
    maintenance: Mutex<Maintenance>,
    writer: Mutex<Writer>,
    logs: Mutex<Logs>,
    /// Keeps a second server out.
    _lock: Box<dyn Send + Sync>,
}

/// A handle of the store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<StoreInner>,
}

impl Store {
    /// Goes on from what recovery found, with the directory's lock held.
    pub(crate) fn start(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        state: &RecoveredState,
        lock: Box<dyn Send + Sync>,
    ) -> Result<(Self, Vec<Log>), OpenError> {
        let io = |doing: &str| {
            let doing = doing.to_string();
            move |source| OpenError::Io { doing, source }
        };
        let free = disk.free_bytes().map_err(io("measuring free space"))?;
        let shared = Arc::new(Shared {
            plan_limits: PlanLimits {
                segment_bytes_min: options.segment_bytes_min,
                segment_bytes_max: options.segment_bytes_max,
                direct_write_bytes: options.direct_write_bytes as u64,
            },
            files: Files::new(disk, options.open_files_max, options.map_max),
            pool: SegmentFiles::new(state.free_segments.clone(), state.next_segment_file),
            queue: WorkQueue::new(options.queue_bytes_max),
            space: Space::new(free, options.reserve_bytes),
            poison: Poison::new(),
            closed: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            next_salt: AtomicU64::new(state.next_salt),
            next_incarnation: AtomicU64::new(state.next_incarnation),
            retry: AtomicBool::new(false),
            checkpoint_wanted: AtomicBool::new(false),
            maintenance_bell: Bell::default(),
            snapshots: SnapshotQueue::new(options.snapshot_queue_bytes_max),
            rewrites: ThinQueue::default(),
            observer: Mutex::new(None),
            counters: Counters::default(),
            options,
        });
        let mut writer = Writer::open(state, &shared).map_err(io("opening the journal"))?;
        let mut live = BTreeMap::new();
        for recovered in &state.logs {
            let log = Arc::new(LogInner::recovered(recovered, Arc::clone(&shared)));
            let body = log.body.lock();
            for (segment, found) in body.segments.iter().zip(&recovered.segments) {
                if found.dirty {
                    writer.add_dirty(Arc::clone(segment));
                }
            }
            drop(body);
            live.insert(log.key, log);
        }
        let logs = live.values().map(|inner| Log { inner: Arc::clone(inner) }).collect();
        let inner = StoreInner {
            maintenance: Mutex::new(Maintenance::new(state)),
            shared,
            writer: Mutex::new(writer),
            logs: Mutex::new(Logs { live, doomed: Vec::new() }),
            _lock: lock,
        };
        Ok((Self { inner: Arc::new(inner) }, logs))
    }

    /// The log with this name, made if there is none. Nothing is written before the first append.
    /// An existing log takes the class.
    ///
    /// # Errors
    /// `Closed` or `Poisoned`.
    pub fn create_log(&self, key: LogKey, class: Durability) -> Result<Log, AppendError> {
        let shared = &self.inner.shared;
        if shared.poison.is_set() {
            return Err(AppendError::Poisoned);
        }
        if shared.closed.load(Ordering::Acquire) {
            return Err(AppendError::Closed);
        }
        let mut logs = self.inner.logs.lock();
        let log = logs.live.entry(key).or_insert_with(|| {
            let incarnation = shared.next_incarnation.fetch_add(1, Ordering::Relaxed);
            Arc::new(LogInner::new(key, incarnation, class, Arc::clone(shared)))
        });
        log.set_class(class);
        Ok(Log { inner: Arc::clone(log) })
    }

    /// Ends a log: appends fail with `Dropped` at once, and what waited is discarded. Its files are
    /// reused once the journal says so durably. Reads of it fail from then on.
    pub fn drop_log(&self, key: LogKey) {
        let mut logs = self.inner.logs.lock();
        let Some(log) = logs.live.remove(&key) else { return };
        logs.doomed.push(Arc::clone(&log));
        drop(logs);
        log.end(Gone::Dropped);
        self.inner.shared.queue.order(Order::Drop(log));
    }

    /// Writes one group, or a commit mark when nothing waits. Tells whether something was done; never
    /// waits for work. Called in a loop by the I/O thread or by a simulator.
    pub fn step(&self) -> bool {
        self.inner.writer.lock().step(&self.inner.shared)
    }

    /// Checkpoints, footers, snapshots, removal of files: whatever is due. Tells whether something was
    /// done. Called now and then by the maintenance thread or by a simulator; groups go on meanwhile.
    pub fn maintain(&self, now: TimestampMs) -> bool {
        self.inner.maintenance.lock().run(&self.inner, now)
    }

    /// Stops: no append is accepted any more, what was accepted is written, and a manifest says that
    /// nothing follows, so that the next start need not read the journal.
    ///
    /// # Errors
    /// The disk failed, now or before. What was reported as ready is safe.
    pub fn close(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        inner.shared.closed.store(true, Ordering::Release);
        let logs: Vec<Arc<LogInner>> = inner.logs.lock().live.values().cloned().collect();
        for log in logs {
            log.end(Gone::Closed);
        }
        while self.step() {}
        inner.maintenance.lock().close(inner);
        self.failed().map_or(Ok(()), Err)
    }

    /// Asks for a checkpoint at the next [`Store::maintain`].
    pub fn checkpoint(&self) {
        self.inner.shared.checkpoint_wanted.store(true, Ordering::Relaxed);
        self.inner.shared.maintenance_bell.ring();
    }

    /// Why the store stopped, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<StoreError> {
        self.inner.shared.poison.error()
    }

    /// Whether data entries are refused because the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inner.shared.space.is_full()
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let shared = &self.inner.shared;
        let (recyclable_bytes, pinned_bytes) = shared.pool.bytes();
        StoreStats {
            queue_bytes: shared.queue.bytes() as u64,
            free_bytes: shared.space.free(),
            mapped_segments: shared.files.mapped() as u64,
            recyclable_bytes,
            pinned_bytes,
            full: shared.space.is_full(),
            ..shared.counters.read()
        }
    }

    /// Sets who is told about rounds and failure, in place of whoever was told before.
    pub fn set_observer(&self, observer: Arc<dyn StoreObserver>) {
        *self.inner.shared.observer.lock() = Some(observer);
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_models;
#[cfg(test)]
mod tests;
