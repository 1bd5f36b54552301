//! A disk that makes the code above it wrong: planted bugs, each by lying about one thing.
//!
//! Production code has no switches for this. A bug of the store looks, from the disk, like a call that
//! never came (a sync) or like bytes that nobody looked at; so a wrapper that swallows the call or hides the
//! bytes turns the real store into the broken one. Formats are public, hence a field can be changed in what
//! is written and checksummed again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use postrider_protocol::entry::EntryHeader;
use postrider_storage::disk::{DiskFile, DiskMap};
use postrider_storage::format::journal::{GroupHeader, GroupTrailer, Record, decode_records};
use postrider_storage::format::manifest::Manifest;
use postrider_storage::format::segment::{ENTRIES_START, FrameHeader, FrameTrailer, SegmentHeader};
use postrider_storage::format::vacancy::{MARKER_BYTES, VacancyMarker};
use postrider_storage::format::{SECTOR, SECTOR_U64};
use postrider_storage::{Disk, OpenMode, SimDisk, Vacancy};

/// What the store does at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    Open,
    Run,
    Maintain,
}

/// A bug, by the rule that it breaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Bug {
    None,
    /// Acknowledges journaled groups before their sync.
    AckBeforeJournalSync,
    /// Acknowledges direct writes before their sync.
    AckBeforeSegmentSync,
    /// Never syncs directories of new files.
    NoDirectorySync,
    /// Recovery believes the page cache: syncs nothing, and writes nothing that reads back equal.
    TrustCache,
    /// Recovery writes nothing to segments that reads back equal, and syncs everything.
    SkipEqual,
    /// Recovery does not sync its group.
    RecoveryGroupUnsynced,
    /// Recovery does not sync the manifest.
    RecoveryManifestUnsynced,
    /// Recovery does not look at frames.
    JournalOnly,
    /// Recovery does not look at the journal.
    FramesOnly,
    /// Recovery cuts at the first damage, wherever D is.
    CutBelowWatermark,
    /// Writes the manifest before the segments are synced.
    CheckpointBeforeSegmentSync,
    /// Reuses what a manifest released before that manifest is synced.
    ReuseBeforeManifestSync,
    /// Frames do not tell one use of a file from another.
    NoSalt,
    /// Tries a failed sync again and believes the success.
    RetryFailedSync,
    /// Releases files before the Trim or Drop is synced.
    OrdersUnsynced,
    /// Names a sparse segment before its file is synced.
    SparseUnsynced,
    /// Releases the file of a segment that is given up before the record is synced.
    ThinUnsynced,
    /// Leaves an entry out of a sparse segment that is live.
    LiveLeftOut,
    /// Does not know to what the entry behind a marker links.
    ChainNotRestarted,
}

/// Kinds of files, by their path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Journal,
    Segment,
    Manifest,
    Other,
}

fn kind_of(path: &str) -> Kind {
    if path.starts_with("journal/") {
        Kind::Journal
    } else if path.starts_with("segments/") {
        Kind::Segment
    } else if path.starts_with("manifest.") {
        Kind::Manifest
    } else {
        Kind::Other
    }
}

/// See the module.
pub(crate) struct Mutant {
    inner: SimDisk,
    state: Arc<State>,
}

struct State {
    bug: Bug,
    phase: AtomicU8,
    /// The last journal group holds a Trim or Drop and nothing else that needs a sync.
    orders_only: AtomicBool,
    /// The same of Vacate and Replace.
    thins_only: AtomicBool,
    /// Files that are sparse segments now.
    sparse: Mutex<BTreeSet<String>>,
    moved: Moved,
}

/// crcs of group headers as the store knows them, to what they became on the disk. Shared by all lives of
/// a directory.
pub(crate) type Moved = Arc<Mutex<BTreeMap<u32, u32>>>;

impl State {
    fn translate(&self, crc: u32) -> u32 {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut crc = crc;
        while let Some(next) = moved.get(&crc) {
            crc = *next;
        }
        crc
    }

    fn moved(&self, from: u32, to: &GroupHeader) {
        let to = GroupHeader::crc_of(&to.encode());
        if from != to {
            self.moved.lock().unwrap_or_else(PoisonError::into_inner).insert(from, to);
        }
    }

    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    /// Whether a sync of such a file is left out and reported as done.
    fn swallows_sync(&self, kind: Kind) -> bool {
        let (open, maintain) = (self.is_in(Phase::Open), self.is_in(Phase::Maintain));
        let run = self.is_in(Phase::Run);
        match self.bug {
            Bug::AckBeforeJournalSync => run && kind == Kind::Journal,
            Bug::AckBeforeSegmentSync => run && kind == Kind::Segment,
            Bug::TrustCache => open,
            Bug::RecoveryGroupUnsynced => open && kind == Kind::Journal,
            Bug::RecoveryManifestUnsynced => open && kind == Kind::Manifest,
            Bug::CheckpointBeforeSegmentSync => maintain && kind == Kind::Segment,
            Bug::ReuseBeforeManifestSync => maintain && kind == Kind::Manifest,
            Bug::OrdersUnsynced => {
                run && kind == Kind::Journal && self.orders_only.load(Ordering::Relaxed)
            }
            Bug::ThinUnsynced => {
                run && kind == Kind::Journal && self.thins_only.load(Ordering::Relaxed)
            }
            _ => false,
        }
    }
}

impl Mutant {
    pub(crate) fn new(inner: SimDisk, bug: Bug, moved: Moved) -> Arc<Self> {
        let state = State {
            bug,
            phase: AtomicU8::new(Phase::Open as u8),
            orders_only: AtomicBool::new(false),
            thins_only: AtomicBool::new(false),
            sparse: Mutex::default(),
            moved,
        };
        Arc::new(Self { inner, state: Arc::new(state) })
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.state.phase.store(phase as u8, Ordering::Relaxed);
    }
}

impl Disk for Mutant {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner.open(path, mode)?;
        if self.state.bug == Bug::None {
            return Ok(inner);
        }
        let kind = kind_of(path);
        let (path, state) = (path.to_string(), Arc::clone(&self.state));
        Ok(Arc::new(MutantFile { inner, kind, path, state }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.create_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let swallowed = match self.state.bug {
            // The root's names are made once; the bug is about files that come later.
            Bug::NoDirectorySync => !dir.is_empty() && !self.state.is_in(Phase::Open),
            Bug::TrustCache => self.state.is_in(Phase::Open),
            _ => false,
        };
        if swallowed { Ok(()) } else { self.retrying(|| self.inner.sync_dir(dir)) }
    }

    fn sync_all_files(&self) -> io::Result<()> {
        if self.state.swallows_sync(Kind::Segment) {
            return Ok(());
        }
        self.retrying(|| self.inner.sync_all_files())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock()
    }
}

impl Mutant {
    fn retrying(&self, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let result = sync();
        if self.state.bug == Bug::RetryFailedSync && result.is_err() { sync() } else { result }
    }
}

struct MutantFile {
    inner: Arc<dyn DiskFile>,
    kind: Kind,
    path: String,
    state: Arc<State>,
}

impl DiskFile for MutantFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.inner.allocate(bytes)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let bug = self.state.bug;
        let skips_equal = matches!(bug, Bug::TrustCache | Bug::SkipEqual);
        if skips_equal && self.kind == Kind::Segment && self.state.is_in(Phase::Open) {
            let mut present = vec![0; bytes.len()];
            let read = self.inner.read_at(offset, &mut present)?;
            if read == bytes.len() && present == bytes {
                return Ok(());
            }
        }
        if self.kind == Kind::Journal {
            self.note_group(&bytes);
        }
        if self.kind == Kind::Manifest {
            bytes = self.rewrite_manifest(bytes);
        }
        if self.kind == Kind::Segment {
            self.rewrite_sparse(offset, &mut bytes);
        }
        for sector in aligned(offset, &mut bytes).chunks_exact_mut(SECTOR) {
            self.rewrite_sector(sector);
        }
        self.inner.write_at(offset, &[IoSlice::new(&bytes)])
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, buf)?;
        if self.state.is_in(Phase::Open) {
            self.distort(offset, &mut buf[..read])?;
        }
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        let early = self.state.bug == Bug::SparseUnsynced && self.is_sparse();
        if early || self.state.swallows_sync(self.kind) {
            return Ok(());
        }
        let result = self.inner.sync();
        if self.state.bug == Bug::RetryFailedSync && result.is_err() {
            return self.inner.sync();
        }
        result
    }

    fn map(&self) -> io::Result<Arc<dyn DiskMap>> {
        self.inner.map()
    }

    fn drop_cache(&self, range: Range<u64>) {
        self.inner.drop_cache(range);
    }
}

impl MutantFile {
    /// Remembers what kind of group was written last.
    fn note_group(&self, bytes: &[u8]) {
        let Ok((header, _)) = GroupHeader::decode(bytes) else { return };
        let Some(records) = records_of(&header, bytes) else { return };
        let orders =
            |record: &Record<'_>| matches!(record, Record::Trim { .. } | Record::Drop { .. });
        self.state.orders_only.store(records.iter().all(orders), Ordering::Relaxed);
        let thins =
            |record: &Record<'_>| matches!(record, Record::Vacate { .. } | Record::Replace { .. });
        self.state.thins_only.store(records.iter().all(thins), Ordering::Relaxed);
    }

    fn is_sparse(&self) -> bool {
        self.state.sparse.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.path)
    }

    /// Follows which files are sparse, and changes what is written to them.
    fn rewrite_sparse(&self, offset: u64, bytes: &mut [u8]) {
        if offset == 0
            && let Ok(header) = SegmentHeader::decode(bytes)
        {
            let mut sparse = self.state.sparse.lock().unwrap_or_else(PoisonError::into_inner);
            if header.sparse {
                sparse.insert(self.path.clone());
                drop(sparse);
                self.spoil(header.salt, bytes);
            } else {
                sparse.remove(&self.path);
            }
        }
    }

    /// The whole of a sparse segment is written at once in these runs.
    fn spoil(&self, salt: u64, bytes: &mut [u8]) {
        let start = usize::try_from(ENTRIES_START).expect("4096 fits");
        for at in (start..bytes.len()).step_by(8) {
            let marker = VacancyMarker::decode(&bytes[at..]).ok();
            let entry = EntryHeader::decode(&bytes[at..]).ok();
            match (self.state.bug, marker, entry) {
                (Bug::ChainNotRestarted, Some(marker), _) => {
                    let marker = VacancyMarker { chain_crc: marker.chain_crc ^ 2, ..marker };
                    bytes[at..at + MARKER_BYTES].copy_from_slice(&marker.encode());
                }
                (Bug::LiveLeftOut, _, Some(entry)) => {
                    let from = (entry.index, entry.base_offset);
                    let vacancy = Vacancy::new(from, (entry.next_index(), entry.end_offset()));
                    let marker = VacancyMarker { salt, vacancy, chain_crc: entry.header_crc };
                    bytes[at..at + entry.total_len as usize].fill(0);
                    bytes[at..at + MARKER_BYTES].copy_from_slice(&marker.encode());
                    return;
                }
                _ => {}
            }
        }
    }

    fn rewrite_manifest(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Ok(mut manifest) = Manifest::decode(&bytes) else { return bytes };
        manifest.last_journal_crc = self.state.translate(manifest.last_journal_crc);
        if self.state.bug == Bug::CutBelowWatermark {
            manifest.durable_group = 0;
        }
        manifest.encode()
    }

    /// Changes what a sector says, and keeps the chain between groups whole.
    fn rewrite_sector(&self, sector: &mut [u8]) {
        let bug = self.state.bug;
        let durable = |durable: u64| if bug == Bug::CutBelowWatermark { 0 } else { durable };
        if let Ok((header, crc)) = GroupHeader::decode(sector) {
            let changed = GroupHeader {
                durable_group: durable(header.durable_group),
                prev_crc: self.state.translate(header.prev_crc),
                ..header
            };
            self.state.moved(crc, &changed);
            sector.copy_from_slice(&changed.encode());
        } else if let Ok(trailer) = GroupTrailer::decode(sector) {
            let durable_group = durable(trailer.durable_group);
            sector.copy_from_slice(&GroupTrailer { durable_group, ..trailer }.encode());
        } else if let Ok(header) = FrameHeader::decode(sector) {
            let durable_group = durable(header.durable_group);
            sector.copy_from_slice(&FrameHeader { durable_group, ..header }.encode());
        } else if let Ok(trailer) = FrameTrailer::decode(sector) {
            let durable_group = durable(trailer.durable_group);
            sector.copy_from_slice(&FrameTrailer { durable_group, ..trailer }.encode());
        }
    }

    /// Changes what recovery reads.
    fn distort(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bug = self.state.bug;
        if (bug, self.kind) == (Bug::FramesOnly, Kind::Journal) {
            buf.fill(0);
        }
        let salt = match (bug, self.kind) {
            (Bug::NoSalt, Kind::Segment) => {
                let mut sector = [0; SECTOR];
                self.inner.read_at(0, &mut sector)?;
                SegmentHeader::decode(&sector).ok().map(|header| header.salt)
            }
            _ => None,
        };
        for sector in aligned(offset, buf).chunks_exact_mut(SECTOR) {
            match bug {
                Bug::JournalOnly if sector.starts_with(b"PRFH") || sector.starts_with(b"PRFT") => {
                    sector.fill(1);
                }
                Bug::NoSalt => {
                    if let Some(salt) = salt {
                        with_salt(sector, salt);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn records_of<'a>(header: &GroupHeader, bytes: &'a [u8]) -> Option<Vec<Record<'a>>> {
    let body = bytes.get(SECTOR..SECTOR + header.body_len as usize)?;
    decode_records(body, header.count).ok()
}

/// The whole sectors of a range of a file.
fn aligned(offset: u64, bytes: &mut [u8]) -> &mut [u8] {
    let skip = usize::try_from(offset.next_multiple_of(SECTOR_U64) - offset).expect("a sector");
    let len = bytes.len();
    &mut bytes[skip.min(len)..]
}

fn with_salt(sector: &mut [u8], salt: u64) {
    if let Ok(header) = FrameHeader::decode(sector) {
        sector.copy_from_slice(&FrameHeader { salt, ..header }.encode());
    } else if let Ok(trailer) = FrameTrailer::decode(sector) {
        sector.copy_from_slice(&FrameTrailer { salt, ..trailer }.encode());
    }
}
