//! Owns the bytes of a topic's settings in metadata commands and in the image's snapshot. Never judges one.
//! Driven by `command` and `snapshot`.
//!
//! ```text
//! settings   u8 count | count x (u8 tag | u64 value), tags rising; what has its default is left out
//! change     u8 count | count x (u8 tag | option u64 value), tags rising; none = the default
//! tag  1 message_ttl_ms   2 expired (0 drop, 1 dead letter)   3 max_messages   4 max_bytes
//!      5 overflow (0 reject, 1 drop oldest, 2 dead letter)    6 dedup_window_ms
//! ```
//! So a setting that is added needs no new form: a tag that is not known means a later version of the broker.

use std::collections::BTreeMap;

use postrider_protocol::codec::{DecodeError, Reader, Wire, Writer};
use postrider_protocol::message::{BoundsChange, Expired, Overflow, TopicBounds};

const MESSAGE_TTL_MS: u8 = 1;
const EXPIRED: u8 = 2;
const MAX_MESSAGES: u8 = 3;
const MAX_BYTES: u8 = 4;
const OVERFLOW: u8 = 5;
const DEDUP_WINDOW_MS: u8 = 6;

pub(super) fn put_settings(out: &mut Writer<'_>, bounds: &TopicBounds) {
    let TopicBounds { message_ttl_ms, expired, max_messages, max_bytes, overflow, dedup_window_ms } =
        *bounds;
    let settings = [
        (MESSAGE_TTL_MS, message_ttl_ms),
        (EXPIRED, (expired != Expired::default()).then_some(expired as u64)),
        (MAX_MESSAGES, max_messages),
        (MAX_BYTES, max_bytes),
        (OVERFLOW, (overflow != Overflow::default()).then_some(overflow as u64)),
        (DEDUP_WINDOW_MS, dedup_window_ms),
    ];
    put_tagged(out, settings.into_iter().filter_map(|(tag, value)| Some((tag, value?))));
}

pub(super) fn take_settings(input: &mut Reader<'_>) -> Result<TopicBounds, DecodeError> {
    let mut settings = take_tagged::<u64>(input)?;
    let bounds = TopicBounds {
        message_ttl_ms: settings.remove(&MESSAGE_TTL_MS),
        expired: other_than_default(settings.remove(&EXPIRED), expired)?,
        max_messages: settings.remove(&MAX_MESSAGES),
        max_bytes: settings.remove(&MAX_BYTES),
        overflow: other_than_default(settings.remove(&OVERFLOW), overflow)?,
        dedup_window_ms: settings.remove(&DEDUP_WINDOW_MS),
    };
    if settings.is_empty() { Ok(bounds) } else { Err(UNKNOWN) }
}

pub(super) fn put_change(out: &mut Writer<'_>, change: &BoundsChange) {
    let BoundsChange {
        message_ttl_ms,
        expired,
        max_messages,
        max_bytes,
        overflow,
        dedup_window_ms,
    } = *change;
    let changes = [
        (MESSAGE_TTL_MS, message_ttl_ms),
        (EXPIRED, expired.map(|expired| Some(expired as u64))),
        (MAX_MESSAGES, max_messages),
        (MAX_BYTES, max_bytes),
        (OVERFLOW, overflow.map(|overflow| Some(overflow as u64))),
        (DEDUP_WINDOW_MS, dedup_window_ms),
    ];
    put_tagged(out, changes.into_iter().filter_map(|(tag, value)| Some((tag, value?))));
}

pub(super) fn take_change(input: &mut Reader<'_>) -> Result<BoundsChange, DecodeError> {
    let mut changes = take_tagged::<Option<u64>>(input)?;
    let change = BoundsChange {
        message_ttl_ms: changes.remove(&MESSAGE_TTL_MS),
        expired: changes
            .remove(&EXPIRED)
            .map(|value| value.and_then(expired).ok_or(UNKNOWN))
            .transpose()?,
        max_messages: changes.remove(&MAX_MESSAGES),
        max_bytes: changes.remove(&MAX_BYTES),
        overflow: changes
            .remove(&OVERFLOW)
            .map(|value| value.and_then(overflow).ok_or(UNKNOWN))
            .transpose()?,
        dedup_window_ms: changes.remove(&DEDUP_WINDOW_MS),
    };
    if changes.is_empty() { Ok(change) } else { Err(UNKNOWN) }
}

const UNKNOWN: DecodeError = DecodeError::Invalid("topic setting");

/// A choice that was left out, or one that is not the default: that one is left out.
fn other_than_default<T: Default + PartialEq>(
    value: Option<u64>,
    choice: fn(u64) -> Option<T>,
) -> Result<T, DecodeError> {
    let Some(value) = value else { return Ok(T::default()) };
    choice(value).filter(|choice| *choice != T::default()).ok_or(UNKNOWN)
}

fn expired(value: u64) -> Option<Expired> {
    Expired::from_u8(u8::try_from(value).ok()?)
}

fn overflow(value: u64) -> Option<Overflow> {
    Overflow::from_u8(u8::try_from(value).ok()?)
}

fn put_tagged<V: Wire>(out: &mut Writer<'_>, tagged: impl Iterator<Item = (u8, V)>) {
    let tagged: Vec<(u8, V)> = tagged.collect();
    out.put(&u8::try_from(tagged.len()).expect("each tag stands once"));
    for (tag, value) in &tagged {
        out.put(tag);
        out.put(value);
    }
}

fn take_tagged<V: Wire>(input: &mut Reader<'_>) -> Result<BTreeMap<u8, V>, DecodeError> {
    let mut tagged = BTreeMap::new();
    for _ in 0..input.take::<u8>()? {
        let tag = input.take()?;
        if tagged.last_key_value().is_some_and(|(last, _)| *last >= tag) {
            return Err(DecodeError::Invalid("order of topic settings"));
        }
        tagged.insert(tag, input.take()?);
    }
    Ok(tagged)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    const BOUNDS: TopicBounds = TopicBounds {
        message_ttl_ms: Some(5),
        expired: Expired::DeadLetter,
        max_messages: None,
        max_bytes: Some(7),
        overflow: Overflow::DropOldest,
        dedup_window_ms: Some(9),
    };

    fn bytes(bounds: &TopicBounds) -> BytesMut {
        let mut bytes = BytesMut::new();
        put_settings(&mut Writer::new(&mut bytes), bounds);
        bytes
    }

    #[test]
    fn settings_decode_to_what_was_encoded() {
        for bounds in [BOUNDS, TopicBounds::default()] {
            assert_eq!(take_settings(&mut Reader::new(&bytes(&bounds))), Ok(bounds));
        }
        let expected = [2, 1, 5, 0, 0, 0, 0, 0, 0, 0, 3, 9, 0, 0, 0, 0, 0, 0, 0];
        let some = TopicBounds {
            message_ttl_ms: Some(5),
            max_messages: Some(9),
            ..TopicBounds::default()
        };
        assert_eq!(bytes(&some)[..], expected, "the bytes stay as they are");
    }

    #[test]
    fn settings_of_a_later_version_or_in_two_forms_are_refused() {
        let with = |settings: &[(u8, u64)]| {
            let mut bytes = BytesMut::new();
            put_tagged(&mut Writer::new(&mut bytes), settings.iter().copied());
            take_settings(&mut Reader::new(&bytes))
        };
        assert!(with(&[(1, 5), (5, 2)]).is_ok());
        for refused in
            [&[(7, 1)][..], &[(0, 1)], &[(3, 1), (1, 1)], &[(5, 3)], &[(5, 0)], &[(2, 0)]]
        {
            assert!(with(refused).is_err(), "{refused:?}");
        }
    }
}
