//! Owns how topics and subscriptions are shown, as tables and as JSON. Pure. Used by `topic` and
//! `subscription`.

use postrider_protocol::message::{
    DescribeTopicReply, PatternDescription, SubscriptionDescription, TopicConfig, TopicMetadata,
};
use postrider_protocol::types::TopicKind;
use serde_json::{Value, json};

use super::bounds;
use crate::output::table;
use crate::units::{human_bytes, human_ms};

fn kind_name(kind: TopicKind) -> &'static str {
    match kind {
        TopicKind::Log => "log",
        TopicKind::Queue => "queue",
    }
}

/// The table of `topic ls`.
pub(crate) fn topics_table(topics: &[TopicMetadata]) -> String {
    let rows: Vec<Vec<String>> = topics
        .iter()
        .map(|topic| {
            vec![
                topic.name.clone(),
                topic.partitions.len().to_string(),
                topic.durability.name().to_owned(),
                kind_name(topic.kind).to_owned(),
                topic.id.to_string(),
            ]
        })
        .collect();
    table(&["name", "partitions", "durability", "kind", "id"], &rows)
}

/// The objects of `topic ls -o json`.
pub(crate) fn topics_json(topics: &[TopicMetadata]) -> Vec<Value> {
    topics
        .iter()
        .map(|topic| {
            json!({
                "name": topic.name,
                "id": topic.id.to_string(),
                "kind": kind_name(topic.kind),
                "durability": topic.durability.name(),
                "partitions": topic.partitions.len(),
            })
        })
        .collect()
}

/// The text of `topic show`.
pub(crate) fn topic_text(topic: &DescribeTopicReply, scheduled: u64) -> String {
    let TopicConfig { durability, retention_ms, retention_bytes, message_bytes_max, kind, .. } =
        &topic.config;
    let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_owned());
    let facts = [
        ("topic", topic.name.clone()),
        ("id", topic.id.to_string()),
        ("kind", kind_name(*kind).to_owned()),
        ("durability", durability.name().to_owned()),
        ("partitions", topic.config.partitions.to_string()),
        ("retention time", or(retention_ms.map(human_ms), "forever")),
        ("retention bytes", or(retention_bytes.map(human_bytes), "unlimited")),
        ("message bytes max", or(message_bytes_max.map(|max| human_bytes(max.into())), "broker's")),
        ("scheduled", scheduled.to_string()),
    ];
    let bounds = bounds::facts(&topic.config.bounds);
    let mut text: String = facts
        .iter()
        .chain(&bounds)
        .map(|(name, value)| format!("{:<18} {value}\n", format!("{name}:")))
        .collect();
    text.push('\n');
    let rows: Vec<Vec<String>> = topic
        .partitions
        .iter()
        .map(|partition| {
            vec![
                partition.partition.to_string(),
                partition.leader.to_string(),
                partition.log_start.to_string(),
                partition.high_watermark.to_string(),
                partition.high_watermark.0.saturating_sub(partition.log_start.0).to_string(),
                human_bytes(partition.bytes),
                partition.segments.to_string(),
            ]
        })
        .collect();
    let header = ["partition", "leader", "start", "end", "messages", "size", "segments"];
    text.push_str(&table(&header, &rows));
    if !topic.subscriptions.is_empty() {
        text.push('\n');
        text.push_str(&subscriptions_table(&topic.subscriptions));
    }
    text
}

/// The object of `topic show -o json`.
pub(crate) fn topic_json(topic: &DescribeTopicReply, scheduled: u64) -> Value {
    let config = &topic.config;
    let partitions: Vec<Value> = topic
        .partitions
        .iter()
        .map(|partition| {
            json!({
                "partition": partition.partition.0,
                "leader": partition.leader.0,
                "leader_epoch": partition.leader_epoch.0,
                "log_start": partition.log_start.0,
                "high_watermark": partition.high_watermark.0,
                "log_end": partition.log_end.0,
                "bytes": partition.bytes,
                "segments": partition.segments,
                "first_time_ms": partition.first_time.0,
                "last_time_ms": partition.last_time.0,
            })
        })
        .collect();
    json!({
        "name": topic.name,
        "id": topic.id.to_string(),
        "kind": kind_name(config.kind),
        "durability": config.durability.name(),
        "created_ms": topic.created.0,
        "retention_ms": config.retention_ms,
        "retention_bytes": config.retention_bytes,
        "message_bytes_max": config.message_bytes_max,
        "bounds": bounds::json(&config.bounds),
        "scheduled": scheduled,
        "partitions": partitions,
        "subscriptions": subscriptions_json(&topic.subscriptions),
    })
}

/// The table of `subscription ls`: one row per partition.
pub(crate) fn subscriptions_table(subscriptions: &[SubscriptionDescription]) -> String {
    let rows: Vec<Vec<String>> = subscriptions
        .iter()
        .flat_map(|subscription| {
            subscription.partitions.iter().map(|position| {
                vec![
                    subscription.name.clone(),
                    if subscription.attached { "yes" } else { "no" }.to_owned(),
                    position.partition.to_string(),
                    position.acked.to_string(),
                    position.lag.to_string(),
                ]
            })
        })
        .collect();
    table(&["subscription", "attached", "partition", "acked", "lag"], &rows)
}

/// The table of `subscription ls` without a topic.
pub(crate) fn patterns_table(patterns: &[PatternDescription]) -> String {
    let rows: Vec<Vec<String>> = patterns
        .iter()
        .map(|one| vec![one.pattern.clone(), one.name.clone(), one.topics.to_string()])
        .collect();
    table(&["pattern", "subscription", "topics"], &rows)
}

/// The objects of `subscription ls -o json` without a topic.
pub(crate) fn patterns_json(patterns: &[PatternDescription]) -> Vec<Value> {
    patterns
        .iter()
        .map(|one| {
            json!({
                "pattern": one.pattern,
                "name": one.name,
                "id": one.id.to_string(),
                "topics": one.topics,
            })
        })
        .collect()
}

/// The objects of `subscription ls -o json`.
pub(crate) fn subscriptions_json(subscriptions: &[SubscriptionDescription]) -> Vec<Value> {
    subscriptions
        .iter()
        .map(|subscription| {
            let partitions: Vec<Value> = subscription
                .partitions
                .iter()
                .map(|position| {
                    json!({
                        "partition": position.partition.0,
                        "acked": position.acked.0,
                        "lag": position.lag,
                    })
                })
                .collect();
            json!({
                "name": subscription.name,
                "id": subscription.id.to_string(),
                "attached": subscription.attached,
                "lag": subscription.partitions.iter().map(|position| position.lag).sum::<u64>(),
                "partitions": partitions,
            })
        })
        .collect()
}
