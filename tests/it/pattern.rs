//! All topics of a pattern, through the real client and a real broker: what comes later is read from its first
//! message, also when the broker was killed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider::{
    AlterTopic, Client, NewQueue, NewTopic, OfTopic, PatternReader, PatternSubscriber, Raw,
    ReadError, Record, Start,
};
use postrider_protocol::message::BoundsChange;
use postrider_tests::process::BrokerCommand;

use crate::broker;
use crate::shell::Shell;

/// What was read, by topic.
type Read = BTreeMap<String, Vec<String>>;

async fn connect(command: &BrokerCommand) -> Result<Client> {
    Ok(Client::builder(command.url()).name("tests").connect().await?)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

async fn create(client: &Client, topic: &str) -> Result<()> {
    client.admin().create_topic(NewTopic::new(topic)).await?;
    Ok(())
}

async fn publish(client: &Client, topic: &str, texts: &[&str]) -> Result<()> {
    let producer = client.producer::<Raw>(topic).build().await?;
    for text in texts {
        producer.send(Record::new((*text).to_owned())).await?;
    }
    Ok(())
}

fn note(read: &mut Read, topic: &str, text: &[u8]) {
    let text = String::from_utf8_lossy(text).into_owned();
    read.entry(topic.to_owned()).or_default().push(text);
}

async fn read(reader: &mut PatternReader<Raw>, messages: usize) -> Result<Read> {
    let mut all = Read::new();
    while all.values().map(Vec::len).sum::<usize>() < messages {
        let OfTopic { topic, item } = reader.next_batch().await.context("it goes on")??;
        for message in &item {
            note(&mut all, &topic, message?.value.unwrap_or_default());
        }
    }
    Ok(all)
}

/// Reads and acknowledges.
async fn consume(subscriber: &mut PatternSubscriber<Raw>, messages: usize) -> Result<Read> {
    let mut all = Read::new();
    while all.values().map(Vec::len).sum::<usize>() < messages {
        let OfTopic { topic, item } = subscriber.next_batch().await.context("it goes on")??;
        for message in &item {
            note(&mut all, &topic, message?.value.unwrap_or_default());
        }
        subscriber.ack_up_to(&topic, &item).context("the topic is read")?.await?;
    }
    Ok(all)
}

fn of(entries: &[(&str, &[&str])]) -> Read {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    entries.iter().map(|(topic, list)| ((*topic).to_owned(), texts(list))).collect()
}

#[test]
fn a_reader_of_a_pattern_reads_topics_and_partitions_that_come_later_from_their_first_message()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let _running = command.start()?;
    runtime()?.block_on(async {
        let client = connect(&command).await?;
        for topic in ["orders.eu", "mail"] {
            create(&client, topic).await?;
            publish(&client, topic, &["before"]).await?;
        }
        client.admin().create_queue(NewQueue::new("orders.jobs")).await?;
        let reader = client.pattern::<Raw>("orders.*").from(Start::Earliest);
        let mut reader = reader.refresh(Duration::from_millis(20)).open().await?;
        ensure!(read(&mut reader, 1).await? == of(&[("orders.eu", &["before"])]));
        create(&client, "orders.us").await?;
        publish(&client, "orders.us", &["a", "b"]).await?;
        publish(&client, "orders.eu", &["c"]).await?;
        publish(&client, "mail", &["not meant"]).await?;
        let later = read(&mut reader, 3).await?;
        ensure!(later == of(&[("orders.us", &["a", "b"]), ("orders.eu", &["c"])]), "{later:?}");
        let topics: BTreeSet<String> = reader.topics().map(str::to_owned).collect();
        ensure!(topics.len() == 2 && topics.contains("orders.us"), "{topics:?}");

        let change = AlterTopic {
            name: "orders.us".to_owned(),
            partitions: Some(2),
            retention_ms: None,
            retention_bytes: None,
            message_bytes_max: None,
            bounds: BoundsChange::default(),
        };
        client.admin().alter_topic(change).await?;
        let producer = client.producer::<Raw>("orders.us").build().await?;
        producer.send(Record::new("on the new one").partition(1)).await?;
        let new = read(&mut reader, 1).await?;
        ensure!(new == of(&[("orders.us", &["on the new one"])]), "{new:?}");

        // A topic that goes is no trouble, also if it comes again.
        client.admin().delete_topic("orders.eu").await?;
        create(&client, "orders.eu").await?;
        publish(&client, "orders.eu", &["anew"]).await?;
        ensure!(read(&mut reader, 1).await? == of(&[("orders.eu", &["anew"])]));
        Ok(())
    })
}

#[test]
fn the_subscription_of_a_pattern_keeps_what_comes_while_nobody_reads_also_through_a_kill()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let client = connect(&command).await?;
        create(&client, "orders.eu").await?;
        publish(&client, "orders.eu", &["a"]).await?;
        let audit = client.pattern::<Raw>("orders.*").from(Start::Earliest);
        let mut audit = audit.open_as("audit").await?;
        ensure!(consume(&mut audit, 1).await? == of(&[("orders.eu", &["a"])]));
        drop(audit);
        // Nobody reads now.
        create(&client, "orders.us").await?;
        publish(&client, "orders.us", &["first", "second"]).await
    })?;
    running.kill()?;
    let _running = command.start()?;
    runtime.block_on(async {
        let client = connect(&command).await?;
        create(&client, "orders.uk").await?;
        publish(&client, "orders.uk", &["third"]).await?;
        publish(&client, "orders.eu", &["b"]).await?;
        let mut audit = client.pattern::<Raw>("orders.*").open_as("audit").await?;
        let all = consume(&mut audit, 4).await?;
        let expected = of(&[
            ("orders.us", &["first", "second"]),
            ("orders.uk", &["third"]),
            ("orders.eu", &["b"]),
        ]);
        ensure!(all == expected, "{all:?}");
        let mut taking = client.pattern::<Raw>("orders.*").open_as("audit").await?;
        let taken = audit.next_batch().await.context("it is told")?;
        ensure!(matches!(taken, Err(ReadError::Taken(_))), "{taken:?}");
        ensure!(audit.next_batch().await.is_none(), "and does not take it back");
        drop(audit);

        let listed = client.admin().list_subscriptions("orders.uk").await?;
        ensure!(listed.len() == 1 && listed[0].name == "audit" && listed[0].partitions[0].lag == 0);
        client.admin().delete_subscription("orders.*", "audit").await?;
        let told = taking.next_batch().await.context("it is told")?;
        ensure!(told.is_err() && taking.next_batch().await.is_none(), "{told:?}");
        ensure!(client.admin().list_subscriptions("orders.uk").await?.is_empty());
        let again = client.admin().delete_subscription("orders.*", "audit").await;
        ensure!(again.is_err(), "there is none any more");
        let plain = client.pattern::<Raw>("orders").open().await;
        ensure!(plain.is_err_and(|error| error.to_string().contains('*')), "that is no pattern");
        Ok(())
    })
}

#[test]
fn patterns_are_listed_by_the_command_line() -> Result<()> {
    let shell = Shell::start()?;
    for topic in ["orders.eu", "orders.us", "mail"] {
        shell.prints(&format!("topic create {topic}"))?;
    }
    shell.prints("subscription create orders.* audit")?;
    let listed = shell.prints("subscription ls")?;
    let words: Vec<&str> = listed.split_whitespace().collect();
    ensure!(words == ["PATTERN", "SUBSCRIPTION", "TOPICS", "orders.*", "audit", "2"], "{listed}");
    shell.prints("subscription rm orders.* audit")?;
    ensure!(!shell.prints("subscription ls")?.contains("orders"), "it is gone");
    Ok(())
}
