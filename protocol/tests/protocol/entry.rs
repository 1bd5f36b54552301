//! Stored entries: every damaged bit of a header is found, and nothing is taken beyond its bytes.

use bytes::Bytes;
use postrider_protocol::{
    entry::{
        ENTRY_HEADER_BYTES, EntryError, EntryHeader, EntryIter, EntryKind, EntryViews,
        FLAG_REBUILT, entry_len, split_entry,
    },
    types::{Compression, EntryIndex, Offset},
};

use crate::samples::{batch, entry, records};

fn sample() -> Vec<u8> {
    entry(90, 148, &batch(Compression::None, &records()), b"trailer")
}

fn header() -> EntryHeader {
    EntryHeader::decode(&sample()).unwrap()
}

#[test]
fn entries_are_taken_apart_without_a_copy() {
    let mut bytes = Bytes::from([sample(), sample()].concat());
    let start = bytes.as_ptr() as usize;
    let first = split_entry(&mut bytes).unwrap();
    assert_eq!(first.body.as_ptr() as usize, start + ENTRY_HEADER_BYTES);
    assert_eq!(first.trailer, "trailer");
    assert_eq!(first.check_body(), Ok(()));
    assert_eq!(first.header.end_offset(), Offset(150));
    assert_eq!(first.header.next_index(), EntryIndex(91));
    assert_eq!(bytes.len(), sample().len());
    assert_eq!(EntryIter::new(bytes).count(), 1);
}

#[test]
fn header_bytes_decode_to_what_was_encoded() {
    let encoded = header().encode();
    assert_eq!(encoded, sample()[..ENTRY_HEADER_BYTES]);
    assert_eq!(EntryHeader::crc_of(&encoded), header().header_crc);
}

#[test]
fn every_flipped_bit_is_found() {
    let whole = sample();
    for at in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        let found = split_entry(&mut Bytes::from(damaged)).and_then(|entry| entry.check_body());
        assert!(found.is_err(), "bit {at}");
    }
}

#[test]
fn every_cut_is_short() {
    let whole = sample();
    for cut in 0..whole.len() {
        let mut bytes = Bytes::copy_from_slice(&whole[..cut]);
        assert_eq!(split_entry(&mut bytes), Err(EntryError::Short), "cut at {cut}");
        assert_eq!(bytes.len(), cut, "a failure takes nothing");
    }
}

#[test]
fn iteration_ends_after_the_first_error() {
    let bytes = [sample(), b"no entry".to_vec(), sample()].concat();
    let views: Vec<_> = EntryViews::new(&bytes).collect();
    assert_eq!(views.len(), 2);
    assert!(views[0].is_ok() && views[1].is_err());
    assert_eq!(EntryIter::new(bytes.into()).count(), 2);
}

#[test]
fn what_this_build_cannot_honour_is_refused() {
    let with = |change: fn(&mut EntryHeader)| {
        let mut header = header();
        change(&mut header);
        EntryHeader::decode(&header.encode()).map(|_| ())
    };
    assert_eq!(with(|header| header.flags = FLAG_REBUILT), Ok(()));
    assert_eq!(with(|header| header.flags = 0x8000), Ok(()));
    assert_eq!(with(|header| header.flags = 1 << 3), Err(EntryError::Flags(8)));
    assert_eq!(with(|header| header.total_len += 8), Err(EntryError::Length));
    assert_eq!(with(|header| header.body_len = u32::MAX), Err(EntryError::Length));
    assert_eq!(with(|header| header.record_count = 0), Err(EntryError::Field));
    assert_eq!(with(|header| header.kind = EntryKind::Seek), Err(EntryError::Field));
    assert_eq!(with(|header| header.base_offset = Offset(u64::MAX)), Err(EntryError::Field));
    assert_eq!(with(|header| header.index = EntryIndex(u64::MAX)), Err(EntryError::Field));

    let mut bytes = header().encode();
    bytes[56..58].copy_from_slice(&999u16.to_le_bytes());
    let crc = EntryHeader::crc_of(&bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(EntryHeader::decode(&bytes), Err(EntryError::Kind(999)));
    bytes[3] = b'2';
    assert_eq!(EntryHeader::decode(&bytes), Err(EntryError::Version(b'2')));
    bytes[0] = b'X';
    assert_eq!(EntryHeader::decode(&bytes), Err(EntryError::Magic));
}

#[test]
fn only_data_covers_offsets() {
    let mut header = header();
    header.kind = EntryKind::Delayed;
    assert_eq!(header.end_offset(), header.base_offset);
}

#[test]
fn lengths_are_rounded_up_and_never_wrap() {
    assert_eq!(entry_len(0, 0), 80);
    assert_eq!(entry_len(1, 0), 88);
    assert_eq!(entry_len(8, 0), 88);
    assert_eq!(entry_len(5, 4), 96);
    assert_eq!(entry_len(usize::MAX, 1), usize::MAX);
}

#[test]
fn kinds_have_their_numbers() {
    for (at, kind) in EntryKind::ALL.iter().enumerate() {
        assert_eq!(*kind as usize, at + 1);
        assert_eq!(EntryKind::from_u16(*kind as u16), Some(*kind));
    }
    assert_eq!(EntryKind::from_u16(0), None);
    assert_eq!(EntryKind::from_u16(18), None);
}
