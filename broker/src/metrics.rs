//! The table of all metrics: name, unit, meaning, and where the value comes from.
//!
//! `/metrics` writes exactly the rows of this table, and docs/OPERATIONS.md is made from it. Series are
//! bounded: labels hold words of ours, but for the names of queues, of which [`crate::join::QUEUES_APART_MAX`] are told apart. Driven by the admin port.

mod process;
mod queues;
mod text;

use std::fmt::Write as _;

use postrider_protocol::error::ErrorCode;
use postrider_storage::{Histogram as StoreHistogram, StoreStats};

use crate::join::{BrokerMetrics, LATENESS_BOUNDS_MS};
use crate::net::{CloseReason, NetCounters};
pub(crate) use process::ProcessSample;
pub use text::Kind;
use text::Series;

/// One metric.
pub struct Metric {
    /// Its name, with the unit as its last word.
    pub name: &'static str,
    /// What it is to Prometheus.
    pub kind: Kind,
    /// Unit of the value.
    pub unit: &'static str,
    /// What it counts, in full sentences.
    pub meaning: &'static str,
    write: fn(&Sample<'_>, &mut Series<'_>),
}

/// Everything that the metrics are read from, at one moment.
pub(crate) struct Sample<'a> {
    pub(crate) net: &'a NetCounters,
    pub(crate) process: ProcessSample,
    /// None while the log is being recovered.
    pub(crate) broker: Option<BrokerMetrics>,
    pub(crate) ready: bool,
}

impl Sample<'_> {
    fn broker(&self, read: impl FnOnce(&BrokerMetrics) -> u64) -> Option<u64> {
        self.broker.as_ref().map(read)
    }

    fn store(&self, read: impl FnOnce(&StoreStats) -> u64) -> Option<u64> {
        self.broker.as_ref().map(|broker| read(&broker.store))
    }

    /// Errors given by the join and by the shell.
    fn errors(&self) -> Vec<(ErrorCode, u64)> {
        let join = self.broker.as_ref().map(|broker| broker.errors.as_slice()).unwrap_or_default();
        let of_join = |code| join.iter().find(|(other, _)| *other == code).map_or(0, |(_, n)| *n);
        self.net.errors().map(|(code, count)| (code, count + of_join(code))).collect()
    }
}

/// The store's buckets are powers of two of microseconds.
fn write_histogram(out: &mut Series<'_>, histogram: &StoreHistogram) {
    let last = histogram.buckets.len() - 1;
    let bounds: Vec<f64> = (0..last).map(|n| (1_u64 << n) as f64 / 1e6).collect();
    out.histogram(&bounds, &histogram.buckets, histogram.sum_ns as f64 / 1e9);
}

macro_rules! metrics {
    ($($name:literal $kind:ident $unit:literal, $meaning:literal, $write:expr;)*) => {
        /// Every metric, in the order of the document.
        pub const METRICS: &[Metric] = &[
            $(Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                meaning: $meaning,
                write: $write,
            },)*
        ];
    };
}

metrics! {
    "postrider_build_info" Gauge "1", "Always 1; the label tells the version.",
        |_, out| out.labelled("version", env!("CARGO_PKG_VERSION"), 1);
    "postrider_ready" Gauge "0 or 1", "Whether clients are served: recovered, not draining, disk not failed.",
        |s, out| out.count(u64::from(s.ready));

    "postrider_connections" Gauge "connections", "Client connections that are open.",
        |s, out| out.count(s.net.open());
    "postrider_connections_accepted_total" Counter "connections", "Client connections accepted and served.",
        |s, out| out.count(s.net.accepted.total());
    "postrider_connections_refused_total" Counter "connections", "Client connections answered with an error because there were too many.",
        |s, out| out.count(s.net.refused.total());
    "postrider_connections_closed_total" Counter "connections", "Client connections that ended, by reason: `client` closed it, `broken` within a frame, `handshake_timeout`, `frame_timeout` (half a frame, then silence), `slow_reader`, `silent`, `error` (a bad frame or request), `shutdown`.",
        |s, out| for reason in CloseReason::ALL {
            out.labelled("reason", reason.name(), s.net.closed_by(reason));
        };
    "postrider_accept_errors_total" Counter "errors", "Failures to accept a connection, such as too many open files.",
        |s, out| out.count(s.net.accept_errors.total());
    "postrider_received_bytes_total" Counter "bytes", "Bytes read from client connections.",
        |s, out| out.count(s.net.bytes_received.total());
    "postrider_sent_bytes_total" Counter "bytes", "Bytes written to client connections.",
        |s, out| out.count(s.net.bytes_sent.total());
    "postrider_received_frames_total" Counter "frames", "Complete frames read from client connections.",
        |s, out| out.count(s.net.frames_received.total());
    "postrider_reads_total" Counter "system calls", "Reads from client connections.",
        |s, out| out.count(s.net.reads.total());
    "postrider_writes_total" Counter "system calls", "Writes to client connections.",
        |s, out| out.count(s.net.writes.total());
    "postrider_read_pauses_total" Counter "pauses", "Times that a connection was not read because too much of it was in flight.",
        |s, out| out.count(s.net.read_pauses.total());
    "postrider_cold_reads_total" Counter "reads", "Deliveries that had to be read from disk first.",
        |s, out| out.count(s.broker(|b| b.cold_runs));
    "postrider_admin_requests_total" Counter "requests", "Requests to the admin port.",
        |s, out| out.count(s.net.admin_requests.total());

    "postrider_requests_total" Counter "requests", "Requests of clients other than publishes and credit.",
        |s, out| out.count(s.broker(|b| b.requests));
    "postrider_errors_total" Counter "errors", "Errors given to clients, by code; docs/PROTOCOL.md has their meaning.",
        |s, out| for (code, count) in s.errors() {
            out.labelled("code", code.name(), count);
        };
    "postrider_publish_batches_total" Counter "batches", "Batches received.",
        |s, out| out.count(s.broker(|b| b.publish_batches));
    "postrider_publish_messages_total" Counter "messages", "Messages in received batches.",
        |s, out| out.count(s.broker(|b| b.publish_messages));
    "postrider_publish_bytes_total" Counter "bytes", "Bytes of received batches, as sent (compressed or not).",
        |s, out| out.count(s.broker(|b| b.publish_bytes));
    "postrider_publish_outcomes_total" Counter "messages", "Messages by outcome: `committed`, `duplicate` (stored before), `rejected` (definitely not stored), `unknown`.",
        |s, out| if let Some(b) = &s.broker {
            out.labelled("outcome", "committed", b.committed_messages);
            out.labelled("outcome", "duplicate", b.duplicate_messages);
            out.labelled("outcome", "rejected", b.rejected_messages);
            out.labelled("outcome", "unknown", b.unknown_messages);
        };
    "postrider_publish_in_flight_bytes" Gauge "bytes", "Received batches that are not confirmed yet.",
        |s, out| out.count(s.broker(|b| b.publish_in_flight_bytes));
    "postrider_delivered_messages_total" Counter "messages", "Messages sent to subscribers, counted once for each.",
        |s, out| out.count(s.broker(|b| b.delivered_messages));
    "postrider_delivered_bytes_total" Counter "bytes", "Bytes of entries sent to subscribers.",
        |s, out| out.count(s.broker(|b| b.delivered_bytes));
    "postrider_delivered_frames_total" Counter "frames", "Deliver frames; each carries a run of entries.",
        |s, out| out.count(s.broker(|b| b.delivered_runs));
    "postrider_gaps_total" Counter "gaps", "Ranges of offsets told to subscribers as not deliverable (retention, damage).",
        |s, out| out.count(s.broker(|b| b.gaps));
    "postrider_acks_total" Counter "acks", "Acknowledgements of subscribers stored.",
        |s, out| out.count(s.broker(|b| b.acks));
    "postrider_queue_leased_total" Counter "messages", "Messages leased to consumers of queues, counted once for each hand-out.",
        |s, out| out.count(s.broker(|b| b.queue_leased));
    "postrider_queue_acked_total" Counter "messages", "Messages of queues acknowledged, durably as their topic says.",
        |s, out| out.count(s.broker(|b| b.queue_acked));
    "postrider_queue_returned_total" Counter "messages", "Messages that consumers gave back: released, failed or rejected.",
        |s, out| out.count(s.broker(|b| b.queue_returned));
    "postrider_queue_leases_lost_total" Counter "messages", "Leases that ended without their consumer: not renewed in time, purged, sought past.",
        |s, out| out.count(s.broker(|b| b.queue_leases_lost));
    "postrider_queue_dead_lettered_total" Counter "messages", "Messages moved to dead letter topics.",
        |s, out| out.count(s.broker(|b| b.queue_dead_lettered));
    "postrider_queue_expired_total" Counter "messages", "Messages that left queues because they were older than the TTL of their topic, and went to no dead letter topic.",
        |s, out| out.count(s.broker(|b| b.queue_expired));
    "postrider_queue_evicted_total" Counter "messages", "Messages that left queues unprocessed: an overflow, a purge, a seek, retention or damage.",
        |s, out| out.count(s.broker(|b| b.queue_evicted));
    "postrider_dedup_keys" Gauge "keys", "Idempotency keys that are remembered.",
        |s, out| out.count(s.broker(|b| b.dedup_keys));
    "postrider_dedup_bytes" Gauge "bytes", "Memory of the idempotency keys that are remembered.",
        |s, out| out.count(s.broker(|b| b.dedup_bytes));
    "postrider_dedup_messages_total" Counter "messages", "Messages received with an idempotency key.",
        |s, out| out.count(s.broker(|b| b.keyed_messages));
    "postrider_queue_messages" Gauge "messages", "Messages in queues by `topic`, `subscription` and `state`: `ready`, `leased`, `delayed` (failed, wait for the next try), `blocked` (behind their key), `dead_lettering`. As `queue show` tells them, looked at every second. The first 1,000 queues by name are told apart; the series without `topic` is the sum of the others.",
        queues::messages;
    "postrider_queue_oldest_ready_seconds" Gauge "seconds", "Age of the oldest message that is ready, by `topic` and `subscription`; the series without them is that of the queues that are not told apart.",
        queues::oldest_ready;
    "postrider_delayed_pending" Gauge "messages", "Delayed messages that wait for their time.",
        |s, out| out.count(s.broker(|b| b.delays_pending));
    "postrider_delayed_scheduled_total" Counter "messages", "Messages published with a delay.",
        |s, out| out.count(s.broker(|b| b.delays_scheduled));
    "postrider_delayed_released_total" Counter "messages", "Delayed messages that got their offsets when their time had come.",
        |s, out| out.count(s.broker(|b| b.delays_released));
    "postrider_delayed_cancelled_total" Counter "messages", "Delayed messages that were taken back.",
        |s, out| out.count(s.broker(|b| b.delays_cancelled));
    "postrider_delayed_lost_total" Counter "messages", "Delayed messages that could not be read any more when their time had come; each is a line in the log.",
        |s, out| out.count(s.broker(|b| b.delays_lost));
    "postrider_delayed_late_seconds" Histogram "seconds", "How long after their time delayed messages were released.",
        |s, out| if let Some(b) = &s.broker {
            let bounds = LATENESS_BOUNDS_MS.map(|ms| ms as f64 / 1e3);
            out.histogram(&bounds, &b.delay_lateness.buckets, b.delay_lateness.sum_ms as f64 / 1e3);
        };
    "postrider_topics" Gauge "topics", "Topics that exist.",
        |s, out| out.count(s.broker(|b| b.topics));
    "postrider_partitions" Gauge "partitions", "Partitions of all topics.",
        |s, out| out.count(s.broker(|b| b.partitions));
    "postrider_subscriptions" Gauge "subscriptions", "Durable subscriptions that exist, attached or not.",
        |s, out| out.count(s.broker(|b| b.subscriptions));
    "postrider_group_members" Gauge "members", "Members of consumer groups.",
        |s, out| out.count(s.broker(|b| b.group_members));
    "postrider_group_partitions_unowned" Gauge "partitions", "Partitions of consumer groups with members that nobody reads at this moment.",
        |s, out| out.count(s.broker(|b| b.group_partitions_unowned));
    "postrider_group_unowned_reports_total" Counter "reports", "Times that such a partition had no owner for longer than the bound; each is a line in the log.",
        |s, out| out.count(s.broker(|b| b.group_unowned_reports));
    "postrider_folded_partitions_total" Counter "partitions", "Partitions whose state was rebuilt from their log at first use.",
        |s, out| out.count(s.broker(|b| b.partitions_folded));
    "postrider_folded_entries_total" Counter "entries", "Entries read for that.",
        |s, out| out.count(s.broker(|b| b.entries_folded));
    "postrider_snapshots_total" Counter "snapshots", "Snapshots of partition state taken.",
        |s, out| out.count(s.broker(|b| b.snapshots));
    "postrider_snapshot_bytes_total" Counter "bytes", "Their bytes.",
        |s, out| out.count(s.broker(|b| b.snapshot_bytes));
    "postrider_retention_trims_total" Counter "trims", "Times that retention removed the oldest part of a partition.",
        |s, out| out.count(s.broker(|b| b.trims));

    "postrider_disk_full" Gauge "0 or 1", "Whether publishes are rejected because the disk is full.",
        |s, out| out.count(s.broker(|b| u64::from(b.disk_full)));
    "postrider_disk_free_bytes" Gauge "bytes", "Free space of the data directory's file system, as the store counts it.",
        |s, out| out.count(s.store(|t| t.free_bytes));
    "postrider_storage_queue_bytes" Gauge "bytes", "Accepted bytes that wait to be written.",
        |s, out| out.count(s.store(|t| t.queue_bytes));
    "postrider_storage_groups_total" Counter "groups", "Groups of entries written together.",
        |s, out| out.count(s.store(|t| t.groups));
    "postrider_storage_group_seconds" Histogram "seconds", "Time from taking a group to telling that it is durable.",
        |s, out| if let Some(b) = &s.broker { write_histogram(out, &b.store.group_time) };
    "postrider_storage_sync_seconds" Histogram "seconds", "Time that the syncs of a group took.",
        |s, out| if let Some(b) = &s.broker { write_histogram(out, &b.store.sync_time) };
    "postrider_storage_syncs_total" Counter "syncs", "Files synced by groups.",
        |s, out| out.count(s.store(|t| t.syncs));
    "postrider_storage_entries_total" Counter "entries", "Entries written: batches and state.",
        |s, out| out.count(s.store(|t| t.entries));
    "postrider_storage_entry_bytes_total" Counter "bytes", "Their bytes.",
        |s, out| out.count(s.store(|t| t.entry_bytes));
    "postrider_storage_journal_bytes_total" Counter "bytes", "Bytes written to the journal.",
        |s, out| out.count(s.store(|t| t.journal_bytes));
    "postrider_storage_segment_bytes_total" Counter "bytes", "Bytes written to segments.",
        |s, out| out.count(s.store(|t| t.segment_bytes));
    "postrider_storage_direct_writes_total" Counter "writes", "Runs of entries written once, straight to their segment.",
        |s, out| out.count(s.store(|t| t.direct_writes));
    "postrider_storage_checkpoints_total" Counter "checkpoints", "Checkpoints: moments from which recovery reads.",
        |s, out| out.count(s.store(|t| t.checkpoints));
    "postrider_storage_segment_files_total" Counter "files", "Segment files taken into use or removed, by `what`: `new`, `recycled`, `removed`.",
        |s, out| if let Some(b) = &s.broker {
            out.labelled("what", "new", b.store.segment_files_new);
            out.labelled("what", "recycled", b.store.segment_files_recycled);
            out.labelled("what", "removed", b.store.segment_files_removed);
        };
    "postrider_storage_segments_thinned_total" Counter "segments", "Segments of queues whose space was taken back although older ones stay, by `how`: `vacated` when nothing in them was live, `rewritten` when little was.",
        |s, out| if let Some(b) = &s.broker {
            out.labelled("how", "vacated", b.store.segments_vacated);
            out.labelled("how", "rewritten", b.store.segments_rewritten);
        };
    "postrider_storage_rewritten_bytes_total" Counter "bytes", "Bytes written for that.",
        |s, out| out.count(s.store(|t| t.rewritten_bytes));
    "postrider_storage_mapped_segments" Gauge "segments", "Segments mapped into memory.",
        |s, out| out.count(s.store(|t| t.mapped_segments));
    "postrider_storage_recyclable_bytes" Gauge "bytes", "Segment files that wait for reuse.",
        |s, out| out.count(s.store(|t| t.recyclable_bytes));
    "postrider_storage_pinned_bytes" Gauge "bytes", "Released segment files that readers still hold.",
        |s, out| out.count(s.store(|t| t.pinned_bytes));
    "postrider_storage_stalls_total" Counter "stalls", "Times that a partition had to wait for disk space.",
        |s, out| out.count(s.store(|t| t.stalls));

    "process_cpu_seconds_total" Counter "seconds", "Processor time of the process, user and system.",
        |s, out| out.value(s.process.cpu_seconds);
    "process_resident_memory_bytes" Gauge "bytes", "Memory in use, mapped segment pages included.",
        |s, out| out.count(s.process.resident_bytes);
    "process_virtual_memory_bytes" Gauge "bytes", "Address space in use.",
        |s, out| out.count(s.process.virtual_bytes);
    "process_open_fds" Gauge "files", "Open files and sockets.",
        |s, out| out.count(s.process.open_files);
    "process_max_fds" Gauge "files", "Limit of open files and sockets.",
        |s, out| out.count(s.process.open_files_max);
    "process_threads" Gauge "threads", "Threads of the process.",
        |s, out| out.count(s.process.threads);
    "process_start_time_seconds" Gauge "seconds", "Start of the process in Unix time.",
        |s, out| out.value(s.process.start_seconds);
}

/// The body of `/metrics`.
pub(crate) fn render(sample: &Sample<'_>) -> String {
    let mut out = String::with_capacity(16 << 10);
    for metric in METRICS {
        let _ = writeln!(out, "# HELP {} {}", metric.name, metric.meaning);
        let _ = writeln!(out, "# TYPE {} {}", metric.name, metric.kind.name());
        (metric.write)(sample, &mut Series { out: &mut out, name: metric.name });
    }
    out
}

/// The section of docs/OPERATIONS.md: every metric with its meaning.
#[must_use]
pub fn document() -> String {
    let mut out = String::from("| metric | kind | unit | meaning |\n|---|---|---|---|\n");
    for metric in METRICS {
        let Metric { name, kind, unit, meaning, .. } = metric;
        let _ = writeln!(out, "| `{name}` | {} | {unit} | {meaning} |", kind.name());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_custom_of_prometheus() {
        for metric in METRICS {
            let ours = metric.name.starts_with("postrider_") || metric.name.starts_with("process_");
            assert!(ours, "{}", metric.name);
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.meaning.ends_with('.'), "{}", metric.name);
            assert!(!metric.meaning.contains('\n') && !metric.meaning.contains('|'));
        }
    }
}
