//! Owns the group itself: events in, effects out. Never asks twice for one partition at a time, never tells a
//! member of a partition before the partition's log says that it is the owner. Driven by the join.

use std::time::Duration;

use postrider_protocol::types::{Offset, PartitionId};

use super::assignor::{Claim, assign};
use super::effect::{
    Effect, FenceReason, GroupOptions, Join, JoinError, Leave, MemberId, Released,
};
use super::members::{Joined, Member, Members};
use super::places::{Holding, Place};

/// The members of one stream subscription. See the module `group`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    options: GroupOptions,
    members: Members,
    /// By partition. Bound: the topic's partitions.
    places: Vec<Place>,
    last_tick: Duration,
    /// Before this moment a tick has nothing to do.
    due: Duration,
}

impl Group {
    /// A group without members on a topic of so many partitions. Members are numbered from `first` on: as
    /// long as no number below was ever given out for this subscription, a member of an earlier group is
    /// nobody in this one.
    #[must_use]
    pub fn new(now: Duration, options: GroupOptions, first: MemberId, partitions: u32) -> Self {
        Self {
            options,
            members: Members::new(first),
            places: (0..partitions).map(|_| Place::default()).collect(),
            last_tick: now,
            due: Duration::MAX,
        }
    }

    /// The members, by id.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.members.iter()
    }

    /// The partitions, from 0 on.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Whether nobody is a member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a partition has still to answer.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.places.iter().any(|place| matches!(place.holding, Holding::Setting { .. }))
    }

    /// Somebody becomes a member; its partitions follow, one by one.
    ///
    /// # Errors
    /// It does not, and the group is as before.
    pub fn join(
        &mut self,
        now: Duration,
        join: Join,
        effects: &mut Vec<Effect>,
    ) -> Result<MemberId, JoinError> {
        let is_first = self.members.is_empty();
        let Joined { member, predecessor } = self.members.join(now, join, &self.options)?;
        if is_first {
            self.places.iter_mut().for_each(|place| place.begin(now));
        }
        match predecessor {
            Some((old, facts)) => self.replace(now, (old, &facts), member, effects),
            None => self.rebalance(now, effects),
        }
        Ok(member)
    }

    /// The new one has what the old one had; nothing else moves.
    fn replace(
        &mut self,
        now: Duration,
        (old, facts): (MemberId, &Member),
        new: MemberId,
        effects: &mut Vec<Effect>,
    ) {
        if facts.is_connected {
            effects.push(Effect::Fenced { member: old, reason: FenceReason::Replaced });
        }
        for place in &mut self.places {
            if place.holding.holder() == Some(old) {
                place.vacate(now);
            }
            if place.target == Some(old) {
                place.target = Some(new);
            }
        }
        self.reconcile_all(now, effects);
    }

    /// A member says that it lives; false if it is none.
    #[must_use]
    pub fn heartbeat(&mut self, now: Duration, member: MemberId) -> bool {
        self.members.heartbeat(now, member)
    }

    /// A member's connection ended. Its partitions wait for it for a while.
    pub fn lost(&mut self, now: Duration, member: MemberId, effects: &mut Vec<Effect>) {
        if !self.members.lost(now, member, &self.options) {
            return;
        }
        for place in &mut self.places {
            if place.holding.holder() == Some(member) {
                place.vacate(now);
            }
        }
        self.reconcile_all(now, effects);
    }

    /// A member leaves. One that is none has left already.
    pub fn leave(
        &mut self,
        now: Duration,
        member: MemberId,
        how: Leave,
        effects: &mut Vec<Effect>,
    ) {
        match how {
            Leave::KeepPlace => self.lost(now, member, effects),
            Leave::Release => {
                if let Some(facts) = self.members.remove(member) {
                    self.forget(now, member, facts);
                    self.rebalance(now, effects);
                }
            }
        }
    }

    /// A member is none any more: nothing is held by it or meant for it.
    fn forget(&mut self, now: Duration, member: MemberId, facts: Member) {
        for place in &mut self.places {
            let had = place.target == Some(member);
            if place.holding.holder() == Some(member) {
                place.vacate(now);
            }
            if had {
                place.target = None;
                if let Some(instance) = &facts.instance {
                    place.former = Some(instance.clone());
                }
            }
        }
        if self.members.is_empty() {
            self.places.iter_mut().for_each(Place::rest);
        }
    }

    /// A member has finished with a partition that was revoked.
    pub fn released(
        &mut self,
        now: Duration,
        member: MemberId,
        (partition, owner_epoch): (PartitionId, u64),
        effects: &mut Vec<Effect>,
    ) -> Released {
        let Some(place) = self.place(partition) else { return Released::Stale };
        match place.holding {
            Holding::Draining { member: holder, granted, owner_epoch: newest, .. }
                if holder == member && (granted..=newest).contains(&owner_epoch) =>
            {
                place.vacate(now);
                self.reconcile(now, partition, effects);
                Released::Done
            }
            Holding::Owned { member: holder, granted, owner_epoch: newest }
                if holder == member && (granted..=newest).contains(&owner_epoch) =>
            {
                Released::NotRevoked
            }
            Holding::Unowned
            | Holding::Setting { .. }
            | Holding::Owned { .. }
            | Holding::Draining { .. } => Released::Stale,
        }
    }

    /// A partition has committed the epoch that it was asked for; its position is `next`.
    ///
    /// # Panics
    /// If it was not asked.
    pub fn owner_set(
        &mut self,
        now: Duration,
        partition: PartitionId,
        (owner_epoch, next): (u64, Offset),
        effects: &mut Vec<Effect>,
    ) {
        let member = self.answered(partition);
        let Some(place) = self.place(partition) else { return };
        let target = place.target;
        if target == Some(member) && self.members.is_connected(member) {
            let Some(place) = self.place(partition) else { return };
            place.fill(member, owner_epoch);
            effects.push(Effect::Assign { member, partition, owner_epoch, next });
        } else {
            self.reconcile(now, partition, effects);
        }
    }

    /// A partition could not commit an epoch. It is asked again later.
    ///
    /// # Panics
    /// If it was not asked.
    pub fn owner_refused(&mut self, now: Duration, partition: PartitionId) {
        self.answered(partition);
        self.not_before(partition, now);
    }

    /// The member for which an epoch was asked; nobody is from here on.
    fn answered(&mut self, partition: PartitionId) -> MemberId {
        let holding = self.place(partition).map(|place| std::mem::take(&mut place.holding));
        match holding {
            Some(Holding::Setting { member }) => member,
            other => panic!("partition {partition} answers what it was not asked: {other:?}"),
        }
    }

    fn not_before(&mut self, partition: PartitionId, now: Duration) {
        let retry = now.saturating_add(self.options.retry);
        if let Some(place) = self.place(partition) {
            place.not_before = retry;
        }
        self.due = Duration::ZERO;
    }

    /// The subscription was moved on a partition: whoever has it goes on with a new epoch.
    pub fn sought(&mut self, partition: PartitionId, new_epoch: u64) {
        if let Some(place) = self.place(partition) {
            match &mut place.holding {
                Holding::Owned { owner_epoch, .. } | Holding::Draining { owner_epoch, .. } => {
                    *owner_epoch = new_epoch.max(*owner_epoch);
                }
                Holding::Unowned | Holding::Setting { .. } => {}
            }
        }
    }

    /// Somebody outside the group became the owner of a partition. It is asked for back a little later.
    pub fn taken(&mut self, now: Duration, partition: PartitionId, effects: &mut Vec<Effect>) {
        let Some(place) = self.place(partition) else { return };
        match place.holding {
            Holding::Owned { member, owner_epoch, .. }
            | Holding::Draining { member, owner_epoch, .. } => {
                effects.push(Effect::Lost { member, partition, owner_epoch });
                place.vacate(now);
                self.not_before(partition, now);
            }
            Holding::Unowned | Holding::Setting { .. } => {}
        }
    }

    /// The topic has so many partitions; never fewer than before.
    pub fn partitions_changed(
        &mut self,
        now: Duration,
        partitions: u32,
        effects: &mut Vec<Effect>,
    ) {
        let count = usize::try_from(partitions).unwrap_or(usize::MAX);
        if count <= self.places.len() {
            return;
        }
        let is_empty = self.members.is_empty();
        self.places.resize_with(count, || {
            let mut place = Place::default();
            if !is_empty {
                place.begin(now);
            }
            place
        });
        self.rebalance(now, effects);
    }

    /// The subscription is deleted.
    pub fn close(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        for member in self.members.ids() {
            if let Some(facts) = self.members.remove(member) {
                if facts.is_connected {
                    effects.push(Effect::Fenced { member, reason: FenceReason::Deleted });
                }
                self.forget(now, member, facts);
            }
        }
    }

    /// Does what is due: members that are silent, drains that take too long, partitions to ask again, and
    /// to report.
    pub fn tick(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let passed = now.saturating_sub(std::mem::replace(&mut self.last_tick, now));
        if passed > self.options.stall {
            self.prolong(passed);
        }
        if now < self.due {
            return;
        }
        self.expire_members(now, effects);
        for at in 0..self.places.len() {
            self.tick_place(now, at, effects);
        }
        let bound = self.options.unowned_bound;
        let places = self.places.iter().filter_map(|place| place.due(now, bound));
        self.due = places.chain(self.members.due()).min().unwrap_or(Duration::MAX);
    }

    /// This process stood still: nobody could be heard.
    fn prolong(&mut self, by: Duration) {
        self.members.prolong(by);
        for place in &mut self.places {
            if let Holding::Draining { deadline, .. } = &mut place.holding {
                *deadline = deadline.saturating_add(by);
            }
        }
    }

    fn expire_members(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let expired = self.members.expire(now);
        if expired.is_empty() {
            return;
        }
        for (member, facts) in expired {
            if facts.is_connected {
                effects.push(Effect::Fenced { member, reason: FenceReason::TimedOut });
            }
            self.forget(now, member, facts);
        }
        self.rebalance(now, effects);
    }

    fn tick_place(&mut self, now: Duration, at: usize, effects: &mut Vec<Effect>) {
        let bound = self.options.unowned_bound;
        let partition = id(at);
        let Some(place) = self.places.get_mut(at) else { return };
        if let Holding::Draining { member, owner_epoch, deadline, .. } = place.holding
            && deadline <= now
        {
            effects.push(Effect::Lost { member, partition, owner_epoch });
            place.vacate(now);
        }
        if let Some(since) = place.unowned_since
            && !place.is_reported
            && since.saturating_add(bound) <= now
        {
            place.is_reported = true;
            effects.push(Effect::Unowned { partition, since });
        }
        self.reconcile(now, partition, effects);
    }

    /// Decides anew who should read what, and begins to bring it about.
    fn rebalance(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let claims: Vec<Claim> = self
            .places
            .iter()
            .map(|place| Claim {
                target: place.target,
                is_held: matches!(place.holding, Holding::Owned { .. }),
                former: place.former.as_deref().and_then(|name| self.members.with_instance(name)),
            })
            .collect();
        let targets = assign(&self.members.ids(), &claims);
        for (place, target) in self.places.iter_mut().zip(targets) {
            place.target = target;
        }
        self.reconcile_all(now, effects);
    }

    fn reconcile_all(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        for at in 0..self.places.len() {
            self.reconcile(now, id(at), effects);
        }
    }

    /// Takes the next step from who has a partition to who should.
    fn reconcile(&mut self, now: Duration, partition: PartitionId, effects: &mut Vec<Effect>) {
        self.due = Duration::ZERO;
        let Some(place) = self.place(partition) else { return };
        let Some(target) = place.target else { return };
        match place.holding {
            Holding::Unowned => {
                let is_early = now < place.not_before;
                if !is_early && self.members.is_connected(target) {
                    let Some(place) = self.place(partition) else { return };
                    place.holding = Holding::Setting { member: target };
                    effects.push(Effect::SetOwner { partition, member: target });
                }
            }
            Holding::Owned { member, granted, owner_epoch } if member != target => {
                let deadline = now.saturating_add(self.options.drain_timeout);
                let Some(place) = self.place(partition) else { return };
                place.holding = Holding::Draining { member, granted, owner_epoch, deadline };
                effects.push(Effect::Revoke { member, partition, owner_epoch, deadline });
            }
            Holding::Setting { .. } | Holding::Owned { .. } | Holding::Draining { .. } => {}
        }
    }

    fn place(&mut self, partition: PartitionId) -> Option<&mut Place> {
        self.places.get_mut(usize::try_from(partition.0).ok()?)
    }
}

fn id(at: usize) -> PartitionId {
    PartitionId(u32::try_from(at).expect("a topic has at most 16,384 partitions"))
}
