//! A raw connection to a broker: frames as bytes, good or bad, without the client crate.
//!
//! Owns one blocking socket. Never retries and never reconnects: what the broker does is what the test
//! sees.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use postrider_protocol::batch::{Batch, BatchBuilder};
use postrider_protocol::entry::EntryViews;
use postrider_protocol::error::ErrorBody;
use postrider_protocol::frame::{Frame, FrameDecoder, event, request};
use postrider_protocol::message::{
    AckLevel, Confirm, ConfirmRun, CreateTopic, CreateTopicReply, Credit, Deliver, Hello,
    HelloReply, Message, Metadata, MetadataReply, Ping, PingReply, PublishHead, Start, Subscribe,
    SubscribeReply, TopicBounds, TopicConfig, TopicMetadata,
};
use postrider_protocol::types::{
    ClusterId, Compression, CorrelationId, Durability, LeaderEpoch, Offset, PartitionId,
    ProducerEpoch, ProducerId, Sequence, SubscriptionHandle, TimestampMs, TopicId, TopicKind,
};

/// Longest wait for bytes of the broker.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest body that a test accepts.
const BODY_BYTES_MAX: u32 = 64 << 20;

/// A connection.
pub struct WireClient {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: FrameDecoder,
}

impl WireClient {
    /// Connects without saying anything.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let decoder = FrameDecoder::new(BODY_BYTES_MAX);
        Ok(Self { stream, buffer: BytesMut::new(), decoder })
    }

    /// Connects and exchanges `Hello`.
    ///
    /// # Errors
    /// Nobody listens, or the broker refuses.
    pub fn greeted(address: SocketAddr) -> Result<Self> {
        let mut client = Self::connect(address)?;
        client.greet()?;
        Ok(client)
    }

    /// Exchanges `Hello`.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn greet(&mut self) -> Result<HelloReply> {
        self.ask(&hello())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// The next frame; none when the broker has closed the connection between two frames.
    ///
    /// # Errors
    /// Nothing came for a minute, or no frame, or the connection broke.
    pub fn frame(&mut self) -> Result<Option<Frame>> {
        let mut chunk = [0; 64 << 10];
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            let count = self.stream.read(&mut chunk).context("waiting for a frame")?;
            if count == 0 {
                ensure!(self.buffer.is_empty(), "the broker stopped within a frame");
                return Ok(None);
            }
            self.buffer.extend_from_slice(chunk.get(..count).context("count is in range")?);
        }
    }

    /// The error after which the broker closes the connection. What comes before it is skipped.
    ///
    /// # Errors
    /// The broker closes without one, or goes on behind it.
    pub fn last_error(&mut self) -> Result<ErrorBody> {
        let mut last = None;
        while let Some(frame) = self.frame()? {
            last = Some(frame);
        }
        let frame = last.context("closed without a word")?;
        ensure!(frame.header.is_error(), "the last frame is no error: {:?}", frame.header);
        Ok(ErrorBody::decode(&frame.body)?)
    }

    /// Sends a request and returns the reply; events in between are dropped.
    ///
    /// # Errors
    /// The broker answers with an error, or not at all.
    pub fn ask<Q: Message, A: Message>(&mut self, question: &Q) -> Result<A> {
        self.send(&request(question, CorrelationId(7)))?;
        loop {
            let frame = self.frame()?.context("closed instead of an answer")?;
            if frame.header.is_error() {
                bail!("refused: {}", ErrorBody::decode(&frame.body)?);
            }
            if frame.header.is_reply() {
                return Ok(frame.message()?);
            }
        }
    }

    /// Is the broker there?
    ///
    /// # Errors
    /// It is not.
    pub fn ping(&mut self) -> Result<()> {
        let PingReply {} = self.ask(&Ping {})?;
        Ok(())
    }

    /// Creates a topic of one partition unless it exists.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn create_topic(&mut self, name: &str, durability: Durability) -> Result<WireTopic> {
        let config = TopicConfig {
            partitions: 1,
            kind: TopicKind::Log,
            durability,
            retention_ms: None,
            retention_bytes: None,
            message_bytes_max: None,
            bounds: TopicBounds::default(),
        };
        let _reply: CreateTopicReply =
            self.ask(&CreateTopic { name: name.to_owned(), config, if_not_exists: true })?;
        self.topic(name)
    }

    /// Looks a topic up.
    ///
    /// # Errors
    /// There is none.
    pub fn topic(&mut self, name: &str) -> Result<WireTopic> {
        let reply: MetadataReply = self.ask(&Metadata { topics: vec![name.to_owned()] })?;
        let found: TopicMetadata =
            reply.topics.into_iter().next().context("no topic in the reply")?;
        ensure!(found.error.is_none(), "{name}: {:?}", found.error);
        let partition = found.partitions.first().context("no partition")?;
        let leader_epoch = partition.leader_epoch;
        Ok(WireTopic { name: name.to_owned(), id: found.id, leader_epoch })
    }

    /// Sends one batch without a producer session and waits for its confirm.
    ///
    /// # Errors
    /// The connection ends before the confirm.
    pub fn publish(&mut self, topic: &WireTopic, tag: u64, values: &[&[u8]]) -> Result<ConfirmRun> {
        self.send(&topic.publish_frame(tag, values)?)?;
        loop {
            let frame = self.frame()?.context("closed instead of a confirm")?;
            if frame.header.is_error() {
                bail!("refused: {}", ErrorBody::decode(&frame.body)?);
            }
            if let Ok(Confirm { runs }) = frame.message() {
                let run = runs.into_iter().next().context("a confirm has a run")?;
                ensure!(run.base_sequence == Sequence(tag), "confirm of another publish: {run:?}");
                return Ok(run);
            }
        }
    }

    /// Subscribes from the start with all credit, and reads nothing of what comes.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn subscribe_and_look_away(&mut self, topic: &str) -> Result<()> {
        let subscribe = Subscribe {
            handle: SubscriptionHandle(1),
            topic: topic.to_owned(),
            partitions: Vec::new(),
            name: None,
            start: Start::Earliest,
            credit_messages: u32::MAX,
            credit_bytes: u32::MAX,
        };
        self.send(&request(&subscribe, CorrelationId(8)))
    }

    /// Reads all messages of a topic of one partition below its high watermark: offset and value.
    ///
    /// # Errors
    /// The broker refuses, or delivers what is not asked for.
    pub fn read_all(&mut self, topic: &str) -> Result<Vec<(Offset, Vec<u8>)>> {
        let handle = SubscriptionHandle(1);
        let reply: SubscribeReply = self.ask(&Subscribe {
            handle,
            topic: topic.to_owned(),
            partitions: Vec::new(),
            name: None,
            start: Start::Earliest,
            credit_messages: 0,
            credit_bytes: 0,
        })?;
        let partition = reply.partitions.first().context("no partition")?;
        let end = partition.high_watermark;
        let mut all = Vec::new();
        let mut next = partition.next;
        self.send(&event(&Credit { handle, messages: u32::MAX, bytes: u32::MAX }))?;
        while next < end {
            let frame = self.frame()?.context("closed instead of a delivery")?;
            let Ok(deliver) = frame.clone().message::<Deliver>() else {
                bail!("not a delivery: {:?}", frame.header);
            };
            for entry in EntryViews::new(&deliver.entries) {
                let entry = entry?;
                entry.check_body()?;
                let batch = Batch {
                    body: bytes::Bytes::copy_from_slice(entry.body),
                    crc: entry.header.body_crc,
                    record_count: entry.header.record_count,
                };
                for record in batch.records(Default::default())? {
                    let record = record?;
                    let offset = entry.header.base_offset.0 + u64::from(record.offset_delta);
                    if offset >= next.0 {
                        ensure!(offset == next.0, "offset {offset} instead of {next}");
                        all.push((next, record.record.value.unwrap_or_default().to_vec()));
                        next = Offset(offset + 1);
                    }
                }
            }
        }
        Ok(all)
    }
}

/// A topic of one partition, as publishes name it.
#[derive(Clone, Debug)]
pub struct WireTopic {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: TopicId,
    /// The leadership of its partition.
    pub leader_epoch: LeaderEpoch,
}

impl WireTopic {
    /// The frame that publishes these values as one batch.
    ///
    /// # Errors
    /// The values do not fit into a batch.
    pub fn publish_frame(&self, tag: u64, values: &[&[u8]]) -> Result<Vec<u8>> {
        let mut builder = BatchBuilder::new(Compression::None, 1024);
        for value in values {
            builder.push(None, Some(value), &[], TimestampMs(1))?;
        }
        Ok(self.frame_of(tag, &builder.finish(ProducerId::NONE, ProducerEpoch(0), Sequence(tag))))
    }

    /// The frame that publishes a batch as it is, however wrong.
    #[must_use]
    pub fn frame_of(&self, tag: u64, batch: &Batch) -> Vec<u8> {
        let head = PublishHead {
            topic: self.id,
            partition: PartitionId(0),
            leader_epoch: self.leader_epoch,
            producer: ProducerId::NONE,
            epoch: ProducerEpoch(0),
            ack: AckLevel::Quorum,
            keyed: false,
            seq_count: batch.record_count,
            base_sequence: Sequence(tag),
            resolved_upto: Sequence(0),
        };
        let mut frame = head.encode_framed(batch).to_vec();
        frame.extend_from_slice(&batch.body);
        frame
    }
}

/// A `Hello` that every broker accepts.
#[must_use]
pub fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        frame_bytes_max: BODY_BYTES_MAX,
        client_name: "raw test client".to_owned(),
        client_id: [7; 16],
        cluster_id: ClusterId::default(),
    }
}
