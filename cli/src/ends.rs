//! Owns how far a reader that stops at the end has come: where each partition ended when it was opened.
//! Pure. Used by `sub -e`, `bench consume` and `bench verify`.

use std::collections::BTreeMap;

use postrider::AttachedPartition;
use postrider_protocol::types::{Offset, PartitionId};

/// Where each partition ended, and which of them are not read so far yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ends {
    ends: BTreeMap<PartitionId, End>,
    unreached: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct End {
    end: Offset,
    reached: bool,
}

impl Ends {
    /// From each partition: where reading starts, and where the partition ends.
    pub(crate) fn new(partitions: impl IntoIterator<Item = (PartitionId, Offset, Offset)>) -> Self {
        let end_of = |(partition, next, end)| (partition, End { end, reached: next >= end });
        let ends: BTreeMap<_, _> = partitions.into_iter().map(end_of).collect();
        let unreached = ends.values().filter(|end| !end.reached).count();
        Self { ends, unreached }
    }

    /// As the partitions stood when they were attached.
    pub(crate) fn of(partitions: &[AttachedPartition]) -> Self {
        Self::new(partitions.iter().map(|at| (at.partition, at.next, at.high_watermark)))
    }

    /// Everything below `next` of a partition was read, or is gone.
    pub(crate) fn reach(&mut self, partition: PartitionId, next: Offset) {
        if let Some(end) = self.ends.get_mut(&partition)
            && !end.reached
            && next >= end.end
        {
            end.reached = true;
            self.unreached -= 1;
        }
    }

    /// Whether every partition was read to its end.
    pub(crate) fn are_reached(&self) -> bool {
        self.unreached == 0
    }

    /// Whether a message lies at or behind its partition's end.
    pub(crate) fn is_behind(&self, partition: PartitionId, offset: Offset) -> bool {
        self.ends.get(&partition).is_none_or(|end| offset >= end.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_when_every_partition_was_read() {
        let partition = PartitionId;
        let mut ends = Ends::new([
            (partition(0), Offset(0), Offset(5)),
            (partition(1), Offset(3), Offset(3)),
            (partition(2), Offset(2), Offset(9)),
        ]);
        ends.reach(partition(0), Offset(4));
        ends.reach(partition(2), Offset(9));
        ends.reach(partition(2), Offset(10));
        assert!(!ends.are_reached());
        assert!(ends.is_behind(partition(0), Offset(5)));
        assert!(!ends.is_behind(partition(0), Offset(4)));
        ends.reach(partition(0), Offset(5));
        assert!(ends.are_reached());
    }

    #[test]
    fn an_empty_topic_is_at_its_end() {
        assert!(Ends::new([(PartitionId(0), Offset(0), Offset(0))]).are_reached());
    }
}
