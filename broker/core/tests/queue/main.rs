//! Owns scenarios of queue subscriptions, each named by what it shows, told through `Partition` alone.
//! Random histories are in `queue_model`; here is what a reader can follow, and what a random history
//! meets too seldom. The letters are those of `docs/PROPERTIES.md`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bounds;
mod breaker;
mod expiry;
mod failures;
mod leases;
mod order;
mod sessions;
mod snapshot;
mod stage;
