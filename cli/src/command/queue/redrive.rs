//! `postrider queue redrive`: sends dead letters back, in steps. The broker sends each once and remembers which;
//! so this may be stopped at any time, and started again.

use std::time::Duration;

use postrider::{Admin, ErrorCode, Redrive, RedriveLettersReply};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::{code_of, describe};
use crate::args::queue::QueueRedrive;
use crate::connect::{admin_failure, queue_failure};
use crate::exit::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::{TableFormat, note, print};

/// Letters per step.
const STEP: u64 = 1_000;

/// How long the broker is left alone when as many letters are on their way as may be, or none is left to send.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is said how far this is.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// What was done so far.
#[derive(Default)]
struct Sums {
    sent: u64,
    sent_before: u64,
    passed: u64,
    homeless: u64,
    on_their_way: u64,
}

struct Run<'a> {
    admin: &'a Admin,
    options: &'a QueueRedrive,
    letters: String,
    redrive: Redrive,
    sums: Sums,
    began: Instant,
    told: Instant,
}

/// Sends letters until there are none, the count, or a signal.
pub(super) async fn run(admin: &Admin, options: &QueueRedrive) -> Outcome {
    let queue = describe(admin, &options.queue).await?;
    let letters = options.letters.clone().or(queue.policy.dead_letter).ok_or_else(|| {
        Failure::usage("the queue has no dead letter topic").next("name one with --letters")
    })?;
    let mut redrive =
        Redrive::new(&letters).source(&options.queue.name).source_subscription(&queue.name);
    if let Some(reason) = &options.reason {
        redrive = redrive.reason(reason);
    }
    if let Some(topic) = &options.to {
        redrive = redrive.target(topic);
    }
    if options.dry_run {
        redrive = redrive.dry_run();
    }
    let partitions = match admin.describe_topic(&letters).await {
        Ok(topic) => topic.partitions.len(),
        // It is created with the first letter.
        Err(error)
            if code_of(&error) == Some(ErrorCode::UnknownTopic) && options.letters.is_none() =>
        {
            0
        }
        Err(error) => return Err(admin_failure(&error, &letters)),
    };
    if partitions > 0 {
        let prepared = admin.prepare_redrive(&letters).await;
        prepared.map_err(|error| queue_failure(&error, &letters))?;
    }
    let now = Instant::now();
    let sums = Sums::default();
    let mut run = Run { admin, options, letters, redrive, sums, began: now, told: now };
    let mut interrupt = Interrupt::new()?;
    let stopped = tokio::select! {
        done = run.all(partitions) => { done?; false }
        () = interrupt.next() => true,
    };
    run.tell(stopped)
}

impl Run<'_> {
    async fn all(&mut self, partitions: usize) -> Outcome {
        for partition in 0..u32::try_from(partitions).unwrap_or(u32::MAX) {
            self.one(partition).await?;
        }
        Ok(())
    }

    /// One partition of the dead letter topic, until its letters are stored in their topics.
    async fn one(&mut self, partition: u32) -> Outcome {
        let mut from = 0;
        let waited = self.sums.on_their_way;
        loop {
            let left = self.options.count.map_or(u64::MAX, |count| count - self.sums.sent);
            // Where nothing is to be sent it is still asked how many are on their way.
            let ended = left == 0;
            let most = left.min(self.options.rate.unwrap_or(STEP)).clamp(1, STEP);
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            let asked = if ended {
                self.look(partition).await?
            } else {
                self.step(partition, from, most).await?
            };
            self.sums.on_their_way = waited + asked.on_their_way;
            if self.told.elapsed() >= TOLD_EVERY {
                self.told = Instant::now();
                note(format_args!(
                    "sent={} on_their_way={}",
                    self.sums.sent, self.sums.on_their_way
                ));
            }
            let all = ended || asked.next >= asked.end;
            if all && (asked.on_their_way == 0 || self.options.dry_run) {
                return Ok(());
            }
            if all || asked.sent == 0 && asked.next.0 == from {
                sleep(PAUSE).await;
            }
            from = asked.next.0;
            self.keep_rate().await;
        }
    }

    async fn step(&mut self, partition: u32, from: u64, most: u32) -> Outcome<RedriveLettersReply> {
        let step = self.admin.redrive(&self.redrive, partition, from, most).await;
        let step = step.map_err(|error| queue_failure(&error, &self.letters))?;
        self.sums.sent += u64::from(step.sent);
        self.sums.sent_before += u64::from(step.sent_before);
        self.sums.passed += u64::from(step.passed);
        self.sums.homeless += u64::from(step.homeless);
        Ok(step)
    }

    /// How many are on their way, and nothing else.
    async fn look(&self, partition: u32) -> Outcome<RedriveLettersReply> {
        let dry = self.redrive.clone().dry_run();
        let looked = self.admin.redrive(&dry, partition, u64::MAX, 1).await;
        looked.map_err(|error| queue_failure(&error, &self.letters))
    }

    async fn keep_rate(&self) {
        if let Some(rate) = self.options.rate.filter(|_| !self.options.dry_run) {
            let due = Duration::from_secs(1).mul_f64(self.sums.sent as f64 / rate as f64);
            sleep_until(self.began + due).await;
        }
    }

    fn tell(&self, stopped: bool) -> Outcome {
        let Sums { sent, sent_before, passed, homeless, on_their_way } = self.sums;
        let would = self.options.dry_run;
        let json = || {
            json!({
                "letters": self.letters,
                "dry_run": would,
                "sent": sent,
                "sent_before": sent_before,
                "passed": passed,
                "homeless": homeless,
                "on_their_way": on_their_way,
                "stopped": stopped,
            })
        };
        print(&match self.options.output {
            TableFormat::Table => {
                let sent_is = if would { "would be sent" } else { "sent" };
                format!(
                    "{:<16}{sent}\n{:<16}{sent_before}\n{:<16}{passed}\n{:<16}{homeless}\n{:<16}{on_their_way}\n",
                    format!("{sent_is}:"),
                    "sent before:",
                    "not meant:",
                    "no topic:",
                    "on their way:"
                )
            }
            TableFormat::Json => format!("{:#}\n", json()),
            TableFormat::Ndjson => format!("{}\n", json()),
        })?;
        if stopped {
            note(
                "stopped; what is on its way arrives, and the rest is sent when this is run again",
            );
        }
        Ok(())
    }
}
