//! Owns cutting a byte stream into lines. Never looks at what a line says, never reads by itself.
//! Driven by `pub` with the chunks that it read.
//!
//! A line ends at `\n`, which is not part of it; `\r` is. The last line may lack its `\n`. Bytes are kept
//! as they are, UTF-8 or not. Lines are slices of the chunk: a copy happens only for a line that crosses
//! from one chunk into the next.

use bytes::{Buf, Bytes, BytesMut};

/// Cuts chunks into lines. Holds at most one unfinished line, up to `line_bytes_max`.
pub(crate) struct LineCutter {
    unfinished: BytesMut,
    line_bytes_max: usize,
    lines: u64,
}

/// A line grew beyond the bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LineTooLong {
    /// Counted from 1.
    pub(crate) line: u64,
}

impl LineCutter {
    pub(crate) fn new(line_bytes_max: usize) -> Self {
        Self { unfinished: BytesMut::new(), line_bytes_max, lines: 0 }
    }

    /// Takes the next chunk and returns the lines that it completes.
    pub(crate) fn push(&mut self, mut chunk: Bytes) -> Result<Lines, LineTooLong> {
        let mut first = None;
        if !self.unfinished.is_empty() {
            let Some(end) = newline_in(&chunk) else {
                self.keep(&chunk)?;
                return Ok(Lines { first: None, chunk: Bytes::new() });
            };
            let head = chunk.split_to(end);
            self.keep(&head)?;
            chunk.advance(1);
            first = Some(self.unfinished.split().freeze());
        }
        let whole = chunk.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let tail = chunk.split_off(whole);
        self.keep(&tail)?;
        Ok(Lines { first, chunk })
    }

    /// The last line, if it lacks its `\n`.
    pub(crate) fn finish(self) -> Option<Bytes> {
        (!self.unfinished.is_empty()).then(|| self.unfinished.freeze())
    }

    /// Counts a line that was handed on, so that an error can name the next one.
    pub(crate) fn count(&mut self, lines: u64) {
        self.lines += lines;
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), LineTooLong> {
        if self.unfinished.len() + part.len() > self.line_bytes_max {
            return Err(LineTooLong { line: self.lines + 1 });
        }
        self.unfinished.extend_from_slice(part);
        Ok(())
    }
}

/// The complete lines of one chunk, without their newlines.
pub(crate) struct Lines {
    first: Option<Bytes>,
    /// Whole lines, each with its newline.
    chunk: Bytes,
}

impl Iterator for Lines {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let end = newline_in(&self.chunk)?;
        let line = self.chunk.split_to(end);
        self.chunk.advance(1);
        Some(line)
    }
}

/// Where the first newline is, eight bytes at a time.
fn newline_in(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let difference = u64::from_le_bytes(*word) ^ (ONES * b'\n' as u64);
        // Non-zero where a byte of the difference is zero; the lowest such byte is exact.
        let found = difference.wrapping_sub(ONES) & !difference & HIGH;
        if found != 0 {
            return Some(at * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let start = words.len() * 8;
    rest.iter().position(|&byte| byte == b'\n').map(|at| start + at)
}

/// Splits a line at the first `delimiter` into key and payload. A line without one has no key.
pub(crate) fn split_key(mut line: Bytes, delimiter: &[u8]) -> (Option<Bytes>, Bytes) {
    let found = match delimiter {
        [] => None,
        [byte] => line.iter().position(|b| b == byte),
        longer => line.windows(longer.len()).position(|window| window == longer),
    };
    match found {
        Some(at) => {
            let key = line.split_to(at);
            line.advance(delimiter.len());
            (Some(key), line)
        }
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut cutter = LineCutter::new(1 << 20);
        let mut lines = Vec::new();
        for chunk in chunks {
            let cut = cutter.push(Bytes::copy_from_slice(chunk)).expect("short lines");
            lines.extend(cut.map(|line| line.to_vec()));
        }
        lines.extend(cutter.finish().map(|line| line.to_vec()));
        lines
    }

    #[test]
    fn empty_lines_crlf_and_other_bytes_survive() {
        let text = b"one\r\n\n\n\xff\xfe\x00two\n";
        assert_eq!(cut(&[text]), [&b"one\r"[..], b"", b"", b"\xff\xfe\x00two"]);
    }

    #[test]
    fn a_missing_final_newline_still_makes_a_line() {
        assert_eq!(cut(&[b"a\nb"]), [b"a", b"b"]);
        assert_eq!(cut(&[b"a\nb\n"]), [b"a", b"b"]);
        assert!(cut(&[b""]).is_empty());
        assert_eq!(cut(&[b"\n"]), [b""]);
    }

    #[test]
    fn every_cut_into_chunks_gives_the_same_lines() {
        let text = b"first line\n\nthe third, which is longer\r\n\n\nx\nlast without newline";
        let whole = cut(&[text]);
        for one in 0..text.len() {
            for two in one..text.len() {
                let parts = [&text[..one], &text[one..two], &text[two..]];
                assert_eq!(cut(&parts), whole, "cut at {one} and {two}");
            }
        }
    }

    #[test]
    fn newlines_are_found_wherever_they_are() {
        for length in 0..40 {
            for at in 0..length {
                let mut bytes = vec![0x0bu8; length];
                bytes[at] = b'\n';
                if at + 1 < length {
                    bytes[at + 1] = 0x0b;
                }
                assert_eq!(newline_in(&bytes), Some(at));
            }
            assert_eq!(newline_in(&vec![0x8au8; length]), None);
        }
    }

    #[test]
    fn an_endless_line_is_refused_by_its_number() {
        let mut cutter = LineCutter::new(8);
        let lines = cutter.push(Bytes::from_static(b"a\nb\n1234567")).expect("fits");
        cutter.count(lines.count() as u64);
        let error = cutter.push(Bytes::from_static(b"89")).err();
        assert_eq!(error, Some(LineTooLong { line: 3 }));
    }

    #[test]
    fn the_key_is_what_stands_before_the_first_delimiter() {
        let split = |line: &'static str, delimiter: &str| {
            split_key(Bytes::from_static(line.as_bytes()), delimiter.as_bytes())
        };
        assert_eq!(split("k:v:w", ":"), (Some("k".into()), "v:w".into()));
        assert_eq!(split(":v", ":"), (Some("".into()), "v".into()));
        assert_eq!(split("no key", ":"), (None, "no key".into()));
        assert_eq!(split("k=>v", "=>"), (Some("k".into()), "v".into()));
    }
}
