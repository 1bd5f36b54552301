//! Counters of a store.
//!
//! Owns plain numbers: nothing here decides anything. The shell renders them.

use std::sync::OnceLock;
// Not those of `sync`: nothing is ordered by a counter, and models need not look at them.
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a [`Histogram`]: bucket n counts durations below 2^n microseconds, the last one the rest.
pub const HISTOGRAM_BUCKETS: usize = 24;

/// A distribution of durations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// Count per bucket; bucket n holds durations below 2^n microseconds and not below 2^(n-1).
    pub buckets: [u64; HISTOGRAM_BUCKETS],
    /// Sum of all durations in nanoseconds.
    pub sum_ns: u64,
}

#[derive(Debug, Default)]
pub(crate) struct HistogramCounter {
    buckets: [AtomicU64; HISTOGRAM_BUCKETS],
    sum_ns: AtomicU64,
}

impl HistogramCounter {
    pub(crate) fn add(&self, nanos: u64) {
        let bits = (u64::BITS - (nanos / 1000).leading_zeros()) as usize;
        self.buckets[bits.min(HISTOGRAM_BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    fn read(&self) -> Histogram {
        let mut histogram = Histogram::default();
        for (to, from) in histogram.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        histogram.sum_ns = self.sum_ns.load(Ordering::Relaxed);
        histogram
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the store was opened, and a few gauges.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct StoreStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Accepted and not yet written.
            pub queue_bytes: u64,
            /// Free space by the store's own estimate.
            pub free_bytes: u64,
            /// Segments mapped now.
            pub mapped_segments: u64,
            /// Segment files that wait for reuse.
            pub recyclable_bytes: u64,
            /// Released segment files that readers still hold.
            pub pinned_bytes: u64,
            /// Data entries are refused now.
            pub full: bool,
            /// How long groups took, from taking the queue to telling the watchers. Empty when the store
            /// runs without a clock.
            pub group_time: Histogram,
            /// How long the syncs of groups took.
            pub sync_time: Histogram,
        }

        /// The counters behind [`StoreStats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            pub(crate) group_time: HistogramCounter,
            pub(crate) sync_time: HistogramCounter,
            /// Nanoseconds of a monotonic clock; unset in the simulator.
            pub(crate) nanos: OnceLock<fn() -> u64>,
        }

        impl Counters {
            pub(crate) fn read(&self) -> StoreStats {
                StoreStats {
                    $($name: self.$name.value(),)*
                    group_time: self.group_time.read(),
                    sync_time: self.sync_time.read(),
                    ..StoreStats::default()
                }
            }
        }
    };
}

counters! {
    /// Groups written.
    groups,
    /// Groups that were not synced by themselves.
    unsynced_groups,
    /// Commit marks written.
    marks,
    /// Entries written.
    entries,
    /// Bytes of entries written.
    entry_bytes,
    /// Files synced by groups.
    syncs,
    /// Bytes written to the journal.
    journal_bytes,
    /// Bytes written to segments.
    segment_bytes,
    /// Runs of entries written once, to their segment.
    direct_writes,
    /// Checkpoints finished.
    checkpoints,
    /// Segment files made.
    segment_files_new,
    /// Segment files reused.
    segment_files_recycled,
    /// Segment files removed.
    segment_files_removed,
    /// Segments given up although older ones stay.
    segments_vacated,
    /// Segments written again with what is live of them.
    segments_rewritten,
    /// Bytes written for that.
    rewritten_bytes,
    /// Snapshots written.
    snapshots,
    /// Times that a log had to wait for space.
    stalls,
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Now, or zero without a clock.
    pub(crate) fn now(&self) -> u64 {
        self.nanos.get().map_or(0, |nanos| nanos())
    }
}
