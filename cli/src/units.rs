//! Owns the spellings of quantities on the command line: bytes, counts, durations, rates, sizes.
//! Pure text to number and back. Used by the argument parser and the reports.

use std::fmt::Write as _;
use std::time::Duration;

/// Splits `12.5KiB` into the number's text and the unit.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '_' | ',')))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

fn plain(number: &str) -> String {
    number.replace(['_', ','], "")
}

/// `number * factor`, exact for whole numbers and for decimals that come out whole enough.
fn scaled(text: &str, number: &str, factor: u64) -> Result<u64, String> {
    let digits = plain(number);
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"));
    }
    let value: f64 = digits.parse().map_err(|_err| format!("{text:?} is not a number"))?;
    let product = value * factor as f64;
    if !product.is_finite() || product >= u64::MAX as f64 {
        return Err(format!("{text:?} is too large"));
    }
    Ok(to_u64(product))
}

/// The whole part of a non-negative number.
pub(crate) fn to_u64(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    let whole = value as u64;
    whole
}

/// Bytes: `64`, `1KiB`, `256k`, `10MB`. `K`, `M`, `G` are powers of 1000; `Ki`, `Mi`, `Gi` of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text.trim());
    let factor = match unit.to_ascii_lowercase().trim_end_matches('b') {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "t" => 1_000_000_000_000,
        "ki" => 1 << 10,
        "mi" => 1 << 20,
        "gi" => 1 << 30,
        "ti" => 1 << 40,
        _ => return Err(format!("{text:?} has no known unit: use B, KB, KiB, MB, MiB, GB or GiB")),
    };
    scaled(text, number, factor)
}

/// A count: `5000`, `100k`, `1.5M`, `5_000_000`.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text.trim());
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "m" | "M" => 1_000_000,
        "g" | "G" => 1_000_000_000,
        _ => return Err(format!("{text:?} has no known unit: use k, M or G")),
    };
    scaled(text, number, factor)
}

/// A count of at least one.
pub(crate) fn parse_positive(text: &str) -> Result<u64, String> {
    match parse_count(text)? {
        0 => Err("must be at least 1".into()),
        count => Ok(count),
    }
}

/// A duration: `250us`, `5ms`, `10s`, `1h30m`, `7d`. A plain number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_duration_with_unit(text) {
        Err(_) if text.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0) => {
            let seconds: f64 = text.parse().map_err(|_err| format!("{text:?} is not a number"))?;
            Duration::try_from_secs_f64(seconds).map_err(|err| format!("{text:?}: {err}"))
        }
        other => other,
    }
}

/// A duration that must name its unit, where a plain number would be read two ways; `0` needs none.
pub(crate) fn parse_duration_with_unit(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err("a duration is empty: use for example 5ms, 10s or 1h30m".into());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_unit(rest);
        let unit_end =
            after.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_end);
        let seconds_per_unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            "" => return Err(format!("{text:?} has no unit: use us, ms, s, m, h or d")),
            _ => return Err(format!("{text:?} has no known unit: use us, ms, s, m, h or d")),
        };
        let value: f64 =
            plain(number).parse().map_err(|_err| format!("{text:?} is not a duration"))?;
        let part = Duration::try_from_secs_f64(value * seconds_per_unit)
            .map_err(|err| format!("{text:?}: {err}"))?;
        total = total.checked_add(part).ok_or_else(|| format!("{text:?} is too long"))?;
        rest = tail.trim_start();
    }
    Ok(total)
}

/// How fast a load generator offers messages, over all its connections.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Rate {
    /// As fast as the broker confirms: a closed loop.
    Max,
    /// Messages per second.
    Messages(f64),
    /// Bytes per second.
    Bytes(f64),
}

impl Rate {
    /// Messages per second, given the mean size of a message. `None` for a closed loop.
    pub(crate) fn messages_per_s(self, mean_bytes: f64) -> Option<f64> {
        match self {
            Self::Max => None,
            Self::Messages(rate) => Some(rate),
            Self::Bytes(rate) => Some(rate / mean_bytes.max(1.0)),
        }
    }
}

/// A rate: `1000`, `100k`, `100k/s` (messages), `10MB/s` (bytes), `max`.
pub(crate) fn parse_rate(text: &str) -> Result<Rate, String> {
    let bare = text.trim();
    if bare.eq_ignore_ascii_case("max") {
        return Ok(Rate::Max);
    }
    let amount = bare.strip_suffix("/s").unwrap_or(bare);
    let (_, unit) = split_unit(amount);
    let in_bytes = unit.ends_with(['b', 'B', 'i']);
    let value = if in_bytes { parse_bytes(amount)? } else { parse_count(amount)? };
    match value {
        0 => Err("a rate must be at least 1".into()),
        value if in_bytes => Ok(Rate::Bytes(value as f64)),
        value => Ok(Rate::Messages(value as f64)),
    }
}

/// The sizes of generated payloads: one size, or a uniform range with both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SizeRange {
    pub(crate) smallest: usize,
    pub(crate) largest: usize,
}

impl SizeRange {
    pub(crate) fn mean(self) -> f64 {
        f64::midpoint(self.smallest as f64, self.largest as f64)
    }
}

/// A payload size: `1KiB`, or `200..4096` for sizes spread evenly from the first to the last.
pub(crate) fn parse_size(text: &str) -> Result<SizeRange, String> {
    let bytes = |part: &str| {
        let bytes = parse_bytes(part)?;
        usize::try_from(bytes).map_err(|err| format!("{part:?}: {err}"))
    };
    let (smallest, largest) = match text.split_once("..") {
        Some((smallest, largest)) => (bytes(smallest)?, bytes(largest)?),
        None => (bytes(text)?, bytes(text)?),
    };
    if smallest > largest {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(SizeRange { smallest, largest })
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for people: `1.5 GiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A duration for people, exact: `7d`, `1h30m`, `1500ms`.
pub(crate) fn human_ms(ms: u64) -> String {
    let mut text = String::new();
    let mut rest = ms;
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if rest >= unit_ms {
            // Writing to a String cannot fail.
            write!(text, "{}{unit}", rest / unit_ms).unwrap_or(());
            rest %= unit_ms;
        }
    }
    if rest > 0 || text.is_empty() {
        write!(text, "{rest}ms").unwrap_or(());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_know_both_kinds_of_prefix() {
        assert_eq!(parse_bytes("64"), Ok(64));
        assert_eq!(parse_bytes("1KiB"), Ok(1024));
        assert_eq!(parse_bytes("256k"), Ok(256_000));
        assert_eq!(parse_bytes("1.5MiB"), Ok(1_572_864));
        assert_eq!(parse_bytes("10 GB"), Ok(10_000_000_000));
        assert!(parse_bytes("1 parsec").is_err());
        assert!(parse_bytes("KiB").is_err());
        assert!(parse_bytes("99999999999999TiB").is_err());
    }

    #[test]
    fn counts_take_suffixes_and_separators() {
        assert_eq!(parse_count("100k"), Ok(100_000));
        assert_eq!(parse_count("1.5M"), Ok(1_500_000));
        assert_eq!(parse_count("5_000,000"), Ok(5_000_000));
        assert!(parse_count("-1").is_err());
        assert!(parse_positive("0").is_err());
    }

    #[test]
    fn durations_combine_units() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert!(parse_duration("-5s").is_err());
        assert!(parse_duration("five").is_err());
        assert!(parse_duration("").is_err());
        assert!(parse_duration_with_unit("5").is_err());
        assert_eq!(parse_duration_with_unit("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn rates_are_messages_or_bytes() {
        assert_eq!(parse_rate("max"), Ok(Rate::Max));
        assert_eq!(parse_rate("100k/s"), Ok(Rate::Messages(100_000.0)));
        assert_eq!(parse_rate("1000"), Ok(Rate::Messages(1_000.0)));
        assert_eq!(parse_rate("10MB/s"), Ok(Rate::Bytes(10_000_000.0)));
        assert_eq!(Rate::Bytes(10_240.0).messages_per_s(1_024.0), Some(10.0));
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("fast").is_err());
    }

    #[test]
    fn sizes_are_one_or_a_range() {
        assert_eq!(parse_size("1KiB"), Ok(SizeRange { smallest: 1024, largest: 1024 }));
        assert_eq!(parse_size("200..4096"), Ok(SizeRange { smallest: 200, largest: 4096 }));
        assert!(parse_size("5..4").is_err());
        assert!(parse_size("..4").is_err());
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(999), "999");
        assert_eq!(human_bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(human_ms(604_800_000), "7d");
        assert_eq!(human_ms(1_500), "1s500ms");
        assert_eq!(human_ms(0), "0ms");
    }
}
