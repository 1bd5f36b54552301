//! Owns the cursors of one partition and the relations between them. Never moves one by itself. Driven
//! by the partition's leader, and by tests that compare what storage and core believe.
//!
//! ```text
//! log_start <= high_watermark <= ready_end <= log_end        durable_end <= log_end
//! ```
//! All are ends: they name the first entry (and the first offset) that is *not* included.

use postrider_protocol::types::{EntryIndex, Offset};

/// A position between two entries: the index and the offset of what comes next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// The index of the next entry.
    pub index: EntryIndex,
    /// The offset of the next message.
    pub offset: Offset,
}

impl Position {
    /// A position from the pair that storage speaks.
    #[must_use]
    pub fn new(index: EntryIndex, offset: Offset) -> Self {
        Self { index, offset }
    }

    /// Whether it lies at or before `other` in both numbers, as two positions of one log do.
    #[must_use]
    pub fn at_or_before(self, other: Self) -> bool {
        self.index <= other.index && self.offset <= other.offset
    }
}

impl From<(EntryIndex, Offset)> for Position {
    fn from((index, offset): (EntryIndex, Offset)) -> Self {
        Self { index, offset }
    }
}

/// All cursors of one partition at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursors {
    /// The first kept entry.
    pub log_start: Position,
    /// What lies below is delivered and acknowledged.
    pub high_watermark: Position,
    /// `durable_end` in class `fsync`, `log_end` in the others.
    pub ready_end: Position,
    /// What lies below survived a sync.
    pub durable_end: Position,
    /// One past the last entry.
    pub log_end: Position,
}

impl Cursors {
    /// Asserts the relations.
    ///
    /// # Panics
    /// If one does not hold: something was delivered or acknowledged that may yet be lost.
    pub fn check(&self) {
        let pairs = [
            ("log_start", self.log_start, "high_watermark", self.high_watermark),
            ("high_watermark", self.high_watermark, "ready_end", self.ready_end),
            ("ready_end", self.ready_end, "log_end", self.log_end),
            ("durable_end", self.durable_end, "log_end", self.log_end),
        ];
        for (lower_name, lower, upper_name, upper) in pairs {
            assert!(
                lower.at_or_before(upper),
                "{lower_name} {lower:?} lies beyond {upper_name} {upper:?}"
            );
        }
    }
}
