//! The Rust client of the Postrider message broker.
//!
//! ```no_run
//! use postrider::{Client, NewTopic, Raw, Record, Start};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("postrider://127.0.0.1:7420").name("tour").connect().await?;
//! client.admin().create_topic(NewTopic::new("orders").if_not_exists()).await?;
//!
//! // One await: the message is on disk.
//! let orders = client.producer::<Raw>("orders").build().await?;
//! let receipt = orders.send(Record::new("7 apples").key("cust-7")).await?;
//! println!("stored at {}/{}", receipt.partition, receipt.offset);
//!
//! // A reader is a stream; network trouble never ends it.
//! let mut reader = client.reader::<Raw>("orders").from(Start::Earliest).open().await?;
//! while let Some(message) = reader.next_message().await {
//!     let message = message?;
//!     println!("{}: {:?}", message.offset, message.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A queue hands each message to one of its consumers, until it is settled:
//!
//! ```no_run
//! use postrider::{Client, NewQueue, Raw};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! client.admin().create_queue(NewQueue::new("jobs").if_not_exists()).await?;
//! let mut jobs = client.consumer::<Raw>("jobs").subscribe().await?;
//! while let Some(delivery) = jobs.next_delivery().await {
//!     let delivery = delivery?;
//!     match std::str::from_utf8(delivery.value()) {
//!         Ok(_text) => {
//!             delivery.ack(); // on its way; await it to know that it is stored
//!         }
//!         Err(why) => delivery.reject(why.to_string()).await?,
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What to know:
//!
//! - **`send` is durable**, one message at a time. **`enqueue`** pipelines: its `Ack` resolves later. Both wait while
//!   `max_in_flight_bytes` is reached; `try_enqueue` gives the record back instead.
//! - Lost connections are repaired in the background; producers resend with the same sequences, so that nothing is
//!   stored twice; readers continue where they were. [`Client::events`] tells the news.
//! - A [`Delivery`] owns its lease. It is settled once, wherever it is moved to; dropped, the message goes back to the
//!   queue. Leases are renewed while deliveries live and survive a lost connection.
//! - Errors say what is certain: [`SendError::is_unknown`] is the only case in which a message may be stored although
//!   it has no receipt.
//! - The documentation of every future says whether it is cancel-safe, and what dropping it means.
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
mod consumer;
#[doc(hidden)]
pub mod core;
mod delayed;
mod delivery;
mod error;
mod fire;
mod group;
mod io;
mod message;
mod pattern;
mod payload;
mod priority;
mod producer;
mod queues;
mod reader;
mod record;
mod request;
mod unpack;
mod url;

pub use postrider_protocol::{
    error::{ErrorBody as BrokerError, ErrorClass, ErrorCode, Retry},
    message::{
        AlterTopic, Breaker, BrokerAddress, CancelVerdict, CreateQueueReply,
        CreateSubscriptionReply, CreateTopicReply, DelayedPartition, DescribeGroupReply,
        DescribeQueueReply, DescribeTopicReply, GapReason, GroupPartition, MetadataReply,
        PartitionDescription, PartitionMetadata, PatternDescription, QueueConsumer, QueuePartition,
        QueuePolicy, RedriveLettersReply, ReleaseMessageReply, Start, SubscriptionDescription,
        SubscriptionPosition, TopicBounds, TopicConfig, TopicMetadata, WhyMessageReply,
    },
    types::{
        ClusterId, Compression, Durability, EntryIndex, LeaderEpoch, MemberId, NodeId, Offset,
        PartitionId, SubscriptionId, TimestampMs, TopicId, TopicKind,
    },
};

pub use self::{
    admin::{Admin, NewTopic},
    backoff::Backoff,
    client::{Client, ClientBuilder, ClientEvent, CloseReport},
    consumer::{Consumer, ConsumerBuilder, Drained, Failure},
    core::{producer::TopicFacts, subscription::AttachedPartition},
    delayed::{DelayId, NoDelayId},
    delivery::{AckHandle, Delivery, OnDrop, Settled, SettledFuture},
    error::{
        AckError, AdminError, Attempt, ConnectError, ConsumeError, FlushError, OpenError,
        ReadError, RequestError, RespondError, SendError, SettleError, TrySendError,
    },
    fire::FireAndForget,
    group::{GroupEvent, GroupMember, GroupMemberBuilder},
    message::{Headers, IntoMessages, Message, MessageBatch, MessageRef, MessageRefs, Position},
    pattern::{OfTopic, PatternBuilder, PatternReader, PatternSubscriber},
    payload::{Decode, DecodeError, Encode, EncodeError, Json, Raw},
    priority::{Prioritized, PriorityConsumer, PriorityConsumerBuilder},
    producer::{Ack, Producer, ProducerBuilder},
    queues::{NewQueue, NewSubscription, QueueName, REDRIVE_SUBSCRIPTION, Redrive},
    reader::{AckUpTo, Reader, ReaderBuilder, Subscriber, SubscriberBuilder},
    record::{Receipt, Record},
    request::{CORRELATION_ID, REPLY_TO, Requester, Responder},
    url::{DEFAULT_PORT, UrlError},
};
