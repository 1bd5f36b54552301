//! The load tools: `postrider bench`.
//!
//! Parents are `produce`, `consume`, `end_to_end` and `verify`, one per verb. What they share: `schedule`
//! (when each message is meant to leave), `pacer` (sleeping until then), `meter` (counters and latencies
//! of the running test), `process` (CPU and memory of the broker), `report` (the result), `payload`.

pub(crate) mod args;
pub(crate) mod fail_if;
pub(crate) mod meter;
pub(crate) mod pacer;
pub(crate) mod payload;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod schedule;
pub(crate) mod verify;
