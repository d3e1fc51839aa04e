//! Hints about changes in a bound directory, from the operating system. A hint says where to look, not
//! what happened; the truth is a scan.

use std::io;

use super::root::Root;
use crate::core::folder::path::FolderPath;

/// The most hints that wait; when more come, all are dropped for one [`Hint::Overflow`].
pub const HINTS_MAX: usize = 8192;

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Something happened to a path.
    Path {
        /// The path.
        path: FolderPath,
        /// A program closed the file after writing, or renamed it to this name: it is complete.
        is_final: bool,
    },
    /// A directory appeared: scan below it, with the watch.
    Below(FolderPath),
    /// Hints were lost: scan everything.
    Overflow,
    /// The directory is not watched, or not all of it: scan each minute. In words for people.
    Failed(String),
}

/// Watches directories. Ends when dropped.
#[derive(Debug)]
pub struct Watch {}

/// The hints of a [`Watch`].
#[derive(Debug)]
pub struct Hints {}

impl Watch {
    /// Starts to watch nothing yet: [`Root::scan`] adds the directories.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn start(_root: &Root) -> io::Result<(Self, Hints)> {
        Ok((Self {}, Hints {}))
    }

    /// Watches a directory of the folder.
    pub(super) fn add(&self, _dir: Option<&FolderPath>) {}
}

impl Hints {
    /// The next hint; `None` after the watch was dropped.
    pub async fn next(&mut self) -> Option<Hint> {
        std::future::pending().await
    }
}
