//! The `postrider` command line as a library.
//!
//! Owns parsing, printing and the load tools. Decides nothing about brokers or the protocol: that is the
//! business of the crates `postrider` (client) and `postrider-broker`.

mod args;
mod bench;
mod command;
mod connect;
mod ends;
mod exit;
mod format;
mod input;
mod interrupt;
mod lines;
mod output;
mod start;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command};
use exit::{Exit, Outcome};

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with code 0. A closed stream is not worth a word.
            error.print().unwrap_or(());
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&failure);
            failure.exit.into()
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "postrider", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
        Command::Server(options) => command::server::run(&options),
        Command::Topic(command) => command::topic::run(&command),
        Command::Subscription(command) => command::subscription::run(&command),
        Command::Queue(command) => command::queue::run(&command),
        Command::Work(options) => command::work::run(&options),
        Command::Group(command) => command::group::run(&command),
        Command::Pub(options) => command::publish::run(&options),
        Command::Cancel(options) => command::delayed::cancel(&options),
        Command::Sub(options) => command::subscribe::run(&options),
        Command::Bench(command) => bench::run(&command),
        Command::Check(options) => command::check::run(&options),
    }
}
