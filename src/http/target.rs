//! The target of a request, byte for byte. URL libraries drop tabs and line ends and resolve `..` even
//! when it is percent-encoded, so it is written here and never parsed.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// A path whose parts may hold anything, and its query: every byte but ASCII letters and digits is
/// percent-encoded.
pub fn path_and_query(path: &[&str], query: &[(&str, &str)]) -> String {
    let mut target = String::new();
    for part in path {
        // Writing to a string never fails.
        let _ = write!(target, "/{}", encoded(part));
    }
    let separators = std::iter::once('?').chain(std::iter::repeat('&'));
    for ((name, value), separator) in query.iter().zip(separators) {
        let _ = write!(target, "{separator}{name}={}", encoded(value));
    }
    target
}

fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use axum::http::Uri;

    use super::*;

    #[test]
    fn a_part_of_a_path_keeps_every_byte() {
        for (part, encoded) in [
            ("plain", "plain"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("a\tb\nc\r", "a%09b%0Ac%0D"),
            ("a/b\\c?d#e%41 +&=", "a%2Fb%5Cc%3Fd%23e%2541%20%2B%26%3D"),
            ("ü\0", "%C3%BC%00"),
        ] {
            let target = path_and_query(&["v1", part], &[("q", part), ("n", "1")]);
            assert_eq!(target, format!("/v1/{encoded}?q={encoded}&n=1"));
            let uri: Uri = format!("http://127.0.0.1:1{target}").parse().expect("a URI");
            assert_eq!(uri.path_and_query().map(ToString::to_string), Some(target));
        }
    }
}
