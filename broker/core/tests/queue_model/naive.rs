//! Owns the naive fold of a queue subscription: one status per offset, by the rules as one would say them.

use std::collections::BTreeMap;

use postrider_core::partition::{Settlement, StateCommand};
use postrider_core::queue::{QueueState, SettleHow};
use postrider_protocol::types::{Offset, SubscriptionId};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    Unsettled,
    Settled,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Naive {
    pub(crate) exists: bool,
    pub(crate) epoch: u64,
    start: u64,
    /// By offset, from 0; what lies below `start` is settled.
    pub(crate) statuses: Vec<Status>,
    /// Failures, due.
    pub(crate) failures: BTreeMap<u64, (u32, u64)>,
    /// By epoch and offset: the sequence.
    pub(crate) letters: BTreeMap<(u64, u64), u64>,
    pub(crate) acked: u64,
    dead: u64,
    expired: u64,
    evicted: u64,
    reopened: u64,
}

impl Naive {
    pub(crate) fn grow(&mut self, end: u64) {
        while (self.statuses.len() as u64) < end {
            self.statuses.push(Status::Unsettled);
        }
    }

    pub(crate) fn is_unsettled(&self, offset: u64) -> bool {
        self.exists
            && self.statuses.get(usize::try_from(offset).unwrap()) == Some(&Status::Unsettled)
    }

    pub(crate) fn is_dead(&self, offset: u64) -> bool {
        self.letters.contains_key(&(self.epoch, offset))
    }

    fn settle(&mut self, offset: u64) -> u64 {
        self.failures.remove(&offset);
        let fresh = self.is_unsettled(offset);
        if fresh {
            self.statuses[usize::try_from(offset).unwrap()] = Status::Settled;
        }
        u64::from(fresh)
    }

    pub(crate) fn apply(&mut self, id: SubscriptionId, command: &StateCommand, at: u64) {
        match command {
            StateCommand::Subscribe { subscription, .. } if *subscription == id && !self.exists => {
                self.exists = true;
                self.start = at;
                self.statuses = vec![Status::Settled; usize::try_from(at).unwrap()];
            }
            StateCommand::Settle(settlements) => {
                for settlement in settlements {
                    let Settlement::Runs(runs) = settlement else { continue };
                    if runs.subscription != id || runs.sub_epoch != self.epoch {
                        continue;
                    }
                    for run in &runs.runs {
                        for offset in run.start.0..run.end.0 {
                            assert!(offset < at, "only what is stored before is settled");
                            let fresh = self.settle(offset);
                            match runs.how {
                                SettleHow::Acked => self.acked += fresh,
                                SettleHow::Expired => self.expired += fresh,
                                SettleHow::Evicted => self.evicted += fresh,
                            }
                        }
                    }
                }
            }
            StateCommand::Return(returned) => {
                for one in returned.iter().filter(|one| one.subscription == id) {
                    let offset = one.offset.0;
                    if one.sub_epoch == self.epoch
                        && self.is_unsettled(offset)
                        && !self.is_dead(offset)
                    {
                        let before = self.failures.insert(offset, (one.failures, one.due.0));
                        let before = before.map_or(0, |before| before.0);
                        assert!(before <= one.failures, "failures only rise");
                    }
                }
            }
            StateCommand::DeadIntent(intents) => {
                for intent in intents.iter().filter(|intent| intent.subscription == id) {
                    let letter = &intent.letter;
                    if letter.sub_epoch == self.epoch && self.is_unsettled(letter.offset.0) {
                        self.failures.remove(&letter.offset.0);
                        let name = (letter.sub_epoch, letter.offset.0);
                        let before = self.letters.insert(name, letter.sequence.0);
                        assert!(before.is_none(), "a message dies once in an epoch");
                    }
                }
            }
            StateCommand::DeadDone(done) => {
                for done in done.iter().filter(|done| done.subscription == id) {
                    for offset in &done.offsets {
                        let known = self.letters.remove(&(done.sub_epoch, offset.0)).is_some();
                        if known && done.sub_epoch == self.epoch {
                            self.dead += self.settle(offset.0);
                        }
                    }
                }
            }
            StateCommand::Seek { subscription, owner_epoch, to } if *subscription == id => {
                let dying: Vec<u64> =
                    self.letters.range((self.epoch, 0)..).map(|((_, offset), _)| *offset).collect();
                for offset in dying {
                    self.dead += self.settle(offset);
                }
                for offset in 0..to.0 {
                    self.evicted += self.settle(offset);
                }
                for offset in to.0..at {
                    let status = &mut self.statuses[usize::try_from(offset).unwrap()];
                    if *status == Status::Settled {
                        *status = Status::Unsettled;
                        self.reopened += 1;
                    }
                }
                self.failures.clear();
                self.epoch = *owner_epoch;
            }
            _ => {}
        }
    }

    /// The partition's fold says the same.
    pub(crate) fn check(&self, queue: Option<&QueueState>, end: u64) {
        let Some(queue) = queue else {
            assert!(!self.exists);
            return;
        };
        assert_eq!(queue.sub_epoch(), self.epoch);
        let mut unsettled = 0;
        let mut floor = None;
        for (offset, status) in (0..).zip(&self.statuses) {
            let settled = queue.settled().contains(Offset(offset));
            assert_eq!(settled, *status == Status::Settled, "{offset} {queue:?}");
            if !settled {
                unsettled += 1;
                floor = floor.or(Some(offset));
            }
        }
        assert_eq!(queue.floor(), Offset(floor.unwrap_or(end)));
        assert_eq!(queue.unsettled(Offset(end)), unsettled);
        let failures: BTreeMap<u64, (u32, u64)> = queue
            .failures()
            .iter()
            .map(|(offset, failure)| (offset.0, (failure.failures, failure.due.0)))
            .collect();
        assert_eq!(failures, self.failures);
        let letters: BTreeMap<(u64, u64), u64> = queue
            .dead_letters()
            .map(|letter| ((letter.sub_epoch, letter.offset.0), letter.sequence.0))
            .collect();
        assert_eq!(letters, self.letters);
        let totals = queue.totals();
        assert_eq!(
            (totals.acked, totals.dead, totals.expired, totals.evicted, queue.reopened()),
            (self.acked, self.dead, self.expired, self.evicted, self.reopened)
        );
        assert_eq!(
            end - self.start + self.reopened,
            self.acked + self.dead + self.expired + self.evicted + unsettled,
            "messages are conserved"
        );
    }
}
