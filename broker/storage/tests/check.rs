//! `check` on directories that a store left behind.

use std::sync::Arc;

use postrider_storage::{Disk, SimDisk, StoreOptions, check, recover};

#[test]
fn empty_and_young_directories_are_sound_and_stay_untouched() {
    let disk = SimDisk::new(1);
    let report = check(&disk);
    assert!(report.empty && report.is_sound(), "{report}");
    assert_eq!(disk.operations(), 0);

    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    recover(&shared, &StoreOptions::default()).unwrap();
    let operations = disk.operations();
    let report = check(&disk);
    assert!(!report.empty && report.is_sound(), "{report}");
    assert_eq!(report.slots.len(), 3);
    assert_eq!(disk.operations(), operations);
}

#[test]
fn directories_that_a_server_refuses_are_said_to_be() {
    let disk = SimDisk::new(1);
    disk.install("segments/00000001.seg", b"x");
    let report = check(&disk);
    assert!(!report.is_sound());
    assert!(report.to_string().contains("would refuse"), "{report}");
}
