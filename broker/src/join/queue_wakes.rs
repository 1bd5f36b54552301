//! Owns which partitions have something to do in their queues, and when: leases that end, delays that are
//! over. Never locks a partition. Driven by the partitions' leaders, which enter themselves, and by the tick,
//! which takes what is due: partitions without queues cost it nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use postrider_protocol::types::{PartitionId, TopicId};

use crate::join::hub::lock;
use crate::join::partition::PartitionHandle;

/// A moment and the partition that is due then.
type Wake = (Duration, TopicId, PartitionId);

/// See the module.
#[derive(Default)]
pub(crate) struct QueueWakes {
    /// Bound: one per partition.
    wakes: Mutex<BTreeMap<Wake, Weak<PartitionHandle>>>,
}

impl QueueWakes {
    /// Has the tick come to a partition at `wake`, in place of `before`.
    pub(crate) fn set(
        &self,
        partition: &PartitionHandle,
        before: Option<Duration>,
        wake: Duration,
    ) {
        let key = |moment| (moment, partition.key.topic, partition.key.partition);
        let mut wakes = lock(&self.wakes);
        if let Some(before) = before {
            wakes.remove(&key(before));
        }
        wakes.insert(key(wake), partition.weak());
    }

    /// Takes out the partitions that are due, at most `max`.
    pub(crate) fn take_due(&self, now: Duration, max: usize) -> Vec<Arc<PartitionHandle>> {
        let mut wakes = lock(&self.wakes);
        let mut due = Vec::new();
        while due.len() < max
            && let Some(first) = wakes.first_entry()
            && first.key().0 <= now
        {
            due.extend(first.remove().upgrade());
        }
        due
    }
}
