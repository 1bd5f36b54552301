//! Owns a client process: the production engine, its connection, its applications (producers, readers), and
//! does what the client's shell does. Never decides when anything fails. Driven by the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postrider::core::completion::{
    BatchCompletion, BatchOutcome, Pending, Place, PublishFailure, promise,
};
use postrider::core::lane::MessageParts;
use postrider::core::link::{Answer, LinkFault, Repeat};
use postrider::core::producer::{Enqueue, ProducerOptions, TopicFacts};
use postrider::core::{Engine, EngineOptions, ProducerKey, Transmit};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::headers::IDEMPOTENCY_KEY;
use postrider_protocol::message::{
    CreateTopic, DescribeQueueReply, Message, PurgeQueue, TopicConfig,
};
use postrider_protocol::types::{Compression, PartitionId, TimestampMs};
use postrider_storage::disk_sim::SimRandom;

use super::consumer::{WorkPlan, Worker};
use super::copyist::Copyist;
use super::letters::{LetterReader, dead_name};
use super::member::{Around, GroupApp, MemberPlan};
use super::network::Connection;
use super::oracle::Oracle;
use super::queue_oracle::{Queue, QueueOracle};
use super::queues::{Making, question};
use super::reader::{Durable, Plan, Reader, topic_name};
use super::tamper::Planted;

/// How far a producer goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Messages are enqueued once in so many milliseconds, a burst at a time.
    pub(crate) pause: u64,
    pub(crate) burst: u64,
    pub(crate) bytes_max: u64,
}

/// Whether messages have keys, and headers with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keys {
    None,
    /// On any partition.
    Some,
    /// Each has its partition.
    Routed,
}

struct Publisher {
    topic: usize,
    partitions: u32,
    keys: Keys,
    key: ProducerKey,
    /// Rises with every producer opened in the run.
    number: u64,
    open: Option<Pending<Result<TopicFacts, ErrorBody>>>,
    ready: bool,
    waiting: Vec<(usize, u32, Arc<BatchCompletion>)>,
}

/// A client process.
pub(crate) struct Client {
    pub(crate) name: String,
    engine: Engine,
    pub(crate) link: Option<u64>,
    /// Its first connection: those before are of an earlier process.
    pub(crate) first_link: Option<u64>,
    input: BytesMut,
    output: BytesMut,
    pub(crate) reconnect_at: Duration,
    publishers: Vec<Publisher>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) members: Vec<GroupApp>,
    /// The process is stopped until then.
    pub(crate) paused_until: Duration,
    pub(crate) letters: Vec<LetterReader>,
    copyist: Option<Copyist>,
    creating: Vec<Pending<Answer>>,
    /// What is asked about queues, by their numbers, and the last answers.
    asking: BTreeMap<usize, Pending<Answer>>,
    pub(crate) described: BTreeMap<usize, DescribeQueueReply>,
}

/// The key of a message of a keyed producer, which stands in its value.
pub(crate) fn key_of(value: &[u8]) -> Option<Bytes> {
    value.get(8).filter(|key| **key > 0).map(|key| Bytes::copy_from_slice(&[*key]))
}

impl Client {
    pub(crate) fn new(name: String, seed: u64) -> Self {
        let mut client_id = [0; 16];
        client_id[..8].copy_from_slice(&seed.to_le_bytes());
        let options = EngineOptions { client_name: name.clone(), client_id, seed };
        Self {
            name,
            engine: Engine::new(options),
            link: None,
            first_link: None,
            input: BytesMut::new(),
            output: BytesMut::new(),
            reconnect_at: Duration::ZERO,
            publishers: Vec::new(),
            readers: Vec::new(),
            workers: Vec::new(),
            members: Vec::new(),
            paused_until: Duration::ZERO,
            letters: Vec::new(),
            copyist: None,
            creating: Vec::new(),
            asking: BTreeMap::new(),
            described: BTreeMap::new(),
        }
    }

    pub(crate) fn create_topic(&mut self, now: Duration, topic: usize, config: TopicConfig) {
        self.create(now, &CreateTopic { name: topic_name(topic), config, if_not_exists: true });
    }

    pub(crate) fn create_queue(&mut self, now: Duration, making: &Making) {
        match making {
            Making::Queue(request) => self.create(now, request),
            Making::Subscription(request) => self.create(now, request),
        }
    }

    fn create(&mut self, now: Duration, request: &impl Message) {
        let (done, pending) = promise();
        self.engine.ask(request, Repeat::Safe, now + Duration::from_secs(600), done);
        self.creating.push(pending);
    }

    pub(crate) fn consume(
        &mut self,
        who: String,
        plan: WorkPlan,
        queue: &Queue,
        now: Duration,
        dice: &mut SimRandom,
    ) {
        self.workers.push(Worker::open(who, plan, queue, &mut self.engine, now, dice));
    }

    pub(crate) fn join_group(&mut self, who: String, plan: MemberPlan, now: Duration) {
        self.members.push(GroupApp::open(who, plan, &mut self.engine, now));
    }

    /// One millisecond of the members.
    pub(crate) fn run_members(&mut self, around: &mut Around<'_>) {
        around.link = self.link;
        for member in &mut self.members {
            member.run(&mut self.engine, around);
        }
    }

    pub(crate) fn read_letters(&mut self, topic: usize, now: Duration) {
        self.letters.push(LetterReader::open(topic, &mut self.engine, now));
    }

    /// Publishes a letter of those that were read once more. Whether there is one.
    pub(crate) fn copy_letter(&mut self, now: Duration) -> bool {
        let mut topics = self.letters.iter().zip(0..);
        let found = topics.find_map(|(letters, topic)| Some((topic, letters.first.clone()?)));
        if let Some((topic, record)) = found {
            self.letters.clear();
            self.copyist = Some(Copyist::open(dead_name(topic), record, &mut self.engine, now));
        }
        self.copyist.is_some()
    }

    /// Whether the copy of a letter is published.
    pub(crate) fn letter_copied(&mut self, now: Duration, wall: TimestampMs) -> bool {
        self.copyist.as_mut().is_none_or(|copyist| copyist.run(&mut self.engine, now, wall))
    }

    /// Purges a queue, sooner or later.
    pub(crate) fn purge_queue(&mut self, now: Duration, queue: &Queue) {
        let (done, _whatever) = promise();
        let (topic, subscription) = (topic_name(queue.topic), queue.subscription.clone());
        let deadline = now + Duration::from_secs(600);
        self.engine.ask(&PurgeQueue { topic, subscription }, Repeat::Never, deadline, done);
    }

    /// Asks how a queue is, unless that is asked already.
    pub(crate) fn describe_queue(&mut self, now: Duration, number: usize, queue: &Queue) {
        if !self.asking.contains_key(&number) {
            let (done, pending) = promise();
            let deadline = now + Duration::from_secs(600);
            self.engine.ask(&question(queue), Repeat::Safe, deadline, done);
            self.asking.insert(number, pending);
        }
    }

    /// One millisecond of the consumers and of what is asked about queues. Tells the plans of those that left.
    pub(crate) fn work(
        &mut self,
        now: Duration,
        oracle: &mut Oracle,
        queues: &mut QueueOracle,
        draining: bool,
        dice: &mut SimRandom,
    ) -> Vec<WorkPlan> {
        let mut left = Vec::new();
        let engine = &mut self.engine;
        self.workers.retain_mut(|worker| {
            let stays = worker.run(engine, now, oracle, queues, draining, dice);
            if !stays {
                left.push(worker.plan.clone());
            }
            stays
        });
        for letters in &mut self.letters {
            letters.run(engine, oracle);
        }
        let described = &mut self.described;
        self.asking.retain(|number, pending| match pending.try_take() {
            None => true,
            Some(Ok(body)) => {
                match DescribeQueueReply::decode(body) {
                    Ok(reply) => {
                        described.insert(*number, reply);
                    }
                    Err(why) => oracle.violate(format!("no description: {why}")),
                }
                false
            }
            Some(Err(why)) => {
                oracle.violate(format!("a queue is not described: {why:?}"));
                false
            }
        });
        left
    }

    /// Whether every topic that was asked for is there.
    pub(crate) fn topics_created(&mut self, oracle: &mut Oracle) -> bool {
        self.creating.retain(|pending| match pending.try_take() {
            None => true,
            Some(Ok(_)) => false,
            Some(Err(why)) => {
                oracle.violate(format!("a topic was not created: {why:?}"));
                false
            }
        });
        self.creating.is_empty()
    }

    pub(crate) fn publish(
        &mut self,
        now: Duration,
        topic: usize,
        partitions: u32,
        number: u64,
        keys: Keys,
        dice: &mut SimRandom,
    ) {
        let codecs = [Compression::None, Compression::None, Compression::Lz4, Compression::Zstd];
        let options = ProducerOptions {
            linger: Duration::from_millis(dice.below(4)),
            batch_bytes: 256 << dice.below(6),
            max_in_flight_bytes: 64 << 10,
            max_in_flight_batches: 1 + dice.index(32),
            compression: codecs[dice.index(codecs.len())],
            delivery_timeout: Duration::from_secs(600),
            forgets: false,
        };
        let (opened, open) = promise();
        let deadline = now + Duration::from_secs(600);
        let key = self.engine.open_producer(topic_name(topic), options, deadline, opened);
        let (open, ready, waiting) = (Some(open), false, Vec::new());
        let publisher = Publisher { topic, partitions, keys, key, number, open, ready, waiting };
        self.publishers.push(publisher);
    }

    pub(crate) fn read(&mut self, who: String, plan: Plan, now: Duration) {
        self.readers.push(Reader::open(who, plan, &mut self.engine, now));
    }

    /// The connection is gone.
    pub(crate) fn lose_connection(&mut self) {
        self.link = None;
        self.input.clear();
        self.output.clear();
        self.engine.disconnected();
        self.engine.check_invariants();
    }

    /// A connection begins; the broker may still hear so many of earlier processes.
    pub(crate) fn connected(
        &mut self,
        now: Duration,
        link: u64,
        ghosts: usize,
        durables: &mut BTreeMap<String, Durable>,
    ) {
        self.link = Some(link);
        for reader in &mut self.readers {
            let name = reader.plan.name.clone();
            reader.connected(ghosts, name.and_then(|name| durables.get_mut(&name)));
        }
        self.engine.connected(now);
    }

    /// Moves bytes of the connection. An error ends it.
    pub(crate) fn exchange(
        &mut self,
        now: Duration,
        connection: &mut Connection,
        dice: &mut SimRandom,
        delay_max_ms: u64,
    ) -> Result<(), LinkFault> {
        if connection.to_client.receive(now, &mut self.input) {
            self.engine.receive(now, &mut self.input)?;
        }
        self.engine.on_time(now);
        if self.output.is_empty() {
            let mut out = Transmit::default();
            self.engine.transmit(now, &mut out, 16 << 10)?;
            out.chunks.iter().for_each(|chunk| self.output.extend_from_slice(chunk));
        }
        self.engine.check_invariants();
        self.engine.take_wakes().wake();
        let room = connection.to_server.room().min(self.output.len());
        if room > 0 {
            let sent = self.output.split_to(room).freeze();
            if !connection.cut {
                connection.to_server.send(now, sent, dice, delay_max_ms);
            }
        }
        Ok(())
    }

    /// Time passes without a connection.
    pub(crate) fn wait(&mut self, now: Duration) {
        self.engine.on_time(now);
        self.engine.check_invariants();
    }

    /// The process ends: what was not answered never will be.
    pub(crate) fn die(&mut self, oracle: &mut Oracle, durables: &mut BTreeMap<String, Durable>) {
        for publisher in &mut self.publishers {
            publisher.settle(oracle);
            publisher.waiting.drain(..).for_each(|(number, ..)| oracle.told_unknown(number));
        }
        for reader in &self.readers {
            let name = reader.plan.name.as_ref();
            reader.abandon(name.and_then(|name| durables.get_mut(name)));
        }
    }

    /// One millisecond of the applications.
    pub(crate) fn run(
        &mut self,
        now: Duration,
        wall: TimestampMs,
        oracle: &mut Oracle,
        durables: &mut BTreeMap<String, Durable>,
        load: Option<Load>,
        planted: Option<Planted>,
        dice: &mut SimRandom,
    ) {
        for publisher in &mut self.publishers {
            publisher.settle(oracle);
            if let Some(load) = load
                && publisher.opened(oracle)
                && dice.one_in(load.pause)
            {
                for _ in 0..=dice.below(load.burst) {
                    if publisher.repeats()
                        && dice.one_in(5)
                        && publisher.repeat(&mut self.engine, (now, wall), oracle, planted, dice)
                    {
                        continue;
                    }
                    publisher.enqueue(&mut self.engine, now, wall, oracle, load, dice);
                }
            }
        }
        for reader in &mut self.readers {
            let name = reader.plan.name.clone();
            let mut durable = name.as_ref().map(|name| durables.entry(name.clone()).or_default());
            reader.run(&mut self.engine, now, oracle, durable.as_deref_mut(), planted, dice);
            if let Some(durable) = durable
                && load.is_some()
                && dice.one_in(2_000)
            {
                reader.seek(&mut self.engine, durable, now, dice.below(200));
            }
        }
    }

    /// Whether every message sent has its answer.
    pub(crate) fn is_answered(&mut self, oracle: &mut Oracle) -> bool {
        self.publishers.iter_mut().all(|publisher| {
            publisher.settle(oracle);
            publisher.opened(oracle) && publisher.waiting.is_empty()
        })
    }

    pub(crate) fn describe(&self) -> String {
        let waiting: Vec<usize> = self.publishers.iter().map(|one| one.waiting.len()).collect();
        let readers: Vec<String> = self.readers.iter().map(Reader::describe).collect();
        let workers: Vec<String> = self.workers.iter().map(Worker::describe).collect();
        let members: Vec<String> = self.members.iter().map(GroupApp::describe).collect();
        let (name, link) = (&self.name, self.link);
        format!(
            "{name}: link {link:?}, unanswered {waiting:?}, {readers:?} {workers:?} {members:?}"
        )
    }
}

impl Publisher {
    fn opened(&mut self, oracle: &mut Oracle) -> bool {
        if let Some(answer) = self.open.as_ref().and_then(Pending::try_take) {
            self.open = None;
            match answer {
                Ok(_) => self.ready = true,
                Err(error) => oracle.violate(format!("a producer was not opened: {error}")),
            }
        }
        self.ready
    }

    /// Every other publisher gives its messages idempotency keys, and publishes some again that it or others have
    /// published.
    fn repeats(&self) -> bool {
        self.keys == Keys::None && self.number.is_multiple_of(2)
    }

    /// Publishes a message once more under its key; `false` if there is none.
    fn repeat(
        &mut self,
        engine: &mut Engine,
        (now, wall): (Duration, TimestampMs),
        oracle: &mut Oracle,
        planted: Option<Planted>,
        dice: &mut SimRandom,
    ) -> bool {
        let Some((number, partition, value)) = oracle.keyed_message(self.topic, dice.next_u64())
        else {
            return false;
        };
        let key = idempotency_key(number);
        let message = MessageParts {
            partition: Some(PartitionId(partition)),
            key: None,
            value: Some(&value),
            headers: &[key_header(&key)],
            timestamp: None,
            deliver_at: None,
            idempotency_key: (planted != Some(Planted::KeyIgnored)).then_some(&*key),
        };
        match engine.enqueue(self.key, || (now, wall), &message, None) {
            Enqueue::Placed { completion, place } => {
                oracle.repeats(number);
                self.waiting.push((number, place, completion));
            }
            Enqueue::Full => {}
            other => oracle.violate(format!("producer {} takes nothing: {other:?}", self.number)),
        }
        true
    }

    fn enqueue(
        &mut self,
        engine: &mut Engine,
        now: Duration,
        wall: TimestampMs,
        oracle: &mut Oracle,
        load: Load,
        dice: &mut SimRandom,
    ) {
        let mut partition = u32::try_from(dice.below(u64::from(self.partitions))).expect("few");
        let mut value = oracle.next_number().to_le_bytes().to_vec();
        let keyed = self.keys != Keys::None;
        if keyed {
            value.push(u8::try_from(dice.below(6)).expect("few"));
        }
        if self.keys == Keys::Routed {
            partition = u32::from(value[8]) % self.partitions;
        }
        let number = usize::try_from(oracle.next_number()).expect("few");
        let own_key = self.repeats().then(|| idempotency_key(number));
        let own_header = match &own_key {
            Some(key) => Some(key_header(key)),
            None if keyed => {
                Some((Bytes::from_static(b"n"), Some(Bytes::copy_from_slice(&value[..8]))))
            }
            None => None,
        };
        let key = if keyed { key_of(&value) } else { None };
        let fill = dice.next_u64();
        let len = dice.below(load.bytes_max);
        value
            .extend((0..len).map(|at| fill.to_le_bytes()[usize::try_from(at % 8).expect("small")]));
        let message = MessageParts {
            partition: Some(PartitionId(partition)),
            key: key.as_deref(),
            value: Some(&value),
            headers: own_header.as_slice(),
            timestamp: None,
            deliver_at: None,
            idempotency_key: own_key.as_deref(),
        };
        match engine.enqueue(self.key, || (now, wall), &message, None) {
            Enqueue::Placed { completion, place } => {
                let place_of = (self.topic, partition);
                let number =
                    oracle.sent(self.number, place_of, Bytes::from(value), own_key.is_some());
                self.waiting.push((number, place, completion));
            }
            Enqueue::Full => {}
            other => oracle.violate(format!("producer {} takes nothing: {other:?}", self.number)),
        }
    }

    fn settle(&mut self, oracle: &mut Oracle) {
        self.waiting.retain(|(number, place, completion)| {
            let Some(outcome) = completion.outcome() else { return true };
            let (outcome, place) = outcome.of(*place);
            match outcome {
                BatchOutcome::Stored(stored) => match stored.place {
                    Place::Offsets(base) => {
                        let offset = base.0 + u64::from(place);
                        oracle.told_stored(*number, stored.partition.0, offset);
                    }
                    Place::Delayed(id) => {
                        oracle.violate(format!("message {number} was delayed as {id:?}"));
                    }
                },
                BatchOutcome::Sent => unreachable!("these producers want acks"),
                BatchOutcome::Parts(_) => unreachable!("parts have no parts"),
                BatchOutcome::Failed(why) => match &**why {
                    PublishFailure::Unknown(_) => oracle.told_unknown(*number),
                    PublishFailure::Rejected(error)
                        if error.code == ErrorCode::IdempotencyKeyReused =>
                    {
                        oracle.violate(format!("message {number}: {error:?}"));
                    }
                    _ => oracle.told_not_stored(*number),
                },
            }
            false
        });
    }
}

fn idempotency_key(number: usize) -> Vec<u8> {
    format!("message {number}").into_bytes()
}

fn key_header(key: &[u8]) -> (Bytes, Option<Bytes>) {
    (Bytes::from_static(IDEMPOTENCY_KEY.as_bytes()), Some(Bytes::copy_from_slice(key)))
}
