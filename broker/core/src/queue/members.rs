//! Owns the consumers of a queue on one partition: who is attached, who is away and may come back. Never
//! knows a connection. Driven by the dispatcher.
//!
//! Bound: attached consumers, which the join limits, and those within their grace.

use std::collections::BTreeMap;

use super::consumer_name::ConsumerName;

/// One consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) name: ConsumerName,
    /// When it is given up, in monotonic ms; none while it is connected.
    pub(super) lost_at: Option<u64>,
    /// When it renewed its leases last, in monotonic ms.
    pub(super) renewed: u64,
    /// The number of the next message that it gets.
    pub(super) next_dispatch: u64,
    /// One past the last message that it has begun with.
    pub(super) started: u64,
    /// Messages that it has.
    pub(super) leased: u64,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Members {
    by_key: BTreeMap<u64, Member>,
    /// The one that gets messages, with `single_active`.
    active: Option<u64>,
}

impl Members {
    /// Attaches a consumer, or ends the grace of one that is away.
    pub(super) fn attach(&mut self, key: u64, name: &str, now_ms: u64) {
        let member = self.by_key.entry(key).or_insert_with(|| Member {
            name: ConsumerName::default(),
            lost_at: None,
            renewed: now_ms,
            next_dispatch: 0,
            started: 0,
            leased: 0,
        });
        if member.name.as_str() != name {
            member.name = ConsumerName::new(name);
        }
        member.lost_at = None;
        member.renewed = member.renewed.max(now_ms);
    }

    pub(super) fn get(&self, key: u64) -> Option<&Member> {
        self.by_key.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut Member> {
        self.by_key.get_mut(&key)
    }

    pub(super) fn remove(&mut self, key: u64) {
        self.by_key.remove(&key);
        if self.active == Some(key) {
            self.active = None;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.by_key.iter().map(|(key, member)| (*key, member))
    }

    pub(super) fn is_connected(&self, key: u64) -> bool {
        self.by_key.get(&key).is_some_and(|member| member.lost_at.is_none())
    }

    /// The one that gets messages with `single_active`: whoever it was as long as it is there, else the
    /// lowest that is connected.
    pub(super) fn active(&mut self) -> Option<u64> {
        if self.active.is_none() {
            let connected = self.by_key.iter().find(|(_, member)| member.lost_at.is_none());
            self.active = connected.map(|(key, _)| *key);
        }
        self.active
    }

    /// Whether this one gets messages with `single_active`: it does if nobody did.
    pub(super) fn claim(&mut self, key: u64) -> bool {
        *self.active.get_or_insert(key) == key
    }

    /// When the first one that is away is given up.
    pub(super) fn next_loss(&self) -> Option<u64> {
        self.by_key.values().filter_map(|member| member.lost_at).min()
    }

    /// The name of a consumer; empty if it is not known, or is nobody.
    pub(super) fn name(&self, key: u64) -> ConsumerName {
        self.by_key.get(&key).map(|member| member.name.clone()).unwrap_or_default()
    }

    /// Those whose grace is over.
    pub(super) fn lost(&self, now_ms: u64) -> Vec<u64> {
        let over = |member: &Member| member.lost_at.is_some_and(|lost_at| lost_at <= now_ms);
        self.by_key.iter().filter(|(_, member)| over(member)).map(|(key, _)| *key).collect()
    }

    /// A message is leased to it no more; or is again.
    pub(super) fn released(&mut self, key: u64) {
        if let Some(member) = self.by_key.get_mut(&key) {
            member.leased = member.leased.saturating_sub(1);
        }
    }

    pub(super) fn leased_again(&mut self, key: u64) {
        if let Some(member) = self.by_key.get_mut(&key) {
            member.leased += 1;
        }
    }

    pub(super) fn all_released(&mut self) {
        self.by_key.values_mut().for_each(|member| member.leased = 0);
    }
}
