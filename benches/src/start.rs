//! Owns what is measured from the outside of a process: its start, its memory, its way back after a
//! kill. Driven by the campaign.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postrider::{Client, NewTopic, Raw, Record};
use postrider_tests::process::{BrokerCommand, RunningBroker};

use crate::figure::{Figures, Goal};
use crate::workload::Bench;

/// How long a broker idles before its memory is read.
const IDLE: Duration = Duration::from_secs(3);

/// From the start of the process on an empty directory to the first acknowledged publish, with the
/// topic created in between; and the memory of the idle broker before that.
///
/// # Errors
/// The broker did not start, or refused.
pub fn first_publish(binary: &Path, dir: &Path, figures: &mut Figures) -> Result<()> {
    let command = BrokerCommand::new(binary, dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begun = Instant::now();
    let broker = command.spawn()?;
    // The process is not asked whether it is ready: a client that comes early tries again at once.
    while TcpStream::connect(command.listen()).is_err() {
        std::thread::yield_now();
    }
    runtime.block_on(publish_one(&command.url()))?;
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    figures.add("first acknowledged publish after start", "ms", Goal::AtMost(60.0), took_ms);
    drop(broker);
    Ok(())
}

async fn publish_one(url: &str) -> Result<()> {
    let client = Client::builder(url).connect().await?;
    client.admin().create_topic(NewTopic::new("first")).await?;
    let producer = client.producer::<Raw>("first").build().await?;
    producer.send(Record::new("first")).await?;
    Ok(())
}

/// Memory of a broker that has nothing to do.
///
/// # Errors
/// It did not start.
pub fn idle(binary: &Path, dir: &Path, figures: &mut Figures) -> Result<()> {
    let broker = BrokerCommand::new(binary, dir)?.start()?;
    std::thread::sleep(IDLE);
    figures.add("idle broker, resident", "MB", Goal::AtMost(15.0), resident_mb(broker.pid())?);
    Ok(())
}

/// From the restart after kill -9 to readiness, with 5 GB in the log.
///
/// # Errors
/// A broker did not start, or the load failed.
pub fn restart(binary: &Path, dir: &Path, figures: &mut Figures) -> Result<()> {
    let command = BrokerCommand::new(binary, dir)?;
    let broker = command.start()?;
    Bench::new(&command, dir).load(&["produce", "big", "--size", "1KiB", "--messages", "5M"])?;
    broker.kill()?;
    let begun = Instant::now();
    let broker: RunningBroker = command.start()?;
    let took = begun.elapsed().as_secs_f64();
    figures.add("ready after kill -9 with a 5 GB log", "s", Goal::AtMost(2.0), took);
    drop(broker);
    Ok(())
}

/// Resident memory of a process, mapped file pages included.
///
/// # Errors
/// There is no such process.
pub fn resident_mb(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}
