//! Owns the requests that create and change queues and subscriptions. Never judges a policy (core's image
//! does). Driven by `receive`.

use postrider_core::Now;
use postrider_core::metadata::{self, Command, QUEUE_SUBSCRIPTION, complete_policy};
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::FrameHeader;
use postrider_protocol::message::{
    AlterQueue, AlterQueueReply, CreateQueue, CreateQueueReply, CreateSubscription,
    CreateSubscriptionReply, Start, TopicConfig,
};
use postrider_protocol::pattern::is_pattern;
use postrider_protocol::types::{SubscriptionId, TopicId, TopicKind};

use super::Session;
use crate::join::catalog::{Ask, unknown_topic};

impl Session {
    pub(super) fn create_queue(
        &self,
        now: Now,
        header: FrameHeader,
        request: CreateQueue,
    ) -> Result<(), ErrorBody> {
        let CreateQueue {
            name,
            partitions,
            durability,
            message_bytes_max,
            bounds,
            policy,
            if_not_exists,
        } = request;
        self.ask(now, |desk| {
            if if_not_exists
                && let Some(topic) = desk.tail.topic_named(&name)
                && topic.config.kind == TopicKind::Queue
            {
                let reply = CreateQueueReply { id: topic.id, created: false };
                return Ok(Ask::Wait(self.then_reply(Api::CreateQueue, header, &reply)));
            }
            self.check_room(desk, partitions)?;
            let id = TopicId(desk.uuid());
            let reply = CreateQueueReply { id, created: true };
            let config = TopicConfig {
                partitions,
                kind: TopicKind::Queue,
                durability,
                retention_ms: None,
                retention_bytes: None,
                message_bytes_max,
                bounds,
            };
            let policy = complete_policy(&name, policy);
            let subscription = SubscriptionId(desk.uuid());
            let created = now.wall;
            let command = Command::CreateQueue { id, name, config, created, subscription, policy };
            Ok(Ask::Submit(Box::new(command), self.then_reply(Api::CreateQueue, header, &reply)))
        })
    }

    pub(super) fn create_subscription(
        &self,
        now: Now,
        header: FrameHeader,
        request: CreateSubscription,
    ) -> Result<(), ErrorBody> {
        if is_pattern(&request.topic) {
            return self.create_pattern(now, header, request);
        }
        let CreateSubscription { topic, name, start, queue, if_not_exists } = request;
        self.ask(now, |desk| {
            let found = desk.tail.topic_named(&topic).ok_or_else(|| unknown_topic(&topic))?;
            let topic_id = found.id;
            if let Some(known) = found.subscription(&name)
                && if_not_exists
                && known.queue.is_some() == queue.is_some()
            {
                let reply = CreateSubscriptionReply { id: known.id, created: false };
                return Ok(Ask::Wait(self.then_reply(Api::CreateSubscription, header, &reply)));
            }
            let id = SubscriptionId(desk.uuid());
            let command = match queue {
                None => Command::CreateSubscription { topic: topic_id, id, name, start },
                Some(policy) => {
                    let policy = complete_policy(&topic, policy);
                    Command::CreateQueueSubscription { topic: topic_id, id, name, start, policy }
                }
            };
            let reply = CreateSubscriptionReply { id, created: true };
            Ok(Ask::Submit(
                Box::new(command),
                self.then_reply(Api::CreateSubscription, header, &reply),
            ))
        })
    }

    /// One subscription in all topics of a pattern.
    fn create_pattern(
        &self,
        now: Now,
        header: FrameHeader,
        request: CreateSubscription,
    ) -> Result<(), ErrorBody> {
        let CreateSubscription { topic: pattern, name, start, queue, if_not_exists } = request;
        if queue.is_some() {
            let text = "a subscription by pattern is of stream mode; leave the policy out";
            return Err(ErrorBody::new(ErrorCode::Unsupported, text));
        }
        if matches!(start, Start::Offset(_) | Start::PerPartition(_)) {
            let text =
                "offsets mean nothing to several topics: start earliest, latest or at a time";
            return Err(ErrorBody::new(ErrorCode::BadRequest, text));
        }
        self.ask(now, |desk| {
            let reply = |id, created| {
                let reply = CreateSubscriptionReply { id, created };
                self.then_reply(Api::CreateSubscription, header, &reply)
            };
            if let Some(known) = desk.tail.pattern_named(&pattern, &name)
                && if_not_exists
            {
                return Ok(Ask::Wait(reply(known.id, false)));
            }
            let id = SubscriptionId(desk.uuid());
            let command = Command::CreatePattern { id, pattern, name, start };
            Ok(Ask::Submit(Box::new(command), reply(id, true)))
        })
    }

    pub(super) fn alter_queue(
        &self,
        now: Now,
        header: FrameHeader,
        request: AlterQueue,
    ) -> Result<(), ErrorBody> {
        let AlterQueue { topic, subscription, policy } = request;
        self.ask(now, |desk| {
            let found = desk.tail.topic_named(&topic).ok_or_else(|| unknown_topic(&topic))?;
            let name = subscription.as_deref().unwrap_or(QUEUE_SUBSCRIPTION);
            let known =
                found.subscription(name).ok_or_else(|| unknown_subscription(found, name))?;
            let policy = complete_policy(&topic, policy);
            let command = Command::AlterQueue { topic: found.id, id: known.id, policy };
            Ok(Ask::Submit(
                Box::new(command),
                self.then_reply(Api::AlterQueue, header, &AlterQueueReply {}),
            ))
        })
    }
}

/// Refuses a subscription's name, with the way out.
pub(super) fn unknown_subscription(topic: &metadata::Topic, name: &str) -> ErrorBody {
    let shown: String = name.chars().take(200).collect();
    let topic = &topic.name;
    let text = format!(
        "topic {topic} has no subscription {shown}; create it with: postrider subscription create \
         {topic} {shown} --queue"
    );
    ErrorBody::new(ErrorCode::UnknownSubscription, text)
}
