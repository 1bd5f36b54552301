//! Owns one subscriber's reading of one partition: where it is and how much it is willing to receive.
//! Never reads the log, never sends. Driven by the join before and after each read.
//!
//! Credit is a balance in messages and in bytes. While both are above zero the next batch is sent, whole
//! and verbatim; so a delivery may overdraw by less than one batch, and a batch larger than the whole
//! credit still passes. Messages count from the first wanted one, bytes count whole entries: the client
//! counts the same and gives back what it has consumed.

use postrider_protocol::types::Offset;

/// What to read next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// The first wanted offset; the first batch may begin below it.
    pub from: Offset,
    /// The high watermark.
    pub until: Offset,
    /// No more than this, but for one batch that is larger.
    pub bytes_max: usize,
    /// The batch that reaches this many messages is the last one.
    pub messages_max: u64,
}

/// What a subscriber is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Messages.
    Read(ReadRequest),
    /// To be told that these offsets are gone; then call [`Subscriber::gap`].
    Gap {
        /// The first missing offset.
        from: Offset,
        /// Exclusive.
        to: Offset,
    },
    /// Nothing until the high watermark moves.
    Idle,
    /// Nothing until the client gives credit.
    NoCredit,
}

/// One subscriber on one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subscriber {
    next: Offset,
    messages: i64,
    bytes: i64,
}

impl Subscriber {
    /// A subscriber that reads from `next` on.
    #[must_use]
    pub fn new(next: Offset, messages: u32, bytes: u32) -> Self {
        Self { next, messages: i64::from(messages), bytes: i64::from(bytes) }
    }

    /// The next offset to be delivered.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The balance in messages; below zero after a batch that was larger.
    #[must_use]
    pub fn messages(&self) -> i64 {
        self.messages
    }

    /// The balance in bytes; below zero after a batch that was larger.
    #[must_use]
    pub fn bytes(&self) -> i64 {
        self.bytes
    }

    /// What it is ready for, reading at most `chunk_bytes_max` at a time.
    #[must_use]
    pub fn wants(&self, log_start: Offset, high_watermark: Offset, chunk_bytes_max: usize) -> Want {
        if self.next < log_start {
            return Want::Gap { from: self.next, to: log_start };
        }
        if self.next >= high_watermark {
            return Want::Idle;
        }
        let (Ok(messages_max @ 1..), Ok(bytes @ 1..)) =
            (u64::try_from(self.messages), usize::try_from(self.bytes))
        else {
            return Want::NoCredit;
        };
        Want::Read(ReadRequest {
            from: self.next,
            until: high_watermark,
            bytes_max: bytes.min(chunk_bytes_max),
            messages_max,
        })
    }

    /// The client gives credit. Above 2^63 it stays there.
    pub fn credit(&mut self, messages: u32, bytes: u32) {
        self.messages = self.messages.saturating_add(i64::from(messages));
        self.bytes = self.bytes.saturating_add(i64::from(bytes));
    }

    /// Batches of `bytes` bytes were handed to the connection; the next message is `next`.
    ///
    /// # Panics
    /// If `next` is not ahead: nothing would have been delivered.
    pub fn delivered(&mut self, next: Offset, bytes: usize) {
        assert!(next > self.next, "a delivery from {} ends at {next}", self.next);
        let messages = i64::try_from(next.0 - self.next.0).unwrap_or(i64::MAX);
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.next = next;
    }

    /// The client was told that what lies below `to` cannot be had.
    pub fn gap(&mut self, to: Offset) {
        self.next = self.next.max(to);
    }

    /// Reads on at `next`. Credit stays: the client still holds, and gives back, what it was sent.
    pub fn seek(&mut self, next: Offset) {
        self.next = next;
    }
}

impl ReadRequest {
    /// How many of the batches that were read to send: up to the one that reaches the message credit.
    /// `end_offsets` are the ends of the batches, in order. Only to be asked if the read holds more
    /// messages than `messages_max`.
    pub fn batches_within(&self, end_offsets: impl IntoIterator<Item = Offset>) -> usize {
        let mut count = 0;
        for end in end_offsets {
            count += 1;
            if end.0.saturating_sub(self.from.0) >= self.messages_max {
                break;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_larger_than_the_credit_passes_once() {
        let mut subscriber = Subscriber::new(Offset(0), 10, 100);
        let Want::Read(read) = subscriber.wants(Offset(0), Offset(50), 1 << 20) else { panic!() };
        assert_eq!((read.bytes_max, read.messages_max), (100, 10));
        subscriber.delivered(Offset(3), 5_000);
        assert_eq!(subscriber.wants(Offset(0), Offset(50), 1 << 20), Want::NoCredit);
        subscriber.credit(3, 4_900);
        assert_eq!(subscriber.wants(Offset(0), Offset(50), 1 << 20), Want::NoCredit);
        subscriber.credit(0, 1);
        assert!(matches!(subscriber.wants(Offset(0), Offset(50), 1 << 20), Want::Read(_)));
    }

    #[test]
    fn what_retention_took_is_told_as_a_gap() {
        let mut subscriber = Subscriber::new(Offset(3), 10, 100);
        let gap = Want::Gap { from: Offset(3), to: Offset(9) };
        assert_eq!(subscriber.wants(Offset(9), Offset(50), 64), gap);
        subscriber.gap(Offset(9));
        assert!(matches!(subscriber.wants(Offset(9), Offset(50), 64), Want::Read(_)));
        subscriber.seek(Offset(50));
        assert_eq!(subscriber.wants(Offset(9), Offset(50), 64), Want::Idle);
    }

    proptest! {
        /// Whatever the batches, what is outstanding never exceeds the credit by a whole batch, and no
        /// batch begins without credit.
        #[test]
        fn credit_is_exceeded_only_to_finish_a_batch(
            batches in prop::collection::vec((1_u64..20, 1_usize..300), 1..80),
            credits in prop::collection::vec((0_u32..30, 0_u32..400), 1..80),
            window in (1_u32..40, 1_u32..500),
        ) {
            let ends: Vec<(Offset, usize)> = batches
                .iter()
                .scan(0, |end, (records, bytes)| {
                    *end += records;
                    Some((Offset(*end), *bytes))
                })
                .collect();
            let high_watermark = ends.last().unwrap().0;
            let mut subscriber = Subscriber::new(Offset(0), window.0, window.1);
            let (mut granted_messages, mut granted_bytes) = (i64::from(window.0), i64::from(window.1));
            let (mut sent_messages, mut sent_bytes) = (0_i64, 0_i64);
            let mut credits = credits.into_iter();
            loop {
                match subscriber.wants(Offset(0), high_watermark, 1 << 20) {
                    Want::Read(read) => {
                        // As storage does: whole batches within the bytes, at least one.
                        let from = ends.partition_point(|(end, _)| *end <= read.from);
                        let mut bytes = 0;
                        let mut taken = Vec::new();
                        for (end, batch_bytes) in &ends[from..] {
                            if !taken.is_empty() && bytes + batch_bytes > read.bytes_max {
                                break;
                            }
                            bytes += batch_bytes;
                            taken.push((*end, *batch_bytes));
                        }
                        let count = read.batches_within(taken.iter().map(|(end, _)| *end));
                        for (end, batch_bytes) in &taken[..count] {
                            prop_assert!(sent_messages < granted_messages);
                            prop_assert!(sent_bytes < granted_bytes);
                            sent_messages = i64::try_from(end.0).unwrap();
                            sent_bytes += i64::try_from(*batch_bytes).unwrap();
                        }
                        let total = taken[..count].iter().map(|(_, bytes)| bytes).sum();
                        subscriber.delivered(taken[count - 1].0, total);
                    }
                    Want::NoCredit => {
                        let Some((messages, bytes)) = credits.next() else { break };
                        subscriber.credit(messages, bytes);
                        granted_messages += i64::from(messages);
                        granted_bytes += i64::from(bytes);
                    }
                    Want::Idle => break,
                    Want::Gap { .. } => prop_assert!(false),
                }
                prop_assert_eq!(subscriber.messages(), granted_messages - sent_messages);
                prop_assert_eq!(subscriber.bytes(), granted_bytes - sent_bytes);
            }
        }
    }
}
