//! Owns one working connection of `bench queue`: takes deliveries, acknowledges each at once, follows the
//! confirmations. Judges nothing (the ledger does).
//!
//! Cheap by design, because it shares the machine with the broker: no task and no channel per message; the
//! clock, the ledger and the meter are touched once per turn; confirmations are looked at in the order of the
//! acknowledgements.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use postrider::{ConsumeError, Consumer, Delivery, Raw, SettleError, SettledFuture};
use tokio::sync::watch;

use super::ledger::{Confirmed, Delivered, Ledger, Place};
use crate::bench::meter::Meter;
use crate::bench::stamp::{Number, Stamp, Stamped, is_stamped};
use crate::connect::{consume_failure, settle_failure};
use crate::exit::{Failure, Outcome};
use crate::output::note;

/// Messages that share one reading of the clock and one lock of the ledger.
const TURN: usize = 256;
/// How long a worker that was told to stop waits for what it has not seen confirmed.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// One working connection.
pub(super) struct Worker {
    pub(super) consumer: Consumer<Raw>,
    pub(super) topic: String,
    pub(super) stamp: Stamp,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) meter: Arc<Meter>,
    /// How many messages of each producer are confirmed.
    pub(super) done: Arc<[watch::Sender<u64>]>,
    /// Whether the test is over.
    pub(super) stop: watch::Receiver<bool>,
    pub(super) tally: Tally,
    pub(super) pending: VecDeque<Pending>,
    pub(super) turn: Turn,
}

/// What a worker met beside messages of the test.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Acknowledgements that came too late: the message was, or will be, handed out again.
    pub(super) leases_lost: u64,
    /// Acknowledgements of messages that had left the queue in another way.
    pub(super) gone: u64,
    /// Messages of an earlier test; they are acknowledged.
    pub(super) leftovers: u64,
    /// When the last confirmation came.
    pub(super) last: Option<Instant>,
}

/// An acknowledgement that is not confirmed.
pub(super) struct Pending {
    settled: SettledFuture,
    number: Number,
    place: Place,
    stamped: Stamped,
    bytes: u64,
    acked_at: Instant,
}

/// What a turn gathers for the ledger and the meter. Its buffers are kept from turn to turn.
#[derive(Default)]
pub(super) struct Turn {
    delivered: Vec<Delivered>,
    latencies: Vec<Duration>,
    confirmed: Vec<(Confirmed, bool, u64)>,
    settles: Vec<Duration>,
}

impl Worker {
    /// Works until it is told to stop.
    pub(super) async fn run(mut self) -> Outcome<Tally> {
        loop {
            let worked = self.take_what_is_there()?;
            let confirmed = self.reap(Instant::now())?;
            self.book();
            if *self.stop.borrow() {
                break;
            }
            if worked || confirmed {
                // The publishers, and the connections, run on the same thread.
                tokio::task::yield_now().await;
                continue;
            }
            self.wait().await?;
        }
        self.finish().await
    }

    /// Takes at most a turn of deliveries. Whether there was any.
    fn take_what_is_there(&mut self) -> Outcome<bool> {
        let mut now = None;
        for _ in 0..TURN {
            match self.consumer.next_delivery().now_or_never() {
                None => break,
                Some(next) => {
                    let now = *now.get_or_insert_with(Instant::now);
                    self.take(next, now)?;
                }
            }
        }
        Ok(now.is_some())
    }

    fn take(&mut self, next: Next, now: Instant) -> Outcome {
        let delivery = match next {
            None => return Err(Failure::failed("the queue's stream of deliveries ended")),
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) if error.is_fatal() => {
                return Err(consume_failure(&error, &self.topic));
            }
            Some(Err(error)) => {
                self.meter.errors.add(1);
                note(format_args!("warning: {error}"));
                return Ok(());
            }
        };
        let Some((stamped, number)) = self.stamp.read_number(delivery.value()) else {
            return self.foreign(delivery);
        };
        let place = Place { partition: delivery.partition().0, offset: delivery.offset().0 };
        let dispatch_index = delivery.dispatch_index();
        self.turn.delivered.push(Delivered { number, place, dispatch_index });
        if stamped.counted {
            let elapsed = now.saturating_duration_since(self.stamp.start);
            self.turn.latencies.push(elapsed.saturating_sub(stamped.intended));
        }
        let bytes = delivery.value().len() as u64;
        let settled = delivery.ack().into_future();
        self.pending.push_back(Pending { settled, number, place, stamped, bytes, acked_at: now });
        Ok(())
    }

    /// A message of an earlier test is worked off; one of somebody else is not ours to take.
    fn foreign(&mut self, delivery: Delivery<Bytes>) -> Outcome {
        if is_stamped(delivery.value()) {
            self.tally.leftovers += 1;
            // Should it be lost, the message comes again.
            let _settled = delivery.ack();
            return Ok(());
        }
        let place = format!("{}/{}", delivery.partition(), delivery.offset());
        let _settled = delivery.release();
        Err(Failure::failed(format!(
            "queue {:?} holds a message at {place} that is not of a load test",
            self.topic
        ))
        .next("use a queue for load tests alone: its messages are acknowledged"))
    }

    /// Takes the confirmations that are there, in order. Whether there was any.
    fn reap(&mut self, now: Instant) -> Outcome<bool> {
        let mut any = false;
        while let Some(front) = self.pending.front_mut() {
            let Some(answer) = (&mut front.settled).now_or_never() else { break };
            if let Some(pending) = self.pending.pop_front() {
                self.settled(&pending, answer, now)?;
            }
            any = true;
        }
        Ok(any)
    }

    fn settled(&mut self, pending: &Pending, answer: Answer, now: Instant) -> Outcome {
        let Pending { number, place, stamped, bytes, acked_at, .. } = *pending;
        let commit_index = match answer {
            Ok(()) => pending.settled.commit_index(),
            Err(SettleError::AlreadyAcked) => None,
            Err(SettleError::LeaseLost) => {
                self.tally.leases_lost += 1;
                return Ok(());
            }
            Err(SettleError::Gone) => {
                self.tally.gone += 1;
                return Ok(());
            }
            Err(error) => return Err(settle_failure(&error, &self.topic)),
        };
        let confirmed = Confirmed { number, place, commit_index };
        self.turn.confirmed.push((confirmed, stamped.counted, bytes));
        if stamped.counted {
            self.turn.settles.push(now.saturating_duration_since(acked_at));
        }
        self.tally.last = Some(now);
        Ok(())
    }

    /// Hands what the turn gathered to the ledger, the meter and the publishers.
    fn book(&mut self) {
        let Turn { delivered, latencies, confirmed, settles } = &mut self.turn;
        if delivered.is_empty() && confirmed.is_empty() {
            return;
        }
        let (mut messages, mut message_bytes) = (0, 0);
        let mut by_producer = vec![0; self.done.len()];
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for delivered in delivered.drain(..) {
            ledger.deliver(delivered);
        }
        for (confirmed, counted, bytes) in confirmed.drain(..) {
            if !ledger.confirm(confirmed) {
                continue;
            }
            if let Some(of) = by_producer.get_mut(confirmed.number.producer as usize) {
                *of += 1;
            }
            messages += u64::from(counted);
            message_bytes += if counted { bytes } else { 0 };
        }
        drop(ledger);
        self.meter.received.add(messages);
        self.meter.received_bytes.add(message_bytes);
        self.meter.deliveries.record_all(latencies.drain(..));
        self.meter.settles.record_all(settles.drain(..));
        for (done, count) in self.done.iter().zip(by_producer) {
            if count > 0 {
                done.send_modify(|done| *done += count);
            }
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self) -> Outcome {
        let front = self.pending.front_mut();
        let has_pending = front.is_some();
        let confirmed = async {
            match front {
                Some(front) => (&mut front.settled).await,
                None => std::future::pending().await,
            }
        };
        let stop = &mut self.stop;
        // The sender lives until the workers have ended.
        let stopped = async { drop(stop.wait_for(|stop| *stop).await) };
        tokio::select! {
            biased;
            next = self.consumer.next_delivery() => self.take(next, Instant::now()),
            answer = confirmed, if has_pending => match self.pending.pop_front() {
                Some(pending) => self.settled(&pending, answer, Instant::now()),
                None => Ok(()),
            },
            () = stopped => Ok(()),
        }
    }

    /// Waits for the confirmations that are on their way, and gives back what was not worked on.
    async fn finish(mut self) -> Outcome<Tally> {
        self.consumer.drain(DRAIN_MAX).await;
        self.reap(Instant::now())?;
        self.book();
        Ok(self.tally)
    }
}

type Next = Option<Result<Delivery<Bytes>, ConsumeError>>;
type Answer = <SettledFuture as Future>::Output;
