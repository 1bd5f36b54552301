//! Owns sending dead letters back: requests that wait, and looking into the letters that they mean. Never decides
//! whether one may go (core does), never publishes (`dead_letters` does). Driven by sessions, which ask, and by
//! the tick, which reads the log without any lock.
//!
//! ```text
//!   session: ask -> [tick] read letters, choose -> [lock] redrivable, redrive: DeadIntent committed -> reply
//!   `dead_letters`: publish each in its topic, once -> DeadDone
//! ```

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use postrider_core::Now;
use postrider_core::queue::DeadTarget;
use postrider_protocol::api::Api;
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame;
use postrider_protocol::message::{RedriveLetters, RedriveLettersReply};
use postrider_protocol::record::Record;
use postrider_protocol::types::{CorrelationId, Offset, PartitionId, SubscriptionId};
use postrider_storage::ReadError;

use crate::join::catalog::Catalog;
use crate::join::hub::lock;
use crate::join::letter;
use crate::join::outbox::{Outbox, WakeList};
use crate::join::partition::PartitionHandle;

/// Requests that wait; more are refused.
const ASKS_MAX: usize = 64;

/// Requests that one tick does: each reads for a while, and others wait for the tick.
const ASKS_PER_TICK: usize = 4;

/// Letters that one request looks at, about; more follow with the next.
const LETTERS_PER_ASK: u64 = 4_096;

/// How often a request is tried while the subscription is just created, sought or purged.
const TRIES_MAX: u32 = 40;

/// What is read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What one request reads, about.
const ASK_BYTES: usize = 4 << 20;

/// A request.
pub(crate) struct Ask {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) correlation: CorrelationId,
    pub(crate) partition: Arc<PartitionHandle>,
    pub(crate) subscription: SubscriptionId,
    pub(crate) request: RedriveLetters,
    /// How often it was tried.
    pub(crate) tries: u32,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Redrives {
    asks: Mutex<VecDeque<Ask>>,
}

/// What is said when the letters that were chosen are on their way.
pub(crate) struct Answer {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) correlation: CorrelationId,
    reply: RedriveLettersReply,
}

/// What a part of the log holds.
struct Chosen {
    letters: Vec<(Offset, DeadTarget)>,
    /// Per chosen letter, what was passed over before it: passed, homeless.
    before: Vec<(u32, u32)>,
    passed: u32,
    homeless: u32,
    next: Offset,
    end: Offset,
}

impl Redrives {
    /// # Errors
    /// As many wait as may.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(), ErrorBody> {
        let mut asks = lock(&self.asks);
        if asks.len() >= ASKS_MAX {
            let text = "many letters are being sent back already; try again in a moment";
            return Err(ErrorBody::new(ErrorCode::Overloaded, text));
        }
        asks.push_back(ask);
        Ok(())
    }

    /// Does a bounded part of what was asked for.
    pub(crate) fn tick(&self, catalog: &Catalog, now: Now) {
        let asks: Vec<Ask> = {
            let mut asks = lock(&self.asks);
            let count = asks.len().min(ASKS_PER_TICK);
            asks.drain(..count).collect()
        };
        for ask in asks {
            let Err(error) = redrive(catalog, &ask, now) else { continue };
            if error.code == ErrorCode::Overloaded && ask.tries < TRIES_MAX {
                lock(&self.asks).push_back(Ask { tries: ask.tries + 1, ..ask });
            } else {
                let error = ask.partition.hub.refuse(error);
                let api = Api::RedriveLetters as u16;
                ask.outbox.push_reply(frame::error_reply(api, ask.correlation, &error));
                let mut wakes = WakeList::default();
                wakes.mark(&ask.outbox);
                wakes.wake();
            }
        }
    }
}

fn redrive(catalog: &Catalog, ask: &Ask, now: Now) -> Result<(), ErrorBody> {
    let Ask { outbox, correlation, partition, subscription, request, tries: _ } = ask;
    let chosen = choose(catalog, partition, request)?;
    partition.lead(now, |leader, turn| {
        let found = leader.redrivable(*subscription, &chosen.letters, turn)?;
        let sent = u32::try_from(found.letters.len()).unwrap_or(u32::MAX);
        let judged = usize::try_from(sent + found.sent_before).unwrap_or(usize::MAX);
        let (passed, homeless) = match found.stopped_at {
            Some(_) => chosen.before.get(judged).copied().unwrap_or_default(),
            None => (chosen.passed, chosen.homeless),
        };
        let started = if request.dry_run { 0 } else { u64::from(sent) };
        let reply = RedriveLettersReply {
            next: found.stopped_at.unwrap_or(chosen.next),
            end: chosen.end,
            sent,
            sent_before: found.sent_before,
            passed,
            homeless,
            on_their_way: found.on_their_way + started,
        };
        let answer = Answer { outbox: Arc::clone(outbox), correlation: *correlation, reply };
        if started == 0 {
            answer.give(turn.wakes);
        } else {
            leader.redrive(partition, *subscription, &found.letters, answer, turn);
        }
        Ok(())
    })?
}

impl Answer {
    pub(crate) fn give(&self, wakes: &mut WakeList) {
        self.outbox.push_reply(frame::reply(&self.reply, self.correlation));
        wakes.mark(&self.outbox);
    }

    pub(crate) fn refuse(&self, error: &ErrorBody, wakes: &mut WakeList) {
        let api = Api::RedriveLetters as u16;
        self.outbox.push_reply(frame::error_reply(api, self.correlation, error));
        wakes.mark(&self.outbox);
    }
}

/// Looks into a bounded part of the letters.
fn choose(
    catalog: &Catalog,
    partition: &PartitionHandle,
    request: &RedriveLetters,
) -> Result<Chosen, ErrorBody> {
    let end = partition.high_watermark();
    let mut chosen = Chosen {
        letters: Vec::new(),
        before: Vec::new(),
        passed: 0,
        homeless: 0,
        next: request.from.max(partition.log_start()).min(end),
        end,
    };
    let most = usize::try_from(request.letters_max).unwrap_or(usize::MAX);
    let (first, mut bytes) = (chosen.next, 0);
    let mut homes = Homes { catalog, known: BTreeMap::new() };
    while chosen.next < end
        && chosen.letters.len() < most
        && chosen.next.0 - first.0 < LETTERS_PER_ASK
        && bytes < ASK_BYTES
    {
        let run = match partition.log.read(chosen.next, end, CHUNK_BYTES) {
            Ok(run) => run,
            Err(ReadError::BelowStart { log_start }) => {
                chosen.next = log_start.1;
                continue;
            }
            Err(ReadError::Damaged(damage)) => {
                chosen.next = damage.end_offset;
                continue;
            }
            Err(ReadError::Vacant(vacancy)) => {
                chosen.next = vacancy.end_offset;
                continue;
            }
            Err(ReadError::Io(error)) => return Err(unreadable(&error)),
        };
        run.load().map_err(|error| unreadable(&error.to_string()))?;
        bytes += run.bytes;
        for slice in run.slices {
            for entry in EntryIter::new(slice) {
                let entry = entry.map_err(|error| unreadable(&error.to_string()))?;
                let base = entry.header.base_offset.0;
                // A batch that cannot be read holds no letter that could be sent.
                let records = Batch::of_entry(&entry).records(DecodeLimits::default());
                for record in records.into_iter().flatten().map_while(Result::ok) {
                    let offset = Offset(base + u64::from(record.offset_delta));
                    if offset < chosen.next || offset >= end || chosen.letters.len() >= most {
                        continue;
                    }
                    chosen.look(offset, &record.record, request, &mut homes);
                    chosen.next = Offset(offset.0 + 1);
                }
                if chosen.letters.len() >= most {
                    return Ok(chosen);
                }
                chosen.next = chosen.next.max(entry.header.end_offset()).min(end);
            }
        }
    }
    Ok(chosen)
}

impl Chosen {
    fn look(
        &mut self,
        offset: Offset,
        record: &Record,
        request: &RedriveLetters,
        homes: &mut Homes<'_>,
    ) {
        let says = |name: &str, wanted: &Option<String>| {
            wanted.as_deref().is_none_or(|wanted| letter::header(record, name) == Some(wanted))
        };
        let origin = letter::origin(record);
        let source = origin.map(|(topic, _)| topic);
        let meant = says("dl.reason", &request.reason)
            && says("dl.subscription", &request.source_subscription)
            && request.source.as_deref().is_none_or(|wanted| source == Some(wanted));
        if !meant {
            self.passed += 1;
            return;
        }
        match homes.find(request.target.as_deref().or(source), origin) {
            Some(target) => {
                self.letters.push((offset, target));
                self.before.push((self.passed, self.homeless));
            }
            None => self.homeless += 1,
        }
    }
}

/// The topics that letters go to.
struct Homes<'a> {
    catalog: &'a Catalog,
    /// Bound: the names in the letters of one request.
    known: BTreeMap<String, Option<(postrider_protocol::types::TopicId, u32)>>,
}

impl Homes<'_> {
    /// The place of a letter in a topic: the partition that it comes from, if there is such a one.
    fn find(
        &mut self,
        topic: Option<&str>,
        origin: Option<(&str, PartitionId)>,
    ) -> Option<DeadTarget> {
        let name = topic?;
        if !self.known.contains_key(name) {
            let found = self.catalog.topic(name).ok();
            let found = found.map(|topic| (topic.id, topic.config().partitions.max(1)));
            self.known.insert(name.to_owned(), found);
        }
        let (topic, partitions) = self.known.get(name).copied().flatten()?;
        let partition = origin.map_or(0, |(_, partition)| partition.0 % partitions);
        Some(DeadTarget { topic, partition: PartitionId(partition) })
    }
}

fn unreadable(error: &str) -> ErrorBody {
    let text = format!("the letters could not be read ({error}); see the broker's log");
    ErrorBody::new(ErrorCode::Internal, text)
}
