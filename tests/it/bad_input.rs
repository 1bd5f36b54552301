//! Bytes that no client sends, and too many clients: answered, counted, bounded; others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::frame::{FrameHeader, request};
use postrider_protocol::message::{Confirm, Outcome, Ping};
use postrider_protocol::types::{CorrelationId, Durability, Offset};
use postrider_tests::process::{BrokerCommand, RunningBroker, wait_until};
use postrider_tests::wire::{WireClient, WireTopic, hello};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::broker;

/// A client that publishes one message after the other all the time; every one must be stored, in order.
pub(crate) struct Undisturbed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Undisturbed {
    pub(crate) fn start(command: &BrokerCommand) -> Result<Self> {
        let mut client = WireClient::greeted(command.listen())?;
        let topic = client.create_topic("undisturbed", Durability::Fsync)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let run = client.publish(&topic, count, &[b"undisturbed"])?;
                let Outcome::Committed { base_offset, .. } = run.outcome else {
                    anyhow::bail!("not committed: {run:?}");
                };
                anyhow::ensure!(base_offset == Offset(count), "{base_offset} instead of {count}");
                count += 1;
            }
            Ok(count)
        });
        Ok(Self { stop, thread })
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(count) = self.thread.join() else { anyhow::bail!("the publisher panicked") };
        anyhow::ensure!(count? > 0, "nothing was published meanwhile");
        Ok(())
    }
}

fn header(body_len: u32, api: u16, flags: u8) -> [u8; 16] {
    FrameHeader { body_len, api, version: 1, flags, correlation: CorrelationId(9) }.encode()
}

/// Every kind of bad start of a connection, with the code that must come back.
fn before_hello() -> Vec<(&'static str, Vec<u8>, ErrorCode)> {
    let garbage: Vec<u8> =
        (0..4096_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2] | 1).collect();
    let mut bad_hello = request(&hello(), CorrelationId(1)).to_vec();
    bad_hello.push(0);
    bad_hello[0] += 1; // one byte too many in the body
    vec![
        ("garbage", garbage, ErrorCode::FrameTooLarge),
        ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), ErrorCode::FrameTooLarge),
        ("4 GiB", header(u32::MAX, 1, 0).to_vec(), ErrorCode::FrameTooLarge),
        ("flags", header(0, 1, 0x40).to_vec(), ErrorCode::MalformedFrame),
        ("ping first", request(&Ping {}, CorrelationId(1)).to_vec(), ErrorCode::NotNegotiated),
        ("bad hello", bad_hello, ErrorCode::MalformedFrame),
    ]
}

fn refused(command: &BrokerCommand, greeted: bool, bytes: &[u8]) -> Result<ErrorCode> {
    let mut client = WireClient::connect(command.listen())?;
    if greeted {
        client.greet()?;
    }
    client.send(bytes)?;
    Ok(client.last_error()?.code)
}

pub(crate) fn labelled(running: &RunningBroker, series: &str) -> Result<u64> {
    let (_, text) = running.admin("/metrics")?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {series}"))?.parse()?)
}

pub(crate) fn resident(running: &RunningBroker) -> Result<u64> {
    labelled(running, "process_resident_memory_bytes")
}

#[test]
fn bad_bytes_get_typed_errors_and_disturb_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let topic = WireClient::greeted(command.listen())?.create_topic("other", Durability::Fsync)?;

    let publish_first = topic.publish_frame(1, &[b"x"])?;
    assert_eq!(refused(&command, false, &publish_first)?, ErrorCode::NotNegotiated);
    for (name, bytes, code) in before_hello() {
        assert_eq!(refused(&command, false, &bytes)?, code, "{name}");
    }
    assert_eq!(refused(&command, true, &header(u32::MAX, 21, 0))?, ErrorCode::FrameTooLarge);
    assert_eq!(refused(&command, true, &header(4, 10, 0x80))?, ErrorCode::MalformedFrame);
    let counted = ["FrameTooLarge", "MalformedFrame", "NotNegotiated"];
    for code in counted {
        let series = format!("postrider_errors_total{{code=\"{code}\"}}");
        assert!(labelled(&running, &series)? >= 2, "{code}");
    }
    let closed = "postrider_connections_closed_total{reason=\"error\"}";
    wait_until("all are counted", || labelled(&running, closed).is_ok_and(|count| count >= 9))?;
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn an_unknown_api_and_a_wrong_crc_fail_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    let topic = client.create_topic("exact", Durability::Fsync)?;

    client.send(&header(0, 999, 0))?;
    let frame = client.frame()?.context("an answer")?;
    assert!(frame.header.is_error());
    assert_eq!(
        postrider_protocol::error::ErrorBody::decode(&frame.body)?.code,
        ErrorCode::UnknownApi
    );

    let mut wrong = topic.publish_frame(5, &[b"changed on the way"])?;
    *wrong.last_mut().context("a frame has bytes")? ^= 1;
    client.send(&wrong)?;
    let outcome = next_confirm(&mut client)?;
    let Outcome::Rejected { error } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.code, ErrorCode::CorruptBatch);

    // The connection goes on, and nothing false was stored.
    let run = client.publish(&topic, 6, &[b"right"])?;
    assert!(matches!(run.outcome, Outcome::Committed { base_offset: Offset(0), .. }), "{run:?}");
    assert_eq!(client.read_all("exact")?, [(Offset(0), b"right".to_vec())]);
    assert!(running.terminate()?.success());
    Ok(())
}

fn next_confirm(client: &mut WireClient) -> Result<Outcome> {
    let frame = client.frame()?.context("closed instead of a confirm")?;
    let Confirm { runs } = frame.message()?;
    Ok(runs.into_iter().next().context("a confirm has a run")?.outcome)
}

#[test]
fn half_a_frame_and_silence_are_cut_off_in_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("short.toml");
    std::fs::write(&file, "[net]\nhandshake_timeout = \"300ms\"\nframe_timeout = \"300ms\"\n")?;
    let command = broker(dir.path())?.arg("--config").arg(&file.display().to_string());
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let mut half = WireClient::greeted(command.listen())?;
    half.send(&header(1000, 21, 0))?;
    let mut silent = WireClient::connect(command.listen())?;
    let mut half_hello = WireClient::connect(command.listen())?;
    half_hello.send(&request(&hello(), CorrelationId(1))[..20])?;
    for client in [&mut half, &mut silent, &mut half_hello] {
        assert_eq!(client.last_error()?.code, ErrorCode::TimedOut);
    }
    let closed = |reason: &str| {
        labelled(&running, &format!("postrider_connections_closed_total{{reason=\"{reason}\"}}"))
    };
    // A connection is counted once it is gone, a moment after its last words.
    wait_until("all three are counted", || {
        closed("frame_timeout").is_ok_and(|count| count == 1)
            && closed("handshake_timeout").is_ok_and(|count| count == 2)
    })?;
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn memory_stays_steady_under_bad_input() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let topic = WireClient::greeted(command.listen())?.create_topic("steady", Durability::Fsync)?;
    let round = || -> Result<()> {
        for _ in 0..50 {
            for (_, bytes, _) in before_hello() {
                refused(&command, false, &bytes)?;
            }
            abandon(&command, &topic)?;
        }
        wait_until("all bad connections are gone", || {
            running.metric("postrider_connections").is_ok_and(|open| open < 1.0)
        })
    };
    round()?;
    let before = resident(&running)?;
    for _ in 0..3 {
        round()?;
    }
    let after = resident(&running)?;
    assert!(after < before + (4 << 20), "{before} bytes grew to {after}");
    assert!(running.terminate()?.success());
    Ok(())
}

/// Announces a large publish, sends half of it, and hangs up.
fn abandon(command: &BrokerCommand, topic: &WireTopic) -> Result<()> {
    let value = vec![b'x'; 512 << 10];
    let frame = topic.publish_frame(1, &[&value])?;
    let mut client = WireClient::greeted(command.listen())?;
    client.send(&frame[..frame.len() / 2])?;
    client.finish()
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_disturb_nobody() -> Result<()> {
    let wanted = 10_000;
    // The broker inherits the limit; each side has one file per connection.
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    let room = hard.unwrap_or(u64::MAX).saturating_sub(2_000);
    let count = usize::try_from(room.min(wanted))?;
    eprintln!("{count} idle connections (the limit of open files is {hard:?})");

    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let before = resident(&running)?;
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        idle.push(WireClient::greeted(command.listen())?);
    }
    let open = running.metric("postrider_connections")?;
    assert!(open >= count as f64, "{open} of {count} are open");
    let growth = resident(&running)?.saturating_sub(before);
    let each = growth / count as u64;
    eprintln!("{each} bytes for each idle connection");
    assert!(each < 16 << 10, "{growth} bytes for {count} idle connections");
    for client in idle.iter_mut().step_by(997) {
        client.ping()?;
    }
    drop(idle);
    wait_until("the idle connections are gone", || {
        running.metric("postrider_connections").is_ok_and(|open| open < 2.0)
    })?;
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn one_connection_too_many_is_refused_and_the_others_go_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("few.toml");
    std::fs::write(&file, "[net]\nconnections_max = 2\n")?;
    let command = broker(dir.path())?.arg("--config").arg(&file.display().to_string());
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let mut second = WireClient::greeted(command.listen())?;
    for _ in 0..10 {
        let mut third = WireClient::connect(command.listen())?;
        assert_eq!(third.last_error()?.code, ErrorCode::LimitExceeded);
    }
    second.ping()?;
    drop(second);
    wait_until("there is room again", || WireClient::greeted(command.listen()).is_ok())?;
    assert!(running.metric("postrider_connections_refused_total")? >= 10.0);
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_costs_bounded_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("slow.toml");
    std::fs::write(&file, "[net]\nwrite_timeout = \"500ms\"\n")?;
    let command = broker(dir.path())?.arg("--config").arg(&file.display().to_string());
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    let topic = client.create_topic("large", Durability::Memory)?;
    let value = vec![b'x'; 1 << 20];
    for tag in 0..64 {
        client.publish(&topic, tag, &[&value])?;
    }
    let before = resident(&running)?;
    let mut slow = WireClient::greeted(command.listen())?;
    slow.subscribe_and_look_away("large")?;
    wait_until("the slow reader is cut off", || {
        labelled(&running, "postrider_connections_closed_total{reason=\"slow_reader\"}")
            .is_ok_and(|count| count == 1)
    })?;
    // The mapped segments count as resident: 64 MiB of them may have been touched.
    assert!(resident(&running)? < before + (72 << 20));
    client.ping()?;
    assert!(running.terminate()?.success());
    Ok(())
}
