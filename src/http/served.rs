//! As what a content is served. It is data of unknown origin: types come from a fixed list, and only
//! what cannot run is shown by a browser.

/// How a content is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) content_type: &'static str,
    /// Whether a browser may show it, because nothing in it can run.
    pub(crate) is_inert: bool,
}

/// Types served under their own name, and shown inline on request.
const INERT_TYPES: [&str; 23] = [
    "audio/aac",
    "audio/flac",
    "audio/mp4",
    "audio/mpeg",
    "audio/ogg",
    "audio/opus",
    "audio/wav",
    "audio/webm",
    "image/apng",
    "image/avif",
    "image/bmp",
    "image/gif",
    "image/heic",
    "image/jpeg",
    "image/jxl",
    "image/png",
    "image/tiff",
    "image/webp",
    "video/mp4",
    "video/ogg",
    "video/quicktime",
    "video/webm",
    "video/x-matroska",
];

/// Types served under their own name, as a download only.
const DOWNLOAD_TYPES: [&str; 6] = [
    "application/gzip",
    "application/json",
    "application/pdf",
    "application/zip",
    "text/csv",
    "text/markdown",
];

/// How a content of this media type is served. Never the stored type itself, which may be any text.
pub(crate) fn served_type(media_type: &str) -> Served {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let known = |types: &[&'static str]| {
        types.iter().copied().find(|known| known.eq_ignore_ascii_case(essence))
    };
    if essence.eq_ignore_ascii_case("text/plain") {
        return Served { content_type: "text/plain; charset=utf-8", is_inert: true };
    }
    if let Some(content_type) = known(&INERT_TYPES) {
        return Served { content_type, is_inert: true };
    }
    Served {
        content_type: known(&DOWNLOAD_TYPES).unwrap_or("application/octet-stream"),
        is_inert: false,
    }
}

/// The header by RFC 6266: an ASCII name for old clients and the real name, percent-encoded. Only
/// the last part of a path is used as the name.
pub(crate) fn content_disposition(disposition: &str, file_name: &str) -> String {
    let name = file_name.rsplit(['/', '\\']).next().unwrap_or_default();
    if name.is_empty() {
        return disposition.to_owned();
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.' | '-' | '_');
    let ascii: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'-' | b'_' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{disposition}; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_harmless_types_are_served_under_their_name() {
        for (stored, served, is_inert) in [
            ("image/png", "image/png", true),
            ("IMAGE/PNG; x=y", "image/png", true),
            ("text/plain; charset=latin1", "text/plain; charset=utf-8", true),
            ("application/pdf", "application/pdf", false),
            ("image/svg+xml", "application/octet-stream", false),
            ("text/html", "application/octet-stream", false),
            ("text/html;image/png", "application/octet-stream", false),
            ("image/png\r\nSet-Cookie: a=b", "application/octet-stream", false),
            ("", "application/octet-stream", false),
        ] {
            let expected = Served { content_type: served, is_inert };
            assert_eq!(served_type(stored), expected, "{stored}");
        }
    }

    #[test]
    fn file_names_cannot_break_out_of_the_header() {
        for (name, expected) in [
            ("", "attachment"),
            ("..", "attachment; filename=\"..\"; filename*=UTF-8''.."),
            ("../../etc/", "attachment"),
            ("a/b c.txt", "attachment; filename=\"b c.txt\"; filename*=UTF-8''b%20c.txt"),
            ("x\"\r\nü", "attachment; filename=\"x____\"; filename*=UTF-8''x%22%0D%0A%C3%BC"),
        ] {
            assert_eq!(content_disposition("attachment", name), expected);
        }
    }
}
