//! Shows what one message that nobody acknowledges costs while others pass: disk, memory and rate of a real
//! broker, slice by slice, and what is left at the end. Exit code 1 if a load failed or the disk did not come
//! back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use postrider::{Client, NewQueue, Raw, Record};
use postrider_benches::start::resident_mb;
use postrider_benches::workload::{Bench, number};
use postrider_tests::process::{BrokerCommand, RunningBroker};

/// One message stays leased, so many others pass.
#[derive(Parser, Debug)]
struct Options {
    /// Messages that pass, over all slices
    #[arg(long, default_value_t = 10_000_000)]
    messages: u64,
    /// Parts in which they pass; what is on disk is read after each
    #[arg(long, default_value_t = 10)]
    slices: u64,
    /// Bytes of a message
    #[arg(long, default_value = "1KiB")]
    size: String,
    /// MB in segments that may be left at the end, free files not counted
    #[arg(long, default_value_t = 600.0)]
    left_mb: f64,
    /// How long the disk may take to come back
    #[arg(long, default_value_t = 300)]
    patience_s: u64,
    /// The binary to measure
    #[arg(long, default_value = "target/release/postrider")]
    binary: PathBuf,
    /// Where the broker's data lies meanwhile: a folder on the disk to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let binary = options.binary.canonicalize().with_context(|| {
        format!("{}: build it with `cargo build --release`", options.binary.display())
    })?;
    let dir = tempfile::tempdir_in(&options.dir)?;
    let command = BrokerCommand::new(&binary, dir.path())?;
    let broker = command.start()?;
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = threads.worker_threads(1).enable_all().build()?;
    let bench = Bench::new(&command, dir.path());
    let each = (options.messages / options.slices.max(1)).max(1);

    let heads = ["msg/s", "disk MB", "segments in use MB", "free MB", "files", "resident MB"];
    row("slice", "messages", &heads.map(String::from));
    let rate = pass(&bench, "alone", each, &options.size)?;
    let look = || Look::at(&dir.path().join("data"), &broker);
    show("nothing stuck", each, rate, &look()?);
    let _held = runtime.block_on(hold(command.url()))?;
    for slice in 1..=options.slices {
        let rate = pass(&bench, "jobs", each, &options.size)?;
        show(&format!("{slice} of {}", options.slices), each, rate, &look()?);
    }
    let begun = Instant::now();
    let mut last = look()?;
    while last.used() > options.left_mb && begun.elapsed().as_secs() < options.patience_s {
        std::thread::sleep(Duration::from_secs(5));
        last = look()?;
    }
    show(&format!("{} s later", begun.elapsed().as_secs()), 0, 0.0, &last);
    let (left, most) = (last.used(), options.left_mb);
    ensure!(left <= most, "{left:.0} MB are left in segments, more than {most}");
    Ok(())
}

/// A queue whose first message a consumer holds, for as long as what this returns lives.
async fn hold(url: String) -> Result<impl Sized> {
    let client = Client::builder(url).connect().await?;
    client.admin().create_queue(NewQueue::new("jobs")).await?;
    let producer = client.producer::<Raw>("jobs").build().await?;
    producer.send(Record::new("stuck")).await?;
    let mut consumer = client.consumer::<Raw>("jobs").prefetch(1).subscribe().await?;
    let delivery = consumer.next_delivery().await.context("the queue ended")??;
    Ok((client, producer, consumer, delivery))
}

/// Has messages published, leased and acknowledged; tells the rate.
fn pass(bench: &Bench<'_>, queue: &str, messages: u64, size: &str) -> Result<f64> {
    let messages = messages.to_string();
    let result =
        bench.load(&["queue", queue, "--workers", "2", "--size", size, "--messages", &messages])?;
    number(&result, "/msgs_per_s")
}

/// What a broker takes now, in MB.
struct Look {
    disk: f64,
    segments: f64,
    files: usize,
    free: f64,
    resident: f64,
}

impl Look {
    fn at(data: &Path, broker: &RunningBroker) -> Result<Self> {
        let (segments, files) = folder(&data.join("segments"))?;
        let mut disk = segments;
        for other in ["journal", "snapshots"] {
            disk += folder(&data.join(other))?.0;
        }
        let free = broker.metric("postrider_storage_recyclable_bytes")? / 1e6;
        Ok(Self { disk, segments, files, free, resident: resident_mb(broker.pid())? })
    }

    /// In segments that hold something.
    fn used(&self) -> f64 {
        self.segments - self.free
    }
}

/// MB and files of a folder.
fn folder(path: &Path) -> Result<(f64, usize)> {
    let mut sum = (0.0, 0);
    for entry in fs::read_dir(path)? {
        // Files come and go.
        if let Ok(found) = entry?.metadata() {
            sum = (sum.0 + found.len() as f64 / 1e6, sum.1 + 1);
        }
    }
    Ok(sum)
}

fn show(slice: &str, messages: u64, rate: f64, look: &Look) {
    let numbers = [rate, look.disk, look.used(), look.free, look.resident];
    let [rate, disk, used, free, resident] = numbers.map(|number| format!("{number:.0}"));
    row(slice, &messages.to_string(), &[rate, disk, used, free, look.files.to_string(), resident]);
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn row(slice: &str, messages: &str, cells: &[String]) {
    println!("| {slice} | {messages} | {} |", cells.join(" | "));
}
