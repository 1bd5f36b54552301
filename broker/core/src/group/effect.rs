//! Owns what goes into and comes out of a group: requests, effects, bounds. Never decides. Driven by the
//! join, which carries effects out.

use std::time::Duration;

use postrider_protocol::types::{Offset, PartitionId};

/// A member of a group; never used again by this group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(pub u64);

/// The times of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupOptions {
    /// A member may ask for a session timeout between these two.
    pub session_timeout_min: Duration,
    /// A member may ask for a session timeout between these two.
    pub session_timeout_max: Duration,
    /// How long after its connection broke a member without an instance id may come back; never longer
    /// than its session timeout, which is what a member with an instance id has.
    pub reconnect_timeout: Duration,
    /// How long a member may finish what it has of a partition that is taken from it.
    pub drain_timeout: Duration,
    /// After how long a partition that refused an owner is asked again.
    pub retry: Duration,
    /// A partition without an owner for this long is reported.
    pub unowned_bound: Duration,
    /// A longer time between two ticks is a standstill of this process and counts for no deadline.
    pub stall: Duration,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            session_timeout_min: Duration::from_secs(1),
            session_timeout_max: Duration::from_secs(300),
            reconnect_timeout: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(30),
            retry: Duration::from_millis(500),
            unowned_bound: Duration::from_secs(60),
            stall: Duration::from_secs(2),
        }
    }
}

/// Who wants to be a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    /// The member that it was before its connection broke. If the group does not know it any more it
    /// joins as anybody.
    pub resumes: Option<MemberId>,
    /// A name that stays over restarts. Whoever comes with it takes the partitions of the member that
    /// has it, and fences that member.
    pub instance: Option<String>,
    /// Without a heartbeat for this long, a member is taken for dead.
    pub session_timeout: Duration,
}

/// Why somebody does not become a member. The group is as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// As many as allowed.
    #[error("the group has {max} members, as many as allowed")]
    Full {
        /// How many that is.
        max: usize,
    },
    /// Two processes take one instance id from each other; the one that has it keeps it.
    #[error(
        "the instance id was taken over {swaps} times within a minute while its holder was alive: two \
         processes use it; give each its own"
    )]
    InstanceFlaps {
        /// How often.
        swaps: usize,
    },
}

/// How a member leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// For good: its partitions are given away at once.
    Release,
    /// It will be back within its session timeout (instance id) or the reconnect timeout.
    KeepPlace,
}

/// What a member's release came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// The partition is handed over.
    Done,
    /// The member did not have the partition any more: the release crossed with a loss.
    Stale,
    /// The partition was not revoked: the member keeps it.
    NotRevoked,
}

/// Why a member is one no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceReason {
    /// No heartbeat within its session timeout.
    TimedOut,
    /// Another process joined with its instance id, or it joined again itself.
    Replaced,
    /// The subscription was deleted.
    Deleted,
}

/// What the join has to carry out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the partition for a new owner epoch for the member; fences the owner before.
    SetOwner {
        /// Which.
        partition: PartitionId,
        /// For whom.
        member: MemberId,
    },
    /// The member reads the partition from `next` on.
    Assign {
        /// Who.
        member: MemberId,
        /// What.
        partition: PartitionId,
        /// To be sent with acknowledgements.
        owner_epoch: u64,
        /// Everything below is acknowledged.
        next: Offset,
    },
    /// The member gets nothing more of the partition. It finishes what it has, acknowledges, releases.
    Revoke {
        /// Who.
        member: MemberId,
        /// What.
        partition: PartitionId,
        /// The epoch of its ownership.
        owner_epoch: u64,
        /// When it will have lost the partition.
        deadline: Duration,
    },
    /// The partition is taken without waiting any longer: what it has not acknowledged comes again,
    /// elsewhere.
    Lost {
        /// Who.
        member: MemberId,
        /// What.
        partition: PartitionId,
        /// The epoch of its ownership.
        owner_epoch: u64,
    },
    /// The member is one no longer, and has no partitions.
    Fenced {
        /// Who.
        member: MemberId,
        /// Why.
        reason: FenceReason,
    },
    /// A partition of a group with members has had no owner for longer than the bound. Once per spell.
    Unowned {
        /// Which.
        partition: PartitionId,
        /// Since when (monotonic).
        since: Duration,
    },
}
