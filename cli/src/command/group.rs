//! `postrider group`: list, show, seek and remove the consumer groups of a topic.

use postrider::{Admin, DescribeGroupReply};
use serde_json::{Value, json};

use super::subscription::seek;
use crate::args::group::GroupCommand;
use crate::connect::{admin_failure, block_on, close, connect};
use crate::exit::Outcome;
use crate::output::{TableFormat, json_lines, note, print, table};

/// Runs one verb.
pub(crate) fn run(command: &GroupCommand) -> Outcome {
    let options = match command {
        GroupCommand::Ls { client, .. }
        | GroupCommand::Show { client, .. }
        | GroupCommand::Seek { client, .. }
        | GroupCommand::Rm { client, .. } => client,
    };
    block_on(1, async {
        let client = connect(options).await?;
        let admin = client.admin();
        let outcome = match command {
            GroupCommand::Ls { topic, output, .. } => ls(&admin, topic, *output).await,
            GroupCommand::Show { topic, name, output, .. } => {
                show(&admin, topic, name, *output).await
            }
            GroupCommand::Seek { topic, name, to, .. } => seek(&admin, topic, name, *to).await,
            GroupCommand::Rm { topic, name, .. } => {
                let removed = admin.delete_subscription(topic, name).await;
                removed.map_err(|error| admin_failure(&error, topic))?;
                note(format_args!("removed {name}"));
                Ok(())
            }
        };
        close(&client).await;
        outcome
    })
}

async fn describe(admin: &Admin, topic: &str, name: &str) -> Outcome<DescribeGroupReply> {
    let described = admin.describe_group(topic, name).await;
    described.map_err(|error| admin_failure(&error, topic))
}

async fn ls(admin: &Admin, topic: &str, format: TableFormat) -> Outcome {
    let listed = admin.list_subscriptions(topic).await;
    let mut groups = Vec::new();
    for subscription in listed.map_err(|error| admin_failure(&error, topic))? {
        let group = describe(admin, topic, &subscription.name).await?;
        groups.push((subscription.name, group));
    }
    let lag = |group: &DescribeGroupReply| -> u64 {
        group.partitions.iter().map(|partition| partition.lag).sum()
    };
    let unowned = |group: &DescribeGroupReply| {
        group.partitions.iter().filter(|partition| partition.unowned_ms.is_some()).count()
    };
    print(&match format {
        TableFormat::Table => {
            let rows: Vec<Vec<String>> = groups
                .iter()
                .map(|(name, group)| {
                    let members = group.members.len().to_string();
                    vec![name.clone(), members, unowned(group).to_string(), lag(group).to_string()]
                })
                .collect();
            table(&["group", "members", "unowned", "lag"], &rows)
        }
        format => {
            let values: Vec<Value> = groups
                .iter()
                .map(|(name, group)| {
                    json!({
                        "group": name,
                        "members": group.members.len(),
                        "unowned": unowned(group),
                        "lag": lag(group),
                    })
                })
                .collect();
            json_lines(format, &values)
        }
    })
}

async fn show(admin: &Admin, topic: &str, name: &str, format: TableFormat) -> Outcome {
    let group = describe(admin, topic, name).await?;
    print(&match format {
        TableFormat::Table => shown(&group),
        format => json_lines(format, &[shown_json(name, &group)]),
    })
}

fn shown(group: &DescribeGroupReply) -> String {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let members: Vec<Vec<String>> = group
        .members
        .iter()
        .map(|member| {
            let count = group
                .partitions
                .iter()
                .filter(|partition| partition.holder == Some(member.member))
                .count();
            vec![
                member.member.to_string(),
                or_none(member.instance.clone()),
                if member.connected { "connected" } else { "away" }.to_owned(),
                count.to_string(),
            ]
        })
        .collect();
    let partitions: Vec<Vec<String>> = group
        .partitions
        .iter()
        .map(|partition| {
            let moves = partition.target.filter(|target| Some(*target) != partition.holder);
            vec![
                partition.partition.to_string(),
                or_none(partition.holder.map(|member| member.to_string())),
                or_none(moves.map(|member| member.to_string())),
                or_none(partition.unowned_ms.map(|ms| format!("{ms} ms"))),
                partition.acked.to_string(),
                partition.lag.to_string(),
            ]
        })
        .collect();
    let members = table(&["member", "instance", "state", "partitions"], &members);
    let head = ["partition", "member", "moves to", "unowned", "acked", "lag"];
    format!("{members}\n{}", table(&head, &partitions))
}

fn shown_json(name: &str, group: &DescribeGroupReply) -> Value {
    let members = group.members.iter().map(|member| {
        json!({
            "member": member.member,
            "instance": member.instance,
            "connected": member.connected,
            "session_timeout_ms": member.session_timeout_ms,
        })
    });
    let partitions = group.partitions.iter().map(|partition| {
        json!({
            "partition": partition.partition.0,
            "member": partition.holder,
            "target": partition.target,
            "unowned_ms": partition.unowned_ms,
            "acked": partition.acked.0,
            "lag": partition.lag,
        })
    });
    json!({
        "group": name,
        "members": members.collect::<Vec<_>>(),
        "partitions": partitions.collect::<Vec<_>>(),
    })
}
