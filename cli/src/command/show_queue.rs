//! Owns how queues are shown, as tables and as JSON. Pure. Used by `queue`.

use postrider_protocol::message::{
    Breaker, DescribeQueueReply, QueueConsumer, QueuePartition, QueuePolicy, WhyMessageReply,
};
use serde_json::{Value, json};

use crate::output::table;
use crate::units::human_ms;

/// A queue's numbers over all its partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) ready: u64,
    pub(crate) leased: u64,
    pub(crate) delayed: u64,
    pub(crate) blocked: u64,
    pub(crate) dead_lettering: u64,
    pub(crate) acked: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) expired: u64,
    pub(crate) evicted: u64,
    pub(crate) oldest_ready_ms: u64,
    pub(crate) breaker_open: bool,
}

impl Sums {
    pub(crate) fn of(queue: &DescribeQueueReply) -> Self {
        queue.partitions.iter().fold(Self::default(), |sums, one| Self {
            ready: sums.ready + one.ready,
            leased: sums.leased + one.leased,
            delayed: sums.delayed + one.delayed,
            blocked: sums.blocked + one.blocked,
            dead_lettering: sums.dead_lettering + one.dead_lettering,
            acked: sums.acked + one.acked,
            dead_lettered: sums.dead_lettered + one.dead_lettered,
            expired: sums.expired + one.expired,
            evicted: sums.evicted + one.evicted,
            oldest_ready_ms: sums.oldest_ready_ms.max(one.oldest_ready_ms),
            breaker_open: sums.breaker_open || one.breaker_open,
        })
    }

    /// Messages that are not settled.
    pub(crate) fn unsettled(&self) -> u64 {
        self.ready + self.leased + self.delayed + self.blocked + self.dead_lettering
    }
}

/// `4s` for people; a queue without a ready message has no oldest one.
fn age(ready: u64, ms: u64) -> String {
    if ready == 0 { "-".to_owned() } else { human_ms(ms) }
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// The table of `queue ls`.
pub(crate) fn queues_table(queues: &[(String, DescribeQueueReply)]) -> String {
    let rows: Vec<Vec<String>> = queues
        .iter()
        .map(|(name, queue)| {
            let sums = Sums::of(queue);
            vec![
                name.clone(),
                queue.partitions.len().to_string(),
                sums.ready.to_string(),
                sums.leased.to_string(),
                (sums.delayed + sums.blocked).to_string(),
                sums.acked.to_string(),
                (sums.dead_lettering + sums.dead_lettered).to_string(),
                age(sums.ready, sums.oldest_ready_ms),
                queue.consumers.iter().filter(|one| one.connected).count().to_string(),
            ]
        })
        .collect();
    let header = [
        "name",
        "partitions",
        "ready",
        "leased",
        "waiting",
        "acked",
        "dead",
        "oldest ready",
        "consumers",
    ];
    table(&header, &rows)
}

/// The objects of `queue ls -o json`.
pub(crate) fn queues_json(queues: &[(String, DescribeQueueReply)]) -> Vec<Value> {
    queues.iter().map(|(name, queue)| queue_json(name, queue)).collect()
}

/// The text of `queue show`.
pub(crate) fn queue_text(topic: &str, queue: &DescribeQueueReply, scheduled: u64) -> String {
    let sums = Sums::of(queue);
    let mut facts = vec![("queue", topic.to_owned()), ("subscription", queue.name.clone())];
    facts.extend(policy_facts(&queue.policy));
    if sums.breaker_open {
        facts.push(("breaker is", "open: too many failures; few messages go out".to_owned()));
    }
    facts.extend([
        ("ready", sums.ready.to_string()),
        ("oldest ready", age(sums.ready, sums.oldest_ready_ms)),
        ("leased", sums.leased.to_string()),
        ("delayed", sums.delayed.to_string()),
        ("scheduled", scheduled.to_string()),
        ("blocked by key", sums.blocked.to_string()),
        ("dead-lettering", sums.dead_lettering.to_string()),
        ("acked", sums.acked.to_string()),
        ("dead-lettered", sums.dead_lettered.to_string()),
        ("expired", sums.expired.to_string()),
        ("evicted", sums.evicted.to_string()),
    ]);
    let mut text: String =
        facts.iter().map(|(name, value)| format!("{:<15} {value}\n", format!("{name}:"))).collect();
    text.push('\n');
    text.push_str(&partitions_table(&queue.partitions));
    if !queue.consumers.is_empty() {
        text.push('\n');
        text.push_str(&consumers_table(&queue.consumers));
    }
    text
}

fn policy_facts(policy: &QueuePolicy) -> Vec<(&'static str, String)> {
    let ms = |ms: u32| human_ms(ms.into());
    let mut order = Vec::new();
    if policy.key_order {
        order.push("by key");
    }
    if policy.single_active {
        order.push("single active consumer");
    }
    let breaker = policy.breaker.map(|breaker| {
        let Breaker { failure_percent, window, pause_ms } = breaker;
        format!("at {failure_percent} % of {window}, for {}", ms(pause_ms))
    });
    vec![
        ("paused", yes(policy.paused)),
        ("lease", format!("{}, at most {}", ms(policy.lease_ms), human_ms(policy.lease_max_ms))),
        ("max failures", policy.max_failures.to_string()),
        ("back-off", format!("{} to {}", ms(policy.backoff_min_ms), ms(policy.backoff_max_ms))),
        ("dead letters to", policy.dead_letter.clone().unwrap_or_else(|| "-".to_owned())),
        ("breaker", breaker.unwrap_or_else(|| "off".to_owned())),
        ("order", if order.is_empty() { "none".to_owned() } else { order.join(", ") }),
    ]
}

fn partitions_table(partitions: &[QueuePartition]) -> String {
    let rows: Vec<Vec<String>> = partitions
        .iter()
        .map(|one| {
            vec![
                one.partition.to_string(),
                one.floor.to_string(),
                one.ready.to_string(),
                one.leased.to_string(),
                one.delayed.to_string(),
                one.blocked.to_string(),
                one.dead_lettering.to_string(),
                one.acked.to_string(),
                one.dead_lettered.to_string(),
                age(one.ready, one.oldest_ready_ms),
            ]
        })
        .collect();
    let header = [
        "partition",
        "floor",
        "ready",
        "leased",
        "delayed",
        "blocked",
        "dead-lettering",
        "acked",
        "dead-lettered",
        "oldest ready",
    ];
    table(&header, &rows)
}

fn consumers_table(consumers: &[QueueConsumer]) -> String {
    let rows: Vec<Vec<String>> = consumers
        .iter()
        .map(|one| {
            vec![
                one.name.clone(),
                yes(one.connected),
                one.leased.to_string(),
                age(one.leased, one.oldest_lease_ms),
            ]
        })
        .collect();
    table(&["consumer", "connected", "leased", "oldest lease"], &rows)
}

/// The object of `queue show -o json`. Scripts rely on the names.
pub(crate) fn queue_json(topic: &str, queue: &DescribeQueueReply) -> Value {
    let sums = Sums::of(queue);
    let partitions: Vec<Value> = queue.partitions.iter().map(partition_json).collect();
    let consumers: Vec<Value> = queue
        .consumers
        .iter()
        .map(|one| {
            json!({
                "name": one.name,
                "member": one.member.to_string(),
                "connected": one.connected,
                "leased": one.leased,
                "oldest_lease_ms": one.oldest_lease_ms,
            })
        })
        .collect();
    json!({
        "name": topic,
        "id": queue.topic.to_string(),
        "subscription": queue.name,
        "subscription_id": queue.subscription.to_string(),
        "ready": sums.ready,
        "leased": sums.leased,
        "delayed": sums.delayed,
        "blocked": sums.blocked,
        "dead_lettering": sums.dead_lettering,
        "unsettled": sums.unsettled(),
        "acked": sums.acked,
        "dead_lettered": sums.dead_lettered,
        "expired": sums.expired,
        "evicted": sums.evicted,
        "oldest_ready_ms": sums.oldest_ready_ms,
        "breaker_open": sums.breaker_open,
        "policy": policy_json(&queue.policy),
        "partitions": partitions,
        "consumers": consumers,
    })
}

fn partition_json(one: &QueuePartition) -> Value {
    json!({
        "partition": one.partition.0,
        "sub_epoch": one.sub_epoch,
        "floor": one.floor.0,
        "ready": one.ready,
        "leased": one.leased,
        "delayed": one.delayed,
        "blocked": one.blocked,
        "dead_lettering": one.dead_lettering,
        "acked": one.acked,
        "dead_lettered": one.dead_lettered,
        "expired": one.expired,
        "evicted": one.evicted,
        "oldest_ready_ms": one.oldest_ready_ms,
        "breaker_open": one.breaker_open,
    })
}

fn policy_json(policy: &QueuePolicy) -> Value {
    json!({
        "lease_ms": policy.lease_ms,
        "lease_max_ms": policy.lease_max_ms,
        "max_failures": policy.max_failures,
        "backoff_min_ms": policy.backoff_min_ms,
        "backoff_max_ms": policy.backoff_max_ms,
        "unsettled_max": policy.unsettled_max,
        "key_order": policy.key_order,
        "single_active": policy.single_active,
        "paused": policy.paused,
        "dead_letter": policy.dead_letter,
        "breaker": policy.breaker.map(|breaker| json!({
            "failure_percent": breaker.failure_percent,
            "window": breaker.window,
            "pause_ms": breaker.pause_ms,
        })),
    })
}

/// The text of `queue why`; `now_ms` is Unix time.
pub(crate) fn why_text(why: &WhyMessageReply, now_ms: u64) -> String {
    let mut facts = vec![("state", why.state.clone())];
    if let Some(holder) = &why.holder {
        facts.push(("holder", holder.clone()));
    }
    if why.since.0 > 0 {
        facts.push(("since", format!("{} ago", human_ms(now_ms.saturating_sub(why.since.0)))));
    }
    if why.until.0 > 0 {
        facts.push(("until", format!("in {}", human_ms(why.until.0.saturating_sub(now_ms)))));
    }
    facts.push(("attempts", why.attempts.to_string()));
    facts.push(("failures", why.failures.to_string()));
    if !why.last_reason.is_empty() {
        facts.push(("last reason", why.last_reason.clone()));
    }
    let mut text = format!("{}\n\n", why.text);
    for (name, value) in facts {
        text.push_str(&format!("{:<12} {value}\n", format!("{name}:")));
    }
    text
}

/// The object of `queue why -o json`.
pub(crate) fn why_json(why: &WhyMessageReply) -> Value {
    json!({
        "state": why.state,
        "text": why.text,
        "holder": why.holder,
        "since_ms": why.since.0,
        "until_ms": why.until.0,
        "attempts": why.attempts,
        "failures": why.failures,
        "last_reason": why.last_reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_protocol::types::{
        MemberId, Offset, PartitionId, SubscriptionId, TimestampMs, TopicId,
    };

    fn partition(number: u32, ready: u64, oldest_ready_ms: u64) -> QueuePartition {
        QueuePartition {
            partition: PartitionId(number),
            sub_epoch: 1,
            floor: Offset(5),
            ready,
            leased: 2,
            delayed: 1,
            blocked: 0,
            dead_lettering: 0,
            acked: 10,
            dead_lettered: 3,
            expired: 0,
            evicted: 0,
            oldest_ready_ms,
            breaker_open: false,
        }
    }

    fn queue() -> DescribeQueueReply {
        DescribeQueueReply {
            topic: TopicId([1; 16]),
            subscription: SubscriptionId([2; 16]),
            name: "default".into(),
            policy: QueuePolicy { dead_letter: Some("q.dead".into()), ..QueuePolicy::default() },
            partitions: vec![partition(0, 4, 1_500), partition(1, 0, 0)],
            consumers: vec![QueueConsumer {
                name: "w1".into(),
                member: MemberId([3; 16]),
                connected: true,
                leased: 4,
                oldest_lease_ms: 2_000,
            }],
        }
    }

    #[test]
    fn a_queue_has_the_fields_that_scripts_read() {
        let json = queue_json("q", &queue());
        for (name, value) in [
            ("ready", 4),
            ("leased", 4),
            ("delayed", 2),
            ("dead_lettered", 6),
            ("acked", 20),
            ("oldest_ready_ms", 1_500),
            ("unsettled", 10),
        ] {
            assert_eq!(json[name], value, "{name}");
        }
        assert_eq!(json["partitions"][1]["ready"], 0);
        assert_eq!(json["consumers"][0]["name"], "w1");
        assert_eq!(json["policy"]["dead_letter"], "q.dead");
    }

    #[test]
    fn a_queue_is_shown_with_counts_partitions_and_consumers() {
        let text = queue_text("q", &queue(), 0);
        for line in [
            "ready:          4\n",
            "oldest ready:   1s500ms\n",
            "lease:          30s, at most 12h\n",
            "PARTITION  FLOOR  READY",
            "CONSUMER",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn why_tells_how_long() {
        let why = WhyMessageReply {
            state: "leased".into(),
            text: "it is at work.".into(),
            holder: Some("w1".into()),
            since: TimestampMs(1_000),
            until: TimestampMs(31_000),
            attempts: 2,
            failures: 1,
            last_reason: "boom".into(),
        };
        let text = why_text(&why, 6_000);
        assert!(text.starts_with("it is at work.\n\nstate:       leased\n"), "{text}");
        assert!(text.contains("since:       5s ago\nuntil:       in 25s\n"), "{text}");
    }
}
