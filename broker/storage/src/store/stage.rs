//! The bytes of a group, in the order in which they are written, without copying bodies.
//!
//! Owns one buffer that headers, padding and small bodies are copied into, and references to the large
//! bodies between them. Both write paths use the same pieces.

use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;

use super::log::QueuedEntry;

/// Bodies up to this are copied: one more buffer costs more than the copy.
const COPY_MAX: usize = 2048;

/// The buffer is given back when it has grown beyond this.
const KEEP_MAX: usize = 8 << 20;

enum Piece {
    Copied(Range<usize>),
    Shared(Bytes),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Stage {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// Pieces before this one are not extended.
    sealed: usize,
}

impl Stage {
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.sealed = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_MAX {
            self.bytes = Vec::new();
        }
    }

    /// Ends the running piece and returns the number of the next one.
    pub(crate) fn cut(&mut self) -> usize {
        self.sealed = self.pieces.len();
        self.sealed
    }

    /// Appends a copy, and returns where it is in the buffer.
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.grown(at);
        at
    }

    pub(crate) fn zeros(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        let at = self.bytes.len();
        let count = usize::try_from(count).expect("padding fits usize");
        self.bytes.resize(at + count, 0);
        self.grown(at);
    }

    /// Fills in what was not known when its place was copied.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn grown(&mut self, at: usize) {
        let end = self.bytes.len();
        let open = self.pieces.len() > self.sealed;
        match self.pieces.last_mut() {
            Some(Piece::Copied(range)) if open && range.end == at => range.end = end,
            _ => self.pieces.push(Piece::Copied(at..end)),
        }
    }

    /// Appends a whole entry.
    pub(crate) fn entry(&mut self, entry: &mut QueuedEntry) {
        self.copy(&entry.header);
        let parts = (entry.header.len() + entry.body.len() + entry.trailer.len()) as u64;
        for part in [std::mem::take(&mut entry.body), std::mem::take(&mut entry.trailer)] {
            if part.len() <= COPY_MAX {
                if !part.is_empty() {
                    self.copy(&part);
                }
            } else {
                self.pieces.push(Piece::Shared(part));
            }
        }
        self.zeros(entry.len - parts);
    }

    fn bytes_of<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        match piece {
            Piece::Copied(range) => &self.bytes[range.clone()],
            Piece::Shared(bytes) => bytes,
        }
    }

    /// crc32 over a range of pieces.
    pub(crate) fn hash(&self, pieces: Range<usize>, hasher: &mut crc32fast::Hasher) {
        for piece in &self.pieces[pieces] {
            hasher.update(self.bytes_of(piece));
        }
    }

    /// Appends a range of pieces to a list of buffers to write.
    pub(crate) fn slices<'a>(&'a self, pieces: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.pieces[pieces].iter().map(|piece| IoSlice::new(self.bytes_of(piece))));
    }
}
