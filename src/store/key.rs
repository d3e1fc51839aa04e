//! The key with which a program talks to a store: its file, and who may read it.
//!
//! A key file that others can read is refused and not repaired, because the key may be known by
//! then. The key's text is used in a header and nowhere else; `Debug` shows none of it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use thiserror::Error;

/// A bearer key: visible ASCII without spaces.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKey(String);

/// Why a key cannot be read from its file.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file cannot be opened, read or created.
    #[error("cannot use the key file {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Other users may have read the key.
    #[error(
        "the key file {} can be read by others (mode {mode:04o}): make a new key and protect it \
         with `chmod 600`", .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The file's permission bits.
        mode: u32,
    },
    /// The file belongs to another user, who can read and change it.
    #[error("the key file {} belongs to user {uid}, not to us or root", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The file's owner's user id.
        uid: u32,
    },
    /// The content is not a key.
    #[error(
        "the key file {} holds no key: expected one line of 1 to {KEY_BYTES_MAX} visible ASCII \
         characters", .path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Longer than any key in use, shorter than every server's header limit.
const KEY_BYTES_MAX: usize = 1024;

/// 256 bits, which nobody can guess.
const NEW_KEY_BYTES: usize = 32;

impl StoreKey {
    /// Reads the key from a file that only its owner (this user or root) can read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let status = file.metadata().map_err(io)?;
        let mode = status.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let uid = status.uid();
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(KeyError::Foreign { path: path.to_owned(), uid });
        }
        let mut text = String::new();
        let malformed = || KeyError::Malformed { path: path.to_owned() };
        // Two more than the longest key: room for a line end, and to recognise a file that is too
        // long.
        let mut start = file.take(KEY_BYTES_MAX as u64 + 2);
        match start.read_to_string(&mut text) {
            Ok(_) => Self::parse(&text).ok_or_else(malformed),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(malformed()),
            Err(error) => Err(io(error)),
        }
    }

    /// Makes a random key in a new file with mode 0600. Fails if the file exists, and leaves it
    /// unchanged.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let key = Self(data_encoding::HEXLOWER.encode(&rand::random::<[u8; NEW_KEY_BYTES]>()));
        // Written under another name first, because a crash must not leave a key file without a
        // key.
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(format!(".{:016x}", rand::random::<u64>()));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            writeln!(file, "{}", key.0)?;
            file.sync_all()?;
            rustix::fs::renameat_with(CWD, &unfinished, CWD, path, RenameFlags::NOREPLACE)?;
            match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                _ => File::open(".")?.sync_all(),
            }
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&unfinished);
            KeyError::Io { path: path.to_owned(), source }
        })?;
        Ok(key)
    }

    /// Parses a key; surrounding white space is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = (1..=KEY_BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// Whether `given` is this key, in constant time.
    pub fn matches(&self, given: &[u8]) -> bool {
        // Comparing BLAKE3 hashes takes constant time and hides the length too.
        blake3::hash(given) == blake3::hash(self.0.as_bytes())
    }

    /// The key's text for a header.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_created_key_is_private_and_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = StoreKey::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(StoreKey::load(&path).unwrap(), key);
        assert!(matches!(StoreKey::create(&path), Err(KeyError::Io { .. })));
        assert!(!format!("{key:?}").contains(key.expose()));
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        StoreKey::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o644, 0o620, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = StoreKey::load(&path).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { .. }), "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(StoreKey::load(&path).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        for text in ["", " \n", "two words", "line\nline", "käse", long.as_str()] {
            assert!(StoreKey::parse(text).is_none(), "{text:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(StoreKey::load(&path), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn only_the_whole_key_matches() {
        let key = StoreKey::parse("secret\n").unwrap();
        assert!(key.matches(b"secret"));
        for wrong in [&b""[..], b"secre", b"secretx", b"Secret", b"secret\n"] {
            assert!(!key.matches(wrong));
        }
    }
}
