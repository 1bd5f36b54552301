//! Owns one random history: a log, a leader on it, producers, time. Checks every answer and every entry.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::delay::Due;
use postrider_core::partition::{
    Appended, AppliedEntry, ConnectionId, Decision, Effect, EntryDraft, Partition,
    PartitionIdentity, PartitionLimits, PartitionState, Payload, PendingAppend, PublishRequest,
    Refusal,
};
use postrider_protocol::batch::{Batch, BatchBuilder, DecodeLimits};
use postrider_protocol::entry::{Entry, EntryHeader, EntryKind, entry_len};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{
    AckLevel, CancelVerdict, ConfirmRun, DelayId, Outcome, PublishHead,
};
use postrider_protocol::types::{
    Compression, Durability, EntryIndex, LeaderEpoch, NodeId, PartitionId, ProducerEpoch,
    ProducerId, Sequence, TimestampMs, TopicId,
};

use crate::naive::{Fate, Naive};
use crate::random::Random;

/// How often each case was met.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// What a run of many histories must meet.
pub(crate) const CASES: &[&str] = &[
    "delayed",
    "data",
    "duplicate before its release",
    "duplicate after its release",
    "released",
    "released in part",
    "cancelled",
    "cancel of a released one",
    "cancel of an unknown one",
    "lost",
    "refused by the disk",
    "refused at the limit",
    "crash",
    "crash with a release in flight",
    "snapshot with pending ones",
    "clock set back",
];

const PRODUCERS: u64 = 3;
const DELAYED_MAX: u64 = 60;

/// A batch that a producer may send again.
#[derive(Clone)]
struct Sent {
    head: PublishHead,
    batch: Batch,
    due: Option<u64>,
    /// Where it is, once it is confirmed.
    id: Option<EntryIndex>,
}

/// See the module.
pub(crate) struct World {
    random: Random,
    pub(crate) counts: Counts,
    partition: Partition<u64>,
    log: Vec<Entry>,
    ready: usize,
    naive: Naive,
    /// Monotonic milliseconds, and how far the wall is ahead of them.
    ms: u64,
    wall_ahead: u64,
    epoch: u32,
    sent: Vec<Sent>,
    next_sequence: BTreeMap<i64, u64>,
    next_value: u64,
    snapshots: Vec<PartitionState>,
    /// Cancels that wait, by route.
    cancels: BTreeMap<u64, Vec<DelayId>>,
    next_route: u64,
    /// What was confirmed as cancelled.
    cancelled: Vec<DelayId>,
    damaged: Vec<EntryIndex>,
    /// Time and index of what the newest tick released.
    effects: Vec<Effect<u64>>,
}

fn leader(epoch: u32, state: PartitionState) -> Partition<u64> {
    let identity = PartitionIdentity {
        topic: TopicId([1; 16]),
        partition: PartitionId(0),
        durability: Durability::Fsync,
        leader_epoch: LeaderEpoch(epoch),
        node: NodeId(1),
    };
    let limits = PartitionLimits { delayed_max: DELAYED_MAX, ..PartitionLimits::default() };
    Partition::new(identity, state, limits)
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            counts: Counts::new(),
            partition: leader(1, PartitionState::default()),
            log: Vec::new(),
            ready: 0,
            naive: Naive::default(),
            ms: 0,
            wall_ahead: 1_000_000,
            epoch: 1,
            sent: Vec::new(),
            next_sequence: BTreeMap::new(),
            next_value: 0,
            snapshots: vec![PartitionState::default()],
            cancels: BTreeMap::new(),
            next_route: 0,
            cancelled: Vec::new(),
            damaged: Vec::new(),
            effects: Vec::new(),
        }
    }

    fn hit(&mut self, case: &'static str) {
        *self.counts.entry(case).or_default() += 1;
    }

    fn now(&self) -> Now {
        let wall = TimestampMs(self.ms + self.wall_ahead);
        Now { monotonic: Duration::from_millis(self.ms), wall }
    }

    pub(crate) fn step(&mut self) {
        match self.random.below(100) {
            0..24 => self.publish(),
            24..34 => self.resend(),
            34..44 => self.cancel(),
            44..64 => self.tick(),
            64..84 => self.advance(),
            84..94 => self.ms += self.random.below(200),
            94..96 => self.jump(),
            96..98 => self.snapshot(),
            _ => self.crash(),
        }
        self.check();
    }

    fn jump(&mut self) {
        let by = self.random.below(2_000);
        if self.random.one_in(2) {
            self.wall_ahead += by;
        } else {
            self.wall_ahead -= by;
            self.hit("clock set back");
        }
    }

    fn batch(&mut self, count: u64, producer: ProducerId, sequence: u64) -> Batch {
        let codec = [Compression::None, Compression::Lz4][self.random.index(2)];
        let mut builder = BatchBuilder::new(codec, 64);
        for _ in 0..count {
            let value = format!("message {}", self.next_value);
            self.next_value += 1;
            builder.push(None, Some(value.as_bytes()), &[], TimestampMs(5)).unwrap();
        }
        builder.finish(producer, ProducerEpoch(0), Sequence(sequence))
    }

    fn publish(&mut self) {
        let producer = ProducerId(i64::try_from(self.random.below(PRODUCERS + 1)).unwrap() - 1);
        let count = 1 + self.random.below(3);
        let next = self.next_sequence.entry(producer.0).or_default();
        let sequence = *next;
        *next += count;
        let batch = self.batch(count, producer, sequence);
        let wall = self.now().wall.0;
        let due =
            (!self.random.one_in(4)).then(|| (wall + self.random.below(1_500)).saturating_sub(100));
        let head = PublishHead {
            topic: TopicId([1; 16]),
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(self.epoch),
            producer,
            epoch: ProducerEpoch(0),
            ack: AckLevel::Quorum,
            keyed: false,
            seq_count: u32::try_from(count).unwrap(),
            base_sequence: Sequence(sequence),
            resolved_upto: Sequence(sequence),
        };
        self.sent.push(Sent { head, batch, due, id: None });
        self.send(self.sent.len() - 1);
    }

    /// A producer repeats itself, maybe from long ago.
    fn resend(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let newest = self.sent.len().saturating_sub(12);
        let at = match self.random.one_in(2) {
            true => self.random.index(self.sent.len()),
            false => newest + self.random.index(self.sent.len() - newest),
        };
        if self.sent[at].head.producer != ProducerId::NONE {
            self.send(at);
        }
    }

    fn send(&mut self, at: usize) {
        let mut sent = self.sent[at].clone();
        sent.head.leader_epoch = LeaderEpoch(self.epoch);
        let request = PublishRequest {
            head: &sent.head,
            batch: &sent.batch,
            keys: &[],
            connection: ConnectionId(1),
            producer_ids_end: ProducerId(i64::MAX),
            route: u64::MAX,
        };
        let now = self.now();
        let decision = match sent.due {
            Some(due) => {
                let due = TimestampMs(due);
                self.partition.publish_delayed(now, request, due, &mut self.effects)
            }
            None => self.partition.publish(now, request, &mut self.effects),
        };
        self.follow(decision);
    }

    fn follow(&mut self, decision: Decision<u64>) {
        if let Decision::Append(pending) = decision {
            self.append(pending);
        }
        self.take_effects();
    }

    /// Tells whether the disk took all.
    fn append(&mut self, mut pending: PendingAppend<u64>) -> bool {
        if self.random.one_in(12) {
            self.hit("refused by the disk");
            self.partition.append_failed(pending, Refusal::QueueFull, &mut self.effects);
            return false;
        }
        while let Some(draft) = pending.next_entry() {
            let appended = self.store(draft);
            self.partition.appended(&mut pending, appended);
        }
        true
    }

    fn store(&mut self, draft: EntryDraft) -> Appended {
        let end = position(&self.log, self.log.len());
        let last = self.log.last().map_or(TimestampMs(0), |entry| entry.header.append_time);
        let append_time = last.max(draft.append_time);
        let size = |len: usize| u32::try_from(len).unwrap();
        let header = EntryHeader {
            header_crc: 0,
            total_len: size(entry_len(draft.body.len(), draft.trailer.len())),
            body_len: size(draft.body.len()),
            body_crc: draft.body_crc,
            trailer_len: size(draft.trailer.len()),
            index: end.index,
            base_offset: end.offset,
            leader_epoch: draft.leader_epoch,
            prev_header_crc: 0,
            append_time,
            kind: draft.kind,
            flags: draft.flags,
            record_count: draft.record_count,
            seq_count: draft.seq_count,
            key_id: 0,
            trailer_crc: crc32fast::hash(&draft.trailer),
            cached_crc32c: 0,
        };
        let entry = Entry { header, body: draft.body, trailer: draft.trailer };
        entry.check_body().unwrap();
        self.log.push(entry);
        Appended { index: end.index, base_offset: end.offset, append_time }
    }

    /// Reads and releases what is due, as the join does it; sometimes something comes between the two.
    fn tick(&mut self) {
        let now = self.now();
        let due = self.partition.due_releases(now);
        for pair in due.windows(2) {
            let key = |due: &Due| (due.due, due.index);
            assert!(key(&pair[0]) < key(&pair[1]), "what is due is released in its order");
        }
        assert!(due.iter().all(|due| due.due <= now.wall), "nothing is due before its time");
        if self.random.one_in(4) {
            self.cancel();
        }
        let mut refused = false;
        for due in due {
            let payload = if refused { Payload::Later } else { self.payload(&due) };
            refused |= matches!(payload, Payload::Later);
            if let Some(pending) = self.partition.release(now, &due, payload) {
                refused |= !self.append(pending);
            }
        }
        self.take_effects();
    }

    fn payload(&mut self, due: &Due) -> Payload {
        let index = usize::try_from(due.index.0).unwrap();
        if self.random.one_in(40) {
            return Payload::Later;
        }
        if self.random.one_in(60) {
            self.damaged.push(due.index);
        }
        if self.damaged.contains(&due.index) {
            return Payload::Lost;
        }
        let entry = &self.log[index];
        assert_eq!((entry.header.kind, entry.header.index), (EntryKind::Delayed, due.index));
        if due.cancelled.is_empty() {
            return Payload::Batch(Batch::of_entry(entry));
        }
        let mut builder = BatchBuilder::new(Compression::None, 64);
        for record in Batch::of_entry(entry).records(DecodeLimits::default()).unwrap() {
            let record = record.unwrap();
            if !due.cancelled.contains(&record.offset_delta) {
                builder.push_record(&record.record).unwrap();
            }
        }
        self.hit("released in part");
        Payload::Batch(builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0)))
    }

    fn cancel(&mut self) {
        let count = 1 + self.random.index(3);
        let known: Vec<DelayId> = self.naive.messages.keys().copied().collect();
        let ids: Vec<DelayId> = (0..count)
            .map(|_| {
                // Not one that the log may soon have: its order would decide, and nobody knows such an id.
                let index = match self.log.len() as u64 {
                    0 => EntryIndex(1 << 40),
                    len => EntryIndex(self.random.below(len)),
                };
                let made_up =
                    DelayId { index, position: u32::try_from(self.random.below(4)).unwrap() };
                match known.len() {
                    0 => made_up,
                    _ if self.random.one_in(8) => made_up,
                    len => known[len - 1 - self.random.index(len.min(40))],
                }
            })
            .collect();
        let route = self.next_route;
        self.next_route += 1;
        self.cancels.insert(route, ids.clone());
        let now = self.now();
        let decision = self.partition.cancel_delayed(now, ids, route, &mut self.effects);
        self.follow(decision);
    }

    /// Some of what is appended becomes ready.
    fn advance(&mut self) {
        let more = self.random.index(self.log.len() - self.ready + 1);
        self.make_ready(self.ready + more);
    }

    fn make_ready(&mut self, ready: usize) {
        self.ready = ready;
        for entry in &self.log[self.naive.end..ready] {
            self.naive.apply(entry);
        }
        let end = position(&self.log, ready);
        self.partition.advance(end, &mut self.effects);
        while let Some(pending) = self.partition.poll_append(self.now()) {
            if !self.append(pending) {
                break;
            }
        }
        self.take_effects();
    }

    fn take_effects(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Confirm { run, .. } => self.confirmed(&run),
                Effect::DelaysCancelled { route, verdicts } => {
                    let ids = self.cancels.remove(&route).expect("a cancel is answered once");
                    assert_eq!(ids.len(), verdicts.len());
                    for (id, verdict) in ids.into_iter().zip(verdicts) {
                        self.cancel_answered(id, verdict);
                    }
                }
                Effect::Refused { route, .. } => {
                    self.cancels.remove(&route).expect("a cancel is answered once");
                }
                Effect::DelaysReleased { count, .. } => {
                    *self.counts.entry("released").or_default() += u64::from(count);
                }
                Effect::Released { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn confirmed(&mut self, run: &ConfirmRun) {
        let end = run.base_sequence.0 + u64::from(run.count);
        let covered = |sent: &Sent| {
            let first = sent.head.base_sequence.0;
            sent.head.producer == run.producer && run.base_sequence.0 <= first && first < end
        };
        let covered: Vec<usize> =
            (0..self.sent.len()).filter(|at| covered(&self.sent[*at])).collect();
        let (id, again) = match &run.outcome {
            Outcome::Delayed { id, .. } => (*id, false),
            Outcome::DelayedDuplicate { id, .. } => (*id, true),
            Outcome::Committed { .. } | Outcome::Duplicate { .. } => {
                assert!(covered.iter().all(|at| self.sent[*at].due.is_none()));
                self.hit("data");
                return;
            }
            Outcome::Rejected { error } if error.code == ErrorCode::LimitExceeded => {
                self.hit("refused at the limit");
                return;
            }
            Outcome::Rejected { .. } | Outcome::Unknown { .. } => return,
        };
        assert_eq!((covered.len(), id.position), (1, 0), "a delayed batch has its own run");
        let sent = &mut self.sent[covered[0]];
        assert_eq!(run.count, sent.head.seq_count);
        assert_eq!(*sent.id.get_or_insert(id.index), id.index, "a batch has one id");
        let header = &self.log[usize::try_from(id.index.0).unwrap()].header;
        assert_eq!(header.kind, EntryKind::Delayed);
        assert!(header.index.0 < self.ready as u64, "only what is ready is confirmed");
        let fate = self.naive.messages[&id].fate;
        self.hit(match (again, fate) {
            (false, _) => "delayed",
            (true, Fate::Released) => "duplicate after its release",
            (true, _) => "duplicate before its release",
        });
    }

    fn cancel_answered(&mut self, id: DelayId, verdict: CancelVerdict) {
        let fate = self.naive.messages.get(&id).map(|message| message.fate);
        match verdict {
            CancelVerdict::Cancelled => {
                assert!(
                    matches!(fate, Some(Fate::Cancelled | Fate::Lost)),
                    "{id:?} is {fate:?}, not cancelled"
                );
                self.cancelled.push(id);
                self.hit("cancelled");
            }
            CancelVerdict::Released => {
                assert_eq!(fate, Some(Fate::Released));
                self.hit("cancel of a released one");
            }
            CancelVerdict::Unknown => {
                assert_ne!(fate, Some(Fate::Pending), "{id:?} waits, and nothing was done");
                self.hit("cancel of an unknown one");
            }
        }
    }

    fn snapshot(&mut self) {
        let state = self.partition.state();
        let bytes = state.encode_snapshot();
        let decoded = PartitionState::decode_snapshot(&bytes).unwrap();
        assert_eq!(&decoded, state, "a snapshot is the state");
        assert_eq!(decoded.encode_snapshot(), bytes, "in one encoding");
        if !decoded.delays().is_empty() {
            self.hit("snapshot with pending ones");
        }
        self.snapshots.push(decoded);
    }

    /// The process ends. Any part of what was not ready may be lost, and the next leadership begins at any
    /// snapshot.
    fn crash(&mut self) {
        self.hit("crash");
        let kept = self.ready + self.random.index(self.log.len() - self.ready + 1);
        let releases =
            |entry: &Entry| entry.header.kind == EntryKind::Data && !entry.trailer.is_empty();
        if self.log[self.ready..].iter().any(releases) {
            self.hit("crash with a release in flight");
        }
        self.log.truncate(kept);
        self.cancels.clear();
        let at = self.random.index(self.snapshots.len());
        let mut state = self.snapshots[at].clone();
        for entry in &self.log[usize::try_from(state.end().index.0).unwrap()..] {
            state.apply(&AppliedEntry::from_entry(entry).unwrap()).unwrap();
        }
        self.ready = kept;
        for entry in &self.log[self.naive.end..] {
            self.naive.apply(entry);
        }
        self.epoch += 1;
        self.partition = leader(self.epoch, state);
        for producer in 0..i64::try_from(PRODUCERS).unwrap() {
            let session = self.partition.state().producers().session(ProducerId(producer));
            let next = session.map_or(0, |session| session.next_sequence().0);
            self.next_sequence.insert(producer, next);
        }
        // What was cut is forgotten by its producer too: its sequences go to other messages.
        let next = &self.next_sequence;
        self.sent.retain(|sent| {
            sent.head.producer == ProducerId::NONE
                || sent.head.base_sequence.0 < next[&sent.head.producer.0]
        });
    }

    fn check(&self) {
        self.partition.check_invariants();
        let lane = self.partition.state().delays();
        let pending: Vec<DelayId> = self
            .naive
            .messages
            .iter()
            .filter(|(_, message)| message.fate == Fate::Pending)
            .map(|(id, _)| *id)
            .collect();
        let kept: Vec<DelayId> = lane
            .pending()
            .flat_map(|pending| {
                let cancelled = lane.cancelled_of(pending.index);
                let places = (0..pending.count).filter(|place| !cancelled.contains(place));
                places.map(|position| DelayId { index: pending.index, position })
            })
            .collect();
        assert_eq!(kept, pending, "what is pending is what the log says");
        assert_eq!(lane.floor(), pending.first().map(|id| id.index));
        for id in &self.cancelled {
            assert_ne!(self.naive.messages[id].fate, Fate::Released, "{id:?} stays cancelled");
        }
        let totals = lane.totals();
        assert_eq!(
            (totals.released, totals.cancelled, totals.lost),
            (
                self.naive.count(Fate::Released),
                self.naive.count(Fate::Cancelled),
                self.naive.count(Fate::Lost)
            )
        );
    }

    /// Time passes until nothing is pending.
    pub(crate) fn drain(&mut self) {
        for _ in 0..500 {
            self.ms += 1_000;
            self.tick();
            self.make_ready(self.log.len());
            self.check();
        }
        assert_eq!(self.naive.count(Fate::Pending), 0, "all are released in the end");
        let lost = self.naive.count(Fate::Lost);
        *self.counts.entry("lost").or_default() += lost;
        let mut folded = PartitionState::default();
        for entry in &self.log {
            folded.apply(&AppliedEntry::from_entry(entry).unwrap()).unwrap();
        }
        assert_eq!(&folded, self.partition.state(), "the state is the fold of the log");
    }
}

fn position(log: &[Entry], len: usize) -> Position {
    match len.checked_sub(1) {
        None => Position::default(),
        Some(last) => {
            let header = &log[last].header;
            Position::new(header.next_index(), header.end_offset())
        }
    }
}
