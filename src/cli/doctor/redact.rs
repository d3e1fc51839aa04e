//! Takes out of a report what tells who somebody is or lets somebody in: names, keys, tokens, node
//! IDs, hashes, addresses and paths. Pure.
//!
//! R1  What is known to be a name is replaced wherever it occurs, longest first, so that no part of a
//!     name stays behind.
//! R2  What looks like a key, hash, id, address or path is replaced whether it is known or not.

use std::net::IpAddr;

use serde_json::{Map, Value};

/// The fewest hex characters that may be a part of a key, id or hash; short ids have ten.
const HEX_CHARS_MIN: usize = 8;

/// The fewest characters of a name that is replaced inside other words: a shorter one would take half
/// of a report with it, and tells little.
const NAME_CHARS_MIN: usize = 3;

/// The names that a report must not contain, each with what stands in its place.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    names: Vec<(String, String)>,
}

impl Redactor {
    /// Replaces `name` wherever it occurs.
    pub(super) fn hide(&mut self, name: &str, by: &str) {
        if !name.is_empty() && !self.names.iter().any(|(known, _)| known == name) {
            self.names.push((name.to_owned(), by.to_owned()));
            self.names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        }
    }

    /// The value with every text in it redacted. Keys of objects are ours and stay.
    pub(super) fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(values) => values.into_iter().map(|value| self.value(value)).collect(),
            Value::Object(members) => {
                let members = members.into_iter().map(|(key, value)| (key, self.value(value)));
                Value::Object(members.collect::<Map<_, _>>())
            }
            other => other,
        }
    }

    /// The text, redacted.
    pub(super) fn text(&self, text: &str) -> String {
        if let Some((_, by)) = self.names.iter().find(|(name, _)| name == text) {
            return by.clone();
        }
        let mut text = text.to_owned();
        for (name, by) in &self.names {
            if name.chars().count() >= NAME_CHARS_MIN {
                text = text.replace(name, by);
            }
        }
        let words = text.split_inclusive(|c: char| c.is_whitespace() || "\"'(),;<>[]".contains(c));
        words.map(word).collect()
    }
}

/// A word with what follows it, redacted by its looks.
fn word(word: &str) -> String {
    let end =
        word.trim_end_matches(|c: char| c.is_whitespace() || "\"'(),;<>[].:".contains(c)).len();
    let (body, rest) = word.split_at(end);
    let is_path = body.starts_with('/') && body.len() > 1 || body.contains("/home/");
    let by = if is_path {
        "<path>"
    } else if is_address(body) {
        "<address>"
    } else if body.contains("://") || body.contains('@') {
        "<url>"
    } else {
        return without_hex(word);
    };
    format!("{by}{rest}")
}

fn is_address(text: &str) -> bool {
    let bare = text.trim_start_matches('[');
    let host = bare.rsplit_once(':').map_or(bare, |(host, _)| host.trim_end_matches(']'));
    let unscoped = |text: &str| text.split('%').next().unwrap_or_default().to_owned();
    unscoped(bare).parse::<IpAddr>().is_ok() || unscoped(host).parse::<IpAddr>().is_ok()
}

/// Replaces each run of hex characters that is as long as a part of a key.
fn without_hex(text: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() {
            run.push(c);
            continue;
        }
        let is_number = run.bytes().all(|byte| byte.is_ascii_digit()) && run.len() < 20;
        out.push_str(if run.len() >= HEX_CHARS_MIN && !is_number { "<hex>" } else { &run });
        run.clear();
        out.push(c);
    }
    out.pop();
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn redactor() -> Redactor {
        let mut redactor = Redactor::default();
        redactor.hide("ann", "device-1");
        redactor.hide("ann's phone", "device-2");
        redactor.hide("x", "device-3");
        redactor
    }

    #[test]
    fn names_are_replaced_wherever_they_occur() {
        let redactor = redactor();
        assert_eq!(
            redactor.text("ann's phone is gone, ann is not"),
            "device-2 is gone, device-1 is not"
        );
        assert_eq!(redactor.text("x"), "device-3");
        assert_eq!(redactor.text("next"), "next", "a name of one letter leaves other words alone");
    }

    #[test]
    fn what_looks_like_a_key_an_address_or_a_path_is_replaced() {
        let key = "8d9bb374dc47b31650d01cd0c8f5d0d657fbe5c4c44c74273b65006a51ddf401";
        for (text, expected) in [
            (format!("peer {key}: gone"), "peer <hex>: gone"),
            ("short 8d9bb374dc here".into(), "short <hex> here"),
            ("from 192.168.1.2:5758, late".into(), "from <address>, late"),
            ("from [fe80::1%eth0]:5758".into(), "from [<address>]:5758"),
            ("at 2001:db8::1".into(), "at <address>"),
            ("could not open /home/ann/x: no".into(), "could not open <path>: no"),
            ("https://nas.example.org/ fails".into(), "<url> fails"),
            ("3 of 12345678 bytes".into(), "3 of 12345678 bytes"),
        ] {
            assert_eq!(redactor().text(&text), expected);
        }
    }

    #[test]
    fn a_whole_report_is_redacted() {
        let report =
            json!({ "peers": [{ "name": "ann's phone", "rtt_ms": 1.5, "error": "ann left" }] });
        let expected =
            json!({ "peers": [{ "name": "device-2", "rtt_ms": 1.5, "error": "device-1 left" }] });
        assert_eq!(redactor().value(report), expected);
    }
}
