//! `postrider sub`: prints messages.
//!
//! Output is buffered and flushed when no more messages wait. A durable subscription is acknowledged after
//! its messages were written and flushed, never before. A reader of the output that went away is a clean
//! end.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use postrider::{
    AckError, ErrorCode, GroupEvent, GroupMember, MessageBatch, OfTopic, PatternReader,
    PatternSubscriber, Position, Raw, ReadError, Reader, Subscriber,
};
use postrider_protocol::pattern::is_pattern;
use postrider_protocol::types::PartitionId;

use crate::args::{MessageOutput, SubOptions};
use crate::connect::{block_on, close, connect, open_failure, read_failure};
use crate::ends::Ends;
use crate::exit::{Failure, Outcome};
use crate::format::{MessageFormat, Shown};
use crate::interrupt::Interrupt;
use crate::output::{self, note, written};
use crate::start::{From, resolve};

/// Output is written in pieces of this size.
const OUTPUT_BYTES: usize = 256 << 10;
/// A busy durable subscription is acknowledged this often.
const ACK_INTERVAL: Duration = Duration::from_secs(1);

/// Prints messages until the end, the count, a signal, or a closed output.
pub(crate) fn run(options: &SubOptions) -> Outcome {
    block_on(1, async {
        let client = connect(&options.client).await?;
        let outcome = match Source::open(&client, options).await {
            Ok(source) => Printer::new(source, options).run().await,
            Err(failure) => Err(failure),
        };
        close(&client).await;
        outcome
    })
}

/// Where messages come from.
enum Source {
    Ephemeral(Reader<Raw>),
    Durable(Subscriber<Raw>),
    Group(GroupMember<Raw>),
    Pattern(PatternReader<Raw>),
    PatternDurable(PatternSubscriber<Raw>),
}

/// What a source has to tell.
enum Next {
    /// Of a topic of a pattern, or of the topic.
    Batch(Option<Arc<str>>, MessageBatch<Raw>),
    /// A partition comes.
    Assigned(PartitionId),
    /// A partition is to be given back, behind the acks of what was printed.
    Revoked(PartitionId),
    /// A partition is gone; what was not acknowledged comes again elsewhere.
    Lost(PartitionId),
}

impl Source {
    async fn open(client: &postrider::Client, options: &SubOptions) -> Outcome<Self> {
        let topic = &options.topic;
        if is_pattern(topic) {
            return Self::open_pattern(client, options).await;
        }
        let start = resolve(options.from, &client.admin(), topic).await?;
        let partitions = options.partitions.iter().copied();
        if let Some(name) = &options.group {
            let mut builder = client.group_member::<Raw>(topic, name).from(start);
            builder = builder.session_timeout(options.session_timeout);
            if let Some(instance) = &options.instance {
                builder = builder.instance(instance);
            }
            let joined = builder.join().await.map(Self::Group);
            return joined.map_err(|error| open_failure(&error, topic));
        }
        let opened = match &options.subscription {
            None => {
                let builder = client.reader::<Raw>(topic).from(start).partitions(partitions);
                builder.open().await.map(Self::Ephemeral)
            }
            Some(name) => {
                let builder =
                    client.subscriber::<Raw>(topic, name).from(start).partitions(partitions);
                builder.open().await.map(Self::Durable)
            }
        };
        opened.map_err(|error| open_failure(&error, topic))
    }

    /// All topics of a pattern, those that come later included.
    async fn open_pattern(client: &postrider::Client, options: &SubOptions) -> Outcome<Self> {
        let pattern = &options.topic;
        let misplaced = [
            (
                options.exit_at_end,
                "--exit-at-end",
                "topics may come at any time: stop with --count",
            ),
            (options.group.is_some(), "--group", "a group shares the partitions of one topic"),
            (!options.partitions.is_empty(), "--partition", "partitions belong to one topic"),
            (
                matches!(options.from, From::Last(_) | From::Offset(_)),
                "such a --from",
                "start at earliest, latest, a time or an age",
            ),
        ];
        if let Some((_, flag, why)) = misplaced.into_iter().find(|(is_named, ..)| *is_named) {
            return Err(
                Failure::usage(format!("{flag} does not go with the pattern {pattern}")).next(why)
            );
        }
        let start = resolve(options.from, &client.admin(), pattern).await?;
        let builder = client.pattern::<Raw>(pattern).from(start);
        let opened = match &options.subscription {
            None => builder.open().await.map(Self::Pattern),
            Some(name) => builder.open_as(name).await.map(Self::PatternDurable),
        };
        opened.map_err(|error| open_failure(&error, pattern))
    }

    /// Cancel-safe.
    async fn next(&mut self) -> Option<Result<Next, ReadError>> {
        let batch = match self {
            Self::Ephemeral(reader) => reader.next_batch().await,
            Self::Durable(subscriber) => subscriber.next_batch().await,
            Self::Group(member) => loop {
                let event = match member.next_event().await? {
                    Ok(event) => event,
                    Err(error) => return Some(Err(error)),
                };
                return Some(Ok(match event {
                    GroupEvent::Messages(batch) => Next::Batch(None, batch),
                    GroupEvent::Assigned(at) => Next::Assigned(at.partition),
                    GroupEvent::Revoked { partition, .. } => Next::Revoked(partition),
                    GroupEvent::Lost { partition } => Next::Lost(partition),
                    _ => continue,
                }));
            },
            Self::Pattern(reader) => return reader.next_batch().await.map(of_topic),
            Self::PatternDurable(subscriber) => {
                return subscriber.next_batch().await.map(of_topic);
            }
        };
        batch.map(|batch| batch.map(|batch| Next::Batch(None, batch)))
    }

    fn ends(&self) -> Ends {
        match self {
            Self::Ephemeral(reader) => Ends::of(reader.partitions()),
            Self::Durable(subscriber) => Ends::of(subscriber.partitions()),
            Self::Group(_) | Self::Pattern(_) | Self::PatternDurable(_) => Ends::of(&[]),
        }
    }
}

fn of_topic(next: Result<OfTopic<MessageBatch<Raw>>, ReadError>) -> Result<Next, ReadError> {
    next.map(|OfTopic { topic, item }| Next::Batch(Some(topic), item))
}

/// The partition has another owner.
fn is_lost(error: &AckError) -> bool {
    match error {
        AckError::Stale => true,
        AckError::Refused(error) => {
            matches!(error.code, ErrorCode::StaleOwnerEpoch | ErrorCode::UnknownSubscription)
        }
        _ => false,
    }
}

struct Printer {
    source: Source,
    topic: String,
    format: MessageFormat,
    /// Messages still wanted.
    left: u64,
    /// Where to stop; none to follow the topic.
    ends: Option<Ends>,
    out: Vec<u8>,
    /// Written behind here but not acknowledged, per topic of a pattern and partition.
    unacked: BTreeMap<(Option<Arc<str>>, PartitionId), Position>,
    acked_at: Instant,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

impl Printer {
    fn new(source: Source, options: &SubOptions) -> Self {
        let format = match (&options.format, options.output) {
            (Some(template), _) => MessageFormat::Template(template.clone()),
            (None, MessageOutput::Raw) => MessageFormat::Raw,
            (None, MessageOutput::Json) => MessageFormat::Json,
        };
        Self {
            ends: options.exit_at_end.then(|| source.ends()),
            source,
            topic: options.topic.clone(),
            format,
            left: options.count.unwrap_or(u64::MAX),
            out: Vec::with_capacity(OUTPUT_BYTES),
            unacked: BTreeMap::new(),
            acked_at: Instant::now(),
        }
    }

    async fn run(mut self) -> Outcome {
        let mut interrupt = Interrupt::new()?;
        let printed = self.print_all(&mut interrupt).await;
        // What was printed before a failure is printed.
        let flushed = self.flush();
        let acked = match &flushed {
            Ok(output::Reader::Present) => self.ack().await,
            Ok(output::Reader::Gone) | Err(_) => Ok(()),
        };
        printed?;
        flushed?;
        acked
    }

    async fn print_all(&mut self, interrupt: &mut Interrupt) -> Outcome {
        while self.left > 0 && !self.ends.as_ref().is_some_and(Ends::are_reached) {
            let next = match self.source.next().now_or_never() {
                Some(next) => next,
                None => {
                    // Nothing waits: show what there is before sleeping.
                    if self.settle().await? == Go::Stop {
                        return Ok(());
                    }
                    tokio::select! {
                        next = self.source.next() => next,
                        () = interrupt.next() => return Ok(()),
                    }
                }
            };
            match next {
                None => return Ok(()),
                Some(Ok(Next::Assigned(partition))) => {
                    note(format_args!("partition {partition} is assigned"));
                }
                Some(Ok(Next::Revoked(partition))) => {
                    note(format_args!("partition {partition} is revoked"));
                    if self.settle().await? == Go::Stop {
                        return Ok(());
                    }
                }
                Some(Ok(Next::Lost(partition))) => {
                    note(format_args!("partition {partition} is lost"));
                    self.unacked.remove(&(None, partition));
                }
                Some(Ok(Next::Batch(topic, batch))) => {
                    if self.print(topic, &batch)? == Go::Stop {
                        return Ok(());
                    }
                    if self.acked_at.elapsed() >= ACK_INTERVAL && self.settle().await? == Go::Stop {
                        return Ok(());
                    }
                }
                Some(Err(error)) => self.notice(&error)?,
            }
        }
        Ok(())
    }

    fn print(&mut self, topic: Option<Arc<str>>, batch: &MessageBatch<Raw>) -> Outcome<Go> {
        let with_headers = self.format.shows_headers();
        let partition = batch.partition();
        let mut last = None;
        for message in batch {
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    self.notice(&error)?;
                    continue;
                }
            };
            if self.left == 0
                || self.ends.as_ref().is_some_and(|ends| ends.is_behind(partition, message.offset))
            {
                break;
            }
            let headers: Vec<_> =
                if with_headers { message.headers().collect() } else { Vec::new() };
            let shown = Shown {
                topic: topic.as_deref().unwrap_or(&self.topic),
                partition: partition.0,
                offset: message.offset.0,
                timestamp_ms: message.timestamp.0,
                key: message.key,
                payload: message.value,
                headers: &headers,
            };
            self.format.render(&shown, &mut self.out);
            self.left -= 1;
            last = Some(message.offset);
            if self.out.len() >= OUTPUT_BYTES && self.write()? == output::Reader::Gone {
                return Ok(Go::Stop);
            }
        }
        if let Some(ends) = &mut self.ends {
            ends.reach(partition, batch.end());
        }
        if let Some(last) = last {
            self.unacked.insert((topic, partition), batch.position_behind(last));
        }
        Ok(Go::On)
    }

    /// Something other than messages came. Only the end of the stream is a failure.
    fn notice(&mut self, error: &ReadError) -> Outcome {
        match error {
            ReadError::Gap { partition, to, .. } | ReadError::Damaged { partition, to, .. } => {
                note(format_args!("warning: {error}"));
                if let Some(ends) = &mut self.ends {
                    ends.reach(*partition, *to);
                }
                Ok(())
            }
            error if error.is_fatal() => Err(read_failure(error)),
            error => {
                note(format_args!("warning: {error}"));
                Ok(())
            }
        }
    }

    fn write(&mut self) -> Outcome<output::Reader> {
        let reader = written(io::stdout().lock().write_all(&self.out));
        self.out.clear();
        reader
    }

    fn flush(&mut self) -> Outcome<output::Reader> {
        if self.write()? == output::Reader::Gone {
            return Ok(output::Reader::Gone);
        }
        written(io::stdout().lock().flush())
    }

    /// Flushes, then acknowledges what was flushed.
    async fn settle(&mut self) -> Outcome<Go> {
        if self.flush()? == output::Reader::Gone {
            return Ok(Go::Stop);
        }
        self.ack().await?;
        Ok(Go::On)
    }

    async fn ack(&mut self) -> Outcome {
        self.acked_at = Instant::now();
        let positions = std::mem::take(&mut self.unacked);
        for ((topic, partition), position) in positions {
            let acked = match &self.source {
                Source::Ephemeral(_) | Source::Pattern(_) => return Ok(()),
                Source::PatternDurable(subscriber) => {
                    let topic = topic.as_deref().unwrap_or_default();
                    match subscriber.ack_up_to(topic, position) {
                        Some(acked) => acked.await,
                        // The topic was deleted, and its subscription with it.
                        None => Ok(()),
                    }
                }
                Source::Durable(subscriber) => subscriber.ack_up_to(position).await,
                Source::Group(member) => match member.ack_up_to(position).await {
                    // The news that the partition is gone is on its way.
                    Err(error) if is_lost(&error) => {
                        note(format_args!("partition {partition} was lost before the ack"));
                        Ok(())
                    }
                    acked => acked,
                },
            };
            acked.map_err(|error| {
                Failure::failed(error)
                    .next("the messages since the last ack will be delivered again")
            })?;
        }
        Ok(())
    }
}
