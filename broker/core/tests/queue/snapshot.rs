//! Owns a snapshot that a broker without queues wrote, byte by byte: partitions that exist open as before.

use bytes::BufMut;
use postrider_core::cursors::Position;
use postrider_core::partition::{PartitionState, RunPlace, SubscriptionMode};
use postrider_protocol::types::{
    EntryIndex, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, SubscriptionId,
    TimestampMs,
};

use crate::stage::{Stage, policy};

const STREAM: SubscriptionId = SubscriptionId([3; 16]);

fn version_1(mode: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u8(1);
    // End index, end offset, append time, apply version.
    bytes.put_u64_le(7);
    bytes.put_u64_le(400);
    bytes.put_u64_le(5_000);
    bytes.put_u16_le(1);
    // Leaderships: epoch, start index, start offset.
    bytes.put_u32_le(1);
    bytes.put_u32_le(2);
    bytes.put_u64_le(1);
    bytes.put_u64_le(0);
    // The greatest expired producer.
    bytes.put_i64_le(4);
    // Sessions: producer, epoch, next sequence, last active, runs.
    bytes.put_u32_le(1);
    bytes.put_i64_le(5);
    bytes.put_u16_le(2);
    bytes.put_u64_le(312);
    bytes.put_u64_le(4_000);
    bytes.put_u32_le(2);
    // The first run: sequence 10, offset 30, time 3,000, 2 messages; varints of 7 bits.
    bytes.put_slice(&[10, 30, 0xb8, 0x17, 2]);
    // The second one: 0 sequences later, 58 offsets later, 1,000 ms later, 300 messages.
    bytes.put_slice(&[0, 58, 0xe8, 0x07, 0xac, 0x02]);
    // Subscriptions: id, mode, acknowledged, owner epoch.
    bytes.put_u32_le(1);
    bytes.put_slice(&STREAM.0);
    bytes.put_u8(mode);
    bytes.put_u64_le(20);
    bytes.put_u64_le(3);
    bytes
}

#[test]
fn a_snapshot_from_before_there_were_queues_decodes() {
    let state = PartitionState::decode_snapshot(&version_1(0)).unwrap();
    assert_eq!(state.end(), Position::new(EntryIndex(7), Offset(400)));
    assert_eq!(state.append_time(), TimestampMs(5_000));
    let epochs: Vec<_> = state.epochs().iter().map(|epoch| (epoch.epoch, epoch.start)).collect();
    assert_eq!(epochs, [(LeaderEpoch(2), Position::new(EntryIndex(1), Offset(0)))]);
    assert_eq!(state.producers().expired_max(), ProducerId(4));
    let session = state.producers().session(ProducerId(5)).unwrap();
    assert_eq!((session.epoch(), session.next_sequence()), (ProducerEpoch(2), Sequence(312)));
    let runs: Vec<_> = session
        .runs()
        .iter()
        .map(|run| (run.base_sequence.0, run.place, run.append_time.0, run.count))
        .collect();
    let at = |offset| RunPlace::Offsets(Offset(offset));
    assert_eq!(runs, [(10, at(30), 3_000, 2), (12, at(90), 4_000, 300)]);
    let stream = state.subscriptions().get(STREAM).unwrap();
    assert_eq!((stream.acked, stream.owner_epoch), (Offset(20), 3));
    assert_eq!(stream.mode, SubscriptionMode::Stream);
    assert_eq!(state.queues().count(), 0);
    let bytes = state.encode_snapshot();
    assert_eq!(PartitionState::decode_snapshot(&bytes), Ok(state), "and is written as it is now");
}

#[test]
fn a_snapshot_from_before_there_were_queues_holds_no_queue() {
    assert!(PartitionState::decode_snapshot(&version_1(1)).is_err());
    let mut longer = version_1(0);
    longer.push(0);
    assert!(PartitionState::decode_snapshot(&longer).is_err());
}

// L5
#[test]
fn a_snapshot_is_as_large_as_what_is_unsettled_and_not_as_what_was() {
    let size = |messages: u32| {
        let mut stage = Stage::new(policy());
        stage.attach(1);
        for _ in 0..messages / 100 {
            stage.publish(100);
            for (offset, attempt, _) in stage.lease(1, 100) {
                // The first message is never acknowledged.
                if offset > 0 {
                    assert_eq!(stage.ack(1, offset, attempt), None);
                }
            }
        }
        assert_eq!(stage.queue().unsettled(Offset(messages.into())), 1);
        stage.partition.state().encode_snapshot().len()
    };
    let (few, many) = (size(200), size(20_000));
    assert!(many < few + 64, "{few} bytes after 200 messages, {many} after 20,000");
}
