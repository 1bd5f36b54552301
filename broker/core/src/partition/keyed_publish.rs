//! Owns the leader's answer to a publish with idempotency keys. Never reads a record: the join has read the keys.
//! Driven by `publish`, once per batch that has keys.
//!
//! ```text
//!   the record's key                     verdict                  stored
//!   --------------------------------------------------------------------------------------------
//!   none, or not remembered              new                      yes: runs of new ones are an entry each
//!   remembered, same payload             Duplicate                no
//!   remembered, other payload            IdempotencyKeyReused     no
//!   in flight, or earlier in the batch   waits for the outcome of that one, then as above
//! ```
//! A batch of new messages is stored as it came. Sequences of what is not stored count as sent: the session passes
//! over them. If the new ones cannot be stored now, the whole batch is refused, and no key is remembered.
//!
//! Of a batch that is sent again, the sequences that the session knows are answered by it; keys tell those that it
//! passed over.

use std::collections::VecDeque;
use std::ops::Range;

use postrider_protocol::batch::{Batch, BatchError, DecodeLimits};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{AckLevel, DelayId, Outcome, PublishHead};
use postrider_protocol::types::{EntryIndex, Offset, ProducerId, Sequence, TimestampMs};

use super::command::StateCommand;
use super::effect::{Decision, Drafted, Effect, PendingAppend, Reply, SessionReply, Twin};
use super::keys::{EntryKeys, InFlightKey, Keyed};
use super::leader::Partition;
use super::publish::{How, Piece, Source, end_of};
use super::sessions::{Found as Known, Sent, Standing};
use super::state::{AppliedEntry, Change};
use crate::dedup::{Found, Place};
use crate::now::Now;

/// How long a client waits before it asks again for room for its keys.
const CAPACITY_RETRY_MS: u32 = 1_000;

/// Messages that are named when an atomic batch is refused.
const OFFENDERS_TOLD_MAX: usize = 8;

/// A batch with idempotency keys.
pub(super) struct KeyedBatch<'a> {
    pub(super) head: &'a PublishHead,
    pub(super) batch: &'a Batch,
    pub(super) keys: &'a [Keyed],
    pub(super) how: How,
}

/// What is known of a record by its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    New,
    Duplicate { place: Place, append_time: TimestampMs },
    Reused { place: Place },
    Twin { index: EntryIndex, position: u32, is_same: bool },
}

/// Records in a row with one verdict. Places of the later ones follow that of the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Judged {
    first: u32,
    count: u32,
    verdict: Verdict,
}

impl Judged {
    fn end(&self) -> u32 {
        self.first + self.count
    }

    /// Whether a record with this verdict goes on with the run.
    fn goes_on(&self, verdict: Verdict) -> bool {
        let next = match self.verdict {
            Verdict::New => Verdict::New,
            Verdict::Reused { .. } => return false,
            Verdict::Duplicate { place, append_time } => {
                Verdict::Duplicate { place: place_after(place, self.count), append_time }
            }
            Verdict::Twin { index, position, is_same } => {
                Verdict::Twin { index, position: position + self.count, is_same }
            }
        };
        next == verdict
    }
}

fn place_after(place: Place, count: u32) -> Place {
    match place {
        Place::Offset(first) => Place::Offset(Offset(first.0 + u64::from(count))),
        Place::Delayed { index, position } => {
            Place::Delayed { index, position: position.saturating_add(count) }
        }
    }
}

impl<R: Clone> Partition<R> {
    /// See the module.
    pub(super) fn publish_keyed(
        &mut self,
        now: Now,
        keyed: &KeyedBatch<'_>,
        standing: Standing,
        source: Source<R>,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let head = keyed.head;
        let mut answers = Answers { bytes: source.bytes, waits: false };
        let sent = match standing {
            Standing::Retry => self.answer_sent(now, keyed, &source, &mut answers, effects),
            Standing::First | Standing::Next => 0,
        };
        if sent == head.seq_count {
            return answers.decision();
        }
        let opens_session = standing == Standing::First;
        let judged = self.judge_keys(now, keyed, sent);
        let new = new_count(&judged);
        let stored = self
            .check_keyed(now, keyed, &judged, opens_session)
            .and_then(|()| self.draft_keyed(now, keyed, &judged, &source, opens_session));
        let drafted = match stored {
            Ok(drafted) => drafted,
            Err(error) => {
                self.forget_judged(keyed, &judged);
                let rest = (sequence_at(head, sent), head.seq_count - sent);
                let run = self.run(head.producer, rest, Outcome::Rejected { error });
                effects.push(Effect::Confirm { route: source.route, run, bytes: 0 });
                return answers.decision();
            }
        };
        let drafted = self.answer_judged(keyed, &judged, drafted, &source, &mut answers, effects);
        if new == 0 && head.producer != ProducerId::NONE {
            return self.pass_all(now, head, opens_session, source, answers, effects);
        }
        self.append_all(now, drafted, answers)
    }

    /// What the session or the keys say of the sequences below the end of its tail. Returns how many those are.
    fn answer_sent(
        &mut self,
        now: Now,
        keyed: &KeyedBatch<'_>,
        source: &Source<R>,
        answers: &mut Answers,
        effects: &mut Vec<Effect<R>>,
    ) -> u32 {
        let head = keyed.head;
        let tail = self.sessions.next_sequence(self.state.producers(), head.producer);
        let end = tail.unwrap_or_default().min(end_of(head));
        let sent = u32::try_from(end.0 - head.base_sequence.0).expect("a part of a u32 count");
        let known = PublishHead { seq_count: sent, ..*head };
        let mut pieces = Vec::new();
        self.sessions.pieces(self.state.producers(), &known, |piece| pieces.push(piece));
        for piece in pieces {
            match piece.found {
                Known::InFlight(index) => {
                    let bytes = answers.wait();
                    let (connection, route) = (source.connection, source.route.clone());
                    self.redirect(index, connection, route, bytes, effects);
                }
                Known::Stored(_) => {
                    let outcome = self.piece_outcome(head, &piece);
                    let run = self.run(head.producer, (piece.base, piece.count), outcome);
                    effects.push(Effect::Confirm { route: source.route.clone(), run, bytes: 0 });
                }
                Known::GivenUp | Known::TooOld | Known::Ahead => {
                    self.answer_passed(now, keyed, &piece, source, answers, effects);
                }
            }
        }
        sent
    }

    /// Sequences that the session passed over: their keys tell, as long as they are remembered.
    fn answer_passed(
        &mut self,
        now: Now,
        keyed: &KeyedBatch<'_>,
        piece: &Sent,
        source: &Source<R>,
        answers: &mut Answers,
        effects: &mut Vec<Effect<R>>,
    ) {
        let head = keyed.head;
        let first =
            u32::try_from(piece.base.0 - head.base_sequence.0).expect("a part of the batch");
        let judged = self.look_up(now, keyed, first..first + piece.count);
        for run in judged {
            if run.verdict == Verdict::New {
                let text = "whether it is stored is not known: its session had passed over it, and its key, if it \
                            has one, is not remembered any more";
                let error = ErrorBody::new(ErrorCode::SequenceTooOld, text);
                let sequences = (sequence_at(head, run.first), run.count);
                let run = self.run(head.producer, sequences, Outcome::Unknown { error });
                effects.push(Effect::Confirm { route: source.route.clone(), run, bytes: 0 });
            } else {
                self.answer_known(head, &run, source, answers, effects);
            }
        }
    }

    /// What is known of records by their keys; without a change.
    fn look_up(&self, now: Now, keyed: &KeyedBatch<'_>, records: Range<u32>) -> Vec<Judged> {
        let found = self.find_keys(now, keyed, records.start);
        let mut keys = of_records(keyed.keys, records.start).iter().zip(found).peekable();
        let mut judged = Vec::new();
        for record in records {
            let key = keys.next_if(|(key, _found)| key.position == record);
            let verdict = key.map_or(Verdict::New, |(key, found)| match found {
                Found::Nothing => self
                    .keys_in_flight
                    .get(key.fingerprint, self.state.end().index)
                    .map_or(Verdict::New, |first| twin_of(first, key)),
                known @ (Found::Duplicate(_) | Found::OtherPayload(_)) => committed(&known),
            });
            push(&mut judged, record, verdict);
        }
        judged
    }

    /// The verdicts of the records from `from` on. Keys of new ones are in flight from here on, in the entries that
    /// they will have.
    fn judge_keys(&mut self, now: Now, keyed: &KeyedBatch<'_>, from: u32) -> Vec<Judged> {
        let found = self.find_keys(now, keyed, from);
        let mut keys = of_records(keyed.keys, from).iter().zip(found).peekable();
        let mut judged: Vec<Judged> = Vec::new();
        let committed_end = self.state.end().index;
        let mut index = self.next_batch_index();
        let mut first = None;
        for record in from..keyed.head.seq_count {
            let key = keys.next_if(|(key, _found)| key.position == record);
            let position = record - first.unwrap_or(record);
            let verdict = key.map_or(Verdict::New, |(key, found)| match found {
                Found::Nothing => {
                    let fingerprint = key.fingerprint;
                    let own = InFlightKey { index, position, fingerprint };
                    self.keys_in_flight
                        .insert(own, committed_end)
                        .map_or(Verdict::New, |twin| twin_of(twin, key))
                }
                known @ (Found::Duplicate(_) | Found::OtherPayload(_)) => committed(&known),
            });
            match (verdict, first) {
                (Verdict::New, None) => first = Some(record),
                (Verdict::New, Some(_)) | (_, None) => {}
                (_, Some(_)) => {
                    first = None;
                    index = EntryIndex(index.0 + 1);
                }
            }
            push(&mut judged, record, verdict);
        }
        judged
    }

    /// What the committed keys say, by the time that an entry would have now.
    fn find_keys(&self, now: Now, keyed: &KeyedBatch<'_>, from: u32) -> Vec<Found> {
        let keys: Vec<_> =
            of_records(keyed.keys, from).iter().map(|keyed| keyed.fingerprint).collect();
        let mut found = Vec::with_capacity(keys.len());
        self.state.dedup().find_many(&keys, &mut found);
        let window = self.bounds.dedup_window();
        let kept_most = window.saturating_add((window / 3).max(1));
        let time = self.log_time(now).0;
        for found in &mut found {
            // It would be forgotten with the next entry that has a key.
            if let Found::Duplicate(known) | Found::OtherPayload(known) = found
                && known.append_time.0.saturating_add(kept_most) <= time
            {
                *found = Found::Nothing;
            }
        }
        found
    }

    /// The append time of an entry that was appended now, at least.
    fn log_time(&self, now: Now) -> TimestampMs {
        let last = self.pending.back().map(|pending| pending.entry.append_time);
        now.wall.max(last.unwrap_or_default().max(self.state.append_time()))
    }

    /// The index of the next batch.
    fn next_batch_index(&self) -> EntryIndex {
        EntryIndex(self.tail_end.index.0 + u64::from(!self.epoch_started))
    }

    fn pending_at(&self, index: EntryIndex) -> Option<usize> {
        let at = index.0.checked_sub(self.state.end().index.0)?;
        usize::try_from(at).ok().filter(|at| *at < self.pending.len())
    }

    /// Whether the new messages may be stored and their keys remembered.
    fn check_keyed(
        &self,
        now: Now,
        keyed: &KeyedBatch<'_>,
        judged: &[Judged],
        opens_session: bool,
    ) -> Result<(), ErrorBody> {
        let new = new_count(judged);
        if keyed.how.is_atomic {
            check_whole(judged)?;
        }
        if new == 0 && !opens_session {
            return Ok(());
        }
        let how = if new > 0 { keyed.how } else { How::default() };
        self.check_storable(keyed.head, new, how, opens_session)?;
        let (in_flight, max) = (self.keys_in_flight.len(), self.limits.dedup_bytes_max);
        let dedup = self.state.dedup();
        if new == 0 || dedup.has_room(in_flight, max.saturating_add(self.expired_bytes(now))) {
            return Ok(());
        }
        let text = format!(
            "the partition remembers {} idempotency keys, as many as fit {max} bytes; publish again when the oldest \
             have expired, shorten dedup_window, or raise dedup_bytes_per_partition",
            dedup.len()
        );
        let error = ErrorBody::new(ErrorCode::DedupCapacity, text);
        Err(error.with_retry_after_ms(CAPACITY_RETRY_MS))
    }

    /// Memory of keys that the next entry with one makes room with.
    fn expired_bytes(&self, now: Now) -> usize {
        let (time, window) = (self.log_time(now).0, self.bounds.dedup_window());
        let is_over = |last: TimestampMs| last.0.saturating_add(window) <= time;
        let generations = self.state.dedup().generations();
        let over = generations.filter(|keys| keys.times().is_some_and(|(_, last)| is_over(last)));
        over.map(crate::dedup::Generation::memory_bytes).sum()
    }

    /// An entry for each run of new messages.
    fn draft_keyed(
        &self,
        now: Now,
        keyed: &KeyedBatch<'_>,
        judged: &[Judged],
        source: &Source<R>,
        opens_session: bool,
    ) -> Result<VecDeque<Drafted<R>>, ErrorBody> {
        let KeyedBatch { head, batch, keys, how } = keyed;
        let new: Vec<&Judged> = judged.iter().filter(|run| run.verdict == Verdict::New).collect();
        let ends = new.iter().skip(1).map(|run| run.first).chain([head.seq_count]);
        let mut drafted = VecDeque::with_capacity(new.len());
        for (run, end) in new.iter().zip(ends) {
            let part = part_of(head, batch, run).map_err(|error| {
                ErrorBody::new(ErrorCode::CorruptBatch, format!("a batch with duplicates: {error}"))
            })?;
            let piece = Piece {
                batch: &part,
                base_sequence: sequence_at(head, run.first),
                next_sequence: sequence_at(head, end),
                keys: EntryKeys {
                    window_ms: self.bounds.dedup_window(),
                    keyed: keys_within(keys, run),
                },
                opens_session: opens_session && drafted.is_empty(),
            };
            let (connection, route) = (source.connection, source.route.clone());
            let source = Source { connection, route, bytes: 0 };
            drafted.push_back(self.draft_batch(now, head, piece, how.due, source));
        }
        Ok(drafted)
    }

    /// The keys that were taken in flight for a publish that is refused.
    fn forget_judged(&mut self, keyed: &KeyedBatch<'_>, judged: &[Judged]) {
        for run in judged.iter().filter(|run| run.verdict == Verdict::New) {
            self.keys_in_flight.remove(&keys_within(keyed.keys, run));
        }
    }

    /// Answers what is not new, and has duplicates within the batch wait for the first ones.
    fn answer_judged(
        &mut self,
        keyed: &KeyedBatch<'_>,
        judged: &[Judged],
        mut drafted: VecDeque<Drafted<R>>,
        source: &Source<R>,
        answers: &mut Answers,
        effects: &mut Vec<Effect<R>>,
    ) -> VecDeque<Drafted<R>> {
        let own = self.next_batch_index();
        for run in judged.iter().filter(|run| run.verdict != Verdict::New) {
            match run.verdict {
                Verdict::Twin { index, .. } if index >= own => {
                    let at = usize::try_from(index.0 - own.0).expect("entries of one batch");
                    let twin = twin(keyed.head, run, source, answers.wait());
                    drafted[at].twins.push(twin);
                }
                Verdict::New
                | Verdict::Duplicate { .. }
                | Verdict::Reused { .. }
                | Verdict::Twin { .. } => {
                    self.answer_known(keyed.head, run, source, answers, effects);
                }
            }
        }
        drafted
    }

    /// Answers records whose keys are committed or in flight.
    fn answer_known(
        &mut self,
        head: &PublishHead,
        judged: &Judged,
        source: &Source<R>,
        answers: &mut Answers,
        effects: &mut Vec<Effect<R>>,
    ) {
        let outcome = match judged.verdict {
            Verdict::New => panic!("a new message is answered by its entry"),
            Verdict::Twin { index, .. } => {
                let at = self.pending_at(index).expect("a key in flight is of a pending entry");
                let twin = twin(head, judged, source, answers.wait());
                self.pending[at].twins.push(twin);
                return;
            }
            Verdict::Duplicate { place, append_time } => self.duplicate(place, append_time),
            Verdict::Reused { place } => reused(place),
        };
        if head.ack == AckLevel::None && !matches!(outcome, Outcome::Rejected { .. }) {
            return;
        }
        let sequences = (sequence_at(head, judged.first), judged.count);
        let run = self.run(head.producer, sequences, outcome);
        effects.push(Effect::Confirm { route: source.route.clone(), run, bytes: 0 });
    }

    fn duplicate(&self, place: Place, append_time: TimestampMs) -> Outcome {
        let durability = self.acknowledged_durability();
        match place {
            Place::Offset(base_offset) => {
                Outcome::Duplicate { base_offset, append_time, durability }
            }
            Place::Delayed { index, position } => {
                let id = DelayId { index, position };
                Outcome::DelayedDuplicate { id, append_time, durability }
            }
        }
    }

    /// Nothing of the batch is stored: its session passes over it.
    fn pass_all(
        &mut self,
        now: Now,
        head: &PublishHead,
        opens_session: bool,
        source: Source<R>,
        mut answers: Answers,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if !opens_session {
            self.sessions.pass(self.state.producers(), head, end_of(head));
            return answers.decision();
        }
        // So that the session is known, counted and forgotten like any other.
        let (producer, epoch) = (head.producer, head.epoch);
        let change = Change::State(StateCommand::ProducerFence { producer, epoch });
        let (connection, next_sequence) = (source.connection, end_of(head));
        let reply = Reply::Session(SessionReply { connection, next_sequence });
        let bytes = answers.wait();
        if bytes > 0 {
            effects.push(Effect::Released { route: source.route, bytes });
        }
        Decision::Append(self.pending_append(now, (change, reply)))
    }

    fn append_all(
        &self,
        now: Now,
        mut drafted: VecDeque<Drafted<R>>,
        mut answers: Answers,
    ) -> Decision<R> {
        let Some(mut first) = drafted.pop_front() else { return answers.decision() };
        if let Reply::Publish(reply) = &mut first.reply {
            reply.bytes = answers.wait();
        }
        let mut pending = PendingAppend::new(first);
        for drafted in drafted {
            pending.put_last(drafted);
        }
        self.put_epoch_start_first(now, &mut pending);
        Decision::Append(pending)
    }

    /// Tells the twins of a committed entry.
    pub(super) fn twins_committed(
        &self,
        entry: &AppliedEntry,
        twins: Vec<Twin<R>>,
        effects: &mut Vec<Effect<R>>,
    ) {
        for twin in twins {
            let Twin { position, is_same, .. } = twin;
            let place = entry.place(position);
            let outcome =
                if is_same { self.duplicate(place, entry.append_time) } else { reused(place) };
            self.answer_twin(twin, outcome, effects);
        }
    }

    pub(super) fn answer_twin(
        &self,
        twin: Twin<R>,
        outcome: Outcome,
        effects: &mut Vec<Effect<R>>,
    ) {
        let Twin { route, ack, producer, base_sequence, count, bytes, .. } = twin;
        let stored =
            matches!(outcome, Outcome::Duplicate { .. } | Outcome::DelayedDuplicate { .. });
        if ack == AckLevel::None && stored {
            effects.push(Effect::Released { route, bytes });
            return;
        }
        let run = self.run(producer, (base_sequence, count), outcome);
        effects.push(Effect::Confirm { route, run, bytes });
    }
}

/// How the answers to one publish go out: its bytes are charged once, if anything of it has to wait.
struct Answers {
    bytes: usize,
    waits: bool,
}

impl Answers {
    /// Something waits. Returns the bytes that it answers for: all, if it is the first.
    fn wait(&mut self) -> usize {
        self.waits = true;
        std::mem::take(&mut self.bytes)
    }

    fn decision<R>(&self) -> Decision<R> {
        if self.waits { Decision::Waits } else { Decision::Done }
    }
}

fn new_count(judged: &[Judged]) -> u32 {
    judged.iter().filter(|run| run.verdict == Verdict::New).map(|run| run.count).sum()
}

fn push(judged: &mut Vec<Judged>, record: u32, verdict: Verdict) {
    match judged.last_mut() {
        Some(run) if run.end() == record && run.goes_on(verdict) => run.count += 1,
        _ => judged.push(Judged { first: record, count: 1, verdict }),
    }
}

fn committed(found: &Found) -> Verdict {
    match found {
        Found::Nothing => Verdict::New,
        Found::Duplicate(known) => {
            Verdict::Duplicate { place: known.place, append_time: known.append_time }
        }
        Found::OtherPayload(known) => Verdict::Reused { place: known.place },
    }
}

fn twin_of(first: InFlightKey, key: &Keyed) -> Verdict {
    let InFlightKey { index, position, fingerprint } = first;
    Verdict::Twin { index, position, is_same: fingerprint.same_payload(key.fingerprint) }
}

/// An atomic batch has one verdict, and its duplicates are a part of one batch in the same order.
fn check_whole(judged: &[Judged]) -> Result<(), ErrorBody> {
    let is_reused = |run: &Judged| {
        matches!(run.verdict, Verdict::Reused { .. } | Verdict::Twin { is_same: false, .. })
    };
    if judged.len() < 2 {
        return Ok(());
    }
    let there: Vec<String> = judged
        .iter()
        .filter(|run| run.verdict != Verdict::New)
        .take(OFFENDERS_TOLD_MAX)
        .map(|run| run.first.to_string())
        .collect();
    let there = there.join(", ");
    let (code, what) = match judged.iter().any(is_reused) {
        true => (ErrorCode::IdempotencyKeyReused, "have keys that other messages have"),
        false => (
            ErrorCode::AtomicConflict,
            "are stored already, and not all in one batch in this order",
        ),
    };
    let text = format!("messages of the atomic batch (from 0: {there}) {what}; nothing is stored");
    Err(ErrorBody::new(code, text))
}

fn sequence_at(head: &PublishHead, record: u32) -> Sequence {
    Sequence(head.base_sequence.0 + u64::from(record))
}

fn of_records(keys: &[Keyed], from: u32) -> &[Keyed] {
    &keys[keys.partition_point(|keyed| keyed.position < from)..]
}

/// The keys of a run, by their places in it.
fn keys_within(keys: &[Keyed], run: &Judged) -> Vec<Keyed> {
    let keys = of_records(keys, run.first).iter().take_while(|keyed| keyed.position < run.end());
    keys.map(|keyed| Keyed { position: keyed.position - run.first, ..*keyed }).collect()
}

fn part_of(head: &PublishHead, batch: &Batch, run: &Judged) -> Result<Batch, BatchError> {
    if run.count == batch.record_count {
        return Ok(batch.clone());
    }
    batch.part((run.first, run.count), sequence_at(head, run.first), DecodeLimits::default())
}

fn twin<R: Clone>(
    head: &PublishHead,
    judged: &Judged,
    source: &Source<R>,
    bytes: usize,
) -> Twin<R> {
    let Verdict::Twin { position, is_same, .. } = judged.verdict else {
        panic!("only a twin waits for another message")
    };
    Twin {
        route: source.route.clone(),
        ack: head.ack,
        producer: head.producer,
        base_sequence: sequence_at(head, judged.first),
        count: judged.count,
        position,
        is_same,
        bytes,
    }
}

fn reused(place: Place) -> Outcome {
    let text = "the idempotency key was used for another message within the topic's window; a new message needs a \
                new key";
    let detail = match place {
        Place::Offset(offset) => offset.0,
        Place::Delayed { .. } => u64::MAX,
    };
    let error = ErrorBody::new(ErrorCode::IdempotencyKeyReused, text).with_detail(detail);
    Outcome::Rejected { error }
}
