//! Owns the table of leader epochs of one log: where each begins. Never reads entries; who appends, cuts
//! or trims the log tells it. Driven by the leader and the followers of a partition.
//!
//! Bound: one row per leadership with an entry at or above the log's start; `trim_below` drops the rest.

use postrider_protocol::types::LeaderEpoch;

use crate::cursors::Position;

/// Where each leadership begins, oldest first. Both columns rise strictly: an `EpochStart` entry makes
/// every epoch non-empty.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct EpochTable {
    rows: Vec<(LeaderEpoch, Position)>,
}

impl EpochTable {
    /// Notes that `epoch` begins at `start`.
    ///
    /// # Panics
    /// If the epoch or the index does not rise: the caller let in an entry that no leader wrote there.
    pub fn push(&mut self, epoch: LeaderEpoch, start: Position) {
        if let Some(&(last, last_start)) = self.rows.last() {
            assert!(epoch > last, "epoch {epoch:?} after {last:?}");
            assert!(
                start.index > last_start.index && last_start.at_or_before(start),
                "epoch {epoch:?} begins at {start:?}, not behind {last_start:?}"
            );
        }
        self.rows.push((epoch, start));
    }

    /// Whether these may follow, in this order.
    #[must_use]
    pub fn is_continued_by(&self, more: &[(LeaderEpoch, Position)]) -> bool {
        let mut last = self.last();
        more.iter().all(|next| {
            let before = last.replace(*next);
            before.is_none_or(|(epoch, start)| {
                epoch < next.0 && start.index < next.1.index && start.at_or_before(next.1)
            })
        })
    }

    /// Forgets the epochs that begin at or after `to`, which is the log's new end.
    pub fn truncate(&mut self, to: Position) {
        self.rows.retain(|(_, start)| start.index < to.index);
    }

    /// Forgets the epochs that end at or below `log_start`; the one that covers it stays.
    pub fn trim_below(&mut self, log_start: Position) {
        let begun = self.rows.partition_point(|(_, start)| start.index <= log_start.index);
        self.rows.drain(..begun.saturating_sub(1));
    }

    /// The newest epoch and its start.
    #[must_use]
    pub fn last(&self) -> Option<(LeaderEpoch, Position)> {
        self.rows.last().copied()
    }

    /// The largest epoch at or below `epoch`, with its end: the next one's start, or `log_end`. `None` if
    /// all known epochs are newer, so nothing here says where the logs part.
    #[must_use]
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Position) -> Option<(LeaderEpoch, Position)> {
        let behind = self.rows.partition_point(|(known, _)| *known <= epoch);
        let (found, _) = self.rows.get(behind.checked_sub(1)?)?;
        let end = self.rows.get(behind).map_or(log_end, |(_, next)| *next);
        Some((*found, end))
    }
}

#[cfg(test)]
mod tests {
    use postrider_protocol::types::{EntryIndex, Offset};

    use super::*;

    fn at(index: u64) -> Position {
        Position::new(EntryIndex(index), Offset(index))
    }

    fn table() -> EpochTable {
        let mut table = EpochTable::default();
        for (epoch, start) in [(1, 0), (3, 4), (7, 9)] {
            table.push(LeaderEpoch(epoch), at(start));
        }
        table
    }

    #[test]
    fn an_unknown_epoch_ends_where_the_largest_older_one_does() {
        let end = |epoch| table().end_of(LeaderEpoch(epoch), at(12));
        assert_eq!(end(0), None);
        assert_eq!(end(1), Some((LeaderEpoch(1), at(4))));
        assert_eq!(end(5), Some((LeaderEpoch(3), at(9))));
        assert_eq!(end(8), Some((LeaderEpoch(7), at(12))));
    }

    #[test]
    fn truncation_forgets_an_epoch_without_entries() {
        let mut table = table();
        table.truncate(at(9));
        assert_eq!(table.last(), Some((LeaderEpoch(3), at(4))));
    }

    #[test]
    fn trimming_keeps_the_epoch_that_covers_the_log_start() {
        let mut trimmed = table();
        trimmed.trim_below(at(6));
        let end = trimmed.end_of(LeaderEpoch(3), at(12));
        assert_eq!(end, Some((LeaderEpoch(3), at(9))));
        assert_eq!(trimmed.end_of(LeaderEpoch(1), at(12)), None);
    }
}
