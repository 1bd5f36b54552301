//! Owns who consumes the queues of one partition: the number that core knows a consumer by, the way to its
//! session, and the line of those that wait for something to do. Never decides who gets what (core does) and
//! never wakes. Driven by the partition's leader, under its lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use postrider_core::queue::MemberKey;
use postrider_protocol::types::{MemberId, SubscriptionHandle, SubscriptionId};

use crate::join::outbox::{Outbox, WakeList};
use crate::join::session::SessionTask;

/// How long a consumer is remembered by its name after it is gone: longer than core keeps its leases.
const REMEMBERED: Duration = Duration::from_secs(15);

/// Consumers from which on those that went are forgotten.
const FORGET_FROM: usize = 64;

/// How long a consumer that was woken may take to ask before the next one is woken too: it may be stuck
/// behind a client that does not read.
const ASKS_WITHIN: Duration = Duration::from_millis(25);

/// The way to an attached consumer.
#[derive(Clone)]
pub(crate) struct Attachment {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) handle: SubscriptionHandle,
    /// The session's key of the consumer.
    pub(crate) consumer: u64,
    /// The session's key of the consumer's cursor here.
    pub(crate) cursor: u64,
}

/// One consumer.
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) subscription: SubscriptionId,
    pub(crate) name: String,
    pub(crate) attachment: Option<Attachment>,
    /// Stands in the line.
    waits: bool,
    /// When it went, in monotonic time.
    left: Duration,
}

/// Those that wait for one subscription.
#[derive(Default)]
struct Line {
    /// Each once; the front is woken first. Bound: the attached consumers.
    waiting: VecDeque<MemberKey>,
    /// Somebody was woken then and has not asked since, while others wait.
    woken: Option<Duration>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Members {
    last: u64,
    /// Those that went are forgotten when there are as many consumers as this.
    forget_at: usize,
    /// Bound: the attached consumers, and about as many that went.
    by_key: BTreeMap<MemberKey, Member>,
    by_id: BTreeMap<(SubscriptionId, MemberId), MemberKey>,
    lines: BTreeMap<SubscriptionId, Line>,
}

impl Members {
    pub(crate) fn get(&self, key: MemberKey) -> Option<&Member> {
        self.by_key.get(&key)
    }

    /// Attaches a consumer; one of the same id goes on, and who had it before is told by the caller.
    pub(crate) fn attach(
        &mut self,
        (subscription, id): (SubscriptionId, MemberId),
        name: &str,
        attachment: Attachment,
        now: Duration,
    ) -> (MemberKey, Option<Attachment>) {
        if self.by_key.len() >= self.forget_at {
            self.forget(now);
            self.forget_at = FORGET_FROM.max(2 * self.by_key.len());
        }
        let key = *self.by_id.entry((subscription, id)).or_insert_with(|| {
            self.last += 1;
            MemberKey(self.last)
        });
        let member = self.by_key.entry(key).or_insert_with(|| Member {
            id,
            subscription,
            name: String::new(),
            attachment: None,
            waits: false,
            left: Duration::ZERO,
        });
        name.clone_into(&mut member.name);
        (key, member.attachment.replace(attachment))
    }

    /// The consumer has gone; `false` if somebody else goes on with its id.
    pub(crate) fn detach(
        &mut self,
        key: MemberKey,
        outbox: &Arc<Outbox>,
        cursor: u64,
        now: Duration,
    ) -> bool {
        let Some(member) = self.by_key.get_mut(&key) else { return false };
        let is_own = member.attachment.as_ref().is_some_and(|attachment| {
            attachment.cursor == cursor && Arc::ptr_eq(&attachment.outbox, outbox)
        });
        if is_own {
            member.attachment = None;
            member.left = now;
        }
        is_own
    }

    /// A consumer asks: who was woken is there.
    pub(crate) fn asks(&mut self, subscription: SubscriptionId) {
        if let Some(line) = self.lines.get_mut(&subscription) {
            line.woken = None;
        }
    }

    /// Puts a consumer at the end of the line.
    pub(crate) fn wait(&mut self, key: MemberKey) {
        if let Some(member) = self.by_key.get_mut(&key)
            && !member.waits
        {
            member.waits = true;
            self.lines.entry(member.subscription).or_default().waiting.push_back(key);
        }
    }

    /// Has the first one in the line ask, if there is one.
    pub(crate) fn wake(
        &mut self,
        subscription: SubscriptionId,
        now: Duration,
        wakes: &mut WakeList,
    ) {
        let Some(line) = self.lines.get_mut(&subscription) else { return };
        line.woken = None;
        while let Some(key) = line.waiting.pop_front() {
            let Some(member) = self.by_key.get_mut(&key) else { continue };
            member.waits = false;
            if let Some(attachment) = &member.attachment {
                attachment.outbox.push_task(SessionTask::Ready(attachment.cursor));
                wakes.mark(&attachment.outbox);
                line.woken = (!line.waiting.is_empty()).then_some(now);
                return;
            }
        }
    }

    /// Has this one ask, if it waits.
    pub(crate) fn wake_one(&mut self, key: MemberKey, wakes: &mut WakeList) {
        let Some(member) = self.by_key.get_mut(&key) else { return };
        if let Some(attachment) = member.attachment.as_ref().filter(|_| member.waits) {
            attachment.outbox.push_task(SessionTask::Ready(attachment.cursor));
            wakes.mark(&attachment.outbox);
            member.waits = false;
            if let Some(line) = self.lines.get_mut(&member.subscription) {
                line.waiting.retain(|waiting| *waiting != key);
            }
        }
    }

    /// Has all that wait for the subscription ask.
    pub(crate) fn wake_all(&mut self, subscription: SubscriptionId, wakes: &mut WakeList) {
        while self.lines.get(&subscription).is_some_and(|line| !line.waiting.is_empty()) {
            self.wake(subscription, Duration::ZERO, wakes);
        }
        self.asks(subscription);
    }

    /// When the next one is to be woken because the first does not ask.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.lines.values().filter_map(|line| line.woken).min().map(|woken| woken + ASKS_WITHIN)
    }

    /// Wakes further where the first one does not ask.
    pub(crate) fn tick(&mut self, now: Duration, wakes: &mut WakeList) {
        let late = |line: &Line| line.woken.is_some_and(|woken| woken + ASKS_WITHIN <= now);
        let late: Vec<SubscriptionId> =
            self.lines.iter().filter(|(_, line)| late(line)).map(|(id, _)| *id).collect();
        for subscription in late {
            self.wake(subscription, now, wakes);
        }
    }

    fn forget(&mut self, now: Duration) {
        self.by_key.retain(|_, member| {
            let stays = member.attachment.is_some() || now < member.left + REMEMBERED;
            if !stays {
                self.by_id.remove(&(member.subscription, member.id));
            }
            stays
        });
    }

    /// Forgets a subscription; tells who was attached to it.
    pub(crate) fn remove(&mut self, subscription: SubscriptionId) -> Vec<Attachment> {
        self.lines.remove(&subscription);
        let mut attached = Vec::new();
        self.by_key.retain(|_, member| {
            if member.subscription == subscription {
                self.by_id.remove(&(member.subscription, member.id));
                attached.extend(member.attachment.take());
            }
            member.subscription != subscription
        });
        attached
    }

    /// Forgets all; tells who was attached.
    pub(crate) fn clear(&mut self) -> Vec<Attachment> {
        let attached = std::mem::take(&mut self.by_key).into_values();
        let attached = attached.filter_map(|member| member.attachment).collect();
        self.by_id.clear();
        self.lines.clear();
        attached
    }
}
