//! Owns where `work` gets its messages: one queue, or several by their weights. Never runs anything. Driven by
//! `work`.

use std::time::Duration;

use bytes::Bytes;
use postrider::{
    Client, ConsumeError, Consumer, Delivery, Drained, Prioritized, PriorityConsumer, Raw,
};

use super::names;
use crate::args::queue::WorkOptions;
use crate::connect::queue_open_failure;
use crate::exit::{Failure, Outcome};

/// Messages of each of several queues that wait here beside those at work. Without any, a queue whose message is at
/// work has none to offer, and weights mean nothing.
const CHOICE: u32 = 16;

/// A message, and the place of its queue among those that are named.
pub(super) type Next = Option<Result<(usize, Delivery<Bytes>), ConsumeError>>;

/// See the module.
pub(super) enum Source {
    One(Box<Consumer<Raw>>),
    Several(Box<PriorityConsumer<Raw>>),
}

impl Source {
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Next {
        match self {
            Self::One(consumer) => {
                consumer.next_delivery().await.map(|next| next.map(|delivery| (0, delivery)))
            }
            Self::Several(consumer) => consumer
                .next_delivery()
                .await
                .map(|next| next.map(|Prioritized { queue, delivery }| (queue, delivery))),
        }
    }

    /// Gives back what was not begun, and waits for the broker's answers.
    pub(super) async fn drain(&mut self, timeout: Duration) -> Drained {
        match self {
            Self::One(consumer) => consumer.drain(timeout).await,
            Self::Several(consumer) => consumer.drain(timeout).await,
        }
    }
}

pub(super) async fn attach(client: &Client, options: &WorkOptions) -> Outcome<Source> {
    let name = options.consumer_name.clone().unwrap_or_else(default_name);
    let failure = |error| queue_open_failure(&error, &names(options));
    if let [queue] = options.queues.as_slice() {
        let wanted = options.prefetch.unwrap_or(options.concurrency);
        // More would only be given back.
        let prefetch = options
            .count
            .map_or(wanted, |count| u32::try_from(count).map_or(wanted, |count| wanted.min(count)));
        let mut builder = client
            .consumer::<Raw>(&queue.name)
            .partitions(options.partitions.iter().copied())
            .prefetch(prefetch)
            .name(name);
        if let Some(subscription) = &options.subscription {
            builder = builder.subscription(subscription);
        }
        return Ok(Source::One(Box::new(builder.subscribe().await.map_err(failure)?)));
    }
    if !options.partitions.is_empty() {
        return Err(Failure::usage(
            "--partition names a partition of one queue, and several are named",
        )
        .next("name one queue, or leave --partition out"));
    }
    let prefetch = options.prefetch.unwrap_or(options.concurrency + CHOICE);
    let mut builder = client.priority_consumer::<Raw>().prefetch(prefetch).name(name);
    for queue in &options.queues {
        let subscription = options.subscription.clone();
        let name = postrider::QueueName { topic: queue.name.clone(), subscription };
        builder = builder.queue(name, queue.weight);
    }
    Ok(Source::Several(Box::new(builder.subscribe().await.map_err(failure)?)))
}

/// Host and process: enough to find who holds a message.
fn default_name() -> String {
    let system = rustix::system::uname();
    format!("{}/{}", system.nodename().to_string_lossy(), std::process::id())
}
