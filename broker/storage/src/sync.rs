//! Locks, condition variables and atomics: the standard ones, or loom's when models run.
//!
//! Owns nothing. A poisoned lock is entered anyway: every critical section here leaves its data whole
//! or the panic ends the process.

use std::time::Duration;

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    /// Tells the processor that this is a wait for another thread.
    pub(crate) fn spin() {
        std::hint::spin_loop();
    }
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use std::sync::PoisonError;

    /// Lets the model run the other threads.
    pub(crate) fn spin() {
        loom::thread::yield_now();
    }
}

pub(crate) use imp::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence, spin};
pub(crate) type MutexGuard<'a, T> = imp::MutexGuard<'a, T>;

/// A mutual exclusion lock.
#[derive(Debug)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    /// Takes the lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(imp::PoisonError::into_inner)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// A condition variable.
#[derive(Debug)]
pub(crate) struct Condvar(imp::Condvar);

impl Default for Condvar {
    fn default() -> Self {
        Self(imp::Condvar::new())
    }
}

impl Condvar {
    /// Releases the lock, waits for a notification, takes the lock again. May wake without one.
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(imp::PoisonError::into_inner)
    }

    /// As [`Self::wait`], but no longer than `timeout`; tells whether that passed.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let (guard, result) =
            self.0.wait_timeout(guard, timeout).unwrap_or_else(imp::PoisonError::into_inner);
        (guard, result.timed_out())
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }
}
