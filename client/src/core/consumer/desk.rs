//! Owns what a consumer's application and the engine share: [`Desk`], where the outcomes of deliveries are laid down
//! without the engine's lock, [`Grant`], which names one hand-out, and `Completion`, which answers who waits for a
//! settlement. Never speaks to a broker. Filled by the application, emptied by the consumer's state machine.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use postrider_protocol::{
    error::ErrorBody,
    message::{ReturnAction, SettleException, SettleProblem},
    types::{EntryIndex, Offset, PartitionId},
};

use crate::core::completion::{Wakes, lock};

/// Why a message was not settled as asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SettleFailure {
    /// The broker says no for this message.
    Problem(SettleProblem),
    /// The broker refused the whole request.
    Refused(ErrorBody),
    /// The consumer has ended before the broker answered.
    Ended,
}

/// What became of messages that were settled together. Completed once, wakes every waiter once.
#[derive(Debug, Default)]
pub(crate) struct Completion(Mutex<Completing>);

#[derive(Debug, Default)]
struct Completing {
    outcome: Option<Settlement>,
    /// One per message that somebody awaits; bounded by the messages that were settled together.
    wakers: Vec<Waker>,
}

/// How a group of messages was settled.
#[derive(Clone, Debug)]
pub(crate) enum Settlement {
    /// All but these.
    Done {
        /// What the broker was not asked about: the lease had ended.
        lost: Vec<Item>,
        /// What the broker did not settle.
        exceptions: Vec<SettleException>,
        /// The index behind the entry that holds it; 0 if nothing was stored.
        commit_index: EntryIndex,
    },
    /// None.
    Failed(SettleFailure),
}

impl Settlement {
    fn of(&self, grant: u64, offset: u64) -> Result<(), SettleFailure> {
        let problem = match self {
            Self::Failed(failure) => return Err(failure.clone()),
            // A message that came twice may be settled twice together: by its grant, one is lost.
            Self::Done { lost, .. } if lost.iter().any(|item| item.covers(grant, offset)) => {
                Some(SettleProblem::LeaseLost)
            }
            Self::Done { exceptions, .. } => exceptions
                .iter()
                .find(|it| (it.first.0..it.first.0 + u64::from(it.count)).contains(&offset))
                .map(|it| it.problem),
        };
        problem.map_or(Ok(()), |problem| Err(SettleFailure::Problem(problem)))
    }
}

impl Completion {
    pub(crate) fn complete(&self, outcome: Settlement, wakes: &mut Wakes) {
        let mut cell = lock(&self.0);
        assert!(cell.outcome.is_none(), "messages are settled once");
        cell.outcome = Some(outcome);
        for waker in cell.wakers.drain(..) {
            wakes.push(waker);
        }
    }
}

/// The answer to one message's outcome.
#[derive(Clone, Debug)]
pub struct Answer {
    completion: Arc<Completion>,
    grant: u64,
    offset: Offset,
}

impl Answer {
    /// The index behind the entry that holds the outcome, once it is answered and if it is stored.
    #[must_use]
    pub fn commit_index(&self) -> Option<EntryIndex> {
        match &lock(&self.completion.0).outcome {
            Some(Settlement::Done { commit_index, .. }) => {
                Some(*commit_index).filter(|index| index.0 > 0)
            }
            _ => None,
        }
    }

    /// How the message was settled, or `cx` is woken when that is known. `place` is the caller's memory of its waker.
    pub fn poll(
        &self,
        place: &mut Option<u32>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), SettleFailure>> {
        let mut cell = lock(&self.completion.0);
        if let Some(outcome) = &cell.outcome {
            return Poll::Ready(outcome.of(self.grant, self.offset.0));
        }
        let own = place.and_then(|at| cell.wakers.get_mut(usize::try_from(at).ok()?));
        if let Some(waker) = own {
            waker.clone_from(cx.waker());
        } else {
            *place = u32::try_from(cell.wakers.len()).ok();
            cell.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Neighbouring messages of one hand-out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Item {
    pub(crate) first: u64,
    pub(crate) count: u32,
    /// The number of the grant that they came with.
    pub(crate) grant: u64,
    /// The attempt that they came with.
    pub(crate) attempt: u32,
}

impl Item {
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    fn covers(&self, grant: u64, offset: u64) -> bool {
        self.grant == grant && (self.first..self.end()).contains(&offset)
    }

    /// Adds `next` behind `last` if they are neighbours.
    fn join(last: Option<&mut Self>, next: &Self) -> bool {
        match last {
            Some(last)
                if last.end() == next.first
                    && (last.grant, last.attempt) == (next.grant, next.attempt) =>
            {
                last.count += next.count;
                true
            }
            _ => false,
        }
    }
}

/// Messages that are given back in the same way.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) action: ReturnAction,
    pub(crate) items: Vec<Item>,
    pub(crate) completion: Arc<Completion>,
}

/// What the application laid down since the desk was emptied. Bounded by the messages in its hands.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) acks: Vec<Item>,
    pub(crate) acked: Arc<Completion>,
    pub(crate) returns: Vec<Given>,
    /// Dropped without an outcome; their leases run on.
    pub(crate) held: Vec<Item>,
    /// How many messages are in `acks`.
    pub(crate) acks_count: u64,
    ended: bool,
}

impl Gathered {
    pub(crate) fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.returns.is_empty() && self.held.is_empty()
    }
}

/// Where the outcomes of one partition's deliveries are laid down.
#[derive(Debug)]
pub struct Desk {
    partition: PartitionId,
    bell: Arc<Bell>,
    gathered: Mutex<Gathered>,
}

/// Whether some desk of a consumer has something new.
#[derive(Debug, Default)]
pub(crate) struct Bell(AtomicBool);

impl Bell {
    /// Whether nobody had rung since the last [`Self::answer`].
    fn ring(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// To be asked before the desks are looked at: what is laid down later rings again.
    pub(crate) fn answer(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// Whether the driver of the engine must be woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Attention {
    /// It knows already, or need not know.
    Given,
    /// It must look.
    Needed,
}

impl Desk {
    pub(crate) fn new(partition: PartitionId, bell: Arc<Bell>) -> Self {
        Self { partition, bell, gathered: Mutex::default() }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    fn ring(&self) -> Attention {
        if self.bell.ring() { Attention::Needed } else { Attention::Given }
    }

    pub(crate) fn ack(&self, item: Item) -> (Arc<Completion>, Attention) {
        let mut gathered = lock(&self.gathered);
        let completion = Arc::clone(&gathered.acked);
        if gathered.ended {
            return (completion, Attention::Given);
        }
        gathered.acks_count += u64::from(item.count);
        if !Item::join(gathered.acks.last_mut(), &item) {
            gathered.acks.push(item);
        }
        drop(gathered);
        (completion, self.ring())
    }

    pub(crate) fn give_back(
        &self,
        item: Item,
        action: ReturnAction,
    ) -> (Arc<Completion>, Attention) {
        let mut gathered = lock(&self.gathered);
        if gathered.ended {
            return (Arc::clone(&gathered.acked), Attention::Given);
        }
        let completion = match gathered.returns.last_mut() {
            Some(last) if last.action == action => {
                if !Item::join(last.items.last_mut(), &item) {
                    last.items.push(item);
                }
                Arc::clone(&last.completion)
            }
            _ => {
                let completion = Arc::<Completion>::default();
                let given =
                    Given { action, items: vec![item], completion: Arc::clone(&completion) };
                gathered.returns.push(given);
                completion
            }
        };
        drop(gathered);
        (completion, self.ring())
    }

    pub(crate) fn hold(&self, item: Item) -> Attention {
        let mut gathered = lock(&self.gathered);
        if gathered.ended {
            return Attention::Given;
        }
        gathered.held.push(item);
        drop(gathered);
        self.ring()
    }

    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut Gathered) -> R) -> R {
        call(&mut lock(&self.gathered))
    }

    /// Nothing can be settled any more: whoever waits, and whoever comes later, learns that.
    pub(crate) fn end(&self, wakes: &mut Wakes) {
        let mut gathered = lock(&self.gathered);
        if gathered.ended {
            return;
        }
        gathered.ended = true;
        let ended = Settlement::Failed(SettleFailure::Ended);
        gathered.acked.complete(ended.clone(), wakes);
        for given in gathered.returns.drain(..) {
            given.completion.complete(ended.clone(), wakes);
        }
        gathered.acks.clear();
        gathered.held.clear();
    }
}

/// One hand-out of the broker: what its messages have in common.
#[derive(Debug)]
pub struct Grant {
    pub(crate) number: u64,
    pub(crate) desk: Arc<Desk>,
    pub(crate) dispatch_number: u64,
    /// One past the last entry that the leader had applied when it handed these out.
    pub(crate) dispatch_index: EntryIndex,
    /// One past the highest dispatch number that the application took, in its attachment.
    pub(crate) started: Arc<AtomicU64>,
    any_lost: AtomicBool,
    lost: Mutex<Vec<Range<u64>>>,
}

impl Grant {
    pub(crate) fn new(
        number: u64,
        desk: Arc<Desk>,
        (dispatch_number, dispatch_index): (u64, EntryIndex),
        started: Arc<AtomicU64>,
    ) -> Self {
        let (any_lost, lost) = (AtomicBool::new(false), Mutex::default());
        Self { number, desk, dispatch_number, dispatch_index, started, any_lost, lost }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.desk.partition()
    }

    /// Whether the lease of a message ended without its consumer, as far as is known here.
    #[must_use]
    pub fn is_lost(&self, offset: Offset) -> bool {
        self.any_lost.load(Ordering::Acquire)
            && lock(&self.lost).iter().any(|range| range.contains(&offset.0))
    }

    pub(crate) fn lose(&self, range: Range<u64>) {
        lock(&self.lost).push(range);
        self.any_lost.store(true, Ordering::Release);
    }

    /// The application takes the `nth` message, from 0.
    pub fn start(&self, nth: u64) {
        // One consumer takes the messages of a grant, in order, and grants come in order.
        self.started.fetch_max(self.dispatch_number + nth + 1, Ordering::Release);
    }

    fn item(&self, offset: Offset, count: u32, attempt: u32) -> Item {
        Item { first: offset.0, count, grant: self.number, attempt }
    }

    fn answer(
        &self,
        offset: Offset,
        (completion, attention): (Arc<Completion>, Attention),
    ) -> (Answer, Attention) {
        (Answer { completion, grant: self.number, offset }, attention)
    }

    /// The message is processed.
    pub fn ack(&self, offset: Offset, attempt: u32) -> (Answer, Attention) {
        self.answer(offset, self.desk.ack(self.item(offset, 1, attempt)))
    }

    /// Neighbouring messages are given back. The answer is for the first.
    pub fn give_back(
        &self,
        first: Offset,
        count: u32,
        attempt: u32,
        action: ReturnAction,
    ) -> (Answer, Attention) {
        self.answer(first, self.desk.give_back(self.item(first, count, attempt), action))
    }

    /// The message is dropped; its lease runs on.
    pub fn hold(&self, offset: Offset, attempt: u32) -> Attention {
        self.desk.hold(self.item(offset, 1, attempt))
    }
}
