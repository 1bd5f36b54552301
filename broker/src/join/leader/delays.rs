//! Owns what a partition's leader does about delayed messages under its lock. Never reads one from the log
//! (`join/delays.rs` does, without the lock). Driven by sessions and by the tick.

use std::sync::Arc;

use postrider_core::delay::Due;
use postrider_core::partition::{Keyed, Payload};
use postrider_protocol::message::{DelayId, DelayedPartition, PublishDelayed};
use postrider_protocol::types::{CorrelationId, EntryIndex};

use super::{Leader, Route};
use crate::join::outbox::Outbox;
use crate::join::partition::{PartitionHandle, Turn};

impl Leader {
    /// Decides a batch with a delay and queues it. The caller has validated it.
    pub(crate) fn publish_delayed(
        &mut self,
        partition: &PartitionHandle,
        delayed: &PublishDelayed,
        keys: &[Keyed],
        outbox: &Arc<Outbox>,
        turn: &Turn<'_>,
    ) {
        let PublishDelayed { deliver_at, publish } = delayed;
        let request = self.request(partition, publish, keys, outbox);
        let decision = self.core.publish_delayed(turn.now, request, *deliver_at, &mut self.effects);
        self.charge_and_follow(partition, decision, publish.batch.body.len(), outbox);
    }

    /// Takes delayed messages back.
    pub(crate) fn cancel_delayed(
        &mut self,
        partition: &PartitionHandle,
        ids: Vec<DelayId>,
        (outbox, correlation): (&Arc<Outbox>, CorrelationId),
        turn: &Turn<'_>,
    ) {
        let route = Route::CancelDelayed(Arc::clone(outbox), correlation);
        let decision = self.core.cancel_delayed(turn.now, ids, route, &mut self.effects);
        self.follow(partition, decision);
    }

    /// Takes what is due, to be read and given to [`Leader::release`].
    pub(crate) fn due_releases(&mut self, turn: &Turn<'_>) -> Vec<Due> {
        self.core.due_releases(turn.now)
    }

    /// Releases what was read, in its order: behind one that the store refuses, all others wait too.
    pub(crate) fn release(
        &mut self,
        partition: &PartitionHandle,
        read: Vec<(Due, Payload)>,
        turn: &Turn<'_>,
    ) {
        let mut refused = false;
        for (due, payload) in read {
            refused |= matches!(payload, Payload::Later);
            let payload = if refused { Payload::Later } else { payload };
            if let Some(pending) = self.core.release(turn.now, &due, payload) {
                refused |= !self.append(partition, pending);
            }
        }
        self.watch_queues(partition);
    }

    /// A leadership begins: the tick comes for what waits.
    pub(crate) fn begin_delays(&mut self, partition: &PartitionHandle) {
        partition.set_scheduled(self.state().delays().messages());
        self.count_keys(partition);
        self.watch_queues(partition);
    }

    /// Counts what the newest entries did to delayed messages.
    pub(super) fn count_delays(&mut self, partition: &PartitionHandle) {
        let totals = self.state().delays().totals();
        let before = std::mem::replace(&mut self.delay_totals, totals);
        if totals == before {
            return;
        }
        let counters = &partition.hub.counters;
        counters.delays_scheduled.add(totals.scheduled - before.scheduled);
        counters.delays_released.add(totals.released - before.released);
        counters.delays_cancelled.add(totals.cancelled - before.cancelled);
        counters.delays_lost.add(totals.lost - before.lost);
        partition.set_scheduled(self.state().delays().messages());
    }

    /// The first entry that the log must keep for a delayed message.
    pub(crate) fn delay_floor(&self) -> Option<EntryIndex> {
        self.state().delays().floor()
    }

    /// The partition's delayed messages by numbers; none if it never had any.
    pub(crate) fn delayed(&self, partition: &PartitionHandle) -> Option<DelayedPartition> {
        let lane = self.state().delays();
        let totals = lane.totals();
        (!lane.is_unused()).then(|| DelayedPartition {
            partition: partition.partition(),
            scheduled: lane.messages(),
            next_due: self.core.next_due(),
            released: totals.released,
            cancelled: totals.cancelled,
            lost: totals.lost,
        })
    }
}
