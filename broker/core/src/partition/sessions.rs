//! Owns what the leader alone knows of producer sessions: the tail that is not committed, and which
//! connection each belongs to. Judges a publish against it. Never appends, never answers. Driven by the
//! partition's leader.
//!
//! ```text
//!   sequences of one session          what a publish of them gets
//!   ------------------------------------------------------------------------------------------
//!   below the ring                    SequenceTooOld (unknown)
//!   in the ring                       Duplicate, with the first offset
//!   in flight                         the outcome of the batch in flight; its route becomes the newest
//!   between two runs (given up)       BadRequest: the producer promised not to send them
//!   expected                          append
//!   above expected                    OutOfOrderSequence, with the expected one
//! ```
//! expected = max(end of the tail, resolved_upto): below it the producer has promised to send nothing.
//! A publish that spans several rows gets one answer per row, each exact for its sequences.

use std::collections::{BTreeMap, VecDeque};

use postrider_protocol::message::PublishHead;
use postrider_protocol::types::{EntryIndex, ProducerEpoch, ProducerId, Sequence};

use super::effect::ConnectionId;
use super::producers::{Producers, Run};
use crate::limits::SEQUENCE_SKIP_MAX;

/// Where a session stands if everything appended commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tail {
    epoch: ProducerEpoch,
    next_sequence: Sequence,
}

/// A batch that is appended and not committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct InFlight {
    base_sequence: Sequence,
    count: u32,
    index: EntryIndex,
}

impl InFlight {
    fn end_sequence(&self) -> Sequence {
        Sequence(self.base_sequence.0 + u64::from(self.count))
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct LeaderSession {
    /// `None` after its expiry was appended.
    tail: Option<Tail>,
    connection: Option<ConnectionId>,
    /// Batches of the tail's epoch, by index and by sequence.
    in_flight: VecDeque<InFlight>,
}

/// A part of a publish that needs no append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sent {
    pub(super) base: Sequence,
    pub(super) count: u32,
    pub(super) found: Found,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Stored, as this run says.
    Stored(Run),
    /// In flight, in this entry.
    InFlight(EntryIndex),
    /// Never stored, and never will be.
    GivenUp,
    /// Below what is remembered.
    TooOld,
    /// Above what is stored.
    Ahead,
}

/// What a publish of a session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// The next batch of a session that exists, or of none.
    Next,
    /// The first batch of a session.
    First,
    /// At least its first sequence was sent before.
    Retry,
}

/// Why a publish of a session is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Objection {
    /// Its sequence is above the expected one.
    OutOfOrder { expected: Sequence },
    /// The session is not known here. `forgotten`: it may have been, so that a retry may be stored.
    Unknown { forgotten: bool },
    /// A newer epoch exists.
    Fenced { newest: ProducerEpoch },
    /// The session belongs to a newer connection.
    Moved,
    /// `resolved_upto` lies above the batch's own sequence.
    Contradiction,
}

/// The sessions as the leader sees them. One per session that published in this leadership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sessions {
    sessions: BTreeMap<ProducerId, LeaderSession>,
    /// As [`Producers::expired_max`], with the expiries that are appended.
    expired_max: ProducerId,
    /// Sessions whose first batch is in flight.
    opening: usize,
}

impl Sessions {
    pub(super) fn new(committed: &Producers) -> Self {
        Self { sessions: BTreeMap::new(), expired_max: committed.expired_max(), opening: 0 }
    }

    fn tail(&self, committed: &Producers, producer: ProducerId) -> Option<Tail> {
        match self.sessions.get(&producer) {
            Some(session) => session.tail,
            None => committed.session(producer).map(|session| Tail {
                epoch: session.epoch(),
                next_sequence: session.next_sequence(),
            }),
        }
    }

    /// Sessions that exist or begin.
    pub(super) fn count(&self, committed: &Producers) -> usize {
        committed.len() + self.opening
    }

    /// Judges a publish of a session. A session that is not moved away belongs to the newest
    /// connection from here on.
    pub(super) fn judge(
        &mut self,
        committed: &Producers,
        head: &PublishHead,
        connection: ConnectionId,
    ) -> Result<Standing, Objection> {
        if head.resolved_upto > head.base_sequence {
            return Err(Objection::Contradiction);
        }
        let Some(tail) = self.tail(committed, head.producer) else {
            return self.judge_unknown(head);
        };
        if head.epoch < tail.epoch {
            return Err(Objection::Fenced { newest: tail.epoch });
        }
        if head.epoch > tail.epoch {
            return judge_new_epoch(head);
        }
        if !self.claim(head.producer, tail, connection) {
            return Err(Objection::Moved);
        }
        if head.base_sequence < tail.next_sequence {
            return Ok(Standing::Retry);
        }
        let expected = tail.next_sequence.max(head.resolved_upto);
        if head.base_sequence > expected {
            return Err(Objection::OutOfOrder { expected });
        }
        let skipped = head.base_sequence.0 - tail.next_sequence.0;
        if skipped >= SEQUENCE_SKIP_MAX {
            return Err(Objection::Unknown { forgotten: false });
        }
        Ok(Standing::Next)
    }

    /// An id that never had a session here may begin anywhere: nothing of it can be stored. One that may
    /// have been forgotten begins at 0 only; elsewhere its retries could be stored twice.
    fn judge_unknown(&self, head: &PublishHead) -> Result<Standing, Objection> {
        let forgotten = head.producer <= self.expired_max && !head.producer.is_internal();
        let begins = begins_session(head) && (head.base_sequence.0 == 0 || !forgotten);
        begins.then_some(Standing::First).ok_or(Objection::Unknown { forgotten })
    }

    /// Gives the session to `connection` unless a newer one has it.
    fn claim(&mut self, producer: ProducerId, tail: Tail, connection: ConnectionId) -> bool {
        let session = self.sessions.entry(producer).or_insert_with(|| LeaderSession {
            tail: Some(tail),
            connection: None,
            in_flight: VecDeque::new(),
        });
        if session.connection.is_some_and(|owner| owner > connection) {
            return false;
        }
        session.connection = Some(connection);
        true
    }

    /// Cuts a retry into pieces, in order, each with what is known of it.
    pub(super) fn pieces(
        &self,
        committed: &Producers,
        head: &PublishHead,
        mut each: impl FnMut(Sent),
    ) {
        let end = Sequence(head.base_sequence.0 + u64::from(head.seq_count));
        let mut at = head.base_sequence;
        while at < end {
            let (piece_end, found) = self.find(committed, head, at);
            let piece_end = piece_end.min(end);
            let count = u32::try_from(piece_end.0 - at.0).expect("a part of a u32 count");
            each(Sent { base: at, count, found });
            at = piece_end;
        }
    }

    /// What is known of sequence `at`, and up to where the same holds.
    fn find(&self, committed: &Producers, head: &PublishHead, at: Sequence) -> (Sequence, Found) {
        const END: Sequence = Sequence(u64::MAX);
        let stored = committed
            .session(head.producer)
            .filter(|session| session.epoch() == head.epoch && at < session.next_sequence());
        if let Some(session) = stored {
            let Some(run) = session.run_at_or_above(at) else {
                return (session.next_sequence(), Found::TooOld);
            };
            return match run.base_sequence <= at {
                true => (run.end_sequence(), Found::Stored(*run)),
                false if session.may_have_forgotten(run) => (run.base_sequence, Found::TooOld),
                false => (run.base_sequence, Found::GivenUp),
            };
        }
        let Some(session) = self.sessions.get(&head.producer) else { return (END, Found::Ahead) };
        let next = session.in_flight.partition_point(|batch| batch.end_sequence() <= at);
        match session.in_flight.get(next) {
            Some(batch) if batch.base_sequence <= at => {
                (batch.end_sequence(), Found::InFlight(batch.index))
            }
            Some(batch) => (batch.base_sequence, Found::GivenUp),
            None => (END, Found::Ahead),
        }
    }

    /// Where the session goes on if everything appended commits.
    pub(super) fn next_sequence(
        &self,
        committed: &Producers,
        producer: ProducerId,
    ) -> Option<Sequence> {
        self.tail(committed, producer).map(|tail| tail.next_sequence)
    }

    /// Passes over sequences of duplicates, of which nothing is stored: the session goes on at `next_sequence`.
    pub(super) fn pass(
        &mut self,
        committed: &Producers,
        head: &PublishHead,
        next_sequence: Sequence,
    ) {
        let Some(tail) = self.tail(committed, head.producer) else { return };
        let session = self.sessions.entry(head.producer).or_insert_with(|| LeaderSession {
            tail: None,
            connection: None,
            in_flight: VecDeque::new(),
        });
        if tail.epoch != head.epoch {
            session.in_flight.clear();
        }
        let epoch = head.epoch.max(tail.epoch);
        session.tail = Some(Tail { epoch, next_sequence });
    }

    /// Counts an appended entry that begins a session.
    pub(super) fn begun(
        &mut self,
        producer: ProducerId,
        epoch: ProducerEpoch,
        connection: ConnectionId,
        next_sequence: Sequence,
    ) {
        self.opening += 1;
        let tail = Some(Tail { epoch, next_sequence });
        let session =
            LeaderSession { tail, connection: Some(connection), in_flight: VecDeque::new() };
        self.sessions.insert(producer, session);
    }

    /// Counts the same as committed.
    pub(super) fn begin_committed(&mut self) {
        self.opening -= 1;
    }

    /// Counts an appended batch of a session.
    pub(super) fn appended(
        &mut self,
        producer: ProducerId,
        epoch: ProducerEpoch,
        connection: ConnectionId,
        batch: (Sequence, u32, EntryIndex),
        next_sequence: Sequence,
        opens_session: bool,
    ) {
        let (base_sequence, count, index) = batch;
        let in_flight = InFlight { base_sequence, count, index };
        let tail = Tail { epoch, next_sequence: next_sequence.max(in_flight.end_sequence()) };
        self.opening += usize::from(opens_session);
        let session = self.sessions.entry(producer).or_insert_with(|| LeaderSession {
            tail: None,
            connection: None,
            in_flight: VecDeque::new(),
        });
        if session.tail.is_none_or(|before| before.epoch != epoch) {
            session.in_flight.clear();
        }
        session.tail = Some(tail);
        session.connection = Some(connection);
        session.in_flight.push_back(in_flight);
    }

    /// Counts a committed batch of a session.
    pub(super) fn committed(&mut self, producer: ProducerId, index: EntryIndex, opened: bool) {
        self.opening -= usize::from(opened);
        if let Some(session) = self.sessions.get_mut(&producer)
            && session.in_flight.front().is_some_and(|batch| batch.index == index)
        {
            session.in_flight.pop_front();
        }
    }

    /// Whether the session has nothing in flight.
    pub(super) fn is_idle(&self, producer: ProducerId) -> bool {
        self.sessions
            .get(&producer)
            .is_none_or(|session| session.in_flight.is_empty() && session.tail.is_some())
    }

    /// Counts an appended expiry.
    pub(super) fn expiry_appended(&mut self, producers: &[ProducerId]) {
        for producer in producers {
            self.expired_max = self.expired_max.max(*producer);
            let session =
                LeaderSession { tail: None, connection: None, in_flight: VecDeque::new() };
            self.sessions.insert(*producer, session);
        }
    }

    /// Counts a committed expiry: what did not begin again meanwhile is gone.
    pub(super) fn expiry_committed(&mut self, producers: &[ProducerId]) {
        for producer in producers {
            if self.sessions.get(producer).is_some_and(|session| session.tail.is_none()) {
                self.sessions.remove(producer);
            }
        }
    }

    /// Asserts what ties this to the committed sessions.
    pub(super) fn check(&self, committed: &Producers) {
        assert!(self.expired_max >= committed.expired_max(), "expiry is appended, then committed");
        for (producer, session) in &self.sessions {
            let Some(tail) = session.tail else { continue };
            if let Some(stored) = committed.session(*producer) {
                assert!(tail.epoch >= stored.epoch(), "{producer}: epochs only rise");
            }
            let mut end = Sequence(0);
            for batch in &session.in_flight {
                assert!(end <= batch.base_sequence, "{producer}: batches in flight are in order");
                end = batch.end_sequence();
            }
            assert!(end <= tail.next_sequence, "{producer}: the tail covers what is in flight");
        }
    }
}

/// An epoch that is newer than the session's begins it anew.
fn judge_new_epoch(head: &PublishHead) -> Result<Standing, Objection> {
    if begins_session(head) {
        Ok(Standing::Next)
    } else if head.base_sequence.0 >= SEQUENCE_SKIP_MAX {
        Err(Objection::Unknown { forgotten: false })
    } else {
        Err(Objection::OutOfOrder { expected: head.resolved_upto })
    }
}

/// A session begins at 0, or, of what its producer gave up, above.
fn begins_session(head: &PublishHead) -> bool {
    let starts = head.base_sequence.0 == 0 || head.base_sequence == head.resolved_upto;
    starts && head.base_sequence.0 < SEQUENCE_SKIP_MAX
}
