//! The name of an asset that is written to a folder. The file name of an asset comes from another
//! device, so it is a wish only: the result is one harmless path component on every common file
//! system, whatever the wish.
//!
//! I1  The result is one component: no separator, not `.` or `..`, 1 to [`NAME_BYTES_MAX`] bytes.
//! I2  It holds no character that a terminal, a shell glob or another file system acts upon: no
//!     controls, no direction overrides, no leading dash, no leading dot (a device in the group
//!     must not plant a `.bashrc`).
//! I3  It is no device name of Windows, with or without an extension.
//! I4  The same wish always gives the same name, and a result as the wish gives itself.
//!
//! Two wishes may give one name, and a file system may take two names for one (case, composed and
//! decomposed accents). So the writer never replaces a file, and falls back to [`suffixed_name`].

use crate::core::foreign_text::is_unshowable;
use crate::core::ids::Hash;

/// The longest component that the common file systems allow.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest extension that survives when a name is cut; a longer one is not an extension.
const EXTENSION_BYTES_MAX: usize = 16;

/// Names that mean a device on Windows, whatever extension follows.
const DEVICE_NAMES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// The harmless name for `wish`, or `None` when no usable character is left.
pub fn export_name(wish: &str) -> Option<String> {
    let component = wish.rsplit(['/', '\\']).next().unwrap_or_default();
    let replaced: String = component.chars().map(harmless).collect();
    let trimmed = trim(&replaced);
    if trimmed.is_empty() {
        return None;
    }
    let mut name = match trimmed.strip_prefix(['.', '-']) {
        Some(rest) => format!("_{rest}"),
        None => trimmed.to_owned(),
    };
    if is_device_name(&name) {
        name.insert(0, '_');
    }
    Some(fit(&name, ""))
}

/// The name to use when `name` (a result of [`export_name`]) is taken: with the start of the
/// asset's hash before the extension.
pub fn suffixed_name(name: &str, hash: &Hash) -> String {
    fit(name, &format!("-{}", hash.short()))
}

fn harmless(character: char) -> char {
    let acted_upon =
        is_unshowable(character) || matches!(character, '<' | '>' | ':' | '"' | '|' | '?' | '*');
    if acted_upon { '_' } else { character }
}

/// Windows drops dots and spaces at the end; leading spaces hide a name in a listing.
fn trim(name: &str) -> &str {
    name.trim_start().trim_end_matches(|end: char| end == '.' || end.is_whitespace())
}

fn is_device_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_lowercase();
    let numbered = ["com", "lpt"].iter().find_map(|port| stem.strip_prefix(port));
    let is_port = numbered.is_some_and(|number| {
        let mut digits = number.chars();
        matches!(digits.next(), Some('0'..='9' | '¹' | '²' | '³')) && digits.next().is_none()
    });
    is_port || DEVICE_NAMES.contains(&stem.as_str())
}

/// `name` with `suffix` before its extension, the stem cut so that everything fits.
fn fit(name: &str, suffix: &str) -> String {
    let (stem, extension) = match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= EXTENSION_BYTES_MAX => name.split_at(dot),
        _ => (name, ""),
    };
    let room = NAME_BYTES_MAX - suffix.len() - extension.len();
    if stem.len() <= room {
        return format!("{stem}{suffix}{extension}");
    }
    let cut = trim(&stem[..stem.floor_char_boundary(room)]);
    format!("{cut}{suffix}{extension}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::ids::HashAlgorithm;

    #[test]
    fn hostile_wishes_become_harmless_names() {
        let table = [
            ("photo.jpg", Some("photo.jpg")),
            ("Bericht 2026 – Übersicht.pdf", Some("Bericht 2026 – Übersicht.pdf")),
            ("archive.tar.gz", Some("archive.tar.gz")),
            ("../x", Some("x")),
            ("/etc/x", Some("x")),
            ("a/../../b", Some("b")),
            ("..\\x", Some("x")),
            ("C:\\x", Some("x")),
            ("C:x", Some("C_x")),
            ("a:b", Some("a_b")),
            ("CON", Some("_CON")),
            ("con.txt", Some("_con.txt")),
            ("Con .txt", Some("_Con .txt")),
            ("nul", Some("_nul")),
            ("CONOUT$", Some("_CONOUT$")),
            ("LPT1.tar.gz", Some("_LPT1.tar.gz")),
            ("com¹", Some("_com¹")),
            ("COM12", Some("COM12")),
            ("console", Some("console")),
            ("trailing. . ", Some("trailing")),
            ("  leading", Some("leading")),
            ("nul\0byte", Some("nul_byte")),
            ("two\nlines", Some("two_lines")),
            ("\u{1b}[31mred", Some("_[31mred")),
            ("\u{9b}31m", Some("_31m")),
            ("-rf", Some("_rf")),
            ("--help", Some("_-help")),
            (".bashrc", Some("_bashrc")),
            ("...x", Some("_..x")),
            ("exe\u{202e}gpj.scr", Some("exe_gpj.scr")),
            ("zero\u{200b}width", Some("zero_width")),
            ("what?*.txt", Some("what__.txt")),
            ("", None),
            (".", None),
            ("..", None),
            ("a/", None),
            (" . ", None),
            ("\u{fffd}\u{fffd}.bin", Some("\u{fffd}\u{fffd}.bin")),
        ];
        for (wish, expected) in table {
            assert_eq!(export_name(wish).as_deref(), expected, "for {wish:?}");
        }
    }

    #[test]
    fn long_names_are_cut_in_the_stem_and_keep_their_extension() {
        let fits = format!("{}.jpg", "x".repeat(NAME_BYTES_MAX - 4));
        assert_eq!(export_name(&fits), Some(fits.clone()));

        let long = format!("{}.jpg", "ü".repeat(400));
        let name = export_name(&long).unwrap();
        assert!(name.len() <= NAME_BYTES_MAX && name.ends_with("ü.jpg"), "{name}");

        let no_extension = format!("a.{}", "y".repeat(400));
        assert_eq!(export_name(&no_extension).unwrap().len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_suffix_stands_before_the_extension_and_within_the_length() {
        let hash = HashAlgorithm::Blake3.hash(b"");
        assert_eq!(suffixed_name("photo.jpg", &hash), "photo-af1349b9f5.jpg");
        assert_eq!(suffixed_name("README", &hash), "README-af1349b9f5");
        let long = format!("{}.jpg", "x".repeat(NAME_BYTES_MAX - 4));
        let suffixed = suffixed_name(&long, &hash);
        assert_eq!(suffixed.len(), NAME_BYTES_MAX);
        assert!(suffixed.ends_with("x-af1349b9f5.jpg"));
    }

    #[test]
    fn twins_that_differ_in_case_or_accents_keep_their_own_names() {
        let twins = ["Photo.jpg", "photo.jpg", "caf\u{e9}.txt", "cafe\u{301}.txt"];
        for twin in twins {
            assert_eq!(export_name(twin).as_deref(), Some(twin));
        }
    }

    proptest! {
        #[test]
        fn every_wish_gives_one_safe_component_that_is_stable(wish in "(?s).{0,300}") {
            let Some(name) = export_name(&wish) else { return Ok(()) };
            prop_assert!((1..=NAME_BYTES_MAX).contains(&name.len()));
            prop_assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with(['.', '-']));
            prop_assert!(!name.chars().any(is_unshowable));
            let path = std::path::Path::new(&name);
            prop_assert_eq!(path.components().count(), 1);
            prop_assert_eq!(export_name(&name), Some(name));
        }
    }
}
