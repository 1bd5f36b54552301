//! Owns what one leadership of a partition knows of its replicas: who has what, who is in sync, and so what is
//! committed. Never appends, sends or decides who leads. Driven by whoever leads the partition, under its lock.
//!
//! ```text
//!   open_stream, acked, own_progress, tick --> high watermark rises
//!                                          \-> AlterIsr --> controller --> alter_answered, assigned
//! ```
//! The **maximal** in-sync set is the controller's and what a proposal would add, from the moment that it is sent until
//! its outcome is known. The high watermark is the least end over it, so whatever the controller believes, every
//! member that it may elect has all that is below. Proposals are made one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postrider_protocol::types::{EntryIndex, Incarnation, LeaderEpoch, NodeId};

use super::PartitionEpoch;
use super::epochs::EpochTable;
use crate::cursors::Position;

/// What the metadata says of a partition, as far as this broker has applied it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Assignment {
    /// How far the metadata is applied.
    pub index: EntryIndex,
    /// The newest leadership.
    pub leader_epoch: LeaderEpoch,
    /// Rises with each change of what follows.
    pub partition_epoch: PartitionEpoch,
    /// Who has the partition.
    pub replicas: BTreeSet<NodeId>,
    /// Who is in sync.
    pub isr: BTreeSet<NodeId>,
    /// The fewest that may be.
    pub min_isr: usize,
    /// The newest registration of each replica.
    pub incarnations: BTreeMap<NodeId, Incarnation>,
}

/// A follower opens its stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OpenStream {
    /// Its run.
    pub incarnation: Incarnation,
    /// The leadership that it follows.
    pub leader_epoch: LeaderEpoch,
    /// Its number for the stream; rises.
    pub stream: u64,
    /// Where its log ends.
    pub log_end: Position,
    /// The epoch of its last entry, if it has one.
    pub last_epoch: Option<LeaderEpoch>,
    /// What it has durably.
    pub durable_end: Position,
}

/// What it is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OpenAnswer {
    /// Entries follow from the end of its log on.
    Ok {
        /// What is committed.
        high_watermark: Position,
    },
    /// Its log parts from this one: it cuts to the lesser of `end` and its own end of `epoch`, and opens again.
    Diverged {
        /// The newest epoch of this log that is not above its last one.
        epoch: LeaderEpoch,
        /// Where that ends here.
        end: Position,
    },
    /// What it lacks is kept here no longer.
    NeedReset {
        /// From here on there are entries.
        log_start: EntryIndex,
    },
    /// It speaks of another leadership, or is an older run.
    Fenced,
    /// It has no replica.
    NotReplica,
}

/// A change of the in-sync set, for the controller to judge: it takes it if epochs and incarnations are its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AlterIsr {
    /// Whose proposal it is.
    pub leader_epoch: LeaderEpoch,
    /// The run of the leader.
    pub incarnation: Incarnation,
    /// What it is a change of.
    pub partition_epoch: PartitionEpoch,
    /// The whole new set.
    pub isr: BTreeSet<NodeId>,
    /// The runs of those that it adds.
    pub added: BTreeMap<NodeId, Incarnation>,
}

/// What became of a proposal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AlterOutcome {
    /// It is the in-sync set, under this number.
    Accepted(PartitionEpoch),
    /// It is not, or was and is no more: known when the metadata is applied up to here.
    Rejected(EntryIndex),
    /// No answer came: it is proposed again.
    Unknown,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum LeadingEffect {
    /// So much is committed.
    HighWatermark(Position),
    /// To be sent to the controller.
    AlterIsr(AlterIsr),
    /// A member of the in-sync set lacks what it had acknowledged: its disk has lost it. For people to see.
    MemberLost(NodeId),
    /// Another leadership has begun.
    Deposed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Follower {
    incarnation: Incarnation,
    stream: u64,
    open: bool,
    /// What it acknowledged in this stream. What it acknowledged before is no proof any more.
    durable: Option<Position>,
    applied: EntryIndex,
    /// When it last rose, or had all there was.
    moved: Duration,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Proposal {
    change: AlterIsr,
    /// It was rejected; this much metadata says what is in force.
    until: Option<EntryIndex>,
}

/// See the module. Bound: the replicas.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Leading {
    me: NodeId,
    incarnation: Incarnation,
    /// A member without progress for so long leaves the in-sync set.
    lag_max: Duration,
    assignment: Assignment,
    epochs: EpochTable,
    log_start: EntryIndex,
    ready_end: Position,
    log_end: Position,
    /// Behind the entry with which the epoch begins, once it is appended.
    established_at: Option<Position>,
    high_watermark: Position,
    followers: BTreeMap<NodeId, Follower>,
    proposal: Option<Proposal>,
    deposed: bool,
}

impl Leading {
    /// Begins a leadership under `assignment` on a log that ends at `log_end`; `high_watermark` is what this replica
    /// knew to be committed.
    ///
    /// # Panics
    /// If this broker is not in sync: nobody may have elected it.
    #[must_use]
    pub fn new(
        (me, incarnation): (NodeId, Incarnation),
        assignment: Assignment,
        epochs: EpochTable,
        (log_start, ready_end, log_end): (EntryIndex, Position, Position),
        high_watermark: Position,
        lag_max: Duration,
    ) -> Self {
        assert!(assignment.isr.contains(&me), "who is elected is in sync");
        Self {
            me,
            incarnation,
            lag_max,
            assignment,
            epochs,
            log_start,
            ready_end,
            log_end,
            established_at: None,
            high_watermark,
            followers: BTreeMap::new(),
            proposal: None,
            deposed: false,
        }
    }

    /// The `EpochStart` entry of this leadership is appended: from `start` to `end`.
    pub fn epoch_started(&mut self, start: Position, end: Position) {
        self.epochs.push(self.assignment.leader_epoch, start);
        self.log_end = end;
        self.established_at = Some(end);
    }

    /// Which leadership it is.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.assignment.leader_epoch
    }

    /// What is committed.
    #[must_use]
    pub fn high_watermark(&self) -> Position {
        self.high_watermark
    }

    /// Whether all that was committed before this leadership is known here to be: until then nothing is delivered and
    /// nothing answered.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.established_at.is_some_and(|at| at.at_or_before(self.high_watermark))
    }

    /// Whose ends the high watermark is the least of.
    #[must_use]
    pub fn maximal_isr(&self) -> BTreeSet<NodeId> {
        let mut all = self.assignment.isr.clone();
        all.extend(self.proposal.iter().flat_map(|proposal| proposal.change.isr.iter().copied()));
        all
    }

    /// Whether enough members are there for what is appended now to be committed soon. If not, a publish is refused.
    #[must_use]
    pub fn has_enough_replicas(&self) -> bool {
        let there = self.assignment.isr.iter().filter(|node| self.is_open(**node)).count();
        there >= self.assignment.min_isr
    }

    fn is_open(&self, node: NodeId) -> bool {
        node == self.me || self.followers.get(&node).is_some_and(|follower| follower.open)
    }

    /// What each follower with a stream has acknowledged: for metrics.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, Option<Position>, EntryIndex)> {
        self.followers.iter().map(|(node, follower)| (*node, follower.durable, follower.applied))
    }

    /// The leader's own log has grown, or is durable further than before.
    ///
    /// # Panics
    /// If it is durable beyond its end.
    pub fn own_progress(
        &mut self,
        ready_end: Position,
        log_end: Position,
        effects: &mut Vec<LeadingEffect>,
    ) {
        assert!(ready_end.at_or_before(log_end), "{ready_end:?} lies behind the end {log_end:?}");
        self.ready_end = ready_end;
        self.log_end = log_end;
        self.advance(effects);
    }

    /// Retention has moved the start of the log.
    pub fn log_start_moved(&mut self, log_start: EntryIndex, start: Position) {
        self.log_start = self.log_start.max(log_start);
        self.epochs.trim_below(start);
    }

    /// A follower opens a stream: it gets entries from the end of its log on if its log is a part of this one.
    pub fn open_stream(
        &mut self,
        now: Duration,
        node: NodeId,
        open: OpenStream,
        effects: &mut Vec<LeadingEffect>,
    ) -> OpenAnswer {
        if !self.assignment.replicas.contains(&node) {
            return OpenAnswer::NotReplica;
        }
        let known = self.newest(node);
        if open.leader_epoch != self.assignment.leader_epoch || open.incarnation < known {
            return OpenAnswer::Fenced;
        }
        // What it acknowledged before, it may have lost.
        let follower = Follower {
            incarnation: open.incarnation,
            stream: open.stream,
            open: false,
            durable: None,
            applied: EntryIndex(0),
            moved: now,
        };
        self.followers.insert(node, follower);
        let is_member = self.assignment.isr.contains(&node);
        if is_member && open.durable_end.index < self.high_watermark.index {
            effects.push(LeadingEffect::MemberLost(node));
            self.propose_without(&BTreeSet::from([node]), effects);
        }
        let answer = self.reconcile(&open);
        if let (OpenAnswer::Ok { .. }, Some(follower)) = (answer, self.followers.get_mut(&node)) {
            follower.open = true;
        }
        answer
    }

    /// KIP-101 and KIP-279: the largest epoch that both may have, and where it ends here.
    fn reconcile(&self, open: &OpenStream) -> OpenAnswer {
        if let Some(last) = open.last_epoch {
            match self.epochs.end_of(last, self.log_end) {
                // All that is known here is newer: they have nothing in common.
                None if self.log_start == EntryIndex(0) => {
                    let (epoch, end) = (LeaderEpoch(0), Position::default());
                    return OpenAnswer::Diverged { epoch, end };
                }
                // What they have in common may be what is kept here no longer.
                None => return OpenAnswer::NeedReset { log_start: self.log_start },
                Some((epoch, end)) if epoch < last || end.index < open.log_end.index => {
                    return OpenAnswer::Diverged { epoch, end };
                }
                Some(_) => {}
            }
        }
        if open.log_end.index < self.log_start {
            return OpenAnswer::NeedReset { log_start: self.log_start };
        }
        OpenAnswer::Ok { high_watermark: self.high_watermark }
    }

    /// The newest run of a broker that is known here.
    fn newest(&self, node: NodeId) -> Incarnation {
        let told = self.assignment.incarnations.get(&node).copied();
        let seen = self.followers.get(&node).map(|follower| follower.incarnation);
        told.max(seen).unwrap_or_default()
    }

    /// A follower has made entries durable. What is of another stream, run or leadership says nothing.
    pub fn acked(
        &mut self,
        now: Duration,
        node: NodeId,
        (incarnation, leader_epoch, stream): (Incarnation, LeaderEpoch, u64),
        (durable_end, applied_end): (Position, EntryIndex),
        effects: &mut Vec<LeadingEffect>,
    ) {
        let log_end = self.log_end;
        let newest = self.newest(node);
        let Some(follower) = self.followers.get_mut(&node) else { return };
        let current = (follower.incarnation, self.assignment.leader_epoch, follower.stream)
            == (incarnation, leader_epoch, stream)
            && follower.open
            && incarnation == newest;
        if !current || !durable_end.at_or_before(log_end) {
            return;
        }
        if follower.durable.is_none_or(|before| before.index < durable_end.index) {
            follower.durable = Some(durable_end);
            follower.moved = now;
        }
        if durable_end == log_end {
            follower.moved = now;
        }
        follower.applied = follower.applied.max(applied_end);
        self.advance(effects);
        self.propose_with(node, effects);
    }

    /// The stream of a follower has ended.
    pub fn stream_closed(&mut self, node: NodeId, stream: u64) {
        if let Some(follower) = self.followers.get_mut(&node)
            && follower.stream == stream
        {
            follower.open = false;
        }
    }

    /// Time passes: members that lag leave the in-sync set, as far as enough stay.
    pub fn tick(&mut self, now: Duration, effects: &mut Vec<LeadingEffect>) {
        let lag_max = self.lag_max;
        let mut lagging = BTreeSet::new();
        for node in self.assignment.isr.iter().filter(|node| **node != self.me) {
            // One that never opened a stream has been waited for from the first look on.
            let follower = self.followers.entry(*node).or_insert_with(|| Follower {
                incarnation: Incarnation::default(),
                stream: 0,
                open: false,
                durable: None,
                applied: EntryIndex(0),
                moved: now,
            });
            let lacks = follower.durable.is_none_or(|durable| durable.index < self.log_end.index);
            if lacks && now.saturating_sub(follower.moved) >= lag_max {
                lagging.insert(*node);
            }
        }
        if !lagging.is_empty() {
            self.propose_without(&lagging, effects);
        }
    }

    /// The in-sync set without some of its members, as many as may go.
    fn propose_without(&mut self, nodes: &BTreeSet<NodeId>, effects: &mut Vec<LeadingEffect>) {
        let mut isr = self.assignment.isr.clone();
        for node in nodes {
            if isr.len() > self.assignment.min_isr.max(1) {
                isr.remove(node);
            }
        }
        self.propose(isr, BTreeMap::new(), effects);
    }

    /// The in-sync set with one more, if that has all that is committed, in this epoch and as far as this epoch
    /// begins.
    fn propose_with(&mut self, node: NodeId, effects: &mut Vec<LeadingEffect>) {
        let Some(established_at) = self.established_at else { return };
        let Some(follower) = self.followers.get(&node) else { return };
        let needed = established_at.index.max(self.high_watermark.index);
        if self.assignment.isr.contains(&node)
            || follower.durable.is_none_or(|durable| durable.index < needed)
        {
            return;
        }
        let added = BTreeMap::from([(node, follower.incarnation)]);
        let mut isr = self.assignment.isr.clone();
        isr.insert(node);
        self.propose(isr, added, effects);
    }

    fn propose(
        &mut self,
        isr: BTreeSet<NodeId>,
        added: BTreeMap<NodeId, Incarnation>,
        effects: &mut Vec<LeadingEffect>,
    ) {
        if self.proposal.is_some() || isr == self.assignment.isr || self.deposed {
            return;
        }
        let change = AlterIsr {
            leader_epoch: self.assignment.leader_epoch,
            incarnation: self.incarnation,
            partition_epoch: self.assignment.partition_epoch,
            isr,
            added,
        };
        effects.push(LeadingEffect::AlterIsr(change.clone()));
        self.proposal = Some(Proposal { change, until: None });
    }

    /// What became of the proposal on this state of the partition.
    pub fn alter_answered(
        &mut self,
        of: PartitionEpoch,
        outcome: AlterOutcome,
        effects: &mut Vec<LeadingEffect>,
    ) {
        let Some(proposal) = &mut self.proposal else { return };
        if proposal.change.partition_epoch != of {
            return;
        }
        match outcome {
            AlterOutcome::Accepted(partition_epoch) => {
                if self.assignment.partition_epoch < partition_epoch {
                    self.assignment.partition_epoch = partition_epoch;
                    self.assignment.isr = proposal.change.isr.clone();
                }
                self.proposal = None;
            }
            // A proposal that was sent twice may have been taken the first time.
            AlterOutcome::Rejected(until) => proposal.until = Some(until),
            AlterOutcome::Unknown => {
                effects.push(LeadingEffect::AlterIsr(proposal.change.clone()));
            }
        }
        self.settle_proposal();
        self.advance(effects);
    }

    /// The metadata is applied further. What is older than what is known changes nothing.
    pub fn assigned(&mut self, assignment: Assignment, effects: &mut Vec<LeadingEffect>) {
        if assignment.leader_epoch > self.assignment.leader_epoch {
            if !std::mem::replace(&mut self.deposed, true) {
                effects.push(LeadingEffect::Deposed);
            }
            return;
        }
        let index = self.assignment.index.max(assignment.index);
        if assignment.partition_epoch > self.assignment.partition_epoch {
            self.assignment = Assignment { index, ..assignment };
        } else {
            self.assignment.index = index;
            for (node, incarnation) in assignment.incarnations {
                let known = self.assignment.incarnations.entry(node).or_default();
                *known = (*known).max(incarnation);
            }
        }
        // A newer run has whatever its disk kept, which it says when it opens a stream.
        let assignment = &self.assignment;
        self.followers.retain(|node, follower| {
            let newest = assignment.incarnations.get(node).copied().unwrap_or_default();
            assignment.replicas.contains(node) && follower.incarnation >= newest
        });
        self.settle_proposal();
        self.advance(effects);
    }

    /// A proposal is over when the state that it was to change is: the controller takes it no more.
    fn settle_proposal(&mut self) {
        let (index, epoch) = (self.assignment.index, self.assignment.partition_epoch);
        self.proposal.take_if(|proposal| {
            proposal.change.partition_epoch < epoch
                || proposal.until.is_some_and(|until| until <= index)
        });
    }

    fn advance(&mut self, effects: &mut Vec<LeadingEffect>) {
        if self.deposed || self.established_at.is_none() {
            return;
        }
        let mut end = self.ready_end;
        for node in self.maximal_isr() {
            if node == self.me {
                continue;
            }
            let Some(durable) = self.followers.get(&node).and_then(|follower| follower.durable)
            else {
                return;
            };
            if durable.index < end.index {
                end = durable;
            }
        }
        if self.high_watermark.index < end.index {
            self.high_watermark = end;
            effects.push(LeadingEffect::HighWatermark(end));
        }
    }
}
