//! Owns the consumers of one session: which queues they are attached to, with how much credit, and where
//! each stands on its partitions. Never reads a log and never leases (`lease` does). Driven by the session
//! and its turns, under the readers' lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use postrider_core::queue::{LeaseCredit, MemberKey};
use postrider_protocol::types::{Offset, PartitionId, SubscriptionHandle, SubscriptionId};

use crate::join::partition::PartitionHandle;

/// A consumer of a queue-mode subscription.
pub(crate) struct Consumer {
    pub(crate) handle: SubscriptionHandle,
    pub(crate) subscription: SubscriptionId,
    /// What the client is still willing to take; below zero after an entry that was larger.
    messages: i64,
    bytes: i64,
    pub(crate) cursors: BTreeMap<PartitionId, u64>,
    /// Cursors that wait for credit.
    pub(crate) parked: Vec<u64>,
}

/// A consumer on one partition.
pub(crate) struct QueueCursor {
    pub(crate) consumer: u64,
    pub(crate) partition: Arc<PartitionHandle>,
    pub(crate) member: MemberKey,
    /// What begins here was brought into memory and is taken whether or not it still is there.
    pub(crate) loaded: Option<Offset>,
    /// Was told that there is something, and has not asked: if it cannot take it another one must.
    pub(crate) woken: bool,
    pub(crate) queued: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Consumers {
    /// Bound: with the readers, `subscriptions_max`.
    pub(crate) consumers: BTreeMap<u64, Consumer>,
    /// Bound: one per consumer and partition.
    pub(crate) cursors: BTreeMap<u64, QueueCursor>,
}

impl QueueCursor {
    pub(crate) fn new(consumer: u64, partition: Arc<PartitionHandle>, member: MemberKey) -> Self {
        Self { consumer, partition, member, loaded: None, woken: false, queued: false }
    }
}

impl Consumer {
    pub(crate) fn new(
        handle: SubscriptionHandle,
        subscription: SubscriptionId,
        messages: u32,
        bytes: u32,
    ) -> Self {
        Self {
            handle,
            subscription,
            messages: i64::from(messages),
            bytes: i64::from(bytes),
            cursors: BTreeMap::new(),
            parked: Vec::new(),
        }
    }

    /// The client gives credit.
    pub(crate) fn credit(&mut self, messages: u32, bytes: u32) {
        self.messages = self.messages.saturating_add(i64::from(messages));
        self.bytes = self.bytes.saturating_add(i64::from(bytes));
    }

    /// Messages in entries of so many bytes are on their way.
    pub(crate) fn sent(&mut self, messages: u64, bytes: usize) {
        let messages = i64::try_from(messages).unwrap_or(i64::MAX);
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// What may be leased at once, within `bytes_max`. Zero messages if there is no credit.
    pub(crate) fn may_take(&self, bytes_max: usize) -> LeaseCredit {
        let bytes = u64::try_from(self.bytes).unwrap_or(0).min(bytes_max as u64);
        let messages = match u32::try_from(self.messages.max(0)) {
            _ if bytes == 0 => 0,
            Ok(messages) => messages,
            Err(_large) => u32::MAX,
        };
        LeaseCredit { messages, bytes }
    }
}
