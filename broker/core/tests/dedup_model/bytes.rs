//! Owns the damage that is done to an index's bytes. Never accepts what it has damaged. Driven by `world`.

use bytes::BytesMut;
use postrider_core::dedup::{DedupIndex, Generation};

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
        longer.push(0);
        assert!(DedupIndex::decode(&longer).is_err());
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
        let mut cut = generation.encode().to_vec();
        cut.truncate(random.index(cut.len()).max(4));
        rewrite(random, &mut cut);
        assert!(Generation::decode(&cut).is_err(), "a cut generation with its own crc");
    }
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
    let crc = crc32fast::hash(&bytes[..len]);
    bytes[len..].copy_from_slice(&crc.to_le_bytes());
}
