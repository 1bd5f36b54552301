//! Owns reading a topic back for `bench verify` and handing every message to the checker. Judges nothing
//! itself.

use std::path::Path;

use postrider::{Raw, ReadError, Start};

use super::checker::{Checker, Verdict};
use super::state::{self, Recorded, StateError};
use crate::bench::args::VerifyOptions;
use crate::connect::{close, connect, open_failure, read_failure};
use crate::ends::Ends;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{note, print};

/// Judges the topic by the state file; fails with exit code 5 if anything is wrong.
pub(crate) async fn judge(options: &VerifyOptions) -> Outcome {
    let topic = &options.target.topic;
    let recorded = read_state(&options.state, topic)?;
    let verdict = read_topic(options, recorded).await?;
    print(&format!("{verdict}\n"))?;
    if verdict.is_good() {
        return Ok(());
    }
    for example in &verdict.examples {
        note(format_args!("  {example}"));
    }
    Err(Failure::new(
        Exit::VerificationFailed,
        format!("topic {topic:?} is not what was acknowledged"),
    )
    .next("keep the data directory and the state file; `postrider check DIR` looks at the files"))
}

fn read_state(path: &Path, topic: &str) -> Outcome<Recorded> {
    let recorded = state::read(path).map_err(|error| match error {
        StateError::Io(error) => {
            Failure::failed(format!("cannot read {}: {error}", path.display()))
                .next("name the file of an earlier `bench verify` with --state")
        }
        StateError::Foreign => {
            Failure::failed(format!("{} is no state file of `bench verify`", path.display()))
                .next("name the file of an earlier `bench verify` with --state")
        }
        StateError::Line { line, text } => {
            Failure::failed(format!("{} line {line} makes no sense: {text:?}", path.display()))
        }
    })?;
    let other = recorded.runs.values().find(|run| run.topic != topic);
    match other {
        Some(run) => Err(Failure::usage(format!(
            "{} belongs to topic {:?}, not {topic:?}",
            path.display(),
            run.topic
        ))
        .next("use one state file for each topic")),
        None => Ok(recorded),
    }
}

async fn read_topic(options: &VerifyOptions, recorded: Recorded) -> Outcome<Verdict> {
    let topic = &options.target.topic;
    let client = connect(&options.client).await?;
    let opened = client.reader::<Raw>(topic).from(Start::Earliest).open().await;
    let mut reader = opened.map_err(|error| open_failure(&error, topic))?;
    let mut ends = Ends::of(reader.partitions());
    let last: Vec<_> =
        reader.partitions().iter().map(|at| (at.partition.0, at.high_watermark.0)).collect();
    let mut checker = Checker::new(recorded);
    while !ends.are_reached() {
        let next = tokio::time::timeout(options.client.timeout, reader.next_batch()).await;
        let next = next.map_err(|_elapsed| {
            let patience = options.client.timeout;
            Failure::new(Exit::TimedOut, format!("no message came for {patience:?} before the end"))
                .next("look at the broker's log, or allow more time with --timeout")
        })?;
        match next {
            None => break,
            Some(Ok(batch)) => {
                for message in &batch {
                    let message = message.map_err(|error| read_failure(&error))?;
                    checker.message(message.partition.0, message.offset.0, message.value);
                }
                ends.reach(batch.partition(), batch.end());
            }
            Some(Err(error)) if error.is_fatal() => return Err(read_failure(&error)),
            // The missing offsets show in the verdict.
            Some(Err(error)) => {
                note(format_args!("the broker reports: {error}"));
                if let ReadError::Gap { partition, to, .. }
                | ReadError::Damaged { partition, to, .. } = error
                {
                    ends.reach(partition, to);
                }
            }
        }
    }
    for (partition, end) in last {
        checker.end(partition, end);
    }
    close(&client).await;
    Ok(checker.finish())
}
