//! Owns what consumers say of their messages, and what they are answered.

use super::*;

impl World {
    /// What is evicted may have been waiting.
    pub(super) fn forget_evicted(&mut self) {
        for lease in self.ended.values_mut() {
            lease.sure = false;
        }
    }

    /// Messages that a consumer speaks of, right or wrong.
    pub(super) fn name_some(&mut self, key: u64) -> BTreeMap<u64, u32> {
        let mut named = BTreeMap::new();
        let own: Vec<(u64, u32)> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.member == key)
            .map(|(offset, lease)| (*offset, lease.attempt))
            .collect();
        let ended: Vec<(u64, u32)> = self
            .ended
            .iter()
            .filter(|(_, lease)| lease.member == key)
            .map(|(offset, lease)| (*offset, lease.attempt))
            .collect();
        for _ in 0..1 + self.random.below(5) {
            let kind = self.random.below(10);
            if kind < 7 && !own.is_empty() {
                let (offset, attempt) = own[self.random.index(own.len())];
                named.insert(offset, attempt);
            } else if kind < 9 && !ended.is_empty() {
                let (offset, attempt) = ended[self.random.index(ended.len())];
                named.insert(offset, attempt);
            } else if kind == 9 {
                let offset = self.random.below(self.ready_offset() + 2);
                named.insert(offset, 1 + u32::try_from(self.random.below(3)).unwrap());
            }
        }
        named
    }

    pub(super) fn epochs_to_say(&mut self) -> (u64, u32) {
        if self.random.one_in(40) {
            (self.naive.epoch.saturating_sub(1), self.leader_epoch)
        } else if self.random.one_in(40) {
            (self.naive.epoch, self.leader_epoch - 1)
        } else {
            (self.naive.epoch, self.leader_epoch)
        }
    }

    pub(super) fn ack(&mut self) {
        let at = self.random.index(self.consumers.len());
        if !self.consumers[at].attached {
            return;
        }
        let key = self.consumers[at].key;
        let said = self.name_some(key);
        let (sub_epoch, leader_epoch) = self.epochs_to_say();
        let counts =
            (sub_epoch, leader_epoch) == (self.naive.epoch, self.leader_epoch) && !self.seeking();
        let may = |lease: Option<&Lease>, attempt: u32| {
            lease.is_some_and(|lease| lease.member == key && lease.attempt == attempt && lease.sure)
        };
        let mut must = BTreeSet::new();
        for (offset, attempt) in &said {
            if !counts || self.accepted.contains_key(offset) {
                continue;
            }
            if may(self.leases.get(offset), *attempt) {
                must.insert(*offset);
            } else if may(self.ended.get(offset), *attempt) {
                self.counts.hit("ack of an ended lease");
                must.insert(*offset);
            }
        }
        if counts && said.keys().any(|offset| self.accepted.contains_key(offset)) {
            self.counts.hit("repeat of an ack in flight");
        }
        let named = said.keys().copied().collect();
        let asked = Asked::Ack { named, must: must.clone(), epoch: sub_epoch };
        let route = self.ask(asked);
        for offset in must {
            self.accepted.insert(offset, route);
        }
        let started = self.random.below(self.consumers[at].next_dispatch + 1);
        let request = AckRequest {
            id: QUEUE,
            member: MemberKey(key),
            sub_epoch,
            leader_epoch: LeaderEpoch(leader_epoch),
            started,
            runs: runs_of(&said),
        };
        let decision = self.partition.ack(self.now, request, route, &mut self.effects);
        self.follow(decision);
    }

    /// Whether an epoch has begun that is not committed.
    pub(super) fn seeking(&self) -> bool {
        self.entries[self.ready..].iter().any(|entry| entry.header.kind == EntryKind::Seek)
    }

    pub(super) fn give_return(&mut self) {
        let at = self.random.index(self.consumers.len());
        if !self.consumers[at].attached {
            return;
        }
        let key = self.consumers[at].key;
        let said = self.name_some(key);
        let (sub_epoch, leader_epoch) = self.epochs_to_say();
        let counts =
            (sub_epoch, leader_epoch) == (self.naive.epoch, self.leader_epoch) && !self.seeking();
        let mut taken = BTreeMap::new();
        for (offset, attempt) in said.iter().filter(|_| counts) {
            if let Some(lease) = self.leases.get(offset)
                && lease.member == key
                && lease.attempt == *attempt
                && !self.accepted.contains_key(offset)
            {
                taken.insert(*offset, *lease);
            }
        }
        for offset in said.keys().filter(|_| counts) {
            // The end of the lease may not have been written: then this takes it.
            if let Some(lease) = self.ended.get_mut(offset) {
                lease.sure = false;
            }
        }
        let (action, releases) = match self.random.below(4) {
            0 => {
                self.counts.hit("release");
                (ReturnAction::Release, true)
            }
            1 => {
                self.counts.hit("reject");
                (ReturnAction::Reject { reason: "no".to_owned() }, false)
            }
            _ => {
                self.counts.hit("nack");
                let delay_ms = self.random.one_in(3).then(|| self.random.below(500));
                (ReturnAction::Nack { delay_ms, reason: "é".repeat(200) }, false)
            }
        };
        for offset in taken.keys() {
            self.leases.remove(offset);
            if !releases {
                self.returning.insert(*offset);
            }
        }
        let route =
            self.ask(Asked::Return { taken: if releases { BTreeMap::new() } else { taken } });
        let request = ReturnRequest {
            id: QUEUE,
            member: MemberKey(key),
            sub_epoch,
            leader_epoch: LeaderEpoch(leader_epoch),
            started: 0,
            runs: runs_of(&said),
            action,
        };
        let decision = self.partition.give_return(self.now, request, route, &mut self.effects);
        self.follow(decision);
    }

    pub(super) fn carry_out(&mut self) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect);
            }
        }
    }

    pub(super) fn carry_out_one(&mut self, effect: Effect<u64>) {
        match effect {
            Effect::Settled { route, commit_index, exceptions, .. } => {
                let asked = self.asked.remove(&route).expect("answered once");
                self.settled(asked, commit_index, &exceptions);
            }
            Effect::Refused { route, error } => {
                let asked = self.asked.remove(&route).expect("answered once");
                if error.code == ErrorCode::StaleSubscriptionEpoch {
                    self.counts.hit("stale epoch");
                }
                self.refused(route, asked);
            }
            Effect::Committed { route, what, .. } => {
                let asked = self.asked.remove(&route).expect("answered once");
                match (asked, what) {
                    (Asked::Subscribe, StateCommitted::Subscribed { .. }) => {}
                    (Asked::Seek, StateCommitted::Sought { .. }) => {}
                    (asked, what) => panic!("{asked:?} is answered {what:?}"),
                }
            }
            Effect::OwnerChanged { owner_epoch, .. } => {
                self.epoch = owner_epoch;
                self.begin_epoch();
            }
            Effect::QueueReady { .. } => {
                self.counts.hit("woken");
                self.idle = false;
            }
            Effect::LeasesLost { member, sub_epoch, runs, .. } => {
                self.leases_lost(member.0, sub_epoch, &runs);
            }
            Effect::DeadLetters { .. } => {
                if !self.target && self.random.one_in(4) {
                    self.target = true;
                    self.tell_target();
                    for lease in self.ended.values_mut() {
                        lease.sure = false;
                    }
                }
            }
            Effect::DelaysCancelled { .. } | Effect::DelaysReleased { .. } => {
                panic!("nothing is delayed here");
            }
            Effect::Released { .. } | Effect::Confirm { .. } => {}
        }
    }

    pub(super) fn leases_lost(&mut self, member: u64, sub_epoch: u64, runs: &[AckRun]) {
        if sub_epoch != self.epoch {
            return;
        }
        let ms = self.ms();
        for run in runs {
            for offset in run.first.0..run.first.0 + u64::from(run.count) {
                let Some(mut lease) = self.leases.remove(&offset) else { continue };
                assert_eq!((lease.member, lease.attempt), (member, run.attempt));
                let in_time = lease.loose || self.deadline(&lease) <= ms;
                assert!(in_time, "{offset}: no lease ends before its time");
                self.counts.hit("lease ended by time");
                let failures = self.naive.failures.get(&offset).map_or(0, |failed| failed.0) + 1;
                lease.sure = failures < self.policy.max_failures;
                self.ended.insert(offset, lease);
            }
        }
    }

    pub(super) fn begin_epoch(&mut self) {
        self.leases.clear();
        self.ended.clear();
        self.accepted.clear();
        self.returning.clear();
        self.attempts.clear();
        self.newest = None;
        self.undelayed.clear();
    }

    pub(super) fn settled(
        &mut self,
        asked: Asked,
        commit: EntryIndex,
        exceptions: &[SettleException],
    ) {
        let mut problems = BTreeMap::new();
        for exception in exceptions {
            for offset in exception.first.0..exception.first.0 + u64::from(exception.count) {
                problems.insert(offset, exception.problem);
                self.counts.hit(match exception.problem {
                    SettleProblem::AlreadyAcked => "already acked",
                    SettleProblem::LeaseLost => "lease lost",
                    SettleProblem::Gone => "gone",
                });
            }
        }
        match asked {
            Asked::Ack { named, must, epoch } => {
                for offset in &must {
                    assert!(!problems.contains_key(offset), "{offset}: {problems:?}");
                }
                for offset in named {
                    if let Some(problem) = problems.get(&offset) {
                        let settled = !self.naive.is_unsettled(offset);
                        let current = epoch == self.naive.epoch;
                        if *problem == SettleProblem::AlreadyAcked && current {
                            assert!(settled, "{offset} is acked");
                        }
                        continue;
                    }
                    self.counts.hit("acked");
                    assert!(commit.0 > 0 && commit <= self.partition.state().end().index);
                    if epoch == self.naive.epoch {
                        assert!(!self.naive.is_unsettled(offset), "{offset} is settled");
                    }
                    self.confirmed.insert((epoch, offset), commit.0);
                }
            }
            Asked::Return { taken } => {
                for offset in taken.keys() {
                    assert!(!problems.contains_key(offset), "{offset}: {problems:?}");
                    self.returning.remove(offset);
                }
            }
            Asked::Redrive => {}
            asked => panic!("{asked:?} settles nothing"),
        }
    }

    pub(super) fn refused(&mut self, route: u64, asked: Asked) {
        match asked {
            Asked::Ack { .. } => {
                let before = self.accepted.len();
                self.accepted.retain(|_, by| *by != route);
                if self.accepted.len() < before {
                    self.counts.hit("ack refused by the store");
                }
                for lease in self.ended.values_mut() {
                    lease.sure = false;
                }
            }
            Asked::Return { taken } => {
                let in_flight = self.returns_in_flight();
                for (offset, lease) in taken {
                    if in_flight.contains(&offset) {
                        // The store refused another part of the request.
                        continue;
                    }
                    if self.returning.remove(&offset) && self.naive.is_unsettled(offset) {
                        // The lease is as it was, and its time may be over.
                        self.leases.insert(offset, Lease { loose: true, ..lease });
                    }
                }
            }
            Asked::Redrive => self.counts.hit("redrive refused by the store"),
            Asked::Subscribe | Asked::Seek => {}
        }
    }

    pub(super) fn returns_in_flight(&self) -> BTreeSet<u64> {
        let mut offsets = BTreeSet::new();
        for entry in &self.entries[self.ready..] {
            if !matches!(entry.header.kind, EntryKind::Return | EntryKind::DeadIntent) {
                continue;
            }
            match StateCommand::decode(entry.header.kind, &entry.body) {
                Ok(Some(StateCommand::Return(returned))) => {
                    offsets.extend(returned.iter().map(|one| one.offset.0));
                }
                Ok(Some(StateCommand::DeadIntent(intents))) => {
                    offsets.extend(intents.iter().map(|intent| intent.letter.offset.0));
                }
                other => panic!("{other:?}"),
            }
        }
        offsets
    }

    pub(super) fn ack_all(&mut self) {
        let own: BTreeMap<u64, u32> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.member == self.consumers[0].key)
            .map(|(offset, lease)| (*offset, lease.attempt))
            .collect();
        if own.is_empty() || !self.consumers[0].attached {
            return;
        }
        let named: BTreeSet<u64> = own.keys().copied().collect();
        let epoch = self.naive.epoch;
        let route = self.ask(Asked::Ack { named, must: BTreeSet::new(), epoch });
        for offset in own.keys() {
            self.accepted.entry(*offset).or_insert(route);
        }
        let request = AckRequest {
            id: QUEUE,
            member: MemberKey(self.consumers[0].key),
            sub_epoch: epoch,
            leader_epoch: LeaderEpoch(self.leader_epoch),
            started: 0,
            runs: runs_of(&own),
        };
        let decision = self.partition.ack(self.now, request, route, &mut self.effects);
        self.follow(decision);
    }
}
