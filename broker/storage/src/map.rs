//! Read-only mappings of real files.
//!
//! Owns the unsafe code of reading through a mapping. Never writes, never truncates: appends go
//! through `pwritev`, and the store never shortens a file that may be mapped. Driven by `disk_os`.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use crate::disk::DiskMap;

/// Page size assumed where only a multiple matters (alignment of hints).
const PAGE_BYTES: usize = 4096;

/// Mapping of the whole length that a file had when it was mapped.
///
/// It is kept raw: a `&[u8]` over the whole file would alias the tail that `pwritev` still fills.
/// Slices exist only over ranges that are written and final.
pub(crate) struct OsMap {
    raw: MmapRaw,
}

impl OsMap {
    pub(crate) fn new(file: &std::fs::File) -> io::Result<Self> {
        Ok(Self { raw: MmapOptions::new().map_raw_read_only(file)? })
    }

    /// Lets the kernel forget the pages of a range; a later read faults them in again.
    pub(crate) fn drop_pages(&self, range: Range<usize>) {
        let end = range.end.min(self.raw.len());
        let start = range.start.next_multiple_of(PAGE_BYTES);
        if start >= end {
            return;
        }
        // SAFETY: the mapping is shared and file-backed, so a dropped page reads the same bytes
        // again from the page cache or the file. A refused hint changes nothing.
        let hint = unsafe {
            self.raw.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        };
        if let Err(error) = hint {
            tracing::debug!(%error, "dropping mapped pages was refused");
        }
    }

    /// The mapped bytes of a range.
    ///
    /// # Panics
    /// When the range does not lie within the mapping.
    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        assert!(range.start <= range.end, "range {range:?} is reversed");
        assert!(range.end <= self.raw.len(), "range {range:?} exceeds {}", self.raw.len());
        // SAFETY: the offset was just checked to lie within the mapping.
        let start = unsafe { self.raw.as_ptr().add(range.start) };
        // SAFETY: the range lies within the mapping, which lives as long as `self`; the store
        // hands out only ranges that it will never write again, and no file is ever shortened.
        unsafe { std::slice::from_raw_parts(start, range.end - range.start) }
    }
}

/// One range of a mapping; keeps the mapping alive for the `Bytes` that owns it.
struct MapSlice {
    map: Arc<OsMap>,
    range: Range<usize>,
}

impl AsRef<[u8]> for MapSlice {
    fn as_ref(&self) -> &[u8] {
        self.map.bytes(&self.range)
    }
}

impl DiskMap for OsMap {
    fn len(&self) -> usize {
        self.raw.len()
    }

    fn slice(self: Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(range.end <= self.raw.len(), "range {range:?} exceeds {}", self.raw.len());
        Bytes::from_owner(MapSlice { map: self, range })
    }

    fn load(&self, range: Range<usize>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let start = range.start - range.start % PAGE_BYTES;
        let loaded = self.raw.advise_range(Advice::PopulateRead, start, range.end - start);
        match loaded {
            // Kernels before 5.14 do not know the advice; reading ahead is the best they offer.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.raw.advise_range(Advice::WillNeed, start, range.end - start)
            }
            other => other,
        }
    }

    fn resident(&self, range: Range<usize>) -> bool {
        if range.is_empty() {
            return true;
        }
        assert!(range.end <= self.raw.len(), "range {range:?} exceeds {}", self.raw.len());
        let first = range.start - range.start % PAGE_BYTES;
        let mut at = first;
        while at < range.end {
            // One stack buffer covers 1 MiB of pages, so that no call allocates.
            let mut pages = [0_u8; 256];
            let bytes = (range.end - at).min(pages.len() * PAGE_BYTES);
            // SAFETY: `at` is below the mapping's length.
            let start = unsafe { self.raw.as_mut_ptr().add(at) };
            // SAFETY: the page-aligned range is mapped, and `pages` has a byte for each of its pages.
            let result = unsafe { libc::mincore(start.cast(), bytes, pages.as_mut_ptr()) };
            let count = bytes.div_ceil(PAGE_BYTES);
            if result != 0 || pages[..count].iter().any(|page| page & 1 == 0) {
                return false;
            }
            at += bytes;
        }
        true
    }
}
