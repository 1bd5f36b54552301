//! Owns the rules of replication that need no I/O: which epoch ends where, what a leader may call committed,
//! what a follower keeps, who may lead next. Never sees what entries hold, clocks, sockets or disks. Driven by
//! the model that explores them; nothing else drives them yet.
//!
//! Source: Kafka's KIP-966 with KIP-101/279 and KIP-903, made narrower: the in-sync set never falls below its
//! minimum, an `EpochStart` entry makes every epoch non-empty, and a follower's stream, which it opens, is the only
//! place where it truncates.

pub mod election;
mod epochs;
mod following;
mod leading;

pub use epochs::EpochTable;
pub use following::{Following, FollowingEffect, Records};
pub use leading::{
    AlterIsr, AlterOutcome, Assignment, Leading, LeadingEffect, OpenAnswer, OpenStream,
};

/// The number of changes to one partition's assignment or in-sync set; only rises.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PartitionEpoch(pub u32);
