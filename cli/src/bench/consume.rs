//! `bench consume`: reads a topic from its beginning, with an ephemeral subscription for each run, and
//! measures deliveries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider::{Client, Raw, Reader, Start};
use serde_json::json;
use tokio::task::JoinSet;

use super::args::ConsumeOptions;
use super::meter::{Latencies, Meter};
use super::process;
use super::report::{Intervals, Loop, Report, ServerWatch};
use super::setup;
use crate::connect::{block_on, close, connect, open_failure, read_failure};
use crate::ends::Ends;
use crate::exit::{Exit, Failure, Outcome};

/// Runs the test and delivers its result.
pub(crate) fn run(options: &ConsumeOptions) -> Outcome {
    block_on(options.report.threads, consume(options))
}

/// Where a consumer stops.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// Where the topic ended when the consumer was opened.
    End,
    Messages(u64),
    At(Instant),
}

async fn consume(options: &ConsumeOptions) -> Outcome {
    let ConsumeOptions { topic, report, client, .. } = options;
    let server_pid = report.server_pid.or_else(|| process::listener_of(&client.server));
    let mut clients = Vec::new();
    for _ in 0..options.consumers {
        clients.push(connect(client).await?);
    }
    let meter = Arc::new(Meter::new());
    let start = Instant::now();
    let watch = ServerWatch::start(server_pid);
    let mut intervals = Intervals::new(start);
    let stop = match (options.messages, options.duration) {
        (Some(messages), _) => Stop::Messages(messages),
        (None, Some(duration)) => Stop::At(start + duration),
        (None, None) => Stop::End,
    };
    let mut consumers = JoinSet::new();
    for client in &clients {
        let consumer = Consumer {
            client: client.clone(),
            topic: topic.clone(),
            stop,
            patience: options.client.timeout,
            meter: Arc::clone(&meter),
        };
        consumers.spawn(consumer.run());
    }
    let last = setup::supervise(&mut consumers, &meter, &mut intervals, report).await?;
    let ended = last.into_iter().max().unwrap_or(start);
    let used = watch.stop();
    for client in &clients {
        close(client).await;
    }
    Report {
        command: "consume",
        topic,
        server: &client.server,
        server_version: clients.first().map(Client::server_version),
        messages: meter.received.value(),
        bytes: meter.received_bytes.value(),
        elapsed: ended.saturating_duration_since(start),
        load_loop: Loop::ReadOnly,
        latencies: Latencies::new(),
        errors: meter.errors.value(),
        used,
        extra: vec![("consumers", json!(options.consumers))],
        config: json!({
            "consumers": options.consumers,
            "messages": options.messages,
            "duration_s": options.duration.map(|duration| duration.as_secs_f64()),
        }),
        intervals: intervals.into_json(),
    }
    .deliver(report)
}

struct Consumer {
    client: Client,
    topic: String,
    stop: Stop,
    /// How long nothing may come while messages are due.
    patience: Duration,
    meter: Arc<Meter>,
}

impl Consumer {
    /// Reads, and returns when the last message came.
    async fn run(self) -> Outcome<Instant> {
        let opened = self.client.reader::<Raw>(&self.topic).from(Start::Earliest).open().await;
        let mut reader = opened.map_err(|error| open_failure(&error, &self.topic))?;
        let mut ends = Ends::of(reader.partitions());
        let mut received = 0;
        let mut last = Instant::now();
        while !self.is_over(received, &ends) {
            let Some(next) = self.next(&mut reader).await? else { break };
            let batch = match next {
                Ok(batch) => batch,
                Err(error) if error.is_fatal() => return Err(read_failure(&error)),
                Err(error) => {
                    self.meter.errors.add(1);
                    crate::output::note(format_args!("warning: {error}"));
                    if let postrider::ReadError::Gap { partition, to, .. }
                    | postrider::ReadError::Damaged { partition, to, .. } = error
                    {
                        ends.reach(partition, to);
                    }
                    continue;
                }
            };
            let (mut messages, mut bytes) = (0u64, 0u64);
            for message in &batch {
                let message = message.map_err(|error| read_failure(&error))?;
                messages += 1;
                bytes += message.value.map_or(0, <[u8]>::len) as u64;
            }
            self.meter.received.add(messages);
            self.meter.received_bytes.add(bytes);
            received += messages;
            ends.reach(batch.partition(), batch.end());
            last = Instant::now();
        }
        Ok(last)
    }

    fn is_over(&self, received: u64, ends: &Ends) -> bool {
        match self.stop {
            Stop::End => ends.are_reached(),
            Stop::Messages(messages) => received >= messages,
            Stop::At(deadline) => Instant::now() >= deadline,
        }
    }

    async fn next(&self, reader: &mut Reader<Raw>) -> Outcome<Option<Batch>> {
        let patience = match self.stop {
            Stop::At(deadline) => deadline.saturating_duration_since(Instant::now()),
            Stop::End | Stop::Messages(_) => self.patience,
        };
        match (tokio::time::timeout(patience, reader.next_batch()).await, self.stop) {
            (Ok(next), _) => Ok(next),
            (Err(_), Stop::At(_)) => Ok(None),
            (Err(_), _) => Err(Failure::new(
                Exit::TimedOut,
                format!("no message of {:?} came for {patience:?}", self.topic),
            )
            .next("publish more, ask for fewer --messages, or allow more time with --timeout")),
        }
    }
}

type Batch = Result<postrider::MessageBatch<Raw>, postrider::ReadError>;
