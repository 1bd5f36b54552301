//! Owns the simulated network: connections as two pipes of bytes with delays, arbitrary pieces, cuts that
//! each side notices at its own time. Never looks into the bytes. Driven by the world.
//!
//! Within one direction of one connection bytes keep their order; between connections nothing does.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postrider_storage::disk_sim::SimRandom;

/// Bytes that a pipe holds before its sender must wait: the socket buffers.
const PIPE_BYTES_MAX: usize = 32 << 10;

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pieces: VecDeque<(Duration, Bytes)>,
    bytes: usize,
    last_arrival: Duration,
}

impl Pipe {
    /// How much the sender may send now.
    pub(crate) fn room(&self) -> usize {
        PIPE_BYTES_MAX.saturating_sub(self.bytes)
    }

    /// Sends bytes in pieces; each arrives up to `delay_max_ms` later, never before an earlier one.
    pub(crate) fn send(
        &mut self,
        now: Duration,
        mut bytes: Bytes,
        dice: &mut SimRandom,
        delay_max_ms: u64,
    ) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            let whole = dice.one_in(2);
            let cut = if whole { bytes.len() } else { 1 + dice.index(bytes.len()) };
            let delay = Duration::from_millis(dice.below(delay_max_ms + 1));
            self.last_arrival = self.last_arrival.max(now + delay);
            self.pieces.push_back((self.last_arrival, bytes.split_to(cut)));
        }
    }

    /// Takes what has arrived.
    pub(crate) fn receive(&mut self, now: Duration, into: &mut BytesMut) -> bool {
        let before = into.len();
        while self.pieces.front().is_some_and(|(at, _)| *at <= now) {
            let (_, piece) = self.pieces.pop_front().expect("there is a first piece");
            self.bytes -= piece.len();
            into.extend_from_slice(&piece);
        }
        into.len() > before
    }
}

/// One connection.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// Whose it is.
    pub(crate) client: String,
    pub(crate) to_server: Pipe,
    pub(crate) to_client: Pipe,
    /// When the client notices that the connection is gone.
    pub(crate) client_end: Option<Duration>,
    /// When the server notices.
    pub(crate) server_end: Option<Duration>,
    /// Nothing passes any more.
    pub(crate) cut: bool,
}

impl Connection {
    /// When the last byte on its way to the client will have arrived.
    pub(crate) fn to_client_arrives(&self, now: Duration) -> Duration {
        self.to_client.last_arrival.max(now)
    }

    /// Whether its process is gone, and the server may still hear what it sent.
    pub(crate) fn is_ghost(&self, now: Duration) -> bool {
        self.cut && self.server_end.is_none_or(|end| end > now)
    }

    /// Cuts the connection. What is on its way may still arrive before a side notices, or not at all.
    pub(crate) fn cut(&mut self, now: Duration, dice: &mut SimRandom, notice_max_ms: u64) {
        self.cut = true;
        let mut later = || Some(now + Duration::from_millis(dice.below(notice_max_ms + 1)));
        let (client, server) = (later(), later());
        self.client_end = self.client_end.or(client);
        self.server_end = self.server_end.or(server);
        for pipe in [&mut self.to_server, &mut self.to_client] {
            let kept = dice.index(pipe.pieces.len() + 1);
            pipe.pieces.truncate(kept);
            pipe.bytes = pipe.pieces.iter().map(|(_, piece)| piece.len()).sum();
        }
    }
}
