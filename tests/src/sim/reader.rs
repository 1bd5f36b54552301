//! Owns an application that reads: one subscription of an engine, where it must go on, what it may be told.
//! Never knows connections. Driven by its client; reports to the oracle.
//!
//! Between two things that an application gets from one partition nothing may lie but a gap that it was
//! told. A durable subscription may go back once after a reconnect, never below what had been confirmed as
//! acked before it.
//!
//! The newest attach of a durable subscription wins, and the newest is the one that the broker hears last: what a
//! process sent before it died may still arrive behind the attach of the next one. That is told as
//! `SubscriptionTaken`, at most once for each connection that is so heard; then the application attaches again.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use postrider::core::Engine;
use postrider::core::completion::{Pending, promise};
use postrider::core::link::{Answer, Repeat, RequestFailure};
use postrider::core::subscription::{
    AckFailure, AttachedPartition, Incoming, Run, SubscriptionOptions,
};
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{GapReason, Seek, Start};
use postrider_protocol::types::{Offset, PartitionId, SubscriptionHandle};
use postrider_storage::disk_sim::SimRandom;

use super::oracle::Oracle;
use super::tamper::{Planted, RARITY};

/// What is known of a durable subscription's position on one partition, through all who read it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acked {
    /// Acks up to here are confirmed.
    confirmed: u64,
    /// What was confirmed when the connection began: nothing below may be delivered on it. An ack that is
    /// confirmed later may cross deliveries of a new attach.
    floor: u64,
    /// The highest that was ever asked for.
    asked: u64,
}

/// A durable subscription's history.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    acked: BTreeMap<u32, Acked>,
    /// Rises with every seek; acks asked before count no more.
    generation: u32,
    /// A seek whose outcome is not known: it may happen at any time.
    doubtful: bool,
}

impl Durable {
    fn forget_confirmed(&mut self) {
        self.generation += 1;
        for acked in self.acked.values_mut() {
            acked.confirmed = 0;
            acked.floor = 0;
        }
    }
}

/// An ack that waits for its answer.
struct Asked {
    partition: u32,
    up_to: u64,
    generation: u32,
    pending: Pending<Result<(), AckFailure>>,
}

/// What a reader is to read.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) topic: usize,
    pub(crate) name: Option<String>,
    pub(crate) start: Start,
    pub(crate) messages: u32,
    pub(crate) bytes: u32,
    /// The application takes something once in so many milliseconds.
    pub(crate) slowness: u64,
    /// Gaps by retention may come.
    pub(crate) may_lose: bool,
}

/// An application that reads.
pub(crate) struct Reader {
    pub(crate) plan: Plan,
    who: String,
    handle: SubscriptionHandle,
    attach: Option<Attaching>,
    /// The next offset of each partition, and the end of the log as far as it was told.
    pub(crate) next: BTreeMap<u32, u64>,
    /// The first offset that was there at the start.
    pub(crate) first: BTreeMap<u32, u64>,
    pub(crate) end: BTreeMap<u32, u64>,
    /// Partitions that may go back: the first delivery after a reconnect.
    may_go_back: BTreeSet<u32>,
    /// Acks that were confirmed since the last seek.
    settled: BTreeMap<u32, u64>,
    owner_epochs: BTreeMap<u32, u64>,
    acks: Vec<Asked>,
    seek: Option<(u64, Pending<Answer>)>,
    /// Connections of earlier processes that the broker may still hear.
    ghosts: usize,
    pub(crate) messages_read: u64,
    pub(crate) ended: bool,
}

type Attaching = Pending<Result<Vec<AttachedPartition>, ErrorBody>>;

fn attach(plan: &Plan, engine: &mut Engine, now: Duration) -> (SubscriptionHandle, Attaching) {
    let options = SubscriptionOptions {
        topic: topic_name(plan.topic),
        partitions: Vec::new(),
        name: plan.name.clone(),
        start: plan.start.clone(),
        prefetch_messages: plan.messages,
        prefetch_bytes: plan.bytes,
    };
    let (attached, pending) = promise();
    (engine.subscribe(options, now + Duration::from_secs(600), attached), pending)
}

impl Reader {
    pub(crate) fn open(who: String, plan: Plan, engine: &mut Engine, now: Duration) -> Self {
        let (handle, pending) = attach(&plan, engine, now);
        Self {
            plan,
            who,
            handle,
            attach: Some(pending),
            next: BTreeMap::new(),
            first: BTreeMap::new(),
            end: BTreeMap::new(),
            may_go_back: BTreeSet::new(),
            settled: BTreeMap::new(),
            owner_epochs: BTreeMap::new(),
            acks: Vec::new(),
            seek: None,
            ghosts: 0,
            messages_read: 0,
            ended: false,
        }
    }

    /// The client is gone; a seek in flight may still happen.
    pub(crate) fn abandon(&self, durable: Option<&mut Durable>) {
        if let (Some(durable), Some(_)) = (durable, &self.seek) {
            durable.doubtful = true;
        }
    }

    /// A connection begins; the broker may still hear so many of earlier processes.
    pub(crate) fn connected(&mut self, ghosts: usize, durable: Option<&mut Durable>) {
        self.ghosts = self.ghosts.max(ghosts);
        if let Some(durable) = durable {
            durable.acked.values_mut().for_each(|acked| acked.floor = acked.confirmed);
            self.may_go_back = self.next.keys().copied().collect();
        }
    }

    /// One millisecond of the application.
    pub(crate) fn run(
        &mut self,
        engine: &mut Engine,
        now: Duration,
        oracle: &mut Oracle,
        mut durable: Option<&mut Durable>,
        planted: Option<Planted>,
        dice: &mut SimRandom,
    ) {
        self.attached(oracle, durable.as_deref_mut());
        self.acks_answered(durable.as_deref_mut());
        self.seek_answered(durable.as_deref_mut());
        if !dice.one_in(self.plan.slowness) {
            return;
        }
        let cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(incoming)) = engine.poll_next(self.handle, &cx) {
            self.attached(oracle, durable.as_deref_mut());
            if self.is_taken_by_ghost(&incoming) {
                return self.attach_again(engine, now);
            }
            self.take(incoming, oracle, durable.as_deref_mut(), planted, dice);
            if let Some(durable) = durable.as_deref_mut() {
                self.ack_now_and_then(engine, durable, planted, dice);
            }
            if self.plan.slowness > 1 || self.ended {
                return;
            }
        }
    }

    fn is_taken_by_ghost(&self, incoming: &Incoming) -> bool {
        let taken = matches!(incoming, Incoming::Ended(error) if error.code == ErrorCode::SubscriptionTaken);
        taken && self.plan.name.is_some() && self.ghosts > 0
    }

    fn attach_again(&mut self, engine: &mut Engine, now: Duration) {
        let (handle, pending) = attach(&self.plan, engine, now);
        (self.handle, self.attach) = (handle, Some(pending));
        self.owner_epochs.clear();
        self.ghosts -= 1;
    }

    fn attached(&mut self, oracle: &mut Oracle, durable: Option<&mut Durable>) {
        let Some(reply) = self.attach.as_ref().and_then(Pending::try_take) else { return };
        self.attach = None;
        let partitions = match reply {
            Ok(partitions) => partitions,
            Err(error) => return oracle.violate(format!("{}: no attach: {error}", self.who)),
        };
        for at in &partitions {
            self.next.insert(at.partition.0, at.next.0);
            self.first.insert(at.partition.0, at.next.0);
            self.end.insert(at.partition.0, at.high_watermark.0);
        }
        match durable {
            Some(durable) => {
                for at in partitions {
                    self.starts_where_acked(at, oracle, durable);
                }
            }
            None => {
                for at in partitions {
                    let right = match &self.plan.start {
                        Start::Earliest => at.next == at.log_start,
                        Start::Latest => at.next == at.high_watermark,
                        _ => true,
                    };
                    if !right || (!self.plan.may_lose && at.log_start.0 > 0) {
                        oracle.violate(format!("{}: starts wrongly at {at:?}", self.who));
                    }
                }
            }
        }
    }

    fn starts_where_acked(&self, at: AttachedPartition, oracle: &mut Oracle, durable: &Durable) {
        let acked = durable.acked.get(&at.partition.0).copied().unwrap_or_default();
        let low = if durable.doubtful || self.seek.is_some() { 0 } else { acked.floor };
        let high = if self.plan.may_lose { acked.asked.max(at.log_start.0) } else { acked.asked };
        if at.next.0 < low || at.next.0 > high {
            oracle.violate(format!("{}: starts at {at:?}, acked {acked:?}", self.who));
        }
    }

    fn take(
        &mut self,
        incoming: Incoming,
        oracle: &mut Oracle,
        durable: Option<&mut Durable>,
        planted: Option<Planted>,
        dice: &mut SimRandom,
    ) {
        match incoming {
            Incoming::Run(run) => {
                let chance = planted.is_some() && dice.one_in(RARITY);
                match planted {
                    Some(Planted::DeliverySkipped) if chance => {}
                    Some(Planted::DeliveredTwice) if chance => {
                        self.read(&run, oracle, durable.as_deref(), 0, false);
                        self.read(&run, oracle, durable.as_deref(), 0, false);
                    }
                    Some(Planted::DeliveredMoved) if chance => {
                        self.read(&run, oracle, durable.as_deref(), 1, false);
                    }
                    Some(Planted::ByteChanged) if chance => {
                        self.read(&run, oracle, durable.as_deref(), 0, true);
                    }
                    _ => self.read(&run, oracle, durable.as_deref(), 0, false),
                }
            }
            Incoming::Gap { partition, from, to, reason } => {
                self.expect(partition.0, from.0, oracle, durable.as_deref());
                let by_bounds = matches!(
                    reason,
                    GapReason::Retention | GapReason::Expired | GapReason::Overflow
                );
                let fits = self.plan.may_lose && by_bounds;
                if !fits || to <= from {
                    oracle.violate(format!("{}: gap {from}..{to} by {reason:?}", self.who));
                }
                self.next.insert(partition.0, to.0);
            }
            Incoming::Seeked { partition, next } => {
                self.next.insert(partition.0, next.0);
            }
            Incoming::Assigned(_) | Incoming::Revoked { .. } | Incoming::Lost { .. } => {
                panic!("{}: told as a member, which it is not", self.who);
            }
            Incoming::Ended(error) => {
                self.ended = true;
                oracle.violate(format!("{}: ended by {error}", self.who));
            }
        }
    }

    /// What comes next must begin here.
    fn expect(
        &mut self,
        partition: u32,
        from: u64,
        oracle: &mut Oracle,
        durable: Option<&Durable>,
    ) {
        let Some(&next) = self.next.get(&partition) else {
            return oracle
                .violate(format!("{}: partition {partition} was not asked for", self.who));
        };
        // Going on between the acked position and the highest ack that was asked for skips nothing that
        // was not acked: the broker may have stored an ack whose answer was lost.
        let back = self.may_go_back.remove(&partition);
        let (low, high) = match durable {
            Some(durable) if back => {
                let acked = durable.acked.get(&partition).copied().unwrap_or_default();
                let sought = durable.doubtful || self.seek.is_some();
                (if sought { 0 } else { acked.floor }, next.max(acked.asked))
            }
            // What waits is cut where an ack was confirmed after it was delivered again.
            Some(durable) => {
                let acked = durable.acked.get(&partition).copied().unwrap_or_default();
                (next, next.max(acked.asked))
            }
            None => (next, next),
        };
        if from > high || from < low {
            oracle.violate(format!(
                "{}: partition {partition} goes on at {from}, expected {next} ({low}..={high})",
                self.who
            ));
        }
    }

    fn read(
        &mut self,
        run: &Run,
        oracle: &mut Oracle,
        durable: Option<&Durable>,
        shift: u64,
        flip: bool,
    ) {
        let partition = run.partition.0;
        self.expect(partition, run.first.0, oracle, durable);
        self.owner_epochs.insert(partition, run.owner_epoch);
        let place = (self.plan.topic, partition);
        let mut next = run.first.0;
        for entry in EntryIter::new(run.entries.clone()) {
            let Ok(entry) = entry else {
                return oracle.violate(format!("{}: a delivered entry is broken", self.who));
            };
            let base = entry.header.base_offset.0;
            let records = entry.check_body().is_ok().then(|| Batch::of_entry(&entry));
            let Some(Ok(records)) = records.map(|batch| batch.records(DecodeLimits::default()))
            else {
                return oracle.violate(format!("{}: the body at {base} is broken", self.who));
            };
            for record in records {
                let Ok(record) = record else {
                    return oracle.violate(format!("{}: a record at {base} is broken", self.who));
                };
                let offset = base + u64::from(record.offset_delta);
                if offset < next {
                    continue;
                }
                if offset > next {
                    oracle.violate(format!("{}: {offset} came, {next} was due", self.who));
                }
                next = offset + 1;
                let mut value = record.record.value.unwrap_or_default().to_vec();
                if flip && let Some(last) = value.last_mut() {
                    *last ^= 1;
                }
                oracle.seen(place, offset + shift, &value, &self.who);
                self.messages_read += 1;
            }
        }
        if next != run.end.0 {
            oracle.violate(format!("{}: run ends at {next}, said {}", self.who, run.end));
        }
        self.next.insert(partition, next);
        let end = self.end.entry(partition).or_default();
        *end = (*end).max(run.high_watermark.0);
    }

    fn ack_now_and_then(
        &mut self,
        engine: &mut Engine,
        durable: &mut Durable,
        planted: Option<Planted>,
        dice: &mut SimRandom,
    ) {
        if !dice.one_in(4) {
            return;
        }
        for (&partition, &epoch) in &self.owner_epochs {
            let Some(&next) = self.next.get(&partition) else { continue };
            let back = dice.below(4).min(next);
            let up_to = next - back;
            let acked = durable.acked.entry(partition).or_default();
            acked.asked = acked.asked.max(up_to);
            if planted == Some(Planted::AckLost) {
                acked.confirmed = acked.confirmed.max(up_to);
                continue;
            }
            let (done, pending) = promise();
            engine.ack_up_to(self.handle, PartitionId(partition), epoch, Offset(up_to), done);
            let generation = durable.generation;
            self.acks.push(Asked { partition, up_to, generation, pending });
        }
    }

    fn acks_answered(&mut self, durable: Option<&mut Durable>) {
        let Some(durable) = durable else { return };
        self.acks.retain(|Asked { partition, up_to, generation, pending }| {
            let Some(answer) = pending.try_take() else { return true };
            if answer.is_ok() && *generation == durable.generation {
                let acked = durable.acked.entry(*partition).or_default();
                acked.confirmed = acked.confirmed.max(*up_to);
                // What is acked need not be delivered again, not even after going back.
                if let Some(next) = self.settled.get_mut(partition) {
                    *next = (*next).max(*up_to);
                } else {
                    self.settled.insert(*partition, *up_to);
                }
            }
            false
        });
    }

    /// Asks for a move of the durable subscription back to the beginning or to an offset.
    pub(crate) fn seek(
        &mut self,
        engine: &mut Engine,
        durable: &mut Durable,
        now: Duration,
        to: u64,
    ) {
        let Some(name) = &self.plan.name else { return };
        if self.seek.is_some() || durable.doubtful || self.attach.is_some() {
            return;
        }
        let highest = self.next.values().copied().min().unwrap_or(0);
        let to = to.min(highest);
        self.settled.clear();
        durable.forget_confirmed();
        for partition in self.next.keys() {
            let acked = durable.acked.entry(*partition).or_default();
            acked.asked = acked.asked.max(to);
        }
        let seek = Seek {
            topic: topic_name(self.plan.topic),
            name: name.clone(),
            to: Start::Offset(Offset(to)),
        };
        let (done, pending) = promise();
        engine.ask(&seek, Repeat::Never, now + Duration::from_secs(20), done);
        self.seek = Some((to, pending));
    }

    fn seek_answered(&mut self, durable: Option<&mut Durable>) {
        let Some(answer) = self.seek.as_ref().and_then(|(_, pending)| pending.try_take()) else {
            return;
        };
        let Some(durable) = durable else { return };
        match answer {
            Ok(_) | Err(RequestFailure::Refused(_) | RequestFailure::NotSent) => {
                // Acks confirmed in between may lie before or behind the move.
                self.settled.clear();
                durable.forget_confirmed();
            }
            Err(_) => durable.doubtful = true,
        }
        self.seek = None;
    }

    /// Whether everything up to these ends was read and all acks are answered.
    pub(crate) fn has_read(&self, ends: &BTreeMap<u32, u64>) -> bool {
        self.attach.is_none()
            && self.acks.is_empty()
            && ends.iter().all(|(partition, end)| {
                self.next.get(partition).max(self.settled.get(partition)) >= Some(end)
            })
    }

    pub(crate) fn describe(&self) -> String {
        let waits = self.attach.is_some();
        format!("{} next {:?} attaching {waits} acks {}", self.who, self.next, self.acks.len())
    }
}

/// The name of a topic.
pub(crate) fn topic_name(topic: usize) -> String {
    format!("topic-{topic}")
}
