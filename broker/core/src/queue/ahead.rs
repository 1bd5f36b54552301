//! Owns the messages that were read ahead and not handed out: runs of neighbours. Never knows why one
//! may not go out. Driven by the dispatcher.
//!
//! Bound: one run per entry of a read that was asked for, and reads are asked for when this is empty;
//! with key order, also the messages whose key was unlocked.

use std::collections::VecDeque;

/// Neighbouring messages of one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AheadRun {
    pub(super) start: u64,
    pub(super) end: u64,
    /// About how many bytes each weighs.
    pub(super) weight: u32,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct AheadRuns {
    /// In order, apart from each other.
    runs: VecDeque<AheadRun>,
    count: u64,
}

impl AheadRuns {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn first(&self) -> Option<AheadRun> {
        self.runs.front().copied()
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.count = 0;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        let at = self.runs.partition_point(|run| run.end <= offset);
        self.runs.get(at).is_some_and(|run| run.start <= offset)
    }

    /// Adds a run behind all others, or wherever it belongs.
    pub(super) fn insert(&mut self, run: AheadRun) {
        self.count += run.end - run.start;
        match self.runs.back_mut() {
            Some(last) if last.end == run.start && last.weight == run.weight => last.end = run.end,
            Some(last) if last.end > run.start => {
                let at = self.runs.partition_point(|known| known.end <= run.start);
                assert!(
                    self.runs.get(at).is_none_or(|next| run.end <= next.start),
                    "a message is read ahead once"
                );
                self.runs.insert(at, run);
            }
            Some(_) | None => self.runs.push_back(run),
        }
    }

    /// Takes messages off the front: at most `max`, of one run.
    pub(super) fn take_first(&mut self, max: u64) -> Option<AheadRun> {
        let first = self.runs.front_mut()?;
        let end = first.end.min(first.start.saturating_add(max));
        let taken = AheadRun { end, ..*first };
        first.start = end;
        if first.start == first.end {
            self.runs.pop_front();
        }
        self.count -= taken.end - taken.start;
        Some(taken)
    }

    /// Removes a range; tells which parts of it were there.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Vec<AheadRun> {
        let mut removed = Vec::new();
        let mut at = self.runs.partition_point(|run| run.end <= start);
        while let Some(run) = self.runs.get(at).copied()
            && run.start < end
        {
            let cut = AheadRun { start: run.start.max(start), end: run.end.min(end), ..run };
            removed.push(cut);
            self.count -= cut.end - cut.start;
            self.runs.remove(at);
            let left = AheadRun { end: cut.start, ..run };
            let right = AheadRun { start: cut.end, ..run };
            for part in [left, right] {
                if part.start < part.end {
                    self.runs.insert(at, part);
                    at += 1;
                }
            }
        }
        removed
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = AheadRun> {
        self.runs.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, end: u64) -> AheadRun {
        AheadRun { start, end, weight: 1 }
    }

    fn all(runs: &AheadRuns) -> Vec<(u64, u64)> {
        runs.iter().map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn runs_are_taken_in_order_and_go_back_in_place() {
        let mut runs = AheadRuns::default();
        runs.insert(run(0, 10));
        runs.insert(run(20, 30));
        assert_eq!(runs.take_first(4), Some(run(0, 4)));
        runs.insert(run(2, 3));
        assert_eq!(all(&runs), [(2, 3), (4, 10), (20, 30)]);
        assert!(runs.contains(2) && !runs.contains(3) && runs.contains(29));
        assert_eq!(runs.count(), 17);
    }

    #[test]
    fn a_removed_range_is_cut_out_of_runs() {
        let mut runs = AheadRuns::default();
        runs.insert(run(0, 10));
        runs.insert(run(20, 30));
        let removed = runs.remove(5, 22);
        assert_eq!(removed, [run(5, 10), run(20, 22)]);
        assert_eq!(all(&runs), [(0, 5), (22, 30)]);
        runs.remove(1, 2);
        assert_eq!(all(&runs), [(0, 1), (2, 5), (22, 30)]);
        assert_eq!(runs.count(), 12);
    }
}
