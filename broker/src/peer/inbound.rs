//! Owns the serving of one incoming connection of another broker: the check of its `PeerHello`, the dispatch
//! of its frames, its replies and pushes.
//!
//! Never knows what a request means. Driven by the connection's task, which hands its socket over.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use postrider_protocol::api::{Api, Direction};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{self, Frame, FrameHeader};
use postrider_protocol::message::{Message, PeerHello, PeerHelloReply, PeerIdentity, PingReply};
use postrider_protocol::types::CorrelationId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::pipe::{Cut, Pipe, PipeEvents};
use super::queue::{PushError, SendQueue};
use super::{PeerOptions, PeerServer};
use crate::net::{BufferPool, CloseReason, Input, Signal};

/// Longest time for a refusal to be read.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Pushes frames to the broker at the other end of an incoming connection, from any thread.
#[derive(Clone, Debug)]
pub struct PeerOutbox {
    queue: Arc<SendQueue>,
}

impl PeerOutbox {
    /// Queues one frame, given in parts that are not copied: a head, and slices of the log.
    ///
    /// # Errors
    /// `Full`: nothing is queued; `PeerServer::room` is called when half of the queue is free. `Closed`.
    pub fn push(&self, parts: impl IntoIterator<Item = Bytes>) -> Result<(), PushError> {
        self.queue.push(parts)
    }

    /// Bytes that find room now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.queue.room()
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether both are of one connection.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.queue, &other.queue)
    }
}

/// Answers one request, from any thread. Dropped, it answers `Internal`.
#[derive(Debug)]
pub struct Replier {
    queue: Arc<SendQueue>,
    unanswered: Arc<AtomicUsize>,
    api: Api,
    correlation: CorrelationId,
    done: bool,
}

impl Replier {
    /// Answers.
    ///
    /// # Panics
    /// If it is the reply of another api.
    pub fn reply<M: Message>(mut self, message: &M) {
        assert!(M::API == self.api, "a reply has the api of its request");
        self.send(frame::reply(message, self.correlation));
    }

    /// Refuses.
    pub fn refuse(mut self, error: &ErrorBody) {
        self.send(frame::error_reply(self.api as u16, self.correlation, error));
    }

    fn send(&mut self, frame: Bytes) {
        self.done = true;
        self.unanswered.fetch_sub(1, Ordering::AcqRel);
        self.queue.push_reply(frame);
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if !self.done {
            let error = ErrorBody::new(ErrorCode::Internal, "the request was given up");
            self.send(frame::error_reply(self.api as u16, self.correlation, &error));
        }
    }
}

/// What a connection hands over.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) input: Input,
    pub(crate) hello: Frame,
    pub(crate) signal: Arc<Signal>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) server: Arc<dyn PeerServer>,
    pub(crate) options: PeerOptions,
}

/// Serves a peer until its connection ends; tells why. At a drain it ends at once.
pub(crate) async fn serve(accepted: Accepted) -> CloseReason {
    let Accepted { stream, input, hello, signal, pool, server, options } = accepted;
    let header = hello.header;
    let (from, reply) = match admit(&*server, hello) {
        Ok(admitted) => admitted,
        Err(error) => {
            tracing::warn!(error = %error.message, "a broker was refused");
            let last = frame::error_reply(header.api, header.correlation, &error);
            // A dialler that does not read it in time has gone.
            let _late = timeout(FAREWELL_MAX, refuse(stream, last)).await;
            return CloseReason::Error;
        }
    };
    let queue = Arc::new(SendQueue::new(options.queue_bytes_max));
    queue.push_reply(frame::reply(&reply, header.correlation));
    let outbox = PeerOutbox { queue: Arc::clone(&queue) };
    let unanswered = Arc::new(AtomicUsize::new(0));
    server.connected(from, outbox.clone());
    let mut pipe = Pipe::new(stream, input, pool, queue, options);
    let mut events = Events {
        server: &*server,
        from,
        outbox: &outbox,
        unanswered,
        calls_max: options.calls_max,
    };
    let reason = poll_fn(|cx| {
        signal.register(cx.waker());
        if signal.is_draining() || signal.is_aborted() {
            return Poll::Ready(CloseReason::Shutdown);
        }
        pipe.poll(cx, &mut events).map(|cut| match cut {
            Cut::Ended => CloseReason::Client,
            Cut::Silent => CloseReason::Silent,
            Cut::Violation | Cut::Stopped => CloseReason::Error,
        })
    })
    .await;
    outbox.close();
    server.disconnected(from, &outbox);
    reason
}

fn admit(
    server: &dyn PeerServer,
    hello: Frame,
) -> Result<(PeerIdentity, PeerHelloReply), ErrorBody> {
    let hello: PeerHello = hello.message().map_err(|error| {
        ErrorBody::new(ErrorCode::MalformedFrame, format!("the frame is malformed: {error}"))
    })?;
    let local = server.local();
    local.admit(&hello, server.known_incarnation(hello.from.node))?;
    let reply = PeerHelloReply { identity: local.identity, metadata_index: local.metadata_index };
    Ok((hello.from, reply))
}

/// Says why, and waits until the dialler hangs up: closing a socket with unread bytes would destroy it.
async fn refuse(mut stream: TcpStream, last: Bytes) -> std::io::Result<()> {
    stream.write_all(&last).await?;
    stream.shutdown().await?;
    let mut scratch = [0; 1024];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}

struct Events<'a> {
    server: &'a dyn PeerServer,
    from: PeerIdentity,
    outbox: &'a PeerOutbox,
    unanswered: Arc<AtomicUsize>,
    calls_max: usize,
}

impl Events<'_> {
    fn refuse(&self, header: FrameHeader, code: ErrorCode, text: &str) {
        let error = ErrorBody::new(code, text);
        let queue = &self.outbox.queue;
        queue.push_reply(frame::error_reply(header.api, header.correlation, &error));
    }

    fn violation(&self, header: FrameHeader) -> Cut {
        tracing::warn!(node = %self.from.node, api = header.api, "a peer sent what only this side may");
        Cut::Violation
    }

    fn request(&self, api: Api, frame: Frame) {
        let header = frame.header;
        if self.unanswered.load(Ordering::Acquire) >= self.calls_max {
            let text = "as many requests of this broker are unanswered as may be";
            return self.refuse(header, ErrorCode::Overloaded, text);
        }
        self.unanswered.fetch_add(1, Ordering::AcqRel);
        let replier = Replier {
            queue: Arc::clone(&self.outbox.queue),
            unanswered: Arc::clone(&self.unanswered),
            api,
            correlation: header.correlation,
            done: false,
        };
        self.server.request(self.from, api, frame.body, replier);
    }
}

impl PipeEvents for Events<'_> {
    fn frame(&mut self, frame: Frame) -> Result<(), Cut> {
        let header = frame.header;
        let api = Api::from_u16(header.api).filter(|_api| header.version == 1);
        match api {
            _ if header.flags != 0 => Err(self.violation(header)),
            Some(Api::Ping) => {
                let reply = frame::reply(&PingReply {}, header.correlation);
                self.outbox.queue.push_reply(reply);
                Ok(())
            }
            Some(Api::ReplicaAck) => {
                self.server.one_way(self.from, Api::ReplicaAck, frame.body);
                Ok(())
            }
            Some(api) if is_peer_request(api) => {
                self.request(api, frame);
                Ok(())
            }
            Some(api) if api.direction() != Direction::Request => Err(self.violation(header)),
            Some(_) => {
                let text = "this connection is one between brokers: open another one";
                self.refuse(header, ErrorCode::BadRequest, text);
                Ok(())
            }
            None => {
                let text = "the api, or its version, is not known here";
                self.refuse(header, ErrorCode::UnknownApi, text);
                Ok(())
            }
        }
    }

    fn room(&mut self) {
        self.server.room(self.from, self.outbox);
    }

    fn tick(&mut self) {}
}

fn is_peer_request(api: Api) -> bool {
    matches!(
        api,
        Api::RaftCall
            | Api::Heartbeat
            | Api::OpenReplica
            | Api::AlterIsr
            | Api::ProbeEnd
            | Api::JoinCluster
            | Api::Propose
            | Api::FetchSnapshot
            | Api::Resign
    )
}
