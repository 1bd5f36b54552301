//! Owns what the flags of a topic's bounds mean, and what people are told of the bounds. Pure. Used by `queue`
//! and `topic`.

use postrider_protocol::message::{BoundsChange, Expired, Overflow, TopicBounds};
use serde_json::{Value, json};

use crate::args::{BoundsFlags, ExpiredName, Limit, OverflowName};
use crate::units::human_ms;

/// What the flags name.
pub(crate) fn change(flags: BoundsFlags) -> BoundsChange {
    let BoundsFlags { ttl, expired, max_messages, overflow, dedup_window } = flags;
    BoundsChange {
        message_ttl_ms: ttl.map(Limit::value),
        expired: expired.map(|expired| match expired {
            ExpiredName::Drop => Expired::Drop,
            ExpiredName::DeadLetter => Expired::DeadLetter,
        }),
        max_messages: max_messages.map(Limit::value),
        max_bytes: None,
        overflow: overflow.map(|overflow| match overflow {
            OverflowName::Reject => Overflow::Reject,
            OverflowName::DropOldest => Overflow::DropOldest,
            OverflowName::DeadLetter => Overflow::DeadLetter,
        }),
        dedup_window_ms: dedup_window.map(Limit::value),
    }
}

/// Names and values for `topic show`.
pub(crate) fn facts(bounds: &TopicBounds) -> [(&'static str, String); 3] {
    let TopicBounds { message_ttl_ms, max_messages, .. } = *bounds;
    let ttl = message_ttl_ms.map(|ttl| format!("{}, then {}", human_ms(ttl), expired(bounds)));
    let most = max_messages.map(|max| format!("{max}, then {}", overflow(bounds)));
    [
        ("ttl", ttl.unwrap_or_else(|| "forever".to_owned())),
        ("max messages", most.unwrap_or_else(|| "unlimited".to_owned())),
        ("dedup window", human_ms(bounds.dedup_window())),
    ]
}

/// The same for `topic show -o json`.
pub(crate) fn json(bounds: &TopicBounds) -> Value {
    json!({
        "ttl_ms": bounds.message_ttl_ms,
        "expired": expired(bounds),
        "max_messages": bounds.max_messages,
        "overflow": overflow(bounds),
        "dedup_window_ms": bounds.dedup_window(),
    })
}

fn expired(bounds: &TopicBounds) -> &'static str {
    match bounds.expired {
        Expired::Drop => "drop",
        Expired::DeadLetter => "dead-letter",
    }
}

fn overflow(bounds: &TopicBounds) -> &'static str {
    match bounds.overflow {
        Overflow::Reject => "reject",
        Overflow::DropOldest => "drop-oldest",
        Overflow::DeadLetter => "dead-letter",
    }
}
