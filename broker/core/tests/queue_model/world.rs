//! Owns one history: what happens when, and what must hold after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::limits::SESSION_GRACE_MS;
use postrider_core::partition::{
    Aged, Appended, AppliedEntry, ConnectionId, Decision, Effect, EntryDraft, Partition,
    PartitionIdentity, PartitionLimits, PartitionState, PendingAppend, PublishRequest, Refusal,
    StateCommand, StateCommitted, SubscribeStart, SubscriptionMode,
};
use postrider_core::queue::{
    AckRequest, Ahead, DeadCause, LeaseCredit, LeaseStep, MemberKey, ReturnRequest,
};
use postrider_protocol::batch::Batch;
use postrider_protocol::entry::{Entry, EntryHeader, EntryKind, entry_len};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{
    AckLevel, AckRun, Breaker, Expired, LeaseRun, Overflow, PublishHead, QueuePolicy, ReturnAction,
    SettleException, SettleProblem, TopicBounds,
};
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId, ProducerEpoch, ProducerId,
    Sequence, SubscriptionId, TimestampMs, TopicId,
};

mod answers;
mod by_hand;
mod consumers;

use crate::naive::Naive;
use crate::random::Random;

const TOPIC: TopicId = TopicId([9; 16]);
const QUEUE: SubscriptionId = SubscriptionId([1; 16]);
const DEAD: TopicId = TopicId([5; 16]);

/// How often each case was met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

const CASES: &[&str] = &[
    "ack of an ended lease",
    "ack refused by the store",
    "acked",
    "alone",
    "already acked",
    "bound again after a crash",
    "came back to its leases",
    "crash",
    "dead letter",
    "dead letter published again",
    "evicted",
    "expired",
    "expired letter",
    "failed before",
    "first hand-out",
    "given back",
    "gone",
    "lease lost",
    "lease ended by time",
    "nack",
    "overflow letter",
    "purge",
    "redriven",
    "redrive refused by the store",
    "reject",
    "release",
    "released by hand",
    "repeat of an ack in flight",
    "session lost",
    "several acks in one entry",
    "seek",
    "stale epoch",
    "woken",
];

impl Counts {
    fn hit(&mut self, case: &'static str) {
        assert!(CASES.contains(&case), "{case} is in the list");
        *self.0.entry(case).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (case, count) in &other.0 {
            *self.0.entry(case).or_default() += count;
        }
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CASES.iter().map(|case| (*case, self.0.get(case).copied().unwrap_or(0)))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    member: u64,
    attempt: u32,
    dispatch: u64,
    since: u64,
    /// Whether an ack must be accepted.
    sure: bool,
    /// Whether it may end before its time: it had ended before.
    loose: bool,
}

#[derive(Clone, Debug, Default)]
struct Consumer {
    key: u64,
    attached: bool,
    lost_at: Option<u64>,
    renewed: u64,
    next_dispatch: u64,
    /// Leases of the leadership before, and their epochs.
    old: Vec<(u64, u32)>,
    old_epochs: (u64, u32),
}

#[derive(Clone, Debug)]
enum Asked {
    Subscribe,
    Ack { named: BTreeSet<u64>, must: BTreeSet<u64>, epoch: u64 },
    Return { taken: BTreeMap<u64, Lease> },
    Seek,
    Redrive,
}

pub(crate) struct World {
    random: Random,
    now: Now,
    entries: Vec<Entry>,
    ready: usize,
    partition: Partition<u64>,
    leader_epoch: u32,
    shadow: PartitionState,
    naive: Naive,
    folded: usize,
    snapshots: Vec<Bytes>,
    policy: QueuePolicy,
    bounds: TopicBounds,
    /// What lies below was found to be too old; none before the first look of a leadership.
    aged_before: Option<u64>,
    target: bool,
    refuses: bool,
    consumers: Vec<Consumer>,
    log_start: u64,
    bad: BTreeSet<usize>,
    asked: BTreeMap<u64, Asked>,
    routes: u64,
    leases: BTreeMap<u64, Lease>,
    ended: BTreeMap<u64, Lease>,
    /// Acks that were accepted, with who is answered.
    accepted: BTreeMap<u64, u64>,
    returning: BTreeSet<u64>,
    attempts: BTreeMap<u64, u32>,
    /// The greatest offset that went out for the first time.
    newest: Option<u64>,
    /// What went out again before it was due, to somebody who still had it.
    undelayed: BTreeSet<u64>,
    /// Where confirmed acks are.
    confirmed: BTreeMap<(u64, u64), u64>,
    published: BTreeMap<u64, (u64, u64)>,
    idle: bool,
    /// The epoch that consumers know of.
    epoch: u64,
    effects: Vec<Effect<u64>>,
    pub(crate) counts: Counts,
}

fn key_of(offset: u64) -> u64 {
    (offset.wrapping_mul(0x9e37_79b9) >> 7) % 4
}

fn policy(random: &mut Random) -> QueuePolicy {
    QueuePolicy {
        lease_ms: 200 + u32::try_from(random.below(800)).unwrap(),
        lease_max_ms: 3_000,
        max_failures: 1 + u32::try_from(random.below(5)).unwrap(),
        backoff_min_ms: u32::try_from(random.below(300)).unwrap(),
        backoff_max_ms: 300 + u32::try_from(random.below(2_000)).unwrap(),
        unsettled_max: 1 + u32::try_from(random.below(40)).unwrap(),
        key_order: random.one_in(3),
        single_active: random.one_in(4),
        paused: random.one_in(10),
        dead_letter: None,
        breaker: random.one_in(4).then(|| Breaker {
            failure_percent: 50,
            window: 1 + u32::try_from(random.below(8)).unwrap(),
            pause_ms: 300,
        }),
    }
}

fn bounds(random: &mut Random) -> TopicBounds {
    TopicBounds {
        message_ttl_ms: random.one_in(3).then(|| 100 + random.below(4_000)),
        expired: if random.one_in(2) { Expired::Drop } else { Expired::DeadLetter },
        max_messages: random.one_in(4).then(|| 1 + random.below(60)),
        max_bytes: None,
        overflow: match random.below(3) {
            0 => Overflow::Reject,
            1 => Overflow::DropOldest,
            _ => Overflow::DeadLetter,
        },
        dedup_window_ms: None,
    }
}

fn identity(leader_epoch: u32) -> PartitionIdentity {
    PartitionIdentity {
        topic: TOPIC,
        partition: PartitionId(0),
        durability: Durability::Fsync,
        leader_epoch: LeaderEpoch(leader_epoch),
        node: NodeId(1),
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let policy = policy(&mut random);
        let state = PartitionState::default();
        let now = Now { wall: TimestampMs(1_000_000), monotonic: Duration::from_millis(10) };
        let mut world = Self {
            random,
            now,
            entries: Vec::new(),
            ready: 0,
            partition: Partition::new(identity(1), state.clone(), PartitionLimits::default()),
            leader_epoch: 1,
            shadow: state,
            naive: Naive::default(),
            folded: 0,
            snapshots: Vec::new(),
            policy,
            bounds: TopicBounds::default(),
            aged_before: None,
            target: false,
            refuses: true,
            consumers: Vec::new(),
            log_start: 0,
            bad: BTreeSet::new(),
            asked: BTreeMap::new(),
            routes: 0,
            leases: BTreeMap::new(),
            ended: BTreeMap::new(),
            accepted: BTreeMap::new(),
            returning: BTreeSet::new(),
            attempts: BTreeMap::new(),
            newest: None,
            undelayed: BTreeSet::new(),
            confirmed: BTreeMap::new(),
            published: BTreeMap::new(),
            idle: false,
            epoch: 0,
            effects: Vec::new(),
            counts: Counts::default(),
        };
        for key in 0..3 {
            world.consumers.push(Consumer { key, ..Consumer::default() });
        }
        world.bounds = bounds(&mut world.random);
        world.lead();
        world
    }

    /// What the join does at the begin of a leadership.
    fn lead(&mut self) {
        self.aged_before = None;
        self.partition.set_bounds(self.bounds);
        self.partition.set_queue_policy(QUEUE, self.policy.clone());
        self.target = self.random.one_in(2);
        self.tell_target();
        if self.random.one_in(2) {
            self.partition.begin_queue(self.now, QUEUE);
        }
        let route = self.ask(Asked::Subscribe);
        let start = SubscribeStart::Latest;
        let mode = SubscriptionMode::Queue;
        let now = self.now;
        let decision = self.partition.subscribe(now, QUEUE, start, mode, route, &mut self.effects);
        self.follow(decision);
    }

    fn tell_target(&mut self) {
        let target = self.target.then_some((DEAD, PartitionId(0)));
        self.partition.set_dead_letter_target(QUEUE, target);
    }

    fn ask(&mut self, asked: Asked) -> u64 {
        self.routes += 1;
        self.asked.insert(self.routes, asked);
        self.routes
    }

    fn ms(&self) -> u64 {
        u64::try_from(self.now.monotonic.as_millis()).unwrap()
    }

    fn pass(&mut self, ms: u64) {
        self.now.monotonic += Duration::from_millis(ms);
        self.now.wall.0 += ms;
    }

    pub(crate) fn step(&mut self) {
        let passed = self.random.below(8);
        self.pass(passed);
        match self.random.below(1_000) {
            0..110 => self.publish(),
            110..310 => self.advance(),
            310..560 => self.lease(),
            560..730 => self.ack(),
            730..800 => self.give_return(),
            800..850 => self.attach(),
            850..870 => self.leave(),
            870..930 => self.tick(),
            930..946 => self.renew(),
            950..975 => self.publish_letters(),
            975..981 => self.subscribe_again(),
            981..984 => self.seek(),
            984..986 => self.trim(),
            946..948 => self.redrive(),
            948..950 => self.release_message(),
            986..989 => self.alter(),
            989..993 => {
                let ms = self.random.below(6_000);
                self.pass(ms);
                self.tick();
            }
            993..997 => self.snapshots.push(self.partition.state().encode_snapshot()),
            _ => self.crash(),
        }
        if self.random.one_in(3) {
            self.partition.check_invariants();
        }
    }

    fn end(&self) -> Position {
        Self::position(&self.entries)
    }

    fn position(entries: &[Entry]) -> Position {
        entries.last().map_or_else(Position::default, |entry| {
            Position::new(entry.header.next_index(), entry.header.end_offset())
        })
    }

    fn ready_offset(&self) -> u64 {
        Self::position(&self.entries[..self.ready]).offset.0
    }

    fn publish(&mut self) {
        let count = 1 + u32::try_from(self.random.below(6)).unwrap();
        let head = PublishHead {
            topic: TOPIC,
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(self.leader_epoch),
            producer: ProducerId::NONE,
            epoch: ProducerEpoch(0),
            ack: AckLevel::None,
            keyed: false,
            seq_count: count,
            base_sequence: Sequence(0),
            resolved_upto: Sequence(0),
        };
        let batch = batch(&head);
        let request = PublishRequest {
            head: &head,
            batch: &batch,
            keys: &[],
            connection: ConnectionId(0),
            producer_ids_end: ProducerId(0),
            route: 0,
        };
        let decision = self.partition.publish(self.now, request, &mut self.effects);
        self.follow(decision);
        if self.random.one_in(40) && self.end().index.0 > 0 {
            self.bad.insert(self.entries.len() - 1);
        }
    }

    fn follow(&mut self, decision: Decision<u64>) {
        if let Decision::Append(pending) = decision {
            self.append(pending);
        }
        self.carry_out();
    }

    fn append(&mut self, mut pending: PendingAppend<u64>) {
        while let Some(draft) = pending.next_entry() {
            if self.refuses && self.random.one_in(25) {
                self.partition.append_failed(pending, Refusal::DiskFull, &mut self.effects);
                return;
            }
            let appended = self.store(draft);
            self.partition.appended(&mut pending, appended);
        }
    }

    fn store(&mut self, draft: EntryDraft) -> Appended {
        let end = self.end();
        let last = self.entries.last().map_or(TimestampMs(0), |entry| entry.header.append_time);
        let append_time = last.max(draft.append_time);
        let header = EntryHeader {
            header_crc: 0,
            total_len: u32::try_from(entry_len(draft.body.len(), 0)).unwrap(),
            body_len: u32::try_from(draft.body.len()).unwrap(),
            body_crc: draft.body_crc,
            trailer_len: 0,
            index: end.index,
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

    fn advance(&mut self) {
        let unready = self.entries.len() - self.ready;
        self.ready += self.random.index(unready + 1);
        self.advance_to_ready();
    }

    fn advance_to_ready(&mut self) {
        let ready = Self::position(&self.entries[..self.ready]);
        self.partition.advance(ready, &mut self.effects);
        self.fold_naive();
        self.carry_out();
        self.poll();
        if self.random.one_in(16) {
            self.check_fold();
        }
    }

    fn poll(&mut self) {
        let mut rounds = 0;
        while let Some(pending) = self.partition.poll_append(self.now) {
            self.append(pending);
            self.carry_out();
            rounds += 1;
            if rounds > 20 {
                break;
            }
        }
    }

    fn fold_naive(&mut self) {
        for entry in &self.entries[self.folded..self.ready] {
            self.naive.grow(entry.header.base_offset.0);
            if entry.header.kind != EntryKind::Data {
                let command = StateCommand::decode(entry.header.kind, &entry.body).unwrap();
                if let Some(command) = command {
                    count_acks(&command, &mut self.counts);
                    if let StateCommand::Return(returned) = &command {
                        for one in returned {
                            self.returning.remove(&one.offset.0);
                        }
                    }
                    self.naive.apply(QUEUE, &command, entry.header.base_offset.0);
                }
            }
            self.naive.grow(entry.header.end_offset().0);
        }
        self.folded = self.ready;
        let naive = &self.naive;
        let open = |offset: &u64| naive.is_unsettled(*offset) && !naive.is_dead(*offset);
        self.leases.retain(|offset, _| open(offset));
        self.ended.retain(|offset, _| open(offset));
        self.accepted.retain(|offset, _| naive.is_unsettled(*offset));
    }

    fn fold(&self, state: &mut PartitionState) {
        let from = usize::try_from(state.end().index.0).unwrap();
        for entry in &self.entries[from..self.ready] {
            state.apply(&AppliedEntry::from_entry(entry).unwrap()).unwrap();
        }
    }

    fn check_fold(&mut self) {
        let mut shadow = std::mem::take(&mut self.shadow);
        self.fold(&mut shadow);
        self.shadow = shadow;
        assert_eq!(&self.shadow, self.partition.state(), "the fold of the bytes is the live state");
        let bytes = self.shadow.encode_snapshot();
        assert_eq!(PartitionState::decode_snapshot(&bytes).unwrap(), self.shadow);
        self.naive.check(self.shadow.queue(QUEUE), self.ready_offset());
    }

    fn deadline(&self, lease: &Lease) -> u64 {
        let consumer = self.consumers.iter().find(|consumer| consumer.key == lease.member);
        let there = consumer.filter(|consumer| consumer.attached || consumer.lost_at.is_some());
        let renewed = there.map_or(0, |consumer| consumer.renewed);
        let lease_ms = u64::from(self.policy.lease_ms);
        (lease.since.max(renewed) + lease_ms).min(lease.since + self.policy.lease_max_ms)
    }

    fn tick(&mut self) {
        let seeking = self.seeking() || !self.naive.exists;
        let pending = self.partition.tick_queues(self.now, &mut self.effects);
        if !seeking {
            self.lose_sessions();
        }
        if let Some(pending) = pending {
            self.append(pending);
        }
        self.carry_out();
        self.poll();
        self.expire();
        if seeking || self.seeking() {
            return;
        }
        let ms = self.ms();
        for (offset, lease) in &self.leases {
            assert!(
                self.accepted.contains_key(offset) || ms < self.deadline(lease),
                "{offset}: {lease:?} has no end"
            );
        }
        self.forget_evicted_unsure();
    }

    /// What the join does with a tick: it looks how far messages are too old.
    fn expire(&mut self) {
        let Some(ask) = self.partition.expiry_due(self.now) else { return };
        if self.random.one_in(5) {
            // It takes some time.
            self.pass(30);
        }
        let data = self.entries[..self.ready].iter().map(|entry| &entry.header);
        let mut young = data.filter(|header| header.append_time > ask.until);
        let before = young.clone().next().map(|header| header.base_offset);
        let before = before.unwrap_or_else(|| Offset(self.ready_offset()));
        let next = young.find(|header| header.end_offset() > ask.from);
        let aged = Aged { before, next: next.map(|header| header.append_time) };
        self.aged_before = self.aged_before.max(Some(before.0));
        let seeking = self.seeking() || !self.naive.exists;
        let pending = self.partition.expire(self.now, ask, aged, &mut self.effects);
        if !seeking {
            self.lose_sessions();
        }
        if let Some(pending) = pending {
            self.append(pending);
        }
        self.carry_out();
        self.poll();
    }

    fn lose_sessions(&mut self) {
        let ms = self.ms();
        for at in 0..self.consumers.len() {
            if self.consumers[at].lost_at.is_some_and(|lost_at| lost_at <= ms) {
                self.session_lost(at);
            }
        }
    }

    /// Whether it was found to be too old.
    fn is_overdue(&self, offset: u64) -> bool {
        self.bounds.message_ttl_ms.is_some()
            && self.aged_before.is_some_and(|before| offset < before)
    }

    fn forget_evicted_unsure(&mut self) {
        if self.bounds != TopicBounds::default() {
            self.forget_evicted();
        }
        if self.bad.range(..self.ready).next().is_some() {
            self.forget_evicted();
        }
    }

    fn session_lost(&mut self, at: usize) {
        self.counts.hit("session lost");
        let key = self.consumers[at].key;
        self.consumers[at].lost_at = None;
        self.consumers[at].next_dispatch = 0;
        self.forget_leases(key);
    }

    fn publish_letters(&mut self) {
        let letters: Vec<_> = self.partition.dead_intents(QUEUE).cloned().collect();
        let mut last = None;
        for letter in letters {
            assert!(last.is_none_or(|last| last < letter.sequence), "letters are in order");
            last = Some(letter.sequence);
            let name = (letter.sub_epoch, letter.offset.0);
            match self.published.insert(letter.sequence.0, name) {
                None => self.counts.hit("dead letter"),
                Some(before) => {
                    assert_eq!(before, name, "a sequence is one letter");
                    self.counts.hit("dead letter published again");
                }
            }
            if self.random.one_in(3) {
                let offsets = [letter.offset];
                let decision = self.partition.dead_done(
                    self.now,
                    QUEUE,
                    letter.sub_epoch,
                    &offsets,
                    &mut self.effects,
                );
                self.follow(decision);
            }
        }
    }

    fn subscribe_again(&mut self) {
        if self.naive.exists || !self.asked.is_empty() {
            return;
        }
        self.lead();
    }

    fn seek(&mut self) {
        if !self.naive.exists {
            return;
        }
        let route = self.ask(Asked::Seek);
        let (now, effects) = (self.now, &mut self.effects);
        let decision = if self.random.one_in(2) {
            self.counts.hit("purge");
            self.partition.purge(now, QUEUE, route, effects)
        } else {
            self.counts.hit("seek");
            let to = Offset(self.random.below(self.partition.high_watermark().offset.0 + 1));
            self.partition.seek(now, QUEUE, to, route, effects)
        };
        self.follow(decision);
    }

    fn trim(&mut self) {
        let end = self.ready_offset();
        if end > self.log_start {
            self.log_start += self.random.below(end - self.log_start);
        }
        // Whole entries go.
        let entry = self.entries[..self.ready]
            .iter()
            .find(|entry| entry.header.end_offset().0 > self.log_start);
        self.log_start = entry.map_or(end, |entry| entry.header.base_offset.0);
    }

    fn alter(&mut self) {
        let mut policy = policy(&mut self.random);
        policy.single_active = self.policy.single_active;
        self.policy = policy;
        if self.random.one_in(2) {
            let ttl_ms = self.bounds.message_ttl_ms;
            self.bounds = bounds(&mut self.random);
            if self.bounds.message_ttl_ms != ttl_ms {
                self.aged_before = None;
            }
            // The join wakes who waits, as after a change of policy.
            self.idle = false;
        }
        self.partition.set_bounds(self.bounds);
        self.partition.set_queue_policy(QUEUE, self.policy.clone());
        for lease in self.ended.values_mut() {
            lease.sure = false;
        }
        // Reading begins again with another order.
        self.newest = None;
        self.tick();
    }

    fn crash(&mut self) {
        self.counts.hit("crash");
        let unready = self.entries.len() - self.ready;
        let kept = self.ready + self.random.index(unready + 1);
        self.entries.truncate(kept);
        self.bad.retain(|entry| *entry < kept);
        let (epoch, leader_epoch) = (self.naive.epoch, self.leader_epoch);
        for consumer in &mut self.consumers {
            let known = self.leases.iter().chain(&self.ended);
            consumer.old = known
                .filter(|(_, lease)| lease.member == consumer.key)
                .map(|(offset, lease)| (*offset, lease.attempt))
                .collect();
            consumer.old_epochs = (epoch, leader_epoch);
            consumer.attached = false;
            consumer.lost_at = None;
            consumer.next_dispatch = 0;
        }
        self.ready = kept;
        self.fold_naive();
        let mut state = PartitionState::default();
        if !self.snapshots.is_empty() {
            let at = self.random.index(self.snapshots.len());
            state = PartitionState::decode_snapshot(&self.snapshots[at]).unwrap();
        }
        self.fold(&mut state);
        let mut shadow = std::mem::take(&mut self.shadow);
        self.fold(&mut shadow);
        self.shadow = shadow;
        assert_eq!(state, self.shadow, "a restart finds the same state from any snapshot");
        for (epoch, offset) in self.confirmed.keys() {
            let open = *epoch == self.naive.epoch && self.naive.is_unsettled(*offset);
            assert!(!open, "{offset}: what was confirmed is kept");
        }
        self.leader_epoch += 1;
        let limits = PartitionLimits::default();
        self.partition = Partition::new(identity(self.leader_epoch), state, limits);
        self.asked.clear();
        self.effects.clear();
        self.begin_epoch();
        self.idle = false;
        self.epoch = self.naive.epoch;
        if self.random.one_in(2) {
            let single_active = self.policy.single_active;
            self.policy = QueuePolicy { single_active, ..policy(&mut self.random) };
        }
        self.lead();
    }

    /// The faults end; everything must come out even.
    pub(crate) fn drain(&mut self) {
        self.refuses = false;
        self.target = true;
        self.tell_target();
        let mut policy = self.policy.clone();
        (policy.paused, policy.breaker) = (false, None);
        self.policy = policy;
        self.partition.set_queue_policy(QUEUE, self.policy.clone());
        self.subscribe_again();
        for at in 1..self.consumers.len() {
            let clean = self.random.one_in(2);
            self.leave_one(at, clean);
        }
        for round in 0.. {
            assert!(
                round < 3_000,
                "the queue drains: {:?}",
                self.partition.queue_stats(QUEUE, self.now)
            );
            self.ready = self.entries.len();
            self.advance_to_ready();
            let open = (0..self.ready_offset()).any(|offset| self.naive.is_unsettled(offset));
            let letters = self.partition.dead_intents(QUEUE).next().is_some();
            let written = self.ready == self.entries.len();
            if self.naive.exists && written && !open && !letters {
                break;
            }
            if let Some(wake) = self.partition.next_queue_wake() {
                let left = wake.saturating_sub(self.now.monotonic);
                self.pass(u64::try_from(left.as_millis()).unwrap());
                self.tick();
            }
            self.publish_letters();
            self.attach_one(0);
            self.lease_to(0);
            self.ack_all();
        }
        self.check_fold();
        self.partition.check_invariants();
        assert!(self.asked.is_empty(), "every request is answered: {:?}", self.asked);
    }
}

fn count_acks(command: &StateCommand, counts: &mut Counts) {
    use postrider_core::partition::Settlement;
    use postrider_core::queue::SettleHow;
    if let StateCommand::DeadIntent(intents) = command {
        for intent in intents {
            match intent.letter.cause {
                DeadCause::Expired => counts.hit("expired letter"),
                DeadCause::Overflow => counts.hit("overflow letter"),
                DeadCause::Redriven => counts.hit("redriven"),
                DeadCause::MaxFailures | DeadCause::Rejected => {}
            }
        }
    }
    let StateCommand::Settle(settlements) = command else { return };
    for settlement in settlements {
        let Settlement::Runs(runs) = settlement else { continue };
        if runs.how == SettleHow::Evicted {
            counts.hit("evicted");
        } else if runs.how == SettleHow::Expired {
            counts.hit("expired");
        } else if runs.runs.len() > 1 {
            counts.hit("several acks in one entry");
        }
    }
}

fn one(offset: u64, attempt: u32) -> AckRun {
    AckRun { first: Offset(offset), count: 1, attempt }
}

fn runs_of(named: &BTreeMap<u64, u32>) -> Vec<AckRun> {
    let mut runs: Vec<AckRun> = Vec::new();
    for (offset, attempt) in named {
        match runs.last_mut() {
            Some(last)
                if last.first.0 + u64::from(last.count) == *offset && last.attempt == *attempt =>
            {
                last.count += 1;
            }
            _ => runs.push(one(*offset, *attempt)),
        }
    }
    runs
}

/// The smallest batch with these fields.
fn batch(head: &PublishHead) -> Batch {
    let mut body = BytesMut::with_capacity(48);
    body.put_u16(0);
    body.put_u32(head.seq_count - 1);
    body.put_u64(0);
    body.put_u64(0);
    body.put_i64(head.producer.0);
    body.put_u16(head.epoch.0);
    body.put_u32(0);
    body.put_u32(head.seq_count);
    let body: Bytes = body.freeze();
    Batch { body, crc: 0, record_count: head.seq_count }
}
