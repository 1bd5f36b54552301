//! Owns planted bugs of queues: what a wrong broker would say and do to its consumers, put between the broker and
//! them. Never active in a run without a planted bug. Driven by the server, frame by frame.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use postrider_protocol::api::Api;
use postrider_protocol::frame::{FLAG_REPLY, Frame, event, frame as framed, request};
use postrider_protocol::message::{
    Ack, AckReply, AckRun, Lease, Message, PurgeQueueReply, Return, ReturnAction, ReturnReply,
};
use postrider_protocol::types::{CorrelationId, EntryIndex};
use postrider_storage::disk_sim::SimRandom;

use super::tamper::{Planted, RARITY};
use super::tap::{Tap, frames};

/// The correlation of requests that no client made.
const FORGED: CorrelationId = CorrelationId(u64::MAX);

/// See the module.
pub(crate) struct QueueTamper {
    planted: Planted,
    /// Replies to be sent next, by connection.
    replies: BTreeMap<u64, Vec<Frame>>,
    /// Replies that are not to pass.
    swallowed: Vec<(u64, CorrelationId)>,
    /// Requests that nobody made, to be heard with the next frame of a connection.
    requests: BTreeMap<u64, Vec<Frame>>,
    restarts: u32,
}

/// The frame in bytes.
pub(crate) fn one(bytes: &Bytes) -> Frame {
    frames(&mut BytesMut::from(&bytes[..])).pop().expect("it is a frame")
}

fn reply<M: Message>(message: &M, correlation: CorrelationId) -> Frame {
    one(&framed(message, correlation, FLAG_REPLY))
}

impl QueueTamper {
    pub(crate) fn new(planted: Planted) -> Option<Self> {
        Planted::QUEUES.contains(&planted).then(|| Self {
            planted,
            replies: BTreeMap::new(),
            swallowed: Vec::new(),
            requests: BTreeMap::new(),
            restarts: 0,
        })
    }

    pub(crate) fn restarted(&mut self) {
        self.replies.clear();
        self.swallowed.clear();
        self.requests.clear();
        self.restarts += 1;
    }

    /// What the broker hears instead of a frame.
    pub(crate) fn received(&mut self, tap: &Tap, link: u64, frame: Frame) -> Vec<Frame> {
        let mut heard = self.requests.remove(&link).unwrap_or_default();
        let correlation = frame.header.correlation;
        let index = |handle, partition| {
            let queue = tap.queue_of(link, handle)?;
            Some(EntryIndex(tap.oracle.index((queue, partition)) + 1))
        };
        match (self.planted, Api::from_u16(frame.header.api)) {
            (Planted::SettledEarly | Planted::SettledNever, Some(Api::Ack)) => {
                let ack: Ack = frame.clone().message().expect("clients send what they may");
                if let Some(commit_index) = index(ack.handle, ack.partition.0) {
                    let forged = AckReply { commit_index, exceptions: Vec::new() };
                    self.replies.entry(link).or_default().push(reply(&forged, correlation));
                    if self.planted == Planted::SettledNever {
                        return heard;
                    }
                    self.swallowed.push((link, correlation));
                }
                heard.push(frame);
            }
            (Planted::FailureNotStored, Some(Api::Return)) => {
                let mut given: Return =
                    frame.clone().message().expect("clients send what they may");
                let commit_index = index(given.handle, given.partition.0);
                if let (ReturnAction::Nack { .. }, Some(commit_index)) =
                    (&given.action, commit_index)
                {
                    given.action = ReturnAction::Release;
                    let forged = ReturnReply { commit_index, exceptions: Vec::new() };
                    self.replies.entry(link).or_default().push(reply(&forged, correlation));
                    self.swallowed.push((link, correlation));
                    heard.push(one(&request(&given, correlation)));
                } else {
                    heard.push(frame);
                }
            }
            (Planted::PurgeForgotten, Some(Api::PurgeQueue)) => {
                let forged = reply(&PurgeQueueReply { purged: 0 }, correlation);
                self.replies.entry(link).or_default().push(forged);
            }
            _ => heard.push(frame),
        }
        heard
    }

    /// What the client gets instead of what the broker says.
    pub(crate) fn sent(
        &mut self,
        tap: &Tap,
        link: u64,
        sent: Vec<Frame>,
        dice: &mut SimRandom,
    ) -> Vec<Frame> {
        let mut said = self.replies.remove(&link).unwrap_or_default();
        for frame in sent {
            let correlation = frame.header.correlation;
            let is_lease = frame.header.api == Api::Lease as u16;
            if frame.header.is_reply() {
                let before = self.swallowed.len();
                self.swallowed.retain(|at| *at != (link, correlation));
                if self.swallowed.len() == before && correlation != FORGED {
                    said.push(frame);
                }
            } else if is_lease {
                let lease: Lease = frame.message().expect("the broker sends what it may");
                said.extend(self.lease(tap, link, lease, dice));
            } else {
                said.push(frame);
            }
        }
        said
    }

    fn lease(
        &mut self,
        tap: &Tap,
        link: u64,
        mut lease: Lease,
        dice: &mut SimRandom,
    ) -> Vec<Frame> {
        match self.planted {
            Planted::FailuresForgotten if self.restarts > 0 => {
                lease.head.runs.iter_mut().for_each(|run| run.failures = 0);
            }
            Planted::LeasedTwice if dice.one_in(RARITY) => {
                let head = &lease.head;
                let runs: Vec<AckRun> = head.runs.iter().map(|run| run.ack()).collect();
                let given = Return {
                    handle: head.handle,
                    partition: head.partition,
                    sub_epoch: head.sub_epoch,
                    leader_epoch: head.leader_epoch,
                    started: 0,
                    runs,
                    action: ReturnAction::Release,
                };
                self.requests.entry(link).or_default().push(one(&request(&given, FORGED)));
            }
            Planted::CreditIgnored if tap.queue_of(link, lease.head.handle).is_some() => {
                return vec![one(&event(&lease)), one(&event(&lease))];
            }
            _ => {}
        }
        vec![one(&event(&lease))]
    }
}
