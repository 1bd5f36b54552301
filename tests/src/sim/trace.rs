//! Owns the trace of a run: a hash of every line always, the lines themselves on demand. Never judges.
//! Driven by all parts of the simulation.

use std::fmt::{Arguments, Write};
use std::time::Duration;

/// Lines kept when they are wanted; a longer run forgets the oldest half.
const LINES_MAX: usize = 200_000;

/// What happened, in order.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    line: String,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, line: String::new(), lines: keep.then(Vec::new) }
    }

    pub(crate) fn say(&mut self, now: Duration, what: Arguments<'_>) {
        self.line.clear();
        write!(self.line, "{:>9.3} {what}", now.as_secs_f64()).expect("a string takes all");
        // FNV-1a: order matters, and so does each byte.
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                lines.drain(..LINES_MAX / 2);
            }
            lines.push(self.line.clone());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
