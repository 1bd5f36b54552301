//! Owns outcomes on their way: [`Lane`] is one partition of a consumer with its leases and the requests that settle
//! messages. Never decides when to send (the consumer does). Driven by the consumer's state machine.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use postrider_protocol::{
    error::{ErrorBody, ErrorCode, Retry},
    message::{
        AckReply, AckRun, ConsumedPartition, HeldLeases, LeaseRun, RUNS_MAX, ReturnAction,
        ReturnReply, SettleException, SettleProblem,
    },
    types::{EntryIndex, LeaderEpoch, Offset, PartitionId},
};

use super::{
    RETRY_WAIT,
    desk::{Bell, Completion, Desk, Given, Item, SettleFailure, Settlement},
    leases::{Leased, Leases, Piece, end_of, len, push_run, split},
};
use crate::core::completion::Wakes;

/// Acks of one partition on their way at once. More of them wait on the desk, and so does their credit.
const ACKS_IN_FLIGHT_MAX: usize = 8;

/// One partition of a consumer.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) desk: Arc<Desk>,
    pub(crate) sub_epoch: u64,
    pub(crate) leader_epoch: LeaderEpoch,
    /// One past the highest dispatch number that the application took in this attachment.
    pub(crate) started: Arc<AtomicU64>,
    pub(crate) leases: Leases,
    /// Bounded by [`ACKS_IN_FLIGHT_MAX`], and for returns by the messages in the application's hands.
    pub(crate) batches: VecDeque<Batch>,
    /// Until then nothing is repeated.
    pub(crate) retry_at: Option<Duration>,
}

/// Messages that are settled by one request.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) how: How,
    pub(crate) runs: Vec<AckRun>,
    /// What was lost before and is not asked for.
    lost: Vec<Item>,
    completion: Arc<Completion>,
    pub(crate) sub_epoch: u64,
    pub(crate) in_flight: bool,
    /// It was sent before, and the answer never came: the broker may have done it.
    repeated: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum How {
    Ack,
    Return(ReturnAction),
}

/// What the broker answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answered {
    /// The index behind the entry that holds it; 0 if nothing was stored.
    pub(crate) commit_index: EntryIndex,
    pub(crate) exceptions: Vec<SettleException>,
}

impl From<AckReply> for Answered {
    fn from(AckReply { commit_index, exceptions }: AckReply) -> Self {
        Self { commit_index, exceptions }
    }
}

impl From<ReturnReply> for Answered {
    fn from(ReturnReply { commit_index, exceptions }: ReturnReply) -> Self {
        Self { commit_index, exceptions }
    }
}

/// What came off a desk.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Grant and count of messages that the application is done with.
    pub(crate) done: Vec<(u64, u32)>,
    /// Messages that it let go, with their leases.
    pub(crate) let_go: u64,
    /// Acks stay on the desk until an answer comes.
    pub(crate) acks_wait: bool,
}

impl Lane {
    pub(crate) fn new(at: &ConsumedPartition, bell: Arc<Bell>) -> Self {
        Self {
            desk: Arc::new(Desk::new(at.partition, bell)),
            sub_epoch: at.sub_epoch,
            leader_epoch: at.leader_epoch,
            started: Arc::default(),
            leases: Leases::default(),
            batches: VecDeque::new(),
            retry_at: None,
        }
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.desk.partition()
    }

    pub(crate) fn started(&self) -> u64 {
        self.started.load(Ordering::Acquire)
    }

    /// How many messages have an outcome on its way.
    pub(crate) fn on_their_way(&self) -> u64 {
        self.batches.iter().flat_map(|batch| &batch.runs).map(|run| u64::from(run.count)).sum()
    }

    /// Takes outcomes off the desk and makes requests of them. `ready` acks at least are worth a request while
    /// others are on their way. `is_current` says whether a grant is of the present epochs.
    pub(crate) fn clear_desk(
        &mut self,
        ready: u64,
        next_batch: &mut u64,
        is_current: impl Fn(u64) -> bool,
        wakes: &mut Wakes,
    ) -> Taken {
        let acks_on_their_way = self.batches.iter().filter(|batch| batch.how == How::Ack).count();
        let mut taken = Taken::default();
        let (acks, returns, held) = self.desk.with(|desk| {
            if desk.is_empty() {
                return (None, Vec::new(), Vec::new());
            }
            let send = acks_on_their_way == 0
                || (acks_on_their_way < ACKS_IN_FLIGHT_MAX && desk.acks_count >= ready);
            taken.acks_wait = !send && !desk.acks.is_empty();
            let acks = (send && !desk.acks.is_empty()).then(|| {
                desk.acks_count = 0;
                (std::mem::take(&mut desk.acks), std::mem::take(&mut desk.acked))
            });
            (acks, std::mem::take(&mut desk.returns), std::mem::take(&mut desk.held))
        });
        if let Some((mut items, completion)) = acks {
            items.sort_unstable();
            let (runs, lost) = self.resolve(&items, &is_current);
            taken.done.extend(items.iter().map(|item| (item.grant, item.count)));
            self.push(How::Ack, runs, lost, completion, next_batch, wakes);
        }
        for Given { action, mut items, completion } in returns {
            items.sort_unstable();
            let (runs, lost) = self.resolve(&items, |_| false);
            taken.done.extend(items.iter().map(|item| (item.grant, item.count)));
            self.push(How::Return(action), runs, lost, completion, next_batch, wakes);
        }
        for item in held {
            let count = self.leases.let_go(item.first..item.end(), item.grant);
            taken.let_go += count;
            if count == 0 {
                taken.done.push((item.grant, item.count));
            }
        }
        taken
    }

    /// The runs that the broker is to be told, and what is lost already. A message whose lease has ended may still
    /// be acknowledged, as long as nobody else has it: `late` says for which grants to try.
    fn resolve(&mut self, items: &[Item], late: impl Fn(u64) -> bool) -> (Vec<AckRun>, Vec<Item>) {
        let (mut runs, mut lost) = (Vec::new(), Vec::new());
        for item in items {
            let mut at = item.first;
            let Self { leases, .. } = self;
            let mut gaps: Vec<Range<u64>> = Vec::new();
            leases.take(
                item.first..item.end(),
                |leased| leased.grant == item.grant,
                |piece| {
                    let range = piece.range();
                    if at < range.start {
                        gaps.push(at..range.start);
                    }
                    at = range.end;
                    push_run(&mut runs, &range, piece.leased.attempt);
                },
            );
            if at < item.end() {
                gaps.push(at..item.end());
            }
            for gap in gaps {
                if late(item.grant) && !leases.touches(&gap) {
                    push_run(&mut runs, &gap, item.attempt);
                } else {
                    let count = len(gap.start, gap.end);
                    lost.push(Item { first: gap.start, count, ..*item });
                }
            }
        }
        (tidied(runs), lost)
    }

    fn push(
        &mut self,
        how: How,
        runs: Vec<AckRun>,
        lost: Vec<Item>,
        completion: Arc<Completion>,
        next_batch: &mut u64,
        wakes: &mut Wakes,
    ) {
        if runs.is_empty() {
            completion.complete(
                Settlement::Done { lost, exceptions: Vec::new(), commit_index: EntryIndex(0) },
                wakes,
            );
            return;
        }
        *next_batch += 1;
        self.batches.push_back(Batch {
            number: *next_batch,
            how,
            runs,
            lost,
            completion,
            sub_epoch: self.sub_epoch,
            in_flight: false,
            repeated: false,
        });
    }

    /// Gives back what was leased and nobody here waits for.
    pub(crate) fn release(&mut self, runs: Vec<AckRun>, next_batch: &mut u64, wakes: &mut Wakes) {
        let how = How::Return(ReturnAction::Release);
        self.push(how, runs, Vec::new(), Arc::default(), next_batch, wakes);
    }

    /// The next request to send.
    pub(crate) fn next_batch(&mut self, now: Duration) -> Option<&Batch> {
        if self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        self.retry_at = None;
        let batch = self.batches.iter_mut().find(|batch| !batch.in_flight)?;
        batch.in_flight = true;
        Some(batch)
    }

    /// The broker's answer to a request.
    pub(crate) fn answered(
        &mut self,
        now: Duration,
        number: u64,
        reply: Result<Answered, ErrorBody>,
        wakes: &mut Wakes,
    ) {
        let Some(at) = self.batches.iter().position(|batch| batch.number == number) else { return };
        let settlement = match reply {
            Ok(Answered { commit_index, exceptions }) => {
                let batch = &mut self.batches[at];
                // The first sending of a repeated ack may have done it.
                let own_ack = batch.repeated && batch.how == How::Ack;
                let exceptions = exceptions
                    .into_iter()
                    .filter(|it| !(own_ack && it.problem == SettleProblem::AlreadyAcked));
                let lost = std::mem::take(&mut batch.lost);
                Settlement::Done { lost, exceptions: exceptions.collect(), commit_index }
            }
            Err(error) if error.code == ErrorCode::StaleSubscriptionEpoch => {
                Settlement::Failed(SettleFailure::Problem(SettleProblem::LeaseLost))
            }
            Err(error) if error.code.retry() == Retry::Never => {
                Settlement::Failed(SettleFailure::Refused(error))
            }
            Err(error) => {
                let wait = Duration::from_millis(u64::from(error.retry_after_ms)).max(RETRY_WAIT);
                self.retry_at = Some(now + wait);
                let batch = &mut self.batches[at];
                (batch.in_flight, batch.repeated) = (false, true);
                return;
            }
        };
        if let Some(batch) = self.batches.remove(at) {
            batch.completion.complete(settlement, wakes);
        }
    }

    /// The connection is gone: what has no answer is sent again.
    pub(crate) fn disconnected(&mut self) {
        self.retry_at = None;
        for batch in &mut self.batches {
            batch.repeated |= batch.in_flight;
            batch.in_flight = false;
        }
    }

    /// What a reconnect tells the broker: the leases, and what is on its way.
    pub(crate) fn held(&self) -> Option<HeldLeases> {
        let mut held = Leases::default();
        let own = self.leases.pieces();
        let current = |batch: &&Batch| batch.sub_epoch == self.sub_epoch;
        // A message may be in two batches if its lease was lost and given again; the newer one counts.
        let batches = self.batches.iter().rev().filter(current).flat_map(|batch| &batch.runs);
        let leased = |run: &AckRun| Leased {
            count: run.count,
            grant: 0,
            attempt: run.attempt,
            let_go: false,
        };
        let batches = batches.map(|run| Piece { first: run.first.0, leased: leased(run) });
        for piece in own.chain(batches) {
            if !held.touches(&piece.range()) {
                held.insert(piece);
            }
        }
        let mut runs = Vec::new();
        for piece in held.pieces() {
            push_run(&mut runs, &piece.range(), piece.leased.attempt);
        }
        // What is not named is lost. That many runs are only there if messages are settled in a wild order, and
        // none of them is answered.
        runs.truncate(usize::try_from(RUNS_MAX).expect("a usize has at least 32 bits"));
        (!runs.is_empty()).then(|| HeldLeases {
            partition: self.partition(),
            sub_epoch: self.sub_epoch,
            leader_epoch: self.leader_epoch,
            runs,
        })
    }

    /// Attached again. Calls `gone` with the leases that are lost.
    pub(crate) fn resumed(
        &mut self,
        at: &ConsumedPartition,
        next_batch: &mut u64,
        gone: impl FnMut(Piece),
        wakes: &mut Wakes,
    ) {
        self.leader_epoch = at.leader_epoch;
        // The dispatch numbers of an attachment begin at 0.
        self.started = Arc::default();
        self.set_epoch(at.sub_epoch, wakes);
        let surplus = self.surplus(&at.held);
        self.leases.keep(&at.held, gone);
        for batch in &mut self.batches {
            batch.refresh(&at.held);
        }
        self.release(surplus, next_batch, wakes);
    }

    /// What the broker thinks is held here, and is not.
    fn surplus(&self, held: &[LeaseRun]) -> Vec<AckRun> {
        let mut own: Vec<LeaseRun> = Vec::new();
        let leases = self.leases.pieces().map(|piece| piece.range());
        let batches = self.batches.iter().flat_map(|batch| &batch.runs);
        let batches = batches.map(|run| run.first.0..run.first.0 + u64::from(run.count));
        let mut ranges: Vec<_> = leases.chain(batches).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        for range in ranges {
            let count = len(range.start, range.end);
            own.push(LeaseRun { first: Offset(range.start), count, attempt: 0, failures: 0 });
        }
        let mut surplus = Vec::new();
        for run in held {
            let range = run.first.0..end_of(run);
            split(&range, &own, |part, known| {
                if known.is_none() {
                    push_run(&mut surplus, &part, run.attempt);
                }
            });
        }
        surplus
    }

    /// A seek or a purge makes everything before it void.
    pub(crate) fn set_epoch(&mut self, sub_epoch: u64, wakes: &mut Wakes) {
        if self.sub_epoch == sub_epoch {
            return;
        }
        self.sub_epoch = sub_epoch;
        let lost = SettleFailure::Problem(SettleProblem::LeaseLost);
        // For those on their way the broker answers.
        let stale = |batch: &Batch| batch.sub_epoch != sub_epoch && !batch.in_flight;
        let (stale, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.batches).into_iter().partition(stale);
        self.batches = kept;
        for batch in stale {
            batch.completion.complete(Settlement::Failed(lost.clone()), wakes);
        }
    }

    /// Nothing can be settled any more.
    pub(crate) fn end(&mut self, wakes: &mut Wakes) {
        for batch in self.batches.drain(..) {
            batch.completion.complete(Settlement::Failed(SettleFailure::Ended), wakes);
        }
        self.desk.end(wakes);
    }
}

/// Runs in order, neighbours joined.
fn tidied(mut runs: Vec<AckRun>) -> Vec<AckRun> {
    if runs.is_sorted_by_key(|run| run.first) {
        return runs;
    }
    runs.sort_unstable_by_key(|run| run.first);
    let mut tidy = Vec::with_capacity(runs.len());
    for run in runs {
        push_run(&mut tidy, &(run.first.0..run.first.0 + u64::from(run.count)), run.attempt);
    }
    tidy
}

impl Batch {
    /// Takes over the attempts that count now. What the broker does not hold any more is asked for as it was: it may
    /// be settled by the first sending, and only the broker knows.
    fn refresh(&mut self, held: &[LeaseRun]) {
        let mut fresh = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let range = run.first.0..run.first.0 + u64::from(run.count);
            split(&range, held, |part, attempt| {
                push_run(&mut fresh, &part, attempt.unwrap_or(run.attempt));
            });
        }
        self.runs = fresh;
    }
}
