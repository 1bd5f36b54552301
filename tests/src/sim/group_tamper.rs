//! Owns planted bugs of consumer groups: what a wrong broker would say to its members and take from them, put
//! between the broker and them. Never active in a run without a planted bug. Driven by the server, frame by frame.

use std::collections::{BTreeMap, BTreeSet};

use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, event, reply, request};
use postrider_protocol::message::{
    AckUpTo, AckUpToReply, Deliver, GroupAssigned, GroupFenced, GroupReleased, GroupRevoked,
    JoinGroupReply,
};
use postrider_protocol::types::{CorrelationId, SubscriptionHandle};
use postrider_storage::disk_sim::SimRandom;

use super::group_tap::{GroupTap, end_of};
use super::queue_tamper::one;
use super::tamper::{Planted, RARITY};

/// See the module.
pub(crate) struct GroupTamper {
    planted: Planted,
    /// Requests that nobody made, to be heard with the next frame of a connection.
    requests: BTreeMap<u64, Vec<Frame>>,
    /// Events that the broker did not send, to be sent with the next ones of a connection.
    events: BTreeMap<u64, Vec<Frame>>,
    /// Refusals that become acknowledgements.
    excused: BTreeSet<(u64, CorrelationId)>,
    /// Partitions of which the member was not told.
    forgotten: BTreeSet<(u64, SubscriptionHandle, u32)>,
    /// The last delivery on each partition.
    delivered: BTreeMap<u32, (u64, Frame)>,
    members: BTreeMap<u64, SubscriptionHandle>,
}

impl GroupTamper {
    pub(crate) fn new(planted: Planted) -> Option<Self> {
        Planted::GROUPS.contains(&planted).then(|| Self {
            planted,
            requests: BTreeMap::new(),
            events: BTreeMap::new(),
            excused: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            delivered: BTreeMap::new(),
            members: BTreeMap::new(),
        })
    }

    pub(crate) fn restarted(&mut self) {
        let planted = self.planted;
        *self = Self::new(planted).expect("it was made for it");
    }

    /// What the broker hears instead of a frame.
    pub(crate) fn received(&mut self, tap: &GroupTap, link: u64, frame: Frame) -> Vec<Frame> {
        let mut heard = self.requests.remove(&link).unwrap_or_default();
        if let (Planted::StaleAckTaken, Some(Api::AckUpTo)) =
            (self.planted, Api::from_u16(frame.header.api))
        {
            let ack: AckUpTo = frame.clone().message().expect("clients send what they may");
            if ack.owner_epoch < tap.oracle.epoch(ack.partition.0) {
                self.excused.insert((link, frame.header.correlation));
            }
        }
        heard.push(frame);
        heard
    }

    /// What the client gets instead of what the broker says.
    pub(crate) fn sent(
        &mut self,
        tap: &mut GroupTap,
        link: u64,
        sent: Vec<Frame>,
        dice: &mut SimRandom,
    ) -> Vec<Frame> {
        let mut said = self.events.remove(&link).unwrap_or_default();
        for frame in sent {
            let correlation = frame.header.correlation;
            if frame.header.is_reply() {
                let excused = self.excused.remove(&(link, correlation));
                if excused && frame.header.is_error() {
                    said.push(one(&reply(&AckUpToReply {}, correlation)));
                    continue;
                }
                self.answer(link, &frame);
                said.push(frame);
            } else if self.passes(tap, link, &frame, dice) {
                said.push(frame);
            }
        }
        said
    }

    fn answer(&mut self, link: u64, frame: &Frame) {
        if frame.header.is_error() {
            return;
        }
        match (self.planted, Api::from_u16(frame.header.api)) {
            (Planted::FencedByChurn, Some(Api::JoinGroup)) => {
                let _reply: JoinGroupReply = frame.clone().message().expect("the broker answers");
                let other = self.members.iter().find(|(of, _)| **of != link);
                if let Some((&other, &handle)) = other {
                    let error = ErrorBody::new(ErrorCode::TimedOut, "a planted lie");
                    let fenced = one(&event(&GroupFenced { handle, error }));
                    self.events.entry(other).or_default().push(fenced);
                }
            }
            (Planted::DeliveredAfterSeek, Some(Api::Seek)) => {
                for (of, frame) in std::mem::take(&mut self.delivered).into_values() {
                    self.events.entry(of).or_default().push(frame);
                }
            }
            _ => {}
        }
    }

    /// Whether an event reaches the client.
    fn passes(
        &mut self,
        tap: &mut GroupTap,
        link: u64,
        frame: &Frame,
        dice: &mut SimRandom,
    ) -> bool {
        let Some(api) = Api::from_u16(frame.header.api) else { return true };
        match api {
            Api::GroupAssigned => {
                let assigned: GroupAssigned = frame.clone().message().expect("it says what it may");
                self.members.insert(link, assigned.handle);
                let place = (link, assigned.handle, assigned.partition.partition.0);
                self.forgotten.remove(&place);
                if self.planted == Planted::PartitionForgotten && dice.one_in(4) {
                    self.forgotten.insert(place);
                    return false;
                }
            }
            Api::GroupRevoked if self.planted == Planted::HandedOverUndrained => {
                let revoked: GroupRevoked = frame.clone().message().expect("it says what it may");
                let GroupRevoked { handle, partition, owner_epoch, drain_ms } = revoked;
                if drain_ms > 0 {
                    let released = GroupReleased { handle, partition, owner_epoch };
                    let released = one(&request(&released, tap.unasked()));
                    self.requests.entry(link).or_default().push(released);
                }
            }
            Api::Deliver => {
                let deliver: Deliver = frame.clone().message().expect("it says what it may");
                let (handle, partition) = (deliver.head.handle, deliver.head.partition);
                self.delivered.insert(partition.0, (link, frame.clone()));
                if self.planted == Planted::PositionDelivered && dice.one_in(RARITY) {
                    let owner_epoch = deliver.head.owner_epoch;
                    let up_to = postrider_protocol::types::Offset(end_of(&deliver));
                    let ack = AckUpTo { handle, partition, owner_epoch, up_to };
                    let ack = one(&request(&ack, tap.unasked()));
                    self.requests.entry(link).or_default().push(ack);
                }
                return !self.forgotten.contains(&(link, handle, partition.0));
            }
            _ => {}
        }
        true
    }
}
