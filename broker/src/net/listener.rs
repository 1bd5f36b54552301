//! Owns listening sockets and the accept loop: every connection gets a session and a task, or an error.
//!
//! Never reads a frame. Driven by the server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_protocol::frame::connection_error;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::connection;
use super::signal::Signal;

/// Pause after a failure to accept: most often there are too many open files, and the connection stays
/// in the kernel's queue until one is closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refused connections that are told so at a time. Further ones are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long a refused client may take to read why.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// Questions of the kernel to a silent host before the connection ends.
const KEEPALIVE_PROBES: u32 = 6;

/// When the kernel asks whether a silent host is still there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAlive(pub(crate) Duration);

/// Binds and listens on the first address that works.
///
/// # Errors
/// The error of the last address; most often the port is taken.
pub(crate) fn bind(
    addresses: &[SocketAddr],
    backlog: u32,
    keepalive: KeepAlive,
) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address");
    for address in addresses {
        match bind_one(*address, backlog, keepalive) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr, backlog: u32, keepalive: KeepAlive) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections to leave TIME_WAIT. Linux still refuses a port on
    // which somebody listens.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit these, which saves system calls for each.
    socket.set_tcp_nodelay(true)?;
    let interval = (keepalive.0 / KEEPALIVE_PROBES).max(Duration::from_secs(1));
    let probes = TcpKeepalive::new().with_time(keepalive.0).with_interval(interval);
    socket.set_tcp_keepalive(&probes.with_retries(KEEPALIVE_PROBES))?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// Accepts until cancelled. The tasks of the connections belong to the tracker.
///
/// Cancel-safe: dropping it stops accepting and nothing else.
pub(crate) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
) {
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                shared.counters.accept_errors.increment();
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let signal = Arc::new(Signal::default());
        match shared.broker.connect(Arc::clone(&signal) as _) {
            Ok(session) => {
                shared.counters.accepted.increment();
                let shared = Arc::clone(&shared);
                tracker.spawn(async move {
                    let registration = shared.registry.add(Arc::clone(&signal));
                    let counters = Arc::clone(&shared.counters);
                    let reason = connection::serve(stream, session, signal, shared).await;
                    counters.closed(reason);
                    tracing::debug!(%peer, reason = reason.name(), "a connection ended");
                    drop(registration);
                });
            }
            Err(error) => {
                shared.counters.refused.increment();
                shared.counters.error(error.code);
                tracing::debug!(%peer, %error, "a connection was refused");
                if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                    let last = connection_error(&error);
                    tracker.spawn(async move {
                        // A client that does not read it in time has gone, or does not care.
                        let _late = timeout(REFUSAL_MAX, refuse(stream, last)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Tells a client why it is not served, and waits until it hangs up: closing a socket with unread bytes
/// would destroy the message.
async fn refuse(mut stream: TcpStream, last: Bytes) -> io::Result<()> {
    stream.write_all(&last).await?;
    stream.shutdown().await?;
    let mut scratch = [0; 1024];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}
