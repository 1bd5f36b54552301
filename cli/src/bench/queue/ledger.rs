//! Owns the judgement of `bench queue`: which messages were delivered, whose acknowledgement is confirmed, and
//! what must not happen. Pure. Filled by the workers, in any order of their connections.
//!
//! A delivery and a confirmation carry entry indexes of their partition: how far the leader had applied
//! the log when it handed the message out, and where the acknowledgement is stored. A delivery whose index
//! is not below the confirmation's is a delivery after the acknowledgement, whatever the network and the
//! buffers did to the order in which both were seen. Memory: two bits a message, and a few bytes for each
//! run of confirmations and each message that was delivered again.

use std::collections::{BTreeMap, BTreeSet};

use crate::bench::stamp::Number;

/// Where a message lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) partition: u32,
    pub(super) offset: u64,
}

/// A message that a worker was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Delivered {
    pub(super) number: Number,
    pub(super) place: Place,
    /// One past the last entry that the leader had applied.
    pub(super) dispatch_index: u64,
}

/// An acknowledgement that the broker has confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Confirmed {
    pub(super) number: Number,
    pub(super) place: Place,
    /// The index behind the entry that holds it. None if this confirmation only repeats an earlier one
    /// whose answer was lost.
    pub(super) commit_index: Option<u64>,
}

/// How many examples of each violation are told.
const EXAMPLES_MAX: usize = 5;

/// What must not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Violation {
    /// Handed out after its acknowledgement was stored.
    AfterAck { delivered: Delivered, commit_index: u64 },
    /// The message lies at this place and at another one.
    Doubled { number: Number, place: Place },
    /// A message of the key was handed out before this earlier one.
    OutOfOrder { delivered: Delivered, after: u64 },
    /// Nobody has sent a message of this number.
    Unsent { number: Number },
}

/// Counts and the first examples.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Violations {
    pub(super) after_ack: u64,
    pub(super) doubled: u64,
    pub(super) out_of_order: u64,
    pub(super) unsent: u64,
    pub(super) examples: Vec<Violation>,
}

impl Violations {
    pub(super) fn is_empty(&self) -> bool {
        self.after_ack + self.doubled + self.out_of_order + self.unsent == 0
    }

    fn add(&mut self, violation: Violation) {
        let count = match violation {
            Violation::AfterAck { .. } => &mut self.after_ack,
            Violation::Doubled { .. } => &mut self.doubled,
            Violation::OutOfOrder { .. } => &mut self.out_of_order,
            Violation::Unsent { .. } => &mut self.unsent,
        };
        *count += 1;
        if *count <= EXAMPLES_MAX as u64 {
            self.examples.push(violation);
        }
    }
}

/// What is known of a test's messages.
pub(super) struct Ledger {
    producers: Vec<Messages>,
    keys: usize,
    /// Places whose acknowledgement is stored: first offset to the end and the commit index.
    stored: BTreeMap<Place, Stored>,
    confirmed: u64,
    redelivered: u64,
    violations: Violations,
}

#[derive(Clone, Copy, Debug)]
struct Stored {
    end: u64,
    commit_index: u64,
}

/// The messages of one producer.
#[derive(Default)]
struct Messages {
    delivered: Bits,
    confirmed: Bits,
    /// Confirmed without an index.
    repeated: BTreeSet<u64>,
    /// Delivered again while not confirmed: the last hand-out. Removed when confirmed.
    again: BTreeMap<u64, Delivered>,
    /// By key.
    latest: Vec<Latest>,
}

/// The latest hand-out of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    /// One past the sequence; 0 before the first.
    end: u64,
    dispatch_index: u64,
}

impl Ledger {
    /// For so many producers. With `keys`, the order of each key is checked: message `n` of a producer has
    /// key `n mod keys`.
    pub(super) fn new(producers: u32, keys: Option<u32>) -> Self {
        let keys = keys.map_or(0, |keys| keys as usize);
        let messages = || Messages { latest: vec![Latest::default(); keys], ..Messages::default() };
        Self {
            producers: (0..producers).map(|_| messages()).collect(),
            keys,
            stored: BTreeMap::new(),
            confirmed: 0,
            redelivered: 0,
            violations: Violations::default(),
        }
    }

    /// Messages whose acknowledgement is confirmed.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Deliveries of messages that had been delivered before.
    pub(super) fn redelivered(&self) -> u64 {
        self.redelivered
    }

    pub(super) fn violations(&self) -> &Violations {
        &self.violations
    }

    /// A worker was given a message.
    pub(super) fn deliver(&mut self, delivered: Delivered) {
        let Delivered { number: Number { producer, sequence }, place, dispatch_index } = delivered;
        let Some(messages) = self.producers.get_mut(producer as usize) else {
            self.violations.add(Violation::Unsent { number: delivered.number });
            return;
        };
        if self.keys > 0 {
            let key = usize::try_from(sequence % self.keys as u64).unwrap_or(0);
            if let Some(after) = messages
                .latest
                .get_mut(key)
                .and_then(|latest| latest.hand_out(sequence, dispatch_index))
            {
                self.violations.add(Violation::OutOfOrder { delivered, after });
            }
        }
        if messages.delivered.set(sequence) {
            return;
        }
        self.redelivered += 1;
        if !messages.confirmed.is_set(sequence) {
            let last = messages.again.entry(sequence).or_insert(delivered);
            if last.place != place {
                self.violations.add(Violation::Doubled { number: delivered.number, place });
            }
            last.dispatch_index = last.dispatch_index.max(dispatch_index);
            return;
        }
        let repeated = messages.repeated.contains(&sequence);
        match self.commit_index_of(place) {
            Some(commit_index) if dispatch_index >= commit_index => {
                self.violations.add(Violation::AfterAck { delivered, commit_index });
            }
            Some(_) => {}
            None if repeated => {}
            None => self.violations.add(Violation::Doubled { number: delivered.number, place }),
        }
    }

    /// An acknowledgement is confirmed. Whether it is the first of its message.
    pub(super) fn confirm(&mut self, confirmed: Confirmed) -> bool {
        let Confirmed { number, place, commit_index } = confirmed;
        let Some(messages) = self.producers.get_mut(number.producer as usize) else { return false };
        let first = messages.confirmed.set(number.sequence);
        self.confirmed += u64::from(first);
        if let Some(again) = messages.again.remove(&number.sequence) {
            match commit_index {
                _ if again.place != place => {
                    self.violations.add(Violation::Doubled { number, place });
                }
                Some(commit_index) if again.dispatch_index >= commit_index => {
                    self.violations.add(Violation::AfterAck { delivered: again, commit_index });
                }
                _ => {}
            }
        }
        let Some(commit_index) = commit_index else {
            if first {
                messages.repeated.insert(number.sequence);
            }
            return first;
        };
        let repeated = messages.repeated.contains(&number.sequence);
        if !first && !repeated && self.commit_index_of(place).is_none() {
            self.violations.add(Violation::Doubled { number, place });
        }
        self.store(place, commit_index);
        first
    }

    fn commit_index_of(&self, place: Place) -> Option<u64> {
        let (first, stored) = self.stored.range(..=place).next_back()?;
        (first.partition == place.partition && place.offset < stored.end)
            .then_some(stored.commit_index)
    }

    /// Confirmations of neighbours that are stored together take one place in the map.
    fn store(&mut self, place: Place, commit_index: u64) {
        let before = self.stored.range_mut(..=place).next_back();
        if let Some((first, stored)) = before
            && first.partition == place.partition
        {
            if place.offset < stored.end {
                // Confirmed before; the first one counts.
                return;
            }
            if place.offset == stored.end && stored.commit_index == commit_index {
                stored.end += 1;
                return;
            }
        }
        self.stored.insert(place, Stored { end: place.offset + 1, commit_index });
    }

    /// Messages of `sent` (per producer) that are not confirmed: how many, and the first ones.
    pub(super) fn missing(&self, sent: &[(u32, u64)]) -> (u64, Vec<Number>) {
        let (mut count, mut examples) = (0, Vec::new());
        for (producer, messages) in (0..).zip(&self.producers) {
            let sent = sent.iter().find(|(of, _)| *of == producer).map_or(0, |(_, sent)| *sent);
            for sequence in messages.confirmed.unset_below(sent) {
                count += 1;
                if examples.len() < EXAMPLES_MAX {
                    examples.push(Number { producer, sequence });
                }
            }
        }
        (count, examples)
    }

    /// Whether any message beyond `sent` of a producer came.
    pub(super) fn judge_sent(&mut self, sent: &[(u32, u64)]) {
        for (producer, messages) in (0..).zip(&self.producers) {
            let sent = sent.iter().find(|(of, _)| *of == producer).map_or(0, |(_, sent)| *sent);
            if messages.delivered.end() > sent {
                let number = Number { producer, sequence: messages.delivered.end() - 1 };
                self.violations.add(Violation::Unsent { number });
            }
        }
    }
}

impl Latest {
    /// A message of the key was handed out. The later sequence that was handed out before it, if any.
    fn hand_out(&mut self, sequence: u64, dispatch_index: u64) -> Option<u64> {
        if sequence + 1 >= self.end {
            *self = Self { end: sequence + 1, dispatch_index };
            return None;
        }
        // An earlier message that was handed out earlier, and only seen late, is in order.
        (dispatch_index > self.dispatch_index).then(|| self.end - 1)
    }
}

/// A set of numbers from 0 on, a bit each.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Adds a number; whether it is new.
    fn set(&mut self, number: u64) -> bool {
        let (word, bit) = Self::at(number);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let word = &mut self.0[word];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn is_set(&self, number: u64) -> bool {
        let (word, bit) = Self::at(number);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// The word is beyond every test if it does not fit.
    fn at(number: u64) -> (usize, u64) {
        (usize::try_from(number / 64).unwrap_or(usize::MAX), 1 << (number % 64))
    }

    /// One past the highest number.
    fn end(&self) -> u64 {
        let words = self.0.len() as u64;
        self.0.last().map_or(0, |last| words * 64 - u64::from(last.leading_zeros()))
    }

    fn unset_below(&self, end: u64) -> impl Iterator<Item = u64> {
        (0..end).filter(|number| !self.is_set(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(sequence: u64, offset: u64, dispatch_index: u64) -> Delivered {
        Delivered {
            number: Number { producer: 0, sequence },
            place: Place { partition: 0, offset },
            dispatch_index,
        }
    }

    fn confirmed(sequence: u64, offset: u64, commit_index: Option<u64>) -> Confirmed {
        let Delivered { number, place, .. } = delivered(sequence, offset, 0);
        Confirmed { number, place, commit_index }
    }

    #[test]
    fn messages_delivered_and_confirmed_once_are_fine() {
        let mut ledger = Ledger::new(1, None);
        for n in 0..1_000 {
            ledger.deliver(delivered(n, n, n));
            assert!(ledger.confirm(confirmed(n, n, Some(n / 100 * 100 + 2_000))));
        }
        assert_eq!((ledger.confirmed(), ledger.redelivered()), (1_000, 0));
        assert!(ledger.violations().is_empty());
        assert_eq!(ledger.missing(&[(0, 1_000)]), (0, vec![]));
        assert_eq!(ledger.stored.len(), 10, "runs are merged");
        let lost = Number { producer: 0, sequence: 1_000 };
        assert_eq!(ledger.missing(&[(0, 1_001)]), (1, vec![lost]));
    }

    #[test]
    fn a_delivery_after_the_stored_ack_is_found_in_either_order() {
        for late in [false, true] {
            let mut ledger = Ledger::new(1, None);
            ledger.deliver(delivered(5, 70, 10));
            if !late {
                ledger.confirm(confirmed(5, 70, Some(12)));
            }
            ledger.deliver(delivered(5, 70, 12));
            if late {
                ledger.confirm(confirmed(5, 70, Some(12)));
            }
            assert_eq!(ledger.violations().after_ack, 1, "late: {late}");
            assert_eq!(ledger.violations().examples.len(), 1);
        }
    }

    #[test]
    fn an_older_delivery_that_is_seen_late_is_no_violation() {
        let mut ledger = Ledger::new(1, None);
        ledger.deliver(delivered(5, 70, 10));
        ledger.confirm(confirmed(5, 70, Some(12)));
        // It waited in a buffer while another worker had it.
        ledger.deliver(delivered(5, 70, 11));
        assert_eq!(ledger.redelivered(), 1);
        assert!(ledger.violations().is_empty());
        // Nothing is known about where a repeated confirmation is stored.
        ledger.deliver(delivered(6, 71, 11));
        ledger.confirm(confirmed(6, 71, None));
        ledger.deliver(delivered(6, 71, 50));
        assert!(ledger.violations().is_empty());
    }

    #[test]
    fn a_second_confirmation_counts_once_and_the_first_index_holds() {
        let mut ledger = Ledger::new(1, None);
        ledger.deliver(delivered(0, 0, 1));
        assert!(ledger.confirm(confirmed(0, 0, Some(5))));
        assert!(!ledger.confirm(confirmed(0, 0, Some(9))));
        assert_eq!(ledger.confirmed(), 1);
        assert_eq!(ledger.commit_index_of(Place { partition: 0, offset: 0 }), Some(5));
        assert_eq!(ledger.commit_index_of(Place { partition: 0, offset: 1 }), None);
        assert_eq!(ledger.commit_index_of(Place { partition: 1, offset: 0 }), None);
    }

    #[test]
    fn a_message_that_is_stored_twice_is_found() {
        let twice = |ledger: &Ledger| ledger.violations().doubled;
        let mut ledger = Ledger::new(1, None);
        ledger.deliver(delivered(5, 70, 10));
        ledger.confirm(confirmed(5, 70, Some(12)));
        ledger.deliver(delivered(5, 80, 14));
        assert_eq!(twice(&ledger), 1);
        let mut ledger = Ledger::new(1, None);
        ledger.deliver(delivered(5, 70, 10));
        ledger.deliver(delivered(5, 80, 10));
        ledger.confirm(confirmed(5, 70, Some(12)));
        assert_eq!(twice(&ledger), 1);
        ledger.confirm(confirmed(5, 80, Some(12)));
        assert_eq!(twice(&ledger), 2);
    }

    #[test]
    fn order_of_a_key_is_judged_by_the_hand_outs() {
        let mut ledger = Ledger::new(1, Some(10));
        ledger.deliver(delivered(3, 3, 1));
        ledger.deliver(delivered(13, 13, 5));
        // Handed out again before the later one, seen behind it.
        ledger.deliver(delivered(3, 3, 4));
        // Another key.
        ledger.deliver(delivered(4, 4, 9));
        assert!(ledger.violations().is_empty());
        ledger.deliver(delivered(3, 3, 6));
        assert_eq!(ledger.violations().out_of_order, 1);
    }

    #[test]
    fn messages_that_nobody_sent_are_found() {
        let mut ledger = Ledger::new(1, None);
        ledger.deliver(delivered(7, 7, 1));
        ledger.judge_sent(&[(0, 8)]);
        assert!(ledger.violations().is_empty());
        ledger.judge_sent(&[(0, 7)]);
        assert_eq!(ledger.violations().unsent, 1);
        let mut ledger = Ledger::new(0, None);
        ledger.deliver(delivered(7, 7, 1));
        assert_eq!(ledger.violations().unsent, 1);
    }
}
