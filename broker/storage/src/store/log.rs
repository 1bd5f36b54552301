//! One log: where appenders, the group writer and readers meet.
//!
//! Owns the log's tail (next index, offset, chain, entries waiting), its cursors, its segments and what
//! is known to be lost. Never writes a file: the group writer takes the waiting entries. Reading is in
//! `read`.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind, entry_len};
use postrider_protocol::types::{Durability, EntryIndex, LeaderEpoch, Offset, TimestampMs};

use super::cursor::{Cursor, End};
use super::plan::{Place, Plan};
use super::segment::Segment;
use super::shared::{Order, Shared};
use super::space::Claim;
use crate::LogKey;
use crate::error::AppendError;
use crate::format::journal::Damage;
use crate::format::manifest::SnapshotRef;
use crate::format::names::MANIFEST_SLOTS;
use crate::format::vacancy::Vacancy;
use crate::recovered::RecoveredLog;
use crate::sync::{AtomicU8, AtomicU64, Mutex, Ordering};

/// Is told that a log's ready end moved. Called on the I/O thread: it must not block.
pub trait LogWatcher: Send + Sync {
    /// The ready end moved; read it with [`Log::ready_end`].
    fn advanced(&self);
}

/// An entry to append. The body's crc is the producer's and was checked by the caller.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// What it is.
    pub kind: EntryKind,
    /// See [`EntryHeader::flags`].
    pub flags: u16,
    /// The leadership that writes it.
    pub leader_epoch: LeaderEpoch,
    /// Wall time now; stored is the latest one of the log, if that is later.
    pub append_time: TimestampMs,
    /// Messages: how many offsets it covers (0 but for data).
    pub record_count: u32,
    /// Sequences of its producer session that it covers.
    pub seq_count: u32,
    /// Stored as it is, without a copy.
    pub body: Bytes,
    /// crc32 of the body.
    pub body_crc: u32,
    /// The leader's part.
    pub trailer: Bytes,
}

/// What an append assigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// The entry's number.
    pub index: EntryIndex,
    /// The offset of its first message.
    pub base_offset: Offset,
    /// Its append time: never before that of the entry before.
    pub append_time: TimestampMs,
}

/// An accepted entry that waits for the group writer.
pub(crate) struct QueuedEntry {
    pub(crate) header: [u8; ENTRY_HEADER_BYTES],
    pub(crate) header_crc: u32,
    pub(crate) prev_header_crc: u32,
    pub(crate) index: EntryIndex,
    pub(crate) offset: Offset,
    pub(crate) end_offset: Offset,
    pub(crate) time: TimestampMs,
    pub(crate) leader_epoch: u32,
    pub(crate) len: u64,
    pub(crate) data: bool,
    /// A new segment begins here, for which so many bytes were promised; 0 = the same segment.
    pub(crate) roll: u64,
    pub(crate) body: Bytes,
    pub(crate) trailer: Bytes,
}

/// Why a log takes no more entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gone {
    Dropped,
    Closed,
}

/// What appenders and the group writer share.
pub(crate) struct Tail {
    /// Where the next entry goes.
    pub(crate) next: End,
    pub(crate) chain_crc: u32,
    pub(crate) last_time: TimestampMs,
    /// Accepted, in order. Bounded by the store's queue bytes.
    pub(crate) pending: VecDeque<QueuedEntry>,
    pub(crate) plan: Plan,
    /// The log is in the work queue, or the group writer has it.
    pub(crate) queued: bool,
    pub(crate) gone: Option<Gone>,
}

/// A kept snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptSnapshot {
    pub(crate) at: SnapshotRef,
    /// A synced manifest names it.
    pub(crate) durable: bool,
}

/// The log's files and what is known about them.
pub(crate) struct Body {
    /// Rising; the last one takes the appends unless it is sealed.
    pub(crate) segments: VecDeque<Arc<Segment>>,
    /// Highest seq given out.
    pub(crate) last_seq: u64,
    /// Where the written entries end, and the header crc of the last one.
    pub(crate) written: End,
    pub(crate) written_crc: u32,
    /// Rising; at most two.
    pub(crate) snapshots: Vec<KeptSnapshot>,
    /// Per manifest slot: the entries below are not needed by what it names.
    pub(crate) floors: [EntryIndex; MANIFEST_SLOTS],
    /// Rising. Grows by at most one per unclean restart and lost group; trims shorten it.
    pub(crate) damages: Vec<Damage>,
    /// Ranges between segments that are kept no longer. Rising; at most one more than there are segments.
    pub(crate) vacancies: Vec<Vacancy>,
    /// Numbers below may have been used (classes without a sync only).
    pub(crate) reserved: End,
    /// A trim waits in the work queue.
    pub(crate) trim_queued: bool,
    /// Where the log began at the last trim that is in the journal.
    pub(crate) trimmed: EntryIndex,
}

/// See the module.
pub(crate) struct LogInner {
    pub(crate) key: LogKey,
    pub(crate) incarnation: u64,
    class: AtomicU8,
    pub(crate) tail: Mutex<Tail>,
    pub(crate) body: Mutex<Body>,
    /// Moved by the I/O thread alone.
    pub(crate) ready: Cursor,
    /// Moved by the I/O thread and, for classes without a sync, by checkpoints; under the writer's lock.
    pub(crate) durable: Cursor,
    /// One past the last entry in a frame that no group's sync covers (classes without a sync only).
    /// Moved by the I/O thread.
    pub(crate) framed: AtomicU64,
    /// Moved under the body's lock.
    pub(crate) start: Cursor,
    pub(crate) watcher: Mutex<Option<Arc<dyn LogWatcher>>>,
    pub(crate) shared: Arc<Shared>,
}

/// A handle of one log. Clones are the same log.
#[derive(Clone)]
pub struct Log {
    pub(crate) inner: Arc<LogInner>,
}

/// One segment, for retention and for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// Number in its log.
    pub seq: u64,
    /// First entry and its offset.
    pub base: End,
    /// One past the last entry, and the next offset.
    pub end: End,
    /// Length of the file.
    pub bytes: u64,
    /// Append time of the last entry.
    pub last_time: TimestampMs,
    /// Nothing more will be appended to it.
    pub sealed: bool,
    /// It holds a part of its entries.
    pub sparse: bool,
}

impl LogInner {
    /// A log without entries and without a file.
    pub(crate) fn new(
        key: LogKey,
        incarnation: u64,
        class: Durability,
        shared: Arc<Shared>,
    ) -> Self {
        let zero = (EntryIndex(0), Offset(0));
        let tail = Tail {
            next: zero,
            chain_crc: 0,
            last_time: TimestampMs(0),
            pending: VecDeque::new(),
            plan: Plan::empty(),
            queued: false,
            gone: None,
        };
        let body = Body {
            segments: VecDeque::new(),
            last_seq: 0,
            written: zero,
            written_crc: 0,
            snapshots: Vec::new(),
            floors: [EntryIndex(0); MANIFEST_SLOTS],
            damages: Vec::new(),
            vacancies: Vec::new(),
            reserved: zero,
            trim_queued: false,
            trimmed: EntryIndex(0),
        };
        Self::with(key, incarnation, class, tail, body, zero, shared)
    }

    /// A log as recovery found it.
    pub(crate) fn recovered(log: &RecoveredLog, shared: Arc<Shared>) -> Self {
        let segments: VecDeque<Arc<Segment>> = log
            .segments
            .iter()
            .map(|segment| Arc::new(Segment::recovered(&segment.at, segment.file_len)))
            .collect();
        let open = log
            .segments
            .last()
            .filter(|segment| !segment.at.sealed)
            .map(|segment| (segment.file_len, segment.at.end_position));
        let released = log.segments.first().map_or(log.start.0, |first| first.at.base_index);
        let tail = Tail {
            next: log.end,
            chain_crc: log.chain_crc,
            last_time: log.last_time,
            pending: VecDeque::new(),
            plan: Plan::recovered(log.last_seq, open),
            queued: false,
            gone: None,
        };
        let snapshots =
            log.snapshots.iter().map(|at| KeptSnapshot { at: *at, durable: true }).collect();
        let body = Body {
            segments,
            last_seq: log.last_seq,
            written: log.end,
            written_crc: log.chain_crc,
            snapshots,
            // Which snapshots the older slots name is not known: nothing is released until this
            // process has written every slot once.
            floors: [released; MANIFEST_SLOTS],
            damages: log.damages.clone(),
            vacancies: log.vacancies.clone(),
            reserved: log.reserved,
            trim_queued: false,
            trimmed: log.start.0,
        };
        let inner = Self::with(log.key, log.incarnation, log.class, tail, body, log.end, shared);
        inner.start.store(log.start);
        let unsynced = log.segments.iter().any(|segment| segment.dirty);
        if log.class != Durability::Fsync && unsynced {
            // Frames that recovery wrote again wait for the first checkpoint.
            inner.durable.store(log.start);
            inner.framed.store(log.end.0.0, Ordering::Relaxed);
        }
        inner
    }

    fn with(
        key: LogKey,
        incarnation: u64,
        class: Durability,
        tail: Tail,
        body: Body,
        end: End,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            key,
            incarnation,
            class: AtomicU8::new(class as u8),
            tail: Mutex::new(tail),
            body: Mutex::new(body),
            ready: Cursor::new(end),
            durable: Cursor::new(end),
            framed: AtomicU64::new(0),
            start: Cursor::new((EntryIndex(0), Offset(0))),
            watcher: Mutex::new(None),
            shared,
        }
    }

    pub(crate) fn class(&self) -> Durability {
        Durability::from_u8(self.class.load(Ordering::Relaxed)).expect("only classes are stored")
    }

    pub(crate) fn set_class(&self, class: Durability) {
        self.class.store(class as u8, Ordering::Relaxed);
    }

    /// Tells the watcher, outside every lock of the log.
    pub(crate) fn tell_watcher(&self) {
        let watcher = self.watcher.lock().clone();
        if let Some(watcher) = watcher {
            watcher.advanced();
        }
    }

    /// Refuses appends from now on and discards what waits.
    pub(crate) fn end(&self, gone: Gone) {
        let mut tail = self.tail.lock();
        tail.gone = Some(gone);
        if gone == Gone::Dropped {
            for entry in std::mem::take(&mut tail.pending) {
                self.shared.queue.discharge(usize_of(entry.len));
                self.shared.space.settle(entry.roll, 0);
            }
        }
    }
}

pub(crate) fn usize_of(len: u64) -> usize {
    usize::try_from(len).expect("what was in memory fits usize")
}

impl Log {
    /// Topic and partition.
    #[must_use]
    pub fn key(&self) -> LogKey {
        self.inner.key
    }

    /// Durability class.
    #[must_use]
    pub fn class(&self) -> Durability {
        self.inner.class()
    }

    /// Assigns index and offset and queues the entry for the I/O thread. The body is kept, not copied.
    ///
    /// # Errors
    /// In every case nothing was stored; see [`AppendError`] for what to do. An entry that was accepted
    /// is stored in order or, if the store fails, never reported as ready.
    ///
    /// # Panics
    /// When an entry of a kind other than data claims messages, or data claims none: a bug of the caller.
    pub fn append(&self, entry: NewEntry) -> Result<Appended, AppendError> {
        let data = holds_messages(entry.kind);
        let counts_fit = match entry.kind {
            EntryKind::Data => entry.record_count > 0,
            EntryKind::Delayed => true,
            _ => entry.record_count == 0,
        };
        assert!(counts_fit, "{} messages in an entry of kind {:?}", entry.record_count, entry.kind);
        let shared = &*self.inner.shared;
        if shared.poison.is_set() {
            return Err(AppendError::Poisoned);
        }
        if data && shared.space.is_full() {
            return Err(AppendError::Full);
        }
        let len = entry_len(entry.body.len(), entry.trailer.len());
        if u32::try_from(len).is_err() {
            return Err(AppendError::TooLarge);
        }
        if !shared.queue.charge(len) {
            return Err(AppendError::QueueFull);
        }
        let appended = self.accept(entry, len as u64);
        if appended.is_err() {
            shared.queue.discharge(len);
        }
        appended
    }

    fn accept(&self, entry: NewEntry, len: u64) -> Result<Appended, AppendError> {
        let shared = &*self.inner.shared;
        let mut tail = self.inner.tail.lock();
        match tail.gone {
            Some(Gone::Dropped) => return Err(AppendError::Dropped),
            Some(Gone::Closed) => return Err(AppendError::Closed),
            None => {}
        }
        let data = holds_messages(entry.kind);
        let roll = match tail.plan.place(len, shared.plan_limits) {
            Place::Here => None,
            Place::TooLarge => return Err(AppendError::TooLarge),
            Place::NewSegment(roll) => {
                let claim = if data { Claim::Data } else { Claim::State };
                let promised = shared.space.promise(roll.want, roll.need, claim);
                if promised.is_none() && data {
                    shared.space.set_full();
                }
                Some(promised.ok_or(AppendError::Full)?)
            }
        };
        tail.plan.accept(len, roll);
        let queued = tail.encode(entry, len, roll.unwrap_or(0));
        let appended =
            Appended { index: queued.index, base_offset: queued.offset, append_time: queued.time };
        tail.pending.push_back(queued);
        if !tail.queued {
            tail.queued = true;
            shared.queue.push(Arc::clone(&self.inner));
        }
        Ok(appended)
    }

    /// Sets who is told when the ready end moves, in place of whoever was told before.
    pub fn watch(&self, watcher: Arc<dyn LogWatcher>) {
        *self.inner.watcher.lock() = Some(watcher);
    }

    /// Where the next entry will go.
    #[must_use]
    pub fn log_end(&self) -> End {
        self.inner.tail.lock().next
    }

    /// Everything below is as durable as the class demands, and can be read.
    #[must_use]
    pub fn ready_end(&self) -> End {
        self.inner.ready.load()
    }

    /// Everything below survived a successful sync.
    #[must_use]
    pub fn durable_end(&self) -> End {
        self.inner.durable.load()
    }

    /// The first entry that can be read, and its offset.
    #[must_use]
    pub fn log_start(&self) -> End {
        self.inner.start.load()
    }

    /// Moves the start of the log forward. Files are released once the journal says so durably, and only
    /// below the older of two kept snapshots, whatever manifest slot recovery may have to fall back to.
    pub fn trim(&self, start: End) {
        let inner = &self.inner;
        let mut body = inner.body.lock();
        let ready = inner.ready.load();
        let old = inner.start.load();
        let start = (start.0.min(ready.0), start.1.min(ready.1));
        // Nothing begins in a vacancy.
        let vacancy = body.vacancies.iter().find(|vacancy| vacancy.holds_index(start.0));
        let start = vacancy.map_or(start, |vacancy| (vacancy.end_index, vacancy.end_offset));
        if start.0 <= old.0 && start.1 <= old.1 {
            return;
        }
        inner.start.store((start.0.max(old.0), start.1.max(old.1)));
        body.damages.retain(|damage| damage.end_index > start.0);
        let start = inner.start.load().0;
        body.vacancies.retain(|vacancy| vacancy.end_index > start);
        if !body.trim_queued {
            body.trim_queued = true;
            inner.shared.queue.order(Order::Trim(Arc::clone(inner)));
        }
    }

    /// Has the next entry begin a new segment, a small one, so that the one that is written is closed and can be
    /// given up. Answers false, and does nothing, while the disk is full: the room that is left there is needed.
    pub fn begin_segment(&self) -> bool {
        let shared = &self.inner.shared;
        let may = !shared.space.is_full() && !shared.poison.is_set();
        if may {
            self.inner.tail.lock().plan.roll_afresh();
        }
        may
    }

    /// The segments, oldest first. The first ones may lie below the start of the log.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let body = self.inner.body.lock();
        let info = |segment: &Arc<Segment>| {
            let end = segment.end();
            SegmentInfo {
                seq: segment.facts.seq,
                base: segment.facts.base,
                end: end.end,
                bytes: segment.facts.file_len,
                last_time: end.last_time,
                sealed: end.sealed,
                sparse: segment.facts.sparse,
            }
        };
        body.segments.iter().map(info).collect()
    }

    /// Index of the newest snapshot that recovery would find.
    #[must_use]
    pub fn snapshot_index(&self) -> Option<EntryIndex> {
        let body = self.inner.body.lock();
        body.snapshots.iter().rev().find(|snapshot| snapshot.durable).map(|found| found.at.index)
    }

    /// Ranges that were acknowledged and are lost.
    #[must_use]
    pub fn damages(&self) -> Vec<Damage> {
        self.inner.body.lock().damages.clone()
    }

    /// Bytes of the log's files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let body = self.inner.body.lock();
        body.segments.iter().map(|segment| segment.facts.file_len).sum()
    }
}

/// Whether an entry is refused when the disk is full: state goes on from the reserve.
fn holds_messages(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Data | EntryKind::Delayed)
}

impl Tail {
    /// Assigns the next numbers to an entry.
    fn encode(&mut self, entry: NewEntry, len: u64, roll: u64) -> QueuedEntry {
        let size = |bytes: usize| u32::try_from(bytes).expect("the entry's length fits u32");
        let time = entry.append_time.max(self.last_time);
        let header = EntryHeader {
            header_crc: 0,
            total_len: size(usize_of(len)),
            body_len: size(entry.body.len()),
            body_crc: entry.body_crc,
            trailer_len: size(entry.trailer.len()),
            index: self.next.0,
            base_offset: self.next.1,
            leader_epoch: entry.leader_epoch,
            prev_header_crc: self.chain_crc,
            append_time: time,
            kind: entry.kind,
            flags: entry.flags,
            record_count: entry.record_count,
            seq_count: entry.seq_count,
            key_id: 0,
            trailer_crc: crc32fast::hash(&entry.trailer),
            cached_crc32c: 0,
        };
        let bytes = header.encode();
        let header_crc = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let queued = QueuedEntry {
            header: bytes,
            header_crc,
            prev_header_crc: self.chain_crc,
            index: header.index,
            offset: header.base_offset,
            end_offset: header.end_offset(),
            time,
            leader_epoch: entry.leader_epoch.0,
            len,
            data: entry.kind == EntryKind::Data,
            roll,
            body: entry.body,
            trailer: entry.trailer,
        };
        self.next = (header.next_index(), header.end_offset());
        self.chain_crc = header_crc;
        self.last_time = time;
        queued
    }
}
