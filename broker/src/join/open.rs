//! Owns the start of a broker: recovery of the directory, the fold of its metadata, its identity, and the
//! commands by which this start becomes part of them. Never serves. Driven by `Broker::open`, on a thread
//! that may block, before any other thread uses the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::limits::PRODUCER_ID_BLOCK;
use postrider_core::metadata::{Command, Image};
use postrider_protocol::entry::{Entry, EntryKind};
use postrider_protocol::error::ErrorBody;
use postrider_protocol::types::{
    ClusterId, Durability, EntryIndex, LeaderEpoch, NodeId, PartitionId, StorageId, TopicId,
};
use postrider_storage::{
    Disk, Log, LogKey, LogWatcher, OpenError, Opened, OpenedLog, RecoveryReport, Store, StoreError,
};

use crate::join::catalog::Catalog;
use crate::join::fold::{FoldError, Piece, walk};
use crate::join::hub::{Hub, Identity, Observer};
use crate::join::metadata_log::{LocalLog, append_command};
use crate::join::options::BrokerOptions;
use crate::join::random::Random;
use crate::join::topic::{FoundLogs, LogKeyOrd};

/// Groups that the store may need until the commands of a start are durable. More means that it is stuck.
const STEPS_MAX: usize = 1_000;
/// Runs of maintenance that may give them room. One does, unless the disk is full.
const MAINTENANCE_MAX: usize = 4;

/// Lost ranges that a start names in the broker's log.
const DAMAGES_SHOWN: usize = 100;

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerOpenError {
    /// The data directory could not be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The metadata is damaged: restore the directory from a copy. Starting without it would lose topics.
    #[error(
        "the metadata log is damaged from entry {from} on; restore the data directory from a copy"
    )]
    MetadataDamaged {
        /// The first entry that is lost.
        from: EntryIndex,
    },
    /// The metadata cannot be understood: a newer program wrote it, or there is a bug.
    #[error("the metadata log cannot be folded at entry {index}: {reason}")]
    MetadataUnknown {
        /// The entry.
        index: EntryIndex,
        /// What is wrong with it.
        reason: String,
    },
    /// The metadata log could not be read.
    #[error("the metadata log cannot be read: {0}")]
    MetadataRead(String),
    /// The directory belongs to another broker of the cluster.
    #[error(
        "the data directory belongs to node {found}, but this broker is configured as node {configured}"
    )]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Who asks.
        configured: NodeId,
    },
    /// The store takes no entry, or they do not become durable.
    #[error("the start could not be written to the metadata log: {0}")]
    Write(ErrorBody),
    /// The disk failed.
    #[error("the start could not be written to the metadata log: {0}")]
    Disk(StoreError),
}

impl From<FoldError> for BrokerOpenError {
    fn from(error: FoldError) -> Self {
        Self::MetadataRead(error.to_string())
    }
}

/// What a start found.
#[derive(Clone, Copy, Debug)]
pub struct OpenReport {
    /// What recovery did.
    pub recovery: RecoveryReport,
    /// Recovery cut a group that might have been acknowledged.
    pub doubtful: bool,
    /// Logs with entries.
    pub logs: usize,
    /// Logs that no topic owns; they are kept.
    pub unknown_logs: usize,
    /// Ranges that are lost, over all logs.
    pub damages: usize,
}

/// An opened broker's parts.
pub(crate) struct Parts {
    pub(crate) hub: Arc<Hub>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) store: Store,
    pub(crate) report: OpenReport,
}

pub(crate) fn open(
    disk: Arc<dyn Disk>,
    options: BrokerOptions,
    now: Now,
    seed: &mut dyn FnMut() -> u64,
) -> Result<Parts, BrokerOpenError> {
    let mut random = Random::new(seed);
    let Opened { store, logs, report, doubtful } = Store::open(disk, options.store.clone())?;
    let damages = logs.iter().map(|opened| opened.damages.len()).sum();
    let count = logs.len();
    warn_of_damage(&logs, doubtful);
    let (metadata, mut found) = split(logs);
    let (metadata, snapshot) = match metadata {
        Some(OpenedLog { log, snapshot, damages: _ }) => (log, snapshot),
        None => (create_metadata_log(&store)?, None),
    };
    let Folded { mut image, deleted } = fold(&metadata, snapshot)?;
    drop_deleted(&store, &image, &deleted, &mut found);
    let unknown = unknown_logs(&image, &found);
    let identity = identify(&image, &options, &mut random)?;
    let hub = Arc::new(Hub::new(options, identity, now));
    let term = u64::from(identity.leader_epoch.0);
    for command in first_commands(&image, &hub) {
        let index =
            append_command(&metadata, now, term, &command).map_err(BrokerOpenError::Write)?;
        image.apply(index, &command).map_err(|error| BrokerOpenError::MetadataUnknown {
            index,
            reason: error.to_string(),
        })?;
    }
    until_durable(&store, &metadata, now)?;
    let report =
        OpenReport { recovery: report, doubtful, logs: count, unknown_logs: unknown, damages };
    let found = FoundLogs::new(found.into());
    let log = Box::new(LocalLog::new(metadata.clone(), term));
    let catalog = Catalog::new(Arc::clone(&hub), store.clone(), found, log, image, random);
    let catalog = Arc::new(catalog);
    catalog.notify_waiting();
    watch(&store, &metadata, &hub, &catalog);
    Ok(Parts { hub, catalog, store, report })
}

/// Says what is lost, or may be. Readers are told of it as gaps; whoever runs the broker reads it here.
fn warn_of_damage(logs: &[OpenedLog], doubtful: bool) {
    if doubtful {
        tracing::warn!(
            "the end of the journal is damaged; what was cut may have been acknowledged"
        );
    }
    let damages = logs
        .iter()
        .flat_map(|opened| opened.damages.iter().map(move |damage| (opened.log.key(), damage)));
    let all = damages.clone().count();
    for (LogKey { topic, partition }, damage) in damages.take(DAMAGES_SHOWN) {
        tracing::warn!(
            %topic,
            %partition,
            from_offset = %damage.from_offset,
            end_offset = %damage.end_offset,
            "messages are lost"
        );
    }
    if all > DAMAGES_SHOWN {
        tracing::warn!(all, shown = DAMAGES_SHOWN, "more is lost than is shown");
    }
}

fn split(logs: Vec<OpenedLog>) -> (Option<OpenedLog>, BTreeMap<LogKeyOrd, OpenedLog>) {
    let mut metadata = None;
    let mut found = BTreeMap::new();
    for opened in logs {
        let LogKey { topic, partition } = opened.log.key();
        if topic == TopicId::METADATA {
            metadata = Some(opened);
        } else {
            found.insert((topic, partition), opened);
        }
    }
    (metadata, found)
}

fn create_metadata_log(store: &Store) -> Result<Log, BrokerOpenError> {
    let key = LogKey { topic: TopicId::METADATA, partition: PartitionId(0) };
    store
        .create_log(key, Durability::Fsync)
        .map_err(|error| BrokerOpenError::Write(crate::join::leader::refusal(error).error()))
}

/// The metadata as it was.
struct Folded {
    image: Image,
    /// Topics that were deleted since the snapshot: their logs may still be there.
    deleted: BTreeSet<TopicId>,
}

fn fold(log: &Log, snapshot: Option<(EntryIndex, Bytes)>) -> Result<Folded, BrokerOpenError> {
    let image = match snapshot {
        None => Image::default(),
        Some((index, bytes)) => Image::decode_snapshot(&bytes).map_err(|error| {
            BrokerOpenError::MetadataUnknown { index, reason: error.to_string() }
        })?,
    };
    let from = image.end();
    let mut folded = Folded { image, deleted: BTreeSet::new() };
    walk(log, from, |piece| match piece {
        Piece::Entry(entry) => folded.apply(&entry),
        Piece::Lost(_end) => Err(BrokerOpenError::MetadataDamaged { from: folded.image.end() }),
    })?;
    Ok(folded)
}

impl Folded {
    fn apply(&mut self, entry: &Entry) -> Result<(), BrokerOpenError> {
        let index = entry.header.index;
        let unknown = |reason| BrokerOpenError::MetadataUnknown { index, reason };
        if entry.header.kind != EntryKind::Metadata {
            return Err(unknown(format!("it is of kind {:?}", entry.header.kind)));
        }
        let command = Command::decode(&entry.body).map_err(|error| unknown(error.to_string()))?;
        self.image.apply(index, &command).map_err(|error| unknown(error.to_string()))?;
        if let Command::DeleteTopic { id } = command {
            self.deleted.insert(id);
        }
        Ok(())
    }
}

/// A crash between the deletion of a topic and that of its logs leaves logs behind.
fn drop_deleted(
    store: &Store,
    image: &Image,
    deleted: &BTreeSet<TopicId>,
    found: &mut BTreeMap<LogKeyOrd, OpenedLog>,
) {
    found.retain(|(topic, partition), _log| {
        let gone = deleted.contains(topic) && image.topic(*topic).is_none();
        if gone {
            store.drop_log(LogKey { topic: *topic, partition: *partition });
        }
        !gone
    });
}

/// Counts what metadata does not know. It stays: a metadata log that lost its end must not cost data too.
fn unknown_logs(image: &Image, found: &BTreeMap<LogKeyOrd, OpenedLog>) -> usize {
    let is_known = |(topic, partition): &LogKeyOrd| {
        image.topic(*topic).is_some_and(|topic| partition.0 < topic.config.partitions)
    };
    let unknown: Vec<_> = found.keys().filter(|key| !is_known(key)).collect();
    for (topic, partition) in &unknown {
        tracing::warn!(%topic, %partition, "a log belongs to no topic; it is kept");
    }
    unknown.len()
}

fn identify(
    image: &Image,
    options: &BrokerOptions,
    random: &mut Random,
) -> Result<Identity, BrokerOpenError> {
    let known = image.brokers().get(&options.node);
    if known.is_none()
        && let Some(other) = image.brokers().keys().next()
    {
        return Err(BrokerOpenError::OtherNode { found: *other, configured: options.node });
    }
    let incarnation = known.map_or(0, |broker| broker.incarnation) + 1;
    Ok(Identity {
        cluster: image.cluster().unwrap_or_else(|| ClusterId(random.uuid())),
        storage: known.map_or_else(|| StorageId(random.uuid()), |broker| broker.storage),
        node: options.node,
        incarnation,
        leader_epoch: LeaderEpoch(u32::try_from(incarnation).unwrap_or(u32::MAX)),
    })
}

/// What makes this start known, with producer ids for its first sessions.
fn first_commands(image: &Image, hub: &Hub) -> Vec<Command> {
    let Identity { cluster, storage, node, incarnation, .. } = hub.identity;
    let mut commands = Vec::new();
    if image.cluster().is_none() {
        commands.push(Command::InitCluster { cluster });
    }
    let (host, port) = (hub.options.host.clone(), hub.options.port);
    commands.push(Command::RegisterBroker { node, storage, incarnation, host, port });
    let first = image.producer_ids_end();
    commands.push(Command::GrantProducerIds { node, first, count: PRODUCER_ID_BLOCK });
    commands
}

/// Drives the store until all of the log is durable: nobody else does before a broker is open. The process
/// before may have left a journal with as many bytes as it may have, so maintenance makes room in it.
fn until_durable(store: &Store, log: &Log, now: Now) -> Result<(), BrokerOpenError> {
    let (end, _offset) = log.log_end();
    let mut maintained = 0;
    for _ in 0..STEPS_MAX {
        if let Some(error) = store.failed() {
            return Err(BrokerOpenError::Disk(error));
        }
        if log.durable_end().0 >= end {
            return Ok(());
        }
        if !store.step() {
            if maintained == MAINTENANCE_MAX {
                break;
            }
            store.maintain(now.wall);
            maintained += 1;
        }
    }
    let doing = "waiting for the metadata log".to_string();
    Err(BrokerOpenError::Disk(StoreError { doing, message: "nothing is written".to_string() }))
}

fn watch(store: &Store, metadata: &Log, hub: &Arc<Hub>, catalog: &Arc<Catalog>) {
    metadata.watch(Arc::new(MetadataWatcher(Arc::downgrade(catalog))));
    store.set_observer(Arc::new(Observer::new(Arc::clone(hub), Arc::downgrade(catalog))));
}

/// Passes the store's call on, without keeping the catalog alive.
struct MetadataWatcher(std::sync::Weak<Catalog>);

impl LogWatcher for MetadataWatcher {
    fn advanced(&self) {
        if let Some(catalog) = self.0.upgrade() {
            catalog.notify();
        }
    }
}
