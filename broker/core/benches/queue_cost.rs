//! Owns the measurement of what a message of a queue costs in the core: read ahead, leased, acknowledged,
//! committed. Never touches a disk or a socket. Run by hand: `cargo bench -p postrider-core --bench queue_cost`.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the figures go to people")]

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use postrider_core::Now;
use postrider_core::cursors::Position;
use postrider_core::partition::{
    Appended, ConnectionId, Decision, Effect, Partition, PartitionIdentity, PartitionLimits,
    PartitionState, PendingAppend, PublishRequest, SubscribeStart, SubscriptionMode,
};
use postrider_core::queue::{AckRequest, Ahead, LeaseCredit, LeaseStep, MemberKey, ReturnRequest};
use postrider_protocol::batch::Batch;
use postrider_protocol::message::{
    AckLevel, AckRun, LeaseRun, PublishHead, QueuePolicy, ReturnAction,
};
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId, ProducerEpoch, ProducerId,
    Sequence, SubscriptionId, TimestampMs, TopicId,
};

const QUEUE: SubscriptionId = SubscriptionId([1; 16]);
const MEMBER: MemberKey = MemberKey(1);
const MESSAGES: u64 = 1_000_000;
const BATCH: u32 = 100;

struct Bench {
    partition: Partition<u64>,
    end: Position,
    now: Now,
    effects: Vec<Effect<u64>>,
}

impl Bench {
    fn new(policy: QueuePolicy) -> Self {
        let identity = PartitionIdentity {
            topic: TopicId([9; 16]),
            partition: PartitionId(0),
            durability: Durability::Fsync,
            leader_epoch: LeaderEpoch(1),
            node: NodeId(1),
        };
        let state = PartitionState::default();
        let partition = Partition::new(identity, state, PartitionLimits::default());
        let now = Now { monotonic: Duration::from_secs(1), wall: TimestampMs(1_000) };
        let mut bench = Self { partition, end: Position::default(), now, effects: Vec::new() };
        bench.partition.set_queue_policy(QUEUE, policy);
        let (start, mode) = (SubscribeStart::Latest, SubscriptionMode::Queue);
        let decision = bench.partition.subscribe(now, QUEUE, start, mode, 0, &mut bench.effects);
        bench.follow(decision);
        bench.commit();
        bench
            .partition
            .consume(now, QUEUE, (MEMBER, "bench"), &[], None, &mut bench.effects)
            .unwrap();
        bench
    }

    fn follow(&mut self, decision: Decision<u64>) {
        if let Decision::Append(pending) = decision {
            self.append(pending);
        }
    }

    fn append(&mut self, mut pending: PendingAppend<u64>) {
        while let Some(draft) = pending.next_entry() {
            let appended = Appended {
                index: self.end.index,
                base_offset: self.end.offset,
                append_time: draft.append_time,
            };
            self.end.index = EntryIndex(self.end.index.0 + 1);
            self.end.offset = Offset(self.end.offset.0 + u64::from(draft.record_count));
            self.partition.appended(&mut pending, appended);
        }
    }

    fn commit(&mut self) {
        loop {
            self.partition.advance(self.end, &mut self.effects);
            self.effects.clear();
            match self.partition.poll_append(self.now) {
                Some(pending) => self.append(pending),
                None => break,
            }
        }
    }

    fn publish(&mut self) {
        let head = PublishHead {
            topic: TopicId([9; 16]),
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(1),
            producer: ProducerId::NONE,
            epoch: ProducerEpoch(0),
            ack: AckLevel::None,
            keyed: false,
            seq_count: BATCH,
            base_sequence: Sequence(0),
            resolved_upto: Sequence(0),
        };
        let batch = batch();
        for _ in 0..MESSAGES / u64::from(BATCH) {
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
            self.commit();
        }
    }

    /// One hand-out, with the reading ahead that it asks for.
    fn lease(&mut self, messages: u32) -> Option<Vec<LeaseRun>> {
        let credit = LeaseCredit { messages, bytes: u64::MAX };
        loop {
            match self.partition.lease(self.now, QUEUE, MEMBER, credit) {
                LeaseStep::Leased { runs, .. } => return Some(runs),
                LeaseStep::LookAhead { from, .. } => {
                    let (first, count, bytes, keys) = (from, BATCH, 100 * BATCH, Vec::new());
                    let next = Offset(from.0 + u64::from(BATCH));
                    let ahead = [Ahead { first, count, bytes, keys }];
                    self.partition.feed(QUEUE, from, &ahead, next);
                }
                LeaseStep::Idle | LeaseStep::NoCredit | LeaseStep::Refused(_) => return None,
            }
        }
    }

    fn fail(&mut self, runs: Vec<AckRun>) {
        let request = ReturnRequest {
            id: QUEUE,
            member: MEMBER,
            sub_epoch: 0,
            leader_epoch: LeaderEpoch(1),
            started: 0,
            runs,
            action: ReturnAction::Nack {
                delay_ms: Some(60_000),
                reason: "connection refused".into(),
            },
        };
        let decision = self.partition.give_return(self.now, request, 0, &mut self.effects);
        self.follow(decision);
    }

    fn ack(&mut self, run: AckRun) {
        let request = AckRequest {
            id: QUEUE,
            member: MEMBER,
            sub_epoch: 0,
            leader_epoch: LeaderEpoch(1),
            started: 0,
            runs: vec![run],
        };
        let decision = self.partition.ack(self.now, request, 0, &mut self.effects);
        self.follow(decision);
    }
}

fn batch() -> Batch {
    let mut body = BytesMut::with_capacity(48);
    body.put_u16(0);
    body.put_u32(BATCH - 1);
    body.put_u64(0);
    body.put_u64(0);
    body.put_i64(-1);
    body.put_u16(0);
    body.put_u32(0);
    body.put_u32(BATCH);
    let body: Bytes = body.freeze();
    Batch { body, crc: 0, record_count: BATCH }
}

/// Nanoseconds per message: `out` leased in one request, `per_ack` acknowledged in one, `per_commit`
/// acknowledged between two commits.
fn measure(name: &str, out: u32, per_ack: u32, per_commit: u32) {
    let mut bench = Bench::new(QueuePolicy::default());
    bench.publish();
    let begin = Instant::now();
    let mut acked = 0;
    while let Some(runs) = bench.lease(out) {
        for run in runs {
            let mut at = 0;
            while at < run.count {
                let count = per_ack.min(run.count - at);
                let first = Offset(run.first.0 + u64::from(at));
                bench.ack(AckRun { first, count, attempt: run.attempt });
                at += count;
                acked += u64::from(count);
                if acked % u64::from(per_commit) == 0 {
                    bench.commit();
                }
            }
        }
    }
    bench.commit();
    let nanos = begin.elapsed().as_nanos();
    let totals = bench.partition.state().queue(QUEUE).unwrap().totals();
    assert_eq!((acked, totals.acked), (MESSAGES, MESSAGES), "all are acknowledged");
    println!("{name}: {} ns per message", nanos / u128::from(MESSAGES));
}

/// What becomes of the messages whose memory is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unsettled {
    /// All are with a consumer.
    Leased,
    /// Between two of them that are with a consumer, one is acknowledged.
    EverySecond,
    /// All have failed, and wait.
    Failed,
}

/// Memory of 100,000 unsettled messages of one partition: heap of this process, more than before.
fn memory(name: &str, what: Unsettled) {
    const UNSETTLED: u64 = 100_000;
    let policy = QueuePolicy { unsettled_max: 1 << 20, ..QueuePolicy::default() };
    let mut bench = Bench::new(policy);
    bench.publish();
    let before = resident_kib();
    let handed_out = if what == Unsettled::EverySecond { 2 * UNSETTLED } else { UNSETTLED };
    let mut taken = 0;
    while taken < handed_out {
        let runs = bench.lease(100).unwrap();
        for run in runs {
            taken += u64::from(run.count);
            let each = (0..run.count).map(|nth| AckRun {
                first: Offset(run.first.0 + u64::from(nth)),
                count: 1,
                attempt: run.attempt,
            });
            match what {
                Unsettled::Leased => {}
                Unsettled::EverySecond => each.step_by(2).for_each(|run| bench.ack(run)),
                Unsettled::Failed => bench.fail(each.collect()),
            }
        }
        bench.commit();
    }
    let stats = bench.partition.queue_stats(QUEUE, bench.now).unwrap();
    assert_eq!(stats.numbers.leased + stats.numbers.delayed, UNSETTLED, "as many are unsettled");
    println!("{name}: {} KiB", resident_kib().saturating_sub(before));
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn main() {
    memory("100,000 with a consumer", Unsettled::Leased);
    memory("100,000 with a consumer, each second one acknowledged", Unsettled::EverySecond);
    memory("100,000 that have failed, with a reason", Unsettled::Failed);
    measure("leased and acknowledged in runs of 100", 100, 100, 100);
    measure("leased in runs of 100, acknowledged one by one, 100 per commit", 100, 1, 100);
    measure("leased and acknowledged one by one, 100 per commit", 1, 1, 100);
    measure("leased and acknowledged one by one, each committed", 1, 1, 1);
}
