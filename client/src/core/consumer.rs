//! Owns a consumer of a queue-mode subscription as the client sees it: what is wanted, what is leased, what waits for
//! the application, outcomes on their way, credit, renewal. Never decodes a record, never writes a frame. Driven by
//! the engine: the application's calls, replies, events, time, the loss of the connection.
//!
//! ```text
//! detached ── asked ──► attaching ── reply ──► attached ── nothing left to do ──► leaving ──► gone
//!    ▲                      │                   │    │
//!    └──── connection lost, or refused for now ─┘    └── refused, closed ──► ended
//! ```
//!
//! A message passes: leased by `Lease` → waits in `queue` → the application takes it → its outcome is laid down on
//! the partition's desk → taken off the desk into a batch, which gives its credit back → sent → answered. A lost
//! connection changes nothing of that: the attach after it names all that is held, and batches without an answer are
//! sent again.

pub mod desk;
mod leases;
mod settling;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use postrider_protocol::{
    entry::{EntryHeader, EntryKind},
    error::{ErrorBody, ErrorCode, Retry},
    message::{
        Ack, Consume, ConsumeReply, Credit, Lease, LeaseLost, LeaseRun, QueuePolicy, Renew, Return,
        ReturnAction,
    },
    types::{LeaderEpoch, MemberId, PartitionId, SubscriptionHandle, SubscriptionId, TopicId},
};

use self::{
    desk::{Bell, Grant},
    leases::{Leased, Piece, end_of},
    settling::{Answered, How, Lane},
};
use super::{
    completion::{Promise, Wakes},
    subscription::DeliveryFault,
};

/// The wait before something that was refused for now is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// What to consume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerOptions {
    /// The topic.
    pub topic: String,
    /// The subscription; `None` is the queue's own.
    pub subscription: Option<String>,
    /// The partitions; empty means all.
    pub partitions: Vec<PartitionId>,
    /// Random; the same over reconnects.
    pub member: MemberId,
    /// For people.
    pub name: String,
    /// How many messages may be leased and not settled.
    pub prefetch_messages: u32,
    /// How many bytes they may have.
    pub prefetch_bytes: u32,
}

/// What a consumer is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The policy, as it was when the consumer attached.
    pub policy: QueuePolicy,
    /// The partitions.
    pub partitions: Vec<PartitionId>,
}

/// What waits for the application.
#[derive(Clone, Debug)]
pub enum Handed {
    /// Messages.
    Grant(Granted),
    /// The last thing ever: why it ended.
    Ended(ErrorBody),
}

/// Messages that are leased to the consumer.
#[derive(Clone, Debug)]
pub struct Granted {
    /// What they have in common.
    pub grant: Arc<Grant>,
    /// Which.
    pub runs: Vec<LeaseRun>,
    /// The stored entries that hold them. Headers are checked, bodies are not.
    pub entries: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Detached,
    Attaching,
    Attached,
    Leaving,
    Ended,
}

/// What the application wants of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Wish {
    /// Messages.
    Run,
    /// No more messages; to settle those that it has.
    Stop,
    /// To leave once the outcomes that were given are answered.
    Leave,
}

/// Credit, or what was leased against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Amount {
    messages: u64,
    bytes: u64,
}

/// A hand-out whose messages the application is not done with.
#[derive(Debug)]
struct Open {
    grant: Arc<Grant>,
    sub_epoch: u64,
    leader_epoch: LeaderEpoch,
    left: Amount,
}

#[derive(Debug)]
struct Attaching {
    promise: Promise<Result<Attached, ErrorBody>>,
    deadline: Duration,
}

#[derive(Debug)]
pub(crate) struct Consumer {
    handle: SubscriptionHandle,
    options: ConsumerOptions,
    phase: Phase,
    wish: Wish,
    /// The application has let go of it and of all its deliveries.
    released: bool,
    retry_at: Option<Duration>,
    identity: Option<(TopicId, SubscriptionId)>,
    lanes: BTreeMap<PartitionId, Lane>,
    bell: Arc<Bell>,
    /// Desks must be looked at although nobody rang.
    look: bool,
    /// Bounded by the credit that the broker has.
    queue: VecDeque<Handed>,
    waker: Option<Waker>,
    attaching: Option<Attaching>,
    /// By number. Bounded by the credit.
    grants: BTreeMap<u64, Open>,
    /// The sum over `grants`.
    outstanding: Amount,
    /// Messages of `outstanding` that the application dropped, with their leases running.
    let_go: u64,
    /// The application is done with it, and the broker does not know.
    returnable: Amount,
    next_grant: u64,
    next_batch: u64,
    renew_every: Duration,
    renew_at: Duration,
    draining: Vec<Promise<()>>,
}

impl Consumer {
    pub(crate) fn new(
        handle: SubscriptionHandle,
        options: ConsumerOptions,
        promise: Promise<Result<Attached, ErrorBody>>,
        deadline: Duration,
    ) -> Self {
        Self {
            handle,
            options,
            phase: Phase::Detached,
            wish: Wish::Run,
            released: false,
            retry_at: None,
            identity: None,
            lanes: BTreeMap::new(),
            bell: Arc::default(),
            look: false,
            queue: VecDeque::new(),
            waker: None,
            attaching: Some(Attaching { promise, deadline }),
            grants: BTreeMap::new(),
            outstanding: Amount::default(),
            let_go: 0,
            returnable: Amount::default(),
            next_grant: 0,
            next_batch: 0,
            renew_every: Duration::MAX,
            renew_at: Duration::ZERO,
            draining: Vec::new(),
        }
    }

    // The connection's side.

    pub(crate) fn disconnected(&mut self, wakes: &mut Wakes) {
        match self.phase {
            Phase::Ended => return,
            // The broker gives back what is left when it misses the connection.
            Phase::Leaving => return self.left(wakes),
            Phase::Detached | Phase::Attaching | Phase::Attached => self.phase = Phase::Detached,
        }
        self.retry_at = None;
        self.returnable = Amount::default();
        for lane in self.lanes.values_mut() {
            lane.disconnected();
        }
    }

    /// The attach to ask for, if it is time.
    pub(crate) fn question(&mut self, now: Duration) -> Option<Consume> {
        if self.phase != Phase::Detached || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        self.phase = Phase::Attaching;
        self.retry_at = None;
        // The attach asks for the whole window without what is outstanding.
        self.returnable = Amount::default();
        let window = if self.wish == Wish::Run { self.window() } else { Amount::default() };
        let left = window.less(self.outstanding);
        Some(Consume {
            handle: self.handle,
            topic: self.options.topic.clone(),
            subscription: self.options.subscription.clone(),
            partitions: self.options.partitions.clone(),
            member: self.options.member,
            consumer_name: self.options.name.clone(),
            credit_messages: u32::try_from(left.messages).unwrap_or(u32::MAX),
            credit_bytes: u32::try_from(left.bytes).unwrap_or(u32::MAX),
            held: self.lanes.values().filter_map(Lane::held).collect(),
        })
    }

    pub(crate) fn answered(
        &mut self,
        now: Duration,
        reply: Result<ConsumeReply, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        if self.phase != Phase::Attaching {
            return;
        }
        match reply {
            Ok(reply) => {
                let identity = (reply.topic, reply.subscription);
                if self.identity.is_some_and(|known| known != identity) {
                    let text = format!(
                        "the queue \"{}\" was deleted and created again: consume it again",
                        self.options.topic
                    );
                    self.end(ErrorBody::new(ErrorCode::UnknownSubscription, text), wakes);
                } else {
                    self.identity = Some(identity);
                    self.attach(now, &reply, wakes);
                }
            }
            Err(error) if error.code.retry() == Retry::Never => self.end(error, wakes),
            // As with readers: who opens it named a partition that is not there.
            Err(error) if self.attaching.is_some() && error.code == ErrorCode::UnknownPartition => {
                self.end(error, wakes);
            }
            Err(error) => self.retry_later(now, &error),
        }
    }

    fn retry_later(&mut self, now: Duration, error: &ErrorBody) {
        let wait = Duration::from_millis(u64::from(error.retry_after_ms)).max(RETRY_WAIT);
        self.phase = Phase::Detached;
        self.retry_at = Some(now + wait);
    }

    fn attach(&mut self, now: Duration, reply: &ConsumeReply, wakes: &mut Wakes) {
        self.phase = Phase::Attached;
        self.look = true;
        self.renew_every = Duration::from_millis(u64::from(reply.policy.lease_ms / 3).max(1));
        self.renew_at = now + self.renew_every;
        let mut gone = Vec::new();
        for at in &reply.partitions {
            match self.lanes.get_mut(&at.partition) {
                Some(lane) => {
                    lane.resumed(at, &mut self.next_batch, |piece| gone.push(piece), wakes);
                }
                None => {
                    let lane = Lane::new(at, Arc::clone(&self.bell));
                    self.lanes.insert(at.partition, lane);
                }
            }
        }
        for piece in gone {
            self.lose(piece);
        }
        if let Some(attaching) = self.attaching.take() {
            let partitions = self.lanes.keys().copied().collect();
            let attached = Attached { policy: reply.policy.clone(), partitions };
            attaching.promise.fulfil(Ok(attached), wakes);
        }
    }

    /// A lease ended without the application. The message is outstanding until it lets go of it.
    fn lose(&mut self, piece: Piece) {
        if let Some(open) = self.grants.get(&piece.leased.grant) {
            open.grant.lose(piece.range());
        }
        if piece.leased.let_go {
            self.let_go -= u64::from(piece.leased.count);
            self.done(piece.leased.grant, piece.leased.count);
        }
    }

    pub(crate) fn leased(
        &mut self,
        now: Duration,
        lease: Lease,
        wakes: &mut Wakes,
    ) -> Result<(), DeliveryFault> {
        let Lease { head, entries } = lease;
        let partition = head.partition;
        if self.phase != Phase::Attached {
            return Ok(());
        }
        let Some(lane) = self.lanes.get_mut(&partition) else { return Ok(()) };
        let amount = Amount::of(&head.runs, &entries);
        if head.sub_epoch < lane.sub_epoch || head.leader_epoch < lane.leader_epoch {
            // It crossed a seek: void, and its credit is spent.
            self.returnable.add(amount);
            return Ok(());
        }
        if let Err((at, why)) = check(&entries, &head.runs) {
            let at = postrider_protocol::types::Offset(at);
            return Err(DeliveryFault::Entries { partition, at, why });
        }
        lane.set_epoch(head.sub_epoch, wakes);
        lane.leader_epoch = head.leader_epoch;
        let mut gone = Vec::new();
        self.next_grant += 1;
        let number = self.next_grant;
        for run in &head.runs {
            // What the broker leases again, it had lost.
            lane.leases.take(run.first.0..end_of(run), |_| true, |piece| gone.push(piece));
            let leased =
                Leased { count: run.count, grant: number, attempt: run.attempt, let_go: false };
            lane.leases.insert(Piece { first: run.first.0, leased });
        }
        let (desk, started) = (Arc::clone(&lane.desk), Arc::clone(&lane.started));
        let dispatch = (head.dispatch_number, head.dispatch_index);
        let grant = Arc::new(Grant::new(number, desk, dispatch, started));
        for piece in gone {
            self.lose(piece);
        }
        if self.grants.is_empty() {
            self.renew_at = now + self.renew_every;
        }
        let open = Open {
            grant: Arc::clone(&grant),
            sub_epoch: head.sub_epoch,
            leader_epoch: head.leader_epoch,
            left: amount,
        };
        self.grants.insert(number, open);
        self.outstanding.add(amount);
        let granted = Granted { grant, runs: head.runs, entries };
        if self.wish == Wish::Run {
            self.enqueue(Handed::Grant(granted), wakes);
        } else {
            self.refuse(&granted);
        }
        Ok(())
    }

    /// Nobody will take these messages.
    fn refuse(&mut self, granted: &Granted) {
        self.look = true;
        for run in &granted.runs {
            let (first, count, attempt) = (run.first, run.count, run.attempt);
            let _answer = granted.grant.give_back(first, count, attempt, ReturnAction::Release);
        }
    }

    pub(crate) fn lease_lost(&mut self, lost: &LeaseLost, wakes: &mut Wakes) {
        let Some(lane) = self.lanes.get_mut(&lost.partition) else { return };
        let mut gone = Vec::new();
        for run in &lost.runs {
            let range = run.first.0..run.first.0.saturating_add(u64::from(run.count));
            let same = |leased: &Leased| leased.attempt == run.attempt;
            lane.leases.take(range, same, |piece| gone.push(piece));
        }
        lane.set_epoch(lost.sub_epoch, wakes);
        for piece in gone {
            self.lose(piece);
        }
        self.settle_drains(wakes);
    }

    /// The broker ended the attachment; for now, or for good.
    pub(crate) fn closed(&mut self, now: Duration, error: ErrorBody, wakes: &mut Wakes) {
        if error.code.retry() == Retry::Never {
            self.end(error, wakes);
        } else if self.phase != Phase::Ended {
            self.disconnected(wakes);
            if self.phase == Phase::Detached {
                self.retry_later(now, &error);
            }
        }
    }

    /// Ends it: nothing can be settled any more.
    pub(crate) fn end(&mut self, error: ErrorBody, wakes: &mut Wakes) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        self.retry_at = None;
        self.queue.clear();
        for lane in self.lanes.values_mut() {
            lane.end(wakes);
            lane.leases.take(
                0..u64::MAX,
                |_| true,
                |piece| {
                    if let Some(open) = self.grants.get(&piece.leased.grant) {
                        open.grant.lose(piece.range());
                    }
                },
            );
        }
        self.grants.clear();
        (self.outstanding, self.returnable, self.let_go) =
            (Amount::default(), Amount::default(), 0);
        if let Some(attaching) = self.attaching.take() {
            attaching.promise.fulfil(Err(error.clone()), wakes);
        }
        self.settle_drains(wakes);
        self.enqueue(Handed::Ended(error), wakes);
    }

    /// Ends an attach that took too long.
    pub(crate) fn expire(&mut self, now: Duration, wakes: &mut Wakes) {
        if self.attaching.as_ref().is_some_and(|attaching| attaching.deadline <= now) {
            let text = "no broker answered the consume in time; check the address and the broker";
            self.end(ErrorBody::new(ErrorCode::TimedOut, text), wakes);
        }
    }

    pub(crate) fn waits_to_attach(&self) -> bool {
        self.attaching.is_some()
    }

    fn enqueue(&mut self, handed: Handed, wakes: &mut Wakes) {
        self.queue.push_back(handed);
        if let Some(waker) = self.waker.take() {
            wakes.push(waker);
        }
    }

    /// When it has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Detached => self.retry_at,
            Phase::Attached => {
                let renew = (!self.grants.is_empty()).then_some(self.renew_at);
                let repeat = self.lanes.values().filter_map(|lane| lane.retry_at).min();
                [renew, repeat].into_iter().flatten().min()
            }
            _ => None,
        }
    }

    // Outcomes.

    /// Takes what the application laid down off the desks, and gives its credit back.
    pub(crate) fn clear_desks(&mut self, wakes: &mut Wakes) {
        if self.phase != Phase::Attached {
            return;
        }
        let rung = self.bell.answer();
        if !rung && !std::mem::take(&mut self.look) {
            return;
        }
        self.look = false;
        let ready = u64::from(self.options.prefetch_messages / 4).max(1);
        let mut done = Vec::new();
        for lane in self.lanes.values_mut() {
            let (sub_epoch, leader_epoch) = (lane.sub_epoch, lane.leader_epoch);
            let grants = &self.grants;
            let is_current = |number: u64| {
                grants.get(&number).is_some_and(|open| {
                    (open.sub_epoch, open.leader_epoch) == (sub_epoch, leader_epoch)
                })
            };
            let taken = lane.clear_desk(ready, &mut self.next_batch, is_current, wakes);
            self.let_go += taken.let_go;
            done.extend(taken.done);
        }
        for (grant, count) in done {
            self.done(grant, count);
        }
        self.settle_drains(wakes);
    }

    /// The application is done with messages of a grant: their share of its credit can be given back.
    fn done(&mut self, number: u64, count: u32) {
        let Some(open) = self.grants.get_mut(&number) else { return };
        let messages = u64::from(count);
        let bytes = if messages >= open.left.messages {
            open.left.bytes
        } else {
            open.left.bytes / open.left.messages * messages
        };
        let share = Amount { messages, bytes };
        open.left = open.left.less(share);
        if open.left.messages == 0 {
            self.grants.remove(&number);
        }
        self.outstanding = self.outstanding.less(share);
        // What ends between the attach and its reply was not part of the credit that was asked for.
        if matches!(self.phase, Phase::Attaching | Phase::Attached) {
            self.returnable.add(share);
        }
    }

    /// The next request that settles messages, and its batch's number.
    pub(crate) fn next_settling(&mut self, now: Duration) -> Option<(Settling, PartitionId, u64)> {
        if self.phase != Phase::Attached {
            return None;
        }
        let handle = self.handle;
        for (partition, lane) in &mut self.lanes {
            let (partition, started, leader_epoch) =
                (*partition, lane.started(), lane.leader_epoch);
            let Some(batch) = lane.next_batch(now) else { continue };
            let (runs, sub_epoch) = (batch.runs.clone(), batch.sub_epoch);
            let settling = match &batch.how {
                How::Ack => {
                    Settling::Ack(Ack { handle, partition, sub_epoch, leader_epoch, started, runs })
                }
                How::Return(action) => Settling::Return(Return {
                    handle,
                    partition,
                    sub_epoch,
                    leader_epoch,
                    started,
                    runs,
                    action: action.clone(),
                }),
            };
            return Some((settling, partition, batch.number));
        }
        None
    }

    pub(crate) fn settled(
        &mut self,
        now: Duration,
        partition: PartitionId,
        number: u64,
        reply: Result<Answered, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        if let Some(lane) = self.lanes.get_mut(&partition) {
            lane.answered(now, number, reply, wakes);
            // Acks may have waited for this answer.
            self.look = true;
        }
        self.settle_drains(wakes);
    }

    /// The renewal to send, if it is time.
    pub(crate) fn renewal(&mut self, now: Duration) -> Option<Renew> {
        if self.phase != Phase::Attached || self.grants.is_empty() || self.renew_at > now {
            return None;
        }
        self.renew_at = now + self.renew_every;
        let holding = self.lanes.values().filter(|lane| !lane.leases.is_empty());
        let started: Vec<_> = holding.map(|lane| (lane.partition(), lane.started())).collect();
        (!started.is_empty()).then_some(Renew { handle: self.handle, started })
    }

    fn window(&self) -> Amount {
        Amount {
            messages: self.options.prefetch_messages.into(),
            bytes: self.options.prefetch_bytes.into(),
        }
    }

    /// Whether credit is to be sent: a quarter of the window is to be given back, or the broker has none left while
    /// the application waits.
    pub(crate) fn owes_credit(&self) -> bool {
        let (window, back) = (self.window(), self.returnable);
        if self.phase != Phase::Attached || self.wish != Wish::Run || back.messages == 0 {
            return false;
        }
        let mut used = self.outstanding;
        used.add(back);
        back.messages >= window.messages / 4
            || back.bytes >= window.bytes / 4
            || (self.waker.is_some()
                && (used.messages >= window.messages || used.bytes >= window.bytes))
    }

    pub(crate) fn credit(&mut self) -> Option<Credit> {
        if !self.owes_credit() {
            return None;
        }
        let Amount { messages, bytes } = self.returnable;
        let credit = Credit {
            handle: self.handle,
            messages: u32::try_from(messages).unwrap_or(u32::MAX),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        };
        self.returnable.messages -= u64::from(credit.messages);
        self.returnable.bytes -= u64::from(credit.bytes);
        Some(credit)
    }

    // The application's side.

    /// The next thing for the application, or its waker is kept.
    pub(crate) fn poll_handed(&mut self, cx: &Context<'_>) -> Poll<Option<Handed>> {
        if let Some(handed) = self.queue.pop_front() {
            return Poll::Ready(Some(handed));
        }
        if self.phase == Phase::Ended || self.wish != Wish::Run {
            return Poll::Ready(None);
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// No more messages; what waits here is given back.
    pub(crate) fn stop(&mut self, wakes: &mut Wakes) {
        self.wish_for(Wish::Stop, wakes);
    }

    fn wish_for(&mut self, wish: Wish, wakes: &mut Wakes) {
        self.wish = self.wish.max(wish);
        for handed in std::mem::take(&mut self.queue) {
            match handed {
                Handed::Grant(granted) => self.refuse(&granted),
                Handed::Ended(_) => self.queue.push_back(handed),
            }
        }
        self.look = true;
        if let Some(waker) = self.waker.take() {
            wakes.push(waker);
        }
    }

    /// As [`Self::stop`]; `done` is answered when all that was taken is settled and answered.
    pub(crate) fn drain(&mut self, done: Promise<()>, wakes: &mut Wakes) {
        self.wish_for(Wish::Stop, wakes);
        self.draining.retain(|waiting| !waiting.is_abandoned());
        self.draining.push(done);
        self.settle_drains(wakes);
    }

    /// No more messages; leaves when the outcomes so far are answered. `done` is answered then.
    pub(crate) fn leave(&mut self, done: Promise<()>, wakes: &mut Wakes) {
        self.wish_for(Wish::Leave, wakes);
        if self.phase == Phase::Ended {
            done.fulfil((), wakes);
        } else {
            self.draining.push(done);
        }
    }

    pub(crate) fn release(&mut self, wakes: &mut Wakes) {
        self.released = true;
        self.wish_for(Wish::Stop, wakes);
    }

    /// Deliveries without an outcome, and outcomes without an answer.
    pub(crate) fn unsettled(&self) -> u64 {
        let on_their_way: u64 = self.lanes.values().map(Lane::on_their_way).sum();
        self.outstanding.messages - self.let_go + on_their_way
    }

    fn settle_drains(&mut self, wakes: &mut Wakes) {
        let drained = self.phase == Phase::Ended
            || (self.wish == Wish::Stop && !self.draining.is_empty() && self.unsettled() == 0);
        if drained {
            for done in self.draining.drain(..) {
                done.fulfil((), wakes);
            }
        }
    }

    /// Whether to leave now. The desks have been cleared before.
    pub(crate) fn next_leave(&mut self) -> bool {
        if self.phase != Phase::Attached {
            return false;
        }
        let answered = self.lanes.values().all(|lane| lane.batches.is_empty());
        let settled = self.released && self.unsettled() == 0;
        let leaves = answered && (self.wish == Wish::Leave || settled) && !self.acks_wait();
        if leaves {
            self.phase = Phase::Leaving;
        }
        leaves
    }

    fn acks_wait(&self) -> bool {
        self.lanes.values().any(|lane| lane.desk.with(|desk| !desk.is_empty()))
    }

    /// It has left, or could not.
    pub(crate) fn left(&mut self, wakes: &mut Wakes) {
        if self.phase == Phase::Leaving {
            self.phase = Phase::Attached;
            self.end(ErrorBody::new(ErrorCode::ShuttingDown, "the consumer was closed"), wakes);
        }
    }

    /// Whether nothing is left of it: the application has no part of it, and the broker is told all.
    pub(crate) fn is_gone(&self) -> bool {
        self.released
            && match self.phase {
                Phase::Ended => true,
                Phase::Detached => self.identity.is_none() || self.unsettled() == 0,
                _ => false,
            }
    }

    /// Whether outcomes wait for the broker, or it must be told that the consumer leaves.
    pub(crate) fn has_business(&self) -> bool {
        self.phase != Phase::Ended && (self.released || self.wish == Wish::Leave)
    }

    /// What must hold between calls.
    pub(crate) fn check_invariants(&self) {
        let mut sum = Amount::default();
        for open in self.grants.values() {
            assert!(open.left.messages > 0, "a grant that is done with is forgotten");
            sum.add(open.left);
        }
        assert_eq!(sum, self.outstanding, "credit is what the grants hold");
        let (mut leased, mut let_go) = (0, 0);
        for piece in self.lanes.values().flat_map(|lane| lane.leases.pieces()) {
            let count = u64::from(piece.leased.count);
            leased += count;
            let_go += if piece.leased.let_go { count } else { 0 };
            assert!(self.grants.contains_key(&piece.leased.grant), "a lease came with a grant");
        }
        assert!(leased <= self.outstanding.messages, "a lease holds credit");
        assert_eq!(let_go, self.let_go);
    }
}

/// A request that settles messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Settling {
    Ack(Ack),
    Return(Return),
}

impl Amount {
    /// What a hand-out takes from the credit: its messages, and the bytes of its entries.
    fn of(runs: &[LeaseRun], entries: &[u8]) -> Self {
        Self {
            messages: runs.iter().map(|run| u64::from(run.count)).sum(),
            bytes: u64::try_from(entries.len()).expect("a length fits"),
        }
    }

    fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }

    fn less(self, less: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(less.messages),
            bytes: self.bytes.saturating_sub(less.bytes),
        }
    }
}

/// Checks every header, that offsets rise, and that each leased message lies in an entry. Else: where, and why.
fn check(entries: &[u8], runs: &[LeaseRun]) -> Result<(), (u64, &'static str)> {
    let mut runs = runs.iter().map(|run| run.first.0..end_of(run));
    let mut wanted = runs.next().unwrap_or_default();
    let (mut rest, mut end) = (entries, 0);
    while !rest.is_empty() {
        let header = EntryHeader::decode(rest)
            .map_err(|_damaged| (wanted.start, "an entry header is damaged"))?;
        if header.kind != EntryKind::Data {
            return Err((wanted.start, "an entry that holds no messages was leased"));
        }
        let own = header.base_offset.0..header.end_offset().0;
        if own.start < end || own.end <= own.start {
            return Err((own.start, "the offsets of entries do not rise"));
        }
        while !wanted.is_empty() && own.contains(&wanted.start) {
            wanted.start = own.end.min(wanted.end);
            if wanted.is_empty() {
                wanted = runs.next().unwrap_or_default();
            }
        }
        end = own.end;
        let total = usize::try_from(header.total_len).unwrap_or(usize::MAX);
        rest = rest.get(total..).ok_or((own.start, "the last entry is cut"))?;
    }
    if wanted.is_empty() { Ok(()) } else { Err((wanted.start, "a leased message is missing")) }
}
