//! Rebuilt entries: what is kept comes back as it was, by every reader; and damage is never hidden.

use bytes::Bytes;
use postrider_protocol::{
    batch::{Batch, BatchError, BatchRecord, DecodeLimits},
    entry::{
        Entry, EntryError, EntryHeader, EntryIter, EntryKind, EntryView, EntryViews,
        FLAG_ENCRYPTED, FLAG_REBUILT, split_entry,
    },
    rebuild::{EntryRecords, RebuildError, rebuild},
    record::Record,
    types::{Compression, Offset},
};
use proptest::{collection::vec, prelude::*};

use crate::{
    properties::{codec, record},
    samples::{batch, entry, records},
};

fn stored(compression: Compression, records: &[Record]) -> Vec<u8> {
    entry(90, 148, &batch(compression, records), b"trailer")
}

fn view(bytes: &[u8]) -> EntryView<'_> {
    EntryView::split(bytes).unwrap().0
}

fn only(bytes: Bytes) -> Entry {
    let mut entries = EntryIter::new(bytes);
    let entry = entries.next().unwrap().unwrap();
    assert!(entries.next().is_none(), "one entry was made");
    entry.check_body().unwrap();
    entry
}

fn read(entry: &Entry) -> Vec<BatchRecord> {
    let batch = Batch::of_entry(entry);
    batch.records(DecodeLimits::default()).unwrap().map(Result::unwrap).collect()
}

fn kept(bytes: &[u8], keep: impl FnMut(Offset) -> bool) -> Result<Bytes, RebuildError> {
    rebuild(&view(bytes), keep, DecodeLimits::default())
}

#[test]
fn a_rebuilt_entry_stands_at_the_place_of_the_stored_one() {
    let bytes = stored(Compression::None, &records());
    let before = view(&bytes).header;
    let after = only(kept(&bytes, |offset| offset == Offset(149)).unwrap());
    let expected = EntryHeader {
        header_crc: after.header.header_crc,
        total_len: after.header.total_len,
        body_len: after.header.body_len,
        body_crc: after.header.body_crc,
        trailer_len: 0,
        trailer_crc: 0,
        flags: FLAG_REBUILT,
        ..before
    };
    assert_eq!(after.header, expected);
    assert_eq!(after.header.end_offset(), Offset(150), "it covers the offsets that it covered");
    let fields = Batch::of_entry(&after).fields().unwrap();
    assert_eq!((fields.record_count, fields.last_offset_delta), (1, 1));
    assert_eq!(read(&after), [BatchRecord { offset_delta: 1, record: records()[1].clone() }]);
}

#[test]
fn damage_is_never_given_a_new_crc() {
    let whole = stored(Compression::None, &records());
    let body = 80..80 + view(&whole).body.len();
    for at in body {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        assert_eq!(kept(&damaged, |_| true), Err(EntryError::BodyCrc.into()), "byte {at}");
    }
}

/// The sample with another header.
fn with_header(change: fn(&mut EntryHeader)) -> Vec<u8> {
    let mut bytes = stored(Compression::None, &records());
    let mut header = view(&bytes).header;
    change(&mut header);
    bytes[..80].copy_from_slice(&header.encode());
    bytes
}

#[test]
fn what_cannot_be_rebuilt_is_refused() {
    let whole = stored(Compression::None, &records());
    assert_eq!(kept(&whole, |_| false), Err(RebuildError::Nothing));
    let encrypted = with_header(|header| header.flags = FLAG_ENCRYPTED);
    assert_eq!(kept(&encrypted, |_| true), Err(RebuildError::Encrypted));
    let seek = with_header(|header| (header.kind, header.record_count) = (EntryKind::Seek, 0));
    assert_eq!(kept(&seek, |_| true), Err(RebuildError::Kind(EntryKind::Seek)));
    let narrow = with_header(|header| header.record_count = 1);
    assert_eq!(kept(&narrow, |_| true), Err(BatchError::Count.into()));
}

#[test]
fn decompression_is_bounded() {
    let value = Some(Bytes::from(vec![b'x'; 1 << 16]));
    let large = Record { value, ..Record::default() };
    for codec in [Compression::Lz4, Compression::Zstd] {
        let bytes = stored(codec, std::slice::from_ref(&large));
        let limits = DecodeLimits { records_bytes_max: 1 << 15 };
        let refused = rebuild(&view(&bytes), |_| true, limits);
        assert!(
            matches!(refused, Err(RebuildError::Batch(BatchError::Compress(_)))),
            "{refused:?}"
        );
        assert!(EntryRecords::open(&view(&bytes), limits).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kept_records_come_back_as_they_were(
        records in vec((record(), any::<bool>()), 1..30),
        codec in codec(),
        again in any::<u64>(),
    ) {
        let (records, keep): (Vec<_>, Vec<_>) = records.into_iter().unzip();
        let bytes = stored(codec, &records);
        let all = read(&split_entry(&mut bytes.clone().into()).unwrap());
        let delta = |offset: Offset| u32::try_from(offset.0 - 148).unwrap();
        let first = |offset: Offset| keep[delta(offset) as usize];
        let second = |offset: Offset| again >> (delta(offset) % 64) & 1 == 1;

        let rebuilt = kept(&bytes, first);
        let wanted: Vec<_> = all.iter().filter(|one| keep[one.offset_delta as usize]).cloned().collect();
        prop_assert_eq!(rebuilt.is_ok(), !wanted.is_empty());
        let Ok(rebuilt) = rebuilt else { return Ok(()) };
        prop_assert_eq!(&read(&only(rebuilt.clone())), &wanted);

        // A rebuilt entry is an entry: it can be rebuilt.
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|one| second(Offset(148 + u64::from(one.offset_delta))))
            .collect();
        let twice = kept(&rebuilt, second);
        prop_assert_eq!(twice.is_ok(), !wanted.is_empty());
        if let Ok(twice) = twice {
            prop_assert_eq!(read(&only(twice)), wanted);
        }
        prop_assert_eq!(EntryViews::new(&rebuilt).count(), 1);
    }

    #[test]
    fn keys_are_those_of_the_records(records in vec(record(), 1..30), codec in codec()) {
        let bytes = stored(codec, &records);
        let opened = EntryRecords::open(&view(&bytes), DecodeLimits::default()).unwrap();
        let read: Vec<_> = opened.keys().map(Result::unwrap).collect();
        let wanted: Vec<_> =
            (148..).map(Offset).zip(records.iter().map(|one| one.key.as_deref())).collect();
        prop_assert_eq!(read, wanted);
    }
}
