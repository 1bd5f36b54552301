//! What can go wrong in the store, by what the caller does about it.

use std::io;

use postrider_protocol::types::{EntryIndex, Offset};

use crate::format::FormatError;
use crate::format::journal::Damage;
use crate::format::vacancy::Vacancy;

/// Why a data directory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server holds the directory: stop it first.
    #[error("the data directory is in use by another server")]
    InUse,
    /// Written by a newer program: use that one.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// No manifest slot is valid although the directory holds data: never start silently empty.
    #[error("no valid manifest although the directory holds data: restore it from a copy")]
    NoManifest,
    /// The device failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The device's error.
        source: io::Error,
    },
}

/// Why an append was refused. In every case nothing was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk is full: data entries are refused until space returns.
    #[error("the disk is full")]
    Full,
    /// The disk failed: nothing can be stored until the server restarts.
    #[error("the disk failed")]
    Poisoned,
    /// Too much is waiting for the disk: try again after the next group.
    #[error("the append queue is full")]
    QueueFull,
    /// The log was dropped.
    #[error("the log was dropped")]
    Dropped,
    /// The store is closing: nothing more is stored until the server restarts.
    #[error("the store is closed")]
    Closed,
    /// The entry is larger than a segment can hold.
    #[error("the entry is larger than a segment")]
    TooLarge,
}

/// Why a read failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Retention has removed the entry: go on from `log_start`.
    #[error("below the start of the log, {}", .log_start.0)]
    BelowStart {
        /// The first entry there is, and its offset.
        log_start: (EntryIndex, Offset),
    },
    /// The range was acknowledged and is lost: report it and go on behind it.
    #[error("entries {} to {} are damaged", .0.from_index, .0.end_index)]
    Damaged(Damage),
    /// The range is kept no longer, since its messages are settled: go on behind it.
    #[error("entries {} to {} are kept no longer", .0.from_index, .0.end_index)]
    Vacant(Vacancy),
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(String),
}

/// Why the store stopped: terminal.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{doing}: {message}")]
pub struct StoreError {
    /// What was being done.
    pub doing: String,
    /// The device's error.
    pub message: String,
}
