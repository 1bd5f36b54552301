//! Owns what a subscription does as a member of a consumer group: join, heartbeats, partitions that come and
//! go. Never decides who reads what (the broker does). Driven by the engine.
//!
//! A partition is given back behind its acks: the release waits until the last one is answered, so that the next
//! owner begins behind them.

use std::time::Duration;

use postrider_protocol::{
    error::ErrorBody,
    message::{
        GroupHeartbeat, GroupReleased, GroupRevoked, JoinGroup, JoinGroupReply, SubscribedPartition,
    },
    types::PartitionId,
};

use super::{
    AckFailure, Acks, Amount, AttachedPartition, Incoming, Phase, Position, Subscription, left,
};
use crate::core::{Kind, completion::Wakes};

/// Heartbeats in a session timeout.
const BEATS: u32 = 3;

/// Who the member is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberOptions {
    /// A name that stays over restarts of the process.
    pub instance: Option<String>,
    /// After this long without a heartbeat the broker takes it for dead.
    pub session_timeout: Duration,
}

#[derive(Debug)]
pub(super) struct Member {
    options: MemberOptions,
    /// As the broker knows it; told when it joins again.
    number: Option<u64>,
    beat_every: Duration,
    beat_at: Duration,
}

impl Subscription {
    pub(crate) fn make_member(&mut self, options: MemberOptions) {
        let beat_every = options.session_timeout / BEATS;
        self.member = Some(Member { options, number: None, beat_every, beat_at: Duration::ZERO });
    }

    pub(crate) fn kind(&self) -> Kind {
        if self.member.is_some() { Kind::Member } else { Kind::Subscriber }
    }

    /// When there is something to ask or to say.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let beat = self.member.as_ref().map(|member| member.beat_at);
        let beat = beat.filter(|_| self.phase == Phase::Attached);
        [self.retry_at, beat].into_iter().flatten().min()
    }

    /// The join to ask for, if it is time.
    pub(crate) fn join_question(&mut self, now: Duration) -> Option<JoinGroup> {
        let member = self.member.as_ref().filter(|_| self.may_ask(now))?;
        let timeout_ms = member.options.session_timeout.as_millis();
        let join = JoinGroup {
            handle: self.handle,
            topic: self.options.topic.clone(),
            name: self.options.name.clone().unwrap_or_default(),
            start: self.options.start.clone(),
            resumes: member.number,
            instance: member.options.instance.clone(),
            session_timeout_ms: u32::try_from(timeout_ms).unwrap_or(u32::MAX),
            credit_messages: left(self.options.prefetch_messages, self.queued.messages),
            credit_bytes: left(self.options.prefetch_bytes, self.queued.bytes),
        };
        self.phase = Phase::Attaching;
        self.retry_at = None;
        self.returnable = Amount::default();
        Some(join)
    }

    pub(crate) fn joined(
        &mut self,
        now: Duration,
        reply: Result<JoinGroupReply, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        if self.phase != Phase::Attaching {
            return;
        }
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return self.refused(now, error, wakes),
        };
        self.phase = Phase::Attached;
        self.topic = Some(reply.topic);
        if let Some(member) = &mut self.member {
            member.number = Some(reply.member);
            let timeout = Duration::from_millis(u64::from(reply.session_timeout_ms));
            member.beat_every = timeout / BEATS;
            member.beat_at = now + member.beat_every;
        }
        if let Some(attached) = self.attached.take() {
            attached.promise.fulfil(Ok(Vec::new()), wakes);
        }
    }

    pub(crate) fn heartbeat(&mut self, now: Duration) -> Option<GroupHeartbeat> {
        let member = self.member.as_mut().filter(|_| self.phase == Phase::Attached)?;
        if member.beat_at > now {
            return None;
        }
        member.beat_at = now + member.beat_every;
        Some(GroupHeartbeat { handle: self.handle })
    }

    pub(crate) fn assigned(&mut self, at: &SubscribedPartition, wakes: &mut Wakes) {
        if self.phase != Phase::Attached {
            return;
        }
        let position = Position {
            next: at.next,
            owner_epoch: at.owner_epoch,
            continuous_from: at.owner_epoch,
            acks: Acks::default(),
            is_revoked: false,
            is_released: false,
        };
        if let Some(mut before) = self.positions.insert(at.partition, position) {
            before.acks.fail(&AckFailure::Stale, wakes);
        }
        let assigned = AttachedPartition {
            partition: at.partition,
            next: at.next,
            log_start: at.log_start,
            high_watermark: at.high_watermark,
        };
        self.enqueue(Incoming::Assigned(assigned), wakes);
    }

    /// A partition is to be given back, or is gone. What waits of it here goes to the next owner.
    pub(crate) fn revoked(&mut self, revoked: &GroupRevoked, wakes: &mut Wakes) {
        let partition = revoked.partition;
        if self.phase != Phase::Attached {
            return;
        }
        let Some(position) = self.positions.get_mut(&partition) else { return };
        position.is_revoked = true;
        self.drop_queued(partition);
        if revoked.drain_ms == 0 {
            self.lose(partition, wakes);
        } else {
            let drain = Duration::from_millis(u64::from(revoked.drain_ms));
            self.enqueue(Incoming::Revoked { partition, drain }, wakes);
        }
    }

    fn lose(&mut self, partition: PartitionId, wakes: &mut Wakes) {
        if let Some(mut position) = self.positions.remove(&partition) {
            position.acks.fail(&AckFailure::Stale, wakes);
            self.enqueue(Incoming::Lost { partition }, wakes);
        }
    }

    /// The connection is gone: the partitions come back with the next one, from where they are acknowledged.
    pub(super) fn lose_everything(&mut self, wakes: &mut Wakes) {
        self.queue.retain(|incoming| !matches!(incoming, Incoming::Run(_) | Incoming::Gap { .. }));
        self.queued = Amount::default();
        let partitions: Vec<PartitionId> = self.positions.keys().copied().collect();
        for partition in partitions {
            self.lose(partition, wakes);
        }
    }

    /// The application has finished with a partition. It may have lost it and got it again since.
    pub(crate) fn release(&mut self, partition: PartitionId) {
        if let Some(position) = self.positions.get_mut(&partition) {
            position.is_released = position.is_revoked;
        }
    }

    /// The next partition to give back: its acks are answered.
    pub(crate) fn next_release(&mut self, wakes: &mut Wakes) -> Option<GroupReleased> {
        if self.member.is_none() || self.phase != Phase::Attached {
            return None;
        }
        let is_done = |position: &Position| {
            position.is_released && position.acks.wanted.is_none() && position.acks.sent.is_none()
        };
        let next = self.positions.iter().find(|(_, position)| is_done(position));
        let partition = next.map(|(partition, _)| *partition)?;
        let mut position = self.positions.remove(&partition)?;
        position.acks.fail(&AckFailure::Stale, wakes);
        let owner_epoch = position.owner_epoch;
        Some(GroupReleased { handle: self.handle, partition, owner_epoch })
    }
}

#[cfg(test)]
mod tests {
    use postrider_protocol::{
        error::ErrorCode,
        message::Start,
        types::{Offset, SubscriptionHandle, SubscriptionId, TopicId},
    };

    use super::*;
    use crate::core::{completion::promise, subscription::SubscriptionOptions};

    const NOW: Duration = Duration::from_secs(1);
    const P: PartitionId = PartitionId(3);

    fn reply(member: u64) -> JoinGroupReply {
        JoinGroupReply {
            topic: TopicId([1; 16]),
            subscription: SubscriptionId([2; 16]),
            member,
            session_timeout_ms: 9_000,
        }
    }

    fn at(owner_epoch: u64, next: u64) -> SubscribedPartition {
        SubscribedPartition {
            partition: P,
            owner_epoch,
            next: Offset(next),
            log_start: Offset(0),
            high_watermark: Offset(next),
        }
    }

    fn revoked(owner_epoch: u64, drain_ms: u32) -> GroupRevoked {
        GroupRevoked { handle: SubscriptionHandle(1), partition: P, owner_epoch, drain_ms }
    }

    /// A member that has joined as number 7.
    fn member(wakes: &mut Wakes) -> Subscription {
        let options = SubscriptionOptions {
            topic: "t".to_owned(),
            partitions: Vec::new(),
            name: Some("g".to_owned()),
            start: Start::Earliest,
            prefetch_messages: 10,
            prefetch_bytes: 100,
        };
        let (attached, _pending) = promise();
        let mut member = Subscription::new(SubscriptionHandle(1), options, attached, NOW);
        let session_timeout = Duration::from_secs(30);
        member.make_member(MemberOptions { instance: None, session_timeout });
        assert!(member.question(NOW).is_none(), "it does not subscribe");
        assert_eq!(member.join_question(NOW).unwrap().resumes, None);
        member.joined(NOW, Ok(reply(7)), wakes);
        member
    }

    #[test]
    fn it_beats_three_times_in_the_timeout_that_the_broker_grants() {
        let mut wakes = Wakes::default();
        let mut member = member(&mut wakes);
        let beat = NOW + Duration::from_secs(3);
        assert_eq!((member.heartbeat(NOW), member.deadline()), (None, Some(beat)));
        assert!(member.heartbeat(beat).is_some());
        assert_eq!(member.deadline(), Some(beat + Duration::from_secs(3)));
    }

    #[test]
    fn a_partition_is_given_back_when_its_acks_are_answered() {
        let mut wakes = Wakes::default();
        let mut member = member(&mut wakes);
        member.assigned(&at(4, 10), &mut wakes);
        member.release(P);
        assert!(member.next_release(&mut wakes).is_none(), "nobody asked for it");
        let (acked, _pending) = promise();
        member.ack_up_to(P, 4, Offset(12), acked, &mut wakes);
        member.revoked(&revoked(4, 1_000), &mut wakes);
        member.release(P);
        assert!(member.next_release(&mut wakes).is_none(), "the ack is not sent");
        assert_eq!(member.next_ack().unwrap().up_to, Offset(12));
        assert!(member.next_release(&mut wakes).is_none(), "the ack is not answered");
        member.ack_answered(P, Offset(12), Ok(()), &mut wakes);
        assert_eq!(member.next_release(&mut wakes).unwrap().owner_epoch, 4);
        assert!(member.next_release(&mut wakes).is_none());
    }

    #[test]
    fn a_release_is_not_for_the_next_ownership() {
        let mut wakes = Wakes::default();
        let mut member = member(&mut wakes);
        member.assigned(&at(4, 10), &mut wakes);
        member.revoked(&revoked(4, 1_000), &mut wakes);
        member.revoked(&revoked(4, 0), &mut wakes);
        member.assigned(&at(6, 10), &mut wakes);
        member.release(P);
        assert!(member.next_release(&mut wakes).is_none());
    }

    #[test]
    fn a_lost_connection_loses_the_partitions_and_the_member_says_who_it_was() {
        let mut wakes = Wakes::default();
        let mut member = member(&mut wakes);
        member.assigned(&at(4, 10), &mut wakes);
        assert!(matches!(member.take_next(), Some(Incoming::Assigned(_))));
        member.disconnected(&mut wakes);
        assert!(matches!(member.take_next(), Some(Incoming::Lost { partition: P })));
        assert_eq!(member.join_question(NOW).unwrap().resumes, Some(7));
        let (acked, pending) = promise();
        member.ack_up_to(P, 4, Offset(12), acked, &mut wakes);
        assert!(matches!(pending.try_take(), Some(Err(AckFailure::Stale))));
    }

    #[test]
    fn one_that_was_silent_joins_again_and_one_that_was_replaced_ends() {
        let mut wakes = Wakes::default();
        let mut silent = member(&mut wakes);
        silent.closed(NOW, ErrorBody::new(ErrorCode::TimedOut, ""), &mut wakes);
        assert!(silent.join_question(NOW + Duration::from_secs(1)).is_some());
        let mut replaced = member(&mut wakes);
        replaced.closed(NOW, ErrorBody::new(ErrorCode::SubscriptionTaken, ""), &mut wakes);
        assert!(replaced.join_question(NOW + Duration::from_secs(1)).is_none());
        assert!(matches!(replaced.take_next(), Some(Incoming::Ended(_))));
    }
}
