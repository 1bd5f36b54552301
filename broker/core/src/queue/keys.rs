//! Owns key order: of the messages with one key, only the first unsettled one may go out. Never knows a
//! key, only its hash; two keys with one hash wait for each other. Driven by the dispatcher, which enters
//! every unsettled message in the order of offsets and takes it out when it is settled or dead.
//!
//! Bound: keys with unsettled messages that were read; at [`crate::limits::QUEUE_BLOCKED_MAX`] blocked ones the
//! dispatcher reads no further.

use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, PartialEq, Eq, Debug)]
struct Key {
    head: u64,
    /// Offset and weight, in order.
    blocked: VecDeque<(u64, u32)>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Keys {
    by_hash: BTreeMap<u64, Key>,
    of: BTreeMap<u64, u64>,
    blocked: usize,
}

impl Keys {
    /// Enters a message behind those of its key; tells whether it is the first one.
    pub(super) fn enter(&mut self, offset: u64, hash: u64, weight: u32) -> bool {
        self.of.insert(offset, hash);
        match self.by_hash.get_mut(&hash) {
            Some(key) => {
                key.blocked.push_back((offset, weight));
                self.blocked += 1;
                false
            }
            None => {
                self.by_hash.insert(hash, Key { head: offset, blocked: VecDeque::new() });
                true
            }
        }
    }

    /// Takes a message out; tells which one is the first of its key now, and was not before.
    pub(super) fn leave(&mut self, offset: u64) -> Option<(u64, u32)> {
        let hash = self.of.remove(&offset)?;
        let key = self.by_hash.get_mut(&hash)?;
        if key.head != offset {
            if let Ok(at) = key.blocked.binary_search_by_key(&offset, |(blocked, _)| *blocked) {
                key.blocked.remove(at);
                self.blocked -= 1;
            }
            return None;
        }
        match key.blocked.pop_front() {
            Some(next) => {
                key.head = next.0;
                self.blocked -= 1;
                Some(next)
            }
            None => {
                self.by_hash.remove(&hash);
                None
            }
        }
    }

    /// The message that this one waits for.
    pub(super) fn blocker(&self, offset: u64) -> Option<u64> {
        let key = self.by_hash.get(self.of.get(&offset)?)?;
        (key.head != offset).then_some(key.head)
    }

    pub(super) fn blocked(&self) -> usize {
        self.blocked
    }

    /// The messages that are not the first of their key.
    pub(super) fn blocked_ones(&self) -> impl Iterator<Item = u64> {
        self.by_hash.values().flat_map(|key| key.blocked.iter().map(|(offset, _)| *offset))
    }

    /// Messages in a range that were entered.
    pub(super) fn entered(&self, start: u64, end: u64) -> Vec<u64> {
        self.of.range(start..end.max(start)).map(|(offset, _)| *offset).collect()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_key_go_one_after_the_other() {
        let mut keys = Keys::default();
        assert!(keys.enter(1, 7, 0));
        assert!(!keys.enter(2, 7, 5));
        assert!(keys.enter(3, 8, 0));
        assert!(!keys.enter(4, 7, 6));
        assert_eq!((keys.blocker(2), keys.blocker(1), keys.blocked()), (Some(1), None, 2));
        assert_eq!(keys.leave(1), Some((2, 5)));
        assert_eq!(keys.leave(4), None, "one that is blocked leaves without a word");
        assert_eq!(keys.leave(2), None);
        assert_eq!(keys.leave(3), None);
        assert_eq!(keys, Keys::default(), "nothing is kept of keys without unsettled messages");
    }
}
