//! Owns the public member of a consumer group: its builder and its stream of events. Decides nothing (the broker
//! says who reads what, the engine keeps the positions).

use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use postrider_protocol::{message::Start, types::PartitionId};

use crate::{
    client::Handle,
    core::{
        completion::promise,
        subscription::{AttachedPartition, Incoming, MemberOptions, SubscriptionOptions},
    },
    error::{OpenError, ReadError},
    message::{MessageBatch, Position, Unpacking},
    reader::{AckUpTo, Attachment, end, options},
};

/// The session timeout by default.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a [`GroupMember`].
#[must_use = "call join()"]
pub struct GroupMemberBuilder<C> {
    handle: Arc<Handle>,
    options: SubscriptionOptions,
    member: MemberOptions,
    codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for GroupMemberBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupMemberBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<C> GroupMemberBuilder<C> {
    pub(crate) fn new(handle: Arc<Handle>, topic: String, name: String) -> Self {
        let options = options(topic, Some(name), Start::Earliest);
        let member = MemberOptions { instance: None, session_timeout: SESSION_TIMEOUT };
        Self { handle, options, member, codec: PhantomData }
    }

    /// Sets where the subscription starts if it does not exist yet. Default: [`Start::Earliest`].
    pub fn from(mut self, start: Start) -> Self {
        self.options.start = start;
        self
    }

    /// Names this process over its restarts: whoever joins with the name has the partitions again, and a member
    /// that still has it ends. Default: none.
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.member.instance = Some(instance.into());
        self
    }

    /// Sets after how long without a sign of life the broker gives the partitions away. The broker has bounds for
    /// it. Default: 30 s.
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.member.session_timeout = timeout;
        self
    }

    /// Bounds the bytes on their way or waiting; at least one batch passes whatever its size. Default: 4 MiB.
    pub fn prefetch_bytes(mut self, bytes: u32) -> Self {
        self.options.prefetch_bytes = bytes;
        self
    }

    /// Bounds the messages on their way or waiting. Default: about a million.
    pub fn prefetch_messages(mut self, messages: u32) -> Self {
        self.options.prefetch_messages = messages;
        self
    }

    /// Joins the group. Its partitions come as events.
    ///
    /// # Errors
    /// There is no such topic, the names break the rules, two processes take one instance name from each other, or
    /// no broker answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no member; the subscription may have been created.
    pub async fn join(self) -> Result<GroupMember<C>, OpenError> {
        let faults = [
            (self.options.prefetch_bytes == 0, "prefetch_bytes"),
            (self.options.prefetch_messages == 0, "prefetch_messages"),
        ];
        if let Some((_, option)) = faults.into_iter().find(|(fault, _)| *fault) {
            return Err(OpenError::Option { option, range: "at least 1" });
        }
        let Self { handle, options, member, .. } = self;
        let (attached, pending) = promise();
        let deadline = handle.shared.now() + handle.request_timeout;
        let subscription =
            handle.shared.with(|engine| engine.join_group(options, member, deadline, attached));
        let attachment = Attachment { handle, subscription };
        match pending.await {
            Some(Ok(_none_yet)) => {
                let (unpacking, to_release, codec) = (None, None, PhantomData);
                Ok(GroupMember { attachment, unpacking, codec, to_release, ended: false })
            }
            Some(Err(error)) => Err(OpenError::from_body(error)),
            None => Err(OpenError::Closed),
        }
    }
}

/// What happens to a member.
#[derive(Debug)]
#[non_exhaustive]
pub enum GroupEvent<C> {
    /// Messages of one of its partitions.
    Messages(MessageBatch<C>),
    /// A partition is this member's.
    Assigned(AttachedPartition),
    /// A partition goes to another member: nothing more of it comes. Acknowledge what is processed; the next call
    /// for an event gives it back, behind those acks.
    Revoked {
        /// The partition.
        partition: PartitionId,
        /// After this long it is lost.
        drain: Duration,
    },
    /// A partition is gone: it was not given back in time, or the connection broke. What was not acknowledged is
    /// delivered again, to its next owner.
    Lost {
        /// The partition.
        partition: PartitionId,
    },
}

/// A member of a consumer group. Joins again after a lost connection; leaves when dropped.
pub struct GroupMember<C> {
    attachment: Attachment,
    unpacking: Option<Unpacking>,
    codec: PhantomData<fn() -> C>,
    /// Revoked, and told to the application.
    to_release: Option<PartitionId>,
    ended: bool,
}

impl<C> fmt::Debug for GroupMember<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupMember").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl<C> GroupMember<C> {
    /// The next event. `None` after the end.
    ///
    /// # Errors
    /// See [`ReadError`]; the stream continues unless the error is fatal.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next_event(&mut self) -> Option<Result<GroupEvent<C>, ReadError>> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<GroupEvent<C>, ReadError>>> {
        let Attachment { handle, subscription } = &self.attachment;
        if let Some(partition) = self.to_release.take() {
            handle.shared.with(|engine| engine.release(*subscription, partition));
        }
        loop {
            if let Some(unpacking) = &mut self.unpacking {
                if let Some(batch) = unpacking.next_batch() {
                    return Poll::Ready(Some(batch.map(GroupEvent::Messages)));
                }
                self.unpacking = None;
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let coop = ready!(tokio::task::coop::poll_proceed(cx));
            let incoming = handle.shared.with(|engine| engine.poll_next(*subscription, cx));
            let incoming = ready!(incoming);
            coop.made_progress();
            let Some(incoming) = incoming else {
                self.ended = true;
                continue;
            };
            let event = match incoming {
                Incoming::Run(run) => {
                    self.unpacking = Some(Unpacking::new(run));
                    continue;
                }
                Incoming::Gap { partition, from, to, reason } => {
                    Err(ReadError::Gap { partition, from, to, reason })
                }
                Incoming::Seeked { partition, next } => Err(ReadError::Seeked { partition, next }),
                Incoming::Assigned(assigned) => Ok(GroupEvent::Assigned(assigned)),
                Incoming::Revoked { partition, drain } => {
                    self.to_release = Some(partition);
                    Ok(GroupEvent::Revoked { partition, drain })
                }
                Incoming::Lost { partition } => Ok(GroupEvent::Lost { partition }),
                Incoming::Ended(error) => {
                    self.ended = true;
                    return Poll::Ready(end(error).map(Err));
                }
            };
            return Poll::Ready(Some(event));
        }
    }

    /// Acknowledges a message or batch and everything before it in its partition. It is on its way when this
    /// returns; awaiting the result waits until it is stored.
    ///
    /// # Cancel safety
    /// Dropping the result loses the answer; the ack is sent all the same.
    pub fn ack_up_to(&self, position: impl Into<Position>) -> AckUpTo {
        let Position { partition, owner_epoch, next } = position.into();
        let (promise, pending) = promise();
        let Attachment { handle, subscription } = &self.attachment;
        handle.shared.with(|engine| {
            engine.ack_up_to(*subscription, partition, owner_epoch, next, promise);
        });
        AckUpTo(pending)
    }
}
