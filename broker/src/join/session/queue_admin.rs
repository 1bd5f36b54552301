//! Owns the requests that create and change queues and subscriptions. Never judges a policy (core's image
//! does). Driven by `receive`.

use postrider_core::Now;
use postrider_core::metadata::{self, Command, QUEUE_SUBSCRIPTION, complete_policy};
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::FrameHeader;
use postrider_protocol::message::{
    AlterQueue, AlterQueueReply, CreateQueue, CreateQueueReply, CreateSubscription,
    CreateSubscriptionReply, TopicConfig,
};
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
