//! The client against a scripted broker: the engine over bytes, and the whole client over TCP. Needs no broker.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a peer in a test fails loudly, and its numbers are small"
)]

mod consume;
mod consume_tcp;
mod peer;
mod publish;
mod queue_peer;
mod request;
mod subscribe;
mod tcp;
mod world;
