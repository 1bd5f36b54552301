//! A file published line by line and replayed is the same file, although the broker is killed in the middle.
//!
//! `POSTRIDER_ROUND_TRIP_MB` sets the size of the file (default 4 MB); figures go to the test's output.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postrider_storage::disk_sim::SimRandom;
use postrider_tests::process::{BrokerCommand, RunningBroker, wait_until};

use crate::{broker, text_of};

/// Keys in the keyed file.
const KEYS: usize = 97;

fn file_bytes() -> usize {
    let megabytes = std::env::var("POSTRIDER_ROUND_TRIP_MB").ok();
    megabytes.map_or(4, |text| text.parse::<usize>().expect("a number of megabytes")) * 1_000_000
}

/// What text files hold, and what they should not: empty lines, CRLF, bytes that are no UTF-8, zeros.
/// Every line ends with a newline.
fn lines_of_all_kinds(bytes: usize, mut key: impl FnMut(usize) -> Option<usize>) -> Vec<u8> {
    let mut random = SimRandom::new(20_261_125);
    let mut file = Vec::with_capacity(bytes + 1024);
    let mut line = 0;
    while file.len() < bytes {
        if let Some(key) = key(random.index(KEYS)) {
            write!(file, "key-{key}:").expect("a vector takes everything");
        }
        match random.index(10) {
            0 => {}
            1 => write!(file, "line {line}\r").expect("a vector takes everything"),
            2 => {
                let wild = (0..random.index(300)).map(|_| random.index(256));
                let wild = wild.filter_map(|byte| u8::try_from(byte).ok());
                file.extend(wild.filter(|byte| *byte != b'\n'));
            }
            _ => {
                write!(file, "{line} ").expect("a vector takes everything");
                file.resize(file.len() + random.index(200), b'.');
            }
        }
        file.push(b'\n');
        line += 1;
    }
    file
}

fn messages_stored(command: &BrokerCommand, topic: &str) -> u64 {
    let shown = command.client(&["topic", "show", topic, "-o", "json"]).output();
    let Ok(shown) = shown else { return 0 };
    let Ok(shown) = serde_json::from_slice::<serde_json::Value>(&shown.stdout) else { return 0 };
    let partitions = shown["partitions"].as_array().map_or(&[][..], Vec::as_slice);
    partitions.iter().filter_map(|partition| partition["high_watermark"].as_u64()).sum()
}

fn ended_well(mut child: Child, what: &str) -> Result<String> {
    let mut text = String::new();
    let mut stderr = child.stderr.take().context("stderr is piped")?;
    stderr.read_to_string(&mut text)?;
    let status = child.wait()?;
    ensure!(status.success(), "{what} ended with {status}:\n{text}");
    Ok(text)
}

/// Publishes the file through a pipe; the broker is killed after the first half and restarted when more
/// was written.
fn publish_through_a_crash(
    broker: RunningBroker,
    args: &[&str],
    file: &[u8],
) -> Result<RunningBroker> {
    let command = broker.command().clone();
    let mut child = command.client(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("stdin is piped")?;
    let (before, rest) = file.split_at(file.len() / 2);
    let (meanwhile, after) = rest.split_at(rest.len().min(100_000));
    input.write_all(before)?;
    wait_until("something is stored", || messages_stored(&command, args[1]) > 0)?;
    broker.kill()?;
    input.write_all(meanwhile)?;
    let broker = command.start()?;
    input.write_all(after)?;
    drop(input);
    let said = ended_well(child, "pub")?;

    // Stored before the crash or after it: every line once.
    let counts =
        said.split_whitespace().filter_map(|word| word.split_once('=')?.1.parse::<u64>().ok());
    let lines = bytecount(file);
    ensure!(counts.sum::<u64>() == lines, "{lines} lines, but pub says {said}");
    let stored = messages_stored(&command, args[1]);
    ensure!(stored == lines, "{lines} lines, but {stored} messages are stored");
    Ok(broker)
}

fn bytecount(file: &[u8]) -> u64 {
    file.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Replays the topic; the broker is killed and restarted when half of it was read.
fn replay_through_a_crash(
    broker: RunningBroker,
    args: &[&str],
    expected_bytes: usize,
) -> Result<(RunningBroker, Vec<u8>)> {
    let command = broker.command().clone();
    let mut child = command.client(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("stdout is piped")?;
    let mut read = vec![0; expected_bytes / 2];
    output.read_exact(&mut read)?;
    broker.kill()?;
    let broker = command.start()?;
    output.read_to_end(&mut read)?;
    ended_well(child, "sub")?;
    Ok((broker, read))
}

/// Without assert_eq, which would print megabytes.
fn ensure_same(got: &[u8], expected: &[u8]) -> Result<()> {
    let differs = got.iter().zip(expected).position(|(a, b)| a != b);
    let differs = differs.or_else(|| (got.len() != expected.len()).then_some(got.len()));
    ensure!(
        differs.is_none(),
        "{} bytes came back of {}; they differ at {differs:?}",
        got.len(),
        expected.len()
    );
    Ok(())
}

/// Publishes and replays without a crash, and tells how fast that was.
#[expect(clippy::print_stderr, reason = "the figures are what somebody runs the full size for")]
fn undisturbed(command: &BrokerCommand, dir: &Path, file: &[u8]) -> Result<()> {
    let path = dir.join("lines");
    std::fs::write(&path, file)?;
    let path = path.to_str().context("a path in UTF-8")?;
    let rate = |started: Instant| {
        let seconds = started.elapsed().as_secs_f64();
        format!("{seconds:.2} s, {:.0} MB/s", file.len() as f64 / 1e6 / seconds)
    };
    let started = Instant::now();
    let published = command.client(&["pub", "quiet", "--file", path]).output()?;
    ensure!(published.status.success(), "{}", text_of(&published.stderr));
    eprintln!("published {} bytes in {} lines: {}", file.len(), bytecount(file), rate(started));
    let started = Instant::now();
    let replayed = command.client(&["sub", "quiet", "--from", "earliest", "-e"]).output()?;
    ensure!(replayed.status.success(), "{}", text_of(&replayed.stderr));
    eprintln!("replayed: {}", rate(started));
    ensure_same(&replayed.stdout, file)
}

fn create(command: &BrokerCommand, topic: &str, partitions: &str) -> Result<()> {
    let create = ["topic", "create", topic, "--partitions", partitions];
    ensure!(command.client(&create).output()?.status.success(), "create {topic}");
    Ok(())
}

#[test]
fn file_of_lines_comes_back_byte_for_byte() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let file = lines_of_all_kinds(file_bytes(), |_| None);

    create(&command, "quiet", "1")?;
    undisturbed(&command, dir.path(), &file)?;

    create(&command, "lines", "1")?;
    let broker = publish_through_a_crash(broker, &["pub", "lines"], &file)?;
    let args = ["sub", "lines", "--from", "earliest", "-e", "-o", "raw"];
    let (broker, replayed) = replay_through_a_crash(broker, &args, file.len())?;
    ensure_same(&replayed, &file)?;
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}

/// The payloads of each key, in order.
fn by_key(file: &[u8]) -> BTreeMap<&[u8], Vec<&[u8]>> {
    let mut keys: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        let (key, payload) = line.split_at(colon);
        keys.entry(key).or_default().push(payload);
    }
    keys
}

#[test]
fn keys_keep_their_order_over_three_partitions() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let file = lines_of_all_kinds(file_bytes(), Some);

    create(&command, "keyed", "3")?;
    let publish = ["pub", "keyed", "--key-delimiter", ":"];
    let broker = publish_through_a_crash(broker, &publish, &file)?;
    let args = ["sub", "keyed", "--from", "earliest", "-e", "-f", "%k:%s\\n"];
    let (broker, replayed) = replay_through_a_crash(broker, &args, file.len())?;
    ensure!(replayed.len() == file.len(), "{} bytes of {}", replayed.len(), file.len());
    let (got, expected) = (by_key(&replayed), by_key(&file));
    ensure!(expected.len() == KEYS, "the file has every key");
    ensure!(got.keys().eq(expected.keys()), "other keys came back");
    for (key, payloads) in &expected {
        ensure!(got[key] == *payloads, "the order of {} is not kept", text_of(key));
    }
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}
