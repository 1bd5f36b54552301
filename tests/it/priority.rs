//! Several queues by priority, through the real client and a real broker.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use postrider::{Client, NewQueue, OnDrop, PriorityConsumer, Raw, Record};

use crate::broker;

const MESSAGES: u64 = 300;

async fn filled(client: &Client) -> Result<()> {
    for queue in ["urgent", "bulk"] {
        client.admin().create_queue(NewQueue::new(queue)).await?;
        let producer = client.producer::<Raw>(queue).build().await?;
        for number in 0..MESSAGES {
            // Whether all are stored is what the flush says.
            let _ack = producer.enqueue(Record::new(number.to_string())).await?;
        }
        producer.flush().await?;
    }
    Ok(())
}

/// Takes so many messages, acknowledges them, and tells which queues they were of.
async fn take(consumer: &mut PriorityConsumer<Raw>, count: usize) -> Result<Vec<usize>> {
    let mut queues = Vec::new();
    for _ in 0..count {
        let next = consumer.next_delivery().await.context("the stream goes on")??;
        ensure!(next.delivery.failures() == 0 && next.delivery.attempt() <= 2, "{next:?}");
        queues.push(next.queue);
        next.delivery.ack().await?;
    }
    Ok(queues)
}

fn on_client(test: impl AsyncFnOnce(&Client) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let _running = command.start()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let client = Client::builder(command.url()).name("tests").connect().await?;
        test(&client).await
    })
}

#[test]
fn each_queue_has_its_share_of_turns_and_everything_comes_once() -> Result<()> {
    on_client(async |client| {
        filled(client).await?;
        let mut consumer = client
            .priority_consumer::<Raw>()
            .queue("urgent", 3)
            .queue("bulk", 1)
            .prefetch(64)
            .subscribe()
            .await?;
        let first = take(&mut consumer, 200).await?;
        let urgent = first.iter().filter(|queue| **queue == 0).count();
        // An acknowledgement takes its time to bring the next message, so the share is not exact.
        ensure!((120..=180).contains(&urgent), "{urgent} of 200, with weights of 3 to 1");
        take(&mut consumer, 400).await?;
        for queue in ["urgent", "bulk"] {
            let described = client.admin().describe_queue(queue).await?;
            let acked: u64 = described.partitions.iter().map(|one| one.acked).sum();
            ensure!(acked == MESSAGES, "{queue}: {acked} of {MESSAGES} acknowledged");
        }
        Ok(())
    })
}

#[test]
fn a_light_queue_is_passed_over_so_often_and_no_more() -> Result<()> {
    on_client(async |client| {
        filled(client).await?;
        let mut consumer = client
            .priority_consumer::<Raw>()
            .queue("urgent", 100_000)
            .queue("bulk", 1)
            .floor(9)
            .prefetch(64)
            .subscribe()
            .await?;
        let went = take(&mut consumer, 150).await?;
        let bulk = went.iter().filter(|queue| **queue == 1).count();
        ensure!((10..=40).contains(&bulk), "{bulk} of 150, with a floor of one in ten");
        Ok(())
    })
}

#[test]
fn what_waits_for_its_turn_is_given_back_without_a_failure() -> Result<()> {
    on_client(async |client| {
        filled(client).await?;
        let mut consumer = client
            .priority_consumer::<Raw>()
            .queue("urgent", 10)
            .queue("bulk", 1)
            .on_drop(OnDrop::Nack)
            .subscribe()
            .await?;
        take(&mut consumer, 5).await?;
        drop(consumer);
        let mut bulk = client.consumer::<Raw>("bulk").subscribe().await?;
        let before = client.admin().describe_queue("bulk").await?.partitions[0].acked;
        let mut values = BTreeSet::new();
        for _ in before..MESSAGES {
            let delivery = bulk.next_delivery().await.context("the stream goes on")??;
            ensure!(delivery.failures() == 0, "it was not begun: {delivery:?}");
            values.insert(delivery.value().clone());
            delivery.ack().await?;
        }
        ensure!(values.len() as u64 == MESSAGES - before, "each once");
        Ok(())
    })
}

#[test]
fn weights_and_floors_of_nothing_are_refused() -> Result<()> {
    on_client(async |client| {
        client.admin().create_queue(NewQueue::new("urgent")).await?;
        let none = client.priority_consumer::<Raw>().subscribe().await;
        ensure!(none.is_err_and(|error| error.to_string().contains("queue")));
        let weightless = client.priority_consumer::<Raw>().queue("urgent", 0).subscribe().await;
        ensure!(weightless.is_err_and(|error| error.to_string().contains("weight")));
        let unknown = client.priority_consumer::<Raw>().queue("nowhere", 1).subscribe().await;
        ensure!(unknown.is_err_and(|error| error.to_string().contains("nowhere")));
        Ok(())
    })
}
