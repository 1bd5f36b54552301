//! Owns how a setting is written as text and read back: sizes, durations, addresses, counts.
//!
//! Never knows which settings there are. Driven by the key table, for the file, the environment and
//! the flags alike.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// A number of bytes, written `64MiB`, `1.5KiB`, `100MB` or plainly `4096`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// A `host:port`, resolved when the server starts.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Address(pub String);

/// What a key's value is, for documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// `64MiB`.
    Bytes,
    /// `5s`.
    Duration,
    /// A plain number.
    Count,
    /// `true` or `false`.
    Switch,
    /// A file path.
    Path,
    /// `host:port`.
    Address,
}

impl Unit {
    /// The word in the documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Duration => "duration",
            Self::Count => "count",
            Self::Switch => "switch",
            Self::Path => "path",
            Self::Address => "host:port",
        }
    }

    /// Whether a value stands in quotes in the file.
    #[must_use]
    pub fn quoted(self) -> bool {
        !matches!(self, Self::Count | Self::Switch)
    }
}

/// A type that a setting may have. The range is in the type's own base unit: bytes, milliseconds, items.
pub trait Setting: Sized {
    /// What it is.
    const UNIT: Unit;

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong and what to write instead, as the end of a sentence.
    fn parse(text: &str, range: &RangeInclusive<u64>) -> Result<Self, String>;

    /// Writes it so that [`Setting::parse`] reads the same value.
    fn show(&self) -> String;
}

impl Setting for ByteSize {
    const UNIT: Unit = Unit::Bytes;

    fn parse(text: &str, range: &RangeInclusive<u64>) -> Result<Self, String> {
        const UNITS: &[(&str, u64)] = &[
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1_000),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
            ("", 1),
        ];
        let value = scaled(text, UNITS).ok_or_else(|| {
            format!("{text:?} is not a size: write a number and a unit, for example \"64MiB\"")
        })?;
        within(value, range, |bytes| Self(bytes).show())?;
        Ok(Self(value))
    }

    fn show(&self) -> String {
        const UNITS: [(&str, u64); 4] =
            [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (unit, factor) in UNITS {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return format!("{}{unit}", self.0 / factor);
            }
        }
        format!("{}B", self.0)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

impl Setting for Duration {
    const UNIT: Unit = Unit::Duration;

    fn parse(text: &str, range: &RangeInclusive<u64>) -> Result<Self, String> {
        const UNITS: &[(&str, u64)] =
            &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let millis = scaled(text, UNITS).ok_or_else(|| {
            format!(
                "{text:?} is not a duration: write a number and one of ms, s, m, h, d, for example \"5s\""
            )
        })?;
        within(millis, range, |ms| Self::from_millis(ms).show())?;
        Ok(Self::from_millis(millis))
    }

    fn show(&self) -> String {
        let millis = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        const UNITS: [(&str, u64); 4] =
            [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        for (unit, factor) in UNITS {
            if millis >= factor && millis.is_multiple_of(factor) {
                return format!("{}{unit}", millis / factor);
            }
        }
        format!("{millis}ms")
    }
}

impl Setting for u32 {
    const UNIT: Unit = Unit::Count;

    fn parse(text: &str, range: &RangeInclusive<u64>) -> Result<Self, String> {
        let digits = text.replace('_', "");
        let value: u64 = digits
            .parse()
            .ok()
            .filter(|_| digits.starts_with(|c: char| c.is_ascii_digit()))
            .ok_or_else(|| format!("{text:?} is not a number: write digits only"))?;
        within(value, range, |v| v.to_string())?;
        Self::try_from(value).map_err(|error| format!("{value}: {error}: at most {}", Self::MAX))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    const UNIT: Unit = Unit::Switch;

    fn parse(text: &str, _: &RangeInclusive<u64>) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for PathBuf {
    const UNIT: Unit = Unit::Path;

    fn parse(text: &str, _: &RangeInclusive<u64>) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty path names nothing: write a directory".to_owned());
        }
        Ok(Self::from(text))
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Setting for Address {
    const UNIT: Unit = Unit::Address;

    fn parse(text: &str, range: &RangeInclusive<u64>) -> Result<Self, String> {
        // A range that starts at 0 allows the empty address.
        if text.is_empty() && *range.start() == 0 {
            return Ok(Self::default());
        }
        let good = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not host:port: write for example \"127.0.0.1:7420\""))
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Address {
    /// The socket addresses behind the name; a literal address needs no look-up.
    ///
    /// # Errors
    /// The resolver's error.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok(self.0.to_socket_addrs()?.collect())
    }

    /// Host and port apart; an IPv6 host without its brackets.
    #[must_use]
    pub fn split(&self) -> Option<(&str, u16)> {
        let (host, port) = self.0.rsplit_once(':')?;
        Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn within(
    value: u64,
    range: &RangeInclusive<u64>,
    show: impl Fn(u64) -> String,
) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (show(*range.start()), show(*range.end()));
    Err(format!("{} is out of range: from {low} to {high}", show(value)))
}

/// `digits[.digits]` and one of the units, in the base unit. Underscores between digits are skipped.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '_')).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let unit = unit.trim_start();
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let mut value = u128::from(whole.parse::<u64>().ok()?) * u128::from(factor);
    if number.contains('.') {
        if fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor);
        if part % scale != 0 {
            return None; // half a byte, half a millisecond
        }
        value += part / scale;
    }
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: RangeInclusive<u64> = 0..=u64::MAX;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("1.5KiB", 1536),
            ("100 MB", 100_000_000),
            ("1_000kB", 1_000_000),
            ("2GiB", 2 << 30),
            ("0B", 0),
        ] {
            assert_eq!(ByteSize::parse(text, &ANY), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.MiB", "1e6", "64mib", "0.3B", "99999999999TiB", "1.2.3KiB"]
        {
            assert!(ByteSize::parse(text, &ANY).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(Duration::parse("1.5s", &ANY), Ok(Duration::from_millis(1500)));
        assert_eq!(Duration::parse("7d", &ANY), Ok(Duration::from_secs(7 * 86_400)));
        assert!(Duration::parse("5", &ANY).unwrap_err().contains("\"5s\""));
        assert!(Duration::parse("0.1ms", &ANY).is_err());
    }

    #[test]
    fn what_is_shown_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1536, 64 << 20, 5 << 40, u64::MAX] {
            let size = ByteSize(bytes);
            assert_eq!(ByteSize::parse(&size.show(), &ANY), Ok(size));
        }
        for millis in [0, 1, 999, 1000, 90_000, 86_400_000, 123_456_789] {
            let duration = Duration::from_millis(millis);
            assert_eq!(Duration::parse(&duration.show(), &ANY), Ok(duration));
        }
    }

    #[test]
    fn a_value_out_of_range_names_the_range() {
        let error = ByteSize::parse("1B", &((1 << 10)..=(1 << 20))).unwrap_err();
        assert_eq!(error, "1B is out of range: from 1KiB to 1MiB");
    }

    #[test]
    fn an_address_is_host_and_port() {
        assert!(Address::parse("127.0.0.1:0", &(1..=1)).is_ok());
        assert!(Address::parse("[::1]:7420", &(1..=1)).is_ok());
        assert_eq!(Address("[::1]:7420".to_owned()).split(), Some(("::1", 7420)));
        for text in ["", "7420", ":7420", "host:", "host:70000"] {
            assert!(Address::parse(text, &(1..=1)).is_err(), "{text}");
        }
        assert!(Address::parse("", &(0..=1)).is_ok());
    }
}
