//! Owns an application that is a member of a consumer group: what it has in hand of each of its partitions, when
//! it acknowledges, gives back, leaves. Never knows connections beyond their number. Driven by its client;
//! reports to the oracles.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use postrider::core::Engine;
use postrider::core::completion::{Pending, promise};
use postrider::core::link::{Answer, Repeat};
use postrider::core::subscription::{
    AckFailure, AttachedPartition, Incoming, MemberOptions, Run, SubscriptionOptions,
};
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{Seek, Start};
use postrider_protocol::types::{Offset, PartitionId, SubscriptionHandle};
use postrider_storage::disk_sim::SimRandom;

use super::client::key_of;
use super::group_oracle::GroupOracle;
use super::group_tap::GROUP;
use super::oracle::Oracle;
use super::reader::topic_name;

/// What a member is like.
#[derive(Clone, Debug)]
pub(crate) struct MemberPlan {
    /// Its name over restarts.
    instance: Option<String>,
    session_timeout: Duration,
    prefetch_messages: u32,
    prefetch_bytes: u32,
    /// It processes something once in so many milliseconds.
    slowness: u64,
    /// It leaves, and comes again, once in so many milliseconds.
    leaves: u64,
    /// One in so many revocations finds it too slow.
    sluggish: u64,
}

pub(crate) fn roll_member(instance: String, dice: &mut SimRandom) -> MemberPlan {
    MemberPlan {
        instance: dice.one_in(3).then_some(instance),
        session_timeout: Duration::from_millis(400 + dice.below(800)),
        prefetch_messages: 1 << dice.below(9),
        prefetch_bytes: 512 << dice.below(7),
        slowness: 1 + dice.below(12),
        leaves: 500 + dice.below(1_500),
        sluggish: 2 + dice.below(4),
    }
}

/// A message that is not processed.
struct InHand {
    partition: u32,
    epoch: u64,
    offset: u64,
    value: Bytes,
}

/// A partition of the member.
struct Held {
    /// Everything below is processed, since the partition was given.
    done: u64,
    /// Under which epoch something was processed last, and how far that is acknowledged.
    epoch: Option<u64>,
    acked: u64,
    /// It is to be given back, unless the member is too slow for that.
    is_revoked: bool,
    is_sluggish: bool,
}

/// An application that is a member.
pub(crate) struct GroupApp {
    plan: MemberPlan,
    who: String,
    handle: SubscriptionHandle,
    joined: Option<Pending<Result<Vec<AttachedPartition>, ErrorBody>>>,
    held: BTreeMap<u32, Held>,
    /// Bound: one run; more is taken when it is empty.
    in_hand: VecDeque<InHand>,
    acks: Vec<Pending<Result<(), AckFailure>>>,
    seek: Option<Pending<Answer>>,
    /// It comes again then.
    away_until: Option<Duration>,
}

/// What a member's millisecond needs.
pub(crate) struct Around<'a> {
    pub(crate) now: Duration,
    /// The connection of its client.
    pub(crate) link: Option<u64>,
    /// Members leave and seek.
    pub(crate) churn: bool,
    pub(crate) partitions: u32,
    pub(crate) oracle: &'a mut Oracle,
    pub(crate) groups: &'a mut GroupOracle,
    pub(crate) dice: &'a mut SimRandom,
}

fn join(plan: &MemberPlan, engine: &mut Engine, now: Duration) -> (SubscriptionHandle, Joining) {
    let options = SubscriptionOptions {
        topic: topic_name(0),
        partitions: Vec::new(),
        name: Some(GROUP.to_string()),
        start: Start::Earliest,
        prefetch_messages: plan.prefetch_messages,
        prefetch_bytes: plan.prefetch_bytes,
    };
    let member =
        MemberOptions { instance: plan.instance.clone(), session_timeout: plan.session_timeout };
    let (attached, pending) = promise();
    let deadline = now + Duration::from_secs(600);
    (engine.join_group(options, member, deadline, attached), pending)
}

type Joining = Pending<Result<Vec<AttachedPartition>, ErrorBody>>;

impl GroupApp {
    pub(crate) fn open(who: String, plan: MemberPlan, engine: &mut Engine, now: Duration) -> Self {
        let (handle, joined) = join(&plan, engine, now);
        Self {
            plan,
            who,
            handle,
            joined: Some(joined),
            held: BTreeMap::new(),
            in_hand: VecDeque::new(),
            acks: Vec::new(),
            seek: None,
            away_until: None,
        }
    }

    /// The partitions that it has.
    pub(crate) fn holds(&self) -> impl Iterator<Item = u32> {
        self.held.keys().copied()
    }

    /// Whether it is one of those among whom partitions are shared.
    pub(crate) fn is_member(&self) -> bool {
        self.away_until.is_none() && self.joined.is_none()
    }

    /// One millisecond of the application.
    pub(crate) fn run(&mut self, engine: &mut Engine, around: &mut Around<'_>) {
        if let Some(until) = self.away_until {
            if until <= around.now || !around.churn {
                self.comes(engine, around.now);
            }
            return;
        }
        self.answers(around);
        if around.churn && around.dice.one_in(self.plan.leaves) {
            return self.leaves(engine, around);
        }
        if self.in_hand.is_empty() {
            self.take(engine, around);
        }
        if around.dice.one_in(self.plan.slowness) || !around.churn {
            self.process(around);
        }
        self.acknowledge(engine, around.dice.one_in(4));
        self.give_back(engine, around);
        if around.churn && around.dice.one_in(2_000) && self.seek.is_none() {
            self.seeks(engine, around);
        }
    }

    fn leaves(&mut self, engine: &mut Engine, around: &mut Around<'_>) {
        engine.unsubscribe(self.handle);
        self.held.clear();
        self.in_hand.clear();
        self.acks.clear();
        self.away_until = Some(around.now + Duration::from_millis(around.dice.below(400)));
    }

    fn comes(&mut self, engine: &mut Engine, now: Duration) {
        let (handle, joined) = join(&self.plan, engine, now);
        (self.handle, self.joined, self.away_until) = (handle, Some(joined), None);
    }

    fn answers(&mut self, around: &mut Around<'_>) {
        if let Some(joined) = self.joined.as_ref().and_then(Pending::try_take) {
            self.joined = None;
            // Otherwise it ends, and is told so.
            if let Err(error) = joined
                && error.code != ErrorCode::SubscriptionTaken
            {
                around.oracle.violate(format!("{} does not join: {error}", self.who));
            }
        }
        self.acks.retain(|ack| ack.try_take().is_none());
        self.seek = self.seek.take().filter(|seek| seek.try_take().is_none());
    }

    fn take(&mut self, engine: &mut Engine, around: &mut Around<'_>) {
        let cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(incoming)) = engine.poll_next(self.handle, &cx) {
            match incoming {
                Incoming::Run(run) => {
                    self.unpack(&run, around.oracle);
                    return;
                }
                Incoming::Assigned(at) => {
                    let held = Held {
                        done: at.next.0,
                        epoch: None,
                        acked: at.next.0,
                        is_revoked: false,
                        is_sluggish: false,
                    };
                    self.held.insert(at.partition.0, held);
                }
                Incoming::Revoked { partition, .. } => {
                    if let Some(held) = self.held.get_mut(&partition.0) {
                        held.is_revoked = true;
                        held.is_sluggish = around.churn && around.dice.one_in(self.plan.sluggish);
                    }
                }
                Incoming::Lost { partition } => {
                    self.held.remove(&partition.0);
                }
                Incoming::Seeked { partition, next } => {
                    self.in_hand.retain(|message| message.partition != partition.0);
                    if let Some(held) = self.held.get_mut(&partition.0) {
                        (held.done, held.acked, held.epoch) = (next.0, next.0, None);
                    }
                }
                Incoming::Gap { partition, from, to, reason } => {
                    let who = &self.who;
                    around.oracle.violate(format!("{who}: {partition} {from}..{to} {reason:?}"));
                }
                Incoming::Ended(error) => return self.ended(&error, engine, around),
            }
        }
    }

    /// Two processes may have taken the name from each other, one of them half dead.
    fn ended(&mut self, error: &ErrorBody, engine: &mut Engine, around: &mut Around<'_>) {
        let excused = self.plan.instance.is_some() && error.code == ErrorCode::SubscriptionTaken;
        if !excused {
            around.oracle.violate(format!("{} ends: {error}", self.who));
        }
        self.plan.instance = None;
        self.leaves(engine, around);
    }

    fn unpack(&mut self, run: &Run, oracle: &mut Oracle) {
        for entry in EntryIter::new(run.entries.clone()) {
            let records = entry.ok().and_then(|entry| {
                let base = entry.header.base_offset.0;
                entry.check_body().ok()?;
                let records = Batch::of_entry(&entry).records(DecodeLimits::default()).ok()?;
                Some((base, records))
            });
            let Some((base, records)) = records else {
                return oracle.violate(format!("{}: a delivered entry is broken", self.who));
            };
            for record in records.map_while(Result::ok) {
                let offset = base + u64::from(record.offset_delta);
                if (run.first.0..run.end.0).contains(&offset) {
                    self.in_hand.push_back(InHand {
                        partition: run.partition.0,
                        epoch: run.owner_epoch,
                        offset,
                        value: record.record.value.unwrap_or_default(),
                    });
                }
            }
        }
    }

    /// Processes a message, or all that there are of a partition that is to be given back.
    fn process(&mut self, around: &mut Around<'_>) {
        let hurries = |at: &Held| at.is_revoked && !at.is_sluggish;
        while let Some(message) = self.in_hand.pop_front() {
            let InHand { partition, epoch, offset, value } = message;
            // What was lost meanwhile is processed all the same: the application did not look.
            around.oracle.seen((0, partition), offset, &value, &self.who);
            let sender = around.oracle.sender(&value);
            let key = key_of(&value).unwrap_or_default();
            around.groups.processed((partition, offset), key, sender);
            let held = self.held.get_mut(&partition).filter(|held| held.done == offset);
            if let Some(held) = held {
                (held.done, held.epoch) = (offset + 1, Some(epoch));
            }
            let next = self.in_hand.front().and_then(|next| self.held.get(&next.partition));
            if around.churn && !next.is_some_and(hurries) {
                return;
            }
        }
    }

    /// Acknowledges what is processed: now and then, and when a partition is to be given back.
    fn acknowledge(&mut self, engine: &mut Engine, all: bool) {
        for (partition, held) in &mut self.held {
            let wanted = all || (held.is_revoked && !held.is_sluggish);
            if let Some(epoch) = held.epoch.filter(|_| wanted && held.acked < held.done) {
                let (done, pending) = promise();
                let (at, up_to) = (PartitionId(*partition), Offset(held.done));
                engine.ack_up_to(self.handle, at, epoch, up_to, done);
                held.acked = held.done;
                self.acks.push(pending);
            }
        }
    }

    fn give_back(&mut self, engine: &mut Engine, around: &mut Around<'_>) {
        let (handle, in_hand) = (self.handle, &self.in_hand);
        self.held.retain(|partition, held| {
            let has_more = in_hand.iter().any(|message| message.partition == *partition);
            if !held.is_revoked || held.is_sluggish || has_more {
                return true;
            }
            engine.release(handle, PartitionId(*partition));
            if let (Some(link), Some(epoch)) = (around.link, held.epoch) {
                around.groups.offers((link, handle.0), *partition, (epoch, held.done));
            }
            false
        });
    }

    /// Moves the group back: to where everybody has been.
    fn seeks(&mut self, engine: &mut Engine, around: &mut Around<'_>) {
        let frontiers = (0..around.partitions).map(|partition| around.groups.frontier(partition));
        let to = around.dice.below(frontiers.min().unwrap_or(0) + 1);
        let seek =
            Seek { topic: topic_name(0), name: GROUP.to_string(), to: Start::Offset(Offset(to)) };
        let (done, pending) = promise();
        engine.ask(&seek, Repeat::Never, around.now + Duration::from_secs(20), done);
        self.seek = Some(pending);
    }

    pub(crate) fn describe(&self) -> String {
        let held: Vec<_> = self.held.iter().map(|(at, held)| (*at, held.done)).collect();
        let away = self.away_until.is_some();
        format!("{} has {held:?}, {} in hand, away {away}", self.who, self.in_hand.len())
    }
}
