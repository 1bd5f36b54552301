//! Owns the decision which messages of a partition are kept no longer. Never deletes. Driven by the join
//! every few seconds, with what storage says of the segments.
//!
//! Whole sealed segments go, oldest first; so a partition may keep up to a segment more than its limits.
//! The segment that is written stays, whatever its age.

use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use crate::cursors::Position;
use crate::thinning::Kept;

/// One segment of a partition, as storage describes it; oldest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentFacts {
    /// Its first entry.
    pub base: Position,
    /// Behind its last entry.
    pub end: Position,
    /// Its size.
    pub bytes: u64,
    /// The append time of its last entry.
    pub last_time: TimestampMs,
    /// Whether it is written no longer.
    pub sealed: bool,
}

/// What a topic's messages are kept for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RetentionLimits {
    /// How long; `None` is for ever.
    pub retention_ms: Option<u64>,
    /// How much, per partition; `None` is without limit.
    pub retention_bytes: Option<u64>,
}

/// The new start of the log, if it has to move. `removable_end` is the end of what may go: the high
/// watermark, or less.
#[must_use]
pub fn expired(
    segments: &[SegmentFacts],
    limits: RetentionLimits,
    removable_end: Position,
    now: TimestampMs,
) -> Option<(EntryIndex, Offset)> {
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut start = None;
    for segment in segments {
        let too_old = limits
            .retention_ms
            .is_some_and(|keep| segment.last_time.0.saturating_add(keep) <= now.0);
        // Without it, is there still as much as is to be kept?
        let too_much = limits.retention_bytes.is_some_and(|keep| bytes - segment.bytes >= keep);
        let may_go = segment.sealed && segment.end.at_or_before(removable_end);
        if !may_go || !(too_old || too_much) {
            break;
        }
        bytes -= segment.bytes;
        start = Some((segment.end.index, segment.end.offset));
    }
    start
}

/// The new start of a queue's log, if it has to move: the segments at the front of which nothing is kept.
#[must_use]
pub fn settled(
    segments: &[SegmentFacts],
    kept: &Kept,
    removable_end: Position,
) -> Option<(EntryIndex, Offset)> {
    segments
        .iter()
        .take_while(|segment| {
            segment.sealed
                && kept.is_free_below((segment.end.index, segment.end.offset))
                && segment.end.at_or_before(removable_end)
        })
        .last()
        .map(|segment| (segment.end.index, segment.end.offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::OffsetRange;

    fn segments() -> Vec<SegmentFacts> {
        (1..=4)
            .map(|n| SegmentFacts {
                base: Position::new(EntryIndex(n * 10 - 10), Offset(n * 100 - 100)),
                end: Position::new(EntryIndex(n * 10), Offset(n * 100)),
                bytes: 1_000,
                last_time: TimestampMs(n * 50),
                sealed: n < 4,
            })
            .collect()
    }

    fn new_start(limits: RetentionLimits, removable_end: u64, now: u64) -> Option<u64> {
        let removable_end = Position::new(EntryIndex(removable_end), Offset(removable_end * 10));
        expired(&segments(), limits, removable_end, TimestampMs(now)).map(|(index, _)| index.0)
    }

    #[test]
    fn segments_go_when_their_newest_message_is_too_old() {
        let limits = RetentionLimits { retention_ms: Some(100), retention_bytes: None };
        assert_eq!(new_start(limits, 40, 149), None);
        assert_eq!(new_start(limits, 40, 150), Some(10));
        assert_eq!(new_start(limits, 40, 200), Some(20));
        assert_eq!(new_start(limits, 40, 9_999), Some(30), "the segment that is written stays");
    }

    #[test]
    fn segments_go_while_enough_stays() {
        let keep = |bytes| RetentionLimits { retention_ms: None, retention_bytes: Some(bytes) };
        assert_eq!(new_start(keep(4_000), 40, 0), None);
        assert_eq!(new_start(keep(3_001), 40, 0), None);
        assert_eq!(new_start(keep(3_000), 40, 0), Some(10));
        assert_eq!(new_start(keep(1), 40, 0), Some(30));
    }

    #[test]
    fn segments_of_a_queue_go_when_all_is_settled() {
        let start = |floor, removable_end| {
            let end = Position::new(EntryIndex(removable_end), Offset(removable_end * 10));
            let messages = vec![OffsetRange::new(floor, floor + 1)];
            let kept = Kept { messages, entries: Vec::new() };
            settled(&segments(), &kept, end).map(|(index, _)| index.0)
        };
        assert_eq!(start(99, 40), None);
        assert_eq!(start(100, 40), Some(10));
        assert_eq!(start(299, 40), Some(20));
        assert_eq!(start(400, 40), Some(30), "the segment that is written stays");
        assert_eq!(start(400, 29), Some(20), "and what no snapshot covers");
    }

    #[test]
    fn nothing_goes_without_limits_or_above_what_may_go() {
        assert_eq!(new_start(RetentionLimits::default(), 40, u64::MAX), None);
        let limits = RetentionLimits { retention_ms: Some(1), retention_bytes: Some(1) };
        assert_eq!(new_start(limits, 29, 9_999), Some(20));
        assert_eq!(new_start(limits, 9, 9_999), None);
    }
}
