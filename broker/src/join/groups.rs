//! Owns the consumer groups that have members: core's machine for each, where its members sit, and what
//! partitions have said to it. Never decides. Driven by sessions (join, heartbeat, release, leave), by the
//! sessions of members when a partition has answered (`run`), and by housekeeping (`tick`).
//!
//! A group's lock is held while its effects are carried out, so that what a member is told of a partition is
//! told in order. Lock order: session -> group -> partition -> outbox. A partition therefore never takes a
//! group's lock: it leaves what it has to say in `heard`, and asks the session of a member to run the group;
//! if that session is gone, the next tick does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use postrider_core::Now;
use postrider_core::group::{
    Effect, FenceReason, Group, Join, JoinError, Leave, MemberId, Released,
};
use postrider_core::metadata::Subscription;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::GroupMember;
use postrider_protocol::types::{Offset, PartitionId, SubscriptionId};

use crate::join::hub::{Hub, lock};
use crate::join::leader::Route;
use crate::join::outbox::{Outbox, WakeList};
use crate::join::session::SessionTask;
use crate::join::topic::TopicHandle;

/// Numbers that one run of a group may give to members; the next group begins behind them.
const MEMBERS_PER_GROUP: u64 = 1 << 24;
/// Groups that one start of the broker may begin.
const GROUPS_BITS: u32 = 16;

/// The groups of a broker.
pub(crate) struct Groups {
    /// Bound: the durable subscriptions of all topics.
    by_id: Mutex<BTreeMap<SubscriptionId, Arc<GroupHandle>>>,
    /// Where the next group's numbers of members begin: none is given out twice on one data directory.
    next_member: AtomicU64,
}

/// Where a member is to be told something.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) reader: u64,
}

/// For whom a partition is asked for an owner epoch.
pub(crate) struct Grant {
    pub(crate) group: Arc<GroupHandle>,
    pub(crate) seat: Seat,
}

/// What a partition says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard {
    /// The epoch is committed.
    OwnerSet { partition: PartitionId, owner_epoch: u64, next: Offset },
    /// It will not be.
    Refused { partition: PartitionId },
    /// The subscription was moved there.
    Sought { partition: PartitionId, owner_epoch: u64, next: Offset },
    /// Another owner came.
    Taken { partition: PartitionId },
}

/// What a member's session is told.
pub(crate) enum GroupNews {
    /// A partition has spoken: run the group.
    Run(Arc<GroupHandle>),
    /// A partition is the member's.
    Assigned { reader: u64, partition: PartitionId, owner_epoch: u64, next: Offset },
    /// Nothing more of a partition.
    Revoked { reader: u64, partition: PartitionId, owner_epoch: u64, drain: Duration },
    /// A partition is gone.
    Lost { reader: u64, partition: PartitionId, owner_epoch: u64 },
    /// The membership is over.
    Fenced { reader: u64, error: ErrorBody },
}

/// One group.
pub(crate) struct GroupHandle {
    /// The catalog keeps the topic; the hub keeps the group.
    hub: Weak<Hub>,
    topic: Weak<TopicHandle>,
    subscription: Subscription,
    /// Bound: one answer per partition that was asked, and one per seek that was committed since the last
    /// run.
    heard: Mutex<Vec<Heard>>,
    state: Mutex<State>,
}

struct State {
    group: Group,
    /// Bound: the members.
    seats: BTreeMap<MemberId, Seat>,
    effects: Vec<Effect>,
    /// Nobody finds it any more.
    is_closed: bool,
}

impl Groups {
    pub(crate) fn new(incarnation: u64) -> Self {
        let first = incarnation.wrapping_mul(MEMBERS_PER_GROUP << GROUPS_BITS);
        Self { by_id: Mutex::default(), next_member: AtomicU64::new(first.max(1)) }
    }

    /// The group of a subscription, if it has members or had some a moment ago.
    pub(crate) fn get(&self, subscription: SubscriptionId) -> Option<Arc<GroupHandle>> {
        lock(&self.by_id).get(&subscription).cloned()
    }

    /// Somebody becomes a member.
    ///
    /// # Errors
    /// The group does not take it.
    pub(crate) fn join(
        &self,
        hub: &Arc<Hub>,
        topic: &Arc<TopicHandle>,
        subscription: &Subscription,
        now: Now,
        join: &Join,
        seat: &Seat,
    ) -> Result<(Arc<GroupHandle>, MemberId), ErrorBody> {
        loop {
            let group = Arc::clone(lock(&self.by_id).entry(subscription.id).or_insert_with(|| {
                let first = self.next_member.fetch_add(MEMBERS_PER_GROUP, Ordering::Relaxed);
                Arc::new(GroupHandle::new(hub, topic, subscription, now, MemberId(first)))
            }));
            if let Some(joined) = group.join(now, join.clone(), seat) {
                return joined.map(|member| (group, member)).map_err(|error| refused(&error));
            }
            // It was closed between the two locks.
            self.forget(subscription.id, &group);
        }
    }

    fn forget(&self, subscription: SubscriptionId, group: &Arc<GroupHandle>) {
        let mut by_id = lock(&self.by_id);
        if by_id.get(&subscription).is_some_and(|known| Arc::ptr_eq(known, group)) {
            by_id.remove(&subscription);
        }
    }

    /// Does what is due in every group, and forgets those without members.
    pub(crate) fn tick(&self, now: Now) {
        let groups: Vec<_> = lock(&self.by_id).values().cloned().collect();
        for group in groups {
            if group.tick(now) {
                self.forget(group.subscription.id, &group);
            }
        }
    }

    /// Members of all groups, and partitions of them that nobody reads, for the metrics.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let groups: Vec<_> = lock(&self.by_id).values().cloned().collect();
        groups.iter().fold((0, 0), |(members, unowned), group| {
            let state = lock(&group.state);
            let idle = state.group.places().iter().filter(|place| place.unowned_since.is_some());
            (members + state.group.members().count() as u64, unowned + idle.count() as u64)
        })
    }
}

fn refused(error: &JoinError) -> ErrorBody {
    let code = match error {
        JoinError::Full { .. } => ErrorCode::LimitExceeded,
        JoinError::InstanceFlaps { .. } => ErrorCode::SubscriptionTaken,
    };
    ErrorBody::new(code, error.to_string())
}

impl GroupHandle {
    fn new(
        hub: &Arc<Hub>,
        topic: &Arc<TopicHandle>,
        subscription: &Subscription,
        now: Now,
        first: MemberId,
    ) -> Self {
        let partitions = topic.config().partitions;
        let group = Group::new(now.monotonic, hub.options.groups, first, partitions);
        Self {
            hub: Arc::downgrade(hub),
            topic: Arc::downgrade(topic),
            subscription: subscription.clone(),
            heard: Mutex::default(),
            state: Mutex::new(State {
                group,
                seats: BTreeMap::new(),
                effects: Vec::new(),
                is_closed: false,
            }),
        }
    }

    /// `None`: the group is closed, look for the next one.
    fn join(
        self: &Arc<Self>,
        now: Now,
        join: Join,
        seat: &Seat,
    ) -> Option<Result<MemberId, JoinError>> {
        self.with(now, |state| {
            if state.is_closed {
                return None;
            }
            let joined = state.group.join(now.monotonic, join, &mut state.effects);
            if let Ok(member) = joined {
                state.seats.insert(member, seat.clone());
            }
            Some(joined)
        })
    }

    /// A member lives; `false` if it is none.
    pub(crate) fn heartbeat(&self, now: Now, member: MemberId) -> bool {
        lock(&self.state).group.heartbeat(now.monotonic, member)
    }

    /// A member leaves, or its connection has ended.
    pub(crate) fn leave(self: &Arc<Self>, now: Now, member: MemberId, how: Leave) {
        self.with(now, |state| {
            state.seats.remove(&member);
            state.group.leave(now.monotonic, member, how, &mut state.effects);
        });
    }

    /// A member has finished with a partition.
    pub(crate) fn released(
        self: &Arc<Self>,
        now: Now,
        member: MemberId,
        own: (PartitionId, u64),
    ) -> Released {
        self.with(now, |state| state.group.released(now.monotonic, member, own, &mut state.effects))
    }

    /// A partition says something; its lock is held.
    pub(crate) fn hear(self: &Arc<Self>, heard: Heard, outbox: &Arc<Outbox>, wakes: &mut WakeList) {
        lock(&self.heard).push(heard);
        outbox.push_task(SessionTask::Group(GroupNews::Run(Arc::clone(self))));
        wakes.mark(outbox);
    }

    /// Takes what partitions have said.
    pub(crate) fn run(self: &Arc<Self>, now: Now) {
        self.with(now, |_state| ());
    }

    /// Tells whether it is over.
    fn tick(self: &Arc<Self>, now: Now) -> bool {
        let exists = |topic: &Arc<TopicHandle>| {
            !topic.is_deleted() && topic.subscriptions().contains_key(&self.subscription.id)
        };
        let topic = self.topic.upgrade().filter(exists);
        self.with(now, |state| {
            let State { group, effects, .. } = state;
            match &topic {
                Some(topic) => {
                    group.partitions_changed(now.monotonic, topic.config().partitions, effects);
                    group.tick(now.monotonic, effects);
                }
                None => group.close(now.monotonic, effects),
            }
            state.is_closed = group.is_empty() && (topic.is_none() || !group.is_asking());
            state.is_closed
        })
    }

    /// Does `work`, then carries out what follows from it and from what partitions say meanwhile.
    fn with<R>(self: &Arc<Self>, now: Now, work: impl FnOnce(&mut State) -> R) -> R {
        let mut wakes = WakeList::default();
        let mut state = lock(&self.state);
        self.listen(&mut state, now, &mut wakes);
        let result = work(&mut state);
        self.carry_out(&mut state, now, &mut wakes);
        self.listen(&mut state, now, &mut wakes);
        drop(state);
        wakes.wake();
        result
    }

    fn listen(self: &Arc<Self>, state: &mut State, now: Now, wakes: &mut WakeList) {
        loop {
            let heard = std::mem::take(&mut *lock(&self.heard));
            if heard.is_empty() {
                return;
            }
            for one in heard {
                self.take_in(state, one, now, wakes);
                self.carry_out(state, now, wakes);
            }
        }
    }

    fn take_in(&self, state: &mut State, heard: Heard, now: Now, wakes: &mut WakeList) {
        let State { group, seats, effects, .. } = state;
        match heard {
            Heard::OwnerSet { partition, owner_epoch, next } => {
                group.owner_set(now.monotonic, partition, (owner_epoch, next), effects);
            }
            Heard::Refused { partition } => group.owner_refused(now.monotonic, partition),
            Heard::Taken { partition } => group.taken(now.monotonic, partition, effects),
            Heard::Sought { partition, owner_epoch, next } => {
                group.sought(partition, owner_epoch);
                let at = usize::try_from(partition.0).unwrap_or(usize::MAX);
                let holder = group.places().get(at).and_then(|place| place.holding.holder());
                if let Some(seat) = holder.and_then(|holder| seats.get(&holder)) {
                    let reader = seat.reader;
                    let task = SessionTask::Seeked { reader, partition, owner_epoch, next };
                    seat.outbox.push_task(task);
                    wakes.mark(&seat.outbox);
                }
            }
        }
    }

    fn carry_out(self: &Arc<Self>, state: &mut State, now: Now, wakes: &mut WakeList) {
        for effect in std::mem::take(&mut state.effects) {
            let member = match effect {
                Effect::SetOwner { partition, member } => {
                    self.ask(state.seats.get(&member), partition, now);
                    continue;
                }
                Effect::Unowned { partition, since } => {
                    self.report(partition, now.monotonic.saturating_sub(since));
                    continue;
                }
                Effect::Assign { member, .. }
                | Effect::Revoke { member, .. }
                | Effect::Lost { member, .. }
                | Effect::Fenced { member, .. } => member,
            };
            let is_over = matches!(effect, Effect::Fenced { .. });
            let seat = if is_over {
                state.seats.remove(&member)
            } else {
                state.seats.get(&member).cloned()
            };
            if let Some(Seat { outbox, reader }) = seat {
                outbox.push_task(SessionTask::Group(news(reader, effect, now)));
                wakes.mark(&outbox);
            }
        }
    }

    /// Asks a partition for an owner epoch.
    fn ask(self: &Arc<Self>, seat: Option<&Seat>, partition: PartitionId, now: Now) {
        let topic = self.topic.upgrade();
        let asked = seat.zip(topic).map(|(seat, topic)| {
            let grant = Arc::new(Grant { group: Arc::clone(self), seat: seat.clone() });
            let partition = topic.partition(partition)?;
            partition.lead(now, |leader, turn| {
                leader.own(&partition, &self.subscription, Route::Group(grant), turn);
            })
        });
        if !matches!(asked, Some(Ok(()))) {
            lock(&self.heard).push(Heard::Refused { partition });
        }
    }

    fn report(&self, partition: PartitionId, time: Duration) {
        if let Some(hub) = self.hub.upgrade() {
            hub.counters.unowned_partitions.add(1);
        }
        tracing::warn!(
            topic = self.topic.upgrade().map(|topic| topic.name.clone()),
            group = self.subscription.name,
            %partition,
            seconds = time.as_secs(),
            "a partition of a consumer group has no owner"
        );
    }

    /// The members, and for each partition its holder, its target, and for how long it has had no owner.
    pub(crate) fn describe(&self, now: Now) -> (Vec<GroupMember>, Vec<Whose>) {
        let state = lock(&self.state);
        let members = state.group.members().map(|(id, member)| GroupMember {
            member: id.0,
            instance: member.instance.clone(),
            connected: member.is_connected,
            session_timeout_ms: ms(member.session_timeout),
        });
        let whose = state.group.places().iter().map(|place| Whose {
            holder: place.holding.holder().map(|member| member.0),
            target: place.target.map(|member| member.0),
            unowned: place.unowned_since.map(|since| now.monotonic.saturating_sub(since)),
        });
        (members.collect(), whose.collect())
    }

    /// Whether anybody is a member.
    pub(crate) fn has_members(&self) -> bool {
        !lock(&self.state).group.is_empty()
    }
}

/// Who reads a partition.
pub(crate) struct Whose {
    pub(crate) holder: Option<u64>,
    pub(crate) target: Option<u64>,
    pub(crate) unowned: Option<Duration>,
}

/// A duration on the wire; above 49 days it is that.
pub(crate) fn ms(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn news(reader: u64, effect: Effect, now: Now) -> GroupNews {
    match effect {
        Effect::Assign { partition, owner_epoch, next, .. } => {
            GroupNews::Assigned { reader, partition, owner_epoch, next }
        }
        Effect::Revoke { partition, owner_epoch, deadline, .. } => {
            let drain = deadline.saturating_sub(now.monotonic);
            GroupNews::Revoked { reader, partition, owner_epoch, drain }
        }
        Effect::Lost { partition, owner_epoch, .. } => {
            GroupNews::Lost { reader, partition, owner_epoch }
        }
        Effect::Fenced { reason, .. } => {
            let (code, text) = match reason {
                FenceReason::TimedOut => {
                    (ErrorCode::TimedOut, "no heartbeat within the session timeout; join again")
                }
                FenceReason::Replaced => (
                    ErrorCode::SubscriptionTaken,
                    "another process joined with this instance id, or this one again",
                ),
                FenceReason::Deleted => {
                    (ErrorCode::UnknownSubscription, "the subscription was deleted")
                }
            };
            GroupNews::Fenced { reader, error: ErrorBody::new(code, text) }
        }
        Effect::SetOwner { .. } | Effect::Unowned { .. } => {
            unreachable!("no member is told of it")
        }
    }
}
