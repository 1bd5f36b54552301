//! Owns the decisions about one consumer group: the members that share a stream subscription, and which of
//! them reads which partition. Never sends, never writes an entry, never sees a message. Driven by the join:
//! one [`Group`] per stream subscription with members, behind one lock, ticked.
//!
//! # Hand-over
//!
//! There is no barrier: every partition goes its own way, and one that does not move is left alone.
//!
//! ```text
//!                 target connected                  committed by the partition
//!   Unowned ───────────────────────▶ Setting ───────────────────────────────▶ Owned ──┐
//!      ▲        effect SetOwner         │           effect Assign                     │ target is
//!      │                                │ refused, or the target changed meanwhile    │ another
//!      │◀───────────────────────────────┘                                             ▼ effect Revoke
//!      │        released, deadline passed (effect Lost), member gone              Draining
//!      └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The position comes with the grant, from the entry that fences the owner before (`SetOwner` in the
//! partition's log): so there is never a gap, and duplicates only of what an owner did and did not
//! acknowledge. What keeps two owners apart is the owner epoch in the partition, not this machine: the
//! group may be lost at any time, and members go on with what they hold.
//!
//! # How to drive a group
//!
//! - Every [`Effect::SetOwner`] is answered once, by [`Group::owner_set`] or [`Group::owner_refused`].
//! - A member's connection ended: [`Group::lost`]. It leaves in good order: [`Group::leave`].
//! - A member that comes back joins again, and names who it was; it is a new member with the old one's
//!   partitions, so nothing that its old connection still says counts.
//! - The subscription was moved: [`Group::sought`] with the partition's new epoch. A reader outside the
//!   group took a partition: [`Group::taken`].
//! - [`Group::tick`] several times a second. A longer silence than [`GroupOptions::stall`] means that this
//!   process stood still: it prolongs everyone's deadline by as much.
//! - Effects are carried out in order, after the lock is released or under it: what a member is told about
//!   a partition must reach it in the order of the effects.

mod assignor;
mod coordinator;
mod effect;
mod members;
mod places;

pub use assignor::{Claim, assign};
pub use coordinator::Group;
pub use effect::{Effect, FenceReason, GroupOptions, Join, JoinError, Leave, MemberId, Released};
pub use members::Member;
pub use places::{Holding, Place};
