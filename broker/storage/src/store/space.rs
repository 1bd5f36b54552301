//! Which appends may still take space, so that an accepted entry always finds room.
//!
//! Owns an estimate of the free bytes: measured now and then, less everything allocated and promised
//! since. Never asks the disk itself.
//!
//! Why an accepted entry fits. At `append` an entry is assigned to a segment: either the log's newest
//! one, whose file is allocated and has room even if every byte before it is framed in the most
//! wasteful way, or a new one, whose whole length is promised here first. Data entries may not promise
//! away the reserve; state entries may. Files come out of promises before anything of a group is
//! written, so a full disk is met when nothing has happened yet. The estimate can be wrong only when
//! somebody else fills the disk; then the entries wait in their log, unacknowledged and in order, until
//! space returns.

use crate::sync::{AtomicBool, Mutex, Ordering};

/// A new journal file takes at most one part in so many of the free space, or what its group needs.
const JOURNAL_SHARE: u64 = 16;

/// Who asks for space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// Messages: leave the reserve alone.
    Data,
    /// State, trims, drops, journal, snapshots: may use the reserve.
    State,
}

#[derive(Debug)]
struct Account {
    /// Free bytes at the last measurement, less what was allocated since.
    free: u64,
    /// Promised, not yet allocated.
    promised: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    account: Mutex<Account>,
    reserve: u64,
    full: AtomicBool,
}

impl Space {
    /// `reserve_bytes` is cut to a quarter of what is free, so that a small disk is usable at all.
    pub(crate) fn new(free: u64, reserve_bytes: u64) -> Self {
        Self {
            account: Mutex::new(Account { free, promised: 0 }),
            reserve: reserve_bytes.min(free / 4),
            full: AtomicBool::new(false),
        }
    }

    /// Whether data entries are refused. A hint between appends, hence relaxed.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(crate) fn set_full(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// Promises the most of `want`, half of it, ... that is there, but no less than `need`.
    pub(crate) fn promise(&self, want: u64, need: u64, claim: Claim) -> Option<u64> {
        let mut account = self.account.lock();
        let kept = if claim == Claim::Data { self.reserve } else { 0 };
        let left = account.free.saturating_sub(account.promised).saturating_sub(kept);
        let mut bytes = want.max(need);
        while bytes > left {
            if bytes == need {
                return None;
            }
            bytes = (bytes / 2).max(need);
        }
        account.promised += bytes;
        Some(bytes)
    }

    /// Ends a promise: `allocated` bytes of it were taken from the disk.
    pub(crate) fn settle(&self, promised: u64, allocated: u64) {
        let mut account = self.account.lock();
        account.promised = account.promised.saturating_sub(promised);
        account.free = account.free.saturating_sub(allocated);
    }

    /// Takes over a measurement and leaves the full state when there is room above the reserve again.
    pub(crate) fn measure(&self, free: u64) {
        let mut account = self.account.lock();
        account.free = free;
        let left = free.saturating_sub(account.promised);
        if left < self.reserve {
            self.full.store(true, Ordering::Relaxed);
        } else if left >= self.reserve + self.reserve / 8 && left > 0 {
            // The margin keeps the state from flapping around the reserve.
            self.full.store(false, Ordering::Relaxed);
        }
    }

    pub(crate) fn free(&self) -> u64 {
        self.account.lock().free
    }

    /// The longest journal file that should be made now: a small part of what is left, so that the
    /// journal of a small or filling disk does not take the room that messages came for.
    pub(crate) fn journal_file_max(&self) -> u64 {
        let account = self.account.lock();
        account.free.saturating_sub(account.promised) / JOURNAL_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_leaves_the_reserve_to_state() {
        let space = Space::new(1000, 200);
        assert_eq!(space.promise(800, 800, Claim::Data), Some(800));
        assert_eq!(space.promise(1, 1, Claim::Data), None);
        assert_eq!(space.promise(200, 200, Claim::State), Some(200));
        assert_eq!(space.promise(1, 1, Claim::State), None);
        space.settle(800, 0);
        assert_eq!(space.promise(700, 600, Claim::Data), Some(600));
    }

    #[test]
    fn promise_shrinks_to_what_is_left_but_not_below_the_need() {
        let space = Space::new(1000, 0);
        assert_eq!(space.promise(3000, 100, Claim::Data), Some(750));
        assert_eq!(space.promise(3000, 300, Claim::Data), None);
    }

    #[test]
    fn full_ends_only_with_a_margin() {
        let space = Space::new(10_000, 800);
        space.measure(700);
        assert!(space.is_full());
        space.measure(810);
        assert!(space.is_full());
        space.measure(900);
        assert!(!space.is_full());
    }
}
