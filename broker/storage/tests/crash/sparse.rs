//! Segments that are given up or written again in part: crashed everywhere, and with planted bugs.

use std::collections::BTreeMap;

use postrider_storage::check;
use postrider_storage::disk_sim::FaultPlan;
use postrider_storage::format::SECTOR;
use postrider_storage::format::segment::SegmentHeader;

use crate::mutant::Bug;
use crate::workload::{Action, random_sparse_script, small_sparse_script, sparse_script};
use crate::{
    Case, KINDS, crash_case, flip_case, left_behind, life_case, must, must_find, operations,
    replay, seeds,
};

/// A life in which segments go in the middle; at its end all of the directory must be sound.
pub(crate) fn sparse_case(seed: u64, bug: Bug) -> Result<u64, String> {
    let (mut run, acked) = life_case(seed, bug, random_sparse_script, 400)?;
    run.run(&[Action::Step, Action::Close])?;
    let report = check(&run.disk);
    if report.is_sound() { Ok(acked) } else { Err(report.to_string()) }
}

#[test]
fn script_gives_segments_up_and_writes_others_again() {
    let run = left_behind(&sparse_script(), Bug::None).unwrap();
    let report = check(&run.disk);
    assert!(report.is_sound(), "{report}");
    let stats = run.stats();
    assert!(stats.segments_vacated >= 2, "{stats:?}");
    assert!(stats.segments_rewritten >= 2, "{stats:?}");
}

#[test]
fn crash_at_every_operation_leaves_a_segment_or_its_vacancy() {
    let actions = sparse_script();
    for at in operations(&actions, 0) {
        for kind in KINDS {
            let plan = FaultPlan { crash_at: Some(at), ..FaultPlan::default() };
            let case = Case { seed: at, plan, kind, again: None };
            must(crash_case(&actions, case, Bug::None), &|| format!("{case:?}"));
        }
    }
}

#[test]
fn second_crash_in_recovery_leaves_a_segment_or_its_vacancy() {
    let actions = sparse_script();
    for at in operations(&actions, 0).step_by(11) {
        for again in (1..30).step_by(3) {
            let plan = FaultPlan { crash_at: Some(at), ..FaultPlan::default() };
            let (first, second) = (KINDS[(at % 2) as usize], KINDS[(again % 2) as usize]);
            let case = Case { seed: at + again, plan, kind: first, again: Some((again, second)) };
            must(crash_case(&actions, case, Bug::None), &|| format!("{case:?}"));
        }
    }
}

#[test]
fn failed_sync_or_write_while_segments_go_loses_nothing() {
    let actions = sparse_script();
    for at in operations(&actions, 0).step_by(3) {
        let sync = FaultPlan { fail_sync_at: Some(at), ..FaultPlan::default() };
        let write = FaultPlan { fail_write_at: Some(at), ..FaultPlan::default() };
        for plan in [sync, write] {
            let case = Case { seed: at, plan, kind: KINDS[(at % 2) as usize], again: None };
            must(crash_case(&actions, case, Bug::None), &|| format!("{case:?}"));
        }
    }
}

#[test]
fn random_lives_with_vacancies_lose_nothing_live() {
    let mut acked = 0;
    for seed in seeds(250) {
        acked += must(sparse_case(seed, Bug::None), &|| replay("random_lives_with", seed));
    }
    println!("{acked} entries acknowledged and kept");
}

/// Every written byte of the sparse segments, and samples of the rest of the directory.
#[test]
fn flipped_bytes_never_make_a_live_entry_vacant() {
    let run = left_behind(&small_sparse_script(), Bug::None).unwrap();
    let mut outcomes = BTreeMap::new();
    for (path, bytes) in run.disk.files() {
        let header = bytes.get(..SECTOR).map(SegmentHeader::decode);
        let sparse = matches!(header, Some(Ok(SegmentHeader { sparse: true, .. })));
        for at in 0..bytes.len() {
            let blank = bytes[at / 512 * 512..].iter().take(512).all(|byte| *byte == 0);
            if (blank || !sparse) && at % 61 != 0 {
                continue;
            }
            let sound = flip_case(&run, &path, at as u64, 1 << (at % 8))
                .unwrap_or_else(|error| panic!("{path} byte {at}: {error}"));
            *outcomes.entry((sparse, sound)).or_insert(0_u64) += 1;
        }
    }
    assert!(outcomes.contains_key(&(true, false)), "{outcomes:?}");
}

#[test]
fn sparse_segment_named_before_it_is_durable_is_found() {
    must_find(&[Bug::SparseUnsynced]);
}

#[test]
fn file_released_before_the_vacancy_is_durable_is_found() {
    must_find(&[Bug::ThinUnsynced]);
}

#[test]
fn live_entry_left_out_of_a_sparse_segment_is_found() {
    must_find(&[Bug::LiveLeftOut]);
}

#[test]
fn chain_that_does_not_begin_anew_is_found() {
    must_find(&[Bug::ChainNotRestarted]);
}
