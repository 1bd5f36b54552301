//! Owns the rule who leads a partition next. Never changes the in-sync set. Driven by the controller.
//!
//! A member that is not doubtful holds all that was committed, so among those a wrong answer costs only
//! time. For a doubtful one the answers must be true, of the members' present incarnations.

use postrider_protocol::types::{LeaderEpoch, NodeId};

use crate::cursors::Position;

/// What a candidate said about its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The epoch of its last entry.
    pub last_epoch: LeaderEpoch,
    /// What it has durably.
    pub durable_end: Position,
}

/// A member of the in-sync set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// Whether the controller has cut it off.
    pub fenced: bool,
    /// Whether its recovery may have cut what was acknowledged.
    pub doubtful: bool,
    /// Its answer, if one came.
    pub probe: Option<Probe>,
}

/// The next leader: of the members that are neither fenced nor doubtful the one with the highest end; on a
/// tie the first. A doubtful one counts only after every member answered and none of them, fenced ones
/// included, has more. `in_sync` holds the in-sync set, all of it and nobody else, in the order of the
/// replica list.
#[must_use]
pub fn elect(in_sync: &[Candidate]) -> Option<NodeId> {
    let all_answered = in_sync.iter().all(|member| member.probe.is_some());
    let highest = in_sync.iter().map(rank).max().flatten();
    let mut best: Option<&Candidate> = None;
    for member in in_sync {
        let trusted = !member.doubtful || (all_answered && rank(member) == highest);
        if member.fenced || !trusted {
            continue;
        }
        if best.is_none_or(|best| rank(member) > rank(best)) {
            best = Some(member);
        }
    }
    best.map(|member| member.node)
}

fn rank(member: &Candidate) -> Option<(LeaderEpoch, Position)> {
    member.probe.map(|probe| (probe.last_epoch, probe.durable_end))
}

#[cfg(test)]
mod tests {
    use postrider_protocol::types::{EntryIndex, Offset};

    use super::*;

    fn member(node: u32, said: Option<(u32, u64)>) -> Candidate {
        let probe = said.map(|(epoch, end)| Probe {
            last_epoch: LeaderEpoch(epoch),
            durable_end: Position::new(EntryIndex(end), Offset(end)),
        });
        Candidate { node: NodeId(node), fenced: false, doubtful: false, probe }
    }

    #[test]
    fn the_newest_epoch_wins_over_the_longest_log_and_a_tie_goes_to_the_first() {
        let in_sync = [member(1, Some((2, 90))), member(2, Some((3, 5))), member(3, Some((3, 5)))];
        assert_eq!(elect(&in_sync), Some(NodeId(2)));
    }

    #[test]
    fn a_doubtful_member_leads_only_after_every_member_answered() {
        let mut in_sync = [member(1, Some((3, 9))), member(2, None)];
        in_sync[0].doubtful = true;
        in_sync[1].fenced = true;
        assert_eq!(elect(&in_sync), None);
        in_sync[1].probe = member(2, Some((3, 9))).probe;
        assert_eq!(elect(&in_sync), Some(NodeId(1)));
    }

    #[test]
    fn a_doubtful_member_never_leads_while_a_fenced_one_has_more() {
        let mut in_sync = [member(1, Some((3, 8))), member(2, Some((3, 9)))];
        in_sync[0].doubtful = true;
        in_sync[1].fenced = true;
        assert_eq!(elect(&in_sync), None);
    }

    #[test]
    fn nobody_unfenced_means_no_leader() {
        let mut in_sync = [member(1, Some((3, 9)))];
        in_sync[0].fenced = true;
        assert_eq!(elect(&in_sync), None);
    }
}
