//! Owns how an answer reaches who waits for it: [`Promise`] for one waiter, [`BatchCompletion`] for all
//! messages of a batch. Never runs a task: wakers are collected in [`Wakes`] and woken by the driver after
//! it has released the engine's lock. Driven by the engine (fulfils) and by futures (wait).

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use postrider_protocol::{
    error::ErrorBody,
    message::DelayId,
    types::{Durability, Offset, PartitionId, TimestampMs},
};

/// Wakers to call once the engine's lock is released. Bounded by the futures that the application polls.
#[derive(Debug, Default)]
pub struct Wakes(Vec<Waker>);

impl Wakes {
    /// Adds a waker.
    pub fn push(&mut self, waker: Waker) {
        self.0.push(waker);
    }

    /// Whether nobody is to be woken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes everybody.
    pub fn wake(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held is a bug elsewhere; the state of these cells is valid at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine's half of an answer for one waiter. Dropped unfulfilled, it answers `None`.
#[derive(Debug)]
pub struct Promise<T>(Arc<Mutex<Promised<T>>>);

/// The waiter's half. Resolves to `None` if the engine gave up without an answer.
///
/// Cancel safety: dropping it loses the answer and nothing else.
#[derive(Debug)]
pub struct Pending<T>(Arc<Mutex<Promised<T>>>);

#[derive(Debug)]
struct Promised<T> {
    value: Option<T>,
    broken: bool,
    waker: Option<Waker>,
}

/// A fresh pair.
#[must_use]
pub fn promise<T>() -> (Promise<T>, Pending<T>) {
    let cell = Arc::new(Mutex::new(Promised { value: None, broken: false, waker: None }));
    (Promise(Arc::clone(&cell)), Pending(cell))
}

impl<T> Promise<T> {
    /// Answers, and collects the waiter's waker.
    pub fn fulfil(self, value: T, wakes: &mut Wakes) {
        let mut cell = lock(&self.0);
        cell.value = Some(value);
        if let Some(waker) = cell.waker.take() {
            wakes.push(waker);
        }
    }

    /// Whether the waiter is gone.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let mut cell = lock(&self.0);
        cell.broken = true;
        if let Some(waker) = cell.waker.take() {
            drop(cell);
            waker.wake();
        }
    }
}

impl<T> Pending<T> {
    /// The answer, if it is there. For drivers that poll.
    #[must_use]
    pub fn try_take(&self) -> Option<T> {
        lock(&self.0).value.take()
    }
}

impl<T> Future for Pending<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut cell = lock(&self.0);
        if let Some(value) = cell.value.take() {
            return Poll::Ready(Some(value));
        }
        if cell.broken {
            return Poll::Ready(None);
        }
        match &mut cell.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub enum BatchOutcome {
    /// Stored, now or before.
    Stored(Stored),
    /// Its messages have idempotency keys, and not all of them the same outcome: runs that follow each other.
    Parts(Arc<[Part]>),
    /// Not stored, or not known.
    Failed(Arc<PublishFailure>),
    /// Handed to the connection; nobody asked for more.
    Sent,
}

/// Messages in a row of a batch, and what became of them.
#[derive(Clone, Debug)]
pub struct Part {
    /// The place of the first in the batch.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// What became of them. Never parts again.
    pub outcome: BatchOutcome,
}

impl BatchOutcome {
    /// The outcome of the message at `place`, and that message's place in what the outcome is of.
    #[must_use]
    pub fn of(&self, place: u32) -> (&Self, u32) {
        let Self::Parts(parts) = self else { return (self, place) };
        let at = parts.partition_point(|part| part.first <= place).saturating_sub(1);
        let part = &parts[at];
        (&part.outcome, place.saturating_sub(part.first))
    }

    /// Why a message of the batch failed, if one did.
    #[must_use]
    pub fn failure(&self) -> Option<&Arc<PublishFailure>> {
        match self {
            Self::Failed(why) => Some(why),
            Self::Parts(parts) => parts.iter().find_map(|part| part.outcome.failure()),
            Self::Stored(_) | Self::Sent => None,
        }
    }
}

/// What names a stored batch's messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Message `i` has this offset + `i`.
    Offsets(Offset),
    /// They get their offsets later. Message `i` has this id, its position + `i`.
    Delayed(DelayId),
}

/// Where a batch is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The partition.
    pub partition: PartitionId,
    /// The place of the batch's first message.
    pub place: Place,
    /// The broker's time of the append.
    pub append_time: TimestampMs,
    /// What the batch has reached.
    pub durability: Durability,
    /// A retry found it already stored.
    pub duplicate: bool,
}

/// Why a batch is not known to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PublishFailure {
    /// The broker refused it: definitely not stored.
    Rejected(ErrorBody),
    /// It may or may not be stored.
    Unknown(ErrorBody),
    /// `delivery_timeout` ended before it was ever sent: definitely not stored.
    NotSent,
    /// The client was closed before it was ever sent: definitely not stored.
    Closed,
}

/// The shared completion of a batch's messages: completed once, wakes every waiter once.
#[derive(Debug, Default)]
pub struct BatchCompletion(Mutex<Completing>);

#[derive(Debug, Default)]
struct Completing {
    outcome: Option<BatchOutcome>,
    /// One per message that somebody awaits; bounded by the batch's messages.
    wakers: Vec<Waker>,
}

impl BatchCompletion {
    pub(crate) fn complete(&self, outcome: BatchOutcome, wakes: &mut Wakes) {
        let mut cell = lock(&self.0);
        assert!(cell.outcome.is_none(), "a batch has one outcome");
        cell.outcome = Some(outcome);
        wakes.0.append(&mut cell.wakers);
    }

    /// The outcome, if it is known.
    #[must_use]
    pub fn outcome(&self) -> Option<BatchOutcome> {
        lock(&self.0).outcome.clone()
    }

    /// The outcome, or `cx` is woken when there is one. `place` is the caller's memory of its waker.
    pub fn poll(&self, place: &mut Option<u32>, cx: &Context<'_>) -> Poll<BatchOutcome> {
        let mut cell = lock(&self.0);
        if let Some(outcome) = &cell.outcome {
            return Poll::Ready(outcome.clone());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_batch_wakes_each_waiter_once_however_often_it_was_polled() {
        let completion = BatchCompletion::default();
        let (count, waker) = counter();
        let cx = Context::from_waker(&waker);
        let mut places = [None, None];
        for _ in 0..3 {
            for place in &mut places {
                assert!(completion.poll(place, &cx).is_pending());
            }
        }
        let mut wakes = Wakes::default();
        let failure = Arc::new(PublishFailure::NotSent);
        completion.complete(BatchOutcome::Failed(failure), &mut wakes);
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "nobody is woken under the engine's lock");
        wakes.wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(completion.poll(&mut None, &cx).is_ready());
    }

    #[test]
    fn a_promise_that_is_dropped_resolves_to_none() {
        let (promise, mut pending) = promise::<u32>();
        let (count, waker) = counter();
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut pending).poll(&mut cx).is_pending());
        drop(promise);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(Pin::new(&mut pending).poll(&mut cx), Poll::Ready(None)));
    }
}
