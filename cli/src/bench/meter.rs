//! Owns the counters and latencies of a running test. Never prints. The workers record, the reporter
//! reads.
//!
//! Only messages sent after the warm-up are counted: a worker decides by the intended send time. One lock
//! for all workers: it is taken per sample or per batch, and the load tool has one or two threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies in microseconds, 1 us to 60 s, three digits.
#[derive(Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(us.max(1));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Microseconds below which the given share of the samples lies.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    pub(crate) fn max(&self) -> u64 {
        self.0.max()
    }

    /// The quantiles as the result shows them; null without samples.
    pub(crate) fn to_json(&self) -> Value {
        if self.is_empty() {
            return Value::Null;
        }
        json!({
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "p999": self.quantile(0.999),
            "p9999": self.quantile(0.9999),
            "max": self.max(),
            "mean": (self.0.mean() * 10.0).round() / 10.0,
            "samples": self.0.len(),
        })
    }

    /// `p50 0.91 p99 3.14 p99.9 7.80 max 14.20 ms`.
    pub(crate) fn to_line(&self) -> String {
        let ms = |us: u64| us as f64 / 1e3;
        format!(
            "p50 {:.2} p99 {:.2} p99.9 {:.2} max {:.2} ms",
            ms(self.quantile(0.5)),
            ms(self.quantile(0.99)),
            ms(self.quantile(0.999)),
            ms(self.max())
        )
    }
}

/// Latencies of one kind over the whole run and since the last interval line.
pub(crate) struct Samples(Mutex<(Latencies, Latencies)>);

impl Samples {
    fn new() -> Self {
        Self(Mutex::new((Latencies::new(), Latencies::new())))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, (Latencies, Latencies)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn record(&self, latency: Duration) {
        self.locked().1.record(latency);
    }

    /// Records under one lock.
    pub(crate) fn record_all(&self, latencies: impl Iterator<Item = Duration>) {
        let mut samples = self.locked();
        for latency in latencies {
            samples.1.record(latency);
        }
    }

    /// The latencies since the last call; they are part of the total from now on.
    pub(crate) fn take_interval(&self) -> Latencies {
        let mut samples = self.locked();
        let (total, interval) = &mut *samples;
        total.merge(interval);
        let taken = interval.clone();
        interval.clear();
        taken
    }

    /// Everything recorded so far.
    pub(crate) fn total(&self) -> Latencies {
        self.take_interval();
        self.locked().0.clone()
    }
}

/// A counter that workers raise.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        // Only a statistic: nothing is published by it.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the workers of a test record.
pub(crate) struct Meter {
    /// Messages handed to the client after the warm-up.
    pub(crate) sent: Counter,
    /// Messages acknowledged, those of the warm-up included.
    pub(crate) acked_all: Counter,
    /// Messages acknowledged, of those sent after the warm-up.
    pub(crate) acked: Counter,
    /// Payload bytes acknowledged.
    pub(crate) acked_bytes: Counter,
    /// Acknowledged as duplicates, of the acknowledged.
    pub(crate) duplicates: Counter,
    /// Messages delivered to consumers; of a queue, those whose acknowledgement is confirmed.
    pub(crate) received: Counter,
    /// Payload bytes delivered.
    pub(crate) received_bytes: Counter,
    /// Messages that failed.
    pub(crate) errors: Counter,
    /// From the intended send (open loop) or the send (closed loop) to the acknowledgement.
    pub(crate) acks: Samples,
    /// From the send to the acknowledgement.
    pub(crate) service: Samples,
    /// From the intended send to the send.
    pub(crate) schedule_lag: Samples,
    /// From the intended send to the delivery.
    pub(crate) deliveries: Samples,
    /// From the acknowledgement of a delivery to its confirmation.
    pub(crate) settles: Samples,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            sent: Counter::default(),
            acked_all: Counter::default(),
            acked: Counter::default(),
            acked_bytes: Counter::default(),
            duplicates: Counter::default(),
            received: Counter::default(),
            received_bytes: Counter::default(),
            errors: Counter::default(),
            acks: Samples::new(),
            service: Samples::new(),
            schedule_lag: Samples::new(),
            deliveries: Samples::new(),
            settles: Samples::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_add_up_to_the_total() {
        let samples = Samples::new();
        samples.record(Duration::from_micros(100));
        assert_eq!(samples.take_interval().max(), 100);
        assert!(samples.take_interval().is_empty());
        samples.record(Duration::from_micros(300));
        let total = samples.total();
        assert_eq!((total.quantile(0.0), total.max()), (100, 300));
    }

    #[test]
    fn latencies_have_the_named_quantiles() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.to_json(), Value::Null);
        for us in 1..=1_000 {
            latencies.record(Duration::from_micros(us));
        }
        let json = latencies.to_json();
        assert_eq!(json["p50"], 500);
        assert_eq!(json["p99"], 990);
        assert_eq!(json["max"], 1_000);
        assert_eq!(json["samples"], 1_000);
    }

    #[test]
    fn a_latency_beyond_the_range_is_kept_as_the_largest() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_secs(3_600));
        assert!(latencies.max() >= 60_000_000);
    }
}
