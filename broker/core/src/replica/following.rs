//! Owns one follower's life under a leader: opening its stream, cutting what the leader does not have, taking
//! entries in order, saying what is durable. Never reads or writes a log. Driven by whoever has the replica, under its
//! lock.
//!
//! ```text
//!   Idle --follow--> Opening --Ok--> Streaming --closed, out of order--> Opening
//!                     |   ^ \--NeedReset--> Resetting
//!               Diverged  truncated   \--cut below what is committed--> Quarantined
//!                     v   |
//!                   Truncating
//! ```
//! Whatever belongs to another stream than the newest is dropped: its epoch and a number tell it from others.

use postrider_protocol::types::{EntryIndex, Incarnation, LeaderEpoch, NodeId};

use super::epochs::EpochTable;
use super::leading::{OpenAnswer, OpenStream};
use crate::cursors::Position;

/// Entries from a leader, as far as this machine looks at them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Records {
    /// The leadership that sent them.
    pub leader_epoch: LeaderEpoch,
    /// The stream that they belong to.
    pub stream: u64,
    /// Where the first one begins.
    pub start: Position,
    /// Behind the last one.
    pub end: Position,
    /// The epochs that begin among them.
    pub epochs: Vec<(LeaderEpoch, Position)>,
    /// What the leader knows to be committed.
    pub high_watermark: Position,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FollowingEffect {
    /// To be sent to the leader.
    Open(OpenStream),
    /// Cut the log; then [`Following::truncated`].
    Truncate(Position),
    /// The entries are to be appended.
    Append,
    /// To be told to the leader, of this stream.
    Ack {
        /// The stream.
        stream: u64,
        /// What is durable here.
        durable_end: Position,
    },
    /// So much is committed, and durable here.
    HighWatermark(Position),
    /// The log is to be replaced by a snapshot and what follows; then [`Following::reset_done`].
    Reset(EntryIndex),
    /// The leader wants a cut of what this replica knows to be committed. It stops here, and people are told.
    Quarantine(Position),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    Idle,
    Opening,
    Truncating,
    Streaming,
    Resetting,
    Quarantined,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Following {
    incarnation: Incarnation,
    leader: Option<(NodeId, LeaderEpoch)>,
    stage: Stage,
    stream: u64,
    epochs: EpochTable,
    log_end: Position,
    ready_end: Position,
    /// What the leader said is committed.
    leaders_watermark: Position,
    high_watermark: Position,
}

impl Following {
    /// A replica of this run, with a log as recovery found it; `high_watermark` is what it knows to be committed.
    #[must_use]
    pub fn new(
        incarnation: Incarnation,
        epochs: EpochTable,
        (ready_end, log_end): (Position, Position),
        high_watermark: Position,
    ) -> Self {
        Self {
            incarnation,
            leader: None,
            stage: Stage::Idle,
            stream: 0,
            epochs,
            log_end,
            ready_end,
            leaders_watermark: high_watermark,
            high_watermark,
        }
    }

    /// Whom it follows.
    #[must_use]
    pub fn leader(&self) -> Option<(NodeId, LeaderEpoch)> {
        self.leader
    }

    /// What it knows to be committed.
    #[must_use]
    pub fn high_watermark(&self) -> Position {
        self.high_watermark
    }

    /// Where its log ends.
    #[must_use]
    pub fn log_end(&self) -> Position {
        self.log_end
    }

    /// The epochs of its log: what a leadership of this replica begins with.
    #[must_use]
    pub fn epochs(&self) -> &EpochTable {
        &self.epochs
    }

    /// Whether entries come.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.stage == Stage::Streaming
    }

    /// There is a newer leadership. An older one changes nothing.
    pub fn follow(
        &mut self,
        leader: NodeId,
        leader_epoch: LeaderEpoch,
        effects: &mut Vec<FollowingEffect>,
    ) {
        if self.leader.is_some_and(|(_, known)| leader_epoch <= known) {
            return;
        }
        self.leader = Some((leader, leader_epoch));
        self.reopen(effects);
    }

    /// The stream ended, or could not be opened: it is opened again. The caller waits between attempts.
    pub fn closed(&mut self, stream: u64, effects: &mut Vec<FollowingEffect>) {
        if stream == self.stream && matches!(self.stage, Stage::Opening | Stage::Streaming) {
            self.reopen(effects);
        }
    }

    fn reopen(&mut self, effects: &mut Vec<FollowingEffect>) {
        let Some((_, leader_epoch)) = self.leader else { return };
        if matches!(self.stage, Stage::Quarantined | Stage::Truncating | Stage::Resetting) {
            return;
        }
        self.stage = Stage::Opening;
        self.stream += 1;
        effects.push(FollowingEffect::Open(OpenStream {
            incarnation: self.incarnation,
            leader_epoch,
            stream: self.stream,
            log_end: self.log_end,
            last_epoch: self.epochs.last().map(|(epoch, _)| epoch),
            durable_end: self.ready_end,
        }));
    }

    /// The leader's answer to the opening of a stream.
    pub fn answered(
        &mut self,
        stream: u64,
        answer: OpenAnswer,
        effects: &mut Vec<FollowingEffect>,
    ) {
        if stream != self.stream || self.stage != Stage::Opening {
            return;
        }
        match answer {
            OpenAnswer::Ok { high_watermark } => {
                self.stage = Stage::Streaming;
                self.hear(high_watermark, effects);
                self.ack(effects);
            }
            OpenAnswer::Diverged { epoch, end } => self.cut(epoch, end, effects),
            OpenAnswer::NeedReset { log_start } => {
                self.stage = Stage::Resetting;
                effects.push(FollowingEffect::Reset(log_start));
            }
            // One of both lacks metadata. The caller waits, and says that the stream is closed.
            OpenAnswer::Fenced | OpenAnswer::NotReplica => {}
        }
    }

    fn cut(&mut self, epoch: LeaderEpoch, end: Position, effects: &mut Vec<FollowingEffect>) {
        let own = self.epochs.end_of(epoch, self.log_end).map(|(_, own)| own);
        let to = own.unwrap_or_default().min(end);
        if to.index < self.high_watermark.index {
            self.stage = Stage::Quarantined;
            effects.push(FollowingEffect::Quarantine(to));
            return;
        }
        self.stage = Stage::Truncating;
        effects.push(FollowingEffect::Truncate(to));
    }

    /// The log is cut.
    ///
    /// # Panics
    /// If no cut was asked for.
    pub fn truncated(&mut self, to: Position, effects: &mut Vec<FollowingEffect>) {
        assert!(self.stage == Stage::Truncating, "a cut that nobody asked for");
        self.log_end = to;
        self.ready_end = self.ready_end.min(to);
        self.epochs.truncate(to);
        self.stage = Stage::Idle;
        self.reopen(effects);
    }

    /// The log begins anew at a snapshot.
    ///
    /// # Panics
    /// If no reset was asked for.
    pub fn reset_done(
        &mut self,
        epochs: EpochTable,
        at: Position,
        effects: &mut Vec<FollowingEffect>,
    ) {
        assert!(self.stage == Stage::Resetting, "a reset that nobody asked for");
        self.epochs = epochs;
        (self.log_end, self.ready_end) = (at, at);
        self.stage = Stage::Idle;
        self.reopen(effects);
    }

    /// Entries came. Those that do not continue the log have the stream opened again.
    pub fn records(&mut self, records: &Records, effects: &mut Vec<FollowingEffect>) {
        // Numbers of streams begin again when a replica that led follows: the epoch tells those apart.
        let followed = self.leader.is_some_and(|(_, epoch)| epoch == records.leader_epoch);
        if !followed || records.stream != self.stream || self.stage != Stage::Streaming {
            return;
        }
        let continues = records.start == self.log_end
            && records.start.at_or_before(records.end)
            && self.epochs.is_continued_by(&records.epochs);
        if !continues {
            return self.reopen(effects);
        }
        if records.end != records.start {
            self.log_end = records.end;
            for (epoch, start) in &records.epochs {
                self.epochs.push(*epoch, *start);
            }
            effects.push(FollowingEffect::Append);
        }
        self.hear(records.high_watermark, effects);
    }

    fn hear(&mut self, high_watermark: Position, effects: &mut Vec<FollowingEffect>) {
        if self.leaders_watermark.index < high_watermark.index {
            self.leaders_watermark = high_watermark;
        }
        self.advance(effects);
    }

    /// The log is durable further than before.
    ///
    /// # Panics
    /// If it is so beyond its end.
    pub fn own_progress(&mut self, ready_end: Position, effects: &mut Vec<FollowingEffect>) {
        assert!(ready_end.at_or_before(self.log_end), "{ready_end:?} lies behind the end");
        if self.ready_end.index < ready_end.index {
            self.ready_end = ready_end;
            self.ack(effects);
        }
        self.advance(effects);
    }

    fn ack(&self, effects: &mut Vec<FollowingEffect>) {
        if self.stage == Stage::Streaming {
            let (stream, durable_end) = (self.stream, self.ready_end);
            effects.push(FollowingEffect::Ack { stream, durable_end });
        }
    }

    fn advance(&mut self, effects: &mut Vec<FollowingEffect>) {
        // Before the stream is open, what lies above what is known to be committed may yet be cut.
        let end = self.leaders_watermark.min(self.ready_end);
        if self.stage == Stage::Streaming && self.high_watermark.index < end.index {
            self.high_watermark = end;
            effects.push(FollowingEffect::HighWatermark(end));
        }
    }
}
