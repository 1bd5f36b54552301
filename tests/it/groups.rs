//! Consumer groups with a real broker and real members, which join, leave, are killed and stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider::{Client, GroupEvent, NewTopic, Raw, Record};
use postrider_storage::disk_sim::SimRandom;
use postrider_tests::process::{BrokerCommand, wait_until};
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::broker;

const TOPIC: &str = "orders";
const GROUP: &str = "billing";

/// A number from the environment, for longer runs.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

async fn connect(command: &BrokerCommand, partitions: u32) -> Result<Client> {
    let client = Client::builder(command.url()).name("tests").connect().await?;
    let topic = NewTopic::new(TOPIC).partitions(partitions).if_not_exists();
    client.admin().create_topic(topic).await?;
    Ok(client)
}

/// Publishes until told to stop; tells how many there are per partition.
async fn produce(client: Client, mut stop: watch::Receiver<bool>) -> Result<BTreeMap<u32, u64>> {
    let producer = client.producer::<Raw>(TOPIC).build().await?;
    let mut counts = BTreeMap::new();
    for number in 0_u64.. {
        let record = Record::new(number.to_string()).key(number.to_string());
        let receipt = producer.send(record).await?;
        *counts.entry(receipt.partition.0).or_default() += 1;
        if *stop.borrow_and_update() {
            break;
        }
    }
    Ok(counts)
}

type Seen = Arc<Mutex<Vec<(u32, u64)>>>;

fn sorted(seen: &Seen) -> Vec<(u32, u64)> {
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    seen
}

/// A member in this process, with a connection of its own.
struct Worker {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

fn worker(runtime: &Runtime, command: &BrokerCommand, seen: &Seen) -> Worker {
    let (stop, mut stopped) = oneshot::channel();
    let (url, seen) = (command.url(), Arc::clone(seen));
    let task = runtime.spawn(async move {
        let client = Client::builder(url).name("worker").connect().await?;
        let mut member = client.group_member::<Raw>(TOPIC, GROUP).join().await?;
        loop {
            let event = tokio::select! {
                biased;
                _ = &mut stopped => break,
                event = member.next_event() => event.context("the member goes on")??,
            };
            match event {
                GroupEvent::Messages(batch) => {
                    let offsets = batch.first().0..batch.end().0;
                    let partition = batch.partition().0;
                    seen.lock().unwrap().extend(offsets.map(|offset| (partition, offset)));
                    member.ack_up_to(&batch).await?;
                }
                GroupEvent::Lost { partition } => anyhow::bail!("partition {partition} was lost"),
                _ => {}
            }
        }
        drop(member);
        client.close(Duration::from_secs(5)).await;
        Ok(())
    });
    Worker { stop, task }
}

/// Everybody has a fair share, and nothing moves.
async fn is_stable(client: &Client, members: usize) -> Result<bool> {
    let group = client.admin().describe_group(TOPIC, GROUP).await?;
    let mut held: BTreeMap<u64, usize> = group.members.iter().map(|m| (m.member, 0)).collect();
    for partition in &group.partitions {
        if partition.holder.is_none() || partition.holder != partition.target {
            return Ok(false);
        }
        *held.entry(partition.holder.unwrap_or_default()).or_default() += 1;
    }
    let spread = held.values().max().unwrap_or(&0) - held.values().min().unwrap_or(&0);
    Ok(held.len() == members && spread <= 1)
}

#[test]
fn members_that_join_and_leave_hand_over_without_a_duplicate_or_a_gap() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let runtime = runtime()?;
    let client = runtime.block_on(connect(&command, 8))?;
    let (stop, stopped) = watch::channel(false);
    let producing = runtime.spawn(produce(client.clone(), stopped));
    let seen = Seen::default();
    let count_seen = || seen.lock().unwrap().len();
    let mut workers = Vec::new();
    let end = |worker: Worker| -> Result<()> {
        ensure!(worker.stop.send(()).is_ok(), "a worker ended early");
        runtime.block_on(worker.task)?
    };
    // Up to five members, down to two, up again: each step begins when the one before is done.
    for count in [1_usize, 3, 5, 4, 2, 5, 1, 6] {
        while workers.len() < count {
            workers.push(worker(&runtime, &command, &seen));
        }
        while workers.len() > count {
            end(workers.remove(0))?;
        }
        wait_until("the group is stable", || {
            matches!(runtime.block_on(is_stable(&client, count)), Ok(true))
        })?;
        let goal = count_seen() + 300;
        wait_until("messages go on", || count_seen() >= goal)?;
    }
    stop.send_replace(true);
    let counts = runtime.block_on(producing)??;
    let all = usize::try_from(counts.values().sum::<u64>())?;
    wait_until("all is consumed", || count_seen() >= all)?;
    workers.into_iter().try_for_each(end)?;
    let seen = sorted(&seen);
    let expected: Vec<(u32, u64)> = counts
        .iter()
        .flat_map(|(partition, count)| (0..*count).map(|offset| (*partition, offset)))
        .collect();
    ensure!(seen == expected, "{} messages were consumed, {all} published", seen.len());
    println!("{all} messages, each once");
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}

/// A member as a process; what it prints is acknowledged after it is in the file.
struct Process {
    child: Child,
}

fn process(command: &BrokerCommand, dir: &Path, number: usize) -> Result<Process> {
    let args = ["sub", TOPIC, "--group", GROUP, "--from", "earliest", "--output", "json"];
    let mut member = command.client(&args);
    member.args(["--session-timeout", "2s"]);
    let out = File::create(dir.join(format!("member-{number}")))?;
    let err = File::create(dir.join(format!("member-{number}.log")))?;
    let child = member.stdin(Stdio::null()).stdout(out).stderr(err).spawn()?;
    Ok(Process { child })
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What all members have printed, in the order of each.
fn printed(dir: &Path, members: usize) -> Result<Vec<Vec<(u32, u64)>>> {
    let mut printed = Vec::new();
    for number in 0..members {
        let text = std::fs::read_to_string(dir.join(format!("member-{number}")))?;
        let mut messages = Vec::new();
        // A line that a kill has cut was not acknowledged.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let message: serde_json::Value = serde_json::from_str(line)?;
            let field = |name: &str| message[name].as_u64().context("a number");
            messages.push((u32::try_from(field("partition")?)?, field("offset")?));
        }
        printed.push(messages);
    }
    Ok(printed)
}

/// `POSTRIDER_GROUP_ROUNDS`, `_MEMBERS` and `_PARTITIONS` set how much there is of it.
#[test]
fn killed_and_stopped_members_leave_no_partition_unowned_and_lose_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let runtime = runtime()?;
    let rounds = number("POSTRIDER_GROUP_ROUNDS", 6);
    let wanted = number("POSTRIDER_GROUP_MEMBERS", 3);
    let partitions = u32::try_from(number("POSTRIDER_GROUP_PARTITIONS", 6))?;
    let client = runtime.block_on(connect(&command, partitions))?;
    let mut random = SimRandom::new(7);
    let (stop, stopped) = watch::channel(false);
    let producing = runtime.spawn(produce(client.clone(), stopped));
    let describe = || runtime.block_on(client.admin().describe_group(TOPIC, GROUP));

    let mut members = 0;
    let mut running = Vec::new();
    let mut longest = 0;
    for round in 0..rounds {
        while running.len() < wanted {
            running.push(process(&command, dir.path(), members)?);
            members += 1;
        }
        let mut settled = |count: usize| {
            wait_until("the group is stable", || {
                if let Ok(group) = describe() {
                    let unowned = group.partitions.iter().filter_map(|it| it.unowned_ms);
                    longest = unowned.max().unwrap_or(0).max(longest);
                }
                matches!(runtime.block_on(is_stable(&client, count)), Ok(true))
            })
        };
        settled(wanted)?;
        let mut victim = running.swap_remove(random.index(running.len()));
        if round % 2 == 0 {
            victim.child.kill()?;
            settled(wanted - 1)?;
        } else {
            let pid = rustix::process::Pid::from_child(&victim.child);
            rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
            settled(wanted - 1)?;
            rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
            settled(wanted)?;
            running.push(victim);
        }
    }
    stop.send_replace(true);
    let counts = runtime.block_on(producing)??;
    wait_until("all is acknowledged", || {
        let lag = |group: postrider::DescribeGroupReply| {
            group.partitions.iter().map(|partition| partition.lag).sum::<u64>()
        };
        describe().is_ok_and(|group| lag(group) == 0)
    })?;
    drop(running);

    let printed = printed(dir.path(), members)?;
    let seen: BTreeSet<(u32, u64)> = printed.iter().flatten().copied().collect();
    let expected: BTreeSet<(u32, u64)> = counts
        .iter()
        .flat_map(|(partition, count)| (0..*count).map(|offset| (*partition, offset)))
        .collect();
    ensure!(seen == expected, "{} of {} messages were printed", seen.len(), expected.len());
    let total: usize = printed.iter().map(Vec::len).sum();
    println!("{} messages, {} printed twice", expected.len(), total - expected.len());
    println!("a partition was unowned for {longest} ms at most");
    ensure!(longest < 5_000, "a partition was unowned for {longest} ms");
    ensure!(!broker.log().contains("has no owner"), "{}", broker.log());
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}
