//! Owns the way of a publish from its frame to its partition. Never decides about sequences. Driven by
//! `receive`, once per batch.
//!
//! Costs: the head is decoded, the batch's crc is computed outside the lock, the partition comes from a
//! small cache; then one short lock for decision and queueing. The batch stays the slice of the read
//! buffer that it came in.

use std::sync::Arc;

use postrider_core::Now;
use postrider_core::partition::{Keyed, read_keys};
use postrider_protocol::batch::{BatchError, DecodeLimits};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::Frame;
use postrider_protocol::message::{ConfirmRun, Outcome, Publish, PublishAtomic, PublishHead};

use super::{CACHE_MAX, Inbound, Session, SessionEnd};
use crate::join::leader::Leader;
use crate::join::partition::{PartitionHandle, Turn};

/// How long a client waits before it sends again what was refused for lack of memory.
const OVERLOADED_RETRY_MS: u32 = 20;

impl Session {
    pub(super) fn publish(
        &self,
        now: Now,
        inbound: &mut Inbound,
        frame: Frame,
    ) -> Result<(), SessionEnd> {
        let publish: Publish = self.parse(frame)?;
        self.admit(now, inbound, &publish, |partition, leader, keys, turn| {
            leader.publish(partition, &publish, keys, &self.outbox, turn);
        });
        Ok(())
    }

    pub(super) fn publish_atomic(
        &self,
        now: Now,
        inbound: &mut Inbound,
        frame: Frame,
    ) -> Result<(), SessionEnd> {
        let atomic: PublishAtomic = self.parse(frame)?;
        self.admit(now, inbound, &atomic.publish, |partition, leader, keys, turn| {
            leader.publish_atomic(partition, &atomic, keys, &self.outbox, turn);
        });
        Ok(())
    }

    /// Checks a batch and hands it to its partition's leader, or answers.
    pub(super) fn admit(
        &self,
        now: Now,
        inbound: &mut Inbound,
        publish: &Publish,
        hand_over: impl FnOnce(&Arc<PartitionHandle>, &mut Leader, &[Keyed], &mut Turn<'_>),
    ) {
        let counters = &self.hub.counters;
        counters.publish_batches.add(1);
        counters.publish_messages.add(u64::from(publish.batch.record_count));
        counters.publish_bytes.add(publish.batch.body.len() as u64);
        let done = self.check_publish(publish).and_then(|()| {
            let partition = self.publish_partition(inbound, &publish.head)?;
            let sizes = publish.batch.check_message_sizes(partition.message_bytes_max());
            sizes.map_err(batch_refused)?;
            let keys = keys_of(publish)?;
            counters.keyed_messages.add(keys.len() as u64);
            partition.lead(now, |leader, turn| hand_over(partition, leader, &keys, turn))
        });
        if let Err(error) = done {
            self.reject(&publish.head, error);
        }
    }

    fn check_publish(&self, publish: &Publish) -> Result<(), ErrorBody> {
        if self.hub.is_draining() {
            let text = "the broker is shutting down; reconnect and send again";
            return Err(ErrorBody::new(ErrorCode::ShuttingDown, text));
        }
        if self.hub.budget.is_spent() {
            let text = "the broker holds as many unconfirmed bytes as it may; send again";
            return Err(ErrorBody::new(ErrorCode::Overloaded, text)
                .with_retry_after_ms(OVERLOADED_RETRY_MS));
        }
        publish.batch.validate(&self.hub.options.limits).map(drop).map_err(batch_refused)
    }

    fn publish_partition<'a>(
        &self,
        inbound: &'a mut Inbound,
        head: &PublishHead,
    ) -> Result<&'a Arc<PartitionHandle>, ErrorBody> {
        let is_wanted = |partition: &Arc<PartitionHandle>| {
            partition.key.topic == head.topic
                && partition.key.partition == head.partition
                && !partition.is_deleted()
        };
        if !inbound.last.as_ref().is_some_and(is_wanted) {
            inbound.last = Some(self.find_partition(inbound, head)?);
        }
        Ok(inbound.last.as_ref().expect("it was just set"))
    }

    fn find_partition(
        &self,
        inbound: &mut Inbound,
        head: &PublishHead,
    ) -> Result<Arc<PartitionHandle>, ErrorBody> {
        let key = (head.topic, head.partition);
        if let Some(partition) = inbound.cache.get(&key)
            && !partition.is_deleted()
        {
            return Ok(Arc::clone(partition));
        }
        let topic = self.catalog.topic_by_id(head.topic).ok_or_else(|| {
            let text = "there is no topic with this id; it was deleted, or never created";
            ErrorBody::new(ErrorCode::UnknownTopic, text)
        })?;
        let partition = topic.partition(head.partition)?;
        if inbound.cache.len() >= CACHE_MAX {
            inbound.cache.clear();
        }
        inbound.cache.insert(key, Arc::clone(&partition));
        Ok(partition)
    }

    /// Answers a publish that never reached its partition.
    fn reject(&self, head: &PublishHead, error: ErrorBody) {
        let error = self.hub.refuse(error);
        let count = head.seq_count.max(1);
        self.hub.counters.rejected_messages.add(u64::from(count));
        let run = ConfirmRun {
            topic: head.topic,
            partition: head.partition,
            producer: head.producer,
            base_sequence: head.base_sequence,
            count,
            outcome: Outcome::Rejected { error },
        };
        self.outbox.push_confirm(Some(run), 0);
        self.outbox.wake();
    }
}

/// The idempotency keys of a batch, read before the partition is locked: they cost a walk over the batch.
fn keys_of(publish: &Publish) -> Result<Vec<Keyed>, ErrorBody> {
    match publish.head.keyed {
        true => read_keys(publish.head.topic, &publish.batch, DecodeLimits::default()),
        false => Ok(Vec::new()),
    }
}

fn batch_refused(error: BatchError) -> ErrorBody {
    let code = match error {
        BatchError::TooLarge { .. } => ErrorCode::BatchTooLarge,
        BatchError::Codec(_) => ErrorCode::UnsupportedCompression,
        _ => ErrorCode::CorruptBatch,
    };
    ErrorBody::new(code, error.to_string())
}
