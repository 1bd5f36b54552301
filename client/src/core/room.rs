//! Owns the byte bound of a producer: who may add a message now, and who waits in which order. Never counts
//! messages, never holds one. Driven by `producer`.
//!
//! Fair: whoever waits is served in order, and nobody passes the waiters. A message larger than the whole
//! bound is admitted when nothing else is held, so that it cannot wait for ever.

use std::{collections::VecDeque, task::Waker};

use super::completion::Wakes;

/// A place in the line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(u64);

#[derive(Debug)]
pub(crate) struct Room {
    used: usize,
    limit: usize,
    /// Bounded by the application's futures that wait: each holds one place.
    line: VecDeque<Waiter>,
    tickets: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    waker: Waker,
    /// Woken since its waker was set: need not be woken again.
    woken: bool,
}

impl Room {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: 0, limit, line: VecDeque::new(), tickets: 0 }
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether the holder of `ticket` (or a newcomer) may add `bytes` now.
    pub(crate) fn admits(&self, bytes: usize, ticket: Option<Ticket>) -> bool {
        let first = self.line.front().is_none_or(|front| Some(front.ticket) == ticket);
        first && (self.used == 0 || self.used.saturating_add(bytes) <= self.limit)
    }

    /// Takes `bytes`, and hands the line on to the next if the holder of `ticket` was first.
    pub(crate) fn take(&mut self, bytes: usize, ticket: Option<Ticket>, wakes: &mut Wakes) {
        self.used = self.used.saturating_add(bytes);
        if ticket.is_some() && self.line.front().map(|front| front.ticket) == ticket {
            self.line.pop_front();
            if self.used < self.limit {
                self.wake_front(wakes);
            }
        }
    }

    /// Takes a place in the line, or refreshes the waker of the place held.
    pub(crate) fn wait(&mut self, ticket: Option<Ticket>, waker: &Waker) -> Ticket {
        let held = ticket.and_then(|t| self.line.iter_mut().find(|waiter| waiter.ticket == t));
        if let Some(waiter) = held {
            waiter.waker.clone_from(waker);
            waiter.woken = false;
            return waiter.ticket;
        }
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        self.line.push_back(Waiter { ticket, waker: waker.clone(), woken: false });
        ticket
    }

    /// Leaves the line. Whoever becomes first is woken, for the leaver may have been woken for it.
    pub(crate) fn leave(&mut self, ticket: Ticket, wakes: &mut Wakes) {
        let was_front = self.line.front().is_some_and(|front| front.ticket == ticket);
        self.line.retain(|waiter| waiter.ticket != ticket);
        if was_front {
            self.wake_front(wakes);
        }
    }

    /// Gives `bytes` back. The first in line is woken once an eighth of the bound is free: woken for every
    /// batch, a flooding producer would switch tasks for each.
    pub(crate) fn release(&mut self, bytes: usize, wakes: &mut Wakes) {
        assert!(bytes <= self.used, "{bytes} bytes given back, {} held", self.used);
        self.used -= bytes;
        if self.limit.saturating_sub(self.used) >= self.limit / 8 {
            self.wake_front(wakes);
        }
    }

    /// Wakes everybody: the producer has ended.
    pub(crate) fn wake_all(&mut self, wakes: &mut Wakes) {
        for waiter in &mut self.line {
            if !waiter.woken {
                waiter.woken = true;
                wakes.push(waiter.waker.clone());
            }
        }
    }

    fn wake_front(&mut self, wakes: &mut Wakes) {
        if let Some(front) = self.line.front_mut().filter(|front| !front.woken) {
            front.woken = true;
            wakes.push(front.waker.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wakes(room_event: impl FnOnce(&mut Wakes)) -> bool {
        let mut wakes = Wakes::default();
        room_event(&mut wakes);
        !wakes.is_empty()
    }

    #[test]
    fn nobody_passes_the_line() {
        let mut room = Room::new(100);
        room.take(100, None, &mut Wakes::default());
        let first = room.wait(None, Waker::noop());
        let second = room.wait(None, Waker::noop());
        assert!(wakes(|w| room.release(60, w)));
        assert!(!room.admits(1, None));
        assert!(!room.admits(1, Some(second)));
        assert!(room.admits(60, Some(first)));
        assert!(wakes(|w| room.take(20, Some(first), w)), "the next in line is woken");
        assert!(room.admits(40, Some(second)));
    }

    #[test]
    fn a_waiter_that_leaves_after_it_was_woken_wakes_the_next() {
        let mut room = Room::new(10);
        room.take(10, None, &mut Wakes::default());
        let first = room.wait(None, Waker::noop());
        let _second = room.wait(None, Waker::noop());
        assert!(wakes(|w| room.release(10, w)));
        assert!(wakes(|w| room.leave(first, w)));
    }

    #[test]
    fn a_message_above_the_bound_enters_an_empty_room() {
        let mut room = Room::new(10);
        assert!(room.admits(50, None));
        room.take(50, None, &mut Wakes::default());
        assert!(!room.admits(1, None));
    }
}
