//! Owns Kafka's variable-length integers: zigzag, then 7 bits per byte, lowest first. Never reads past
//! the slice. Driven by `record`.

use bytes::{BufMut, BytesMut};

/// How many bytes `value` takes, 1 to 10.
pub(crate) fn len(value: i64) -> usize {
    let bits = (zigzag(value) | 1).ilog2();
    usize::try_from(bits / 7).map_or(10, |more| more.saturating_add(1))
}

/// Appends `value`.
#[inline]
pub(crate) fn put(out: &mut BytesMut, value: i64) {
    let mut left = zigzag(value);
    while left > 0x7f {
        out.put_u8(low_byte(left) | 0x80);
        left >>= 7;
    }
    out.put_u8(low_byte(left));
}

/// The value at the front of `bytes`, and what follows it. None if the bytes end inside it, if it has
/// more than 64 bits, or if fewer bytes could say the same.
#[inline]
pub(crate) fn take(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        return Some((unzigzag(u64::from(first)), rest));
    }
    // Two bytes are what most lengths take.
    let (&second, rest) = rest.split_first()?;
    let value = u64::from(first & 0x7f) | (u64::from(second & 0x7f) << 7);
    match second {
        0 => None,
        1..0x80 => Some((unzigzag(value), rest)),
        _ => take_long(value, rest),
    }
}

fn take_long(mut value: u64, mut rest: &[u8]) -> Option<(i64, &[u8])> {
    for shift in (14..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << shift;
        if shifted >> shift != bits {
            return None;
        }
        value |= shifted;
        rest = after;
        if byte < 0x80 {
            return (byte != 0).then(|| (unzigzag(value), rest));
        }
    }
    None
}

fn low_byte(value: u64) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ (value & 1).cast_signed().wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: i64) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, value);
        out
    }

    #[test]
    fn known_values_have_their_known_bytes() {
        for (value, bytes) in [
            (0, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (63, &[126]),
            (-64, &[127]),
            (64, &[0x80, 1]),
            (8191, &[0xfe, 0x7f]),
            (8192, &[0x80, 0x80, 1]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ] {
            assert_eq!(encoded(value), bytes);
            assert_eq!(take(bytes), Some((value, &[][..])));
        }
    }

    #[test]
    fn what_fewer_bytes_could_say_or_64_bits_cannot_hold_is_refused() {
        for bytes in [
            &[][..],
            &[0x80],
            &[0x80, 0],
            &[0xff, 0x80, 0],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0],
            &[0xff; 12],
        ] {
            assert_eq!(take(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn every_value_survives(value in any::<i64>(), shift in 0..64u32) {
            let value = value >> shift;
            let bytes = encoded(value);
            prop_assert_eq!(bytes.len(), len(value));
            prop_assert_eq!(take(&bytes), Some((value, &[][..])));
        }

        #[test]
        fn what_is_taken_is_what_would_be_put(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Some((value, rest)) = take(&bytes) {
                let taken = bytes.len().saturating_sub(rest.len());
                prop_assert!(bytes.get(..taken).is_some_and(|taken| taken == encoded(value)));
            }
        }
    }
}
