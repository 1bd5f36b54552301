//! The oracle: what was appended, what was acknowledged, and what a recovery may make of it.
//!
//! Owns no store and no disk. Everything it says is said by index: an acknowledged entry is there,
//! unchanged, or (only where that is allowed) reported; nothing appears that was never appended; numbers
//! that somebody saw are never used twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use postrider_protocol::entry::{Entry, EntryKind, EntryViews};
use postrider_protocol::types::{Durability, EntryIndex, Offset};
use postrider_storage::{Damage, Log, LogKey, OpenedLog, ReadError, Vacancy};

/// What a recovery may do besides keeping everything that was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Allow {
    /// Nothing: fsync logs have no damage, and logs of other classes keep what the page cache kept.
    ProcessCrash,
    /// Logs of other classes lose what no sync covered.
    PowerLoss,
    /// A byte was flipped: damage may be reported, anything else still holds.
    Rot,
}

#[derive(Clone, Debug)]
struct Written {
    offset: u64,
    end_offset: u64,
    kind: EntryKind,
    body: Bytes,
}

/// One log between its creation and its drop.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) class: Durability,
    written: BTreeMap<u64, Written>,
    /// Index below which everything was reported as stored, by the class's promise.
    acked: u64,
    /// Index and offset below which some reader may have seen entries.
    ready: (u64, u64),
    /// Where the last recovery left the log: before that `durable_end` says nothing new.
    recovered: u64,
    /// Entries that nobody needs any more: they may be there or vacant.
    settled: BTreeSet<u64>,
    /// Starts that were asked for; the last is the newest. The first may be durable or not.
    starts: Vec<u64>,
    /// Every state that was written for an index: any of them may be the one that is kept.
    snapshots: BTreeMap<u64, Vec<Bytes>>,
    snapshot_durable: Option<u64>,
    pub(crate) drop_asked: bool,
    drop_acked: bool,
    damages: Vec<Damage>,
}

impl Life {
    fn new(class: Durability) -> Self {
        Self {
            class,
            written: BTreeMap::new(),
            acked: 0,
            ready: (0, 0),
            recovered: 0,
            settled: BTreeSet::new(),
            starts: vec![0],
            snapshots: BTreeMap::new(),
            snapshot_durable: None,
            drop_asked: false,
            drop_acked: false,
            damages: Vec::new(),
        }
    }

    fn is_volatile(&self) -> bool {
        self.class != Durability::Fsync
    }
}

/// All logs that a run has touched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    lives: BTreeMap<LogKey, Vec<Life>>,
}

/// What recovery gave back, as the checker read it.
struct Found {
    entries: BTreeMap<u64, Entry>,
    /// Ranges that reads answered with an error.
    lost: Vec<(u64, u64)>,
    /// Ranges that are said to be kept no longer.
    vacant: Vec<Vacancy>,
}

impl Found {
    fn is_vacant(&self, index: u64) -> bool {
        self.vacant.iter().any(|vacancy| vacancy.holds_index(EntryIndex(index)))
    }
}

impl Model {
    pub(crate) fn create(&mut self, key: LogKey, class: Durability) {
        let lives = self.lives.entry(key).or_default();
        if lives.last().is_none_or(|life| life.drop_asked) {
            lives.push(Life::new(class));
        }
    }

    fn life(&mut self, key: LogKey) -> &mut Life {
        self.lives.get_mut(&key).and_then(|lives| lives.last_mut()).expect("the log was created")
    }

    pub(crate) fn appended(
        &mut self,
        key: LogKey,
        index: EntryIndex,
        offset: Offset,
        entry: &NewFacts,
    ) {
        let end_offset = offset.0 + u64::from(entry.records);
        let written =
            Written { offset: offset.0, end_offset, kind: entry.kind, body: entry.body.clone() };
        let life = self.life(key);
        let before = life.written.insert(index.0, written);
        assert!(before.is_none(), "{key:?}: index {index} was given out twice");
    }

    pub(crate) fn trim_asked(&mut self, key: LogKey, start: EntryIndex) {
        let life = self.life(key);
        if start.0 > *life.starts.last().expect("never empty") {
            life.starts.push(start.0);
        }
    }

    /// Entries need not be kept any longer.
    pub(crate) fn settle(&mut self, key: LogKey, entries: impl Iterator<Item = u64>) {
        self.life(key).settled.extend(entries);
    }

    pub(crate) fn drop_asked(&mut self, key: LogKey) {
        self.life(key).drop_asked = true;
    }

    pub(crate) fn snapshot_asked(&mut self, key: LogKey, index: EntryIndex, state: Bytes) {
        self.life(key).snapshots.entry(index.0).or_default().push(state);
    }

    /// A step did something and nothing failed: every trim and drop asked for before is durable.
    pub(crate) fn orders_acked(&mut self) {
        for life in self.lives.values_mut().flatten() {
            let newest = life.starts.pop().expect("never empty");
            life.starts = vec![newest];
            life.drop_acked |= life.drop_asked;
        }
    }

    /// What the store says of a log now: an acknowledgement to whoever asks.
    pub(crate) fn observe(&mut self, log: &Log) -> Result<(), String> {
        let key = log.key();
        let life = self.life(key);
        if life.drop_asked {
            return Ok(());
        }
        let (ready, durable) = (log.ready_end(), log.durable_end());
        let acked = if life.is_volatile() {
            if durable.0.0 > life.recovered { durable.0.0 } else { life.acked }
        } else {
            ready.0.0
        };
        if acked < life.acked {
            return Err(format!("{key:?}: the acknowledged end went back to {acked}"));
        }
        life.acked = acked;
        life.ready = (life.ready.0.max(ready.0.0), life.ready.1.max(ready.1.0));
        life.snapshot_durable = log.snapshot_index().map(|index| index.0);
        Ok(())
    }

    /// Entries acknowledged and still kept, over all logs: a test without any proves nothing.
    pub(crate) fn acked(&self) -> u64 {
        let newest = self.lives.values().filter_map(|lives| lives.last());
        newest.map(|life| life.acked - life.starts[0].min(life.acked)).sum()
    }

    /// Compares what a recovery opened with what may be there.
    pub(crate) fn verify(&mut self, opened: &[OpenedLog], allow: Allow) -> Result<(), String> {
        for log in opened {
            if !self.lives.contains_key(&log.log.key()) {
                return Err(format!("{:?} was never created", log.log.key()));
            }
        }
        for (key, lives) in &mut self.lives {
            let found = opened.iter().find(|log| log.log.key() == *key);
            let at = match found {
                Some(found) => Some(which_life(lives, found, allow)?),
                None => None,
            };
            if let Some(newest) = lives.last()
                && found.is_none()
                && newest.acked > newest.starts[0]
                && !newest.drop_asked
                && allow != Allow::Rot
            {
                return Err(format!("{key:?}: {} acknowledged entries, log gone", newest.acked));
            }
            // What did not come back now may never come back.
            match (at, found) {
                (Some(at), Some(found)) => {
                    lives.truncate(at + 1);
                    adopt(&mut lives[at], found)?;
                }
                _ => lives.clear(),
            }
        }
        self.lives.retain(|_, lives| !lives.is_empty());
        Ok(())
    }
}

/// What the checker must remember of an entry.
pub(crate) struct NewFacts {
    pub(crate) kind: EntryKind,
    pub(crate) records: u32,
    pub(crate) body: Bytes,
}

/// The life that a recovered log continues: the newest, or an older one whose drop was not durable.
fn which_life(lives: &[Life], found: &OpenedLog, allow: Allow) -> Result<usize, String> {
    let key = found.log.key();
    let mut errors = Vec::new();
    for (at, life) in lives.iter().enumerate().rev() {
        // With its Drop lost to rot a log may be back, as long as it says that something is missing.
        let rot = allow == Allow::Rot && !found.damages.is_empty();
        if life.drop_acked && !rot {
            break;
        }
        match verify_life(life, found, allow) {
            Ok(()) => return Ok(at),
            Err(error) => errors.push(format!(
                "life {at} of {} (acknowledged {}, drop {}): {error}",
                lives.len(),
                life.acked,
                life.drop_asked
            )),
        }
        // An older life may be seen only while nothing of a newer one was acknowledged.
        if life.acked > 0 && !rot {
            break;
        }
    }
    if errors.is_empty() {
        errors.push("a dropped log is back".to_string());
    }
    Err(format!("{key:?}: {}", errors.join("; ")))
}

fn verify_life(life: &Life, found: &OpenedLog, allow: Allow) -> Result<(), String> {
    let log = &found.log;
    let (start, end) = (log.log_start().0.0, log.log_end().0.0);
    if !life.starts.contains(&start) && allow != Allow::Rot {
        return Err(format!("starts at {start}, asked for {:?}", life.starts));
    }
    if log.ready_end() != log.log_end() {
        return Err("something waits right after recovery".to_string());
    }
    let newest = life.written.keys().next_back().map_or(0, |last| last + 1);
    if !life.is_volatile() && allow != Allow::Rot {
        let lowest = life.acked.max(start);
        let highest = newest.max(life.recovered).max(lowest);
        if end < lowest || end > highest {
            return Err(format!("ends at {end}, acknowledged {lowest}, appended {highest}"));
        }
    }
    if end < life.ready.0 || log.log_end().1.0 < life.ready.1 {
        let at = log.log_end();
        return Err(format!("ends at {at:?}, numbers up to {:?} were seen", life.ready));
    }
    let read = read_entries(log, start, end, allow)?;
    verify_kept(life, found, &read, start, allow)?;
    verify_entries(life, &read)?;
    verify_links(life, &read, start, end, allow)?;
    verify_messages(log, &read, allow)?;
    verify_snapshot(life, found, allow)
}

/// Reads every entry; errors become lost ranges.
fn read_entries(log: &Log, start: u64, end: u64, allow: Allow) -> Result<Found, String> {
    let mut found = Found { entries: BTreeMap::new(), lost: Vec::new(), vacant: Vec::new() };
    let mut next = start;
    while next < end {
        match log.entries(EntryIndex(next), EntryIndex(end), 16 << 10) {
            Ok(entries) => {
                if entries.is_empty() {
                    return Err(format!("reading entry {next} gives nothing"));
                }
                for entry in entries {
                    let index = entry.header.index.0;
                    if index < next {
                        return Err(format!("entry {index} where {next} or later was asked for"));
                    }
                    if index > next {
                        found.lost.push((next, index));
                    }
                    if entry.check_body().is_err() {
                        if allow != Allow::Rot {
                            return Err(format!("entry {index} has a wrong body"));
                        }
                        found.lost.push((index, index + 1));
                    } else {
                        found.entries.insert(index, entry);
                    }
                    next = index + 1;
                }
            }
            Err(ReadError::Damaged(damage)) => {
                found.lost.push((next, damage.end_index.0));
                next = damage.end_index.0;
            }
            Err(ReadError::Vacant(vacancy)) => {
                if !vacancy.holds_index(EntryIndex(next)) {
                    return Err(format!("entry {next} is said to lie in {vacancy:?}"));
                }
                found.vacant.push(vacancy);
                next = vacancy.end_index.0;
            }
            Err(ReadError::Io(_)) if allow == Allow::Rot => {
                // An error is a report: nothing false was served.
                found.lost.push((next, next + 1));
                next += 1;
            }
            Err(error) => {
                let (segments, damages) = (log.segments(), log.damages());
                return Err(format!("reading entry {next}: {error}\n{segments:?}\n{damages:?}"));
            }
        }
    }
    Ok(found)
}

fn verify_kept(
    life: &Life,
    opened: &OpenedLog,
    found: &Found,
    start: u64,
    allow: Allow,
) -> Result<(), String> {
    let required = match (life.is_volatile(), allow) {
        (true, Allow::ProcessCrash) => life.ready.0,
        _ => life.acked,
    };
    for index in life.written.keys().copied().filter(|index| (start..required).contains(index)) {
        if found.entries.contains_key(&index) {
            continue;
        }
        if found.is_vacant(index) {
            if !life.settled.contains(&index) {
                return Err(format!("entry {index} is live and said to be kept no longer"));
            }
            continue;
        }
        let known = |damage: &&Damage| (damage.from_index.0..damage.end_index.0).contains(&index);
        let reported = opened.damages.iter().find(known);
        let lost = found.lost.iter().any(|(from, end)| (*from..*end).contains(&index));
        let before = life.damages.iter().find(known);
        match (allow, reported.or(before), lost) {
            (Allow::Rot, Some(_), _) | (Allow::Rot, _, true) => {}
            (Allow::Rot, None, false) => return Err(format!("entry {index} silently missing")),
            _ => return Err(format!("acknowledged entry {index} missing; damage: {reported:?}")),
        }
    }
    Ok(())
}

fn verify_entries(life: &Life, found: &Found) -> Result<(), String> {
    for (index, entry) in &found.entries {
        let Some(written) = life.written.get(index) else {
            return Err(format!("entry {index} was never appended, or was cut before"));
        };
        let header = &entry.header;
        let same = header.base_offset.0 == written.offset
            && header.end_offset().0 == written.end_offset
            && header.kind == written.kind
            && entry.body == written.body;
        if !same {
            return Err(format!("entry {index} differs from what was appended: {header:?}"));
        }
    }
    Ok(())
}

/// Entries follow each other; where they do not, the log says so.
fn verify_links(
    life: &Life,
    found: &Found,
    start: u64,
    end: u64,
    allow: Allow,
) -> Result<(), String> {
    let mut next = start;
    let mut before: Option<&Entry> = None;
    for (index, entry) in &found.entries {
        if *index != next {
            before = None;
            let here = |vacancy: &&Vacancy| vacancy.end_index.0 == *index;
            if let Some(vacancy) = found.vacant.iter().find(here)
                && entry.header.base_offset != vacancy.end_offset
            {
                return Err(format!("offsets moved behind {vacancy:?}: entry {index}"));
            }
        }
        if let Some(before) = before {
            let header = &entry.header;
            if header.prev_header_crc != before.header.header_crc {
                return Err(format!("entry {index} does not link to the one before"));
            }
            if header.base_offset != before.header.end_offset() {
                return Err(format!("offset gap before entry {index}"));
            }
            if header.append_time < before.header.append_time {
                return Err(format!("time goes back at entry {index}"));
            }
        }
        before = Some(entry);
        next = index + 1;
    }
    if allow != Allow::Rot && !life.is_volatile() && !found.lost.is_empty() {
        return Err(format!("lost {:?} without rot", found.lost));
    }
    let covered = |index: u64| {
        found.entries.contains_key(&index)
            || found.lost.iter().any(|(from, to)| (*from..*to).contains(&index))
            || found.is_vacant(index)
    };
    let last = found.entries.keys().next_back().map_or(start, |last| last + 1);
    match (start..last.max(start)).chain(last..end.min(last + 1)).find(|index| !covered(*index)) {
        Some(index) => Err(format!("entry {index} neither read nor reported")),
        None => Ok(()),
    }
}

/// The readers' view agrees with the entries.
fn verify_messages(log: &Log, found: &Found, allow: Allow) -> Result<(), String> {
    let mut from = log.log_start().1;
    let until = log.ready_end().1;
    let mut seen = BTreeMap::new();
    while from < until {
        match log.read(from, until, 8 << 10) {
            Ok(run) => {
                if run.next <= from {
                    return Err(format!("no progress at offset {from}"));
                }
                let mut at = run.first;
                for slice in &run.slices {
                    for view in EntryViews::new(slice) {
                        let Ok(view) = view else {
                            if allow == Allow::Rot {
                                break;
                            }
                            return Err(format!("a run at offset {from} holds no entries"));
                        };
                        if view.header.base_offset != at && allow != Allow::Rot {
                            return Err(format!("a run passes over offset {at}"));
                        }
                        at = view.header.end_offset();
                        if view.check_body().is_ok() {
                            seen.insert(view.header.index.0, view.header.header_crc);
                        }
                    }
                }
                if at != run.next && allow != Allow::Rot {
                    let (segments, damages) = (log.segments(), log.damages());
                    return Err(format!(
                        "a run from {from} to {until} ends at offset {at} and says {}\n{run:?}\n{segments:?}\n{damages:?}",
                        run.next
                    ));
                }
                from = run.next;
            }
            Err(ReadError::Damaged(damage)) => from = damage.end_offset,
            Err(ReadError::Vacant(vacancy)) => {
                if !vacancy.holds_offset(from) {
                    return Err(format!("offset {from} is said to lie in {vacancy:?}"));
                }
                from = vacancy.end_offset;
            }
            Err(_) if allow == Allow::Rot => from = Offset(from.0 + 1),
            Err(error) => return Err(format!("reading offset {from}: {error}")),
        }
    }
    for (index, crc) in &seen {
        let entry = found.entries.get(index).filter(|entry| entry.header.header_crc == *crc);
        if entry.is_none_or(|entry| entry.header.kind != EntryKind::Data) {
            let (segments, damages) = (log.segments(), log.damages());
            return Err(format!(
                "readers see entry {index}, which is not there\n{segments:?}\n{damages:?}"
            ));
        }
    }
    let data = found.entries.iter().filter(|(_, entry)| entry.header.kind == EntryKind::Data);
    for (index, _) in data {
        if !seen.contains_key(index) && allow != Allow::Rot {
            return Err(format!("readers miss entry {index}"));
        }
    }
    Ok(())
}

fn verify_snapshot(life: &Life, opened: &OpenedLog, allow: Allow) -> Result<(), String> {
    let index = opened.snapshot.as_ref().map(|(index, _)| index.0);
    if let Some((index, state)) = &opened.snapshot
        && !life.snapshots.get(&index.0).is_some_and(|states| states.contains(state))
    {
        return Err(format!("snapshot at {index} was never written"));
    }
    if allow != Allow::Rot && index < life.snapshot_durable {
        return Err(format!("snapshot {:?} is gone, found {index:?}", life.snapshot_durable));
    }
    Ok(())
}

/// From here on what recovery serves is what there is.
fn adopt(life: &mut Life, opened: &OpenedLog) -> Result<(), String> {
    let log = &opened.log;
    let (start, end) = (log.log_start(), log.log_end());
    let kept = read_entries(log, start.0.0, end.0.0, Allow::Rot)?.entries;
    life.written.retain(|index, _| *index < start.0.0 || kept.contains_key(index));
    life.written.retain(|index, _| *index < end.0.0);
    life.settled.retain(|index| *index < end.0.0);
    life.recovered = end.0.0;
    life.ready = (end.0.0, end.1.0);
    life.acked = if life.is_volatile() { 0 } else { end.0.0 };
    life.starts = vec![start.0.0];
    life.damages.clone_from(&opened.damages);
    life.drop_asked = false;
    life.snapshot_durable = opened.snapshot.as_ref().map(|(index, _)| index.0);
    Ok(())
}
