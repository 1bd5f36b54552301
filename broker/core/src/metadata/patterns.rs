//! Owns durable subscriptions by pattern: which topics have one because of a pattern, and under which identity.
//! Never opens a partition. Driven by the image.
//!
//! A pattern gives its subscription to each topic that it means, when the pattern is created and when such a topic
//! is: in the same command, so that no message comes between. A topic that has a subscription of that name
//! already keeps its own. Queues are passed over: their messages are not streams.

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{PatternDescription, Start};
use postrider_protocol::pattern::{is_valid, matches};
use postrider_protocol::types::{Offset, SubscriptionId, TopicId, TopicKind};

use super::image::{Image, Subscription, Topic};
use super::rules::validate_subscription_name;
use crate::limits::{PATTERNS_MAX, SUBSCRIPTIONS_PER_TOPIC_MAX};

/// A durable subscription of all topics of a pattern, in stream mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    /// Its identity.
    pub id: SubscriptionId,
    /// Which topics.
    pub pattern: String,
    /// The name of the subscription in each of them.
    pub name: String,
}

impl Pattern {
    /// Whether a topic has the subscription because of this pattern, unless it has one of that name.
    fn means(&self, topic: &Topic) -> bool {
        is_meant(&self.pattern, topic)
    }

    /// The identity of its subscription in a topic. Both are random, so what they differ by is too.
    fn id_in(&self, topic: TopicId) -> SubscriptionId {
        let mut id = self.id.0;
        id.iter_mut().zip(topic.0).for_each(|(byte, other)| *byte ^= other);
        SubscriptionId(id)
    }
}

fn is_meant(pattern: &str, topic: &Topic) -> bool {
    topic.config.kind == TopicKind::Log && matches(pattern, &topic.name)
}

/// Refuses what is no pattern.
fn validate_pattern(pattern: &str) -> Result<(), ErrorBody> {
    if is_valid(pattern) {
        return Ok(());
    }
    let shown: String = pattern.chars().take(40).collect();
    let text = format!(
        "{shown:?} is no pattern of topic names: use a-z, A-Z, 0-9, '.', '_', '-' and '*', which stands for \
         any characters"
    );
    Err(ErrorBody::new(ErrorCode::InvalidTopicName, text))
}

impl Image {
    /// The pattern of this text and this name.
    #[must_use]
    pub fn pattern_named(&self, pattern: &str, name: &str) -> Option<&Pattern> {
        self.patterns.values().find(|known| known.pattern == pattern && known.name == name)
    }

    /// The patterns, and how many topics have a subscription because of each.
    #[must_use]
    pub fn describe_patterns(&self) -> Vec<PatternDescription> {
        let describe = |known: &Pattern| {
            let has = |topic: &&Topic| topic.subscriptions.contains_key(&known.id_in(topic.id));
            let topics = self.topics.values().filter(has).count();
            PatternDescription {
                pattern: known.pattern.clone(),
                name: known.name.clone(),
                id: known.id,
                topics: u32::try_from(topics).unwrap_or(u32::MAX),
            }
        };
        self.patterns.values().map(describe).collect()
    }

    pub(super) fn check_pattern(&self, pattern: &str, name: &str) -> Result<(), ErrorBody> {
        validate_pattern(pattern)?;
        validate_subscription_name(name)?;
        if self.patterns.len() >= PATTERNS_MAX {
            let text = format!("there are {PATTERNS_MAX} patterns, as many as allowed");
            return Err(ErrorBody::new(ErrorCode::SubscriptionLimit, text));
        }
        let full = |topic: &&Topic| {
            is_meant(pattern, topic) && topic.subscriptions.len() >= SUBSCRIPTIONS_PER_TOPIC_MAX
        };
        match self.topics.values().find(full) {
            Some(topic) => {
                let text = format!("topic {} has as many subscriptions as allowed", topic.name);
                Err(ErrorBody::new(ErrorCode::SubscriptionLimit, text))
            }
            None => Ok(()),
        }
    }

    /// Gives a new topic what the patterns say: from its first message on.
    pub(super) fn follow_patterns(&self, topic: &mut Topic) {
        for pattern in self.patterns.values() {
            if pattern.means(topic) {
                give(topic, pattern, Start::Offset(Offset(0)));
            }
        }
    }

    /// Adds a pattern; tells which topics have a subscription because of it.
    pub(super) fn insert_pattern(
        &mut self,
        pattern: Pattern,
        start: &Start,
    ) -> Vec<(TopicId, SubscriptionId)> {
        let mut given = Vec::new();
        for topic in self.topics.values_mut().filter(|topic| pattern.means(topic)) {
            if let Some(id) = give(topic, &pattern, start.clone()) {
                given.push((topic.id, id));
            }
        }
        self.patterns.insert(pattern.id, pattern);
        given
    }

    /// Removes a pattern and its subscriptions; tells which topics had one.
    pub(super) fn remove_pattern(&mut self, pattern: &Pattern) -> Vec<(TopicId, SubscriptionId)> {
        self.patterns.remove(&pattern.id);
        let mut taken = Vec::new();
        for topic in self.topics.values_mut() {
            let id = pattern.id_in(topic.id);
            if topic.subscriptions.remove(&id).is_some() {
                taken.push((topic.id, id));
            }
        }
        taken
    }
}

fn give(topic: &mut Topic, pattern: &Pattern, start: Start) -> Option<SubscriptionId> {
    if topic.subscription(&pattern.name).is_some() {
        return None;
    }
    let id = pattern.id_in(topic.id);
    let (name, partitions_at_start) = (pattern.name.clone(), topic.config.partitions);
    let subscription = Subscription { id, name, start, partitions_at_start, queue: None };
    topic.subscriptions.insert(id, subscription);
    Some(id)
}
