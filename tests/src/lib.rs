//! Shared parts of the whole-system tests.

pub mod fuzz;
pub mod process;
pub mod sim;
pub mod wire;
