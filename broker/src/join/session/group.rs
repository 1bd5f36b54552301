//! Owns the requests of members of a consumer group: join, heartbeat, release, leave; and what is asked about a
//! group. Never decides who reads what. Driven by `receive`; a join goes on in the session's tasks.

use std::sync::Arc;
use std::time::Duration;

use postrider_core::Now;
use postrider_core::group::{Join, Leave, MemberId};
use postrider_core::limits::NAME_BYTES_MAX;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, FrameHeader};
use postrider_protocol::message::{
    DescribeGroup, DescribeGroupReply, GroupHeartbeat, GroupPartition, GroupReleased,
    GroupReleasedReply, JoinGroup, LeaveGroup, LeaveGroupReply,
};

use super::subscribe::all_partitions;
use super::{Session, SessionEnd};
use crate::join::hub::lock;
use crate::join::readers::{Membership, NewReader};

impl Session {
    pub(super) fn join_group(
        &self,
        now: Now,
        header: FrameHeader,
        request: JoinGroup,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        self.check_handle(&lock(&self.readers), request.handle)?;
        if let Some(instance) = &request.instance
            && (instance.is_empty() || instance.len() > NAME_BYTES_MAX)
        {
            let text = format!("an instance id has 1 to {NAME_BYTES_MAX} bytes");
            return Err(ErrorBody::new(ErrorCode::BadRequest, text));
        }
        let reader = NewReader {
            handle: request.handle,
            topic: Arc::clone(&topic),
            credit_messages: request.credit_messages,
            credit_bytes: request.credit_bytes,
        };
        let join = Join {
            resumes: request.resumes.map(MemberId),
            instance: request.instance,
            session_timeout: Duration::from_millis(u64::from(request.session_timeout_ms)),
        };
        let (name, start) = (request.name, request.start);
        self.begin_attaching(now, header, reader, Vec::new(), name, start, Some(join))
    }

    pub(super) fn group_heartbeat(&self, now: Now, frame: Frame) -> Result<(), SessionEnd> {
        let heartbeat: GroupHeartbeat = self.parse(frame)?;
        // Who is a member no longer hears so by `GroupFenced`, which is on its way.
        if let Some(Membership { group, member }) = lock(&self.readers).membership(heartbeat.handle)
        {
            group.heartbeat(now, member);
        }
        Ok(())
    }

    pub(super) fn group_released(
        &self,
        now: Now,
        header: FrameHeader,
        request: &GroupReleased,
    ) -> Result<(), ErrorBody> {
        // One that crossed with a loss is no mistake.
        let GroupReleased { handle, partition, owner_epoch } = *request;
        lock(&self.readers).release(handle, partition, owner_epoch, now);
        self.reply(header, &GroupReleasedReply {});
        Ok(())
    }

    pub(super) fn leave_group(
        &self,
        now: Now,
        header: FrameHeader,
        request: &LeaveGroup,
    ) -> Result<(), ErrorBody> {
        let how = if request.keep_place { Leave::KeepPlace } else { Leave::Release };
        if !lock(&self.readers).leave_group(request.handle, how, now) {
            return Err(self.reader_of(request.handle));
        }
        self.reply(header, &LeaveGroupReply {});
        Ok(())
    }

    pub(super) fn describe_group(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DescribeGroup,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let subscription = topic.subscription_named(&request.name).ok_or_else(|| {
            let text = format!("topic {} has no subscription {}", request.topic, request.name);
            ErrorBody::new(ErrorCode::UnknownSubscription, text)
        })?;
        let group = self.hub.groups.get(subscription.id);
        let (members, whose) = group.map(|group| group.describe(now)).unwrap_or_default();
        let mut partitions = Vec::new();
        for (at, partition) in all_partitions(&topic)?.into_iter().enumerate() {
            let (acked, high_watermark) = partition.lead(now, |leader, _turn| {
                let state = leader.state().subscriptions().get(subscription.id);
                (state.map(|state| state.acked).unwrap_or_default(), leader.high_watermark())
            })?;
            let whose = whose.get(at);
            let unowned = whose.and_then(|whose| whose.unowned);
            partitions.push(GroupPartition {
                partition: partition.partition(),
                holder: whose.and_then(|whose| whose.holder),
                target: whose.and_then(|whose| whose.target),
                unowned_ms: unowned.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                acked,
                lag: high_watermark.0.saturating_sub(acked.0),
            });
        }
        let reply = DescribeGroupReply { subscription: subscription.id, members, partitions };
        self.reply_bounded(header, &reply)
    }
}
