//! Owns the bodies of state entries: what each means and its bytes. Never applies one. Driven by the
//! leader, which writes them, and by the fold, which reads them back.
//!
//! Every body begins with a version byte, 1. All numbers are little-endian, all bytes are consumed.
//!
//! ```text
//! Settle          u8 1 | u32 count | count x (16 subscription, u64 owner_epoch, u8 form, ..)
//!                 form 0: u64 up_to (everything below it)   form 1: reserved for ranges (queue mode)
//! Seek            u8 1 | 16 subscription | u64 owner_epoch (new) | u64 to
//! Subscribe       u8 1 | 16 subscription | u8 mode (0 stream, 1 queue: reserved) | u8 start | [u64 offset]
//!                 start 0: at this entry   start 1: at the offset that follows
//! SetOwner        u8 1 | 16 subscription | u64 owner_epoch (new)
//! Unsubscribe     u8 1 | 16 subscription
//! ProducerFence   u8 1 | i64 producer | u16 epoch
//! ProducerExpire  u8 1 | u32 count | count x i64 producer
//! EpochStart      u8 1 | u16 apply_version | u32 node | u64 incarnation
//! ```

use bytes::{Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::entry::EntryKind;
use postrider_protocol::types::{NodeId, Offset, ProducerEpoch, ProducerId, SubscriptionId};

/// The version of every body that this build writes.
const BODY_VERSION: u8 = 1;
const FORM_PREFIX: u8 = 0;
const MODE_STREAM: u8 = 0;
const START_LATEST: u8 = 0;
const START_OFFSET: u8 = 1;

/// One subscription's part of a `Settle` entry: everything below `up_to` is acknowledged.
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

/// What a state entry says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateCommand {
    /// Messages are acknowledged.
    Settle(Vec<Settled>),
    /// A subscription's position moves; owners before are fenced.
    Seek {
        /// Which.
        subscription: SubscriptionId,
        /// The epoch from here on.
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
            Self::Seek { .. } => EntryKind::Seek,
            Self::Subscribe { .. } => EntryKind::Subscribe,
            Self::SetOwner { .. } => EntryKind::SetOwner,
            Self::Unsubscribe { .. } => EntryKind::Unsubscribe,
            Self::ProducerFence { .. } => EntryKind::ProducerFence,
            Self::ProducerExpire(_) => EntryKind::ProducerExpire,
            Self::EpochStart { .. } => EntryKind::EpochStart,
        }
    }

    /// The entry's body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let mut out = Writer::new(&mut bytes);
        out.put(&BODY_VERSION);
        match self {
            Self::Settle(settled) => out.put(settled),
            Self::Seek { subscription, owner_epoch, to } => {
                out.put(subscription);
                out.put(owner_epoch);
                out.put(to);
            }
            Self::Subscribe { subscription, start } => {
                out.put(subscription);
                out.put(&MODE_STREAM);
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
            Self::EpochStart { apply_version, node, incarnation } => {
                out.put(apply_version);
                out.put(node);
                out.put(incarnation);
            }
        }
        bytes.freeze()
    }

    /// What the body of a state entry says; `None` for kinds that change nothing here.
    ///
    /// # Errors
    /// The kind is not known to this version of the fold, or the bytes are not a canonical body of it.
    pub fn decode(kind: EntryKind, body: &[u8]) -> Result<Option<Self>, CommandError> {
        let mut input = Reader::new(body);
        let version: u8 = input.take()?;
        if version != BODY_VERSION {
            return Err(CommandError::Version { kind, version });
        }
        let command = match kind {
            EntryKind::Settle => Self::Settle(input.take()?),
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
            EntryKind::EpochStart => Self::EpochStart {
                apply_version: input.take()?,
                node: input.take()?,
                incarnation: input.take()?,
            },
            EntryKind::TimeMark | EntryKind::StateHash => return Ok(None),
            EntryKind::Data
            | EntryKind::Delayed
            | EntryKind::Return
            | EntryKind::DeadIntent
            | EntryKind::DeadDone
            | EntryKind::Metadata => return Err(CommandError::Kind(kind)),
        };
        input.finish()?;
        Ok(Some(command))
    }

    fn take_subscribe(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let subscription = input.take()?;
        let mode: u8 = input.take()?;
        if mode != MODE_STREAM {
            return Err(DecodeError::Invalid("subscription mode"));
        }
        Ok(Self::Subscribe { subscription, start: input.take()? })
    }
}

impl Wire for Settled {
    const BYTES_MIN: usize = 16 + 8 + 1;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.subscription);
        out.put(&self.owner_epoch);
        out.put(&FORM_PREFIX);
        out.put(&self.up_to);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let subscription = input.take()?;
        let owner_epoch = input.take()?;
        if input.take::<u8>()? != FORM_PREFIX {
            return Err(DecodeError::Invalid("settled form"));
        }
        Ok(Self { subscription, owner_epoch, up_to: input.take()? })
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
    use super::*;

    fn one_of_each() -> Vec<StateCommand> {
        let subscription = SubscriptionId([7; 16]);
        vec![
            StateCommand::Settle(vec![
                Settled { subscription, owner_epoch: 3, up_to: Offset(9) },
                Settled { subscription: SubscriptionId([8; 16]), owner_epoch: 1, up_to: Offset(0) },
            ]),
            StateCommand::Seek { subscription, owner_epoch: 4, to: Offset(2) },
            StateCommand::Subscribe { subscription, start: SubscribeStart::Latest },
            StateCommand::Subscribe { subscription, start: SubscribeStart::Offset(Offset(5)) },
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
            StateCommand::decode(EntryKind::Return, &[1]),
            Err(CommandError::Kind(EntryKind::Return))
        );
        assert_eq!(
            StateCommand::decode(EntryKind::Seek, &[2]),
            Err(CommandError::Version { kind: EntryKind::Seek, version: 2 })
        );
        let mut settle = one_of_each()[0].encode().to_vec();
        settle[5 + 24] = 1;
        assert!(StateCommand::decode(EntryKind::Settle, &settle).is_err());
    }
}
