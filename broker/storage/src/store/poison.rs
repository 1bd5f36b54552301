//! The failure that ends a store.
//!
//! Owns the first error of a write or sync. After it nothing is written, nothing is published and
//! every append fails: a later success of the same device proves nothing about what came before.

use crate::error::StoreError;
use crate::sync::{AtomicBool, Mutex, Ordering};

/// Set once, never cleared.
#[derive(Debug)]
pub(crate) struct Poison {
    set: AtomicBool,
    error: Mutex<Option<StoreError>>,
}

impl Poison {
    pub(crate) fn new() -> Self {
        Self { set: AtomicBool::new(false), error: Mutex::new(None) }
    }

    /// Whether the store has failed. Relaxed would do for the answer; acquire, so that the error is there.
    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Notes the failure; tells whether it is the first one.
    pub(crate) fn set(&self, error: StoreError) -> bool {
        let mut held = self.error.lock();
        if held.is_some() {
            return false;
        }
        *held = Some(error);
        self.set.store(true, Ordering::Release);
        true
    }

    pub(crate) fn error(&self) -> Option<StoreError> {
        self.error.lock().clone()
    }
}
