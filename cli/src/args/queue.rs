//! Owns the flags of `postrider queue`, of `subscription create` and of `work`. Runs nothing.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};
use postrider_protocol::message::Breaker;

use super::{BoundsFlags, ClientOptions, DurabilityName, Limit, MessageOutput, parse_limit_bytes};
use crate::format::Template;
use crate::output::TableFormat;
use crate::start::From;
use crate::units::{parse_duration, parse_duration_with_unit, parse_positive};

#[derive(Subcommand, Debug)]
pub(crate) enum QueueCommand {
    /// Create a queue: each message goes to one consumer and is kept until it is acknowledged
    Create(QueueCreate),
    /// Change how a queue hands out messages
    Alter(QueueAlter),
    /// List the queues with their counts
    #[command(visible_alias = "list")]
    Ls(QueueLs),
    /// Show a queue's counts, settings, partitions and consumers
    #[command(visible_alias = "describe")]
    Show(QueueShow),
    /// Tell what keeps one message: who holds it, until when, or why it waits
    Why(QueueWhy),
    /// Print messages that are not settled, without taking them
    Peek(QueuePeek),
    /// Remove every message that is not settled
    Purge(QueueAt),
    /// Stop handing out messages; publishing goes on
    Pause(QueueAt),
    /// Hand out messages again
    Resume(QueueAt),
    /// Send dead letters of a queue back to it, each once; the letters stay in their topic
    Redrive(QueueRedrive),
    /// Have a message handed out now, though a consumer has it or it waits for a retry
    Release(QueueRelease),
    /// Remove queues and their messages; with --subscription, that subscription alone
    #[command(visible_alias = "delete")]
    Rm(QueueRm),
}

/// How messages are handed out. What is not named keeps its default, or its present value.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyFlags {
    /// Dead-letter a message that has failed so often [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_failures: Option<u32>,
    /// The topic for dead letters, created when the first one comes [default: the name and `.dead`]
    #[arg(long, value_name = "TOPIC")]
    pub(crate) dead_letter: Option<String>,
    /// How long a message belongs to its consumer unless that renews [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit)]
    pub(crate) lease: Option<Duration>,
    /// How long it may belong to its consumer with renewals [default: 12h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit)]
    pub(crate) lease_max: Option<Duration>,
    /// The wait after a first failure; it doubles with each further one [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit)]
    pub(crate) backoff_min: Option<Duration>,
    /// The longest wait after a failure [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit)]
    pub(crate) backoff_max: Option<Duration>,
    /// Messages per partition that may be handed out and not settled [default: 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) unsettled_max: Option<u32>,
    /// Messages of one key go out in order, one at a time
    #[arg(long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) key_order: Option<bool>,
    /// One consumer at a time gets messages of a partition
    #[arg(long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) single_active: Option<bool>,
    /// When PERCENT of the last WINDOW outcomes are failures, hand nothing out for PAUSE, then single messages until
    /// one succeeds; for example 50/100/30s, or `off` [default: off]
    #[arg(long, value_name = "PERCENT/WINDOW/PAUSE", value_parser = BreakerFlag::parse)]
    pub(crate) breaker: Option<BreakerFlag>,
}

/// When a queue pauses itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BreakerFlag {
    Off,
    On(Breaker),
}

impl BreakerFlag {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let usage = || format!("{text:?} is no breaker: use for example 50/100/30s, or `off`");
        let mut parts = text.splitn(3, '/');
        let mut next = || parts.next().ok_or_else(usage);
        let failure_percent = next()?.trim_end_matches('%').parse().map_err(|_err| usage())?;
        let window = next()?.parse().map_err(|_err| usage())?;
        let pause = parse_duration_with_unit(next()?)?;
        let pause_ms = u32::try_from(pause.as_millis()).map_err(|_err| usage())?;
        Ok(Self::On(Breaker { failure_percent, window, pause_ms }))
    }

    pub(crate) fn value(self) -> Option<Breaker> {
        match self {
            Self::Off => None,
            Self::On(breaker) => Some(breaker),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct QueueCreate {
    /// The queue's name
    pub(crate) name: String,
    /// Number of partitions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partitions: u32,
    /// What an acknowledged message has reached
    #[arg(long, value_enum, default_value = "fsync")]
    pub(crate) durability: DurabilityName,
    /// Refuse messages above so many bytes; `unlimited` leaves it to the broker's limit
    #[arg(long, value_name = "BYTES", value_parser = parse_limit_bytes)]
    pub(crate) message_bytes_max: Option<Limit>,
    #[command(flatten)]
    pub(crate) bounds: BoundsFlags,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Succeed if the queue is there already
    #[arg(long)]
    pub(crate) if_not_exists: bool,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

/// Which queue: the topic's own subscription, or another queue-mode subscription of a topic.
#[derive(Args, Clone, Debug)]
pub(crate) struct QueueName {
    /// The queue's name; with --subscription, the topic's name
    #[arg(value_name = "QUEUE")]
    pub(crate) name: String,
    /// A queue-mode subscription of the topic [default: the queue's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct QueueAt {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueAlter {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueLs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueShow {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueWhy {
    /// The queue, and the partition unless it has only one
    #[arg(value_name = "QUEUE[:PARTITION]", value_parser = Place::parse)]
    pub(crate) place: Place,
    /// The message's offset
    pub(crate) offset: u64,
    /// A queue-mode subscription of the topic [default: the queue's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueRelease {
    /// The queue, and the partition unless it has only one
    #[arg(value_name = "QUEUE[:PARTITION]", value_parser = Place::parse)]
    pub(crate) place: Place,
    /// The message's offset
    pub(crate) offset: u64,
    /// A queue-mode subscription of the topic [default: the queue's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueRedrive {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    /// Take the letters from this topic [default: the queue's dead letter topic]
    #[arg(long, value_name = "TOPIC")]
    pub(crate) letters: Option<String>,
    /// Only those that died for this reason
    #[arg(long, value_name = "REASON", value_parser = ["max_failures", "rejected", "expired", "overflow"])]
    pub(crate) reason: Option<String>,
    /// Send them to this topic instead
    #[arg(long, value_name = "TOPIC")]
    pub(crate) to: Option<String>,
    /// Send at most so many
    #[arg(short = 'n', long = "count", value_name = "N", value_parser = parse_positive)]
    pub(crate) count: Option<u64>,
    /// Send at most so many a second
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) rate: Option<u64>,
    /// Count what would be sent, and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

/// A topic, and perhaps a partition: `orders:3`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) topic: String,
    pub(crate) partition: Option<u32>,
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let Some((topic, partition)) = text.rsplit_once(':') else {
            return Ok(Self { topic: text.to_owned(), partition: None });
        };
        match partition.parse() {
            Ok(partition) => Ok(Self { topic: topic.to_owned(), partition: Some(partition) }),
            Err(_) => Err(format!("{partition:?} is no partition: use for example orders:3")),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct QueuePeek {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    /// Stop after so many messages
    #[arg(short = 'n', long = "count", value_name = "N", default_value = "10", value_parser = parse_positive)]
    pub(crate) count: u64,
    /// Read this partition; repeat for more [default: all]
    #[arg(short, long = "partition", value_name = "N")]
    pub(crate) partitions: Vec<u32>,
    /// How each message is printed
    #[arg(short, long, value_enum, default_value = "raw")]
    pub(crate) output: MessageOutput,
    /// Print each message by a format string, as in `sub`
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "output", value_parser = Template::parse)]
    pub(crate) format: Option<Template>,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueRm {
    /// The queues' names
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    /// Remove this queue-mode subscription of the topic, and nothing else
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    /// Succeed if a queue is not there
    #[arg(long)]
    pub(crate) if_exists: bool,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct SubscriptionCreate {
    /// The topic's name, or a pattern such as 'orders.*'
    pub(crate) topic: String,
    /// The subscription's name
    pub(crate) name: String,
    /// Where it begins: earliest, latest, -N (the last N of each partition), an offset, a time, or an age
    #[arg(long, value_name = "POSITION", default_value = "earliest", allow_hyphen_values = true)]
    pub(crate) from: From,
    /// Queue mode: each message goes to one consumer and is settled on its own
    #[arg(long)]
    pub(crate) queue: bool,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Succeed if the subscription is there already
    #[arg(long)]
    pub(crate) if_not_exists: bool,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

/// A queue to work on, and its share of turns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WeightedQueue {
    pub(crate) name: String,
    pub(crate) weight: u32,
}

impl WeightedQueue {
    fn parse(text: &str) -> Result<Self, String> {
        let Some((name, weight)) = text.split_once(':') else {
            return Ok(Self { name: text.to_owned(), weight: 1 });
        };
        match weight.parse() {
            Ok(weight) if weight > 0 => Ok(Self { name: name.to_owned(), weight }),
            _ => Err(format!(
                "{weight:?} is no weight: write a whole number from 1, as in urgent:10"
            )),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct WorkOptions {
    /// The queues' names, at most 64; of several, while all have messages, each gets turns in the share of its weight
    /// [default weight: 1], and none waits for more than 32 messages of others
    #[arg(value_name = "QUEUE[:WEIGHT]", required = true, num_args = 1..=64, value_parser = WeightedQueue::parse)]
    pub(crate) queues: Vec<WeightedQueue>,
    /// A queue-mode subscription, of each topic that is named [default: the queues' own]
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    /// Run so many commands at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) concurrency: u32,
    /// Hold so many messages of each queue, those at work included [default: as many as --concurrency; of several
    /// queues 16 more, for there is a choice only among messages that are here]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prefetch: Option<u32>,
    /// Stop after so many messages
    #[arg(short = 'n', long = "count", value_name = "N", value_parser = parse_positive)]
    pub(crate) count: Option<u64>,
    /// Stop when the queue is empty: nothing is ready, at work or waiting for a retry
    #[arg(short, long)]
    pub(crate) exit_when_empty: bool,
    /// Work on this partition of the one queue; repeat for more [default: all]
    #[arg(short, long = "partition", value_name = "N")]
    pub(crate) partitions: Vec<u32>,
    /// What `queue show` calls this consumer [default: host and process id]
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) consumer_name: Option<String>,
    /// After a signal, kill commands that run longer than so, and give their messages back
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = parse_duration)]
    pub(crate) grace: Duration,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_may_have_a_weight() {
        let queue = |name: &str, weight| Ok(WeightedQueue { name: name.to_owned(), weight });
        assert_eq!(WeightedQueue::parse("mail"), queue("mail", 1));
        assert_eq!(WeightedQueue::parse("mail:10"), queue("mail", 10));
        for wrong in ["mail:0", "mail:", "mail:x", "mail:-1", "mail:4294967296"] {
            assert!(WeightedQueue::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_may_name_a_partition() {
        let place = |topic: &str, partition| Ok(Place { topic: topic.to_owned(), partition });
        assert_eq!(Place::parse("orders"), place("orders", None));
        assert_eq!(Place::parse("orders:3"), place("orders", Some(3)));
        assert!(Place::parse("orders:x").is_err());
        assert!(Place::parse("orders:").is_err());
    }
}
