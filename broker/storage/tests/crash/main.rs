//! The crash checker: the real store on the simulated disk, crashed everywhere.
//!
//! `POSTRIDER_SEEDS=n` runs so many seeds of the random workloads instead of the few that CI runs,
//! `POSTRIDER_SEED=n` that one alone; a failure prints the seed and how to replay it.

mod model;
mod mutant;
mod sparse;
mod workload;

use std::collections::BTreeMap;
use std::ops::Range;

use postrider_storage::check;
use postrider_storage::disk_sim::{CrashKind, FaultPlan, SimRandom};

use self::model::Allow;
use self::mutant::Bug;
use self::workload::{Action, Opening, Run, random_script, script, small_script};

const KINDS: [CrashKind; 2] = [CrashKind::Process, CrashKind::Power];

fn allow(kind: CrashKind) -> Allow {
    match kind {
        CrashKind::Process => Allow::ProcessCrash,
        CrashKind::Power => Allow::PowerLoss,
    }
}

/// Bytes left on a full disk: none, a sector, too little for what recovery would like to make, almost enough.
const ROOMS: [u64; 5] = [0, 512, 5 << 10, 9 << 10, 17 << 10];

/// What goes wrong in one run besides the last power loss.
#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    plan: FaultPlan,
    kind: CrashKind,
    /// A second crash at this operation of the recovery.
    again: Option<(u64, CrashKind)>,
}

/// Runs a script, crashes it as planned, recovers, appends a little, loses power, recovers again.
fn crash_case(actions: &[Action], case: Case, bug: Bug) -> Result<u64, String> {
    let mut run = Run::new(case.seed, bug);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    run.plan(case.plan);
    run.run(actions)?;
    let mut allowed = allow(case.kind);
    let fails = case.plan.fail_sync_at.or(case.plan.fail_write_at).is_some();
    if fails {
        // What a failed sync dropped is gone from the cache at any time.
        allowed = Allow::PowerLoss;
    }
    run.crash(case.kind);
    if let Some((operation, kind)) = case.again {
        let crash_at = Some(run.disk.operations() + operation);
        run.plan(FaultPlan { crash_at, ..FaultPlan::default() });
        // It may get through when recovery has fewer operations.
        let opening = run.open(allowed)?;
        if opening != Opening::Open {
            expect_crash(&opening)?;
        }
        if kind == CrashKind::Power {
            allowed = Allow::PowerLoss;
        }
        run.crash(kind);
    }
    expect_open(&run.open(allowed)?)?;
    let acked = run.model.acked();
    // What recovery serves, and what is acknowledged right after it, survives the next power loss.
    let more = [
        Action::Append { log: 0, len: 70 },
        Action::Append { log: 1, len: 2300 },
        Action::Step,
        Action::Append { log: 0, len: 2100 },
        Action::Step,
    ];
    let more = &more[..SimRandom::new(case.seed).index(more.len() + 1)];
    run.run(more)?;
    run.crash(CrashKind::Power);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    Ok(acked)
}

fn expect_open(opening: &Opening) -> Result<(), String> {
    if *opening == Opening::Open {
        Ok(())
    } else {
        Err(format!("the store does not open: {opening:?}"))
    }
}

fn expect_crash(opening: &Opening) -> Result<(), String> {
    match opening {
        Opening::Refused(error) => Err(format!("refused: {error}")),
        _ => Ok(()),
    }
}

/// Operations of a run without faults: where it begins after opening, and where it ends.
fn operations(actions: &[Action], seed: u64) -> Range<u64> {
    let mut run = Run::new(seed, Bug::None);
    let opening = run.open(Allow::PowerLoss).expect("a new directory holds what the model knows");
    assert_eq!(opening, Opening::Open, "a new directory opens");
    let begin = run.disk.operations();
    run.run(actions).expect("nothing is wrong without faults");
    begin + 1..run.disk.operations() + 1
}

fn must(result: Result<u64, String>, what: &dyn Fn() -> String) -> u64 {
    result.unwrap_or_else(|error| panic!("{error}\n  in {}", what()))
}

#[test]
fn crash_at_every_operation_loses_nothing_acknowledged() {
    let actions = script();
    let range = operations(&actions, 0);
    let mut acked = 0;
    for at in range {
        for kind in KINDS {
            for seed in 0..3 {
                let plan = FaultPlan { crash_at: Some(at), ..FaultPlan::default() };
                let case = Case { seed: seed + 3 * at, plan, kind, again: None };
                acked += must(crash_case(&actions, case, Bug::None), &|| format!("{case:?}"));
            }
        }
    }
    assert!(acked > 1_000, "the workload acknowledges hardly anything: {acked}");
}

#[test]
fn second_crash_at_any_operation_of_recovery_loses_nothing() {
    let actions = script();
    let range = operations(&actions, 0);
    for at in range.step_by(7) {
        for again in 1..32 {
            let seed = at * 32 + again;
            let plan = FaultPlan { crash_at: Some(at), ..FaultPlan::default() };
            let mut random = SimRandom::new(seed);
            let mut pick = || KINDS[random.index(2)];
            let case = Case { seed, plan, kind: pick(), again: Some((again, pick())) };
            must(crash_case(&actions, case, Bug::None), &|| format!("{case:?}"));
        }
    }
}

#[test]
fn failed_sync_or_write_ends_the_store_and_loses_nothing_acknowledged() {
    let actions = script();
    for at in operations(&actions, 0).step_by(2) {
        for kind in KINDS {
            let sync = FaultPlan { fail_sync_at: Some(at), ..FaultPlan::default() };
            let write = FaultPlan { fail_write_at: Some(at), ..FaultPlan::default() };
            for plan in [sync, write] {
                let case = Case { seed: at, plan, kind, again: None };
                must(crash_case(&actions, case, Bug::None), &|| format!("{case:?}"));
            }
        }
    }
}

/// A crash, then recoveries with so many bytes left on the disk, then one with enough. Tells whether the
/// first one found room.
fn full_disk_case(actions: &[Action], case: Case, room: u64) -> Result<bool, String> {
    let mut run = Run::new(case.seed, Bug::None);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    run.plan(case.plan);
    run.run(actions)?;
    run.crash(case.kind);
    let mut allowed = allow(case.kind);
    run.leave_room(room);
    let names = |run: &Run| run.disk.files().into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let before = names(&run);
    for kind in [CrashKind::Process, CrashKind::Power] {
        match run.open(allowed)? {
            Opening::Full => {}
            Opening::Open => return serve_on_full_disk(run, kind).map(|()| true),
            other => return Err(format!("a full disk opens as {other:?}")),
        }
        // What an attempt takes is not there for the next one.
        let after = names(&run);
        if after != before {
            return Err(format!("a failed attempt leaves files behind: {before:?}, {after:?}"));
        }
        if kind == CrashKind::Power {
            allowed = Allow::PowerLoss;
        }
        run.crash(kind);
    }
    run.leave_room(1 << 39);
    expect_open(&run.open(allowed)?)?;
    run.run(&[Action::Append { log: 0, len: 70 }, Action::Step])?;
    run.crash(CrashKind::Power);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    Ok(false)
}

/// A store that found room to recover goes on as on any full disk: with refusals.
fn serve_on_full_disk(mut run: Run, kind: CrashKind) -> Result<(), String> {
    run.run(&[Action::State { log: 0 }, Action::Append { log: 1, len: 900 }])?;
    run.run(&[Action::Step, Action::Checkpoint, Action::Step, Action::Close])?;
    run.crash(kind);
    run.leave_room(1 << 39);
    expect_open(&run.open(Allow::PowerLoss)?)
}

#[test]
fn recovery_on_a_full_disk_says_so_or_succeeds_and_loses_nothing() {
    let actions = script();
    let mut outcomes = BTreeMap::new();
    for at in operations(&actions, 0).step_by(3) {
        for (kind, room) in KINDS.into_iter().flat_map(|kind| ROOMS.map(|room| (kind, room))) {
            let plan = FaultPlan { crash_at: Some(at), ..FaultPlan::default() };
            let case = Case { seed: at, plan, kind, again: None };
            let opened = full_disk_case(&actions, case, room)
                .unwrap_or_else(|error| panic!("{error}\n  in {case:?} with {room} bytes left"));
            *outcomes.entry((room, opened)).or_insert(0_u64) += 1;
        }
    }
    println!("{outcomes:?}");
    for opened in [false, true] {
        assert!(outcomes.keys().any(|(_, outcome)| *outcome == opened), "{outcomes:?}");
    }
}

/// One seeded life of a data directory: several workloads, each ended by a crash, a failing disk or a
/// clean stop.
fn random_case(seed: u64, bug: Bug) -> Result<u64, String> {
    let (_run, acked) = life_case(seed, bug, random_script, 150)?;
    Ok(acked)
}

/// The same with other scripts, and what is wrong within so many operations of each.
fn life_case(
    seed: u64,
    bug: Bug,
    script: fn(u64) -> Vec<Action>,
    operations: u64,
) -> Result<(Run, u64), String> {
    let mut random = SimRandom::new(seed);
    let mut run = Run::new(seed, bug);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    let mut acked = 0;
    for life in 0..1 + random.below(4) {
        let actions = script(seed * 8 + life);
        let at = run.disk.operations() + 1 + random.below(operations);
        let mut plan = FaultPlan::default();
        let mut failing = false;
        match random.below(8) {
            0 => {
                plan.fail_sync_at = Some(at);
                failing = true;
            }
            1 => {
                plan.fail_write_at = Some(at);
                failing = true;
            }
            2 => {}
            _ => plan.crash_at = Some(at),
        }
        run.plan(plan);
        if random.one_in(6) {
            run.leave_room(random.below(96 << 10));
        }
        run.run(&actions)?;
        if random.one_in(4) {
            run.run(&[Action::Close])?;
        }
        let kind = KINDS[random.index(2)];
        let mut allowed = if failing { Allow::PowerLoss } else { allow(kind) };
        run.crash(kind);
        run.leave_room(1 << 39);
        while random.one_in(3) {
            let crash_at = Some(run.disk.operations() + 1 + random.below(20));
            run.plan(FaultPlan { crash_at, ..FaultPlan::default() });
            let opening = run.open(allowed)?;
            if opening != Opening::Open {
                expect_crash(&opening)?;
            }
            let kind = KINDS[random.index(2)];
            if kind == CrashKind::Power {
                allowed = Allow::PowerLoss;
            }
            run.crash(kind);
        }
        expect_open(&run.open(allowed)?)?;
        acked += run.model.acked();
    }
    Ok((run, acked))
}

/// A life whose cache holds what the disk has lost: entries that D proves and only the journal holds
/// durably, then a checkpoint whose sync of the segments fails and leaves their pages clean. What recovery
/// puts in the segments is all that is left once the next checkpoint has let the journal go.
fn lost_pages_case(seed: u64, bug: Bug) -> Result<u64, String> {
    let mut random = SimRandom::new(seed);
    let mut run = Run::new(seed, bug);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    let mut actions = random_script(seed);
    actions.truncate(random.index(actions.len() + 1));
    for _ in 0..1 + random.below(4) {
        let log = u8::from(random.one_in(2));
        actions.extend([Action::Append { log, len: 1 + random.index(1_500) }, Action::Step]);
    }
    // The mark: it says that the last of them is durable.
    actions.extend([Action::Step; 2]);
    run.run(&actions)?;
    let fail_sync_at = Some(run.disk.operations() + 1);
    run.plan(FaultPlan { fail_sync_at, ..FaultPlan::default() });
    run.run(&[Action::Checkpoint])?;
    run.crash(CrashKind::Process);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    run.run(&[Action::Checkpoint])?;
    run.crash(CrashKind::Power);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    Ok(run.model.acked())
}

#[test]
fn what_the_cache_shows_and_the_disk_has_lost_is_written_again() {
    for seed in seeds(150) {
        must(lost_pages_case(seed, Bug::None), &|| replay("what_the_cache_shows", seed));
    }
}

/// Seeds to run: those of the environment, else a few.
fn seeds(few: u64) -> Range<u64> {
    let number = |name: &str| {
        let given = std::env::var(name).ok()?;
        Some(given.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number, not {given}")))
    };
    match number("POSTRIDER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("POSTRIDER_SEEDS").unwrap_or(few),
    }
}

/// What a failing seed prints.
fn replay(test: &str, seed: u64) -> String {
    format!(
        "seed {seed}; replay: POSTRIDER_SEED={seed} cargo test -p postrider-storage --test crash {test}"
    )
}

#[test]
fn random_lives_lose_nothing_acknowledged() {
    let (mut acked, seeds) = (0, seeds(400));
    let single = seeds.end - seeds.start == 1;
    for seed in seeds {
        acked += must(random_case(seed, Bug::None), &|| replay("random_lives", seed));
    }
    println!("{acked} entries acknowledged and kept");
    // One life alone may end before anything is acknowledged.
    assert!(acked > 0 || single, "the workloads acknowledge nothing");
}

/// Lives beyond those that CI runs which once showed a bug.
fn life_passes(seed: u64) {
    must(random_case(seed, Bug::None), &|| replay("random_lives", seed));
}

#[test]
fn life_with_an_older_entry_before_a_frame_without_sync_passes() {
    life_passes(3418);
}

#[test]
fn life_that_closes_on_a_full_disk_ends() {
    life_passes(4456);
}

#[test]
fn life_with_an_entry_that_was_cut_inside_a_segment_reads_it_once() {
    life_passes(323);
}

/// Flips one byte of a directory that a crash left, then recovers and reads. `Ok(true)` = everything
/// acknowledged is there.
fn flip_case(run: &Run, path: &str, at: u64, mask: u8) -> Result<bool, String> {
    let mut fork = run.fork(at);
    fork.disk.flip(path, at, mask);
    let report = check(&fork.disk);
    match fork.open(Allow::Rot)? {
        Opening::Open => {}
        // Not started: said loudly enough.
        Opening::Refused(_) if !report.is_sound() => return Ok(false),
        other => return Err(format!("opens as {other:?}, while check says\n{report}")),
    }
    Ok(report.is_sound())
}

/// The directory after a script, crashed without loss.
fn left_behind(actions: &[Action], bug: Bug) -> Result<Run, String> {
    let mut run = Run::new(1, bug);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    run.run(actions)?;
    run.crash(CrashKind::Process);
    Ok(run)
}

#[test]
fn every_flipped_byte_is_harmless_or_reported() {
    let run = left_behind(&small_script(), Bug::None).unwrap();
    let mut outcomes = BTreeMap::new();
    for (path, bytes) in run.disk.files() {
        for at in 0..bytes.len() {
            // Bytes that were never written: a few of each stretch.
            let blank = bytes[at / 512 * 512..].iter().take(512).all(|byte| *byte == 0);
            if blank && at % 61 != 0 {
                continue;
            }
            let sound = flip_case(&run, &path, at as u64, 1 << (at % 8))
                .unwrap_or_else(|error| panic!("{path} byte {at}: {error}"));
            *outcomes.entry(sound).or_insert(0_u64) += 1;
        }
    }
    assert!(outcomes.len() == 2, "{outcomes:?}");
}

/// Bugs without a test of their own.
const OTHERS: [Bug; 5] = [
    Bug::RecoveryManifestUnsynced,
    Bug::CheckpointBeforeSegmentSync,
    Bug::ReuseBeforeManifestSync,
    Bug::NoSalt,
    Bug::OrdersUnsynced,
];

/// Seeds within which every planted bug must be found.
const BUG_SEEDS: u64 = 400;

/// Seeds in which the checker finds a bug.
fn found_in(bug: Bug, seeds: Range<u64>, enough: u64) -> (u64, u64) {
    let (mut found, mut tried) = (0, 0);
    for seed in seeds {
        tried += 1;
        found += u64::from(bug_case(seed, bug).is_err());
        if found >= enough {
            break;
        }
    }
    (found, tried)
}

/// One try at finding a bug: a random life, or the one that makes the bug show.
fn bug_case(seed: u64, bug: Bug) -> Result<(), String> {
    let caught = std::panic::catch_unwind(|| match bug {
        Bug::CutBelowWatermark => rot_case(seed, bug),
        Bug::SkipEqual => lost_pages_case(seed, bug).map(|_| ()),
        Bug::SparseUnsynced | Bug::ThinUnsynced | Bug::LiveLeftOut | Bug::ChainNotRestarted => {
            sparse::sparse_case(seed, bug).map(|_| ())
        }
        _ => random_case(seed, bug).map(|_| ()),
    });
    caught.unwrap_or_else(|_| Err("panicked".to_string()))
}

/// A run that ends idle, a crash, then one flipped byte in something that was written.
fn rot_case(seed: u64, bug: Bug) -> Result<(), String> {
    let mut random = SimRandom::new(seed);
    let mut run = Run::new(seed, bug);
    expect_open(&run.open(Allow::PowerLoss)?)?;
    let mut actions = random_script(seed);
    actions.extend([Action::Step; 6]);
    run.run(&actions)?;
    run.crash(KINDS[random.index(2)]);
    let files = run.disk.files();
    for _ in 0..20 {
        let (path, bytes) = &files[random.index(files.len())];
        let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        if written.is_empty() || path.starts_with("manifest") {
            continue;
        }
        let at = written[random.index(written.len())] as u64;
        let mut fork = run.fork(seed);
        fork.disk.flip(path, at, 0x10);
        let opening =
            fork.open(Allow::Rot).map_err(|error| format!("{path} byte {at}: {error}"))?;
        if opening != Opening::Open {
            return Err(format!("{path} byte {at}: {opening:?}"));
        }
    }
    Ok(())
}

#[test]
fn rot_after_idle_is_never_silent() {
    for seed in seeds(150) {
        must(rot_case(seed, Bug::None).map(|()| 0), &|| replay("rot_after_idle", seed));
    }
}

fn must_find(bugs: &[Bug]) {
    let missed = |bug: &&Bug| found_in(**bug, 0..BUG_SEEDS, 1).0 == 0;
    let missed: Vec<_> = bugs.iter().filter(missed).collect();
    assert!(missed.is_empty(), "not found within {BUG_SEEDS} seeds: {missed:?}");
}

#[test]
fn acknowledging_before_a_sync_is_found() {
    must_find(&[Bug::AckBeforeJournalSync, Bug::AckBeforeSegmentSync, Bug::RetryFailedSync]);
}

#[test]
fn missing_directory_sync_is_found() {
    must_find(&[Bug::NoDirectorySync]);
}

#[test]
fn cutting_below_the_durable_watermark_is_found() {
    must_find(&[Bug::CutBelowWatermark]);
}

#[test]
fn trusting_the_page_cache_after_a_crash_is_found() {
    must_find(&[Bug::TrustCache, Bug::RecoveryGroupUnsynced]);
}

#[test]
fn leaving_out_what_reads_back_equal_is_found() {
    must_find(&[Bug::SkipEqual]);
}

#[test]
fn recovering_one_write_path_alone_is_found() {
    must_find(&[Bug::JournalOnly, Bug::FramesOnly]);
}

#[test]
fn checker_finds_every_other_planted_bug() {
    must_find(&OTHERS);
}
