//! Owns queue-mode subscriptions on one partition: the folded state, and the leader's dispatcher, which
//! says who gets which message when. Never appends, reads or sends; never knows a connection. Driven by
//! [`crate::partition`].
//!
//! ```text
//!             read ahead         lease                    ack, committed
//!   unread ------------> ahead --------> leased -----------------------------> settled (acked)
//!                          ^   give_back  | |  nack, deadline, session lost        ^
//!                          +--------------+ +--> returning --committed--> waiting  | dead_done
//!                                         |         |  failures = max     |  due   |
//!                                         |         v                     v        |
//!                          ready again <--+       dying --committed--> dead -------+ (dead)
//!                                 release, session closed
//! ```
//! What is committed lives in [`QueueState`], what only the leader knows in the dispatcher. A new leader
//! builds its dispatcher from the state: losing the rest can only hand a message out again.

mod ahead;
mod attach;
mod breaker;
mod by_hand;
mod check;
mod consumer_name;
mod dispatch;
mod gone;
mod held;
mod keys;
mod members;
mod offset_map;
mod overdue;
mod overflow;
mod rebuild;
mod settle;
mod settled;
mod state;
mod timers;
mod view;

pub(crate) use attach::Holds;
pub use by_hand::{Redrivable, Released};
pub(crate) use consumer_name::cut;
pub use consumer_name::{CONSUMER_BYTES_MAX, ConsumerName};
pub(crate) use dispatch::{Committed, Dispatcher, Leased};
pub(crate) use gone::Gone;
pub(crate) use overflow::excess;
pub(crate) use settle::{Speaks, Verdict};
pub(crate) use settled::merge;
pub use settled::{OffsetRange, SettledSet};
pub use state::{
    DeadCause, DeadLetter, DeadTarget, Failure, QueueState, ReturnCause, SettleHow, Totals,
};
pub(crate) use view::stats_of;
pub use view::{QueueMember, QueueStats, Why};

use std::time::Duration;

use postrider_protocol::error::ErrorBody;
use postrider_protocol::message::{AckRun, LeaseRun, ReturnAction};
use postrider_protocol::types::{EntryIndex, LeaderEpoch, Offset, SubscriptionId};

/// A consumer that is attached to queue subscriptions of this partition: a number of the join's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MemberKey(pub u64);

/// What a consumer is willing to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseCredit {
    /// Messages.
    pub messages: u32,
    /// Bytes. A single message may weigh more.
    pub bytes: u64,
}

/// What the join read of an entry for the dispatcher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// The entry's first message.
    pub first: Offset,
    /// How many messages it holds.
    pub count: u32,
    /// The size of the whole entry.
    pub bytes: u32,
    /// With `key_order`: the hash of each message's key, 0 for a message without one. Else empty.
    pub keys: Vec<u64>,
}

/// What [`crate::partition::Partition::lease`] came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseStep {
    /// Handed out, and recorded: read them and send them.
    Leased {
        /// Which. Offsets rise.
        runs: Vec<LeaseRun>,
        /// The number of the first one; the others follow in order.
        dispatch_number: u64,
        /// One past the last entry that is applied.
        dispatch_index: EntryIndex,
        /// The subscription's epoch.
        sub_epoch: u64,
        /// There is more to hand out beyond this credit: wake the next waiting consumer.
        more: bool,
    },
    /// Read the entries of this range from its beginning, as many as is convenient, at least one; tell
    /// [`crate::partition::Partition::feed`]; ask again.
    LookAhead {
        /// The first offset.
        from: Offset,
        /// One past the last offset that may be read.
        until: Offset,
    },
    /// There is nothing to hand out: wait for `Effect::QueueReady`.
    Idle,
    /// The credit is used up.
    NoCredit,
    /// The request is refused.
    Refused(ErrorBody),
}

/// A consumer is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consumed {
    /// The subscription's epoch.
    pub sub_epoch: u64,
    /// What the consumer holds, of what it said it holds, with the attempts that count now.
    pub held: Vec<LeaseRun>,
}

/// Messages are processed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AckRequest {
    /// The subscription.
    pub id: SubscriptionId,
    /// Who.
    pub member: MemberKey,
    /// The epoch of the leases.
    pub sub_epoch: u64,
    /// The leadership that gave them out.
    pub leader_epoch: LeaderEpoch,
    /// One past the last dispatch number that the consumer has begun with.
    pub started: u64,
    /// Which messages.
    pub runs: Vec<AckRun>,
}

/// Messages are given back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReturnRequest {
    /// The subscription.
    pub id: SubscriptionId,
    /// Who.
    pub member: MemberKey,
    /// The epoch of the leases.
    pub sub_epoch: u64,
    /// The leadership that gave them out.
    pub leader_epoch: LeaderEpoch,
    /// One past the last dispatch number that the consumer has begun with.
    pub started: u64,
    /// Which messages.
    pub runs: Vec<AckRun>,
    /// What becomes of them.
    pub action: ReturnAction,
}

/// Milliseconds of a duration, as many as there are.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
