//! `postrider server`: reads the settings, sends logs to standard error, runs the broker.

use postrider_broker::{Config, RunError, StartError, run_blocking};
use tracing_subscriber::EnvFilter;

use crate::args::{LogFormat, ServerOptions};
use crate::exit::{Failure, Outcome};

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(options: &ServerOptions) -> Outcome {
    let config = Config::load(options.config.as_deref(), std::env::vars(), &flags(options))
        .map_err(|error| Failure::usage(error).next("postrider server --help lists the flags"))?;
    start_logging(options)?;
    run_blocking(config).map_err(|error| match error {
        RunError::Start(StartError::Config(error)) => Failure::usage(error),
        other => Failure::failed(other),
    })
}

fn flags(options: &ServerOptions) -> Vec<(&'static str, String)> {
    let data_dir = options.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
    [
        ("server.data_dir", data_dir),
        ("server.listen", options.listen.clone()),
        ("admin.listen", options.admin_listen.clone()),
        ("server.insecure", options.insecure.then(|| "true".to_owned())),
    ]
    .into_iter()
    .filter_map(|(key, value)| value.map(|value| (key, value)))
    .collect()
}

fn start_logging(options: &ServerOptions) -> Outcome {
    let filter = EnvFilter::try_new(&options.log).map_err(|error| {
        Failure::usage(format!("--log {:?}: {error}", options.log))
            .next("use a level (error, warn, info, debug, trace) or module=level,...")
    })?;
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| Failure::failed(format!("cannot start logging: {error}")))
}
