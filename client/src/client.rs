//! Owns the public entry: [`Client`], its builder, its events and its end. Drives the connection task in `io`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider_protocol::types::{ClusterId, NodeId};
use tokio::{
    sync::{broadcast, oneshot},
    task::JoinHandle,
};

use crate::{
    admin::Admin,
    backoff::Backoff,
    consumer::ConsumerBuilder,
    core::{
        Engine, EngineOptions,
        completion::{lock, promise},
    },
    error::{Attempt, ConnectError},
    group::GroupMemberBuilder,
    io::{self, Dialer, Shared},
    pattern::PatternBuilder,
    priority::PriorityConsumerBuilder,
    producer::ProducerBuilder,
    reader::{ReaderBuilder, SubscriberBuilder},
    url,
};

/// Events that a slow receiver may lag behind; then it misses the oldest.
const EVENTS_MAX: usize = 64;

/// A connection to a Postrider cluster that repairs itself. Cheap to clone; all clones share the connection.
///
/// When the last handle (client, producer, reader, ...) is dropped, what is enqueued is still sent for up to ten
/// seconds in the background. Call [`Client::close`] to wait for it and to learn what was left.
#[derive(Clone)]
pub struct Client {
    pub(crate) handle: Arc<Handle>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Shared by everything that was made from a client.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) request_timeout: Duration,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.release();
    }
}

/// News of the connection, from [`Client::events`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientEvent {
    /// A broker has greeted; producers and subscriptions resume.
    Connected {
        /// Its address.
        address: SocketAddr,
        /// Its cluster.
        cluster: ClusterId,
        /// Its number.
        node: NodeId,
        /// Its version.
        server_version: String,
    },
    /// The connection was lost.
    Disconnected {
        /// Why.
        cause: String,
        /// The wait before the next attempt.
        retry_in: Duration,
    },
    /// All addresses were tried in vain.
    ConnectFailed {
        /// What happened at each.
        attempts: Vec<Attempt>,
        /// The wait before the next round.
        retry_in: Duration,
    },
}

/// What was left undone when a client was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CloseReport {
    /// Messages that were never sent: definitely not stored.
    pub unsent: u64,
    /// Messages that were sent and not confirmed: stored or not.
    pub unacked: u64,
}

impl CloseReport {
    /// Whether every message has its outcome.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Makes a [`Client`].
#[derive(Clone, Debug)]
#[must_use = "call connect()"]
pub struct ClientBuilder {
    url: String,
    name: String,
    backoff: Backoff,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl ClientBuilder {
    /// Sets the name that the broker shows in its logs. Default: `postrider-client`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the waits between attempts to reconnect. Default: 50 ms to 10 s, for ever.
    pub fn reconnect(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how long one address may take to connect and greet. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long opening a producer or reader and an administrative request may take. Default: 30 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Connects: tries every address of every host in the URL once.
    ///
    /// # Errors
    /// The URL cannot be used, no address answered, or the broker refused the connection. Only the first
    /// connection can fail; later the client reconnects by itself.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the connection.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let hosts = url::parse(&self.url)?;
        let random = || getrandom::u64().map_err(|why| ConnectError::NoRandomness(why.to_string()));
        let mut client_id = [0; 16];
        getrandom::fill(&mut client_id)
            .map_err(|why| ConnectError::NoRandomness(why.to_string()))?;
        let engine =
            Engine::new(EngineOptions { client_name: self.name, client_id, seed: random()? });
        let dialer = Dialer {
            hosts,
            backoff: self.backoff,
            attempt_timeout: self.connect_timeout,
            random: random()?,
        };
        let (events, _nobody_yet) = broadcast::channel(EVENTS_MAX);
        let shared = Arc::new(Shared::new(engine, events));
        let (first, connected) = oneshot::channel();
        let task = tokio::spawn(io::run(Arc::clone(&shared), dialer, first));
        let handle =
            Handle { shared, request_timeout: self.request_timeout, task: Mutex::new(Some(task)) };
        match connected.await {
            Ok(Ok(())) => Ok(Client { handle: Arc::new(handle) }),
            Ok(Err(why)) => Err(why),
            Err(_task_ended) => Err(ConnectError::Unreachable(Vec::new())),
        }
    }
}

impl Client {
    /// A client for `postrider://host:7420,host2:7420`; the port defaults to 7420.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            name: "postrider-client".to_owned(),
            backoff: Backoff::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
        }
    }

    /// Starts to make a producer of codec `C` ([`Raw`](crate::Raw), [`Json`](crate::Json)).
    pub fn producer<C>(&self, topic: impl Into<String>) -> ProducerBuilder<C> {
        ProducerBuilder::new(Arc::clone(&self.handle), topic.into())
    }

    /// Starts to make a reader: ephemeral, its position lives in this process.
    pub fn reader<C>(&self, topic: impl Into<String>) -> ReaderBuilder<C> {
        ReaderBuilder::new(Arc::clone(&self.handle), topic.into())
    }

    /// Starts to attach to the durable subscription `name`, which is created if it does not exist.
    pub fn subscriber<C>(
        &self,
        topic: impl Into<String>,
        name: impl Into<String>,
    ) -> SubscriberBuilder<C> {
        SubscriberBuilder::new(Arc::clone(&self.handle), topic.into(), name.into())
    }

    /// Starts to make a consumer of a queue, or of a queue-mode subscription of a topic.
    pub fn consumer<C>(&self, topic: impl Into<String>) -> ConsumerBuilder<C> {
        ConsumerBuilder::new(Arc::clone(&self.handle), topic.into())
    }

    /// Starts to read all topics of a pattern: `*` stands for any number of characters.
    pub fn pattern<C: 'static>(&self, pattern: impl Into<String>) -> PatternBuilder<C> {
        PatternBuilder::new(Arc::clone(&self.handle), pattern.into())
    }

    /// Starts to make a consumer of several queues, which takes messages by priority.
    pub fn priority_consumer<C: 'static>(&self) -> PriorityConsumerBuilder<C> {
        PriorityConsumerBuilder::new(Arc::clone(&self.handle))
    }

    /// Starts to join the consumer group of the durable subscription `name`, which is created if it does not exist:
    /// its members share the topic's partitions.
    pub fn group_member<C>(
        &self,
        topic: impl Into<String>,
        name: impl Into<String>,
    ) -> GroupMemberBuilder<C> {
        GroupMemberBuilder::new(Arc::clone(&self.handle), topic.into(), name.into())
    }

    /// Topics, queues, subscriptions, offsets.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.handle))
    }

    /// The version of the broker that greeted last.
    #[must_use]
    pub fn server_version(&self) -> String {
        lock(&self.handle.shared.server_version).clone()
    }

    /// News of the connection from now on. A receiver that lags more than 64 events misses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<ClientEvent> {
        self.handle.shared.events.subscribe()
    }

    /// Flushes every producer and settles the outcomes that consumers were given, for at most `timeout`, then ends
    /// the connection and everything made from this client: producers refuse messages, streams end, deliveries
    /// without an outcome go back to their queues.
    ///
    /// # Cancel safety
    /// Dropped during the flush, it has only flushed; the client goes on. Dropped later, the client ends in the
    /// background.
    pub async fn close(&self, timeout: Duration) -> CloseReport {
        let shared = &self.handle.shared;
        let flushed = async {
            for key in shared.with(|engine| engine.producer_keys()) {
                let (done, flushed) = promise();
                shared.with(|engine| engine.flush(key, done));
                // Failures are reported by each message's ack.
                let _outcome = flushed.await;
            }
            let consumers = shared.with(|engine| engine.consumer_handles());
            let leaving = consumers.into_iter().map(|consumer| {
                let (done, left) = promise();
                shared.with(|engine| engine.leave_consumer(consumer, done));
                left
            });
            for left in leaving.collect::<Vec<_>>() {
                let _left = left.await;
            }
        };
        // What is left when the time is over is counted below.
        let _in_time = tokio::time::timeout(timeout, flushed).await;
        let left = shared.with(Engine::close);
        shared.end();
        let task = lock(&self.handle.task).take();
        if let Some(task) = task
            && let Err(why) = task.await
        {
            tracing::warn!(%why, "the connection task ended badly");
        }
        CloseReport { unsent: left.unsent, unacked: left.unacked }
    }
}
