//! Owns the routing of keys: key to slot to partition. Frozen: every client in every language must
//! agree, for ever. Never chooses for messages without a key (the client does). Driven by the client, and by
//! the broker, which orders by [`key_hash`].
//!
//! ```text
//! slot      = top 14 bits of mix(fnv1a64(key))
//! partition = jump(mix(slot), partitions)
//! ```
//! `fnv1a64` is FNV-1a with 64 bits; `mix` is the finalizer of SplitMix64; `jump` is jump consistent
//! hash (Lamping and Veach, 2014) in integers. When a topic grows from `n` to `m` partitions, a slot
//! either stays or moves to a new partition, and about `(m - n) / m` of the slots move.

use crate::types::PartitionId;

/// How many slots keys are spread over.
pub const SLOT_COUNT: u16 = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 14;
const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
const JUMP_MULTIPLIER: u64 = 2_862_933_555_777_941_757;

/// The slot of a key, below [`SLOT_COUNT`].
#[must_use]
pub fn slot_of(key: &[u8]) -> u16 {
    let [high, low, ..] = mix(fnv1a64(key)).to_be_bytes();
    u16::from_be_bytes([high, low]) >> 16u32.saturating_sub(SLOT_BITS)
}

/// The partition of a slot in a topic of `partitions` (0 counts as 1).
#[must_use]
pub fn partition_of(slot: u16, partitions: u32) -> PartitionId {
    let partitions = u64::from(partitions.max(1));
    let mut state = mix(u64::from(slot));
    let (mut partition, mut candidate) = (0u64, 0u64);
    while candidate < partitions {
        partition = candidate; // below `partitions`, so it fits a u32
        state = state.wrapping_mul(JUMP_MULTIPLIER).wrapping_add(1);
        // floor((partition + 1) * 2^31 / (top 31 bits + 1)); at most 2^63, since partition < 2^32.
        let numerator = partition.wrapping_add(1) << 31;
        candidate = numerator.checked_div((state >> 33).wrapping_add(1)).unwrap_or(u64::MAX);
    }
    PartitionId(u32::try_from(partition).unwrap_or(0))
}

/// A key's 64 bits, never 0, by which a broker keeps the messages of a key in order. Two keys that share
/// them wait for each other, which costs time and breaks no promise.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    mix(fnv1a64(key)).max(1)
}

fn fnv1a64(key: &[u8]) -> u64 {
    key.iter()
        .fold(FNV_OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
