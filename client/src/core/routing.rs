//! Owns which partition a message goes to: the one it names; else by the slot of its key, or of its idempotency key if
//! it has no other, so that a retry goes where the first send went; else the partition that keyless messages stick to, which changes after each batch's worth of bytes. Never knows leaders or
//! connections. Driven by `producer`.

use postrider_protocol::partition::{partition_of, slot_of};

use super::lane::MessageParts;

/// Keyless messages stay with a partition for a batch's worth of bytes, so that batches are as full as with
/// one partition, and every partition gets the same share.
#[derive(Debug)]
pub(crate) struct Router {
    sticky: u32,
    left_bytes: usize,
    batch_bytes: usize,
}

impl Router {
    /// `seed` chooses the first partition, so that many short-lived producers do not all start with 0.
    pub(crate) fn new(seed: u64, batch_bytes: usize) -> Self {
        let sticky = u32::try_from(seed >> 33).expect("31 bits fit");
        Self { sticky, left_bytes: batch_bytes, batch_bytes }
    }

    /// The partition for a message of `bytes`; `None` if the topic has no such partition.
    pub(crate) fn route(
        &mut self,
        message: &MessageParts<'_>,
        bytes: usize,
        partitions: u32,
    ) -> Option<u32> {
        if let Some(chosen) = message.partition {
            return (chosen.0 < partitions).then_some(chosen.0);
        }
        match (partitions, message.key.or(message.idempotency_key)) {
            (0, _) => None,
            (1, _) => Some(0),
            (_, Some(key)) => Some(partition_of(slot_of(key), partitions).0),
            (_, None) => Some(self.stick(bytes, partitions)),
        }
    }

    fn stick(&mut self, bytes: usize, partitions: u32) -> u32 {
        if self.left_bytes == 0 {
            self.sticky = self.sticky.wrapping_add(1);
            self.left_bytes = self.batch_bytes;
        }
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        self.sticky % partitions
    }
}

#[cfg(test)]
mod tests {
    use postrider_protocol::types::PartitionId;

    use super::*;

    fn message<'a>(key: Option<&'a [u8]>, partition: Option<u32>) -> MessageParts<'a> {
        let partition = partition.map(PartitionId);
        MessageParts {
            partition,
            key,
            value: None,
            headers: &[],
            timestamp: None,
            deliver_at: None,
            idempotency_key: None,
        }
    }

    #[test]
    fn a_chosen_partition_must_exist() {
        let mut router = Router::new(0, 100);
        assert_eq!(router.route(&message(None, Some(2)), 1, 3), Some(2));
        assert_eq!(router.route(&message(None, Some(3)), 1, 3), None);
    }

    #[test]
    fn a_key_always_goes_to_the_partition_of_its_slot() {
        let mut router = Router::new(7, 100);
        let expected = partition_of(slot_of(b"cust-7"), 5).0;
        for _ in 0..10 {
            assert_eq!(router.route(&message(Some(b"cust-7"), None), 60, 5), Some(expected));
        }
    }

    #[test]
    fn a_key_routes_before_an_idempotency_key_and_that_routes_alone() {
        let mut router = Router::new(7, 100);
        let slot = |key: &[u8]| Some(partition_of(slot_of(key), 5).0);
        for _ in 0..10 {
            let keyed =
                |key| MessageParts { idempotency_key: Some(b"order-1"), ..message(key, None) };
            assert_eq!(router.route(&keyed(None), 60, 5), slot(b"order-1"));
            assert_eq!(router.route(&keyed(Some(b"cust-7")), 60, 5), slot(b"cust-7"));
        }
    }

    #[test]
    fn keyless_messages_stay_for_a_batch_and_share_the_partitions_evenly() {
        let mut router = Router::new(0, 100);
        let mut counts = [0; 4];
        let mut changes = 0;
        let mut last = None;
        for _ in 0..400 {
            let at = router.route(&message(None, None), 10, 4);
            changes += u32::from(at != last);
            last = at;
            counts[at.unwrap() as usize] += 1;
        }
        assert_eq!(counts, [100; 4]);
        assert_eq!(changes, 40);
    }
}
