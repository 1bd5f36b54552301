//! Models of the broker's combining lock: every notification is drained, and nobody waits in `notify`.
//! They live here because this package alone is built for loom; the file under test stands in the join.
#![cfg(loom)]

#[path = "../../src/join/combining.rs"]
mod combining;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use combining::CombiningLock;

/// A cursor that one thread moves, and what the lock's holders have seen of it.
struct Model {
    cursor: AtomicU64,
    seen: CombiningLock<u64>,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self { cursor: AtomicU64::new(0), seen: CombiningLock::new(0) })
    }

    fn drain(&self, seen: &mut u64) {
        let cursor = self.cursor.load(Ordering::Relaxed);
        assert!(cursor >= *seen, "the cursor went back");
        *seen = cursor;
    }

    fn advance(&self, to: u64) {
        self.cursor.store(to, Ordering::Relaxed);
        self.seen.notify(&mut (), |seen, ()| self.drain(seen));
    }

    fn work(&self) {
        self.seen.with(&mut (), |_seen, ()| (), |seen, ()| self.drain(seen));
    }

    /// After all threads are done: what was drained, without draining anything.
    fn seen(&self) -> u64 {
        let left = |_seen: &mut u64, _context: &mut ()| panic!("a notification was left behind");
        self.seen.with(&mut (), |seen, ()| *seen, left)
    }
}

#[test]
fn an_advance_beside_a_holder_is_drained() {
    loom::model(|| {
        let model = Model::new();
        let notifier = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                model.advance(1);
                model.advance(2);
            })
        };
        model.work();
        notifier.join().unwrap();
        assert_eq!(model.seen(), 2);
    });
}

#[test]
fn an_advance_beside_two_holders_is_drained() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let model = Model::new();
        let start = |work: fn(&Model)| {
            let model = Arc::clone(&model);
            thread::spawn(move || work(&model))
        };
        let notifier = start(|model| model.advance(1));
        let holder = start(Model::work);
        model.work();
        notifier.join().unwrap();
        holder.join().unwrap();
        assert_eq!(model.seen(), 1);
    });
}
