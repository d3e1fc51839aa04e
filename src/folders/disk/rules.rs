//! What is not synchronised: our own files, the litter of operating systems and editors, and what the
//! user lists in `.cansyncignore` at the top of the folder, in the syntax of gitignore.
//!
//! U1  What is in an ignored directory is ignored, whatever other lines say.
//! U2  Our own files are always ignored. The other defaults can be taken back by a line with `!`.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::names::OWN;
use super::root::{Root, is_absence};
use crate::core::folder::path::FolderPath;

/// The file with the user's rules. It is synchronised like any other.
pub const IGNORE_FILE: &str = ".cansyncignore";

/// The longest `.cansyncignore` that is read: tens of thousands of lines.
const IGNORE_BYTES_MAX: u64 = 1024 * 1024;

/// The most invalid lines of an ignore file that are reported.
const PROBLEMS_MAX: usize = 8;

/// What is ignored unless the user takes it back.
const DEFAULTS: [&str; 9] = [
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "~$*",
    ".~lock.*",
    "*.swp",
    ".Trash-*",
    "*.part",
    "*.crdownload",
];

/// The rules that say which paths are ignored.
#[derive(Debug)]
pub struct Rules {
    globs: Gitignore,
    /// Differs where something else may be ignored.
    pub digest: [u8; 32],
    /// Lines of `.cansyncignore` that were left out, in words for people.
    pub problems: Vec<String>,
}

impl Rules {
    /// Reads the rules of a folder.
    ///
    /// # Errors
    /// There is a `.cansyncignore` that cannot be read. Going on without it would synchronise what
    /// the user excluded.
    pub fn load(root: &Root) -> io::Result<Self> {
        let path = FolderPath::from_bytes(IGNORE_FILE.as_bytes()).map_err(io::Error::other)?;
        let mut text = Vec::new();
        match root.open_file(&path) {
            Ok(file) => {
                file.take(IGNORE_BYTES_MAX + 1).read_to_end(&mut text)?;
            }
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(error),
        }
        let limit = usize::try_from(IGNORE_BYTES_MAX).unwrap_or(usize::MAX);
        if text.len() > limit {
            let text = format!("{IGNORE_FILE} is longer than {limit} bytes: shorten it");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self::from_text(&String::from_utf8_lossy(&text)))
    }

    /// The defaults, then the lines of `text`.
    pub fn from_text(text: &str) -> Self {
        let mut builder = GitignoreBuilder::new("");
        let mut problems = Vec::new();
        let mut hasher = blake3::Hasher::new();
        DEFAULTS.iter().for_each(|line| {
            hasher.update(line.as_bytes()).update(b"\n");
        });
        let digest = *hasher.update(text.as_bytes()).finalize().as_bytes();
        let user = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        for (number, line) in DEFAULTS.into_iter().map(|line| (0, line)).chain((1..).zip(user)) {
            if let Err(error) = builder.add_line(None, line)
                && problems.len() < PROBLEMS_MAX
            {
                problems.push(format!("line {number} of {IGNORE_FILE} is left out: {error}"));
            }
        }
        let globs = builder.build().unwrap_or_else(|error| {
            problems.push(format!("{IGNORE_FILE} is left out: {error}"));
            Gitignore::empty()
        });
        Self { globs, digest, problems }
    }

    /// Whether a path, or a directory on the way to it, is ignored.
    pub fn is_ignored(&self, path: &FolderPath, is_dir: bool) -> bool {
        let bytes = path.as_bytes();
        let slashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut parents = slashes.map(|(at, _)| &bytes[..at]);
        parents.any(|parent| self.is_ignored_here(parent, true))
            || self.is_ignored_here(bytes, is_dir)
    }

    /// Whether a rule ignores the path itself. The caller knows that no parent is ignored.
    pub(super) fn is_ignored_here(&self, path: &[u8], is_dir: bool) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(OWN)
            || self.globs.matched(Path::new(OsStr::from_bytes(path)), is_dir).is_ignore()
    }
}
