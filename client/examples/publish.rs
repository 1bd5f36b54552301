//! Publishes lines of text: one durable `send`, then a pipeline of `enqueue`s.
//!
//! `cargo run --release -- server` in one terminal, then `cargo run -p postrider --example publish`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks")]

use std::{env, error::Error, time::Duration};

use postrider::{Client, NewTopic, Raw, Record, TrySendError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("POSTRIDER_SERVER").unwrap_or_else(|_| "postrider://127.0.0.1:7420".into());
    let client = Client::builder(url).name("example-publish").connect().await?;
    client.admin().create_topic(NewTopic::new("example").partitions(3).if_not_exists()).await?;

    let producer = client.producer::<Raw>("example").build().await?;

    // The safe default: one await, resolved when the message is on disk.
    let receipt = producer.send(Record::new("first").key("cust-7")).await?;
    println!("stored at {}/{} ({})", receipt.partition, receipt.offset, receipt.durability.name());

    // Pipelined: the first await is room in the buffer, the second, later, is durability.
    let mut acks = Vec::new();
    for n in 0..10_000 {
        let record = Record::new(format!("message {n}")).header("n", n.to_string());
        acks.push(producer.enqueue(record).await?);
    }
    for ack in acks {
        ack.await?;
    }

    // Never waits: a full buffer hands the record back.
    match producer.try_enqueue(Record::new("last")) {
        Ok(_ack) => {}
        Err(TrySendError::Full(_record)) => eprintln!("shed load here"),
        Err(why) => return Err(why.into()),
    }

    let left = client.close(Duration::from_secs(5)).await;
    println!("unsent {}, unacknowledged {}", left.unsent, left.unacked);
    Ok(())
}
