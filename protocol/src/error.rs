//! Owns the error codes: number, class, retry rule, meaning; and [`ErrorBody`], which carries one.
//! Never decides which error fits. Driven by the broker, which refuses, and by the client, which reacts.

use bytes::BytesMut;

use crate::codec::{DecodeError, Reader, STRING_BYTES_MAX, Wire, Writer};

/// What is certain about a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ErrorClass {
    /// Definitely not done, and it never will be by this request.
    Rejected = 1,
    /// Done or not: the broker cannot say.
    Unknown = 2,
    /// Done before; the first outcome is repeated.
    Duplicate = 3,
    /// Done.
    Committed = 4,
}

impl ErrorClass {
    /// The class with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Rejected),
            2 => Some(Self::Unknown),
            3 => Some(Self::Duplicate),
            4 => Some(Self::Committed),
            _ => None,
        }
    }
}

/// What a client may do with the same request, without its user.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Retry {
    /// Nothing: the same request would fail again.
    Never,
    /// Send it again on this connection, after `retry_after_ms`.
    SameConnection,
    /// Send it again on a new connection, after `retry_after_ms`.
    Reconnect,
    /// Ask for `Metadata`, then send it again to the leader that it names.
    RefreshMetadata,
}

impl Retry {
    /// The words used in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::SameConnection => "same connection",
            Self::Reconnect => "reconnect",
            Self::RefreshMetadata => "refresh metadata",
        }
    }
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $class:ident, $retry:ident;)*) => {
        /// Why a request was not done.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name = $code,)*
        }

        impl ErrorCode {
            /// Every code, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code with this number, if this build knows it.
            #[must_use]
            pub fn from_u16(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name in the document, in logs and in metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What is certain about a request that ended with it, unless the message says otherwise.
            #[must_use]
            pub fn class(self) -> ErrorClass {
                match self {
                    $(Self::$name => ErrorClass::$class,)*
                }
            }

            /// What a client may do without its user.
            #[must_use]
            pub fn retry(self) -> Retry {
                match self {
                    $(Self::$name => Retry::$retry,)*
                }
            }
        }
    };
}

error_codes! {
    /// No protocol version, or no version of this api, is spoken by both sides.
    UnsupportedVersion = 1, Rejected, Never;
    /// A frame or a body is not canonical. The connection ends.
    MalformedFrame = 2, Rejected, Never;
    /// The api number is not known here.
    UnknownApi = 3, Rejected, Never;
    /// A frame is larger than the negotiated limit. The connection ends.
    FrameTooLarge = 4, Rejected, Never;
    /// Another frame came before `Hello`. The connection ends.
    NotNegotiated = 5, Rejected, Never;
    /// The request contradicts itself or the state of its connection.
    BadRequest = 6, Rejected, Never;
    /// The broker is short of memory or time; nothing was done.
    Overloaded = 7, Rejected, SameConnection;
    /// The broker is draining and takes no new work.
    ShuttingDown = 8, Rejected, Reconnect;
    /// The client expects another cluster.
    WrongCluster = 9, Rejected, Never;
    /// A limit that `HelloReply` states, or a configured one, would be passed.
    LimitExceeded = 10, Rejected, Never;
    /// A fault of the broker; whether the request was done is not known.
    Internal = 11, Unknown, Reconnect;
    /// There is no such topic.
    UnknownTopic = 20, Rejected, Never;
    /// The name is taken.
    TopicExists = 21, Rejected, Never;
    /// The name breaks the rules for names.
    InvalidTopicName = 22, Rejected, Never;
    /// A configuration value is out of its range.
    InvalidConfig = 23, Rejected, Never;
    /// The topic has no such partition, or not yet.
    UnknownPartition = 24, Rejected, RefreshMetadata;
    /// Another broker leads the partition.
    NotLeader = 25, Rejected, RefreshMetadata;
    /// The client knows an older leadership of the partition.
    StaleLeaderEpoch = 26, Rejected, RefreshMetadata;
    /// The topic's kind does not allow the request.
    WrongTopicKind = 27, Rejected, Never;
    /// The batch was to begin at another offset than the one that comes next, which the detail tells.
    OffsetConflict = 28, Rejected, Never;
    /// Some messages of an atomic batch are stored already, and others are not.
    AtomicConflict = 29, Rejected, Never;
    /// The batch, or a message in it, is above the limit.
    BatchTooLarge = 30, Rejected, Never;
    /// The batch's crc or fields are wrong.
    CorruptBatch = 31, Rejected, Never;
    /// The producer session is not known (expired, or never opened): open a new one.
    UnknownProducer = 32, Rejected, Never;
    /// The sequence is above the expected one, which `detail` holds: send again from there.
    OutOfOrderSequence = 33, Rejected, SameConnection;
    /// A newer epoch of the producer session exists.
    ProducerFenced = 34, Rejected, Never;
    /// The disk is full; reads and acks still work.
    DiskFull = 35, Rejected, SameConnection;
    /// The disk failed under the write; whether it is stored is not known.
    StorageFailed = 36, Unknown, Reconnect;
    /// The client is above its rate.
    Throttled = 37, Rejected, SameConnection;
    /// The sequence is below the expected one and too old to be remembered.
    SequenceTooOld = 38, Unknown, Never;
    /// The compression is not supported here.
    UnsupportedCompression = 39, Rejected, Never;
    /// The producer session was resumed on another connection.
    SessionMoved = 40, Rejected, Never;
    /// The idempotency key was used with another payload; the detail is the offset of that message.
    IdempotencyKeyReused = 41, Rejected, Never;
    /// The partition holds as many messages as its topic allows: publish again when some are settled.
    TopicFull = 42, Rejected, SameConnection;
    /// The partition remembers as many idempotency keys as it may: publish again when the oldest have expired.
    DedupCapacity = 43, Rejected, SameConnection;
    /// Another broker is the controller.
    NotController = 44, Rejected, RefreshMetadata;
    /// The partition has fewer in-sync replicas than it needs.
    NotEnoughReplicas = 45, Rejected, SameConnection;
    /// A newer registration of the broker exists.
    FencedIncarnation = 46, Rejected, Never;
    /// Another broker than the wanted one was reached.
    WrongNode = 47, Rejected, Never;
    /// There is no such broker in the cluster.
    UnknownBroker = 48, Rejected, Never;
    /// There is no such subscription.
    UnknownSubscription = 50, Rejected, Never;
    /// Another connection took the subscription over.
    SubscriptionTaken = 51, Rejected, Never;
    /// The owner epoch is not the current one: subscribe again.
    StaleOwnerEpoch = 52, Rejected, Never;
    /// The offset lies outside the partition's log.
    OffsetOutOfRange = 53, Rejected, Never;
    /// The name breaks the rules for names.
    InvalidSubscriptionName = 54, Rejected, Never;
    /// The connection or the topic has as many subscriptions as allowed.
    SubscriptionLimit = 55, Rejected, Never;
    /// The subscription was sought or purged since: what was handed out before is void.
    StaleSubscriptionEpoch = 56, Rejected, Never;
    /// The subscription is of the other mode (stream, queue).
    WrongSubscriptionMode = 57, Rejected, Never;
    /// The topic has a subscription of this name.
    SubscriptionExists = 58, Rejected, Never;
    /// The broker waited in vain; whether the request was done is not known.
    TimedOut = 60, Unknown, SameConnection;
    /// The request is defined, but not implemented by this broker.
    Unsupported = 61, Rejected, Never;
}

impl Wire for ErrorCode {
    const BYTES_MIN: usize = 2;

    fn put(&self, out: &mut Writer<'_>) {
        (*self as u16).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_u16(input.take()?).ok_or(DecodeError::Invalid("error code"))
    }
}

/// An error as it crosses the wire: `u16 code | u32 retry_after_ms | u64 detail | string message`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message} ({})", code.name())]
pub struct ErrorBody {
    /// What went wrong.
    pub code: ErrorCode,
    /// How long to wait before a retry; 0 if it does not matter.
    pub retry_after_ms: u32,
    /// `OutOfOrderSequence`: the sequence that is expected. 0 otherwise.
    pub detail: u64,
    /// The cause and the next step, for people. At most 1 KiB.
    pub message: String,
}

impl ErrorBody {
    /// An error with a text, which is cut to 1 KiB.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(text_of(&message).len());
        Self { code, retry_after_ms: 0, detail: 0, message }
    }

    /// The same, with a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: u64) -> Self {
        self.detail = detail;
        self
    }

    /// The same, with a wait before the retry.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u32) -> Self {
        self.retry_after_ms = retry_after_ms;
        self
    }

    /// Appends the body of an error reply.
    pub fn encode(&self, out: &mut BytesMut) {
        self.put(&mut Writer::new(out));
    }

    /// The body of an error reply.
    ///
    /// # Errors
    /// The bytes are not one canonical error.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(body);
        let error = input.take()?;
        input.finish()?;
        Ok(error)
    }
}

/// As much of a message as is sent: at most 1 KiB, cut between characters.
pub(crate) fn text_of(message: &str) -> &str {
    (0..=message.len().min(STRING_BYTES_MAX))
        .rev()
        .find_map(|end| message.get(..end))
        .unwrap_or_default()
}

impl Wire for ErrorBody {
    const BYTES_MIN: usize = 16;

    fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.code);
        out.put(&self.retry_after_ms);
        out.put(&self.detail);
        out.text(text_of(&self.message));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            code: input.take()?,
            retry_after_ms: input.take()?,
            detail: input.take()?,
            message: input.take()?,
        })
    }
}
