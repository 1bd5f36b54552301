//! Owns which messages of a partition are leased to this consumer, as runs: [`Leases`]; and the arithmetic of runs.
//! Never knows what is done with a message. Driven by the consumer's state machine.

use std::{collections::BTreeMap, ops::Range};

use postrider_protocol::{
    message::{AckRun, LeaseRun},
    types::Offset,
};

/// Neighbouring leased messages that have all this in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leased {
    pub(crate) count: u32,
    /// The number of the grant that they came with.
    pub(crate) grant: u64,
    /// The attempt that counts now: another one after a reconnect, perhaps.
    pub(crate) attempt: u32,
    /// The application dropped them, and lets their leases run.
    pub(crate) let_go: bool,
}

/// A part of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) first: u64,
    pub(crate) leased: Leased,
}

impl Piece {
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first + u64::from(self.leased.count)
    }

    /// The part of it that lies in `range`, if there is one.
    fn within(&self, range: &Range<u64>) -> Option<Self> {
        let own = self.range();
        let (first, end) = (own.start.max(range.start), own.end.min(range.end));
        (first < end)
            .then(|| Self { first, leased: Leased { count: len(first, end), ..self.leased } })
    }
}

/// A part of a run is never longer than it, and runs are counted in `u32`.
pub(crate) fn len(first: u64, end: u64) -> u32 {
    u32::try_from(end - first).expect("a run has fewer than 2^32 messages")
}

/// Runs that do not overlap. Bounded by the messages that the consumer has credit for.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<u64, Leased>);

impl Leases {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.0.iter().map(|(first, leased)| Piece { first: *first, leased: *leased })
    }

    /// Adds a run that overlaps none.
    pub(crate) fn insert(&mut self, piece: Piece) {
        let before = self.0.insert(piece.first, piece.leased);
        assert!(before.is_none(), "a message is leased once");
    }

    /// Whether a message of the range is leased.
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        self.first_in(range).is_some()
    }

    fn first_in(&self, range: &Range<u64>) -> Option<Piece> {
        let to_piece = |(first, leased): (&u64, &Leased)| Piece { first: *first, leased: *leased };
        let before = self.0.range(..=range.start).next_back().map(to_piece);
        before
            .filter(|piece| piece.range().end > range.start)
            .or_else(|| self.0.range(range.clone()).next().map(to_piece))
    }

    /// Takes what lies in the range and what `which` wants. Calls `taken` in order.
    pub(crate) fn take(
        &mut self,
        range: Range<u64>,
        which: impl Fn(&Leased) -> bool,
        mut taken: impl FnMut(Piece),
    ) {
        let mut rest = range;
        while rest.start < rest.end
            && let Some(run) = self.first_in(&rest)
        {
            let own = run.range();
            if which(&run.leased)
                && let Some(piece) = run.within(&rest)
            {
                self.0.remove(&run.first);
                let cut = piece.range();
                for side in [own.start..cut.start, cut.end..own.end] {
                    if let Some(side) = run.within(&side) {
                        self.insert(side);
                    }
                }
                taken(piece);
            }
            rest.start = own.end;
        }
    }

    /// Marks what lies in the range and came with the grant as let go. How many messages.
    pub(crate) fn let_go(&mut self, range: Range<u64>, grant: u64) -> u64 {
        let mut pieces = Vec::new();
        self.take(range, |leased| leased.grant == grant, |piece| pieces.push(piece));
        let mut count = 0;
        for Piece { first, leased } in pieces {
            count += u64::from(leased.count);
            self.insert(Piece { first, leased: Leased { let_go: true, ..leased } });
        }
        count
    }

    /// Keeps what the broker still has leased, with its attempts, and calls `lost` with the rest.
    pub(crate) fn keep(&mut self, held: &[LeaseRun], mut lost: impl FnMut(Piece)) {
        for (first, leased) in std::mem::take(&mut self.0) {
            let piece = Piece { first, leased };
            split(&piece.range(), held, |range, attempt| {
                let Some(part) = piece.within(&range) else { return };
                match attempt {
                    Some(attempt) => {
                        self.insert(Piece { leased: Leased { attempt, ..part.leased }, ..part });
                    }
                    None => lost(part),
                }
            });
        }
    }
}

/// Cuts a range at the borders of runs, which rise and do not overlap; says the attempt of each part that lies in
/// one.
pub(crate) fn split(
    range: &Range<u64>,
    held: &[LeaseRun],
    mut part: impl FnMut(Range<u64>, Option<u32>),
) {
    let mut at = range.start;
    let behind = held.partition_point(|run| end_of(run) <= range.start);
    for run in held.get(behind..).unwrap_or_default() {
        let (first, end) = (run.first.0.max(at), end_of(run).min(range.end));
        if first >= range.end {
            break;
        }
        if first >= end {
            continue;
        }
        if at < first {
            part(at..first, None);
        }
        part(first..end, Some(run.attempt));
        at = end;
    }
    if at < range.end {
        part(at..range.end, None);
    }
}

pub(crate) fn end_of(run: &LeaseRun) -> u64 {
    run.first.0.saturating_add(u64::from(run.count))
}

/// Appends a run, as a part of the last one if they are neighbours.
pub(crate) fn push_run(runs: &mut Vec<AckRun>, range: &Range<u64>, attempt: u32) {
    match runs.last_mut() {
        Some(last)
            if last.attempt == attempt && last.first.0 + u64::from(last.count) == range.start =>
        {
            last.count += len(range.start, range.end);
        }
        _ => runs.push(AckRun {
            first: Offset(range.start),
            count: len(range.start, range.end),
            attempt,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(first: u64, count: u32, grant: u64) -> Piece {
        Piece { first, leased: Leased { count, grant, attempt: 1, let_go: false } }
    }

    fn run(first: u64, count: u32, attempt: u32) -> LeaseRun {
        LeaseRun { first: Offset(first), count, attempt, failures: 0 }
    }

    fn ranges(leases: &Leases) -> Vec<Range<u64>> {
        leases.pieces().map(|piece| piece.range()).collect()
    }

    #[test]
    fn a_message_is_taken_out_of_the_middle_of_a_run() {
        let mut leases = Leases::default();
        leases.insert(piece(10, 10, 1));
        leases.insert(piece(20, 5, 2));
        let mut taken = Vec::new();
        leases.take(12..14, |leased| leased.grant == 1, |piece| taken.push(piece.range()));
        leases.take(18..22, |leased| leased.grant == 2, |piece| taken.push(piece.range()));
        leases.take(0..11, |_| true, |piece| taken.push(piece.range()));
        assert_eq!(taken, [12..14, 20..22, 10..11]);
        assert_eq!(ranges(&leases), [11..12, 14..20, 22..25]);
        assert!(leases.touches(&(13..15)) && !leases.touches(&(12..14)));
    }

    #[test]
    fn what_the_broker_does_not_hold_any_more_is_lost() {
        let mut leases = Leases::default();
        leases.insert(piece(10, 10, 1));
        leases.insert(piece(30, 2, 2));
        let mut gone = Vec::new();
        leases
            .keep(&[run(0, 12, 7), run(15, 1, 8), run(31, 9, 9)], |piece| gone.push(piece.range()));
        assert_eq!(gone, [12..15, 16..20, 30..31]);
        let kept: Vec<_> = leases.pieces().map(|p| (p.range(), p.leased.attempt)).collect();
        assert_eq!(kept, [(10..12, 7), (15..16, 8), (31..32, 9)]);
    }
}
