//! Owns the keys that are forgotten together: those first appended within a third of the window. Never knows the
//! window. Driven by [`DedupIndex`](super::DedupIndex).

use std::fmt;
use std::hint::black_box;

use postrider_protocol::types::TimestampMs;

use super::fingerprint::Fingerprint;
use super::page::{Home, Slot};
use super::runs::Runs;
use super::table::Table;
use super::{Found, Known, Place};

/// Keys that are looked for together.
pub(super) const BATCH: usize = 128;

/// See the module.
#[derive(Clone, Default)]
pub struct Generation {
    id: u64,
    sealed: bool,
    runs: Runs,
    table: Table,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("id", &self.id)
            .field("sealed", &self.sealed)
            .field("len", &self.len())
            .field("times", &self.times())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Generation {
    /// By what is remembered, in hash order; not by how it lies in memory.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.sealed == other.sealed
            && self.len() == other.len()
            && self.times() == other.times()
            && self.known().eq(other.known())
    }
}

impl Eq for Generation {}

impl Generation {
    /// An open one, without keys.
    pub(super) fn open(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    pub(super) fn from_parts(id: u64, sealed: bool, runs: Runs, table: Table) -> Self {
        Self { id, sealed, runs, table }
    }

    /// Its number: each generation of an index has a higher one than those before.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it never changes again.
    #[must_use]
    pub fn sealed(&self) -> bool {
        self.sealed
    }

    /// How many keys it remembers.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.table.len()
    }

    /// Whether it remembers none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Append times of the first and the last key; `None` without keys.
    #[must_use]
    pub fn times(&self) -> Option<(TimestampMs, TimestampMs)> {
        self.runs.times()
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.table.bytes() + self.runs.bytes()
    }

    /// An upper bound of what `count` more keys add to [`Generation::memory_bytes`].
    pub(super) fn growth_bytes(&self, count: usize) -> usize {
        self.table.growth_bytes(count).saturating_add(self.runs.growth_bytes(count))
    }

    pub(super) fn seal(&mut self) {
        self.sealed = true;
    }

    pub(super) fn runs(&self) -> &Runs {
        &self.runs
    }

    /// All slots, by hash.
    pub(super) fn sorted(&self) -> impl Iterator<Item = Slot> {
        self.table.sorted()
    }

    fn known(&self) -> impl Iterator<Item = (Fingerprint, Option<(Place, TimestampMs)>)> {
        self.sorted().map(|slot| (slot.fingerprint, self.runs.resolve(slot.number)))
    }

    /// Whether it knows the key.
    pub(super) fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.table.home(fingerprint).find(fingerprint).is_some()
    }

    /// Asks memory for what a search of the key looks at.
    pub(super) fn touch(&self, fingerprint: Fingerprint) -> u64 {
        self.table.home(fingerprint).touch()
    }

    pub(super) fn find(&self, fingerprint: Fingerprint) -> Found {
        self.found(fingerprint, self.table.home(fingerprint))
    }

    /// Looks for all that were not found in an older generation. Their lines are asked for first, and looked at when
    /// they have come: so memory answers for some ten at a time. `homes` is room for that.
    pub(super) fn find_batch<'a>(
        &'a self,
        fingerprints: impl Iterator<Item = Fingerprint>,
        homes: &mut Vec<(Fingerprint, Home<'a>)>,
        found: &mut [Found],
    ) {
        homes.clear();
        homes.extend(fingerprints.map(|fingerprint| (fingerprint, self.table.home(fingerprint))));
        black_box(homes.iter().fold(0, |sum, (_, home)| sum ^ home.touch()));
        for ((fingerprint, home), found) in homes.iter().zip(found) {
            if *found == Found::Nothing {
                *found = self.found(*fingerprint, *home);
            }
        }
    }

    fn found(&self, fingerprint: Fingerprint, home: Home<'_>) -> Found {
        let Some(slot) = home.find(fingerprint) else { return Found::Nothing };
        let (place, append_time) = self.runs.resolve(slot.number).expect("its run was begun");
        let known = Known { place, append_time };
        match slot.fingerprint.same_payload(fingerprint) {
            true => Found::Duplicate(known),
            false => Found::OtherPayload(known),
        }
    }

    /// Whether `count` more keys can be put in: if not, another generation is due.
    pub(super) fn has_room(&self, count: usize, append_time: TimestampMs) -> bool {
        self.runs.has_room(count, append_time)
    }

    /// Remembers a key that it does not know and has room for.
    pub(super) fn insert(
        &mut self,
        fingerprint: Fingerprint,
        place: Place,
        append_time: TimestampMs,
    ) {
        let number = self.runs.number(place, append_time).expect("there is room");
        self.table.insert(Slot { fingerprint, number });
    }
}
