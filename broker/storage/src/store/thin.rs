//! Segments that are given up, or kept in part, although older ones stay.
//!
//! Owns the asking and the taking effect: a request, the order to the group writer, what a log is when its
//! record is synced. Never decides what is live (core does), never copies (`rewrite` does). Asked by the join,
//! carried out by maintenance and the I/O thread.
//!
//! ```text
//! vacate:   order -> record synced -> the log has a vacancy, the file is released
//! rewrite:  queue -> copied to a new file, synced -> order -> record synced -> the log has the new file,
//!           the old one is released when its last reader is gone
//! ```
//! Only what every slot's manifest covers is thinned: below the older snapshot of each, so that nothing is
//! folded from it and no group that recovery may replay wrote to it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use postrider_protocol::types::{EntryIndex, Offset};

use super::log::{Body, Log, LogInner};
use super::segment::Segment;
use super::shared::Order;
use super::snapshots::KEPT;
use crate::format::vacancy::Vacancy;
use crate::sync::{Mutex, Ordering};

/// Rewrites that wait; further ones are refused and asked for again.
const REWRITES_MAX: usize = 64;

/// What of a segment is needed: entries that hold one of the messages, and entries. Rising, apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// Messages.
    pub messages: Vec<Range<Offset>>,
    /// Entries of any kind.
    pub entries: Vec<Range<EntryIndex>>,
}

impl Keep {
    /// How much is named.
    pub(crate) fn count(&self) -> u64 {
        let messages = self.messages.iter().map(|range| range.end.0 - range.start.0).sum::<u64>();
        messages + self.entries.iter().map(|range| range.end.0 - range.start.0).sum::<u64>()
    }
}

/// A segment that is kept no longer, or in a file with a part of it.
pub(crate) struct Thin {
    pub(crate) log: Arc<LogInner>,
    pub(crate) old: Arc<Segment>,
    /// Written and synced.
    pub(crate) new: Option<Arc<Segment>>,
}

/// A segment that is to be written again.
pub(crate) struct Asked {
    pub(crate) log: Arc<LogInner>,
    pub(crate) old: Arc<Segment>,
    pub(crate) keep: Keep,
}

/// Rewrites that wait for maintenance.
#[derive(Default)]
pub(crate) struct ThinQueue {
    asked: Mutex<VecDeque<Asked>>,
}

impl ThinQueue {
    fn push(&self, asked: Asked) -> bool {
        let mut waiting = self.asked.lock();
        let room = waiting.len() < REWRITES_MAX;
        if room {
            waiting.push_back(asked);
        }
        room
    }

    pub(crate) fn take(&self) -> Option<Asked> {
        self.asked.lock().pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.asked.lock().is_empty()
    }
}

impl Log {
    /// Entries below are needed by no snapshot that recovery may have to fall back to: what lies there is kept
    /// for its messages alone.
    #[must_use]
    pub fn unneeded_below(&self) -> EntryIndex {
        self.inner.body.lock().unneeded_below()
    }

    /// Where [`Log::unneeded_below`] gets to as soon as each slot's manifest was written again: the older of two
    /// snapshots.
    #[must_use]
    pub fn snapshot_floor(&self) -> Option<EntryIndex> {
        let body = self.inner.body.lock();
        (body.snapshots.len() >= KEPT).then(|| body.snapshots[0].at.index)
    }

    /// Asks for a checkpoint, so that one more slot's manifest is of now.
    pub fn want_checkpoint(&self) {
        let shared = &self.inner.shared;
        shared.checkpoint_wanted.store(true, Ordering::Relaxed);
        shared.maintenance_bell.ring();
    }

    /// Gives a sealed segment up that lies below [`Log::unneeded_below`]; the last one stays. Its range is
    /// vacant once the journal says so durably, and its file is reused after that. False when the segment does
    /// not fit, or is asked for already.
    pub fn vacate(&self, seq: u64) -> bool {
        let Some(old) = self.inner.begin_thinning(seq) else { return false };
        let log = Arc::clone(&self.inner);
        self.inner.shared.queue.order(Order::Thin(Thin { log, old, new: None }));
        true
    }

    /// Has a sealed segment written again with what is named alone, in whole entries, if that takes less
    /// than three tenths of its bytes. Happens later, in parts. False when the segment does not fit, is asked
    /// for already, was not worth it with half as much live, or too much waits.
    pub fn rewrite(&self, seq: u64, keep: Keep) -> bool {
        let Some(old) = self.inner.begin_thinning(seq) else { return false };
        let declined = old.declined.load(Ordering::Relaxed);
        let hopeful = declined == u64::MAX || keep.count() <= declined / 2;
        let asked = Asked { log: Arc::clone(&self.inner), old: Arc::clone(&old), keep };
        let shared = &self.inner.shared;
        let taken = hopeful && shared.rewrites.push(asked);
        if taken {
            shared.maintenance_bell.ring();
        } else {
            old.thinning.store(false, Ordering::Relaxed);
        }
        taken
    }
}

impl LogInner {
    fn begin_thinning(&self, seq: u64) -> Option<Arc<Segment>> {
        let body = self.body.lock();
        let old = body.segments.iter().find(|segment| segment.facts.seq == seq)?;
        let fits = body.may_thin(old) && !old.thinning.swap(true, Ordering::Relaxed);
        fits.then(|| Arc::clone(old))
    }
}

impl Body {
    pub(crate) fn unneeded_below(&self) -> EntryIndex {
        self.floors.iter().copied().min().unwrap_or_default()
    }

    /// Whether a segment may be given up in whole or in part. What is damaged stays reported, so it stays.
    pub(crate) fn may_thin(&self, segment: &Arc<Segment>) -> bool {
        let Some(at) = self.segments.iter().position(|other| Arc::ptr_eq(other, segment)) else {
            return false;
        };
        let (base, end) = (segment.facts.base.0, segment.end());
        let damaged = |damage: &crate::format::journal::Damage| {
            damage.from_index < end.end.0 && base < damage.end_index
        };
        at + 1 < self.segments.len()
            && end.sealed
            && base < end.end.0
            && end.end.0 <= self.unneeded_below()
            && !self.damages.iter().any(damaged)
    }

    /// Takes the segments up to a number out.
    pub(crate) fn release_front(&mut self, last_seq: u64) -> Vec<Arc<Segment>> {
        let count = self.segments.iter().take_while(|at| at.facts.seq <= last_seq).count();
        self.segments.drain(..count).collect()
    }
}

impl Segment {
    /// All that it covers, as a range that is kept no longer.
    pub(crate) fn vacancy(&self) -> Vacancy {
        Vacancy::new(self.facts.base, self.end().end)
    }
}

impl Thin {
    /// Something came between: what was written for it belongs to nobody.
    pub(crate) fn forget(&self) {
        self.old.thinning.store(false, Ordering::Relaxed);
        if let Some(new) = &self.new {
            self.log.shared.pool.release(new);
        }
    }

    /// The record is synced. Returns the segments whose files are free.
    pub(crate) fn take_effect(&self) -> Vec<Arc<Segment>> {
        let counters = &self.log.shared.counters;
        let mut body = self.log.body.lock();
        let at = body.segments.iter().position(|other| Arc::ptr_eq(other, &self.old));
        match (at, &self.new) {
            // A trim or drop in the same group was first: recovery sees it the same way.
            (None, new) => new.iter().cloned().collect(),
            (Some(at), None) => {
                body.segments.remove(at);
                Vacancy::add(&mut body.vacancies, self.old.vacancy());
                counters.segments_vacated.add(1);
                vec![Arc::clone(&self.old)]
            }
            (Some(at), Some(new)) => {
                body.segments[at] = Arc::clone(new);
                counters.segments_rewritten.add(1);
                vec![Arc::clone(&self.old)]
            }
        }
    }
}
