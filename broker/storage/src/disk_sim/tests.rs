//! What the simulated disk may do to unsynced data, and what it never does.

use super::*;

fn write(file: &Arc<dyn DiskFile>, offset: u64, bytes: &[u8]) {
    file.write_at(offset, &[IoSlice::new(bytes)]).unwrap();
}

fn content(disk: &SimDisk, path: &str) -> Option<Bytes> {
    disk.files().into_iter().find(|(name, _)| name == path).map(|(_, bytes)| bytes)
}

/// A disk with a durable file `a` of four sectors of ones.
fn disk_with_file(seed: u64) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new(seed);
    let file = disk.open("a", OpenMode::Create).unwrap();
    write(&file, 0, &[1; 4 * SECTOR]);
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    assert!(disk.is_durable());
    (disk, file)
}

#[test]
fn process_crash_keeps_the_page_cache() {
    let (disk, file) = disk_with_file(1);
    write(&file, 0, &[2; SECTOR]);
    disk.crash(CrashKind::Process);
    assert!(file.len().is_err());
    let disk = disk.reopen();
    assert_eq!(content(&disk, "a").unwrap()[0], 2);
    assert!(file.len().is_err(), "a handle of the dead process works again");
}

#[test]
fn power_loss_leaves_each_unsynced_sector_old_or_new_in_any_combination() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let (disk, file) = disk_with_file(seed);
        write(&file, 0, &[2; 4 * SECTOR]);
        disk.crash(CrashKind::Power);
        let bytes = content(&disk, "a").unwrap();
        let sectors: Vec<u8> = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
        assert!(bytes.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        seen.insert(sectors);
    }
    assert_eq!(seen.len(), 16, "some combination of four sectors never appeared");
}

#[test]
fn power_loss_may_leave_an_overwritten_version() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let (disk, file) = disk_with_file(seed);
        write(&file, 0, &[2; SECTOR]);
        write(&file, 0, &[3; SECTOR]);
        disk.crash(CrashKind::Power);
        seen.insert(content(&disk, "a").unwrap()[0]);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn synced_data_survives_power_loss() {
    for seed in 0..50 {
        let (disk, file) = disk_with_file(seed);
        write(&file, 0, &[2; 5 * SECTOR]);
        file.sync().unwrap();
        disk.crash(CrashKind::Power);
        assert_eq!(content(&disk, "a").unwrap(), vec![2; 5 * SECTOR]);
    }
}

#[test]
fn failed_sync_loses_data_that_still_reads_back_and_a_later_sync_does_not_save_it() {
    let mut lost = 0;
    for seed in 0..50 {
        let (disk, file) = disk_with_file(seed);
        write(&file, 0, &[2; SECTOR]);
        disk.set_plan(FaultPlan { fail_sync_at: Some(0), ..FaultPlan::default() });
        assert!(file.sync().is_err());
        assert!(file.sync().is_ok());
        assert_eq!(content(&disk, "a").unwrap()[0], 2);
        disk.crash(CrashKind::Power);
        lost += usize::from(content(&disk, "a").unwrap()[0] == 1);
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn rewriting_lost_sectors_makes_them_durable() {
    for seed in 0..50 {
        let (disk, file) = disk_with_file(seed);
        write(&file, 0, &[2; SECTOR]);
        disk.set_plan(FaultPlan { fail_sync_at: Some(0), ..FaultPlan::default() });
        assert!(file.sync().is_err());
        write(&file, 0, &[2; SECTOR]);
        file.sync().unwrap();
        disk.crash(CrashKind::Power);
        assert_eq!(content(&disk, "a").unwrap()[0], 2);
    }
}

#[test]
fn unsynced_names_may_vanish_and_synced_ones_do_not() {
    let mut kept = [0, 0];
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        disk.create_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        disk.open("d/x", OpenMode::Create).unwrap();
        disk.sync_dir("d").unwrap();
        disk.open("d/y", OpenMode::Create).unwrap();
        disk.crash(CrashKind::Power);
        let names = disk.reopen().list("d").unwrap();
        assert!(names.contains(&"x".to_string()));
        kept[usize::from(names.contains(&"y".to_string()))] += 1;
    }
    assert!(kept[0] > 5 && kept[1] > 5, "{kept:?}");
}

#[test]
fn unsynced_rename_leaves_the_old_or_the_new_file() {
    for seed in 0..50 {
        let (disk, file) = disk_with_file(seed);
        drop(file);
        disk.open("b", OpenMode::Create).unwrap();
        disk.sync_dir("").unwrap();
        disk.rename("a", "b").unwrap();
        disk.crash(CrashKind::Power);
        let names = disk.reopen().list("").unwrap();
        assert!(names == ["b"] || names == ["a", "b"], "{names:?}");
    }
}

#[test]
fn planned_crash_stops_everything_until_reopened() {
    let (disk, file) = disk_with_file(3);
    disk.set_plan(FaultPlan { crash_at: Some(disk.operations() + 1), ..FaultPlan::default() });
    assert!(file.write_at(0, &[IoSlice::new(&[9; 2000])]).is_err());
    assert!(disk.crashed());
    assert!(disk.open("a", OpenMode::Read).is_err());
    disk.crash(CrashKind::Process);
    assert!(disk.reopen().open("a", OpenMode::Read).is_ok());
}

#[test]
fn quota_refuses_growth_and_only_growth() {
    let (disk, file) = disk_with_file(3);
    disk.set_quota(4 * SECTOR as u64);
    let error = file.allocate(5 * SECTOR as u64).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    write(&file, 0, &[5; 4 * SECTOR]);
    assert_eq!(disk.free_bytes().unwrap(), 0);
    disk.remove("a").unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 4 * SECTOR as u64);
}

#[test]
fn forks_lose_differently_and_do_not_disturb_each_other() {
    let (disk, file) = disk_with_file(3);
    write(&file, 0, &[2; 4 * SECTOR]);
    let outcomes: std::collections::BTreeSet<Vec<u8>> = (0..20)
        .map(|seed| {
            let fork = disk.fork(seed);
            fork.crash(CrashKind::Power);
            content(&fork, "a").unwrap().to_vec()
        })
        .collect();
    assert!(outcomes.len() > 3);
    assert_eq!(content(&disk, "a").unwrap(), vec![2; 4 * SECTOR]);
}

#[test]
fn map_shows_later_writes_and_lock_excludes() {
    let (disk, file) = disk_with_file(3);
    let map = file.map().unwrap();
    write(&file, 8, &[6; 8]);
    assert_eq!(map.slice(8..10).as_ref(), [6, 6]);
    let lock = disk.lock().unwrap();
    assert!(disk.lock().is_err());
    drop(lock);
    assert!(disk.lock().is_ok());
}

#[test]
fn same_seed_replays_bit_for_bit() {
    let run = || {
        let (disk, file) = disk_with_file(42);
        write(&file, 100, &[2; 1500]);
        disk.crash(CrashKind::Power);
        disk.files()
    };
    assert_eq!(run(), run());
}
