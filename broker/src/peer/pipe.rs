//! Owns the socket of one connection between brokers: queue to bytes, bytes to frames, and the watch
//! over silence. Never knows what a frame means. Driven by the task of the link or of the connection.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use postrider_protocol::frame::{Frame, FrameDecoder};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::io::poll_read_buf;

use super::PeerOptions;
use super::queue::SendQueue;
use crate::net::{BufferPool, Input};

/// Rounds of read and write before other tasks get their turn.
const ROUNDS_MAX: u32 = 8;
/// Chunks handed to the kernel in one write.
const SLICES_MAX: usize = 64;

/// Why a pipe ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// The other side closed it, or the network broke.
    Ended,
    /// Nothing was heard for too long.
    Silent,
    /// The other side broke the protocol.
    Violation,
    /// This side stopped it.
    Stopped,
}

/// What a pipe has for its owner.
pub(super) trait PipeEvents {
    /// A frame came.
    fn frame(&mut self, frame: Frame) -> Result<(), Cut>;
    /// There is room again in the queue.
    fn room(&mut self);
    /// A ping interval has passed.
    fn tick(&mut self);
}

/// See the module.
pub(super) struct Pipe {
    stream: TcpStream,
    decoder: FrameDecoder,
    input: Input,
    pool: Arc<BufferPool>,
    queue: Arc<SendQueue>,
    sending: VecDeque<Bytes>,
    received: Instant,
    options: PeerOptions,
    timer: Pin<Box<Sleep>>,
    /// Frames may have come with the handshake.
    unread: bool,
}

impl Pipe {
    pub(super) fn new(
        stream: TcpStream,
        input: Input,
        pool: Arc<BufferPool>,
        queue: Arc<SendQueue>,
        options: PeerOptions,
    ) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::new(options.frame_bytes_max),
            input,
            pool,
            queue,
            sending: VecDeque::new(),
            received: Instant::now(),
            options,
            timer: Box::pin(sleep(options.ping_interval)),
            unread: true,
        }
    }

    /// Moves bytes both ways until the pipe ends.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, events: &mut impl PipeEvents) -> Poll<Cut> {
        // Registering before looking: what is queued from here on is seen or wakes.
        self.queue.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            if self.queue.is_closed() {
                return Poll::Ready(Cut::Stopped);
            }
            match self.round(cx, events) {
                Err(cut) => return Poll::Ready(cut),
                Ok(true) => {}
                Ok(false) => return self.poll_timer(cx, events),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>, events: &mut impl PipeEvents) -> Result<bool, Cut> {
        let read = self.read(cx, events)?;
        let written = self.write(cx, events)?;
        Ok(read || written)
    }

    fn read(&mut self, cx: &mut Context<'_>, events: &mut impl PipeEvents) -> Result<bool, Cut> {
        if std::mem::take(&mut self.unread) {
            self.frames(events)?;
        }
        match self.stream.poll_read_ready(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(ended(&error)),
            Poll::Ready(Ok(())) => {}
        }
        let missing = self.decoder.missing(self.input.bytes());
        self.input.prepare(missing, &self.pool);
        match poll_read_buf(Pin::new(&mut self.stream), cx, self.input.bytes()) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(ended(&error)),
            Poll::Ready(Ok(0)) => Err(Cut::Ended),
            Poll::Ready(Ok(bytes)) => {
                self.input.filled(bytes);
                self.received = Instant::now();
                self.frames(events)?;
                Ok(true)
            }
        }
    }

    fn frames(&mut self, events: &mut impl PipeEvents) -> Result<(), Cut> {
        loop {
            match self.decoder.decode(self.input.bytes()) {
                Ok(Some(frame)) => events.frame(frame)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "a peer sends what is no frame");
                    return Err(Cut::Violation);
                }
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, events: &mut impl PipeEvents) -> Result<bool, Cut> {
        if self.sending.is_empty() {
            self.queue.take(&mut self.sending);
        }
        if self.sending.is_empty() {
            return Ok(false);
        }
        let written = {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = SLICES_MAX.min(self.sending.len());
            for (slice, chunk) in slices.iter_mut().zip(&self.sending) {
                *slice = IoSlice::new(chunk);
            }
            let slices = slices.get(..count).expect("count is at most the length");
            Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
        };
        match written {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(ended(&error)),
            Poll::Ready(Ok(bytes)) => {
                self.forget(bytes);
                if self.queue.sent(bytes) {
                    events.room();
                }
                Ok(true)
            }
        }
    }

    fn forget(&mut self, mut bytes: usize) {
        while let Some(chunk) = self.sending.front_mut() {
            if bytes < chunk.len() {
                chunk.advance(bytes);
                return;
            }
            bytes -= chunk.len();
            self.sending.pop_front();
        }
    }

    /// Looked at only when the socket has nothing more: a pause of this process is no silence of the peer.
    fn poll_timer(&mut self, cx: &mut Context<'_>, events: &mut impl PipeEvents) -> Poll<Cut> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now.duration_since(self.received) >= self.options.silence_max {
                return Poll::Ready(Cut::Silent);
            }
            if self.input.is_empty() && self.input.holds_memory() {
                self.input.release(&self.pool);
            }
            events.tick();
            self.timer.as_mut().reset(now + self.options.ping_interval);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

fn ended(error: &io::Error) -> Cut {
    tracing::debug!(%error, "a connection between brokers broke");
    Cut::Ended
}
