//! Names that a file system cannot hold beside each other, or at all.
//!
//! K1  Of names that are one name to the file system, one is on the disk and the others are left
//!     out, listed and never lost: they stay in the folder for devices that can hold them.
//! K2  Which one is on the disk does not change while it is there: a name that came later never
//!     takes the place of one that was brought to the disk before.

use std::collections::BTreeMap;

use unicode_normalization::UnicodeNormalization;

/// Which different names are one name to a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Folding {
    /// Upper and lower case.
    pub case: bool,
    /// Composed and decomposed letters.
    pub normalisation: bool,
}

/// Why a file system cannot hold a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unholdable {
    /// The name is not UTF-8.
    NotUtf8,
    /// It names a device of Windows, or has a character or an end that Windows refuses.
    Windows,
}

/// Which names a file system holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holds {
    /// Only UTF-8, as on macOS.
    pub utf8_only: bool,
    /// Only what Windows accepts, as on FAT, exFAT and NTFS.
    pub windows_only: bool,
}

impl Folding {
    /// The form in which names are compared: names with one form are one name to the file system.
    pub fn form(self, name: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(name) else { return name.to_vec() };
        match (self.case, self.normalisation) {
            (false, false) => name.to_vec(),
            (false, true) => text.nfc().collect::<String>().into_bytes(),
            (true, false) => text.to_lowercase().into_bytes(),
            // Lower-casing can decompose letters.
            (true, true) => text.to_lowercase().nfc().collect::<String>().into_bytes(),
        }
    }

    /// Of the paths that should be on the disk, those that are left out: each with the path that has
    /// its place. `paths` are (path or name, whether it is on the disk now). See K2; among those
    /// that are not on the disk yet the first in the order of bytes has the place.
    pub fn left_out<'a>(
        self,
        paths: impl IntoIterator<Item = (&'a [u8], bool)>,
    ) -> BTreeMap<&'a [u8], &'a [u8]> {
        let mut places: BTreeMap<Vec<u8>, (&[u8], bool)> = BTreeMap::new();
        let mut left_out = Vec::new();
        for (path, is_there) in paths {
            let form = self.form(path);
            let Some(place) = places.get_mut(&form) else {
                places.insert(form, (path, is_there));
                continue;
            };
            let is_first = (!is_there, path) < (!place.1, place.0);
            let loser = if is_first { std::mem::replace(place, (path, is_there)).0 } else { path };
            if loser != place.0 {
                left_out.push((loser, form));
            }
        }
        let owner = |form: &Vec<u8>| places.get(form).map(|(path, _)| *path);
        left_out.iter().filter_map(|(path, form)| Some((*path, owner(form)?))).collect()
    }
}

impl Holds {
    /// Why the file system cannot hold this component of a path; `None` when it can.
    pub fn refuses(self, name: &[u8]) -> Option<Unholdable> {
        let text = std::str::from_utf8(name);
        match text {
            Err(_) if self.utf8_only || self.windows_only => Some(Unholdable::NotUtf8),
            Ok(text) if self.windows_only && !is_windows_name(text) => Some(Unholdable::Windows),
            _ => None,
        }
    }
}

fn is_windows_name(name: &str) -> bool {
    let is_refused = |c: char| c.is_ascii_control() || r#"<>:"/\|?*"#.contains(c);
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let is_port = ["com", "lpt"].iter().any(|port| {
        let number = stem.strip_prefix(port).unwrap_or_default();
        matches!(number, "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9")
    });
    let is_device = is_port || matches!(stem.as_str(), "con" | "prn" | "aux" | "nul");
    !name.contains(is_refused) && !name.ends_with(['.', ' ']) && !is_device
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Folding = Folding { case: true, normalisation: true };

    #[test]
    fn names_that_differ_by_case_or_composition_alone_have_one_place() {
        let (composed, decomposed) = ("\u{fc}ber".as_bytes(), "u\u{308}ber".as_bytes());
        for (folding, one, two, is_one) in [
            (BOTH, b"Plan.txt".as_slice(), b"plan.TXT".as_slice(), true),
            (BOTH, composed, decomposed, true),
            (BOTH, "\u{dc}BER".as_bytes(), decomposed, true),
            (Folding { case: true, ..Folding::default() }, composed, decomposed, false),
            (Folding { normalisation: true, ..Folding::default() }, b"A", b"a", false),
            (Folding::default(), b"A", b"a", false),
            (BOTH, b"\xffA", b"\xffa", false),
        ] {
            let left_out = folding.left_out([(one, false), (two, false)]);
            assert_eq!(left_out.len(), usize::from(is_one), "{one:?} {two:?}");
        }
    }

    #[test]
    fn the_path_that_is_on_the_disk_keeps_its_place_in_any_order_of_listing() {
        let paths = [(b"a".as_slice(), false), (b"A", false), (b"b", true)];
        let expected = BTreeMap::from([(b"a".as_slice(), b"A".as_slice())]);
        assert_eq!(BOTH.left_out(paths), expected, "the first in the order of bytes");
        let expected = BTreeMap::from([(b"A".as_slice(), b"a".as_slice())]);
        let mut paths = [(b"a".as_slice(), true), (b"A", false), (b"b", false)];
        assert_eq!(BOTH.left_out(paths), expected);
        paths.reverse();
        assert_eq!(BOTH.left_out(paths), expected);
    }

    #[test]
    fn names_that_a_system_cannot_hold_are_told_from_those_it_can() {
        let windows = Holds { windows_only: true, ..Holds::default() };
        for bad in ["con", "NUL.txt", "com1", "a:b", "a?", "end.", "end ", "tab\tbed"] {
            assert_eq!(windows.refuses(bad.as_bytes()), Some(Unholdable::Windows), "{bad}");
            assert_eq!(Holds::default().refuses(bad.as_bytes()), None, "{bad}");
        }
        for good in ["console", "com10", "com", ".hidden", "a b.txt"] {
            assert_eq!(windows.refuses(good.as_bytes()), None, "{good}");
        }
        let mac = Holds { utf8_only: true, ..Holds::default() };
        assert_eq!(mac.refuses(b"\xff"), Some(Unholdable::NotUtf8));
    }
}
