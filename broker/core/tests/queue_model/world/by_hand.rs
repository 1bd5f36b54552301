//! Owns what people do to single messages.

use postrider_core::queue::DeadTarget;

use super::*;

impl World {
    /// Sends some messages to where dead letters go, whether the queue has such a place or not.
    pub(super) fn redrive(&mut self) {
        let end = self.ready_offset();
        let target = DeadTarget { topic: DEAD, partition: PartitionId(0) };
        let wanted: BTreeSet<u64> =
            (0..1 + self.random.below(6)).map(|_| self.random.below(end + 1)).collect();
        let letters: Vec<(Offset, DeadTarget)> = wanted
            .into_iter()
            .filter(|offset| *offset < end)
            .map(|offset| (Offset(offset), target))
            .collect();
        let Ok(found) = self.partition.redrivable(self.now, QUEUE, &letters) else { return };
        let judged = found.letters.len() + usize::try_from(found.sent_before).unwrap();
        match found.stopped_at {
            Some(offset) => assert_eq!(letters[judged].0, offset),
            None => assert_eq!(judged, letters.len()),
        }
        for (offset, _) in &found.letters {
            assert!(self.naive.is_unsettled(offset.0) && !self.naive.is_dead(offset.0));
            assert!(!self.leases.contains_key(&offset.0), "{offset} is out");
            assert!(!self.accepted.contains_key(&offset.0), "{offset} is acked");
        }
        if found.letters.is_empty() {
            return;
        }
        let route = self.ask(Asked::Redrive);
        let (now, effects) = (self.now, &mut self.effects);
        let decision = self.partition.redrive(now, QUEUE, &found.letters, route, effects);
        self.follow(decision);
    }

    pub(super) fn release_message(&mut self) {
        let leased: Vec<u64> = self.leases.keys().copied().collect();
        let offset = if leased.is_empty() || self.random.one_in(2) {
            self.random.below(self.ready_offset() + 1)
        } else {
            leased[self.random.index(leased.len())]
        };
        let accepted = self.accepted.contains_key(&offset);
        let lease = self.leases.get_mut(&offset).filter(|_| !accepted);
        let was_leased = lease.map(|lease| lease.loose = true).is_some();
        let effects = &mut self.effects;
        let released = self.partition.release_message(self.now, QUEUE, Offset(offset), effects);
        if let Ok(released) = released {
            assert!(released || !was_leased, "{offset}: a lease can be ended");
            if released {
                self.counts.hit("released by hand");
                self.undelayed.insert(offset);
            }
        }
        self.carry_out();
        if let Some(lease) = self.ended.get_mut(&offset) {
            lease.sure = false;
        }
    }
}
