//! Owns what consumers of a queue-mode subscription and the broker say to each other, but for `Lease` (`lease`
//! does) and for what runs are (`run` does). Never judges a lease: the broker's core does.
//!
//! A lease is named by `(sub_epoch, leader_epoch, offset, attempt)`: the subscription's epoch (a seek or a
//! purge ends all leases before it), the leadership that gave it out, the message, and which hand-out of
//! it this is. Runs name neighbouring messages whose other parts are equal.
//!
//! The lists are bounded: runs by `RUNS_MAX`, others by what their frame can hold; strings by `codec`.

use super::{AckRun, LeaseRun, SettleException, Start, TopicBounds, message, wire_struct};
use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    types::{
        Durability, EntryIndex, LeaderEpoch, MemberId, Offset, PartitionId, SubscriptionHandle,
        SubscriptionId, TimestampMs, TopicId,
    },
};

/// The most messages that one `Ack` or `Return` may name, so that the work and the exceptions of a request
/// are bounded. The broker refuses more with `LimitExceeded`.
pub const SETTLE_MESSAGES_MAX: u64 = 1 << 16;

wire_struct! {
    /// How a queue-mode subscription hands out messages, and what happens when they fail.
    pub struct QueuePolicy {
        /// How long a message is leased unless its consumer renews.
        pub lease_ms: u32,
        /// How long one lease may last with renewals.
        pub lease_max_ms: u64,
        /// A message that has failed so often is dead-lettered; at least 1.
        pub max_failures: u32,
        /// The wait after the first failure; it doubles with each further one, and varies by a fifth.
        pub backoff_min_ms: u32,
        /// The longest wait.
        pub backoff_max_ms: u32,
        /// Messages per partition that may be handed out and not settled; at the bound only retries go out.
        pub unsettled_max: u32,
        /// Messages of a key go out in order, one at a time.
        pub key_order: bool,
        /// One consumer at a time gets messages of a partition.
        pub single_active: bool,
        /// Nothing is handed out.
        pub paused: bool,
        /// Where dead messages go; none = the topic's name and `.dead`.
        pub dead_letter: Option<String>,
        /// When to pause because everything fails; none = never.
        pub breaker: Option<Breaker>,
    }
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            lease_max_ms: 12 * 3_600_000,
            max_failures: 16,
            backoff_min_ms: 1_000,
            backoff_max_ms: 600_000,
            unsettled_max: 20_000,
            key_order: false,
            single_active: false,
            paused: false,
            dead_letter: None,
            breaker: None,
        }
    }
}

wire_struct! {
    /// When a queue pauses itself: a downstream that is away must not dead-letter the whole queue.
    #[derive(Copy)]
    pub struct Breaker {
        /// It opens when this share of the last outcomes are failures, in percent.
        pub failure_percent: u32,
        /// How many outcomes are looked at.
        pub window: u32,
        /// How long nothing is handed out; then single messages probe.
        pub pause_ms: u32,
    }
}

message! { Consume:
    /// Attaches a consumer to a queue-mode subscription, or resumes one.
    pub struct Consume {
        /// Names the attachment on this connection; chosen by the client, not in use, also not by `Subscribe`.
        pub handle: SubscriptionHandle,
        /// The topic.
        pub topic: String,
        /// The subscription; none = the queue's own.
        pub subscription: Option<String>,
        /// The partitions, each once; none = all.
        pub partitions: Vec<PartitionId>,
        /// Random, chosen by the client; the same after a reconnect, so that its leases stay its own.
        pub member: MemberId,
        /// For people.
        pub consumer_name: String,
        /// How many messages the broker may send, beside those in `held`.
        pub credit_messages: u32,
        /// How many bytes the broker may send, beside those of `held`.
        pub credit_bytes: u32,
        /// What the consumer holds from before a reconnect; each partition at most once.
        pub held: Vec<HeldLeases>,
    }
}

wire_struct! {
    /// Leases of one partition that a consumer holds.
    pub struct HeldLeases {
        /// The partition.
        pub partition: PartitionId,
        /// The subscription's epoch when they were given out.
        pub sub_epoch: u64,
        /// The leadership that gave them out.
        pub leader_epoch: LeaderEpoch,
        /// Which messages.
        pub runs: Vec<AckRun>,
    }
}

message! { Consume:
    /// The consumer is attached.
    pub struct ConsumeReply {
        /// The topic.
        pub topic: TopicId,
        /// The subscription.
        pub subscription: SubscriptionId,
        /// Its policy.
        pub policy: QueuePolicy,
        /// The partitions.
        pub partitions: Vec<ConsumedPartition>,
    }
}

wire_struct! {
    /// Where a consumer stands on a partition.
    pub struct ConsumedPartition {
        /// The partition.
        pub partition: PartitionId,
        /// The subscription's epoch here.
        pub sub_epoch: u64,
        /// The leadership.
        pub leader_epoch: LeaderEpoch,
        /// Of `held`, what is still, or again, leased to this consumer, with the attempts that count now.
        /// The rest is lost.
        pub held: Vec<LeaseRun>,
    }
}

message! { Ack:
    /// Messages are processed, each for good.
    pub struct Ack {
        /// The attachment.
        pub handle: SubscriptionHandle,
        /// The partition.
        pub partition: PartitionId,
        /// From `ConsumeReply` or `Lease`.
        pub sub_epoch: u64,
        /// From `ConsumeReply` or `Lease`.
        pub leader_epoch: LeaderEpoch,
        /// One past the last dispatch number that the consumer has begun to process; 0 if none.
        pub started: u64,
        /// Which messages.
        pub runs: Vec<AckRun>,
    }
}

message! { Ack:
    /// The acks have the durability of the topic: what is no exception is never delivered again.
    pub struct AckReply {
        /// One past the index of the entry that holds them; 0 if there was nothing to store.
        pub commit_index: EntryIndex,
        /// What was not acknowledged by this.
        pub exceptions: Vec<SettleException>,
    }
}

/// Why a message was not settled by a request: one byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SettleProblem {
    /// It was acknowledged before; as good as done.
    AlreadyAcked = 1,
    /// The lease ended: somebody else may have the message, or will.
    LeaseLost = 2,
    /// It left the queue in another way (dead-lettered, expired, purged, sought past).
    Gone = 3,
}

impl SettleProblem {
    /// The problem with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::AlreadyAcked),
            2 => Some(Self::LeaseLost),
            3 => Some(Self::Gone),
            _ => None,
        }
    }
}

impl Wire for SettleProblem {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        (*self as u8).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_u8(input.take()?).ok_or(DecodeError::Invalid("settle problem"))
    }
}

/// What becomes of messages that a consumer gives back. A byte: 0 release; 1 nack, then an option of a u64
/// (the wait) and a string (the reason); 2 reject, then a string (the reason). Of a reason the broker keeps
/// the first 256 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReturnAction {
    /// Not begun, or begun without harm: to be handed out again at once; no failure.
    Release,
    /// It failed: to be handed out again after a wait, or dead-lettered if it has failed too often.
    Nack {
        /// The wait in milliseconds; none = by the policy.
        delay_ms: Option<u64>,
        /// Why, for people.
        reason: String,
    },
    /// It can never succeed: to be dead-lettered.
    Reject {
        /// Why, for people.
        reason: String,
    },
}

impl Wire for ReturnAction {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut Writer<'_>) {
        match self {
            Self::Release => out.put(&0u8),
            Self::Nack { delay_ms, reason } => {
                out.put(&1u8);
                out.put(delay_ms);
                out.put(reason);
            }
            Self::Reject { reason } => {
                out.put(&2u8);
                out.put(reason);
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take::<u8>()? {
            0 => Ok(Self::Release),
            1 => Ok(Self::Nack { delay_ms: input.take()?, reason: input.take()? }),
            2 => Ok(Self::Reject { reason: input.take()? }),
            _ => Err(DecodeError::Invalid("return action")),
        }
    }
}

message! { Return:
    /// Gives messages back that were not processed.
    pub struct Return {
        /// The attachment.
        pub handle: SubscriptionHandle,
        /// The partition.
        pub partition: PartitionId,
        /// From `ConsumeReply` or `Lease`.
        pub sub_epoch: u64,
        /// From `ConsumeReply` or `Lease`.
        pub leader_epoch: LeaderEpoch,
        /// One past the last dispatch number that the consumer has begun to process; 0 if none.
        pub started: u64,
        /// Which messages.
        pub runs: Vec<AckRun>,
        /// What becomes of them.
        pub action: ReturnAction,
    }
}

message! { Return:
    /// It is done, with the durability of the topic.
    pub struct ReturnReply {
        /// One past the index of the entry that holds it; 0 if there was nothing to store.
        pub commit_index: EntryIndex,
        /// What was not given back by this.
        pub exceptions: Vec<SettleException>,
    }
}

message! { Renew:
    /// Renews all leases of an attachment, to `lease_ms` from now. To be sent every third of `lease_ms`.
    pub struct Renew {
        /// The attachment.
        pub handle: SubscriptionHandle,
        /// Per partition, one past the last dispatch number that the consumer has begun to process.
        pub started: Vec<(PartitionId, u64)>,
    }
}

message! { LeaseLost:
    /// Leases of this consumer have ended: deadline, seek, purge. What it does with the messages now does
    /// not count.
    pub struct LeaseLost {
        /// The attachment.
        pub handle: SubscriptionHandle,
        /// The partition.
        pub partition: PartitionId,
        /// The subscription's epoch from here on.
        pub sub_epoch: u64,
        /// Which messages.
        pub runs: Vec<AckRun>,
    }
}

message! { CreateQueue:
    /// Creates a topic of kind queue with its own subscription, named `default`.
    pub struct CreateQueue {
        /// Its name.
        pub name: String,
        /// How many partitions, at least 1.
        pub partitions: u32,
        /// Its durability class; never changes.
        pub durability: Durability,
        /// The largest message; none = the broker's limit.
        pub message_bytes_max: Option<u32>,
        /// How old and how many unsettled messages may be.
        pub bounds: TopicBounds,
        /// How it hands out messages.
        pub policy: QueuePolicy,
        /// Succeed, and change nothing, if there is a queue with this name.
        pub if_not_exists: bool,
    }
}

message! { CreateQueue:
    /// The queue exists.
    pub struct CreateQueueReply {
        /// The topic's UUID.
        pub id: TopicId,
        /// It did not exist before.
        pub created: bool,
    }
}

message! { CreateSubscription:
    /// Creates a durable subscription without attaching to it.
    pub struct CreateSubscription {
        /// Its topic; or a pattern: then each log topic that it means has one, those that are created later included.
        pub topic: String,
        /// Its name.
        pub name: String,
        /// Where it begins.
        pub start: Start,
        /// The policy of a queue-mode subscription; none = stream mode.
        pub queue: Option<QueuePolicy>,
        /// Succeed, and change nothing, if there is one of this name and mode.
        pub if_not_exists: bool,
    }
}

message! { CreateSubscription:
    /// The subscription exists.
    pub struct CreateSubscriptionReply {
        /// Its UUID.
        pub id: SubscriptionId,
        /// It did not exist before.
        pub created: bool,
    }
}

message! { AlterQueue:
    /// Gives a queue-mode subscription another policy.
    pub struct AlterQueue {
        /// The topic.
        pub topic: String,
        /// The subscription; none = the queue's own.
        pub subscription: Option<String>,
        /// The whole policy.
        pub policy: QueuePolicy,
    }
}

message! { AlterQueue:
    /// It is changed.
    pub struct AlterQueueReply {}
}

message! { DescribeQueue:
    /// Asks for all about a queue-mode subscription.
    pub struct DescribeQueue {
        /// The topic.
        pub topic: String,
        /// The subscription; none = the queue's own.
        pub subscription: Option<String>,
    }
}

message! { DescribeQueue:
    /// All about a queue-mode subscription.
    pub struct DescribeQueueReply {
        /// The topic's UUID.
        pub topic: TopicId,
        /// The subscription's UUID.
        pub subscription: SubscriptionId,
        /// Its name.
        pub name: String,
        /// Its policy.
        pub policy: QueuePolicy,
        /// Its partitions, from 0.
        pub partitions: Vec<QueuePartition>,
        /// Who is attached, or holds leases.
        pub consumers: Vec<QueueConsumer>,
    }
}

wire_struct! {
    /// A queue-mode subscription on one partition. Totals count since the subscription was created.
    #[derive(Copy)]
    pub struct QueuePartition {
        /// The partition.
        pub partition: PartitionId,
        /// Its epoch here.
        pub sub_epoch: u64,
        /// Every message below is settled.
        pub floor: Offset,
        /// Messages that could be handed out now.
        pub ready: u64,
        /// Handed out and not settled.
        pub leased: u64,
        /// Waiting for a time.
        pub delayed: u64,
        /// Waiting for an earlier message of their key.
        pub blocked: u64,
        /// On their way to the dead letter topic.
        pub dead_lettering: u64,
        /// Total: acknowledged.
        pub acked: u64,
        /// Total: moved to the dead letter topic.
        pub dead_lettered: u64,
        /// Total: expired before they were settled.
        pub expired: u64,
        /// Total: removed unsettled, by a purge, a seek, an overflow, retention or damage.
        pub evicted: u64,
        /// How long the oldest ready message has been in the log; 0 if none is ready.
        pub oldest_ready_ms: u64,
        /// The breaker lets nothing, or single messages, out.
        pub breaker_open: bool,
    }
}

wire_struct! {
    /// A consumer of a queue-mode subscription.
    pub struct QueueConsumer {
        /// Its name.
        pub name: String,
        /// Its id.
        pub member: MemberId,
        /// It is connected.
        pub connected: bool,
        /// Messages that it holds.
        pub leased: u64,
        /// For how long it has held the oldest; 0 if it holds none.
        pub oldest_lease_ms: u64,
    }
}

message! { WhyMessage:
    /// Asks what keeps one message.
    pub struct WhyMessage {
        /// The topic.
        pub topic: String,
        /// The subscription; none = the queue's own.
        pub subscription: Option<String>,
        /// The partition.
        pub partition: PartitionId,
        /// The message.
        pub offset: Offset,
    }
}

message! { WhyMessage:
    /// What keeps it.
    pub struct WhyMessageReply {
        /// One word: `acked`, `ready`, `leased`, `delayed`, `blocked`, `expired`, `dead_lettering`, `gone`, `future`.
        pub state: String,
        /// A sentence for people, with the next step.
        pub text: String,
        /// Who holds it.
        pub holder: Option<String>,
        /// Since when it is in this state; 0 if that is not known.
        pub since: TimestampMs,
        /// Until when: a lease's deadline, the end of a delay; 0 if there is none.
        pub until: TimestampMs,
        /// Hand-outs since the leadership began.
        pub attempts: u32,
        /// Failures.
        pub failures: u32,
        /// What the last consumer said when it gave the message back.
        pub last_reason: String,
    }
}

message! { PurgeQueue:
    /// Settles everything that is not settled, on all partitions. Leases end.
    pub struct PurgeQueue {
        /// The topic.
        pub topic: String,
        /// The subscription; none = the queue's own.
        pub subscription: Option<String>,
    }
}

message! { PurgeQueue:
    /// It is done.
    pub struct PurgeQueueReply {
        /// How many messages left the queue unsettled.
        pub purged: u64,
    }
}

message! { RedriveLetters:
    /// Sends dead letters of one partition back to the topics that they come from, each once. Those that were
    /// sent, or are on their way, are passed over: whoever is cut off asks again from anywhere.
    pub struct RedriveLetters {
        /// The dead letter topic.
        pub topic: String,
        /// A queue-mode subscription of it, which remembers what was sent. Nobody should consume it.
        pub subscription: String,
        /// The partition.
        pub partition: PartitionId,
        /// Where to look from.
        pub from: Offset,
        /// The most letters to send, 1 to 1,000.
        pub letters_max: u32,
        /// Only those that died for this reason: what `dl.reason` says.
        pub reason: Option<String>,
        /// Only those of this topic.
        pub source: Option<String>,
        /// Only those of this subscription.
        pub source_subscription: Option<String>,
        /// Where to; none = the topic that each comes from.
        pub target: Option<String>,
        /// Only count.
        pub dry_run: bool,
    }
}

message! { RedriveLetters:
    /// What was found is decided, and stored: it will be sent. Or, in a dry run, would be.
    pub struct RedriveLettersReply {
        /// Where to go on; nothing more if it is `end`.
        pub next: Offset,
        /// One past the last letter.
        pub end: Offset,
        /// Letters that are sent.
        pub sent: u32,
        /// Letters that were sent before.
        pub sent_before: u32,
        /// Letters that were not meant.
        pub passed: u32,
        /// Letters that cannot be sent: they do not say where they come from, or their topic is gone.
        pub homeless: u32,
        /// Letters of this partition that are on their way, those of this request included.
        pub on_their_way: u64,
    }
}

message! { ReleaseMessage:
    /// Has a message handed out now, though a consumer has it or it waits for a time. It does not count as a
    /// failure. Whoever has it is told that it lost it.
    pub struct ReleaseMessage {
        /// The topic.
        pub topic: String,
        /// The subscription; none = the queue's own.
        pub subscription: Option<String>,
        /// The partition.
        pub partition: PartitionId,
        /// The message.
        pub offset: Offset,
    }
}

message! { ReleaseMessage:
    /// What it was.
    pub struct ReleaseMessageReply {
        /// Whether that changed anything.
        pub released: bool,
        /// What it was before, as in `WhyMessageReply`.
        pub state: String,
    }
}
