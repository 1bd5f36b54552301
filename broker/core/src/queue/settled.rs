//! Owns which offsets of a queue subscription are settled: a floor, below which all are, and runs above
//! it. Never knows how a message was settled. Driven by [`super::QueueState`].
//!
//! Bound: there is at most one run more than there are unsettled messages below the highest settled one,
//! and the leader bounds those (`unsettled_max`).

use std::collections::BTreeMap;

use postrider_protocol::types::Offset;

/// Neighbouring offsets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OffsetRange {
    /// The first one.
    pub start: Offset,
    /// One past the last one.
    pub end: Offset,
}

impl OffsetRange {
    /// From two numbers.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { start: Offset(start), end: Offset(end) }
    }

    /// What is left of it without another one.
    pub(crate) fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let below = Self { end: self.end.min(other.start), ..self };
        let above = Self { start: self.start.max(other.end), ..self };
        [below, above].into_iter().filter(|part| part.start < part.end)
    }

    /// Whether an offset is in it.
    pub(crate) fn holds(self, offset: u64) -> bool {
        (self.start.0..self.end.0).contains(&offset)
    }

    /// How many offsets it holds.
    #[must_use]
    pub fn count(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
}

/// Sorts ranges and merges what overlaps or touches.
pub(crate) fn merge(ranges: &mut Vec<OffsetRange>) {
    if !ranges.is_sorted() {
        ranges.sort_unstable();
    }
    ranges.dedup_by(|next, kept| {
        let joined = next.start <= kept.end;
        if joined {
            kept.end = kept.end.max(next.end);
        }
        joined
    });
}

/// A set of offsets that holds everything below its floor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SettledSet {
    floor: u64,
    /// Start to end; neither empty nor touching each other or the floor.
    runs: BTreeMap<u64, u64>,
    /// Offsets in the runs.
    above: u64,
}

impl SettledSet {
    /// Everything below `floor`.
    #[must_use]
    pub fn new(floor: Offset) -> Self {
        Self { floor: floor.0, runs: BTreeMap::new(), above: 0 }
    }

    /// From its parts, if they are canonical.
    pub(crate) fn from_parts(floor: u64, runs: Vec<OffsetRange>) -> Option<Self> {
        let mut set = Self::new(Offset(floor));
        let mut end = floor;
        for run in runs {
            if run.start.0 <= end || run.end <= run.start {
                return None;
            }
            end = run.end.0;
            set.runs.insert(run.start.0, run.end.0);
            set.above += run.count();
        }
        Some(set)
    }

    /// Everything below is in the set, and this offset is not.
    #[must_use]
    pub fn floor(&self) -> Offset {
        Offset(self.floor)
    }

    /// The runs above the floor, in order.
    pub fn runs(&self) -> impl Iterator<Item = OffsetRange> {
        self.runs.iter().map(|(start, end)| OffsetRange::new(*start, *end))
    }

    /// How many runs there are.
    #[must_use]
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Whether it holds this offset.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        offset.0 < self.floor || self.run_of(offset.0).is_some()
    }

    fn run_of(&self, offset: u64) -> Option<(u64, u64)> {
        let (start, end) = self.runs.range(..=offset).next_back()?;
        (offset < *end).then_some((*start, *end))
    }

    /// How many offsets below `end` are missing.
    #[must_use]
    pub fn missing_below(&self, end: Offset) -> u64 {
        let all = end.0.saturating_sub(self.floor);
        match self.runs.last_key_value() {
            Some((_, last)) if *last > end.0 => {
                let within: u64 = self
                    .runs
                    .range(..end.0)
                    .map(|(start, run_end)| (*run_end).min(end.0) - start)
                    .sum();
                all - within
            }
            Some(_) | None => all - self.above,
        }
    }

    /// The parts of a range that are missing, in order.
    #[must_use]
    pub fn missing_in(&self, range: OffsetRange) -> Vec<OffsetRange> {
        let mut missing = Vec::new();
        let mut at = range.start.0.max(self.floor);
        let end = range.end.0;
        if at >= end {
            return missing;
        }
        if let Some((_, run_end)) = self.run_of(at) {
            at = run_end;
        }
        while at < end {
            let next = self.runs.range(at..end).next();
            let (gap_end, next_at) = next.map_or((end, end), |(start, run_end)| (*start, *run_end));
            if at < gap_end {
                missing.push(OffsetRange::new(at, gap_end));
            }
            at = next_at;
        }
        missing
    }

    /// Adds a range; tells how many of its offsets were missing.
    pub fn insert(&mut self, range: OffsetRange) -> u64 {
        let (start, end) = (range.start.0.max(self.floor), range.end.0);
        if start >= end {
            return 0;
        }
        let (mut whole_start, mut whole_end, mut known) = (start, end, 0);
        if let Some((run_start, run_end)) = self.runs.range_mut(..=start).next_back()
            && *run_end >= start
        {
            if *run_end >= end {
                return 0;
            }
            known += *run_end - *run_start;
            whole_start = *run_start;
        }
        while let Some((run_start, run_end)) =
            self.runs.range(start.saturating_add(1)..=whole_end).next()
        {
            let (run_start, run_end) = (*run_start, *run_end);
            known += run_end - run_start;
            whole_end = whole_end.max(run_end);
            self.runs.remove(&run_start);
        }
        let fresh = (whole_end - whole_start) - known;
        if whole_start == self.floor {
            self.above -= known;
            self.floor = whole_end;
        } else {
            self.above += fresh;
            self.runs.insert(whole_start, whole_end);
        }
        fresh
    }

    /// Takes everything at and above an offset out, and puts everything below it in. Tells how many
    /// were put in, and how many below `end` were taken out.
    pub fn reset(&mut self, floor: Offset, end: Offset) -> (u64, u64) {
        let put_in = self.missing_below(floor);
        let taken_out = end.0.saturating_sub(floor.0) - self.missing_from(floor, end);
        *self = Self::new(floor);
        (put_in, taken_out)
    }

    fn missing_from(&self, from: Offset, end: Offset) -> u64 {
        self.missing_below(end) - self.missing_below(from.min(end))
    }

    /// Asserts the shape.
    pub(crate) fn check(&self) {
        let (mut end, mut above) = (self.floor, 0);
        for (start, run_end) in &self.runs {
            assert!(*start > end && run_end > start, "runs are apart: {self:?}");
            end = *run_end;
            above += run_end - start;
        }
        assert!(above == self.above, "the runs hold what was counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange::new(start, end)
    }

    #[test]
    fn a_settled_set_equals_a_plain_set_of_offsets() {
        let mut random = 7_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..300 {
            let mut set = SettledSet::new(Offset(3));
            let mut plain: BTreeSet<u64> = (0..3).collect();
            for _ in 0..40 {
                let start = next(60);
                let added = range(start, start + next(8));
                let fresh = (added.start.0..added.end.0).filter(|o| plain.insert(*o)).count();
                assert_eq!(set.insert(added), fresh as u64);
                set.check();
                for offset in 0..70 {
                    assert_eq!(set.contains(Offset(offset)), plain.contains(&offset));
                    let missing = (0..offset).filter(|o| !plain.contains(o)).count();
                    assert_eq!(set.missing_below(Offset(offset)), missing as u64);
                }
                let from = next(60);
                let asked = range(from, from + next(20));
                let missing: Vec<u64> = set
                    .missing_in(asked)
                    .into_iter()
                    .flat_map(|part| part.start.0..part.end.0)
                    .collect();
                let plainly: Vec<u64> =
                    (asked.start.0..asked.end.0).filter(|o| !plain.contains(o)).collect();
                assert_eq!(missing, plainly);
            }
        }
    }

    #[test]
    fn ranges_merge_where_they_touch() {
        let mut ranges = vec![range(5, 6), range(1, 3), range(3, 4), range(6, 9), range(20, 21)];
        merge(&mut ranges);
        assert_eq!(ranges, [range(1, 4), range(5, 9), range(20, 21)]);
    }
}
