//! Owns sleeping until a moment with microsecond precision: tokio's timer counts in milliseconds, which
//! would add half a millisecond to every paced latency. Driven by the open-loop producers.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// A kernel timer of the runtime that creates it.
pub(crate) struct Pacer {
    timer: AsyncFd<OwnedFd>,
}

impl Pacer {
    /// Must be called within a tokio runtime.
    #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd stays open and the same")]
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer: AsyncFd::new(timer)? })
    }

    /// Returns at `deadline`, at once if it is past. Cancel-safe.
    pub(crate) async fn sleep_until(&self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let once =
                Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(left) };
            // Arming clears an expiry that was not consumed, so the timer need not be read.
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            self.timer.readable().await?.clear_ready();
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_returns_early() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let pacer = Pacer::new().expect("timer");
            for micros in [0, 50, 200, 1_500] {
                let deadline = Instant::now() + Duration::from_micros(micros);
                pacer.sleep_until(deadline).await.expect("sleeps");
                assert!(Instant::now() >= deadline);
            }
        });
    }
}
