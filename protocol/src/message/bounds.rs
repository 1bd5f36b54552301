//! Owns the bounds of a topic: how old its messages may be when they are delivered, how many there may be,
//! and what happens at a bound. Never enforces one: the broker's core does. Carried by the messages that
//! create, alter and describe topics.

use super::wire_struct;
use crate::codec::{DecodeError, Reader, Wire, Writer};

/// How long an idempotency key is remembered where the topic says nothing: 10 minutes.
pub const DEDUP_WINDOW_MS_DEFAULT: u64 = 10 * 60 * 1_000;
/// The shortest window.
pub const DEDUP_WINDOW_MS_MIN: u64 = 1_000;
/// The longest window: 7 days.
pub const DEDUP_WINDOW_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;

macro_rules! choice {
    (
        $(#[$meta:meta])*
        $name:ident ($what:literal) { $($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant = $code,)*
        }

        impl $name {
            /// The one with this number, if there is one.
            #[must_use]
            pub fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The word used in the command line and in metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl Wire for $name {
            const BYTES_MIN: usize = 1;

            fn put(&self, out: &mut Writer<'_>) {
                (*self as u8).put(out);
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::from_u8(input.take()?).ok_or(DecodeError::Invalid($what))
            }
        }
    };
}

choice! {
    /// What becomes of a message of a queue that is too old: one byte.
    Expired ("expired") {
        /// It is settled as expired.
        #[default]
        Drop = 0, "drop";
        /// It goes to the dead letter topic.
        DeadLetter = 1, "dead_letter";
    }
}

choice! {
    /// What happens when a topic holds as much as it may: one byte.
    Overflow ("overflow") {
        /// Publishes are rejected with `TopicFull`.
        #[default]
        Reject = 0, "reject";
        /// The oldest messages make room.
        DropOldest = 1, "drop_oldest";
        /// The oldest messages of a queue go to its dead letter topic.
        DeadLetter = 2, "dead_letter";
    }
}

wire_struct! {
    /// How old and how many a topic's messages may be.
    #[derive(Copy, Default)]
    pub struct TopicBounds {
        /// A message that is older is not delivered any more; none = whatever its age.
        pub message_ttl_ms: Option<u64>,
        /// What becomes of a queue's messages that are older.
        pub expired: Expired,
        /// The most messages per partition: of a queue unsettled ones, else kept ones; none = any number.
        pub max_messages: Option<u64>,
        /// The most bytes of such messages per partition; none = any number.
        pub max_bytes: Option<u64>,
        /// What happens at these two.
        pub overflow: Overflow,
        /// How long an idempotency key is remembered at least; none = [`DEDUP_WINDOW_MS_DEFAULT`].
        pub dedup_window_ms: Option<u64>,
    }
}

wire_struct! {
    /// A change of a topic's bounds. None = leave as it is; some none = no bound.
    #[derive(Copy, Default)]
    pub struct BoundsChange {
        /// How old messages may be.
        pub message_ttl_ms: Option<Option<u64>>,
        /// What becomes of a queue's messages that are older.
        pub expired: Option<Expired>,
        /// The most messages per partition.
        pub max_messages: Option<Option<u64>>,
        /// The most bytes per partition.
        pub max_bytes: Option<Option<u64>>,
        /// What happens at these two.
        pub overflow: Option<Overflow>,
        /// How long an idempotency key is remembered at least.
        pub dedup_window_ms: Option<Option<u64>>,
    }
}

impl TopicBounds {
    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether messages leave a queue because there are too many, instead of new ones being refused.
    #[must_use]
    pub fn sheds(&self) -> bool {
        self.max_messages.is_some() && self.overflow != Overflow::Reject
    }

    /// How long an idempotency key is remembered at least.
    #[must_use]
    pub fn dedup_window(&self) -> u64 {
        self.dedup_window_ms.unwrap_or(DEDUP_WINDOW_MS_DEFAULT)
    }

    /// With a change.
    #[must_use]
    pub fn changed(&self, change: &BoundsChange) -> Self {
        let BoundsChange {
            message_ttl_ms,
            expired,
            max_messages,
            max_bytes,
            overflow,
            dedup_window_ms,
        } = *change;
        Self {
            message_ttl_ms: message_ttl_ms.unwrap_or(self.message_ttl_ms),
            expired: expired.unwrap_or(self.expired),
            max_messages: max_messages.unwrap_or(self.max_messages),
            max_bytes: max_bytes.unwrap_or(self.max_bytes),
            overflow: overflow.unwrap_or(self.overflow),
            dedup_window_ms: dedup_window_ms.unwrap_or(self.dedup_window_ms),
        }
    }
}

impl BoundsChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
