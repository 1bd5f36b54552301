//! Owns reaching a broker: the runtime of a command, the connection, and what each failure of the client
//! means for the exit code and for the user's next step. Used by every command that talks to a broker.

use std::time::Duration;

use postrider::{
    AdminError, Client, ConnectError, ConsumeError, OpenError, ReadError, SendError, SettleError,
};
use postrider_protocol::error::{ErrorBody, ErrorClass, ErrorCode};
use tokio::runtime::Builder;

use crate::args::ClientOptions;
use crate::exit::{Exit, Failure, Outcome};

/// How long a command waits for its connection to end in order.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Runs a command's work to its end: on this thread, or on so many.
pub(crate) fn block_on<T>(threads: usize, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let mut builder = match threads {
        0 | 1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(work);
    // What still blocks is a read of standard input; it ends with the process.
    runtime.shutdown_background();
    outcome
}

/// Connects to the broker that the options name.
pub(crate) async fn connect(options: &ClientOptions) -> Outcome<Client> {
    Client::builder(&options.server)
        .name("postrider-cli")
        .connect_timeout(options.timeout)
        .request_timeout(options.timeout)
        .connect()
        .await
        .map_err(|error| connect_failure(&error, options))
}

/// Ends a connection. Whoever needs outcomes has waited for them before.
pub(crate) async fn close(client: &Client) {
    client.close(CLOSE_MAX).await;
}

fn connect_failure(error: &ConnectError, options: &ClientOptions) -> Failure {
    let server = &options.server;
    match error {
        ConnectError::Url(error) => Failure::usage(error),
        ConnectError::Unreachable(attempts) => {
            let causes: Vec<String> = attempts
                .iter()
                .map(|attempt| format!("{}: {}", attempt.address, attempt.cause))
                .collect();
            Failure::new(
                Exit::Unreachable,
                format!("no broker can be reached at {server} ({})", causes.join("; ")),
            )
            .next(START_A_BROKER)
        }
        ConnectError::TimedOut(_) => Failure::new(
            Exit::TimedOut,
            format!("no broker answered at {server} within {:?}", options.timeout),
        )
        .next("check the address and the network, or allow more time with --timeout"),
        ConnectError::Refused(body) => broker_failure(body),
        other => Failure::failed(other),
    }
}

const START_A_BROKER: &str =
    "is the broker running? start it with `postrider server`, or name another one with --server";

/// What a broker's refusal means.
pub(crate) fn broker_failure(body: &ErrorBody) -> Failure {
    let exit = match body.code {
        ErrorCode::TimedOut => Exit::TimedOut,
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, body);
    match (body.code, body.code.class()) {
        (ErrorCode::TimedOut, _) => {
            failure.next("look whether the broker is running, or allow more time with --timeout")
        }
        (_, ErrorClass::Unknown) => {
            failure.next("look at what is stored before trying again: it may have been done")
        }
        (code, _) => match step_after(code) {
            Some(step) => failure.next(step),
            None => failure,
        },
    }
}

/// What helps after a refusal whose text names the cause alone.
fn step_after(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::InvalidTopicName | ErrorCode::InvalidSubscriptionName => {
            "choose another name, for example orders.new"
        }
        ErrorCode::InvalidConfig | ErrorCode::UnknownPartition => {
            "`postrider topic show TOPIC` shows the partitions and settings"
        }
        ErrorCode::OffsetOutOfRange => {
            "`postrider topic show TOPIC` shows where each partition starts and ends"
        }
        ErrorCode::UnknownSubscription => {
            "`postrider subscription ls TOPIC` lists the subscriptions"
        }
        ErrorCode::WrongTopicKind | ErrorCode::WrongSubscriptionMode => {
            "`postrider work` consumes queues, `postrider sub` reads topics; `postrider topic show TOPIC` tells the kind"
        }
        ErrorCode::SubscriptionExists => "choose another name",
        ErrorCode::DiskFull => "free space on the broker's disk, or lower a topic's retention",
        ErrorCode::TopicFull => {
            "publish again when there is room (consumers settle a queue, retention empties a log), or raise the bound with `postrider topic alter --max-messages`"
        }
        ErrorCode::IdempotencyKeyReused => {
            "the topic has another message with this key: choose another key (prefix), or publish what was published before"
        }
        ErrorCode::DedupCapacity => {
            "publish again when the oldest keys have expired, shorten `--dedup-window`, or raise \
             limits.dedup_bytes_per_partition in the broker's configuration"
        }
        ErrorCode::Overloaded | ErrorCode::ShuttingDown | ErrorCode::Throttled => {
            "try again in a moment"
        }
        _ => return None,
    })
}

/// A refusal that may be about a missing topic: then the create command is the next step.
fn topic_failure(body: &ErrorBody, topic: &str) -> Failure {
    let failure = broker_failure(body);
    match body.code {
        ErrorCode::UnknownTopic if body.message.contains("topic create") => failure,
        ErrorCode::UnknownTopic => failure.next(format!("postrider topic create {topic}")),
        _ => failure,
    }
}

/// An administrative request about `topic` failed.
pub(crate) fn admin_failure(error: &AdminError, topic: &str) -> Failure {
    match error {
        AdminError::Refused(body) => topic_failure(body, topic),
        AdminError::TimedOut => Failure::new(Exit::TimedOut, error)
            .next("look whether it was done, or allow more time with --timeout"),
        AdminError::NotSent => Failure::new(Exit::Unreachable, error).next(START_A_BROKER),
        other => Failure::failed(other),
    }
}

/// A request about the queue `name`, or about a queue-mode subscription of it, failed.
pub(crate) fn queue_failure(error: &AdminError, name: &str) -> Failure {
    match error {
        AdminError::Refused(body) => queue_refusal(body, name),
        other => admin_failure(other, name),
    }
}

/// What the broker's refusal of a request about a queue means.
fn queue_refusal(body: &ErrorBody, name: &str) -> Failure {
    let failure = topic_failure(body, name);
    match body.code {
        ErrorCode::UnknownTopic => failure.next(format!("postrider queue create {name}")),
        ErrorCode::WrongTopicKind | ErrorCode::WrongSubscriptionMode => failure.next(
            "`postrider queue ls` lists the queues; \
             `postrider subscription create TOPIC NAME --queue` makes a log topic work as one",
        ),
        ErrorCode::InvalidConfig => {
            failure.next("`postrider queue show NAME` shows the settings, --help their flags")
        }
        _ => failure,
    }
}

/// A consumer of the queue `name` could not be opened.
pub(crate) fn queue_open_failure(error: &OpenError, name: &str) -> Failure {
    match error {
        OpenError::Refused(body) => queue_refusal(body, name),
        other => open_failure(other, name),
    }
}

/// A producer, reader or subscriber of `topic` could not be opened.
pub(crate) fn open_failure(error: &OpenError, topic: &str) -> Failure {
    match error {
        OpenError::Refused(body) => topic_failure(body, topic),
        OpenError::TimedOut(body) => Failure::new(Exit::TimedOut, body)
            .next("look whether the broker is running, or allow more time with --timeout"),
        other => Failure::failed(other),
    }
}

/// A message was not published, or nobody knows.
pub(crate) fn publish_failure(error: &SendError) -> Failure {
    match error {
        SendError::NotSent => Failure::new(Exit::Unreachable, error).next(START_A_BROKER),
        SendError::Unknown(body) if body.code == ErrorCode::TimedOut => {
            Failure::new(Exit::TimedOut, error)
                .next("read the topic before publishing it again: it may be stored")
        }
        SendError::Unknown(_) => Failure::failed(error)
            .next("read the topic before publishing it again: it may be stored"),
        SendError::NoPartition { .. } => Failure::failed(error).next(
            "`postrider topic show TOPIC` shows the partitions; leave --partition out to spread",
        ),
        SendError::Rejected(body) => match step_after(body.code) {
            Some(step) => Failure::failed(error).next(step),
            None => Failure::failed(error),
        },
        other => Failure::failed(other),
    }
}

/// The stream of a queue's deliveries ended.
pub(crate) fn consume_failure(error: &ConsumeError, name: &str) -> Failure {
    match error {
        ConsumeError::Ended(body) => queue_refusal(body, name),
        other => Failure::failed(other),
    }
}

/// A message of the queue `name` was not settled, for a reason that is not its own.
pub(crate) fn settle_failure(error: &SettleError, name: &str) -> Failure {
    match error {
        SettleError::Refused(body) => queue_refusal(body, name),
        other => Failure::failed(other)
            .next("the messages that were not acknowledged are delivered again"),
    }
}

/// The stream of a topic's messages ended.
pub(crate) fn read_failure(error: &ReadError) -> Failure {
    match error {
        ReadError::Taken(_) => Failure::failed(error)
            .next("one consumer at a time: stop the other one, or use another --subscription"),
        other => Failure::failed(other),
    }
}
