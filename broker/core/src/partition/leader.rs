//! Owns the leadership of one partition: the committed state, and the tail that is appended but not
//! below the high watermark yet. Decides what is appended and who is told what, and when. Never touches
//! a log, a socket or a clock. Driven by the join under the partition's lock, as `lib.rs` describes.
//!
//! ```text
//!   publish, ack_up_to, ..  --> Decision::Append --> storage --> appended()     tail grows
//!   storage: ready_end moves --------------------------------> advance()        tail shrinks, state grows
//! ```
//! The tail is discarded by dropping this; the state is then folded from the entries that survived.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::message::{AckLevel, CancelVerdict, ConfirmRun, Outcome, TopicBounds};
use postrider_protocol::types::{
    Durability, EntryIndex, Offset, ProducerId, Sequence, SubscriptionId, TimestampMs,
};

use super::acks::AckQueue;
use super::command::{BODY_VERSION, StateCommand};
use super::delays::DelayedChange;
use super::effect::{
    AckReply, Appended, ConnectionId, Drafted, Effect, EntryDraft, OwnerChange, PartitionIdentity,
    PartitionLimits, PendingAppend, PublishReply, Refusal, Reply, SessionReply, StateCommitted,
    Twin,
};
use super::expiry::Expiry;
use super::keys::KeysInFlight;
use super::producers::DataChange;
use super::queue_commands::DeadIntent;
use super::queue_ops::QueueOps;
use super::sessions::Sessions;
use super::state::{APPLY_VERSION, AppliedEntry, Change, PartitionState};
use super::subscriptions::Subscriptions;
use crate::cursors::Position;
use crate::delay::Agenda;
use crate::now::Now;
use crate::queue::{DeadTarget, Dispatcher};

/// An entry that is appended and not committed.
#[derive(Debug)]
pub(super) struct Pending<R> {
    pub(super) entry: AppliedEntry,
    pub(super) reply: Reply<R>,
    pub(super) twins: Vec<Twin<R>>,
}

/// The leader of one partition. `R` is the route of a reply, opaque here.
#[derive(Debug)]
pub struct Partition<R> {
    pub(super) identity: PartitionIdentity,
    pub(super) limits: PartitionLimits,
    /// What the topic says of its messages' number and age; the join tells.
    pub(super) bounds: TopicBounds,
    /// Of a log topic: its kept messages count from here on.
    pub(super) kept_from: Option<Offset>,
    /// How far its messages are too old.
    pub(super) expiry: Expiry,
    /// Queues that hold too many are looked at again then, in monotonic ms.
    pub(super) full_until_ms: u64,
    /// The fold of everything below the high watermark.
    pub(super) state: PartitionState,
    /// Appended entries from the high watermark on, without a hole. Bounded by what storage queues and
    /// by the publish bytes that the join lets in.
    pub(super) pending: VecDeque<Pending<R>>,
    /// Behind the last appended entry.
    pub(super) tail_end: Position,
    pub(super) epoch_started: bool,
    pub(super) sessions: Sessions,
    /// The idempotency keys of what is pending.
    pub(super) keys_in_flight: KeysInFlight,
    /// The subscriptions as they are if everything appended commits.
    pub(super) tail_subscriptions: Subscriptions,
    pub(super) acks: AckQueue<R>,
    /// The queue subscriptions whose policy is known. Bound: the topic's subscriptions.
    pub(super) queues: BTreeMap<SubscriptionId, Dispatcher>,
    pub(super) ops: QueueOps<R>,
    /// Numbers of the next dead letters, where letters were appended by this leadership.
    pub(super) dead_tail: BTreeMap<(SubscriptionId, DeadTarget), Sequence>,
    /// When delayed messages are released.
    pub(super) agenda: Agenda,
    /// The newest time seen.
    pub(super) clock: Now,
    /// What a queue had evicted before the newest seek.
    evicted_before: u64,
    /// What the newest cancel of delayed messages came to.
    cancel_verdicts: Vec<CancelVerdict>,
    /// Subscriptions without whose `Subscribe` entry no publish is accepted, in the order of ids.
    pub(super) required: Vec<SubscriptionId>,
    pub(super) failed: bool,
}

impl<R: Clone> Partition<R> {
    /// Begins a leadership on the state that was folded from all entries of the log.
    #[must_use]
    pub fn new(
        identity: PartitionIdentity,
        state: PartitionState,
        limits: PartitionLimits,
    ) -> Self {
        Self {
            identity,
            limits,
            bounds: TopicBounds::default(),
            kept_from: None,
            expiry: Expiry::default(),
            full_until_ms: 0,
            pending: VecDeque::new(),
            tail_end: state.end(),
            epoch_started: false,
            sessions: Sessions::new(state.producers()),
            keys_in_flight: KeysInFlight::default(),
            tail_subscriptions: state.subscriptions().clone(),
            acks: AckQueue::default(),
            queues: BTreeMap::new(),
            ops: QueueOps::default(),
            dead_tail: BTreeMap::new(),
            agenda: Agenda::new(state.delays()),
            clock: Now::default(),
            evicted_before: 0,
            cancel_verdicts: Vec::new(),
            required: Vec::new(),
            failed: false,
            state,
        }
    }

    /// Whose leadership it is.
    #[must_use]
    pub fn identity(&self) -> &PartitionIdentity {
        &self.identity
    }

    /// The committed state.
    #[must_use]
    pub fn state(&self) -> &PartitionState {
        &self.state
    }

    /// Where the committed part of the log ends.
    #[must_use]
    pub fn high_watermark(&self) -> Position {
        self.state.end()
    }

    /// Where the appended part of the log ends.
    #[must_use]
    pub fn tail_end(&self) -> Position {
        self.tail_end
    }

    /// Entries appended and not committed.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Counts an entry that storage has appended: the one that `pending` gave out last.
    ///
    /// # Panics
    /// If it does not continue the tail, or no entry was given out: the log was appended to by somebody
    /// else, or out of order.
    pub fn appended(&mut self, pending: &mut PendingAppend<R>, appended: Appended) {
        let drafted = pending.current.take().expect("an entry was given out");
        assert!(drafted.draft.is_none(), "the entry was taken before it was appended");
        let entry = AppliedEntry {
            index: appended.index,
            base_offset: appended.base_offset,
            append_time: appended.append_time,
            leader_epoch: self.identity.leader_epoch,
            change: drafted.change,
            keys: drafted.keys,
        };
        let at = Position::new(entry.index, entry.base_offset);
        assert!(at == self.tail_end, "appended at {at:?}, the tail ends at {:?}", self.tail_end);
        self.tail_end = entry.end();
        self.delay_appended(&entry.change);
        match &entry.change {
            Change::Data(data) | Change::Delayed(DelayedChange { data, .. }) => {
                self.data_appended(data, appended.index, &drafted.reply);
            }
            Change::State(command) => {
                self.state_appended(command, entry.base_offset);
                self.session_begun(command, &drafted.reply);
            }
            Change::Released(_) | Change::Nothing => {}
        }
        let (reply, twins) = (drafted.reply, drafted.twins);
        self.pending.push_back(Pending { entry, reply, twins });
    }

    fn session_begun(&mut self, command: &StateCommand, reply: &Reply<R>) {
        if let StateCommand::ProducerFence { producer, epoch } = command
            && let Reply::Session(SessionReply { connection, next_sequence }) = reply
        {
            self.sessions.begun(*producer, *epoch, *connection, *next_sequence);
        }
    }

    fn data_appended(&mut self, data: &DataChange, index: EntryIndex, reply: &Reply<R>) {
        if let Reply::Publish(publish) = reply
            && data.producer != ProducerId::NONE
        {
            self.sessions.appended(
                data.producer,
                data.epoch,
                publish.connection,
                (publish.base_sequence, data.seq_count, index),
                publish.next_sequence,
                publish.opens_session,
            );
        }
    }

    fn state_appended(&mut self, command: &StateCommand, at: Offset) {
        self.tail_subscriptions.apply(command, at);
        match command {
            StateCommand::EpochStart { .. } => self.epoch_started = true,
            StateCommand::ProducerExpire(producers) => self.sessions.expiry_appended(producers),
            StateCommand::Settle(_) => self.acks.appended(),
            StateCommand::Return(_) | StateCommand::DeadDone(_) => self.ops.appended(),
            StateCommand::DeadIntent(intents) => {
                self.ops.appended();
                for DeadIntent { subscription, letter } in intents {
                    let next = Sequence(letter.sequence.0 + 1);
                    self.dead_tail.insert((*subscription, letter.target), next);
                }
            }
            StateCommand::Subscribe { subscription, .. } => {
                self.required.retain(|required| required != subscription);
            }
            StateCommand::Seek { .. }
            | StateCommand::SetOwner { .. }
            | StateCommand::Unsubscribe { .. }
            | StateCommand::DelayCancel { .. }
            | StateCommand::ProducerFence { .. } => {}
        }
    }

    /// Answers for entries that storage did not take. None of them is in the log.
    pub fn append_failed(
        &mut self,
        pending: PendingAppend<R>,
        refusal: Refusal,
        effects: &mut Vec<Effect<R>>,
    ) {
        for drafted in pending.current.into_iter().chain(pending.rest) {
            self.refuse(drafted, refusal, effects);
        }
        self.wake_queues(effects);
    }

    fn refuse(&mut self, drafted: Drafted<R>, refusal: Refusal, effects: &mut Vec<Effect<R>>) {
        let error = refusal.error();
        self.keys_in_flight.remove(&drafted.keys.keyed);
        for twin in drafted.twins {
            self.answer_twin(twin, refusal.outcome(), effects);
        }
        match &drafted.change {
            Change::State(command) => self.queue_refused(command),
            Change::Released(released) => self.release_refused(released),
            Change::Data(_) | Change::Delayed(_) | Change::Nothing => {}
        }
        match (drafted.reply, &drafted.change) {
            (
                Reply::Publish(reply),
                Change::Data(data) | Change::Delayed(DelayedChange { data, .. }),
            ) => {
                let run = self.run(
                    data.producer,
                    (reply.base_sequence, data.seq_count),
                    refusal.outcome(),
                );
                effects.push(Effect::Confirm { route: reply.route, run, bytes: reply.bytes });
            }
            (Reply::State(route), _) => effects.push(Effect::Refused { route, error }),
            (Reply::Acks(replies), _) => {
                effects.extend(
                    replies
                        .into_iter()
                        .map(|reply| Effect::Refused { route: reply.route, error: error.clone() }),
                );
            }
            (Reply::Nobody | Reply::Session(_) | Reply::Publish(_), _) => {}
        }
    }

    /// Commits what lies below `ready_end`: applies it to the state and answers.
    ///
    /// # Panics
    /// If `ready_end` lies behind the tail, or the state refuses an entry that this leader wrote.
    pub fn advance(&mut self, ready_end: Position, effects: &mut Vec<Effect<R>>) {
        assert!(
            ready_end.index <= self.tail_end.index,
            "ready_end {ready_end:?} lies behind the tail {:?}",
            self.tail_end
        );
        if self.failed {
            return;
        }
        let mut open = OpenRun::None;
        while self.pending.front().is_some_and(|next| next.entry.index < ready_end.index) {
            let Some(pending) = self.pending.pop_front() else { break };
            if let Change::State(StateCommand::Seek { subscription, .. }) = &pending.entry.change {
                self.evicted_before = self.evicted_of(*subscription);
            }
            if let Change::State(StateCommand::DelayCancel { ids, .. }) = &pending.entry.change {
                self.cancel_verdicts = self.verdicts_of(ids);
            }
            self.state.apply(&pending.entry).expect("the leader appends what the fold accepts");
            self.keys_in_flight.remove(&pending.entry.keys.keyed);
            if !pending.twins.is_empty() {
                open = OpenRun::None;
            }
            match (&pending.entry.change, pending.reply) {
                (Change::Data(data), Reply::Publish(reply)) => {
                    self.confirm(&pending.entry, data, reply, &mut open, effects);
                }
                (Change::State(command), reply) => {
                    open = OpenRun::None;
                    let end = EntryIndex(pending.entry.index.0 + 1);
                    self.state_committed(command, (reply, end), effects);
                }
                (Change::Delayed(delayed), Reply::Publish(reply)) => {
                    open = OpenRun::None;
                    self.confirm_delayed(&pending.entry, delayed, reply, effects);
                }
                (Change::Released(released), _) => {
                    open = OpenRun::None;
                    self.release_committed(&pending.entry, released, effects);
                }
                (Change::Data(_) | Change::Delayed(_) | Change::Nothing, _) => {}
            }
            if !pending.twins.is_empty() {
                open = OpenRun::None;
                self.twins_committed(&pending.entry, pending.twins, effects);
            }
        }
        self.wake_queues(effects);
    }

    /// Counts a committed batch in its session, and checks that the fold did so too.
    pub(super) fn session_committed(
        &mut self,
        entry: &AppliedEntry,
        data: &DataChange,
        reply: &PublishReply<R>,
    ) {
        if data.producer == ProducerId::NONE {
            return;
        }
        self.sessions.committed(data.producer, entry.index, reply.opens_session);
        let session = self.state.producers().session(data.producer);
        let end = Sequence(reply.base_sequence.0 + u64::from(data.seq_count));
        assert!(
            session.is_some_and(|session| {
                session.epoch() > data.epoch || session.next_sequence() == end
            }),
            "the fold unwraps the sequence that the leader accepted"
        );
    }

    /// Confirms a batch, in the run of the one before where it continues it.
    fn confirm(
        &mut self,
        entry: &AppliedEntry,
        data: &DataChange,
        reply: PublishReply<R>,
        open: &mut OpenRun,
        effects: &mut Vec<Effect<R>>,
    ) {
        self.session_committed(entry, data, &reply);
        if reply.ack == AckLevel::None {
            *open = OpenRun::None;
            effects.push(Effect::Released { route: reply.route, bytes: reply.bytes });
            return;
        }
        let next = OpenRun::After {
            connection: reply.connection,
            producer: data.producer,
            sequence: Sequence(reply.base_sequence.0 + u64::from(data.seq_count)),
            append_time: entry.append_time,
            offset: Offset(entry.base_offset.0 + u64::from(data.record_count)),
        };
        if open.continues(&reply, data, entry)
            && let Some(Effect::Confirm { run, bytes, .. }) = effects.last_mut()
            && let Some(count) = run.count.checked_add(data.seq_count)
        {
            run.count = count;
            *bytes += reply.bytes;
        } else {
            let outcome = Outcome::Committed {
                base_offset: entry.base_offset,
                append_time: entry.append_time,
                durability: self.acknowledged_durability(),
            };
            let run = self.run(data.producer, (reply.base_sequence, data.seq_count), outcome);
            effects.push(Effect::Confirm { route: reply.route, run, bytes: reply.bytes });
        }
        *open = next;
    }

    fn state_committed(
        &mut self,
        command: &StateCommand,
        (reply, end): (Reply<R>, EntryIndex),
        effects: &mut Vec<Effect<R>>,
    ) {
        self.queue_committed(command, effects);
        match command {
            StateCommand::Settle(_) => self.acks.committed(),
            StateCommand::Return(_) | StateCommand::DeadIntent(_) | StateCommand::DeadDone(_) => {
                self.ops.committed();
            }
            StateCommand::ProducerExpire(producers) => self.sessions.expiry_committed(producers),
            StateCommand::DelayCancel { ids, .. } => self.cancel_committed(ids),
            StateCommand::Seek { .. }
            | StateCommand::Subscribe { .. }
            | StateCommand::SetOwner { .. }
            | StateCommand::Unsubscribe { .. }
            | StateCommand::ProducerFence { .. }
            | StateCommand::EpochStart { .. } => {}
        }
        if let Some(changed) = self.owner_change(command) {
            effects.push(changed);
        }
        match reply {
            Reply::State(route) if matches!(command, StateCommand::DelayCancel { .. }) => {
                let verdicts = std::mem::take(&mut self.cancel_verdicts);
                effects.push(Effect::DelaysCancelled { route, verdicts });
            }
            Reply::State(route) => effects.extend(self.state_reply(command, route)),
            Reply::Acks(replies) => self.ack_replies(replies, end, effects),
            Reply::Session(_) => self.sessions.begin_committed(),
            Reply::Publish(_) | Reply::Nobody => {}
        }
    }

    fn evicted_of(&self, subscription: SubscriptionId) -> u64 {
        self.state.queue(subscription).map_or(0, |queue| queue.totals().evicted)
    }

    fn owner_change(&self, command: &StateCommand) -> Option<Effect<R>> {
        let (subscription, change) = match command {
            StateCommand::Seek { subscription, .. } => (*subscription, OwnerChange::Sought),
            StateCommand::SetOwner { subscription, .. } => (*subscription, OwnerChange::Attached),
            StateCommand::Unsubscribe { subscription } => (*subscription, OwnerChange::Deleted),
            StateCommand::Settle(_)
            | StateCommand::Return(_)
            | StateCommand::DeadIntent(_)
            | StateCommand::DeadDone(_)
            | StateCommand::Subscribe { .. }
            | StateCommand::ProducerFence { .. }
            | StateCommand::ProducerExpire(_)
            | StateCommand::DelayCancel { .. }
            | StateCommand::EpochStart { .. } => return None,
        };
        let state = self.state.subscriptions().get(subscription).unwrap_or_default();
        Some(Effect::OwnerChanged {
            subscription,
            change,
            owner_epoch: state.owner_epoch,
            next: state.acked,
        })
    }

    fn state_reply(&self, command: &StateCommand, route: R) -> Option<Effect<R>> {
        let state = |subscription| self.state.subscriptions().get(subscription).unwrap_or_default();
        let (subscription, what) = match command {
            StateCommand::Subscribe { subscription, .. } => {
                (*subscription, StateCommitted::Subscribed { acked: state(*subscription).acked })
            }
            StateCommand::SetOwner { subscription, owner_epoch } => {
                let acked = state(*subscription).acked;
                (*subscription, StateCommitted::Owned { owner_epoch: *owner_epoch, acked })
            }
            StateCommand::Seek { subscription, owner_epoch, to } => {
                let evicted = self.evicted_of(*subscription) - self.evicted_before;
                let (owner_epoch, next) = (*owner_epoch, *to);
                (*subscription, StateCommitted::Sought { owner_epoch, next, evicted })
            }
            StateCommand::Unsubscribe { subscription } => {
                (*subscription, StateCommitted::Unsubscribed)
            }
            StateCommand::Settle(_)
            | StateCommand::Return(_)
            | StateCommand::DeadIntent(_)
            | StateCommand::DeadDone(_)
            | StateCommand::ProducerFence { .. }
            | StateCommand::ProducerExpire(_)
            | StateCommand::DelayCancel { .. }
            | StateCommand::EpochStart { .. } => return None,
        };
        Some(Effect::Committed { route, subscription, what })
    }

    fn ack_replies(
        &self,
        replies: Vec<AckReply<R>>,
        commit_index: EntryIndex,
        effects: &mut Vec<Effect<R>>,
    ) {
        for AckReply { route, subscription, exceptions } in replies {
            if let Some(exceptions) = exceptions {
                effects.push(Effect::Settled { route, subscription, commit_index, exceptions });
                continue;
            }
            let acked = self.state.subscriptions().get(subscription).unwrap_or_default().acked;
            let what = StateCommitted::Acked { acked };
            effects.push(Effect::Committed { route, subscription, what });
        }
    }

    /// What the leader wants to append on its own account: acknowledgements that waited for others, and
    /// what is to be written about failed messages of queues. To be called after every `advance`, until
    /// it is `None`.
    pub fn poll_append(&mut self, now: Now) -> Option<PendingAppend<R>> {
        if self.failed {
            return None;
        }
        if !self.acks.in_flight()
            && let Some(acks) = self.acks.take()
        {
            return Some(self.pending_append(now, acks));
        }
        if self.ops.in_flight() || self.ops.is_empty() {
            return None;
        }
        let mut entries = self.take_ops();
        let last = entries.pop()?;
        let mut pending = self.pending_append(now, last);
        for entry in entries {
            pending.put_before_last(self.drafted(now, entry));
        }
        Some(pending)
    }

    /// Forgets producer sessions that are idle, up to a bound per call. To be called every few minutes.
    /// Whoever comes back later with a sequence above 0 gets `UnknownProducer`.
    pub fn expire_sessions(&mut self, now: Now) -> Option<PendingAppend<R>> {
        if self.failed {
            return None;
        }
        let idle_since = now.wall.0.saturating_sub(self.limits.session_idle_ms);
        let idle: Vec<ProducerId> = self
            .state
            .producers()
            .iter()
            .filter(|(producer, session)| {
                session.last_active().0 < idle_since
                    && !producer.is_internal()
                    && self.sessions.is_idle(*producer)
            })
            .map(|(producer, _)| producer)
            .take(crate::limits::EXPIRE_BATCH_MAX)
            .collect();
        if idle.is_empty() {
            return None;
        }
        let change = Change::State(StateCommand::ProducerExpire(idle));
        Some(self.pending_append(now, (change, Reply::Nobody)))
    }

    /// An entry that says nothing but the time, for a log that has to go on although there is nothing to say.
    pub fn mark_time(&mut self, now: Now) -> Option<PendingAppend<R>> {
        if self.failed {
            return None;
        }
        let body = Bytes::from_static(&[BODY_VERSION]);
        let draft = EntryDraft {
            kind: EntryKind::TimeMark,
            flags: 0,
            leader_epoch: self.identity.leader_epoch,
            append_time: now.wall,
            record_count: 0,
            seq_count: 0,
            body_crc: crc32fast::hash(&body),
            body,
            trailer: Bytes::new(),
        };
        let mut pending = PendingAppend::new(Drafted::new(draft, Change::Nothing, Reply::Nobody));
        self.put_epoch_start_first(now, &mut pending);
        Some(pending)
    }

    /// The disk has failed: nothing that is pending will ever be known to be stored. Everything later is
    /// answered `StorageFailed`.
    pub fn fail(&mut self, effects: &mut Vec<Effect<R>>) {
        self.end(Refusal::Failed, effects);
    }

    /// Somebody else leads, or soon will: what becomes of that which is pending is for others to say. To be
    /// dropped afterwards.
    pub fn depose(&mut self, effects: &mut Vec<Effect<R>>) {
        self.end(Refusal::Deposed, effects);
    }

    fn end(&mut self, refusal: Refusal, effects: &mut Vec<Effect<R>>) {
        self.failed = true;
        let pending = std::mem::take(&mut self.pending);
        for Pending { entry: AppliedEntry { change, keys, .. }, reply, twins } in pending {
            let drafted = Drafted { draft: None, change, keys, reply, twins };
            self.refuse(drafted, refusal, effects);
        }
        let waiting: Vec<R> = self.acks.drain_routes().collect();
        for route in waiting.into_iter().chain(self.ops.drain_routes()) {
            effects.push(Effect::Refused { route, error: refusal.error() });
        }
    }

    /// Whether [`Partition::fail`] or [`Partition::depose`] was called.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Asserts what must hold between any two calls. Costs as much as the state is large.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn check_invariants(&self) {
        let mut end = self.state.end();
        for pending in &self.pending {
            let at = Position::new(pending.entry.index, pending.entry.base_offset);
            assert!(
                at == end || self.failed,
                "pending entries follow each other from the state on"
            );
            end = pending.entry.end();
        }
        assert!(end == self.tail_end || self.failed, "pending entries end at the tail's end");
        assert!(
            self.acks.in_flight_count()
                == self.pending.iter().filter(|pending| is_settle(&pending.entry)).count()
                || self.failed,
            "every settle entry in flight is counted"
        );
        assert!(
            self.ops.in_flight_count()
                == self.pending.iter().filter(|pending| is_queue_op(&pending.entry)).count()
                || self.failed,
            "every entry about queues in flight is counted"
        );
        self.check_queues();
        self.state.delays().check();
        if !self.failed {
            self.agenda.check(self.state.delays());
        }
        self.sessions.check(self.state.producers());
        let keyed = self.pending.iter().map(|pending| pending.entry.keys.keyed.len()).sum();
        assert!(
            self.keys_in_flight.len() == keyed || self.failed,
            "the keys in flight are those of pending entries"
        );
        let mut folded = self.state.subscriptions().clone();
        for pending in &self.pending {
            if let Change::State(command) = &pending.entry.change {
                folded.apply(command, pending.entry.base_offset);
            }
        }
        assert!(
            folded == self.tail_subscriptions || self.failed,
            "the tail's subscriptions are the state and what is pending"
        );
    }

    /// The entries for `last`, with what has to stand before it.
    pub(super) fn pending_append(&self, now: Now, last: (Change, Reply<R>)) -> PendingAppend<R> {
        let mut pending = PendingAppend::new(self.drafted(now, last));
        self.put_epoch_start_first(now, &mut pending);
        pending
    }

    /// A state entry, ready to append.
    pub(super) fn drafted(&self, now: Now, entry: (Change, Reply<R>)) -> Drafted<R> {
        let (change, reply) = entry;
        let Change::State(command) = &change else { panic!("publish drafts batches") };
        Drafted::new(self.draft(now, command), change, reply)
    }

    pub(super) fn put_epoch_start_first(&self, now: Now, pending: &mut PendingAppend<R>) {
        if self.epoch_started {
            return;
        }
        let command = StateCommand::EpochStart {
            apply_version: APPLY_VERSION,
            node: self.identity.node,
            incarnation: u64::from(self.identity.leader_epoch.0),
        };
        let draft = self.draft(now, &command);
        pending.put_first(Drafted::new(draft, Change::State(command), Reply::Nobody));
    }

    fn draft(&self, now: Now, command: &StateCommand) -> EntryDraft {
        let body = command.encode();
        EntryDraft {
            kind: command.kind(),
            flags: 0,
            leader_epoch: self.identity.leader_epoch,
            append_time: now.wall,
            record_count: 0,
            seq_count: 0,
            body_crc: crc32fast::hash(&body),
            body,
            trailer: Bytes::new(),
        }
    }

    pub(super) fn run(
        &self,
        producer: ProducerId,
        sequences: (Sequence, u32),
        outcome: Outcome,
    ) -> ConfirmRun {
        let (base_sequence, count) = sequences;
        let PartitionIdentity { topic, partition, .. } = self.identity;
        ConfirmRun { topic, partition, producer, base_sequence, count, outcome }
    }

    /// What a confirm says was reached: on one broker, `replicated` is no more than `memory`.
    pub(super) fn acknowledged_durability(&self) -> Durability {
        match self.identity.durability {
            Durability::Fsync => Durability::Fsync,
            Durability::Replicated | Durability::Memory => Durability::Memory,
        }
    }
}

fn is_settle(entry: &AppliedEntry) -> bool {
    matches!(entry.change, Change::State(StateCommand::Settle(_)))
}

fn is_queue_op(entry: &AppliedEntry) -> bool {
    matches!(
        entry.change,
        Change::State(
            StateCommand::Return(_) | StateCommand::DeadIntent(_) | StateCommand::DeadDone(_)
        )
    )
}

/// The run that the last effect confirms, if a batch may continue it.
enum OpenRun {
    None,
    After {
        connection: ConnectionId,
        producer: ProducerId,
        sequence: Sequence,
        append_time: TimestampMs,
        offset: Offset,
    },
}

impl OpenRun {
    fn continues<R>(
        &self,
        reply: &PublishReply<R>,
        data: &DataChange,
        entry: &AppliedEntry,
    ) -> bool {
        match self {
            Self::None => false,
            Self::After { connection, producer, sequence, append_time, offset } => {
                *connection == reply.connection
                    && *producer == data.producer
                    && *sequence == reply.base_sequence
                    && *append_time == entry.append_time
                    && *offset == entry.base_offset
            }
        }
    }
}
