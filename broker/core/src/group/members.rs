//! Owns who is a member of a group: names, deadlines, and how often an instance id was taken from a living
//! member. Never knows of partitions. Driven by the group.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::effect::{GroupOptions, Join, JoinError, MemberId};
use crate::limits::{GROUP_MEMBERS_MAX, INSTANCE_SWAP_WINDOW, INSTANCE_SWAPS_MAX};

/// A member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name over restarts, if it has one.
    pub instance: Option<String>,
    /// What it asked for, within the bounds.
    pub session_timeout: Duration,
    /// When it will be taken for dead (monotonic).
    pub deadline: Duration,
    /// False from the moment its connection ended; its partitions wait for it.
    pub is_connected: bool,
}

/// Who joins, and in whose place.
pub(super) struct Joined {
    pub(super) member: MemberId,
    /// The member that it replaces.
    pub(super) predecessor: Option<(MemberId, Member)>,
}

/// The members of a group. Bound: [`GROUP_MEMBERS_MAX`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Members {
    next: MemberId,
    by_id: BTreeMap<MemberId, Member>,
    /// When an instance id was taken from a member that was alive. Bound: [`INSTANCE_SWAPS_MAX`] times for
    /// each instance id that was so taken within the window.
    swaps: BTreeMap<String, VecDeque<Duration>>,
}

impl Members {
    pub(super) fn new(first: MemberId) -> Self {
        Self { next: first, by_id: BTreeMap::new(), swaps: BTreeMap::new() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.by_id.iter().map(|(id, member)| (*id, member))
    }

    pub(super) fn ids(&self) -> Vec<MemberId> {
        self.by_id.keys().copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether the member is there to be given something.
    pub(super) fn is_connected(&self, member: MemberId) -> bool {
        self.by_id.get(&member).is_some_and(|member| member.is_connected)
    }

    /// The member that has an instance id.
    pub(super) fn with_instance(&self, instance: &str) -> Option<MemberId> {
        self.iter()
            .find(|(_, member)| member.instance.as_deref() == Some(instance))
            .map(|(id, _)| id)
    }

    pub(super) fn join(
        &mut self,
        now: Duration,
        join: Join,
        options: &GroupOptions,
    ) -> Result<Joined, JoinError> {
        let predecessor = self.predecessor(&join);
        if predecessor.is_none() && self.by_id.len() >= GROUP_MEMBERS_MAX {
            return Err(JoinError::Full { max: GROUP_MEMBERS_MAX });
        }
        // One that joins again itself takes nothing from anybody.
        if let (Some(predecessor), Some(instance)) = (predecessor, &join.instance)
            && join.resumes != Some(predecessor)
            && self.is_connected(predecessor)
        {
            self.note_swap(now, instance)?;
        }
        let predecessor = predecessor.and_then(|id| Some((id, self.by_id.remove(&id)?)));
        let member = self.next;
        self.next = MemberId(member.0 + 1);
        let session_timeout =
            join.session_timeout.clamp(options.session_timeout_min, options.session_timeout_max);
        let Join { instance, .. } = join;
        let deadline = now.saturating_add(session_timeout);
        let new = Member { instance, session_timeout, deadline, is_connected: true };
        self.by_id.insert(member, new);
        Ok(Joined { member, predecessor })
    }

    /// Whose place it takes: its instance's; without one, its own from before.
    fn predecessor(&self, join: &Join) -> Option<MemberId> {
        if let Some(instance) = &join.instance {
            return self.with_instance(instance);
        }
        let resumes = join.resumes?;
        self.by_id.get(&resumes).filter(|member| member.instance.is_none()).map(|_| resumes)
    }

    fn note_swap(&mut self, now: Duration, instance: &str) -> Result<(), JoinError> {
        self.swaps.retain(|_, swaps| {
            swaps.retain(|at| now.saturating_sub(*at) < INSTANCE_SWAP_WINDOW);
            !swaps.is_empty()
        });
        let swaps = self.swaps.entry(instance.to_owned()).or_default();
        if swaps.len() >= INSTANCE_SWAPS_MAX {
            return Err(JoinError::InstanceFlaps { swaps: swaps.len() });
        }
        swaps.push_back(now);
        Ok(())
    }

    /// The member lives; tells whether it is one.
    pub(super) fn heartbeat(&mut self, now: Duration, member: MemberId) -> bool {
        let Some(member) = self.by_id.get_mut(&member) else { return false };
        if member.is_connected {
            member.deadline = member.deadline.max(now.saturating_add(member.session_timeout));
        }
        member.is_connected
    }

    /// The member's connection ended; tells whether it was connected.
    pub(super) fn lost(&mut self, now: Duration, member: MemberId, options: &GroupOptions) -> bool {
        let member = self.by_id.get_mut(&member).filter(|member| member.is_connected);
        let Some(member) = member else { return false };
        member.is_connected = false;
        let timeout = match member.instance {
            Some(_) => member.session_timeout,
            None => options.reconnect_timeout.min(member.session_timeout),
        };
        member.deadline = now.saturating_add(timeout);
        true
    }

    pub(super) fn remove(&mut self, member: MemberId) -> Option<Member> {
        self.by_id.remove(&member)
    }

    /// Removes those whose time is over.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<(MemberId, Member)> {
        let over = self.iter().filter(|(_, member)| member.deadline <= now);
        let ids: Vec<MemberId> = over.map(|(id, _)| id).collect();
        ids.into_iter().filter_map(|id| Some((id, self.by_id.remove(&id)?))).collect()
    }

    /// Gives everybody more time.
    pub(super) fn prolong(&mut self, by: Duration) {
        for member in self.by_id.values_mut() {
            member.deadline = member.deadline.saturating_add(by);
        }
    }

    /// When the first one's time is over.
    pub(super) fn due(&self) -> Option<Duration> {
        self.by_id.values().map(|member| member.deadline).min()
    }
}
