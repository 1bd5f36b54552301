//! Owns what a keyed message is known by. Never keeps a key or a payload. Driven by whoever publishes, and by the
//! index that keeps fingerprints.
//!
//! ```text
//! bytes 0..9   72 bits of SipHash-2-4-128 under the secret over the idempotency key
//! bytes 9..12  24 bits of the same over (crc32 of what the message says, its length)
//! ```
//! 72 bits: with 10 million live keys and a million publishes per second two keys that look the same are expected
//! once in 15 years, and then in 2^24 - 1 of 2^24 cases the check differs and the publish is refused, not swallowed.
//! The check finds a key that was used again by mistake; nobody gains by forging it, so a crc reads the payload (a
//! KiB in 90 ns, all included), and the secret only spreads it.

use super::siphash::siphash_2_4_128;

const HASH_BYTES: usize = 9;
const CHECK_BITS: u32 = 24;
const CHECK_MASK: u32 = (1 << CHECK_BITS) - 1;

/// What a keyed message is known by: a hash of its idempotency key, and a check of what it says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint {
    /// The first 64 bits of the hash.
    pub(super) high: u64,
    /// The last 8 bits of the hash, then the check.
    pub(super) low: u32,
}

impl Fingerprint {
    /// Bytes of a fingerprint where it is stored.
    pub const BYTES: usize = 12;

    /// The fingerprint of a message under `secret`. `routing_key`, `payload` and header values that are absent
    /// are not the same as empty ones; the order of headers counts.
    pub fn of<'a>(
        secret: &[u8; 16],
        idempotency_key: &[u8],
        routing_key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Self {
        let mut said = Said::default();
        said.part(routing_key);
        said.part(payload);
        for (name, value) in headers {
            said.part(Some(name));
            said.part(value);
        }
        let check = siphash_2_4_128(secret, &said.finish());
        let key = siphash_2_4_128(secret, idempotency_key);
        let mut bytes = [0; Self::BYTES];
        bytes[..HASH_BYTES].copy_from_slice(&key[..HASH_BYTES]);
        // Of the other half: a key may be the same 12 bytes as a summary, and its hash is no secret then.
        bytes[HASH_BYTES..].copy_from_slice(&check[16 - (Self::BYTES - HASH_BYTES)..]);
        Self::from_bytes(bytes)
    }

    /// As it is stored.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.high.to_be_bytes());
        bytes[8..].copy_from_slice(&self.low.to_be_bytes());
        bytes
    }

    /// As it was stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            high: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            low: u32::from_be_bytes([i, j, k, l]),
        }
    }

    /// Whether both are of one key.
    #[must_use]
    pub fn same_key(self, other: Self) -> bool {
        self.high == other.high && self.low >> CHECK_BITS == other.low >> CHECK_BITS
    }

    /// Whether both say the same.
    #[must_use]
    pub fn same_payload(self, other: Self) -> bool {
        self.low & CHECK_MASK == other.low & CHECK_MASK
    }

    /// The 72 bits of the key, for maps of keys.
    #[must_use]
    pub fn hash_bits(self) -> u128 {
        u128::from(self.high) << 8 | u128::from(self.low >> CHECK_BITS)
    }
}

/// Gathers what a message says. A part is its presence, its length and its bytes, so that no two lists of parts
/// are the same bytes.
#[derive(Default)]
struct Said {
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Said {
    fn part(&mut self, part: Option<&[u8]>) {
        let Some(part) = part else {
            self.crc.update(&[0]);
            return;
        };
        self.crc.update(&[1]);
        self.crc.update(&(part.len() as u64).to_le_bytes());
        self.crc.update(part);
        self.bytes += part.len() as u64;
    }

    fn finish(self) -> [u8; 12] {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&self.crc.finalize().to_le_bytes());
        out[4..].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Header<'a> = (&'a [u8], Option<&'a [u8]>);

    fn of(
        key: &[u8],
        routing: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Fingerprint {
        Fingerprint::of(&[7; 16], key, routing, payload, headers.iter().copied())
    }

    #[test]
    fn what_a_message_says_is_checked_and_its_key_is_not() {
        let plain = of(b"key", Some(b"ab"), Some(b"cd"), &[(b"n", Some(b"v"))]);
        assert_eq!(plain, of(b"key", Some(b"ab"), Some(b"cd"), &[(b"n", Some(b"v"))]));
        let others = [
            of(b"key", Some(b"abc"), Some(b"d"), &[(b"n", Some(b"v"))]),
            of(b"key", None, Some(b"cd"), &[(b"n", Some(b"v"))]),
            of(b"key", Some(b""), Some(b"cd"), &[(b"n", Some(b"v"))]),
            of(b"key", Some(b"ab"), None, &[(b"n", Some(b"v"))]),
            of(b"key", Some(b"ab"), Some(b""), &[(b"n", Some(b"v"))]),
            of(b"key", Some(b"ab"), Some(b"cd"), &[(b"n", None)]),
            of(b"key", Some(b"ab"), Some(b"cd"), &[(b"n", Some(b""))]),
            of(b"key", Some(b"ab"), Some(b"cd"), &[(b"nv", Some(b""))]),
            of(b"key", Some(b"ab"), Some(b"cd"), &[]),
            of(b"key", Some(b"ab"), Some(b"cd"), &[(b"n", Some(b"v")), (b"", None)]),
        ];
        for (nth, other) in others.iter().enumerate() {
            assert!(other.same_key(plain), "{nth}");
            assert!(!other.same_payload(plain), "{nth}");
            assert_eq!(other.hash_bits(), plain.hash_bits());
            assert!(others[..nth].iter().all(|before| before != other), "{nth}");
        }
        let other_key = of(b"kez", Some(b"ab"), Some(b"cd"), &[(b"n", Some(b"v"))]);
        assert!(!other_key.same_key(plain));
        assert!(other_key.same_payload(plain));
    }

    #[test]
    fn another_secret_makes_another_fingerprint() {
        let [one, other] =
            [1, 2].map(|secret| Fingerprint::of(&[secret; 16], b"key", None, None, [].into_iter()));
        assert!(!one.same_key(other) && !one.same_payload(other));
    }

    #[test]
    fn every_bit_of_the_hash_counts() {
        let bytes: [u8; 12] = std::array::from_fn(|at| u8::try_from(at * 19).unwrap());
        let fingerprint = Fingerprint::from_bytes(bytes);
        assert_eq!(fingerprint.to_bytes(), bytes);
        for bit in 0..96 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            let other = Fingerprint::from_bytes(other);
            assert_eq!(other.same_key(fingerprint), bit >= 72, "{bit}");
            assert_eq!(other.same_payload(fingerprint), bit < 72, "{bit}");
            assert_eq!(other.hash_bits() == fingerprint.hash_bits(), bit >= 72, "{bit}");
        }
    }
}
