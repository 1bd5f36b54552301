//! Owns the history of a consumer group, partition by partition, and judges it: what the broker told its members
//! and took from them (said by the tap, in the order in which the broker spoke), and what the members processed.
//! Never looks into the broker. Driven by the tap and by the members.
//!
//! What is said to one connection is said in order; between connections nothing is promised, and what is said to a
//! client that does not read waits for it (`Told`). It is judged by what it may have known when it was said.
//!
//! | rule | broken when |
//! |---|---|
//! | D1 one owner | an ack under an older epoch than the broker has told of is taken; an epoch comes twice, or behind a newer one that was told before it can have begun to wait |
//! | D2 position | a partition begins below what is confirmed, or behind what anybody asked for, without a seek |
//! | D4 no false fence | a member none of whose beats came late is taken for dead |
//! | D5 clean hand-over | an owner that drains in time is refused, or the next one begins elsewhere than it ended |
//! | D6 seek | something is delivered under an epoch that a committed seek has ended |
//! | C1 stream | an ownership skips or repeats an offset |
//! | no loss | a member processes an offset while the one before it was never processed |
//! | order per key | the messages of a key, of one producer, are first processed in another order than they were sent |

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Duration;

use bytes::Bytes;

/// A membership at the broker's end: its connection and its handle there.
pub(crate) type Seat = (u64, u32);

/// For so long a seek whose outcome is not known may still come about.
const SEEK_DOUBT: Duration = Duration::from_millis(500);

/// When somebody is told something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) at: Duration,
    /// Since when it may have waited: until then the connection took all that there was.
    pub(crate) waits_since: Duration,
}

/// What groups went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupFigures {
    /// Partitions given to members.
    pub assigned: u64,
    /// Of these: right behind a release in good order.
    pub clean: u64,
    /// Of these: told when somebody else had it already.
    pub late: u64,
    /// Partitions taken without a release.
    pub lost: u64,
    /// Members taken for dead, or replaced.
    pub fenced: u64,
    /// Acks of older epochs, refused.
    pub stale_acks: u64,
    /// Seeks that were confirmed.
    pub seeks: u64,
    /// Messages processed for the first time.
    pub processed: u64,
    /// Messages processed once more.
    pub again: u64,
}

impl AddAssign for GroupFigures {
    fn add_assign(&mut self, other: Self) {
        self.assigned += other.assigned;
        self.clean += other.clean;
        self.late += other.late;
        self.lost += other.lost;
        self.fenced += other.fenced;
        self.stale_acks += other.stale_acks;
        self.seeks += other.seeks;
        self.processed += other.processed;
        self.again += other.again;
    }
}

/// A seek that may have moved the partition, or may still.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    seek: u64,
    to: u64,
    /// The newest epoch when it was asked for: a seek that comes about ends it.
    epoch_before: u64,
    /// A move to the place was told since.
    is_told: bool,
    /// From then on it has come about or never will.
    until: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    seat: Seat,
    /// When it must have drained the partition, if it was revoked.
    deadline: Option<Duration>,
}

/// What is known of a partition.
#[derive(Debug, Default)]
struct Partition {
    /// The newest epoch that anybody was told of, and when; and all of them.
    epoch: u64,
    told_at: Duration,
    epochs: BTreeSet<u64>,
    /// Since that epoch: the highest position asked for, and the highest that is confirmed.
    asked: u64,
    confirmed: u64,
    owner: Option<Owner>,
    doubts: Vec<Doubt>,
    /// Nothing is delivered under this epoch or an older one.
    voided: u64,
    /// Where an owner that released it had come to.
    released_at: Option<u64>,
    /// One past the last offset that was processed at least once.
    frontier: u64,
}

/// An ack that the broker has not answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckAsked {
    partition: u32,
    epoch: u64,
    up_to: u64,
    newest_then: u64,
    /// Its sender owned the partition without a doubt.
    was_owner: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct GroupOracle {
    partitions: BTreeMap<u32, Partition>,
    /// How far an owner has processed a partition that it is about to release, and under which epoch.
    offered: BTreeMap<(Seat, u32), (u64, u64)>,
    /// What was delivered last: the epoch, and where the next delivery begins.
    reading: BTreeMap<(Seat, u32), (u64, u64)>,
    /// The last message of a producer with a key that was processed for the first time.
    keys: BTreeMap<(u64, Bytes), u64>,
    violations: Vec<String>,
    pub(crate) figures: GroupFigures,
}

impl GroupOracle {
    pub(crate) fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    pub(crate) fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    /// The newest epoch of a partition that anybody was told of.
    pub(crate) fn epoch(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |at| at.epoch)
    }

    // What passes at the broker's end.

    /// The process has ended: what it had not done by now it will not do.
    pub(crate) fn restarted(&mut self, now: Duration) {
        for at in self.partitions.values_mut() {
            at.doubts.iter_mut().for_each(|doubt| doubt.until = Some(now));
            (at.owner, at.released_at) = (None, None);
        }
        self.reading.clear();
        self.offered.clear();
    }

    /// A membership is over.
    pub(crate) fn left(&mut self, seat: Seat) {
        for at in self.partitions.values_mut() {
            at.owner = at.owner.filter(|owner| owner.seat != seat);
        }
        self.reading.retain(|(of, _), _| *of != seat);
        self.offered.retain(|(of, _), _| *of != seat);
    }

    pub(crate) fn assigned(
        &mut self,
        told: Told,
        seat: Seat,
        partition: u32,
        (epoch, next, high_watermark): (u64, u64, u64),
    ) {
        self.figures.assigned += 1;
        self.reading.insert((seat, partition), (epoch, next));
        let at = self.partitions.entry(partition).or_default();
        let is_first = at.epochs.insert(epoch);
        if is_first && epoch < at.epoch && told.waits_since <= at.told_at {
            // It has waited while somebody else became the owner: the next one is told what it was.
            self.figures.late += 1;
            return;
        }
        let mut wrong = Vec::new();
        if epoch <= at.epoch {
            wrong.push(format!("D1: epoch {epoch} after {}", at.epoch));
        }
        let to = |doubt: &Doubt| doubt.to;
        let low = at.doubts.iter().map(to).min().map_or(at.confirmed, |to| to.min(at.confirmed));
        let high = at.doubts.iter().map(to).max().map_or(at.asked, |to| to.max(at.asked));
        if next < low || next > high || next > high_watermark {
            wrong.push(format!(
                "D2: begins at {next}, not in {low}..={high} below {high_watermark}"
            ));
        }
        if let Some(end) = at.released_at.take()
            && at.doubts.is_empty()
        {
            self.figures.clean += 1;
            if end != next {
                wrong.push(format!("D5: released at {end}, begins at {next}"));
            }
        }
        at.know(told, epoch, next);
        at.owner = Some(Owner { seat, deadline: None });
        for what in wrong {
            self.violate(format!("partition {partition} for {seat:?}: {what}"));
        }
    }

    pub(crate) fn revoked(&mut self, told: Told, seat: Seat, partition: u32, drain: Duration) {
        let Some(at) = self.partitions.get_mut(&partition) else { return };
        if drain.is_zero() {
            self.figures.lost += 1;
            at.owner = at.owner.filter(|owner| owner.seat != seat);
            self.reading.remove(&(seat, partition));
        } else if let Some(owner) = at.owner.as_mut().filter(|owner| owner.seat == seat) {
            owner.deadline = Some(told.waits_since + drain);
        }
    }

    /// A member gives a partition back.
    pub(crate) fn released(&mut self, seat: Seat, partition: u32, epoch: u64) {
        let offered = self.offered.remove(&(seat, partition));
        let Some(at) = self.partitions.get_mut(&partition) else { return };
        if at.owner.is_some_and(|owner| owner.seat == seat) {
            at.owner = None;
            // It may have given back what a seek had moved meanwhile, before it looked.
            let fits = |(of, _): &(u64, u64)| *of == epoch && epoch == at.epoch;
            at.released_at = offered.filter(fits).map(|(_, done)| done);
        }
        self.reading.remove(&(seat, partition));
    }

    pub(crate) fn seeked(&mut self, told: Told, seat: Seat, partition: u32, to: (u64, u64)) {
        let (epoch, next) = to;
        self.reading.insert((seat, partition), (epoch, next));
        let at = self.partitions.entry(partition).or_default();
        if at.owner.is_none_or(|owner| owner.seat != seat) {
            // It is told late what has become of a partition that it has no more.
            return;
        }
        let meant = |doubt: &&mut Doubt| doubt.to == next && doubt.epoch_before < epoch;
        let known = at.doubts.iter_mut().find(meant).map(|doubt| doubt.is_told = true).is_some();
        let newest = at.epoch;
        at.epochs.insert(epoch);
        at.know(told, epoch, next);
        if !known || epoch <= newest {
            self.violate(format!("D2: {partition} moved to {to:?} without a seek"));
        }
    }

    pub(crate) fn seek_asked(&mut self, partitions: u32, seek: u64, to: u64) {
        for partition in 0..partitions {
            let at = self.partitions.entry(partition).or_default();
            let epoch_before = at.epoch;
            at.doubts.push(Doubt { seek, to, epoch_before, is_told: false, until: None });
            at.released_at = None;
        }
    }

    /// A seek is confirmed.
    pub(crate) fn seek_confirmed(&mut self, now: Duration, seek: u64) {
        self.figures.seeks += 1;
        for at in self.partitions.values_mut() {
            let Some(found) = at.doubts.iter().position(|doubt| doubt.seek == seek) else {
                continue;
            };
            let doubt = &mut at.doubts[found];
            at.voided = at.voided.max(doubt.epoch_before);
            // An owner that was set before it may be told of that behind the confirmation.
            doubt.until = Some(now + SEEK_DOUBT);
            if doubt.is_told {
                at.doubts.remove(found);
            }
        }
    }

    /// A seek will not be confirmed.
    pub(crate) fn seek_ended(&mut self, now: Duration, seek: u64) {
        let doubts = self.partitions.values_mut().flat_map(|at| &mut at.doubts);
        doubts.filter(|doubt| doubt.seek == seek).for_each(|doubt| {
            doubt.until = Some(now + SEEK_DOUBT);
        });
    }

    pub(crate) fn delivered(
        &mut self,
        seat: Seat,
        partition: u32,
        epoch: u64,
        (first, end): (u64, u64),
    ) {
        let voided = self.partitions.get(&partition).map_or(0, |at| at.voided);
        if epoch <= voided {
            self.violate(format!("D6: {partition} {first} under {epoch}, which a seek has ended"));
        }
        let due = self.reading.insert((seat, partition), (epoch, end));
        if due != Some((epoch, first)) {
            self.violate(format!(
                "C1: {partition} {first} under {epoch} for {seat:?}, due {due:?}"
            ));
        }
    }

    /// An ack arrives; `lives` tells whether its sender is a member without a doubt.
    pub(crate) fn ack_asked(
        &mut self,
        now: Duration,
        seat: Seat,
        lives: bool,
        (partition, epoch, up_to): (u32, u64, u64),
    ) -> AckAsked {
        let at = self.partitions.entry(partition).or_default();
        if epoch >= at.epoch {
            at.asked = at.asked.max(up_to);
        }
        let owns = |owner: Owner| owner.seat == seat && owner.deadline.is_none_or(|at| at > now);
        let was_owner = lives && epoch == at.epoch && at.owner.is_some_and(owns);
        AckAsked { partition, epoch, up_to, newest_then: at.epoch, was_owner }
    }

    pub(crate) fn ack_taken(&mut self, ack: AckAsked) {
        let at = self.partitions.entry(ack.partition).or_default();
        if ack.epoch >= at.epoch {
            at.confirmed = at.confirmed.max(ack.up_to);
        }
        if ack.epoch < ack.newest_then {
            self.violate(format!("D1: taken from an older owner: {ack:?}"));
        }
    }

    /// An ack is refused because its epoch is over.
    pub(crate) fn ack_stale(&mut self, ack: AckAsked) {
        self.figures.stale_acks += 1;
        let at = self.partitions.entry(ack.partition).or_default();
        if ack.was_owner && at.doubts.is_empty() && at.epoch == ack.epoch {
            let what = format!("D5: the owner was refused: {ack:?}, {at:?}");
            self.violate(what);
        }
    }

    // What members do.

    /// A member has processed a partition up to an offset, the last message under an epoch, has acknowledged
    /// that, and gives it back.
    pub(crate) fn offers(&mut self, seat: Seat, partition: u32, (epoch, done): (u64, u64)) {
        self.offered.insert((seat, partition), (epoch, done));
    }

    /// A member has processed a message.
    pub(crate) fn processed(
        &mut self,
        place: (u32, u64),
        key: Bytes,
        (producer, number): (u64, u64),
    ) {
        let (partition, offset) = place;
        let at = self.partitions.entry(partition).or_default();
        if offset < at.frontier {
            self.figures.again += 1;
            return;
        }
        let skipped = at.frontier..offset;
        at.frontier = offset + 1;
        self.figures.processed += 1;
        if !skipped.is_empty() {
            self.violate(format!("no loss: {partition} {skipped:?} was never processed"));
        }
        let earlier = self.keys.insert((producer, key.clone()), number);
        if earlier.is_some_and(|earlier| earlier > number) {
            self.violate(format!("order of {key:?}: {number} behind {earlier:?} on {partition}"));
        }
    }

    /// Everything below was processed.
    pub(crate) fn frontier(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |at| at.frontier)
    }

    /// Everything below is acknowledged, and that is confirmed.
    pub(crate) fn confirmed(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |at| at.confirmed)
    }
}

impl Partition {
    /// Somebody is told where it stands under a new epoch.
    fn know(&mut self, told: Told, epoch: u64, next: u64) {
        if epoch > self.epoch {
            (self.epoch, self.told_at) = (epoch, told.at);
        }
        (self.asked, self.confirmed) = (next, next);
        self.released_at = None;
        self.doubts.retain(|doubt| doubt.until.is_none_or(|until| until > told.waits_since));
    }
}
