//! Owns one connection's conversation: the handshake, correlation ids, requests in flight with their
//! deadlines, the sign of life. Never knows what a reply means to a producer or a subscription. Driven by the
//! engine.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use postrider_protocol::{
    api::Api,
    codec::DecodeError,
    error::ErrorBody,
    frame::{FrameDecoder, FrameError, FrameHeader, HELLO_BODY_BYTES_MAX},
    message::Limits,
    types::{ClusterId, CorrelationId, NodeId, Offset, PartitionId, SubscriptionHandle},
};

use super::{
    completion::{Promise, Wakes},
    lane::SplitBatch,
    subscription::DeliveryFault,
};

/// The largest frame body that the client accepts.
pub const FRAME_BYTES_MAX: u32 = 32 << 20;
/// The most application requests that wait or are in flight; the next one fails at once.
pub const REQUESTS_MAX: usize = 4096;
/// Silence after which the broker is asked for a sign of life; and again as long to answer.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Why a connection must end. The shell closes it and connects again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkFault {
    /// The bytes are no frames.
    #[error("the broker sent bytes that are no frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame does not hold what its header says.
    #[error("the broker sent a malformed message: {0}")]
    Message(#[from] DecodeError),
    /// The broker refused the connection.
    #[error("the broker refused the connection: {0}")]
    Refused(ErrorBody),
    /// A delivery does not fit the one before.
    #[error("the broker broke the order of a delivery: {0}")]
    Delivery(#[from] DeliveryFault),
    /// A confirm does not fit what was sent.
    #[error("the broker broke a confirm: {0}")]
    Confirm(#[from] SplitBatch),
    /// A frame came that no state expects.
    #[error("the broker sent an unexpected frame (api {api})")]
    Unexpected {
        /// Its api number.
        api: u16,
    },
    /// Nothing came for too long, not even the answer to a ping.
    #[error("the broker has been silent for {0:?}")]
    Silent(Duration),
}

/// What the broker said of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// The cluster.
    pub cluster: ClusterId,
    /// The broker's number.
    pub node: NodeId,
    /// Its version.
    pub server_version: String,
    /// What it accepts.
    pub limits: Limits,
}

/// Whether a request may be sent again when nobody knows whether it was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// Doing it twice is doing it once.
    Safe,
    /// A lost answer leaves the outcome unknown.
    Never,
}

/// Why a request has no reply.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RequestFailure {
    /// The broker refused it.
    Refused(ErrorBody),
    /// The connection was lost after it was sent, and repeating it is not safe.
    Unknown,
    /// No reply in time, and it was never sent.
    NotSent,
    /// No reply in time after it was sent.
    TimedOut,
    /// [`REQUESTS_MAX`] requests are waiting.
    TooMany,
    /// The reply cannot be decoded.
    Malformed(DecodeError),
    /// The client was closed.
    Closed,
}

/// The body of a reply, or why there is none.
pub type Answer = Result<Bytes, RequestFailure>;

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) api: Api,
    pub(crate) body: Bytes,
    pub(crate) repeat: Repeat,
    pub(crate) deadline: Duration,
    pub(crate) promise: Promise<Answer>,
}

/// What a reply is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Hello,
    Ping,
    Application(Request),
    Session(u32),
    Leaders(u32),
    Attach(SubscriptionHandle),
    Join(SubscriptionHandle),
    Ack {
        handle: SubscriptionHandle,
        partition: PartitionId,
        up_to: Offset,
    },
    /// A consumer attaches.
    Consume(SubscriptionHandle),
    /// A batch of a consumer's outcomes.
    Settle {
        handle: SubscriptionHandle,
        partition: PartitionId,
        batch: u64,
        kind: SettleKind,
    },
    /// A consumer leaves.
    Leave(SubscriptionHandle),
    /// Nobody waits for it any more.
    Ignored,
}

/// Whose reply settles messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SettleKind {
    Ack,
    Return,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LinkState {
    Down,
    /// Connected; `Hello` is to be sent, or its reply awaited.
    Greeting,
    Ready,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    pub(crate) decoder: FrameDecoder,
    next_correlation: u64,
    /// Bounded: by [`REQUESTS_MAX`], and one or two per producer and subscription, a
    /// few per partition of a consumer.
    in_flight: BTreeMap<CorrelationId, Purpose>,
    /// Bounded by [`REQUESTS_MAX`].
    waiting: VecDeque<Request>,
    last_received: Duration,
    pinged_at: Option<Duration>,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            state: LinkState::Down,
            decoder: FrameDecoder::new(HELLO_BODY_BYTES_MAX),
            next_correlation: 1,
            in_flight: BTreeMap::new(),
            waiting: VecDeque::new(),
            last_received: Duration::ZERO,
            pinged_at: None,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state == LinkState::Ready
    }

    pub(crate) fn connected(&mut self, now: Duration) {
        self.state = LinkState::Greeting;
        self.decoder = FrameDecoder::new(HELLO_BODY_BYTES_MAX);
        self.last_received = now;
        self.pinged_at = None;
    }

    pub(crate) fn greeted(&mut self) {
        self.state = LinkState::Ready;
        self.decoder.set_max(FRAME_BYTES_MAX);
    }

    /// The connection is gone: requests that may be repeated wait for the next one.
    pub(crate) fn disconnected(&mut self, wakes: &mut Wakes) {
        self.state = LinkState::Down;
        for purpose in std::mem::take(&mut self.in_flight).into_values().rev() {
            let Purpose::Application(request) = purpose else { continue };
            match request.repeat {
                Repeat::Safe => self.waiting.push_front(request),
                Repeat::Never => request.promise.fulfil(Err(RequestFailure::Unknown), wakes),
            }
        }
    }

    pub(crate) fn received(&mut self, now: Duration) {
        self.last_received = now;
    }

    pub(crate) fn ask(&mut self, request: Request, wakes: &mut Wakes) {
        if self.waiting.len() + self.in_flight.len() >= REQUESTS_MAX {
            request.promise.fulfil(Err(RequestFailure::TooMany), wakes);
        } else {
            self.waiting.push_back(request);
        }
    }

    pub(crate) fn next_waiting(&mut self) -> Option<Request> {
        self.waiting.pop_front()
    }

    /// The correlation id of a request that is sent now.
    pub(crate) fn register(&mut self, purpose: Purpose) -> CorrelationId {
        let correlation = CorrelationId(self.next_correlation);
        self.next_correlation += 1;
        self.in_flight.insert(correlation, purpose);
        correlation
    }

    /// What the reply with this header is for.
    pub(crate) fn claim(&mut self, header: &FrameHeader) -> Result<Purpose, LinkFault> {
        self.in_flight.remove(&header.correlation).ok_or(LinkFault::Unexpected { api: header.api })
    }

    pub(crate) fn pong(&mut self) {
        self.pinged_at = None;
    }

    /// Whether a ping is to be sent now.
    ///
    /// # Errors
    /// The last one was not answered.
    pub(crate) fn sign_of_life(&mut self, now: Duration) -> Result<bool, LinkFault> {
        if self.state == LinkState::Down {
            return Ok(false);
        }
        if self.pinged_at.is_some_and(|at| at + SILENCE_MAX <= now) {
            let silent = now.saturating_sub(self.last_received);
            if silent >= SILENCE_MAX {
                return Err(LinkFault::Silent(silent));
            }
        }
        let due =
            self.is_ready() && self.pinged_at.is_none() && self.last_received + SILENCE_MAX <= now;
        if due {
            self.pinged_at = Some(now);
        }
        Ok(due)
    }

    pub(crate) fn life_deadline(&self) -> Option<Duration> {
        match (self.state, self.pinged_at) {
            (LinkState::Down | LinkState::Greeting, _) => None,
            (_, Some(at)) => Some(at.max(self.last_received) + SILENCE_MAX),
            (_, None) => Some(self.last_received + SILENCE_MAX),
        }
    }

    pub(crate) fn has_requests(&self) -> bool {
        !self.waiting.is_empty()
            || self.in_flight.values().any(|purpose| matches!(purpose, Purpose::Application(_)))
    }

    /// Ends the application's requests whose time is over.
    pub(crate) fn expire(&mut self, now: Duration, wakes: &mut Wakes) {
        self.fail(|request| request.deadline <= now, None, wakes);
    }

    /// Ends all of the application's requests.
    pub(crate) fn close(&mut self, wakes: &mut Wakes) {
        self.fail(|_| true, Some(&RequestFailure::Closed), wakes);
    }

    fn fail(
        &mut self,
        which: impl Fn(&Request) -> bool,
        failure: Option<&RequestFailure>,
        wakes: &mut Wakes,
    ) {
        for _ in 0..self.waiting.len() {
            let Some(request) = self.waiting.pop_front() else { break };
            if which(&request) {
                let failure = failure.cloned().unwrap_or(RequestFailure::NotSent);
                request.promise.fulfil(Err(failure), wakes);
            } else {
                self.waiting.push_back(request);
            }
        }
        for purpose in self.in_flight.values_mut() {
            if !matches!(purpose, Purpose::Application(request) if which(request)) {
                continue;
            }
            // The reply may still come; nobody waits for it then.
            if let Purpose::Application(request) = std::mem::replace(purpose, Purpose::Ignored) {
                let failure = failure.cloned().unwrap_or(RequestFailure::TimedOut);
                request.promise.fulfil(Err(failure), wakes);
            }
        }
    }
}
