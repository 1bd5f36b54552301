//! Owns what metrics tell of the depth of queues: a sample per partition, which the tick takes, and the sums
//! that a scrape makes of them. Never waits for a partition in a scrape: it reads samples. Driven by the tick
//! and by `Broker::metrics`.
//!
//! A pass begins every second, and looks at a bounded number of partitions per tick; a sample is as old as the
//! last pass. Queues that nobody has used since the start count too, for nobody else would tell that they are
//! stuck: their state is folded here, one partition per tick.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::Now;
use postrider_core::queue::QueueStats;
use postrider_protocol::types::{Offset, PartitionId, SubscriptionId, TimestampMs};

use crate::join::catalog::Catalog;
use crate::join::expiry::append_time_of;
use crate::join::leader::Leader;
use crate::join::topic::TopicHandle;

/// Queues told apart in metrics, the first ones by name; the others are one sum.
pub const QUEUES_APART_MAX: usize = 1_000;

/// Passes begin no sooner after each other.
const INTERVAL: Duration = Duration::from_secs(1);

/// Partitions looked at per tick.
const PARTITIONS_PER_TICK: u32 = 256;

/// Messages of a queue by where they are, as far as they are not settled.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueDepth {
    /// To be handed out.
    pub ready: u64,
    /// With a consumer.
    pub leased: u64,
    /// Failed, and waiting for the next try.
    pub delayed: u64,
    /// Behind an unsettled message of their key.
    pub blocked: u64,
    /// On their way to the dead letter topic.
    pub dead_lettering: u64,
    /// Age of the oldest that is ready; 0 if none is.
    pub oldest_ready: Duration,
}

impl QueueDepth {
    fn add(&mut self, other: Self) {
        self.ready += other.ready;
        self.leased += other.leased;
        self.delayed += other.delayed;
        self.blocked += other.blocked;
        self.dead_lettering += other.dead_lettering;
        self.oldest_ready = self.oldest_ready.max(other.oldest_ready);
    }
}

/// All queues, as a scrape sees them.
#[derive(Clone, Default, Debug)]
pub struct QueueDepths {
    /// Topic and subscription, in the order of their names. Bound: [`QUEUES_APART_MAX`].
    pub queues: Vec<(String, String, QueueDepth)>,
    /// The sum of those beyond the bound.
    pub others: QueueDepth,
}

/// What the tick found of one queue on one partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    subscription: SubscriptionId,
    stats: QueueStats,
    /// The first ready message, and when it was appended.
    oldest: Option<(Offset, TimestampMs)>,
}

impl Sample {
    fn depth(&self, now: Now) -> QueueDepth {
        let numbers = self.stats.numbers;
        let age = |(_, time): (Offset, TimestampMs)| now.wall.0.saturating_sub(time.0);
        QueueDepth {
            ready: numbers.ready,
            leased: numbers.leased,
            delayed: numbers.delayed,
            blocked: numbers.blocked,
            dead_lettering: numbers.dead_lettering,
            oldest_ready: Duration::from_millis(self.oldest.map_or(0, age)),
        }
    }
}

/// Takes the samples.
#[derive(Default)]
pub(crate) struct Sampler {
    due: Duration,
    /// What is left of the present pass. Bound: the topics.
    pass: VecDeque<(Arc<TopicHandle>, u32)>,
}

impl Sampler {
    pub(crate) fn tick(&mut self, catalog: &Catalog, now: Now) {
        if self.pass.is_empty() && now.monotonic >= self.due {
            self.due = now.monotonic + INTERVAL;
            self.pass = catalog.topics().into_iter().map(|topic| (topic, 0)).collect();
        }
        let (mut left, mut may_fold) = (PARTITIONS_PER_TICK, true);
        while left > 0
            && let Some((topic, next)) = self.pass.front_mut()
        {
            left -= 1;
            let queues = queues(topic);
            if queues.is_empty() || *next >= topic.config().partitions || topic.is_deleted() {
                self.pass.pop_front();
                continue;
            }
            let id = PartitionId(*next);
            *next += 1;
            sample(topic, id, &queues, &mut may_fold, now);
        }
    }
}

/// The queue-mode subscriptions of a topic.
fn queues(topic: &TopicHandle) -> Vec<SubscriptionId> {
    let known = topic.subscriptions();
    known.values().filter(|known| known.queue.is_some()).map(|known| known.id).collect()
}

fn sample(
    topic: &TopicHandle,
    id: PartitionId,
    queues: &[SubscriptionId],
    may_fold: &mut bool,
    now: Now,
) {
    let partition = match topic.opened(id) {
        Some(partition) => partition,
        None if *may_fold && topic.is_used(id) => match topic.partition(id) {
            Ok(partition) => partition,
            // Deleted meanwhile, or the store is over: there is nothing to tell.
            Err(_) => return,
        },
        None => return,
    };
    let look = |leader: &mut Leader| -> Vec<(SubscriptionId, QueueStats)> {
        let stats = queues.iter().map(|queue| Some((*queue, leader.queue_numbers(*queue, now)?)));
        stats.flatten().collect()
    };
    let mut stats = partition.lead_if_folded(now, |leader, _turn| look(leader));
    if stats.is_none() && std::mem::take(may_fold) {
        stats = partition.lead(now, |leader, _turn| look(leader)).ok();
    }
    let Some(stats) = stats else { return };
    let before = partition.samples();
    let samples = stats.into_iter().map(|(subscription, stats)| {
        let known = before.iter().find(|sample| sample.subscription == subscription);
        // A queue that is stuck on an old message reads it once, not in each pass.
        let same = |known: &Sample| known.oldest.filter(|(at, _)| Some(*at) == stats.oldest_ready);
        let read = || stats.oldest_ready.map(|at| (at, append_time_of(&partition, at)));
        Sample { subscription, stats, oldest: known.and_then(same).or_else(read) }
    });
    partition.set_samples(samples.collect());
}

/// Sums the samples of all queues.
pub(crate) fn depths(catalog: &Catalog, now: Now) -> QueueDepths {
    let mut topics = catalog.topics();
    topics.sort_by(|one, other| one.name.cmp(&other.name));
    let mut depths = QueueDepths::default();
    for topic in topics {
        let mut known: Vec<(String, SubscriptionId)> = topic
            .subscriptions()
            .values()
            .filter(|known| known.queue.is_some())
            .map(|known| (known.name.clone(), known.id))
            .collect();
        if known.is_empty() {
            continue;
        }
        known.sort();
        let samples: Vec<Sample> =
            topic.all_opened().iter().flat_map(|partition| partition.samples()).collect();
        for (name, id) in known {
            let mut depth = QueueDepth::default();
            let own = samples.iter().filter(|sample| sample.subscription == id);
            own.for_each(|sample| depth.add(sample.depth(now)));
            if depths.queues.len() < QUEUES_APART_MAX {
                depths.queues.push((topic.name.clone(), name, depth));
            } else {
                depths.others.add(depth);
            }
        }
    }
    depths
}
