//! Owns one run of the user's command: its input, its environment, its end. Knows nothing of queues.
//! Driven by `work`.
//!
//! The command is a process group of its own, so that Ctrl-C in a terminal reaches `work` alone, which
//! lets it finish. Its standard output is ours; its standard error is copied to ours.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::watch;

/// Bytes of a reason; longer ones are cut.
const REASON_BYTES_MAX: usize = 256;
/// How long the rest of standard error is awaited after the end: a process that the command left behind
/// may hold it open.
const STDERR_PATIENCE: Duration = Duration::from_millis(100);

/// What to run, and with what.
pub(super) struct Job {
    /// The program and its arguments; not empty.
    pub(super) command: Vec<OsString>,
    /// Variables that are set, or absent whatever our own environment has.
    pub(super) environment: Vec<(&'static str, Option<String>)>,
    /// Standard input.
    pub(super) payload: Bytes,
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Exit code 0.
    Done,
    /// Any other end by itself.
    Failed { reason: String },
    /// It was told to end.
    Killed,
}

/// Runs the command to its end, or kills its process group once `kill` says so.
pub(super) async fn run(job: Job, mut kill: watch::Receiver<bool>) -> io::Result<End> {
    let Job { command, environment, payload } = job;
    let (program, args) = command.split_first().expect("the parser demands a command");
    let mut command = Command::new(program);
    command.args(args).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command.spawn()?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let mut last_line = LastLine::default();
    // The sender lives as long as the jobs.
    let killed = async { drop(kill.wait_for(|kill| *kill).await) };
    let ended = tokio::select! {
        ended = work(&mut child, stdin, &payload, stderr, &mut last_line) => ended?,
        () = killed => {
            if let Some(group) = group {
                // It may have ended just now.
                kill_process_group(group, Signal::KILL).unwrap_or(());
            }
            child.wait().await?;
            return Ok(End::Killed);
        }
    };
    if ended.success() {
        return Ok(End::Done);
    }
    Ok(End::Failed { reason: reason(ended, &last_line.finish()) })
}

/// Feeds the command, copies its standard error, waits for it.
async fn work(
    child: &mut Child,
    stdin: Option<ChildStdin>,
    payload: &[u8],
    stderr: Option<ChildStderr>,
    last_line: &mut LastLine,
) -> io::Result<ExitStatus> {
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command need not read its input.
            stdin.write_all(payload).await.unwrap_or(());
        }
    };
    let mut copied = std::pin::pin!(async {
        if let Some(stderr) = stderr {
            copy(stderr, last_line).await;
        }
    });
    let mut fed = std::pin::pin!(feed);
    let (mut is_copied, mut is_fed) = (false, false);
    let ended = loop {
        tokio::select! {
            () = &mut fed, if !is_fed => is_fed = true,
            () = &mut copied, if !is_copied => is_copied = true,
            ended = child.wait() => break ended?,
        }
    };
    if !is_copied {
        // In vain: what came until now is what there is.
        tokio::time::timeout(STDERR_PATIENCE, copied).await.unwrap_or(());
    }
    Ok(ended)
}

/// Copies to our standard error until the end.
async fn copy(mut stderr: ChildStderr, last_line: &mut LastLine) {
    let mut chunk = vec![0; 4_096];
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        let read = chunk.get(..count).unwrap_or_default();
        last_line.push(read);
        // Nobody may read ours; that is no reason to fail.
        io::stderr().lock().write_all(read).unwrap_or(());
    }
}

/// Why a command failed, in its own words if it had any.
fn reason(ended: ExitStatus, last_line: &[u8]) -> String {
    let said = String::from_utf8_lossy(last_line);
    let said: String =
        said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let said = said.trim();
    if !said.is_empty() {
        return cut(said).to_owned();
    }
    match (ended.code(), ended.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// The text's beginning, as far as it fits.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Remembers the last line that is not blank. Holds two beginnings of lines.
#[derive(Default)]
struct LastLine {
    last: Vec<u8>,
    current: Vec<u8>,
}

impl LastLine {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                // More would be cut anyway; a character has up to four bytes.
                byte if self.current.len() < REASON_BYTES_MAX + 4 => self.current.push(byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        if self.current.iter().any(|byte| !byte.is_ascii_whitespace()) {
            std::mem::swap(&mut self.last, &mut self.current);
        }
        self.current.clear();
    }

    fn finish(mut self) -> Vec<u8> {
        self.end_line();
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_line(chunks: &[&str]) -> String {
        let mut line = LastLine::default();
        for chunk in chunks {
            line.push(chunk.as_bytes());
        }
        String::from_utf8(line.finish()).expect("text")
    }

    #[test]
    fn the_last_line_that_is_not_blank_is_the_reason() {
        assert_eq!(last_line(&["one\ntw", "o\n\n  \n"]), "two");
        assert_eq!(last_line(&["one\nno newline"]), "no newline");
        assert_eq!(last_line(&["\n", ""]), "");
        let ended = ExitStatus::from_raw(3 << 8);
        assert_eq!(reason(ended, b"\tboom\x1b[0m "), "boom [0m");
        assert_eq!(reason(ended, b""), "exit code 3");
        assert_eq!(reason(ExitStatus::from_raw(9), b""), "killed by signal 9");
    }

    #[test]
    fn long_and_strange_reasons_are_cut_between_characters() {
        let text = "é".repeat(300);
        assert_eq!(cut(&text).len(), REASON_BYTES_MAX);
        let odd = format!("x{text}");
        assert_eq!(cut(&odd).len(), REASON_BYTES_MAX - 1);
        let mut line = LastLine::default();
        line.push(&[b'a'; 100_000]);
        assert!(line.finish().len() < 1_000);
    }
}
