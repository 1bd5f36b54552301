//! Contents of one simulated file: what reads see, and what a power loss leaves.
//!
//! Owns the sector states. Never decides when something crashes; `disk_sim` drives it.
//!
//! ```text
//!            write                sync ok
//!  clean ------------> dirty --------------> clean   (durable = cache)
//!    ^                   | sync fails
//!    |                   v
//!    +----- write ---- lost    cache shows the new bytes, the disk holds some older ones,
//!          (dirty)             and no later sync writes them
//! ```

use std::collections::BTreeMap;

use super::random::SimRandom;
use crate::disk::SECTOR_BYTES;

pub(super) const SECTOR: usize = 512;
const _: () = assert!(SECTOR as u64 == SECTOR_BYTES);

/// Overwritten versions kept per dirty sector; older ones are forgotten, which only narrows what a
/// power loss can bring back.
const VERSIONS_MAX: usize = 3;

type SectorBytes = [u8; SECTOR];

#[derive(Clone, Debug)]
enum SectorState {
    /// Written since the last sync. `versions` are cached contents that were overwritten meanwhile:
    /// write-back may have brought any of them to the disk.
    Dirty { versions: Vec<SectorBytes> },
    /// Passed through a failed sync: clean for the kernel, old on the disk.
    Lost,
}

/// One file's bytes, twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    cache: Vec<u8>,
    durable: Vec<u8>,
    sectors: BTreeMap<usize, SectorState>,
}

impl Image {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.cache
    }

    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }

    /// Grows the cached length with zeros.
    pub(super) fn grow(&mut self, len: usize) {
        if len > self.cache.len() {
            self.cache.resize(len, 0);
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        self.grow(end);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            self.touch(sector);
        }
        self.cache[offset..end].copy_from_slice(bytes);
    }

    /// Marks a sector dirty before it is overwritten, keeping what it held if that was unsynced.
    fn touch(&mut self, sector: usize) {
        let held = sector_of(&self.cache, sector);
        match self.sectors.get_mut(&sector) {
            Some(SectorState::Dirty { versions }) => {
                if versions.len() == VERSIONS_MAX {
                    versions.remove(0);
                }
                versions.push(held);
            }
            Some(state @ SectorState::Lost) => *state = SectorState::Dirty { versions: Vec::new() },
            None => {
                self.sectors.insert(sector, SectorState::Dirty { versions: Vec::new() });
            }
        }
    }

    /// A sync that worked: every dirty sector and the length reach the disk. Lost sectors do not.
    pub(super) fn sync(&mut self) {
        self.durable.resize(self.cache.len(), 0);
        let cache = &self.cache;
        let durable = &mut self.durable;
        self.sectors.retain(|sector, state| match state {
            SectorState::Dirty { .. } => {
                let range = sector_range(*sector, cache.len());
                durable[range.clone()].copy_from_slice(&cache[range]);
                false
            }
            SectorState::Lost => true,
        });
    }

    /// A sync that failed: each dirty sector reached the disk or not, and all count as clean.
    pub(super) fn fail_sync(&mut self, random: &mut SimRandom) {
        if self.cache.len() > self.durable.len() && random.one_in(2) {
            self.durable.resize(self.cache.len(), 0);
        }
        for (sector, state) in &mut self.sectors {
            if let SectorState::Dirty { versions } = state {
                write_version(&mut self.durable, &self.cache, *sector, versions, random);
                *state = SectorState::Lost;
            }
        }
    }

    /// The process died: the kernel may drop clean pages at any time, so lost ones may revert.
    pub(super) fn evict_lost(&mut self, random: &mut SimRandom) {
        let (cache, durable) = (&mut self.cache, &self.durable);
        self.sectors.retain(|sector, state| {
            if matches!(state, SectorState::Dirty { .. }) || random.one_in(2) {
                return true;
            }
            let range = sector_range(*sector, cache.len());
            cache[range.clone()].copy_from_slice(&sector_of(durable, *sector)[..range.len()]);
            false
        });
    }

    /// The power failed: each unsynced sector holds any of its versions, the length is the durable
    /// one, the cached one or something between.
    pub(super) fn lose_power(&mut self, random: &mut SimRandom) {
        if self.cache.len() > self.durable.len() {
            let kept = match random.below(3) {
                0 => self.durable.len(),
                1 => self.cache.len(),
                _ => {
                    let growth = self.cache.len() - self.durable.len();
                    self.durable.len() + random.index(growth + 1)
                }
            };
            self.durable.resize(kept, 0);
        }
        for (sector, state) in std::mem::take(&mut self.sectors) {
            if let SectorState::Dirty { versions } = state {
                write_version(&mut self.durable, &self.cache, sector, &versions, random);
            }
        }
        self.cache.clone_from(&self.durable);
    }

    /// Rot: the byte changes on the disk and in the cache alike.
    pub(super) fn flip(&mut self, offset: usize, mask: u8) {
        for bytes in [&mut self.cache, &mut self.durable] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= mask;
            }
        }
    }

    /// Whether every byte would survive a power loss.
    pub(super) fn is_durable(&self) -> bool {
        self.sectors.is_empty() && self.cache.len() == self.durable.len()
    }
}

/// Puts one of the contents that an unsynced sector had on the disk: the durable one, an overwritten
/// one or the cached one.
fn write_version(
    durable: &mut [u8],
    cache: &[u8],
    sector: usize,
    versions: &[SectorBytes],
    random: &mut SimRandom,
) {
    let range = sector_range(sector, durable.len());
    let version = match random.index(versions.len() + 2) {
        0 => return,
        1 => sector_of(cache, sector),
        n => versions[n - 2],
    };
    durable[range.clone()].copy_from_slice(&version[..range.len()]);
}

/// The part of a sector that lies within `len`; empty beyond.
fn sector_range(sector: usize, len: usize) -> std::ops::Range<usize> {
    let start = (sector * SECTOR).min(len);
    start..(start + SECTOR).min(len)
}

/// A sector's bytes, zero behind the end.
fn sector_of(bytes: &[u8], sector: usize) -> SectorBytes {
    let mut out = [0; SECTOR];
    let range = sector_range(sector, bytes.len());
    out[..range.len()].copy_from_slice(&bytes[range]);
    out
}
