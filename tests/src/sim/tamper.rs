//! Owns planted bugs: changes between components that a correct system never makes, to prove that the
//! oracle sees them. Never active in a run without a planted bug. Driven by the server, the readers, the disk.

use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, FrameDecoder, event};
use postrider_protocol::message::{Confirm, Outcome};
use postrider_protocol::types::Offset;
use postrider_storage::disk_sim::SimRandom;
use postrider_storage::{Disk, DiskFile, DiskMap, OpenMode, SimDisk};

/// A bug to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// An entry of a confirm never arrives.
    ConfirmDropped,
    /// A confirm names another offset.
    ConfirmMoved,
    /// What is stored is reported as rejected.
    StoredToldRejected,
    /// The disk says that a sync is done and does nothing: confirms come before they are durable.
    SyncIsALie,
    /// A run of messages reaches the application twice.
    DeliveredTwice,
    /// A run of messages does not reach the application.
    DeliverySkipped,
    /// A run of messages reaches the application under other offsets.
    DeliveredMoved,
    /// A byte of a message changes on its way.
    ByteChanged,
    /// A message is published again without its idempotency key.
    KeyIgnored,
    /// The application is told that an ack is stored before anybody has asked for it.
    AckLost,
    /// An ack of a queue is confirmed before its entry is stored.
    SettledEarly,
    /// An ack of a queue is confirmed and never stored.
    SettledNever,
    /// A message that failed goes out again before the failure is stored.
    FailureNotStored,
    /// A dead letter is published once more after a restart.
    LetterTwice,
    /// A message that somebody has is handed out to somebody else.
    LeasedTwice,
    /// A restart makes all failures undone.
    FailuresForgotten,
    /// The last message of a hand-out is handed out beyond the credit.
    CreditIgnored,
    /// A purge is answered, and nothing is purged.
    PurgeForgotten,
    /// A partition goes to its next owner without waiting until the one before has drained it.
    HandedOverUndrained,
    /// An ack under an epoch that is over is taken.
    StaleAckTaken,
    /// The next owner begins behind what was delivered, not behind what was acknowledged.
    PositionDelivered,
    /// A member is not told of a partition that it was given.
    PartitionForgotten,
    /// When a member joins, another one that lives is fenced.
    FencedByChurn,
    /// What was on its way before a seek is delivered after it is confirmed.
    DeliveredAfterSeek,
}

impl Planted {
    /// Those that a run with queues must find.
    pub const QUEUES: [Self; 8] = [
        Self::SettledEarly,
        Self::SettledNever,
        Self::FailureNotStored,
        Self::LetterTwice,
        Self::LeasedTwice,
        Self::FailuresForgotten,
        Self::CreditIgnored,
        Self::PurgeForgotten,
    ];

    /// Those that a run with groups must find.
    pub const GROUPS: [Self; 6] = [
        Self::HandedOverUndrained,
        Self::StaleAckTaken,
        Self::PositionDelivered,
        Self::PartitionForgotten,
        Self::FencedByChurn,
        Self::DeliveredAfterSeek,
    ];

    /// Those that a run with streams must find.
    pub const STREAMS: [Self; 10] = [
        Self::ConfirmDropped,
        Self::ConfirmMoved,
        Self::StoredToldRejected,
        Self::SyncIsALie,
        Self::DeliveredTwice,
        Self::DeliverySkipped,
        Self::DeliveredMoved,
        Self::ByteChanged,
        Self::AckLost,
        Self::KeyIgnored,
    ];
}

/// One in so many chances is taken.
pub(crate) const RARITY: u64 = 20;

/// Changes what a session sends, frame by frame.
pub(crate) fn tamper_frames(bytes: BytesMut, planted: Planted, dice: &mut SimRandom) -> Bytes {
    let wanted = [Planted::ConfirmDropped, Planted::ConfirmMoved, Planted::StoredToldRejected]
        .contains(&planted);
    if !wanted {
        return bytes.freeze();
    }
    let mut input = bytes;
    let mut output = BytesMut::new();
    let mut decoder = FrameDecoder::new(u32::MAX);
    while let Ok(Some(frame)) = decoder.decode(&mut input) {
        let Frame { header, body } = frame;
        if header.api == Api::Confirm as u16 && !header.is_reply() && dice.one_in(RARITY) {
            let mut confirm: Confirm =
                Frame { header, body }.message().expect("sessions send confirms");
            tamper_confirm(&mut confirm, planted);
            if !confirm.runs.is_empty() {
                output.extend_from_slice(&event(&confirm));
            }
        } else {
            output.extend_from_slice(&header.encode());
            output.extend_from_slice(&body);
        }
    }
    assert!(input.is_empty(), "a session sends whole frames");
    output.freeze()
}

fn tamper_confirm(confirm: &mut Confirm, planted: Planted) {
    if planted == Planted::ConfirmDropped {
        confirm.runs.pop();
        return;
    }
    for run in &mut confirm.runs {
        match &mut run.outcome {
            Outcome::Committed { base_offset, .. } if planted == Planted::ConfirmMoved => {
                *base_offset = Offset(base_offset.0 + 1);
            }
            outcome @ Outcome::Committed { .. } => {
                let error = ErrorBody::new(ErrorCode::BadRequest, "a planted lie");
                *outcome = Outcome::Rejected { error };
            }
            _ => {}
        }
    }
}

/// A disk whose syncs do nothing and say that they did.
pub(crate) struct LyingDisk(pub(crate) SimDisk);

struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile(self.0.open(path, mode)?)))
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn sync_all_files(&self) -> io::Result<()> {
        Ok(())
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        self.0.lock()
    }
}

impl DiskFile for LyingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.0.allocate(bytes)
    }
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write_at(offset, bufs)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn map(&self) -> io::Result<Arc<dyn DiskMap>> {
        self.0.map()
    }
    fn drop_cache(&self, range: Range<u64>) {
        self.0.drop_cache(range);
    }
}
