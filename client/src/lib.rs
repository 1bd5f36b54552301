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
//! What to know:
//!
//! - **`send` is durable**, one message at a time. **`enqueue`** pipelines: its `Ack` resolves later. Both wait while
//!   `max_in_flight_bytes` is reached; `try_enqueue` gives the record back instead.
//! - Lost connections are repaired in the background; producers resend with the same sequences, so that nothing is
//!   stored twice; readers continue where they were. [`Client::events`] tells the news.
//! - Errors say what is certain: [`SendError::is_unknown`] is the only case in which a message may be stored although
//!   it has no receipt.
//! - Every future of this crate is cancel-safe; its documentation says what dropping it means.
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
#[doc(hidden)]
pub mod core;
mod error;
mod io;
mod message;
mod payload;
mod producer;
mod queues;
mod reader;
mod record;
mod url;

pub use postrider_protocol::{
    error::{ErrorBody as BrokerError, ErrorClass, ErrorCode, Retry},
    message::{
        AlterTopic, Breaker, BrokerAddress, CreateQueueReply, CreateSubscriptionReply,
        CreateTopicReply, DescribeQueueReply, DescribeTopicReply, GapReason, MetadataReply,
        PartitionDescription, PartitionMetadata, QueueConsumer, QueuePartition, QueuePolicy, Start,
        SubscriptionDescription, SubscriptionPosition, TopicConfig, TopicMetadata, WhyMessageReply,
    },
    types::{
        ClusterId, Compression, Durability, LeaderEpoch, MemberId, NodeId, Offset, PartitionId,
        SubscriptionId, TimestampMs, TopicId, TopicKind,
    },
};

pub use self::{
    admin::{Admin, NewTopic},
    backoff::Backoff,
    client::{Client, ClientBuilder, ClientEvent, CloseReport},
    core::{producer::TopicFacts, subscription::AttachedPartition},
    error::{
        AckError, AdminError, Attempt, ConnectError, FlushError, OpenError, ReadError, SendError,
        TrySendError,
    },
    message::{Headers, IntoMessages, Message, MessageBatch, MessageRef, MessageRefs, Position},
    payload::{Decode, DecodeError, Encode, EncodeError, Json, Raw},
    producer::{Ack, Producer, ProducerBuilder},
    queues::{NewQueue, NewSubscription, QueueName},
    reader::{AckUpTo, Reader, ReaderBuilder, Subscriber, SubscriberBuilder},
    record::{Receipt, Record},
    url::{DEFAULT_PORT, UrlError},
};
