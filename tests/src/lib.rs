//! Shared parts of the whole-system tests.

pub mod process;
pub mod wire;
