//! Three replicas, an ideal controller, and every order of events within small bounds: the machines of `replica` step by
//! step, with an invariant after each step; and the bugs that this must find.
//!
//! Each set of bounds is explored whole. All begin with a leader whom everybody follows; messages arrive at once but for
//! those that `delays` holds up, metadata is learned whenever it comes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that goes wrong must fail and say why"
)]
#![allow(clippy::indexing_slicing, reason = "three replicas have three places")]

mod world;

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use world::{Action, Budget, Plant, World};

/// More than any of the bounds has.
const STATES_MAX: usize = 3_000_000;

struct Explored {
    states: usize,
    violation: Option<(String, Vec<Action>)>,
}

/// Breadth first, so that what is found is short.
fn explore(budget: Budget, plant: Option<Plant>) -> Explored {
    let first = World::new(budget, plant);
    let mut seen = BTreeSet::new();
    seen.insert(digest(&first));
    // (the state, the place of the one before in `paths`)
    let mut paths: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(first, 0)]);
    while let Some((world, at)) = queue.pop_front() {
        for action in world.actions() {
            let mut next = world.clone();
            let result = next.step(action);
            if let Err(violation) = result {
                let path = path_of(&paths, at, action);
                return Explored { states: seen.len(), violation: Some((violation, path)) };
            }
            if seen.insert(digest(&next)) {
                assert!(seen.len() < STATES_MAX, "the bounds are too large");
                paths.push((at, Some(action)));
                queue.push_back((next, paths.len() - 1));
            }
        }
    }
    Explored { states: seen.len(), violation: None }
}

fn digest(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

fn path_of(paths: &[(usize, Option<Action>)], mut at: usize, last: Action) -> Vec<Action> {
    let mut path = vec![last];
    while let (before, Some(action)) = paths[at] {
        path.push(action);
        at = before;
    }
    path.reverse();
    path
}

fn budgets() -> Vec<(&'static str, Budget)> {
    let none = Budget::default();
    vec![
        ("a smaller in-sync set", Budget { appends: 1, lags: 1, delays: 1, ..none }),
        ("a lost disk", Budget { appends: 1, lags: 1, wipes: 1, delays: 1, ..none }),
        ("a crash", Budget { appends: 1, crashes: 1, elections: 1, ..none }),
        ("two elections", Budget { appends: 1, elections: 2, fences: 2, ..none }),
        ("an election", Budget { appends: 2, elections: 1, fences: 1, ..none }),
        ("lost messages", Budget { appends: 1, lags: 1, delays: 2, losses: 1, ..none }),
        (
            "an election under way",
            Budget { appends: 1, lags: 1, delays: 1, elections: 1, fences: 1, ..none },
        ),
    ]
}

#[test]
fn every_order_of_events_keeps_what_is_committed() {
    for (name, budget) in budgets() {
        let explored = explore(budget, None);
        eprintln!("{name}: {} states", explored.states);
        assert!(explored.violation.is_none(), "{name}: {:#?}", explored.violation);
    }
}

#[test]
fn every_planted_bug_is_found() {
    for plant in Plant::ALL {
        let found = budgets().into_iter().find_map(|(name, budget)| {
            let explored = explore(budget, Some(plant));
            explored.violation.map(|(what, path)| (name, explored.states, what, path.len()))
        });
        eprintln!("{plant:?}: {found:?}");
        assert!(found.is_some(), "{plant:?} was not found");
    }
}
