//! Owns scenarios of queue subscriptions, each named by what it shows, told through `Partition` alone.
//! Random histories are in `queue_model`; here is what a reader can follow, and what a random history
//! meets too seldom. The letters are those of the properties that consumers are promised:
//!
//! ```text
//! B3 an ack is final                        B10 an ack of an old lease settles no newer one
//! B7 failures rise, none goes out at max    C2  a key's messages go one after the other
//! B8 nothing goes out before it is due      C3  one consumer at a time, with single_active
//! B9 one valid lease at most                L3  no lease without an end, nothing ready forgotten
//! ```
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
