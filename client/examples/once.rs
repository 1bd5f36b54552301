//! A worker whose effect happens once, although messages are delivered at least once: the effect and the message's
//! id go into one transaction, and a message whose id is there is acknowledged and nothing more.
//!
//! `cargo run -p postrider --example once`, and in another terminal
//! `printf 'alice 5\nbob 3\nalice 4\n' | postrider pub payments`. Kill it whenever you like, and start it again.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks")]

use std::{env, error::Error, time::Duration};

use postrider::{Client, Delivery, Failure, NewQueue, Raw};
use rusqlite::{Connection, OptionalExtension as _};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("POSTRIDER_SERVER").unwrap_or_else(|_| "postrider://127.0.0.1:7420".into());
    let file = env::var("BALANCES").unwrap_or_else(|_| "balances.sqlite".into());
    let client = Client::builder(url).name("example-once").connect().await?;
    client.admin().create_queue(NewQueue::new("payments").if_not_exists()).await?;

    let mut balances = Connection::open(file)?;
    balances.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE IF NOT EXISTS balance (name TEXT PRIMARY KEY, amount INTEGER NOT NULL);
         -- Rows older than the longest that a message may be retried can be deleted.
         CREATE TABLE IF NOT EXISTS done (id TEXT PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID;",
    )?;

    let mut payments = client.consumer::<Raw>("payments").subscribe().await?;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let delivery = tokio::select! {
            _ = &mut interrupted => break,
            delivery = payments.next_delivery() => delivery,
        };
        let Some(delivery) = delivery else { break };
        let delivery = delivery?;
        match pay(&mut balances, &delivery) {
            Ok(said) => {
                println!("{said}");
                delivery.ack();
            }
            Err(why) => {
                eprintln!("{}: {why:?}", delivery.dedup_id());
                match why {
                    Failure::Reject { reason } => drop(delivery.reject(reason)),
                    Failure::Retry { reason, .. } => drop(delivery.nack(reason)),
                    _ => drop(delivery),
                }
            }
        }
    }
    payments.close(Duration::from_secs(10)).await;
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

/// The effect and the id, or neither.
fn pay(balances: &mut Connection, delivery: &Delivery<bytes::Bytes>) -> Result<String, Failure> {
    let text =
        std::str::from_utf8(delivery.value()).map_err(|why| Failure::reject(why.to_string()))?;
    let (name, amount) = text.split_once(' ').ok_or_else(|| Failure::reject("no amount"))?;
    let amount: i64 = amount.trim().parse().map_err(|_why| Failure::reject("no number"))?;
    let id = delivery.dedup_id();
    let mut once = || -> rusqlite::Result<bool> {
        let all = balances.transaction()?;
        let known =
            all.query_row("SELECT 1 FROM done WHERE id = ?1", [&id], |_row| Ok(())).optional()?;
        if known.is_some() {
            return Ok(false);
        }
        all.execute("INSERT INTO done (id) VALUES (?1)", [&id])?;
        all.execute(
            "INSERT INTO balance VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET amount = amount + ?2",
            (name, amount),
        )?;
        all.commit()?;
        Ok(true)
    };
    // Any error of the database is a retry after the queue's wait.
    match once().map_err(|why| Failure::retry(why.to_string()))? {
        true => Ok(format!("{id}: {name} + {amount}")),
        false => Ok(format!("{id}: was done before")),
    }
}
