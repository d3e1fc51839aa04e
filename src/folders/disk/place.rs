//! Writes to a bound directory: content, links, empty directories, removals.

use std::fs::File;
use std::io;
use std::path::Path;

use thiserror::Error;

use super::keep::Displaced;
use super::root::Root;
use super::seen::Seen;
use crate::core::folder::path::FolderPath;

/// Where the content of a file comes from.
pub enum Source<'a> {
    /// A reader, read to its end. When it fails, nothing is placed.
    Reader(&'a mut (dyn io::Read + Send)),
    /// A file: its blocks are shared where possible, else copied.
    File(&'a File),
    /// A file of the home that the name shall share (a hard link), read-only from then on. Its time
    /// is the time of that file.
    Link(&'a Path),
}

/// What shall be at a path.
pub enum Place<'a> {
    /// A regular file.
    File {
        /// Its content.
        source: Source<'a>,
        /// The size that it must have.
        size_bytes: u64,
        /// When it was last modified, milliseconds since the Unix epoch.
        modified_ms: i64,
        /// Its owner may execute it.
        is_executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: &'a [u8],
    },
    /// An empty directory.
    Directory,
    /// Nothing.
    Nothing,
}

/// One change of the directory.
pub struct Placement<'a> {
    /// The path.
    pub path: &'a FolderPath,
    /// What shall be there.
    pub what: Place<'a>,
    /// What is there now. Anything else is left alone, or kept.
    pub expected: Option<Seen>,
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Placed {
    /// As ordered; what is there now.
    Done(Option<Seen>),
    /// As ordered, but somebody else wrote to the path in the same moment. That edit is kept; read
    /// it, then [`Root::release`] it.
    Displaced {
        /// What is there now.
        seen: Option<Seen>,
        /// The edit.
        edit: Displaced,
    },
}

/// Why a change was not made. The directory is as before.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// Something else than expected is there.
    #[error("the path changed meanwhile")]
    Changed,
    /// A directory on the way to the path is a file or a link.
    #[error("{0} is not a directory")]
    ParentIsNoDirectory(FolderPath),
    /// A directory cannot be removed or replaced while something is in it, perhaps ignored files.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The disk, or the user's share of it, is full.
    #[error("the disk is full")]
    NoSpace,
    /// The file system is mounted read-only.
    #[error("the file system is read-only")]
    ReadOnly,
    /// The user of the agent may not write there.
    #[error("permission denied")]
    NotPermitted,
    /// The file system cannot hold the name, or not under this length.
    #[error("this file system cannot hold the name")]
    NameRefused,
    /// The content ended early or was too long.
    #[error("the content has {got_bytes} bytes, expected {expected_bytes}")]
    WrongSize {
        /// Its size.
        got_bytes: u64,
        /// The size that it must have.
        expected_bytes: u64,
    },
    /// The file system cannot exchange two names in one step, so a file cannot be replaced without
    /// risking the user's edit.
    #[error("this file system cannot exchange two files in one step")]
    CannotExchange,
    /// The source cannot be read, or the disk fails.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Root {
    /// Makes several changes, durably, and returns the outcome of each, in order. Changes of one
    /// path must not be in the same call.
    pub fn place_all(&self, placements: Vec<Placement<'_>>) -> Vec<Result<Placed, PlaceError>> {
        placements.into_iter().map(|_| Err(PlaceError::CannotExchange)).collect()
    }

    /// Makes one change, durably.
    ///
    /// # Errors
    /// It was not made.
    pub fn place(&self, placement: Placement<'_>) -> Result<Placed, PlaceError> {
        self.place_all(vec![placement]).pop().unwrap_or(Err(PlaceError::Changed))
    }

    /// Removes the directories above a path that are empty, innermost first.
    pub fn remove_empty_parents(&self, _path: &FolderPath) {}

    /// Whether there is a directory with nothing in it. Ignored files count.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_empty_directory(&self, _path: &FolderPath) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a directory if nothing is in it. Returns whether it did.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn remove_empty_directory(&self, _path: &FolderPath) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Renames `from`, which must be as `expected`, to `to`, durably and without replacing anything.
    ///
    /// # Errors
    /// Something else is at `from`, or something is at `to`: [`PlaceError::Changed`].
    pub fn set_aside(
        &self,
        _from: &FolderPath,
        _to: &FolderPath,
        _expected: &Seen,
    ) -> Result<(), PlaceError> {
        Err(PlaceError::Changed)
    }
}
