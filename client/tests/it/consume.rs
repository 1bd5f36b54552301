//! The engine's consuming: leases, outcomes and their coalescing, credit, renewal, resuming, lost leases, leaving.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use postrider::core::{
    completion::{Pending, promise},
    consumer::{
        Attached, ConsumerOptions, Granted, Handed,
        desk::{Answer, Attention, SettleFailure},
    },
    link::LinkFault,
    producer::ProducerOptions,
};
use postrider_protocol::{
    error::{ErrorBody, ErrorCode},
    frame::event,
    message::{AckRun, QueuePolicy, ReturnAction, SettleProblem},
    types::{MemberId, Offset, SubscriptionHandle},
};

use crate::{
    queue_peer::State,
    world::{World, poll_now},
};

const WINDOW: (u32, u32) = (1000, 1 << 20);

/// A world whose partition 0 has this many batches of this many messages, for a queue.
fn filled(batches: u32, messages: u32) -> World {
    let mut world = World::new(1);
    world.peer.queue.policy = QueuePolicy { lease_ms: 3000, ..QueuePolicy::default() };
    world.peer.queue.leader_epoch = 1;
    let key = world.producer(ProducerOptions::default());
    for _ in 0..batches {
        for _ in 0..messages {
            world.enqueue(key, "value");
        }
        world.pump();
    }
    world
}

fn try_consume(
    world: &mut World,
    window: (u32, u32),
) -> (SubscriptionHandle, Pending<Result<Attached, ErrorBody>>) {
    let options = ConsumerOptions {
        topic: "t".into(),
        subscription: None,
        partitions: Vec::new(),
        member: MemberId([9; 16]),
        name: "worker".into(),
        prefetch_messages: window.0,
        prefetch_bytes: window.1,
    };
    let (attached, pending) = promise();
    let deadline = world.now + Duration::from_secs(30);
    let handle = world.engine.consume(options, deadline, attached);
    world.pump();
    (handle, pending)
}

fn consume(world: &mut World, window: (u32, u32)) -> SubscriptionHandle {
    let (handle, attached) = try_consume(world, window);
    attached.try_take().expect("answered").expect("attached");
    handle
}

fn poll(world: &mut World, handle: SubscriptionHandle) -> Poll<Option<Handed>> {
    world.engine.poll_handed(handle, &Context::from_waker(Waker::noop()))
}

fn granted(world: &mut World, handle: SubscriptionHandle) -> Granted {
    match poll(world, handle) {
        Poll::Ready(Some(Handed::Grant(granted))) => granted,
        other => panic!("{other:?}"),
    }
}

/// One message with its lease, as the public consumer has it.
struct Job {
    granted: Granted,
    offset: Offset,
    attempt: u32,
}

impl Job {
    fn ack(&self) -> Outcome {
        Outcome(self.granted.grant.ack(self.offset, self.attempt).0)
    }

    fn give_back(&self, action: ReturnAction) -> Outcome {
        Outcome(self.granted.grant.give_back(self.offset, 1, self.attempt, action).0)
    }

    fn is_lost(&self) -> bool {
        self.granted.grant.is_lost(self.offset)
    }
}

struct Outcome(Answer);

impl Outcome {
    fn now(&self) -> Option<Result<(), SettleFailure>> {
        let cx = Context::from_waker(Waker::noop());
        match self.0.poll(&mut None, &cx) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    fn is_done(&self) -> bool {
        self.now() == Some(Ok(()))
    }

    fn problem(&self) -> SettleProblem {
        match self.now() {
            Some(Err(SettleFailure::Problem(problem))) => problem,
            other => panic!("{other:?}"),
        }
    }
}

/// All that waits.
fn jobs(world: &mut World, handle: SubscriptionHandle) -> Vec<Job> {
    let mut jobs = Vec::new();
    while let Poll::Ready(Some(Handed::Grant(granted))) = poll(world, handle) {
        for run in &granted.runs {
            for nth in 0..u64::from(run.count) {
                let offset = Offset(run.first.0 + nth);
                jobs.push(Job { granted: granted.clone(), offset, attempt: run.attempt });
            }
        }
    }
    jobs
}

fn run(first: u64, count: u32, attempt: u32) -> AckRun {
    AckRun { first: Offset(first), count, attempt }
}

fn nack(reason: &str) -> ReturnAction {
    ReturnAction::Nack { delay_ms: None, reason: reason.to_owned() }
}

#[test]
fn acks_of_one_turn_are_one_request_of_runs_in_whatever_order_they_were_given() {
    let mut world = filled(2, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    assert_eq!(jobs.len(), 20);
    let answers: Vec<_> =
        [4, 19, 0, 2, 1, 3, 18, 9].into_iter().map(|at: usize| jobs[at].ack()).collect();
    world.pump();
    assert_eq!(world.peer.queue.acks.len(), 1);
    assert_eq!(world.peer.queue.acks[0].runs, [run(0, 5, 1), run(9, 1, 1), run(18, 2, 1)]);
    assert!(answers.iter().all(Outcome::is_done));
    assert_eq!(world.peer.queue.acked(), 8);
}

#[test]
fn only_the_first_ack_of_a_burst_asks_for_the_drivers_attention() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let granted = granted(&mut world, handle);
    let asked: Vec<_> = (0..10).map(|at| granted.grant.ack(Offset(at), 1).1).collect();
    assert_eq!(asked[0], Attention::Needed);
    assert!(asked[1..].iter().all(|attention| *attention == Attention::Given));
    world.pump();
    assert_eq!(world.peer.queue.acked(), 10);
}

#[test]
fn few_acks_wait_for_the_answer_to_those_before_them_and_many_do_not() {
    let mut world = filled(1, 100);
    let handle = consume(&mut world, (100, 1 << 20));
    let jobs = jobs(&mut world, handle);
    world.peer.queue.hold = true;
    jobs[0].ack();
    world.pump();
    let second = jobs[1].ack();
    world.pump();
    assert_eq!(world.peer.queue.acks.len(), 1, "the second waits");
    for job in &jobs[2..40] {
        job.ack();
    }
    world.pump();
    assert_eq!(world.peer.queue.acks.len(), 2, "a quarter of the window does not");
    jobs[40].ack();
    world.pump();
    world.peer.release_outcomes();
    world.pump();
    let runs: Vec<_> = world.peer.queue.acks.iter().map(|ack| ack.runs.clone()).collect();
    assert_eq!(runs, [vec![run(0, 1, 1)], vec![run(1, 39, 1)], vec![run(40, 1, 1)]]);
    assert!(second.is_done());
}

#[test]
fn an_exception_is_for_the_message_that_it_names() {
    let mut world = filled(1, 4);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    let items = world.peer.queue.items.values_mut().next().unwrap();
    items[1].state = State::Leased(MemberId([1; 16]));
    items[2].state = State::Acked;
    items[3].state = State::Dead;
    let answers: Vec<_> = jobs.iter().map(Job::ack).collect();
    world.pump();
    assert!(answers[0].is_done());
    assert_eq!(answers[1].problem(), SettleProblem::LeaseLost);
    assert_eq!(answers[2].problem(), SettleProblem::AlreadyAcked);
    assert_eq!(answers[3].problem(), SettleProblem::Gone);
}

#[test]
fn what_is_given_back_in_the_same_way_is_one_request() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.paused = true;
    let answers = [
        jobs[0].give_back(ReturnAction::Release),
        jobs[1].give_back(ReturnAction::Release),
        jobs[2].give_back(nack("bad day")),
        jobs[3].give_back(nack("bad day")),
        jobs[4].give_back(ReturnAction::Reject { reason: "nonsense".into() }),
    ];
    world.pump();
    let returns: Vec<_> = world.peer.queue.returns.iter().map(|it| it.runs.clone()).collect();
    assert_eq!(returns, [[run(0, 2, 1)], [run(2, 2, 1)], [run(4, 1, 1)]]);
    assert!(answers.iter().all(Outcome::is_done));
    let items = world.peer.queue.items.values().next().unwrap();
    let failures: Vec<_> = items.iter().map(|item| item.failures).collect();
    assert_eq!(failures[..5], [0, 0, 1, 1, 0]);
    assert_eq!(world.peer.queue.state(4), State::Dead);
}

#[test]
fn credit_is_never_exceeded_and_comes_back_as_messages_are_settled() {
    let mut world = filled(50, 10);
    let handle = consume(&mut world, (40, 1 << 20));
    let mut hands: Vec<Job> = Vec::new();
    let mut taken = 0;
    let mut settled = 0;
    for turn in 0.. {
        let fresh = jobs(&mut world, handle);
        taken += fresh.len();
        hands.extend(fresh);
        assert!(hands.len() <= 40, "{} in hand", hands.len());
        assert!(world.peer.queue.leased() <= 40, "more than the window is leased");
        if hands.is_empty() {
            break;
        }
        // An odd number, from both ends.
        for nth in 0..hands.len().min(7) {
            let job = hands.remove(if nth % 2 == turn % 2 { 0 } else { hands.len() - 1 });
            job.ack();
            settled += 1;
        }
        world.pump();
    }
    assert_eq!((taken, settled, world.peer.queue.acked()), (500, 500, 500));
    world.pump();
    let (messages, bytes) = world.peer.queue.credit_left()[0];
    assert!((31..=40).contains(&messages), "{messages}");
    assert!(bytes > (1 << 20) * 3 / 4 && bytes <= 1 << 20, "{bytes}");
}

#[test]
fn a_consumer_that_waits_gets_small_credit_back_when_the_broker_has_none_left() {
    let mut world = filled(2, 10);
    let handle = consume(&mut world, (10, 1 << 20));
    let mut hands = jobs(&mut world, handle);
    assert_eq!(hands.len(), 10);
    hands.remove(3).ack();
    world.pump();
    assert_eq!(jobs(&mut world, handle).len(), 1, "nine take long; the tenth place is used");
}

#[test]
fn what_was_begun_is_told_with_outcomes_and_renewals() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let granted = granted(&mut world, handle);
    world.pass(Duration::from_millis(1100));
    assert_eq!(world.peer.queue.renewals.pop().unwrap().started[0].1, 0, "none was taken yet");
    let _driver = granted.grant.ack(Offset(0), 1);
    world.pump();
    assert_eq!(world.peer.queue.acks[0].started, 0);
}

#[test]
fn leases_are_renewed_every_third_of_their_length_while_there_are_any() {
    let mut world = filled(1, 2);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    for _ in 0..10 {
        assert!(world.engine.deadline(world.now).unwrap() <= world.now + Duration::from_secs(1));
        world.pass(Duration::from_millis(500));
    }
    assert_eq!(world.peer.queue.renewals.len(), 5);
    for job in &jobs {
        job.ack();
    }
    world.pump();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.peer.queue.renewals.len(), 5, "there is nothing to renew");
}

#[test]
fn a_reconnect_keeps_the_leases_and_repeats_what_had_no_answer() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.hold = true;
    let on_the_wire = [jobs[0].ack(), jobs[1].ack()];
    let returned = jobs[5].give_back(nack("bad day"));
    world.pump();
    world.disconnect(false);
    let offline = jobs[2].ack();
    (world.peer.queue.hold, world.peer.queue.paused) = (false, true);
    world.connect();
    let consume = world.peer.queue.consumes.last().unwrap();
    assert_eq!(consume.held[0].runs, [run(0, 10, 1)], "all that has no answer is held");
    assert_eq!(consume.member, MemberId([9; 16]));
    assert_eq!(consume.credit_messages, 1000 - 7, "what is not settled is not asked for again");
    assert!(on_the_wire.iter().all(Outcome::is_done));
    assert!(returned.is_done() && offline.is_done());
    assert_eq!((world.peer.queue.acked(), world.peer.queue.leased()), (3, 6));
    assert!(jobs[3..5].iter().all(|job| !job.is_lost()));
    jobs[3].ack();
    world.pump();
    assert_eq!(world.peer.queue.acked(), 4, "leases from before the reconnect are good");
}

#[test]
fn an_ack_that_was_done_and_never_answered_is_done() {
    let mut world = filled(1, 2);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.mute = true;
    let ack = jobs[0].ack();
    world.pump();
    assert_eq!((world.peer.queue.acked(), ack.now()), (1, None));
    world.disconnect(false);
    world.peer.queue.mute = false;
    world.connect();
    assert!(ack.is_done(), "{:?}", ack.now());
    assert_eq!(world.peer.queue.acks.len(), 2);
}

#[test]
fn an_ack_of_somebody_else_is_told_when_it_was_not_our_own() {
    let mut world = filled(1, 2);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.items.values_mut().next().unwrap()[0].state = State::Acked;
    let ack = jobs[0].ack();
    world.pump();
    assert_eq!(ack.problem(), SettleProblem::AlreadyAcked);
}

#[test]
fn a_broker_that_forgot_its_leases_binds_them_again_and_outcomes_take_the_new_attempts() {
    let mut world = filled(1, 10);
    // The attempts before the restart are not those after it.
    let handle = consume(&mut world, WINDOW);
    for job in jobs(&mut world, handle) {
        job.give_back(ReturnAction::Release);
    }
    world.pump();
    let jobs = jobs(&mut world, handle);
    assert_eq!(jobs[0].attempt, 2);
    world.peer.queue.hold = true;
    let on_the_wire = jobs[0].ack();
    world.pump();
    world.disconnect(false);
    world.peer.queue.forget_leases();
    world.peer.queue.hold = false;
    world.connect();
    assert!(on_the_wire.is_done());
    let later = jobs[1].ack();
    world.pump();
    assert!(later.is_done());
    let acks = &world.peer.queue.acks;
    assert_eq!(acks[0].runs, [run(0, 1, 2)]);
    assert_eq!(acks[1].runs, [run(0, 1, 1)], "repeated with a fresh attempt");
    assert_eq!((acks[2].leader_epoch.0, &acks[2].runs[..]), (2, &[run(1, 1, 1)][..]));
}

#[test]
fn what_the_broker_gave_to_others_during_the_absence_is_lost() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.disconnect(false);
    let items = world.peer.queue.items.values_mut().next().unwrap();
    for item in &mut items[2..4] {
        (item.state, item.attempt) = (State::Leased(MemberId([1; 16])), 2);
    }
    let unsent = jobs[2].ack();
    world.connect();
    assert!(!jobs[1].is_lost() && jobs[3].is_lost());
    assert_eq!(unsent.problem(), SettleProblem::LeaseLost);
    let late = jobs[3].give_back(nack("too late"));
    let good = jobs[4].ack();
    world.pump();
    assert_eq!(late.problem(), SettleProblem::LeaseLost);
    assert!(good.is_done());
    assert_eq!(world.peer.queue.returns.len(), 0, "the broker is not asked about lost returns");
}

#[test]
fn a_lost_lease_shows_at_once_and_its_ack_still_counts_if_nobody_else_has_the_message() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, (10, 1 << 20));
    let jobs = jobs(&mut world, handle);
    world.peer.queue.paused = true;
    for offset in [3, 4] {
        let lost = world.peer.queue.expire(offset);
        world.peer.out.push_back(lost);
    }
    world.pump();
    assert!(jobs[3].is_lost() && jobs[4].is_lost() && !jobs[5].is_lost());
    let ack = jobs[3].ack();
    world.pump();
    assert!(ack.is_done());
    assert_eq!(world.peer.queue.acks[0].runs, [run(3, 1, 1)]);
}

#[test]
fn a_message_that_came_again_is_settled_by_its_newest_delivery_only() {
    let mut world = filled(1, 4);
    let handle = consume(&mut world, WINDOW);
    let first = jobs(&mut world, handle);
    let lost = world.peer.queue.expire(2);
    world.peer.out.push_back(lost);
    world.peer.deliver();
    world.pump();
    let second = jobs(&mut world, handle);
    assert_eq!((second.len(), second[0].offset, second[0].attempt), (1, Offset(2), 2));
    assert!(first[2].is_lost() && !second[0].is_lost());
    let (old, new) = (first[2].ack(), second[0].ack());
    world.pump();
    assert_eq!(old.problem(), SettleProblem::LeaseLost);
    assert!(new.is_done());
    assert_eq!(world.peer.queue.acks[0].runs, [run(2, 1, 2)]);
    assert_eq!(world.engine.unsettled(handle), 3);
}

#[test]
fn a_seek_makes_everything_before_it_void() {
    let mut world = filled(1, 4);
    let handle = consume(&mut world, WINDOW);
    let before = jobs(&mut world, handle);
    world.peer.queue.hold = true;
    let on_the_wire = before[0].ack();
    world.pump();
    let lost = world.peer.queue.seek();
    world.peer.out.push_back(lost);
    world.pump();
    assert!(before[1..].iter().all(Job::is_lost));
    let late = before[1].ack();
    world.peer.release_outcomes();
    world.pump();
    assert_eq!(on_the_wire.problem(), SettleProblem::LeaseLost);
    assert_eq!(late.problem(), SettleProblem::LeaseLost);
    let after = jobs(&mut world, handle);
    assert_eq!(after.len(), 4);
    let ack = after[0].ack();
    world.pump();
    assert!(ack.is_done());
    assert_eq!(world.peer.queue.acks.last().unwrap().sub_epoch, 1);
}

#[test]
fn an_outcome_that_is_refused_for_now_is_repeated_and_one_refused_for_good_is_told() {
    let mut world = filled(1, 4);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.script.push_back(ErrorBody::new(ErrorCode::DiskFull, "full"));
    let ack = jobs[0].ack();
    world.pump();
    assert_eq!(ack.now(), None);
    assert!(world.engine.deadline(world.now).unwrap() <= world.now + Duration::from_millis(100));
    world.pass(Duration::from_millis(100));
    assert!(ack.is_done());
    world.peer.queue.script.push_back(ErrorBody::new(ErrorCode::BadRequest, "no"));
    let refused = jobs[1].ack();
    world.pump();
    assert!(matches!(refused.now(), Some(Err(SettleFailure::Refused(_)))), "{:?}", refused.now());
}

#[test]
fn leases_that_never_arrived_go_back() {
    let mut world = filled(2, 10);
    let handle = consume(&mut world, (10, 1 << 20));
    let hands = jobs(&mut world, handle);
    for job in &hands {
        job.ack();
    }
    // The leases of the second ten are lost on their way.
    let mut out = postrider::core::Transmit::default();
    world.engine.transmit(world.now, &mut out, usize::MAX).unwrap();
    world.disconnect(false);
    let member = State::Leased(MemberId([9; 16]));
    for item in &mut world.peer.queue.items.values_mut().next().unwrap()[10..] {
        (item.state, item.attempt) = (member, 1);
    }
    world.connect();
    let again = jobs(&mut world, handle);
    assert_eq!(again.len(), 10);
    assert!(again.iter().all(|job| job.attempt == 2));
    assert_eq!(world.peer.queue.acked(), 10);
}

#[test]
fn a_consumer_that_is_let_go_gives_back_what_waits_and_leaves_when_its_deliveries_are_settled() {
    let mut world = filled(4, 5);
    let handle = consume(&mut world, (20, 1 << 20));
    let granted = granted(&mut world, handle);
    assert_eq!(granted.runs[0].count, 20);
    world.peer.queue.paused = true;
    world.engine.stop_consumer(handle);
    assert!(matches!(poll(&mut world, handle), Poll::Ready(None)));
    for at in 0..18 {
        let _driver = granted.grant.give_back(Offset(at), 1, 1, ReturnAction::Release);
    }
    world.pump();
    assert!(world.peer.queue.is_attached(), "two deliveries are in hand");
    assert_eq!(world.peer.queue.leased(), 2);
    let _driver = granted.grant.ack(Offset(18), 1);
    let _driver = granted.grant.ack(Offset(19), 1);
    world.engine.release_consumer(handle);
    assert!(world.engine.has_leaving_consumers());
    world.pump();
    assert!(!world.peer.queue.is_attached());
    assert_eq!((world.peer.queue.acked(), world.peer.queue.leased()), (2, 0));
    assert!(!world.engine.has_leaving_consumers());
}

#[test]
fn outcomes_are_repeated_for_a_consumer_that_was_let_go() {
    let mut world = filled(1, 5);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.hold = true;
    let ack = jobs[0].ack();
    for job in &jobs[1..] {
        job.give_back(ReturnAction::Release);
    }
    world.engine.release_consumer(handle);
    world.pump();
    world.disconnect(false);
    world.peer.queue.hold = false;
    world.peer.queue.paused = true;
    world.connect();
    assert!(ack.is_done());
    assert_eq!(world.peer.queue.consumes.last().unwrap().credit_messages, 0);
    assert!(!world.peer.queue.is_attached());
    assert_eq!((world.peer.queue.acked(), world.peer.queue.leased()), (1, 0));
}

#[test]
fn a_drain_waits_for_what_is_in_hand_and_refuses_what_still_comes() {
    let mut world = filled(4, 10);
    let handle = consume(&mut world, (20, 1 << 20));
    let jobs = jobs(&mut world, handle);
    for job in &jobs[..10] {
        job.ack();
    }
    let (done, mut drained) = promise();
    world.engine.drain_consumer(handle, done);
    world.pump();
    assert!(poll_now(&mut drained).is_pending());
    assert_eq!(world.engine.unsettled(handle), 10);
    let key = world.producer(ProducerOptions::default());
    world.enqueue(key, "late");
    world.pump();
    assert_eq!(world.engine.unsettled(handle), 10, "what came meanwhile went back");
    for job in &jobs[10..] {
        job.ack();
    }
    world.pump();
    assert!(matches!(poll_now(&mut drained), Poll::Ready(Some(()))));
    assert_eq!((world.peer.queue.acked(), world.peer.queue.leased()), (20, 0));
}

#[test]
fn a_consumer_that_leaves_is_answered_first_and_what_it_did_not_settle_goes_back() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.hold = true;
    let ack = jobs[0].ack();
    let (done, mut left) = promise();
    world.engine.leave_consumer(handle, done);
    world.pump();
    assert!(poll_now(&mut left).is_pending() && world.peer.queue.is_attached());
    world.peer.release_outcomes();
    world.pump();
    assert!(ack.is_done());
    assert!(matches!(poll_now(&mut left), Poll::Ready(Some(()))));
    assert!(!world.peer.queue.is_attached());
    assert_eq!(world.peer.queue.leased(), 0);
    assert_eq!(jobs[1].ack().now(), Some(Err(SettleFailure::Ended)));
    assert!(jobs[2].is_lost());
}

#[test]
fn a_connection_that_is_lost_while_a_consumer_leaves_ends_it() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    let (done, mut left) = promise();
    world.engine.leave_consumer(handle, done);
    let mut out = postrider::core::Transmit::default();
    world.engine.transmit(world.now, &mut out, usize::MAX).unwrap();
    assert!(poll_now(&mut left).is_pending());
    world.disconnect(false);
    assert!(matches!(poll_now(&mut left), Poll::Ready(Some(()))));
    assert_eq!(jobs[0].ack().now(), Some(Err(SettleFailure::Ended)));
    assert!(matches!(poll(&mut world, handle), Poll::Ready(Some(Handed::Ended(_)))));
}

#[test]
fn messages_that_are_let_go_stay_leased_until_the_consumer_is_gone() {
    let mut world = filled(1, 3);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    for job in &jobs {
        let _driver = job.granted.grant.hold(job.offset, job.attempt);
    }
    world.pass(Duration::from_millis(1100));
    assert_eq!((world.peer.queue.leased(), world.peer.queue.renewals.len()), (3, 1));
    let lost = world.peer.queue.expire(0);
    world.peer.out.push_back(lost);
    world.peer.queue.paused = true;
    world.pump();
    world.engine.release_consumer(handle);
    world.pump();
    assert!(!world.peer.queue.is_attached());
    assert_eq!(world.peer.queue.leased(), 0);
}

#[test]
fn a_consumer_that_the_broker_ends_tells_why_and_answers_its_outcomes() {
    let mut world = filled(1, 10);
    let handle = consume(&mut world, WINDOW);
    let jobs = jobs(&mut world, handle);
    world.peer.queue.hold = true;
    let ack = jobs[0].ack();
    world.pump();
    let error = ErrorBody::new(ErrorCode::UnknownSubscription, "deleted");
    let closed = postrider_protocol::message::SubscriptionClosed { handle, error };
    world.peer.out.push_back(event(&closed));
    world.pump();
    assert_eq!(ack.now(), Some(Err(SettleFailure::Ended)));
    assert_eq!(jobs[1].ack().now(), Some(Err(SettleFailure::Ended)));
    match poll(&mut world, handle) {
        Poll::Ready(Some(Handed::Ended(error))) => {
            assert_eq!(error.code, ErrorCode::UnknownSubscription);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(poll(&mut world, handle), Poll::Ready(None)));
}

#[test]
fn a_lease_without_its_message_ends_the_connection() {
    let mut world = filled(2, 10);
    let handle = consume(&mut world, (1, 1 << 20));
    let entry = world.peer.partitions[0].entries[1].2.clone();
    let head = postrider_protocol::message::LeaseHead {
        handle,
        partition: postrider_protocol::types::PartitionId(0),
        sub_epoch: 0,
        leader_epoch: postrider_protocol::types::LeaderEpoch(1),
        dispatch_number: 1,
        dispatch_index: postrider_protocol::types::EntryIndex(1),
        runs: vec![postrider_protocol::message::LeaseRun {
            first: Offset(5),
            count: 10,
            attempt: 1,
            failures: 0,
        }],
    };
    let lease = postrider_protocol::message::Lease { head, entries: entry };
    let mut input = bytes::BytesMut::from(&event(&lease)[..]);
    let fault = world.engine.receive(world.now, &mut input).unwrap_err();
    assert!(matches!(fault, LinkFault::Delivery(_)), "{fault:?}");
}
