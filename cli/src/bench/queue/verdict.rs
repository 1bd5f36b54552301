//! Owns what `bench queue` makes of its ledger: the counts of the result, and the failure if a message was
//! lost or handed out wrongly. Asks the broker about the queue only to say why nothing came.

use std::time::Duration;

use postrider::Client;
use serde_json::{Value, json};

use super::ledger::{Delivered, Ledger, Violation, Violations};
use super::worker::Tally;
use crate::bench::args::QueueOptions;
use crate::bench::load::Sent;
use crate::bench::stamp::Number;
use crate::command::show_queue::Sums;
use crate::exit::{Exit, Failure};
use crate::output::note;

/// How the test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Everything that was published is confirmed.
    WorkedOff,
    /// Messages waited, and nothing moved for so long.
    Stuck { after: Duration, published: u64, confirmed: u64 },
}

/// The judgement.
pub(super) struct Verdict {
    end: End,
    tally: Tally,
    redelivered: u64,
    violations: Violations,
    missing: u64,
    missing_examples: Vec<Number>,
}

impl Verdict {
    pub(super) fn of(ledger: &mut Ledger, sent: &[Sent], end: End, tally: Tally) -> Self {
        let all: Vec<(u32, u64)> = sent.iter().map(|one| (one.producer, one.all)).collect();
        if end == End::WorkedOff {
            ledger.judge_sent(&all);
        }
        let (missing, missing_examples) = ledger.missing(&all);
        Self {
            end,
            tally,
            redelivered: ledger.redelivered(),
            violations: ledger.violations().clone(),
            missing,
            missing_examples,
        }
    }

    /// The counts for the result.
    pub(super) fn to_json(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("redelivered", json!(self.redelivered)),
            ("leases_lost", json!(self.tally.leases_lost)),
            ("leftovers", json!(self.tally.leftovers)),
            ("unconfirmed", json!(self.missing)),
            ("after_ack", json!(self.violations.after_ack)),
            ("stored_twice", json!(self.violations.doubled)),
            ("out_of_order", json!(self.violations.out_of_order)),
            ("unsent", json!(self.violations.unsent)),
        ]
    }

    /// What is wrong, if anything is.
    pub(super) async fn failure(
        &self,
        control: &Client,
        options: &QueueOptions,
    ) -> Option<Failure> {
        for violation in &self.violations.examples {
            note(format_args!("violation: {}", told(violation)));
        }
        if !self.violations.is_empty() {
            return Some(self.violated());
        }
        let End::Stuck { after, published, confirmed } = self.end else { return None };
        let said = format!(
            "{published} messages are stored and {confirmed} acknowledgements confirmed, and nothing moved \
             for {after:?}"
        );
        let described = control.admin().describe_queue(super::queue_name(options)).await;
        let name = &options.target.topic;
        let Ok(queue) = described else {
            return Some(Failure::new(Exit::TimedOut, said).next(
                "the broker does not tell about the queue: look at its log, or allow more time with \
                 --timeout",
            ));
        };
        let sums = Sums::of(&queue);
        if sums.unsettled() > 0 {
            let said = format!(
                "{said}; the queue has ready={} leased={} delayed={} blocked={} dead_lettering={}",
                sums.ready, sums.leased, sums.delayed, sums.blocked, sums.dead_lettering
            );
            return Some(Failure::new(Exit::TimedOut, said).next(format!(
                "`postrider queue show {name}` shows who holds messages, `postrider queue why` what keeps one"
            )));
        }
        Some(self.lost(&sums))
    }

    fn violated(&self) -> Failure {
        let Violations { after_ack, doubled, out_of_order, unsent, .. } = &self.violations;
        Failure::new(
            Exit::VerificationFailed,
            format!(
                "verification failed: delivered after the confirmed acknowledgement: {after_ack}, stored twice: \
                 {doubled}, out of order: {out_of_order}, never sent: {unsent}"
            ),
        )
        .next("keep the data directory and the broker's log, and report it")
    }

    fn lost(&self, sums: &Sums) -> Failure {
        let examples: Vec<String> = self.missing_examples.iter().map(named).collect();
        let missing = match self.end {
            End::Stuck { published, confirmed, .. } => published.saturating_sub(confirmed),
            End::WorkedOff => self.missing,
        };
        let first = match examples.is_empty() {
            true => String::new(),
            false => format!(", the first: {}", examples.join(", ")),
        };
        Failure::new(
            Exit::VerificationFailed,
            format!(
                "verification failed: {missing} messages are lost{first}; the queue has settled everything \
                 (acked={} dead_lettered={} expired={} evicted={})",
                sums.acked, sums.dead_lettered, sums.expired, sums.evicted
            ),
        )
        .next("look whether something else worked on the queue, or purged it; else report it")
    }
}

fn named(number: &Number) -> String {
    format!("message {} of producer {}", number.sequence, number.producer)
}

fn told(violation: &Violation) -> String {
    let handed_out = |delivered: &Delivered| {
        let Delivered { number, place, dispatch_index } = delivered;
        format!(
            "{} at {}/{}, handed out at index {dispatch_index}",
            named(number),
            place.partition,
            place.offset
        )
    };
    match violation {
        Violation::AfterAck { delivered, commit_index } => format!(
            "{}: its acknowledgement was stored below index {commit_index}",
            handed_out(delivered)
        ),
        Violation::Doubled { number, place } => format!(
            "{} is stored at {}/{} and at another place",
            named(number),
            place.partition,
            place.offset
        ),
        Violation::OutOfOrder { delivered, after } => {
            format!("{}: message {after} of its key came before", handed_out(delivered))
        }
        Violation::Unsent { number } => format!("{} was never sent", named(number)),
    }
}
