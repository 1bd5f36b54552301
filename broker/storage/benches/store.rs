//! The store alone, on a real directory with syncs: how close it comes to the disk, and what it costs.
//!
//! `cargo bench -p postrider-storage --bench store -- [--dir DIR] [--seconds N] [--only WORD]`
//!
//! Each row is one round: megabytes of bodies per second, user and system CPU per million messages of
//! 1 KiB, bytes per group, syncs. The rows `raw` write and sync the same sizes without a store, in the
//! same run on the same disk. Everything happens in a temporary directory that is removed at the end.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::types::{Durability, LeaderEpoch, PartitionId, TimestampMs, TopicId};
use postrider_storage::{
    AppendError, Log, LogKey, LogWatcher, NewEntry, OsDisk, Store, StoreOptions, StoreStats,
};

const MESSAGE_BYTES: u64 = 1024;
/// Bodies that an appender goes through: more than a processor cache, as from a socket.
const BODIES_BYTES: usize = 32 << 20;
/// Log kept while files are recycled.
const KEPT_BYTES: u64 = 256 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Settings {
    dir: PathBuf,
    round: Duration,
    only: String,
}

fn main() -> Result<()> {
    let settings = settings()?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<34} {:>8} {:>9} {:>9} {:>10}  ",
        "round", "MB/s", "msg/s", "cpu/M", "group KiB"
    )?;
    for bytes in [256 << 10, 1 << 20, 4 << 20] {
        if settings.only.is_empty() || "raw".contains(&settings.only) {
            raw(&settings, bytes, &mut out)?;
        }
    }
    for logs in [1, 16] {
        for batch in [16 << 10, 64 << 10, 256 << 10] {
            for files in [Files::New, Files::Recycled] {
                let name = format!("append {logs} x {} KiB {files:?}", batch >> 10);
                if name.contains(&settings.only) {
                    append(&settings, &name, logs, batch, files, &mut out)?;
                }
            }
        }
    }
    for name in ["first append", "idle logs", "read"] {
        if name.contains(&settings.only) {
            match name {
                "first append" => first_append(&settings, &mut out)?,
                "idle logs" => idle_logs(&settings, &mut out)?,
                _ => read(&settings, &mut out)?,
            }
        }
    }
    Ok(())
}

fn settings() -> Result<Settings> {
    let mut settings =
        Settings { dir: std::env::temp_dir(), round: Duration::from_secs(3), only: String::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--dir" => settings.dir = value()?.into(),
            "--seconds" => settings.round = Duration::from_secs(value()?.parse()?),
            "--only" => settings.only = value()?,
            // What `cargo bench` passes to every bench.
            "--bench" => {}
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(settings)
}

/// User and system time of this process, in steps of the kernel's accounting tick.
fn cpu() -> Duration {
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields count from behind the name, which may hold anything: utime and stime are the 12th and 13th.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// What a round took.
struct Taken {
    seconds: f64,
    cpu_seconds: f64,
    bytes: f64,
}

fn row(out: &mut impl Write, name: &str, taken: &Taken, group: f64, rest: &str) -> Result<()> {
    let messages = taken.bytes / MESSAGE_BYTES as f64;
    writeln!(
        out,
        "{name:<34} {:>8.0} {:>8.0}k {:>9.2} {:>10.0}  {rest}",
        taken.bytes / taken.seconds / 1e6,
        messages / taken.seconds / 1e3,
        taken.cpu_seconds / messages * 1e6,
        group / 1024.0,
    )?;
    Ok(())
}

/// Sequential writes of `bytes`, each synced: over fresh blocks of one file, then again over the same.
fn raw(settings: &Settings, bytes: usize, out: &mut impl Write) -> Result<()> {
    const FILE_BYTES: u64 = 512 << 20;
    let dir = tempfile::tempdir_in(&settings.dir)?;
    let file = File::create(dir.path().join("raw"))?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES)?;
    file.sync_all()?;
    let buffer = vec![7_u8; bytes];
    for kind in ["new", "recycled"] {
        let (started, before) = (Instant::now(), cpu());
        let mut position = 0;
        while position + bytes as u64 <= FILE_BYTES {
            file.write_all_at(&buffer, position)?;
            file.sync_data()?;
            position += bytes as u64;
        }
        let taken = Taken {
            seconds: started.elapsed().as_secs_f64(),
            cpu_seconds: (cpu() - before).as_secs_f64(),
            bytes: position as f64,
        };
        row(out, &format!("raw {} KiB {kind}", bytes >> 10), &taken, bytes as f64, "")?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Files {
    New,
    Recycled,
}

fn wall() -> TimestampMs {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    TimestampMs(u64::try_from(now.as_millis()).unwrap_or(0))
}

fn open(dir: &Path, options: StoreOptions) -> Result<Store> {
    Ok(Store::open(Arc::new(OsDisk::create(dir)?), options)?.store)
}

fn key(number: u32) -> LogKey {
    LogKey { topic: TopicId([1; 16]), partition: PartitionId(number) }
}

fn entry(body: &Bytes, crc: u32) -> NewEntry {
    NewEntry {
        kind: EntryKind::Data,
        flags: 0,
        leader_epoch: LeaderEpoch(1),
        append_time: wall(),
        record_count: u32::try_from(body.len() as u64 / MESSAGE_BYTES).unwrap_or(1).max(1),
        seq_count: 1,
        body: body.clone(),
        body_crc: crc,
        trailer: Bytes::new(),
    }
}

/// Wakes the appender when a log's ready end moves.
#[derive(Default)]
struct Progress {
    moved: Mutex<bool>,
    bell: Condvar,
}

impl LogWatcher for Progress {
    fn advanced(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }
}

impl Progress {
    fn wait(&self) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        while !*moved {
            moved = self.bell.wait(moved).unwrap_or_else(PoisonError::into_inner);
        }
        *moved = false;
    }
}

/// Appends to some logs in turn, with a bounded number of bytes in flight.
struct Appender {
    logs: Vec<Log>,
    progress: Arc<Progress>,
    bodies: Vec<(Bytes, u32)>,
    sent: u64,
    in_flight_max: u64,
}

impl Appender {
    fn new(store: &Store, logs: u32, batch: usize) -> Result<Self> {
        let progress = Arc::new(Progress::default());
        let mut made = Vec::new();
        for number in 0..logs {
            let log = store.create_log(key(number), Durability::Fsync)?;
            log.watch(Arc::clone(&progress) as Arc<dyn LogWatcher>);
            made.push(log);
        }
        let body = |seed: usize| {
            let bytes: Vec<u8> = (0..batch).map(|at| (at * 31 + seed).to_le_bytes()[0]).collect();
            let crc = 7; // The store takes the producer's word for it.
            (Bytes::from(bytes), crc)
        };
        let bodies = (0..BODIES_BYTES / batch).map(body).collect();
        Ok(Self { logs: made, progress, bodies, sent: 0, in_flight_max: 16 << 20 })
    }

    fn in_flight(&self) -> u64 {
        let batch = self.bodies[0].0.len() as u64;
        let waiting = |log: &Log| log.log_end().0.0 - log.ready_end().0.0;
        self.logs.iter().map(waiting).sum::<u64>() * batch
    }

    fn run(&mut self, until: impl Fn() -> bool) -> Result<u64> {
        let mut bytes = 0;
        while !until() {
            for _ in 0..16 {
                let number = usize::try_from(self.sent)?;
                let (body, crc) = &self.bodies[number % self.bodies.len()];
                match self.logs[number % self.logs.len()].append(entry(body, *crc)) {
                    Ok(_) => self.sent += 1,
                    Err(AppendError::QueueFull) => self.progress.wait(),
                    Err(error) => return Err(error.into()),
                }
                bytes += body.len() as u64;
            }
            while self.in_flight() > self.in_flight_max {
                self.progress.wait();
            }
        }
        while self.in_flight() > 0 {
            self.progress.wait();
        }
        Ok(bytes)
    }
}

/// What the broker's retention does: snapshots, so that files may go, and trims.
fn retain(logs: &[Log], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        for log in logs {
            let ready = log.ready_end();
            let segments = log.segments();
            let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
            let mut surplus = total.saturating_sub(KEPT_BYTES / logs.len() as u64);
            let mut start = None;
            for segment in &segments {
                if segment.bytes > surplus {
                    break;
                }
                surplus -= segment.bytes;
                start = Some(segment.end);
            }
            if let Some(start) = start {
                log.write_snapshot(ready.0, Bytes::from_static(b"state"));
                log.trim(start);
            }
        }
    }
}

fn difference(after: &StoreStats, before: &StoreStats) -> String {
    let sync_ns = after.sync_time.sum_ns - before.sync_time.sum_ns;
    let group_ns = after.group_time.sum_ns - before.group_time.sum_ns;
    let syncs = (after.syncs - before.syncs).max(1);
    format!(
        "{} groups, sync {:.2} ms, {:.0} % of group time; journal {} MB, segments {} MB; files {} new {} reused; {} checkpoints",
        after.groups - before.groups,
        sync_ns as f64 / syncs as f64 / 1e6,
        100.0 * sync_ns as f64 / group_ns.max(1) as f64,
        (after.journal_bytes - before.journal_bytes) / 1_000_000,
        (after.segment_bytes - before.segment_bytes) / 1_000_000,
        after.segment_files_new - before.segment_files_new,
        after.segment_files_recycled - before.segment_files_recycled,
        after.checkpoints - before.checkpoints,
    )
}

fn append(
    settings: &Settings,
    name: &str,
    logs: u32,
    batch: usize,
    files: Files,
    out: &mut impl Write,
) -> Result<()> {
    let dir = tempfile::tempdir_in(&settings.dir)?;
    let store = open(dir.path(), StoreOptions::default())?;
    let threads = store.spawn(wall);
    let mut appender = Appender::new(&store, logs, batch)?;
    let stop = Arc::new(AtomicBool::new(false));
    let retention = (files == Files::Recycled).then(|| {
        let (logs, stop) = (appender.logs.clone(), Arc::clone(&stop));
        std::thread::spawn(move || retain(&logs, &stop))
    });
    let warm = Instant::now();
    appender.run(|| match files {
        Files::New => warm.elapsed() > Duration::from_millis(300),
        Files::Recycled => {
            let stats = store.stats();
            let reused = stats.segment_files_recycled >= 4 && warm.elapsed() > settings.round;
            reused || warm.elapsed() > 4 * settings.round
        }
    })?;
    let (before, cpu_before, started) = (store.stats(), cpu(), Instant::now());
    let bytes = appender.run(|| started.elapsed() > settings.round)?;
    let taken = Taken {
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: (cpu() - cpu_before).as_secs_f64(),
        bytes: bytes as f64,
    };
    let after = store.stats();
    let group = bytes as f64 / (after.groups - before.groups).max(1) as f64;
    row(out, name, &taken, group, &difference(&after, &before))?;
    stop.store(true, Ordering::Relaxed);
    if let Some(retention) = retention {
        retention.join().map_err(|_panic| "retention panicked")?;
    }
    threads.stop();
    Ok(())
}

/// From the start on an empty directory to the first durable append.
fn first_append(settings: &Settings, out: &mut impl Write) -> Result<()> {
    for round in 0..5 {
        let dir = tempfile::tempdir_in(&settings.dir)?;
        let started = Instant::now();
        let store = open(dir.path(), StoreOptions::default())?;
        let opened = started.elapsed();
        let threads = store.spawn(wall);
        let mut times = Vec::new();
        for number in 0..3 {
            let log = store.create_log(key(number), Durability::Fsync)?;
            let progress = Arc::new(Progress::default());
            log.watch(Arc::clone(&progress) as Arc<dyn LogWatcher>);
            let asked = Instant::now();
            log.append(entry(&Bytes::from_static(&[7; 1024]), 7))?;
            progress.wait();
            times.push(asked.elapsed());
        }
        writeln!(
            out,
            "first append, round {round}: open {opened:.1?}, first appends of three logs {times:.1?}"
        )?;
        threads.stop();
    }
    Ok(())
}

/// Resident anonymous memory in bytes.
fn anonymous() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon")).ok_or("no RssAnon")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no value")?.parse()?;
    Ok(kib << 10)
}

/// Memory of many open logs: without entries, then with one entry each.
fn idle_logs(settings: &Settings, out: &mut impl Write) -> Result<()> {
    const LOGS: u32 = 10_000;
    let dir = tempfile::tempdir_in(&settings.dir)?;
    let before = anonymous()?;
    let store = open(dir.path(), StoreOptions::default())?;
    let threads = store.spawn(wall);
    let opened = anonymous()?;
    let mut logs = Vec::new();
    for number in 0..LOGS {
        logs.push(store.create_log(key(number), Durability::Fsync)?);
    }
    let made = anonymous()?;
    let started = Instant::now();
    let body = Bytes::from(vec![7_u8; 1024]);
    for log in &logs {
        log.append(entry(&body, 7))?;
    }
    while logs.iter().any(|log| log.ready_end().0.0 == 0) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let wrote = started.elapsed();
    let written = anonymous()?;
    let started = Instant::now();
    for log in &logs {
        let run = log.read(postrider_protocol::types::Offset(0), log.ready_end().1, 4096)?;
        run.load()?;
    }
    writeln!(
        out,
        "idle logs: store {} KiB; per log {} B empty, {} B with one entry (10,000 first appends in {wrote:.1?}), {} B mapped (read in {:.1?})",
        (opened - before) >> 10,
        (made - opened) / u64::from(LOGS),
        written.saturating_sub(opened) / u64::from(LOGS),
        anonymous()?.saturating_sub(opened) / u64::from(LOGS),
        started.elapsed(),
    )?;
    threads.stop();
    Ok(())
}

/// Reads a log through its maps in runs, writing each to /dev/null so that no byte is touched twice.
fn read(settings: &Settings, out: &mut impl Write) -> Result<()> {
    let dir = tempfile::tempdir_in(&settings.dir)?;
    let store = open(dir.path(), StoreOptions::default())?;
    let threads = store.spawn(wall);
    for batch in [4 << 10, 64 << 10] {
        let mut appender = Appender::new(&store, 1, batch)?;
        let started = Instant::now();
        appender.run(|| started.elapsed() > settings.round)?;
        let log = &appender.logs[0];
        let ready = log.ready_end().1;
        for run_bytes in [64 << 10, 256 << 10] {
            let mut from = log.log_start().1;
            let mut bytes = 0;
            let (mut runs, mut slices) = (0_u64, 0);
            let (started, before) = (Instant::now(), cpu());
            while from < ready {
                let run = log.read(from, ready, run_bytes)?;
                let parts: Vec<IoSlice<'_>> =
                    run.slices.iter().map(|slice| IoSlice::new(slice)).collect();
                slices += parts.len();
                bytes += run.bytes;
                runs += 1;
                from = run.next;
            }
            let taken = Taken {
                seconds: started.elapsed().as_secs_f64(),
                cpu_seconds: (cpu() - before).as_secs_f64(),
                bytes: bytes as f64,
            };
            let name = format!("read {} KiB runs of {} KiB", run_bytes >> 10, batch >> 10);
            let each = started.elapsed() / u32::try_from(runs)?;
            let rest = format!("{runs} runs, {slices} slices, {each:.1?} each");
            row(out, &name, &taken, bytes as f64 / runs as f64, &rest)?;
        }
        store.drop_log(key(0));
    }
    threads.stop();
    Ok(())
}
