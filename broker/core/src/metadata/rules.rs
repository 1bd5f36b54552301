//! Owns the rules for names and topic settings. Never looks at what exists. Driven by `Image::check`.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{
    Breaker, DEDUP_WINDOW_MS_MAX, DEDUP_WINDOW_MS_MIN, QueuePolicy, TopicBounds, TopicConfig,
};
use postrider_protocol::types::TopicKind;

use crate::limits::{
    BACKOFF_MS_MAX, BREAKER_WINDOW_MAX, FAILURES_MAX, LEASE_LIFE_MS_MAX, LEASE_MS_MAX,
    LEASE_MS_MIN, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX, UNSETTLED_MAX,
};

/// The name of the subscription that every queue begins with.
pub const QUEUE_SUBSCRIPTION: &str = "default";

/// Appended to a topic's name, it names where its dead messages go unless the policy says otherwise.
const DEAD_LETTER_SUFFIX: &str = ".dead";

/// Accepts a topic's name: 1 to 200 of `a-z A-Z 0-9 . _ -`, beginning with a letter, a digit or `_`.
/// Names that begin with `__` are kept for the broker. (`/` is kept for namespaces.)
///
/// # Errors
/// `InvalidTopicName`, with the rule that is broken.
pub fn validate_name(name: &str) -> Result<(), ErrorBody> {
    check(name).map_err(|rule| ErrorBody::new(ErrorCode::InvalidTopicName, describe(name, rule)))
}

/// Accepts a subscription's name, by the rules for topics.
///
/// # Errors
/// `InvalidSubscriptionName`, with the rule that is broken.
pub fn validate_subscription_name(name: &str) -> Result<(), ErrorBody> {
    check(name)
        .map_err(|rule| ErrorBody::new(ErrorCode::InvalidSubscriptionName, describe(name, rule)))
}

fn describe(name: &str, rule: &str) -> String {
    let shown: String = name.chars().take(40).collect();
    format!("the name {shown:?} is not allowed: {rule}")
}

fn check(name: &str) -> Result<(), &'static str> {
    let bytes = name.as_bytes();
    let Some(first) = bytes.first() else {
        return Err("a name has at least one character");
    };
    if bytes.len() > NAME_BYTES_MAX {
        return Err("a name has at most 200 characters");
    }
    if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte)) {
        return Err("only a-z, A-Z, 0-9, '.', '_' and '-' may be used");
    }
    if matches!(first, b'.' | b'-') {
        return Err("a name begins with a letter, a digit or '_'");
    }
    if name.starts_with("__") {
        return Err("names that begin with '__' are kept for the broker");
    }
    Ok(())
}

/// Accepts a topic's settings.
///
/// # Errors
/// `InvalidConfig` or `Unsupported`, with the setting and its range.
pub fn validate_config(config: &TopicConfig) -> Result<(), ErrorBody> {
    let invalid = |text: String| Err(ErrorBody::new(ErrorCode::InvalidConfig, text));
    let retained = config.retention_ms.is_some() || config.retention_bytes.is_some();
    if config.kind == TopicKind::Queue && retained {
        return invalid(
            "a queue keeps what is not settled, and nothing else: leave retention out".into(),
        );
    }
    if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&config.partitions) {
        return invalid(format!(
            "partitions = {}, but must be 1 to {PARTITIONS_PER_TOPIC_MAX}",
            config.partitions
        ));
    }
    if config.retention_ms == Some(0) {
        return invalid(
            "retention_ms = 0, but must be at least 1; leave it out to keep for ever".into(),
        );
    }
    if config.retention_bytes == Some(0) {
        return invalid(
            "retention_bytes = 0, but must be at least 1; leave it out for no limit".into(),
        );
    }
    validate_bounds(config)?;
    if config.message_bytes_max.is_some_and(|max| !(1..=MESSAGE_BYTES_MAX).contains(&max)) {
        return invalid(format!("message_bytes_max must be 1 to {MESSAGE_BYTES_MAX}"));
    }
    Ok(())
}

/// A broker of this version keeps bounds of queues, by age and by number. A bound that nobody keeps is none, so
/// others are refused.
fn validate_bounds(config: &TopicConfig) -> Result<(), ErrorBody> {
    let TopicBounds {
        message_ttl_ms,
        expired: _,
        max_messages,
        max_bytes,
        overflow: _,
        dedup_window_ms,
    } = config.bounds;
    let unsupported = |text| Err(ErrorBody::new(ErrorCode::Unsupported, text));
    let zero = |name: &str| {
        let text = format!("{name} = 0, but must be at least 1; leave it out for no bound");
        Err(ErrorBody::new(ErrorCode::InvalidConfig, text))
    };
    if max_bytes.is_some() {
        return unsupported(
            "this broker does not bound topics by max_bytes: use max_messages, or retention_bytes of a log topic",
        );
    }
    if message_ttl_ms == Some(0) {
        return zero("message_ttl_ms");
    }
    if max_messages == Some(0) {
        return zero("max_messages");
    }
    if dedup_window_ms.is_some_and(|ms| !(DEDUP_WINDOW_MS_MIN..=DEDUP_WINDOW_MS_MAX).contains(&ms))
    {
        let text = format!(
            "dedup_window_ms must be {DEDUP_WINDOW_MS_MIN} to {DEDUP_WINDOW_MS_MAX} (1 s to 7 days)"
        );
        return Err(ErrorBody::new(ErrorCode::InvalidConfig, text));
    }
    Ok(())
}

/// The policy with a dead letter topic, for a command: what a request leaves out is filled in.
#[must_use]
pub fn complete_policy(topic: &str, mut policy: QueuePolicy) -> QueuePolicy {
    policy.dead_letter.get_or_insert_with(|| format!("{topic}{DEAD_LETTER_SUFFIX}"));
    policy
}

/// Accepts the policy of a queue-mode subscription of the topic `topic`.
///
/// # Errors
/// `InvalidConfig` or `InvalidTopicName`, with the setting and its range.
pub fn validate_policy(topic: &str, policy: &QueuePolicy) -> Result<(), ErrorBody> {
    let within = |name: &str, value: u64, min: u64, max: u64| {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        let text = format!("{name} = {value}, but must be {min} to {max}");
        Err(ErrorBody::new(ErrorCode::InvalidConfig, text))
    };
    let (lease_ms, lease_ms_max) = (u64::from(policy.lease_ms), u64::from(LEASE_MS_MAX));
    within("lease_ms", lease_ms, u64::from(LEASE_MS_MIN), lease_ms_max)?;
    within("lease_max_ms", policy.lease_max_ms, lease_ms, LEASE_LIFE_MS_MAX)?;
    within("max_failures", u64::from(policy.max_failures), 1, u64::from(FAILURES_MAX))?;
    let backoff_max_ms = u64::from(policy.backoff_max_ms);
    within("backoff_max_ms", backoff_max_ms, 0, u64::from(BACKOFF_MS_MAX))?;
    within("backoff_min_ms", u64::from(policy.backoff_min_ms), 0, backoff_max_ms)?;
    within("unsettled_max", u64::from(policy.unsettled_max), 1, u64::from(UNSETTLED_MAX))?;
    if let Some(Breaker { failure_percent, window, pause_ms }) = policy.breaker {
        within("breaker failure_percent", u64::from(failure_percent), 1, 100)?;
        within("breaker window", u64::from(window), 1, u64::from(BREAKER_WINDOW_MAX))?;
        within("breaker pause_ms", u64::from(pause_ms), 1, lease_ms_max)?;
    }
    let Some(dead_letter) = &policy.dead_letter else {
        let text = "a policy names where dead messages go";
        return Err(ErrorBody::new(ErrorCode::InvalidConfig, text));
    };
    if dead_letter == topic {
        let text = format!("the dead messages of {topic} cannot go to {topic} itself");
        return Err(ErrorBody::new(ErrorCode::InvalidConfig, text));
    }
    check(dead_letter).map_err(|rule| {
        let name = describe(dead_letter, rule);
        let text =
            format!("dead messages go to another topic, but {name}; name one in dead_letter");
        ErrorBody::new(ErrorCode::InvalidTopicName, text)
    })
}

#[cfg(test)]
mod tests {
    use postrider_protocol::message::{Expired, Overflow};
    use postrider_protocol::types::Durability;

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        for name in ["a", "0", "orders", "Orders.v2_final-x", "_private", &"x".repeat(200)] {
            assert!(validate_name(name).is_ok(), "{name}");
        }
        for name in
            ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "__broker", &"x".repeat(201), "a\n"]
        {
            let error = validate_name(name).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidTopicName, "{name}");
            let error = validate_subscription_name(name).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidSubscriptionName, "{name}");
        }
    }

    #[test]
    fn settings_have_ranges() {
        let good = TopicConfig {
            partitions: 1,
            kind: TopicKind::Log,
            durability: Durability::Fsync,
            retention_ms: None,
            retention_bytes: None,
            message_bytes_max: None,
            bounds: TopicBounds::default(),
        };
        assert!(validate_config(&good).is_ok());
        let queue = TopicConfig { kind: TopicKind::Queue, ..good };
        assert!(validate_config(&queue).is_ok());
        for kept in [
            TopicConfig { retention_ms: Some(1), ..queue },
            TopicConfig { retention_bytes: Some(1), ..queue },
        ] {
            assert_eq!(validate_config(&kept).unwrap_err().code, ErrorCode::InvalidConfig);
        }
        for bad in [
            TopicConfig { partitions: 0, ..good },
            TopicConfig { partitions: PARTITIONS_PER_TOPIC_MAX + 1, ..good },
            TopicConfig { retention_ms: Some(0), ..good },
            TopicConfig { retention_bytes: Some(0), ..good },
            TopicConfig { message_bytes_max: Some(0), ..good },
            TopicConfig { message_bytes_max: Some(MESSAGE_BYTES_MAX + 1), ..good },
        ] {
            assert_eq!(validate_config(&bad).unwrap_err().code, ErrorCode::InvalidConfig);
        }
    }

    #[test]
    fn a_bound_that_is_not_kept_is_refused() {
        let config = |kind, bounds| TopicConfig {
            partitions: 1,
            kind,
            durability: Durability::Fsync,
            retention_ms: None,
            retention_bytes: None,
            message_bytes_max: None,
            bounds,
        };
        let most = |max| TopicBounds { max_messages: Some(max), ..TopicBounds::default() };
        let refusal =
            |kind, bounds| validate_config(&config(kind, bounds)).map_err(|error| error.code);
        assert_eq!(refusal(TopicKind::Queue, most(1)), Ok(()));
        assert_eq!(refusal(TopicKind::Queue, most(0)), Err(ErrorCode::InvalidConfig));
        assert_eq!(refusal(TopicKind::Log, most(1)), Ok(()));
        assert_eq!(refusal(TopicKind::Log, most(0)), Err(ErrorCode::InvalidConfig));
        let bytes = TopicBounds { max_bytes: Some(1), ..most(1) };
        assert_eq!(refusal(TopicKind::Queue, bytes), Err(ErrorCode::Unsupported));
        for bounds in [
            TopicBounds { message_ttl_ms: Some(1), ..most(1) },
            TopicBounds { expired: Expired::DeadLetter, ..most(1) },
            TopicBounds { overflow: Overflow::DropOldest, ..most(1) },
            TopicBounds { overflow: Overflow::DeadLetter, ..most(1) },
        ] {
            assert_eq!(refusal(TopicKind::Queue, bounds), Ok(()), "{bounds:?}");
            assert_eq!(refusal(TopicKind::Log, bounds), Ok(()), "{bounds:?}");
        }
        let no_time = TopicBounds { message_ttl_ms: Some(0), ..most(1) };
        assert_eq!(refusal(TopicKind::Queue, no_time), Err(ErrorCode::InvalidConfig));
    }

    #[test]
    fn policies_have_ranges() {
        let good = complete_policy("jobs", QueuePolicy::default());
        assert_eq!(good.dead_letter.as_deref(), Some("jobs.dead"));
        assert_eq!(validate_policy("jobs", &good), Ok(()));
        let breaker = Breaker { failure_percent: 50, window: 10, pause_ms: 1_000 };
        let with = |breaker| QueuePolicy { breaker: Some(breaker), ..good.clone() };
        assert_eq!(validate_policy("jobs", &with(breaker)), Ok(()));
        for bad in [
            QueuePolicy { lease_ms: LEASE_MS_MIN - 1, ..good.clone() },
            QueuePolicy { lease_ms: LEASE_MS_MAX + 1, ..good.clone() },
            QueuePolicy { lease_max_ms: 29_999, ..good.clone() },
            QueuePolicy { max_failures: 0, ..good.clone() },
            QueuePolicy { max_failures: FAILURES_MAX + 1, ..good.clone() },
            QueuePolicy { backoff_min_ms: 2, backoff_max_ms: 1, ..good.clone() },
            QueuePolicy { unsettled_max: 0, ..good.clone() },
            QueuePolicy { dead_letter: None, ..good.clone() },
            QueuePolicy { dead_letter: Some("jobs".to_string()), ..good.clone() },
            with(Breaker { failure_percent: 0, ..breaker }),
            with(Breaker { failure_percent: 101, ..breaker }),
            with(Breaker { window: 0, ..breaker }),
            with(Breaker { pause_ms: 0, ..breaker }),
        ] {
            let error = validate_policy("jobs", &bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidConfig, "{bad:?}");
        }
    }

    #[test]
    fn a_dead_letter_topic_has_a_name_that_is_allowed() {
        let long = "x".repeat(198);
        let error = validate_policy(&long, &complete_policy(&long, QueuePolicy::default()));
        assert_eq!(error.unwrap_err().code, ErrorCode::InvalidTopicName);
    }
}
