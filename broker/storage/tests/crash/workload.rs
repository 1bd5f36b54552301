//! What a run does: a script of actions against the real store on a simulated disk.
//!
//! Owns the scripts and how an action is carried out and told to the model.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::types::{
    Durability, EntryIndex, LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId,
};
use postrider_storage::disk_sim::{CrashKind, FaultPlan, SimRandom};
use postrider_storage::{
    AppendError, Disk, Keep, Log, LogKey, NewEntry, OpenError, SegmentInfo, SimDisk, Store,
    StoreOptions, StoreStats,
};

use crate::model::{Allow, Model, NewFacts};
use crate::mutant::{Bug, Moved, Mutant, Phase};

/// Small enough that every limit is met within a few hundred disk operations.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes_min: 8 << 10,
        segment_bytes_max: 32 << 10,
        journal_bytes_min: 8 << 10,
        journal_bytes_max: 32 << 10,
        group_bytes_max: 8 << 10,
        queue_bytes_max: 64 << 10,
        direct_write_bytes: 2 << 10,
        direct_files_max: 2,
        checkpoint_bytes: 24 << 10,
        checkpoint_journal_bytes: 12 << 10,
        checkpoint_interval_ms: 1_000,
        reserve_bytes: 64 << 10,
        recycle_bytes_max: 128 << 10,
        open_files_max: 3,
        map_max: 3,
        sync_each_max: 2,
        snapshot_queue_bytes_max: 64 << 10,
        ..StoreOptions::default()
    }
}

pub(crate) fn key(log: u8) -> LogKey {
    LogKey { topic: TopicId([log + 1; 16]), partition: PartitionId(0) }
}

/// Log 2 demands no sync, the others do.
pub(crate) fn class(log: u8) -> Durability {
    if log == 2 { Durability::Memory } else { Durability::Fsync }
}

/// One thing that a run does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Append {
        log: u8,
        len: usize,
    },
    State {
        log: u8,
    },
    Step,
    Maintain,
    Checkpoint,
    /// Moves the start to so many entries before the end.
    Trim {
        log: u8,
        keep: u64,
    },
    Drop {
        log: u8,
    },
    Snapshot {
        log: u8,
    },
    /// Nobody needs a sealed segment in the middle any more, the how many-th that may go.
    Vacate {
        log: u8,
        nth: usize,
    },
    /// Nobody needs its entries any more but the first of each so many.
    Rewrite {
        log: u8,
        nth: usize,
        every: u64,
    },
    Close,
}

/// Both write paths, rolls, checkpoints, trims, drops, a log of class memory, snapshots.
pub(crate) fn script() -> Vec<Action> {
    use Action::{Append, Checkpoint, Close, Drop, Maintain, Snapshot, State, Step, Trim};
    let mut actions = vec![Append { log: 0, len: 100 }, Step, Append { log: 1, len: 2500 }, Step];
    actions.extend([Append { log: 0, len: 60 }, Append { log: 1, len: 60 }, Step, Step]);
    actions.extend([Append { log: 2, len: 300 }, Step, Append { log: 2, len: 2600 }, Step]);
    actions.extend([Append { log: 0, len: 3000 }, Append { log: 1, len: 70 }, Step]);
    actions.extend([State { log: 0 }, Snapshot { log: 0 }, Step, Checkpoint, Maintain, Step]);
    for round in 0..3 {
        actions.extend([Append { log: 0, len: 2900 }, Step, Append { log: 0, len: 90 }, Step]);
        actions.extend([Append { log: 1, len: 800 }, Append { log: 2, len: 120 }, Step]);
        actions.extend([Snapshot { log: 0 }, Snapshot { log: 1 }, Checkpoint, Maintain]);
        if round == 1 {
            actions.extend([Trim { log: 0, keep: 2 }, Step, Drop { log: 1 }, Step]);
        }
    }
    actions.extend([Trim { log: 0, keep: 1 }, Append { log: 0, len: 2200 }, Step]);
    actions.extend([Append { log: 1, len: 200 }, Step, Append { log: 1, len: 2100 }, Step]);
    actions.extend([Append { log: 2, len: 90 }, Step, Append { log: 0, len: 40 }, Step, Step]);
    actions.push(Close);
    actions
}

/// Segments in the middle go, in whole or in part, while the log goes on and another takes the files.
pub(crate) fn sparse_script() -> Vec<Action> {
    use Action::{
        Append, Checkpoint, Close, Maintain, Rewrite, Snapshot, State, Step, Trim, Vacate,
    };
    let mut actions = Vec::new();
    for round in 0..9 {
        for _ in 0..10 {
            actions.extend([Append { log: 0, len: 900 }, Append { log: 0, len: 70 }, Step]);
        }
        actions.extend([
            State { log: 0 },
            Append { log: 0, len: 3000 },
            Append { log: 1, len: 90 },
        ]);
        actions.extend([Step, Snapshot { log: 0 }, Checkpoint]);
        if round > 4 {
            actions.extend([Rewrite { log: 0, nth: round % 3, every: 9 }, Maintain, Step]);
        }
        if round == 6 {
            actions.extend([Vacate { log: 0, nth: 2 }, Step, Append { log: 1, len: 5000 }, Step]);
            actions.extend([
                Append { log: 1, len: 5000 },
                Step,
                Append { log: 1, len: 5000 },
                Step,
            ]);
        }
    }
    actions.extend([Rewrite { log: 0, nth: 2, every: 5 }, Vacate { log: 0, nth: 3 }, Maintain]);
    actions.extend([Step, Checkpoint, Append { log: 1, len: 4000 }, Step, Step]);
    actions.extend([Vacate { log: 0, nth: 1 }, Step, Trim { log: 0, keep: 9 }, Step, Maintain]);
    actions.extend([Append { log: 0, len: 70 }, Step, Close]);
    actions
}

/// A seeded one: like [`sparse_script`], with everything else between.
pub(crate) fn random_sparse_script(seed: u64) -> Vec<Action> {
    let mut random = SimRandom::new(seed ^ 0x59_A2_5E);
    let mut actions = Vec::new();
    for _ in 0..4 + random.index(5) {
        for _ in 0..2 + random.index(8) {
            let log = u8::from(random.one_in(4));
            let len = if random.one_in(4) { 2048 + random.index(2500) } else { random.index(900) };
            actions.push(Action::Append { log, len: len + 1 });
            if random.one_in(8) {
                actions.push(Action::State { log });
            }
            if random.one_in(2) {
                actions.push(Action::Step);
            }
        }
        actions.extend([Action::Step, Action::Snapshot { log: 0 }, Action::Checkpoint]);
        for _ in 0..random.index(4) {
            let nth = random.index(5);
            let every = 2 + random.below(12);
            actions.push(match random.below(5) {
                0..=1 => Action::Vacate { log: 0, nth },
                2..=3 => Action::Rewrite { log: 0, nth, every },
                _ => Action::Trim { log: 0, keep: 3 + random.below(20) },
            });
            if random.one_in(2) {
                actions.extend([Action::Maintain, Action::Step]);
            }
        }
        actions.extend([Action::Maintain, Action::Step]);
    }
    actions
}

/// A short one that ends with a vacancy and a sparse segment: for runs that are repeated per byte.
pub(crate) fn small_sparse_script() -> Vec<Action> {
    use Action::{Append, Checkpoint, Maintain, Rewrite, Snapshot, Step, Vacate};
    let mut actions = Vec::new();
    for _ in 0..14 {
        actions.extend([Append { log: 0, len: 1900 }, Append { log: 0, len: 100 }, Step]);
        actions.extend([Append { log: 0, len: 1900 }, Append { log: 0, len: 100 }, Step]);
        actions.extend([Append { log: 0, len: 1900 }, Step, Snapshot { log: 0 }, Checkpoint]);
    }
    actions.extend([Rewrite { log: 0, nth: 1, every: 9 }, Maintain, Step]);
    actions.extend([Vacate { log: 0, nth: 2 }, Step, Checkpoint, Step, Step]);
    actions
}

/// A short one without drops: for runs that are repeated per byte.
pub(crate) fn small_script() -> Vec<Action> {
    use Action::{Append, Checkpoint, Maintain, Snapshot, State, Step};
    let mut actions = vec![Append { log: 0, len: 60 }, Step, Append { log: 1, len: 2100 }, Step];
    actions.extend([State { log: 0 }, Snapshot { log: 0 }, Step, Checkpoint, Maintain]);
    actions.extend([Append { log: 0, len: 50 }, Append { log: 0, len: 30 }, Step]);
    actions.extend([Append { log: 1, len: 2100 }, Append { log: 0, len: 40 }, Step]);
    actions.extend([Append { log: 1, len: 40 }, Step, Step]);
    actions
}

/// A seeded script.
pub(crate) fn random_script(seed: u64) -> Vec<Action> {
    let mut random = SimRandom::new(seed ^ 0x5C_41_97);
    let count = 20 + random.index(80);
    let mut actions = Vec::with_capacity(count * 2);
    for _ in 0..count {
        let log = u8::try_from(random.below(3)).expect("below three");
        let action = match random.below(40) {
            0..=9 => Action::Append { log, len: 1 + random.index(300) },
            10..=14 => Action::Append { log, len: 2048 + random.index(3000) },
            15 => Action::State { log },
            16..=27 => Action::Step,
            28..=31 => Action::Maintain,
            32..=33 => Action::Checkpoint,
            34..=35 => Action::Trim { log, keep: random.below(5) },
            36 => Action::Drop { log },
            _ => Action::Snapshot { log },
        };
        actions.push(action);
        if random.one_in(3) {
            actions.push(Action::Step);
        }
    }
    actions
}

/// A store with its model.
pub(crate) struct Run {
    pub(crate) disk: SimDisk,
    pub(crate) model: Model,
    mutant: Arc<Mutant>,
    moved: Moved,
    store: Option<Store>,
    logs: BTreeMap<u8, Log>,
    now: u64,
    nonce: u64,
    bug: Bug,
    last_stats: StoreStats,
}

impl Run {
    /// A new directory.
    pub(crate) fn new(seed: u64, bug: Bug) -> Self {
        let disk = SimDisk::new(seed);
        let moved = Moved::default();
        let mutant = Mutant::new(disk.clone(), bug, Arc::clone(&moved));
        let model = Model::default();
        let logs = BTreeMap::new();
        let last_stats = StoreStats::default();
        let (now, nonce) = (1_000, 0);
        Self { disk, model, mutant, moved, store: None, logs, now, nonce, bug, last_stats }
    }

    /// Opens the store and compares what is there with the model.
    pub(crate) fn open(&mut self, allow: Allow) -> Result<Opening, String> {
        self.mutant.enter(Phase::Open);
        let disk: Arc<dyn Disk> = self.mutant.clone();
        let opened = match Store::open(disk, options()) {
            Ok(opened) => opened,
            Err(_) if self.disk.crashed() => return Ok(Opening::Crashed),
            Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => {
                return Ok(Opening::Full);
            }
            Err(error @ OpenError::Io { .. }) => return Ok(Opening::Failed(error.to_string())),
            Err(error) => return Ok(Opening::Refused(error.to_string())),
        };
        self.mutant.enter(Phase::Run);
        self.model.verify(&opened.logs, allow)?;
        for log in 0..3 {
            let found = opened.logs.iter().find(|found| found.log.key() == key(log));
            if let Some(found) = found {
                self.logs.insert(log, found.log.clone());
            }
        }
        self.store = Some(opened.store);
        Ok(Opening::Open)
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Runs actions until the disk fails or they end.
    pub(crate) fn run(&mut self, actions: &[Action]) -> Result<(), String> {
        for action in actions {
            self.act(*action)?;
            for (number, log) in &self.logs {
                self.model.observe(log).map_err(|error| format!("log {number}: {error}"))?;
            }
            if self.store().failed().is_some() || self.disk.crashed() {
                break;
            }
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        self.now += 7;
        match action {
            Action::Append { log, len } => self.append(log, EntryKind::Data, len),
            Action::State { log } => self.append(log, EntryKind::Seek, 24),
            Action::Step => {
                self.mutant.enter(Phase::Run);
                let groups = self.store().stats().groups;
                self.store().step();
                // A mark alone carries no orders: they may wait for space.
                if self.store().stats().groups > groups
                    && self.store().failed().is_none()
                    && !self.disk.crashed()
                {
                    self.model.orders_acked();
                }
                Ok(())
            }
            Action::Maintain => {
                self.maintain();
                Ok(())
            }
            Action::Checkpoint => {
                self.store().checkpoint();
                self.maintain();
                Ok(())
            }
            Action::Trim { log, keep } => {
                if let Some(log) = self.logs.get(&log) {
                    self.trim(&log.clone(), keep);
                }
                Ok(())
            }
            Action::Drop { log } => {
                if self.logs.remove(&log).is_some() {
                    self.model.drop_asked(key(log));
                    self.store().drop_log(key(log));
                }
                Ok(())
            }
            Action::Snapshot { log } => {
                if let Some(log) = self.logs.get(&log).cloned() {
                    let index = log.ready_end().0;
                    self.nonce += 1;
                    let state = body(self.nonce, 150);
                    if index > EntryIndex(0) && log.write_snapshot(index, state.clone()) {
                        self.model.snapshot_asked(log.key(), index, state);
                    }
                }
                Ok(())
            }
            Action::Vacate { log, nth } => {
                if let Some((log, segment)) = self.thinnable(log, nth) {
                    self.model.settle(log.key(), segment.base.0.0..segment.end.0.0);
                    log.vacate(segment.seq);
                }
                Ok(())
            }
            Action::Rewrite { log, nth, every } => {
                if let Some((log, segment)) = self.thinnable(log, nth) {
                    self.rewrite(&log, &segment, every);
                }
                Ok(())
            }
            Action::Close => {
                self.mutant.enter(Phase::Run);
                // A failure shows by what is there at the next open.
                drop(self.store().close());
                Ok(())
            }
        }
    }

    fn maintain(&self) {
        self.mutant.enter(Phase::Maintain);
        // Work may come in parts: checkpoint, then footers and files.
        for _ in 0..8 {
            if !self.store().maintain(TimestampMs(self.now)) {
                break;
            }
        }
        self.mutant.enter(Phase::Run);
    }

    /// The how many-th segment that may be given up, not the first.
    fn thinnable(&self, log: u8, nth: usize) -> Option<(Log, SegmentInfo)> {
        let log = self.logs.get(&log)?;
        let floor = log.unneeded_below();
        let segments = log.segments();
        let last = segments.len().saturating_sub(1);
        let fits = |segment: &&SegmentInfo| segment.sealed && segment.end.0 <= floor;
        let mut fitting = segments[..last].iter().skip(1).filter(fits);
        fitting.nth(nth % 4).map(|segment| (log.clone(), *segment))
    }

    /// Every so many-th entry is kept: odd ones for their messages, even ones by their index.
    fn rewrite(&mut self, log: &Log, segment: &SegmentInfo, every: u64) {
        let range = segment.base.0.0..segment.end.0.0;
        let mut keep = Keep::default();
        let mut settled: Vec<u64> = Vec::new();
        for index in range {
            let one = log.entries(EntryIndex(index), EntryIndex(index + 1), 1);
            let kept = index % every == 0;
            match one {
                Ok(entries) if kept && index % 2 == 1 && entries[0].header.record_count > 0 => {
                    let header = &entries[0].header;
                    // One message alone keeps all of its entry.
                    let last = header.end_offset().0 - 1;
                    keep.messages.push(Offset(last)..Offset(last + 1));
                }
                Ok(_) if kept => keep.entries.push(EntryIndex(index)..EntryIndex(index + 1)),
                Ok(_) | Err(_) => settled.push(index),
            }
        }
        self.model.settle(log.key(), settled.into_iter());
        log.rewrite(segment.seq, keep);
    }

    fn trim(&mut self, log: &Log, keep: u64) {
        let (start, end) = (log.log_start(), log.ready_end());
        let at = EntryIndex(end.0.0.saturating_sub(keep));
        if at <= start.0 {
            return;
        }
        let Ok(entries) = log.entries(at, EntryIndex(at.0 + 1), 1) else { return };
        let Some(entry) = entries.first() else { return };
        log.trim((at, entry.header.base_offset));
        // It begins behind a vacancy, not in one.
        self.model.trim_asked(log.key(), log.log_start().0);
    }

    fn append(&mut self, number: u8, kind: EntryKind, len: usize) -> Result<(), String> {
        let log = match self.logs.get(&number) {
            Some(log) => log.clone(),
            None => match self.store().create_log(key(number), class(number)) {
                Ok(log) => {
                    self.model.create(key(number), class(number));
                    self.logs.insert(number, log.clone());
                    log
                }
                Err(_) => return Ok(()),
            },
        };
        self.nonce += 1;
        let records = if kind == EntryKind::Data { 1 + (self.nonce % 3) as u32 } else { 0 };
        let body = body(self.nonce, len);
        let entry = NewEntry {
            kind,
            flags: 0,
            leader_epoch: LeaderEpoch(1),
            append_time: TimestampMs(self.now),
            record_count: records,
            seq_count: records,
            body_crc: crc32fast::hash(&body),
            body: body.clone(),
            trailer: Bytes::new(),
        };
        match log.append(entry) {
            Ok(appended) => {
                let facts = NewFacts { kind, records, body };
                self.model.appended(key(number), appended.index, appended.base_offset, &facts);
                Ok(())
            }
            Err(AppendError::TooLarge) => Err("the workload's entries fit a segment".to_string()),
            Err(_) => Ok(()),
        }
    }

    /// Counters of the last life.
    pub(crate) fn stats(&self) -> StoreStats {
        self.last_stats
    }

    /// Ends this life of the machine.
    pub(crate) fn crash(&mut self, kind: CrashKind) {
        self.logs.clear();
        self.last_stats = self.store.take().map(|store| store.stats()).unwrap_or_default();
        self.disk.crash(kind);
        self.disk = self.disk.reopen();
        self.mutant = Mutant::new(self.disk.clone(), self.bug, Arc::clone(&self.moved));
    }

    /// Plans faults for the operations from here on.
    pub(crate) fn plan(&self, plan: FaultPlan) {
        self.disk.set_plan(plan);
    }

    /// Lets files grow by so many bytes together from here on.
    pub(crate) fn leave_room(&self, bytes: u64) {
        let used = self.disk.files().iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        self.disk.set_quota(used + bytes);
    }

    /// A copy of the disk's state with its own losses, and of the model.
    pub(crate) fn fork(&self, seed: u64) -> Self {
        let disk = self.disk.fork(seed).reopen();
        let moved = Arc::clone(&self.moved);
        let mutant = Mutant::new(disk.clone(), self.bug, Arc::clone(&moved));
        let (model, logs) = (self.model.clone(), BTreeMap::new());
        let (now, nonce, bug) = (self.now, self.nonce, self.bug);
        let last_stats = self.last_stats;
        Self { disk, model, mutant, moved, store: None, logs, now, nonce, bug, last_stats }
    }
}

/// How opening went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    Open,
    /// The planned crash came first.
    Crashed,
    /// Recovery needs space that is not there.
    Full,
    /// The device failed.
    Failed(String),
    /// The directory was refused.
    Refused(String),
}

/// Bytes that differ for every entry ever appended.
fn body(nonce: u64, len: usize) -> Bytes {
    let mut random = SimRandom::new(nonce);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    out.truncate(len);
    out.into()
}
