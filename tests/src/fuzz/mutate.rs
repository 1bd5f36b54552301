//! A seeded mutator: the same seed and input give the same output, on every machine. Knows nothing of
//! formats but that lengths and counts are small integers. Driven by the replay test.

/// Bytes that an input may grow to.
const LEN_MAX: usize = 1 << 16;
/// Numbers at which decoders tend to break.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// xorshift64*; not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap_or(0).checked_rem(end).unwrap_or(0)
    }
}

/// Changes `input` in one to four places; `other` is what parts may be taken from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        change(input, other, random);
    }
    input.truncate(LEN_MAX);
}

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len().max(1));
    match random.below(8) {
        0 => set(input, at, |byte| byte ^ (1 << random.below(8))),
        1 => set(input, at, |_| u8::try_from(random.below(256)).unwrap_or(0)),
        2 => set(input, at, |byte| byte.wrapping_add(1)),
        3 => input.truncate(at),
        4 => write_edge(input, at, random),
        5 => drop(input.drain(at..(at + random.below(16)).min(input.len()))),
        6 => splice(input, at, other, random),
        _ => repeat(input, at, random),
    }
}

fn set(input: &mut [u8], at: usize, change: impl FnOnce(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = change(*byte);
    }
}

/// An integer at which decoders tend to break, in one of the usual widths and byte orders.
fn write_edge(input: &mut [u8], at: usize, random: &mut Random) {
    let edge = EDGES[random.below(EDGES.len())];
    let width = [1, 2, 4, 8][random.below(4)];
    let bytes = if random.below(2) == 0 {
        edge.to_le_bytes()
    } else {
        edge.rotate_right(8 * width).to_be_bytes()
    };
    for (offset, byte) in bytes.iter().take(width as usize).enumerate() {
        set(input, at + offset, |_| *byte);
    }
}

/// A piece of the other input, inserted or laid over.
fn splice(input: &mut Vec<u8>, at: usize, other: &[u8], random: &mut Random) {
    let from = random.below(other.len());
    let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
    let over = random.below(2) * piece.len();
    let end = (at + over).min(input.len());
    input.splice(at.min(end)..end, piece.iter().copied());
}

/// A piece of the input, once more.
fn repeat(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let end = (at + 1 + random.below(32)).min(input.len());
    let piece = input.get(at..end).unwrap_or_default().to_vec();
    input.splice(at.min(end)..at.min(end), piece);
}
