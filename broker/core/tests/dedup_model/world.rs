//! Owns one random history: the index, the model beside it, and what happens to both. Driven by `main`.

use std::collections::BTreeMap;

use bytes::BytesMut;
use postrider_core::dedup::{DedupIndex, Fingerprint, Found, Generation, Known, Place};
use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use super::bytes::refuses_damage;
use super::naive::{Naive, Why};
use super::random::Random;

pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// What a run must have met.
pub(crate) const CASES: [&str; 14] = [
    "promised",
    "between",
    "new",
    "expired",
    "other payload",
    "same key twice in an entry",
    "known key inserted",
    "window changed",
    "read back",
    "read back by generation",
    "damage refused",
    "forgotten generation",
    "a thousand keys",
    "room",
];

pub(crate) struct World {
    random: Random,
    index: DedupIndex,
    /// The same, told more of the time: it must not matter.
    twin: DedupIndex,
    naive: Naive,
    time: TimestampMs,
    window_ms: u64,
    offset: u64,
    entry: u64,
    /// Keys that are in use.
    keys: u64,
    /// Messages of an entry, below.
    batch: u64,
    /// Leading bits that two of three keys have in common.
    crowded: u32,
    /// Whether keyed messages stand among many others.
    sparse: bool,
    salt: u64,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let large = random.one_in(40);
        let keys = if large { 6_000 } else { 5 + random.below(300) };
        let batch = if large { 400 } else { 1 + random.below(40) };
        let window_ms = match random.below(8) {
            0 => random.below(4),
            1 => u64::MAX - random.below(2),
            2 => 1 << 40,
            _ => 3 + random.below(2_000),
        };
        let crowded = if random.one_in(2) { 4 } else { 0 };
        let sparse = random.one_in(3);
        Self {
            index: DedupIndex::new(),
            twin: DedupIndex::new(),
            naive: Naive::default(),
            time: TimestampMs(1_000_000),
            window_ms,
            offset: random.below(1 << 40),
            entry: random.below(1 << 40),
            keys,
            batch,
            crowded,
            sparse,
            salt: random.next(),
            random,
            counts: Counts::new(),
        }
    }

    pub(crate) fn step(&mut self) {
        match self.random.below(40) {
            0 => self.change_window(),
            1 => self.read_back(),
            2 => self.read_back_by_generation(),
            3 => self.look_at_all(),
            4 => self.clone_and_go_on(),
            _ => self.entry(),
        }
    }

    pub(crate) fn finish(&mut self) {
        self.look_at_all();
        assert!(self.index == self.twin, "{:?} {:?}", self.index, self.twin);
        let generations = self.index.generations().count();
        let total: u64 = self.index.generations().map(Generation::len).sum();
        assert_eq!(total, self.index.len());
        assert!(generations < 60, "{generations} generations");
    }

    fn count(&mut self, case: &'static str) {
        *self.counts.entry(case).or_default() += 1;
    }

    fn change_window(&mut self) {
        self.window_ms = match self.random.below(4) {
            0 => self.window_ms / 2,
            1 => self.window_ms.saturating_mul(3),
            2 => self.window_ms.saturating_add(1),
            _ => self.random.below(3_000),
        };
        self.count("window changed");
    }

    /// Time passes, mostly about as much as something is bound to happen after.
    fn pass(&mut self) {
        let window = self.window_ms.min(1 << 41);
        let about = |random: &mut Random, ms: u64| (ms + random.below(3)).saturating_sub(1);
        let ms = match self.random.below(24) {
            0 => about(&mut self.random, window / 3),
            1 => about(&mut self.random, window),
            2 => about(&mut self.random, window + window / 3),
            3 => about(&mut self.random, window / 3 * 2),
            4..8 => self.random.below(window / 10 + 1),
            8..12 => self.random.below(3),
            _ => 0,
        };
        // So that many keys come into one generation.
        let ms = if self.batch > 100 && !self.random.one_in(12) { ms % 3 } else { ms };
        let twin_stops = self.random.below(ms + 1);
        let to = TimestampMs(self.time.0 + ms);
        self.twin.advance(TimestampMs(self.time.0 + twin_stops), self.window_ms);
        self.twin.advance(to, self.window_ms);
        let before = self.index.len();
        let mut forgotten = 0;
        for dropped in self.index.advance(to, self.window_ms) {
            forgotten += dropped.count();
            assert!(self.index.generations().all(|kept| kept.id() > dropped.id()));
            self.count("forgotten generation");
        }
        assert_eq!(before - forgotten, self.index.len());
        self.naive.advance(to, self.window_ms);
        self.time = to;
    }

    fn fingerprint(&mut self, key: u64) -> Fingerprint {
        let mut bytes = [0; 12];
        // Two keys differ in the last byte of the hash alone.
        let high = Random::new(self.salt ^ (key / 2)).next();
        let crowded = if key.is_multiple_of(3) { 0 } else { self.crowded };
        bytes[..8].copy_from_slice(&(high >> crowded).to_be_bytes());
        bytes[8] = (key % 2).to_le_bytes()[0];
        let payload = u8::from(self.random.one_in(6));
        bytes[9..].copy_from_slice(&[1, 2, payload]);
        Fingerprint::from_bytes(bytes)
    }

    /// An entry is published: asked for, and then inserted as far as it is new.
    fn entry(&mut self) {
        self.pass();
        let count = 1 + self.random.below(self.batch);
        let asked: Vec<Fingerprint> = (0..count)
            .map(|_| {
                let key = self.random.below(self.keys);
                self.fingerprint(key)
            })
            .collect();
        let found = self.find(&asked);
        // Now and then what is known is inserted too: the first one stays.
        let all = self.random.one_in(4);
        let places = self.places(asked.len());
        let items: Vec<(Fingerprint, Place)> = std::iter::zip(asked, found)
            .zip(places)
            .filter(|((_, found), _)| all || *found == Found::Nothing)
            .map(|((fingerprint, _), place)| (fingerprint, place))
            .collect();
        self.insert(&items);
        let again: Vec<Fingerprint> = items.iter().map(|(fingerprint, _)| *fingerprint).collect();
        self.find(&again);
    }

    /// Where the messages of an entry are: mostly side by side, with gaps that may be wide.
    fn places(&mut self, count: usize) -> Vec<Place> {
        self.entry += 1 + self.random.below(3);
        let delayed = self.random.one_in(3);
        let mut position = 0;
        let mut places = Vec::new();
        for _ in 0..count {
            let gap = match self.random.below(12) {
                0..6 if self.sparse => 60 + self.random.below(10),
                0 => self.random.below(70),
                1 => self.random.below(5),
                2 if self.random.one_in(20) => self.random.below(1 << 34),
                _ => 0,
            };
            self.offset += 1 + gap;
            position += 1 + u32::try_from(gap % 1_000).unwrap();
            places.push(match delayed {
                true => Place::Delayed { index: EntryIndex(self.entry), position },
                false => Place::Offset(Offset(self.offset)),
            });
        }
        if self.random.one_in(6) {
            places.reverse();
        }
        places
    }

    fn find(&mut self, fingerprints: &[Fingerprint]) -> Vec<Found> {
        let found: Vec<Found> = match self.random.one_in(2) {
            true => fingerprints.iter().map(|one| self.index.find(*one)).collect(),
            false => {
                let mut found = vec![Found::Nothing];
                self.index.find_many(fingerprints, &mut found);
                found.split_off(1)
            }
        };
        for (fingerprint, found) in std::iter::zip(fingerprints, &found) {
            let why = self.naive.judge(*fingerprint, *found);
            self.count(match why {
                Why::Promised => "promised",
                Why::Between => "between",
                Why::New => "new",
                Why::Expired => "expired",
            });
            if matches!(found, Found::OtherPayload(_)) {
                self.count("other payload");
            }
        }
        found
    }

    fn insert(&mut self, items: &[(Fingerprint, Place)]) {
        let mut keys: Vec<u128> = items.iter().map(|(key, _)| key.hash_bits()).collect();
        keys.sort_unstable();
        let count = keys.len();
        keys.dedup();
        if keys.len() < count {
            self.count("same key twice in an entry");
        }
        let len = self.index.len();
        let room = self.random.one_in(4).then(|| self.room(keys.len()));
        match self.random.one_in(2) {
            true => self.index.insert_many(items, self.time),
            false => {
                items.iter().for_each(|(key, place)| self.index.insert(*key, *place, self.time));
            }
        }
        self.twin.insert_many(items, self.time);
        for (fingerprint, place) in items {
            let known = Known { place: *place, append_time: self.time };
            self.naive.insert(*fingerprint, known, self.window_ms);
        }
        if self.index.len() - len < u64::try_from(items.len()).unwrap() {
            self.count("known key inserted");
        }
        if self.index.len() > 1_000 {
            self.count("a thousand keys");
        }
        // If hashes are spread as hashes are.
        if let Some(room) = room.filter(|_| self.crowded == 0) {
            let bytes = self.index.memory_bytes();
            assert!(bytes <= room, "{bytes} are more than the room of {room}");
            self.count("room");
        }
    }

    /// The smallest budget in which there is room for the keys. It must be enough, and not much more than that.
    fn room(&self, keys: usize) -> usize {
        let most = self.index.memory_bytes() + (64 << 10) + keys * (9 << 10);
        let (mut refused, mut room) = (0, most);
        assert!(self.index.has_room(keys, most), "there is room for {keys} keys");
        while room - refused > 1 {
            let middle = refused + (room - refused) / 2;
            match self.index.has_room(keys, middle) {
                true => room = middle,
                false => refused = middle,
            }
        }
        room
    }

    fn look_at_all(&mut self) {
        self.find(&self.naive.fingerprints());
        let (least, most) = self.naive.bounds();
        let len = self.index.len();
        assert!((least..=most).contains(&len), "{least} <= {len} <= {most}");
    }

    fn read_back(&mut self) {
        let mut bytes = BytesMut::from(&b"before"[..]);
        self.index.encode(&mut bytes);
        let bytes = bytes.split_off(6);
        let read = DedupIndex::decode(&bytes).unwrap();
        assert!(read == self.index, "{read:?} {:?}", self.index);
        let mut again = BytesMut::new();
        read.encode(&mut again);
        assert_eq!(bytes, again, "one encoding");
        if bytes.len() < 20_000 {
            refuses_damage(&mut self.random, &bytes);
            self.count("damage refused");
        }
        self.index = read;
        self.count("read back");
    }

    fn read_back_by_generation(&mut self) {
        let stored: Vec<_> = self.index.generations().map(Generation::encode).collect();
        let read = stored.iter().map(|bytes| Generation::decode(bytes).unwrap()).collect();
        let read = DedupIndex::from_generations(read).unwrap();
        assert!(read == self.index, "{read:?} {:?}", self.index);
        self.index = read;
        self.count("read back by generation");
    }

    /// A clone has its own youngest generation.
    fn clone_and_go_on(&self) {
        let mut clone = self.index.clone();
        assert!(clone == self.index);
        clone.advance(self.time, self.window_ms);
        let place = Place::Offset(Offset(0));
        let other = Fingerprint::from_bytes([0xff; 12]);
        clone.insert(other, place, self.time);
        assert!(self.index.find(other) == Found::Nothing, "the clone is another index");
        let known = Known { place, append_time: self.time };
        assert_eq!(clone.find(other), Found::Duplicate(known));
        assert!(clone != self.index);
    }
}
