//! Owns one history: what happens when, and what must hold after it. The partition under test, the naive
//! log, and who talks to them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::partition::{
    ConnectionId, Decision, Effect, Partition, PartitionIdentity, PartitionLimits, PartitionState,
    PendingAppend, PublishRequest, Refusal,
};
use postrider_protocol::entry::EntryKind;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{AckLevel, ConfirmRun, Outcome, PublishHead};
use postrider_protocol::types::{
    Durability, LeaderEpoch, NodeId, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence,
    TimestampMs, TopicId,
};

use crate::consumers::Consumers;
use crate::log::{Log, Name};
use crate::producers::{Frame, Producer, batch};
use crate::random::Random;

const TOPIC: TopicId = TopicId([9; 16]);
const IDLE_MS: u64 = 1_000_000;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Route {
    Publish(ConnectionId),
    Request(u64),
}

/// How often each case was met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

const CASES: &[&str] = &[
    "acknowledged in one entry with others",
    "committed",
    "crash",
    "crash that loses entries",
    "disk full",
    "duplicate",
    "expired",
    "failed disk",
    "fenced",
    "given up and skipped",
    "moved",
    "no ack wanted",
    "out of order",
    "restart from a snapshot",
    "retry in flight",
    "retry of several kinds at once",
    "seek",
    "stale leader epoch",
    "stale owner",
    "unknown producer",
];

impl Counts {
    pub(crate) fn hit(&mut self, case: &'static str) {
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

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: Now,
    pub(crate) log: Log,
    pub(crate) partition: Partition<Route>,
    pub(crate) counts: Counts,
    pub(crate) effects: Vec<Effect<Route>>,
    /// The fold of the stored bytes, apart from the partition's own.
    shadow: PartitionState,
    snapshots: Vec<Bytes>,
    consumers: Consumers,
    producers: Vec<Producer>,
    /// Frames of connections that their producer has left.
    lingering: Vec<Frame>,
    leader_epoch: u32,
    connections: u64,
    producer_ids: i64,
    tags: u64,
    refuses: bool,
    given_up: BTreeSet<Name>,
    /// Which epoch a producer used on a connection.
    epochs: BTreeMap<(ConnectionId, i64), u16>,
    /// Names whose answer is due, and on which connection.
    awaited: BTreeMap<Name, ConnectionId>,
    /// Names confirmed once, and where they are.
    confirmed: BTreeMap<Name, Offset>,
    /// Publish bytes charged per connection.
    charged: BTreeMap<ConnectionId, i64>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            now: Now { wall: TimestampMs(1_000), ..Now::default() },
            log: Log::default(),
            partition: partition(1, PartitionState::default()),
            counts: Counts::default(),
            effects: Vec::new(),
            shadow: PartitionState::default(),
            snapshots: Vec::new(),
            consumers: Consumers::default(),
            producers: Vec::new(),
            lingering: Vec::new(),
            leader_epoch: 1,
            connections: 0,
            producer_ids: 0,
            tags: 0,
            refuses: true,
            given_up: BTreeSet::new(),
            epochs: BTreeMap::new(),
            awaited: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            charged: BTreeMap::new(),
        };
        for _ in 0..3 {
            let (id, connection) = (world.new_id(), world.new_connection(0));
            let next = world.first_sequence();
            let producer = Producer::new(id, connection, LeaderEpoch(1), next);
            world.epochs.insert((connection, id), 0);
            world.producers.push(producer);
        }
        world
    }

    /// Zero, or where the 31 stored bits are about to wrap.
    fn first_sequence(&mut self) -> u64 {
        if self.random.one_in(3) { (1 << 31) - 1 - self.random.below(40) } else { 0 }
    }

    fn new_id(&mut self) -> i64 {
        self.producer_ids += 1;
        self.producer_ids - 1
    }

    fn new_connection(&mut self, _of: usize) -> ConnectionId {
        self.connections += 1;
        ConnectionId(self.connections)
    }

    pub(crate) fn step(&mut self) {
        self.now.wall.0 += self.random.below(3);
        match self.random.below(1_000) {
            0..250 => self.send(),
            250..270 => self.publish_without_session(),
            270..560 => self.deliver(),
            560..600 => self.deliver_lingering(),
            600..760 => self.advance(),
            760..790 => self.reconnect(),
            790..820 => self.give_up(),
            820..825 => self.begin_epoch(),
            825..845 => self.snapshots.push(self.partition.state().encode_snapshot()),
            845..848 => self.crash(),
            848..849 => self.fail(),
            849..850 => self.long_idle(),
            _ => Consumers::step(self),
        }
        self.partition.check_invariants();
    }

    pub(crate) fn consumers(&mut self) -> &mut Consumers {
        &mut self.consumers
    }

    fn pick(&mut self) -> usize {
        self.random.index(self.producers.len())
    }

    fn send(&mut self) {
        let at = self.pick();
        let producer = &mut self.producers[at];
        if producer.resend && producer.unresolved.len() < 60 && self.random.one_in(2) {
            producer.send_again(&mut self.random);
        } else if producer.unresolved.len() < 40 {
            producer.send(&mut self.random);
        } else {
            producer.send_again(&mut self.random);
        }
    }

    fn publish_without_session(&mut self) {
        let ack = if self.random.one_in(2) { AckLevel::None } else { AckLevel::Leader };
        self.tags += 10;
        let head = PublishHead {
            topic: TOPIC,
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(self.leader_epoch),
            producer: ProducerId::NONE,
            epoch: ProducerEpoch(0),
            ack,
            keyed: false,
            seq_count: 2,
            base_sequence: Sequence(self.tags),
            resolved_upto: Sequence(0),
        };
        let connection = self.producers[0].connection;
        self.epochs.insert((connection, -1), 0);
        self.publish(&Frame { batch: batch(&head), head, connection });
    }

    fn deliver(&mut self) {
        let at = self.pick();
        for _ in 0..1 + self.random.below(4) {
            let Some(frame) = self.producers[at].queue.pop_front() else { return };
            self.publish(&frame);
        }
    }

    fn deliver_lingering(&mut self) {
        if self.lingering.is_empty() {
            return;
        }
        // One connection's frames keep their order.
        let at = self.random.index(self.lingering.len());
        let connection = self.lingering[at].connection;
        let first = self.lingering.iter().position(|frame| frame.connection == connection).unwrap();
        let frame = self.lingering.remove(first);
        self.publish(&frame);
    }

    fn publish(&mut self, frame: &Frame) {
        let request = PublishRequest {
            head: &frame.head,
            batch: &frame.batch,
            keys: &[],
            connection: frame.connection,
            producer_ids_end: ProducerId(self.producer_ids),
            route: Route::Publish(frame.connection),
        };
        let mut effects = Vec::new();
        let decision = self.partition.publish(self.now, request, &mut effects);
        let mut answered = BTreeSet::new();
        for effect in &effects {
            if let Effect::Confirm { run, route, .. } = effect {
                assert_eq!(*route, Route::Publish(frame.connection), "answers go to who asked");
                for name in names(frame, run) {
                    assert!(answered.insert(name), "{name:?} is answered twice");
                }
            }
        }
        let all = frame_names(frame);
        if effects.len() > 1 {
            self.counts.hit("retry of several kinds at once");
        }
        match decision {
            Decision::Done => assert_eq!(answered, all, "every sequence is answered"),
            Decision::Waits => {
                self.counts.hit("retry in flight");
                self.charge(frame);
                for name in all.difference(&answered) {
                    for name in self.log.batch_in_flight(*name) {
                        self.awaited.insert(name, frame.connection);
                    }
                }
            }
            Decision::Append(pending) => {
                assert!(answered.is_empty(), "what is appended is not answered yet");
                self.charge(frame);
                self.append_batch(pending, frame, all, &mut effects);
            }
        }
        self.effects.append(&mut effects);
        self.carry_out(false);
    }

    fn append_batch(
        &mut self,
        pending: PendingAppend<Route>,
        frame: &Frame,
        all: BTreeSet<Name>,
        effects: &mut Vec<Effect<Route>>,
    ) {
        let end = self.log.end();
        if !self.append(pending, Some(&frame.head), effects) {
            return;
        }
        assert!(self.log.end().offset > end.offset);
        if frame.head.ack != AckLevel::None {
            for name in all {
                let before = self.awaited.insert(name, frame.connection);
                assert!(before.is_none(), "{name:?} is in flight twice");
            }
        }
        let first = (frame.head.producer.0, frame.head.epoch.0, frame.head.base_sequence.0);
        if first.0 >= 0 && first.2 > 0 && self.given_up.contains(&(first.0, first.1, first.2 - 1)) {
            let stored = self.log.offsets.contains_key(&(first.0, first.1, first.2 - 1));
            if !stored {
                self.counts.hit("given up and skipped");
            }
        }
    }

    /// Appends all entries; false if the disk refused one.
    pub(crate) fn append(
        &mut self,
        mut pending: PendingAppend<Route>,
        head: Option<&PublishHead>,
        effects: &mut Vec<Effect<Route>>,
    ) -> bool {
        while let Some(draft) = pending.next_entry() {
            if self.refuses && self.random.one_in(40) {
                self.counts.hit("disk full");
                self.partition.append_failed(pending, Refusal::DiskFull, effects);
                return false;
            }
            let appended = self.log.append(draft, head);
            self.partition.appended(&mut pending, appended);
        }
        true
    }

    fn charge(&mut self, frame: &Frame) {
        let bytes = i64::try_from(frame.batch.body.len()).unwrap();
        *self.charged.entry(frame.connection).or_default() += bytes;
    }

    fn discharge(&mut self, connection: ConnectionId, bytes: usize) {
        let charged = self.charged.entry(connection).or_default();
        *charged -= i64::try_from(bytes).unwrap();
        assert!(*charged >= 0, "more is discharged than was charged");
    }

    pub(crate) fn advance(&mut self) {
        let more = self
            .random
            .below(8)
            .min(u64::try_from(self.log.entries.len() - self.log.ready).unwrap());
        self.log.ready += usize::try_from(more).unwrap();
        self.advance_to_ready();
    }

    fn advance_to_ready(&mut self) {
        let mut effects = Vec::new();
        self.partition.advance(self.log.position(self.log.ready), &mut effects);
        self.effects.append(&mut effects);
        self.carry_out(true);
        while let Some(pending) = self.partition.poll_append(self.now) {
            let mut effects = Vec::new();
            self.append(pending, None, &mut effects);
            self.effects.append(&mut effects);
            self.carry_out(false);
        }
        if self.random.one_in(8) {
            self.check_fold();
        }
    }

    fn check_fold(&mut self) {
        self.log.fold_ready(&mut self.shadow);
        assert_eq!(
            &self.shadow,
            self.partition.state(),
            "the fold of the stored bytes is the live state"
        );
        let bytes = self.shadow.encode_snapshot();
        let decoded = PartitionState::decode_snapshot(&bytes).unwrap();
        assert_eq!(decoded, self.shadow, "a snapshot holds the whole state");
    }

    /// `committed`: the effects come from an advance.
    pub(crate) fn carry_out(&mut self, committed: bool) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Confirm { route: Route::Publish(connection), run, bytes } => {
                    self.discharge(connection, bytes);
                    self.confirm(connection, &run, committed);
                }
                Effect::Released { route: Route::Publish(connection), bytes } => {
                    self.discharge(connection, bytes);
                    if committed {
                        self.counts.hit("no ack wanted");
                    }
                }
                other => Consumers::carry_out(self, other),
            }
        }
    }

    fn confirm(&mut self, connection: ConnectionId, run: &ConfirmRun, committed: bool) {
        let epoch = self.epochs[&(connection, run.producer.0)];
        let names =
            (0..u64::from(run.count)).map(|i| (run.producer.0, epoch, run.base_sequence.0 + i));
        for (i, name) in (0..).zip(names.clone()) {
            if committed {
                let awaited = self.awaited.remove(&name);
                assert_eq!(
                    awaited,
                    Some(connection),
                    "{name:?} is answered once, where it is awaited"
                );
            }
            self.check_outcome(name, i, &run.outcome, committed);
        }
        if let Some(at) = self
            .producers
            .iter()
            .position(|producer| producer.connection == connection && producer.id == run.producer.0)
        {
            self.tell(at, run);
        }
    }

    fn check_outcome(&mut self, name: Name, into: u64, outcome: &Outcome, committed: bool) {
        match outcome {
            Outcome::Committed { base_offset, append_time, durability }
            | Outcome::Duplicate { base_offset, append_time, durability } => {
                let offset = Offset(base_offset.0 + into);
                assert!(self.log.is_ready(offset), "only what is ready is confirmed");
                let header = self.log.header_at(offset);
                assert_eq!((header.append_time, *durability), (*append_time, Durability::Fsync));
                if name.0 >= 0 {
                    assert_eq!(self.log.offsets.get(&name), Some(&offset), "{name:?}");
                    let before = self.confirmed.insert(name, offset);
                    let first = matches!(outcome, Outcome::Committed { .. });
                    assert!(!first || before.is_none(), "{name:?} is committed once");
                    assert!(
                        before.is_none_or(|before| before == offset),
                        "{name:?} has one offset"
                    );
                    assert_eq!(first, committed);
                    self.counts.hit(if first { "committed" } else { "duplicate" });
                }
            }
            Outcome::Delayed { .. } | Outcome::DelayedDuplicate { .. } => {
                panic!("nothing is delayed here");
            }
            Outcome::Rejected { error } => {
                // A request that names another leadership is refused before anything is looked up.
                if error.code == ErrorCode::StaleLeaderEpoch {
                    self.counts.hit("stale leader epoch");
                } else {
                    assert!(!self.log.offsets.contains_key(&name), "{name:?} is stored: {error:?}");
                }
                if error.code == ErrorCode::OutOfOrderSequence {
                    self.counts.hit("out of order");
                }
            }
            Outcome::Unknown { error } => self.counts.hit(match error.code {
                ErrorCode::SessionMoved => "moved",
                ErrorCode::ProducerFenced => "fenced",
                ErrorCode::UnknownProducer => "unknown producer",
                ErrorCode::StorageFailed => "failed disk",
                code => panic!("{name:?} is unknown by {code:?}"),
            }),
        }
    }

    /// A producer hears on its current connection.
    fn tell(&mut self, at: usize, run: &ConfirmRun) {
        let sequences = run.base_sequence.0..run.base_sequence.0 + u64::from(run.count);
        let producer = &mut self.producers[at];
        match &run.outcome {
            Outcome::Committed { .. }
            | Outcome::Duplicate { .. }
            | Outcome::Delayed { .. }
            | Outcome::DelayedDuplicate { .. } => {
                for sequence in sequences {
                    producer.unresolved.remove(&sequence);
                }
            }
            Outcome::Rejected { error } | Outcome::Unknown { error } => match error.code {
                ErrorCode::StaleLeaderEpoch => {
                    producer.leader_epoch = LeaderEpoch(self.leader_epoch);
                    producer.resend = true;
                }
                ErrorCode::OutOfOrderSequence
                | ErrorCode::DiskFull
                | ErrorCode::Throttled
                | ErrorCode::StorageFailed => producer.resend = true,
                ErrorCode::UnknownProducer => {
                    let id = self.new_id();
                    self.begin_again(at, id, 0);
                }
                code => panic!("a good producer hears {code:?}"),
            },
        }
    }

    fn begin_again(&mut self, at: usize, id: i64, epoch: u16) {
        let next = self.first_sequence();
        let producer = &mut self.producers[at];
        let (old_id, old_epoch) = (producer.id, producer.epoch);
        self.given_up
            .extend(producer.unresolved.iter().map(|sequence| (old_id, old_epoch, *sequence)));
        producer.begin_again(id, epoch, next);
        self.reconnect_one(at);
    }

    fn reconnect(&mut self) {
        let at = self.pick();
        self.reconnect_one(at);
    }

    fn reconnect_one(&mut self, at: usize) {
        let connection = self.new_connection(at);
        let left = self.producers[at].reconnect(connection);
        let producer = &self.producers[at];
        self.epochs.insert((connection, producer.id), producer.epoch);
        if self.random.one_in(2) {
            self.lingering.extend(left);
        }
    }

    fn give_up(&mut self) {
        let at = self.pick();
        let producer = &mut self.producers[at];
        for _ in 0..1 + self.random.below(5) {
            if let Some(sequence) = producer.unresolved.pop_first() {
                self.given_up.insert((producer.id, producer.epoch, sequence));
            }
        }
    }

    fn begin_epoch(&mut self) {
        let at = self.pick();
        let left = self.producers[at].queue.drain(..).collect::<Vec<_>>();
        self.lingering.extend(left);
        let (id, epoch) = (self.producers[at].id, self.producers[at].epoch);
        self.begin_again(at, id, epoch + 1);
    }

    fn fail(&mut self) {
        self.partition.fail(&mut self.effects);
        self.carry_out_failed();
        for at in 0..self.producers.len() {
            if let Some(frame) = self.producers[at].queue.pop_front() {
                self.publish(&frame);
            }
        }
        self.crash();
    }

    fn carry_out_failed(&mut self) {
        for effect in &self.effects {
            if let Effect::Confirm { route: Route::Publish(connection), run, .. } = effect {
                let epoch = self.epochs[&(*connection, run.producer.0)];
                for i in 0..u64::from(run.count) {
                    self.awaited.remove(&(run.producer.0, epoch, run.base_sequence.0 + i));
                }
            }
        }
        assert!(self.awaited.is_empty(), "a failed disk answers everybody: {:?}", self.awaited);
        self.carry_out(false);
        assert!(self.charged.values().all(|bytes| *bytes == 0), "and discharges everybody");
        Consumers::check_answered(self);
    }

    fn crash(&mut self) {
        self.counts.hit("crash");
        let unready = self.log.entries.len() - self.log.ready;
        let kept = self.log.ready + self.random.index(unready + 1);
        if kept < self.log.entries.len() {
            self.counts.hit("crash that loses entries");
        }
        self.log.fold_ready(&mut self.shadow);
        Consumers::before_crash(self, kept);
        self.log.cut(kept);
        self.log.fold_ready(&mut self.shadow);
        let mut state = PartitionState::default();
        if !self.snapshots.is_empty() {
            self.counts.hit("restart from a snapshot");
            let at = self.random.index(self.snapshots.len());
            state = PartitionState::decode_snapshot(&self.snapshots[at]).unwrap();
        }
        self.log.fold_ready(&mut state);
        assert_eq!(state, self.shadow, "a restart finds the same state from any snapshot");
        for (name, offset) in &self.confirmed {
            assert_eq!(self.log.offsets.get(name), Some(offset), "what was confirmed is kept");
        }
        self.leader_epoch += 1;
        self.partition = partition(self.leader_epoch, state);
        self.awaited.clear();
        self.charged.clear();
        for at in 0..self.producers.len() {
            self.reconnect_one(at);
        }
        self.lingering.clear();
        Consumers::after_crash(self);
    }

    /// So long that nothing is on its way any more and every session is forgotten.
    fn long_idle(&mut self) {
        for producer in &mut self.producers {
            let (id, epoch) = (producer.id, producer.epoch);
            self.given_up.extend(producer.unresolved.iter().map(|sequence| (id, epoch, *sequence)));
            producer.unresolved.clear();
            producer.queue.clear();
        }
        self.lingering.clear();
        self.log.ready = self.log.entries.len();
        self.advance_to_ready();
        self.log.ready = self.log.entries.len();
        self.advance_to_ready();
        self.now.wall.0 += IDLE_MS + 1;
        let mut rounds = 0;
        while let Some(pending) = self.partition.expire_sessions(self.now) {
            rounds += 1;
            assert!(rounds < 10_000, "a session expires once");
            let mut effects = Vec::new();
            if self.append(pending, None, &mut effects) {
                self.counts.hit("expired");
            }
            assert!(effects.is_empty());
        }
    }

    /// The faults end; everything must come out even.
    pub(crate) fn settle(&mut self) {
        self.refuses = false;
        for _ in 0..20 {
            for at in 0..self.producers.len() {
                let producer = &mut self.producers[at];
                if !producer.unresolved.is_empty() {
                    producer.send_again(&mut self.random);
                }
                while let Some(frame) = self.producers[at].queue.pop_front() {
                    self.publish(&frame);
                }
            }
            Consumers::settle(self);
            self.log.ready = self.log.entries.len();
            self.advance_to_ready();
        }
        self.log.ready = self.log.entries.len();
        self.advance_to_ready();
        for producer in &self.producers {
            assert!(producer.unresolved.is_empty(), "{:?}", producer.unresolved);
        }
        assert!(self.awaited.is_empty(), "{:?}", self.awaited);
        assert!(self.charged.values().all(|bytes| *bytes == 0), "{:?}", self.charged);
        Consumers::check_settled(self);
        let given_up = &self.given_up;
        self.log.check_order(|name| given_up.contains(&name));
        self.check_fold();
        let data = |entry: &&postrider_protocol::entry::Entry| entry.header.kind == EntryKind::Data;
        assert!(self.log.entries.iter().any(|entry| data(&entry)));
    }
}

fn partition(leader_epoch: u32, state: PartitionState) -> Partition<Route> {
    let identity = PartitionIdentity {
        topic: TOPIC,
        partition: PartitionId(0),
        durability: Durability::Fsync,
        leader_epoch: LeaderEpoch(leader_epoch),
        node: NodeId(1),
    };
    let limits = PartitionLimits { session_idle_ms: IDLE_MS, ..PartitionLimits::default() };
    Partition::new(identity, state, limits)
}

fn frame_names(frame: &Frame) -> BTreeSet<Name> {
    let head = &frame.head;
    (0..u64::from(head.seq_count))
        .map(|i| (head.producer.0, head.epoch.0, head.base_sequence.0 + i))
        .collect()
}

fn names(frame: &Frame, run: &ConfirmRun) -> Vec<Name> {
    (0..u64::from(run.count))
        .map(|i| (run.producer.0, frame.head.epoch.0, run.base_sequence.0 + i))
        .collect()
}
