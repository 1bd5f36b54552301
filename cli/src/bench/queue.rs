//! `bench queue`: publishes to a queue and works on it at once; each message is leased and acknowledged on its
//! own, and each is judged. `worker` owns a working connection, `ledger` the judgement.

mod ledger;
mod verdict;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::{Client, Consumer, NewQueue, NewSubscription, QueuePolicy, Raw, Start};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::ledger::Ledger;
use self::verdict::{End, Verdict};
use self::worker::{Tally, Worker};
use super::args::QueueOptions;
use super::end_to_end::fresh_id;
use super::load::{Backlog, CLOCK_EVERY, Plan, Sent};
use super::meter::Meter;
use super::process;
use super::produce::total;
use super::report::{Intervals, Loop, Report, ServerWatch};
use super::schedule::is_saturated;
use super::setup::{self, Publishers};
use super::stamp::{NUMBERED_BYTES, Stamp, StampKind};
use crate::connect::{block_on, close, connect, queue_failure, queue_open_failure};
use crate::exit::{Failure, Outcome};

/// Bytes that a worker may hold for each message of its prefetch, at most as many as a connection can take.
const PREFETCH_BYTES_MAX: u64 = 1 << 30;
/// How often the watch looks whether anything moves.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs the test, delivers its result and judges it.
pub(crate) fn run(options: &QueueOptions) -> Outcome {
    if options.load.size.smallest < NUMBERED_BYTES {
        return Err(Failure::usage(format!(
            "--size must be at least {NUMBERED_BYTES} bytes, which carry the message's number"
        ))
        .next("name a larger --size"));
    }
    block_on(options.report.threads, queue(options))
}

/// What a task of the test returns.
enum Done {
    Published(Vec<Sent>, End),
    Worked(Tally),
}

async fn queue(options: &QueueOptions) -> Outcome {
    let QueueOptions { target, load, report, client, .. } = options;
    let control = connect(client).await?;
    let partitions = create(&control, options).await?;
    let publishers = Publishers::connect(client, &target.topic, load).await?;
    let (clients, consumers) = attach(options).await?;
    let server_pid = report.server_pid.or_else(|| process::listener_of(&client.server));

    let meter = Arc::new(Meter::new());
    let plan = Plan::new(load, Publishers::start());
    let stamp = Stamp { test: fresh_id(), start: plan.start, kind: StampKind::Numbered };
    let keys_checked = options.keys.filter(|_| options.key_order);
    let ledger = Arc::new(Mutex::new(Ledger::new(load.producers, keys_checked)));
    let done: Arc<[_]> = (0..load.producers).map(|_| watch::Sender::new(0)).collect();
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for consumer in consumers {
        let worker = Worker {
            consumer,
            topic: target.topic.clone(),
            stamp,
            ledger: Arc::clone(&ledger),
            meter: Arc::clone(&meter),
            done: Arc::clone(&done),
            stop: stopped.clone(),
            tally: Tally::default(),
            pending: std::collections::VecDeque::new(),
            turn: worker::Turn::default(),
        };
        tasks.spawn(async move { worker.run().await.map(Done::Worked) });
    }
    let messages_max = (options.backlog / u64::from(load.producers)).max(CLOCK_EVERY);
    let backlog = |producer: u32| {
        let done = done.get(producer as usize)?.subscribe();
        Some(Backlog { messages_max, done })
    };
    let sending = publishers.spawn_with(load, plan, Some(stamp), &meter, &keys(options), backlog);
    let watching = Watching {
        meter: Arc::clone(&meter),
        ledger: Arc::clone(&ledger),
        patience: client.timeout,
    };
    tasks.spawn(async move {
        let (sent, end) = watching.until_worked_off(sending).await?;
        stop.send_replace(true);
        Ok(Done::Published(sent, end))
    });
    let mut intervals = Intervals::new(plan.start);
    let watch = tokio::spawn(async move {
        tokio::time::sleep_until(plan.warm().into()).await;
        ServerWatch::start(server_pid)
    });
    let results = setup::supervise(&mut tasks, &meter, &mut intervals, report).await?;
    let used = watch.await.ok().map(ServerWatch::stop);
    let (sent, end, tally) = summed(results);
    let verdict = {
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Verdict::of(&mut ledger, &sent, end, tally)
    };
    let failure = verdict.failure(&control, options).await;
    publishers.close().await;
    for client in clients.iter().chain([&control]) {
        close(client).await;
    }

    let all = total(&sent);
    let load_loop = if plan.rate.is_some() { Loop::Open } else { Loop::Closed };
    let due = if load_loop == Loop::Open { all.due } else { all.sent };
    let ended = tally.last.unwrap_or_else(Instant::now);
    let mut extra = vec![
        ("sent", json!(all.sent)),
        ("due", json!(due)),
        ("published", json!(all.all)),
        ("workers", json!(options.workers)),
        ("generator_saturated", json!(is_saturated(due, all.sent))),
        ("ack_latency_us", meter.acks.total().to_json()),
        ("settle_latency_us", meter.settles.total().to_json()),
        ("schedule_lag_us", meter.schedule_lag.total().to_json()),
    ];
    extra.extend(verdict.to_json());
    let delivered = Report {
        command: "queue",
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
        extra,
        config: config_json(options, partitions),
        intervals: intervals.into_json(),
    }
    .deliver(report);
    // The judgement weighs more than a slow run.
    failure.map_or(delivered, Err)
}

fn summed(results: Vec<Done>) -> (Vec<Sent>, End, Tally) {
    let (mut sent, mut end, mut sum) = (Vec::new(), End::WorkedOff, Tally::default());
    for result in results {
        match result {
            Done::Published(all, how) => (sent, end) = (all, how),
            Done::Worked(tally) => {
                sum = Tally {
                    leases_lost: sum.leases_lost + tally.leases_lost,
                    gone: sum.gone + tally.gone,
                    leftovers: sum.leftovers + tally.leftovers,
                    last: sum.last.max(tally.last),
                }
            }
        }
    }
    (sent, end, sum)
}

fn keys(options: &QueueOptions) -> Arc<[Bytes]> {
    (0..options.keys.unwrap_or(0)).map(|key| Bytes::from(format!("key-{key}"))).collect()
}

fn config_json(options: &QueueOptions, partitions: u32) -> Value {
    let mut config = setup::load_json(&options.load, &options.target, partitions);
    config["workers"] = json!(options.workers);
    config["prefetch"] = json!(options.prefetch);
    config["backlog"] = json!(options.backlog);
    config["keys"] = json!(options.keys);
    config["key_order"] = json!(options.key_order);
    config["subscription"] = json!(options.subscription);
    config
}

/// Creates the queue, or the topic and its subscription, if they are not there. Returns the partitions.
async fn create(control: &Client, options: &QueueOptions) -> Outcome<u32> {
    let QueueOptions { target, subscription, .. } = options;
    let admin = control.admin();
    let failure = |error| queue_failure(&error, &target.topic);
    let policy = QueuePolicy { key_order: options.key_order, ..QueuePolicy::default() };
    if let Some(name) = subscription {
        let partitions = setup::topic(control, target).await?;
        let subscription = NewSubscription::new(&target.topic, name)
            .from(Start::Latest)
            .queue(policy)
            .if_not_exists();
        admin.create_subscription(subscription).await.map_err(failure)?;
        check_order(control, options).await?;
        return Ok(partitions);
    }
    let queue = NewQueue::new(&target.topic)
        .partitions(target.partitions.unwrap_or(1))
        .durability(target.durability.into())
        .policy(policy)
        .if_not_exists();
    admin.create_queue(queue).await.map_err(failure)?;
    let partitions = check_order(control, options).await?;
    setup::check_partitions(target, partitions)
}

/// A queue that was there must keep order per key if that is to be checked. Returns the partitions.
async fn check_order(control: &Client, options: &QueueOptions) -> Outcome<u32> {
    let name = queue_name(options);
    let described = control.admin().describe_queue(name).await;
    let described = described.map_err(|error| queue_failure(&error, &options.target.topic))?;
    if options.key_order && !described.policy.key_order {
        return Err(Failure::failed(format!(
            "queue {:?} exists and keeps no order per key",
            options.target.topic
        ))
        .next("name another queue, or leave --key-order out"));
    }
    Ok(u32::try_from(described.partitions.len()).unwrap_or(u32::MAX))
}

fn queue_name(options: &QueueOptions) -> postrider::QueueName {
    postrider::QueueName {
        topic: options.target.topic.clone(),
        subscription: options.subscription.clone(),
    }
}

/// The working connections.
async fn attach(options: &QueueOptions) -> Outcome<(Vec<Client>, Vec<Consumer<Raw>>)> {
    let topic = &options.target.topic;
    let message_bytes = options.load.size.largest as u64 + 256;
    let prefetch_bytes = (u64::from(options.prefetch) * message_bytes).min(PREFETCH_BYTES_MAX);
    let (mut clients, mut consumers) = (Vec::new(), Vec::new());
    for number in 0..options.workers {
        let client = connect(&options.client).await?;
        let mut builder = client
            .consumer::<Raw>(topic)
            .prefetch(options.prefetch)
            .prefetch_bytes(u32::try_from(prefetch_bytes).unwrap_or(u32::MAX))
            .name(format!("bench-{number}"));
        if let Some(name) = &options.subscription {
            builder = builder.subscription(name);
        }
        consumers
            .push(builder.subscribe().await.map_err(|error| queue_open_failure(&error, topic))?);
        clients.push(client);
    }
    Ok((clients, consumers))
}

/// Sees whether the test goes on.
struct Watching {
    meter: Arc<Meter>,
    ledger: Arc<Mutex<Ledger>>,
    /// How long nothing may move while messages wait.
    patience: Duration,
}

impl Watching {
    /// Returns when all that was published is confirmed, or when nothing moves any more.
    async fn until_worked_off(
        self,
        mut sending: JoinSet<Outcome<Sent>>,
    ) -> Outcome<(Vec<Sent>, End)> {
        let mut sent = Vec::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let (mut seen, mut moved_at) = ((0, 0), Instant::now());
        loop {
            tokio::select! {
                Some(joined) = sending.join_next() => {
                    let one = joined.map_err(|error| {
                        Failure::failed(format!("a publisher failed: {error}"))
                    })?;
                    sent.push(one?);
                }
                _ = looks.tick() => {}
            }
            let confirmed = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).confirmed();
            let published = self.meter.acked_all.value();
            if sending.is_empty() && confirmed >= total(&sent).all {
                return Ok((sent, End::WorkedOff));
            }
            // An open loop may have nothing to do for long.
            if (published, confirmed) != seen || published <= confirmed {
                (seen, moved_at) = ((published, confirmed), Instant::now());
            } else if moved_at.elapsed() >= self.patience {
                return Ok((sent, End::Stuck { after: self.patience, published, confirmed }));
            }
        }
    }
}
