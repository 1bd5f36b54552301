//! Owns the requests about topics, offsets, producers and subscriptions at rest. Never judges a command
//! (core's image does). Driven by `receive`.

use std::sync::Arc;

use postrider_core::Now;
use postrider_core::metadata::{Command, TopicChange};
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{self, FRAME_HEADER_BYTES, FrameHeader};
use postrider_protocol::message::{
    AlterTopic, AlterTopicReply, BrokerAddress, CreateTopic, CreateTopicReply, DeleteSubscription,
    DeleteSubscriptionReply, DeleteTopic, DeleteTopicReply, DescribeTopic, DescribeTopicReply,
    ListOffsets, ListOffsetsReply, ListPatterns, ListPatternsReply, ListSubscriptions,
    ListSubscriptionsReply, Message, Metadata, MetadataReply, OpenProducer, OpenProducerReply,
    PartitionDescription, PartitionMetadata, SubscriptionDescription, SubscriptionPosition,
    TopicMetadata,
};
use postrider_protocol::pattern::is_pattern;
use postrider_protocol::types::{
    Durability, PartitionId, ProducerEpoch, ProducerId, TimestampMs, TopicId, TopicKind,
};

use super::Session;
use super::subscribe::all_partitions;
use crate::join::catalog::{Ask, Desk, Then, unknown_topic};
use crate::join::expiry::append_time_of;
use crate::join::hub::lock;
use crate::join::leader::resolve;
use crate::join::partition::PartitionHandle;
use crate::join::topic::TopicHandle;

impl Session {
    pub(super) fn metadata(
        &self,
        header: FrameHeader,
        request: &Metadata,
    ) -> Result<(), ErrorBody> {
        let reply = self.catalog.read(|desk| {
            let image = desk.committed;
            let topics = if request.topics.is_empty() {
                image.topics_by_name().map(|topic| self.topic_metadata(topic)).collect()
            } else {
                let named = |name: &String| match image.topic_named(name) {
                    Some(topic) => self.topic_metadata(topic),
                    None => no_topic(name),
                };
                request.topics.iter().map(named).collect()
            };
            let brokers = image.brokers().iter().map(|(node, broker)| BrokerAddress {
                node: *node,
                host: broker.host.clone(),
                port: broker.port,
            });
            MetadataReply {
                cluster_id: self.hub.identity.cluster,
                brokers: brokers.collect(),
                topics,
            }
        });
        self.reply_bounded(header, &reply)
    }

    fn topic_metadata(&self, topic: &postrider_core::metadata::Topic) -> TopicMetadata {
        let identity = &self.hub.identity;
        let partition = |id| PartitionMetadata {
            partition: PartitionId(id),
            leader: identity.node,
            leader_epoch: identity.leader_epoch,
        };
        TopicMetadata {
            name: topic.name.clone(),
            error: None,
            id: topic.id,
            kind: topic.config.kind,
            durability: topic.config.durability,
            partitions: (0..topic.config.partitions).map(partition).collect(),
        }
    }

    /// Sends a reply unless it is larger than what the client takes.
    pub(super) fn reply_bounded<M: Message>(
        &self,
        header: FrameHeader,
        message: &M,
    ) -> Result<(), ErrorBody> {
        let frame = frame::reply(message, header.correlation);
        let max = lock(&self.readers).frame_bytes_max();
        if frame.len() - FRAME_HEADER_BYTES > max {
            let text = format!(
                "the answer has {} bytes, more than the {max} that the client takes; ask for less",
                frame.len()
            );
            return Err(ErrorBody::new(ErrorCode::FrameTooLarge, text));
        }
        self.outbox.push_reply(frame);
        self.outbox.wake();
        Ok(())
    }

    /// The last step of a command whose reply is known before it is durable.
    pub(super) fn then_reply<M: Message>(
        &self,
        api: Api,
        header: FrameHeader,
        message: &M,
    ) -> Then {
        Then::Reply {
            outbox: Arc::clone(&self.outbox),
            api,
            correlation: header.correlation,
            frame: frame::reply(message, header.correlation),
        }
    }

    pub(super) fn create_topic(
        &self,
        now: Now,
        header: FrameHeader,
        request: CreateTopic,
    ) -> Result<(), ErrorBody> {
        let CreateTopic { name, config, if_not_exists } = request;
        self.ask(now, |desk| {
            if if_not_exists && let Some(topic) = desk.tail.topic_named(&name) {
                let reply = CreateTopicReply { id: topic.id, created: false };
                return Ok(Ask::Wait(self.then_reply(Api::CreateTopic, header, &reply)));
            }
            self.check_room(desk, config.partitions)?;
            let id = TopicId(desk.uuid());
            let then =
                self.then_reply(Api::CreateTopic, header, &CreateTopicReply { id, created: true });
            Ok(Ask::Submit(
                Box::new(Command::CreateTopic { id, name, config, created: now.wall }),
                then,
            ))
        })
    }

    /// Room for one more topic of so many partitions.
    pub(super) fn check_room(&self, desk: &Desk<'_>, partitions: u32) -> Result<(), ErrorBody> {
        let topics = u32::try_from(desk.tail.topics().len()).unwrap_or(u32::MAX);
        if topics >= self.hub.options.topics_max {
            let text = format!("there are {topics} topics, as many as this broker allows");
            return Err(ErrorBody::new(ErrorCode::LimitExceeded, text));
        }
        self.check_partitions(desk, partitions)
    }

    fn check_partitions(&self, desk: &Desk<'_>, added: u32) -> Result<(), ErrorBody> {
        let max = u64::from(self.hub.options.partitions_max);
        let partitions = desk.tail.partitions();
        if partitions + u64::from(added) > max {
            let text = format!("there are {partitions} partitions; this broker allows {max}");
            return Err(ErrorBody::new(ErrorCode::LimitExceeded, text));
        }
        Ok(())
    }

    pub(super) fn ask(
        &self,
        now: Now,
        ask: impl FnOnce(&mut Desk<'_>) -> Result<Ask, ErrorBody>,
    ) -> Result<(), ErrorBody> {
        if self.hub.is_draining() {
            let text = "the broker is shutting down; reconnect and ask again";
            return Err(ErrorBody::new(ErrorCode::ShuttingDown, text));
        }
        self.catalog.ask(now, ask)?;
        self.catalog.notify_waiting();
        Ok(())
    }

    pub(super) fn alter_topic(
        &self,
        now: Now,
        header: FrameHeader,
        request: &AlterTopic,
    ) -> Result<(), ErrorBody> {
        self.ask(now, |desk| {
            let topic =
                desk.tail.topic_named(&request.name).ok_or_else(|| unknown_topic(&request.name))?;
            let (id, partitions) = (topic.id, topic.config.partitions);
            let added = request.partitions.map_or(0, |new| new.saturating_sub(partitions));
            self.check_partitions(desk, added)?;
            let change = TopicChange {
                partitions: request.partitions,
                retention_ms: request.retention_ms,
                retention_bytes: request.retention_bytes,
                message_bytes_max: request.message_bytes_max,
                bounds: request.bounds,
            };
            let then = self.then_reply(Api::AlterTopic, header, &AlterTopicReply {});
            Ok(Ask::Submit(Box::new(Command::AlterTopic { id, change }), then))
        })
    }

    pub(super) fn delete_topic(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DeleteTopic,
    ) -> Result<(), ErrorBody> {
        self.ask(now, |desk| {
            let topic =
                desk.tail.topic_named(&request.name).ok_or_else(|| unknown_topic(&request.name))?;
            let then = self.then_reply(Api::DeleteTopic, header, &DeleteTopicReply {});
            Ok(Ask::Submit(Box::new(Command::DeleteTopic { id: topic.id }), then))
        })
    }

    pub(super) fn describe_topic(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DescribeTopic,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.name)?;
        let partitions = all_partitions(&topic)?;
        let reply = DescribeTopicReply {
            name: topic.name.clone(),
            id: topic.id,
            config: topic.config(),
            created: topic.created,
            partitions: partitions.iter().map(|partition| self.describe(partition)).collect(),
            subscriptions: subscriptions(now, &topic)?,
        };
        self.reply_bounded(header, &reply)
    }

    fn describe(&self, partition: &PartitionHandle) -> PartitionDescription {
        let log = &partition.log;
        let segments = log.segments();
        let log_start = partition.log_start();
        PartitionDescription {
            partition: partition.partition(),
            leader: self.hub.identity.node,
            leader_epoch: self.hub.identity.leader_epoch,
            log_start,
            high_watermark: partition.high_watermark(),
            log_end: log.log_end().1,
            bytes: log.bytes(),
            segments: u32::try_from(segments.len()).unwrap_or(u32::MAX),
            first_time: append_time_of(partition, log_start),
            last_time: segments.last().map_or(TimestampMs(0), |segment| segment.last_time),
        }
    }

    pub(super) fn open_producer(
        &self,
        now: Now,
        header: FrameHeader,
        request: &OpenProducer,
    ) -> Result<(), ErrorBody> {
        let Some((producer, epoch)) = request.resume else {
            self.catalog.open_producer(now, &self.outbox, header.correlation)?;
            self.outbox.wake();
            return Ok(());
        };
        if producer < ProducerId(0) || producer >= self.hub.producer_ids_end() {
            let text = format!("producer {producer} was never opened here; open a new one");
            return Err(ErrorBody::new(ErrorCode::UnknownProducer, text));
        }
        if epoch != ProducerEpoch(0) {
            let text = format!("producer {producer} has epoch 0, not {epoch}");
            return Err(ErrorBody::new(ErrorCode::ProducerFenced, text));
        }
        self.reply(header, &OpenProducerReply { producer, epoch });
        Ok(())
    }

    pub(super) fn list_offsets(
        &self,
        header: FrameHeader,
        request: &ListOffsets,
    ) -> Result<(), ErrorBody> {
        let partition = self.catalog.topic(&request.topic)?.partition(request.partition)?;
        let offset = resolve(&partition, &request.at)?;
        let time = append_time_of(&partition, offset);
        self.reply(header, &ListOffsetsReply { offset, time });
        Ok(())
    }

    pub(super) fn list_subscriptions(
        &self,
        now: Now,
        header: FrameHeader,
        request: &ListSubscriptions,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let subscriptions = subscriptions(now, &topic)?;
        self.reply_bounded(header, &ListSubscriptionsReply { subscriptions })
    }

    pub(super) fn list_patterns(
        &self,
        header: FrameHeader,
        _request: &ListPatterns,
    ) -> Result<(), ErrorBody> {
        let mut patterns = self.catalog.read(|desk| desk.committed.describe_patterns());
        patterns
            .sort_by(|one, other| (&one.pattern, &one.name).cmp(&(&other.pattern, &other.name)));
        self.reply_bounded(header, &ListPatternsReply { patterns })
    }

    pub(super) fn delete_subscription(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DeleteSubscription,
    ) -> Result<(), ErrorBody> {
        if is_pattern(&request.topic) {
            return self.delete_pattern(now, header, request);
        }
        self.ask(now, |desk| {
            let topic = desk.topic(&request.topic)?;
            let subscription = desk
                .tail
                .topic(topic.id)
                .and_then(|topic| topic.subscription(&request.name))
                .ok_or_else(|| {
                    let text =
                        format!("topic {} has no subscription {}", request.topic, request.name);
                    ErrorBody::new(ErrorCode::UnknownSubscription, text)
                })?
                .id;
            let command = Command::DeleteSubscription { topic: topic.id, id: subscription };
            let then = Then::Unsubscribe {
                outbox: Arc::clone(&self.outbox),
                correlation: header.correlation,
                topic,
                subscription,
            };
            Ok(Ask::Submit(Box::new(command), then))
        })
    }
}

impl Session {
    /// Deletes a subscription by pattern, in all its topics. Who reads them is told by the partitions.
    fn delete_pattern(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DeleteSubscription,
    ) -> Result<(), ErrorBody> {
        self.ask(now, |desk| {
            let Some(known) = desk.tail.pattern_named(&request.topic, &request.name) else {
                let text =
                    format!("there is no subscription {} of {}", request.name, request.topic);
                return Err(ErrorBody::new(ErrorCode::UnknownSubscription, text));
            };
            let command = Command::DeletePattern { id: known.id };
            let then =
                self.then_reply(Api::DeleteSubscription, header, &DeleteSubscriptionReply {});
            Ok(Ask::Submit(Box::new(command), then))
        })
    }
}

fn no_topic(name: &str) -> TopicMetadata {
    TopicMetadata {
        name: name.to_string(),
        error: Some(ErrorCode::UnknownTopic),
        id: TopicId::default(),
        kind: TopicKind::Log,
        durability: Durability::Fsync,
        partitions: Vec::new(),
    }
}

/// The durable subscriptions of a topic, by name. Without any, no partition's state is looked at.
fn subscriptions(now: Now, topic: &TopicHandle) -> Result<Vec<SubscriptionDescription>, ErrorBody> {
    let mut known: Vec<_> = topic.subscriptions().values().cloned().collect();
    if known.is_empty() {
        return Ok(Vec::new());
    }
    known.sort_by(|one, other| one.name.cmp(&other.name));
    let mut described: Vec<SubscriptionDescription> = known
        .iter()
        .map(|subscription| SubscriptionDescription {
            name: subscription.name.clone(),
            id: subscription.id,
            attached: false,
            partitions: Vec::new(),
        })
        .collect();
    for partition in all_partitions(topic)? {
        partition.lead(now, |leader, _turn| {
            let high_watermark = leader.high_watermark();
            for subscription in &mut described {
                subscription.attached |= leader.is_attached(subscription.id);
                if let Some(state) = leader.state().subscriptions().get(subscription.id) {
                    subscription.partitions.push(SubscriptionPosition {
                        partition: partition.partition(),
                        acked: state.acked,
                        lag: high_watermark.0.saturating_sub(state.acked.0),
                    });
                }
            }
        })?;
    }
    Ok(described)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_topic_names_the_way_out() {
        let error = unknown_topic("orders");
        assert_eq!(error.code, ErrorCode::UnknownTopic);
        assert!(error.message.contains("postrider topic create orders"), "{error}");
    }
}
