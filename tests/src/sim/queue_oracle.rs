//! Owns the history of queue-mode subscriptions as it passed between broker and consumers, and judges it. Never
//! looks into the broker. Driven by the tap, in the order in which the broker said and heard things.
//!
//! | rule | broken when |
//! |---|---|
//! | B3 acks final | a message is handed out after its ack was confirmed |
//! | B7 failures | they fall, a failure is not counted, a message goes out that has failed too often or was rejected |
//! | B8 not before due | a message is handed out before its wait is over, or before its return is stored |
//! | B9 one lease | a message is handed out while another consumer's lease of it cannot have ended |
//! | B10 stale tokens | a request settles a message whose later lease somebody has |
//! | B12 purge | a message goes out that a confirmed purge had found, or a lease of an epoch before |
//! | C2 key order | a message overtakes an earlier one of its key that is not settled |
//! | C3 single active | two consumers hold messages of a partition |
//! | C4 order | first hand-outs are out of order |
//!
//! B11 (credit) is the tap's; B1, B2, B5, B12 and the dead letters are judged at the end, by `queues`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use postrider_core::Now;
use postrider_protocol::message::{
    AckRun, LeaseRun, QueuePolicy, ReturnAction, SettleProblem, TopicBounds,
};
use postrider_protocol::types::{MemberId, SubscriptionHandle};

/// A partition of a queue-mode subscription: the queue's number, and the partition.
pub(crate) type LanePlace = (usize, u32);

/// After so long without its connection a consumer's leases end.
const GRACE: Duration = Duration::from_secs(5);

/// Violations kept until the world takes them.
const VIOLATIONS_MAX: usize = 20;

/// Who holds something: a consumer on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Holder {
    pub(crate) member: MemberId,
    pub(crate) link: u64,
    pub(crate) handle: SubscriptionHandle,
}

/// A hand-out as it went out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandOut {
    pub(crate) holder: Holder,
    pub(crate) leader_epoch: u32,
    /// None: found again after a reconnect.
    pub(crate) dispatch_index: Option<u64>,
    pub(crate) sub_epoch: u64,
    pub(crate) now: Now,
}

/// One hand-out of one message.
#[derive(Clone, Copy, Debug)]
struct Seen {
    leader_epoch: u32,
    attempt: u32,
    failures: u32,
    dispatch_index: Option<u64>,
    now: Now,
}

/// The last lease of a message.
#[derive(Clone, Copy, Debug)]
struct Hold {
    holder: Holder,
    leader_epoch: u32,
    attempt: u32,
    failures: u32,
    since: Duration,
    renewed: Duration,
    gone_at: Option<Duration>,
}

#[derive(Debug, Default)]
struct Message {
    seen: Vec<Seen>,
    /// None once it may have ended.
    hold: Option<Hold>,
    /// The least failures of the next hand-out.
    failures: u32,
    /// Not before one of these, by the clock or by the wall.
    due: Option<Due>,
    ack_asked: bool,
    /// The commit index of the first confirmed ack.
    acked: Option<u64>,
    /// Somebody was told that it was acked before.
    told_acked: bool,
    reject_asked: bool,
    rejected: bool,
    /// A purge that is confirmed came after it.
    purged: bool,
    key: Option<Bytes>,
}

/// A queue-mode subscription on one partition.
#[derive(Debug, Default)]
struct Lane {
    messages: BTreeMap<u64, Message>,
    held: BTreeSet<u64>,
    by_key: BTreeMap<Bytes, BTreeSet<u64>>,
    leader_epoch: u32,
    /// Rises with each purge.
    sub_epoch: u64,
    /// One past the highest message that was handed out in this leadership.
    first_end: u64,
    /// The highest dispatch index that was told.
    index: u64,
}

/// What a request to settle does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum How {
    Ack,
    Return(ReturnAction),
}

/// A request to settle messages, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Settling {
    pub(crate) place: LanePlace,
    pub(crate) leader_epoch: u32,
    pub(crate) runs: Vec<AckRun>,
    pub(crate) how: How,
    pub(crate) now: Now,
    /// Messages whose later lease was out already.
    stale: BTreeSet<u64>,
    /// Messages that somebody had asked to ack before.
    ack_asked_before: BTreeSet<u64>,
    leader_is_current: bool,
}

/// A queue-mode subscription.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) topic: usize,
    pub(crate) subscription: Option<String>,
    pub(crate) policy: QueuePolicy,
    /// How old and how many its messages may be.
    pub(crate) bounds: TopicBounds,
    /// Somebody has purged it, or tried to.
    pub(crate) purged: bool,
}

/// How far the wall clock was ahead of the other one: since when, by how many milliseconds.
#[derive(Debug, Default)]
struct Clock(Vec<(Duration, u64)>);

impl Clock {
    fn tell(&mut self, now: Now) {
        let millis = u64::try_from(now.monotonic.as_millis()).expect("a short run");
        let ahead = now.wall.0 - millis;
        if self.0.last().is_none_or(|(_, last)| *last != ahead) {
            self.0.push((now.monotonic, ahead));
        }
    }

    /// The latest time that the wall clock showed between two moments.
    fn latest(&self, from: Duration, to: Duration) -> u64 {
        let mut end = to;
        let mut latest = 0;
        for (since, ahead) in self.0.iter().rev() {
            if *since <= to {
                let millis = u64::try_from(end.min(to).as_millis()).expect("a short run");
                latest = latest.max(millis + ahead);
            }
            if *since <= from {
                break;
            }
            end = *since;
        }
        latest
    }

    fn is_early(&self, due: Due, now: Duration) -> bool {
        now < due.monotonic && self.latest(due.from, now) < due.wall
    }
}

/// A message is not to be handed out before either of the clocks shows this.
#[derive(Clone, Copy, Debug)]
struct Due {
    from: Duration,
    monotonic: Duration,
    wall: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct QueueOracle {
    pub(crate) queues: Vec<Queue>,
    lanes: BTreeMap<LanePlace, Lane>,
    clock: Clock,
    violations: Vec<String>,
    pub(crate) figures: QueueFigures,
}

/// What the queues of a run went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueFigures {
    /// Messages handed out.
    pub leased: u64,
    /// Acks confirmed.
    pub acked: u64,
    /// Failures that consumers told, confirmed.
    pub nacked: u64,
    /// Messages rejected, confirmed.
    pub rejected: u64,
    /// Leases found again after a reconnect.
    pub resumed: u64,
    /// Leases that ended by themselves.
    pub lost: u64,
    /// Settlements that came too late.
    pub too_late: u64,
    /// Letters in the dead letter topics.
    pub letters: u64,
    /// Purges confirmed.
    pub purges: u64,
}

impl std::ops::AddAssign for QueueFigures {
    fn add_assign(&mut self, other: Self) {
        self.leased += other.leased;
        self.acked += other.acked;
        self.nacked += other.nacked;
        self.rejected += other.rejected;
        self.resumed += other.resumed;
        self.lost += other.lost;
        self.too_late += other.too_late;
        self.letters += other.letters;
        self.purges += other.purges;
    }
}

/// What is known of a message at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    pub(crate) handed_out: bool,
    pub(crate) ack_asked: bool,
    pub(crate) acked: bool,
    pub(crate) reject_asked: bool,
    pub(crate) failures: u32,
}

impl Hold {
    fn deadline(&self, policy: &QueuePolicy) -> Duration {
        let lease = Duration::from_millis(policy.lease_ms.into());
        let longest = Duration::from_millis(policy.lease_max_ms).max(lease);
        (self.since.max(self.renewed) + lease).min(self.since + longest)
    }

    fn may_have_ended(&self, now: Duration, policy: &QueuePolicy) -> bool {
        now >= self.deadline(policy) || self.gone_at.is_some_and(|at| now >= at + GRACE)
    }
}

fn offsets(first: u64, count: u32) -> std::ops::Range<u64> {
    first..first + u64::from(count)
}

impl QueueOracle {
    pub(crate) fn violate(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }

    pub(crate) fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    /// Time passes.
    pub(crate) fn tell_time(&mut self, now: Now) {
        self.clock.tell(now);
    }

    /// The highest dispatch index of a lane so far.
    pub(crate) fn index(&self, place: LanePlace) -> u64 {
        self.lanes.get(&place).map_or(0, |lane| lane.index)
    }

    /// The broker is a new process: no lease outlives it by itself.
    pub(crate) fn restarted(&mut self) {
        for lane in self.lanes.values_mut() {
            for offset in std::mem::take(&mut lane.held) {
                if let Some(message) = lane.messages.get_mut(&offset) {
                    message.hold = None;
                }
            }
            lane.first_end = 0;
        }
    }

    /// The key of a message that is being handed out.
    pub(crate) fn keyed(&mut self, place: LanePlace, offset: u64, key: Bytes) {
        let lane = self.lanes.entry(place).or_default();
        lane.messages.entry(offset).or_default().key = Some(key.clone());
        lane.by_key.entry(key).or_default().insert(offset);
    }

    /// Messages go to a consumer, or are found again by it.
    pub(crate) fn handed_out(&mut self, place: LanePlace, out: HandOut, run: LeaseRun) {
        let policy = self.queues[place.0].policy.clone();
        let mut wrong = Vec::new();
        let lane = self.lanes.entry(place).or_default();
        if out.sub_epoch < lane.sub_epoch {
            wrong.push(format!("B12 purge: epoch {} is over", out.sub_epoch));
        }
        lane.enter(out.sub_epoch);
        lane.leader_epoch = lane.leader_epoch.max(out.leader_epoch);
        lane.index = lane.index.max(out.dispatch_index.unwrap_or(0));
        if policy.single_active {
            lane.check_single(&policy, out, &mut wrong);
        }
        for offset in offsets(run.first.0, run.count) {
            lane.check_order(&policy, out, offset, run, &mut wrong);
            lane.check_keys(&policy, out, offset, &mut wrong);
            let message = lane.messages.entry(offset).or_default();
            message.check(&policy, out, run, &self.clock, &mut wrong);
            message.failures = message.failures.max(run.failures);
            message.due = None;
            let same =
                |seen: &&Seen| (seen.leader_epoch, seen.attempt) == (out.leader_epoch, run.attempt);
            let first = message.seen.iter().find(same).map(|seen| seen.now.monotonic);
            message.seen.push(Seen {
                leader_epoch: out.leader_epoch,
                attempt: run.attempt,
                failures: run.failures,
                dispatch_index: out.dispatch_index,
                now: out.now,
            });
            message.hold = Some(Hold {
                holder: out.holder,
                leader_epoch: out.leader_epoch,
                attempt: run.attempt,
                failures: run.failures,
                since: first.unwrap_or(out.now.monotonic),
                renewed: out.now.monotonic,
                gone_at: None,
            });
            lane.held.insert(offset);
            let told = if out.dispatch_index.is_some() { "lease" } else { "resume" };
            for what in wrong.drain(..) {
                let text = format!("{what}: {place:?} offset {offset}, {told} {run:?} of {out:?}");
                if self.violations.len() < VIOLATIONS_MAX {
                    self.violations.push(text);
                }
            }
        }
        match out.dispatch_index {
            Some(_) => self.figures.leased += u64::from(run.count),
            None => self.figures.resumed += u64::from(run.count),
        }
    }

    fn end_holds(&mut self, place: Option<LanePlace>, ends: impl Fn(&Hold) -> bool) {
        for (at, lane) in &mut self.lanes {
            if place.is_some_and(|place| place != *at) {
                continue;
            }
            let messages = &mut lane.messages;
            lane.held.retain(|offset| {
                let Some(message) = messages.get_mut(offset) else { return false };
                if message.hold.as_ref().is_some_and(&ends) {
                    message.hold = None;
                }
                message.hold.is_some()
            });
        }
    }

    fn change_holds(&mut self, mut change: impl FnMut(&QueuePolicy, &mut Option<Hold>)) {
        for ((queue, _), lane) in &mut self.lanes {
            let policy = &self.queues[*queue].policy;
            let messages = &mut lane.messages;
            lane.held.retain(|offset| {
                let Some(message) = messages.get_mut(offset) else { return false };
                change(policy, &mut message.hold);
                message.hold.is_some()
            });
        }
    }

    /// A consumer is told which leadership it is attached to.
    pub(crate) fn attached(&mut self, place: LanePlace, leader_epoch: u32, sub_epoch: u64) {
        let lane = self.lanes.entry(place).or_default();
        if sub_epoch > lane.sub_epoch {
            // Its purge may not be stored yet, and never be: then the epoch is not begun, but leases are void.
            lane.end_leases();
        }
        lane.leader_epoch = lane.leader_epoch.max(leader_epoch);
    }

    /// A consumer attaches: what it held is its own only if the reply says so.
    pub(crate) fn attaches(&mut self, queue: usize, member: MemberId) {
        let places: Vec<LanePlace> =
            self.lanes.keys().copied().filter(|place| place.0 == queue).collect();
        for place in places {
            self.end_holds(Some(place), |hold| hold.holder.member == member);
        }
    }

    /// A consumer leaves in order.
    pub(crate) fn leaves(&mut self, link: u64, handle: SubscriptionHandle) {
        self.end_holds(None, |hold| (hold.holder.link, hold.holder.handle) == (link, handle));
    }

    /// The broker missed a connection.
    pub(crate) fn disconnected(&mut self, now: Now, link: u64) {
        self.change_holds(|_, hold| {
            if let Some(hold) = hold.as_mut().filter(|hold| hold.holder.link == link) {
                hold.gone_at = Some(now.monotonic);
            }
        });
    }

    /// A consumer renews: not what has ended already, perhaps.
    pub(crate) fn renews(&mut self, now: Now, link: u64, handle: SubscriptionHandle) {
        self.change_holds(|policy, hold| {
            let Some(own) = hold.as_mut() else { return };
            if (own.holder.link, own.holder.handle) != (link, handle) {
            } else if now.monotonic >= own.deadline(policy) {
                *hold = None;
            } else {
                own.renewed = now.monotonic;
            }
        });
    }

    /// The broker tells that leases have ended.
    pub(crate) fn lost(&mut self, place: LanePlace, runs: &[AckRun]) {
        let Some(lane) = self.lanes.get_mut(&place) else { return };
        for run in runs {
            for offset in offsets(run.first.0, run.count) {
                let Some(message) = lane.messages.get_mut(&offset) else { continue };
                if message.hold.is_some_and(|hold| hold.attempt == run.attempt) {
                    message.hold = None;
                    lane.held.remove(&offset);
                }
                self.figures.lost += 1;
            }
        }
    }

    /// A request to settle messages reaches the broker.
    pub(crate) fn asks(
        &mut self,
        now: Now,
        place: LanePlace,
        member: MemberId,
        leader_epoch: u32,
        runs: Vec<AckRun>,
        how: How,
    ) -> Settling {
        let lane = self.lanes.entry(place).or_default();
        let leader_is_current = lane.leader_epoch == leader_epoch;
        let (mut stale, mut ack_asked_before) = (BTreeSet::new(), BTreeSet::new());
        for run in &runs {
            for offset in offsets(run.first.0, run.count) {
                let message = lane.messages.entry(offset).or_default();
                let last = message.seen.last();
                let newer = last.is_some_and(|seen| {
                    seen.leader_epoch == leader_epoch && seen.attempt > run.attempt
                });
                if newer {
                    stale.insert(offset);
                }
                if message.ack_asked {
                    ack_asked_before.insert(offset);
                }
                match &how {
                    How::Ack => message.ack_asked = true,
                    How::Return(ReturnAction::Reject { .. }) => message.reject_asked = true,
                    How::Return(_) => {}
                }
                let own = |hold: &Hold| hold.holder.member == member && hold.attempt == run.attempt;
                if message.hold.as_ref().is_some_and(own) {
                    message.hold = None;
                    lane.held.remove(&offset);
                }
            }
        }
        Settling { place, leader_epoch, runs, how, now, stale, ack_asked_before, leader_is_current }
    }

    /// The broker answers it.
    pub(crate) fn answers(
        &mut self,
        settling: Settling,
        commit_index: u64,
        problems: &BTreeMap<u64, SettleProblem>,
    ) {
        let place = settling.place;
        let policy = self.queues[place.0].policy.clone();
        if !settling.leader_is_current {
            self.violate(format!("B10 stale tokens: another leadership's, {settling:?}"));
        }
        let mut wrong = Vec::new();
        let Some(lane) = self.lanes.get_mut(&place) else { return };
        for run in &settling.runs {
            for offset in offsets(run.first.0, run.count) {
                let Some(message) = lane.messages.get_mut(&offset) else { continue };
                let before = wrong.len();
                match problems.get(&offset) {
                    Some(SettleProblem::AlreadyAcked) => {
                        let asked = settling.ack_asked_before.contains(&offset);
                        if !asked {
                            wrong.push("B10 stale tokens: acked before, by nobody".to_string());
                        }
                        message.told_acked = true;
                        self.figures.too_late += 1;
                    }
                    Some(_) => self.figures.too_late += 1,
                    None => {
                        if settling.stale.contains(&offset) {
                            wrong.push("B10 stale tokens: settled by an old lease".to_string());
                        }
                        match &settling.how {
                            How::Ack => {
                                message.confirm(commit_index, &mut wrong);
                                self.figures.acked += 1;
                            }
                            How::Return(action) => {
                                message.returned(
                                    &policy,
                                    &settling,
                                    (action, run.attempt, commit_index),
                                    &self.clock,
                                    &mut wrong,
                                );
                                let figures = &mut self.figures;
                                match action {
                                    ReturnAction::Release => {}
                                    ReturnAction::Nack { .. } => figures.nacked += 1,
                                    ReturnAction::Reject { .. } => figures.rejected += 1,
                                }
                            }
                        }
                    }
                }
                for what in &mut wrong[before..] {
                    *what = format!("{what}: {place:?} offset {offset}, {run:?}, {message:?}");
                }
            }
        }
        wrong.into_iter().for_each(|what| self.violate(what));
    }

    /// Somebody asks for a purge: tells what it will find at least.
    pub(crate) fn asks_purge(&mut self, queue: usize) -> Vec<(LanePlace, u64)> {
        self.queues[queue].purged = true;
        let seen =
            |(offset, message): (&u64, &Message)| (!message.seen.is_empty()).then_some(*offset + 1);
        self.lanes
            .iter()
            .filter(|(place, _)| place.0 == queue)
            .filter_map(|(place, lane)| Some((*place, lane.messages.iter().rev().find_map(seen)?)))
            .collect()
    }

    /// The purge is confirmed: nothing goes out again of what was there.
    pub(crate) fn purged(&mut self, ends: &[(LanePlace, u64)]) {
        self.figures.purges += 1;
        for (place, end) in ends {
            let Some(lane) = self.lanes.get_mut(place) else { continue };
            lane.messages.range_mut(..end).for_each(|(_, message)| message.purged = true);
        }
    }

    /// A client says that an ack is confirmed.
    pub(crate) fn told_acked(&mut self, place: LanePlace, offset: u64, who: &str) {
        let message = self.lanes.get(&place).and_then(|lane| lane.messages.get(&offset));
        if message.is_none_or(|message| message.acked.is_none() && !message.told_acked) {
            self.violate(format!(
                "{who} was told of an ack that nobody confirmed: {place:?} {offset}"
            ));
        }
    }

    /// What became of a message, as far as it was seen.
    pub(crate) fn fate(&self, place: LanePlace, offset: u64) -> Fate {
        let message = self.lanes.get(&place).and_then(|lane| lane.messages.get(&offset));
        let none = Message::default();
        let message = message.unwrap_or(&none);
        Fate {
            handed_out: !message.seen.is_empty(),
            ack_asked: message.ack_asked,
            acked: message.acked.is_some(),
            reject_asked: message.reject_asked,
            failures: message.failures,
        }
    }
}

impl Lane {
    /// With a new epoch all leases before are void.
    fn enter(&mut self, sub_epoch: u64) {
        if sub_epoch <= self.sub_epoch {
            return;
        }
        self.sub_epoch = sub_epoch;
        self.end_leases();
    }

    fn end_leases(&mut self) {
        for offset in std::mem::take(&mut self.held) {
            if let Some(message) = self.messages.get_mut(&offset) {
                message.hold = None;
            }
        }
    }

    fn check_single(&self, policy: &QueuePolicy, out: HandOut, wrong: &mut Vec<String>) {
        let other = self.held.iter().find(|offset| {
            let hold = self.messages.get(offset).and_then(|message| message.hold);
            hold.is_some_and(|hold| {
                hold.holder.member != out.holder.member
                    && !hold.may_have_ended(out.now.monotonic, policy)
            })
        });
        if let Some(offset) = other {
            wrong.push(format!("C3 single active: another one holds {offset}"));
        }
    }

    fn check_order(
        &mut self,
        policy: &QueuePolicy,
        out: HandOut,
        offset: u64,
        run: LeaseRun,
        wrong: &mut Vec<String>,
    ) {
        if out.dispatch_index.is_none() {
            return;
        }
        let is_new = self.messages.get(&offset).is_none_or(|message| message.seen.is_empty());
        let first = is_new && run.attempt == 1 && run.failures == 0;
        if first && !policy.key_order && offset < self.first_end {
            wrong.push(format!("C4 order: first handed out after {}", self.first_end - 1));
        }
        if first {
            self.first_end = self.first_end.max(offset + 1);
        }
    }

    fn check_keys(&self, policy: &QueuePolicy, out: HandOut, offset: u64, wrong: &mut Vec<String>) {
        let key = self.messages.get(&offset).and_then(|message| message.key.as_ref());
        let (true, Some(others)) = (policy.key_order, key.and_then(|key| self.by_key.get(key)))
        else {
            return;
        };
        for other in others {
            let Some(message) = self.messages.get(other) else { continue };
            if *other > offset && !message.seen.is_empty() {
                wrong.push(format!("C2 key order: {other} of its key went out before"));
            }
            let held = message.hold.is_some_and(|hold| {
                hold.leader_epoch == out.leader_epoch
                    && !hold.may_have_ended(out.now.monotonic, policy)
            });
            if *other < offset && held {
                wrong.push(format!("C2 key order: {other} of its key is leased"));
            }
        }
    }
}

impl Message {
    fn check(
        &self,
        policy: &QueuePolicy,
        out: HandOut,
        run: LeaseRun,
        clock: &Clock,
        wrong: &mut Vec<String>,
    ) {
        let now = out.now;
        if let Some(acked) = self.acked {
            wrong.push(format!("B3 acks final: confirmed at {acked}"));
        }
        if self.purged {
            wrong.push("B12 purge: it was purged".to_string());
        }
        if self.rejected {
            wrong.push("B7 failures: it was rejected".to_string());
        }
        if run.failures < self.failures {
            wrong.push(format!("B7 failures: they were {} before", self.failures));
        }
        if run.failures >= policy.max_failures {
            wrong.push(format!("B7 failures: {} are too many", policy.max_failures));
        }
        let resumed = out.dispatch_index.is_none();
        if !resumed && self.due.is_some_and(|due| clock.is_early(due, now.monotonic)) {
            wrong.push(format!("B8 not before due: {:?}", self.due));
        }
        let Some(hold) = self.hold.filter(|hold| hold.leader_epoch == out.leader_epoch) else {
            return;
        };
        if !hold.may_have_ended(now.monotonic, policy) {
            wrong.push(format!("B9 one lease: {hold:?}"));
        } else if !resumed && hold.gone_at.is_none() && run.failures <= hold.failures {
            wrong.push(format!("B7 failures: the end of {hold:?} is not counted"));
        }
    }

    fn confirm(&mut self, commit_index: u64, wrong: &mut Vec<String>) {
        if commit_index == 0 {
            wrong.push("B3 acks final: confirmed, and nothing is stored".to_string());
        }
        let later =
            self.seen.iter().find(|seen| seen.dispatch_index.is_some_and(|at| at >= commit_index));
        if let Some(later) = later {
            wrong.push(format!("B3 acks final: stored at {commit_index}, and {later:?}"));
        }
        self.acked.get_or_insert(commit_index);
    }

    fn returned(
        &mut self,
        policy: &QueuePolicy,
        settling: &Settling,
        (action, attempt, commit_index): (&ReturnAction, u32, u64),
        clock: &Clock,
        wrong: &mut Vec<String>,
    ) {
        let of =
            |seen: &&Seen| (seen.leader_epoch, seen.attempt) == (settling.leader_epoch, attempt);
        let failures = self.seen.iter().rev().find(of).map_or(0, |seen| seen.failures);
        let delay_ms = match action {
            ReturnAction::Release => return,
            ReturnAction::Reject { .. } => {
                self.rejected = true;
                u64::MAX / 2
            }
            ReturnAction::Nack { delay_ms, .. } => {
                let (min, max) =
                    (u64::from(policy.backoff_min_ms), u64::from(policy.backoff_max_ms));
                let wait = (min << failures.min(20)).min(max);
                delay_ms.unwrap_or(wait * 4 / 5)
            }
        };
        let due = Due {
            from: settling.now.monotonic,
            monotonic: settling.now.monotonic + Duration::from_millis(delay_ms),
            wall: settling.now.wall.0.saturating_add(delay_ms),
        };
        self.failures = self.failures.max(failures + 1);
        let after =
            |seen: &&Seen| seen.leader_epoch == settling.leader_epoch && seen.attempt > attempt;
        let mut later = self.seen.iter().filter(after).peekable();
        if later.peek().is_none() {
            self.due = Some(due);
        }
        for seen in later {
            if seen.dispatch_index.is_some_and(|at| at < commit_index) {
                wrong.push(format!("B8 not before due: returned at {commit_index}, but {seen:?}"));
            }
            if seen.dispatch_index.is_some() && clock.is_early(due, seen.now.monotonic) {
                wrong.push(format!("B8 not before due: {due:?}, but {seen:?}"));
            }
        }
    }
}
