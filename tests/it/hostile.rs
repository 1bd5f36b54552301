//! Clients that misuse a correct protocol: bad batches, bombs, crowds that hang up, readers and writers
//! that do not do their part. A good client is served all the while.

use std::io::ErrorKind;

use anyhow::{Context, Result, bail, ensure};
use postrider_protocol::batch::{Batch, BatchBuilder};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{FrameHeader, event, request};
use postrider_protocol::message::{Confirm, Credit, Outcome, Ping};
use postrider_protocol::types::{
    Compression, CorrelationId, Durability, Offset, ProducerEpoch, ProducerId, Sequence,
    SubscriptionHandle, TimestampMs, TopicId,
};
use postrider_tests::process::wait_until;
use postrider_tests::wire::{WireClient, WireTopic, hello};

use crate::bad_input::{Undisturbed, labelled, resident};
use crate::broker;

/// Bytes of a large message.
const LARGE_BYTES: usize = 1 << 20;

fn batch(compression: Compression, value: &[u8]) -> Result<Batch> {
    let mut builder = BatchBuilder::new(compression, 1024);
    builder.push(None, Some(value), &[], TimestampMs(1))?;
    Ok(builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0)))
}

/// A batch whose body is changed before its crc is computed.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Batch> {
    let mut batch = batch(Compression::None, b"a value")?;
    let mut body = batch.body.to_vec();
    change(&mut body);
    batch.crc = crc_of(&body)?;
    batch.body = body.into();
    Ok(batch)
}

/// The protocol's crc, as a batch of the same body has it.
fn crc_of(body: &[u8]) -> Result<u32> {
    let candidate = Batch { body: body.to_vec().into(), crc: 0, record_count: 1 };
    let mut crc = u32::MAX;
    for byte in &candidate.body {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    let crc = !crc;
    ensure!(Batch { crc, ..candidate }.check_crc(), "the crc of this test is another one");
    Ok(crc)
}

fn outcome_of(client: &mut WireClient, tag: u64) -> Result<Outcome> {
    let frame = client.frame()?.context("closed instead of a confirm")?;
    if frame.header.is_error() {
        bail!("refused: {}", ErrorBody::decode(&frame.body)?);
    }
    let Confirm { runs } = frame.message()?;
    let run = runs.into_iter().next().context("a confirm has a run")?;
    ensure!(run.base_sequence == Sequence(tag), "confirm of another publish: {run:?}");
    Ok(run.outcome)
}

#[test]
fn every_wrong_batch_is_rejected_alone_and_not_stored() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let mut client = WireClient::greeted(command.listen())?;
    let topic = client.create_topic("exact", Durability::Fsync)?;
    let nowhere = WireTopic { id: TopicId([0xee; 16]), ..topic.clone() };
    let right = batch(Compression::None, b"a value")?;
    let cases = [
        ("codec", topic.frame_of(1, &changed(|body| body[1] = 5)?), "UnsupportedCompression"),
        ("attributes", topic.frame_of(2, &changed(|body| body[1] = 0x40)?), "CorruptBatch"),
        ("delta", topic.frame_of(3, &changed(|body| body[5] = 9)?), "CorruptBatch"),
        ("time", topic.frame_of(4, &changed(|body| body[6] = 0x80)?), "CorruptBatch"),
        ("count", topic.frame_of(5, &changed(|body| body[39] = 7)?), "CorruptBatch"),
        ("short", topic.frame_of(6, &changed(|body| body.truncate(17))?), "CorruptBatch"),
        ("crc", topic.frame_of(7, &Batch { crc: 1, ..right.clone() }), "CorruptBatch"),
        ("topic", nowhere.frame_of(8, &right), "UnknownTopic"),
    ];
    for (tag, (name, frame, code)) in (1..).zip(&cases) {
        client.send(frame)?;
        let outcome = outcome_of(&mut client, tag).context(*name)?;
        let Outcome::Rejected { error } = outcome else { panic!("{name}: {outcome:?}") };
        assert_eq!(error.code.name(), *code, "{name}: {error}");
    }
    client.publish(&topic, 99, &[b"right"])?;
    assert_eq!(client.read_all("exact")?, [(Offset(0), b"right".to_vec())]);
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn a_compressed_bomb_costs_the_broker_its_compressed_size() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    let topic = client.create_topic("bombs", Durability::Fsync)?;
    client.publish(&topic, 1, &[b"first"])?;
    let before = resident(&running)?;
    let zeros = vec![0; 512 << 20];
    for (tag, codec) in (2..).zip([Compression::Zstd, Compression::Lz4]) {
        let bomb = batch(codec, &zeros)?;
        ensure!(bomb.body.len() < 8 << 20, "the zeros were compressed");
        client.send(&topic.frame_of(tag, &bomb))?;
        // Nobody has looked inside: that is the reader's business, and it has a bound of its own.
        let outcome = outcome_of(&mut client, tag)?;
        ensure!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }
    let after = resident(&running)?;
    assert!(after < before + (48 << 20), "{before} bytes grew to {after}");
    let mut reader = WireClient::greeted(command.listen())?;
    let error = reader.read_all("bombs").expect_err("the bomb is above the reader's bound");
    ensure!(error.to_string().contains("larger than"), "{error}");
    client.ping()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn misplaced_requests_end_only_their_connection() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;

    // A version that the broker does not have: refused, and the connection goes on.
    let mut client = WireClient::greeted(command.listen())?;
    let mut future = request(&Ping {}, CorrelationId(3)).to_vec();
    future[6] = 99;
    client.send(&future)?;
    let frame = client.frame()?.context("an answer")?;
    assert_eq!(ErrorBody::decode(&frame.body)?.code, ErrorCode::UnsupportedVersion);
    client.ping()?;

    // A second `Hello`, a body that is no body, and a list longer than its frame.
    let long_list = [&u32::MAX.to_le_bytes()[..], b"abc"].concat();
    let header = |api, body_len| {
        let correlation = CorrelationId(4);
        FrameHeader { body_len, api, version: 1, flags: 0, correlation }.encode().to_vec()
    };
    let cases = [
        ("second hello", request(&hello(), CorrelationId(2)).to_vec()),
        ("empty create", header(11, 0)),
        ("long list", [header(10, 7), long_list].concat()),
        ("short publish", [header(21, 10), vec![1; 10]].concat()),
    ];
    for (name, bytes) in cases {
        let mut client = WireClient::greeted(command.listen())?;
        client.send(&bytes)?;
        let error = client.last_error().context(name)?;
        assert!(!error.message.is_empty(), "{name}");
    }

    // Credit for a subscription that does not exist is late, not wrong.
    client.send(&event(&Credit { handle: SubscriptionHandle(77), messages: 1, bytes: 1 }))?;
    client.ping()?;
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn thousands_of_connections_that_hang_up_leave_nothing_behind() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let files = running.metric("process_open_fds")?;
    let greeting = request(&hello(), CorrelationId(1));
    for number in 0..3000 {
        let mut client = WireClient::connect(command.listen())?;
        match number % 4 {
            0 => {}
            1 => client.send(&greeting[..number % greeting.len()])?,
            2 => client.send(&greeting)?,
            _ => {
                client.greet()?;
            }
        }
    }
    wait_until("only the publisher is left", || {
        running.metric("postrider_connections").is_ok_and(|open| open == 1.0)
            && running.metric("process_open_fds").is_ok_and(|now| now <= files + 4.0)
    })?;
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn frames_that_come_byte_by_byte_hold_up_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let ping = request(&Ping {}, CorrelationId(5));
    let mut slow: Vec<WireClient> =
        (0..100).map(|_| WireClient::greeted(command.listen())).collect::<Result<_>>()?;
    let mut good = WireClient::greeted(command.listen())?;
    for byte in &ping {
        for client in &mut slow {
            client.send(&[*byte])?;
        }
        good.ping()?;
    }
    for client in &mut slow {
        let answer = client.frame()?.context("a whole frame is answered")?;
        ensure!(answer.header.is_reply() && !answer.header.is_error());
    }
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn a_publisher_that_reads_no_confirms_is_bounded_and_cut_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("small.toml");
    std::fs::write(
        &file,
        "[net]\nwrite_timeout = \"500ms\"\n[limits]\nreply_bytes_max = \"64KiB\"\n",
    )?;
    let command = broker(dir.path())?.arg("--config").arg(&file.display().to_string());
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let before = resident(&running)?;
    let mut deaf = WireClient::greeted(command.listen())?;
    // Each of these is refused with some hundred bytes of reason, which nobody reads.
    let mut wrong = deaf.create_topic("deaf", Durability::Memory)?;
    wrong.id = TopicId([0xee; 16]);
    let frame = wrong.publish_frame(1, &[b"x"])?;
    let block = frame.repeat(1000);
    let mut sent: u64 = 0;
    let error = loop {
        match deaf.send(&block) {
            Ok(()) => sent += 1000,
            Err(error) => break error,
        }
        ensure!(sent < 10_000_000, "the broker takes publishes for ever");
    };
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(
        matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)),
        "cut off, not stuck: {error}"
    );
    wait_until("it is counted", || {
        labelled(&running, "postrider_connections_closed_total{reason=\"slow_reader\"}")
            .is_ok_and(|count| count == 1)
    })?;
    let after = resident(&running)?;
    assert!(after < before + (24 << 20), "{before} bytes grew to {after}");
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn a_flood_of_large_publishes_is_answered_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let publisher = Undisturbed::start(&command)?;
    let mut flood = WireClient::greeted(command.listen())?;
    let topic = flood.create_topic("flood", Durability::Memory)?;
    let value = vec![b'x'; LARGE_BYTES];
    let count = 32;
    for tag in 0..count {
        flood.send(&topic.publish_frame(tag, &[&value])?)?;
    }
    let mut answered = 0;
    while answered < count {
        let frame = flood.frame()?.context("closed instead of a confirm")?;
        let Confirm { runs } = frame.message()?;
        answered += runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
    }
    publisher.stop()?;
    assert!(running.terminate()?.success());
    Ok(())
}
