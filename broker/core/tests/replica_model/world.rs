//! Owns three brokers with the production machines, their disks, what is on its way between them, and an ideal
//! controller. Judges after each step. Driven by the search.
//!
//! | rule | broken when |
//! |---|---|
//! | I1, I7 | a member of the in-sync set lacks a committed entry |
//! | I2 | two leaders commit different entries at one place |
//! | I3 | a replica's high watermark falls |
//! | I4 | the in-sync set has fewer members than its minimum |
//! | I5 | the leader's maximal set lacks a member of the controller's |
//! | I9 | a replica is to cut what it knows to be committed |
//! | I12 | a leader that serves has what another leader then commits otherwise |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postrider_core::cursors::Position;
use postrider_core::replica::{
    AlterIsr, AlterOutcome, Assignment, EpochTable, Following, FollowingEffect, Leading,
    LeadingEffect, OpenStream, PartitionEpoch, Records,
};
use postrider_protocol::types::{EntryIndex, Incarnation, LeaderEpoch, NodeId, Offset};

const LAG_MAX: Duration = Duration::from_millis(500);
const MIN_ISR: usize = 2;

/// How much may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Budget {
    pub(crate) appends: u8,
    pub(crate) crashes: u8,
    pub(crate) wipes: u8,
    pub(crate) elections: u8,
    pub(crate) fences: u8,
    pub(crate) lags: u8,
    pub(crate) losses: u8,
    /// Messages that may stay on their way while other things happen; all others arrive at once.
    pub(crate) delays: u8,
}

/// A bug, put between the machines and the world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Plant {
    /// A leader takes its proposal for the in-sync set before anybody has accepted it.
    WatermarkWithoutMaximalSet,
    /// A follower acknowledges what it has not synced.
    AckBeforeSync,
    /// A follower cuts its log to what it knows to be committed, whatever the epochs say.
    TruncateToWatermark,
    /// The controller adds members to the in-sync set whatever run they are.
    NoIncarnationCheck,
    /// A leader serves before its `EpochStart` is committed.
    ServesBeforeEpochStart,
    /// A follower is taken for in sync when it opens its stream.
    ExpandsTooEarly,
    /// A proposal without an answer is taken for rejected.
    UnionDroppedOnTimeout,
}

impl Plant {
    pub(crate) const ALL: [Self; 7] = [
        Self::WatermarkWithoutMaximalSet,
        Self::AckBeforeSync,
        Self::TruncateToWatermark,
        Self::NoIncarnationCheck,
        Self::ServesBeforeEpochStart,
        Self::ExpandsTooEarly,
        Self::UnionDroppedOnTimeout,
    ];
}

/// What may happen next. Numbers are places of brokers, or of what is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// The next message is delayed.
    Hold,
    Learn(usize),
    Append(usize),
    Sync(usize),
    Open(usize),
    Ship(usize, usize),
    Deliver(usize),
    Lose(usize),
    /// A proposal arrives, and its answer is lost.
    LoseAnswer(usize),
    Lag(usize),
    Crash(usize),
    Wipe(usize),
    Restart(usize),
    Fence(usize),
    Elect(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Entry {
    epoch: u32,
    /// 0: the `EpochStart`.
    value: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Role {
    Down,
    Leading(Box<Leading>),
    Following(Box<Following>),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Broker {
    incarnation: u64,
    log: Vec<Entry>,
    durable: usize,
    /// What it knows to be committed.
    watermark: usize,
    /// Its disk is a new one, and it has not said so yet.
    wiped: bool,
    lost: bool,
    /// The versions of the metadata that it has applied.
    applied: usize,
    role: Role,
    /// A stream that is to be opened.
    opening: Option<OpenStream>,
    /// Of a leader: per follower the stream, how much was sent on it, and which watermark.
    sent: BTreeMap<usize, (u64, usize, usize)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Version {
    leader: Option<usize>,
    fenced: BTreeSet<usize>,
    assignment: Assignment,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Wire {
    Records { from: usize, to: usize, records: Records, entries: Vec<Entry> },
    Ack { from: usize, to: usize, of: (Incarnation, LeaderEpoch, u64), durable: usize },
    Alter { from: usize, change: AlterIsr },
    Answer { to: usize, of: PartitionEpoch, epoch: LeaderEpoch, outcome: AlterOutcome },
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    brokers: [Broker; 3],
    versions: Vec<Version>,
    wires: Vec<Wire>,
    hold: bool,
    left: Budget,
    plant: Option<Plant>,
    /// Everything that a leader has called committed.
    committed: Vec<Entry>,
    /// Everything that a leader has served.
    served: Vec<Entry>,
}

fn node(at: usize) -> NodeId {
    NodeId(u32::try_from(at).unwrap())
}

fn number(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap()
}

fn at(index: usize) -> Position {
    Position::new(EntryIndex(index as u64), Offset(index as u64))
}

fn place(position: Position) -> usize {
    usize::try_from(position.index.0).unwrap()
}

fn epochs(log: &[Entry]) -> EpochTable {
    let mut table = EpochTable::default();
    for (index, entry) in log.iter().enumerate().filter(|(_, entry)| entry.value == 0) {
        table.push(LeaderEpoch(entry.epoch), at(index));
    }
    table
}

impl World {
    pub(crate) fn new(budget: Budget, plant: Option<Plant>) -> Self {
        let all: BTreeSet<NodeId> = (0..3).map(node).collect();
        let assignment = Assignment {
            index: EntryIndex(0),
            leader_epoch: LeaderEpoch(1),
            partition_epoch: PartitionEpoch(1),
            replicas: all.clone(),
            isr: all.clone(),
            min_isr: MIN_ISR,
            incarnations: all.iter().map(|node| (*node, Incarnation(1))).collect(),
        };
        let broker = || Broker {
            incarnation: 1,
            log: Vec::new(),
            durable: 0,
            watermark: 0,
            wiped: false,
            lost: false,
            applied: 0,
            role: Role::Following(Box::new(Following::new(
                Incarnation(1),
                EpochTable::default(),
                (at(0), at(0)),
                at(0),
            ))),
            opening: None,
            sent: BTreeMap::new(),
        };
        let mut world = Self {
            brokers: [broker(), broker(), broker()],
            versions: vec![Version { leader: Some(0), fenced: BTreeSet::new(), assignment }],
            wires: Vec::new(),
            hold: false,
            left: Budget::default(),
            plant: None,
            committed: Vec::new(),
            served: Vec::new(),
        };
        // All begins with a leader whom everybody follows.
        while let Some(action) = world.actions().first().copied() {
            world.step(action).unwrap();
        }
        assert_eq!(world.committed.len(), 1, "its `EpochStart` is committed");
        (world.left, world.plant) = (budget, plant);
        world
    }

    fn now(&self) -> &Version {
        self.versions.last().unwrap()
    }

    fn has(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    pub(crate) fn actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        let version = self.now();
        if self.left.delays > 0 && !self.hold {
            all.push(Action::Hold);
        }
        for b in 0..3 {
            let broker = &self.brokers[b];
            if broker.role == Role::Down {
                all.push(Action::Restart(b));
                continue;
            }
            if broker.applied < self.versions.len() {
                all.push(Action::Learn(b));
            }
            if broker.durable < broker.log.len() {
                all.push(Action::Sync(b));
            }
            if self.finds_its_leader(b) {
                all.push(Action::Open(b));
            }
            if let Role::Leading(leading) = &broker.role {
                if self.left.appends > 0 {
                    all.push(Action::Append(b));
                }
                if self.left.lags > 0 {
                    all.push(Action::Lag(b));
                }
                let mark = place(leading.high_watermark());
                for (to, (_, sent, told)) in &broker.sent {
                    if *sent < broker.log.len() || *told < mark {
                        all.push(Action::Ship(b, *to));
                    }
                }
            }
            if self.left.crashes > 0 {
                all.push(Action::Crash(b));
            }
            let in_sync = version.assignment.isr.contains(&node(b));
            if self.left.wipes > 0 && !in_sync {
                all.push(Action::Wipe(b));
            }
            if self.left.fences > 0 && !version.fenced.contains(&b) {
                all.push(Action::Fence(b));
            }
            let may_lead = in_sync && !version.fenced.contains(&b);
            if version.leader.is_none() && may_lead && self.left.elections > 0 {
                all.push(Action::Elect(b));
            }
        }
        for wire in 0..self.wires.len() {
            all.push(Action::Deliver(wire));
            if self.left.losses > 0 {
                all.push(Action::Lose(wire));
                if matches!(&self.wires[wire], Wire::Alter { .. }) {
                    all.push(Action::LoseAnswer(wire));
                }
            }
        }
        all
    }

    /// Whether the stream that a broker wants would be opened. Attempts in vain would be states without end.
    fn finds_its_leader(&self, b: usize) -> bool {
        let Role::Following(following) = &self.brokers[b].role else { return false };
        let (Some(wanted), Some((leader, _))) = (self.brokers[b].opening, following.leader())
        else {
            return false;
        };
        let leads = matches!(&self.brokers[number(leader)].role, Role::Leading(_));
        leads && self.epoch_of(number(leader)) == Some(wanted.leader_epoch)
    }

    /// Does it, and judges.
    pub(crate) fn step(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Hold => {
                self.left.delays -= 1;
                self.hold = true;
            }
            Action::Learn(b) => self.learn(b)?,
            Action::Append(b) => {
                self.left.appends -= 1;
                let value = 3 - self.left.appends;
                self.append(b, value)?;
            }
            Action::Sync(b) => {
                self.brokers[b].durable = self.brokers[b].log.len();
                self.progress(b)?;
            }
            Action::Open(b) => self.open(b)?,
            Action::Ship(from, to) => self.ship(from, to)?,
            Action::Deliver(wire) => {
                let wire = self.wires.remove(wire);
                self.deliver(wire)?;
            }
            Action::Lose(wire) => {
                self.left.losses -= 1;
                let wire = self.wires.remove(wire);
                self.lose(wire)?;
            }
            Action::LoseAnswer(wire) => {
                self.left.losses -= 1;
                if let Wire::Alter { from, change } = self.wires.remove(wire) {
                    self.judge_change(from, &change);
                    self.timed_out(from, change.partition_epoch)?;
                }
            }
            Action::Lag(b) => {
                self.left.lags -= 1;
                self.lead(b, &mut |leading, effects| leading.tick(LAG_MAX, effects))?;
            }
            Action::Crash(b) => {
                self.left.crashes -= 1;
                self.crash(b);
            }
            Action::Wipe(b) => {
                self.left.wipes -= 1;
                self.crash(b);
                let broker = &mut self.brokers[b];
                broker.log.clear();
                (broker.durable, broker.watermark, broker.wiped) = (0, 0, true);
                broker.lost = true;
            }
            Action::Restart(b) => self.restart(b)?,
            Action::Fence(b) => {
                self.left.fences -= 1;
                self.change(|version| {
                    version.fenced.insert(b);
                    let isr = &mut version.assignment.isr;
                    if isr.len() > MIN_ISR {
                        isr.remove(&node(b));
                    }
                    version.depose(b);
                });
            }
            Action::Elect(b) => {
                self.left.elections -= 1;
                self.change(|version| {
                    version.leader = Some(b);
                    version.assignment.leader_epoch.0 += 1;
                });
            }
        }
        self.judge()
    }

    fn change(&mut self, change: impl FnOnce(&mut Version)) {
        let before = self.now().clone();
        let mut next = before.clone();
        next.assignment.index.0 += 1;
        change(&mut next);
        let isr_changed = before.assignment.isr != next.assignment.isr;
        if isr_changed || before.leader != next.leader {
            next.assignment.partition_epoch.0 += 1;
        }
        self.versions.push(next);
    }

    /// Applies the next version of the metadata.
    fn learn(&mut self, b: usize) -> Result<(), String> {
        let Version { leader, assignment, .. } = self.versions[self.brokers[b].applied].clone();
        self.brokers[b].applied += 1;
        let epoch = assignment.leader_epoch;
        let leads = matches!(&self.brokers[b].role, Role::Leading(_));
        if leads && leader == Some(b) && self.epoch_of(b) == Some(epoch) {
            return self
                .lead(b, &mut |leading, effects| leading.assigned(assignment.clone(), effects));
        }
        if leads {
            self.brokers[b].sent.clear();
            self.brokers[b].role = self.brokers[b].follower();
        }
        match leader {
            Some(me) if me == b => self.begin(b, assignment),
            Some(other) => {
                let cuts = self.has(Plant::TruncateToWatermark);
                let broker = &mut self.brokers[b];
                let newer = matches!(&broker.role, Role::Following(one)
                    if one.leader().is_none_or(|(_, known)| known < epoch));
                if cuts && newer {
                    broker.log.truncate(broker.watermark);
                    broker.durable = broker.durable.min(broker.watermark);
                    broker.role = broker.follower();
                }
                self.follow(b, &mut |following, effects| {
                    following.follow(node(other), epoch, effects)
                })
            }
            None => Ok(()),
        }
    }

    fn epoch_of(&self, b: usize) -> Option<LeaderEpoch> {
        let start = self.brokers[b].log.iter().rev().find(|entry| entry.value == 0)?;
        Some(LeaderEpoch(start.epoch))
    }

    /// A leadership begins, with its entry.
    fn begin(&mut self, b: usize, assignment: Assignment) -> Result<(), String> {
        let broker = &mut self.brokers[b];
        let epoch = assignment.leader_epoch;
        let end = broker.log.len();
        let me = (node(b), Incarnation(broker.incarnation));
        let cursors = (EntryIndex(0), at(broker.durable), at(end));
        let table = epochs(&broker.log);
        let mark = at(broker.watermark);
        let mut leading = Leading::new(me, assignment, table, cursors, mark, LAG_MAX);
        broker.log.push(Entry { epoch: epoch.0, value: 0 });
        leading.epoch_started(at(end), at(end + 1));
        broker.role = Role::Leading(Box::new(leading));
        (broker.opening, broker.sent) = (None, BTreeMap::new());
        self.progress(b)
    }

    fn append(&mut self, b: usize, value: u8) -> Result<(), String> {
        let epoch = self.epoch_of(b).unwrap().0;
        self.brokers[b].log.push(Entry { epoch, value });
        self.progress(b)
    }

    fn progress(&mut self, b: usize) -> Result<(), String> {
        let broker = &self.brokers[b];
        let (durable, end) = (at(broker.durable), at(broker.log.len()));
        match &broker.role {
            Role::Down => Ok(()),
            Role::Leading(_) => {
                self.lead(b, &mut |leading, effects| leading.own_progress(durable, end, effects))
            }
            Role::Following(_) => {
                self.follow(b, &mut |following, effects| following.own_progress(durable, effects))
            }
        }
    }

    /// Opens the stream that a follower wants; if its leader is not there or not yet one, it stays wanted.
    fn open(&mut self, b: usize) -> Result<(), String> {
        let Role::Following(following) = &self.brokers[b].role else { return Ok(()) };
        let Some((leader, _)) = following.leader() else { return Ok(()) };
        let l = number(leader);
        let wanted = self.brokers[b].opening.take().unwrap();
        if !matches!(&self.brokers[l].role, Role::Leading(_)) {
            return self
                .follow(b, &mut |following, effects| following.closed(wanted.stream, effects));
        }
        let mut answer = None;
        self.lead(l, &mut |leading, effects| {
            answer = Some(leading.open_stream(Duration::ZERO, node(b), wanted, effects));
        })?;
        let answer = answer.unwrap();
        use postrider_core::replica::OpenAnswer;
        if let OpenAnswer::Ok { .. } = answer {
            let start = place(wanted.log_end);
            self.brokers[l].sent.insert(b, (wanted.stream, start, 0));
            if self.has(Plant::ExpandsTooEarly) {
                let end = at(self.brokers[l].log.len());
                let of = (wanted.incarnation, wanted.leader_epoch, wanted.stream);
                self.lead(l, &mut |leading, effects| {
                    leading.acked(Duration::ZERO, node(b), of, (end, EntryIndex(0)), effects);
                })?;
            }
        }
        if let OpenAnswer::Fenced | OpenAnswer::NotReplica = answer {
            return self
                .follow(b, &mut |following, effects| following.closed(wanted.stream, effects));
        }
        self.follow(b, &mut |following, effects| following.answered(wanted.stream, answer, effects))
    }

    fn ship(&mut self, from: usize, to: usize) -> Result<(), String> {
        let broker = &mut self.brokers[from];
        let Role::Leading(leading) = &broker.role else { return Ok(()) };
        let high_watermark = leading.high_watermark();
        let leader_epoch = leading.leader_epoch();
        let Some((stream, sent, told)) = broker.sent.get_mut(&to) else { return Ok(()) };
        let entries = broker.log[*sent..].to_vec();
        let starts = entries.iter().zip(*sent..).filter(|(entry, _)| entry.value == 0);
        let records = Records {
            leader_epoch,
            stream: *stream,
            start: at(*sent),
            end: at(broker.log.len()),
            epochs: starts.map(|(entry, index)| (LeaderEpoch(entry.epoch), at(index))).collect(),
            high_watermark,
        };
        (*sent, *told) = (broker.log.len(), place(high_watermark));
        self.send(Wire::Records { from, to, records, entries })
    }

    /// Messages arrive at once, but for those that are held up.
    fn send(&mut self, wire: Wire) -> Result<(), String> {
        if std::mem::take(&mut self.hold) {
            self.wires.push(wire);
            return Ok(());
        }
        self.deliver(wire)
    }

    fn deliver(&mut self, wire: Wire) -> Result<(), String> {
        match wire {
            Wire::Records { to, records, entries, .. } => {
                let mut appended = Vec::new();
                self.follow(to, &mut |following, effects| {
                    following.records(&records, effects);
                    appended = effects.clone();
                })?;
                if appended.contains(&FollowingEffect::Append) {
                    self.brokers[to].log.extend(entries);
                    if self.has(Plant::AckBeforeSync) {
                        let end = at(self.brokers[to].log.len());
                        return self.follow(to, &mut |following, effects| {
                            following.own_progress(end, effects)
                        });
                    }
                }
                Ok(())
            }
            Wire::Ack { from, to, of, durable } => self.lead(to, &mut |leading, effects| {
                let ends = (at(durable), EntryIndex(0));
                leading.acked(Duration::ZERO, node(from), of, ends, effects);
            }),
            Wire::Alter { from, change } => {
                let outcome = self.judge_change(from, &change);
                let (of, epoch) = (change.partition_epoch, change.leader_epoch);
                self.send(Wire::Answer { to: from, of, epoch, outcome })
            }
            Wire::Answer { to, of, epoch, outcome } => {
                if self.epoch_of(to) != Some(epoch) {
                    return Ok(());
                }
                self.lead(to, &mut |leading, effects| leading.alter_answered(of, outcome, effects))
            }
        }
    }

    /// The controller's rules for a change of the in-sync set.
    fn judge_change(&mut self, from: usize, change: &AlterIsr) -> AlterOutcome {
        let version = self.now();
        let runs = &version.assignment.incarnations;
        let added_fit = change.added.iter().all(|(added, run)| {
            let fenced = version.fenced.contains(&number(*added));
            (runs.get(added) == Some(run) && !fenced) || self.has(Plant::NoIncarnationCheck)
        });
        let fits = version.leader == Some(from)
            && version.assignment.leader_epoch == change.leader_epoch
            && version.assignment.partition_epoch == change.partition_epoch
            && runs.get(&node(from)) == Some(&change.incarnation)
            && change.isr.len() >= MIN_ISR
            && change.isr.contains(&node(from));
        if !fits || !added_fit {
            return AlterOutcome::Rejected(version.assignment.index);
        }
        let isr = change.isr.clone();
        self.change(|version| version.assignment.isr = isr);
        AlterOutcome::Accepted(self.now().assignment.partition_epoch)
    }

    /// A message is lost: its connection with it.
    fn lose(&mut self, wire: Wire) -> Result<(), String> {
        match wire {
            Wire::Records { from, to, records, .. } => self.cut_stream(from, to, records.stream),
            Wire::Ack { from, to, of, .. } => self.cut_stream(to, from, of.2),
            Wire::Alter { from, change } => self.timed_out(from, change.partition_epoch),
            Wire::Answer { to, of, .. } => self.timed_out(to, of),
        }
    }

    fn cut_stream(&mut self, leader: usize, follower: usize, stream: u64) -> Result<(), String> {
        self.brokers[leader].sent.retain(|to, sent| *to != follower || sent.0 != stream);
        self.lead(leader, &mut |leading, _effects| leading.stream_closed(node(follower), stream))?;
        self.follow(follower, &mut |following, effects| following.closed(stream, effects))
    }

    fn timed_out(&mut self, leader: usize, of: PartitionEpoch) -> Result<(), String> {
        let outcome = match self.has(Plant::UnionDroppedOnTimeout) {
            true => AlterOutcome::Rejected(EntryIndex(0)),
            false => AlterOutcome::Unknown,
        };
        self.lead(leader, &mut |leading, effects| leading.alter_answered(of, outcome, effects))
    }

    /// What was not synced is lost.
    fn crash(&mut self, b: usize) {
        let broker = &mut self.brokers[b];
        broker.log.truncate(broker.durable);
        broker.watermark = broker.watermark.min(broker.durable);
        broker.role = Role::Down;
        (broker.opening, broker.sent) = (None, BTreeMap::new());
        for other in &mut self.brokers {
            other.sent.remove(&b);
        }
    }

    /// The broker registers, which ends what its run before led, and knows the metadata up to there.
    fn restart(&mut self, b: usize) -> Result<(), String> {
        self.brokers[b].incarnation += 1;
        let incarnation = self.brokers[b].incarnation;
        let wiped = std::mem::take(&mut self.brokers[b].wiped);
        self.change(|version| {
            if wiped {
                version.assignment.isr.remove(&node(b));
            }
            version.assignment.incarnations.insert(node(b), Incarnation(incarnation));
            version.fenced.remove(&b);
            version.depose(b);
        });
        self.brokers[b].applied = self.versions.len() - 1;
        self.brokers[b].role = self.brokers[b].follower();
        self.learn(b)
    }

    /// Runs a leader's machine, if there is one, and does what it says.
    fn lead(
        &mut self,
        b: usize,
        run: &mut dyn FnMut(&mut Leading, &mut Vec<LeadingEffect>),
    ) -> Result<(), String> {
        let Role::Leading(leading) = &mut self.brokers[b].role else { return Ok(()) };
        let mut effects = Vec::new();
        run(leading, &mut effects);
        for effect in effects {
            match effect {
                LeadingEffect::HighWatermark(end) => self.commit(b, place(end))?,
                LeadingEffect::AlterIsr(change) => {
                    if self.has(Plant::WatermarkWithoutMaximalSet) {
                        let mut believed =
                            self.versions[self.brokers[b].applied - 1].assignment.clone();
                        believed.isr = change.isr.clone();
                        believed.partition_epoch = PartitionEpoch(change.partition_epoch.0 + 1);
                        self.lead(b, &mut |leading, effects| {
                            leading.assigned(believed.clone(), effects)
                        })?;
                    }
                    self.send(Wire::Alter { from: b, change })?;
                }
                // A disk was lost, and the leader does not know yet that its broker said so.
                LeadingEffect::MemberLost(lost) if self.brokers[number(lost)].lost => {}
                LeadingEffect::MemberLost(lost) => {
                    return Err(format!("no disk has lost anything, and {lost} is said to"));
                }
                LeadingEffect::Deposed => return Err("learned, and not replaced".to_string()),
            }
        }
        self.serve(b)
    }

    fn commit(&mut self, b: usize, end: usize) -> Result<(), String> {
        let broker = &mut self.brokers[b];
        if end < broker.watermark {
            return Err(format!("I3: {b} goes back from {} to {end}", broker.watermark));
        }
        broker.watermark = end;
        let entries = &broker.log[..end];
        let common = entries.len().min(self.committed.len());
        if entries[..common] != self.committed[..common] {
            return Err(format!("I2: {entries:?} and {:?} are committed", self.committed));
        }
        if self.committed.len() < end {
            self.committed = entries.to_vec();
        }
        Ok(())
    }

    /// A leader that may answers from all that it found.
    fn serve(&mut self, b: usize) -> Result<(), String> {
        let Role::Leading(leading) = &self.brokers[b].role else { return Ok(()) };
        if !leading.is_established() && !self.has(Plant::ServesBeforeEpochStart) {
            return Ok(());
        }
        let log = &self.brokers[b].log;
        let found = log.iter().rposition(|entry| entry.value == 0).unwrap_or(0);
        if self.served.len() < found {
            self.served = log[..found].to_vec();
        }
        Ok(())
    }

    fn follow(
        &mut self,
        b: usize,
        run: &mut dyn FnMut(&mut Following, &mut Vec<FollowingEffect>),
    ) -> Result<(), String> {
        let Role::Following(following) = &mut self.brokers[b].role else { return Ok(()) };
        let mut effects = Vec::new();
        run(following, &mut effects);
        for effect in effects {
            let Role::Following(following) = &self.brokers[b].role else { break };
            let leader = following.leader();
            let broker = &mut self.brokers[b];
            match effect {
                FollowingEffect::Open(open) => broker.opening = Some(open),
                FollowingEffect::Truncate(to) => {
                    if place(to) < broker.watermark {
                        return Err(format!("I9: {b} cuts to {to:?}"));
                    }
                    broker.log.truncate(place(to));
                    broker.durable = broker.durable.min(place(to));
                    self.follow(b, &mut |following, effects| following.truncated(to, effects))?;
                }
                // Whoever called appends them.
                FollowingEffect::Append => {}
                FollowingEffect::Ack { stream, durable_end } => {
                    let Some((leader, epoch)) = leader else { continue };
                    let of = (Incarnation(broker.incarnation), epoch, stream);
                    let (to, durable) = (number(leader), place(durable_end));
                    self.send(Wire::Ack { from: b, to, of, durable })?;
                }
                FollowingEffect::HighWatermark(end) if place(end) < broker.watermark => {
                    return Err(format!("I3: {b} goes back from {} to {end:?}", broker.watermark));
                }
                FollowingEffect::HighWatermark(end) => broker.watermark = place(end),
                FollowingEffect::Reset(_) => return Err("everything is kept".to_string()),
                FollowingEffect::Quarantine(to) => {
                    return Err(format!("I9: {b} is to cut to {to:?}"));
                }
            }
        }
        Ok(())
    }

    fn judge(&self) -> Result<(), String> {
        let version = self.now();
        let isr = &version.assignment.isr;
        if isr.len() < MIN_ISR {
            return Err(format!("I4: {isr:?}"));
        }
        for member in isr {
            let broker = &self.brokers[number(*member)];
            if !broker.wiped && !broker.log[..broker.durable].starts_with(&self.committed) {
                return Err(format!("I1: {member} has {:?} of {:?}", broker.log, self.committed));
            }
        }
        let common = self.served.len().min(self.committed.len());
        if self.served[..common] != self.committed[..common] {
            return Err(format!("I12: served {:?}, committed {:?}", self.served, self.committed));
        }
        if let Some(leader) = version.leader
            && let Role::Leading(leading) = &self.brokers[leader].role
            && self.epoch_of(leader) == Some(version.assignment.leader_epoch)
            && !leading.maximal_isr().is_superset(isr)
        {
            return Err(format!("I5: {:?} for {isr:?}", leading.maximal_isr()));
        }
        Ok(())
    }
}

impl Version {
    /// It leads no more, if it did.
    fn depose(&mut self, b: usize) {
        if self.leader == Some(b) {
            self.leader = None;
            self.assignment.leader_epoch.0 += 1;
        }
    }
}

impl Broker {
    /// A replica that follows nobody yet.
    fn follower(&self) -> Role {
        let ends = (at(self.durable), at(self.log.len()));
        let incarnation = Incarnation(self.incarnation);
        let table = epochs(&self.log);
        Role::Following(Box::new(Following::new(incarnation, table, ends, at(self.watermark))))
    }
}
