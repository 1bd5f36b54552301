//! Owns the question who should read what: the sticky, balanced assignment. Never knows what is going on
//! with a partition beyond its claim. Driven by the group; a pure function of its arguments.
//!
//! Numbers of partitions differ by at most one. Among all assignments of which that is true it is one that
//! revokes the fewest partitions, and then moves the fewest. A static member that was gone for longer than its
//! session timeout gets back what it had, as far as the rest of it has to move anyway.

use std::cmp::Reverse;

use super::effect::MemberId;

/// What is to be considered about one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Claim {
    /// For whom it was meant until now.
    pub target: Option<MemberId>,
    /// That member reads it: to move it means to revoke it.
    pub is_held: bool,
    /// The member that had it before its instance id was away.
    pub former: Option<MemberId>,
}

/// One member while it is decided.
#[derive(Clone, Copy, Default)]
struct Share {
    held: usize,
    claimed: usize,
    quota: usize,
    /// How many it still gets.
    room: usize,
}

/// Who should read each partition. `members` rise; a target that is none of them counts as nobody.
///
/// # Panics
/// If `members` are not in rising order.
#[must_use]
pub fn assign(members: &[MemberId], claims: &[Claim]) -> Vec<Option<MemberId>> {
    assert!(members.is_sorted_by(|a, b| a < b), "members come in their order");
    let place = |member: Option<MemberId>| member.and_then(|id| members.binary_search(&id).ok());
    let mut targets: Vec<Option<usize>> = claims.iter().map(|claim| place(claim.target)).collect();
    if members.is_empty() {
        return vec![None; claims.len()];
    }
    let mut shares = shares(members.len(), claims, &targets);
    let former_with_room = |claim: &Claim, shares: &[Share]| {
        place(claim.former).filter(|at| shares.get(*at).is_some_and(|share| share.room > 0))
    };

    // Who has too many gives up what costs no revocation first, then what a former holder waits for.
    let mut given_up: Vec<(usize, bool, bool, Reverse<usize>)> = Vec::new();
    for (partition, claim) in claims.iter().enumerate() {
        if let Some(Some(at)) = targets.get(partition)
            && shares.get(*at).is_some_and(|share| share.claimed > share.quota)
        {
            let unwanted = former_with_room(claim, &shares).is_none();
            given_up.push((*at, claim.is_held, unwanted, Reverse(partition)));
        }
    }
    given_up.sort_unstable();
    for (at, _, _, Reverse(partition)) in given_up {
        if let (Some(share), Some(target)) = (shares.get_mut(at), targets.get_mut(partition))
            && share.claimed > share.quota
        {
            share.claimed -= 1;
            *target = None;
        }
    }

    // What is free goes to its former holder, the rest round the members that have room.
    for (claim, target) in claims.iter().zip(&mut targets) {
        if target.is_none()
            && let Some(at) = former_with_room(claim, &shares)
            && let Some(share) = shares.get_mut(at)
        {
            share.room -= 1;
            *target = Some(at);
        }
    }
    let mut next = 0;
    for target in targets.iter_mut().filter(|target| target.is_none()) {
        *target = take_room(&mut shares, &mut next);
    }
    targets.into_iter().map(|at| at.and_then(|at| members.get(at).copied())).collect()
}

/// How many partitions each member gets: those that hold more than the others get the ones that are over.
fn shares(members: usize, claims: &[Claim], targets: &[Option<usize>]) -> Vec<Share> {
    let mut shares = vec![Share::default(); members];
    for (claim, target) in claims.iter().zip(targets) {
        if let Some(share) = target.and_then(|at| shares.get_mut(at)) {
            share.claimed += 1;
            share.held += usize::from(claim.is_held);
        }
    }
    let (floor, over) = (claims.len() / members, claims.len() % members);
    // One more is worth something to whoever would else have to give up one that it holds, or has.
    let worth = |share: &Share| (share.held > floor, share.claimed > floor, share.held);
    let mut order: Vec<usize> = (0..members).collect();
    order.sort_by_key(|at| shares.get(*at).map(|share| Reverse(worth(share))));
    for (rank, at) in order.into_iter().enumerate() {
        if let Some(share) = shares.get_mut(at) {
            share.quota = floor + usize::from(rank < over);
            share.room = share.quota.saturating_sub(share.claimed);
        }
    }
    shares
}

/// The next member with room, going round.
fn take_room(shares: &mut [Share], next: &mut usize) -> Option<usize> {
    for _ in 0..shares.len() {
        let at = *next % shares.len();
        *next = at + 1;
        if let Some(share) = shares.get_mut(at)
            && share.room > 0
        {
            share.room -= 1;
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(count: u64) -> Vec<MemberId> {
        (0..count).map(MemberId).collect()
    }

    fn counts(members: &[MemberId], targets: &[Option<MemberId>]) -> Vec<usize> {
        members
            .iter()
            .map(|member| targets.iter().filter(|target| **target == Some(*member)).count())
            .collect()
    }

    /// Revocations and moves of going from the claims to `targets`.
    fn cost(
        members: &[MemberId],
        claims: &[Claim],
        targets: &[Option<MemberId>],
    ) -> (usize, usize) {
        let moved = claims.iter().zip(targets).filter(|(claim, target)| claim.target != **target);
        let moved: Vec<_> = moved.collect();
        let present = |claim: &Claim| claim.target.is_some_and(|target| members.contains(&target));
        (moved.iter().filter(|(claim, _)| claim.is_held && present(claim)).count(), moved.len())
    }

    fn is_balanced(counts: &[usize]) -> bool {
        counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1
    }

    /// The cheapest of all balanced assignments, by trying them.
    fn cheapest(members: &[MemberId], claims: &[Claim]) -> (usize, usize) {
        let choices = members.len().pow(u32::try_from(claims.len()).unwrap());
        let mut best = (usize::MAX, usize::MAX);
        for mut choice in 0..choices {
            let mut targets = Vec::with_capacity(claims.len());
            for _ in claims {
                targets.push(Some(members[choice % members.len()]));
                choice /= members.len();
            }
            if is_balanced(&counts(members, &targets)) {
                best = best.min(cost(members, claims, &targets));
            }
        }
        best
    }

    fn claim() -> impl Strategy<Value = Claim> {
        (prop::option::of(0_u64..6), any::<bool>(), prop::option::of(0_u64..6)).prop_map(
            |(target, is_held, former)| Claim {
                target: target.map(MemberId),
                is_held: is_held && target.is_some(),
                former: former.map(MemberId),
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Targets and formers above the member count have left.
        #[test]
        fn it_is_balanced_and_no_balanced_assignment_is_cheaper(
            count in 1_u64..5,
            claims in prop::collection::vec(claim(), 0..7),
        ) {
            let members = members(count);
            let targets = assign(&members, &claims);
            prop_assert!(targets.iter().all(Option::is_some));
            prop_assert!(is_balanced(&counts(&members, &targets)));
            prop_assert_eq!(cost(&members, &claims, &targets), cheapest(&members, &claims));
        }

        #[test]
        fn an_assignment_that_stands_is_kept(
            count in 1_u64..40,
            partitions in 0_usize..200,
        ) {
            let members = members(count);
            let first = assign(&members, &vec![Claim::default(); partitions]);
            let claims: Vec<Claim> = first
                .iter()
                .map(|target| Claim { target: *target, is_held: true, former: None })
                .collect();
            prop_assert_eq!(assign(&members, &claims), first);
        }
    }

    #[test]
    fn the_odd_partition_goes_to_whoever_would_have_to_give_one_up() {
        // Two for member 0, held by nobody yet; one held by member 1; three others have none.
        let claim = |target: Option<u64>, is_held| Claim {
            target: target.map(MemberId),
            is_held,
            former: None,
        };
        let claims = [
            claim(Some(0), false),
            claim(None, false),
            claim(Some(0), false),
            claim(Some(1), true),
            claim(None, false),
        ];
        let targets = assign(&members(4), &claims);
        let kept = [targets[0], targets[2], targets[3]].map(|target| target.unwrap().0);
        assert_eq!(kept, [0, 0, 1], "nothing moves");
    }

    #[test]
    fn nobody_is_given_a_partition_when_nobody_is_there() {
        let claim = Claim { target: Some(MemberId(4)), is_held: true, former: None };
        assert_eq!(assign(&[], &[claim]), [None]);
    }

    #[test]
    fn an_instance_that_was_away_too_long_gets_its_old_partitions_back() {
        // Member 9 is the instance that had partitions 1 and 4; 0 and 1 took three each.
        let held = |member, former: Option<u64>| Claim {
            target: Some(MemberId(member)),
            is_held: true,
            former: former.map(MemberId),
        };
        let claims = [
            held(0, None),
            held(0, Some(9)),
            held(0, None),
            held(1, None),
            held(1, Some(9)),
            held(1, None),
        ];
        let targets = assign(&[MemberId(0), MemberId(1), MemberId(9)], &claims);
        assert_eq!((targets[1], targets[4]), (Some(MemberId(9)), Some(MemberId(9))));
    }

    #[test]
    fn neighbouring_partitions_go_to_different_members() {
        let targets = assign(&members(3), &[Claim::default(); 6]);
        let ids: Vec<u64> = targets.iter().map(|target| target.unwrap().0).collect();
        assert_eq!(ids, [0, 1, 2, 0, 1, 2]);
    }
}
