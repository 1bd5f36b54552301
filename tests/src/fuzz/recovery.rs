//! The fuzz target of recovery: arbitrary bytes as the contents of a data directory.
//!
//! Owns how bytes become a directory, and what must hold whatever they are. Knows the layouts only so
//! far that it can make checksums fit: otherwise nothing behind them would ever be reached.
//!
//! ```text
//! u8 mode: bit 0 = make checksums fit | files:
//! u8 kind: 0-2 manifest slot, 3 segment, 4 journal, 5 pack (modulo 6) | u8 number | u8 sectors
//! | u16 length of the contents (LE), at most what is left | contents; zeros up to the sectors
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::{ENTRY_HEADER_BYTES, ENTRY_MAGIC, EntryHeader};
use postrider_storage::disk_sim::CrashKind;
use postrider_storage::format::{SECTOR, names};
use postrider_storage::recovered::RecoveredState;
use postrider_storage::{Disk, OpenError, SimDisk, StoreOptions, check, recover};

use super::crc32;

/// Bytes of a file's head: kind, number, sectors, length of the contents.
const HEAD_BYTES: usize = 5;
/// Files of a directory; what follows is ignored.
const FILES_MAX: usize = 16;

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
        Err(_) => {}
        Ok(first) => survives_power_loss(&disk, &first),
    }
}

fn recover_on(disk: &SimDisk) -> Result<RecoveredState, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    recover(&disk, &StoreOptions::default())
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
fn directory(input: &[u8]) -> Vec<(String, Vec<u8>)> {
    let Some((&mode, mut rest)) = input.split_first() else { return Vec::new() };
    let mut files = Vec::new();
    while let Some((&[kind, number, sectors, low, high], after)) =
        rest.split_first_chunk::<HEAD_BYTES>()
        && files.len() < FILES_MAX
    {
        let len = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (contents, after) = after.split_at(len);
        rest = after;
        let mut contents = contents.to_vec();
        contents.resize(contents.len().max(usize::from(sectors) * SECTOR), 0);
        let path = match kind % 6 {
            slot @ 0..=2 => names::manifest(usize::from(slot)),
            3 => names::segment(u32::from(number)),
            4 => names::journal(u32::from(number)),
            _ => names::pack(u32::from(number)),
        };
        if mode & 1 == 1 {
            mend(&mut contents);
        }
        files.push((path, contents));
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
        let used = contents.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let small = |number: usize| u8::try_from(number).expect("small files are packed");
        packed.extend([kind, u8::try_from(number).expect("low numbers are packed")]);
        packed.push(small(contents.len().div_ceil(SECTOR)));
        packed.extend(u16::try_from(used).expect("small files are packed").to_le_bytes());
        packed.extend_from_slice(&contents[..used]);
    }
    packed
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
