//! The path of a file within a folder: relative, separated by `/`, as bytes, because a name on Linux
//! need not be UTF-8.
//!
//! P1  No component is empty, `.` or `..`, and none holds a zero byte or a `/`: a path never leaves
//!     the folder by its text.
//! P2  The text form is reversible and shows on a terminal: bytes that are no UTF-8, characters that
//!     do not show, and the escape character itself are escaped.

use std::fmt;

use thiserror::Error;

use crate::core::foreign_text::is_unshowable;

/// The longest path, as Linux limits it.
pub const PATH_BYTES_MAX: usize = 4096;

/// The longest component, as the common file systems limit it.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// A path within a folder. See P1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FolderPath(Vec<u8>);

/// The name of a path in the journal: the first 16 bytes of its BLAKE3 hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey(pub [u8; 16]);

/// Why bytes are not a path of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// The path is empty, or has an empty component.
    #[error("the path has an empty component")]
    Empty,
    /// The path has a component `.` or `..`.
    #[error("the path has a component that is `.` or `..`")]
    Dots,
    /// The path has a zero byte.
    #[error("the path has a zero byte")]
    Zero,
    /// The path's text has a backslash that begins no escape.
    #[error("the path has a `\\` that is followed neither by `\\` nor by `x` and two hex digits")]
    Escape,
    /// It, or one of its components, is too long.
    #[error("{what} is {got} bytes long, the limit is {limit}")]
    TooLong {
        /// The part that is too long.
        what: &'static str,
        /// The path's length.
        got: usize,
        /// The limit.
        limit: usize,
    },
}

impl FolderPath {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// The bytes are not a relative path within a folder.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.len() > PATH_BYTES_MAX {
            let (got, limit) = (bytes.len(), PATH_BYTES_MAX);
            return Err(PathError::TooLong { what: "the path", got, limit });
        }
        if bytes.contains(&0) {
            return Err(PathError::Zero);
        }
        for component in bytes.split(|byte| *byte == b'/') {
            match component {
                b"" => return Err(PathError::Empty),
                b"." | b".." => return Err(PathError::Dots),
                _ if component.len() > COMPONENT_BYTES_MAX => {
                    let (got, limit) = (component.len(), COMPONENT_BYTES_MAX);
                    return Err(PathError::TooLong { what: "a component of the path", got, limit });
                }
                _ => {}
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components, outermost first. There is at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// The path of the directory that it is in; `None` at the top of the folder.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(Self(self.0[..slash].to_vec()))
    }

    /// The path of `name` in the directory at this path.
    ///
    /// # Errors
    /// `name` is not a component, or the path becomes too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        Self::from_bytes(&[&self.0, b"/".as_slice(), name].concat())
    }

    /// The text form: `\\` is a backslash, `\x0a` the byte 10. See P2.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    c if is_unshowable(c) => {
                        escape(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut text)
                    }
                    c => text.push(c),
                }
            }
            escape(chunk.invalid(), &mut text);
        }
        text
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// The text has a wrong escape, or is not a relative path within a folder.
    pub fn from_text(text: &str) -> Result<Self, PathError> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            (rest, _) = match (byte, after) {
                (b'\\', [b'\\', after @ ..]) => (after, bytes.push(b'\\')),
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digits = data_encoding::HEXLOWER_PERMISSIVE.decode(&[*high, *low]);
                    let byte = digits.ok().and_then(|bytes| bytes.first().copied());
                    (after, bytes.push(byte.ok_or(PathError::Escape)?))
                }
                (b'\\', _) => return Err(PathError::Escape),
                _ => (after, bytes.push(byte)),
            };
        }
        Self::from_bytes(&bytes)
    }

    /// Its name in the journal.
    pub fn key(&self) -> PathKey {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&self.0).as_bytes()[..16]);
        PathKey(key)
    }
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        text.push_str("\\x");
        text.push_str(&data_encoding::HEXLOWER.encode(&[*byte]));
    }
}

/// For people: bytes that are no UTF-8 are replaced. Not reversible, and not safe for a terminal.
impl fmt::Display for FolderPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_path_that_would_leave_the_folder_or_that_no_system_holds_is_refused() {
        let long = [b'a'; COMPONENT_BYTES_MAX + 1];
        let deep = [b"a/".as_slice(); PATH_BYTES_MAX / 2 + 1].concat();
        for bad in [
            b"".as_slice(),
            b"/",
            b"/etc",
            b"a//b",
            b"a/",
            b"..",
            b"a/../b",
            b"./a",
            b"a\0b",
            &long,
            &deep,
        ] {
            assert!(FolderPath::from_bytes(bad).is_err(), "{bad:?}");
        }
        for good in [b"a".as_slice(), b"...", b"a b/\xff\n", b"..a/b..", &long[1..]] {
            assert_eq!(FolderPath::from_bytes(good).unwrap().as_bytes(), good);
        }
    }

    #[test]
    fn the_text_of_a_path_shows_and_leads_back_to_the_same_bytes() {
        for (bytes, text) in [
            (b"a/b c.txt".as_slice(), "a/b c.txt"),
            ("gr\u{fc}n/\u{65e5}\u{672c}".as_bytes(), "gr\u{fc}n/\u{65e5}\u{672c}"),
            (b"back\\slash", "back\\\\slash"),
            (b"line\nbreak", "line\\x0abreak"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("\u{202e}txt".as_bytes(), "\\xe2\\x80\\xaetxt"),
        ] {
            let path = FolderPath::from_bytes(bytes).unwrap();
            assert_eq!(path.to_text(), text);
            assert_eq!(FolderPath::from_text(text).unwrap(), path);
        }
        for bad in ["a\\", "a\\n", "\\x1", "\\xzz", "\\x2f\\x2f", "\\x00"] {
            assert!(FolderPath::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_path_of_random_bytes_comes_back_from_its_text() {
        // A linear congruential generator: the core has no random source.
        let mut state: u64 = 11;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33).to_be_bytes()[7]
        };
        let mut tried = 0;
        for _ in 0..20_000 {
            let length = usize::from(next() % 12) + 1;
            // Mostly what is special somewhere.
            let special = b"\\x0a/.\n\x7f\xc3\xbc\xe2\x80\xae\xff\0";
            let bytes: Vec<u8> = (0..length)
                .map(|_| match next() % 4 {
                    0 => next(),
                    _ => special[usize::from(next()) % special.len()],
                })
                .collect();
            let Ok(path) = FolderPath::from_bytes(&bytes) else { continue };
            tried += 1;
            let text = path.to_text();
            assert!(!text.chars().any(is_unshowable), "{text:?}");
            assert_eq!(FolderPath::from_text(&text).unwrap(), path, "{bytes:?}");
        }
        assert!(tried > 2_000, "{tried}");
    }
}
