//! One use of a segment file: a run of entries of one log.
//!
//! Owns the file handle, the mapping and the index of that use. The I/O thread appends (through the
//! group writer, which calls [`Segment::extend`]); readers take slices of the mapping below the log's
//! ready end. Handles and mappings are opened when needed and closed again, the longest unused first.
//!
//! ```text
//! open --roll--> sealed --trim, drop, thin--> retired --last slice gone--> the file may be reused
//! ```

use std::io;
use std::io::IoSlice;
use std::sync::Arc;

use postrider_protocol::types::{EntryIndex, Offset, TimestampMs};

use super::cursor::End;
use super::hold::{Hold, Holds};
use super::index::{EntryPlace, SegmentIndex, walk};
use super::ring::Ring;
use crate::LogKey;
use crate::disk::{Disk, DiskFile, DiskMap, OpenMode};
use crate::format::manifest::ManifestSegment;
use crate::format::names;
use crate::format::segment::{ENTRIES_START, SegmentFooter, SegmentHeader};
use crate::format::{SECTOR_U64, sector_ceil};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// What never changes about a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFacts {
    pub(crate) file: u32,
    pub(crate) file_len: u64,
    pub(crate) seq: u64,
    pub(crate) salt: u64,
    pub(crate) base: End,
    /// Header crc of the entry before the first one.
    pub(crate) base_chain_crc: u32,
    /// It holds a part of its entries, and markers in place of the others.
    pub(crate) sparse: bool,
}

impl SegmentFacts {
    pub(crate) fn header(&self, key: LogKey, incarnation: u64) -> SegmentHeader {
        SegmentHeader {
            file: self.file,
            chain_crc: self.base_chain_crc,
            key,
            incarnation,
            seq: self.seq,
            salt: self.salt,
            base_index: self.base.0,
            base_offset: self.base.1,
            sparse: self.sparse,
        }
    }

    /// By which its markers are known, if it has any.
    pub(crate) fn marker_salt(&self) -> Option<u64> {
        self.sparse.then_some(self.salt)
    }
}

/// How far a segment is filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentEnd {
    pub(crate) end: End,
    /// One past the last byte of the last entry, or of the frame around it.
    pub(crate) position: u64,
    pub(crate) last_time: TimestampMs,
    pub(crate) sealed: bool,
}

#[derive(Debug)]
pub(crate) struct SegmentState {
    pub(crate) end: SegmentEnd,
    pub(crate) index: SegmentIndex,
}

enum MapState {
    Unmapped,
    Mapped(Arc<dyn DiskMap>),
    /// The file waits for reuse: nobody may map it as this segment any more.
    Retired,
}

/// Why a segment cannot be read.
#[derive(Debug)]
pub(crate) enum MapError {
    /// Retention was faster than the reader.
    Retired,
    Io(io::Error),
}

/// See the module.
pub(crate) struct Segment {
    pub(crate) facts: SegmentFacts,
    pub(crate) state: Mutex<SegmentState>,
    map: Mutex<MapState>,
    holds: Arc<Holds>,
    handle: Mutex<Option<Arc<dyn DiskFile>>>,
    /// Written since the last sync; the segment is in the writer's list of dirty ones.
    pub(crate) dirty: AtomicBool,
    /// Its pages may not be in memory.
    pub(crate) cold: AtomicBool,
    handle_used: AtomicBool,
    map_used: AtomicBool,
    /// Somebody is about to give it up or to write it again in part.
    pub(crate) thinning: AtomicBool,
    /// Its messages that were live when it was found not worth to be written again.
    pub(crate) declined: AtomicU64,
}

/// What opening files and mappings needs.
pub(crate) struct Files {
    pub(crate) disk: Arc<dyn Disk>,
    /// Segments whose file is open.
    handles: Ring<Segment>,
    /// Segments that are mapped.
    maps: Ring<Segment>,
}

impl Files {
    pub(crate) fn new(disk: Arc<dyn Disk>, open_files_max: usize, map_max: usize) -> Self {
        Self { disk, handles: Ring::new(open_files_max), maps: Ring::new(map_max) }
    }

    pub(crate) fn mapped(&self) -> usize {
        self.maps.len()
    }
}

impl Segment {
    /// A segment without entries whose file is open.
    pub(crate) fn fresh(facts: SegmentFacts, handle: Arc<dyn DiskFile>) -> Self {
        let end = SegmentEnd {
            end: facts.base,
            position: ENTRIES_START,
            last_time: TimestampMs(0),
            sealed: false,
        };
        Self::with(facts, end, SegmentIndex::new(ENTRIES_START), Some(handle))
    }

    /// A segment that was there when the store opened. Its index is made when somebody reads it.
    pub(crate) fn recovered(at: &ManifestSegment, file_len: u64) -> Self {
        let facts = SegmentFacts {
            file: at.file,
            file_len,
            seq: at.seq,
            salt: at.salt,
            base: (at.base_index, at.base_offset),
            base_chain_crc: at.base_chain_crc,
            sparse: at.sparse,
        };
        let end = SegmentEnd {
            end: (at.end_index, at.end_offset),
            position: at.end_position,
            last_time: at.last_time,
            sealed: at.sealed,
        };
        let segment = Self::with(facts, end, SegmentIndex::new(at.end_position), None);
        segment.cold.store(true, Ordering::Relaxed);
        segment
    }

    fn with(
        facts: SegmentFacts,
        end: SegmentEnd,
        index: SegmentIndex,
        handle: Option<Arc<dyn DiskFile>>,
    ) -> Self {
        Self {
            facts,
            state: Mutex::new(SegmentState { end, index }),
            map: Mutex::new(MapState::Unmapped),
            holds: Holds::new(),
            handle: Mutex::new(handle),
            dirty: AtomicBool::new(false),
            cold: AtomicBool::new(false),
            handle_used: AtomicBool::new(false),
            map_used: AtomicBool::new(false),
            thinning: AtomicBool::new(false),
            declined: AtomicU64::new(u64::MAX),
        }
    }

    /// A part of another one, in a file of its own that is being written.
    pub(crate) fn sparse(facts: SegmentFacts, end: SegmentEnd, handle: Arc<dyn DiskFile>) -> Self {
        Self::with(facts, end, SegmentIndex::new(end.position), Some(handle))
    }

    pub(crate) fn end(&self) -> SegmentEnd {
        self.state.lock().end
    }

    /// As a manifest describes it now.
    pub(crate) fn manifest(&self) -> ManifestSegment {
        let end = self.end();
        ManifestSegment {
            file: self.facts.file,
            sealed: end.sealed,
            sparse: self.facts.sparse,
            seq: self.facts.seq,
            salt: self.facts.salt,
            base_index: self.facts.base.0,
            base_offset: self.facts.base.1,
            end_index: end.end.0,
            end_offset: end.end.1,
            end_position: end.position,
            last_time: end.last_time,
            base_chain_crc: self.facts.base_chain_crc,
        }
    }

    /// Takes up what a group wrote: entries from `places`, and gaps before them and behind, up to
    /// `position`. Returns how many holes there are now.
    pub(crate) fn extend(&self, places: &[EntryPlace], position: u64) -> usize {
        let mut state = self.state.lock();
        let SegmentState { end, index } = &mut *state;
        for place in places {
            index.add_gap(end.position, place.position);
            index.add(place);
            end.position = place.end();
            end.end = (EntryIndex(place.index.0 + 1), place.end_offset);
            end.last_time = place.time;
        }
        index.add_gap(end.position, position);
        end.position = position;
        index.holes.len()
    }

    pub(crate) fn seal(&self) {
        self.state.lock().end.sealed = true;
    }

    /// The file, opened if need be.
    pub(crate) fn handle(self: &Arc<Self>, files: &Files) -> io::Result<Arc<dyn DiskFile>> {
        self.handle_used.store(true, Ordering::Relaxed);
        let mut held = self.handle.lock();
        if let Some(handle) = &*held {
            return Ok(Arc::clone(handle));
        }
        let handle = files.disk.open(&names::segment(self.facts.file), OpenMode::ReadWrite)?;
        *held = Some(Arc::clone(&handle));
        drop(held);
        self.note_handle(files);
        Ok(handle)
    }

    /// Enters the open file into the list of open ones and closes the longest unused.
    pub(crate) fn note_handle(self: &Arc<Self>, files: &Files) {
        files.handles.insert(self, |other| {
            if other.handle_used.swap(false, Ordering::Relaxed) {
                return false;
            }
            *other.handle.lock() = None;
            true
        });
    }

    /// The mapping of the whole file, made if need be.
    pub(crate) fn map(self: &Arc<Self>, files: &Files) -> Result<Hold, MapError> {
        self.map_used.store(true, Ordering::Relaxed);
        {
            let held = self.map.lock();
            match &*held {
                MapState::Mapped(map) => return Ok(self.holds.hold(Arc::clone(map))),
                MapState::Retired => return Err(MapError::Retired),
                MapState::Unmapped => {}
            }
        }
        let handle = self.handle(files).map_err(MapError::Io)?;
        let mut held = self.map.lock();
        match &*held {
            MapState::Mapped(map) => return Ok(self.holds.hold(Arc::clone(map))),
            MapState::Retired => return Err(MapError::Retired),
            MapState::Unmapped => {}
        }
        let map = handle.map().map_err(MapError::Io)?;
        let hold = self.holds.hold(Arc::clone(&map));
        *held = MapState::Mapped(map);
        drop(held);
        files.maps.insert(self, |other| {
            if other.map_used.swap(false, Ordering::Relaxed) {
                return false;
            }
            other.unmap();
            true
        });
        Ok(hold)
    }

    /// Lets go of the mapping; slices that are out keep it alive.
    pub(crate) fn unmap(&self) {
        let mut held = self.map.lock();
        if matches!(&*held, MapState::Mapped(_)) {
            *held = MapState::Unmapped;
        }
    }

    /// Ends this use of the file. The file must not be written again before the holds are gone.
    pub(crate) fn retire(&self) -> Arc<Holds> {
        *self.handle.lock() = None;
        *self.map.lock() = MapState::Retired;
        Arc::clone(&self.holds)
    }

    /// Writes to the file unless it is not this segment's any more; the file cannot be given to another
    /// use meanwhile. Tells whether it wrote.
    pub(crate) fn write_if_owned(
        self: &Arc<Self>,
        files: &Files,
        at: u64,
        bytes: &[u8],
    ) -> io::Result<bool> {
        let handle = self.handle(files)?;
        let map = self.map.lock();
        if matches!(&*map, MapState::Retired) {
            return Ok(false);
        }
        handle.write_at(at, &[IoSlice::new(bytes)])?;
        drop(map);
        Ok(true)
    }

    /// Whether the file is not this segment's any more.
    pub(crate) fn is_retired(&self) -> bool {
        matches!(&*self.map.lock(), MapState::Retired)
    }

    /// Drops the file's pages from the cache. What is written and not yet synced stays.
    pub(crate) fn cool(self: &Arc<Self>, files: &Files) -> io::Result<()> {
        self.unmap();
        self.cold.store(true, Ordering::Relaxed);
        self.handle(files)?.drop_cache(0..self.facts.file_len);
        Ok(())
    }

    /// Makes the index whole, from the footer or by walking the entries.
    pub(crate) fn load_index(self: &Arc<Self>, map: &Hold) {
        let (end, from) = {
            let state = self.state.lock();
            if state.index.is_whole() {
                return;
            }
            (state.end, state.index.from)
        };
        // A footer knows no vacancies, and a sparse segment is short.
        let footed = end.sealed && from == end.position && !self.facts.sparse;
        let loaded = if footed { self.footer(map, &end) } else { None };
        let before = loaded.unwrap_or_else(|| {
            let bytes = map.window(ENTRIES_START..from);
            walk(&bytes, ENTRIES_START, self.facts.base.0..end.end.0, self.facts.marker_salt())
        });
        let mut state = self.state.lock();
        if state.index.from == from {
            state.index.prepend(before);
        }
    }

    fn footer(&self, map: &Hold, end: &SegmentEnd) -> Option<SegmentIndex> {
        let at = sector_ceil(end.position);
        let bytes = map.window(at..self.facts.file_len);
        let footer = SegmentFooter::decode(&bytes).ok()?;
        let ours = footer.salt == self.facts.salt
            && footer.end_position == end.position
            && footer.end_index == end.end.0;
        if !ours {
            return None;
        }
        let mut index = SegmentIndex::new(ENTRIES_START);
        index.marks = footer.marks;
        index.holes = footer.holes;
        index.epochs = footer.epochs;
        Some(index)
    }

    /// The footer of the sealed segment and where it goes; none when it does not fit or its index is
    /// not whole.
    pub(crate) fn make_footer(&self) -> Option<(u64, Vec<u8>)> {
        let state = self.state.lock();
        let SegmentState { end, index } = &*state;
        if !end.sealed || !index.is_whole() || self.facts.sparse {
            return None;
        }
        let at = sector_ceil(end.position);
        let len = SegmentFooter::encoded_len(index.marks.len(), index.holes.len()) as u64;
        if at + len > self.facts.file_len {
            return None;
        }
        let footer = SegmentFooter {
            salt: self.facts.salt,
            end_index: end.end.0,
            end_offset: end.end.1,
            end_position: end.position,
            last_time: end.last_time,
            epochs: index.epochs,
            marks: index.marks.clone(),
            holes: index.holes.clone(),
        };
        Some((at, footer.encode()))
    }

    pub(crate) fn contains(&self, offset: Offset) -> bool {
        self.facts.base.1 <= offset && offset < self.end().end.1
    }
}

/// Positions below this hold entries; the rest of the file is for the footer.
pub(crate) fn capacity(file_len: u64) -> u64 {
    let footer = 2048 + file_len / 512;
    file_len.saturating_sub(footer) / SECTOR_U64 * SECTOR_U64
}

/// The file length that holds `position` below its capacity.
pub(crate) fn file_len_for(position: u64) -> u64 {
    let len = (position + position / 256 + 4096).next_multiple_of(4096);
    assert!(capacity(len) >= position, "{position} in {len}");
    len
}
