//! Owns what an application publishes, [`Record`], and what it gets for it, [`Receipt`]. Driven by producers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use postrider_protocol::headers::IDEMPOTENCY_KEY;
use postrider_protocol::types::{Durability, Offset, PartitionId, TimestampMs};

use crate::delayed::DelayId;

/// A message to publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<V> {
    pub(crate) value: Option<V>,
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Vec<(Bytes, Option<Bytes>)>,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) timestamp: Option<TimestampMs>,
    pub(crate) deliver_at: Option<TimestampMs>,
    /// Which of the headers is the idempotency key.
    pub(crate) idempotency_header: Option<usize>,
}

impl<V> Record<V> {
    /// A message with a value.
    #[must_use]
    pub fn new(value: V) -> Self {
        Self {
            value: Some(value),
            key: None,
            headers: Vec::new(),
            partition: None,
            timestamp: None,
            deliver_at: None,
            idempotency_header: None,
        }
    }

    /// A message without a value: it deletes its key when a topic is compacted.
    #[must_use]
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        let key = Some(key.into());
        Self {
            value: None,
            key,
            headers: Vec::new(),
            partition: None,
            timestamp: None,
            deliver_at: None,
            idempotency_header: None,
        }
    }

    /// Sets the key: messages of one key go to one partition and keep their order.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header. At most 1,024; names may repeat.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((Bytes::from(name.into()), Some(value.into())));
        self
    }

    /// Names the message for good, in 1 to 256 bytes, so that it is stored once, whoever sends it again and whatever
    /// fails in between, a restart of this program included. The broker remembers the key for the topic's dedup window
    /// (10 minutes by default); within it a publish with the same key is not stored, and its [`Receipt`] is that of the
    /// first one, with `duplicate` set. The same key with another key, value or headers is refused
    /// (`IdempotencyKeyReused`).
    ///
    /// The key holds within one partition. Without [`Record::key`] and [`Record::partition`] it chooses the partition
    /// itself; with one of them, a retry must have the same.
    ///
    /// Stored as the header `idempotency-key`; setting that header by hand has no such effect.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<Bytes>) -> Self {
        let header = (Bytes::from_static(IDEMPOTENCY_KEY.as_bytes()), Some(key.into()));
        match self.idempotency_header {
            Some(at) => self.headers[at] = header,
            None => {
                self.idempotency_header = Some(self.headers.len());
                self.headers.push(header);
            }
        }
        self
    }

    /// Chooses the partition, whatever the key.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(PartitionId(partition));
        self
    }

    /// Sets the application's own time of the message, in Unix milliseconds; the time of the call is the
    /// default.
    #[must_use]
    pub fn timestamp(mut self, timestamp: TimestampMs) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Has the broker deliver the message at this time, not before. It is stored and confirmed at once, gets its
    /// offset when the time has come by the broker's clock, and can be taken back until then
    /// ([`Admin::cancel_delayed`](crate::Admin::cancel_delayed)). A time that is past is at once. Messages of
    /// different times go into different batches.
    #[must_use]
    pub fn deliver_at(mut self, time: TimestampMs) -> Self {
        self.deliver_at = Some(time);
        self
    }

    /// The same, at a time counted from this call by this machine's clock.
    #[must_use]
    pub fn deliver_after(self, delay: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = now.saturating_add(delay).as_millis();
        self.deliver_at(TimestampMs(u64::try_from(ms).unwrap_or(u64::MAX)))
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// The value, taken out.
    #[must_use]
    pub fn into_value(self) -> Option<V> {
        self.value
    }
}

/// Where a message is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Receipt {
    /// The partition.
    pub partition: PartitionId,
    /// The offset in it; [`Receipt::NO_OFFSET`] of a delayed message, which gets one when it is released.
    pub offset: Offset,
    /// Names a delayed message until then, and for cancelling it.
    pub delay_id: Option<DelayId>,
    /// The broker's time of the append.
    pub append_time: TimestampMs,
    /// What the message has reached.
    pub durability: Durability,
    /// An earlier send of the message, by this producer or with this idempotency key, was stored; this is where.
    pub duplicate: bool,
}

impl Receipt {
    /// What a delayed message has for an offset. No message ever has this one.
    pub const NO_OFFSET: Offset = Offset(u64::MAX);
}
