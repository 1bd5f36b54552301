//! Owns what a run does with a consumer group: who is a member, who is stopped for a while, and the judgement at
//! the end. Driven by the world.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{STALL_MAX, World};
use crate::sim::client::{Client, Keys};
use crate::sim::member::{Around, roll_member};

/// Once the faults have stopped, every partition has a member that reads it within this time: sessions end, a
/// drain ends, a refused owner is asked for again.
const OWNED_WITHIN: Duration = Duration::from_secs(5);

impl World {
    /// A process with members, which publishes too.
    pub(super) fn new_group_client(&mut self, number: u64) -> Client {
        let mut client = Client::new(format!("client-{number}"), self.dice.next_u64());
        let (partitions, who) = (self.topics[0].partitions, self.next_publisher);
        client.publish(self.now, 0, partitions, who, Keys::Routed, &mut self.dice);
        self.next_publisher += 1;
        for at in 0..=self.dice.below(2) {
            let plan = roll_member(format!("instance-{number}-{at}"), &mut self.dice);
            client.join_group(format!("member {at} of client-{number}"), plan, self.now);
        }
        client
    }

    /// A process stands still, as after SIGSTOP, now and then for longer than its sessions last.
    pub(super) fn pause_somebody(&mut self) {
        if self.clients.is_empty() || !self.dice.one_in(400) {
            return;
        }
        let at = self.dice.index(self.clients.len());
        let client = &mut self.clients[at];
        client.paused_until = self.now + Duration::from_millis(self.dice.below(2_000));
        self.trace.say(self.now, format_args!("{} stands still", client.name));
    }

    /// One millisecond of the members of a client.
    pub(super) fn run_members(&mut self, at: usize) {
        let Some(tap) = &mut self.server.groups else { return };
        let mut around = Around {
            now: self.now,
            link: None,
            churn: self.chaos,
            partitions: self.topics[0].partitions,
            oracle: &mut self.oracle,
            groups: &mut tap.oracle,
            dice: &mut self.dice,
        };
        self.clients[at].run_members(&mut around);
    }

    /// Nobody comes or goes: every partition has one owner within the bound, shared evenly; then everything is
    /// processed, and confirmed as acknowledged.
    pub(super) fn judge_group(&mut self) {
        self.clients.iter_mut().for_each(|client| client.paused_until = self.now);
        let end = self.now + OWNED_WITHIN;
        while self.oracle.violations().is_empty() && !self.is_shared_out() {
            self.millisecond();
            if self.now > end {
                for client in &self.clients {
                    let what = client.describe();
                    self.oracle.violate(format!("D3: not shared out in time: {what}"));
                }
            }
        }
        self.trace.say(self.now, format_args!("the group is stable"));
        let (mut end, mut furthest) = (self.now + STALL_MAX, 0);
        let wanted = self.clients.last().map(|judge| judge.readers[0].end.clone());
        let wanted = wanted.unwrap_or_default();
        while self.oracle.violations().is_empty() {
            self.millisecond();
            let Some(tap) = &self.server.groups else { return };
            let done = |(partition, end): (&u32, &u64)| {
                tap.oracle.frontier(*partition) >= *end && tap.oracle.confirmed(*partition) >= *end
            };
            if wanted.iter().all(done) {
                break;
            }
            let sum: u64 = wanted.keys().map(|partition| tap.oracle.confirmed(*partition)).sum();
            if sum > furthest {
                (end, furthest) = (self.now + STALL_MAX, sum);
            }
            if self.now > end {
                self.oracle.violate(format!("B1: not processed up to {wanted:?}"));
                for client in &self.clients {
                    self.oracle.violate(format!("not processed: {}", client.describe()));
                }
            }
        }
    }

    fn is_shared_out(&self) -> bool {
        let members = || self.clients.iter().flat_map(|client| &client.members);
        let mut holders: BTreeMap<u32, usize> = BTreeMap::new();
        let mut shares = Vec::new();
        for member in members() {
            if !member.is_member() {
                return false;
            }
            member.holds().for_each(|partition| *holders.entry(partition).or_default() += 1);
            shares.push(member.holds().count());
        }
        let spread = shares.iter().max().unwrap_or(&0) - shares.iter().min().unwrap_or(&0);
        let partitions = self.topics[0].partitions;
        spread <= 1 && (0..partitions).all(|partition| holders.get(&partition) == Some(&1))
    }
}
