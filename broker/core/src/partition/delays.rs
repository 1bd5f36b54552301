//! Owns the leader's side of delayed messages: their confirms, their release when they are due, their
//! cancels. Never reads a payload: the join does, between [`Partition::due_releases`] and
//! [`Partition::release`]. Driven by the join, at the latest with each tick.

use std::time::Duration;

use postrider_protocol::batch::Batch;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{AckLevel, CancelVerdict, DelayId, Outcome};
use postrider_protocol::trailer::{DelayRun, Trailer};
use postrider_protocol::types::{EntryIndex, Sequence, TimestampMs};

use super::command::StateCommand;
use super::effect::{
    Decision, Drafted, Effect, EntryDraft, PendingAppend, PublishReply, Reply, storage_failed,
};
use super::leader::Partition;
use super::producers::DataChange;
use super::state::{AppliedEntry, Change};
use crate::delay::{CancelHow, Due};
use crate::now::Now;

/// A batch that gets no offsets yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DelayedChange {
    /// As of every batch.
    pub data: DataChange,
    /// Not before.
    pub due: TimestampMs,
}

/// A batch that was delayed gets its offsets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReleasedChange {
    /// Messages, hence offsets, covered.
    pub record_count: u32,
    /// Which they were, in the order of the records.
    pub runs: Vec<DelayRun>,
}

/// The messages of a Delayed entry as they were read for their release.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A batch of those messages that are not cancelled: its own, if none is.
    Batch(Batch),
    /// It is damaged: nobody will ever read it.
    Lost,
    /// It cannot be read at this moment.
    Later,
}

impl<R: Clone> Partition<R> {
    /// Whether `count` more messages may wait here.
    pub(super) fn check_delayable(&self, count: u32) -> Result<(), ErrorBody> {
        let pending = self.state.delays().messages() + self.agenda.appended_messages();
        if pending + u64::from(count) <= self.limits.delayed_max {
            return Ok(());
        }
        Err(ErrorBody::new(
            ErrorCode::LimitExceeded,
            format!(
                "{pending} delayed messages wait on the partition, as many as allowed; publish this \
                 one later, or use more partitions"
            ),
        ))
    }

    /// Confirms a delayed batch by its id.
    pub(super) fn confirm_delayed(
        &mut self,
        entry: &AppliedEntry,
        delayed: &DelayedChange,
        reply: PublishReply<R>,
        effects: &mut Vec<Effect<R>>,
    ) {
        let DelayedChange { data, due } = delayed;
        self.agenda.schedule_committed(entry.index, *due, data.record_count);
        self.session_committed(entry, data, &reply);
        if reply.ack == AckLevel::None {
            effects.push(Effect::Released { route: reply.route, bytes: reply.bytes });
            return;
        }
        let outcome = Outcome::Delayed {
            id: DelayId { index: entry.index, position: 0 },
            append_time: entry.append_time,
            durability: self.acknowledged_durability(),
        };
        let sequences: (Sequence, u32) = (reply.base_sequence, data.seq_count);
        let run = self.run(data.producer, sequences, outcome);
        effects.push(Effect::Confirm { route: reply.route, run, bytes: reply.bytes });
    }

    /// Takes the entries that are due, in the order of their release. Each is to be read, and given to
    /// [`Partition::release`], in this order.
    pub fn due_releases(&mut self, now: Now) -> Vec<Due> {
        // A subscription that is to exist must not miss what is released before it does.
        if self.failed || !self.required.is_empty() {
            return Vec::new();
        }
        self.agenda.take_due(self.state.delays(), now)
    }

    /// Releases an entry that was taken and read: a Data entry with its messages, which names them. Nothing
    /// if it was cancelled meanwhile; what is left of it is then due again.
    ///
    /// # Panics
    /// If the batch does not hold as many messages as are not cancelled.
    pub fn release(&mut self, now: Now, due: &Due, payload: Payload) -> Option<PendingAppend<R>> {
        self.clock = now;
        if self.failed {
            return None;
        }
        let batch = match payload {
            Payload::Batch(batch) => batch,
            Payload::Lost => return self.release_lost(now, due),
            Payload::Later => {
                self.agenda.wait_again(due.index);
                self.agenda.pause(now);
                return None;
            }
        };
        if !self.agenda.may_release(self.state.delays(), due) {
            return None;
        }
        let runs = live_runs(due);
        let live: u32 = runs.iter().map(|run| run.count).sum();
        assert!(live == batch.record_count, "a release holds what is not cancelled, and no more");
        let draft = EntryDraft {
            kind: EntryKind::Data,
            flags: 0,
            leader_epoch: self.identity.leader_epoch,
            append_time: now.wall,
            record_count: batch.record_count,
            seq_count: 0,
            body: batch.body,
            body_crc: batch.crc,
            trailer: Trailer { released: runs.clone(), ..Trailer::default() }.encode(),
        };
        let change = Change::Released(ReleasedChange { record_count: batch.record_count, runs });
        let mut pending = PendingAppend::new(Drafted::new(draft, change, Reply::Nobody));
        self.put_epoch_start_first(now, &mut pending);
        Some(pending)
    }

    /// Takes out of the lane what nobody can read.
    fn release_lost(&mut self, now: Now, due: &Due) -> Option<PendingAppend<R>> {
        if !self.agenda.may_release(self.state.delays(), due) {
            return None;
        }
        self.agenda.wait_again(due.index);
        let ids = live_runs(due).into_iter().flat_map(|run| {
            let places = run.first..run.first + run.count;
            places.map(move |position| DelayId { index: run.index, position })
        });
        let command = StateCommand::DelayCancel { how: CancelHow::Lost, ids: ids.collect() };
        Some(self.pending_append(now, (Change::State(command), Reply::Nobody)))
    }

    /// Takes delayed messages back. The answer is [`Effect::DelaysCancelled`].
    pub fn cancel_delayed(
        &mut self,
        now: Now,
        ids: Vec<DelayId>,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if self.failed {
            effects.push(Effect::Refused { route, error: storage_failed() });
            return Decision::Done;
        }
        let lane = self.state.delays();
        if ids.iter().all(|id| lane.get(id.index).is_none()) {
            let verdicts = self.verdicts_of(&ids);
            effects.push(Effect::DelaysCancelled { route, verdicts });
            return Decision::Done;
        }
        // Of what is pending, or about to be released: the order of the log decides.
        let command = StateCommand::DelayCancel { how: CancelHow::Asked, ids };
        Decision::Append(self.pending_append(now, (Change::State(command), Reply::State(route))))
    }

    /// What a cancel comes to, by the committed state.
    pub(super) fn verdicts_of(&self, ids: &[DelayId]) -> Vec<CancelVerdict> {
        let lane = self.state.delays();
        ids.iter().map(|id| lane.verdict(*id)).collect()
    }

    /// When [`Partition::due_releases`] has something, by the monotonic clock; maybe it has nothing then.
    #[must_use]
    pub fn next_release(&self, now: Now) -> Option<Duration> {
        if self.failed { None } else { self.agenda.next_wake(now) }
    }

    /// The first time that a delayed message is due.
    #[must_use]
    pub fn next_due(&self) -> Option<TimestampMs> {
        self.agenda.next_due()
    }

    /// Counts appended entries of delayed messages.
    pub(super) fn delay_appended(&mut self, change: &Change) {
        match change {
            Change::Delayed(delayed) => {
                self.agenda.schedule_appended(delayed.data.record_count);
            }
            Change::Released(released) => {
                if let Some(run) = released.runs.first() {
                    self.agenda.release_appended(run.index);
                }
            }
            Change::State(StateCommand::DelayCancel { ids, .. }) => {
                ids.iter().for_each(|id| self.agenda.cancel_appended(id.index));
            }
            Change::State(_) | Change::Data(_) | Change::Nothing => {}
        }
    }

    pub(super) fn release_committed(
        &mut self,
        entry: &AppliedEntry,
        released: &ReleasedChange,
        effects: &mut Vec<Effect<R>>,
    ) {
        let Some(run) = released.runs.first() else { return };
        if let Some(due) = self.agenda.release_committed(run.index) {
            let late = Duration::from_millis(entry.append_time.0.saturating_sub(due.0));
            effects.push(Effect::DelaysReleased { count: released.record_count, late });
        }
    }

    pub(super) fn cancel_committed(&mut self, ids: &[DelayId]) {
        ids.iter().for_each(|id| self.agenda.cancel_committed(id.index));
    }

    /// The store did not take a release.
    pub(super) fn release_refused(&mut self, released: &ReleasedChange) {
        if let Some(run) = released.runs.first() {
            self.agenda.wait_again(run.index);
            self.agenda.pause(self.clock);
        }
    }
}

/// The messages of an entry that are not cancelled.
fn live_runs(due: &Due) -> Vec<DelayRun> {
    let mut runs = Vec::new();
    let mut first = 0;
    for end in due.cancelled.iter().copied().chain([due.count]) {
        if first < end {
            runs.push(DelayRun { index: due.index, first, count: end - first });
        }
        first = end + 1;
    }
    runs
}

/// The id of a delayed message that a session's run holds.
pub(super) fn id_in(index: EntryIndex, into: u64) -> DelayId {
    let position = u32::try_from(into).expect("a run's count fits u32");
    DelayId { index, position }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_out_what_is_cancelled() {
        let runs = |count, cancelled: &[u32]| {
            let (index, due) = (EntryIndex(1), TimestampMs(0));
            let runs = live_runs(&Due { index, due, count, cancelled: cancelled.to_vec() });
            runs.iter().map(|run| (run.first, run.count)).collect::<Vec<_>>()
        };
        assert_eq!(runs(3, &[]), [(0, 3)]);
        assert_eq!(runs(3, &[0]), [(1, 2)]);
        assert_eq!(runs(5, &[1, 2, 4]), [(0, 1), (3, 1)]);
        assert_eq!(runs(2, &[0, 1]), []);
    }
}
