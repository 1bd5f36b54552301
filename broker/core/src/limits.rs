//! Owns the fixed bounds of the decisions, with what happens at each, and asserts how they relate. Never
//! holds a configured value: those come in as arguments. Driven by the other modules.

use std::time::Duration;

/// Runs that a producer session remembers per partition. A retry of something older is answered
/// `SequenceTooOld` (unknown), so a client keeps at most this many batches unconfirmed per partition.
/// Neighbouring batches that landed in the same millisecond share a run.
pub const SESSION_RUNS_MAX: usize = 1_024;

/// Producer sessions per partition unless configured. At the bound a new session is refused with
/// `LimitExceeded`; nobody is evicted early.
pub const SESSIONS_PER_PARTITION_MAX: usize = 4_096;

/// How long a producer session may be idle before the leader forgets it. A client gives up on a
/// publish long before (its `delivery_timeout`).
pub const SESSION_IDLE_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// Sessions that one `ProducerExpire` entry forgets; more go into the next one.
pub const EXPIRE_BATCH_MAX: usize = 256;

/// Leadership changes that a partition remembers; the oldest is dropped at the bound. Only what lies
/// below every kept snapshot is ever that old.
pub const EPOCHS_MAX: usize = 1_024;

/// Sequences that a producer may skip at once: more could not be told from the 31 bits that an
/// entry stores. Also the bound of a new session's first sequence. Beyond: `UnknownProducer`.
pub const SEQUENCE_SKIP_MAX: u64 = 1 << 31;

/// Partitions of one topic. Beyond: `InvalidConfig`.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 16_384;

/// Subscriptions by pattern. Beyond: `SubscriptionLimit`.
pub const PATTERNS_MAX: usize = 64;

/// Durable subscriptions of one topic. Beyond: `SubscriptionLimit`.
pub const SUBSCRIPTIONS_PER_TOPIC_MAX: usize = 1_024;

/// Members of one consumer group. Beyond: `JoinError::Full`.
pub const GROUP_MEMBERS_MAX: usize = 1_024;

/// How often an instance id may be taken from a living member within [`INSTANCE_SWAP_WINDOW`]. Beyond:
/// `JoinError::InstanceFlaps`; whoever has it keeps it.
pub const INSTANCE_SWAPS_MAX: usize = 3;

/// See [`INSTANCE_SWAPS_MAX`].
pub const INSTANCE_SWAP_WINDOW: Duration = Duration::from_secs(60);

/// Topics of a cluster. Beyond: `LimitExceeded`.
pub const TOPICS_MAX: usize = 100_000;

/// Bytes of a topic's or subscription's name. Beyond: `InvalidTopicName`, `InvalidSubscriptionName`.
pub const NAME_BYTES_MAX: usize = 200;

/// The largest message that any topic may allow.
pub const MESSAGE_BYTES_MAX: u32 = 16 << 20;

/// Producer ids granted to a broker by one metadata entry. What is left at a restart is never used.
pub const PRODUCER_ID_BLOCK: u32 = 1_024;

/// The shortest lease of a queue. Beyond, as for the bounds that follow: `InvalidConfig`.
pub const LEASE_MS_MIN: u32 = 100;

/// The longest lease without renewal.
pub const LEASE_MS_MAX: u32 = 3_600_000;

/// The longest lease with renewals: a week.
pub const LEASE_LIFE_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;

/// Failures after which a message may at last be dead.
pub const FAILURES_MAX: u32 = 1_000;

/// The longest wait after a failure: a day.
pub const BACKOFF_MS_MAX: u32 = 24 * 3_600 * 1_000;

/// Messages of a partition that may be handed out at a time.
pub const UNSETTLED_MAX: u32 = 1_000_000;

/// Outcomes that a breaker looks at.
pub const BREAKER_WINDOW_MAX: u32 = 1_024;

/// How long a consumer that went away may come back to its leases.
pub const SESSION_GRACE_MS: u64 = 5_000;

/// Messages that one lease request hands out; who wants more asks again.
pub const LEASE_MESSAGES_MAX: u64 = 4_096;

/// Messages of a queue that wait for an earlier one of their key. At the bound no more is read ahead.
pub const QUEUE_BLOCKED_MAX: usize = 65_536;

/// Verdicts that one tick passes on a queue, and that one entry holds; more go into the next one.
pub const VERDICTS_PER_TICK_MAX: usize = 4_096;

/// Runs of messages that are remembered as having left a queue without an ack; the oldest is forgotten.
/// An ack for one of those is then answered as if it had been acknowledged before.
pub const GONE_RUNS_MAX: usize = 1_024;

/// How soon it may be looked up again how far a queue's messages are too old.
pub const EXPIRY_PAUSE_MS: u64 = 20;

/// How soon a queue that holds too many messages gets rid of more.
pub const BOUNDS_PAUSE_MS: u64 = 20;

/// The longest delay that a consumer may ask for.
pub const RETURN_DELAY_MS_MAX: u64 = 365 * 24 * 3_600 * 1_000;

/// How long a segment of a queue, of which nothing is needed, is not written before it is closed and given up.
pub const SEGMENT_IDLE_MS: u64 = 60_000;

/// Memory of a partition's idempotency keys unless configured: some 20 million. At the bound a publish of new ones is
/// refused with `DedupCapacity`; none is forgotten early.
pub const DEDUP_BYTES_PER_PARTITION_MAX: usize = 512 << 20;

/// Delayed messages that wait on a partition unless configured. At the bound a publish with a delay is refused
/// with `LimitExceeded`. They cost up to 40 bytes of memory each.
pub const DELAYED_PER_PARTITION_MAX: u64 = 1 << 20;

/// Runs of delayed messages that are remembered as having left; the oldest is forgotten. A cancel of one of
/// those is then answered `Unknown`.
pub const DELAY_ENDED_MAX: usize = 1_024;

/// Delayed entries that are read, or released and not committed, at a time; more follow as these commit.
pub const RELEASES_IN_FLIGHT_MAX: usize = 4_096;

const _: () = assert!(SESSION_RUNS_MAX >= 1_024, "a client may have 1,024 batches unconfirmed");
const _: () = assert!(PARTITIONS_PER_TOPIC_MAX <= 16_384, "keys hash to 16,384 slots");
