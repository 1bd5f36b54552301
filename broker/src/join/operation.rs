//! Owns a request that concerns several partitions until the last one has answered. Never asks them.
//! Driven by the partitions' leaders (`step`); the session that asked gets the result.

use std::sync::{Arc, Mutex, PoisonError};

use postrider_protocol::api::Api;
use postrider_protocol::error::ErrorBody;
use postrider_protocol::frame;
use postrider_protocol::message::{PurgeQueueReply, SeekReply};
use postrider_protocol::types::{CorrelationId, Offset, PartitionId};

use crate::join::outbox::{Outbox, WakeList};
use crate::join::session::SessionTask;

/// What is done when all partitions have answered.
pub(crate) enum Purpose {
    /// A reader begins: the session goes on.
    Attach { reader: u64 },
    /// A subscription was moved: the reply goes out.
    Seek { correlation: CorrelationId },
    /// A queue was emptied: the reply goes out.
    Purge { correlation: CorrelationId },
}

/// One partition's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) partition: PartitionId,
    pub(crate) owner_epoch: u64,
    pub(crate) next: Offset,
    /// Messages of a queue that left it unprocessed.
    pub(crate) evicted: u64,
}

/// See the module.
pub(crate) struct Operation {
    pub(crate) outbox: Arc<Outbox>,
    purpose: Purpose,
    progress: Mutex<Progress>,
}

struct Progress {
    left: usize,
    steps: Vec<Step>,
    error: Option<ErrorBody>,
}

impl Operation {
    /// Waits for one step of each of `partitions`.
    pub(crate) fn new(outbox: Arc<Outbox>, purpose: Purpose, partitions: usize) -> Arc<Self> {
        let progress = Progress { left: partitions, steps: Vec::new(), error: None };
        Arc::new(Self { outbox, purpose, progress: Mutex::new(progress) })
    }

    /// The reader that it is for; 0 if for none, which no reader has.
    pub(crate) fn reader(&self) -> u64 {
        match self.purpose {
            Purpose::Attach { reader } => reader,
            Purpose::Seek { .. } | Purpose::Purge { .. } => 0,
        }
    }

    pub(crate) fn step(&self, step: Result<Step, ErrorBody>, wakes: &mut WakeList) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.left -= 1;
        match step {
            Ok(step) => progress.steps.push(step),
            Err(error) => progress.error = Some(error),
        }
        if progress.left > 0 {
            return;
        }
        let mut steps = std::mem::take(&mut progress.steps);
        let error = progress.error.take();
        drop(progress);
        steps.sort_unstable_by_key(|step| step.partition);
        self.finish(error.map_or(Ok(steps), Err));
        wakes.mark(&self.outbox);
    }

    fn finish(&self, result: Result<Vec<Step>, ErrorBody>) {
        match self.purpose {
            Purpose::Attach { reader } => {
                self.outbox.push_task(SessionTask::Attached { reader, result });
            }
            Purpose::Seek { correlation } => self.outbox.push_reply(match result {
                Ok(steps) => {
                    let partitions = steps.iter().map(|step| (step.partition, step.next)).collect();
                    frame::reply(&SeekReply { partitions }, correlation)
                }
                Err(error) => frame::error_reply(Api::Seek as u16, correlation, &error),
            }),
            Purpose::Purge { correlation } => self.outbox.push_reply(match result {
                Ok(steps) => {
                    let purged = steps.iter().map(|step| step.evicted).sum();
                    frame::reply(&PurgeQueueReply { purged }, correlation)
                }
                Err(error) => frame::error_reply(Api::PurgeQueue as u16, correlation, &error),
            }),
        }
    }
}
