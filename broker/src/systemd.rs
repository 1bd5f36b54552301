//! Tells systemd what the server is doing: ready, stopping, alive.
//!
//! Owns the datagrams of sd_notify(3). Does nothing without `NOTIFY_SOCKET`, and never fails the
//! server: what cannot be sent is logged once. Driven by the server's life cycle.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager, if there is one.
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Connects to what the environment names.
    pub(crate) fn from_environment() -> Self {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else {
            return Self { socket: None, watchdog: None };
        };
        let socket = match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "systemd cannot be notified");
                None
            }
        };
        // WATCHDOG_PID names the process that is watched; a child of it must stay silent.
        let ours =
            env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = env::var("WATCHDOG_USEC").ok().filter(|_| ours);
        let watchdog = watchdog.and_then(|text| text.parse().ok()).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// Clients are served from now on.
    pub(crate) fn ready(&self) {
        self.send("READY=1\n");
    }

    /// The server has begun to end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    /// The server is alive.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// How often [`Notifier::alive`] is wanted: half of what the manager tolerates.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        // The socket does not block: a manager that does not read must not stop the server.
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(%error, "systemd was not notified");
        }
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("@postrider-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (receiver, name) in [(by_path, path.as_os_str()), (by_name, OsStr::new(&name))] {
            let notifier = Notifier { socket: Some(connect(name).unwrap()), watchdog: None };
            notifier.ready();
            let mut buffer = [0; 64];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\n");
        }
    }

    #[test]
    fn a_missing_socket_is_an_error_that_can_be_logged() {
        assert!(connect(OsStr::new("/nonexistent/notify")).is_err());
    }
}
