//! Owns how a dispatcher begins: from the committed state, at a new leadership and after a seek. Never
//! remembers what a leadership before it handed out. Driven by the dispatcher and by the partition.

use postrider_protocol::message::{AckRun, QueuePolicy};
use postrider_protocol::types::Offset;

use super::dispatch::{Committed, Dispatcher};
use super::held::{Held, HeldState, NOBODY};
use super::state::{Failure, ReturnCause};
use crate::now::Now;

impl Dispatcher {
    /// Begins, if it has not begun.
    pub(crate) fn begin(&mut self, now: Now, committed: Committed<'_>) {
        self.see(now);
        if self.begun {
            return;
        }
        self.begun = true;
        let queue = committed.queue;
        self.ahead_end = queue.floor().0;
        for (offset, failure) in queue.failures() {
            let state = self.after_failure(failure.failures, failure.cause);
            self.held.insert(offset.0, held(failure, state));
        }
        for letter in queue.dead_letters() {
            let is_open =
                letter.sub_epoch == queue.sub_epoch() && !queue.settled().contains(letter.offset);
            if is_open {
                let dead = Held { state: HeldState::Dead, ..EMPTY };
                self.held.insert(letter.offset.0, dead);
            }
        }
        let held: Vec<u64> = self.held.keys().copied().collect();
        held.into_iter().for_each(|offset| self.index(offset));
        self.pass_over();
    }

    /// Where a message goes whose failure is committed.
    pub(super) fn after_failure(&self, failures: u32, cause: ReturnCause) -> HeldState {
        if failures >= self.policy.max_failures || cause == ReturnCause::Rejected {
            HeldState::Doomed
        } else {
            HeldState::Waiting
        }
    }

    /// Time goes on.
    pub(crate) fn see(&mut self, now: Now) {
        self.wall_ms = self.wall_ms.max(now.wall.0);
    }

    /// Forgets all leases, whose epoch is over; tells who had them.
    pub(crate) fn restart(&mut self) -> Vec<(u64, Vec<AckRun>)> {
        let mut lost: Vec<(u64, Vec<AckRun>)> = Vec::new();
        for (key, _) in self.members.iter() {
            let leased =
                self.held.iter().filter(|(_, held)| held.is_leased() && held.member == key);
            let mut runs = Vec::new();
            leased.for_each(|(offset, held)| push_ack_run(&mut runs, *offset, held.attempt));
            if !runs.is_empty() {
                lost.push((key, runs));
            }
        }
        self.members.all_released();
        self.held.clear();
        self.evicting.clear();
        self.dropping = false;
        self.killing = 0;
        self.ready.clear();
        self.delayed.clear();
        self.doomed.clear();
        self.overdue.swept = 0;
        self.overdue.late.clear();
        self.overdue.stalled = false;
        self.breaker.reset();
        self.deadline_bound = u64::MAX;
        self.read_again();
        self.handed_out = false;
        self.begun = false;
        lost
    }

    /// Reads ahead from the floor again; what is held stays held.
    fn read_again(&mut self) {
        self.ahead.clear();
        self.forget_keys();
        self.holes.clear();
        self.ready.clear();
    }

    /// The keys are to be read again; those of what is out before anything else goes out.
    pub(super) fn forget_keys(&mut self) {
        self.keys.clear();
        let out = self.held.iter().filter(|(_, held)| held.is_out());
        self.out_end = out.map(|(offset, _)| *offset + 1).last().unwrap_or(0);
    }

    /// Goes on by another policy.
    pub(crate) fn set_policy(&mut self, policy: QueuePolicy, committed: Option<Committed<'_>>) {
        let reorder = policy.key_order != self.policy.key_order;
        if policy.breaker != self.policy.breaker {
            self.breaker.reset();
        }
        self.policy = policy;
        // Shorter leases may end before the bound that was kept.
        self.deadline_bound = 0;
        let Some(committed) = committed.filter(|_| self.begun) else { return };
        if reorder {
            self.dropping |= self.is_shedding();
            self.read_again();
            self.ahead_end = committed.queue.floor().0;
        }
        self.judge_again(committed);
    }

    /// What has failed too often by one policy may not have by another.
    fn judge_again(&mut self, committed: Committed<'_>) {
        for (offset, failure) in committed.queue.failures() {
            let state = self.after_failure(failure.failures, failure.cause);
            let Some(known) = self.held.get_mut(&offset.0) else { continue };
            let moves = matches!(known.state, HeldState::Waiting | HeldState::Doomed);
            if !moves {
                continue;
            }
            let before = *known;
            known.state = state;
            known.doomed = state == HeldState::Doomed;
            known.time = if before.state == state { before.time } else { failure.due.0 };
            self.unindex(offset.0, &before);
            self.index(offset.0);
        }
        let waiting: Vec<u64> = self
            .held
            .iter()
            .filter(|(_, held)| held.state == HeldState::Waiting)
            .map(|(offset, _)| *offset)
            .collect();
        waiting.into_iter().for_each(|offset| self.index(offset));
    }
}

pub(super) const EMPTY: Held = Held {
    time: 0,
    dispatch: 0,
    member: NOBODY,
    weight: 0,
    attempt: 0,
    failures: 0,
    state: HeldState::Waiting,
    acking: false,
    doomed: false,
    killed: false,
};

fn held(failure: &Failure, state: HeldState) -> Held {
    Held {
        time: failure.due.0,
        failures: u16::try_from(failure.failures).unwrap_or(u16::MAX),
        state,
        doomed: state == HeldState::Doomed,
        ..EMPTY
    }
}

/// Adds a message to the last run if it continues it.
pub(super) fn push_ack_run(runs: &mut Vec<AckRun>, offset: u64, attempt: u32) {
    if let Some(last) = runs.last_mut()
        && last.first.0 + u64::from(last.count) == offset
        && last.attempt == attempt
        && let Some(sum) = last.count.checked_add(1)
    {
        last.count = sum;
        return;
    }
    runs.push(AckRun { first: Offset(offset), count: 1, attempt });
}
