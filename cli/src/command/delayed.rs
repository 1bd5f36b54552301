//! `postrider cancel`, and what else the command line says of delayed messages.

use postrider::{Admin, CancelVerdict, DelayedPartition, ErrorCode};

use crate::args::CancelOptions;
use crate::connect::{admin_failure, block_on, close, connect};
use crate::exit::{Failure, Outcome};
use crate::output::print;

/// Takes delayed messages back.
pub(crate) fn cancel(options: &CancelOptions) -> Outcome {
    block_on(1, async {
        let client = connect(&options.client).await?;
        let cancelled = client.admin().cancel_delayed(&options.topic, &options.ids).await;
        close(&client).await;
        let verdicts = cancelled.map_err(|error| admin_failure(&error, &options.topic))?;
        let lines: String = options
            .ids
            .iter()
            .zip(&verdicts)
            .map(|(id, verdict)| format!("{id} {}\n", word(*verdict)))
            .collect();
        print(&lines)?;
        let left = verdicts.iter().filter(|verdict| **verdict != CancelVerdict::Cancelled).count();
        if left == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!("{left} of {} messages were not cancelled", verdicts.len()))
            .next("`released` ones were delivered before; of `unknown` ones check topic and id"))
    })
}

fn word(verdict: CancelVerdict) -> &'static str {
    match verdict {
        CancelVerdict::Cancelled => "cancelled",
        CancelVerdict::Released => "released",
        CancelVerdict::Unknown => "unknown",
    }
}

/// Messages of a topic that wait for their time.
pub(crate) async fn scheduled(admin: &Admin, topic: &str) -> Outcome<u64> {
    match admin.delayed(topic).await {
        Ok(partitions) => Ok(sum(&partitions)),
        // A broker from before there were any.
        Err(error) if error.broker_error().is_some_and(|b| b.code == ErrorCode::UnknownApi) => {
            Ok(0)
        }
        Err(error) => Err(admin_failure(&error, topic)),
    }
}

fn sum(partitions: &[DelayedPartition]) -> u64 {
    partitions.iter().map(|partition| partition.scheduled).sum()
}
