//! Owns a producer: its session, its topic's partitions, routing, the byte bound, flushes. Never writes a
//! frame, never sees a socket. Driven by the engine: the application's calls, replies, confirms, timers.
//!
//! ```text
//! opening (session and leaders asked for) ──► active ──► ended (fenced, topic gone, closed)
//!    ▲  ▲                                       │ │
//!    │  └────────── connection lost ────────────┘ │
//!    └── draining (session unknown: all outstanding batches must be answered first) ◄──┘
//! ```

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use postrider_protocol::{
    batch::BATCH_FIELD_BYTES,
    error::{ErrorBody, ErrorCode, Retry},
    headers::IDEMPOTENCY_KEY_BYTES_MAX,
    message::{ConfirmRun, Limits, OpenProducerReply, Outcome, PartitionMetadata, TopicMetadata},
    record::RECORD_HEADERS_MAX,
    types::{Compression, Durability, TimestampMs, TopicId},
};

use super::{
    completion::{BatchCompletion, Promise, PublishFailure, Wakes},
    lane::{
        Compressed, Lane, MessageParts, Reaction, Resolution, Sending, SessionId, SplitBatch, Step,
        Uncompressed, Whole,
    },
    room::{Room, Ticket},
    routing::Router,
};

/// The wait before a refused session or metadata request is repeated.
const REOPEN_WAIT: Duration = Duration::from_millis(100);
/// Messages of one batch that share one reading of the clock.
const CLOCK_EVERY: u32 = 64;
/// For so many lingers after a batch had to linger, the connection looks once per linger by itself.
const LINGERS_AGAIN: u32 = 16;

/// How a producer batches, waits and gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerOptions {
    /// The longest wait for a batch to fill while an earlier one is unconfirmed.
    pub linger: Duration,
    /// A batch is sent once it holds this many bytes, before compression.
    pub batch_bytes: usize,
    /// The bound of bytes that are enqueued and without an outcome.
    pub max_in_flight_bytes: usize,
    /// The most batches per partition that are sent and unconfirmed. At most 1,024, what the broker
    /// remembers of a session.
    pub max_in_flight_batches: usize,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long a batch is retried before it ends as unknown, or as not sent.
    pub delivery_timeout: Duration,
    /// Batches are forgotten once they are sent: no confirm is asked for, and none is sent again.
    pub forgets: bool,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(1),
            batch_bytes: 128 << 10,
            max_in_flight_bytes: 32 << 20,
            max_in_flight_batches: 256,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(120),
            forgets: false,
        }
    }
}

/// What a producer knows of its topic once it is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicFacts {
    /// The topic's id.
    pub id: TopicId,
    /// Its durability class.
    pub durability: Durability,
    /// How many partitions it has.
    pub partitions: u32,
}

/// What became of an attempt to add a message.
#[derive(Debug)]
pub enum Enqueue {
    /// It is in a batch.
    Placed {
        /// The completion of the batch.
        completion: Arc<BatchCompletion>,
        /// The message's place in it.
        place: u32,
    },
    /// The byte bound is reached.
    Full,
    /// The message is larger than the broker accepts.
    TooLarge {
        /// Its encoded size, at most.
        bytes: usize,
        /// The broker's limit.
        max: usize,
    },
    /// The message has more headers than a record may have.
    TooManyHeaders,
    /// The idempotency key is empty or too long.
    BadIdempotencyKey {
        /// Its length.
        bytes: usize,
    },
    /// A batch has no message.
    Empty,
    /// The messages of one batch belong to more than one partition.
    Scattered,
    /// The topic has no such partition.
    NoPartition {
        /// How many partitions the topic has.
        partitions: u32,
    },
    /// The producer has ended.
    Ended(Ended),
}

/// Why a producer takes no messages any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It, or its client, was closed.
    Closed,
    /// The broker ended it: fenced, or the topic is gone.
    Refused(ErrorBody),
}

#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) topic: String,
    options: ProducerOptions,
    phase: Phase,
    session: Option<SessionId>,
    facts: Option<TopicFacts>,
    lanes: Vec<Lane>,
    router: Router,
    room: Room,
    message_bytes_max: usize,
    /// What the broker takes as one batch, at most.
    batch_bytes_max: usize,
    /// Lanes that may have something to send; each at most once (`Lane::listed`).
    ready: VecDeque<u32>,
    /// When to look at a lane again; each lane at most once (`Lane::timed`).
    timers: BinaryHeap<Reverse<(Duration, u32)>>,
    /// The connection looks again by then, as far as [`Self::deadline`] asked for it.
    looks_by: Duration,
    /// When a batch was last opened while others were under way.
    lingered_at: Option<Duration>,
    /// The connection must look, because it would look too late by itself.
    wanted: bool,
    /// Session or metadata are to be asked for again at this time.
    reopen_at: Option<Duration>,
    outstanding: usize,
    outstanding_bytes: usize,
    unresolved: u64,
    next_batch: u64,
    /// Bounded by the application's calls of `flush` that wait.
    flushes: Vec<Flush>,
    opened: Option<Opened>,
    resolutions: Vec<Resolution>,
    /// Messages that were forgotten, and that the broker said it did not take.
    refused: u64,
    /// The last handle is gone: the producer leaves once nothing is unresolved.
    pub(crate) released: bool,
    /// The producer is in the engine's list of producers that may have something to send.
    pub(crate) listed: bool,
}

#[derive(Debug)]
enum Phase {
    /// Waits for the parts that are not there yet.
    Opening {
        session: Part,
        leaders: Part,
    },
    Active,
    /// Asks nothing and sends nothing until every outstanding batch has its answer.
    Draining(Then),
    Ended(Ended),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Resume,
    Replace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Wanted,
    Asked,
    There,
}

#[derive(Debug)]
struct Flush {
    below: u64,
    remaining: u64,
    failure: Option<Arc<PublishFailure>>,
    done: Promise<FlushOutcome>,
}

/// The first failure among the batches that a flush waited for.
pub type FlushOutcome = Result<(), Arc<PublishFailure>>;

#[derive(Debug)]
struct Opened {
    promise: Promise<Result<TopicFacts, ErrorBody>>,
    deadline: Duration,
}

/// What a producer wants to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Question {
    OpenSession { resume: Option<SessionId> },
    Leaders,
}

impl Producer {
    pub(crate) fn new(
        topic: String,
        options: ProducerOptions,
        seed: u64,
        opened: Promise<Result<TopicFacts, ErrorBody>>,
        deadline: Duration,
    ) -> Self {
        Self {
            topic,
            phase: Phase::Opening { session: Part::Wanted, leaders: Part::Wanted },
            session: None,
            facts: None,
            lanes: Vec::new(),
            router: Router::new(seed, options.batch_bytes),
            room: Room::new(options.max_in_flight_bytes),
            message_bytes_max: usize::MAX,
            batch_bytes_max: usize::MAX,
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            looks_by: Duration::MAX,
            lingered_at: None,
            wanted: false,
            reopen_at: None,
            outstanding: 0,
            outstanding_bytes: 0,
            unresolved: 0,
            next_batch: 0,
            flushes: Vec::new(),
            opened: Some(Opened { promise: opened, deadline }),
            resolutions: Vec::new(),
            refused: 0,
            released: false,
            listed: false,
            options,
        }
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session
    }

    pub(crate) fn topic_id(&self) -> Option<TopicId> {
        self.facts.as_ref().map(|facts| facts.id)
    }

    /// Bytes on the wire without an answer.
    pub(crate) fn outstanding_bytes(&self) -> usize {
        self.outstanding_bytes
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Whether something has a deadline.
    pub(crate) fn waits(&self) -> bool {
        self.unresolved > 0 || self.opened.is_some() || self.released
    }

    /// Messages that were forgotten, and that the broker said it did not take.
    pub(crate) fn refused_messages(&self) -> u64 {
        self.refused
    }

    /// Batches without an outcome.
    pub(crate) fn unresolved(&self) -> u64 {
        self.unresolved
    }

    /// Messages never sent, and messages sent without an outcome.
    pub(crate) fn count_messages(&self) -> (u64, u64) {
        self.lanes.iter().map(Lane::count_messages).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    // The application's side.

    /// Adds a message to its batch. `clock` is read for the first message of a batch and now and then.
    pub(crate) fn enqueue(
        &mut self,
        clock: impl FnOnce() -> (Duration, TimestampMs),
        message: &MessageParts<'_>,
        ticket: Option<Ticket>,
        wakes: &mut Wakes,
    ) -> Enqueue {
        if let Phase::Ended(ended) = &self.phase {
            return Enqueue::Ended(ended.clone());
        }
        let bytes = message.bytes();
        if let Err(refused) = self.check(message) {
            return refused;
        }
        let partitions = u32::try_from(self.lanes.len()).expect("partitions are counted in u32");
        let Some(at) = self.router.route(message, bytes, partitions) else {
            return Enqueue::NoPartition { partitions };
        };
        if !self.room.admits(bytes, ticket) {
            return Enqueue::Full;
        }
        self.room.take(bytes, ticket, wakes);
        let active = matches!(self.phase, Phase::Active);
        let lane = self.lanes.get_mut(to_usize(at)).expect("the router stays below the count");
        if lane.opens_batch(bytes, message.deliver_at, &self.options) {
            let (now, timestamp) = clock();
            let (deliver_at, number) = (message.deliver_at, self.next_batch);
            lane.open_batch((now, timestamp), deliver_at, number, &self.options);
            self.next_batch += 1;
            self.unresolved += 1;
            if active && lane.outstanding() > 0 && !lane.timed {
                lane.timed = true;
                let due = now + self.options.linger;
                self.timers.push(Reverse((due, at)));
                self.lingered_at = Some(now);
                if due < self.looks_by {
                    self.looks_by = due;
                    self.wanted = true;
                }
            }
        } else if !active || lane.open_count().is_multiple_of(CLOCK_EVERY) {
            lane.set_timestamp(clock().1);
        }
        let placed = lane.push(message, bytes, &self.options);
        if active && !lane.listed && (placed.sealed || lane.outstanding() == 0) {
            self.list(at);
        }
        Enqueue::Placed { completion: placed.completion, place: placed.place }
    }

    /// Adds messages as one batch that is stored as a whole or not at all, in the partition that the first one that
    /// names a partition or has a key goes to; else in that of the first one.
    pub(crate) fn enqueue_whole(
        &mut self,
        clock: impl FnOnce() -> (Duration, TimestampMs),
        messages: &[MessageParts<'_>],
        whole: Whole,
        ticket: Option<Ticket>,
        wakes: &mut Wakes,
    ) -> Enqueue {
        if let Phase::Ended(ended) = &self.phase {
            return Enqueue::Ended(ended.clone());
        }
        let (at, bytes) = match self.place_whole(messages) {
            Ok(placed) => placed,
            Err(refused) => return refused,
        };
        if !self.room.admits(bytes, ticket) {
            return Enqueue::Full;
        }
        self.room.take(bytes, ticket, wakes);
        let lane = self.lanes.get_mut(to_usize(at)).expect("the router stays below the count");
        let placed = lane.push_whole(clock(), messages, whole, self.next_batch, &self.options);
        self.next_batch += 1;
        self.unresolved += 1;
        if matches!(self.phase, Phase::Active) && !lane.listed {
            self.list(at);
        }
        Enqueue::Placed { completion: placed.completion, place: placed.place }
    }

    /// The partition of a batch, and its bytes.
    fn place_whole(&mut self, messages: &[MessageParts<'_>]) -> Result<(u32, usize), Enqueue> {
        let mut bytes = 0_usize;
        for message in messages {
            self.check(message)?;
            bytes = bytes.saturating_add(message.bytes());
        }
        if bytes > self.batch_bytes_max {
            return Err(Enqueue::TooLarge { bytes, max: self.batch_bytes_max });
        }
        let partitions = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        let names_one =
            |message: &&MessageParts<'_>| message.partition.is_some() || message.key.is_some();
        let first =
            messages.iter().find(names_one).or_else(|| messages.first()).ok_or(Enqueue::Empty)?;
        let no_partition = || Enqueue::NoPartition { partitions };
        let at = self.router.route(first, bytes, partitions).ok_or_else(no_partition)?;
        for message in messages.iter().filter(names_one) {
            if self.router.route(message, 0, partitions).ok_or_else(no_partition)? != at {
                return Err(Enqueue::Scattered);
            }
        }
        Ok((at, bytes))
    }

    fn check(&self, message: &MessageParts<'_>) -> Result<(), Enqueue> {
        let bytes = message.bytes();
        if bytes > self.message_bytes_max {
            return Err(Enqueue::TooLarge { bytes, max: self.message_bytes_max });
        }
        if message.headers.len() > RECORD_HEADERS_MAX {
            return Err(Enqueue::TooManyHeaders);
        }
        match message.idempotency_key {
            Some(key) if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) => {
                Err(Enqueue::BadIdempotencyKey { bytes: key.len() })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn wait_for_room(&mut self, ticket: Option<Ticket>, waker: &Waker) -> Ticket {
        self.room.wait(ticket, waker)
    }

    pub(crate) fn leave_line(&mut self, ticket: Ticket, wakes: &mut Wakes) {
        self.room.leave(ticket, wakes);
    }

    /// Sends all that is enqueued without waiting for full batches, and answers when it has its outcomes.
    pub(crate) fn flush(&mut self, done: Promise<FlushOutcome>, wakes: &mut Wakes) {
        if self.unresolved == 0 {
            done.fulfil(Ok(()), wakes);
            return;
        }
        for lane in &mut self.lanes {
            lane.seal();
        }
        self.flushes.retain(|flush| !flush.done.is_abandoned());
        let (below, remaining) = (self.next_batch, self.unresolved);
        self.flushes.push(Flush { below, remaining, failure: None, done });
        self.list_all();
    }

    /// Ends the producer: what is unresolved ends now.
    pub(crate) fn close(&mut self, ended: Ended, failure: &PublishFailure, wakes: &mut Wakes) {
        if let Some(opened) = self.opened.take() {
            let error = match &ended {
                Ended::Refused(error) => error.clone(),
                Ended::Closed => ErrorBody::new(ErrorCode::ShuttingDown, "the client was closed"),
            };
            opened.promise.fulfil(Err(error), wakes);
        }
        self.phase = Phase::Ended(ended);
        for lane in &mut self.lanes {
            lane.give_up(failure, &mut self.resolutions);
        }
        self.outstanding = 0;
        self.outstanding_bytes = 0;
        self.settle(wakes);
        self.room.wake_all(wakes);
        self.ready.clear();
        self.timers.clear();
        self.reopen_at = None;
    }

    // The connection's side.

    /// A connection is ready for requests.
    pub(crate) fn connected(&mut self, limits: &Limits) {
        self.message_bytes_max = to_usize(limits.message_bytes_max);
        let batch_bytes_max = to_usize(limits.batch_bytes_max).saturating_sub(BATCH_FIELD_BYTES);
        self.batch_bytes_max = batch_bytes_max;
        self.options.batch_bytes = self.options.batch_bytes.min(batch_bytes_max);
        if !self.has_ended() {
            self.phase = Phase::Opening { session: Part::Wanted, leaders: Part::Wanted };
        }
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        if self.has_ended() {
            return;
        }
        for lane in &mut self.lanes {
            lane.disconnected();
            lane.listed = false;
            lane.timed = false;
        }
        self.ready.clear();
        self.timers.clear();
        self.outstanding = 0;
        self.outstanding_bytes = 0;
        self.reopen_at = None;
        self.phase = Phase::Opening { session: Part::Wanted, leaders: Part::Wanted };
    }

    /// The next thing to ask the broker; each is asked once per connection or change.
    pub(crate) fn question(&mut self, now: Duration) -> Option<Question> {
        if self.reopen_at.is_some_and(|at| at > now) {
            return None;
        }
        let resume = self.session;
        let Phase::Opening { session, leaders } = &mut self.phase else { return None };
        if *session == Part::Wanted {
            *session = Part::Asked;
            return Some(Question::OpenSession { resume });
        }
        if *leaders == Part::Wanted {
            *leaders = Part::Asked;
            return Some(Question::Leaders);
        }
        self.reopen_at = None;
        None
    }

    pub(crate) fn session_opened(
        &mut self,
        now: Duration,
        reply: Result<OpenProducerReply, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        let Phase::Opening { session, .. } = &mut self.phase else { return };
        match reply {
            Ok(reply) => {
                *session = Part::There;
                let opened = SessionId { producer: reply.producer, epoch: reply.epoch };
                let replaced = self.session.is_some_and(|old| old.producer != opened.producer);
                self.session = Some(opened);
                if replaced {
                    self.restart_lanes(wakes);
                }
                self.activate_if_open(wakes);
            }
            Err(error) if error.code == ErrorCode::UnknownProducer && self.session.is_some() => {
                *session = Part::Wanted;
                self.session = None;
                self.restart_lanes(wakes);
            }
            Err(error) => {
                *session = Part::Wanted;
                self.refused(now, error, wakes);
            }
        }
    }

    pub(crate) fn leaders_named(
        &mut self,
        now: Duration,
        reply: Result<TopicMetadata, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        let topic = match reply {
            Ok(topic) => topic,
            Err(error) => {
                if let Phase::Opening { leaders, .. } = &mut self.phase {
                    *leaders = Part::Wanted;
                }
                self.refused(now, error, wakes);
                return;
            }
        };
        if let Some(code) = topic.error {
            let text = format!(
                "there is no topic \"{0}\"; create it with `postrider topic create {0}`",
                self.topic
            );
            self.refused(now, ErrorBody::new(code, text), wakes);
            return;
        }
        if self.facts.as_ref().is_some_and(|facts| facts.id != topic.id) {
            let text = format!(
                "the topic \"{}\" was deleted and created again: build a new producer",
                self.topic
            );
            let error = ErrorBody::new(ErrorCode::UnknownTopic, text);
            let failure = PublishFailure::Rejected(error.clone());
            self.close(Ended::Refused(error), &failure, wakes);
            return;
        }
        self.update_lanes(&topic);
        if let Phase::Opening { leaders, .. } = &mut self.phase {
            *leaders = Part::There;
            self.activate_if_open(wakes);
        }
    }

    fn update_lanes(&mut self, topic: &TopicMetadata) {
        let mut partitions = topic.partitions.clone();
        partitions.sort_by_key(|partition| partition.partition);
        for PartitionMetadata { partition, leader_epoch, .. } in partitions {
            let count = self.lanes.len();
            match self.lanes.get_mut(to_usize(partition.0)) {
                Some(lane) => lane.set_leader_epoch(leader_epoch),
                None if to_usize(partition.0) == count => {
                    self.lanes.push(Lane::new(partition, leader_epoch));
                }
                // A hole in the numbers: what lies behind it cannot be addressed.
                None => break,
            }
        }
        self.facts = Some(TopicFacts {
            id: topic.id,
            durability: topic.durability,
            partitions: u32::try_from(self.lanes.len()).expect("a list has at most 2^20 items"),
        });
    }

    fn activate_if_open(&mut self, wakes: &mut Wakes) {
        if !matches!(self.phase, Phase::Opening { session: Part::There, leaders: Part::There }) {
            return;
        }
        self.phase = Phase::Active;
        self.reopen_at = None;
        if let (Some(opened), Some(facts)) = (self.opened.take(), &self.facts) {
            opened.promise.fulfil(Ok(facts.clone()), wakes);
        }
        self.list_all();
    }

    /// A refusal of the session or of the metadata.
    fn refused(&mut self, now: Duration, error: ErrorBody, wakes: &mut Wakes) {
        if error.code.retry() == Retry::Never {
            let failure = PublishFailure::Rejected(error.clone());
            self.close(Ended::Refused(error), &failure, wakes);
        } else {
            let wait = Duration::from_millis(u64::from(error.retry_after_ms)).max(REOPEN_WAIT);
            self.reopen_at = Some(now + wait);
        }
    }

    /// Applies one run of a confirm. Answers how many bytes of frames are not outstanding any more.
    pub(crate) fn confirmed(
        &mut self,
        now: Duration,
        run: &ConfirmRun,
        wakes: &mut Wakes,
    ) -> Result<(), SplitBatch> {
        let at = run.partition.0;
        let Some(lane) = self.lanes.get_mut(to_usize(at)) else { return Ok(()) };
        let before = (lane.outstanding(), lane.outstanding_bytes());
        let reaction = match &run.outcome {
            Outcome::Rejected { error } | Outcome::Unknown { error } if self.options.forgets => {
                self.refused += u64::from(run.count);
                lane.refused_forgotten(now, error)
            }
            _ => lane.answer(now, run, &mut self.resolutions)?,
        };
        self.outstanding -= before.0 - lane.outstanding();
        self.outstanding_bytes -= before.1 - lane.outstanding_bytes();
        self.settle(wakes);
        self.react(now, reaction, wakes);
        if matches!(self.phase, Phase::Active) {
            self.list(at);
        }
        self.finish_draining(wakes);
        Ok(())
    }

    fn react(&mut self, now: Duration, reaction: Reaction, wakes: &mut Wakes) {
        if !matches!(self.phase, Phase::Active) {
            return;
        }
        match reaction {
            Reaction::None => {}
            Reaction::RefreshMetadata => {
                self.phase = Phase::Opening { session: Part::There, leaders: Part::Wanted };
                self.reopen_at = Some(now + REOPEN_WAIT / 10);
            }
            Reaction::ResumeSession => {
                self.phase = Phase::Draining(Then::Resume);
                self.reopen_at = Some(now + REOPEN_WAIT);
            }
            Reaction::ReplaceSession => self.phase = Phase::Draining(Then::Replace),
            Reaction::End(error) => {
                let failure = PublishFailure::Rejected(error.clone());
                self.close(Ended::Refused(error), &failure, wakes);
            }
        }
    }

    fn finish_draining(&mut self, wakes: &mut Wakes) {
        let Phase::Draining(then) = self.phase else { return };
        if self.outstanding > 0 {
            return;
        }
        self.phase = Phase::Opening { session: Part::Wanted, leaders: Part::There };
        if then == Then::Replace {
            self.session = None;
            self.restart_lanes(wakes);
        }
    }

    fn restart_lanes(&mut self, wakes: &mut Wakes) {
        let error = ErrorBody::new(
            ErrorCode::UnknownProducer,
            "the broker has forgotten the producer session: whether this batch, sent before, is stored is not known",
        );
        for lane in &mut self.lanes {
            lane.restart(&error, &mut self.resolutions);
        }
        self.settle(wakes);
    }

    // Sending.

    /// The next batch that may be sent now.
    pub(crate) fn next_sending(&mut self, now: Duration, wakes: &mut Wakes) -> Option<Sending> {
        let session = self.session?;
        if !matches!(self.phase, Phase::Active) {
            return None;
        }
        while let Some(at) = self.ready.pop_front() {
            let lane = self.lanes.get_mut(to_usize(at))?;
            lane.listed = false;
            match lane.step(now, &self.options) {
                Step::Nothing => {}
                Step::WaitUntil(due) => {
                    if !lane.timed {
                        lane.timed = true;
                        self.timers.push(Reverse((due, at)));
                    }
                }
                Step::Send => {
                    if self.options.forgets {
                        let sent = lane.send_and_forget(session, &mut self.resolutions);
                        let Some(sending) = sent else { continue };
                        self.list(at);
                        self.settle(wakes);
                        return Some(sending);
                    }
                    let Some(sending) = lane.send(session) else { continue };
                    self.outstanding += 1;
                    self.outstanding_bytes += sending.batch.body.len();
                    self.list(at);
                    return Some(sending);
                }
            }
        }
        None
    }

    /// The next batch that waits to be sent and should be compressed first.
    pub(crate) fn next_compression(&mut self, now: Duration) -> Option<(u32, Uncompressed)> {
        let session = self.session?;
        if self.options.compression == Compression::None || !matches!(self.phase, Phase::Active) {
            return None;
        }
        for at in &self.ready {
            let lane = self.lanes.get_mut(to_usize(*at))?;
            if lane.step(now, &self.options) == Step::Send
                && let Some(job) = lane.take_for_compression(session)
            {
                return Some((*at, job));
            }
        }
        None
    }

    pub(crate) fn compressed(&mut self, at: u32, compressed: Compressed) {
        if let Some(lane) = self.lanes.get_mut(to_usize(at)) {
            lane.compressed(compressed);
        }
        if matches!(self.phase, Phase::Active) {
            self.list(at);
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() && matches!(self.phase, Phase::Active)
    }

    fn list(&mut self, at: u32) {
        let lane = self.lanes.get_mut(to_usize(at)).expect("the caller has the lane");
        if !lane.listed && !lane.is_empty() {
            lane.listed = true;
            self.ready.push_back(at);
        }
    }

    fn list_all(&mut self) {
        if !matches!(self.phase, Phase::Active) {
            return;
        }
        for at in 0..u32::try_from(self.lanes.len()).expect("partitions are counted in u32") {
            self.list(at);
        }
    }

    // Time.

    /// Lists the lanes whose time has come.
    pub(crate) fn fire_timers(&mut self, now: Duration) {
        while let Some(Reverse((due, at))) = self.timers.peek().copied() {
            if due > now {
                break;
            }
            self.timers.pop();
            if let Some(lane) = self.lanes.get_mut(to_usize(at)) {
                lane.timed = false;
            }
            if matches!(self.phase, Phase::Active) {
                self.list(at);
            }
        }
    }

    /// When to look again. While batches linger again and again, one linger from now at the latest: so an
    /// application that opens a batch meanwhile need not wake the connection. An application that waits for
    /// each answer opens none meanwhile, and causes no timer: setting one costs a system call.
    pub(crate) fn deadline(&mut self, now: Duration) -> Option<Duration> {
        let linger = self.options.linger;
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        let lately = |at| now.saturating_sub(at) / LINGERS_AGAIN < linger;
        let lingers = self.outstanding > 0 && self.lingered_at.is_some_and(lately);
        let lingering = lingers.then(|| now + linger);
        let reopen = self.reopen_at.filter(|_| matches!(self.phase, Phase::Opening { .. }));
        let due = [timer, lingering, reopen].into_iter().flatten().min();
        self.looks_by = due.unwrap_or(Duration::MAX);
        due
    }

    /// Whether the connection must look, since the last call.
    pub(crate) fn take_wanted(&mut self) -> bool {
        std::mem::take(&mut self.wanted)
    }

    /// Ends what is older than `delivery_timeout`, and a build that took too long.
    pub(crate) fn expire(&mut self, now: Duration, wakes: &mut Wakes) {
        if let Some(opened) = self.opened.take_if(|opened| opened.deadline <= now) {
            let error = ErrorBody::new(
                ErrorCode::TimedOut,
                "no broker answered while the producer was opened; check the address and the broker",
            );
            opened.promise.fulfil(Err(error), wakes);
        }
        if self.unresolved == 0 {
            return;
        }
        for lane in &mut self.lanes {
            let before = (lane.outstanding(), lane.outstanding_bytes());
            lane.expire(now, self.options.delivery_timeout, &mut self.resolutions);
            self.outstanding -= before.0 - lane.outstanding();
            self.outstanding_bytes -= before.1 - lane.outstanding_bytes();
        }
        self.settle(wakes);
        self.finish_draining(wakes);
    }

    fn settle(&mut self, wakes: &mut Wakes) {
        for resolution in self.resolutions.drain(..) {
            self.unresolved -= 1;
            self.room.release(resolution.bytes, wakes);
            for flush in &mut self.flushes {
                if resolution.number < flush.below {
                    flush.remaining -= 1;
                    if let (None, Some(why)) = (&flush.failure, resolution.outcome.failure()) {
                        flush.failure = Some(Arc::clone(why));
                    }
                }
            }
            resolution.completion.complete(resolution.outcome, wakes);
        }
        while let Some(at) = self.flushes.iter().position(|flush| flush.remaining == 0) {
            let flush = self.flushes.swap_remove(at);
            flush.done.fulfil(flush.failure.map_or(Ok(()), Err), wakes);
        }
    }

    /// Checks what must hold between events. For tests and the simulator.
    ///
    /// # Panics
    /// Something does not hold.
    pub(crate) fn check_invariants(&self) {
        let outstanding: usize = self.lanes.iter().map(Lane::outstanding).sum();
        assert_eq!(outstanding, self.outstanding, "outstanding batches");
        let unresolved: u64 = self.lanes.iter().map(Lane::unresolved).sum();
        assert_eq!(unresolved, self.unresolved, "unresolved batches");
        assert!(unresolved > 0 || self.room.used() == 0, "bytes held for nothing");
        assert!(unresolved > 0 || self.flushes.is_empty(), "a flush waits for nothing");
    }
}

/// The lane's place: partitions are numbered without gaps from 0.
fn to_usize(at: u32) -> usize {
    usize::try_from(at).expect("a usize has at least 32 bits")
}
