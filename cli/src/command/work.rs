//! `postrider work`: runs a command for each message of a queue.
//!
//! A message stays with its command until that ends; the client renews its lease meanwhile. Exit code 0
//! acknowledges it, any other end gives it back as failed. `child` owns one run of the command, `source` where
//! messages come from.

mod child;
mod source;

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use postrider::{Client, Delivery, SettleError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::child::{End, Job};
use self::source::{Next, Source, attach};
use super::queue::describe;
use super::show_queue::Sums;
use crate::args::queue::{QueueName, WorkOptions};
use crate::connect::{block_on, close, connect, consume_failure, settle_failure};
use crate::exit::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::note;

/// Answers of the broker that may be awaited while commands run on. At the bound no message is taken.
const SETTLING_MAX: usize = 1_024;
/// How long nothing must come before the broker is asked whether the queue is empty; doubles up to the second.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long the broker may take to answer what is settled, and what is given back, at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Works until the count, an empty queue, or a signal.
pub(crate) fn run(options: &WorkOptions) -> Outcome {
    block_on(1, async {
        let mut interrupt = Interrupt::new()?;
        let client = connect(&options.client).await?;
        let outcome = match attach(&client, options).await {
            Ok(source) => Work::new(&client, source, options).run(&mut interrupt).await,
            Err(failure) => Err(failure),
        };
        close(&client).await;
        outcome
    })
}

/// All queues, for people.
fn names(options: &WorkOptions) -> String {
    let names: Vec<&str> = options.queues.iter().map(|queue| queue.name.as_str()).collect();
    names.join(", ")
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    acked: u64,
    nacked: u64,
    lost: u64,
}

/// What a message was settled as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Acked,
    Nacked,
    Released,
}

type Ran = (Delivery<Bytes>, std::io::Result<End>);
type Answered = (Kind, Result<(), SettleError>);

struct Work<'a> {
    client: &'a Client,
    source: Source,
    options: &'a WorkOptions,
    /// Bounded by `--concurrency`.
    running: JoinSet<Ran>,
    /// Bounded by [`SETTLING_MAX`] and the commands that run.
    settling: FuturesUnordered<Pin<Box<dyn Future<Output = Answered>>>>,
    kill: watch::Sender<bool>,
    /// Messages that may still be taken.
    left: u64,
    tally: Tally,
    /// When to ask whether the queue is empty, and how long to wait until the next time.
    look_at: Instant,
    look_after: Duration,
}

impl<'a> Work<'a> {
    fn new(client: &'a Client, source: Source, options: &'a WorkOptions) -> Self {
        Self {
            client,
            source,
            options,
            running: JoinSet::new(),
            settling: FuturesUnordered::new(),
            kill: watch::Sender::new(false),
            left: options.count.unwrap_or(u64::MAX),
            tally: Tally::default(),
            look_at: Instant::now() + LOOK_FIRST,
            look_after: LOOK_FIRST,
        }
    }

    async fn run(mut self, interrupt: &mut Interrupt) -> Outcome {
        let worked = self.work(interrupt).await;
        let finished = self.finish(interrupt).await;
        // What was prefetched and not begun goes back.
        let drained = self.source.drain(DRAIN_MAX).await;
        let Tally { acked, nacked, lost } = self.tally;
        note(format_args!("acked={acked} nacked={nacked} lost={lost}"));
        worked.and(finished)?;
        if drained.is_clean() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "{} messages could not be given back within {DRAIN_MAX:?}",
            drained.unsettled
        ))
        .next("nothing is lost: they are delivered again when their leases end"))
    }
    /// Takes messages until the count, an empty queue, a signal or a failure.
    async fn work(&mut self, interrupt: &mut Interrupt) -> Outcome {
        let concurrency = usize::try_from(self.options.concurrency).unwrap_or(usize::MAX);
        while self.left > 0 || !self.is_idle() {
            let has_room = self.left > 0
                && self.running.len() < concurrency
                && self.settling.len() < SETTLING_MAX;
            let looks = self.options.exit_when_empty && self.is_idle();
            tokio::select! {
                biased;
                () = interrupt.next() => return Ok(()),
                Some(ran) = self.running.join_next() => self.ran(ran)?,
                Some(answered) = self.settling.next() => self.answered(answered)?,
                next = self.source.next(), if has_room => self.take(next)?,
                () = tokio::time::sleep_until(self.look_at.into()), if looks => {
                    let empty = tokio::select! {
                        empty = self.queue_is_empty() => empty?,
                        () = interrupt.next() => true,
                    };
                    if empty {
                        return Ok(());
                    }
                    self.look_after = (self.look_after * 2).min(LOOK_MAX);
                    self.look_at = Instant::now() + self.look_after;
                }
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.settling.is_empty()
    }

    /// Starts the command for a message.
    fn take(&mut self, next: Next) -> Outcome {
        let (queue, delivery) = match next {
            None => {
                let names = names(self.options);
                return Err(Failure::failed(format!("the stream of queue {names:?} ended")));
            }
            Some(Ok(next)) => next,
            Some(Err(error)) if error.is_fatal() => {
                return Err(consume_failure(&error, &names(self.options)));
            }
            Some(Err(error)) => {
                note(format_args!("warning: {error}"));
                return Ok(());
            }
        };
        let queue = self.options.queues.get(queue).map_or("", |queue| &queue.name);
        self.left -= 1;
        self.look_after = LOOK_FIRST;
        self.look_at = Instant::now() + LOOK_FIRST;
        let job = Job {
            command: self.options.command.clone(),
            environment: environment(queue, &delivery),
            payload: delivery.value().clone(),
        };
        let kill = self.kill.subscribe();
        self.running.spawn(async move { (delivery, child::run(job, kill).await) });
        Ok(())
    }

    /// A command has ended: its message is settled accordingly.
    fn ran(&self, ran: Result<Ran, tokio::task::JoinError>) -> Outcome {
        let (delivery, end) =
            ran.map_err(|error| Failure::failed(format!("a command was not followed: {error}")))?;
        let (kind, settled, outcome) = match end {
            Ok(End::Done) => (Kind::Acked, delivery.ack(), Ok(())),
            Ok(End::Failed { reason }) => (Kind::Nacked, delivery.nack(reason), Ok(())),
            Ok(End::Killed) => (Kind::Released, delivery.release(), Ok(())),
            Err(error) => (Kind::Released, delivery.release(), Err(self.not_run(&error))),
        };
        self.settling.push(Box::pin(async move { (kind, settled.await) }));
        outcome
    }

    fn not_run(&self, error: &std::io::Error) -> Failure {
        let program = self
            .options
            .command
            .first()
            .map_or_else(String::new, |program| program.to_string_lossy().into_owned());
        Failure::failed(format!("cannot run {program:?}: {error}"))
            .next("check the command's name and that it may be executed; the message is given back")
    }

    /// The broker has answered what became of a message.
    fn answered(&mut self, (kind, answer): Answered) -> Outcome {
        let counter = match (kind, answer) {
            // Acknowledged before: by us, if the answer was lost with a connection.
            (Kind::Acked, Ok(()) | Err(SettleError::AlreadyAcked)) => &mut self.tally.acked,
            (Kind::Nacked, Ok(())) => &mut self.tally.nacked,
            (Kind::Released, Ok(())) => return Ok(()),
            (_, Err(SettleError::Ended)) => {
                return Err(settle_failure(&SettleError::Ended, &names(self.options)));
            }
            (_, Err(error)) => {
                note(format_args!("warning: a message was not settled: {error}"));
                &mut self.tally.lost
            }
        };
        *counter += 1;
        Ok(())
    }

    /// Whether nothing is ready, at work or waiting for a retry, in the queues and partitions that are worked on.
    async fn queue_is_empty(&self) -> Outcome<bool> {
        let WorkOptions { queues, subscription, partitions, .. } = self.options;
        let mut empty = true;
        for queue in queues {
            let queue = QueueName { name: queue.name.clone(), subscription: subscription.clone() };
            let mut described = describe(&self.client.admin(), &queue).await?;
            let ours = |partition: u32| partitions.is_empty() || partitions.contains(&partition);
            described.partitions.retain(|one| ours(one.partition.0));
            let left = Sums::of(&described).unsettled();
            if left > 0 && described.policy.paused {
                let name = &queue.name;
                return Err(Failure::failed(format!(
                    "queue {name:?} is paused and holds {left} messages"
                ))
                .next(format!("postrider queue resume {name}")));
            }
            empty &= left == 0;
        }
        Ok(empty)
    }

    /// Waits for the commands that run, at most for the grace time or until a further signal, then for the
    /// broker's answers.
    async fn finish(&mut self, interrupt: &mut Interrupt) -> Outcome {
        let mut outcome = Ok(());
        let deadline = tokio::time::Instant::now() + self.options.grace;
        while !self.running.is_empty() {
            let killed = *self.kill.borrow();
            tokio::select! {
                biased;
                Some(ran) = self.running.join_next() => {
                    let settled = self.ran(ran);
                    outcome = outcome.and(settled);
                }
                Some(answered) = self.settling.next() => {
                    let counted = self.answered(answered);
                    outcome = outcome.and(counted);
                }
                () = interrupt.next(), if !killed => self.kill_commands(),
                () = tokio::time::sleep_until(deadline), if !killed => self.kill_commands(),
            }
        }
        let answers = async {
            while let Some(answered) = self.settling.next().await {
                let counted = self.answered(answered);
                outcome = std::mem::replace(&mut outcome, Ok(())).and(counted);
            }
        };
        // What is not answered in time shows in the drain.
        tokio::time::timeout(DRAIN_MAX, answers).await.unwrap_or(());
        outcome
    }

    fn kill_commands(&self) {
        note(format_args!(
            "killing {} commands; their messages are given back",
            self.running.len()
        ));
        self.kill.send_replace(true);
    }
}

/// What a command learns about its message beside the payload.
fn environment(queue: &str, delivery: &Delivery<Bytes>) -> Vec<(&'static str, Option<String>)> {
    // A variable cannot hold a zero byte.
    let key = delivery
        .key()
        .and_then(|key| std::str::from_utf8(key).ok())
        .filter(|key| !key.contains('\0'));
    vec![
        ("POSTRIDER_TOPIC", Some(queue.to_owned())),
        ("POSTRIDER_PARTITION", Some(delivery.partition().to_string())),
        ("POSTRIDER_OFFSET", Some(delivery.offset().to_string())),
        ("POSTRIDER_ATTEMPT", Some(delivery.attempt().to_string())),
        ("POSTRIDER_FAILURES", Some(delivery.failures().to_string())),
        ("POSTRIDER_KEY", key.map(str::to_owned)),
    ]
}
