//! `postrider subscription`: list, seek and remove the durable subscriptions of a topic.

use super::show;
use crate::args::SubscriptionCommand;
use crate::connect::{admin_failure, block_on, close, connect};
use crate::exit::Outcome;
use crate::output::{TableFormat, json_lines, note, print, table};
use crate::start::resolve;

/// Runs one verb.
pub(crate) fn run(command: &SubscriptionCommand) -> Outcome {
    let options = match command {
        SubscriptionCommand::Ls { client, .. }
        | SubscriptionCommand::Seek { client, .. }
        | SubscriptionCommand::Rm { client, .. } => client,
    };
    block_on(1, async {
        let client = connect(options).await?;
        let admin = client.admin();
        let outcome = match command {
            SubscriptionCommand::Ls { topic, output, .. } => ls(&admin, topic, *output).await,
            SubscriptionCommand::Seek { topic, name, to, .. } => {
                seek(&admin, topic, name, *to).await
            }
            SubscriptionCommand::Rm { topic, name, .. } => {
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

async fn ls(admin: &postrider::Admin, topic: &str, format: TableFormat) -> Outcome {
    let listed = admin.list_subscriptions(topic).await;
    let subscriptions = listed.map_err(|error| admin_failure(&error, topic))?;
    print(&match format {
        TableFormat::Table => show::subscriptions_table(&subscriptions),
        format => json_lines(format, &show::subscriptions_json(&subscriptions)),
    })
}

async fn seek(
    admin: &postrider::Admin,
    topic: &str,
    name: &str,
    to: crate::start::From,
) -> Outcome {
    let to = resolve(to, admin, topic).await?;
    let moved = admin.seek(topic, name, to).await;
    let positions = moved.map_err(|error| admin_failure(&error, topic))?;
    let rows: Vec<Vec<String>> = positions
        .iter()
        .map(|(partition, offset)| vec![partition.to_string(), offset.to_string()])
        .collect();
    print(&table(&["partition", "offset"], &rows))
}
