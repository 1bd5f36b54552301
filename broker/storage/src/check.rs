//! `check`: whether a data directory is sound, without changing it.
//!
//! Owns reading everything a directory holds and saying what is wrong with it. Never writes, never takes
//! the lock, never repairs. Driven by `postrider check`; the directory's server must be stopped, or files
//! that it writes meanwhile look torn.

mod report;
mod walk;

use std::collections::BTreeMap;

use postrider_protocol::types::EntryIndex;

pub use self::report::{
    CheckReport, JournalReport, LogReport, Plan, Problem, SegmentReport, SlotReport, SlotState,
};
use self::walk::Walk;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::manifest::{ManifestLog, ManifestSegment, SnapshotRef};
use crate::format::names;
use crate::format::segment::SegmentHeader;
use crate::format::snapshot::{BLOB_HEADER_BYTES, BlobHeader, PackHeader};
use crate::format::{FormatError, SECTOR};
use crate::options::StoreOptions;
use crate::recovery::{Analysis, LogState, Slot, Slots, Window, analyse};

/// Reads a whole data directory and reports what is in it, what is wrong with it and what a server would
/// do at its next start.
///
/// Errors become part of the report: what cannot be read is a problem like any other.
#[must_use]
pub fn check(disk: &dyn Disk) -> CheckReport {
    let mut report = CheckReport::default();
    if let Err(error) = fill(disk, &mut report) {
        report.refused = Some(error.to_string());
    }
    report
}

fn fill(disk: &dyn Disk, report: &mut CheckReport) -> Result<(), OpenError> {
    let slots = Slots::read(disk)?;
    report.slots = slots.slots.iter().enumerate().map(slot_report).collect();
    let Some(newest) = slots.newest() else {
        if crate::recovery::holds_data(disk)? {
            return Err(OpenError::NoManifest);
        }
        report.empty = true;
        return Ok(());
    };
    for slot in &report.slots {
        if let SlotState::Broken(error) = &slot.state {
            report.problems.push(Problem {
                path: names::manifest(slot.slot),
                position: 0,
                what: format!("manifest slot cannot be used: {error}"),
            });
        }
    }
    let clean = slots.manifest(newest).clean;
    let analysis = analyse(disk, &StoreOptions::default(), slots, newest)?;
    report.bytes_read = analysis.journal.bytes_read + analysis.segments.bytes_read;
    report.journal = journal_report(&analysis);
    report.plan = plan(&analysis, clean);
    let logs: Vec<LogState> = match &analysis.outcome {
        Some(outcome) => outcome.logs.values().cloned().collect(),
        None => analysis.manifest.logs.iter().map(LogState::from_manifest).collect(),
    };
    let known: BTreeMap<_, _> =
        analysis.manifest.logs.iter().map(|log| ((log.key, log.incarnation), log)).collect();
    let mut used = 0;
    for log in &logs {
        used += log.segments.len();
        let in_manifest = known.get(&(log.key, log.incarnation)).copied();
        let found = check_log(disk, &analysis, log, in_manifest, report)?;
        report.logs.push(found);
    }
    report.free_segments = analysis.segments.files.len().saturating_sub(used);
    Ok(())
}

fn slot_report((slot, found): (usize, &Slot)) -> SlotReport {
    let state = match found {
        Slot::Absent => SlotState::Absent,
        Slot::Broken(error) => SlotState::Broken(*error),
        Slot::Valid(manifest) => SlotState::Valid {
            number: manifest.number,
            checkpoint_group: manifest.checkpoint_group,
            clean: manifest.clean,
        },
    };
    SlotReport { slot, state }
}

fn journal_report(analysis: &Analysis) -> JournalReport {
    let journal = &analysis.journal;
    JournalReport {
        files: journal.survey.files.len(),
        bytes: journal.survey.files.iter().map(|file| file.len).sum(),
        groups: journal.groups.len(),
        unreadable: journal.groups.iter().filter(|group| !group.is_whole()).count(),
        gaps: journal.missing.len(),
    }
}

fn plan(analysis: &Analysis, clean: bool) -> Plan {
    let Some(outcome) = &analysis.outcome else {
        let doubtful = analysis.manifest.doubtful;
        return Plan { clean, doubtful, ..Plan::default() };
    };
    Plan {
        clean: false,
        groups: outcome.groups,
        entries: outcome.entries,
        torn: outcome.torn,
        lost_groups: outcome.lost_groups,
        doubtful: outcome.doubtful,
        durable_group: outcome.durable,
    }
}

/// Everything of one log.
fn check_log(
    disk: &dyn Disk,
    analysis: &Analysis,
    log: &LogState,
    in_manifest: Option<&ManifestLog>,
    report: &mut CheckReport,
) -> Result<LogReport, OpenError> {
    let mut found = LogReport {
        key: log.key,
        class: log.class,
        start: log.start,
        end: log.end,
        damages: log.damages.clone(),
        vacancies: log.vacancies.clone(),
        segments: Vec::new(),
        snapshots: log.snapshots.len(),
    };
    let none = Vec::new();
    let segments = in_manifest.map_or(&none, |log| &log.segments);
    let mut chain: Option<u32> = None;
    let mut before = EntryIndex(0);
    for at in segments.iter().filter(|at| log.segments.iter().any(|s| s.at.salt == at.salt)) {
        let header = analysis.segments.files.get(&at.file).and_then(|file| file.header);
        check_header(log, at, header, report);
        let Some(mut window) = Window::open(disk, &names::segment(at.file))? else { continue };
        let follows = before == at.base_index;
        let mut walk = Walk::new(at, &log.damages, chain.filter(|_| follows));
        walk.run(&mut window, &mut report.problems)?;
        if at.sealed && !at.sparse {
            walk.footer(&mut window, &mut report.problems)?;
        }
        report.bytes_read += window.read_bytes();
        chain = walk.chain();
        before = at.end_index;
        found.segments.push(walk.report());
    }
    for snapshot in &log.snapshots {
        check_snapshot(disk, log, snapshot, report)?;
    }
    Ok(found)
}

fn check_header(
    log: &LogState,
    at: &ManifestSegment,
    header: Option<SegmentHeader>,
    report: &mut CheckReport,
) {
    let fits = header.is_some_and(|header| {
        header.key == log.key
            && header.incarnation == log.incarnation
            && header.seq == at.seq
            && header.salt == at.salt
            && header.base_index == at.base_index
    });
    if !fits {
        report.problems.push(Problem {
            path: names::segment(at.file),
            position: 0,
            what: "first sector is damaged or another segment's".to_string(),
        });
    }
}

fn check_snapshot(
    disk: &dyn Disk,
    log: &LogState,
    snapshot: &SnapshotRef,
    report: &mut CheckReport,
) -> Result<(), OpenError> {
    let path = names::pack(snapshot.pack);
    let position = snapshot.position;
    let what = match Window::open(disk, &path)? {
        None => Some("snapshot pack is missing".to_string()),
        Some(mut window) => {
            let what = snapshot_error(&mut window, log, snapshot)?;
            report.bytes_read += window.read_bytes();
            what.map(|error| format!("snapshot at index {}: {error}", snapshot.index))
        }
    };
    report.problems.extend(what.map(|what| Problem { path, position, what }));
    Ok(())
}

fn snapshot_error(
    window: &mut Window,
    log: &LogState,
    snapshot: &SnapshotRef,
) -> Result<Option<FormatError>, OpenError> {
    let pack = window.get(0, SECTOR)?.map_or(Err(FormatError::Short), PackHeader::decode);
    match pack {
        Ok(pack) if pack.pack != snapshot.pack => return Ok(Some(FormatError::Field("number"))),
        Ok(_) => {}
        Err(error) => return Ok(Some(error)),
    }
    let blob_at = snapshot.position.saturating_sub(BLOB_HEADER_BYTES as u64);
    let blob = window.get(blob_at, BLOB_HEADER_BYTES)?;
    match blob.map_or(Err(FormatError::Short), BlobHeader::decode) {
        Ok(blob) => {
            let fits = blob.key == log.key
                && blob.index == snapshot.index
                && blob.len == snapshot.len
                && blob.crc == snapshot.crc;
            if !fits {
                return Ok(Some(FormatError::Field("blob header")));
            }
        }
        Err(error) => return Ok(Some(error)),
    }
    let state = window.bytes(snapshot.position, snapshot.len)?;
    Ok(match state {
        None => Some(FormatError::Short),
        Some(state) if crc32fast::hash(&state) != snapshot.crc => Some(FormatError::Crc),
        Some(_) => None,
    })
}
