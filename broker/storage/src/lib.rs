//! The durable segment log.
