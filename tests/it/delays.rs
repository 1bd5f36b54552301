//! Delayed messages with real brokers that are killed: each is delivered once, none is early, none that was
//! cancelled; and the command line about them.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use postrider::{CancelVerdict, Client, DelayId, NewTopic, Raw, Record, Start};
use postrider_protocol::types::TimestampMs;
use postrider_tests::process::wait_until;
use serde_json::Value;

use crate::broker;
use crate::shell::Shell;

/// Messages of the kill test; every fifth is cancelled.
const MESSAGES: u64 = 1_000;

/// Over how long they are due, beginning soon.
const SPREAD_MS: u64 = 4_000;

fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Publishes the messages; tells when each is due, and which are cancelled.
async fn publish(client: &Client) -> Result<(BTreeMap<String, u64>, Vec<String>)> {
    client.admin().create_topic(NewTopic::new("later").partitions(2)).await?;
    let producer = client.producer::<Raw>("later").build().await?;
    let begin = wall_ms() + 500;
    let (mut due, mut acks) = (BTreeMap::new(), Vec::new());
    for number in 0..MESSAGES {
        // Neither in order nor in the same batches.
        let at = begin + number * 7_919 % SPREAD_MS;
        let record = Record::new(number.to_string()).key(number.to_string());
        acks.push((number, producer.enqueue(record.deliver_at(TimestampMs(at))).await?));
        due.insert(number.to_string(), at);
    }
    let mut named: Vec<(u64, DelayId)> = Vec::new();
    for (number, ack) in acks {
        named.push((number, ack.await?.delay_id.context("a delayed message has an id")?));
    }
    let fifth: Vec<&(u64, DelayId)> = named.iter().filter(|(number, _)| number % 5 == 0).collect();
    let ids: Vec<DelayId> = fifth.iter().map(|(_, id)| *id).collect();
    let verdicts = client.admin().cancel_delayed("later", &ids).await?;
    let mut cancelled = Vec::new();
    for ((number, id), verdict) in fifth.into_iter().zip(verdicts) {
        ensure!(verdict != CancelVerdict::Unknown, "{id} of {number} was just published");
        if verdict == CancelVerdict::Cancelled {
            cancelled.push(number.to_string());
        }
    }
    Ok((due, cancelled))
}

/// Reads so many messages from the first offsets on; tells how often each value came.
async fn read(
    client: &Client,
    expected: usize,
    due: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, u32>> {
    let mut reader = client.reader::<Raw>("later").from(Start::Earliest).open().await?;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..expected {
        let message = reader.next_message().await.context("the stream goes on")??;
        let value = String::from_utf8(message.value.to_vec())?;
        let due = due.get(&value).context("only what was published is delivered")?;
        let append_ms = message.append_time.0;
        ensure!(*due <= append_ms, "{value} was due at {due} and released at {append_ms}");
        *seen.entry(value).or_default() += 1;
    }
    Ok(seen)
}

#[test]
fn kills_neither_lose_nor_double_nor_hasten_delayed_messages() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let mut running = command.start()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build()?;
    let client = runtime.block_on(Client::builder(command.url()).name("tests").connect())?;
    let (due, cancelled) = runtime.block_on(publish(&client))?;
    let expected = due.len() - cancelled.len();

    // Killed again and again while they are released; each life releases some before it ends.
    for _ in 0..5 {
        wait_until("some are released", || {
            let number = |name| running.metric(name).unwrap_or_default();
            // A slow machine may find all of them due at its first tick.
            let numbers = || runtime.block_on(client.admin().delayed("later"));
            let none_left = || numbers().is_ok_and(|all| all.iter().all(|one| one.scheduled == 0));
            number("postrider_delayed_released_total") >= 60.0 || none_left()
        })?;
        running.kill()?;
        running = command.start()?;
    }
    wait_until("all are released", || {
        let ends = async {
            let mut sum = 0;
            for partition in 0..2 {
                sum += client.admin().list_offsets("later", partition, Start::Latest).await?.0.0;
            }
            anyhow::Ok(sum)
        };
        runtime.block_on(ends).is_ok_and(|sum| sum >= expected as u64)
    })?;
    let seen = runtime.block_on(read(&client, expected, &due))?;
    ensure!(seen.len() == expected, "{} of {expected} values came", seen.len());
    for number in &cancelled {
        ensure!(!seen.contains_key(number), "{number} was cancelled");
    }
    let numbers = runtime.block_on(client.admin().delayed("later"))?;
    let left: u64 = numbers.iter().map(|one| one.scheduled).sum();
    let released: u64 = numbers.iter().map(|one| one.released).sum();
    ensure!((left, released) == (0, expected as u64), "{numbers:?}");
    Ok(())
}

#[test]
fn the_command_line_delays_shows_and_cancels() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("queue create jobs")?;
    let out = shell.prints_for("pub jobs --delay 1h", b"one\ntwo\nthree\n")?;
    let ids: Vec<&str> = out.lines().collect();
    ensure!(ids.len() == 3, "an id per message: {out}");
    shell.prints_for("pub jobs --deliver-at 2100-01-01T00:00:00Z", b"far\n")?;
    shell.prints_for("pub jobs --deliver-at 1", b"at once\n")?;
    let shown = |shell: &Shell, line: &str| -> Result<Value> {
        Ok(serde_json::from_str(&shell.prints(line)?)?)
    };
    wait_until("what is due long since is there", || {
        shell.prints("queue peek jobs").is_ok_and(|text| text == "at once\n")
    })?;
    let queue = shown(&shell, "queue show jobs -o json")?;
    ensure!(queue["scheduled"] == 4 && queue["ready"] == 1 && queue["delayed"] == 0, "{queue}");
    ensure!(shell.prints("queue show jobs")?.contains("scheduled:      4"), "a table");
    ensure!(shown(&shell, "topic show jobs -o json")?["scheduled"] == 4, "topic show");

    let said = shell.prints(&format!("cancel jobs {} {}", ids[0], ids[2]))?;
    ensure!(said == format!("{} cancelled\n{} cancelled\n", ids[0], ids[2]), "{said}");
    shell.restart_by_kill()?;
    ensure!(shown(&shell, "queue show jobs -o json")?["scheduled"] == 2, "after a kill");
    let said = shell.fails(1, &format!("cancel jobs {} 0-99999-0", ids[0]))?;
    ensure!(said.contains("1 of 2") && said.contains("next:"), "{said}");
    let said = shell.fails(2, "cancel jobs nonsense")?;
    ensure!(said.contains("no delay id"), "{said}");
    let said = shell.fails(2, "pub jobs --delay 1h --deliver-at 5")?;
    ensure!(said.contains("cannot be used with"), "{said}");
    let said = shell.fails(1, "cancel nope 0-1-0")?;
    ensure!(said.contains("no topic"), "{said}");
    Ok(())
}
