//! Owns what passes between the broker and its consumers, seen at the broker's end of each connection: which request
//! an answer is for, who is attached, how much credit there is. Never changes a frame. Driven by the server;
//! reports to the oracle of queues.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use postrider_core::Now;
use postrider_protocol::api::Api;
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::frame::{Frame, FrameDecoder};
use postrider_protocol::message::{
    Ack, AckReply, AckRun, Consume, ConsumeReply, Credit, Lease, LeaseLost, LeaseRun, PurgeQueue,
    Renew, Return, ReturnReply, SettleException, SettleProblem, Unsubscribe,
};
use postrider_protocol::types::{CorrelationId, MemberId, PartitionId, SubscriptionHandle};

use super::queue_oracle::{HandOut, Holder, How, QueueOracle, Settling};
use super::reader::topic_name;

/// A request that waits for its answer.
enum Asked {
    Consume(Consume, Now),
    Settle(Settling),
    /// The messages that a purge will find at least.
    Purge(Vec<((usize, u32), u64)>),
    Leave(SubscriptionHandle),
}

/// An attached consumer.
pub(crate) struct Attachment {
    pub(crate) queue: usize,
    member: MemberId,
    messages: i64,
    bytes: i64,
}

#[derive(Default)]
struct Link {
    asked: BTreeMap<CorrelationId, Asked>,
    attached: BTreeMap<SubscriptionHandle, Attachment>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Tap {
    links: BTreeMap<u64, Link>,
    pub(crate) oracle: QueueOracle,
}

/// The frames of bytes that a session sends: whole ones always.
pub(crate) fn frames(bytes: &mut BytesMut) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new(u32::MAX);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = decoder.decode(bytes) {
        frames.push(frame);
    }
    assert!(bytes.is_empty(), "a session sends whole frames");
    frames
}

impl Tap {
    /// The queue of an attachment.
    pub(crate) fn queue_of(&self, link: u64, handle: SubscriptionHandle) -> Option<usize> {
        Some(self.links.get(&link)?.attached.get(&handle)?.queue)
    }

    /// The broker is a new process.
    pub(crate) fn restarted(&mut self) {
        self.links.clear();
        self.oracle.restarted();
    }

    /// The broker missed a connection.
    pub(crate) fn disconnected(&mut self, now: Now, link: u64) {
        if self.links.remove(&link).is_some() {
            self.oracle.disconnected(now, link);
        }
    }

    /// The broker gets a frame.
    pub(crate) fn received(&mut self, now: Now, id: u64, frame: &Frame) {
        let Some(api) = Api::from_u16(frame.header.api) else { return };
        let correlation = frame.header.correlation;
        let frame = frame.clone();
        let link = self.links.entry(id).or_default();
        match api {
            Api::Consume => {
                if let Ok(consume) = frame.message::<Consume>() {
                    if let Some(queue) = known(&self.oracle, &consume) {
                        self.oracle.attaches(queue, consume.member);
                    }
                    link.asked.insert(correlation, Asked::Consume(consume, now));
                }
            }
            Api::Ack => {
                let Ok(ack) = frame.message::<Ack>() else { return };
                let Ack { handle, partition, leader_epoch, runs, .. } = ack;
                let at = (handle, partition, leader_epoch.0);
                self.settles(now, (id, correlation), at, runs, How::Ack);
            }
            Api::Return => {
                let Ok(given) = frame.message::<Return>() else { return };
                let Return { handle, partition, leader_epoch, runs, action, .. } = given;
                let at = (handle, partition, leader_epoch.0);
                self.settles(now, (id, correlation), at, runs, How::Return(action));
            }
            Api::Credit => {
                let Ok(credit) = frame.message::<Credit>() else { return };
                if let Some(attached) = link.attached.get_mut(&credit.handle) {
                    attached.messages += i64::from(credit.messages);
                    attached.bytes += i64::from(credit.bytes);
                }
            }
            Api::Renew => {
                if let Ok(renew) = frame.message::<Renew>() {
                    self.oracle.renews(now, id, renew.handle);
                }
            }
            Api::PurgeQueue => {
                let Ok(purge) = frame.message::<PurgeQueue>() else { return };
                if let Some(queue) = named(&self.oracle, &purge.topic, &purge.subscription) {
                    let ends = self.oracle.asks_purge(queue);
                    link.asked.insert(correlation, Asked::Purge(ends));
                }
            }
            Api::Unsubscribe => {
                let Ok(Unsubscribe { handle }) = frame.message() else { return };
                if link.attached.contains_key(&handle) {
                    link.asked.insert(correlation, Asked::Leave(handle));
                    self.oracle.leaves(id, handle);
                }
            }
            _ => {}
        }
    }

    fn settles(
        &mut self,
        now: Now,
        (id, correlation): (u64, CorrelationId),
        (handle, PartitionId(partition), leader_epoch): (SubscriptionHandle, PartitionId, u32),
        runs: Vec<AckRun>,
        how: How,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(attached) = link.attached.get(&handle) else { return };
        let (place, member) = ((attached.queue, partition), attached.member);
        let settling = self.oracle.asks(now, place, member, leader_epoch, runs, how);
        link.asked.insert(correlation, Asked::Settle(settling));
    }

    /// The broker sends a frame.
    pub(crate) fn sent(&mut self, now: Now, id: u64, frame: &Frame) {
        let Some(api) = Api::from_u16(frame.header.api) else { return };
        let header = frame.header;
        let frame = frame.clone();
        if header.is_reply() {
            let asked =
                self.links.get_mut(&id).and_then(|link| link.asked.remove(&header.correlation));
            match asked {
                Some(_) if header.is_error() => {}
                Some(Asked::Consume(consume, at)) => {
                    let reply = frame.message().expect("the broker answers in order");
                    self.attached(id, at, &consume, &reply);
                }
                Some(Asked::Settle(settling)) => self.settled(settling, api, frame),
                Some(Asked::Purge(ends)) => self.oracle.purged(&ends),
                Some(Asked::Leave(handle)) => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.attached.remove(&handle);
                    }
                }
                None => {}
            }
            return;
        }
        match api {
            Api::Lease => {
                let lease = frame.message().expect("the broker sends what it may");
                self.leased(now, id, &lease);
            }
            Api::LeaseLost => {
                let lost: LeaseLost = frame.message().expect("the broker sends what it may");
                if let Some(queue) = self.queue_of(id, lost.handle) {
                    self.oracle.lost((queue, lost.partition.0), &lost.runs);
                }
            }
            _ => {}
        }
    }

    fn attached(&mut self, id: u64, asked_at: Now, consume: &Consume, reply: &ConsumeReply) {
        let Some(queue) = known(&self.oracle, consume) else {
            return self.oracle.violate(format!("nobody made the queue of {consume:?}"));
        };
        let (member, handle) = (consume.member, consume.handle);
        for link in self.links.values_mut() {
            // On another connection it is the broker's to forget.
            link.attached.retain(|_, other| (other.queue, other.member) != (queue, member));
        }
        let attachment = Attachment {
            queue,
            member,
            messages: consume.credit_messages.into(),
            bytes: consume.credit_bytes.into(),
        };
        self.links.entry(id).or_default().attached.insert(handle, attachment);
        for at in &reply.partitions {
            self.oracle.attached((queue, at.partition.0), at.leader_epoch.0, at.sub_epoch);
            let out = HandOut {
                holder: Holder { member, link: id, handle },
                leader_epoch: at.leader_epoch.0,
                dispatch_index: None,
                sub_epoch: at.sub_epoch,
                now: asked_at,
            };
            let asked = consume.held.iter().find(|held| held.partition == at.partition);
            for run in &at.held {
                let holds = |offset: u64| {
                    asked.is_some_and(|asked| {
                        asked.runs.iter().any(|held| (held.first.0..held.end().0).contains(&offset))
                    })
                };
                if !(run.first.0..run.end().0).all(holds) {
                    self.oracle.violate(format!("{run:?} was not held: {consume:?}"));
                }
                self.oracle.handed_out((queue, at.partition.0), out, *run);
            }
        }
    }

    fn settled(&mut self, settling: Settling, api: Api, frame: Frame) {
        let (commit_index, exceptions): (u64, Vec<SettleException>) = if api == Api::Ack {
            let reply: AckReply = frame.message().expect("the broker answers in order");
            (reply.commit_index.0, reply.exceptions)
        } else {
            let reply: ReturnReply = frame.message().expect("the broker answers in order");
            (reply.commit_index.0, reply.exceptions)
        };
        let mut problems: BTreeMap<u64, SettleProblem> = BTreeMap::new();
        for exception in exceptions {
            let range = exception.first.0..exception.end().0;
            problems.extend(range.map(|offset| (offset, exception.problem)));
        }
        self.oracle.answers(settling, commit_index, &problems);
    }

    fn leased(&mut self, now: Now, id: u64, lease: &Lease) {
        let head = &lease.head;
        let attached = self.links.get_mut(&id).and_then(|link| link.attached.get_mut(&head.handle));
        let Some(attached) = attached else {
            return self.oracle.violate(format!("a lease to nobody: {head:?}"));
        };
        let place = (attached.queue, head.partition.0);
        let holder = Holder { member: attached.member, link: id, handle: head.handle };
        let (messages, bytes) = (attached.messages, attached.bytes);
        attached.messages -= i64::try_from(head.messages()).unwrap_or(i64::MAX);
        attached.bytes -= i64::try_from(lease.entries.len()).unwrap_or(i64::MAX);
        if attached.messages < 0 || bytes <= 0 {
            let text = format!("B11 credit: {messages} messages, {bytes} bytes, and {head:?}");
            self.oracle.violate(text);
        }
        self.note_keys(place, lease);
        let out = HandOut {
            holder,
            leader_epoch: head.leader_epoch.0,
            dispatch_index: Some(head.dispatch_index.0),
            sub_epoch: head.sub_epoch,
            now,
        };
        for run in &head.runs {
            self.oracle.handed_out(place, out, *run);
        }
    }

    fn note_keys(&mut self, place: (usize, u32), lease: &Lease) {
        if !self.oracle.queues[place.0].policy.key_order {
            return;
        }
        let is_leased = |offset: u64| {
            let of = |run: &LeaseRun| (run.first.0..run.end().0).contains(&offset);
            lease.head.runs.iter().any(of)
        };
        for (offset, key) in keys(&lease.entries) {
            if is_leased(offset) {
                self.oracle.keyed(place, offset, key);
            }
        }
    }
}

fn known(oracle: &QueueOracle, consume: &Consume) -> Option<usize> {
    named(oracle, &consume.topic, &consume.subscription)
}

fn named(oracle: &QueueOracle, topic: &str, subscription: &Option<String>) -> Option<usize> {
    oracle
        .queues
        .iter()
        .position(|queue| topic_name(queue.topic) == topic && queue.subscription == *subscription)
}

fn keys(entries: &Bytes) -> Vec<(u64, Bytes)> {
    let mut keys = Vec::new();
    for entry in EntryIter::new(entries.clone()).map_while(Result::ok) {
        let base = entry.header.base_offset.0;
        let Ok(records) = Batch::of_entry(&entry).records(DecodeLimits::default()) else {
            continue;
        };
        for record in records.map_while(Result::ok) {
            if let Some(key) = record.record.key {
                keys.push((base + u64::from(record.offset_delta), key));
            }
        }
    }
    keys
}
