//! Owns how a hand-out becomes messages: walks its entries and takes the leased records out, decoding lazily. A
//! leased message that cannot be read is given back here, with the reason. Driven by consumers.

use bytes::Bytes;
use postrider_protocol::{
    batch::{Batch, BatchError, DecodeLimits, RecordIter},
    entry::split_entry,
    message::{LeaseRun, ReturnAction},
    record::Record,
    types::{Offset, TimestampMs},
};

use crate::{
    core::consumer::Granted, delivery::Lot, error::ConsumeError, message::Message, payload::Decode,
};

/// A hand-out that is taken apart message by message.
#[derive(Debug)]
pub(crate) struct Unpacking {
    runs: std::vec::IntoIter<LeaseRun>,
    /// What is left of the run that is being handed on; `count` may be 0.
    run: LeaseRun,
    /// How many messages were passed.
    passed: u64,
    entries: Bytes,
    entry: Option<Open>,
}

#[derive(Debug)]
struct Open {
    append_time: TimestampMs,
    base_offset: u64,
    end_offset: u64,
    records: RecordIter,
    /// Read already: those before it were missing.
    ahead: Option<(u64, Record)>,
}

impl Open {
    fn next(&mut self) -> Option<Result<(u64, Record), BatchError>> {
        if let Some(ahead) = self.ahead.take() {
            return Some(Ok(ahead));
        }
        let next = self.records.next()?;
        Some(next.map(|it| (self.base_offset + u64::from(it.offset_delta), it.record)))
    }
}

pub(crate) enum Unpacked<V> {
    Message(Message<V>, LeaseRun),
    Unreadable(ConsumeError),
}

impl Unpacking {
    pub(crate) fn new(granted: Granted) -> Self {
        let mut runs = granted.runs.into_iter();
        let none = LeaseRun { first: Offset(0), count: 0, attempt: 0, failures: 0 };
        let run = runs.next().unwrap_or(none);
        Self { runs, run, passed: 0, entries: granted.entries, entry: None }
    }

    /// The next leased message; lost ones are passed over.
    pub(crate) fn next<C: Decode>(&mut self, lot: &Lot) -> Option<Unpacked<C::Value>> {
        loop {
            if self.run.count == 0 {
                self.run = self.runs.next()?;
                continue;
            }
            let wanted = self.run.first.0;
            if lot.grant.is_lost(self.run.first) {
                // Nobody waits for it; the engine learns that it is out of the way.
                self.give_run_back(lot, 1, ReturnAction::Release);
                continue;
            }
            let Some(open) = self.entry.as_mut().filter(|open| wanted < open.end_offset) else {
                match self.open(wanted) {
                    Ok(()) => continue,
                    Err((end, why)) => return Some(self.unreadable(lot, end, &why)),
                }
            };
            let (offset, record) = match open.next() {
                Some(Ok(next)) => next,
                Some(Err(why)) => {
                    let (end, why) = (open.end_offset, why.to_string());
                    return Some(self.unreadable(lot, end, &why));
                }
                None => {
                    let end = open.end_offset;
                    return Some(self.unreadable(lot, end, "the entry lacks the record"));
                }
            };
            if offset < wanted {
                continue;
            }
            if offset > wanted {
                open.ahead = Some((offset, record));
                return Some(self.unreadable(lot, offset, "the entry lacks the record"));
            }
            let append_time = open.append_time;
            let run = LeaseRun { count: 1, ..self.run };
            let partition = lot.grant.partition();
            lot.grant.start(self.passed);
            match Message::of_record::<C>(partition, offset, append_time, record) {
                Ok(message) => {
                    self.pass(1);
                    return Some(Unpacked::Message(message, run));
                }
                Err(source) => {
                    let reason = crate::delivery::cut(&format!("undecodable: {source}"));
                    self.give_run_back(lot, 1, ReturnAction::Reject { reason });
                    let offset = run.first;
                    let why = ConsumeError::Decode { partition, offset, source };
                    return Some(Unpacked::Unreadable(why));
                }
            }
        }
    }

    /// Opens the entry that holds an offset.
    fn open(&mut self, wanted: u64) -> Result<(), (u64, String)> {
        self.entry = None;
        let run_end = self.run.first.0 + u64::from(self.run.count);
        while !self.entries.is_empty() {
            let mut after = self.entries.clone();
            // The engine has checked the headers: only failing memory leads to an error here.
            let entry = split_entry(&mut after).map_err(|why| (run_end, why.to_string()))?;
            if entry.header.base_offset.0 > wanted {
                return Err((entry.header.base_offset.0, "the entry is missing".to_owned()));
            }
            self.entries = after;
            let end_offset = entry.header.end_offset().0;
            if end_offset <= wanted {
                continue;
            }
            let records = entry
                .check_body()
                .map_err(|why| why.to_string())
                .and_then(|()| {
                    let batch = Batch::of_entry(&entry);
                    batch.block(DecodeLimits::default()).map_err(|why| why.to_string())
                })
                .map_err(|why| (end_offset, why))?
                .into_records();
            self.entry = Some(Open {
                append_time: entry.header.append_time,
                base_offset: entry.header.base_offset.0,
                end_offset,
                records,
                ahead: None,
            });
            return Ok(());
        }
        Err((run_end, "the entry is missing".to_owned()))
    }

    /// What is leased below `end` arrived damaged: it failed, for another copy of it may be whole.
    fn unreadable<V>(&mut self, lot: &Lot, end: u64, why: &str) -> Unpacked<V> {
        let from = self.run.first;
        let count = end.saturating_sub(from.0).clamp(1, u64::from(self.run.count));
        let count = u32::try_from(count).expect("at most the run's count");
        let reason = crate::delivery::cut(&format!("arrived damaged: {why}"));
        self.give_run_back(lot, count, ReturnAction::Nack { delay_ms: None, reason });
        Unpacked::Unreadable(ConsumeError::Damaged {
            partition: lot.grant.partition(),
            from,
            to: Offset(from.0 + u64::from(count)),
            why: why.to_owned(),
        })
    }

    fn give_run_back(&mut self, lot: &Lot, count: u32, action: ReturnAction) {
        let LeaseRun { first, attempt, .. } = self.run;
        let (_answer, attention) = lot.grant.give_back(first, count, attempt, action);
        lot.attend(attention);
        self.pass(count);
    }

    fn pass(&mut self, count: u32) {
        self.run.first.0 += u64::from(count);
        self.run.count -= count;
        self.passed += u64::from(count);
    }

    /// Gives back all that was not handed on.
    pub(crate) fn give_back(mut self, lot: &Lot) {
        loop {
            if self.run.count > 0 {
                self.give_run_back(lot, self.run.count, ReturnAction::Release);
            }
            match self.runs.next() {
                Some(run) => self.run = run,
                None => return,
            }
        }
    }
}
