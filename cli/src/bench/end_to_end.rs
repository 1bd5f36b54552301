//! `bench e2e`: publishes and reads at once, and measures from the intended send to the delivery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider::{Raw, Reader, Start};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::args::EndToEndOptions;
use super::load::Plan;
use super::meter::Meter;
use super::produce::total;
use super::report::{Intervals, Loop, Report, ServerWatch};
use super::schedule::is_saturated;
use super::setup::{self, Publishers};
use super::stamp::{STAMP_BYTES, Stamp, StampKind};
use super::{payload::Random, process};
use crate::connect::{block_on, close, connect, open_failure, read_failure};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::note;

/// Runs the test and delivers its result.
pub(crate) fn run(options: &EndToEndOptions) -> Outcome {
    if options.load.size.smallest < STAMP_BYTES {
        return Err(Failure::usage(format!(
            "--size must be at least {STAMP_BYTES} bytes, which carry the send time"
        )));
    }
    block_on(options.report.threads, end_to_end(options))
}

async fn end_to_end(options: &EndToEndOptions) -> Outcome {
    let EndToEndOptions { target, load, report, client, consumers } = options;
    let control = connect(client).await?;
    let partitions = setup::topic(&control, target).await?;
    close(&control).await;
    let publishers = Publishers::connect(client, &target.topic, load).await?;
    let mut reading = Vec::new();
    for _ in 0..*consumers {
        let client = connect(client).await?;
        let opened = client.reader::<Raw>(&target.topic).from(Start::Latest).open().await;
        reading.push((client, opened.map_err(|error| open_failure(&error, &target.topic))?));
    }
    let server_pid = report.server_pid.or_else(|| process::listener_of(&client.server));

    let meter = Arc::new(Meter::new());
    let plan = Plan::new(load, Publishers::start());
    let stamp = Stamp { test: fresh_id(), start: plan.start, kind: StampKind::Timed };
    let (sent_all, expected) = watch::channel(None);
    let mut clients = Vec::new();
    let mut receivers = JoinSet::new();
    for (client, reader) in reading {
        clients.push(client);
        let receiver = Receiver {
            reader,
            stamp,
            expected: expected.clone(),
            patience: options.client.timeout,
            meter: Arc::clone(&meter),
        };
        receivers.spawn(receiver.run());
    }
    let mut workers = publishers.spawn(load, plan, Some(stamp), &meter);
    let mut intervals = Intervals::new(plan.start);
    let watch = tokio::spawn(async move {
        tokio::time::sleep_until(plan.warm().into()).await;
        ServerWatch::start(server_pid)
    });
    let sent = total(&setup::supervise(&mut workers, &meter, &mut intervals, report).await?);
    let acked = Instant::now();
    // A receiver that ended early has failed; that shows below.
    sent_all.send_replace(Some(sent.all));
    let last = setup::supervise(&mut receivers, &meter, &mut intervals, report).await?;
    let ended = last.into_iter().max().unwrap_or(acked).max(acked);
    let used = watch.await.ok().map(ServerWatch::stop);
    publishers.close().await;
    for client in &clients {
        close(client).await;
    }

    let load_loop = if plan.rate.is_some() { Loop::Open } else { Loop::Closed };
    let due = if load_loop == Loop::Open { sent.due } else { sent.sent };
    let published_s = acked.saturating_duration_since(plan.warm()).as_secs_f64();
    Report {
        command: "e2e",
        topic: &target.topic,
        server: &client.server,
        server_version: publishers.server_version(),
        messages: meter.received.value(),
        bytes: meter.received_bytes.value(),
        elapsed: ended.saturating_duration_since(plan.warm()),
        load_loop,
        latencies: meter.deliveries.total(),
        errors: meter.errors.value(),
        used: used.unwrap_or_default(),
        extra: vec![
            ("sent", json!(sent.sent)),
            ("due", json!(due)),
            ("published_msgs_per_s", json!(meter.acked.value() as f64 / published_s.max(1e-9))),
            ("consumers", json!(consumers)),
            ("generator_saturated", json!(is_saturated(due, sent.sent))),
            ("ack_latency_us", meter.acks.total().to_json()),
            ("schedule_lag_us", meter.schedule_lag.total().to_json()),
        ],
        config: setup::load_json(load, target, partitions),
        intervals: intervals.into_json(),
    }
    .deliver(report)
}

/// Tells this test's messages from those of others.
pub(crate) fn fresh_id() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    let mixed = nanos ^ u128::from(std::process::id()) << 64;
    Random::new(u64::try_from(mixed % u128::from(u64::MAX)).unwrap_or(0)).next()
}

struct Receiver {
    reader: Reader<Raw>,
    stamp: Stamp,
    /// How many messages were sent, once that is known.
    expected: watch::Receiver<Option<u64>>,
    patience: Duration,
    meter: Arc<Meter>,
}

impl Receiver {
    /// Receives everything that was sent, and returns when the last message came.
    async fn run(mut self) -> Outcome<Instant> {
        let mut received = 0;
        let mut last = Instant::now();
        loop {
            let expected = *self.expected.borrow_and_update();
            if expected.is_some_and(|expected| received >= expected) {
                return Ok(last);
            }
            let next = tokio::select! {
                biased;
                next = self.reader.next_batch() => next,
                // The sender lives until the receivers have ended.
                changed = self.expected.changed(), if expected.is_none() => {
                    changed.map_err(|_gone| Failure::failed("the publishers failed"))?;
                    continue;
                }
                () = tokio::time::sleep(self.patience), if expected.is_some() => {
                    return Err(self.starved(received, expected.unwrap_or(0)));
                }
            };
            let Some(next) = next else {
                return Err(Failure::failed("the subscription ended"));
            };
            let batch = match next {
                Ok(batch) => batch,
                Err(error) if error.is_fatal() => return Err(read_failure(&error)),
                Err(error) => {
                    self.meter.errors.add(1);
                    note(format_args!("warning: {error}"));
                    continue;
                }
            };
            last = Instant::now();
            received += self.take(&batch, last)?;
        }
    }

    /// Measures a batch and returns how many messages of this test it has.
    fn take(&self, batch: &postrider::MessageBatch<Raw>, now: Instant) -> Outcome<u64> {
        let elapsed = now.saturating_duration_since(self.stamp.start);
        let (mut ours, mut counted, mut bytes) = (0, 0, 0);
        let mut latencies = Vec::new();
        for message in batch {
            let value = message.map_err(|error| read_failure(&error))?.value.unwrap_or_default();
            let Some(stamped) = self.stamp.read(value) else { continue };
            ours += 1;
            if stamped.counted {
                counted += 1;
                bytes += value.len() as u64;
                latencies.push(elapsed.saturating_sub(stamped.intended));
            }
        }
        self.meter.received.add(counted);
        self.meter.received_bytes.add(bytes);
        self.meter.deliveries.record_all(latencies.into_iter());
        Ok(ours)
    }

    fn starved(&self, received: u64, expected: u64) -> Failure {
        Failure::new(
            Exit::TimedOut,
            format!("{received} of {expected} messages came, and none for {:?}", self.patience),
        )
        .next("look at the broker's log, or allow more time with --timeout")
    }
}
