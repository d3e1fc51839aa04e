//! Times of day from people and for people, in UTC: RFC 3339. Pure.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::text::parse_duration;
pub(crate) use crate::core::units::utc;

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// This long before now.
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

/// A time in RFC 3339, to the second, before 1970 too.
pub(crate) fn utc_signed(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms).unwrap_or(DateTime::<Utc>::MAX_UTC);
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads a time of RFC 3339, in milliseconds since the Unix epoch. `None`: it is malformed, or before
/// 1970.
fn parse_time(text: &str) -> Option<u64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(time.timestamp_millis()).ok()
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
        assert_eq!(utc_signed(-1_000), "1969-12-31T23:59:59Z");
        // Any number that a device may send has a text.
        assert!(utc(u64::MAX).ends_with('Z'));
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
