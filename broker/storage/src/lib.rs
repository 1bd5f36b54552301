//! The durable segment log: every byte that Postrider keeps passes through here.
//!
//! Owns files, formats, group commit, recovery. Knows neither sockets nor requests, no clock and no
//! async runtime. Driven by the broker's join, in production and in the simulator alike.

#[cfg(not(target_os = "linux"))]
compile_error!("the broker's storage runs on Linux only");

pub mod check;
pub mod disk;
pub mod disk_os;
pub mod disk_sim;
mod error;
pub mod format;
mod map;
mod options;
pub mod recovered;
mod recovery;
mod store;
mod sync;

pub use check::{CheckReport, check};
pub use disk::{Disk, DiskFile, DiskMap, OpenMode};
pub use disk_os::OsDisk;
pub use disk_sim::SimDisk;
pub use error::{AppendError, OpenError, ReadError, StoreError};
pub use format::journal::Damage;
pub use format::vacancy::Vacancy;
pub use options::StoreOptions;
pub use recovered::RecoveryReport;
pub use recovery::recover;
pub use store::{
    Appended, HISTOGRAM_BUCKETS, Histogram, Keep, Log, LogWatcher, NewEntry, Opened, OpenedLog,
    ReadRun, SegmentInfo, Store, StoreObserver, StoreStats, StoreThreads,
};

use postrider_protocol::types::{PartitionId, TopicId};

/// Names a log: a partition of a topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogKey {
    /// The topic; nil for the metadata log.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
}
