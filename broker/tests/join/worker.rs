//! A consumer of a queue without a client: it takes leases, gives credit back and settles as told. Driven by
//! the tests of queues.

use std::collections::BTreeMap;

use postrider_broker::join::Broker;
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::ErrorBody;
use postrider_protocol::message::*;
use postrider_protocol::types::*;

use crate::peer::Peer;

/// The handle of every worker.
pub(crate) const HANDLE: SubscriptionHandle = SubscriptionHandle(1);

/// A leased message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leased {
    pub(crate) offset: u64,
    pub(crate) text: String,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) dispatch: u64,
}

/// One consumer on partition 0 of a queue.
pub(crate) struct Worker {
    pub(crate) peer: Peer,
    pub(crate) place: ConsumedPartition,
    pub(crate) sub_epoch: u64,
    pub(crate) started: u64,
    /// Bytes of entries that came.
    pub(crate) bytes: usize,
}

pub(crate) fn consume(topic: &str, member: u8) -> Consume {
    Consume {
        handle: HANDLE,
        topic: topic.to_string(),
        subscription: None,
        partitions: Vec::new(),
        member: MemberId([member; 16]),
        consumer_name: format!("worker-{member}"),
        credit_messages: 100_000,
        credit_bytes: 64 << 20,
        held: Vec::new(),
    }
}

impl Worker {
    pub(crate) fn new(broker: &Broker, topic: &str, member: u8) -> Self {
        Self::with(broker, &consume(topic, member))
    }

    pub(crate) fn with(broker: &Broker, request: &Consume) -> Self {
        let mut peer = Peer::new(broker);
        let reply: ConsumeReply = peer.ask(request).unwrap();
        let place = reply.partitions[0].clone();
        Self { peer, sub_epoch: place.sub_epoch, place, started: 0, bytes: 0 }
    }

    /// What was leased since the last call, in order of dispatch.
    pub(crate) fn leases(&mut self) -> Vec<Leased> {
        let leases = self.peer.take::<Lease>();
        leases.iter().flat_map(|lease| self.unpack(lease)).collect()
    }

    fn unpack(&mut self, lease: &Lease) -> Vec<Leased> {
        self.bytes += lease.entries.len();
        self.sub_epoch = lease.head.sub_epoch;
        let texts = texts(lease);
        let mut dispatch = lease.head.dispatch_number;
        let mut leased = Vec::new();
        for run in &lease.head.runs {
            for offset in run.first.0..run.first.0 + u64::from(run.count) {
                let text = texts.get(&offset).expect("what is leased is in the entries").clone();
                let (attempt, failures) = (run.attempt, run.failures);
                leased.push(Leased { offset, text, attempt, failures, dispatch });
                dispatch += 1;
            }
        }
        leased
    }

    pub(crate) fn ack(&mut self, leased: &[Leased]) -> Result<AckReply, ErrorBody> {
        let request = Ack {
            handle: HANDLE,
            partition: PartitionId(0),
            sub_epoch: self.sub_epoch,
            leader_epoch: self.place.leader_epoch,
            started: self.started,
            runs: runs(leased),
        };
        self.peer.ask(&request)
    }

    pub(crate) fn give_back(
        &mut self,
        leased: &[Leased],
        action: ReturnAction,
    ) -> Result<ReturnReply, ErrorBody> {
        let request = Return {
            handle: HANDLE,
            partition: PartitionId(0),
            sub_epoch: self.sub_epoch,
            leader_epoch: self.place.leader_epoch,
            started: self.started,
            runs: runs(leased),
            action,
        };
        self.peer.ask(&request)
    }
}

/// The messages in a lease's entries, leased or not.
fn texts(lease: &Lease) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for entry in EntryIter::new(lease.entries.clone()) {
        let entry = entry.unwrap();
        entry.check_body().unwrap();
        let base = entry.header.base_offset.0;
        for record in Batch::of_entry(&entry).records(DecodeLimits::default()).unwrap() {
            let record = record.unwrap();
            let value = record.record.value.unwrap();
            let text = String::from_utf8(value.to_vec()).unwrap();
            let twice = found.insert(base + u64::from(record.offset_delta), text);
            assert_eq!(twice, None, "an entry comes once");
        }
    }
    found
}

/// Runs that name the messages.
pub(crate) fn runs(leased: &[Leased]) -> Vec<AckRun> {
    let mut named: Vec<(u64, u32)> = leased.iter().map(|one| (one.offset, one.attempt)).collect();
    named.sort_unstable();
    let mut runs: Vec<AckRun> = Vec::new();
    for (offset, attempt) in named {
        match runs.last_mut() {
            Some(run) if run.first.0 + u64::from(run.count) == offset && run.attempt == attempt => {
                run.count += 1;
            }
            _ => runs.push(AckRun { first: Offset(offset), count: 1, attempt }),
        }
    }
    runs
}

/// A queue with messages 0, 1, 2 ... as texts, in batches of `batch`.
pub(crate) fn fill(broker: &Broker, topic: &str, count: u64, batch: u64) -> Peer {
    let mut peer = Peer::new(broker);
    let _created: CreateQueueReply = peer
        .ask(&CreateQueue { if_not_exists: true, ..crate::queues::create_queue(topic, policy()) })
        .unwrap();
    publish_range(&mut peer, topic, 0..count, batch);
    peer
}

pub(crate) fn policy() -> QueuePolicy {
    QueuePolicy {
        lease_ms: 1_000,
        max_failures: 4,
        backoff_min_ms: 100,
        backoff_max_ms: 1_000,
        ..QueuePolicy::default()
    }
}

/// Publishes numbers as texts.
pub(crate) fn publish_range(
    peer: &mut Peer,
    topic: &str,
    numbers: std::ops::Range<u64>,
    batch: u64,
) {
    let metadata: MetadataReply = peer.ask(&Metadata { topics: vec![topic.to_string()] }).unwrap();
    let id = metadata.topics[0].id;
    let epoch = metadata.topics[0].partitions[0].leader_epoch;
    let mut at = numbers.start;
    while at < numbers.end {
        let end = numbers.end.min(at + batch);
        let texts: Vec<String> = (at..end).map(|number| number.to_string()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        peer.send_event(&crate::peer::publish(id, epoch, ProducerId::NONE, at, &texts));
        at = end;
    }
    peer.settle();
    let confirmed: u64 = peer.confirms().iter().map(|run| u64::from(run.count)).sum();
    assert_eq!(confirmed, numbers.end - numbers.start);
}
