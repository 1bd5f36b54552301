//! Owns one connection's session: the handshake, the dispatch of frames, and the hand-over of what is to
//! be sent. Never touches a socket or a clock, never decides. Driven by the connection: `receive` by its
//! reading side, `transmit` by its writing side, from one thread each at a time.
//!
//! Whatever makes the session unable to go on (frames that are none, requests before `Hello`) ends it with
//! a last frame; everything else is answered and the session goes on.

mod admin;
mod delays;
mod group;
mod publish;
mod queue;
mod queue_admin;
mod subscribe;

pub(crate) use queue::OnPartition;
pub(crate) use subscribe::describe;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::handshake::{ServerFacts, negotiate};
use postrider_protocol::api::{Api, Direction, PROTOCOL_VERSION};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{self, Frame, FrameHeader};
use postrider_protocol::message::{FEATURE_LZ4, FEATURE_ZSTD, Hello, Message, Ping, PingReply};
use postrider_protocol::types::{
    CorrelationId, Offset, PartitionId, SubscriptionHandle, SubscriptionId, TopicId,
};
use postrider_storage::ReadRun;

use crate::join::catalog::Catalog;
use crate::join::groups::GroupNews;
use crate::join::hub::{Hub, lock};
use crate::join::operation::Step;
use crate::join::outbox::Outbox;
use crate::join::partition::PartitionHandle;
use crate::join::readers::Readers;
use crate::join::topic::TopicHandle;

/// Partitions that a session keeps at hand; at the bound it looks them all up again.
const CACHE_MAX: usize = 16_384;

/// What others leave to the session's sending side.
pub(crate) enum SessionTask {
    /// A cursor's partition has something new.
    Ready(u64),
    /// The subscription of a reader exists, or could not be created.
    Subscribed { reader: u64, result: Result<(), ErrorBody> },
    /// All partitions have accepted the reader, or one has not.
    Attached { reader: u64, result: Result<Vec<Step>, ErrorBody> },
    /// The reader's subscription was moved.
    Seeked { reader: u64, partition: PartitionId, owner_epoch: u64, next: Offset },
    /// What a consumer group has to say.
    Group(GroupNews),
    /// The reader is cut off.
    Closed { reader: u64, error: ErrorBody },
    /// A subscription is deleted; what is left is to remove its state.
    Unsubscribed {
        correlation: CorrelationId,
        topic: Arc<TopicHandle>,
        subscription: SubscriptionId,
    },
}

/// Why a session ended: the last frame, and its error.
#[derive(Clone, Debug)]
pub struct SessionEnd {
    frame: Bytes,
    error: ErrorBody,
}

impl SessionEnd {
    /// What to send before the connection is closed.
    #[must_use]
    pub fn into_frame(self) -> Bytes {
        self.frame
    }

    /// What went wrong.
    #[must_use]
    pub fn error(&self) -> &ErrorBody {
        &self.error
    }
}

/// What `transmit` fills: chunks in order, for vectored writes.
#[derive(Debug, Default)]
pub struct Transmit {
    /// What is to be sent; the front first.
    pub chunks: std::collections::VecDeque<Bytes>,
}

impl Transmit {
    /// Nothing is left to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// What is left to be sent after `transmit`.
#[derive(Debug)]
pub enum TransmitState {
    /// Nothing, until the session wakes its connection.
    Idle,
    /// More than was asked for: call again when this is sent.
    More,
    /// What comes next lies on disk: call [`ReadRun::load`] on a thread that may block, then `transmit`
    /// again.
    Cold(ReadRun),
}

/// See the module.
pub struct Session {
    pub(crate) hub: Arc<Hub>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) outbox: Arc<Outbox>,
    inbound: Mutex<Inbound>,
    readers: Mutex<Readers>,
    closed: AtomicBool,
}

/// What the receiving side alone knows.
#[derive(Default)]
struct Inbound {
    negotiated: bool,
    /// The partition of the last publish: most sessions have one.
    last: Option<Arc<PartitionHandle>>,
    /// Never iterated.
    cache: HashMap<(TopicId, PartitionId), Arc<PartitionHandle>>,
}

impl Session {
    pub(crate) fn new(hub: Arc<Hub>, catalog: Arc<Catalog>, outbox: Arc<Outbox>) -> Self {
        let readers = Mutex::new(Readers::new(Arc::clone(&hub), Arc::clone(&outbox)));
        Self {
            hub,
            catalog,
            outbox,
            inbound: Mutex::default(),
            readers,
            closed: AtomicBool::new(false),
        }
    }

    /// Takes one frame from the client.
    ///
    /// # Errors
    /// The client broke the protocol: send the frame in the error, then close the connection.
    pub fn receive(&self, now: Now, frame: Frame) -> Result<(), SessionEnd> {
        self.hub.set_now(now);
        let header = frame.header;
        let mut inbound = lock(&self.inbound);
        if header.flags != 0 {
            return Err(self.end(header, ErrorCode::MalformedFrame, "a client sends no replies"));
        }
        let api = Api::from_u16(header.api);
        if !inbound.negotiated && api != Some(Api::Hello) {
            let text = "the first frame of a connection must be Hello";
            return Err(self.end(header, ErrorCode::NotNegotiated, text));
        }
        if api == Some(Api::Publish) && header.version == 1 {
            return self.publish(now, &mut inbound, frame);
        }
        if api == Some(Api::PublishDelayed) && header.version == 1 {
            return self.publish_delayed(now, &mut inbound, frame);
        }
        if api == Some(Api::PublishAtomic) && header.version == 1 {
            return self.publish_atomic(now, &mut inbound, frame);
        }
        self.hub.counters.requests.add(1);
        let Some(api) = api else {
            self.begin(header)?;
            let text = format!("api {} is not known to this broker; update it", header.api);
            self.refuse(header, ErrorBody::new(ErrorCode::UnknownApi, text));
            return Ok(());
        };
        if header.version != 1 {
            let text = format!("{} has version 1 here, not {}", api.name(), header.version);
            return match api.direction() {
                Direction::Request => {
                    self.begin(header)?;
                    self.refuse(header, ErrorBody::new(ErrorCode::UnsupportedVersion, text));
                    Ok(())
                }
                Direction::OneWay | Direction::Event => {
                    Err(self.end(header, ErrorCode::UnsupportedVersion, &text))
                }
            };
        }
        match api.direction() {
            Direction::Event => {
                let text = format!("{} is sent by brokers only", api.name());
                Err(self.end(header, ErrorCode::MalformedFrame, &text))
            }
            Direction::OneWay if api == Api::GroupHeartbeat => self.group_heartbeat(now, frame),
            Direction::OneWay if api == Api::Renew => self.renew(now, frame),
            Direction::OneWay if api == Api::ReplicaAck => Err(self.end_with(header, no_peer(api))),
            Direction::OneWay => self.credit(frame),
            Direction::Request if api == Api::Hello => self.hello(now, &mut inbound, frame),
            Direction::Request => {
                drop(inbound);
                self.begin(header)?;
                self.request(now, api, frame)
            }
        }
    }

    fn request(&self, now: Now, api: Api, frame: Frame) -> Result<(), SessionEnd> {
        let header = frame.header;
        let done = match api {
            Api::Ping => self.parse::<Ping>(frame).map(|_ping| {
                self.reply(header, &PingReply {});
                Ok(())
            }),
            Api::Metadata => self.parse(frame).map(|request| self.metadata(header, &request)),
            Api::CreateTopic => {
                self.parse(frame).map(|request| self.create_topic(now, header, request))
            }
            Api::AlterTopic => {
                self.parse(frame).map(|request| self.alter_topic(now, header, &request))
            }
            Api::DeleteTopic => {
                self.parse(frame).map(|request| self.delete_topic(now, header, &request))
            }
            Api::DescribeTopic => {
                self.parse(frame).map(|request| self.describe_topic(now, header, &request))
            }
            Api::OpenProducer => {
                self.parse(frame).map(|request| self.open_producer(now, header, &request))
            }
            Api::CancelDelayed => {
                self.parse(frame).map(|request| self.cancel_delayed(now, header, request))
            }
            Api::DescribeDelayed => {
                self.parse(frame).map(|request| self.describe_delayed(now, header, &request))
            }
            Api::ListOffsets => {
                self.parse(frame).map(|request| self.list_offsets(header, &request))
            }
            Api::ListSubscriptions => {
                self.parse(frame).map(|request| self.list_subscriptions(now, header, &request))
            }
            Api::ListPatterns => {
                self.parse(frame).map(|request| self.list_patterns(header, &request))
            }
            Api::DeleteSubscription => {
                self.parse(frame).map(|request| self.delete_subscription(now, header, &request))
            }
            Api::Subscribe => self.parse(frame).map(|request| self.subscribe(now, header, request)),
            Api::AckUpTo => self.parse(frame).map(|request| self.ack_up_to(now, header, &request)),
            Api::Seek => self.parse(frame).map(|request| self.seek(now, header, &request)),
            Api::Unsubscribe => {
                self.parse(frame).map(|request| self.unsubscribe(now, header, &request))
            }
            Api::Hello
            | Api::Publish
            | Api::PublishDelayed
            | Api::PublishAtomic
            | Api::Confirm
            | Api::Deliver
            | Api::Credit
            | Api::Gap
            | Api::SubscriptionClosed
            | Api::Seeked
            | Api::Lease
            | Api::LeaseLost
            | Api::Renew
            | Api::GroupAssigned
            | Api::GroupRevoked
            | Api::GroupHeartbeat
            | Api::GroupFenced
            | Api::ReplicaEntries
            | Api::ReplicaAck => unreachable!("no request, or handled before"),
            Api::JoinGroup => {
                self.parse(frame).map(|request| self.join_group(now, header, request))
            }
            Api::GroupReleased => {
                self.parse(frame).map(|request| self.group_released(now, header, &request))
            }
            Api::LeaveGroup => {
                self.parse(frame).map(|request| self.leave_group(now, header, &request))
            }
            Api::DescribeGroup => {
                self.parse(frame).map(|request| self.describe_group(now, header, &request))
            }
            Api::PeerHello
            | Api::RaftCall
            | Api::Heartbeat
            | Api::OpenReplica
            | Api::AlterIsr
            | Api::ProbeEnd
            | Api::JoinCluster
            | Api::Propose
            | Api::FetchSnapshot
            | Api::Resign => Ok(Err(no_peer(api))),
            Api::CreateQueue => {
                self.parse(frame).map(|request| self.create_queue(now, header, request))
            }
            Api::CreateSubscription => {
                self.parse(frame).map(|request| self.create_subscription(now, header, request))
            }
            Api::AlterQueue => {
                self.parse(frame).map(|request| self.alter_queue(now, header, request))
            }
            Api::Consume => self.parse(frame).map(|request| self.consume(now, header, &request)),
            Api::Ack => self.parse(frame).map(|request| self.ack(now, header, request)),
            Api::Return => self.parse(frame).map(|request| self.give_return(now, header, request)),
            Api::DescribeQueue => {
                self.parse(frame).map(|request| self.describe_queue(now, header, &request))
            }
            Api::WhyMessage => {
                self.parse(frame).map(|request| self.why_message(now, header, &request))
            }
            Api::PurgeQueue => {
                self.parse(frame).map(|request| self.purge_queue(now, header, &request))
            }
            Api::RedriveLetters => {
                self.parse(frame).map(|request| self.redrive_letters(header, request))
            }
            Api::ReleaseMessage => {
                self.parse(frame).map(|request| self.release_message(now, header, &request))
            }
        }?;
        if let Err(error) = done {
            self.refuse(header, error);
        }
        Ok(())
    }

    fn hello(&self, now: Now, inbound: &mut Inbound, frame: Frame) -> Result<(), SessionEnd> {
        let header = frame.header;
        if inbound.negotiated {
            let text = "Hello was said already";
            return Err(self.end(header, ErrorCode::BadRequest, text));
        }
        let hello: Hello = self.parse(frame)?;
        let identity = &self.hub.identity;
        let facts = ServerFacts {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            features: FEATURE_LZ4 | FEATURE_ZSTD,
            limits: self.hub.options.limits,
            cluster: identity.cluster,
            node: identity.node,
            server_version: self.hub.options.server_version.clone(),
            time: now.wall,
        };
        let reply = negotiate(&hello, &facts).map_err(|error| self.end_with(header, error))?;
        inbound.negotiated = true;
        lock(&self.readers).set_frame_bytes_max(hello.frame_bytes_max);
        self.begin(header)?;
        self.reply(header, &reply);
        Ok(())
    }

    /// Counts a request. One that comes while too many wait is one too many: a client that never reads
    /// its replies is not read either, so this one pipelines without looking at the answers.
    fn begin(&self, header: FrameHeader) -> Result<(), SessionEnd> {
        if self.outbox.begin_request(self.hub.options.requests_max) {
            return Ok(());
        }
        let text = format!(
            "{} requests of this connection are unanswered, as many as allowed",
            self.hub.options.requests_max
        );
        Err(self.end(header, ErrorCode::Overloaded, &text))
    }

    fn parse<M: Message>(&self, frame: Frame) -> Result<M, SessionEnd> {
        let header = frame.header;
        frame.message().map_err(|error| {
            self.end(header, ErrorCode::MalformedFrame, &format!("the frame is malformed: {error}"))
        })
    }

    fn end(&self, header: FrameHeader, code: ErrorCode, text: &str) -> SessionEnd {
        self.end_with(header, ErrorBody::new(code, text))
    }

    fn end_with(&self, header: FrameHeader, error: ErrorBody) -> SessionEnd {
        let error = self.hub.refuse(error);
        SessionEnd { frame: frame::error_reply(header.api, header.correlation, &error), error }
    }

    fn reply<M: Message>(&self, header: FrameHeader, message: &M) {
        self.outbox.push_reply(frame::reply(message, header.correlation));
        self.outbox.wake();
    }

    fn refuse(&self, header: FrameHeader, error: ErrorBody) {
        let error = self.hub.refuse(error);
        self.outbox.push_reply(frame::error_reply(header.api, header.correlation, &error));
        self.outbox.wake();
    }

    /// Fills `out` with what is to be sent, up to about 256 KiB.
    pub fn transmit(&self, now: Now, out: &mut Transmit) -> TransmitState {
        self.hub.set_now(now);
        lock(&self.readers).transmit(now, out)
    }

    /// Publish bytes that are not confirmed, or whose confirm is not sent.
    #[must_use]
    pub fn publish_in_flight_bytes(&self) -> usize {
        self.outbox.publish_bytes()
    }

    /// Whether the connection should be read. When it becomes true again the session wakes it, since
    /// only confirms and replies that are sent make it so.
    #[must_use]
    pub fn may_receive(&self) -> bool {
        let options = &self.hub.options;
        let publish_bytes = self.outbox.publish_bytes();
        let publish_bytes_max =
            usize::try_from(options.limits.in_flight_bytes_max).unwrap_or(usize::MAX);
        let tight = publish_bytes > 0 && self.hub.budget.is_tight();
        publish_bytes < publish_bytes_max
            && !tight
            && self.outbox.reply_bytes() < options.reply_bytes_max
    }

    /// Everything that was received is answered, and the answers are taken by `transmit`.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.outbox.is_settled()
    }

    /// Ends the session: its subscriptions are detached, nothing more is sent. What it published stays in
    /// flight. Also done on drop.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.outbox.close();
        lock(&self.readers).close(self.hub.now());
        self.hub.end_session();
    }

    fn reader_of(&self, handle: SubscriptionHandle) -> ErrorBody {
        let text = format!("there is no subscription with handle {handle} on this connection");
        ErrorBody::new(ErrorCode::UnknownSubscription, text)
    }
}

/// What a session says to requests between brokers. A connection of a peer leaves its session with
/// `PeerHello` where peers are served.
fn no_peer(api: Api) -> ErrorBody {
    match api {
        Api::PeerHello => ErrorBody::new(
            ErrorCode::Unsupported,
            "PeerHello must be the first request after Hello, and this broker must serve peers",
        ),
        _ => ErrorBody::new(
            ErrorCode::NotNegotiated,
            format!("{} is for brokers: send PeerHello first", api.name()),
        ),
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("number", &self.outbox.session).finish_non_exhaustive()
    }
}
