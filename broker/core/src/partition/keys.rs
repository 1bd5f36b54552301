//! Owns which idempotency keys a batch and an entry carry, and which keys are appended and not committed. Never
//! remembers a committed one ([`DedupIndex`](crate::dedup::DedupIndex) does), never judges. Driven by the join, which
//! reads the keys of a batch before it takes the partition's lock ([`read_keys`]), and by the leader.

#[expect(clippy::disallowed_types, reason = "never iterated")]
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::headers::{IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_BYTES_MAX, NOT_OF_PAYLOAD};
use postrider_protocol::record::RecordView;
use postrider_protocol::trailer::{FINGERPRINT_BYTES, TrailerKeys};
use postrider_protocol::types::{EntryIndex, TopicId};

use crate::dedup::Fingerprint;

/// A record with an idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keyed {
    /// Its place in its batch, from 0.
    pub position: u32,
    /// What its key and its payload are known by.
    pub fingerprint: Fingerprint,
}

/// The keys that an entry adds to those that are remembered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EntryKeys {
    /// How long they count from its append time on.
    pub window_ms: u64,
    /// Of which records, by position.
    pub keyed: Vec<Keyed>,
}

impl EntryKeys {
    pub(super) fn from_trailer(keys: &TrailerKeys) -> Self {
        let keyed = |(position, bytes): &(u32, [u8; FINGERPRINT_BYTES])| Keyed {
            position: *position,
            fingerprint: Fingerprint::from_bytes(*bytes),
        };
        Self { window_ms: keys.window_ms, keyed: keys.keys.iter().map(keyed).collect() }
    }

    pub(super) fn to_trailer(&self) -> TrailerKeys {
        let keys = self.keyed.iter().map(|keyed| (keyed.position, keyed.fingerprint.to_bytes()));
        TrailerKeys { window_ms: self.window_ms, keys: keys.collect() }
    }
}

/// The idempotency keys of a batch's records, by position. To be called where the publish says that there are some.
///
/// The topic's id is the secret of the fingerprints: the same on every replica, another for every topic.
///
/// # Errors
/// A record is damaged, or has a key that cannot be one: the publish is rejected.
pub fn read_keys(
    topic: TopicId,
    batch: &Batch,
    limits: DecodeLimits,
) -> Result<Vec<Keyed>, ErrorBody> {
    let corrupt = |error: &dyn std::fmt::Display| {
        ErrorBody::new(ErrorCode::CorruptBatch, format!("a record with a key: {error}"))
    };
    let block = batch.block(limits).map_err(|error| corrupt(&error))?;
    // Whoever publishes may state any count.
    let keys_max = (block.len_bytes() / KEYED_RECORD_BYTES_MIN).min(batch.record_count as usize);
    let mut keys = Vec::with_capacity(keys_max);
    for (record, position) in block.views().zip(0..) {
        let record = record.map_err(|error| corrupt(&error))?;
        if let Some(fingerprint) = fingerprint(topic, &record)? {
            keys.push(Keyed { position, fingerprint });
        }
    }
    Ok(keys)
}

fn fingerprint(topic: TopicId, record: &RecordView<'_>) -> Result<Option<Fingerprint>, ErrorBody> {
    let corrupt = |error| ErrorBody::new(ErrorCode::CorruptBatch, format!("headers: {error}"));
    let headers = record.headers().map_err(corrupt)?;
    let mut key = None;
    for header in headers.clone() {
        let (name, value) = header.map_err(corrupt)?;
        if name == IDEMPOTENCY_KEY {
            let value = value.unwrap_or_default();
            if key.replace(value).is_some()
                || value.is_empty()
                || value.len() > IDEMPOTENCY_KEY_BYTES_MAX
            {
                return Err(not_a_key(value.len()));
            }
        }
    }
    let Some(key) = key else { return Ok(None) };
    let of_payload = headers
        .filter_map(Result::ok)
        .filter(|(name, _value)| !NOT_OF_PAYLOAD.contains(name))
        .map(|(name, value)| (name.as_bytes(), value));
    Ok(Some(Fingerprint::of(&topic.0, key, record.key, record.value, of_payload)))
}

fn not_a_key(bytes: usize) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::BadRequest,
        format!(
            "a record has one idempotency key at most, of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes; here is one of \
             {bytes} or a second one"
        ),
    )
}

/// A message that is appended and not committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InFlightKey {
    pub(super) index: EntryIndex,
    pub(super) position: u32,
    pub(super) fingerprint: Fingerprint,
}

/// A record with a key has the header's name and a byte of key at least.
const KEYED_RECORD_BYTES_MIN: usize = IDEMPOTENCY_KEY.len() + 1;

/// The part of a fingerprint's bytes that is the key.
const KEY_BYTES: usize = 9;

/// The keys of the entries that are appended and not committed. Bounded as those are.
///
/// Packed to 20 bytes, because every key of a publisher at full speed passes through here: with 48 of them, and some
/// ten thousand keys under way, most look-ups left the second cache (5 % of the broker's time).
#[derive(Debug, Default)]
pub(super) struct KeysInFlight {
    #[expect(clippy::disallowed_types, reason = "never iterated")]
    by_key: HashMap<[u8; KEY_BYTES], Packed, BuildHasherDefault<AsIs>>,
}

/// The rest of a fingerprint, the low half of the entry's index, and the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packed {
    check: [u8; Fingerprint::BYTES - KEY_BYTES],
    index: [u8; 4],
    position: [u8; 4],
}

impl KeysInFlight {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The message that has this key. No entry in flight lies below `committed`, nor 2^32 above.
    pub(super) fn get(
        &self,
        fingerprint: Fingerprint,
        committed: EntryIndex,
    ) -> Option<InFlightKey> {
        let (key, _check) = halves(fingerprint);
        self.by_key.get(&key).map(|packed| packed.unpack(key, committed))
    }

    /// Takes a key in, unless it is in: then the one that is.
    pub(super) fn insert(
        &mut self,
        own: InFlightKey,
        committed: EntryIndex,
    ) -> Option<InFlightKey> {
        let (key, check) = halves(own.fingerprint);
        match self.by_key.entry(key) {
            Entry::Occupied(first) => Some(first.get().unpack(key, committed)),
            Entry::Vacant(vacant) => {
                let [a, b, c, d, ..] = own.index.0.to_le_bytes();
                let position = own.position.to_le_bytes();
                vacant.insert(Packed { check, index: [a, b, c, d], position });
                None
            }
        }
    }

    /// Takes out what was committed or refused.
    pub(super) fn remove(&mut self, keyed: &[Keyed]) {
        for keyed in keyed {
            self.by_key.remove(&halves(keyed.fingerprint).0);
        }
    }
}

impl Packed {
    fn unpack(self, key: [u8; KEY_BYTES], committed: EntryIndex) -> InFlightKey {
        let mut bytes = [0; Fingerprint::BYTES];
        bytes[..KEY_BYTES].copy_from_slice(&key);
        bytes[KEY_BYTES..].copy_from_slice(&self.check);
        let low = u64::from(u32::from_le_bytes(self.index));
        let ahead = low.wrapping_sub(committed.0) & u64::from(u32::MAX);
        InFlightKey {
            index: EntryIndex(committed.0 + ahead),
            position: u32::from_le_bytes(self.position),
            fingerprint: Fingerprint::from_bytes(bytes),
        }
    }
}

fn halves(fingerprint: Fingerprint) -> ([u8; KEY_BYTES], [u8; Fingerprint::BYTES - KEY_BYTES]) {
    let bytes = fingerprint.to_bytes();
    let (key, check) = bytes.split_first_chunk().expect("a fingerprint has a key");
    (*key, check.try_into().expect("and a check"))
}

/// The keys are bits of a keyed hash already.
#[derive(Default, Debug)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The length of the key, the same for all.
    fn write_usize(&mut self, _len: usize) {}
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider_protocol::batch::BatchBuilder;
    use postrider_protocol::types::{
        Compression, ProducerEpoch, ProducerId, Sequence, TimestampMs,
    };

    use super::*;

    #[test]
    fn a_batch_that_states_more_records_than_it_has_is_refused_and_asks_for_no_memory() {
        let mut builder = BatchBuilder::new(Compression::None, 0);
        let header = (Bytes::from(IDEMPOTENCY_KEY), Some(Bytes::from("k")));
        builder.push(None, Some(b"v"), &[header], TimestampMs(1)).unwrap();
        let batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
        assert_eq!(
            read_keys(TopicId::default(), &batch, DecodeLimits::default()).unwrap().len(),
            1
        );
        let mut body = batch.body.to_vec();
        let count = u32::MAX >> 1;
        body[2..6].copy_from_slice(&(count - 1).to_be_bytes());
        body[36..40].copy_from_slice(&count.to_be_bytes());
        let body = Bytes::from(body);
        let batch = Batch { crc: crc32fast::hash(&body), body, record_count: count };
        let limits = postrider_protocol::message::Limits::default();
        batch.validate(&limits).unwrap();
        let refused = read_keys(TopicId::default(), &batch, DecodeLimits::default()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::CorruptBatch);
    }

    #[test]
    fn a_key_in_flight_is_found_with_its_place_beyond_32_bits() {
        let mut keys = KeysInFlight::default();
        let committed = EntryIndex((7 << 32) - 2);
        let of = |seed: u8| {
            Fingerprint::from_bytes(std::array::from_fn(|at| seed ^ u8::try_from(at).unwrap()))
        };
        for (seed, ahead) in [(1, 0), (40, 1), (80, 2), (120, 3)] {
            let index = EntryIndex(committed.0 + ahead);
            let own = InFlightKey { index, position: u32::from(seed), fingerprint: of(seed) };
            assert_eq!(keys.insert(own, committed), None);
            assert_eq!(keys.get(of(seed), committed), Some(own));
            assert_eq!(keys.insert(InFlightKey { position: 9, ..own }, committed), Some(own));
        }
        let mut other_payload = of(40).to_bytes();
        other_payload[11] ^= 1;
        let first = keys.get(Fingerprint::from_bytes(other_payload), committed).unwrap();
        assert_eq!(first.fingerprint, of(40), "it is found by its key");
        keys.remove(&[Keyed { position: 0, fingerprint: of(40) }]);
        assert_eq!(keys.get(of(40), committed), None);
        assert_eq!(keys.len(), 3);
    }
}
