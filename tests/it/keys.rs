//! Idempotency keys with real processes: publishers and brokers that are killed, files that are published again, messages
//! that are gone by then; and the command line about keys.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider::{Client, NewTopic, Producer, Raw, Receipt, Record, SendError, Start};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::types::Offset;
use postrider_tests::process::wait_until;
use serde_json::Value;

use crate::broker;
use crate::shell::Shell;

const LINES: usize = 30_000;

fn file_of_lines() -> String {
    (0..LINES).fold(String::new(), |mut text, line| {
        writeln!(text, "line {line} {}", "x".repeat(line % 100)).expect("a string takes it");
        text
    })
}

impl Shell {
    /// Publishes what it is given line by line, until its input ends or it is killed.
    fn publisher(&self) -> Result<Child> {
        let mut command = self.command.client(&["pub", "t", "-I", "file"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    fn received(&self) -> f64 {
        let broker = self.broker.as_ref().expect("a broker runs");
        broker.metric("postrider_publish_messages_total").unwrap_or_default()
    }

    /// What a publish said at its end.
    fn published(&self, line: &str, input: &[u8]) -> Result<String> {
        let ended = self.ended(line, input)?;
        ensure!(ended.code == Some(0), "{line}: {:?}\n{}", ended.code, ended.err);
        Ok(ended.err.trim().to_owned())
    }
}

#[test]
fn a_file_published_again_by_killed_publishers_to_killed_brokers_is_stored_once_in_order()
-> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("topic create t")?;
    let file = file_of_lines();
    let (third, two_thirds) = (file.len() / 3, file.len() / 3 * 2);

    // A publisher that is killed when it has published a part.
    let mut publisher = shell.publisher()?;
    let mut input = publisher.stdin.take().context("stdin is piped")?;
    input.write_all(&file.as_bytes()[..third])?;
    input.flush()?;
    wait_until("a part is stored", || shell.received() > 1_000.0)?;
    publisher.kill()?;
    publisher.wait()?;
    drop(input);

    // Its successor starts over, and rides through the death of the broker.
    let mut publisher = shell.publisher()?;
    let mut input = publisher.stdin.take().context("stdin is piped")?;
    let before = shell.received();
    input.write_all(&file.as_bytes()[..two_thirds])?;
    input.flush()?;
    wait_until("more is stored", || shell.received() > before + 1_000.0)?;
    shell.restart_by_kill()?;
    input.write_all(&file.as_bytes()[two_thirds..])?;
    drop(input);
    let output = publisher.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    ensure!(shell.prints("sub t --from earliest -e -o raw")? == file, "each line once, in order");

    // And once more, from a file, to a broker that has read everything from disk.
    shell.restart_by_kill()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("lines.txt");
    std::fs::write(&path, &file)?;
    let said = shell.published(&format!("pub t -I file --file {}", path.display()), b"")?;
    ensure!(said == format!("stored=0 duplicates={LINES}"), "{said}");
    let offsets = shell.prints("sub t --from earliest -e -f %o\\n")?;
    let expected: String = (0..LINES).map(|offset| format!("{offset}\n")).collect();
    ensure!(offsets == expected, "offsets have no gap");
    Ok(())
}

/// T4.
#[test]
fn keys_outlive_the_messages_that_were_deleted_consumed_or_purged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("postrider.toml");
    let text = "[retention]\ncheck_interval = \"100ms\"\n";
    std::fs::write(&config, text)?;
    let data = tempfile::tempdir()?;
    let command = broker(data.path())?.arg("--config").arg(&config.display().to_string());
    let mut shell = Shell::of(command, data)?;
    shell.prints("topic create t --retention-bytes 1MiB")?;
    let file: String = (0..6_000).map(|line| format!("{line} {}\n", "y".repeat(1_000))).collect();
    let said = shell.published("pub t -I a", file.as_bytes())?;
    ensure!(said == "stored=6000 duplicates=0", "{said}");
    let start = || -> Option<u64> {
        let shown: Value =
            serde_json::from_str(&shell.prints("topic show t -o json").ok()?).ok()?;
        shown["partitions"][0]["log_start"].as_u64()
    };
    wait_until("the first segments are deleted", || start().is_some_and(|start| start > 1_000))?;
    shell.restart_by_kill()?;
    let said = shell.published("pub t -I a", file.as_bytes())?;
    ensure!(said == "stored=0 duplicates=6000", "{said}");

    shell.prints("queue create q")?;
    let said = shell.published("pub q -I a", b"1\n2\n3\n")?;
    ensure!(said == "stored=3 duplicates=0", "{said}");
    shell.prints("work q -n 1 -- cat")?;
    let said = shell.ended("queue purge q", b"")?.err;
    ensure!(said.contains("purged=2") && said.contains("keys are kept"), "{said}");
    shell.restart_by_kill()?;
    let said = shell.published("pub q -I a", b"1\n2\n3\n4\n")?;
    ensure!(said == "stored=1 duplicates=3", "{said}");
    ensure!(shell.prints("queue peek q")? == "4\n", "what was done is not done again");
    Ok(())
}

/// T1.
#[test]
fn of_one_key_published_a_thousand_times_over_ten_connections_one_is_stored() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let receipts: Vec<Receipt> = runtime.block_on(async {
        let mut producers: Vec<Arc<Producer<Raw>>> = Vec::new();
        for _ in 0..10 {
            let client = Client::builder(command.url()).connect().await?;
            client.admin().create_topic(NewTopic::new("t").partitions(8).if_not_exists()).await?;
            producers.push(Arc::new(client.producer::<Raw>("t").build().await?));
        }
        let mut sends = tokio::task::JoinSet::new();
        for nth in 0..1_000 {
            let producer = Arc::clone(&producers[nth % 10]);
            sends.spawn(async move {
                producer.send(Record::new("pay 7").idempotency_key("order-7")).await
            });
        }
        let mut receipts = Vec::new();
        while let Some(sent) = sends.join_next().await {
            receipts.push(sent??);
        }
        anyhow::Ok(receipts)
    })?;
    let first = receipts.iter().filter(|receipt| !receipt.duplicate).count();
    ensure!(
        receipts.len() == 1_000 && first == 1,
        "{first} of {} are no duplicates",
        receipts.len()
    );
    let place = (receipts[0].partition, receipts[0].offset, receipts[0].append_time);
    let same =
        |receipt: &Receipt| (receipt.partition, receipt.offset, receipt.append_time) == place;
    ensure!(receipts.iter().all(same), "all are told where the first one is");
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}

/// T12: a delayed message sent again before and after its release, and over a kill, is released once.
#[test]
fn a_delayed_message_sent_again_before_and_after_its_release_is_released_once() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("topic create t")?;
    let publish = |shell: &Shell, stored: u32, line: &str| -> Result<()> {
        let said = shell.published(line, b"later\n")?;
        let expected = format!("stored={stored} duplicates={}", 1 - stored);
        ensure!(said == expected, "{line}: {said}");
        Ok(())
    };
    publish(&shell, 1, "pub t -I a --delay 1s")?;
    publish(&shell, 0, "pub t -I a --delay 1s")?;
    shell.restart_by_kill()?;
    publish(&shell, 0, "pub t -I a --delay 1s")?;
    publish(&shell, 0, "pub t -I a")?;
    let read = || shell.prints("sub t --from earliest -e -o raw").unwrap_or_default();
    wait_until("it is released", || !read().is_empty())?;
    publish(&shell, 0, "pub t -I a --delay 1s")?;
    publish(&shell, 0, "pub t -I a")?;
    ensure!(read() == "later\n", "it is there once: {:?}", read());
    let shown: Value = serde_json::from_str(&shell.prints("topic show t -o json")?)?;
    ensure!(shown["scheduled"] == 0, "and does not wait once more: {shown}");
    Ok(())
}

/// The id by which a worker knows what it has done stays the same through retries, dead letters and redrives.
#[test]
fn a_message_keeps_its_dedup_id_as_a_dead_letter_and_when_it_is_sent_back() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("queue create jobs --max-failures 2 --backoff-min 1ms --backoff-max 1ms")?;
    shell.prints_for("pub jobs", b"plain\n")?;
    shell.prints_for("pub jobs -I a", b"keyed\n")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let client = Client::builder(shell.command.url()).connect().await?;
        let mut jobs = client.consumer::<Raw>("jobs").subscribe().await?;
        let mut ids: Vec<Vec<String>> = Vec::new();
        for try_ in 0..6 {
            if try_ == 4 {
                let broker = shell.broker.as_ref().context("a broker runs")?;
                let dead =
                    || broker.metric("postrider_queue_dead_lettered_total").unwrap_or_default();
                wait_until("both are dead letters", || dead() > 1.0)?;
                shell.prints("queue redrive jobs")?;
            }
            let next = tokio::time::timeout(Duration::from_secs(20), jobs.next_delivery()).await;
            let next = next.with_context(|| format!("delivery {try_} does not come: {ids:?}"))?;
            let delivery = next.context("the queue goes on")??;
            let value = String::from_utf8_lossy(delivery.value()).into_owned();
            ids.push(vec![value, delivery.dedup_id()]);
            match try_ {
                0..4 => delivery.nack("again").await?,
                _ => delivery.ack().await?,
            }
        }
        let mut letters = client.reader::<Raw>("jobs.dead").from(Start::Earliest).open().await?;
        for _ in 0..2 {
            let letter = letters.next_message().await.context("the stream goes on")??;
            let value = String::from_utf8_lossy(&letter.value).into_owned();
            ids.push(vec![value, letter.dedup_id()]);
        }
        ids.sort();
        ids.dedup();
        ensure!(ids.len() == 2, "one id for each: {ids:?}");
        ensure!(ids[0][1] == "0/key/a-1" && ids[1][1].starts_with("0/0/"), "{ids:?}");
        anyhow::Ok(())
    })
}

/// A8, over real connections: each of several producers counts up by what it has read.
#[test]
fn of_producers_that_want_one_offset_one_is_stored_and_batches_are_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..4_u64 {
            let client = Client::builder(command.url()).connect().await?;
            client.admin().create_topic(NewTopic::new("t").if_not_exists()).await?;
            let producer = client.producer::<Raw>("t").build().await?;
            racers.spawn(async move {
                let (mut next, mut won) = (0, 0);
                while won < 50 {
                    let records: Vec<Record<String>> =
                        (0..3).map(|nth| Record::new(format!("{racer} {won} {nth}"))).collect();
                    match producer.send_atomic(&records, Some(Offset(next))).await {
                        Ok(receipt) => {
                            ensure!(receipt.offset.0 == next && !receipt.duplicate, "{receipt:?}");
                            won += 1;
                            next += 3;
                        }
                        Err(SendError::Rejected(error)) if error.code == ErrorCode::OffsetConflict => {
                            ensure!(error.detail > next, "{error:?}");
                            next = error.detail;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                client.close(Duration::from_secs(5)).await;
                Ok(())
            });
        }
        while let Some(raced) = racers.join_next().await {
            raced??;
        }
        let client = Client::builder(command.url()).connect().await?;
        let mut reader = client.reader::<Raw>("t").from(Start::Earliest).open().await?;
        let mut batch = String::new();
        for offset in 0..600 {
            let message = reader.next_message().await.context("the stream goes on")??;
            let value = String::from_utf8_lossy(&message.value).into_owned();
            let (of, nth) = value.rsplit_once(' ').context("three numbers")?;
            ensure!(nth == (offset % 3).to_string(), "{offset}: {value}");
            ensure!(offset % 3 == 0 || of == batch, "{offset}: {value} in the batch {batch}");
            of.clone_into(&mut batch);
        }
        let keys = |keys: &[&str]| -> Vec<Record<String>> {
            keys.iter().map(|key| Record::new((*key).to_owned()).idempotency_key((*key).to_owned())).collect()
        };
        let producer = client.producer::<Raw>("t").build().await?;
        let first = producer.send_atomic(&keys(&["a", "b"]), None).await?;
        let again = producer.send_atomic(&keys(&["a", "b"]), None).await?;
        ensure!(again.duplicate && again.offset == first.offset, "{again:?}");
        let part = producer.send_atomic(&keys(&["b", "c"]), None).await;
        let is_conflict = matches!(&part, Err(SendError::Rejected(error)) if error.code == ErrorCode::AtomicConflict);
        ensure!(is_conflict, "{part:?}");
        let later = [Record::new("l".to_owned()).deliver_after(Duration::from_secs(1))];
        let refused = producer.send_atomic(&later, None).await;
        ensure!(matches!(refused, Err(SendError::DelayedAtomic)), "{refused:?}");
        ensure!(matches!(producer.send_atomic(&keys(&[]), None).await, Err(SendError::Empty)), "no message");
        anyhow::Ok(())
    })?;
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}

/// T9, without growth: what has no routing key is routed by its idempotency key.
#[test]
fn keys_route_alike_each_time_and_mistakes_name_the_next_step() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create t --partitions 8 --dedup-window 1h")?;
    ensure!(shell.prints("topic show t")?.contains("dedup window:      1h"), "the window is shown");
    let lines: String = (0..500).map(|line| format!("{line}\n")).collect();
    let said = shell.published("pub t -I a", lines.as_bytes())?;
    ensure!(said == "stored=500 duplicates=0", "{said}");
    for compression in ["none", "lz4", "zstd"] {
        let line = format!("pub t -I a --compression {compression} --batch-bytes 3000");
        let said = shell.published(&line, lines.as_bytes())?;
        ensure!(said == "stored=0 duplicates=500", "{compression}: {said}");
    }
    let said = shell.ended("pub t -I a", b"0\nanother\n")?;
    ensure!(said.code == Some(1) && said.err.contains("IdempotencyKeyReused"), "{}", said.err);
    ensure!(said.err.contains("line 2") && said.err.contains("next:"), "{}", said.err);
    let broker = shell.broker.as_ref().context("a broker runs")?;
    ensure!(broker.metric("postrider_dedup_keys")? == 500.0, "500 keys are remembered");
    ensure!(broker.metric("postrider_dedup_bytes")? > 0.0, "in some memory");
    shell.prints("topic alter t --dedup-window 2h")?;
    ensure!(
        shell.prints("topic show t")?.contains("dedup window:      2h"),
        "the window is altered"
    );
    for (code, line, cause) in [
        (1, "topic create u --dedup-window 100ms", "dedup_window_ms"),
        (1, "topic alter t --dedup-window 8d", "dedup_window_ms"),
    ] {
        let said = shell.fails(code, line)?;
        ensure!(said.contains(cause) && said.contains("next:"), "{line}: {said}");
    }
    let long = "p".repeat(236);
    let said = shell.fails(2, &format!("pub t -I {long}"))?;
    ensure!(said.contains("236 bytes"), "{said}");
    Ok(())
}
