//! Owns the measurement of the index of idempotency keys at ten million of them: memory, time per key, the longest
//! insert, and its bytes. Never touches a disk. Run by hand: `cargo bench -p postrider-core --bench dedup`.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the figures go to people")]

use std::time::{Duration, Instant};

use bytes::BytesMut;
use postrider_core::dedup::{DedupIndex, Fingerprint, Found, Place};
use postrider_protocol::types::{Offset, TimestampMs};

const KEYS: u64 = 10_000_000;
const BATCH: u64 = 100;
/// A millisecond of 83 keys, so that ten million are those of two minutes.
const KEYS_PER_MS: u64 = 83;
/// With all keys in four generations, as when the window is full.
const WINDOW_MS: u64 = KEYS / KEYS_PER_MS * 76 / 100;

fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn fingerprint(key: u64) -> Fingerprint {
    let mut bytes = [7; 12];
    bytes[..8].copy_from_slice(&mix(key).to_be_bytes());
    Fingerprint::from_bytes(bytes)
}

fn items(first: u64) -> Vec<(Fingerprint, Place)> {
    (first..first + BATCH).map(|key| (fingerprint(key), Place::Offset(Offset(key)))).collect()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn per_key(total: Duration, keys: u64) -> String {
    format!("{:.1} ns per key", total.as_secs_f64() * 1e9 / keys as f64)
}

/// All keys, in batches; the time of inserts alone.
fn fill(index: &mut DedupIndex) {
    let before = resident_kib();
    let (mut total, mut longest, mut last) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for first in (0..KEYS).step_by(100) {
        let items = items(first);
        let time = TimestampMs(1_000 + first / KEYS_PER_MS);
        let begin = Instant::now();
        let dropped = index.advance(time, WINDOW_MS);
        index.insert_many(&items, time);
        let took = begin.elapsed();
        assert!(dropped.is_empty(), "all keys are remembered");
        total += took;
        longest = longest.max(took);
        if first >= KEYS - KEYS / 8 {
            last += took;
        }
        if [KEYS / 8 * 5, KEYS / 4 * 3, KEYS / 8 * 7].contains(&first) {
            println!("  at {first} keys: {:.1} bytes per key", bytes_per_key(index));
        }
    }
    println!("inserted {KEYS} in batches of {BATCH}: {}", per_key(total, KEYS));
    println!("  the last eighth: {}", per_key(last, KEYS / 8));
    println!("  the longest batch: {longest:?}");
    println!("  {} generations", index.generations().count());
    println!(
        "  counted: {} MB, {:.1} bytes per key",
        index.memory_bytes() / 1_000_000,
        bytes_per_key(index)
    );
    println!("  resident: {} MB", (resident_kib() - before) * 1_024 / 1_000_000);
}

fn bytes_per_key(index: &DedupIndex) -> f64 {
    index.memory_bytes() as f64 / index.len() as f64
}

/// Single inserts behind all of them: the longest of a million.
fn longest_insert(index: &mut DedupIndex, first: u64) {
    let (mut total, mut longest) = (Duration::ZERO, Vec::with_capacity(1_000_000));
    for key in first..first + 1_000_000 {
        let time = TimestampMs(1_000 + key / KEYS_PER_MS);
        let (fingerprint, place) = (fingerprint(key), Place::Offset(Offset(key)));
        let begin = Instant::now();
        let dropped = index.advance(time, 2 * WINDOW_MS);
        index.insert(fingerprint, place, time);
        let took = begin.elapsed();
        drop(dropped);
        total += took;
        longest.push(took);
    }
    longest.sort_unstable_by(|a, b| b.cmp(a));
    longest.truncate(5);
    println!("a million single inserts: {}, the longest {longest:?}", per_key(total, 1_000_000));
}

fn find(name: &str, index: &DedupIndex, key: impl Fn(u64) -> u64, wanted: bool) {
    const ASKED: u64 = 2_000_000;
    let mut total = Duration::ZERO;
    let mut longest = Duration::ZERO;
    let mut found = Vec::new();
    for first in (0..ASKED).step_by(100) {
        let asked: Vec<_> = (first..first + BATCH).map(|nth| fingerprint(key(nth))).collect();
        found.clear();
        let begin = Instant::now();
        index.find_many(&asked, &mut found);
        let took = begin.elapsed();
        total += took;
        longest = longest.max(took);
        assert!(found.iter().all(|found| matches!(found, Found::Duplicate(_)) == wanted));
    }
    println!("{name}, batches of {BATCH}: {}, the longest {longest:?}", per_key(total, ASKED));
    let mut total = Duration::ZERO;
    for nth in 0..ASKED / 10 {
        let asked = fingerprint(key(nth));
        let begin = Instant::now();
        let found = index.find(asked);
        total += begin.elapsed();
        assert!(matches!(found, Found::Duplicate(_)) == wanted);
    }
    println!("{name}, one by one: {}", per_key(total, ASKED / 10));
}

fn bytes(index: &DedupIndex) {
    let begin = Instant::now();
    let clone = index.clone();
    let open = clone.generations().last().unwrap().len();
    println!("cloned, {open} keys in the open generation: {:?}", begin.elapsed());
    drop(clone);
    let mut bytes = BytesMut::new();
    let begin = Instant::now();
    index.encode(&mut bytes);
    println!("encoded: {:?}, {} MB", begin.elapsed(), bytes.len() / 1_000_000);
    let begin = Instant::now();
    let read = DedupIndex::decode(&bytes).unwrap();
    println!("decoded: {:?}, {:.1} bytes per key", begin.elapsed(), bytes_per_key(&read));
    assert!(read == *index, "they are equal");
    let begin = Instant::now();
    drop(read);
    println!("dropped: {:?}", begin.elapsed());
}

fn fingerprints() {
    let (payload, mut sum) = (vec![7; 1_024], 0);
    let begin = Instant::now();
    for key in 0..1_000_000_u64 {
        let none = [].into_iter();
        let one = Fingerprint::of(&[3; 16], &key.to_le_bytes(), None, Some(&payload), none);
        sum ^= one.hash_bits();
    }
    println!("fingerprints of 1 KiB: {} ({})", per_key(begin.elapsed(), 1_000_000), sum % 2);
}

fn main() {
    fingerprints();
    let mut small = DedupIndex::new();
    small.advance(TimestampMs(1), WINDOW_MS);
    small.insert_many(&items(0)[..10], TimestampMs(1));
    println!("ten keys: {} bytes", small.memory_bytes());
    let mut index = DedupIndex::new();
    fill(&mut index);
    longest_insert(&mut index, KEYS);
    find("found of new keys", &index, |nth| 2 * KEYS + nth, false);
    find("found of known keys", &index, |nth| mix(nth) % KEYS, true);
    bytes(&index);
    longest_insert(&mut index, KEYS + 1_000_000);
}
