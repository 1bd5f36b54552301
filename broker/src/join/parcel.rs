//! Owns the making of what a `Lease` carries: the stored entries that hold leased messages, as slices of
//! mapped segments where most of an entry is leased, rebuilt where little of it is. Never leases, never
//! sends. Driven by a consumer's turn.

use std::ops::Range;

use bytes::Bytes;
use postrider_protocol::batch::DecodeLimits;
use postrider_protocol::entry::{EntryHeader, EntryView, EntryViews};
use postrider_protocol::message::LeaseRun;
use postrider_protocol::rebuild::rebuild;
use postrider_protocol::types::Offset;
use postrider_storage::{Log, ReadError, ReadRun};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// Entries that hold leased messages.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) slices: Vec<Bytes>,
    pub(crate) bytes: usize,
    /// Leased messages from here on did not fit.
    pub(crate) cut: Option<Offset>,
}

/// Why there is no parcel.
pub(crate) enum Missing {
    /// It lies on disk only.
    Cold(ReadRun),
    /// Messages of this range are gone from the log.
    Gone(Offset, Offset),
    /// The first entry alone is larger than the client takes.
    TooLarge(usize),
    /// It cannot be read.
    Unreadable(String),
}

/// Where the messages are wanted from and how.
pub(crate) struct Order<'a> {
    pub(crate) log: &'a Log,
    pub(crate) runs: &'a [LeaseRun],
    /// Leave out what does not fit.
    pub(crate) bytes_max: usize,
    /// Begin no entry when there is as much.
    pub(crate) bytes_wanted: usize,
    /// What begins here was loaded.
    pub(crate) loaded: Option<Offset>,
    /// What may be decompressed to take an entry apart.
    pub(crate) limits: DecodeLimits,
}

impl Parcel {
    /// Gathers the entries of the runs, in order, up to what fits.
    pub(crate) fn gather(order: &Order<'_>) -> Result<Self, Missing> {
        let mut parcel = Self::default();
        let mut covered = 0;
        let mut next = order.runs;
        while let Some((start, end, rest)) = take_range(next) {
            next = rest;
            let mut at = start.max(covered);
            while at < end {
                let read = read(order, at, end)?;
                let read_next = read.next.0;
                let whole = read.first.0 == at && read_next <= end;
                let bytes = parcel.bytes + read.bytes;
                if whole && bytes <= order.bytes_max.min(order.bytes_wanted) {
                    parcel.bytes += read.bytes;
                    parcel.slices.extend(read.slices);
                } else if !parcel.add_entries(order, &read, at)? {
                    return Ok(parcel);
                }
                at = read_next;
            }
            covered = at;
        }
        Ok(parcel)
    }

    /// Adds entry by entry, from the one that holds `at` on; `false` if the next one does not fit.
    fn add_entries(&mut self, order: &Order<'_>, read: &ReadRun, at: u64) -> Result<bool, Missing> {
        for slice in &read.slices {
            // What begins here is added in one piece when an entry comes that is not whole.
            let mut piece = 0..0;
            for entry in EntryViews::new(slice) {
                let entry = entry.map_err(|error| Missing::Unreadable(error.to_string()))?;
                let len = to_usize(entry.header.total_len);
                let next = piece.end + len;
                let base = entry.header.base_offset.0.max(at);
                let leased = leased_within(order.runs, &entry.header);
                if leased == 0 {
                    self.push(slice, &piece);
                    piece = next..next;
                } else if self.bytes + piece.len() >= order.bytes_wanted {
                    self.push(slice, &piece);
                    self.cut = Some(Offset(base));
                    return Ok(false);
                } else if is_mostly(leased, &entry.header)
                    && self.bytes + piece.len() + len <= order.bytes_max
                {
                    piece.end = next;
                } else {
                    self.push(slice, &piece);
                    let whole = slice.slice(piece.end..next);
                    piece = next..next;
                    if !self.add_part(order, &entry, whole, base)? {
                        return Ok(false);
                    }
                }
            }
            self.push(slice, &piece);
        }
        Ok(true)
    }

    fn push(&mut self, slice: &Bytes, piece: &Range<usize>) {
        if piece.start < piece.end {
            self.bytes += piece.len();
            self.slices.push(slice.slice(piece.clone()));
        }
    }

    /// Adds an entry with its leased messages alone. One that cannot be taken apart goes as it is: the client says
    /// what is wrong with each message and gives it back, so that it costs itself and not its consumers.
    fn add_part(
        &mut self,
        order: &Order<'_>,
        entry: &EntryView<'_>,
        whole: Bytes,
        base: u64,
    ) -> Result<bool, Missing> {
        let is_leased = |offset| holds(order.runs, offset);
        let part = rebuild(entry, is_leased, order.limits).unwrap_or(whole);
        let bytes = self.bytes + part.len();
        if bytes <= order.bytes_max {
            self.bytes = bytes;
            self.slices.push(part);
            Ok(true)
        } else if self.bytes > 0 {
            self.cut = Some(Offset(base));
            Ok(false)
        } else {
            Err(Missing::TooLarge(part.len()))
        }
    }
}

fn read(order: &Order<'_>, at: u64, end: u64) -> Result<ReadRun, Missing> {
    match order.log.read(Offset(at), Offset(end), READ_BYTES) {
        Ok(read) if read.next.0 <= at => {
            Err(Missing::Unreadable(format!("the read at offset {at} is empty")))
        }
        Ok(read) if !read.resident && order.loaded != Some(read.first) => Err(Missing::Cold(read)),
        Ok(read) => Ok(read),
        Err(ReadError::BelowStart { log_start }) => Err(Missing::Gone(Offset(at), log_start.1)),
        Err(ReadError::Damaged(damage)) => Err(Missing::Gone(Offset(at), damage.end_offset)),
        Err(ReadError::Vacant(vacancy)) => Err(Missing::Gone(Offset(at), vacancy.end_offset)),
        Err(ReadError::Io(error)) => Err(Missing::Unreadable(error)),
    }
}

/// Half of an entry is worth sending all of it: the client skips the rest, and nobody copies.
fn is_mostly(leased: u64, header: &EntryHeader) -> bool {
    leased * 2 >= u64::from(header.record_count)
}

/// Neighbouring runs as one range, and what follows them.
fn take_range(runs: &[LeaseRun]) -> Option<(u64, u64, &[LeaseRun])> {
    let (first, mut rest) = runs.split_first()?;
    let mut end = end_of(first);
    while let Some((next, after)) = rest.split_first()
        && next.first.0 == end
    {
        end = end_of(next);
        rest = after;
    }
    Some((first.first.0, end, rest))
}

pub(crate) fn end_of(run: &LeaseRun) -> u64 {
    run.first.0.saturating_add(u64::from(run.count))
}

fn leased_within(runs: &[LeaseRun], header: &EntryHeader) -> u64 {
    let (start, end) = (header.base_offset.0, header.end_offset().0);
    let from = runs.partition_point(|run| end_of(run) <= start);
    runs.get(from..)
        .unwrap_or_default()
        .iter()
        .take_while(|run| run.first.0 < end)
        .map(|run| end_of(run).min(end) - run.first.0.max(start))
        .sum()
}

fn holds(runs: &[LeaseRun], offset: Offset) -> bool {
    let at = runs.partition_point(|run| end_of(run) <= offset.0);
    runs.get(at).is_some_and(|run| run.first <= offset)
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Runs cut at an offset: those below, and those from it on.
pub(crate) fn split_runs(runs: Vec<LeaseRun>, at: Offset) -> (Vec<LeaseRun>, Vec<LeaseRun>) {
    let (mut below, mut above) = (Vec::with_capacity(runs.len()), Vec::new());
    for run in runs {
        let split = u32::try_from(at.0.saturating_sub(run.first.0)).unwrap_or(u32::MAX);
        if split >= run.count {
            below.push(run);
        } else if split == 0 {
            above.push(run);
        } else {
            below.push(LeaseRun { count: split, ..run });
            let first = Offset(run.first.0 + u64::from(split));
            above.push(LeaseRun { first, count: run.count - split, ..run });
        }
    }
    (below, above)
}
