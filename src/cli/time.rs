//! Times of day from people and for people, in UTC: RFC 3339. Pure.

use std::time::Duration;

use super::text::parse_duration;

const DAY_MS: u64 = 86_400_000;

/// `0000-03-01` to `1970-01-01`, and 400 years, in days.
const EPOCH_DAYS: i64 = 719_468;
const ERA_DAYS: i64 = 146_097;

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// That long ago.
    Ago(Duration),
    /// Milliseconds since the Unix epoch.
    At(u64),
}

impl Since {
    /// In milliseconds since the Unix epoch.
    pub(crate) fn ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(time) => {
                now_ms.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
            }
            Self::At(ms) => ms,
        }
    }
}

/// `2h`, `7d`, or a time of RFC 3339.
pub(crate) fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(time) = parse_duration(text) {
        return Ok(Since::Ago(time));
    }
    let expected = || format!("expected 2h, 7d or 2026-01-31T15:04:05Z, got {text:?}");
    parse_time(text).map(Since::At).ok_or_else(expected)
}

/// A time as RFC 3339 has it, to the second.
pub(crate) fn utc(ms: u64) -> String {
    let (year, month, day) = date(i64::try_from(ms / DAY_MS).unwrap_or(i64::MAX / DAY_MS as i64));
    let second = ms % DAY_MS / 1000;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Reads a time of RFC 3339. `None`: it is none, or before 1970.
fn parse_time(text: &str) -> Option<u64> {
    let (day, rest) = text.split_at_checked(10)?;
    let [year, month, day] = numbers(day, '-', [4, 2, 2])?;
    let days = days(year, month, day);
    if date(days) != (year, month, day) {
        return None;
    }
    let (clock, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    // 60 is a leap second: the first of the next minute, as everywhere.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_ms, zone) = fraction(rest)?;
    let offset_s = match zone {
        "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let [hour, minute] = numbers(zone.strip_prefix(['+', '-'])?, ':', [2, 2])?;
            if hour > 23 || minute > 59 {
                return None;
            }
            sign * (hour * 3600 + minute * 60)
        }
    };
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    Some(u64::try_from(seconds).ok()? * 1000 + fraction_ms)
}

/// The milliseconds of `.123456`, and what follows.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(rest) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (fraction, zone) = rest.split_at(digits);
    let padded = format!("{fraction}00");
    (digits > 0).then_some((padded.get(..3)?.parse().ok()?, zone))
}

/// Numbers of so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let parts: Vec<&str> = text.split(between).collect();
    let fits = |(part, digits): (&&str, usize)| {
        part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if parts.len() != N || !parts.iter().zip(digits).all(fits) {
        return None;
    }
    let numbers: Vec<i64> = parts.iter().map(|part| part.parse().unwrap_or(0)).collect();
    numbers.try_into().ok()
}

/// The day of the Gregorian calendar so many days after 1970-01-01. Counted in years that begin in
/// March, where the leap day comes last (Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_DAYS;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year, month + 3),
        _ => (year + 1, month - 9),
    };
    (era * 400 + year, month, day)
}

/// The other way round; for a day that there is not, that of one close by.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day = (153 * month + 2) / 5 + day - 1;
    era * ERA_DAYS + year * 365 + year / 4 - year / 100 + day - EPOCH_DAYS
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696_000),
            ("2026-11-21T15:12:04Z", 1_795_273_924_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000),
        ] {
            assert_eq!(utc(ms + 999), text);
            assert_eq!(parse_time(text), Some(ms), "{text}");
        }
        for day in 0..150_000 {
            let (year, month, of_month) = date(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }

    #[test]
    fn zones_and_fractions_are_read() {
        let noon = parse_time("2026-01-31T12:00:00Z").unwrap();
        assert_eq!(parse_time("2026-01-31T13:30:00+01:30"), Some(noon));
        assert_eq!(parse_time("2026-01-31 04:00:00-08:00"), Some(noon));
        assert_eq!(parse_time("2026-01-31t12:00:00.25z"), Some(noon + 250));
        assert_eq!(parse_time("2026-01-31T12:00:00.123456Z"), Some(noon + 123));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+1:00",
            "2026-1-31T12:00:00Z",
            "1969-12-31T23:59:59Z",
            "２026-01-31T12:00:00Z",
        ] {
            assert!(parse_since(text).is_err(), "{text}");
        }
        assert_eq!(parse_since("2h").unwrap().ms(10_000_000), 2_800_000);
        assert_eq!(parse_since("7d").unwrap().ms(1), 0);
    }
}
