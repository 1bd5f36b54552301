//! Owns one partition with one queue, a vector as its log, and a clock that is set by hand. Ticks happen
//! when the partition asks for them, as the broker does it, so a wake that is forgotten shows.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::partition::{
    Aged, Appended, ConnectionId, Decision, Effect, EntryDraft, ExpiryAsk, Partition,
    PartitionIdentity, PartitionLimits, PartitionState, PendingAppend, PublishRequest, Refusal,
    SubscribeStart, SubscriptionMode,
};
use postrider_core::queue::{
    AckRequest, Ahead, DeadCause, Failure, LeaseCredit, LeaseStep, MemberKey, QueueState,
    ReturnRequest,
};
use postrider_protocol::batch::Batch;
use postrider_protocol::entry::{Entry, EntryHeader, EntryKind, entry_len};
use postrider_protocol::message::{
    AckLevel, AckRun, Outcome, PublishHead, QueuePolicy, ReturnAction, SettleProblem, TopicBounds,
};
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId, ProducerEpoch, ProducerId,
    Sequence, SubscriptionId, TimestampMs, TopicId,
};

const TOPIC: TopicId = TopicId([9; 16]);
pub(crate) const QUEUE: SubscriptionId = SubscriptionId([1; 16]);
const DEAD: TopicId = TopicId([5; 16]);

/// A message that was handed out: offset, attempt, failures.
pub(crate) type Got = (u64, u32, u32);

pub(crate) struct Stage {
    pub(crate) partition: Partition<u64>,
    /// What came out and was not looked at.
    pub(crate) effects: Vec<Effect<u64>>,
    pub(crate) now: Now,
    /// The store takes no entry.
    pub(crate) refuses: bool,
    /// The leadership ends before what is appended is committed.
    pub(crate) deposes: bool,
    /// The hash of each message's key.
    pub(crate) key_of: fn(u64) -> u64,
    policy: QueuePolicy,
    bounds: TopicBounds,
    entries: Vec<Entry>,
    leader_epoch: u32,
    routes: u64,
}

/// Long leases, no waits, many failures: each scenario says what it needs otherwise.
pub(crate) fn policy() -> QueuePolicy {
    QueuePolicy {
        lease_ms: 60_000,
        backoff_min_ms: 1_000,
        backoff_max_ms: 10_000,
        ..QueuePolicy::default()
    }
}

impl Stage {
    pub(crate) fn new(policy: QueuePolicy) -> Self {
        let mut stage = Self {
            partition: lead(1, PartitionState::default()),
            effects: Vec::new(),
            now: Now { wall: TimestampMs(1_000_000), monotonic: Duration::from_millis(10) },
            refuses: false,
            deposes: false,
            key_of: |_offset| 0,
            policy,
            bounds: TopicBounds::default(),
            entries: Vec::new(),
            leader_epoch: 1,
            routes: 0,
        };
        stage.begin();
        stage
    }

    fn begin(&mut self) {
        self.partition.set_bounds(self.bounds);
        self.partition.set_queue_policy(QUEUE, self.policy.clone());
        self.partition.set_dead_letter_target(QUEUE, Some((DEAD, PartitionId(0))));
        let (start, mode) = (SubscribeStart::Latest, SubscriptionMode::Queue);
        let route = self.route();
        let decision =
            self.partition.subscribe(self.now, QUEUE, start, mode, route, &mut self.effects);
        self.follow(decision);
    }

    pub(crate) fn set_policy(&mut self, policy: QueuePolicy) {
        self.policy = policy;
        self.partition.set_queue_policy(QUEUE, self.policy.clone());
    }

    pub(crate) fn set_bounds(&mut self, bounds: TopicBounds) {
        self.bounds = bounds;
        self.partition.set_bounds(bounds);
    }

    /// The leader's memory is lost, and what is not committed; what is committed is not.
    pub(crate) fn change_leader(&mut self) {
        self.leader_epoch += 1;
        let end = self.partition.state().end().index;
        self.entries.retain(|entry| entry.header.index < end);
        let bytes = self.partition.state().encode_snapshot();
        let state = PartitionState::decode_snapshot(&bytes).unwrap();
        self.partition = lead(self.leader_epoch, state);
        self.begin();
    }

    fn route(&mut self) -> u64 {
        self.routes += 1;
        self.routes
    }

    pub(crate) fn follow(&mut self, decision: Decision<u64>) {
        if let Decision::Append(pending) = decision {
            self.append(pending);
        }
        if self.deposes {
            return self.partition.depose(&mut self.effects);
        }
        self.commit();
    }

    pub(crate) fn append(&mut self, mut pending: PendingAppend<u64>) {
        while let Some(draft) = pending.next_entry() {
            if self.refuses {
                self.partition.append_failed(pending, Refusal::DiskFull, &mut self.effects);
                return;
            }
            let appended = self.store(draft);
            self.partition.appended(&mut pending, appended);
        }
    }

    /// Commits all that is appended, and all that follows from that.
    fn commit(&mut self) {
        loop {
            let ready = self.end();
            self.partition.advance(ready, &mut self.effects);
            self.partition.check_invariants();
            if self.refuses {
                return;
            }
            match self.partition.poll_append(self.now) {
                Some(pending) => self.append(pending),
                None => return,
            }
        }
    }

    fn end(&self) -> Position {
        self.entries.last().map_or_else(Position::default, |entry| {
            Position::new(entry.header.next_index(), entry.header.end_offset())
        })
    }

    fn store(&mut self, draft: EntryDraft) -> Appended {
        let (end, append_time) = (self.end(), draft.append_time);
        let header = EntryHeader {
            header_crc: 0,
            total_len: u32::try_from(entry_len(draft.body.len(), 0)).unwrap(),
            body_len: u32::try_from(draft.body.len()).unwrap(),
            body_crc: draft.body_crc,
            trailer_len: 0,
            index: EntryIndex(end.index.0),
            base_offset: end.offset,
            leader_epoch: draft.leader_epoch,
            prev_header_crc: 0,
            append_time,
            kind: draft.kind,
            flags: 0,
            record_count: draft.record_count,
            seq_count: draft.seq_count,
            key_id: 0,
            trailer_crc: 0,
            cached_crc32c: 0,
        };
        self.entries.push(Entry { header, body: draft.body, trailer: Bytes::new() });
        Appended { index: end.index, base_offset: end.offset, append_time }
    }

    /// Publishes so many messages, as one entry.
    pub(crate) fn publish(&mut self, count: u32) {
        let head = PublishHead { seq_count: count, ..self.head(ProducerId::NONE, 0) };
        self.publish_head(&head, false);
    }

    /// The head of one message of a session, which gives up all sequences below.
    pub(crate) fn head(&self, producer: ProducerId, sequence: u64) -> PublishHead {
        PublishHead {
            topic: TOPIC,
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(self.leader_epoch),
            producer,
            epoch: ProducerEpoch(0),
            ack: AckLevel::Quorum,
            keyed: false,
            seq_count: 1,
            base_sequence: Sequence(sequence),
            resolved_upto: Sequence(sequence),
        }
    }

    /// Publishes; tells what became of it.
    pub(crate) fn publish_head(&mut self, head: &PublishHead, internal: bool) -> Outcome {
        let batch = batch(head);
        let (now, route) = (self.now, self.route());
        let request = PublishRequest {
            head,
            batch: &batch,
            keys: &[],
            connection: ConnectionId(0),
            producer_ids_end: ProducerId(100),
            route,
        };
        let decision = if internal {
            self.partition.publish_internal(now, request, &mut self.effects)
        } else {
            self.partition.publish(now, request, &mut self.effects)
        };
        self.follow(decision);
        self.take_effect(|effect| match effect {
            Effect::Confirm { route: to, run, .. } if *to == route => Some(run.outcome.clone()),
            _ => None,
        })
        .unwrap()
    }

    /// Removes the first effect that is meant.
    pub(crate) fn take_effect<T>(
        &mut self,
        meant: impl Fn(&Effect<u64>) -> Option<T>,
    ) -> Option<T> {
        let at = self.effects.iter().position(|effect| meant(effect).is_some())?;
        meant(&self.effects.remove(at))
    }

    /// Whether a waiting consumer was woken, and which one if only one may get something.
    pub(crate) fn take_ready(&mut self) -> Option<Option<u64>> {
        self.take_effect(|effect| match effect {
            Effect::QueueReady { member, .. } => Some(member.map(|member| member.0)),
            _ => None,
        })
    }

    /// The messages whose leases a consumer was told to have lost.
    pub(crate) fn take_lost(&mut self, member: u64) -> Vec<u64> {
        self.take_effect(|effect| match effect {
            Effect::LeasesLost { member: whose, runs, .. } if whose.0 == member => {
                Some(runs.iter().flat_map(|run| offsets(run.first, run.count)).collect())
            }
            _ => None,
        })
        .unwrap_or_default()
    }

    /// Lets time pass, and ticks if the partition has asked to be woken by then.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.now.monotonic += Duration::from_millis(ms);
        self.now.wall.0 += ms;
        let wake = self.partition.next_queue_wake();
        if wake.is_none_or(|wake| wake > self.now.monotonic) {
            return;
        }
        if let Some(pending) = self.partition.tick_queues(self.now, &mut self.effects) {
            self.append(pending);
        }
        self.commit();
        if let Some(ask) = self.partition.expiry_due(self.now) {
            let aged = self.look_up(ask);
            if let Some(pending) = self.partition.expire(self.now, ask, aged, &mut self.effects) {
                self.append(pending);
            }
            self.commit();
        }
    }

    pub(crate) fn look_up(&self, ask: ExpiryAsk) -> Aged {
        let messages = self.entries.iter().map(|entry| &entry.header);
        let mut young = messages.filter(|header| header.append_time > ask.until);
        let before =
            young.clone().next().map_or_else(|| self.end().offset, |header| header.base_offset);
        let next = young.find(|header| header.end_offset() > ask.from);
        Aged { before, next: next.map(|header| header.append_time) }
    }

    /// The outbox: publishes the letters that there are; tells which.
    pub(crate) fn publish_letters(&mut self) -> Vec<(u64, DeadCause)> {
        let letters = self.partition.dead_intents(QUEUE);
        let letters: Vec<(u64, DeadCause)> =
            letters.map(|letter| (letter.offset.0, letter.cause)).collect();
        let offsets: Vec<Offset> = letters.iter().map(|(offset, _)| Offset(*offset)).collect();
        let sub_epoch = self.queue().sub_epoch();
        let decision =
            self.partition.dead_done(self.now, QUEUE, sub_epoch, &offsets, &mut self.effects);
        self.follow(decision);
        letters
    }

    /// Attaches a consumer that says it holds these leases of this leadership; tells which are in force.
    pub(crate) fn attach_holding(&mut self, member: u64, held: &[(u64, u32)]) -> Vec<Got> {
        let held: Vec<AckRun> =
            held.iter().map(|(offset, attempt)| run(*offset, *attempt)).collect();
        let epochs = Some((self.queue().sub_epoch(), LeaderEpoch(self.leader_epoch)));
        let (now, member) = (self.now, MemberKey(member));
        let consumed = self
            .partition
            .consume(
                now,
                QUEUE,
                (member, &format!("consumer {}", member.0)),
                &held,
                epochs,
                &mut self.effects,
            )
            .unwrap();
        self.commit();
        got(&consumed.held)
    }

    pub(crate) fn attach(&mut self, member: u64) {
        assert_eq!(self.attach_holding(member, &[]), []);
    }

    pub(crate) fn leave(&mut self, member: u64, clean: bool) {
        let (now, member) = (self.now, MemberKey(member));
        let pending = self.partition.leave(now, QUEUE, member, clean, &mut self.effects);
        assert!(pending.is_none(), "nothing is to be written yet");
        self.commit();
    }

    /// One lease request; what it hands out.
    pub(crate) fn lease(&mut self, member: u64, messages: u32) -> Vec<Got> {
        self.lease_credit(member, LeaseCredit { messages, bytes: 1 << 20 })
    }

    pub(crate) fn lease_credit(&mut self, member: u64, credit: LeaseCredit) -> Vec<Got> {
        loop {
            let step = self.partition.lease(self.now, QUEUE, MemberKey(member), credit);
            self.partition.check_invariants();
            match step {
                LeaseStep::Leased { runs, .. } => return got(&runs),
                LeaseStep::LookAhead { from, until } => self.feed(from, until),
                LeaseStep::Idle => return Vec::new(),
                LeaseStep::NoCredit | LeaseStep::Refused(_) => panic!("{step:?}"),
            }
        }
    }

    /// The offsets of one lease request.
    pub(crate) fn out(&mut self, member: u64, messages: u32) -> Vec<u64> {
        self.lease(member, messages).into_iter().map(|(offset, ..)| offset).collect()
    }

    fn feed(&mut self, from: Offset, until: Offset) {
        let key_of = self.key_of;
        let ahead: Vec<Ahead> = self
            .entries
            .iter()
            .map(|entry| &entry.header)
            .filter(|header| header.kind == EntryKind::Data && header.end_offset() > from)
            .map(|header| Ahead {
                first: header.base_offset,
                count: header.record_count,
                bytes: header.body_len,
                keys: match self.policy.key_order {
                    true => offsets(header.base_offset, header.record_count).map(key_of).collect(),
                    false => Vec::new(),
                },
            })
            .collect();
        self.partition.feed(QUEUE, from, &ahead, until);
    }

    /// Acknowledges one message; tells what was wrong with it.
    pub(crate) fn ack(&mut self, member: u64, offset: u64, attempt: u32) -> Option<SettleProblem> {
        let request = AckRequest {
            id: QUEUE,
            member: MemberKey(member),
            sub_epoch: self.queue().sub_epoch(),
            leader_epoch: LeaderEpoch(self.leader_epoch),
            started: 0,
            runs: vec![run(offset, attempt)],
        };
        let route = self.route();
        let decision = self.partition.ack(self.now, request, route, &mut self.effects);
        self.follow(decision);
        self.answer(route)
    }

    pub(crate) fn give_return(
        &mut self,
        member: u64,
        offset: u64,
        attempt: u32,
        action: ReturnAction,
    ) -> Option<SettleProblem> {
        let request = ReturnRequest {
            id: QUEUE,
            member: MemberKey(member),
            sub_epoch: self.queue().sub_epoch(),
            leader_epoch: LeaderEpoch(self.leader_epoch),
            started: 0,
            runs: vec![run(offset, attempt)],
            action,
        };
        let route = self.route();
        let decision = self.partition.give_return(self.now, request, route, &mut self.effects);
        self.follow(decision);
        self.answer(route)
    }

    /// Says that a message failed; it may go out again after the delay, or after the back-off.
    pub(crate) fn nack(&mut self, member: u64, (offset, attempt, _): Got, delay_ms: Option<u64>) {
        let action = ReturnAction::Nack { delay_ms, reason: "no".to_owned() };
        assert_eq!(self.give_return(member, offset, attempt, action), None);
    }

    fn answer(&mut self, route: u64) -> Option<SettleProblem> {
        let exceptions = self.take_effect(|effect| match effect {
            Effect::Settled { route: to, exceptions, .. } if *to == route => {
                Some(exceptions.clone())
            }
            _ => None,
        });
        let Some(exceptions) = exceptions else { panic!("the request is answered") };
        exceptions.first().map(|exception| exception.problem)
    }

    /// Extends the leases of a consumer, which has begun with so many messages.
    pub(crate) fn renew(&mut self, member: u64, started: u64) {
        self.partition.renew(self.now, QUEUE, MemberKey(member), started).unwrap();
    }

    pub(crate) fn queue(&self) -> &QueueState {
        self.partition.state().queue(QUEUE).unwrap()
    }

    pub(crate) fn failure(&self, offset: u64) -> Option<&Failure> {
        self.queue().failures().get(&Offset(offset))
    }

    /// The messages that have failed, with how often.
    pub(crate) fn failed(&self) -> Vec<(u64, u32)> {
        let failures = self.queue().failures().iter();
        failures.map(|(offset, failure)| (offset.0, failure.failures)).collect()
    }

    pub(crate) fn is_settled(&self, offset: u64) -> bool {
        self.queue().settled().contains(Offset(offset))
    }

    pub(crate) fn breaker_is_open(&self) -> bool {
        self.partition.queue_stats(QUEUE, self.now).unwrap().numbers.breaker_open
    }
}

fn lead(leader_epoch: u32, state: PartitionState) -> Partition<u64> {
    let identity = PartitionIdentity {
        topic: TOPIC,
        partition: PartitionId(0),
        durability: Durability::Fsync,
        leader_epoch: LeaderEpoch(leader_epoch),
        node: NodeId(1),
    };
    Partition::new(identity, state, PartitionLimits::default())
}

fn offsets(first: Offset, count: u32) -> std::ops::Range<u64> {
    first.0..first.0 + u64::from(count)
}

fn got(runs: &[postrider_protocol::message::LeaseRun]) -> Vec<Got> {
    let each = |run: &postrider_protocol::message::LeaseRun| {
        let (attempt, failures) = (run.attempt, run.failures);
        offsets(run.first, run.count).map(move |offset| (offset, attempt, failures))
    };
    runs.iter().flat_map(each).collect()
}

fn run(offset: u64, attempt: u32) -> AckRun {
    AckRun { first: Offset(offset), count: 1, attempt }
}

/// The smallest batch with these fields.
pub(crate) fn batch(head: &PublishHead) -> Batch {
    let mut body = BytesMut::with_capacity(48);
    body.put_u16(0);
    body.put_u32(head.seq_count - 1);
    body.put_u64(0);
    body.put_u64(0);
    body.put_i64(head.producer.0);
    body.put_u16(head.epoch.0);
    body.put_u32(u32::try_from(head.base_sequence.0 & 0x7fff_ffff).unwrap());
    body.put_u32(head.seq_count);
    let body: Bytes = body.freeze();
    Batch { body, crc: 0, record_count: head.seq_count }
}
