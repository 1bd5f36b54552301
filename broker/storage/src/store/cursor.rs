//! A log end that one thread moves and any thread reads without a lock.
//!
//! Owns the pair {index, offset}: both come from the same move, always. A lock would let a reader
//! that is descheduled hold up the I/O thread, and packing both into one word does not fit two u64;
//! hence a sequence lock. Writers are serialised by the caller; readers retry while a move runs.

use postrider_protocol::types::{EntryIndex, Offset};

use crate::sync::{AtomicU64, Ordering, fence, spin};

/// One past an entry, and the offset of the next message there.
pub(crate) type End = (EntryIndex, Offset);

/// See the module.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Odd while a move runs.
    version: AtomicU64,
    index: AtomicU64,
    offset: AtomicU64,
}

impl Cursor {
    pub(crate) fn new(end: End) -> Self {
        Self {
            version: AtomicU64::new(0),
            index: AtomicU64::new(end.0.0),
            offset: AtomicU64::new(end.1.0),
        }
    }

    /// Moves the cursor. Everything written before is visible to whoever reads the new end.
    /// Only one thread at a time may call this.
    pub(crate) fn store(&self, end: End) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // The odd version must be seen by whoever sees either half of the new end.
        fence(Ordering::Release);
        self.index.store(end.0.0, Ordering::Relaxed);
        self.offset.store(end.1.0, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// The end, whole.
    pub(crate) fn load(&self) -> End {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let index = self.index.load(Ordering::Relaxed);
            let offset = self.offset.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            let after = self.version.load(Ordering::Relaxed);
            if before == after && before.is_multiple_of(2) {
                return (EntryIndex(index), Offset(offset));
            }
            spin();
        }
    }
}
