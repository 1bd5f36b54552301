//! Owns an application that consumes a queue: what it does with each delivery and when, what it was told about it.
//! Never knows connections. Driven by its client; reports to the oracles.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use postrider::core::Engine;
use postrider::core::completion::{Pending, promise};
use postrider::core::consumer::desk::{Answer, Grant, SettleFailure};
use postrider::core::consumer::{Attached, ConsumerOptions, Granted, Handed};
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::ReturnAction;
use postrider_protocol::record::Record;
use postrider_protocol::types::{MemberId, Offset, SubscriptionHandle};
use postrider_storage::disk_sim::SimRandom;

use super::oracle::Oracle;
use super::queue_oracle::{Queue, QueueOracle};
use super::reader::topic_name;

/// What a consumer does with what it gets.
#[derive(Clone, Debug)]
pub(crate) struct WorkPlan {
    /// The queue's number.
    pub(crate) queue: usize,
    pub(crate) prefetch_messages: u32,
    pub(crate) prefetch_bytes: u32,
    /// It takes something once in so many milliseconds.
    pub(crate) slowness: u64,
    /// The longest that it works on a message.
    pub(crate) work_max_ms: u64,
    /// One in so many messages does not end in an ack; 0 = none.
    pub(crate) trouble: u64,
    /// Takes the next message when the last ack is confirmed.
    pub(crate) awaits: bool,
    /// It leaves in order, and comes again under another name, once in so many milliseconds; 0 = never.
    pub(crate) leaves: u64,
}

/// What becomes of a delivery.
#[derive(Clone, Debug)]
enum Deed {
    Ack,
    Nack(Option<u64>),
    Reject,
    Release,
    /// Its lease runs until it ends.
    Hold,
}

struct Delivery {
    grant: Arc<Grant>,
    offset: u64,
    attempt: u32,
    deed: Deed,
    until: Duration,
}

/// An outcome whose answer is not known.
struct Waiting {
    partition: u32,
    offset: u64,
    is_ack: bool,
    answer: Answer,
    place: Option<u32>,
}

/// An application that consumes.
pub(crate) struct Worker {
    pub(crate) plan: WorkPlan,
    who: String,
    topic: usize,
    handle: SubscriptionHandle,
    attach: Option<Pending<Result<Attached, ErrorBody>>>,
    leaving: Option<Pending<()>>,
    hands: Vec<Delivery>,
    answers: Vec<Waiting>,
    pub(crate) taken: u64,
}

/// The records of entries, with their offsets; none if something of them is broken.
pub(crate) fn records(entries: &bytes::Bytes) -> Option<Vec<(u64, Record)>> {
    let mut all = Vec::new();
    for entry in EntryIter::new(entries.clone()) {
        let entry = entry.ok()?;
        entry.check_body().ok()?;
        for record in Batch::of_entry(&entry).records(DecodeLimits::default()).ok()? {
            let record = record.ok()?;
            all.push((entry.header.base_offset.0 + u64::from(record.offset_delta), record.record));
        }
    }
    Some(all)
}

impl Worker {
    pub(crate) fn open(
        who: String,
        plan: WorkPlan,
        queue: &Queue,
        engine: &mut Engine,
        now: Duration,
        dice: &mut SimRandom,
    ) -> Self {
        let mut member = [0; 16];
        member[..8].copy_from_slice(&dice.next_u64().to_le_bytes());
        let options = ConsumerOptions {
            topic: topic_name(queue.topic),
            subscription: queue.subscription.clone(),
            partitions: Vec::new(),
            member: MemberId(member),
            name: who.clone(),
            prefetch_messages: plan.prefetch_messages,
            prefetch_bytes: plan.prefetch_bytes,
        };
        let (attached, pending) = promise();
        let handle = engine.consume(options, now + Duration::from_secs(600), attached);
        Self {
            plan,
            who,
            topic: queue.topic,
            handle,
            attach: Some(pending),
            leaving: None,
            hands: Vec::new(),
            answers: Vec::new(),
            taken: 0,
        }
    }

    /// One millisecond of the application. Whether it is there still.
    pub(crate) fn run(
        &mut self,
        engine: &mut Engine,
        now: Duration,
        oracle: &mut Oracle,
        queues: &mut QueueOracle,
        draining: bool,
        dice: &mut SimRandom,
    ) -> bool {
        if let Some(answer) = self.attach.as_ref().and_then(Pending::try_take) {
            self.attach = None;
            if let Err(error) = answer {
                oracle.violate(format!("{}: no attach: {error}", self.who));
            }
        }
        self.hear(oracle, queues);
        self.act(now, draining);
        if let Some(left) = &self.leaving {
            if left.try_take().is_none() {
                return true;
            }
            engine.release_consumer(self.handle);
            return false;
        }
        if !draining && self.plan.leaves > 0 && dice.one_in(self.plan.leaves) {
            let (done, left) = promise();
            engine.leave_consumer(self.handle, done);
            self.leaving = Some(left);
            return true;
        }
        if dice.one_in(self.plan.slowness) {
            self.take(engine, now, oracle, draining, dice);
        }
        true
    }

    fn take(
        &mut self,
        engine: &mut Engine,
        now: Duration,
        oracle: &mut Oracle,
        draining: bool,
        dice: &mut SimRandom,
    ) {
        if self.plan.awaits && self.answers.iter().any(|waiting| waiting.is_ack) {
            return;
        }
        let cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(handed)) = engine.poll_handed(self.handle, &cx) {
            match handed {
                Handed::Grant(granted) => self.granted(&granted, now, oracle, draining, dice),
                Handed::Ended(error) if error.code == ErrorCode::ShuttingDown => {}
                Handed::Ended(error) => {
                    oracle.violate(format!("{}: ended by {error}", self.who));
                }
            }
            if self.plan.slowness > 1 || self.plan.awaits {
                return;
            }
        }
    }

    fn granted(
        &mut self,
        granted: &Granted,
        now: Duration,
        oracle: &mut Oracle,
        draining: bool,
        dice: &mut SimRandom,
    ) {
        let partition = granted.grant.partition().0;
        let Some(records) = records(&granted.entries) else {
            return oracle.violate(format!("{}: leased entries are broken", self.who));
        };
        let mut nth = 0;
        for run in &granted.runs {
            for offset in run.first.0..run.end().0 {
                let found = records.iter().find(|(at, _)| *at == offset);
                let Some((_, record)) = found else {
                    oracle.violate(format!("{}: {offset} is leased and missing", self.who));
                    continue;
                };
                let value = record.value.as_deref().unwrap_or_default();
                oracle.seen((self.topic, partition), offset, value, &self.who);
                granted.grant.start(nth);
                nth += 1;
                self.taken += 1;
                let (deed, until) = self.decide(draining, now, dice);
                let grant = Arc::clone(&granted.grant);
                let attempt = run.attempt;
                self.hands.push(Delivery { grant, offset, attempt, deed, until });
            }
        }
        if self.hands.len() > usize::try_from(self.plan.prefetch_messages).unwrap_or(usize::MAX) {
            oracle.violate(format!("{}: B11 credit: {} in hand", self.who, self.hands.len()));
        }
    }

    fn decide(&self, draining: bool, now: Duration, dice: &mut SimRandom) -> (Deed, Duration) {
        if draining {
            return (Deed::Ack, now);
        }
        let until = now + Duration::from_millis(dice.below(self.plan.work_max_ms + 1));
        if self.plan.trouble == 0 || !dice.one_in(self.plan.trouble) {
            return (Deed::Ack, until);
        }
        match dice.below(12) {
            0..=2 => (Deed::Nack(None), until),
            3..=5 => (Deed::Nack(Some(dice.below(300))), until),
            6 => (Deed::Reject, until),
            7 | 8 => (Deed::Release, until),
            9 => (Deed::Hold, until),
            // Later than any lease lasts.
            _ => (Deed::Ack, until + Duration::from_secs(3)),
        }
    }

    /// Does what is due.
    fn act(&mut self, now: Duration, draining: bool) {
        let due = |delivery: &mut Delivery| draining || delivery.until <= now;
        let answers = &mut self.answers;
        for delivery in self.hands.extract_if(.., due) {
            let Delivery { grant, offset, attempt, deed, .. } = delivery;
            let deed = if draining { Deed::Ack } else { deed };
            let reason = || "in the simulation".to_string();
            let give = |action| grant.give_back(Offset(offset), 1, attempt, action);
            let is_ack = matches!(deed, Deed::Ack);
            let (answer, _attention) = match deed {
                Deed::Ack => grant.ack(Offset(offset), attempt),
                Deed::Nack(delay_ms) => give(ReturnAction::Nack { delay_ms, reason: reason() }),
                Deed::Reject => give(ReturnAction::Reject { reason: reason() }),
                Deed::Release => give(ReturnAction::Release),
                Deed::Hold => {
                    let _attention = grant.hold(Offset(offset), attempt);
                    continue;
                }
            };
            let partition = grant.partition().0;
            answers.push(Waiting { partition, offset, is_ack, answer, place: None });
        }
    }

    fn hear(&mut self, oracle: &mut Oracle, queues: &mut QueueOracle) {
        let cx = Context::from_waker(Waker::noop());
        let (queue, who) = (self.plan.queue, &self.who);
        self.answers.retain_mut(|waiting| {
            let Poll::Ready(answer) = waiting.answer.poll(&mut waiting.place, &cx) else {
                return true;
            };
            match answer {
                Ok(()) if waiting.is_ack => {
                    queues.told_acked((queue, waiting.partition), waiting.offset, who);
                }
                Ok(()) | Err(SettleFailure::Problem(_) | SettleFailure::Ended) => {}
                Err(SettleFailure::Refused(error)) => {
                    oracle.violate(format!("{who}: not settled: {error}"));
                }
            }
            false
        });
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "{} attaching {} leaving {} in hand {} unanswered {}",
            self.who,
            self.attach.is_some(),
            self.leaving.is_some(),
            self.hands.len(),
            self.answers.len()
        )
    }
}
