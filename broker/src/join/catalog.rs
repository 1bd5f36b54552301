//! Owns the metadata of this broker: the image of what is committed, the image of what is appended, and the
//! topics made from the former. Never decides (core's image does), never orders commands (`metadata_log`
//! does). Driven by sessions (`ask`, `read`) and by the log of commands, which notifies of what is committed.
//!
//! A command is checked against everything appended before it, appended, and applied when it is committed;
//! only then is anybody told. Lock order: catalog -> topic -> outbox; no partition is locked from here.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use postrider_core::Now;
use postrider_core::limits::PRODUCER_ID_BLOCK;
use postrider_core::metadata::{Applied, Command, Image};
use postrider_core::partition::Refusal;
use postrider_protocol::api::Api;
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame;
use postrider_protocol::message::OpenProducerReply;
use postrider_protocol::types::{
    CorrelationId, EntryIndex, ProducerEpoch, ProducerId, SubscriptionId, TopicId,
};
use postrider_storage::Store;

use crate::join::combining::CombiningLock;
use crate::join::hub::Hub;
use crate::join::metadata_log::{MetadataEvent, MetadataLog};
use crate::join::outbox::{Outbox, WakeList};
use crate::join::random::Random;
use crate::join::session::SessionTask;
use crate::join::topic::{FoundLogs, TopicHandle};

/// Commands since the last snapshot of the image that call for the next one.
const SNAPSHOT_AFTER_COMMANDS: u64 = 1_024;

/// See the module.
pub(crate) struct Catalog {
    hub: Arc<Hub>,
    store: Store,
    found: FoundLogs,
    log: Box<dyn MetadataLog>,
    state: CombiningLock<State>,
}

/// What the lock protects.
struct State {
    /// Everything committed.
    committed: Image,
    /// While this broker orders the commands.
    leading: Option<Leading>,
    /// In the order of the log. Bound: `requests_max` of every session.
    pending: VecDeque<Pending>,
    topics: BTreeMap<TopicId, Arc<TopicHandle>>,
    random: Random,
    ids: ProducerIds,
    snapshot_end: EntryIndex,
    failed: bool,
}

/// The producer ids that this broker may hand out.
struct ProducerIds {
    left: Range<i64>,
    /// A grant is appended and not durable.
    asked: bool,
    /// Who waits for it. Bound: `requests_max` of every session.
    waiting: VecDeque<(Arc<Outbox>, CorrelationId)>,
}

/// What the one who orders commands has beside what is committed.
struct Leading {
    /// Goes with each command: the log refuses it if the leadership is another one by then.
    term: u64,
    /// Everything appended. Its indexes are guesses, and so is its chain: other entries may come between.
    tail: Image,
}

/// Something that happens once everything appended before is committed.
struct Pending {
    /// With the next command of this term, or once what stands before has happened.
    with_command: bool,
    then: Then,
}

/// Who is told, and what.
pub(crate) enum Then {
    /// Nobody.
    Nothing,
    /// A session gets this reply; `api` and `correlation` serve an error in its place.
    Reply { outbox: Arc<Outbox>, api: Api, correlation: CorrelationId, frame: Bytes },
    /// A session goes on attaching a reader.
    Subscribe { outbox: Arc<Outbox>, reader: u64 },
    /// A session removes a subscription from the partitions, then replies.
    Unsubscribe {
        outbox: Arc<Outbox>,
        correlation: CorrelationId,
        topic: Arc<TopicHandle>,
        subscription: SubscriptionId,
    },
}

/// What a request may look at and append to.
pub(crate) struct Desk<'a> {
    /// What is durable.
    pub(crate) committed: &'a Image,
    /// What is appended.
    pub(crate) tail: &'a Image,
    topics: &'a BTreeMap<TopicId, Arc<TopicHandle>>,
    random: &'a mut Random,
}

impl Desk<'_> {
    /// A topic that exists, durably.
    pub(crate) fn topic(&self, name: &str) -> Result<Arc<TopicHandle>, ErrorBody> {
        let id = self.committed.topic_named(name).map(|topic| topic.id);
        id.and_then(|id| self.topics.get(&id)).cloned().ok_or_else(|| unknown_topic(name))
    }

    pub(crate) fn uuid(&mut self) -> [u8; 16] {
        self.random.uuid()
    }
}

/// Refuses a name, with the way out.
pub(crate) fn unknown_topic(name: &str) -> ErrorBody {
    let shown: String = name.chars().take(200).collect();
    let text = format!(
        "there is no topic {shown}; create it with: postrider topic create {shown} --partitions 1"
    );
    ErrorBody::new(ErrorCode::UnknownTopic, text)
}

/// What a request about metadata leads to.
pub(crate) enum Ask {
    /// Append this command.
    Submit(Box<Command>, Then),
    /// Nothing to append, but wait until what is appended is durable.
    Wait(Then),
}

impl Catalog {
    pub(crate) fn new(
        hub: Arc<Hub>,
        store: Store,
        found: FoundLogs,
        log: Box<dyn MetadataLog>,
        image: Image,
        random: Random,
    ) -> Self {
        let handle =
            |topic| TopicHandle::new(topic, Arc::clone(&found), store.clone(), Arc::clone(&hub));
        let topics =
            image.topics().values().map(|topic| (topic.id, Arc::new(handle(topic)))).collect();
        let ids_end = image.producer_ids_end();
        hub.set_producer_ids_end(ids_end);
        let granted = i64::from(PRODUCER_ID_BLOCK).min(ids_end.0);
        let ids = ProducerIds {
            // The broker's start was made durable with a grant.
            left: ids_end.0 - granted..ids_end.0,
            asked: false,
            waiting: VecDeque::new(),
        };
        let state = State {
            committed: image,
            leading: None,
            pending: VecDeque::new(),
            topics,
            random,
            ids,
            snapshot_end: log.snapshot_end(),
            failed: false,
        };
        Self { hub, store, found, log, state: CombiningLock::new(state) }
    }

    /// Looks at metadata, and appends what `ask` says.
    ///
    /// # Errors
    /// The request is refused: nothing was appended.
    pub(crate) fn ask(
        &self,
        now: Now,
        ask: impl FnOnce(&mut Desk<'_>) -> Result<Ask, ErrorBody>,
    ) -> Result<(), ErrorBody> {
        self.with(|state| match ask(&mut state.desk())? {
            Ask::Submit(command, then) => self.submit(state, now, *command, then),
            Ask::Wait(then) => {
                if state.failed {
                    return Err(Refusal::Failed.error());
                }
                state.pending.push_back(Pending { with_command: false, then });
                Ok(())
            }
        })
    }

    /// Completes what waited for something that is durable already: no round of the disk would.
    pub(crate) fn notify_waiting(&self) {
        let mut wakes = WakeList::default();
        self.state.notify(&mut wakes, |state, wakes| self.advance(state, wakes));
        wakes.wake();
    }

    /// Looks at metadata.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&mut Desk<'_>) -> R) -> R {
        self.with(|state| look(&mut state.desk()))
    }

    /// A topic that exists, durably.
    pub(crate) fn topic(&self, name: &str) -> Result<Arc<TopicHandle>, ErrorBody> {
        self.read(|desk| desk.topic(name))
    }

    pub(crate) fn topic_by_id(&self, id: TopicId) -> Option<Arc<TopicHandle>> {
        self.with(|state| state.topics.get(&id).cloned())
    }

    /// Every topic.
    pub(crate) fn topics(&self) -> Vec<Arc<TopicHandle>> {
        self.with(|state| state.topics.values().cloned().collect())
    }

    /// Hands out a producer id, at once or when a block of them is granted.
    pub(crate) fn open_producer(
        &self,
        now: Now,
        outbox: &Arc<Outbox>,
        correlation: CorrelationId,
    ) -> Result<(), ErrorBody> {
        self.with(|state| {
            if let Some(id) = state.ids.left.next() {
                reply_producer(id, outbox, correlation);
                return Ok(());
            }
            if !state.ids.asked {
                self.grant_ids(state, now)?;
            }
            state.ids.waiting.push_back((Arc::clone(outbox), correlation));
            Ok(())
        })
    }

    /// Writes a snapshot of the image if it has changed enough.
    pub(crate) fn check_snapshot(&self) {
        self.with(|state| {
            let end = state.committed.end();
            if end.0.saturating_sub(state.snapshot_end.0) >= SNAPSHOT_AFTER_COMMANDS
                && self.log.write_snapshot(end, state.committed.encode_snapshot())
            {
                state.snapshot_end = end;
            }
        });
    }

    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut wakes = WakeList::default();
        let result = self.state.with(
            &mut wakes,
            |state, _wakes| work(state),
            |state, wakes| self.advance(state, wakes),
        );
        wakes.wake();
        result
    }

    /// The log has something new, or the store failed. Never blocks.
    pub(crate) fn notify(&self) {
        let mut round = self.hub.round();
        self.state.notify(&mut *round, |state, wakes| self.advance(state, wakes));
    }

    fn submit(
        &self,
        state: &mut State,
        now: Now,
        command: Command,
        then: Then,
    ) -> Result<(), ErrorBody> {
        let Some(Leading { term, tail }) = &mut state.leading else {
            return Err(ErrorBody::new(ErrorCode::Overloaded, "the metadata is not ready yet"));
        };
        tail.check(&command)?;
        self.log.append(now, *term, &command)?;
        let applied = tail.apply(tail.end(), &command);
        assert!(applied.is_ok(), "a command was checked and could not be applied: {applied:?}");
        state.pending.push_back(Pending { with_command: true, then });
        Ok(())
    }

    /// Applies what is committed, and tells who asked for it.
    fn advance(&self, state: &mut State, wakes: &mut WakeList) {
        if self.hub.has_failed() {
            state.fail(wakes);
            return;
        }
        state.finish_waiting(wakes);
        while let Some(event) = self.log.take() {
            match event {
                MetadataEvent::Leading { term } => {
                    state.lose(wakes);
                    state.leading = Some(Leading { term, tail: state.committed.clone() });
                }
                MetadataEvent::Applied { index, term, command } => {
                    self.apply(state, (index, term), &command, wakes);
                }
            }
            state.finish_waiting(wakes);
        }
        self.ask_ids(state, wakes);
    }

    fn apply(
        &self,
        state: &mut State,
        (index, term): (EntryIndex, u64),
        command: &Command,
        wakes: &mut WakeList,
    ) {
        let applied = state.committed.apply(index, command);
        let applied = applied.expect("whoever appended it had checked it against all before");
        self.carry_out(state, applied, wakes);
        if state.leading.as_ref().is_some_and(|leading| leading.term == term) {
            let own = state.pending.pop_front().filter(|pending| pending.with_command);
            own.expect("who leads a term appends all its commands").then.succeed(wakes);
        }
    }

    /// More sessions wait for a producer id than the last grant held: asks for the next one.
    fn ask_ids(&self, state: &mut State, wakes: &mut WakeList) {
        if state.ids.waiting.is_empty() || state.ids.asked {
            return;
        }
        if let Err(error) = self.grant_ids(state, self.hub.now()) {
            state.ids.refuse(&error, wakes);
        }
    }

    fn grant_ids(&self, state: &mut State, now: Now) -> Result<(), ErrorBody> {
        let first = state.desk().tail.producer_ids_end();
        let node = self.hub.identity.node;
        let command = Command::GrantProducerIds { node, first, count: PRODUCER_ID_BLOCK };
        self.submit(state, now, command, Then::Nothing)?;
        state.ids.asked = true;
        Ok(())
    }

    /// What follows from a change of the image.
    fn carry_out(&self, state: &mut State, applied: Applied, wakes: &mut WakeList) {
        match applied {
            Applied::TopicCreated(id) => {
                let topic = state.committed.topic(id).expect("it was just created");
                let (found, store) = (Arc::clone(&self.found), self.store.clone());
                let handle = TopicHandle::new(topic, found, store, Arc::clone(&self.hub));
                state.topics.insert(id, Arc::new(handle));
            }
            Applied::TopicAltered { id, old_partitions: _ } => {
                if let (Some(handle), Some(topic)) =
                    (state.topics.get(&id), state.committed.topic(id))
                {
                    handle.set_config(topic.config.clone());
                }
            }
            Applied::TopicDeleted(topic) => {
                if let Some(handle) = state.topics.remove(&topic.id) {
                    handle.delete();
                }
            }
            Applied::SubscriptionCreated { topic, id } | Applied::QueueAltered { topic, id } => {
                tell_subscription(state, topic, id);
            }
            Applied::SubscriptionDeleted { topic, id } => forget_subscription(state, topic, id),
            Applied::PatternCreated(given) => {
                given.into_iter().for_each(|(topic, id)| tell_subscription(state, topic, id));
            }
            Applied::PatternDeleted(taken) => {
                taken.into_iter().for_each(|(topic, id)| forget_subscription(state, topic, id));
            }
            Applied::ProducerIdsGranted { node, first, count } => {
                self.hub.set_producer_ids_end(state.committed.producer_ids_end());
                if node == self.hub.identity.node {
                    state.ids.granted(first, count, wakes);
                }
            }
            Applied::ClusterInitialised
            | Applied::BrokerRegistered(_)
            | Applied::FeatureLevelSet => {}
        }
    }
}

impl State {
    fn desk(&mut self) -> Desk<'_> {
        let Self { committed, leading, topics, random, .. } = self;
        let tail = leading.as_ref().map_or(&*committed, |leading| &leading.tail);
        Desk { committed, tail, topics, random }
    }

    /// Tells those that wait for no command of their own, up to the first one that does.
    fn finish_waiting(&mut self, wakes: &mut WakeList) {
        while self.pending.front().is_some_and(|pending| !pending.with_command) {
            let Some(pending) = self.pending.pop_front() else { break };
            pending.then.succeed(wakes);
        }
    }

    /// Somebody else orders commands now, or nobody does: what became of those that wait is not known.
    fn lose(&mut self, wakes: &mut WakeList) {
        if self.leading.take().is_none() {
            return;
        }
        let error = ErrorBody::new(
            ErrorCode::Internal,
            "another broker took over the metadata; whether the request was carried out is not known: ask again",
        );
        for pending in std::mem::take(&mut self.pending) {
            pending.then.fail(&error, wakes);
        }
        self.ids.refuse(&error, wakes);
    }

    /// Nothing that is not durable now will ever be known to be.
    fn fail(&mut self, wakes: &mut WakeList) {
        self.failed = true;
        let error = Refusal::Failed.error();
        for pending in std::mem::take(&mut self.pending) {
            pending.then.fail(&error, wakes);
        }
        self.ids.refuse(&error, wakes);
    }
}

impl ProducerIds {
    fn refuse(&mut self, error: &ErrorBody, wakes: &mut WakeList) {
        for (outbox, correlation) in std::mem::take(&mut self.waiting) {
            outbox.push_reply(frame::error_reply(Api::OpenProducer as u16, correlation, error));
            wakes.mark(&outbox);
        }
    }

    fn granted(&mut self, first: ProducerId, count: u32, wakes: &mut WakeList) {
        self.asked = false;
        self.left = first.0..first.0 + i64::from(count);
        while let Some((outbox, correlation)) = self.waiting.pop_front() {
            let Some(id) = self.left.next() else {
                self.waiting.push_front((outbox, correlation));
                return;
            };
            reply_producer(id, &outbox, correlation);
            wakes.mark(&outbox);
        }
    }
}

/// A topic has a subscription, or another policy of it.
fn tell_subscription(state: &State, topic: TopicId, id: SubscriptionId) {
    if let (Some(handle), Some(topic)) = (state.topics.get(&topic), state.committed.topic(topic))
        && let Some(subscription) = topic.subscriptions.get(&id)
    {
        handle.change_subscriptions(|known| {
            known.insert(id, subscription.clone());
        });
    }
}

fn forget_subscription(state: &State, topic: TopicId, id: SubscriptionId) {
    if let Some(handle) = state.topics.get(&topic) {
        handle.change_subscriptions(|known| {
            known.remove(&id);
        });
    }
}

fn reply_producer(id: i64, outbox: &Outbox, correlation: CorrelationId) {
    let reply = OpenProducerReply { producer: ProducerId(id), epoch: ProducerEpoch(0) };
    outbox.push_reply(frame::reply(&reply, correlation));
}

impl Then {
    fn succeed(self, wakes: &mut WakeList) {
        let outbox = match self {
            Self::Nothing => return,
            Self::Reply { outbox, frame, .. } => {
                outbox.push_reply(frame);
                outbox
            }
            Self::Subscribe { outbox, reader } => {
                outbox.push_task(SessionTask::Subscribed { reader, result: Ok(()) });
                outbox
            }
            Self::Unsubscribe { outbox, correlation, topic, subscription } => {
                let task = SessionTask::Unsubscribed { correlation, topic, subscription };
                outbox.push_task(task);
                outbox
            }
        };
        wakes.mark(&outbox);
    }

    fn fail(self, error: &ErrorBody, wakes: &mut WakeList) {
        let outbox = match self {
            Self::Nothing => return,
            Self::Reply { outbox, api, correlation, .. } => {
                outbox.push_reply(frame::error_reply(api as u16, correlation, error));
                outbox
            }
            Self::Subscribe { outbox, reader } => {
                outbox.push_task(SessionTask::Subscribed { reader, result: Err(error.clone()) });
                outbox
            }
            Self::Unsubscribe { outbox, correlation, .. } => {
                let api = Api::DeleteSubscription as u16;
                outbox.push_reply(frame::error_reply(api, correlation, error));
                outbox
            }
        };
        wakes.mark(&outbox);
    }
}
