//! Carrying the outcome of replay out.
//!
//! Owns the writes of recovery and their order (rules 14 and 15): first every file that is needed, so that
//! a full disk stops it before anything is written; one Recovery group into a file that no manifest needs,
//! synced; then every live Inline to its segment, without comparing; then the state for the store. Never
//! reuses a segment file, never reads back what it wrote.
//!
//! A crash at any point leaves the old evidence whole: the Recovery group voids it only once it is whole
//! itself, and what it moves is written to new files.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::files::{FileLen, Files, create, is_full};
use super::journal::SurveyedFile;
use super::log_state::{FramePlace, InlineWrite, LogState, Segment, Source};
use super::read::Window;
use super::replay::Outcome;
use super::segments::Span;
use super::{Analysis, COUNTER_JUMP, io_error};
use crate::LogKey;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::OpenError;
use crate::format::journal::{GroupHeader, Inline, Record, Roll};
use crate::format::manifest::ManifestSegment;
use crate::format::segment::{ENTRIES_START, SegmentHeader};
use crate::format::{SECTOR, names, sector_ceil};
use crate::options::StoreOptions;
use crate::recovered::{
    FreeFile, JournalFile, RecoveredJournal, RecoveredLog, RecoveredSegment, RecoveredState,
};

/// Settles the directory and returns its state.
///
/// # Errors
/// `Io`: a second attempt is safe. `StorageFull` within means that recovery itself needs some space; then
/// nothing of it is left behind.
pub(crate) fn conclude(
    disk: &dyn Disk,
    options: &StoreOptions,
    analysis: Analysis,
) -> Result<RecoveredState, OpenError> {
    let Analysis { slots, manifest, journal, segments, packs, outcome } = analysis;
    let mut state = RecoveredState {
        manifest_number: manifest.number,
        slot_generations: slots.generations(),
        slot_packs: slots.packs(),
        checkpoint_group: manifest.checkpoint_group,
        next_pack: packs.last().map_or(0, |pack| pack.saturating_add(1)),
        doubtful: manifest.doubtful,
        ..RecoveredState::default()
    };
    state.report.bytes_read = slots.bytes_read + journal.bytes_read + segments.bytes_read;
    let keep = state.slot_generations.iter().flatten().min().copied().unwrap_or(0);
    state.journal = journal_state(&journal.survey.files, keep);
    let mut files = Files::new(disk, &segments.files);
    let Some(mut outcome) = outcome else {
        let in_manifest = manifest.logs.iter().flat_map(|log| &log.segments);
        let named = in_manifest.map(|segment| segment.file).max();
        state.journal.next_group =
            manifest.checkpoint_group.max(manifest.durable_group).saturating_add(1);
        state.journal.durable_group = manifest.durable_group;
        state.journal.last_crc = manifest.last_journal_crc;
        state.journal.next_generation =
            journal.generation_max.max(manifest.oldest_generation).saturating_add(1);
        state.next_incarnation =
            manifest.next_incarnation.max(segments.incarnation_max.saturating_add(1));
        state.next_salt = manifest.next_salt.max(segments.salt_max.saturating_add(1));
        state.next_segment_file = named.max(files.last()).map_or(0, |file| file.saturating_add(1));
        let mut logs: Vec<LogState> = manifest.logs.iter().map(LogState::from_manifest).collect();
        for log in &mut logs {
            super::replay::lose_missing(log, &segments);
        }
        hand_over(&mut state, logs, &files);
        return Ok(state);
    };
    state.next_incarnation = outcome.incarnation_max.saturating_add(COUNTER_JUMP);
    state.next_salt = outcome.salt_max.saturating_add(COUNTER_JUMP);
    state.next_segment_file = outcome.file_max.map_or(0, |file| file.saturating_add(1));
    state.doubtful = outcome.doubtful;
    state.report.groups = outcome.groups;
    state.report.entries = outcome.entries;
    state.report.torn = outcome.torn;
    state.journal.next_generation =
        journal.generation_max.max(manifest.oldest_generation).saturating_add(COUNTER_JUMP);
    let moves = plan_moves(disk, &outcome, &mut state)?;
    let (count, body) = recovery_records(&outcome, &moves);
    let header = group_header(&outcome, state.journal.next_generation, count, &body);
    for log in outcome.logs.values_mut() {
        settle_segments(log, moves.get(&log.key));
    }
    let made = make_segments(&outcome, &moves, &mut files, options)
        .and_then(|()| make_journal(disk, options, &header, &mut state.journal));
    if made.as_ref().is_err_and(is_full) {
        files.remove_new()?;
    }
    write_group(disk, made?, &header, &body, &mut state.journal)?;
    for log in outcome.logs.values() {
        write_segments(log, moves.get(&log.key), &files)?;
    }
    if !files.new.is_empty() {
        disk.sync_dir(names::SEGMENTS).map_err(io_error("syncing the segments' directory"))?;
    }
    hand_over(&mut state, outcome.logs.into_values().collect(), &files);
    Ok(state)
}

/// Which journal files some manifest needs, and which are free.
fn journal_state(files: &[SurveyedFile], keep: u64) -> RecoveredJournal {
    let mut state = RecoveredJournal::default();
    for file in files {
        let SurveyedFile { file, len, generation, .. } = *file;
        match generation {
            Some(generation) if generation >= keep => {
                state.live.push(JournalFile { file, generation, len });
            }
            _ => state.free.push(FreeFile { file, len }),
        }
        state.next_file = state.next_file.max(file.saturating_add(1));
    }
    state
}

/// Survivors of one log and the new segment that they move to.
struct Move {
    roll: Roll,
    runs: Vec<(Span, u64, Bytes)>,
    end_position: u64,
}

fn plan_moves(
    disk: &dyn Disk,
    outcome: &Outcome,
    state: &mut RecoveredState,
) -> Result<BTreeMap<LogKey, Move>, OpenError> {
    let mut moves = BTreeMap::new();
    for log in outcome.logs.values() {
        let Some(above) = log.above.as_ref().filter(|above| !above.survivors.is_empty()) else {
            continue;
        };
        let roll = Roll {
            key: log.key,
            incarnation: log.incarnation,
            seq: log.last_seq.saturating_add(1),
            file: state.next_segment_file,
            salt: state.next_salt,
            base_index: above.proven_end.0,
            base_offset: above.proven_end.1,
            chain_crc: above.proven_crc,
        };
        state.next_segment_file = state.next_segment_file.saturating_add(1);
        state.next_salt = state.next_salt.saturating_add(1);
        let mut position = ENTRIES_START;
        let mut runs = Vec::new();
        for survivor in &above.survivors {
            let bytes = match &survivor.source {
                Source::Memory(bytes) => bytes.clone(),
                Source::Frame(place) => read_frame(disk, place)?,
            };
            let end = position + bytes.len() as u64;
            runs.push((survivor.span, position, bytes));
            position = end;
        }
        moves.insert(log.key, Move { roll, runs, end_position: position });
    }
    Ok(moves)
}

/// Length of a new segment file that holds bytes up to `end`.
fn segment_len(options: &StoreOptions, end: u64) -> FileLen {
    let need = sector_ceil(end);
    let rounded = end.checked_next_power_of_two().unwrap_or(end);
    let want = if rounded > options.segment_bytes_max { need } else { rounded };
    FileLen { want: options.segment_bytes_min.max(want), need }
}

/// The entries of a frame whose bytes were not kept.
fn read_frame(disk: &dyn Disk, place: &FramePlace) -> Result<Bytes, OpenError> {
    let path = names::segment(place.file);
    let header = &place.header;
    let bytes = match Window::open(disk, &path)? {
        Some(mut window) => window.bytes(header.body_start(), u64::from(header.body_len))?,
        None => None,
    };
    let bytes = bytes.filter(|bytes| crc32fast::hash(bytes) == header.body_crc);
    bytes.ok_or_else(|| OpenError::Io {
        doing: format!("reading {path} again"),
        source: ErrorKind::InvalidData.into(),
    })
}

/// The records of the Recovery group: whatever happened above D, and what is lost.
fn recovery_records(outcome: &Outcome, moves: &BTreeMap<LogKey, Move>) -> (u32, Vec<u8>) {
    let mut body = Vec::new();
    let mut count = 0;
    let mut put = |record: Record<'_>| {
        record.encode(&mut body);
        count += 1;
    };
    put(Record::Recovery { doubtful: outcome.doubtful });
    for drop in &outcome.drops {
        let new_incarnation = drop.new_incarnation;
        put(Record::Drop { key: drop.key, incarnation: drop.incarnation, new_incarnation });
    }
    for log in outcome.logs.values() {
        let (key, incarnation) = (log.key, log.incarnation);
        if let Some((start, release_index)) = log.trim_above {
            let (start_index, start_offset) = start;
            put(Record::Trim { key, incarnation, start_index, start_offset, release_index });
        }
        for (seq, thinned) in &log.thinned_above {
            put(log.thinned_record(*seq, *thinned));
        }
        if let Some(above) = &log.above {
            let (end_index, end_offset) = above.proven_end;
            let chain_crc = above.proven_crc;
            put(Record::Truncate { key, incarnation, end_index, end_offset, chain_crc });
        }
        if log.reserve_above || (log.is_volatile() && log.above.is_some()) {
            let (class, (end_index, end_offset)) = (log.class, log.reserved);
            put(Record::Reserve { key, incarnation, class, end_index, end_offset });
        }
        if let Some(moved) = moves.get(&key) {
            put(Record::Roll(moved.roll));
        }
    }
    for moved in moves.values() {
        let Roll { key, incarnation, seq, .. } = moved.roll;
        for (span, position, entries) in &moved.runs {
            let first_index = span.first_index;
            let count = span.end_index.0 - first_index.0;
            let count = u32::try_from(count).expect("entries of 80 bytes in a group fit u32");
            let position = *position;
            put(Record::Inline(Inline {
                key,
                incarnation,
                seq,
                position,
                first_index,
                count,
                entries,
            }));
        }
    }
    for log in outcome.logs.values().filter(|log| log.newly_damaged) {
        for damage in log.damages.iter().copied() {
            put(Record::Damage { key: log.key, incarnation: log.incarnation, damage });
        }
    }
    (count, body)
}

fn group_header(outcome: &Outcome, generation: u64, count: u32, body: &[u8]) -> GroupHeader {
    GroupHeader {
        generation,
        group: outcome.group_max.saturating_add(COUNTER_JUMP),
        durable_group: outcome.durable,
        position: 0,
        count,
        body_len: u32::try_from(body.len()).expect("the journal is bounded far below 4 GiB"),
        body_crc: crc32fast::hash(body),
        prev_crc: outcome.last_crc,
        unsynced: false,
        recovery: true,
    }
}

/// Takes a free journal file for the Recovery group, or makes one.
fn make_journal(
    disk: &dyn Disk,
    options: &StoreOptions,
    header: &GroupHeader,
    journal: &mut RecoveredJournal,
) -> Result<(JournalFile, Arc<dyn DiskFile>), OpenError> {
    let (need, generation) = (header.end(), header.generation);
    let fits = journal.free.iter().position(|free| free.len >= need);
    let number = fits.map_or(journal.next_file, |at| journal.free[at].file);
    let path = names::journal(number);
    let opened = match fits {
        Some(at) => {
            let len = journal.free.remove(at).len;
            disk.open(&path, OpenMode::ReadWrite).map(|file| (file, len))
        }
        None => {
            let want = options.journal_bytes_min.max(need);
            create(disk, &path, FileLen { want, need })
        }
    };
    let (file, len) = opened.map_err(io_error(format!("opening {path} for writing")))?;
    journal.next_file = journal.next_file.max(number.saturating_add(1));
    Ok((JournalFile { file: number, generation, len }, file))
}

/// Writes the Recovery group into its file and syncs it.
fn write_group(
    disk: &dyn Disk,
    (used, file): (JournalFile, Arc<dyn DiskFile>),
    header: &GroupHeader,
    body: &[u8],
    journal: &mut RecoveredJournal,
) -> Result<(), OpenError> {
    let doing = || format!("writing the recovery group to {}", names::journal(used.file));
    let sector = header.encode();
    let padding = body.len().next_multiple_of(SECTOR) - body.len();
    let (zeros, trailer) = ([0; SECTOR], header.trailer().encode());
    let parts = [
        IoSlice::new(&sector),
        IoSlice::new(body),
        IoSlice::new(&zeros[..padding]),
        IoSlice::new(&trailer),
    ];
    file.write_at(0, &parts).map_err(io_error(doing()))?;
    file.sync().map_err(io_error(doing()))?;
    disk.sync_dir(names::JOURNAL).map_err(io_error("syncing the journal's directory"))?;
    journal.current = Some((used, header.end()));
    journal.next_generation = header.generation + 1;
    journal.next_group = header.group + 1;
    journal.durable_group = header.group;
    journal.last_crc = GroupHeader::crc_of(&sector);
    Ok(())
}

/// Closes what was cut and opens the segment that survivors move to.
fn settle_segments(log: &mut LogState, moved: Option<&Move>) {
    if let Some(above) = &log.above {
        let proven_end = above.proven_end.0;
        log.segments.retain(|segment| segment.at.base_index < proven_end);
        log.closed = true;
    }
    let Some(moved) = moved else { return };
    if let Some(last) = log.segments.last_mut() {
        last.at.sealed = true;
    }
    let roll = moved.roll;
    let last = moved.runs.last().map(|(span, ..)| *span).expect("a move has survivors");
    log.last_seq = roll.seq;
    log.closed = false;
    let at = ManifestSegment {
        file: roll.file,
        sealed: false,
        sparse: false,
        seq: roll.seq,
        salt: roll.salt,
        base_index: roll.base_index,
        base_offset: roll.base_offset,
        end_index: last.end_index,
        end_offset: last.end_offset,
        end_position: moved.end_position,
        last_time: moved.runs.iter().map(|(span, ..)| span.last_time).max().unwrap_or_default(),
        base_chain_crc: roll.chain_crc,
    };
    log.segments.push(Segment { at, dirty: true, rolled: true });
}

/// Makes every segment file that is missing or too short, before anything is written: what a full disk
/// stops has changed nothing, and the space that somebody frees is there for the next attempt.
fn make_segments(
    outcome: &Outcome,
    moves: &BTreeMap<LogKey, Move>,
    files: &mut Files<'_>,
    options: &StoreOptions,
) -> Result<(), OpenError> {
    for log in outcome.logs.values() {
        for segment in log.segments.iter().filter(|segment| segment.dirty && segment.rolled) {
            let at = &segment.at;
            let moved = moves.get(&log.key).filter(|moved| moved.roll.salt == at.salt);
            let end = moved.map_or(at.end_position, |moved| moved.end_position);
            files.make(at.file, segment_len(options, end))?;
        }
    }
    Ok(())
}

/// Writes first sectors that may be missing, every live Inline, every volatile frame that counts.
fn write_segments(
    log: &LogState,
    moved: Option<&Move>,
    files: &Files<'_>,
) -> Result<(), OpenError> {
    for segment in log.segments.iter().filter(|segment| segment.dirty) {
        let at = &segment.at;
        let header = header_of(log, at);
        let found = files.found.get(&at.file).and_then(|file| file.header);
        let moved = moved.filter(|moved| moved.roll.salt == at.salt);
        let file = files.open(at.file)?;
        let doing = || format!("writing {}", names::segment(at.file));
        if segment.rolled || found != Some(header) {
            let sector = header.encode();
            file.write_at(0, &[IoSlice::new(&sector)]).map_err(io_error(doing()))?;
        }
        for scrub in log.scrubs.iter().filter(|scrub| scrub.file == at.file) {
            write_zeros(&*file, scrub.range.clone()).map_err(io_error(doing()))?;
        }
        let inlines = log.inlines.iter().filter(|write| write.file == at.file);
        let inlines = inlines.map(|InlineWrite { position, bytes, .. }| (*position, bytes));
        write_runs(&*file, inlines).map_err(io_error(doing()))?;
        if let Some(moved) = moved {
            let runs = moved.runs.iter().map(|(_, position, bytes)| (*position, bytes));
            write_runs(&*file, runs).map_err(io_error(doing()))?;
        }
        for place in log.rewrites.iter().filter(|place| place.file == at.file) {
            rewrite_frame(files.disk, &*file, place)?;
        }
    }
    Ok(())
}

fn header_of(log: &LogState, at: &ManifestSegment) -> SegmentHeader {
    SegmentHeader {
        file: at.file,
        chain_crc: at.base_chain_crc,
        key: log.key,
        incarnation: log.incarnation,
        seq: at.seq,
        salt: at.salt,
        base_index: at.base_index,
        base_offset: at.base_offset,
        sparse: at.sparse,
    }
}

/// Most bytes in one write of recovery.
const WRITE_BYTES: usize = 1 << 20;

/// Writes runs, those that follow each other in one call.
fn write_runs<'a>(
    file: &dyn DiskFile,
    runs: impl Iterator<Item = (u64, &'a Bytes)>,
) -> std::io::Result<()> {
    let mut start = 0;
    let mut len = 0;
    let mut parts: Vec<IoSlice<'a>> = Vec::new();
    for (position, bytes) in runs {
        if !parts.is_empty() && (position != start + len as u64 || len >= WRITE_BYTES) {
            file.write_at(start, &parts)?;
            parts.clear();
        }
        if parts.is_empty() {
            (start, len) = (position, 0);
        }
        parts.push(IoSlice::new(bytes));
        len += bytes.len();
    }
    if parts.is_empty() {
        return Ok(());
    }
    file.write_at(start, &parts)
}

fn write_zeros(file: &dyn DiskFile, range: Range<u64>) -> std::io::Result<()> {
    let zeros = [0; 16 * SECTOR];
    let mut position = range.start;
    while position < range.end {
        let left = usize::try_from(range.end - position).unwrap_or(usize::MAX);
        let part = &zeros[..zeros.len().min(left)];
        file.write_at(position, &[IoSlice::new(part)])?;
        position += part.len() as u64;
    }
    Ok(())
}

/// Writes a frame again as a whole: equal cached bytes may be clean and lost, and a sector around the
/// entries that is lost shows what an earlier use of the file left there.
fn rewrite_frame(
    disk: &dyn Disk,
    file: &dyn DiskFile,
    place: &FramePlace,
) -> Result<(), OpenError> {
    let body = read_frame(disk, place)?;
    let header = &place.header;
    let (sector, trailer) = (header.encode(), header.trailer().encode());
    let padding = body.len().next_multiple_of(SECTOR) - body.len();
    let zeros = [0; SECTOR];
    let parts = [
        IoSlice::new(&sector),
        IoSlice::new(&body),
        IoSlice::new(&zeros[..padding]),
        IoSlice::new(&trailer),
    ];
    let doing = || format!("writing {}", names::segment(place.file));
    file.write_at(header.position, &parts).map_err(io_error(doing()))
}

/// Fills in the logs and the files that belong to nobody.
fn hand_over(state: &mut RecoveredState, logs: Vec<LogState>, files: &Files<'_>) {
    let mut free = files.lens.clone();
    for log in logs {
        let mut segments = Vec::with_capacity(log.segments.len());
        let last = log.segments.last().map(|segment| segment.at.seq);
        for segment in &log.segments {
            let mut at = segment.at;
            // A gap at the end of the log: the next entry begins a segment.
            at.sealed |= Some(at.seq) != last || log.closed || at.end_index != log.end.0;
            let file_len = free.remove(&at.file).unwrap_or(0);
            segments.push(RecoveredSegment { at, file_len, dirty: segment.dirty });
        }
        state.logs.push(RecoveredLog {
            key: log.key,
            incarnation: log.incarnation,
            class: log.class,
            start: log.start,
            end: log.end,
            reserved: log.reserved,
            chain_crc: log.chain_crc,
            last_time: log.last_time,
            last_seq: log.last_seq,
            segments,
            snapshots: log.snapshots,
            damages: log.damages,
            vacancies: log.vacancies,
        });
    }
    state.free_segments = free.into_iter().map(|(file, len)| FreeFile { file, len }).collect();
}
