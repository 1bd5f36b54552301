//! Owns a member's process: what it was told, what it holds, what it has handed to its application. Never
//! knows more than the messages in its inbox say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use postrider_core::group::MemberId;

/// From the broker, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    Assigned { partition: usize, epoch: u64, next: u64 },
    Revoked { partition: usize, epoch: u64 },
    Lost { partition: usize, epoch: u64 },
    Seeked { partition: usize, epoch: u64, next: u64 },
    Messages { partition: usize, epoch: u64, from: u64, to: u64 },
    Fenced,
}

/// A partition that the client believes to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) epoch: u64,
    /// What lies below went to the application.
    pub(crate) next: u64,
    pub(crate) is_revoked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    Running,
    /// Stopped: hears and says nothing, may go on.
    Paused,
    /// Killed.
    Dead,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) member: MemberId,
    pub(crate) instance: Option<String>,
    pub(crate) session_timeout: Duration,
    pub(crate) life: Life,
    pub(crate) is_fenced: bool,
    pub(crate) inbox: VecDeque<Told>,
    pub(crate) holds: BTreeMap<usize, Hold>,
}

impl Client {
    /// Takes one message; tells what goes to the application.
    pub(crate) fn take(&mut self) -> Option<Told> {
        let told = self.inbox.pop_front()?;
        match told {
            Told::Assigned { partition, epoch, next } => {
                let before = self.holds.insert(partition, Hold { epoch, next, is_revoked: false });
                assert!(before.is_none(), "{:?} was assigned {partition} twice", self.member);
            }
            Told::Revoked { partition, epoch } => {
                if let Some(hold) = self.holds.get_mut(&partition) {
                    assert!(hold.epoch <= epoch && !hold.is_revoked);
                    hold.is_revoked = true;
                }
            }
            // It may have released what it now hears to be lost.
            Told::Lost { partition, epoch } => {
                if let Some(hold) = self.holds.remove(&partition) {
                    assert_eq!(hold.epoch, epoch, "told in order");
                }
            }
            Told::Seeked { partition, epoch, next } => {
                if let Some(hold) = self.holds.get_mut(&partition) {
                    assert!(epoch > hold.epoch);
                    (hold.epoch, hold.next) = (epoch, next);
                }
            }
            Told::Messages { partition, epoch, from, to } => {
                let hold = self.holds.get_mut(&partition)?;
                assert_eq!((hold.epoch, hold.next), (epoch, from), "C1: contiguous in one epoch");
                hold.next = to;
            }
            Told::Fenced => {
                self.holds.clear();
                self.is_fenced = true;
            }
        }
        Some(told)
    }
}
