//! What the benchmarks share: figures with their goals, and the workloads of the campaign.

pub mod figure;
pub mod start;
pub mod workload;
