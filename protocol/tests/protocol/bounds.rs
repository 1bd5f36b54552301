//! Strictness and bounds: every cut, every tail, every changed byte; and no list longer than its bytes.

use bytes::{BufMut, Bytes, BytesMut};
use postrider_protocol::{
    codec::{DecodeError, LIST_ITEMS_MAX, STRING_BYTES_MAX},
    message::{CreateTopic, Message, Metadata, MetadataReply, Publish, Subscribe},
};

use crate::samples;

#[test]
fn every_cut_of_every_body_is_refused() {
    for sample in samples::all() {
        let body = samples::body_of(&sample);
        for cut in 0..body.len() {
            let decoded = (sample.recode)(body.slice(..cut));
            // A confirm ends between two runs; batches and entries are checked later.
            let open_end = match sample.name {
                "confirm" => decoded.is_ok_and(|(_, again)| again == body.slice(..cut)),
                name if name.starts_with("publish") => cut >= 64,
                "deliver" => cut >= 40,
                "replica-entries" => cut >= 56,
                "lease" => cut >= 40 + 3 * 20,
                _ => false,
            };
            let refused = (sample.recode)(body.slice(..cut)).is_err();
            assert!(refused || open_end, "{} cut at {cut}", sample.name);
        }
    }
}

#[test]
fn a_byte_too_many_is_refused() {
    for sample in samples::all() {
        if sample.name.starts_with("publish")
            || matches!(sample.name, "deliver" | "lease" | "replica-entries")
        {
            continue; // batches and entries are checked later
        }
        let long = [samples::body_of(&sample).as_ref(), &[0]].concat();
        assert!((sample.recode)(long.into()).is_err(), "{}", sample.name);
    }
}

#[test]
fn whatever_decodes_encodes_to_the_same_bytes() {
    for sample in samples::all() {
        let body = samples::body_of(&sample);
        for at in 0..body.len() {
            for change in [1, 0x80, 0xff] {
                let mut changed = body.to_vec();
                changed[at] ^= change;
                if let Ok((_, again)) = (sample.recode)(changed.clone().into()) {
                    assert_eq!(again, changed, "{} byte {at}", sample.name);
                }
            }
        }
    }
}

/// A body of `fields` and then a list that claims `count` items and has `bytes` bytes.
fn with_claim(fields: &[u8], count: u32, bytes: usize) -> Bytes {
    let mut body = BytesMut::from(fields);
    body.put_u32_le(count);
    body.put_bytes(0, bytes);
    body.freeze()
}

#[test]
fn a_list_cannot_claim_more_than_its_bytes() {
    for (count, bytes) in [(u32::MAX, 0), (1, 0), (3, 5), (1 << 31, 64), (u32::MAX, 1 << 16)] {
        assert_eq!(
            Metadata::decode(with_claim(&[], count, bytes)),
            Err(DecodeError::ListTooLong(count))
        );
        let broker_list = with_claim(&[0; 16], count, bytes);
        assert_eq!(MetadataReply::decode(broker_list), Err(DecodeError::ListTooLong(count)));
    }
}

#[test]
fn a_list_has_a_bound_of_its_own() {
    let above = LIST_ITEMS_MAX + 1;
    let body = with_claim(&[], above, usize::try_from(above).unwrap() * 2);
    assert_eq!(Metadata::decode(body), Err(DecodeError::ListTooLong(above)));
}

#[test]
fn strings_are_bounded_and_utf8() {
    let topic = |name: &str| Metadata { topics: vec![name.to_owned()] };
    let recode = |message: &Metadata| {
        let mut body = BytesMut::new();
        message.encode(&mut body);
        Metadata::decode(body.freeze())
    };
    let longest = topic(&"x".repeat(STRING_BYTES_MAX));
    assert_eq!(recode(&longest), Ok(longest));
    for len in [STRING_BYTES_MAX + 1, 65_535, 65_536, 200_000] {
        let refused = DecodeError::StringTooLong(len.min(65_535));
        assert_eq!(recode(&topic(&"x".repeat(len))), Err(refused));
    }
    let mut body = with_claim(&[], 1, 0).to_vec();
    body.extend([2, 0, 0xff, 0xfe]);
    assert_eq!(Metadata::decode(body.into()), Err(DecodeError::Utf8));
}

#[test]
fn values_have_one_encoding() {
    let mut body = BytesMut::new();
    let message = samples::all().into_iter().find(|sample| sample.name == "create-topic").unwrap();
    body.extend_from_slice(&samples::body_of(&message));
    *body.last_mut().unwrap() = 2; // if_not_exists
    assert_eq!(CreateTopic::decode(body.freeze()), Err(DecodeError::Invalid("truth value")));

    let subscribe = samples::all().into_iter().find(|sample| sample.name == "subscribe").unwrap();
    let mut body = samples::body_of(&subscribe).to_vec();
    let start = body.len() - 8 - 9;
    assert_eq!(body[start], 3);
    body[start] = 5;
    assert_eq!(Subscribe::decode(body.into()), Err(DecodeError::Invalid("start")));
}

#[test]
fn a_publish_head_has_only_defined_values() {
    let publish = samples::all().into_iter().find(|sample| sample.name == "publish").unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut body = samples::body_of(&publish).to_vec();
        body[at..at + bytes.len()].copy_from_slice(bytes);
        Publish::decode(body.into()).map(|_| ())
    };
    let invalid = |what| Err(DecodeError::Invalid(what));
    assert_eq!(with(24, &(-1i64).to_le_bytes()), Ok(()));
    assert_eq!(with(24, &(-2i64).to_le_bytes()), invalid("producer id"));
    assert_eq!(with(34, &[3]), invalid("ack level"));
    assert_eq!(with(35, &[0]), Ok(()));
    assert_eq!(with(35, &[2]), invalid("flags of a publish"));
    assert_eq!(with(36, &[0; 4]), invalid("count of sequences"));
    assert_eq!(with(40, &[0xff; 8]), invalid("sequence"));
}
