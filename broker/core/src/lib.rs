//! Every decision of the broker, sans I/O: requests, time and progress come in as values, entries to
//! append and effects go out as values. The same code runs in production and in the simulator.
//!
//! # How to drive a partition
//!
//! One [`partition::Partition`] per partition that this broker leads, behind one lock, beside its log.
//! All calls for one partition happen under that lock; effects are carried out after it is released.
//!
//! **Open.** Take the newest snapshot that [`PartitionState::decode_snapshot`] accepts, or
//! `PartitionState::default()`. Read all entries from [`PartitionState::end`] on; give each to
//! [`AppliedEntry::from_entry`] and [`PartitionState::apply`]. Where storage reports damage or lost
//! entries, call [`PartitionState::skip_damage`] with the position behind them. Everything that recovery
//! has kept is durable, so all of it is applied. Then [`Partition::new`]. If `apply` fails the partition
//! stays closed, with the error in the log.
//!
//! ```text
//! state from snapshot --apply--apply--skip_damage--apply--> end of the log --> Partition::new
//! ```
//!
//! **Subscriptions first.** Call [`Partition::require_subscriptions`] with the topic's durable
//! subscriptions from the metadata image, then [`Partition::subscribe`] for each in
//! [`Partition::required`], starting where [`metadata::Subscription::start_on`] says. Until their entries
//! are appended, publishes are `Throttled`. For a subscription that the image no longer has, call
//! [`Partition::unsubscribe`].
//!
//! **Decide.** `publish`, `subscribe`, `ack_up_to`, `seek`, `set_owner`, `unsubscribe` return a
//! [`Decision`] and push answers that are ready into `effects`:
//!
//! - `Append(pending)`: append now, under the same lock, before any other call:
//!   ```text
//!   while let Some(draft) = pending.next_entry() {
//!       match log.append(draft) {
//!           Ok(appended) => partition.appended(&mut pending, appended),
//!           Err(refusal) => { partition.append_failed(pending, refusal, effects); break }
//!       }
//!   }
//!   ```
//!   There may be an `EpochStart` before the first entry of a leadership, and a `Settle` with waiting
//!   acknowledgements before a state entry. Nobody else appends to the log.
//! - `Waits`: the answer comes with an entry that is in flight.
//! - `Done`: the answer is among the effects.
//!
//! **Advance.** When storage says that `ready_end` moved, call [`Partition::advance`] with it, then append
//! what [`Partition::poll_append`] returns, until it is `None`. `ready_end` is what makes an answer true:
//! core believes it without question. Pass a value that was read under the lock or before.
//!
//! **Fail.** When storage has failed, advance to the last `ready_end`, then [`Partition::fail`]: the rest
//! becomes Unknown. The partition answers `StorageFailed` from then on.
//!
//! **Snapshot.** [`PartitionState::encode_snapshot`] of [`Partition::state`] covers everything below
//! [`Partition::high_watermark`], whose index belongs to the snapshot.
//!
//! **Queues.** [`Partition::set_queue_policy`] for each queue subscription when the partition is opened,
//! and [`Partition::set_dead_letter_target`] if the topic exists. Then `consume`, and in turns `lease`:
//! `LookAhead` is answered with `feed`, `Leased` with the messages, or with `give_back`. `ack`,
//! `give_return`, `seek`, `purge`, `evict` and `dead_done` are decisions as above. `Effect::QueueReady`
//! wakes a consumer that was told `Idle`. [`Partition::tick_queues`] when
//! [`Partition::next_queue_wake`] says so.
//!
//! **Now and then.** [`Partition::expire_sessions`] every few minutes, until it is `None`;
//! [`retention::expired`] and [`thinning::thinned`] every few seconds.
//!
//! # How to drive a consumer group
//!
//! [`group`] says it. A group writes nothing itself: it asks for owner epochs, which partitions commit.
//!
//! # What is durable when
//!
//! | effect | what is below `ready_end` when it appears |
//! |---|---|
//! | `Confirm` with `Committed` or `Duplicate` | every message of the run |
//! | `Confirm` with `Rejected` | nothing of it, and this request will never change that |
//! | `Confirm` with `Unknown` | not known |
//! | `Released` | with ack level none: the batch. After a redirect: nothing yet |
//! | `Committed`, `OwnerChanged`, `Settled` | the entry that says so |
//! | `Refused` | nothing of it, unless the code's class is Unknown |
//!
//! Each publish with ack level quorum or leader (the same on one broker) is answered exactly once per
//! sequence; a retry of what is in flight moves the answer to the newest route. With ack level none
//! success is not confirmed, only refusals are.
//!
//! # Accounting of publish bytes
//!
//! Charge a route with the batch's body length when the decision is `Append` or `Waits`; discharge what
//! `Confirm` and `Released` carry. The sum over both comes out even, also when an append is refused.
//!
//! # Leader epochs
//!
//! On a single broker a leadership begins with the process: `leader_epoch` is the broker's incarnation
//! from [`metadata::Command::RegisterBroker`], which rises with every start. A publish that names another
//! one is refused (`StaleLeaderEpoch`, `NotLeader`), so a client asks for metadata after a reconnect.
//!
//! # Routes
//!
//! `R` is opaque. Publishes of one connection must come with routes that mean the same session: confirms
//! of neighbouring batches of one connection are merged into the first one's effect.
//!
//! [`PartitionState::decode_snapshot`]: partition::PartitionState::decode_snapshot
//! [`PartitionState::encode_snapshot`]: partition::PartitionState::encode_snapshot
//! [`PartitionState::end`]: partition::PartitionState::end
//! [`PartitionState::apply`]: partition::PartitionState::apply
//! [`PartitionState::skip_damage`]: partition::PartitionState::skip_damage
//! [`AppliedEntry::from_entry`]: partition::AppliedEntry::from_entry
//! [`Decision`]: partition::Decision
//! [`Partition::new`]: partition::Partition::new
//! [`Partition::state`]: partition::Partition::state
//! [`Partition::advance`]: partition::Partition::advance
//! [`Partition::fail`]: partition::Partition::fail
//! [`Partition::subscribe`]: partition::Partition::subscribe
//! [`Partition::unsubscribe`]: partition::Partition::unsubscribe
//! [`Partition::required`]: partition::Partition::required
//! [`Partition::require_subscriptions`]: partition::Partition::require_subscriptions
//! [`Partition::poll_append`]: partition::Partition::poll_append
//! [`Partition::expire_sessions`]: partition::Partition::expire_sessions
//! [`Partition::high_watermark`]: partition::Partition::high_watermark
//! [`Partition::set_queue_policy`]: partition::Partition::set_queue_policy
//! [`Partition::set_dead_letter_target`]: partition::Partition::set_dead_letter_target
//! [`Partition::tick_queues`]: partition::Partition::tick_queues
//! [`Partition::next_queue_wake`]: partition::Partition::next_queue_wake
#![forbid(unsafe_code)]
#![deny(
    clippy::iter_over_hash_type,
    clippy::wildcard_enum_match_arm,
    clippy::let_underscore_must_use
)]

pub mod cursors;
pub mod dedup;
pub mod delay;
pub mod delivery;
pub mod group;
pub mod handshake;
pub mod limits;
pub mod metadata;
mod now;
pub mod partition;
pub mod queue;
pub mod replica;
pub mod retention;
pub mod thinning;

pub use now::Now;
