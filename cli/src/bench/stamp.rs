//! Owns the mark that `bench e2e` puts at the front of each payload: which test sent it, and when it was
//! meant to leave. Pure. Sender and receiver are one process, so that one clock serves both.
//!
//! ```text
//! 0 "PRT1" | 4 u8 counted | 5 [3] zero | 8 u64 test | 16 u64 nanoseconds from the start of the test
//! ```

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

/// The smallest stamped payload.
pub(crate) const STAMP_BYTES: usize = 24;

const MAGIC: &[u8; 4] = b"PRT1";

/// Marks and recognises the messages of one test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) test: u64,
    pub(crate) start: Instant,
}

/// What a stamp says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamped {
    /// From the start of the test to the intended send.
    pub(crate) intended: Duration,
    /// Sent after the warm-up.
    pub(crate) counted: bool,
}

impl Stamp {
    /// The payload with the stamp over its first bytes.
    pub(crate) fn put(&self, intended: Instant, counted: bool, payload: &Bytes) -> Bytes {
        let since_start = intended.saturating_duration_since(self.start).as_nanos();
        let mut stamped = BytesMut::with_capacity(payload.len().max(STAMP_BYTES));
        stamped.put_slice(MAGIC);
        stamped.put_u8(u8::from(counted));
        stamped.put_bytes(0, 3);
        stamped.put_u64_le(self.test);
        stamped.put_u64_le(u64::try_from(since_start).unwrap_or(u64::MAX));
        stamped.put_slice(payload.get(STAMP_BYTES..).unwrap_or_default());
        stamped.freeze()
    }

    /// The stamp of a message of this test; none for any other message.
    pub(crate) fn read(&self, payload: &[u8]) -> Option<Stamped> {
        let (stamp, _) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let u64_at = |at: usize| {
            stamp.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
        };
        let ours = stamp.starts_with(MAGIC) && u64_at(8)? == self.test;
        ours.then_some(Stamped {
            intended: Duration::from_nanos(u64_at(16)?),
            counted: stamp.get(4) == Some(&1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_from_messages_of_the_test_alone() {
        let stamp = Stamp { test: 5, start: Instant::now() };
        let intended = stamp.start + Duration::from_micros(1_500);
        for size in [0, 24, 100] {
            let payload = stamp.put(intended, true, &Bytes::from(vec![7; size]));
            assert_eq!(payload.len(), size.max(STAMP_BYTES));
            let read = Stamped { intended: Duration::from_micros(1_500), counted: true };
            assert_eq!(stamp.read(&payload), Some(read));
            assert_eq!(Stamp { test: 6, ..stamp }.read(&payload), None);
        }
        assert_eq!(stamp.read(b"PRT1"), None);
    }
}
