//! The fuzz target of recovery: arbitrary bytes as the contents of a data directory.
//!
//! Owns how bytes become a directory, and what must hold whatever they are. Knows the layouts only so
//! far that it can make checksums fit: otherwise nothing behind them would ever be reached.
//!
//! ```text
//! u8 mode: bit 0 = make checksums fit | pieces of files:
//! u8 kind: 0-2 manifest slot, 3 segment, 4 journal, 5 pack (modulo 6) | u8 number
//! | u8 sectors of the file, at least | u8 sector where the piece begins
//! | u16 length of the piece (LE), at most what is left | piece; zeros elsewhere in the file
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::{ENTRY_HEADER_BYTES, ENTRY_MAGIC, EntryHeader};
use postrider_storage::disk_sim::CrashKind;
use postrider_storage::format::codec::NUMBERS_END;
use postrider_storage::format::{SECTOR, names};
use postrider_storage::recovered::RecoveredState;
use postrider_storage::{Disk, OpenError, SimDisk, StoreOptions, check, recover};

use super::crc32;

/// Bytes of a piece's head.
const HEAD_BYTES: usize = 6;
/// Pieces of a directory; what follows is ignored.
const PIECES_MAX: usize = 64;

/// A directory. Looking at it changes nothing, a refusal changes nothing, and what recovery has settled
/// is there again after the power failed.
///
/// # Panics
///
/// If looking or refusing changes a file, or a second recovery loses what the first one gave.
pub fn recovery(input: &[u8]) {
    let disk = SimDisk::new(1);
    for (path, contents) in directory(input) {
        disk.install(&path, &contents);
    }
    let before = disk.files();
    let _report = check(&disk);
    assert!(disk.files() == before, "a check changes nothing");
    match recover_on(&disk) {
        Err(OpenError::NoManifest | OpenError::Format { .. }) => {
            assert!(disk.files() == before, "a refusal changes nothing");
        }
        Ok(first) if !is_worn_out(&first) => survives_power_loss(&disk, &first),
        _ => {}
    }
}

/// Small files, so that an input holds whole directories and a run costs little.
#[must_use]
pub fn small_options() -> StoreOptions {
    StoreOptions {
        segment_bytes_min: 4 << 10,
        segment_bytes_max: 64 << 10,
        journal_bytes_min: 16 << 10,
        journal_bytes_max: 32 << 10,
        direct_write_bytes: 2 << 10,
        ..StoreOptions::default()
    }
}

fn recover_on(disk: &SimDisk) -> Result<RecoveredState, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    recover(&disk, &small_options())
}

/// Numbers so large that what recovery skips may carry them to where they are refused.
fn is_worn_out(state: &RecoveredState) -> bool {
    let journal = &state.journal;
    let counters = [
        state.manifest_number,
        state.next_incarnation,
        state.next_salt,
        journal.next_group,
        journal.next_generation,
    ];
    let logs = state.logs.iter().flat_map(|log| {
        [log.end.0.0, log.end.1.0, log.reserved.0.0, log.reserved.1.0, log.last_seq]
    });
    counters.into_iter().chain(logs).any(|number| number >= NUMBERS_END / 2)
}

fn survives_power_loss(disk: &SimDisk, first: &RecoveredState) {
    check_consistent(first);
    disk.crash(CrashKind::Power);
    let again = recover_on(&disk.reopen()).expect("what recovery has settled recovers again");
    check_consistent(&again);
    let logs: BTreeMap<_, _> = again.logs.iter().map(|log| (log.key, log)).collect();
    assert_eq!(logs.len(), first.logs.len(), "the same logs");
    for log in &first.logs {
        let later = logs[&log.key];
        assert_eq!(later.incarnation, log.incarnation);
        assert_eq!(later.start, log.start);
        assert!(later.end >= log.end, "{:?} then {:?}", log.end, later.end);
    }
    assert!(again.doubtful || !first.doubtful, "doubt stays until it is repaired");
}

fn check_consistent(state: &RecoveredState) {
    for log in &state.logs {
        assert!(log.start <= log.end, "{:?}", log.key);
        let rising = log.segments.windows(2).all(|two| two[0].at.end_index <= two[1].at.base_index);
        assert!(rising, "segments of {:?} rise", log.key);
    }
}

/// The files that the bytes describe.
fn directory(input: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::<_, Vec<u8>>::new();
    let Some((&mode, mut rest)) = input.split_first() else { return files };
    for _ in 0..PIECES_MAX {
        let Some((&[kind, number, sectors, at, low, high], after)) =
            rest.split_first_chunk::<HEAD_BYTES>()
        else {
            break;
        };
        let len = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (piece, after) = after.split_at(len);
        rest = after;
        let number = u32::from(number);
        let path = match kind % 6 {
            slot @ 0..=2 => names::manifest(usize::from(slot)),
            3 => names::segment(number),
            4 => names::journal(number),
            _ => names::pack(number),
        };
        let contents = files.entry(path).or_default();
        let start = usize::from(at) * SECTOR;
        let end = start + len;
        contents.resize(contents.len().max(end).max(usize::from(sectors) * SECTOR), 0);
        contents[start..end].copy_from_slice(piece);
    }
    if mode & 1 == 1 {
        files.values_mut().for_each(|contents| mend(contents));
    }
    files
}

/// The bytes that [`recovery`] reads as these files, where they are small enough: how corpora are made.
///
/// # Panics
///
/// If a file is too large for its head: a number above 255, or more than 64 KiB of contents.
#[must_use]
pub fn pack_directory(files: &[(String, Bytes)]) -> Vec<u8> {
    let mut packed = vec![0];
    for (path, contents) in files {
        let name = path.rsplit('/').next().unwrap_or_default();
        let (kind, number) = match name.split_once('.') {
            Some(("manifest", slot)) => (slot.parse().unwrap_or(0), 0),
            Some((_, "seg")) => (3, names::number(name, "seg").unwrap_or(0)),
            Some((_, "wal")) => (4, names::number(name, "wal").unwrap_or(0)),
            Some((_, "pack")) => (5, names::number(name, "pack").unwrap_or(0)),
            _ => continue,
        };
        let small = |number: usize| u8::try_from(number).expect("small files are packed");
        let number = u8::try_from(number).expect("low numbers are packed");
        let sectors = small(contents.len().div_ceil(SECTOR));
        for (at, piece) in pieces(contents) {
            packed.extend([kind, number, sectors, small(at)]);
            packed.extend(u16::try_from(piece.len()).expect("small files").to_le_bytes());
            packed.extend_from_slice(piece);
        }
    }
    packed
}

/// Runs of sectors that are not all zero, each with the number of its first sector and without the
/// zeros at its end; a file of zeros is one empty piece.
fn pieces(contents: &[u8]) -> Vec<(usize, &[u8])> {
    let is_zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    let sectors: Vec<&[u8]> = contents.chunks(SECTOR).collect();
    let mut found = Vec::new();
    let mut at = 0;
    for run in sectors.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let bytes = &contents[at * SECTOR..contents.len().min((at + run.len()) * SECTOR)];
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if used > 0 {
            found.push((at, &bytes[..used]));
        }
        at += run.len();
    }
    if found.is_empty() {
        found.push((0, &[][..]));
    }
    found
}

/// Makes the checksums of what is known by its magic fit.
fn mend(contents: &mut [u8]) {
    for at in (0..contents.len()).step_by(8) {
        let Some(rest) = contents.get_mut(at..) else { return };
        if let Some(entry) = rest.first_chunk_mut::<ENTRY_HEADER_BYTES>()
            && entry.starts_with(&ENTRY_MAGIC)
        {
            let crc = EntryHeader::crc_of(entry);
            entry[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    mend_manifest(contents);
    for at in (0..contents.len()).step_by(SECTOR) {
        if let Some(rest) = contents.get_mut(at..) {
            mend_sector(rest);
        }
    }
}

fn mend_manifest(contents: &mut [u8]) {
    if contents.starts_with(b"PRMF") && contents.len() > 12 {
        let len = u32::from_le_bytes([contents[8], contents[9], contents[10], contents[11]]);
        if let Some(covered) = contents.get(8..len as usize) {
            let crc = crc32(covered);
            contents[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// A sector with a checksum of its own; before it, the checksum of a journal group's records.
fn mend_sector(rest: &mut [u8]) {
    if rest.len() < SECTOR {
        return;
    }
    let lengths_at = [(b"PRJH", 44, 48), (b"PRFH", 60, 72)];
    for (magic, len_at, crc_at) in lengths_at {
        if rest.starts_with(magic) {
            mend_body(rest, len_at, crc_at);
        }
    }
    let sealed: [&[u8]; 6] = [b"PRJH", b"PRJT", b"PRSG", b"PRFH", b"PRFT", b"PRSP"];
    if sealed.iter().any(|magic| rest.starts_with(magic)) {
        let crc = crc32(&rest[8..SECTOR]);
        rest[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The checksum of the body in the sectors that follow.
fn mend_body(rest: &mut [u8], len_at: usize, crc_at: usize) {
    let len = rest[len_at..len_at + 4].first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
    if let Some(body) = rest.get(SECTOR..SECTOR.saturating_add(len as usize)) {
        let crc = crc32(body);
        rest[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}
