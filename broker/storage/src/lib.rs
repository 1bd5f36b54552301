//! The durable segment log: every byte that Postrider keeps passes through here.
//!
//! Owns files, formats, group commit, recovery. Knows neither sockets nor requests, no clock and no
//! async runtime. Driven by the broker's join, in production and in the simulator alike.

#[cfg(not(target_os = "linux"))]
compile_error!("the broker's storage runs on Linux only");

pub mod disk;
pub mod disk_os;
pub mod disk_sim;
mod map;

pub use disk::{Disk, DiskFile, DiskMap, OpenMode};
pub use disk_os::OsDisk;
pub use disk_sim::SimDisk;
