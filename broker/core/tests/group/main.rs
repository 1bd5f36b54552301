//! Owns random histories of one consumer group, checked against naive models of its partitions, its members
//! and of what the group owes them. Each history is a seed; a failing one is printed.
//!
//! Members join, leave, die, fall silent, come back under their own or a stolen name, drain in time or not;
//! partitions commit late or refuse, are sought, taken from outside, and added; the process stands still.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a failing seed has to be seen")]

mod client;
mod judge;
mod partition;
mod planted;
#[path = "../model/random.rs"]
mod random;
#[path = "../model/seeds.rs"]
mod seeds;
mod world;

use std::time::Duration;

use planted::Planted;
use postrider_core::group::{Effect, Group, GroupOptions, Join, MemberId, Released};
use postrider_protocol::types::{Offset, PartitionId};
use seeds::{Replay, number};
use world::{Counts, World};

/// Histories of an ordinary run, and steps of each: six million operations together.
const SEEDS: u64 = 4_000;
const STEPS: u32 = 1_500;

fn run(seed: u64, steps: u32, planted: Option<Planted>) -> Counts {
    let _replay = Replay { seed, test: "group" };
    let mut world = World::new(seed, planted);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    world.counts
}

/// Properties D1-D6 and C1 as far as a group can break them; `judge` says where each is checked.
/// `POSTRIDER_SEEDS` sets how many histories there are, `POSTRIDER_SEED` replays one.
#[test]
fn random_histories_keep_every_promise() {
    if let Some(seed) = number("POSTRIDER_SEED") {
        println!("{:?}", run(seed, STEPS, None));
        return;
    }
    let seeds = number("POSTRIDER_SEEDS").unwrap_or(SEEDS);
    let mut total = Counts::default();
    for seed in 0..seeds {
        total.add(&run(seed, STEPS, None));
    }
    println!("{total:?}");
    // A history that never meets a case proves nothing about it; a few histories need not meet all.
    if seeds < SEEDS {
        return;
    }
    for (name, count) in total.cases() {
        assert!(count > 100, "the case {name} was met {count} times");
    }
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(7, STEPS, None), run(7, STEPS, None));
}

/// A checker is believed after it has caught something.
#[test]
fn every_planted_bug_is_found() {
    for planted in Planted::ALL {
        let found = (0..20)
            .any(|seed| std::panic::catch_unwind(|| run(seed, STEPS, Some(*planted))).is_err());
        assert!(found, "{planted:?} was not found");
    }
}

/// The history of a member that hears late: it lost a partition, has it again, and is to give it back.
#[test]
fn a_release_of_an_ownership_before_is_stale() {
    let (mut effects, at, partition) = (Vec::new(), Duration::ZERO, PartitionId(1));
    let mut group = Group::new(at, GroupOptions::default(), MemberId(1), 2);
    let join = || Join { resumes: None, instance: None, session_timeout: Duration::from_secs(9) };
    let member = group.join(at, join(), &mut effects).unwrap();
    group.owner_set(at, PartitionId(0), (1, Offset(0)), &mut effects);
    group.owner_set(at, partition, (1, Offset(0)), &mut effects);
    group.taken(at, partition, &mut effects);
    let later = at + GroupOptions::default().retry;
    group.tick(later, &mut effects);
    group.owner_set(later, partition, (3, Offset(0)), &mut effects);
    group.join(later, join(), &mut effects).unwrap();
    let deadline = later + GroupOptions::default().drain_timeout;
    let revoke = Effect::Revoke { member, partition, owner_epoch: 3, deadline };
    assert_eq!(effects.last(), Some(&revoke));
    assert_eq!(group.released(later, member, (partition, 1), &mut effects), Released::Stale);
    assert_eq!(group.released(later, member, (partition, 3), &mut effects), Released::Done);
    assert!(matches!(effects.last(), Some(Effect::SetOwner { .. })));
}
