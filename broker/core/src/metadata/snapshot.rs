//! Owns the bytes of a snapshot of the metadata image. Never folds a command. Driven by the join, which
//! writes one now and then, and reads the newest at the start.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::types::NodeId;

use super::command::{put_config, take_config};
use super::image::{Broker, Image, Subscription, Topic};
use super::patterns::Pattern;
use super::settings::put_settings;

/// Version 1 knew no queues: its subscriptions end before `queue`. Versions before 3 knew no settings: a
/// topic's config ends before them. Versions before 4 knew no patterns: they end before them.
const SNAPSHOT_VERSION: u8 = 4;

impl Image {
    /// The image's bytes: `u8 version 4`, then the fields in the order of their declarations.
    #[must_use]
    pub fn encode_snapshot(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let mut out = Writer::new(&mut bytes);
        out.put(&SNAPSHOT_VERSION);
        out.put(&self.end);
        out.put(&self.chain);
        out.put(&self.cluster);
        out.put(&self.producer_ids_end);
        out.put(&self.feature_level);
        out.count(self.brokers.len());
        for (node, broker) in &self.brokers {
            out.put(node);
            out.put(broker);
        }
        out.count(self.topics.len());
        for topic in self.topics.values() {
            put_topic(&mut out, topic);
        }
        out.count(self.patterns.len());
        for Pattern { id, pattern, name } in self.patterns.values() {
            out.put(id);
            out.put(pattern);
            out.put(name);
        }
        bytes.freeze()
    }

    /// The image in a snapshot.
    ///
    /// # Errors
    /// The bytes are not one canonical snapshot of a version that this build knows. The caller falls
    /// back to an older one.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let version @ 1..=SNAPSHOT_VERSION = input.take::<u8>()? else {
            return Err(DecodeError::Invalid("snapshot version"));
        };
        let mut image = Self {
            end: input.take()?,
            chain: input.take()?,
            cluster: input.take()?,
            producer_ids_end: input.take()?,
            feature_level: input.take()?,
            ..Self::default()
        };
        for _ in 0..input.count(NodeId::BYTES_MIN + Broker::BYTES_MIN)? {
            let node = input.take()?;
            rises(image.brokers.last_key_value().map(|(last, _)| *last), node)?;
            image.brokers.insert(node, input.take()?);
        }
        for _ in 0..input.count(TOPIC_BYTES_MIN)? {
            let topic = take_topic(&mut input, version)?;
            rises(image.topics.last_key_value().map(|(last, _)| *last), topic.id)?;
            image.partitions += u64::from(topic.config.partitions);
            if image.by_name.insert(topic.name.clone(), topic.id).is_some() {
                return Err(DecodeError::Invalid("topic name"));
            }
            image.topics.insert(topic.id, topic);
        }
        let patterns =
            if version < PATTERNS_VERSION { 0 } else { input.count(PATTERN_BYTES_MIN)? };
        for _ in 0..patterns {
            let pattern =
                Pattern { id: input.take()?, pattern: input.take()?, name: input.take()? };
            rises(image.patterns.last_key_value().map(|(last, _)| *last), pattern.id)?;
            image.patterns.insert(pattern.id, pattern);
        }
        input.finish()?;
        Ok(image)
    }
}

fn rises<K: Ord>(last: Option<K>, next: K) -> Result<(), DecodeError> {
    match last {
        Some(last) if last >= next => Err(DecodeError::Invalid("order of ids")),
        _ => Ok(()),
    }
}

impl Wire for Broker {
    const BYTES_MIN: usize = 16 + 8 + 2 + 2;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.storage);
        out.put(&self.incarnation);
        out.put(&self.host);
        out.put(&self.port);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            storage: input.take()?,
            incarnation: input.take()?,
            host: input.take()?,
            port: input.take()?,
        })
    }
}

const SUBSCRIPTION_BYTES_MIN: usize = 16 + 2 + 1 + 4;
const TOPIC_BYTES_MIN: usize = 16 + 2 + (4 + 1 + 1 + 3) + 8 + 4;
const SETTINGS_VERSION: u8 = 3;
const PATTERNS_VERSION: u8 = 4;
const PATTERN_BYTES_MIN: usize = 16 + 2 + 2;

fn put_subscription(out: &mut Writer<'_>, subscription: &Subscription) {
    out.put(&subscription.id);
    out.put(&subscription.name);
    out.put(&subscription.start);
    out.put(&subscription.partitions_at_start);
    out.put(&subscription.queue);
}

fn take_subscription(input: &mut Reader<'_>, version: u8) -> Result<Subscription, DecodeError> {
    Ok(Subscription {
        id: input.take()?,
        name: input.take()?,
        start: input.take()?,
        partitions_at_start: input.take()?,
        queue: if version == 1 { None } else { input.take()? },
    })
}

fn put_topic(out: &mut Writer<'_>, topic: &Topic) {
    out.put(&topic.id);
    out.put(&topic.name);
    put_config(out, &topic.config);
    put_settings(out, &topic.config.bounds);
    out.put(&topic.created);
    out.count(topic.subscriptions.len());
    for subscription in topic.subscriptions.values() {
        put_subscription(out, subscription);
    }
}

fn take_topic(input: &mut Reader<'_>, version: u8) -> Result<Topic, DecodeError> {
    let mut topic = Topic {
        id: input.take()?,
        name: input.take()?,
        config: take_config(input, version >= SETTINGS_VERSION)?,
        created: input.take()?,
        subscriptions: BTreeMap::new(),
    };
    for _ in 0..input.count(SUBSCRIPTION_BYTES_MIN)? {
        let subscription = take_subscription(input, version)?;
        let last = topic.subscriptions.last_key_value().map(|(last, _)| *last);
        rises(last, subscription.id)?;
        topic.subscriptions.insert(subscription.id, subscription);
    }
    Ok(topic)
}
