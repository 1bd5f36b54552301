//! Owns the result of a load test: the JSON document, the lines for people, the interval lines, and what
//! `--fail-if` makes of them. Measures nothing itself.
//!
//! The document carries `schema`; a field keeps its meaning as long as that stays. MB are 10^6 bytes.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::args::ReportOptions;
use super::meter::{Latencies, Meter};
use super::process::{self, Usage};
use crate::exit::{Failure, Outcome};
use crate::output::{note, print};
use crate::units::grouped;

/// The version of the result document.
const SCHEMA: &str = "postrider-bench/1";

/// Watches the broker's process over the measured time.
pub(crate) struct ServerWatch {
    pid: Option<u32>,
    before: Option<Usage>,
    client_before: Option<Usage>,
}

impl ServerWatch {
    /// Starts the measured time.
    pub(crate) fn start(pid: Option<u32>) -> Self {
        let client_before = process::usage(std::process::id());
        Self { pid, before: pid.and_then(process::usage), client_before }
    }

    /// Ends the measured time.
    pub(crate) fn stop(self) -> Used {
        let after = self.pid.and_then(process::usage);
        let client_after = process::usage(std::process::id());
        let spent = |before: Option<Usage>, after: Option<Usage>| {
            Some(after?.cpu.saturating_sub(before?.cpu))
        };
        Used {
            server_cpu: spent(self.before, after),
            client_cpu: spent(self.client_before, client_after),
            server: after,
        }
    }
}

/// What broker and load tool used during the measured time. None where the broker is not on this machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    server_cpu: Option<Duration>,
    client_cpu: Option<Duration>,
    server: Option<Usage>,
}

/// What a latency means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loop {
    /// Sends follow a schedule; latencies count from the intended time.
    Open,
    /// Sends wait for acknowledgements; latencies count from the send and do not compare.
    Closed,
    /// Nothing was sent.
    ReadOnly,
}

/// Everything that a result says, before it is written.
pub(crate) struct Report<'a> {
    pub(crate) command: &'static str,
    pub(crate) topic: &'a str,
    pub(crate) server: &'a str,
    pub(crate) server_version: Option<String>,
    /// Messages counted: acknowledged, or delivered.
    pub(crate) messages: u64,
    /// Their payload bytes.
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) load_loop: Loop,
    pub(crate) latencies: Latencies,
    pub(crate) errors: u64,
    pub(crate) used: Used,
    /// What is special to one verb.
    pub(crate) extra: Vec<(&'static str, Value)>,
    /// The flags that shaped the load.
    pub(crate) config: Value,
    pub(crate) intervals: Vec<Value>,
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

impl Report<'_> {
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn per_million(&self, cpu: Option<Duration>) -> Option<f64> {
        let millions = self.messages as f64 / 1e6;
        (millions > 0.0).then(|| cpu.map(|cpu| rounded(cpu.as_secs_f64() / millions, 4)))?
    }

    fn to_json(&self) -> Value {
        let machine = process::machine();
        let mb = |bytes: u64| rounded(bytes as f64 / 1e6, 1);
        let mut result = Map::new();
        let mut put = |name: &str, value: Value| result.insert(name.to_owned(), value);
        put("schema", json!(SCHEMA));
        put("command", json!(self.command));
        put("topic", json!(self.topic));
        put("messages", json!(self.messages));
        put("bytes", json!(self.bytes));
        put("seconds", json!(rounded(self.elapsed.as_secs_f64(), 6)));
        put("msgs_per_s", json!(rounded(self.per_second(self.messages), 1)));
        put("mb_per_s", json!(rounded(self.per_second(self.bytes) / 1e6, 3)));
        put("latency_us", self.latencies.to_json());
        put("latency_basis", json!(self.load_loop.basis()));
        put("latency_comparable", json!(self.load_loop == Loop::Open));
        put("latency_samples_of", json!(self.load_loop.samples_of()));
        put("errors", json!(self.errors));
        put("server_cpu_s", json!(self.used.server_cpu.map(|cpu| cpu.as_secs_f64())));
        put("server_cpu_s_per_million", json!(self.per_million(self.used.server_cpu)));
        put("client_cpu_s_per_million", json!(self.per_million(self.used.client_cpu)));
        put("server_rss_mb", json!(self.used.server.map(|usage| mb(usage.rss_bytes))));
        let anonymous = self.used.server.map(|usage| mb(usage.anonymous_bytes));
        put("server_rss_anonymous_mb", json!(anonymous));
        for (name, value) in &self.extra {
            put(name, value.clone());
        }
        put("config", self.config.clone());
        put("tool_version", json!(env!("CARGO_PKG_VERSION")));
        put("server", json!(self.server));
        put("server_version", json!(self.server_version));
        put("kernel", json!(machine.kernel));
        put("cpu", json!(machine.cpu));
        put("cores", json!(machine.cores));
        put("intervals", Value::Array(self.intervals.clone()));
        Value::Object(result)
    }

    fn to_text(&self) -> String {
        let mut text = format!(
            "{} {}: {} messages in {:.3} s, {} msg/s, {:.1} MB/s\n",
            self.command,
            self.topic,
            grouped(self.messages),
            self.elapsed.as_secs_f64(),
            grouped(crate::units::to_u64(self.per_second(self.messages))),
            self.per_second(self.bytes) / 1e6
        );
        if !self.latencies.is_empty() {
            let remark = match self.load_loop {
                Loop::Open => "from the intended send",
                Loop::Closed => "closed loop, not comparable",
                Loop::ReadOnly => "from the intended send to the delivery",
            };
            text.push_str(&format!("latency: {} ({remark})\n", self.latencies.to_line()));
        }
        if let (Some(cpu), Some(usage)) = (self.per_million(self.used.server_cpu), self.used.server)
        {
            let client = self.per_million(self.used.client_cpu).unwrap_or_default();
            text.push_str(&format!(
                "broker: {cpu:.3} CPU-s per million, {:.1} MB resident; load tool: {client:.3} CPU-s per million\n",
                usage.rss_bytes as f64 / 1e6
            ));
        }
        if self.errors > 0 {
            text.push_str(&format!("errors: {}\n", grouped(self.errors)));
        }
        text
    }

    /// Prints and writes the result, and fails if a condition of `--fail-if` holds.
    pub(crate) fn deliver(&self, options: &ReportOptions) -> Outcome {
        let result = self.to_json();
        print(&self.to_text())?;
        if result["generator_saturated"] == true {
            note(
                "INVALID: the load was not offered in time; the latencies are those of an overload. \
                 Lower --rate or add --producers",
            );
        }
        if let Some(path) = &options.json {
            fs::write(path, format!("{result:#}\n")).map_err(|error| {
                Failure::failed(format!("cannot write {}: {error}", path.display()))
                    .next("name a writable file with --json")
            })?;
        }
        let violated = options.fail_if.as_ref().map(|conditions| conditions.violated(&result));
        match violated {
            Some(violated) if !violated.is_empty() => {
                Err(Failure::failed(format!("--fail-if {}", violated.join("; "))))
            }
            _ => Ok(()),
        }
    }
}

impl Loop {
    fn basis(self) -> &'static str {
        match self {
            Self::Open => "intended",
            Self::Closed => "sent",
            Self::ReadOnly => "none",
        }
    }

    fn samples_of(self) -> &'static str {
        match self {
            Self::Open => "each message",
            Self::Closed => "the first message of each batch",
            Self::ReadOnly => "none",
        }
    }
}

/// Turns the meter into interval lines, and remembers them for the result.
pub(crate) struct Intervals {
    started: Instant,
    last: Instant,
    seen: Seen,
    /// Bounded: an hour of seconds; later intervals are printed but not kept.
    kept: Vec<Value>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    acked: u64,
    acked_bytes: u64,
    received: u64,
    received_bytes: u64,
}

const INTERVALS_KEPT_MAX: usize = 3_600;

impl Intervals {
    pub(crate) fn new(now: Instant) -> Self {
        Self { started: now, last: now, seen: Seen::default(), kept: Vec::new() }
    }

    /// The line since the last call.
    pub(crate) fn line(&mut self, now: Instant, meter: &Meter) -> String {
        let seconds = now.duration_since(self.last).as_secs_f64().max(1e-9);
        let at = now.duration_since(self.started).as_secs_f64();
        let current = Seen {
            acked: meter.acked.value(),
            acked_bytes: meter.acked_bytes.value(),
            received: meter.received.value(),
            received_bytes: meter.received_bytes.value(),
        };
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let mut line = format!("[{at:>5.0}s]");
        let mut kept = json!({ "at_s": rounded(at, 3) });
        for (name, count, bytes, latencies) in [
            (
                "pub",
                per_second(current.acked, self.seen.acked),
                per_second(current.acked_bytes, self.seen.acked_bytes),
                meter.acks.take_interval(),
            ),
            (
                "con",
                per_second(current.received, self.seen.received),
                per_second(current.received_bytes, self.seen.received_bytes),
                meter.deliveries.take_interval(),
            ),
        ] {
            let unused = count == 0.0 && latencies.is_empty();
            if unused && (name == "con" || current.received > 0) {
                continue;
            }
            line.push_str(&format!(
                " {name} {} msg/s {:.1} MB/s",
                grouped(crate::units::to_u64(count)),
                bytes / 1e6
            ));
            if !latencies.is_empty() {
                line.push_str(&format!(" {}", latencies.to_line()));
            }
            line.push_str(" |");
            kept[name] = json!({
                "msgs_per_s": rounded(count, 1),
                "mb_per_s": rounded(bytes / 1e6, 3),
                "latency_us": latencies.to_json(),
            });
        }
        line.push_str(&format!(" err {}", meter.errors.value()));
        if self.kept.len() < INTERVALS_KEPT_MAX {
            self.kept.push(kept);
        }
        (self.last, self.seen) = (now, current);
        line
    }

    pub(crate) fn into_json(self) -> Vec<Value> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report<'static> {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_micros(270));
        Report {
            command: "produce",
            topic: "t",
            server: "postrider://127.0.0.1:7420",
            server_version: None,
            messages: 2_000_000,
            bytes: 2_048_000_000,
            elapsed: Duration::from_secs(4),
            load_loop: Loop::Open,
            latencies,
            errors: 0,
            used: Used {
                server_cpu: Some(Duration::from_secs(1)),
                client_cpu: None,
                server: Some(Usage {
                    cpu: Duration::ZERO,
                    rss_bytes: 12_000_000,
                    anonymous_bytes: 5_000_000,
                }),
            },
            extra: vec![("generator_saturated", json!(false))],
            config: json!({}),
            intervals: Vec::new(),
        }
    }

    #[test]
    fn result_has_the_fields_that_scripts_read() {
        let json = report().to_json();
        assert_eq!(json["messages"], 2_000_000);
        assert_eq!(json["seconds"], 4.0);
        assert_eq!(json["msgs_per_s"], 500_000.0);
        assert_eq!(json["mb_per_s"], 512.0);
        assert_eq!(json["latency_us"]["p50"], 270);
        for name in ["p99", "p999", "max"] {
            assert!(json["latency_us"][name].is_u64(), "{name}");
        }
        assert_eq!(json["server_cpu_s_per_million"], 0.5);
        assert_eq!(json["server_rss_mb"], 12.0);
        assert_eq!(json["generator_saturated"], false);
    }

    #[test]
    fn intervals_report_what_happened_since_the_last() {
        let start = Instant::now();
        let meter = Meter::new();
        let mut intervals = Intervals::new(start);
        meter.acked.add(1_000);
        meter.acked_bytes.add(1_000_000);
        meter.acks.record(Duration::from_micros(500));
        let line = intervals.line(start + Duration::from_secs(1), &meter);
        assert_eq!(
            line,
            "[    1s] pub 1,000 msg/s 1.0 MB/s p50 0.50 p99 0.50 p99.9 0.50 max 0.50 ms | err 0"
        );
        meter.acked.add(500);
        let line = intervals.line(start + Duration::from_secs(2), &meter);
        assert_eq!(line, "[    2s] pub 500 msg/s 0.0 MB/s | err 0");
        assert_eq!(intervals.into_json().len(), 2);
    }
}
