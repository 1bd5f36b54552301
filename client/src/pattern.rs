//! Owns reading all topics of a pattern: [`PatternReader`] and [`PatternSubscriber`], which find topics and partitions
//! that come later. Decides nothing about one topic: each is read by a [`Reader`] or [`Subscriber`] of its own.
//!
//! The broker is asked now and then which topics there are. What a durable subscription misses meanwhile is kept
//! for it: the broker gives each topic of the pattern its subscription in the moment in which it creates the
//! topic. A reader begins a topic that is new with its first message.

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use postrider_protocol::{
    error::ErrorCode,
    message::{Start, TopicMetadata},
    pattern::{is_valid, matches},
    types::TopicKind,
};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    admin::Admin,
    client::Handle,
    error::{AdminError, OpenError, ReadError},
    message::{MessageBatch, Position},
    queues::NewSubscription,
    reader::{AckUpTo, Reader, ReaderBuilder, Subscriber, SubscriberBuilder},
};

/// How often it is asked which topics there are, by default.
const REFRESH: Duration = Duration::from_secs(1);

/// Something, and the topic that it is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfTopic<T> {
    /// The topic.
    pub topic: Arc<str>,
    /// What is of it.
    pub item: T,
}

/// What finds topics.
#[derive(Clone)]
struct Search {
    handle: Arc<Handle>,
    pattern: String,
    refresh: Duration,
}

/// Reads some partitions of one topic.
trait Source: Sized + Send + 'static {
    type Codec;

    /// How such a one is opened.
    type Opener: Clone + Send + Sync + 'static;

    fn open(
        search: &Search,
        opener: &Self::Opener,
        wanted: Wanted,
    ) -> impl Future<Output = Result<Self, OpenError>> + Send;

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<MessageBatch<Self::Codec>, ReadError>>>;
}

/// Partitions of a topic that are not read yet.
#[derive(Clone, Debug)]
struct Wanted {
    topic: String,
    partitions: std::ops::Range<u32>,
    /// It was there when the reading began.
    is_old: bool,
}

/// A search in the background: sources that were opened, with what they read; none after the client was closed.
type Searching<S> = Pin<Box<dyn Future<Output = Option<Vec<(Wanted, S)>>> + Send>>;

struct Sources<S: Source> {
    search: Search,
    opener: S::Opener,
    open: Vec<OfTopic<S>>,
    /// The partitions of each topic that are read, from 0.
    known: BTreeMap<String, u32>,
    /// Whose turn it is.
    turn: usize,
    ticks: Interval,
    searching: Option<Searching<S>>,
    /// The client was closed, or the reading has ended with an error.
    closed: bool,
}

type Batch<S> = MessageBatch<<S as Source>::Codec>;

impl<S: Source> Sources<S> {
    async fn open(search: Search, opener: S::Opener) -> Result<Self, OpenError> {
        if !is_valid(&search.pattern) {
            let range = "of a-z, A-Z, 0-9, '.', '_', '-' and at least one *";
            return Err(OpenError::Option { option: "pattern", range });
        }
        let mut open = Vec::new();
        let mut known = BTreeMap::new();
        for wanted in wanted(&search, &known, true).await.map_err(OpenError::from_admin)? {
            let source = S::open(&search, &opener, wanted.clone()).await?;
            known.insert(wanted.topic.clone(), wanted.partitions.end);
            open.push(OfTopic { topic: wanted.topic.into(), item: source });
        }
        let mut ticks = interval(search.refresh);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        Ok(Self { search, opener, open, known, turn: 0, ticks, searching: None, closed: false })
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<OfTopic<Batch<S>>, ReadError>>> {
        self.poll_search(cx);
        if self.closed {
            return Poll::Ready(None);
        }
        let mut left = self.open.len();
        while left > 0 {
            left -= 1;
            self.turn = if self.turn + 1 < self.open.len() { self.turn + 1 } else { 0 };
            let Some(source) = self.open.get_mut(self.turn) else { break };
            let Poll::Ready(next) = source.item.poll_batch(cx) else { continue };
            match next {
                Some(Ok(batch)) => {
                    let topic = Arc::clone(&source.topic);
                    return Poll::Ready(Some(Ok(OfTopic { topic, item: batch })));
                }
                Some(Err(why)) if !why.is_fatal() => return Poll::Ready(Some(Err(why))),
                // The client was closed.
                None => return Poll::Ready(None),
                // A topic that is deleted is no trouble for the others, and may come again.
                Some(Err(ReadError::Ended(error))) if error.code == ErrorCode::UnknownTopic => {
                    let topic = Arc::clone(&source.topic);
                    self.known.remove(&*topic);
                    self.open.retain(|other| other.topic != topic);
                    left = left.min(self.open.len());
                }
                // Somebody else reads, or the subscription is deleted: to go on would take it back, or make it anew.
                Some(Err(why)) => {
                    self.closed = true;
                    self.open.clear();
                    return Poll::Ready(Some(Err(why)));
                }
            }
        }
        Poll::Pending
    }

    /// Goes on looking for topics.
    fn poll_search(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(searching) = &mut self.searching {
                let Poll::Ready(found) = searching.as_mut().poll(cx) else { return };
                self.searching = None;
                self.closed |= found.is_none();
                for (wanted, source) in found.unwrap_or_default() {
                    self.known.insert(wanted.topic.clone(), wanted.partitions.end);
                    self.open.push(OfTopic { topic: wanted.topic.into(), item: source });
                }
            }
            if self.ticks.poll_tick(cx).is_pending() {
                return;
            }
            let (search, opener) = (self.search.clone(), self.opener.clone());
            let known = self.known.clone();
            self.searching = Some(Box::pin(async move { find(search, opener, known).await }));
        }
    }
}

/// Opens what is new. What fails is tried again with the next search.
async fn find<S: Source>(
    search: Search,
    opener: S::Opener,
    known: BTreeMap<String, u32>,
) -> Option<Vec<(Wanted, S)>> {
    let mut found = Vec::new();
    let wanted = match wanted(&search, &known, false).await {
        Ok(wanted) => wanted,
        Err(AdminError::Closed) => return None,
        Err(why) => {
            tracing::debug!(%why, pattern = search.pattern, "the topics are asked for again later");
            return Some(found);
        }
    };
    for wanted in wanted {
        match S::open(&search, &opener, wanted.clone()).await {
            Ok(source) => found.push((wanted, source)),
            Err(why) => {
                tracing::warn!(%why, topic = wanted.topic, "a topic cannot be read; it is tried again");
            }
        }
    }
    Some(found)
}

/// Topics of the pattern, and partitions of known ones, that are not read.
async fn wanted(
    search: &Search,
    known: &BTreeMap<String, u32>,
    is_old: bool,
) -> Result<Vec<Wanted>, AdminError> {
    let listed = Admin::new(Arc::clone(&search.handle)).list_topics().await?;
    let meant = |topic: &TopicMetadata| {
        topic.kind == TopicKind::Log && matches(&search.pattern, &topic.name)
    };
    let wanted = listed.topics.into_iter().filter(meant).filter_map(|topic| {
        let read = known.get(&topic.name).copied().unwrap_or(0);
        let partitions = read..u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        (!partitions.is_empty()).then_some(Wanted { topic: topic.name, partitions, is_old })
    });
    Ok(wanted.collect())
}

/// Makes a [`PatternReader`], or a [`PatternSubscriber`].
#[must_use = "call open() or open_as()"]
pub struct PatternBuilder<C> {
    search: Search,
    start: Start,
    codec: std::marker::PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for PatternBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PatternBuilder")
            .field("pattern", &self.search.pattern)
            .finish_non_exhaustive()
    }
}

impl<C: 'static> PatternBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>, pattern: String) -> Self {
        let search = Search { handle, pattern, refresh: REFRESH };
        Self { search, start: Start::Latest, codec: std::marker::PhantomData }
    }

    /// Sets where topics begin that are there now: earliest, latest or a time. Topics and partitions that come later
    /// begin with their first message. Default: [`Start::Latest`].
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Sets how often it is asked which topics there are. Default: every second.
    pub fn refresh(mut self, every: Duration) -> Self {
        self.search.refresh = every.max(Duration::from_millis(1));
        self
    }

    /// Reads without a durable subscription; the positions live here.
    ///
    /// # Errors
    /// It is no pattern, or see [`ReaderBuilder::open`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing open.
    pub async fn open(self) -> Result<PatternReader<C>, OpenError> {
        Ok(PatternReader { sources: Sources::open(self.search, self.start).await? })
    }

    /// Attaches to the durable subscription `name` of the pattern, which is created if it does not exist: each topic of
    /// the pattern has a subscription of that name, and keeps for it what comes while nobody reads. Queues are
    /// passed over.
    ///
    /// # Errors
    /// It is no pattern, the name breaks the rules, or see [`SubscriberBuilder::open`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing attached; the subscription may have been created.
    pub async fn open_as(self, name: impl Into<String>) -> Result<PatternSubscriber<C>, OpenError> {
        let Self { search, start, .. } = self;
        let name = name.into();
        let subscription =
            NewSubscription::new(search.pattern.clone(), name.clone()).from(start).if_not_exists();
        let created =
            Admin::new(Arc::clone(&search.handle)).create_subscription(subscription).await;
        created.map_err(OpenError::from_admin)?;
        Ok(PatternSubscriber { sources: Sources::open(search, name).await? })
    }
}

macro_rules! reading {
    () => {
        /// The topics that are read now.
        pub fn topics(&self) -> impl Iterator<Item = &str> {
            self.sources.known.keys().map(String::as_str)
        }

        /// The next messages of some topic, as they were delivered. Topics take turns. `None` after the client was
        /// closed.
        ///
        /// # Errors
        /// See [`ReadError`]; the stream continues unless the error is fatal. A topic that is deleted is left out
        /// silently.
        ///
        /// # Cancel safety
        /// Dropping the future loses nothing.
        pub async fn next_batch(&mut self) -> Option<Result<OfTopic<MessageBatch<C>>, ReadError>> {
            poll_fn(|cx| self.sources.poll_batch(cx)).await
        }
    };
}

/// Reads all topics of a pattern, those that come later included.
pub struct PatternReader<C: 'static> {
    sources: Sources<Reader<C>>,
}

impl<C> fmt::Debug for PatternReader<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PatternReader").field(&self.sources.search.pattern).finish()
    }
}

impl<C> PatternReader<C> {
    reading!();
}

impl<C: 'static> Source for Reader<C> {
    type Codec = C;
    type Opener = Start;

    async fn open(search: &Search, start: &Start, wanted: Wanted) -> Result<Self, OpenError> {
        let start = if wanted.is_old { start.clone() } else { Start::Earliest };
        let reader = ReaderBuilder::new(Arc::clone(&search.handle), wanted.topic);
        reader.from(start).partitions(wanted.partitions).open().await
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<MessageBatch<C>, ReadError>>> {
        Self::poll_batch(self, cx)
    }
}

/// Consumes the durable subscription of a pattern, in all its topics, those that come later included.
pub struct PatternSubscriber<C: 'static> {
    sources: Sources<Subscriber<C>>,
}

impl<C> fmt::Debug for PatternSubscriber<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PatternSubscriber").field(&self.sources.search.pattern).finish()
    }
}

impl<C> PatternSubscriber<C> {
    reading!();

    /// As [`Subscriber::ack_up_to`], in a topic. `None` if the topic is not read any more.
    pub fn ack_up_to(&self, topic: &str, position: impl Into<Position>) -> Option<AckUpTo> {
        let position = position.into();
        let reads = |source: &&OfTopic<Subscriber<C>>| {
            &*source.topic == topic && source.item.reads(position.partition)
        };
        let source = self.sources.open.iter().find(reads)?;
        Some(source.item.ack_up_to(position))
    }
}

impl<C: 'static> Source for Subscriber<C> {
    type Codec = C;
    type Opener = String;

    async fn open(search: &Search, name: &String, wanted: Wanted) -> Result<Self, OpenError> {
        let handle = Arc::clone(&search.handle);
        // It exists, but for topics that the pattern has just been given to.
        let subscriber = SubscriberBuilder::new(handle, wanted.topic, name.clone());
        subscriber.partitions(wanted.partitions).open().await
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<MessageBatch<C>, ReadError>>> {
        Self::poll_batch(self, cx)
    }
}
