//! A bounded set of things that are open, closing the longest unused.
//!
//! Owns the order only; opening and closing are the caller's. Second chance instead of exact recency:
//! a use costs one relaxed store and no lock.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use crate::sync::Mutex;

/// See the module.
pub(crate) struct Ring<T> {
    items: Mutex<VecDeque<Weak<T>>>,
    max: usize,
}

impl<T> Ring<T> {
    pub(crate) fn new(max: usize) -> Self {
        Self { items: Mutex::new(VecDeque::new()), max: max.max(1) }
    }

    /// Adds an item that was just opened. Above the bound `close` is asked of the oldest ones until one
    /// agrees; it answers false for an item that was used since it was asked last.
    pub(crate) fn insert(&self, item: &Arc<T>, close: impl Fn(&T) -> bool) {
        let mut items = self.items.lock();
        items.push_back(Arc::downgrade(item));
        let mut asked = 0;
        while items.len() > self.max && asked <= 2 * self.max {
            let Some(oldest) = items.pop_front() else { return };
            asked += 1;
            let Some(open) = oldest.upgrade() else { continue };
            if Arc::ptr_eq(&open, item) || !close(&open) {
                items.push_back(oldest);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.lock().len()
    }
}
