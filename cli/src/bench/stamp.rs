//! Owns the mark that `bench e2e` and `bench queue` put at the front of each payload: which test sent it, and
//! when it was meant to leave; for `bench queue`, also who sent it and its number. Pure. Sender and receiver
//! are one process, so that one clock serves both.
//!
//! ```text
//!  0 "PRT1" | 4 u8 counted | 5 u8 numbered | 6 [2] zero | 8 u64 test
//! 16 u64 nanoseconds from the start of the test
//! if numbered: 24 u32 producer | 28 u32 length of the payload | 32 u64 sequence
//! ```

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

/// The smallest stamped payload.
pub(crate) const STAMP_BYTES: usize = 24;
/// The smallest payload with a number.
pub(crate) const NUMBERED_BYTES: usize = 40;

const MAGIC: &[u8; 4] = b"PRT1";

/// Marks and recognises the messages of one test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) test: u64,
    pub(crate) start: Instant,
    pub(crate) kind: StampKind,
}

/// What a stamp holds beside the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StampKind {
    Timed,
    Numbered,
}

/// Who sent a message, and which one of that producer it is, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Number {
    pub(crate) producer: u32,
    pub(crate) sequence: u64,
}

/// What a stamp says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamped {
    /// From the start of the test to the intended send.
    pub(crate) intended: Duration,
    /// Sent after the warm-up.
    pub(crate) counted: bool,
}

/// A payload with the stamp of some test.
pub(crate) fn is_stamped(payload: &[u8]) -> bool {
    payload.len() >= STAMP_BYTES && payload.starts_with(MAGIC)
}

impl Stamp {
    fn bytes(&self) -> usize {
        match self.kind {
            StampKind::Timed => STAMP_BYTES,
            StampKind::Numbered => NUMBERED_BYTES,
        }
    }

    /// The payload with the stamp over its first bytes.
    pub(crate) fn put(
        &self,
        intended: Instant,
        counted: bool,
        number: Number,
        payload: &Bytes,
    ) -> Bytes {
        let since_start = intended.saturating_duration_since(self.start).as_nanos();
        let length = payload.len().max(self.bytes());
        let mut stamped = BytesMut::with_capacity(length);
        stamped.put_slice(MAGIC);
        stamped.put_u8(u8::from(counted));
        stamped.put_u8(u8::from(self.kind == StampKind::Numbered));
        stamped.put_bytes(0, 2);
        stamped.put_u64_le(self.test);
        stamped.put_u64_le(u64::try_from(since_start).unwrap_or(u64::MAX));
        if self.kind == StampKind::Numbered {
            stamped.put_u32_le(number.producer);
            stamped.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
            stamped.put_u64_le(number.sequence);
        }
        stamped.put_slice(payload.get(self.bytes()..).unwrap_or_default());
        stamped.freeze()
    }

    /// The stamp of a message of this test; none for any other message.
    pub(crate) fn read(&self, payload: &[u8]) -> Option<Stamped> {
        let (stamp, _) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let ours = stamp.starts_with(MAGIC) && u64_at(stamp, 8)? == self.test;
        ours.then_some(Stamped {
            intended: Duration::from_nanos(u64_at(stamp, 16)?),
            counted: stamp.get(4) == Some(&1),
        })
    }

    /// The stamp and the number of a message of this test; none for any other message, or one that was cut.
    pub(crate) fn read_number(&self, payload: &[u8]) -> Option<(Stamped, Number)> {
        let stamped = self.read(payload)?;
        let sequence = u64_at(payload, 32)?;
        let producer_and_length = u64_at(payload, 24)?;
        let [a, b, c, d, e, f, g, h] = producer_and_length.to_le_bytes();
        let whole = u32::from_le_bytes([e, f, g, h]) as usize == payload.len();
        let number = Number { producer: u32::from_le_bytes([a, b, c, d]), sequence };
        (whole && payload.get(5) == Some(&1)).then_some((stamped, number))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: Number = Number { producer: 7, sequence: 1 << 40 };

    #[test]
    fn a_stamp_comes_back_from_messages_of_the_test_alone() {
        let stamp = Stamp { test: 5, start: Instant::now(), kind: StampKind::Timed };
        let intended = stamp.start + Duration::from_micros(1_500);
        for size in [0, 24, 100] {
            let payload = stamp.put(intended, true, NUMBER, &Bytes::from(vec![7; size]));
            assert_eq!(payload.len(), size.max(STAMP_BYTES));
            let read = Stamped { intended: Duration::from_micros(1_500), counted: true };
            assert_eq!(stamp.read(&payload), Some(read));
            assert_eq!(stamp.read_number(&payload), None);
            assert_eq!(Stamp { test: 6, ..stamp }.read(&payload), None);
            assert!(is_stamped(&payload));
        }
        assert_eq!(stamp.read(b"PRT1"), None);
        assert!(!is_stamped(b"PRT1"));
    }

    #[test]
    fn a_number_comes_back_from_whole_messages() {
        let stamp = Stamp { test: 5, start: Instant::now(), kind: StampKind::Numbered };
        for size in [0, 40, 100] {
            let payload = stamp.put(stamp.start, false, NUMBER, &Bytes::from(vec![7; size]));
            assert_eq!(payload.len(), size.max(NUMBERED_BYTES));
            let read = Stamped { intended: Duration::ZERO, counted: false };
            assert_eq!(stamp.read_number(&payload), Some((read, NUMBER)));
            assert_eq!(stamp.read_number(&payload[..payload.len() - 1]), None);
        }
    }
}
