//! Owns one subscription as the client sees it: what is wanted, how far each partition has come, what waits
//! for the application, credit, acks. Never decodes a record, never writes a frame. Driven by the engine: the
//! application's calls, replies, events, the loss of the connection.
//!
//! ```text
//! detached ── asked ──► attaching ── reply ──► attached ──► ended (taken over, refused, closed)
//!    ▲                      │                     │
//!    └──── connection lost, or refused for now ───┘
//! ```

mod member;

pub use member::MemberOptions;

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use postrider_protocol::{
    entry::{EntryHeader, EntryKind},
    error::{ErrorBody, ErrorCode, Retry},
    message::{
        AckUpTo, Credit, Deliver, Gap, GapReason, Seeked, Start, Subscribe, SubscribeReply,
        SubscribedPartition,
    },
    types::{Offset, PartitionId, SubscriptionHandle, TopicId},
};

use self::member::Member;
use super::completion::{Promise, Wakes};

/// The wait before a refused attach is repeated.
const ATTACH_WAIT: Duration = Duration::from_millis(100);

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscriptionOptions {
    /// The topic.
    pub topic: String,
    /// The partitions; empty means all.
    pub partitions: Vec<PartitionId>,
    /// The name of a durable subscription; `None` is an ephemeral one.
    pub name: Option<String>,
    /// Where to start. Durable: only when the subscription is created by this attach.
    pub start: Start,
    /// How many messages may be on their way or waiting for the application.
    pub prefetch_messages: u32,
    /// How many bytes may be on their way or waiting for the application.
    pub prefetch_bytes: u32,
}

/// Where a partition stood when the subscription was attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachedPartition {
    /// The partition.
    pub partition: PartitionId,
    /// The first offset that will be delivered.
    pub next: Offset,
    /// The first kept offset.
    pub log_start: Offset,
    /// The end of what could be read at that moment.
    pub high_watermark: Offset,
}

/// What waits for the application.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// Messages.
    Run(Run),
    /// Offsets that were wanted and are gone.
    Gap {
        /// The partition.
        partition: PartitionId,
        /// The first missing offset.
        from: Offset,
        /// One past the last missing offset.
        to: Offset,
        /// Why.
        reason: GapReason,
    },
    /// Somebody moved the durable subscription.
    Seeked {
        /// The partition.
        partition: PartitionId,
        /// The next offset that will be delivered.
        next: Offset,
    },
    /// A partition is this member's: its messages follow.
    Assigned(AttachedPartition),
    /// Nothing more of a partition comes; it is to be released once its messages are processed.
    Revoked {
        /// The partition.
        partition: PartitionId,
        /// After this long it is lost.
        drain: Duration,
    },
    /// A partition is another member's; what was not acknowledged is delivered there.
    Lost {
        /// The partition.
        partition: PartitionId,
    },
    /// The last thing ever: why it ended.
    Ended(ErrorBody),
}

/// Entries as the broker delivered them.
#[derive(Clone, Debug)]
pub struct Run {
    /// The partition.
    pub partition: PartitionId,
    /// The ownership under which they were delivered.
    pub owner_epoch: u64,
    /// The first wanted offset; the first entry may begin below it.
    pub first: Offset,
    /// One past the last message.
    pub end: Offset,
    /// The end of what could be read when they were sent.
    pub high_watermark: Offset,
    /// The stored entries. Headers are checked, bodies are not.
    pub entries: Bytes,
}

/// Why an ack failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AckFailure {
    /// The broker refused it.
    Refused(ErrorBody),
    /// The message was delivered to an earlier ownership, or before a seek.
    Stale,
    /// The subscription has ended.
    Ended,
    /// The partition is not one of the subscription's.
    UnknownPartition,
}

/// An event that no correct broker sends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeliveryFault {
    /// The entries do not begin where the last ones ended.
    #[error("partition {partition} was expected from offset {expected}, offset {got} came")]
    Discontinuous {
        /// The partition.
        partition: PartitionId,
        /// The offset after the last message.
        expected: Offset,
        /// The offset that came.
        got: Offset,
    },
    /// The bytes are not entries.
    #[error("partition {partition} at offset {at}: {why}")]
    Entries {
        /// The partition.
        partition: PartitionId,
        /// The offset where they should have begun.
        at: Offset,
        /// What is wrong.
        why: &'static str,
    },
}

#[derive(Debug)]
pub(crate) struct Subscription {
    handle: SubscriptionHandle,
    options: SubscriptionOptions,
    phase: Phase,
    retry_at: Option<Duration>,
    topic: Option<TopicId>,
    positions: BTreeMap<PartitionId, Position>,
    /// Bounded by the credit that the broker has, plus the batches that it may finish.
    queue: VecDeque<Incoming>,
    queued: Amount,
    /// Taken by the application and not yet given back to the broker as credit.
    returnable: Amount,
    waker: Option<Waker>,
    attached: Option<Attached>,
    /// Some partition may have an ack to send.
    acks_wanted: bool,
    /// It is a member of a consumer group: its partitions come and go.
    member: Option<Member>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Detached,
    Attaching,
    Attached,
    Ended,
}

/// Credit, or what was delivered against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Amount {
    messages: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Attached {
    promise: Promise<Result<Vec<AttachedPartition>, ErrorBody>>,
    deadline: Duration,
}

#[derive(Debug)]
struct Position {
    next: Offset,
    owner_epoch: u64,
    /// The oldest ownership from which nothing has come between: no other owner, no seek. Messages delivered
    /// since then may still be acknowledged.
    continuous_from: u64,
    acks: Acks,
    /// It is to be given back.
    is_revoked: bool,
    /// The application has finished with it: to be given back behind its acks.
    is_released: bool,
}

#[derive(Debug, Default)]
struct Acks {
    /// Everything below is acknowledged, as far as this attachment and the ones before it know.
    confirmed: Option<Offset>,
    /// The highest offset asked for and not yet sent.
    wanted: Option<Offset>,
    sent: Option<Offset>,
    /// Bounded by the application's acks that it still holds, since abandoned ones are dropped.
    waiting: Vec<(Offset, Promise<Result<(), AckFailure>>)>,
}

impl Subscription {
    pub(crate) fn new(
        handle: SubscriptionHandle,
        options: SubscriptionOptions,
        promise: Promise<Result<Vec<AttachedPartition>, ErrorBody>>,
        deadline: Duration,
    ) -> Self {
        Self {
            handle,
            options,
            phase: Phase::Detached,
            retry_at: None,
            topic: None,
            positions: BTreeMap::new(),
            queue: VecDeque::new(),
            queued: Amount::default(),
            returnable: Amount::default(),
            waker: None,
            attached: Some(Attached { promise, deadline }),
            acks_wanted: false,
            member: None,
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.phase == Phase::Attached
    }

    // The connection's side.

    pub(crate) fn disconnected(&mut self, wakes: &mut Wakes) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Detached;
        self.retry_at = None;
        self.returnable = Amount::default();
        if self.member.is_some() {
            self.lose_everything(wakes);
            return;
        }
        for position in self.positions.values_mut() {
            if let Some(sent) = position.acks.sent.take() {
                position.acks.wanted = position.acks.wanted.max(Some(sent));
                self.acks_wanted = true;
            }
        }
        if self.options.name.is_some() {
            // The broker delivers again from the acked offset.
            self.queue.clear();
            self.queued = Amount::default();
        }
    }

    fn may_ask(&self, now: Duration) -> bool {
        self.phase == Phase::Detached && self.retry_at.is_none_or(|at| at <= now)
    }

    /// The attach to ask for, if it is time.
    pub(crate) fn question(&mut self, now: Duration) -> Option<Subscribe> {
        if self.member.is_some() || !self.may_ask(now) {
            return None;
        }
        self.phase = Phase::Attaching;
        self.retry_at = None;
        // The attach asks for the whole window without what still waits here.
        self.returnable = Amount::default();
        let resumes = self.options.name.is_none() && !self.positions.is_empty();
        let (partitions, start) = if resumes {
            let offsets = self.positions.iter().map(|(id, position)| (*id, position.next));
            (self.positions.keys().copied().collect(), Start::PerPartition(offsets.collect()))
        } else {
            (self.options.partitions.clone(), self.options.start.clone())
        };
        Some(Subscribe {
            handle: self.handle,
            topic: self.options.topic.clone(),
            partitions,
            name: self.options.name.clone(),
            start,
            credit_messages: left(self.options.prefetch_messages, self.queued.messages),
            credit_bytes: left(self.options.prefetch_bytes, self.queued.bytes),
        })
    }

    pub(crate) fn answered(
        &mut self,
        now: Duration,
        reply: Result<SubscribeReply, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        if self.phase != Phase::Attaching {
            return;
        }
        match reply {
            Ok(reply) if self.topic.is_some_and(|topic| topic != reply.topic) => {
                let text = format!(
                    "the topic \"{}\" was deleted and created again: open it again",
                    self.options.topic
                );
                self.end(ErrorBody::new(ErrorCode::UnknownTopic, text), wakes);
            }
            Ok(reply) => self.attach(&reply, wakes),
            Err(error) => self.refused(now, error, wakes),
        }
    }

    fn refused(&mut self, now: Duration, error: ErrorBody, wakes: &mut Wakes) {
        match error {
            error if error.code.retry() == Retry::Never => self.end(error, wakes),
            // Who opens it named a partition that is not there: waiting until somebody adds it
            // would hide the mistake. Later on it can only be news that have not spread yet.
            error if self.attached.is_some() && error.code == ErrorCode::UnknownPartition => {
                self.end(error, wakes);
            }
            error => {
                let wait = Duration::from_millis(u64::from(error.retry_after_ms)).max(ATTACH_WAIT);
                self.phase = Phase::Detached;
                self.retry_at = Some(now + wait);
            }
        }
    }

    fn attach(&mut self, reply: &SubscribeReply, wakes: &mut Wakes) {
        self.phase = Phase::Attached;
        self.topic = Some(reply.topic);
        for partition in &reply.partitions {
            self.place(partition, wakes);
        }
        if let Some(attached) = self.attached.take() {
            let partitions = reply.partitions.iter().map(|at| AttachedPartition {
                partition: at.partition,
                next: at.next,
                log_start: at.log_start,
                high_watermark: at.high_watermark,
            });
            attached.promise.fulfil(Ok(partitions.collect()), wakes);
        }
    }

    fn place(&mut self, at: &SubscribedPartition, wakes: &mut Wakes) {
        let Some(position) = self.positions.get_mut(&at.partition) else {
            let position = Position {
                next: at.next,
                owner_epoch: at.owner_epoch,
                continuous_from: at.owner_epoch,
                acks: Acks::default(),
                is_revoked: false,
                is_released: false,
            };
            self.positions.insert(at.partition, position);
            return;
        };
        let durable = self.options.name.is_some();
        if durable && at.owner_epoch != position.owner_epoch.saturating_add(1) {
            position.continuous_from = at.owner_epoch;
            position.acks.fail(&AckFailure::Stale, wakes);
        }
        position.owner_epoch = at.owner_epoch;
        if durable {
            position.next = at.next;
        } else if at.next > position.next {
            // The broker could not place it where it was: what lies between is gone.
            let from = std::mem::replace(&mut position.next, at.next);
            let gap = Incoming::Gap {
                partition: at.partition,
                from,
                to: at.next,
                reason: GapReason::Retention,
            };
            self.enqueue(gap, wakes);
        }
    }

    pub(crate) fn delivered(
        &mut self,
        deliver: Deliver,
        wakes: &mut Wakes,
    ) -> Result<(), DeliveryFault> {
        let Deliver { head, entries } = deliver;
        let partition = head.partition;
        let Some(position) = self.positions.get_mut(&partition) else { return Ok(()) };
        if self.phase != Phase::Attached || head.owner_epoch != position.owner_epoch {
            return Ok(());
        }
        if head.next != position.next {
            let (expected, got) = (position.next, head.next);
            return Err(DeliveryFault::Discontinuous { partition, expected, got });
        }
        let end = end_of(&entries, head.next).map_err(|why| DeliveryFault::Entries {
            partition,
            at: head.next,
            why,
        })?;
        position.next = end;
        let run = Run {
            partition,
            owner_epoch: head.owner_epoch,
            first: head.next,
            end,
            high_watermark: head.high_watermark,
            entries,
        };
        self.queued.add(run.amount());
        self.enqueue(Incoming::Run(run), wakes);
        Ok(())
    }

    pub(crate) fn gap(&mut self, gap: &Gap, wakes: &mut Wakes) -> Result<(), DeliveryFault> {
        let Some(position) = self.positions.get_mut(&gap.partition) else { return Ok(()) };
        if self.phase != Phase::Attached {
            return Ok(());
        }
        if gap.from != position.next || gap.to <= gap.from {
            return Err(DeliveryFault::Discontinuous {
                partition: gap.partition,
                expected: position.next,
                got: gap.from,
            });
        }
        position.next = gap.to;
        let (partition, from, to, reason) = (gap.partition, gap.from, gap.to, gap.reason);
        self.enqueue(Incoming::Gap { partition, from, to, reason }, wakes);
        Ok(())
    }

    pub(crate) fn seeked(&mut self, seeked: &Seeked, wakes: &mut Wakes) {
        let Some(position) = self.positions.get_mut(&seeked.partition) else { return };
        if self.phase != Phase::Attached {
            return;
        }
        position.next = seeked.next;
        position.owner_epoch = seeked.owner_epoch;
        position.continuous_from = seeked.owner_epoch;
        position.acks.fail(&AckFailure::Stale, wakes);
        // What waits was delivered for the old place.
        self.drop_queued(seeked.partition);
        let (partition, next) = (seeked.partition, seeked.next);
        self.enqueue(Incoming::Seeked { partition, next }, wakes);
    }

    /// Drops what waits of a partition. Its credit goes back.
    fn drop_queued(&mut self, partition: PartitionId) {
        let mut dropped = Amount::default();
        self.queue.retain(|incoming| match incoming {
            Incoming::Run(run) if run.partition == partition => {
                dropped.add(run.amount());
                false
            }
            Incoming::Gap { partition: of, .. } => *of != partition,
            _ => true,
        });
        self.give_back(dropped);
    }

    /// The broker ended the subscription; for now, or for good.
    pub(crate) fn closed(&mut self, now: Duration, error: ErrorBody, wakes: &mut Wakes) {
        if error.code.retry() == Retry::Never {
            self.end(error, wakes);
        } else {
            let wait = Duration::from_millis(u64::from(error.retry_after_ms)).max(ATTACH_WAIT);
            self.disconnected(wakes);
            self.retry_at = Some(now + wait);
        }
    }

    /// Ends it. What was received before can still be taken.
    pub(crate) fn end(&mut self, error: ErrorBody, wakes: &mut Wakes) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        self.retry_at = None;
        for position in self.positions.values_mut() {
            position.acks.fail(&AckFailure::Ended, wakes);
        }
        if let Some(attached) = self.attached.take() {
            attached.promise.fulfil(Err(error.clone()), wakes);
        }
        self.enqueue(Incoming::Ended(error), wakes);
    }

    /// Ends an attach that took too long.
    pub(crate) fn expire(&mut self, now: Duration, wakes: &mut Wakes) {
        if self.attached.as_ref().is_some_and(|attached| attached.deadline <= now) {
            let text = "no broker answered the subscribe in time; check the address and the broker";
            self.end(ErrorBody::new(ErrorCode::TimedOut, text), wakes);
        }
    }

    pub(crate) fn waits_to_attach(&self) -> bool {
        self.attached.is_some()
    }

    fn enqueue(&mut self, incoming: Incoming, wakes: &mut Wakes) {
        self.queue.push_back(incoming);
        if let Some(waker) = self.waker.take() {
            wakes.push(waker);
        }
    }

    /// Whether credit is to be sent: once a quarter of the window is to be given back. The broker has the
    /// rest of the window, so it need not wait.
    pub(crate) fn owes_credit(&self) -> bool {
        let Amount { messages, bytes } = self.returnable;
        self.phase == Phase::Attached
            && messages > 0
            && (messages >= u64::from(self.options.prefetch_messages / 4)
                || bytes >= u64::from(self.options.prefetch_bytes / 4))
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
    pub(crate) fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Option<Incoming>> {
        if let Some(incoming) = self.take_next() {
            return Poll::Ready(Some(incoming));
        }
        if self.phase == Phase::Ended {
            return Poll::Ready(None);
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    pub(crate) fn take_next(&mut self) -> Option<Incoming> {
        while let Some(mut incoming) = self.queue.pop_front() {
            if let Incoming::Run(run) = &mut incoming {
                self.give_back(run.amount());
                // After a reconnect the broker delivers from where it stood then. An ack that was on
                // its way may be confirmed since, and a confirmed ack is never delivered again.
                let acks = self.positions.get(&run.partition).map(|position| &position.acks);
                let confirmed = acks.and_then(|acks| acks.confirmed).unwrap_or_default();
                if run.end <= confirmed {
                    continue;
                }
                run.first = run.first.max(confirmed);
            }
            return Some(incoming);
        }
        None
    }

    fn give_back(&mut self, amount: Amount) {
        self.queued.messages -= amount.messages;
        self.queued.bytes -= amount.bytes;
        // What is taken between the attach and its reply was not part of the credit that was asked for.
        if matches!(self.phase, Phase::Attaching | Phase::Attached) {
            self.returnable.add(amount);
        }
    }

    /// Acknowledges everything below `up_to` for a message that was delivered under `owner_epoch`.
    pub(crate) fn ack_up_to(
        &mut self,
        partition: PartitionId,
        owner_epoch: u64,
        up_to: Offset,
        promise: Promise<Result<(), AckFailure>>,
        wakes: &mut Wakes,
    ) {
        if self.phase == Phase::Ended {
            promise.fulfil(Err(AckFailure::Ended), wakes);
            return;
        }
        let Some(position) = self.positions.get_mut(&partition) else {
            let failure = match self.member {
                Some(_) => AckFailure::Stale,
                None => AckFailure::UnknownPartition,
            };
            promise.fulfil(Err(failure), wakes);
            return;
        };
        if owner_epoch < position.continuous_from {
            promise.fulfil(Err(AckFailure::Stale), wakes);
            return;
        }
        let acks = &mut position.acks;
        if acks.sent.is_none_or(|sent| sent < up_to) {
            acks.wanted = acks.wanted.max(Some(up_to));
            self.acks_wanted = true;
        }
        acks.waiting.retain(|(_, waiting)| !waiting.is_abandoned());
        acks.waiting.push((up_to, promise));
    }

    /// The next ack to send: one per partition at a time, always the highest.
    pub(crate) fn next_ack(&mut self) -> Option<AckUpTo> {
        if self.phase != Phase::Attached || !self.acks_wanted {
            return None;
        }
        let next = self
            .positions
            .iter_mut()
            .find(|(_, position)| position.acks.sent.is_none() && position.acks.wanted.is_some());
        let Some((partition, position)) = next else {
            self.acks_wanted = false;
            return None;
        };
        let up_to = position.acks.wanted.take()?;
        position.acks.sent = Some(up_to);
        let (handle, owner_epoch) = (self.handle, position.owner_epoch);
        Some(AckUpTo { handle, partition: *partition, owner_epoch, up_to })
    }

    pub(crate) fn ack_answered(
        &mut self,
        partition: PartitionId,
        sent: Offset,
        reply: Result<(), ErrorBody>,
        wakes: &mut Wakes,
    ) {
        let Some(position) = self.positions.get_mut(&partition) else { return };
        if position.acks.sent.take_if(|at| *at == sent).is_none() {
            return;
        }
        self.acks_wanted = true;
        match reply {
            Ok(()) => {
                position.acks.confirmed = position.acks.confirmed.max(Some(sent));
                position.acks.settle(sent, &Ok(()), wakes);
            }
            Err(error) if error.code.retry() != Retry::Never => {
                position.acks.wanted = position.acks.wanted.max(Some(sent));
            }
            Err(error) => position.acks.settle(sent, &Err(AckFailure::Refused(error)), wakes),
        }
    }
}

impl Acks {
    /// Answers those who wait for `up_to` or less.
    fn settle(&mut self, up_to: Offset, outcome: &Result<(), AckFailure>, wakes: &mut Wakes) {
        for (_, promise) in self.waiting.extract_if(.., |(offset, _)| *offset <= up_to) {
            promise.fulfil(outcome.clone(), wakes);
        }
    }

    fn fail(&mut self, failure: &AckFailure, wakes: &mut Wakes) {
        self.wanted = None;
        self.sent = None;
        self.confirmed = None;
        self.settle(Offset(u64::MAX), &Err(failure.clone()), wakes);
    }
}

/// What is left of a window.
fn left(window: u32, used: u64) -> u32 {
    window.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
}

impl Amount {
    fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

impl Run {
    /// What it was delivered against: messages from the first wanted one, whole entries in bytes.
    fn amount(&self) -> Amount {
        Amount {
            messages: self.end.0 - self.first.0,
            bytes: u64::try_from(self.entries.len()).expect("a length fits"),
        }
    }
}

/// The end offset of delivered entries. Checks every header and that offsets rise from `next`, which may lie inside
/// the first entry.
fn end_of(entries: &[u8], next: Offset) -> Result<Offset, &'static str> {
    let (mut rest, mut end) = (entries, next);
    while !rest.is_empty() {
        let header = EntryHeader::decode(rest).map_err(|_damaged| "an entry header is damaged")?;
        if header.kind != EntryKind::Data {
            return Err("an entry that holds no messages was delivered");
        }
        let follows = header.base_offset == end || (end == next && header.base_offset < next);
        if !follows || header.end_offset() <= end {
            return Err("the offsets of entries do not follow each other");
        }
        let total = usize::try_from(header.total_len).unwrap_or(usize::MAX);
        rest = rest.get(total..).ok_or("the last entry is cut")?;
        end = header.end_offset();
    }
    if end == next { Err("no entry was delivered") } else { Ok(end) }
}
