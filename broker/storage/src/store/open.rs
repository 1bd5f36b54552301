//! Opening a data directory.
//!
//! Owns the order: lock, recovery, the running state, the snapshots from which logs are folded.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::types::EntryIndex;

use super::log::{Log, LogInner};
use super::snapshots::read_snapshot;
use super::{Store, StoreOptions};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::OpenError;
use crate::format::journal::Damage;
use crate::format::names;
use crate::recovered::RecoveryReport;
use crate::recovery::recover;

/// An opened data directory.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// All logs that have, or had, entries.
    pub logs: Vec<OpenedLog>,
    /// What recovery did.
    pub report: RecoveryReport,
    /// Entries that might have been acknowledged were cut, now or earlier, and nobody has repaired them.
    pub doubtful: bool,
}

/// A log as it was found.
pub struct OpenedLog {
    /// The log.
    pub log: Log,
    /// The newest valid snapshot: a state that covers all entries below the index.
    pub snapshot: Option<(EntryIndex, Bytes)>,
    /// Ranges that were acknowledged and are lost.
    pub damages: Vec<Damage>,
}

impl Store {
    /// Recovers a data directory and goes on from there. An empty one is set up.
    ///
    /// # Errors
    /// See [`OpenError`]. `InUse`, `Format` and `NoManifest` change nothing.
    pub fn open(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Opened, OpenError> {
        let lock = disk.lock().map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse,
            _ => OpenError::Io { doing: "locking the data directory".to_string(), source },
        })?;
        let state = recover(&disk, &options)?;
        let (store, logs) = Self::start(Arc::clone(&disk), options, &state, lock)?;
        if state.logs.iter().any(|log| log.segments.iter().any(|segment| segment.dirty)) {
            // The next recovery need not do this one's work again.
            store.checkpoint();
        }
        let mut packs = BTreeMap::new();
        let mut opened = Vec::with_capacity(logs.len());
        for log in logs {
            let snapshot = newest_snapshot(&*disk, &mut packs, &log.inner)?;
            let damages = log.damages();
            opened.push(OpenedLog { log, snapshot, damages });
        }
        let (report, doubtful) = (state.report, state.doubtful);
        Ok(Opened { store, logs: opened, report, doubtful })
    }
}

/// Reads the newest snapshot that is whole, and forgets damaged ones, so that nothing is released on
/// their word.
fn newest_snapshot(
    disk: &dyn Disk,
    packs: &mut BTreeMap<u32, Option<Arc<dyn DiskFile>>>,
    log: &LogInner,
) -> Result<Option<(EntryIndex, Bytes)>, OpenError> {
    loop {
        let newest = log.body.lock().snapshots.last().map(|snapshot| snapshot.at);
        let Some(at) = newest else { return Ok(None) };
        let path = names::pack(at.pack);
        let io = |source| OpenError::Io { doing: format!("reading {path}"), source };
        let file = match packs.get(&at.pack) {
            Some(file) => file.clone(),
            None => {
                let file = match disk.open(&path, OpenMode::Read) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    other => Some(other.map_err(io)?),
                };
                packs.insert(at.pack, file.clone());
                file
            }
        };
        let state = match file {
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
            Some(file) => read_snapshot(&*file, &at),
        };
        match state {
            Ok(state) => return Ok(Some((at.index, state))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData
                        | io::ErrorKind::NotFound
                        | io::ErrorKind::UnexpectedEof
                ) =>
            {
                tracing::error!(%path, index = at.index.0, "a snapshot is damaged");
                log.body.lock().snapshots.pop();
            }
            Err(error) => return Err(io(error)),
        }
    }
}
