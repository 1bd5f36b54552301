//! Owns an engine and a peer joined by bytes, with a clock that the test moves. Driven by the tests of the engine.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::BytesMut;
use postrider::core::{
    Engine, EngineOptions, ProducerKey, Transmit,
    completion::{BatchOutcome, Pending, Place, promise},
    lane::MessageParts,
    link::LinkFault,
    producer::{Enqueue, ProducerOptions},
    subscription::{AttachedPartition, Incoming, SubscriptionOptions},
};
use postrider_protocol::{
    error::ErrorBody,
    frame::FrameDecoder,
    message::Start,
    types::{PartitionId, SubscriptionHandle, TimestampMs},
};

use crate::peer::Peer;

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) peer: Peer,
    pub(crate) now: Duration,
    pub(crate) up: bool,
    decoder: FrameDecoder,
    to_peer: BytesMut,
}

/// A message that was enqueued.
pub(crate) struct Sent {
    completion: std::sync::Arc<postrider::core::completion::BatchCompletion>,
    place: u32,
}

impl Sent {
    pub(crate) fn outcome(&self) -> Option<BatchOutcome> {
        self.completion.outcome()
    }

    /// Its offset; it must be stored.
    pub(crate) fn offset(&self) -> u64 {
        match self.outcome() {
            Some(BatchOutcome::Stored(stored)) => match stored.place {
                Place::Offsets(base) => base.0 + u64::from(self.place),
                Place::Delayed(id) => panic!("delayed as {id:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

impl World {
    /// Connected and greeted.
    pub(crate) fn new(partitions: u32) -> Self {
        let options = EngineOptions { client_name: "test".into(), client_id: [1; 16], seed: 0 };
        let mut world = Self {
            engine: Engine::new(options),
            peer: Peer::new(partitions),
            now: Duration::from_secs(1),
            up: false,
            decoder: FrameDecoder::new(64 << 20),
            to_peer: BytesMut::new(),
        };
        world.connect();
        world
    }

    pub(crate) fn connect(&mut self) {
        assert!(!self.up);
        self.up = true;
        self.engine.connected(self.now);
        self.pump();
        assert!(self.engine.is_ready());
    }

    pub(crate) fn disconnect(&mut self, store_held: bool) {
        self.up = false;
        self.to_peer.clear();
        self.peer.disconnect(store_held);
        self.engine.disconnected();
        self.engine.check_invariants();
    }

    /// Moves bytes both ways until nothing moves.
    pub(crate) fn pump(&mut self) {
        self.try_pump().unwrap();
    }

    pub(crate) fn try_pump(&mut self) -> Result<(), LinkFault> {
        loop {
            self.engine.on_time(self.now);
            if !self.up {
                return Ok(());
            }
            let mut out = Transmit::default();
            self.engine.transmit(self.now, &mut out, usize::MAX)?;
            self.engine.check_invariants();
            for chunk in out.chunks {
                self.to_peer.extend_from_slice(&chunk);
            }
            while let Some(frame) = self.decoder.decode(&mut self.to_peer).unwrap() {
                self.peer.receive(frame);
            }
            if self.peer.out.is_empty() {
                return Ok(());
            }
            let mut input = BytesMut::new();
            for chunk in self.peer.out.drain(..) {
                input.extend_from_slice(&chunk);
            }
            self.engine.receive(self.now, &mut input)?;
            self.engine.check_invariants();
            self.engine.take_wakes().wake();
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.pump();
    }

    pub(crate) fn producer(&mut self, options: ProducerOptions) -> ProducerKey {
        let (opened, pending) = promise();
        let deadline = self.now + Duration::from_secs(30);
        let key = self.engine.open_producer("t".into(), options, deadline, opened);
        self.pump();
        pending.try_take().expect("answered").expect("opened");
        key
    }

    pub(crate) fn enqueue(&mut self, key: ProducerKey, value: &str) -> Sent {
        self.enqueue_to(key, value, None)
    }

    pub(crate) fn enqueue_to(
        &mut self,
        key: ProducerKey,
        value: &str,
        partition: Option<u32>,
    ) -> Sent {
        match self.try_enqueue(key, value, partition) {
            Enqueue::Placed { completion, place } => Sent { completion, place },
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn try_enqueue(
        &mut self,
        key: ProducerKey,
        value: &str,
        partition: Option<u32>,
    ) -> Enqueue {
        let message = MessageParts {
            partition: partition.map(PartitionId),
            key: None,
            value: Some(value.as_bytes()),
            headers: &[],
            timestamp: None,
            deliver_at: None,
            idempotency_key: None,
        };
        let now = self.now;
        let placed = self.engine.enqueue(key, || (now, TimestampMs(5)), &message, None);
        self.engine.check_invariants();
        placed
    }

    pub(crate) fn subscribe(
        &mut self,
        name: Option<&str>,
        start: Start,
        window: (u32, u32),
    ) -> (SubscriptionHandle, Pending<Result<Vec<AttachedPartition>, ErrorBody>>) {
        let options = SubscriptionOptions {
            topic: "t".into(),
            partitions: Vec::new(),
            name: name.map(str::to_owned),
            start,
            prefetch_messages: window.0,
            prefetch_bytes: window.1,
        };
        let (attached, pending) = promise();
        let deadline = self.now + Duration::from_secs(30);
        let handle = self.engine.subscribe(options, deadline, attached);
        self.pump();
        (handle, pending)
    }

    /// The next thing for the application, if it is there.
    pub(crate) fn next(&mut self, handle: SubscriptionHandle) -> Option<Option<Incoming>> {
        let cx = Context::from_waker(Waker::noop());
        match self.engine.poll_next(handle, &cx) {
            Poll::Ready(incoming) => Some(incoming),
            Poll::Pending => None,
        }
    }

    /// The offsets of the next run.
    pub(crate) fn next_run(&mut self, handle: SubscriptionHandle) -> (u64, u64) {
        match self.next(handle) {
            Some(Some(Incoming::Run(run))) => (run.first.0, run.end.0),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn poll_now<T>(pending: &mut Pending<T>) -> Poll<Option<T>> {
    let mut cx = Context::from_waker(Waker::noop());
    Future::poll(Pin::new(pending), &mut cx)
}
