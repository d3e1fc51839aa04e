//! Text for people and from people: pure, no printing.
//!
//! T1  Text that came from another device never acts on the terminal: what [`shown`] returns holds
//!     no control character, no direction override and no more than [`SHOWN_CHARS_MAX`] characters.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serializer;

pub(crate) use crate::core::duration::parse_duration;
use crate::core::foreign_text::is_unshowable;
pub(crate) use crate::core::units::{bytes, counted, duration};

/// The most characters of a name or description on a terminal; combining marks count.
const SHOWN_CHARS_MAX: usize = 500;

/// Remote or otherwise untrusted text as it may be shown on a terminal.
pub(crate) fn shown(text: &str) -> String {
    escaped(text, SHOWN_CHARS_MAX)
}

/// Like [`shown`], cut after another number of characters.
pub(crate) fn escaped(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == chars_max {
            out.push('…');
            break;
        }
        if is_unshowable(character) {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// JSON text in which no character acts on a terminal either. JSON escapes C0 only; the others can
/// stand in its strings alone, where `\u` is their other spelling.
pub(crate) fn shown_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unshowable(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(character);
        }
    }
    out
}

/// An error and its causes as text. Each is named once, because many libraries repeat their cause
/// in their own text.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// Serialises a path as text. A path that is not UTF-8 becomes the closest text.
pub(crate) fn lossy_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_act_on_the_terminal() {
        assert_eq!(shown("Grüße, 日本"), "Grüße, 日本");
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{7}"), "a\\u{1b}[2Jb\\u{a}c\\u{7}");
        assert_eq!(shown("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(shown("exe\u{202e}gpj"), "exe\\u{202e}gpj");
        let marks = "a".to_owned() + &"\u{301}".repeat(1_000_000);
        assert_eq!(shown(&marks).chars().count(), SHOWN_CHARS_MAX + 1);
    }

    #[test]
    fn json_of_others_cannot_either_and_says_the_same() {
        let text = "\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{e0041}é";
        let json = shown_json(&serde_json::to_string(text).unwrap());
        assert!(!json.chars().any(is_unshowable), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read x: {0}")]
        struct Wrapped(#[source] std::io::Error);
        let cause = || std::io::Error::other("the disk failed");
        let error = anyhow::Error::new(Wrapped(cause())).context("adding");
        assert_eq!(causes(&error), "adding: cannot read x: the disk failed");
        let error = anyhow::Error::new(cause()).context("reading y");
        assert_eq!(causes(&error), "reading y: the disk failed");
    }
}
