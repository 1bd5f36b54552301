//! Owns a planted bug: a dead letter that is published once more, as a broker does that does not know what it
//! published before its crash. Never active in a run without it. Driven by the judge's client.

use std::sync::Arc;
use std::time::Duration;

use postrider::core::completion::{BatchCompletion, Pending, promise};
use postrider::core::lane::MessageParts;
use postrider::core::producer::{Enqueue, ProducerOptions, TopicFacts};
use postrider::core::{Engine, ProducerKey};
use postrider_protocol::error::ErrorBody;
use postrider_protocol::record::Record;
use postrider_protocol::types::{Compression, PartitionId, TimestampMs};

/// Publishes one letter.
pub(crate) struct Copyist {
    record: Record,
    key: ProducerKey,
    open: Pending<Result<TopicFacts, ErrorBody>>,
    sent: Option<Arc<BatchCompletion>>,
}

impl Copyist {
    pub(crate) fn open(topic: String, record: Record, engine: &mut Engine, now: Duration) -> Self {
        let options = ProducerOptions {
            linger: Duration::ZERO,
            batch_bytes: 1 << 10,
            max_in_flight_bytes: 64 << 10,
            max_in_flight_batches: 1,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(600),
            forgets: false,
        };
        let (opened, open) = promise();
        let key = engine.open_producer(topic, options, now + Duration::from_secs(600), opened);
        Self { record, key, open, sent: None }
    }

    /// Whether the letter is there.
    pub(crate) fn run(&mut self, engine: &mut Engine, now: Duration, wall: TimestampMs) -> bool {
        if let Some(sent) = &self.sent {
            return sent.outcome().is_some();
        }
        if !matches!(self.open.try_take(), Some(Ok(_))) {
            return false;
        }
        let message = MessageParts {
            partition: Some(PartitionId(0)),
            key: self.record.key.as_deref(),
            value: self.record.value.as_deref(),
            headers: &self.record.headers,
            timestamp: None,
            deliver_at: None,
            idempotency_key: None,
        };
        match engine.enqueue(self.key, || (now, wall), &message, None) {
            Enqueue::Placed { completion, .. } => self.sent = Some(completion),
            other => panic!("a planted letter is not taken: {other:?}"),
        }
        false
    }
}
