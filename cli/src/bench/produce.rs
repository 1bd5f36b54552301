//! `bench produce`: publishes and measures acknowledgements.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::args::ProduceOptions;
use super::load::{Plan, Sent};
use super::meter::Meter;
use super::process;
use super::report::{Intervals, Loop, Report, ServerWatch};
use super::schedule::is_saturated;
use super::setup::{self, Publishers};
use crate::connect::{block_on, close, connect};
use crate::exit::Outcome;

/// Runs the test and delivers its result.
pub(crate) fn run(options: &ProduceOptions) -> Outcome {
    block_on(options.report.threads, produce(options))
}

async fn produce(options: &ProduceOptions) -> Outcome {
    let ProduceOptions { target, load, report, client } = options;
    let control = connect(client).await?;
    let partitions = setup::topic(&control, target).await?;
    close(&control).await;
    let publishers = Publishers::connect(client, &target.topic, load).await?;
    let server_pid = report.server_pid.or_else(|| process::listener_of(&client.server));

    let meter = Arc::new(Meter::new());
    let plan = Plan::new(load, Publishers::start());
    let mut workers = publishers.spawn(load, plan, None, &meter);
    let mut intervals = Intervals::new(plan.start);
    let watch = tokio::spawn(async move {
        tokio::time::sleep_until(plan.warm().into()).await;
        ServerWatch::start(server_pid)
    });
    let sent = setup::supervise(&mut workers, &meter, &mut intervals, report).await?;
    let elapsed = Instant::now().saturating_duration_since(plan.warm());
    let used = watch.await.ok().map(ServerWatch::stop);
    publishers.close().await;

    let total = total(&sent);
    let load_loop = if plan.rate.is_some() { Loop::Open } else { Loop::Closed };
    let due = if load_loop == Loop::Open { total.due } else { total.sent };
    Report {
        command: "produce",
        topic: &target.topic,
        server: &client.server,
        server_version: publishers.server_version(),
        messages: meter.acked.value(),
        bytes: meter.acked_bytes.value(),
        elapsed,
        load_loop,
        latencies: meter.acks.total(),
        errors: meter.errors.value(),
        used: used.unwrap_or_default(),
        extra: vec![
            ("sent", json!(total.sent)),
            ("due", json!(due)),
            ("duplicates", json!(meter.duplicates.value())),
            ("generator_saturated", json!(is_saturated(due, total.sent))),
            ("service_us", meter.service.total().to_json()),
            ("schedule_lag_us", meter.schedule_lag.total().to_json()),
        ],
        config: setup::load_json(load, target, partitions),
        intervals: intervals.into_json(),
    }
    .deliver(report)
}

/// What all connections did together.
pub(crate) fn total(sent: &[Sent]) -> Sent {
    sent.iter().fold(Sent::default(), |sum, one| Sent {
        producer: 0,
        sent: sum.sent + one.sent,
        due: sum.due + one.due,
        all: sum.all + one.all,
    })
}
