//! Every decision of the broker, sans I/O.
#![forbid(unsafe_code)]
#![deny(
    clippy::iter_over_hash_type,
    clippy::wildcard_enum_match_arm,
    clippy::let_underscore_must_use
)]
