//! Owns one publishing connection of a load test: sends by the plan, follows the acknowledgements, records
//! both in the meter. Used by `bench produce`, `bench e2e` and `bench queue`.
//!
//! Cheap by design, because it shares the machine with the broker: acknowledgements are followed per
//! batch, the clock is read once per [`CLOCK_EVERY`] messages, payloads are slices.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use postrider::{Ack, Producer, Raw, Receipt, Record, SendError};
use tokio::sync::watch;

use super::args::LoadOptions;
use super::meter::Meter;
use super::pacer::Pacer;
use super::payload::Payloads;
use super::schedule::Schedule;
use super::stamp::{Number, Stamp};
use crate::connect::publish_failure;
use crate::exit::{Failure, Outcome};

/// Messages of a closed loop that share one reading of the clock.
pub(crate) const CLOCK_EVERY: u64 = 32;
/// The shortest sleep of an open loop. A schedule with a shorter interval sends several messages at once,
/// up to this late, so that the generator does not burn a core.
const TICK: Duration = Duration::from_micros(50);

/// When a test starts, is warm and ends. The same for all its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) start: Instant,
    pub(crate) warmup: Duration,
    pub(crate) end: End,
    /// Messages per second over all connections; none for a closed loop.
    pub(crate) rate: Option<f64>,
}

/// What ends the sending.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// So long after the warm-up.
    After(Duration),
    /// So many messages per connection after the warm-up; the remainder goes to the first connections.
    Messages { per_connection: u64, remainder: u64 },
}

/// How long a test runs if nothing else is said.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

impl Plan {
    pub(crate) fn new(load: &LoadOptions, start: Instant) -> Self {
        let connections = u64::from(load.producers);
        let end = match (load.messages, load.duration) {
            (Some(messages), _) => End::Messages {
                per_connection: messages / connections,
                remainder: messages % connections,
            },
            (None, duration) => End::After(duration.unwrap_or(DEFAULT_DURATION)),
        };
        let rate = load.rate.messages_per_s(load.size.mean());
        Self { start, warmup: load.warmup, end, rate }
    }

    /// When counting begins.
    pub(crate) fn warm(&self) -> Instant {
        self.start + self.warmup
    }

    /// How many counted messages connection `worker` sends; none without such a limit.
    fn share(&self, worker: u32) -> Option<u64> {
        match self.end {
            End::After(_) => None,
            End::Messages { per_connection, remainder } => {
                Some(per_connection + u64::from(u64::from(worker) < remainder))
            }
        }
    }

    /// When sending ends; none if it ends by count.
    fn deadline(&self) -> Option<Instant> {
        match self.end {
            End::After(duration) => Some(self.warm() + duration),
            End::Messages { .. } => None,
        }
    }
}

/// One publishing connection.
pub(crate) struct Worker {
    pub(crate) number: u32,
    pub(crate) workers: u32,
    pub(crate) producer: Producer<Raw>,
    pub(crate) payloads: Payloads,
    /// Puts the intended send time, and perhaps the number, into each payload.
    pub(crate) stamp: Option<Stamp>,
    /// What the idempotency keys of this run begin with; none without keys.
    pub(crate) idempotency: Option<u128>,
    /// Messages get these keys in turn; none if empty.
    pub(crate) keys: Arc<[Bytes]>,
    /// Keeps a closed loop from running away from those who work its messages off.
    pub(crate) backlog: Option<Backlog>,
    pub(crate) plan: Plan,
    pub(crate) in_flight_max: u64,
    pub(crate) meter: Arc<Meter>,
}

/// How many of a connection's messages may be published and not worked off.
pub(crate) struct Backlog {
    pub(crate) messages_max: u64,
    /// How many have been worked off.
    pub(crate) done: watch::Receiver<u64>,
}

impl Backlog {
    /// Returns when there is room for message `n` (from 0). Cancel-safe.
    async fn room_for(&mut self, n: u64) {
        let Self { messages_max, done } = self;
        // The sender lives as long as the test.
        drop(done.wait_for(|done| n < done.saturating_add(*messages_max)).await);
    }

    fn has_room_for(&self, n: u64) -> bool {
        n < self.done.borrow().saturating_add(self.messages_max)
    }
}

/// What a connection did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// Which connection.
    pub(crate) producer: u32,
    /// Counted messages that were handed to the client.
    pub(crate) sent: u64,
    /// Counted messages that were due by the end of an open loop.
    pub(crate) due: u64,
    /// All messages, also those of the warm-up.
    pub(crate) all: u64,
}

impl Worker {
    /// Sends by the plan and waits for every acknowledgement.
    pub(crate) async fn run(mut self) -> Outcome<Sent> {
        let mut following = Following::new(&self);
        tokio::time::sleep_until(self.plan.start.into()).await;
        let sent = match self.plan.rate {
            Some(rate) => self.open_loop(rate, &mut following).await?,
            None => self.closed_loop(&mut following).await?,
        };
        // Sends what lingers; failures come with the acknowledgements.
        let flushed = self.producer.flush().await;
        while !following.acks.is_empty() {
            following.one(&self.meter).await?;
        }
        flushed.map(|()| sent).map_err(Failure::failed)
    }

    async fn closed_loop(&mut self, following: &mut Following) -> Outcome<Sent> {
        let (share, deadline) = (self.plan.share(self.number), self.plan.deadline());
        let mut sent = Sent { producer: self.number, ..Sent::default() };
        let mut now = Instant::now();
        loop {
            if sent.all.is_multiple_of(CLOCK_EVERY) && self.wait_for_room(&sent, following).await? {
                now = Instant::now();
            }
            if following.in_flight >= self.in_flight_max {
                while following.in_flight >= self.in_flight_max {
                    following.one(&self.meter).await?;
                }
                now = Instant::now();
            } else if sent.all.is_multiple_of(CLOCK_EVERY) {
                following.ready(&self.meter)?;
                now = Instant::now();
            }
            let over = share.is_some_and(|share| sent.sent >= share)
                || deadline.is_some_and(|deadline| now >= deadline);
            if over {
                return Ok(sent);
            }
            let counted = now >= self.plan.warm();
            self.send(now, now, counted, sent.all, following).await?;
            sent.sent += u64::from(counted);
            sent.all += 1;
        }
    }

    /// Waits while the backlog is full; acknowledgements are taken meanwhile. Whether it had to wait.
    async fn wait_for_room(&mut self, sent: &Sent, following: &mut Following) -> Outcome<bool> {
        let last = sent.all + CLOCK_EVERY - 1;
        let Some(backlog) = self.backlog.as_mut().filter(|one| !one.has_room_for(last)) else {
            return Ok(false);
        };
        let deadline = self.plan.deadline().unwrap_or_else(|| Instant::now() + NO_DEADLINE);
        loop {
            tokio::select! {
                () = backlog.room_for(last) => return Ok(true),
                Some(acked) = following.acks.next() => {
                    following.acknowledged(acked, Instant::now(), &self.meter)?;
                }
                () = tokio::time::sleep_until(deadline.into()) => return Ok(true),
            }
        }
    }

    async fn open_loop(&mut self, rate: f64, following: &mut Following) -> Outcome<Sent> {
        let schedule = Schedule::new(rate, self.number, self.workers);
        let pacer = Pacer::new().map_err(timer_failure)?;
        // Messages of the warm-up, and all messages of the schedule.
        let warmup_end = schedule.due(self.plan.warmup);
        let last = match (self.plan.end, self.plan.share(self.number)) {
            (End::After(duration), _) => schedule.due(self.plan.warmup + duration),
            (End::Messages { .. }, share) => warmup_end + share.unwrap_or(0),
        };
        following.schedule = Some((schedule, warmup_end));
        let deadline = self.plan.deadline();
        let due = last.saturating_sub(warmup_end);
        let mut sent = Sent { producer: self.number, due, ..Sent::default() };
        while sent.all < last {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline + OVERTIME_MAX) {
                break;
            }
            let due = schedule.due(now.saturating_duration_since(self.plan.start)).min(last);
            if sent.all < due {
                let intended = self.plan.start + schedule.intended(sent.all);
                self.meter.schedule_lag.record(now.saturating_duration_since(intended));
            }
            while sent.all < due {
                while following.in_flight >= self.in_flight_max {
                    following.one(&self.meter).await?;
                }
                let intended = self.plan.start + schedule.intended(sent.all);
                let counted = sent.all >= warmup_end;
                self.send(now, intended, counted, sent.all, following).await?;
                sent.sent += u64::from(counted);
                sent.all += 1;
                if sent.all.is_multiple_of(CLOCK_EVERY) {
                    following.ready(&self.meter)?;
                }
            }
            if sent.all < last {
                let next = (self.plan.start + schedule.intended(sent.all)).max(now + TICK);
                following.until(&pacer, next, &self.meter).await?;
            }
        }
        Ok(sent)
    }

    async fn send(
        &mut self,
        now: Instant,
        intended: Instant,
        counted: bool,
        n: u64,
        following: &mut Following,
    ) -> Outcome {
        let mut payload = self.payloads.next();
        if let Some(stamp) = &self.stamp {
            let number = Number { producer: self.number, sequence: n };
            payload = stamp.put(intended, counted, number, &payload);
        }
        let bytes = payload.len() as u64;
        let mut record = Record::new(payload);
        if let Some(key) = key_of(&self.keys, n) {
            record = record.key(key.clone());
        }
        if let Some(run) = self.idempotency {
            record = record.idempotency_key(idempotency_key(run, self.number, n));
        }
        let ack = self.producer.enqueue(record).await.map_err(|error| publish_failure(&error))?;
        self.meter.sent.add(u64::from(counted));
        following.add(ack, n, now, if counted { bytes } else { 0 }, counted);
        Ok(())
    }
}

/// No other run, connection or message has it.
fn idempotency_key(run: u128, connection: u32, n: u64) -> Bytes {
    let mut key = [0; 28];
    key[..16].copy_from_slice(&run.to_le_bytes());
    key[16..20].copy_from_slice(&connection.to_le_bytes());
    key[20..].copy_from_slice(&n.to_le_bytes());
    Bytes::copy_from_slice(&key)
}

/// The key of message `n`: they take turns.
fn key_of(keys: &[Bytes], n: u64) -> Option<&Bytes> {
    let turn = n.checked_rem(keys.len() as u64)?;
    keys.get(usize::try_from(turn).ok()?)
}

/// Longer than any test.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 86_400);

/// How long an open loop that fell behind may send after its end.
const OVERTIME_MAX: Duration = Duration::from_secs(1);

fn timer_failure(error: std::io::Error) -> Failure {
    Failure::failed(format!("cannot create a timer: {error}"))
}

/// The acknowledgements that are under way, per batch.
struct Following {
    acks: FuturesUnordered<Tagged>,
    /// The batches in order; the front is `first`.
    groups: VecDeque<Group>,
    first: u64,
    in_flight: u64,
    start: Instant,
    /// The schedule of an open loop, and its first counted message.
    schedule: Option<(Schedule, u64)>,
    /// Messages have idempotency keys, and so outcomes of their own.
    keyed: bool,
}

/// Counts duplicates, and finds failures, among messages that have keys.
fn count_keyed(group: &Group, meter: &Meter) -> Outcome {
    for ahead in (0..).take(usize::try_from(group.messages).unwrap_or(usize::MAX)) {
        match group.ack.outcome_ahead(ahead) {
            Some(Ok(receipt)) => meter.duplicates.add(u64::from(receipt.duplicate)),
            Some(Err(error)) => {
                meter.errors.add(1);
                return Err(publish_failure(&error));
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Messages of one batch.
struct Group {
    /// Kept to recognise the later messages of the batch.
    ack: Ack,
    first_n: u64,
    messages: u64,
    counted: u64,
    counted_bytes: u64,
    sent_at: Instant,
    done: bool,
}

type Acked = (u64, Result<Receipt, SendError>);
type Tagged = std::pin::Pin<Box<dyn Future<Output = Acked> + Send>>;

impl Following {
    fn new(worker: &Worker) -> Self {
        Self {
            acks: FuturesUnordered::new(),
            groups: VecDeque::new(),
            first: 0,
            in_flight: 0,
            start: worker.plan.start,
            schedule: None,
            keyed: worker.idempotency.is_some(),
        }
    }

    fn add(&mut self, ack: Ack, n: u64, now: Instant, counted_bytes: u64, counted: bool) {
        self.in_flight += 1;
        if let Some(last) = self.groups.back_mut()
            && !last.done
            && last.ack.same_batch(&ack)
        {
            last.messages += 1;
            last.counted += u64::from(counted);
            last.counted_bytes += counted_bytes;
            return;
        }
        let number = self.first + self.groups.len() as u64;
        self.groups.push_back(Group {
            ack: ack.clone(),
            first_n: n,
            messages: 1,
            counted: u64::from(counted),
            counted_bytes,
            sent_at: now,
            done: false,
        });
        self.acks.push(Box::pin(async move { (number, ack.await) }));
    }

    /// Waits for one batch.
    async fn one(&mut self, meter: &Meter) -> Outcome {
        match self.acks.next().await {
            Some(acked) => self.acknowledged(acked, Instant::now(), meter),
            None => Ok(()),
        }
    }

    /// Takes the batches that are acknowledged already.
    fn ready(&mut self, meter: &Meter) -> Outcome {
        let mut now = None;
        while let Some(Some(acked)) = futures_util::FutureExt::now_or_never(self.acks.next()) {
            let now = *now.get_or_insert_with(Instant::now);
            self.acknowledged(acked, now, meter)?;
        }
        Ok(())
    }

    /// Takes batches until `deadline`.
    async fn until(&mut self, pacer: &Pacer, deadline: Instant, meter: &Meter) -> Outcome {
        loop {
            tokio::select! {
                biased;
                Some(acked) = self.acks.next() => self.acknowledged(acked, Instant::now(), meter)?,
                slept = pacer.sleep_until(deadline) => return slept.map_err(timer_failure),
            }
        }
    }

    fn acknowledged(&mut self, (number, result): Acked, now: Instant, meter: &Meter) -> Outcome {
        // The groups are in memory, so their number fits.
        let at = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        let Some(group) = self.groups.get_mut(at) else { return Ok(()) };
        group.done = true;
        self.in_flight -= group.messages;
        match result {
            Ok(receipt) => {
                meter.acked_all.add(group.messages);
                meter.acked.add(group.counted);
                meter.acked_bytes.add(group.counted_bytes);
                if self.keyed {
                    count_keyed(group, meter)?;
                } else if receipt.duplicate {
                    meter.duplicates.add(group.counted);
                }
                self.measure(at, now, meter);
            }
            Err(error) => {
                meter.errors.add(group.messages);
                return Err(publish_failure(&error));
            }
        }
        while self.groups.front().is_some_and(|group| group.done) {
            self.groups.pop_front();
            self.first += 1;
        }
        Ok(())
    }

    /// Open loop: every message by its intended time. Closed loop: the first message of the batch.
    fn measure(&self, at: usize, now: Instant, meter: &Meter) {
        let Some(group) = self.groups.get(at).filter(|group| group.counted > 0) else { return };
        let service = now.saturating_duration_since(group.sent_at);
        let Some((schedule, warmup_end)) = &self.schedule else {
            meter.acks.record(service);
            return;
        };
        meter.service.record(service);
        let elapsed = now.saturating_duration_since(self.start);
        let counted = group.first_n.max(*warmup_end)..group.first_n + group.messages;
        meter.acks.record_all(counted.map(|n| elapsed.saturating_sub(schedule.intended(n))));
    }
}
