//! `bench verify`: publishes numbered messages, records what was acknowledged, judges what is stored.
//!
//! A *run* is one publishing invocation. A *stream* is what one producer of a run sends to one partition;
//! its messages are numbered from 0, so that a stream read back must be 0, 1, 2, ... `message` owns the
//! payload, `state` the file of acknowledgements, `checker` the judgement.

mod check;
mod checker;
mod message;
mod run;
mod state;

use super::args::VerifyOptions;
use crate::connect::block_on;
use crate::exit::Outcome;

/// Publishes and judges, or only one of both.
pub(crate) fn run(options: &VerifyOptions) -> Outcome {
    block_on(1, async {
        if !options.check {
            run::publish(options).await?;
        }
        if options.no_check {
            return Ok(());
        }
        check::judge(options).await
    })
}

/// Names a stream within a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Stream {
    pub(crate) producer: u32,
    pub(crate) partition: u32,
}

/// Consecutive messages of a stream at consecutive offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) base_offset: u64,
}

impl Span {
    /// One past the last sequence.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Where a message of the span lies.
    pub(crate) fn offset_of(&self, sequence: u64) -> u64 {
        self.base_offset + (sequence - self.first)
    }

    /// Adds the message that continues the span in both numbers; false if it does not.
    pub(crate) fn extend(&mut self, sequence: u64, offset: u64) -> bool {
        let continues = sequence == self.end() && offset == self.offset_of(sequence);
        if continues {
            self.count += 1;
        }
        continues
    }
}
