//! Owns which messages left a queue otherwise than by an ack, as far as that is remembered: an ack that comes
//! late is answered by it. Never counts them (the totals do). Driven by the fold of the queue.
//!
//! Bound: [`GONE_RUNS_MAX`] runs; the oldest is forgotten. An ack of one of those is then answered as if the
//! message had been acknowledged before.

use std::collections::VecDeque;

use postrider_protocol::types::Offset;

use super::settled::{OffsetRange, merge};
use crate::limits::GONE_RUNS_MAX;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Gone {
    /// In the order in which they left.
    runs: VecDeque<OffsetRange>,
}

impl Gone {
    /// What these runs hold; none if they are more than are remembered, or one is empty.
    pub(crate) fn from_runs(runs: Vec<OffsetRange>) -> Option<Self> {
        let fit = runs.len() <= GONE_RUNS_MAX && runs.iter().all(|run| run.start < run.end);
        fit.then(|| Self { runs: runs.into() })
    }

    pub(crate) fn runs(&self) -> impl ExactSizeIterator<Item = &OffsetRange> {
        self.runs.iter()
    }

    /// Messages leave.
    pub(crate) fn note(&mut self, range: OffsetRange) {
        if range.start >= range.end {
            return;
        }
        if let Some(last) = self.runs.back_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        if self.runs.len() == GONE_RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(range);
    }

    /// Messages from an offset on are in the queue again.
    pub(crate) fn reopen_from(&mut self, offset: Offset) {
        self.runs.retain_mut(|run| {
            run.end = run.end.min(offset);
            run.start < run.end
        });
    }

    pub(crate) fn contains(&self, offset: Offset) -> bool {
        self.runs.iter().any(|run| (run.start..run.end).contains(&offset))
    }

    /// The parts of a range that left so, in order.
    pub(crate) fn parts_in(&self, start: u64, end: u64) -> Vec<OffsetRange> {
        let mut parts: Vec<OffsetRange> = self
            .runs
            .iter()
            .map(|run| OffsetRange::new(run.start.0.max(start), run.end.0.min(end)))
            .filter(|part| part.start < part.end)
            .collect();
        merge(&mut parts);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> OffsetRange {
        OffsetRange { start: Offset(start), end: Offset(end) }
    }

    #[test]
    fn the_newest_runs_are_remembered() {
        let mut gone = Gone::default();
        let runs = u64::try_from(GONE_RUNS_MAX).unwrap();
        (0..=runs).for_each(|nth| gone.note(range(10 * nth, 10 * nth + 1)));
        assert!(!gone.contains(Offset(0)) && gone.contains(Offset(10 * runs)));
        assert_eq!(gone.runs().len(), GONE_RUNS_MAX);
    }

    #[test]
    fn neighbours_are_one_run_and_what_comes_back_is_forgotten() {
        let mut gone = Gone::default();
        gone.note(range(4, 6));
        gone.note(range(6, 9));
        gone.note(range(20, 20));
        gone.note(range(0, 2));
        assert_eq!(gone.runs().copied().collect::<Vec<_>>(), [range(4, 9), range(0, 2)]);
        assert_eq!(gone.parts_in(1, 5), [range(1, 2), range(4, 5)]);
        gone.reopen_from(Offset(5));
        assert_eq!(gone.parts_in(0, 100), [range(0, 2), range(4, 5)]);
        gone.reopen_from(Offset(0));
        assert_eq!(gone, Gone::default());
    }
}
