//! The broker as a library: sockets, settings, probes, metrics, life cycle.
//!
//! `join` holds everything that needs no runtime and is simulated as it stands; the other modules are
//! the shell around it and the only ones that know tokio. Driven by the command line's `server`.

#[cfg(not(target_os = "linux"))]
compile_error!("the Postrider broker runs on Linux only; the client crate runs anywhere");

mod admin;
mod clock;
pub mod config;
pub mod join;
pub mod metrics;
mod net;
pub mod peer;
mod run;
mod server;
mod systemd;

pub use config::{Config, ConfigError};
pub use run::run_blocking;
pub use server::{RunError, Server, StartError};
