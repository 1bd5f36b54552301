//! The hand-over from appenders to the I/O thread.
//!
//! Owns the list of logs that have entries waiting, orders to the group writer, and the bell that
//! wakes the I/O thread. A log is in the list at most once; its entries stay in the log. Appenders ring
//! only when the thread sleeps, so a busy store makes no system call here.

use std::collections::VecDeque;
use std::time::Duration;

use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering};

/// Why [`WorkQueue::wait`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wakeup {
    /// There is something to do.
    Work,
    /// The time passed and nothing came.
    TimedOut,
    /// The store stops.
    Stopped,
}

#[derive(Debug)]
struct State<T, C> {
    /// Bounded by the number of logs.
    ready: VecDeque<T>,
    /// Bounded by the callers: at most one trim and one drop of each log.
    orders: Vec<C>,
    /// The I/O thread sleeps.
    waiting: bool,
    /// Something happened that only a new round can find out.
    kicked: bool,
    stopped: bool,
}

/// See the module. `T` is a log, `C` an order.
#[derive(Debug)]
pub(crate) struct WorkQueue<T, C> {
    state: Mutex<State<T, C>>,
    bell: Condvar,
    /// Bytes accepted and not yet written or discarded.
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl<T, C> WorkQueue<T, C> {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let state = State {
            ready: VecDeque::new(),
            orders: Vec::new(),
            waiting: false,
            kicked: false,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            bell: Condvar::default(),
            bytes: AtomicUsize::new(0),
            bytes_max,
        }
    }

    /// Counts `bytes` against the bound; false leaves the count as it was. One entry larger than the
    /// bound passes when nothing else waits.
    pub(crate) fn charge(&self, bytes: usize) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before.saturating_add(bytes) > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Ends the charge of entries that were written or discarded.
    pub(crate) fn discharge(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Puts a log at the end of the list.
    pub(crate) fn push(&self, item: T) {
        let mut state = self.state.lock();
        state.ready.push_back(item);
        self.ring(state);
    }

    /// Puts logs back at the front, in their order: a group was full, or the disk is.
    pub(crate) fn put_back(&self, items: impl DoubleEndedIterator<Item = T>) {
        let mut state = self.state.lock();
        for item in items.rev() {
            state.ready.push_front(item);
        }
    }

    pub(crate) fn order(&self, order: C) {
        let mut state = self.state.lock();
        state.orders.push(order);
        self.ring(state);
    }

    /// Makes the I/O thread look again.
    pub(crate) fn kick(&self) {
        let mut state = self.state.lock();
        state.kicked = true;
        self.ring(state);
    }

    /// Makes [`Self::wait`] answer `Stopped` from now on.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        self.ring(state);
    }

    fn ring(&self, mut state: MutexGuard<'_, State<T, C>>) {
        if state.waiting {
            state.waiting = false;
            drop(state);
            self.bell.notify_one();
        }
    }

    /// Everything that waits.
    pub(crate) fn take(&self) -> (VecDeque<T>, Vec<C>) {
        let mut state = self.state.lock();
        state.kicked = false;
        (std::mem::take(&mut state.ready), std::mem::take(&mut state.orders))
    }

    /// Sleeps until there is something to do, at most for `timeout`. For one thread only.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Wakeup {
        let mut state = self.state.lock();
        loop {
            if !state.ready.is_empty() || !state.orders.is_empty() || state.kicked {
                state.waiting = false;
                return Wakeup::Work;
            }
            if state.stopped {
                return Wakeup::Stopped;
            }
            state.waiting = true;
            let Some(timeout) = timeout else {
                state = self.bell.wait(state);
                continue;
            };
            let (again, timed_out) = self.bell.wait_timeout(state, timeout);
            state = again;
            if timed_out && state.waiting {
                state.waiting = false;
                return Wakeup::TimedOut;
            }
        }
    }
}

/// Wakes one thread that otherwise sleeps for a while.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    state: Mutex<BellState>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct BellState {
    rung: bool,
    stopped: bool,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.state.lock().rung = true;
        self.bell.notify_one();
    }

    /// Makes [`Self::wait`] answer `Stopped` from now on.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.bell.notify_one();
    }

    /// Sleeps until somebody rings, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Wakeup {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return Wakeup::Stopped;
            }
            if state.rung {
                state.rung = false;
                return Wakeup::Work;
            }
            let (again, timed_out) = self.bell.wait_timeout(state, timeout);
            state = again;
            if timed_out && !state.rung && !state.stopped {
                return Wakeup::TimedOut;
            }
        }
    }
}
