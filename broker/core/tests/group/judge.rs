//! Owns what a group owes, said naively: who is a member until when, who was granted what, what may be said to
//! whom. Never looks at how the group decides.
//!
//! | property | where it is checked |
//! |---|---|
//! | D1 one owner epoch commits | `effect` (SetOwner only of what nobody holds, one at a time; Assign only of the epoch just set), `partition::ack` |
//! | D2 positions only rise | `partition::ack`, `partition::begins` |
//! | D3 all assigned, in time | `after` (nothing lies idle at any moment), `World::settle` (within the bound, balanced) |
//! | D4 churn fences nobody | `effect` (Fenced, Lost, Revoke: only whom and when it is due, and no more than must move) |
//! | D5 clean hand-over | `partition::begins` |
//! | D6 seek | `partition::seek`, `Client::take` |
//! | C1 order within an epoch, continuation | `Client::take`, `partition::delivered`, `partition::begins` |

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_core::group::{Effect, FenceReason, Group, GroupOptions, Holding, Leave, MemberId};

use crate::partition::Partition;

/// What the group was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Joined { replaced: Option<MemberId> },
    OwnerSet { partition: usize, member: MemberId, next: u64 },
    Taken(usize),
    Tick,
    Other,
}

#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) instance: Option<String>,
    pub(crate) session_timeout: Duration,
    pub(crate) deadline: Duration,
    pub(crate) is_connected: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) member: MemberId,
    pub(crate) epoch: u64,
    pub(crate) revoked: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Spell {
    since: Option<Duration>,
    is_reported: bool,
    retry_at: Duration,
}

pub(crate) struct Judge {
    pub(crate) now: Duration,
    pub(crate) options: GroupOptions,
    pub(crate) members: BTreeMap<MemberId, Known>,
    grants: BTreeMap<usize, Grant>,
    spells: Vec<Spell>,
    /// Revocations of the present event, and how many there had to be.
    revokes: usize,
    surplus: usize,
}

impl Judge {
    pub(crate) fn new(options: GroupOptions, partitions: usize) -> Self {
        Self {
            now: Duration::ZERO,
            options,
            members: BTreeMap::new(),
            grants: BTreeMap::new(),
            spells: vec![Spell::default(); partitions],
            revokes: 0,
            surplus: 0,
        }
    }

    pub(crate) fn connected(&self) -> impl Iterator<Item = MemberId> {
        self.members.iter().filter(|(_, known)| known.is_connected).map(|(id, _)| *id)
    }

    pub(crate) fn grant(&self, partition: usize) -> Option<Grant> {
        self.grants.get(&partition).copied()
    }

    pub(crate) fn unrevoked(&self) -> impl Iterator<Item = (usize, Grant)> {
        let held = self.grants.iter().filter(|(_, grant)| grant.revoked.is_none());
        held.map(|(partition, grant)| (*partition, *grant))
    }

    /// Somebody is a member now, in the place of another or not.
    pub(crate) fn joined(&mut self, member: MemberId, known: Known, replaced: Option<MemberId>) {
        if self.members.is_empty() {
            for spell in &mut self.spells {
                *spell =
                    Spell { since: Some(self.now), retry_at: spell.retry_at, ..Spell::default() };
            }
        }
        if let Some(replaced) = replaced {
            self.vacate_all(replaced);
            self.members.remove(&replaced);
        }
        let before = self.members.insert(member, known);
        assert!(before.is_none(), "a member's number is never used again");
    }

    pub(crate) fn heartbeat(&mut self, member: MemberId) -> bool {
        let now = self.now;
        match self.members.get_mut(&member).filter(|known| known.is_connected) {
            Some(known) => {
                known.deadline = now + known.session_timeout;
                true
            }
            None => false,
        }
    }

    pub(crate) fn leaves(&mut self, member: MemberId, how: Leave) {
        match how {
            Leave::Release => self.forget(member),
            Leave::KeepPlace => {
                let (now, reconnect) = (self.now, self.options.reconnect_timeout);
                let Some(known) = self.members.get_mut(&member) else { return };
                if !known.is_connected {
                    return;
                }
                known.is_connected = false;
                known.deadline = now
                    + match known.instance {
                        Some(_) => known.session_timeout,
                        None => known.session_timeout.min(reconnect),
                    };
                self.vacate_all(member);
            }
        }
    }

    fn forget(&mut self, member: MemberId) {
        self.vacate_all(member);
        self.members.remove(&member);
        if self.members.is_empty() {
            for spell in &mut self.spells {
                *spell = Spell { retry_at: spell.retry_at, ..Spell::default() };
            }
        }
    }

    fn vacate_all(&mut self, member: MemberId) {
        let held: Vec<usize> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.member == member)
            .map(|(partition, _)| *partition)
            .collect();
        held.into_iter().for_each(|partition| self.vacate(partition));
    }

    pub(crate) fn vacate(&mut self, partition: usize) {
        self.grants.remove(&partition);
        self.spells[partition].since.get_or_insert(self.now);
    }

    pub(crate) fn refused(&mut self, partition: usize) {
        self.spells[partition].retry_at = self.now + self.options.retry;
    }

    pub(crate) fn sought(&mut self, partition: usize, epoch: u64) {
        if let Some(grant) = self.grants.get_mut(&partition) {
            grant.epoch = epoch;
        }
    }

    pub(crate) fn grown(&mut self, partitions: usize) {
        let since = (!self.members.is_empty()).then_some(self.now);
        self.spells.resize(partitions, Spell { since, ..Spell::default() });
    }

    /// The group's process stood still.
    pub(crate) fn prolong(&mut self, by: Duration) {
        for known in self.members.values_mut() {
            known.deadline += by;
        }
        for deadline in self.grants.values_mut().filter_map(|grant| grant.revoked.as_mut()) {
            *deadline += by;
        }
    }

    /// The group may say this now.
    pub(crate) fn effect(&mut self, cause: &Cause, effect: Effect, partitions: &mut [Partition]) {
        match effect {
            Effect::SetOwner { partition, member } => {
                let at = partition.0 as usize;
                assert!(partitions[at].asked.is_none(), "one question at a time");
                assert!(!self.grants.contains_key(&at), "D1, D5: {at} is held or draining");
                assert!(self.is_connected(member), "SetOwner for nobody");
                assert!(self.spells[at].retry_at <= self.now, "asked again too early");
                partitions[at].asked = Some(member);
            }
            Effect::Assign { member, partition, owner_epoch, next } => {
                let at = partition.0 as usize;
                assert_eq!(*cause, Cause::OwnerSet { partition: at, member, next: next.0 });
                assert_eq!(owner_epoch, partitions[at].epoch, "D1: the newest epoch");
                assert!(self.is_connected(member), "assigned to nobody");
                partitions[at].begins(next.0);
                let grant = Grant { member, epoch: owner_epoch, revoked: None };
                assert!(self.grants.insert(at, grant).is_none(), "D1: two owners");
                self.spells[at].since = None;
                self.spells[at].is_reported = false;
            }
            Effect::Revoke { member, partition, owner_epoch, deadline } => {
                if self.revokes == 0 {
                    self.surplus = self.surplus();
                }
                let grant = self.grants.get_mut(&(partition.0 as usize)).expect("it was granted");
                assert_eq!((grant.member, grant.epoch), (member, owner_epoch));
                assert!(grant.revoked.is_none(), "revoked twice");
                assert_eq!(deadline, self.now + self.options.drain_timeout);
                grant.revoked = Some(deadline);
                self.revokes += 1;
            }
            Effect::Lost { member, partition, owner_epoch } => {
                let at = partition.0 as usize;
                let grant = self.grants[&at];
                assert_eq!((grant.member, grant.epoch), (member, owner_epoch));
                let is_over = grant.revoked.is_some_and(|deadline| deadline <= self.now);
                let is_due = *cause == Cause::Taken(at) || (*cause == Cause::Tick && is_over);
                assert!(is_due, "D4: taken before its time");
                self.vacate(at);
                if *cause == Cause::Taken(at) {
                    self.refused(at);
                }
            }
            Effect::Fenced { member, reason } => self.fenced(cause, member, reason),
            Effect::Unowned { partition, since } => {
                let spell = &mut self.spells[partition.0 as usize];
                assert_eq!((cause, spell.since), (&Cause::Tick, Some(since)));
                assert!(!spell.is_reported && since + self.options.unowned_bound <= self.now);
                spell.is_reported = true;
            }
        }
    }

    fn fenced(&mut self, cause: &Cause, member: MemberId, reason: FenceReason) {
        match reason {
            FenceReason::Replaced => {
                assert_eq!(*cause, Cause::Joined { replaced: Some(member) });
            }
            FenceReason::TimedOut => {
                let known = &self.members[&member];
                assert!(known.is_connected && *cause == Cause::Tick);
                assert!(known.deadline <= self.now, "D4: fenced while it met its deadlines");
                self.forget(member);
            }
            FenceReason::Deleted => panic!("nobody deleted the subscription"),
        }
    }

    /// A tick begins: nobody is told that somebody who is away has not come back in time.
    pub(crate) fn ticks(&mut self) {
        let away = self.members.iter().filter(|(_, known)| !known.is_connected);
        let over = away.filter(|(_, known)| known.deadline <= self.now);
        let over: Vec<MemberId> = over.map(|(id, _)| *id).collect();
        over.into_iter().for_each(|member| self.forget(member));
    }

    /// What must be so after each event.
    pub(crate) fn after(&mut self, cause: &Cause, group: &Group, partitions: &[Partition]) {
        if *cause == Cause::Tick {
            self.check_due();
        }
        self.check_members(group);
        self.check_holdings(group, partitions);
        self.check_idle(partitions);
        self.check_revokes();
    }

    fn check_due(&self) {
        for (member, known) in &self.members {
            assert!(known.deadline > self.now, "{member:?} is silent and still a member");
        }
        for (partition, grant) in &self.grants {
            let is_over = grant.revoked.is_some_and(|deadline| deadline <= self.now);
            assert!(!is_over, "the drain of {partition} takes too long");
        }
        for (partition, spell) in self.spells.iter().enumerate() {
            let is_late =
                spell.since.is_some_and(|since| since + self.options.unowned_bound <= self.now);
            assert!(spell.is_reported || !is_late, "{partition} is unowned and nobody is told");
        }
    }

    fn check_members(&self, group: &Group) {
        let own = group.members().map(|(id, member)| (id, member.is_connected, member.deadline));
        let known = self.members.iter();
        let known = known.map(|(id, known)| (*id, known.is_connected, known.deadline));
        assert!(own.eq(known), "the members are those who joined and live");
    }

    fn check_holdings(&self, group: &Group, partitions: &[Partition]) {
        for (at, place) in group.places().iter().enumerate() {
            let grant = self.grants.get(&at);
            let own = match place.holding {
                Holding::Unowned => (None, None, None),
                Holding::Setting { member } => (Some(member), None, None),
                Holding::Owned { member, owner_epoch, .. } => {
                    (None, Some((member, owner_epoch)), None)
                }
                Holding::Draining { member, owner_epoch, deadline, .. } => {
                    (None, Some((member, owner_epoch)), Some(deadline))
                }
            };
            let naive = (
                partitions[at].asked,
                grant.map(|grant| (grant.member, grant.epoch)),
                grant.and_then(|grant| grant.revoked),
            );
            assert_eq!(own, naive, "partition {at}");
        }
    }

    /// D3: whatever has no owner is on its way to one, or its member is on its way back.
    fn check_idle(&self, partitions: &[Partition]) {
        let away = self.members.values().filter(|known| !known.is_connected).count();
        if self.members.len() == away {
            return;
        }
        let is_idle = |at: &usize| {
            let waits = self.spells[*at].retry_at > self.now;
            partitions[*at].asked.is_none() && !self.grants.contains_key(at) && !waits
        };
        let idle = (0..partitions.len()).filter(is_idle).count();
        let share = partitions.len().div_ceil(self.members.len());
        assert!(idle <= away * share, "{idle} partitions lie idle");
    }

    /// D4: nothing moves that need not, and nobody keeps what is another's share.
    fn check_revokes(&mut self) {
        assert!(self.revokes <= self.surplus, "{} revoked of {}", self.revokes, self.surplus);
        assert_eq!(self.surplus(), 0, "somebody keeps too much");
        (self.revokes, self.surplus) = (0, 0);
    }

    /// How many partitions must be revoked for balance.
    pub(crate) fn surplus(&self) -> usize {
        let mut held: BTreeMap<MemberId, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        for grant in self.grants.values().filter(|grant| grant.revoked.is_none()) {
            *held.entry(grant.member).or_default() += 1;
        }
        let Some(least) = self.spells.len().checked_div(held.len()) else { return 0 };
        let over = self.spells.len() % held.len();
        let mut counts: Vec<usize> = held.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let quota = |rank: usize| least + usize::from(rank < over);
        counts.iter().enumerate().map(|(rank, held)| held.saturating_sub(quota(rank))).sum()
    }

    fn is_connected(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|known| known.is_connected)
    }
}
