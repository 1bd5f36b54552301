//! Owns how consumers attach, leave and are handed messages, and what must hold of each hand-out.

use super::*;

impl World {
    pub(super) fn attach(&mut self) {
        let at = self.random.index(self.consumers.len());
        self.attach_one(at);
    }

    pub(super) fn attach_one(&mut self, at: usize) {
        let consumer = self.consumers[at].clone();
        let mut held: BTreeMap<u64, u32> = BTreeMap::new();
        let epochs = if consumer.old.is_empty() {
            let known = self.leases.iter().chain(&self.ended);
            for (offset, lease) in known.filter(|(_, lease)| lease.member == consumer.key) {
                if !self.random.one_in(4) {
                    held.insert(*offset, lease.attempt);
                }
            }
            (self.naive.epoch, self.leader_epoch)
        } else {
            held.extend(consumer.old.iter().copied());
            consumer.old_epochs
        };
        let runs: Vec<AckRun> =
            held.iter().map(|(offset, attempt)| one(*offset, *attempt)).collect();
        let epochs = Some((epochs.0, LeaderEpoch(epochs.1)));
        let (now, key) = (self.now, MemberKey(consumer.key));
        let consumed = match self.partition.consume(
            now,
            QUEUE,
            (key, "model"),
            &runs,
            epochs,
            &mut self.effects,
        ) {
            Ok(consumed) => consumed,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::UnknownSubscription);
                return;
            }
        };
        let earlier = !consumer.old.is_empty();
        let mut found: BTreeMap<u64, u32> = BTreeMap::new();
        for run in &consumed.held {
            for offset in run.first.0..run.first.0 + u64::from(run.count) {
                assert!(held.contains_key(&offset), "only what it holds is in force");
                assert!(self.naive.is_unsettled(offset) && !self.accepted.contains_key(&offset));
                found.insert(offset, run.attempt);
            }
        }
        let ms = self.ms();
        let seeking = self.seeking();
        for (offset, attempt) in held.iter().filter(|_| !seeking) {
            let lease =
                self.leases.get(offset).copied().filter(|lease| lease.member == consumer.key);
            let in_force = lease.is_some_and(|lease| lease.attempt == *attempt)
                && !self.accepted.contains_key(offset)
                && !earlier;
            assert!(!in_force || found.contains_key(offset), "{offset}: a lease in force is kept");
        }
        for (offset, lease) in self.leases.clone() {
            if lease.member != consumer.key || self.accepted.contains_key(&offset) {
                assert!(!found.contains_key(&offset), "{offset} is somebody else's");
            } else if !found.contains_key(&offset) {
                self.leases.remove(&offset);
            }
        }
        // Whose end could not be written stays a lease, and is given back by whoever does not name it.
        let unnamed = self.ended.iter_mut().filter(|(offset, _)| !held.contains_key(offset));
        unnamed
            .filter(|(_, lease)| lease.member == consumer.key)
            .for_each(|(_, lease)| lease.sure = false);
        for (offset, attempt) in found {
            if earlier {
                self.counts.hit("bound again after a crash");
                let attempts = self.attempts.get(&offset).copied().unwrap_or(0);
                assert_eq!(attempts, 0, "{offset} went to somebody");
            } else {
                self.counts.hit("came back to its leases");
            }
            let was_leased = self.leases.get(&offset).copied();
            self.attempts.insert(offset, attempt);
            self.undelayed.insert(offset);
            let loose = self.ended.remove(&offset).is_some();
            let member = consumer.key;
            let lease = Lease { member, attempt, dispatch: 0, since: ms, sure: true, loose };
            self.leases.insert(offset, was_leased.unwrap_or(lease));
        }
        let consumer = &mut self.consumers[at];
        consumer.attached = true;
        consumer.lost_at = None;
        consumer.renewed = ms;
        consumer.old.clear();
        self.carry_out();
    }

    pub(super) fn leave(&mut self) {
        let at = self.random.index(self.consumers.len());
        let clean = self.random.one_in(2);
        self.leave_one(at, clean);
    }

    pub(super) fn leave_one(&mut self, at: usize, clean: bool) {
        if !self.consumers[at].attached {
            return;
        }
        let key = self.consumers[at].key;
        let pending =
            self.partition.leave(self.now, QUEUE, MemberKey(key), clean, &mut self.effects);
        assert!(pending.is_none());
        let lost_at = self.ms() + SESSION_GRACE_MS;
        let consumer = &mut self.consumers[at];
        consumer.attached = false;
        consumer.lost_at = (!clean).then_some(lost_at);
        if clean {
            consumer.next_dispatch = 0;
            self.forget_leases(key);
        }
        self.carry_out();
    }

    /// A consumer is there no more: if an entry about its messages is refused, they are nobody's.
    pub(super) fn forget_leases(&mut self, key: u64) {
        self.leases.retain(|_, lease| lease.member != key);
        for lease in self.ended.values_mut().filter(|lease| lease.member == key) {
            lease.sure = false;
        }
        for asked in self.asked.values_mut() {
            if let Asked::Return { taken } = asked {
                let gone: Vec<u64> = taken
                    .iter()
                    .filter(|(_, lease)| lease.member == key)
                    .map(|(offset, _)| *offset)
                    .collect();
                for offset in gone {
                    taken.remove(&offset);
                    self.returning.remove(&offset);
                }
            }
        }
    }

    pub(super) fn lease(&mut self) {
        let at = self.random.index(self.consumers.len());
        if self.consumers[at].attached {
            self.lease_to(at);
        } else if self.random.one_in(4) {
            self.attach_one(at);
        }
    }

    pub(super) fn lease_to(&mut self, at: usize) {
        let credit = LeaseCredit {
            messages: u32::try_from(self.random.below(8)).unwrap(),
            bytes: self.random.below(600),
        };
        // Much may be settled, or wait for its key.
        for _ in 0..200 {
            let key = self.consumers[at].key;
            match self.partition.lease(self.now, QUEUE, MemberKey(key), credit) {
                LeaseStep::LookAhead { from, until } => {
                    assert!(!self.idle || self.policy.single_active, "work came without a word");
                    self.look_ahead(from.0, until.0);
                }
                LeaseStep::Leased { runs, dispatch_number, dispatch_index, sub_epoch, .. } => {
                    assert!(!self.idle || self.policy.single_active, "work came without a word");
                    assert_eq!(dispatch_index, self.partition.state().end().index);
                    assert_eq!(sub_epoch, self.naive.epoch);
                    self.leased(at, &runs, (dispatch_number, dispatch_index), credit);
                    self.give_some_back(at, &runs);
                    return;
                }
                LeaseStep::Idle => {
                    self.idle = true;
                    return;
                }
                LeaseStep::NoCredit => {
                    assert!(credit.messages == 0 || credit.bytes == 0);
                    return;
                }
                LeaseStep::Refused(error) => panic!("{error:?}"),
            }
        }
        panic!("reading ahead comes to no end");
    }

    pub(super) fn look_ahead(&mut self, from: u64, until: u64) {
        assert!(from < until && until == self.ready_offset());
        if from < self.log_start {
            let (from, to) = (Offset(from), Offset(self.log_start));
            let now = self.now;
            let decision = self.partition.evict(now, QUEUE, from, to, &mut self.effects);
            self.forget_evicted();
            self.follow(decision);
            return;
        }
        let most = 1 + self.random.index(6);
        let mut ahead = Vec::new();
        let mut next = from;
        let read = self.entries[..self.ready].iter().enumerate().filter(|(_, entry)| {
            entry.header.kind == EntryKind::Data && entry.header.end_offset().0 > from
        });
        for (nth, entry) in read.take(most) {
            let header = &entry.header;
            next = header.end_offset().0;
            if self.bad.contains(&nth) {
                continue;
            }
            let keys = if self.policy.key_order {
                (header.base_offset.0..next).map(key_of).collect()
            } else {
                Vec::new()
            };
            ahead.push(Ahead {
                first: header.base_offset,
                count: header.record_count,
                bytes: header.total_len,
                keys,
            });
        }
        self.partition.feed(QUEUE, Offset(from), &ahead, Offset(next));
        if self.random.one_in(30) {
            // Somebody else is late with the same.
            self.partition.feed(QUEUE, Offset(from), &ahead, Offset(next));
        }
        if self.bad.range(..self.ready).next().is_some() {
            self.tick();
        }
    }

    pub(super) fn leased(
        &mut self,
        at: usize,
        runs: &[LeaseRun],
        (dispatch, index): (u64, EntryIndex),
        credit: LeaseCredit,
    ) {
        let key = self.consumers[at].key;
        let count: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        assert!(count > 0 && count <= u64::from(credit.messages), "credit is kept");
        assert!(!self.policy.paused, "a paused queue is silent");
        assert!(dispatch >= self.consumers[at].next_dispatch, "dispatch numbers rise");
        self.consumers[at].next_dispatch = dispatch + count;
        if self.policy.single_active {
            for (offset, lease) in &self.leases {
                assert!(
                    lease.member == key || self.accepted.contains_key(offset),
                    "one consumer at a time"
                );
            }
        }
        let mut number = dispatch;
        let mut before = None;
        for run in runs {
            for offset in run.first.0..run.first.0 + u64::from(run.count) {
                assert!(before.is_none_or(|before| before < offset), "offsets rise");
                before = Some(offset);
                if run.failures > 0 && run.failures >= self.policy.max_failures.div_ceil(2) {
                    assert_eq!(count, 1, "{offset} goes alone");
                    self.counts.hit("alone");
                }
                self.leased_one(key, offset, run, number, index);
                number += 1;
            }
        }
        if self.leases.len() > self.policy.unsettled_max as usize {
            let fresh = runs.iter().any(|run| run.attempt == 1 && run.failures == 0);
            assert!(!fresh || self.leases.len() <= self.widest(), "unsettled_max is kept");
        }
    }

    /// As many as any policy of this world allows.
    pub(super) fn widest(&self) -> usize {
        41
    }

    pub(super) fn leased_one(
        &mut self,
        key: u64,
        offset: u64,
        run: &LeaseRun,
        number: u64,
        index: EntryIndex,
    ) {
        let epoch = self.naive.epoch;
        assert!(offset < self.ready_offset(), "{offset} is committed");
        assert!(self.naive.is_unsettled(offset), "{offset} is unsettled");
        assert!(!self.naive.is_dead(offset), "{offset} is not dead");
        let looked = self.bounds.message_ttl_ms.is_none() || self.aged_before.is_some();
        assert!(looked && !self.is_overdue(offset), "{offset} is too old, or may be");
        assert!(!self.accepted.contains_key(&offset), "{offset}: an accepted ack is final");
        assert!(!self.returning.contains(&offset), "{offset}: its failure is counted first");
        assert!(!self.leases.contains_key(&offset), "{offset}: {:?}", self.leases.get(&offset));
        if let Some(commit) = self.confirmed.get(&(epoch, offset)) {
            assert!(index.0 < *commit, "{offset} goes out after its ack is confirmed");
        }
        let (failures, due) = self.naive.failures.get(&offset).copied().unwrap_or_default();
        assert_eq!(run.failures, failures, "{offset}");
        assert!(failures < self.policy.max_failures, "{offset} has failed too often");
        let early = self.undelayed.contains(&offset);
        assert!(early || due <= self.now.wall.0, "{offset} is due at {due}");
        let attempt = self.attempts.get(&offset).copied().unwrap_or(0) + 1;
        assert_eq!(run.attempt, attempt, "{offset}");
        if self.policy.key_order && key_of(offset) != 0 {
            let earlier = (0..offset).find(|other| {
                key_of(*other) == key_of(offset)
                    && self.naive.is_unsettled(*other)
                    && !self.naive.is_dead(*other)
                    && !self.is_overdue(*other)
                    && self.is_readable(*other)
            });
            assert_eq!(earlier, None, "{offset} goes out before an earlier one of its key");
            let later = self.leases.keys().find(|other| {
                **other > offset
                    && key_of(**other) == key_of(offset)
                    && self.naive.is_unsettled(**other)
                    && self.is_readable(offset)
                    && self.is_readable(**other)
            });
            assert_eq!(later, None, "{offset} goes out while a later one of its key is out");
        }
        if attempt == 1 && failures == 0 {
            self.counts.hit("first hand-out");
            if !self.policy.key_order {
                assert!(self.newest.is_none_or(|newest| newest < offset), "{offset} out of order");
                self.newest = Some(offset);
            }
        }
        if failures > 0 {
            self.counts.hit("failed before");
        }
        self.attempts.insert(offset, attempt);
        self.ended.remove(&offset);
        let since = self.ms();
        let lease =
            Lease { member: key, attempt, dispatch: number, since, sure: true, loose: false };
        self.leases.insert(offset, lease);
    }

    pub(super) fn is_readable(&self, offset: u64) -> bool {
        let nth = self.entries.partition_point(|entry| entry.header.end_offset().0 <= offset);
        offset >= self.log_start && !self.bad.contains(&nth)
    }

    /// A frame that was too large, or a read that was too slow.
    pub(super) fn give_some_back(&mut self, at: usize, runs: &[LeaseRun]) {
        if !self.random.one_in(8) {
            return;
        }
        let last = *runs.last().unwrap();
        let key = self.consumers[at].key;
        for offset in last.first.0..last.first.0 + u64::from(last.count) {
            self.leases.remove(&offset);
            self.attempts.insert(offset, last.attempt - 1);
            if last.attempt == 1 && last.failures == 0 {
                // It goes out for the first time again.
                self.newest = self.newest.map(|newest| newest.min(offset).saturating_sub(1));
                if offset == 0 {
                    self.newest = None;
                }
            }
        }
        self.counts.hit("given back");
        self.partition.give_back(self.now, QUEUE, MemberKey(key), &[last], &mut self.effects);
        self.carry_out();
    }

    pub(super) fn renew(&mut self) {
        let at = self.random.index(self.consumers.len());
        let Consumer { key, attached, next_dispatch, .. } = self.consumers[at];
        let started = self.random.below(next_dispatch + 1);
        let renewed = self.partition.renew(self.now, QUEUE, MemberKey(key), started);
        assert_eq!(renewed.is_ok(), attached, "{renewed:?}");
        if attached {
            self.consumers[at].renewed = self.ms();
        }
    }
}
