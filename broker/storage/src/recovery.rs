//! Recovery: from whatever a crash left to a state that may be served.
//!
//! Owns the rules 9-17 of `docs/STORAGE.md` ("Recovery"): which manifest counts, which groups and
//! frames stand, what is torn and what is damaged, and the one Recovery group that settles it. Never
//! appends for anybody, never serves, never believes what only a page cache shows. Driven by
//! `Store::open`; the read-only part by `check` too.
//!
//! ```text
//! slots ──► rewrite newest manifest ──► journal scan ──► segment scan ──► replay ──► conclude
//!                                       groups           frames           logs       Recovery group,
//!                                                                                    then segments
//! ```

mod conclude;
mod directory;
mod files;
mod journal;
mod log_state;
mod read;
mod replay;
mod segments;
mod slots;

use std::io;
use std::sync::Arc;

use self::journal::JournalScan;
use self::replay::Outcome;
use self::segments::SegmentScan;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::manifest::Manifest;
use crate::options::StoreOptions;
use crate::recovered::RecoveredState;

pub(crate) use self::directory::holds_data;
pub(crate) use self::log_state::LogState;
pub(crate) use self::read::Window;
pub(crate) use self::slots::{Slot, Slots};

/// Distance that every counter jumps at a recovery from a crash: numbers below it may have been used by
/// writes that left no trace.
pub(crate) const COUNTER_JUMP: u64 = 1 << 20;

/// Numbers skipped when an unknown tail of a log was lost: more messages than anyone can have appended
/// since the last checkpoint.
pub(crate) const LOST_TAIL: u64 = 1 << 32;

/// Everything that recovery found, before it changes anything.
pub(crate) struct Analysis {
    pub(crate) slots: Slots,
    pub(crate) manifest: Manifest,
    pub(crate) journal: JournalScan,
    pub(crate) segments: SegmentScan,
    pub(crate) packs: Vec<u32>,
    /// None after a clean stop: nothing to replay.
    pub(crate) outcome: Option<Outcome>,
}

/// Brings a data directory from whatever state a crash left into one that may be served.
///
/// The caller holds the directory's lock. An empty directory is set up. After a clean stop the journal
/// is not read.
///
/// # Errors
/// `NoManifest`, `Format`: nothing was changed and nothing may be; `Io`: a second attempt is safe.
pub fn recover(disk: &Arc<dyn Disk>, options: &StoreOptions) -> Result<RecoveredState, OpenError> {
    let slots = Slots::read(&**disk)?;
    let Some(newest) = slots.newest() else {
        if holds_data(&**disk)? {
            return Err(OpenError::NoManifest);
        }
        return slots::create(&**disk);
    };
    directory::prepare(&**disk)?;
    let analysis = analyse(&**disk, options, slots, newest)?;
    // Rule 9: what was read may be only in the cache. Nothing else is written before it is durable.
    slots::settle(&**disk, newest, &analysis.manifest)?;
    conclude::conclude(&**disk, options, analysis)
}

/// Reads a directory and decides what stands, without changing anything.
pub(crate) fn analyse(
    disk: &dyn Disk,
    options: &StoreOptions,
    slots: Slots,
    newest: usize,
) -> Result<Analysis, OpenError> {
    let mut manifest = slots.manifest(newest).clone();
    let packs = directory::numbers(disk, crate::format::names::SNAPSHOTS, "pack")?;
    let survey = journal::survey(disk)?;
    let files = segments::survey(disk)?;
    let clean = manifest.clean && !survey.reaches_beyond(&manifest);
    manifest.clean = false;
    if clean {
        let journal = JournalScan::skipped(survey);
        let segments = SegmentScan::skipped(files);
        return Ok(Analysis { slots, manifest, journal, segments, packs, outcome: None });
    }
    let journal = journal::scan(disk, &manifest, survey)?;
    let segments = segments::scan(disk, options, &manifest, &journal, files)?;
    let outcome = replay::replay(&manifest, &journal, &segments)?;
    Ok(Analysis { slots, manifest, journal, segments, packs, outcome: Some(outcome) })
}

/// An I/O error with what was being done.
pub(crate) fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing: doing.into(), source }
}

#[cfg(test)]
mod tests;
