//! Publishes and reads a serde type as JSON.
//!
//! `cargo run -p postrider --example typed`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks")]

use std::{env, error::Error};

use futures_util::StreamExt;
use postrider::{Client, Json, NewTopic, ReadError, Record, Start};

#[derive(serde::Serialize, serde::Deserialize, Debug)]
struct Order {
    id: u64,
    cents: i64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("POSTRIDER_SERVER").unwrap_or_else(|_| "postrider://127.0.0.1:7420".into());
    let client = Client::builder(url).name("example-typed").connect().await?;
    client.admin().create_topic(NewTopic::new("orders").if_not_exists()).await?;

    let orders = client.producer::<Json<Order>>("orders").build().await?;
    let receipt = orders.send(Record::new(Order { id: 1, cents: 999 }).key("cust-7")).await?;

    let from = Start::Offset(receipt.offset);
    let mut reader = client.reader::<Json<Order>>("orders").from(from).open().await?;
    match reader.next().await {
        Some(Ok(message)) => println!("{:?} with key {:?}", message.value, message.key),
        // A payload of another type is an error of this message alone; the stream goes on.
        Some(Err(why @ ReadError::Decode { .. })) => eprintln!("{why}"),
        Some(Err(why)) => return Err(why.into()),
        None => {}
    }
    Ok(())
}
