//! Who reads through the mappings of one use of a segment file.
//!
//! Owns the count of holds: the file may be written again only when its use is retired and nobody holds
//! it any more. One count for all mappings of the use, because a segment may be unmapped and mapped
//! again while slices of the first mapping are still out.

use std::ops::{Deref, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::DiskMap;
use crate::sync::{AtomicUsize, Ordering};

/// The count of holds of one use.
pub(crate) struct Holds {
    count: AtomicUsize,
}

impl Holds {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0) })
    }

    /// Takes a share for a reader: under the lock of the segment's map, and not once it is retired.
    pub(crate) fn hold(self: &Arc<Self>, map: Arc<dyn DiskMap>) -> Hold {
        self.count.fetch_add(1, Ordering::Relaxed);
        Hold { map, holds: Arc::clone(self) }
    }

    /// Whether a reader may still touch the bytes. Once the segment is retired the answer "no" stays
    /// true: new holds come from existing ones only.
    pub(crate) fn any(&self) -> bool {
        // Pairs with the release of the last hold: its reads happen before the file is written again.
        self.count.load(Ordering::Acquire) > 0
    }
}

/// A share of a mapping; the file is not written for another use while it exists.
pub(crate) struct Hold {
    map: Arc<dyn DiskMap>,
    holds: Arc<Holds>,
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.holds.hold(Arc::clone(&self.map))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.count.fetch_sub(1, Ordering::Release);
    }
}

impl Deref for Hold {
    type Target = dyn DiskMap;

    fn deref(&self) -> &Self::Target {
        &*self.map
    }
}

/// Mapped bytes and the hold that keeps them.
struct HeldSlice {
    bytes: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for HeldSlice {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Hold {
    /// Bytes by file positions, to be handed out: they hold the file.
    pub(crate) fn slice(&self, range: Range<u64>) -> Bytes {
        let bytes = self.window(range);
        Bytes::from_owner(HeldSlice { bytes, _hold: self.clone() })
    }

    /// Bytes by file positions, to be dropped before this hold is.
    pub(crate) fn window(&self, range: Range<u64>) -> Bytes {
        let at = |position: u64| usize::try_from(position).expect("a mapped position fits usize");
        let end = at(range.end).min(self.len());
        Arc::clone(&self.map).slice(at(range.start).min(end)..end)
    }
}
