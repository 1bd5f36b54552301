//! Owns how a command ends: the exit code and the text of a failure. Never prints. Used by every command.
//!
//! Every failure names its cause and, where there is one, the next step.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of the command line. Scripts rely on the numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// The command did not do what it was asked.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No broker answered.
    Unreachable = 3,
    /// A broker did not answer in time.
    TimedOut = 4,
    /// A check found lost, doubled, reordered or changed messages, or a damaged directory.
    VerificationFailed = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Failed => 1.into(),
            Exit::Usage => 2.into(),
            Exit::Unreachable => 3.into(),
            Exit::TimedOut => 4.into(),
            Exit::VerificationFailed => 5.into(),
        }
    }
}

/// Why a command failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    cause: String,
    next_step: Option<String>,
}

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, cause: impl fmt::Display) -> Self {
        Self { exit, cause: cause.to_string(), next_step: None }
    }

    pub(crate) fn failed(cause: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, cause)
    }

    pub(crate) fn usage(cause: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, cause)
    }

    /// Names the thing that failed, before the cause.
    pub(crate) fn at(mut self, what: impl fmt::Display) -> Self {
        self.cause = format!("{what}: {}", self.cause);
        self
    }

    /// Adds what the user can do about it.
    pub(crate) fn next(mut self, step: impl fmt::Display) -> Self {
        self.next_step = Some(step.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.cause)?;
        match &self.next_step {
            Some(step) => write!(f, "\n  next: {step}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_shows_cause_then_next_step() {
        let failure =
            Failure::failed("topic \"a\" does not exist").next("postrider topic create a");
        assert_eq!(
            failure.to_string(),
            "error: topic \"a\" does not exist\n  next: postrider topic create a"
        );
        assert_eq!(failure.exit as u8, 1);
    }
}
