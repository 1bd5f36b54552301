//! What recovery makes of directories that were written by hand: one case per test.

use std::io::IoSlice;

use bytes::Bytes;
use postrider_protocol::entry::{EntryHeader, EntryKind, entry_len};
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId,
};

use super::*;
use crate::LogKey;
use crate::disk::OpenMode;
use crate::disk_sim::{CrashKind, FaultPlan, SimDisk};
use crate::format::SECTOR;
use crate::format::journal::{GroupHeader, Inline, Record, Roll};
use crate::format::names;
use crate::format::segment::{ENTRIES_START, FrameHeader, SegmentHeader};
use crate::recovered::RecoveredLog;

fn key(number: u8) -> LogKey {
    LogKey { topic: TopicId([number; 16]), partition: PartitionId(0) }
}

fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes_min: 32 << 10,
        segment_bytes_max: 64 << 10,
        journal_bytes_min: 32 << 10,
        journal_bytes_max: 64 << 10,
        group_bytes_max: 16 << 10,
        ..StoreOptions::default()
    }
}

/// One log, written by hand as the store would.
struct HandLog {
    number: u8,
    file: u32,
    salt: u64,
    position: u64,
    index: u64,
    offset: u64,
    chain: u32,
}

impl HandLog {
    fn new(number: u8) -> Self {
        let file = u32::from(number);
        let salt = 100 + u64::from(number);
        Self { number, file, salt, position: ENTRIES_START, index: 0, offset: 0, chain: 0 }
    }

    fn roll(&self) -> Record<'static> {
        Record::Roll(Roll {
            key: key(self.number),
            incarnation: 5,
            seq: 1,
            file: self.file,
            salt: self.salt,
            base_index: EntryIndex(0),
            base_offset: Offset(0),
            chain_crc: 0,
        })
    }

    fn write_header(&self, disk: &SimDisk) {
        let header = SegmentHeader {
            file: self.file,
            chain_crc: 0,
            key: key(self.number),
            incarnation: 5,
            seq: 1,
            salt: self.salt,
            base_index: EntryIndex(0),
            base_offset: Offset(0),
            sparse: false,
        };
        let file = disk.open(&names::segment(self.file), OpenMode::Create).unwrap();
        file.allocate(32 << 10).unwrap();
        file.write_at(0, &[IoSlice::new(&header.encode())]).unwrap();
        disk.sync_dir(names::SEGMENTS).unwrap();
    }

    /// The next `count` entries of three messages each.
    fn entries(&mut self, count: u64, body_len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..count {
            let body = vec![self.number ^ self.index.to_le_bytes()[0]; body_len];
            let header = EntryHeader {
                header_crc: 0,
                total_len: u32::try_from(entry_len(body_len, 0)).unwrap(),
                body_len: u32::try_from(body_len).unwrap(),
                body_crc: crc32fast::hash(&body),
                trailer_len: 0,
                index: EntryIndex(self.index),
                base_offset: Offset(self.offset),
                leader_epoch: LeaderEpoch(1),
                prev_header_crc: self.chain,
                append_time: TimestampMs(1_000 + self.index),
                kind: EntryKind::Data,
                flags: 0,
                record_count: 3,
                seq_count: 3,
                key_id: 0,
                trailer_crc: 0,
                cached_crc32c: 0,
            };
            let bytes = header.encode();
            self.chain = EntryHeader::crc_of(&bytes);
            out.extend_from_slice(&bytes);
            out.extend_from_slice(&body);
            out.resize(out.len().next_multiple_of(8), 0);
            self.index += 1;
            self.offset += 3;
        }
        out
    }

    fn inline<'a>(&mut self, entries: &'a [u8], count: u32) -> Record<'a> {
        let position = self.position;
        self.position += entries.len() as u64;
        Record::Inline(Inline {
            key: key(self.number),
            incarnation: 5,
            seq: 1,
            position,
            first_index: EntryIndex(self.index - u64::from(count)),
            count,
            entries,
        })
    }

    /// Writes a frame of `count` entries, unsynced.
    fn frame(&mut self, disk: &SimDisk, g: u64, d: u64, count: u32, volatile: bool) -> FrameHeader {
        let (first_index, base_offset, first_prev) = (self.index, self.offset, self.chain);
        let body = self.entries(u64::from(count), 600);
        let header = FrameHeader {
            salt: self.salt,
            group: g,
            durable_group: d,
            position: self.position.next_multiple_of(SECTOR as u64),
            first_index: EntryIndex(first_index),
            base_offset: Offset(base_offset),
            count,
            body_len: u32::try_from(body.len()).unwrap(),
            first_prev,
            last_crc: self.chain,
            body_crc: crc32fast::hash(&body),
            volatile,
        };
        let file = disk.open(&names::segment(self.file), OpenMode::ReadWrite).unwrap();
        file.write_at(header.position, &[IoSlice::new(&header.encode()), IoSlice::new(&body)])
            .unwrap();
        file.write_at(header.trailer_position(), &[IoSlice::new(&header.trailer().encode())])
            .unwrap();
        self.position = header.end();
        header
    }

    fn sync(&self, disk: &SimDisk) {
        disk.open(&names::segment(self.file), OpenMode::ReadWrite).unwrap().sync().unwrap();
    }
}

/// A journal file, written by hand.
struct HandJournal {
    position: u64,
    prev_crc: u32,
}

impl HandJournal {
    fn new(disk: &SimDisk) -> Self {
        let file = disk.open(&names::journal(0), OpenMode::Create).unwrap();
        file.allocate(32 << 10).unwrap();
        file.sync().unwrap();
        disk.sync_dir(names::JOURNAL).unwrap();
        Self { position: 0, prev_crc: 0 }
    }

    fn group(&mut self, disk: &SimDisk, g: u64, d: u64, records: &[Record<'_>]) -> GroupHeader {
        let mut body = Vec::new();
        for record in records {
            record.encode(&mut body);
        }
        let header = GroupHeader {
            generation: 1,
            group: g,
            durable_group: d,
            position: self.position,
            count: u32::try_from(records.len()).unwrap(),
            body_len: u32::try_from(body.len()).unwrap(),
            body_crc: crc32fast::hash(&body),
            prev_crc: self.prev_crc,
            unsynced: false,
            recovery: false,
        };
        let sector = header.encode();
        let file = disk.open(&names::journal(0), OpenMode::ReadWrite).unwrap();
        file.write_at(header.position, &[IoSlice::new(&sector), IoSlice::new(&body)]).unwrap();
        file.write_at(header.trailer_position(), &[IoSlice::new(&header.trailer().encode())])
            .unwrap();
        self.position = header.end();
        self.prev_crc = GroupHeader::crc_of(&sector);
        header
    }

    fn sync(disk: &SimDisk) {
        disk.open(&names::journal(0), OpenMode::ReadWrite).unwrap().sync().unwrap();
    }
}

fn open(disk: &SimDisk) -> Result<RecoveredState, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    recover(&disk, &options())
}

fn empty(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    assert!(open(&disk).unwrap().report.created);
    disk
}

/// A directory with log 1: two journaled entries in group 1, a frame of four in group 2, one journaled
/// entry in group 3; all synced. D is 2 by the evidence of group 3.
fn three_groups(seed: u64) -> (SimDisk, HandLog, HandJournal) {
    let disk = empty(seed);
    let mut journal = HandJournal::new(&disk);
    let mut log = HandLog::new(1);
    log.write_header(&disk);
    let entries = log.entries(2, 100);
    journal.group(&disk, 1, 0, &[log.roll(), log.inline(&entries, 2)]);
    HandJournal::sync(&disk);
    log.frame(&disk, 2, 1, 4, false);
    log.sync(&disk);
    let entries = log.entries(1, 100);
    journal.group(&disk, 3, 2, &[log.inline(&entries, 1)]);
    HandJournal::sync(&disk);
    (disk, log, journal)
}

/// Entries of a log as its segments hold them: index to body.
fn stored(disk: &SimDisk, log: &RecoveredLog) -> Vec<(u64, Bytes)> {
    let mut out = Vec::new();
    for segment in &log.segments {
        let file = names::segment(segment.at.file);
        let bytes = disk.files().into_iter().find(|(path, _)| *path == file).unwrap().1;
        let mut at = usize::try_from(ENTRIES_START).unwrap();
        let mut next = segment.at.base_index.0;
        while next < segment.at.end_index.0 && at + 80 <= bytes.len() {
            match EntryHeader::decode(&bytes[at..]) {
                Ok(header) if header.index.0 >= next => {
                    let body = at + 80..at + 80 + header.body_len as usize;
                    let body = bytes.slice(body);
                    if crc32fast::hash(&body) == header.body_crc {
                        out.push((header.index.0, body));
                    }
                    at += header.total_len as usize;
                    next = header.index.0 + 1;
                }
                _ => at += 8,
            }
        }
    }
    out
}

fn indexes(disk: &SimDisk, log: &RecoveredLog) -> Vec<u64> {
    stored(disk, log).into_iter().map(|(index, _)| index).collect()
}

#[test]
fn empty_directory_is_set_up_and_opens_again() {
    let disk = empty(1);
    disk.crash(CrashKind::Power);
    let disk = disk.reopen();
    let state = open(&disk).unwrap();
    assert!(!state.report.created);
    assert_eq!(state.manifest_number, 3);
    assert!(state.logs.is_empty() && !state.doubtful);
}

#[test]
fn set_up_cut_short_at_any_operation_is_done_again() {
    for at in 1..40 {
        for kind in [CrashKind::Process, CrashKind::Power] {
            let disk = SimDisk::new(at);
            disk.set_plan(FaultPlan { crash_at: Some(at), ..FaultPlan::default() });
            if open(&disk).is_ok() {
                continue;
            }
            disk.crash(kind);
            let disk = disk.reopen();
            open(&disk).unwrap();
        }
    }
}

#[test]
fn data_without_a_manifest_and_foreign_directories_are_refused() {
    let disk = SimDisk::new(1);
    disk.install("segments/00000001.seg", b"x");
    assert!(matches!(open(&disk), Err(OpenError::NoManifest)));
    let disk = SimDisk::new(1);
    disk.install("holiday.jpg", b"x");
    assert!(matches!(open(&disk), Err(OpenError::NoManifest)));
}

#[test]
fn both_write_paths_are_replayed_and_the_unproven_tail_moves() {
    let (disk, log, _) = three_groups(1);
    let state = open(&disk).unwrap();
    let found = &state.logs[0];
    assert_eq!(found.end, (EntryIndex(7), Offset(21)));
    assert_eq!(found.chain_crc, log.chain);
    assert_eq!(found.last_time, TimestampMs(1_006));
    assert_eq!(indexes(&disk, found), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(found.segments.len(), 2, "group 3 moved to a new segment");
    assert!(found.segments[0].at.sealed && !found.segments[1].at.sealed);
    assert!(!state.doubtful && found.damages.is_empty());
    assert!(state.journal.next_group > 3 + COUNTER_JUMP);
}

#[test]
fn what_recovery_served_survives_power_loss_again_and_again() {
    for seed in 0..30 {
        let (disk, log, _) = three_groups(seed);
        let mut disk = disk;
        for kind in [CrashKind::Process, CrashKind::Power, CrashKind::Power] {
            disk.crash(kind);
            disk = disk.reopen();
            let state = open(&disk).unwrap();
            assert_eq!(state.logs[0].end, (EntryIndex(7), Offset(21)), "seed {seed}");
            assert_eq!(state.logs[0].chain_crc, log.chain);
            assert_eq!(indexes(&disk, &state.logs[0]), [0, 1, 2, 3, 4, 5, 6]);
        }
    }
}

#[test]
fn crash_at_any_operation_of_recovery_loses_nothing() {
    for at in 1..40 {
        for kind in [CrashKind::Process, CrashKind::Power] {
            for seed in 0..4 {
                let (disk, ..) = three_groups(seed);
                let begin = disk.operations();
                disk.set_plan(FaultPlan { crash_at: Some(begin + at), ..FaultPlan::default() });
                if open(&disk).is_err() {
                    disk.crash(kind);
                }
                let disk = disk.reopen();
                let state = open(&disk).unwrap();
                assert_eq!(state.logs[0].end, (EntryIndex(7), Offset(21)), "{at} {kind:?} {seed}");
                assert_eq!(indexes(&disk, &state.logs[0]), [0, 1, 2, 3, 4, 5, 6]);
                assert!(!state.doubtful && state.logs[0].damages.is_empty());
            }
        }
    }
}

#[test]
fn torn_tail_of_either_path_is_cut_and_doubted() {
    let mut cut = [0, 0];
    for seed in 0..40 {
        for (path, direct) in [(0, true), (1, false)] {
            let (disk, mut log, mut journal) = three_groups(seed);
            if direct {
                log.frame(&disk, 4, 3, 4, false);
            } else {
                let entries = log.entries(4, 700);
                journal.group(&disk, 4, 3, &[log.inline(&entries, 4)]);
            }
            disk.crash(CrashKind::Power);
            let disk = disk.reopen();
            let state = open(&disk).unwrap();
            let end = state.logs[0].end.0.0;
            assert!(end == 7 || end == 11, "seed {seed}: {end}");
            assert_eq!(indexes(&disk, &state.logs[0]), (0..end).collect::<Vec<_>>());
            assert!(state.logs[0].damages.is_empty(), "seed {seed}: torn is not corrupt");
            cut[path] += usize::from(state.doubtful);
        }
    }
    assert!(cut[0] > 3 && cut[1] > 3, "{cut:?}");
}

#[test]
fn damage_below_d_is_reported_and_what_lies_behind_it_is_kept() {
    let (disk, ..) = three_groups(1);
    let path = names::segment(1);
    // The body of the frame's second entry; the frame begins at the first sector after two entries.
    disk.flip(&path, 4608 + 512 + 680 + 200, 1);
    let state = open(&disk).unwrap();
    let log = &state.logs[0];
    assert_eq!(log.end, (EntryIndex(7), Offset(21)));
    let [damage] = log.damages[..] else { panic!("{:?}", log.damages) };
    assert_eq!((damage.from_index, damage.end_index), (EntryIndex(3), EntryIndex(4)));
    assert_eq!((damage.from_offset, damage.end_offset), (Offset(9), Offset(12)));
}

#[test]
fn lost_journal_group_below_d_skips_numbers_that_may_have_been_used() {
    let (disk, ..) = three_groups(1);
    disk.flip(&names::journal(0), 512 + 300, 1);
    let state = open(&disk).unwrap();
    let log = &state.logs[0];
    assert_eq!(log.end, (EntryIndex(7), Offset(21)), "the frame and group 3 follow it");
    let [damage] = log.damages[..] else { panic!("{:?}", log.damages) };
    assert_eq!((damage.from_index, damage.end_index), (EntryIndex(0), EntryIndex(2)));
}

#[test]
fn lost_reservation_skips_numbers_that_may_have_been_used() {
    let disk = empty(1);
    let mut journal = HandJournal::new(&disk);
    let mut log = HandLog::new(1);
    log.write_header(&disk);
    let reserve = Record::Reserve {
        key: key(1),
        incarnation: 5,
        class: Durability::Memory,
        end_index: EntryIndex(1_000),
        end_offset: Offset(5_000),
    };
    journal.group(&disk, 1, 0, &[log.roll(), reserve]);
    let entries = log.entries(2, 100);
    journal.group(&disk, 2, 1, &[log.inline(&entries, 2)]);
    journal.group(&disk, 3, 2, &[Record::Mark]);
    HandJournal::sync(&disk);
    disk.flip(&names::journal(0), 512 + 100, 1);
    let state = open(&disk).unwrap();
    let found = &state.logs[0];
    assert_eq!(indexes(&disk, found), [0, 1], "group 2 is whole");
    assert!(found.end.0 >= EntryIndex(1_000) && found.end.1 >= Offset(5_000), "{:?}", found.end);
    let [damage] = found.damages[..] else { panic!("{:?}", found.damages) };
    assert_eq!((damage.from_index, damage.end_index), (EntryIndex(2), found.end.0));
}

#[test]
fn every_flipped_byte_leaves_each_entry_readable_or_reported() {
    let (disk, _, mut journal) = three_groups(1);
    journal.group(&disk, 4, 3, &[Record::Mark]);
    HandJournal::sync(&disk);
    disk.open(&names::segment(1), OpenMode::ReadWrite).unwrap().sync().unwrap();
    for (path, bytes) in disk.files() {
        for at in 0..bytes.len() as u64 {
            if at > 10_000 {
                break;
            }
            let disk = disk.fork(at);
            disk.flip(&path, at, 0x20);
            let state = open(&disk).unwrap();
            let Some(log) = state.logs.first() else { panic!("{path} {at}: log gone") };
            let here = indexes(&disk, log);
            for index in 0..7 {
                let reported = log
                    .damages
                    .iter()
                    .any(|damage| (damage.from_index.0..damage.end_index.0).contains(&index));
                assert!(here.contains(&index) || reported, "{path} {at}: {index} of {log:?}");
            }
            assert!(log.end.0.0 >= 7, "{path} {at}");
        }
    }
}

#[test]
fn volatile_frames_are_kept_if_they_are_there_and_numbers_are_never_reused() {
    for seed in 0..20 {
        let disk = empty(seed);
        let mut journal = HandJournal::new(&disk);
        let mut log = HandLog::new(1);
        log.write_header(&disk);
        let reserve = Record::Reserve {
            key: key(1),
            incarnation: 5,
            class: Durability::Memory,
            end_index: EntryIndex(1_000),
            end_offset: Offset(5_000),
        };
        journal.group(&disk, 1, 0, &[log.roll(), reserve]);
        HandJournal::sync(&disk);
        log.frame(&disk, 2, 1, 4, true);
        log.frame(&disk, 3, 1, 4, true);
        let kind = if seed % 2 == 0 { CrashKind::Process } else { CrashKind::Power };
        disk.crash(kind);
        let disk = disk.reopen();
        let state = open(&disk).unwrap();
        let found = &state.logs[0];
        assert_eq!(found.end, (EntryIndex(1_000), Offset(5_000)));
        assert_eq!(found.class, Durability::Memory);
        let kept = indexes(&disk, found);
        let [damage] = found.damages[..] else { panic!("{:?}", found.damages) };
        assert_eq!(damage.from_index.0, kept.len() as u64);
        assert_eq!(damage.end_index, EntryIndex(1_000));
        if kind == CrashKind::Process {
            assert_eq!(kept.len(), 8);
        }
        assert!(!state.doubtful);
    }
}

#[test]
fn what_an_earlier_use_left_around_a_volatile_frame_is_not_read() {
    for around in ["zeros before it", "header", "trailer"] {
        let disk = empty(1);
        let mut journal = HandJournal::new(&disk);
        let mut log = HandLog::new(1);
        log.write_header(&disk);
        let reserve = Record::Reserve {
            key: key(1),
            incarnation: 5,
            class: Durability::Memory,
            end_index: EntryIndex(1_000),
            end_offset: Offset(5_000),
        };
        let entries = log.entries(1, 100);
        journal.group(&disk, 1, 0, &[log.roll(), reserve, log.inline(&entries, 1)]);
        HandJournal::sync(&disk);
        let end_of_inline = log.position;
        let frame = log.frame(&disk, 2, 1, 4, true);
        // No sync covers the frame: each of its sectors may be lost, and show an entry of another log.
        let mut earlier = HandLog::new(2);
        earlier.index = 3;
        let earlier = earlier.entries(1, 40);
        let (at, fill) = match around {
            "header" => (frame.position, SECTOR),
            "trailer" => (frame.trailer_position(), SECTOR),
            _ => (end_of_inline, earlier.len()),
        };
        let mut left = earlier.clone();
        left.resize(fill, 0);
        let file = disk.open(&names::segment(1), OpenMode::ReadWrite).unwrap();
        file.write_at(at, &[IoSlice::new(&left)]).unwrap();
        let mut disk = disk;
        for kind in [CrashKind::Process, CrashKind::Process] {
            disk.crash(kind);
            disk = disk.reopen();
            let state = open(&disk).unwrap();
            let found = &state.logs[0];
            assert_eq!(indexes(&disk, found), [0, 1, 2, 3, 4], "{around}");
            let bytes = disk.files().into_iter().find(|(path, _)| *path == names::segment(1));
            let bytes = bytes.unwrap().1;
            let left = bytes.windows(earlier.len()).any(|part| part == earlier);
            assert!(!left, "{around}: what was left is still there");
        }
    }
}
