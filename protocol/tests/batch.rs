//! Batches: building, the broker's check, reading.

use bytes::Bytes;
use postrider_protocol::{
    batch::{Batch, BatchBuilder, DecodeLimits},
    message::Limits,
    record::Record,
    types::{Compression, ProducerEpoch, ProducerId, Sequence, TimestampMs},
};

fn record(n: u64) -> Record {
    Record {
        key: (n % 3 != 0).then(|| Bytes::from(format!("key-{n}"))),
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
