//! Owns a sorted map from offsets to small values, for values that come and go in great numbers and
//! mostly side by side. Never knows what the values are. Driven by the dispatcher.
//!
//! A map of chunks: a chunk holds up to [`CHUNK_MAX`] neighbours in one allocation, so that a run of
//! offsets costs one descent for many of them, and a value little more memory than it is large. A
//! `BTreeMap` of single values is left half empty by rising insertions (11 to a node, split in the
//! middle): 96 bytes for a value of 40, where this one takes 48 to 64.
//!
//! ```text
//! chunks: key <= offsets of the chunk < next key;  no chunk is empty
//! insert behind the last one of a full chunk: a new chunk; elsewhere in a full one: split in the middle
//! remove: a chunk that is half unused gives memory back; a small one joins the next if both are small
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Index, RangeBounds};

/// Values in a chunk: few enough that moving half of them is cheap, many enough that a descent and an
/// allocation are shared.
const CHUNK_MAX: usize = 64;
/// A chunk of fewer looks for a neighbour to join.
const CHUNK_SMALL: usize = CHUNK_MAX / 4;

type Chunk<T> = VecDeque<(u64, T)>;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct OffsetMap<T> {
    chunks: BTreeMap<u64, Chunk<T>>,
    len: usize,
}

impl<T> Default for OffsetMap<T> {
    fn default() -> Self {
        Self { chunks: BTreeMap::new(), len: 0 }
    }
}

impl<T> OffsetMap<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn get(&self, offset: &u64) -> Option<&T> {
        let (_, chunk) = self.chunks.range(..=offset).next_back()?;
        let at = position(chunk, *offset).ok()?;
        Some(&chunk[at].1)
    }

    pub(super) fn get_mut(&mut self, offset: &u64) -> Option<&mut T> {
        let (_, chunk) = self.chunks.range_mut(..=offset).next_back()?;
        let at = position(chunk, *offset).ok()?;
        Some(&mut chunk[at].1)
    }

    pub(super) fn contains_key(&self, offset: &u64) -> bool {
        self.get(offset).is_some()
    }

    /// Puts a value there, in place of the one that was there.
    pub(super) fn insert(&mut self, offset: u64, value: T) {
        let Some((_, chunk)) = self.chunks.range_mut(..=offset).next_back() else {
            self.insert_first(offset, value);
            return;
        };
        match position(chunk, offset) {
            Ok(at) => chunk[at].1 = value,
            Err(at) if chunk.len() < CHUNK_MAX => {
                chunk.insert(at, (offset, value));
                self.len += 1;
            }
            Err(CHUNK_MAX) => {
                self.chunks.insert(offset, VecDeque::from([(offset, value)]));
                self.len += 1;
            }
            Err(_) => {
                let upper = chunk.split_off(CHUNK_MAX / 2);
                self.chunks.insert(upper[0].0, upper);
                self.insert(offset, value);
            }
        }
    }

    /// Puts a value before all others.
    fn insert_first(&mut self, offset: u64, value: T) {
        let mut chunk = match self.chunks.first_entry() {
            Some(first) if first.get().len() < CHUNK_MAX => first.remove(),
            Some(_) | None => VecDeque::new(),
        };
        chunk.push_front((offset, value));
        self.chunks.insert(offset, chunk);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, offset: &u64) -> Option<T> {
        let (key, chunk) = self.chunks.range_mut(..=offset).next_back()?;
        let at = position(chunk, *offset).ok()?;
        let (_, value) = chunk.remove(at)?;
        let key = *key;
        self.len -= 1;
        self.tidy(key);
        Some(value)
    }

    /// Takes all of a range out, in order.
    pub(super) fn take_range(&mut self, start: u64, end: u64) -> Vec<(u64, T)> {
        let mut taken = Vec::new();
        let mut from = start;
        while let Some((key, chunk)) = self.chunk_at_or_after(from).filter(|(key, _)| *key < end) {
            let range = part(chunk, Bound::Included(from), Bound::Excluded(end));
            taken.reserve(range.len());
            taken.extend(chunk.drain(range));
            from = self.chunks.range(key + 1..).next().map_or(end, |(next, _)| *next);
            self.tidy(key);
            if from >= end {
                break;
            }
        }
        self.len -= taken.len();
        taken
    }

    /// The chunk that an offset falls into, or the first one behind it.
    fn chunk_at_or_after(&mut self, offset: u64) -> Option<(u64, &mut Chunk<T>)> {
        let key = self.chunks.range(..=offset).next_back().map_or(0, |(key, _)| *key);
        self.chunks.range_mut(key..).next().map(|(key, chunk)| (*key, chunk))
    }

    /// Gives memory back after values left a chunk.
    fn tidy(&mut self, key: u64) {
        let Some(chunk) = self.chunks.get_mut(&key) else { return };
        if chunk.is_empty() {
            self.chunks.remove(&key);
            return;
        }
        let mut key = key;
        if chunk.len() < CHUNK_SMALL {
            let next = self.chunks.range(key + 1..).next().map(|(next, _)| *next);
            let before = self.chunks.range(..key).next_back().map(|(before, _)| *before);
            if before.is_some_and(|before| self.join(before, key)) {
                key = before.expect("it was joined");
            } else if let Some(next) = next {
                self.join(key, next);
            }
        }
        let chunk = self.chunks.get_mut(&key).expect("a chunk that was left or joined");
        if chunk.capacity() >= 8 && chunk.len() * 2 <= chunk.capacity() {
            chunk.shrink_to(chunk.len() + chunk.len() / 4);
        }
    }

    /// Makes one chunk of two neighbours, if both are small; says whether it did.
    fn join(&mut self, lower: u64, upper: u64) -> bool {
        let len = self.chunks[&lower].len() + self.chunks[&upper].len();
        if len > CHUNK_MAX / 2 {
            return false;
        }
        let mut values = self.chunks.remove(&upper).expect("it was just seen");
        self.chunks.get_mut(&lower).expect("it was just seen").append(&mut values);
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&u64, &T)> {
        self.chunks.values().flatten().map(|(offset, value)| (offset, value))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &u64> {
        self.iter().map(|(offset, _)| offset)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.values_mut().flatten().map(|(_, value)| value)
    }

    pub(super) fn range(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = (&u64, &T)> {
        let (from, until) = (range.start_bound().cloned(), range.end_bound().cloned());
        let key = self.first_key(from);
        self.chunks
            .range((Bound::Included(key), until))
            .flat_map(move |(_, chunk)| chunk.range(part(chunk, from, until)))
            .map(|(offset, value)| (offset, value))
    }

    pub(super) fn range_mut(
        &mut self,
        range: impl RangeBounds<u64>,
    ) -> impl Iterator<Item = (&u64, &mut T)> {
        let (from, until) = (range.start_bound().cloned(), range.end_bound().cloned());
        let key = self.first_key(from);
        self.chunks
            .range_mut((Bound::Included(key), until))
            .flat_map(move |(_, chunk)| chunk.range_mut(part(chunk, from, until)))
            .map(|(offset, value)| (&*offset, value))
    }

    /// The key of the first chunk that may hold an offset of a range; not above where the range begins.
    fn first_key(&self, from: Bound<u64>) -> u64 {
        let (Bound::Included(from) | Bound::Excluded(from)) = from else { return 0 };
        self.chunks.range(..=from).next_back().map_or(from, |(key, _)| *key)
    }
}

impl<T> Index<&u64> for OffsetMap<T> {
    type Output = T;

    fn index(&self, offset: &u64) -> &T {
        self.get(offset).expect("an offset that is there")
    }
}

/// Where an offset stands in a chunk, or would. In a chunk without holes that is known at once.
fn position<T>(chunk: &Chunk<T>, offset: u64) -> Result<usize, usize> {
    let first = chunk.front().expect("no chunk is empty").0;
    let guess = usize::try_from(offset.wrapping_sub(first)).unwrap_or(usize::MAX);
    match chunk.get(guess) {
        Some((there, _)) if *there == offset => Ok(guess),
        Some(_) | None => match chunk.back() {
            Some((last, _)) if *last < offset => Err(chunk.len()),
            Some(_) | None => chunk.binary_search_by_key(&offset, |(there, _)| *there),
        },
    }
}

/// The places in a chunk of what lies within bounds.
fn part<T>(chunk: &Chunk<T>, from: Bound<u64>, until: Bound<u64>) -> std::ops::Range<usize> {
    let below = |bound: u64| position(chunk, bound).unwrap_or_else(|at| at);
    let start = match from {
        Bound::Unbounded => 0,
        Bound::Included(from) => below(from),
        Bound::Excluded(from) => from.checked_add(1).map_or(chunk.len(), below),
    };
    let end = match until {
        Bound::Unbounded => chunk.len(),
        Bound::Excluded(until) => below(until),
        Bound::Included(until) => until.checked_add(1).map_or(chunk.len(), below),
    };
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u16),
        Run(u64, u64),
        Remove(u64),
        Take(u64, u64),
        Change(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let offset = prop_oneof![0..40_u64, 0..2_000_u64, Just(u64::MAX), Just(u64::MAX - 1)];
        let end = (0..2_000_u64, prop_oneof![0..4_u64, 0..300_u64]);
        prop_oneof![
            (offset.clone(), any::<u16>()).prop_map(|(at, value)| Step::Insert(at, value)),
            end.clone().prop_map(|(at, count)| Step::Run(at, at + count)),
            offset.prop_map(Step::Remove),
            end.clone().prop_map(|(at, count)| Step::Take(at, at + count)),
            end.prop_map(|(at, count)| Step::Change(at, at + count)),
        ]
    }

    fn check(map: &OffsetMap<u16>, model: &BTreeMap<u64, u16>) {
        assert!(map.iter().eq(model.iter()));
        assert_eq!(map.len(), model.len());
        let mut before = None;
        for (key, chunk) in &map.chunks {
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK_MAX);
            assert!(*key <= chunk[0].0 && before.is_none_or(|before| before < *key));
            before = chunk.back().map(|(offset, _)| *offset);
        }
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(steps in prop::collection::vec(step(), 1..300)) {
            let (mut map, mut model) = (OffsetMap::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(at, value) => {
                        map.insert(at, value);
                        model.insert(at, value);
                    }
                    Step::Run(start, end) => {
                        (start..end).for_each(|at| map.insert(at, 7));
                        model.extend((start..end).map(|at| (at, 7)));
                    }
                    Step::Remove(at) => prop_assert_eq!(map.remove(&at), model.remove(&at)),
                    Step::Take(start, end) => {
                        let taken: Vec<_> = model.extract_if(start..end, |_, _| true).collect();
                        prop_assert_eq!(map.take_range(start, end), taken);
                    }
                    Step::Change(start, end) => {
                        map.range_mut(start..end).for_each(|(_, value)| *value ^= 1);
                        model.range_mut(start..end).for_each(|(_, value)| *value ^= 1);
                        prop_assert!(map.range(start..end).eq(model.range(start..end)));
                        prop_assert!(map.range(start..).eq(model.range(start..)));
                        prop_assert!(map.range(..=end).eq(model.range(..=end)));
                        prop_assert_eq!(map.get(&start), model.get(&start));
                        prop_assert_eq!(map.get_mut(&end), model.get_mut(&end));
                        prop_assert_eq!(map.contains_key(&end), model.contains_key(&end));
                    }
                }
                check(&map, &model);
            }
        }
    }

    #[test]
    fn memory_follows_what_is_left() {
        let mut map = OffsetMap::default();
        (0..100_000).for_each(|at| map.insert(at, [0_u8; 40]));
        let slots =
            |map: &OffsetMap<[u8; 40]>| map.chunks.values().map(Chunk::capacity).sum::<usize>();
        assert!(slots(&map) <= 100_000 + 64, "rising insertions fill their chunks");
        let gone = |at: &u64| !at.is_multiple_of(50);
        (0..100_000).filter(gone).for_each(|at| assert!(map.remove(&at).is_some()));
        assert_eq!(map.len(), 2_000);
        assert!(slots(&map) <= 2 * 2_000, "{} slots for 2,000 values", slots(&map));
        assert!(map.chunks.len() <= 2_000 / 8, "{} chunks", map.chunks.len());
    }
}
