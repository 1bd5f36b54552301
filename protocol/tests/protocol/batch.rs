//! Batches: building, the broker's check, reading; what is damaged or too large is told.

use bytes::{BufMut, Bytes, BytesMut};
use postrider_protocol::{
    batch::{BATCH_FIELD_BYTES, Batch, BatchBuilder, BatchError, DecodeLimits},
    compress::CompressError,
    message::Limits,
    record::{RECORD_HEADERS_MAX, Record, RecordError},
    types::{Compression, ProducerEpoch, ProducerId, Sequence, TimestampMs},
};

use crate::samples;

const EVERY_CODEC: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

fn record(n: u64) -> Record {
    Record {
        key: (!n.is_multiple_of(3)).then(|| Bytes::from(format!("key-{n}"))),
        value: (n % 7 != 6)
            .then(|| Bytes::from("v".repeat(usize::try_from(n * 13 % 300).unwrap()))),
        headers: (0..n % 4)
            .map(|h| (Bytes::from(format!("header-{h}")), (h > 0).then(|| Bytes::from("x"))))
            .collect(),
        timestamp: TimestampMs(1_700_000_000_000 + n * 5 % 17),
    }
}

fn build(compression: Compression, records: &[Record]) -> Batch {
    let mut builder = BatchBuilder::new(compression, 1024);
    for record in records {
        builder.push_record(record).unwrap();
    }
    builder.finish(ProducerId(7), ProducerEpoch(2), Sequence((1 << 40) + 5))
}

#[test]
fn records_come_back_as_they_were_in_every_compression() {
    let records: Vec<_> = (0..200).map(record).collect();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let batch = build(compression, &records);
        let fields = batch.validate(&Limits::default()).unwrap();
        assert_eq!(fields.compression, compression);
        assert_eq!(fields.base_sequence, 5);
        let read: Vec<_> =
            batch.records(DecodeLimits::default()).unwrap().map(Result::unwrap).collect();
        assert!(read.iter().enumerate().all(|(at, r)| at == r.offset_delta as usize));
        assert!(read.into_iter().map(|r| r.record).eq(records.iter().cloned()));
        let block = batch.block(DecodeLimits::default()).unwrap();
        for (view, record) in block.views().zip(&records) {
            let view = view.unwrap();
            assert_eq!(view.value, record.value.as_deref());
            assert_eq!(view.timestamp, record.timestamp);
            assert_eq!(view.headers().unwrap().count(), record.headers.len());
        }
    }
}

/// A batch with one change to its body, and a crc that fits again.
fn changed(batch: &Batch, change: impl FnOnce(&mut Vec<u8>)) -> Batch {
    let mut body = batch.body.to_vec();
    change(&mut body);
    Batch { crc: crc32fast::hash(&body), body: body.into(), record_count: batch.record_count }
}

fn small() -> Batch {
    samples::batch(Compression::None, &samples::records())
}

fn validated(batch: &Batch) -> Result<(), BatchError> {
    batch.validate(&Limits::default()).map(|_| ())
}

fn read(batch: &Batch) -> Result<Vec<Record>, BatchError> {
    batch
        .records(DecodeLimits::default())?
        .map(|record| record.map(|record| record.record))
        .collect()
}

#[test]
fn the_check_finds_every_flipped_bit() {
    let batch = small();
    for at in 0..batch.body.len() * 8 {
        let mut body = batch.body.to_vec();
        body[at / 8] ^= 1 << (at % 8);
        assert!(validated(&Batch { body: body.into(), ..batch.clone() }).is_err(), "bit {at}");
    }
    assert_eq!(validated(&Batch { crc: batch.crc ^ 1, ..batch }), Err(BatchError::Crc));
}

#[test]
fn the_check_finds_contradictions_though_the_crc_fits() {
    let batch = small();
    let with = |at: usize, bytes: &'static [u8]| {
        validated(&changed(&batch, |body| body[at..at + bytes.len()].copy_from_slice(bytes)))
    };
    assert_eq!(with(0, &[0, 1]), Err(BatchError::Codec(1)));
    assert_eq!(with(0, &[0, 2]), Err(BatchError::Codec(2)));
    assert_eq!(with(0, &[0, 8]), Err(BatchError::Attributes(8)));
    assert_eq!(with(2, &[0, 0, 0, 2]), Err(BatchError::Count));
    assert_eq!(with(2, &[0xff; 4]), Err(BatchError::Count));
    assert_eq!(with(6, &[0xff; 8]), Err(BatchError::Timestamp));
    assert_eq!(with(14, &[0x80]), Err(BatchError::Timestamp));
    assert_eq!(with(32, &[0x80]), Err(BatchError::Producer));
    assert_eq!(with(36, &[0; 4]), Err(BatchError::Count));
    assert_eq!(validated(&Batch { record_count: 3, ..batch.clone() }), Err(BatchError::Count));
    let cut = changed(&batch, |body| body.truncate(BATCH_FIELD_BYTES - 1));
    assert_eq!(validated(&cut), Err(BatchError::Short(39)));
    let limits = Limits { batch_bytes_max: 60, ..Limits::default() };
    let bytes = batch.body.len();
    assert_eq!(batch.validate(&limits), Err(BatchError::TooLarge { bytes, max: 60 }));
}

#[test]
fn producer_fields_are_compared_with_the_publish() {
    let publish = samples::publish(Compression::None);
    let fields = publish.batch.fields().unwrap();
    assert_eq!(fields.check_head(&publish.head), Ok(()));
    let mut other = publish.head;
    other.base_sequence.0 += 1;
    assert_eq!(fields.check_head(&other), Err(BatchError::Producer));
    other = publish.head;
    other.epoch.0 += 1;
    assert_eq!(fields.check_head(&other), Err(BatchError::Producer));
    other = publish.head;
    other.producer = ProducerId::NONE;
    assert_eq!(fields.check_head(&other), Err(BatchError::Producer));
    other = publish.head;
    other.seq_count += 1;
    assert_eq!(fields.check_head(&other), Err(BatchError::Count));
}

#[test]
fn readers_find_records_that_do_not_fill_the_batch() {
    let batch = small();
    let whole = read(&batch).unwrap();
    assert_eq!(whole, samples::records());
    for cut in BATCH_FIELD_BYTES..batch.body.len() {
        assert!(read(&changed(&batch, |body| body.truncate(cut))).is_err(), "cut at {cut}");
    }
    assert_eq!(read(&changed(&batch, |body| body.push(0))), Err(BatchError::Count));
    let fewer = changed(&batch, |body| body[39] = 1);
    assert_eq!(read(&fewer), Err(BatchError::Count));
    let repeated = changed(&batch, |body| {
        let record = body.split_off(body.len() - 7); // the second record: 6 bytes and its length
        assert_eq!(record, [12, 0, 1, 2, 1, 1, 0]);
        body.extend([12, 0, 1, 0, 1, 1, 0]); // offset delta 0 again
    });
    assert_eq!(read(&repeated), Err(BatchError::Count));
}

#[test]
fn views_and_shared_records_agree_on_damage() {
    let batch = small();
    for at in BATCH_FIELD_BYTES..batch.body.len() {
        for flip in [1, 0x10, 0x80] {
            let damaged = changed(&batch, |body| body[at] ^= flip);
            let block = damaged.block(DecodeLimits::default()).unwrap();
            let views = block.views().try_for_each(|view| {
                view?.headers()?.try_for_each(|header| header.map(|_| ()))?;
                Ok::<_, BatchError>(())
            });
            assert_eq!(views.is_ok(), read(&damaged).is_ok(), "byte {at} ^ {flip}");
        }
    }
}

/// The records section of a batch of one record with these bytes after its length.
fn one_record(record: &[u8]) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None, 0);
    builder.push(None, None, &[], TimestampMs(5)).unwrap();
    let batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
    changed(&batch, |body| {
        body.truncate(BATCH_FIELD_BYTES);
        body.push(u8::try_from(record.len() * 2).unwrap());
        body.extend_from_slice(record);
    })
}

#[test]
fn records_are_canonical() {
    let outcome = |record: &[u8]| {
        read(&one_record(record)).map(|_| ()).map_err(|error| match error {
            BatchError::Record(error) => error,
            other => panic!("{other}"),
        })
    };
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 0]), Ok(()));
    assert_eq!(outcome(&[1, 0, 0, 1, 1, 0]), Err(RecordError::Field), "attributes");
    assert_eq!(outcome(&[0, 11, 0, 1, 1, 0]), Err(RecordError::Timestamp), "below 0");
    assert_eq!(outcome(&[0, 0, 1, 1, 1, 0]), Err(RecordError::Field), "negative delta");
    assert_eq!(outcome(&[0, 0, 0, 3, 1, 0]), Err(RecordError::Field), "length -2");
    assert_eq!(outcome(&[0, 0x80, 0, 0, 1, 1, 0]), Err(RecordError::Short), "long varint");
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 0, 0]), Err(RecordError::Trailing));
    assert_eq!(outcome(&[0, 0, 0, 1, 1]), Err(RecordError::Short), "no header count");
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 1]), Err(RecordError::Field), "-1 headers");
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 2, 2, b'n', 1]), Ok(()), "a header");
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 2, 1, 1]), Err(RecordError::Field), "no name");
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 2, 2, 0xff, 1]), Err(RecordError::HeaderName));
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 2, 2, b'n', 1, 9]), Err(RecordError::Trailing));
    assert_eq!(outcome(&[0, 0, 0, 1, 1, 0xfe, 0xff, 0x7f]), Err(RecordError::Headers));
}

#[test]
fn a_push_that_is_refused_changes_nothing() {
    let mut builder = BatchBuilder::new(Compression::None, 0);
    builder.push(Some(b"k"), Some(b"v"), &[], TimestampMs(9)).unwrap();
    let before = builder.estimated_bytes();
    let headers = vec![(Bytes::from_static(b"n"), None); RECORD_HEADERS_MAX + 1];
    assert_eq!(
        builder.push(None, None, &headers, TimestampMs(1)),
        Err(RecordError::Headers.into())
    );
    assert_eq!((builder.estimated_bytes(), builder.count()), (before, 1));
    builder.push(None, None, &headers[1..], TimestampMs(1)).unwrap();
    let batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
    assert_eq!(read(&batch).unwrap()[1].headers.len(), RECORD_HEADERS_MAX);
}

#[test]
fn the_estimate_is_the_size_without_compression() {
    let mut builder = BatchBuilder::new(Compression::None, 0);
    for n in 0..500 {
        builder.push_record(&record(n)).unwrap();
    }
    let estimate = builder.estimated_bytes();
    let batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
    assert_eq!(batch.body.len(), estimate);
}

#[test]
fn a_buffer_is_used_again() {
    let mut buffer = BytesMut::with_capacity(4096);
    buffer.put_slice(b"left from before");
    let mut builder = BatchBuilder::with_buffer(Compression::None, buffer);
    assert!(builder.is_empty());
    builder.push(None, Some(b"v"), &[], TimestampMs(1)).unwrap();
    let batch = builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(0));
    assert_eq!(validated(&batch), Ok(()));
    assert!(batch.body.try_into_mut().unwrap().capacity() >= 4096);
}

#[test]
fn what_does_not_shrink_is_not_compressed() {
    for compression in EVERY_CODEC {
        let batch = build(compression, &[record(1)]);
        assert_eq!(batch.fields().unwrap().compression, Compression::None);
        assert_eq!(read(&batch), Ok(vec![record(1)]));
    }
}

#[test]
fn decompression_stops_at_the_limit() {
    let zeros = Record { value: Some(vec![0; 4 << 20].into()), ..record(1) };
    for compression in [Compression::Lz4, Compression::Zstd] {
        let batch = build(compression, std::slice::from_ref(&zeros));
        assert!(batch.body.len() < 1 << 16);
        let limits = DecodeLimits { records_bytes_max: 1 << 20 };
        let refused = batch.records(limits).map(|_| ());
        assert_eq!(refused, Err(CompressError::TooLarge(1 << 20).into()));
        assert_eq!(read(&batch), Ok(vec![zeros.clone()]));
    }
}

#[test]
fn damaged_compressed_records_are_told() {
    let records: Vec<_> = (0..50).map(record).collect();
    for compression in [Compression::Lz4, Compression::Zstd] {
        let batch = build(compression, &records);
        let damaged = Err(CompressError::Damaged(compression).into());
        assert_eq!(read(&changed(&batch, |body| body.push(0))), damaged, "a byte too many");
        assert_eq!(read(&changed(&batch, |body| body[40] ^= 1)), damaged, "magic");
        let twice = changed(&batch, |body| body.extend_from_within(40..));
        assert_eq!(read(&twice), damaged, "two frames");
        for cut in [40, 41, 44, 60, batch.body.len() - 5] {
            assert!(read(&changed(&batch, |body| body.truncate(cut))).is_err(), "cut at {cut}");
        }
        for at in (40..batch.body.len()).step_by(3) {
            let _any = read(&changed(&batch, |body| body[at] ^= 0x55));
        }
    }
}

#[test]
fn message_sizes_are_checked_only_where_they_can_be_above() {
    let of_size = |bytes: usize| Record {
        value: Some(vec![0x5a; bytes - 8].into()), // attributes, 2 deltas, key, 2 of length, headers
        timestamp: TimestampMs(1),
        ..Record::default()
    };
    let batch = build(Compression::None, &[of_size(100), of_size(300), of_size(200)]);
    assert_eq!(batch.check_message_sizes(u32::MAX), Ok(()));
    let above = batch.check_message_sizes(298);
    assert!(matches!(above, Err(BatchError::TooLarge { bytes: 299 | 300, max: 298 })), "{above:?}");
    assert_eq!(batch.check_message_sizes(300), Ok(()));
    let packed = build(Compression::Zstd, &[of_size(300)]);
    assert_eq!(packed.check_message_sizes(10), Ok(()), "the publisher checks those");
}
