//! Owns the producers of a history: what they have sent, what they know of it, what they gave up.

use std::collections::{BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use postrider_core::partition::ConnectionId;
use postrider_protocol::batch::Batch;
use postrider_protocol::message::{AckLevel, PublishHead};
use postrider_protocol::types::{
    LeaderEpoch, PartitionId, ProducerEpoch, ProducerId, Sequence, TopicId,
};

use crate::random::Random;

pub(crate) struct Frame {
    pub(crate) head: PublishHead,
    pub(crate) batch: Batch,
    pub(crate) connection: ConnectionId,
}

pub(crate) struct Producer {
    pub(crate) id: i64,
    pub(crate) epoch: u16,
    pub(crate) connection: ConnectionId,
    pub(crate) leader_epoch: LeaderEpoch,
    next: u64,
    pub(crate) unresolved: BTreeSet<u64>,
    /// First sequences of the batches as they were sent first.
    boundaries: BTreeSet<u64>,
    /// On their way on the current connection.
    pub(crate) queue: VecDeque<Frame>,
    pub(crate) resend: bool,
}

impl Producer {
    pub(crate) fn new(
        id: i64,
        connection: ConnectionId,
        leader_epoch: LeaderEpoch,
        next: u64,
    ) -> Self {
        Self {
            id,
            epoch: 0,
            connection,
            leader_epoch,
            next,
            unresolved: BTreeSet::new(),
            boundaries: BTreeSet::new(),
            queue: VecDeque::new(),
            resend: false,
        }
    }

    pub(crate) fn send(&mut self, random: &mut Random) {
        let count = 1 + random.below(4);
        let base = self.next;
        self.next += count;
        self.boundaries.insert(base);
        self.unresolved.extend(base..base + count);
        self.enqueue(base, count);
    }

    fn enqueue(&mut self, base: u64, count: u64) {
        let resolved_upto = self.unresolved.first().copied().unwrap_or(self.next).min(base);
        let head = PublishHead {
            topic: TopicId([9; 16]),
            partition: PartitionId(0),
            leader_epoch: self.leader_epoch,
            producer: ProducerId(self.id),
            epoch: ProducerEpoch(self.epoch),
            ack: AckLevel::Quorum,
            keyed: false,
            seq_count: u32::try_from(count).unwrap(),
            base_sequence: Sequence(base),
            resolved_upto: Sequence(resolved_upto),
        };
        let batch = batch(&head);
        self.queue.push_back(Frame { head, batch, connection: self.connection });
    }

    /// Sends all that is unresolved again: in the old batches, or, as no good client does, in others.
    pub(crate) fn send_again(&mut self, random: &mut Random) {
        self.resend = false;
        let keep_batches = !random.one_in(4);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for sequence in &self.unresolved {
            let cut =
                if keep_batches { self.boundaries.contains(sequence) } else { random.one_in(3) };
            match runs.last_mut() {
                Some((base, count)) if *base + *count == *sequence && !cut => *count += 1,
                _ => runs.push((*sequence, 1)),
            }
        }
        for (base, count) in runs {
            self.enqueue(base, count);
        }
    }

    /// The connection is gone; what was on its way may still arrive.
    pub(crate) fn reconnect(&mut self, connection: ConnectionId) -> VecDeque<Frame> {
        self.connection = connection;
        self.resend = true;
        std::mem::take(&mut self.queue)
    }

    /// Begins a new epoch, or a new id, at `next`; what is unresolved stays unknown for ever.
    pub(crate) fn begin_again(&mut self, id: i64, epoch: u16, next: u64) {
        (self.id, self.epoch, self.next) = (id, epoch, next);
        self.unresolved.clear();
        self.boundaries.clear();
        self.queue.clear();
        self.resend = false;
    }
}

/// The smallest batch with these fields.
pub(crate) fn batch(head: &PublishHead) -> Batch {
    let mut body = BytesMut::with_capacity(48);
    body.put_u16(0);
    body.put_u32(head.seq_count - 1);
    body.put_u64(0);
    body.put_u64(0);
    body.put_i64(head.producer.0);
    body.put_u16(head.epoch.0);
    body.put_u32(u32::try_from(head.base_sequence.0 & 0x7fff_ffff).unwrap());
    body.put_u32(head.seq_count);
    // Different lengths, so that wrong accounting shows.
    body.put_bytes(0, usize::try_from(head.base_sequence.0 % 7).unwrap());
    let body: Bytes = body.freeze();
    Batch { body, crc: 0, record_count: head.seq_count }
}
