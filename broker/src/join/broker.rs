//! Owns a broker: its parts and its life from open to close. Never serves a frame itself (sessions do).
//! Driven by the shell's server, by the whole-system simulation and by tests.

use std::sync::{Arc, Mutex};

use postrider_core::Now;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_storage::{Disk, Store, StoreError};

use crate::join::catalog::Catalog;
use crate::join::counters::{BrokerMetrics, Gauges};
use crate::join::depths;
use crate::join::housekeeping::{Housekeeping, write_snapshot};
use crate::join::hub::{Hub, Identity, lock};
use crate::join::open::{self, BrokerOpenError, OpenReport, Parts};
use crate::join::options::BrokerOptions;
use crate::join::outbox::{Outbox, Wake};
use crate::join::session::Session;

/// Whether clients are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// They are.
    Ready,
    /// New work is refused, what is in flight is finished.
    Draining,
    /// The disk failed: the process should end.
    Failed(String),
}

struct Inner {
    hub: Arc<Hub>,
    catalog: Arc<Catalog>,
    store: Store,
    report: OpenReport,
    housekeeping: Mutex<Housekeeping>,
}

/// A broker. Clones are the same broker.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

impl Broker {
    /// Opens a data directory: recovers it, folds its metadata, and makes this start durable. Blocks on
    /// the disk; the store's threads must not run yet. `random` seeds the ids that the broker gives out.
    ///
    /// # Errors
    /// See [`BrokerOpenError`]. The directory is as before, or recovered.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: BrokerOptions,
        now: Now,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Self, BrokerOpenError> {
        let Parts { hub, catalog, store, report } = open::open(disk, options, now, random)?;
        let housekeeping = Mutex::new(Housekeeping::new());
        Ok(Self { inner: Arc::new(Inner { hub, catalog, store, report, housekeeping }) })
    }

    /// A session for a new connection. `wake` is called when it has something to transmit.
    ///
    /// # Errors
    /// There are as many as allowed, or the broker is shutting down: send the error and close.
    pub fn connect(&self, wake: Arc<dyn Wake>) -> Result<Session, ErrorBody> {
        let Inner { hub, catalog, .. } = &*self.inner;
        if hub.is_draining() {
            let text = "the broker is shutting down; connect to another, or later";
            return Err(hub.error(ErrorCode::ShuttingDown, text));
        }
        let Some(number) = hub.begin_session() else {
            let text = format!(
                "the broker has {} connections, as many as allowed; close some, or raise the limit",
                hub.options.connections_max
            );
            return Err(hub.error(ErrorCode::LimitExceeded, text));
        };
        let outbox = Arc::new(Outbox::new(number, wake, Arc::clone(&hub.budget)));
        Ok(Session::new(Arc::clone(hub), Arc::clone(catalog), outbox))
    }

    /// The store, for its threads.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Who this broker is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.inner.hub.identity
    }

    /// What the start found, for the log.
    #[must_use]
    pub fn open_report(&self) -> OpenReport {
        self.inner.report
    }

    /// Does a bounded part of what is due: retention, snapshots, expiry. Every 25 ms or so: leases of queues end as exactly as that.
    pub fn tick(&self, now: Now) {
        let Inner { hub, catalog, store, housekeeping, .. } = &*self.inner;
        hub.set_now(now);
        lock(housekeeping).tick(hub, catalog, store.stats().segment_bytes, now);
    }

    /// Takes no new work from here on. What is in flight is confirmed, deliveries go on.
    pub fn drain(&self) {
        self.inner.hub.drain();
    }

    /// Writes what is accepted and closes the directory. Nothing is accepted afterwards. Blocks on the
    /// disk; stop the store's threads first.
    ///
    /// # Errors
    /// The disk failed. What was confirmed is safe.
    pub fn close(&self) -> Result<(), StoreError> {
        let Inner { hub, store, .. } = &*self.inner;
        hub.drain();
        for partition in hub.partitions() {
            if partition.snapshot_is_worth_it() {
                write_snapshot(hub, &partition, hub.now());
            }
        }
        store.close()
    }

    /// Whether clients are served.
    #[must_use]
    pub fn ready(&self) -> Readiness {
        let Inner { hub, store, .. } = &*self.inner;
        match store.failed() {
            Some(error) => Readiness::Failed(error.to_string()),
            None if hub.is_draining() => Readiness::Draining,
            None => Readiness::Ready,
        }
    }

    /// The broker's numbers at this moment.
    #[must_use]
    pub fn metrics(&self) -> BrokerMetrics {
        let Inner { hub, catalog, store, .. } = &*self.inner;
        let (topics, partitions, subscriptions) = catalog.read(|desk| {
            let image = desk.committed;
            let subscriptions: usize =
                image.topics().values().map(|topic| topic.subscriptions.len()).sum();
            (image.topics().len() as u64, image.partitions(), subscriptions as u64)
        });
        let (group_members, group_partitions_unowned) = hub.groups.counts();
        let partitions_open = hub.partitions();
        let remembered = partitions_open.iter().map(|partition| partition.remembered());
        let (dedup_keys, dedup_bytes) =
            remembered.fold((0, 0), |(keys, bytes), (more, their)| (keys + more, bytes + their));
        let gauges = Gauges {
            sessions: u64::from(hub.sessions()),
            delays_pending: partitions_open.iter().map(|partition| partition.scheduled()).sum(),
            dedup_keys,
            dedup_bytes,
            publish_in_flight_bytes: hub.budget.used() as u64,
            topics,
            partitions,
            subscriptions,
            group_members,
            group_partitions_unowned,
            queue_depths: depths::depths(catalog, hub.now()),
            disk_full: store.is_full(),
        };
        hub.counters.metrics(gauges, store.stats())
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("identity", &self.identity()).finish_non_exhaustive()
    }
}
