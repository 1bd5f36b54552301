//! Owns the decisions about one partition: the folded state, and its leadership. Never appends, reads or
//! sends. Driven by the join; `lib.rs` says in which order.

mod acks;
mod bounds;
mod by_hand;
mod command;
mod delay_snapshot;
mod delays;
mod effect;
mod expiry;
mod keyed_publish;
mod keys;
mod leader;
mod producers;
mod publish;
mod queue_commands;
mod queue_commits;
mod queue_ops;
mod queue_snapshot;
mod queues;
mod sessions;
mod snapshot;
mod state;
mod subscribe;
mod subscriptions;

pub use command::{
    CommandError, Settled, Settlement, StateCommand, SubscribeStart, SubscriptionMode,
};
pub use delays::{DelayedChange, Payload, ReleasedChange};
pub use effect::{
    Appended, ConnectionId, Decision, Effect, EntryDraft, OwnerChange, PartitionIdentity,
    PartitionLimits, PendingAppend, PublishRequest, Refusal, StateCommitted,
};
pub use expiry::{Aged, ExpiryAsk};
pub use keys::{EntryKeys, Keyed, read_keys};
pub use leader::Partition;
pub use producers::{DataChange, ProducerSession, Producers, Run, RunPlace};
pub use queue_commands::{DeadDone, DeadIntent, REASON_BYTES_MAX, Returned, SettledRuns};
pub use snapshot::{SnapshotDraft, SnapshotError};
pub use state::{APPLY_VERSION, AppliedEntry, ApplyError, Change, EpochRange, PartitionState};
pub use subscribe::AckUpTo;
pub use subscriptions::{SubscriptionState, Subscriptions};
