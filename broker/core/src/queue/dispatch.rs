//! Owns who gets which message next: the leader's memory of one queue subscription. Never writes
//! anything that must survive (that is [`super::QueueState`], which it reads). Driven by
//! [`crate::partition`].
//!
//! Each unsettled message below `ahead_end` is in exactly one place: read ahead, held, blocked behind
//! its key, or passed over because it is too old. From `ahead_end` on, messages are held if they have failed before this leadership began, and
//! unread otherwise. So nothing is ever skipped, whatever is forgotten.
//!
//! Bounds: `held` has at most `unsettled_max` messages, and those with state from before; the rest is
//! bounded by what was read ahead.

use std::collections::BTreeSet;

use postrider_protocol::message::{LeaseRun, QueuePolicy, TopicBounds};
use postrider_protocol::types::{Offset, PartitionId, TopicId};

use super::ahead::{AheadRun, AheadRuns};
use super::breaker::{BreakerState, LetsOut};
use super::held::{Held, HeldState};
use super::keys::{Entered, Keys};
use super::members::Members;
use super::offset_map::OffsetMap;
use super::overdue::Overdue;
use super::settled::OffsetRange;
use super::state::{DeadTarget, QueueState};
use super::{Ahead, LeaseCredit, ms};
use crate::limits::{LEASE_MESSAGES_MAX, QUEUE_BLOCKED_MAX};
use crate::now::Now;

/// What is committed of the queue, and up to where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed<'a> {
    pub(crate) queue: &'a QueueState,
    /// The high watermark.
    pub(crate) end: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(super) policy: QueuePolicy,
    /// What the topic says of the age and the number of messages.
    pub(super) bounds: TopicBounds,
    pub(super) target: Option<DeadTarget>,
    /// At the last tick messages waited for it.
    pub(super) target_wanted: bool,
    /// Whether it has begun from a committed state.
    pub(super) begun: bool,
    pub(super) held: OffsetMap<Held>,
    /// Waiting, due, and not blocked.
    pub(super) ready: BTreeSet<u64>,
    /// Waiting, by due time in wall ms.
    pub(super) delayed: BTreeSet<(u64, u64)>,
    pub(super) doomed: BTreeSet<u64>,
    pub(super) overdue: Overdue,
    pub(super) ahead: AheadRuns,
    /// Where reading ahead goes on.
    pub(super) ahead_end: u64,
    /// What a read did not find, to be evicted. Bound: holes of one read; then no more is read.
    pub(crate) holes: Vec<(u64, u64)>,
    pub(super) keys: Keys,
    /// With key order nothing goes out before what was out already below this was read: its keys must be known.
    pub(super) out_end: u64,
    /// Something was handed out in this leadership or epoch.
    pub(super) handed_out: bool,
    pub(super) members: Members,
    pub(super) breaker: BreakerState,
    /// No lease ends before, in monotonic ms.
    pub(super) deadline_bound: u64,
    /// The last message that was picked was a retry.
    picked_retry: bool,
    /// Ranges that are evicted by entries that are not committed: not to be read again. Bound: ranges
    /// that a read did not find, or that fell out of the log.
    pub(super) evicting: Vec<OffsetRange>,
    /// Messages are being dropped that are not too old. If that is refused they go out after all, before newer
    /// ones: until it is known nothing goes out.
    pub(super) dropping: bool,
    /// Messages that were killed by entries that are not committed.
    pub(super) killing: usize,
    /// A consumer was told that there is nothing.
    pub(crate) idle: bool,
    /// The newest wall time seen, in ms.
    pub(super) wall_ms: u64,
}

/// What a request for messages comes to.
#[derive(Debug)]
pub(crate) enum Leased {
    Runs { runs: Vec<LeaseRun>, dispatch_number: u64, more: bool },
    LookAhead { from: u64, until: u64 },
    Idle,
    NoCredit,
}

/// Messages on their way out.
#[derive(Default)]
struct Picked {
    /// Start, end, weight of each if they go out for the first time.
    ranges: Vec<(u64, u64, Option<u32>)>,
    messages: u64,
    /// Those among them that go out for the first time.
    fresh: u64,
    bytes: u64,
}

impl Dispatcher {
    pub(crate) fn new(policy: QueuePolicy, bounds: TopicBounds) -> Self {
        Self {
            policy,
            bounds,
            target: None,
            target_wanted: false,
            begun: false,
            held: OffsetMap::default(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            doomed: BTreeSet::new(),
            overdue: Overdue::default(),
            ahead: AheadRuns::default(),
            ahead_end: 0,
            holes: Vec::new(),
            keys: Keys::default(),
            out_end: 0,
            handed_out: false,
            members: Members::default(),
            breaker: BreakerState::default(),
            deadline_bound: u64::MAX,
            evicting: Vec::new(),
            dropping: false,
            killing: 0,
            picked_retry: false,
            idle: false,
            wall_ms: 0,
        }
    }

    pub(crate) fn set_target(&mut self, target: Option<(TopicId, PartitionId)>) {
        self.target = target.map(|(topic, partition)| DeadTarget { topic, partition });
    }

    pub(crate) fn set_bounds(&mut self, bounds: TopicBounds) {
        self.bounds = bounds;
    }

    pub(crate) fn is_attached(&self, member: u64) -> bool {
        self.members.is_connected(member)
    }

    /// Hands out as many messages as the credit allows.
    pub(crate) fn lease(
        &mut self,
        now: Now,
        committed: Committed<'_>,
        member: u64,
        credit: LeaseCredit,
    ) -> Leased {
        self.begin(now, committed);
        if credit.messages == 0 || credit.bytes == 0 {
            self.idle = true;
            return Leased::NoCredit;
        }
        let most = match self.lets_out(member) {
            LetsOut::All => u64::from(credit.messages).min(LEASE_MESSAGES_MAX),
            LetsOut::One => 1,
            LetsOut::Nothing => 0,
        };
        let picked = if self.must_read_on() || self.dropping {
            Picked::default()
        } else {
            self.pick(most, credit.bytes)
        };
        if picked.messages == 0 {
            if most > 0 && !self.dropping && self.wants_to_read(committed.end) {
                return Leased::LookAhead { from: self.ahead_end, until: committed.end };
            }
            self.idle = true;
            return Leased::Idle;
        }
        let (runs, dispatch_number) = self.hand_out(ms(now.monotonic), member, picked);
        Leased::Runs { runs, dispatch_number, more: self.has_work(committed.end) }
    }

    fn lets_out(&mut self, member: u64) -> LetsOut {
        let stands_by = self.policy.single_active && self.members.active() != Some(member);
        if self.policy.paused || stands_by { LetsOut::Nothing } else { self.breaker.lets_out() }
    }

    /// Retries and new messages in turns, at most one retry for one new message, while both are there.
    fn pick(&mut self, most: u64, bytes_max: u64) -> Picked {
        let mut picked = Picked::default();
        while picked.messages < most {
            let retry = self.ready.first().copied();
            let room = self.room().saturating_sub(picked.fresh);
            let fresh = self.ahead.first().filter(|_| room > 0);
            let left = bytes_max.saturating_sub(picked.bytes);
            match (retry, fresh) {
                (Some(offset), fresh) if fresh.is_none() || !self.picked_retry => {
                    let Held { weight, failures, .. } = self.held[&offset];
                    let alone = self.goes_alone(failures);
                    if picked.messages > 0 && (alone || u64::from(weight) > left) {
                        break;
                    }
                    self.ready.remove(&offset);
                    self.picked_retry = true;
                    picked.push(offset, offset + 1, weight, None);
                    if alone {
                        break;
                    }
                }
                (retry, Some(run)) => {
                    let first = u64::from(picked.messages == 0);
                    let fits = left.checked_div(u64::from(run.weight)).unwrap_or(u64::MAX);
                    let most = (most - picked.messages).min(room).min(fits.max(first));
                    let most = if retry.is_some() { most.min(1) } else { most };
                    let Some(taken) = self.ahead.take_first(most).filter(|_| most > 0) else {
                        break;
                    };
                    self.picked_retry = false;
                    picked.push(taken.start, taken.end, taken.weight, Some(taken.weight));
                }
                (Some(_) | None, None) => break,
            }
        }
        picked
    }

    /// Half the way to its death a message is leased alone, so that it takes no other with it.
    fn goes_alone(&self, failures: u16) -> bool {
        failures > 0 && u32::from(failures) >= self.policy.max_failures.div_ceil(2)
    }

    /// How many new messages may be handed out before the queue has as many unsettled as allowed.
    pub(super) fn room(&self) -> u64 {
        let max = u64::from(self.policy.unsettled_max);
        let left = max.saturating_sub(u64::try_from(self.held.len()).unwrap_or(u64::MAX));
        if left == 0 { u64::from(self.is_stuck()) } else { left }
    }

    /// All that is held waits for an earlier message of its key: that one must go out, whatever the
    /// bound says.
    fn is_stuck(&self) -> bool {
        let waits = |held: &Held| held.state == HeldState::Waiting && !held.acking;
        self.policy.key_order
            && self.ready.is_empty()
            && self.delayed.is_empty()
            && self.held.values().all(waits)
    }

    fn hand_out(&mut self, now_ms: u64, member: u64, picked: Picked) -> (Vec<LeaseRun>, u64) {
        self.handed_out = true;
        let Picked { mut ranges, messages, .. } = picked;
        if !ranges.is_sorted() {
            ranges.sort_unstable();
        }
        let to = self.members.get_mut(member).expect("only an attached consumer gets messages");
        let dispatch_number = to.next_dispatch;
        to.next_dispatch += messages;
        to.leased += messages;
        let mut dispatch = dispatch_number;
        let mut runs: Vec<LeaseRun> = Vec::with_capacity(ranges.len());
        for (start, end, fresh) in ranges {
            match fresh {
                Some(weight) => {
                    push_run(&mut runs, start, end - start, 1, 0);
                    for offset in start..end {
                        self.held.insert(offset, leased(now_ms, dispatch, member, weight));
                        dispatch += 1;
                    }
                }
                None => {
                    let held = self.held.get_mut(&start).expect("a retry is held");
                    held.attempt = held.attempt.saturating_add(1);
                    (held.time, held.dispatch, held.member) = (now_ms, dispatch, member);
                    held.state = HeldState::Leased;
                    push_run(&mut runs, start, 1, held.attempt, u32::from(held.failures));
                    dispatch += 1;
                }
            }
        }
        if let Some(run) = runs.first() {
            self.breaker.probe(run.first.0);
        }
        let deadline = now_ms.saturating_add(u64::from(self.policy.lease_ms));
        self.deadline_bound = self.deadline_bound.min(deadline);
        (runs, dispatch_number)
    }

    /// Whether something that is out was not read: its key is not known.
    pub(super) fn must_read_on(&self) -> bool {
        self.policy.key_order && self.ahead_end < self.out_end
    }

    /// Whether reading on could bring something to hand out.
    fn wants_to_read(&self, end: u64) -> bool {
        // With key order a retry goes out when it was read, also if no new message may.
        let unread_retries = || {
            self.policy.key_order
                && self.held.range(self.ahead_end..).any(|(_, held)| !held.is_dying())
        };
        self.ahead_end < end
            && self.holes.is_empty()
            && if self.must_read_on() {
                true
            } else if self.room() > 0 {
                self.ahead.is_empty() && self.keys.blocked() < QUEUE_BLOCKED_MAX
            } else {
                unread_retries()
            }
    }

    /// Whether somebody who asks now may get something, or have to read for it.
    pub(crate) fn has_work(&self, end: u64) -> bool {
        let fresh = !self.ahead.is_empty() && self.room() > 0;
        !self.policy.paused
            && !self.dropping
            && self.breaker.lets_out() != LetsOut::Nothing
            && (!self.must_read_on() || self.wants_to_read(end))
            && (!self.ready.is_empty() || fresh || self.wants_to_read(end))
    }

    /// Whether a consumer that was told that there is nothing is to be woken, and which one if only one
    /// may get something.
    pub(crate) fn wake(&mut self, committed: Committed<'_>) -> Option<Option<u64>> {
        if !self.idle || !self.has_work(committed.end) {
            return None;
        }
        let mut only = None;
        if self.policy.single_active {
            // One that is away cannot be woken: the wake is kept until it is back, or followed.
            only = self.members.active().filter(|active| self.members.is_connected(*active));
            only?;
        }
        self.idle = false;
        Some(only)
    }

    /// Takes in what was read ahead from `from` to `next`. Without effect if somebody else was faster.
    pub(crate) fn feed(&mut self, committed: Committed<'_>, from: u64, ahead: &[Ahead], next: u64) {
        let next = next.min(committed.end);
        if from != self.ahead_end || next <= from || !self.begun {
            return;
        }
        self.ahead_end = next;
        let mut at = from;
        for entry in ahead {
            let end = entry.first.0.saturating_add(u64::from(entry.count)).min(next);
            let start = entry.first.0.max(at);
            if start >= end {
                continue;
            }
            if start > at {
                self.note_hole(committed, at, start);
            }
            self.take_in(committed, entry, start, end);
            at = end;
        }
        if at < next {
            self.note_hole(committed, at, next);
        }
    }

    fn note_hole(&mut self, committed: Committed<'_>, start: u64, end: u64) {
        if !self.open_in(committed, OffsetRange::new(start, end)).is_empty() {
            self.holes.push((start, end));
        }
    }

    /// The parts of a range that are neither settled nor about to be evicted.
    pub(super) fn open_in(&self, committed: Committed<'_>, range: OffsetRange) -> Vec<OffsetRange> {
        let mut open = committed.queue.settled().missing_in(range);
        for gone in &self.evicting {
            open = open.into_iter().flat_map(|part| part.without(*gone)).collect();
        }
        open
    }

    fn take_in(&mut self, committed: Committed<'_>, entry: &Ahead, start: u64, end: u64) {
        let weight = entry.bytes / entry.count.max(1);
        for part in self.open_in(committed, OffsetRange::new(start, end)) {
            if self.policy.key_order {
                for offset in part.start.0..part.end.0 {
                    let nth = usize::try_from(offset - entry.first.0).unwrap_or(usize::MAX);
                    let hash = entry.keys.get(nth).copied().unwrap_or(0);
                    self.take_in_keyed(offset, hash, weight);
                }
            } else {
                self.take_in_plain(part.start.0, part.end.0, weight);
            }
        }
    }

    fn take_in_plain(&mut self, start: u64, end: u64, weight: u32) {
        let mut at = start.max(self.overdue.before);
        for (offset, held) in self.held.range_mut(start..end) {
            held.weight = weight;
            if at < *offset {
                self.ahead.insert(AheadRun { start: at, end: *offset, weight });
            }
            at = at.max(*offset + 1);
        }
        if at < end {
            self.ahead.insert(AheadRun { start: at, end, weight });
        }
    }

    fn take_in_keyed(&mut self, offset: u64, hash: u64, weight: u32) {
        let passed_over = match self.held.get(&offset) {
            Some(held) => held.state == HeldState::Dead,
            None => self.is_overdue(offset),
        };
        if passed_over {
            return;
        }
        let out = self.held.get(&offset).is_some_and(Held::is_out);
        let is_first = hash == 0
            || match self.keys.enter(offset, hash, weight, out) {
                Entered::First => true,
                Entered::Blocked => false,
                Entered::Blocks(other) => {
                    self.ahead.remove(other, other + 1);
                    self.ready.remove(&other);
                    false
                }
            };
        match self.held.get_mut(&offset) {
            Some(held) => {
                held.weight = weight;
                self.index(offset);
            }
            None if is_first => {
                self.ahead.insert(AheadRun { start: offset, end: offset + 1, weight });
            }
            None => {}
        }
    }

    /// Files a waiting message under the time when it may go out.
    pub(super) fn index(&mut self, offset: u64) {
        let Some(held) = self.held.get(&offset) else { return };
        if held.acking {
            return;
        }
        let held = *held;
        if !held.is_out()
            && let Some(free) = self.keys.back(offset)
        {
            self.came_free(free);
        }
        match held.state {
            HeldState::Waiting if self.is_overdue(offset) => {
                self.overdue.late.insert(offset);
            }
            HeldState::Waiting if held.time > self.wall_ms => {
                self.delayed.insert((held.time, offset));
            }
            HeldState::Waiting => {
                self.delayed.remove(&(held.time, offset));
                if self.is_eligible(offset) {
                    self.ready.insert(offset);
                }
            }
            HeldState::Doomed => {
                self.doomed.insert(offset);
            }
            HeldState::Leased
            | HeldState::Returning
            | HeldState::GivenBack
            | HeldState::Dying
            | HeldState::Dead => {}
        }
    }

    /// Undoes [`Dispatcher::index`].
    pub(super) fn unindex(&mut self, offset: u64, held: &Held) {
        match held.state {
            HeldState::Waiting => {
                self.ready.remove(&offset);
                self.delayed.remove(&(held.time, offset));
                self.overdue.late.remove(&offset);
            }
            HeldState::Doomed => {
                self.doomed.remove(&offset);
            }
            HeldState::Leased
            | HeldState::Returning
            | HeldState::GivenBack
            | HeldState::Dying
            | HeldState::Dead => {}
        }
    }

    /// With key order a message goes out when it was read, and is the first of its key.
    fn is_eligible(&self, offset: u64) -> bool {
        !self.policy.key_order || (offset < self.ahead_end && self.keys.blocker(offset).is_none())
    }

    /// A message blocks its key no more: the next one may go out.
    pub(super) fn unblock(&mut self, offset: u64) {
        if !self.policy.key_order {
            return;
        }
        if let Some(free) = self.keys.leave(offset) {
            self.came_free(free);
        }
    }

    pub(super) fn is_evicting(&self, offset: u64) -> bool {
        self.evicting.iter().any(|part| part.holds(offset))
    }

    /// A message waits for no other one of its key any more.
    fn came_free(&mut self, (offset, weight): (u64, u32)) {
        if self.held.contains_key(&offset) {
            self.index(offset);
        } else if !self.is_overdue(offset) && !self.is_evicting(offset) {
            self.ahead.insert(AheadRun { start: offset, end: offset + 1, weight });
        }
    }

    /// Takes back what was handed out and not sent: as if it had never been handed out.
    pub(crate) fn give_back(&mut self, member: u64, runs: &[LeaseRun]) {
        for run in runs {
            let end = run.first.0.saturating_add(u64::from(run.count));
            let offsets: Vec<u64> = self
                .held
                .range(run.first.0..end)
                .filter(|(_, held)| held.is_leased() && held.is_of(member, run.attempt))
                .map(|(offset, _)| *offset)
                .collect();
            for offset in offsets {
                self.take_back(offset);
            }
        }
    }

    /// A leased message was never sent.
    pub(super) fn take_back(&mut self, offset: u64) {
        let is_ahead = offset < self.ahead_end && !self.is_overdue(offset);
        let Some(held) = self.held.get_mut(&offset) else { return };
        self.members.released(held.member);
        self.breaker.released(offset);
        held.attempt = held.attempt.saturating_sub(1);
        if held.attempt == 0 && held.failures == 0 && is_ahead {
            self.put_back(offset);
        } else {
            self.release(offset);
        }
    }

    /// A message that was held is new again: it goes out in its turn.
    pub(super) fn put_back(&mut self, offset: u64) {
        let Some(held) = self.held.remove(&offset) else { return };
        if offset >= self.ahead_end {
            return;
        }
        match self.keys.back(offset) {
            Some(free) => self.came_free(free),
            None if self.keys.blocker(offset).is_none() => {
                let weight = held.weight;
                self.ahead.insert(AheadRun { start: offset, end: offset + 1, weight });
            }
            None => {}
        }
    }

    /// A message is to be handed out again at once, unless it has failed too often meanwhile.
    pub(super) fn release(&mut self, offset: u64) {
        let max_failures = self.policy.max_failures;
        if let Some(held) = self.held.get_mut(&offset) {
            held.doomed = u32::from(held.failures) >= max_failures;
            held.state = if held.doomed { HeldState::Doomed } else { HeldState::Waiting };
            held.member = super::held::NOBODY;
            held.time = 0;
            self.index(offset);
        }
    }
}

impl Picked {
    fn push(&mut self, start: u64, end: u64, weight: u32, fresh: Option<u32>) {
        self.messages += end - start;
        self.fresh += if fresh.is_some() { end - start } else { 0 };
        self.bytes = self.bytes.saturating_add((end - start).saturating_mul(u64::from(weight)));
        self.ranges.push((start, end, fresh));
    }
}

fn leased(time: u64, dispatch: u64, member: u64, weight: u32) -> Held {
    Held {
        time,
        dispatch,
        member,
        weight,
        attempt: 1,
        failures: 0,
        state: HeldState::Leased,
        acking: false,
        doomed: false,
        killed: false,
    }
}

/// Adds messages to the last run if they continue it.
pub(super) fn push_run(
    runs: &mut Vec<LeaseRun>,
    first: u64,
    count: u64,
    attempt: u32,
    failures: u32,
) {
    let count = u32::try_from(count).expect("a hand-out is bounded");
    if let Some(last) = runs.last_mut()
        && last.first.0 + u64::from(last.count) == first
        && (last.attempt, last.failures) == (attempt, failures)
        && let Some(sum) = last.count.checked_add(count)
    {
        last.count = sum;
        return;
    }
    runs.push(LeaseRun { first: Offset(first), count, attempt, failures });
}
