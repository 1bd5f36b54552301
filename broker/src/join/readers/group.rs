//! Owns the readers that are members of a consumer group: their cursors come and go as the group says. Never
//! decides who reads what. Driven by the session's tasks and by the requests of members.

use std::sync::Arc;

use postrider_core::Now;
use postrider_core::group::{Join, Leave, MemberId};
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame;
use postrider_protocol::message::{GroupAssigned, GroupFenced, GroupRevoked, JoinGroupReply};
use postrider_protocol::types::{Offset, PartitionId, SubscriptionHandle};

use super::{Phase, Place, Readers};
use crate::join::groups::{GroupHandle, GroupNews, Seat, ms};
use crate::join::session::{Transmit, describe};

/// A reader's place in a group.
#[derive(Clone)]
pub(crate) struct Membership {
    pub(crate) group: Arc<GroupHandle>,
    pub(crate) member: MemberId,
}

impl Readers {
    /// The subscription exists: the reader becomes a member of its group, or ends.
    pub(super) fn join_group(
        &mut self,
        key: u64,
        name: &str,
        join: &Join,
        now: Now,
        out: &mut Transmit,
    ) {
        let Some(reader) = self.readers.get_mut(&key) else { return };
        let Phase::Attaching { correlation, cancelled, .. } = &mut reader.phase else { return };
        let (correlation, cancelled) = (*correlation, cancelled.take());
        let subscription = match (cancelled, reader.topic.subscription_named(name)) {
            (Some(error), _) => Err(error),
            (None, Some(subscription)) if subscription.queue.is_some() => {
                let text = "a group reads a stream; take messages of a queue with a consumer";
                Err(ErrorBody::new(ErrorCode::WrongSubscriptionMode, text))
            }
            (None, Some(subscription)) => Ok(subscription),
            (None, None) => {
                let text = "the subscription was just deleted";
                Err(ErrorBody::new(ErrorCode::UnknownSubscription, text))
            }
        };
        let seat = Seat { outbox: Arc::clone(&self.outbox), reader: key };
        let joined = subscription.and_then(|subscription| {
            let groups = &self.hub.groups;
            let (group, member) =
                groups.join(&self.hub, &reader.topic, &subscription, now, join, &seat)?;
            Ok((subscription, Membership { group, member }))
        });
        self.outbox.request_answered();
        match joined {
            Ok((subscription, membership)) => {
                let options = &self.hub.options.groups;
                let (min, max) = (options.session_timeout_min, options.session_timeout_max);
                let reply = JoinGroupReply {
                    topic: reader.topic.id,
                    subscription: subscription.id,
                    member: membership.member.0,
                    session_timeout_ms: ms(join.session_timeout.clamp(min, max)),
                };
                reader.phase = Phase::Attached;
                reader.subscription = subscription.id;
                reader.membership = Some(membership);
                out.chunks.push_back(frame::reply(&reply, correlation));
            }
            Err(error) => {
                let error = self.hub.refuse(error);
                self.drop_reader(key, now);
                let frame = frame::error_reply(Api::JoinGroup as u16, correlation, &error);
                out.chunks.push_back(frame);
            }
        }
    }

    /// What a group has to say to this session.
    pub(super) fn group_news(&mut self, news: GroupNews, now: Now, out: &mut Transmit) {
        match news {
            GroupNews::Run(group) => group.run(now),
            GroupNews::Assigned { reader, partition, owner_epoch, next } => {
                self.assigned(reader, partition, (owner_epoch, next), now, out);
            }
            GroupNews::Revoked { reader, partition, owner_epoch, drain } => {
                let Some(found) = self.readers.get(&reader) else { return };
                let cursor = found.cursors.get(&partition);
                if let Some(cursor) = cursor.and_then(|key| self.cursors.get_mut(key)) {
                    cursor.is_revoked = true;
                }
                let (handle, drain_ms) = (found.handle, ms(drain).max(1));
                let event = GroupRevoked { handle, partition, owner_epoch, drain_ms };
                out.chunks.push_back(frame::event(&event));
            }
            GroupNews::Lost { reader, partition, owner_epoch } => {
                self.give_up(reader, partition, owner_epoch, now);
                let Some(found) = self.readers.get(&reader) else { return };
                let handle = found.handle;
                let event = GroupRevoked { handle, partition, owner_epoch, drain_ms: 0 };
                out.chunks.push_back(frame::event(&event));
            }
            GroupNews::Fenced { reader, error } => {
                let Some(found) = self.readers.get_mut(&reader) else { return };
                found.membership = None;
                let event = GroupFenced { handle: found.handle, error };
                out.chunks.push_back(frame::event(&event));
                self.drop_reader(reader, now);
            }
        }
    }

    fn assigned(
        &mut self,
        key: u64,
        partition: PartitionId,
        (owner_epoch, next): (u64, Offset),
        now: Now,
        out: &mut Transmit,
    ) {
        self.give_up(key, partition, owner_epoch.saturating_sub(1), now);
        let Some(reader) = self.readers.get(&key) else { return };
        // A topic that is gone is told to the group by its tick.
        let Ok(partition) = reader.topic.partition(partition) else { return };
        let described = describe(&partition, owner_epoch, next);
        let event = GroupAssigned { handle: reader.handle, partition: described };
        out.chunks.push_back(frame::event(&event));
        self.begin_at(key, Place { partition, owner_epoch, next });
    }

    /// Removes a member's cursor, if it is of this epoch or an earlier one.
    fn give_up(&mut self, key: u64, partition: PartitionId, owner_epoch: u64, now: Now) {
        let Some(reader) = self.readers.get_mut(&key) else { return };
        let Some(cursor_key) = reader.cursors.get(&partition).copied() else { return };
        if self.cursors.get(&cursor_key).is_none_or(|cursor| cursor.owner_epoch > owner_epoch) {
            return;
        }
        reader.cursors.remove(&partition);
        let Some(cursor) = self.cursors.remove(&cursor_key) else { return };
        let subscription = reader.subscription;
        cursor.partition.forget(&self.outbox, cursor_key);
        cursor.partition.lead_if_folded(now, |leader, _turn| {
            leader.detach_member(subscription, &self.outbox, cursor.owner_epoch);
        });
    }

    /// The membership behind a handle.
    pub(crate) fn membership(&self, handle: SubscriptionHandle) -> Option<Membership> {
        self.readers.get(self.by_handle.get(&handle)?)?.membership.clone()
    }

    /// A member has finished with a partition: its cursor goes before the group hears of it.
    pub(crate) fn release(
        &mut self,
        handle: SubscriptionHandle,
        partition: PartitionId,
        owner_epoch: u64,
        now: Now,
    ) {
        if let Some(key) = self.by_handle.get(&handle).copied() {
            let cursor = self.readers.get(&key).and_then(|reader| reader.cursors.get(&partition));
            if cursor.and_then(|key| self.cursors.get(key)).is_some_and(|cursor| cursor.is_revoked)
            {
                // A seek may have raised the epoch, and the member may not know it yet.
                self.give_up(key, partition, u64::MAX, now);
            }
        }
        if let Some(Membership { group, member }) = self.membership(handle) {
            group.released(now, member, (partition, owner_epoch));
        }
    }

    /// Ends a membership at the member's wish; tells whether there was one.
    pub(crate) fn leave_group(&mut self, handle: SubscriptionHandle, how: Leave, now: Now) -> bool {
        let Some(key) = self.by_handle.get(&handle).copied() else { return false };
        let Some(reader) = self.readers.get_mut(&key) else { return false };
        if let Phase::Attaching { .. } = reader.phase {
            return self.remove(handle, now);
        }
        let Some(Membership { group, member }) = reader.membership.take() else { return false };
        self.drop_reader(key, now);
        group.leave(now, member, how);
        true
    }
}
