//! Owns the reading of a stored Data entry by its records ([`EntryRecords`]) and the making of an entry that
//! holds a part of them ([`rebuild`]). Never stores what it makes: rebuilt entries are only sent. Driven by
//! the broker, which leases some messages of a batch to one consumer.
//!
//! A rebuilt entry stands for the same place in the log: index, base offset, epochs, append time, counts of
//! offsets and sequences are those of the stored one, and offset deltas stay, so they rise with holes. The
//! batch's times and lastOffsetDelta stay too, and recordsCount counts what is left. The trailer is dropped:
//! it is the leader's, and clients skip it. The records are not compressed again: few are left, and they go
//! out once.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    batch::{BATCH_FIELD_BYTES, BatchError, BatchFields, DecodeLimits, RecordViews},
    compress,
    entry::{
        ENTRY_HEADER_BYTES, EntryError, EntryHeader, EntryKind, EntryView, FLAG_ENCRYPTED,
        FLAG_REBUILT, entry_len,
    },
    types::{Compression, Offset},
};

/// Why an entry is not taken apart or built again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RebuildError {
    /// The entry is damaged. A rebuilt one would have a crc that hides it.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The batch in it is damaged, or too large when decompressed.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// It is no batch.
    #[error("an entry of kind {0:?} has no records")]
    Kind(EntryKind),
    /// Its body cannot be read here.
    #[error("the entry is encrypted")]
    Encrypted,
    /// No record is to be kept: there is no such entry.
    #[error("no record of the entry is kept")]
    Nothing,
    /// The entry would have 4 GiB or more.
    #[error("the rebuilt entry would have {0} bytes")]
    TooLarge(usize),
}

/// The records of a stored entry, decompressed if need be, so that they can be gone through more than once.
#[derive(Clone, Debug)]
pub struct EntryRecords<'a> {
    header: EntryHeader,
    fields: BatchFields,
    records: Cow<'a, [u8]>,
}

impl<'a> EntryRecords<'a> {
    /// The records of `entry`. Its crcs are not looked at: [`EntryView::check_body`] does that.
    ///
    /// # Errors
    /// It is no batch that can be read, or not within the limit.
    pub fn open(entry: &EntryView<'a>, limits: DecodeLimits) -> Result<Self, RebuildError> {
        if entry.header.kind != EntryKind::Data {
            return Err(RebuildError::Kind(entry.header.kind));
        }
        if entry.header.flags & FLAG_ENCRYPTED != 0 {
            return Err(RebuildError::Encrypted);
        }
        let fields = BatchFields::decode(entry.body)?;
        if fields.last_offset_delta >= entry.header.record_count {
            return Err(BatchError::Count.into()); // an offset beyond those that the entry covers
        }
        let section = entry.body.get(BATCH_FIELD_BYTES..).unwrap_or_default();
        let records = match fields.compression {
            Compression::None => Cow::Borrowed(section),
            codec => compress::decompress(codec, section, limits.records_bytes_max)
                .map_err(BatchError::from)?
                .into(),
        };
        Ok(Self { header: entry.header, fields, records })
    }

    /// Offset and key of each record, in order. The first error ends the iteration.
    pub fn keys(&self) -> impl Iterator<Item = Result<(Offset, Option<&[u8]>), BatchError>> {
        self.views().map(|view| view.map(|view| (self.offset(view.offset_delta), view.key)))
    }

    /// The entry with those records alone that `keep` says.
    ///
    /// # Errors
    /// A record is damaged, or the entry would hold nothing or too much.
    pub fn keep(&self, mut keep: impl FnMut(Offset) -> bool) -> Result<Bytes, RebuildError> {
        let mut entry = BytesMut::with_capacity(entry_len(
            self.records.len().saturating_add(BATCH_FIELD_BYTES),
            0,
        ));
        entry.put_bytes(0, ENTRY_HEADER_BYTES.saturating_add(BATCH_FIELD_BYTES));
        let mut kept = 0_u32;
        let mut views = self.views();
        loop {
            let before = views.rest();
            let Some(view) = views.next().transpose()? else { break };
            if keep(self.offset(view.offset_delta)) {
                let len = before.len().saturating_sub(views.rest().len());
                entry.extend_from_slice(before.get(..len).unwrap_or_default());
                kept = kept.saturating_add(1);
            }
        }
        if kept == 0 {
            return Err(RebuildError::Nothing);
        }
        self.finish(entry, kept)
    }

    /// Fills in header and fields, which `entry` has room for, and the padding.
    fn finish(&self, mut entry: BytesMut, kept: u32) -> Result<Bytes, RebuildError> {
        let body_len = entry.len().saturating_sub(ENTRY_HEADER_BYTES);
        let total_len = entry_len(body_len, 0);
        let small = |len: usize| u32::try_from(len).map_err(|_large| RebuildError::TooLarge(len));
        let (lens, fields) = (
            (small(total_len)?, small(body_len)?),
            BatchFields { compression: Compression::None, record_count: kept, ..self.fields },
        );
        let (head, body) = entry.split_at_mut(ENTRY_HEADER_BYTES);
        let room = body.first_chunk_mut().expect("room was made for the fields");
        *room = fields.encode();
        let header = EntryHeader {
            total_len: lens.0,
            body_len: lens.1,
            body_crc: crc32fast::hash(body),
            trailer_len: 0,
            trailer_crc: 0,
            flags: self.header.flags | FLAG_REBUILT,
            cached_crc32c: 0,
            ..self.header
        };
        head.copy_from_slice(&header.encode());
        entry.resize(total_len, 0);
        Ok(entry.freeze())
    }

    fn views(&self) -> RecordViews<'_> {
        RecordViews::new(&self.fields, &self.records)
    }

    fn offset(&self, delta: u32) -> Offset {
        Offset(self.header.base_offset.0.saturating_add(u64::from(delta)))
    }
}

/// A whole entry like `entry`, with those records alone that `keep` says. Offsets, times, keys, values and
/// headers stay; see the module for the rest.
///
/// # Errors
/// The entry is damaged, no batch, or larger than the limit; or no record is kept.
pub fn rebuild(
    entry: &EntryView<'_>,
    keep: impl FnMut(Offset) -> bool,
    limits: DecodeLimits,
) -> Result<Bytes, RebuildError> {
    entry.check_body()?;
    EntryRecords::open(entry, limits)?.keep(keep)
}
