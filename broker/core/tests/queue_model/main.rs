//! Owns random histories of a queue subscription, checked against a naive model. Each history is a seed;
//! a failing one is printed.
//!
//! The world is a plain vector as the log, consumers that crash, dawdle and say wrong things, a disk that
//! refuses, crashes that keep any part of what was not ready, damaged entries, a start of the log that
//! moves, seeks, purges, policies that change, and an outbox that publishes dead letters again and again.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a failing seed has to be seen")]

mod naive;
#[path = "../model/random.rs"]
mod random;
#[path = "../model/seeds.rs"]
mod seeds;
mod world;

use seeds::{Replay, number};
use world::World;

/// Histories of an ordinary run, and steps of each: a million operations.
const SEEDS: u64 = 1_000;
const STEPS: u32 = 1_000;

fn run(seed: u64, steps: u32) -> world::Counts {
    let _replay = Replay { seed, test: "queue_model" };
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.drain();
    world.counts
}

/// `POSTRIDER_SEEDS` sets how many histories there are, `POSTRIDER_SEED` replays one.
#[test]
fn random_queues_keep_every_promise() {
    if let Some(seed) = number("POSTRIDER_SEED") {
        println!("{:?}", run(seed, STEPS));
        return;
    }
    let seeds = number("POSTRIDER_SEEDS").unwrap_or(SEEDS);
    let mut total = world::Counts::default();
    for seed in 0..seeds {
        total.add(&run(seed, STEPS));
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
    assert_eq!(run(7, 1_000), run(7, 1_000));
}
