//! Owns what can go wrong, one enum per operation: what failed, whether it may have happened all the same, and
//! whether trying again can help. Driven by the public operations.

use std::sync::Arc;

use postrider_protocol::{
    error::{ErrorBody, ErrorClass, Retry},
    message::{GapReason, SettleProblem},
    types::{Offset, PartitionId},
};

use crate::{
    core::{
        completion::PublishFailure, consumer::desk::SettleFailure, link::RequestFailure,
        producer::Ended, subscription::AckFailure,
    },
    payload::{DecodeError, EncodeError},
    url::UrlError,
};

fn is_retryable(error: &ErrorBody) -> bool {
    error.code.retry() != Retry::Never
}

/// One address that was tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// The host and port, or the resolved address.
    pub address: String,
    /// What happened.
    pub cause: String,
}

fn list(attempts: &[Attempt]) -> String {
    let lines = attempts.iter().map(|attempt| format!("{}: {}", attempt.address, attempt.cause));
    lines.collect::<Vec<_>>().join("; ")
}

/// Why `connect` failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// No address answered. Is the broker running there? `postrider server` starts one.
    #[error("no broker can be reached ({}); start one with `postrider server`, or correct the URL", list(.0))]
    Unreachable(Vec<Attempt>),
    /// A broker answered and refused the connection.
    #[error("the broker refused the connection: {0}")]
    Refused(ErrorBody),
    /// `connect_timeout` ended.
    #[error("no broker answered in time ({}); check the address and the network", list(.0))]
    TimedOut(Vec<Attempt>),
    /// The client has no random numbers: the operating system gives none.
    #[error("the operating system gives no random numbers: {0}")]
    NoRandomness(String),
}

impl ConnectError {
    /// Whether trying again later can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) => true,
            Self::Refused(error) => is_retryable(error),
            Self::Url(_) | Self::NoRandomness(_) => false,
        }
    }
}

/// Why a producer, reader or subscriber could not be opened. Nothing was changed in the broker.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The broker refused; the text says why and what to do.
    #[error("{0}")]
    Refused(ErrorBody),
    /// No broker answered in time.
    #[error("{0}")]
    TimedOut(ErrorBody),
    /// An option is out of its range.
    #[error("the option {option} must be {range}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    NoRandomness(String),
    /// It could not be asked which topics there are, or the subscription could not be created.
    #[error("{0}")]
    Asked(AdminError),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl OpenError {
    pub(crate) fn from_admin(error: AdminError) -> Self {
        match error {
            AdminError::Refused(error) => Self::from_body(error),
            AdminError::Closed => Self::Closed,
            error => Self::Asked(error),
        }
    }

    pub(crate) fn from_body(error: ErrorBody) -> Self {
        if error.code.class() == ErrorClass::Unknown {
            Self::TimedOut(error)
        } else {
            Self::Refused(error)
        }
    }

    /// Whether trying again later can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(error) => is_retryable(error),
            Self::TimedOut(_) | Self::Asked(_) => true,
            Self::Option { .. } | Self::NoRandomness(_) | Self::Closed => false,
        }
    }

    /// What the broker said, if it said something.
    #[must_use]
    pub fn broker_error(&self) -> Option<&ErrorBody> {
        match self {
            Self::Refused(error) | Self::TimedOut(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a message has no receipt. All variants but [`SendError::Unknown`] mean: definitely not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The broker refused it: definitely not stored.
    #[error("the message was rejected and is not stored: {0}")]
    Rejected(ErrorBody),
    /// It may or may not be stored. Sending it again may store it twice.
    #[error("it is not known whether the message is stored: {0}")]
    Unknown(ErrorBody),
    /// `delivery_timeout` ended before the message was ever sent: definitely not stored.
    #[error(
        "the message could not be sent within delivery_timeout and is not stored: no broker was reachable"
    )]
    NotSent,
    /// The message is larger than the broker accepts.
    #[error(
        "the message has up to {bytes} bytes, the broker accepts {max}; publish a reference instead, or raise the limit of the broker"
    )]
    TooLarge {
        /// Its encoded size, at most.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The message has more than 1,024 headers.
    #[error("the message has more than 1024 headers")]
    TooManyHeaders,
    /// The idempotency key is empty or longer than 256 bytes.
    #[error("the idempotency key has {bytes} bytes; it must have 1 to 256")]
    BadIdempotencyKey {
        /// Its length.
        bytes: usize,
    },
    /// An atomic batch has no message.
    #[error("an atomic batch has at least one message")]
    Empty,
    /// A message of an atomic batch has a time of delivery.
    #[error("an atomic batch is delivered at once: its messages cannot have deliver_at")]
    DelayedAtomic,
    /// The messages of an atomic batch belong to more than one partition.
    #[error("the messages of an atomic batch have partitions or keys of more than one partition")]
    Scattered,
    /// The topic has no such partition.
    #[error("the topic has {partitions} partitions, numbered from 0; the message names another")]
    NoPartition {
        /// How many it has.
        partitions: u32,
    },
    /// The value could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The broker has ended the producer; build a new one.
    #[error("the producer has ended: {0}")]
    Ended(ErrorBody),
    /// The producer or the client was closed.
    #[error("the producer was closed")]
    Closed,
}

impl SendError {
    pub(crate) fn from_failure(failure: &PublishFailure) -> Self {
        match failure {
            PublishFailure::Rejected(error) => Self::Rejected(error.clone()),
            PublishFailure::Unknown(error) => Self::Unknown(error.clone()),
            PublishFailure::NotSent => Self::NotSent,
            PublishFailure::Closed => Self::Closed,
        }
    }

    pub(crate) fn from_ended(ended: Ended) -> Self {
        match ended {
            Ended::Closed => Self::Closed,
            Ended::Refused(error) => Self::Ended(error),
        }
    }

    /// Whether the message may be stored all the same.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether sending the same message again later can help. After [`SendError::Unknown`] it may store it
    /// twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(error) => is_retryable(error),
            Self::Unknown(_) | Self::NotSent => true,
            _ => false,
        }
    }
}

/// Why `try_enqueue` did not take a message. The record comes back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError<R> {
    /// `max_in_flight_bytes` is reached, or others wait for room.
    #[error("the producer holds max_in_flight_bytes of unconfirmed messages")]
    Full(R),
    /// It can never be taken.
    #[error("{1}")]
    Failed(R, #[source] SendError),
}

impl<R> TrySendError<R> {
    /// The record.
    pub fn into_record(self) -> R {
        match self {
            Self::Full(record) | Self::Failed(record, _) => record,
        }
    }

    /// Whether trying again later can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

/// The first failure among the messages that `flush` waited for; each message's ack tells its own.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// A message was not stored, or it is not known.
    #[error("not everything that was enqueued is stored: {}", SendError::from_failure(.0))]
    Failed(Arc<PublishFailure>),
    /// No broker said in time that it has read what was sent without asking for acks.
    #[error("it is not known whether the broker has read what was sent: {0}")]
    NotRead(AdminError),
    /// The client was closed meanwhile.
    #[error("the client was closed while it was flushed")]
    Closed,
}

impl FlushError {
    /// Whether some message may be stored all the same.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Failed(failure) => matches!(**failure, PublishFailure::Unknown(_)),
            Self::NotRead(_) => true,
            Self::Closed => false,
        }
    }

    /// Flushing again waits for nothing that has failed: never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Something other than a message, in the stream of a reader or subscriber. Network trouble is none: the
/// client reconnects and continues.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Offsets that were wanted and cannot be had. The stream continues behind them.
    #[error("partition {partition}: the messages from {from} to before {to} are gone ({reason:?})")]
    Gap {
        /// The partition.
        partition: PartitionId,
        /// The first missing offset.
        from: Offset,
        /// One past the last missing offset.
        to: Offset,
        /// Why.
        reason: GapReason,
    },
    /// Somebody moved the durable subscription. The stream continues at the new place.
    #[error("partition {partition}: the subscription was moved to offset {next}")]
    Seeked {
        /// The partition.
        partition: PartitionId,
        /// The next offset.
        next: Offset,
    },
    /// A payload is not of the expected type. The stream continues with the next message.
    #[error("partition {partition}, offset {offset}: {source}")]
    Decode {
        /// The partition.
        partition: PartitionId,
        /// The message's offset.
        offset: Offset,
        /// Why.
        source: DecodeError,
    },
    /// Messages arrived damaged. The stream continues behind them.
    #[error(
        "partition {partition}: the messages from {from} to before {to} arrived damaged: {why}"
    )]
    Damaged {
        /// The partition.
        partition: PartitionId,
        /// The first damaged offset.
        from: Offset,
        /// One past the last.
        to: Offset,
        /// What is wrong.
        why: String,
    },
    /// Another consumer attached to the durable subscription. The stream ends.
    #[error("the subscription was taken over by another consumer: {0}")]
    Taken(ErrorBody),
    /// The broker ended the subscription. The stream ends.
    #[error("the subscription has ended: {0}")]
    Ended(ErrorBody),
}

impl ReadError {
    /// Whether the stream ends behind it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Taken(_) | Self::Ended(_))
    }

    /// Whether opening the stream again can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Taken(_) => true,
            Self::Ended(error) => is_retryable(error),
            _ => false,
        }
    }
}

/// Why an ack is not stored, or not known to be. Without a stored ack, the messages are delivered again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// The broker refused it.
    #[error("the ack was refused: {0}")]
    Refused(ErrorBody),
    /// The subscription had another owner, or was moved, since the message was delivered: it will come again.
    #[error(
        "the message was delivered before the subscription changed its owner or was moved; it will be delivered again"
    )]
    Stale,
    /// The subscription has ended.
    #[error("the subscription has ended")]
    Ended,
    /// The message is of another subscription.
    #[error("the partition does not belong to this subscription")]
    UnknownPartition,
}

impl AckError {
    pub(crate) fn from_failure(failure: AckFailure) -> Self {
        match failure {
            AckFailure::Refused(error) => Self::Refused(error),
            AckFailure::Stale => Self::Stale,
            AckFailure::Ended => Self::Ended,
            AckFailure::UnknownPartition => Self::UnknownPartition,
        }
    }

    /// Whether the same ack can succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Refused(error) if is_retryable(error))
    }
}

/// Something other than a delivery, in the stream of a consumer. Network trouble is none: the client reconnects and
/// keeps its leases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// A payload is not of the expected type. The message was rejected: it goes to the dead letter topic.
    #[error("partition {partition}, offset {offset}: {source}; the message was rejected")]
    Decode {
        /// The partition.
        partition: PartitionId,
        /// The message's offset.
        offset: Offset,
        /// Why.
        source: DecodeError,
    },
    /// Messages arrived damaged. They were given back as failed.
    #[error(
        "partition {partition}: the messages from {from} to before {to} arrived damaged and were given back: {why}"
    )]
    Damaged {
        /// The partition.
        partition: PartitionId,
        /// The first damaged offset.
        from: Offset,
        /// One past the last.
        to: Offset,
        /// What is wrong.
        why: String,
    },
    /// The broker ended the consumer. The stream ends.
    #[error("the consumer has ended: {0}")]
    Ended(ErrorBody),
}

impl ConsumeError {
    /// Whether the stream ends behind it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Ended(_))
    }

    /// Whether making the consumer again can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Ended(error) if is_retryable(error))
    }
}

/// Why a message was not settled as its consumer asked, or is not known to be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease ended before: somebody else has the message, or will.
    #[error(
        "the lease ended before the outcome reached the broker; somebody else has the message, or will"
    )]
    LeaseLost,
    /// The message was acknowledged before, by somebody else or in another way.
    #[error("the message was acknowledged before")]
    AlreadyAcked,
    /// The message has left the queue: dead-lettered, expired, purged, or sought past.
    #[error("the message has left the queue: dead-lettered, expired, purged or sought past")]
    Gone,
    /// The broker refused it. The message comes again when the lease ends.
    #[error("the outcome was refused: {0}")]
    Refused(ErrorBody),
    /// The consumer ended before there was an answer.
    #[error("the consumer ended before there was an answer")]
    Ended,
}

impl SettleError {
    pub(crate) fn from_failure(failure: SettleFailure) -> Self {
        match failure {
            SettleFailure::Problem(SettleProblem::AlreadyAcked) => Self::AlreadyAcked,
            SettleFailure::Problem(SettleProblem::LeaseLost) => Self::LeaseLost,
            SettleFailure::Problem(SettleProblem::Gone) => Self::Gone,
            SettleFailure::Refused(error) => Self::Refused(error),
            SettleFailure::Ended => Self::Ended,
        }
    }

    /// Never: an outcome is given once. What was not settled comes again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Why a request over topics has no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request was not published, or it is not known.
    #[error("the request could not be published: {0}")]
    Send(#[from] SendError),
    /// No reply came in time. The request may be published, and somebody may work on it.
    #[error("no reply came in time; the request may be published all the same")]
    TimedOut,
    /// The reply is not of the expected type.
    #[error("the reply: {0}")]
    Decode(DecodeError),
    /// The client was closed, or the reply topic deleted.
    #[error("replies cannot be read any more: the client was closed, or the reply topic deleted")]
    Ended,
}

impl RequestError {
    /// Whether asking again can help. It may be done twice then.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Send(error) => error.is_retryable(),
            Self::TimedOut => true,
            Self::Decode(_) | Self::Ended => false,
        }
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RespondError {
    /// Nobody waits: the message has no header `reply-to`.
    #[error("the message asks for no reply: it has no header reply-to")]
    NoReplyTopic,
    /// The reply topic cannot be published to.
    #[error("the reply topic cannot be opened: {0}")]
    Open(#[from] OpenError),
    /// The reply was not published, or it is not known.
    #[error("the reply could not be published: {0}")]
    Send(#[from] SendError),
}

impl RespondError {
    /// Whether answering again can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoReplyTopic => false,
            Self::Open(error) => error.is_retryable(),
            Self::Send(error) => error.is_retryable(),
        }
    }
}

/// Why an administrative request has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The broker refused; the text says why and what to do.
    #[error("{0}")]
    Refused(ErrorBody),
    /// The connection was lost after the request was sent: it may have been done.
    #[error("the connection was lost before the answer: look whether it was done, then repeat it")]
    Unknown,
    /// No answer in time. A change may have been done.
    #[error("the broker did not answer in time; a change may have been done all the same")]
    TimedOut,
    /// No broker was reachable in time: nothing was done.
    #[error("no broker was reachable in time: nothing was done")]
    NotSent,
    /// Too many requests are waiting already: nothing was done.
    #[error("too many requests are waiting for answers: nothing was done")]
    TooMany,
    /// The answer cannot be understood.
    #[error("the broker's answer cannot be understood: {0}")]
    Malformed(postrider_protocol::codec::DecodeError),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl AdminError {
    pub(crate) fn from_failure(failure: RequestFailure) -> Self {
        match failure {
            RequestFailure::Refused(error) => Self::Refused(error),
            RequestFailure::Unknown => Self::Unknown,
            RequestFailure::TimedOut => Self::TimedOut,
            RequestFailure::NotSent => Self::NotSent,
            RequestFailure::TooMany => Self::TooMany,
            RequestFailure::Malformed(why) => Self::Malformed(why),
            RequestFailure::Closed => Self::Closed,
        }
    }

    /// What the broker said, if it said something.
    #[must_use]
    pub fn broker_error(&self) -> Option<&ErrorBody> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Whether it may have been done all the same.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Unknown | Self::TimedOut => true,
            Self::Refused(error) => error.code.class() == ErrorClass::Unknown,
            _ => false,
        }
    }

    /// Whether trying again later can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(error) => is_retryable(error),
            Self::Unknown | Self::TimedOut | Self::NotSent | Self::TooMany => true,
            Self::Malformed(_) | Self::Closed => false,
        }
    }
}
