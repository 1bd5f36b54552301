//! Owns one topic as sessions see it: its settings, its partitions (each opened at its first use) and its
//! durable subscriptions. Never decides. Driven by the catalog, which changes it, and by sessions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use postrider_core::{Now, metadata};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::message::TopicConfig;
use postrider_protocol::types::{
    EntryIndex, PartitionId, SubscriptionId, TimestampMs, TopicId, TopicKind,
};
use postrider_storage::{Log, LogKey, OpenedLog, Store};

use crate::join::hub::{Hub, lock};
use crate::join::leader::refusal;
use crate::join::partition::{PartitionHandle, TopicRules};

/// Logs that were found at the start and that nobody has asked for yet. What metadata does not know stays
/// here, untouched.
pub(crate) type FoundLogs = Arc<Mutex<BTreeMap<LogKeyOrd, OpenedLog>>>;

/// A log's key in the order of topics.
pub(crate) type LogKeyOrd = (TopicId, PartitionId);

/// See the module.
pub(crate) struct TopicHandle {
    pub(crate) id: TopicId,
    pub(crate) name: String,
    pub(crate) created: TimestampMs,
    config: RwLock<TopicConfig>,
    /// Bound: the topic's partitions.
    partitions: RwLock<Vec<Option<Arc<PartitionHandle>>>>,
    rules: Arc<TopicRules>,
    deleted: AtomicBool,
    found: FoundLogs,
    store: Store,
    hub: Arc<Hub>,
}

impl TopicHandle {
    pub(crate) fn new(
        topic: &metadata::Topic,
        found: FoundLogs,
        store: Store,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            id: topic.id,
            name: topic.name.clone(),
            created: topic.created,
            config: RwLock::new(topic.config.clone()),
            partitions: RwLock::default(),
            rules: Arc::new(TopicRules {
                subscriptions: Mutex::new(topic.subscriptions.clone()),
                bounds: Mutex::new(topic.config.bounds),
                subscriptions_version: AtomicU64::new(1),
                message_bytes_max: AtomicU32::new(message_bytes_max(&topic.config, &hub)),
                ttl_ms: AtomicU64::new(ttl_ms(&topic.config)),
                newest: AtomicU64::new(newest(&topic.config)),
                counts_kept: topic.config.kind == TopicKind::Log,
            }),
            deleted: AtomicBool::new(false),
            found,
            store,
            hub,
        }
    }

    pub(crate) fn config(&self) -> TopicConfig {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub(crate) fn set_config(self: &Arc<Self>, config: TopicConfig) {
        let message_bytes_max = message_bytes_max(&config, &self.hub);
        self.rules.message_bytes_max.store(message_bytes_max, Ordering::Relaxed);
        self.rules.ttl_ms.store(ttl_ms(&config), Ordering::Relaxed);
        self.rules.newest.store(newest(&config), Ordering::Relaxed);
        *lock(&self.rules.bounds) = config.bounds;
        self.rules.subscriptions_version.fetch_add(1, Ordering::AcqRel);
        self.hub.want_look(self);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The durable subscriptions.
    pub(crate) fn subscriptions(
        &self,
    ) -> MutexGuard<'_, BTreeMap<SubscriptionId, metadata::Subscription>> {
        lock(&self.rules.subscriptions)
    }

    /// Changes the durable subscriptions. The partitions follow at their next use, at the latest with the
    /// next tick.
    pub(crate) fn change_subscriptions(
        self: &Arc<Self>,
        change: impl FnOnce(&mut BTreeMap<SubscriptionId, metadata::Subscription>),
    ) {
        change(&mut self.subscriptions());
        self.rules.subscriptions_version.fetch_add(1, Ordering::AcqRel);
        self.hub.want_look(self);
    }

    /// Has the partitions in use follow the subscriptions.
    pub(crate) fn follow_subscriptions(&self, now: Now) {
        for partition in self.all_opened() {
            partition.lead_if_folded(now, |_leader, _turn| ());
        }
    }

    pub(crate) fn subscription_named(&self, name: &str) -> Option<metadata::Subscription> {
        self.subscriptions().values().find(|subscription| subscription.name == name).cloned()
    }

    /// The partition, opened if nobody has used it yet: no entry of it is read for that.
    ///
    /// # Errors
    /// There is no such partition, or its log cannot be created.
    pub(crate) fn partition(&self, id: PartitionId) -> Result<Arc<PartitionHandle>, ErrorBody> {
        if let Some(partition) = self.opened(id) {
            return Ok(partition);
        }
        self.open(id)
    }

    /// The partition if somebody has used it.
    pub(crate) fn opened(&self, id: PartitionId) -> Option<Arc<PartitionHandle>> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(usize::try_from(id.0).ok()?)?.clone()
    }

    fn open(&self, id: PartitionId) -> Result<Arc<PartitionHandle>, ErrorBody> {
        let config = self.config();
        if id.0 >= config.partitions {
            let text = format!("the topic {} has {} partitions", self.name, config.partitions);
            return Err(ErrorBody::new(ErrorCode::UnknownPartition, text));
        }
        let at = id.0 as usize;
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_deleted() {
            return Err(ErrorBody::new(ErrorCode::UnknownTopic, "the topic was deleted"));
        }
        if partitions.len() <= at {
            partitions.resize(at + 1, None);
        }
        if let Some(Some(partition)) = partitions.get(at) {
            return Ok(Arc::clone(partition));
        }
        let opened = self.log(id, &config)?;
        let (rules, hub) = (Arc::clone(&self.rules), Arc::clone(&self.hub));
        let partition = PartitionHandle::new(opened, config.durability, rules, hub);
        if let Some(place) = partitions.get_mut(at) {
            *place = Some(Arc::clone(&partition));
        }
        Ok(partition)
    }

    fn log(&self, id: PartitionId, config: &TopicConfig) -> Result<OpenedLog, ErrorBody> {
        let found = lock(&self.found).remove(&(self.id, id));
        let key = LogKey { topic: self.id, partition: id };
        // A log that exists takes the class: recovery may not have known it.
        let log = self
            .store
            .create_log(key, config.durability)
            .map_err(|error| refusal(error).error())?;
        Ok(match found {
            Some(opened) => OpenedLog { log, ..opened },
            None => OpenedLog { log, snapshot: None, damages: Vec::new() },
        })
    }

    /// The log and its snapshot as they were found at the start, if nobody has used the partition since.
    pub(crate) fn found(&self, id: PartitionId) -> Option<(Log, Option<(EntryIndex, Bytes)>)> {
        let found = lock(&self.found);
        found.get(&(self.id, id)).map(|opened| (opened.log.clone(), opened.snapshot.clone()))
    }

    /// Whether the partition was ever written to, or is in use.
    pub(crate) fn is_used(&self, id: PartitionId) -> bool {
        self.opened(id).is_some() || lock(&self.found).contains_key(&(self.id, id))
    }

    /// Partitions that somebody has used.
    pub(crate) fn all_opened(&self) -> Vec<Arc<PartitionHandle>> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.iter().flatten().cloned().collect()
    }

    /// The topic is gone: its logs are dropped, whoever waits for its partitions is answered.
    pub(crate) fn delete(&self) {
        let opened = {
            let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
            self.deleted.store(true, Ordering::Release);
            std::mem::take(&mut *partitions)
        };
        for partition in opened.into_iter().flatten() {
            self.store.drop_log(partition.key);
            partition.delete();
        }
        let range = (self.id, PartitionId(0))..=(self.id, PartitionId(u32::MAX));
        let mut found = lock(&self.found);
        let left: Vec<LogKeyOrd> = found.range(range).map(|(key, _log)| *key).collect();
        for (topic, partition) in left {
            found.remove(&(topic, partition));
            self.store.drop_log(LogKey { topic, partition });
        }
    }
}

/// How long messages are delivered to streams; 0 = whatever their age. Those of a queue leave it, and so its log.
fn ttl_ms(config: &TopicConfig) -> u64 {
    match config.kind {
        TopicKind::Log => config.bounds.message_ttl_ms.unwrap_or(0),
        TopicKind::Queue => 0,
    }
}

/// How many of the newest messages are delivered to streams; 0 = all.
pub(crate) fn newest(config: &TopicConfig) -> u64 {
    match config.kind {
        TopicKind::Log if config.bounds.sheds() => config.bounds.max_messages.unwrap_or(0),
        TopicKind::Log | TopicKind::Queue => 0,
    }
}

fn message_bytes_max(config: &TopicConfig, hub: &Hub) -> u32 {
    let limit = hub.options.limits.message_bytes_max;
    config.message_bytes_max.map_or(limit, |own| own.min(limit))
}
