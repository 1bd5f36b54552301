//! Owns how an application names delayed messages, takes them back and asks about them. Decides nothing.

use std::{fmt, str::FromStr};

use postrider_protocol::{
    message::{
        self, CANCEL_DELAYED_MAX, CancelDelayed, CancelDelayedReply, CancelVerdict,
        DelayedPartition, DescribeDelayed, DescribeDelayedReply,
    },
    types::{EntryIndex, PartitionId},
};

use crate::{admin::Admin, core::link::Repeat, error::AdminError};

/// Names a delayed message of a topic. As text: `PARTITION-ENTRY-POSITION`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DelayId {
    /// Its partition.
    pub partition: PartitionId,
    /// The entry of the partition's log that it was stored in.
    pub index: EntryIndex,
    /// Its place in that entry.
    pub position: u32,
}

impl fmt::Display for DelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.partition, self.index, self.position)
    }
}

/// The text is no [`DelayId`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no delay id: it looks like 0-1234-0, as `pub --delay` printed it")]
pub struct NoDelayId(String);

impl FromStr for DelayId {
    type Err = NoDelayId;

    fn from_str(text: &str) -> Result<Self, NoDelayId> {
        let parse = || {
            let mut parts = text.split('-');
            let partition = PartitionId(parts.next()?.parse().ok()?);
            let index = EntryIndex(parts.next()?.parse().ok()?);
            let position = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(Self { partition, index, position })
        };
        parse().ok_or_else(|| NoDelayId(text.to_owned()))
    }
}

impl Admin {
    /// Takes delayed messages back. Tells for each, in the order of `ids`, whether it will never be delivered, or
    /// was released before. Asking again is safe.
    ///
    /// # Errors
    /// See [`AdminError`]; messages of some partitions may have been taken back.
    ///
    /// # Cancel safety
    /// Not cancel-safe: once polled, messages may be taken back all the same.
    pub async fn cancel_delayed(
        &self,
        topic: &str,
        ids: &[DelayId],
    ) -> Result<Vec<CancelVerdict>, AdminError> {
        let mut partitions: Vec<PartitionId> = ids.iter().map(|id| id.partition).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let mut verdicts = vec![CancelVerdict::Unknown; ids.len()];
        for partition in partitions {
            let places: Vec<usize> = ids
                .iter()
                .enumerate()
                .filter_map(|(at, id)| (id.partition == partition).then_some(at))
                .collect();
            for places in places.chunks(CANCEL_DELAYED_MAX) {
                let named = places.iter().filter_map(|at| ids.get(*at));
                let ids =
                    named.map(|id| message::DelayId { index: id.index, position: id.position });
                let request =
                    CancelDelayed { topic: topic.to_owned(), partition, ids: ids.collect() };
                let reply: CancelDelayedReply = self.ask(&request, Repeat::Safe).await?;
                for (at, verdict) in places.iter().zip(reply.verdicts) {
                    if let Some(place) = verdicts.get_mut(*at) {
                        *place = verdict;
                    }
                }
            }
        }
        Ok(verdicts)
    }

    /// What waits for its time in a topic, per partition that ever had delayed messages.
    ///
    /// # Errors
    /// See [`AdminError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    pub async fn delayed(&self, topic: &str) -> Result<Vec<DelayedPartition>, AdminError> {
        let request = DescribeDelayed { topic: topic.to_owned() };
        let reply: DescribeDelayedReply = self.ask(&request, Repeat::Safe).await?;
        Ok(reply.partitions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let (partition, index) = (PartitionId(3), EntryIndex(1 << 40));
        let id = DelayId { partition, index, position: 7 };
        assert_eq!(id.to_string(), "3-1099511627776-7");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "1", "1-2", "1-2-3-4", "a-2-3", "1--3", "-1-2-3"] {
            assert!(wrong.parse::<DelayId>().is_err(), "{wrong:?}");
        }
    }
}
