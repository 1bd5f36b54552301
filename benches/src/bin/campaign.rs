//! Runs the benchmarks of `benches/README.md` against a broker of this build, several rounds each, and
//! prints the table. Exit code 1 if a load failed; missed goals are shown, not failed, because machines
//! differ.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use postrider_benches::figure::Figures;
use postrider_benches::workload::Bench;
use postrider_benches::{start, workload};
use postrider_tests::process::BrokerCommand;

/// Groups of figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Group {
    /// First publish after the start, idle memory.
    Start,
    /// Produce, replay, latency.
    Throughput,
    /// Back after kill -9 with a large log.
    Restart,
    /// 10,000 partitions.
    Partitions,
}

/// Measure every figure of benches/README.md.
#[derive(Parser, Debug)]
struct Options {
    /// Rounds of each group
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The binary to measure
    #[arg(long, default_value = "target/release/postrider")]
    binary: PathBuf,
    /// Where the brokers' data lies meanwhile: a folder on the disk to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Only these groups; repeat for more
    #[arg(long)]
    only: Vec<Group>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let binary = options.binary.canonicalize();
    let binary = binary.with_context(|| {
        format!("{}: build it with `cargo build --release`", options.binary.display())
    })?;
    ensure!(options.rounds > 0, "--rounds: at least one");
    let groups = if options.only.is_empty() { Group::value_variants() } else { &options.only };
    let mut figures = Figures::default();
    for group in groups {
        for round in 1..=options.rounds {
            say(&format!("{group:?} {round} of {}", options.rounds));
            let dir = tempfile::tempdir_in(&options.dir)?;
            if let Err(error) = run(*group, &binary, dir.path(), &mut figures) {
                show(&figures.table());
                return Err(error);
            }
        }
    }
    show(&figures.table());
    Ok(())
}

fn run(group: Group, binary: &Path, dir: &Path, figures: &mut Figures) -> Result<()> {
    match group {
        Group::Start => {
            start::first_publish(binary, &sub(dir, "first")?, figures)?;
            start::idle(binary, &sub(dir, "idle")?, figures)
        }
        Group::Restart => start::restart(binary, dir, figures),
        Group::Throughput | Group::Partitions => {
            let command = BrokerCommand::new(binary, dir)?;
            let broker = command.start()?;
            let bench = Bench::new(&command, dir);
            if group == Group::Throughput {
                workload::throughput(&bench, figures)?;
            } else {
                workload::partitions(&bench, broker.pid(), figures)?;
            }
            let status = broker.terminate()?;
            ensure!(status.success(), "the broker ended with {status}");
            Ok(())
        }
    }
}

fn sub(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    std::fs::create_dir(&path)?;
    Ok(path)
}

#[expect(clippy::print_stderr, reason = "progress of a command-line tool")]
fn say(text: &str) {
    eprintln!("{text}");
}

#[expect(clippy::print_stdout, reason = "the result of a command-line tool")]
fn show(text: &str) {
    println!("{text}");
}
