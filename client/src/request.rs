//! Owns requests with replies over topics: [`Requester`] asks and waits, [`Responder`] answers. The names of the
//! headers are `reply-to` (a topic) and `correlation-id` (chosen by who asks, repeated by who answers). Decides nothing
//! about the protocol.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    client::{Client, Handle},
    core::completion::lock,
    error::{OpenError, RequestError, RespondError},
    message::{Headers, Message},
    payload::{Decode, Encode, Raw},
    producer::Producer,
    reader::Reader,
    record::{Receipt, Record},
};

/// The header that names the topic for replies.
pub const REPLY_TO: &str = "reply-to";
/// The header that tells which request a reply answers.
pub const CORRELATION_ID: &str = "correlation-id";
/// Topics that a responder keeps producers for; at the bound it closes the one whose name comes first.
const REPLY_TOPICS_MAX: usize = 64;

/// Asks over a topic and gets the replies over another. Every requester reads the whole reply topic and picks its
/// own: use one reply topic per service, with a short retention.
///
/// Replies that come while the connection is lost are read after it; replies that come after their request has ended
/// are dropped.
pub struct Requester<C, R> {
    requests: Producer<C>,
    desk: Arc<Desk>,
    task: JoinHandle<()>,
    replies: PhantomData<fn() -> R>,
}

impl<C, R> fmt::Debug for Requester<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requester").field("replies", &self.desk.reply_topic).finish_non_exhaustive()
    }
}

impl<C, R> Drop for Requester<C, R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who waits for which reply.
struct Desk {
    /// Random: tells the replies of this requester from others'.
    prefix: String,
    reply_topic: String,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    ended: bool,
    /// Bounded by the application's requests.
    by_number: BTreeMap<u64, mpsc::Sender<Message<Bytes>>>,
}

/// One request that waits; forgotten when dropped.
struct Waiter {
    desk: Arc<Desk>,
    number: u64,
    replies: mpsc::Receiver<Message<Bytes>>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        lock(&self.desk.waiting).by_number.remove(&self.number);
    }
}

impl Desk {
    fn wait(self: &Arc<Self>, replies_max: usize) -> Result<Waiter, RequestError> {
        // Replies beyond those that were asked for are dropped.
        let (sender, replies) = mpsc::channel(replies_max.max(1));
        let mut waiting = lock(&self.waiting);
        if waiting.ended {
            return Err(RequestError::Ended);
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.by_number.insert(number, sender);
        drop(waiting);
        Ok(Waiter { desk: Arc::clone(self), number, replies })
    }

    fn replied(&self, reply: Message<Bytes>) {
        if reply.headers.get(REPLY_TO).is_some_and(|topic| *topic == self.reply_topic) {
            // An own request: both go over one topic.
            return;
        }
        let id = reply.headers.get(CORRELATION_ID).and_then(|id| std::str::from_utf8(id).ok());
        let number = id
            .and_then(|id| id.strip_prefix(self.prefix.as_str()))
            .and_then(|number| number.parse().ok());
        let Some(number) = number else { return };
        let mut waiting = lock(&self.waiting);
        if let Some(sender) = waiting.by_number.get(&number)
            && let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = sender.try_send(reply)
        {
            waiting.by_number.remove(&number);
        }
    }

    fn end(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.ended = true;
        waiting.by_number.clear();
    }
}

async fn read_replies(mut replies: Reader<Raw>, desk: Arc<Desk>) {
    while let Some(reply) = replies.next_message().await {
        match reply {
            Ok(reply) => desk.replied(reply),
            Err(why) => tracing::warn!(%why, "replies are missing"),
        }
    }
    desk.end();
}

impl Client {
    /// Opens a requester: requests of codec `C` go to `topic`, replies of codec `R` come over `reply_topic`. Both
    /// must exist.
    ///
    /// # Errors
    /// There is no such topic, or no broker answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing open.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn requester<C, R>(
        &self,
        topic: impl Into<String>,
        reply_topic: impl Into<String>,
    ) -> Result<Requester<C, R>, OpenError> {
        let reply_topic = reply_topic.into();
        let prefix = getrandom::u64().map_err(|why| OpenError::NoRandomness(why.to_string()))?;
        let prefix = format!("{prefix:016x}-");
        // From the end: replies to earlier requesters are not ours.
        let replies = self.reader::<Raw>(reply_topic.clone()).open().await?;
        let requests = self.producer(topic).build().await?;
        let desk = Arc::new(Desk { prefix, reply_topic, waiting: Mutex::default() });
        let task = tokio::spawn(read_replies(replies, Arc::clone(&desk)));
        Ok(Requester { requests, desk, task, replies: PhantomData })
    }

    /// Makes a responder that answers with codec `C`.
    #[must_use]
    pub fn responder<C>(&self) -> Responder<C> {
        let producers = tokio::sync::Mutex::default();
        Responder { handle: Arc::clone(&self.handle), producers }
    }
}

impl<C, R: Decode> Requester<C, R> {
    /// Publishes a request and waits for its first reply, for at most `timeout` together.
    ///
    /// # Errors
    /// The request could not be published, or nobody answered in time: see [`RequestError`].
    ///
    /// # Cancel safety
    /// Once polled, the request may be published all the same; its reply is dropped.
    pub async fn request<V>(
        &self,
        request: Record<V>,
        timeout: Duration,
    ) -> Result<Message<R::Value>, RequestError>
    where
        C: Encode<V>,
    {
        let mut replies = self.gather(request, 1, timeout).await?;
        replies.pop().ok_or(RequestError::TimedOut)
    }

    /// Publishes a request and collects replies: until there are `replies_max` of them, or `timeout` has passed since
    /// the call. Few or no replies are no error.
    ///
    /// # Errors
    /// The request could not be published in time, a reply cannot be decoded, or see [`RequestError`].
    ///
    /// # Cancel safety
    /// Once polled, the request may be published all the same; its replies are dropped.
    pub async fn gather<V>(
        &self,
        request: Record<V>,
        replies_max: usize,
        timeout: Duration,
    ) -> Result<Vec<Message<R::Value>>, RequestError>
    where
        C: Encode<V>,
    {
        let deadline = Instant::now() + timeout;
        let mut waiter = self.desk.wait(replies_max)?;
        let id = format!("{}{}", self.desk.prefix, waiter.number);
        let request =
            request.header(REPLY_TO, self.desk.reply_topic.clone()).header(CORRELATION_ID, id);
        match tokio::time::timeout_at(deadline, self.requests.send(request)).await {
            Ok(sent) => drop(sent?),
            Err(_elapsed) => return Err(RequestError::TimedOut),
        }
        let mut replies = Vec::new();
        while replies.len() < replies_max {
            match tokio::time::timeout_at(deadline, waiter.replies.recv()).await {
                Ok(Some(reply)) => {
                    replies.push(reply.decoded::<R>().map_err(RequestError::Decode)?)
                }
                Ok(None) => return Err(RequestError::Ended),
                Err(_elapsed) => break,
            }
        }
        Ok(replies)
    }
}

/// Answers requests. Keeps a producer per reply topic.
pub struct Responder<C> {
    handle: Arc<Handle>,
    producers: tokio::sync::Mutex<BTreeMap<String, Producer<C>>>,
}

impl<C> fmt::Debug for Responder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}

impl<C> Responder<C> {
    /// Answers the request that has these headers; resolves when the reply is durable.
    ///
    /// # Errors
    /// The headers name no reply topic, it cannot be opened, or the reply cannot be published.
    ///
    /// # Cancel safety
    /// Once polled, the reply may be published all the same.
    pub async fn respond<V>(
        &self,
        request: &Headers,
        reply: Record<V>,
    ) -> Result<Receipt, RespondError>
    where
        C: Encode<V>,
    {
        let topic = request
            .get(REPLY_TO)
            .and_then(|topic| std::str::from_utf8(topic).ok())
            .ok_or(RespondError::NoReplyTopic)?;
        let reply = match request.get(CORRELATION_ID) {
            Some(id) => reply.header(CORRELATION_ID, id.clone()),
            None => reply,
        };
        let producer = self.producer(topic).await?;
        Ok(producer.send(reply).await?)
    }

    async fn producer(&self, topic: &str) -> Result<Producer<C>, OpenError> {
        let mut producers = self.producers.lock().await;
        if let Some(producer) = producers.get(topic) {
            return Ok(producer.clone());
        }
        let client = Client { handle: Arc::clone(&self.handle) };
        let producer = client.producer::<C>(topic).build().await?;
        if producers.len() >= REPLY_TOPICS_MAX {
            producers.pop_first();
        }
        producers.insert(topic.to_owned(), producer.clone());
        Ok(producer)
    }
}
