//! Owns the names of the standard headers. Never interprets a value.

/// The message's UUIDv7, as text.
pub const MESSAGE_ID: &str = "message-id";
/// Ties a reply to its request.
pub const CORRELATION_ID: &str = "correlation-id";
/// The topic that replies go to.
pub const REPLY_TO: &str = "reply-to";
/// The media type of the value.
pub const CONTENT_TYPE: &str = "content-type";
/// W3C Trace Context. Not part of what makes two payloads equal.
pub const TRACEPARENT: &str = "traceparent";
/// W3C Trace Context. Not part of what makes two payloads equal.
pub const TRACESTATE: &str = "tracestate";

/// Every standard header.
pub const STANDARD: &[&str] =
    &[MESSAGE_ID, CORRELATION_ID, REPLY_TO, CONTENT_TYPE, TRACEPARENT, TRACESTATE];
