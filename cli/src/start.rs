//! Owns the spelling of a start position: `earliest`, `latest`, `-N`, an offset, or a time; and what it
//! means for a topic.
//!
//! Times are RFC 3339 (`2026-11-25T08:00:00Z`, with a zone) or an age (`15m`: fifteen minutes ago).

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use postrider::Admin;
use postrider_protocol::message::Start;
use postrider_protocol::types::{Offset, TimestampMs};

use crate::connect::admin_failure;
use crate::exit::Outcome;
use crate::units::parse_duration_with_unit;

/// Where `sub --from` and `subscription seek --to` begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    Earliest,
    Latest,
    /// The last so many messages of each partition.
    Last(u64),
    Offset(u64),
    /// Unix milliseconds.
    Time(u64),
    /// So long ago.
    Age(Duration),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" | "beginning" | "oldest" => return Ok(Self::Earliest),
            "latest" | "end" | "newest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Some(last) = text.strip_prefix('-') {
            return last.parse().map(Self::Last).map_err(|_err| unknown(text));
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        if text.contains('T') || text.matches('-').count() == 2 {
            return parse_rfc3339(text).map(Self::Time);
        }
        parse_duration_with_unit(text).map(Self::Age).map_err(|_err| unknown(text))
    }
}

/// The place that a position means in `topic` now.
pub(crate) async fn resolve(from: From, admin: &Admin, topic: &str) -> Outcome<Start> {
    Ok(match from {
        From::Earliest => Start::Earliest,
        From::Latest => Start::Latest,
        From::Offset(offset) => Start::Offset(Offset(offset)),
        From::Time(ms) => Start::Timestamp(TimestampMs(ms)),
        From::Age(age) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let ms = now.saturating_sub(age).as_millis();
            Start::Timestamp(TimestampMs(u64::try_from(ms).unwrap_or(u64::MAX)))
        }
        From::Last(count) => {
            let described = admin.describe_topic(topic).await;
            let topic = described.map_err(|error| admin_failure(&error, topic))?;
            let starts = topic.partitions.iter().map(|partition| {
                let start = partition.high_watermark.0.saturating_sub(count);
                (partition.partition, Offset(start.max(partition.log_start.0)))
            });
            Start::PerPartition(starts.collect())
        }
    })
}

fn unknown(text: &str) -> String {
    format!(
        "{text:?} is no position: use earliest, latest, -N (the last N), an offset, \
         a time such as 2026-11-25T08:00:00Z, or an age such as 15m"
    )
}

/// A moment: Unix milliseconds, or RFC 3339.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    text.parse().or_else(|_no_number| parse_rfc3339(text))
}

/// RFC 3339 to Unix milliseconds. A date alone is its midnight in UTC.
fn parse_rfc3339(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no time: use for example 2026-11-25T08:00:00Z or 2026-11-25T08:00:00+01:00"
        )
    };
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let mut parts = date.splitn(3, '-');
    let mut field = |lowest: u32, highest: u32| {
        let number: u32 = parts.next().ok_or_else(wrong)?.parse().map_err(|_err| wrong())?;
        if (lowest..=highest).contains(&number) { Ok(i64::from(number)) } else { Err(wrong()) }
    };
    let (year, month, day) = (field(1970, 9999)?, field(1, 12)?, field(1, 31)?);
    let (clock, zone_minutes) = split_zone(time).ok_or_else(wrong)?;
    let mut parts = clock.splitn(3, ':');
    let mut field = |highest: f64| {
        let number: f64 = parts.next().unwrap_or("0").parse().map_err(|_err| wrong())?;
        if (0.0..highest).contains(&number) { Ok(number) } else { Err(wrong()) }
    };
    let (hour, minute, second) = (field(24.0)?, field(60.0)?, field(61.0)?);
    let ms_of_day = hour * 3_600_000.0 + minute * 60_000.0 + second * 1_000.0;
    let ms_of_day = i64::try_from(crate::units::to_u64(ms_of_day)).map_err(|_err| wrong())?;
    let ms = days_since_1970(year, month, day) * 86_400_000 + ms_of_day - zone_minutes * 60_000;
    u64::try_from(ms).map_err(|_err| wrong())
}

/// Cuts `Z` or `+01:00` off and returns its minutes east of UTC.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let at = time.rfind(['+', '-'])?;
    let (clock, zone) = time.split_at(at);
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    Some((clock, if zone.starts_with('-') { -minutes } else { minutes }))
}

/// Days from 1970-01-01 in the Gregorian calendar (years from 1970 on).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last one.
    let shifted = if month > 2 { year } else { year - 1 };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year;
    days - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_position_is_understood() {
        assert_eq!("earliest".parse(), Ok(From::Earliest));
        assert_eq!("latest".parse(), Ok(From::Latest));
        assert_eq!("-10".parse(), Ok(From::Last(10)));
        assert_eq!("4711".parse(), Ok(From::Offset(4711)));
        assert_eq!("15m".parse(), Ok(From::Age(Duration::from_secs(900))));
        assert_eq!("1970-01-02".parse(), Ok(From::Time(86_400_000)));
        for wrong in
            ["", "yesterday", "-x", "2026-13-01", "2026-11-25T25:00:00Z", "2026-11-25T08:00:00"]
        {
            assert!(wrong.parse::<From>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_match_known_seconds() {
        for (text, seconds) in [
            ("2000-03-01T00:00:00Z", 951_868_800),
            ("2026-11-25T03:14:48Z", 1_795_576_488),
            ("2024-02-29T12:00:00+01:00", 1_709_204_400),
        ] {
            assert_eq!(text.parse(), Ok(From::Time(seconds * 1_000)), "{text}");
        }
        assert_eq!("1970-01-01T00:00:00.250Z".parse(), Ok(From::Time(250)));
    }
}
