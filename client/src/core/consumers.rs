//! Owns the engine's part for consumers of queues: hands events, replies and the application's calls to the right
//! one, and writes what it wants to say. Decides nothing (`consumer` does). Driven by the engine.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use postrider_protocol::{
    error::ErrorBody,
    frame::{event, request},
    message::{ConsumeReply, Lease, LeaseLost, Unsubscribe},
    types::SubscriptionHandle,
};

use super::{
    Engine, Kind, Transmit, closed,
    completion::Promise,
    consumer::{Attached, Consumer, ConsumerOptions, Handed, Settling},
    link::{LinkFault, Purpose, SettleKind},
};

impl Engine {
    // The connection's side.

    pub(super) fn leased(&mut self, now: Duration, lease: Lease) -> Result<(), LinkFault> {
        match self.consumers.get_mut(&lease.head.handle) {
            Some(consumer) => Ok(consumer.leased(now, lease, &mut self.wakes)?),
            None => Ok(()),
        }
    }

    pub(super) fn lease_lost(&mut self, lost: &LeaseLost) {
        if let Some(consumer) = self.consumers.get_mut(&lost.handle) {
            consumer.lease_lost(lost, &mut self.wakes);
        }
    }

    pub(super) fn consumer_answered(
        &mut self,
        now: Duration,
        handle: SubscriptionHandle,
        reply: Result<ConsumeReply, ErrorBody>,
    ) {
        match self.consumers.get_mut(&handle) {
            Some(consumer) => consumer.answered(now, reply, &mut self.wakes),
            None if reply.is_ok() => self.detach.push((handle, Kind::Subscriber)),
            None => {}
        }
        self.forget_gone_consumers();
    }

    pub(super) fn consumer_left(&mut self, handle: SubscriptionHandle) {
        if let Some(consumer) = self.consumers.get_mut(&handle) {
            consumer.left(&mut self.wakes);
        }
        self.forget_gone_consumers();
    }

    pub(super) fn forget_gone_consumers(&mut self) {
        self.consumers.retain(|_, consumer| !consumer.is_gone());
    }

    /// Credit follows the outcomes that free it: the broker that has both has room again.
    pub(super) fn serve_consumers(&mut self, now: Duration, out: &mut Transmit) {
        for (handle, consumer) in &mut self.consumers {
            let handle = *handle;
            if let Some(consume) = consumer.question(now) {
                out.push(request(&consume, self.link.register(Purpose::Consume(handle))));
            }
            consumer.clear_desks(&mut self.wakes);
            while let Some((settling, partition, batch)) = consumer.next_settling(now) {
                let purpose = |kind| Purpose::Settle { handle, partition, batch, kind };
                out.push(match settling {
                    Settling::Ack(ack) => {
                        request(&ack, self.link.register(purpose(SettleKind::Ack)))
                    }
                    Settling::Return(returned) => {
                        request(&returned, self.link.register(purpose(SettleKind::Return)))
                    }
                });
            }
            if let Some(renewal) = consumer.renewal(now) {
                out.push(event(&renewal));
            }
            if let Some(credit) = consumer.credit() {
                out.push(event(&credit));
            }
            if consumer.next_leave() {
                let correlation = self.link.register(Purpose::Leave(handle));
                out.push(request(&Unsubscribe { handle }, correlation));
            }
        }
    }

    // The application's side.

    /// Attaches a consumer; `attached` is answered when it is.
    pub fn consume(
        &mut self,
        options: ConsumerOptions,
        deadline: Duration,
        attached: Promise<Result<Attached, ErrorBody>>,
    ) -> SubscriptionHandle {
        let handle = self.new_handle();
        let mut consumer = Consumer::new(handle, options, attached, deadline);
        if self.closed {
            consumer.end(closed(), &mut self.wakes);
        }
        self.consumers.insert(handle, consumer);
        self.attention = true;
        handle
    }

    /// The next thing that waits for a consumer's application; `None` after the end.
    pub fn poll_handed(
        &mut self,
        handle: SubscriptionHandle,
        cx: &Context<'_>,
    ) -> Poll<Option<Handed>> {
        match self.consumers.get_mut(&handle) {
            Some(consumer) => {
                let next = consumer.poll_handed(cx);
                // Waiting may make a small credit worth to be sent.
                self.attention |= next.is_pending() && consumer.owes_credit();
                next
            }
            None => Poll::Ready(None),
        }
    }

    /// The consumer takes no more messages; what waits is given back.
    pub fn stop_consumer(&mut self, handle: SubscriptionHandle) {
        if let Some(consumer) = self.consumers.get_mut(&handle) {
            consumer.stop(&mut self.wakes);
            self.attention = true;
        }
    }

    /// As [`Self::stop_consumer`]; `done` is answered when all that was taken is settled and answered.
    pub fn drain_consumer(&mut self, handle: SubscriptionHandle, done: Promise<()>) {
        if let Some(consumer) = self.consumers.get_mut(&handle) {
            consumer.drain(done, &mut self.wakes);
            self.attention = true;
        }
    }

    /// The consumer leaves when the outcomes so far are answered; `done` is answered then.
    pub fn leave_consumer(&mut self, handle: SubscriptionHandle, done: Promise<()>) {
        if let Some(consumer) = self.consumers.get_mut(&handle) {
            consumer.leave(done, &mut self.wakes);
            self.attention = true;
        }
    }

    /// The consumer and all its deliveries are gone from the application. It leaves when the outcomes are answered.
    pub fn release_consumer(&mut self, handle: SubscriptionHandle) {
        if let Some(consumer) = self.consumers.get_mut(&handle) {
            consumer.release(&mut self.wakes);
            self.attention = true;
        }
        self.forget_gone_consumers();
    }

    /// How many deliveries have no outcome, or no answer to it.
    #[must_use]
    pub fn unsettled(&self, handle: SubscriptionHandle) -> u64 {
        self.consumers.get(&handle).map_or(0, Consumer::unsettled)
    }

    /// The consumers, to let them all leave.
    #[must_use]
    pub fn consumer_handles(&self) -> Vec<SubscriptionHandle> {
        self.consumers.keys().copied().collect()
    }

    /// Whether a consumer that the application has let go of still has to tell the broker something.
    #[must_use]
    pub fn has_leaving_consumers(&self) -> bool {
        self.consumers.values().any(Consumer::has_business)
    }
}
