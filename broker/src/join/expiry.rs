//! Owns looking up how far the messages of a partition are too old. Never decides what becomes of them (core
//! does), and reads without any lock. Driven by the tick.

use postrider_core::partition::{Aged, ExpiryAsk};
use postrider_protocol::entry::{EntryHeader, EntryViews};
use postrider_protocol::message::Start;
use postrider_protocol::types::{Offset, TimestampMs};

use crate::join::leader::resolve;
use crate::join::partition::PartitionHandle;

/// None if the log cannot be read now: the next tick asks again.
pub(crate) fn look_up(partition: &PartitionHandle, ask: ExpiryAsk) -> Option<Aged> {
    let time = TimestampMs(ask.until.0.saturating_add(1));
    let before = match resolve(partition, &Start::Timestamp(time)) {
        Ok(before) => before,
        Err(error) => {
            tracing::warn!(partition = ?partition.key, %error, "expired messages wait for the disk");
            return None;
        }
    };
    Some(Aged { before, next: append_time(partition, before.max(ask.from)) })
}

/// When the message at an offset was appended; none at the end. One that cannot be read counts as just old
/// enough: it is looked at again soon, and reading evicts it.
fn append_time(partition: &PartitionHandle, offset: Offset) -> Option<TimestampMs> {
    let end = partition.high_watermark();
    if offset >= end {
        return None;
    }
    let run = partition.log.read(offset, end, 1).ok();
    let slices = run.iter().flat_map(|run| &run.slices);
    let first = slices.flat_map(|slice| EntryViews::new(slice)).find_map(Result::ok);
    Some(first.map_or(TimestampMs(0), |entry| entry.header.append_time))
}

/// The append time of the message at an offset, or of the entry that holds it; 0 if there is none.
pub(crate) fn append_time_of(partition: &PartitionHandle, offset: Offset) -> TimestampMs {
    let run = partition.log.read(offset, partition.high_watermark(), 1);
    let header = run.ok().and_then(|run| {
        let bytes = run.slices.first()?.clone();
        EntryHeader::decode(&bytes).ok()
    });
    header.map_or(TimestampMs(0), |header| header.append_time)
}
