//! Consumer groups over frames: members join, leave, vanish and stop, on a real broker and a simulated disk.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_broker::join::Broker;
use postrider_core::Now;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::*;
use postrider_protocol::types::*;
use postrider_storage::SimDisk;

use crate::open_sim;
use crate::peer::{Peer, messages, publish, start};

const HANDLE: SubscriptionHandle = SubscriptionHandle(1);

/// A member with what it holds: epoch, next offset, and whether it is to be given back.
struct Worker {
    peer: Peer,
    member: u64,
    held: BTreeMap<PartitionId, (u64, u64)>,
    revoked: Vec<PartitionId>,
    lost: Vec<PartitionId>,
    seen: Vec<(u32, u64)>,
}

fn join_group(instance: Option<&str>, resumes: Option<u64>) -> JoinGroup {
    JoinGroup {
        handle: HANDLE,
        topic: "orders".to_string(),
        name: "billing".to_string(),
        start: Start::Earliest,
        resumes,
        instance: instance.map(str::to_string),
        session_timeout_ms: 10_000,
        credit_messages: 1_000,
        credit_bytes: 1 << 20,
    }
}

impl Worker {
    fn join(world: &World, request: &JoinGroup) -> Self {
        let mut peer = Peer::new(&world.broker);
        peer.now = world.now;
        let reply: JoinGroupReply = peer.ask(request).unwrap();
        let (held, revoked, lost, seen) = Default::default();
        Self { peer, member: reply.member, held, revoked, lost, seen }
    }

    /// Takes what has come, in order.
    fn hear(&mut self) {
        self.peer.settle();
        // The first round may run the group, which leaves something for the second.
        self.peer.pump();
        self.peer.pump();
        for frame in std::mem::take(&mut self.peer.inbox) {
            if frame.header.is_reply() {
                self.peer.inbox.push_back(frame);
            } else if frame.header.api == GroupAssigned::API as u16 {
                let SubscribedPartition { partition, owner_epoch, next, .. } =
                    frame.message::<GroupAssigned>().unwrap().partition;
                assert!(self.held.insert(partition, (owner_epoch, next.0)).is_none());
            } else if frame.header.api == GroupRevoked::API as u16 {
                let revoked: GroupRevoked = frame.message().unwrap();
                if revoked.drain_ms == 0 {
                    self.held.remove(&revoked.partition);
                    self.lost.push(revoked.partition);
                } else {
                    self.revoked.push(revoked.partition);
                }
            } else if frame.header.api == Deliver::API as u16 {
                let deliver: Deliver = frame.message().unwrap();
                let (epoch, next) = self.held.get_mut(&deliver.head.partition).unwrap();
                assert_eq!((*epoch, *next), (deliver.head.owner_epoch, deliver.head.next.0));
                for (offset, _) in messages(&deliver) {
                    assert_eq!(offset, *next);
                    *next += 1;
                    self.seen.push((deliver.head.partition.0, offset));
                }
            } else if frame.header.api == Seeked::API as u16 {
                let seeked: Seeked = frame.message().unwrap();
                self.held.insert(seeked.partition, (seeked.owner_epoch, seeked.next.0));
            } else {
                self.peer.inbox.push_back(frame);
            }
        }
    }

    fn ack(&mut self, partition: PartitionId) -> Result<(), ErrorCode> {
        let (owner_epoch, next) = self.held[&partition];
        let ack = AckUpTo { handle: HANDLE, partition, owner_epoch, up_to: Offset(next) };
        let acked: Result<AckUpToReply, _> = self.peer.ask(&ack);
        acked.map(|_| ()).map_err(|error| error.code)
    }

    /// Acknowledges and gives back what was revoked; nobody waits for the ack.
    fn release(&mut self) {
        for partition in std::mem::take(&mut self.revoked) {
            let (owner_epoch, next) = self.held.remove(&partition).unwrap();
            let ack = AckUpTo { handle: HANDLE, partition, owner_epoch, up_to: Offset(next) };
            self.peer.send(&ack);
            self.peer.send(&GroupReleased { handle: HANDLE, partition, owner_epoch });
        }
    }

    fn partitions(&self) -> Vec<u32> {
        self.held.keys().map(|partition| partition.0).collect()
    }

    fn beat(&mut self, now: Now) {
        self.peer.now = now;
        self.peer.send_event(&GroupHeartbeat { handle: HANDLE });
    }
}

struct World {
    broker: Broker,
    now: Now,
    writer: Peer,
    producer: ProducerId,
    topic: TopicId,
    epoch: LeaderEpoch,
    sequences: BTreeMap<u32, u64>,
}

impl World {
    fn new(partitions: u32) -> Self {
        let broker = open_sim(&SimDisk::new(5));
        let mut writer = Peer::new(&broker);
        let topic = writer.create_topic("orders", partitions);
        let epoch = writer.leader_epoch("orders");
        let producer = writer.open_producer();
        let sequences = BTreeMap::new();
        Self { broker, now: start(), writer, producer, topic, epoch, sequences }
    }

    fn publish(&mut self, partition: u32) {
        let sequence = self.sequences.entry(partition).or_default();
        let mut message = publish(self.topic, self.epoch, self.producer, *sequence, &["a", "b"]);
        message.head.partition = PartitionId(partition);
        *sequence += 2;
        self.writer.send_event(&message);
        self.writer.settle();
        assert!(!self.writer.confirms().is_empty());
    }

    /// Time goes on, in steps below what counts as a standstill; members beat.
    fn pass(&mut self, seconds: u64, workers: &mut [&mut Worker]) {
        for _ in 0..seconds * 2 {
            self.now.monotonic += Duration::from_millis(500);
            for worker in &mut *workers {
                worker.beat(self.now);
            }
            self.broker.tick(self.now);
            self.writer.settle();
            for worker in &mut *workers {
                worker.hear();
                worker.release();
                worker.hear();
            }
        }
    }

    fn describe(&mut self) -> DescribeGroupReply {
        let (topic, name) = ("orders".to_string(), "billing".to_string());
        self.writer.now = self.now;
        self.writer.ask(&DescribeGroup { topic, name }).unwrap()
    }
}

#[test]
fn partitions_are_handed_over_without_a_duplicate_or_a_gap() {
    let mut world = World::new(4);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    assert_eq!(one.partitions(), [0, 1, 2, 3]);
    (0..4).for_each(|partition| world.publish(partition));
    one.hear();
    assert_eq!(one.seen.len(), 8);

    let mut two = Worker::join(&world, &join_group(None, None));
    one.hear();
    two.hear();
    assert_eq!(one.revoked, [PartitionId(2), PartitionId(3)], "no more than must move");
    assert!(two.held.is_empty(), "nothing is given before it is released");
    (0..4).for_each(|partition| world.publish(partition));
    one.hear();
    assert_eq!(one.seen.len(), 12, "only what stays is delivered");
    one.release();
    for worker in [&mut one, &mut two] {
        worker.hear();
    }
    world.pass(1, &mut [&mut one, &mut two]);
    assert_eq!(two.partitions(), [2, 3]);
    let mut seen = [one.seen.clone(), two.seen.clone()].concat();
    seen.sort_unstable();
    let all: Vec<_> = (0..4).flat_map(|p| (0..4).map(move |offset| (p, offset))).collect();
    assert_eq!(seen, all, "each once");

    let described = world.describe();
    let holders: Vec<_> = described.partitions.iter().map(|partition| partition.holder).collect();
    assert_eq!(holders, [Some(one.member), Some(one.member), Some(two.member), Some(two.member)]);
    assert_eq!((described.partitions[2].acked, described.partitions[2].lag), (Offset(2), 2));
}

#[test]
fn a_member_that_vanishes_is_replaced_and_its_acks_are_void() {
    let mut world = World::new(2);
    let mut one = Worker::join(&world, &join_group(None, None));
    let mut two = Worker::join(&world, &join_group(None, None));
    world.pass(1, &mut [&mut one, &mut two]);
    assert_eq!((one.partitions(), two.partitions()), (vec![0], vec![1]));
    world.publish(1);
    two.hear();
    assert_eq!(two.seen, [(1, 0), (1, 1)]);
    two.peer.session.close();
    world.pass(2, &mut [&mut one]);
    assert_eq!(one.partitions(), [0], "it may come back");
    world.pass(2, &mut [&mut one]);
    assert_eq!(one.partitions(), [0, 1]);
    assert_eq!(one.seen, [(1, 0), (1, 1)], "what was not acknowledged comes again");
    one.ack(PartitionId(1)).unwrap();
}

#[test]
fn a_silent_member_is_fenced_and_a_stale_owner_cannot_acknowledge() {
    let mut world = World::new(1);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    world.publish(0);
    one.hear();
    let mut two = Worker::join(&world, &join_group(None, None));
    world.pass(9, &mut [&mut two]);
    assert!(two.held.is_empty());
    world.pass(2, &mut [&mut two]);
    assert_eq!(two.partitions(), [0]);
    one.peer.now = world.now;
    // It has not heard of it yet; the partition has.
    assert_eq!(one.ack(PartitionId(0)), Err(ErrorCode::StaleOwnerEpoch));
    let fenced = one.peer.take::<GroupFenced>();
    assert_eq!(fenced[0].error.code, ErrorCode::TimedOut);
}

#[test]
fn a_drain_that_takes_too_long_loses_the_partition() {
    let mut world = World::new(2);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    world.publish(1);
    one.hear();
    let mut two = Worker::join(&world, &join_group(None, None));
    one.hear();
    assert_eq!(one.revoked, [PartitionId(1)]);
    // It lives and does not give the partition back.
    let kept = std::mem::take(&mut one.revoked);
    world.pass(29, &mut [&mut one, &mut two]);
    assert_eq!((one.partitions(), two.partitions()), (vec![0, 1], vec![]));
    world.pass(2, &mut [&mut one, &mut two]);
    assert_eq!((&one.lost, two.partitions()), (&kept, vec![1]));
    assert_eq!(two.seen, [(1, 0), (1, 1)]);
    assert_eq!(one.partitions(), [0], "the other one stays");
}

#[test]
fn an_instance_that_restarts_has_its_partitions_again_and_nobody_else_notices() {
    let mut world = World::new(4);
    let mut one = Worker::join(&world, &join_group(Some("one"), None));
    let mut two = Worker::join(&world, &join_group(Some("two"), None));
    world.pass(1, &mut [&mut one, &mut two]);
    let before = (one.partitions(), two.partitions());
    two.peer.session.close();
    world.pass(8, &mut [&mut one]);
    let mut again = Worker::join(&world, &join_group(Some("two"), None));
    world.pass(1, &mut [&mut one, &mut again]);
    assert_eq!((one.partitions(), again.partitions()), before);
    assert!(one.lost.is_empty() && again.member != two.member);
}

#[test]
fn a_seek_reaches_the_owner_with_the_new_epoch() {
    let mut world = World::new(1);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    world.publish(0);
    one.hear();
    one.ack(PartitionId(0)).unwrap();
    let before = one.held[&PartitionId(0)].0;
    let seek = Seek { topic: "orders".into(), name: "billing".into(), to: Start::Earliest };
    let _sought: SeekReply = world.writer.ask(&seek).unwrap();
    one.hear();
    one.hear();
    assert!(one.held[&PartitionId(0)].0 > before);
    assert_eq!(one.seen, [(0, 0), (0, 1), (0, 0), (0, 1)]);
    one.ack(PartitionId(0)).unwrap();
}

#[test]
fn partitions_that_are_added_find_a_member() {
    let mut world = World::new(1);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    let more = AlterTopic {
        name: "orders".to_string(),
        partitions: Some(3),
        retention_ms: None,
        retention_bytes: None,
        message_bytes_max: None,
        bounds: BoundsChange::default(),
    };
    let _altered: AlterTopicReply = world.writer.ask(&more).unwrap();
    world.pass(1, &mut [&mut one]);
    assert_eq!(one.partitions(), [0, 1, 2]);
}

#[test]
fn a_subscription_with_members_is_not_taken_by_a_subscriber_and_is_free_when_they_left() {
    let mut world = World::new(1);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    let refused: Result<SubscribeReply, _> =
        world.writer.ask(&crate::peer::subscribe(9, "orders", Some("billing"), Start::Earliest));
    assert_eq!(refused.unwrap_err().code, ErrorCode::SubscriptionTaken);
    let leave = LeaveGroup { handle: HANDLE, keep_place: false };
    let _left: LeaveGroupReply = one.peer.ask(&leave).unwrap();
    world.pass(1, &mut []);
    let attached = world.writer.subscribe(9, "orders", Some("billing"));
    assert_eq!(attached.partitions.len(), 1);
    assert!(world.describe().members.is_empty());
}

#[test]
fn a_group_ends_with_its_subscription() {
    let mut world = World::new(2);
    let mut one = Worker::join(&world, &join_group(None, None));
    one.hear();
    let delete = DeleteSubscription { topic: "orders".into(), name: "billing".into() };
    let _deleted: DeleteSubscriptionReply = world.writer.ask(&delete).unwrap();
    world.pass(1, &mut []);
    let fenced = one.peer.take::<GroupFenced>();
    assert_eq!(fenced[0].error.code, ErrorCode::UnknownSubscription);
}
