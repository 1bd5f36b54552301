//! One message of every kind about delayed messages, with fixed values: a part of `samples`.

use postrider_protocol::{
    message::{
        CancelDelayed, CancelDelayedReply, CancelVerdict, DelayId, DelayedPartition,
        DescribeDelayed, DescribeDelayedReply, PublishAtomic, PublishDelayed,
    },
    types::{Compression, EntryIndex, Offset, PartitionId, TimestampMs},
};

use crate::samples::{Sample, answered, asked, publish, text, told};

const DUE: TimestampMs = TimestampMs(1_790_000_060_000);

/// What is said about delayed messages.
pub(crate) fn delaying() -> Vec<Sample> {
    let delayed = PublishDelayed { deliver_at: DUE, publish: publish(Compression::None) };
    let at_an_offset =
        PublishAtomic { at: Some(Offset(4_711)), publish: publish(Compression::None) };
    let id = |index, position| DelayId { index: EntryIndex(index), position };
    let cancel = CancelDelayed {
        topic: text("orders"),
        partition: PartitionId(1),
        ids: vec![id(77, 0), id(77, 1), id(12, 0)],
    };
    let verdicts = vec![CancelVerdict::Cancelled, CancelVerdict::Released, CancelVerdict::Unknown];
    let partition = DelayedPartition {
        partition: PartitionId(1),
        scheduled: 40,
        next_due: Some(DUE),
        released: 1_000,
        cancelled: 3,
        lost: 0,
    };
    vec![
        told("publish-delayed", &delayed),
        told("publish-atomic", &at_an_offset),
        asked("cancel-delayed", &cancel),
        answered("cancel-delayed-reply", &CancelDelayedReply { verdicts }),
        asked("describe-delayed", &DescribeDelayed { topic: text("orders") }),
        answered("describe-delayed-reply", &DescribeDelayedReply { partitions: vec![partition] }),
    ]
}
