//! Owns the keys of one generation: a hash table that grows by a page at a time (extendible hashing, Fagin et al.
//! 1979). Never removes a key, never moves more than one page. Driven by `generation`.
//!
//! ```text
//! hash bits:  [ directory | line in the page | ... ]
//!              │  directory: one entry per value of the first `depth` bits, 4 bytes
//!              ▼
//!              page: shares its first `page.depth` bits, and so stands in 2^(depth - page.depth) entries
//! ```
//! A full page is made larger by two fifths; a full one of 16 KiB is split in two, and only when all of the
//! directory's bits are in use is the directory (four bytes per page) doubled. So a search looks at one line per
//! generation however many keys there are, and an idle partition costs 64 bytes.

use super::fingerprint::Fingerprint;
use super::page::{Home, PAGE_LINES_MAX, Page, Slot, index, is_large};

/// Directory entries per page, at most. The hash spreads keys, so two are usual; if bytes that were read say otherwise
/// pages become large and slow instead of the directory.
const DIRECTORY_SPREAD_MAX: usize = 32;
/// Keys of a page that is not too large because it cannot be split. Bytes that come to more are refused.
const PAGE_KEYS_MAX: usize = 4 * PAGE_LINES_MAX;

/// See the module.
#[derive(Clone)]
pub(super) struct Table {
    directory: Vec<u32>,
    pages: Vec<Page>,
    /// Bits that choose a directory entry.
    depth: u32,
    len: u64,
    page_bytes: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self::of_pages(vec![Page::of(0, &[])], 0)
    }
}

impl Table {
    /// Of pages that stand by their leading bits, and cover all of these.
    fn of_pages(pages: Vec<Page>, len: u64) -> Self {
        let depth = pages.iter().map(Page::depth).max().unwrap_or(0);
        let entries = std::iter::zip(0.., &pages)
            .flat_map(|(at, page)| std::iter::repeat_n(at, 1 << (depth - page.depth())));
        let directory = entries.collect();
        let page_bytes = pages.iter().map(Page::bytes).sum();
        Self { directory, pages, depth, len, page_bytes }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        let spare = self.pages.capacity() - self.pages.len();
        self.page_bytes + spare * size_of::<Page>() + self.directory.capacity() * size_of::<u32>()
    }

    /// An upper bound of what `count` more keys add to [`Table::bytes`].
    pub(super) fn growth_bytes(&self, count: usize) -> usize {
        // A key may be the one that makes its page larger, or splits it: then there are two pages for
        // 142 % of its keys. Beside that, keys take a slot at the least load, and lists of pages double.
        let pages = count.min(self.pages.len());
        let pages = pages.saturating_mul(PAGE_STEP_BYTES);
        let slots = count.saturating_mul(KEY_BYTES_MAX);
        let doubled = self.directory.capacity() * size_of::<u32>()
            + self.pages.capacity() * size_of::<Page>();
        pages.saturating_add(slots).saturating_add(2 * doubled).saturating_add(LISTS_BYTES_MIN)
    }

    fn entry(&self, fingerprint: Fingerprint) -> usize {
        index(fingerprint.high.unbounded_shr(64 - self.depth))
    }

    /// Where the search for a key begins.
    pub(super) fn home(&self, fingerprint: Fingerprint) -> Home<'_> {
        let page = self.directory[self.entry(fingerprint)];
        self.pages[page as usize].home(fingerprint)
    }

    /// Puts a key in that is not there.
    pub(super) fn insert(&mut self, slot: Slot) {
        loop {
            let entry = self.entry(slot.fingerprint);
            let at = self.directory[entry] as usize;
            let page = &mut self.pages[at];
            if !page.is_full() {
                page.insert(slot);
                self.len += 1;
                return;
            }
            self.page_bytes -= page.bytes();
            if page.is_large() && self.can_split(at) {
                self.split(entry);
            } else {
                self.pages[at].grow();
            }
            self.page_bytes += self.pages[at].bytes();
        }
    }

    fn can_split(&self, at: usize) -> bool {
        let depth = self.pages[at].depth();
        let spread = self.directory.len() / self.pages.len();
        depth < self.depth || (depth < u64::BITS - 1 && 2 * spread <= DIRECTORY_SPREAD_MAX)
    }

    fn split(&mut self, entry: usize) {
        let at = self.directory[entry] as usize;
        let mut entry = entry;
        if self.pages[at].depth() == self.depth {
            self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
            self.depth += 1;
            entry *= 2;
        }
        let ones = self.pages[at].split();
        let half = 1_usize << (self.depth - ones.depth());
        let first = entry & !(2 * half - 1);
        let new = u32::try_from(self.pages.len()).expect("there are fewer pages than numbers");
        self.page_bytes += ones.bytes();
        self.pages.push(ones);
        self.directory[first + half..first + 2 * half].fill(new);
    }

    /// All keys by hash, a page at a time.
    pub(super) fn sorted(&self) -> impl Iterator<Item = Slot> {
        self.directory.chunk_by(|a, b| a == b).flat_map(|of_page| {
            of_page.first().map(|page| self.pages[*page as usize].sorted()).unwrap_or_default()
        })
    }

    /// The table of keys that come by hash; `None` if they do not spread as hashes do.
    pub(super) fn from_sorted(keys: &[[u8; Slot::BYTES]]) -> Option<Self> {
        let pages = (keys.len() / PAGE_KEYS_MAX).max(1);
        let depth_max = (pages * DIRECTORY_SPREAD_MAX).ilog2() + 1;
        let mut pages = Vec::new();
        build(keys, 0, depth_max, &mut pages)?;
        Some(Self::of_pages(pages, keys.len() as u64))
    }
}

/// Appends the pages of keys whose first `depth` bits are the same.
fn build(
    keys: &[[u8; Slot::BYTES]],
    depth: u32,
    depth_max: u32,
    pages: &mut Vec<Page>,
) -> Option<()> {
    if is_large(keys.len()) && depth < depth_max {
        let mask = 1 << (u64::BITS - 1 - depth);
        let zero = |key: &[u8; Slot::BYTES]| Slot::from_bytes(*key).fingerprint.high & mask == 0;
        let (zeros, ones) = keys.split_at(keys.partition_point(zero));
        build(zeros, depth + 1, depth_max, pages)?;
        return build(ones, depth + 1, depth_max, pages);
    }
    let slots: Vec<Slot> = keys.iter().map(|key| Slot::from_bytes(*key)).collect();
    (slots.len() <= PAGE_KEYS_MAX).then(|| pages.push(Page::of(depth, &slots)))
}

/// See [`Table::growth_bytes`].
const KEY_BYTES_MAX: usize = 32;
const PAGE_STEP_BYTES: usize = PAGE_LINES_MAX * 64 / 2 + size_of::<Page>();
const LISTS_BYTES_MIN: usize = 4 * (size_of::<Page>() + size_of::<u32>()) + 3 * 64;
