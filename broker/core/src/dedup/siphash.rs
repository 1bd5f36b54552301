//! Owns SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, <https://github.com/veorq/SipHash>): a hash
//! that nobody can aim at a value without the secret. Never keeps the secret. Driven by `fingerprint`.

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    fn compress(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    fn finish(&mut self) -> u64 {
        for _ in 0..4 {
            self.round();
        }
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// The hash of `bytes` under `secret`.
pub(super) fn siphash_2_4_128(secret: &[u8; 16], bytes: &[u8]) -> [u8; 16] {
    let (k0, k1) = (word(&secret[..8]), word(&secret[8..]));
    let mut state = State {
        v0: k0 ^ 0x736f_6d65_7073_6575,
        v1: k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        v2: k0 ^ 0x6c79_6765_6e65_7261,
        v3: k1 ^ 0x7465_6462_7974_6573,
    };
    let mut words = bytes.chunks_exact(8);
    for eight in &mut words {
        state.compress(word(eight));
    }
    let rest = word(words.remainder());
    // The last word's highest byte is the length modulo 256.
    state.compress(rest | (bytes.len() as u64) << 56);
    state.v2 ^= 0xee;
    let first = state.finish();
    state.v1 ^= 0xdd;
    let second = state.finish();
    let mut out = [0; 16];
    out[..8].copy_from_slice(&first.to_le_bytes());
    out[8..].copy_from_slice(&second.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::siphash_2_4_128;

    fn secret() -> [u8; 16] {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    fn hash_of_first(count: u8) -> [u8; 16] {
        siphash_2_4_128(&secret(), &(0..count).collect::<Vec<u8>>())
    }

    /// `vectors_sip128` of the reference implementation: the hash of 0, 1, 2, ... under the secret 0, 1, ... 15.
    #[test]
    fn the_reference_vectors_hold() {
        let published: [(u8, u128); 7] = [
            (0, 0xa381_7f04_ba25_a8e6_6df6_7214_c755_0293),
            (1, 0xda87_c1d8_6b99_af44_3476_5911_9b22_fc45),
            (7, 0xa1f1_ebbe_d8db_c153_c0b8_4aa6_1ff0_8239),
            (8, 0x3b62_a9ba_6258_f561_0f83_e264_f314_97b4),
            (15, 0x5493_e999_33b0_a811_7e08_ec0f_97cf_c3d9),
            (16, 0x6ee2_a4ca_67b0_54bb_fd33_15bf_8523_0577),
            (63, 0x5150_d177_2f50_834a_503e_069a_973f_bd7c),
        ];
        for (count, hash) in published {
            assert_eq!(hash_of_first(count), hash.to_be_bytes(), "{count} bytes");
        }
    }

    /// All 64 of them by one crc, which was computed from another implementation's output (OpenSSL 3.0).
    #[test]
    fn all_reference_vectors_hold_by_their_crc() {
        let all: Vec<u8> = (0..64).flat_map(hash_of_first).collect();
        assert_eq!(crc32fast::hash(&all), 0x3a20_5df9);
    }
}
