//! Owns the naive log: a vector of entries and how many are ready. Beside each batch stands what the
//! producer said its sequences are, which the stored bytes only hint at.

use std::collections::BTreeMap;

use bytes::Bytes;
use postrider_core::cursors::Position;
use postrider_core::partition::{Appended, AppliedEntry, EntryDraft, PartitionState};
use postrider_protocol::entry::{Entry, EntryHeader, EntryKind, entry_len};
use postrider_protocol::message::PublishHead;
use postrider_protocol::types::{Offset, TimestampMs};

/// Producer, epoch, sequence.
pub(crate) type Name = (i64, u16, u64);

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) entries: Vec<Entry>,
    /// Per entry: the first name of a batch, and how many.
    batches: Vec<Option<(Name, u32)>>,
    /// Where each name is stored.
    pub(crate) offsets: BTreeMap<Name, Offset>,
    pub(crate) ready: usize,
}

impl Log {
    pub(crate) fn end(&self) -> Position {
        self.position(self.entries.len())
    }

    pub(crate) fn position(&self, len: usize) -> Position {
        match len.checked_sub(1) {
            None => Position::default(),
            Some(last) => {
                let header = &self.entries[last].header;
                Position::new(header.next_index(), header.end_offset())
            }
        }
    }

    pub(crate) fn append(&mut self, draft: EntryDraft, head: Option<&PublishHead>) -> Appended {
        let end = self.end();
        let last_time =
            self.entries.last().map_or(TimestampMs(0), |entry| entry.header.append_time);
        let append_time = last_time.max(draft.append_time);
        let header = EntryHeader {
            header_crc: 0,
            total_len: u32::try_from(entry_len(draft.body.len(), draft.trailer.len())).unwrap(),
            body_len: u32::try_from(draft.body.len()).unwrap(),
            body_crc: draft.body_crc,
            trailer_len: 0,
            index: end.index,
            base_offset: end.offset,
            leader_epoch: draft.leader_epoch,
            prev_header_crc: 0,
            append_time,
            kind: draft.kind,
            flags: draft.flags,
            record_count: draft.record_count,
            seq_count: draft.seq_count,
            key_id: 0,
            trailer_crc: 0,
            cached_crc32c: 0,
        };
        let batch =
            (draft.kind == EntryKind::Data).then(|| head.expect("a publish")).and_then(|head| {
                let name = (head.producer.0, head.epoch.0, head.base_sequence.0);
                (name.0 >= 0).then_some((name, head.seq_count))
            });
        if let Some((name, count)) = batch {
            for i in 0..u64::from(count) {
                let before =
                    self.offsets.insert((name.0, name.1, name.2 + i), Offset(end.offset.0 + i));
                assert!(before.is_none(), "{name:?} + {i} is stored twice, first at {before:?}");
            }
        }
        self.batches.push(batch);
        self.entries.push(Entry { header, body: draft.body, trailer: Bytes::new() });
        Appended { index: end.index, base_offset: end.offset, append_time }
    }

    /// Keeps the first `len` entries, as a crash does.
    pub(crate) fn cut(&mut self, len: usize) {
        assert!(len >= self.ready, "what is ready is never lost");
        self.entries.truncate(len);
        for (name, count) in self.batches.drain(len..).flatten() {
            for i in 0..u64::from(count) {
                self.offsets.remove(&(name.0, name.1, name.2 + i));
            }
        }
        self.ready = len;
    }

    /// Applies the ready entries that `state` does not know yet.
    pub(crate) fn fold_ready(&self, state: &mut PartitionState) {
        let from = usize::try_from(state.end().index.0).unwrap();
        for entry in &self.entries[from..self.ready] {
            state.apply(&AppliedEntry::from_entry(entry).unwrap()).unwrap();
        }
    }

    /// Whether this name lies below the ready end.
    pub(crate) fn is_ready(&self, offset: Offset) -> bool {
        offset < self.position(self.ready).offset
    }

    /// Sequences of one session rise, and only what its producer gave up is missing between them.
    pub(crate) fn check_order(&self, given_up: impl Fn(Name) -> bool) {
        let mut next: BTreeMap<(i64, u16), u64> = BTreeMap::new();
        for (name, count) in self.batches.iter().flatten() {
            let next = next.entry((name.0, name.1)).or_insert(0);
            assert!(*next <= name.2, "{name:?} stands behind {next}");
            // Sessions that begin far above zero gave up everything below at once.
            let from = if *next == 0 && name.2 > 1_000_000 { name.2 } else { *next };
            for missing in from..name.2 {
                let missing = (name.0, name.1, missing);
                assert!(given_up(missing), "{missing:?} is missing below {name:?}");
            }
            *next = name.2 + u64::from(*count);
        }
    }

    /// The header of the batch that holds this offset.
    pub(crate) fn header_at(&self, offset: Offset) -> &EntryHeader {
        let at = self.entries.partition_point(|entry| entry.header.end_offset() <= offset);
        &self.entries[at].header
    }

    /// All names of the batch in flight that holds this one.
    pub(crate) fn batch_in_flight(&self, name: Name) -> Vec<Name> {
        let (first, count) = self.batches[self.ready..]
            .iter()
            .flatten()
            .find(|(first, count)| {
                (first.0, first.1) == (name.0, name.1)
                    && (first.2..first.2 + u64::from(*count)).contains(&name.2)
            })
            .unwrap_or_else(|| panic!("{name:?} is in flight"));
        (0..u64::from(*count)).map(|i| (first.0, first.1, first.2 + i)).collect()
    }
}
