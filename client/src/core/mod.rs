//! Owns the client's decisions: [`Engine`], which knows the connection's conversation, every producer and
//! every subscription. Never sees a socket, a clock, a thread or a runtime: time and randomness are arguments,
//! frames go in and out as bytes. Driven by `io` over TCP, and by the simulator.
//!
//! The driver's loop: `connected` → repeat { `receive`, `on_time`, `transmit`, sleep until `deadline` } →
//! `disconnected`. Application calls may come at any time between; after each the driver is woken if
//! [`Engine::take_attention`] says so, and [`Engine::take_wakes`] is woken after the lock is released.

pub mod completion;
pub mod consumer;
mod consumers;
pub mod lane;
pub mod link;
pub mod producer;
pub mod room;
mod routing;
pub mod subscription;
pub(crate) mod turns;

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use postrider_protocol::{
    api::Api,
    error::{ErrorBody, ErrorCode},
    frame::{Frame, FrameHeader, event, request},
    message::{
        AckReply, Confirm, Deliver, Gap, GroupAssigned, GroupFenced, GroupRevoked, Hello,
        HelloReply, JoinGroupReply, LeaveGroup, Limits, Message, Metadata, MetadataReply,
        OpenProducer, OpenProducerReply, Ping, PublishAtomic, PublishDelayed, PublishHead,
        ReturnReply, Seeked, SubscribeReply, SubscriptionClosed, Unsubscribe,
    },
    types::{
        ClusterId, CorrelationId, Offset, PartitionId, ProducerId, SubscriptionHandle, TimestampMs,
        TopicId,
    },
};

use self::{
    completion::{Promise, PublishFailure, Wakes},
    consumer::Consumer,
    lane::{Compressed, MessageParts, Sending, Uncompressed, Whole},
    link::{
        Answer, FRAME_BYTES_MAX, Greeting, Link, LinkFault, Purpose, Repeat, Request, SettleKind,
    },
    producer::{Ended, Enqueue, FlushOutcome, Producer, ProducerOptions, Question, TopicFacts},
    room::Ticket,
    subscription::{
        AckFailure, AttachedPartition, Incoming, MemberOptions, Subscription, SubscriptionOptions,
    },
};

/// How often deadlines of requests and of deliveries are looked at, while there are any.
const SWEEP: Duration = Duration::from_millis(100);
/// Bodies up to this size are copied behind their heads: cheaper than a slice of their own in a write.
const COPY_BYTES_MAX: usize = 1024;
/// What the buffer for heads and small frames is grown by.
const SCRATCH_BYTES: usize = 16 << 10;

/// Who the client is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineOptions {
    /// The name that the broker shows.
    pub client_name: String,
    /// A random id.
    pub client_id: [u8; 16],
    /// Seeds the choice of first partitions.
    pub seed: u64,
}

/// A producer of an engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProducerKey(u32);

/// What was left undone at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Left {
    /// Messages that were never sent: definitely not stored.
    pub unsent: u64,
    /// Messages that were sent and not confirmed: stored or not.
    pub unacked: u64,
}

/// Bytes to write, in order. Filled by [`Engine::transmit`], emptied by the driver.
#[derive(Debug, Default)]
pub struct Transmit {
    /// Pieces of frames.
    pub chunks: VecDeque<Bytes>,
    /// How many bytes the pieces have.
    pub bytes: usize,
    scratch: BytesMut,
}

impl Transmit {
    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        if chunk.len() <= COPY_BYTES_MAX {
            self.copy(&chunk);
        } else {
            self.seal();
            self.chunks.push_back(chunk);
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        if self.scratch.capacity() - self.scratch.len() < bytes.len() {
            self.seal();
            self.scratch.reserve(SCRATCH_BYTES.max(bytes.len()));
        }
        self.scratch.put_slice(bytes);
    }

    fn seal(&mut self) {
        if !self.scratch.is_empty() {
            self.chunks.push_back(self.scratch.split().freeze());
        }
    }
}

/// All that a client decides.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    link: Link,
    limits: Limits,
    /// Zero until the first greeting; later brokers must be of the same cluster.
    cluster: ClusterId,
    greeting: Option<Greeting>,
    hello_wanted: bool,
    /// Bounded by the application's producers.
    producers: Vec<Option<Producer>>,
    sessions: BTreeMap<ProducerId, u32>,
    /// Producers that may have something to send; each at most once.
    ready: VecDeque<u32>,
    /// Bounded by the application's subscriptions.
    subscriptions: BTreeMap<SubscriptionHandle, Subscription>,
    /// Bounded by the application's consumers, and those that still settle what they had.
    consumers: BTreeMap<SubscriptionHandle, Consumer>,
    next_handle: u32,
    /// Handles whose subscriptions were dropped while attached.
    detach: Vec<(SubscriptionHandle, Kind)>,
    next_sweep: Duration,
    attention: bool,
    closed: bool,
    wakes: Wakes,
    dispatched: u64,
}

impl Engine {
    /// A client without a connection.
    #[must_use]
    pub fn new(options: EngineOptions) -> Self {
        Self {
            options,
            link: Link::new(),
            limits: Limits::default(),
            cluster: ClusterId::default(),
            greeting: None,
            hello_wanted: false,
            producers: Vec::new(),
            sessions: BTreeMap::new(),
            ready: VecDeque::new(),
            subscriptions: BTreeMap::new(),
            consumers: BTreeMap::new(),
            next_handle: 1,
            detach: Vec::new(),
            next_sweep: Duration::ZERO,
            attention: false,
            closed: false,
            wakes: Wakes::default(),
            dispatched: 0,
        }
    }

    /// Wakers to call after the lock is released.
    pub fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }

    /// Whether the driver must look, since the last call.
    pub fn take_attention(&mut self) -> bool {
        std::mem::take(&mut self.attention)
    }

    /// The broker's greeting, once per connection.
    pub fn take_greeting(&mut self) -> Option<Greeting> {
        self.greeting.take()
    }

    /// Whether requests can be sent now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.link.is_ready()
    }

    // ---- The connection's side ----

    /// A connection is open.
    pub fn connected(&mut self, now: Duration) {
        self.link.connected(now);
        self.hello_wanted = true;
    }

    /// The connection is gone. What was sent and not answered will be sent again or ends by its deadline.
    pub fn disconnected(&mut self) {
        self.link.disconnected(&mut self.wakes);
        self.hello_wanted = false;
        self.ready.clear();
        for producer in self.producers.iter_mut().flatten() {
            producer.disconnected();
            producer.listed = false;
        }
        for subscription in self.subscriptions.values_mut() {
            subscription.disconnected(&mut self.wakes);
        }
        for consumer in self.consumers.values_mut() {
            consumer.disconnected(&mut self.wakes);
        }
        self.forget_gone_consumers();
        self.detach.clear();
    }

    /// Takes all complete frames off the buffer and acts on them.
    ///
    /// # Errors
    /// The broker broke the protocol or refused the connection; the driver closes it.
    pub fn receive(&mut self, now: Duration, buffer: &mut BytesMut) -> Result<(), LinkFault> {
        while let Some(frame) = self.link.decoder.decode(buffer)? {
            self.frame(now, frame)?;
        }
        Ok(())
    }

    /// How many bytes the frame at the front of the buffer still lacks.
    #[must_use]
    pub fn missing(&self, buffer: &BytesMut) -> usize {
        self.link.decoder.missing(buffer)
    }

    fn frame(&mut self, now: Duration, frame: Frame) -> Result<(), LinkFault> {
        self.link.received(now);
        if frame.header.is_reply() {
            return self.reply(now, frame);
        }
        // An event for a subscription that was dropped meanwhile is no fault.
        match Api::from_u16(frame.header.api) {
            Some(Api::Confirm) => self.confirm(now, frame.message()?),
            Some(Api::Deliver) => {
                let deliver: Deliver = frame.message()?;
                match self.subscriptions.get_mut(&deliver.head.handle) {
                    Some(subscription) => Ok(subscription.delivered(deliver, &mut self.wakes)?),
                    None => Ok(()),
                }
            }
            Some(Api::Gap) => {
                let gap: Gap = frame.message()?;
                match self.subscriptions.get_mut(&gap.handle) {
                    Some(subscription) => Ok(subscription.gap(&gap, &mut self.wakes)?),
                    None => Ok(()),
                }
            }
            Some(Api::Seeked) => {
                let seeked: Seeked = frame.message()?;
                if let Some(subscription) = self.subscriptions.get_mut(&seeked.handle) {
                    subscription.seeked(&seeked, &mut self.wakes);
                }
                Ok(())
            }
            Some(Api::SubscriptionClosed) => {
                let closed: SubscriptionClosed = frame.message()?;
                if let Some(subscription) = self.subscriptions.get_mut(&closed.handle) {
                    subscription.closed(now, closed.error, &mut self.wakes);
                } else if let Some(consumer) = self.consumers.get_mut(&closed.handle) {
                    consumer.closed(now, closed.error, &mut self.wakes);
                }
                Ok(())
            }
            Some(Api::Lease) => self.leased(now, frame.message()?),
            Some(Api::LeaseLost) => {
                self.lease_lost(&frame.message()?);
                Ok(())
            }
            Some(Api::GroupAssigned) => {
                let assigned: GroupAssigned = frame.message()?;
                if let Some(subscription) = self.subscriptions.get_mut(&assigned.handle) {
                    subscription.assigned(&assigned.partition, &mut self.wakes);
                }
                Ok(())
            }
            Some(Api::GroupRevoked) => {
                let revoked: GroupRevoked = frame.message()?;
                if let Some(subscription) = self.subscriptions.get_mut(&revoked.handle) {
                    subscription.revoked(&revoked, &mut self.wakes);
                }
                Ok(())
            }
            Some(Api::GroupFenced) => {
                let fenced: GroupFenced = frame.message()?;
                if let Some(subscription) = self.subscriptions.get_mut(&fenced.handle) {
                    subscription.closed(now, fenced.error, &mut self.wakes);
                }
                Ok(())
            }
            _ => Err(LinkFault::Unexpected { api: frame.header.api }),
        }
    }

    fn confirm(&mut self, now: Duration, confirm: Confirm) -> Result<(), LinkFault> {
        for run in &confirm.runs {
            let Some(&key) = self.sessions.get(&run.producer) else { continue };
            let Some(producer) = slot(&mut self.producers, key) else { continue };
            let session = producer.session().map(|session| session.producer);
            if session == Some(run.producer) && producer.topic_id() == Some(run.topic) {
                producer.confirmed(now, run, &mut self.wakes)?;
                self.list(key);
            }
        }
        Ok(())
    }

    fn reply(&mut self, now: Duration, frame: Frame) -> Result<(), LinkFault> {
        let Frame { header, body } = frame;
        if header.is_error() && header.api == Api::Hello as u16 {
            return Err(LinkFault::Refused(ErrorBody::decode(&body)?));
        }
        let purpose = self.link.claim(&header)?;
        let answer = if header.is_error() { Err(ErrorBody::decode(&body)?) } else { Ok(body) };
        match purpose {
            Purpose::Hello => self.greeted(answer)?,
            Purpose::Ping => self.link.pong(),
            Purpose::Ignored => {}
            Purpose::Application(request) => {
                let answer = answer.map_err(link::RequestFailure::Refused);
                request.promise.fulfil(answer, &mut self.wakes);
            }
            Purpose::Session(key) => self.session_opened(now, key, decoded(answer)?),
            Purpose::Leaders(key) => {
                let reply = decoded::<MetadataReply>(answer)?;
                if let Some(producer) = slot(&mut self.producers, key) {
                    let topic = reply.and_then(|reply| {
                        reply.topics.into_iter().next().ok_or_else(|| {
                            ErrorBody::new(ErrorCode::Internal, "the metadata names no topic")
                        })
                    });
                    producer.leaders_named(now, topic, &mut self.wakes);
                    self.list(key);
                }
            }
            Purpose::Attach(handle) => {
                let reply = decoded::<SubscribeReply>(answer)?;
                match self.subscriptions.get_mut(&handle) {
                    Some(subscription) => {
                        subscription.answered(now, reply, &mut self.wakes);
                    }
                    None if reply.is_ok() => self.detach.push((handle, Kind::Subscriber)),
                    None => {}
                }
            }
            Purpose::Join(handle) => {
                let reply = decoded::<JoinGroupReply>(answer)?;
                match self.subscriptions.get_mut(&handle) {
                    Some(subscription) => subscription.joined(now, reply, &mut self.wakes),
                    None if reply.is_ok() => self.detach.push((handle, Kind::Member)),
                    None => {}
                }
            }
            Purpose::Consume(handle) => self.consumer_answered(now, handle, decoded(answer)?),
            Purpose::Leave(handle) => self.consumer_left(handle),
            Purpose::Settle { handle, partition, batch, kind } => {
                let reply = match kind {
                    SettleKind::Ack => decoded::<AckReply>(answer)?.map(Into::into),
                    SettleKind::Return => decoded::<ReturnReply>(answer)?.map(Into::into),
                };
                if let Some(consumer) = self.consumers.get_mut(&handle) {
                    consumer.settled(now, partition, batch, reply, &mut self.wakes);
                }
            }
            Purpose::Ack { handle, partition, up_to } => {
                if let Some(subscription) = self.subscriptions.get_mut(&handle) {
                    let reply = answer.map(|_body| ());
                    subscription.ack_answered(partition, up_to, reply, &mut self.wakes);
                }
            }
        }
        Ok(())
    }

    fn greeted(&mut self, answer: Result<Bytes, ErrorBody>) -> Result<(), LinkFault> {
        let body = answer.map_err(LinkFault::Refused)?;
        let reply = HelloReply::decode(body)?;
        self.limits = reply.limits;
        self.cluster = reply.cluster_id;
        self.link.greeted();
        for producer in self.producers.iter_mut().flatten() {
            producer.connected(&self.limits);
        }
        self.greeting = Some(Greeting {
            cluster: reply.cluster_id,
            node: reply.node_id,
            server_version: reply.server_version,
            limits: reply.limits,
        });
        Ok(())
    }

    fn session_opened(
        &mut self,
        now: Duration,
        key: u32,
        reply: Result<OpenProducerReply, ErrorBody>,
    ) {
        let Some(producer) = slot(&mut self.producers, key) else { return };
        self.sessions.retain(|_, owner| *owner != key);
        producer.session_opened(now, reply, &mut self.wakes);
        if let Some(new) = producer.session() {
            self.sessions.insert(new.producer, key);
        }
        self.list(key);
    }

    /// Fires what is due.
    pub fn on_time(&mut self, now: Duration) {
        self.fire_timers(now);
        if self.next_sweep <= now && self.needs_sweep() {
            self.next_sweep = now + SWEEP;
            self.sweep(now);
        }
    }

    fn fire_timers(&mut self, now: Duration) {
        for at in 0..self.producers.len() {
            let key = u32::try_from(at).expect("producers are counted in u32");
            if let Some(producer) = slot(&mut self.producers, key) {
                producer.fire_timers(now);
                self.list(key);
            }
        }
    }

    fn needs_sweep(&self) -> bool {
        self.link.has_requests()
            || self.producers.iter().flatten().any(Producer::waits)
            || self.subscriptions.values().any(Subscription::waits_to_attach)
            || self.consumers.values().any(Consumer::waits_to_attach)
    }

    fn sweep(&mut self, now: Duration) {
        self.link.expire(now, &mut self.wakes);
        for producer in self.producers.iter_mut().flatten() {
            producer.expire(now, &mut self.wakes);
        }
        for subscription in self.subscriptions.values_mut() {
            subscription.expire(now, &mut self.wakes);
        }
        for consumer in self.consumers.values_mut() {
            consumer.expire(now, &mut self.wakes);
        }
        for key in 0..self.producers.len() {
            self.remove_if_released(u32::try_from(key).expect("producers are counted in u32"));
        }
    }

    /// When `on_time` is to be called next.
    #[must_use]
    pub fn deadline(&mut self, now: Duration) -> Option<Duration> {
        let producers = self.producers.iter_mut().flatten().filter_map(|p| p.deadline(now)).min();
        let attach = self.subscriptions.values().filter_map(Subscription::deadline).min();
        let consumers = self.consumers.values().filter_map(Consumer::deadline).min();
        let sweep = self.needs_sweep().then_some(self.next_sweep);
        [producers, attach, consumers, sweep, self.link.life_deadline()].into_iter().flatten().min()
    }

    /// Fills `out` with up to about `budget` bytes of frames.
    ///
    /// # Errors
    /// The broker is silent; the driver closes the connection.
    pub fn transmit(
        &mut self,
        now: Duration,
        out: &mut Transmit,
        budget: usize,
    ) -> Result<(), LinkFault> {
        if self.hello_wanted {
            self.hello_wanted = false;
            self.hello(out);
        }
        if self.link.sign_of_life(now)? {
            let correlation = self.link.register(Purpose::Ping);
            out.push(request(&Ping {}, correlation));
        }
        if self.link.is_ready() {
            self.requests(out, budget);
            self.ask_for_producers(now, out);
            self.serve_subscriptions(now, out);
            self.serve_consumers(now, out);
            self.publish(now, out, budget);
        }
        out.seal();
        Ok(())
    }

    fn hello(&mut self, out: &mut Transmit) {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: 0,
            frame_bytes_max: FRAME_BYTES_MAX,
            client_name: self.options.client_name.clone(),
            client_id: self.options.client_id,
            cluster_id: self.cluster,
        };
        let correlation = self.link.register(Purpose::Hello);
        out.push(request(&hello, correlation));
    }

    fn requests(&mut self, out: &mut Transmit, budget: usize) {
        while out.bytes < budget {
            let Some(asked) = self.link.next_waiting() else { return };
            let header = FrameHeader {
                body_len: u32::try_from(asked.body.len()).expect("requests are below 4 GiB"),
                api: asked.api as u16,
                version: 1,
                flags: 0,
                correlation: CorrelationId(0),
            };
            let body = asked.body.clone();
            let correlation = self.link.register(Purpose::Application(asked));
            out.push(Bytes::copy_from_slice(&FrameHeader { correlation, ..header }.encode()));
            out.push(body);
        }
    }

    fn ask_for_producers(&mut self, now: Duration, out: &mut Transmit) {
        for (at, producer) in self.producers.iter_mut().enumerate() {
            let Some(producer) = producer else { continue };
            while let Some(question) = producer.question(now) {
                let key = u32::try_from(at).expect("producers are counted in u32");
                out.push(match question {
                    Question::OpenSession { resume } => {
                        let resume = resume.map(|session| (session.producer, session.epoch));
                        let open = OpenProducer { name: String::new(), resume };
                        request(&open, self.link.register(Purpose::Session(key)))
                    }
                    Question::Leaders => {
                        let metadata = Metadata { topics: vec![producer.topic.clone()] };
                        request(&metadata, self.link.register(Purpose::Leaders(key)))
                    }
                });
            }
        }
    }

    fn serve_subscriptions(&mut self, now: Duration, out: &mut Transmit) {
        for (handle, kind) in self.detach.drain(..) {
            let correlation = self.link.register(Purpose::Ignored);
            out.push(match kind {
                Kind::Subscriber => request(&Unsubscribe { handle }, correlation),
                Kind::Member => request(&LeaveGroup { handle, keep_place: false }, correlation),
            });
        }
        for (handle, subscription) in &mut self.subscriptions {
            if let Some(subscribe) = subscription.question(now) {
                out.push(request(&subscribe, self.link.register(Purpose::Attach(*handle))));
            }
            if let Some(join) = subscription.join_question(now) {
                out.push(request(&join, self.link.register(Purpose::Join(*handle))));
            }
            if let Some(heartbeat) = subscription.heartbeat(now) {
                out.push(event(&heartbeat));
            }
            if let Some(credit) = subscription.credit() {
                out.push(event(&credit));
            }
            while let Some(ack) = subscription.next_ack() {
                let purpose =
                    Purpose::Ack { handle: *handle, partition: ack.partition, up_to: ack.up_to };
                out.push(request(&ack, self.link.register(purpose)));
            }
            while let Some(released) = subscription.next_release(&mut self.wakes) {
                out.push(request(&released, self.link.register(Purpose::Ignored)));
            }
        }
    }

    /// Batches of all producers in turn, as long as the broker's bound of unconfirmed bytes allows.
    fn publish(&mut self, now: Duration, out: &mut Transmit, budget: usize) {
        let max = usize::try_from(self.limits.in_flight_bytes_max).unwrap_or(usize::MAX);
        let mut in_flight: usize =
            self.producers.iter().flatten().map(Producer::outstanding_bytes).sum();
        while out.bytes < budget && in_flight < max {
            let Some(key) = self.ready.pop_front() else { return };
            let Some(producer) = slot(&mut self.producers, key) else { continue };
            producer.listed = false;
            let Some(sending) = producer.next_sending(now, &mut self.wakes) else { continue };
            let Some(topic) = producer.topic_id() else { continue };
            in_flight += sending.batch.body.len();
            write_publish(topic, sending, out);
            self.dispatched += 1;
            self.list(key);
            self.remove_if_released(key);
        }
    }

    fn list(&mut self, key: u32) {
        let Some(producer) = slot(&mut self.producers, key) else { return };
        if producer.has_ready() && !producer.listed {
            producer.listed = true;
            self.ready.push_back(key);
        }
    }

    /// Takes a batch out to be compressed without the lock; [`Self::compressed`] brings it back. A driver
    /// that does not call it gets batches compressed inside `transmit`.
    pub fn next_compression(&mut self, now: Duration) -> Option<(ProducerKey, u32, Uncompressed)> {
        if !self.link.is_ready() {
            return None;
        }
        for key in &self.ready {
            if let Some(producer) = slot(&mut self.producers, *key)
                && let Some((lane, job)) = producer.next_compression(now)
            {
                return Some((ProducerKey(*key), lane, job));
            }
        }
        None
    }

    /// Brings a compressed batch back.
    pub fn compressed(&mut self, key: ProducerKey, lane: u32, compressed: Compressed) {
        if let Some(producer) = slot(&mut self.producers, key.0) {
            producer.compressed(lane, compressed);
            self.list(key.0);
        }
    }

    /// How many batches were written, first sends and repeats.
    #[must_use]
    pub fn dispatched_batches(&self) -> u64 {
        self.dispatched
    }

    // ---- The application's side ----

    /// Asks the broker; `promise` gets the reply's body.
    pub fn ask<M: Message>(
        &mut self,
        message: &M,
        repeat: Repeat,
        deadline: Duration,
        promise: Promise<Answer>,
    ) {
        if self.closed {
            promise.fulfil(Err(link::RequestFailure::Closed), &mut self.wakes);
            return;
        }
        let mut body = BytesMut::with_capacity(64);
        message.encode(&mut body);
        let request = Request { api: M::API, body: body.freeze(), repeat, deadline, promise };
        self.link.ask(request, &mut self.wakes);
        self.attention = true;
    }

    /// Opens a producer; `opened` is answered when it has a session and knows its topic.
    pub fn open_producer(
        &mut self,
        topic: String,
        options: ProducerOptions,
        deadline: Duration,
        opened: Promise<Result<TopicFacts, ErrorBody>>,
    ) -> ProducerKey {
        let key = self.producers.iter().position(Option::is_none).unwrap_or_else(|| {
            self.producers.push(None);
            self.producers.len() - 1
        });
        let seed = self.options.seed.rotate_left(u32::try_from(key % 64).expect("below 64"));
        let mut producer = Producer::new(topic, options, seed, opened, deadline);
        if self.link.is_ready() {
            producer.connected(&self.limits);
        }
        if self.closed {
            producer.close(Ended::Closed, &PublishFailure::Closed, &mut self.wakes);
        }
        self.producers[key] = Some(producer);
        self.attention = true;
        ProducerKey(u32::try_from(key).expect("producers are counted in u32"))
    }

    /// Adds a message to its batch. `clock` is called for the first message of a batch and now and then; it
    /// answers monotonic and wall time.
    #[inline]
    pub fn enqueue(
        &mut self,
        key: ProducerKey,
        clock: impl FnOnce() -> (Duration, TimestampMs),
        message: &MessageParts<'_>,
        ticket: Option<Ticket>,
    ) -> Enqueue {
        let Some(producer) = slot(&mut self.producers, key.0) else {
            return Enqueue::Ended(Ended::Closed);
        };
        let outcome = producer.enqueue(clock, message, ticket, &mut self.wakes);
        self.note_enqueued(key);
        outcome
    }

    /// Adds messages as one batch that is stored as a whole or not at all. As [`Engine::enqueue`].
    pub fn enqueue_whole(
        &mut self,
        key: ProducerKey,
        clock: impl FnOnce() -> (Duration, TimestampMs),
        messages: &[MessageParts<'_>],
        whole: Whole,
        ticket: Option<Ticket>,
    ) -> Enqueue {
        let Some(producer) = slot(&mut self.producers, key.0) else {
            return Enqueue::Ended(Ended::Closed);
        };
        let outcome = producer.enqueue_whole(clock, messages, whole, ticket, &mut self.wakes);
        self.note_enqueued(key);
        outcome
    }

    /// A producer may have something to send now.
    #[inline]
    fn note_enqueued(&mut self, key: ProducerKey) {
        let Some(producer) = slot(&mut self.producers, key.0) else { return };
        self.attention |= producer.take_wanted();
        if producer.has_ready() && !producer.listed {
            producer.listed = true;
            self.ready.push_back(key.0);
            self.attention = true;
        }
    }

    /// Waits in line for room, after [`Enqueue::Full`].
    pub fn wait_for_room(
        &mut self,
        key: ProducerKey,
        ticket: Option<Ticket>,
        waker: &Waker,
    ) -> Option<Ticket> {
        slot(&mut self.producers, key.0).map(|producer| producer.wait_for_room(ticket, waker))
    }

    /// Leaves the line.
    pub fn leave_line(&mut self, key: ProducerKey, ticket: Ticket) {
        if let Some(producer) = slot(&mut self.producers, key.0) {
            producer.leave_line(ticket, &mut self.wakes);
        }
    }

    /// Messages of a producer without acks that the broker said it did not take.
    pub fn refused_messages(&mut self, key: ProducerKey) -> u64 {
        slot(&mut self.producers, key.0).map_or(0, |producer| producer.refused_messages())
    }

    /// Sends what is enqueued without waiting for full batches; `done` is answered when all of it has its
    /// outcome.
    pub fn flush(&mut self, key: ProducerKey, done: Promise<FlushOutcome>) {
        if let Some(producer) = slot(&mut self.producers, key.0) {
            producer.flush(done, &mut self.wakes);
            self.list(key.0);
            self.attention = true;
        }
    }

    /// The last handle of a producer is gone. It leaves when all its batches have their outcomes.
    pub fn release_producer(&mut self, key: ProducerKey) -> Left {
        let Some(producer) = slot(&mut self.producers, key.0) else { return Left::default() };
        producer.released = true;
        let (unsent, unacked) = producer.count_messages();
        self.attention = true;
        self.remove_if_released(key.0);
        Left { unsent, unacked }
    }

    fn remove_if_released(&mut self, key: u32) {
        let Some(producer) = slot(&mut self.producers, key) else { return };
        if producer.released && producer.unresolved() == 0 {
            self.sessions.retain(|_, owner| *owner != key);
            self.producers[to_usize(key)] = None;
        }
    }

    /// Attaches a subscription; `attached` is answered with the positions.
    pub fn subscribe(
        &mut self,
        options: SubscriptionOptions,
        deadline: Duration,
        attached: Promise<Result<Vec<AttachedPartition>, ErrorBody>>,
    ) -> SubscriptionHandle {
        let handle = self.new_handle();
        let mut subscription = Subscription::new(handle, options, attached, deadline);
        if self.closed {
            subscription.end(closed(), &mut self.wakes);
        }
        self.subscriptions.insert(handle, subscription);
        self.attention = true;
        handle
    }

    fn new_handle(&mut self) -> SubscriptionHandle {
        let handle = SubscriptionHandle(self.next_handle);
        self.next_handle = self.next_handle.wrapping_add(1);
        handle
    }

    /// Joins the consumer group of a durable subscription; `attached` is answered when the broker has taken it.
    pub fn join_group(
        &mut self,
        options: SubscriptionOptions,
        member: MemberOptions,
        deadline: Duration,
        attached: Promise<Result<Vec<AttachedPartition>, ErrorBody>>,
    ) -> SubscriptionHandle {
        let handle = self.subscribe(options, deadline, attached);
        if let Some(subscription) = self.subscriptions.get_mut(&handle) {
            subscription.make_member(member);
        }
        handle
    }

    /// Gives a revoked partition back, behind the acks that were asked for.
    pub fn release(&mut self, handle: SubscriptionHandle, partition: PartitionId) {
        if let Some(subscription) = self.subscriptions.get_mut(&handle) {
            subscription.release(partition);
            self.attention = true;
        }
    }

    /// Drops a subscription.
    pub fn unsubscribe(&mut self, handle: SubscriptionHandle) {
        if let Some(subscription) = self.subscriptions.remove(&handle)
            && subscription.is_attached()
        {
            self.detach.push((handle, subscription.kind()));
            self.attention = true;
        }
    }

    /// The next thing that waits for the application; `None` after the end.
    pub fn poll_next(
        &mut self,
        handle: SubscriptionHandle,
        cx: &Context<'_>,
    ) -> Poll<Option<Incoming>> {
        let Some(subscription) = self.subscriptions.get_mut(&handle) else {
            return Poll::Ready(None);
        };
        let next = subscription.poll_next(cx);
        self.attention |= subscription.owes_credit();
        next
    }

    /// Acknowledges everything below `up_to` of a durable subscription.
    pub fn ack_up_to(
        &mut self,
        handle: SubscriptionHandle,
        partition: PartitionId,
        owner_epoch: u64,
        up_to: Offset,
        promise: Promise<Result<(), AckFailure>>,
    ) {
        match self.subscriptions.get_mut(&handle) {
            Some(subscription) => {
                subscription.ack_up_to(partition, owner_epoch, up_to, promise, &mut self.wakes);
                self.attention = true;
            }
            None => promise.fulfil(Err(AckFailure::Ended), &mut self.wakes),
        }
    }

    /// What would be left undone if everything ended now.
    #[must_use]
    pub fn left(&self) -> Left {
        let counts = self.producers.iter().flatten().map(Producer::count_messages);
        let (unsent, unacked) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        Left { unsent, unacked }
    }

    /// The producers, to flush them all.
    #[must_use]
    pub fn producer_keys(&self) -> Vec<ProducerKey> {
        let present = self.producers.iter().enumerate().filter(|(_, producer)| producer.is_some());
        present
            .map(|(at, _)| ProducerKey(u32::try_from(at).expect("producers are counted in u32")))
            .collect()
    }

    /// Ends everything: every wait has its answer. What was unfinished is returned.
    pub fn close(&mut self) -> Left {
        let left = self.left();
        self.closed = true;
        for producer in self.producers.iter_mut().flatten() {
            if !producer.has_ended() {
                producer.close(Ended::Closed, &PublishFailure::Closed, &mut self.wakes);
            }
        }
        for subscription in self.subscriptions.values_mut() {
            subscription.end(closed(), &mut self.wakes);
        }
        for consumer in self.consumers.values_mut() {
            consumer.end(closed(), &mut self.wakes);
        }
        self.link.close(&mut self.wakes);
        self.attention = true;
        left
    }

    /// Checks what must hold between calls. For tests and the simulator.
    ///
    /// # Panics
    /// Something does not hold.
    pub fn check_invariants(&self) {
        for (at, producer) in self.producers.iter().enumerate() {
            let Some(producer) = producer else { continue };
            producer.check_invariants();
            let key = u32::try_from(at).expect("producers are counted in u32");
            assert_eq!(self.ready.contains(&key), producer.listed, "the list of ready producers");
        }
        for consumer in self.consumers.values() {
            consumer.check_invariants();
        }
    }
}

/// How a handle is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Subscriber,
    Member,
}

fn closed() -> ErrorBody {
    ErrorBody::new(ErrorCode::ShuttingDown, "the client was closed")
}

fn to_usize(key: u32) -> usize {
    usize::try_from(key).expect("a usize has at least 32 bits")
}

fn slot(producers: &mut [Option<Producer>], key: u32) -> Option<&mut Producer> {
    producers.get_mut(to_usize(key))?.as_mut()
}

fn decoded<M: Message>(
    answer: Result<Bytes, ErrorBody>,
) -> Result<Result<M, ErrorBody>, LinkFault> {
    match answer {
        Ok(body) => Ok(Ok(M::decode(body)?)),
        Err(error) => Ok(Err(error)),
    }
}

fn write_publish(topic: TopicId, sending: Sending, out: &mut Transmit) {
    let head = PublishHead {
        topic,
        partition: sending.partition,
        leader_epoch: sending.leader_epoch,
        producer: sending.session.producer,
        epoch: sending.session.epoch,
        ack: sending.ack,
        keyed: sending.keyed,
        seq_count: sending.count,
        base_sequence: sending.base_sequence,
        resolved_upto: sending.resolved_upto,
    };
    let (batch, plain, delayed, atomic);
    batch = &sending.batch;
    let head: &[u8] = match (sending.deliver_at, sending.whole) {
        (_, Some(Whole { at })) => {
            atomic = PublishAtomic::encode_framed(at, &head, batch);
            &atomic
        }
        (None, None) => {
            plain = head.encode_framed(batch);
            &plain
        }
        (Some(deliver_at), None) => {
            delayed = PublishDelayed::encode_framed(deliver_at, &head, batch);
            &delayed
        }
    };
    out.bytes += head.len();
    out.copy(head);
    out.push(sending.batch.body);
}
