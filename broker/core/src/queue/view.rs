//! Owns what people are told about a queue on one partition. Never changes anything. Driven by the
//! partition.

use std::time::Duration;

use postrider_protocol::message::{Expired, QueuePartition};
use postrider_protocol::types::{Offset, PartitionId, TimestampMs};

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState};
use super::state::{QueueState, Totals};
use super::{MemberKey, ms};
use crate::now::Now;

/// A queue on one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueStats {
    /// The numbers; `oldest_ready_ms` is 0 here, for only the log knows how old a message is.
    pub numbers: QueuePartition,
    /// The first message that could be handed out now.
    pub oldest_ready: Option<Offset>,
}

/// A consumer on one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueMember {
    /// Who.
    pub member: MemberKey,
    /// It is not away.
    pub connected: bool,
    /// Messages that it has.
    pub leased: u64,
    /// For how long it has had the oldest.
    pub oldest_lease: Duration,
}

/// What keeps a message; see `WhyMessageReply`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// One word.
    pub state: &'static str,
    /// A sentence for people, with the next step.
    pub text: String,
    /// Who holds it.
    pub holder: Option<MemberKey>,
    /// Since when; 0 if that is not known.
    pub since: TimestampMs,
    /// Until when; 0 if there is no end.
    pub until: TimestampMs,
    /// Hand-outs since the broker's start.
    pub attempts: u32,
    /// Failures.
    pub failures: u32,
    /// What the last consumer said.
    pub last_reason: String,
}

/// What the committed state alone tells.
pub(crate) fn stats_of(queue: &QueueState, end: Offset, partition: PartitionId) -> QueuePartition {
    let Totals { acked, dead, expired, evicted } = queue.totals();
    QueuePartition {
        partition,
        sub_epoch: queue.sub_epoch(),
        floor: queue.floor(),
        ready: queue.unsettled(end),
        leased: 0,
        delayed: 0,
        blocked: 0,
        dead_lettering: 0,
        acked,
        dead_lettered: dead,
        expired,
        evicted,
        oldest_ready_ms: 0,
        breaker_open: false,
    }
}

impl Dispatcher {
    pub(crate) fn stats(&self, committed: Committed<'_>, partition: PartitionId) -> QueueStats {
        let mut numbers = stats_of(committed.queue, Offset(committed.end), partition);
        for held in self.held.values() {
            match held.state {
                HeldState::Leased | HeldState::Returning | HeldState::GivenBack => {
                    numbers.leased += 1;
                }
                HeldState::Waiting if held.time > self.wall_ms => numbers.delayed += 1,
                HeldState::Waiting => {}
                HeldState::Doomed | HeldState::Dying | HeldState::Dead => {
                    numbers.dead_lettering += 1;
                }
            }
        }
        if self.bounds.expired == Expired::DeadLetter {
            numbers.dead_lettering += self.passed_over(committed, committed.end);
        }
        numbers.blocked = u64::try_from(self.keys.blocked()).unwrap_or(u64::MAX);
        let others = numbers.leased + numbers.delayed + numbers.dead_lettering + numbers.blocked;
        numbers.ready = numbers.ready.saturating_sub(others);
        numbers.breaker_open = self.breaker.is_open();
        QueueStats { numbers, oldest_ready: self.oldest_ready(committed) }
    }

    fn oldest_ready(&self, committed: Committed<'_>) -> Option<Offset> {
        let unread = (self.begun && self.ahead_end < committed.end).then_some(self.ahead_end);
        let fresh = self.ahead.first().map(|run| run.start).or(unread);
        let oldest = [self.ready.first().copied(), fresh].into_iter().flatten().min();
        if self.begun { oldest.map(Offset) } else { Some(committed.queue.floor()) }
            .filter(|offset| offset.0 < committed.end)
    }

    pub(crate) fn members(&self, now: Now) -> Vec<QueueMember> {
        let now_ms = ms(now.monotonic);
        let mut members: Vec<QueueMember> = self
            .members
            .iter()
            .map(|(key, member)| QueueMember {
                member: MemberKey(key),
                connected: member.lost_at.is_none(),
                leased: member.leased,
                oldest_lease: Duration::ZERO,
            })
            .collect();
        for held in self.held.values().filter(|held| held.is_leased()) {
            let at = members.binary_search_by_key(&held.member, |member| member.member.0);
            if let Some(member) = at.ok().and_then(|at| members.get_mut(at)) {
                let age = Duration::from_millis(now_ms.saturating_sub(held.time));
                member.oldest_lease = member.oldest_lease.max(age);
            }
        }
        members
    }

    pub(crate) fn why(&self, committed: Committed<'_>, offset: Offset, now: Now) -> Why {
        let queue = committed.queue;
        let mut why = Why {
            state: "ready",
            text: String::new(),
            holder: None,
            since: TimestampMs(0),
            until: TimestampMs(0),
            attempts: 0,
            failures: 0,
            last_reason: String::new(),
        };
        if let Some(failure) = queue.failures().get(&offset) {
            why.failures = failure.failures;
            why.last_reason.clone_from(&failure.reason);
            why.since = failure.last;
        }
        if offset.0 >= committed.end {
            why.state = "future";
            why.text =
                format!("the partition ends at {}: there is no such message yet", committed.end);
        } else if queue.settled().contains(offset) {
            self.why_settled(queue, offset, &mut why);
        } else {
            self.why_unsettled(queue, offset, now, &mut why);
        }
        why
    }

    fn why_settled(&self, queue: &QueueState, offset: Offset, why: &mut Why) {
        if queue.gone().contains(offset) || offset < queue.start() {
            why.state = "gone";
            why.text =
                "the message left the queue without an ack: dead-lettered, expired, dropped for newer ones, \
                        purged, sought past, or no longer kept"
                    .to_owned();
        } else {
            why.state = "acked";
            why.text = "the message was processed".to_owned();
        }
    }

    fn why_unsettled(&self, queue: &QueueState, offset: Offset, now: Now, why: &mut Why) {
        let waits = |held: &Held| held.state == HeldState::Waiting;
        if self.is_overdue(offset.0) && self.held.get(&offset.0).is_none_or(waits) {
            why.state = "expired";
            why.text = "it is older than the topic's TTL, and about to leave the queue".to_owned();
            return;
        }
        let Some(held) = self.held.get(&offset.0) else {
            match self.keys.blocker(offset.0) {
                Some(blocker) => {
                    why.state = "blocked";
                    why.text = format!("it waits for message {blocker} of the same key");
                }
                None => why.text = self.why_not_out(),
            }
            return;
        };
        why.attempts = held.attempt;
        match held.state {
            HeldState::Leased | HeldState::Returning | HeldState::GivenBack => {
                why.state = "leased";
                why.text = "a consumer has it; it comes back when the lease ends".to_owned();
                why.holder = (held.member != super::held::NOBODY).then_some(MemberKey(held.member));
                why.since = wall_of(held.time, now);
                why.until = wall_of(self.deadline(held), now);
            }
            HeldState::Waiting if held.time > self.wall_ms => {
                why.state = "delayed";
                why.text = "it failed and waits before it is handed out again".to_owned();
                why.until = TimestampMs(held.time);
            }
            HeldState::Waiting => match self.keys.blocker(offset.0) {
                Some(blocker) => {
                    why.state = "blocked";
                    why.text = format!("it waits for message {blocker} of the same key");
                }
                None => why.text = self.why_not_out(),
            },
            HeldState::Doomed | HeldState::Dying | HeldState::Dead => {
                why.state = "dead_lettering";
                why.text =
                    "it is on its way to the dead letter topic; if it stays, see the broker's \
                            log for why that cannot be written"
                        .to_owned();
                if let Some(letter) = queue.dead.get(&(queue.sub_epoch(), offset)) {
                    why.failures = letter.failures;
                    why.last_reason.clone_from(&letter.reason);
                    why.since = letter.last;
                }
            }
        }
    }

    fn why_not_out(&self) -> String {
        if self.policy.paused {
            "the queue is paused: resume it".to_owned()
        } else if self.breaker.is_open() {
            "the breaker is open: most messages failed lately; look at why, it probes by itself"
                .to_owned()
        } else if self.members.iter().next().is_none() {
            "no consumer is attached: start one".to_owned()
        } else if self.ready.is_empty() && self.room() == 0 {
            "as many messages are out as unsettled_max allows: settle some, or raise it".to_owned()
        } else {
            "it goes out as soon as a consumer has credit".to_owned()
        }
    }
}

/// The wall time of a moment in monotonic ms.
fn wall_of(moment_ms: u64, now: Now) -> TimestampMs {
    let now_ms = ms(now.monotonic);
    if moment_ms <= now_ms {
        TimestampMs(now.wall.0.saturating_sub(now_ms - moment_ms))
    } else {
        TimestampMs(now.wall.0.saturating_add(moment_ms - now_ms))
    }
}
