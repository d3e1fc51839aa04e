//! The path of a file within a folder: relative, separated by `/`, as bytes, because a name on Linux
//! need not be UTF-8.
//!
//! P1  No component is empty, `.` or `..`, and none holds a zero byte or a `/`: a path never leaves
//!     the folder by its text.
//! P2  The text form is reversible: bytes that are no UTF-8 are escaped, and so is the escape
//!     character.

use std::fmt;

use thiserror::Error;

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
    /// It is empty, or has an empty component.
    #[error("the path has an empty component")]
    Empty,
    /// It has a component `.` or `..`.
    #[error("the path has a component that is `.` or `..`")]
    Dots,
    /// It has a zero byte.
    #[error("the path has a zero byte")]
    Zero,
    /// It, or one of its components, is too long.
    #[error("{what} is {got} bytes long, the limit is {limit}")]
    TooLong {
        /// The part that is too long.
        what: &'static str,
        /// Its length.
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

    /// Its name in the journal.
    pub fn key(&self) -> PathKey {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&self.0).as_bytes()[..16]);
        PathKey(key)
    }
}

/// For people: bytes that are no UTF-8 are replaced. Not reversible, and not safe for a terminal.
impl fmt::Display for FolderPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
