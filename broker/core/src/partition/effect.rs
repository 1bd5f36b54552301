//! Owns what goes into and comes out of a partition's leader: requests, entries to append, effects.
//! Never decides. Driven by the join, which carries effects out after it has released the lock.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use postrider_protocol::batch::Batch;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{
    AckLevel, AckRun, CancelVerdict, ConfirmRun, Outcome, PublishHead, SettleException,
};
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, NodeId, Offset, PartitionId, ProducerId, Sequence,
    SubscriptionId, TimestampMs, TopicId,
};

use super::keys::{EntryKeys, Keyed};
use super::state::Change;
use crate::limits::{
    DEDUP_BYTES_PER_PARTITION_MAX, DELAYED_PER_PARTITION_MAX, SESSION_IDLE_MS,
    SESSIONS_PER_PARTITION_MAX,
};
use crate::queue::MemberKey;

/// A connection's number, rising in the order in which connections were accepted by this process. A
/// producer session belongs to the newest connection that published in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionId(pub u64);

/// Whose leadership a [`super::Partition`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionIdentity {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The topic's class.
    pub durability: Durability,
    /// This leadership. On one broker: its incarnation.
    pub leader_epoch: LeaderEpoch,
    /// The leader.
    pub node: NodeId,
}

/// The bounds of one partition's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionLimits {
    /// Producer sessions. At the bound a new one is refused with `LimitExceeded`.
    pub sessions_max: usize,
    /// How long a session may be idle.
    pub session_idle_ms: u64,
    /// Memory of the idempotency keys. At the bound a publish of new ones is refused with `DedupCapacity`.
    pub dedup_bytes_max: usize,
    /// Delayed messages that wait. At the bound a publish of more is refused with `LimitExceeded`.
    pub delayed_max: u64,
}

impl Default for PartitionLimits {
    fn default() -> Self {
        Self {
            sessions_max: SESSIONS_PER_PARTITION_MAX,
            session_idle_ms: SESSION_IDLE_MS,
            dedup_bytes_max: DEDUP_BYTES_PER_PARTITION_MAX,
            delayed_max: DELAYED_PER_PARTITION_MAX,
        }
    }
}

/// A publish, as it came in. The caller has checked the batch's crc and its size (`Batch::validate`).
#[derive(Debug)]
pub struct PublishRequest<'a, R> {
    /// Its head.
    pub head: &'a PublishHead,
    /// Its batch.
    pub batch: &'a Batch,
    /// The idempotency keys in it ([`super::read_keys`]); none where its head says that there are none.
    pub keys: &'a [Keyed],
    /// Where it came from.
    pub connection: ConnectionId,
    /// One past the last producer id that the cluster has granted.
    pub producer_ids_end: ProducerId,
    /// Where its confirm goes.
    pub route: R,
}

/// What a request leads to.
#[must_use]
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every decision appends, and none is kept")]
pub enum Decision<R> {
    /// Entries have to be appended now, under the same lock.
    Append(PendingAppend<R>),
    /// Nothing to append; the answer follows with an entry that is in flight.
    Waits,
    /// Nothing to append; the answer is among the effects.
    Done,
}

/// An entry to append; the fields of storage's new entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryDraft {
    /// Its kind.
    pub kind: EntryKind,
    /// Its flags.
    pub flags: u16,
    /// The leadership that writes it.
    pub leader_epoch: LeaderEpoch,
    /// The wall time; storage makes it monotone.
    pub append_time: TimestampMs,
    /// Messages.
    pub record_count: u32,
    /// Sequences.
    pub seq_count: u32,
    /// Its body, shared with the frame that it came in.
    pub body: Bytes,
    /// The body's crc.
    pub body_crc: u32,
    /// Its trailer.
    pub trailer: Bytes,
}

/// What storage assigned to an appended entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Its number.
    pub index: EntryIndex,
    /// The offset of its first message, or of the next message.
    pub base_offset: Offset,
    /// Its append time.
    pub append_time: TimestampMs,
}

/// Why storage took an entry not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The disk is full.
    DiskFull,
    /// More is queued than the disk keeps up with.
    QueueFull,
    /// The topic is being deleted.
    Dropped,
    /// The broker is shutting down.
    Closed,
    /// A segment could not hold the entry: configured limits allow larger batches than segments.
    TooLarge,
    /// The disk has failed.
    Failed,
    /// Another broker leads the partition, or is about to.
    Deposed,
}

impl Refusal {
    /// The error that the client is told.
    #[must_use]
    pub fn error(self) -> ErrorBody {
        match self {
            Self::DiskFull => ErrorBody::new(
                ErrorCode::DiskFull,
                "the broker's disk is full; free space or shorten retention, then retry",
            )
            .with_retry_after_ms(500),
            Self::QueueFull => ErrorBody::new(
                ErrorCode::Throttled,
                "the broker's disk does not keep up; retry after a pause",
            )
            .with_retry_after_ms(20),
            Self::Dropped => ErrorBody::new(ErrorCode::UnknownTopic, "the topic was deleted"),
            Self::Closed => ErrorBody::new(
                ErrorCode::ShuttingDown,
                "the broker is shutting down; reconnect and retry",
            ),
            Self::TooLarge => ErrorBody::new(
                ErrorCode::BatchTooLarge,
                "the batch is larger than the broker's segments; send smaller batches",
            ),
            Self::Failed => storage_failed(),
            Self::Deposed => ErrorBody::new(
                ErrorCode::NotLeader,
                "the partition has another leader; ask for metadata and send it there",
            ),
        }
    }

    /// What a publish came to that met it. Definite before the append; what a failed disk or an ended
    /// leadership left behind may be stored or not.
    pub(super) fn outcome(self) -> Outcome {
        let error = self.error();
        match self {
            Self::Failed | Self::Deposed => Outcome::Unknown { error },
            Self::DiskFull | Self::QueueFull | Self::Dropped | Self::Closed | Self::TooLarge => {
                Outcome::Rejected { error }
            }
        }
    }
}

pub(super) fn storage_failed() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::StorageFailed,
        "the broker's disk failed; see the broker's log, replace the disk, restart it",
    )
}

/// Entries to append in order, and whom they will answer.
///
/// Take an entry with [`PendingAppend::next_entry`], append it, report it with
/// [`super::Partition::appended`], and go on until there is none. If storage refuses one, hand the rest
/// to [`super::Partition::append_failed`].
#[must_use]
#[derive(Debug)]
pub struct PendingAppend<R> {
    pub(super) current: Option<Drafted<R>>,
    pub(super) rest: VecDeque<Drafted<R>>,
}

impl<R> PendingAppend<R> {
    pub(super) fn new(last: Drafted<R>) -> Self {
        Self { current: Some(last), rest: VecDeque::new() }
    }

    pub(super) fn put_first(&mut self, drafted: Drafted<R>) {
        let later = self.current.replace(drafted);
        if let Some(later) = later {
            self.rest.push_front(later);
        }
    }

    pub(super) fn put_last(&mut self, drafted: Drafted<R>) {
        self.rest.push_back(drafted);
    }

    pub(super) fn put_before_last(&mut self, drafted: Drafted<R>) {
        match self.rest.pop_back() {
            Some(last) => self.rest.extend([drafted, last]),
            None => self.put_first(drafted),
        }
    }

    /// The next entry to append, once.
    pub fn next_entry(&mut self) -> Option<EntryDraft> {
        if self.current.is_none() {
            self.current = self.rest.pop_front();
        }
        self.current.as_mut().and_then(|drafted| drafted.draft.take())
    }
}

/// An entry to append, what it will change, and whom it will answer.
#[derive(Debug)]
pub(super) struct Drafted<R> {
    pub(super) draft: Option<EntryDraft>,
    pub(super) change: Change,
    /// The idempotency keys of its messages.
    pub(super) keys: EntryKeys,
    pub(super) reply: Reply<R>,
    /// Who published the same messages again before they are committed.
    pub(super) twins: Vec<Twin<R>>,
}

impl<R> Drafted<R> {
    /// Without keys.
    pub(super) fn new(draft: EntryDraft, change: Change, reply: Reply<R>) -> Self {
        Self { draft: Some(draft), change, keys: EntryKeys::default(), reply, twins: Vec::new() }
    }
}

/// A publish of messages that are in flight already, by their idempotency keys. It shares their outcome.
#[derive(Debug)]
pub(super) struct Twin<R> {
    pub(super) route: R,
    pub(super) ack: AckLevel,
    pub(super) producer: ProducerId,
    pub(super) base_sequence: Sequence,
    pub(super) count: u32,
    /// The place of the first in the entry that it waits for.
    pub(super) position: u32,
    /// Whether it says the same as that; else its key is reused.
    pub(super) is_same: bool,
    /// Publish bytes charged to the route.
    pub(super) bytes: usize,
}

/// Whom an entry answers once it lies below the high watermark.
#[derive(Debug)]
pub(super) enum Reply<R> {
    /// Nobody.
    Nobody,
    /// A producer.
    Publish(PublishReply<R>),
    /// Nobody: it begins a session of which nothing else is stored yet.
    Session(SessionReply),
    /// A request about a subscription.
    State(R),
    /// Acknowledgements, several in one entry.
    Acks(Vec<AckReply<R>>),
}

#[derive(Debug)]
pub(super) struct PublishReply<R> {
    pub(super) route: R,
    pub(super) connection: ConnectionId,
    pub(super) ack: AckLevel,
    pub(super) base_sequence: Sequence,
    /// Publish bytes charged to the route.
    pub(super) bytes: usize,
    /// Where the session goes on: behind its sequences, and behind those of duplicates that follow them.
    pub(super) next_sequence: Sequence,
    /// Whether the entry begins a session.
    pub(super) opens_session: bool,
}

#[derive(Debug)]
pub(super) struct SessionReply {
    pub(super) connection: ConnectionId,
    /// Where the session goes on: behind the duplicates that it began with.
    pub(super) next_sequence: Sequence,
}

#[derive(Debug)]
pub(super) struct AckReply<R> {
    pub(super) route: R,
    pub(super) subscription: SubscriptionId,
    /// Of a queue: what the request did not settle.
    pub(super) exceptions: Option<Vec<SettleException>>,
}

/// Why a subscription has another owner epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnerChange {
    /// Another consumer attached: the one before is cut off (`SubscriptionTaken`).
    Attached,
    /// The position was moved: the attached consumer goes on at `next` with the new epoch (`Seeked`).
    Sought,
    /// The subscription was deleted: the attached consumer is cut off (`UnknownSubscription`).
    Deleted,
}

/// What a request about a subscription has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateCommitted {
    /// The subscription exists on this partition.
    Subscribed {
        /// Its position.
        acked: Offset,
    },
    /// There is a new owner.
    Owned {
        /// The owner's epoch.
        owner_epoch: u64,
        /// Where it begins to read.
        acked: Offset,
    },
    /// Everything below is acknowledged, for good.
    Acked {
        /// At least what was asked for.
        acked: Offset,
    },
    /// The position was moved.
    Sought {
        /// The epoch from here on.
        owner_epoch: u64,
        /// The position.
        next: Offset,
        /// Of a queue: the messages that left it unprocessed by this.
        evicted: u64,
    },
    /// The subscription does not exist on this partition.
    Unsubscribed,
}

/// What the join has to carry out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect<R> {
    /// Tell a producer what became of its sequences.
    Confirm {
        /// Whom.
        route: R,
        /// What.
        run: ConfirmRun,
        /// Publish bytes that are no longer in flight for the route.
        bytes: usize,
    },
    /// Publish bytes are no longer in flight for the route, without a word to the client: the publish
    /// asked for no ack, or a retry took its place.
    Released {
        /// Whose.
        route: R,
        /// How many.
        bytes: usize,
    },
    /// A request about a subscription is done and durable.
    Committed {
        /// Who asked.
        route: R,
        /// About which subscription.
        subscription: SubscriptionId,
        /// What was done.
        what: StateCommitted,
    },
    /// A request about a subscription was refused, or its outcome is not known (by the code's class).
    Refused {
        /// Who asked.
        route: R,
        /// Why.
        error: ErrorBody,
    },
    /// A subscription has another owner epoch. Precedes the `Committed` of the same entry.
    OwnerChanged {
        /// Which.
        subscription: SubscriptionId,
        /// Why.
        change: OwnerChange,
        /// The epoch from here on.
        owner_epoch: u64,
        /// The position from here on.
        next: Offset,
    },
    /// An ack or a return of a queue's consumer is done and durable.
    Settled {
        /// Who asked.
        route: R,
        /// Of which subscription.
        subscription: SubscriptionId,
        /// The index behind the entry that says so; 0 if there was nothing to store.
        commit_index: EntryIndex,
        /// What was not settled by it.
        exceptions: Vec<SettleException>,
    },
    /// A queue has something to hand out, and a consumer was told that it has nothing: wake one that
    /// waits. If it has no credit any more, wake the next.
    QueueReady {
        /// Which.
        subscription: SubscriptionId,
        /// Whom, if only this one may get something.
        member: Option<MemberKey>,
    },
    /// Leases have ended; the consumer is to be told.
    LeasesLost {
        /// Of which subscription.
        subscription: SubscriptionId,
        /// Whose.
        member: MemberKey,
        /// The subscription's epoch from here on.
        sub_epoch: u64,
        /// Which.
        runs: Vec<AckRun>,
    },
    /// A cancel of delayed messages is done and durable.
    DelaysCancelled {
        /// Who asked.
        route: R,
        /// What became of each, in the order in which they were named.
        verdicts: Vec<CancelVerdict>,
    },
    /// Delayed messages have their offsets.
    DelaysReleased {
        /// How many.
        count: u32,
        /// How long after their time.
        late: Duration,
    },
    /// There are dead letters to publish, or messages are to die and the target is not known: create it
    /// if need be, call `set_dead_letter_target`, publish what `dead_intents` says.
    DeadLetters {
        /// Of which subscription.
        subscription: SubscriptionId,
    },
}
