//! Rules of replication that the model of three replicas does not reach: what is kept no longer, what is told late, and
//! a leader that has lost what was committed.
#![allow(clippy::unwrap_used, reason = "a test that goes wrong must fail")]

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_core::cursors::Position;
use postrider_core::replica::{
    Assignment, EpochTable, Following, FollowingEffect, Leading, LeadingEffect, OpenAnswer,
    OpenStream, PartitionEpoch, Records,
};
use postrider_protocol::types::{EntryIndex, Incarnation, LeaderEpoch, NodeId, Offset};

const LAG_MAX: Duration = Duration::from_millis(500);
const EPOCH: LeaderEpoch = LeaderEpoch(3);
const RUN: Incarnation = Incarnation(1);

fn at(index: u64) -> Position {
    Position::new(EntryIndex(index), Offset(index))
}

fn nodes(numbers: &[u32]) -> BTreeSet<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

fn assignment(isr: &[u32]) -> Assignment {
    let replicas = nodes(&[1, 2, 3]);
    Assignment {
        index: EntryIndex(10),
        leader_epoch: EPOCH,
        partition_epoch: PartitionEpoch(7),
        incarnations: replicas.iter().map(|node| (*node, RUN)).collect(),
        replicas,
        isr: nodes(isr),
        min_isr: 2,
    }
}

/// Node 1 leads a log of nine entries of an earlier epoch, and its own first one.
fn leading(isr: &[u32]) -> Leading {
    let mut table = EpochTable::default();
    table.push(LeaderEpoch(1), at(0));
    let cursors = (EntryIndex(0), at(9), at(9));
    let mut leading =
        Leading::new((NodeId(1), RUN), assignment(isr), table, cursors, at(4), LAG_MAX);
    leading.epoch_started(at(9), at(10));
    leading.own_progress(at(10), at(10), &mut Vec::new());
    leading
}

fn open(end: u64, last_epoch: Option<u32>) -> OpenStream {
    OpenStream {
        incarnation: RUN,
        leader_epoch: EPOCH,
        stream: 1,
        log_end: at(end),
        last_epoch: last_epoch.map(LeaderEpoch),
        durable_end: at(end),
    }
}

fn following(table: EpochTable, end: u64, high_watermark: u64) -> (Following, OpenStream) {
    let mut following = Following::new(RUN, table, (at(end), at(end)), at(high_watermark));
    let mut effects = Vec::new();
    following.follow(NodeId(1), EPOCH, &mut effects);
    let [FollowingEffect::Open(open)] = effects[..] else { panic!("{effects:?}") };
    (following, open)
}

#[test]
fn a_follower_that_lacks_what_is_kept_no_longer_begins_at_a_snapshot() {
    let mut leading = leading(&[1, 2, 3]);
    leading.log_start_moved(EntryIndex(6), at(6));
    let (mut following, wanted) = following(EpochTable::default(), 0, 0);
    let mut effects = Vec::new();
    let answer = leading.open_stream(Duration::ZERO, NodeId(2), wanted, &mut Vec::new());
    assert_eq!(answer, OpenAnswer::NeedReset { log_start: EntryIndex(6) });
    following.answered(wanted.stream, answer, &mut effects);
    assert_eq!(effects, [FollowingEffect::Reset(EntryIndex(6))]);
    following.closed(wanted.stream, &mut effects);
    assert_eq!(effects.len(), 1, "it does not ask again before it is done");

    let mut table = EpochTable::default();
    table.push(LeaderEpoch(1), at(0));
    effects.clear();
    following.reset_done(table, at(8), &mut effects);
    let [FollowingEffect::Open(again)] = effects[..] else { panic!("{effects:?}") };
    let answer = leading.open_stream(Duration::ZERO, NodeId(2), again, &mut Vec::new());
    assert_eq!(answer, OpenAnswer::Ok { high_watermark: at(4) });
}

#[test]
fn members_that_lag_leave_but_never_below_the_minimum() {
    let mut leading = leading(&[1, 2, 3]);
    let mut effects = Vec::new();
    leading.tick(Duration::ZERO, &mut effects);
    leading.tick(LAG_MAX - Duration::from_millis(1), &mut effects);
    assert_eq!(effects, [], "they have their time");
    leading.tick(LAG_MAX, &mut effects);
    let [LeadingEffect::AlterIsr(change)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(change.isr.len(), 2, "both lag, and one may go");
    assert!(change.isr.contains(&NodeId(1)));
    effects.clear();
    leading.tick(4 * LAG_MAX, &mut effects);
    assert_eq!(effects, [], "one proposal at a time");
}

#[test]
fn publishes_are_refused_while_too_few_members_are_there() {
    let mut leading = leading(&[1, 2]);
    assert!(!leading.has_enough_replicas());
    leading.open_stream(Duration::ZERO, NodeId(2), open(9, Some(1)), &mut Vec::new());
    assert!(leading.has_enough_replicas());
    leading.stream_closed(NodeId(2), 0);
    assert!(leading.has_enough_replicas(), "that was an older stream");
    leading.stream_closed(NodeId(2), 1);
    assert!(!leading.has_enough_replicas());
}

#[test]
fn what_is_told_late_changes_nothing() {
    let mut leading = leading(&[1, 2]);
    let mut effects = Vec::new();
    let older = Assignment { partition_epoch: PartitionEpoch(6), ..assignment(&[1, 2, 3]) };
    leading.assigned(older, &mut effects);
    assert_eq!(leading.maximal_isr(), nodes(&[1, 2]));
    leading.open_stream(Duration::ZERO, NodeId(2), open(9, Some(1)), &mut effects);
    let ends = (at(10), EntryIndex(0));
    for of in [(Incarnation(0), EPOCH, 1), (RUN, LeaderEpoch(2), 1), (RUN, EPOCH, 0)] {
        leading.acked(Duration::ZERO, NodeId(2), of, ends, &mut effects);
    }
    let beyond = (at(11), EntryIndex(0));
    leading.acked(Duration::ZERO, NodeId(2), (RUN, EPOCH, 1), beyond, &mut effects);
    assert_eq!((effects.len(), leading.high_watermark()), (0, at(4)));
    leading.acked(Duration::ZERO, NodeId(2), (RUN, EPOCH, 1), ends, &mut effects);
    assert_eq!(effects, [LeadingEffect::HighWatermark(at(10))]);
    assert!(leading.is_established());
}

#[test]
fn a_follower_that_is_to_cut_what_is_committed_stops() {
    let mut table = EpochTable::default();
    table.push(LeaderEpoch(1), at(0));
    let (mut following, wanted) = following(table, 9, 5);
    let mut effects = Vec::new();
    let answer = OpenAnswer::Diverged { epoch: LeaderEpoch(1), end: at(3) };
    following.answered(wanted.stream, answer, &mut effects);
    assert_eq!(effects, [FollowingEffect::Quarantine(at(3))]);
    effects.clear();
    let records = Records {
        leader_epoch: EPOCH,
        stream: wanted.stream,
        start: at(9),
        end: at(10),
        epochs: vec![(EPOCH, at(9))],
        high_watermark: at(10),
    };
    following.records(&records, &mut effects);
    following.follow(NodeId(2), LeaderEpoch(4), &mut effects);
    assert_eq!((effects.len(), following.log_end()), (0, at(9)), "whoever leads: people decide");
}

#[test]
fn records_that_do_not_continue_the_log_have_the_stream_opened_again() {
    let mut table = EpochTable::default();
    table.push(LeaderEpoch(1), at(0));
    let (mut following, wanted) = following(table, 9, 5);
    let mut effects = Vec::new();
    let answer = OpenAnswer::Ok { high_watermark: at(5) };
    following.answered(wanted.stream, answer, &mut effects);
    assert!(following.is_streaming());
    effects.clear();
    let records = |start, epochs| Records {
        leader_epoch: EPOCH,
        stream: wanted.stream,
        start: at(start),
        end: at(start + 1),
        epochs,
        high_watermark: at(5),
    };
    // An epoch that does not rise is as wrong as a hole.
    for wrong in [records(10, vec![(EPOCH, at(10))]), records(9, vec![(LeaderEpoch(1), at(9))])] {
        let mut one = following.clone();
        one.records(&wrong, &mut effects);
        assert!(matches!(effects[..], [FollowingEffect::Open(_)]), "{effects:?}");
        assert_eq!((one.log_end(), one.is_streaming()), (at(9), false));
        effects.clear();
    }
    following.records(&records(9, vec![(EPOCH, at(9))]), &mut effects);
    assert_eq!((effects, following.log_end()), (vec![FollowingEffect::Append], at(10)));
}
