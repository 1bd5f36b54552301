//! The Rust client of the Postrider message broker.
#![forbid(unsafe_code)]
