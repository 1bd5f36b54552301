//! Owns the task that keeps one outgoing connection alive: dial, handshake, move frames, dial again; and
//! what it learns about why that fails.
//!
//! Never interprets a reply. Driven by `PeerLinks`.
//!
//! ```text
//!  Dialling ──verified──► Up ──cut──► Dialling (at once, if it was up for a second)
//!     └──failed──► pause, doubling ──► Dialling
//! ```

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postrider_protocol::api::{Api, PROTOCOL_VERSION};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{
    self, FRAME_HEADER_BYTES, Frame, FrameDecoder, HELLO_BODY_BYTES_MAX,
};
use postrider_protocol::message::{
    FEATURE_LZ4, FEATURE_ZSTD, Hello, HelloReply, Message, PeerHello, PeerHelloReply, Ping,
};
use postrider_protocol::types::{CorrelationId, Incarnation, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::pipe::{Cut, Pipe, PipeEvents};
use super::queue::{PushError, SendQueue};
use super::{Evidence, PeerAddress, PeerError, PeerHandler, PeerLocal, PeerOptions, differ};
use crate::net::{BufferPool, Input};

/// A connection that lived shorter is not dialled again at once.
const STEADY: Duration = Duration::from_secs(1);
const READ_BYTES_MAX: usize = 256 << 10;
/// Correlation ids of the handshake and of pings, which are no calls.
const HELLO: CorrelationId = CorrelationId(1);
const PEER_HELLO: CorrelationId = CorrelationId(2);
const PING: CorrelationId = CorrelationId(3);
const FIRST_CALL: u64 = 16;

/// What all links of a broker share.
pub(super) struct Common {
    pub(super) options: PeerOptions,
    pub(super) handler: Arc<dyn PeerHandler>,
    pub(super) local: Mutex<PeerLocal>,
    pub(super) pool: Arc<BufferPool>,
}

/// The reply to a call: its body, or why there is none.
type Answer = Result<Bytes, PeerError>;

/// The calls of one connection that wait for replies.
pub(super) struct Calls {
    state: Mutex<Waiting>,
}

struct Waiting {
    next: u64,
    waiters: BTreeMap<u64, oneshot::Sender<Answer>>,
    ended: bool,
}

impl Calls {
    fn new() -> Self {
        let waiting = Waiting { next: FIRST_CALL, waiters: BTreeMap::new(), ended: false };
        Self { state: Mutex::new(waiting) }
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a call and where its answer will be.
    fn begin(&self, calls_max: usize) -> Result<(u64, oneshot::Receiver<Answer>), PeerError> {
        let mut state = self.state();
        if state.ended {
            return Err(PeerError::Disconnected);
        }
        if state.waiters.len() >= calls_max {
            return Err(PeerError::Full);
        }
        let (sender, receiver) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.waiters.insert(number, sender);
        Ok((number, receiver))
    }

    fn forget(&self, number: u64) {
        self.state().waiters.remove(&number);
    }

    fn answer(&self, frame: Frame) {
        let number = frame.header.correlation.0;
        // A call that was given up is not waited for any more.
        let Some(waiter) = self.state().waiters.remove(&number) else { return };
        let answer = if frame.header.is_error() {
            Err(ErrorBody::decode(&frame.body).map_or(PeerError::Malformed, PeerError::Refused))
        } else {
            Ok(frame.body)
        };
        let _given_up = waiter.send(answer);
    }

    /// All that wait hear that the connection has ended.
    fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.waiters.clear();
    }
}

/// A verified connection.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) queue: Arc<SendQueue>,
    pub(super) calls: Arc<Calls>,
    pub(super) incarnation: Incarnation,
    /// The largest body that the other side takes.
    frame_bytes_max: u32,
}

/// Takes a call out of the list when its future is dropped.
struct Call {
    calls: Arc<Calls>,
    number: u64,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.forget(self.number);
    }
}

impl Live {
    /// Queues the parts of one frame.
    pub(super) fn push(&self, parts: Vec<Bytes>) -> Result<(), PeerError> {
        let body_len = parts.iter().map(Bytes::len).sum::<usize>() - FRAME_HEADER_BYTES;
        if u32::try_from(body_len).map_or(true, |body_len| body_len > self.frame_bytes_max) {
            return Err(PeerError::TooLarge(body_len));
        }
        self.queue.push(parts).map_err(|error| match error {
            PushError::Full => PeerError::Full,
            PushError::Closed => PeerError::Disconnected,
        })
    }

    /// Sends a request and waits for its reply. Cancel-safe: dropped, the reply is ignored.
    pub(super) async fn call<Q: Message>(
        &self,
        request: &Q,
        calls_max: usize,
        within: Duration,
    ) -> Result<Bytes, PeerError> {
        let (number, answer) = self.calls.begin(calls_max)?;
        let _call = Call { calls: Arc::clone(&self.calls), number };
        self.push(vec![frame::request(request, CorrelationId(number))])?;
        match timeout(within, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_ended)) => Err(PeerError::Disconnected),
            Err(_elapsed) => Err(PeerError::TimedOut),
        }
    }
}

/// One known broker.
pub(super) struct Link {
    pub(super) node: NodeId,
    state: Mutex<LinkState>,
    changed: Notify,
    pub(super) stop: CancellationToken,
}

struct LinkState {
    address: PeerAddress,
    live: Option<Live>,
}

impl Link {
    pub(super) fn new(node: NodeId, address: PeerAddress, stop: CancellationToken) -> Self {
        let state = Mutex::new(LinkState { address, live: None });
        Self { node, state, changed: Notify::new(), stop }
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn live(&self) -> Option<Live> {
        self.state().live.clone()
    }

    /// Another address: what is connected elsewhere is given up.
    pub(super) fn set_address(&self, address: PeerAddress) {
        let mut state = self.state();
        if state.address == address {
            return;
        }
        // A newer registration alone does not move a connection that has it already.
        let stays = state.address.host == address.host
            && state.address.port == address.port
            && state.address.storage_id == address.storage_id
            && state.live.as_ref().is_some_and(|live| live.incarnation >= address.incarnation);
        state.address = address;
        if stays {
            return;
        }
        if let Some(live) = &state.live {
            live.queue.close();
        }
        drop(state);
        self.changed.notify_one();
    }
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    /// By all addresses.
    #[error("it refuses connections")]
    Refused,
    #[error("it does not answer in time")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The handshake, by either side.
    #[error("the handshake was refused: {}", .0.name())]
    Denied(ErrorCode),
}

/// What a link's task knows about the past.
#[derive(Default)]
struct Past {
    /// It was connected to this address and is not any more.
    was_up: bool,
    /// A dial since then ended in the middle: the other side may be going just now.
    going: bool,
    reported: Option<Evidence>,
}

impl Past {
    fn report(&mut self, common: &Common, node: NodeId, evidence: Evidence) {
        if self.reported != Some(evidence) {
            self.reported = Some(evidence);
            tracing::info!(%node, ?evidence, "a broker is not connected");
            common.handler.disconnected(node, evidence);
        }
    }

    fn evidence(&self, error: &DialError) -> Evidence {
        match error {
            DialError::Refused if self.was_up => Evidence::Dead,
            DialError::TimedOut => Evidence::Silent,
            DialError::Refused | DialError::Io(_) => Evidence::Unreachable,
            DialError::Denied(code) => Evidence::Refused(*code),
        }
    }
}

/// Keeps the connection alive until the link is stopped.
pub(super) async fn run(link: Arc<Link>, common: Arc<Common>) {
    let options = common.options;
    let (mut past, mut pause) = (Past::default(), options.redial_min);
    loop {
        let address = link.state().address.clone();
        let dialled = tokio::select! {
            () = link.stop.cancelled() => return,
            () = link.changed.notified() => {
                (past.was_up, pause) = (false, options.redial_min);
                continue;
            }
            dialled = timeout(options.dial_max, dial(Some(link.node), &common, &address)) => dialled,
        };
        match dialled.unwrap_or(Err(DialError::TimedOut)) {
            Ok((pipe, live)) => {
                if past.was_up && past.reported.is_none() {
                    common.handler.disconnected(link.node, Evidence::Lost);
                }
                past = Past { was_up: true, ..Past::default() };
                let began = Instant::now();
                let cut = serve(&link, &common, &address, pipe, live).await;
                if link.stop.is_cancelled() {
                    return;
                }
                tracing::debug!(node = %link.node, ?cut, "a link ended");
                match cut {
                    Cut::Silent => past.report(&common, link.node, Evidence::Silent),
                    Cut::Violation | Cut::Stopped => {
                        past.report(&common, link.node, Evidence::Lost);
                    }
                    // The next dial tells whether the process is dead.
                    Cut::Ended => {}
                }
                if began.elapsed() >= STEADY {
                    pause = options.redial_min;
                    continue;
                }
            }
            Err(error) => {
                tracing::debug!(node = %link.node, %error, "a broker could not be dialled");
                let evidence = past.evidence(&error);
                let first = past.was_up && !std::mem::replace(&mut past.going, true);
                // A process that ends may still have let the dial in; the next one tells.
                if !(first && matches!(error, DialError::Io(_))) {
                    past.report(&common, link.node, evidence);
                }
            }
        }
        tokio::select! {
            () = link.stop.cancelled() => return,
            () = link.changed.notified() => (past.was_up, pause) = (false, options.redial_min),
            () = sleep(pause) => pause = (pause * 2).min(options.redial_max),
        }
    }
}

/// One call to whoever listens at an address, on a connection of its own.
pub(super) async fn ask<Q: Message>(
    common: &Common,
    address: &PeerAddress,
    request: &Q,
    within: Duration,
) -> Answer {
    let dialled = timeout(common.options.dial_max, dial(None, common, address)).await;
    let (mut pipe, live) = match dialled.unwrap_or(Err(DialError::TimedOut)) {
        Ok(connected) => connected,
        Err(DialError::Denied(code)) => {
            let text = format!("{}:{} refused the handshake", address.host, address.port);
            return Err(PeerError::Refused(ErrorBody::new(code, text)));
        }
        Err(error) => return Err(PeerError::Unreachable(error.to_string())),
    };
    let mut events = Asking { live: &live };
    tokio::select! {
        answer = live.call(request, 1, within) => answer,
        _cut = poll_fn(|cx| pipe.poll(cx, &mut events)) => Err(PeerError::Disconnected),
    }
}

/// A connection that only carries calls.
struct Asking<'a> {
    live: &'a Live,
}

impl PipeEvents for Asking<'_> {
    fn frame(&mut self, frame: Frame) -> Result<(), Cut> {
        if !frame.header.is_reply() {
            return Err(Cut::Violation);
        }
        self.live.calls.answer(frame);
        Ok(())
    }

    fn room(&mut self) {}

    fn tick(&mut self) {
        ping(self.live);
    }
}

fn ping(live: &Live) {
    // A queue without room has enough to say.
    let _full = live.queue.push([frame::request(&Ping {}, PING)]);
}

/// Resolves, connects, and verifies that the wanted broker was reached.
async fn dial(
    to_node: Option<NodeId>,
    common: &Common,
    address: &PeerAddress,
) -> Result<(Pipe, Live), DialError> {
    let mut stream = connect(address).await?;
    stream.set_nodelay(true)?;
    let local = *common.local.lock().unwrap_or_else(PoisonError::into_inner);
    let mut first = frame::request(&hello(&local, &common.options), HELLO).to_vec();
    let peer_hello = PeerHello {
        cluster_id: local.cluster_id,
        from: local.identity,
        to_node,
        to_storage_id: address.storage_id,
    };
    first.extend_from_slice(&frame::request(&peer_hello, PEER_HELLO));
    stream.write_all(&first).await?;
    let mut input = Input::new(READ_BYTES_MAX);
    let greeting: HelloReply = read_reply(&mut stream, &mut input, &common.pool).await?;
    if differ(&greeting.cluster_id.0, &local.cluster_id.0) {
        return Err(DialError::Denied(ErrorCode::WrongCluster));
    }
    let reply: PeerHelloReply = read_reply(&mut stream, &mut input, &common.pool).await?;
    let reached = reply.identity;
    let other = to_node.is_some_and(|wanted| wanted != reached.node);
    if other || differ(&reached.storage_id.0, &address.storage_id.0) {
        return Err(DialError::Denied(ErrorCode::WrongNode));
    }
    if reached.incarnation < address.incarnation {
        return Err(DialError::Denied(ErrorCode::FencedIncarnation));
    }
    let queue = Arc::new(SendQueue::new(common.options.queue_bytes_max));
    let calls = Arc::new(Calls::new());
    let frame_bytes_max = common.options.frame_bytes_max.min(greeting.limits.frame_bytes_max);
    let incarnation = reached.incarnation;
    let live = Live { queue: Arc::clone(&queue), calls, incarnation, frame_bytes_max };
    Ok((Pipe::new(stream, input, Arc::clone(&common.pool), queue, common.options), live))
}

async fn connect(address: &PeerAddress) -> Result<TcpStream, DialError> {
    let (mut refused, mut last) = (true, None);
    for resolved in lookup_host((address.host.as_str(), address.port)).await? {
        match TcpStream::connect(resolved).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                refused &= error.kind() == io::ErrorKind::ConnectionRefused;
                last = Some(error);
            }
        }
    }
    Err(match last {
        Some(_) if refused => DialError::Refused,
        Some(error) => DialError::Io(error),
        None => DialError::Io(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
    })
}

fn hello(local: &PeerLocal, options: &PeerOptions) -> Hello {
    let mut client_id = local.identity.storage_id.0;
    // All connections of one run of a broker, apart from those of another run.
    let run = local.identity.incarnation.0.to_le_bytes();
    client_id.iter_mut().zip(run).for_each(|(byte, run)| *byte ^= run);
    Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        features: FEATURE_LZ4 | FEATURE_ZSTD,
        frame_bytes_max: options.frame_bytes_max,
        client_name: format!("broker-{}", local.identity.node),
        client_id,
        cluster_id: local.cluster_id,
    }
}

/// The next frame as the reply to a step of the handshake.
async fn read_reply<R: Message>(
    stream: &mut TcpStream,
    input: &mut Input,
    pool: &BufferPool,
) -> Result<R, DialError> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the handshake is malformed");
    let mut decoder = FrameDecoder::new(HELLO_BODY_BYTES_MAX);
    loop {
        // Frames that come behind the handshake stay in the input.
        if let Some(frame) = decoder.decode(input.bytes()).map_err(|_error| malformed())? {
            if frame.header.is_error() {
                let error = ErrorBody::decode(&frame.body).map_err(|_error| malformed())?;
                tracing::warn!(error = %error.message, "a broker refused the handshake");
                return Err(DialError::Denied(error.code));
            }
            return Ok(frame.message().map_err(|_error| malformed())?);
        }
        let missing = decoder.missing(input.bytes());
        input.prepare(missing, pool);
        let bytes = stream.read_buf(input.bytes()).await?;
        if bytes == 0 {
            return Err(DialError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        input.filled(bytes);
    }
}

/// Uses a verified connection until it ends.
async fn serve(
    link: &Link,
    common: &Common,
    address: &PeerAddress,
    mut pipe: Pipe,
    live: Live,
) -> Cut {
    {
        let mut state = link.state();
        if state.address != *address {
            return Cut::Stopped; // It moved while it was dialled.
        }
        state.live = Some(live.clone());
    }
    common.handler.connected(link.node, live.incarnation);
    let mut events = Events { link, common, live: &live };
    let moved = poll_fn(|cx| pipe.poll(cx, &mut events));
    let cut = tokio::select! {
        cut = moved => cut,
        () = link.stop.cancelled() => Cut::Stopped,
    };
    link.state().live = None;
    live.queue.close();
    live.calls.end();
    cut
}

struct Events<'a> {
    link: &'a Link,
    common: &'a Common,
    live: &'a Live,
}

impl PipeEvents for Events<'_> {
    fn frame(&mut self, frame: Frame) -> Result<(), Cut> {
        if frame.header.is_reply() {
            self.live.calls.answer(frame);
            return Ok(());
        }
        if frame.header.api != Api::ReplicaEntries as u16 {
            tracing::warn!(node = %self.link.node, api = frame.header.api, "a peer sends another event");
            return Err(Cut::Violation);
        }
        self.common.handler.event(self.link.node, frame);
        Ok(())
    }

    fn room(&mut self) {}

    fn tick(&mut self) {
        ping(self.live);
    }
}
