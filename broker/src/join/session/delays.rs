//! Owns the requests about delayed messages: publishing, taking back, numbers. Never decides. Driven by
//! `receive`.

use postrider_core::Now;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, FrameHeader};
use postrider_protocol::message::{
    CANCEL_DELAYED_MAX, CancelDelayed, DescribeDelayed, DescribeDelayedReply, PublishDelayed,
};
use postrider_protocol::types::PartitionId;

use super::{Inbound, Session, SessionEnd};

impl Session {
    pub(super) fn publish_delayed(
        &self,
        now: Now,
        inbound: &mut Inbound,
        frame: Frame,
    ) -> Result<(), SessionEnd> {
        let delayed: PublishDelayed = self.parse(frame)?;
        self.admit(now, inbound, &delayed.publish, |partition, leader, keys, turn| {
            leader.publish_delayed(partition, &delayed, keys, &self.outbox, turn);
        });
        Ok(())
    }

    pub(super) fn cancel_delayed(
        &self,
        now: Now,
        header: FrameHeader,
        request: CancelDelayed,
    ) -> Result<(), ErrorBody> {
        let CancelDelayed { topic, partition, ids } = request;
        if ids.len() > CANCEL_DELAYED_MAX {
            let text = format!(
                "{} delayed messages are named, more than {CANCEL_DELAYED_MAX}; cancel them in parts",
                ids.len()
            );
            return Err(ErrorBody::new(ErrorCode::BadRequest, text));
        }
        let partition = self.catalog.topic(&topic)?.partition(partition)?;
        let answer = (&self.outbox, header.correlation);
        partition.lead(now, |leader, turn| leader.cancel_delayed(&partition, ids, answer, turn))
    }

    pub(super) fn describe_delayed(
        &self,
        now: Now,
        header: FrameHeader,
        request: &DescribeDelayed,
    ) -> Result<(), ErrorBody> {
        let topic = self.catalog.topic(&request.topic)?;
        let mut partitions = Vec::new();
        for id in (0..topic.config().partitions).map(PartitionId) {
            if topic.is_used(id) {
                let partition = topic.partition(id)?;
                partitions.extend(partition.lead(now, |leader, _turn| leader.delayed(&partition))?);
            }
        }
        self.reply_bounded(header, &DescribeDelayedReply { partitions })
    }
}
