//! Owns the bytes of what state entries say about queue subscriptions. Never applies one. Driven by
//! `command`, whose table shows the layouts.

use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::types::{
    Offset, PartitionId, Sequence, SubscriptionId, TimestampMs, TopicId,
};

use super::snapshot::{put_varint, take_varint};
use crate::queue::{
    CONSUMER_BYTES_MAX, ConsumerName, DeadCause, DeadLetter, DeadTarget, OffsetRange, ReturnCause,
    SettleHow, cut,
};

/// The longest reason that an entry holds, in bytes. Longer ones are cut.
pub const REASON_BYTES_MAX: usize = 256;

/// Messages of a queue subscription that are settled in one way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettledRuns {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The epoch in which they were leased.
    pub sub_epoch: u64,
    /// How.
    pub how: SettleHow,
    /// Which; in order, apart from each other.
    pub runs: Vec<OffsetRange>,
}

/// A message that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Returned {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The epoch in which it was leased.
    pub sub_epoch: u64,
    /// Which.
    pub offset: Offset,
    /// How often it has failed, with this time.
    pub failures: u32,
    /// Not to be handed out before this; 0 = at once.
    pub due: TimestampMs,
    /// Why it came back.
    pub cause: ReturnCause,
    /// What the consumer said, at most [`REASON_BYTES_MAX`].
    pub reason: String,
    /// Who it was.
    pub consumer: ConsumerName,
}

/// A message that is to be published in a dead letter topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadIntent {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The letter.
    pub letter: DeadLetter,
}

/// Messages that are published in their dead letter topics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadDone {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The epoch of the letters.
    pub sub_epoch: u64,
    /// Which.
    pub offsets: Vec<Offset>,
}

/// As much of a reason as is stored, cut between characters.
pub(super) fn reason_of(text: &str) -> String {
    cut(text, REASON_BYTES_MAX).to_owned()
}

pub(super) fn put_runs<'a>(
    out: &mut Writer<'_>,
    count: usize,
    runs: impl Iterator<Item = OffsetRange> + 'a,
    mut end: u64,
) {
    out.count(count);
    for run in runs {
        put_varint(out, run.start.0 - end);
        put_varint(out, run.count());
        end = run.end.0;
    }
}

/// Runs in order, none empty; but for the first, none touches the one before.
pub(super) fn take_runs(
    input: &mut Reader<'_>,
    from: u64,
) -> Result<Vec<OffsetRange>, DecodeError> {
    let invalid = DecodeError::Invalid("run of offsets");
    let count = input.count(2)?;
    let mut runs = Vec::with_capacity(count);
    let mut end = from;
    for nth in 0..count {
        let gap = take_varint(input)?;
        let len = take_varint(input)?;
        if len == 0 || (gap == 0 && nth > 0) {
            return Err(invalid);
        }
        let start = end.checked_add(gap).ok_or(invalid)?;
        end = start.checked_add(len).ok_or(invalid)?;
        runs.push(OffsetRange::new(start, end));
    }
    Ok(runs)
}

pub(super) fn take_settled_runs(
    input: &mut Reader<'_>,
    subscription: SubscriptionId,
    sub_epoch: u64,
) -> Result<SettledRuns, DecodeError> {
    let how = match input.take::<u8>()? {
        0 => SettleHow::Acked,
        1 => SettleHow::Expired,
        2 => SettleHow::Evicted,
        _ => return Err(DecodeError::Invalid("way of settling")),
    };
    Ok(SettledRuns { subscription, sub_epoch, how, runs: take_runs(input, 0)? })
}

pub(super) fn take_reason(input: &mut Reader<'_>) -> Result<String, DecodeError> {
    let reason: String = input.take()?;
    if reason.len() > REASON_BYTES_MAX {
        return Err(DecodeError::StringTooLong(reason.len()));
    }
    Ok(reason)
}

/// The names of consumers behind what they belong to, which knows nothing of them: it is older.
pub(super) fn put_consumers<'a>(
    out: &mut Writer<'_>,
    consumers: impl ExactSizeIterator<Item = &'a ConsumerName>,
) {
    out.count(consumers.len());
    consumers.for_each(|consumer| out.text(consumer.as_str()));
}

/// Gives the names to whom they belong; there are as many.
pub(super) fn take_consumers<'a>(
    input: &mut Reader<'_>,
    owners: impl ExactSizeIterator<Item = &'a mut ConsumerName>,
) -> Result<(), DecodeError> {
    let count = input.count(2)?;
    if count != owners.len() {
        return Err(DecodeError::Invalid("number of consumers"));
    }
    let mut last = ConsumerName::default();
    for owner in owners {
        let len: u16 = input.take()?;
        let name = input.text(usize::from(len))?;
        if name.len() > CONSUMER_BYTES_MAX {
            return Err(DecodeError::StringTooLong(name.len()));
        }
        // Neighbours often had the same one.
        if last.as_str() != name {
            last = ConsumerName::new(name);
        }
        *owner = last.clone();
    }
    Ok(())
}

impl Wire for ReturnCause {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&(*self as u8));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::Nack),
            1 => Ok(Self::LeaseExpired),
            2 => Ok(Self::SessionLost),
            3 => Ok(Self::Rejected),
            _ => Err(DecodeError::Invalid("cause of a return")),
        }
    }
}

impl Wire for DeadCause {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&(*self as u8));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::MaxFailures),
            1 => Ok(Self::Rejected),
            2 => Ok(Self::Expired),
            3 => Ok(Self::Overflow),
            4 => Ok(Self::Redriven),
            _ => Err(DecodeError::Invalid("cause of a dead letter")),
        }
    }
}

impl Wire for Returned {
    const BYTES_MIN: usize = 16 + 8 + 8 + 4 + 8 + 1 + 2;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.subscription);
        out.put(&self.sub_epoch);
        out.put(&self.offset);
        out.put(&self.failures);
        out.put(&self.due);
        out.put(&self.cause);
        out.put(&self.reason);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            subscription: input.take()?,
            sub_epoch: input.take()?,
            offset: input.take()?,
            failures: input.take()?,
            due: input.take()?,
            cause: input.take()?,
            reason: take_reason(input)?,
            // Stands behind them all.
            consumer: ConsumerName::default(),
        })
    }
}

impl Wire for DeadTarget {
    const BYTES_MIN: usize = 20;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.topic);
        out.put(&self.partition);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { topic: input.take::<TopicId>()?, partition: input.take::<PartitionId>()? })
    }
}

impl Wire for DeadLetter {
    const BYTES_MIN: usize = 8 + 8 + 1 + 4 + 4 + 20 + 8 + 8 + 8 + 2;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.sub_epoch);
        out.put(&self.offset);
        out.put(&self.cause);
        out.put(&self.failures);
        out.put(&self.attempts);
        out.put(&self.target);
        out.put(&self.sequence);
        out.put(&self.first);
        out.put(&self.last);
        out.put(&self.reason);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            sub_epoch: input.take()?,
            offset: input.take()?,
            cause: input.take()?,
            failures: input.take()?,
            attempts: input.take()?,
            target: input.take()?,
            sequence: input.take::<Sequence>()?,
            first: input.take()?,
            last: input.take()?,
            reason: take_reason(input)?,
            // Stands behind them all.
            consumer: ConsumerName::default(),
        })
    }
}

impl Wire for DeadIntent {
    const BYTES_MIN: usize = 16 + DeadLetter::BYTES_MIN;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.subscription);
        out.put(&self.letter);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { subscription: input.take()?, letter: input.take()? })
    }
}

impl Wire for DeadDone {
    const BYTES_MIN: usize = 16 + 8 + 4;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.subscription);
        out.put(&self.sub_epoch);
        out.put(&self.offsets);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { subscription: input.take()?, sub_epoch: input.take()?, offsets: input.take()? })
    }
}
