//! Owns the queue of the peer: one queue-mode subscription over its topic, with switches for bad days. Asserts what a
//! client must never do. Driven by `peer`.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use postrider_protocol::{
    api::Api,
    error::{ErrorBody, ErrorCode},
    frame::{error_reply, event, reply},
    message::{
        Ack, AckReply, AckRun, Consume, ConsumeReply, ConsumedPartition, Lease, LeaseHead,
        LeaseLost, LeaseRun, QueuePolicy, Renew, Return, ReturnAction, ReturnReply,
        SettleException, SettleProblem,
    },
    types::{
        CorrelationId, EntryIndex, LeaderEpoch, MemberId, Offset, PartitionId, SubscriptionHandle,
        SubscriptionId,
    },
};

use crate::peer::{Log, TOPIC};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Ready,
    Leased(MemberId),
    Acked,
    Dead,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) state: State,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
}

struct Attached {
    member: MemberId,
    messages: i64,
    bytes: i64,
    dispatched: BTreeMap<PartitionId, u64>,
}

pub(crate) enum Held {
    Ack(CorrelationId, Ack),
    Return(CorrelationId, Return),
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) policy: QueuePolicy,
    pub(crate) sub_epoch: u64,
    pub(crate) leader_epoch: u32,
    /// By partition, by offset.
    pub(crate) items: BTreeMap<PartitionId, Vec<Item>>,
    consumers: BTreeMap<SubscriptionHandle, Attached>,
    /// Hands nothing out.
    pub(crate) paused: bool,
    /// Outcomes are kept here, not done and not answered, until `release`.
    pub(crate) hold: bool,
    /// Outcomes are done, and not answered.
    pub(crate) mute: bool,
    pub(crate) held: VecDeque<Held>,
    /// Refuses the next outcomes with these.
    pub(crate) script: VecDeque<ErrorBody>,
    pub(crate) acks: Vec<Ack>,
    pub(crate) returns: Vec<Return>,
    pub(crate) renewals: Vec<Renew>,
    pub(crate) consumes: Vec<Consume>,
}

impl Queue {
    pub(crate) fn is_attached(&self) -> bool {
        !self.consumers.is_empty()
    }

    pub(crate) fn has(&self, handle: SubscriptionHandle) -> bool {
        self.consumers.contains_key(&handle)
    }

    pub(crate) fn credit_left(&self) -> Vec<(i64, i64)> {
        self.consumers.values().map(|consumer| (consumer.messages, consumer.bytes)).collect()
    }

    pub(crate) fn state(&self, offset: usize) -> State {
        self.items[&PartitionId(0)][offset].state
    }

    pub(crate) fn count(&self, state: impl Fn(State) -> bool) -> usize {
        self.items.values().flatten().filter(|item| state(item.state)).count()
    }

    pub(crate) fn leased(&self) -> usize {
        self.count(|state| matches!(state, State::Leased(_)))
    }

    pub(crate) fn acked(&self) -> usize {
        self.count(|state| state == State::Acked)
    }

    /// The leases of the connection's consumers stay: their grace is long.
    pub(crate) fn disconnect(&mut self) {
        self.consumers.clear();
        self.held.clear();
    }

    pub(crate) fn consume(
        &mut self,
        logs: &[Log],
        correlation: CorrelationId,
        consume: Consume,
    ) -> Bytes {
        self.consumes.push(consume.clone());
        self.fill(logs);
        assert!(!self.has(consume.handle), "a handle was used twice");
        let mut partitions = Vec::new();
        for (id, items) in &mut self.items {
            let held = consume.held.iter().find(|held| held.partition == *id);
            let current = held.filter(|held| held.sub_epoch == self.sub_epoch);
            let mut bound: Vec<LeaseRun> = Vec::new();
            let named = current.map_or(&[][..], |held| &held.runs);
            assert!(
                named.windows(2).all(|pair| end(&pair[0]) <= pair[1].first.0),
                "held runs rise and do not overlap"
            );
            for (offset, item) in items.iter_mut().enumerate() {
                let own = State::Leased(consume.member);
                let run = named.iter().find(|run| covers(run, offset as u64));
                match run {
                    Some(run) if item.state == own && item.attempt == run.attempt => {
                        push(&mut bound, offset as u64, item);
                    }
                    // A leadership that forgot its leases binds them again.
                    Some(_) if item.state == State::Ready => {
                        item.attempt += 1;
                        item.state = own;
                        push(&mut bound, offset as u64, item);
                    }
                    // Sent, and never arrived.
                    None if item.state == own => item.state = State::Ready,
                    _ => {}
                }
            }
            partitions.push(ConsumedPartition {
                partition: *id,
                sub_epoch: self.sub_epoch,
                leader_epoch: LeaderEpoch(self.leader_epoch),
                held: bound,
            });
        }
        let attached = Attached {
            member: consume.member,
            messages: i64::from(consume.credit_messages),
            bytes: i64::from(consume.credit_bytes),
            dispatched: BTreeMap::new(),
        };
        self.consumers.insert(consume.handle, attached);
        let reply_ = ConsumeReply {
            topic: TOPIC,
            subscription: SubscriptionId([3; 16]),
            policy: self.policy.clone(),
            partitions,
        };
        reply(&reply_, correlation)
    }

    fn fill(&mut self, logs: &[Log]) {
        for (at, log) in logs.iter().enumerate() {
            let items = self.items.entry(PartitionId(at as u32)).or_default();
            let fresh = Item { state: State::Ready, attempt: 0, failures: 0 };
            items.resize(log.end as usize, fresh);
        }
    }

    pub(crate) fn credit(&mut self, handle: SubscriptionHandle, messages: u32, bytes: u32) {
        let consumer = self.consumers.get_mut(&handle).unwrap();
        consumer.messages += i64::from(messages);
        consumer.bytes += i64::from(bytes);
    }

    /// Hands out what credit allows.
    pub(crate) fn deliver(&mut self, logs: &[Log]) -> Vec<Bytes> {
        self.fill(logs);
        let mut frames = Vec::new();
        if self.paused {
            return frames;
        }
        let ids: Vec<_> = self.items.keys().copied().collect();
        for (handle, consumer) in &mut self.consumers {
            for id in &ids {
                let items = self.items.get_mut(id).unwrap();
                let mut runs = Vec::new();
                let mut count = 0;
                for (offset, item) in items.iter_mut().enumerate() {
                    if count == consumer.messages || consumer.bytes <= 0 {
                        break;
                    }
                    if item.state == State::Ready {
                        item.state = State::Leased(consumer.member);
                        item.attempt += 1;
                        count += 1;
                        push(&mut runs, offset as u64, item);
                    }
                }
                if count == 0 {
                    continue;
                }
                let log = &logs[id.0 as usize];
                let mut entries = BytesMut::new();
                for (base, end_, entry) in &log.entries {
                    if runs.iter().any(|run| run.first.0 < *end_ && end_lease(run) > *base) {
                        entries.extend_from_slice(entry);
                    }
                }
                consumer.messages -= count;
                consumer.bytes -= entries.len() as i64;
                let number = consumer.dispatched.entry(*id).or_default();
                let head = LeaseHead {
                    handle: *handle,
                    partition: *id,
                    sub_epoch: self.sub_epoch,
                    leader_epoch: LeaderEpoch(self.leader_epoch),
                    dispatch_number: *number,
                    dispatch_index: EntryIndex(1),
                    runs,
                };
                *number += u64::try_from(count).unwrap();
                frames.push(event(&Lease { head, entries: entries.freeze() }));
            }
        }
        frames
    }

    pub(crate) fn ack(&mut self, correlation: CorrelationId, ack: Ack) -> Option<Bytes> {
        self.acks.push(ack.clone());
        if self.hold {
            self.held.push_back(Held::Ack(correlation, ack));
            return None;
        }
        self.answer_ack(correlation, &ack)
    }

    pub(crate) fn give_back(&mut self, correlation: CorrelationId, given: Return) -> Option<Bytes> {
        self.returns.push(given.clone());
        if self.hold {
            self.held.push_back(Held::Return(correlation, given));
            return None;
        }
        self.answer_return(correlation, &given)
    }

    pub(crate) fn release(&mut self) -> Vec<Bytes> {
        self.hold = false;
        let held = std::mem::take(&mut self.held);
        let answers = held.into_iter().filter_map(|held| match held {
            Held::Ack(correlation, ack) => self.answer_ack(correlation, &ack),
            Held::Return(correlation, given) => self.answer_return(correlation, &given),
        });
        answers.collect()
    }

    fn answer_ack(&mut self, correlation: CorrelationId, ack: &Ack) -> Option<Bytes> {
        if let Some(error) = self.script.pop_front() {
            return Some(error_reply(Api::Ack as u16, correlation, &error));
        }
        if ack.sub_epoch != self.sub_epoch {
            let error = ErrorBody::new(ErrorCode::StaleSubscriptionEpoch, "stale");
            return Some(error_reply(Api::Ack as u16, correlation, &error));
        }
        let member = self.consumers[&ack.handle].member;
        let exceptions = self.settle(ack.partition, member, &ack.runs, |item| {
            item.state = State::Acked;
        });
        (!self.mute)
            .then(|| reply(&AckReply { commit_index: EntryIndex(1), exceptions }, correlation))
    }

    fn answer_return(&mut self, correlation: CorrelationId, given: &Return) -> Option<Bytes> {
        if let Some(error) = self.script.pop_front() {
            return Some(error_reply(Api::Return as u16, correlation, &error));
        }
        let member = self.consumers[&given.handle].member;
        let exceptions = self.settle(given.partition, member, &given.runs, |item| {
            item.state = State::Ready;
            match given.action {
                ReturnAction::Release => {}
                ReturnAction::Nack { .. } => item.failures += 1,
                ReturnAction::Reject { .. } => item.state = State::Dead,
            }
        });
        (!self.mute)
            .then(|| reply(&ReturnReply { commit_index: EntryIndex(1), exceptions }, correlation))
    }

    fn settle(
        &mut self,
        partition: PartitionId,
        member: MemberId,
        runs: &[AckRun],
        mut settle: impl FnMut(&mut Item),
    ) -> Vec<SettleException> {
        assert!(
            runs.windows(2).all(|pair| end(&pair[0]) <= pair[1].first.0),
            "runs rise and do not overlap: {runs:?}"
        );
        let mut exceptions = Vec::new();
        let items = self.items.get_mut(&partition).unwrap();
        for run in runs {
            for offset in run.first.0..end(run) {
                let item = &mut items[offset as usize];
                let problem = match item.state {
                    State::Acked => SettleProblem::AlreadyAcked,
                    State::Dead => SettleProblem::Gone,
                    State::Leased(holder) if holder == member && item.attempt == run.attempt => {
                        settle(item);
                        continue;
                    }
                    // Expired, and nobody else has it.
                    State::Ready if item.attempt == run.attempt => {
                        settle(item);
                        continue;
                    }
                    _ => SettleProblem::LeaseLost,
                };
                exceptions.push(SettleException { first: Offset(offset), count: 1, problem });
            }
        }
        exceptions
    }

    /// The lease of a message of partition 0 ends.
    pub(crate) fn expire(&mut self, offset: u64) -> Bytes {
        let item = &mut self.items.get_mut(&PartitionId(0)).unwrap()[offset as usize];
        assert!(matches!(item.state, State::Leased(_)));
        item.state = State::Ready;
        item.failures += 1;
        let attempt = item.attempt;
        self.lost(vec![AckRun { first: Offset(offset), count: 1, attempt }])
    }

    /// Everything that was handed out is void: a seek to the same place.
    pub(crate) fn seek(&mut self) -> Bytes {
        self.sub_epoch += 1;
        let mut runs = Vec::new();
        for (offset, item) in self.items.get_mut(&PartitionId(0)).unwrap().iter_mut().enumerate() {
            if matches!(item.state, State::Leased(_)) {
                item.state = State::Ready;
                let first = Offset(offset as u64);
                runs.push(AckRun { first, count: 1, attempt: item.attempt });
            }
        }
        self.lost(runs)
    }

    fn lost(&self, runs: Vec<AckRun>) -> Bytes {
        let handle = *self.consumers.keys().next().unwrap();
        let (partition, sub_epoch) = (PartitionId(0), self.sub_epoch);
        event(&LeaseLost { handle, partition, sub_epoch, runs })
    }

    /// A restart of the broker: leases and attempts are forgotten.
    pub(crate) fn forget_leases(&mut self) {
        self.leader_epoch += 1;
        for item in self.items.values_mut().flatten() {
            item.attempt = 0;
            if matches!(item.state, State::Leased(_)) {
                item.state = State::Ready;
            }
        }
    }

    pub(crate) fn leave(&mut self, handle: SubscriptionHandle) {
        let gone = self.consumers.remove(&handle).unwrap();
        for item in self.items.values_mut().flatten() {
            if item.state == State::Leased(gone.member) {
                item.state = State::Ready;
            }
        }
    }
}

fn end(run: &AckRun) -> u64 {
    run.first.0 + u64::from(run.count)
}

fn end_lease(run: &LeaseRun) -> u64 {
    run.first.0 + u64::from(run.count)
}

fn covers(run: &AckRun, offset: u64) -> bool {
    (run.first.0..end(run)).contains(&offset)
}

fn push(runs: &mut Vec<LeaseRun>, offset: u64, item: &Item) {
    match runs.last_mut() {
        Some(last)
            if end_lease(last) == offset
                && (last.attempt, last.failures) == (item.attempt, item.failures) =>
        {
            last.count += 1;
        }
        _ => runs.push(LeaseRun {
            first: Offset(offset),
            count: 1,
            attempt: item.attempt,
            failures: item.failures,
        }),
    }
}
