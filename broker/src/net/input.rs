//! Owns the bytes that came from one socket and are no complete frame yet, and the buffers behind them.
//!
//! Never reads from a socket and never decodes. Driven by the connection.
//!
//! Frames are slices of the buffer that they arrived in: nothing is copied, and a buffer is free again
//! when the last frame in it is. A spent buffer goes to the pool while its frames still live, and is
//! taken out again once they are gone: first touch of fresh memory costs more than reading into it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

/// Size of a connection's first buffer.
pub(crate) const READ_BYTES_MIN: usize = 1 << 10;
/// Smaller buffers are left to the allocator, which is good at them.
const POOLED_BYTES_MIN: usize = 64 << 10;
/// Spent buffers looked at for one whose frames are gone. The oldest come first.
const LOOKS_MAX: usize = 4;

/// Spent buffers of all connections. At its bound further ones are left to the allocator.
pub(crate) struct BufferPool {
    bytes_max: usize,
    spent: Mutex<Spent>,
}

#[derive(Default)]
struct Spent {
    buffers: VecDeque<(BytesMut, usize)>,
    bytes: usize,
}

impl BufferPool {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, spent: Mutex::default() }
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer of at least this size.
    fn take(&self, size: usize) -> BytesMut {
        if size >= POOLED_BYTES_MIN {
            let mut spent = self.spent();
            for _ in 0..LOOKS_MAX.min(spent.buffers.len()) {
                let Some((mut buffer, bytes)) = spent.buffers.pop_front() else { break };
                if buffer.try_reclaim(size) {
                    spent.bytes -= bytes;
                    return buffer;
                }
                spent.buffers.push_back((buffer, bytes));
            }
        }
        BytesMut::with_capacity(size)
    }

    /// Keeps a buffer of this size; its frames may still live.
    fn put(&self, mut buffer: BytesMut, bytes: usize) {
        if bytes < POOLED_BYTES_MIN {
            return;
        }
        buffer.clear();
        let mut spent = self.spent();
        if spent.bytes + bytes <= self.bytes_max {
            spent.bytes += bytes;
            spent.buffers.push_back((buffer, bytes));
        }
    }
}

/// The unfinished input of one connection.
pub(crate) struct Input {
    buffer: BytesMut,
    /// Size of the allocation behind `buffer`; 0 when there is none.
    allocated: usize,
    /// Size of the next allocation: follows the load.
    size: usize,
    size_max: usize,
}

impl Input {
    pub(crate) fn new(size_max: usize) -> Self {
        Self { buffer: BytesMut::new(), allocated: 0, size: READ_BYTES_MIN.min(size_max), size_max }
    }

    /// What has arrived and is not decoded.
    pub(crate) fn bytes(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(crate) fn holds_memory(&self) -> bool {
        self.allocated > 0
    }

    /// Makes room for the next read, with `missing` bytes known to be on their way.
    ///
    /// A frame's stated length alone never allocates more than twice what has arrived of it.
    pub(crate) fn prepare(&mut self, missing: usize, pool: &BufferPool) {
        let spare = self.buffer.capacity() - self.buffer.len();
        let wanted = missing.min(self.size.max(self.buffer.len()));
        if self.allocated > 0 && spare >= wanted.max(self.size / 4) {
            return;
        }
        let size = self.size.max(self.buffer.len() + wanted);
        let mut next = pool.take(size);
        next.extend_from_slice(&self.buffer);
        let allocated = next.capacity();
        let spent = std::mem::replace(&mut self.buffer, next);
        pool.put(spent, self.allocated);
        self.allocated = allocated;
    }

    /// A read has brought this many bytes: full buffers mean that larger ones save system calls.
    pub(crate) fn filled(&mut self, bytes: usize) {
        if self.buffer.capacity() == self.buffer.len() && bytes >= self.size / 2 {
            self.size = self.size.saturating_mul(4).min(self.size_max);
        }
    }

    /// Gives the memory back while nothing arrives. Only when there are no bytes in it.
    pub(crate) fn release(&mut self, pool: &BufferPool) {
        assert!(self.buffer.is_empty(), "bytes of a frame would be lost");
        pool.put(std::mem::take(&mut self.buffer), self.allocated);
        self.allocated = 0;
        self.size = READ_BYTES_MIN.min(self.size_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 256 << 10;

    /// One read that fills the whole room.
    fn fill(input: &mut Input) -> usize {
        let spare = input.buffer.capacity() - input.buffer.len();
        input.buffer.resize(input.buffer.len() + spare, 7);
        input.filled(spare);
        spare
    }

    #[test]
    fn an_idle_connection_holds_no_memory_and_a_busy_one_grows() {
        let (pool, mut input) = (BufferPool::new(1 << 20), Input::new(MAX));
        assert!(!input.holds_memory());
        let mut reads = Vec::new();
        for _ in 0..8 {
            input.prepare(16, &pool);
            reads.push(fill(&mut input));
            let length = input.buffer.len();
            drop(input.buffer.split_to(length).freeze());
        }
        assert_eq!(reads[0], READ_BYTES_MIN);
        assert_eq!(reads[7], MAX);
        input.release(&pool);
        assert!(!input.holds_memory());
    }

    #[test]
    fn a_stated_length_allocates_no_more_than_twice_what_arrived() {
        let (pool, mut input) = (BufferPool::new(1 << 20), Input::new(MAX));
        let mut arrived = 0;
        for _ in 0..12 {
            input.prepare(usize::MAX - (1 << 40), &pool);
            assert!(input.buffer.capacity() <= (2 * arrived).max(2 * MAX), "{arrived}");
            arrived += fill(&mut input);
            assert_eq!(input.buffer.len(), arrived, "nothing is lost");
        }
        assert!(arrived > 1 << 20, "and yet it grows with what arrives");
    }

    #[test]
    fn a_spent_buffer_is_reused_only_after_its_frames_are_gone() {
        let (pool, mut input) = (BufferPool::new(4 << 20), Input::new(MAX));
        input.size = MAX;
        input.prepare(1, &pool);
        let first_place = input.buffer.as_ptr();
        fill(&mut input);
        let frame = input.buffer.split_to(MAX).freeze();
        input.prepare(1, &pool); // the first buffer goes to the pool, its frame lives
        assert_ne!(input.buffer.as_ptr(), first_place);
        fill(&mut input);
        assert!(frame.iter().all(|byte| *byte == 7));
        drop(frame);
        drop(input.buffer.split_to(MAX).freeze());
        input.prepare(1, &pool);
        assert_eq!(input.buffer.as_ptr(), first_place);
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_bound() {
        let pool = BufferPool::new(MAX);
        pool.put(BytesMut::with_capacity(MAX), MAX);
        pool.put(BytesMut::with_capacity(MAX), MAX);
        assert_eq!(pool.spent().buffers.len(), 1);
    }
}
