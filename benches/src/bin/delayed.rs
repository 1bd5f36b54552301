//! Measures delayed messages against a broker of this build: what a million of them cost in memory while they
//! wait, and how late they are released. Prints the figures; judges nothing.
//!
//! Every message has a time of its own, in random order, so that each is an entry of its own: the most that
//! memory can be asked for. Lateness is append time less due time, as each message tells it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use postrider::{Client, NewTopic, Raw, Record, Start};
use postrider_protocol::types::TimestampMs;
use postrider_tests::process::{BrokerCommand, RunningBroker};

/// Measure memory and lateness of delayed messages.
#[derive(Parser, Debug)]
struct Options {
    /// The binary to measure
    #[arg(long, default_value = "target/release/postrider")]
    binary: PathBuf,
    /// Where the broker's data lies meanwhile
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How many messages are delayed
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Their size in bytes
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Seconds from the first publish to the first release: long enough to publish all
    #[arg(long, default_value_t = 60)]
    lead: u64,
    /// Seconds over which they are due
    #[arg(long, default_value_t = 60)]
    spread: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let binary = options.binary.canonicalize();
    let binary = binary.with_context(|| {
        format!("{}: build it with `cargo build --release`", options.binary.display())
    })?;
    let dir = tempfile::tempdir_in(&options.dir)?;
    let broker = BrokerCommand::new(&binary, dir.path())?.start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&options, &broker))
}

async fn measure(options: &Options, broker: &RunningBroker) -> Result<()> {
    let client = Client::builder(broker.command().url()).connect().await?;
    client.admin().create_topic(NewTopic::new("later")).await?;
    let producer = client.producer::<Raw>("later").build().await?;
    producer.send(Record::new("first")).await?;
    let before = Memory::of(broker.pid())?;
    let first_due = wall_ms() + options.lead * 1_000;
    let mut chance = 1_u64;
    for _ in 0..options.messages {
        chance =
            chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let due = first_due + (chance >> 33) % (options.spread * 1_000).max(1);
        let mut value = due.to_string().into_bytes();
        value.resize(options.size.max(value.len()), b' ');
        let _ack = producer.enqueue(Record::new(value).deliver_at(TimestampMs(due))).await?;
    }
    producer.flush().await?;
    let spare_ms = first_due.saturating_sub(wall_ms());
    show("published, before the first is due (ms)", spare_ms as f64);
    anyhow::ensure!(spare_ms > 0, "publishing took longer than --lead {}", options.lead);
    let pending = broker.metric("postrider_delayed_pending")?;
    show("pending", pending);
    let after = Memory::of(broker.pid())?;
    show("anonymous memory they cost (MB)", after.anonymous_mb - before.anonymous_mb);
    show("resident memory they cost, file pages included (MB)", after.all_mb - before.all_mb);
    let mut late = read(&client, options.messages).await?;
    late.sort_unstable();
    let at = |percent: usize| late.get(late.len() * percent / 100).copied().unwrap_or(0) as f64;
    show("released", late.len() as f64);
    show("late p50 (ms)", at(50));
    show("late p99 (ms)", at(99));
    show("late max (ms)", late.last().copied().unwrap_or(0) as f64);
    let end = Memory::of(broker.pid())?;
    show(
        "anonymous memory after all, less that before (MB)",
        end.anonymous_mb - before.anonymous_mb,
    );
    Ok(())
}

/// Reads all released messages as they come; tells how late each was.
async fn read(client: &Client, count: u64) -> Result<Vec<u64>> {
    let mut reader = client.reader::<Raw>("later").from(Start::Earliest).open().await?;
    let mut late = Vec::new();
    while (late.len() as u64) < count {
        let message = reader.next_message().await.context("the stream goes on")??;
        let text = std::str::from_utf8(&message.value)?.trim_end();
        // The first one was not delayed.
        if let Ok(due) = text.parse::<u64>() {
            let append_ms = message.append_time.0;
            anyhow::ensure!(due <= append_ms, "due at {due}, released at {append_ms}");
            late.push(append_ms - due);
        }
    }
    Ok(late)
}

struct Memory {
    all_mb: f64,
    anonymous_mb: f64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let status =
            std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
        let mb = |name: &str| -> Result<f64> {
            let line =
                status.lines().find(|line| line.starts_with(name)).context("no such line")?;
            let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
            Ok(kib * 1_024.0 / 1e6)
        };
        Ok(Self { all_mb: mb("VmRSS:")?, anonymous_mb: mb("RssAnon:")? })
    }
}

fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::print_stdout, reason = "the result of a command-line tool")]
fn show(what: &str, value: f64) {
    println!("{what}: {value:.1}");
}
