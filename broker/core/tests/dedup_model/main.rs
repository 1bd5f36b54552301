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

use postrider_core::dedup::{DedupIndex, Fingerprint, Found, Generation, Known, Place};
use postrider_protocol::types::{Offset, TimestampMs};
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

/// Between two inserts of an entry, and not in the middle of what is known of it: nothing is remembered twice.
#[test]
fn a_generation_that_runs_out_of_numbers_is_sealed_early() {
    let numbers_end = (1 << 31) - 1;
    for left in [1, 100, 10_000, 40_000] {
        let mut index = bytes::with_last_number(numbers_end - 1 - left);
        let time = TimestampMs(1_000);
        assert!(index.advance(time, 600).is_empty());
        let keys: Vec<Fingerprint> =
            (0..200_u8).map(|key| Fingerprint::from_bytes([key; 12])).collect();
        for round in 0..3 {
            let place = |nth: usize| Place::Offset(Offset(u64::try_from(nth).unwrap() * 60));
            let items: Vec<_> =
                keys.iter().enumerate().map(|(nth, key)| (*key, place(nth))).collect();
            index.insert_many(&items, time);
            assert_eq!(index.len(), 201, "round {round} with {left} numbers left");
            for (key, place) in items {
                let known = Known { place, append_time: time };
                assert_eq!(index.find(key), Found::Duplicate(known));
            }
        }
        let generations = if left <= 10_000 { 2 } else { 1 };
        assert_eq!(index.generations().count(), generations, "{left} numbers left");
        let forgotten = index.advance(TimestampMs(1_600), 600);
        assert_eq!((forgotten.len(), index.len()), (generations, 0));
    }
}

/// To the millisecond: two keys at both ends of a generation, and one behind it.
#[test]
fn a_generation_lasts_a_third_and_is_forgotten_a_window_after_its_last_key() {
    for window_ms in [2, 3, 4, 5, 9, 10, 600, 601] {
        let third = (window_ms / 3).max(1);
        let [first, last, behind] = [1_000, 1_000 + third - 1, 1_000 + third].map(TimestampMs);
        let mut index = DedupIndex::new();
        let keys = [1, 2, 3].map(|key| Fingerprint::from_bytes([key; 12]));
        for (key, time) in std::iter::zip(keys, [first, last, behind]) {
            assert!(index.advance(time, window_ms).is_empty());
            index.insert(key, Place::Offset(Offset(time.0)), time);
        }
        let found = |index: &DedupIndex| keys.map(|key| index.find(key) != Found::Nothing);
        assert_eq!(index.generations().count(), 2, "{window_ms}");
        assert!(index.advance(TimestampMs(last.0 + window_ms - 1), window_ms).is_empty());
        assert_eq!(found(&index), [true; 3], "{window_ms}");
        assert_eq!(index.advance(TimestampMs(last.0 + window_ms), window_ms).len(), 1);
        assert_eq!(found(&index), [false, false, true], "{window_ms}");
        assert_eq!(index.advance(TimestampMs(behind.0 + window_ms), window_ms).len(), 1);
        assert_eq!(found(&index), [false; 3], "{window_ms}");
    }
}

/// Three keys in three runs: see the layout in `dedup/snapshot.rs`.
#[test]
fn fields_that_contradict_each_other_are_refused() {
    let mut index = DedupIndex::new();
    for (key, time) in [(1, 1_000), (2, 1_007), (3, 1_009)] {
        drop(index.advance(TimestampMs(time), 600));
        let place = Place::Offset(Offset(u64::MAX));
        index.insert(Fingerprint::from_bytes([key; 12]), place, TimestampMs(time));
    }
    let generation = index.generations().last().unwrap();
    let same = bytes::with_field(generation, 26, &[]);
    assert_eq!(same.len(), 137);
    assert!(Generation::decode(&same).unwrap() == *generation);
    let contradictions: [(&str, usize, &[u8]); 27] = [
        ("version", 0, &[2]),
        ("truth of sealed", 9, &[2]),
        ("times above all", 10, &[0xff; 8]),
        ("next number too low", 18, &[2]),
        ("next number too high", 18, &[4]),
        ("next number none", 18, &[0]),
        ("no runs", 22, &[0]),
        ("too few runs", 22, &[2]),
        ("too many runs", 22, &[4]),
        ("very many runs", 22, &[0xff; 4]),
        ("first run begins late", 26, &[1]),
        ("first run is late", 30, &[1]),
        ("kind of a place", 34, &[2]),
        ("runs of one number", 43, &[0]),
        ("offsets above all", 43, &[2]),
        ("runs in no order", 60, &[1]),
        ("run without a number", 60, &[3]),
        ("times fall", 64, &[6]),
        ("no keys", 77, &[0]),
        ("too few keys", 77, &[2]),
        ("too many keys", 77, &[4]),
        ("very many keys", 77, &[0xff; 8]),
        ("keys in no order", 85, &[9]),
        ("a key twice", 101, &[1; 9]),
        ("number above all", 97, &[0xff; 4]),
        ("no number at all", 97, &[0xff, 0xff, 0xff, 0x7f]),
        ("number of another generation", 97, &[3]),
    ];
    for (what, at, value) in contradictions {
        let bytes = bytes::with_field(generation, at, value);
        assert!(Generation::decode(&bytes).is_err(), "{what}");
    }
    let empty = DedupIndex::new();
    let sealed = bytes::with_field(empty.generations().last().unwrap(), 9, &[1]);
    assert!(Generation::decode(&sealed).is_err(), "sealed without keys");
    let order = [generation.clone(), generation.clone()];
    assert!(DedupIndex::from_generations(order.into()).is_err(), "two are open");
    assert!(DedupIndex::from_generations(Vec::new()).is_err(), "none is open");
}

#[test]
fn there_is_never_room_for_more_than_fits_in_memory() {
    let index = bytes::with_last_number(1);
    for count in [usize::MAX, usize::MAX / 2, usize::MAX / 64, usize::MAX / 1_000, 1 << 32] {
        assert!(!index.has_room(count, 1 << 32));
    }
    assert!(index.has_room(0, usize::MAX) && index.has_room(1, 1 << 20));
    assert!(!index.has_room(1, 0));
}

#[test]
#[should_panic(expected = "append times never fall")]
fn log_time_that_falls_is_our_own_bug() {
    let mut index = DedupIndex::new();
    drop(index.advance(TimestampMs(10), 1));
    drop(index.advance(TimestampMs(9), 1));
}

#[test]
#[should_panic(expected = "the index advances with every entry")]
fn an_insert_without_an_advance_is_our_own_bug() {
    let mut index = DedupIndex::new();
    drop(index.advance(TimestampMs(10), 1));
    let key = Fingerprint::from_bytes([1; 12]);
    index.insert(key, Place::Offset(Offset(1)), TimestampMs(11));
}
