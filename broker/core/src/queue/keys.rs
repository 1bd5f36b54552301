//! Owns key order: of the messages with one key, only the first unsettled one may go out, and it alone. Never
//! knows a key, only its hash; two keys with one hash wait for each other. Driven by the dispatcher, which enters
//! every unsettled message in the order of offsets and takes it out when it is settled or dead.
//!
//! A message may be out before it is the first: it was handed out while the order was another one, or in a
//! leadership that knew of an eviction which was lost. It is *early* here, and its key waits for it.
//!
//! Bound: keys with unsettled messages that were read; at [`crate::limits::QUEUE_BLOCKED_MAX`] blocked ones the
//! dispatcher reads no further than to what is out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Key {
    /// Offset and weight of its messages, in order; at least one.
    entered: VecDeque<(u64, u32)>,
    /// Those that are out, the first one left aside.
    early: BTreeSet<u64>,
}

impl Key {
    fn first(&self) -> Option<(u64, u32)> {
        self.entered.front().copied()
    }

    /// The first message, if it waits for none that is out.
    fn free(&self) -> Option<(u64, u32)> {
        self.first().filter(|_| self.early.is_empty())
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Keys {
    by_hash: BTreeMap<u64, Key>,
    of: BTreeMap<u64, u64>,
}

/// What it comes to that a message was entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entered {
    /// It is the first of its key.
    First,
    /// It waits for others.
    Blocked,
    /// It is out, and this one, which was free, waits for it.
    Blocks(u64),
}

impl Keys {
    /// Enters a message behind those of its key. `out`: a consumer has it.
    pub(super) fn enter(&mut self, offset: u64, hash: u64, weight: u32, out: bool) -> Entered {
        self.of.insert(offset, hash);
        let key = self.by_hash.entry(hash).or_default();
        let free = key.free();
        key.entered.push_back((offset, weight));
        if key.entered.len() == 1 {
            return Entered::First;
        }
        if out {
            key.early.insert(offset);
        }
        free.filter(|_| out).map_or(Entered::Blocked, |(first, _)| Entered::Blocks(first))
    }

    /// Takes a message out; tells which one is the first of its key and free now, and was not before.
    pub(super) fn leave(&mut self, offset: u64) -> Option<(u64, u32)> {
        let hash = self.of.remove(&offset)?;
        let key = self.by_hash.get_mut(&hash)?;
        let free = key.free();
        if let Ok(at) = key.entered.binary_search_by_key(&offset, |(entered, _)| *entered) {
            key.entered.remove(at);
        }
        key.early.remove(&offset);
        if let Some((first, _)) = key.first() {
            key.early.remove(&first);
        } else {
            self.by_hash.remove(&hash);
            return None;
        }
        key.free().filter(|first| Some(*first) != free)
    }

    /// A message that may have been out is not any more; tells as [`Keys::leave`] does.
    pub(super) fn back(&mut self, offset: u64) -> Option<(u64, u32)> {
        let key = self.by_hash.get_mut(self.of.get(&offset)?)?;
        if key.early.remove(&offset) { key.free() } else { None }
    }

    /// The message that this one waits for.
    pub(super) fn blocker(&self, offset: u64) -> Option<u64> {
        let key = self.by_hash.get(self.of.get(&offset)?)?;
        let (first, _) = key.first()?;
        if first == offset { key.early.first().copied() } else { Some(first) }
    }

    pub(super) fn blocked(&self) -> usize {
        self.of.len() - self.by_hash.len()
    }

    /// The messages that wait for another one of their key, or do not wait since they are out.
    pub(super) fn blocked_ones(&self) -> impl Iterator<Item = u64> {
        self.by_hash.values().flat_map(|key| {
            let free = usize::from(key.early.is_empty());
            key.entered.iter().skip(free).map(|(offset, _)| *offset)
        })
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
        assert_eq!(keys.enter(1, 7, 0, false), Entered::First);
        assert_eq!(keys.enter(2, 7, 5, false), Entered::Blocked);
        assert_eq!(keys.enter(3, 8, 0, false), Entered::First);
        assert_eq!(keys.enter(4, 7, 6, false), Entered::Blocked);
        assert_eq!((keys.blocker(2), keys.blocker(1), keys.blocked()), (Some(1), None, 2));
        assert_eq!(keys.leave(1), Some((2, 5)));
        assert_eq!(keys.leave(4), None, "one that is blocked leaves without a word");
        assert_eq!(keys.leave(2), None);
        assert_eq!(keys.leave(3), None);
        assert_eq!(keys, Keys::default(), "nothing is kept of keys without unsettled messages");
    }

    #[test]
    fn a_key_waits_for_what_is_out_before_its_turn() {
        let mut keys = Keys::default();
        assert_eq!(keys.enter(1, 7, 4, false), Entered::First);
        assert_eq!(keys.enter(2, 7, 5, false), Entered::Blocked);
        assert_eq!(keys.enter(3, 7, 6, true), Entered::Blocks(1));
        assert_eq!(keys.enter(4, 7, 7, true), Entered::Blocked, "it was not free");
        assert_eq!((keys.blocker(1), keys.blocker(4)), (Some(3), Some(1)));
        assert_eq!(keys.back(3), None, "there is another one");
        assert_eq!(keys.leave(4), Some((1, 4)));
        assert_eq!(keys.blocker(1), None);
        assert_eq!(keys.back(4), None);
        assert_eq!(keys.leave(1), Some((2, 5)));
    }

    #[test]
    fn what_is_out_is_not_early_once_it_is_the_first() {
        let mut keys = Keys::default();
        assert_eq!(keys.enter(1, 7, 4, true), Entered::First);
        assert_eq!(keys.enter(2, 7, 5, true), Entered::Blocks(1));
        assert_eq!(keys.enter(3, 7, 6, false), Entered::Blocked);
        assert_eq!(keys.leave(1), Some((2, 5)));
        assert_eq!(keys.blocker(2), None);
        assert_eq!(keys.back(2), None);
        assert_eq!(keys.leave(2), Some((3, 6)));
    }
}
