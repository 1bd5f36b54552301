//! Owns that dead letters come to an end: no queue's letters come back to its topic by themselves. Never looks at
//! messages. Driven by [`Image::check`].
//!
//! The ways form a graph: from a topic to the dead letter topic of each of its queue-mode subscriptions, by name,
//! since that topic may not exist yet. A command that would close a circle is refused. Commands that are applied
//! are not judged again, so circles that older brokers allowed stay until the queue is altered.

use std::collections::BTreeSet;

use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::QueuePolicy;

use super::image::Image;

impl Image {
    /// Refuses a queue-mode subscription of `topic` whose dead letters would come back there.
    pub(super) fn check_circle(&self, topic: &str, policy: &QueuePolicy) -> Result<(), ErrorBody> {
        let Some(first) = &policy.dead_letter else { return Ok(()) };
        // Bound: the topics, each looked at once.
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut left: Vec<&str> = vec![first];
        while let Some(name) = left.pop() {
            if name == topic {
                let text = format!(
                    "dead messages of {topic} would go to {first} and from there back to {topic}, for ever; \
                     name another topic in dead_letter, and use max_failures and the back-off for retries"
                );
                return Err(ErrorBody::new(ErrorCode::InvalidConfig, text));
            }
            if !seen.insert(name) {
                continue;
            }
            let Some(next) = self.topic_named(name) else { continue };
            let policies = next.subscriptions.values().filter_map(|known| known.queue.as_ref());
            left.extend(policies.filter_map(|policy| policy.dead_letter.as_deref()));
        }
        Ok(())
    }
}
