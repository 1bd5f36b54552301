//! Owns the table of api codes: number, name, direction, versions. Never encodes a body (`message`
//! does). Driven by whoever dispatches frames, and by the tests that compare it with the document.

/// The protocol version that this build speaks, as negotiated by `Hello`.
pub const PROTOCOL_VERSION: u16 = 1;

/// Who sends a message of an api, and whether it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Client (or dialling broker) to broker, answered by exactly one reply with the same correlation id.
    Request,
    /// Client to broker, never answered by a reply; its correlation id is 0.
    OneWay,
    /// Broker to client, unasked; its correlation id is 0.
    Event,
}

impl Direction {
    /// The word used in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::OneWay => "one-way",
            Self::Event => "event",
        }
    }
}

/// One line of the api table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApiInfo {
    /// The api.
    pub api: Api,
    /// Its name in the document, in logs and in metrics.
    pub name: &'static str,
    /// Who sends it.
    pub direction: Direction,
    /// The lowest version of its body that this build decodes.
    pub version_min: u8,
    /// The highest version of its body that this build decodes.
    pub version_max: u8,
}

macro_rules! apis {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $direction:ident;)*) => {
        /// What a frame is about.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Api {
            $($(#[$doc])* $name = $code,)*
        }

        /// Every api, by number.
        pub const APIS: &[ApiInfo] = &[
            $(ApiInfo {
                api: Api::$name,
                name: stringify!($name),
                direction: Direction::$direction,
                version_min: 1,
                version_max: 1,
            },)*
        ];

        impl Api {
            /// The api with this number, if this build knows it.
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

            /// Who sends it, and whether it is answered.
            #[must_use]
            pub fn direction(self) -> Direction {
                match self {
                    $(Self::$name => Direction::$direction,)*
                }
            }
        }
    };
}

apis! {
    /// Version, features, limits, identity. The first frame on a connection.
    Hello = 1, Request;
    /// Is the other side alive?
    Ping = 2, Request;
    /// Brokers, topics, partitions, leaders.
    Metadata = 10, Request;
    /// Create a topic.
    CreateTopic = 11, Request;
    /// Change a topic's configuration, or add partitions.
    AlterTopic = 12, Request;
    /// Delete a topic with all its data.
    DeleteTopic = 13, Request;
    /// A topic's configuration, partitions and subscriptions.
    DescribeTopic = 14, Request;
    /// Open or resume a producer session.
    OpenProducer = 20, Request;
    /// A batch to store. Answered by `Confirm`.
    Publish = 21, OneWay;
    /// What became of published sequences.
    Confirm = 22, Event;
    /// A batch to store now and to deliver later. Answered by `Confirm`.
    PublishDelayed = 23, OneWay;
    /// Take back delayed messages.
    CancelDelayed = 24, Request;
    /// The delayed messages of a topic by numbers.
    DescribeDelayed = 25, Request;
    /// A batch to store as a whole or not at all, maybe at one offset only. Answered by `Confirm`.
    PublishAtomic = 26, OneWay;
    /// Attach to a topic.
    Subscribe = 30, Request;
    /// Entries of a subscribed partition.
    Deliver = 31, Event;
    /// More messages and bytes that the subscriber is willing to receive.
    Credit = 32, OneWay;
    /// Everything below an offset is processed.
    AckUpTo = 33, Request;
    /// Move a subscription's position.
    Seek = 34, Request;
    /// Detach.
    Unsubscribe = 35, Request;
    /// Offsets that the subscriber wanted and cannot have.
    Gap = 36, Event;
    /// The broker ended a subscription.
    SubscriptionClosed = 37, Event;
    /// A subscription's position was moved.
    Seeked = 38, Event;
    /// A topic's durable subscriptions.
    ListSubscriptions = 39, Request;
    /// Delete a durable subscription.
    DeleteSubscription = 40, Request;
    /// The offset at a place or a time.
    ListOffsets = 41, Request;
    /// Attach a consumer to a queue-mode subscription.
    Consume = 50, Request;
    /// Messages that are leased to a consumer.
    Lease = 51, Event;
    /// Leased messages are processed.
    Ack = 52, Request;
    /// Leased messages are given back.
    Return = 53, Request;
    /// Renew all leases of an attachment.
    Renew = 54, OneWay;
    /// Leases have ended without the consumer.
    LeaseLost = 55, Event;
    /// Create a queue.
    CreateQueue = 56, Request;
    /// Create a durable subscription.
    CreateSubscription = 57, Request;
    /// Change the policy of a queue-mode subscription.
    AlterQueue = 58, Request;
    /// Numbers and consumers of a queue-mode subscription.
    DescribeQueue = 59, Request;
    /// What keeps one message of a queue-mode subscription.
    WhyMessage = 60, Request;
    /// Settle everything in a queue-mode subscription.
    PurgeQueue = 61, Request;
    /// Send dead letters back to their topics.
    RedriveLetters = 62, Request;
    /// Have one message of a queue-mode subscription handed out now.
    ReleaseMessage = 63, Request;
    /// The subscriptions by pattern.
    ListPatterns = 64, Request;
    /// Become a member of a consumer group.
    JoinGroup = 70, Request;
    /// A member reads a partition from here on.
    GroupAssigned = 71, Event;
    /// A member is to give a partition back, or has lost it.
    GroupRevoked = 72, Event;
    /// A member has finished with a revoked partition.
    GroupReleased = 73, Request;
    /// A member lives.
    GroupHeartbeat = 74, OneWay;
    /// End a membership.
    LeaveGroup = 75, Request;
    /// A membership has ended without the client.
    GroupFenced = 76, Event;
    /// Members and partitions of a consumer group.
    DescribeGroup = 77, Request;
    /// The connection is one between brokers.
    PeerHello = 80, Request;
    /// A call of the controller's Raft group.
    RaftCall = 81, Request;
    /// A broker lives.
    Heartbeat = 82, Request;
    /// Open a stream of a partition's entries at its leader.
    OpenReplica = 83, Request;
    /// Entries for a follower.
    ReplicaEntries = 84, Event;
    /// How far a follower is.
    ReplicaAck = 85, OneWay;
    /// Propose in-sync sets to the controller.
    AlterIsr = 86, Request;
    /// How far a replica's logs go.
    ProbeEnd = 87, Request;
    /// Register a broker.
    JoinCluster = 88, Request;
    /// A metadata command for the controller.
    Propose = 89, Request;
    /// A part of a snapshot.
    FetchSnapshot = 90, Request;
    /// Let others lead.
    Resign = 91, Request;
}
