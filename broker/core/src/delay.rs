//! Owns the messages of a partition that wait for a time of their publisher's choice. Never decides what is
//! appended (the partition's leader does). Driven by `partition`.
//!
//! ```text
//!   Delayed entry ─────────▶ pending ── due: one Data entry that names it ──▶ released (has offsets)
//!   index, deliver_at          │
//!                              └─ DelayCancel entry ─▶ cancelled, or lost (it could not be read)
//! ```
//! [`DelayLane`] is folded, by index; [`Agenda`] is the leader's, by time, and gone with it. A Data entry that
//! names an entry removes it from the lane and gives offsets, in one: nothing is released twice, whatever
//! crashes when. What is remembered is one record per entry, not per message, and no payload.

mod agenda;
mod lane;

pub use agenda::{Agenda, Due};
pub use lane::{CancelHow, DelayLane, DelayTotals, Ended, EndedHow, Pending};
