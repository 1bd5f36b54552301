//! The join of decisions (core) and logs (storage): everything that a broker does between a frame that
//! came in and bytes that go out. Synchronous; knows no runtime, no socket and no clock, so that the
//! simulator drives it as it stands. Driven by `net`, `server` and the whole-system simulation.
//!
//! ```text
//!   Session::receive --> PartitionHandle (lock: core decides, storage queues)      Catalog (metadata)
//!                                ^ notify                                             ^ notify
//!   I/O thread: group written ---+----------------------------------------------------+
//!                                | confirms, replies, tasks
//!                                v
//!   Session::transmit <-- Outbox <-- woken once per round
//!        |  deliveries: Log::read, sliced from the map
//! ```

mod broker;
mod catalog;
mod combining;
mod consumers;
mod counters;
mod dead_letters;
mod delays;
mod deliver;
mod depths;
mod expiry;
mod fold;
mod groups;
mod housekeeping;
mod hub;
mod leader;
mod lease;
mod letter;
mod members;
mod metadata_log;
mod open;
mod operation;
mod options;
mod outbox;
mod parcel;
mod partition;
mod queue_wakes;
mod random;
mod readers;
mod redrive;
mod session;
mod topic;

pub use broker::{Broker, Readiness};
pub use counters::{BrokerMetrics, LATENESS_BOUNDS_MS, LatenessTotals};
pub use depths::{QUEUES_APART_MAX, QueueDepth, QueueDepths};
pub use hub::Identity;
pub use open::{BrokerOpenError, OpenReport};
pub use options::BrokerOptions;
pub use outbox::Wake;
pub use session::{Session, SessionEnd, Transmit, TransmitState};
