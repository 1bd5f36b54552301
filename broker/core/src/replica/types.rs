//! Owns the numbers that only replication speaks of. Never compares numbers of two kinds. Driven by the
//! machines of this module.

/// One registration of a broker; rises with each start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Incarnation(pub u64);

/// The number of changes to one partition's assignment or in-sync set; only rises.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PartitionEpoch(pub u32);
