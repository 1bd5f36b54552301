//! Owns how `sub` renders a message: raw, JSON or a format string. Pure. Driven by `sub`.
//!
//! | directive | meaning |
//! |---|---|
//! | `%t` `%p` `%o` | topic, partition, offset |
//! | `%k` `%K` | key, length of the key in bytes (`-1` without one) |
//! | `%s` `%S` | payload, length of the payload in bytes (`-1` for a tombstone) |
//! | `%h` | headers as `name=value`, separated by commas |
//! | `%T` | the producer's timestamp, Unix milliseconds |
//! | `%%` | a percent sign |
//! | `\n` `\r` `\t` `\0` `\\` `\xHH` | the byte |

use std::io::Write as _;

use serde_json::{Value, json};

/// A message as the renderers see it.
pub(crate) struct Shown<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: u64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) payload: Option<&'a [u8]>,
    /// Empty if the format does not show them.
    pub(crate) headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// How `sub` prints each message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MessageFormat {
    /// The payload and a newline.
    Raw,
    /// One JSON object per line.
    Json,
    /// A format string.
    Template(Template),
}

impl MessageFormat {
    /// Whether headers are shown; if not, they need not be decoded.
    pub(crate) fn shows_headers(&self) -> bool {
        match self {
            Self::Raw => false,
            Self::Json => true,
            Self::Template(Template(parts)) => parts.contains(&Part::Headers),
        }
    }

    /// Appends the message to `out`.
    pub(crate) fn render(&self, message: &Shown<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Raw => {
                out.extend_from_slice(message.payload.unwrap_or_default());
                out.push(b'\n');
            }
            Self::Json => {
                number(out, format_args!("{}\n", as_json(message)));
            }
            Self::Template(template) => template.render(message, out),
        }
    }
}

/// A parsed format string.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Literal(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    KeyBytes,
    Payload,
    PayloadBytes,
    Headers,
    Timestamp,
}

impl Template {
    /// Parses a format string.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => {
                    let Some(part) = directive(chars.next())? else {
                        literal.push(b'%');
                        continue;
                    };
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(part);
                }
                '\\' => literal.push(escape(&mut chars)?),
                c => literal.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }

    fn render(&self, message: &Shown<'_>, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Topic => out.extend_from_slice(message.topic.as_bytes()),
                Part::Partition => number(out, format_args!("{}", message.partition)),
                Part::Offset => number(out, format_args!("{}", message.offset)),
                Part::Key => out.extend_from_slice(message.key.unwrap_or_default()),
                Part::KeyBytes => length(out, message.key),
                Part::Payload => out.extend_from_slice(message.payload.unwrap_or_default()),
                Part::PayloadBytes => length(out, message.payload),
                Part::Headers => headers(out, message.headers),
                Part::Timestamp => number(out, format_args!("{}", message.timestamp_ms)),
            }
        }
    }
}

/// The part that a directive stands for; none for a literal percent sign.
fn directive(letter: Option<char>) -> Result<Option<Part>, String> {
    Ok(Some(match letter {
        Some('%') => return Ok(None),
        Some('t') => Part::Topic,
        Some('p') => Part::Partition,
        Some('o') => Part::Offset,
        Some('k') => Part::Key,
        Some('K') => Part::KeyBytes,
        Some('s') => Part::Payload,
        Some('S') => Part::PayloadBytes,
        Some('h') => Part::Headers,
        Some('T') => Part::Timestamp,
        Some(c) => return Err(format!("%{c} is unknown: use %t %p %o %k %K %s %S %h %T or %%")),
        None => return Err("the format ends with a single %; write %% for a percent sign".into()),
    }))
}

fn escape(chars: &mut std::str::Chars<'_>) -> Result<u8, String> {
    Ok(match chars.next() {
        Some('n') => b'\n',
        Some('r') => b'\r',
        Some('t') => b'\t',
        Some('0') => 0,
        Some('\\') => b'\\',
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            u8::from_str_radix(&digits, 16)
                .map_err(|_err| format!("\\x{digits} is not a byte: use two hex digits"))?
        }
        Some(c) => return Err(format!("\\{c} is unknown: use \\n \\r \\t \\0 \\\\ or \\xHH")),
        None => return Err("the format ends with a single \\; write \\\\ for a backslash".into()),
    })
}

fn number(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    out.write_fmt(text).unwrap_or(());
}

fn length(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => number(out, format_args!("{}", bytes.len())),
        None => out.extend_from_slice(b"-1"),
    }
}

fn headers(out: &mut Vec<u8>, headers: &[(&str, Option<&[u8]>)]) {
    for (at, (name, value)) in headers.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.unwrap_or_default());
    }
}

/// What is not UTF-8 appears under a name that ends in `_base64`.
fn as_json(message: &Shown<'_>) -> Value {
    let mut object = json!({
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp_ms": message.timestamp_ms,
    });
    put_bytes(&mut object, "key", message.key);
    put_bytes(&mut object, "value", message.payload);
    let headers: Vec<Value> = message
        .headers
        .iter()
        .map(|(name, value)| {
            let mut header = json!({ "name": name });
            put_bytes(&mut header, "value", *value);
            header
        })
        .collect();
    if !headers.is_empty() {
        object["headers"] = Value::Array(headers);
    }
    object
}

fn put_bytes(object: &mut Value, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => object[name] = Value::Null,
        Some((_, Ok(text))) => object[name] = Value::from(text),
        Some((bytes, Err(_))) => object[format!("{name}_base64")] = Value::from(base64(bytes)),
    }
}

/// RFC 4648 base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = 0u32;
        for at in 0..3 {
            word = word << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(format: &MessageFormat, key: Option<&[u8]>, payload: Option<&[u8]>) -> Vec<u8> {
        let headers = [("a", Some(&b"1"[..])), ("b", None)];
        let shown = Shown {
            topic: "orders",
            partition: 2,
            offset: 41,
            timestamp_ms: 1_700_000_000_000,
            key,
            payload,
            headers: &headers,
        };
        let mut out = Vec::new();
        format.render(&shown, &mut out);
        out
    }

    fn template(text: &str) -> MessageFormat {
        MessageFormat::Template(Template::parse(text).expect("valid"))
    }

    #[test]
    fn template_fills_every_directive() {
        let format = template(r"%t[%p]@%o %k(%K)=%s(%S) %h %T 100%%\t\x41\n");
        assert_eq!(
            rendered(&format, Some(b"key"), Some(b"value")),
            b"orders[2]@41 key(3)=value(5) a=1,b= 1700000000000 100%\tA\n"
        );
        assert_eq!(rendered(&template("%K %S"), None, None), b"-1 -1");
    }

    #[test]
    fn template_refuses_what_it_does_not_know() {
        for text in ["%q", "%", "\\q", "\\", "\\xZZ"] {
            assert!(Template::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn raw_is_the_payload_and_a_newline() {
        assert_eq!(rendered(&MessageFormat::Raw, None, Some(b"\xff\r")), b"\xff\r\n");
        assert_eq!(rendered(&MessageFormat::Raw, None, Some(b"")), b"\n");
    }

    #[test]
    fn json_keeps_bytes_that_are_not_text() {
        let line = rendered(&MessageFormat::Json, Some(b"k"), Some(b"\xff\x00"));
        let value: Value = serde_json::from_slice(&line).expect("json");
        assert_eq!(value["key"], "k");
        assert_eq!(value["value_base64"], "/wA=");
        assert_eq!(value["headers"][0]["name"], "a");
        assert_eq!(line.last(), Some(&b'\n'));
    }

    #[test]
    fn base64_matches_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
