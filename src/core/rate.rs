//! Rate limits for contents: the limits as people write them, their value at a minute of the week,
//! and the token bucket that enforces one.
//!
//! R1  A timetable has a limit for every minute of the week: that of the last entry before it,
//!     where the week wraps around.
//! R2  In any interval a [`Bucket`] gives out at most its rate times the interval, plus one burst
//!     ([`BURST_MS`]) and, to those that go ahead, one debt ([`DEBT_MS`]).

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

use crate::core::limits::RATE_BYTES_MIN;

/// The minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

/// What a bucket saves up while nothing moves: enough to make up for a late timer.
pub const BURST_MS: u64 = 100;

/// How far beyond its rate a bucket goes for those that cannot wait.
pub const DEBT_MS: u64 = 1_000;

/// The smallest debt: what two streams may take before they wait.
const DEBT_BYTES_MIN: u64 = 64 * 1024;

/// How long one portion makes others wait. The bounds avoid wake-ups for a few bytes, and leaps at
/// a fast limit.
const PORTION_MS: u64 = 20;
const PORTION_BYTES_MIN: u64 = 1024;
const PORTION_BYTES_MAX: u64 = 64 * 1024;

// A full bucket always holds a portion.
const _: () = assert!(RATE_BYTES_MIN * BURST_MS / 1000 >= PORTION_BYTES_MIN);

/// The configured limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// The limit for all peers together.
    pub all: Option<Timetable>,
    /// The limit for each peer alone.
    pub each: Option<Timetable>,
    /// Whether traffic within the local network is exempt.
    pub lan_exempt: bool,
}

impl RateLimits {
    /// Whether nothing is ever limited.
    pub fn is_empty(&self) -> bool {
        self.all.is_none() && self.each.is_none()
    }
}

/// The limits at one moment, bytes per second; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// The limit of what is sent.
    pub up: Option<u64>,
    /// The limit of what is received.
    pub down: Option<u64>,
}

/// Limits by the minute of the week, written as for rclone's `--bwlimit`: one for ever (`10M`,
/// `1M:500k` for up and down, `off`), or entries `08:00,512k` for every day and `Mon-08:00,512k`
/// for one day, each in force until the next.
///
/// A number without a unit counts KiB per second; 0 is no limit. Of two entries for one minute the
/// later one wins. Before the week's first entry rclone's documentation and its program differ: the
/// documentation is followed (R1), while the program takes the entry that was written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timetable {
    /// Rates by the minute from which they are in force; never empty.
    entries: BTreeMap<u16, Rates>,
}

/// Why a text is not a timetable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RateError {
    /// The text is empty.
    #[error("no limit is given: expected one such as 10M, 1M:500k or off")]
    Empty,
    /// A part is not a rate.
    #[error(
        "{0:?} is no rate: expected off, or bytes a second such as 512k, 10M or 1.5G (a number \
         alone counts KiB)"
    )]
    Rate(String),
    /// A rate is below [`RATE_BYTES_MIN`].
    #[error(
        "{0:?} is slower than transfers can be: expected at least {min}K, or off",
        min = RATE_BYTES_MIN / 1024
    )]
    TooSlow(String),
    /// A part is not an entry of a timetable.
    #[error(
        "{0:?} is no entry of a timetable: expected a time and a limit, such as 08:00,512k or \
         Mon-08:00,1M:512k"
    )]
    Entry(String),
    /// A part is not a time of day.
    #[error("{0:?} is no time of day: expected 00:00 to 23:59")]
    Time(String),
    /// A part is not a day of the week.
    #[error("{0:?} is no day of the week: expected Mon, Tue, Wed, Thu, Fri, Sat or Sun")]
    Day(String),
}

impl Timetable {
    /// The limits in force at a minute of the week.
    pub fn at(&self, week_minute: u16) -> Rates {
        let before = self.entries.range(..=week_minute).next_back();
        let rates = before.or_else(|| self.entries.last_key_value()).map(|(_, rates)| *rates);
        rates.unwrap_or_default()
    }
}

impl FromStr for Timetable {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let is_between = |c: char| c.is_whitespace() || c == ';';
        let words: Vec<&str> = text.split(is_between).filter(|word| !word.is_empty()).collect();
        match words[..] {
            [] => return Err(RateError::Empty),
            [rates] if !rates.contains(',') => {
                return Ok(Self { entries: BTreeMap::from([(0, parse_rates(rates)?)]) });
            }
            _ => {}
        }
        let mut entries = BTreeMap::new();
        for word in words {
            let entry = word.split_once(',').filter(|(_, rates)| !rates.contains(','));
            let (time, rates) = entry.ok_or_else(|| RateError::Entry(word.to_owned()))?;
            let (days, time) = match time.split_once('-') {
                Some((day, time)) => {
                    let day = parse_day(day)?;
                    (day..day + 1, time)
                }
                None => (0..7, time),
            };
            let (minute, rates) = (parse_time(time)?, parse_rates(rates)?);
            entries.extend(days.map(|day| (day * DAY_MINUTES + minute, rates)));
        }
        Ok(Self { entries })
    }
}

fn parse_day(text: &str) -> Result<u16, RateError> {
    const DAYS: [&str; 7] =
        ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
    let lower = text.to_ascii_lowercase();
    let day = DAYS.iter().zip(0..).find(|(day, _)| **day == lower || day[..3] == lower);
    day.map(|(_, number)| number).ok_or_else(|| RateError::Day(text.to_owned()))
}

fn parse_time(text: &str) -> Result<u16, RateError> {
    let number = |part: &str, below: u16| -> Option<u16> {
        let is_two_digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        let number: u16 = part.parse().ok().filter(|_| is_two_digits)?;
        (number < below).then_some(number)
    };
    let time = text.split_once(':');
    let minute = time.and_then(|(hour, minute)| Some(number(hour, 24)? * 60 + number(minute, 60)?));
    minute.ok_or_else(|| RateError::Time(text.to_owned()))
}

/// Parses `10M` for both directions, `10M:1M` for up and down.
fn parse_rates(text: &str) -> Result<Rates, RateError> {
    let (up, down) = text.split_once(':').unwrap_or((text, text));
    Ok(Rates { up: parse_rate(up)?, down: parse_rate(down)? })
}

pub(super) fn parse_rate(text: &str) -> Result<Option<u64>, RateError> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let digits =
        text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let unit_bits = match &unit.to_ascii_lowercase()[..] {
        "b" => 0,
        "" | "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        "p" | "pi" | "pib" => 50,
        _ => return Err(RateError::Rate(text.to_owned())),
    };
    let number: f64 = number.parse().map_err(|_| RateError::Rate(text.to_owned()))?;
    if number == 0.0 {
        return Ok(None);
    }
    // A number too large for a u64 becomes the largest u64: no link comes near.
    let bytes = (number * (1_u64 << unit_bits) as f64) as u64;
    if bytes < RATE_BYTES_MIN {
        return Err(RateError::TooSlow(text.to_owned()));
    }
    Ok(Some(bytes))
}

/// How a caller takes bytes from a [`Bucket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The bytes are taken when the bucket holds them.
    InLine,
    /// The bytes are taken before the bucket holds them, up to a limited debt. The callers in line
    /// wait until the debt is paid.
    Ahead,
}

/// A token bucket as a plain value. It fills at its rate; to a caller that takes too much it
/// returns how long to wait.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate_bytes: u64,
    /// In thousandths of a byte, so that no fraction is lost between two milliseconds. Negative:
    /// debt.
    level: i128,
    at_ms: u64,
}

impl Bucket {
    /// A full bucket that fills at `rate_bytes` per second.
    pub fn new(now_ms: u64, rate_bytes: u64) -> Self {
        let mut bucket = Self { rate_bytes, level: 0, at_ms: now_ms };
        bucket.level = bucket.burst();
        bucket
    }

    /// Changes the rate. A debt that would now take longer to pay off than a debt may is cut.
    pub fn set_rate(&mut self, now_ms: u64, rate_bytes: u64) {
        if rate_bytes == self.rate_bytes {
            return;
        }
        self.fill(now_ms);
        self.rate_bytes = rate_bytes;
        self.level = self.level.clamp(-self.debt(), self.burst());
    }

    /// How many bytes to take at a time, so that others do not wait for long.
    pub fn portion_bytes(&self) -> u64 {
        (self.rate_bytes / 1000 * PORTION_MS).clamp(PORTION_BYTES_MIN, PORTION_BYTES_MAX)
    }

    /// Takes `bytes` and returns 0, or takes nothing and returns how many milliseconds to wait
    /// before the next try. A request for more than a full bucket holds is served by a full one,
    /// into debt.
    pub fn take(&mut self, now_ms: u64, bytes: u64, turn: Turn) -> u64 {
        self.fill(now_ms);
        let wanted = thousandths(bytes);
        let needed = match turn {
            Turn::InLine => wanted.min(self.burst()),
            Turn::Ahead => wanted - self.debt(),
        };
        if self.level >= needed {
            self.level -= wanted;
            return 0;
        }
        let missing = needed - self.level;
        let rate = i128::from(self.rate_bytes.max(1));
        u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX)
    }

    /// Subtracts bytes that were used already, into debt if need be.
    pub fn charge(&mut self, now_ms: u64, bytes: u64) {
        self.fill(now_ms);
        self.level -= thousandths(bytes);
    }

    fn fill(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        // A byte per second is a thousandth of a byte per millisecond.
        let filled = self.level + i128::from(self.rate_bytes) * i128::from(passed_ms);
        self.level = filled.min(self.burst());
    }

    fn burst(&self) -> i128 {
        i128::from(self.rate_bytes) * i128::from(BURST_MS)
    }

    fn debt(&self) -> i128 {
        let debt = i128::from(self.rate_bytes) * i128::from(DEBT_MS);
        debt.max(thousandths(DEBT_BYTES_MIN))
    }
}

fn thousandths(bytes: u64) -> i128 {
    i128::from(bytes) * 1000
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const WEEK_MINUTES: u16 = 7 * DAY_MINUTES;
    const SUN: u16 = 0;
    const MON: u16 = DAY_MINUTES;
    const WED: u16 = 3 * DAY_MINUTES;
    const FRI: u16 = 5 * DAY_MINUTES;
    const SAT: u16 = 6 * DAY_MINUTES;

    fn both(rate: Option<u64>) -> Rates {
        Rates { up: rate, down: rate }
    }

    fn table(text: &str) -> Timetable {
        text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn a_rate_is_read_with_its_unit_and_counts_kib_without() {
        for (text, rate) in [
            ("666", Some(666 << 10)),
            ("10M", Some(10 << 20)),
            ("10m", Some(10 << 20)),
            ("1.5G", Some(3 << 29)),
            ("64Ki", Some(64 << 10)),
            ("64KiB", Some(64 << 10)),
            ("100000b", Some(100_000)),
            ("1T", Some(1 << 40)),
            ("2P", Some(2 << 50)),
            ("0", None),
            ("off", None),
            ("OFF", None),
        ] {
            assert_eq!(table(text).at(WED), both(rate), "{text}");
        }
        let up_and_down = Rates { up: Some(1 << 20), down: Some(500 << 10) };
        assert_eq!(table("1M:500k").at(0), up_and_down);
        assert_eq!(table("10M:off").at(0), Rates { up: Some(10 << 20), down: None });
    }

    #[test]
    fn what_is_no_limit_is_refused_with_the_part_that_is_wrong() {
        let error = |text: &str| text.parse::<Timetable>().unwrap_err();
        let of = |text: &str| text.to_owned();
        assert_eq!(error("  "), RateError::Empty);
        for text in ["1000X", "bad", "-1M", "1M:", "1e6", ".", "1..5M", "inf", "NaN", "10KB"] {
            assert!(matches!(error(text), RateError::Rate(_)), "{text}: {}", error(text));
        }
        assert_eq!(error("8K"), RateError::TooSlow(of("8K")));
        assert_eq!(error("1M 2M"), RateError::Entry(of("1M")));
        assert_eq!(error("08:00,1M,2M"), RateError::Entry(of("08:00,1M,2M")));
        for time in ["24:00", "8:00", "08:60", "0800", "", "+8:00", "08:0x"] {
            assert_eq!(error(&format!("{time},1M")), RateError::Time(of(time)));
        }
        assert_eq!(error("Day-08:00,1M"), RateError::Day(of("Day")));
        assert_eq!(error("Mon-08:00,x"), RateError::Rate(of("x")));
    }

    #[test]
    fn an_entry_holds_until_the_next_one_on_every_day() {
        let table = table("08:00,512k 12:00,10M;18:00,off");
        for day in 0..7 {
            for (time, rate) in [
                (0, None),
                (7 * 60 + 59, None),
                (8 * 60, Some(512 << 10)),
                (11 * 60 + 59, Some(512 << 10)),
                (12 * 60, Some(10 << 20)),
                (18 * 60, None),
            ] {
                assert_eq!(table.at(day * DAY_MINUTES + time), both(rate), "day {day}, {time}");
            }
        }
    }

    #[test]
    fn what_held_last_in_the_week_goes_on_into_the_next() {
        let table = table("Mon-00:00,512k Friday-23:59,10M sat-10:00,1M Sun-20:00,off");
        assert_eq!(table.at(MON), both(Some(512 << 10)));
        assert_eq!(table.at(FRI + 23 * 60 + 58), both(Some(512 << 10)));
        assert_eq!(table.at(SAT), both(Some(10 << 20)));
        assert_eq!(table.at(SAT + 10 * 60), both(Some(1 << 20)));
        assert_eq!(table.at(SUN + 3 * 60), both(Some(1 << 20)), "Saturday's, into Sunday");
        assert_eq!(table.at(SUN + 20 * 60), both(None));
    }

    #[test]
    fn an_entry_of_one_day_stands_beside_those_of_every_day() {
        let short = table("Mon-00:00,512 12:00,1M Sun-20:00,off");
        let long = table(
            "Mon-00:00,512 Mon-12:00,1M Tue-12:00,1M Wed-12:00,1M Thu-12:00,1M Fri-12:00,1M \
             Sat-12:00,1M Sun-12:00,1M Sun-20:00,off",
        );
        assert_eq!(short, long);
        assert_eq!(table("08:00,1M Mon-08:00,2M").at(MON + 8 * 60), both(Some(2 << 20)));
    }

    #[test]
    fn who_waits_as_told_gets_what_was_asked_for() {
        let mut bucket = Bucket::new(0, 1 << 20);
        let portion = bucket.portion_bytes();
        let mut now_ms = 0;
        for _ in 0..1000 {
            let wait_ms = bucket.take(now_ms, portion, Turn::InLine);
            now_ms += wait_ms;
            if wait_ms > 0 {
                assert!(bucket.clone().take(now_ms - 1, portion, Turn::InLine) > 0);
                assert_eq!(bucket.take(now_ms, portion, Turn::InLine), 0);
            }
        }
        let expected_ms = 1000 * portion * 1000 / (1 << 20) - BURST_MS;
        assert!(now_ms.abs_diff(expected_ms) < 20, "{now_ms} ms, expected {expected_ms}");
    }

    #[test]
    fn who_goes_ahead_is_waited_for_by_those_in_line_and_no_further_than_a_debt() {
        let rate = 1 << 20;
        let mut bucket = Bucket::new(0, rate);
        while bucket.take(0, 16 << 10, Turn::Ahead) == 0 {}
        assert!(bucket.take(0, 16 << 10, Turn::Ahead) <= 16);
        let wait_ms = bucket.take(0, 16 << 10, Turn::InLine);
        assert!(wait_ms.abs_diff(DEBT_MS) <= 20, "{wait_ms}");
        assert_eq!(bucket.take(wait_ms, 16 << 10, Turn::InLine), 0);
    }

    #[test]
    fn another_rate_holds_at_once_and_forgives_a_debt_it_could_not_pay() {
        let mut bucket = Bucket::new(0, 1 << 30);
        while bucket.take(0, 1 << 20, Turn::Ahead) == 0 {}
        bucket.set_rate(0, RATE_BYTES_MIN);
        let wait_ms = bucket.take(0, 1024, Turn::InLine);
        assert!(wait_ms <= ((DEBT_BYTES_MIN + 1024) * 1000).div_ceil(RATE_BYTES_MIN), "{wait_ms}");
        bucket.set_rate(0, 1 << 30);
        assert!(bucket.take(1, 1024, Turn::InLine) <= 1);
    }

    fn rates() -> impl Strategy<Value = u64> {
        prop_oneof![RATE_BYTES_MIN..1 << 20, 1_u64 << 20..1 << 40, Just(u64::MAX)]
    }

    proptest! {
        #[test]
        fn a_timetable_covers_every_minute_of_the_week(
            entries in proptest::collection::btree_map(0..WEEK_MINUTES, RATE_BYTES_MIN..1 << 40, 1..9)
        ) {
            const NAMES: [&str; 7] = ["Sun", "Mon", "tue", "Wednesday", "Thu", "Fri", "SAT"];
            let words = entries.iter().map(|(at, rate)| {
                let (day, time) = (usize::from(at / DAY_MINUTES), at % DAY_MINUTES);
                format!("{}-{:02}:{:02},{rate}b", NAMES[day], time / 60, time % 60)
            });
            let table = table(&words.collect::<Vec<_>>().join(" "));
            let mut held = *entries.last_key_value().unwrap().1;
            for minute in 0..WEEK_MINUTES {
                held = entries.get(&minute).copied().unwrap_or(held);
                prop_assert_eq!(table.at(minute), both(Some(held)), "minute {}", minute);
            }
        }

        #[test]
        fn no_stretch_of_time_gives_more_than_the_rate_and_its_bounds(
            rate in rates(),
            asks in proptest::collection::vec((0..400_u64, 1..PORTION_BYTES_MIN, any::<bool>()), 1..200),
        ) {
            let mut bucket = Bucket::new(0, rate);
            let (mut now_ms, mut taken) = (0, Vec::new());
            for (pause_ms, bytes, ahead) in asks {
                now_ms += pause_ms;
                let turn = if ahead { Turn::Ahead } else { Turn::InLine };
                // Nobody takes more than a portion, but it must not matter.
                let bytes = bytes * (rate / RATE_BYTES_MIN).min(64);
                if bucket.take(now_ms, bytes, turn) == 0 {
                    taken.push((now_ms, bytes, ahead));
                }
            }
            let bound = bucket.burst() + bucket.debt();
            for (first, (from_ms, ..)) in taken.iter().enumerate() {
                let (mut sum, mut in_line) = (0, 0);
                for (at_ms, bytes, ahead) in &taken[first..] {
                    sum += thousandths(*bytes);
                    in_line += if *ahead { 0 } else { thousandths(*bytes) };
                    let earned = i128::from(rate) * i128::from(at_ms - from_ms);
                    prop_assert!(sum <= earned + bound);
                    prop_assert!(in_line <= earned + bucket.burst());
                }
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9a-zA-Z:,;. -]{0,40}|\\PC{0,20}") {
            let _ = text.parse::<Timetable>();
        }
    }
}
