//! Owns what a group knows of each partition: who has it, for whom it is meant, since when nobody reads it.
//! Never decides who should have it (`assignor` does) and never keeps a time by itself. Driven by the group.

use std::time::Duration;

use super::effect::MemberId;

/// Who has a partition. The diagram stands in the module `group`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Holding {
    /// Nobody.
    #[default]
    Unowned,
    /// Nobody; the partition was asked for an epoch for this member.
    Setting {
        /// For whom.
        member: MemberId,
    },
    /// The member reads it.
    Owned {
        /// Who.
        member: MemberId,
        /// The epoch that it was given.
        granted: u64,
        /// The epoch now: seeks raise it.
        owner_epoch: u64,
    },
    /// The member finishes what it has.
    Draining {
        /// Who.
        member: MemberId,
        /// The epoch that it was given.
        granted: u64,
        /// The epoch now: seeks raise it.
        owner_epoch: u64,
        /// When it loses the partition (monotonic).
        deadline: Duration,
    },
}

impl Holding {
    /// The member that reads, or finishes.
    #[must_use]
    pub fn holder(&self) -> Option<MemberId> {
        match self {
            Self::Unowned | Self::Setting { .. } => None,
            Self::Owned { member, .. } | Self::Draining { member, .. } => Some(*member),
        }
    }
}

/// What a group knows of a partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Who has it.
    pub holding: Holding,
    /// For whom it is meant.
    pub target: Option<MemberId>,
    /// Since when no member reads it, while there are members.
    pub unowned_since: Option<Duration>,
    /// This spell was reported.
    pub(super) is_reported: bool,
    /// Not asked before (monotonic): it refused an owner, or was taken.
    pub(super) not_before: Duration,
    /// The instance id that had it when that was away for too long.
    pub(super) former: Option<String>,
}

impl Place {
    /// Nobody reads it any more.
    pub(super) fn vacate(&mut self, now: Duration) {
        self.holding = Holding::Unowned;
        self.unowned_since.get_or_insert(now);
    }

    /// A member reads it.
    pub(super) fn fill(&mut self, member: MemberId, owner_epoch: u64) {
        self.holding = Holding::Owned { member, granted: owner_epoch, owner_epoch };
        self.unowned_since = None;
        self.is_reported = false;
    }

    /// The group has its first member: what came before counts for nothing.
    pub(super) fn begin(&mut self, now: Duration) {
        self.unowned_since = Some(now);
    }

    /// The group has no members: nobody is missed.
    pub(super) fn rest(&mut self) {
        self.unowned_since = None;
        self.is_reported = false;
    }

    /// When something has to be done about it, if nothing else happens.
    pub(super) fn due(&self, now: Duration, unowned_bound: Duration) -> Option<Duration> {
        let own = match self.holding {
            // Asked already, or its target is away: then the member's deadline is what is due.
            Holding::Unowned => Some(self.not_before).filter(|at| *at > now),
            Holding::Setting { .. } | Holding::Owned { .. } => None,
            Holding::Draining { deadline, .. } => Some(deadline),
        };
        let report = self.unowned_since.filter(|_| !self.is_reported);
        let report = report.map(|since| since.saturating_add(unowned_bound));
        [own, report].into_iter().flatten().min()
    }
}
