//! Owns the way of dead messages to their topics: which queues have some, and publishing them there in order
//! and once. Never decides that a message is dead (core does). Driven by the partitions' leaders, which ask
//! for it under their locks, and by the tick, which does it, with one partition locked at a time.
//!
//! ```text
//!   source: DeadIntent committed -> want -> [tick] read the message, write the letter
//!   target: publish in the session of (subscription, source, target), numbered by the intent
//!   target: Committed or Duplicate -> confirmed -> [tick] source: DeadDone
//! ```
//! A crash anywhere leaves the intent; all of it is done again after the start, and the
//! session in the target knows what it has stored. Letters of one target are published in their order, and
//! none after one that was refused: a session takes back no number that it has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use postrider_core::Now;
use postrider_core::metadata::Command;
use postrider_core::queue::{DeadLetter, DeadTarget};
use postrider_protocol::error::ErrorBody;
use postrider_protocol::message::{ConfirmRun, Outcome, TopicBounds, TopicConfig};
use postrider_protocol::types::{
    Offset, PartitionId, Sequence, SubscriptionId, TopicId, TopicKind,
};

use crate::join::catalog::{Ask, Catalog, Then};
use crate::join::hub::lock;
use crate::join::letter::{self, Letter};
use crate::join::partition::PartitionHandle;

/// Letters of one queue that are under way at a time; more follow as these are stored.
const LETTERS_MAX: usize = 256;

/// Queues that are looked at per tick.
const QUEUES_PER_TICK: usize = 64;

/// How long a queue waits after its letters were refused, and a letter before its source is told again.
const PAUSE: Duration = Duration::from_millis(500);

/// How soon it is looked whether a source has settled what it was told.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A queue-mode subscription on a partition.
pub(crate) type QueueKey = (TopicId, PartitionId, SubscriptionId);

/// Where a letter is published, and its number there.
type Place = (DeadTarget, Sequence);

/// The epoch in which a letter was decided, and its message.
type LetterKey = (u64, Offset);

/// See the module.
#[derive(Default)]
pub(crate) struct DeadLetters {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Bound: the queues; one without letters is removed when it was looked at.
    queues: BTreeMap<QueueKey, Outgoing>,
    /// Letters that are stored in their topics. Bound: the letters under way.
    stored: Vec<(QueueKey, LetterKey)>,
}

/// Letters of one queue.
struct Outgoing {
    partition: Weak<PartitionHandle>,
    /// To be looked at, from then on.
    wanted: Option<Duration>,
    /// Bound: `LETTERS_MAX`.
    under_way: BTreeMap<Place, UnderWay>,
}

/// A letter that was published.
#[derive(Clone, Copy)]
struct UnderWay {
    letter: LetterKey,
    /// It is stored, and its source was told so then.
    stored: Option<Duration>,
}

impl DeadLetters {
    /// A queue has letters to be published, or needs its dead letter topic.
    pub(crate) fn want(&self, partition: &PartitionHandle, subscription: SubscriptionId) {
        let key = (partition.key.topic, partition.key.partition, subscription);
        let mut inner = lock(&self.inner);
        let outgoing = inner.queues.entry(key).or_insert_with(|| Outgoing {
            partition: partition.weak(),
            wanted: None,
            under_way: BTreeMap::new(),
        });
        outgoing.wanted = Some(Duration::ZERO);
    }

    /// What became of letters; tells how many are stored.
    pub(crate) fn confirmed(
        &self,
        queue: QueueKey,
        target: DeadTarget,
        run: &ConfirmRun,
        now: Duration,
    ) -> u64 {
        let mut count = 0;
        let mut inner = lock(&self.inner);
        let Inner { queues, stored } = &mut *inner;
        let Some(outgoing) = queues.get_mut(&queue) else { return count };
        for nth in 0..u64::from(run.count) {
            let place = (target, Sequence(run.base_sequence.0 + nth));
            let Some(letter) = outgoing.under_way.get_mut(&place) else { continue };
            match &run.outcome {
                // No letter is delayed.
                Outcome::Delayed { .. } | Outcome::DelayedDuplicate { .. } => {}
                Outcome::Committed { .. } | Outcome::Duplicate { .. } => {
                    count += u64::from(letter.stored.is_none());
                    letter.stored = Some(now);
                    stored.push((queue, letter.letter));
                    outgoing.wanted = outgoing.wanted.or(Some(now));
                }
                Outcome::Rejected { error } | Outcome::Unknown { error } => {
                    tracing::warn!(?queue, %error, "a dead letter was not stored; it is tried again");
                    outgoing.under_way.remove(&place);
                    outgoing.wanted = Some(now + PAUSE);
                }
            }
        }
        count
    }

    /// Does what is due.
    pub(crate) fn tick(&self, catalog: &Catalog, now: Now) {
        self.settle_stored(now);
        for (queue, partition) in self.take_wanted(now.monotonic) {
            if let Err(error) = self.publish(catalog, queue, &partition, now) {
                tracing::warn!(?queue, %error, "dead letters wait");
                self.look_again(queue, now.monotonic + PAUSE);
            }
        }
    }

    /// Tells the sources which letters are stored.
    fn settle_stored(&self, now: Now) {
        let mut by_queue: BTreeMap<(QueueKey, u64), (Arc<PartitionHandle>, Vec<Offset>)> =
            BTreeMap::new();
        {
            let mut inner = lock(&self.inner);
            for (queue, (sub_epoch, offset)) in std::mem::take(&mut inner.stored) {
                let outgoing = inner.queues.get(&queue);
                let Some(partition) = outgoing.and_then(|queue| queue.partition.upgrade()) else {
                    continue;
                };
                let entry = by_queue.entry((queue, sub_epoch));
                entry.or_insert_with(|| (partition, Vec::new())).1.push(offset);
            }
        }
        for ((queue, sub_epoch), (partition, offsets)) in by_queue {
            partition.lead_if_folded(now, |leader, turn| {
                leader.dead_done(&partition, queue.2, sub_epoch, &offsets, turn);
            });
        }
    }

    /// Takes the queues that are to be looked at; removes those that are gone or have nothing any more.
    fn take_wanted(&self, now: Duration) -> Vec<(QueueKey, Arc<PartitionHandle>)> {
        let mut wanted = Vec::new();
        lock(&self.inner).queues.retain(|key, outgoing| {
            let Some(partition) = outgoing.partition.upgrade() else { return false };
            if wanted.len() < QUEUES_PER_TICK && outgoing.wanted.is_some_and(|due| due <= now) {
                outgoing.wanted = None;
                wanted.push((*key, partition));
                return true;
            }
            outgoing.wanted.is_some() || !outgoing.under_way.is_empty()
        });
        wanted
    }

    fn look_again(&self, queue: QueueKey, due: Duration) {
        if let Some(outgoing) = lock(&self.inner).queues.get_mut(&queue) {
            outgoing.wanted = Some(due);
        }
    }

    /// Publishes what a queue has, as far as it is not under way.
    fn publish(
        &self,
        catalog: &Catalog,
        queue: QueueKey,
        partition: &Arc<PartitionHandle>,
        now: Now,
    ) -> Result<(), ErrorBody> {
        let Some((name, policy)) = partition.queue_policy(queue.2) else { return Ok(()) };
        let target = match policy.dead_letter {
            Some(topic) => self.target(catalog, queue, (&topic, partition), now)?,
            None => None,
        };
        let letters = partition.lead_if_folded(now, |leader, turn| {
            leader.dead_letters(partition, queue.2, target, LETTERS_MAX, turn)
        });
        let letters = self.not_under_way(queue, letters.unwrap_or_default(), now.monotonic);
        let topic =
            catalog.topic_by_id(queue.0).map_or_else(String::new, |topic| topic.name.clone());
        for letters in letters.chunk_by(|one, next| one.target == next.target) {
            let Some(first) = letters.first() else { continue };
            let target = first.target;
            let Some(topic_of_target) = catalog.topic_by_id(target.topic) else {
                self.lost(queue, target, letters, now.monotonic);
                continue;
            };
            let target_partition = topic_of_target.partition(target.partition)?;
            let source = letter::Source { partition, topic: &topic, subscription: &name };
            let written: Vec<Letter> =
                letters.iter().map(|letter| source.write(queue.2, letter)).collect();
            self.begin(queue, letters);
            let accepted = target_partition.lead(now, |leader, turn| {
                let written = written.iter();
                written
                    .take_while(|one| leader.publish_letter(&target_partition, queue, one, turn))
                    .count()
            });
            self.refused(queue, letters.get(accepted.clone().unwrap_or(0)..).unwrap_or_default());
            accepted?;
        }
        Ok(())
    }

    /// The place for dead letters of a queue. The topic is created if there is none and messages wait for it;
    /// then it is not there yet. Letters that go back have their own targets, and create none.
    fn target(
        &self,
        catalog: &Catalog,
        queue: QueueKey,
        (name, partition): (&str, &PartitionHandle),
        now: Now,
    ) -> Result<Option<(TopicId, PartitionId)>, ErrorBody> {
        if let Ok(topic) = catalog.topic(name) {
            let partitions = topic.config().partitions.max(1);
            return Ok(Some((topic.id, PartitionId(queue.1.0 % partitions))));
        }
        let wanted =
            partition.lead_if_folded(now, |leader, _turn| leader.wants_dead_letter_topic(queue.2));
        if wanted != Some(true) {
            return Ok(None);
        }
        let durability = partition.durability();
        catalog.ask(now, |desk| {
            if desk.tail.topic_named(name).is_some() {
                return Ok(Ask::Wait(Then::Nothing));
            }
            let config = TopicConfig {
                partitions: 1,
                kind: TopicKind::Log,
                durability,
                retention_ms: None,
                retention_bytes: None,
                message_bytes_max: None,
                bounds: TopicBounds::default(),
            };
            let (id, name) = (TopicId(desk.uuid()), name.to_string());
            let command = Command::CreateTopic { id, name, config, created: now.wall };
            Ok(Ask::Submit(Box::new(command), Then::Nothing))
        })?;
        self.look_again(queue, now.monotonic);
        Ok(None)
    }

    /// Of a queue's letters those that are to be published now. What is stored is forgotten when the source
    /// has it settled; if that does not happen, the source is told once more.
    fn not_under_way(
        &self,
        queue: QueueKey,
        mut letters: Vec<DeadLetter>,
        now: Duration,
    ) -> Vec<DeadLetter> {
        let mut inner = lock(&self.inner);
        let Inner { queues, stored } = &mut *inner;
        let Some(outgoing) = queues.get_mut(&queue) else { return Vec::new() };
        let listed: BTreeSet<Place> = letters.iter().map(place).collect();
        outgoing.under_way.retain(|place, way| way.stored.is_none() || listed.contains(place));
        for way in outgoing.under_way.values_mut() {
            if way.stored.is_some_and(|told| told + PAUSE <= now) {
                way.stored = Some(now);
                stored.push((queue, way.letter));
            }
        }
        if outgoing.under_way.values().any(|way| way.stored.is_some()) {
            outgoing.wanted = Some(now + LOOK_AGAIN);
        }
        letters.retain(|letter| !outgoing.under_way.contains_key(&place(letter)));
        letters
    }

    fn begin(&self, queue: QueueKey, letters: &[DeadLetter]) {
        let way = |letter| (place(letter), UnderWay { letter: key(letter), stored: None });
        if let Some(outgoing) = lock(&self.inner).queues.get_mut(&queue) {
            outgoing.under_way.extend(letters.iter().map(way));
        }
    }

    /// These were not published; they are tried again.
    fn refused(&self, queue: QueueKey, letters: &[DeadLetter]) {
        if let Some(outgoing) = lock(&self.inner).queues.get_mut(&queue) {
            for letter in letters {
                outgoing.under_way.remove(&place(letter));
            }
        }
    }

    /// The topic was deleted with its letters, and so with these that were on their way to it.
    fn lost(&self, queue: QueueKey, target: DeadTarget, letters: &[DeadLetter], now: Duration) {
        let count = letters.len();
        tracing::warn!(
            ?queue,
            ?target,
            count,
            "dead letters end with their topic, which was deleted"
        );
        let mut inner = lock(&self.inner);
        let Inner { queues, stored } = &mut *inner;
        if let Some(outgoing) = queues.get_mut(&queue) {
            stored.extend(letters.iter().map(|letter| (queue, key(letter))));
            outgoing.wanted = Some(now + PAUSE);
        }
    }
}

fn place(letter: &DeadLetter) -> Place {
    (letter.target, letter.sequence)
}

fn key(letter: &DeadLetter) -> LetterKey {
    (letter.sub_epoch, letter.offset)
}
