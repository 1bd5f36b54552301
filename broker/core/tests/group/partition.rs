//! Owns a partition as a group sees it: owner epochs, the acknowledged position, and what has really reached
//! an application. Never more than the rules of `postrider_core::partition`, said naively.

use postrider_core::group::MemberId;

#[derive(Debug, Default)]
pub(crate) struct Partition {
    pub(crate) epoch: u64,
    pub(crate) acked: u64,
    pub(crate) end: u64,
    /// An epoch was asked for and is not committed.
    pub(crate) asked: Option<MemberId>,
    /// What lies below reached an application, since the last seek; a new owner that had to begin
    /// earlier has moved it back.
    pub(crate) seen: u64,
    /// The last owner acknowledged all that it had been given: nothing may come twice.
    pub(crate) is_clean: bool,
}

impl Partition {
    /// A new owner; tells its epoch.
    pub(crate) fn set_owner(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    /// D1, D2: only the newest epoch acknowledges, and only forwards.
    pub(crate) fn ack(&mut self, epoch: u64, up_to: u64) -> bool {
        if epoch != self.epoch {
            return false;
        }
        assert!(up_to <= self.seen, "acknowledged what no application saw");
        self.acked = self.acked.max(up_to);
        true
    }

    /// Moves the subscription. What is to be seen begins there.
    pub(crate) fn seek(&mut self, to: u64) -> u64 {
        self.epoch += 1;
        (self.acked, self.seen, self.is_clean) = (to, to, true);
        self.epoch
    }

    /// C1, D5: where the next owner begins.
    pub(crate) fn begins(&mut self, next: u64) {
        assert_eq!(next, self.acked, "an owner begins where the one before acknowledged");
        assert!(next <= self.seen, "a gap: {next} of {}", self.seen);
        assert!(!self.is_clean || next == self.seen, "a duplicate after a clean drain");
        self.seen = next;
    }

    /// C1: an application is given the next messages.
    pub(crate) fn delivered(&mut self, from: u64, to: u64) {
        assert_eq!(from, self.seen, "in order, each once");
        (self.seen, self.is_clean) = (to, false);
    }
}
