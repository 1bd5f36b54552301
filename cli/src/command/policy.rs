//! Owns what the policy flags mean: a whole policy from the defaults, or from a queue's present one. Pure.
//! Used by `queue` and `subscription create`.

use std::time::Duration;

use postrider_protocol::message::QueuePolicy;

use crate::args::queue::{BreakerFlag, PolicyFlags};
use crate::exit::{Failure, Outcome};

/// The policy with what the flags name.
pub(crate) fn with_flags(policy: QueuePolicy, flags: &PolicyFlags) -> Outcome<QueuePolicy> {
    let PolicyFlags {
        max_failures,
        dead_letter,
        lease,
        lease_max,
        backoff_min,
        backoff_max,
        unsettled_max,
        key_order,
        single_active,
        breaker,
    } = flags;
    let short = |flag, value: Option<Duration>, present| match value {
        None => Ok(present),
        Some(value) => u32::try_from(value.as_millis()).map_err(|_err| {
            Failure::usage(format!("{flag} is above 49 days")).next("name a shorter time")
        }),
    };
    let policy = QueuePolicy {
        max_failures: max_failures.unwrap_or(policy.max_failures),
        dead_letter: dead_letter.clone().or(policy.dead_letter),
        lease_ms: short("--lease", *lease, policy.lease_ms)?,
        lease_max_ms: lease_max
            .map_or(policy.lease_max_ms, |max| u64::try_from(max.as_millis()).unwrap_or(u64::MAX)),
        backoff_min_ms: short("--backoff-min", *backoff_min, policy.backoff_min_ms)?,
        backoff_max_ms: short("--backoff-max", *backoff_max, policy.backoff_max_ms)?,
        unsettled_max: unsettled_max.unwrap_or(policy.unsettled_max),
        key_order: key_order.unwrap_or(policy.key_order),
        single_active: single_active.unwrap_or(policy.single_active),
        paused: policy.paused,
        breaker: breaker.map_or(policy.breaker, BreakerFlag::value),
    };
    if policy.backoff_min_ms > policy.backoff_max_ms {
        return Err(Failure::usage(format!(
            "--backoff-min ({} ms) is above --backoff-max ({} ms)",
            policy.backoff_min_ms, policy.backoff_max_ms
        ))
        .next("name both, the shorter one as --backoff-min"));
    }
    Ok(policy)
}

/// Whether any flag is named.
pub(crate) fn is_named(flags: &PolicyFlags) -> bool {
    let PolicyFlags {
        max_failures,
        dead_letter,
        lease,
        lease_max,
        backoff_min,
        backoff_max,
        unsettled_max,
        key_order,
        single_active,
        breaker,
    } = flags;
    max_failures.is_some()
        || dead_letter.is_some()
        || lease.is_some()
        || lease_max.is_some()
        || backoff_min.is_some()
        || backoff_max.is_some()
        || unsettled_max.is_some()
        || key_order.is_some()
        || single_active.is_some()
        || breaker.is_some()
}

#[cfg(test)]
mod tests {
    use postrider_protocol::message::Breaker;

    use super::*;

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let flags = PolicyFlags {
            max_failures: Some(3),
            lease: Some(Duration::from_secs(5)),
            ..PolicyFlags::default()
        };
        let present = QueuePolicy { paused: true, key_order: true, ..QueuePolicy::default() };
        let policy = with_flags(present.clone(), &flags).expect("valid");
        assert_eq!(policy, QueuePolicy { max_failures: 3, lease_ms: 5_000, ..present });
        assert!(is_named(&flags) && !is_named(&PolicyFlags::default()));
    }

    #[test]
    fn a_breaker_is_set_and_switched_off() {
        let breaker = Breaker { failure_percent: 50, window: 100, pause_ms: 30_000 };
        let flags = |text| PolicyFlags {
            breaker: Some(BreakerFlag::parse(text).expect("a breaker")),
            ..PolicyFlags::default()
        };
        let policy = with_flags(QueuePolicy::default(), &flags("50/100/30s")).expect("valid");
        assert_eq!(policy.breaker, Some(breaker));
        let policy = with_flags(policy, &PolicyFlags::default()).expect("valid");
        assert_eq!(policy.breaker, Some(breaker), "what is not named stays");
        let policy = with_flags(policy, &flags("off")).expect("valid");
        assert_eq!(policy.breaker, None);
        for bad in ["", "50", "50/100", "50/100/30", "many/100/30s", "50/100/100000h"] {
            assert!(BreakerFlag::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_that_do_not_fit_are_refused() {
        let long = Some(Duration::from_secs(60 * 86_400));
        let flags = PolicyFlags { lease: long, ..PolicyFlags::default() };
        assert!(with_flags(QueuePolicy::default(), &flags).is_err());
        let second = Some(Duration::from_secs(1));
        let flags = PolicyFlags {
            backoff_min: Some(Duration::from_secs(2)),
            backoff_max: second,
            ..PolicyFlags::default()
        };
        assert!(with_flags(QueuePolicy::default(), &flags).is_err());
    }
}
