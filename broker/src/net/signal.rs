//! Owns the way to a connection's task from other threads: the join wakes it, the server drains it.
//!
//! Never touches the session or the socket. Driven by the I/O thread and other connections (wake), by
//! the server (drain), and read by the connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use crate::join::Wake;

/// One connection's bell.
///
/// The task registers its waker, then looks at the flags; a bell sets its flag, then wakes. Either the
/// look finds the flag or the wake finds the waker.
#[derive(Default)]
pub(crate) struct Signal {
    transmit: AtomicBool,
    drain: AtomicBool,
    abort: AtomicBool,
    waker: AtomicWaker,
}

impl Wake for Signal {
    fn wake(&self) {
        // Whoever set the flag first has woken the task, and it has not looked yet.
        if !self.transmit.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}

impl Signal {
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Whether the session has asked to transmit since the last look.
    pub(crate) fn take_transmit(&self) -> bool {
        // The load spares the cache line a write when nothing happened.
        self.transmit.load(Ordering::Acquire) && self.transmit.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.load(Ordering::Acquire)
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Acquire)
    }

    fn drain(&self) {
        self.drain.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// All open connections, so that they can be drained.
#[derive(Default)]
pub(crate) struct Registry {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    signals: BTreeMap<u64, Arc<Signal>>,
    next: u64,
    draining: bool,
}

impl Registry {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; one that comes during the drain is drained at once.
    pub(crate) fn add(self: &Arc<Self>, signal: Arc<Signal>) -> Registration {
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        if open.draining {
            signal.drain();
        }
        open.signals.insert(number, signal);
        drop(open);
        Registration { registry: Arc::clone(self), number }
    }

    /// Tells every connection, now and later, to finish what it has and to end.
    pub(crate) fn drain(&self) {
        let mut open = self.open();
        open.draining = true;
        for signal in open.signals.values() {
            signal.drain();
        }
    }

    /// Ends every connection at once.
    pub(crate) fn abort(&self) {
        for signal in self.open().signals.values() {
            signal.abort.store(true, Ordering::Release);
            signal.waker.wake();
        }
    }
}

/// A connection's place in the registry, until dropped.
pub(crate) struct Registration {
    registry: Arc<Registry>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.open().signals.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake as TaskWake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl TaskWake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn many_bells_before_one_look_wake_once() {
        let (signal, count) = (Signal::default(), Arc::new(Count::default()));
        let waker = Waker::from(Arc::clone(&count));
        signal.register(&waker);
        signal.wake();
        signal.wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(signal.take_transmit());
        assert!(!signal.take_transmit());
        signal.register(&waker);
        signal.wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn drain_reaches_connections_of_before_and_after() {
        let registry = Arc::new(Registry::default());
        let signals = [Arc::new(Signal::default()), Arc::new(Signal::default())];
        let first = registry.add(Arc::clone(&signals[0]));
        registry.drain();
        let second = registry.add(Arc::clone(&signals[1]));
        assert!(signals.iter().all(|signal| signal.is_draining()));
        drop((first, second));
        assert!(registry.open().signals.is_empty());
    }
}
