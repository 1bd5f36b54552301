//! Owns a consumer's turn: ask for leases, read ahead where core wants it, gather the entries, send them.
//! Never decides who gets what (core does), never copies a message that is sent with its whole batch.
//! Driven by `transmit`, one turn of one cursor at a time.
//!
//! ```text
//!   [lock] lease --LookAhead--> read headers --> [lock] feed, lease --Leased--> gather --> send
//!                 --Idle--> in the line           --NoCredit--> parked
//! ```
//! The partition is locked for the decision alone, never for a read.

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::queue::{Ahead, LeaseStep};
use postrider_protocol::batch::DecodeLimits;
use postrider_protocol::entry::{EntryView, EntryViews};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{LEASE_HEAD_BYTES, LEASE_RUN_BYTES, LeaseHead, LeaseRun};
use postrider_protocol::partition::key_hash;
use postrider_protocol::rebuild::EntryRecords;
use postrider_protocol::types::{EntryIndex, Offset};
use postrider_storage::{ReadError, ReadRun};

use crate::join::deliver::{CHUNK_BYTES, Turn};
use crate::join::leader::Fed;
use crate::join::parcel::{Missing, Order, Parcel, split_runs};
use crate::join::partition::PartitionHandle;
use crate::join::readers::Readers;
use crate::join::session::Transmit;

/// Reads ahead in one turn, should others always be faster. Then the next cursor gets its turn.
const STEPS_MAX: usize = 8;

/// Room that is kept in a frame for runs.
const RUNS_BYTES: usize = 64 * LEASE_RUN_BYTES;

/// Messages that were leased.
struct Leased {
    runs: Vec<LeaseRun>,
    dispatch_number: u64,
    dispatch_index: EntryIndex,
    sub_epoch: u64,
}

/// What a read ahead came to.
enum AheadRead {
    Fed(Fed),
    Cold(ReadRun),
    /// Messages below this offset are gone from the log.
    Gone(Offset),
    Unreadable(String),
}

impl Readers {
    /// One turn of one consumer's cursor.
    pub(crate) fn queue_turn(&mut self, key: u64, now: Now, out: &mut Transmit) -> Turn {
        let mut fed = None;
        for _ in 0..STEPS_MAX {
            let entries_max = self.lease_bytes_max();
            let Some(cursor) = self.consumers.cursors.get_mut(&key) else { return Turn::Rests };
            let consumer_key = cursor.consumer;
            let Some(consumer) = self.consumers.consumers.get_mut(&consumer_key) else {
                return Turn::Rests;
            };
            let credit = consumer.may_take(CHUNK_BYTES.min(entries_max));
            if credit.messages == 0 && !cursor.woken && fed.is_none() {
                consumer.parked.push(key);
                return Turn::Rests;
            }
            cursor.woken = false;
            let (subscription, member) = (consumer.subscription, cursor.member);
            let partition = &cursor.partition;
            let step = partition.lead(now, |leader, turn| {
                leader.lease(partition, (subscription, member), credit, fed.take(), turn)
            });
            match step {
                Ok(LeaseStep::Leased {
                    runs, dispatch_number, dispatch_index, sub_epoch, ..
                }) => {
                    let leased = Leased { runs, dispatch_number, dispatch_index, sub_epoch };
                    return self.send_lease(key, leased, now, out);
                }
                Ok(LeaseStep::LookAhead { from, until }) => {
                    let keyed = partition.is_keyed(subscription);
                    match read_ahead(partition, from, until, keyed, cursor.loaded) {
                        AheadRead::Fed(read) => fed = Some(read),
                        AheadRead::Cold(run) => {
                            cursor.loaded = Some(from);
                            return Turn::Cold(run);
                        }
                        AheadRead::Gone(to) => {
                            let evicted = partition.lead(now, |leader, turn| {
                                leader.evict(partition, subscription, (from, to), turn);
                            });
                            if let Err(error) = evicted {
                                self.cut_off(consumer_key, error, now, out);
                                return Turn::Rests;
                            }
                        }
                        AheadRead::Unreadable(text) => {
                            return self.unreadable(key, &text, now, out);
                        }
                    }
                }
                Ok(LeaseStep::Idle) => return Turn::Rests,
                Ok(LeaseStep::NoCredit) => {
                    consumer.parked.push(key);
                    return Turn::Rests;
                }
                Ok(LeaseStep::Refused(error)) | Err(error) => {
                    self.cut_off(consumer_key, error, now, out);
                    return Turn::Rests;
                }
            }
        }
        Turn::Sent(0)
    }

    /// Entries that fit into a frame for this client.
    fn lease_bytes_max(&self) -> usize {
        self.frame_bytes_max().saturating_sub(LEASE_HEAD_BYTES + RUNS_BYTES)
    }

    fn send_lease(&mut self, key: u64, leased: Leased, now: Now, out: &mut Transmit) -> Turn {
        let frame_max = self.frame_bytes_max();
        let Some(cursor) = self.consumers.cursors.get(&key) else { return Turn::Rests };
        let consumer = self.consumers.consumers.get(&cursor.consumer);
        let credit = consumer.map_or(0, |consumer| consumer.may_take(usize::MAX).bytes);
        let bytes_wanted = usize::try_from(credit).unwrap_or(usize::MAX);
        let runs_bytes = LEASE_HEAD_BYTES + leased.runs.len() * LEASE_RUN_BYTES;
        let order = Order {
            log: &cursor.partition.log,
            runs: &leased.runs,
            bytes_max: frame_max.saturating_sub(runs_bytes),
            bytes_wanted,
            loaded: cursor.loaded,
            limits: DecodeLimits::default(),
        };
        match Parcel::gather(&order) {
            Ok(parcel) => self.send_parcel(key, leased, parcel, now, out),
            Err(missing) => {
                self.give_back(key, &leased.runs, now);
                self.miss(key, missing, now, out)
            }
        }
    }

    fn send_parcel(
        &mut self,
        key: u64,
        leased: Leased,
        parcel: Parcel,
        now: Now,
        out: &mut Transmit,
    ) -> Turn {
        let Leased { mut runs, dispatch_number, dispatch_index, sub_epoch } = leased;
        if let Some(cut) = parcel.cut {
            let (fit, rest) = split_runs(runs, cut);
            self.give_back(key, &rest, now);
            runs = fit;
        }
        let Some(cursor) = self.consumers.cursors.get_mut(&key) else { return Turn::Rests };
        let Some(consumer) = self.consumers.consumers.get_mut(&cursor.consumer) else {
            return Turn::Rests;
        };
        let messages = runs.iter().map(|run| u64::from(run.count)).sum();
        let head = LeaseHead {
            handle: consumer.handle,
            partition: cursor.partition.partition(),
            sub_epoch,
            leader_epoch: self.hub.identity.leader_epoch,
            dispatch_number,
            dispatch_index,
            runs,
        };
        consumer.sent(messages, parcel.bytes);
        cursor.loaded = None;
        let counters = &self.hub.counters;
        counters.queue_leased.add(messages);
        counters.delivered_bytes.add(parcel.bytes as u64);
        let head: Bytes = head.encode_framed(parcel.bytes);
        let bytes = head.len() + parcel.bytes;
        out.chunks.push_back(head);
        out.chunks.extend(parcel.slices);
        Turn::Sent(bytes)
    }

    fn give_back(&self, key: u64, runs: &[LeaseRun], now: Now) {
        let Some(cursor) = self.consumers.cursors.get(&key) else { return };
        let Some(consumer) = self.consumers.consumers.get(&cursor.consumer) else { return };
        let whose = (consumer.subscription, cursor.member);
        // Where the leadership has ended there is nothing to give back.
        let _ended = cursor.partition.lead_if_folded(now, |leader, turn| {
            leader.give_back(&cursor.partition, whose, runs, turn);
        });
    }

    fn miss(&mut self, key: u64, missing: Missing, now: Now, out: &mut Transmit) -> Turn {
        let Some(cursor) = self.consumers.cursors.get_mut(&key) else { return Turn::Rests };
        let consumer_key = cursor.consumer;
        match missing {
            Missing::Cold(run) => {
                cursor.loaded = Some(run.first);
                Turn::Cold(run)
            }
            Missing::Gone(from, to) => {
                let Some(consumer) = self.consumers.consumers.get(&consumer_key) else {
                    return Turn::Rests;
                };
                let subscription = consumer.subscription;
                let partition = &cursor.partition;
                let evicted = partition.lead(now, |leader, turn| {
                    leader.evict(partition, subscription, (from, to), turn);
                });
                match evicted {
                    Ok(()) => Turn::Sent(0),
                    Err(error) => {
                        self.cut_off(consumer_key, error, now, out);
                        Turn::Rests
                    }
                }
            }
            Missing::TooLarge(bytes) => {
                let text = format!(
                    "a message of partition {} is {bytes} bytes with its batch, more than the {} that \
                     the client takes; raise its frame limit",
                    cursor.partition.partition(),
                    self.frame_bytes_max()
                );
                let error = self.hub.error(ErrorCode::BatchTooLarge, text);
                self.cut_off(consumer_key, error, now, out);
                Turn::Rests
            }
            Missing::Unreadable(text) => self.unreadable(key, &text, now, out),
        }
    }

    fn unreadable(&mut self, key: u64, text: &str, now: Now, out: &mut Transmit) -> Turn {
        let Some(cursor) = self.consumers.cursors.get(&key) else { return Turn::Rests };
        let consumer = cursor.consumer;
        tracing::error!(partition = ?cursor.partition.key, error = text, "a log cannot be read");
        let text = format!("the log could not be read ({text}); see the broker's log");
        let error = self.hub.error(ErrorCode::Internal, text);
        self.cut_off(consumer, error, now, out);
        Turn::Rests
    }
}

/// Reads entries and tells core what is in them: their headers, and their keys if these matter.
fn read_ahead(
    partition: &PartitionHandle,
    from: Offset,
    until: Offset,
    keyed: bool,
    loaded: Option<Offset>,
) -> AheadRead {
    let run = match partition.log.read(from, until, CHUNK_BYTES) {
        Ok(run) if run.next <= from => {
            return AheadRead::Unreadable(format!("the read at offset {from} is empty"));
        }
        Ok(run) if !run.resident && loaded != Some(from) => return AheadRead::Cold(run),
        Ok(run) => run,
        Err(ReadError::BelowStart { log_start }) => return AheadRead::Gone(log_start.1),
        Err(ReadError::Damaged(damage)) => return AheadRead::Gone(damage.end_offset),
        // Nothing to say of settled messages; what a seek made unsettled again is evicted.
        Err(ReadError::Vacant(vacancy)) => {
            return AheadRead::Fed(Fed { from, ahead: Vec::new(), next: vacancy.end_offset });
        }
        Err(ReadError::Io(error)) => return AheadRead::Unreadable(error),
    };
    let mut ahead = Vec::new();
    for entry in run.slices.iter().flat_map(|slice| EntryViews::new(slice)) {
        match entry {
            Ok(entry) => ahead.push(describe(&entry, keyed)),
            Err(error) => return AheadRead::Unreadable(error.to_string()),
        }
    }
    AheadRead::Fed(Fed { from, ahead, next: run.next })
}

fn describe(entry: &EntryView<'_>, keyed: bool) -> Ahead {
    let header = &entry.header;
    Ahead {
        first: header.base_offset,
        count: header.record_count,
        bytes: header.total_len,
        keys: if keyed { keys(entry) } else { Vec::new() },
    }
}

/// The hash of each message's key, 0 without one. A batch that cannot be read has none: its messages go
/// out in any order, and the client says what is wrong with them.
fn keys(entry: &EntryView<'_>) -> Vec<u64> {
    let base = entry.header.base_offset.0;
    let mut keys = vec![0; usize::try_from(entry.header.record_count).unwrap_or(0)];
    let Ok(records) = EntryRecords::open(entry, DecodeLimits::default()) else { return keys };
    for (offset, key) in records.keys().map_while(Result::ok) {
        let nth = usize::try_from(offset.0 - base).unwrap_or(usize::MAX);
        if let Some((place, key)) = keys.get_mut(nth).zip(key) {
            *place = key_hash(key);
        }
    }
    keys
}
