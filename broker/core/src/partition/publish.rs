//! Owns the leader's answer to a publish. Never judges sequences itself (`sessions` does). Driven by the
//! join, once per batch: no allocation and no loop over messages.

use bytes::Bytes;
use postrider_protocol::batch::Batch;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::{Outcome, PublishHead};
use postrider_protocol::trailer::Trailer;
use postrider_protocol::types::{EntryIndex, Offset, ProducerId, Sequence, TimestampMs};

use super::delays::{DelayedChange, id_in};
use super::effect::{
    ConnectionId, Decision, Drafted, Effect, EntryDraft, PendingAppend, PublishReply,
    PublishRequest, Reply, storage_failed,
};
use super::keyed_publish::KeyedBatch;
use super::keys::EntryKeys;
use super::leader::Partition;
use super::producers::{DataChange, RunPlace, sequence_low};
use super::sessions::{Found, Objection, Sent, Standing};
use super::state::Change;
use super::subscribe::taking_over;
use crate::now::Now;

/// Where a publish came from and where its confirm goes.
pub(super) struct Source<R> {
    pub(super) connection: ConnectionId,
    pub(super) route: R,
    pub(super) bytes: usize,
}

/// How a batch is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct How {
    /// Its messages get their offsets then.
    pub(super) due: Option<TimestampMs>,
    /// As a whole or not at all, also if some of its messages are there already.
    pub(super) is_atomic: bool,
    /// Only if its first message gets this offset.
    pub(super) at: Option<Offset>,
}

/// A batch of a publish, or a part of it, on its way to an entry.
pub(super) struct Piece<'a> {
    pub(super) batch: &'a Batch,
    pub(super) base_sequence: Sequence,
    /// Where its session goes on behind it.
    pub(super) next_sequence: Sequence,
    pub(super) keys: EntryKeys,
    pub(super) opens_session: bool,
}

impl<R: Clone> Partition<R> {
    /// Decides a publish. What can be answered at once leaves as effects, and what is in flight already
    /// is answered when that commits.
    ///
    /// The join charges the route with the frame's bytes if the decision is not [`Decision::Done`].
    pub fn publish(
        &mut self,
        now: Now,
        request: PublishRequest<'_, R>,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        self.publish_of_client(now, request, How::default(), effects)
    }

    /// The same of a batch that is stored as a whole or not at all; with `at`, only if its first message gets
    /// that offset.
    pub fn publish_atomic(
        &mut self,
        now: Now,
        request: PublishRequest<'_, R>,
        at: Option<Offset>,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let how = How { is_atomic: true, at, ..How::default() };
        self.publish_of_client(now, request, how, effects)
    }

    /// The same of a batch whose messages get their offsets at `due`, not before. Its confirm tells by which
    /// ids they can be cancelled until then.
    pub fn publish_delayed(
        &mut self,
        now: Now,
        request: PublishRequest<'_, R>,
        due: TimestampMs,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let how = How { due: Some(due), ..How::default() };
        self.publish_of_client(now, request, how, effects)
    }

    /// The same for a session of the broker's own ([`ProducerId::internal`]), which is never forgotten.
    ///
    /// # Panics
    /// If the session is a client's.
    pub fn publish_internal(
        &mut self,
        now: Now,
        request: PublishRequest<'_, R>,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        assert!(request.head.producer.is_internal(), "the session is the broker's own");
        self.publish_checked(now, request, How::default(), effects)
    }

    /// No client has a session of the broker's own.
    fn publish_of_client(
        &mut self,
        now: Now,
        request: PublishRequest<'_, R>,
        how: How,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if request.head.producer.is_internal() {
            let objection = objected(Objection::Unknown { forgotten: false });
            return self.answer(request.head, objection, request.route, effects);
        }
        self.publish_checked(now, request, how, effects)
    }

    fn publish_checked(
        &mut self,
        now: Now,
        request: PublishRequest<'_, R>,
        how: How,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let PublishRequest { head, batch, keys, connection, producer_ids_end, route } = request;
        let source = Source { connection, route, bytes: batch.body.len() };
        if let Err(outcome) = self.check(head, batch) {
            return self.answer(head, outcome, source.route, effects);
        }
        let standing = match self.judge(head, connection, producer_ids_end) {
            Ok(standing) => standing,
            Err(objection) => return self.answer(head, objected(objection), source.route, effects),
        };
        if !keys.is_empty() {
            let keyed = KeyedBatch { head, batch, keys, how };
            return self.publish_keyed(now, &keyed, standing, source, effects);
        }
        if standing == Standing::Retry {
            return self.retry(head, source, effects);
        }
        let opens_session = standing == Standing::First;
        if let Err(error) = self.check_storable(head, batch.record_count, how, opens_session) {
            return self.answer(head, Outcome::Rejected { error }, source.route, effects);
        }
        let piece = Piece {
            batch,
            base_sequence: head.base_sequence,
            next_sequence: end_of(head),
            keys: EntryKeys::default(),
            opens_session,
        };
        let mut pending = PendingAppend::new(self.draft_batch(now, head, piece, how.due, source));
        self.put_epoch_start_first(now, &mut pending);
        Decision::Append(pending)
    }

    /// Whether the next message gets the offset that is wanted. What is in flight counts: of several publishes that
    /// want one offset, the first one gets it.
    fn check_offset(&self, wanted: Option<Offset>) -> Result<(), ErrorBody> {
        let next = self.tail_end.offset;
        if wanted.is_none_or(|wanted| wanted == next) {
            return Ok(());
        }
        let text = format!(
            "the batch was to begin at another offset; the next one is {next}: read what came before it and decide \
             again"
        );
        Err(ErrorBody::new(ErrorCode::OffsetConflict, text).with_detail(next.0))
    }

    /// Whether so many messages may be stored now.
    pub(super) fn check_storable(
        &self,
        head: &PublishHead,
        count: u32,
        how: How,
        opens_session: bool,
    ) -> Result<(), ErrorBody> {
        self.check_appendable(opens_session && !head.producer.is_internal())?;
        self.check_offset(how.at)?;
        if how.due.is_some() {
            self.check_delayable(count)?;
        }
        // The broker's own messages, dead letters above all, are owed already: they always have room.
        if head.producer.is_internal() { Ok(()) } else { self.check_room(count) }
    }

    /// What is wrong with the publish, whatever its session.
    fn check(&self, head: &PublishHead, batch: &Batch) -> Result<(), Outcome> {
        if self.failed {
            return Err(Outcome::Unknown { error: storage_failed() });
        }
        let rejected =
            |code, text: String| Err(Outcome::Rejected { error: ErrorBody::new(code, text) });
        let epoch = self.identity.leader_epoch;
        if head.leader_epoch != epoch {
            let (code, relation) = match head.leader_epoch < epoch {
                true => (ErrorCode::StaleLeaderEpoch, "an older"),
                false => (ErrorCode::NotLeader, "a newer"),
            };
            return rejected(
                code,
                format!("the publish names {relation} leader epoch than {epoch}; refresh metadata"),
            );
        }
        if batch.record_count == 0 || head.seq_count != batch.record_count {
            return rejected(
                ErrorCode::BadRequest,
                format!(
                    "a publish of {} messages covers {} sequences; it must cover one per message",
                    batch.record_count, head.seq_count
                ),
            );
        }
        if head.base_sequence.0 > u64::MAX - u64::from(head.seq_count) {
            return rejected(ErrorCode::BadRequest, "the sequence is out of range".to_string());
        }
        let fields = batch.fields().and_then(|fields| match head.producer {
            ProducerId::NONE if fields.producer == ProducerId::NONE => Ok(()),
            _ => fields.check_head(head),
        });
        fields.or_else(|error| rejected(ErrorCode::CorruptBatch, error.to_string()))
    }

    fn judge(
        &mut self,
        head: &PublishHead,
        connection: ConnectionId,
        producer_ids_end: ProducerId,
    ) -> Result<Standing, Objection> {
        if head.producer == ProducerId::NONE {
            return Ok(Standing::Next);
        }
        if head.producer >= producer_ids_end {
            return Err(Objection::Unknown { forgotten: false });
        }
        self.sessions.judge(self.state.producers(), head, connection)
    }

    fn check_appendable(&self, opens_session: bool) -> Result<(), ErrorBody> {
        if !self.required.is_empty() {
            return Err(taking_over());
        }
        let sessions = self.sessions.count(self.state.producers());
        if opens_session && sessions >= self.limits.sessions_max {
            return Err(ErrorBody::new(
                ErrorCode::LimitExceeded,
                format!(
                    "the partition has {sessions} producer sessions, as many as allowed; reuse \
                     producers, or publish without a session"
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn draft_batch(
        &self,
        now: Now,
        head: &PublishHead,
        piece: Piece<'_>,
        due: Option<TimestampMs>,
        source: Source<R>,
    ) -> Drafted<R> {
        let Piece { batch, base_sequence, next_sequence, keys, opens_session } = piece;
        let draft = EntryDraft {
            kind: due.map_or(EntryKind::Data, |_due| EntryKind::Delayed),
            flags: 0,
            leader_epoch: self.identity.leader_epoch,
            append_time: now.wall,
            record_count: batch.record_count,
            seq_count: batch.record_count,
            body: batch.body.clone(),
            body_crc: batch.crc,
            trailer: trailer(due, &keys),
        };
        let data = DataChange {
            producer: head.producer,
            epoch: head.epoch,
            sequence_low: sequence_low(base_sequence),
            seq_count: batch.record_count,
            record_count: batch.record_count,
        };
        let change = match due {
            None => Change::Data(data),
            Some(due) => Change::Delayed(DelayedChange { data, due }),
        };
        let reply = Reply::Publish(PublishReply {
            route: source.route,
            connection: source.connection,
            ack: head.ack,
            base_sequence,
            bytes: source.bytes,
            next_sequence,
            opens_session,
        });
        Drafted { keys, ..Drafted::new(draft, change, reply) }
    }

    /// One answer for the whole publish.
    pub(super) fn answer(
        &self,
        head: &PublishHead,
        outcome: Outcome,
        route: R,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        if head.seq_count > 0 {
            let run = self.run(head.producer, (head.base_sequence, head.seq_count), outcome);
            effects.push(Effect::Confirm { route, run, bytes: 0 });
        }
        Decision::Done
    }

    /// Answers what was sent before, piece by piece. Pieces in flight answer to the newest route from
    /// now on: whoever sent them first has lost its connection, or repeats itself.
    fn retry(
        &mut self,
        head: &PublishHead,
        source: Source<R>,
        effects: &mut Vec<Effect<R>>,
    ) -> Decision<R> {
        let mut pieces = Vec::new();
        self.sessions.pieces(self.state.producers(), head, |piece| pieces.push(piece));
        let mut charge = Some(source.bytes);
        for piece in pieces {
            if let Found::InFlight(index) = piece.found {
                let bytes = charge.take().unwrap_or(0);
                self.redirect(index, source.connection, source.route.clone(), bytes, effects);
            } else {
                let outcome = self.piece_outcome(head, &piece);
                let run = self.run(head.producer, (piece.base, piece.count), outcome);
                effects.push(Effect::Confirm { route: source.route.clone(), run, bytes: 0 });
            }
        }
        if charge.is_none() { Decision::Waits } else { Decision::Done }
    }

    /// Has the batch in flight at `index` answer to a newer route. The older one is relieved of its
    /// bytes.
    pub(super) fn redirect(
        &mut self,
        index: EntryIndex,
        connection: ConnectionId,
        route: R,
        bytes: usize,
        effects: &mut Vec<Effect<R>>,
    ) {
        let at = usize::try_from(index.0 - self.state.end().index.0).expect("it fits in memory");
        let Some(Reply::Publish(reply)) =
            self.pending.get_mut(at).map(|pending| &mut pending.reply)
        else {
            panic!("a session's batch in flight is pending at {index}");
        };
        let older = std::mem::replace(&mut reply.route, route);
        let released = std::mem::replace(&mut reply.bytes, bytes);
        reply.connection = connection;
        if released > 0 {
            effects.push(Effect::Released { route: older, bytes: released });
        }
    }

    pub(super) fn piece_outcome(&self, head: &PublishHead, piece: &Sent) -> Outcome {
        match piece.found {
            Found::Stored(run) => {
                let into = piece.base.0 - run.base_sequence.0;
                let (append_time, durability) = (run.append_time, self.acknowledged_durability());
                match run.place {
                    RunPlace::Offsets(base) => Outcome::Duplicate {
                        base_offset: Offset(base.0 + into),
                        append_time,
                        durability,
                    },
                    RunPlace::Delayed(index) => {
                        let id = id_in(index, into);
                        Outcome::DelayedDuplicate { id, append_time, durability }
                    }
                }
            }
            Found::TooOld => Outcome::Unknown {
                error: ErrorBody::new(
                    ErrorCode::SequenceTooOld,
                    "the sequence is older than what the broker remembers of the session; whether \
                     it is stored is not known. Keep fewer batches unconfirmed",
                ),
            },
            Found::GivenUp => Outcome::Rejected {
                error: ErrorBody::new(
                    ErrorCode::BadRequest,
                    "the producer had promised not to send this sequence again (resolved_upto)",
                ),
            },
            Found::Ahead => out_of_order(piece.base.max(head.resolved_upto)),
            Found::InFlight(index) => panic!("the batch in flight at {index} answers for itself"),
        }
    }
}

/// One past the last sequence of a publish.
pub(super) fn end_of(head: &PublishHead) -> Sequence {
    Sequence(head.base_sequence.0 + u64::from(head.seq_count))
}

fn trailer(due: Option<TimestampMs>, keys: &EntryKeys) -> Bytes {
    if due.is_none() && keys.keyed.is_empty() {
        return Bytes::new();
    }
    Trailer { deliver_at: due, keys: keys.to_trailer(), ..Trailer::default() }.encode()
}

/// The outcome for a publish that its session refuses.
fn objected(objection: Objection) -> Outcome {
    let (error, retry_may_be_stored) = match objection {
        Objection::OutOfOrder { expected } => return out_of_order(expected),
        Objection::Unknown { forgotten } => (
            ErrorBody::new(
                ErrorCode::UnknownProducer,
                "the producer session is not known on this partition; open a new one",
            ),
            forgotten,
        ),
        Objection::Fenced { newest } => (
            ErrorBody::new(
                ErrorCode::ProducerFenced,
                format!("the producer session goes on with epoch {newest} elsewhere"),
            ),
            true,
        ),
        Objection::Moved => (
            ErrorBody::new(
                ErrorCode::SessionMoved,
                "the producer session was resumed on a newer connection",
            ),
            true,
        ),
        Objection::Contradiction => (
            ErrorBody::new(
                ErrorCode::BadRequest,
                "resolved_upto lies above the sequence that is sent",
            ),
            false,
        ),
    };
    if retry_may_be_stored { Outcome::Unknown { error } } else { Outcome::Rejected { error } }
}

fn out_of_order(expected: Sequence) -> Outcome {
    Outcome::Rejected {
        error: ErrorBody::new(
            ErrorCode::OutOfOrderSequence,
            format!("sequence {expected} is expected; send again from there"),
        )
        .with_detail(expected.0),
    }
}
