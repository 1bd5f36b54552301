//! Owns the decision which messages of a partition are kept no longer. Never deletes. Driven by the join
//! every few seconds, with what storage says of the segments.
//!
//! Whole sealed segments go, oldest first; so a partition may keep up to a segment more than its limits.
//! The segment that is written stays. It is closed when nobody writes it and all of it might go.

use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use crate::cursors::Position;
use crate::limits::SEGMENT_IDLE_MS;
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
    /// Newer messages have taken the place of those below, whatever else is said.
    pub passed: Option<Offset>,
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
        let passed = limits.passed.is_some_and(|passed| segment.end.offset <= passed);
        let may_go = segment.sealed && segment.end.at_or_before(removable_end);
        if !may_go || !(too_old || too_much || passed) {
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

/// Whether the segment that is written is to be closed, so that it can go: the newest message in it is older
/// than the topic keeps any.
#[must_use]
pub fn is_expired_open(
    segments: &[SegmentFacts],
    limits: RetentionLimits,
    now: TimestampMs,
) -> bool {
    let is_over = |keep, last: &SegmentFacts| last.last_time.0.saturating_add(keep) <= now.0;
    open_with_messages(segments)
        .is_some_and(|last| limits.retention_ms.is_some_and(|keep| is_over(keep, last)))
}

/// Whether the segment that is written is to be closed, so that it can go: it is a queue's, nothing in it is needed
/// and nobody has written it for a while. `bytes_min` is what the next segment takes at least: a smaller one stays.
#[must_use]
pub fn is_settled_open(
    segments: &[SegmentFacts],
    kept: &Kept,
    bytes_min: u64,
    now: TimestampMs,
) -> bool {
    open_with_messages(segments).is_some_and(|last| {
        last.bytes > bytes_min
            && last.last_time.0.saturating_add(SEGMENT_IDLE_MS) <= now.0
            && kept.is_free_between(last)
    })
}

/// The segment that is written, unless it holds state alone, as after it was closed.
fn open_with_messages(segments: &[SegmentFacts]) -> Option<&SegmentFacts> {
    segments.last().filter(|last| !last.sealed && last.base.offset < last.end.offset)
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
        let limits = RetentionLimits { retention_ms: Some(100), ..RetentionLimits::default() };
        assert_eq!(new_start(limits, 40, 149), None);
        assert_eq!(new_start(limits, 40, 150), Some(10));
        assert_eq!(new_start(limits, 40, 200), Some(20));
        assert_eq!(new_start(limits, 40, 9_999), Some(30), "the segment that is written stays");
    }

    #[test]
    fn segments_go_while_enough_stays() {
        let keep =
            |bytes| RetentionLimits { retention_bytes: Some(bytes), ..RetentionLimits::default() };
        assert_eq!(new_start(keep(4_000), 40, 0), None);
        assert_eq!(new_start(keep(3_001), 40, 0), None);
        assert_eq!(new_start(keep(3_000), 40, 0), Some(10));
        assert_eq!(new_start(keep(1), 40, 0), Some(30));
    }

    #[test]
    fn segments_go_that_newer_messages_have_passed() {
        let passed =
            |offset| RetentionLimits { passed: Some(Offset(offset)), ..Default::default() };
        assert_eq!(new_start(passed(99), 40, 0), None);
        assert_eq!(new_start(passed(100), 40, 0), Some(10));
        assert_eq!(new_start(passed(9_999), 40, 0), Some(30), "the segment that is written stays");
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
    fn the_open_segment_is_closed_once_its_newest_message_is_too_old() {
        let closes = |keep: Option<u64>, now| {
            let limits = RetentionLimits { retention_ms: keep, ..RetentionLimits::default() };
            is_expired_open(&segments(), limits, TimestampMs(now))
        };
        assert!(!closes(Some(100), 299));
        assert!(closes(Some(100), 300));
        assert!(!closes(None, u64::MAX));
        let mut empty = segments();
        empty[3].base.offset = empty[3].end.offset;
        let limits = RetentionLimits { retention_ms: Some(1), ..RetentionLimits::default() };
        assert!(!is_expired_open(&empty, limits, TimestampMs(u64::MAX)), "it was closed before");
    }

    #[test]
    fn the_open_segment_of_an_idle_queue_is_closed_when_nothing_in_it_is_needed() {
        let closes = |unsettled: u64, bytes_min, now| {
            let messages = vec![OffsetRange::new(unsettled, unsettled + 1)];
            let kept = Kept { messages, entries: Vec::new() };
            is_settled_open(&segments(), &kept, bytes_min, TimestampMs(now))
        };
        let idle = 200 + SEGMENT_IDLE_MS;
        assert!(closes(299, 999, idle), "what is needed lies before it");
        assert!(!closes(300, 999, idle));
        assert!(closes(400, 999, idle));
        assert!(!closes(299, 1_000, idle), "nothing would be won");
        assert!(!closes(299, 999, idle - 1));
    }

    #[test]
    fn nothing_goes_without_limits_or_above_what_may_go() {
        assert_eq!(new_start(RetentionLimits::default(), 40, u64::MAX), None);
        let limits =
            RetentionLimits { retention_ms: Some(1), retention_bytes: Some(1), passed: None };
        assert_eq!(new_start(limits, 29, 9_999), Some(20));
        assert_eq!(new_start(limits, 9, 9_999), None);
    }
}
