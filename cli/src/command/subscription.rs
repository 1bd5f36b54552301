//! `postrider subscription`: create, list, seek and remove the durable subscriptions of a topic.

use postrider::{Admin, ErrorCode, NewSubscription, QueuePolicy};

use super::{policy, show};
use crate::args::SubscriptionCommand;
use crate::args::queue::SubscriptionCreate;
use crate::connect::{admin_failure, block_on, close, connect, queue_failure};
use crate::exit::{Failure, Outcome};
use crate::output::{TableFormat, json_lines, note, print, table};
use crate::start::resolve;

/// Runs one verb.
pub(crate) fn run(command: &SubscriptionCommand) -> Outcome {
    let options = match command {
        SubscriptionCommand::Create(options) => &options.client,
        SubscriptionCommand::Ls { client, .. }
        | SubscriptionCommand::Seek { client, .. }
        | SubscriptionCommand::Rm { client, .. } => client,
    };
    block_on(1, async {
        let client = connect(options).await?;
        let admin = client.admin();
        let outcome = match command {
            SubscriptionCommand::Create(options) => create(&admin, options).await,
            SubscriptionCommand::Ls { topic: Some(topic), output, .. } => {
                ls(&admin, topic, *output).await
            }
            SubscriptionCommand::Ls { topic: None, output, .. } => patterns(&admin, *output).await,
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

async fn create(admin: &Admin, options: &SubscriptionCreate) -> Outcome {
    if !options.queue && policy::is_named(&options.policy) {
        return Err(Failure::usage("policy flags are for subscriptions in queue mode")
            .next("add --queue, or leave them out"));
    }
    let start = resolve(options.from, admin, &options.topic).await?;
    let mut subscription = NewSubscription::new(&options.topic, &options.name).from(start);
    if options.queue {
        let policy = policy::with_flags(QueuePolicy::default(), &options.policy)?;
        subscription = subscription.queue(policy);
    }
    if options.if_not_exists {
        subscription = subscription.if_not_exists();
    }
    let reply = admin.create_subscription(subscription).await.map_err(|error| {
        let failure = queue_failure(&error, &options.topic);
        match error.broker_error().map(|body| body.code) {
            Some(ErrorCode::SubscriptionExists) => {
                failure.next("use --if-not-exists if that is fine, or choose another name")
            }
            _ => failure,
        }
    })?;
    note(if reply.created { "created" } else { "exists already" });
    Ok(())
}

async fn ls(admin: &Admin, topic: &str, format: TableFormat) -> Outcome {
    let listed = admin.list_subscriptions(topic).await;
    let subscriptions = listed.map_err(|error| admin_failure(&error, topic))?;
    print(&match format {
        TableFormat::Table => show::subscriptions_table(&subscriptions),
        format => json_lines(format, &show::subscriptions_json(&subscriptions)),
    })
}

async fn patterns(admin: &Admin, format: TableFormat) -> Outcome {
    let listed = admin.list_patterns().await;
    let patterns = listed.map_err(|error| admin_failure(&error, "*"))?;
    print(&match format {
        TableFormat::Table => show::patterns_table(&patterns),
        format => json_lines(format, &show::patterns_json(&patterns)),
    })
}

/// Moves a durable subscription and prints where it stands.
pub(super) async fn seek(
    admin: &Admin,
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
