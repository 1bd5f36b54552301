//! Owns the text of a dead letter: the message as it was, and headers that say where it comes from and what
//! happened to it. Never publishes it. Driven by `dead_letters`.

use bytes::Bytes;
use postrider_core::queue::{DeadCause, DeadLetter, DeadTarget};
use postrider_protocol::batch::{Batch, BatchBuilder, DecodeLimits};
use postrider_protocol::entry::split_entry;
use postrider_protocol::message::{AckLevel, Publish, PublishHead};
use postrider_protocol::partition::key_hash;
use postrider_protocol::record::{Header, Record};
use postrider_protocol::types::{
    Compression, Offset, PartitionId, ProducerEpoch, ProducerId, SubscriptionId, TimestampMs,
};

use crate::join::partition::PartitionHandle;

/// What all headers that are added begin with. Those of an earlier death are replaced.
const PREFIX: &[u8] = b"dl.";

/// How often the message has died before, and with this.
const HOPS: &[u8] = b"dl.hops";

/// Where a letter comes from.
pub(crate) struct Source<'a> {
    pub(crate) partition: &'a PartitionHandle,
    pub(crate) topic: &'a str,
    pub(crate) subscription: &'a str,
}

/// A letter, ready to be published.
pub(crate) struct Letter {
    pub(crate) publish: Publish,
    pub(crate) target: DeadTarget,
}

/// A message as it is in the log, and when it came there.
struct Found {
    record: Record,
    append_time: TimestampMs,
}

impl Source<'_> {
    /// The letter of a dead message. One that cannot be read any more is told of by its headers alone.
    pub(crate) fn write(&self, subscription: SubscriptionId, letter: &DeadLetter) -> Letter {
        let (record, append_time, problem) = match self.find(letter.offset) {
            Ok(Found { record, append_time }) => (record, append_time, None),
            Err(problem) => (Record::default(), TimestampMs(0), Some(problem)),
        };
        if letter.cause == DeadCause::Redriven && problem.is_none() {
            return self.publish(subscription, letter, &record, &record.headers, 0);
        }
        let hops = record.headers.iter().find(|(name, _)| name == HOPS);
        let hops = hops
            .and_then(|(_, value)| std::str::from_utf8(value.as_ref()?).ok()?.parse().ok())
            .unwrap_or(0_u32);
        let mut headers: Vec<Header> =
            record.headers.iter().filter(|(name, _)| !name.starts_with(PREFIX)).cloned().collect();
        let kept = headers.len();
        let mut add = |name: &'static str, value: String| {
            headers.push((Bytes::from_static(name.as_bytes()), Some(Bytes::from(value))));
        };
        add("dl.reason", cause(letter.cause).to_string());
        let (partition, offset) = (self.partition.partition(), letter.offset);
        add("dl.source", format!("{}/{partition}/{offset}/{append_time}", self.topic));
        add("dl.subscription", self.subscription.to_string());
        add("dl.failures", letter.failures.to_string());
        add("dl.attempts", letter.attempts.to_string());
        add("dl.first_at", letter.first.to_string());
        add("dl.last_at", letter.last.to_string());
        add("dl.last_error", letter.reason.clone());
        if !letter.consumer.is_empty() {
            add("dl.last_consumer", letter.consumer.as_str().to_string());
        }
        add("dl.hops", hops.saturating_add(1).to_string());
        if let Some(problem) = problem {
            add("dl.lost", problem);
        }
        self.publish(subscription, letter, &record, &headers, kept)
    }

    /// `headers` from `kept` on are those that must stay.
    fn publish(
        &self,
        subscription: SubscriptionId,
        letter: &DeadLetter,
        record: &Record,
        headers: &[Header],
        kept: usize,
    ) -> Letter {
        let producer = self.session(subscription, letter.target);
        let batch = batch(record, headers, kept, producer, letter);
        let head = PublishHead {
            topic: letter.target.topic,
            partition: letter.target.partition,
            leader_epoch: self.partition.hub.identity.leader_epoch,
            producer,
            epoch: ProducerEpoch(0),
            ack: AckLevel::Quorum,
            keyed: false,
            seq_count: 1,
            base_sequence: letter.sequence,
            resolved_upto: letter.sequence,
        };
        Letter { publish: Publish { head, batch }, target: letter.target }
    }

    fn find(&self, offset: Offset) -> Result<Found, String> {
        let run = self
            .partition
            .log
            .read(offset, Offset(offset.0 + 1), 1)
            .map_err(|error| error.to_string())?;
        run.load().map_err(|error| error.to_string())?;
        let mut bytes = run.slices.into_iter().next().ok_or("it is not in the log any more")?;
        let entry = split_entry(&mut bytes).map_err(|error| error.to_string())?;
        entry.check_body().map_err(|error| error.to_string())?;
        let base = entry.header.base_offset.0;
        let mut records = Batch::of_entry(&entry)
            .records(DecodeLimits::default())
            .map_err(|error| error.to_string())?;
        let is_wanted = |delta: u32| base + u64::from(delta) == offset.0;
        let found = records.find_map(|record| match record {
            Ok(record) => is_wanted(record.offset_delta).then_some(Ok(record.record)),
            Err(error) => Some(Err(error.to_string())),
        });
        let record = found.unwrap_or_else(|| Err("it is not in its batch".to_string()))?;
        Ok(Found { record, append_time: entry.header.append_time })
    }

    /// The session in which letters of this subscription and partition go to a target.
    fn session(&self, subscription: SubscriptionId, target: DeadTarget) -> ProducerId {
        let mut name = Vec::with_capacity(40);
        name.extend_from_slice(&subscription.0);
        name.extend_from_slice(&self.partition.partition().0.to_le_bytes());
        name.extend_from_slice(&target.topic.0);
        let PartitionId(partition) = target.partition;
        name.extend_from_slice(&partition.to_le_bytes());
        ProducerId::internal(key_hash(&name))
    }
}

/// A batch of one. A message with as many headers as allowed loses its own, not those that say what it is.
fn batch(
    record: &Record,
    headers: &[Header],
    kept: usize,
    producer: ProducerId,
    letter: &DeadLetter,
) -> Batch {
    let (key, value) = (record.key.as_deref(), record.value.as_deref());
    let size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
    let mut builder = BatchBuilder::new(Compression::None, size + 512);
    if builder.push(key, value, headers, record.timestamp).is_err() {
        let own = headers.get(kept..).unwrap_or_default();
        let pushed = builder.push(key, value, own, record.timestamp);
        assert!(pushed.is_ok(), "a message that was stored fits a batch: {pushed:?}");
    }
    builder.finish(producer, ProducerEpoch(0), letter.sequence)
}

/// What a header of a message says.
pub(crate) fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let found = record.headers.iter().find(|(known, _)| known == name.as_bytes());
    found.and_then(|(_, value)| std::str::from_utf8(value.as_ref()?).ok())
}

/// The topic and the partition that a letter comes from.
pub(crate) fn origin(record: &Record) -> Option<(&str, PartitionId)> {
    let mut parts = header(record, "dl.source")?.rsplitn(4, '/');
    let (_time, _offset) = (parts.next()?, parts.next()?);
    let partition = parts.next()?.parse().ok()?;
    Some((parts.next()?, PartitionId(partition)))
}

fn cause(cause: DeadCause) -> &'static str {
    match cause {
        DeadCause::MaxFailures => "max_failures",
        DeadCause::Rejected => "rejected",
        DeadCause::Expired => "expired",
        DeadCause::Overflow => "overflow",
        // A letter that could not be read when it was to go back.
        DeadCause::Redriven => "redriven",
    }
}
