//! Owns running commands of the command line against one broker, and what they said. Knows no verb.
//! Driven by the tests of the command line.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use postrider_tests::process::{BrokerCommand, RunningBroker};

use crate::{broker, text_of};

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn run_with(mut command: Command, input: &[u8]) -> Result<Ended> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    // A command that reads nothing may have ended already.
    drop(stdin.write_all(input));
    drop(stdin);
    let output = child.wait_with_output()?;
    let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
    Ok(Ended { code: output.status.code(), out, err })
}

pub(crate) struct Shell {
    _dir: tempfile::TempDir,
    pub(crate) command: BrokerCommand,
    pub(crate) broker: Option<RunningBroker>,
}

impl Shell {
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        Self::of(broker(dir.path())?, dir)
    }

    /// Starts the broker of a command, whose data is in `dir`.
    pub(crate) fn of(command: BrokerCommand, dir: tempfile::TempDir) -> Result<Self> {
        let broker = Some(command.start()?);
        Ok(Self { _dir: dir, command, broker })
    }

    /// Runs a command; the words are split at spaces.
    pub(crate) fn ended(&self, line: &str, input: &[u8]) -> Result<Ended> {
        let words: Vec<&str> = line.split(' ').collect();
        run_with(self.command.client(&words), input)
    }

    /// What a command prints that must succeed.
    pub(crate) fn prints(&self, line: &str) -> Result<String> {
        self.prints_for(line, b"")
    }

    pub(crate) fn prints_for(&self, line: &str, input: &[u8]) -> Result<String> {
        let ended = self.ended(line, input)?;
        ensure!(ended.code == Some(0), "{line}: {:?}\n{}", ended.code, ended.err);
        Ok(ended.out)
    }

    /// What a command says that must fail so.
    pub(crate) fn fails(&self, code: i32, line: &str) -> Result<String> {
        let ended = self.ended(line, b"input\n")?;
        ensure!(ended.code == Some(code), "{line}: {:?}\n{}", ended.code, ended.err);
        Ok(ended.err)
    }

    pub(crate) fn restart_by_kill(&mut self) -> Result<()> {
        self.broker.take().context("a broker runs")?.kill()?;
        self.broker = Some(self.command.start()?);
        Ok(())
    }
}
