//! Owns what one producer has under way to one partition: the open batch, the sealed batches in sequence
//! order, and what each answer means for them. Never routes a message, never writes a frame. Driven by
//! `producer`.
//!
//! ```text
//! open ── full, due or alone ──► ring: waiting ── sent ──► outstanding ── stored / refused for good ──► gone
//!                                        ▲                     │
//!                                        └── refused for now, or the connection was lost (then: in doubt)
//! ```
//! The outstanding batches are the first of the ring. Sequences are given at the seal and never again.
//! After a refusal the lane drains: it sends nothing until every outstanding batch has its answer, then goes
//! on from the first batch of the ring. So a refusal costs one round trip and never a storm of repeats.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use postrider_protocol::{
    batch::{Batch, BatchBuilder},
    error::{ErrorBody, ErrorCode, Retry},
    message::{AckLevel, ConfirmRun, DelayId, Outcome},
    types::{LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, TimestampMs},
};

use super::{
    completion::{BatchCompletion, BatchOutcome, Part, Place, PublishFailure, Stored},
    producer::ProducerOptions,
};

/// The first wait after a refusal that may be retried; doubles with each in a row.
const SETBACK_FIRST: Duration = Duration::from_millis(5);
/// The longest wait after a refusal.
const SETBACK_MAX: Duration = Duration::from_secs(1);

/// A message as it goes into a batch.
#[derive(Clone, Copy, Debug)]
pub struct MessageParts<'a> {
    /// The partition, if the application chose it.
    pub partition: Option<PartitionId>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` deletes the key when a topic is compacted.
    pub value: Option<&'a [u8]>,
    /// Header names (UTF-8) and values.
    pub headers: &'a [(Bytes, Option<Bytes>)],
    /// The application's time; `None` is the time of the call.
    pub timestamp: Option<TimestampMs>,
    /// Not delivered before; `None` is at once.
    pub deliver_at: Option<TimestampMs>,
    /// The idempotency key, which is among the headers as well.
    pub idempotency_key: Option<&'a [u8]>,
}

/// What a record costs beside its parts, at most: its varint fields.
const RECORD_OVERHEAD_BYTES: usize = 36;
/// What a header costs beside its parts, at most.
const HEADER_OVERHEAD_BYTES: usize = 10;

impl MessageParts<'_> {
    /// An upper bound of the encoded size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| {
                name.len() + value.as_ref().map_or(0, Bytes::len) + HEADER_OVERHEAD_BYTES
            })
            .sum();
        self.key.map_or(0, <[u8]>::len)
            + self.value.map_or(0, <[u8]>::len)
            + headers
            + RECORD_OVERHEAD_BYTES
    }
}

/// That a batch is stored as a whole or not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Only if its first message gets this offset.
    pub at: Option<Offset>,
}

/// A producer session as the broker knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionId {
    /// The id.
    pub producer: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
}

#[derive(Debug)]
pub(crate) struct Lane {
    partition: PartitionId,
    leader_epoch: LeaderEpoch,
    open: Option<OpenBatch>,
    /// Bounded by the producer's `max_in_flight_bytes`.
    ring: VecDeque<Flight>,
    outstanding: usize,
    draining: bool,
    paused_until: Duration,
    setbacks: u32,
    next_sequence: u64,
    /// Bytes on the wire of the outstanding batches.
    outstanding_bytes: usize,
    /// Bytes of the last sealed batch: what the next one will probably need.
    hint_bytes: usize,
    /// The lane is in its producer's list of lanes that may have something to send.
    pub(crate) listed: bool,
    /// The lane has a timer in its producer's heap.
    pub(crate) timed: bool,
}

#[derive(Debug)]
struct OpenBatch {
    builder: BatchBuilder,
    completion: Arc<BatchCompletion>,
    number: u64,
    opened: Duration,
    /// Of all its messages.
    deliver_at: Option<TimestampMs>,
    /// Some of its messages have idempotency keys.
    keyed: bool,
    /// Of messages without a time of their own.
    timestamp: TimestampMs,
    count: u32,
    bytes: usize,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    base_sequence: u64,
    count: u32,
    bytes: usize,
    opened: Duration,
    deliver_at: Option<TimestampMs>,
    whole: Option<Whole>,
    /// Some of its messages have idempotency keys: they are answered in parts.
    keyed: bool,
    /// The parts that the newest send was answered in, so far.
    answered: Vec<Answered>,
    completion: Arc<BatchCompletion>,
    body: Body,
    outstanding: bool,
    wire_bytes: usize,
    /// An earlier send was never answered: it may be stored.
    doubt: bool,
    last_error: Option<ErrorBody>,
}

#[derive(Debug)]
enum Body {
    Building(BatchBuilder),
    /// Taken by the driver to be compressed outside the lock.
    Away,
    Ready {
        batch: Batch,
        session: SessionId,
        base_sequence: u64,
    },
}

/// Where a message went.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) completion: Arc<BatchCompletion>,
    /// The message's place in its batch.
    pub(crate) place: u32,
    pub(crate) sealed: bool,
}

/// What a lane can do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Send,
    WaitUntil(Duration),
    Nothing,
}

/// A batch to write.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) partition: PartitionId,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) session: SessionId,
    pub(crate) base_sequence: Sequence,
    pub(crate) count: u32,
    pub(crate) resolved_upto: Sequence,
    pub(crate) deliver_at: Option<TimestampMs>,
    pub(crate) whole: Option<Whole>,
    pub(crate) ack: AckLevel,
    pub(crate) keyed: bool,
    pub(crate) batch: Batch,
}

/// A batch that has its outcome.
#[derive(Debug)]
pub(crate) struct Resolution {
    pub(crate) number: u64,
    pub(crate) bytes: usize,
    pub(crate) completion: Arc<BatchCompletion>,
    pub(crate) outcome: BatchOutcome,
}

/// What an answer asks of the producer, beyond the lane.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Reaction {
    #[default]
    None,
    /// Ask for the leaders.
    RefreshMetadata,
    /// Resume the session on this connection.
    ResumeSession,
    /// The broker does not know the session: open a new one.
    ReplaceSession,
    /// The session is fenced: the producer has ended.
    End(ErrorBody),
}

/// An answer that no correct broker gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a confirm ends inside the batch of sequence {0}")]
pub struct SplitBatch(Sequence);

impl Lane {
    pub(crate) fn new(partition: PartitionId, leader_epoch: LeaderEpoch) -> Self {
        Self {
            partition,
            leader_epoch,
            open: None,
            ring: VecDeque::new(),
            outstanding: 0,
            draining: false,
            paused_until: Duration::ZERO,
            setbacks: 0,
            next_sequence: 0,
            outstanding_bytes: 0,
            hint_bytes: 0,
            listed: false,
            timed: false,
        }
    }

    pub(crate) fn set_leader_epoch(&mut self, leader_epoch: LeaderEpoch) {
        self.leader_epoch = leader_epoch;
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub(crate) fn outstanding_bytes(&self) -> usize {
        self.outstanding_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_none() && self.ring.is_empty()
    }

    /// Messages that were never on the wire, and messages that were and have no outcome.
    pub(crate) fn count_messages(&self) -> (u64, u64) {
        let open = self.open.as_ref().map_or(0, |open| u64::from(open.count));
        self.ring.iter().fold((open, 0), |(unsent, unacked), flight| {
            let count = u64::from(flight.count);
            if flight.outstanding || flight.doubt {
                (unsent, unacked + count)
            } else {
                (unsent + count, unacked)
            }
        })
    }

    /// Batches without an outcome.
    pub(crate) fn unresolved(&self) -> u64 {
        let ring = u64::try_from(self.ring.len()).expect("a length fits");
        ring + u64::from(self.open.is_some())
    }

    /// Whether the message opens a batch, so that its caller must read the clocks.
    pub(crate) fn opens_batch(
        &self,
        bytes: usize,
        deliver_at: Option<TimestampMs>,
        options: &ProducerOptions,
    ) -> bool {
        self.open.as_ref().is_none_or(|open| {
            open.bytes + bytes > options.batch_bytes || open.deliver_at != deliver_at
        })
    }

    /// Sets the time that messages without one of their own get.
    pub(crate) fn set_timestamp(&mut self, timestamp: TimestampMs) {
        if let Some(open) = &mut self.open {
            open.timestamp = timestamp;
        }
    }

    /// How many messages the open batch has.
    pub(crate) fn open_count(&self) -> u32 {
        self.open.as_ref().map_or(0, |open| open.count)
    }

    /// Opens a batch, sealing the one that is open. All messages of a batch are delivered at one time.
    pub(crate) fn open_batch(
        &mut self,
        (now, timestamp): (Duration, TimestampMs),
        deliver_at: Option<TimestampMs>,
        number: u64,
        options: &ProducerOptions,
    ) {
        self.seal();
        let hint = self.hint_bytes.max(256).min(options.batch_bytes + 64);
        self.open = Some(OpenBatch {
            builder: BatchBuilder::new(options.compression, hint),
            completion: Arc::new(BatchCompletion::default()),
            number,
            opened: now,
            deliver_at,
            keyed: false,
            timestamp,
            count: 0,
            bytes: 0,
        });
    }

    /// Adds a message to the open batch, and seals the batch if it is full.
    ///
    /// # Panics
    /// No batch is open.
    pub(crate) fn push(
        &mut self,
        message: &MessageParts<'_>,
        bytes: usize,
        options: &ProducerOptions,
    ) -> Placed {
        let open = self.open.as_mut().expect("the caller opened a batch");
        let place = open.count;
        let timestamp = message.timestamp.unwrap_or(open.timestamp);
        open.builder
            .push(message.key, message.value, message.headers, timestamp)
            .expect("the caller checked the size and the count of headers");
        open.keyed |= message.idempotency_key.is_some();
        open.count += 1;
        open.bytes += bytes;
        let completion = Arc::clone(&open.completion);
        let sealed = open.bytes >= options.batch_bytes;
        if sealed {
            self.seal();
        }
        Placed { completion, place, sealed }
    }

    /// Adds messages as one batch that is stored as a whole or not at all. What is open goes before it.
    ///
    /// # Panics
    /// There is no message.
    pub(crate) fn push_whole(
        &mut self,
        (now, timestamp): (Duration, TimestampMs),
        messages: &[MessageParts<'_>],
        whole: Whole,
        number: u64,
        options: &ProducerOptions,
    ) -> Placed {
        self.open_batch((now, timestamp), None, number, options);
        let open = self.open.as_mut().expect("it was just opened");
        for message in messages {
            let timestamp = message.timestamp.unwrap_or(timestamp);
            open.builder
                .push(message.key, message.value, message.headers, timestamp)
                .expect("the caller checked the size and the count of headers");
            open.keyed |= message.idempotency_key.is_some();
            open.count += 1;
            open.bytes += message.bytes();
        }
        let completion = Arc::clone(&open.completion);
        assert!(open.count > 0, "a batch has a message");
        self.seal();
        let flight = self.ring.back_mut().expect("it was just sealed");
        flight.whole = Some(whole);
        Placed { completion, place: 0, sealed: true }
    }

    /// Moves the open batch to the ring and gives it its sequences.
    pub(crate) fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.count == 0 {
            return;
        }
        self.hint_bytes = open.bytes + 64;
        self.ring.push_back(Flight {
            number: open.number,
            base_sequence: self.next_sequence,
            count: open.count,
            bytes: open.bytes,
            opened: open.opened,
            deliver_at: open.deliver_at,
            whole: None,
            keyed: open.keyed,
            answered: Vec::new(),
            completion: open.completion,
            body: Body::Building(open.builder),
            outstanding: false,
            wire_bytes: 0,
            doubt: false,
            last_error: None,
        });
        self.next_sequence += u64::from(open.count);
    }

    /// Nagle's rule: send at once when nothing is under way; while something is, wait for a full batch, at
    /// most `linger`.
    pub(crate) fn step(&self, now: Duration, options: &ProducerOptions) -> Step {
        if self.draining || self.outstanding >= options.max_in_flight_batches {
            return Step::Nothing;
        }
        if self.is_empty() {
            return Step::Nothing;
        }
        if self.paused_until > now {
            return Step::WaitUntil(self.paused_until);
        }
        match self.ring.get(self.outstanding) {
            Some(Flight { body: Body::Away, .. }) => return Step::Nothing,
            Some(_) => return Step::Send,
            None => {}
        }
        let due = self.open.as_ref().map_or(now, |open| open.opened + options.linger);
        if self.outstanding == 0 || due <= now { Step::Send } else { Step::WaitUntil(due) }
    }

    /// Takes the next batch out to be compressed without the engine's lock. `step` says `Nothing` until
    /// [`Self::compressed`] brings it back.
    pub(crate) fn take_for_compression(&mut self, session: SessionId) -> Option<Uncompressed> {
        if self.ring.len() == self.outstanding {
            self.seal();
        }
        let flight = self.ring.get_mut(self.outstanding)?;
        if !matches!(flight.body, Body::Building(_)) {
            return None;
        }
        let Body::Building(builder) = std::mem::replace(&mut flight.body, Body::Away) else {
            return None;
        };
        let (number, base_sequence) = (flight.number, flight.base_sequence);
        Some(Uncompressed { number, session, base_sequence, builder })
    }

    /// Brings a compressed batch back. It may have timed out meanwhile; then it is dropped.
    pub(crate) fn compressed(&mut self, compressed: Compressed) {
        let Compressed { number, session, base_sequence, batch } = compressed;
        if let Some(flight) = self.ring.iter_mut().find(|flight| flight.number == number) {
            flight.body = Body::Ready { batch, session, base_sequence };
        }
    }

    /// The next batch, which is outstanding from now on. Call only after `step` said `Send`.
    pub(crate) fn send(&mut self, session: SessionId) -> Option<Sending> {
        if self.ring.len() == self.outstanding {
            self.seal();
        }
        let resolved_upto = self.ring.front()?.base_sequence;
        let flight = self.ring.get_mut(self.outstanding)?;
        let batch = flight.stamp(session)?;
        flight.outstanding = true;
        flight.wire_bytes = batch.body.len();
        self.outstanding += 1;
        self.outstanding_bytes += flight.wire_bytes;
        Some(Sending {
            partition: self.partition,
            leader_epoch: self.leader_epoch,
            session,
            base_sequence: Sequence(flight.base_sequence),
            count: flight.count,
            resolved_upto: Sequence(resolved_upto),
            deliver_at: flight.deliver_at,
            whole: flight.whole,
            ack: AckLevel::Quorum,
            keyed: flight.keyed,
            batch,
        })
    }

    /// The next batch, which is forgotten once it is sent. Call only after `step` said `Send`.
    pub(crate) fn send_and_forget(
        &mut self,
        session: SessionId,
        resolutions: &mut Vec<Resolution>,
    ) -> Option<Sending> {
        let sending = self.send(session)?;
        // Nothing is outstanding, so it is the first.
        let flight = self.ring.pop_front()?;
        self.outstanding -= 1;
        self.outstanding_bytes -= flight.wire_bytes;
        resolutions.push(flight.resolved(BatchOutcome::Sent));
        Some(Sending { ack: AckLevel::None, ..sending })
    }

    /// What a refusal of forgotten batches asks of the producer. They are not sent again.
    pub(crate) fn refused_forgotten(&mut self, now: Duration, error: &ErrorBody) -> Reaction {
        let Verdict::Again { wait, reaction } = judge_refusal(error) else { return Reaction::None };
        if wait != Wait::None {
            self.set_back(now, 0, wait);
        }
        reaction
    }

    /// Applies one answer. Sequences that are not outstanding any more (timed out) are passed over.
    ///
    /// # Errors
    /// The answer splits a batch; the caller ends the connection.
    pub(crate) fn answer(
        &mut self,
        now: Duration,
        run: &ConfirmRun,
        resolutions: &mut Vec<Resolution>,
    ) -> Result<Reaction, SplitBatch> {
        let end = run.base_sequence.0.saturating_add(u64::from(run.count));
        let mut at = self.ring.partition_point(|flight| flight.end() <= run.base_sequence.0);
        let mut reaction = Reaction::None;
        while let Some(flight) = self.ring.get_mut(at) {
            if flight.base_sequence >= end {
                break;
            }
            if !flight.outstanding {
                at += 1;
                continue;
            }
            let Some(verdict) = flight.hear(run, self.partition)? else {
                at += 1;
                continue;
            };
            flight.outstanding = false;
            self.outstanding -= 1;
            self.outstanding_bytes -= flight.wire_bytes;
            match verdict {
                Verdict::Final(outcome) => {
                    if matches!(outcome, BatchOutcome::Stored(_) | BatchOutcome::Parts(_)) {
                        self.setbacks = 0;
                    }
                    let flight = self.ring.remove(at).expect("the index was just used");
                    resolutions.push(flight.resolved(outcome));
                }
                Verdict::Again { wait, reaction: wanted } => {
                    self.draining = true;
                    self.set_back(now, at, wait);
                    if reaction == Reaction::None {
                        reaction = wanted;
                    }
                    at += 1;
                }
            }
        }
        if self.outstanding == 0 {
            self.draining = false;
        }
        Ok(reaction)
    }

    /// A refusal of the ring's first batch slows the lane down; the ones behind it fail only because it did.
    fn set_back(&mut self, now: Duration, at: usize, wait: Wait) {
        if at > 0 && wait == Wait::None {
            return;
        }
        let grown = SETBACK_FIRST.saturating_mul(1 << self.setbacks.min(10)).min(SETBACK_MAX);
        let pause = match wait {
            // The first time that an order is wrong, sending again from the expected place is all it takes.
            Wait::None if self.setbacks == 0 => Duration::ZERO,
            Wait::None => grown,
            Wait::AtLeast(least) => grown.max(least),
        };
        self.setbacks = self.setbacks.saturating_add(1);
        self.paused_until = self.paused_until.max(now + pause);
    }

    /// The connection is gone: what was outstanding may be stored, and is to be sent again.
    pub(crate) fn disconnected(&mut self) {
        for flight in &mut self.ring {
            flight.doubt |= flight.outstanding;
            flight.outstanding = false;
            flight.answered.clear();
        }
        self.outstanding = 0;
        self.outstanding_bytes = 0;
        self.draining = false;
        self.paused_until = Duration::ZERO;
        self.setbacks = 0;
    }

    /// The session was replaced by one whose sequences start at 0. What may be stored under the old one
    /// cannot be told from a double any more: it ends as unknown.
    pub(crate) fn restart(&mut self, error: &ErrorBody, resolutions: &mut Vec<Resolution>) {
        assert_eq!(self.outstanding, 0, "a lane restarts after it has drained");
        let ring = std::mem::take(&mut self.ring);
        self.next_sequence = 0;
        for mut flight in ring {
            if flight.doubt {
                let failure = PublishFailure::Unknown(error.clone());
                resolutions.push(flight.resolved(BatchOutcome::Failed(Arc::new(failure))));
            } else {
                flight.base_sequence = self.next_sequence;
                self.next_sequence += u64::from(flight.count);
                self.ring.push_back(flight);
            }
        }
    }

    /// Ends what is older than `delivery_timeout`.
    pub(crate) fn expire(
        &mut self,
        now: Duration,
        timeout: Duration,
        resolutions: &mut Vec<Resolution>,
    ) {
        if self.open.as_ref().is_some_and(|open| open.opened + timeout <= now) {
            self.seal();
        }
        while self.ring.front().is_some_and(|flight| flight.opened + timeout <= now) {
            self.give_up_first(&PublishFailure::NotSent, resolutions);
        }
        if self.outstanding == 0 {
            self.draining = false;
        }
    }

    /// Ends everything. `failure` is for what was never on the wire.
    pub(crate) fn give_up(&mut self, failure: &PublishFailure, resolutions: &mut Vec<Resolution>) {
        self.seal();
        while !self.ring.is_empty() {
            self.give_up_first(failure, resolutions);
        }
        self.draining = false;
    }

    fn give_up_first(&mut self, failure: &PublishFailure, resolutions: &mut Vec<Resolution>) {
        let Some(flight) = self.ring.pop_front() else { return };
        if flight.outstanding {
            self.outstanding -= 1;
            self.outstanding_bytes -= flight.wire_bytes;
        }
        let failure = flight.failure(failure);
        resolutions.push(flight.resolved(BatchOutcome::Failed(Arc::new(failure))));
    }
}

/// A batch on its way to be compressed.
#[derive(Debug)]
pub struct Uncompressed {
    number: u64,
    session: SessionId,
    base_sequence: u64,
    builder: BatchBuilder,
}

impl Uncompressed {
    /// Compresses it: the slow part, without any lock.
    #[must_use]
    pub fn compress(self) -> Compressed {
        let Self { number, session, base_sequence, builder } = self;
        let batch = builder.finish(session.producer, session.epoch, Sequence(base_sequence));
        Compressed { number, session, base_sequence, batch }
    }
}

/// A batch that was compressed.
#[derive(Debug)]
pub struct Compressed {
    number: u64,
    session: SessionId,
    base_sequence: u64,
    batch: Batch,
}

/// What one answer says of some messages of a batch.
#[derive(Debug)]
struct Answered {
    first: u32,
    count: u32,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Final(BatchOutcome),
    Again { wait: Wait, reaction: Reaction },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    None,
    AtLeast(Duration),
}

impl Flight {
    /// The batch's bytes for this session; made at the first send, the same at every other.
    fn stamp(&mut self, wanted: SessionId) -> Option<Batch> {
        let base_sequence = self.base_sequence;
        let batch = match std::mem::replace(&mut self.body, Body::Away) {
            Body::Away => return None,
            Body::Building(builder) => {
                builder.finish(wanted.producer, wanted.epoch, Sequence(base_sequence))
            }
            Body::Ready { batch, session, base_sequence: stamped }
                if session == wanted && stamped == base_sequence =>
            {
                batch
            }
            Body::Ready { batch, .. } => batch
                .with_session(wanted.producer, wanted.epoch, Sequence(base_sequence))
                .expect("the builder made a whole batch"),
        };
        self.body = Body::Ready { batch: batch.clone(), session: wanted, base_sequence };
        Some(batch)
    }

    /// One past its last sequence.
    fn end(&self) -> u64 {
        self.base_sequence + u64::from(self.count)
    }

    /// Takes in what an answer says of the batch: its verdict, once all of its messages are answered.
    fn hear(
        &mut self,
        run: &ConfirmRun,
        partition: PartitionId,
    ) -> Result<Option<Verdict>, SplitBatch> {
        let start = run.base_sequence.0.max(self.base_sequence);
        let end = run.base_sequence.0.saturating_add(u64::from(run.count)).min(self.end());
        let place = |sequence: u64| {
            u32::try_from(sequence.saturating_sub(self.base_sequence)).expect("a part of a batch")
        };
        let (first, count) = (place(start), place(end) - place(start));
        if count == self.count {
            self.answered.clear();
            return Ok(Some(self.judge(run, start, partition)));
        }
        let heard: u32 = self.answered.iter().map(|part| part.count).sum();
        if !self.keyed || heard.saturating_add(count) > self.count {
            return Err(SplitBatch(Sequence(self.base_sequence)));
        }
        let verdict = self.judge(run, start, partition);
        self.answered.push(Answered { first, count, verdict });
        let is_whole = heard + count == self.count;
        Ok(if is_whole { Some(self.verdict_of_parts()?) } else { None })
    }

    /// If a part is to be sent again, the batch is, as a whole: what is stored of it is told again.
    fn verdict_of_parts(&mut self) -> Result<Verdict, SplitBatch> {
        let mut answered = std::mem::take(&mut self.answered);
        answered.sort_by_key(|part| part.first);
        let mut end = 0;
        let mut parts = Vec::with_capacity(answered.len());
        for Answered { first, count, verdict } in answered {
            if first != end {
                return Err(SplitBatch(Sequence(self.base_sequence)));
            }
            end = first + count;
            match verdict {
                Verdict::Final(outcome) => parts.push(Part { first, count, outcome }),
                again @ Verdict::Again { .. } => return Ok(again),
            }
        }
        Ok(Verdict::Final(BatchOutcome::Parts(parts.into())))
    }

    /// What an answer says of the messages from sequence `start` on. For those the send is not outstanding any more.
    fn judge(&mut self, run: &ConfirmRun, start: u64, partition: PartitionId) -> Verdict {
        let outstanding = std::mem::replace(&mut self.outstanding, false);
        let verdict = self.judge_outcome(run, start, partition);
        self.outstanding = outstanding;
        verdict
    }

    fn judge_outcome(&mut self, run: &ConfirmRun, start: u64, partition: PartitionId) -> Verdict {
        let ahead = start - run.base_sequence.0;
        let stored = |place, append_time: &_, durability: &_, duplicate| {
            Verdict::Final(BatchOutcome::Stored(Stored {
                partition,
                place,
                append_time: *append_time,
                durability: *durability,
                duplicate,
            }))
        };
        let offsets = |base: &Offset| Place::Offsets(Offset(base.0.saturating_add(ahead)));
        let delayed = |id: &DelayId| {
            Place::Delayed(DelayId {
                position: id.position.saturating_add(u32::try_from(ahead).unwrap_or(u32::MAX)),
                ..*id
            })
        };
        match &run.outcome {
            Outcome::Committed { base_offset, append_time, durability } => {
                stored(offsets(base_offset), append_time, durability, false)
            }
            Outcome::Duplicate { base_offset, append_time, durability } => {
                stored(offsets(base_offset), append_time, durability, true)
            }
            Outcome::Delayed { id, append_time, durability } => {
                stored(delayed(id), append_time, durability, false)
            }
            Outcome::DelayedDuplicate { id, append_time, durability } => {
                stored(delayed(id), append_time, durability, true)
            }
            Outcome::Rejected { error } => self.refused(error),
            Outcome::Unknown { error } if error.code.retry() == Retry::Never => {
                Verdict::Final(failed(PublishFailure::Unknown(error.clone())))
            }
            Outcome::Unknown { error } => {
                // Sent again with the same sequences, the doubt ends in a definite answer.
                self.doubt = true;
                self.last_error = Some(error.clone());
                again(error, Reaction::None)
            }
        }
    }

    fn refused(&mut self, error: &ErrorBody) -> Verdict {
        // Had an earlier send stored it, it would be a duplicate.
        if error.code == ErrorCode::IdempotencyKeyReused {
            return Verdict::Final(failed(PublishFailure::Rejected(error.clone())));
        }
        self.last_error = Some(error.clone());
        match judge_refusal(error) {
            // It may be stored by an earlier send.
            Verdict::Final(_) => {
                Verdict::Final(failed(self.failure(&PublishFailure::Rejected(error.clone()))))
            }
            again => again,
        }
    }

    /// What its end means: unknown if it may be stored, else the last refusal, else `otherwise`.
    fn failure(&self, otherwise: &PublishFailure) -> PublishFailure {
        let in_doubt = self.doubt || self.outstanding;
        match (&self.last_error, otherwise) {
            (_, PublishFailure::Rejected(error)) if in_doubt => {
                PublishFailure::Unknown(error.clone())
            }
            (Some(error), _) if in_doubt => PublishFailure::Unknown(error.clone()),
            (None, _) if in_doubt => PublishFailure::Unknown(ErrorBody::new(
                ErrorCode::TimedOut,
                "no broker confirmed the batch in time; it may be stored: read the topic to find out",
            )),
            (Some(error), PublishFailure::NotSent) => PublishFailure::Rejected(error.clone()),
            (_, otherwise) => otherwise.clone(),
        }
    }

    fn resolved(self, outcome: BatchOutcome) -> Resolution {
        Resolution { number: self.number, bytes: self.bytes, completion: self.completion, outcome }
    }
}

/// What a refusal means for a batch that was sent once.
fn judge_refusal(error: &ErrorBody) -> Verdict {
    match (error.code, error.code.retry()) {
        (ErrorCode::OutOfOrderSequence, _) => {
            Verdict::Again { wait: Wait::None, reaction: Reaction::None }
        }
        (ErrorCode::UnknownProducer, _) => again(error, Reaction::ReplaceSession),
        (ErrorCode::SessionMoved, _) => again(error, Reaction::ResumeSession),
        (ErrorCode::ProducerFenced, _) => again(error, Reaction::End(error.clone())),
        // The application must know of a full disk, topic or memory now, not after `delivery_timeout`.
        (ErrorCode::DiskFull | ErrorCode::TopicFull | ErrorCode::DedupCapacity, _)
        | (_, Retry::Never) => Verdict::Final(failed(PublishFailure::Rejected(error.clone()))),
        (_, Retry::RefreshMetadata) => again(error, Reaction::RefreshMetadata),
        (_, Retry::SameConnection | Retry::Reconnect) => again(error, Reaction::None),
    }
}

fn failed(failure: PublishFailure) -> BatchOutcome {
    BatchOutcome::Failed(Arc::new(failure))
}

fn again(error: &ErrorBody, reaction: Reaction) -> Verdict {
    let least = Duration::from_millis(u64::from(error.retry_after_ms));
    Verdict::Again { wait: Wait::AtLeast(least), reaction }
}
