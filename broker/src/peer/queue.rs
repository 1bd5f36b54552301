//! Owns the bytes that wait for one peer's socket, and their bound. Never writes. Filled by any thread,
//! emptied by the connection's task.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use futures_util::task::AtomicWaker;

/// Pieces that may wait, whatever their size.
const CHUNKS_MAX: usize = 16_384;
/// Replies may pass the bound of bytes by this factor, since what they answer is bounded too.
const REPLY_FACTOR: usize = 4;

/// Why nothing was queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PushError {
    /// It finds no room now.
    #[error("as many bytes wait for the peer as may")]
    Full,
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SendQueue {
    bytes_max: usize,
    state: Mutex<Queued>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Queued {
    chunks: VecDeque<Bytes>,
    /// What the kernel has not taken: of `chunks` and of what the task took out of it.
    bytes: usize,
    /// Somebody found no room since the last notice.
    wanted: bool,
    closed: bool,
}

impl SendQueue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default(), waker: AtomicWaker::new() }
    }

    fn state(&self) -> MutexGuard<'_, Queued> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the parts of whole frames. A push of any size fits into an empty queue.
    pub(super) fn push(&self, parts: impl IntoIterator<Item = Bytes>) -> Result<(), PushError> {
        self.push_within(parts, self.bytes_max)
    }

    /// Queues a reply. One that finds no room even beyond the bound ends the connection: its peer sends
    /// requests and does not read.
    pub(super) fn push_reply(&self, frame: Bytes) {
        let bytes_max = self.bytes_max.saturating_mul(REPLY_FACTOR);
        if self.push_within([frame], bytes_max) == Err(PushError::Full) {
            self.close();
        }
    }

    fn push_within(
        &self,
        parts: impl IntoIterator<Item = Bytes>,
        bytes_max: usize,
    ) -> Result<(), PushError> {
        let mut state = self.state();
        if state.closed {
            return Err(PushError::Closed);
        }
        let before = state.chunks.len();
        state.chunks.extend(parts.into_iter().filter(|part| !part.is_empty()));
        let added: usize = state.chunks.iter().skip(before).map(Bytes::len).sum();
        let full = state.bytes.saturating_add(added) > bytes_max || before >= CHUNKS_MAX;
        if state.bytes > 0 && full {
            state.chunks.truncate(before);
            state.wanted = true;
            return Err(PushError::Full);
        }
        state.bytes += added;
        drop(state);
        if before == 0 {
            self.waker.wake();
        }
        Ok(())
    }

    /// Bytes that find room now.
    pub(super) fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.state().bytes)
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.chunks.clear();
        drop(state);
        self.waker.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Moves all that waits behind `out`.
    pub(super) fn take(&self, out: &mut VecDeque<Bytes>) {
        out.append(&mut self.state().chunks);
    }

    /// The kernel took so many bytes. Whether somebody is to be told that there is room again.
    pub(super) fn sent(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        state.wanted && state.bytes <= self.bytes_max / 2 && std::mem::take(&mut state.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_beyond_the_bound_fails_whole_and_is_told_when_there_is_room() {
        let queue = SendQueue::new(100);
        let part = |bytes: usize| Bytes::from(vec![7; bytes]);
        assert_eq!(queue.push([part(50), part(30)]), Ok(()));
        assert_eq!(queue.push([part(10), part(11)]), Err(PushError::Full));
        assert_eq!(queue.room(), 20);
        let mut out = VecDeque::new();
        queue.take(&mut out);
        assert_eq!(out.len(), 2, "nothing of the refused push is left");
        assert_eq!(queue.room(), 20, "taken is not sent");
        assert!(!queue.sent(20));
        assert!(queue.sent(20), "half of it is free");
        assert!(!queue.sent(40), "told once");
        assert_eq!(queue.push([part(500)]), Ok(()), "an empty queue takes any frame");
        queue.close();
        assert_eq!(queue.push([part(1)]), Err(PushError::Closed));
    }
}
