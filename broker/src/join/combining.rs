//! Owns a lock whose holder does what others could not wait for: whoever notifies never blocks, and
//! whoever holds the lock drains before it is done with it. Never knows what is protected or drained.
//! Driven by the session threads (`with`) and by the I/O thread (`notify`).
//!
//! Why no notification is lost. A notifier raises `notified`, passes a `SeqCst` fence (N), and tries the
//! lock. A holder unlocks, passes a `SeqCst` fence (H), and looks at `notified`. Suppose the try failed
//! because of holder X. Had X's fence come before N in the total order of fences, the try would have
//! seen X's unlock, or something later; so X's fence comes after N, X's look sees the raised number, and
//! X goes on until the number that it drained for is the one that it sees. `drained` changes only under
//! the lock, and reading `notified` synchronises with the notifier: what was published before is drained.
//! `broker/storage/tests/loom_combining.rs` explores this.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};
use std::sync::{PoisonError, TryLockError};

/// A mutex that remembers what its holder still has to do.
pub(crate) struct CombiningLock<T> {
    /// Notifications so far.
    notified: AtomicU64,
    guarded: Mutex<Guarded<T>>,
}

struct Guarded<T> {
    /// The value of `notified` that was last drained for.
    drained: u64,
    value: T,
}

impl<T> CombiningLock<T> {
    pub(crate) fn new(value: T) -> Self {
        let guarded = Mutex::new(Guarded { drained: 0, value });
        Self { notified: AtomicU64::new(0), guarded }
    }

    /// Runs `work` under the lock, then `drain` for the notifications that arrived meanwhile. Both get
    /// `context`.
    pub(crate) fn with<C, R>(
        &self,
        context: &mut C,
        work: impl FnOnce(&mut T, &mut C) -> R,
        drain: impl Fn(&mut T, &mut C),
    ) -> R {
        // A panic under the lock ends the process (or fails the test): there is no half-done value.
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut guarded.value, context);
        let drained = self.drain_under(guarded, context, &drain);
        self.drain_after(drained, context, &drain);
        result
    }

    /// Has `drain` run after everything that the caller published before this call: here when the
    /// lock is free, else by its holder. Never blocks.
    pub(crate) fn notify<C>(&self, context: &mut C, drain: impl Fn(&mut T, &mut C)) {
        let before = self.notified.fetch_add(1, Ordering::AcqRel);
        self.drain_after(before, context, &drain);
    }

    /// Drains until nothing was notified since `drained`, or somebody else holds the lock.
    fn drain_after<C>(&self, mut drained: u64, context: &mut C, drain: &impl Fn(&mut T, &mut C)) {
        loop {
            fence(Ordering::SeqCst);
            if self.notified.load(Ordering::Relaxed) == drained {
                return;
            }
            let guarded = match self.guarded.try_lock() {
                Ok(guarded) => guarded,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            drained = self.drain_under(guarded, context, drain);
        }
    }

    /// Drains once if need be, unlocks, and tells what was drained for.
    fn drain_under<C>(
        &self,
        mut guarded: MutexGuard<'_, Guarded<T>>,
        context: &mut C,
        drain: &impl Fn(&mut T, &mut C),
    ) -> u64 {
        let notified = self.notified.load(Ordering::Acquire);
        if notified != guarded.drained {
            guarded.drained = notified;
            drain(&mut guarded.value, context);
        }
        notified
    }
}
