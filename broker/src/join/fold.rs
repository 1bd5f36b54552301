//! Owns the way from a log to its state: snapshot, then entries, then what to do about damage. Never
//! appends. Driven by a partition at its first use, and by the catalog at the start.

use bytes::Bytes;
use postrider_core::cursors::Position;
use postrider_core::partition::{AppliedEntry, ApplyError, PartitionState};
use postrider_protocol::entry::Entry;
use postrider_protocol::types::EntryIndex;
use postrider_storage::{Log, ReadError};

/// Bytes of entries read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A folded state.
pub(crate) struct Folded {
    pub(crate) state: PartitionState,
    pub(crate) entries: u64,
}

/// Why a log has no state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoldError {
    /// An entry says something that this build does not know.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The disk failed.
    #[error("{0}")]
    Read(String),
}

/// What a range of a log holds.
pub(crate) enum Piece {
    Entry(Entry),
    /// Entries up to here are lost.
    Lost(Position),
}

/// Folds a partition. What is damaged is skipped, as the state knows how to.
pub(crate) fn partition_state(
    log: &Log,
    snapshot: Option<(EntryIndex, Bytes)>,
) -> Result<Folded, FoldError> {
    let mut state = snapshot.map_or_else(PartitionState::default, |(index, bytes)| {
        PartitionState::decode_snapshot(&bytes).unwrap_or_else(|error| {
            tracing::error!(log = ?log.key(), ?index, %error, "a snapshot is unusable");
            PartitionState::default()
        })
    });
    let mut entries = 0;
    walk::<FoldError>(log, state.end().index, |piece| {
        match piece {
            Piece::Entry(entry) => {
                entries += 1;
                state.apply(&AppliedEntry::from_entry(&entry)?)?;
            }
            Piece::Lost(end) => state.skip_damage(end),
        }
        Ok(())
    })?;
    Ok(Folded { state, entries })
}

/// Visits all entries of a log from `from` on, in order.
pub(crate) fn walk<E: From<FoldError>>(
    log: &Log,
    from: EntryIndex,
    mut visit: impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = from;
    let (end, _offset) = log.log_end();
    while at < end {
        match log.entries(at, end, CHUNK_BYTES) {
            Ok(entries) => {
                let Some(last) = entries.last() else {
                    let text = format!("no entries from {at} on, although the log ends at {end}");
                    return Err(FoldError::Read(text).into());
                };
                at = EntryIndex(last.header.index.0 + 1);
                for entry in entries {
                    visit(checked(entry, log))?;
                }
            }
            Err(ReadError::BelowStart { log_start }) => {
                at = log_start.0;
                visit(Piece::Lost(log_start.into()))?;
            }
            // Nothing is folded from what is kept no longer, unless no snapshot can be read.
            Err(ReadError::Vacant(vacancy)) => {
                at = vacancy.end_index;
                visit(Piece::Lost((vacancy.end_index, vacancy.end_offset).into()))?;
            }
            Err(ReadError::Damaged(damage)) => {
                at = damage.end_index;
                visit(Piece::Lost((damage.end_index, damage.end_offset).into()))?;
            }
            Err(error) => return Err(FoldError::Read(error.to_string()).into()),
        }
    }
    Ok(())
}

/// An entry whose body does not match its crc is as lost as one that cannot be read.
fn checked(entry: Entry, log: &Log) -> Piece {
    match entry.check_body() {
        Ok(()) => Piece::Entry(entry),
        Err(error) => {
            let index = entry.header.index;
            tracing::error!(log = ?log.key(), %index, %error, "an entry is damaged");
            Piece::Lost((EntryIndex(index.0 + 1), entry.header.end_offset()).into())
        }
    }
}
