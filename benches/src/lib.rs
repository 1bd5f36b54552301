//! Shared helpers of the micro benchmarks.
