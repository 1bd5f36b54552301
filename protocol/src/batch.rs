//! Owns the batch: its 40 field bytes, building ([`BatchBuilder`]), the broker's cheap check
//! ([`Batch::validate`]) and reading ([`Batch::records`]). Never routes, numbers or stores. Driven by
//! the client, which builds and reads, and by the broker, which checks.
//!
//! ```text
//!  0 i16 attributes: bits 0-2 codec (0 none, 3 lz4, 4 zstd), others 0
//!  2 i32 lastOffsetDelta: records - 1         6 i64 baseTimestamp, ms: the first record's
//! 14 i64 maxTimestamp, ms                    22 i64 producerId, -1 = none
//! 30 i16 producerEpoch                       32 i32 baseSequence: low 31 bits
//! 36 i32 recordsCount                        40 records, compressed as a whole or not
//! ```
//! Big-endian, as Kafka has it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    compress::{self, CompressError},
    entry::Entry,
    message::{Limits, PublishHead},
    record::{self, Header, NewRecord, RECORD_BYTES_CEILING, Record, RecordError, RecordView},
    types::{Compression, ProducerEpoch, ProducerId, Sequence, TimestampMs},
};

/// The size of the fields before the records.
pub const BATCH_FIELD_BYTES: usize = 40;
/// The largest batch that a builder makes, before compression.
pub const BATCH_BYTES_CEILING: usize = RECORD_BYTES_CEILING;

const CODEC_BITS: i16 = 0b111;
const SEQUENCE_BITS: u64 = 0x7fff_ffff;

/// Messages that are published, stored and delivered as one piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// 40 field bytes and records.
    pub body: Bytes,
    /// crc32 (IEEE) of the body, made by the producer and checked by every hop.
    pub crc: u32,
    /// How many records, as stated beside the batch.
    pub record_count: u32,
}

/// The fields of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchFields {
    /// The codec of the records.
    pub compression: Compression,
    /// The last record's offset less the first one's.
    pub last_offset_delta: u32,
    /// The first record's time.
    pub base_timestamp: TimestampMs,
    /// The latest record's time.
    pub max_timestamp: TimestampMs,
    /// The session; [`ProducerId::NONE`] without one.
    pub producer: ProducerId,
    /// The session's epoch.
    pub epoch: ProducerEpoch,
    /// The low 31 bits of the first sequence.
    pub base_sequence: u32,
    /// How many records.
    pub record_count: u32,
}

/// Why a batch is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// The body is shorter than its fields.
    #[error("the batch has {0} bytes, fewer than its fields")]
    Short(usize),
    /// The body, or a record in it, is above the limit.
    #[error("the batch, or a message in it, has {bytes} bytes; the limit is {max}")]
    TooLarge {
        /// The body's size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The body does not match its crc.
    #[error("the batch does not match its crc")]
    Crc,
    /// A codec that is not supported.
    #[error("the batch is compressed with codec {0}, which is not supported")]
    Codec(u8),
    /// Attribute bits that are not defined.
    #[error("the batch has undefined attributes {0:#06x}")]
    Attributes(i16),
    /// The counts beside the batch, in its fields and of its records differ.
    #[error("the record counts of the batch differ")]
    Count,
    /// A time stamp is negative.
    #[error("a time stamp of the batch is negative")]
    Timestamp,
    /// The producer fields are not those of the publish.
    #[error("the producer fields of the batch are not those of the publish")]
    Producer,
    /// The records could not be decompressed.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// A record is damaged.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// How much a reader is willing to decompress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeLimits {
    /// The most bytes that the records of one batch may take.
    pub records_bytes_max: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { records_bytes_max: 64 << 20 }
    }
}

impl Batch {
    /// The batch in a stored Data entry.
    #[must_use]
    pub fn of_entry(entry: &Entry) -> Self {
        Self {
            body: entry.body.clone(),
            crc: entry.header.body_crc,
            record_count: entry.header.record_count,
        }
    }

    /// The same messages for another place in a session, or for another session. A client needs it when the
    /// broker has forgotten the session under which the batch was built.
    ///
    /// # Errors
    /// The body is not a batch.
    pub fn with_session(
        &self,
        producer: ProducerId,
        epoch: ProducerEpoch,
        base_sequence: Sequence,
    ) -> Result<Self, BatchError> {
        let base_sequence = low_sequence(base_sequence);
        let fields = BatchFields { producer, epoch, base_sequence, ..self.fields()? };
        let mut body = BytesMut::from(self.body.as_ref());
        let room = body.first_chunk_mut().ok_or(BatchError::Short(self.body.len()))?;
        *room = fields.encode();
        let body = body.freeze();
        Ok(Self { crc: crc32fast::hash(&body), body, record_count: self.record_count })
    }

    /// The messages `first .. first + count` as a batch of the same session, codec and times.
    ///
    /// # Errors
    /// The batch is damaged, has fewer messages, or is not to be decompressed within the limit.
    ///
    /// # Panics
    /// `count` is 0: a batch has a message.
    pub fn part(
        &self,
        (first, count): (u32, u32),
        base_sequence: Sequence,
        limits: DecodeLimits,
    ) -> Result<Self, BatchError> {
        let fields = self.fields()?;
        let mut builder = BatchBuilder::new(fields.compression, self.body.len());
        for record in self.records(limits)? {
            let BatchRecord { offset_delta, record } = record?;
            if offset_delta.checked_sub(first).is_some_and(|place| place < count) {
                builder.push_record(&record)?;
            }
        }
        if builder.count() != count {
            return Err(BatchError::Count);
        }
        Ok(builder.finish(fields.producer, fields.epoch, base_sequence))
    }

    /// Compares the body with its crc.
    #[must_use]
    pub fn check_crc(&self) -> bool {
        crc32fast::hash(&self.body) == self.crc
    }

    /// The fields, each in its range; they may still contradict what stands beside the batch.
    ///
    /// # Errors
    /// The body is too short, or a field has a value that is not defined.
    pub fn fields(&self) -> Result<BatchFields, BatchError> {
        BatchFields::decode(&self.body)
    }

    /// The broker's check: size, crc, fields, counts. Does not look at records.
    ///
    /// # Errors
    /// What the publisher did wrong: the publish is rejected.
    pub fn validate(&self, limits: &Limits) -> Result<BatchFields, BatchError> {
        let max = usize::try_from(limits.batch_bytes_max).unwrap_or(usize::MAX);
        if self.body.len() > max {
            return Err(BatchError::TooLarge { bytes: self.body.len(), max });
        }
        let fields = self.fields()?;
        let last = fields.record_count.checked_sub(1).ok_or(BatchError::Count)?;
        if fields.record_count != self.record_count || fields.last_offset_delta != last {
            return Err(BatchError::Count);
        }
        if !self.check_crc() {
            return Err(BatchError::Crc);
        }
        Ok(fields)
    }

    /// The broker's check of a topic's `message_bytes_max`. Costs nothing while the whole batch is below
    /// it; otherwise walks the lengths of the records. Compressed batches pass: they are the
    /// publisher's to check.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`], or a record is damaged.
    pub fn check_message_sizes(&self, message_bytes_max: u32) -> Result<(), BatchError> {
        let max = usize::try_from(message_bytes_max).unwrap_or(usize::MAX);
        let fields = self.fields()?;
        let mut rest = self.body.get(BATCH_FIELD_BYTES..).unwrap_or_default();
        if fields.compression != Compression::None || rest.len() <= max {
            return Ok(());
        }
        while !rest.is_empty() {
            let (bytes, after) = record::split_len(rest)?;
            if bytes > max {
                return Err(BatchError::TooLarge { bytes, max });
            }
            rest = after;
        }
        Ok(())
    }

    /// The records, decompressed if need be.
    ///
    /// # Errors
    /// The fields are wrong, or the records cannot be decompressed within the limit.
    pub fn block(&self, limits: DecodeLimits) -> Result<RecordBlock, BatchError> {
        let fields = self.fields()?;
        let section = self.body.slice(BATCH_FIELD_BYTES..);
        let records = match fields.compression {
            Compression::None => section,
            codec => compress::decompress(codec, &section, limits.records_bytes_max)?.into(),
        };
        Ok(RecordBlock { fields, records })
    }

    /// The records in shared form; the first error ends the iteration.
    ///
    /// # Errors
    /// As [`Self::block`].
    pub fn records(&self, limits: DecodeLimits) -> Result<RecordIter, BatchError> {
        Ok(self.block(limits)?.into_records())
    }
}

impl BatchFields {
    /// The fields at the front of a body.
    ///
    /// # Errors
    /// The body is too short, or a field has a value that is not defined.
    pub fn decode(body: &[u8]) -> Result<Self, BatchError> {
        let fixed: &[u8; BATCH_FIELD_BYTES] =
            body.first_chunk().ok_or(BatchError::Short(body.len()))?;
        let mut input = fixed.as_slice();
        let compression = codec_of(input.get_i16())?;
        Ok(Self {
            compression,
            last_offset_delta: count(input.get_i32())?,
            base_timestamp: time(input.get_i64())?,
            max_timestamp: time(input.get_i64())?,
            producer: ProducerId(input.get_i64()),
            epoch: ProducerEpoch(input.get_i16().cast_unsigned()),
            base_sequence: u32::try_from(input.get_i32()).map_err(|_sign| BatchError::Producer)?,
            record_count: count(input.get_i32())?,
        })
    }

    /// The field bytes.
    pub(crate) fn encode(&self) -> [u8; BATCH_FIELD_BYTES] {
        let mut bytes = [0; BATCH_FIELD_BYTES];
        let mut out = bytes.as_mut_slice();
        out.put_i16(i16::from(self.compression as u8));
        out.put_u32(self.last_offset_delta);
        out.put_u64(self.base_timestamp.0);
        out.put_u64(self.max_timestamp.0);
        out.put_i64(self.producer.0);
        out.put_u16(self.epoch.0);
        out.put_u32(self.base_sequence);
        out.put_u32(self.record_count);
        bytes
    }

    /// Compares the producer fields with those of the publish that carries the batch.
    ///
    /// # Errors
    /// [`BatchError::Producer`], or [`BatchError::Count`] if the publish does not cover one sequence
    /// per record.
    pub fn check_head(&self, head: &PublishHead) -> Result<(), BatchError> {
        if (self.producer, self.epoch) != (head.producer, head.epoch)
            || self.base_sequence != low_sequence(head.base_sequence)
        {
            return Err(BatchError::Producer);
        }
        if head.seq_count != self.record_count { Err(BatchError::Count) } else { Ok(()) }
    }
}

fn codec_of(attributes: i16) -> Result<Compression, BatchError> {
    if attributes & !CODEC_BITS != 0 {
        return Err(BatchError::Attributes(attributes));
    }
    let [_high, codec] = attributes.to_be_bytes();
    Compression::from_u8(codec).ok_or(BatchError::Codec(codec))
}

fn count(value: i32) -> Result<u32, BatchError> {
    u32::try_from(value).map_err(|_negative| BatchError::Count)
}

fn time(value: i64) -> Result<TimestampMs, BatchError> {
    u64::try_from(value).map(TimestampMs).map_err(|_negative| BatchError::Timestamp)
}

fn low_sequence(sequence: Sequence) -> u32 {
    u32::try_from(sequence.0 & SEQUENCE_BITS).expect("31 bits fit")
}

/// The records of a batch, decompressed.
#[derive(Clone, Debug)]
pub struct RecordBlock {
    fields: BatchFields,
    records: Bytes,
}

impl RecordBlock {
    /// The records' size in bytes, decompressed.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.records.len()
    }

    /// The batch's fields.
    #[must_use]
    pub fn fields(&self) -> &BatchFields {
        &self.fields
    }

    /// The records, borrowed: the fast way. The first error ends the iteration.
    #[must_use]
    pub fn views(&self) -> RecordViews<'_> {
        RecordViews::new(&self.fields, &self.records)
    }

    /// The records, shared. The first error ends the iteration.
    #[must_use]
    pub fn into_records(self) -> RecordIter {
        RecordIter {
            walk: Walk::new(&self.fields),
            left: self.records.len(),
            records: self.records,
        }
    }
}

/// How far an iteration has come.
#[derive(Clone, Debug)]
struct Walk {
    base_ms: i64,
    left: u32,
    /// The least offset delta that the next record may have.
    delta_min: u32,
    last_offset_delta: u32,
}

impl Walk {
    fn new(fields: &BatchFields) -> Self {
        Self {
            base_ms: i64::try_from(fields.base_timestamp.0).unwrap_or(i64::MAX),
            left: fields.record_count,
            delta_min: 0,
            last_offset_delta: fields.last_offset_delta,
        }
    }

    /// The next record and what follows it; none at the end.
    #[inline]
    fn step<'a>(
        &mut self,
        bytes: &'a [u8],
    ) -> Option<Result<(RecordView<'a>, &'a [u8]), BatchError>> {
        let Some(left) = self.left.checked_sub(1) else {
            return (!bytes.is_empty()).then_some(Err(BatchError::Count));
        };
        if bytes.is_empty() {
            return Some(Err(BatchError::Count));
        }
        self.left = left;
        let split = RecordView::split(bytes, self.base_ms).map_err(BatchError::from);
        Some(split.and_then(|(view, after)| self.place(&view).map(|()| (view, after))))
    }

    /// Deltas rise and stay within the batch.
    fn place(&mut self, view: &RecordView<'_>) -> Result<(), BatchError> {
        if view.offset_delta < self.delta_min || view.offset_delta > self.last_offset_delta {
            return Err(BatchError::Count);
        }
        self.delta_min = view.offset_delta.saturating_add(1);
        Ok(())
    }

    fn end(&mut self) {
        self.left = 0;
    }
}

/// A batch's records, borrowed.
#[derive(Clone, Debug)]
pub struct RecordViews<'a> {
    rest: &'a [u8],
    walk: Walk,
}

impl<'a> RecordViews<'a> {
    /// The records in `rest`, decompressed, of a batch with these fields.
    pub(crate) fn new(fields: &BatchFields, rest: &'a [u8]) -> Self {
        Self { rest, walk: Walk::new(fields) }
    }

    /// The bytes of the records that are still to come.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for RecordViews<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.walk.step(self.rest)? {
            Ok((view, after)) => {
                self.rest = after;
                Some(Ok(view))
            }
            Err(error) => {
                self.walk.end();
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// A record of a batch in shared form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchRecord {
    /// Its offset less the batch's base offset.
    pub offset_delta: u32,
    /// The record; its parts share the batch's memory.
    pub record: Record,
}

/// A batch's records, shared.
#[derive(Clone, Debug)]
pub struct RecordIter {
    records: Bytes,
    /// How many bytes are still to be read.
    left: usize,
    walk: Walk,
}

impl Iterator for RecordIter {
    type Item = Result<BatchRecord, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.records.len().saturating_sub(self.left);
        let rest = self.records.get(read..).unwrap_or_default();
        let shared = self.walk.step(rest)?.and_then(|(view, after)| {
            self.left = after.len();
            let record = view.share(&self.records)?;
            Ok(BatchRecord { offset_delta: view.offset_delta, record })
        });
        if shared.is_err() {
            self.walk.end();
            self.left = 0;
        }
        Some(shared)
    }
}

/// Appends messages to one growing buffer, until they are sent as a batch.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    /// Room for the fields, then records.
    buffer: BytesMut,
    record_count: u32,
    base_ms: i64,
    max_ms: i64,
}

impl BatchBuilder {
    /// An empty batch with room for `hint_bytes`.
    #[must_use]
    pub fn new(compression: Compression, hint_bytes: usize) -> Self {
        Self::with_buffer(compression, BytesMut::with_capacity(hint_bytes))
    }

    /// An empty batch in a buffer that is used again; what it holds is dropped.
    #[must_use]
    pub fn with_buffer(compression: Compression, mut buffer: BytesMut) -> Self {
        buffer.clear();
        buffer.put_bytes(0, BATCH_FIELD_BYTES);
        Self { compression, buffer, record_count: 0, base_ms: 0, max_ms: 0 }
    }

    /// Appends a message.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`] if the batch would pass [`BATCH_BYTES_CEILING`], or
    /// [`RecordError::Headers`]; the batch is then as before. The caller knows stricter limits.
    #[inline]
    pub fn push(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
        timestamp: TimestampMs,
    ) -> Result<(), BatchError> {
        let ms = i64::try_from(timestamp.0).unwrap_or(i64::MAX);
        let base_ms = if self.record_count == 0 { ms } else { self.base_ms };
        let record = NewRecord {
            key,
            value,
            headers,
            timestamp_delta: ms.saturating_sub(base_ms),
            offset_delta: self.record_count,
        };
        let len = record.len();
        let bytes = self.buffer.len().saturating_add(len);
        if bytes > BATCH_BYTES_CEILING {
            return Err(BatchError::TooLarge { bytes, max: BATCH_BYTES_CEILING });
        }
        if headers.len() > record::RECORD_HEADERS_MAX {
            return Err(RecordError::Headers.into());
        }
        record.put(len, &mut self.buffer);
        self.base_ms = base_ms;
        self.max_ms = self.max_ms.max(ms);
        self.record_count = self.record_count.saturating_add(1);
        Ok(())
    }

    /// Appends a message.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_record(&mut self, record: &Record) -> Result<(), BatchError> {
        self.push(record.key.as_deref(), record.value.as_deref(), &record.headers, record.timestamp)
    }

    /// The batch's size if it were finished now, before compression.
    #[must_use]
    pub fn estimated_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// How many messages it holds.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.record_count
    }

    /// It holds no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// The batch. Records that compression does not make smaller stay as they are.
    ///
    /// # Panics
    /// If it holds no message: a batch has at least one.
    #[must_use]
    pub fn finish(
        self,
        producer: ProducerId,
        epoch: ProducerEpoch,
        base_sequence: Sequence,
    ) -> Batch {
        assert!(self.record_count > 0, "a batch has at least one message");
        let mut fields = BatchFields {
            compression: self.compression,
            last_offset_delta: self.record_count.saturating_sub(1),
            base_timestamp: TimestampMs(self.base_ms.cast_unsigned()),
            max_timestamp: TimestampMs(self.max_ms.cast_unsigned()),
            producer,
            epoch,
            base_sequence: low_sequence(base_sequence),
            record_count: self.record_count,
        };
        let record_count = self.record_count;
        let body = match self.compressed(&fields) {
            Some(body) => body,
            None => {
                fields.compression = Compression::None;
                self.plain(&fields)
            }
        };
        Batch { crc: crc32fast::hash(&body), body, record_count }
    }

    fn compressed(&self, fields: &BatchFields) -> Option<Bytes> {
        if self.compression == Compression::None {
            return None;
        }
        let (_room, records) = self.buffer.split_at_checked(BATCH_FIELD_BYTES)?;
        let mut body = Vec::with_capacity(self.buffer.len());
        body.extend_from_slice(&fields.encode());
        compress::compress(self.compression, records, &mut body).then(|| body.into())
    }

    fn plain(mut self, fields: &BatchFields) -> Bytes {
        if let Some(room) = self.buffer.first_chunk_mut() {
            *room = fields.encode();
        }
        self.buffer.freeze()
    }
}
