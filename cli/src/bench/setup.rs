//! Owns what the load tools do before they measure: the topic, the connections, the workers. Measures
//! nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::{Client, NewTopic, Producer, Raw};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::{LoadOptions, ReportOptions, TargetOptions};
use super::load::{Backlog, Plan, Sent, Worker};
use super::meter::Meter;
use super::payload::Payloads;
use super::report::Intervals;
use super::stamp::Stamp;
use crate::args::ClientOptions;
use crate::connect::{admin_failure, connect, open_failure};
use crate::exit::{Failure, Outcome};
use crate::output::note;
use crate::units::Rate;

/// Creates the topic if it is not there, and checks its partitions. Returns how many it has.
pub(crate) async fn topic(client: &Client, target: &TargetOptions) -> Outcome<u32> {
    let admin = client.admin();
    let new = NewTopic::new(&target.topic)
        .partitions(target.partitions.unwrap_or(1))
        .durability(target.durability.into())
        .if_not_exists();
    let failure = |error| admin_failure(&error, &target.topic);
    match admin.create_topic(new).await {
        Ok(_) => {}
        // A topic that exists with other settings; its partitions are checked below.
        Err(error)
            if error
                .broker_error()
                .is_some_and(|b| b.code == postrider::ErrorCode::TopicExists) => {}
        Err(error) => return Err(failure(error)),
    }
    let described = admin.describe_topic(&target.topic).await.map_err(failure)?;
    check_partitions(target, described.config.partitions)
}

/// The partitions that the topic has, if they are those that the flags name.
pub(crate) fn check_partitions(target: &TargetOptions, partitions: u32) -> Outcome<u32> {
    match target.partitions {
        Some(wanted) if wanted != partitions => Err(Failure::failed(format!(
            "topic {:?} has {partitions} partitions and not {wanted}",
            target.topic
        ))
        .next("name another topic, or leave --partitions out")),
        _ => Ok(partitions),
    }
}

/// A producer with the flags of a load, on a connection of its own.
pub(crate) async fn producer(
    options: &ClientOptions,
    topic: &str,
    load: &LoadOptions,
) -> Outcome<(Client, Producer<Raw>)> {
    let client = connect(options).await?;
    let mut builder = client
        .producer::<Raw>(topic)
        .delivery_timeout(options.timeout)
        .compression(load.compression.into());
    if let Some(bytes) = load.batch_bytes {
        builder = builder.batch_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    if let Some(linger) = load.linger {
        builder = builder.linger(linger);
    }
    let producer = builder.build().await.map_err(|error| open_failure(&error, topic))?;
    Ok((client, producer))
}

/// How long after the connections are made a test starts, so that all of them start together.
const START_DELAY: Duration = Duration::from_millis(20);

/// The publishing half of a test: connections that are ready to start.
pub(crate) struct Publishers {
    clients: Vec<Client>,
    producers: Vec<Producer<Raw>>,
}

impl Publishers {
    pub(crate) async fn connect(
        options: &ClientOptions,
        topic: &str,
        load: &LoadOptions,
    ) -> Outcome<Self> {
        let mut publishers = Self { clients: Vec::new(), producers: Vec::new() };
        for _ in 0..load.producers {
            let (client, producer) = producer(options, topic, load).await?;
            publishers.clients.push(client);
            publishers.producers.push(producer);
        }
        Ok(publishers)
    }

    /// When a test that is planned now may start.
    pub(crate) fn start() -> Instant {
        Instant::now() + START_DELAY
    }

    /// Starts the workers.
    pub(crate) fn spawn(
        &self,
        load: &LoadOptions,
        plan: Plan,
        stamp: Option<Stamp>,
        meter: &Arc<Meter>,
    ) -> JoinSet<Outcome<Sent>> {
        self.spawn_with(load, plan, stamp, meter, &Arc::default(), |_| None)
    }

    /// Starts the workers, with keys for their messages and each with its bound on what waits.
    pub(crate) fn spawn_with(
        &self,
        load: &LoadOptions,
        plan: Plan,
        stamp: Option<Stamp>,
        meter: &Arc<Meter>,
        keys: &Arc<[Bytes]>,
        backlog: impl Fn(u32) -> Option<Backlog>,
    ) -> JoinSet<Outcome<Sent>> {
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let run = began.unwrap_or_default().as_nanos();
        let mut workers = JoinSet::new();
        for (number, producer) in (0..).zip(&self.producers) {
            let worker = Worker {
                number,
                workers: load.producers,
                producer: producer.clone(),
                payloads: Payloads::new(load.payload, load.size, load.seed + u64::from(number)),
                stamp,
                idempotency: load.idempotency_keys.then_some(run),
                keys: Arc::clone(keys),
                backlog: backlog(number),
                plan,
                in_flight_max: load.in_flight.unwrap_or(u64::MAX),
                meter: Arc::clone(meter),
            };
            workers.spawn(worker.run());
        }
        workers
    }

    /// The version of the broker.
    pub(crate) fn server_version(&self) -> Option<String> {
        self.clients.first().map(Client::server_version)
    }

    /// Ends the connections.
    pub(crate) async fn close(&self) {
        for client in &self.clients {
            crate::connect::close(client).await;
        }
    }
}

/// Longer than any test.
const NO_INTERVAL: Duration = Duration::from_secs(365 * 86_400);

/// Waits for workers while it prints interval lines. The first failure ends the test.
pub(crate) async fn supervise<T: 'static>(
    workers: &mut JoinSet<Outcome<T>>,
    meter: &Meter,
    intervals: &mut Intervals,
    options: &ReportOptions,
) -> Outcome<Vec<T>> {
    let interval = Some(options.report_interval).filter(|interval| !interval.is_zero());
    let mut ticks = tokio::time::interval(interval.unwrap_or(NO_INTERVAL));
    ticks.tick().await;
    let mut results = Vec::new();
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                None => return Ok(results),
                Some(Ok(result)) => results.push(result?),
                Some(Err(error)) => return Err(Failure::failed(format!("a worker failed: {error}"))),
            },
            _ = ticks.tick() => note(intervals.line(Instant::now(), meter)),
        }
    }
}

/// The flags of a load, for the result.
pub(crate) fn load_json(load: &LoadOptions, target: &TargetOptions, partitions: u32) -> Value {
    json!({
        "rate": match load.rate {
            Rate::Max => json!("max"),
            Rate::Messages(rate) => json!({ "messages_per_s": rate }),
            Rate::Bytes(rate) => json!({ "bytes_per_s": rate }),
        },
        "messages": load.messages,
        "duration_s": load.duration.map(|duration| duration.as_secs_f64()),
        "warmup_s": load.warmup.as_secs_f64(),
        "size_bytes": [load.size.smallest, load.size.largest],
        "payload": format!("{:?}", load.payload).to_lowercase(),
        "producers": load.producers,
        "in_flight": load.in_flight,
        "batch_bytes": load.batch_bytes,
        "linger_us": load.linger.map(|linger| linger.as_micros() as f64),
        "compression": format!("{:?}", load.compression).to_lowercase(),
        "idempotency_keys": load.idempotency_keys,
        "partitions": partitions,
        "durability": format!("{:?}", target.durability).to_lowercase(),
        "seed": load.seed,
    })
}
