//! The real client through the deaths of its broker: nothing lost, nothing doubled, order kept.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider::{Client, NewTopic, Producer, Raw, ReadError, Record, Start};
use postrider_tests::process::{BrokerCommand, RunningBroker};

use crate::broker;

/// The client runs beside the test, so that it works while a broker is killed and started.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

async fn connect(command: &BrokerCommand) -> Result<Client> {
    let client = Client::builder(command.url()).name("tests").connect().await?;
    client.admin().create_topic(NewTopic::new("numbers").if_not_exists()).await?;
    Ok(client)
}

/// Publishes rising numbers in a pipeline, until told to stop; then waits for all acks.
async fn count_up(
    numbers: Producer<Raw>,
    stop: tokio::sync::oneshot::Receiver<()>,
    progress: tokio::sync::watch::Sender<u64>,
) -> Result<u64> {
    let mut stop = std::pin::pin!(stop);
    let mut next = 0_u64;
    loop {
        let ack = tokio::select! {
            biased;
            _ = &mut stop => break,
            ack = numbers.enqueue(Record::new(next.to_string())) => ack?,
        };
        next += 1;
        if next.is_multiple_of(500) {
            // Now and then the outcome is awaited, as an application would.
            ack.await?;
            progress.send_replace(next);
        }
    }
    numbers.flush().await?;
    Ok(next)
}

async fn read_numbers(client: &Client, count: u64) -> Result<()> {
    let mut reader = client.reader::<Raw>("numbers").from(Start::Earliest).open().await?;
    for expected in 0..count {
        let message = reader.next_message().await.context("the stream goes on")??;
        ensure!(message.offset.0 == expected, "offset {} for {expected}", message.offset);
        let value = message.value;
        ensure!(value == expected.to_string().as_bytes(), "at {expected}: {value:?}");
    }
    let end = client.admin().list_offsets("numbers", 0, Start::Latest).await?.0;
    ensure!(end.0 == count, "{count} were acknowledged, {end} are stored");
    Ok(())
}

fn killed_and_restarted(broker: RunningBroker) -> Result<RunningBroker> {
    let command = broker.command().clone();
    broker.kill()?;
    command.start()
}

#[test]
fn pipelined_producer_neither_loses_nor_doubles_when_the_broker_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let mut broker = command.start()?;
    let runtime = runtime()?;
    let client = runtime.block_on(connect(&command))?;
    let producer = runtime.block_on(client.producer::<Raw>("numbers").build())?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (progress, mut seen) = tokio::sync::watch::channel(0);
    let counting = runtime.spawn(count_up(producer, stopped, progress));
    for _ in 0..4 {
        let goal = *seen.borrow() + 2_000;
        let went_on = async {
            let went_on = seen.wait_for(|count| *count >= goal);
            tokio::time::timeout(Duration::from_secs(60), went_on).await.map(|seen| seen.is_ok())
        };
        ensure!(runtime.block_on(went_on)?, "the producer ended early");
        broker = killed_and_restarted(broker)?;
    }
    ensure!(stop.send(()).is_ok(), "the producer ended early");
    let count = runtime.block_on(counting)??;
    runtime.block_on(read_numbers(&client, count))?;
    let left = runtime.block_on(client.close(Duration::from_secs(5)));
    ensure!(left.unsent == 0 && left.unacked == 0, "{left:?}");
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}

#[test]
fn messages_without_acks_are_stored_in_order_once_a_flush_returned() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let broker = command.start()?;
    let runtime = runtime()?;
    let client = runtime.block_on(connect(&command))?;
    runtime.block_on(async {
        let numbers = client.producer::<Raw>("numbers").fire_and_forget().await?;
        for number in 0..20_000 {
            numbers.send(Record::new(number.to_string())).await?;
        }
        numbers.flush().await?;
        ensure!(numbers.refused() == 0, "{} were refused", numbers.refused());
        read_numbers(&client, 20_000).await
    })?;
    ensure!(broker.terminate()?.success(), "the broker did not end in order");
    Ok(())
}

#[test]
fn open_reader_and_durable_subscriber_continue_behind_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let mut broker = command.start()?;
    let runtime = runtime()?;
    let client = runtime.block_on(connect(&command))?;
    let numbers = runtime.block_on(client.producer::<Raw>("numbers").build())?;
    let mut reader =
        runtime.block_on(client.reader::<Raw>("numbers").from(Start::Earliest).open())?;
    let durable = client.subscriber::<Raw>("numbers", "jobs").from(Start::Earliest);
    let mut durable = runtime.block_on(durable.open())?;
    for number in 0..12_u64 {
        runtime.block_on(async {
            numbers.send(Record::new(number.to_string())).await?;
            let read = reader.next_message().await.context("the reader goes on")??;
            ensure!(read.offset.0 == number, "the reader got {} for {number}", read.offset);
            // At least once: what was acknowledged does not come again, nothing is skipped.
            let got = loop {
                match durable.next_message().await.context("the subscriber goes on")? {
                    Ok(message) if message.offset.0 < number => {}
                    other => break other?,
                }
            };
            ensure!(got.offset.0 == number, "the subscriber got {} for {number}", got.offset);
            durable.ack_up_to(&got).await?;
            Ok(())
        })?;
        if number % 4 == 3 {
            broker = killed_and_restarted(broker)?;
        }
    }
    let listed = runtime.block_on(client.admin().list_subscriptions("numbers"))?;
    ensure!(listed[0].partitions[0].acked.0 == 12, "{listed:?}");
    drop(broker);
    Ok(())
}

#[test]
fn second_consumer_of_a_subscription_takes_it_over() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let _broker = command.start()?;
    runtime()?.block_on(async {
        let (first, second) = (connect(&command).await?, connect(&command).await?);
        let mut older = first.subscriber::<Raw>("numbers", "jobs").open().await?;
        let mut newer = second.subscriber::<Raw>("numbers", "jobs").open().await?;
        let told = older.next_message().await;
        ensure!(matches!(told, Some(Err(ReadError::Taken(_)))), "{told:?}");
        let numbers = first.producer::<Raw>("numbers").build().await?;
        numbers.send(Record::new("0")).await?;
        let got = newer.next_message().await.context("a message")??;
        newer.ack_up_to(&got).await?;
        Ok(())
    })
}
