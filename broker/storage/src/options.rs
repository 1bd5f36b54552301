//! Settings of a store: every size, count and delay that it goes by, with its default.

/// Settings of a [`crate::Store`]. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Length of a log's first segment file; each further one is twice as long.
    pub segment_bytes_min: u64,
    /// Length at which doubling stops.
    pub segment_bytes_max: u64,
    /// Length of the first journal file; each further new one is twice as long.
    pub journal_bytes_min: u64,
    /// Length at which doubling stops.
    pub journal_bytes_max: u64,
    /// Entries taken into one group; what is queued beyond waits for the next one. Bounds the latency
    /// of a sync.
    pub group_bytes_max: usize,
    /// Entries accepted and not yet written. At the bound appends fail with `QueueFull`.
    pub queue_bytes_max: usize,
    /// A log with at least this much in a group is written once, to its segment, framed.
    pub direct_write_bytes: usize,
    /// Segments written directly, hence synced, in one group. The rest of the group goes through the
    /// journal, whatever its size.
    pub direct_files_max: usize,
    /// Written bytes that stay in the page cache; what is older is dropped from it.
    pub hot_window_bytes: u64,
    /// Bytes written since the last checkpoint (journal or direct) that call for the next one; bounds
    /// what recovery reads.
    pub checkpoint_bytes: u64,
    /// The same for bytes in the journal alone; bounds the journal's files.
    pub checkpoint_journal_bytes: u64,
    /// How often maintenance looks for work, and the longest time between an append and its checkpoint.
    pub checkpoint_interval_ms: u64,
    /// Free space that data entries leave alone. Below it they fail with `Full`; state entries go on.
    /// Never more than a quarter of what is free when the store opens.
    pub reserve_bytes: u64,
    /// Bytes of segment files kept for reuse; more are removed.
    pub recycle_bytes_max: u64,
    /// Segments mapped at a time; the longest unused are unmapped.
    pub map_max: usize,
    /// Segment files open for writing at a time; the longest unused are closed.
    pub open_files_max: usize,
    /// More dirty files than this at a checkpoint are synced by one sync of the file system.
    pub sync_each_max: usize,
    /// Snapshot bytes waiting to be written. At the bound new snapshots are skipped.
    pub snapshot_queue_bytes_max: usize,
    /// Idle time after the last group before a mark is written, in microseconds.
    pub mark_delay_us: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            segment_bytes_min: 64 << 10,
            segment_bytes_max: 128 << 20,
            journal_bytes_min: 1 << 20,
            journal_bytes_max: 64 << 20,
            group_bytes_max: 4 << 20,
            queue_bytes_max: 64 << 20,
            direct_write_bytes: 128 << 10,
            direct_files_max: 4,
            hot_window_bytes: 2 << 30,
            checkpoint_bytes: 512 << 20,
            checkpoint_journal_bytes: 64 << 20,
            checkpoint_interval_ms: 5_000,
            reserve_bytes: 128 << 20,
            recycle_bytes_max: 1 << 30,
            map_max: 8_192,
            open_files_max: 512,
            sync_each_max: 64,
            snapshot_queue_bytes_max: 64 << 20,
            mark_delay_us: 1_000,
        }
    }
}
