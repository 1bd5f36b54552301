//! Owns runs: neighbouring messages that a queue message names together. Never judges a lease. Driven by
//! `queue` and `lease`, whose lists they are.
//!
//! In a list the offsets of runs rise and never overlap, so a message is named at most once: with two
//! attempts of a message at hand, a consumer names the later one.

use crate::{
    codec::{DecodeError, Reader, Wire, Writer},
    types::Offset,
};

use super::SettleProblem;

/// The most runs that one list may hold.
pub const RUNS_MAX: u32 = 1 << 16;

macro_rules! runs {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }
    )*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            pub struct $name {
                $($(#[$field_meta])* pub $field: $type,)*
            }

            impl $name {
                /// The offset after the last one.
                #[must_use]
                pub fn end(&self) -> Offset {
                    Offset(self.first.0.saturating_add(u64::from(self.count)))
                }

                /// How many messages these runs name.
                #[must_use]
                pub fn messages(runs: &[Self]) -> u64 {
                    runs.iter().fold(0, |sum, run| sum.saturating_add(u64::from(run.count)))
                }
            }

            impl Wire for $name {
                const BYTES_MIN: usize = 0usize$(.saturating_add(<$type as Wire>::BYTES_MIN))*;
                const LIST_MAX: u32 = RUNS_MAX;

                fn put(&self, out: &mut Writer<'_>) {
                    $(out.put(&self.$field);)*
                }

                fn take(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                    let run = Self { $($field: input.take()?,)* };
                    let ends = run.first.0.checked_add(u64::from(run.count)).is_some();
                    if run.count > 0 && ends { Ok(run) } else { Err(DecodeError::Invalid("run")) }
                }

                fn may_follow(&self, before: &Self) -> bool {
                    self.first >= before.end()
                }
            }
        )*
    };
}

runs! {
    /// Neighbouring messages that are leased.
    pub struct LeaseRun {
        /// The first one.
        pub first: Offset,
        /// How many, at least 1.
        pub count: u32,
        /// Which hand-out of each this is, from 1; counted since the leadership began.
        pub attempt: u32,
        /// How often each has failed.
        pub failures: u32,
    }

    /// Neighbouring messages that a consumer holds or held.
    pub struct AckRun {
        /// The first one.
        pub first: Offset,
        /// How many, at least 1.
        pub count: u32,
        /// The attempt in their lease.
        pub attempt: u32,
    }

    /// Neighbouring messages that a request did not settle or give back.
    pub struct SettleException {
        /// The first one.
        pub first: Offset,
        /// How many, at least 1.
        pub count: u32,
        /// Why.
        pub problem: SettleProblem,
    }
}

impl LeaseRun {
    /// What a consumer sends back of it.
    #[must_use]
    pub fn ack(&self) -> AckRun {
        AckRun { first: self.first, count: self.count, attempt: self.attempt }
    }
}
