//! Owns bugs that a group might have, put between it and its checker. Never present in an ordinary history.

use postrider_core::group::{Effect, FenceReason};
use postrider_protocol::types::{Offset, PartitionId};

use crate::judge::Judge;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Planted {
    AssignsBeforeTheOwnerIsSet,
    AssignsAnOlderEpoch,
    SkipsAMessage,
    BeginsAnew,
    TellsTheWrongMember,
    RevokesWhatDoesNotMove,
    DoesNotWaitForTheDrain,
    DrainsNothing,
    ForgetsAPartition,
    FencesTheLiving,
    KeepsTheSilent,
    HidesWhatIsUnowned,
    ReportsTwice,
    AsksTwice,
}

impl Planted {
    pub(crate) const ALL: &[Self] = &[
        Self::AssignsBeforeTheOwnerIsSet,
        Self::AssignsAnOlderEpoch,
        Self::SkipsAMessage,
        Self::BeginsAnew,
        Self::TellsTheWrongMember,
        Self::RevokesWhatDoesNotMove,
        Self::DoesNotWaitForTheDrain,
        Self::DrainsNothing,
        Self::ForgetsAPartition,
        Self::FencesTheLiving,
        Self::KeepsTheSilent,
        Self::HidesWhatIsUnowned,
        Self::ReportsTwice,
        Self::AsksTwice,
    ];

    /// What the group would have said with the bug.
    pub(crate) fn spoil(self, judge: &Judge, effects: &mut Vec<Effect>) {
        let mut spoilt = Vec::new();
        for effect in effects.drain(..) {
            self.spoil_one(judge, effect, &mut spoilt);
        }
        if self == Self::RevokesWhatDoesNotMove
            && spoilt.iter().any(|effect| matches!(effect, Effect::SetOwner { .. }))
            && let Some((partition, grant)) = judge.unrevoked().next()
        {
            spoilt.push(Effect::Revoke {
                member: grant.member,
                partition: PartitionId(u32::try_from(partition).unwrap()),
                owner_epoch: grant.epoch,
                deadline: judge.now + judge.options.drain_timeout,
            });
        }
        if self == Self::FencesTheLiving
            && let Some(member) = judge.connected().next()
            && !spoilt.is_empty()
        {
            spoilt.push(Effect::Fenced { member, reason: FenceReason::TimedOut });
        }
        *effects = spoilt;
    }

    fn spoil_one(self, judge: &Judge, effect: Effect, out: &mut Vec<Effect>) {
        match (self, effect) {
            (Self::AssignsBeforeTheOwnerIsSet, Effect::SetOwner { partition, member }) => {
                let (owner_epoch, next) = (1, Offset(0));
                out.extend([effect, Effect::Assign { member, partition, owner_epoch, next }]);
            }
            (
                Self::AssignsAnOlderEpoch,
                Effect::Assign { member, partition, owner_epoch, next },
            ) => {
                let owner_epoch = owner_epoch - 1;
                out.push(Effect::Assign { member, partition, owner_epoch, next });
            }
            (Self::SkipsAMessage, Effect::Assign { member, partition, owner_epoch, next }) => {
                let next = Offset(next.0 + 1);
                out.push(Effect::Assign { member, partition, owner_epoch, next });
            }
            (Self::BeginsAnew, Effect::Assign { member, partition, owner_epoch, .. }) => {
                let next = Offset(0);
                out.push(Effect::Assign { member, partition, owner_epoch, next });
            }
            (
                Self::TellsTheWrongMember,
                Effect::Assign { member, partition, owner_epoch, next },
            ) => {
                let member = judge.connected().find(|other| *other != member).unwrap_or(member);
                out.push(Effect::Assign { member, partition, owner_epoch, next });
            }
            (Self::DoesNotWaitForTheDrain, Effect::Revoke { partition, member, .. }) => {
                let other = judge.connected().find(|other| *other != member).unwrap_or(member);
                out.extend([effect, Effect::SetOwner { partition, member: other }]);
            }
            (Self::DrainsNothing, Effect::Revoke { member, partition, owner_epoch, .. }) => {
                out.push(Effect::Lost { member, partition, owner_epoch });
            }
            (Self::ForgetsAPartition, Effect::SetOwner { partition: PartitionId(0), .. })
            | (Self::KeepsTheSilent, Effect::Fenced { reason: FenceReason::TimedOut, .. })
            | (Self::HidesWhatIsUnowned, Effect::Unowned { .. }) => {}
            (Self::ReportsTwice, Effect::Unowned { .. })
            | (Self::AsksTwice, Effect::SetOwner { .. }) => out.extend([effect, effect]),
            (_, effect) => out.push(effect),
        }
    }
}
