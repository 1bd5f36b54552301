//! Owns one client's socket: bytes in, frames to the session; what the session has to say, bytes out.
//!
//! Never knows what a frame means. Driven by its task, which is one hand-written `poll`: whatever wakes
//! it (bytes, room to write, the session's bell, a deadline) is looked at together. One task for both
//! directions needs no lock between them and answers a request without a second wake-up; a confirm
//! costs one wake-up, from the I/O thread straight to the task that writes it.
//!
//! ```text
//!            bytes              frames               chunks              bytes
//!  socket ────────► Input ────────────► Session ────────────► Transmit ────────► socket
//!           read           receive               transmit               write
//! ```
//! The arrows from left to right are tried in this order until none of them moves anything.
//! A connection whose first request is `PeerHello` is handed over to `peer`, where peers are served, once all
//! before it is answered.
//!
//! Nothing is read while the client does not take what is ready for it, nor while the session has too
//! much in flight: the kernel's window then slows the client down.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{
    Frame, FrameDecoder, FrameError, HELLO_BODY_BYTES_MAX, connection_error,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::io::poll_read_buf;

use super::Shared;
use super::counters::CloseReason;
use super::input::Input;
use super::signal::Signal;
use crate::join::{Session, Transmit, TransmitState};
use crate::peer::inbound::{self, Accepted};

/// Rounds of read and write before other connections get their turn: at most a few MiB.
const ROUNDS_MAX: u32 = 8;
/// Chunks handed to the kernel in one write; more follow in the next.
const SLICES_MAX: usize = 64;
/// How long a connection keeps an empty buffer after the last byte.
const BUFFER_IDLE: Duration = Duration::from_secs(1);
/// How soon a paused connection looks again, should nobody wake it.
const PAUSE_LOOK: Duration = Duration::from_millis(5);
/// Longest time spent on the last words of a connection.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// How long the client may take to hang up after the last words, and how much it may still send.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Why and with which last frame a connection ends.
struct End {
    reason: CloseReason,
    last: Option<Bytes>,
    /// It ends for its session only: a peer goes on with it.
    peer: Option<Frame>,
}

impl End {
    fn silent(reason: CloseReason) -> Self {
        Self { reason, last: None, peer: None }
    }
}

/// A moment at which something is due if nothing happens before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Handshake,
    Frame,
    Write,
    Idle,
    Release,
    Look,
}

struct Connection {
    stream: TcpStream,
    session: Session,
    signal: Arc<Signal>,
    shared: Arc<Shared>,
    decoder: FrameDecoder,
    input: Input,
    output: Transmit,
    /// The session may have something to transmit.
    pending: bool,
    /// A read from disk that the session waits for.
    loading: Option<JoinHandle<io::Result<()>>>,
    negotiated: bool,
    /// A request has come since `Hello`.
    requested: bool,
    /// The `PeerHello` that came first.
    peer: Option<Frame>,
    /// The client will send no more.
    ended: bool,
    paused: bool,
    /// The kernel takes no more since then.
    blocked: Option<Instant>,
    opened: Instant,
    received: Instant,
    timer: Pin<Box<Sleep>>,
    armed: Instant,
}

/// Serves one client until it goes, misbehaves, or the server drains; tells why.
///
/// Cancel-safe in the sense that dropping it closes socket and session; what was not sent is lost.
pub(super) async fn serve(
    stream: TcpStream,
    session: Session,
    signal: Arc<Signal>,
    shared: Arc<Shared>,
) -> CloseReason {
    let mut connection = Connection::new(stream, session, signal, shared);
    let mut end = poll_fn(|cx| connection.poll(cx)).await;
    if let Some(hello) = end.peer.take() {
        // Boxed: clients' tasks are not to be larger by what peers need.
        return Box::pin(connection.hand_over(hello)).await;
    }
    let reason = end.reason;
    if !matches!(reason, CloseReason::Broken | CloseReason::SlowReader) {
        // What the client does not take within this time is lost to it; it has gone or misbehaved.
        // Boxed: it would make every idle connection's task larger by its scratch space.
        let _late = timeout(FAREWELL_MAX, Box::pin(connection.farewell(end))).await;
    }
    connection.session.close();
    reason
}

impl Connection {
    fn new(stream: TcpStream, session: Session, signal: Arc<Signal>, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let armed = now + shared.timeouts.handshake;
        Self {
            stream,
            session,
            signal,
            decoder: FrameDecoder::new(HELLO_BODY_BYTES_MAX),
            input: Input::new(shared.read_bytes_max),
            output: Transmit::default(),
            pending: true,
            loading: None,
            negotiated: false,
            requested: false,
            peer: None,
            ended: false,
            paused: false,
            blocked: None,
            opened: now,
            received: now,
            timer: Box::pin(sleep_until(armed)),
            armed,
            shared,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // Registering before looking: a bell that rings from here on is seen or wakes.
        self.signal.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            match self.round(cx) {
                Err(end) => return Poll::Ready(end),
                Ok(Moved::Something) => {}
                Ok(Moved::Nothing) => return self.poll_due(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        if self.signal.is_aborted() {
            return Err(End::silent(CloseReason::Broken));
        }
        let read = self.read(cx)?;
        let written = self.write(cx)?;
        let quiet = !self.pending && self.output.is_empty() && self.session.is_settled();
        if quiet && let Some(hello) = self.peer.take() {
            return Err(End { reason: CloseReason::Client, last: None, peer: Some(hello) });
        }
        let leaving = self.ended || self.signal.is_draining();
        if leaving && quiet {
            let reason = if self.ended { CloseReason::Client } else { CloseReason::Shutdown };
            return Err(End::silent(reason));
        }
        Ok(if read == Moved::Nothing { written } else { read })
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        if !self.may_read() {
            return Ok(Moved::Nothing);
        }
        // No buffer before there is something for it: idle connections hold none.
        match self.stream.poll_read_ready(cx) {
            Poll::Pending => return Ok(Moved::Nothing),
            Poll::Ready(Err(error)) => return Err(broken(&error)),
            Poll::Ready(Ok(())) => {}
        }
        let missing = self.decoder.missing(self.input.bytes());
        self.input.prepare(missing, &self.shared.pool);
        let bytes = match poll_read_buf(Pin::new(&mut self.stream), cx, self.input.bytes()) {
            Poll::Pending => return Ok(Moved::Nothing),
            Poll::Ready(Err(error)) => return Err(broken(&error)),
            Poll::Ready(Ok(0)) if self.input.is_empty() => {
                self.ended = true;
                return Ok(Moved::Something);
            }
            Poll::Ready(Ok(0)) => return Err(End::silent(CloseReason::Broken)),
            Poll::Ready(Ok(bytes)) => bytes,
        };
        self.input.filled(bytes);
        self.received = Instant::now();
        self.shared.counters.reads.increment();
        self.shared.counters.bytes_received.add(bytes as u64);
        self.receive()?;
        Ok(Moved::Something)
    }

    /// Hands all complete frames to the session.
    fn receive(&mut self) -> Result<(), End> {
        let now = self.shared.clock.now();
        let mut frames = 0;
        let result = loop {
            let frame = match self.decoder.decode(self.input.bytes()) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(()),
                Err(error) => break Err(self.refuse(&error)),
            };
            frames += 1;
            if self.is_peer(&frame) {
                self.peer = Some(frame);
                break Ok(());
            }
            self.requested |= self.negotiated;
            if let Err(end) = self.session.receive(now, frame) {
                break Err(End {
                    reason: CloseReason::Error,
                    last: Some(end.into_frame()),
                    peer: None,
                });
            }
            if !self.negotiated {
                // Only `Hello` is received first.
                self.negotiated = true;
                self.decoder.set_max(self.shared.frame_bytes_max);
            }
        };
        self.pending |= frames > 0;
        self.shared.counters.frames_received.add(frames);
        result
    }

    /// Whether another broker begins to use the connection.
    fn is_peer(&self, frame: &Frame) -> bool {
        self.negotiated
            && !self.requested
            && self.shared.peers.is_some()
            && frame.header.api == Api::PeerHello as u16
            && frame.header.flags == 0
    }

    /// Leaves socket and input to `peer`; the session ends.
    async fn hand_over(self, hello: Frame) -> CloseReason {
        let Self { stream, session, signal, shared, input, .. } = self;
        drop(session);
        let peers = shared.peers.clone().expect("is_peer asks for it");
        let (server, options) = (peers.server, peers.options);
        let pool = Arc::clone(&shared.pool);
        inbound::serve(Accepted { stream, input, hello, signal, pool, server, options }).await
    }

    fn refuse(&self, error: &FrameError) -> End {
        let code = match error {
            FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
            FrameError::Flags(_) => ErrorCode::MalformedFrame,
        };
        let hint =
            if self.negotiated { "send smaller batches" } else { "is this a Postrider client?" };
        self.error(CloseReason::Error, code, format!("{error}; {hint}"))
    }

    fn error(&self, reason: CloseReason, code: ErrorCode, message: String) -> End {
        self.shared.counters.error(code);
        End { reason, last: Some(connection_error(&ErrorBody::new(code, message))), peer: None }
    }

    fn may_read(&mut self) -> bool {
        if self.ended || self.peer.is_some() || self.signal.is_draining() || !self.output.is_empty()
        {
            return false;
        }
        let paused = !self.session.may_receive();
        if paused != self.paused {
            self.paused = paused;
            // The client's silence begins when it is listened to again.
            self.received = Instant::now();
            if paused {
                self.shared.counters.read_pauses.increment();
            }
        }
        !paused
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        self.pending |= self.signal.take_transmit() | self.poll_loaded(cx);
        if self.output.is_empty() && self.pending {
            self.transmit();
        }
        if self.output.is_empty() {
            return Ok(Moved::Nothing);
        }
        let written = {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = slices.len().min(self.output.chunks.len());
            for (slice, chunk) in slices.iter_mut().zip(&self.output.chunks) {
                *slice = IoSlice::new(chunk);
            }
            let slices = slices.get(..count).expect("count is at most the length");
            Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
        };
        match written {
            Poll::Pending => {
                self.blocked.get_or_insert_with(Instant::now);
                Ok(Moved::Nothing)
            }
            Poll::Ready(Err(error)) => Err(broken(&error)),
            Poll::Ready(Ok(bytes)) => {
                self.blocked = None;
                self.shared.counters.writes.increment();
                self.shared.counters.bytes_sent.add(bytes as u64);
                advance(&mut self.output, bytes);
                Ok(Moved::Something)
            }
        }
    }

    fn transmit(&mut self) {
        self.pending = false;
        match self.session.transmit(self.shared.clock.now(), &mut self.output) {
            TransmitState::Idle => {}
            TransmitState::More => self.pending = true,
            TransmitState::Cold(run) => {
                // One at a time for each connection; the runtime's blocking threads bound the rest.
                if self.loading.is_none() {
                    self.loading = Some(tokio::task::spawn_blocking(move || run.load()));
                }
            }
        }
    }

    /// Whether a read from disk has just ended. Its failure shows when the session reads again.
    fn poll_loaded(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(loading) = &mut self.loading else { return false };
        let Poll::Ready(result) = Pin::new(loading).poll(cx) else { return false };
        self.loading = None;
        if let Ok(Err(error)) = result {
            tracing::error!(%error, "a segment could not be read");
        }
        true
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let (due, at) = self.next_due();
            if at <= Instant::now() {
                match self.act(due) {
                    Some(end) => return Poll::Ready(end),
                    None => continue,
                }
            }
            // A timer that fires too early costs less than moving it with every byte.
            if at < self.armed || self.timer.is_elapsed() {
                self.timer.as_mut().reset(at);
                self.armed = at;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// The earliest deadline. There is always one, if only in the far future.
    fn next_due(&self) -> (Due, Instant) {
        const NEVER: Duration = Duration::from_secs(365 * 86_400);
        let timeouts = &self.shared.timeouts;
        let idle = if timeouts.idle.is_zero() { NEVER } else { timeouts.idle };
        let mut next = (Due::Idle, self.received + idle);
        let mut earlier = |due, at| {
            if at < next.1 {
                next = (due, at);
            }
        };
        if self.paused {
            // A paused client is not silent: nobody listens.
            next = (Due::Look, Instant::now() + PAUSE_LOOK);
        } else if !self.negotiated {
            earlier(Due::Handshake, self.opened + timeouts.handshake);
        } else if !self.input.is_empty() {
            earlier(Due::Frame, self.received + timeouts.frame);
        } else if self.input.holds_memory() {
            earlier(Due::Release, self.received + BUFFER_IDLE);
        }
        if let Some(blocked) = self.blocked {
            // While the client takes nothing, it is not read either.
            next = (Due::Write, blocked + timeouts.write);
        }
        next
    }

    fn act(&mut self, due: Due) -> Option<End> {
        let timeouts = &self.shared.timeouts;
        match due {
            Due::Look => None,
            Due::Release => {
                self.input.release(&self.shared.pool);
                None
            }
            Due::Handshake => Some(self.error(
                CloseReason::HandshakeTimeout,
                ErrorCode::TimedOut,
                format!("no complete Hello came within {:?}: send it first", timeouts.handshake),
            )),
            Due::Frame => Some(self.error(
                CloseReason::FrameTimeout,
                ErrorCode::TimedOut,
                format!("the rest of a frame did not come within {:?}: reconnect", timeouts.frame),
            )),
            Due::Idle => Some(self.error(
                CloseReason::Silent,
                ErrorCode::TimedOut,
                format!(
                    "nothing came for {:?}: send Ping when there is nothing else",
                    timeouts.idle
                ),
            )),
            Due::Write => Some(End::silent(CloseReason::SlowReader)),
        }
    }

    /// Sends what is ready and the last frame, and waits for the client to hang up, because closing a
    /// socket that holds unread bytes would destroy what the client has not read yet.
    async fn farewell(&mut self, end: End) -> io::Result<()> {
        if self.output.is_empty() {
            self.transmit();
        }
        self.output.chunks.extend(end.last);
        while !self.output.is_empty() {
            let chunk = self.output.chunks.front().expect("it is not empty");
            let bytes = self.stream.write(chunk).await?;
            self.shared.counters.bytes_sent.add(bytes as u64);
            advance(&mut self.output, bytes);
        }
        self.stream.shutdown().await?;
        let discard = async {
            let mut scratch = [0; 1024];
            let mut left = LINGER_BYTES_MAX;
            while left > 0 && !self.ended {
                match self.stream.read(&mut scratch).await? {
                    0 => break,
                    bytes => left = left.saturating_sub(bytes),
                }
            }
            io::Result::Ok(())
        };
        timeout(LINGER_MAX, discard).await.unwrap_or(Ok(()))
    }
}

/// Whether a round brought the connection on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Something,
    Nothing,
}

fn broken(error: &io::Error) -> End {
    tracing::debug!(%error, "a connection broke");
    End::silent(CloseReason::Broken)
}

/// Forgets what the kernel took.
fn advance(output: &mut Transmit, mut bytes: usize) {
    while let Some(chunk) = output.chunks.front_mut() {
        if bytes < chunk.len() {
            chunk.advance(bytes);
            return;
        }
        bytes -= chunk.len();
        output.chunks.pop_front();
    }
}
