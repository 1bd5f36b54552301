//! Owns what becomes of leased messages: which acks and returns count, and what their entries change in
//! the leader's memory when they are committed, or refused. Never writes an entry. Driven by
//! [`crate::partition`].

use postrider_protocol::message::{AckRun, SettleException, SettleProblem};
use postrider_protocol::types::Offset;

use super::consumer_name::ConsumerName;
use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState, NOBODY};
use super::settled::OffsetRange;
use super::state::{DeadCause, DeadTarget, ReturnCause};

/// Which of the messages that a request names it may settle.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Judged {
    pub(crate) accepted: Vec<OffsetRange>,
    pub(crate) exceptions: Vec<SettleException>,
    /// Some were accepted before, in an entry that is not committed.
    pub(crate) repeats: bool,
}

/// What becomes of a message, once an entry says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It failed.
    Fail {
        offset: u64,
        failures: u32,
        due_ms: u64,
        cause: ReturnCause,
        reason: String,
        consumer: ConsumerName,
    },
    /// It is dead.
    Die {
        offset: u64,
        cause: DeadCause,
        failures: u32,
        attempts: u32,
        target: DeadTarget,
        reason: String,
        consumer: ConsumerName,
    },
}

/// Which hand-outs a request may speak of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speaks {
    /// Of leases, and of those that ended by themselves and did not go to somebody else.
    Ack,
    /// Of leases.
    Return,
    /// Of no lease of this leadership.
    Stale,
}

impl Dispatcher {
    /// Judges what a request says of messages that it calls leased to `member`.
    pub(crate) fn judge(
        &self,
        committed: Committed<'_>,
        member: u64,
        runs: &[AckRun],
        speaks: Speaks,
    ) -> Judged {
        let mut judged = Judged::default();
        for run in runs {
            let first = run.first.0;
            let end = first.saturating_add(u64::from(run.count));
            let mut at = first;
            for (offset, held) in self.held.range(first..end) {
                if at < *offset {
                    Self::judge_unheld(committed, at, *offset, &mut judged);
                }
                at = *offset + 1;
                let counts = match speaks {
                    Speaks::Ack => held.may_be_acked(member, run.attempt),
                    Speaks::Return => {
                        held.state == HeldState::Leased && held.is_of(member, run.attempt)
                    }
                    Speaks::Stale => false,
                };
                if counts && held.acking && self.is_evicting(*offset) {
                    // It is too old, or too many: an answer that it was acknowledged would be no truth.
                    push_exception(
                        &mut judged.exceptions,
                        *offset,
                        *offset + 1,
                        SettleProblem::Gone,
                    );
                } else if counts && held.acking {
                    judged.repeats = true;
                } else if counts {
                    push_range(&mut judged.accepted, *offset);
                } else {
                    let problem = match held.state {
                        HeldState::Dead | HeldState::Dying => SettleProblem::Gone,
                        HeldState::Leased
                        | HeldState::Waiting
                        | HeldState::Returning
                        | HeldState::GivenBack
                        | HeldState::Doomed => SettleProblem::LeaseLost,
                    };
                    push_exception(&mut judged.exceptions, *offset, *offset + 1, problem);
                }
            }
            if at < end {
                Self::judge_unheld(committed, at, end, &mut judged);
            }
        }
        judged
    }

    /// Messages that nobody has: settled ones, and others that are not handed out.
    fn judge_unheld(committed: Committed<'_>, start: u64, end: u64, judged: &mut Judged) {
        let missing = committed.queue.settled().missing_in(OffsetRange::new(start, end));
        let mut at = start;
        for part in missing {
            judge_settled(committed, at, part.start.0, judged);
            let lost = SettleProblem::LeaseLost;
            push_exception(&mut judged.exceptions, part.start.0, part.end.0, lost);
            at = part.end.0;
        }
        judge_settled(committed, at, end, judged);
    }

    /// The consumer has begun with what was handed out before this number.
    pub(crate) fn note_started(&mut self, member: u64, started: u64) {
        if let Some(member) = self.members.get_mut(member) {
            member.started = member.started.max(started.min(member.next_dispatch));
        }
    }

    /// Acks of these messages are accepted: none of them goes out again unless their entry is refused.
    pub(crate) fn acking(&mut self, ranges: &[OffsetRange]) {
        let mut waiting = Vec::new();
        let mut count = 0;
        for range in ranges {
            for (offset, held) in self.held.range_mut(range.start.0..range.end.0) {
                held.acking = true;
                count += 1;
                if held.state == HeldState::Leased {
                    self.members.released(held.member);
                } else {
                    waiting.push((*offset, *held));
                }
            }
        }
        for (offset, held) in waiting {
            self.unindex(offset, &held);
        }
        self.breaker.succeeded(self.policy.breaker, count);
    }

    /// The entry with these acks was refused.
    pub(crate) fn acks_refused(&mut self, ranges: &[OffsetRange]) {
        let (mut again, mut nobodys) = (Vec::new(), Vec::new());
        for range in ranges {
            for (offset, held) in self.held.range_mut(range.start.0..range.end.0) {
                if !std::mem::take(&mut held.acking) {
                    continue;
                }
                if held.state != HeldState::Leased {
                    again.push(*offset);
                } else if self.members.get(held.member).is_some() {
                    self.members.leased_again(held.member);
                    self.deadline_bound = 0;
                } else {
                    nobodys.push(*offset);
                }
            }
        }
        again.into_iter().for_each(|offset| self.index(offset));
        nobodys.into_iter().for_each(|offset| self.release(offset));
    }

    /// Messages are settled.
    pub(crate) fn settled(&mut self, ranges: &[OffsetRange], acked: bool) {
        for range in ranges {
            if !acked {
                self.evicted(*range);
            }
            self.forget(range.start.0, range.end.0);
        }
    }

    /// An eviction is committed, or refused. One entry may hold several neighbouring ones.
    fn evicted(&mut self, range: OffsetRange) {
        self.evicting.retain(|part| part.start < range.start || range.end < part.end);
        self.dropping &= self.is_shedding();
    }

    /// Nothing is to be known of these messages any more.
    fn forget(&mut self, start: u64, end: u64) {
        if self.policy.key_order {
            // One by one: what comes free may be the next of the range, and is looked up as held.
            loop {
                let first = self.held.range(start..end).next().map(|(offset, _)| *offset);
                let Some(offset) = first else { return };
                let held = self.held.remove(&offset).expect("it was just found");
                self.forgotten(offset, &held);
                self.unblock(offset);
            }
        }
        for (offset, held) in self.held.take_range(start, end) {
            self.forgotten(offset, &held);
        }
    }

    /// What else knows of a message that is held no more.
    fn forgotten(&mut self, offset: u64, held: &Held) {
        if !held.acking {
            self.unindex(offset, held);
        }
        if held.is_leased() {
            self.members.released(held.member);
        }
        self.breaker.released(offset);
    }

    /// A consumer has failed with a message, or was lost with it: says what is to be written.
    pub(crate) fn blame(
        &mut self,
        now_ms: u64,
        offset: u64,
        cause: ReturnCause,
        delay_ms: Option<u64>,
        reason: &str,
    ) -> Option<Verdict> {
        let (policy, target) = (&self.policy, self.target);
        let held = self.held.get_mut(&offset)?;
        let failures = u32::from(held.failures).saturating_add(1);
        let attempts = held.attempt;
        let target = target.filter(|_| failures >= policy.max_failures);
        held.state = match cause {
            _ if target.is_some() => HeldState::Dying,
            ReturnCause::LeaseExpired | ReturnCause::SessionLost => HeldState::Returning,
            ReturnCause::Nack | ReturnCause::Rejected => HeldState::GivenBack,
        };
        let consumer = self.members.name(held.member);
        self.members.released(held.member);
        self.breaker.failed(policy.breaker, offset, now_ms);
        let reason = reason.to_owned();
        if let Some(target) = target {
            let cause = DeadCause::MaxFailures;
            return Some(Verdict::Die {
                offset,
                cause,
                failures,
                attempts,
                target,
                reason,
                consumer,
            });
        }
        let wait_ms = delay_ms.unwrap_or_else(|| self.backoff_ms(offset, failures));
        let due_ms = if wait_ms == 0 { 0 } else { self.wall_ms.saturating_add(wait_ms) };
        Some(Verdict::Fail { offset, failures, due_ms, cause, reason, consumer })
    }

    /// A consumer rejects a message: says what is to be written.
    pub(crate) fn reject(&mut self, now_ms: u64, offset: u64, reason: &str) -> Option<Verdict> {
        let target = self.target;
        let held = self.held.get_mut(&offset)?;
        let (failures, attempts) = (u32::from(held.failures), held.attempt);
        let consumer = self.members.name(held.member);
        self.members.released(held.member);
        self.breaker.failed(self.policy.breaker, offset, now_ms);
        let reason = reason.to_owned();
        if let Some(target) = target {
            held.state = HeldState::Dying;
            let cause = DeadCause::Rejected;
            return Some(Verdict::Die {
                offset,
                cause,
                failures,
                attempts,
                target,
                reason,
                consumer,
            });
        }
        held.state = HeldState::GivenBack;
        let (due_ms, cause) = (0, ReturnCause::Rejected);
        Some(Verdict::Fail { offset, failures, due_ms, cause, reason, consumer })
    }

    /// The wait doubles with each failure; chance is taken from what is known, so that a replay waits
    /// as long.
    fn backoff_ms(&self, offset: u64, failures: u32) -> u64 {
        let (min, max) =
            (u64::from(self.policy.backoff_min_ms), u64::from(self.policy.backoff_max_ms));
        let doubled = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
        let wait = min.saturating_mul(doubled).min(max);
        let mut mixed = offset.wrapping_add(u64::from(failures) << 56) ^ 0x9e37_79b9_7f4a_7c15;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let percent = 80 + (mixed >> 32) % 41;
        wait.saturating_mul(percent) / 100
    }

    /// A consumer gives a message back that it has not begun with.
    pub(crate) fn give_up(&mut self, offset: u64) {
        if let Some(held) = self.held.get(&offset) {
            self.members.released(held.member);
            self.breaker.released(offset);
            self.release(offset);
        }
    }

    /// The failure of a message is committed.
    pub(crate) fn failed(&mut self, offset: u64, failures: u32, due_ms: u64, cause: ReturnCause) {
        let state = self.after_failure(failures, cause);
        let Some(held) = self.held.get_mut(&offset) else { return };
        if !matches!(held.state, HeldState::Returning | HeldState::GivenBack) {
            return;
        }
        if held.state == HeldState::GivenBack {
            held.member = NOBODY;
        }
        held.failures = held.failures.max(u16::try_from(failures).unwrap_or(u16::MAX));
        held.time = due_ms;
        held.state = state;
        held.doomed = state == HeldState::Doomed;
        self.index(offset);
    }

    /// The dead letter of a message is committed.
    pub(crate) fn dead(&mut self, offset: u64) {
        if let Some(held) = self.held.get_mut(&offset)
            && held.state == HeldState::Dying
        {
            held.state = HeldState::Dead;
            if held.killed {
                self.killed();
            }
            self.unblock(offset);
        }
    }

    /// A dead letter is published.
    pub(crate) fn buried(&mut self, offset: u64) {
        self.overdue.stalled = false;
        self.forget(offset, offset + 1);
    }

    /// The entry about a message was refused: it is as it was, and will be judged again.
    pub(crate) fn verdict_refused(&mut self, offset: u64) {
        self.overdue.stalled = false;
        let max_failures = self.policy.max_failures;
        let Some(held) = self.held.get_mut(&offset) else { return };
        match held.state {
            HeldState::Dying if held.doomed => held.state = HeldState::Doomed,
            // Too old, too many, or sent back by hand: that is judged anew.
            HeldState::Dying if held.killed => {
                // The policy may be another one meanwhile.
                held.doomed = u32::from(held.failures) >= max_failures;
                held.state = if held.doomed { HeldState::Doomed } else { HeldState::Waiting };
                held.killed = false;
                let is_new = held.attempt == 0 && held.failures == 0;
                self.killed();
                if is_new && !self.is_overdue(offset) {
                    self.put_back(offset);
                }
            }
            HeldState::Dying | HeldState::Returning | HeldState::GivenBack => {
                held.state = HeldState::Leased;
                if self.members.get(held.member).is_none() {
                    held.time = 0;
                } else if !held.acking {
                    self.members.leased_again(held.member);
                }
                self.deadline_bound = 0;
            }
            HeldState::Leased | HeldState::Waiting | HeldState::Doomed | HeldState::Dead => {}
        }
        self.index(offset);
    }

    /// What of a range can be evicted: nothing that a consumer has, or that is being written about. It is
    /// out of reach from here on.
    pub(crate) fn evicting(
        &mut self,
        committed: Committed<'_>,
        start: u64,
        end: u64,
    ) -> Vec<OffsetRange> {
        let end = end.min(committed.end);
        self.holes.retain(|hole| !(start <= hole.0 && hole.1 <= end));
        if start <= self.ahead_end && self.ahead_end < end {
            self.ahead_end = end;
        }
        let open = self.open_in(committed, OffsetRange::new(start, end));
        let ranges: Vec<OffsetRange> =
            open.into_iter().flat_map(|part| self.free_in(part)).collect();
        for range in &ranges {
            self.evicting.push(*range);
            self.take_out(range.start.0, range.end.0);
        }
        ranges
    }

    fn take_out(&mut self, start: u64, end: u64) {
        self.ahead.remove(start, end);
        let waiting: Vec<(u64, Held)> =
            self.held.range(start..end).map(|(offset, held)| (*offset, *held)).collect();
        for (offset, held) in waiting {
            self.unindex(offset, &held);
            if let Some(held) = self.held.get_mut(&offset) {
                held.acking = true;
            }
        }
        for offset in self.keys.entered(start, end) {
            self.unblock(offset);
        }
        // What came free of the same range.
        self.ahead.remove(start, end);
    }

    /// The entry with an eviction was refused: what was out of reach is read again.
    pub(crate) fn eviction_refused(&mut self, committed: Committed<'_>, ranges: &[OffsetRange]) {
        for range in ranges {
            self.evicted(*range);
        }
        self.acks_refused(ranges);
        if let Some(first) = ranges.first() {
            self.overdue.swept = self.overdue.swept.min(first.start.0);
            self.read_again_from(committed, first.start);
        }
    }

    /// Has everything from an offset on that is not held read again.
    pub(super) fn read_again_from(&mut self, committed: Committed<'_>, from: Offset) {
        let from = if self.policy.key_order {
            // The order of keys is that of reading: all of it is read again.
            self.ready.clear();
            self.forget_keys();
            committed.queue.floor().0
        } else {
            from.0
        };
        self.ahead.remove(from, u64::MAX);
        self.ahead_end = self.ahead_end.min(from);
        self.holes.retain(|hole| hole.1 <= from);
    }
}

fn judge_settled(committed: Committed<'_>, start: u64, end: u64, judged: &mut Judged) {
    let mut at = start;
    for gone in committed.queue.gone().parts_in(start, end) {
        push_exception(&mut judged.exceptions, at, gone.start.0, SettleProblem::AlreadyAcked);
        push_exception(&mut judged.exceptions, gone.start.0, gone.end.0, SettleProblem::Gone);
        at = gone.end.0;
    }
    push_exception(&mut judged.exceptions, at, end, SettleProblem::AlreadyAcked);
}

fn push_range(ranges: &mut Vec<OffsetRange>, offset: u64) {
    match ranges.last_mut() {
        Some(last) if last.end.0 == offset => last.end = Offset(offset + 1),
        Some(_) | None => ranges.push(OffsetRange::new(offset, offset + 1)),
    }
}

fn push_exception(
    exceptions: &mut Vec<SettleException>,
    start: u64,
    end: u64,
    problem: SettleProblem,
) {
    if start >= end {
        return;
    }
    let count = u32::try_from(end - start).expect("a part of a run");
    if let Some(last) = exceptions.last_mut()
        && last.first.0 + u64::from(last.count) == start
        && last.problem == problem
        && let Some(sum) = last.count.checked_add(count)
    {
        last.count = sum;
        return;
    }
    exceptions.push(SettleException { first: Offset(start), count, problem });
}
