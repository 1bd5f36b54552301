//! Owns what an application reads: [`Message`] one by one, [`MessageBatch`] as delivered. Checks bodies and takes
//! records apart lazily, without an allocation per message in a batch's iteration. Never sees a connection. Driven
//! by readers and subscribers.

use std::{fmt, marker::PhantomData, ops::Range};

use bytes::Bytes;
use postrider_protocol::{
    batch::{Batch, DecodeLimits, RecordBlock, RecordIter, RecordViews},
    entry::split_entry,
    headers::IDEMPOTENCY_KEY,
    record::{Header, RecordHeaders, RecordView},
    types::{Offset, PartitionId, TimestampMs},
};

use crate::{
    core::subscription::Run,
    error::ReadError,
    payload::{Decode, DecodeError},
};

/// A batch stops growing once its records have this many bytes, decompressed: the bound of what one delivery of
/// highly compressed entries takes in memory, beside one entry.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// A message's headers, in order; names may repeat.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Headers(Vec<Header>);

impl Headers {
    /// The first value with this name; a header may have no value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        let header = self.0.iter().find(|(own, _)| own == name.as_bytes())?;
        header.1.as_ref()
    }

    /// All headers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Bytes>)> {
        self.0.iter().map(|(name, value)| {
            // The decoder refuses names that are not UTF-8.
            (std::str::from_utf8(name).unwrap_or_default(), value.as_ref())
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Message<V> {
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
    /// The broker's time of the append.
    pub append_time: TimestampMs,
    /// The publisher's time.
    pub timestamp: TimestampMs,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Headers,
    /// Whether it has no value, which deletes its key when a topic is compacted.
    pub is_tombstone: bool,
    /// Its value.
    pub value: V,
    owner_epoch: u64,
}

/// `TOPIC/PARTITION/OFFSET/APPEND_TIME` of the message that a dead letter was made of.
const DEAD_LETTER_SOURCE: &str = "dl.source";

impl<V> Message<V> {
    /// What names the message for good within its topic, whichever attempt this is, and also after it was a dead letter
    /// and was sent back: its partition and idempotency key, or else its partition, offset and append time. A worker
    /// that stores it in the transaction of its effect, and skips a message whose id is there, has each effect once
    /// (the example `once`).
    #[must_use]
    pub fn dedup_id(&self) -> String {
        let source = self.headers.get(DEAD_LETTER_SOURCE).and_then(|source| origin(source));
        let own = (self.partition.0, self.offset.0, self.append_time.0);
        let (partition, offset, append_time) = source.unwrap_or(own);
        match self.headers.get(IDEMPOTENCY_KEY) {
            Some(key) => format!("{partition}/key/{}", key.escape_ascii()),
            None => format!("{partition}/{offset}/{append_time}"),
        }
    }
}

fn origin(source: &[u8]) -> Option<(u32, u64, u64)> {
    let mut parts = std::str::from_utf8(source).ok()?.rsplit('/');
    let (append_time, offset, partition) = (parts.next()?, parts.next()?, parts.next()?);
    Some((partition.parse().ok()?, offset.parse().ok()?, append_time.parse().ok()?))
}

impl<V> Message<V> {
    /// A decoded record. The owner epoch is 0: queues have none.
    pub(crate) fn of_record<C: Decode<Value = V>>(
        partition: PartitionId,
        offset: u64,
        append_time: TimestampMs,
        record: postrider_protocol::record::Record,
    ) -> Result<Self, DecodeError> {
        let is_tombstone = record.value.is_none();
        Ok(Self {
            partition,
            offset: Offset(offset),
            append_time,
            timestamp: record.timestamp,
            key: record.key,
            headers: Headers(record.headers),
            is_tombstone,
            value: C::decode(record.value)?,
            owner_epoch: 0,
        })
    }

    /// The place behind it, to acknowledge it and all before it.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            partition: self.partition,
            owner_epoch: self.owner_epoch,
            next: Offset(self.offset.0.saturating_add(1)),
        }
    }
}

impl Message<Bytes> {
    /// The same message with its payload decoded.
    pub(crate) fn decoded<C: Decode>(self) -> Result<Message<C::Value>, DecodeError> {
        let payload = (!self.is_tombstone).then_some(self.value);
        Ok(Message {
            partition: self.partition,
            offset: self.offset,
            append_time: self.append_time,
            timestamp: self.timestamp,
            key: self.key,
            headers: self.headers,
            is_tombstone: self.is_tombstone,
            value: C::decode(payload)?,
            owner_epoch: self.owner_epoch,
        })
    }
}

/// A place in a subscription's partition: what is below `next` is processed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    pub(crate) partition: PartitionId,
    pub(crate) owner_epoch: u64,
    pub(crate) next: Offset,
}

impl Position {
    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The first offset that is not processed.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }
}

impl<V> From<&Message<V>> for Position {
    fn from(message: &Message<V>) -> Self {
        message.position()
    }
}

impl<C> From<&MessageBatch<C>> for Position {
    fn from(batch: &MessageBatch<C>) -> Self {
        batch.position()
    }
}

/// Messages of one partition as the broker delivered them. The fast way to read: iterate [`MessageBatch::iter`].
pub struct MessageBatch<C> {
    place: Place,
    blocks: Vec<Block>,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for MessageBatch<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageBatch").field("place", &self.place).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    partition: PartitionId,
    owner_epoch: u64,
    first: u64,
    end: u64,
    high_watermark: Offset,
}

/// One stored entry, its body checked and decompressed.
#[derive(Clone, Debug)]
struct Block {
    offsets: Range<u64>,
    append_time: TimestampMs,
    records: RecordBlock,
}

impl<C> MessageBatch<C> {
    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.place.partition
    }

    /// The first offset.
    #[must_use]
    pub fn first(&self) -> Offset {
        Offset(self.place.first)
    }

    /// One past the last offset.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(self.place.end)
    }

    /// The offsets that it covers; messages that were removed leave holes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.place.end - self.place.first
    }

    /// Never: a batch has at least one offset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.place.end == self.place.first
    }

    /// The end of what could be read in the partition when the broker sent it.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        self.place.high_watermark
    }

    /// The place behind it, to acknowledge all of it and all before it.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            partition: self.place.partition,
            owner_epoch: self.place.owner_epoch,
            next: Offset(self.place.end),
        }
    }

    /// The place behind one message of it, to acknowledge that one and all before it.
    #[must_use]
    pub fn position_behind(&self, offset: Offset) -> Position {
        let next = offset.0.saturating_add(1).clamp(self.place.first, self.place.end);
        Position { next: Offset(next), ..self.position() }
    }

    /// The messages, borrowed and undecoded. Nothing is allocated or copied.
    #[must_use]
    pub fn iter(&self) -> MessageRefs<'_> {
        MessageRefs { place: self.place, blocks: self.blocks.iter(), current: None }
    }

    /// The messages, owned and decoded; keys, values and headers share the batch's memory.
    #[must_use]
    pub fn into_messages(self) -> IntoMessages<C> {
        IntoMessages {
            place: self.place,
            blocks: self.blocks.into_iter(),
            current: None,
            codec: PhantomData,
        }
    }
}

impl<'a, C> IntoIterator for &'a MessageBatch<C> {
    type Item = Result<MessageRef<'a>, ReadError>;
    type IntoIter = MessageRefs<'a>;

    fn into_iter(self) -> MessageRefs<'a> {
        self.iter()
    }
}

/// A message, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MessageRef<'a> {
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
    /// The broker's time of the append.
    pub append_time: TimestampMs,
    /// The publisher's time.
    pub timestamp: TimestampMs,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` deletes its key when a topic is compacted.
    pub value: Option<&'a [u8]>,
    view: RecordView<'a>,
}

impl<'a> MessageRef<'a> {
    /// Its headers. A damaged list ends early.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        let headers: Option<RecordHeaders<'a>> = self.view.headers().ok();
        headers.into_iter().flatten().map_while(Result::ok)
    }
}

/// The messages of a batch, borrowed.
#[derive(Debug)]
pub struct MessageRefs<'a> {
    place: Place,
    blocks: std::slice::Iter<'a, Block>,
    current: Option<(&'a Block, RecordViews<'a>)>,
}

impl<'a> Iterator for MessageRefs<'a> {
    type Item = Result<MessageRef<'a>, ReadError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((block, views)) = &mut self.current else {
                let block = self.blocks.next()?;
                self.current = Some((block, block.records.views()));
                continue;
            };
            match views.next() {
                Some(Ok(view)) => {
                    let offset = block.offsets.start + u64::from(view.offset_delta);
                    if offset < self.place.first {
                        continue;
                    }
                    return Some(Ok(MessageRef {
                        partition: self.place.partition,
                        offset: Offset(offset),
                        append_time: block.append_time,
                        timestamp: view.timestamp,
                        key: view.key,
                        value: view.value,
                        view,
                    }));
                }
                Some(Err(why)) => {
                    let damaged = self.place.damaged(&block.offsets, &why);
                    self.current = None;
                    return Some(Err(damaged));
                }
                None => self.current = None,
            }
        }
    }
}

impl Place {
    fn damaged(&self, offsets: &Range<u64>, why: &dyn fmt::Display) -> ReadError {
        ReadError::Damaged {
            partition: self.partition,
            from: Offset(offsets.start.max(self.first)),
            to: Offset(offsets.end),
            why: why.to_string(),
        }
    }
}

/// The messages of a batch, owned.
pub struct IntoMessages<C> {
    place: Place,
    blocks: std::vec::IntoIter<Block>,
    current: Option<(Block, RecordIter)>,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for IntoMessages<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoMessages").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<C> IntoMessages<C> {
    /// What was not iterated yet, as a batch; `None` if nothing is left.
    #[must_use]
    pub fn into_rest(self) -> Option<MessageBatch<C>> {
        let current = self.current.map(|(block, _records)| block);
        let blocks: Vec<_> = current.into_iter().chain(self.blocks).collect();
        let place = self.place;
        (place.first < place.end).then_some(MessageBatch { place, blocks, codec: PhantomData })
    }
}

impl<C: Decode> Iterator for IntoMessages<C> {
    type Item = Result<Message<C::Value>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((block, records)) = &mut self.current else {
                let block = self.blocks.next()?;
                let records = block.records.clone().into_records();
                self.current = Some((block, records));
                continue;
            };
            match records.next() {
                Some(Ok(next)) => {
                    let offset = block.offsets.start + u64::from(next.offset_delta);
                    if offset < self.place.first {
                        continue;
                    }
                    self.place.first = offset + 1;
                    let append_time = block.append_time;
                    return Some(message::<C>(&self.place, offset, append_time, next.record));
                }
                Some(Err(why)) => {
                    let damaged = self.place.damaged(&block.offsets, &why);
                    self.place.first = self.place.first.max(block.offsets.end);
                    self.current = None;
                    return Some(Err(damaged));
                }
                None => {
                    self.place.first = self.place.first.max(block.offsets.end);
                    self.current = None;
                }
            }
        }
    }
}

fn message<C: Decode>(
    place: &Place,
    offset: u64,
    append_time: TimestampMs,
    record: postrider_protocol::record::Record,
) -> Result<Message<C::Value>, ReadError> {
    let partition = place.partition;
    match Message::of_record::<C>(partition, offset, append_time, record) {
        Ok(message) => Ok(Message { owner_epoch: place.owner_epoch, ..message }),
        Err(source) => Err(ReadError::Decode { partition, offset: Offset(offset), source }),
    }
}

/// A delivered run that is taken apart entry by entry.
#[derive(Debug)]
pub(crate) struct Unpacking {
    place: Place,
    entries: Bytes,
}

impl Unpacking {
    pub(crate) fn new(run: Run) -> Self {
        let place = Place {
            partition: run.partition,
            owner_epoch: run.owner_epoch,
            first: run.first.0,
            end: run.end.0,
            high_watermark: run.high_watermark,
        };
        Self { place, entries: run.entries }
    }

    /// The next batch: all entries up to the first damaged one, or to [`BATCH_BYTES_MAX`].
    pub(crate) fn next_batch<C>(&mut self) -> Option<Result<MessageBatch<C>, ReadError>> {
        let mut blocks = Vec::new();
        let mut bytes = 0;
        let first = self.place.first;
        while !self.entries.is_empty() && bytes < BATCH_BYTES_MAX {
            let (end, after, block) = self.first_block();
            match block {
                Ok(block) => {
                    bytes += block.records.len_bytes();
                    blocks.push(block);
                }
                // It is met again, as the first, in the next call.
                Err(_damaged) if !blocks.is_empty() => break,
                Err(damaged) => {
                    (self.place.first, self.entries) = (end, after);
                    return Some(Err(damaged));
                }
            }
            (self.place.first, self.entries) = (end, after);
        }
        if blocks.is_empty() {
            return None;
        }
        let place = Place { first, end: self.place.first, ..self.place };
        Some(Ok(MessageBatch { place, blocks, codec: PhantomData }))
    }

    /// The entry at the front, its end offset, and what follows it.
    fn first_block(&self) -> (u64, Bytes, Result<Block, ReadError>) {
        let mut after = self.entries.clone();
        let entry = match split_entry(&mut after) {
            Ok(entry) => entry,
            // The engine has checked the headers: only failing memory leads here.
            Err(why) => {
                let offsets = self.place.first..self.place.end;
                return (self.place.end, Bytes::new(), Err(self.place.damaged(&offsets, &why)));
            }
        };
        let offsets = entry.header.base_offset.0..entry.header.end_offset().0;
        let end = offsets.end;
        let append_time = entry.header.append_time;
        let block = entry.check_body().map_err(|why| self.place.damaged(&offsets, &why));
        let block = block.and_then(|()| {
            Batch::of_entry(&entry)
                .block(DecodeLimits::default())
                .map_err(|why| self.place.damaged(&offsets, &why))
        });
        (end, after, block.map(|records| Block { offsets, append_time, records }))
    }
}
