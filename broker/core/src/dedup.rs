//! Owns which idempotency keys a partition remembers, and where the first message with each is. Never knows a clock,
//! the log, or what is not committed. Driven by the partition: [`DedupIndex::advance`] with the append time of every
//! entry that has keys, then `find` or `insert`.
//!
//! ```text
//! append times ──▶
//!   [ generation 4 ][ generation 5 ][ generation 6 ][ 7, open
//!    └ a third of the window from its first key on; then sealed
//!      forgotten as a whole once its last key is a window old
//! ```
//! **The window is a promise.** A key is found for at least the window from its first append, in log time, and at
//! most for four thirds of it (a millisecond counts as a third of windows below three). Nothing is evicted for lack
//! of room: whoever inserts asks [`DedupIndex::has_room`] first. When the window changes, generations live on, and
//! are forgotten as the new window says, or up to a third of the longest window since the key's append later.
//!
//! A search looks at one line of 64 bytes in each generation: four of them, unless windows change or a generation
//! runs out of numbers (after 33 million keys at the earliest). Memory is 19 to 27 bytes per key, and up to 24 more
//! where a key is the only one of its millisecond (`runs`); ten keys take 512 bytes. The longest that an insert keeps
//! anyone waiting is the split of a page of 16 KiB. At ten million keys that is a quarter of a millisecond, a search
//! takes 170 ns, and an insert 200 to 300 ns, each in batches of a hundred (`benches/dedup.rs`).

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

mod fingerprint;
mod generation;
mod page;
mod runs;
mod siphash;
mod snapshot;
mod table;

pub use fingerprint::Fingerprint;
pub use generation::Generation;
pub use snapshot::DedupDecodeError;

use generation::BATCH;

/// Where the first message of a key is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At an offset.
    Offset(Offset),
    /// In an entry of delayed messages. It says so for as long as the key is remembered, also when the message
    /// has been released.
    Delayed {
        /// The entry.
        index: EntryIndex,
        /// Which of its messages.
        position: u32,
    },
}

/// The first message of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Where.
    pub place: Place,
    /// Of its entry.
    pub append_time: TimestampMs,
}

/// What is remembered of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It was not used within the window.
    Nothing,
    /// The same message is there.
    Duplicate(Known),
    /// Another message has the key.
    OtherPayload(Known),
}

/// A generation that is forgotten. Its memory is given back where this is dropped, which takes milliseconds per
/// million keys: not under a lock.
#[derive(Debug)]
pub struct Dropped {
    generation: Arc<Generation>,
}

impl Dropped {
    /// Which: what was stored of it may go too.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.generation.id()
    }

    /// How many keys.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.generation.len()
    }
}

/// See the module. A clone shares the sealed generations and the pages of the open one, each until it is first written to:
/// it takes some 50 us per million keys.
#[derive(Clone, Default)]
pub struct DedupIndex {
    /// Oldest first. Bound: three, unless windows change; each has a key, so memory bounds them.
    sealed: Vec<Arc<Generation>>,
    youngest: Generation,
    /// The latest that was told.
    log_time: TimestampMs,
}

impl PartialEq for DedupIndex {
    /// By what is remembered.
    fn eq(&self, other: &Self) -> bool {
        self.generations().eq(other.generations())
    }
}

impl Eq for DedupIndex {}

impl fmt::Debug for DedupIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.generations()).finish()
    }
}

impl DedupIndex {
    /// Remembers nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of all generations; the last one is open.
    fn of_generations(mut generations: Vec<Generation>) -> Self {
        let youngest = generations.pop().unwrap_or_default();
        let sealed: Vec<_> = generations.into_iter().map(Arc::new).collect();
        let mut index = Self { sealed, youngest, log_time: TimestampMs(0) };
        let last = index.generations().filter_map(Generation::times).last();
        index.log_time = last.map_or(TimestampMs(0), |(_, last)| last);
        index
    }

    /// The log has come to `log_time`, where the window is `window_ms`: seals, opens and forgets generations. Called
    /// more often than for each entry it makes no difference.
    ///
    /// # Panics
    /// Log time falls.
    pub fn advance(&mut self, log_time: TimestampMs, window_ms: u64) -> Vec<Dropped> {
        assert!(log_time >= self.log_time, "append times never fall");
        self.log_time = log_time;
        let over = |begin: TimestampMs, ms: u64| begin.0.saturating_add(ms) <= log_time.0;
        let third = (window_ms / 3).max(1);
        if let Some((first, last)) = self.youngest.times()
            && (over(first, third) || over(last, window_ms))
        {
            self.seal();
        }
        let gone = self.sealed.partition_point(|generation| {
            generation.times().is_none_or(|(_, last)| over(last, window_ms))
        });
        self.sealed.drain(..gone).map(|generation| Dropped { generation }).collect()
    }

    fn seal(&mut self) {
        let next = Generation::open(self.youngest.id() + 1);
        let mut sealed = std::mem::replace(&mut self.youngest, next);
        sealed.seal();
        self.sealed.push(Arc::new(sealed));
    }

    /// What is remembered of the key. The caller has advanced to its log time.
    #[must_use]
    pub fn find(&self, fingerprint: Fingerprint) -> Found {
        let touched = self.generations().map(|generation| generation.touch(fingerprint));
        black_box(touched.fold(0, |sum, line| sum ^ line));
        self.generations()
            .map(|generation| generation.find(fingerprint))
            .find(|found| *found != Found::Nothing)
            .unwrap_or(Found::Nothing)
    }

    /// [`DedupIndex::find`] of each, in order, appended to `out`; several times faster for many.
    pub fn find_many(&self, fingerprints: &[Fingerprint], out: &mut Vec<Found>) {
        let mut homes = Vec::new();
        for batch in fingerprints.chunks(BATCH) {
            let begin = out.len();
            out.resize(begin + batch.len(), Found::Nothing);
            for generation in self.generations().filter(|generation| !generation.is_empty()) {
                generation.find_batch(batch.iter().copied(), &mut homes, &mut out[begin..]);
            }
        }
    }

    /// Remembers a key. If it is known, the first place stays.
    ///
    /// # Panics
    /// The index was not advanced to the append time of the entry.
    pub fn insert(&mut self, fingerprint: Fingerprint, place: Place, append_time: TimestampMs) {
        self.make_room(append_time);
        if self.find(fingerprint) == Found::Nothing {
            self.youngest.insert(fingerprint, place, append_time);
        }
    }

    /// Sees to it that the youngest generation can take a batch of keys of an entry.
    fn make_room(&mut self, append_time: TimestampMs) {
        assert!(append_time == self.log_time, "the index advances with every entry that has keys");
        if !self.youngest.has_room(BATCH, append_time) {
            self.seal();
        }
    }

    /// [`DedupIndex::insert`] of each, in order; several times faster for many.
    ///
    /// # Panics
    /// The index was not advanced to the append time of the entry.
    pub fn insert_many(&mut self, items: &[(Fingerprint, Place)], append_time: TimestampMs) {
        for batch in items.chunks(BATCH) {
            // Before the search, since that is told of the generations that there are.
            self.make_room(append_time);
            let mut known = [Found::Nothing; BATCH];
            let mut homes = Vec::new();
            let fingerprints = batch.iter().map(|(fingerprint, _)| *fingerprint);
            for generation in self.generations().filter(|generation| !generation.is_empty()) {
                generation.find_batch(fingerprints.clone(), &mut homes, &mut known);
            }
            for ((fingerprint, place), known) in batch.iter().zip(known) {
                // A key may stand twice in the batch.
                if known == Found::Nothing && !self.youngest.holds(*fingerprint) {
                    self.youngest.insert(*fingerprint, *place, append_time);
                }
            }
        }
    }

    /// How many keys are remembered.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.generations().map(Generation::len).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the index takes, those of sealed generations that it shares included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.generations().map(Generation::memory_bytes).sum()
    }

    /// Whether the index stays within `budget_bytes` when `count` more keys are inserted. It errs on the safe side,
    /// by up to 8 KiB for each of them, since each may split a page. Whoever is told no refuses the publish; no key
    /// is forgotten early.
    #[must_use]
    pub fn has_room(&self, count: usize, budget_bytes: usize) -> bool {
        self.memory_bytes().saturating_add(self.youngest.growth_bytes(count)) <= budget_bytes
    }

    /// All generations, oldest first: the sealed ones, and the open one, which may have no keys.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.sealed.iter().map(Arc::as_ref).chain([&self.youngest])
    }
}
