//! Owns the rules for names and topic settings. Never looks at what exists. Driven by `Image::check`.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::TopicConfig;
use postrider_protocol::types::TopicKind;

use crate::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX};

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
    if config.kind == TopicKind::Queue {
        let text = "topics of kind queue are not supported by this version; use kind log";
        return Err(ErrorBody::new(ErrorCode::Unsupported, text));
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
    if config.message_bytes_max.is_some_and(|max| !(1..=MESSAGE_BYTES_MAX).contains(&max)) {
        return invalid(format!("message_bytes_max must be 1 to {MESSAGE_BYTES_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
        };
        assert!(validate_config(&good).is_ok());
        let queue = TopicConfig { kind: TopicKind::Queue, ..good };
        assert_eq!(validate_config(&queue).unwrap_err().code, ErrorCode::Unsupported);
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
}
