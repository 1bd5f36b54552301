//! `postrider queue`: create, alter, list, show, why, pause, resume, purge, release, remove. `peek` and `redrive`
//! are modules of their own.

mod peek;
mod redrive;

use std::time::SystemTime;

use postrider::{
    Admin, AdminError, Client, DescribeQueueReply, ErrorCode, NewQueue, QueuePolicy, TopicBounds,
    TopicKind, TopicMetadata,
};

use super::{bounds, delayed, policy, show_queue};
use crate::args::queue::{
    Place, QueueAlter, QueueAt, QueueCommand, QueueCreate, QueueName, QueueRelease, QueueRm,
    QueueWhy,
};
use crate::args::{ClientOptions, Limit};
use crate::connect::{block_on, close, connect, queue_failure};
use crate::exit::{Failure, Outcome};
use crate::output::{TableFormat, json_lines, note, print};

/// Runs one verb.
pub(crate) fn run(command: &QueueCommand) -> Outcome {
    block_on(1, async {
        let client = connect(client_of(command)).await?;
        let outcome = run_with(&client, command).await;
        close(&client).await;
        outcome
    })
}

impl From<&QueueName> for postrider::QueueName {
    fn from(name: &QueueName) -> Self {
        Self { topic: name.name.clone(), subscription: name.subscription.clone() }
    }
}

fn client_of(command: &QueueCommand) -> &ClientOptions {
    match command {
        QueueCommand::Create(options) => &options.client,
        QueueCommand::Alter(options) => &options.client,
        QueueCommand::Ls(options) => &options.client,
        QueueCommand::Show(options) => &options.client,
        QueueCommand::Why(options) => &options.client,
        QueueCommand::Peek(options) => &options.client,
        QueueCommand::Purge(QueueAt { client, .. })
        | QueueCommand::Pause(QueueAt { client, .. })
        | QueueCommand::Resume(QueueAt { client, .. }) => client,
        QueueCommand::Redrive(options) => &options.client,
        QueueCommand::Release(options) => &options.client,
        QueueCommand::Rm(options) => &options.client,
    }
}

async fn run_with(client: &Client, command: &QueueCommand) -> Outcome {
    let admin = client.admin();
    match command {
        QueueCommand::Create(options) => create(&admin, options).await,
        QueueCommand::Alter(options) => alter(&admin, options).await,
        QueueCommand::Ls(options) => ls(&admin, options.output).await,
        QueueCommand::Show(options) => show(&admin, &options.queue, options.output).await,
        QueueCommand::Why(options) => why(&admin, options).await,
        QueueCommand::Peek(options) => peek::run(client, options).await,
        QueueCommand::Purge(options) => purge(&admin, &options.queue).await,
        QueueCommand::Pause(options) => set_paused(&admin, &options.queue, Paused::Yes).await,
        QueueCommand::Resume(options) => set_paused(&admin, &options.queue, Paused::No).await,
        QueueCommand::Redrive(options) => redrive::run(&admin, options).await,
        QueueCommand::Release(options) => release(&admin, options).await,
        QueueCommand::Rm(options) => rm(&admin, options).await,
    }
}

async fn create(admin: &Admin, options: &QueueCreate) -> Outcome {
    let limit = options.message_bytes_max.and_then(Limit::value);
    let message_bytes_max = limit.map(u32::try_from).transpose().map_err(|_err| {
        Failure::usage("--message-bytes-max is above 4 GiB").next("name a smaller limit")
    })?;
    let mut queue = NewQueue::new(&options.name)
        .partitions(options.partitions)
        .durability(options.durability.into())
        .policy(policy::with_flags(QueuePolicy::default(), &options.policy)?);
    if let Some(bytes) = message_bytes_max {
        queue = queue.message_bytes_max(bytes);
    }
    queue = queue.bounds(TopicBounds::default().changed(&bounds::change(options.bounds)));
    if options.if_not_exists {
        queue = queue.if_not_exists();
    }
    let reply = admin.create_queue(queue).await.map_err(|error| {
        let failure = queue_failure(&error, &options.name);
        match code_of(&error) {
            Some(ErrorCode::TopicExists) if options.if_not_exists => {
                failure.next("`postrider topic show` shows what has this name; choose another one")
            }
            Some(ErrorCode::TopicExists) => {
                failure.next("use --if-not-exists if that is fine, or `postrider queue alter`")
            }
            _ => failure,
        }
    })?;
    note(if reply.created { "created" } else { "exists already" });
    Ok(())
}

fn code_of(error: &AdminError) -> Option<ErrorCode> {
    error.broker_error().map(|body| body.code)
}

/// All about a queue.
pub(crate) async fn describe(admin: &Admin, queue: &QueueName) -> Outcome<DescribeQueueReply> {
    let described = admin.describe_queue(queue).await;
    described.map_err(|error| queue_failure(&error, &queue.name))
}

async fn alter(admin: &Admin, options: &QueueAlter) -> Outcome {
    if !policy::is_named(&options.policy) {
        return Err(Failure::usage("nothing to change")
            .next("name what is to change, for example --max-failures or --lease"));
    }
    let present = describe(admin, &options.queue).await?.policy;
    let policy = policy::with_flags(present, &options.policy)?;
    set_policy(admin, &options.queue, policy).await?;
    note("altered");
    Ok(())
}

async fn set_policy(admin: &Admin, queue: &QueueName, policy: QueuePolicy) -> Outcome {
    let altered = admin.alter_queue(queue, policy).await;
    altered.map_err(|error| queue_failure(&error, &queue.name))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Paused {
    No,
    Yes,
}

async fn set_paused(admin: &Admin, queue: &QueueName, paused: Paused) -> Outcome {
    let policy = describe(admin, queue).await?.policy;
    let wanted = paused == Paused::Yes;
    let said = if wanted { "paused" } else { "resumed" };
    if policy.paused == wanted {
        note(format_args!("was {said} already"));
        return Ok(());
    }
    set_policy(admin, queue, QueuePolicy { paused: wanted, ..policy }).await?;
    note(said);
    Ok(())
}

async fn ls(admin: &Admin, format: TableFormat) -> Outcome {
    let listed = admin.list_topics().await.map_err(|error| queue_failure(&error, ""))?;
    let is_queue = |topic: &TopicMetadata| topic.kind == TopicKind::Queue;
    let mut names: Vec<String> =
        listed.topics.into_iter().filter(is_queue).map(|topic| topic.name).collect();
    names.sort();
    let mut queues = Vec::with_capacity(names.len());
    for name in names {
        match admin.describe_queue(name.as_str()).await {
            Ok(queue) => queues.push((name, queue)),
            // Removed since the list was made.
            Err(error) if code_of(&error) == Some(ErrorCode::UnknownTopic) => {}
            Err(error) => return Err(queue_failure(&error, &name)),
        }
    }
    print(&match format {
        TableFormat::Table => show_queue::queues_table(&queues),
        format => json_lines(format, &show_queue::queues_json(&queues)),
    })
}

async fn show(admin: &Admin, name: &QueueName, format: TableFormat) -> Outcome {
    let queue = describe(admin, name).await?;
    let scheduled = delayed::scheduled(admin, &name.name).await?;
    let json = || {
        let mut json = show_queue::queue_json(&name.name, &queue);
        json["scheduled"] = scheduled.into();
        json
    };
    print(&match format {
        TableFormat::Table => show_queue::queue_text(&name.name, &queue, scheduled),
        TableFormat::Json => format!("{:#}\n", json()),
        TableFormat::Ndjson => format!("{}\n", json()),
    })
}

async fn why(admin: &Admin, options: &QueueWhy) -> Outcome {
    let topic = &options.place.topic;
    let queue = QueueName { name: topic.clone(), subscription: options.subscription.clone() };
    let partition = partition_of(admin, &queue, &options.place, options.offset).await?;
    let asked = admin.why_message(&queue, partition, options.offset).await;
    let why = asked.map_err(|error| queue_failure(&error, topic))?;
    print(&match options.output {
        TableFormat::Table => show_queue::why_text(&why, unix_ms()),
        TableFormat::Json => format!("{:#}\n", show_queue::why_json(&why)),
        TableFormat::Ndjson => format!("{}\n", show_queue::why_json(&why)),
    })
}

/// The partition that is meant, if there is such a one.
async fn partition_of(
    admin: &Admin,
    queue: &QueueName,
    place: &Place,
    offset: u64,
) -> Outcome<u32> {
    let topic = &place.topic;
    let partitions = describe(admin, queue).await?.partitions.len();
    let partition = match place.partition {
        Some(partition) => partition,
        None if partitions == 1 => 0,
        None => {
            return Err(Failure::usage(format!("queue {topic:?} has {partitions} partitions"))
                .next(format!("name one, for example {topic}:0 {offset}")));
        }
    };
    if partition as usize >= partitions {
        return Err(Failure::failed(format!(
            "queue {topic:?} has {partitions} partitions and no partition {partition}"
        ))
        .next(format!("name one from 0 to {}", partitions.saturating_sub(1))));
    }
    Ok(partition)
}

async fn release(admin: &Admin, options: &QueueRelease) -> Outcome {
    let topic = &options.place.topic;
    let queue = QueueName { name: topic.clone(), subscription: options.subscription.clone() };
    let partition = partition_of(admin, &queue, &options.place, options.offset).await?;
    let released = admin.release_message(&queue, partition, options.offset).await;
    let reply = released.map_err(|error| queue_failure(&error, topic))?;
    if reply.released {
        note(format_args!("released; it was {}", reply.state));
        return Ok(());
    }
    Err(Failure::failed(format!("the message is {}: there is nothing to release", reply.state))
        .next(format!("`postrider queue why {topic}:{partition} {}` tells more", options.offset)))
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

async fn purge(admin: &Admin, queue: &QueueName) -> Outcome {
    let purged = admin.purge_queue(queue).await;
    let purged = purged.map_err(|error| queue_failure(&error, &queue.name))?;
    note(format_args!("purged={purged} (idempotency keys are kept)"));
    Ok(())
}

async fn rm(admin: &Admin, options: &QueueRm) -> Outcome {
    for name in &options.names {
        let queue = QueueName { name: name.clone(), subscription: options.subscription.clone() };
        // Only a queue is removed by this verb: a log topic of the name is not what was meant.
        let removed = match admin.describe_queue(&queue).await {
            Err(error) => Err(error),
            Ok(_) => match &queue.subscription {
                Some(subscription) => admin.delete_subscription(name, subscription).await,
                None => admin.delete_topic(name).await,
            },
        };
        match removed {
            Ok(()) => note(format_args!("removed {name}")),
            Err(error) if options.if_exists && is_absent(&error) => {
                note(format_args!("{name} does not exist"));
            }
            Err(error) if code_of(&error) == Some(ErrorCode::UnknownTopic) => {
                return Err(Failure::failed(format!("queue {name:?} does not exist"))
                    .next("`postrider queue ls` lists the queues; --if-exists makes it fine"));
            }
            Err(error) => return Err(queue_failure(&error, name)),
        }
    }
    Ok(())
}

fn is_absent(error: &AdminError) -> bool {
    matches!(code_of(error), Some(ErrorCode::UnknownTopic | ErrorCode::UnknownSubscription))
}
