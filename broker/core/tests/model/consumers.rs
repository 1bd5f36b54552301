//! Owns the durable subscriptions of a history, and a naive fold of what the log says of them.

use std::collections::BTreeMap;

use postrider_core::partition::{
    AckUpTo, Decision, Effect, OwnerChange, Settlement, StateCommand, StateCommitted,
    SubscribeStart, SubscriptionMode,
};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::types::{Offset, SubscriptionId};

use crate::world::{Route, World};

#[derive(Clone, Copy, Debug)]
enum Request {
    Subscribe(SubscriptionId),
    Own(SubscriptionId),
    Ack(AckUpTo),
    Seek(SubscriptionId, Offset),
    Unsubscribe(SubscriptionId),
}

#[derive(Clone, Copy, Default)]
struct Consumer {
    /// Owner epochs that it once had, the newest last.
    epoch: u64,
    stale: u64,
    /// Confirmed and not sought away: no owner may begin below.
    floor: Offset,
}

#[derive(Default)]
pub(crate) struct Consumers {
    requests: u64,
    open: BTreeMap<u64, Request>,
    consumers: BTreeMap<SubscriptionId, Consumer>,
    ids: u8,
}

impl Consumers {
    pub(crate) fn step(world: &mut World) {
        let kind = world.random.below(100);
        let consumers = world.consumers();
        if consumers.consumers.len() < 3 && (kind < 5 || consumers.consumers.is_empty()) {
            consumers.ids = consumers.ids.wrapping_add(1);
            let id = SubscriptionId([consumers.ids; 16]);
            consumers.consumers.insert(id, Consumer::default());
            return Self::ask(world, Request::Subscribe(id));
        }
        let ids: Vec<SubscriptionId> = world.consumers().consumers.keys().copied().collect();
        let id = ids[world.random.index(ids.len())];
        let consumer = world.consumers().consumers[&id];
        match kind {
            0..10 => Self::ask(world, Request::Own(id)),
            10..14 => {
                let end = world.partition.high_watermark().offset.0;
                let to = Offset(world.random.below(end + 2));
                Self::ask(world, Request::Seek(id, to));
            }
            14..15 => {
                Self::ask(world, Request::Unsubscribe(id));
                world.consumers().consumers.remove(&id);
            }
            15..20 => Self::ask(world, Request::Subscribe(id)),
            _ => {
                let owner_epoch =
                    if world.random.one_in(8) { consumer.stale } else { consumer.epoch };
                let end = world.partition.high_watermark().offset.0;
                let up_to =
                    Offset(world.random.below(end + 1) + u64::from(world.random.one_in(30)));
                Self::ask(world, Request::Ack(AckUpTo { subscription: id, owner_epoch, up_to }));
            }
        }
    }

    fn ask(world: &mut World, request: Request) {
        let number = world.consumers().requests;
        world.consumers().requests += 1;
        world.consumers().open.insert(number, request);
        let route = Route::Request(number);
        let now = world.now;
        let mut effects = Vec::new();
        let start = if world.random.one_in(2) {
            SubscribeStart::Latest
        } else {
            SubscribeStart::Offset(Offset(world.random.below(world.log.end().offset.0 + 2)))
        };
        let partition = &mut world.partition;
        let decision = match request {
            Request::Subscribe(id) => {
                let mode = SubscriptionMode::Stream;
                partition.subscribe(now, id, start, mode, route, &mut effects)
            }
            Request::Own(id) => partition.set_owner(now, id, route, &mut effects),
            Request::Ack(ack) => partition.ack_up_to(now, ack, route, &mut effects),
            Request::Seek(id, to) => partition.seek(now, id, to, route, &mut effects),
            Request::Unsubscribe(id) => partition.unsubscribe(now, id, route, &mut effects),
        };
        match decision {
            Decision::Append(pending) => {
                assert!(effects.is_empty());
                world.append(pending, None, &mut effects);
            }
            Decision::Done => assert_eq!(effects.len(), 1, "one answer"),
            Decision::Waits => assert!(matches!(request, Request::Ack(_)) && effects.is_empty()),
        }
        world.effects.append(&mut effects);
        world.carry_out(false);
    }

    pub(crate) fn carry_out(world: &mut World, effect: Effect<Route>) {
        match effect {
            Effect::Committed { route: Route::Request(number), subscription, what } => {
                Self::committed(world, number, subscription, what);
            }
            Effect::Refused { route: Route::Request(number), error } => {
                let request = world.consumers().open.remove(&number).expect("answered once");
                if error.code == ErrorCode::StaleOwnerEpoch {
                    world.counts.hit("stale owner");
                }
                if error.code == ErrorCode::OffsetOutOfRange {
                    assert!(matches!(
                        request,
                        Request::Ack(_) | Request::Seek(..) | Request::Subscribe(_)
                    ));
                }
            }
            Effect::OwnerChanged { subscription, change, owner_epoch, next } => {
                let Some(consumer) = world.consumers().consumers.get_mut(&subscription) else {
                    return;
                };
                if change == OwnerChange::Deleted {
                    return;
                }
                assert!(owner_epoch > consumer.epoch, "owner epochs rise");
                consumer.stale = consumer.epoch;
                consumer.epoch = owner_epoch;
                if change == OwnerChange::Sought {
                    consumer.floor = next;
                    world.counts.hit("seek");
                }
            }
            other => panic!("{other:?} has a route that nobody gave"),
        }
    }

    fn committed(
        world: &mut World,
        number: u64,
        subscription: SubscriptionId,
        what: StateCommitted,
    ) {
        let request = world.consumers().open.remove(&number).expect("answered once");
        let ready = world.log.position(world.log.ready).offset;
        let waiting = |world: &mut World, entry: Request| {
            world
                .consumers()
                .open
                .values()
                .any(|other| matches!((other, entry), (Request::Ack(_), Request::Ack(_))))
        };
        let consumer = world.consumers().consumers.get(&subscription).copied().unwrap_or_default();
        let mut floor = consumer.floor;
        match (request, what) {
            (Request::Ack(ack), StateCommitted::Acked { acked }) => {
                assert!(
                    ack.up_to <= acked && ack.up_to <= ready,
                    "what is acknowledged was delivered"
                );
                if ack.owner_epoch == consumer.epoch {
                    floor = floor.max(ack.up_to);
                }
                if waiting(world, request) {
                    world.counts.hit("acknowledged in one entry with others");
                }
            }
            (Request::Own(_), StateCommitted::Owned { owner_epoch, acked }) => {
                assert!(acked >= floor, "an owner begins at {acked}, {floor} was acknowledged");
                assert!(owner_epoch <= consumer.epoch || consumer.epoch == 0);
            }
            (Request::Seek(_, to), StateCommitted::Sought { next, .. }) => assert_eq!(to, next),
            (Request::Subscribe(_), StateCommitted::Subscribed { .. })
            | (Request::Unsubscribe(_), StateCommitted::Unsubscribed) => {}
            (request, what) => panic!("{request:?} is answered {what:?}"),
        }
        if let Some(consumer) = world.consumers().consumers.get_mut(&subscription) {
            consumer.floor = floor;
        }
    }

    /// Seeks that were not confirmed may survive, and may undo what was.
    pub(crate) fn before_crash(world: &mut World, kept: usize) {
        let seeks: Vec<SubscriptionId> = world.log.entries[world.log.ready..kept]
            .iter()
            .filter_map(|entry| match StateCommand::decode(entry.header.kind, &entry.body) {
                Ok(Some(StateCommand::Seek { subscription, .. })) => Some(subscription),
                _ => None,
            })
            .collect();
        for subscription in seeks {
            if let Some(consumer) = world.consumers().consumers.get_mut(&subscription) {
                consumer.floor = Offset(0);
            }
        }
    }

    pub(crate) fn after_crash(world: &mut World) {
        world.consumers().open.clear();
        Self::check_naive(world);
        let ids: Vec<SubscriptionId> = world.consumers().consumers.keys().copied().collect();
        for id in &ids {
            let state = world.partition.state().subscriptions().get(*id);
            let consumer = world.consumers().consumers.get_mut(id).unwrap();
            if let Some(state) = state {
                assert!(state.acked >= consumer.floor, "a confirmed ack survives");
                consumer.stale = consumer.epoch;
                consumer.epoch = state.owner_epoch;
            }
        }
        world.partition.require_subscriptions(ids);
        while let Some(id) = world.partition.required().first().copied() {
            Self::ask(world, Request::Subscribe(id));
        }
    }

    pub(crate) fn settle(world: &mut World) {
        let ids: Vec<SubscriptionId> = world.consumers().consumers.keys().copied().collect();
        for id in ids {
            Self::ask(world, Request::Own(id));
        }
    }

    pub(crate) fn check_answered(world: &mut World) {
        let open = &world.consumers().open;
        assert!(open.is_empty(), "every request is answered: {open:?}");
    }

    pub(crate) fn check_settled(world: &mut World) {
        Self::check_answered(world);
        Self::check_naive(world);
    }

    /// Folds the log again, by the rules as one would say them.
    fn check_naive(world: &World) {
        let mut naive: BTreeMap<SubscriptionId, (Offset, u64)> = BTreeMap::new();
        for entry in &world.log.entries[..world.log.ready] {
            let Ok(Some(command)) = StateCommand::decode(entry.header.kind, &entry.body) else {
                continue;
            };
            match command {
                StateCommand::Subscribe { subscription, start, .. } => {
                    let position = match start {
                        SubscribeStart::Latest => entry.header.base_offset,
                        SubscribeStart::Offset(offset) => offset,
                    };
                    naive.entry(subscription).or_insert((position, 0));
                }
                StateCommand::Unsubscribe { subscription } => {
                    naive.remove(&subscription);
                }
                StateCommand::SetOwner { subscription, owner_epoch } => {
                    let (_, epoch) =
                        naive.get_mut(&subscription).expect("only what exists is owned");
                    assert!(*epoch < owner_epoch);
                    *epoch = owner_epoch;
                }
                StateCommand::Seek { subscription, owner_epoch, to } => {
                    let (position, epoch) = naive.get_mut(&subscription).expect("it exists");
                    assert!(*epoch < owner_epoch);
                    (*position, *epoch) = (to, owner_epoch);
                }
                StateCommand::Settle(settled) => {
                    for settlement in settled {
                        let Settlement::UpTo(one) = settlement else { panic!("no queue is here") };
                        let (position, epoch) =
                            naive.get_mut(&one.subscription).expect("it exists");
                        assert_eq!(*epoch, one.owner_epoch, "only the owner's acks are stored");
                        assert!(one.up_to <= entry.header.base_offset);
                        *position = (*position).max(one.up_to);
                    }
                }
                StateCommand::Return(_)
                | StateCommand::DeadIntent(_)
                | StateCommand::DeadDone(_) => {
                    panic!("no queue is here");
                }
                StateCommand::ProducerFence { .. }
                | StateCommand::ProducerExpire(_)
                | StateCommand::DelayCancel { .. }
                | StateCommand::EpochStart { .. } => {}
            }
        }
        let live: BTreeMap<SubscriptionId, (Offset, u64)> = world
            .partition
            .state()
            .subscriptions()
            .iter()
            .map(|(id, state)| (id, (state.acked, state.owner_epoch)))
            .collect();
        assert_eq!(naive, live);
    }
}
