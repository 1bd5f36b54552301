//! Owns random histories: producers with and without sessions that send batches with keys, messages without, twins
//! and retries, over crashes, a full disk and time that passes. The model is the log, read at the end and after each
//! step that tells something: no key twice within a window, no answer that the log does not bear out.

use std::collections::{BTreeMap, VecDeque};

use postrider_core::cursors::Position;
use postrider_core::partition::PartitionLimits;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{Outcome, PublishHead};
use postrider_protocol::types::{Compression, EntryIndex, Sequence};

use super::random::Random;
use super::stage::{KEPT_MS, Said, Stage, Stored, WINDOW_MS};

const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
const SESSIONS: usize = 3;
const PIPELINED: usize = 3;

/// How often each case was met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn met(&mut self, case: &'static str) {
        *self.0.entry(case).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (case, count) in &other.0 {
            *self.0.entry(case).or_default() += count;
        }
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = (&'static str, u64)> {
        const CASES: [&str; 11] = [
            "stored",
            "duplicate",
            "reused",
            "delayed",
            "delayed duplicate",
            "stored again after the window",
            "refused for now",
            "forgotten",
            "capacity",
            "crash",
            "resent",
        ];
        CASES.into_iter().map(|case| (case, self.0.get(case).copied().unwrap_or_default()))
    }
}

/// A batch that has no outcome yet.
struct Flight {
    base: u64,
    messages: Vec<Said>,
    due: Option<u64>,
    codec: Compression,
    /// It was sent, and the answer is to come, or was final.
    sent: bool,
    /// When it was sent, and up to where the log was committed then, if it was sent once.
    sent_once: Option<(u64, EntryIndex)>,
    answers: Vec<Option<Outcome>>,
    /// Nobody sends again what has neither a session nor keys: it could be stored twice.
    is_once: bool,
}

impl Flight {
    fn is_decided(&self) -> bool {
        self.sent && self.answers.iter().all(Option::is_some) && !self.is_refused_for_now()
    }

    fn is_refused_for_now(&self) -> bool {
        !self.is_once && self.answers.iter().flatten().any(is_for_now)
    }
}

#[derive(Default)]
struct Producer {
    next: u64,
    flights: VecDeque<Flight>,
}

pub(crate) struct World {
    random: Random,
    stage: Stage,
    /// By id, from 0; the last one has no session.
    producers: Vec<Producer>,
    /// Message without a key, and whether it has to be stored (none: maybe).
    keyless: BTreeMap<String, Option<bool>>,
    made: u64,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let dedup_bytes_max = [usize::MAX, 1 << 12, 1 << 14][random.index(3)];
        let stage = Stage::new(PartitionLimits { dedup_bytes_max, ..PartitionLimits::default() });
        let producers = (0..=SESSIONS).map(|_| Producer::default()).collect();
        let (keyless, counts) = (BTreeMap::new(), Counts::default());
        Self { random, stage, producers, keyless, made: 0, counts }
    }

    pub(crate) fn step(&mut self) {
        match self.random.below(20) {
            0..=8 => self.send(),
            9..=13 => self.commit_some(),
            14 | 15 => self.resend(),
            16 => self.stage.wait(self.random.below(WINDOW_MS / 2)),
            17 => {
                self.stage.takes =
                    if self.random.one_in(3) { self.random.below(3) } else { u64::MAX };
            }
            18 if self.random.one_in(4) => self.crash(),
            19 if self.random.one_in(6) => self.stage.wait(KEPT_MS + 1),
            _ => self.stage.wait(self.random.below(20)),
        }
        self.listen();
    }

    /// Everything that is not decided is sent until it is; then the log is read.
    pub(crate) fn settle(&mut self) {
        self.stage.takes = u64::MAX;
        for _ in 0..50 {
            self.stage.commit();
            self.listen();
            self.resend();
        }
        self.stage.commit();
        self.listen();
        let left: usize = self.producers.iter().map(|producer| producer.flights.len()).sum();
        assert_eq!(left, 0, "every publish has its outcome in the end");
        assert_eq!(self.stage.charged, 0, "no byte stays charged");
        let counted = self.stage.partition.pending_len();
        assert_eq!(counted, 0);
        self.check_log();
    }

    fn message(&mut self) -> Said {
        if self.random.one_in(5) {
            self.made += 1;
            let value = format!("keyless {}", self.made);
            self.keyless.insert(value.clone(), None);
            return (None, value.leak());
        }
        let key = KEYS[self.random.index(KEYS.len())];
        (Some(key), if self.random.one_in(8) { "other" } else { "usual" })
    }

    fn send(&mut self) {
        let id = self.random.index(self.producers.len());
        let again = self.producers[id].flights.iter().any(|flight| !flight.sent);
        if again || self.producers[id].flights.len() >= PIPELINED {
            return;
        }
        let messages: Vec<Said> = (0..=self.random.below(5)).map(|_| self.message()).collect();
        let due = self.random.one_in(6).then(|| self.stage.now.wall.0 + 1_000_000_000);
        let codec = [Compression::None, Compression::None, Compression::Lz4][self.random.index(3)];
        let producer = &mut self.producers[id];
        let flight = Flight {
            base: producer.next,
            answers: vec![None; messages.len()],
            is_once: id == SESSIONS && messages.iter().any(|(key, _value)| key.is_none()),
            messages,
            due,
            codec,
            sent: false,
            sent_once: Some((self.stage.now.wall.0, self.stage.partition.high_watermark().index)),
        };
        producer.next += flight.messages.len() as u64;
        producer.flights.push_back(flight);
        let last = producer.flights.len() - 1;
        self.transmit(id, last);
    }

    fn transmit(&mut self, id: usize, at: usize) {
        let upto = self.producers[id].flights[0].base;
        let has_session = id < SESSIONS;
        let flight = &mut self.producers[id].flights[at];
        flight.answers.fill(None);
        let count = u32::try_from(flight.messages.len()).unwrap();
        let head = self.stage.head(
            if has_session { i64::try_from(id).unwrap() } else { -1 },
            flight.base,
            count,
        );
        let resolved_upto = Sequence(if has_session { upto } else { 0 });
        let head = PublishHead { resolved_upto, ..head };
        let how = (flight.due, flight.codec);
        self.stage.publish_on(id as u64, &head, &flight.messages, how);
        flight.sent = true;
    }

    /// Sends again, in order, what was refused for now or lost with a crash; once all else is answered.
    fn resend(&mut self) {
        for id in 0..self.producers.len() {
            let is_session = id < SESSIONS;
            if is_session && self.producers[id].flights.iter().any(|flight| flight.sent) {
                continue;
            }
            for at in 0..self.producers[id].flights.len() {
                if self.producers[id].flights[at].sent {
                    continue;
                }
                self.counts.met("resent");
                self.producers[id].flights[at].sent_once = None;
                self.transmit(id, at);
            }
        }
    }

    fn commit_some(&mut self) {
        let pending = self.stage.partition.pending_len();
        let from = usize::try_from(self.stage.partition.high_watermark().index.0).unwrap();
        let to = from + self.random.index(pending + 1);
        if let Some(entry) = to.checked_sub(1).and_then(|last| self.stage.entries.get(last)) {
            let end = Position::new(EntryIndex(to as u64), entry.header.end_offset());
            self.stage.commit_below(end);
        }
    }

    fn crash(&mut self) {
        let pending = self.stage.partition.pending_len();
        let kept = self.random.index(pending + 1);
        self.stage.crash(kept);
        self.counts.met("crash");
        for producer in &mut self.producers {
            for flight in &mut producer.flights {
                flight.sent = false;
            }
        }
        // Without a session nobody may send again what may be stored, unless it has a key.
        let last = self.producers.last_mut().unwrap();
        last.flights.retain(|flight| !flight.is_once);
    }

    /// Takes in what was told.
    fn listen(&mut self) {
        for id in 0..self.producers.len() {
            self.take_answers(id);
            // A session's batches end in their order.
            let ends = if id == SESSIONS { usize::MAX } else { 1 };
            while let Some(at) =
                self.producers[id].flights.iter().take(ends).position(Flight::is_decided)
            {
                let flight = self.producers[id].flights.remove(at).unwrap();
                self.resolve(&flight);
            }
            // What is refused for now is sent again with all that was sent behind it, once that is answered.
            for flight in &mut self.producers[id].flights {
                let all = flight.answers.iter().all(Option::is_some);
                if all && flight.sent && flight.is_refused_for_now() {
                    self.counts.met("refused for now");
                    flight.sent = false;
                }
            }
        }
    }

    fn take_answers(&mut self, id: usize) {
        for run in self.stage.take_runs(id as u64) {
            for nth in 0..run.count {
                let sequence = run.base_sequence.0 + u64::from(nth);
                let flights = &mut self.producers[id].flights;
                let flight = flights.iter_mut().rfind(|flight| flight.base <= sequence).unwrap();
                let at = usize::try_from(sequence - flight.base).unwrap();
                let before = flight.answers[at].replace(super::stage::nth_of(&run.outcome, nth));
                assert_eq!(before, None, "each message is answered once by each send");
            }
        }
    }

    fn resolve(&mut self, flight: &Flight) {
        let stored = self.stage.stored();
        for (said, outcome) in flight.messages.iter().zip(flight.answers.iter().flatten()) {
            let found = stored.iter().find(|message| is_at(message, outcome));
            let case = self.check_outcome(flight, *said, outcome, found, &stored);
            self.counts.met(case);
            if let (None, value) = said {
                self.keyless.insert((*value).to_owned(), Some(found.is_some()));
            }
        }
    }

    /// An outcome is what the log says.
    fn check_outcome(
        &self,
        flight: &Flight,
        said: Said,
        outcome: &Outcome,
        found: Option<&Stored>,
        stored: &[Stored],
    ) -> &'static str {
        let is_same = |message: &&Stored| message.value == said.1 && is_key(message, said.0);
        match outcome {
            Outcome::Committed { .. } | Outcome::Delayed { .. } => {
                assert!(found.filter(is_same).is_some(), "{said:?} is not where it is said to be");
                let is_delayed = matches!(outcome, Outcome::Delayed { .. });
                if is_delayed { "delayed" } else { "stored" }
            }
            Outcome::Duplicate { append_time, .. }
            | Outcome::DelayedDuplicate { append_time, .. } => {
                let first = found.filter(is_same).expect("the first one is where it is said to be");
                assert_eq!(first.append_time, append_time.0);
                if let Some((sent, committed)) = flight.sent_once {
                    assert!(said.0.is_some(), "{said:?} was sent once and has no key");
                    // What is in flight is waited for, however long that takes.
                    let is_near = first.append_time + KEPT_MS > sent || first.index >= committed;
                    assert!(is_near, "{said:?} is out of any window");
                }
                let is_delayed = matches!(outcome, Outcome::DelayedDuplicate { .. });
                if is_delayed { "delayed duplicate" } else { "duplicate" }
            }
            Outcome::Rejected { error } if error.code == ErrorCode::IdempotencyKeyReused => {
                let other = stored.iter().any(|message| {
                    is_key(message, said.0) && said.0.is_some() && message.value != said.1
                });
                assert!(other, "{said:?} has its key for itself");
                "reused"
            }
            Outcome::Rejected { error } if error.code == ErrorCode::DiskFull => {
                assert!(flight.is_once, "{said:?} is sent again");
                "refused"
            }
            Outcome::Rejected { error } => {
                assert_eq!(error.code, ErrorCode::DedupCapacity, "{error:?}");
                "capacity"
            }
            Outcome::Unknown { error } => {
                assert_eq!(error.code, ErrorCode::SequenceTooOld, "{error:?}");
                assert_eq!(flight.sent_once, None, "what was sent once is known");
                "forgotten"
            }
        }
    }

    fn check_log(&mut self) {
        let stored = self.stage.stored();
        let mut newest: BTreeMap<&[u8], u64> = BTreeMap::new();
        for message in &stored {
            let Some(key) = &message.key else { continue };
            if let Some(before) = newest.insert(key, message.append_time) {
                let passed = message.append_time - before;
                assert!(passed >= WINDOW_MS, "{key:?} is stored twice within {passed} ms");
                self.counts.met("stored again after the window");
            }
        }
        for (value, is_stored) in &self.keyless {
            let count = stored.iter().filter(|message| message.value == value.as_bytes()).count();
            assert!(count <= 1, "{value} is stored {count} times");
            assert!(
                is_stored.is_none_or(|is_stored| is_stored == (count == 1)),
                "{value}: {count}"
            );
        }
        for (first, second) in stored.iter().zip(stored.iter().skip(1)) {
            assert!((first.index, first.position) < (second.index, second.position));
        }
    }
}

fn is_for_now(outcome: &Outcome) -> bool {
    let Outcome::Rejected { error } = outcome else { return false };
    // A session whose first batch was refused is not known to what came behind it.
    matches!(
        error.code,
        ErrorCode::OutOfOrderSequence | ErrorCode::DiskFull | ErrorCode::UnknownProducer
    )
}

fn is_key(message: &Stored, key: Option<&str>) -> bool {
    message.key.as_deref() == key.map(str::as_bytes)
}

fn is_at(message: &Stored, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Committed { base_offset, .. } | Outcome::Duplicate { base_offset, .. } => {
            message.offset == Some(base_offset.0)
        }
        Outcome::Delayed { id, .. } | Outcome::DelayedDuplicate { id, .. } => {
            message.offset.is_none() && (message.index, message.position) == (id.index, id.position)
        }
        Outcome::Rejected { .. } | Outcome::Unknown { .. } => false,
    }
}
