//! Owns the judgement: compares a topic, read back from its beginning, with what was acknowledged. Pure:
//! no broker, no file. Driven by `bench verify` with every message in offset order per partition.
//!
//! Memory follows the number of batches, not of messages: consecutive messages are kept as spans.

use std::collections::BTreeMap;
use std::fmt;

use super::message::{self, Identity};
use super::state::{Recorded, RunRecord, StreamRecord};
use super::{Span, Stream};

/// What can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Violation {
    /// Acknowledged and not there.
    Lost,
    /// There more than once.
    Duplicated,
    /// Behind a message that was sent after it.
    Reordered,
    /// Not a payload that was sent, or in a partition that it was not sent to.
    Changed,
    /// Acknowledged at another offset than the one where it is.
    Misplaced,
    /// Missing between messages that are there, although it was neither rejected nor given up.
    Skipped,
    /// There although the broker had said that it is not.
    Resurrected,
    /// An offset that no message has.
    OffsetGap,
    /// An offset that came again, or came back.
    OffsetRepeat,
}

impl Violation {
    const ALL: [Self; 9] = [
        Self::Lost,
        Self::Duplicated,
        Self::Reordered,
        Self::Changed,
        Self::Misplaced,
        Self::Skipped,
        Self::Resurrected,
        Self::OffsetGap,
        Self::OffsetRepeat,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Changed => "changed",
            Self::Misplaced => "misplaced",
            Self::Skipped => "skipped",
            Self::Resurrected => "resurrected",
            Self::OffsetGap => "offset_gaps",
            Self::OffsetRepeat => "offset_repeats",
        }
    }
}

/// Examples kept for people; everything beyond is only counted.
const EXAMPLES_MAX: usize = 20;

/// The result of a check.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) runs: u64,
    pub(crate) acknowledged: u64,
    pub(crate) read: u64,
    violations: BTreeMap<Violation, u64>,
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    #[cfg(test)]
    fn count(&self, violation: Violation) -> u64 {
        self.violations.get(&violation).copied().unwrap_or(0)
    }

    fn add(&mut self, violation: Violation, count: u64, example: impl FnOnce() -> String) {
        *self.violations.entry(violation).or_default() += count;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{}: {}", violation.name(), example()));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "runs={} acknowledged={} read={}", self.runs, self.acknowledged, self.read)?;
        for violation in Violation::ALL {
            let count = self.violations.get(&violation).copied().unwrap_or(0);
            write!(f, " {}={count}", violation.name())?;
        }
        Ok(())
    }
}

/// Compares what is read with what was recorded.
pub(crate) struct Checker {
    recorded: Recorded,
    verdict: Verdict,
    /// The next offset of each partition.
    next: BTreeMap<u32, u64>,
    seen: BTreeMap<(u64, Stream), Seen>,
}

/// What was read of one stream: spans by their first sequence.
#[derive(Default)]
struct Seen {
    spans: BTreeMap<u64, Span>,
    /// One past the highest sequence.
    end: u64,
}

impl Checker {
    pub(crate) fn new(recorded: Recorded) -> Self {
        Self { recorded, verdict: Verdict::default(), next: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// Takes the next message of a partition. None is a tombstone, which was never sent.
    pub(crate) fn message(&mut self, partition: u32, offset: u64, payload: Option<&[u8]>) {
        self.verdict.read += 1;
        let expected = self.next.entry(partition).or_default();
        if offset > *expected {
            let from = *expected;
            self.verdict.add(Violation::OffsetGap, offset - from, || {
                format!("partition {partition}: nothing at offsets {from}..{offset}")
            });
        } else if offset < *expected {
            let expected = *expected;
            self.verdict.add(Violation::OffsetRepeat, 1, || {
                format!("partition {partition}: offset {offset} came where {expected} was due")
            });
        }
        *expected = (*expected).max(offset + 1);
        match payload.map(message::decode) {
            Some(Ok(identity)) if identity.stream.partition == partition => {
                self.identified(identity, offset);
            }
            Some(Ok(identity)) => self.verdict.add(Violation::Changed, 1, || {
                let meant = identity.stream.partition;
                format!("partition {partition} offset {offset}: was sent to partition {meant}")
            }),
            Some(Err(broken)) => self.verdict.add(Violation::Changed, 1, || {
                format!("partition {partition} offset {offset}: {}", describe(broken))
            }),
            None => self.verdict.add(Violation::Changed, 1, || {
                format!("partition {partition} offset {offset}: no payload")
            }),
        }
    }

    /// Says where a partition ended when the reading began; everything below was to be read.
    pub(crate) fn end(&mut self, partition: u32, end: u64) {
        let next = self.next.get(&partition).copied().unwrap_or(0);
        if next < end {
            self.verdict.add(Violation::OffsetGap, end - next, || {
                format!("partition {partition}: nothing at offsets {next}..{end}, its end")
            });
        }
    }

    fn identified(&mut self, identity: Identity, offset: u64) {
        let Identity { run, stream, sequence } = identity;
        let seen = self.seen.entry((run, stream)).or_default();
        let place = || {
            let Stream { producer, partition } = stream;
            format!(
                "run {run:016x} producer {producer} partition {partition}: message {sequence} at offset {offset}"
            )
        };
        if sequence < seen.end {
            if let Some(other) = seen.find(sequence) {
                self.verdict.add(Violation::Duplicated, 1, || {
                    format!("{} and at offset {}", place(), other.offset_of(sequence))
                });
                return;
            }
            let end = seen.end;
            self.verdict.add(Violation::Reordered, 1, || {
                format!("{} comes after message {}", place(), end - 1)
            });
        }
        seen.insert(sequence, offset);
    }

    /// Judges, once everything up to the end of the topic was read.
    pub(crate) fn finish(mut self) -> Verdict {
        let recorded = std::mem::take(&mut self.recorded);
        self.verdict.runs = recorded.runs.len() as u64;
        for (&run, record) in &recorded.runs {
            for (&stream, stream_record) in &record.streams {
                let seen = self.seen.remove(&(run, stream)).unwrap_or_default();
                self.judge_stream(run, record, stream, stream_record, &seen);
            }
        }
        // Streams without any ending: their run was killed early, or is not in this file.
        for ((run, stream), seen) in std::mem::take(&mut self.seen) {
            let record = recorded.runs.get(&run).cloned().unwrap_or_default();
            self.judge_stream(run, &record, stream, &StreamRecord::default(), &seen);
        }
        self.verdict
    }

    fn judge_stream(
        &mut self,
        run: u64,
        record: &RunRecord,
        stream: Stream,
        stream_record: &StreamRecord,
        seen: &Seen,
    ) {
        let Stream { producer, partition } = stream;
        let place = format!("run {run:016x} producer {producer} partition {partition}");
        for acked in &stream_record.acked {
            self.verdict.acknowledged += acked.count;
            self.judge_acked(&place, *acked, seen);
        }
        for rejected in &stream_record.rejected {
            for (first, end) in seen.present(rejected.first, rejected.end()) {
                self.verdict.add(Violation::Resurrected, end - first, || {
                    format!("{place}: messages {first}..{end} are stored but were rejected")
                });
            }
        }
        for (first, end) in seen.missing(0, seen.end) {
            let unexplained = stream_record.unexplained(record.ended, first, end);
            if unexplained > 0 {
                self.verdict.add(Violation::Skipped, unexplained, || {
                    format!("{place}: messages {first}..{end} are missing before later ones")
                });
            }
        }
    }

    fn judge_acked(&mut self, place: &str, acked: Span, seen: &Seen) {
        for (first, end) in seen.missing(acked.first, acked.end()) {
            self.verdict.add(Violation::Lost, end - first, || {
                let offset = acked.offset_of(first);
                format!("{place}: messages {first}..{end}, acknowledged from offset {offset} on")
            });
        }
        for span in seen.overlapping(acked.first, acked.end()) {
            let (first, end) = (span.first.max(acked.first), span.end().min(acked.end()));
            let (told, found) = (acked.offset_of(first), span.offset_of(first));
            if told != found {
                self.verdict.add(Violation::Misplaced, end - first, || {
                    format!(
                        "{place}: messages {first}..{end}, acknowledged from offset {told} on, are from {found} on"
                    )
                });
            }
        }
    }
}

fn describe(broken: message::Broken) -> &'static str {
    match broken {
        message::Broken::Foreign => "not a message of `bench verify`, or its first bytes changed",
        message::Broken::Length => "the payload's length changed",
        message::Broken::Checksum => "the payload's checksum does not match",
    }
}

impl Seen {
    fn insert(&mut self, sequence: u64, offset: u64) {
        if let Some((_, last)) = self.spans.range_mut(..=sequence).next_back()
            && last.extend(sequence, offset)
        {
            self.end = self.end.max(sequence + 1);
            return;
        }
        self.spans.insert(sequence, Span { first: sequence, count: 1, base_offset: offset });
        self.end = self.end.max(sequence + 1);
    }

    fn find(&self, sequence: u64) -> Option<Span> {
        let (_, span) = self.spans.range(..=sequence).next_back()?;
        (sequence < span.end()).then_some(*span)
    }

    /// The spans that hold any sequence of `first..end`.
    fn overlapping(&self, first: u64, end: u64) -> impl Iterator<Item = Span> {
        let before = self.spans.range(..first).next_back();
        let from = before.filter(|(_, span)| span.end() > first).map_or(first, |(&key, _)| key);
        self.spans.range(from..end.max(from)).map(|(_, span)| *span)
    }

    /// The parts of `first..end` that were read.
    fn present(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        self.overlapping(first, end)
            .map(|span| (span.first.max(first), span.end().min(end)))
            .collect()
    }

    /// The parts of `first..end` that were not read.
    fn missing(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut next = first;
        for (present_first, present_end) in self.present(first, end) {
            if present_first > next {
                missing.push((next, present_first));
            }
            next = present_end;
        }
        if next < end {
            missing.push((next, end));
        }
        missing
    }
}

impl StreamRecord {
    /// How many messages of `first..end`, which are not stored though later ones are, have no excuse.
    ///
    /// Acknowledged ones are counted as lost already. Rejected ones and ones of unknown outcome may be
    /// absent. If the run was killed, so may be what lies beyond the last recorded ending.
    fn unexplained(&self, ended: bool, first: u64, end: u64) -> u64 {
        let end = if ended { end } else { end.min(self.end()) };
        let mut excused: Vec<(u64, u64)> = self
            .acked
            .iter()
            .chain(&self.rejected)
            .chain(&self.unknown)
            .map(|span| (span.first.max(first), span.end().min(end)))
            .filter(|(first, end)| first < end)
            .collect();
        excused.sort_unstable();
        let mut next = first;
        let mut unexplained = 0;
        for (excused_first, excused_end) in excused {
            unexplained += excused_first.saturating_sub(next);
            next = next.max(excused_end);
        }
        unexplained + end.saturating_sub(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const RUN: u64 = 9;
    const A: Stream = Stream { producer: 0, partition: 0 };
    const B: Stream = Stream { producer: 1, partition: 0 };

    fn payload(stream: Stream, sequence: u64) -> Bytes {
        message::encode(Identity { run: RUN, stream, sequence }, 64)
    }

    fn span(first: u64, count: u64, base_offset: u64) -> Span {
        Span { first, count, base_offset }
    }

    /// Two producers take turns by ten messages; everything is acknowledged. Even tens are A's.
    fn scenario() -> (Recorded, Vec<(u64, Bytes)>) {
        let mut streams: BTreeMap<Stream, StreamRecord> = BTreeMap::new();
        let mut log = Vec::new();
        for ten in 0..10 {
            let stream = if ten % 2 == 0 { A } else { B };
            let first = ten / 2 * 10;
            streams.entry(stream).or_default().acked.push(span(first, 10, ten * 10));
            log.extend((0..10).map(|n| (ten * 10 + n, payload(stream, first + n))));
        }
        let run = RunRecord { topic: "t".into(), ended: true, streams };
        (Recorded { runs: BTreeMap::from([(RUN, run)]) }, log)
    }

    fn judge(recorded: &Recorded, log: &[(u64, Bytes)]) -> Verdict {
        let mut checker = Checker::new(recorded.clone());
        for (offset, payload) in log {
            checker.message(0, *offset, Some(payload));
        }
        checker.finish()
    }

    fn renumbered(log: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
        (0..).zip(log).map(|(offset, (_, payload))| (offset, payload)).collect()
    }

    #[test]
    fn a_faithful_log_is_good() {
        let (recorded, log) = scenario();
        let verdict = judge(&recorded, &log);
        assert!(verdict.is_good(), "{verdict} {:?}", verdict.examples);
        assert_eq!((verdict.runs, verdict.acknowledged, verdict.read), (1, 100, 100));
    }

    #[test]
    fn every_single_lost_message_is_found() {
        let (recorded, log) = scenario();
        for at in 0..log.len() {
            let mut log = log.clone();
            log.remove(at);
            let verdict = judge(&recorded, &log);
            assert_eq!(verdict.count(Violation::Lost), 1, "{at}");
            if at + 1 < 100 {
                assert_eq!(verdict.count(Violation::OffsetGap), 1, "{at}");
            }
            let verdict = judge(&recorded, &renumbered(log));
            assert_eq!(verdict.count(Violation::Lost), 1, "{at}, hidden by new offsets");
        }
    }

    #[test]
    fn every_doubled_message_is_found() {
        let (recorded, log) = scenario();
        for at in 0..log.len() {
            let mut log = log.clone();
            log.push((100, log[at].1.clone()));
            let verdict = judge(&recorded, &log);
            assert_eq!(verdict.count(Violation::Duplicated), 1, "{at}");
        }
    }

    #[test]
    fn every_two_exchanged_messages_are_found() {
        let (recorded, log) = scenario();
        for at in 0..log.len() - 1 {
            let mut log = log.clone();
            let (one, two) = (log[at].1.clone(), log[at + 1].1.clone());
            (log[at].1, log[at + 1].1) = (two, one);
            let verdict = judge(&recorded, &log);
            assert!(!verdict.is_good(), "{at}");
            if at % 10 != 9 {
                assert_eq!(verdict.count(Violation::Reordered), 1, "{at}");
            } else {
                assert_eq!(verdict.count(Violation::Misplaced), 2, "{at}: between producers");
            }
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let (recorded, log) = scenario();
        for byte in 0..64 {
            let mut log = log.clone();
            let mut changed = log[33].1.to_vec();
            changed[byte] ^= 0x10;
            log[33].1 = changed.into();
            let verdict = judge(&recorded, &log);
            assert_eq!(verdict.count(Violation::Changed), 1, "byte {byte}");
            assert_eq!(verdict.count(Violation::Lost), 1, "byte {byte}");
        }
    }

    #[test]
    fn gaps_and_repeats_of_offsets_are_found() {
        let (recorded, log) = scenario();
        let shifted: Vec<_> =
            log.iter().cloned().map(|(at, p)| (at + u64::from(at >= 50), p)).collect();
        let verdict = judge(&recorded, &shifted);
        assert_eq!(verdict.count(Violation::OffsetGap), 1);
        assert_eq!(verdict.count(Violation::Misplaced), 50);
        let repeated: Vec<_> =
            log.iter().cloned().map(|(at, p)| (at - u64::from(at >= 50), p)).collect();
        assert_eq!(judge(&recorded, &repeated).count(Violation::OffsetRepeat), 1);
    }

    #[test]
    fn a_topic_cut_at_its_end_is_found() {
        let (recorded, log) = scenario();
        assert_eq!(judge(&recorded, &log[..90]).count(Violation::Lost), 10);
        assert_eq!(judge(&recorded, &[]).count(Violation::Lost), 100);
        let mut checker = Checker::new(Recorded::default());
        checker.end(0, 7);
        assert_eq!(checker.finish().count(Violation::OffsetGap), 7);
    }

    #[test]
    fn a_message_in_another_partition_is_found() {
        let (recorded, log) = scenario();
        let mut checker = Checker::new(recorded);
        for (offset, payload) in &log {
            checker.message(0, *offset, Some(payload));
        }
        checker.message(1, 0, Some(&payload(A, 50)));
        checker.message(1, 1, None);
        assert_eq!(checker.finish().count(Violation::Changed), 2);
    }

    #[test]
    fn what_was_stored_without_acknowledgement_is_allowed() {
        let (mut recorded, mut log) = scenario();
        log.push((100, payload(A, 50)));
        assert!(judge(&recorded, &log).is_good());
        let run = recorded.runs.get_mut(&RUN).expect("there");
        run.streams.get_mut(&A).expect("there").unknown.push(span(50, 1, 0));
        assert!(judge(&recorded, &log).is_good());
        assert!(judge(&recorded, &log[..100]).is_good());
    }

    #[test]
    fn a_rejected_message_must_not_be_there() {
        let (mut recorded, mut log) = scenario();
        let run = recorded.runs.get_mut(&RUN).expect("there");
        run.streams.get_mut(&A).expect("there").rejected.push(span(50, 1, 0));
        assert!(judge(&recorded, &log).is_good());
        log.push((100, payload(A, 50)));
        assert_eq!(judge(&recorded, &log).count(Violation::Resurrected), 1);
    }

    #[test]
    fn a_hole_before_later_messages_needs_an_excuse() {
        let (mut recorded, mut log) = scenario();
        log.push((100, payload(A, 51)));
        assert_eq!(judge(&recorded, &log).count(Violation::Skipped), 1);
        recorded.runs.get_mut(&RUN).expect("there").ended = false;
        assert!(judge(&recorded, &log).is_good(), "a killed run did not record its last endings");
        let run = recorded.runs.get_mut(&RUN).expect("there");
        run.streams.get_mut(&A).expect("there").acked.push(span(51, 1, 100));
        assert_eq!(judge(&recorded, &log).count(Violation::Skipped), 1);
    }

    #[test]
    fn streams_of_runs_that_the_file_lacks_are_still_checked() {
        let (recorded, log) = scenario();
        let mut doubled = log.clone();
        doubled.push((100, payload(A, 3)));
        let verdict = judge(&Recorded::default(), &doubled);
        assert_eq!(verdict.count(Violation::Duplicated), 1);
        assert!(judge(&Recorded::default(), &log).is_good());
        assert!(!judge(&recorded, &doubled).is_good());
    }
}
