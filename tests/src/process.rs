//! Real broker processes for tests.
//!
//! Owns starting, stopping and killing a broker and looking at what it says. Never knows what a test
//! is about. Waiting means looking for a condition again and again until a deadline; the pauses
//! between two looks are here and nowhere else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest wait for a broker to become ready or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks at a condition until it holds; an error names what was waited for.
///
/// # Errors
/// The condition did not hold within a minute.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() >= deadline {
            bail!("waited {PATIENCE:?} in vain until {what}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A free port of the loopback interface. Another process could take it before the broker does; the
/// broker then refuses to start and the test says so.
///
/// # Errors
/// No port could be bound.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// How to start a broker.
#[derive(Clone, Debug)]
pub struct BrokerCommand {
    binary: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl BrokerCommand {
    /// A broker on free loopback ports with its data below `dir`.
    ///
    /// # Errors
    /// No port was free.
    pub fn new(binary: impl AsRef<Path>, dir: &Path) -> Result<Self> {
        Ok(Self {
            binary: binary.as_ref().to_path_buf(),
            data_dir: dir.join("data"),
            log: dir.join("broker.log"),
            args: Vec::new(),
            environment: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
            admin: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
        })
    }

    /// Adds a flag of `postrider server`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// Sets an environment variable of the broker.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// Puts the data elsewhere.
    #[must_use]
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = dir.to_path_buf();
        self
    }

    /// What clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postrider://{}", self.listen)
    }

    /// Address of the data port.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// A client command of the same binary against this broker.
    #[must_use]
    pub fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("POSTRIDER_SERVER", self.url()).env_remove("RUST_LOG");
        command
    }

    /// Starts the process without waiting for it.
    ///
    /// # Errors
    /// The binary or the log file could not be opened.
    pub fn spawn(&self) -> Result<RunningBroker> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.binary)
            .arg("server")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &self.listen.to_string()])
            .args(["--admin-listen", &self.admin.to_string()])
            .args(&self.args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        Ok(RunningBroker { command: self.clone(), child })
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// It ended or was not ready within a minute; the error holds its log.
    pub fn start(&self) -> Result<RunningBroker> {
        let mut broker = self.spawn()?;
        broker.wait_ready()?;
        Ok(broker)
    }
}

/// A broker process; dropping it kills it.
#[derive(Debug)]
pub struct RunningBroker {
    command: BrokerCommand,
    child: Child,
}

impl RunningBroker {
    /// How it was started.
    #[must_use]
    pub fn command(&self) -> &BrokerCommand {
        &self.command
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// The process ended or was not ready within a minute; the error holds its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if matches!(self.admin("/readyz"), Ok((200, _))) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the broker ended with {status}:\n{}", self.log());
            }
            if Instant::now() >= deadline {
                bail!("the broker is not ready after {PATIENCE:?}:\n{}", self.log());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Status and body of a GET on the admin port.
    ///
    /// # Errors
    /// Nobody answered, or not in HTTP.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.command.admin, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("no status line")?.parse()?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.to_string()))
    }

    /// Value of a metric without labels.
    ///
    /// # Errors
    /// The admin port does not answer or the metric does not exist.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.admin("/metrics")?;
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        let line = line.with_context(|| format!("no metric {name}"))?;
        Ok(line.rsplit(' ').next().context("no value")?.parse()?)
    }

    /// Kills the process as a crash would, and reaps it.
    ///
    /// # Errors
    /// It could not be killed or reaped.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and does not wait.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal_terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        let pid = rustix::process::Pid::from_raw(pid).context("no process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// It did not end within a minute.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal_terminate()?;
        self.wait_end()
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    /// It did not end within a minute; the error holds its log.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("the broker did not end within {PATIENCE:?}:\n{}", self.log());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Everything that it logged, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.command.log).unwrap_or_default()
    }
}

impl Drop for RunningBroker {
    fn drop(&mut self) {
        // It may be gone already; there is nothing to do about a failure here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
