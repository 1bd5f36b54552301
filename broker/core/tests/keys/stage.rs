//! Owns one partition with a vector as its log and a clock that is set by hand. What is appended is committed when it
//! is told so; a crash keeps any part of what was not.

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::partition::{
    Appended, AppliedEntry, ConnectionId, Decision, Effect, EntryDraft, Keyed, Partition,
    PartitionIdentity, PartitionLimits, PartitionState, PendingAppend, PublishRequest, Refusal,
    read_keys,
};
use postrider_protocol::batch::{Batch, BatchBuilder, DecodeLimits};
use postrider_protocol::entry::{Entry, EntryHeader, EntryKind, entry_len};
use postrider_protocol::headers::IDEMPOTENCY_KEY;
use postrider_protocol::message::{AckLevel, ConfirmRun, Outcome, PublishHead, TopicBounds};
use postrider_protocol::record::Record;
use postrider_protocol::types::{
    Compression, Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId, ProducerEpoch,
    ProducerId, Sequence, TimestampMs, TopicId,
};

const TOPIC: TopicId = TopicId([9; 16]);
pub(crate) const WINDOW_MS: u64 = 3_000;
/// The longest that a key is remembered.
pub(crate) const KEPT_MS: u64 = WINDOW_MS / 3 * 4;

/// A message: its idempotency key, if it has one, and its payload.
pub(crate) type Said = (Option<&'static str>, &'static str);

/// A stored message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) index: EntryIndex,
    pub(crate) position: u32,
    /// None of a delayed one.
    pub(crate) offset: Option<u64>,
    pub(crate) append_time: u64,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Bytes,
}

pub(crate) struct Stage {
    pub(crate) partition: Partition<u64>,
    /// What came out and was not looked at.
    pub(crate) effects: Vec<Effect<u64>>,
    pub(crate) now: Now,
    /// How many entries the store takes before it is full.
    pub(crate) takes: u64,
    /// Batches are stored as a whole or not, and at this offset.
    pub(crate) atomic: bool,
    pub(crate) at: Option<Offset>,
    pub(crate) limits: PartitionLimits,
    pub(crate) bounds: TopicBounds,
    /// Bytes that a route is charged with, less those that were given back.
    pub(crate) charged: i64,
    pub(crate) entries: Vec<Entry>,
    leader_epoch: u32,
    routes: u64,
}

pub(crate) fn record(said: Said, time: u64) -> Record {
    let (key, value) = said;
    let header = |key: &'static str| (Bytes::from(IDEMPOTENCY_KEY), Some(Bytes::from(key)));
    Record {
        key: None,
        value: Some(Bytes::from(value)),
        headers: key.map(header).into_iter().collect(),
        timestamp: TimestampMs(time),
    }
}

impl Stage {
    pub(crate) fn new(limits: PartitionLimits) -> Self {
        let bounds = TopicBounds { dedup_window_ms: Some(WINDOW_MS), ..TopicBounds::default() };
        let mut stage = Self {
            partition: Partition::new(identity(1), PartitionState::default(), limits),
            effects: Vec::new(),
            now: Now { wall: TimestampMs(1_000_000), ..Now::default() },
            takes: u64::MAX,
            atomic: false,
            at: None,
            limits,
            bounds,
            charged: 0,
            entries: Vec::new(),
            leader_epoch: 1,
            routes: 0,
        };
        stage.partition.set_bounds(bounds);
        stage
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now.wall.0 += ms;
    }

    /// The head of a publish of `count` messages.
    pub(crate) fn head(&self, producer: i64, sequence: u64, count: u32) -> PublishHead {
        PublishHead {
            topic: TOPIC,
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(self.leader_epoch),
            producer: ProducerId(producer),
            epoch: ProducerEpoch(0),
            ack: AckLevel::Quorum,
            keyed: true,
            seq_count: count,
            base_sequence: Sequence(sequence),
            resolved_upto: Sequence(if producer < 0 { 0 } else { sequence }),
        }
    }

    /// Publishes; the route that its answers go to, one of its own.
    pub(crate) fn publish_as(
        &mut self,
        head: &PublishHead,
        messages: &[Said],
        due: Option<u64>,
        codec: Compression,
    ) -> u64 {
        self.routes += 1;
        self.publish_on(self.routes, head, messages, (due, codec));
        self.routes
    }

    /// Publishes on a connection that others share.
    pub(crate) fn publish_on(
        &mut self,
        route: u64,
        head: &PublishHead,
        messages: &[Said],
        (due, codec): (Option<u64>, Compression),
    ) {
        let mut builder = BatchBuilder::new(codec, 0);
        for said in messages {
            builder.push_record(&record(*said, self.now.wall.0)).unwrap();
        }
        let batch = builder.finish(head.producer, head.epoch, head.base_sequence);
        let keys: Vec<Keyed> = read_keys(TOPIC, &batch, DecodeLimits::default()).unwrap();
        let request = PublishRequest {
            head,
            batch: &batch,
            keys: &keys,
            connection: ConnectionId(0),
            producer_ids_end: ProducerId(100),
            route,
        };
        let bytes = i64::try_from(batch.body.len()).unwrap();
        let now = self.now;
        let decision = match due {
            None if self.atomic => {
                self.partition.publish_atomic(now, request, self.at, &mut self.effects)
            }
            None => self.partition.publish(now, request, &mut self.effects),
            Some(due) => {
                self.partition.publish_delayed(now, request, TimestampMs(due), &mut self.effects)
            }
        };
        match decision {
            Decision::Append(pending) => {
                self.charged += bytes;
                self.append(pending);
            }
            Decision::Waits => self.charged += bytes,
            Decision::Done => {}
        }
        self.partition.check_invariants();
    }

    /// Publishes without a session, commits, and tells what became of it, message by message.
    pub(crate) fn publish(&mut self, messages: &[Said]) -> Vec<Outcome> {
        let head = self.head(-1, 0, u32::try_from(messages.len()).unwrap());
        let route = self.publish_as(&head, messages, None, Compression::None);
        self.commit();
        self.outcomes(route, &head)
    }

    /// What became of each message of a publish, so far as it was told; each once.
    pub(crate) fn outcomes(&mut self, route: u64, head: &PublishHead) -> Vec<Outcome> {
        let mut outcomes = vec![None; head.seq_count as usize];
        for run in self.take_runs(route) {
            for nth in 0..run.count {
                let at = run.base_sequence.0 + u64::from(nth) - head.base_sequence.0;
                let before =
                    outcomes[usize::try_from(at).unwrap()].replace(nth_of(&run.outcome, nth));
                assert_eq!(before, None, "each message has one outcome");
            }
        }
        outcomes.into_iter().map(|outcome| outcome.expect("each message is answered")).collect()
    }

    pub(crate) fn take_runs(&mut self, wanted: u64) -> Vec<ConfirmRun> {
        let mut runs = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::Confirm { route, run, bytes } if *route == wanted => {
                self.charged -= i64::try_from(*bytes).unwrap();
                runs.push(run.clone());
                false
            }
            Effect::Released { route, bytes } if *route == wanted => {
                self.charged -= i64::try_from(*bytes).unwrap();
                false
            }
            _ => true,
        });
        runs
    }

    fn append(&mut self, mut pending: PendingAppend<u64>) {
        while let Some(draft) = pending.next_entry() {
            if self.takes == 0 {
                self.partition.append_failed(pending, Refusal::DiskFull, &mut self.effects);
                return;
            }
            self.takes -= 1;
            let appended = self.store(draft);
            self.partition.appended(&mut pending, appended);
        }
    }

    fn end(&self) -> Position {
        self.entries.last().map_or_else(Position::default, |entry| {
            Position::new(EntryIndex(entry.header.index.0 + 1), entry.header.end_offset())
        })
    }

    fn store(&mut self, draft: EntryDraft) -> Appended {
        let last = self.entries.last().map_or(TimestampMs(0), |entry| entry.header.append_time);
        let (end, append_time) = (self.end(), draft.append_time.max(last));
        let len = entry_len(draft.body.len(), draft.trailer.len());
        let header = EntryHeader {
            header_crc: 0,
            total_len: u32::try_from(len).unwrap(),
            body_len: u32::try_from(draft.body.len()).unwrap(),
            body_crc: draft.body_crc,
            trailer_len: u32::try_from(draft.trailer.len()).unwrap(),
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
        self.entries.push(Entry { header, body: draft.body, trailer: draft.trailer });
        Appended { index: end.index, base_offset: end.offset, append_time }
    }

    /// Commits what is appended.
    pub(crate) fn commit(&mut self) {
        self.commit_below(self.end());
    }

    pub(crate) fn commit_below(&mut self, end: Position) {
        self.partition.advance(end, &mut self.effects);
        self.partition.check_invariants();
    }

    /// Loses all but the first `kept` of the entries that are not committed. The state that is folded is that of the
    /// entries, and one that goes through a snapshot.
    pub(crate) fn crash(&mut self, kept: usize) {
        let committed = usize::try_from(self.partition.high_watermark().index.0).unwrap();
        let live = self.partition.state().clone();
        assert_eq!(fold(&self.entries[..committed]), live, "fold(entries) == live state");
        self.entries.truncate(committed + kept);
        let state = fold(&self.entries);
        let bytes = state.encode_snapshot();
        assert_eq!(PartitionState::decode_snapshot(&bytes).unwrap(), state);
        let state = PartitionState::decode_snapshot(&bytes).unwrap();
        self.leader_epoch += 1;
        self.effects.clear();
        self.charged = 0;
        self.partition = Partition::new(identity(self.leader_epoch), state, self.limits);
        self.partition.set_bounds(self.bounds);
        self.partition.check_invariants();
    }

    /// What the log holds, by reading it.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        let batches = self
            .entries
            .iter()
            .filter(|entry| matches!(entry.header.kind, EntryKind::Data | EntryKind::Delayed));
        batches.flat_map(messages_of).collect()
    }
}

fn messages_of(entry: &Entry) -> Vec<Stored> {
    let header = &entry.header;
    let delayed = header.kind == EntryKind::Delayed;
    let records = Batch::of_entry(entry).records(DecodeLimits::default()).unwrap();
    let message = |(record, position): (Record, u32)| Stored {
        index: header.index,
        position,
        offset: (!delayed).then_some(header.base_offset.0 + u64::from(position)),
        append_time: header.append_time.0,
        key: record.headers.iter().find_map(|(_name, value)| value.clone()),
        value: record.value.unwrap(),
    };
    let records: Vec<_> = records.map(|record| record.unwrap()).collect();
    assert_eq!(records.len(), header.record_count as usize);
    records
        .into_iter()
        .zip(0..)
        .map(|(record, position)| {
            assert_eq!(record.offset_delta, position, "a stored batch has no holes");
            message((record.record, position))
        })
        .collect()
}

fn fold(entries: &[Entry]) -> PartitionState {
    let mut state = PartitionState::default();
    for entry in entries {
        entry.check_body().unwrap();
        state.apply(&AppliedEntry::from_entry(entry).unwrap()).unwrap();
    }
    state
}

/// The outcome of the nth message of a run.
pub(crate) fn nth_of(outcome: &Outcome, nth: u32) -> Outcome {
    let mut outcome = outcome.clone();
    match &mut outcome {
        Outcome::Committed { base_offset, .. } | Outcome::Duplicate { base_offset, .. } => {
            *base_offset = Offset(base_offset.0 + u64::from(nth));
        }
        Outcome::Delayed { id, .. } | Outcome::DelayedDuplicate { id, .. } => id.position += nth,
        Outcome::Rejected { .. } | Outcome::Unknown { .. } => {}
    }
    outcome
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
