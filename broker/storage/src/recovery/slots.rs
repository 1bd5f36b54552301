//! The three manifest slots.
//!
//! Owns reading them, choosing the newest, setting up an empty directory and making the chosen one
//! durable (rule 9). Never interprets what a manifest says about logs.

use std::io::{ErrorKind, IoSlice};

use super::{directory, io_error, read::Window};
use crate::disk::{Disk, OpenMode};
use crate::error::OpenError;
use crate::format::FormatError;
use crate::format::manifest::Manifest;
use crate::format::names::{self, MANIFEST_SLOTS};
use crate::recovered::{RecoveredJournal, RecoveredState, RecoveryReport};

/// What a slot holds.
#[derive(Clone, Debug)]
pub(crate) enum Slot {
    /// There is no such file.
    Absent,
    /// Torn, damaged or empty.
    Broken(FormatError),
    /// A manifest.
    Valid(Box<Manifest>),
}

/// All slots as they were read.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    pub(crate) slots: [Slot; MANIFEST_SLOTS],
    pub(crate) bytes_read: u64,
}

impl Slots {
    /// Reads all slots.
    ///
    /// # Errors
    /// `Format` when a slot was written by a newer program; `Io`.
    pub(crate) fn read(disk: &dyn Disk) -> Result<Self, OpenError> {
        let mut slots = [const { Slot::Absent }; MANIFEST_SLOTS];
        let mut bytes_read = 0;
        for (number, slot) in slots.iter_mut().enumerate() {
            let path = names::manifest(number);
            let Some(mut window) = Window::open(disk, &path)? else { continue };
            let bytes = window.bytes(0, window.len())?.unwrap_or_default();
            bytes_read += window.read_bytes();
            *slot = match Manifest::decode(&bytes) {
                Ok(manifest) => Slot::Valid(Box::new(manifest)),
                Err(source @ FormatError::Version(_)) => {
                    return Err(OpenError::Format { path, source });
                }
                Err(error) => Slot::Broken(error),
            };
        }
        Ok(Self { slots, bytes_read })
    }

    /// The slot of the newest valid manifest.
    pub(crate) fn newest(&self) -> Option<usize> {
        let number = |slot: &usize| match &self.slots[*slot] {
            Slot::Valid(manifest) => Some(manifest.number),
            Slot::Absent | Slot::Broken(_) => None,
        };
        (0..MANIFEST_SLOTS).filter(|slot| number(slot).is_some()).max_by_key(number)
    }

    /// The manifest in a valid slot.
    ///
    /// # Panics
    /// When the slot is not valid: the caller chose it by [`Slots::newest`].
    pub(crate) fn manifest(&self, slot: usize) -> &Manifest {
        match &self.slots[slot] {
            Slot::Valid(manifest) => manifest,
            Slot::Absent | Slot::Broken(_) => panic!("slot {slot} holds no manifest"),
        }
    }

    /// Per slot: the oldest generation that it needs.
    pub(crate) fn generations(&self) -> [Option<u64>; MANIFEST_SLOTS] {
        std::array::from_fn(|slot| match &self.slots[slot] {
            Slot::Valid(manifest) => Some(manifest.oldest_generation),
            Slot::Absent | Slot::Broken(_) => None,
        })
    }

    /// Per slot: the packs that it names.
    pub(crate) fn packs(&self) -> [Vec<u32>; MANIFEST_SLOTS] {
        std::array::from_fn(|slot| {
            let Slot::Valid(manifest) = &self.slots[slot] else { return Vec::new() };
            let snapshots = manifest.logs.iter().flat_map(|log| &log.snapshots);
            let mut packs: Vec<u32> = snapshots.map(|snapshot| snapshot.pack).collect();
            packs.sort_unstable();
            packs.dedup();
            packs
        })
    }
}

/// Sets up an empty directory: every slot gets a manifest, so that one rotten sector cannot make a
/// young directory unusable.
///
/// # Errors
/// `Io`: nothing is lost, try again.
pub(crate) fn create(disk: &dyn Disk) -> Result<RecoveredState, OpenError> {
    directory::prepare(disk)?;
    let mut slot_generations = [None; MANIFEST_SLOTS];
    let numbers = 1..=MANIFEST_SLOTS as u64;
    for (number, slot) in numbers.clone().zip((0..MANIFEST_SLOTS).cycle().skip(1)) {
        let manifest = Manifest {
            number,
            oldest_generation: 1,
            next_incarnation: 1,
            next_salt: 1,
            ..Manifest::default()
        };
        write(disk, slot, &manifest)?;
        slot_generations[slot] = Some(manifest.oldest_generation);
    }
    disk.sync_dir("").map_err(io_error("syncing the data directory"))?;
    Ok(RecoveredState {
        manifest_number: *numbers.end(),
        slot_generations,
        journal: RecoveredJournal { next_group: 1, next_generation: 1, ..Default::default() },
        next_incarnation: 1,
        next_salt: 1,
        report: RecoveryReport { created: true, ..Default::default() },
        ..Default::default()
    })
}

/// Rewrites the chosen manifest in its slot, no longer clean, and makes it durable: it may have been
/// only in the cache, and from here on the journal counts again.
///
/// # Errors
/// `Io`: nothing is lost, try again.
pub(crate) fn settle(disk: &dyn Disk, slot: usize, manifest: &Manifest) -> Result<(), OpenError> {
    write(disk, slot, manifest)?;
    disk.sync_dir("").map_err(io_error("syncing the data directory"))
}

fn write(disk: &dyn Disk, slot: usize, manifest: &Manifest) -> Result<(), OpenError> {
    let path = names::manifest(slot);
    let doing = format!("writing {path}");
    let file = match disk.open(&path, OpenMode::Create) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            disk.open(&path, OpenMode::ReadWrite)
        }
        other => other,
    };
    let file = file.map_err(io_error(doing.clone()))?;
    file.write_at(0, &[IoSlice::new(&manifest.encode())]).map_err(io_error(doing.clone()))?;
    file.sync().map_err(io_error(doing))
}
