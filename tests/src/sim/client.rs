//! Owns a client process: the production engine, its connection, its applications (producers, readers), and
//! does what the client's shell does. Never decides when anything fails. Driven by the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postrider::core::completion::{
    BatchCompletion, BatchOutcome, Pending, PublishFailure, promise,
};
use postrider::core::lane::MessageParts;
use postrider::core::link::{Answer, LinkFault, Repeat};
use postrider::core::producer::{Enqueue, ProducerOptions, TopicFacts};
use postrider::core::{Engine, EngineOptions, ProducerKey, Transmit};
use postrider_protocol::error::ErrorBody;
use postrider_protocol::message::{CreateTopic, TopicConfig};
use postrider_protocol::types::{Compression, PartitionId, TimestampMs};
use postrider_storage::disk_sim::SimRandom;

use super::network::Connection;
use super::oracle::Oracle;
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

struct Publisher {
    topic: usize,
    partitions: u32,
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
    input: BytesMut,
    output: BytesMut,
    pub(crate) reconnect_at: Duration,
    publishers: Vec<Publisher>,
    pub(crate) readers: Vec<Reader>,
    creating: Vec<Pending<Answer>>,
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
            input: BytesMut::new(),
            output: BytesMut::new(),
            reconnect_at: Duration::ZERO,
            publishers: Vec::new(),
            readers: Vec::new(),
            creating: Vec::new(),
        }
    }

    pub(crate) fn create_topic(&mut self, now: Duration, topic: usize, config: TopicConfig) {
        let request = CreateTopic { name: topic_name(topic), config, if_not_exists: true };
        let (done, pending) = promise();
        self.engine.ask(&request, Repeat::Safe, now + Duration::from_secs(600), done);
        self.creating.push(pending);
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
        };
        let (opened, open) = promise();
        let deadline = now + Duration::from_secs(600);
        let key = self.engine.open_producer(topic_name(topic), options, deadline, opened);
        let (open, ready, waiting) = (Some(open), false, Vec::new());
        self.publishers.push(Publisher { topic, partitions, key, number, open, ready, waiting });
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

    pub(crate) fn connected(
        &mut self,
        now: Duration,
        link: u64,
        durables: &mut BTreeMap<String, Durable>,
    ) {
        self.link = Some(link);
        for reader in &mut self.readers {
            let name = reader.plan.name.clone();
            reader.connected(name.and_then(|name| durables.get_mut(&name)));
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
                    publisher.enqueue(&mut self.engine, now, wall, oracle, load, dice);
                }
            }
        }
        for reader in &mut self.readers {
            let name = reader.plan.name.clone();
            let mut durable = name.as_ref().map(|name| durables.entry(name.clone()).or_default());
            reader.run(&mut self.engine, oracle, durable.as_deref_mut(), planted, dice);
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
        format!("{}: link {:?}, unanswered {waiting:?}, {readers:?}", self.name, self.link)
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

    fn enqueue(
        &mut self,
        engine: &mut Engine,
        now: Duration,
        wall: TimestampMs,
        oracle: &mut Oracle,
        load: Load,
        dice: &mut SimRandom,
    ) {
        let partition = u32::try_from(dice.below(u64::from(self.partitions))).expect("few");
        let mut value = oracle.next_number().to_le_bytes().to_vec();
        let fill = dice.next_u64();
        let len = dice.below(load.bytes_max);
        value
            .extend((0..len).map(|at| fill.to_le_bytes()[usize::try_from(at % 8).expect("small")]));
        let message = MessageParts {
            partition: Some(PartitionId(partition)),
            key: None,
            value: Some(&value),
            headers: &[],
            timestamp: None,
        };
        match engine.enqueue(self.key, || (now, wall), &message, None) {
            Enqueue::Placed { completion, place } => {
                let place_of = (self.topic, partition);
                let number = oracle.sent(self.number, place_of, Bytes::from(value));
                self.waiting.push((number, place, completion));
            }
            Enqueue::Full => {}
            other => oracle.violate(format!("producer {} takes nothing: {other:?}", self.number)),
        }
    }

    fn settle(&mut self, oracle: &mut Oracle) {
        self.waiting.retain(|(number, place, completion)| match completion.outcome() {
            None => true,
            Some(BatchOutcome::Stored(stored)) => {
                let offset = stored.base_offset.0 + u64::from(*place);
                oracle.told_stored(*number, stored.partition.0, offset);
                false
            }
            Some(BatchOutcome::Failed(why)) => {
                match &*why {
                    PublishFailure::Unknown(_) => oracle.told_unknown(*number),
                    _ => oracle.told_not_stored(*number),
                }
                false
            }
        });
    }
}
