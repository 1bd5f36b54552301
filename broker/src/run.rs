//! Owns the process around a server: runtime, signals, limits of the system.
//!
//! Driven by the command line; tests use [`Server`] directly.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::server::{RunError, Server, StartError};

/// Stack of a runtime thread. Connections live on the heap; this is for one call chain.
const STACK_BYTES: usize = 1 << 20;
/// Files that are not connections and not segments: journal, manifest, admin port, runtime.
const OTHER_FILES: u64 = 256;

/// Runs a server until SIGTERM or SIGINT, then drains. A second signal ends it at once.
///
/// # Errors
/// The server did not start, its storage failed, or a second signal came.
pub fn run_blocking(mut config: Config) -> Result<(), RunError> {
    fit_files(&mut config);
    let runtime = runtime(&config).map_err(StartError::Threads)?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new().map_err(StartError::Threads)?;
        let server = tokio::select! {
            server = Server::start(config) => server?,
            // Nothing was acknowledged yet.
            () = signals.next() => return Ok(()),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = server.run_until(async {
            // A dropped sender stops the server as well.
            let _signal = stopped.await;
        });
        let mut running = std::pin::pin!(running);
        tokio::select! {
            outcome = running.as_mut() => return outcome,
            () = signals.next() => drop(stop),
        }
        tokio::select! {
            outcome = running => outcome,
            () = signals.next() => Err(RunError::Interrupted),
        }
    });
    // What still blocks is a read from disk or a close that took too long.
    runtime.shutdown_background();
    outcome
}

fn runtime(config: &Config) -> std::io::Result<Runtime> {
    let threads = match usize::try_from(config.runtime.threads).unwrap_or(usize::MAX) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let blocking = usize::try_from(config.runtime.blocking_threads_max).unwrap_or(usize::MAX);
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder
        .thread_name("net")
        .thread_stack_size(STACK_BYTES)
        .max_blocking_threads(blocking)
        .enable_all()
        .build()
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Raises the limit of open files as far as the system allows, and takes no more connections than fit:
/// a connection must never take the file that the store needs.
fn fit_files(config: &mut Config) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return };
    let reserved = u64::from(config.storage.open_files_max)
        + u64::from(config.admin.connections_max)
        + OTHER_FILES;
    let fitting = u32::try_from(files.saturating_sub(reserved).max(1)).unwrap_or(u32::MAX);
    if fitting < config.net.connections_max {
        tracing::warn!(
            files,
            connections_max = fitting,
            configured = config.net.connections_max,
            "fewer connections than configured: raise the limit of open files (LimitNOFILE, ulimit -n)"
        );
        config.net.connections_max = fitting;
    }
}
