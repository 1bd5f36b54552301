//! Messages of queues: runs have one order and a bound, and any message survives the wire.

use bytes::{BufMut, Bytes, BytesMut};
use postrider_protocol::{
    codec::DecodeError,
    entry::EntryIter,
    frame::frame,
    message::{
        Ack, AckReply, AckRun, Breaker, Consume, ConsumeReply, ConsumedPartition, CreateQueue,
        CreateSubscription, DescribeQueueReply, HeldLeases, LEASE_HEAD_BYTES, LEASE_RUN_BYTES,
        Lease, LeaseHead, LeaseLost, LeaseRun, Message, QueueConsumer, QueuePartition, QueuePolicy,
        RUNS_MAX, Renew, Return, ReturnAction, SettleException, SettleProblem, WhyMessageReply,
    },
    types::{
        CorrelationId, EntryIndex, LeaderEpoch, MemberId, Offset, PartitionId, SubscriptionHandle,
        SubscriptionId, TopicId,
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::{
    properties::{bounds, durability, fields, id, start, survives, text},
    queue_samples, samples,
};

fn body_of(message: &impl Message) -> Bytes {
    let mut body = BytesMut::new();
    message.encode(&mut body);
    body.freeze()
}

fn recode<M: Message>(message: &M) -> Result<M, DecodeError> {
    M::decode(body_of(message))
}

fn lost(runs: Vec<AckRun>) -> LeaseLost {
    LeaseLost { handle: SubscriptionHandle(1), partition: PartitionId(2), sub_epoch: 3, runs }
}

fn ack_run(first: u64, count: u32) -> AckRun {
    AckRun { first: Offset(first), count, attempt: 1 }
}

/// Runs of one message each, with holes between them.
fn scattered(count: u32) -> Vec<AckRun> {
    (0..u64::from(count)).map(|at| ack_run(at * 2, 1)).collect()
}

#[test]
fn runs_rise_and_never_overlap() {
    let decoded = |runs: &[(u64, u32)]| {
        let message = lost(runs.iter().map(|(first, count)| ack_run(*first, *count)).collect());
        recode(&message).map(|again| assert_eq!(again, message))
    };
    let (order, run) = (DecodeError::Invalid("order of a list"), DecodeError::Invalid("run"));
    assert_eq!(decoded(&[]), Ok(()));
    assert_eq!(decoded(&[(5, 2), (7, 1), (9, 3)]), Ok(()));
    assert_eq!(decoded(&[(5, 2), (6, 1)]), Err(order));
    assert_eq!(decoded(&[(5, 1), (5, 1)]), Err(order));
    assert_eq!(decoded(&[(5, 1), (3, 1)]), Err(order));
    assert_eq!(decoded(&[(5, 0)]), Err(run));
    assert_eq!(decoded(&[(u64::MAX, 1)]), Err(run));
    assert_eq!(decoded(&[(u64::MAX - 1, 1)]), Ok(()));
}

#[test]
fn a_list_of_runs_has_a_bound_of_its_own() {
    let most = lost(scattered(RUNS_MAX));
    assert_eq!(recode(&most), Ok(most));
    let above = RUNS_MAX + 1;
    let refused = Some(DecodeError::ListTooLong(above));
    assert_eq!(recode(&lost(scattered(above))).err(), refused);

    let problem = SettleProblem::Gone;
    let exceptions = (0..u64::from(above))
        .map(|at| SettleException { first: Offset(at * 2), count: 1, problem })
        .collect();
    let reply = AckReply { commit_index: EntryIndex(0), exceptions };
    assert_eq!(recode(&reply).err(), refused);

    let held = (0..u64::from(above))
        .map(|at| LeaseRun { first: Offset(at * 2), count: 1, attempt: 1, failures: 0 })
        .collect();
    let partition = ConsumedPartition {
        partition: PartitionId(0),
        sub_epoch: 0,
        leader_epoch: LeaderEpoch(0),
        held,
    };
    let reply = ConsumeReply {
        topic: TopicId([0; 16]),
        subscription: SubscriptionId([0; 16]),
        policy: QueuePolicy::default(),
        partitions: vec![partition],
    };
    assert_eq!(recode(&reply).err(), refused);
}

#[test]
fn a_list_in_a_list_cannot_claim_more_than_its_bytes() {
    let held = |runs| HeldLeases {
        partition: PartitionId(0),
        sub_epoch: 0,
        leader_epoch: LeaderEpoch(0),
        runs,
    };
    let consume = Consume {
        handle: SubscriptionHandle(0),
        topic: String::new(),
        subscription: None,
        partitions: vec![],
        member: MemberId([0; 16]),
        consumer_name: String::new(),
        credit_messages: 0,
        credit_bytes: 0,
        held: vec![held(vec![]), held(vec![])],
    };
    let whole = body_of(&consume);
    assert_eq!(Consume::decode(whole.clone()), Ok(consume));
    for claim in [1, 2, RUNS_MAX, u32::MAX] {
        let mut body = whole.to_vec();
        let last_count = body.len() - 4;
        body[last_count..].copy_from_slice(&claim.to_le_bytes());
        assert_eq!(Consume::decode(body.into()), Err(DecodeError::ListTooLong(claim)));
    }
}

/// The sample lease with other bytes at a place.
fn lease_with(at: usize, bytes: &[u8]) -> Result<Lease, DecodeError> {
    let mut body = body_of(&queue_samples::lease()).to_vec();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    Lease::decode(body.into())
}

#[test]
fn the_runs_of_a_lease_are_as_strict() {
    let invalid = |what| Err(DecodeError::Invalid(what));
    assert_eq!(lease_with(20, &0_u32.to_le_bytes()), invalid("count of runs"));
    for claim in [RUNS_MAX, RUNS_MAX + 1, u32::MAX] {
        let decoded = lease_with(20, &claim.to_le_bytes());
        assert_eq!(decoded, Err(DecodeError::ListTooLong(claim)));
    }
    let second = LEASE_HEAD_BYTES + LEASE_RUN_BYTES;
    assert_eq!(lease_with(second, &149_u64.to_le_bytes()), invalid("order of a list"));
    assert_eq!(lease_with(second + 8, &0_u32.to_le_bytes()), invalid("run"));

    let mut body = BytesMut::from(&body_of(&queue_samples::lease())[..LEASE_HEAD_BYTES]);
    body[20..24].copy_from_slice(&(RUNS_MAX + 1).to_le_bytes());
    for run in scattered(RUNS_MAX + 1) {
        body.put_u64_le(run.first.0);
        body.put_u32_le(run.count);
        body.put_u64_le(1);
    }
    assert_eq!(Lease::decode(body.freeze()), Err(DecodeError::ListTooLong(RUNS_MAX + 1)));
}

#[test]
fn a_framed_head_and_entries_are_the_frame() {
    let lease = queue_samples::lease();
    let framed = [lease.head.encode_framed(lease.entries.len()).as_ref(), &lease.entries].concat();
    assert_eq!(framed, frame(&lease, CorrelationId(0), 0));
    assert_eq!(lease.head.messages(), 4);
}

#[test]
fn the_entries_of_the_sample_hold_what_its_runs_lease() {
    let lease = queue_samples::lease();
    let entries: Vec<_> = EntryIter::new(lease.entries).map(Result::unwrap).collect();
    assert_eq!(entries.len(), 2);
    let last = lease.head.runs.last().unwrap();
    assert_eq!(entries.last().unwrap().header.end_offset(), last.end());
    assert!(samples::all().iter().any(|sample| sample.name == "lease"));
}

fn policy() -> BoxedStrategy<QueuePolicy> {
    let breaker = fields!(Breaker {
        failure_percent: any::<u32>(),
        window: any::<u32>(),
        pause_ms: any::<u32>(),
    });
    let (numbers, flags) = (any::<[u32; 5]>(), any::<[bool; 3]>());
    (numbers, flags, any::<u64>(), option::of(text()), option::of(breaker))
        .prop_map(|(numbers, flags, lease_max_ms, dead_letter, breaker)| {
            let [lease_ms, max_failures, backoff_min_ms, backoff_max_ms, unsettled_max] = numbers;
            let [key_order, single_active, paused] = flags;
            QueuePolicy {
                lease_ms,
                lease_max_ms,
                max_failures,
                backoff_min_ms,
                backoff_max_ms,
                unsettled_max,
                key_order,
                single_active,
                paused,
                dead_letter,
                breaker,
            }
        })
        .boxed()
}

/// Runs by the holes before them and their counts.
fn runs<R: std::fmt::Debug + 'static>(
    run: fn(Offset, u32, u32) -> R,
    least: usize,
) -> BoxedStrategy<Vec<R>> {
    vec((0..1_000_u64, 1..=u32::MAX, any::<u32>()), least..6)
        .prop_map(move |parts| {
            let mut next = 0;
            let place = |(hole, count, number): (u64, u32, u32)| {
                let first = next + hole;
                next = first + u64::from(count);
                run(Offset(first), count, number)
            };
            parts.into_iter().map(place).collect()
        })
        .boxed()
}

fn ack_runs() -> BoxedStrategy<Vec<AckRun>> {
    runs(|first, count, attempt| AckRun { first, count, attempt }, 0)
}

fn lease_runs(least: usize) -> BoxedStrategy<Vec<LeaseRun>> {
    let run = |first, count, number: u32| {
        let (attempt, failures) = (number, number.rotate_left(16));
        LeaseRun { first, count, attempt, failures }
    };
    runs(run, least)
}

fn exceptions() -> BoxedStrategy<Vec<SettleException>> {
    let exception = |first, count, number: u32| {
        let problem = match number % 3 {
            0 => SettleProblem::AlreadyAcked,
            1 => SettleProblem::LeaseLost,
            _ => SettleProblem::Gone,
        };
        SettleException { first, count, problem }
    };
    runs(exception, 0)
}

fn action() -> BoxedStrategy<ReturnAction> {
    prop_oneof![
        Just(ReturnAction::Release),
        (any::<Option<u64>>(), text())
            .prop_map(|(delay_ms, reason)| ReturnAction::Nack { delay_ms, reason }),
        text().prop_map(|reason| ReturnAction::Reject { reason }),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attaching_survives(
        consume in fields!(Consume {
            handle: id(SubscriptionHandle),
            topic: text(),
            subscription: option::of(text()),
            partitions: vec(id(PartitionId), 0..5),
            member: id(MemberId),
            consumer_name: text(),
            credit_messages: any::<u32>(),
            credit_bytes: any::<u32>(),
            held: vec(
                fields!(HeldLeases {
                    partition: id(PartitionId),
                    sub_epoch: any::<u64>(),
                    leader_epoch: id(LeaderEpoch),
                    runs: ack_runs(),
                }),
                0..4,
            ),
        }),
        reply in fields!(ConsumeReply {
            topic: id(TopicId),
            subscription: id(SubscriptionId),
            policy: policy(),
            partitions: vec(
                fields!(ConsumedPartition {
                    partition: id(PartitionId),
                    sub_epoch: any::<u64>(),
                    leader_epoch: id(LeaderEpoch),
                    held: lease_runs(0),
                }),
                0..4,
            ),
        }),
    ) {
        survives(&consume);
        survives(&reply);
    }

    #[test]
    fn leases_and_what_becomes_of_them_survive(
        head in fields!(LeaseHead {
            handle: id(SubscriptionHandle),
            partition: id(PartitionId),
            sub_epoch: any::<u64>(),
            leader_epoch: id(LeaderEpoch),
            dispatch_number: any::<u64>(),
            dispatch_index: id(EntryIndex),
            runs: lease_runs(1),
        }),
        entries in vec(any::<u8>(), 0..100).prop_map(Bytes::from),
        ack in fields!(Ack {
            handle: id(SubscriptionHandle),
            partition: id(PartitionId),
            sub_epoch: any::<u64>(),
            leader_epoch: id(LeaderEpoch),
            started: any::<u64>(),
            runs: ack_runs(),
        }),
        reply in fields!(AckReply { commit_index: id(EntryIndex), exceptions: exceptions() }),
        give_back in fields!(Return {
            handle: id(SubscriptionHandle),
            partition: id(PartitionId),
            sub_epoch: any::<u64>(),
            leader_epoch: id(LeaderEpoch),
            started: any::<u64>(),
            runs: ack_runs(),
            action: action(),
        }),
        renew in fields!(Renew {
            handle: id(SubscriptionHandle),
            started: vec((id(PartitionId), any::<u64>()), 0..5),
        }),
    ) {
        survives(&Lease { head, entries });
        survives(&ack);
        survives(&reply);
        survives(&give_back);
        survives(&renew);
    }

    #[test]
    fn managing_survives(
        create in fields!(CreateQueue {
            name: text(),
            partitions: any::<u32>(),
            durability: durability(),
            message_bytes_max: any::<Option<u32>>(),
            bounds: bounds(),
            policy: policy(),
            if_not_exists: any::<bool>(),
        }),
        subscription in fields!(CreateSubscription {
            topic: text(),
            name: text(),
            start: start(),
            queue: option::of(policy()),
            if_not_exists: any::<bool>(),
        }),
        description in fields!(DescribeQueueReply {
            topic: id(TopicId),
            subscription: id(SubscriptionId),
            name: text(),
            policy: policy(),
            partitions: vec(queue_partition(), 0..4),
            consumers: vec(
                fields!(QueueConsumer {
                    name: text(),
                    member: id(MemberId),
                    connected: any::<bool>(),
                    leased: any::<u64>(),
                    oldest_lease_ms: any::<u64>(),
                }),
                0..4,
            ),
        }),
        why in why_message_reply(),
    ) {
        survives(&create);
        survives(&subscription);
        survives(&description);
        survives(&why);
    }
}

fn queue_partition() -> BoxedStrategy<QueuePartition> {
    (id(PartitionId), id(Offset), any::<[u64; 11]>(), any::<bool>())
        .prop_map(|(partition, floor, numbers, breaker_open)| {
            let [sub_epoch, ready, leased, delayed, blocked, dead_lettering, rest @ ..] = numbers;
            let [acked, dead_lettered, expired, evicted, oldest_ready_ms] = rest;
            QueuePartition {
                partition,
                sub_epoch,
                floor,
                ready,
                leased,
                delayed,
                blocked,
                dead_lettering,
                acked,
                dead_lettered,
                expired,
                evicted,
                oldest_ready_ms,
                breaker_open,
            }
        })
        .boxed()
}

fn why_message_reply() -> BoxedStrategy<WhyMessageReply> {
    let words = select(vec!["acked", "ready", "leased", "delayed", "blocked", "gone", "future"]);
    fields!(WhyMessageReply {
        state: words.prop_map(str::to_owned),
        text: text(),
        holder: option::of(text()),
        since: id(postrider_protocol::types::TimestampMs),
        until: id(postrider_protocol::types::TimestampMs),
        attempts: any::<u32>(),
        failures: any::<u32>(),
        last_reason: text(),
    })
    .boxed()
}
