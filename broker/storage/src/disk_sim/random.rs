//! Seeded pseudo-random numbers for simulations.
//!
//! Owns one small generator (SplitMix64), so that a seed replays bit for bit on every machine and
//! version of any crate. Never used where numbers must be unpredictable.

/// A seeded generator; clones continue alike.
#[derive(Clone, Debug)]
pub struct SimRandom {
    state: u64,
}

impl SimRandom {
    /// A generator whose numbers depend on the seed alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number lies below zero");
        // The bias of the remainder is far below what a simulation could notice.
        self.next_u64() % bound
    }

    /// An index into something of the given length.
    ///
    /// # Panics
    /// When `len` is zero.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True once in `times` on average.
    ///
    /// # Panics
    /// When `times` is zero.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
