//! Owns the command line's shape: verbs, aliases, flags, defaults and their help. Runs nothing.
//!
//! Scripts rely on the spellings; a change here is a change of interface. The flags of queues are in `queue`,
//! those of the load tools in `bench::args`.

pub(crate) mod queue;

pub(crate) mod group;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::args::BenchCommand;
use crate::format::Template;
use crate::output::TableFormat;
use crate::start::{From, parse_time};
use crate::units::{parse_bytes, parse_duration, parse_duration_with_unit, parse_positive};
use queue::{QueueCommand, SubscriptionCreate, WorkOptions};

/// One message broker for logs and jobs.
#[derive(Parser, Debug)]
#[command(name = "postrider", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage, 3 broker unreachable, 4 timed out, \
                          5 verification failed.";

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a broker
    ///
    /// Settings come from the defaults, then the file, then `POSTRIDER__SECTION__KEY`, then these flags.
    Server(ServerOptions),
    /// Create, change, list, show and remove topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Create, watch and manage queues
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Publish lines from standard input or a file
    ///
    /// Each line without its newline is a message: empty lines, CRLF and bytes that are not UTF-8 are kept.
    /// Returns when every message is acknowledged, and prints `stored=N duplicates=N` to standard error. With
    /// --delay or --deliver-at it prints the delay id of each message to standard output: `cancel` takes it.
    #[command(visible_alias = "produce")]
    Pub(PubOptions),
    /// Take back messages that were published with a delay
    ///
    /// Prints what became of each: `cancelled`, `released` (it was delivered before), or `unknown`. Exit code 0
    /// if all are cancelled.
    Cancel(CancelOptions),
    /// Print the messages of a topic
    ///
    /// Format strings know %t topic, %p partition, %o offset, %k key, %K its length, %s payload, %S its
    /// length, %h headers, %T timestamp in ms, %%, and the escapes \n \r \t \0 \\ \xHH.
    #[command(visible_alias = "consume")]
    Sub(SubOptions),
    /// Run a command for each message of a queue
    ///
    /// The payload is the command's standard input. Its environment has POSTRIDER_TOPIC, POSTRIDER_PARTITION,
    /// POSTRIDER_OFFSET, POSTRIDER_ATTEMPT, POSTRIDER_FAILURES and, if the key is text, POSTRIDER_KEY. Exit code
    /// 0 acknowledges the message. Any other end counts as a failure, whose reason is the last line on standard
    /// error; the message comes again after a wait, or goes to the dead letter topic when it has failed too
    /// often. SIGTERM and Ctrl-C take nothing new, wait for the commands that run, and give the rest back.
    /// Prints `acked=N nacked=N lost=N` to standard error at the end.
    Work(WorkOptions),
    /// Create, list, move and remove the durable subscriptions of a topic
    #[command(subcommand)]
    Subscription(SubscriptionCommand),
    /// List, show, move and remove the consumer groups of a topic
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Measure and verify a broker
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Verify a data directory of a stopped broker, without changing it
    Check(CheckOptions),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ServerOptions {
    /// Configuration file [default: postrider.toml here, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the data is kept [default: ./postrider-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address for clients [default: 127.0.0.1:7420]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address for health checks and metrics [default: 127.0.0.1:7421]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) admin_listen: Option<String>,
    /// Allow addresses other than loopback although there is neither encryption nor authentication yet
    #[arg(long)]
    pub(crate) insecure: bool,
    /// What is logged: a level (error, warn, info, debug, trace), or module=level,...
    #[arg(long, value_name = "FILTER", env = "POSTRIDER_LOG", default_value = "info")]
    pub(crate) log: String,
    /// How logs are written to standard error
    #[arg(long, value_enum, env = "POSTRIDER_LOG_FORMAT", default_value = "human")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line per event
    Human,
    /// A JSON object per event
    Json,
}

/// What every command that talks to a broker takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientOptions {
    /// The broker
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "POSTRIDER_SERVER",
        default_value = "postrider://127.0.0.1:7420"
    )]
    pub(crate) server: String,
    /// Give up when the broker has not answered for so long
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s",
          value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum DurabilityName {
    /// On disk before the acknowledgement
    Fsync,
    /// In the memory of every in-sync replica
    Replicated,
    /// In the memory of the broker
    Memory,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TopicCommand {
    /// Create a topic
    Create(TopicCreate),
    /// Change a topic's partitions, retention or limits
    Alter(TopicAlter),
    /// List the topics
    #[command(visible_alias = "list")]
    Ls(TopicLs),
    /// Show a topic's settings, partitions and subscriptions
    #[command(visible_alias = "describe")]
    Show(TopicShow),
    /// Remove topics and their messages
    #[command(visible_alias = "delete")]
    Rm(TopicRm),
}

#[derive(Args, Debug)]
pub(crate) struct TopicCreate {
    /// The topic's name
    pub(crate) name: String,
    /// Number of partitions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partitions: u32,
    /// What an acknowledged message has reached
    #[arg(long, value_enum, default_value = "fsync")]
    pub(crate) durability: DurabilityName,
    #[command(flatten)]
    pub(crate) bounds: BoundsFlags,
    /// Succeed if the topic is there already
    #[arg(long)]
    pub(crate) if_not_exists: bool,
    #[command(flatten)]
    pub(crate) limits: TopicLimits,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TopicLimits {
    /// Keep messages for so long, for example 7d; `forever` lifts the limit
    #[arg(long, value_name = "DURATION", value_parser = parse_retention_time)]
    pub(crate) retention_time: Option<Limit>,
    /// Keep so many bytes per partition, for example 10GiB; `unlimited` lifts the limit
    #[arg(long, value_name = "BYTES", value_parser = parse_limit_bytes)]
    pub(crate) retention_bytes: Option<Limit>,
    /// Refuse messages above so many bytes; `unlimited` leaves it to the broker's limit
    #[arg(long, value_name = "BYTES", value_parser = parse_limit_bytes)]
    pub(crate) message_bytes_max: Option<Limit>,
}

/// A limit that can be lifted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    None,
    Is(u64),
}

impl Limit {
    pub(crate) fn value(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Is(value) => Some(value),
        }
    }
}

fn parse_limit_bytes(text: &str) -> Result<Limit, String> {
    if matches!(text, "unlimited" | "none") {
        return Ok(Limit::None);
    }
    parse_bytes(text).map(Limit::Is)
}

fn parse_limit_count(text: &str) -> Result<Limit, String> {
    if matches!(text, "unlimited" | "none") {
        return Ok(Limit::None);
    }
    text.parse().map(Limit::Is).map_err(|_err| format!("{text:?} is no number; or say `unlimited`"))
}

fn parse_retention_time(text: &str) -> Result<Limit, String> {
    if matches!(text, "forever" | "unlimited" | "none") {
        return Ok(Limit::None);
    }
    let duration = parse_duration_with_unit(text)?;
    u64::try_from(duration.as_millis()).map(Limit::Is).map_err(|err| err.to_string())
}

/// How many messages a topic may hold, and how old. What is not named keeps its default, or its present value.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct BoundsFlags {
    /// Older messages are not delivered any more; `forever` is any age
    #[arg(long, value_name = "DURATION", value_parser = parse_retention_time)]
    pub(crate) ttl: Option<Limit>,
    /// What becomes of those in a queue [default: drop]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) expired: Option<ExpiredName>,
    /// The most messages per partition, of a queue unsettled ones; `unlimited` is any number
    #[arg(long, value_name = "N", value_parser = parse_limit_count)]
    pub(crate) max_messages: Option<Limit>,
    /// What happens beyond [default: reject]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) overflow: Option<OverflowName>,
    /// How long an idempotency key is remembered at least, 1s to 7d [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_dedup_window)]
    pub(crate) dedup_window: Option<Limit>,
}

fn parse_dedup_window(text: &str) -> Result<Limit, String> {
    if text == "default" {
        return Ok(Limit::None);
    }
    let duration = parse_duration_with_unit(text)?;
    u64::try_from(duration.as_millis()).map(Limit::Is).map_err(|err| err.to_string())
}

/// What becomes of messages that are too old.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ExpiredName {
    /// They leave, and are counted
    Drop,
    /// They go to the queue's dead letter topic
    DeadLetter,
}

/// What happens when a queue holds as many messages as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum OverflowName {
    /// Publishes are refused until some are settled
    Reject,
    /// The oldest that no consumer has leave, and are counted
    DropOldest,
    /// These go to the queue's dead letter topic
    DeadLetter,
}

#[derive(Args, Debug)]
pub(crate) struct TopicAlter {
    /// The topic's name
    pub(crate) name: String,
    /// New number of partitions; it can only grow
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partitions: Option<u32>,
    #[command(flatten)]
    pub(crate) limits: TopicLimits,
    #[command(flatten)]
    pub(crate) bounds: BoundsFlags,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct TopicLs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct TopicShow {
    /// The topic's name
    pub(crate) name: String,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct TopicRm {
    /// The topics' names
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    /// Succeed if a topic is not there
    #[arg(long)]
    pub(crate) if_exists: bool,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SubscriptionCommand {
    /// Create a durable subscription
    ///
    /// It need not wait for its first reader then. `sub --subscription` attaches to one in stream mode,
    /// `work --subscription` to one in queue mode.
    Create(SubscriptionCreate),
    /// List a topic's durable subscriptions, or the subscriptions by pattern
    #[command(visible_alias = "list")]
    Ls {
        /// The topic's name; without it, the subscriptions by pattern are listed
        topic: Option<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: TableFormat,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Move a durable subscription to another position
    Seek {
        /// The topic's name
        topic: String,
        /// The subscription's name
        name: String,
        /// earliest, latest, -N (the last N of each partition), an offset, a time, or an age such as 15m
        #[arg(long, allow_hyphen_values = true, value_name = "POSITION")]
        to: From,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Remove a durable subscription
    #[command(visible_alias = "delete")]
    Rm {
        /// The topic's name
        topic: String,
        /// The subscription's name
        name: String,
        #[command(flatten)]
        client: ClientOptions,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum CompressionName {
    None,
    Lz4,
    Zstd,
}

#[derive(Args, Debug)]
pub(crate) struct PubOptions {
    /// The topic's name
    pub(crate) topic: String,
    /// Read this file and not standard input; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Publish the whole input as one message
    #[arg(long, conflicts_with = "key_delimiter")]
    pub(crate) whole: bool,
    /// The key of every message: messages with one key keep their order
    #[arg(short, long, value_name = "KEY", conflicts_with = "key_delimiter")]
    pub(crate) key: Option<String>,
    /// Each line is KEY, this delimiter, PAYLOAD. The key and the delimiter are not part of the payload
    /// (`sub -f '%k...%s\n'` prints both again); a line without the delimiter has no key
    #[arg(long, value_name = "C", value_parser = parse_delimiter())]
    pub(crate) key_delimiter: Option<String>,
    /// Store each line once, however often this is run: line n gets the idempotency key PREFIX-n, n from 1. The
    /// broker remembers keys for the topic's dedup window (`topic show`)
    #[arg(short = 'I', long, value_name = "PREFIX", value_parser = parse_idempotency_prefix)]
    pub(crate) idempotency_prefix: Option<String>,
    /// A header of every message; repeat for more
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = parse_header)]
    pub(crate) headers: Vec<(String, String)>,
    /// Publish to this partition
    #[arg(short, long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: CompressionName,
    /// Size of a full batch
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) batch_bytes: Option<u64>,
    /// How long a batch waits to fill
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit)]
    pub(crate) linger: Option<Duration>,
    /// Deliver the messages so long after they are published
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit, conflicts_with = "deliver_at")]
    pub(crate) delay: Option<Duration>,
    /// Deliver the messages at this time: RFC 3339 such as 2026-11-25T08:00:00Z, or Unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) deliver_at: Option<u64>,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct CancelOptions {
    /// The topic's name
    pub(crate) topic: String,
    /// Delay ids, as `pub --delay` printed them
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<postrider::DelayId>,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

/// The longest key is 256 bytes, and the number of a line takes up to 21 of them.
fn parse_idempotency_prefix(text: &str) -> Result<String, String> {
    match text.len() {
        1..=235 => Ok(text.to_owned()),
        len => Err(format!("it has {len} bytes, and must have 1 to 235")),
    }
}

/// `\t` and friends are understood, because shells make them hard to type.
fn parse_delimiter() -> impl clap::builder::TypedValueParser<Value = String> {
    clap::builder::NonEmptyStringValueParser::new().map(|text| match text.as_str() {
        "\\t" => "\t".to_owned(),
        "\\0" => "\0".to_owned(),
        _ => text,
    })
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a header is NAME:VALUE".into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum MessageOutput {
    /// The payload and a newline
    Raw,
    /// One JSON object per line
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct SubOptions {
    /// The topic's name, or a pattern such as 'orders.*': all its topics, those that come later included
    pub(crate) topic: String,
    /// Where to start: earliest, latest, -N (the last N of each partition), an offset, a time such as
    /// 2026-11-25T08:00:00Z, or an age such as 15m. A durable subscription that exists continues where it
    /// was acknowledged
    #[arg(long, value_name = "POSITION", default_value = "latest", allow_hyphen_values = true)]
    pub(crate) from: From,
    /// Stop after so many messages
    #[arg(short = 'n', long = "count", value_name = "N", value_parser = parse_positive)]
    pub(crate) count: Option<u64>,
    /// Stop at the end: where each partition ended when the command started
    #[arg(short, long)]
    pub(crate) exit_at_end: bool,
    /// How each message is printed
    #[arg(short, long, value_enum, default_value = "raw")]
    pub(crate) output: MessageOutput,
    /// Print each message by a format string
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "output", value_parser = Template::parse)]
    pub(crate) format: Option<Template>,
    /// Read this partition; repeat for more [default: all]
    #[arg(short, long = "partition", value_name = "N")]
    pub(crate) partitions: Vec<u32>,
    /// A durable subscription: what was printed is acknowledged, and the next run continues behind it
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    /// Join a consumer group: its members share the partitions, and what was printed is acknowledged
    #[arg(long, value_name = "NAME", conflicts_with_all = ["subscription", "partitions", "exit_at_end"])]
    pub(crate) group: Option<String>,
    /// A name that this member keeps over restarts, and its partitions with it
    #[arg(long, value_name = "NAME", requires = "group")]
    pub(crate) instance: Option<String>,
    /// A member that is silent for so long is taken for dead
    #[arg(long, value_name = "DURATION", requires = "group", value_parser = parse_duration, default_value = "30s")]
    pub(crate) session_timeout: Duration,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct CheckOptions {
    /// The data directory
    pub(crate) dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    #[test]
    fn the_command_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn fixed_spellings_are_accepted() {
        for line in [
            "postrider server --config a.toml --data-dir d --listen 127.0.0.1:1 --admin-listen 127.0.0.1:2",
            "postrider topic create t --partitions 3 --durability memory --if-not-exists",
            "postrider topic create t --partitions 3 --server postrider://h:1",
            "postrider topic ls",
            "postrider topic list",
            "postrider topic rm t",
            "postrider topic delete t",
            "postrider topic show t",
            "postrider topic describe t -o json",
            "postrider topic alter t --partitions 5 --retention-time forever",
            "postrider pub t -k key -H a:b --file f",
            "postrider produce t --key-delimiter :",
            "postrider sub t --from earliest -e -o raw",
            "postrider sub t --from -10 -n 5 --subscription s",
            "postrider consume t -f %k=%s\\n",
            "postrider queue create q --partitions 4 --max-failures 3 --dead-letter q.dead --if-not-exists",
            "postrider queue create q --durability memory --lease 30s --key-order --single-active",
            "postrider queue alter q --lease 5s --key-order=false",
            "postrider queue ls",
            "postrider queue list -o json",
            "postrider queue show q -o json",
            "postrider queue describe t --subscription s",
            "postrider queue why q 17",
            "postrider queue why t:3 17 --subscription s -o json",
            "postrider queue peek q -n 5 -o json",
            "postrider queue purge q",
            "postrider queue pause q",
            "postrider queue resume t --subscription s",
            "postrider queue rm q --if-exists",
            "postrider queue delete q",
            "postrider subscription create t s --queue --max-failures 5",
            "postrider subscription create t s --from latest",
            "postrider subscription ls",
            "postrider subscription ls t -o json",
            "postrider work q -- ./handle --flag",
            "postrider work urgent:10 normal:3 bulk --concurrency 4 -- ./handle --flag",
            "postrider work t --subscription s --concurrency 4 --prefetch 8 -n 10 -e -- sh -c true",
            "postrider bench queue q --producers 1 --workers 2 --messages 100k --json out.json",
            "postrider bench queue q --workers 2 --duration 10s --rate 1000",
            "postrider check dir",
            "postrider completions bash",
            "postrider bench produce t --rate 1000 --duration 10s --size 1KiB --json out.json",
            "postrider bench produce t --messages 100k --producers 64 --in-flight 1 --partitions 4",
            "postrider bench produce t --batch-bytes 256KiB --linger 1ms --warmup 1s --fail-if p99>20ms",
            "postrider bench consume t --consumers 10 --json out.json",
            "postrider bench e2e t --rate 1000 --json out.json",
            "postrider bench verify t --state f",
            "postrider bench verify t --state f --check",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "postrider topic create t --partitions 0",
            "postrider topic rm",
            "postrider pub",
            "postrider pub t -k a --key-delimiter :",
            "postrider pub t -H nocolon",
            "postrider sub t --from someday",
            "postrider sub t -f %q",
            "postrider bench verify t",
            "postrider serve",
            "postrider queue create q --partitions 0",
            "postrider queue create q --max-failures 0",
            "postrider queue create q --lease 30",
            "postrider queue why q",
            "postrider queue why q:x 1",
            "postrider queue rm",
            "postrider work q",
            "postrider work q:0 -- true",
            "postrider work -- true",
            "postrider work q --concurrency 0 -- true",
            "postrider bench queue q --workers 0",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn limits_can_be_set_and_lifted() {
        assert_eq!(parse_retention_time("7d"), Ok(Limit::Is(604_800_000)));
        assert_eq!(parse_retention_time("forever"), Ok(Limit::None));
        assert_eq!(parse_limit_bytes("1GiB"), Ok(Limit::Is(1 << 30)));
        assert!(parse_retention_time("7").is_err());
    }
}
