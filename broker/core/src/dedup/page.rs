//! Owns a page of the hash table: up to 1,024 slots that are split, or made larger, in microseconds. Never knows
//! its neighbours. Driven by `table`.
//!
//! ```text
//! slot, 16 bytes:  u64 first 64 bits of the hash | u32 last 8 bits, check | u32 number, highest bit: a mark
//! line, 64 bytes:  four slots; one line of the processor's cache
//! ```
//! A key's line is chosen by the bits behind those that chose the page; a full line flows over into the next one.
//! Each key that goes past a line leaves a mark there, in that one of its four slots that two bits of the hash name.
//! So a search ends where the key's mark is not set. Of keys that are not there, 5 of 100 go on to a second line, which
//! memory was not asked for, at the least load, 12 in between and 28 at the highest; if an empty slot were the end, 27,
//! 44 and 67 would (simulated). Slots are never removed. Lines rise with the hash, so reading a page in order is almost sorting it.

use std::sync::Arc;

use super::fingerprint::Fingerprint;

/// A number that no key has: the slot is empty.
pub(super) const NUMBER_NONE: u32 = MARK - 1;
/// Beside a number: keys went past this line.
const MARK: u32 = 1 << 31;

/// Slots of a line.
const LINE_SLOTS: usize = 4;
/// Lines of a page, at which it is split instead of being made larger: 16 KiB, whose 870 keys are moved in a few
/// microseconds.
pub(super) const PAGE_LINES_MAX: usize = 256;
/// Of a hundred slots, how many may be taken. Above, searches run over line after line; the fewest are
/// this times 100 / [`PAGE_GROWTH_PERCENT`].
pub(super) const LOAD_PERCENT_MAX: usize = 85;
/// Slots of a page that was made larger, of a hundred before: the square root of two, so that a page is made larger
/// once between two splits. All pages fill alike; without the step all of them were half empty at the same time.
pub(super) const PAGE_GROWTH_PERCENT: usize = 142;

/// A key that is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    /// Of which key, and what it said.
    pub(super) fingerprint: Fingerprint,
    /// Leads to its place, by way of the generation's runs.
    pub(super) number: u32,
}

impl Slot {
    /// Bytes of a slot in a snapshot.
    pub(super) const BYTES: usize = Fingerprint::BYTES + 4;

    /// The fingerprint, whose bytes rise with the hash, and the number, little-endian.
    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..Fingerprint::BYTES].copy_from_slice(&self.fingerprint.to_bytes());
        bytes[Fingerprint::BYTES..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [fingerprint @ .., a, b, c, d] = bytes;
        let number = u32::from_le_bytes([a, b, c, d]);
        Self { fingerprint: Fingerprint::from_bytes(fingerprint), number }
    }
}

/// A slot in memory: without the padding that a fingerprint has.
#[derive(Clone, Copy)]
struct Packed {
    high: u64,
    low: u32,
    number: u32,
}

impl Packed {
    const EMPTY: Self = Self { high: 0, low: 0, number: NUMBER_NONE };

    fn is_empty(self) -> bool {
        self.number & !MARK == NUMBER_NONE
    }

    fn slot(self) -> Slot {
        let Self { high, low, number } = self;
        Slot { fingerprint: Fingerprint { high, low }, number: number & !MARK }
    }
}

/// Slots that are fetched from memory together.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([Packed; LINE_SLOTS]);

impl Line {
    const EMPTY: Self = Self([Packed::EMPTY; LINE_SLOTS]);

    /// The key's slot. All four are compared before anything is decided: how many are taken cannot be predicted.
    fn find(&self, fingerprint: Fingerprint) -> Option<Slot> {
        let same = |nth: usize| {
            let Slot { fingerprint: other, .. } = self.0[nth].slot();
            (fingerprint.high == other.high) & ((fingerprint.low ^ other.low) >> 24 == 0)
        };
        let hits = [same(0), same(1), same(2), same(3)];
        if !(hits[0] | hits[1] | hits[2] | hits[3]) {
            return None;
        }
        let of_key = std::iter::zip(self.0, hits).filter(|(_, hit)| *hit);
        of_key.map(|(packed, _)| packed).find(|packed| !packed.is_empty()).map(Packed::slot)
    }

    fn is_marked(&self, fingerprint: Fingerprint) -> bool {
        self.0[mark(fingerprint)].number & MARK != 0
    }
}

/// Which slot keeps the mark of a key.
fn mark(fingerprint: Fingerprint) -> usize {
    usize::from(fingerprint.high.to_le_bytes()[0]) % LINE_SLOTS
}

/// See the module.
#[derive(Clone)]
pub(super) struct Page {
    /// Shared with clones of the index until one of both is written to.
    lines: Arc<[Line]>,
    used: u32,
    /// How many leading bits of the hash all keys of the page share.
    depth: u32,
}

/// Where a search for a key begins.
#[derive(Clone, Copy)]
pub(super) struct Home<'a> {
    lines: &'a [Line],
    at: usize,
}

impl Home<'_> {
    /// Asks the memory for the line. The sum is of no use; it must not be left out by the compiler.
    pub(super) fn touch(&self) -> u64 {
        self.lines.get(self.at).map_or(0, |line| line.0[0].high)
    }

    /// The key's slot.
    pub(super) fn find(&self, fingerprint: Fingerprint) -> Option<Slot> {
        let mut at = self.at;
        loop {
            let line = self.lines.get(at)?;
            let found = line.find(fingerprint);
            if found.is_some() || !line.is_marked(fingerprint) {
                return found;
            }
            at = if at + 1 == self.lines.len() { 0 } else { at + 1 };
        }
    }
}

impl Page {
    /// A page of the keys whose first `depth` bits are the same.
    pub(super) fn of(depth: u32, slots: &[Slot]) -> Self {
        let lines = vec![Line::EMPTY; lines_for(slots.len())];
        let mut page = Self { lines: lines.into(), used: 0, depth };
        slots.iter().for_each(|slot| page.insert(*slot));
        page
    }

    /// Bytes that the page takes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.lines)
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    pub(super) fn home(&self, fingerprint: Fingerprint) -> Home<'_> {
        let bits = fingerprint.high.unbounded_shl(self.depth) >> 32;
        let at = (bits * self.lines.len() as u64) >> 32;
        Home { lines: &self.lines, at: index(at) }
    }

    /// Whether one more key must not be put in.
    pub(super) fn is_full(&self) -> bool {
        (self.len() + 1) * 100 > self.lines.len() * LINE_SLOTS * LOAD_PERCENT_MAX
    }

    fn len(&self) -> usize {
        self.used as usize
    }

    /// Whether the page is as large as pages become.
    pub(super) fn is_large(&self) -> bool {
        is_large(self.len())
    }

    /// Puts a key in that is not there. The caller has seen that the page is not full.
    pub(super) fn insert(&mut self, slot: Slot) {
        let Slot { fingerprint: Fingerprint { high, low }, number } = slot;
        let mut at = self.home(slot.fingerprint).at;
        let lines = Arc::make_mut(&mut self.lines);
        loop {
            let line = &mut lines[at].0;
            // They are taken from the front. Counted, since a search for the first empty one cannot be predicted.
            let taken = line.iter().filter(|packed| !packed.is_empty()).count();
            if let Some(empty) = line.get_mut(taken) {
                *empty = Packed { high, low, number };
                self.used += 1;
                return;
            }
            line[mark(slot.fingerprint)].number |= MARK;
            at = if at + 1 == lines.len() { 0 } else { at + 1 };
        }
    }

    /// Makes the page larger.
    pub(super) fn grow(&mut self) {
        *self = Self::of(self.depth, &self.slots());
    }

    /// Splits the page by the next bit; what is left is the half in which it is 0.
    pub(super) fn split(&mut self) -> Self {
        let mask = 1 << (63 - self.depth);
        let (zeros, ones): (Vec<Slot>, Vec<Slot>) =
            self.slots().into_iter().partition(|slot| slot.fingerprint.high & mask == 0);
        let depth = self.depth + 1;
        *self = Self::of(depth, &zeros);
        Self::of(depth, &ones)
    }

    fn slots(&self) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(self.len());
        let taken = self.lines.iter().flat_map(|line| line.0);
        slots.extend(taken.filter(|packed| !packed.is_empty()).map(Packed::slot));
        slots
    }

    /// All keys, by hash.
    pub(super) fn sorted(&self) -> Vec<Slot> {
        let mut slots = self.slots();
        slots.sort_unstable_by_key(|slot| (slot.fingerprint.high, slot.fingerprint.low));
        slots
    }
}

/// Whether so many keys are more than a page has, unless it cannot be split.
pub(super) fn is_large(keys: usize) -> bool {
    lines_for(keys) > PAGE_LINES_MAX
}

/// Lines of a page for so many keys and some more.
fn lines_for(keys: usize) -> usize {
    let slots = ((keys + 1) * PAGE_GROWTH_PERCENT).div_ceil(LOAD_PERCENT_MAX);
    slots.div_ceil(LINE_SLOTS)
}

/// A number of what lies in memory.
pub(super) fn index(number: u64) -> usize {
    usize::try_from(number).expect("it lies in memory")
}
