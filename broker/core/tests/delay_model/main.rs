//! Owns random histories of delayed messages on a partition, checked against a naive model. Each history is a
//! seed; a failing one is printed.
//!
//! The world is a plain vector as the log, producers that resend what they sent before, cancels, a disk that
//! refuses and damages, a wall clock that jumps, ticks that come late, and crashes that keep any part of what was
//! not ready and begin again from any snapshot.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a failing seed has to be seen")]

mod naive;
#[path = "../model/random.rs"]
mod random;
#[path = "../model/seeds.rs"]
mod seeds;
mod world;

use seeds::{Replay, number};
use world::{Counts, World};

/// Histories of an ordinary run, and steps of each: a million operations.
const SEEDS: u64 = 1_000;
const STEPS: u32 = 1_000;

fn run(seed: u64) -> Counts {
    let _replay = Replay { seed, test: "delay_model" };
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.drain();
    world.counts
}

/// `POSTRIDER_SEEDS` sets how many histories there are, `POSTRIDER_SEED` replays one.
#[test]
fn delayed_messages_are_released_once_in_order_and_never_early() {
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
