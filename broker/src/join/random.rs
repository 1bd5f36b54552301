//! Owns the broker's source of ids. Never reads the system's randomness: the seed comes from the caller,
//! so that a simulated broker gives out the same ids again. Driven by the catalog.

/// xoshiro256++ (Blackman, Vigna: "Scrambled linear pseudorandom number generators", 2019): ids need to
/// be distinct, not secret.
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    pub(crate) fn new(seed: &mut dyn FnMut() -> u64) -> Self {
        let mut state = [seed(), seed(), seed(), seed()];
        if state == [0; 4] {
            state[0] = 1; // the one state that the generator never leaves
        }
        Self { state }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A random UUID (version 4).
    pub(crate) fn uuid(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next().to_le_bytes());
        id[8..].copy_from_slice(&self.next().to_le_bytes());
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_distinct_and_marked_as_random() {
        let mut seed = 0;
        let mut random = Random::new(&mut || {
            seed += 1;
            seed
        });
        let (one, two) = (random.uuid(), random.uuid());
        assert_ne!(one, two);
        assert_eq!((one[6] >> 4, one[8] >> 6), (4, 2));
    }
}
