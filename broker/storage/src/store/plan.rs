//! Which segment an entry will go to, decided when it is accepted.
//!
//! Owns the worst case of a log's layout: the newest planned segment, how far it is surely filled, and
//! what is accepted for it and not yet written. Pure. The group writer follows the plan, so that it never
//! needs space that was not there when the entry was accepted.

use super::segment::{capacity, file_len_for};
use crate::format::segment::ENTRIES_START;

/// Bytes around a frame at most: padding before the header, header, padding after, trailer.
const FRAME_BYTES: u64 = 4 * 512;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Number of the newest planned segment; 0 before the first.
    seq: u64,
    /// Length of its file; 0 = nothing more goes there.
    file_len: u64,
    /// It is filled up to here.
    end: u64,
    /// Accepted for it and not yet written.
    bytes: u64,
    count: u64,
    /// The next entry goes to a new segment.
    roll: bool,
    /// That one begins as small as the first.
    afresh: bool,
}

/// A new segment that an entry needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RollNeed {
    /// File length that the log should get.
    pub(crate) want: u64,
    /// File length that suffices.
    pub(crate) need: u64,
}

/// Where an entry goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Here,
    NewSegment(RollNeed),
    /// No segment may be as long as this entry needs.
    TooLarge,
}

/// What a plan must know of the options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanLimits {
    pub(crate) segment_bytes_min: u64,
    pub(crate) segment_bytes_max: u64,
    pub(crate) direct_write_bytes: u64,
}

impl PlanLimits {
    /// Bytes that `count` entries of `bytes` together take at most. Each frame but the one at a roll
    /// holds at least `direct_write_bytes`, and none holds less than an entry.
    fn worst(self, bytes: u64, count: u64) -> u64 {
        let frames = (bytes / self.direct_write_bytes.max(1) + 1).min(count);
        bytes + frames * FRAME_BYTES
    }
}

impl Plan {
    pub(crate) fn empty() -> Self {
        Self {
            seq: 0,
            file_len: 0,
            end: ENTRIES_START,
            bytes: 0,
            count: 0,
            roll: false,
            afresh: false,
        }
    }

    /// A log whose newest segment is `seq`: open with `file_len` and filled up to `end`, or closed.
    pub(crate) fn recovered(seq: u64, open: Option<(u64, u64)>) -> Self {
        let (file_len, end) = open.unwrap_or((0, ENTRIES_START));
        Self { seq, file_len, end, ..Self::empty() }
    }

    pub(crate) fn place(&self, len: u64, limits: PlanLimits) -> Place {
        let worst = limits.worst(self.bytes + len, self.count + 1);
        if self.file_len > 0 && !self.roll && self.end + worst <= capacity(self.file_len) {
            return Place::Here;
        }
        let need = file_len_for(ENTRIES_START + limits.worst(len, 1));
        if need > limits.segment_bytes_max.max(limits.segment_bytes_min) {
            return Place::TooLarge;
        }
        let doubled = if self.afresh { 0 } else { self.file_len.saturating_mul(2) };
        let want = doubled.clamp(
            limits.segment_bytes_min,
            limits.segment_bytes_max.max(limits.segment_bytes_min),
        );
        Place::NewSegment(RollNeed { want: want.max(need), need })
    }

    /// The entry was accepted where [`Self::place`] said; `new_file_len` is what was promised for a
    /// new segment.
    pub(crate) fn accept(&mut self, len: u64, new_file_len: Option<u64>) {
        if let Some(file_len) = new_file_len {
            *self = Self { seq: self.seq + 1, file_len, ..Self::empty() };
        }
        self.bytes += len;
        self.count += 1;
    }

    /// A group wrote `count` entries of `bytes` to segment `seq`, which is `file_len` long and filled up
    /// to `end`.
    pub(crate) fn written(&mut self, seq: u64, file_len: u64, end: u64, bytes: u64, count: u64) {
        if seq == self.seq {
            self.file_len = file_len;
            self.end = end;
            self.bytes -= bytes;
            self.count -= count;
        }
    }

    /// The next entry begins a new segment, whatever room there is.
    pub(crate) fn roll(&mut self) {
        self.roll = true;
    }

    /// The next entry begins a new segment, and that one a new row of lengths.
    pub(crate) fn roll_afresh(&mut self) {
        self.roll = true;
        self.afresh = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PlanLimits = PlanLimits {
        segment_bytes_min: 64 << 10,
        segment_bytes_max: 1 << 20,
        direct_write_bytes: 16 << 10,
    };

    fn accept(plan: &mut Plan, len: u64) -> bool {
        match plan.place(len, LIMITS) {
            Place::Here => {
                plan.accept(len, None);
                false
            }
            Place::NewSegment(roll) => {
                plan.accept(len, Some(roll.want));
                true
            }
            Place::TooLarge => panic!("{len} is too large"),
        }
    }

    #[test]
    fn segments_double_up_to_the_maximum() {
        let mut plan = Plan::empty();
        let mut lens = Vec::new();
        for _ in 0..2000 {
            if accept(&mut plan, 8 << 10) {
                lens.push(plan.file_len >> 10);
            }
        }
        assert_eq!(&lens[..6], [64, 128, 256, 512, 1024, 1024]);
    }

    #[test]
    fn a_segment_after_a_pause_begins_small() {
        let mut plan = Plan::empty();
        while plan.file_len < 1 << 20 {
            accept(&mut plan, 8 << 10);
        }
        plan.roll_afresh();
        assert!(accept(&mut plan, 8 << 10), "a new one");
        assert_eq!(plan.file_len, 64 << 10);
        assert!(!accept(&mut plan, 8 << 10), "once");
    }

    #[test]
    fn planned_entries_fit_however_the_groups_cut_them() {
        // Every entry in a frame of its own is the most wasteful layout.
        let mut plan = Plan::empty();
        accept(&mut plan, 16 << 10);
        let mut end = ENTRIES_START;
        let mut frame = |len: u64| {
            end = end.next_multiple_of(512) + 512 + len.next_multiple_of(512) + 512;
            end
        };
        frame(16 << 10);
        while plan.place(16 << 10, LIMITS) == Place::Here {
            plan.accept(16 << 10, None);
            frame(16 << 10);
        }
        assert!(frame(0) - 1024 <= capacity(plan.file_len));
    }

    #[test]
    fn entry_larger_than_any_segment_is_refused() {
        assert_eq!(Plan::empty().place(1 << 20, LIMITS), Place::TooLarge);
        assert!(matches!(Plan::empty().place(1000 << 10, LIMITS), Place::NewSegment(_)));
    }

    #[test]
    fn written_bytes_give_back_what_was_assumed_wasted() {
        let mut plan = Plan::empty();
        accept(&mut plan, 16 << 10);
        accept(&mut plan, 16 << 10);
        plan.written(1, 64 << 10, ENTRIES_START + (32 << 10), 32 << 10, 2);
        assert_eq!(plan.place(8 << 10, LIMITS), Place::Here);
        plan.roll();
        assert!(matches!(plan.place(8, LIMITS), Place::NewSegment(_)));
    }
}
