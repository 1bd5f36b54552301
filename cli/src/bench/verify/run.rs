//! Owns publishing for `bench verify`: numbered messages over several connections, through broker restarts;
//! what became of each goes into the state file. Judges nothing.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use postrider::{Client, Producer, Raw, Receipt, Record, SendError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Stream;
use super::message::{self, Identity};
use super::state::{Ending, StateWriter};
use crate::bench::args::VerifyOptions;
use crate::bench::end_to_end::fresh_id;
use crate::bench::pacer::Pacer;
use crate::bench::payload::Random;
use crate::bench::schedule::Schedule;
use crate::bench::setup;
use crate::connect::{close, connect, open_failure, publish_failure};
use crate::exit::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::note;

/// How often what was recorded reaches the file.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);
/// How long it publishes if nothing else is said.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u64,
    acked: u64,
    duplicates: u64,
    rejected: u64,
    unknown: u64,
}

/// Publishes, records, and says what it did.
pub(crate) async fn publish(options: &VerifyOptions) -> Outcome {
    let control = connect(&options.client).await?;
    let partitions = setup::topic(&control, &options.target).await?;
    close(&control).await;
    let run = fresh_id();
    let state = Recorder::begin(&options.state, run, &options.target.topic)?;
    let (stop, stopped) = watch::channel(false);
    let mut workers = JoinSet::new();
    let mut clients = Vec::new();
    let start = Instant::now();
    for number in 0..options.producers {
        let (client, producer) = open(options).await?;
        clients.push(client);
        let worker = Worker {
            run,
            number,
            partitions,
            producer,
            limit: share(options.messages, number, options.producers),
            deadline: deadline(options, start),
            schedule: schedule(options, number),
            sizes: Sizes::new(options, run ^ u64::from(number)),
            in_flight_max: options.in_flight,
            start,
            next: vec![0; usize::try_from(partitions).unwrap_or(0)],
            state: state.clone(),
            stopped: stopped.clone(),
        };
        workers.spawn(worker.run());
    }
    let outcome = follow(&mut workers, &state, &stop).await;
    for client in &clients {
        close(client).await;
    }
    let (tally, failure) = outcome?;
    state.end(tally.sent)?;
    note(format_args!(
        "published={} acknowledged={} duplicates={} rejected={} unknown={}",
        tally.sent, tally.acked, tally.duplicates, tally.rejected, tally.unknown
    ));
    failure.map_or(Ok(()), Err)
}

async fn open(options: &VerifyOptions) -> Outcome<(Client, Producer<Raw>)> {
    let client = connect(&options.client).await?;
    let topic = &options.target.topic;
    let builder = client.producer::<Raw>(topic).delivery_timeout(options.client.timeout);
    let producer = builder.build().await.map_err(|error| open_failure(&error, topic))?;
    Ok((client, producer))
}

fn share(messages: Option<u64>, number: u32, producers: u32) -> u64 {
    let (number, producers) = (u64::from(number), u64::from(producers));
    messages.map_or(u64::MAX, |all| all / producers + u64::from(number < all % producers))
}

fn deadline(options: &VerifyOptions, start: Instant) -> Option<Instant> {
    match (options.messages, options.duration) {
        (_, Some(duration)) => Some(start + duration),
        (Some(_), None) => None,
        (None, None) => Some(start + DEFAULT_DURATION),
    }
}

fn schedule(options: &VerifyOptions, number: u32) -> Option<Schedule> {
    let rate = options.rate.messages_per_s(options.size.mean())?;
    Some(Schedule::new(rate, number, options.producers))
}

/// Waits for the workers; flushes the state meanwhile; hands a signal on.
async fn follow(
    workers: &mut JoinSet<Outcome<(Tally, Option<Failure>)>>,
    state: &Recorder,
    stop: &watch::Sender<bool>,
) -> Outcome<(Tally, Option<Failure>)> {
    let mut interrupt = Interrupt::new()?;
    let mut flush = tokio::time::interval(FLUSH_INTERVAL);
    let (mut sum, mut failure) = (Tally::default(), None);
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                None => return Ok((sum, failure)),
                Some(Ok(result)) => {
                    let (tally, failed) = result?;
                    sum = Tally {
                        sent: sum.sent + tally.sent,
                        acked: sum.acked + tally.acked,
                        duplicates: sum.duplicates + tally.duplicates,
                        rejected: sum.rejected + tally.rejected,
                        unknown: sum.unknown + tally.unknown,
                    };
                    failure = failure.or(failed);
                }
                Some(Err(error)) => return Err(Failure::failed(format!("a worker failed: {error}"))),
            },
            _ = flush.tick() => state.flush()?,
            () = interrupt.next() => {
                stop.send_replace(true);
            }
        }
    }
}

/// The state file, shared by the workers.
#[derive(Clone)]
struct Recorder(Arc<Mutex<Option<StateWriter>>>);

impl Recorder {
    fn begin(path: &Path, run: u64, topic: &str) -> Outcome<Self> {
        let writer = StateWriter::begin(path, run, topic).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => {
                Failure::failed(format!("{} is in use by another run", path.display()))
                    .next("wait for it, or name another --state")
            }
            _ => failed(&error),
        })?;
        Ok(Self(Arc::new(Mutex::new(Some(writer)))))
    }

    fn with(&self, work: impl FnOnce(&mut StateWriter) -> std::io::Result<()>) -> Outcome {
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_mut().map_or(Ok(()), work).map_err(|error| failed(&error))
    }

    fn flush(&self) -> Outcome {
        self.with(StateWriter::flush)
    }

    fn end(&self, sent: u64) -> Outcome {
        let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.map_or(Ok(()), |writer| writer.end(sent)).map_err(|error| failed(&error))
    }
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write the state file: {error}"))
        .next("name a writable file with --state")
}

/// Payload sizes spread over the range.
struct Sizes {
    smallest: usize,
    spread: u64,
    random: Random,
}

impl Sizes {
    fn new(options: &VerifyOptions, seed: u64) -> Self {
        let smallest = options.size.smallest.max(message::HEADER_BYTES);
        let spread = options.size.largest.saturating_sub(smallest) as u64;
        Self { smallest, spread, random: Random::new(seed) }
    }

    fn next(&mut self) -> usize {
        self.smallest + usize::try_from(self.random.up_to(self.spread)).unwrap_or(0)
    }
}

/// One publishing connection.
struct Worker {
    run: u64,
    number: u32,
    partitions: u32,
    producer: Producer<Raw>,
    limit: u64,
    deadline: Option<Instant>,
    schedule: Option<Schedule>,
    sizes: Sizes,
    in_flight_max: u64,
    start: Instant,
    /// The next sequence of each partition.
    next: Vec<u64>,
    state: Recorder,
    stopped: watch::Receiver<bool>,
}

type Ended = (Stream, u64, Result<Receipt, SendError>);

impl Worker {
    /// Publishes until its limit or a failure that will not pass, and waits for every outcome.
    async fn run(mut self) -> Outcome<(Tally, Option<Failure>)> {
        let pacer = Pacer::new()
            .map_err(|error| Failure::failed(format!("cannot create a timer: {error}")))?;
        let mut tally = Tally::default();
        let mut failure = None;
        let mut acks = FuturesUnordered::new();
        while tally.sent < self.limit && failure.is_none() && !self.is_over() {
            if let Some(schedule) = self.schedule {
                let intended = self.start + schedule.intended(tally.sent);
                pacer.sleep_until(intended).await.map_err(Failure::failed)?;
            }
            let (stream, sequence, payload) = self.message(tally.sent);
            let record = Record::new(payload).partition(stream.partition);
            match self.producer.enqueue(record).await {
                Ok(ack) => {
                    tally.sent += 1;
                    acks.push(async move { (stream, sequence, ack.await) });
                }
                Err(error) => {
                    failure = Some(publish_failure(&error));
                    break;
                }
            }
            while acks.len() as u64 >= self.in_flight_max {
                let Some(ended) = acks.next().await else { break };
                failure = failure.or(self.ended(ended, &mut tally)?);
            }
        }
        while let Some(ended) = acks.next().await {
            failure = failure.or(self.ended(ended, &mut tally)?);
        }
        Ok((tally, failure))
    }

    fn is_over(&self) -> bool {
        *self.stopped.borrow() || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The next message: partitions take turns, a few messages each, so that batches have several.
    fn message(&mut self, n: u64) -> (Stream, u64, Bytes) {
        const TURN: u64 = 16;
        let turn = (n / TURN + u64::from(self.number)) % u64::from(self.partitions.max(1));
        let partition = u32::try_from(turn).unwrap_or(0);
        let stream = Stream { producer: self.number, partition };
        let next = self.next.get_mut(partition as usize).expect("one for each partition");
        let sequence = *next;
        *next += 1;
        let identity = Identity { run: self.run, stream, sequence };
        (stream, sequence, message::encode(identity, self.sizes.next()))
    }

    /// Records an outcome. A failure that is not of the moment ends the run.
    fn ended(
        &self,
        (stream, sequence, result): Ended,
        tally: &mut Tally,
    ) -> Outcome<Option<Failure>> {
        let (ending, failure) = match result {
            Ok(receipt) => {
                tally.acked += 1;
                tally.duplicates += u64::from(receipt.duplicate);
                (Ending::Acked { offset: receipt.offset.0 }, None)
            }
            Err(error) if error.is_unknown() => {
                tally.unknown += 1;
                (Ending::Unknown, Some(publish_failure(&error)))
            }
            Err(error) => {
                tally.rejected += 1;
                let passing = error.is_retryable() && !matches!(error, SendError::NotSent);
                (Ending::Rejected, (!passing).then(|| publish_failure(&error)))
            }
        };
        self.state.with(|writer| writer.record(stream, sequence, ending))?;
        Ok(failure)
    }
}
