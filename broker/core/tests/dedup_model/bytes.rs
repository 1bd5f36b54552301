//! Owns the damage that is done to an index's bytes. Never accepts what it has damaged. Driven by `world`.

use bytes::BytesMut;
use postrider_core::dedup::{DedupIndex, Fingerprint, Generation, Place};
use postrider_protocol::types::{Offset, TimestampMs};

use super::random::Random;

/// Cuts, flips and rewrites: bytes with a wrong crc are refused, and others mean what they say or are refused.
pub(crate) fn refuses_damage(random: &mut Random, bytes: &[u8]) {
    for _ in 0..8 {
        let cut = random.index(bytes.len());
        assert!(DedupIndex::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        let mut flipped = bytes.to_vec();
        flipped[cut] ^= 1 << random.below(8);
        assert!(DedupIndex::decode(&flipped).is_err(), "flipped at {cut}");
        let mut longer = bytes.to_vec();
        longer.insert(bytes.len() - 4, 0);
        restate_crc(&mut longer);
        assert!(DedupIndex::decode(&longer).is_err(), "longer");
        let mut rewritten = bytes.to_vec();
        rewrite(random, &mut rewritten);
        if let Ok(read) = DedupIndex::decode(&rewritten) {
            let mut again = BytesMut::new();
            read.encode(&mut again);
            assert_eq!(rewritten, again, "one encoding");
        }
    }
    let read = DedupIndex::decode(bytes).unwrap();
    for generation in read.generations() {
        let mut rewritten = generation.encode().to_vec();
        rewrite(random, &mut rewritten);
        if let Ok(read) = Generation::decode(&rewritten) {
            assert_eq!(rewritten, read.encode(), "one encoding");
            if let Some((first, last)) = read.times() {
                assert!(first <= last);
            }
        }
        let mut longer = generation.encode().to_vec();
        longer.insert(longer.len() - 4, 0);
        restate_crc(&mut longer);
        assert!(Generation::decode(&longer).is_err(), "a longer generation with its own crc");
        let mut cut = generation.encode().to_vec();
        cut.truncate(random.index(cut.len()).max(4));
        rewrite(random, &mut cut);
        assert!(Generation::decode(&cut).is_err(), "a cut generation with its own crc");
    }
}

/// An index of one key, which has this number.
pub(crate) fn with_last_number(number: u32) -> DedupIndex {
    let mut index = DedupIndex::new();
    drop(index.advance(TimestampMs(1_000), 600));
    let key = Fingerprint::from_bytes([0xee; 12]);
    index.insert(key, Place::Offset(Offset(5)), TimestampMs(1_000));
    let mut bytes = index.generations().last().unwrap().encode().to_vec();
    let end = bytes.len() - 4;
    bytes[18..22].copy_from_slice(&(number + 1).to_le_bytes());
    bytes[end - 4..end].copy_from_slice(&number.to_le_bytes());
    restate_crc(&mut bytes);
    DedupIndex::from_generations(vec![Generation::decode(&bytes).unwrap()]).unwrap()
}

/// A generation whose fields were told something else, under a crc that matches.
pub(crate) fn with_field(generation: &Generation, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = generation.encode().to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    restate_crc(&mut bytes);
    bytes
}

/// Another value somewhere, or nowhere, with a crc that matches.
fn rewrite(random: &mut Random, bytes: &mut [u8]) {
    let len = bytes.len() - 4;
    for _ in 0..random.below(3) {
        if len > 1 {
            // Mostly where the counts are.
            let end = if random.one_in(3) { len - 1 } else { (len - 1).min(60) };
            let at = 1 + random.index(end);
            bytes[at] = match random.below(3) {
                0 => 0,
                1 => 0xff,
                _ => bytes[at].wrapping_add(1),
            };
        }
    }
    restate_crc(bytes);
}

fn restate_crc(bytes: &mut [u8]) {
    let len = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..len]);
    bytes[len..].copy_from_slice(&crc.to_le_bytes());
}
