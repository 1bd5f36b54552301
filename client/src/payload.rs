//! Owns how values become payloads and back: [`Raw`] bytes and [`Json`]. Never sees a connection. Driven by
//! producers and readers.

use std::{borrow::Cow, marker::PhantomData};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// A value could not be encoded; nothing was published.
#[derive(Debug, thiserror::Error)]
#[error("the value cannot be encoded: {0}")]
pub struct EncodeError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A payload is not a value of the expected type.
#[derive(Debug, thiserror::Error)]
#[error("the payload cannot be decoded: {0}")]
pub struct DecodeError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A codec that can encode `V`.
pub trait Encode<V> {
    /// The payload's bytes; borrowed where the value already is bytes.
    ///
    /// # Errors
    /// The value has no encoding.
    fn encode(value: &V) -> Result<Cow<'_, [u8]>, EncodeError>;
}

/// A codec that can decode.
pub trait Decode {
    /// What it decodes to.
    type Value;

    /// The value of a payload; `None` is the payload of a message without a value (a tombstone).
    ///
    /// # Errors
    /// The payload is not such a value.
    fn decode(payload: Option<Bytes>) -> Result<Self::Value, DecodeError>;
}

/// Bytes as they are. Publishes whatever is bytes (`Bytes`, `Vec<u8>`, `String`, `&str`, ...), reads
/// [`Bytes`]; a message without a value reads as empty.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl<V: AsRef<[u8]>> Encode<V> for Raw {
    fn encode(value: &V) -> Result<Cow<'_, [u8]>, EncodeError> {
        Ok(Cow::Borrowed(value.as_ref()))
    }
}

impl Decode for Raw {
    type Value = Bytes;

    fn decode(payload: Option<Bytes>) -> Result<Bytes, DecodeError> {
        Ok(payload.unwrap_or_default())
    }
}

/// A serde type as JSON. A message without a value reads as `null`.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(PhantomData<fn() -> T>);

impl<T: Serialize> Encode<T> for Json<T> {
    fn encode(value: &T) -> Result<Cow<'_, [u8]>, EncodeError> {
        serde_json::to_vec(value).map(Cow::Owned).map_err(|why| EncodeError(why.into()))
    }
}

impl<T: DeserializeOwned> Decode for Json<T> {
    type Value = T;

    fn decode(payload: Option<Bytes>) -> Result<T, DecodeError> {
        let payload = payload.as_deref().unwrap_or(b"null");
        serde_json::from_slice(payload).map_err(|why| DecodeError(why.into()))
    }
}
