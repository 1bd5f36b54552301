//! Owns what the index should come to: every key with its first message, in a plain map. Never drops a key in
//! groups, nor early. Driven by `world`.

use std::collections::BTreeMap;

use postrider_core::dedup::{Fingerprint, Found, Known};
use postrider_protocol::types::TimestampMs;

struct First {
    fingerprint: Fingerprint,
    known: Known,
    /// The longest third of a window since then.
    third_max: u64,
    /// It lies within the window.
    promised: bool,
    /// It lies behind four thirds of the window, or was found to be forgotten.
    gone: bool,
}

/// What an answer was, by the promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    Promised,
    Between,
    New,
    Expired,
}

#[derive(Default)]
pub(crate) struct Naive {
    keys: BTreeMap<u128, First>,
}

impl Naive {
    pub(crate) fn advance(&mut self, log_time: TimestampMs, window_ms: u64) {
        let third = (window_ms / 3).max(1);
        for first in self.keys.values_mut() {
            let age = log_time.0 - first.known.append_time.0;
            first.third_max = first.third_max.max(third);
            first.promised &= age < window_ms;
            // The last key of its generation came before the third was over.
            first.gone |= age >= window_ms.saturating_add(first.third_max - 1);
        }
    }

    /// Judges an answer, and goes by it where the promise leaves it open.
    pub(crate) fn judge(&mut self, fingerprint: Fingerprint, found: Found) -> Why {
        let key = fingerprint.hash_bits();
        let Some(first) = self.keys.get(&key) else {
            assert_eq!(found, Found::Nothing, "the key was never used");
            return Why::New;
        };
        let should = match first.fingerprint == fingerprint {
            true => Found::Duplicate(first.known),
            false => Found::OtherPayload(first.known),
        };
        if found == Found::Nothing {
            assert!(!first.promised, "forgotten within the window: {should:?}");
            self.keys.remove(&key);
            return Why::Expired;
        }
        assert!(!first.gone, "remembered after four thirds of the window: {found:?}");
        assert_eq!(found, should);
        if first.promised { Why::Promised } else { Why::Between }
    }

    /// The first message of a key, if it is not known; the world has asked the index before.
    pub(crate) fn insert(&mut self, fingerprint: Fingerprint, known: Known, window_ms: u64) {
        let third_max = (window_ms / 3).max(1);
        let first = First { fingerprint, known, third_max, promised: true, gone: false };
        self.keys.entry(fingerprint.hash_bits()).or_insert(first);
    }

    pub(crate) fn fingerprints(&self) -> Vec<Fingerprint> {
        self.keys.values().map(|first| first.fingerprint).collect()
    }

    /// Keys that are remembered for certain, and those that may be.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        let count = |wanted: fn(&First) -> bool| {
            u64::try_from(self.keys.values().filter(|first| wanted(first)).count()).unwrap()
        };
        (count(|first| first.promised), count(|first| !first.gone))
    }
}
