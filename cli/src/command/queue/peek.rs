//! `postrider queue peek`: prints messages that are not settled, without taking them.
//!
//! Reads the topic from each partition's floor with an ephemeral subscription, and asks the broker about
//! each message whether it is settled: a request per message, which bounds it to few messages.

use std::io::{self, Write as _};

use postrider::{
    Admin, Client, DescribeQueueReply, DescribeTopicReply, MessageRef, Offset, PartitionId, Raw,
    ReadError, Reader, Start,
};

use crate::args::MessageOutput;
use crate::args::queue::QueuePeek;
use crate::connect::{admin_failure, open_failure, queue_failure, read_failure};
use crate::ends::Ends;
use crate::exit::Outcome;
use crate::format::{MessageFormat, Shown};
use crate::output::{self, note, written};

/// Prints messages until the count or where each partition ended at the start.
pub(super) async fn run(client: &Client, options: &QueuePeek) -> Outcome {
    let admin = client.admin();
    let queue = super::describe(&admin, &options.queue).await?;
    let topic = &options.queue.name;
    let described = admin.describe_topic(topic).await;
    let described = described.map_err(|error| admin_failure(&error, topic))?;
    let opened = client
        .reader::<Raw>(topic)
        .from(Start::PerPartition(floors(&queue, &described, &options.partitions)))
        .partitions(options.partitions.iter().copied())
        .open()
        .await;
    let reader = opened.map_err(|error| open_failure(&error, topic))?;
    let format = match (&options.format, options.output) {
        (Some(template), _) => MessageFormat::Template(template.clone()),
        (None, MessageOutput::Raw) => MessageFormat::Raw,
        (None, MessageOutput::Json) => MessageFormat::Json,
    };
    Peek { admin, options, format, left: options.count, out: Vec::new() }.run(reader).await
}

/// Where the messages begin that may not be settled, of the partitions asked for (none: all).
fn floors(
    queue: &DescribeQueueReply,
    topic: &DescribeTopicReply,
    wanted: &[u32],
) -> Vec<(PartitionId, Offset)> {
    let log_start = |partition| {
        let found = topic.partitions.iter().find(|one| one.partition == partition);
        found.map_or(Offset(0), |one| one.log_start)
    };
    queue
        .partitions
        .iter()
        .filter(|one| wanted.is_empty() || wanted.contains(&one.partition.0))
        .map(|one| (one.partition, one.floor.max(log_start(one.partition))))
        .collect()
}

struct Peek<'a> {
    admin: Admin,
    options: &'a QueuePeek,
    format: MessageFormat,
    /// Messages still wanted.
    left: u64,
    out: Vec<u8>,
}

impl Peek<'_> {
    async fn run(mut self, mut reader: Reader<Raw>) -> Outcome {
        let mut ends = Ends::of(reader.partitions());
        while self.left > 0 && !ends.are_reached() {
            let batch = match reader.next_batch().await {
                None => return Ok(()),
                Some(Ok(batch)) => batch,
                Some(Err(error)) if error.is_fatal() => return Err(read_failure(&error)),
                Some(Err(error)) => {
                    note(format_args!("warning: {error}"));
                    if let ReadError::Gap { partition, to, .. }
                    | ReadError::Damaged { partition, to, .. } = error
                    {
                        ends.reach(partition, to);
                    }
                    continue;
                }
            };
            for message in &batch {
                let message = message.map_err(|error| read_failure(&error))?;
                if self.left == 0 || ends.is_behind(batch.partition(), message.offset) {
                    break;
                }
                if self.is_unsettled(batch.partition(), message.offset).await? {
                    self.render(batch.partition(), &message);
                }
            }
            ends.reach(batch.partition(), batch.end());
            if self.flush()? == output::Reader::Gone {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn is_unsettled(&self, partition: PartitionId, offset: Offset) -> Outcome<bool> {
        let queue = &self.options.queue;
        let asked = self.admin.why_message(queue, partition.0, offset.0).await;
        let why = asked.map_err(|error| queue_failure(&error, &queue.name))?;
        Ok(!matches!(why.state.as_str(), "acked" | "gone"))
    }

    fn render(&mut self, partition: PartitionId, message: &MessageRef<'_>) {
        let headers: Vec<_> =
            if self.format.shows_headers() { message.headers().collect() } else { Vec::new() };
        let shown = Shown {
            topic: &self.options.queue.name,
            partition: partition.0,
            offset: message.offset.0,
            timestamp_ms: message.timestamp.0,
            key: message.key,
            payload: message.value,
            headers: &headers,
        };
        self.format.render(&shown, &mut self.out);
        self.left -= 1;
    }

    fn flush(&mut self) -> Outcome<output::Reader> {
        let mut out = io::stdout().lock();
        let reader = written(out.write_all(&self.out).and_then(|()| out.flush()));
        self.out.clear();
        reader
    }
}
