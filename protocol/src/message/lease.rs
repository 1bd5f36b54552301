//! Owns `Lease` with its fixed head and its runs. Never looks into entries (`entry` does).
//!
//! ```text
//!  0 u32 handle                     4 u32 partition
//!  8 u64 sub_epoch
//! 16 u32 leader_epoch              20 u32 count of runs, 1..=65,536
//! 24 u64 dispatch number of the first leased message; the others follow in the order of the runs
//! 32 u64 dispatch index: one past the last entry that the leader had applied
//! 40 runs, 20 bytes each: u64 first offset | u32 count | u32 attempt | u32 failures; offsets rise
//!    entries: Data only, offsets rise; a record outside of all runs is not leased and is skipped
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{LeaseRun, Message, RUNS_MAX};
use crate::{
    api::Api,
    codec::{DecodeError, Reader, Wire},
    frame::{FRAME_HEADER_BYTES, FrameHeader},
    types::{CorrelationId, EntryIndex, LeaderEpoch, PartitionId, SubscriptionHandle},
};

/// The size of what precedes the runs in a `Lease`.
pub const LEASE_HEAD_BYTES: usize = 40;
/// The size of one run.
pub const LEASE_RUN_BYTES: usize = 20;

/// What a hand-out says about its messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseHead {
    /// The attachment.
    pub handle: SubscriptionHandle,
    /// The partition.
    pub partition: PartitionId,
    /// The subscription's epoch.
    pub sub_epoch: u64,
    /// The leadership.
    pub leader_epoch: LeaderEpoch,
    /// The number of the first message. Numbers count what was handed to this attachment on this partition,
    /// from 0, in the order of the runs.
    pub dispatch_number: u64,
    /// One past the last entry that the leader had applied when it handed these out.
    pub dispatch_index: EntryIndex,
    /// Which messages; offsets rise.
    pub runs: Vec<LeaseRun>,
}

impl LeaseHead {
    /// The size of the head and its runs.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.runs.len().saturating_mul(LEASE_RUN_BYTES).saturating_add(LEASE_HEAD_BYTES)
    }

    /// How many messages are leased.
    #[must_use]
    pub fn messages(&self) -> u64 {
        LeaseRun::messages(&self.runs)
    }

    /// Frame header, head and runs, so that a frame is this and `entries_len` bytes of entries, uncopied.
    ///
    /// # Panics
    /// If there is no run or more than [`RUNS_MAX`], or the entries have 4 GiB or more, which no limit
    /// allows.
    #[must_use]
    pub fn encode_framed(&self, entries_len: usize) -> Bytes {
        let len = self.encoded_len();
        let header = FrameHeader {
            body_len: u32::try_from(entries_len.saturating_add(len))
                .expect("a read is below 4 GiB: its limit is a u32"),
            api: Api::Lease as u16,
            version: Lease::VERSION,
            flags: 0,
            correlation: CorrelationId(0),
        };
        let mut bytes = BytesMut::with_capacity(FRAME_HEADER_BYTES.saturating_add(len));
        bytes.put_slice(&header.encode());
        self.write(&mut bytes);
        bytes.freeze()
    }

    /// Appends head and runs; the entries follow them.
    ///
    /// # Panics
    /// If there is no run, or more than [`RUNS_MAX`].
    pub fn write(&self, out: &mut impl BufMut) {
        let count = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        assert!((1..=RUNS_MAX).contains(&count), "a lease has {count} runs");
        out.put_u32_le(self.handle.0);
        out.put_u32_le(self.partition.0);
        out.put_u64_le(self.sub_epoch);
        out.put_u32_le(self.leader_epoch.0);
        out.put_u32_le(count);
        out.put_u64_le(self.dispatch_number);
        out.put_u64_le(self.dispatch_index.0);
        for run in &self.runs {
            out.put_u64_le(run.first.0);
            out.put_u32_le(run.count);
            out.put_u32_le(run.attempt);
            out.put_u32_le(run.failures);
        }
    }
}

/// Messages that are leased to this consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Which, and for what attempt.
    pub head: LeaseHead,
    /// Whole entries that hold them, as stored or rebuilt with a part of their records.
    pub entries: Bytes,
}

impl Message for Lease {
    const API: Api = Api::Lease;

    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.entries.len().saturating_add(self.head.encoded_len()));
        self.head.write(out);
        out.put_slice(&self.entries);
    }

    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let fixed: &[u8; LEASE_HEAD_BYTES] = body.first_chunk().ok_or(DecodeError::Short)?;
        let mut input = fixed.as_slice();
        let handle = SubscriptionHandle(input.get_u32_le());
        let partition = PartitionId(input.get_u32_le());
        let sub_epoch = input.get_u64_le();
        let leader_epoch = LeaderEpoch(input.get_u32_le());
        let count = input.get_u32_le();
        let dispatch_number = input.get_u64_le();
        let dispatch_index = EntryIndex(input.get_u64_le());
        body.advance(LEASE_HEAD_BYTES);
        let runs = take_runs(&mut body, count)?;
        let head = LeaseHead {
            handle,
            partition,
            sub_epoch,
            leader_epoch,
            dispatch_number,
            dispatch_index,
            runs,
        };
        Ok(Self { head, entries: body })
    }
}

/// Runs, as a list of them holds them.
fn take_runs(body: &mut Bytes, count: u32) -> Result<Vec<LeaseRun>, DecodeError> {
    if count == 0 {
        return Err(DecodeError::Invalid("count of runs"));
    }
    let bytes = usize::try_from(count)
        .ok()
        .filter(|_| count <= RUNS_MAX)
        .map(|count| count.saturating_mul(LEASE_RUN_BYTES))
        .filter(|bytes| *bytes <= body.len())
        .ok_or(DecodeError::ListTooLong(count))?;
    let listed = body.split_to(bytes);
    let mut input = Reader::new(&listed);
    let mut runs: Vec<LeaseRun> = Vec::with_capacity(bytes / LEASE_RUN_BYTES);
    for _ in 0..count {
        let run: LeaseRun = input.take()?;
        if runs.last().is_some_and(|before| !run.may_follow(before)) {
            return Err(DecodeError::Invalid("order of a list"));
        }
        runs.push(run);
    }
    Ok(runs)
}
