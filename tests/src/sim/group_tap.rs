//! Owns what passes between the broker and the members of a consumer group, seen at the broker's end of each
//! connection: which request an answer is for, who is a member. Lets late acks come twice, as a network or a
//! client that was thought dead may; changes nothing else. Driven by the server; reports to the oracle of groups.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use postrider_core::Now;
use postrider_protocol::api::Api;
use postrider_protocol::entry::EntryIter;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, request};
use postrider_protocol::message::{
    AckUpTo, Deliver, Gap, GroupAssigned, GroupFenced, GroupHeartbeat, GroupReleased, GroupRevoked,
    JoinGroup, JoinGroupReply, LeaveGroup, Message, Seek, Seeked, Start,
};
use postrider_protocol::types::{CorrelationId, SubscriptionHandle};

use super::group_oracle::{AckAsked, GroupOracle, Seat, Told};
use super::queue_tamper::one;

/// The group of a run is that of the first topic.
pub(crate) const GROUP: &str = "members";
/// One in so many acks comes a second time.
const ECHO_EVERY: u64 = 5;
/// When it does.
const ECHO_AFTER: Duration = Duration::from_millis(400);
/// Correlations from here on are of echoes and of planted requests: no client chose them.
const UNASKED: u64 = 1 << 63;

enum Asked {
    Join(JoinGroup),
    Ack(AckAsked),
    Seek(u64),
}

/// A membership.
struct Member {
    instance: Option<String>,
    number: u64,
    session_timeout: Duration,
    beat: Duration,
    /// It leaves, or another takes its place, as soon as the broker hears of it.
    is_over: bool,
}

/// See the module.
pub(crate) struct GroupTap {
    partitions: u32,
    asked: BTreeMap<(u64, CorrelationId), Asked>,
    members: BTreeMap<Seat, Member>,
    /// When connections last took all that there was to say.
    listened: BTreeMap<u64, Duration>,
    /// Acks to be heard once more. Bound: those of `ECHO_AFTER`.
    echoes: VecDeque<(Duration, u64, AckUpTo)>,
    acks: u64,
    seeks: u64,
    unasked: u64,
    pub(crate) oracle: GroupOracle,
}

impl GroupTap {
    pub(crate) fn new(partitions: u32) -> Self {
        Self {
            partitions,
            asked: BTreeMap::new(),
            members: BTreeMap::new(),
            listened: BTreeMap::new(),
            echoes: VecDeque::new(),
            acks: 0,
            seeks: 0,
            unasked: UNASKED,
            oracle: GroupOracle::default(),
        }
    }

    /// A correlation that no client has.
    pub(crate) fn unasked(&mut self) -> CorrelationId {
        self.unasked += 1;
        CorrelationId(self.unasked)
    }

    /// Whether the client waits for no such answer.
    pub(crate) fn is_unasked(frame: &Frame) -> bool {
        frame.header.is_reply() && frame.header.correlation.0 >= UNASKED
    }

    /// The broker is a new process.
    pub(crate) fn restarted(&mut self, now: Duration) {
        self.asked.clear();
        self.members.clear();
        self.listened.clear();
        self.echoes.clear();
        self.oracle.restarted(now);
    }

    /// The broker missed a connection.
    pub(crate) fn disconnected(&mut self, now: Now, link: u64) {
        self.asked.retain(|(of, _), asked| {
            if let (true, Asked::Seek(seek)) = (*of == link, &*asked) {
                self.oracle.seek_ended(now.monotonic, *seek);
            }
            *of != link
        });
        self.echoes.retain(|(_, of, _)| *of != link);
        self.listened.remove(&link);
        let seats: Vec<Seat> = self.members.keys().copied().filter(|seat| seat.0 == link).collect();
        seats.into_iter().for_each(|seat| self.end(seat));
    }

    /// A connection has taken all that there is to say.
    pub(crate) fn listens(&mut self, now: Now, link: u64) {
        self.listened.insert(link, now.monotonic);
    }

    fn end(&mut self, seat: Seat) {
        self.members.remove(&seat);
        self.oracle.left(seat);
    }

    /// What comes once more before the broker gets the next frame of a connection.
    pub(crate) fn echoes(&mut self, now: Now, link: u64) -> Vec<Frame> {
        let mut due = Vec::new();
        for at in (0..self.echoes.len()).rev() {
            let (when, of, _) = &self.echoes[at];
            if *of == link && *when <= now.monotonic {
                due.extend(self.echoes.remove(at).map(|(_, _, ack)| ack));
            }
        }
        due.iter().map(|ack| one(&request(ack, self.unasked()))).collect()
    }

    /// The broker gets a frame.
    pub(crate) fn received(&mut self, now: Now, link: u64, frame: &Frame) {
        let correlation = frame.header.correlation;
        let Some(api) = Api::from_u16(frame.header.api) else { return };
        let asked = match api {
            Api::JoinGroup => {
                let join: JoinGroup = said(frame);
                self.replaces(&join);
                Asked::Join(join)
            }
            Api::GroupHeartbeat => {
                let GroupHeartbeat { handle } = said(frame);
                // Who was taken for dead may be told so behind a beat that comes late.
                let member = self.members.get_mut(&(link, handle.0));
                if let Some(member) = member.filter(|member| member.lives(now)) {
                    member.beat = now.monotonic;
                }
                return;
            }
            Api::LeaveGroup => {
                let LeaveGroup { handle, .. } = said(frame);
                return self.end((link, handle.0));
            }
            Api::GroupReleased => {
                let GroupReleased { handle, partition, owner_epoch } = said(frame);
                return self.oracle.released((link, handle.0), partition.0, owner_epoch);
            }
            Api::AckUpTo => {
                let ack: AckUpTo = said(frame);
                self.acks += 1;
                if self.acks.is_multiple_of(ECHO_EVERY) && correlation.0 < UNASKED {
                    self.echoes.push_back((now.monotonic + ECHO_AFTER, link, ack.clone()));
                }
                let (seat, at) =
                    ((link, ack.handle.0), (ack.partition.0, ack.owner_epoch, ack.up_to.0));
                let lives = self.members.get(&seat).is_some_and(|member| member.lives(now));
                Asked::Ack(self.oracle.ack_asked(now.monotonic, seat, lives, at))
            }
            Api::Seek => {
                let Seek { to, .. } = said(frame);
                let Start::Offset(to) = to else { panic!("a run seeks offsets, not {to:?}") };
                self.seeks += 1;
                self.oracle.seek_asked(self.partitions, self.seeks, to.0);
                Asked::Seek(self.seeks)
            }
            _ => return,
        };
        self.asked.insert((link, correlation), asked);
    }

    /// Whose place a member takes has it no longer.
    fn replaces(&mut self, join: &JoinGroup) {
        for member in self.members.values_mut() {
            member.is_over |= join.resumes == Some(member.number)
                || (join.instance.is_some() && join.instance == member.instance);
        }
    }

    /// The broker sends a frame.
    pub(crate) fn sent(&mut self, now: Now, link: u64, frame: &Frame) {
        let Some(api) = Api::from_u16(frame.header.api) else { return };
        let waits_since = self.listened.get(&link).copied().unwrap_or(now.monotonic);
        let told = Told { at: now.monotonic, waits_since };
        if frame.header.is_reply() {
            if let Some(asked) = self.asked.remove(&(link, frame.header.correlation)) {
                self.answered(told, link, asked, frame);
            }
            return;
        }
        let seat = |handle: SubscriptionHandle| (link, handle.0);
        match api {
            Api::GroupAssigned => {
                let GroupAssigned { handle, partition: at } = said(frame);
                let place = (at.owner_epoch, at.next.0, at.high_watermark.0);
                self.oracle.assigned(told, seat(handle), at.partition.0, place);
            }
            Api::GroupRevoked => {
                let GroupRevoked { handle, partition, drain_ms, .. } = said(frame);
                let drain = Duration::from_millis(drain_ms.into());
                self.oracle.revoked(told, seat(handle), partition.0, drain);
            }
            Api::GroupFenced => {
                let GroupFenced { handle, error } = said(frame);
                self.fenced(now, seat(handle), &error);
            }
            Api::Seeked => {
                let Seeked { handle, partition, owner_epoch, next } = said(frame);
                if self.members.contains_key(&seat(handle)) {
                    let to = (owner_epoch, next.0);
                    self.oracle.seeked(told, seat(handle), partition.0, to);
                }
            }
            Api::Deliver => {
                let deliver: Deliver = said(frame);
                let head = &deliver.head;
                if self.members.contains_key(&seat(head.handle)) {
                    let (partition, epoch) = (head.partition.0, head.owner_epoch);
                    let range = (head.next.0, end_of(&deliver));
                    self.oracle.delivered(seat(head.handle), partition, epoch, range);
                }
            }
            Api::Gap => {
                let gap: Gap = said(frame);
                if self.members.contains_key(&seat(gap.handle)) {
                    self.oracle.violate(format!("C1: nothing is removed, and {gap:?}"));
                }
            }
            _ => {}
        }
    }

    fn fenced(&mut self, now: Now, seat: Seat, error: &ErrorBody) {
        let in_time = self.members.get(&seat).is_some_and(|member| member.lives(now));
        self.oracle.figures.fenced += 1;
        if in_time {
            self.oracle.violate(format!("D4: {seat:?} lives, and is told {error:?}"));
        }
        self.end(seat);
    }

    fn answered(&mut self, told: Told, link: u64, asked: Asked, frame: &Frame) {
        let error = frame.header.is_error();
        match asked {
            Asked::Join(_) if error => {}
            Asked::Join(join) => {
                let reply: JoinGroupReply = said(frame);
                let member = Member {
                    instance: join.instance,
                    number: reply.member,
                    session_timeout: Duration::from_millis(reply.session_timeout_ms.into()),
                    beat: told.waits_since,
                    is_over: false,
                };
                self.members.insert((link, join.handle.0), member);
            }
            Asked::Ack(ack) if error => {
                let why = ErrorBody::decode(&frame.body).expect("the broker says why");
                if why.code == ErrorCode::StaleOwnerEpoch {
                    self.oracle.ack_stale(ack);
                }
            }
            Asked::Ack(ack) => self.oracle.ack_taken(ack),
            Asked::Seek(seek) if error => self.oracle.seek_ended(told.at, seek),
            Asked::Seek(seek) => self.oracle.seek_confirmed(told.at, seek),
        }
    }
}

impl Member {
    /// Whether it is a member without a doubt: none of its beats came late.
    fn lives(&self, now: Now) -> bool {
        !self.is_over && self.beat + self.session_timeout > now.monotonic
    }
}

fn said<M: Message>(frame: &Frame) -> M {
    frame.clone().message().expect("both sides say what they may")
}

/// One past the last offset of a delivery.
pub(crate) fn end_of(deliver: &Deliver) -> u64 {
    let entries = EntryIter::new(deliver.entries.clone()).map_while(Result::ok);
    entries.last().map_or(deliver.head.next.0, |entry| entry.header.end_offset().0)
}
