//! The load tools: `postrider bench`.
//!
//! Parents are `produce`, `consume`, `end_to_end`, `queue` and `verify`, one per verb. What they share:
//! `schedule` (when each message is meant to leave), `pacer` (sleeping until then), `meter` (counters and
//! latencies of the running test), `load` (one publishing connection), `setup` (topic and connections),
//! `process` (CPU and memory of the broker), `report` (the result), `payload`, `stamp`.

pub(crate) mod args;
mod consume;
mod end_to_end;
mod fail_if;
mod load;
mod meter;
mod pacer;
mod payload;
mod process;
mod produce;
mod queue;
mod report;
mod schedule;
mod setup;
mod stamp;
mod verify;

use args::BenchCommand;

use crate::exit::Outcome;

/// Runs one verb.
pub(crate) fn run(command: &BenchCommand) -> Outcome {
    match command {
        BenchCommand::Produce(options) => produce::run(options),
        BenchCommand::Consume(options) => consume::run(options),
        BenchCommand::EndToEnd(options) => end_to_end::run(options),
        BenchCommand::Queue(options) => queue::run(options),
        BenchCommand::Verify(options) => verify::run(options),
    }
}
