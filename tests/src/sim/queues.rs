//! Owns what a run does with queues besides consuming: how they are made, and their judgement at the end. Never
//! moves time. Driven by the world.

use std::collections::BTreeMap;

use postrider_protocol::message::{
    Breaker, CreateQueue, CreateSubscription, DescribeQueue, DescribeQueueReply, Expired, Overflow,
    QueuePartition, QueuePolicy, Start, TopicBounds,
};
use postrider_protocol::types::Durability;
use postrider_storage::disk_sim::SimRandom;

use super::consumer::WorkPlan;
use super::letters::Letters;
use super::oracle::Oracle;
use super::queue_oracle::{Queue, QueueOracle};
use super::reader::topic_name;

/// Short times, so that everything happens within a run.
pub(crate) fn roll_policy(dice: &mut SimRandom) -> QueuePolicy {
    let number = |dice: &mut SimRandom, min: u64, more: u64| {
        u32::try_from(min + dice.below(more)).expect("a small number")
    };
    let backoff_min_ms = number(dice, 1, 100);
    let unsettled = 1 << dice.below(10);
    QueuePolicy {
        lease_ms: number(dice, 200, 800),
        lease_max_ms: 1_000 + dice.below(2_000),
        max_failures: number(dice, 1, 5),
        backoff_min_ms,
        backoff_max_ms: backoff_min_ms + number(dice, 0, 300),
        unsettled_max: number(dice, 1, unsettled),
        key_order: dice.one_in(3),
        single_active: dice.one_in(4),
        paused: false,
        dead_letter: None,
        breaker: dice.one_in(4).then_some(Breaker {
            failure_percent: 50,
            window: 20,
            pause_ms: 100,
        }),
    }
}

/// Only of topics of kind queue, and without key order: nobody outside sees when an earlier one of a key expires.
pub(crate) fn roll_bounds(
    subscription: &Option<String>,
    policy: &QueuePolicy,
    dice: &mut SimRandom,
) -> TopicBounds {
    if subscription.is_some() || policy.key_order || dice.one_in(2) {
        return TopicBounds::default();
    }
    TopicBounds {
        message_ttl_ms: dice.one_in(2).then(|| 200 + dice.below(5_000)),
        expired: if dice.one_in(2) { Expired::Drop } else { Expired::DeadLetter },
        max_messages: dice.one_in(2).then(|| 1 + dice.below(200)),
        max_bytes: None,
        overflow: match dice.below(3) {
            0 => Overflow::Reject,
            1 => Overflow::DropOldest,
            _ => Overflow::DeadLetter,
        },
        dedup_window_ms: None,
    }
}

pub(crate) fn roll_work(queue: usize, dice: &mut SimRandom) -> WorkPlan {
    WorkPlan {
        queue,
        prefetch_messages: 1 << dice.below(8),
        prefetch_bytes: 512 << dice.below(9),
        slowness: if dice.one_in(2) { 1 } else { 1 + dice.below(10) },
        work_max_ms: if dice.one_in(2) { 0 } else { dice.below(100) },
        trouble: if dice.one_in(4) { 0 } else { 2 + dice.below(20) },
        awaits: dice.one_in(4),
        leaves: if dice.one_in(2) { 0 } else { 500 + dice.below(1_500) },
    }
}

/// Makes a queue; one with a name is a subscription of a log topic.
pub(crate) enum Making {
    Queue(CreateQueue),
    Subscription(CreateSubscription),
}

pub(crate) fn making(queue: &Queue, partitions: u32) -> Making {
    let name = topic_name(queue.topic);
    let policy = queue.policy.clone();
    match &queue.subscription {
        None => Making::Queue(CreateQueue {
            name,
            partitions,
            durability: Durability::Fsync,
            message_bytes_max: None,
            bounds: queue.bounds,
            policy,
            if_not_exists: true,
        }),
        Some(subscription) => Making::Subscription(CreateSubscription {
            topic: name,
            name: subscription.clone(),
            start: Start::Earliest,
            queue: Some(policy),
            if_not_exists: true,
        }),
    }
}

pub(crate) fn question(queue: &Queue) -> DescribeQueue {
    DescribeQueue { topic: topic_name(queue.topic), subscription: queue.subscription.clone() }
}

/// What of a queue is not settled.
fn unsettled(at: &QueuePartition) -> u64 {
    at.ready + at.leased + at.delayed + at.blocked + at.dead_lettering
}

/// How far a queue has come: a number that rises, and whether everything below the ends is settled.
pub(crate) fn progress(reply: &DescribeQueueReply, ends: &BTreeMap<u32, u64>) -> (u64, bool) {
    let settled = |at: &QueuePartition| at.acked + at.dead_lettered + at.expired + at.evicted;
    let drained =
        |at: &QueuePartition| unsettled(at) == 0 && Some(&at.floor.0) >= ends.get(&at.partition.0);
    (reply.partitions.iter().map(settled).sum(), reply.partitions.iter().all(drained))
}

/// Judges a queue that is drained.
pub(crate) fn judge(
    number: usize,
    reply: &DescribeQueueReply,
    ends: &BTreeMap<u32, u64>,
    letters: &Letters,
    oracle: &mut Oracle,
    queues: &QueueOracle,
) {
    let queue = &queues.queues[number];
    for at in &reply.partitions {
        let partition = at.partition.0;
        let end = ends.get(&partition).copied().unwrap_or(0);
        let stored = oracle.stored((queue.topic, partition));
        let dead = letters.iter().filter(|((of, _), _)| *of == partition).count() as u64;
        let settled = at.acked + at.dead_lettered + at.expired + at.evicted;
        let known = stored.len() as u64;
        // What leaves unprocessed may have been seen by nobody, not even by who published it.
        let bounded = !queue.bounds.is_none() || queue.purged;
        let dropped = if bounded { at.expired + at.evicted } else { 0 };
        let is_known = bounded || at.acked + dead == known;
        if settled + unsettled(at) != end || !is_known {
            oracle.violate(format!(
                "B12 conservation: {known} messages below {end}, {dead} letters, and {at:?}"
            ));
        }
        let expires =
            queue.bounds.message_ttl_ms.is_some() && queue.bounds.expired == Expired::Drop;
        if at.dead_lettered != dead || (at.expired != 0 && !expires) {
            oracle.violate(format!("B7 dead letters: {dead} are there, and {at:?}"));
        }
        let mut vanished = 0;
        for offset in stored {
            let fate = queues.fate((number, partition), offset);
            let sent = letters.get(&(partition, offset)).copied().unwrap_or(0);
            if sent > 1 {
                oracle.violate(format!("B7 dead letters: {sent} of {partition} {offset}"));
            }
            let may_die = fate.reject_asked || fate.failures + 1 >= queue.policy.max_failures;
            let was_acked = fate.handed_out && fate.ack_asked;
            vanished += u64::from(sent == 0 && !was_acked);
            let right = match sent {
                0 => was_acked || bounded,
                _ => !fate.acked && ((fate.handed_out && may_die) || bounded),
            };
            if !right {
                oracle.violate(format!(
                    "B1 no loss: queue {number} partition {partition} offset {offset}, \
                     {sent} letters, {fate:?}"
                ));
            }
        }
        if vanished > dropped {
            oracle.violate(format!(
                "B1 no loss: queue {number} partition {partition}: {vanished} neither acked nor dead, {at:?}"
            ));
        }
    }
}
