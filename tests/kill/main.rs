//! kill -9 of a real broker under load, again and again.
//!
//! Owns the rounds and their judgement by `bench verify`: what was acknowledged before, during and
//! after the crash is there once, in order, unchanged, and offsets have neither gaps nor repeats.
//! `POSTRIDER_KILLS` sets the rounds, `POSTRIDER_KILL_SEED` the first seed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use postrider_storage::disk_sim::SimRandom;
use postrider_tests::process::{BrokerCommand, RunningBroker, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_postrider-under-test");

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Runs a command to its end; its output explains a failure.
fn succeed(mut command: Command) -> Result<()> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}:\n{text}", output.status);
    Ok(())
}

fn recorded_bytes(state: &Path) -> u64 {
    std::fs::metadata(state).map_or(0, |meta| meta.len())
}

/// One load, one kill at a random moment of it, one restart, one judgement.
fn round(broker: RunningBroker, seed: u64, dir: &Path) -> Result<RunningBroker> {
    let command = broker.command().clone();
    let mut random = SimRandom::new(seed);
    let topic = format!("verify-{seed}");
    let state = dir.join(&topic);
    let state_name = state.to_str().context("a path in UTF-8")?;
    // Sizes on both sides of what makes a group write straight to the segment.
    let size = ["64..512", "512..4096", "16KiB..64KiB"][random.index(3)];
    let producers = (1 + random.index(3)).to_string();
    let mut load = command.client(&["bench", "verify", &topic, "--state", state_name]);
    load.args(["--no-check", "--messages", "6000", "--size", size, "--producers", &producers]);
    let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;

    let enough = 200 + random.below(120_000);
    wait_until("the load has begun or ended", || {
        recorded_bytes(&state) >= enough || matches!(load.try_wait(), Ok(Some(_)))
    })?;
    broker.kill()?;
    let broker = command.start()?;
    let status = load.wait()?;
    ensure!(status.success(), "the load ended with {status} after the broker was killed");

    succeed(command.client(&["bench", "verify", &topic, "--state", state_name, "--check"]))?;
    Ok(broker)
}

#[test]
fn killed_broker_keeps_every_acknowledged_message_once_in_order() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = BrokerCommand::new(BINARY, dir.path())?;
    let first = number("POSTRIDER_KILL_SEED", 1);
    let rounds = number("POSTRIDER_KILLS", 6);
    let mut broker = command.start()?;
    for seed in first..first + rounds {
        broker = round(broker, seed, dir.path())
            .with_context(|| format!("replay: POSTRIDER_KILL_SEED={seed} POSTRIDER_KILLS=1"))?;
    }
    // The data of all rounds is still there after all the crashes.
    for seed in first..first + rounds {
        let topic = format!("verify-{seed}");
        let state = dir.path().join(&topic);
        let state = state.to_str().context("a path in UTF-8")?;
        succeed(command.client(&["bench", "verify", &topic, "--state", state, "--check"]))?;
    }
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}
