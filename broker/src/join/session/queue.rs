//! Owns the requests of consumers: attach, ack, give back, renew; and what is asked about queues. Never
//! leases (turns do). Driven by `receive`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postrider_core::Now;
use postrider_core::metadata::{self, QUEUE_SUBSCRIPTION};
use postrider_core::queue::{AckRequest, QueueMember, QueueStats, ReturnRequest};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, FrameHeader};
use postrider_protocol::message::{
    Ack, AckRun, Consume, ConsumeReply, ConsumedPartition, DescribeQueue, DescribeQueueReply,
    HeldLeases, PurgeQueue, QueueConsumer, QueuePartition, QueuePolicy, RedriveLetters,
    ReleaseMessage, ReleaseMessageReply, Renew, Return, WhyMessage, WhyMessageReply,
};
use postrider_protocol::types::{CorrelationId, MemberId, Offset, PartitionId, SubscriptionHandle};

use super::subscribe::{all_partitions, wanted_partitions};
use super::{Session, SessionEnd};
use crate::join::consumers::{Consumer, QueueCursor};
use crate::join::expiry::append_time_of;
use crate::join::hub::lock;
use crate::join::leader::{NewMember, SettleKind, Settling, resolve};
use crate::join::members::Attachment;
use crate::join::operation::{Operation, Purpose};
use crate::join::outbox::WakeList;
use crate::join::partition::PartitionHandle;
use crate::join::readers::Readers;
use crate::join::redrive;
use crate::join::topic::TopicHandle;

/// Letters that one `RedriveLetters` sends.
const REDRIVE_LETTERS_MAX: u32 = 1_000;

/// Consumers that `DescribeQueue` names; the rest is left out.
const CONSUMERS_SHOWN_MAX: usize = 1_000;

impl Session {
    pub(super) fn consume(
        &self,
        now: Now,
        header: FrameHeader,
        request: &Consume,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let (subscription, policy) = queue_of(&topic, request.subscription.as_deref())?;
        let partitions = wanted_partitions(&topic, &request.partitions)?;
        let held = held_by_partition(&request.held)?;
        let mut readers = lock(&self.readers);
        self.check_handle(&readers, request.handle)?;
        let consumer = Consumer::new(
            request.handle,
            subscription.id,
            request.credit_messages,
            request.credit_bytes,
        );
        let key = readers.add_consumer(consumer);
        let mut places = Vec::with_capacity(partitions.len());
        for id in partitions {
            let held = held.get(&id).copied();
            let attached = topic.partition(id).and_then(|partition| {
                self.attach(now, &mut readers, key, &subscription, request, partition, held)
            });
            match attached {
                Ok(place) => places.push(place),
                Err(error) => {
                    readers.remove(request.handle, now);
                    return Err(error);
                }
            }
        }
        let reply = ConsumeReply {
            topic: topic.id,
            subscription: subscription.id,
            policy,
            partitions: places,
        };
        // The reply goes first: under the readers' lock nothing is leased.
        self.reply(header, &reply);
        readers.begin_consumer(key);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one caller, which has taken the request apart")]
    fn attach(
        &self,
        now: Now,
        readers: &mut Readers,
        consumer: u64,
        subscription: &metadata::Subscription,
        request: &Consume,
        partition: Arc<PartitionHandle>,
        held: Option<&HeldLeases>,
    ) -> Result<ConsumedPartition, ErrorBody> {
        let cursor = readers.key();
        let (outbox, handle) = (Arc::clone(&self.outbox), request.handle);
        let new = NewMember {
            subscription: subscription.id,
            id: request.member,
            name: &request.consumer_name,
            attachment: Attachment { outbox, handle, consumer, cursor },
            held,
        };
        let (member, place) =
            partition.lead(now, |leader, turn| leader.consume(&partition, new, turn))??;
        readers.add_queue_cursor(cursor, QueueCursor::new(consumer, partition, member));
        Ok(place)
    }

    pub(super) fn ack(&self, now: Now, header: FrameHeader, request: Ack) -> Result<(), ErrorBody> {
        let Ack { handle, partition, sub_epoch, leader_epoch, started, runs } = request;
        let (partition, id, member) = self.consumer_on(handle, partition)?;
        let settling = self.settling(header.correlation, SettleKind::Ack, &runs);
        let request = AckRequest { id, member, sub_epoch, leader_epoch, started, runs };
        partition.lead(now, |leader, turn| leader.ack(&partition, request, settling, turn))
    }

    pub(super) fn give_return(
        &self,
        now: Now,
        header: FrameHeader,
        request: Return,
    ) -> Result<(), ErrorBody> {
        let Return { handle, partition, sub_epoch, leader_epoch, started, runs, action } = request;
        let (partition, id, member) = self.consumer_on(handle, partition)?;
        let settling = self.settling(header.correlation, SettleKind::Return, &runs);
        let request = ReturnRequest { id, member, sub_epoch, leader_epoch, started, runs, action };
        partition.lead(now, |leader, turn| leader.give_return(&partition, request, settling, turn))
    }

    fn settling(&self, correlation: CorrelationId, kind: SettleKind, runs: &[AckRun]) -> Settling {
        let outbox = Arc::clone(&self.outbox);
        let messages = runs.iter().map(|run| u64::from(run.count)).sum();
        Settling { outbox, correlation, kind, messages }
    }

    fn consumer_on(
        &self,
        handle: SubscriptionHandle,
        partition: PartitionId,
    ) -> Result<OnPartition, ErrorBody> {
        lock(&self.readers).consumer_on(handle, partition).ok_or_else(|| {
            let text = format!(
                "no consumer with handle {handle} is attached to partition {partition} on this \
                 connection"
            );
            ErrorBody::new(ErrorCode::UnknownSubscription, text)
        })
    }

    pub(super) fn renew(&self, now: Now, frame: Frame) -> Result<(), SessionEnd> {
        let Renew { handle, started } = self.parse(frame)?;
        // A consumer that the broker has just closed may still renew; that is no mistake.
        let places = lock(&self.readers).consumer_places(handle);
        let started: BTreeMap<PartitionId, u64> = started.into_iter().collect();
        for (partition, id, member) in places {
            let started = started.get(&partition.partition()).copied().unwrap_or(0);
            partition.lead_if_folded(now, |leader, turn| leader.renew((id, member), started, turn));
        }
        Ok(())
    }

    pub(super) fn describe_queue(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DescribeQueue,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let (subscription, policy) = queue_of(&topic, request.subscription.as_deref())?;
        let mut partitions = Vec::new();
        let mut consumers: BTreeMap<MemberId, QueueConsumer> = BTreeMap::new();
        for partition in all_partitions(&topic)? {
            let stats = partition.lead(now, |leader, turn| {
                let (stats, members) = leader.queue_stats(subscription.id, turn)?;
                for member in members {
                    if let Some((name, id)) = leader.member(member.member) {
                        count_consumer(&mut consumers, name, id, &member);
                    }
                }
                Some(stats)
            })?;
            partitions.push(match stats {
                Some(stats) => with_age(&partition, stats, now),
                None => untouched(&partition, &subscription)?,
            });
        }
        let reply = DescribeQueueReply {
            topic: topic.id,
            subscription: subscription.id,
            name: subscription.name,
            policy,
            partitions,
            consumers: consumers.into_values().take(CONSUMERS_SHOWN_MAX).collect(),
        };
        self.reply_bounded(header, &reply)
    }

    pub(super) fn why_message(
        &self,
        now: Now,
        header: FrameHeader,
        request: &WhyMessage,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let (subscription, _policy) = queue_of(&topic, request.subscription.as_deref())?;
        let partition = topic.partition(request.partition)?;
        let (why, holder) = partition.lead(now, |leader, turn| {
            let why = leader.why(subscription.id, request.offset, turn)?;
            let holder = why.holder.and_then(|member| leader.member(member));
            Ok::<_, ErrorBody>((why, holder))
        })??;
        let reply = WhyMessageReply {
            state: why.state.to_string(),
            text: why.text,
            holder: holder.map(|(name, _id)| name),
            since: why.since,
            until: why.until,
            attempts: why.attempts,
            failures: why.failures,
            last_reason: why.last_reason,
        };
        self.reply(header, &reply);
        Ok(())
    }

    /// The tick looks into the letters, and answers.
    pub(super) fn redrive_letters(
        &self,
        header: FrameHeader,
        request: RedriveLetters,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        if !(1..=REDRIVE_LETTERS_MAX).contains(&request.letters_max) {
            let text = format!("letters_max must be 1 to {REDRIVE_LETTERS_MAX}");
            return Err(ErrorBody::new(ErrorCode::BadRequest, text));
        }
        if let Some(target) = &request.target {
            self.catalog.topic(target)?;
        }
        let (subscription, _policy) = queue_of(&topic, Some(&request.subscription))?;
        let partition = topic.partition(request.partition)?;
        let (outbox, correlation) = (Arc::clone(&self.outbox), header.correlation);
        let subscription = subscription.id;
        let ask = redrive::Ask { outbox, correlation, partition, subscription, request, tries: 0 };
        self.hub.redrives.ask(ask)
    }

    pub(super) fn release_message(
        &self,
        now: Now,
        header: FrameHeader,
        request: &ReleaseMessage,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let (subscription, _policy) = queue_of(&topic, request.subscription.as_deref())?;
        let partition = topic.partition(request.partition)?;
        let (state, released) = partition.lead(now, |leader, turn| {
            leader.release_message(&partition, subscription.id, request.offset, turn)
        })??;
        self.reply(header, &ReleaseMessageReply { released, state: state.to_string() });
        Ok(())
    }

    pub(super) fn purge_queue(
        &self,
        now: Now,
        header: FrameHeader,
        request: &PurgeQueue,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let (subscription, _policy) = queue_of(&topic, request.subscription.as_deref())?;
        let partitions = all_partitions(&topic)?;
        let purpose = Purpose::Purge { correlation: header.correlation };
        let operation = Operation::new(Arc::clone(&self.outbox), purpose, partitions.len());
        for partition in &partitions {
            let done = partition.lead(now, |leader, turn| {
                leader.purge(partition, subscription.id, &operation, turn);
            });
            if let Err(error) = done {
                let mut wakes = WakeList::default();
                operation.step(Err(error), &mut wakes);
                wakes.wake();
            }
        }
        Ok(())
    }
}

/// A consumer on a partition: what an ack is about.
pub(crate) type OnPartition = (
    Arc<PartitionHandle>,
    postrider_protocol::types::SubscriptionId,
    postrider_core::queue::MemberKey,
);

/// A queue-mode subscription of a topic, with its policy.
fn queue_of(
    topic: &TopicHandle,
    name: Option<&str>,
) -> Result<(metadata::Subscription, QueuePolicy), ErrorBody> {
    let named = name.unwrap_or(QUEUE_SUBSCRIPTION);
    let Some(subscription) = topic.subscription_named(named) else {
        return Err(no_queue(topic, name));
    };
    match subscription.queue.clone() {
        Some(policy) => Ok((subscription, policy)),
        None => {
            let text = format!(
                "the subscription {named} of {} is of stream mode: subscribe to it, or consume another \
                 one",
                topic.name
            );
            Err(ErrorBody::new(ErrorCode::WrongSubscriptionMode, text))
        }
    }
}

fn no_queue(topic: &TopicHandle, name: Option<&str>) -> ErrorBody {
    let topic = &topic.name;
    let text = match name {
        Some(name) => {
            let shown: String = name.chars().take(200).collect();
            format!(
                "topic {topic} has no subscription {shown}; create it with: postrider subscription \
                 create {topic} {shown} --queue"
            )
        }
        None => format!(
            "topic {topic} is no queue; name a queue-mode subscription of it, or create one with: \
             postrider subscription create {topic} NAME --queue"
        ),
    };
    ErrorBody::new(ErrorCode::UnknownSubscription, text)
}

fn held_by_partition(held: &[HeldLeases]) -> Result<BTreeMap<PartitionId, &HeldLeases>, ErrorBody> {
    let distinct: BTreeSet<PartitionId> = held.iter().map(|held| held.partition).collect();
    if distinct.len() < held.len() {
        return Err(ErrorBody::new(ErrorCode::BadRequest, "a partition is held twice"));
    }
    Ok(held.iter().map(|held| (held.partition, held)).collect())
}

fn count_consumer(
    consumers: &mut BTreeMap<MemberId, QueueConsumer>,
    name: String,
    id: MemberId,
    member: &QueueMember,
) {
    let consumer = consumers.entry(id).or_insert(QueueConsumer {
        name,
        member: id,
        connected: false,
        leased: 0,
        oldest_lease_ms: 0,
    });
    let oldest = u64::try_from(member.oldest_lease.as_millis()).unwrap_or(u64::MAX);
    consumer.connected |= member.connected;
    consumer.leased += member.leased;
    consumer.oldest_lease_ms = consumer.oldest_lease_ms.max(oldest);
}

/// A partition that nobody has used since the subscription was created.
fn untouched(
    partition: &PartitionHandle,
    subscription: &metadata::Subscription,
) -> Result<QueuePartition, ErrorBody> {
    let start = resolve(partition, &subscription.start_on(partition.partition()))?;
    let end = partition.high_watermark();
    let floor = start.min(end);
    Ok(QueuePartition {
        partition: partition.partition(),
        sub_epoch: 0,
        floor,
        ready: end.0 - floor.0,
        leased: 0,
        delayed: 0,
        blocked: 0,
        dead_lettering: 0,
        acked: 0,
        dead_lettered: 0,
        expired: 0,
        evicted: 0,
        oldest_ready_ms: 0,
        breaker_open: false,
    })
}

/// The numbers, with what only the log knows.
fn with_age(partition: &PartitionHandle, stats: QueueStats, now: Now) -> QueuePartition {
    let age = |offset: Offset| now.wall.0.saturating_sub(append_time_of(partition, offset).0);
    QueuePartition { oldest_ready_ms: stats.oldest_ready.map_or(0, age), ..stats.numbers }
}
