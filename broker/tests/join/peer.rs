//! A client without a socket: it speaks frames to a session and keeps what comes back. Never judges.
//! Driven by the tests of the join.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use postrider_broker::join::{Broker, Session, SessionEnd, Transmit, TransmitState, Wake};
use postrider_core::Now;
use postrider_protocol::batch::{Batch, BatchBuilder, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::ErrorBody;
use postrider_protocol::frame::{self, Frame, FrameDecoder};
use postrider_protocol::message::*;
use postrider_protocol::types::*;

/// Counts how often its session asked to transmit.
#[derive(Default)]
pub(crate) struct Bell(AtomicU64);

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    pub(crate) fn rings(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One client on one session.
pub(crate) struct Peer {
    pub(crate) session: Session,
    pub(crate) bell: Arc<Bell>,
    broker: Broker,
    next_correlation: u64,
    pub(crate) inbox: VecDeque<Frame>,
    pub(crate) now: Now,
}

/// The time at which tests begin.
pub(crate) fn start() -> Now {
    Now { monotonic: Duration::from_secs(1), wall: TimestampMs(1_700_000_000_000) }
}

pub(crate) fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 3,
        frame_bytes_max: 8 << 20,
        client_name: "test".to_string(),
        client_id: [1; 16],
        cluster_id: ClusterId::default(),
    }
}

impl Peer {
    /// Connects and says hello.
    pub(crate) fn new(broker: &Broker) -> Self {
        let mut peer = Self::silent(broker);
        let _reply: HelloReply = peer.ask(&hello()).unwrap();
        peer
    }

    /// Connects without a word.
    pub(crate) fn silent(broker: &Broker) -> Self {
        let bell = Arc::new(Bell::default());
        let wake: Arc<dyn Wake> = Arc::<Bell>::clone(&bell);
        Self {
            session: broker.connect(wake).unwrap(),
            bell,
            broker: broker.clone(),
            next_correlation: 1,
            inbox: VecDeque::new(),
            now: start(),
        }
    }

    pub(crate) fn receive(&self, bytes: &[u8]) -> Result<(), SessionEnd> {
        let mut buffer = BytesMut::from(bytes);
        let mut decoder = FrameDecoder::new(64 << 20);
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            self.session.receive(self.now, frame)?;
        }
        assert!(buffer.is_empty(), "half a frame");
        Ok(())
    }

    /// Takes everything that the session has to say.
    pub(crate) fn pump(&mut self) {
        let mut buffer = BytesMut::new();
        loop {
            let mut out = Transmit::default();
            let state = self.session.transmit(self.now, &mut out);
            for chunk in &out.chunks {
                buffer.extend_from_slice(chunk);
            }
            match state {
                TransmitState::Idle => break,
                TransmitState::More => {}
                TransmitState::Cold(run) => run.load().unwrap(),
            }
        }
        let mut decoder = FrameDecoder::new(64 << 20);
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            self.inbox.push_back(frame);
        }
        assert!(buffer.is_empty(), "half a frame was sent");
    }

    /// Lets the store write all that waits.
    pub(crate) fn settle(&self) {
        while self.broker.store().step() {}
    }

    pub(crate) fn send<M: Message>(&mut self, message: &M) -> CorrelationId {
        let correlation = CorrelationId(self.next_correlation);
        self.next_correlation += 1;
        self.receive(&frame::request(message, correlation)).unwrap();
        correlation
    }

    pub(crate) fn send_event<M: Message>(&self, message: &M) {
        self.receive(&frame::event(message)).unwrap();
    }

    /// The reply to a request, if it is there.
    pub(crate) fn reply<M: Message>(
        &mut self,
        correlation: CorrelationId,
    ) -> Option<Result<M, ErrorBody>> {
        self.pump();
        let is_wanted =
            |frame: &Frame| frame.header.is_reply() && frame.header.correlation == correlation;
        let at = self.inbox.iter().position(is_wanted)?;
        let frame = self.inbox.remove(at).unwrap();
        Some(if frame.header.is_error() {
            Err(ErrorBody::decode(&frame.body).unwrap())
        } else {
            Ok(M::decode(frame.body).unwrap())
        })
    }

    /// Asks and lets the store work until the answer comes.
    pub(crate) fn ask<Q: Message, A: Message>(&mut self, request: &Q) -> Result<A, ErrorBody> {
        let correlation = self.send(request);
        for _ in 0..10 {
            if let Some(reply) = self.reply(correlation) {
                return reply;
            }
            self.settle();
        }
        panic!("no answer to {:?}", Q::API)
    }

    pub(crate) fn create_topic(&mut self, name: &str, partitions: u32) -> TopicId {
        let config = topic_config(partitions);
        let request = CreateTopic { name: name.to_string(), config, if_not_exists: false };
        let reply: CreateTopicReply = self.ask(&request).unwrap();
        assert!(reply.created);
        reply.id
    }

    pub(crate) fn leader_epoch(&mut self, topic: &str) -> LeaderEpoch {
        let reply: MetadataReply = self.ask(&Metadata { topics: vec![topic.to_string()] }).unwrap();
        reply.topics[0].partitions[0].leader_epoch
    }

    pub(crate) fn open_producer(&mut self) -> ProducerId {
        let request = OpenProducer { name: String::new(), resume: None };
        let reply: OpenProducerReply = self.ask(&request).unwrap();
        reply.producer
    }

    pub(crate) fn take<M: Message>(&mut self) -> Vec<M> {
        self.pump();
        let mut found = Vec::new();
        let mut kept = VecDeque::new();
        for frame in self.inbox.drain(..) {
            if frame.header.api == M::API as u16 && !frame.header.is_reply() {
                found.push(M::decode(frame.body).unwrap());
            } else {
                kept.push_back(frame);
            }
        }
        self.inbox = kept;
        found
    }

    /// Every run of every confirm so far.
    pub(crate) fn confirms(&mut self) -> Vec<ConfirmRun> {
        self.take::<Confirm>().into_iter().flat_map(|confirm| confirm.runs).collect()
    }

    /// Offsets and payloads of everything delivered so far.
    pub(crate) fn delivered(&mut self) -> Vec<(u64, String)> {
        let deliveries = self.take::<Deliver>();
        deliveries.into_iter().flat_map(|deliver| messages(&deliver)).collect()
    }

    pub(crate) fn subscribe(
        &mut self,
        handle: u32,
        topic: &str,
        name: Option<&str>,
    ) -> SubscribeReply {
        let request = subscribe(handle, topic, name, Start::Earliest);
        self.ask(&request).unwrap()
    }
}

/// A log topic of class `fsync`, kept for ever.
pub(crate) fn topic_config(partitions: u32) -> TopicConfig {
    TopicConfig {
        partitions,
        kind: TopicKind::Log,
        durability: Durability::Fsync,
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: TopicBounds::default(),
    }
}

pub(crate) fn subscribe(handle: u32, topic: &str, name: Option<&str>, start: Start) -> Subscribe {
    Subscribe {
        handle: SubscriptionHandle(handle),
        topic: topic.to_string(),
        partitions: Vec::new(),
        name: name.map(str::to_string),
        start,
        credit_messages: 1_000,
        credit_bytes: 1 << 20,
    }
}

pub(crate) fn messages(deliver: &Deliver) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    for entry in EntryIter::new(deliver.entries.clone()) {
        let entry = entry.unwrap();
        entry.check_body().unwrap();
        let base = entry.header.base_offset.0;
        for record in Batch::of_entry(&entry).records(DecodeLimits::default()).unwrap() {
            let record = record.unwrap();
            let offset = base + u64::from(record.offset_delta);
            if offset >= deliver.head.next.0 {
                let value = record.record.value.unwrap();
                found.push((offset, String::from_utf8(value.to_vec()).unwrap()));
            }
        }
    }
    found
}

/// A publish of texts.
pub(crate) fn publish(
    topic: TopicId,
    epoch: LeaderEpoch,
    producer: ProducerId,
    base_sequence: u64,
    texts: &[&str],
) -> Publish {
    let mut builder = BatchBuilder::new(Compression::None, 1024);
    for text in texts {
        builder.push(None, Some(text.as_bytes()), &[], TimestampMs(5)).unwrap();
    }
    let batch = builder.finish(producer, ProducerEpoch(0), Sequence(base_sequence));
    let head = PublishHead {
        topic,
        partition: PartitionId(0),
        leader_epoch: epoch,
        producer,
        epoch: ProducerEpoch(0),
        ack: AckLevel::Quorum,
        keyed: false,
        seq_count: batch.record_count,
        base_sequence: Sequence(base_sequence),
        resolved_upto: Sequence(0),
    };
    Publish { head, batch }
}
