//! Owns the connection task: addresses, sockets, clocks, reconnecting. Decides nothing about the protocol (the
//! engine does). One task per client; `client` starts it and joins it.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::{Buf, BytesMut};
use postrider_protocol::{error::ErrorBody, types::TimestampMs};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::TcpStream,
    sync::{Notify, broadcast, oneshot},
    time::{Instant, Sleep},
};

use crate::{
    backoff::Backoff,
    client::ClientEvent,
    core::{Engine, Transmit, completion, link::LinkFault},
    error::{Attempt, ConnectError},
    url::HostPort,
};

/// Free space that a read starts with; doubles while reads fill it.
const READ_BYTES_MIN: usize = 32 << 10;
/// The largest free space for a read.
const READ_BYTES_MAX: usize = 512 << 10;
/// How much is taken from the engine for one round of writes.
const WRITE_BYTES: usize = 256 << 10;
/// Slices per vectored write.
const WRITE_SLICES: usize = 64;
/// How long the task goes on for what is unconfirmed after the last handle was dropped.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the handles and the connection task share.
pub(crate) struct Shared {
    engine: Mutex<Engine>,
    notify: Notify,
    started: Instant,
    pub(crate) events: broadcast::Sender<ClientEvent>,
    /// Of the broker that greeted last; empty before the first.
    pub(crate) server_version: Mutex<String>,
    /// The engine is closed: the task ends.
    closing: AtomicBool,
    /// The last handle is gone: the task ends when nothing is unconfirmed.
    released: AtomicBool,
}

impl Shared {
    pub(crate) fn new(engine: Engine, events: broadcast::Sender<ClientEvent>) -> Self {
        Self {
            engine: Mutex::new(engine),
            notify: Notify::new(),
            started: Instant::now(),
            events,
            server_version: Mutex::new(String::new()),
            closing: AtomicBool::new(false),
            released: AtomicBool::new(false),
        }
    }

    /// Monotonic time since the client was made.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Monotonic and wall time.
    pub(crate) fn clock(&self) -> (Duration, TimestampMs) {
        (self.now(), wall_time())
    }

    /// Calls the engine under its lock; then, without it, wakes whom the call wakes.
    #[inline]
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut Engine) -> R) -> R {
        let mut engine = completion::lock(&self.engine);
        let result = call(&mut engine);
        let mut wakes = engine.take_wakes();
        let attention = engine.take_attention();
        drop(engine);
        if attention {
            self.notify.notify_one();
        }
        wakes.wake();
        result
    }

    /// Makes the task look: something waits for it that needed no lock.
    pub(crate) fn nudge(&self) {
        self.notify.notify_one();
    }

    /// Ends the task; the engine must be closed before.
    pub(crate) fn end(&self) {
        self.closing.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Ends the task once nothing is unconfirmed.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

fn wall_time() -> TimestampMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    TimestampMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the task needs beside the shared state.
pub(crate) struct Dialer {
    pub(crate) hosts: Vec<HostPort>,
    pub(crate) backoff: Backoff,
    /// For one address: connecting and the greeting.
    pub(crate) attempt_timeout: Duration,
    pub(crate) random: u64,
}

/// The connection task: connects, converses, reconnects, until the client ends. `first` learns of the first
/// round; if it failed, the task ends.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut dialer: Dialer,
    first: oneshot::Sender<Result<(), ConnectError>>,
) {
    let mut first = Some(first);
    let mut failures = 0;
    let mut release_by = None;
    while !shared.is_closing() {
        let round = dialer.round(&shared, &mut first).await;
        match round {
            Round::Closed => break,
            Round::Lost { cause } => {
                failures = 0;
                tracing::info!(cause, "connection lost");
                let wait = dialer.wait(failures);
                emit(&shared, ClientEvent::Disconnected { cause, retry_in: wait });
                pause(&shared, wait).await;
            }
            Round::Failed { attempts, refused } => {
                if let Some(first) = first.take() {
                    let error =
                        refused.map_or(ConnectError::Unreachable(attempts), ConnectError::Refused);
                    // Nobody may wait any more; then nobody holds the client either.
                    drop(first.send(Err(error)));
                    shared.with(Engine::close);
                    break;
                }
                failures += 1;
                let wait = dialer.wait(failures);
                emit(&shared, ClientEvent::ConnectFailed { attempts, retry_in: wait });
                pause(&shared, wait).await;
            }
        }
        if release_is_over(&shared, &mut release_by) {
            break;
        }
    }
    shared.with(Engine::close);
}

enum Round {
    /// The client ended.
    Closed,
    /// A connection was greeted and later lost.
    Lost { cause: String },
    /// No address gave a connection.
    Failed { attempts: Vec<Attempt>, refused: Option<ErrorBody> },
}

impl Dialer {
    fn wait(&mut self, failures: u32) -> Duration {
        let random = self.next_random();
        self.backoff.delay(failures, random)
    }

    /// splitmix64 over a seed from the operating system: jitter needs no better.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }

    /// Tries every address of every host once, names resolved anew, until one converses.
    async fn round(
        &self,
        shared: &Shared,
        first: &mut Option<oneshot::Sender<Result<(), ConnectError>>>,
    ) -> Round {
        let mut attempts = Vec::new();
        let mut refused = None;
        for host in &self.hosts {
            let resolved = tokio::net::lookup_host((host.host.as_str(), host.port));
            let addresses = match tokio::time::timeout(self.attempt_timeout, resolved).await {
                Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
                Ok(Err(why)) => {
                    attempts.push(Attempt { address: host.to_string(), cause: why.to_string() });
                    continue;
                }
                Err(_elapsed) => {
                    let cause = "the name was not resolved in time".to_owned();
                    attempts.push(Attempt { address: host.to_string(), cause });
                    continue;
                }
            };
            for address in addresses {
                if shared.is_closing() {
                    return Round::Closed;
                }
                match self.try_address(shared, address, first).await {
                    Conversation::Closed => return Round::Closed,
                    Conversation::Lost(cause) => return Round::Lost { cause },
                    Conversation::NeverBegan { cause, refusal } => {
                        attempts.push(Attempt { address: address.to_string(), cause });
                        refused = refusal.or(refused);
                    }
                }
            }
        }
        Round::Failed { attempts, refused }
    }

    async fn try_address(
        &self,
        shared: &Shared,
        address: SocketAddr,
        first: &mut Option<oneshot::Sender<Result<(), ConnectError>>>,
    ) -> Conversation {
        let greet_by = Instant::now() + self.attempt_timeout;
        match tokio::time::timeout_at(greet_by, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => converse(shared, stream, address, greet_by, first).await,
            Ok(Err(why)) => Conversation::NeverBegan { cause: why.to_string(), refusal: None },
            Err(_elapsed) => {
                let cause = "no connection in time".to_owned();
                Conversation::NeverBegan { cause, refusal: None }
            }
        }
    }
}

fn emit(shared: &Shared, event: ClientEvent) {
    // No receiver is fine: nobody has asked for events.
    drop(shared.events.send(event));
}

/// Sleeps, with requests and deliveries still running into their deadlines, until the client ends.
async fn pause(shared: &Shared, wait: Duration) {
    let until = Instant::now() + wait;
    while !shared.is_closing() {
        let now = Instant::now();
        if now >= until {
            return;
        }
        let due = shared.with(|engine| {
            engine.on_time(shared.now());
            engine.deadline(shared.now())
        });
        let due = due.map_or(until, |due| (shared.started + due).min(until));
        tokio::select! {
            () = tokio::time::sleep_until(due.max(now + Duration::from_millis(1))) => {}
            () = shared.notify.notified() => {}
        }
    }
}

/// Whether the last handle is gone and nothing is left to confirm, or the time for it is over.
fn release_is_over(shared: &Shared, release_by: &mut Option<Instant>) -> bool {
    if !shared.released.load(Ordering::Acquire) {
        return false;
    }
    let finished = shared.with(|engine| {
        engine.left() == crate::core::Left::default() && !engine.has_leaving_consumers()
    });
    let by = *release_by.get_or_insert_with(|| Instant::now() + RELEASE_TIMEOUT);
    finished || Instant::now() >= by
}

enum Conversation {
    Closed,
    Lost(String),
    NeverBegan { cause: String, refusal: Option<ErrorBody> },
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the broker closed the connection")]
    Eof,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Link(#[from] LinkFault),
    #[error("the broker did not greet in time")]
    NoGreeting,
    #[error("the client ended")]
    Closing,
}

async fn converse(
    shared: &Shared,
    stream: TcpStream,
    address: SocketAddr,
    greet_by: Instant,
    first: &mut Option<oneshot::Sender<Result<(), ConnectError>>>,
) -> Conversation {
    let mut talk = Talk {
        shared,
        stream,
        address,
        input: BytesMut::new(),
        read_bytes: READ_BYTES_MIN,
        out: Transmit::default(),
        greeted: false,
        greet_by,
        first,
        release_by: None,
    };
    shared.with(|engine| engine.connected(shared.now()));
    let fault = talk.run().await;
    let greeted = talk.greeted;
    drop(talk);
    shared.with(Engine::disconnected);
    match fault {
        Fault::Closing => Conversation::Closed,
        fault if greeted => Conversation::Lost(format!("{address}: {fault}")),
        Fault::Link(LinkFault::Refused(refusal)) => {
            Conversation::NeverBegan { cause: refusal.to_string(), refusal: Some(refusal) }
        }
        fault => Conversation::NeverBegan { cause: fault.to_string(), refusal: None },
    }
}

struct Talk<'a> {
    shared: &'a Shared,
    stream: TcpStream,
    address: SocketAddr,
    input: BytesMut,
    read_bytes: usize,
    out: Transmit,
    greeted: bool,
    greet_by: Instant,
    first: &'a mut Option<oneshot::Sender<Result<(), ConnectError>>>,
    release_by: Option<Instant>,
}

/// What ended a wait.
enum Woken {
    /// Bytes were read or written.
    Moved,
    /// The application or the clock.
    Called,
}

impl Talk<'_> {
    async fn run(&mut self) -> Fault {
        let mut timer = pin!(tokio::time::sleep_until(self.greet_by));
        loop {
            let deadline = match self.decide() {
                Ok(deadline) => deadline,
                Err(fault) => return fault,
            };
            arm(timer.as_mut(), deadline);
            match self.wait(timer.as_mut()).await {
                Ok(Woken::Moved | Woken::Called) => {}
                Err(fault) => return fault,
            }
        }
    }

    /// One pass through the engine: what came in, what is due, what goes out.
    fn decide(&mut self) -> Result<Instant, Fault> {
        let now = self.shared.now();
        self.compress(now);
        let (input, out) = (&mut self.input, &mut self.out);
        let (greeting, deadline) = self.shared.with(|engine| {
            engine.receive(now, input)?;
            engine.on_time(now);
            engine.transmit(now, out, WRITE_BYTES)?;
            Ok::<_, LinkFault>((engine.take_greeting(), engine.deadline(now)))
        })?;
        if let Some(greeting) = greeting {
            self.greeted = true;
            completion::lock(&self.shared.server_version).clone_from(&greeting.server_version);
            if let Some(first) = self.first.take() {
                // The builder's caller may have given up.
                drop(first.send(Ok(())));
            }
            emit(
                self.shared,
                ClientEvent::Connected {
                    address: self.address,
                    cluster: greeting.cluster,
                    node: greeting.node,
                    server_version: greeting.server_version,
                },
            );
        }
        if !self.greeted && Instant::now() >= self.greet_by {
            return Err(Fault::NoGreeting);
        }
        if self.shared.is_closing() || release_is_over(self.shared, &mut self.release_by) {
            return Err(Fault::Closing);
        }
        // Nothing to do wakes once in a while anyway; cheap, and it bounds every mistake above.
        let far = now + Duration::from_secs(60);
        let due = self.shared.started + deadline.unwrap_or(far).min(far);
        Ok(if self.greeted { due } else { due.min(self.greet_by) })
    }

    /// Compression is slow: it runs without the engine's lock.
    fn compress(&self, now: Duration) {
        while let Some((key, lane, job)) = self.shared.with(|engine| engine.next_compression(now)) {
            let done = job.compress();
            self.shared.with(|engine| engine.compressed(key, lane, done));
        }
    }

    /// Reads and writes what can be, or waits for that, the application, or the timer.
    ///
    /// Reading and writing go through one poll, so that one task serves both directions and is woken once.
    async fn wait(&mut self, mut timer: Pin<&mut Sleep>) -> Result<Woken, Fault> {
        let shared = self.shared;
        let mut notified = pin!(shared.notify.notified());
        poll_fn(|cx| {
            let read = self.poll_read(cx)?;
            let written = self.poll_write(cx)?;
            if read || written {
                return Poll::Ready(Ok(Woken::Moved));
            }
            if notified.as_mut().poll(cx).is_ready() || timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Woken::Called));
            }
            Poll::Pending
        })
        .await
    }

    /// Reads once into the buffer. Whether something came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let free = self.input.capacity() - self.input.len();
        if free < self.read_bytes / 4 {
            let missing = self.shared.with(|engine| engine.missing(&self.input));
            self.input.reserve(missing.max(self.read_bytes));
        }
        let free = self.input.capacity() - self.input.len();
        let read = pin!(self.stream.read_buf(&mut self.input));
        match read.poll(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(Fault::Eof),
            Poll::Ready(Ok(bytes)) => {
                if bytes == free && self.read_bytes < READ_BYTES_MAX {
                    self.read_bytes *= 2;
                }
                Ok(true)
            }
            Poll::Ready(Err(why)) => Err(why.into()),
        }
    }

    /// Writes all that the socket takes. Whether all is written and there may be more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        if self.out.is_empty() {
            return Ok(false);
        }
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.out.chunks) {
                *slice = IoSlice::new(chunk);
                used += 1;
            }
            let stream = Pin::new(&mut self.stream);
            match stream.poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(Fault::Eof),
                Poll::Ready(Ok(written)) => self.out.advance(written),
                Poll::Ready(Err(why)) => return Err(why.into()),
            }
        }
        Ok(true)
    }
}

impl Transmit {
    /// Forgets what was written.
    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.chunks.front_mut() {
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.chunks.pop_front();
        }
    }
}

/// Sets the timer, but only to an earlier time: firing early costs less than setting it at every pass.
fn arm(timer: Pin<&mut Sleep>, deadline: Instant) {
    if timer.is_elapsed() || deadline < timer.deadline() {
        timer.reset(deadline);
    }
}
