//! Owns a partition's state: the fold of its entries below the high watermark. Never reads a clock, a
//! setting or the leader's memory, so that every replica and every restart arrives at the same state.
//! Driven by recovery entry by entry, and by the leader with the same `apply`.

use std::collections::BTreeMap;

use bytes::Buf;
use postrider_protocol::batch::BATCH_FIELD_BYTES;
use postrider_protocol::codec::DecodeError;
use postrider_protocol::entry::{Entry, EntryKind, EntryView};
use postrider_protocol::trailer::Trailer;
use postrider_protocol::types::{
    EntryIndex, LeaderEpoch, Offset, ProducerEpoch, ProducerId, SubscriptionId, TimestampMs,
};

use super::command::{CommandError, Settlement, StateCommand, SubscriptionMode};
use super::delays::{DelayedChange, ReleasedChange};
use super::keys::EntryKeys;
use super::producers::{DataChange, Producers};
use super::queue_commands::{DeadDone, DeadIntent, Returned, SettledRuns};
use super::subscriptions::Subscriptions;
use crate::cursors::Position;
use crate::dedup::{DedupIndex, Place};
use crate::delay::DelayLane;
use crate::limits::EPOCHS_MAX;
use crate::queue::{Failure, QueueState};

/// The version of the rules in this file. An `EpochStart` names the version that applies to what
/// follows it; a higher one than this is refused. 2 added queue subscriptions, 3 delayed messages, 4 which way
/// messages left a queue, 5 dead letters of an overflow and redriven ones, 6 idempotency keys in trailers, 7 the names
/// of consumers; what 1 to 6 say is folded as before.
pub const APPLY_VERSION: u16 = 7;

/// What an entry changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A batch.
    Data(DataChange),
    /// A batch that gets its offsets later.
    Delayed(DelayedChange),
    /// A batch that was delayed gets its offsets.
    Released(ReleasedChange),
    /// A piece of state.
    State(StateCommand),
    /// Nothing that is folded here.
    Nothing,
}

/// A stored entry, as far as the fold looks at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedEntry {
    /// Its number in the log.
    pub index: EntryIndex,
    /// The offset of its first message, or of the next message.
    pub base_offset: Offset,
    /// When it was appended.
    pub append_time: TimestampMs,
    /// The leadership that wrote it.
    pub leader_epoch: LeaderEpoch,
    /// What it changes.
    pub change: Change,
    /// The idempotency keys of its messages.
    pub keys: EntryKeys,
}

impl AppliedEntry {
    /// What the fold needs of a stored entry, whose body's crc the caller has checked.
    ///
    /// # Errors
    /// The entry means something that this build does not know, or its body is malformed.
    pub fn from_view(entry: &EntryView<'_>) -> Result<Self, ApplyError> {
        let header = &entry.header;
        let mut keys = EntryKeys::default();
        let change = if let EntryKind::Data | EntryKind::Delayed = header.kind {
            let trailer = Trailer::decode(entry.trailer).map_err(ApplyError::Trailer)?;
            keys = entry_keys(&trailer, header.record_count)?;
            batch_change(entry, trailer)?
        } else {
            StateCommand::decode(header.kind, entry.body)?.map_or(Change::Nothing, Change::State)
        };
        Ok(Self {
            index: header.index,
            base_offset: header.base_offset,
            append_time: header.append_time,
            leader_epoch: header.leader_epoch,
            change,
            keys,
        })
    }

    /// The same of an owned entry.
    ///
    /// # Errors
    /// As [`AppliedEntry::from_view`].
    pub fn from_entry(entry: &Entry) -> Result<Self, ApplyError> {
        Self::from_view(&entry.view())
    }

    /// What names its message at `position`.
    pub(super) fn place(&self, position: u32) -> Place {
        match self.change {
            Change::Delayed(_) => Place::Delayed { index: self.index, position },
            Change::Data(_) | Change::Released(_) | Change::State(_) | Change::Nothing => {
                Place::Offset(Offset(self.base_offset.0 + u64::from(position)))
            }
        }
    }

    /// The position behind it.
    #[must_use]
    pub fn end(&self) -> Position {
        let records = match &self.change {
            Change::Data(data) => u64::from(data.record_count),
            Change::Released(released) => u64::from(released.record_count),
            Change::Delayed(_) | Change::State(_) | Change::Nothing => 0,
        };
        Position {
            index: EntryIndex(self.index.0 + 1),
            offset: Offset(self.base_offset.0 + records),
        }
    }
}

fn entry_keys(trailer: &Trailer, record_count: u32) -> Result<EntryKeys, ApplyError> {
    let keys = EntryKeys::from_trailer(&trailer.keys);
    match keys.keyed.last() {
        Some(last) if last.position >= record_count => {
            Err(ApplyError::Trailer(DecodeError::Invalid("position of an idempotency key")))
        }
        _ => Ok(keys),
    }
}

fn batch_change(entry: &EntryView<'_>, trailer: Trailer) -> Result<Change, ApplyError> {
    if entry.header.kind == EntryKind::Delayed {
        let due = trailer.deliver_at.ok_or(ApplyError::NotDue)?;
        return Ok(Change::Delayed(DelayedChange { data: data_change(entry)?, due }));
    }
    if trailer.released.is_empty() {
        return Ok(Change::Data(data_change(entry)?));
    }
    let (record_count, runs) = (entry.header.record_count, trailer.released);
    Ok(Change::Released(ReleasedChange { record_count, runs }))
}

/// The producer's fields among the 40 Kafka bytes (big-endian): `22 i64 producer id | 30 i16 epoch |
/// 32 i32 base sequence`.
fn data_change(entry: &EntryView<'_>) -> Result<DataChange, ApplyError> {
    let fields: &[u8; BATCH_FIELD_BYTES] =
        entry.body.first_chunk().ok_or(ApplyError::ShortBatch)?;
    let (_times_and_counts, mut fields) = fields.split_at(22);
    let (producer, epoch, sequence) = (fields.get_i64(), fields.get_u16(), fields.get_u32());
    Ok(DataChange {
        producer: ProducerId(producer),
        epoch: ProducerEpoch(epoch),
        sequence_low: sequence & (u32::MAX >> 1),
        seq_count: entry.header.seq_count,
        record_count: entry.header.record_count,
    })
}

/// Where a leadership's entries begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochRange {
    /// Which leadership.
    pub epoch: LeaderEpoch,
    /// Its `EpochStart` entry.
    pub start: Position,
}

/// `fold(apply, entries below the high watermark)`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartitionState {
    pub(super) end: Position,
    pub(super) append_time: TimestampMs,
    pub(super) apply_version: u16,
    pub(super) epochs: Vec<EpochRange>,
    pub(super) producers: Producers,
    pub(super) subscriptions: Subscriptions,
    /// What the queues among the subscriptions have settled.
    pub(super) queues: BTreeMap<SubscriptionId, QueueState>,
    /// The messages that wait for their time.
    pub(super) delays: DelayLane,
    /// The idempotency keys that are remembered.
    pub(super) dedup: DedupIndex,
}

impl PartitionState {
    /// The position behind the last applied entry.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// The append time of the last applied entry.
    #[must_use]
    pub fn append_time(&self) -> TimestampMs {
        self.append_time
    }

    /// The newest leaderships, oldest first.
    #[must_use]
    pub fn epochs(&self) -> &[EpochRange] {
        &self.epochs
    }

    /// The producer sessions.
    #[must_use]
    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    /// The durable subscriptions.
    #[must_use]
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// The state of a queue subscription.
    #[must_use]
    pub fn queue(&self, subscription: SubscriptionId) -> Option<&QueueState> {
        self.queues.get(&subscription)
    }

    /// The messages that wait for their time.
    #[must_use]
    pub fn delays(&self) -> &DelayLane {
        &self.delays
    }

    /// The idempotency keys that are remembered.
    #[must_use]
    pub fn dedup(&self) -> &DedupIndex {
        &self.dedup
    }

    /// The queue subscriptions, by id.
    pub fn queues(&self) -> impl Iterator<Item = (SubscriptionId, &QueueState)> {
        self.queues.iter().map(|(id, state)| (*id, state))
    }

    /// Applies the next entry. After an error the state is as before.
    ///
    /// # Errors
    /// The entry is not the next one, or it demands rules that this build does not know.
    pub fn apply(&mut self, entry: &AppliedEntry) -> Result<(), ApplyError> {
        let at = Position::new(entry.index, entry.base_offset);
        if at != self.end {
            return Err(ApplyError::Position { expected: self.end, found: at });
        }
        match &entry.change {
            Change::Data(data) => {
                self.producers.apply_data(data, entry.base_offset, entry.append_time);
            }
            Change::Delayed(DelayedChange { data, due }) => {
                self.producers.apply_delayed(data, entry.index, entry.append_time);
                self.delays.schedule(entry.index, *due, data.record_count);
            }
            Change::Released(released) => self.delays.release(&released.runs),
            Change::State(command) => self.apply_state(entry, command)?,
            Change::Nothing => {}
        }
        self.append_time = self.append_time.max(entry.append_time);
        self.remember(entry);
        self.end = entry.end();
        Ok(())
    }

    /// Time passes for keys with entries that have some. Until then old ones stay, and the leader takes none for a
    /// duplicate that is older than any would be kept.
    fn remember(&mut self, entry: &AppliedEntry) {
        let EntryKeys { window_ms, keyed } = &entry.keys;
        if keyed.is_empty() {
            return;
        }
        drop(self.dedup.advance(self.append_time, *window_ms));
        let items: Vec<_> =
            keyed.iter().map(|keyed| (keyed.fingerprint, entry.place(keyed.position))).collect();
        self.dedup.insert_many(&items, self.append_time);
    }

    fn apply_state(
        &mut self,
        entry: &AppliedEntry,
        command: &StateCommand,
    ) -> Result<(), ApplyError> {
        match command {
            StateCommand::EpochStart { apply_version, .. } => {
                self.start_epoch(entry, *apply_version)?
            }
            StateCommand::ProducerExpire(producers) => self.producers.expire(producers),
            StateCommand::ProducerFence { producer, epoch } => {
                self.producers.fence(*producer, *epoch, entry.append_time);
            }
            StateCommand::DelayCancel { how, ids } => self.delays.cancel(*how, ids),
            StateCommand::Settle(_)
            | StateCommand::Return(_)
            | StateCommand::DeadIntent(_)
            | StateCommand::DeadDone(_)
            | StateCommand::Seek { .. }
            | StateCommand::Subscribe { .. }
            | StateCommand::SetOwner { .. }
            | StateCommand::Unsubscribe { .. } => {
                self.subscriptions.apply(command, entry.base_offset);
                self.apply_queues(entry, command);
            }
        }
        Ok(())
    }

    /// What names a queue that is not there, or an epoch that is not its own, changes nothing.
    fn apply_queues(&mut self, entry: &AppliedEntry, command: &StateCommand) {
        let at = entry.base_offset;
        match command {
            StateCommand::Settle(settlements) => {
                for settlement in settlements {
                    if let Settlement::Runs(SettledRuns { subscription, sub_epoch, how, runs }) =
                        settlement
                        && let Some(queue) = self.queue_in(*subscription, *sub_epoch)
                    {
                        queue.settle(*how, runs, at);
                    }
                }
            }
            StateCommand::Return(returned) => {
                for returned in returned {
                    if let Some(queue) = self.queue_in(returned.subscription, returned.sub_epoch) {
                        queue.fail(returned.offset, failure(returned, entry.append_time), at);
                    }
                }
            }
            StateCommand::DeadIntent(intents) => {
                for DeadIntent { subscription, letter } in intents {
                    if let Some(queue) = self.queue_in(*subscription, letter.sub_epoch) {
                        queue.die(letter.clone(), at);
                    }
                }
            }
            StateCommand::DeadDone(done) => {
                for DeadDone { subscription, sub_epoch, offsets } in done {
                    if let Some(queue) = self.queues.get_mut(subscription) {
                        queue.bury(*sub_epoch, offsets, at);
                    }
                }
            }
            StateCommand::Seek { subscription, owner_epoch, to } => {
                if let Some(queue) = self.queues.get_mut(subscription) {
                    queue.seek(*owner_epoch, (*to).min(at), at);
                }
            }
            StateCommand::Subscribe { subscription, start, mode: SubscriptionMode::Queue } => {
                let is_queue = self
                    .subscriptions
                    .get(*subscription)
                    .is_some_and(|state| state.mode == SubscriptionMode::Queue);
                if is_queue {
                    let start = start.resolve(at).min(at);
                    self.queues.entry(*subscription).or_insert_with(|| QueueState::new(start));
                }
            }
            StateCommand::Unsubscribe { subscription } => {
                self.queues.remove(subscription);
            }
            StateCommand::Subscribe { mode: SubscriptionMode::Stream, .. }
            | StateCommand::SetOwner { .. }
            | StateCommand::ProducerFence { .. }
            | StateCommand::ProducerExpire(_)
            | StateCommand::DelayCancel { .. }
            | StateCommand::EpochStart { .. } => {}
        }
    }

    fn queue_in(&mut self, subscription: SubscriptionId, epoch: u64) -> Option<&mut QueueState> {
        self.queues.get_mut(&subscription).filter(|queue| queue.sub_epoch() == epoch)
    }

    fn start_epoch(&mut self, entry: &AppliedEntry, apply_version: u16) -> Result<(), ApplyError> {
        if apply_version > APPLY_VERSION {
            return Err(ApplyError::ApplyVersion(apply_version));
        }
        self.apply_version = apply_version;
        if self.epochs.len() == EPOCHS_MAX {
            self.epochs.remove(0);
        }
        let start = Position::new(entry.index, entry.base_offset);
        self.epochs.push(EpochRange { epoch: entry.leader_epoch, start });
        Ok(())
    }

    /// Goes on behind entries that are damaged or lost. What they said is missing from the state:
    /// batches in them, which nobody can read any more, are stored again if their producer retries
    /// them, and acknowledgements in them are forgotten.
    ///
    /// # Panics
    /// If `end` lies before the state's end.
    pub fn skip_damage(&mut self, end: Position) {
        assert!(self.end.at_or_before(end), "damage ends at {end:?}, before {:?}", self.end);
        self.end = end;
    }
}

fn failure(returned: &Returned, time: TimestampMs) -> Failure {
    Failure {
        failures: returned.failures,
        due: returned.due,
        cause: returned.cause,
        first: time,
        last: time,
        reason: returned.reason.clone(),
        consumer: returned.consumer.clone(),
    }
}

/// Why an entry cannot be applied. The partition must not be opened on a state without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The entry does not follow the last one.
    #[error("entry {found:?} does not follow {expected:?}")]
    Position {
        /// Where the next entry begins.
        expected: Position,
        /// Where this one does.
        found: Position,
    },
    /// The entries that follow are to be applied by rules of a later version of the broker.
    #[error("the log demands apply version {0}, above {APPLY_VERSION} of this broker")]
    ApplyVersion(u16),
    /// A trailer is malformed.
    #[error("the trailer of a batch is malformed: {0}")]
    Trailer(DecodeError),
    /// A Delayed entry lacks its time.
    #[error("a delayed batch does not say when it is due")]
    NotDue,
    /// A batch lacks its 40 field bytes.
    #[error("a stored batch is shorter than its fields")]
    ShortBatch,
    /// A state entry says nothing to this build.
    #[error(transparent)]
    Command(#[from] CommandError),
}
