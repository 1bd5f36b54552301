//! Owns the flags of `postrider bench`. Runs nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::fail_if::{FailIf, parse_fail_if};
use crate::args::{ClientOptions, CompressionName, DurabilityName};
use crate::units::{
    Rate, SizeRange, parse_bytes, parse_count, parse_duration, parse_duration_with_unit,
    parse_positive, parse_rate, parse_size,
};

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    /// Publish as fast as possible, or at a rate, and measure acknowledgements
    Produce(ProduceOptions),
    /// Read a topic from its beginning and measure deliveries
    Consume(ConsumeOptions),
    /// Publish and read at once, and measure from the intended send to the delivery
    #[command(name = "e2e")]
    EndToEnd(EndToEndOptions),
    /// Publish to a queue and work on it at once, each message acknowledged on its own, and judge every one
    ///
    /// Measures from the intended send to the delivery; `msgs_per_s` counts acknowledgements that the broker has
    /// confirmed. Exits with 5 if a message is lost or stored twice, or delivered after its confirmed
    /// acknowledgement. The broker may die and come back meanwhile. Use a queue for this alone.
    Queue(QueueOptions),
    /// Publish numbered messages through broker restarts, and judge what is stored
    ///
    /// Without --check: publishes, records in FILE what was acknowledged, then judges the topic. The broker
    /// may die and come back meanwhile. With --check: only judges. Exits with 5 if a message was lost, doubled,
    /// reordered or changed, or if offsets have gaps or repeats. Use a topic for this alone.
    Verify(VerifyOptions),
}

/// How much load, of what kind.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadOptions {
    /// Offer so many messages (1000, 100k/s) or bytes (10MB/s) per second over all connections: an open
    /// loop, whose latencies count from the intended send time. `max` sends as fast as acknowledged
    #[arg(long, value_name = "RATE", default_value = "max", value_parser = parse_rate)]
    pub(crate) rate: Rate,
    /// Send so many messages over all connections
    #[arg(long, value_name = "N", value_parser = parse_positive, conflicts_with = "duration")]
    pub(crate) messages: Option<u64>,
    /// Send for so long [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Send for so long before measuring
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// Payload size, or a range such as 200..4096 with sizes spread evenly
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = parse_size)]
    pub(crate) size: SizeRange,
    /// What payloads hold
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) payload: PayloadName,
    /// Number of connections that publish
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) producers: u32,
    /// Unacknowledged messages per connection; 1 waits for each [default: bounded by bytes alone]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) in_flight: Option<u64>,
    /// Size of a full batch
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) batch_bytes: Option<u64>,
    /// How long a batch waits to fill
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_with_unit)]
    pub(crate) linger: Option<Duration>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: CompressionName,
    /// Give each message an idempotency key that no other has
    #[arg(long)]
    pub(crate) idempotency_keys: bool,
    /// Seed of the payloads
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum PayloadName {
    /// Bytes that do not compress
    Random,
    /// Zero bytes
    Zero,
}

/// The topic, created if it is not there.
#[derive(Args, Clone, Debug)]
pub(crate) struct TargetOptions {
    /// The topic's name; the topic is created if it does not exist
    pub(crate) topic: String,
    /// Partitions of the topic; a topic that exists must have as many [default: 1, or as it is]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partitions: Option<u32>,
    /// Durability of the topic, if it is created
    #[arg(long, value_enum, default_value = "fsync")]
    pub(crate) durability: DurabilityName,
}

/// What becomes of the result.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReportOptions {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Exit with 1 if a condition holds, for example 'p99>20ms,rate<100k'. Knows p50 p90 p99 p999 p9999
    /// max mean (durations), rate, mb, errors, cpu (s per million), rss (MB)
    #[arg(long, value_name = "CONDITIONS", value_parser = parse_fail_if)]
    pub(crate) fail_if: Option<FailIf>,
    /// How often to print an interval line to standard error; 0 prints none
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) report_interval: Duration,
    /// The broker's process, for its CPU and memory [default: found by its port if it is local]
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
    /// Threads of the load tool
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: usize,
}

#[derive(Args, Debug)]
pub(crate) struct ProduceOptions {
    #[command(flatten)]
    pub(crate) target: TargetOptions,
    #[command(flatten)]
    pub(crate) load: LoadOptions,
    #[command(flatten)]
    pub(crate) report: ReportOptions,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct ConsumeOptions {
    /// The topic's name
    pub(crate) topic: String,
    /// Number of connections that read; each reads every message
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) consumers: u32,
    /// Stop each consumer after so many messages [default: where the topic ended at the start]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) messages: Option<u64>,
    /// Read for so long, following the topic
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "messages")]
    pub(crate) duration: Option<Duration>,
    #[command(flatten)]
    pub(crate) report: ReportOptions,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct EndToEndOptions {
    #[command(flatten)]
    pub(crate) target: TargetOptions,
    #[command(flatten)]
    pub(crate) load: LoadOptions,
    /// Number of connections that read; each reads every message
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) consumers: u32,
    #[command(flatten)]
    pub(crate) report: ReportOptions,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct QueueOptions {
    #[command(flatten)]
    pub(crate) target: TargetOptions,
    #[command(flatten)]
    pub(crate) load: LoadOptions,
    /// Number of connections that work
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: u32,
    /// Messages that each worker holds, those included whose acknowledgement is not confirmed
    #[arg(long, value_name = "N", default_value = "8192", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prefetch: u32,
    /// Without --rate: publish no more while so many messages are not worked off
    #[arg(long, value_name = "N", default_value = "10k", value_parser = parse_positive)]
    pub(crate) backlog: u64,
    /// Give messages so many keys in turn; without, they have none
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) keys: Option<u32>,
    /// Order per key: the queue is created so, and the order of each key is checked
    #[arg(long, requires = "keys")]
    pub(crate) key_order: bool,
    /// Work on this queue-mode subscription of a log topic; both are created if they do not exist
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    #[command(flatten)]
    pub(crate) report: ReportOptions,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyOptions {
    #[command(flatten)]
    pub(crate) target: TargetOptions,
    /// What was acknowledged; later runs append to it
    #[arg(long, value_name = "FILE")]
    pub(crate) state: PathBuf,
    /// Publish nothing, judge what FILE says
    #[arg(long, conflicts_with = "no_check")]
    pub(crate) check: bool,
    /// Publish only, judge later
    #[arg(long)]
    pub(crate) no_check: bool,
    /// Offer so many messages per second over all connections
    #[arg(long, value_name = "RATE", default_value = "max", value_parser = parse_rate)]
    pub(crate) rate: Rate,
    /// Send so many messages over all connections
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "duration")]
    pub(crate) messages: Option<u64>,
    /// Send for so long [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Payload size or range of sizes, at least 40 bytes
    #[arg(long, value_name = "BYTES", default_value = "64..512", value_parser = parse_size)]
    pub(crate) size: SizeRange,
    /// Number of connections that publish
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) producers: u32,
    /// Unacknowledged messages per connection
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_positive)]
    pub(crate) in_flight: u64,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}
