//! Owns the name of a consumer as it stands with messages that failed: many messages share one. Never tells
//! consumers apart (their members' numbers do). Driven by the dispatcher and by the fold.

use std::sync::Arc;

/// The longest name that is kept, in bytes. Longer ones are cut.
pub const CONSUMER_BYTES_MAX: usize = 128;

/// Who had a message, for people; empty if that is not known. 16 bytes, and one text per consumer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConsumerName(Option<Arc<str>>);

impl ConsumerName {
    /// As much of a name as is kept.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let name = cut(name, CONSUMER_BYTES_MAX);
        Self((!name.is_empty()).then(|| Arc::from(name)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// As much of a text as fits, cut between characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=text.len().min(bytes_max)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = ConsumerName::new(&"ä".repeat(100));
        assert_eq!(name.as_str(), "ä".repeat(64));
        let odd = ConsumerName::new(&format!("x{}", "ä".repeat(100)));
        assert_eq!(odd.as_str().len(), 127);
        assert!(ConsumerName::new("").is_empty());
    }
}
