//! Owns the reading of a dead letter topic, and the judgement of its letters. Never knows connections. Driven by the
//! judge's client at the end of a run.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use postrider::core::Engine;
use postrider::core::completion::{Pending, promise};
use postrider::core::subscription::{AttachedPartition, Incoming, SubscriptionOptions};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::Start;
use postrider_protocol::record::Record;
use postrider_protocol::types::SubscriptionHandle;

use super::client::key_of;
use super::consumer::records;
use super::oracle::Oracle;
use super::reader::topic_name;

/// Letters by the partition and offset of their messages; how many of each.
pub(crate) type Letters = BTreeMap<(u32, u64), u32>;

/// Reads the letters of a topic's queue.
pub(crate) struct LetterReader {
    topic: usize,
    handle: SubscriptionHandle,
    attach: Option<Pending<Result<Vec<AttachedPartition>, ErrorBody>>>,
    /// What is left to be read, by partition: the next offset and the end.
    left: BTreeMap<u32, (u64, u64)>,
    pub(crate) letters: Letters,
    /// The first one that was read.
    pub(crate) first: Option<Record>,
    pub(crate) done: bool,
}

/// The name of a topic's dead letter topic.
pub(crate) fn dead_name(topic: usize) -> String {
    format!("{}.dead", topic_name(topic))
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let found = record.headers.iter().find(|(key, _)| key == name.as_bytes());
    found.and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok())
}

impl LetterReader {
    pub(crate) fn open(topic: usize, engine: &mut Engine, now: Duration) -> Self {
        let options = SubscriptionOptions {
            topic: dead_name(topic),
            partitions: Vec::new(),
            name: None,
            start: Start::Earliest,
            prefetch_messages: 1_000,
            prefetch_bytes: 1 << 20,
        };
        let (attached, pending) = promise();
        let handle = engine.subscribe(options, now + Duration::from_secs(600), attached);
        Self {
            topic,
            handle,
            attach: Some(pending),
            left: BTreeMap::new(),
            letters: Letters::new(),
            first: None,
            done: false,
        }
    }

    pub(crate) fn run(&mut self, engine: &mut Engine, oracle: &mut Oracle) {
        match self.attach.as_ref().and_then(Pending::try_take) {
            None => {}
            Some(Ok(partitions)) => {
                self.attach = None;
                let ends = partitions.iter();
                self.left =
                    ends.map(|at| (at.partition.0, (at.next.0, at.high_watermark.0))).collect();
            }
            // Nothing ever died.
            Some(Err(error)) if error.code == ErrorCode::UnknownTopic => {
                self.attach = None;
                self.done = true;
                return;
            }
            Some(Err(error)) => return oracle.violate(format!("no letters are read: {error}")),
        }
        let cx = Context::from_waker(Waker::noop());
        while !self.done
            && let Poll::Ready(Some(incoming)) = engine.poll_next(self.handle, &cx)
        {
            match incoming {
                Incoming::Run(run) => {
                    let Some(records) = records(&run.entries) else {
                        return oracle.violate("letters are broken".to_string());
                    };
                    let wanted = run.first.0..run.end.0;
                    for (_, record) in records.iter().filter(|(at, _)| wanted.contains(at)) {
                        self.letter(record, oracle);
                    }
                    self.left.entry(run.partition.0).or_default().0 = run.end.0;
                }
                Incoming::Ended(error) if error.code == ErrorCode::UnknownTopic => {
                    self.done = true;
                }
                other => return oracle.violate(format!("letters: {other:?}")),
            }
        }
        if self.attach.is_none() && self.left.values().all(|(next, end)| next >= end) {
            self.done = true;
        }
    }

    fn letter(&mut self, record: &Record, oracle: &mut Oracle) {
        let source = header(record, "dl.source").unwrap_or_default();
        let mut parts = source.split('/');
        let topic = parts.next();
        let partition = parts.next().and_then(|part| part.parse::<u32>().ok());
        let offset = parts.next().and_then(|part| part.parse::<u64>().ok());
        let (Some(partition), Some(offset)) = (partition, offset) else {
            return oracle.violate(format!("B7 dead letters: {record:?} has no source"));
        };
        let reason = header(record, "dl.reason");
        let hops = header(record, "dl.hops");
        let right = topic == Some(topic_name(self.topic).as_str())
            && matches!(reason, Some("max_failures" | "rejected" | "expired" | "overflow"))
            && hops == Some("1")
            && header(record, "dl.failures").is_some_and(|text| text.parse::<u32>().is_ok());
        if !right {
            oracle.violate(format!("B7 dead letters: wrong headers in {record:?}"));
        }
        let value = record.value.as_deref().unwrap_or_default();
        oracle.seen((self.topic, partition), offset, value, "a dead letter");
        let own = record.headers.first().map(|(name, value)| (&name[..], value.as_deref()));
        if key_of(value) != record.key || own != Some((&b"n"[..], value.get(..8))) {
            oracle.violate(format!("B7 dead letters: another key or header in {record:?}"));
        }
        self.first.get_or_insert_with(|| record.clone());
        *self.letters.entry((partition, offset)).or_default() += 1;
    }
}
