//! Owns what idempotency keys promise: each named case of one partition, and random histories against a model that
//! reads the log alone. Never looks inside a machine beyond its own `check_invariants`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a failing seed has to be seen")]

mod cases;
mod history;
#[path = "../model/random.rs"]
mod random;
#[path = "../model/seeds.rs"]
mod seeds;
mod stage;

use seeds::{Replay, number};

/// Histories of an ordinary run, and steps of each.
const SEEDS: u64 = 1_500;
const STEPS: u32 = 400;

fn run(seed: u64) -> history::Counts {
    let _replay = Replay { seed, test: "keys" };
    let mut world = history::World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.counts
}

/// T15. `POSTRIDER_SEEDS` sets how many histories there are, `POSTRIDER_SEED` replays one.
#[test]
fn random_histories_store_each_key_once_per_window() {
    if let Some(seed) = number("POSTRIDER_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let seeds = number("POSTRIDER_SEEDS").unwrap_or(SEEDS);
    let mut total = history::Counts::default();
    for seed in 0..seeds {
        total.add(&run(seed));
    }
    println!("{total:?}");
    // A history that never meets a case proves nothing about it; a few histories need not meet all.
    if seeds < SEEDS {
        return;
    }
    for (name, count) in total.cases() {
        assert!(count > 20, "the case {name} was met {count} times");
    }
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(7), run(7));
}
