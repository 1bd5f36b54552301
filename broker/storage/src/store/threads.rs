//! The two threads that drive a store in production.
//!
//! Owns their loops; what they do is in `writer` and `maintenance`. The simulator calls the same
//! functions without them.

use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postrider_protocol::types::TimestampMs;

use super::Store;
use super::queue::Wakeup;

/// How often maintenance looks around: for space that came back, files to remove.
const LOOK_AROUND_MAX: Duration = Duration::from_millis(500);

/// The running threads of a store.
pub struct StoreThreads {
    store: Store,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    /// Starts the I/O thread and the maintenance thread. `clock` is wall time.
    ///
    /// # Panics
    /// When the system starts no threads.
    #[must_use]
    pub fn spawn(&self, clock: fn() -> TimestampMs) -> StoreThreads {
        // A second spawn finds the clock set: it is the same one.
        self.inner.shared.counters.nanos.get_or_init(|| nanos);
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.to_string());
            builder.spawn(run).expect("the system starts a thread")
        };
        let (io, maintenance) = (self.clone(), self.clone());
        let threads = vec![
            start("store-io", Box::new(move || io.run_io())),
            start("store-maintain", Box::new(move || maintenance.run_maintenance(clock))),
        ];
        StoreThreads { store: self.clone(), threads }
    }

    /// The I/O thread's loop, until it is stopped or the store fails.
    pub(super) fn run_io(&self) {
        let shared = &self.inner.shared;
        let mark_delay = Duration::from_micros(shared.options.mark_delay_us);
        let mut mark_due = false;
        while !shared.poison.is_set() {
            let wakeup = shared.queue.wait(mark_due.then_some(mark_delay));
            if wakeup == Wakeup::Stopped {
                return;
            }
            let done = self.step();
            // A mark that found no room is tried again after the next group only.
            mark_due = done && self.inner.writer.lock().is_mark_due();
        }
    }

    fn run_maintenance(&self, clock: fn() -> TimestampMs) {
        let shared = &self.inner.shared;
        let interval = Duration::from_millis(shared.options.checkpoint_interval_ms);
        let look_around = interval.min(LOOK_AROUND_MAX);
        while !shared.poison.is_set() {
            if shared.maintenance_bell.wait(look_around) == Wakeup::Stopped {
                return;
            }
            self.maintain(clock());
        }
    }
}

impl StoreThreads {
    /// Stops both threads when they are through with what they do, and waits for them. Entries that
    /// wait stay queued; [`Store::close`] writes them.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.store.inner.shared.queue.stop();
        self.store.inner.shared.maintenance_bell.stop();
        for thread in self.threads.drain(..) {
            // Release builds abort on a panic; elsewhere the thread's own message is enough.
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Drop for StoreThreads {
    fn drop(&mut self) {
        self.join();
    }
}

fn nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}
