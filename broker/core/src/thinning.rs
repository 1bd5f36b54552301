//! Owns the decision which segments of a queue's log are given up although older ones stay, and which are kept
//! in part. Never deletes and never copies. Driven by the join in its retention passes, with what storage says of
//! the segments and what the partition says it keeps.
//!
//! A queue keeps its messages until each subscription has settled them. Without this, the log would begin
//! where the oldest unsettled message is, and that one would keep all that came after it.

use std::ops::Range;

use postrider_protocol::types::{EntryIndex, Offset};

use crate::queue::OffsetRange;
use crate::retention::SegmentFacts;

/// A segment is kept in part when less than so much of its messages is live. Storage counts the bytes.
const LIVE_PERCENT: u64 = 30;

/// What of a partition's log is needed, apart from what its snapshots do not cover. Rising, apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Messages that some queue subscription has not settled, or that are on their way to a dead letter topic.
    pub messages: Vec<OffsetRange>,
    /// Entries that the state refers to by their index.
    pub entries: Vec<Range<EntryIndex>>,
}

impl Kept {
    /// Whether everything before this place is needed no longer.
    #[must_use]
    pub fn is_free_below(&self, end: (EntryIndex, Offset)) -> bool {
        let free = |first: Option<Offset>| first.is_none_or(|first| end.1 <= first);
        free(self.messages.first().map(|range| range.start))
            && self.entries.first().is_none_or(|range| end.0 <= range.start)
    }

    /// Whether nothing in a segment is needed.
    #[must_use]
    pub fn is_free_between(&self, segment: &SegmentFacts) -> bool {
        self.within(segment).is_empty()
    }

    /// The part of it that lies in a segment.
    fn within(&self, segment: &SegmentFacts) -> Self {
        let (base, end) = (segment.base, segment.end);
        let from = self.messages.partition_point(|range| range.end <= base.offset);
        let messages = self.messages.iter().skip(from).take_while(|range| range.start < end.offset);
        let from = self.entries.partition_point(|range| range.end <= base.index);
        let entries = self.entries.iter().skip(from).take_while(|range| range.start < end.index);
        Self {
            messages: messages
                .map(|range| OffsetRange {
                    start: range.start.max(base.offset),
                    end: range.end.min(end.offset),
                })
                .collect(),
            entries: entries
                .map(|range| range.start.max(base.index)..range.end.min(end.index))
                .collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.entries.is_empty()
    }
}

/// What is to become of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Thinning {
    /// Nothing in it is needed.
    Vacate,
    /// So little in it is needed that it may be worth to write that alone again.
    Rewrite(Kept),
}

/// The segments to be thinned, by their place in the list, which is rising. `removable_end` is where what may go
/// ends. Left out are the segments at the front, which the start of the log passes by itself, and the one that
/// is written.
#[must_use]
pub fn thinned(
    segments: &[SegmentFacts],
    kept: &Kept,
    removable_end: EntryIndex,
) -> Vec<(usize, Thinning)> {
    let last = segments.len().saturating_sub(1);
    let mut thinned = Vec::new();
    for (at, segment) in segments.iter().take(last).enumerate() {
        let (base, end) = (segment.base, segment.end);
        let may_go = segment.sealed && base.index < end.index && end.index <= removable_end;
        if !may_go || kept.is_free_below((end.index, end.offset)) {
            continue;
        }
        let part = kept.within(segment);
        if part.is_empty() {
            thinned.push((at, Thinning::Vacate));
        } else if is_little(&part, segment) {
            thinned.push((at, Thinning::Rewrite(part)));
        }
    }
    thinned
}

fn is_little(part: &Kept, segment: &SegmentFacts) -> bool {
    let messages: u64 = part.messages.iter().map(|range| range.count()).sum();
    let entries: u64 = part.entries.iter().map(|range| range.end.0 - range.start.0).sum();
    let (base, end) = (segment.base, segment.end);
    let little = |live: u64, of: u64| live == 0 || live * 100 < of * LIVE_PERCENT;
    little(messages, end.offset.0 - base.offset.0) && little(entries, end.index.0 - base.index.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursors::Position;
    use postrider_protocol::types::TimestampMs;

    /// Segments of 10 entries with 100 messages each; the last one is written.
    fn segments(count: u64) -> Vec<SegmentFacts> {
        let at = |n: u64| Position::new(EntryIndex(n * 10), Offset(n * 100));
        (0..count)
            .map(|n| SegmentFacts {
                base: at(n),
                end: at(n + 1),
                bytes: 1_000,
                last_time: TimestampMs(n),
                sealed: n + 1 < count,
            })
            .collect()
    }

    fn kept(messages: &[(u64, u64)], entries: &[(u64, u64)]) -> Kept {
        Kept {
            messages: messages.iter().map(|(from, to)| OffsetRange::new(*from, *to)).collect(),
            entries: entries.iter().map(|(a, b)| EntryIndex(*a)..EntryIndex(*b)).collect(),
        }
    }

    #[test]
    fn one_stuck_message_keeps_its_segment_alone_and_of_that_itself() {
        let stuck = kept(&[(150, 151)], &[]);
        let thinned = thinned(&segments(6), &stuck, EntryIndex(60));
        let vacate = Thinning::Vacate;
        let rewrite = Thinning::Rewrite(stuck);
        // The first segment goes with the start of the log; the last one is written.
        let expected = [(1, rewrite), (2, vacate.clone()), (3, vacate.clone()), (4, vacate)];
        assert_eq!(thinned, expected);
    }

    #[test]
    fn what_no_snapshot_covers_stays() {
        let stuck = kept(&[(50, 51)], &[]);
        let at = |end| thinned(&segments(6), &stuck, EntryIndex(end)).len();
        assert_eq!((at(9), at(10), at(39), at(40)), (0, 1, 3, 4));
    }

    #[test]
    fn entries_that_the_state_refers_to_are_kept_like_messages() {
        let delayed = kept(&[(50, 51)], &[(25, 26), (38, 42)]);
        let thinned = thinned(&segments(5), &delayed, EntryIndex(50));
        let places: Vec<usize> = thinned.iter().map(|(at, _)| *at).collect();
        assert_eq!(places, [0, 1, 2, 3]);
        assert_eq!(thinned[1].1, Thinning::Vacate);
        assert_eq!(thinned[2].1, Thinning::Rewrite(kept(&[], &[(25, 26)])));
        assert_eq!(thinned[3].1, Thinning::Rewrite(kept(&[], &[(38, 40)])));
        assert!(!delayed.is_free_below((EntryIndex(26), Offset(50))));
        assert!(!delayed.is_free_below((EntryIndex(10), Offset(51))));
        assert!(delayed.is_free_below((EntryIndex(25), Offset(50))));
    }

    #[test]
    fn decisions_agree_with_counting_each_message() {
        let mut random = 11_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..2_000 {
            let count = 1 + next(6);
            let mut at = 0;
            let mut messages = Vec::new();
            while at < count * 100 && messages.len() < 8 {
                let start = at + 1 + next(180);
                let end = start + 1 + next(70);
                if end <= count * 100 {
                    messages.push((start, end));
                }
                at = end;
            }
            let kept = kept(&messages, &[]);
            let limit = next(count * 10 + 5);
            let thinned = thinned(&segments(count), &kept, EntryIndex(limit));
            for n in 0..count {
                let live = |o: &u64| messages.iter().any(|(from, to)| (from..to).contains(&o));
                let here = (n * 100..(n + 1) * 100).filter(live).count();
                let before = (0..(n + 1) * 100).filter(live).count();
                let decided = thinned.iter().find(|(at, _)| *at as u64 == n).map(|(_, what)| what);
                let may = n + 1 < count && (n + 1) * 10 <= limit && before > 0;
                match decided {
                    None => assert!(!may || here >= 30, "segment {n}: {here} live"),
                    Some(Thinning::Vacate) => assert!(may && here == 0, "segment {n}: {here}"),
                    Some(Thinning::Rewrite(part)) => {
                        let named: u64 = part.messages.iter().map(|range| range.count()).sum();
                        assert!(may && here > 0 && here < 30 && named == here as u64);
                    }
                }
            }
        }
    }
}
