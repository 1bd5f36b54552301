//! The table of all configuration keys: name, default, range, meaning. The only place that names one.
//!
//! The structs of [`Config`], the file that `print-default` writes, the environment variables and the
//! section of docs/OPERATIONS.md come from it.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::value::{Address, ByteSize, Setting, Unit};

/// One configuration key.
pub struct Key {
    /// The table in the file.
    pub section: &'static str,
    /// The name in that table.
    pub name: &'static str,
    /// Its default, as it is written in the file.
    pub default: &'static str,
    /// What its value is.
    pub unit: Unit,
    /// Lowest and highest value: bytes, milliseconds or items.
    pub range: RangeInclusive<u64>,
    /// What it does, in full sentences.
    pub doc: &'static str,
    pub(super) set: fn(&mut Config, &str, &RangeInclusive<u64>) -> Result<(), String>,
    pub(super) show: fn(&Config) -> String,
}

macro_rules! keys {
    ($($(#[$section_doc:meta])* $section:ident: $struct:ident {
        $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:literal in $range:expr;)*
    })*) => {
        /// The settings of one broker. Made by [`Config::load`] or [`Config::default`].
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Config {
            $($(#[$section_doc])* pub $section: $struct,)*
        }

        $($(#[$section_doc])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $struct {
            $($(#[doc = $doc])+ pub $name: $type,)*
        })*

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $($section: $struct {
                        $($name: <$type as Setting>::parse($default, &$range)
                            .expect("defaults are valid: a test reads each"),)*
                    },)*
                }
            }
        }

        /// Every key, in the order of the file.
        pub const KEYS: &[Key] = &[
            $($(Key {
                section: stringify!($section),
                name: stringify!($name),
                default: $default,
                unit: <$type as Setting>::UNIT,
                range: $range,
                doc: concat!($($doc),+),
                set: |config, text, range| {
                    config.$section.$name = <$type as Setting>::parse(text, range)?;
                    Ok(())
                },
                show: |config| config.$section.$name.show(),
            },)*)*
        ];

        /// Every section with its meaning.
        pub const SECTIONS: &[&str] = &[$(stringify!($section)),*];
    };
}

const ANY: RangeInclusive<u64> = 0..=u64::MAX;
/// An address that must be given, and one that may be empty.
const REQUIRED: RangeInclusive<u64> = 1..=1;
const OPTIONAL: RangeInclusive<u64> = 0..=1;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOUR: u64 = 3_600_000;

keys! {
    /// The server as a whole.
    server: ServerConfig {
        /// Directory of everything that is stored. Created when it does not exist.
        data_dir: PathBuf = "./postrider-data" in ANY;
        /// Address that clients connect to. Port 0 takes a free port, which the log names.
        listen: Address = "127.0.0.1:7420" in REQUIRED;
        /// Address that clients are told to connect to. Empty: the address that was bound.
        advertise: Address = "" in OPTIONAL;
        /// Allows listen addresses other than loopback. There is no authentication and no encryption yet.
        insecure: bool = "false" in ANY;
        /// Number of this broker in its cluster.
        node_id: u32 = "1" in 0..=u32::MAX as u64;
        /// Longest time from SIGTERM to the end of the process. What is unanswered then is cut off.
        shutdown_timeout: Duration = "25s" in 100..=HOUR;
    }
    /// The HTTP port of probes and metrics.
    admin: AdminConfig {
        /// Address of `/livez`, `/readyz` and `/metrics`. Port 0 takes a free port, which the log names.
        listen: Address = "127.0.0.1:7421" in REQUIRED;
        /// Open connections. More wait to be accepted.
        connections_max: u32 = "32" in 1..=4096;
    }
    /// Threads.
    runtime: RuntimeConfig {
        /// Threads that serve connections. 0: one for each core. 1: everything on one thread.
        threads: u32 = "0" in 0..=256;
        /// Threads that read what is not in memory from disk. More reads wait.
        blocking_threads_max: u32 = "4" in 1..=64;
    }
    /// Client connections.
    net: NetConfig {
        /// Open connections. One more is answered with `LimitExceeded` and closed.
        connections_max: u32 = "16384" in 1..=1_000_000;
        /// Connections that the kernel completes before the broker accepts them.
        backlog: u32 = "4096" in 1..=65_535;
        /// Longest time from connecting to the first complete `Hello`.
        handshake_timeout: Duration = "10s" in 10..=HOUR;
        /// Longest silence within a frame that has begun to arrive. Slow bytes are not silence: such a client costs what an idle one costs.
        frame_timeout: Duration = "30s" in 10..=HOUR;
        /// Longest wait for a client to take bytes that are ready for it. A slower one is cut off.
        write_timeout: Duration = "30s" in 10..=HOUR;
        /// Longest silence of a client. A client that has nothing to say sends `Ping`; one that does not is cut off. `0s`: no limit.
        idle_timeout: Duration = "10m" in 0..=24 * HOUR;
        /// Silence after which the kernel asks whether the client's host is still there. After six questions without an answer the connection ends.
        keepalive_interval: Duration = "1m" in 1_000..=HOUR;
        /// Most bytes taken from one connection in one read. Buffers start at 1 KiB and grow to it under load.
        read_bytes_max: ByteSize = "256KiB" in 4 * KIB..=16 * MIB;
        /// Emptied read buffers kept for reuse, over all connections. More are given back to the system.
        buffer_pool_bytes: ByteSize = "16MiB" in 0..=GIB;
    }
    /// What clients may do. Sizes are told in the handshake.
    limits: LimitsConfig {
        /// Largest message: key, value and headers. A larger one is rejected with `BatchTooLarge`.
        message_bytes_max: ByteSize = "4MiB" in KIB..=64 * MIB;
        /// Largest batch of messages. A larger one is rejected with `BatchTooLarge`.
        batch_bytes_max: ByteSize = "8MiB" in 4 * KIB..=64 * MIB;
        /// Largest frame. A larger one ends the connection with `FrameTooLarge`.
        frame_bytes_max: ByteSize = "16MiB" in 8 * KIB..=128 * MIB;
        /// Published and not yet confirmed bytes of one connection. At the bound the broker stops reading from it.
        publish_in_flight_bytes: ByteSize = "32MiB" in 64 * KIB..=GIB;
        /// The same over all connections. At three quarters of it the connections that publish are not read for a while; what comes beyond it is rejected with `Overloaded`.
        publish_bytes_max: ByteSize = "64MiB" in MIB..=64 * GIB;
        /// Replies that one client may leave unread. At the bound the broker stops reading from it.
        reply_bytes_max: ByteSize = "8MiB" in 64 * KIB..=GIB;
        /// Unanswered requests of one connection, publishes not counted. One more ends it with `Overloaded`.
        requests_max: u32 = "4096" in 1..=1_000_000;
        /// Producer sessions of one connection. One more is rejected with `LimitExceeded`.
        producers_max: u32 = "1024" in 1..=1_000_000;
        /// Memory of the idempotency keys of one partition. A publish of one more is rejected with `DedupCapacity`; none is forgotten early.
        dedup_bytes_per_partition: ByteSize = "512MiB" in 64 * KIB..=4 * GIB;
        /// Subscriptions of one connection. One more is rejected with `SubscriptionLimit`.
        subscriptions_max: u32 = "1024" in 1..=1_000_000;
        /// Topics. One more is rejected with `LimitExceeded`.
        topics_max: u32 = "100000" in 1..=10_000_000;
        /// Partitions of all topics. More are rejected with `LimitExceeded`.
        partitions_max: u32 = "200000" in 1..=10_000_000;
    }
    /// What topics keep.
    retention: RetentionConfig {
        /// Longest time between two looks for segments that time or size has expired. A look comes earlier when a quarter of `storage.recycle_bytes_max` was written, or a segment if that is more.
        check_interval: Duration = "5s" in 100..=24 * HOUR;
    }
    /// Files.
    storage: StorageConfig {
        /// Length of a partition's first segment file. Each further one is twice as long.
        segment_bytes_min: ByteSize = "64KiB" in 64 * KIB..=GIB;
        /// Length at which segments stop growing. Retention removes whole segments.
        segment_bytes_max: ByteSize = "128MiB" in MIB..=4 * GIB;
        /// Length of the first journal file. Each further new one is twice as long.
        journal_bytes_min: ByteSize = "1MiB" in 256 * KIB..=GIB;
        /// Length at which journal files stop growing.
        journal_bytes_max: ByteSize = "64MiB" in MIB..=4 * GIB;
        /// Most bytes that are written and synced together.
        group_bytes_max: ByteSize = "4MiB" in 64 * KIB..=256 * MIB;
        /// Accepted bytes that wait for the disk, over all connections. At the bound publishes wait, then are rejected with `Overloaded`.
        queue_bytes_max: ByteSize = "64MiB" in MIB..=4 * GIB;
        /// A partition with this much in a group is written once, straight to its segment, not through the journal.
        direct_write_bytes: ByteSize = "128KiB" in 16 * KIB..=256 * MIB;
        /// Written bytes that stay in the page cache. Older ones are dropped from it.
        hot_window_bytes: ByteSize = "2GiB" in 0..=1024 * GIB;
        /// Bytes written between checkpoints. Bounds what recovery reads.
        checkpoint_bytes: ByteSize = "512MiB" in MIB..=64 * GIB;
        /// Bytes written to the journal between checkpoints. Bounds the journal's files.
        checkpoint_journal_bytes: ByteSize = "64MiB" in MIB..=64 * GIB;
        /// Longest time from a write to its checkpoint.
        checkpoint_interval: Duration = "5s" in 100..=HOUR;
        /// Free disk space at which publishes are rejected with `DiskFull`. Reads, acks and deletes go on from it. At most a quarter of what is free at start.
        reserve_bytes: ByteSize = "128MiB" in 0..=64 * GIB;
        /// Bytes of segment files kept for reuse.
        recycle_bytes_max: ByteSize = "1GiB" in 0..=1024 * GIB;
        /// Bytes appended to a partition between snapshots of its state. Bounds what is read at its first use after a start.
        snapshot_after_bytes: ByteSize = "64MiB" in MIB..=64 * GIB;
        /// Entries appended to a partition between snapshots of its state.
        snapshot_after_entries: u32 = "16384" in 16..=1_000_000_000;
        /// Snapshot bytes written per second, over all partitions. What is beyond waits.
        snapshot_bytes_per_second: ByteSize = "8MiB" in 64 * KIB..=64 * GIB;
        /// Segments mapped into memory at a time.
        map_max: u32 = "8192" in 16..=60_000;
        /// Segment files open for writing at a time.
        open_files_max: u32 = "512" in 16..=1_000_000;
    }
}

impl Key {
    /// `section.name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that sets it.
    #[must_use]
    pub fn environment(&self) -> String {
        format!("POSTRIDER__{}__{}", self.section, self.name).to_uppercase()
    }

    /// The range for people; empty where there is none.
    #[must_use]
    pub fn range_text(&self) -> String {
        let show = |value: u64| match self.unit {
            Unit::Bytes => ByteSize(value).show(),
            Unit::Duration => Duration::from_millis(value).show(),
            _ => value.to_string(),
        };
        match self.unit {
            Unit::Bytes | Unit::Duration | Unit::Count => {
                format!("{} to {}", show(*self.range.start()), show(*self.range.end()))
            }
            Unit::Switch | Unit::Path | Unit::Address => String::new(),
        }
    }
}

/// The key of this name, if there is one.
#[must_use]
pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}
