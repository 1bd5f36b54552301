//! `postrider topic`: create, alter, list, show, remove.

use postrider::{Admin, Client, NewTopic};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{AlterTopic, TopicBounds, TopicConfig};
use postrider_protocol::types::{Durability, TopicKind};

use super::{bounds, delayed, show};
use crate::args::{
    DurabilityName, Limit, TopicAlter, TopicCommand, TopicCreate, TopicLimits, TopicLs, TopicRm,
    TopicShow,
};
use crate::connect::{admin_failure, block_on, close, connect};
use crate::exit::{Failure, Outcome};
use crate::output::{TableFormat, json_lines, note, print};

/// Runs one verb.
pub(crate) fn run(command: &TopicCommand) -> Outcome {
    let options = match command {
        TopicCommand::Create(create) => &create.client,
        TopicCommand::Alter(alter) => &alter.client,
        TopicCommand::Ls(ls) => &ls.client,
        TopicCommand::Show(show) => &show.client,
        TopicCommand::Rm(rm) => &rm.client,
    };
    block_on(1, async {
        let client: Client = connect(options).await?;
        let admin = client.admin();
        let outcome = match command {
            TopicCommand::Create(options) => create(&admin, options).await,
            TopicCommand::Alter(options) => alter(&admin, options).await,
            TopicCommand::Ls(options) => ls(&admin, options).await,
            TopicCommand::Show(options) => show_one(&admin, options).await,
            TopicCommand::Rm(options) => rm(&admin, options).await,
        };
        close(&client).await;
        outcome
    })
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::Fsync => Self::Fsync,
            DurabilityName::Replicated => Self::Replicated,
            DurabilityName::Memory => Self::Memory,
        }
    }
}

fn message_bytes_max(limits: &TopicLimits) -> Outcome<Option<Option<u32>>> {
    limits
        .message_bytes_max
        .map(|limit| {
            limit.value().map(u32::try_from).transpose().map_err(|_err| {
                Failure::usage("--message-bytes-max is above 4 GiB").next("name a smaller limit")
            })
        })
        .transpose()
}

async fn create(admin: &Admin, options: &TopicCreate) -> Outcome {
    let limits = &options.limits;
    let config = TopicConfig {
        partitions: options.partitions,
        kind: TopicKind::Log,
        durability: options.durability.into(),
        retention_ms: limits.retention_time.and_then(Limit::value),
        retention_bytes: limits.retention_bytes.and_then(Limit::value),
        message_bytes_max: message_bytes_max(limits)?.flatten(),
        bounds: TopicBounds::default().changed(&bounds::change(options.bounds)),
    };
    let mut topic = NewTopic::new(&options.name).config(config);
    if options.if_not_exists {
        topic = topic.if_not_exists();
    }
    let reply = admin.create_topic(topic).await.map_err(|error| {
        let failure = admin_failure(&error, &options.name);
        match error.broker_error().map(|body| body.code) {
            Some(ErrorCode::TopicExists) => {
                failure.next("use --if-not-exists if that is fine, or `postrider topic alter`")
            }
            _ => failure,
        }
    })?;
    note(if reply.created { "created" } else { "exists already" });
    Ok(())
}

async fn alter(admin: &Admin, options: &TopicAlter) -> Outcome {
    let limits = &options.limits;
    let change = AlterTopic {
        name: options.name.clone(),
        partitions: options.partitions,
        retention_ms: limits.retention_time.map(Limit::value),
        retention_bytes: limits.retention_bytes.map(Limit::value),
        message_bytes_max: message_bytes_max(limits)?,
        bounds: bounds::change(options.bounds),
    };
    if change.partitions.is_none()
        && change.retention_ms.is_none()
        && change.retention_bytes.is_none()
        && change.message_bytes_max.is_none()
        && change.bounds.is_none()
    {
        return Err(Failure::usage("nothing to change").next(
            "name --partitions, --retention-time, --retention-bytes, --message-bytes-max, --ttl, --expired, \
             --max-messages, --overflow or --dedup-window",
        ));
    }
    admin.alter_topic(change).await.map_err(|error| admin_failure(&error, &options.name))?;
    note("altered");
    Ok(())
}

async fn ls(admin: &Admin, options: &TopicLs) -> Outcome {
    let reply = admin.list_topics().await.map_err(|error| admin_failure(&error, ""))?;
    let mut topics = reply.topics;
    topics.sort_by(|one, two| one.name.cmp(&two.name));
    print(&match options.output {
        TableFormat::Table => show::topics_table(&topics),
        format => json_lines(format, &show::topics_json(&topics)),
    })
}

async fn show_one(admin: &Admin, options: &TopicShow) -> Outcome {
    let described = admin.describe_topic(&options.name).await;
    let topic = described.map_err(|error| admin_failure(&error, &options.name))?;
    let scheduled = delayed::scheduled(admin, &options.name).await?;
    print(&match options.output {
        TableFormat::Table => show::topic_text(&topic, scheduled),
        TableFormat::Json => format!("{:#}\n", show::topic_json(&topic, scheduled)),
        TableFormat::Ndjson => format!("{}\n", show::topic_json(&topic, scheduled)),
    })
}

async fn rm(admin: &Admin, options: &TopicRm) -> Outcome {
    for name in &options.names {
        match admin.delete_topic(name).await {
            Ok(()) => note(format_args!("removed {name}")),
            Err(error)
                if options.if_exists
                    && error.broker_error().is_some_and(|b| b.code == ErrorCode::UnknownTopic) =>
            {
                note(format_args!("{name} does not exist"));
            }
            Err(error) => {
                return Err(match error.broker_error().map(|body| body.code) {
                    Some(ErrorCode::UnknownTopic) => Failure::failed(format!(
                        "topic {name:?} does not exist"
                    ))
                    .next("`postrider topic ls` lists the topics; --if-exists makes it fine"),
                    _ => admin_failure(&error, name),
                });
            }
        }
    }
    Ok(())
}
