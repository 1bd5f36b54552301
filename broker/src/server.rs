//! Owns the life of a server: start, serve, drain, close; and the threads that carry it.
//!
//! Never decides what a request means. Driven by the command line.
//!
//! ```text
//!  Recovering ──► Serving ──► Draining ──► (closed)
//!       │            └──► Failed ──────────► (exit code 1)
//!       └──► (StartError)
//! ```
//! The admin port answers in all of them. Draining: no connection is accepted and nothing is read; what
//! was received is stored and confirmed; then the connections, the store and the process end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use postrider_storage::StoreThreads;
use postrider_storage::{OsDisk, StoreError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Check, Probe};
use crate::clock::{self, Clock};
use crate::config::{Address, Config, ConfigError};
use crate::join::{Broker, BrokerOpenError};
use crate::metrics::{self, ProcessSample, Sample};
use crate::net::{self, BufferPool, KeepAlive, NetCounters, Peers, Registry, Shared, Timeouts};
use crate::peer::{PeerOptions, PeerServer};
use crate::systemd::Notifier;

/// How often retention, snapshots and timers are looked at.
const TICK: Duration = Duration::from_millis(25);
/// Share of the shutdown time that is left for closing the store.
const CLOSE_SHARE: u32 = 4;
/// Longest time that the admin port may take to end.
const ADMIN_END_MAX: Duration = Duration::from_millis(500);
/// Longest time that aborted connections may take to end.
const ABORT_MAX: Duration = Duration::from_secs(1);

/// Why a server did not start. The text names the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port could not be bound.
    #[error("cannot listen on {address} (`{key}`): {source}; is another server running there?")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: Address,
        /// The system's error.
        source: io::Error,
    },
    /// The data directory could not be created or opened.
    #[error("cannot use the data directory {} (`server.data_dir`): {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// What is stored could not be recovered.
    #[error("cannot open the data directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: BrokerOpenError,
    },
    /// Threads could not be started.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
}

/// Why a server ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The disk failed; nothing was acknowledged after that.
    #[error(
        "the storage failed and nothing more was acknowledged: {0}; check the disk, then start again"
    )]
    Storage(StoreError),
    /// A second signal came while the server drained.
    #[error("ended at once by a second signal; the next start recovers from the journal")]
    Interrupted,
    /// Something of the server ended that must not.
    #[error("internal fault: {0}; the next start recovers from the journal")]
    Internal(String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Phase {
    Recovering = 0,
    Serving = 1,
    Draining = 2,
    Failed = 3,
}

/// What the admin port sees.
struct State {
    phase: AtomicU8,
    broker: OnceLock<Broker>,
    counters: Arc<NetCounters>,
}

impl State {
    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Recovering,
            1 => Phase::Serving,
            2 => Phase::Draining,
            _ => Phase::Failed,
        }
    }
}

impl Probe for State {
    fn checks(&self) -> Vec<Check> {
        let phase = self.phase();
        let check =
            |name, problem: Option<&str>| Check { name, problem: problem.map(str::to_owned) };
        vec![
            check("recovered", self.broker.get().is_none().then_some("the log is being recovered")),
            check(
                "storage",
                (phase == Phase::Failed).then_some("the disk failed; the server ends"),
            ),
            check("serving", (phase == Phase::Draining).then_some("the server is shutting down")),
        ]
    }

    fn metrics(&self) -> String {
        metrics::render(&Sample {
            net: &self.counters,
            process: ProcessSample::take(),
            broker: self.broker.get().map(Broker::metrics),
            ready: self.phase() == Phase::Serving,
        })
    }

    fn requested(&self) {
        self.counters.admin_requests.increment();
    }
}

/// A running server.
pub struct Server {
    config: Config,
    local_addr: SocketAddr,
    admin_addr: SocketAddr,
    state: Arc<State>,
    broker: Broker,
    registry: Arc<Registry>,
    store_threads: StoreThreads,
    ticker: Ticker,
    failed: watch::Receiver<Option<StoreError>>,
    notifier: Notifier,
    /// Accept loop and connections.
    clients: TaskTracker,
    stop_accepting: CancellationToken,
    admins: TaskTracker,
    stop_admin: CancellationToken,
}

impl Server {
    /// Binds the ports, recovers what is stored and begins to serve.
    ///
    /// Not cancel-safe: a dropped start may leave threads that end with the process.
    ///
    /// # Errors
    /// A port is taken, or the data directory is not usable, belongs to a running server, or is damaged.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with_peers(config, None).await
    }

    /// The same, with what serves the connections of other brokers; without it they are refused.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with_peers(
        config: Config,
        peers: Option<(Arc<dyn PeerServer>, PeerOptions)>,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let keepalive = KeepAlive(config.net.keepalive_interval);
        let listener = bind("server.listen", &config.server.listen, config.net.backlog, keepalive)?;
        let admin_backlog = config.admin.connections_max.max(128);
        let admin = bind("admin.listen", &config.admin.listen, admin_backlog, keepalive)?;
        let local_addr = address_of(&listener, "server.listen", &config.server.listen)?;
        let admin_addr = address_of(&admin, "admin.listen", &config.admin.listen)?;

        let counters = Arc::new(NetCounters::default());
        let phase = AtomicU8::new(Phase::Recovering as u8);
        let state =
            Arc::new(State { phase, broker: OnceLock::new(), counters: Arc::clone(&counters) });
        let (admins, stop_admin) = (TaskTracker::new(), CancellationToken::new());
        admins.spawn(admin::serve(
            admin,
            config.admin.connections_max,
            Arc::clone(&state) as Arc<dyn Probe>,
            admins.clone(),
            stop_admin.clone(),
        ));

        let clock = Clock::start();
        let broker = open(&config, local_addr, clock).await?;
        let store_threads = broker.store().spawn(clock::wall);
        let (ticker, failed) = Ticker::start(broker.clone(), clock).map_err(StartError::Threads)?;

        let registry = Arc::new(Registry::default());
        let mut shared = shared(&config, broker.clone(), clock, counters, Arc::clone(&registry));
        shared.peers = peers.map(|(server, options)| Peers { server, options });
        let shared = Arc::new(shared);
        let (clients, stop_accepting) = (TaskTracker::new(), CancellationToken::new());
        clients.spawn(net::accept(listener, shared, clients.clone(), stop_accepting.clone()));

        let _first = state.broker.set(broker.clone());
        state.enter(Phase::Serving);
        let notifier = Notifier::from_environment();
        notifier.ready();
        tracing::info!(
            listen = %local_addr,
            admin = %admin_addr,
            data_dir = %config.server.data_dir.display(),
            damages = broker.open_report().damages,
            took_ms = clock.now().monotonic.as_millis(),
            "ready"
        );
        Ok(Self {
            config,
            local_addr,
            admin_addr,
            state,
            broker,
            registry,
            store_threads,
            ticker,
            failed,
            notifier,
            clients,
            stop_accepting,
            admins,
            stop_admin,
        })
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The address of the admin port.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Serves until `shutdown` ends, then drains within `server.shutdown_timeout`.
    ///
    /// Not cancel-safe: a dropped server stops without draining; the next start recovers.
    ///
    /// # Errors
    /// The storage failed. What was acknowledged before is kept.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            failed = storage_failed(&mut self.failed) => Err(failed),
            () = keep_alive(&self.notifier) => Ok(()),
        };
        match outcome {
            Ok(()) => self.drain().await,
            Err(error) => self.fail(error).await,
        }
    }

    async fn drain(self) -> Result<(), RunError> {
        let bound = self.config.server.shutdown_timeout;
        tracing::info!(?bound, "shutting down");
        self.notifier.stopping();
        self.state.enter(Phase::Draining);
        let end = Instant::now() + bound;
        self.stop_accepting.cancel();
        self.broker.drain();
        self.registry.drain();
        self.clients.close();
        if timeout_at(end - bound / CLOSE_SHARE, self.clients.wait()).await.is_err() {
            tracing::warn!(connections = self.clients.len(), "cut off: the shutdown time is over");
            self.registry.abort();
            let _still = timeout(ABORT_MAX, self.clients.wait()).await;
        }
        let Self { broker, store_threads, ticker, stop_admin, admins, .. } = self;
        let closed = spawn_blocking(move || {
            ticker.stop();
            let closed = broker.close();
            store_threads.stop();
            closed
        });
        let closed = match timeout_at(end, closed).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(RunError::Storage(error)),
            Ok(Err(error)) => Err(RunError::Internal(error.to_string())),
            Err(_) => {
                tracing::warn!("the store was not closed in time; the next start recovers");
                Ok(())
            }
        };
        end_admin(&admins, &stop_admin).await;
        if closed.is_ok() {
            tracing::info!("shut down");
        }
        closed
    }

    /// Nothing can be stored any more: what is in flight is answered `StorageFailed` by the join.
    async fn fail(self, error: StoreError) -> Result<(), RunError> {
        tracing::error!(%error, "the storage failed: the server ends");
        self.notifier.stopping();
        self.state.enter(Phase::Failed);
        self.stop_accepting.cancel();
        self.broker.drain();
        self.registry.drain();
        self.clients.close();
        if timeout(ABORT_MAX, self.clients.wait()).await.is_err() {
            self.registry.abort();
        }
        end_admin(&self.admins, &self.stop_admin).await;
        Err(RunError::Storage(error))
    }
}

fn bind(
    key: &'static str,
    address: &Address,
    backlog: u32,
    keepalive: KeepAlive,
) -> Result<TcpListener, StartError> {
    let bound = address.resolve().and_then(|all| net::bind(&all, backlog, keepalive));
    bound.map_err(|source| StartError::Bind { key, address: address.clone(), source })
}

fn address_of(
    listener: &TcpListener,
    key: &'static str,
    address: &Address,
) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Bind {
        key,
        address: address.clone(),
        source,
    })
}

/// Recovers on a thread of its own: the admin port answers meanwhile.
async fn open(config: &Config, local: SocketAddr, clock: Clock) -> Result<Broker, StartError> {
    let path = config.server.data_dir.clone();
    let options = config.broker_options(local);
    let opened = spawn_blocking(move || {
        let disk = OsDisk::create(&path)
            .map_err(|source| StartError::DataDir { path: path.clone(), source })?;
        Broker::open(Arc::new(disk), options, clock.now(), &mut random)
            .map_err(|source| StartError::Open { path, source })
    });
    opened.await.map_err(|error| StartError::Threads(io::Error::other(error)))?
}

/// A seed for ids. Without the system's randomness two brokers could take each other for one.
fn random() -> u64 {
    getrandom::u64().expect("Linux has getrandom(2) since 3.17")
}

fn shared(
    config: &Config,
    broker: Broker,
    clock: Clock,
    counters: Arc<NetCounters>,
    registry: Arc<Registry>,
) -> Shared {
    let net = &config.net;
    Shared {
        broker,
        clock,
        counters,
        registry,
        pool: Arc::new(BufferPool::new(size(net.buffer_pool_bytes.0))),
        peers: None,
        timeouts: Timeouts {
            handshake: net.handshake_timeout,
            frame: net.frame_timeout,
            write: net.write_timeout,
            idle: net.idle_timeout,
        },
        read_bytes_max: size(net.read_bytes_max.0),
        frame_bytes_max: u32::try_from(config.limits.frame_bytes_max.0).unwrap_or(u32::MAX),
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

async fn storage_failed(failed: &mut watch::Receiver<Option<StoreError>>) -> StoreError {
    match failed.wait_for(Option::is_some).await {
        Ok(error) => error.clone().expect("the condition was that there is one"),
        // The ticker ended without a word; that is a fault of its own.
        Err(_closed) => {
            StoreError { doing: "ticking".to_owned(), message: "the thread ended".to_owned() }
        }
    }
}

/// Tells the service manager that the runtime is alive, for ever.
async fn keep_alive(notifier: &Notifier) {
    let Some(interval) = notifier.watchdog_interval() else { return std::future::pending().await };
    let mut interval = tokio::time::interval(interval.max(TICK));
    loop {
        interval.tick().await;
        notifier.alive();
    }
}

async fn end_admin(admins: &TaskTracker, stop: &CancellationToken) {
    stop.cancel();
    admins.close();
    let _still = timeout(ADMIN_END_MAX, admins.wait()).await;
}

/// The thread that gives the join its time, and looks whether the disk still works.
struct Ticker {
    stop: SyncSender<()>,
    thread: thread::JoinHandle<()>,
}

impl Ticker {
    fn start(
        broker: Broker,
        clock: Clock,
    ) -> io::Result<(Self, watch::Receiver<Option<StoreError>>)> {
        let (stop, stopped) = sync_channel(1);
        let (failed_in, failed) = watch::channel(None);
        let body = move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                broker.tick(clock.now());
                if let Some(error) = broker.store().failed() {
                    failed_in.send_replace(Some(error));
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("tick".to_owned()).spawn(body)?;
        Ok((Self { stop, thread }, failed))
    }

    fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the tick thread panicked");
        }
    }
}
