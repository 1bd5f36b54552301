//! Owns what the catalog asks of the log that orders metadata commands, and the form of that log in which
//! one broker orders them alone. Never judges a command. Driven by the catalog; an implementation calls
//! `Catalog::notify` when it has something to tell.
//!
//! ```text
//!   catalog: check against the tail --> append(term) ---> the log ---> take(): Applied, in order, everywhere
//!                                                              \-----> take(): Leading, as leaderships begin
//! ```
//! The order of `append`s in one term is the order of the log, and only who leads a term appends in it: so
//! the catalog knows that what it checked against its tail is applied to exactly that.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::metadata::Command;
use postrider_protocol::entry::EntryKind;
use postrider_protocol::error::ErrorBody;
use postrider_protocol::types::{EntryIndex, LeaderEpoch};
use postrider_storage::{Log, NewEntry};

use crate::join::hub::lock;
use crate::join::leader::refusal;

/// What the log of commands has to tell, in the order in which it happened.
pub(crate) enum MetadataEvent {
    /// This broker orders the commands from here on; everything before is applied, and what it appended in a term
    /// before and is not applied is lost.
    Leading {
        /// In this term.
        term: u64,
    },
    /// A command is committed.
    Applied {
        /// Its entry.
        index: EntryIndex,
        /// The leadership that appended it.
        term: u64,
        /// What it says.
        command: Box<Command>,
    },
}

/// See the module.
pub(crate) trait MetadataLog: Send + Sync {
    /// Appends a command that was checked against everything appended before.
    ///
    /// # Errors
    /// It is not appended: the store takes nothing, or this broker does not order commands in `term`.
    fn append(&self, now: Now, term: u64, command: &Command) -> Result<(), ErrorBody>;

    /// The next thing that happened. Never blocks.
    fn take(&self) -> Option<MetadataEvent>;

    /// Keeps a snapshot of everything below `end`; `false` if there is no room for it now.
    fn write_snapshot(&self, end: EntryIndex, snapshot: Bytes) -> bool;

    /// Where the newest snapshot ends.
    fn snapshot_end(&self) -> EntryIndex;
}

/// A log of the store that this broker alone appends to.
pub(crate) struct LocalLog {
    log: Log,
    term: u64,
    state: Mutex<LocalState>,
}

struct LocalState {
    told_leading: bool,
    /// Appended and not told. Bound: `requests_max` of every session.
    appended: VecDeque<(EntryIndex, Command)>,
}

impl LocalLog {
    pub(crate) fn new(log: Log, term: u64) -> Self {
        let state = LocalState { told_leading: false, appended: VecDeque::new() };
        Self { log, term, state: Mutex::new(state) }
    }
}

impl MetadataLog for LocalLog {
    fn append(&self, now: Now, term: u64, command: &Command) -> Result<(), ErrorBody> {
        assert_eq!(term, self.term, "a log of one broker has one term");
        let mut state = lock(&self.state);
        let index = append_command(&self.log, now, term, command)?;
        state.appended.push_back((index, command.clone()));
        Ok(())
    }

    fn take(&self) -> Option<MetadataEvent> {
        let mut state = lock(&self.state);
        if !state.told_leading {
            state.told_leading = true;
            return Some(MetadataEvent::Leading { term: self.term });
        }
        let (ready, _offset) = self.log.ready_end();
        if state.appended.front()?.0 >= ready {
            return None;
        }
        let (index, command) = state.appended.pop_front()?;
        let command = Box::new(command);
        Some(MetadataEvent::Applied { index, term: self.term, command })
    }

    fn write_snapshot(&self, end: EntryIndex, snapshot: Bytes) -> bool {
        self.log.write_snapshot(end, snapshot)
    }

    fn snapshot_end(&self) -> EntryIndex {
        self.log.snapshot_index().unwrap_or_default()
    }
}

/// Appends a command to a log of the store.
///
/// # Errors
/// The store takes nothing more.
pub(crate) fn append_command(
    log: &Log,
    now: Now,
    term: u64,
    command: &Command,
) -> Result<EntryIndex, ErrorBody> {
    let body = command.encode();
    let entry = NewEntry {
        kind: EntryKind::Metadata,
        flags: 0,
        leader_epoch: LeaderEpoch(u32::try_from(term).unwrap_or(u32::MAX)),
        append_time: now.wall,
        record_count: 0,
        seq_count: 0,
        body_crc: crc32fast::hash(&body),
        body,
        trailer: Bytes::new(),
    };
    match log.append(entry) {
        Ok(appended) => Ok(appended.index),
        Err(error) => Err(refusal(error).error()),
    }
}
