//! Consumes a durable subscription: processes messages, acknowledges them, and continues where it was when it is
//! started again.
//!
//! `cargo run -p postrider --example subscribe`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks")]

use std::{env, error::Error, time::Duration};

use futures_util::StreamExt;
use postrider::{Client, Raw, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("POSTRIDER_SERVER").unwrap_or_else(|_| "postrider://127.0.0.1:7420".into());
    let client = Client::builder(url).name("example-subscribe").connect().await?;
    let mut jobs =
        client.subscriber::<Raw>("example", "billing").from(Start::Earliest).open().await?;

    loop {
        tokio::select! {
            next = jobs.next() => {
                let Some(message) = next else { break };
                let message = match message {
                    Ok(message) => message,
                    // Gaps and seeks are told in the stream, which goes on; only fatal errors end it.
                    Err(why) if !why.is_fatal() => {
                        eprintln!("{why}");
                        continue;
                    }
                    Err(why) => return Err(why.into()),
                };
                println!("{}/{} {:?}", message.partition, message.offset, message.value);
                // On its way at once; await the result to know that it is stored.
                let _stored = jobs.ack_up_to(&message);
            }
            () = tokio::time::sleep(Duration::from_secs(5)) => break,
        }
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
