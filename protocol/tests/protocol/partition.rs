//! The routing of keys is frozen: these vectors are what every client in every language agrees on.

use std::collections::BTreeMap;

use postrider_protocol::partition::{SLOT_COUNT, key_hash, partition_of, slot_of};

/// Key, slot, and its partition among 1, 3, 12 and 1,000.
const VECTORS: &[(&str, u16, [u32; 4])] = &[
    ("", 15690, [0, 2, 10, 10]),
    ("a", 176, [0, 1, 1, 750]),
    ("b", 3981, [0, 1, 1, 591]),
    ("key", 4639, [0, 2, 7, 828]),
    ("customer-7", 9682, [0, 1, 1, 297]),
    ("user-1", 12582, [0, 2, 2, 421]),
    ("user-2", 5100, [0, 1, 3, 143]),
    ("0123456789abcdef", 6141, [0, 0, 10, 593]),
    ("Größe", 3247, [0, 1, 9, 948]),
    ("orders/2026/11/25", 16100, [0, 2, 10, 244]),
];

#[test]
fn vectors_hold() {
    for (key, slot, partitions) in VECTORS {
        assert_eq!(slot_of(key.as_bytes()), *slot, "{key:?}");
        let found = [1, 3, 12, 1000].map(|count| partition_of(*slot, count).0);
        assert_eq!(found, *partitions, "{key:?}");
    }
}

#[test]
fn the_hash_of_a_key_is_frozen_and_leads_to_its_slot() {
    let hashes = [
        ("", 0xf52a_15e9_a9b5_e89b),
        ("a", 0x02c0_bdbf_4814_20f8),
        ("customer-7", 0x9749_585e_a136_30d6),
        ("Größe", 0x32bc_ba83_a28c_2069),
    ];
    for (key, hash) in hashes {
        assert_eq!(key_hash(key.as_bytes()), hash, "{key:?}");
    }
    for (key, slot, _partitions) in VECTORS {
        assert_eq!(key_hash(key.as_bytes()) >> 50, u64::from(*slot), "{key:?}");
    }
}

#[test]
fn the_document_has_the_vectors() {
    let document = crate::document::text();
    for (key, slot, [_, three, twelve, thousand]) in VECTORS {
        let line = format!("| `{key}` | {slot} | {three} | {twelve} | {thousand} |");
        assert!(document.contains(&line), "docs/PROTOCOL.md lacks {line}");
    }
}

#[test]
fn slots_are_spread_evenly() {
    let mut per_slot = vec![0u32; usize::from(SLOT_COUNT)];
    for n in 0..SLOT_COUNT as u32 * 16 {
        per_slot[usize::from(slot_of(format!("user-{n}").as_bytes()))] += 1;
    }
    // Poisson with mean 16: values outside 1..=45 have a chance below 1e-6 per slot.
    assert!(per_slot.iter().all(|count| (1..=45).contains(count)));
}

#[test]
fn partitions_get_their_share_of_slots() {
    for partitions in [1u32, 2, 3, 7, 12, 64, 100] {
        let mut share = BTreeMap::<_, u32>::new();
        for slot in 0..SLOT_COUNT {
            *share.entry(partition_of(slot, partitions)).or_default() += 1;
        }
        let fair = u32::from(SLOT_COUNT) / partitions;
        assert_eq!(share.len(), partitions as usize);
        assert!(share.values().all(|count| count.abs_diff(fair) < fair / 2 + 1), "{share:?}");
    }
}

#[test]
fn growing_moves_slots_only_to_new_partitions() {
    for (before, after) in [(1, 2), (3, 4), (4, 8), (10, 11), (999, 1000)] {
        let mut moved = 0;
        for slot in 0..SLOT_COUNT {
            let (old, new) = (partition_of(slot, before), partition_of(slot, after));
            if old != new {
                assert!(new.0 >= before, "slot {slot} moved between old partitions");
                moved += 1;
            }
        }
        let expected = u32::from(SLOT_COUNT) * (after - before) / after;
        assert!(u32::abs_diff(moved, expected) <= expected / 2 + 8, "{before} to {after}: {moved}");
    }
}

#[test]
fn counts_at_the_edges_do_not_fail() {
    for slot in [0, 1, SLOT_COUNT - 1, u16::MAX] {
        assert_eq!(partition_of(slot, 0).0, 0);
        assert_eq!(partition_of(slot, 1).0, 0);
        assert!(partition_of(slot, u32::MAX).0 < u32::MAX);
    }
}
