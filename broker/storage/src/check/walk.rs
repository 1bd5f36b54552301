//! The walk over one segment below the checkpoint: every entry, every marker, every gap between them.
//!
//! Owns the comparison of what is there with what the manifest says. Behind damage it goes on at the next
//! header that fits. Never reads past what the checkpoint covers.

use postrider_protocol::entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryView};
use postrider_protocol::types::{EntryIndex, TimestampMs};

use super::{Problem, SegmentReport};
use crate::error::OpenError;
use crate::format::journal::Damage;
use crate::format::manifest::ManifestSegment;
use crate::format::segment::{ENTRIES_START, FrameHeader, FrameTrailer, SegmentFooter};
use crate::format::vacancy::{MARKER_BYTES, VacancyMarker};
use crate::format::{SECTOR, SECTOR_U64, names, sector_ceil};
use crate::recovery::Window;

/// See the module.
pub(super) struct Walk<'a> {
    at: &'a ManifestSegment,
    damages: &'a [Damage],
    position: u64,
    next: EntryIndex,
    /// Header crc of the entry before; none behind damage.
    chain: Option<u32>,
    entries: u64,
    last_time: TimestampMs,
    footer: bool,
}

impl<'a> Walk<'a> {
    /// Begins at a segment's first entry. `chain` is what the segment before ended with, if known.
    pub(super) fn new(at: &'a ManifestSegment, damages: &'a [Damage], chain: Option<u32>) -> Self {
        Self {
            at,
            damages,
            position: ENTRIES_START,
            next: at.base_index,
            chain: chain.or(Some(at.base_chain_crc)),
            entries: 0,
            last_time: TimestampMs(0),
            footer: false,
        }
    }

    /// Header crc of the last entry; none behind damage.
    pub(super) fn chain(&self) -> Option<u32> {
        self.chain
    }

    pub(super) fn report(&self) -> SegmentReport {
        SegmentReport {
            file: self.at.file,
            base_index: self.at.base_index,
            end_index: self.at.end_index,
            entries: self.entries,
            last_time: self.last_time,
            footer: self.footer,
        }
    }

    /// Reads every entry up to the end that the manifest names.
    pub(super) fn run(
        &mut self,
        window: &mut Window,
        problems: &mut Vec<Problem>,
    ) -> Result<(), OpenError> {
        while self.next < self.at.end_index {
            if self.entry(window, problems)? || self.vacancy(window)? || self.skip_gap(window)? {
                continue;
            }
            let lost_at = (self.position, self.next);
            let found = self.resume(window)?;
            let end = found.unwrap_or(self.at.end_index);
            if end == lost_at.1 {
                let what = "damaged bytes between entries".to_string();
                self.report_at(lost_at.0, what, problems);
            } else if !self.is_known(lost_at.1, end) {
                let what = format!("entries {}..{end} cannot be read", lost_at.1);
                self.report_at(lost_at.0, what, problems);
            }
            if end > self.next {
                self.chain = None;
            }
            self.next = end;
        }
        Ok(())
    }

    /// Takes the entry at the position if it is the next one.
    fn entry(
        &mut self,
        window: &mut Window,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, OpenError> {
        let Some(header) = self.header(window)? else { return Ok(false) };
        if header.index != self.next {
            return Ok(false);
        }
        if let Some(chain) = self.chain
            && header.prev_header_crc != chain
        {
            let what = format!("entry {} does not link to the one before", header.index);
            self.report_at(self.position, what, problems);
        }
        let len = usize::try_from(header.total_len).unwrap_or(usize::MAX);
        let bytes = window.get(self.position, len)?.unwrap_or_default();
        match EntryView::split(bytes).and_then(|(entry, _)| entry.check_body()) {
            Ok(()) => self.entries += 1,
            Err(error) if !self.is_known(header.index, header.next_index()) => {
                let what = format!("entry {}: {error}", header.index);
                self.report_at(self.position, what, problems);
            }
            Err(_) => {}
        }
        self.chain = Some(header.header_crc);
        self.last_time = header.append_time;
        self.next = header.next_index();
        self.position += u64::from(header.total_len);
        Ok(true)
    }

    /// Takes the marker at the position if it goes on where the walk is.
    fn vacancy(&mut self, window: &mut Window) -> Result<bool, OpenError> {
        let Some(marker) = self.marker(window)? else { return Ok(false) };
        let vacancy = marker.vacancy;
        if vacancy.from_index != self.next || vacancy.end_index > self.at.end_index {
            return Ok(false);
        }
        // The chain begins anew, with what the marker says of the last entry that was here.
        self.chain = (marker.chain_crc != 0).then_some(marker.chain_crc);
        self.next = vacancy.end_index;
        self.position += MARKER_BYTES as u64;
        Ok(true)
    }

    fn marker(&self, window: &mut Window) -> Result<Option<VacancyMarker>, OpenError> {
        if !self.at.sparse {
            return Ok(None);
        }
        let bytes = window.get(self.position, MARKER_BYTES)?;
        let marker = bytes.and_then(|bytes| VacancyMarker::decode(bytes).ok());
        Ok(marker.filter(|marker| marker.salt == self.at.salt))
    }

    fn header(&self, window: &mut Window) -> Result<Option<EntryHeader>, OpenError> {
        let bytes = window.get(self.position, ENTRY_HEADER_BYTES)?;
        Ok(bytes.and_then(|bytes| EntryHeader::decode(bytes).ok()))
    }

    /// Steps over zeros up to a sector, or over a sector of a frame.
    fn skip_gap(&mut self, window: &mut Window) -> Result<bool, OpenError> {
        let sector = sector_ceil(self.position);
        let padding = usize::try_from(sector - self.position).unwrap_or(0);
        if padding > 0 {
            let bytes = window.get(self.position, padding)?;
            let zeros = bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
            // A frame whose header is damaged still begins at the sector.
            if zeros {
                self.position = sector;
            }
            return Ok(zeros);
        }
        let Some(bytes) = window.get(sector, SECTOR)? else { return Ok(false) };
        let salt = FrameHeader::decode(bytes)
            .map(|header| header.salt)
            .or_else(|_| FrameTrailer::decode(bytes).map(|trailer| trailer.salt));
        let frame = salt == Ok(self.at.salt);
        if frame {
            self.position = sector + SECTOR_U64;
        }
        Ok(frame)
    }

    /// Goes to the next entry that belongs to this segment; none up to its end.
    fn resume(&mut self, window: &mut Window) -> Result<Option<EntryIndex>, OpenError> {
        self.position = self.position.next_multiple_of(8);
        while self.position < self.at.end_position {
            if let Some(header) = self.header(window)?
                && (self.next..self.at.end_index).contains(&header.index)
            {
                return Ok(Some(header.index));
            }
            if let Some(marker) = self.marker(window)?
                && (self.next..self.at.end_index).contains(&marker.vacancy.from_index)
            {
                return Ok(Some(marker.vacancy.from_index));
            }
            self.position += 8;
        }
        Ok(None)
    }

    /// Whether a lost range is already reported as a damage of the log.
    fn is_known(&self, from: EntryIndex, end: EntryIndex) -> bool {
        self.damages.iter().any(|damage| damage.from_index <= from && end <= damage.end_index)
    }

    /// Compares the footer with the walk. A missing one is fine, and so is one that fails its checksum:
    /// a crash may tear it, and readers walk the segment then.
    pub(super) fn footer(
        &mut self,
        window: &mut Window,
        problems: &mut Vec<Problem>,
    ) -> Result<(), OpenError> {
        let position = sector_ceil(self.at.end_position);
        let Some(head) = window.get(position, 12)? else { return Ok(()) };
        if !head.starts_with(b"PRSF") {
            return Ok(());
        }
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let bytes = window.bytes(position, u64::from(len))?.unwrap_or_default();
        match SegmentFooter::decode(&bytes) {
            Ok(footer) if footer.salt == self.at.salt => {
                self.footer = footer.end_index == self.at.end_index
                    && footer.end_offset == self.at.end_offset;
                if !self.footer {
                    let what = "footer contradicts the manifest".to_string();
                    self.report_at(position, what, problems);
                }
            }
            // An earlier use of the file, or torn.
            Ok(_) | Err(_) => {}
        }
        Ok(())
    }

    fn report_at(&self, position: u64, what: String, problems: &mut Vec<Problem>) {
        problems.push(Problem { path: names::segment(self.at.file), position, what });
    }
}
