//! Owns a history: the group under test, its partitions and clients, the broker's sessions between them, and
//! what happens next. Never judges what the group says (`judge` does).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use postrider_core::group::{
    Effect, FenceReason, Group, GroupOptions, Join, JoinError, Leave, MemberId, Released,
};
use postrider_protocol::types::{Offset, PartitionId};

use crate::client::{Client, Life, Told};
use crate::judge::{Cause, Grant, Judge, Known};
use crate::partition::Partition;
use crate::planted::Planted;
use crate::random::Random;

const OPTIONS: GroupOptions = GroupOptions {
    session_timeout_min: Duration::from_secs(1),
    session_timeout_max: Duration::from_secs(6),
    reconnect_timeout: Duration::from_millis(1_500),
    drain_timeout: Duration::from_secs(2),
    retry: Duration::from_millis(300),
    unowned_bound: Duration::from_secs(4),
    stall: Duration::from_secs(1),
};
const CLIENTS_MAX: usize = 8;
const PARTITIONS_MAX: usize = 16;
const INSTANCES: u64 = 4;

/// How often each case was met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

const CASES: &[&str] = &[
    "assigned",
    "clean hand-over",
    "drain too long",
    "fenced acknowledgement",
    "flaps",
    "message for an owner before",
    "more members than partitions",
    "owner refused",
    "partitions added",
    "reported unowned",
    "resumed",
    "instance restarted",
    "instance stolen",
    "revoked",
    "sought",
    "stale release",
    "stood still",
    "taken from outside",
    "timed out",
];

impl Counts {
    fn hit(&mut self, case: &'static str) {
        assert!(CASES.contains(&case), "{case} is in the list");
        *self.0.entry(case).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (case, count) in &other.0 {
            *self.0.entry(case).or_default() += count;
        }
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CASES.iter().map(|case| (*case, self.0.get(case).copied().unwrap_or(0)))
    }
}

/// What a session of the broker reads for a member.
#[derive(Clone, Copy)]
struct Cursor {
    member: MemberId,
    next: u64,
    is_paused: bool,
}

pub(crate) struct World {
    random: Random,
    planted: Option<Planted>,
    group: Group,
    judge: Judge,
    partitions: Vec<Partition>,
    /// By partition: its owner's reading.
    cursors: BTreeMap<usize, Cursor>,
    clients: Vec<Client>,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64, planted: Option<Planted>) -> Self {
        let mut random = Random::new(seed);
        let count = 1 + random.index(10);
        Self {
            random,
            planted,
            group: Group::new(
                Duration::ZERO,
                OPTIONS,
                MemberId(seed),
                u32::try_from(count).unwrap(),
            ),
            judge: Judge::new(OPTIONS, count),
            partitions: (0..count)
                .map(|_| Partition { is_clean: true, ..Partition::default() })
                .collect(),
            cursors: BTreeMap::new(),
            clients: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn step(&mut self) {
        match self.random.below(1_000) {
            0..14 => self.join(),
            14..16 => self.steal(),
            16..20 => self.leave(),
            20..24 => self.kill(),
            24..34 => self.pause_or_go_on(),
            34..42 => self.break_connection(),
            42..44 => self.grow(),
            44..52 => self.seek(),
            52..54 => self.take_from_outside(),
            54..55 => self.stand_still(),
            55..200 => {
                let ms = self.random.below(400);
                self.advance(Duration::from_millis(ms));
            }
            200..300 => self.everyone_beats(),
            300..480 => self.commit_owner(),
            480..680 => self.hear(),
            680..780 => self.deliver(),
            780..860 => self.publish(),
            860..930 => self.acknowledge(),
            _ => self.release(),
        }
    }

    /// Tells the group something, and carries out what it says.
    fn tell(&mut self, cause: &Cause, effects: &mut Vec<Effect>) {
        if let Some(planted) = self.planted {
            planted.spoil(&self.judge, effects);
        }
        for effect in effects.drain(..) {
            self.judge.effect(cause, effect, &mut self.partitions);
            self.carry_out(effect);
        }
        self.judge.after(cause, &self.group, &self.partitions);
    }

    fn carry_out(&mut self, effect: Effect) {
        let (member, told) = match effect {
            Effect::SetOwner { .. } => return,
            Effect::Unowned { .. } => return self.counts.hit("reported unowned"),
            Effect::Assign { member, partition, owner_epoch, next } => {
                self.counts.hit("assigned");
                let at = partition.0 as usize;
                self.cursors.insert(at, Cursor { member, next: next.0, is_paused: false });
                (member, Told::Assigned { partition: at, epoch: owner_epoch, next: next.0 })
            }
            Effect::Revoke { member, partition, owner_epoch, .. } => {
                self.counts.hit("revoked");
                let at = partition.0 as usize;
                self.cursors.get_mut(&at).unwrap().is_paused = true;
                (member, Told::Revoked { partition: at, epoch: owner_epoch })
            }
            Effect::Lost { member, partition, owner_epoch } => {
                let at = partition.0 as usize;
                self.cursors.remove(&at);
                (member, Told::Lost { partition: at, epoch: owner_epoch })
            }
            Effect::Fenced { member, reason } => {
                if reason == FenceReason::TimedOut {
                    self.counts.hit("timed out");
                }
                self.close_session(member);
                (member, Told::Fenced)
            }
        };
        if let Some(client) = self.clients.iter_mut().find(|client| client.member == member) {
            client.inbox.push_back(told);
        }
    }

    fn close_session(&mut self, member: MemberId) {
        self.cursors.retain(|_, cursor| cursor.member != member);
    }

    fn join(&mut self) {
        if self.clients.len() >= CLIENTS_MAX {
            let dead = |client: &Client| client.life == Life::Dead || client.is_fenced;
            let Some(at) = self.clients.iter().position(dead) else { return };
            self.clients.remove(at);
        }
        let instance = match self.random.below(2 * INSTANCES) {
            number @ 0..INSTANCES => Some(format!("instance-{number}")),
            _ => None,
        };
        let session_timeout = Duration::from_millis(500 + self.random.below(6_000));
        self.join_as(Join { resumes: None, instance, session_timeout });
    }

    /// Another process comes with the instance id of one that lives, again and again.
    fn steal(&mut self) {
        let Some(at) = self.running() else { return };
        let Client { instance, session_timeout, .. } = &self.clients[at];
        if instance.is_none() {
            return;
        }
        let (instance, session_timeout) = (instance.clone(), *session_timeout);
        for _ in 0..5 {
            let join = Join { resumes: None, instance: instance.clone(), session_timeout };
            self.join_as(join);
        }
    }

    fn join_as(&mut self, join: Join) {
        let now = self.judge.now;
        let replaced = match &join.instance {
            Some(instance) => {
                let holds = |known: &Known| known.instance.as_ref() == Some(instance);
                self.judge.members.iter().find(|(_, known)| holds(known)).map(|(id, _)| *id)
            }
            None => join.resumes.filter(|id| {
                self.judge.members.get(id).is_some_and(|known| known.instance.is_none())
            }),
        };
        let was_alive = replaced.is_some_and(|id| self.judge.members[&id].is_connected);
        let mut effects = Vec::new();
        let member = match self.group.join(now, join.clone(), &mut effects) {
            Ok(member) => member,
            Err(error) => {
                assert_eq!(error, JoinError::InstanceFlaps { swaps: 3 });
                assert!(was_alive && effects.is_empty());
                return self.counts.hit("flaps");
            }
        };
        if let Some(replaced) = replaced {
            self.close_session(replaced);
            self.counts.hit(match (&join.instance, was_alive) {
                (None, _) => "resumed",
                (Some(_), true) => "instance stolen",
                (Some(_), false) => "instance restarted",
            });
        }
        let Join { instance, session_timeout, .. } = join;
        let session_timeout =
            session_timeout.clamp(OPTIONS.session_timeout_min, OPTIONS.session_timeout_max);
        let deadline = now + session_timeout;
        let known =
            Known { instance: instance.clone(), session_timeout, deadline, is_connected: true };
        self.judge.joined(member, known, replaced);
        if self.judge.members.len() > self.partitions.len() {
            self.counts.hit("more members than partitions");
        }
        self.clients.push(Client {
            member,
            instance,
            session_timeout,
            life: Life::Running,
            is_fenced: false,
            inbox: VecDeque::new(),
            holds: BTreeMap::new(),
        });
        self.tell(&Cause::Joined { replaced }, &mut effects);
    }

    /// A client that runs and believes to be a member.
    fn running(&mut self) -> Option<usize> {
        let running = |client: &Client| client.life == Life::Running && !client.is_fenced;
        let running: Vec<usize> =
            (0..self.clients.len()).filter(|at| running(&self.clients[*at])).collect();
        if running.is_empty() { None } else { Some(running[self.random.index(running.len())]) }
    }

    fn leave(&mut self) {
        let Some(at) = self.running() else { return };
        let client = self.clients.remove(at);
        let how = if self.random.one_in(2) { Leave::Release } else { Leave::KeepPlace };
        self.leaves(client.member, how);
    }

    fn leaves(&mut self, member: MemberId, how: Leave) {
        self.close_session(member);
        self.judge.leaves(member, how);
        let mut effects = Vec::new();
        self.group.leave(self.judge.now, member, how, &mut effects);
        self.tell(&Cause::Other, &mut effects);
    }

    fn connection_lost(&mut self, member: MemberId) {
        self.close_session(member);
        self.judge.leaves(member, Leave::KeepPlace);
        let mut effects = Vec::new();
        self.group.lost(self.judge.now, member, &mut effects);
        self.tell(&Cause::Other, &mut effects);
    }

    fn kill(&mut self) {
        let Some(at) = self.running() else { return };
        self.clients[at].life = Life::Dead;
        // A machine that vanishes closes no connection.
        if self.random.one_in(2) {
            self.connection_lost(self.clients[at].member);
        }
    }

    fn pause_or_go_on(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.random.index(self.clients.len());
        let client = &mut self.clients[at];
        client.life = match client.life {
            Life::Running => Life::Paused,
            Life::Paused => Life::Running,
            Life::Dead => Life::Dead,
        };
    }

    /// The client notices and joins again, at once or when its old place may be gone.
    fn break_connection(&mut self) {
        let Some(at) = self.running() else { return };
        let client = self.clients.remove(at);
        if self.random.one_in(2) {
            self.connection_lost(client.member);
        }
        if self.random.one_in(4) {
            let ms = self.random.below(900);
            self.advance(Duration::from_millis(ms));
        }
        let Client { member, instance, session_timeout, .. } = client;
        let join = Join { resumes: Some(member), instance, session_timeout };
        self.join_as(join);
    }

    fn grow(&mut self) {
        let count = self.partitions.len() + self.random.index(3);
        if count > PARTITIONS_MAX || count == self.partitions.len() {
            return;
        }
        self.counts.hit("partitions added");
        let added = || Partition { is_clean: true, ..Partition::default() };
        self.partitions.resize_with(count, added);
        self.judge.grown(count);
        let mut effects = Vec::new();
        let count = u32::try_from(count).unwrap();
        self.group.partitions_changed(self.judge.now, count, &mut effects);
        self.tell(&Cause::Other, &mut effects);
    }

    fn any_partition(&mut self) -> usize {
        self.random.index(self.partitions.len())
    }

    fn seek(&mut self) {
        let at = self.any_partition();
        let partition = &mut self.partitions[at];
        let next = self.random.below(partition.end + 1);
        let epoch = partition.seek(next);
        self.counts.hit("sought");
        self.group.sought(id(at), epoch);
        self.judge.sought(at, epoch);
        if let Some(cursor) = self.cursors.get_mut(&at) {
            cursor.next = next;
            let told = Told::Seeked { partition: at, epoch, next };
            let member = cursor.member;
            if let Some(client) = self.clients.iter_mut().find(|client| client.member == member) {
                client.inbox.push_back(told);
            }
        }
        self.judge.after(&Cause::Other, &self.group, &self.partitions);
    }

    fn take_from_outside(&mut self) {
        let at = self.any_partition();
        let partition = &mut self.partitions[at];
        partition.set_owner();
        // It reads a little, and acknowledges that.
        let read = self.random.below(partition.end - partition.acked + 1);
        partition.acked += read;
        (partition.seen, partition.is_clean) = (partition.acked, true);
        self.counts.hit("taken from outside");
        let mut effects = Vec::new();
        self.group.taken(self.judge.now, id(at), &mut effects);
        self.tell(&Cause::Taken(at), &mut effects);
    }

    fn advance(&mut self, by: Duration) {
        self.judge.now += by;
        self.tick();
    }

    fn stand_still(&mut self) {
        let by = OPTIONS.stall + Duration::from_millis(1 + self.random.below(60_000));
        self.judge.now += by;
        self.judge.prolong(by);
        self.counts.hit("stood still");
        self.tick();
    }

    fn tick(&mut self) {
        let mut effects = Vec::new();
        self.judge.ticks();
        self.group.tick(self.judge.now, &mut effects);
        let lost = effects.iter().filter(|effect| matches!(effect, Effect::Lost { .. }));
        lost.for_each(|_| self.counts.hit("drain too long"));
        self.tell(&Cause::Tick, &mut effects);
    }

    fn everyone_beats(&mut self) {
        for at in 0..self.clients.len() {
            let client = &mut self.clients[at];
            if client.life != Life::Running || client.is_fenced {
                continue;
            }
            let lives = self.group.heartbeat(self.judge.now, client.member);
            assert_eq!(lives, self.judge.heartbeat(client.member));
            if !lives {
                client.is_fenced = true;
                client.holds.clear();
            }
        }
    }

    fn commit_owner(&mut self) {
        let at = self.any_partition();
        let Some(member) = self.partitions[at].asked.take() else { return };
        let mut effects = Vec::new();
        let now = self.judge.now;
        if self.random.one_in(20) {
            self.counts.hit("owner refused");
            self.judge.refused(at);
            self.group.owner_refused(now, id(at));
            return self.tell(&Cause::Other, &mut effects);
        }
        let epoch = self.partitions[at].set_owner();
        let next = self.partitions[at].acked;
        if self.partitions[at].is_clean && epoch > 1 && next > 0 {
            self.counts.hit("clean hand-over");
        }
        self.group.owner_set(now, id(at), (epoch, Offset(next)), &mut effects);
        self.tell(&Cause::OwnerSet { partition: at, member, next }, &mut effects);
    }

    /// A client hears one thing.
    fn hear(&mut self) {
        let Some(at) = self.running() else { return };
        self.hears(at);
    }

    fn hears(&mut self, at: usize) {
        if let Some(Told::Messages { partition, epoch, from, to }) = self.clients[at].take() {
            let partition = &mut self.partitions[partition];
            if partition.epoch == epoch {
                partition.delivered(from, to);
            } else {
                // It was on its way when the owner changed: at least once, not more.
                self.counts.hit("message for an owner before");
            }
        }
    }

    fn publish(&mut self) {
        let at = self.any_partition();
        self.partitions[at].end += 1 + self.random.below(5);
    }

    /// A session sends what is new.
    fn deliver(&mut self) {
        let partition = self.any_partition();
        let Some(cursor) = self.cursors.get_mut(&partition).filter(|cursor| !cursor.is_paused)
        else {
            return;
        };
        let Partition { epoch, end, .. } = self.partitions[partition];
        let from = cursor.next;
        if from < end {
            let to = from + 1 + self.random.below(end - from);
            cursor.next = to;
            let member = cursor.member;
            if let Some(client) = self.clients.iter_mut().find(|client| client.member == member) {
                client.inbox.push_back(Told::Messages { partition, epoch, from, to });
            }
        }
    }

    fn acknowledge(&mut self) {
        let Some(at) = self.running() else { return };
        let holds: Vec<usize> = self.clients[at].holds.keys().copied().collect();
        if holds.is_empty() {
            return;
        }
        let partition = holds[self.random.index(holds.len())];
        self.acknowledges(at, partition);
    }

    fn acknowledges(&mut self, at: usize, partition: usize) {
        let hold = self.clients[at].holds[&partition];
        if !self.partitions[partition].ack(hold.epoch, hold.next) {
            self.counts.hit("fenced acknowledgement");
        }
    }

    fn release(&mut self) {
        let Some(at) = self.running() else { return };
        let revoked = self.clients[at].holds.iter().filter(|(_, hold)| hold.is_revoked);
        let revoked: Vec<usize> = revoked.map(|(partition, _)| *partition).collect();
        if revoked.is_empty() {
            return;
        }
        let partition = revoked[self.random.index(revoked.len())];
        let finishes = !self.random.one_in(5);
        self.releases(at, partition, finishes);
    }

    /// A client gives a revoked partition back, and has finished it or not.
    fn releases(&mut self, at: usize, partition: usize, finishes: bool) {
        if finishes {
            self.acknowledges(at, partition);
        }
        let client = &mut self.clients[at];
        let hold = client.holds.remove(&partition).unwrap();
        let member = client.member;
        let mut effects = Vec::new();
        let grant = self.judge.grant(partition);
        let (now, own) = (self.judge.now, (id(partition), hold.epoch));
        match self.group.released(now, member, own, &mut effects) {
            Released::Done => {
                assert!(
                    grant.is_some_and(|grant| grant.member == member && grant.revoked.is_some())
                );
                self.cursors.remove(&partition);
                self.judge.vacate(partition);
                let partition = &mut self.partitions[partition];
                if partition.seen == partition.acked {
                    partition.is_clean = true;
                }
            }
            Released::Stale => {
                // It may have lost and got it again, and not have heard of either.
                let has = |grant: Grant| grant.member == member && grant.epoch <= hold.epoch;
                assert!(!grant.is_some_and(has));
                self.counts.hit("stale release");
            }
            Released::NotRevoked => panic!("it was revoked"),
        }
        self.tell(&Cause::Other, &mut effects);
    }

    /// Membership stops changing: within the bound everything has an owner, evenly, and then nothing
    /// happens any more. What is left is consumed, and everything was seen.
    pub(crate) fn settle(&mut self) {
        self.clients.retain(|client| client.life != Life::Dead);
        self.clients.iter_mut().for_each(|client| client.life = Life::Running);
        self.everyone_beats();
        self.clients.retain(|client| !client.is_fenced);
        if self.clients.is_empty() {
            let session_timeout = Duration::from_secs(3);
            let join = Join { resumes: None, instance: None, session_timeout };
            self.join_as(join);
        }
        let step = Duration::from_millis(100);
        let bound = OPTIONS.session_timeout_max + OPTIONS.drain_timeout + OPTIONS.retry + 5 * step;
        let until = self.judge.now + bound;
        while self.judge.now < until {
            self.round(step);
        }
        self.check_settled();
        let before = self.group.clone();
        (0..20).for_each(|_| self.round(step));
        let holdings = |group: &Group| group.places().to_vec();
        assert_eq!(holdings(&before), holdings(&self.group), "D3: it stays as it is");
        self.drain();
    }

    /// Everybody does what is to be done.
    fn round(&mut self, step: Duration) {
        self.everyone_beats();
        for at in 0..self.clients.len() {
            while !self.clients[at].inbox.is_empty() {
                self.hears(at);
            }
            let holds = self.clients[at].holds.clone();
            for (partition, _) in holds.iter().filter(|(_, hold)| hold.is_revoked) {
                self.releases(at, *partition, true);
            }
        }
        self.clients.retain(|client| !client.is_fenced);
        for at in 0..self.partitions.len() {
            if self.partitions[at].asked.take().is_some() {
                let member = self.group.places()[at].holding;
                let postrider_core::group::Holding::Setting { member } = member else { panic!() };
                let epoch = self.partitions[at].set_owner();
                let next = self.partitions[at].acked;
                let mut effects = Vec::new();
                let now = self.judge.now;
                self.group.owner_set(now, id(at), (epoch, Offset(next)), &mut effects);
                self.tell(&Cause::OwnerSet { partition: at, member, next }, &mut effects);
            }
        }
        self.advance(step);
    }

    fn check_settled(&self) {
        let mut held: BTreeMap<MemberId, usize> =
            self.judge.members.keys().map(|id| (*id, 0)).collect();
        for at in 0..self.partitions.len() {
            let grant = self.judge.grant(at);
            let grant = grant.unwrap_or_else(|| panic!("D3: partition {at} has no owner"));
            assert!(grant.revoked.is_none(), "D3: partition {at} still moves");
            *held.get_mut(&grant.member).unwrap() += 1;
        }
        let (least, most) = (held.values().min().unwrap(), held.values().max().unwrap());
        assert!(most - least <= 1, "D3: balanced: {held:?}");
    }

    fn drain(&mut self) {
        for _ in 0..1_000 {
            let open = |partition: &Partition| partition.acked < partition.end;
            if !self.partitions.iter().any(open) {
                return;
            }
            for partition in 0..self.partitions.len() {
                let cursor = self.cursors.get_mut(&partition).unwrap();
                let Partition { epoch, end, .. } = self.partitions[partition];
                if cursor.next < end {
                    let told = Told::Messages { partition, epoch, from: cursor.next, to: end };
                    cursor.next = end;
                    let member = cursor.member;
                    let client = self.clients.iter_mut().find(|client| client.member == member);
                    client.unwrap().inbox.push_back(told);
                }
            }
            for at in 0..self.clients.len() {
                while !self.clients[at].inbox.is_empty() {
                    self.hears(at);
                }
                let holds: Vec<usize> = self.clients[at].holds.keys().copied().collect();
                holds.into_iter().for_each(|partition| self.acknowledges(at, partition));
            }
        }
        panic!("something is never delivered");
    }
}

fn id(at: usize) -> PartitionId {
    PartitionId(u32::try_from(at).unwrap())
}
