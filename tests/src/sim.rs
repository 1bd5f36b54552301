//! Whole-system simulation: the production broker (join, core, store) and the production client engine in
//! one thread, over a simulated network, disk and clock, judged by an oracle on histories. Owns nothing
//! that production uses; knows no runtime, socket, file or real clock. Driven by `tests/sim`.
//!
//! ```text
//!   World: clock, dice, faults ──┬─► Client: engine + applications ──┐
//!                                ├─► Network: pipes of bytes         ├──► Oracle: what was sent, told, seen
//!                                └─► Server: broker + sessions + disk┘    (judges during and after the run)
//! ```
//! A seed replays bit for bit: the same seed gives the same trace and the same trace hash.

mod client;
mod consumer;
mod copyist;
mod group_oracle;
mod group_tamper;
mod group_tap;
mod letters;
mod member;
mod network;
mod oracle;
mod queue_oracle;
mod queue_tamper;
mod queues;
mod reader;
mod server;
mod tamper;
mod tap;
mod trace;
mod world;

pub use group_oracle::GroupFigures;
pub use queue_oracle::QueueFigures;
pub use tamper::Planted;
pub use world::{Cast, Figures, Report, run};
