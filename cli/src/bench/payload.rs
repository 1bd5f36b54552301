//! Owns generated payloads. No allocation per message: each payload is a slice of one block.

use bytes::Bytes;

use super::args::PayloadName;
use crate::units::SizeRange;

/// Xorshift64*: fast, seeded, good enough for bytes that do not compress.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // The state must not be zero; the multiplier spreads small seeds.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `last`, both included.
    pub(crate) fn up_to(&mut self, last: u64) -> u64 {
        match last.checked_add(1) {
            Some(count) => self.next() % count,
            None => self.next(),
        }
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// The payloads of one connection.
pub(crate) struct Payloads {
    block: Bytes,
    sizes: SizeRange,
    random: Random,
    next: usize,
}

/// Payloads start at different places of the block, a step apart that shares no factor with its length.
const BLOCK_BYTES: usize = 1 << 20;
const STEP_BYTES: usize = 4_097;

impl Payloads {
    pub(crate) fn new(kind: PayloadName, sizes: SizeRange, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut block = vec![0; BLOCK_BYTES.max(2 * sizes.largest)];
        if kind == PayloadName::Random {
            random.fill(&mut block);
        }
        Self { block: block.into(), sizes, random, next: 0 }
    }

    /// The next payload.
    pub(crate) fn next(&mut self) -> Bytes {
        let SizeRange { smallest, largest } = self.sizes;
        let size = if smallest == largest {
            smallest
        } else {
            let more = self.random.up_to((largest - smallest) as u64);
            smallest + usize::try_from(more).unwrap_or(0)
        };
        if self.next + size > self.block.len() {
            self.next %= STEP_BYTES;
        }
        let payload = self.block.slice(self.next..self.next + size);
        self.next += STEP_BYTES;
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_in_range_and_reach_both_ends() {
        let sizes = SizeRange { smallest: 3, largest: 6 };
        let mut payloads = Payloads::new(PayloadName::Random, sizes, 7);
        let seen: std::collections::BTreeSet<_> =
            (0..1_000).map(|_| payloads.next().len()).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }

    #[test]
    fn a_payload_may_be_larger_than_the_usual_block() {
        let sizes = SizeRange { smallest: 5 << 20, largest: 5 << 20 };
        let mut payloads = Payloads::new(PayloadName::Zero, sizes, 7);
        for _ in 0..5_000 {
            assert_eq!(payloads.next().len(), 5 << 20);
        }
    }
}
