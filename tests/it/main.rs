//! One real broker process at a time, through its ports, its signals and its exit code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod bad_input;
mod bounded;
mod client;
mod command_line;
mod delays;
mod groups;
mod hostile;
mod keys;
mod life;
mod pattern;
mod priority;
mod queue;
mod round_trip;
mod shell;

use std::path::Path;

use anyhow::Result;
use postrider_tests::process::BrokerCommand;

/// The broker of this build with its data below `dir`.
fn broker(dir: &Path) -> Result<BrokerCommand> {
    BrokerCommand::new(env!("CARGO_BIN_EXE_postrider-under-test"), dir)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
