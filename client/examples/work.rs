//! Works on a queue: many copies of this program share the messages. What fails comes again later, what can never
//! succeed goes to the dead letter topic.
//!
//! `cargo run -p postrider --example work`, and in another terminal `echo "some work" | postrider pub jobs`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks")]

use std::{env, error::Error, time::Duration};

use bytes::Bytes;
use postrider::{Client, Failure, Message, NewQueue, Raw};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("POSTRIDER_SERVER").unwrap_or_else(|_| "postrider://127.0.0.1:7420".into());
    let client = Client::builder(url).name("example-work").connect().await?;
    client.admin().create_queue(NewQueue::new("jobs").if_not_exists()).await?;

    let mut jobs = client.consumer::<Raw>("jobs").prefetch(16).subscribe().await?;
    let interrupted = async {
        if let Err(why) = tokio::signal::ctrl_c().await {
            eprintln!("{why}");
        }
    };
    // Up to eight at once. After an interrupt, what was begun is finished and the rest goes to other workers.
    jobs.work_until(interrupted, 8, handle).await?;
    let left = jobs.close(Duration::from_secs(10)).await;
    println!("done; {} outcomes without an answer", left.unsettled);
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

/// `Ok` acknowledges, any error is a retry after the queue's wait.
async fn handle(job: Message<Bytes>) -> Result<(), Failure> {
    let text = std::str::from_utf8(&job.value).map_err(|why| Failure::reject(why.to_string()))?;
    println!("{}/{} {text}", job.partition, job.offset);
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}
