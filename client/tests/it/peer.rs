//! Owns a small broker in memory that speaks the protocol: enough to test a client against, with switches for what
//! brokers do on bad days. Sans-IO: frames in, bytes out. Driven by `world` (bytes) and by `tcp` (sockets).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use postrider_protocol::{
    api::Api,
    batch::Batch,
    entry::{EntryHeader, EntryKind, entry_len},
    error::{ErrorBody, ErrorCode},
    frame::{Frame, error_reply, event, reply},
    message::{
        AckUpTo, AckUpToReply, Confirm, ConfirmRun, CreateTopic, CreateTopicReply, Credit, Deliver,
        DeliverHead, Gap, GapReason, Hello, HelloReply, Limits, Message, Metadata, MetadataReply,
        OpenProducer, OpenProducerReply, Outcome, PartitionMetadata, Ping, PingReply, Publish,
        Seek, SeekReply, Seeked, Start, Subscribe, SubscribeReply, SubscribedPartition,
        SubscriptionClosed, TopicMetadata, Unsubscribe, UnsubscribeReply,
    },
    types::{
        ClusterId, CorrelationId, Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId,
        ProducerEpoch, ProducerId, Sequence, SubscriptionHandle, SubscriptionId, TimestampMs,
        TopicId, TopicKind,
    },
};

use crate::queue_peer::Queue;

pub(crate) const TOPIC: TopicId = TopicId([7; 16]);

/// One topic "t" on one broker, and one connection at a time.
pub(crate) struct Peer {
    pub(crate) partitions: Vec<Log>,
    pub(crate) limits: Limits,
    pub(crate) leader_epoch: u32,
    /// Answers to the next publishes, in order; `None` stores the batch.
    pub(crate) script: VecDeque<Option<ErrorBody>>,
    /// Publishes are kept here, unanswered, until `release`.
    pub(crate) hold: bool,
    held: Vec<Publish>,
    /// Every publish frame that came, also refused ones.
    pub(crate) published: Vec<Publish>,
    pub(crate) topic_exists: bool,
    next_producer: i64,
    known: Vec<i64>,
    /// Answers of this connection.
    pub(crate) out: VecDeque<Bytes>,
    subscribers: BTreeMap<SubscriptionHandle, Subscriber>,
    pub(crate) durable: BTreeMap<(String, PartitionId), Durable>,
    pub(crate) acks: Vec<AckUpTo>,
    pub(crate) hold_acks: bool,
    pub(crate) held_acks: Vec<(CorrelationId, AckUpTo)>,
    pub(crate) silent: bool,
    pub(crate) queue: Queue,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) entries: Vec<(u64, u64, Bytes)>,
    pub(crate) start: u64,
    pub(crate) end: u64,
    sessions: BTreeMap<i64, Session>,
}

#[derive(Default)]
struct Session {
    expected: u64,
    ring: Vec<(u64, u32, u64)>,
}

struct Subscriber {
    name: Option<String>,
    next: BTreeMap<PartitionId, u64>,
    messages: i64,
    bytes: i64,
}

#[derive(Default, Clone, Copy)]
pub(crate) struct Durable {
    pub(crate) acked: u64,
    pub(crate) owner_epoch: u64,
}

impl Peer {
    pub(crate) fn new(partitions: u32) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Log::default()).collect(),
            limits: Limits::default(),
            leader_epoch: 1,
            script: VecDeque::new(),
            hold: false,
            held: Vec::new(),
            published: Vec::new(),
            topic_exists: true,
            next_producer: 100,
            known: Vec::new(),
            out: VecDeque::new(),
            subscribers: BTreeMap::new(),
            durable: BTreeMap::new(),
            acks: Vec::new(),
            hold_acks: false,
            held_acks: Vec::new(),
            silent: false,
            queue: Queue::default(),
        }
    }

    /// The connection is gone, with everything that was not answered. Batches that were held are stored or lost.
    pub(crate) fn disconnect(&mut self, store_held: bool) {
        for publish in std::mem::take(&mut self.held) {
            if store_held {
                drop(self.store(&publish));
            }
        }
        self.held_acks.clear();
        self.out.clear();
        self.subscribers.clear();
        self.queue.disconnect();
    }

    pub(crate) fn forget_sessions(&mut self) {
        self.known.clear();
        for log in &mut self.partitions {
            log.sessions.clear();
        }
    }

    pub(crate) fn receive(&mut self, frame: Frame) {
        if self.silent {
            return;
        }
        let correlation = frame.header.correlation;
        match Api::from_u16(frame.header.api).unwrap() {
            Api::Hello => {
                let hello: Hello = frame.message().unwrap();
                assert_eq!((hello.version_min, hello.version_max), (1, 1));
                self.reply(correlation, &self.hello());
            }
            Api::Ping => {
                let Ping {} = frame.message().unwrap();
                self.reply(correlation, &PingReply {});
            }
            Api::Metadata => {
                let Metadata { topics } = frame.message().unwrap();
                self.reply(correlation, &self.metadata(topics));
            }
            Api::CreateTopic => {
                let CreateTopic { .. } = frame.message().unwrap();
                let created = !std::mem::replace(&mut self.topic_exists, true);
                self.reply(correlation, &CreateTopicReply { id: TOPIC, created });
            }
            Api::OpenProducer => self.open_producer(correlation, &frame.message().unwrap()),
            Api::Publish => self.publish(frame.message().unwrap()),
            Api::Subscribe => self.subscribe(correlation, frame.message().unwrap()),
            Api::Credit => {
                let Credit { handle, messages, bytes } = frame.message().unwrap();
                if self.queue.has(handle) {
                    self.queue.credit(handle, messages, bytes);
                    return self.deliver();
                }
                let subscriber = self.subscribers.get_mut(&handle).unwrap();
                subscriber.messages += i64::from(messages);
                subscriber.bytes += i64::from(bytes);
                self.deliver();
            }
            Api::AckUpTo => self.ack(correlation, frame.message().unwrap()),
            Api::Seek => self.seek(correlation, &frame.message().unwrap()),
            Api::Unsubscribe => {
                let Unsubscribe { handle } = frame.message().unwrap();
                self.subscribers.remove(&handle);
                if self.queue.has(handle) {
                    self.queue.leave(handle);
                }
                self.reply(correlation, &UnsubscribeReply {});
                self.deliver();
            }
            Api::Consume => {
                let consume = frame.message().unwrap();
                self.out.push_back(self.queue.consume(&self.partitions, correlation, consume));
                self.deliver();
            }
            Api::Ack => {
                self.out.extend(self.queue.ack(correlation, frame.message().unwrap()));
            }
            Api::Return => {
                self.out.extend(self.queue.give_back(correlation, frame.message().unwrap()));
                self.deliver();
            }
            Api::Renew => {
                self.queue.renewals.push(frame.message().unwrap());
            }
            other => panic!("{other:?} is not spoken here"),
        }
    }

    fn reply<M: Message>(&mut self, correlation: CorrelationId, message: &M) {
        self.out.push_back(reply(message, correlation));
    }

    fn hello(&self) -> HelloReply {
        HelloReply {
            version: 1,
            features: 0,
            limits: self.limits,
            cluster_id: ClusterId([1; 16]),
            node_id: NodeId(1),
            server_version: "peer".into(),
            server_time: TimestampMs(1),
        }
    }

    fn metadata(&self, topics: Vec<String>) -> MetadataReply {
        let partitions = (0..self.partitions.len()).map(|at| PartitionMetadata {
            partition: PartitionId(at as u32),
            leader: NodeId(1),
            leader_epoch: LeaderEpoch(self.leader_epoch),
        });
        let topics = topics.into_iter().map(|name| {
            let exists = self.topic_exists && name == "t";
            TopicMetadata {
                error: (!exists).then_some(ErrorCode::UnknownTopic),
                name,
                id: TOPIC,
                kind: TopicKind::Log,
                durability: Durability::Fsync,
                partitions: if exists { partitions.clone().collect() } else { Vec::new() },
            }
        });
        MetadataReply {
            cluster_id: ClusterId([1; 16]),
            brokers: Vec::new(),
            topics: topics.collect(),
        }
    }

    fn open_producer(&mut self, correlation: CorrelationId, open: &OpenProducer) {
        let producer = match open.resume {
            Some((id, _)) if self.known.contains(&id.0) => id,
            Some(_) => {
                let error = ErrorBody::new(ErrorCode::UnknownProducer, "never heard of it");
                let api = Api::OpenProducer as u16;
                self.out.push_back(error_reply(api, correlation, &error));
                return;
            }
            None => {
                self.next_producer += 1;
                self.known.push(self.next_producer);
                ProducerId(self.next_producer)
            }
        };
        self.reply(correlation, &OpenProducerReply { producer, epoch: ProducerEpoch(0) });
    }

    fn publish(&mut self, publish: Publish) {
        publish.batch.validate(&self.limits).unwrap().check_head_of(&publish);
        self.published.push(publish.clone());
        if self.hold {
            self.held.push(publish);
            return;
        }
        self.answer(&publish);
    }

    /// Answers what was held, in order.
    pub(crate) fn release(&mut self) {
        self.hold = false;
        for publish in std::mem::take(&mut self.held) {
            self.answer(&publish);
        }
    }

    fn answer(&mut self, publish: &Publish) {
        let outcome = match self.script.pop_front() {
            Some(Some(error)) => Outcome::Rejected { error },
            Some(None) | None => self.store(publish),
        };
        let head = &publish.head;
        let run = ConfirmRun {
            topic: head.topic,
            partition: head.partition,
            producer: head.producer,
            base_sequence: head.base_sequence,
            count: head.seq_count,
            outcome,
        };
        let refused = matches!(run.outcome, Outcome::Rejected { .. } | Outcome::Unknown { .. });
        if refused || head.ack != postrider_protocol::message::AckLevel::None {
            self.out.push_back(event(&Confirm { runs: vec![run] }));
        }
        self.deliver();
    }

    fn store(&mut self, publish: &Publish) -> Outcome {
        let head = &publish.head;
        if head.leader_epoch.0 != self.leader_epoch {
            return rejected(ErrorCode::StaleLeaderEpoch, 0);
        }
        let log = &mut self.partitions[head.partition.0 as usize];
        let fresh = !log.sessions.contains_key(&head.producer.0);
        if !self.known.contains(&head.producer.0)
            || (fresh && head.base_sequence.0 > 0 && head.resolved_upto.0 < head.base_sequence.0)
        {
            return rejected(ErrorCode::UnknownProducer, 0);
        }
        let session = log.sessions.entry(head.producer.0).or_default();
        session.expected = session.expected.max(head.resolved_upto.0);
        let Sequence(base) = head.base_sequence;
        if let Some((_, _, offset)) =
            session.ring.iter().find(|(at, count, _)| *at == base && *count == head.seq_count)
        {
            return Outcome::Duplicate {
                base_offset: Offset(*offset),
                append_time: TimestampMs(1),
                durability: Durability::Fsync,
            };
        }
        if base > session.expected {
            return rejected(ErrorCode::OutOfOrderSequence, session.expected);
        }
        assert_eq!(base, session.expected, "a sequence was used twice");
        session.expected = base + u64::from(head.seq_count);
        session.ring.push((base, head.seq_count, log.end));
        let offset = log.append(&publish.batch);
        Outcome::Committed {
            base_offset: Offset(offset),
            append_time: TimestampMs(1),
            durability: Durability::Fsync,
        }
    }

    fn subscribe(&mut self, correlation: CorrelationId, subscribe: Subscribe) {
        let ids: Vec<PartitionId> = if subscribe.partitions.is_empty() {
            (0..self.partitions.len() as u32).map(PartitionId).collect()
        } else {
            subscribe.partitions.clone()
        };
        let mut next = BTreeMap::new();
        let mut attached = Vec::new();
        for id in ids {
            let log = &self.partitions[id.0 as usize];
            let start = match &subscribe.start {
                Start::Earliest => log.start,
                Start::Latest => log.end,
                Start::Offset(offset) => offset.0,
                Start::Timestamp(_) => panic!("not here"),
                Start::PerPartition(list) => list.iter().find(|(at, _)| *at == id).unwrap().1.0,
            };
            let mut owner_epoch = 0;
            let mut from = start;
            if let Some(name) = &subscribe.name {
                let key = (name.clone(), id);
                let durable =
                    self.durable.entry(key).or_insert(Durable { acked: start, owner_epoch: 0 });
                durable.owner_epoch += 1;
                (owner_epoch, from) = (durable.owner_epoch, durable.acked);
            }
            next.insert(id, from);
            attached.push(SubscribedPartition {
                partition: id,
                owner_epoch,
                next: Offset(from),
                log_start: Offset(log.start),
                high_watermark: Offset(log.end),
            });
        }
        let subscription = SubscriptionId::NONE;
        self.reply(
            correlation,
            &SubscribeReply { topic: TOPIC, subscription, partitions: attached },
        );
        let subscriber = Subscriber {
            name: subscribe.name,
            next,
            messages: i64::from(subscribe.credit_messages),
            bytes: i64::from(subscribe.credit_bytes),
        };
        self.subscribers.insert(subscribe.handle, subscriber);
        self.deliver();
    }

    /// Answers the outcomes that were held.
    pub(crate) fn release_outcomes(&mut self) {
        self.out.extend(self.queue.release());
        self.deliver();
    }

    pub(crate) fn deliver(&mut self) {
        self.out.extend(self.queue.deliver(&self.partitions));
        for (handle, subscriber) in &mut self.subscribers {
            for (id, next) in &mut subscriber.next {
                let log = &self.partitions[id.0 as usize];
                if *next < log.start {
                    self.out.push_back(event(&Gap {
                        handle: *handle,
                        partition: *id,
                        from: Offset(*next),
                        to: Offset(log.start),
                        reason: GapReason::Retention,
                    }));
                    *next = log.start;
                }
                while subscriber.messages > 0 && subscriber.bytes > 0 {
                    let Some((_, end, entry)) = log.entries.iter().find(|(_, end, _)| end > next)
                    else {
                        break;
                    };
                    let owner_epoch = subscriber
                        .name
                        .as_ref()
                        .map_or(0, |name| self.durable[&(name.clone(), *id)].owner_epoch);
                    let head = DeliverHead {
                        handle: *handle,
                        partition: *id,
                        owner_epoch,
                        next: Offset(*next),
                        high_watermark: Offset(log.end),
                        dispatch_index: 0,
                    };
                    self.out.push_back(event(&Deliver { head, entries: entry.clone() }));
                    subscriber.messages -= (end - *next) as i64;
                    subscriber.bytes -= entry.len() as i64;
                    *next = *end;
                }
            }
        }
    }

    pub(crate) fn credit_left(&self) -> Vec<(i64, i64)> {
        self.subscribers.values().map(|s| (s.messages, s.bytes)).collect()
    }

    pub(crate) fn is_attached(&self) -> bool {
        !self.subscribers.is_empty()
    }

    fn ack(&mut self, correlation: CorrelationId, ack: AckUpTo) {
        self.acks.push(ack.clone());
        if self.hold_acks {
            self.held_acks.push((correlation, ack));
        } else {
            self.answer_ack(correlation, &ack);
        }
    }

    pub(crate) fn release_acks(&mut self) {
        self.hold_acks = false;
        for (correlation, ack) in std::mem::take(&mut self.held_acks) {
            self.answer_ack(correlation, &ack);
        }
    }

    fn answer_ack(&mut self, correlation: CorrelationId, ack: &AckUpTo) {
        let name = self.subscribers[&ack.handle].name.clone().unwrap();
        let durable = self.durable.get_mut(&(name, ack.partition)).unwrap();
        if durable.owner_epoch != ack.owner_epoch {
            let error = ErrorBody::new(ErrorCode::StaleOwnerEpoch, "stale");
            self.out.push_back(error_reply(Api::AckUpTo as u16, correlation, &error));
            return;
        }
        durable.acked = durable.acked.max(ack.up_to.0);
        self.reply(correlation, &AckUpToReply {});
    }

    fn seek(&mut self, correlation: CorrelationId, seek: &Seek) {
        let Start::Offset(to) = seek.to else { panic!("not here") };
        let mut partitions = Vec::new();
        for ((name, id), durable) in &mut self.durable {
            if *name != seek.name {
                continue;
            }
            *durable = Durable { acked: to.0, owner_epoch: durable.owner_epoch + 1 };
            partitions.push((*id, to));
            for (handle, subscriber) in &mut self.subscribers {
                subscriber.next.insert(*id, to.0);
                self.out.push_back(event(&Seeked {
                    handle: *handle,
                    partition: *id,
                    owner_epoch: durable.owner_epoch,
                    next: to,
                }));
            }
        }
        self.reply(correlation, &SeekReply { partitions });
        self.deliver();
    }

    /// Ends all attached subscriptions.
    pub(crate) fn close_subscriptions(&mut self, code: ErrorCode) {
        for handle in std::mem::take(&mut self.subscribers).into_keys() {
            let error = ErrorBody::new(code, "closed by the test");
            self.out.push_back(event(&SubscriptionClosed { handle, error }));
        }
    }

    /// The values of a partition, in order.
    pub(crate) fn values(&self, partition: u32) -> Vec<Bytes> {
        let log = &self.partitions[partition as usize];
        let batches = log.entries.iter().map(|(_, _, entry)| {
            let entry = postrider_protocol::entry::split_entry(&mut entry.clone()).unwrap();
            Batch::of_entry(&entry).records(Default::default()).unwrap()
        });
        batches.flatten().map(|record| record.unwrap().record.value.unwrap()).collect()
    }
}

fn rejected(code: ErrorCode, detail: u64) -> Outcome {
    Outcome::Rejected { error: ErrorBody::new(code, "refused by the peer").with_detail(detail) }
}

impl Log {
    pub(crate) fn append(&mut self, batch: &Batch) -> u64 {
        let offset = self.end;
        let header = EntryHeader {
            header_crc: 0,
            total_len: entry_len(batch.body.len(), 0) as u32,
            body_len: batch.body.len() as u32,
            body_crc: batch.crc,
            trailer_len: 0,
            index: EntryIndex(self.entries.len() as u64),
            base_offset: Offset(offset),
            leader_epoch: LeaderEpoch(1),
            prev_header_crc: 0,
            append_time: TimestampMs(1),
            kind: EntryKind::Data,
            flags: 0,
            record_count: batch.record_count,
            seq_count: batch.record_count,
            key_id: 0,
            trailer_crc: 0,
            cached_crc32c: 0,
        };
        let mut entry = header.encode().to_vec();
        entry.extend_from_slice(&batch.body);
        entry.resize(header.total_len as usize, 0);
        self.end += u64::from(batch.record_count);
        self.entries.push((offset, self.end, entry.into()));
        offset
    }
}

trait CheckHead {
    fn check_head_of(&self, publish: &Publish);
}

impl CheckHead for postrider_protocol::batch::BatchFields {
    fn check_head_of(&self, publish: &Publish) {
        self.check_head(&publish.head).unwrap();
        assert!(publish.head.resolved_upto <= publish.head.base_sequence);
    }
}
