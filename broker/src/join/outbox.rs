//! Owns what waits to be sent to one session, and what others want its sending side to do. Never sends,
//! never blocks for longer than a push. Driven by partitions and the catalog (push) and by the session's
//! `transmit` (take).
//!
//! The lock is a leaf: whoever holds it takes no other. Bounds: confirms and their bytes by the publish
//! bytes in flight, which count as in flight until their confirm is taken; replies by the requests in
//! flight and by `reply_bytes_max`, above which the session is not read; lost leases by the leases that the
//! session had; tasks by the session's subscriptions times their partitions, one each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use postrider_protocol::message::{CONFIRM_RUN_BYTES, ConfirmRun, Outcome};

use crate::join::session::SessionTask;

/// Tells the shell that a session has something to transmit. Cheap and idempotent; any thread.
pub trait Wake: Send + Sync {
    /// `transmit` will find something to do.
    fn wake(&self);
}

/// Publish bytes in flight over all sessions.
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Nothing more is taken.
    pub(crate) fn is_spent(&self) -> bool {
        self.used() >= self.max
    }

    /// Sessions that have something in flight are not read.
    pub(crate) fn is_tight(&self) -> bool {
        self.used() >= self.max / 4 * 3
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The side of a session that others may reach.
pub(crate) struct Outbox {
    /// Number of the session, never used again.
    pub(crate) session: u64,
    wake: Arc<dyn Wake>,
    /// Stands in a list of sessions to be woken.
    pub(crate) marked: AtomicBool,
    in_flight: AtomicUsize,
    /// Requests that are not answered yet.
    requests: AtomicU32,
    /// Bytes of replies, and of confirms that answer no publish in flight.
    reply_bytes: AtomicUsize,
    budget: Arc<Budget>,
    content: Mutex<Content>,
}

/// What `transmit` takes out in one go.
#[derive(Default)]
pub(crate) struct Content {
    closed: bool,
    /// Publish bytes that `confirms` answers.
    answered_bytes: usize,
    /// Bytes of confirms that answer no publish in flight (refusals, duplicates).
    unpaid_bytes: usize,
    pub(crate) confirms: Vec<ConfirmRun>,
    pub(crate) replies: VecDeque<Bytes>,
    pub(crate) tasks: Vec<SessionTask>,
}

impl Outbox {
    pub(crate) fn new(session: u64, wake: Arc<dyn Wake>, budget: Arc<Budget>) -> Self {
        Self {
            session,
            wake,
            marked: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            requests: AtomicU32::new(0),
            reply_bytes: AtomicUsize::new(0),
            budget,
            content: Mutex::new(Content::default()),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.wake.wake();
    }

    /// Counts a publish as in flight until its confirm is taken.
    pub(crate) fn begin_publish(&self, bytes: usize) {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        self.budget.add(bytes);
    }

    /// Counts a request until its reply is pushed; `false` at the bound.
    pub(crate) fn begin_request(&self, max: u32) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed) < max
    }

    /// Everything that came in is answered, and the answers are taken.
    pub(crate) fn is_settled(&self) -> bool {
        let content = self.content();
        self.publish_bytes() == 0
            && self.reply_bytes() == 0
            && self.requests.load(Ordering::Relaxed) == 0
            && content.confirms.is_empty()
            && content.replies.is_empty()
            && content.tasks.is_empty()
    }

    pub(crate) fn publish_bytes(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn reply_bytes(&self) -> usize {
        self.reply_bytes.load(Ordering::Relaxed)
    }

    /// Answers a publish of `bytes`; without a run when the client wants no confirm.
    pub(crate) fn push_confirm(&self, run: Option<ConfirmRun>, bytes: usize) {
        let mut content = self.content();
        if content.closed {
            self.budget.sub(bytes);
            return;
        }
        content.answered_bytes += bytes;
        let Some(run) = run else { return };
        if bytes == 0 {
            let len = confirm_len(&run);
            content.unpaid_bytes += len;
            self.reply_bytes.fetch_add(len, Ordering::Relaxed);
        }
        if let Some(last) = content.confirms.last_mut()
            && merge(last, &run)
        {
            return;
        }
        content.confirms.push(run);
    }

    /// A request was answered without [`Self::push_reply`].
    pub(crate) fn request_answered(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Answers a request.
    pub(crate) fn push_reply(&self, frame: Bytes) {
        let mut content = self.content();
        self.requests.fetch_sub(1, Ordering::Relaxed);
        if !content.closed {
            self.reply_bytes.fetch_add(frame.len(), Ordering::Relaxed);
            content.replies.push_back(frame);
        }
    }

    /// Tells the client something that it did not ask for, behind the replies so far.
    pub(crate) fn push_event(&self, frame: Bytes) {
        let mut content = self.content();
        if !content.closed {
            self.reply_bytes.fetch_add(frame.len(), Ordering::Relaxed);
            content.replies.push_back(frame);
        }
    }

    pub(crate) fn push_task(&self, task: SessionTask) {
        let mut content = self.content();
        if !content.closed {
            content.tasks.push(task);
        }
    }

    /// Moves everything out, into `taken`, whose buffers are reused.
    pub(crate) fn take(&self, taken: &mut Content) {
        assert!(taken.confirms.is_empty() && taken.tasks.is_empty());
        let mut content = self.content();
        if content.closed {
            return;
        }
        std::mem::swap(&mut content.confirms, &mut taken.confirms);
        std::mem::swap(&mut content.tasks, &mut taken.tasks);
        taken.replies.append(&mut content.replies);
        let answered = std::mem::take(&mut content.answered_bytes);
        let unpaid = std::mem::take(&mut content.unpaid_bytes);
        drop(content);
        self.reply_bytes.fetch_sub(unpaid, Ordering::Relaxed);
        self.in_flight.fetch_sub(answered, Ordering::Relaxed);
        self.budget.sub(answered);
    }

    /// Moves out the tasks alone.
    pub(crate) fn take_tasks(&self, taken: &mut Content) {
        std::mem::swap(&mut self.content().tasks, &mut taken.tasks);
    }

    /// A reply has been handed to the shell.
    pub(crate) fn reply_taken(&self, bytes: usize) {
        self.reply_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Drops what waits and whatever comes later.
    pub(crate) fn close(&self) {
        let mut content = self.content();
        let dropped =
            std::mem::replace(&mut *content, Content { closed: true, ..Content::default() });
        drop(content);
        self.budget.sub(dropped.answered_bytes);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.content().closed
    }
}

fn confirm_len(run: &ConfirmRun) -> usize {
    let text = match &run.outcome {
        Outcome::Rejected { error } | Outcome::Unknown { error } => error.message.len(),
        Outcome::Committed { .. }
        | Outcome::Duplicate { .. }
        | Outcome::Delayed { .. }
        | Outcome::DelayedDuplicate { .. } => 0,
    };
    CONFIRM_RUN_BYTES + text
}

/// Extends a committed run by the one that follows it without a hole.
fn merge(last: &mut ConfirmRun, next: &ConfirmRun) -> bool {
    let same_place = last.topic == next.topic
        && last.partition == next.partition
        && last.producer == next.producer
        && last.base_sequence.0.checked_add(u64::from(last.count)) == Some(next.base_sequence.0);
    let (
        Outcome::Committed {
            base_offset: last_offset,
            append_time: last_time,
            durability: last_class,
        },
        Outcome::Committed { base_offset, append_time, durability },
    ) = (&last.outcome, &next.outcome)
    else {
        return false;
    };
    let contiguous = last_offset.0.checked_add(u64::from(last.count)) == Some(base_offset.0);
    let same_kind = last_time == append_time && last_class == durability;
    let Some(count) = last.count.checked_add(next.count) else { return false };
    if !(same_place && contiguous && same_kind) {
        return false;
    }
    last.count = count;
    true
}

/// Sessions that have something to transmit, each once, woken together.
#[derive(Default)]
pub(crate) struct WakeList {
    sessions: Vec<Arc<Outbox>>,
}

impl WakeList {
    pub(crate) fn mark(&mut self, session: &Arc<Outbox>) {
        if !session.marked.swap(true, Ordering::AcqRel) {
            self.sessions.push(Arc::clone(session));
        }
    }

    /// Wakes all. The mark goes first: what is pushed from then on marks again.
    pub(crate) fn wake(&mut self) {
        for session in self.sessions.drain(..) {
            session.marked.store(false, Ordering::Release);
            session.wake();
        }
    }
}
