//! Owns what the leader knows of one message that was handed out or has failed. Never finds one (the
//! dispatcher's map does).

/// No consumer.
pub(super) const NOBODY: u64 = u64::MAX;

/// Where such a message is; see the diagram in `queue`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum HeldState {
    /// A consumer has it.
    Leased,
    /// To be handed out again, at its due time.
    Waiting,
    /// Its lease has ended, and the entry that counts the failure is not committed. An ack of that lease
    /// is still welcome.
    Returning,
    /// The consumer said that it failed; the entry is not committed.
    GivenBack,
    /// It has failed too often, or was rejected, and the dead letter topic is not known yet.
    Doomed,
    /// The entry with its dead letter is not committed.
    Dying,
    /// Its dead letter is committed, and not known to be published.
    Dead,
}

/// See the module. 40 bytes, one per message that was handed out and is not settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    /// Leased, Returning, GivenBack, Dying: when it was leased, in monotonic ms. Waiting: when it is due,
    /// in wall ms.
    pub(super) time: u64,
    /// Its number among the messages that went to the consumer.
    pub(super) dispatch: u64,
    /// Who has it, or had it until the lease ended by itself; [`NOBODY`] after it was given back.
    pub(super) member: u64,
    /// About how many bytes it weighs; 0 if that is not known.
    pub(super) weight: u32,
    /// Hand-outs in this leadership.
    pub(super) attempt: u32,
    /// Committed failures.
    pub(super) failures: u16,
    pub(super) state: HeldState,
    /// An ack was accepted, and is not committed.
    pub(super) acking: bool,
    /// Was `Doomed` before it was `Dying`.
    pub(super) doomed: bool,
    /// Was `Waiting` before it was `Dying`, and `time` is when it is due.
    pub(super) killed: bool,
}

const _: () = assert!(size_of::<Held>() <= 40, "what a message in hand costs in memory");

impl Held {
    /// Whether this hand-out may still be acknowledged.
    pub(super) fn may_be_acked(&self, member: u64, attempt: u32) -> bool {
        self.is_of(member, attempt)
            && match self.state {
                HeldState::Leased
                | HeldState::Waiting
                | HeldState::Returning
                | HeldState::Doomed => true,
                HeldState::GivenBack | HeldState::Dying | HeldState::Dead => false,
            }
    }

    /// Whether it is the newest hand-out, to this consumer.
    pub(super) fn is_of(&self, member: u64, attempt: u32) -> bool {
        self.member == member && self.attempt == attempt
    }

    /// Whether a consumer has it, or what it said of it is not committed.
    pub(super) fn is_out(&self) -> bool {
        self.acking
            || match self.state {
                HeldState::Leased
                | HeldState::Returning
                | HeldState::GivenBack
                | HeldState::Dying => true,
                HeldState::Waiting | HeldState::Doomed | HeldState::Dead => false,
            }
    }

    /// Whether it is on its way to the dead letter topic.
    pub(super) fn is_dying(&self) -> bool {
        match self.state {
            HeldState::Doomed | HeldState::Dying | HeldState::Dead => true,
            HeldState::Leased
            | HeldState::Waiting
            | HeldState::Returning
            | HeldState::GivenBack => false,
        }
    }

    pub(super) fn is_leased(&self) -> bool {
        self.state == HeldState::Leased && !self.acking
    }
}
