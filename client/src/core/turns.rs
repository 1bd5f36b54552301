//! Owns whose turn it is among queues of different weight. Never sees a message. Driven by the priority consumer.
//!
//! Smooth weighted round robin among those that have something: each gains its weight, the richest goes and pays
//! what all gained together, so turns come in the share of the weights and spread out. (The algorithm is that of
//! nginx's upstream balancer, 2012.) Above it a floor: who had something and was passed over `floor` times goes
//! next, however light it is.

/// Turns among a fixed number of queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Turns {
    queues: Vec<Queue>,
    floor: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Queue {
    weight: u32,
    credit: i64,
    /// How often others went although it had something.
    passed: u32,
}

impl Turns {
    /// `floor` is at least 1.
    pub(crate) fn new(weights: impl IntoIterator<Item = u32>, floor: u32) -> Self {
        let queue = |weight| Queue { weight, credit: 0, passed: 0 };
        Self { queues: weights.into_iter().map(queue).collect(), floor }
    }

    /// Which of those that have something goes; none if none has.
    pub(crate) fn next(&mut self, has: impl Fn(usize) -> bool) -> Option<usize> {
        let mut gained = 0;
        for (at, queue) in self.queues.iter_mut().enumerate() {
            if has(at) {
                queue.credit += i64::from(queue.weight);
                gained += i64::from(queue.weight);
            } else {
                // Who has nothing saves nothing up, and is not passed over.
                (queue.credit, queue.passed) = (0, 0);
            }
        }
        let ready = || self.queues.iter().enumerate().filter(|(at, _)| has(*at));
        // The first of equals: the order in which they were named.
        let starved = ready()
            .filter(|(_, queue)| queue.passed >= self.floor)
            .max_by_key(|(at, queue)| (queue.passed, std::cmp::Reverse(*at)));
        let richest = || ready().max_by_key(|(at, queue)| (queue.credit, std::cmp::Reverse(*at)));
        let (next, _) = starved.or_else(richest)?;
        for (at, queue) in self.queues.iter_mut().enumerate() {
            if at == next {
                queue.credit -= gained;
                queue.passed = 0;
            } else if has(at) {
                queue.passed += 1;
            }
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(turns: &mut Turns, count: usize, has: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..count).map_while(|_| turns.next(&has)).collect()
    }

    #[test]
    fn turns_come_in_the_share_of_the_weights_and_spread_out() {
        let mut turns = Turns::new([5, 1, 1], 100);
        assert_eq!(run(&mut turns, 7, |_| true), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(run(&mut turns, 7, |_| true), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn who_has_nothing_is_passed_over_and_saves_nothing_up() {
        let mut turns = Turns::new([3, 1], 100);
        assert_eq!(run(&mut turns, 50, |at| at == 1), vec![1; 50]);
        let both = run(&mut turns, 8, |_| true);
        assert_eq!(
            both.iter().filter(|at| **at == 0).count(),
            6,
            "not more than its share: {both:?}"
        );
        assert_eq!(turns.next(|_| false), None);
    }

    #[test]
    fn the_floor_holds_however_light_a_queue_is() {
        let mut turns = Turns::new([1_000_000, 1, 1], 10);
        let went = run(&mut turns, 1_200, |_| true);
        for light in [1, 2] {
            let gaps: Vec<usize> =
                went.iter().enumerate().filter(|(_, at)| **at == light).map(|(n, _)| n).collect();
            assert!(gaps.windows(2).all(|two| two[1] - two[0] <= 12), "{gaps:?}");
        }
    }

    // Against a naive count: in any stretch where the same queues have something, each gets its share to
    // within one turn per queue.
    #[test]
    fn shares_are_exact_over_each_round_of_any_weights() {
        let mut random = 7_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..500 {
            let count = 1 + usize::try_from(next(6)).unwrap_or(0);
            let weights: Vec<u32> =
                (0..count).map(|_| 1 + u32::try_from(next(9)).unwrap_or(0)).collect();
            let round: u32 = weights.iter().sum();
            let mut turns = Turns::new(weights.iter().copied(), u32::MAX);
            for _ in 0..3 {
                let went = run(&mut turns, round as usize, |_| true);
                for (at, weight) in weights.iter().enumerate() {
                    let got = went.iter().filter(|one| **one == at).count();
                    assert_eq!(got, *weight as usize, "{weights:?}: {went:?}");
                }
            }
        }
    }
}
