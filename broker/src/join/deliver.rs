//! Owns the sending side of a session: replies, confirms, then deliveries in turns. Never copies a message:
//! a delivery is one head and slices of mapped segments. Never decides how much a subscriber gets (core
//! does). Driven by the connection through `Session::transmit`.

use bytes::{Bytes, BytesMut};
use postrider_core::Now;
use postrider_core::delivery::{ReadRequest, Want};
use postrider_protocol::api::Api;
use postrider_protocol::entry::EntryViews;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{self, FRAME_HEADER_BYTES, FrameHeader};
use postrider_protocol::message::{
    CONFIRM_RUN_BYTES, ConfirmRun, DELIVER_HEAD_BYTES, DeliverHead, Gap, GapReason, Start,
};
use postrider_protocol::types::{CorrelationId, Durability, Offset, TimestampMs};
use postrider_storage::{ReadError, ReadRun};

use crate::join::leader::resolve;
use crate::join::partition::PartitionHandle;
use crate::join::readers::Readers;
use crate::join::session::{Transmit, TransmitState};

/// What one `transmit` hands out, about. Measured: chunks of 64 to 256 KiB replay fastest.
const TRANSMIT_BYTES: usize = 256 << 10;

/// The part of that which one subscription gets in one turn.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// Memory taken at a time for heads of deliveries.
const HEADS_BYTES: usize = 4 << 10;

const HEAD_BYTES: usize = FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES;

/// What a cursor's turn came to.
pub(crate) enum Turn {
    /// So many bytes are on their way; it may have more.
    Sent(usize),
    /// It waits or is parked.
    Rests,
    /// What comes next has to be loaded.
    Cold(ReadRun),
}

impl Readers {
    pub(crate) fn transmit(&mut self, now: Now, out: &mut Transmit) -> TransmitState {
        let mut taken = std::mem::take(&mut self.taken);
        self.outbox.take(&mut taken);
        while !taken.tasks.is_empty() {
            for task in taken.tasks.drain(..) {
                self.run_task(task, now, out);
            }
            // A group that was run may have left something for this very session, and a move is told before
            // anything is delivered under the epoch that it ended.
            self.outbox.take_tasks(&mut taken);
        }
        let mut bytes = 0;
        while bytes < TRANSMIT_BYTES {
            let Some(reply) = taken.replies.pop_front() else { break };
            self.outbox.reply_taken(reply.len());
            bytes += reply.len();
            out.chunks.push_back(reply);
        }
        let replies_left = !taken.replies.is_empty();
        if !taken.confirms.is_empty() {
            bytes += self.confirm(&mut taken.confirms, out);
        }
        self.taken = taken;
        while bytes < TRANSMIT_BYTES {
            let Some(cursor) = self.next_turn() else { break };
            match self.turn(cursor, now, out) {
                Turn::Sent(sent) => {
                    bytes += sent;
                    self.enqueue(cursor);
                }
                Turn::Rests => {}
                Turn::Cold(run) => {
                    self.hub.counters.cold_runs.add(1);
                    self.requeue_front(cursor);
                    return TransmitState::Cold(run);
                }
            }
        }
        if replies_left || self.has_turns() { TransmitState::More } else { TransmitState::Idle }
    }

    /// Confirms, in as few frames as the client's limit allows.
    fn confirm(&self, runs: &mut Vec<ConfirmRun>, out: &mut Transmit) -> usize {
        // A run's text adds at most 1 KiB, so half of the limit leaves room.
        let body_max = self.frame_bytes_max() / 2;
        let mut sent = 0;
        let mut frame = ConfirmFrame::new(runs.len());
        for run in runs.drain(..) {
            if frame.bytes.len() > FRAME_HEADER_BYTES
                && frame.bytes.len() + CONFIRM_RUN_BYTES > body_max
            {
                let full = std::mem::replace(&mut frame, ConfirmFrame::new(1));
                sent += full.finish(out);
            }
            run.encode(&mut frame.bytes);
        }
        sent + frame.finish(out)
    }

    /// One turn of one cursor.
    fn turn(&mut self, key: u64, now: Now, out: &mut Transmit) -> Turn {
        let Some(cursor) = self.cursors.get(&key) else {
            return self.queue_turn(key, now, out);
        };
        let Some(reader) = self.readers.get_mut(&cursor.reader) else { return Turn::Rests };
        let partition = &cursor.partition;
        if partition.is_deleted() {
            let error = ErrorBody::new(ErrorCode::UnknownTopic, "the topic was deleted");
            let reader = cursor.reader;
            self.cut_off(reader, error, now, out);
            return Turn::Rests;
        }
        reader.account.seek(cursor.next);
        let (log_start, high_watermark) = (partition.log_start(), partition.high_watermark());
        match reader.account.wants(log_start, high_watermark, CHUNK_BYTES) {
            Want::Gap { from: _, to } => {
                let reason = match partition.log.log_start().1 < to {
                    true => GapReason::Overflow,
                    false => GapReason::Retention,
                };
                self.gap(key, to, reason, out)
            }
            Want::Idle => {
                if partition.wait(&self.outbox, key, cursor.next) {
                    Turn::Rests
                } else {
                    Turn::Sent(0)
                }
            }
            Want::NoCredit => {
                reader.parked.push(key);
                Turn::Rests
            }
            Want::Read(request) => self.read(key, request, now, out),
        }
    }

    fn read(&mut self, key: u64, request: ReadRequest, now: Now, out: &mut Transmit) -> Turn {
        let bytes_max = request.bytes_max.min(self.entries_bytes_max());
        let Some(cursor) = self.cursors.get_mut(&key) else { return Turn::Rests };
        match cursor.partition.log.read(request.from, request.until, bytes_max) {
            // The store promises an entry here. A subscriber that rests would wait for ever.
            Ok(run) if run.next <= request.from => {
                let (reader, partition) = (cursor.reader, cursor.partition.key);
                tracing::error!(?partition, offset = %request.from, "a read below the high watermark is empty");
                let text = "the log could not be read; see the broker's log";
                self.cut_off(reader, self.hub.error(ErrorCode::Internal, text), now, out);
                Turn::Rests
            }
            Ok(run) if !run.resident && cursor.loaded != Some(request.from) => {
                cursor.loaded = Some(request.from);
                Turn::Cold(run)
            }
            Ok(run) => match expired_before(&cursor.partition, &request, &run, now) {
                Some(before) => self.gap(key, before, GapReason::Expired, out),
                None => self.send(key, &request, run, now, out),
            },
            Err(ReadError::BelowStart { log_start }) => {
                self.gap(key, log_start.1, GapReason::Retention, out)
            }
            Err(ReadError::Vacant(vacancy)) => {
                self.gap(key, vacancy.end_offset, GapReason::Retention, out)
            }
            Err(ReadError::Damaged(damage)) => {
                let reason = match cursor.partition.durability() {
                    Durability::Fsync => GapReason::Damage,
                    Durability::Replicated | Durability::Memory => GapReason::Lost,
                };
                self.gap(key, damage.end_offset, reason, out)
            }
            Err(ReadError::Io(error)) => {
                let (reader, partition) = (cursor.reader, cursor.partition.key);
                tracing::error!(?partition, %error, "a log cannot be read");
                let text = format!("the log could not be read ({error}); see the broker's log");
                self.cut_off(reader, self.hub.error(ErrorCode::Internal, text), now, out);
                Turn::Rests
            }
        }
    }

    /// Entries that fit into a frame for this client.
    fn entries_bytes_max(&self) -> usize {
        self.frame_bytes_max().saturating_sub(DELIVER_HEAD_BYTES)
    }

    fn send(
        &mut self,
        key: u64,
        request: &ReadRequest,
        run: ReadRun,
        now: Now,
        out: &mut Transmit,
    ) -> Turn {
        let run = Run::within(request, run);
        let entries_bytes_max = self.entries_bytes_max();
        let Some(cursor) = self.cursors.get_mut(&key) else { return Turn::Rests };
        if run.bytes > entries_bytes_max {
            let text = format!(
                "the batch at offset {} of partition {} has {} bytes, more than the {} that the client \
                 takes; raise its frame limit",
                request.from,
                cursor.partition.partition(),
                run.bytes,
                entries_bytes_max
            );
            let reader = cursor.reader;
            self.cut_off(reader, self.hub.error(ErrorCode::BatchTooLarge, text), now, out);
            return Turn::Rests;
        }
        let Some(reader) = self.readers.get_mut(&cursor.reader) else { return Turn::Rests };
        let head = DeliverHead {
            handle: reader.handle,
            partition: cursor.partition.partition(),
            owner_epoch: cursor.owner_epoch,
            next: request.from,
            high_watermark: request.until,
            dispatch_index: cursor.dispatch_index,
        };
        reader.account.delivered(run.next, run.bytes);
        cursor.next = run.next;
        cursor.dispatch_index += 1;
        cursor.loaded = None;
        let counters = &self.hub.counters;
        counters.delivered_messages.add(run.next.0 - request.from.0);
        counters.delivered_bytes.add(run.bytes as u64);
        counters.delivered_runs.add(1);
        out.chunks.push_back(written(&mut self.heads, &head.encode_framed(run.bytes)));
        out.chunks.extend(run.slices);
        Turn::Sent(run.bytes + HEAD_BYTES)
    }

    /// Tells the client that what it wanted next cannot be had, and goes on behind it.
    fn gap(&mut self, key: u64, to: Offset, reason: GapReason, out: &mut Transmit) -> Turn {
        let Some(cursor) = self.cursors.get_mut(&key) else { return Turn::Rests };
        let Some(reader) = self.readers.get_mut(&cursor.reader) else { return Turn::Rests };
        let event = Gap {
            handle: reader.handle,
            partition: cursor.partition.partition(),
            from: cursor.next,
            to,
            reason,
        };
        reader.account.gap(to);
        cursor.next = cursor.next.max(to);
        self.hub.counters.gaps.add(1);
        let frame = frame::event(&event);
        let bytes = frame.len();
        out.chunks.push_back(frame);
        Turn::Sent(bytes)
    }
}

/// How far what was read is too old, if its first message is: append times never fall, so none behind it is if that
/// one is not. What cannot be looked up is delivered.
fn expired_before(
    partition: &PartitionHandle,
    request: &ReadRequest,
    run: &ReadRun,
    now: Now,
) -> Option<Offset> {
    let until = now.wall.0.checked_sub(partition.ttl_ms()?)?;
    let first = EntryViews::new(run.slices.first()?).next()?.ok()?;
    if first.header.append_time.0 > until {
        return None;
    }
    let time = TimestampMs(until.saturating_add(1));
    let before = resolve(partition, &Start::Timestamp(time)).ok()?.min(request.until);
    (before > request.from).then_some(before)
}

/// A head in memory that many heads share.
fn written(heads: &mut BytesMut, head: &[u8; HEAD_BYTES]) -> Bytes {
    if heads.capacity() - heads.len() < HEAD_BYTES {
        heads.reserve(HEADS_BYTES);
    }
    heads.extend_from_slice(head);
    heads.split().freeze()
}

/// What of a read is sent.
struct Run {
    slices: Vec<Bytes>,
    bytes: usize,
    next: Offset,
}

impl Run {
    /// The batches up to the one that reaches the message credit. Headers are only looked at if the read
    /// holds more messages than that.
    fn within(request: &ReadRequest, read: ReadRun) -> Self {
        let all = Self { bytes: read.bytes, next: read.next, slices: read.slices };
        if all.next.0 - request.from.0 <= request.messages_max {
            return all;
        }
        let ends: Vec<(Offset, usize)> = all
            .slices
            .iter()
            .flat_map(|slice| EntryViews::new(slice))
            .map_while(|entry| {
                let header = entry.ok()?.header;
                let bytes = usize::try_from(header.total_len).ok()?;
                Some((header.end_offset(), bytes))
            })
            .collect();
        let count = request.batches_within(ends.iter().map(|(end, _bytes)| *end));
        let Some((next, _bytes)) = count.checked_sub(1).and_then(|last| ends.get(last)) else {
            return all;
        };
        let bytes = ends.iter().take(count).map(|(_end, bytes)| bytes).sum();
        Self { slices: front(all.slices, bytes), bytes, next: *next }
    }
}

/// The first `bytes` bytes of slices.
fn front(slices: Vec<Bytes>, bytes: usize) -> Vec<Bytes> {
    let mut left = bytes;
    let mut kept = Vec::with_capacity(slices.len());
    for mut slice in slices {
        if left == 0 {
            break;
        }
        slice.truncate(left);
        left -= slice.len();
        kept.push(slice);
    }
    kept
}

/// A frame of confirms that is being filled.
struct ConfirmFrame {
    bytes: BytesMut,
}

impl ConfirmFrame {
    fn new(runs: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(FRAME_HEADER_BYTES + runs * CONFIRM_RUN_BYTES);
        bytes.resize(FRAME_HEADER_BYTES, 0);
        Self { bytes }
    }

    fn finish(mut self, out: &mut Transmit) -> usize {
        let body_len = u32::try_from(self.bytes.len() - FRAME_HEADER_BYTES)
            .expect("bounded by the client's limit, a u32");
        let header = FrameHeader {
            body_len,
            api: Api::Confirm as u16,
            version: 1,
            flags: 0,
            correlation: CorrelationId(0),
        };
        self.bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        let bytes = self.bytes.len();
        out.chunks.push_back(self.bytes.freeze());
        bytes
    }
}
