//! Owns the subscribers of one session: who reads what, with how much credit, and whose turn it is. Never
//! reads a log (`deliver` does) and never decides how much may be sent (core does). Driven by the session,
//! under one lock, from its receiving and its sending side.
//!
//! ```text
//!   a cursor is   queued   its turn comes
//!                 waiting  registered with its partition, until there is something new
//!                 parked   until the client gives credit
//! ```
//! Turns go round robin, one chunk each, so that no subscription starves another.

mod group;

pub(crate) use group::Membership;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::BytesMut;
use postrider_core::Now;
use postrider_core::delivery::Subscriber;
use postrider_core::group::{Join, Leave};
use postrider_core::metadata;
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame;
use postrider_protocol::message::{
    DeleteSubscriptionReply, Seeked, SubscribeReply, SubscriptionClosed,
};
use postrider_protocol::types::{
    CorrelationId, Offset, PartitionId, SubscriptionHandle, SubscriptionId,
};

use crate::join::consumers::{Consumer, Consumers, QueueCursor};
use crate::join::hub::Hub;
use crate::join::leader::Clean;
use crate::join::operation::{Operation, Purpose, Step};
use crate::join::outbox::{Content, Outbox, WakeList};
use crate::join::partition::PartitionHandle;
use crate::join::session::{OnPartition, SessionTask, Transmit, describe};

use crate::join::topic::TopicHandle;

/// What is known of a reader when it is asked for.
pub(crate) struct NewReader {
    pub(crate) handle: SubscriptionHandle,
    pub(crate) topic: Arc<TopicHandle>,
    pub(crate) credit_messages: u32,
    pub(crate) credit_bytes: u32,
}

/// Where a reader stands on a partition.
pub(crate) struct Place {
    pub(crate) partition: Arc<PartitionHandle>,
    pub(crate) owner_epoch: u64,
    pub(crate) next: Offset,
}

/// One subscription of this session.
pub(crate) struct Reader {
    pub(crate) handle: SubscriptionHandle,
    topic: Arc<TopicHandle>,
    /// Nil if ephemeral, or not known yet.
    subscription: SubscriptionId,
    /// It reads as a member of a consumer group: its cursors come and go.
    membership: Option<Membership>,
    phase: Phase,
    /// Credit of all its cursors together; its position is the one of the cursor whose turn it is.
    pub(crate) account: Subscriber,
    cursors: BTreeMap<PartitionId, u64>,
    /// Cursors that wait for credit.
    pub(crate) parked: Vec<u64>,
}

enum Phase {
    /// The subscription is created, then the partitions are asked; the client waits for its reply.
    Attaching {
        correlation: CorrelationId,
        partitions: Vec<PartitionId>,
        name: String,
        /// It will not be attached, for this reason.
        cancelled: Option<ErrorBody>,
        /// As a member of the subscription's group.
        join: Option<Join>,
    },
    Attached,
}

/// One reader on one partition.
pub(crate) struct Cursor {
    pub(crate) reader: u64,
    pub(crate) partition: Arc<PartitionHandle>,
    pub(crate) owner_epoch: u64,
    pub(crate) next: Offset,
    /// Deliveries so far in this attachment.
    pub(crate) dispatch_index: u64,
    /// What begins here was brought into memory and is sent whether or not it still is there.
    pub(crate) loaded: Option<Offset>,
    queued: bool,
    /// It gets no more turns; its member finishes what it has.
    is_revoked: bool,
}

/// See the module.
pub(crate) struct Readers {
    pub(crate) hub: Arc<Hub>,
    pub(crate) outbox: Arc<Outbox>,
    /// The next reader's or cursor's key; never used again. 0 is nobody's.
    next_key: u64,
    by_handle: BTreeMap<SubscriptionHandle, u64>,
    /// Bound: `subscriptions_max`, and those that are being cancelled.
    pub(crate) readers: BTreeMap<u64, Reader>,
    /// Bound: one per reader and partition.
    pub(crate) cursors: BTreeMap<u64, Cursor>,
    /// Consumers of queues. They share keys, handles and turns with the readers.
    pub(crate) consumers: Consumers,
    queue: VecDeque<u64>,
    /// The largest body that the client takes.
    frame_bytes_max: usize,
    /// What the last `transmit` took, for its buffers.
    pub(crate) taken: Content,
    /// Where heads of deliveries are written, many to a piece of memory.
    pub(crate) heads: BytesMut,
}

impl Readers {
    pub(crate) fn new(hub: Arc<Hub>, outbox: Arc<Outbox>) -> Self {
        Self {
            hub,
            outbox,
            next_key: 1,
            by_handle: BTreeMap::new(),
            readers: BTreeMap::new(),
            cursors: BTreeMap::new(),
            consumers: Consumers::default(),
            queue: VecDeque::new(),
            frame_bytes_max: 0,
            taken: Content::default(),
            heads: BytesMut::new(),
        }
    }

    pub(crate) fn set_frame_bytes_max(&mut self, bytes: u32) {
        let own = self.hub.options.limits.frame_bytes_max;
        self.frame_bytes_max = usize::try_from(bytes.min(own)).unwrap_or(usize::MAX);
    }

    pub(crate) fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    pub(crate) fn len(&self) -> usize {
        self.readers.len() + self.consumers.consumers.len()
    }

    pub(crate) fn knows(&self, handle: SubscriptionHandle) -> bool {
        self.by_handle.contains_key(&handle)
    }

    pub(crate) fn key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    fn insert(&mut self, new: NewReader, phase: Phase) -> u64 {
        let key = self.key();
        self.by_handle.insert(new.handle, key);
        self.readers.insert(
            key,
            Reader {
                handle: new.handle,
                topic: new.topic,
                subscription: SubscriptionId::NONE,
                membership: None,
                phase,
                account: Subscriber::new(Offset(0), new.credit_messages, new.credit_bytes),
                cursors: BTreeMap::new(),
                parked: Vec::new(),
            },
        );
        key
    }

    /// A reader that begins at once.
    pub(crate) fn add(&mut self, new: NewReader, places: Vec<Place>) {
        let key = self.insert(new, Phase::Attached);
        self.begin(key, places);
    }

    /// A reader that begins when its subscription is attached.
    pub(crate) fn add_attaching(
        &mut self,
        new: NewReader,
        correlation: CorrelationId,
        partitions: Vec<PartitionId>,
        name: String,
        join: Option<Join>,
    ) -> u64 {
        let cancelled = None;
        self.insert(new, Phase::Attaching { correlation, partitions, name, cancelled, join })
    }

    fn begin(&mut self, reader: u64, places: Vec<Place>) {
        for place in places {
            self.begin_at(reader, place);
        }
        self.outbox.wake();
    }

    fn begin_at(&mut self, reader: u64, place: Place) {
        let key = self.key();
        let Some(found) = self.readers.get_mut(&reader) else { return };
        found.cursors.insert(place.partition.partition(), key);
        self.cursors.insert(
            key,
            Cursor {
                reader,
                partition: place.partition,
                owner_epoch: place.owner_epoch,
                next: place.next,
                dispatch_index: 0,
                loaded: None,
                queued: false,
                is_revoked: false,
            },
        );
        self.enqueue(key);
    }

    /// Puts a cursor into the queue, once.
    pub(crate) fn enqueue(&mut self, cursor: u64) {
        if self.cursors.get(&cursor).is_some_and(|found| found.is_revoked) {
            return;
        }
        if let Some(queued) = self.queued(cursor)
            && !*queued
        {
            *queued = true;
            self.queue.push_back(cursor);
        }
    }

    /// Whether a cursor, of a reader or a consumer, stands in the queue.
    fn queued(&mut self, cursor: u64) -> Option<&mut bool> {
        if let Some(found) = self.cursors.get_mut(&cursor) {
            return Some(&mut found.queued);
        }
        self.consumers.cursors.get_mut(&cursor).map(|found| &mut found.queued)
    }

    /// The cursor whose turn it is. Cursors that are gone have left their key behind.
    pub(crate) fn next_turn(&mut self) -> Option<u64> {
        while let Some(key) = self.queue.pop_front() {
            if let Some(queued) = self.queued(key) {
                *queued = false;
                if self.cursors.get(&key).is_some_and(|cursor| cursor.is_revoked) {
                    continue;
                }
                return Some(key);
            }
        }
        None
    }

    /// Gives the next turn to a cursor again.
    pub(crate) fn requeue_front(&mut self, cursor: u64) {
        if let Some(queued) = self.queued(cursor) {
            *queued = true;
            self.queue.push_front(cursor);
        }
    }

    pub(crate) fn has_turns(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Adds credit; tells whether a cursor can go on.
    pub(crate) fn credit(&mut self, handle: SubscriptionHandle, messages: u32, bytes: u32) -> bool {
        let Some(key) = self.by_handle.get(&handle) else { return false };
        let parked = if let Some(reader) = self.readers.get_mut(key) {
            reader.account.credit(messages, bytes);
            std::mem::take(&mut reader.parked)
        } else if let Some(consumer) = self.consumers.consumers.get_mut(key) {
            consumer.credit(messages, bytes);
            std::mem::take(&mut consumer.parked)
        } else {
            return false;
        };
        let any = !parked.is_empty();
        for cursor in parked {
            self.enqueue(cursor);
        }
        any
    }

    /// The subscription and the partition that an acknowledgement is about.
    pub(crate) fn attached(
        &self,
        handle: SubscriptionHandle,
        partition: PartitionId,
    ) -> Option<(SubscriptionId, Arc<PartitionHandle>)> {
        let reader = self.readers.get(self.by_handle.get(&handle)?)?;
        let cursor = self.cursors.get(reader.cursors.get(&partition)?)?;
        Some((reader.subscription, Arc::clone(&cursor.partition)))
    }

    /// Ends a reader at its client's wish; tells whether there was one.
    pub(crate) fn remove(&mut self, handle: SubscriptionHandle, now: Now) -> bool {
        let Some(key) = self.by_handle.remove(&handle) else { return false };
        if let Some(reader) = self.readers.get_mut(&key)
            && let Phase::Attaching { cancelled, .. } = &mut reader.phase
        {
            // Its answer is on the way; `attached` ends it.
            let text = "the client unsubscribed before the subscription was attached";
            cancelled.get_or_insert_with(|| ErrorBody::new(ErrorCode::BadRequest, text));
            return true;
        }
        self.drop_reader(key, now);
        self.drop_consumer(key, Clean::Yes, now);
        true
    }

    /// A consumer whose cursors follow.
    pub(crate) fn add_consumer(&mut self, consumer: Consumer) -> u64 {
        let key = self.key();
        self.by_handle.insert(consumer.handle, key);
        self.consumers.consumers.insert(key, consumer);
        key
    }

    pub(crate) fn add_queue_cursor(&mut self, key: u64, cursor: QueueCursor) {
        if let Some(consumer) = self.consumers.consumers.get_mut(&cursor.consumer) {
            consumer.cursors.insert(cursor.partition.partition(), key);
            self.consumers.cursors.insert(key, cursor);
        }
    }

    /// A consumer's cursors get their first turns.
    pub(crate) fn begin_consumer(&mut self, consumer: u64) {
        let Some(found) = self.consumers.consumers.get(&consumer) else { return };
        let cursors: Vec<u64> = found.cursors.values().copied().collect();
        for cursor in cursors {
            self.enqueue(cursor);
        }
        self.outbox.wake();
    }

    /// What an ack is about.
    pub(crate) fn consumer_on(
        &self,
        handle: SubscriptionHandle,
        partition: PartitionId,
    ) -> Option<OnPartition> {
        let consumer = self.consumers.consumers.get(self.by_handle.get(&handle)?)?;
        let cursor = self.consumers.cursors.get(consumer.cursors.get(&partition)?)?;
        Some((Arc::clone(&cursor.partition), consumer.subscription, cursor.member))
    }

    /// All partitions of a consumer.
    pub(crate) fn consumer_places(&self, handle: SubscriptionHandle) -> Vec<OnPartition> {
        let key = self.by_handle.get(&handle);
        let Some(consumer) = key.and_then(|key| self.consumers.consumers.get(key)) else {
            return Vec::new();
        };
        let place = |cursor: &QueueCursor| {
            (Arc::clone(&cursor.partition), consumer.subscription, cursor.member)
        };
        let cursors = consumer.cursors.values().filter_map(|key| self.consumers.cursors.get(key));
        cursors.map(place).collect()
    }

    /// Removes a consumer with its cursors, here and from the partitions.
    fn drop_consumer(&mut self, key: u64, clean: Clean, now: Now) {
        let Some(consumer) = self.consumers.consumers.remove(&key) else { return };
        if self.by_handle.get(&consumer.handle) == Some(&key) {
            self.by_handle.remove(&consumer.handle);
        }
        for cursor_key in consumer.cursors.into_values() {
            let Some(cursor) = self.consumers.cursors.remove(&cursor_key) else { continue };
            let (partition, whose) = (&cursor.partition, (consumer.subscription, cursor.member));
            partition.lead_if_folded(now, |leader, turn| {
                leader.leave(partition, whose, (&self.outbox, cursor_key), clean, turn);
            });
        }
    }

    /// Removes a reader with its cursors, here and from the partitions.
    fn drop_reader(&mut self, key: u64, now: Now) {
        let Some(reader) = self.readers.remove(&key) else { return };
        if self.by_handle.get(&reader.handle) == Some(&key) {
            self.by_handle.remove(&reader.handle);
        }
        for cursor_key in reader.cursors.into_values() {
            let Some(cursor) = self.cursors.remove(&cursor_key) else { continue };
            cursor.partition.forget(&self.outbox, cursor_key);
            self.detach(&cursor.partition, reader.subscription, key, now);
        }
        if let Some(Membership { group, member }) = reader.membership {
            group.leave(now, member, Leave::KeepPlace);
        }
    }

    fn detach(
        &self,
        partition: &PartitionHandle,
        subscription: SubscriptionId,
        reader: u64,
        now: Now,
    ) {
        if subscription != SubscriptionId::NONE {
            partition.lead_if_folded(now, |leader, _turn| {
                leader.detach(subscription, &self.outbox, reader);
            });
        }
    }

    /// Ends all readers.
    pub(crate) fn close(&mut self, now: Now) {
        let keys: Vec<u64> = self.readers.keys().copied().collect();
        for key in keys {
            self.drop_reader(key, now);
        }
        let keys: Vec<u64> = self.consumers.consumers.keys().copied().collect();
        for key in keys {
            self.drop_consumer(key, Clean::No, now);
        }
        self.queue.clear();
    }

    /// Tells the client that a reader has ended.
    pub(crate) fn cut_off(&mut self, key: u64, error: ErrorBody, now: Now, out: &mut Transmit) {
        if let Some(consumer) = self.consumers.consumers.get(&key) {
            let event = SubscriptionClosed { handle: consumer.handle, error };
            out.chunks.push_back(frame::event(&event));
            self.drop_consumer(key, Clean::Yes, now);
            return;
        }
        let Some(reader) = self.readers.get_mut(&key) else { return };
        if let Phase::Attaching { cancelled, .. } = &mut reader.phase {
            cancelled.get_or_insert(error);
            return;
        }
        let event = SubscriptionClosed { handle: reader.handle, error };
        out.chunks.push_back(frame::event(&event));
        self.drop_reader(key, now);
    }

    /// Does what others left to this session.
    pub(crate) fn run_task(&mut self, task: SessionTask, now: Now, out: &mut Transmit) {
        match task {
            SessionTask::Ready(cursor) => {
                if let Some(found) = self.consumers.cursors.get_mut(&cursor) {
                    found.woken = true;
                }
                self.enqueue(cursor);
            }
            SessionTask::Subscribed { reader, result } => match result {
                Ok(()) => self.attach(reader, now, out),
                Err(error) => self.attached_with(reader, Err(error), now, out),
            },
            SessionTask::Attached { reader, result } => {
                self.attached_with(reader, result, now, out);
            }
            SessionTask::Seeked { reader, partition, owner_epoch, next } => {
                self.seeked(reader, partition, (owner_epoch, next), out);
            }
            SessionTask::Closed { reader, error } => self.cut_off(reader, error, now, out),
            SessionTask::Group(news) => self.group_news(news, now, out),
            SessionTask::Unsubscribed { correlation, topic, subscription } => {
                for partition in topic.all_opened() {
                    partition.lead_if_folded(now, |leader, turn| {
                        leader.unsubscribe(&partition, subscription, turn);
                    });
                }
                self.outbox.push_reply(frame::reply(&DeleteSubscriptionReply {}, correlation));
            }
        }
    }

    /// The subscription exists: asks its partitions.
    fn attach(&mut self, key: u64, now: Now, out: &mut Transmit) {
        let Some(reader) = self.readers.get_mut(&key) else { return };
        let Phase::Attaching { partitions, name, join, .. } = &mut reader.phase else { return };
        if let Some(join) = join.take() {
            let name = std::mem::take(name);
            self.join_group(key, &name, &join, now, out);
            return;
        }
        let purpose = Purpose::Attach { reader: key };
        let operation = Operation::new(Arc::clone(&self.outbox), purpose, partitions.len());
        let subscription = reader.topic.subscription_named(name);
        if let Some(subscription) = &subscription {
            reader.subscription = subscription.id;
        }
        for id in &*partitions {
            let asked = ask_partition(&reader.topic, *id, subscription.as_ref(), &operation, now);
            if let Err(error) = asked {
                let mut wakes = WakeList::default();
                operation.step(Err(error), &mut wakes);
                wakes.wake();
            }
        }
    }

    /// All partitions have answered: the client gets its reply, the reader begins or ends.
    fn attached_with(
        &mut self,
        key: u64,
        result: Result<Vec<Step>, ErrorBody>,
        now: Now,
        out: &mut Transmit,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else { return };
        let Phase::Attaching { correlation, partitions, cancelled, .. } = &mut reader.phase else {
            return;
        };
        let correlation = *correlation;
        let result = match cancelled.take() {
            Some(error) => Err(error),
            None => result,
        };
        let places = result.and_then(|steps| places(&reader.topic, &steps));
        let (places, reply) = match places {
            Ok(places) => {
                let described = places
                    .iter()
                    .map(|place| describe(&place.partition, place.owner_epoch, place.next));
                let reply = SubscribeReply {
                    topic: reader.topic.id,
                    subscription: reader.subscription,
                    partitions: described.collect(),
                };
                (places, frame::reply(&reply, correlation))
            }
            Err(error) => {
                let error = self.hub.refuse(error);
                let (topic, subscription) = (Arc::clone(&reader.topic), reader.subscription);
                let partitions = std::mem::take(partitions);
                self.drop_reader(key, now);
                for partition in partitions.iter().filter_map(|id| topic.opened(*id)) {
                    self.detach(&partition, subscription, key, now);
                }
                let frame = frame::error_reply(Api::Subscribe as u16, correlation, &error);
                self.outbox.request_answered();
                out.chunks.push_back(frame);
                return;
            }
        };
        reader.phase = Phase::Attached;
        self.outbox.request_answered();
        out.chunks.push_back(reply);
        self.begin(key, places);
    }

    /// The subscription was moved on one partition; what was sent before is void.
    fn seeked(
        &mut self,
        key: u64,
        partition: PartitionId,
        (owner_epoch, next): (u64, Offset),
        out: &mut Transmit,
    ) {
        let Some(reader) = self.readers.get(&key) else { return };
        let Some(cursor_key) = reader.cursors.get(&partition).copied() else { return };
        let Some(cursor) = self.cursors.get_mut(&cursor_key) else { return };
        cursor.owner_epoch = owner_epoch;
        cursor.next = next;
        cursor.dispatch_index = 0;
        cursor.loaded = None;
        let event = Seeked { handle: reader.handle, partition, owner_epoch, next };
        out.chunks.push_back(frame::event(&event));
        self.enqueue(cursor_key);
    }
}

fn ask_partition(
    topic: &TopicHandle,
    id: PartitionId,
    subscription: Option<&metadata::Subscription>,
    operation: &Arc<Operation>,
    now: Now,
) -> Result<(), ErrorBody> {
    let subscription = subscription.ok_or_else(|| {
        ErrorBody::new(ErrorCode::UnknownSubscription, "the subscription was just deleted")
    })?;
    let partition = topic.partition(id)?;
    partition.lead(now, |leader, turn| leader.attach(&partition, subscription, operation, turn))
}

fn places(topic: &TopicHandle, steps: &[Step]) -> Result<Vec<Place>, ErrorBody> {
    let place = |step: &Step| {
        let partition = topic.partition(step.partition)?;
        Ok(Place { partition, owner_epoch: step.owner_epoch, next: step.next })
    };
    steps.iter().map(place).collect()
}
