//! Owns the bodies of state entries: what each means and its bytes. Never applies one. Driven by the
//! leader, which writes them, and by the fold, which reads them back.
//!
//! Every body begins with a version byte: 1, or 2 of a Return or a DeadIntent in which a consumer is named; the
//! names then follow, `u32 count | count x string`, one per item, empty where none is known. All numbers are
//! little-endian, all bytes are consumed.
//!
//! ```text
//! Settle          u8 1 | u32 count | count x (16 subscription, u64 epoch, u8 form, ..)
//!                 form 0 (stream): u64 up_to (everything below it)
//!                 form 1 (queue):  u8 how (0 acked, 1 expired, 2 evicted)
//!                                  | u32 count | count x (v gap, v len)
//! Return          u8 1 | u32 count | count x (16 subscription, u64 sub_epoch, u64 offset, u32 failures
//!                 (with this one), u64 due (0: at once), u8 cause, string reason)
//!                 cause 0 nack   1 lease expired   2 session lost   3 rejected, target not known
//! DeadIntent      u8 1 | u32 count | count x (16 subscription, u64 sub_epoch, u64 offset, u8 cause,
//!                 u32 failures, u32 attempts, 16 target topic, u32 target partition, u64 sequence,
//!                 u64 first_ms, u64 last_ms, string reason)
//!                 cause 0 max failures   1 rejected   2 expired   3 overflow   4 redriven
//! DeadDone        u8 1 | u32 count | count x (16 subscription, u64 sub_epoch,
//!                                             u32 count | count x u64 offset)
//! Seek            u8 1 | 16 subscription | u64 epoch (new) | u64 to
//! Subscribe       u8 1 | 16 subscription | u8 mode (0 stream, 1 queue) | u8 start | [u64 offset]
//!                 start 0: at this entry   start 1: at the offset that follows
//! SetOwner        u8 1 | 16 subscription | u64 owner_epoch (new)
//! Unsubscribe     u8 1 | 16 subscription
//! ProducerFence   u8 1 | i64 producer | u16 epoch
//! ProducerExpire  u8 1 | u32 count | count x i64 producer
//! DelayCancel     u8 1 | u8 how (0 asked for, 1 lost) | u32 count | count x (u64 index, u32 place in the entry)
//! EpochStart      u8 1 | u16 apply_version | u32 node | u64 incarnation
//! ```
//! `epoch` is the owner epoch of a stream subscription, the subscription's epoch of a queue. `v` is a
//! canonical varint of 7 bits per byte; a gap is measured from the end of the run before, the first one
//! from zero. A reason has at most 256 bytes, a consumer's name 128.

use bytes::{Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::entry::EntryKind;
use postrider_protocol::message::DelayId;
use postrider_protocol::types::{NodeId, Offset, ProducerEpoch, ProducerId, SubscriptionId};

use super::queue_commands::{
    DeadDone, DeadIntent, Returned, SettledRuns, put_consumers, put_runs, take_consumers,
    take_settled_runs,
};
use crate::delay::CancelHow;
use crate::queue::ConsumerName;

/// The version of bodies that name no consumer.
pub(super) const BODY_VERSION: u8 = 1;
const BODY_VERSION_CONSUMERS: u8 = 2;
const FORM_PREFIX: u8 = 0;
const FORM_RUNS: u8 = 1;
const START_LATEST: u8 = 0;
const START_OFFSET: u8 = 1;

/// How a durable subscription hands out messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum SubscriptionMode {
    /// In order, to one owner, acknowledged as a prefix.
    #[default]
    Stream = 0,
    /// Each message to one of several consumers, acknowledged on its own.
    Queue = 1,
}

/// One subscription's part of a `Settle` entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// Of a stream.
    UpTo(Settled),
    /// Of a queue.
    Runs(SettledRuns),
}

/// A stream subscription's part of a `Settle` entry: everything below `up_to` is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The owner that acknowledged.
    pub owner_epoch: u64,
    /// Exclusive.
    pub up_to: Offset,
}

/// Where a durable subscription begins on one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscribeStart {
    /// At the log position of its own `Subscribe` entry.
    Latest,
    /// At an offset; the caller has resolved times and `earliest`.
    Offset(Offset),
}

impl SubscribeStart {
    /// The offset, when the `Subscribe` entry stands at `at`.
    pub(super) fn resolve(self, at: Offset) -> Offset {
        match self {
            Self::Latest => at,
            Self::Offset(offset) => offset,
        }
    }
}

/// What a state entry says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateCommand {
    /// Messages are acknowledged.
    Settle(Vec<Settlement>),
    /// Messages of queues failed.
    Return(Vec<Returned>),
    /// Messages of queues are to be published in dead letter topics.
    DeadIntent(Vec<DeadIntent>),
    /// Messages of queues are published in dead letter topics.
    DeadDone(Vec<DeadDone>),
    /// A subscription's position moves; owners before are fenced. Of a queue: leases before are void,
    /// what is unsettled below is evicted, everything from there on is unsettled.
    Seek {
        /// Which.
        subscription: SubscriptionId,
        /// The epoch from here on, of the owner or of the queue.
        owner_epoch: u64,
        /// The next offset to read.
        to: Offset,
    },
    /// A durable subscription begins; without effect if it exists.
    Subscribe {
        /// Which.
        subscription: SubscriptionId,
        /// From where.
        start: SubscribeStart,
        /// Stream or queue.
        mode: SubscriptionMode,
    },
    /// A stream subscription has a new owner; owners before are fenced.
    SetOwner {
        /// Which.
        subscription: SubscriptionId,
        /// The epoch from here on.
        owner_epoch: u64,
    },
    /// A durable subscription ends.
    Unsubscribe {
        /// Which.
        subscription: SubscriptionId,
    },
    /// Epochs of a producer below this one are refused.
    ProducerFence {
        /// Which.
        producer: ProducerId,
        /// The lowest epoch that may publish.
        epoch: ProducerEpoch,
    },
    /// Producer sessions are forgotten.
    ProducerExpire(Vec<ProducerId>),
    /// Delayed messages will not be released.
    DelayCancel {
        /// Why.
        how: CancelHow,
        /// Which; those that do not wait are passed over.
        ids: Vec<DelayId>,
    },
    /// A leadership begins.
    EpochStart {
        /// The rules by which the entries that follow are applied.
        apply_version: u16,
        /// The leader.
        node: NodeId,
        /// Its incarnation.
        incarnation: u64,
    },
}

impl StateCommand {
    /// The kind of entry that carries it.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        match self {
            Self::Settle(_) => EntryKind::Settle,
            Self::Return(_) => EntryKind::Return,
            Self::DeadIntent(_) => EntryKind::DeadIntent,
            Self::DeadDone(_) => EntryKind::DeadDone,
            Self::Seek { .. } => EntryKind::Seek,
            Self::Subscribe { .. } => EntryKind::Subscribe,
            Self::SetOwner { .. } => EntryKind::SetOwner,
            Self::Unsubscribe { .. } => EntryKind::Unsubscribe,
            Self::ProducerFence { .. } => EntryKind::ProducerFence,
            Self::ProducerExpire(_) => EntryKind::ProducerExpire,
            Self::DelayCancel { .. } => EntryKind::DelayCancel,
            Self::EpochStart { .. } => EntryKind::EpochStart,
        }
    }

    /// The entry's body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let mut out = Writer::new(&mut bytes);
        let consumers = self.consumers();
        out.put(if consumers.is_empty() { &BODY_VERSION } else { &BODY_VERSION_CONSUMERS });
        match self {
            Self::Settle(settled) => out.put(settled),
            Self::Return(returned) => out.put(returned),
            Self::DeadIntent(intents) => out.put(intents),
            Self::DeadDone(done) => out.put(done),
            Self::Seek { subscription, owner_epoch, to } => {
                out.put(subscription);
                out.put(owner_epoch);
                out.put(to);
            }
            Self::Subscribe { subscription, start, mode } => {
                out.put(subscription);
                out.put(mode);
                out.put(start);
            }
            Self::SetOwner { subscription, owner_epoch } => {
                out.put(subscription);
                out.put(owner_epoch);
            }
            Self::Unsubscribe { subscription } => out.put(subscription),
            Self::ProducerFence { producer, epoch } => {
                out.put(producer);
                out.put(epoch);
            }
            Self::ProducerExpire(producers) => out.put(producers),
            Self::DelayCancel { how, ids } => {
                out.put(&(*how as u8));
                out.put(ids);
            }
            Self::EpochStart { apply_version, node, incarnation } => {
                out.put(apply_version);
                out.put(node);
                out.put(incarnation);
            }
        }
        if !consumers.is_empty() {
            put_consumers(&mut out, consumers.into_iter());
        }
        bytes.freeze()
    }

    /// Who had the messages that this is about, one by one; empty if nobody is known.
    fn consumers(&self) -> Vec<&ConsumerName> {
        let names: Vec<&ConsumerName> = match self {
            Self::Return(returned) => returned.iter().map(|one| &one.consumer).collect(),
            Self::DeadIntent(intents) => intents.iter().map(|one| &one.letter.consumer).collect(),
            Self::Settle(_)
            | Self::DeadDone(_)
            | Self::Seek { .. }
            | Self::Subscribe { .. }
            | Self::SetOwner { .. }
            | Self::Unsubscribe { .. }
            | Self::ProducerFence { .. }
            | Self::ProducerExpire(_)
            | Self::DelayCancel { .. }
            | Self::EpochStart { .. } => Vec::new(),
        };
        if names.iter().all(|name| name.is_empty()) { Vec::new() } else { names }
    }

    /// What the body of a state entry says; `None` for kinds that change nothing here.
    ///
    /// # Errors
    /// The kind is not known to this version of the fold, or the bytes are not a canonical body of it.
    pub fn decode(kind: EntryKind, body: &[u8]) -> Result<Option<Self>, CommandError> {
        let mut input = Reader::new(body);
        let version: u8 = input.take()?;
        let may_name = matches!(kind, EntryKind::Return | EntryKind::DeadIntent);
        let names = may_name && version == BODY_VERSION_CONSUMERS;
        if version != BODY_VERSION && !names {
            return Err(CommandError::Version { kind, version });
        }
        let command = match kind {
            EntryKind::Settle => Self::Settle(input.take()?),
            EntryKind::Return => {
                let mut returned: Vec<Returned> = input.take()?;
                if names {
                    take_consumers(&mut input, returned.iter_mut().map(|one| &mut one.consumer))?;
                }
                Self::Return(returned)
            }
            EntryKind::DeadIntent => {
                let mut intents: Vec<DeadIntent> = input.take()?;
                if names {
                    let owners = intents.iter_mut().map(|one| &mut one.letter.consumer);
                    take_consumers(&mut input, owners)?;
                }
                Self::DeadIntent(intents)
            }
            EntryKind::DeadDone => Self::DeadDone(input.take()?),
            EntryKind::Seek => Self::Seek {
                subscription: input.take()?,
                owner_epoch: input.take()?,
                to: input.take()?,
            },
            EntryKind::Subscribe => Self::take_subscribe(&mut input)?,
            EntryKind::SetOwner => {
                Self::SetOwner { subscription: input.take()?, owner_epoch: input.take()? }
            }
            EntryKind::Unsubscribe => Self::Unsubscribe { subscription: input.take()? },
            EntryKind::ProducerFence => {
                Self::ProducerFence { producer: input.take()?, epoch: input.take()? }
            }
            EntryKind::ProducerExpire => Self::ProducerExpire(input.take()?),
            EntryKind::DelayCancel => Self::take_delay_cancel(&mut input)?,
            EntryKind::EpochStart => Self::EpochStart {
                apply_version: input.take()?,
                node: input.take()?,
                incarnation: input.take()?,
            },
            EntryKind::TimeMark | EntryKind::StateHash => return Ok(None),
            EntryKind::Data | EntryKind::Delayed | EntryKind::Metadata => {
                return Err(CommandError::Kind(kind));
            }
        };
        input.finish()?;
        if names && command.consumers().is_empty() {
            return Err(DecodeError::Invalid("names of nobody").into());
        }
        Ok(Some(command))
    }

    fn take_delay_cancel(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let how = match input.take::<u8>()? {
            0 => CancelHow::Asked,
            1 => CancelHow::Lost,
            _ => return Err(DecodeError::Invalid("reason of a cancel")),
        };
        Ok(Self::DelayCancel { how, ids: input.take()? })
    }

    fn take_subscribe(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let subscription = input.take()?;
        let mode = input.take()?;
        Ok(Self::Subscribe { subscription, start: input.take()?, mode })
    }
}

impl Wire for Settlement {
    const BYTES_MIN: usize = 16 + 8 + 1;

    fn put(&self, out: &mut Writer<'_>) {
        match self {
            Self::UpTo(Settled { subscription, owner_epoch, up_to }) => {
                out.put(subscription);
                out.put(owner_epoch);
                out.put(&FORM_PREFIX);
                out.put(up_to);
            }
            Self::Runs(SettledRuns { subscription, sub_epoch, how, runs }) => {
                out.put(subscription);
                out.put(sub_epoch);
                out.put(&FORM_RUNS);
                out.put(&(*how as u8));
                put_runs(out, runs.len(), runs.iter().copied(), 0);
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let subscription = input.take()?;
        let epoch = input.take()?;
        match input.take::<u8>()? {
            FORM_PREFIX => {
                let up_to = input.take()?;
                Ok(Self::UpTo(Settled { subscription, owner_epoch: epoch, up_to }))
            }
            FORM_RUNS => take_settled_runs(input, subscription, epoch).map(Self::Runs),
            _ => Err(DecodeError::Invalid("settled form")),
        }
    }
}

impl Wire for SubscriptionMode {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&(*self as u8));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::Stream),
            1 => Ok(Self::Queue),
            _ => Err(DecodeError::Invalid("subscription mode")),
        }
    }
}

impl Wire for SubscribeStart {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        match self {
            Self::Latest => out.put(&START_LATEST),
            Self::Offset(offset) => {
                out.put(&START_OFFSET);
                out.put(offset);
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            START_LATEST => Ok(Self::Latest),
            START_OFFSET => Ok(Self::Offset(input.take()?)),
            _ => Err(DecodeError::Invalid("subscription start")),
        }
    }
}

/// Why a state entry's body says nothing to this build. The partition must not be opened: what follows
/// would be folded on a wrong state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// The kind belongs to a later version of the broker.
    #[error("entries of kind {0:?} are not known to this version of the broker")]
    Kind(EntryKind),
    /// The body belongs to a later version of the broker.
    #[error("an entry of kind {kind:?} has body version {version}, which is not known here")]
    Version {
        /// The entry's kind.
        kind: EntryKind,
        /// Its body's version.
        version: u8,
    },
    /// The bytes are not a canonical body.
    #[error("the body of a state entry is malformed: {0}")]
    Body(#[from] DecodeError),
}

#[cfg(test)]
mod tests {
    use postrider_protocol::types::{PartitionId, Sequence, TimestampMs, TopicId};

    use super::*;
    use crate::queue::{DeadCause, DeadLetter, DeadTarget, OffsetRange, ReturnCause, SettleHow};

    fn one_of_each() -> Vec<StateCommand> {
        let subscription = SubscriptionId([7; 16]);
        vec![
            StateCommand::Settle(vec![
                Settlement::UpTo(Settled { subscription, owner_epoch: 3, up_to: Offset(9) }),
                Settlement::Runs(SettledRuns {
                    subscription: SubscriptionId([8; 16]),
                    sub_epoch: 1,
                    how: SettleHow::Acked,
                    runs: vec![OffsetRange::new(0, 3), OffsetRange::new(300, 301)],
                }),
            ]),
            StateCommand::Return(vec![Returned {
                subscription,
                sub_epoch: 2,
                offset: Offset(9),
                failures: 3,
                due: TimestampMs(77),
                cause: ReturnCause::SessionLost,
                reason: "out of memory".to_owned(),
                consumer: ConsumerName::new("worker-3"),
            }]),
            StateCommand::DeadIntent(vec![DeadIntent {
                subscription,
                letter: DeadLetter {
                    sub_epoch: 2,
                    offset: Offset(9),
                    cause: DeadCause::Rejected,
                    failures: 3,
                    attempts: 4,
                    target: DeadTarget { topic: TopicId([3; 16]), partition: PartitionId(1) },
                    sequence: Sequence(6),
                    first: TimestampMs(70),
                    last: TimestampMs(80),
                    reason: "no such customer".to_owned(),
                    consumer: ConsumerName::default(),
                },
            }]),
            StateCommand::DeadDone(vec![DeadDone {
                subscription,
                sub_epoch: 2,
                offsets: vec![Offset(9), Offset(4)],
            }]),
            StateCommand::Seek { subscription, owner_epoch: 4, to: Offset(2) },
            StateCommand::Subscribe {
                subscription,
                start: SubscribeStart::Latest,
                mode: SubscriptionMode::Stream,
            },
            StateCommand::Subscribe {
                subscription,
                start: SubscribeStart::Offset(Offset(5)),
                mode: SubscriptionMode::Queue,
            },
            StateCommand::SetOwner { subscription, owner_epoch: 5 },
            StateCommand::Unsubscribe { subscription },
            StateCommand::ProducerFence { producer: ProducerId(4), epoch: ProducerEpoch(2) },
            StateCommand::ProducerExpire(vec![ProducerId(1), ProducerId(2)]),
            StateCommand::EpochStart { apply_version: 1, node: NodeId(1), incarnation: 6 },
        ]
    }

    #[test]
    fn every_body_decodes_to_what_was_encoded() {
        for command in one_of_each() {
            let body = command.encode();
            assert_eq!(StateCommand::decode(command.kind(), &body), Ok(Some(command)));
        }
    }

    #[test]
    fn a_body_that_is_cut_or_continued_is_refused() {
        for command in one_of_each() {
            let body = command.encode();
            for len in 0..body.len() {
                assert!(StateCommand::decode(command.kind(), &body[..len]).is_err());
            }
            let longer = [&body[..], &[0]].concat();
            assert!(StateCommand::decode(command.kind(), &longer).is_err());
        }
    }

    #[test]
    fn kinds_and_forms_of_later_versions_are_refused() {
        assert_eq!(
            StateCommand::decode(EntryKind::Delayed, &[1]),
            Err(CommandError::Kind(EntryKind::Delayed))
        );
        assert_eq!(
            StateCommand::decode(EntryKind::Seek, &[2]),
            Err(CommandError::Version { kind: EntryKind::Seek, version: 2 })
        );
        assert_eq!(
            StateCommand::decode(EntryKind::Return, &[3]),
            Err(CommandError::Version { kind: EntryKind::Return, version: 3 })
        );
        let nobody = [2, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(
            StateCommand::decode(EntryKind::Return, &nobody).is_err(),
            "one form for each body"
        );
        let mut settle = one_of_each()[0].encode().to_vec();
        settle[5 + 24] = 2;
        assert!(StateCommand::decode(EntryKind::Settle, &settle).is_err());
    }
}
