//! Owns random histories of the index of idempotency keys, checked against a naive model. Each history is a seed; a
//! failing one is printed.
//!
//! A history publishes keys, again, with another payload, and twice at once; lets time pass around the bounds of the
//! window; changes the window; and goes on with what was read back from bytes. The model is one-sided, as the promise
//! is: within the window a key is found, after four thirds of it it is new, between both it may be either.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a failing seed has to be seen")]

mod bytes;
mod naive;
#[path = "../model/random.rs"]
mod random;
#[path = "../model/seeds.rs"]
mod seeds;
mod world;

use seeds::{Replay, number};
use world::{Counts, World};

/// Histories of an ordinary run, and steps of each.
const SEEDS: u64 = 3_000;
const STEPS: u32 = 150;

fn run(seed: u64) -> Counts {
    let _replay = Replay { seed, test: "dedup_model" };
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.finish();
    world.counts
}

/// `POSTRIDER_SEEDS` sets how many histories there are, `POSTRIDER_SEED` replays one.
#[test]
fn a_key_is_found_for_the_window_and_new_after_four_thirds_of_it() {
    if let Some(seed) = number("POSTRIDER_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let seeds = number("POSTRIDER_SEEDS").unwrap_or(SEEDS);
    let mut total = Counts::new();
    for seed in 0..seeds {
        for (case, count) in run(seed) {
            *total.entry(case).or_default() += count;
        }
    }
    println!("{total:?}");
    // A history that never meets a case proves nothing about it; a few histories need not meet all.
    if seeds < SEEDS {
        return;
    }
    for case in world::CASES {
        let count = total.get(case).copied().unwrap_or(0);
        assert!(count > 20, "the case {case} was met {count} times");
    }
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(7), run(7));
}
