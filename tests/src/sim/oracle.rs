//! Owns the history of a run and judges it: what applications sent, what they were told, what readers saw.
//! Never looks into the broker or the client; what it knows, a user could know. Driven by clients and readers.
//!
//! | rule | broken when |
//! |---|---|
//! | acknowledged is never lost | an offset that was acknowledged or delivered is missing from the last reading |
//! | stored at most once | one message shows at two offsets |
//! | offsets are never reused | one offset shows two messages |
//! | bytes are kept | what was delivered differs from what was sent |
//! | order | messages of one producer on one partition lie in another order than they were sent |
//! | rejected is not stored | a message that was refused is delivered, or the other way round |
//! | a key is stored once | a message that is published again under its idempotency key is told, or seen, elsewhere |
//! | every offset is read | a reader skips or repeats one without being told |

use std::collections::BTreeMap;

use bytes::Bytes;

/// A partition of a topic by the topic's number.
pub(crate) type Place = (usize, u32);

/// What was told about a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Nothing,
    Stored,
    NotStored,
    Unknown,
}

#[derive(Debug)]
struct Message {
    producer: u64,
    place: Place,
    value: Bytes,
    told: Told,
    offset: Option<u64>,
    /// It has an idempotency key.
    keyed: bool,
    /// It was published again under that key, so that a refusal of one send, or its place, says nothing of the others.
    repeated: bool,
}

/// The history and the violations found in it.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    messages: Vec<Message>,
    offsets: BTreeMap<(Place, u64), usize>,
    violations: Vec<String>,
}

/// Violations kept; the first ones tell the story.
const VIOLATIONS_MAX: usize = 20;

impl Oracle {
    pub(crate) fn violate(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }

    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The number that the next message will have; it stands in its first eight bytes.
    pub(crate) fn next_number(&self) -> u64 {
        self.messages.len() as u64
    }

    pub(crate) fn sent(&mut self, producer: u64, place: Place, value: Bytes, keyed: bool) -> usize {
        let (told, offset, repeated) = (Told::Nothing, None, false);
        self.messages.push(Message { producer, place, value, told, offset, keyed, repeated });
        self.messages.len() - 1
    }

    /// A message with a key, of those on a topic, by chance; anybody may publish it again.
    pub(crate) fn keyed_message(&self, topic: usize, chance: u64) -> Option<(usize, u32, Bytes)> {
        let is_one = |message: &Message| message.keyed && message.place.0 == topic;
        let numbers =
            (0..self.messages.len()).rev().filter(|number| is_one(&self.messages[*number]));
        let recent: Vec<usize> = numbers.take(64).collect();
        let at = usize::try_from(chance.checked_rem(recent.len() as u64)?).ok()?;
        let message = &self.messages[recent[at]];
        Some((recent[at], message.place.1, message.value.clone()))
    }

    /// A message is published again under its key.
    pub(crate) fn repeats(&mut self, number: usize) {
        self.messages[number].repeated = true;
        if self.messages[number].told == Told::NotStored {
            self.messages[number].told = Told::Unknown;
        }
    }

    pub(crate) fn told_stored(&mut self, number: usize, partition: u32, offset: u64) {
        let place = (self.messages[number].place.0, partition);
        if self.messages[number].place != place {
            self.violate(format!("message {number} was stored in partition {partition}"));
        }
        self.messages[number].told = Told::Stored;
        self.stands(number, place, offset, "the acknowledgement");
    }

    pub(crate) fn told_not_stored(&mut self, number: usize) {
        if self.messages[number].repeated {
            return;
        }
        self.messages[number].told = Told::NotStored;
        if let Some(offset) = self.messages[number].offset {
            self.violate(format!("message {number} was refused and stands at {offset}"));
        }
    }

    pub(crate) fn told_unknown(&mut self, number: usize) {
        if self.messages[number].told != Told::Stored {
            self.messages[number].told = Told::Unknown;
        }
    }

    /// A reader got this value at this offset.
    pub(crate) fn seen(&mut self, place: Place, offset: u64, value: &[u8], who: &str) {
        let number = value.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let number = number.and_then(|number| usize::try_from(number).ok());
        let Some(message) = number.and_then(|number| self.messages.get(number)) else {
            return self.violate(format!("{who} got what nobody sent at {place:?} {offset}"));
        };
        let number = number.expect("a message has a number");
        if message.value != value {
            self.violate(format!("{who} got changed bytes of message {number} at {offset}"));
        }
        if self.messages[number].told == Told::NotStored {
            self.violate(format!("{who} got message {number}, which was refused, at {offset}"));
        }
        self.stands(number, place, offset, who);
    }

    fn stands(&mut self, number: usize, place: Place, offset: u64, who: &str) {
        if self.messages[number].place != place {
            self.violate(format!("{who}: message {number} stands in {place:?}"));
        }
        let other = *self.offsets.entry((place, offset)).or_insert(number);
        if other != number {
            self.violate(format!("{who}: {place:?} {offset} is message {number} and was {other}"));
        }
        match self.messages[number].offset {
            Some(known) if known != offset => {
                self.violate(format!("{who}: message {number} stands at {known} and at {offset}"));
            }
            _ => self.messages[number].offset = Some(offset),
        }
    }

    /// Judges the end: `read` tells the first offset that is kept and one past the last that was read of
    /// every partition, by a reader that reported all that it saw.
    pub(crate) fn judge_end(&mut self, read: &BTreeMap<Place, (u64, u64)>) {
        let mut lost = Vec::new();
        for (&(place, offset), number) in &self.offsets {
            match read.get(&place) {
                Some(&(_, end)) if offset >= end => lost.push((place, offset, *number)),
                _ => {}
            }
        }
        for (place, offset, number) in lost {
            self.violate(format!("message {number} at {place:?} {offset} is lost"));
        }
        self.judge_order();
    }

    fn judge_order(&mut self) {
        let mut last: BTreeMap<(Place, u64), usize> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (&(place, offset), &number) in &self.offsets {
            let producer = self.messages[number].producer;
            if self.messages[number].repeated {
                continue;
            }
            if let Some(earlier) = last.insert((place, producer), number)
                && earlier > number
            {
                wrong.push(format!("{place:?} {offset}: message {number} stands behind {earlier}"));
            }
        }
        wrong.into_iter().for_each(|what| self.violate(what));
    }

    /// The producer and the number of a message.
    pub(crate) fn sender(&self, value: &[u8]) -> (u64, u64) {
        let number = value.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let at = number.and_then(|number| usize::try_from(number).ok());
        let producer = at.and_then(|at| self.messages.get(at)).map(|message| message.producer);
        (producer.unwrap_or(u64::MAX), number.unwrap_or(u64::MAX))
    }

    /// The offsets of a partition that hold messages, as far as anybody was told.
    pub(crate) fn stored(&self, place: Place) -> Vec<u64> {
        let of = self.offsets.range((place, 0)..=(place, u64::MAX));
        of.map(|((_, offset), _)| *offset).collect()
    }

    /// Messages sent, and messages told to be stored.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let stored = self.messages.iter().filter(|message| message.told == Told::Stored).count();
        (self.messages.len() as u64, stored as u64)
    }
}
