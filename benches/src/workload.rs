//! Owns the workloads that run `postrider bench` against a broker, and what is taken from their results.
//!
//! Never measures itself: the load tool does. Driven by the campaign.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postrider::{Client, Raw, Record};
use postrider_tests::process::BrokerCommand;
use serde_json::Value;

use crate::figure::{Figures, Goal};

/// Messages of 1 KiB that a round writes to new files.
const NEW_MESSAGES: &str = "2000000";
/// Messages of 100 bytes.
const SMALL_MESSAGES: &str = "10000000";

/// A broker, and where results go.
#[derive(Debug)]
pub struct Bench<'a> {
    command: &'a BrokerCommand,
    result: PathBuf,
}

impl<'a> Bench<'a> {
    /// Runs against the broker of `command`; results lie in `dir` for a moment.
    #[must_use]
    pub fn new(command: &'a BrokerCommand, dir: &Path) -> Self {
        Self { command, result: dir.join("result.json") }
    }

    /// Runs a client command to its end.
    ///
    /// # Errors
    /// It failed; the error holds what it said.
    pub fn client(&self, args: &[&str]) -> Result<()> {
        let output = self.command.client(args).stdout(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?} ended with {}: {text}", output.status);
        Ok(())
    }

    /// Runs one load and returns its result document.
    ///
    /// # Errors
    /// The load failed or left no result.
    pub fn load(&self, args: &[&str]) -> Result<Value> {
        let result = self.result.to_str().context("a path in UTF-8")?;
        let args = [&["bench"], args, &["--report-interval", "0", "--json", result]].concat();
        self.client(&args)?;
        Ok(serde_json::from_slice(&std::fs::read(&self.result)?)?)
    }
}

/// A number of a result document.
///
/// # Errors
/// It is not there.
pub fn number(result: &Value, path: &str) -> Result<f64> {
    let value = result.pointer(path).and_then(Value::as_f64);
    value.with_context(|| format!("the result has no number {path}: {result}"))
}

const RATE: &str = "/msgs_per_s";
const SERVER_CPU: &str = "/server_cpu_s_per_million";
const CLIENT_CPU: &str = "/client_cpu_s_per_million";
const P50: &str = "/latency_us/p50";
const P99: &str = "/latency_us/p99";
const ANONYMOUS: &str = "/server_rss_anonymous_mb";

/// One round of everything that a broker on an empty directory can be asked in a row.
///
/// # Errors
/// A load failed.
pub fn throughput(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    produce(bench, figures)?;
    replay(bench, figures)?;
    latency(bench, figures)?;
    recycled(bench, figures)
}

fn produce(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let new = bench.load(&["produce", "new-1k", "--size", "1KiB", "--messages", NEW_MESSAGES])?;
    figures.add("produce 1 KiB, new files", "msg/s", Goal::AtLeast(400e3), number(&new, RATE)?);
    figures.add("  its broker CPU", "s per million", Goal::None, number(&new, SERVER_CPU)?);
    let whole = bench.load(&["consume", "new-1k"])?;
    figures.add("replay 1 KiB, one consumer", "msg/s", Goal::AtLeast(2e6), number(&whole, RATE)?);
    let small = bench.load(&["produce", "small", "--size", "100", "--messages", SMALL_MESSAGES])?;
    figures.add("produce 100 B", "msg/s", Goal::AtLeast(4e6), number(&small, RATE)?);
    figures.add("  broker CPU at 100 B", "s per million", Goal::None, number(&small, SERVER_CPU)?);
    Ok(())
}

fn replay(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let small = bench.load(&["consume", "small"])?;
    figures.add("replay 100 B, one consumer", "msg/s", Goal::AtLeast(10e6), number(&small, RATE)?);
    // The first part was written before what the page cache is kept for, and comes from the disk.
    let cold = bench.load(&["consume", "new-1k"])?;
    figures.add("  1 KiB, partly from the disk", "msg/s", Goal::None, number(&cold, RATE)?);
    let fan = ["consume", "new-1k", "--consumers", "10", "--messages", "500000"];
    let fan = bench.load(&fan)?;
    let goal = Goal::AtLeast(1.2e6);
    figures.add("replay 1 KiB to 10 subscribers", "deliveries/s", goal, number(&fan, RATE)?);
    let live = ["e2e", "fan", "--consumers", "10", "--size", "1KiB", "--duration", "5s"];
    let live = bench.load(&live)?;
    figures.add("live 1 KiB to 10 subscribers", "deliveries/s", goal, number(&live, RATE)?);
    Ok(())
}

fn latency(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let many = ["produce", "c64", "--producers", "64", "--in-flight", "1", "--duration", "8s"];
    let many = bench.load(&[&many[..], &["--warmup", "2s", "--size", "1KiB"]].concat())?;
    let goal = Goal::AtLeast(50e3);
    figures.add("64 connections, one in flight each", "msg/s", goal, number(&many, RATE)?);
    let paced = ["produce", "paced", "--rate", "1000", "--duration", "10s", "--warmup", "2s"];
    let paced = bench.load(&paced)?;
    figures.add("paced 1,000/s, ack p50", "ms", Goal::AtMost(0.4), number(&paced, P50)? / 1e3);
    figures.add("paced 1,000/s, ack p99", "ms", Goal::None, number(&paced, P99)? / 1e3);
    let whole = ["e2e", "paced-e2e", "--rate", "1000", "--duration", "10s", "--warmup", "2s"];
    let whole = bench.load(&whole)?;
    figures.add("paced 1,000/s, end to end p50", "ms", Goal::None, number(&whole, P50)? / 1e3);
    Ok(())
}

fn recycled(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    bench.client(&["topic", "create", "recycled", "--retention-bytes", "256MiB"])?;
    let again = ["produce", "recycled", "--size", "1KiB", "--duration", "10s", "--warmup", "10s"];
    let again = bench.load(&again)?;
    let goal = Goal::AtLeast(700e3);
    figures.add("produce 1 KiB, recycled files", "msg/s", goal, number(&again, RATE)?);
    figures.add(
        "  broker CPU, recycled",
        "s per million",
        Goal::AtMost(1.0),
        number(&again, SERVER_CPU)?,
    );
    figures.add(
        "  load tool CPU, recycled",
        "s per million",
        Goal::None,
        number(&again, CLIENT_CPU)?,
    );
    figures.add("  broker's own memory under load", "MB", Goal::None, number(&again, ANONYMOUS)?);
    Ok(())
}

/// 10,000 partitions, made and written.
///
/// # Errors
/// A message was not acknowledged, or not all partitions were written.
pub fn partitions(bench: &Bench<'_>, pid: u32, figures: &mut Figures) -> Result<()> {
    bench.client(&["topic", "create", "many", "--partitions", "10000"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(write_all(bench.command.url()))?;
    let resident = crate::start::resident_mb(pid)?;
    figures.add("10,000 partitions written, resident", "MB", Goal::AtMost(500.0), resident);
    runtime.block_on(ensure_all_written(bench.command.url()))
}

/// Ten messages of 1 KiB to each partition.
async fn write_all(url: String) -> Result<()> {
    let client = Client::builder(url).connect().await?;
    let producer = client.producer::<Raw>("many").build().await?;
    let value = Bytes::from(vec![7; 1024]);
    for _ in 0..10 {
        for partition in 0..producer.partitions() {
            // The flush waits for it, and tells if it failed.
            let record = Record::new(value.clone()).partition(partition);
            let _ack = producer.enqueue(record).await?;
        }
        producer.flush().await?;
    }
    Ok(())
}

/// A figure about partitions that nobody wrote to would mean nothing.
async fn ensure_all_written(url: String) -> Result<()> {
    let client = Client::builder(url).connect().await?;
    let described = client.admin().describe_topic("many").await?;
    let short = described.partitions.iter().filter(|partition| partition.high_watermark.0 != 10);
    let short = short.count();
    ensure!(short == 0, "{short} of {} partitions lack messages", described.partitions.len());
    Ok(())
}
