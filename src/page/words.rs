//! Formats sizes, counts, times and names for the page. Pure.

use chrono::DateTime;
use maud::{Markup, html};

use crate::core::foreign_text::is_unshowable;

/// The most characters of a name; the asset's page shows the whole name.
const NAME_CHARS_MAX: usize = 300;

/// The most characters of a sentence or a description.
const TEXT_CHARS_MAX: usize = 20_000;

/// Persian and the scripts of India need them, and so do joined emoji.
const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';

/// A name or text that came from elsewhere: isolated, so that its direction and its combining marks
/// change nothing beside it, and without characters that do not show.
pub(super) fn name(text: &str) -> Markup {
    html! { bdi { (clean(text)) } }
}

/// The same as plain text, for attributes.
pub(super) fn clean(text: &str) -> String {
    cut(text, NAME_CHARS_MAX)
}

/// A sentence that may hold names; line ends stay.
pub(super) fn clean_long(text: &str) -> String {
    cut(text, TEXT_CHARS_MAX)
}

/// A sentence of the agent's, with its commands between backticks shown as such.
pub(super) fn prose(text: &str) -> Markup {
    let text = clean_long(text);
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    let replaced = |c: char| {
        is_unshowable(c) && !matches!(c, '\n' | ZERO_WIDTH_NON_JOINER | ZERO_WIDTH_JOINER)
    };
    let shown = text.chars().take(chars_max);
    let mut shown: String =
        shown.map(|c| if replaced(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(chars_max).is_some() {
        shown.push('…');
    }
    shown
}

/// `2.1 MB`: as file managers say it, in steps of 1,000. It is not broken at the end of a line.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}\u{a0}B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$}\u{a0}{unit}")
}

/// `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 asset`, `12,345 assets`.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// `about 5 minutes`.
pub(super) fn span(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..5_400 => ((seconds + 30) / 60, "minute"),
        5_400..129_600 => ((seconds + 1_800) / 3_600, "hour"),
        _ => ((seconds + 43_200) / 86_400, "day"),
    };
    format!("{} {unit}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `5 minutes ago`.
pub(super) fn ago(age_ms: u64) -> String {
    if age_ms < 10_000 { "just now".into() } else { format!("{} ago", span(age_ms / 1000)) }
}

/// A time, which the script shows in local time.
pub(super) fn time(ms: i64) -> Markup {
    let Some(time) = DateTime::from_timestamp_millis(ms) else { return html! { "unknown" } };
    html! {
        time datetime=(time.format("%Y-%m-%dT%H:%M:%SZ")) { (time.format("%Y-%m-%d %H:%M UTC")) }
    }
}

/// The same of a time that cannot be before 1970.
pub(super) fn time_of(ms: u64) -> Markup {
    time(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// The kind of a media type, for people.
pub(super) fn kind(media_type: &str) -> &'static str {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    match essence.split('/').next().unwrap_or_default() {
        "image" => "Picture",
        "video" => "Video",
        "audio" => "Sound",
        "text" => "Text",
        _ if essence == "application/pdf" => "PDF",
        _ if essence == "application/zip" || essence == "application/gzip" => "Archive",
        _ => "File",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_counts_and_times_are_short_and_round() {
        let sizes = [0, 999, 1_000, 2_140_000, 999_499, 999_500, 123_400_000, u64::MAX].map(size);
        let expected =
            ["0 B", "999 B", "1.0 kB", "2.1 MB", "999 kB", "1.0 MB", "123 MB", "18.4 EB"];
        assert_eq!(sizes, expected.map(|text| text.replace(' ', "\u{a0}")));
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "asset", "assets"), "1 asset");
        let spans = [1, 59, 60, 3_600, 7_200, 86_400, 172_800].map(span);
        let expected =
            ["1 second", "59 seconds", "1 minute", "60 minutes", "2 hours", "24 hours", "2 days"];
        assert_eq!(spans, expected);
        assert_eq!([0, 60_000].map(ago), ["just now", "1 minute ago"]);
    }

    #[test]
    fn a_name_is_text_and_changes_nothing_beside_it() {
        let shown = name("<img src=x>\u{202e}gpj.exe\u{1b}").into_string();
        assert_eq!(shown, "<bdi>&lt;img src=x&gt;\u{fffd}gpj.exe\u{fffd}</bdi>");
        assert_eq!(clean(&"x".repeat(400)).chars().count(), NAME_CHARS_MAX + 1);
    }
}
