//! Reads a topic from its beginning to its present end, batch by batch, and prints how fast.
//!
//! `cargo run --release -p postrider --example replay [TOPIC]`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks")]

use std::{collections::BTreeMap, env, error::Error, time::Instant};

use postrider::{Client, Raw, ReadError, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("POSTRIDER_SERVER").unwrap_or_else(|_| "postrider://127.0.0.1:7420".into());
    let topic = env::args().nth(1).unwrap_or_else(|| "example".into());
    let client = Client::builder(url).name("example-replay").connect().await?;
    let mut reader = client.reader::<Raw>(topic).from(Start::Earliest).open().await?;

    // Where each partition ends now; done when all are reached.
    let mut open: BTreeMap<_, _> = reader
        .partitions()
        .iter()
        .filter(|at| at.next < at.high_watermark)
        .map(|at| (at.partition, at.high_watermark))
        .collect();

    let (started, mut messages, mut bytes) = (Instant::now(), 0u64, 0usize);
    while !open.is_empty() {
        let Some(batch) = reader.next_batch().await else { break };
        let batch = match batch {
            Ok(batch) => batch,
            // Told, never skipped silently.
            Err(gap @ ReadError::Gap { .. }) => {
                eprintln!("{gap}");
                continue;
            }
            Err(why) => return Err(why.into()),
        };
        for message in &batch {
            messages += 1;
            bytes += message?.value.map_or(0, <[u8]>::len);
        }
        if open.get(&batch.partition()).is_some_and(|end| batch.end() >= *end) {
            open.remove(&batch.partition());
        }
    }
    println!("{messages} messages, {bytes} bytes in {:?}", started.elapsed());
    Ok(())
}
