//! Owns the requests of subscribers: attach, credit, acknowledge, seek, detach. Never reads a log. Driven
//! by `receive`; what has to wait for the disk goes on in the session's tasks.

use std::collections::BTreeSet;
use std::sync::Arc;

use postrider_core::Now;
use postrider_core::group::Join;
use postrider_core::metadata::Command;
use postrider_core::partition::AckUpTo as OwnerAck;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, FrameHeader};
use postrider_protocol::message::{
    AckUpTo, Credit, Seek, Start, Subscribe, SubscribeReply, SubscribedPartition, Unsubscribe,
    UnsubscribeReply,
};
use postrider_protocol::types::{PartitionId, SubscriptionHandle, SubscriptionId};

use super::{Session, SessionEnd};
use crate::join::catalog::{Ask, Then};
use crate::join::hub::lock;
use crate::join::leader::resolve;
use crate::join::operation::{Operation, Purpose};
use crate::join::outbox::WakeList;
use crate::join::partition::PartitionHandle;
use crate::join::readers::{NewReader, Place, Readers};
use crate::join::topic::TopicHandle;

impl Session {
    pub(super) fn subscribe(
        &self,
        now: Now,
        header: FrameHeader,
        request: Subscribe,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let partitions = wanted_partitions(&topic, &request.partitions)?;
        self.check_handle(&lock(&self.readers), request.handle)?;
        let reader = NewReader {
            handle: request.handle,
            topic: Arc::clone(&topic),
            credit_messages: request.credit_messages,
            credit_bytes: request.credit_bytes,
        };
        match request.name {
            None => self.subscribe_ephemeral(header, reader, &partitions, &request.start),
            Some(name) => {
                self.subscribe_durable(now, header, reader, partitions, name, request.start)
            }
        }
    }

    /// Refuses a handle that is in use, and one subscription too many.
    pub(super) fn check_handle(
        &self,
        readers: &Readers,
        handle: SubscriptionHandle,
    ) -> Result<(), ErrorBody> {
        if readers.knows(handle) {
            let text = format!("handle {handle} is in use on this connection");
            return Err(ErrorBody::new(ErrorCode::BadRequest, text));
        }
        let max = self.hub.options.limits.subscriptions_max;
        if readers.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            let text = format!("the connection has {max} subscriptions, as many as allowed");
            return Err(ErrorBody::new(ErrorCode::SubscriptionLimit, text));
        }
        Ok(())
    }

    fn subscribe_ephemeral(
        &self,
        header: FrameHeader,
        reader: NewReader,
        partitions: &[PartitionId],
        start: &Start,
    ) -> Result<(), ErrorBody> {
        let mut places = Vec::with_capacity(partitions.len());
        for id in partitions {
            let partition = reader.topic.partition(*id)?;
            let next = resolve(&partition, start)?;
            let high_watermark = partition.high_watermark();
            if next > high_watermark {
                let text = format!(
                    "offset {next} lies behind the end of partition {id}, {high_watermark}"
                );
                return Err(ErrorBody::new(ErrorCode::OffsetOutOfRange, text));
            }
            places.push(Place { partition, owner_epoch: 0, next });
        }
        let reply = SubscribeReply {
            topic: reader.topic.id,
            subscription: SubscriptionId::NONE,
            partitions: places.iter().map(Place::describe).collect(),
        };
        // The reply goes first: under the readers' lock nothing is delivered.
        let mut readers = lock(&self.readers);
        self.reply(header, &reply);
        readers.add(reader, places);
        Ok(())
    }

    fn subscribe_durable(
        &self,
        now: Now,
        header: FrameHeader,
        reader: NewReader,
        partitions: Vec<PartitionId>,
        name: String,
        start: Start,
    ) -> Result<(), ErrorBody> {
        let subscription = reader.topic.subscription_named(&name);
        let group = subscription.and_then(|known| self.hub.groups.get(known.id));
        if group.is_some_and(|group| group.has_members()) {
            let text = format!(
                "the subscription {name} is read by a consumer group; join it, or let its members leave"
            );
            return Err(ErrorBody::new(ErrorCode::SubscriptionTaken, text));
        }
        self.begin_attaching(now, header, reader, partitions, name, start, None)
    }

    /// Creates a durable subscription if there is none, and goes on in the session's tasks.
    pub(super) fn begin_attaching(
        &self,
        now: Now,
        header: FrameHeader,
        reader: NewReader,
        partitions: Vec<PartitionId>,
        name: String,
        start: Start,
        join: Option<Join>,
    ) -> Result<(), ErrorBody> {
        let topic = Arc::clone(&reader.topic);
        let handle = reader.handle;
        let correlation = header.correlation;
        let name_known = name.clone();
        let key =
            lock(&self.readers).add_attaching(reader, correlation, partitions, name_known, join);
        let outbox = Arc::clone(&self.outbox);
        let asked = self.catalog.ask(now, |desk| {
            let then = Then::Subscribe { outbox, reader: key };
            let known = desk.tail.topic(topic.id).and_then(|topic| topic.subscription(&name));
            if let Some(known) = known {
                return match known.queue {
                    None => Ok(Ask::Wait(then)),
                    Some(_) => Err(not_a_stream(&topic.name, &name)),
                };
            }
            let id = SubscriptionId(desk.uuid());
            Ok(Ask::Submit(
                Box::new(Command::CreateSubscription { topic: topic.id, id, name, start }),
                then,
            ))
        });
        if asked.is_err() {
            lock(&self.readers).remove(handle, now);
        } else {
            // It may be durable already: then no round of the disk will say so.
            self.catalog.notify_waiting();
        }
        asked
    }

    pub(super) fn credit(&self, frame: Frame) -> Result<(), SessionEnd> {
        let credit: Credit = self.parse(frame)?;
        // A subscription that the broker has just closed still gets credit; that is no mistake.
        if lock(&self.readers).credit(credit.handle, credit.messages, credit.bytes) {
            self.outbox.wake();
        }
        Ok(())
    }

    pub(super) fn ack_up_to(
        &self,
        now: Now,
        header: FrameHeader,
        request: &AckUpTo,
    ) -> Result<(), ErrorBody> {
        let found = lock(&self.readers).attached(request.handle, request.partition);
        let (subscription, partition) = found.ok_or_else(|| self.reader_of(request.handle))?;
        if subscription == SubscriptionId::NONE {
            let text = "an ephemeral subscription keeps no acknowledgements; subscribe with a name";
            return Err(ErrorBody::new(ErrorCode::BadRequest, text));
        }
        let ack = OwnerAck { subscription, owner_epoch: request.owner_epoch, up_to: request.up_to };
        partition.lead(now, |leader, turn| {
            leader.ack_up_to(&partition, ack, &self.outbox, header.correlation, turn);
        })
    }

    pub(super) fn seek(
        &self,
        now: Now,
        header: FrameHeader,
        request: &Seek,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let subscription = topic.subscription_named(&request.name).ok_or_else(|| {
            let text = format!("topic {} has no subscription {}", request.topic, request.name);
            ErrorBody::new(ErrorCode::UnknownSubscription, text)
        })?;
        let partitions = all_partitions(&topic)?;
        let purpose = Purpose::Seek { correlation: header.correlation };
        let operation = Operation::new(Arc::clone(&self.outbox), purpose, partitions.len());
        for partition in &partitions {
            let done = partition.lead(now, |leader, turn| {
                leader.seek(partition, subscription.id, &request.to, &operation, turn);
            });
            if let Err(error) = done {
                let mut wakes = WakeList::default();
                operation.step(Err(error), &mut wakes);
                wakes.wake();
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe(
        &self,
        now: Now,
        header: FrameHeader,
        request: &Unsubscribe,
    ) -> Result<(), ErrorBody> {
        let mut readers = lock(&self.readers);
        if !readers.remove(request.handle, now) {
            return Err(self.reader_of(request.handle));
        }
        self.reply(header, &UnsubscribeReply {});
        Ok(())
    }
}

impl Place {
    fn describe(&self) -> SubscribedPartition {
        describe(&self.partition, self.owner_epoch, self.next)
    }
}

fn not_a_stream(topic: &str, name: &str) -> ErrorBody {
    let text = format!(
        "the subscription {name} of {topic} is of queue mode: consume it, or read the topic with a \
         subscription of another name"
    );
    ErrorBody::new(ErrorCode::WrongSubscriptionMode, text)
}

/// Where a reader begins, for the reply.
pub(crate) fn describe(
    partition: &PartitionHandle,
    owner_epoch: u64,
    next: postrider_protocol::types::Offset,
) -> SubscribedPartition {
    SubscribedPartition {
        partition: partition.partition(),
        owner_epoch,
        next,
        log_start: partition.log_start(),
        high_watermark: partition.high_watermark(),
    }
}

pub(super) fn wanted_partitions(
    topic: &TopicHandle,
    asked: &[PartitionId],
) -> Result<Vec<PartitionId>, ErrorBody> {
    let count = topic.config().partitions;
    if asked.is_empty() {
        return Ok((0..count).map(PartitionId).collect());
    }
    let distinct: BTreeSet<PartitionId> = asked.iter().copied().collect();
    if distinct.len() < asked.len() {
        return Err(ErrorBody::new(ErrorCode::BadRequest, "a partition is named twice"));
    }
    if let Some(unknown) = distinct.iter().find(|id| id.0 >= count) {
        let text = format!("topic {} has no partition {unknown}, only {count}", topic.name);
        return Err(ErrorBody::new(ErrorCode::UnknownPartition, text));
    }
    Ok(distinct.into_iter().collect())
}

/// Every partition of a topic, opened.
pub(super) fn all_partitions(topic: &TopicHandle) -> Result<Vec<Arc<PartitionHandle>>, ErrorBody> {
    (0..topic.config().partitions).map(|id| topic.partition(PartitionId(id))).collect()
}
