//! What all logs and all threads of a store share.
//!
//! Owns the doors between appenders, the group writer, readers and maintenance. Holds no log: logs hold
//! this.

use std::sync::Arc;

use super::StoreObserver;
use super::files::SegmentFiles;
use super::log::LogInner;
use super::plan::PlanLimits;
use super::poison::Poison;
use super::queue::{Bell, WorkQueue};
use super::segment::Files;
use super::snapshots::SnapshotQueue;
use super::space::Space;
use super::stats::Counters;
use super::thin::{Thin, ThinQueue};
use crate::error::StoreError;
use crate::options::StoreOptions;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// Work for the group writer that is no entry.
pub(crate) enum Order {
    /// The log's start moved.
    Trim(Arc<LogInner>),
    /// The log was dropped.
    Drop(Arc<LogInner>),
    /// A segment is kept no longer, or in part.
    Thin(Thin),
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) options: StoreOptions,
    pub(crate) plan_limits: PlanLimits,
    pub(crate) files: Files,
    pub(crate) pool: SegmentFiles,
    pub(crate) queue: WorkQueue<Arc<LogInner>, Order>,
    pub(crate) space: Space,
    pub(crate) poison: Poison,
    pub(crate) closed: AtomicBool,
    /// The last group was written.
    pub(crate) finished: AtomicBool,
    pub(crate) next_salt: AtomicU64,
    pub(crate) next_incarnation: AtomicU64,
    /// Logs that wait for space look again at the next step.
    pub(crate) retry: AtomicBool,
    /// A checkpoint is asked for, whatever the thresholds say.
    pub(crate) checkpoint_wanted: AtomicBool,
    pub(crate) maintenance_bell: Bell,
    pub(crate) snapshots: SnapshotQueue,
    pub(crate) rewrites: ThinQueue,
    pub(crate) observer: Mutex<Option<Arc<dyn StoreObserver>>>,
    pub(crate) counters: Counters,
}

impl Shared {
    /// Ends the store: nothing is written or reported as stored any more.
    pub(crate) fn fail(&self, doing: &str, error: &std::io::Error) {
        let error = StoreError { doing: doing.to_string(), message: error.to_string() };
        if !self.poison.set(error.clone()) {
            return;
        }
        tracing::error!(%error, "the disk failed; nothing is stored until the server restarts");
        let observer = self.observer.lock().clone();
        if let Some(observer) = observer {
            observer.failed(&error);
        }
    }

    /// Makes the group writer look at what waits for space again.
    pub(crate) fn retry_stalled(&self) {
        self.retry.store(true, Ordering::Relaxed);
        self.queue.kick();
    }
}
