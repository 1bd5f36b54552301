//! `postrider pub`: publishes lines and returns when each is acknowledged.
//!
//! Reading, publishing and acknowledgements overlap. What waits is bounded by the client's byte bound and
//! by two chunks of input. Acknowledgements are followed per batch.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use indicatif::{ProgressBar, ProgressStyle};
use postrider::{Ack, Client, DelayId, Producer, Raw, Receipt, Record, SendError};
use postrider_protocol::types::{Compression, TimestampMs};

use crate::args::{CompressionName, PubOptions};
use crate::connect::{block_on, close, connect, open_failure, publish_failure};
use crate::exit::{Failure, Outcome};
use crate::input::Input;
use crate::interrupt::Interrupt;
use crate::lines::{LineCutter, split_key};
use crate::output::{note, print};

/// The longest line that is read. The broker's limit is usually lower, and tells so itself.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Lines between two looks at the acknowledgements.
const REAP_EVERY: u64 = 256;

/// Publishes the input.
pub(crate) fn run(options: &PubOptions) -> Outcome {
    block_on(1, async {
        let input = Input::open(options.file.as_deref()).map_err(|error| {
            let file = options.file.as_ref().map_or_else(String::new, |f| f.display().to_string());
            Failure::failed(format!("cannot read {file}: {error}"))
                .next("name a readable file with --file, or pipe the lines in")
        })?;
        let client = connect(&options.client).await?;
        let mut publisher = Publisher::open(&client, options).await?;
        let outcome = publisher.all(input, options).await;
        publisher.progress.finish_and_clear();
        let Tally { stored, duplicates } = publisher.tally;
        note(format_args!("stored={stored} duplicates={duplicates}"));
        close(&client).await;
        outcome
    })
}

impl From<CompressionName> for Compression {
    fn from(name: CompressionName) -> Self {
        match name {
            CompressionName::None => Self::None,
            CompressionName::Lz4 => Self::Lz4,
            CompressionName::Zstd => Self::Zstd,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Tally {
    stored: u64,
    duplicates: u64,
}

/// When messages are delivered.
#[derive(Clone, Copy)]
enum When {
    Now,
    After(Duration),
    At(TimestampMs),
}

impl When {
    fn of(options: &PubOptions) -> Self {
        match (options.delay, options.deliver_at) {
            (Some(delay), _) => Self::After(delay),
            (None, Some(ms)) => Self::At(TimestampMs(ms)),
            (None, None) => Self::Now,
        }
    }
}

/// Messages of one batch, which have their outcomes at the same moment.
struct Group {
    ack: Ack,
    messages: u64,
    first_line: u64,
}

struct Publisher {
    producer: Producer<Raw>,
    key: Option<Bytes>,
    delimiter: Bytes,
    headers: Vec<(String, Bytes)>,
    partition: Option<u32>,
    idempotency_prefix: Option<String>,
    when: When,
    /// In the order of their first lines. Bounded by the batches that the client holds.
    groups: VecDeque<Group>,
    lines: u64,
    tally: Tally,
    progress: ProgressBar,
}

impl Publisher {
    async fn open(client: &Client, options: &PubOptions) -> Outcome<Self> {
        let mut builder = client
            .producer::<Raw>(&options.topic)
            .delivery_timeout(options.client.timeout)
            .compression(options.compression.into());
        if let Some(bytes) = options.batch_bytes {
            builder = builder.batch_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        if let Some(linger) = options.linger {
            builder = builder.linger(linger);
        }
        let built = builder.build().await;
        let producer = built.map_err(|error| open_failure(&error, &options.topic))?;
        let header = |(name, value): &(String, String)| (name.clone(), Bytes::from(value.clone()));
        Ok(Self {
            producer,
            key: options.key.clone().map(Bytes::from),
            delimiter: options.key_delimiter.clone().unwrap_or_default().into(),
            headers: options.headers.iter().map(header).collect(),
            partition: options.partition,
            idempotency_prefix: options.idempotency_prefix.clone(),
            when: When::of(options),
            groups: VecDeque::new(),
            lines: 0,
            tally: Tally::default(),
            progress: ProgressBar::hidden(),
        })
    }

    /// Publishes everything, then waits for every acknowledgement; those of what was published before a
    /// failure too, so that the closing line is right.
    async fn all(&mut self, mut input: Input, options: &PubOptions) -> Outcome {
        self.progress = progress(input.bytes);
        let read =
            if options.whole { self.whole(&mut input).await } else { self.lines(&mut input).await };
        // Failures come with each batch.
        let _flushed = self.producer.flush().await;
        let mut acknowledged = Ok(());
        while let Some(group) = self.groups.pop_front() {
            let outcome = group.ack.clone().await;
            let counted = self.count(&group, outcome);
            acknowledged = acknowledged.and(counted);
        }
        read.and(acknowledged)
    }

    async fn lines(&mut self, input: &mut Input) -> Outcome {
        let mut cutter = LineCutter::new(LINE_BYTES_MAX);
        let mut interrupt = Interrupt::new()?;
        while let Some(chunk) = self.chunk(input, &mut interrupt).await? {
            self.progress.inc(chunk.len() as u64);
            let lines = cutter.push(chunk).map_err(|too_long| {
                Failure::failed(format!("line {} is longer than 64 MiB", too_long.line))
                    .next("split it, or publish a file as one message with --whole")
            })?;
            let before = self.lines;
            for line in lines {
                self.line(line).await?;
            }
            cutter.count(self.lines - before);
            self.reap()?;
        }
        match cutter.finish() {
            Some(line) => self.line(line).await,
            None => Ok(()),
        }
    }

    async fn whole(&mut self, input: &mut Input) -> Outcome {
        let mut interrupt = Interrupt::new()?;
        let mut message = BytesMut::new();
        while let Some(chunk) = self.chunk(input, &mut interrupt).await? {
            if message.len() + chunk.len() > LINE_BYTES_MAX {
                return Err(Failure::failed("the input is longer than 64 MiB")
                    .next("publish a reference to it, or its parts"));
            }
            message.extend_from_slice(&chunk);
        }
        self.line(message.freeze()).await
    }

    /// The next chunk; acknowledgements are taken meanwhile.
    async fn chunk(
        &mut self,
        input: &mut Input,
        interrupt: &mut Interrupt,
    ) -> Outcome<Option<Bytes>> {
        loop {
            let front = self.groups.front().map(|group| group.ack.clone());
            tokio::select! {
                biased;
                () = interrupt.next() => {
                    return Err(Failure::failed("interrupted")
                        .next("the closing line says how many messages are stored"));
                }
                chunk = input.next() => {
                    return chunk.map_err(|error| Failure::failed(format!("cannot read the input: {error}")));
                }
                outcome = async { front.expect("checked by the guard").await }, if !self.groups.is_empty() => {
                    if let Some(group) = self.groups.pop_front() {
                        self.count(&group, outcome)?;
                    }
                }
            }
        }
    }

    async fn line(&mut self, line: Bytes) -> Outcome {
        self.lines += 1;
        let (key, payload) = split_key(line, &self.delimiter);
        let mut record = Record::new(payload);
        if let Some(key) = key.or_else(|| self.key.clone()) {
            record = record.key(key);
        }
        for (name, value) in &self.headers {
            record = record.header(name, value.clone());
        }
        if let Some(partition) = self.partition {
            record = record.partition(partition);
        }
        if let Some(prefix) = &self.idempotency_prefix {
            record = record.idempotency_key(format!("{prefix}-{}", self.lines));
        }
        record = match self.when {
            When::Now => record,
            When::After(delay) => record.deliver_after(delay),
            When::At(time) => record.deliver_at(time),
        };
        let enqueued = self.producer.enqueue(record).await;
        let ack = enqueued.map_err(|error| self.failure(&error, self.lines))?;
        match self.groups.back_mut() {
            Some(last) if last.ack.same_batch(&ack) => last.messages += 1,
            _ => self.groups.push_back(Group { ack, messages: 1, first_line: self.lines }),
        }
        if self.lines.is_multiple_of(REAP_EVERY) { self.reap() } else { Ok(()) }
    }

    /// Takes what is acknowledged already.
    fn reap(&mut self) -> Outcome {
        while let Some(outcome) = self.groups.front().and_then(|group| group.ack.try_outcome()) {
            if let Some(group) = self.groups.pop_front() {
                self.count(&group, outcome)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, group: &Group, outcome: Result<Receipt, SendError>) -> Outcome {
        if self.idempotency_prefix.is_some() {
            return self.count_each(group);
        }
        let receipt = outcome.map_err(|error| self.failure(&error, group.first_line))?;
        match receipt.duplicate {
            true => self.tally.duplicates += group.messages,
            false => self.tally.stored += group.messages,
        }
        match receipt.delay_id {
            Some(first) => print(&ids(first, group.messages)),
            None => Ok(()),
        }
    }

    /// Messages with keys have outcomes of their own. All are counted, whichever failed.
    fn count_each(&mut self, group: &Group) -> Outcome {
        let mut counted = Ok(());
        for (ahead, line) in (0..).zip(group.first_line..group.first_line + group.messages) {
            let outcome = group.ack.outcome_ahead(ahead).expect("the batch has its outcome");
            let one = self.count_one(outcome, line);
            counted = counted.and(one);
        }
        counted
    }

    fn count_one(&mut self, outcome: Result<Receipt, SendError>, line: u64) -> Outcome {
        let receipt = outcome.map_err(|error| self.failure(&error, line))?;
        match receipt.duplicate {
            true => self.tally.duplicates += 1,
            false => self.tally.stored += 1,
        }
        receipt.delay_id.map_or(Ok(()), |id| print(&ids(id, 1)))
    }

    fn failure(&self, error: &SendError, line: u64) -> Failure {
        publish_failure(error).at(format_args!("line {line} of topic {:?}", self.producer.topic()))
    }
}

/// The ids of neighbouring messages, one per line.
fn ids(first: DelayId, count: u64) -> String {
    let end = first.position.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    (first.position..end).map(|position| format!("{}\n", DelayId { position, ..first })).collect()
}

/// Progress on standard error; hidden by itself if that is no terminal.
fn progress(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => {
            (ProgressBar::new(bytes), "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {binary_bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
