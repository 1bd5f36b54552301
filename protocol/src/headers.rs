//! Owns the names of the standard headers. Never interprets a value.

/// The message's UUIDv7, as text. Not part of what makes two payloads equal: who starts again makes a new one.
pub const MESSAGE_ID: &str = "message-id";
/// Ties a reply to its request.
pub const CORRELATION_ID: &str = "correlation-id";
/// The topic that replies go to.
pub const REPLY_TO: &str = "reply-to";
/// The media type of the value.
pub const CONTENT_TYPE: &str = "content-type";
/// What makes two publishes the same message within the topic's window, 1 to [`IDEMPOTENCY_KEY_BYTES_MAX`] bytes.
/// The broker looks for it where the publish says that it is there.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The most bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// W3C Trace Context. Not part of what makes two payloads equal.
pub const TRACEPARENT: &str = "traceparent";
/// W3C Trace Context. Not part of what makes two payloads equal.
pub const TRACESTATE: &str = "tracestate";

/// Every standard header.
pub const STANDARD: &[&str] =
    &[MESSAGE_ID, CORRELATION_ID, REPLY_TO, CONTENT_TYPE, IDEMPOTENCY_KEY, TRACEPARENT, TRACESTATE];

/// Headers that two sends of one message may differ in.
pub const NOT_OF_PAYLOAD: &[&str] = &[MESSAGE_ID, IDEMPOTENCY_KEY, TRACEPARENT, TRACESTATE];
