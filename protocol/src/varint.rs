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
    take_long(u64::from(first & 0x7f), rest)
}

fn take_long(mut value: u64, mut rest: &[u8]) -> Option<(i64, &[u8])> {
    for shift in (7..64).step_by(7) {
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
